"""Models on the Hugging Face hub: fetched once, through `huggingface_hub` and its cache, then found there.

That library resumes a broken download and heeds HF_ENDPOINT (a mirror), HF_HUB_OFFLINE, HF_TOKEN and
HF_HOME. Here stand only which files are needed and what to tell the user when it does not work.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import NoReturn

from clearhead.errors import HubError, WeightsError
from clearhead.weights.huggingface import WEIGHT_FILES, weights_in

_SMALL_FILES = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
]
_TIMEOUT = 10.0  # seconds for the hub to answer before it counts as out of reach


def fetch(name: str, revision: str | None = None, *, with_weights: bool = True) -> Path:
    """The folder with a hub model's config, tokenizer and weights, fetched where it is not in the cache.

    The hub is asked whether there is a newer version; where it cannot be reached, what is in the cache is taken.

    Args:
        name: `gpt2`, or `owner/name`.
        revision: a branch, tag or commit; the main branch where it is not given.
        with_weights: whether the weights are wanted too, and not only the config and the tokenizer.

    Raises:
        HubError: where there is no such model or no access to it, or the hub cannot be reached and the cache
            does not hold the model.
        WeightsError: where the model on the hub has no weights in a form that can be read.
    """
    from huggingface_hub import errors

    with _quiet():
        try:
            return _download(name, revision, with_weights)
        except errors.GatedRepoError:
            raise HubError(
                f"{name!r} on {_endpoint()} is given only to those who have asked for access; "
                f"ask for it at {_endpoint()}/{name} and sign in with `hf auth login`, or set HF_TOKEN."
            ) from None
        except errors.RevisionNotFoundError:
            raise HubError(f"{name!r} on {_endpoint()} has no branch, tag or commit {revision!r}.") from None
        except errors.RepositoryNotFoundError:
            raise HubError(
                f"there is no folder {name!r} here and no model of that name on {_endpoint()} that you may see; "
                "check the name, and if the model is private sign in with `hf auth login`, or set HF_TOKEN."
            ) from None
        except errors.HFValidationError:
            raise WeightsError(
                f"{name!r} does not exist here and cannot be a name on the hub, which is like gpt2 or owner/name."
            ) from None
        except (errors.HfHubHTTPError, OSError, _http_error()) as error:
            return _from_cache(name, revision, with_weights) or _refuse_unreachable(name, error)


def _download(name: str, revision: str | None, with_weights: bool) -> Path:
    from huggingface_hub import HfApi, constants, snapshot_download

    if constants.HF_HUB_OFFLINE:
        raise OSError("HF_HUB_OFFLINE is set")
    if not with_weights:
        return Path(
            snapshot_download(
                name, revision=revision, allow_patterns=_SMALL_FILES, library_name="clearhead", etag_timeout=_TIMEOUT
            )
        )
    api = HfApi(library_name="clearhead")
    info = api.model_info(name, revision=revision, timeout=_TIMEOUT, files_metadata=True)
    files = {sibling.rfilename: sibling.size or 0 for sibling in info.siblings or ()}
    weights = next((file for file in WEIGHT_FILES if file in files), None)
    if weights is None:
        raise WeightsError(
            f"{name!r} on {_endpoint()} has no {' or '.join(list(WEIGHT_FILES)[:3])}; "
            f"it has {', '.join(sorted(files)[:8]) or 'no files'}."
        )
    shards = [weights.removesuffix(".safetensors.index.json").removesuffix(".bin.index.json") + "-*-of-*"]
    wanted = [*_SMALL_FILES, weights, *(shards if weights.endswith(".index.json") else [])]
    if not sys.stderr.isatty() and not _from_cache(
        name, info.sha, with_weights
    ):  # on a terminal the hub library shows a bar
        size = sum(n for file, n in files.items() if any(fnmatch(file, pattern) for pattern in wanted))
        print(f"Fetching {name}, {size / 1e6:,.0f} MB, from {_endpoint()} …", file=sys.stderr, flush=True)
    return Path(snapshot_download(name, revision=revision, allow_patterns=wanted, library_name="clearhead"))


def _from_cache(name: str, revision: str | None, with_weights: bool) -> Path | None:
    """A model's folder in the cache, where all of it that is wanted is there."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=["config.json"], local_files_only=True))
    except OSError:
        return None
    wanted = (
        weights_in(folder) if with_weights else any((folder / f).is_file() for f in ("tokenizer.json", "vocab.json"))
    )
    return folder if (folder / "config.json").is_file() and wanted else None


def _endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def _http_error() -> type[Exception]:
    """The base of what the hub library's own HTTP library raises, which has changed over its versions."""
    from huggingface_hub import errors

    # HfHubHTTPError derives from the HTTP library's HTTPError, as do its connection errors.
    return next(base for base in errors.HfHubHTTPError.__mro__ if base.__name__ in ("HTTPError", "RequestException"))


def _refuse_unreachable(name: str, error: Exception) -> NoReturn:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if os.environ.get("HF_HUB_OFFLINE") and status is None:
        raise HubError(
            f"{name!r} is not in the cache and HF_HUB_OFFLINE forbids to fetch it; unset it, or give a local folder."
        ) from None
    what = f"answered with status {status}" if status else f"could not be reached ({_cause(error)})"
    raise HubError(
        f"{name!r} is no folder here and could not be fetched: {_endpoint()} {what}. Give the path of a local folder "
        "with config.json and model.safetensors, or set HF_ENDPOINT to a mirror of the hub."
    ) from None


def _cause(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0].rstrip(".") if text else type(error).__name__


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the hub library's remarks, and its progress bars away from a terminal, out of the user's sight."""
    from huggingface_hub.utils import are_progress_bars_disabled as are_disabled
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

    logger = logging.getLogger("huggingface_hub")
    level, hide = logger.level, not sys.stderr.isatty() and not are_disabled()
    logger.setLevel(logging.CRITICAL)
    if hide:
        disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        if hide:
            enable_progress_bars()
