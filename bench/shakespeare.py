"""Tiny Shakespeare, letter by letter: Clearhead's recipe and nanoGPT's, each as a whole process, one after the other.

    python bench/shakespeare.py TEXTS --nanogpt FOLDER

TEXTS is the folder with tinyshakespeare.txt, FOLDER a checkout of nanoGPT. Both train the same shape (4 layers,
4 heads, width 128, context 64) for 2,000 steps of 12 windows on the CPU: Clearhead with
`recipes/shakespeare_char.toml`, in the precision that it finds to be faster, and nanoGPT in float32 with the command
that its README gives for a CPU. nanoGPT's loss is its own estimate over 20 batches of held-out text (its README:
1.88), Clearhead's is over all of the same text.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RECIPE = Path(__file__).parent.parent / "recipes" / "shakespeare_char.toml"
NANOGPT = shlex.split(
    "config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20 --log_interval=100 --block_size=64 "
    "--batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 --max_iters=2000 --lr_decay_iters=2000 --dropout=0.0"
)


def timed(command: list[str], folder: Path) -> tuple[str, float]:
    """Runs a program to its end: what it prints, and the seconds."""
    start = time.perf_counter()
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(done.stdout)
    return done.stdout, seconds


def report(name: str, loss: float, seconds: float) -> None:
    """Prints a program's line."""
    print(f"{name:<9} validation loss {loss:.4f}   {seconds:4.0f} s", flush=True)


def main() -> None:
    """Trains both and prints their losses and times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", type=Path)
    parser.add_argument("--nanogpt", type=Path, required=True)
    arguments = parser.parse_args()
    texts = arguments.texts.resolve()
    with tempfile.TemporaryDirectory() as place:
        theirs = Path(place) / "nanoGPT"
        shutil.copytree(arguments.nanogpt, theirs)
        data = theirs / "data" / "shakespeare_char"
        shutil.copy(texts / "tinyshakespeare.txt", data / "input.txt")
        subprocess.run([sys.executable, "prepare.py"], cwd=data, check=True, capture_output=True)
        ours = [sys.executable, "-m", "clearhead", "train", str(RECIPE), "--data", str(texts), "--out", "run"]
        _, seconds = timed(ours, Path(place))
        final = json.loads((Path(place) / "run" / "metrics.jsonl").read_text().splitlines()[-1])["final"]
        report("clearhead", next(iter(final.values()))["loss"], seconds)
        printed, seconds = timed([sys.executable, "train.py", *NANOGPT], theirs)
        report("nanoGPT", float(re.findall(r"val loss ([\d.]+)", printed)[-1]), seconds)


if __name__ == "__main__":
    main()
