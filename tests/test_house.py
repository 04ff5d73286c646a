"""The pages that describe the code, held against the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "clearhead"


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/how-it-is-built.md", "docs/how-it-is-built.zh.md"])
def test_every_file_that_a_page_names_exists(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    named = re.findall(r"`([\w/]+(?:\.py|/))`", text)
    assert len(named) > 15
    for name in named:
        assert (PACKAGE / name).exists() or (ROOT / name).exists(), name


def test_every_room_is_in_the_drawing_and_in_the_table() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    drawing = text.split("```")[5]
    table = [line for line in text.splitlines() if line.startswith("| `")]
    rooms = [path.parent.name + "/" for path in PACKAGE.glob("*/__init__.py")]
    assert len(rooms) > 12
    for room in rooms:
        assert room in drawing, room
        assert any(f"`{room}`" in row for row in table), room


def test_the_floors_of_the_drawing_are_those_of_the_contract() -> None:
    import tomllib

    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    expected = [
        {name.strip(" ()").removeprefix("clearhead.") for name in layer.split(":")}
        for layer in layers
        if layer != "clearhead.__main__"
    ]
    drawing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("```")[5]
    floors = [
        re.findall(r"\b(\w+)(?:\.py|/)(?=\s|$)", line) for line in drawing.splitlines() if re.search(r"\.py|/", line)
    ]
    assert [set(floor) for floor in floors] == expected


def test_the_source_distribution_has_what_the_readme_links_to() -> None:
    lines = (ROOT / "MANIFEST.in").read_text(encoding="utf-8").splitlines()
    packed = {"src", "README.md", "LICENSE", *(word for line in lines for word in line.split()[1:])}
    for readme in ("README.md", "README.zh.md"):
        for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", (ROOT / readme).read_text(encoding="utf-8")):
            assert Path(link).parts[0] in packed, link


def test_the_image_has_what_the_wheel_is_built_from() -> None:
    folders = re.findall(r'"([\w/]+)": "[\w/]+"', (ROOT / "setup.py").read_text(encoding="utf-8"))
    needed = {"src", "pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", *folders}
    copied = re.findall(r"^COPY (?!--)(.+) \S+$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    let_in = re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(encoding="utf-8"), re.MULTILINE)
    assert {"docs/tour", "recipes"} <= needed
    assert needed <= set(" ".join(copied).split())
    assert needed <= set(let_in)
