"""A hook of MkDocs: links out of `docs/` (to the code, the README) become their words, which the site does not have."""

from __future__ import annotations

import posixpath
import re
from typing import Any

_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def on_page_markdown(markdown: str, *, page: Any, files: Any, **_: Any) -> str:
    """Return a page's Markdown with links that stay on the site."""
    folder = posixpath.dirname(page.file.src_uri)

    def replace(match: re.Match[str]) -> str:
        words, target = match[1], match[2]
        if "://" in target or target.startswith("mailto:"):
            return match[0]
        path = posixpath.normpath(posixpath.join(folder, target))
        return words if path.startswith("..") or files.get_file_from_path(path) is None else match[0]

    return _LINK.sub(replace, markdown)
