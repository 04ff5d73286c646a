"""Clearhead as a model of EleutherAI's lm-evaluation-harness.

    lm_eval --model clearhead --model_args pretrained=DIR,dtype=int8 --tasks lambada_openai

The class is registered when this module is imported: by an entry point of the group `lm_eval.models` in versions of the
harness that look for one, by `import clearhead.evaluation.lm_eval` in others. For their command line,
`python -m clearhead.evaluation.lm_eval` takes the arguments of `lm_eval`.

Requests are encoded, truncated and cut into windows as the harness's own `hf` model does it: nothing is put before a
context, an empty context is the end-of-text token, and `<|endoftext|>` in a text is that token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model

from clearhead.errors import InputError
from clearhead.gpt import GPT
from clearhead.inference.scoring import ScoreOptions, ScoreRequest, score_sequences
from clearhead.loading import load
from clearhead.utils.arguments import Backend, Device, Dtype
from clearhead.utils.progress import Progress

_MAX_GENERATED = 256  # tokens, as lm-eval's hf model generates if a task does not say


@register_model("clearhead")
class ClearheadLM(TemplateLM):  # type: ignore[misc]
    """A model for `lm_eval`.

    Args:
        pretrained: a folder, a file of weights, or a name on the hub; the bundled model by default.
        dtype: of the weights in memory, as `clearhead.load`.
        backend, device, threads, revision: as `clearhead.load`.
        batch_size: how many sequences run together; it changes the speed, not the numbers. "auto" is the default.
        max_length: use a shorter context than the model's.
        max_gen_toks: how many tokens to generate if a task does not say.
        max_batch_size: ignored; the harness passes it.
    """

    def __init__(
        self,
        pretrained: str | GPT | None = None,
        *,
        dtype: Dtype = "float32",
        backend: Backend = "auto",
        device: Device | None = None,
        threads: int | None = None,
        revision: str | None = None,
        batch_size: int | str | None = None,
        max_length: int | None = None,
        max_gen_toks: int = _MAX_GENERATED,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        self.gpt = (
            pretrained
            if isinstance(pretrained, GPT)
            else load(
                pretrained, dtype=dtype, backend=backend, device=device or "cpu", threads=threads, revision=revision
            )
        )
        if self.gpt.tokenizer is None:
            raise InputError("this model has no tokenizer; put its files (tokenizer.json) next to the weights.")
        self._tokenizer = self.gpt.tokenizer
        if self._tokenizer.end_of_text is None:
            raise InputError("this model's tokenizer has no end-of-text token, which lm-eval needs as empty context.")
        self._end_of_text = self._tokenizer.end_of_text
        self._name = "bundled" if pretrained is None else str(pretrained)
        self._batch_size = None if batch_size is None or str(batch_size).startswith("auto") else int(batch_size)
        self.max_length = min(max_length or self.gpt.config.context_length, self.gpt.config.context_length)
        self.max_gen_toks = max_gen_toks

    @property
    def eot_token_id(self) -> int:
        """The end-of-text token, which is also the empty context."""
        return self._end_of_text

    @property
    def tokenizer_name(self) -> str:
        """The model's name, for the harness's caches."""
        return self._name

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Return the ids of a text."""
        return self._tokenizer.encode(string, special=True)

    def tok_decode(self, tokens: Sequence[int] | int, **_: Any) -> str:
        """Return the text of ids."""
        return self._tokenizer.decode([tokens] if isinstance(tokens, int) else tokens)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of each text, in disjoint windows of the context length."""
        windows: list[tuple[None, list[int], list[int]]] = []
        counts = []
        for request in requests:
            (text,) = request.args
            rolling = utils.get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            disjoint = [(None, *utils.make_disjoint_window(window)) for window in rolling]
            windows += disjoint
            counts.append(len(disjoint))
        scores = iter(self._loglikelihood_tokens(windows, disable_tqdm=disable_tqdm))
        totals = [sum(next(scores)[0] for _ in range(count)) for count in counts]
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        """Return the log-likelihood of each continuation, and whether greedy generation would write it."""

        def sequences() -> Iterator[ScoreRequest]:
            for _, context, continuation in requests:
                if len(continuation) > self.max_length:
                    raise InputError(
                        f"a continuation has {len(continuation):,} tokens, more than the context's {self.max_length:,}."
                    )
                ids = [*context, *continuation][-(self.max_length + 1) :]
                yield ScoreRequest(ids, len(ids) - len(continuation))

        options = ScoreOptions() if self._batch_size is None else ScoreOptions(batch_size=self._batch_size)
        found = []
        with Progress("lm-eval: scoring", len(requests)) as progress:
            for request, one in zip(requests, score_sequences(self.gpt.runner, sequences(), options), strict=True):
                answer = float(one.scores.logprobs.sum()), bool((one.scores.ranks == 0).all())
                found.append(answer)
                if request[0] is not None:
                    self.cache_hook.add_partial("loglikelihood", request[0], answer)
                progress.advance(1)
        return found

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return the text that continues each context, up to a stop string."""
        found = []
        with Progress("lm-eval: generating", len(requests)) as progress:
            for request in requests:
                context, settings = request.args
                text = self._generate(context, dict(settings))
                found.append(text)
                self.cache_hook.add_partial("generate_until", request.args, text)
                progress.advance(1)
        return found

    def _generate(self, context: str, settings: dict[str, Any]) -> str:
        stop = settings.get("until") or []
        length = int(settings.get("max_gen_toks") or settings.get("max_new_tokens") or self.max_gen_toks)
        room = self.max_length - length
        if room < 1:
            raise InputError(
                f"max_gen_toks is {length:,}, which leaves no room in the context of {self.max_length:,} tokens."
            )
        temperature = float(settings.get("temperature") or 0.0)
        sampled = bool(settings.get("do_sample", temperature > 0)) and temperature > 0
        text = self.gpt.generate(
            self.tok_encode(context)[-room:] or [self.eot_token_id],
            max_new_tokens=length,
            stop=[stop] if isinstance(stop, str) else [one for one in stop if one],
            temperature=temperature if sampled else 0.0,
            top_p=float(settings.get("top_p") or 1.0),
            top_k=settings.get("top_k"),
        ).text
        assert text is not None  # there is a tokenizer
        return text


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
