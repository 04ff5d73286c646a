"""The command line: one file for each verb, and what the verbs share.

A verb's file imports only what its options need. Heavy modules (torch, numba, a model) are imported inside the verb,
so that `clearhead --help` answers at once.
"""

from clearhead.cli.app import main

__all__ = ["main"]
