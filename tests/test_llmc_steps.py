"""llm.c's ten steps, on a small stand-in: a plain loop over transformers' GPT-2 gives the same losses."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from reference_models import SMALL, ours_of, peer_of

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


def test_the_batch_is_llmcs() -> None:
    tokens = [int(token) for token in BENCH["TOKENS"].split()]
    assert len(tokens) == 4 * 64 + 1
    assert tokens[0] == 50256
    assert len(BENCH["PUBLISHED"]) == 10
