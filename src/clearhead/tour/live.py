"""Figures of the chapters that readers can change: the page's components take the picture's place in a browser.

Markdown shows the picture, and so does a browser without JavaScript. Which figure becomes which component is written
here, so that both languages have the same.
"""

from __future__ import annotations

import html
from functools import cache
from pathlib import PurePosixPath

from clearhead import weights
from clearhead.loading import bundled
from clearhead.web.export import LIVE_MODULES, bundle, live_json

_LITTLE = "Once upon a time, there was a little"
LIVE_FIGURES = {
    "02-pattern": {"live": "attention", "prompt": "The little dog saw a cat. The dog", "block": "2", "head": "1"},
    "06-lens": {"live": "lens", "prompt": _LITTLE},
    "09-temperature": {"live": "temperature", "prompt": _LITTLE},
    "09-cut": {"live": "cut", "prompt": _LITTLE},
}
"""For each figure, by its file's name without the language: the component of `live.js`, and what it begins with."""


def live_figure(source: str, image: str) -> str | None:
    """Return a figure with an image in it that `live.js` replaces, or None if this image has no component.

    Args:
        source: the image's address, such as `figures/02-pattern.svg`.
        image: the HTML of the image.
    """
    details = LIVE_FIGURES.get(PurePosixPath(source).stem.removesuffix("-zh"))
    if details is None:
        return None
    attributes = "".join(f' data-{name}="{html.escape(value)}"' for name, value in details.items())
    return f"<figure{attributes}>{image}</figure>"


@cache
def live_model() -> bytes:
    """Return the bundled model and the worker's script as JSON."""
    source = weights.open(bundled())
    return live_json("Clearhead's bundled model", source.config, source.load(), source.tokenizer()).encode()


def live_script() -> str:
    """Return the components' script."""
    return bundle(LIVE_MODULES)
