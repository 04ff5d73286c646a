"""A web page of scored texts: each token is tinted by its surprisal and underlined by its rank.

The classes of ranks are those of GLTR (Gehrmann, Strobelt and Rush 2019, arXiv 1906.04043): among the 10 most likely
tokens, the 100, the 1,000, or none of them. Each class has its own underline, so that the page can be read without
colour.
The page is one file without scripts; a token's numbers and its likely alternatives appear when it is pointed at or has
the keyboard's focus.
"""

from __future__ import annotations

import html
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from clearhead.drawing.palette import stylesheet
from clearhead.drawing.screen import document_head
from clearhead.evaluation.surprisal import Row
from clearhead.utils.arguments import Language

RANK_CLASSES = ((10, "top10"), (100, "top100"), (1000, "top1000"))
"""The greatest number of likelier tokens plus one, and the name of each class; `_WORDS` has its label."""

_BEYOND = "beyond"
_FULL_TINT = 16.0  # bits; a token in 65,536 has the full tint

_WORDS: dict[str, tuple[str, str]] = {
    "about": (
        "Stronger tint: more surprising to the model, from 0 to {bits:.0f} bits. The line under a token says where it "
        "is in the model's ranking; point at a token for its numbers and for what was more likely.",
        "底色越深，模型越意外（0 到 {bits:.0f} 比特）。词元下方的线表示它在模型排名中的位置；"
        "指向一个词元，可以看到它的各项数值，以及哪些词元概率更大。",
    ),
    "top10": ("top 10", "前 10"),
    "top100": ("top 100", "前 100"),
    "top1000": ("top 1,000", "前 1,000"),
    "beyond": ("beyond 1,000", "1,000 以后"),
    "total": ("{tokens:,} tokens, {bits:,.1f} bits", "{tokens:,} 个词元，{bits:,.1f} 比特"),
    "mean": (", {mean:.2f} a token", "，平均每个词元 {mean:.2f} 比特"),
    "share": ("{label}: {count:,}", "{label}：{count:,}"),
    "shares": ("{total}. {shares}.", "{total}。{shares}。"),
    "comma": (", ", "，"),
    "nothing before": ("nothing comes before it", "前面没有内容"),
    "tip": (
        "{bits:.2f} bits, rank {rank:,}, entropy {entropy:.2f} bits",
        "{bits:.2f} 比特，排名 {rank:,}，熵 {entropy:.2f} 比特",
    ),
}

_STYLE = """
body { margin: 0 auto; max-width: 46rem; padding: 1.5rem 1.2rem 8rem; background: $paper; color: $ink;
  font: 17px/1.9 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "PingFang SC", sans-serif }
h1 { font-size: 1.5rem; line-height: 1.3; margin: .5rem 0 }
h2 { font-size: 1.1rem; line-height: 1.4; margin: 2.2rem 0 .3rem; overflow-wrap: anywhere }
p { margin: .4rem 0 }
.note { color: $soft; font-size: .88rem; line-height: 1.6 }
.text { white-space: pre-wrap; overflow-wrap: anywhere; margin: .8rem 0; padding: .8rem 1rem; background: $card;
  border: 1px solid $border; border-radius: .5rem }
.t { position: relative; border-radius: .15rem; padding-bottom: .12em; border-bottom-width: 2px;
  border-bottom-color: $ink;
  background: color-mix(in srgb, $heat var(--s), transparent) }
.top100 { border-bottom-style: dotted }
.top1000 { border-bottom-style: solid }
.beyond { border-bottom-style: double; border-bottom-width: 5px }
.legend .t { margin-right: 1.2rem; color: $ink }
.t:hover, .t:focus { outline: 2px solid $ink; outline-offset: 1px }
.t[data-tip]:hover::after, .t[data-tip]:focus::after { content: attr(data-tip); position: absolute; left: 0; top: 1.9em;
  z-index: 2; white-space: pre; padding: .5rem .7rem; border: 1px solid $border; border-radius: .4rem;
  background: $surface; color: $ink; font: 13px/1.5 ui-monospace, Menlo, Consolas, monospace; pointer-events: none }
"""


def score_page(texts: Iterable[Sequence[Row]], metadata: Mapping[str, Any], title: str, lang: Language = "en") -> str:
    """Return an HTML page of scored texts.

    Args:
        texts: the rows of each text, one for each token, as `SurprisalTable` computes them.
        metadata: the settings that determine the numbers, shown at the end of the page.
        title: the page's title.
        lang: the language of its words.
    """
    sections = "\n".join(_section(rows, lang) for rows in texts)
    settings = ", ".join(f"{key} {value}" for key, value in metadata.items() if value is not None)
    return f"""<!doctype html>
<html lang="{"zh-CN" if lang == "zh" else lang}">
<head>
{document_head(title, style=stylesheet(_STYLE))}
</head>
<body>
<h1>{html.escape(title)}</h1>
<p class="note">{_word("about", lang, bits=_FULL_TINT)}</p>
<p class="legend note">{_legend(lang)}</p>
{sections}
<p class="note">{html.escape(settings)}</p>
</body>
</html>
"""


def rank_class(rank: int) -> str:
    """Return the name of a rank's class."""
    return next((name for limit, name in RANK_CLASSES if rank < limit), _BEYOND)


def _word(key: str, lang: Language, **values: object) -> str:
    return _WORDS[key][lang == "zh"].format(**values)


def _classes() -> list[str]:
    return [*(name for _, name in RANK_CLASSES), _BEYOND]


def _legend(lang: Language) -> str:
    return " ".join(f'<span class="t {name}" style="--s:0%">{_word(name, lang)}</span>' for name in _classes())


def _section(rows: Sequence[Row], lang: Language) -> str:
    scored = [row for row in rows if row["surprisal"] is not None]
    total = math.fsum(row["surprisal"] for row in scored)
    counts = Counter(rank_class(row["rank"]) for row in scored)
    shares = _word("comma", lang).join(
        _word("share", lang, label=_word(name, lang), count=counts[name]) for name in _classes()
    )
    about = _word("total", lang, tokens=len(rows), bits=total)
    if scored:
        about += _word("mean", lang, mean=total / len(scored))
    return f"""<section>
<h2>{html.escape(str(rows[0]["text_id"]))}</h2>
<p class="note">{_word("shares", lang, total=about, shares=shares)}</p>
<div class="text">{"".join(_token(row, lang) for row in rows)}</div>
</section>"""


def _token(row: Row, lang: Language) -> str:
    text = html.escape(row["token"])
    if not text:  # a part of a character, which the token that completes it shows
        return ""
    if row["surprisal"] is None:
        tip = _word("nothing before", lang)
        return f'<span class="t" style="--s:0%" tabindex="0" data-tip="{tip}">{text}</span>'
    tint = min(1.0, row["surprisal"] / _FULL_TINT) * 55  # percent; the text stays readable on it
    name = rank_class(row["rank"])
    tip = html.escape(_tip(row, lang), quote=True).replace("\n", "&#10;")
    return f'<span class="t {name}" style="--s:{tint:.1f}%" tabindex="0" data-tip="{tip}">{text}</span>'


def _tip(row: Row, lang: Language) -> str:
    lines = [_word("tip", lang, bits=row["surprisal"], rank=row["rank"] + 1, entropy=row["entropy"])]
    place = 1
    while f"top_{place}" in row:
        chosen = "  ←" if row[f"top_{place}_id"] == row["token_id"] else ""
        share = 2.0 ** -row[f"top_{place}_surprisal"]
        lines.append(f"{share:7.2%}  {row[f'top_{place}']!r}{chosen}")
        place += 1
    return "\n".join(lines)
