"""How long it takes to open OpenAI's form of the 124M: Clearhead's reader, and TensorFlow's.

Makes a checkpoint of that shape with random weights (498 MB) in a folder that is removed afterwards, or takes
one that is there, and reads all of it. Each way runs in a process of its own, the file in the system's cache:

    clearhead   open, every checksum compared, every tensor as float32 in Clearhead's names and axes
    unchecked   the same without the checksums
    model       the same, as a `GPTModel` that is ready to run (where PyTorch is installed)
    tensorflow  `tf.train.load_variable` for each of the 148 tensors, as the book's loader does, and its squeeze
    reader      the same tensors through one `tf.train.load_checkpoint`

Example:
    python bench/tensorflow_checkpoint.py [FOLDER]
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

_REPEATS = 3


def make(folder: Path) -> None:
    """A checkpoint in the shape of the 124M, with random weights."""
    from clearhead import weights
    from clearhead.config import GPTConfig
    from clearhead.weights.layouts import TABLE, axis_sizes, pieces

    config = GPTConfig.named("124M")
    random = np.random.default_rng(0)
    sizes = axis_sizes(config)
    shapes = {p.name: p.shape(sizes) for row in TABLE for p in pieces(row, "canonical", 12) if row.needs != "head"}
    weights.save_openai(folder, config, {n: random.standard_normal(s, np.float32) for n, s in shapes.items()})


def clearhead(folder: str) -> None:
    """All tensors, checked."""
    from clearhead import weights

    start()
    total(weights.open(folder).load().values())


def unchecked(folder: str) -> None:
    """All tensors, not checked."""
    from clearhead.weights.formats.tensorflow import TensorFlowFile, index_in
    from clearhead.weights.openai import open_checkpoint
    from clearhead.weights.plan import make_plan

    start()
    index = index_in(Path(folder))
    assert index is not None
    file, config = TensorFlowFile(index, check=False), open_checkpoint(Path(folder))[1]
    plan = make_plan(file.tensors, file.read, config, "openai", "canonical", folder)
    total(dict(plan.run()).values())


def model(folder: str) -> None:
    """A model that is ready to run."""
    from clearhead import weights
    from clearhead.model import GPTModel
    from clearhead.weights.into_torch import load_into, without_memory

    start()
    source = weights.open(folder)
    with without_memory():
        one = GPTModel(source.config)
    load_into(one, source)
    total([p.detach().numpy() for p in one.parameters()])


def tensorflow(folder: str) -> None:
    """The book's way: the checkpoint is opened anew for every variable."""
    import tensorflow as tf

    start()
    path = tf.train.latest_checkpoint(folder)
    total([np.squeeze(tf.train.load_variable(path, name)) for name, _ in tf.train.list_variables(path)])


def reader(folder: str) -> None:
    """TensorFlow's reader, opened once."""
    import tensorflow as tf

    start()
    checkpoint = tf.train.load_checkpoint(tf.train.latest_checkpoint(folder))
    total([np.squeeze(checkpoint.get_tensor(name)) for name in checkpoint.get_variable_to_shape_map()])


_began = (0.0, 0.0)


def start() -> None:
    """Starts the clocks, after what is only imported."""
    global _began
    _began = (time.perf_counter(), time.process_time())


def total(arrays: Iterable[np.ndarray]) -> None:
    """Touches every page of every array, so that none is left for later, and says how long it took."""
    touched = sum(float(np.asarray(a).reshape(-1)[::1024].sum()) for a in arrays)
    wall, cpu = time.perf_counter() - _began[0], time.process_time() - _began[1]
    print(json.dumps({"wall": wall, "cpu": cpu, "touched": touched}))


WAYS: tuple[Callable[[str], None], ...] = (clearhead, unchecked, model, tensorflow, reader)


def main() -> None:
    """Runs every way that is installed, the best of three each."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(place)
        if len(sys.argv) < 2:
            make(folder)
        for way in WAYS:
            needs = {"model": "torch", "tensorflow": "tensorflow", "reader": "tensorflow"}.get(way.__name__)
            if needs and importlib.util.find_spec(needs) is None:
                print(f"{way.__name__:12} {needs} is not installed")
                continue
            command = [sys.executable, __file__, "--one", way.__name__, str(folder)]
            runs = []
            for _ in range(_REPEATS):
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
                runs.append(json.loads(done.stdout.splitlines()[-1]))
            best = min(runs, key=lambda run: run["cpu"])
            print(f"{way.__name__:12} {best['wall']:7.2f} s, of the processor {best['cpu']:6.2f} s", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        {way.__name__: way for way in WAYS}[sys.argv[2]](sys.argv[3])
    else:
        main()
