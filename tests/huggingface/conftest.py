"""A model of transformers and its folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import GPT2LMHeadModel

from huggingface.huggingface_models import random_model


@pytest.fixture(scope="module")
def peer() -> GPT2LMHeadModel:
    return random_model()


@pytest.fixture
def folder(peer: GPT2LMHeadModel, tmp_path: Path) -> Path:
    """The peer as transformers saves it, in one file."""
    peer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"
