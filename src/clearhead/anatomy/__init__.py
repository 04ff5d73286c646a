"""What a GPT-2 consists of and what it costs, derived from the config and checked against real tensors."""

from clearhead.anatomy.cost import Cost, CostModel
from clearhead.anatomy.count import (
    BITS,
    ModelPart,
    ParameterTree,
    bytes_of,
    check_parameters,
    count_parameters,
    count_tensors,
)

__all__ = [
    "BITS",
    "Cost",
    "CostModel",
    "ModelPart",
    "ParameterTree",
    "bytes_of",
    "check_parameters",
    "count_parameters",
    "count_tensors",
]
