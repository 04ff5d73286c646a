"""The documentation site: its pages are in the navigation, and links stay on the site. `make docs` builds it."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).parents[1]


def hook() -> Any:
    spec = importlib.util.spec_from_file_location("docs_site", ROOT / "tools/docs_site.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_page_is_in_the_navigation_and_exists() -> None:
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = re.findall(r"^ +- [^:\n]+: (\S+\.md)$", settings, re.MULTILINE)
    for page in pages:
        assert (ROOT / "docs" / page).is_file(), page
    only_chinese = {"article.md"}
    found = {path.name.replace(".zh.md", ".md") for path in (ROOT / "docs").glob("*.md")}
    assert found - only_chinese == {page for page in pages if "/" not in page}


def test_every_module_of_the_reference_exists() -> None:
    import importlib

    for name in re.findall(r"^::: (\S+)$", (ROOT / "docs/api.md").read_text(encoding="utf-8"), re.MULTILINE):
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), name


def test_the_hook_keeps_links_on_the_site() -> None:
    known = {"weights.md", "tour/README.md"}
    files = SimpleNamespace(get_file_from_path=lambda path: path if path in known else None)
    page = SimpleNamespace(file=SimpleNamespace(src_uri="tour/01.md"))
    text = (
        "[a](../weights.md#x) [b](../../README.md) [c](README.md) [d](https://example.org) ![e](../../x.svg) [f](no.md)"
    )
    shown = hook().on_page_markdown(text, page=page, files=files)
    assert shown == "[a](../weights.md#x) b [c](README.md) [d](https://example.org) ![e](../../x.svg) f"
