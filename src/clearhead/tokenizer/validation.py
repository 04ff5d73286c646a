"""Check what tokenizer files contain, before anything is built or sized by it.

The files come from strangers. The `tokenizers` library trusts them: a wrong type can stop it with a panic, an id of
10^9 can fill the memory, and a chain of normalizers can turn a word into gigabytes.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from clearhead.errors import TokenizerError
from clearhead.tokenizer.definition import ADDED_TOKEN_FLAGS, Definition
from clearhead.utils.text import shown

MAX_ID = 2**22
"""The largest id of a token. The largest vocabularies in use have about 260,000 tokens."""

_MAX_GROWTH = 256
_MAX_DEPTH = 20
_PARTS = {"model": dict, "added_tokens": list, "normalizer": dict, "pre_tokenizer": dict, "decoder": dict}
_SEQUENCES = ("normalizers", "pretokenizers", "decoders")


def check_definition(definition: Definition, where: str) -> None:
    """Check the contents of a `tokenizer.json`, and bring its merges and added tokens into one form.

    Raises:
        TokenizerError: if a part has the wrong type, an id is too large, or texts could grow without limit.
    """
    for part, expected in _PARTS.items():
        value = definition.get(part)
        if not isinstance(value, expected) and (part == "model" or value is not None):
            raise TokenizerError(
                f"{where} has no valid {part!r}; a tokenizer.json as the tokenizers library writes it was expected."
            )
    _check_added_tokens(definition, where)
    _check_model(definition["model"], where)
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        _check_tables(definition.get(part), where)
        if _growth(definition.get(part), where) > _MAX_GROWTH:
            raise TokenizerError(
                f"the {part} in {where} makes texts more than {_MAX_GROWTH} times as long, which is no tokenizer's "
                "purpose; the file is damaged or was made to do harm."
            )


def _check_added_tokens(definition: Definition, where: str) -> None:
    tokens = definition.get("added_tokens") or []
    for token in tokens:
        if not isinstance(token, dict) or not isinstance(token.get("content"), str) or not _is_id(token.get("id")):
            raise TokenizerError(
                f"{where} has the added token {shown(token)}; an object with a text 'content' and a whole number 'id' "
                f"up to {MAX_ID:,} was expected."
            )
        if any(not isinstance(token.get(flag, False), bool) for flag in ADDED_TOKEN_FLAGS):
            raise TokenizerError(f"{where} has the added token {shown(token)}; its flags must be true or false.")
    _check_unicode([token["content"] for token in tokens], where)
    definition["added_tokens"] = [token for token in tokens if token["content"]]


def _check_model(model: dict[str, Any], where: str) -> None:
    if not isinstance(model.get("unk_token"), str | None):
        raise TokenizerError(f"{where} has the unknown token {shown(model['unk_token'])}; a text was expected.")
    vocab = model.get("vocab")
    if model.get("type") in ("BPE", "WordPiece", "WordLevel"):
        check_vocabulary(vocab, where)
    elif isinstance(vocab, list):
        _check_scores(vocab, where)
    if model.get("type") == "BPE":
        model["merges"] = parse_merges(model.get("merges"), where)
        check_merges(model["vocab"], model["merges"], f"the vocabulary and the merges in {where}")
        model["dropout"] = None


def _check_scores(vocab: list[Any], where: str) -> None:
    """Check the vocabulary of a Unigram model: pairs of a token and its score."""
    for pair in vocab:
        good = isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str)
        if not good or not isinstance(pair[1], int | float) or isinstance(pair[1], bool) or not abs(pair[1]) < 1e30:
            raise TokenizerError(f"{where} has {shown(pair)} in its vocabulary; a token and its score were expected.")
    _check_unicode([pair[0] for pair in vocab], where)


def _check_unicode(tokens: Iterable[str], where: str) -> None:
    try:
        "".join(tokens).encode("utf-8")
    except UnicodeEncodeError:
        raise TokenizerError(f"{where} has a token with half of a surrogate pair, which is not a character.") from None


def _check_tables(part: Any, where: str, depth: int = 0) -> None:
    """Check the tables of characters in a step and in those inside it.

    Such a table begins with its length in bytes, as 4 bytes. The library reserves that much memory unseen.
    """
    if not isinstance(part, dict) or depth > _MAX_DEPTH:
        return
    if part.get("type") == "Precompiled":
        try:
            table = base64.b64decode(part.get("precompiled_charsmap") or "", validate=True)
        except (TypeError, ValueError):
            table = b""
        if len(table) < 4 or int.from_bytes(table[:4], "little") > len(table) - 4:
            raise TokenizerError(f"the table of characters in {where} is cut off; the file is damaged.")
    for name in _SEQUENCES:
        for step in part.get(name) or () if isinstance(part.get(name), list) else ():
            _check_tables(step, where, depth + 1)


def _growth(part: Any, where: str, depth: int = 0) -> float:
    """Return an upper bound of how many times as long a step can make a text."""
    if not isinstance(part, dict):
        return 1.0
    if depth > _MAX_DEPTH:
        raise TokenizerError(f"{where} nests its steps more than {_MAX_DEPTH} deep; the file is damaged.")
    grown = 1.0
    for name in _SEQUENCES:
        for step in part.get(name) or () if isinstance(part.get(name), list) else ():
            grown = min(grown * _growth(step, where, depth + 1), 1e30)
    if part.get("type") == "ByteLevel":
        return 2.0 * grown  # a byte above 0x7F becomes a character of two
    if part.get("type") == "Replace" and isinstance(part.get("content"), str):
        pattern = part.get("pattern")
        literal = pattern.get("String") if isinstance(pattern, dict) else None
        least = len(literal) if isinstance(literal, str) else 1  # the replaced text has at least this many characters
        return grown * max(1.0, len(part["content"]) / least if least else 1 + len(part["content"]))
    return grown


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_ID


def parse_merges(merges: Any, where: str) -> list[tuple[str, str]]:
    """Return the merges of a `tokenizer.json` as pairs; it writes them as "a b" or ["a", "b"].

    Raises:
        TokenizerError: if they are anything else; `where` names their file.
    """
    if not isinstance(merges, list):
        raise TokenizerError(f"{where} has no list of merges; byte-pair encoding needs one.")
    pairs = []
    for merge in merges:
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(parts, list) or len(parts) != 2 or not all(p and isinstance(p, str) for p in parts):
            raise TokenizerError(f"{where} has the merge {shown(merge)}; two tokens were expected.")
        pairs.append((parts[0], parts[1]))
    return pairs


def check_vocabulary(vocab: Any, where: str) -> None:
    """Check that a vocabulary maps tokens to distinct ids.

    Raises:
        TokenizerError: if it does not; `where` names its file.
    """
    if not isinstance(vocab, dict) or not vocab:
        raise TokenizerError(f"{where} has no tokens; a JSON object from tokens to ids was expected.")
    for token, id in vocab.items():
        if not _is_id(id):
            raise TokenizerError(
                f"{where} gives token {shown(token)} the id {shown(id)}; a whole number "
                f"from 0 to {MAX_ID:,} was expected."
            )
    _check_unicode(vocab, where)
    if len(set(vocab.values())) != len(vocab):
        seen: dict[int, str] = {}
        for token, id in vocab.items():
            if id in seen:
                raise TokenizerError(
                    f"{where} gives the id {id} to two tokens, {shown(seen[id])} and {shown(token)}; "
                    "each needs its own."
                )
            seen[id] = token


def check_merges(vocab: Mapping[str, int], merges: Sequence[tuple[str, str]], where: str) -> None:
    """Check that the vocabulary has both parts and the result of every merge.

    Raises:
        TokenizerError: if it does not; `where` names the files.
    """
    for number, (left, right) in enumerate(merges, 1):
        if left in vocab and right in vocab and left + right in vocab:
            continue
        missing = next(token for token in (left, right, left + right) if token not in vocab)
        raise TokenizerError(
            f"{where} do not match: merge {number} joins {shown(left)} and {shown(right)}, "
            f"but {shown(missing)} is not in the vocabulary; take both from the same model."
        )


_MAX_UNMADE_SHARE = 0.01


def check_all_are_made(vocab: Iterable[str], merges: Sequence[tuple[str, str]], where: str) -> None:
    """Check that merges make the tokens; otherwise the file of merges was probably cut short.

    Single letters need no merge, and neither do names in <> or [], which mark special tokens. A few other tokens may
    be left over: words that were added to a vocabulary by hand. No text gives them, in `transformers` neither.

    Raises:
        TokenizerError: if tokens are left over; `where` names the files.
    """
    made = {left + right for left, right in merges}
    tokens = list(vocab)
    unmade = [t for t in tokens if t not in made and len(t) > 1 and t[0] + t[-1] not in ("<>", "[]")]
    if len(unmade) > max(1, _MAX_UNMADE_SHARE * len(tokens)):
        raise TokenizerError(
            f"{where} do not match: no merge makes {len(unmade)} of the tokens (such as {shown(unmade[0])}); "
            "the file of merges may be cut short or belong to another model."
        )
