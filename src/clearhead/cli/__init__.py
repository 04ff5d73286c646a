"""The command line: one file for each verb, and what the verbs share.

A verb's file imports only what its options need. Heavy modules (torch, numba, a model) are imported inside the verb,
so that `clearhead --help` answers at once.
"""

import sys

from clearhead.cli.exit_codes import INTERRUPTED

__all__ = ["main"]


def main() -> None:
    """Run the command line of this process and exit: 0, 2 for what the user can correct, 130 after Ctrl-C."""
    try:
        from clearhead.cli.app import run  # inside, so that Ctrl-C during the import is quiet too

        run()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
