"""The proof that loaded weights are right."""

from clearhead.verification.weights_checks import Point, Verification
from clearhead.verification.weights_checks import verify as verify_weights

__all__ = ["Point", "Verification", "verify_weights"]
