"""Download the models that OpenAI published, from its own address or a mirror.

Every file is first `NAME.part`, and is renamed when its size and checksum (if known) are correct; the
data file is compared tensor by tensor with its index. If the connection breaks, the `.part` file stays,
and the next try continues it (HTTP Range). Proxies are taken from the environment (`https_proxy` and so
on), as Python's `urllib` does.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from clearhead.config import HUB_NAMES, GPTConfig
from clearhead.errors import ClearheadError, HubError, WeightsError
from clearhead.utils.progress import ByteProgress
from clearhead.weights.formats.sniff import check_is_data
from clearhead.weights.formats.sstable import read_table
from clearhead.weights.formats.tensorflow import TensorFlowFile
from clearhead.weights.hub.folder_lock import folder_for_download, lock_folder
from clearhead.weights.hub.official import Official, released, tokenizer_files

OPENAI = "https://openaipublic.blob.core.windows.net/gpt-2/models"
"""The address of OpenAI's models: a folder for each size."""

_INDEX = "model.ckpt.index"
_DATA = "model.ckpt.data-00000-of-00001"
_MAX_SMALL = 2**20  # bytes of a file of unknown size; the largest has 20 KB
_TIMEOUT = 30.0  # seconds without an answer
_TRIES = 3  # in a row without new bytes, before the next mirror
_PAUSE = 2.0  # seconds after the first of them, twice that after the second
_MAX_REQUESTS = 200  # to one address for one file, however few bytes each brings
_CHUNK = 2**20  # bytes

Check = Callable[[Path], None]


class _NotServedError(Exception):
    """An address does not serve a file, or serves another one; the text says why, and begins with a verb."""


@dataclass(frozen=True)
class DownloadFile:
    """A file to download: its name, its size if known, its largest size, and the check of its contents."""

    name: str
    nbytes: int | None
    limit: int
    check: Check


def fetch_openai(size: str, dest: str | Path, mirrors: Sequence[str] = (OPENAI,)) -> Path:
    """Download one of OpenAI's models into a folder that `clearhead.weights.open` opens.

    Files that exist already and are correct stay, so a second call finishes an interrupted download.

    Args:
        size: `124M`, `355M`, `774M` or `1558M`, or its name on the hub, such as `gpt2-medium`.
        dest: the folder; it is created if it does not exist.
        mirrors: addresses with a folder for each size, tried in turn.

    Returns:
        The folder.

    Raises:
        ConfigError: if there is no such size.
        HubError: if no mirror serves a file; what was downloaded of it is kept for the next call.
        WeightsError: if the folder cannot be written, has not enough space, or another process downloads into it.
    """
    GPTConfig.named(size)  # raises if there is no such size
    official = released()[HUB_NAMES.get(size.removeprefix("openai-community/"), size)]
    bases = [mirror.rstrip("/") for mirror in mirrors]
    for base in bases:
        if not base.startswith(("http://", "https://")):
            raise WeightsError(f"the mirror {base!r} is not an address; one that begins with https:// was expected.")
    folder = Path(dest).expanduser()
    try:
        with folder_for_download(folder), lock_folder(folder):
            _fetch_missing(official, bases, folder)
    except OSError as error:
        raise WeightsError(f"{folder} could not be written ({error.strerror or error}).") from None
    return folder


def _fetch_missing(official: Official, bases: list[str], folder: Path) -> None:
    missing = [file for file in _files(official, folder) if not _is_there(file, folder)]
    if not missing:
        return
    _check_space(folder, missing)
    with ByteProgress(f"Downloading {official.size}", sum(file.nbytes or 0 for file in missing)) as progress:
        for file in missing:
            _fetch(file, [f"{base}/{official.size}/{file.name}" for base in bases], folder, progress)


def _files(official: Official, folder: Path) -> Iterator[DownloadFile]:
    """Yield the files of a model in download order: the small ones first, which expose a bad mirror early."""
    yield DownloadFile("hparams.json", None, _MAX_SMALL, partial(_check_hparams, official=official))
    for name, known in tokenizer_files().items():
        yield DownloadFile(name, known.nbytes, known.nbytes, partial(_check_sha256, sha256=known.sha256))
    yield DownloadFile("checkpoint", None, _MAX_SMALL, _check_state)
    index_limit = official.index_bytes or _MAX_SMALL
    yield DownloadFile(_INDEX, official.index_bytes, index_limit, partial(_check_index, official=official))
    check_data = partial(_check_data, index=folder / _INDEX, official=official)
    yield DownloadFile(_DATA, official.data_bytes, official.data_bytes, check_data)


def _is_there(file: DownloadFile, folder: Path) -> bool:
    """Return whether a file exists and is correct. The data was checked before it was renamed: its size is enough."""
    path = folder / file.name
    if not path.is_file() or path.stat().st_size != (file.nbytes or path.stat().st_size):
        return False
    if file.name == _DATA:
        return True
    try:
        file.check(path)
    except ClearheadError:
        return False
    return True


def _check_space(folder: Path, missing: list[DownloadFile]) -> None:
    there = sum(_size(_part(folder, file)) for file in missing)
    due = sum(file.nbytes or 0 for file in missing) - there
    free = shutil.disk_usage(folder).free
    if due > free:
        raise WeightsError(
            f"{folder} has space for {free / 1e6:,.0f} MB and the download needs {due / 1e6:,.0f} MB; "
            "free some space, or choose another folder."
        )


def _part(folder: Path, file: DownloadFile) -> Path:
    return folder / f"{file.name}.part"


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _fetch(file: DownloadFile, urls: list[str], folder: Path, progress: ByteProgress) -> None:
    """Download one file from the first address that serves it.

    Raises:
        HubError: if none does.
    """
    part = _part(folder, file)
    failures = []
    for url in urls:
        resumed = _size(part) > 0
        failure = _attempt(url, part, file, progress)
        if failure and resumed and not _size(part):  # the part from an earlier download may have been wrong
            failure = _attempt(url, part, file, progress)
        if not failure:
            part.replace(folder / file.name)
            return
        failures.append(f"{url} {failure}")
    kept = f" Its first {_size(part):,} bytes are kept: try again to continue." if _size(part) else ""
    raise HubError(
        f"{file.name} could not be downloaded: {'; '.join(failures)}. Check the network and the proxy, or give a "
        f"mirror with --mirror URL (in Python: mirrors=[URL]).{kept}"
    )


def _attempt(url: str, part: Path, file: DownloadFile, progress: ByteProgress) -> str:
    """Download a file from one address and check it; return what went wrong, or "". A wrong file is removed."""
    try:
        _fetch_from(url, part, file, progress)
        check_is_data(part)
        file.check(part)
    except _NotServedError as error:
        return str(error)
    except ClearheadError as error:
        part.unlink()
        return f"served something else ({str(error).rstrip('.')})"
    return ""


def _fetch_from(url: str, part: Path, file: DownloadFile, progress: ByteProgress) -> None:
    """Download a file into `part`, continuing what is there; try again as long as tries bring new bytes.

    Raises:
        _NotServedError: if this address does not serve it.
    """
    import http.client  # here, because it would slow down `import clearhead.weights` by half
    import ssl
    import urllib.error

    tries, counted, why = 0, 0, ""

    def count(size: int) -> None:
        nonlocal counted
        progress.advance(size - counted)
        counted = size

    for _ in range(_MAX_REQUESTS):
        before = _size(part)
        try:
            if _one_request(url, part, file, count):
                return
            why = f"broke off at {_size(part):,} bytes"
        except urllib.error.HTTPError as error:
            if error.code == 416 and before:  # Range not satisfiable: the server's file is shorter
                part.unlink()
            elif error.code < 500 and error.code not in (408, 429):
                raise _NotServedError(f"answered with status {error.code}") from None
            why = f"answered with status {error.code}"
        except (
            urllib.error.URLError,
            http.client.HTTPException,
            TimeoutError,
            ConnectionError,
            ssl.SSLError,
        ) as error:
            reason = getattr(error, "reason", error)
            why = f"could not be reached ({str(reason).rstrip('.') or type(reason).__name__})"
            if _size(part) > before:
                why = f"broke off at {_size(part):,} bytes"
        tries = 0 if _size(part) > before else tries + 1
        if tries == _TRIES:
            break
        time.sleep(_PAUSE * tries)
    count(0)  # the next address starts its own count
    raise _NotServedError(why)


def _one_request(url: str, part: Path, file: DownloadFile, count: Callable[[int], None]) -> bool:
    """Request the rest of a file once and append it to `part`; return whether the file is complete.

    Raises:
        _NotServedError: if the file on the server has the wrong size.
    """
    import urllib.request

    begin = _size(part)
    if begin and begin == file.nbytes:
        count(begin)
        return True
    headers = {"User-Agent": "clearhead"} | ({"Range": f"bytes={begin}-"} if begin else {})
    opener = urllib.request.build_opener()  # a new one reads the environment's proxies as they are now
    with opener.open(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT) as response:
        if begin and not _continues(response, begin):
            begin = 0  # the server sends the whole file
        length = response.headers.get("Content-Length", "")
        total = begin + int(length) if length.isdecimal() else None
        if total is not None and (total > file.limit or file.nbytes not in (None, total)):
            _refuse_size(f"{total:,}", part, file, response)
        with part.open("ab" if begin else "wb") as out:
            size = begin
            while chunk := response.read(_CHUNK):
                size += len(chunk)
                if size > file.limit:
                    break
                out.write(chunk)
                count(size)
    if size > file.limit:
        _refuse_size("more", part, file, response)
    return size == (file.nbytes if file.nbytes is not None else size if total is None else total)


def _continues(response: Any, begin: int) -> bool:
    """Return whether a response is the rest of the file from `begin` on."""
    content_range = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return response.status == 206 and content_range is not None and int(content_range[1]) == begin


def _refuse_size(found: str, part: Path, file: DownloadFile, response: Any) -> None:
    """Remove the part and raise, because the address serves something else."""
    part.unlink(missing_ok=True)
    kind = response.headers.get("Content-Type", "")
    page = " (it is a web page)" if "html" in kind else ""
    due = f"{file.nbytes:,}" if file.nbytes is not None else f"at most {file.limit:,}"
    raise _NotServedError(f"served {found} bytes{page} instead of {due}")


def _check_sha256(path: Path, sha256: str) -> None:
    if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        raise WeightsError("its SHA-256 differs from the published file's")


def _check_hparams(path: Path, official: Official) -> None:
    due = official.config
    if GPTConfig.from_file(path).replace(drop_rate=due.drop_rate) != due:
        raise WeightsError(f"it describes a model other than {official.size}")


def _check_state(path: Path) -> None:
    if b'model_checkpoint_path: "model.ckpt"' not in path.read_bytes():
        raise WeightsError("it does not name model.ckpt")


def _check_index(path: Path, official: Official) -> None:
    if official.index_sha256 is not None:
        _check_sha256(path, official.index_sha256)
    n_tensors = len(read_table(path)) - 1  # one entry is the header
    if n_tensors != official.n_tensors:
        raise WeightsError(f"it names {n_tensors} tensors instead of {official.n_tensors}")


def _check_data(path: Path, index: Path, official: Official) -> None:
    """Compare every tensor with its checksum in the index, which has been checked before."""
    with ByteProgress(f"Checking {official.size}", official.data_bytes) as progress:
        TensorFlowFile(index, shards=[path]).verify(progress.advance)
