"""A folder of a model, and a vocabulary."""

import shutil
from pathlib import Path

import pytest

import clearhead
import clearhead.config


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small byte-level BPE."""
    from clearhead.tokenizer import Tokenizer

    folder = tmp_path_factory.mktemp("vocabulary")
    Tokenizer.train(Path(clearhead.config.__file__).read_text(encoding="utf-8"), 400).save(folder)
    return folder


@pytest.fixture(scope="session")
def model(vocabulary: Path, compiled_engine: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small GPT-2 with a tokenizer, sure enough of itself that a sum in another order changes no token."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    shape = {"vocab_size": 400, "n_positions": 32, "n_embd": 24, "n_head": 4, "n_layer": 2}
    GPT2LMHeadModel(GPT2Config(**shape, initializer_range=0.3, bos_token_id=399, eos_token_id=399)).save_pretrained(
        folder
    )
    for file in vocabulary.iterdir():
        shutil.copy(file, folder)
    return folder
