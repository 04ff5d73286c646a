"""What a conversion loses, said before anything is written; `read_back.py` compares what was written.

A layout can lack a place for a part of a model: OpenAI's folder has no special tokens but `<|endoftext|>`, nanoGPT's
checkpoint no epsilon, and only a Hugging Face folder holds a classifier's head. `losses` names such parts. Files that
hold weights only (the book's, nanoGPT's, llm.c's, TransformerLens's, Clearhead's own) have no tokenizer by their
nature; that is a note, not a loss.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from clearhead.errors import TokenizerError, WeightsError
from clearhead.weights.companions import GENERATION_FILE, Companions
from clearhead.weights.formats.gguf import GGUFFile
from clearhead.weights.layouts import LAYOUTS
from clearhead.weights.plan import ConversionPlan
from clearhead.weights.schemes import gguf, openai
from clearhead.weights.tensors import TensorFile

if TYPE_CHECKING:
    from clearhead.tokenizer import Tokenizer

WEIGHTS_ONLY = ("canonical", "book", "nanogpt", "llmc", "transformerlens")
"""The layouts that are files of weights and have no tokenizer."""

_SAMPLING = {"do_sample", "max_length", "max_new_tokens", "min_p", "num_beams", "repetition_penalty", "suppress_tokens"}
_SAMPLING |= {"temperature", "top_k", "top_p", "typical_p"}

WITH_SETTINGS = ("huggingface", "onnx")
"""The layouts that hold every setting of a config."""

_SAMPLE = "Hello, wörld! It's 12345 o'clock.\n\tif (x == 1) { return \"✓\"; }  二人 \U0001f600"


def losses(plan: ConversionPlan, companions: Companions) -> tuple[str, ...]:
    """Return what a layout cannot hold of a model, one clause for each part; nothing is written.

    Args:
        plan: the plan to the layout.
        companions: what belongs to the model besides its tensors.

    Raises:
        TokenizerError: if the model's tokenizer is broken.
    """
    found = [*_lost_settings(plan)]
    if (heads := _heads(plan)) and plan.to != "huggingface":
        labels = " and its labels" if "id2label" in companions.head_settings() else ""
        found.append(f"the head {', '.join(heads)}{labels}")
    elif any(name.endswith("score.bias") for name in heads):
        found.append("score.bias (GPT2ForSequenceClassification has no bias)")
    if plan.to not in (*WITH_SETTINGS, *WEIGHTS_ONLY):
        found += _lost_tokens(plan, companions)
    return tuple(found)


def notes(plan: ConversionPlan, companions: Companions) -> tuple[str, ...]:
    """Return what whoever opens the written file must know, as sentences."""
    found = []
    if plan.to in WEIGHTS_ONLY and companions.has_tokenizer():
        found.append(f"{LAYOUTS[plan.to].title}'s file holds no tokenizer; keep the one in {companions.folder}.")
    if plan.to == "nanogpt" and plan.config.activation != "gelu_erf":
        found.append(
            f"nanoGPT itself always computes GELU exactly (gelu_erf), and this model has {plan.config.activation}; "
            "the file says so, and Clearhead reads it."
        )
    if plan.to not in WITH_SETTINGS and companions.generation_config().keys() & _SAMPLING:
        found.append(f"{LAYOUTS[plan.to].title}'s layout does not hold {GENERATION_FILE}.")
    return tuple(found)


def _heads(plan: ConversionPlan) -> list[str]:
    return [name for name in plan.ignored if LAYOUTS[plan.origin].is_head(name)]


def head_tensors(file: TensorFile, layout: str) -> dict[str, npt.NDArray[Any]]:
    """Return the tensors of a head besides the output head, by their names without prefixes."""
    names = [name for name in file.tensors if LAYOUTS[layout].is_head(name)]
    return {LAYOUTS[layout].bare(name): file.read(name) for name in names}


# --- settings ----------------------------------------------------------------------------------------


def assumed_settings(layout: str) -> dict[str, Any]:
    """Return the settings that a layout does not hold, with the values that its readers assume."""
    if layout in WITH_SETTINGS:
        return {}
    assumed: dict[str, Any] = {"norm_eps": 1e-5, "activation": "gelu_tanh"}
    if layout == "nanogpt":
        del assumed["activation"]  # written into the checkpoint's config, and read from there
    if layout == "gguf":
        del assumed["norm_eps"]
    return assumed


def _lost_settings(plan: ConversionPlan) -> Iterator[str]:
    for name, value in assumed_settings(plan.to).items():
        if (found := getattr(plan.config, name)) != value:
            yield f"{name} {found} ({LAYOUTS[plan.to].title}'s readers assume {value})"


# --- tokenizer ---------------------------------------------------------------------------------------


def _lost_tokens(plan: ConversionPlan, companions: Companions) -> list[str]:
    """Compare the model's tokenizer with the one that would be read back from a GGUF file or an OpenAI folder."""
    if plan.to == "gguf" and isinstance(companions.file, GGUFFile) and gguf.has_tokenizer(companions.file.keys):
        return []  # the keys are copied
    tokenizer = companions.tokenizer()
    if tokenizer is None:
        return []
    try:
        back = _after(plan, tokenizer)
    except (TokenizerError, WeightsError) as error:
        return [f"the tokenizer ({str(error).rstrip('.')})"]
    found = list(differences(tokenizer, back))
    ends = set(companions.end_ids()) - {tokenizer.end_of_text}
    if ends:
        found.append(f"the further ends of text {', '.join(map(str, sorted(ends)))}")
    return found


def _after(plan: ConversionPlan, tokenizer: Tokenizer) -> Tokenizer | None:
    if plan.to == "gguf":
        return gguf.tokenizer_from_keys(gguf.tokenizer_keys(tokenizer, plan.config.vocab_size), "the GGUF file")
    from clearhead.tokenizer import Tokenizer

    with tempfile.TemporaryDirectory() as folder:
        openai.write_tokenizer(Path(folder), tokenizer)
        return Tokenizer.from_folder(folder)


def differences(one: Tokenizer, other: Tokenizer | None) -> Iterator[str]:
    """Yield how a tokenizer differs from another: ids, special tokens, end of text, or how text is split."""
    if other is None:
        yield "the tokenizer"
        return
    if lost := [name for name, id in one.special_tokens.items() if other.special_tokens.get(name) != id]:
        yield f"the special token{'s' if len(lost) > 1 else ''} {_some(lost)}"
    if one.end_of_text != other.end_of_text:
        yield f"the end of text {_name(one, one.end_of_text)} ({_name(other, other.end_of_text)} instead)"
    changed = [id for id in range(one.vocab_size) if _bytes(one, id) != _bytes(other, id)]
    if changed := [id for id in changed if one.token_name(id) not in lost]:
        yield f"{len(changed):,} token{'s' if len(changed) > 1 else ''}, {_some([_name(one, id) for id in changed])}"
    if not changed and not lost:
        text = _SAMPLE + "".join(f" a{token}b {token} " for token in [*one.added_tokens, *one.special_tokens][:200])
        if _encoded(one, text) != _encoded(other, text):
            yield "the way in which the tokenizer splits text"


def _encoded(tokenizer: Tokenizer, text: str) -> object:
    try:
        return tokenizer.encode(text, special=True)
    except TokenizerError as error:
        return type(error)


def _bytes(tokenizer: Tokenizer, id: int) -> object:
    try:
        return tokenizer.token_bytes(id)
    except TokenizerError:
        return None


def _name(tokenizer: Tokenizer, id: int | None) -> str:
    if id is None:
        return "none"
    try:
        return repr(tokenizer.token_name(id))
    except TokenizerError:
        return str(id)


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
