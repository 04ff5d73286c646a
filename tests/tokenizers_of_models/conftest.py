"""Small vocabularies, and GPT-2's in other libraries."""

from __future__ import annotations

from pathlib import Path

import pytest

from clearhead.tokenizer import Tokenizer
from tokenizers_of_models.tokenizer_files import CORPUS


@pytest.fixture(scope="module")
def small() -> Tokenizer:
    return Tokenizer.train(CORPUS, 400)


@pytest.fixture(scope="module")
def saved(small: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer") / "small"
    small.save(folder)
    return folder
