"""How long it takes to open OpenAI's form of the 124M: Clearhead's reader, and TensorFlow's.

Makes a checkpoint of that shape with random weights (498 MB) in a folder that is removed afterwards, or takes
one that is there, and reads all of it. Each way is a whole process, from its start to its end with all that it
imports, the file in the system's cache; the best of several, in turn:

    tensors     open, every checksum compared, every tensor as float32 in Clearhead's names and axes
    unchecked   the same without the checksums
    engine      `clearhead.load` and the first token: what Clearhead takes by itself, compiled before
    pytorch     a `GPTModel` in PyTorch, every number in its place
    tensorflow  `tf.train.load_variable` for each of the 148 tensors, as the book's loader does, and its squeeze
    reader      the same tensors through one `tf.train.load_checkpoint`

Example:
    python bench/tensorflow_checkpoint.py [FOLDER] --tensorflow-python venv/bin/python
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from processes import fastest
from random_model import random_124m


def make(folder: Path) -> None:
    """A checkpoint in the shape of the 124M, with random weights."""
    from clearhead import weights

    weights.save_openai(folder, *random_124m())


def tensors(folder: str) -> None:
    """All tensors, checked."""
    from clearhead import weights

    start()
    total(weights.open(folder).load().values())


def unchecked(folder: str) -> None:
    """All tensors, not checked."""
    from clearhead.weights.formats.tensorflow import TensorFlowFile, index_in
    from clearhead.weights.planning import make_plan
    from clearhead.weights.schemes.openai import open_checkpoint

    start()
    index = index_in(Path(folder))
    assert index is not None
    file, config = TensorFlowFile(index, check=False), open_checkpoint(Path(folder))[1]
    plan = make_plan(file.tensors, file.read, config, "openai", "canonical", folder)
    total(dict(plan.run()).values())


def engine(folder: str) -> None:
    """A model that has written its first token."""
    import clearhead

    start()
    ids = clearhead.load(folder).generate([464, 3797, 3332], max_new_tokens=1, temperature=0).ids
    total([np.array(ids)])


def pytorch(folder: str) -> None:
    """A model in PyTorch."""
    from clearhead import weights
    from clearhead.model import GPTModel
    from clearhead.model_weights import load_into, without_memory

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


_began = 0.0


def start() -> None:
    """Starts the clock of what is not import."""
    global _began
    _began = time.perf_counter()


def total(arrays: Iterable[np.ndarray]) -> None:
    """Touches every page of every array, so that none is left for later, and says how long it took."""
    touched = sum(float(np.asarray(a).reshape(-1)[::1024].sum()) for a in arrays)
    print(json.dumps({"seconds": time.perf_counter() - _began, "touched": touched}))


WAYS: tuple[Callable[[str], None], ...] = (tensors, unchecked, engine, pytorch, tensorflow, reader)


def main() -> None:
    """Runs every way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--tensorflow-python", help="a Python that has TensorFlow; without it, only ours is measured")
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = arguments.folder or Path(place)
        if arguments.folder is None:
            make(folder)
        commands = {}
        for way in WAYS:
            python = arguments.tensorflow_python if way in (tensorflow, reader) else sys.executable
            if python is not None:
                commands[way.__name__] = [python, __file__, "--one", way.__name__, str(folder)]
        found = fastest(commands, arguments.runs)
    for name, run in found.items():
        ratio = f"   {found['tensorflow'].seconds / run.seconds:5.1f} times as fast" if "tensorflow" in found else ""
        inner = json.loads(run.output.splitlines()[-1])["seconds"]
        print(f"{name:12} {run.seconds:6.2f} s, of which reading {inner:5.2f} s{ratio}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        {way.__name__: way for way in WAYS}[sys.argv[2]](sys.argv[3])
    else:
        main()
