"""The record of the peers' bench: it goes on where it was stopped, and keeps results of other settings apart."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
from peer_record import Record

SETTINGS = {"cpu": "a", "threads": 2}
KEY = ("clearhead", "int8")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    record = Record(tmp_path / "record.jsonl", SETTINGS)
    record.add(KEY, 1, {"times": [1]})
    record.add(("openvino", "int8"), 1, {}, "openvino int8 is left out: it is not installed.")
    return tmp_path / "record.jsonl"


def test_what_is_recorded_is_not_run_again(path: Path) -> None:
    record = Record(path, SETTINGS)
    assert record.has(KEY, 1) and not record.has(KEY, 2)
    record.add(KEY, 2, {"times": [2]})
    assert Record(path, SETTINGS).rounds(KEY) == {1: {"times": [1]}, 2: {"times": [2]}}


def test_results_of_other_settings_stay_in_the_file(path: Path) -> None:
    other = Record(path, {"cpu": "b", "threads": 2})
    assert other.results == [] and not other.has(KEY, 1)
    other.add(KEY, 1, {"times": [3]})
    assert Record(path, SETTINGS).rounds(KEY) == {1: {"times": [1]}}


def test_a_program_that_failed_runs_again_only_when_it_is_asked_for(path: Path) -> None:
    record, failed = Record(path, SETTINGS), ("openvino", "int8")
    assert record.has(failed, 2) and record.rounds(failed) == {}
    assert record.problem(failed) == "openvino int8 is left out: it is not installed."
    record.forget_problems([failed])
    assert not record.has(failed, 1) and record.problem(failed) == ""


def test_a_line_that_was_cut_off_is_dropped(path: Path) -> None:
    whole = path.read_text()
    path.write_text(whole + whole[:20])
    record = Record(path, SETTINGS)
    record.add(KEY, 2, {"times": [2]})
    assert [json.loads(line)["round"] for line in path.read_text().splitlines()] == [1, 1, 2]


def test_without_a_file_results_are_kept_in_memory() -> None:
    record = Record(None, SETTINGS)
    record.add(KEY, 1, {"times": [1]})
    assert record.rounds(KEY) == {1: {"times": [1]}}
