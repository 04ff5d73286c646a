"""What all tests share: the engine is compiled before they begin."""

from __future__ import annotations

import subprocess
import sys

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Compiles what `generate` needs, once and before the workers start.

    The first run on a machine compiles and says so on standard error; tests of the command line expect one line there.
    """
    if not hasattr(config, "workerinput"):
        subprocess.run(
            [sys.executable, "-m", "clearhead", "generate", "One", "-n", "1"], capture_output=True, check=False
        )
