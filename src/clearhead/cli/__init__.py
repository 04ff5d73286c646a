"""The command line: one file per verb, and what every verb shares.

A verb's file imports only what its options need; whatever is heavy (torch, numba, a model) is imported
inside the verb, so that `clearhead --help` answers at once.
"""

from clearhead.cli.command import app, main

__all__ = ["app", "main"]
