"""Run the command line as a user does: its exit status and its two streams."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from typing import Any
from unittest import mock

from clearhead.cli import main
from clearhead.cli.language import choose

_ENVIRONMENT = {"COLUMNS": "80", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
PATIENCE = 300  # seconds; only a machine that is busy with other things needs more than a few
Result = subprocess.CompletedProcess[bytes]


def run(*args: object, stdin: bytes = b"", env: dict[str, str] | None = None) -> Result:
    """Run `python -m clearhead` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "clearhead", *map(str, args)],
        input=stdin,
        capture_output=True,
        timeout=PATIENCE,
        env={**os.environ, **_ENVIRONMENT, **(env or {})},
    )


def call(*args: object, stdin: bytes = b"") -> Result:
    """Run the command in this process, which is faster: torch is loaded once for all tests."""
    arguments = ["clearhead", *map(str, args)]
    given, out, err = io.BytesIO(stdin), io.BytesIO(), io.BytesIO()
    streams = [io.TextIOWrapper(stream, encoding="utf-8") for stream in (given, out, err)]
    status: Any = 0
    with (
        mock.patch.dict(os.environ, _ENVIRONMENT),
        mock.patch.multiple(sys, argv=arguments, stdin=streams[0], stdout=streams[1], stderr=streams[2]),
    ):
        try:
            main()
        except SystemExit as end:
            status = end.code or 0
        finally:
            choose([], {})  # the language is the process's, and other tests follow
    for stream in streams[1:]:
        stream.flush()
    return subprocess.CompletedProcess(arguments, status, out.getvalue(), err.getvalue())


def refused(result: Result) -> str:
    """Return the error message; check that it is one line, with exit status 2, no output and no traceback."""
    error = result.stderr.decode()
    assert result.returncode == 2, error
    assert result.stdout == b""
    assert error.startswith("clearhead: "), error
    assert error.endswith(".\n") and error.count("\n") == 1, error
    return str(error.removeprefix("clearhead: ").strip())
