"""OpenAI's GPT-2 folder: a TensorFlow checkpoint, `hparams.json` with the shape, `encoder.json` and `vocab.bpe`.

OpenAI published the four sizes in this layout, and programs that fine-tune with OpenAI's code save it. It is read and
written without TensorFlow; OpenAI's code and TensorFlow open what `save_openai` writes.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy.typing as npt

from clearhead.config import GPTConfig
from clearhead.errors import WeightsError
from clearhead.tokenizer.definition import END_OF_TEXT
from clearhead.tokenizer.files import SETTINGS_FILES
from clearhead.utils.progress import ByteProgress
from clearhead.weights import writing
from clearhead.weights.formats.tensorflow import TensorFlowFile, index_in, shard_path, write_tensorflow
from clearhead.weights.layouts import LAYOUTS
from clearhead.weights.plan import ConversionPlan
from clearhead.weights.schemes.huggingface import plan_from_arrays
from clearhead.weights.tensors import TensorInfo

PREFIX = "model.ckpt"
"""The common start of the names of OpenAI's checkpoint files."""

_DATA_FILE = re.compile(r"(.+)\.data-\d{5}-of-\d{5}")
_MAX_HPARAMS = 2**20  # bytes
_HEAD_DIM = 64  # numbers per attention head in every released size


class SavesItself(Protocol):
    """A tokenizer that writes its files into a folder, as `clearhead.tokenizer.Tokenizer` does."""

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the files; a byte-level BPE also as `vocab.json` and `merges.txt`."""


def is_checkpoint(path: Path) -> bool:
    """Return whether a folder or a file is a TensorFlow checkpoint, or a part of one."""
    if path.is_dir():
        return index_in(path) is not None or _stray_data(path) is not None
    if path.name == "checkpoint" or path.suffix == ".meta":
        return index_in(path) is not None
    return path.name.endswith(".index") or _DATA_FILE.fullmatch(path.name) is not None


def _stray_data(folder: Path) -> Path | None:
    return next((path for path in sorted(folder.glob("*.data-*")) if _DATA_FILE.fullmatch(path.name)), None)


def open_checkpoint(
    path: Path, config: GPTConfig | None = None, data: bool = True
) -> tuple[TensorFlowFile, GPTConfig, tuple[str, ...]]:
    """Open a checkpoint; return its tensors (not read), its config, and notes on what had to be decided.

    Args:
        path: the folder, the index, or a data file.
        config: the model's shape, if the files are not to be asked.
        data: whether the data files are opened; without them the tensors' names and shapes are known.

    Raises:
        WeightsError: if a file is missing, truncated or damaged, or the shape is unknown.
        ConfigError: if `hparams.json` does not describe a GPT-2.
    """
    index = index_in(path)
    if index is None:
        raise WeightsError(_no_index(path))
    file = TensorFlowFile(index, data=data)
    notes = list(file.notes)
    others = [other.name for other in sorted(index.parent.glob("*.index")) if other != index]
    if path.is_dir() and others:
        notes.append(f"{path} holds several checkpoints; {index.name} is taken, and not {', '.join(others)}.")
    hparams = index.parent / "hparams.json"
    if config is not None:
        return file, config, tuple(notes)
    if hparams.is_file():
        config = _config_from(hparams)
        if config.n_layers > len(file.tensors):  # before a plan is made for as many
            raise WeightsError(
                f"{hparams} says that the model has {config.n_layers:,} layers, and {index.name} names only "
                f"{len(file.tensors)} tensors; the two belong to different models."
            )
        return file, config, tuple(notes)
    config = _infer(file)
    notes.append(
        f"{index.parent} has no hparams.json, so the shape of the model is read off its tensors and {config.n_heads} "
        f"attention heads are assumed, one for each {_HEAD_DIM} numbers, as in every released size; "
        "if the text is nonsense, that is not so: put the model's hparams.json there."
    )
    return file, config, tuple(notes)


def _no_index(path: Path) -> str:
    data = _stray_data(path) if path.is_dir() else path
    match = _DATA_FILE.fullmatch(data.name) if data is not None else None
    folder = path if path.is_dir() else path.parent
    if match is not None:
        return f"{folder} holds {match[0]} but not {match[1]}.index, which says what is in it; download that too."
    there = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8])
    return f"{folder} has no index of a TensorFlow checkpoint, such as {PREFIX}.index; it holds {there or 'nothing'}."


def _config_from(hparams: Path) -> GPTConfig:
    """Return the config in `hparams.json`, which must have OpenAI's keys."""
    try:
        if (size := hparams.stat().st_size) > _MAX_HPARAMS:
            raise WeightsError(f"{hparams} has {size:,} bytes, but five numbers were expected; download it again.")
        values: Any = json.loads(hparams.read_text(encoding="utf-8"))
    except OSError as error:
        raise WeightsError(f"{hparams} could not be read ({error.strerror}).") from None
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{hparams} is not JSON ({error}); download it again.") from None
    if not isinstance(values, dict):
        raise WeightsError(f"{hparams} holds no JSON object; OpenAI's n_vocab, n_ctx, … were expected.")
    return GPTConfig.from_openai(values)


def _infer(file: TensorFlowFile) -> GPTConfig:
    """Return the shape of a model, inferred from its tensors."""
    bare = {LAYOUTS["openai"].bare(name): info.shape for name, info in file.tensors.items()}
    wte, wpe = bare.get("wte", ()), bare.get("wpe", ())
    layers = [name for name in bare if re.fullmatch(r"h\d+/ln_1/g", name)]
    if len(wte) != 2 or len(wpe) != 2 or not layers:
        raise WeightsError(
            f"{file.path} is the index of a TensorFlow checkpoint, but not of a GPT-2 in OpenAI's names "
            f"(model/wte, model/wpe, model/h0/…); it holds {', '.join(list(file.tensors)[:3]) or 'no tensors'}, …."
        )
    emb_dim = wte[1]
    if emb_dim % _HEAD_DIM:
        raise WeightsError(
            f"{file.path.parent} has no hparams.json, and how many attention heads a model of width {emb_dim} has "
            "cannot be inferred from its tensors; put the model's hparams.json there."
        )
    return GPTConfig.from_openai(
        {
            "n_vocab": wte[0],
            "n_ctx": wpe[0],
            "n_embd": emb_dim,
            "n_head": emb_dim // _HEAD_DIM,
            "n_layer": len(layers),
        }
    )


def save_openai(
    folder: str | Path,
    config: GPTConfig,
    tensors: Mapping[str, npt.NDArray[Any]],
    *,
    tokenizer: SavesItself | None = None,
) -> None:
    """Write a folder as OpenAI published its models, in float32.

    One tensor is in memory at a time besides what `tensors` itself holds. No file is replaced before all files are
    complete.

    Args:
        folder: is created if it does not exist; other files in it stay.
        config: the shape of the model.
        tensors: by canonical name; `head.weight` is not needed if the config ties it.
        tokenizer: written as `encoder.json` and `vocab.bpe`; as `tokenizer.json` if it is not a byte-level BPE.

    Raises:
        WeightsError: if OpenAI's code cannot run the model, a tensor is missing, unknown or of the wrong shape, or
            the folder cannot be written.
    """
    write_folder(Path(folder), plan_from_arrays(config, tensors, "openai"), tokenizer)


def write_folder(folder: Path, plan: ConversionPlan, tokenizer: SavesItself | None = None) -> list[Path]:
    """Write a plan's targets, which have OpenAI's names, as `save_openai` does; return the files written.

    Raises:
        WeightsError: as `save_openai`.
    """
    config = plan.config
    _refuse_unsupported_settings(config)
    data_file = shard_path(Path(f"{PREFIX}.index"), 0, 1).name

    def write(temporary: Path) -> list[str]:
        write_tokenizer(temporary, tokenizer)
        _write_text(temporary / "hparams.json", json.dumps(_hparams(config), indent=2) + "\n")
        lines = [f'model_checkpoint_path: "{PREFIX}"', f'all_model_checkpoint_paths: "{PREFIX}"']
        _write_text(temporary / "checkpoint", "\n".join(lines) + "\n")
        _write_weights(temporary / PREFIX, plan, folder.name)
        return [data_file, f"{PREFIX}.index", "checkpoint"]

    return writing.write_folder(folder, write, lambda name: name.startswith(f"{PREFIX}.data-"))


def _refuse_unsupported_settings(config: GPTConfig) -> None:
    """Raise if a setting differs from the value that OpenAI's code has fixed; `hparams.json` has no key for it."""
    fixed = {"activation": "gelu_tanh", "norm_eps": 1e-5, "ff_dim": 4 * config.emb_dim}
    for name, value in fixed.items():
        if (found := getattr(config, name)) != value:
            raise WeightsError(
                f"the model has {name} {found!r}, and OpenAI's code always takes {value!r}; "
                "save it as a Hugging Face folder."
            )


def _hparams(config: GPTConfig) -> dict[str, int]:
    return {
        "n_vocab": config.vocab_size,
        "n_ctx": config.context_length,
        "n_embd": config.emb_dim,
        "n_head": config.n_heads,
        "n_layer": config.n_layers,
    }


def _write_weights(prefix: Path, plan: ConversionPlan, what: str) -> None:
    infos = {name: TensorInfo(shape, "float32") for name, shape in plan.targets.items()}
    with ByteProgress(f"Saving {what}", sum(info.nbytes for info in infos.values())) as progress:

        def read(name: str) -> npt.NDArray[Any]:
            progress.advance(infos[name].nbytes)
            return plan.read(name)

        write_tensorflow(prefix, infos, read)


def write_tokenizer(folder: Path, tokenizer: SavesItself | None) -> None:
    """Write a tokenizer's files under OpenAI's names; under its own names if it is not a byte-level BPE.

    OpenAI's files cannot hold added tokens; if there are any, Hugging Face's settings files describe them.
    """
    if tokenizer is None:
        return
    tokenizer.save(folder)
    vocab, merges = folder / "vocab.json", folder / "merges.txt"
    if not (vocab.is_file() and merges.is_file()):
        return
    # In ASCII, as OpenAI's own file is: OpenAI's code reads it in the system's encoding.
    _write_text(folder / "encoder.json", json.dumps(json.loads(vocab.read_text(encoding="utf-8"))))
    _write_text(folder / "vocab.bpe", merges.read_text(encoding="utf-8"))
    added = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))["added_tokens_decoder"]
    only_end_of_text = {token["content"] for token in added.values()} <= {END_OF_TEXT}
    kept = ("encoder.json", "vocab.bpe", *(() if only_end_of_text else SETTINGS_FILES))
    for path in list(folder.iterdir()):
        if path.name not in kept:
            path.unlink()


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")
