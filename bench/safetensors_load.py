"""How long it takes from nothing to a model that is ready to run: Clearhead's load, and transformers'.

Makes a Hugging Face folder in the shape of the 124M with random weights (498 MB), which is removed afterwards, or
takes one that is there. Each way is a whole process, from its start to its end with all that it imports, the file in
the system's cache; the best of several, in turn. At its end every weight has been looked at, so that none is left for
later:

    clearhead     clearhead.load(FOLDER): a model in PyTorch
    tensors       clearhead.weights.open(FOLDER).load(): every tensor in Clearhead's names and axes, without PyTorch
    transformers  GPT2LMHeadModel.from_pretrained(FOLDER)
    torch         `import torch` and nothing else, which the first and the third contain

Example:
    python bench/safetensors_load.py [FOLDER]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from processes import fastest


def make(folder: Path) -> None:
    """A folder in the shape of the 124M, with random weights."""
    import numpy as np

    from clearhead import weights
    from clearhead.config import GPTConfig
    from clearhead.weights.layouts import TABLE, axis_sizes, pieces

    config = GPTConfig.named("124M")
    random = np.random.default_rng(0)
    sizes = axis_sizes(config)
    shapes = {p.name: p.shape(sizes) for row in TABLE for p in pieces(row, "canonical", 12) if row.needs != "head"}
    tensors = {name: random.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    weights.save_huggingface(folder, config, tensors)


def touch(parameters: Any) -> None:
    """Looks at one number of every page."""
    print(sum(float(p.detach().reshape(-1)[::1024].sum()) for p in parameters))


def clearhead(folder: str) -> None:
    """A `GPT`, its model in PyTorch."""
    import clearhead

    touch(clearhead.load(folder).model.parameters())


def tensors(folder: str) -> None:
    """NumPy arrays."""
    from clearhead import weights

    print(sum(float(array.reshape(-1)[::1024].sum()) for array in weights.open(folder).load().values()))


def transformers(folder: str) -> None:
    """transformers' model."""
    from transformers import GPT2LMHeadModel

    touch(GPT2LMHeadModel.from_pretrained(folder).parameters())


def torch(folder: str) -> None:
    """The import alone."""
    import torch  # noqa: F401


WAYS: tuple[Callable[[str], None], ...] = (clearhead, tensors, transformers, torch)


def main() -> None:
    """Runs every way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = arguments.folder or Path(place)
        if arguments.folder is None:
            make(folder)
        commands = {way.__name__: [sys.executable, __file__, "--one", way.__name__, str(folder)] for way in WAYS}
        found = fastest(commands, arguments.runs)
    for name, run in found.items():
        print(f"{name:13} {run.seconds:6.2f} s   {found['transformers'].seconds / run.seconds:5.1f} times as fast")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        {way.__name__: way for way in WAYS}[sys.argv[2]](sys.argv[3])
    else:
        main()
