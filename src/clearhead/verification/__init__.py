"""Prove that a checkpoint is right.

`clearhead.verify` (in `model_checks.py`) runs every check; `verify_weights` (in `weights_checks.py`) runs those that
need the weights only, with NumPy. The checks by file:

- `file_checks.py`: sizes and checksums of the files.
- `weights_checks.py`: tensors, numbers, statistics, and whether the weights are a published model's.
- `attention_checks.py`, with the mathematics in `attention_order.py`: order and orientation of q, k, v and the output
  projection, and the number of heads, from the weights alone.
- `model_checks.py`: tokenizer, a text with and without permuted parts (`permutation_test.py`), and the published
  continuations (`published.py`).
"""

from clearhead.verification.checks import Check, Verification
from clearhead.verification.weights_checks import verify_weights

__all__ = ["Check", "Verification", "verify_weights"]
