"""How fast the page's file is, in headless Chromium on one core: size, time to the first token, tokens per second.

    python bench/page.py              the bundled model
    python bench/page.py --random     and a random model of the shape of GPT-2 124M, as int8

Each row is measured in a new browser, from file:// without a network. It needs playwright and Chromium
(`apt-get install chromium`); on Linux, the browser runs on one core.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

from clearhead import weights
from clearhead.config import GPTConfig
from clearhead.loading import bundled
from clearhead.tokenizer import Tokenizer
from clearhead.web.export import page_html

FIRST_TOKEN = """async () => {
  const condition = found => new Promise(resolve => {
    const look = () => { const value = found(); if (value) resolve(value); else setTimeout(look, 4); };
    look();
  });
  await condition(() => document.documentElement.dataset.state === "ready");
  const ready = performance.now(), before = document.querySelectorAll("#tokens .token").length;
  document.getElementById("run").click();
  await condition(() => document.querySelectorAll("#tokens .token").length > before);
  return {ready, first: performance.now(), simd: page.simd};
}"""
GENERATE = """async ([most, temperature]) => {
  const ids = (await page.backend.encode("Once upon a time")).ids;
  const options = {generated: 0, params: {...DEFAULTS, seed: 4, temperature}, most, ablation: []};
  let count = 0;
  const begun = performance.now();
  await page.backend.generate(ids, options, () => count++);
  return 1000 * count / (performance.now() - begun);
}"""


def bundled_file(path: Path) -> None:
    """Write the page with the bundled model."""
    source = weights.open(bundled())
    path.write_text(page_html("bundled", source.config, source.load(), source.tokenizer()), encoding="utf-8")


def random_file(path: Path) -> None:
    """Write the page with random weights in the shape of GPT-2 124M, and GPT-2's tokenizer."""
    import torch

    from clearhead.model import GPTModel

    torch.manual_seed(1)
    config = GPTConfig.named("124M")
    tensors = {name: tensor.numpy() for name, tensor in GPTModel(config).state_dict().items()}
    path.write_text(page_html("random 124M", config, tensors, Tokenizer.gpt2()), encoding="utf-8")


def measure(browser: Browser, file: Path, tokens: int) -> str:
    """Return one row: what the file takes and how fast it is, on the page and in its worker alone."""
    context = browser.new_context(offline=True)
    tab = context.new_page()
    tab.set_default_timeout(600_000)
    tab.goto(file.as_uri(), wait_until="commit")
    tab.wait_for_function("() => typeof page !== 'undefined'")
    times = tab.evaluate(FIRST_TOKEN)
    tab.wait_for_selector("#run:enabled")
    shown = tab.inner_text("#speed")
    greedy, sampled = (max(tab.evaluate(GENERATE, [tokens, temperature]) for _ in range(3)) for temperature in (0, 0.8))
    context.close()
    return (
        f"{file.stem:<14} {file.stat().st_size / 1e6:7.1f} MB   ready {times['ready']:6.0f} ms   first token "
        f"{times['first']:6.0f} ms   on the page {shown:>12}   worker alone {greedy:5.1f} greedy, "
        f"{sampled:5.1f} at temperature 0.8   simd {times['simd']}"
    )


def one_core() -> None:
    """Keep this process, and the browser that it will start, on one core, where the system can."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--random", action="store_true", help="measure a random model of the shape of GPT-2 124M too")
    parser.add_argument("--tokens", type=int, default=200, help="how many tokens to generate (a quarter for the 124M)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        files = {Path(temporary, "bundled.html"): given.tokens}
        bundled_file(Path(temporary, "bundled.html"))
        if given.random:
            files[Path(temporary, "random-124M.html")] = given.tokens // 4
            random_file(Path(temporary, "random-124M.html"))
        # The same file without WebAssembly: what a browser without SIMD runs.
        plain = Path(temporary, "plain.html")
        plain.write_text(without_kernels(Path(temporary, "bundled.html").read_text(encoding="utf-8")), encoding="utf-8")
        files[plain] = given.tokens
        one_core()
        print(f"{platform.machine()}, one core; {features()}")
        with sync_playwright() as driver:
            for file, tokens in files.items():
                browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
                print(measure(browser, file, tokens), flush=True)
                browser.close()


def without_kernels(html: str) -> str:
    """Return a page's file with a WebAssembly module that no browser accepts."""
    return re.sub(r'"kernels":"[^"]*"', '"kernels":""', html, count=1)


def features() -> str:
    """Return the CPU's vector instructions, as far as Linux tells."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split())
    except OSError:
        return "vector instructions unknown"
    return ", ".join(name for name in ("sse4_1", "avx", "avx2", "fma", "avx512f") if name in flags)


if __name__ == "__main__":
    main()
