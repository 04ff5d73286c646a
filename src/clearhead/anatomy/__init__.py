"""What a GPT-2 is made of and what it costs, derived from the config and held against real tensors."""

from clearhead.anatomy.cost import Cost, Costs
from clearhead.anatomy.count import (
    BITS,
    Account,
    Part,
    bytes_of,
    check_account,
    count_parameters,
    count_tensors,
)

__all__ = [
    "BITS",
    "Account",
    "Cost",
    "Costs",
    "Part",
    "bytes_of",
    "check_account",
    "count_parameters",
    "count_tensors",
]
