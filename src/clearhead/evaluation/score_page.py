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
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from clearhead.drawing.palette import stylesheet
from clearhead.drawing.screen import document_head
from clearhead.evaluation.surprisal import Row

RANK_CLASSES = ((10, "top10", "top 10"), (100, "top100", "top 100"), (1000, "top1000", "top 1,000"))
"""The greatest number of likelier tokens plus one, the name in the style sheet, and the label of each class."""

_BEYOND = ("beyond", "beyond 1,000")
_FULL_TINT = 16.0  # bits; a token in 65,536 has the full tint

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


def score_page(texts: Iterable[Sequence[Row]], metadata: Mapping[str, Any], title: str) -> str:
    """Return an HTML page of scored texts.

    Args:
        texts: the rows of each text, one for each token, as `SurprisalTable` computes them.
        metadata: the settings that determine the numbers, shown at the end of the page.
        title: the page's title.
    """
    sections = "\n".join(_section(rows) for rows in texts)
    settings = ", ".join(f"{key} {value}" for key, value in metadata.items() if value is not None)
    return f"""<!doctype html>
<html lang="en">
<head>
{document_head(title, style=stylesheet(_STYLE))}
</head>
<body>
<h1>{html.escape(title)}</h1>
<p class="note">Stronger tint: more surprising to the model, from 0 to {_FULL_TINT:.0f} bits. The line under a token
says where it is in the model's ranking; point at a token for its numbers and for what was more likely.</p>
<p class="legend note">{_legend()}</p>
{sections}
<p class="note">{html.escape(settings)}</p>
</body>
</html>
"""


def rank_class(rank: int) -> tuple[str, str]:
    """Return the name and the label of a rank's class."""
    return next(((name, label) for limit, name, label in RANK_CLASSES if rank < limit), _BEYOND)


def _legend() -> str:
    classes = [(name, label) for _, name, label in RANK_CLASSES] + [_BEYOND]
    return " ".join(f'<span class="t {name}" style="--s:0%">{label}</span>' for name, label in classes)


def _section(rows: Sequence[Row]) -> str:
    scored = [row for row in rows if row["surprisal"] is not None]
    total = math.fsum(row["surprisal"] for row in scored)
    counts: dict[str, int] = {}
    for row in scored:
        label = rank_class(row["rank"])[1]
        counts[label] = counts.get(label, 0) + 1
    labels = [label for *_, label in RANK_CLASSES] + [_BEYOND[1]]
    shares = ", ".join(f"{label}: {counts.get(label, 0):,}" for label in labels)
    mean = f", {total / len(scored):.2f} a token" if scored else ""
    return f"""<section>
<h2>{html.escape(str(rows[0]["text_id"]))}</h2>
<p class="note">{len(rows):,} tokens, {total:,.1f} bits{mean}. {shares}.</p>
<div class="text">{"".join(map(_token, rows))}</div>
</section>"""


def _token(row: Row) -> str:
    text = html.escape(row["token"])
    if not text:  # a part of a character, which the token that completes it shows
        return ""
    if row["surprisal"] is None:
        return f'<span class="t" style="--s:0%" tabindex="0" data-tip="nothing comes before it">{text}</span>'
    tint = min(1.0, row["surprisal"] / _FULL_TINT) * 55  # percent; the text stays readable on it
    name, _ = rank_class(row["rank"])
    tip = html.escape(_tip(row), quote=True).replace("\n", "&#10;")
    return f'<span class="t {name}" style="--s:{tint:.1f}%" tabindex="0" data-tip="{tip}">{text}</span>'


def _tip(row: Row) -> str:
    lines = [f"{row['surprisal']:.2f} bits, rank {row['rank'] + 1:,}, entropy {row['entropy']:.2f} bits"]
    place = 1
    while f"top_{place}" in row:
        chosen = "  ←" if row[f"top_{place}_id"] == row["token_id"] else ""
        share = 2.0 ** -row[f"top_{place}_surprisal"]
        lines.append(f"{share:7.2%}  {row[f'top_{place}']!r}{chosen}")
        place += 1
    return "\n".join(lines)
