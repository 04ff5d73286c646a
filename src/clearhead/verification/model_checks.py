"""`clearhead.verify`: the whole proof that a model is what it should be, its weights looked at and its text read.

found = clearhead.verify("gpt2")
for point in found.points:
    print(point.verdict, point.name, point.text)
assert found.ok
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from clearhead.config import RELEASED, GPTConfig
from clearhead.errors import TokenizerError, WeightsError
from clearhead.gpt import GPT, find_device
from clearhead.verification.published import PUBLISHED, Continuation
from clearhead.verification.reference_text import GPT2_END_OF_TEXT, GPT2_IDS, TEXT
from clearhead.verification.weights_checks import Looked, Point, Trial, Verification
from clearhead.verification.weights_checks import verify as verify_weights
from clearhead.weights.hub.official import Official, same_shape, tokenizer_files
from clearhead.weights.source import Source

if TYPE_CHECKING:
    from clearhead.model import GPTModel
    from clearhead.tokenizer import Tokenizer
    from clearhead.verification.permutation_test import Comparison, Rival

_MOST_TOKENS = 2048  # of a text; the more, the finer the differences that show
_FEWEST_TOKENS = 16  # from which on a text is worth a comparison
_FAMILIAR = 0.5  # a text is judged where a token of it costs at most this share of what it costs by chance
_NATS = 10.0  # by which a rival must be likelier to be believed: 22,000 to 1
_DEVIATIONS = 3.0  # ... and its advantage must not rest on a few tokens
_FLOPS = 2e12  # that a comparison may take, a minute or two of an ordinary processor: so many tokens are read ...
_FEW_TOKENS = 128  # ... but so many at least
_LAYER_BY_LAYER_FLOPS = 3e13  # what that may take at most; larger models get the whole-model rivals only


def verify(
    source: str | os.PathLike[str] | Source,
    *,
    layout: str | None = None,
    config: GPTConfig | None = None,
    revision: str | None = None,
    device: str = "cpu",
    text: str = TEXT,
    known: Mapping[str, Official] | None = None,
    published: Mapping[str, Sequence[Continuation]] = PUBLISHED,
) -> Verification:
    """Looks at a model point by point: its files, its numbers, whether it is a published one, what it makes of a text.

    Args:
        source: a folder, a file, the name of a model on the hub, or a model that is open.
        layout: the naming scheme, where it is not to be told from the files' contents.
        config: the model's shape, where the files do not say it or say it wrongly.
        revision: of a model on the hub, its branch, tag or commit.
        device: where the model runs, as PyTorch names it.
        text: what it is to read; of the kind that it was trained on, where that is not plain English.
        known: the published models to compare with; OpenAI's where it is left out.
        published: the continuations that they must write, by size.

    Returns:
        A verification. Files that are broken are a failed point and no error.

    Raises:
        WeightsError: where there is nothing of that name.
        HubError: where a model could not be fetched.
        InputError: where the device is not to be had here.
    """
    find_device(device)  # before minutes of looking at numbers
    run = _Run(device, text, published)
    trials: tuple[Trial, ...] = (run.tokenizer_point, run.text_point, run.continuation_point)
    return verify_weights(source, layout=layout, config=config, revision=revision, known=known, trials=trials)


class _Run:
    """The points for which the model runs; it is loaded once, when the first of them needs it."""

    def __init__(self, device: str, text: str, published: Mapping[str, Sequence[Continuation]]) -> None:
        self.device, self.text, self.published = device, text, published
        self.tokenizer: Tokenizer | None = None
        self.source: Source | None = None

    @cached_property
    def model(self) -> GPTModel:
        """The model, in float32 and in evaluation mode."""
        import torch

        from clearhead.inference.torch_weights import load_into
        from clearhead.model import GPTModel

        assert self.source is not None
        with torch.device("meta"):
            model = GPTModel(self.source.config)
        load_into(model, self.source)
        return model.to(self.device).eval()

    # --- the tokenizer ---------------------------------------------------------------------------------------

    def tokenizer_point(self, looked: Looked) -> Point:
        """Opens the tokenizer that stands beside the weights or in them, and sends a text through it and back."""
        self.source, name = looked.source, "tokenizer"
        try:
            self.tokenizer = looked.source.tokenizer()
        except (TokenizerError, WeightsError) as error:
            return Point(name, "failed", str(error))
        if self.tokenizer is None:
            return Point(name, "not applicable", "No tokenizer stands beside the weights.")
        size, rows = self.tokenizer.vocab_size, looked.source.config.vocab_size
        if size > rows:
            self.tokenizer = None
            text = (
                f"The tokenizer has ids up to {size - 1:,}, and the model has {rows:,} rows for tokens; "
                "the two belong to different models."
            )
            return Point(name, "failed", text)
        back = self.tokenizer.decode(self.tokenizer.encode(self.text))
        details = _published_files(looked.source.folder)
        if back != self.text:
            text = f"{size:,} tokens, and a page of text does not come back as it was."
            return Point(name, "warning", text, details)
        return Point(name, "passed", f"{size:,} tokens; a page of text comes back as it was.", details)

    # --- a text ----------------------------------------------------------------------------------------------

    def text_point(self, looked: Looked) -> Point:
        """Lets the model read a text, as it is and with its parts rearranged."""
        name, config = "text", looked.source.config
        if looked.broken or not looked.trained:
            why = "its numbers are broken" if looked.broken else "it is untrained, and cannot read yet"
            return Point(name, "not applicable", f"The model was not run: {why}.")
        ids = self._ids(config)[: 1 + _n_tokens(config)]
        if len(ids) <= _FEWEST_TOKENS:
            why = "there is no tokenizer" if not ids else "the text or the context is too short"
            return Point(name, "not applicable", f"The model was not run: {why}.")
        from clearhead.utils.progress import Progress
        from clearhead.verification.permutation_test import compare, n_rivals

        layer_by_layer = _flops(config) * len(ids) <= _LAYER_BY_LAYER_FLOPS
        with Progress(f"reading with {looked.source.name}", n_rivals(config, layer_by_layer)) as progress:
            found = compare(self.model, ids, layer_by_layer=layer_by_layer, advance=progress.advance)
        return _judge(found, layer_by_layer)

    def _ids(self, config: GPTConfig) -> list[int]:
        """The text's tokens after the one before which texts begin; none where there is no tokenizer for them."""
        if self.tokenizer is not None:
            end = self.tokenizer.end_of_text
            return [*([] if end is None else [end]), *self.tokenizer.encode(self.text)]
        if self.text == TEXT and GPT2_END_OF_TEXT < config.vocab_size <= 50304:  # GPT-2's, or padded as nanoGPT pads it
            return [GPT2_END_OF_TEXT, *GPT2_IDS]
        return []

    # --- what was published ------------------------------------------------------------------------------------

    def continuation_point(self, looked: Looked) -> Point:
        """Lets a model of a published size write what others say that it writes."""
        name, config = "continuation", looked.source.config
        size = next((size for size, shape in RELEASED.items() if same_shape(shape, config)), looked.identity.size)
        cases = self.published.get(size or "", ())
        if not cases:
            what = (
                f"of OpenAI's {size}, nobody's continuation is on record"
                if size
                else "not a model that OpenAI published"
            )
            return Point(name, "not applicable", f"{what[0].upper() + what[1:]}.")
        if looked.broken or not looked.trained:
            return Point(name, "not applicable", "The model was not run: its numbers are broken, or it is untrained.")
        details, same = [], 0
        for case in cases:
            wrote = self._greedy(case)
            agreed = next((i for i, pair in enumerate(zip(wrote, case.ids, strict=True)) if pair[0] != pair[1]), -1)
            same += agreed < 0
            words = f"all {len(case.ids)} tokens" if agreed < 0 else f"the first {agreed} of {len(case.ids)} tokens"
            details.append(f"“{case.prompt}”: {words} as in {case.by}")
        if same == len(cases):
            return Point(name, "passed", f"It writes what others published that {size} writes.", tuple(details))
        text = f"It does not write what others published that {size} writes."
        if looked.identity.verdict == "different":
            return Point(name, "warning", f"{text[:-1]}; nor are its weights the published ones.", tuple(details))
        return Point(name, "failed", text, tuple(details))

    def _greedy(self, case: Continuation) -> tuple[int, ...]:
        gpt = GPT(self.model)
        return gpt.generate(case.prompt_ids, max_new_tokens=len(case.ids), temperature=0, stop_at_end_of_text=False).ids


def _published_files(folder: Path) -> tuple[str, ...]:
    """Which of a tokenizer's files are, by their SHA-256, those that OpenAI published."""
    import hashlib

    same = []
    for name, known in tokenizer_files().items():
        path = folder / name
        right_size = path.is_file() and path.stat().st_size == known.nbytes
        if right_size and hashlib.sha256(path.read_bytes()).hexdigest() == known.sha256:
            same.append(name)
    return (f"{' and '.join(same)}: as OpenAI published, by SHA-256",) if same else ()


def _flops(config: GPTConfig) -> float:
    """What the comparison layer by layer takes for a token, at two operations for each weight."""
    block = 4 * config.emb_dim**2 + 2 * config.emb_dim * config.ff_dim
    head = config.emb_dim * config.vocab_size
    passes = 4 * config.n_layers  # of half the blocks each
    return 2.0 * passes * (config.n_layers * block / 2 + head)


def _n_tokens(config: GPTConfig) -> int:
    return int(min(_MOST_TOKENS, max(_FEW_TOKENS, _FLOPS / _flops(config))))


def _judge(found: Comparison, layer_by_layer: bool) -> Point:
    best = min(found.rivals, key=lambda rival: rival.nats)
    share = (found.loss + min(best.nats, 0.0) / found.tokens) / found.chance
    price = f"{found.tokens:,} tokens of text cost {found.loss:.2f} nats each, {found.chance:.2f} by chance"
    if share > _FAMILIAR:
        text = (
            f"{price}. The model does not know such text well enough to judge its parts by it; "
            "give a text of the kind that it was trained on."
        )
        return Point("text", "warning", text)
    if -best.nats > _NATS and -best.deviations > _DEVIATIONS:
        text = (
            f"{price}. They are likelier with {best}, by {-best.nats:,.0f} nats ({_times(-best.nats)}): "
            "that is how they were trained, and the weights, their names or the config are wrong."
        )
        others = sorted((rival for rival in found.rivals if rival.nats < -_NATS and rival is not best), key=_nats)
        return Point(
            "text", "failed", text, tuple(f"{rival}: {-rival.nats:,.0f} nats likelier" for rival in others[:4])
        )
    return _read_well(found, price, layer_by_layer)


def _read_well(found: Comparison, price: str, layer_by_layer: bool) -> Point:
    whole = [rival for rival in found.rivals if not rival.layers]
    single = [rival for rival in found.rivals if rival.layers]
    nearest = min(whole, key=_nats)
    text = (
        f"{price}. With any of {len(whole)} rearrangements of the whole model they are less likely, "
        f"by {nearest.nats:,.0f} nats ({_times(nearest.nats)}) or more."
        if nearest.nats > 0
        else f"{price}. No rearrangement of the model makes them clearly likelier."
    )
    details = [f"nearest: {nearest}, {nearest.nats:,.0f} nats"]
    if single:
        sure = sum(rival.nats > _NATS for rival in single)
        details.append(
            f"single layers: {sure} of {len(single)} rearrangements are ruled out by more than {_NATS:.0f} nats"
        )
        if close := sorted((rival for rival in single if rival.nats <= _NATS), key=_nats):
            more = ", …" if close[4:] else ""
            details.append("too close to tell: " + ", ".join(f"{r} ({r.nats:.0f})" for r in close[:4]) + more)
    elif not layer_by_layer:
        details.append("the model is so large that single layers were not rearranged")
    return Point("text", "passed", text, tuple(details))


def _nats(rival: Rival) -> float:
    return rival.nats


def _times(nats: float) -> str:
    """A likelihood ratio in words."""
    power = nats / 2.302585
    return f"10^{power:.0f} to 1" if power >= 4 else f"{10**power:,.0f} to 1"
