"""Whether files still hold the bytes that something was made from."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from clearhead.errors import WeightsError
from clearhead.weights import fingerprint
from clearhead.weights.fingerprint import ContentRecord, content_digest


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "model.safetensors", tmp_path / "config.json"]
    paths[0].write_bytes(bytes(range(256)) * 100_000)
    paths[1].write_text("{}")
    return paths


@pytest.fixture
def no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprint, "_SETTLED_NS", -1)


def change_in_place(path: Path, at: int) -> None:
    """Flip one bit and set the modification time back."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


@pytest.mark.parametrize("at", [0, 5_000_000, 25_599_999])
def test_a_change_in_place_with_the_time_set_back_is_seen(files: list[Path], no_wait: None, at: int) -> None:
    record = ContentRecord.of(files)
    assert record.holds(files)
    time.sleep(0.02)  # longer than the kernel's clock tick: the inode's time moves on
    change_in_place(files[0], at)
    assert not record.holds(files)
    change_in_place(files[0], at)
    assert record.holds(files)  # the bytes are the same again


def test_a_file_that_was_just_written_is_always_read(files: list[Path]) -> None:
    record = ContentRecord.of(files)
    assert record.stamps == ()
    change_in_place(files[0], 7)
    assert not record.holds(files)


def test_files_that_did_not_change_are_not_read_again(
    files: list[Path], no_wait: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = ContentRecord.of(files)

    def no_reading(paths: object) -> str:
        raise AssertionError("the contents were read")

    monkeypatch.setattr(fingerprint, "content_digest", no_reading)
    assert record.holds(files)
    files[0].chmod(0o600)  # another inode time: now the contents decide
    with pytest.raises(AssertionError):
        record.holds(files)


def test_a_copy_holds_the_same(files: list[Path], tmp_path: Path) -> None:
    other = tmp_path / "copy"
    other.mkdir()
    copies = [other / path.name for path in files]
    for path, copy in zip(files, copies, strict=True):
        copy.write_bytes(path.read_bytes())
    assert ContentRecord.of(files).holds(copies)


def test_the_digest_depends_on_which_file_holds_what(tmp_path: Path) -> None:
    one, other = tmp_path / "a", tmp_path / "b"
    one.write_bytes(b"xy")
    other.write_bytes(b"z")
    first = content_digest([one, other])
    one.write_bytes(b"x")
    other.write_bytes(b"yz")
    assert content_digest([one, other]) != first
    with pytest.raises(WeightsError, match="could not be read"):
        content_digest([tmp_path / "missing"])


def test_a_record_survives_as_text(files: list[Path], no_wait: None) -> None:
    record = ContentRecord.of(files)
    assert ContentRecord.from_text(record.to_text()) == record
    for text in ("", "{}", "[1]", '["a", [1]]', '["a", 3]', "[" * 100_000):
        assert not ContentRecord.from_text(text).holds(files)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[" * 100_000,
        "[]",
        '["x"]',
        '["x", ""]',
        '["x", [["1"]]]',
        '["x", [[Infinity]]]',
        "[1, [[1]]]",
        '["x", [[true]]]',
    ],
)
def test_any_other_text_is_a_record_of_no_file(text: str, files: list[Path]) -> None:
    assert not ContentRecord.from_text(text).holds(files)
    assert ContentRecord.from_text(text) == ContentRecord("")
