"""`GPT`: a model with its tokenizer, the one object that a user holds.

import clearhead

gpt = clearhead.load()                      # the bundled model; or a folder, or a name on the hub
print(gpt.generate("Once upon a time"))
for piece in gpt.stream("Once upon a time"):
    print(piece, end="", flush=True)
print(gpt.score("The cat sat on the mat.").bits_per_byte)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack, overload

from clearhead.config import GPTConfig
from clearhead.errors import InputError, WeightsError
from clearhead.inference.generation import Completion, Request, Sample, generate, stream
from clearhead.inference.sampling import SamplingParams, is_whole
from clearhead.inference.scoring import Score, score

if TYPE_CHECKING:
    import torch

    from clearhead.inference.runner import ScoringRunner
    from clearhead.inference.torch_runner import TorchRunner
    from clearhead.lens import Trace
    from clearhead.lens.editing import Change
    from clearhead.model import GPTModel
    from clearhead.tokenizer import Tokenizer

BACKENDS = ("auto", "engine", "torch")
DTYPES = {"engine": ("float32", "bfloat16", "int8", "int4"), "torch": ("float32", "bfloat16", "float16")}
"""The types of weights in memory that each backend has."""

TEMPERATURE = 0.8
"""How `GPT` samples unless it is told: a little below the model's own distribution ..."""
TOP_P = 0.95
"""... and without its tail. A small model puts much of its doubt there, and one odd token spoils a story."""

Prompt = str | Sequence[int]
"""Text, or the ids of its tokens."""


class Options(TypedDict, total=False):
    """The keyword arguments of `GPT.generate` and `GPT.stream`; `GPT.request` explains each."""

    max_new_tokens: int
    temperature: float
    top_k: int | None
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float] | None
    seed: int | None
    stop: str | Sequence[str]
    stop_ids: Sequence[int]
    n: int
    logprobs: int | None
    stop_at_end_of_text: bool
    strict_context: bool


@dataclass(frozen=True, slots=True)
class Generation:
    """What was generated from one prompt; as a string it is the text of the first sample.

    Attributes:
        prompt: as it was given.
        prompt_ids: its tokens.
        samples: one, or the `n` that were asked for.
    """

    prompt: Prompt
    prompt_ids: tuple[int, ...]
    samples: tuple[Sample, ...]

    def __str__(self) -> str:
        sample = self.samples[0]
        return " ".join(map(str, sample.ids)) if sample.text is None else sample.text

    @property
    def text(self) -> str | None:
        """The first sample's text, without the prompt; None without a tokenizer."""
        return self.samples[0].text

    @property
    def texts(self) -> tuple[str | None, ...]:
        """The text of each sample."""
        return tuple(sample.text for sample in self.samples)

    @property
    def ids(self) -> tuple[int, ...]:
        """The first sample's tokens."""
        return self.samples[0].ids

    @property
    def seed(self) -> int:
        """With this seed and the same arguments, the same texts come again."""
        return self.samples[0].seed

    @property
    def notices(self) -> tuple[str, ...]:
        """What the user should know and did not ask for, such as that the prompt was cut; each sentence once."""
        return tuple(dict.fromkeys(notice for sample in self.samples for notice in sample.notices))


class TextStream(Iterator[str]):
    """Pieces of text as they are generated, never half a character and never part of a stop string.

    Stopping early, by `close` (or `with`) or by dropping it, frees the memory that generation uses.

    Attributes:
        notices: what the user should know, filled as it happens.
        finish_reason: "stop" or "length" when it is over; None before.
        seed: with this seed and the same arguments, the same text comes again.
    """

    def __init__(self, gpt: GPT, request: Request) -> None:
        assert request.params.seed is not None  # a request draws one
        self.seed: int = request.params.seed
        self.notices: list[str] = []
        self.finish_reason: str | None = None
        self._events = stream(gpt.runner, gpt.tokenizer, [request])

    def __next__(self) -> str:
        for _, _, event in self._events:
            self.notices.extend(event.notices)
            self.finish_reason = event.finish_reason
            if event.text:
                return event.text
        raise StopIteration

    def close(self) -> None:
        """Ends it now; nothing comes any more."""
        self._events.close()

    def __enter__(self) -> TextStream:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class GPT:
    """A GPT-2, its tokenizer, and what runs it.

    Args:
        model: the network; it is put into evaluation mode, so that dropout is off. It may be a function that makes
            the network when it is first asked for; then `runner` is needed.
        tokenizer: turns text into ids and back; without one, prompts are given as ids and results come so.
        runner: what generation and scores run through; PyTorch on the model's device where it is None.
        notes: as the attribute.

    Attributes:
        tokenizer: as given.
        runner: what generation runs through.
        notes: sentences on what had to be decided when it was loaded.

    Raises:
        WeightsError: where the tokenizer has ids that the model does not know.
    """

    def __init__(
        self,
        model: GPTModel | Callable[[], GPTModel],
        tokenizer: Tokenizer | None = None,
        *,
        runner: ScoringRunner | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        self.runner = _torch_runner(model) if runner is None else runner
        _check_vocabulary(self.runner.config, tokenizer)
        self._model = model
        self.tokenizer = tokenizer
        self.notes = tuple(notes)

    @property
    def model(self) -> GPTModel:
        """The network, a `torch.nn.Module`.

        Where the compiled engine runs the model, the network is made now, from the same weights in float32. What is
        changed in it does not reach the engine: to train a model and generate with it, load it with backend="torch".
        """
        from clearhead.model import GPTModel

        if not isinstance(self._model, GPTModel):
            self._model = self._model().eval()
        return self._model

    @property
    def _runs_on_torch(self) -> bool:
        from clearhead.inference.torch_runner import TorchRunner

        return isinstance(self.runner, TorchRunner)

    @property
    def config(self) -> GPTConfig:
        """The shape of the model."""
        return self.runner.config

    def __repr__(self) -> str:
        shape = self.config
        return (
            f"GPT(n_layers={shape.n_layers}, n_heads={shape.n_heads}, emb_dim={shape.emb_dim}, "
            f"context_length={shape.context_length}, vocab_size={shape.vocab_size})"
        )

    @overload
    def generate(self, prompt: Prompt, **options: Unpack[Options]) -> Generation: ...  # type: ignore[overload-overlap]

    @overload
    def generate(self, prompt: Sequence[Prompt], **options: Unpack[Options]) -> list[Generation]: ...

    def generate(self, prompt: Prompt | Sequence[Prompt], **options: Unpack[Options]) -> Generation | list[Generation]:
        """Goes on from a prompt, or from several at once.

        Args:
            prompt: text, or token ids; or a list of prompts, which may differ in length and which run together.
            options: keyword arguments as `request` explains them; a seed is used for each prompt.

        Returns:
            a `Generation`, whose `str` is the text; a list of them for a list of prompts.

        Raises:
            InputError: where an argument is out of range; nothing has run then.
            TokenizerError: where a prompt cannot be encoded.
            WeightsError: where the model's logits are not numbers.
        """
        prompts = [prompt] if _is_one(prompt) else list(prompt)
        requests = [self.request(one, **options) for one in prompts]  # type: ignore[arg-type]
        completions = generate(self.runner, self.tokenizer, requests)
        found = [_generation(*pair) for pair in zip(prompts, completions, strict=True)]  # type: ignore[arg-type]
        return found[0] if _is_one(prompt) else found

    def stream(self, prompt: Prompt, **options: Unpack[Options]) -> TextStream:
        """Goes on from a prompt and gives the text piece by piece, as it is made.

        Args:
            prompt: text, or token ids.
            options: keyword arguments as `request` explains them, but `n`.

        Raises:
            InputError: where an argument is out of range, or there is no tokenizer to make text.
            TokenizerError: where the prompt cannot be encoded.
        """
        self._need_tokenizer("a stream of text")
        request = self.request(prompt, **options)
        if request.n != 1:
            raise InputError(f"n is {request.n}; a stream has one text: use generate for several.")
        return TextStream(self, request)

    def request(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int = 128,
        temperature: float = TEMPERATURE,
        top_k: int | None = None,
        top_p: float = TOP_P,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        logit_bias: Mapping[int, float] | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
        stop_ids: Sequence[int] = (),
        n: int = 1,
        logprobs: int | None = None,
        stop_at_end_of_text: bool = True,
        strict_context: bool = False,
    ) -> Request:
        """The `generation.Request` that these arguments make, for whoever drives generation.

        Args:
            prompt: text, or token ids.
            max_new_tokens: where to end at the latest; a token is about four letters of English.
            temperature: 0 always takes the most likely token; 1 draws from the model's own distribution.
            top_k: only the k most likely tokens; None for no limit.
            top_p: only the most likely tokens that together reach this probability; 1 for no limit.
            min_p: only tokens at least this share as likely as the most likely one; 0 for no limit.
            repetition_penalty: above 1, makes what prompt or text already hold less likely.
            presence_penalty: taken from the logit of each token that the text holds.
            frequency_penalty: taken from it once for each time that the text holds it.
            logit_bias: added to the logits of these ids; -inf forbids one.
            seed: one seed gives one text; None draws a fresh one, which the result reports.
            stop: a string, or several, before the first of which the text ends.
            stop_ids: tokens that end the text.
            n: how many texts to draw.
            logprobs: 0 for the log-probabilities of the chosen tokens, N for the N most likely ones too.
            stop_at_end_of_text: whether the model's own end-of-text token ends the text.
            strict_context: whether it is an error that prompt and new tokens do not fit the model's context. If
                not, the oldest tokens are let go of, and a notice in the result says so.

        Raises:
            InputError: where an argument is out of range, or text comes without a tokenizer.
            TokenizerError: where the prompt cannot be encoded.
        """
        params = SamplingParams(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            logit_bias=logit_bias or {},
            seed=seed,
        )
        return Request(
            prompt_ids=self._ids(prompt),
            params=params,
            max_new_tokens=max_new_tokens,
            stop=stop,
            stop_ids=stop_ids,
            n=n,
            logprobs=logprobs,
            stop_at_end_of_text=stop_at_end_of_text,
            strict_context=strict_context,
        )

    def score(self, text: Prompt, *, after_end_of_text: bool = True, stride: int | None = None) -> Score:
        """How likely the model holds a text, token by token.

        Args:
            text: text, or token ids.
            after_end_of_text: whether to put the end-of-text token before it, as in training, so that the first
                token has a probability too. Without one in the vocabulary, the first token is not scored.
            stride: for a text longer than the context, how many tokens each further window scores; half the
                context where it is None. A smaller stride gives tokens more context and takes longer.

        Raises:
            InputError: where there is no token to score, or an argument is out of range.
            TokenizerError: where the text cannot be encoded.
        """
        start = self.tokenizer.end_of_text if self.tokenizer is not None and after_end_of_text else None
        return score(
            self.runner.logits,
            self._ids(text),
            context_length=self.config.context_length,
            start=start,
            stride=stride,
            tokenizer=self.tokenizer,
        )

    def watch(
        self,
        text: Prompt,
        names: str | Iterable[str] = "*",
        *,
        positions: int | Sequence[int] | None = None,
        as_torch: bool = False,
    ) -> Trace:
        """Runs a text through the model and returns the values inside it, by their names.

        Args:
            text: text, or token ids; at most as many as the model's context.
            names: which values, such as "blocks.3.attention.pattern", or a list of names; with wildcards, such as
                "*.residual_out". `clearhead.lens.names(gpt.config)` lists them. All of them where it is left out.
            positions: keep what belongs to the tokens at these places only, counted from 0.
            as_torch: whether to return tensors on the model's device, and not NumPy arrays.

        Raises:
            InputError: for an unknown name (near matches are listed) or a text that is empty or too long.
            TokenizerError: where the text cannot be encoded.
        """
        from clearhead import lens

        ids = self._ids(text)
        tokens = None if self.tokenizer is None else lens.pieces(self.tokenizer, ids)
        return lens.watch(self.model, ids, names, positions=positions, tokens=tokens, as_torch=as_torch)

    @contextmanager
    def edit(
        self,
        names: str | Iterable[str],
        change: Change,
        *,
        heads: int | Sequence[int] | None = None,
        positions: int | Sequence[int] | None = None,
    ) -> Iterator[GPT]:
        """Inside a `with`, `watch`, `generate` and `score` go on with a changed value.

            with gpt.edit("blocks.3.attention.pattern", lambda pattern: pattern.tril(-1), heads=2):
                print(gpt.generate("Once upon a time"))

        Several edits stand one in another; of two edits of one value, the inner one gets what the outer one made.

        Args:
            names: the value or values to change, as `watch` takes them.
            change: a number, an array or a tensor, broadcast to the value's shape; or a function that gets a copy of
                the value, a tensor [*its shape] for one sequence, and returns the new one.
            heads: change these heads only.
            positions: change what belongs to the tokens at these places only, counted from 0.

        `clearhead.lens.edit` says how edits act while text is generated token by token.

        Raises:
            InputError: for an unknown name, a head or position out of range, or a change that does not fit.
        """
        from clearhead import lens

        kept = self.runner
        with lens.edit(self.model, names, change, heads=heads, positions=positions):
            if not self._runs_on_torch:  # compiled code cannot be changed on its way
                self.runner = _torch_runner(self.model)
            try:
                yield self
            finally:
                self.runner = kept

    def save(self, folder: str | os.PathLike[str], *, dtype: str = "float32") -> None:
        """Writes the model and its tokenizer as a Hugging Face folder, which `transformers` opens too.

        Args:
            folder: made where it is not there; other files in it stay.
            dtype: how the weights are stored: float32, bfloat16 or float16.

        Raises:
            WeightsError, TokenizerError: where the folder cannot be written, or the dtype is unknown.
        """
        from clearhead import weights
        from clearhead.inference.torch_weights import ModelTensors

        end = None if self.tokenizer is None else self.tokenizer.end_of_text
        # Written even where there is none: transformers would take 50256, beyond the end of a small vocabulary.
        special = {"bos_token_id": end, "eos_token_id": end}
        weights.save_huggingface(Path(folder), self.config, ModelTensors(self.model), dtype=dtype, extra_config=special)
        if self.tokenizer is not None:
            self.tokenizer.save(Path(folder))

    def _ids(self, prompt: Prompt) -> Sequence[int]:
        if not isinstance(prompt, str):
            return prompt
        return self._need_tokenizer("text").encode(prompt)

    def _need_tokenizer(self, what: str) -> Tokenizer:
        if self.tokenizer is None:
            raise InputError(
                f"this model has no tokenizer, so there is no {what}; give token ids to generate, "
                "or put the tokenizer's files (tokenizer.json) beside the weights."
            )
        return self.tokenizer


def load(
    source: str | os.PathLike[str] | None = None,
    *,
    backend: str = "auto",
    device: str = "cpu",
    dtype: str = "float32",
    threads: int | None = None,
    revision: str | None = None,
) -> GPT:
    """Opens a model: its weights, its config, its tokenizer.

    Args:
        source: a folder, a file of weights, or a name on the hub; None for the model that comes with Clearhead.
        backend: what runs it: "engine", compiled code for the CPU; "torch"; or "auto": the engine on a CPU where it
            has the dtype, and PyTorch elsewhere.
        device: where it runs, as PyTorch names it: "cpu", "cuda", "cuda:1", "mps".
        dtype: the type of the weights in memory: float32 and bfloat16; for the engine also int8 and int4, for torch
            also float16.
        threads: how many threads the engine uses; as many as the cores that the process may use, or as
            OMP_NUM_THREADS says, where it is None. PyTorch has its own setting, `torch.set_num_threads`.
        revision: of a model on the hub, its branch, tag or commit.

    Raises:
        InputError: where backend, device or dtype is not to be had here, or the memory does not suffice.
        WeightsError: where the weights are missing, broken or do not fit; HubError where they cannot be fetched.
        ConfigError, TokenizerError: where the files beside them are broken.
    """
    chosen = _backend(backend, device, dtype)
    place = find_device(device) if chosen == "torch" else None
    from clearhead import weights

    opened = weights.open(bundled() if source is None else source, revision=revision)
    tokenizer = opened.tokenizer()
    _check_vocabulary(opened.config, tokenizer)
    if place is not None:
        return GPT(_model(opened, place, dtype), tokenizer, notes=opened.notes)
    from clearhead.engine.store import open_runner

    runner = open_runner(opened, dtype, threads)
    return GPT(lambda: _model(opened, find_device("cpu"), "float32"), tokenizer, runner=runner, notes=opened.notes)


def _backend(backend: str, device: str, dtype: str) -> str:
    """The backend that is meant.

    Raises:
        InputError: where there is none of that name, or it has no such device or dtype.
    """
    if backend not in BACKENDS:
        raise InputError(f"backend is {backend!r}; the backends are {', '.join(BACKENDS)}.")
    every = list(dict.fromkeys(name for names in DTYPES.values() for name in names))
    if dtype not in every:
        raise InputError(f"dtype is {dtype!r}; the types of weights in memory are {', '.join(every)}.")
    if backend == "auto":
        backend = "engine" if device == "cpu" and dtype in DTYPES["engine"] else "torch"
    if backend == "engine" and device != "cpu":
        raise InputError(f"device is {device!r}, but the engine runs on the CPU; give backend 'torch' or device 'cpu'.")
    if dtype not in DTYPES[backend]:
        where = "" if device == "cpu" else f" on {device}"
        raise InputError(
            f"dtype is {dtype!r}, which the backend {backend}{where} does not have; it has "
            f"{', '.join(DTYPES[backend])}."
        )
    return backend


def bundled() -> Path:
    """The folder of the model that comes with Clearhead.

    Raises:
        WeightsError: where this installation has none.
    """
    folder = Path(__file__).parent / "bundled"
    if not (folder / "config.json").is_file():
        raise WeightsError(
            "this installation of Clearhead has no bundled model; "
            "give a model's folder or its name on the hub, such as 'gpt2'."
        )
    return folder


def _model(opened: Any, device: torch.device, dtype: str) -> GPTModel:
    import torch

    from clearhead.inference.torch_weights import load_into, without_memory
    from clearhead.model import GPTModel

    with without_memory():
        model = GPTModel(opened.config)
    load_into(model, opened)
    return model.to(device=device, dtype=getattr(torch, dtype))


def find_device(name: str) -> torch.device:
    """The device of this name.

    Raises:
        InputError: where it is not to be had here.
    """
    import torch

    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise InputError(f"device is {name!r}, which cannot be used here ({reason}); give 'cpu'.") from None
    return device


def _torch_runner(model: Any) -> TorchRunner:
    from clearhead.inference.torch_runner import TorchRunner

    return TorchRunner(model.eval())


def _check_vocabulary(config: GPTConfig, tokenizer: Tokenizer | None) -> None:
    if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
        raise WeightsError(
            f"the tokenizer has ids up to {tokenizer.vocab_size - 1:,}, but the model has {config.vocab_size:,} rows "
            "for tokens; the two belong to different models."
        )


def _is_one(prompt: Prompt | Sequence[Prompt]) -> bool:
    """Whether this is one prompt: text, or a sequence of ids."""
    return isinstance(prompt, str) or (len(prompt) > 0 and is_whole(prompt[0]))


def _generation(prompt: Prompt, completion: Completion) -> Generation:
    return Generation(prompt, completion.prompt_ids, completion.samples)
