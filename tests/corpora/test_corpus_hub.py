"""A data set of the hub: the real library downloads it from a server here; it is recorded, and checked again."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from command_line import Result, refused, run
from hub_server import COMMIT, Hub, serving

pytestmark = pytest.mark.slow
NAME = "hf:me/stories"
LATER = "f" * 40


def dataset(folder: Path, animal: str) -> Path:
    """Write a data set of 300 stories in Parquet."""
    folder.mkdir()
    table = pyarrow.table({"text": [f"Once upon a time a {animal} ran home, for the {n}th time." for n in range(300)]})
    pyarrow.parquet.write_table(table, folder / "train.parquet")
    return folder


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with serving({"datasets/me/stories": dataset(tmp_path / "dogs", "dog")}) as server:
        yield server


class Reader:
    """A user with a cache of the hub's files."""

    def __init__(self, hub: Hub, home: Path) -> None:
        self._environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
        self._environment |= {key: "" for key in os.environ if key.lower().endswith("_proxy")}

    def build(self, out: Path, name: str = NAME) -> Result:
        """Build a corpus of the data set, or open the one that is there."""
        return run("corpus", "build", name, "-o", out, "-t", "gpt2", env=self._environment)


def test_the_revision_and_the_contents_are_recorded_and_checked(hub: Hub, tmp_path: Path) -> None:
    reader, corpus = Reader(hub, tmp_path / "home"), tmp_path / "corpus"
    result = reader.build(corpus)
    assert result.returncode == 0, result.stderr.decode()
    (source,) = json.loads((corpus / "manifest.json").read_text())["sources"]
    assert (source["revision"], source["read"]) == (COMMIT, 300)
    assert len(source["sha256"]) == 64

    # The data set moves on; the corpus is that of its revision.
    hub.older[COMMIT] = dict(hub.models)
    hub.models["datasets/me/stories"] = dataset(tmp_path / "cats", "cat")
    hub.commit = LATER
    again = reader.build(corpus)
    assert again.returncode == 0, again.stderr.decode()
    newer = reader.build(tmp_path / "newer")
    assert newer.returncode == 0, newer.stderr.decode()
    (source,) = json.loads((tmp_path / "newer/manifest.json").read_text())["sources"]
    assert source["revision"] == LATER
    older = reader.build(tmp_path / "older", f"{NAME}@{COMMIT}")
    assert older.returncode == 0, older.stderr.decode()
    shards = [(tmp_path / name / "text.train.00000.bin").read_bytes() for name in ("corpus", "older", "newer")]
    assert shards[0] == shards[1] != shards[2]


def test_other_contents_under_the_same_revision_are_refused(hub: Hub, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    assert Reader(hub, tmp_path / "home").build(corpus).returncode == 0
    hub.models["datasets/me/stories"] = dataset(tmp_path / "cows", "cow")
    assert f"{NAME} is not what it was" in refused(Reader(hub, tmp_path / "other home").build(corpus))


@pytest.mark.parametrize("name", ["hf:me/nothing", f"{NAME}@no-such-revision", f"{NAME}:::", f"{NAME}@"])
def test_what_the_hub_does_not_have_is_one_sentence(hub: Hub, tmp_path: Path, name: str) -> None:
    assert name in refused(Reader(hub, tmp_path / "home").build(tmp_path / "corpus", name))
