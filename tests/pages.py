"""A page in a real Chromium. Everything waits for the page's state, never for a time."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any


def without_simd(file: Path) -> Path:
    """Write the same page for a browser without SIMD: no browser accepts its WebAssembly module. Return its path."""
    html, changed = re.subn(r'"kernels":"[^"]+"', '"kernels":"AAAA"', file.read_text(encoding="utf-8"), count=1)
    assert changed
    path = file.with_name(f"plain-{file.name}")
    path.write_text(html, encoding="utf-8")
    return path


class OpenPage:
    """A page in its own context, offline if it is a file; it records console messages, errors and requests."""

    def __init__(self, browser: Any, url: str, state: str = "ready", before: str = "", **options: Any) -> None:
        settings = {"offline": url.startswith("file:"), "reduced_motion": "reduce", "accept_downloads": True, **options}
        self.context = browser.new_context(**settings)
        self.tab = self.context.new_page()
        self.tab.set_default_timeout(120_000)
        self.said: list[str] = []
        self.requests: list[str] = []
        self.tab.on("console", lambda message: self.said.append(message.text))
        self.tab.on("pageerror", lambda error: self.said.append(str(error)))
        self.tab.on("request", lambda request: self.requests.append(request.url))
        if before:
            self.tab.add_init_script(before)
        self.tab.goto(url)
        self.tab.wait_for_selector(f"html[data-state={state}]")

    def ask(self, code: str, value: Any = None) -> Any:
        """Run a function in the page and return its result."""
        return self.tab.evaluate(code, value)

    def finish(self) -> None:
        """Wait until everything that a control started has ended; its state is busy from the event on."""
        self.tab.wait_for_selector("html[data-state=ready]")

    def click(self, selector: str) -> None:
        """Click, and wait until what that starts has ended."""
        self.tab.click(selector)
        self.finish()

    def press(self, *keys: str) -> None:
        """Press keys where the focus is, and wait until what they start has ended."""
        for key in keys:
            self.tab.keyboard.press(key)
            self.finish()

    def write(self, prompt: str) -> None:
        """Type a prompt over the present one, and wait until the page has read it."""
        self.tab.fill("#prompt", prompt)
        self.finish()

    def length(self, tokens: int) -> None:
        """Say how many tokens to generate."""
        self.tab.fill("#length", str(tokens))
        self.tab.dispatch_event("#length", "change")

    def texts(self) -> list[str]:
        """Return the texts of the tokens on the screen."""
        return list(self.tab.locator("#tokens .token").all_text_contents())

    def shares(self) -> list[str]:
        """Return the percentages of the distribution."""
        return list(self.tab.locator("#distribution .share").all_text_contents())

    def status(self) -> str:
        """Return the sentence under the buttons."""
        return str(self.tab.inner_text("#status"))

    def accessibility_errors(self) -> list[Any]:
        """Return what axe-core finds; its script must have been run before."""
        found = self.ask("() => axe.run()")
        return [(one["id"], [node["html"][:200] for node in one["nodes"]]) for one in found["violations"]]

    def check(self) -> None:
        """Check that nothing went wrong and nothing was requested."""
        assert self.said == []
        assert all(url.startswith(("file:", "blob:", "data:")) for url in self.requests)

    def close(self) -> None:
        """Close it."""
        self.context.close()
