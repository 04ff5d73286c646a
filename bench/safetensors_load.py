"""How long it takes from nothing to a model that has chosen its first token: Clearhead's load, and transformers'.

Makes a Hugging Face folder in the shape of the 124M with random weights (498 MB), which is removed afterwards, or
takes one that is there. Each way is a whole process, from its start to its end with all that it imports, the file in
the system's cache and Clearhead's engine compiled before; the fastest of several, in turn:

    clearhead     clearhead.load(FOLDER), and the first token
    pytorch       the same with backend="torch"
    tensors       clearhead.weights.open(FOLDER).load(): every tensor as NumPy, in Clearhead's names and axes
    transformers  GPT2LMHeadModel.from_pretrained(FOLDER), and the first token
    torch         `import torch` and nothing else, which two of them contain

Example:
    python bench/safetensors_load.py [FOLDER]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from processes import fastest
from random_model import random_124m


def make(folder: Path) -> None:
    """A folder in the shape of the 124M, with random weights."""
    from clearhead import weights

    weights.save_huggingface(folder, *random_124m())


PROMPT = [464, 3797, 3332]


def clearhead(folder: str, backend: Literal["auto", "engine", "torch"] = "auto") -> None:
    """What Clearhead takes by itself: its engine."""
    import clearhead

    print(clearhead.load(folder, backend=backend).generate(PROMPT, max_new_tokens=1, temperature=0).ids[0])


def pytorch(folder: str) -> None:
    """Clearhead's model in PyTorch."""
    clearhead(folder, "torch")


def tensors(folder: str) -> None:
    """NumPy arrays, one number of every page looked at."""
    from clearhead import weights

    print(sum(float(array.reshape(-1)[::1024].sum()) for array in weights.open(folder).load().values()))


def transformers(folder: str) -> None:
    """transformers' model."""
    import torch
    from transformers import GPT2LMHeadModel

    model = GPT2LMHeadModel.from_pretrained(folder)
    with torch.inference_mode():
        print(int(model(torch.tensor([PROMPT])).logits[0, -1].argmax()))


def torch(folder: str) -> None:
    """The import alone."""
    import torch  # noqa: F401


WAYS: tuple[Callable[[str], None], ...] = (clearhead, pytorch, tensors, transformers, torch)


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
    tokens = {found[name].output.split()[-1] for name in ("clearhead", "pytorch", "transformers")}
    print(f"first token: {'the same' if len(tokens) == 1 else 'DIFFERENT'}")
    for name, run in found.items():
        print(f"{name:13} {run.seconds:6.2f} s   {found['transformers'].seconds / run.seconds:5.1f} times as fast")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        {way.__name__: way for way in WAYS}[sys.argv[2]](sys.argv[3])
    else:
        main()
