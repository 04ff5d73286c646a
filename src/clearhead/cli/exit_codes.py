"""The exit codes of the command line besides 0."""

FAILED = 1
"""The machine could not do it: a full disk, not enough memory, a closed output."""

USAGE = 2
"""The user can correct it: a bad option, a missing file, weights that do not fit."""

INTERRUPTED = 130
"""Ctrl-C, as shells report it: 128 plus the number of SIGINT."""
