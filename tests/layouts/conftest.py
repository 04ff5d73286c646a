"""A model of transformers, its folder and its tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import GPT2LMHeadModel

from clearhead.tokenizer import Tokenizer
from layouts.layout_models import random_model


@pytest.fixture(scope="module")
def peer() -> GPT2LMHeadModel:
    return random_model()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train("the cat sat on the mat, and the rat sat on the cat; then that was that. " * 3, 280)


@pytest.fixture(scope="module")
def folder(peer: GPT2LMHeadModel, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The peer as transformers saves it, with a tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    peer.save_pretrained(folder)
    tokenizer.save(folder)
    return folder
