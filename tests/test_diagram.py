"""The framework diagram: its numbers and shapes against the real model, its words and its page."""

import re
import string
from collections.abc import Iterator
from itertools import combinations
from typing import Any
from unittest import mock

import pytest
import torch
from diagram_configs import configs
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.overrides import TorchFunctionMode

from clearhead.anatomy import count_parameters
from clearhead.anatomy.diagram import words as diagram_words
from clearhead.anatomy.diagram.diagram import make_diagram
from clearhead.anatomy.diagram.geometry import LABEL, PageLayout, Rectangle
from clearhead.anatomy.diagram.layout import LAYOUTS, lay_out
from clearhead.anatomy.diagram.panel_grid import label_width
from clearhead.anatomy.diagram.words import LANGUAGES
from clearhead.config import RELEASED, GPTConfig
from clearhead.drawing.svg import wrap
from clearhead.errors import InputError
from clearhead.model import GPTModel

# --- Numbers -----------------------------------------------------------------------------------------------------


@given(configs(), st.sampled_from(["en", "zh"]))
@settings(deadline=None, max_examples=60)
def test_counts_in_the_boxes_sum_to_the_model(config: GPTConfig, lang: str) -> None:
    figure = make_diagram(config, "a model", lang)
    total = count_parameters(config).total
    sums = {p.key: sum(box.parameters * box.times for box in p.boxes) for p in figure.panels}
    opened = {box.key: box.parameters * box.times for box in figure.panels[0].boxes}
    assert sums["model"] == figure.total == total == sum(share.parameters for share in figure.shares)
    assert sums["attention"] == opened["attention"] == config.n_layers * count(config, "attention")
    assert sums["feed_forward"] == opened["feed_forward"] == config.n_layers * count(config, "feed_forward")
    for panel in figure.panels:
        for box in panel.boxes:
            assert not box.parameters or box.detail[-1].endswith(f"= {box.parameters:,}")


def count(config: GPTConfig, name: str) -> int:
    (part,) = (part for _, part in count_parameters(config).rows() if part.name == name)
    return part.count


class Calls(TorchFunctionMode):
    """Writes down the shape of what each function of torch's gives."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: dict[str, list[tuple[int, ...]]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        first = out[0] if isinstance(out, tuple | list) and len(out) else out
        if isinstance(first, Tensor):
            self.shapes.setdefault(func.__name__, []).append(tuple(first.shape))
        return out


def real_shapes(config: GPTConfig, batch: int, tokens: int) -> dict[str, tuple[int, ...]]:
    """What leaves each box of the figure in a forward pass of our model."""
    model = GPTModel(config, plain=True).train()
    found: dict[str, list[tuple[int, ...]]] = {}

    def hook(name: str) -> Any:
        def note(module: Any, inputs: Any, output: Tensor) -> None:
            found.setdefault(f"{name} in", []).append(tuple(inputs[0].shape))
            found.setdefault(name, []).append(tuple(output.shape))

        return note

    for name, module in model.named_modules():
        module.register_forward_hook(hook(name))
    with Calls() as calls:
        ids = torch.zeros(batch, tokens, dtype=torch.long)
        model(ids)
    products = calls.shapes["matmul"] if "matmul" in calls.shapes else calls.shapes["__matmul__"]
    block = "blocks.0"
    return {
        "ids": found["token_embedding in"][0],
        "positions": found["position_embedding in"][0],
        "token": found["token_embedding"][0],
        "position": found["position_embedding"][0],
        "add": found["dropout in"][0],
        "dropout": found["dropout"][0],
        "norm_1": found[f"{block}.norm_1"][0],
        "attention": found[f"{block}.attention"][0],
        "drop_1": found[f"{block}.dropout"][0],
        "add_1": found[f"{block}.norm_2 in"][0],
        "norm_2": found[f"{block}.norm_2"][0],
        "feed_forward": found[f"{block}.feed_forward"][0],
        "drop_2": found[f"{block}.dropout"][1],
        "add_2": found[block][0],
        "final_norm": found["final_norm"][0],
        "head": found["head"][0],
        "attention.in": found[f"{block}.attention in"][0],
        "W_query": calls.shapes["split"][0],
        "W_key": calls.shapes["split"][0],
        "W_value": calls.shapes["split"][0],
        "split": calls.shapes["transpose"][0],
        "scores": products[0],
        "mask": calls.shapes["masked_fill"][0],
        "softmax": calls.shapes["softmax"][0],
        "drop_weights": calls.shapes["softmax"][0],
        "mix": products[1],
        "join": calls.shapes["reshape"][0],
        "out": found[f"{block}.attention.out"][0],
        "feed_forward.in": found[f"{block}.feed_forward in"][0],
        "up": found[f"{block}.feed_forward.up"][0],
        "gelu": found[f"{block}.feed_forward.gelu"][0],
        "down": found[f"{block}.feed_forward.down"][0],
    }


@pytest.mark.parametrize("ff_dim", [0, 21])
def test_every_arrow_carries_the_shape_of_a_real_pass(ff_dim: int) -> None:
    config = GPTConfig(59, 13, 24, 3, 2, drop_rate=0.1, tie_weights=True, ff_dim=ff_dim)
    shapes = real_shapes(config, 2, 7)
    figure = make_diagram(config, "a model", batch=2, tokens=7)
    arrows = [arrow for panel in figure.panels for arrow in panel.arrows if arrow.route != "tie"]
    assert {arrow.start for arrow in arrows} == set(shapes)
    for arrow in arrows:
        assert arrow.label == str(list(shapes[arrow.start])), arrow
    with_letters = make_diagram(config, "a model")
    named = [arrow.label for panel in with_letters.panels for arrow in panel.arrows if arrow.route != "tie"]
    assert {re.sub(r"\bT\b", "7", label.replace("B", "2")) for label in named} == {arrow.label for arrow in arrows}


def test_boxes_and_arrows_hang_together() -> None:
    for panel in make_diagram(RELEASED["124M"], "GPT-2").panels:
        keys = [box.key for box in panel.boxes]
        assert len(set(keys)) == len(keys)
        fed = {arrow.end for arrow in panel.arrows}
        feeding = {arrow.start for arrow in panel.arrows}
        assert fed | feeding == set(keys)
        rows = {box.key: box.row for box in panel.boxes}
        assert all(rows[a.start] < rows[a.end] for a in panel.arrows if a.route != "tie"), "a token travels upwards"
        for box in panel.boxes:
            enters = sum(arrow.end == box.key and arrow.route != "tie" for arrow in panel.arrows)
            assert box.kind != "sum" or enters == 2


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"lang": "fr"}, "'fr' is not a language of the diagram; choose one of en, zh"),
        ({"tokens": 1025}, "requested for 1,025 tokens, but this model has 1,024 positions; give 1 to 1,024"),
        ({"batch": -1}, "the batch is -1; give at least 1"),
    ],
)
def test_what_cannot_be_drawn(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        make_diagram(RELEASED["124M"], "GPT-2", **options)


# --- Words -------------------------------------------------------------------------------------------------------


def test_both_languages_have_every_string() -> None:
    english, chinese = LANGUAGES["en"], LANGUAGES["zh"]
    assert list(english) == list(chinese)
    for key, words in english.items():
        fields = [{name for _, name, _, _ in string.Formatter().parse(text) if name} for text in (words, chinese[key])]
        assert fields[0] == fields[1], key
        assert words and chinese[key]


class Noted(dict[str, str]):
    """Words that know which of them were asked for."""

    asked: set[str]

    def __getitem__(self, key: str) -> str:
        self.asked.add(key)
        return super().__getitem__(key)


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_every_string_is_used(lang: str) -> None:
    words = Noted(LANGUAGES[lang])
    words.asked = set()
    with mock.patch.dict(diagram_words.LANGUAGES, {lang: words}):
        make_diagram(RELEASED["124M"], "GPT-2", lang)
        make_diagram(GPTConfig(9, 9, 4, 1, 1, activation="gelu_erf"), "small", lang, book=True)
        make_diagram(GPTConfig(9, 9, 4, 1, 1, activation="relu"), "small", lang)
    assert words.asked == set(words)


@given(st.text("abc 词元，。", max_size=60), st.integers(30, 200))
@settings(deadline=None, max_examples=40)
def test_wrapped_text_is_all_there(text: str, width: int) -> None:
    assert "".join("".join(wrap(text, 12, width)).split()) == "".join(text.split())


# --- The page ----------------------------------------------------------------------------------------------------


def overlap(one: Rectangle, other: Rectangle) -> bool:
    x = min(one.right, other.right) - max(one.x, other.x)
    y = min(one.bottom, other.bottom) - max(one.y, other.y)
    return x > 1e-6 and y > 1e-6


def inside(inner: Rectangle, outer: Rectangle, by: float = 1e-6) -> bool:
    return (
        inner.x >= outer.x - by
        and inner.right <= outer.right + by
        and inner.y >= outer.y - by
        and inner.bottom <= outer.bottom + by
    )


def labels(page: PageLayout) -> Iterator[tuple[str, Rectangle]]:
    for panel in page.panels:
        for line in panel.arrows:
            (x, y), wide = line.label, label_width(line.arrow.label)
            if line.rotated:
                yield line.arrow.label, Rectangle(x - LABEL, y - wide / 2, LABEL, wide)
            else:
                yield line.arrow.label, Rectangle(x, y - LABEL, wide, LABEL)


@given(configs(), st.sampled_from(["en", "zh"]), st.sampled_from(LAYOUTS), st.integers(0, 1))
@settings(deadline=None, max_examples=80)
def test_nothing_overlaps(config: GPTConfig, lang: str, layout: str, batch: int) -> None:
    page = lay_out(make_diagram(config, "some model", lang, batch=batch * 1024), layout)
    whole = Rectangle(0, 0, page.width, page.height)
    for one, other in combinations([page.heading.area, *(panel.area for panel in page.panels)], 2):
        assert not overlap(one, other)
    boxes = [place for panel in page.panels for place in panel.boxes.values()]
    for one, other in combinations(boxes, 2):
        assert not overlap(one, other)
    for panel in page.panels:
        assert all(inside(place, panel.area) for place in panel.boxes.values())
        assert inside(panel.area, whole)
    written = list(labels(page))
    for text, place in written:
        assert inside(place, whole), text
        assert not any(overlap(place, box) for box in boxes), text
    for (text, one), (_, other) in combinations(written, 2):
        assert not overlap(one, other), text
    frame = page.panels[0].frame
    assert frame is not None
    for box in page.panels[0].panel.boxes:
        place = page.panels[0].boxes[box.key]
        assert inside(place, frame) if 4 <= box.row <= 11 else not overlap(place, frame)
