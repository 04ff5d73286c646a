"""Fetching the models that OpenAI published, from its own address or a mirror of it.

Every file is first `NAME.part`, and takes its name when its size and, where it is known, its checksum are
right: the data file is compared tensor by tensor with the index that came with it. What has come of a
`.part` is kept when the connection breaks, and the next try goes on behind it (HTTP Range). Proxies are
taken from the environment (`https_proxy` and so on), as Python's `urllib` does.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clearhead.config import HUB_NAMES, GPTConfig
from clearhead.errors import ClearheadError, HubError, WeightsError
from clearhead.utils.locking import only_one
from clearhead.utils.progress import ByteProgress
from clearhead.weights.formats.sniff import refuse_impostor
from clearhead.weights.formats.sstable import read_table
from clearhead.weights.formats.tensorflow import TensorFlowFile
from clearhead.weights.hub.official import Official, released, tokenizer_files

OPENAI = "https://openaipublic.blob.core.windows.net/gpt-2/models"
"""Where OpenAI publishes its models: a folder for each size."""

_INDEX = "model.ckpt.index"
_DATA = "model.ckpt.data-00000-of-00001"
_MAX_SMALL = 2**20  # bytes of a file whose size is not known; the largest has 20 KB
_TIMEOUT = 30.0  # seconds without an answer
_TRIES = 3  # in a row that bring nothing new, before the next mirror
_PAUSE = 2.0  # seconds after the first of them, twice that after the second
_MAX_REQUESTS = 200  # to one address for one file, however little each of them brings
_CHUNK = 2**20  # bytes

Check = Callable[[Path], None]


class _NotGivenError(Exception):
    """An address does not give a file, or gives another one; the text says why, and begins with a verb."""


@dataclass(frozen=True)
class _File:
    """A file to fetch: its name, its size where it is known, the most it may have, and what refuses a wrong one."""

    name: str
    nbytes: int | None
    limit: int
    check: Check


def fetch_openai(size: str, dest: str | Path, mirrors: Sequence[str] = (OPENAI,)) -> Path:
    """Fetches one of OpenAI's models into a folder that `clearhead.weights.open` opens.

    Files that are there already are kept where they are right, so calling it again finishes what broke off.

    Args:
        size: `124M`, `355M`, `774M` or `1558M`, or the hub's name of one, such as `gpt2-medium`.
        dest: the folder, made where it is not there.
        mirrors: addresses under which there is a folder for each size, tried in turn.

    Returns:
        the folder.

    Raises:
        ConfigError: where there is no such size.
        HubError: where no mirror gave a file; what has come of it is kept for the next time.
        WeightsError: where the folder cannot be written, has no room, or another process fetches into it.
    """
    GPTConfig.named(size)  # refuses what is none
    official = released()[HUB_NAMES.get(size.removeprefix("openai-community/"), size)]
    bases = [mirror.rstrip("/") for mirror in mirrors]
    for base in bases:
        if not base.startswith(("http://", "https://")):
            raise WeightsError(f"the mirror {base!r} is no address; one that begins with https:// was expected.")
    folder = Path(dest).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with only_one(folder):
            _fetch_missing(official, bases, folder)
    except OSError as error:
        raise WeightsError(f"{folder} could not be written ({error.strerror or error}).") from None
    return folder


def _fetch_missing(official: Official, bases: list[str], folder: Path) -> None:
    missing = [file for file in _files(official, folder) if not _is_there(file, folder)]
    if not missing:
        return
    _refuse_without_room(folder, missing)
    with ByteProgress(f"Fetching {official.size}", sum(file.nbytes or 0 for file in missing)) as progress:
        for file in missing:
            _fetch(file, [f"{base}/{official.size}/{file.name}" for base in bases], folder, progress)


def _files(official: Official, folder: Path) -> Iterator[_File]:
    """What a model's folder holds, in the order in which to fetch it: small ones first, which tell a bad mirror."""
    yield _File("hparams.json", None, _MAX_SMALL, lambda path: _check_hparams(path, official))
    for name, known in tokenizer_files().items():
        yield _File(name, known.nbytes, known.nbytes, lambda path, known=known: _check_sha256(path, known.sha256))  # type: ignore[misc]
    yield _File("checkpoint", None, _MAX_SMALL, _check_state)
    yield _File(_INDEX, official.index_bytes, official.index_bytes or _MAX_SMALL, lambda p: _check_index(p, official))
    yield _File(
        _DATA, official.data_bytes, official.data_bytes, lambda path: _check_data(path, folder / _INDEX, official)
    )


def _is_there(file: _File, folder: Path) -> bool:
    """Whether a file is there under its own name, and right; the data, which took it only after its check, by size."""
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


def _refuse_without_room(folder: Path, missing: list[_File]) -> None:
    there = sum(_size(_part(folder, file)) for file in missing)
    due = sum(file.nbytes or 0 for file in missing) - there
    free = shutil.disk_usage(folder).free
    if due > free:
        raise WeightsError(
            f"{folder} has room for {free / 1e6:,.0f} MB and {due / 1e6:,.0f} MB are to come; "
            "make room, or choose another folder."
        )


def _part(folder: Path, file: _File) -> Path:
    return folder / f"{file.name}.part"


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _fetch(file: _File, urls: list[str], folder: Path, progress: ByteProgress) -> None:
    """Fetches one file from the first address that gives it, and puts it in its place.

    Raises:
        HubError: where none does.
    """
    part = _part(folder, file)
    failures = []
    for url in urls:
        resumed = _size(part) > 0
        failure = _attempt(url, part, file, progress)
        if failure and resumed and not _size(part):  # what was there from before may have been what was wrong
            failure = _attempt(url, part, file, progress)
        if not failure:
            part.replace(folder / file.name)
            return
        failures.append(f"{url} {failure}")
    kept = f" What has come of it, {_size(part):,} bytes, is kept: try again to go on." if _size(part) else ""
    raise HubError(
        f"{file.name} could not be fetched: {'; '.join(failures)}. Check the network and the proxy, or give a "
        f"mirror.{kept}"
    )


def _attempt(url: str, part: Path, file: _File, progress: ByteProgress) -> str:
    """Fetches a file from one address and checks it; what went wrong, or nothing. A wrong file is removed."""
    try:
        _fetch_from(url, part, file, progress)
        refuse_impostor(part)
        file.check(part)
    except _NotGivenError as error:
        return str(error)
    except ClearheadError as error:
        part.unlink()
        return f"gave something else ({str(error).rstrip('.')})"
    return ""


def _fetch_from(url: str, part: Path, file: _File, progress: ByteProgress) -> None:
    """Fetches a file into `part`, going on behind what is there; several times while each try brings more.

    Raises:
        _NotGivenError: where this address does not give it.
    """
    import http.client  # here, as `import clearhead.weights` would take half as long again with it
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
            if error.code == 416 and before:  # Range not satisfiable: the file there ends before what is here
                part.unlink()
            elif error.code < 500 and error.code not in (408, 429):
                raise _NotGivenError(f"answered with status {error.code}") from None
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
    count(0)  # the next address begins its own count
    raise _NotGivenError(why)


def _one_request(url: str, part: Path, file: _File, count: Callable[[int], None]) -> bool:
    """Asks once, from behind what `part` holds, and appends what comes; whether the file is whole then.

    Raises:
        _NotGivenError: where what is there has another size than the file must have.
    """
    import urllib.request

    begin = _size(part)
    if begin and begin == file.nbytes:
        count(begin)
        return True
    headers = {"User-Agent": "clearhead"} | ({"Range": f"bytes={begin}-"} if begin else {})
    opener = urllib.request.build_opener()  # a new one, which looks at the environment's proxies as they are now
    with opener.open(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT) as response:
        if begin and not _continues(response, begin):
            begin = 0  # the whole file comes, from its start
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
    """Whether an answer is the rest of the file from `begin` on."""
    where = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return response.status == 206 and where is not None and int(where[1]) == begin


def _refuse_size(found: str, part: Path, file: _File, response: Any) -> None:
    """Raises, as what an address gives cannot be the file; what came of it is of no use."""
    part.unlink(missing_ok=True)
    kind = response.headers.get("Content-Type", "")
    page = " (it is a web page)" if "html" in kind else ""
    due = f"{file.nbytes:,}" if file.nbytes is not None else f"at most {file.limit:,}"
    raise _NotGivenError(f"gave {found} bytes{page} where {due} were expected")


def _check_sha256(path: Path, sha256: str) -> None:
    if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        raise WeightsError("its SHA-256 is not that of the published file")


def _check_hparams(path: Path, official: Official) -> None:
    due = official.config
    if GPTConfig.from_file(path).replace(drop_rate=due.drop_rate) != due:
        raise WeightsError(f"it describes another model than {official.size}")


def _check_state(path: Path) -> None:
    if b'model_checkpoint_path: "model.ckpt"' not in path.read_bytes():
        raise WeightsError("it does not name model.ckpt")


def _check_index(path: Path, official: Official) -> None:
    if official.index_sha256 is not None:
        _check_sha256(path, official.index_sha256)
    n_tensors = len(read_table(path)) - 1  # one entry is the header
    if n_tensors != official.n_tensors:
        raise WeightsError(f"it names {n_tensors} tensors and not {official.n_tensors}")


def _check_data(path: Path, index: Path, official: Official) -> None:
    """Compares every tensor with the checksum in the index, which has been checked before."""
    with ByteProgress(f"Checking {official.size}", official.data_bytes) as progress:
        TensorFlowFile(index, shards=[path]).verify(progress.advance)
