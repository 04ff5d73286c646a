"""Screenshots of the page for docs/page.md: 360, 1,280 and 2,560 pixels, light and dark, and one in Chinese.

    python bench/page_screenshots.py docs/page

It needs playwright and Chromium (`apt-get install chromium`).
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from clearhead import weights
from clearhead.loading import bundled
from clearhead.web.export import page_html

SIZES = ((360, 780), (1280, 1400), (2560, 1600))
READY = "html[data-state=ready]"


def main(folder: Path) -> None:
    """Write a picture for each size and scheme, and one in Chinese."""
    folder.mkdir(parents=True, exist_ok=True)
    source = weights.open(bundled())
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as driver:
        file = Path(temporary, "page.html")
        html = page_html("Clearhead's bundled model", source.config, source.load(), source.tokenizer())
        file.write_text(html, encoding="utf-8")
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        views = [(size, scheme, "en") for size in SIZES for scheme in ("light", "dark")]
        for (width, height), scheme, locale in (*views, (SIZES[1], "light", "zh-CN")):
            context = browser.new_context(
                viewport={"width": width, "height": height}, color_scheme=scheme, offline=True, locale=locale
            )
            tab = context.new_page()
            tab.goto(file.as_uri())
            write_branches(tab)
            tab.screenshot(
                path=folder / f"{width}-{scheme}{'-zh' if locale != 'en' else ''}.png", animations="disabled"
            )
            context.close()
        browser.close()


def write_branches(tab: Page) -> None:
    """Write a prompt and two branches, and select a token."""
    tab.wait_for_selector(READY)
    tab.fill("#prompt", "One day, the little bear found a red hat.")
    tab.wait_for_selector(READY)
    tab.fill("#length", "45")
    for seed in ("4", "7"):
        tab.fill("#seed", seed)
        tab.click("#run")
        tab.wait_for_selector(READY)
        tab.click("#undo")
        tab.wait_for_selector(READY)
    tab.click("#redo")
    tab.wait_for_selector(READY)
    tab.locator("#tokens .token").nth(16).click()
    tab.wait_for_selector(READY)
    tab.mouse.move(0, 0)
    tab.evaluate("() => document.activeElement.blur()")
    tab.evaluate("() => scrollTo(0, 0)")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
