"""Compute a table of surprisal on a Ray cluster, with the same rows as on one machine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from clearhead.data.ray_workers import RayCluster, map_on_ray
from clearhead.evaluation.surprisal import InputText, Row, SurprisalOptions, SurprisalTable
from clearhead.loading import load

_CHUNK_CHARACTERS = 100_000  # of the texts of one task


@dataclass
class TextScorer:
    """Score texts in a worker, which loads the model on the first call.

    Attributes:
        model: as `clearhead.load` takes it; every machine must be able to open it.
        settings: the keyword arguments of `clearhead.load`.
        options: what the rows contain.
    """

    model: str | None
    settings: dict[str, Any]
    options: SurprisalOptions
    _table: SurprisalTable | None = field(default=None, init=False)

    def __call__(self, texts: list[InputText]) -> list[list[Row]]:
        """Return the rows of each text."""
        if self._table is None:
            self._table = SurprisalTable(load(self.model, **self.settings), self.options)
        return list(self._table.rows(texts))


def rows_on_ray(scorer: TextScorer, texts: Iterable[InputText], cluster: RayCluster) -> Iterator[list[Row]]:
    """Yield the rows of each text, in order.

    Raises:
        InputError: as `SurprisalTable.rows` and `map_on_ray`.
        TrainingError: if a task fails again and again.
    """
    for _, rows_of_texts in map_on_ray(scorer, _chunks(texts), lambda chunk: (chunk,), cluster):
        yield from rows_of_texts


def _chunks(texts: Iterable[InputText]) -> Iterator[list[InputText]]:
    chunk: list[InputText] = []
    size = 0
    for text in texts:
        chunk.append(text)
        size += len(text.text) + len(text.context)
        if size >= _CHUNK_CHARACTERS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
