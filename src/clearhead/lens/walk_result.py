"""`Walk`: the walk of one prompt as an object that a notebook shows as a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from clearhead.inference.options import SamplingParams
from clearhead.lens.page import page, write_page
from clearhead.lens.walk import walk
from clearhead.utils.arguments import refuse_unknown

if TYPE_CHECKING:
    from clearhead.inference.options import Prompt
    from clearhead.model import GPTModel
    from clearhead.numpy_model import NumpyModel
    from clearhead.tokenizer import Tokenizer

_HEIGHT = 640  # pixels of the frame in a notebook


class WalkOptions(TypedDict, total=False):
    """How the walk chooses the next token."""

    temperature: float
    top_k: int
    seed: int


@dataclass(frozen=True, repr=False)
class Walk:
    """Every step from a prompt to the next token.

    Attributes:
        values: the numbers, as `clearhead.lens.walk.walk` describes them.
    """

    values: Mapping[str, Any]

    def __repr__(self) -> str:
        return f"Walk({self.values['prompt']!r}, {self.values['prompt_tokens']:,} tokens)"

    def _repr_html_(self) -> str:
        style = f"width:100%;height:{_HEIGHT}px;border:0"
        return f'<iframe style="{style}" srcdoc="{escape(page(self.values))}"></iframe>'

    def save(self, file: str | Path, language: str = "en") -> None:
        """Write the walk as one HTML page.

        Args:
            file: the file.
            language: the page's first language, "en" or "zh"; it can switch.

        Raises:
            InputError: if the file cannot be written.
        """
        write_page(Path(file), self.values, language)


def walk_of(
    model: GPTModel | NumpyModel, text: Prompt, ids: Sequence[int], tokenizer: Tokenizer | None, options: WalkOptions
) -> Walk:
    """Walk through a model.

    Args:
        model: the network, in PyTorch or NumPy.
        text: the prompt as given.
        ids: its tokens.
        tokenizer: turns ids into text; without one, tokens are shown as numbers.
        options: how the next token is chosen; as `clearhead walk` does by default.

    Raises:
        InputError: if the prompt cannot run, or an option is unknown or out of range.
    """
    refuse_unknown("walk", options, WalkOptions.__annotations__)
    params = SamplingParams(
        temperature=options.get("temperature", 0.8), top_k=options.get("top_k", 10), seed=options.get("seed", 1)
    )
    prompt = text if isinstance(text, str) else " ".join(map(str, ids))
    return Walk({"name": None, "prompt": prompt, "block": 0, "head": 0, **walk(model, ids, tokenizer, params)})
