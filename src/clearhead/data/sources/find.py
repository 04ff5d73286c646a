"""Find the sources that a user names: files, folders, data sets on the hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from clearhead.data.sources.base import DocumentSource, open_source
from clearhead.data.sources.hub_dataset import HubDataset
from clearhead.data.sources.json_lines import JsonLines
from clearhead.data.sources.parquet import ParquetFile, import_parquet
from clearhead.data.sources.text_file import TextFile
from clearhead.errors import TrainingError

_TEXT = (".txt", ".text", ".md", ".raw")
_JSON = (".jsonl", ".ndjson", ".json")
_PARQUET = (".parquet",)
_TABLES = (".csv", ".tsv")
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip", ".7z", ".tar", ".tgz")


def find_sources(
    names: Sequence[str], *, field: str = "text", below: Path | None = None, out: Path | None = None
) -> list[DocumentSource]:
    """Return the sources for the given names, in their order.

    A folder means the files in it and below it whose names end like texts, JSON lines or Parquet files, sorted by
    path. `hf:NAME`, `hf:NAME:CONFIG` and `hf:NAME:CONFIG:SPLIT` are data sets on the hub; the default split is
    `train`.

    Args:
        names: paths, or data sets on the hub.
        field: the field of a JSON line, or the column of a table, that is the document.
        below: the folder that paths are relative to; None for the current one.
        out: the corpus's folder, which may be below a folder of texts; no source is taken from it.

    Raises:
        TrainingError: if a file does not exist or is compressed, a folder has no texts, or the corpus would go into
            the folder of texts itself.
    """
    found: list[DocumentSource] = []
    for name in names:
        if name.startswith("hf:"):
            found.append(HubDataset.from_name(name, field))
            continue
        path = (below or Path()) / Path(name).expanduser()
        if path.is_dir():
            inside = _texts_in(path, out)
            if not inside:
                raise TrainingError(f"the folder {name} has no files that end in .txt, .md, .jsonl or .parquet.")
            found += [_source_of_file(str(Path(name) / p.relative_to(path)), p, field) for p in inside]
        else:
            found.append(_source_of_file(name, path, field))
    return found


def _texts_in(folder: Path, out: Path | None) -> list[Path]:
    """Return the files of a folder that are texts by their names, sorted, without those of the corpus."""
    corpus = out.resolve() if out else None
    if corpus and folder.resolve().is_relative_to(corpus):
        raise TrainingError(f"the corpus cannot go to {out}, where its texts are; name another folder, or one in it.")
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in (*_TEXT, *_JSON, *_PARQUET)
        and path.is_file()
        and not (corpus and path.resolve().is_relative_to(corpus))
    )


def _source_of_file(name: str, path: Path, field: str) -> DocumentSource:
    suffix = path.suffix.lower()
    if suffix in _TABLES:
        raise TrainingError(
            f"{name} is a table, and a text file would be read as one document; convert it to JSON lines, an object "
            "with the field text for each row, or to Parquet."
        )
    if suffix in _COMPRESSED:
        raise TrainingError(f"{name} is compressed; unpack it and give the file that was in it.")
    with open_source(path):
        pass  # fail on a wrong name now, not after hours of work
    if suffix in _JSON:
        return JsonLines(name, path, field)
    if suffix in _PARQUET:
        import_parquet()
        return ParquetFile(name, path, field)
    return TextFile(name, path)
