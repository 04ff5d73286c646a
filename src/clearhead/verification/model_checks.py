"""`clearhead.verify`: every check of a model, including those that run it.

found = clearhead.verify("gpt2")
for check in found.checks:
    print(check.verdict, check.name, check.text)
assert found.ok
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clearhead.config import RELEASED, ConfigLike, GPTConfig
from clearhead.errors import TokenizerError, WeightsError
from clearhead.inference.generation import generate
from clearhead.inference.requests import Request
from clearhead.loading import find_device, torch_model
from clearhead.numpy_model import load_numpy_model
from clearhead.utils.progress import Progress
from clearhead.verification.checks import Check, CheckFunction, Context, Verification
from clearhead.verification.published import PUBLISHED, PublishedContinuation
from clearhead.verification.reference_text import GPT2_END_OF_TEXT, GPT2_IDS, TEXT
from clearhead.verification.weights_checks import verify_weights
from clearhead.weights.hub.official import Official, same_shape, tokenizer_files
from clearhead.weights.source import Source

if TYPE_CHECKING:
    import torch

    from clearhead.inference.runner import ScoringRunner
    from clearhead.tokenizer import Tokenizer
    from clearhead.verification.blockwise import BlockwiseNetwork
    from clearhead.verification.permutation_test import Alternative, PermutationTest

_MAX_TOKENS = 2048  # of the text; more tokens reveal smaller differences
_MIN_TOKENS = 16  # fewer tokens cannot support a comparison
_FAMILIAR = 0.5  # the model knows a text if the loss is at most this fraction of the loss by chance
_MIN_NATS = 10.0  # by which an alternative must be more likely to be believed: 22,000 to 1
_MIN_SIGMAS = 3.0  # and its advantage must not rest on a few tokens
_MAX_FLOPS = 2e12  # for the comparison, a minute or two on an ordinary CPU; it limits the number of tokens
_MIN_TOKENS_OF_LARGE_MODELS = 128  # whatever the FLOPs
_LAYER_BY_LAYER_FLOPS = 3e13  # above this only whole-model alternatives are tried


def verify(
    source: str | os.PathLike[str] | Source,
    *,
    layout: str | None = None,
    config: ConfigLike | None = None,
    revision: str | None = None,
    device: str = "cpu",
    text: str | None = None,
    known: Mapping[str, Official] | None = None,
    published: Mapping[str, Sequence[PublishedContinuation]] = PUBLISHED,
) -> Verification:
    """Check a model's files, weights and tokenizer, whether it is a published one, and how well it predicts a text.

    Args:
        source: a folder, a file, the name of a model on the hub, or an opened model.
        layout: the naming scheme, if it cannot be recognized from the files.
        config: the model's shape, or some of its settings, if the files do not record it or record it wrongly.
        revision: the branch, tag or commit of a model on the hub.
        device: where the model runs: "cpu", with NumPy and the engine; or another as PyTorch names it.
        text: the text to predict; by default one of plain English. It should resemble the training data.
        known: the published models to compare with; OpenAI's by default.
        published: the continuations that published models generate, by size.

    Returns:
        The results. Broken files are a failed check, not an exception.

    Raises:
        WeightsError: if there is nothing of that name.
        HubError: if a model could not be downloaded.
        InputError: if the device is not available.
        MissingPackageError: if the device is not the CPU, and PyTorch is not installed.
    """
    torch_device = None if device == "cpu" else find_device(device)  # fail early: the other checks can take minutes
    run = _ModelChecks(torch_device, TEXT if text is None else text, published)
    more: tuple[CheckFunction, ...] = (run.check_tokenizer, run.check_text, run.check_continuation)
    return verify_weights(source, layout=layout, config=config, revision=revision, known=known, more_checks=more)


class _ModelChecks:
    """The checks that run the model.

    Args:
        device: PyTorch's; None for the CPU.
        text: as in `verify`.
        published: as in `verify`.
    """

    def __init__(
        self, device: torch.device | None, text: str, published: Mapping[str, Sequence[PublishedContinuation]]
    ) -> None:
        self.device, self.text, self.published = device, text, published
        self.tokenizer: Tokenizer | None = None
        self.ids: list[int] = []
        self.why_no_ids = "it has no tokenizer"

    def _network(self, source: Source) -> BlockwiseNetwork:
        """Return the model in float32, block by block."""
        from clearhead.verification.blockwise import NumpyBlocks, TorchBlocks

        if self.device is None:
            return NumpyBlocks(load_numpy_model(source.config, source.lazy()))
        return TorchBlocks(torch_model(source, self.device, "float32").eval())

    def _runner(self, source: Source) -> ScoringRunner:
        """Return a Runner of the model in float32."""
        if self.device is None:
            from clearhead.engine.store import open_runner

            return open_runner(source, "float32")
        from clearhead.inference.torch_runner import TorchRunner

        return TorchRunner(torch_model(source, self.device, "float32").eval())

    # --- the tokenizer ---------------------------------------------------------------------------------------

    def check_tokenizer(self, context: Context) -> Check:
        """Open the tokenizer that belongs to the weights; encode and decode a text."""
        name = "tokenizer"
        try:
            self.tokenizer = context.source.tokenizer()
        except (TokenizerError, WeightsError) as error:
            return Check(name, "failed", str(error))
        if self.tokenizer is None:
            return Check(name, "not applicable", "There is no tokenizer with the weights.")
        size, rows = self.tokenizer.vocab_size, context.source.config.vocab_size
        if size > rows:
            self.tokenizer, self.why_no_ids = None, "its tokenizer does not fit"
            text = (
                f"The tokenizer has ids up to {size - 1:,}, but the token embedding has {rows:,} rows; "
                "the two belong to different models."
            )
            return Check(name, "failed", text)
        details = _published_files(context.source.folder)
        try:
            self.ids = self.tokenizer.encode(self.text)
        except TokenizerError as error:
            self.why_no_ids = "its tokenizer cannot encode the text; --text gives another one"
            return Check(name, "warning", f"{size:,} tokens, but not for every text: {error}", details)
        if self.tokenizer.decode(self.ids) != self.text:
            text = f"{size:,} tokens, but a page of text changes when it is encoded and decoded."
            return Check(name, "warning", text, details)
        return Check(name, "passed", f"{size:,} tokens; a page of text decodes to itself.", details)

    # --- a text ----------------------------------------------------------------------------------------------

    def check_text(self, context: Context) -> Check:
        """Compare the likelihood of a text under the model and under the same model with permuted parts."""
        name, config = "text", context.source.config
        if context.broken or not context.trained:
            why = "its weights contain NaN or infinity" if context.broken else "it is untrained"
            return Check(name, "not applicable", f"The model was not run: {why}.")
        ids = self._with_end_of_text(config)[: 1 + _n_tokens(config)]
        if len(ids) <= _MIN_TOKENS:
            why = "the text or the context is too short" if ids else self.why_no_ids
            return Check(name, "not applicable", f"The model was not run: {why}.")
        from clearhead.verification.permutation_test import count_alternatives, permutation_test

        layer_by_layer = _flops(config) * len(ids) <= _LAYER_BY_LAYER_FLOPS
        with Progress(f"running {context.source.name}", count_alternatives(config, layer_by_layer)) as progress:
            found = permutation_test(
                self._network(context.source),
                ids,
                n_choices=None if self.tokenizer is None else count_encodable(self.tokenizer),
                layer_by_layer=layer_by_layer,
                advance=progress.advance,
            )
        return _judge(found, layer_by_layer)

    def _with_end_of_text(self, config: GPTConfig) -> list[int]:
        """Return the text's tokens after an end-of-text token; empty without a tokenizer for the text."""
        if self.tokenizer is not None and self.ids:
            end = self.tokenizer.end_of_text
            return [*([] if end is None else [end]), *self.ids]
        # GPT-2's vocabulary, or padded as in nanoGPT
        if self.tokenizer is None and self.text == TEXT and GPT2_END_OF_TEXT < config.vocab_size <= 50304:
            return [GPT2_END_OF_TEXT, *GPT2_IDS]
        return []

    # --- published continuations -------------------------------------------------------------------------------

    def check_continuation(self, context: Context) -> Check:
        """Let a model of a published size continue prompts whose greedy continuation others have published."""
        name, config = "continuation", context.source.config
        size = next((size for size, shape in RELEASED.items() if same_shape(shape, config)), context.identity.size)
        cases = self.published.get(size or "", ())
        if not cases:
            text = f"No continuation of OpenAI's {size} is on record." if size else "Not a model that OpenAI published."
            return Check(name, "not applicable", text)
        if context.broken or not context.trained:
            why = "its weights contain NaN or infinity" if context.broken else "it is untrained"
            return Check(name, "not applicable", f"The model was not run: {why}.")
        details, same = [], 0
        runner = self._runner(context.source)
        for case in cases:
            ids = _greedy(runner, case)
            agreed = next((i for i, pair in enumerate(zip(ids, case.ids, strict=True)) if pair[0] != pair[1]), -1)
            same += agreed < 0
            words = f"all {len(case.ids)} tokens" if agreed < 0 else f"the first {agreed} of {len(case.ids)} tokens"
            details.append(f"“{case.prompt}”: {words} as in {case.by}")
        if same == len(cases):
            return Check(name, "passed", f"It generates what others published for {size}.", tuple(details))
        text = f"It does not generate what others published for {size}"
        if context.identity.verdict == "different":
            return Check(name, "warning", f"{text}, and its weights are not the published ones.", tuple(details))
        return Check(name, "failed", f"{text}.", tuple(details))


def _greedy(runner: ScoringRunner, case: PublishedContinuation) -> tuple[int, ...]:
    asked = Request(prompt_ids=case.prompt_ids, max_new_tokens=len(case.ids), temperature=0, stop_at_end_of_text=False)
    return tuple(generate(runner, None, [asked])[0].samples[0].ids)


def count_encodable(tokenizer: Tokenizer) -> int:
    """Return how many different tokens a text can consist of: all that have a name and are not special.

    In a byte-level BPE these are the bytes and what the merges make. A vocabulary may list more, if it is incomplete.
    """
    if tokenizer.bpe is not None:
        vocabulary, merges = tokenizer.bpe
        made = {left + right for left, right in merges}
        return sum(token in made or len(token) == 1 for token in vocabulary)
    special = set(tokenizer.special_tokens.values())
    return sum(id not in special for id, _ in tokenizer.names())


def _published_files(folder: Path) -> tuple[str, ...]:
    """Say which of a tokenizer's files are OpenAI's, by their SHA-256."""
    import hashlib

    same = []
    for name, known in tokenizer_files().items():
        path = folder / name
        right_size = path.is_file() and path.stat().st_size == known.nbytes
        if right_size and hashlib.sha256(path.read_bytes()).hexdigest() == known.sha256:
            same.append(name)
    return (f"{' and '.join(same)}: as OpenAI published, by SHA-256",) if same else ()


def _flops(config: GPTConfig) -> float:
    """Return the FLOPs per token of the comparison layer by layer, at two for each weight."""
    block = 4 * config.emb_dim**2 + 2 * config.emb_dim * config.ff_dim
    head = config.emb_dim * config.vocab_size
    passes = 4 * config.n_layers  # through half of the blocks on average
    return 2.0 * passes * (config.n_layers * block / 2 + head)


def _n_tokens(config: GPTConfig) -> int:
    return int(min(_MAX_TOKENS, max(_MIN_TOKENS_OF_LARGE_MODELS, _MAX_FLOPS / _flops(config))))


def _judge(found: PermutationTest, layer_by_layer: bool) -> Check:
    best = min(found.alternatives, key=_nats)
    share = (found.loss + min(best.nats, 0.0) / found.tokens) / found.chance
    measured = f"The loss on {found.tokens:,} tokens of text is {found.loss:.2f} nats, by chance {found.chance:.2f}"
    if share > _FAMILIAR:
        text = (
            f"{measured}. The model does not know such text well enough to be judged by it; "
            "give a text that resembles its training data."
        )
        return Check("text", "warning", text)
    if -best.nats > _MIN_NATS and -best.sigmas > _MIN_SIGMAS:
        text = (
            f"{measured}. The text is more likely with {best}, by {-best.nats:,.0f} nats ({_odds(-best.nats)}): "
            "the model was trained that way, and the weights, their names or the config are wrong."
        )
        others = sorted((one for one in found.alternatives if one.nats < -_MIN_NATS and one is not best), key=_nats)
        return Check("text", "failed", text, tuple(f"{one}: {-one.nats:,.0f} nats more likely" for one in others[:4]))
    return _passed(found, measured, layer_by_layer)


def _passed(found: PermutationTest, measured: str, layer_by_layer: bool) -> Check:
    whole = [one for one in found.alternatives if not one.layers]
    single = [one for one in found.alternatives if one.layers]
    nearest = min(whole, key=_nats)
    text = (
        f"{measured}. Any of {len(whole)} permutations of the whole model makes the text less likely, "
        f"by at least {nearest.nats:,.0f} nats ({_odds(nearest.nats)})."
        if nearest.nats > 0
        else f"{measured}. No permutation of the model makes the text clearly more likely."
    )
    details = [f"nearest: {nearest}, {nearest.nats:,.0f} nats"]
    if single:
        excluded = sum(one.nats > _MIN_NATS for one in single)
        details.append(
            f"single layers: {excluded} of {len(single)} permutations are ruled out by more than {_MIN_NATS:.0f} nats"
        )
        if close := sorted((one for one in single if one.nats <= _MIN_NATS), key=_nats):
            more = ", …" if close[4:] else ""
            details.append("too close to call: " + ", ".join(f"{one} ({one.nats:.0f})" for one in close[:4]) + more)
    elif not layer_by_layer:
        details.append("single layers were not permuted, because the model is large")
    return Check("text", "passed", text, tuple(details))


def _nats(alternative: Alternative) -> float:
    return alternative.nats


def _odds(nats: float) -> str:
    """Return a likelihood ratio in words."""
    power = nats / 2.302585
    return f"10^{power:.0f} to 1" if power >= 4 else f"{10**power:,.0f} to 1"
