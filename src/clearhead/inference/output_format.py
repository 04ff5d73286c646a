"""Texts that must match a JSON schema, a regular expression or a list of choices.

`llguidance` says, after each token, which tokens may follow so that the text can still match; the others are not
chosen. A text that ends by itself matches; one that is cut at `max_new_tokens` is the beginning of one that does.
"""

from __future__ import annotations

import json
import re
import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from clearhead.errors import InputError
from clearhead.inference.filters import Floats

if TYPE_CHECKING:
    from clearhead.tokenizer import Tokenizer

_LONGEST_GRAMMAR = 100_000
_KEPT_FORMATS = 16
_LONGEST_ERROR = 300


@dataclass(frozen=True, slots=True)
class OutputFormat:
    """What a text must match.

    Attributes:
        kind: whether `pattern` is a JSON schema (as JSON) or a regular expression.
        pattern: the schema or the expression.
    """

    kind: Literal["json_schema", "regex"]
    pattern: str

    @classmethod
    def json_schema(cls, schema: object) -> OutputFormat:
        """Return the format of JSON that a schema describes.

        Raises:
            InputError: if it is not JSON itself, or is too long.
        """
        try:
            text = json.dumps(schema, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(f"the JSON schema is not JSON ({error}).") from None
        return cls._checked("json_schema", text)

    @classmethod
    def regex(cls, pattern: str) -> OutputFormat:
        """Return the format that a regular expression describes, as a whole.

        Raises:
            InputError: if it is too long.
        """
        return cls._checked("regex", pattern)

    @classmethod
    def choice(cls, choices: Sequence[str]) -> OutputFormat:
        """Return the format of one of several texts.

        Raises:
            InputError: if there is none, or one is empty.
        """
        if not choices or not all(choices):
            raise InputError("choice needs at least one text, and none may be empty.")
        return cls._checked("regex", "|".join(re.escape(one) for one in choices))

    @classmethod
    def _checked(cls, kind: Literal["json_schema", "regex"], pattern: str) -> OutputFormat:
        if len(pattern) > _LONGEST_GRAMMAR:
            raise InputError(f"the output format has {len(pattern):,} characters; give at most {_LONGEST_GRAMMAR:,}.")
        return cls(kind, pattern)


class FormatMatcher:
    """Which tokens may follow, for one text.

    Args:
        format: what the text must match.
        tokenizer: of the model.

    Raises:
        InputError: if the format cannot be compiled, or `llguidance` is not installed.
    """

    def __init__(self, format: OutputFormat, tokenizer: Tokenizer) -> None:
        compiled = _compiler(tokenizer)
        try:
            self._matcher = compiled.matcher(format)
        except (ValueError, RuntimeError) as error:
            raise InputError(f"the output format cannot be used: {_one_line(error)}") from None
        self._check()
        self._bits = np.zeros(-(-compiled.vocabulary.vocab_size // 32), np.int32)

    @property
    def finished(self) -> bool:
        """Whether the text is complete: nothing may follow."""
        return bool(self._matcher.is_stopped())

    def masked(self, logits: Floats) -> Floats:
        """Return logits [V] in which tokens that may not follow are -inf."""
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        self._check()
        allowed = np.unpackbits(self._bits.view(np.uint8), bitorder="little", count=len(logits)).astype(np.bool_)
        return np.where(allowed, logits, np.float32(-np.inf))

    def accept(self, token: int) -> None:
        """Take the token that was chosen."""
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise InputError(f"the output format cannot be used: {_one_line(self._matcher.get_error())}")


def _library() -> Any:
    try:
        import llguidance
    except ModuleNotFoundError:
        raise InputError(
            "an output format needs llguidance; install it with: pip install 'clearhead[structured]'"
        ) from None
    return llguidance


class _FormatCompiler:
    """Compile output formats for one tokenizer, and cache the latest: all samples of a request share one."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._library = _library()
        self.vocabulary = self._library.LLTokenizer(self._library.TokenizerWrapper(_Vocabulary(tokenizer)))
        self._matchers: OrderedDict[OutputFormat, Any] = OrderedDict()
        self._lock = threading.Lock()

    def matcher(self, format: OutputFormat) -> Any:
        """Return a matcher at the beginning of a text."""
        with self._lock:
            found = self._matchers.get(format)
            if found is not None:
                self._matchers.move_to_end(format)
                return found.deep_copy()
        made = self._compile(format)
        if not made.is_error():
            with self._lock:
                self._matchers[format] = made.deep_copy()
                if len(self._matchers) > _KEPT_FORMATS:
                    self._matchers.popitem(last=False)
        return made

    def _compile(self, format: OutputFormat) -> Any:
        matcher = self._library.LLMatcher
        if format.kind == "json_schema":
            grammar = matcher.grammar_from_json_schema(format.pattern, overrides={"whitespace_flexible": False})
        else:
            grammar = matcher.grammar_from_regex(format.pattern)
        return matcher(self.vocabulary, grammar, log_level=0)


_compilers: weakref.WeakKeyDictionary[Tokenizer, _FormatCompiler] = weakref.WeakKeyDictionary()
_compilers_lock = threading.Lock()


def _compiler(tokenizer: Tokenizer) -> _FormatCompiler:
    """Return the compiler of a tokenizer, cached because making it takes 0.1 s for GPT-2's vocabulary."""
    with _compilers_lock:
        if tokenizer not in _compilers:
            _compilers[tokenizer] = _FormatCompiler(tokenizer)
        return _compilers[tokenizer]


class _Vocabulary:
    """A tokenizer as llguidance reads it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.tokens = [tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size)]
        self.bos_token_id = None
        self.eos_token_id = tokenizer.end_of_text
        if self.eos_token_id is None:  # it needs one; a token after the last is never chosen
            self.eos_token_id = len(self.tokens)
            self.tokens.append(b"<end>")
        self.special_token_ids = sorted({*tokenizer.special_tokens.values(), self.eos_token_id})

    def __call__(self, text: str) -> list[int]:
        """Return the tokens of a text.

        Raises:
            TypeError: if it is given as bytes; llguidance tries, and then gives text.
        """
        if not isinstance(text, str):
            raise TypeError("a text was expected")
        return self._tokenizer.encode(text)


def _one_line(error: object) -> str:
    """Return the beginning of an error message of llguidance, without the state of its parser."""
    line = " ".join(str(error).partition("<state>")[0].split())
    if len(line) > _LONGEST_ERROR:  # it may repeat the whole expression
        line = f"{line[:_LONGEST_ERROR]} ..."
    return line if line.endswith(".") else f"{line}."
