"""One toolkit for pictures: SVG, charts, palettes, PNG."""
