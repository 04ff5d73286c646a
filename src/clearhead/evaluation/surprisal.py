"""Surprisal of the tokens, words or regions of many texts, as rows of a table.

The surprisal of a word is the sum of its tokens'. If tokens carry the space before a word, as GPT-2's do, this sum
contains the probability of that space and leaves out that of the space after the word. The corrected surprisal moves
it (Pimentel and Meister 2024, arXiv 2406.14561; Oh and Schuler 2024, arXiv 2406.10851):

    corrected(w) = sum of surprisals - b(before w) + b(after w)

where b is the surprisal, at that position, of any token that begins with white space, or of the end of the text. It is
subtracted if w begins with such a token, and added if the next word does or the text ends. For a first word without a
space, the surprisal of any token that does not begin with white space is subtracted. Between two words the terms are
equal, so the sum over a text changes at its ends only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from clearhead.errors import InputError
from clearhead.evaluation.words import TextSpan, assign_tokens, check_spans, find_words, starts_with_space, token_ends
from clearhead.gpt import GPT
from clearhead.inference.scoring import ScoreOptions, ScoreRequest, SequenceScores, score_sequences
from clearhead.tokenizer import Tokenizer

BITS = 1 / math.log(2)  # in a nat
Row = dict[str, Any]
"""One row of a table: a value for each column."""


@dataclass(frozen=True, slots=True)
class InputText:
    """A text of an input file.

    Attributes:
        id: names it in the table.
        text: what is scored.
        context: text before it, which is not scored.
        where: its place in the input, for messages.
    """

    id: str
    text: str
    context: str = ""
    where: str = ""


@dataclass(frozen=True, slots=True)
class SurprisalOptions:
    """What a table of surprisal contains.

    Attributes:
        by: one row for each token, word, or region of `regions`.
        words: how words are found, see `words.find_words`.
        regions: by text id, for `by="region"`.
        top: how many of the most likely tokens to list.
        stride: how many tokens each window after the first scores; None for half the context.
        bos: put the tokenizer's end-of-text token before each text, if it has one.
        correction: "paper" as above; "minicons" as the package of that name computes it: with tokens that begin with a
            space only, without the end of the text among them, and without a term before the first word.
    """

    by: Literal["token", "word", "region"] = "token"
    words: str = "whitespace"
    regions: Mapping[str, Sequence[TextSpan]] = field(default_factory=dict)
    top: int = 0
    stride: int | None = None
    bos: bool = True
    correction: Literal["paper", "minicons"] = "paper"


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A text with its tokens."""

    given: InputText
    context: list[int]
    ids: list[int]


class SurprisalTable:
    """Compute rows of surprisal with one model.

    Args:
        gpt: the model, with its tokenizer.
        options: what the rows contain.

    Raises:
        InputError: if the model has no tokenizer, or an option is out of range.
    """

    def __init__(self, gpt: GPT, options: SurprisalOptions = SurprisalOptions()) -> None:
        if gpt.tokenizer is None:
            raise InputError(
                "this model has no tokenizer, so it cannot score text; put its files (tokenizer.json) next to "
                "the weights."
            )
        self.gpt, self.options = gpt, options
        self.tokenizer: Tokenizer = gpt.tokenizer
        self.bos = self.tokenizer.end_of_text if options.bos else None
        self._boundaries = self._boundary_groups() if options.by != "token" else None

    def rows(self, texts: Iterable[InputText]) -> Iterator[list[Row]]:
        """Yield the rows of each text, in order.

        Raises:
            InputError: if a text is empty, or its regions do not fit it.
            TokenizerError: if a text cannot be encoded.
        """
        waiting: list[_Prepared] = []

        def requests() -> Iterator[ScoreRequest]:
            for text in texts:
                prepared = self._prepare(text)
                waiting.append(prepared)
                ids = [*prepared.context, *prepared.ids]
                # One token more, whose own score is dropped: its position has the distribution after the text.
                after = [] if self._boundaries is None else [self.bos or 0]
                yield ScoreRequest([*ids, *after], max(1, len(prepared.context)))

        vocab = min(self.gpt.config.vocab_size, self.tokenizer.vocab_size)
        settings = ScoreOptions(self.options.top, vocab, self.options.stride, groups=self._boundaries)
        for scores in score_sequences(self.gpt.runner, requests(), settings):
            prepared = waiting.pop(0)
            if self.options.by == "token":
                yield self._token_rows(prepared, scores)
            else:
                yield self._span_rows(prepared, scores)

    def metadata(self) -> dict[str, Any]:
        """Return what decides the numbers, besides the model's own hash."""
        options = self.options
        stride = options.stride or max(1, self.gpt.config.context_length // 2)
        found: dict[str, Any] = {
            "bos": self.bos,
            "bos_token": None if self.bos is None else self.tokenizer.token_name(self.bos),
            "by": options.by,
            "context_length": self.gpt.config.context_length,
            "stride": stride,
            "tokenizer_sha256": self.tokenizer.sha256(),
            "top": options.top,
            "surprisal": "bits",
        }
        if options.by != "region":
            found["words"] = options.words
        if options.by != "token":
            found["correction"] = options.correction if self._boundaries is not None else None
        return found

    def _prepare(self, text: InputText) -> _Prepared:
        if not text.text:
            raise InputError(f"{text.where or f'text {text.id}'} is empty; remove it or give it some text.")
        before = [] if self.bos is None else [self.bos]
        if not text.context:
            ids = self.tokenizer.encode(text.text)
            return _Prepared(text, before, ids)
        context, whole = self.tokenizer.encode(text.context), self.tokenizer.encode(text.context + text.text)
        if whole[: len(context)] != context:
            # The text's first token would contain the end of the context: then the two are encoded apart.
            whole = [*context, *self.tokenizer.encode(text.text)]
        return _Prepared(text, [*before, *context], whole[len(context) :])

    def _boundary_groups(self) -> npt.NDArray[np.bool_] | None:
        """Return the tokens after which a word ends, and those that can begin a text without a space: bool [2, V]."""
        space = starts_with_space(self.tokenizer, only_blanks=self.options.correction == "minicons")
        if space is None:
            return None
        groups = np.zeros((2, self.gpt.config.vocab_size), np.bool_)
        groups[0, : len(space)] = space
        groups[1, : len(space)] = ~space
        end = self.tokenizer.end_of_text
        groups[:, list(self.tokenizer.special_tokens.values())] = False
        if end is not None:
            groups[:, end] = self.options.correction == "paper"
        return groups

    def _token_rows(self, prepared: _Prepared, found: SequenceScores) -> list[Row]:
        text, ids, scores = prepared.given.text, prepared.ids, found.scores
        ends = token_ends(text, ids, self.tokenizer)
        words = find_words(text, self.options.words)
        owners = assign_tokens(text, ends, words)
        unscored = len(ids) - len(scores.logprobs)
        rows = []
        for index, (token, end, word) in enumerate(zip(ids, ends, owners, strict=True)):
            start = ends[index - 1] if index else 0
            at = index - unscored
            nats = -float(scores.logprobs[at]) if at >= 0 else None
            rows.append(
                {
                    "text_id": prepared.given.id,
                    "token_index": index,
                    "token_id": token,
                    "token": text[start:end],
                    "bytes": self.tokenizer.token_bytes(token).hex(),
                    "char_start": start,
                    "char_end": end,
                    "word_index": word if word >= 0 else None,
                    "word": text[words[word].start : words[word].end] if word >= 0 else None,
                    "surprisal": None if nats is None else nats * BITS,
                    "surprisal_nats": nats,
                    "entropy": float(scores.entropies[at]) * BITS if at >= 0 else None,
                    "rank": int(scores.ranks[at]) if at >= 0 else None,
                    **self._top_columns(found, at),
                    "context_length": int(found.contexts[at]) if at >= 0 else 0,
                    "window": int(found.windows[at]) if at >= 0 else 0,
                    "bos": self.bos,
                }
            )
        return rows

    def _top_columns(self, found: SequenceScores, at: int) -> Row:
        columns: Row = {}
        for place in range(self.options.top):
            known = at >= 0
            token = int(found.scores.top_ids[at, place]) if known else None
            columns[f"top_{place + 1}_id"] = token
            columns[f"top_{place + 1}"] = None if token is None else self.tokenizer.decode([token])
            columns[f"top_{place + 1}_surprisal"] = (
                -float(found.scores.top_logprobs[at, place]) * BITS if known else None
            )
        return columns

    def _span_rows(self, prepared: _Prepared, found: SequenceScores) -> list[Row]:
        text, ids = prepared.given.text, prepared.ids
        ends = token_ends(text, ids, self.tokenizer)
        if self.options.by == "word":
            spans = find_words(text, self.options.words)
        else:
            given = prepared.given
            spans = check_spans(self.options.regions.get(given.id, ()), text, given.id)
        owners = np.array(assign_tokens(text, ends, spans), np.int64)
        # One row fewer than tokens if the first has no score; with boundaries, one more for what follows the text.
        missing = len(ids) + (self._boundaries is not None) - len(found.scores.logprobs)
        nats = np.concatenate([np.full(missing, np.nan), -found.scores.logprobs])[: len(ids)]
        corrections = self._corrections(prepared, found, missing)
        rows = []
        for index, span in enumerate(spans):
            tokens = np.flatnonzero(owners == index)
            value = float(nats[tokens].sum()) if len(tokens) else math.nan
            corrected = value
            if corrections is not None and len(tokens):
                corrected += corrections[tokens[-1] + 1, 0] - corrections[tokens[0], 1]
            rows.append(
                {
                    "text_id": prepared.given.id,
                    **({"region": span.name} if self.options.by == "region" else {}),
                    f"{self.options.by}_index": index,
                    **({} if self.options.by == "region" else {"word": text[span.start : span.end]}),
                    **({"text": text[span.start : span.end]} if self.options.by == "region" else {}),
                    "char_start": span.start,
                    "char_end": span.end,
                    "n_tokens": len(tokens),
                    "surprisal": _finite(value * BITS),
                    "surprisal_nats": _finite(value),
                    "corrected": None if corrections is None else _finite(corrected * BITS),
                    "corrected_nats": None if corrections is None else _finite(corrected),
                    "bos": self.bos,
                }
            )
        return rows

    def _corrections(self, prepared: _Prepared, found: SequenceScores, missing: int) -> npt.NDArray[np.float64] | None:
        """Return what is added to a word that ends before each position, and subtracted from one that begins there.

        Returns:
            float64 [tokens + 1, 2] in nats, or None if the vocabulary does not mark the beginnings of words.
        """
        if self._boundaries is None:
            return None
        n = len(prepared.ids)
        surprisals = np.concatenate([np.zeros((missing, 2)), -found.scores.groups])  # [tokens + 1, 2]
        spaced = np.array([bool(self._boundaries[0, token]) for token in prepared.ids])
        corrections = np.zeros((n + 1, 2))
        corrections[:n][spaced] = surprisals[:n, :1][spaced]
        corrections[n] = surprisals[n, 0]  # the text ends
        if not prepared.given.context and n and missing == 0:
            if self.options.correction == "minicons":
                corrections[0, 1] = 0.0
            elif not spaced[0]:
                corrections[0, 1] = surprisals[0, 1]
        return corrections


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
