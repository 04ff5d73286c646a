"""`GPT`: a model with its tokenizer, the one object that a user holds."""

from __future__ import annotations

import copy
import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Unpack, overload

from clearhead.config import GPTConfig
from clearhead.errors import InputError
from clearhead.inference.generation import generate
from clearhead.inference.options import (
    GenerationOptions,
    ManyPromptedOptions,
    Prompt,
    PromptedOptions,
    check_names,
    shows,
    takes,
)
from clearhead.inference.prompt_ids import no_tokenizer, prompt_ids
from clearhead.inference.requests import Request
from clearhead.inference.results import Generation, TextStream
from clearhead.inference.score_inputs import is_single, pair_texts, to_score
from clearhead.inference.scoring import Score, ScoreOptions, score_texts
from clearhead.networks import Networks
from clearhead.tokenizer.model_vocabulary import check_model_vocabulary
from clearhead.utils.arguments import checks_names, refuse_unknown
from clearhead.utils.packages import has_torch, need_torch

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

    from clearhead.inference.runner import ScoringRunner
    from clearhead.inference.scheduler import Scheduler
    from clearhead.inference.torch_runner import TorchRunner
    from clearhead.lens import ActivationCache, Trace
    from clearhead.lens.cache import CacheOptions
    from clearhead.lens.editing import Change
    from clearhead.lens.walk_result import Walk, WalkOptions
    from clearhead.lens.watching import WatchOptions
    from clearhead.model import GPTModel
    from clearhead.numpy_model import NumpyModel
    from clearhead.tokenizer import Tokenizer

    Floats = npt.NDArray[np.float32]
    Names = str | Iterable[str]
    Prompts = Sequence[Prompt]


class GPT:
    """A GPT-2, its tokenizer, and the Runner (`runner`) that runs it.

    Args:
        model: the network; it is put into evaluation mode, so that dropout is off. It may be a function that makes
            the network when it is first needed; then `runner` is required.
        tokenizer: turns text into ids and back; without one, prompts and results are ids.
        runner: runs generation and scores; by default PyTorch on the model's device.
        notes: as the attribute.
        generation_config: as the attribute.
        end_ids: as the attribute.
        tensors: returns the weights by canonical name, so that `save` needs no network.

    Attributes:
        notes: sentences about what was decided when the model was loaded.
        generation_config: the model's `generation_config.json`, which `save` writes again.
        end_ids: further tokens that end a text, besides the tokenizer's end of text.

    Raises:
        WeightsError: if the tokenizer has ids that the model has no rows for.
    """

    def __init__(
        self,
        model: GPTModel | Callable[[], GPTModel],
        tokenizer: Tokenizer | None = None,
        *,
        runner: ScoringRunner | None = None,
        notes: Sequence[str] = (),
        generation_config: Mapping[str, Any] | None = None,
        end_ids: Sequence[int] = (),
        tensors: Callable[[], Mapping[str, npt.NDArray[Any]]] | None = None,
    ) -> None:
        if runner is None:
            from clearhead.model import GPTModel

            if not isinstance(model, GPTModel):
                raise TypeError("a GPT without a runner needs the network itself, not a function that makes it.")
            runner = _torch_runner(model)
        beyond = check_model_vocabulary(runner.config, tokenizer)
        self._runner: ScoringRunner = runner
        self._edited: ContextVar[TorchRunner | None] = ContextVar("edited", default=None)
        self._scheduler: Scheduler | None = None
        self._networks = Networks(runner.config, model, tensors)
        self.tokenizer = tokenizer
        self.notes = (*notes, *([beyond] if beyond else []))
        self.generation_config = dict(generation_config or {})
        self.end_ids = tuple(end_ids)

    @property
    def runner(self) -> ScoringRunner:
        """The Runner for generation and scoring: PyTorch inside `edit`, and with a `model` that was changed."""
        made = self._networks.weights_made
        if (edited := self._edited.get()) is not None or made is None:
            return edited or self._runner
        from clearhead.lens.changed import runner_of_changed

        return runner_of_changed(self.model, made) or self._runner

    @property
    def model(self) -> GPTModel:
        """The network, a `torch.nn.Module`; inside `edit`, one with the edits and the same weights.

        If the compiled engine runs the model, the network is made now, from the same weights in float32. When it is
        changed, by training it for example, PyTorch runs the model from then on.
        """
        edited = self._edited.get()
        return self._networks.torch if edited is None else edited.model

    @property
    def config(self) -> GPTConfig:
        """The shape of the model."""
        return self._runner.config

    def __deepcopy__(self, memo: dict[int, Any]) -> GPT:
        """Return an independent copy that shares immutable data, such as the engine's weights."""
        from clearhead.inference.torch_runner import TorchRunner

        copied = object.__new__(GPT)
        copied.__dict__.update(self.__dict__)
        copied._networks = copy.deepcopy(self._networks, memo)
        if isinstance(self._runner, TorchRunner):
            copied._runner = _torch_runner(copied._networks.torch)
        else:
            copied._runner = copy.deepcopy(self._runner, memo)
        copied._edited = ContextVar("edited", default=None)
        copied._scheduler = None
        copied.generation_config = copy.deepcopy(self.generation_config, memo)
        return copied

    def __reduce__(self) -> NoReturn:
        raise InputError(
            "a GPT cannot be pickled, as it holds memory of this process; save it with gpt.save(folder), or load the "
            "same model in the other process."
        )

    def __repr__(self) -> str:
        shape = self.config
        return (
            f"GPT(n_layers={shape.n_layers}, n_heads={shape.n_heads}, emb_dim={shape.emb_dim}, "
            f"context_length={shape.context_length}, vocab_size={shape.vocab_size})"
        )

    @overload
    @takes(PromptedOptions)
    def generate(self, asked: PromptedOptions) -> Generation: ...  # type: ignore[overload-overlap]

    @overload
    @takes(ManyPromptedOptions)
    def generate(self, asked: ManyPromptedOptions) -> list[Generation]: ...

    @shows(PromptedOptions)
    def generate(self, prompt: Prompt | Sequence[Prompt], **options: Any) -> Generation | list[Generation]:
        """Continue a prompt, or several prompts at once.

        Args:
            prompt: text, or token ids; or a list of prompts, which may differ in length and which run together. A seed
                is used for each of them.

        Returns:
            a `Generation`, whose `str` is the text; a list of them for a list of prompts.

        Raises:
            InputError: if an option is unknown or out of range; nothing has run then.
            TokenizerError: if a prompt cannot be encoded.
            WeightsError: if the model's logits are NaN or infinite.
        """
        check_names(options, "generate")
        single = is_single(prompt)
        prompts = [prompt] if single else list(prompt)
        requests = [self.request(one, **options) for one in prompts]  # type: ignore[arg-type]
        completions = generate(self.runner, self.tokenizer, requests)
        found = [
            Generation(one, completion.prompt_ids, completion.samples)  # type: ignore[arg-type]
            for one, completion in zip(prompts, completions, strict=True)
        ]
        return found[0] if single else found

    @takes(PromptedOptions)
    def stream(self, asked: PromptedOptions) -> TextStream:
        """Continue a prompt and yield the text piece by piece, as it is generated.

        Args:
            prompt: text, or token ids.

        Raises:
            InputError: if an option is unknown or out of range, `n` is not 1, or there is no tokenizer.
            TokenizerError: if the prompt cannot be encoded.
        """
        return TextStream(self.runner, self.tokenizer, self._of_stream(asked))

    @takes(PromptedOptions)
    def astream(self, asked: PromptedOptions) -> AsyncIterator[str]:
        """Continue a prompt from asynchronous code, and yield the text piece by piece.

        Several streams run together, token by token, and each gives the same text as if it ran alone. Leaving the loop
        early frees the memory that generation uses.

        Args:
            prompt: text, or token ids.

        Raises:
            InputError: if an option is unknown or out of range, `n` is not 1, or there is no tokenizer.
            TokenizerError: if the prompt cannot be encoded.
            OverloadedError: if too many streams wait.
        """
        return self._astream(self._of_stream(asked))

    def _of_stream(self, asked: PromptedOptions) -> Request:
        self._need_tokenizer("a stream of text")
        if asked.n != 1:
            raise InputError(f"n is {asked.n}, but a stream has one text; use generate for several.")
        return self._request(asked)

    async def _astream(self, request: Request) -> AsyncIterator[str]:
        from clearhead.inference.scheduler import Scheduler

        runner = self.runner
        if self._scheduler is None or self._scheduler.runner is not runner:
            self._scheduler = Scheduler(runner, self.tokenizer)
        ticket = self._scheduler.submit(request)
        try:
            async for _, event in ticket:
                if event.text:
                    yield event.text
        finally:
            ticket.cancel()

    @takes(PromptedOptions)
    def request(self, asked: PromptedOptions) -> Request:
        """Return the `Request` for `clearhead.inference.generation`, for programs that drive generation themselves.

        Args:
            prompt: text, or token ids.

        Raises:
            InputError: if an option is unknown or out of range, or text is given without a tokenizer.
            TokenizerError: if the prompt cannot be encoded.
        """
        return self._request(asked)

    @property
    def end_of_text(self) -> int | None:
        """The tokenizer's end of text; None if there is none, or the model has no row for it."""
        end = None if self.tokenizer is None else self.tokenizer.end_of_text
        return end if end is not None and end < self.config.vocab_size else None

    def _request(self, asked: PromptedOptions) -> Request:
        options = {one.name: getattr(asked, one.name) for one in fields(GenerationOptions)}
        if asked.stop_at_end_of_text:
            options["stop_ids"] = (*options["stop_ids"], *self.end_ids)
        return Request(self._ids(asked.prompt, asked.special), **options)

    @overload
    def score(  # type: ignore[overload-overlap]
        self,
        text: Prompt,
        continuation: Prompt | None = None,
        *,
        after_end_of_text: bool = True,
        stride: int | None = None,
        top: int = 0,
    ) -> Score: ...

    @overload
    def score(
        self,
        text: Prompt | Sequence[Prompt],
        continuation: Sequence[Prompt] | None = None,
        *,
        after_end_of_text: bool = True,
        stride: int | None = None,
        top: int = 0,
    ) -> list[Score]: ...

    @checks_names
    def score(
        self,
        text: Prompt | Sequence[Prompt],
        continuation: Prompt | Sequence[Prompt] | None = None,
        *,
        after_end_of_text: bool = True,
        stride: int | None = None,
        top: int = 0,
    ) -> Score | list[Score]:
        """Compute how likely a text is, token by token; or a continuation of a text.

        Args:
            text: text, or token ids; or a list of them, which run in batches.
            continuation: scored in place of `text`, which becomes its context; as text or token ids. A list scores
                several: of one context, which then runs once, or each of the context at the same index.
            after_end_of_text: whether to put the end-of-text token before the text, as in training, so that its first
                token has a probability too. Without one in the vocabulary, the first token is not scored.
            stride: for a text longer than the context, how many tokens each further window scores; None for half the
                context. A smaller stride gives tokens more context and takes longer.
            top: how many of the most likely tokens to return at each position.

        Returns:
            a `Score`; a list of them if a list was given. A continuation of text begins with the token that holds its
            first character; white space at the end of the context counts as part of it.

        Raises:
            InputError: if there is no token to score, or an argument is out of range.
            TokenizerError: if the text cannot be encoded.
        """
        bos = self.end_of_text if after_end_of_text else None
        choices = None if self.tokenizer is None else min(self.config.vocab_size, self.tokenizer.vocab_size)
        options = ScoreOptions(top=top, n_choices=choices, stride=stride)
        pairs = [to_score(*pair, bos, self._ids, self.tokenizer) for pair in pair_texts(text, continuation)]
        found = list(score_texts(self.runner, pairs, options=options, tokenizer=self.tokenizer))
        return found[0] if is_single(text) and (continuation is None or is_single(continuation)) else found

    @overload
    def watch(
        self, text: Prompt, names: Names = "*", *, as_torch: Literal[False] = ..., **options: Unpack[WatchOptions]
    ) -> Trace[Floats]: ...

    @overload
    def watch(
        self, text: Prompt, names: Names = "*", *, as_torch: Literal[True], **options: Unpack[WatchOptions]
    ) -> Trace[torch.Tensor]: ...

    def watch(
        self, text: Prompt, names: Names = "*", *, as_torch: bool = False, **options: Unpack[WatchOptions]
    ) -> Trace[Floats] | Trace[torch.Tensor]:
        """Run a text through the model and return its activations by name.

        Args:
            text: text, or token ids; at most as many as the model's context.
            names: an activation, such as "blocks.3.attention.pattern", or a list of them; with wildcards, such as
                "*.residual_out". `clearhead.lens.names(gpt.config)` lists them. All of them by default.
            as_torch: return tensors on the model's device instead of NumPy arrays.
            options: `positions=` records the tokens at these positions only; `metric=`, a function from logits
                [1, T, V] to [1], adds its gradients with respect to the activations.

        Raises:
            InputError: if a name is unknown (the message lists near matches), or the text is empty or too long.
            TokenizerError: if the text cannot be encoded.
        """
        from clearhead import lens
        from clearhead.lens.watching import WatchOptions

        ids = self._ids(text)
        refuse_unknown("watch", options, WatchOptions.__annotations__)
        if self.tokenizer is not None:
            options.setdefault("tokens", lens.pieces(self.tokenizer, ids))
        if as_torch or options.get("metric") is not None:
            need_torch("watching activations as tensors, or with a metric,")
            return (lens.watch_tensors if as_torch else lens.watch)(self.model, ids, names, **options)
        return lens.watch(self._readable, ids, names, **options)

    def walk(self, text: Prompt, **options: Unpack[WalkOptions]) -> Walk:
        """Follow a text from its ids to the next token; the options are `temperature`, `top_k` and `seed`."""
        from clearhead.lens.walk_result import walk_of

        return walk_of(self._readable, text, self._ids(text), self.tokenizer, options)

    @overload
    def run_with_cache(
        self, texts: Prompts, names: Names = "*", *, as_torch: Literal[False] = ..., **options: Unpack[CacheOptions]
    ) -> ActivationCache[Floats]: ...

    @overload
    def run_with_cache(
        self, texts: Prompts, names: Names = "*", *, as_torch: Literal[True], **options: Unpack[CacheOptions]
    ) -> ActivationCache[torch.Tensor]: ...

    def run_with_cache(
        self, texts: Prompts, names: Names = "*", *, as_torch: bool = False, **options: Unpack[CacheOptions]
    ) -> ActivationCache[Floats] | ActivationCache[torch.Tensor]:
        """Run texts through the model, in batches, and return the activations of all of them by name.

        The PyTorch network computes them, in float32 unless it was loaded otherwise; the engine keeps no activations.
        Without PyTorch, NumPy computes them one text after another, and `positions` is the only option.

        Args:
            texts: texts, or their token ids; they may differ in length.
            names: as in `watch`; TransformerLens' names, such as "blocks.0.attn.hook_z", give its axis order.
            as_torch: return tensors on the model's device instead of NumPy arrays.
            options: as `clearhead.lens.run_with_cache` takes them: `positions`, `metric`, `edits`, `batch_size`.

        Returns:
            each activation as [texts, *the shape of the longest text], with 0 for padding.

        Raises:
            InputError: if a name is unknown (the message lists near matches), or a text is empty or too long.
            MissingPackageError: if an option needs PyTorch, and it is not installed.
            TokenizerError: if a text cannot be encoded.
        """
        from clearhead import lens
        from clearhead.lens.array_recording import record_arrays

        if isinstance(texts, str) or not isinstance(texts, Iterable):
            raise InputError(f"texts is {texts!r:.40}; a list of texts was expected.")
        ids = [self._ids(text) for text in texts]
        if not has_torch() and not as_torch and options.keys() <= {"positions"}:
            return record_arrays(self._networks.numpy, ids, names, options.get("positions"))
        need_torch("caching activations as tensors, or with a metric, edits or a batch size,")
        cache = lens.run_with_cache(self.model, ids, names, **options)
        return cache if as_torch else lens.numpy_cache(cache)

    @checks_names
    @contextmanager
    def edit(
        self,
        names: str | Iterable[str],
        change: Change,
        *,
        heads: int | Sequence[int] | None = None,
        positions: int | Sequence[int] | None = None,
    ) -> Iterator[GPT]:
        """Replace activations in `watch`, `generate` and `score` inside a `with`.

            with gpt.edit("blocks.3.attention.pattern", lambda pattern: pattern.tril(-1), heads=2):
                print(gpt.generate("Once upon a time"))

        Edits can be nested; of two edits of one activation, the inner one gets the result of the outer one. Other
        threads and asynchronous tasks that use the same `GPT` get their results without the edits.

        Args:
            names: the activations to replace, as in `watch`.
            change: a number, an array or a tensor, broadcast to the activation's shape; or a function that gets a copy
                of the activation, a tensor [*its shape] for one sequence, and returns the new one.
            heads: change these heads only.
            positions: change the tokens at these positions only.

        `clearhead.lens.edit` explains how edits act while text is generated token by token.

        Raises:
            InputError: if a name is unknown, a head or position is out of range, or the change does not fit.
        """
        need_torch("editing activations")
        from clearhead import lens
        from clearhead.lens.hooks import is_hooked
        from clearhead.model_weights import share_weights

        # Hooks on a copy reach no other thread; but those that the model has already must act too.
        shared = self._edited.get() or is_hooked(self.model)
        model = self.model if shared else share_weights(self.model)
        with lens.edit(model, names, change, heads=heads, positions=positions):
            outer = self._edited.get()
            self._edited.set(outer or _torch_runner(model))
            try:
                yield self
            finally:
                self._edited.set(outer)

    @checks_names
    def save(
        self, folder: str | os.PathLike[str], *, dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    ) -> None:
        """Save the model and its tokenizer as a Hugging Face folder, which `transformers` opens too.

        Args:
            folder: created if it does not exist; other files in it are left alone.
            dtype: how the weights are stored: float32, bfloat16 or float16.

        Raises:
            WeightsError, TokenizerError: if the folder cannot be written, or the dtype is unknown.
        """
        from clearhead.weights.model_folder import FolderContents, save_model

        contents = FolderContents(self.tokenizer, self.end_of_text, self.end_ids, self.generation_config)
        save_model(Path(folder), self.config, self._networks.tensors(), contents, dtype)

    @property
    def _readable(self) -> GPTModel | NumpyModel:
        """The network to watch."""
        return self.model if self._edited.get() else self._networks.readable

    def _ids(self, prompt: Prompt, special: bool = False) -> tuple[int, ...]:
        return prompt_ids(prompt, self.config, self._need_tokenizer, special)

    def _need_tokenizer(self, what: str) -> Tokenizer:
        if self.tokenizer is None:
            raise no_tokenizer(what, self.notes)
        return self.tokenizer


def _torch_runner(model: GPTModel) -> TorchRunner:
    from clearhead.inference.torch_runner import TorchRunner

    return TorchRunner(model.eval())
