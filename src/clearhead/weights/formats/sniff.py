"""Detect what a file is from its first bytes."""

from __future__ import annotations

from pathlib import Path

from clearhead.errors import WeightsError

_LFS = b"version https://git-lfs.github.com/spec/"
_LOOK = 512  # bytes


def first_bytes(path: Path) -> bytes:
    """Return the first 512 bytes of a file.

    Raises:
        WeightsError: if it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(_LOOK)
    except OSError as error:
        raise WeightsError(
            f"{path} could not be read ({error.strerror}); a file with a model's weights was expected there."
        ) from None


def check_is_data(path: Path) -> None:
    """Check that a file is not empty, a Git LFS pointer or a web page.

    Raises:
        WeightsError: if it is; it says how to get the right file.
    """
    head = first_bytes(path)
    if not head:
        raise WeightsError(f"{path} is empty (0 bytes); download it again.")
    if head.startswith(_LFS):
        raise WeightsError(
            f"{path} is a Git LFS pointer, a few lines of text in place of the weights; "
            f"run `git lfs pull` in {path.parent}, or download the file itself."
        )
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        raise WeightsError(
            f"{path} is a web page saved under the name of a weights file; download the file itself "
            "(on the hub: the address with /resolve/ in it, not /blob/)."
        )


def refuse_foreign(path: Path) -> None:
    """Raise for a file of weights in a format that is not read here, and say how to convert it.

    Raises:
        WeightsError: if it is one.
    """
    if path.suffix == ".msgpack" or detect_format(path) == "hdf5":
        framework, option = ("Flax", "from_flax") if path.suffix == ".msgpack" else ("TensorFlow 2 (HDF5)", "from_tf")
        raise WeightsError(
            f"{path} is in the format of {framework}, which Clearhead does not read; convert it with version 4 of "
            f"transformers: GPT2LMHeadModel.from_pretrained(folder, {option}=True).save_pretrained(new_folder)."
        )
    if path.suffix == ".meta":
        raise WeightsError(
            f"{path} is the graph of a TensorFlow checkpoint without its weights; "
            f"put {path.stem}.index and {path.stem}.data-00000-of-00001 into the same folder."
        )
    if path.name == "checkpoint" and first_bytes(path).startswith(b"model_checkpoint_path"):
        raise WeightsError(
            f"{path} only names a TensorFlow checkpoint; put the .index and .data files of that into {path.parent}."
        )


def detect_format(path: Path) -> str:
    """Return the file format: `pytorch`, `gguf`, `hdf5`, `llm.c`, `safetensors`, or `unknown`."""
    head = first_bytes(path)
    if head[8:9] == b"{":  # before the others: a header's length can begin like any of them
        return "safetensors"
    if head.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04")):
        return "pytorch"  # a zip, or a bare pickle, which PyTorch wrote before 1.6
    if head.startswith(b"GGUF"):
        return "gguf"
    if head.startswith(b"\x89HDF"):
        return "hdf5"
    if int.from_bytes(head[:4], "little") == 20240326:
        return "llm.c"
    return "unknown"
