"""The framework diagram as SVG, Mermaid and PNG, as a browser measures it, and as the command writes it."""

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any
from unittest import mock

import command_line
import pytest
from browsers import CHROMIUM, needs_chromium
from diagram_configs import configs
from hypothesis import given, settings
from hypothesis import strategies as st

from clearhead.anatomy.diagram.diagram import Diagram, make_diagram
from clearhead.anatomy.diagram.layout import LAYOUTS
from clearhead.anatomy.diagram.mermaid import diagram_mermaid
from clearhead.anatomy.diagram.svg import diagram_svg
from clearhead.config import RELEASED, GPTConfig
from clearhead.drawing import png as pixels
from clearhead.drawing.png import png
from clearhead.errors import InputError

DOCS = Path(__file__).parents[1] / "docs"
SVG = "{http://www.w3.org/2000/svg}"


# --- The drawing -------------------------------------------------------------------------------------------------


def figures() -> dict[str, str]:
    """Drawings of many kinds, by what they are."""
    book = RELEASED["124M"].replace(qkv_bias=False, tie_weights=False)
    tiny = GPTConfig(9, 9, 4, 1, 1, activation="gelu_erf")
    wide = GPTConfig(999_983, 100_000, 12_288, 96, 120, drop_rate=0.25, qkv_bias=True)
    return {
        f"{name} {lang} {layout}": diagram_svg(make_diagram(config, name, lang, **numbers), layout=layout)
        for name, config, numbers in (
            ("GPT-2 124M", RELEASED["124M"], {}),
            ("GPT-2 1558M", RELEASED["1558M"], {"tokens": 4}),
            ("the book's", book, {"book": True}),
            ("tiny", tiny, {}),
            ("wide", wide, {"batch": 512, "tokens": 100_000}),
        )
        for lang in ("en", "zh")
        for layout in LAYOUTS
    }


def test_svg_is_xml_with_text_and_a_description() -> None:
    for name, svg in figures().items():
        root = ET.fromstring(svg)
        assert root.tag == f"{SVG}svg" and root.get("role") == "img"
        title, about = root.findtext(f"{SVG}title"), root.findtext(f"{SVG}desc")
        assert title and about and title.split()[0] == name.split()[0].partition("（")[0]
        words = [node.text for node in root.iter(f"{SVG}text")]
        assert all(words) and len(words) > 80
        counts = [(int(g.get("data-parameters", "0")), int(g.get("data-times", "0"))) for g in root.iter(f"{SVG}g")]
        keys = [g.get("id") for g in root.iter(f"{SVG}g")]
        assert len(set(keys)) == len(keys) == 35
        model = sum(parameters * times for parameters, times in counts[:17])
        assert f"{model:,}" in about
        classes = {name for node in root.iter() for name in (node.get("class") or "").split()}
        style = root.findtext(f"{SVG}style") or ""
        assert {name for name in classes if not re.search(rf"\.{name}\b", style)} == set()


def test_a_name_cannot_break_the_drawing() -> None:
    for name in ('"]<b>&x', "a\x00b\ud800", "-->", "x" * 200):
        figure = make_diagram(RELEASED["124M"], name)
        root = ET.fromstring(diagram_svg(figure))
        assert root.find(f".//{SVG}b") is None
        assert len(diagram_mermaid(figure).splitlines()) == len(
            diagram_mermaid(make_diagram(RELEASED["124M"], "n")).splitlines()
        )


def test_themes() -> None:
    figure = make_diagram(RELEASED["124M"], "GPT-2 124M")
    light, dark, auto = (diagram_svg(figure, theme) for theme in ("light", "dark", "auto"))
    assert "@media" not in light + dark
    assert "@media screen and (prefers-color-scheme: dark)" in auto
    assert light != dark
    with pytest.raises(InputError, match="'sepia' is not a theme; choose one of auto, light, dark"):
        diagram_svg(figure, "sepia")
    with pytest.raises(InputError, match="'tall' is not a layout; choose one of page, slide, column"):
        diagram_svg(figure, layout="tall")


MEASURE = """
<meta charset="utf-8"><body><script>
const drawings = DRAWINGS, found = {};
const rect = (node) => { const r = node.getBoundingClientRect(); return [r.left, r.top, r.right, r.bottom]; };
for (const [name, svg] of Object.entries(drawings)) {
  const root = document.body.appendChild(document.createElement("div")).attachShadow({mode: "open"});
  root.innerHTML = svg;
  const paper = rect(root.querySelector("svg")), bad = [], texts = [...root.querySelectorAll("text")];
  const within = (a, b) => a[0] >= b[0] && a[1] >= b[1] && a[2] <= b[2] && a[3] <= b[3];
  for (const g of root.querySelectorAll("g")) {
    const box = rect(g.querySelector("rect, circle"));
    for (const t of g.querySelectorAll("text")) if (!within(rect(t), box)) bad.push("leaves its box: " + t.textContent);
    for (const p of g.querySelectorAll(".axis, .curve, .seen, .unseen")) for (const t of g.querySelectorAll("text"))
      if (rect(p)[2] > rect(t)[0]) bad.push("meets a picture: " + t.textContent);
  }
  texts.forEach((t, i) => {
    const a = rect(t);
    if (!within(a, paper)) bad.push("leaves the page: " + t.textContent);
    for (const other of texts.slice(i + 1)) {
      const b = rect(other), x = Math.min(a[2], b[2]) - Math.max(a[0], b[0]);
      const y = Math.min(a[3], b[3]) - Math.max(a[1], b[1]);
      if (x > 0.5 && y > 3.5) bad.push("meets: " + t.textContent + " / " + other.textContent);
    }
  });
  found[name] = [texts.length, bad];
}
document.body.textContent = "FOUND" + JSON.stringify(found) + "END";
</script>
"""


@pytest.mark.slow
@needs_chromium
def test_text_stays_in_its_box_in_a_browser(tmp_path: Path) -> None:
    drawings = figures()
    page = tmp_path / "page.html"
    page.write_text(MEASURE.replace("DRAWINGS", json.dumps(drawings).replace("</", "<\\/")), encoding="utf-8")
    switches = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    switches += " --disable-component-update --disable-sync --dump-dom"
    result = subprocess.run(
        [str(CHROMIUM), *switches.split(), f"--user-data-dir={tmp_path / 'profile'}", page.as_uri()],
        capture_output=True,
        timeout=120,
    )
    measured = re.search(r"FOUND(.*)END", result.stdout.decode(), re.DOTALL)
    assert measured, result.stderr.decode()
    found = json.loads(measured[1].replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">"))
    assert found.keys() == drawings.keys()
    assert all(texts > 80 for texts, _ in found.values())
    assert {name: bad for name, (_, bad) in found.items() if bad} == {}


@pytest.mark.parametrize(("name", "lang"), [("diagram.svg", "en"), ("diagram.zh.svg", "zh")])
def test_the_drawings_in_the_docs_are_up_to_date(name: str, lang: str) -> None:
    drawn = diagram_svg(make_diagram(RELEASED["124M"], "GPT-2 124M", lang))
    how = f"clearhead diagram 124M --lang {lang} -o docs/{name}"
    assert (DOCS / name).read_text(encoding="utf-8") == drawn, f"draw it anew: {how}"


# --- Mermaid and pixels ------------------------------------------------------------------------------------------


@pytest.mark.slow
@given(configs(), st.sampled_from(["en", "zh"]), st.text(max_size=20))
@settings(deadline=None, max_examples=40)
def test_mermaid_is_well_formed(config: GPTConfig, lang: str, name: str) -> None:
    figure = make_diagram(config, name, lang)
    lines = [line.strip() for line in diagram_mermaid(figure).splitlines()]
    assert lines[0] == "flowchart BT"
    words = r'"[^"]+"'
    nodes = {
        m[1]
        for line in lines
        if (m := re.fullmatch(rf"(n_\w+)(?:\[{words}\]|\(\[{words}\]\)|\(\({words}\)\)):::\w+", line))
    }
    links = [m for line in lines if (m := re.fullmatch(rf"(n_\w+) (?:-->|-\.-)\|{words}\| (n_\w+)", line))]
    assert len(nodes) == sum(len(panel.boxes) for panel in figure.panels)
    assert len(links) == sum(len(panel.arrows) for panel in figure.panels)
    assert {key for link in links for key in link.groups()} == nodes
    rest = [line for line in lines if not line.startswith("n_")]
    known = (
        rf"subgraph \w+\[{words}\]|end|direction BT|style \w+ \S+|classDef \w+ [\S ]+|acc(Title|Descr): .*|flowchart BT"
    )
    assert all(re.fullmatch(known, line) for line in rest), rest
    assert sum(line.startswith("subgraph") for line in lines) == lines.count("end") == 3


def small() -> Diagram:
    return make_diagram(GPTConfig(9, 9, 4, 1, 1), "small")


def test_png_is_the_drawing_in_pixels() -> None:
    pytest.importorskip("resvg_py")
    svg = diagram_svg(small(), "light")
    width, height = (int(ET.fromstring(svg).get(side, "0")) for side in ("width", "height"))
    drawn = png(svg, 0.5)
    assert drawn.startswith(b"\x89PNG\r\n\x1a\n")
    assert abs(int.from_bytes(drawn[16:20]) - width / 2) <= 1 and abs(int.from_bytes(drawn[20:24]) - height / 2) <= 1
    assert png(diagram_svg(small(), "dark"), 0.5) != drawn
    for scale in (0.0, 11.0, float("nan")):
        with pytest.raises(InputError, match="the scale is"):
            png(svg, scale)


def test_png_without_what_it_needs_is_refused() -> None:
    svg = diagram_svg(make_diagram(GPTConfig(9, 9, 4, 1, 1), "small", "zh"), "light")
    with mock.patch.dict(sys.modules, {"resvg_py": None}), pytest.raises(InputError, match=r"clearhead\[diagram\]"):
        png(svg)
    resvg = pytest.importorskip("resvg_py")
    draw = resvg.svg_to_bytes

    def without_chinese(svg_string: str, **options: Any) -> bytes:
        return bytes(draw(svg_string=re.sub("[\u4e00-\u9fff]", "\U000e0fff", svg_string), **options))

    pixels._has_chinese.cache_clear()
    with mock.patch.object(resvg, "svg_to_bytes", without_chinese), pytest.raises(InputError, match="Noto Sans CJK"):
        png(svg)
    pixels._has_chinese.cache_clear()


# --- The command -------------------------------------------------------------------------------------------------


def call(*args: object) -> tuple[int, bytes, str]:
    """Run the verb in this process; return its exit status, standard output and standard error."""
    result = command_line.call("diagram", *args)
    return result.returncode, result.stdout, result.stderr.decode()


def test_command_writes_what_the_ending_says(tmp_path: Path) -> None:
    pytest.importorskip("resvg_py")
    for name, start in (("a.svg", b"<svg "), ("a.png", b"\x89PNG"), ("a.MMD", b"flowchart BT\n")):
        status, printed, said = call("bundled", "-o", tmp_path / name, "--scale", "0.5")
        assert (status, printed) == (0, b"") and said.endswith(f"{name}.\n")
        assert (tmp_path / name).read_bytes().startswith(start)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.MMD", "a.png", "a.svg"]


def test_command_on_standard_output() -> None:
    status, svg, _ = call("124M", "--book", "--tokens", "4")
    words = [node.text for node in ET.fromstring(svg).iter(f"{SVG}text")]
    assert status == 0 and "163,009,536 parameters" in words and "[B, 4, 50257]" in words
    assert "GPT-2 124M, as in the book" in words
    status, mermaid, _ = call("124M", "--mermaid", "--lang", "zh")
    assert status == 0 and "词元嵌入" in mermaid.decode()


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["-o", "x.pdf"], "x.pdf does not end in .svg, .png or .mmd"),
        (["-o", "x.svg", "--mermaid"], "a Mermaid chart is written to a .mmd file"),
        (["-o", "/no/such/folder/x.svg"], "could not be written"),
        (["--tokens", "0"], "--tokens is 0; it must be at least 1"),
        (["--batch", "-2"], "--batch is -2; it must be at least 1"),
        (["--lang", "de"], "give en or zh"),
        (["125M"], "124M, 355M, 774M, 1558M"),
    ],
)
def test_command_refuses_in_one_sentence(args: list[str], sentence: str) -> None:
    status, printed, said = call(*args)
    assert (status, printed) == (2, b"")
    assert sentence in said and said.count("\n") == 1
