"""Copies of the checkpoints among the fixtures."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from checkpoints.checkpoint_files import FIXTURES


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the plain checkpoint that TensorFlow wrote."""
    return Path(shutil.copytree(FIXTURES / "tf_plain", tmp_path / "model"))
