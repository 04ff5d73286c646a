"""The architecture diagram as a Mermaid flow chart, which documentation sites and notebooks render."""

from __future__ import annotations

from clearhead.anatomy.diagram.diagram import Arrow, Box, Diagram, Panel

_COLOURS = {
    "embedding": "fill:#fcefd0,stroke:#d3a24a,color:#1b2230",
    "norm": "fill:#e2f3e6,stroke:#74b087,color:#1b2230",
    "attention": "fill:#e0ecfc,stroke:#6797d8,color:#1b2230",
    "feed_forward": "fill:#eee6fb,stroke:#a283cf,color:#1b2230",
    "head": "fill:#fde4e3,stroke:#d98480,color:#1b2230",
    "step": "fill:#ffffff,stroke:#aab4c2,color:#1b2230",
    "sum": "fill:#ffffff,stroke:#aab4c2,color:#1b2230",
    "value": "fill:#ffffff,stroke:#aab4c2,color:#1b2230,stroke-dasharray:3 3",
}
_GROUND = "fill:#f5f7fa,stroke:#c3ccd8,color:#1b2230"


def diagram_mermaid(diagram: Diagram) -> str:
    """Return the diagram as a Mermaid flow chart, with subgraphs for the block and the detail panels."""
    lines = ["flowchart BT", f"  accTitle: {_plain(diagram.name) or 'GPT-2'}", f"  accDescr: {_plain(diagram.about)}"]
    for panel in diagram.panels:
        lines += _panel(panel)
    for panel in diagram.panels:
        lines += [f"  {_arrow(arrow)}" for arrow in panel.arrows]
    lines += [f"  classDef {kind} {colours}" for kind, colours in _COLOURS.items()]
    return "\n".join(lines) + "\n"


def _panel(panel: Panel) -> list[str]:
    if panel.frame is None:
        nodes = [_node(box) for box in panel.boxes]
        return _subgraph(f"opened_{panel.key}", f"{panel.title} ({panel.note})", nodes)
    inside = range(panel.frame.first, panel.frame.last + 1)
    block = [_node(box) for box in panel.boxes if box.row in inside]
    outside = [f"  {_node(box)}" for box in panel.boxes if box.row not in inside]
    return outside + _subgraph("block", f"{panel.frame.title} ({panel.frame.note})", block)


def _subgraph(key: str, title: str, nodes: list[str]) -> list[str]:
    # Without a direction of its own, a subgraph that nothing links to runs the other way.
    lines = [f'subgraph {key}["{quoted(title)}"]', "  direction BT", *(f"  {node}" for node in nodes), "end"]
    return [f"  {line}" for line in [*lines, f"style {key} {_GROUND}"]]


def _node(box: Box) -> str:
    if box.kind == "sum":
        return f'{_key(box.key)}(("+")):::sum'
    words = quoted("<br/>".join((box.name, *box.detail)))
    if box.kind == "value":
        return f'{_key(box.key)}(["{words}"]):::value'
    return f'{_key(box.key)}["{words}"]:::{box.kind}'


def _arrow(arrow: Arrow) -> str:
    link = "-.-" if arrow.route == "tie" else "-->"
    label = f'|"{quoted(arrow.label)}"|' if arrow.label else ""
    return f"{_key(arrow.start)} {link}{label} {_key(arrow.end)}"


def _key(key: str) -> str:
    """Return a node's name; a bare `end` or a dot would mean something else to Mermaid."""
    return "n_" + key.replace(".", "_")


def quoted(text: str) -> str:
    """Escape text for Mermaid's quotes, where `#` begins a character reference; line breaks stay."""
    lines = text.split("<br/>")
    for letter, name in (("#", "#35;"), ('"', "#quot;"), ("<", "#lt;"), (">", "#gt;")):
        lines = [line.replace(letter, name) for line in lines]
    return "<br/>".join(lines)


def _plain(text: str) -> str:
    """Return text for a line of its own, which Mermaid ends at a line break, a semicolon or a brace."""
    return " ".join(text.translate(str.maketrans(";{}", ",()", "#")).split())
