"""A small random model, a server of it, and two clients. Test modules load this as a plugin of pytest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
import torch
from served import TEXT, TestServer, serving
from transformers import GPT2Config, GPT2LMHeadModel

import clearhead
from clearhead.gpt import GPT
from clearhead.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random GPT-2 of transformers, with 5 rows more than its tokenizer has tokens."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = Tokenizer.train([TEXT] * 4, 300)
    torch.manual_seed(1)
    shape = GPT2Config(
        vocab_size=tokenizer.vocab_size + 5,
        n_positions=64,
        n_embd=32,
        n_layer=2,
        n_head=4,
        initializer_range=0.3,
    )
    GPT2LMHeadModel(shape).save_pretrained(folder)
    tokenizer.save(folder)
    return folder


@pytest.fixture(scope="module")
def tiny_gpt(tiny_folder: Path) -> GPT:
    return clearhead.load(tiny_folder)


@pytest.fixture(scope="module")
def server(tiny_gpt: GPT) -> Iterator[TestServer]:
    with serving(tiny_gpt) as running:
        yield running


@pytest.fixture(scope="module")
def openai_client(server: TestServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def http(server: TestServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30) as client:
        yield client
