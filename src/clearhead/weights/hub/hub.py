"""Download models from the Hugging Face hub, through `huggingface_hub` and its cache.

That library resumes interrupted downloads and honours HF_ENDPOINT (a mirror), HF_HUB_OFFLINE, HF_TOKEN and
HF_HOME. This module chooses the files and explains failures.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import re
import shutil
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from clearhead.errors import HubError, WeightsError
from clearhead.tokenizer.files import TOKENIZER_FILES
from clearhead.utils.localization import announce
from clearhead.utils.text import printable
from clearhead.weights.hub.folder_lock import folder_for_download, lock_folder
from clearhead.weights.schemes.huggingface import WEIGHT_FILES, weights_in

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo
    from huggingface_hub.hf_api import RepoSibling

_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}")
_SMALL_FILES = ["config.json", "generation_config.json", *TOKENIZER_FILES]
_TIMEOUT = 10.0  # seconds without an answer after which the hub counts as unreachable
_CHUNK = 2**20  # bytes
_RETRY = re.compile(r"(?:Retrying in|Waiting) ([\d.]+)s .*\[Retry")
"""What the hub library logs before it waits and tries again."""
_SHORT_WAIT = 1.0  # seconds that need no explanation
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR)


def fetch(name: str, revision: str | None = None) -> Path:
    """Return the folder with a hub model's config, tokenizer and weights; download it if it is not in the cache.

    The hub is asked for a newer version; if it cannot be reached, the cached one is returned.

    Args:
        name: `gpt2`, or `owner/name`.
        revision: a branch, tag or commit; the main branch by default.

    Raises:
        HubError: if there is no such model or no access to it, or the hub cannot be reached and the cache
            does not have the model.
        WeightsError: if the model on the hub has no weights in a format that can be read.
    """
    from huggingface_hub import errors

    with quiet_hub(), _explain_failures(name, revision):
        try:
            return _download(name, revision)
        except (errors.HfHubHTTPError, OSError, _http_error()) as error:
            refused = isinstance(error, (errors.RepositoryNotFoundError, errors.RevisionNotFoundError))
            if refused or (cached := _from_cache(name, revision)) is None:
                raise
            return cached


def fetch_tokenizer(name: str, revision: str | None = None) -> Path:
    """Return the folder with a hub model's tokenizer, without weights; download it if it is not in the cache.

    Args:
        name: `gpt2`, or `owner/name`.
        revision: a branch, tag or commit; the main branch by default.

    Raises:
        HubError: if there is no such model or no access to it, or the hub cannot be reached and the cache does
            not have the tokenizer.
    """
    from huggingface_hub import errors, snapshot_download

    def download(*, local: bool) -> Path:
        return Path(
            snapshot_download(
                name,
                revision=revision,
                allow_patterns=_SMALL_FILES,
                local_files_only=local,
                etag_timeout=_TIMEOUT,
                library_name="clearhead",
            )
        )

    with quiet_hub(), _explain_failures(name, revision):
        try:
            return download(local=False)
        except (errors.HfHubHTTPError, OSError, _http_error()) as error:
            if isinstance(error, (errors.RepositoryNotFoundError, errors.RevisionNotFoundError)):
                raise
            with contextlib.suppress(OSError):
                cached = download(local=True)
                if any((cached / file).is_file() for file in TOKENIZER_FILES):
                    return cached
            raise


def fetch_into(name: str, dest: str | os.PathLike[str], revision: str | None = None) -> Path:
    """Download a hub model's config, tokenizer and weights into a folder instead of the hub library's cache.

    Every file is compared with the hub's size and checksum before it is moved into the folder, the weights
    last. Files that exist already and are correct stay, and an interrupted download continues.

    Args:
        name: `gpt2`, or `owner/name`.
        dest: the folder; it is created if it does not exist.
        revision: a branch, tag or commit; the main branch by default.

    Returns:
        The folder.

    Raises:
        HubError: if there is no such model or no access to it, the hub cannot be reached, or a file does not
            match the hub's checksum.
        WeightsError: if the model has no weights in a format that can be read, the folder cannot be written, or
            another process downloads into it.
    """
    folder = Path(dest).expanduser()
    try:
        with folder_for_download(folder), lock_folder(folder), quiet_hub(), _explain_failures(name, revision):
            _fetch_missing(name, folder, revision)
    except OSError as error:
        raise WeightsError(f"{folder} could not be written ({error.strerror or error}).") from None
    return folder


def _fetch_missing(name: str, folder: Path, revision: str | None) -> None:
    from huggingface_hub import snapshot_download

    info, files = _model_files(name, revision)
    missing = [file for file in files if not _is_correct(folder / file.rfilename, file)]
    if not missing:
        return
    _say_size(name, missing)
    staged = folder / ".fetching"
    wanted = [file.rfilename for file in missing]
    snapshot_download(name, revision=info.sha, allow_patterns=wanted, local_dir=staged, library_name="clearhead")
    for file in missing:
        if not _is_correct(staged / file.rfilename, file):
            (staged / file.rfilename).unlink(missing_ok=True)
            raise HubError(
                f"{file.rfilename} of {name!r} came from {_endpoint()} with the wrong size or checksum "
                "and was removed; try again; if that fails too, a mirror or a proxy changes the file."
            )
    for file in sorted(
        missing, key=lambda file: file.rfilename in WEIGHT_FILES
    ):  # last, the file that makes it a model
        (staged / file.rfilename).replace(folder / file.rfilename)
    shutil.rmtree(staged)


def _is_correct(path: Path, file: RepoSibling) -> bool:
    """Return whether a file has the hub's size and checksum: SHA-256, or git's SHA-1 for small files."""
    if not path.is_file() or (file.size is not None and path.stat().st_size != file.size):
        return False
    if file.lfs is not None:
        return _digest(path, hashlib.sha256()) == file.lfs.sha256
    start = f"blob {path.stat().st_size}\0".encode()
    return file.blob_id is None or _digest(path, hashlib.sha1(start, usedforsecurity=False)) == file.blob_id


def _digest(path: Path, digest: hashlib._Hash) -> str:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


@contextlib.contextmanager
def _explain_failures(name: str, revision: str | None) -> Iterator[None]:
    """Explain why the hub did not serve a model; errors of the disk stay `OSError`s."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError:
        raise HubError(
            f"{name!r} on {_endpoint()} is gated; "
            f"ask for access at {_endpoint()}/{name} and sign in with `hf auth login`, or set HF_TOKEN."
        ) from None
    except errors.RevisionNotFoundError:
        raise HubError(f"{name!r} on {_endpoint()} has no branch, tag or commit {revision!r}.") from None
    except errors.RepositoryNotFoundError:
        raise HubError(
            f"there is no folder {name!r} here and no visible model of that name on {_endpoint()}; "
            "check the name, or if the model is private, sign in with `hf auth login` or set HF_TOKEN."
        ) from None
    except errors.HFValidationError:
        raise WeightsError(
            f"{name!r} does not exist here and is not a valid name on the hub, such as gpt2 or owner/name."
        ) from None
    except (errors.HfHubHTTPError, OSError, _http_error()) as error:
        if getattr(error, "errno", None) in _DISK_ERRORS:
            raise
        _raise_unreachable(name, error)


def _model_files(name: str, revision: str | None) -> tuple[ModelInfo, list[RepoSibling]]:
    """Return the hub's description of a model, and of those of its files that are needed.

    Raises:
        WeightsError: if it has no weights in a format that can be read.
    """
    from huggingface_hub import HfApi, constants, errors

    if constants.HF_HUB_OFFLINE:
        raise OSError("HF_HUB_OFFLINE is set")
    api = HfApi(library_name="clearhead")
    try:
        info = api.model_info(name, revision=revision, timeout=_TIMEOUT, files_metadata=True)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, errors.HFValidationError):
            raise
        raise HubError(
            f"{_endpoint()} did not answer as a hub does when it was asked for {name!r}; if the network has a page to "
            "sign in, sign in there, and check HF_ENDPOINT."
        ) from None
    names = [sibling.rfilename for sibling in info.siblings or ()]
    weights = next((file for file in WEIGHT_FILES if file in names), None)
    if weights is None:
        raise WeightsError(
            f"{name!r} on {_endpoint()} has no {' or '.join(list(WEIGHT_FILES)[:3])}; "
            f"it has {', '.join(map(printable, sorted(names)[:8])) or 'no files'}."
        )
    shards = [weights.removesuffix(".safetensors.index.json").removesuffix(".bin.index.json") + "-*-of-*"]
    wanted = [*_SMALL_FILES, weights, *(shards if weights.endswith(".index.json") else [])]
    files = [file for file in info.siblings or () if any(fnmatch(file.rfilename, pattern) for pattern in wanted)]
    for file in files:
        check_file_name(file.rfilename, name)
    return info, files


def check_file_name(file: str, name: str) -> None:
    """Check a file name that the hub chose: it must stay in the folder into which it is downloaded.

    Raises:
        HubError: if it has a separator, or anything but letters, digits, dots, hyphens and underscores.
    """
    if not _PLAIN_NAME.fullmatch(file):
        raise HubError(
            f"{name!r} on {_endpoint()} has a file named {file!r}, which Clearhead does not download: a name of "
            "letters, digits, dots, hyphens and underscores was expected."
        )


def _say_size(name: str, files: list[RepoSibling]) -> None:
    if not sys.stderr.isatty():  # on a terminal, the hub library shows a progress bar
        size = sum(file.size or 0 for file in files)
        announce(f"Downloading {name}, {size / 1e6:,.0f} MB, from {_endpoint()} …")


def _download(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    info, files = _model_files(name, revision)
    if not _from_cache(name, info.sha):
        _say_size(name, files)
    wanted = [file.rfilename for file in files]
    return Path(snapshot_download(name, revision=revision, allow_patterns=wanted, library_name="clearhead"))


def _from_cache(name: str, revision: str | None) -> Path | None:
    """Return a model's folder in the cache; None if it is not complete."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=["config.json"], local_files_only=True))
    except OSError:
        return None
    return folder if (folder / "config.json").is_file() and weights_in(folder) else None


def _endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def _http_error() -> type[Exception]:
    """Return the base class of the errors of the hub library's HTTP library, which differs between its versions."""
    from huggingface_hub import errors

    # HfHubHTTPError derives from the HTTP library's HTTPError, as do its connection errors.
    return next(base for base in errors.HfHubHTTPError.__mro__ if base.__name__ in ("HTTPError", "RequestException"))


def _raise_unreachable(name: str, error: Exception) -> NoReturn:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if os.environ.get("HF_HUB_OFFLINE") and status is None:
        raise HubError(
            f"{name!r} is not in the cache and HF_HUB_OFFLINE forbids downloading it; unset it, or give a local folder."
        ) from None
    what = f"answered with status {status}" if status else f"could not be reached ({_cause(error)})"
    raise HubError(
        f"{name!r} is not a folder here and could not be downloaded: {_endpoint()} {what}. Give the path of a local "
        "folder with config.json and model.safetensors, or set HF_ENDPOINT to a mirror of the hub."
    ) from None


def _cause(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0].rstrip(".") if text else type(error).__name__


class _RetryNotice(logging.Handler):
    """Swallow the hub library's log; say once that the hub is waited for, when the library waits for seconds."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._said = False

    def emit(self, record: logging.LogRecord) -> None:
        """Take a message of the library."""
        waiting = _RETRY.search(record.getMessage())
        if waiting and float(waiting[1]) > _SHORT_WAIT and not self._said:
            self._said = True
            announce(f"no answer from {_endpoint()} yet; trying again, for up to half a minute …")


@contextlib.contextmanager
def quiet_hub() -> Iterator[None]:
    """Silence the hub library's log, and its progress bars unless on a terminal; say if the hub is waited for."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled as are_disabled
    from huggingface_hub.utils.tqdm import disable_progress_bars, enable_progress_bars

    logger = logging.getLogger("huggingface_hub")
    level, handlers, propagate = logger.level, logger.handlers, logger.propagate
    hide = not sys.stderr.isatty() and not are_disabled()
    logger.setLevel(logging.WARNING)
    logger.handlers, logger.propagate = [_RetryNotice()], False
    if hide:
        disable_progress_bars()
    try:
        yield
    finally:
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)
        if hide:
            enable_progress_bars()
