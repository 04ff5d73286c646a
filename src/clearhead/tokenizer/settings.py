"""Read the settings that complete a tokenizer's files: added tokens, special tokens, a leading space.

The rules are those of `transformers`, whose classes wrote the files:

- `tokenizer_config.json` names special tokens (`eos_token`, `pad_token`, ...) and, since 2023, describes every added
  token in its `added_tokens_decoder`.
- Without that, `special_tokens_map.json` names the special tokens, and `added_tokens.json` has the tokens that were
  added to the vocabulary.
- A chat template is in `chat_template.jinja`, or in `tokenizer_config.json`, which may have several by name. DialoGPT
  and the models made from it have often none, and "conversational" among the tasks of their `config.json`.
- A named token that the vocabulary lacks is added to it.
- A token that is added gets the next free id, as in the `tokenizers` library.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from clearhead.errors import TokenizerError
from clearhead.tokenizer.definition import (
    ADDED_TOKEN_FLAGS,
    CHAT_TEMPLATE_KEY,
    END_OF_TEXT,
    NAMED_TOKENS,
    Definition,
    added_token,
    special_token,
    vocabulary_of,
)
from clearhead.tokenizer.files import read_json_object, read_text_file
from clearhead.tokenizer.validation import MAX_ID
from clearhead.utils.text import shown

_EXTRA_TOKENS = ("additional_special_tokens", "extra_special_tokens")
_MAX_ADDED_TOKENS = 100_000
_CHAT_TEMPLATE_FILE = "chat_template.jinja"

TURNS_TEMPLATE = "{% for message in messages %}{{ message.content }}{{ eos_token }}{% endfor %}"
"""DialoGPT's template: the user and the model take turns, and each turn ends with the end-of-text token."""


class TokenizerSettings:
    """The settings files of a model's folder.

    Raises:
        TokenizerError: if one of them is broken.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._config = self._read("tokenizer_config.json")
        special_tokens = {} if self._describes_added_tokens else self._read("special_tokens_map.json")
        self._added_tokens = {} if self._describes_added_tokens else self._read("added_tokens.json")
        self._model_configs = [self._read(name) for name in ("generation_config.json", "config.json")]
        both = self._config | special_tokens
        self._named = {name: entry for name in NAMED_TOKENS if (entry := _named_entry(both.get(name))) is not None}
        self._extra = [entry for name in _EXTRA_TOKENS for entry in _extra_entries(both.get(name))]

    @property
    def _describes_added_tokens(self) -> bool:
        return self._config.get("added_tokens_decoder") is not None

    def _read(self, name: str) -> dict[str, Any]:
        path = self._folder / name
        return read_json_object(path) if path.is_file() else {}

    @property
    def named_tokens(self) -> dict[str, str]:
        """The special tokens with a role, such as `pad_token`, by role."""
        return {name: entry["content"] for name, entry in self._named.items()}

    @property
    def chat_template(self) -> str | None:
        """The model's chat template, from its own file or from the settings; the default one if there are several.

        A conversational model without one gets DialoGPT's: each turn ends with the end-of-text token.
        """
        path = self._folder / _CHAT_TEMPLATE_FILE
        if path.is_file():
            return read_text_file(path)
        found = self._config.get(CHAT_TEMPLATE_KEY)
        if isinstance(found, list):
            named = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}
            found = named.get("default")
        if isinstance(found, str):
            return found
        tasks = self._model_configs[-1].get("task_specific_params")
        return TURNS_TEMPLATE if isinstance(tasks, dict) and "conversational" in tasks else None

    def apply(self, definition: Definition) -> None:
        """Complete a definition as `transformers` does when it opens the folder.

        Raises:
            TokenizerError: if the added tokens are malformed, or have ids that they cannot have.
        """
        pre_tokenizer = definition.get("pre_tokenizer") or {}
        prefix = self._config.get("add_prefix_space")
        if pre_tokenizer.get("type") == "ByteLevel" and isinstance(prefix, bool):
            pre_tokenizer["add_prefix_space"] = prefix
        vocab = vocabulary_of(definition)
        known = {token["content"]: token for token in definition["added_tokens"]}
        for id, entry in self._described_tokens():
            token = known.setdefault(entry["content"], entry)
            if token is entry:
                self._append(definition, vocab, entry, id)
            else:
                token.update({flag: entry[flag] for flag in ADDED_TOKEN_FLAGS})
        for entry in (*self._named.values(), *self._extra):
            if entry["content"] in known or self._is_missing_end_of_text(entry, vocab):
                continue
            known[entry["content"]] = entry
            self._append(definition, vocab, entry, None)
        # GPT-2's end of text is a special token, even if it is only listed in the vocabulary, unless others replace it.
        replaced = all(role in self._named for role in ("bos_token", "eos_token", "unk_token"))
        if END_OF_TEXT in vocab and END_OF_TEXT not in known and not replaced:
            definition["added_tokens"].append(special_token(END_OF_TEXT, vocab[END_OF_TEXT]))

    def _is_missing_end_of_text(self, entry: Mapping[str, Any], vocab: Mapping[str, int]) -> bool:
        """Return whether a token is the end of text and not in the vocabulary, which `end_of_text` reports."""
        return entry is self._named.get("eos_token") and entry["content"] not in vocab

    def _described_tokens(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the id and the description of each added token that the settings list, by id."""
        if self._describes_added_tokens:
            path, tokens = self._folder / "tokenizer_config.json", self._config["added_tokens_decoder"]
            if not isinstance(tokens, dict) or len(tokens) > _MAX_ADDED_TOKENS:
                raise _malformed(path, "added_tokens_decoder", "ids to tokens with a 'content'")
            by_id = {_id(id, path): _entry(token, path) for id, token in tokens.items()}
            yield from sorted(by_id.items())
            return
        path = self._folder / "added_tokens.json"
        if len(self._added_tokens) > _MAX_ADDED_TOKENS:
            raise _malformed(path, "list of added tokens", "tokens to ids")
        special = {entry["content"] for entry in (*self._named.values(), *self._extra)}
        for content, number in sorted(self._added_tokens.items(), key=lambda item: _id(item[1], path)):
            is_special = content in special
            if content:
                yield _id(number, path), added_token(content, special=is_special, normalized=not is_special)

    def _append(
        self, definition: Definition, vocab: Mapping[str, int], entry: dict[str, Any], stated: int | None
    ) -> None:
        """Add a token: under its id in the vocabulary, or under the next free one, which must be the `stated` id."""
        tokens = definition["added_tokens"]
        id = vocab.get(entry["content"])
        if id is None:
            last = max((token["id"] for token in tokens if isinstance(token["id"], int)), default=-1)
            id = max(len(vocab), last + 1)
        if stated is not None and stated != id:
            raise TokenizerError(
                f"{self._folder} gives the added token {shown(entry['content'])} the id {stated}, but its id in the "
                f"vocabulary, or the next free one, is {id}; the files belong to different models, or one is missing."
            )
        tokens.append({"id": id, **entry})

    def _usual_end_of_text(self, definition: Definition) -> str:
        if definition["model"].get("type") == "WordPiece":
            return self._named["sep_token"]["content"] if "sep_token" in self._named else "[SEP]"
        return "</s>" if definition["model"].get("type") == "Unigram" else ""

    def end_of_text(self, definition: Definition, vocabulary: Mapping[str, int]) -> int | None:
        """Return the id of the end of text: by name, otherwise the usual token of its kind, otherwise by number.

        The usual tokens are GPT-2's own, `[SEP]` for WordPiece, and `</s>` for SentencePiece.

        The number comes last because a `config.json` often says 50256 whatever the vocabulary.

        Raises:
            TokenizerError: if the settings name a token that the vocabulary does not have.
        """
        if (entry := self._named.get("eos_token")) is not None:
            name = entry["content"]
            if name not in vocabulary:
                raise TokenizerError(
                    f"the tokenizer's settings name {shown(name)} as the end of text, but the vocabulary has no such "
                    "token; correct eos_token in tokenizer_config.json or special_tokens_map.json."
                )
            return vocabulary[name]
        if END_OF_TEXT in vocabulary:
            return vocabulary[END_OF_TEXT]
        if (usual := self._usual_end_of_text(definition)) in vocabulary:
            return vocabulary[usual]
        ids = set(vocabulary.values())
        for config in self._model_configs:
            id = config.get("eos_token_id")
            id = id[0] if isinstance(id, list) and id else id
            if isinstance(id, int) and id in ids:
                return id
        return None


def _named_entry(token: Any) -> dict[str, Any] | None:
    """Return the description of a special token with a role: its text, or an object with `content` and flags."""
    content = token.get("content") if isinstance(token, dict) else token
    if not isinstance(content, str) or not content:
        return None
    flags = {flag: token[flag] for flag in ADDED_TOKEN_FLAGS if isinstance(token, dict) and flag in token}
    return added_token(content, **{name: bool(value) for name, value in flags.items()} | {"special": True})


def _extra_entries(tokens: Any) -> Iterator[dict[str, Any]]:
    """Yield the descriptions of further special tokens: a list, or an object from roles to tokens."""
    values = tokens.values() if isinstance(tokens, dict) else tokens if isinstance(tokens, list) else ()
    for token in values:
        if (entry := _named_entry(token)) is not None:
            yield entry


def _id(value: Any, path: Path) -> int:
    number = int(value) if isinstance(value, str) and value.isascii() and value.isdecimal() else value
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number <= MAX_ID:
        raise TokenizerError(
            f"{path} has the token id {shown(value)}; a whole number from 0 to {MAX_ID:,} was expected."
        )
    return number


def _entry(token: Any, path: Path) -> dict[str, Any]:
    if not isinstance(token, dict) or not isinstance(token.get("content"), str) or not token["content"]:
        raise _malformed(path, "added_tokens_decoder", "ids to tokens with a 'content'")
    flags = {flag: bool(token[flag]) for flag in ADDED_TOKEN_FLAGS if flag in token}
    return added_token(token["content"], **flags)


def _malformed(path: Path, what: str, expected: str) -> TokenizerError:
    return TokenizerError(f"the {what} in {path} cannot be read; an object from {expected} was expected.")
