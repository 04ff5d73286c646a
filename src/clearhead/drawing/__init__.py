"""One toolkit for every picture: palette, SVG, charts, PNG."""
