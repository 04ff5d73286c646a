"""Measure one core: its matrix products in the shapes of the 124M beside torch's; and decoding, beside a sum of memory.

    python bench/products.py
    python bench/products.py --dtypes int8 --no-torch

The first table gives billions of multiply-adds per second of one thread's CPU time, least of nine, for 1 to 512 tokens
at a time. The second one decodes a sequence of the 124M shape with several threads, and next to each run reads a large
array with as many: a format that reads its weights as fast as that array is read has nothing left to win.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from numba import njit

from clearhead.benchmark.bandwidth import read_speeds
from clearhead.config import GPTConfig
from clearhead.engine.building import layout, weights_of
from clearhead.engine.pages import cache_type
from clearhead.engine.panels import PANEL
from clearhead.engine.products import multiply
from clearhead.engine.runner import EngineRunner, _new_scratch
from clearhead.engine.variants import VARIANT

Array = npt.NDArray[Any]
CONFIG = GPTConfig.named("124M")
DTYPES = ("float32", "bfloat16", "int8", "int4")
TOKENS = (1, 8, 16, 64, 512)
BFLOAT16_ONE = 0x3F80


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--threads", type=int, default=2, help="of the second table")
    parser.add_argument("--torch", action=argparse.BooleanOptionalAction, default=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"variant {VARIANT.name}; billion multiply-adds per second, one thread, at {TOKENS} tokens")
    for dtype in arguments.dtypes:
        for name, speeds in products(dtype):
            print(f"{dtype:<10}{name:<6}clearhead {row(speeds)}", flush=True)
            if arguments.torch and dtype in ("float32", "bfloat16"):
                print(f"{'':<16}torch     {row(torch_products(dtype, name))}", flush=True)
    print(f"decoding at 16 to 80 tokens of context, {arguments.threads} threads")
    for dtype in arguments.dtypes:
        for tokens, read, possible in decoding(dtype, arguments.threads):
            print(f"{dtype:<10}{tokens:5.0f} tokens/s read {read:5.1f} GB/s; an array {possible:5.1f} GB/s", flush=True)


def shapes() -> dict[str, tuple[int, int]]:
    """Return the columns and rows of a block's four matrices."""
    width, hidden = CONFIG.emb_dim, CONFIG.ff_dim
    return {"qkv": (width, 3 * width), "out": (width, width), "up": (width, hidden), "down": (hidden, width)}


def row(speeds: list[float]) -> str:
    """Return the figures of a line."""
    return " ".join(f"{speed:6.1f}" for speed in speeds)


def random_weights(config: GPTConfig, dtype: str) -> dict[str, Array]:
    """Return packed weights of random numbers; speed does not depend on them."""
    rng = np.random.default_rng(0)
    arrays: dict[str, Array] = {}
    for name, (kind, shape) in layout(config, dtype).items():
        if kind == np.float32:
            arrays[name] = rng.standard_normal(shape, dtype=np.float32) * np.float32(0.02)
        elif name.endswith("scales"):
            arrays[name] = np.full(shape, BFLOAT16_ONE, kind)
        elif kind == np.uint16:
            arrays[name] = (rng.standard_normal(shape, dtype=np.float32).view(np.uint32) >> 16).astype(kind)
        else:
            count = int(np.prod(shape)) * np.dtype(kind).itemsize
            arrays[name] = rng.integers(0, 255, count, dtype=np.uint8).view(kind).reshape(shape)
    return arrays


@njit(nogil=True, error_model="numpy", _nrt=False)
def _multiply(matrix: Any, columns: int, panels: int, inputs: Any, tokens: int, result: Any) -> None:
    multiply(matrix, 0, columns, 0, panels, inputs, 0, tokens, result, 0, 0)


def products(dtype: str) -> Iterator[tuple[str, list[float]]]:
    """Yield each matrix's name and the speeds of its products."""
    weights = weights_of(random_weights(CONFIG.replace(n_layers=1), dtype))
    stored = weights.qkv.weights.dtype
    scratch = _new_scratch(CONFIG.replace(n_layers=1), 1, stored, cache_type(stored))
    for name, (columns, rows) in shapes().items():
        matrix = getattr(weights, name)

        def run(tokens: int, matrix: Any = matrix, columns: int = columns, rows: int = rows) -> None:
            _multiply(matrix, columns, rows // PANEL, scratch.inputs, tokens, scratch.projected)

        yield name, [speed(partial(run, tokens), tokens * columns * rows) for tokens in TOKENS]


def torch_products(dtype: str, name: str) -> list[float]:
    """Return the speeds of torch's linear layer of the same shape."""
    kind = getattr(torch, dtype)
    columns, rows = shapes()[name]
    layer = torch.nn.Linear(columns, rows).to(kind)
    speeds = []
    with torch.inference_mode():
        for tokens in TOKENS:
            x = torch.randn(tokens, columns, dtype=kind)
            speeds.append(speed(partial(layer, x), tokens * columns * rows))
    return speeds


def speed(run: Callable[[], object], products: int) -> float:
    """Return 10^9 products per second of this thread's CPU time; the first run is not counted."""
    run()
    least = float("inf")
    for _ in range(9):
        start = time.thread_time()
        run()
        least = min(least, time.thread_time() - start)
    return products / least / 1e9


def decoding(dtype: str, threads: int) -> Iterator[tuple[float, float, float]]:
    """Yield tokens per second, the GB/s of weights they read, and the GB/s at which an array is read, three times."""
    arrays = random_weights(CONFIG, dtype)
    size = sum(array.nbytes for name, array in arrays.items() if name != "positions")
    runner = EngineRunner(CONFIG, weights_of(arrays), threads)
    slot = runner.open()
    runner.extend([(slot, list(range(16)))])
    for _ in range(3):
        times = []
        for _ in range(20):
            start = time.perf_counter()
            runner.extend([(slot, [5])])
            times.append(time.perf_counter() - start)
        tokens = 1 / float(np.median(times))
        yield tokens, size * tokens / 1e9, float(np.median(read_speeds(threads, 5))) / 1e9


if __name__ == "__main__":
    main()
