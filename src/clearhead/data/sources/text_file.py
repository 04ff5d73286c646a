"""Text files as a source of documents."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from clearhead.data.documents import BLOCK_BYTES, Fragment, TextBlock, fragments_in, read_blocks
from clearhead.data.sources.base import (
    Chunk,
    Cursor,
    SequentialFile,
    hash_prefix,
    open_source,
    read_range,
)
from clearhead.errors import InputError


@dataclass(frozen=True, slots=True)
class TextFile(SequentialFile):
    """UTF-8 text, with a line `<|endoftext|>` between documents."""

    kind: str = "text"

    def chunks(self, start: Cursor, *, cut_documents: bool) -> Iterator[Chunk]:
        """Yield blocks of the file with their byte ranges."""
        with open_source(self.path) as file:
            hashed = hash_prefix(file, start, self.name)
            for block, data in read_blocks(
                file, start.consumed, start.inside, size=BLOCK_BYTES, cut_documents=cut_documents
            ):
                hashed.update(data)
                yield Chunk(block, Cursor(block.end, not block.closed, hashed.hexdigest()), len(data))

    def fragments(self, content: TextBlock) -> Iterator[Fragment]:
        """Yield the documents, or parts of documents, of a block."""
        data = read_range(self.path, content.start, content.end)
        # Text has no NUL, and most binary files do.
        if (nul := data.find(b"\0")) >= 0:
            raise InputError(f"{self.name} is not text: there is a NUL byte at byte {content.start + nul:,}.")
        return fragments_in(content, data, self.name)
