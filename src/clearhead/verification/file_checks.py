"""Whether a model's files are whole: their sizes against what their own headers demand, and every checksum they carry.

A reader refuses a file that is cut short when it opens it, so what is left to do here is to say what was compared, and
to take the checksums that no reader takes.
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from clearhead.errors import WeightsError
from clearhead.utils.progress import ByteProgress
from clearhead.weights.formats.gguf import GGUFFile
from clearhead.weights.formats.onnx import OnnxFile
from clearhead.weights.formats.sharded import ShardedFile
from clearhead.weights.formats.tensorflow import TensorFlowFile
from clearhead.weights.tensors import TensorFile

_CHUNK = 2**22  # bytes of which a checksum is taken at a time
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Checked:
    """What a look at files found.

    Attributes:
        wrong: sentences on what is not as it should be.
        odd: sentences on what is unusual and does no harm.
        said: what was compared, and agreed.
    """

    wrong: tuple[str, ...] = ()
    odd: tuple[str, ...] = ()
    said: tuple[str, ...] = ()


def files_of(file: TensorFile) -> Iterator[TensorFile]:
    """The files that hold the tensors: the shards, or the one file itself."""
    yield from file.shards if isinstance(file, ShardedFile) else (file,)


def check_sizes(file: TensorFile) -> Checked:
    """Compares sizes with what headers and indexes demand, of files that have been opened."""
    wrong: list[str] = []
    odd: list[str] = []
    said: list[str] = []
    if isinstance(file, TensorFlowFile):
        said.append(f"{file.path.name}: {file.path.stat().st_size:,} bytes, the checksums of its blocks are right")
        for path, due in file.data_files():
            _compare(path, due, "its index", said, odd)
        return Checked(odd=tuple(odd), said=tuple(said))
    for one in files_of(file):
        if isinstance(one, GGUFFile):
            _compare(one.path, one.nbytes, "its header", said, odd)
        elif isinstance(one, OnnxFile):
            said += [f"{path.name}: {path.stat().st_size:,} bytes, room for all of its tensors" for path in one.files]
        else:  # the readers of the other formats refuse a file with a byte too many or too few
            what = "the zip's directory" if zipfile.is_zipfile(one.path) else "its header"
            said.append(f"{one.path.name}: {one.path.stat().st_size:,} bytes, as {what} demands")
    if isinstance(file, ShardedFile):
        _compare_total(file, wrong, said)
    return Checked(tuple(wrong), tuple(odd), tuple(said))


def _compare(path: Path, due: int, by: str, said: list[str], odd: list[str]) -> None:
    size = path.stat().st_size
    if size > due:
        odd.append(f"{path.name}: {size - due:,} bytes follow the {due:,} that {by} demands; nothing reads them")
    else:
        said.append(f"{path.name}: {size:,} bytes, as {by} demands")


def _compare_total(file: ShardedFile, wrong: list[str], said: list[str]) -> None:
    """The sum that Hugging Face's index of shards records, where it does."""
    index = json.loads(file.path.read_text(encoding="utf-8"))
    metadata = index.get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    if not isinstance(total, int):
        return
    there = sum(info.nbytes for info in file.tensors.values())
    if total == there:
        said.append(f"{file.path.name}: {there:,} bytes of tensors in {len(file.shards)} shards, as it records")
    else:
        wrong.append(
            f"{file.path.name} records {total:,} bytes of tensors, and the shards hold {there:,}; "
            "the index and the shards belong to different models, or one is damaged: download them again."
        )


def check_sums(file: TensorFile) -> Checked:
    """Takes every checksum that the files carry, and compares.

    The hub names what it stores by its SHA-256, so in its cache every format has one.
    """
    if isinstance(file, TensorFlowFile):
        return _tensorflow(file)
    found = [_one(one.path) for one in files_of(file)]
    return Checked(*(tuple(line for one in found for line in getattr(one, kind)) for kind in ("wrong", "odd", "said")))


def _tensorflow(file: TensorFlowFile) -> Checked:
    total = sum(info.nbytes for info in file.tensors.values())
    with ByteProgress(f"Checking {file.path.parent.name}", total) as progress:
        damaged = file.damaged(progress.advance)
    if not damaged:
        return Checked(said=(f"all {len(file.tensors)} tensors have the CRC-32C that {file.path.name} records",))
    if len(damaged) == len(file.tensors) and len(damaged) > 1:
        sentence = (
            f"not one of the {len(damaged)} tensors has the CRC-32C that {file.path.name} records; "
            "the index is that of another checkpoint: download both files again."
        )
        return Checked(wrong=(sentence,))
    return Checked(
        wrong=tuple(
            f"{name} does not have the CRC-32C that {file.path.name} records; its data is damaged." for name in damaged
        )
    )


def _one(path: Path) -> Checked:
    """The checksums of one file: its SHA-256 where the hub's cache names it so, else those of a zip's entries."""
    real = path.resolve()
    if _SHA256.fullmatch(real.name):
        digest = _sha256(real, path.name)
        if digest == real.name:
            return Checked(said=(f"{path.name} has the SHA-256 under which the hub stores it, {digest[:12]}…",))
        return Checked(
            wrong=(
                f"{path.name} has the SHA-256 {digest[:12]}…, and the hub has it as {real.name[:12]}…; fetch it again.",
            )
        )
    return _zip(path) if zipfile.is_zipfile(path) else Checked()


def _sha256(path: Path, what: str) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file, ByteProgress(f"Checking {what}", path.stat().st_size) as progress:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            progress.advance(len(chunk))
    return digest.hexdigest()


def _zip(path: Path) -> Checked:
    """The CRC-32 of every entry of a file of `torch.save`'s, which PyTorch itself does not compare."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        with ByteProgress(f"Checking {path.name}", sum(entry.file_size for entry in entries)) as progress:
            bad = [entry for entry in entries if not _is_sound(archive, entry, progress.advance)]
    if not bad:
        return Checked(said=(f"all {len(entries)} entries of {path.name} have the CRC-32 that the zip records",))
    if len(bad) == len(entries):
        # PyTorch has a switch, torch.serialization.set_crc32_options(False), that writes none.
        return Checked(odd=(f"{path.name} was saved with checksums switched off; there is nothing to compare",))
    names = ", ".join(entry.filename for entry in bad[:3]) + (", …" if len(bad) > 3 else "")
    sentence = f"{path.name}: {names} of its {len(entries)} entries has not the CRC-32 that the zip records; "
    return Checked(wrong=(sentence + "the data is damaged: download it again.",))


def _is_sound(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, advance: Callable[[int], None]) -> bool:
    try:
        with archive.open(entry) as file:
            while chunk := file.read(_CHUNK):  # comes to the end only where the checksum is right
                advance(len(chunk))
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError):
        return False
    except OSError as error:
        raise WeightsError(f"{archive.filename} could not be read ({error.strerror or error}).") from None
    return True
