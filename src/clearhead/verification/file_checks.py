"""Check that a model's files are complete: their sizes against their own headers, and every checksum they carry.

The readers refuse truncated files when they open them. The functions here report what was compared, and verify the
checksums that no reader verifies.
"""

from __future__ import annotations

import hashlib
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clearhead.errors import WeightsError
from clearhead.utils.json_files import read_json_file
from clearhead.utils.progress import ByteProgress
from clearhead.weights.formats.gguf import GGUFFile
from clearhead.weights.formats.onnx import OnnxFile
from clearhead.weights.formats.sharded import ShardedFile
from clearhead.weights.formats.tensorflow import TensorFlowFile
from clearhead.weights.tensors import TensorFile

_CHUNK = 2**22  # bytes read at a time
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class FileFindings:
    """What a check of files found.

    Attributes:
        errors: one sentence for each fault.
        warnings: one sentence for each thing that is unusual but harmless.
        confirmed: one phrase for each comparison that agreed.
    """

    errors: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    confirmed: tuple[str, ...] = ()


def files_of(file: TensorFile) -> Iterator[TensorFile]:
    """Yield the files that hold the tensors: the shards, or the one file itself."""
    yield from file.shards if isinstance(file, ShardedFile) else (file,)


def check_sizes(file: TensorFile) -> FileFindings:
    """Compare the sizes of an opened model's files with what their headers and indexes declare."""
    errors: list[str] = []
    warnings: list[str] = []
    confirmed: list[str] = []
    if isinstance(file, TensorFlowFile):
        confirmed.append(f"{file.path.name}: {file.path.stat().st_size:,} bytes, the checksums of its blocks match")
        for path, expected in file.data_files():
            _compare(path, expected, "its index", confirmed, warnings)
        return FileFindings(warnings=tuple(warnings), confirmed=tuple(confirmed))
    for one in files_of(file):
        if isinstance(one, GGUFFile):
            _compare(one.path, one.nbytes, "its header", confirmed, warnings)
        elif isinstance(one, OnnxFile):
            confirmed += [
                f"{path.name}: {path.stat().st_size:,} bytes, enough for all of its tensors" for path in one.files
            ]
        else:  # the other formats' readers refuse any other size
            what = "the zip's directory" if zipfile.is_zipfile(one.path) else "its header"
            confirmed.append(f"{one.path.name}: {one.path.stat().st_size:,} bytes, as {what} declares")
    if isinstance(file, ShardedFile):
        _compare_total(file, errors, confirmed)
    return FileFindings(tuple(errors), tuple(warnings), tuple(confirmed))


def _compare(path: Path, expected: int, declared_by: str, confirmed: list[str], warnings: list[str]) -> None:
    size = path.stat().st_size
    if size > expected:
        extra = size - expected
        warnings.append(f"{path.name}: {extra:,} unused bytes follow the {expected:,} that {declared_by} declares")
    else:
        confirmed.append(f"{path.name}: {size:,} bytes, as {declared_by} declares")


def _compare_total(file: ShardedFile, errors: list[str], confirmed: list[str]) -> None:
    """Compare the shards with the total size in Hugging Face's index, if the index has one."""
    index = read_json_file(file.path, dict[str, Any], WeightsError, "download it again")
    metadata = index.get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    if not isinstance(total, int):
        return
    present = sum(info.nbytes for info in file.tensors.values())
    if total == present:
        confirmed.append(f"{file.path.name}: {present:,} bytes of tensors in {len(file.shards)} shards, as recorded")
    else:
        errors.append(
            f"{file.path.name} records {total:,} bytes of tensors, but the shards hold {present:,}; "
            "the index and the shards belong to different models, or a file is damaged: download them again."
        )


def check_checksums(file: TensorFile) -> FileFindings:
    """Verify every checksum that the files carry.

    The hub's cache names large files by their SHA-256, so there a file of any format has a checksum.
    """
    if isinstance(file, TensorFlowFile):
        return _check_tensorflow(file)
    found = [_check_one(one.path) for one in files_of(file)]
    return FileFindings(
        errors=tuple(line for one in found for line in one.errors),
        warnings=tuple(line for one in found for line in one.warnings),
        confirmed=tuple(line for one in found for line in one.confirmed),
    )


def _check_tensorflow(file: TensorFlowFile) -> FileFindings:
    total = sum(info.nbytes for info in file.tensors.values())
    with ByteProgress(f"Checking {file.path.parent.name}", total) as progress:
        damaged = file.damaged(progress.advance)
    if not damaged:
        return FileFindings(
            confirmed=(f"all {len(file.tensors)} tensors match the CRC-32C values in {file.path.name}",)
        )
    if len(damaged) == len(file.tensors) and len(damaged) > 1:
        sentence = (
            f"none of the {len(damaged)} tensors matches its CRC-32C in {file.path.name}; "
            "the index belongs to another checkpoint: download both files again."
        )
        return FileFindings(errors=(sentence,))
    return FileFindings(
        errors=tuple(
            f"{name} does not match its CRC-32C in {file.path.name}; its data is damaged: download it again."
            for name in damaged
        )
    )


def _check_one(path: Path) -> FileFindings:
    """Verify one file: by its SHA-256 if it lies in the hub's cache, otherwise by the CRC-32 of each zip entry."""
    real = path.resolve()
    if _SHA256.fullmatch(real.name):
        digest = _sha256(real, path.name)
        if digest == real.name:
            return FileFindings(confirmed=(f"{path.name} has the SHA-256 that the hub records, {digest[:12]}…",))
        return FileFindings(
            errors=(
                f"{path.name} has the SHA-256 {digest[:12]}…, but the hub records {real.name[:12]}…; "
                "the file is damaged: download it again.",
            )
        )
    return _check_zip(path) if zipfile.is_zipfile(path) else FileFindings()


def _sha256(path: Path, what: str) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file, ByteProgress(f"Checking {what}", path.stat().st_size) as progress:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            progress.advance(len(chunk))
    return digest.hexdigest()


def _check_zip(path: Path) -> FileFindings:
    """Verify the CRC-32 of every entry of a file that `torch.save` wrote; PyTorch itself does not."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        with ByteProgress(f"Checking {path.name}", sum(entry.file_size for entry in entries)) as progress:
            bad = [entry for entry in entries if not _is_sound(archive, entry, progress.advance)]
    if not bad:
        return FileFindings(confirmed=(f"all {len(entries)} entries of {path.name} match their CRC-32",))
    if len(bad) == len(entries):
        # torch.serialization.set_crc32_options(False) makes PyTorch write none.
        return FileFindings(warnings=(f"{path.name} was saved with checksums switched off",))
    names = ", ".join(entry.filename for entry in bad[:3]) + (", …" if len(bad) > 3 else "")
    sentence = f"{path.name}: {len(bad)} of {len(entries)} entries do not match their CRC-32 ({names}); "
    return FileFindings(errors=(sentence + "the file is damaged: download it again.",))


def _is_sound(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, advance: Callable[[int], None]) -> bool:
    try:
        with archive.open(entry) as file:
            while chunk := file.read(_CHUNK):  # raises BadZipFile at the end if the checksum does not match
                advance(len(chunk))
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError):
        return False
    except OSError as error:
        raise WeightsError(f"{archive.filename} could not be read ({error.strerror or error}).") from None
    return True
