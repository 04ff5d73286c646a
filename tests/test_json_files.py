"""One reader of JSON checks the types of every file that a program wrote earlier."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clearhead.errors import TrainingError
from clearhead.utils.json_files import (
    Condition,
    Count,
    FileName,
    MalformedJSONError,
    checked_json,
    parse_json,
    read_json_file,
)


@dataclass(frozen=True)
class Piece:
    tokens: Count
    files: tuple[FileName, ...] = ()


class Whole(TypedDict):
    count: Count
    kind: Literal["a", "b"]
    rate: float
    loss: float | None
    pieces: list[Piece]
    split: Piece | None
    by_name: dict[str, list[int]]
    pair: NotRequired[tuple[str, int]]
    share: NotRequired[Annotated[float, Condition(math.isfinite, "a finite number")]]


RIGHT: dict[str, Any] = {
    "count": 3,
    "kind": "b",
    "rate": 2,
    "loss": None,
    "pieces": [{"tokens": 1, "files": ["x.bin"]}, {"tokens": 0}],
    "split": {"tokens": 5},
    "by_name": {"w": [1]},
    "other": {"any": "thing"},
}


def test_a_value_of_the_type_comes_with_its_dataclasses() -> None:
    found = checked_json(RIGHT, Whole)
    assert found["pieces"] == [Piece(1, ("x.bin",)), Piece(0)]
    assert found["split"] == Piece(5)
    rest = {key: value for key, value in found.items() if key not in ("pieces", "split")}
    assert rest == {key: value for key, value in RIGHT.items() if key not in ("pieces", "split")}
    assert checked_json({**RIGHT, "pair": ["x", 1]}, Whole)["pair"] == ("x", 1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"count": -1}, "count is -1, and a whole number from 0 on was expected"),
        ({"count": True}, "count is True, and a whole number was expected"),
        ({"count": 1.0}, "count is 1.0, and a whole number was expected"),
        ({"count": 2**63}, "count is 9223372036854775808, and a whole number from 0 on was expected"),
        ({"kind": "c"}, "kind is 'c', and 'a' or 'b' was expected"),
        ({"kind": []}, r"kind is \[\], and 'a' or 'b' was expected"),
        ({"rate": "2"}, "rate is '2', and a number was expected"),
        ({"rate": False}, "rate is False, and a number was expected"),
        ({"loss": ""}, "loss is '', and a number or null was expected"),
        ({"pieces": ""}, "pieces is '', and a list was expected"),
        ({"pieces": {}}, r"pieces is {}, and a list was expected"),
        ({"pieces": [[]]}, r"pieces\[0\] is \[\], and an object was expected"),
        ({"pieces": [{"tokens": 1, "files": ""}]}, r"pieces\[0\].files is '', and a list was expected"),
        (
            {"pieces": [{"tokens": 1, "files": ["../x"]}]},
            r"pieces\[0\].files\[0\] is '../x', and the name of a file in",
        ),
        (
            {"pieces": [{"tokens": 1, "files": ["a\0"]}]},
            r"pieces\[0\].files\[0\] is 'a\\x00', and the name of a file in",
        ),
        ({"pieces": [{}]}, r"pieces\[0\] lacks 'tokens'"),
        ({"pieces": [{"tokens": 1, "x": 1}]}, r"pieces\[0\] has the unknown key 'x'"),
        ({"split": ""}, "split is '', and an object or null was expected"),
        ({"split": {"tokens": "1"}}, "split.tokens is '1', and a whole number was expected"),
        ({"split": {}}, "split lacks 'tokens'"),
        ({"by_name": []}, r"by_name is \[\], and an object was expected"),
        ({"by_name": {"w": [1, None]}}, r"by_name.w\[1\] is None, and a whole number was expected"),
        ({"pair": ["x"]}, "pair has 1 items, and 2 were expected"),
        ({"share": math.nan}, "share is nan, and a finite number was expected"),
    ],
)
def test_a_wrong_value_is_named_with_its_place(change: dict[str, Any], words: str) -> None:
    with pytest.raises(MalformedJSONError, match=rf"^{words}"):
        checked_json({**RIGHT, **change}, Whole)


def test_a_missing_key_is_named() -> None:
    del (without := dict(RIGHT))["loss"]
    with pytest.raises(MalformedJSONError, match=r"^it lacks 'loss'$"):
        checked_json(without, Whole)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "it is not JSON"),
        (b"\xff", "it is not JSON: 'utf-8' codec can't decode"),
        (b"[" * 100_000, "it is not JSON: its brackets are nested too deeply"),
        (b"1" * 5000, "it is not JSON: Exceeds the limit"),
        (b"[" * 900 + b"]" * 900, "it is .*, and an object was expected"),
        (b'""', "it is '', and an object was expected"),
    ],
)
def test_what_is_no_json_is_a_sentence_of_the_given_class(text: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "state.json").write_bytes(text)
    with pytest.raises(TrainingError, match=rf"state\.json could not be read \({words}.*\); restore it\.$"):
        read_json_file(tmp_path / "state.json", dict[str, Any], TrainingError, "restore it")
    with pytest.raises(TrainingError, match=r"none\.json could not be read \(No such file or directory\); restore it"):
        read_json_file(tmp_path / "none.json", dict[str, Any], TrainingError, "restore it")


def test_a_byte_order_mark_is_no_fault() -> None:
    assert parse_json(b'\xef\xbb\xbf{"a": 1}', dict[str, int]) == {"a": 1}


any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(value=any_json, key=st.sampled_from(sorted(RIGHT)))
def test_any_json_is_of_the_type_or_refused(value: Any, key: str) -> None:
    for whole in (value, {**RIGHT, key: value}, {**RIGHT, "pieces": [{"tokens": value}], "by_name": {"w": value}}):
        try:
            found = parse_json(json.dumps(whole), Whole)
        except MalformedJSONError as error:
            assert str(error)
        else:
            assert found["count"] >= 0
            assert all(isinstance(piece, Piece) for piece in found["pieces"])
