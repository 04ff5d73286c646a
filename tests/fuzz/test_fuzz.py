"""Damaged files: every reader ends in success or a `ClearheadError`, within a limit of CPU time and of memory.

`make fuzz` reads 10,000 inputs per reader; the suite reads a few of each (FUZZ_INPUTS sets the number).
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz import seeds
from fuzz.harness import Worker, damage_bytes, damage_json, dump, fill

INPUTS = int(os.environ.get("FUZZ_INPUTS", "25"))

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def worker(request: pytest.FixtureRequest) -> Iterator[Worker]:
    shared = Worker()
    yield shared
    shared.close()
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("\nslowest input: {:.2f} s of CPU time, {}".format(*shared.slowest))


@pytest.fixture(scope="session")
def seed_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return seeds.make(tmp_path_factory.mktemp("seeds"))


@pytest.mark.parametrize(("reader", "seed", "name"), seeds.CASES, ids=["-".join(case) for case in seeds.CASES])
@settings(
    max_examples=INPUTS,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(number=st.integers(0, 2**63))
def test_damaged_files(
    reader: str, seed: str, name: str, number: int, worker: Worker, seed_folders: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    chance = random.Random(number)
    source = seed_folders[seed]
    original = (source / name).read_bytes()
    if name.endswith(".json") and chance.random() < 0.75:
        contents = dump(damage_json(seeds.parsed(source / name), chance))
    else:
        contents = damage_bytes(original, chance)
    folder = tmp_path_factory.getbasetemp() / "input"
    fill(folder, source, name, contents)
    outcome = worker.read(reader, folder)
    worker.slowest = max(worker.slowest, (outcome.seconds, f"{reader}, {seed}/{name}"))
    assert outcome.kind in ("ok", "refused"), f"{outcome.kind}: {outcome.text}\n{contents[:2000]!r}"
    assert "\x1b" not in outcome.text and len(outcome.text) < 3000, outcome.text
