"""The drawing toolkit: palette, ticks, charts, heat maps, PNG."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from clearhead.drawing.chart import LineChart, LineSeries, line_chart, line_charts
from clearhead.drawing.heat_map import heat_map
from clearhead.drawing.palette import colour, stylesheet
from clearhead.drawing.png import png, save_picture
from clearhead.drawing.svg import text_width, wrap
from clearhead.drawing.ticks import logarithmic_ticks, power_text, tick_text, ticks
from clearhead.errors import InputError

SVG = "{http://www.w3.org/2000/svg}"
SQUARE = '<svg xmlns="http://www.w3.org/2000/svg" width="30" height="20"><rect width="9" height="9"/></svg>'


# Palette ---------------------------------------------------------------------------------------------------------


def test_a_style_sheet_is_written_once_for_both_themes() -> None:
    rules = ".a { fill: $ink; stroke-width: 2 } .b { opacity: 1 } .c { stroke: $grid }"
    light, dark, auto = (stylesheet(rules, theme) for theme in ("light", "dark", "auto"))
    assert light == rules.replace("$ink", colour("ink")).replace("$grid", colour("grid"))
    assert dark == rules.replace("$ink", colour("ink", "dark")).replace("$grid", colour("grid", "dark"))
    assert auto.startswith(light)
    media = auto.removeprefix(light)
    assert media.startswith("@media screen and (prefers-color-scheme: dark)")
    assert f".a {{ fill: {colour('ink', 'dark')} }}" in media
    assert "stroke-width" not in media
    assert ".b" not in media


def test_an_unknown_theme_is_an_error() -> None:
    with pytest.raises(InputError, match="'blue' is not a theme"):
        stylesheet("", "blue")


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("text", ["ink", "body", "soft", "series0", "series1", "series2", "series3"])
def test_words_and_lines_can_be_read_on_their_ground(text: str, theme: str) -> None:
    for ground in ("paper", "card", "panel"):
        assert contrast(colour(text, theme), colour(ground, theme)) >= 4.5


def contrast(one: str, other: str) -> float:
    """Return the contrast ratio of WCAG 2."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(value: str) -> float:
    channels = [int(value[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


# Ticks -----------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=100)
@given(st.floats(-1e300, 1e300), st.floats(-1e300, 1e300) | st.floats(-1e-6, 1e-6))
@example(-394658.0, 6.1e-05)  # the second is a billionth of a tick's distance above 0
@example(0.3, 0.7)  # 0.3 / 0.1 is less than 3
@example(1.0, 1.0000000000000002)
@example(0.0, 5e-324)
@example(0.0, 0.0)
def test_ticks_are_few_and_around_the_values(one: float, other: float) -> None:
    found = ticks(min(one, other), max(one, other))
    assert 2 <= len(found) <= 9
    assert found[0] <= min(one, other)
    assert found[-1] >= max(one, other)
    assert np.all(np.diff(found) > 0)
    assert np.allclose(np.diff(found) / (found[1] - found[0]), 1, rtol=1e-3)


def test_ticks_are_the_nearest_numbers_to_round_ones() -> None:
    assert ticks(0.3, 0.7) == [0.3, 0.4, 0.5, 0.6, 0.7]
    assert ticks(0.0, 6.1e-05) == [0.0, 2e-05, 4e-05, 6e-05, 8e-05]
    assert ticks(-394658.0, 6.1e-05) == [-400000, -300000, -200000, -100000, 0, 100000]


@settings(deadline=None, max_examples=100)
@given(st.floats(-300, 300), st.floats(0, 400))
@example(0.0, 0.0)
@example(-9.0, 10.7)
def test_logarithmic_ticks_are_few_and_around_the_values(low: float, span: float) -> None:
    found = logarithmic_ticks(low, low + span)
    assert 2 <= len(found) <= 9
    assert found[0] <= low + 1e-6
    assert found[-1] >= low + span - 1e-6
    assert np.all(np.diff(found) > 0)


def test_tick_texts_have_the_decimals_that_the_distance_needs() -> None:
    assert [tick_text(value, 0.25) for value in (0.0, 0.25, 0.5)] == ["0.00", "0.25", "0.50"]
    assert tick_text(12500.0, 500) == "12.5k"
    assert [power_text(exponent) for exponent in (-9.0, 0.0, 13.0)] == ["10⁻⁹", "10⁰", "10¹³"]


# Charts ----------------------------------------------------------------------------------------------------------

LINES = {"one": [(0.0, 1e-9), (1.0, 1.0), (2.0, 50.0)], "a < b & c": [(0.0, 2.0), (2.0, 2.0)]}


@pytest.mark.parametrize(
    "svg",
    [
        line_chart("title", LINES, x="x", y="y", logarithmic=True),
        line_chart("flat", {"flat": [(0.0, 1.0), (1.0, 1.0)]}, x="x", y="y"),
        line_charts([LineChart("one", [LineSeries("a", [(1.0, 2.0)])])] * 3, "three", "three charts"),
        heat_map("title", [[1.0, 0.0], [0.004, 0.996]], ["a", "b"], ["<a>", "b"]),
    ],
)
def test_a_picture_is_an_image_that_a_renderer_accepts(svg: str) -> None:
    pytest.importorskip("resvg_py")
    assert png(svg).startswith(b"\x89PNG\r\n")


def test_a_chart_draws_every_point_at_its_value() -> None:
    points = [(0.0, 0.0), (1.0, 5.0), (4.0, 10.0)]
    svg = ElementTree.fromstring(line_chart("t", {"line": points}, x="x", y="y"))
    (frame,) = (r for r in svg.iter(f"{SVG}rect") if r.get("class") == "frame")
    (line,) = (p for p in svg.iter(f"{SVG}path") if "line" in str(p.get("class")))
    left, top, width, height = (float(frame.get(key) or "nan") for key in ("x", "y", "width", "height"))
    drawn = [tuple(map(float, point.split())) for point in str(line.get("d"))[1:].split("L")]
    expected = [(left + x / 4 * width, top + (10 - y) / 10 * height) for x, y in points]
    assert np.allclose(drawn, expected, atol=0.06)


def test_a_logarithmic_axis_shows_powers_of_ten() -> None:
    svg = line_chart("title", LINES, x="x", y="y", logarithmic=True)
    assert ">10⁻¹⁰<" in svg
    assert ">10⁵<" in svg


def test_a_logarithmic_axis_of_less_than_two_powers_shows_the_numbers_between() -> None:
    svg = line_chart("norm", {"a": [(0.0, 1.5), (1.0, 6.0)]}, x="step", y="norm", logarithmic=True)
    assert re.findall(r'text-anchor="end"[^>]*>([^<]*)<', svg) == ["1", "2", "5", "10", "step"]


def test_a_faint_line_does_not_stretch_the_axis() -> None:
    calm, wild = [(0.0, 1.0), (1.0, 2.0)], [(0.0, 1.0), (1.0, 1e6)]
    chart = LineChart("t", [LineSeries("calm", calm), LineSeries("wild", wild, faint=True)])
    assert "1000k" not in line_charts([chart], "t", "t")


def test_whole_numbers_get_whole_ticks() -> None:
    svg = line_chart("layers", {"a": [(n, n / 3) for n in range(5)]}, x="layer", y="y")
    assert re.findall(r'text-anchor="middle"[^>]*>([^<]*)<', svg) == ["0", "1", "2", "3", "4"]


def test_a_long_name_is_cut_to_its_part_of_the_legend() -> None:
    names = [f"a run with a very long name {n}" for n in range(6)]
    svg = line_charts([LineChart("t", [LineSeries(name, [(0.0, 1.0), (1.0, 2.0)]) for name in names])], "t", "t")
    assert svg.count("…</text>") == 6


def test_a_heat_map_writes_the_shares_that_can_be_seen() -> None:
    svg = heat_map("t", [[1.0, 0.0], [0.004, 0.996]], ["a", "b"], ["c", "d"])
    assert re.findall(r">(\d+%)<", svg) == ["100%", "100%"]
    assert svg.count('class="cell"') == 3


# Text and files --------------------------------------------------------------------------------------------------


@given(st.text(st.sampled_from("abc ，。词元图"), max_size=80))
def test_wrapped_lines_keep_the_text_and_the_width(text: str) -> None:
    text = " ".join(text.split())
    lines = wrap(text, 10, 60)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert all(text_width(line.rstrip("，。 "), 10) <= 60 or " " not in line.strip() for line in lines)


def test_a_png_is_twice_the_size_of_its_svg() -> None:
    pytest.importorskip("resvg_py")
    data = png(SQUARE)
    assert (int.from_bytes(data[16:20]), int.from_bytes(data[20:24])) == (60, 40)


def test_a_picture_is_saved_in_the_format_that_its_name_says(tmp_path: Path) -> None:
    pytest.importorskip("resvg_py")
    for name, start in (("a.svg", b"<svg"), ("a.PNG", b"\x89PNG")):
        save_picture(SQUARE, tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(start)
    with pytest.raises(InputError, match=r"neither in \.svg nor in \.png"):
        save_picture(SQUARE, tmp_path / "a.gif")
    with pytest.raises(InputError, match="could not be written"):
        save_picture(SQUARE, tmp_path / "nowhere" / "a.svg")
