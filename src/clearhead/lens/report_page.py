"""The report of a model as one HTML page that needs no network and no script."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

from clearhead.drawing.chart import line_chart
from clearhead.drawing.heat_map import signed_heat_map
from clearhead.drawing.screen import document_head, screen_css
from clearhead.drawing.svg import inline
from clearhead.lens.predictions import LayerPredictions
from clearhead.lens.report import LensReport, Strongest

_TEMPLATE = Path(__file__).with_name("report.html")
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"

_WORDS: dict[str, tuple[str, str]] = {
    "title": ("What the heads of {name} do", "{name} 的注意力头在做什么"),
    "about": (
        "{n_layers} layers with {n_heads} heads each, {emb_dim} numbers per token.",
        "{n_layers} 层，每层 {n_heads} 个头，嵌入 {emb_dim} 维。",
    ),
    "previous token": ("previous token", "前一个词元"),
    "duplicate token": ("duplicate token", "重复词元"),
    "induction": ("induction", "归纳"),
    "copying": ("copying", "复制"),
    "kind": ("kind", "类型"),
    "strongest": ("strongest head", "最强的头"),
    "score": ("score", "得分"),
    "layer": ("layer {i}", "第 {i} 层"),
    "head": ("head {i}", "头 {i}"),
    "kinds": ("Heads by what they do", "按作用给头分类"),
    "kinds.text": (
        "Random tokens are repeated once. A head that attends to the token before, to the earlier copy of a token, or "
        "to the token after that copy (induction) shows it there as a mean weight from 0 to 1. Copying, from -1 to 1, "
        "is read from the weights: whether a head that reads a token raises that token's logit.",
        "输入是一串随机词元，整串重复一遍。关注前一个词元、关注同一词元的上一次出现、"
        "关注上一次出现之后的那个词元（归纳头），都表现为平均注意力权重（0 到 1）。"
        "复制得分（-1 到 1）直接由权重矩阵算出：头读到一个词元时，是否提高该词元的 logit。",
    ),
    "patterns": ("Their attention on a repeated text", "这些头在重复文本上的注意力"),
    "patterns.text": (
        "Rows are the tokens that look, columns the tokens that are looked at.",
        "行是查询词元，列是被关注的词元。",
    ),
    "removal": ("What each head is worth on repeated tokens", "每个头对预测重复词元的贡献"),
    "removal.text": (
        "The mean loss is {first:.2f} nats on random tokens and {second:.2f} on their repetition. The picture shows "
        "how much the latter rises if one head's output is replaced by its mean.",
        "随机词元上的平均损失是 {first:.2f} 奈特，重复部分是 {second:.2f}。"
        "图中是把一个头的输出换成其均值后，重复部分的损失增加多少。",
    ),
    "removal.picture": ("added loss in nats", "损失的增量（奈特）"),
    "depth": ("What each depth would predict", "每个深度会预测什么"),
    "depth.text": (
        "The logit lens: the final norm and the head read the residual stream after each sublayer. The divergence is "
        "that of the depth's distribution from the final one, averaged over the text.",
        "logit 透镜：用最后的归一化和输出层直接读取每个子层之后的残差流。"
        "散度衡量该深度的概率分布与最终分布的差距，对全文取平均。",
    ),
    "depth.picture": ("KL(final || depth) by depth", "各深度的 KL(最终 || 该深度)"),
    "depth.x": ("sublayers", "经过的子层数"),
    "depth.y": ("nats", "奈特"),
}


def report_page(report: LensReport, name: str, language: str = "en") -> str:
    """Return the page.

    Args:
        report: what was measured.
        name: the model's name.
        language: `en` or `zh`.
    """
    page = _Page(report, language)
    config = report.config
    texts = {
        "LANG": language,
        "HEAD": document_head(page.word("title", name=name), policy=_POLICY, style=screen_css()),
        "TITLE": escape(page.word("title", name=name)),
        "ABOUT": escape(page.word("about", n_layers=config.n_layers, n_heads=config.n_heads, emb_dim=config.emb_dim)),
        "SECTIONS": "\n".join(page.sections()),
    }
    return re.sub(
        r"@(LANG|HEAD|TITLE|ABOUT|SECTIONS)@", lambda mark: texts[mark[1]], _TEMPLATE.read_text(encoding="utf-8")
    )


class _Page:
    """The sections of a report in one language."""

    def __init__(self, report: LensReport, language: str) -> None:
        self._report, self._language = report, language

    def word(self, key: str, **values: object) -> str:
        """Return a text in the page's language."""
        return _WORDS[key][self._language == "zh"].format(**values)

    def sections(self) -> list[str]:
        """Return the sections in order."""
        found = [self._kinds(), self._patterns(), self._removal()]
        if self._report.predictions is not None:
            found.append(self._depths(self._report.predictions))
        return [_section(number, *parts) for number, parts in enumerate(found, 1)]

    def _kinds(self) -> tuple[str, str, str]:
        rows = "".join(
            f'<tr><td>{self.word(one.kind)}</td><td>{self._where(one)}</td><td class="n">{one.score:.2f}</td></tr>'
            for one in self._report.strongest
        )
        head = f"<th>{self.word('kind')}</th><th>{self.word('strongest')}</th><th class='n'>{self.word('score')}</th>"
        scores = self._report.scores
        maps = [
            self._by_head(self.word(kind), values.tolist())
            for kind, values in zip(scores.labels[0], scores.values, strict=True)
        ]
        body = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{_pictures(maps)}"
        return self.word("kinds"), self.word("kinds.text"), body

    def _where(self, one: Strongest) -> str:
        return f"{self.word('layer', i=one.layer)} · {self.word('head', i=one.head)}"

    def _patterns(self) -> tuple[str, str, str]:
        pictures = []
        for one in self._report.strongest:
            tokens, _ = one.pattern.labels
            title = f"{self.word(one.kind)} ({self._where(one)})"
            pictures.append(signed_heat_map(title, one.pattern.values.tolist(), tokens, tokens, lang=self._language))
        return self.word("patterns"), self.word("patterns.text"), _pictures(pictures)

    def _removal(self) -> tuple[str, str, str]:
        report = self._report
        text = self.word("removal.text", first=report.first_loss, second=report.second_loss)
        picture = self._by_head(self.word("removal.picture"), report.removal.values.tolist())
        return self.word("removal"), text, _pictures([picture])

    def _depths(self, found: LayerPredictions) -> tuple[str, str, str]:
        curve = [(float(i), float(value)) for i, value in enumerate(found.kl.values.mean(1))]
        chart = line_chart(
            self.word("depth.picture"),
            {"KL": curve},
            x=self.word("depth.x"),
            y=self.word("depth.y"),
            lang=self._language,
        )
        return self.word("depth"), self.word("depth.text"), _pictures([chart, found.to_svg(self._language)])

    def _by_head(self, title: str, values: Sequence[Sequence[float]]) -> str:
        rows = [self.word("layer", i=i) for i in range(len(values))]
        columns = [self.word("head", i=i) for i in range(len(values[0]))]
        return signed_heat_map(title, values, rows, columns, lang=self._language)


def _section(number: int, title: str, text: str, body: str) -> str:
    return f'<section><h2><b>{number}</b>{escape(title)}</h2><p class="soft">{escape(text)}</p>{body}</section>'


def _pictures(pictures: Sequence[str]) -> str:
    inner = "".join(f'<div class="picture" tabindex="0">{inline(picture)}</div>' for picture in pictures)
    return f'<div class="pictures">{inner}</div>'
