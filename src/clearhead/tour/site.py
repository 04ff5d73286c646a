"""The tour as web pages: each file becomes the page at the same path, so that its relative links work.

`docs/tour/zh/02-attention.md` is the page `/zh/02-attention.html`, and links into `src/clearhead` lead to pages of the
package's own source. Every request reads the files again, so a reload shows an edited chapter.
"""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound

from clearhead.drawing.screen import document_head, screen_css
from clearhead.tour.chapters import LANGUAGES, Chapter, find, language_folder, read, title_of
from clearhead.tour.live import live_figure, live_model, live_script
from clearhead.web.export import components_css

_TEMPLATE = Path(__file__).with_name("page.html")
_STYLE = Path(__file__).with_name("page.css")
_SCRIPT = Path(__file__).with_name("page.js")
_PACKAGE = Path(__file__).parents[1]

_WORDS = {
    "en": {
        "tour": "A tour of GPT-2",
        "contents": "Contents",
        "back": "Previous",
        "next": "Next",
        "skip": "Skip to the chapter",
        "source": "The source code of Clearhead as it runs here",
        "missing": "This page does not exist",
        "home": "Go to the list of chapters",
        "copy": "Copy",
        "copied": "Copied",
    },
    "zh": {
        "tour": "GPT-2 导览",
        "contents": "目录",
        "back": "上一章",
        "next": "下一章",
        "skip": "跳到正文",
        "source": "Clearhead 正在运行的源代码",
        "missing": "页面不存在",
        "home": "返回目录",
        "copy": "复制",
        "copied": "已复制",
    },
}


@dataclass(frozen=True, slots=True)
class MarkdownPage:
    """Markdown as HTML.

    Attributes:
        html: the HTML; every heading has an `id`.
        outline: the second-level headings, as HTML without markup, by their ids.
    """

    html: str
    outline: dict[str, str]


@dataclass(frozen=True, slots=True)
class SitePage:
    """A response.

    Attributes:
        body: its bytes.
        kind: its media type.
        found: False if nothing exists at the path; the body says so.
    """

    body: bytes
    kind: str = "text/html; charset=utf-8"
    found: bool = True


class Site:
    """The pages of a tour.

    Args:
        folder: the tour's folder, such as `docs/tour`.

    Raises:
        InputError: if it has no chapter.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        find(folder)

    def page(self, path: str) -> SitePage:
        """Return the page at a URL's path, decoded and without the query; only the tour and the package can be read."""
        if path == "/style.css":
            return SitePage(_style().encode(), "text/css; charset=utf-8")
        if path == "/page.js":
            return SitePage(_SCRIPT.read_bytes(), "text/javascript; charset=utf-8")
        if path == "/live.js":
            return SitePage(live_script().encode(), "text/javascript; charset=utf-8")
        if path == "/live.json":
            return SitePage(live_model(), "application/json")
        if figure := re.fullmatch(r"/(?:\w+/)?figures/([\w.-]+\.svg)", path):
            file = self.folder / "figures" / figure[1]
            return SitePage(file.read_bytes(), "image/svg+xml") if file.is_file() else self._missing()
        if source := re.fullmatch(r"/src/clearhead/((?:\w+/)*\w+\.py)", path):
            file = _PACKAGE / source[1]
            return self._source(source[1], file) if file.is_file() else self._missing()
        for language in LANGUAGES:
            base = "/" if language == "en" else f"/{language}/"
            if path in (base, f"{base}README.html"):
                return self._index(language)
            for chapter in self._chapters(language):
                if path == f"{base}{chapter.path.stem}.html":
                    return self._chapter(chapter)
        return self._missing()

    def _chapters(self, language: str) -> list[Chapter]:
        return [chapter for chapter in find(self.folder) if chapter.language == language]

    def _index(self, language: str) -> SitePage:
        file = language_folder(self.folder, language) / "README.md"
        if not file.is_file():
            first = self._chapters(language)
            return self._chapter(first[0]) if first else self._missing()
        return self._fill(language, title_of(file), markdown_page(read(file)), here="README")

    def _chapter(self, chapter: Chapter) -> SitePage:
        listed = self._chapters(chapter.language)
        index = listed.index(chapter)
        turns = [
            f'<a class="{kind}" href="{other.path.stem}.html"><small>{word}</small>{html.escape(other.title)}</a>'
            for kind, word, other in (
                ("back", _WORDS[chapter.language]["back"], listed[index - 1] if index else None),
                ("next", _WORDS[chapter.language]["next"], listed[index + 1] if index + 1 < len(listed) else None),
            )
            if other is not None
        ]
        page = markdown_page(read(chapter.path))
        page = MarkdownPage(f'{page.html}<nav class="turn">{"".join(turns)}</nav>', page.outline)
        return self._fill(chapter.language, chapter.title, page, here=chapter.path.stem)

    def _source(self, name: str, file: Path) -> SitePage:
        title = f"clearhead/{name}"
        body = f"<h1><code>{title}</code></h1><p>{_WORDS['en']['source']}.</p>"
        body += f'<div class="code">{_highlighted(read(file), "python")}</div>'
        return self._fill("en", title, MarkdownPage(body, {}), here="")

    def _missing(self) -> SitePage:
        words = _WORDS["en"]
        body = f'<h1>{words["missing"]}</h1><p><a href="/README.html">{words["home"]}</a></p>'
        page = self._fill("en", words["missing"], MarkdownPage(body, {}), here="")
        return SitePage(page.body, found=False)

    def _fill(self, language: str, title: str, page: MarkdownPage, here: str) -> SitePage:
        words = _WORDS[language]
        base = "/" if language == "en" else f"/{language}/"
        entries = [("README", words["tour"]), *((c.path.stem, c.title) for c in self._chapters(language))]
        marked = {here: ' aria-current="page"'}
        headings = "".join(f'<li><a href="#{key}">{name}</a></li>' for key, name in page.outline.items())
        outline = {here: f"<ol>{headings}</ol>"} if headings else {}
        listed = "".join(
            f'<li><a href="{base}{stem}.html"{marked.get(stem, "")}>{html.escape(name)}</a>{outline.get(stem, "")}</li>'
            for stem, name in entries
        )
        marks = {
            "LANG": "zh-CN" if language == "zh" else language,
            "HEAD": document_head(f"{title} · Clearhead", link="/style.css"),
            "TOUR": words["tour"],
            "HOME": f"{base}README.html",
            "SKIP": words["skip"],
            "CONTENTS": words["contents"],
            "LANGUAGES": self._languages(language, here or "README"),
            "LIST": listed,
            "BODY": page.html,
            "COPY": words["copy"],
            "COPIED": words["copied"],
            "LIVE": '<script src="/live.js" defer></script>' if "<figure data-live=" in page.html else "",
        }
        template = _TEMPLATE.read_text(encoding="utf-8")
        return SitePage(re.sub(r"@([A-Z]+)@", lambda mark: marks[mark[1]], template).encode())

    def _languages(self, language: str, stem: str) -> str:
        """Return links to the same page in the other languages that have it."""
        links = []
        for other, name in LANGUAGES.items():
            if other != language and (language_folder(self.folder, other) / f"{stem}.md").is_file():
                base = "/" if other == "en" else f"/{other}/"
                links.append(f'<a href="{base}{stem}.html" lang="{other}" hreflang="{other}">{name}</a>')
        return " ".join(links)


def markdown_page(text: str) -> MarkdownPage:
    """Return Markdown as HTML: highlighted code, tables that scroll on their own, chapter links as page links."""
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = markdown.parse(text)
    outline = _mark_headings(tokens)
    for block in tokens:
        for part in block.children or ():
            link = part.attrs.get("href")
            if isinstance(link, str) and not re.match(r"[a-z]+:", link):
                part.attrs["href"] = re.sub(r"\.md(#|$)", r".html\1", link)
            if part.type == "image":
                part.attrs["loading"] = "lazy"
    rendered = []
    start = 0
    for index, block in enumerate(tokens):
        if block.type == "fence":
            rendered.append(markdown.renderer.render(tokens[start:index], markdown.options, {}))
            rendered.append(_fence(block.content, block.info.strip(), _is_output(tokens, index)))
            start = index + 1
    rendered.append(markdown.renderer.render(tokens[start:], markdown.options, {}))
    joined = re.sub(r"<table>.*?</table>", r'<div class="table">\g<0></div>', "".join(rendered), flags=re.DOTALL)
    body = re.sub(
        r'<p>(<img src="([^"]*)"[^>]*>)</p>', lambda found: live_figure(found[2], found[1]) or found[0], joined
    )
    return MarkdownPage(body, outline)


def _mark_headings(tokens: Sequence[Token]) -> dict[str, str]:
    """Give every heading an id as GitHub does; return the escaped text of second-level headings by id."""
    outline: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for heading, inline in pairwise(tokens):
        if heading.type == "heading_open":
            words = "".join(part.content for part in inline.children or ())
            plain = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-") or "section"
            key = f"{plain}-{counts[plain]}" if counts[plain] else plain
            counts[plain] += 1
            heading.attrs["id"] = key
            if heading.tag == "h2":
                outline[key] = html.escape(words)
    return outline


def _is_output(tokens: Sequence[Token], index: int) -> bool:
    """Tell whether a fence comes right after a Python cell."""
    before = tokens[index - 1] if index else None
    return before is not None and before.type == "fence" and before.info.strip() == "python"


def _fence(code: str, language: str, is_output: bool) -> str:
    if is_output and language == "text":
        return f'<pre class="output" tabindex="0"><samp>{html.escape(code)}</samp></pre>'
    return f'<div class="code">{_highlighted(code, language or "text")}</div>'


def _highlighted(code: str, language: str) -> str:
    try:
        lexer = get_lexer_by_name(language)
    except ClassNotFound:
        lexer = get_lexer_by_name("text")
    inner = highlight(code, lexer, HtmlFormatter(nowrap=True))
    return f'<pre tabindex="0"><code>{inner}</code></pre>'


@cache
def _style() -> str:
    """Return the style sheet: the shared palette and components, the colours of code, then the tour's own rules."""
    light = HtmlFormatter(style="friendly").get_style_defs(".code")
    dark = HtmlFormatter(style="github-dark").get_style_defs(".code")
    code = f"{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}\n"
    return f"{screen_css()}{components_css()}{code}{_STYLE.read_text(encoding='utf-8')}"
