"""OpenAI's GPT-2 folder: a TensorFlow checkpoint, `hparams.json` with the shape, `encoder.json` and `vocab.bpe`.

This is how OpenAI published the four sizes, and how the programs that fine-tune their code save a model. It
is read and written without TensorFlow; what `save_openai` writes, their code and TensorFlow open.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from clearhead.config import GPTConfig
from clearhead.errors import WeightsError
from clearhead.utils.progress import ByteProgress
from clearhead.weights.formats.tensorflow import TensorFlowFile, index_in, shard_path, write_tensorflow
from clearhead.weights.layouts import LAYOUTS
from clearhead.weights.plan import ConversionPlan
from clearhead.weights.schemes.huggingface import plan_from_arrays
from clearhead.weights.tensors import TensorInfo

PREFIX = "model.ckpt"
"""How OpenAI called its checkpoints."""

_DATA_FILE = re.compile(r"(.+)\.data-\d{5}-of-\d{5}")
_MAX_HPARAMS = 2**20  # bytes
_HEAD_DIM = 64  # numbers per attention head in every released size


class SavesItself(Protocol):
    """A tokenizer that writes its files into a folder, as `clearhead.tokenizer.Tokenizer` does."""

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes them; a byte-level BPE also as `vocab.json` and `merges.txt`."""


def is_checkpoint(path: Path) -> bool:
    """Whether a folder or a file is a TensorFlow checkpoint, or a part of one."""
    if path.is_dir():
        return index_in(path) is not None or _stray_data(path) is not None
    return path.name.endswith(".index") or _DATA_FILE.fullmatch(path.name) is not None


def _stray_data(folder: Path) -> Path | None:
    return next((path for path in sorted(folder.glob("*.data-*")) if _DATA_FILE.fullmatch(path.name)), None)


def open_checkpoint(path: Path, config: GPTConfig | None = None) -> tuple[TensorFlowFile, GPTConfig, tuple[str, ...]]:
    """A checkpoint's tensors (not read), its config, and remarks on what had to be decided.

    Args:
        path: the folder, the index, or a data file.
        config: the model's shape, where the files beside it are not to be asked.

    Raises:
        WeightsError: where a file is missing, cut short or damaged, or the shape cannot be told.
        ConfigError: where `hparams.json` describes no GPT-2.
    """
    index = index_in(path)
    if index is None:
        raise WeightsError(_no_index(path))
    file = TensorFlowFile(index)
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
    """The config in `hparams.json`, which must be OpenAI's kind and no other."""
    try:
        if (size := hparams.stat().st_size) > _MAX_HPARAMS:
            raise WeightsError(f"{hparams} has {size:,} bytes, and five numbers were expected; download it again.")
        values: Any = json.loads(hparams.read_text(encoding="utf-8"))
    except OSError as error:
        raise WeightsError(f"{hparams} could not be read ({error.strerror}).") from None
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{hparams} is not JSON ({error}); download it again.") from None
    if not isinstance(values, dict):
        raise WeightsError(f"{hparams} holds no JSON object; OpenAI's n_vocab, n_ctx, … were expected.")
    return GPTConfig.from_openai(values)


def _infer(file: TensorFlowFile) -> GPTConfig:
    """The shape of a model as its tensors tell it."""
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
            "cannot be told from its tensors; put the model's hparams.json there."
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
    tensors: Mapping[str, np.ndarray],
    *,
    tokenizer: SavesItself | None = None,
) -> None:
    """Writes a folder as OpenAI published its models, in float32.

    One tensor is in memory at a time beside what `tensors` itself holds. All files are written in full
    before the first one takes its place.

    Args:
        folder: made where it is not there; other files in it stay.
        config: the shape of the model.
        tensors: by canonical name; `head.weight` is passed over where the config ties it.
        tokenizer: written as `encoder.json` and `vocab.bpe`, or where it is no byte-level BPE as `tokenizer.json`.

    Raises:
        WeightsError: where the model is none that OpenAI's code can run, a tensor is missing, unknown or of the
            wrong shape, or the folder cannot be written.
    """
    write_folder(Path(folder), plan_from_arrays(config, tensors, "openai"), tokenizer)


def write_folder(folder: Path, plan: ConversionPlan, tokenizer: SavesItself | None = None) -> list[Path]:
    """The same as `save_openai`, of what a plan to this layout makes; the files written.

    Raises:
        WeightsError: as `save_openai`.
    """
    config = plan.config
    _refuse_what_has_no_place(config)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as place:
            beside = Path(place)
            _write_tokenizer(beside, tokenizer)
            _write_text(beside / "hparams.json", json.dumps(_hparams(config), indent=2) + "\n")
            lines = [f'model_checkpoint_path: "{PREFIX}"', f'all_model_checkpoint_paths: "{PREFIX}"']
            _write_text(beside / "checkpoint", "\n".join(lines) + "\n")
            _write_weights(beside / PREFIX, plan, folder.name)
            return _put_in_place(beside, folder)
    except OSError as error:
        raise WeightsError(f"{folder} could not be written ({error.strerror or error}); nothing was changed.") from None


def _refuse_what_has_no_place(config: GPTConfig) -> None:
    """Raises where a setting is not GPT-2's own: `hparams.json` has no place for it, and their code has it fixed."""
    fixed = {"activation": "gelu_tanh", "norm_eps": 1e-5, "ff_dim": 4 * config.emb_dim}
    for name, value in fixed.items():
        if (found := getattr(config, name)) != value:
            raise WeightsError(
                f"the model has {name} {found!r}, and OpenAI's layout has no place for it (it is {value!r} there); "
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

        def read(name: str) -> np.ndarray:
            progress.advance(infos[name].nbytes)
            return plan.read(name)

        write_tensorflow(prefix, infos, read)


def _write_tokenizer(beside: Path, tokenizer: SavesItself | None) -> None:
    """A tokenizer's files under OpenAI's names; as they are where it is no BPE of GPT-2's kind."""
    if tokenizer is None:
        return
    tokenizer.save(beside)
    vocab, merges = beside / "vocab.json", beside / "merges.txt"
    if not (vocab.is_file() and merges.is_file()):
        return
    # In ASCII, as OpenAI's own file is: their code reads it in whatever encoding the system has.
    _write_text(beside / "encoder.json", json.dumps(json.loads(vocab.read_text(encoding="utf-8"))))
    _write_text(beside / "vocab.bpe", merges.read_text(encoding="utf-8"))
    for path in list(beside.iterdir()):
        if path.name not in ("encoder.json", "vocab.bpe"):
            path.unlink()


def _write_text(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _put_in_place(beside: Path, folder: Path) -> list[Path]:
    """Moves finished files into the folder, the weights last, and removes the data files that they replace."""
    last = [shard_path(Path(f"{PREFIX}.index"), 0, 1).name, f"{PREFIX}.index", "checkpoint"]
    first = sorted(path.name for path in beside.iterdir() if path.name not in last)
    for name in [*first, *last]:
        (beside / name).replace(folder / name)
    for path in folder.glob(f"{PREFIX}.data-*-of-*"):
        if path.name != last[0]:
            path.unlink()
    return [folder / name for name in [*first, *last]]
