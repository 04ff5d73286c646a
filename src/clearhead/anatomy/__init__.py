"""What a GPT-2 is made of: its parameters and bytes, derived from the config and from real tensors."""

from clearhead.anatomy.count import (
    BITS,
    Account,
    Part,
    bytes_of,
    check_account,
    count_parameters,
    count_tensors,
)

__all__ = ["BITS", "Account", "Part", "bytes_of", "check_account", "count_parameters", "count_tensors"]
