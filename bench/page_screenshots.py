"""Screenshots of the page for docs/page.md: 360, 1,280 and 2,560 pixels, light and dark.

    python bench/page_screenshots.py docs/page

It needs playwright and Chromium (`apt-get install chromium`).
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from clearhead import weights
from clearhead.loading import bundled
from clearhead.web.export import page_html

SIZES = ((360, 780), (1280, 1400), (2560, 1600))


def main(folder: Path) -> None:
    """Write the six pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    source = weights.open(bundled())
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as driver:
        file = Path(temporary, "page.html")
        html = page_html("Clearhead's bundled model", source.config, source.load(), source.tokenizer())
        file.write_text(html, encoding="utf-8")
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for width, height in SIZES:
            for scheme in ("light", "dark"):
                context = browser.new_context(
                    viewport={"width": width, "height": height}, color_scheme=scheme, offline=True, locale="en"
                )
                tab = context.new_page()
                tab.goto(file.as_uri())
                tab.wait_for_selector("html[data-state=ready]")
                tab.fill("#prompt", "One day, the little bear found a red hat.")
                tab.wait_for_timeout(2000)
                for seed in (4, 7):  # two branches
                    tab.fill("#seed", str(seed))
                    tab.fill("#length", "45")
                    tab.click("#run")
                    tab.wait_for_selector("#run:enabled")
                    tab.click("#undo")
                    tab.wait_for_selector("#run:enabled")
                tab.click("#redo")
                tab.wait_for_selector("#run:enabled")
                tab.locator("#tokens .token").nth(16).click()
                tab.wait_for_selector("#distribution button.taken")
                tab.mouse.move(0, 0)
                tab.wait_for_timeout(1500)
                tab.screenshot(path=folder / f"{width}-{scheme}.png")
                context.close()
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
