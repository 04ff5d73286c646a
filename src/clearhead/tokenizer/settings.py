"""Read the settings that complete a tokenizer's files: added tokens, the end of text, a leading space."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clearhead.errors import TokenizerError
from clearhead.tokenizer.definition import END_OF_TEXT, Definition, special_token
from clearhead.tokenizer.files import read_json_object


class TokenizerSettings:
    """The settings files of a model's folder.

    Raises:
        TokenizerError: if one of them is broken.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tokenizer_config = self._read("tokenizer_config.json")
        self._special_tokens_map = self._read("special_tokens_map.json")
        self._configs = [self._read(name) for name in ("generation_config.json", "config.json")]

    def _read(self, name: str) -> dict[str, Any]:
        path = self._folder / name
        return read_json_object(path) if path.is_file() else {}

    def apply(self, definition: Definition) -> None:
        """Complete a definition as `transformers` does when it opens the folder.

        Raises:
            TokenizerError: if the added tokens cannot be read.
        """
        pre_tokenizer = definition.get("pre_tokenizer") or {}
        prefix = self._tokenizer_config.get("add_prefix_space")
        if pre_tokenizer.get("type") == "ByteLevel" and isinstance(prefix, bool):
            pre_tokenizer["add_prefix_space"] = prefix
        known = {token["content"] for token in definition["added_tokens"]}
        try:
            added = self._tokenizer_config.get("added_tokens_decoder") or {}
            for id, token in sorted(added.items(), key=lambda item: int(item[0])):
                if token["content"] not in known:
                    entry = special_token(token["content"], int(id))
                    definition["added_tokens"].append(entry | {flag: token[flag] for flag in entry if flag in token})
                    known.add(token["content"])
        except (KeyError, TypeError, ValueError, AttributeError):
            raise TokenizerError(
                f"the added_tokens_decoder in {self._folder / 'tokenizer_config.json'} cannot be read; "
                "an object from ids to tokens with a 'content' was expected."
            ) from None
        # The end of text is a special token, even if it is only listed in the vocabulary.
        vocab, name = definition["model"].get("vocab"), self._end_of_text_name() or END_OF_TEXT
        if name not in known and isinstance(vocab, dict) and name in vocab:
            definition["added_tokens"].append(special_token(name, vocab[name]))

    def _end_of_text_name(self) -> str | None:
        for settings in (self._tokenizer_config, self._special_tokens_map):
            token = settings.get("eos_token")
            content = token.get("content") if isinstance(token, dict) else token
            if isinstance(content, str):
                return content
        return None

    def end_of_text(self, vocabulary: Mapping[str, int]) -> int | None:
        """Return the id of the end of text: by name, otherwise GPT-2's own token, otherwise by number.

        The number comes last because a `config.json` often says 50256 whatever the vocabulary.

        Raises:
            TokenizerError: if the settings name a token that the vocabulary does not have.
        """
        name = self._end_of_text_name()
        if name is not None:
            if name not in vocabulary:
                raise TokenizerError(
                    f"the tokenizer's settings name {name!r} as the end of text, but the vocabulary has no such token; "
                    "correct eos_token in tokenizer_config.json or special_tokens_map.json."
                )
            return vocabulary[name]
        if END_OF_TEXT in vocabulary:
            return vocabulary[END_OF_TEXT]
        ids = set(vocabulary.values())
        for config in self._configs:
            id = config.get("eos_token_id")
            id = id[0] if isinstance(id, list) and id else id
            if isinstance(id, int) and id in ids:
                return id
        return None
