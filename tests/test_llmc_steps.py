"""llm.c's ten steps, on a small stand-in: a plain loop over transformers' GPT-2 gives the same losses."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from reference_models import SMALL, ours_of, peer_of

from clearhead.config import GPTConfig
from clearhead.gpt import GPT
from clearhead.model import GPTModel
from clearhead.tokenizer import Tokenizer

BENCH = runpy.run_path(str(Path(__file__).parents[1] / "bench/llmc_ten_steps.py"))


def test_ten_steps_are_those_of_a_plain_loop(tmp_path: Path) -> None:
    peer = peer_of(SMALL, std=0.1)
    ids = np.random.default_rng(1).integers(SMALL.vocab_size, size=(4, 33))
    batch = ids[:, :-1].copy(), ids[:, 1:].copy()
    ours = BENCH["ten_steps"](ours_of(peer, tmp_path), batch)
    optimizer = torch.optim.AdamW(peer.parameters(), lr=1e-4, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
    inputs, targets = map(torch.from_numpy, batch)
    theirs = []
    for _ in range(10):
        loss = F.cross_entropy(peer(inputs).logits.flatten(0, 1), targets.flatten())
        theirs.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert ours == pytest.approx(theirs, abs=1e-4)
    assert ours[-1] < ours[0]


def test_the_batch_is_the_beginning_of_tiny_shakespeare(gpt2_files: Path) -> None:
    """The ids are GPT-2's own: each speech with the end of text before it, as llm.c prepares the text."""
    tokens = [int(token) for token in BENCH["TOKENS"].split()]
    assert len(tokens) == 4 * 64 + 1
    tokenizer = Tokenizer.from_folder(gpt2_files)
    text = tokenizer.decode(tokens)
    assert text.startswith(
        "<|endoftext|>First Citizen:\nBefore we proceed any further, hear me speak.\n\n<|endoftext|>All:"
    )
    assert tokenizer.encode(text, special=True) == tokens


@pytest.mark.slow
def test_a_wrong_loss_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gpt2_files: Path) -> None:
    """The script compares with the published losses: a random model's first loss is near log V, not near 5.27."""
    torch.manual_seed(0)
    config = GPTConfig(
        vocab_size=50257, context_length=64, emb_dim=8, n_heads=2, n_layers=1, qkv_bias=True, tie_weights=True
    )
    GPT(GPTModel(config), Tokenizer.from_folder(gpt2_files)).save(tmp_path)
    monkeypatch.setattr("sys.argv", ["llmc_ten_steps.py", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        BENCH["main"]()
    assert ended.value.code == 1
