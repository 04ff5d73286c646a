"""The logit lens over a whole text: what a model would predict if it ended after each layer, or each sublayer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from rich.cells import cell_len
from torch import Tensor

from clearhead.drawing.heat_map import text_grid
from clearhead.errors import InputError
from clearhead.inference.runner import check_token_ids
from clearhead.lens.cache import run_with_cache
from clearhead.lens.labelled import LabelledArray, picture_html, token_labels
from clearhead.lens.reading import depth_names, pieces, read_residual
from clearhead.model import GPTModel

if TYPE_CHECKING:
    from clearhead.lens.tuned import TunedLens
    from clearhead.tokenizer import Tokenizer

_ROWS = 128
"""Tokens whose logits are in memory at a time."""

_HEADINGS = {
    "en": "{lens} after the last of {count} tokens; target {target!r}",
    "zh": "{lens}：{count} 个词元的最后一个之后；目标 {target!r}",
}
_RANK = {"en": "rank", "zh": "排名"}
_CHINESE = re.compile(r"embedding|layer (\d+)( attention)?")


@dataclass(frozen=True, eq=False)
class LayerPredictions:
    """What each depth of a model would predict after each token of a text; shows itself as a grid of tokens.

    S depths are the embedding and the residual stream after each sublayer (or each block); the last is the model's own
    output.

    Attributes:
        lens: "logit lens", or "tuned lens" if translators were applied.
        depths: the label of each depth, such as "layer 3 attention".
        ids: the text's tokens.
        tokens: the text of each, if there is a tokenizer.
        top_ids: int64 [S, T, top], the most likely next tokens, the best first.
        top_tokens: their text, as `tokens`.
        top_probabilities: float64 [S, T, top].
        targets: int64 [T], the tokens whose ranks and probabilities are given.
        probabilities: of the targets, [S, T].
        ranks: how many tokens are more likely than the target, [S, T]; 0 if it is the most likely one.
        kl: divergence of the depth's distribution from the final one in nats, KL(final || depth), [S, T].
    """

    lens: str
    depths: tuple[str, ...]
    ids: tuple[int, ...]
    tokens: tuple[str, ...] | None
    top_ids: npt.NDArray[np.int64]
    top_tokens: tuple[tuple[tuple[str, ...], ...], ...]
    top_probabilities: npt.NDArray[np.float64]
    targets: npt.NDArray[np.int64]
    probabilities: LabelledArray
    ranks: LabelledArray
    kl: LabelledArray

    def to_svg(self, lang: str = "en") -> str:
        """Return a grid with the most likely token at each depth and position, shaded by its probability."""
        title = {
            "en": f"Most likely next token at each depth ({self.lens})",
            "zh": f"各深度最可能的下一个词元（{self.lens}）",
        }
        texts = [[row[0] for row in rows] for rows in self.top_tokens]
        shades = self.top_probabilities[:, :, 0].tolist()
        return text_grid(title[lang], texts, shades, self._depth_names(lang), self.kl.labels[1], lang=lang)

    def _depth_names(self, lang: str) -> Sequence[str]:
        return [_CHINESE.sub(_chinese, depth) for depth in self.depths] if lang == "zh" else self.depths

    def _repr_html_(self) -> str:
        return picture_html(self.to_svg())

    def __repr__(self) -> str:
        return self.to_text()

    def to_text(self, lang: str = "en") -> str:
        """Return a line for each depth at the last token, below a heading."""
        target = self.top_tokens[-1][-1][0] if self.targets[-1] == self.top_ids[-1, -1, 0] else str(self.targets[-1])
        depths = self._depth_names(lang)
        width = max(map(cell_len, depths))
        lines = [_HEADINGS[lang].format(lens=self.lens, count=len(self.ids), target=target)]
        for index, depth in enumerate(depths):
            best = " ".join(
                f"{text!r} {share:.0%}"
                for text, share in zip(self.top_tokens[index][-1][:3], self.top_probabilities[index, -1], strict=False)
            )
            rank, share = int(self.ranks.values[index, -1]), self.probabilities.values[index, -1]
            name = depth + " " * (width - cell_len(depth))
            kl = self.kl.values[index, -1]
            lines.append(f"{name}  {_RANK[lang]} {rank:>5,}  {share:6.1%}  KL {kl:5.2f}  {best}")
        return "\n".join(lines)


@torch.no_grad()
def layer_predictions(
    model: GPTModel,
    ids: Sequence[int],
    *,
    target: int | Sequence[int] | None = None,
    sublayers: bool = True,
    top: int = 5,
    tuned: TunedLens | None = None,
    tokenizer: Tokenizer | None = None,
) -> LayerPredictions:
    """Return what each depth of a model would predict after each token of a text.

    A depth is read by the final norm and the head (nostalgebraist, "interpreting GPT: the logit lens", 2020); with
    `tuned`, after the translator that was trained for it.

    Args:
        model: the model.
        ids: the text's tokens.
        target: the token whose rank and probability are given, at all positions or one for each; by default the token
            that follows in the text, and after the last one the model's own most likely token.
        sublayers: read the residual stream after each attention too, and not only after each block.
        top: how many of the most likely tokens are kept.
        tuned: a tuned lens; depths without a translator are read unchanged.
        tokenizer: turns token ids into text, for printing.

    Raises:
        InputError: if a token is out of range, there is not one target for each token, or top is out of range.
    """
    config = model.config
    if not 1 <= top <= config.vocab_size:
        raise InputError(f"top is {top}; give 1 to {config.vocab_size:,}.")
    depths = depth_names(config.n_layers, sublayers)
    cache = run_with_cache(model, [ids], list(depths))
    final = read_residual(model, cache[list(depths)[-1]][0])
    targets = _targets(ids, target, int(final[-1].argmax()), config.vocab_size)
    wanted = torch.tensor(targets, device=final.device)
    columns: list[list[Tensor]] = []
    for name in depths:
        residual = cache[name][0] if tuned is None else tuned.translate(name, cache[name][0])
        columns.append(_compared(read_residual(model, residual), final, wanted, top))
    top_ids, shares, probabilities, ranks, kl = (
        torch.stack(parts).cpu().numpy() for parts in zip(*columns, strict=True)
    )
    tokens = None if tokenizer is None else tuple(pieces(tokenizer, ids))
    used = {id: str(id) if tokenizer is None else pieces(tokenizer, [id])[0] for id in np.unique(top_ids).tolist()}
    axes, labels = ("depth", "position"), (tuple(depths.values()), token_labels(ids, tokens))
    kind = "logit lens" if tuned is None else "tuned lens"
    return LayerPredictions(
        kind,
        tuple(depths.values()),
        tuple(ids),
        tokens,
        top_ids,
        tuple(tuple(tuple(used[id] for id in row) for row in rows) for rows in top_ids.tolist()),
        shares,
        targets,
        LabelledArray(probabilities, axes, labels, f"probability of the target ({kind})"),
        LabelledArray(ranks.astype(np.float64), axes, labels, f"rank of the target ({kind})"),
        LabelledArray(kl, axes, labels, f"KL(final || depth) in nats ({kind})"),
    )


def _chinese(depth: re.Match[str]) -> str:
    return f"第 {depth[1]} 层{'注意力' if depth[2] else ''}" if depth[1] else "嵌入"


def _compared(logits: Tensor, final: Tensor, targets: Tensor, top: int) -> list[Tensor]:
    """Return top ids and probabilities [T, top], and probability and rank of the targets and KL, [T] each."""
    parts = []
    for begin in range(0, len(logits), _ROWS):
        rows = slice(begin, begin + _ROWS)
        one, last, target = logits[rows], final[rows].double().log_softmax(-1), targets[rows, None]
        logprobs = one.double().log_softmax(-1)  # [t, V]
        best = logprobs.topk(top)
        ranks = (one > one.gather(1, target)).sum(1)
        kl = (last.exp() * (last - logprobs)).sum(1).clamp_min(0)
        parts.append([best.indices, best.values.exp(), logprobs.gather(1, target)[:, 0].exp(), ranks, kl])
    return [torch.cat(columns) for columns in zip(*parts, strict=True)]


def _targets(
    ids: Sequence[int], given: int | Sequence[int] | None, last: int, vocab_size: int
) -> npt.NDArray[np.int64]:
    targets = [*ids[1:], last] if given is None else [given] * len(ids) if isinstance(given, int) else list(given)
    if len(targets) != len(ids):
        raise InputError(f"there are {len(targets)} targets for {len(ids)} tokens; give one for each, or one for all.")
    check_token_ids(targets, vocab_size)
    return np.array(targets, np.int64)
