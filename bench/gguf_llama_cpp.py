"""Whether llama.cpp computes with our GGUF file what Clearhead computes with the model that it was made from.

    python bench/gguf_llama_cpp.py MODEL --llama-python venv/bin/python [--dtype float32]

Writes MODEL as GGUF in a folder that is removed afterwards, opens it with llama-cpp-python (in a Python of its own,
which needs no Clearhead), and compares for a few texts: the token ids, the logits after every token, and 40 tokens of
greedy text. Prints the greatest difference of logits, the share of places at which both think the same token the
likeliest, and the texts.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

TEXTS = (
    "Once upon a time, there was a little girl who",
    "The cat sat on the mat.\n\nThen   it said: \"I'll go, you've won 3-0!\"",
    "Zürich, 北京 and naïve café ☃",
)
_NEW = 40  # tokens of greedy text


def llama(path: str, answers: str) -> None:
    """What llama.cpp makes of the texts: into a file, as NumPy arrays."""
    from llama_cpp import Llama

    model = Llama(path, n_ctx=256, logits_all=True, verbose=False)
    found: dict[str, Any] = {}
    for number, text in enumerate(TEXTS):
        ids = model.tokenize(text.encode(), add_bos=False, special=False)
        model.reset()
        model.eval(ids)
        found[f"ids{number}"] = np.array(ids)
        found[f"logits{number}"] = np.array(model.scores[: len(ids)])
        new = list(ids)
        for _ in range(_NEW):
            new.append(int(np.argmax(model.scores[len(new) - 1])))
            model.eval(new[-1:])
        found[f"greedy{number}"] = np.array(new[len(ids) :])
    np.savez(answers, **found)


def compare(model: str, found: Any) -> None:
    """Puts the answers beside Clearhead's own."""
    import torch

    import clearhead
    from clearhead.model import greedy

    gpt = clearhead.load(model)
    tokenizer = gpt.tokenizer
    assert tokenizer is not None, "the model needs a tokenizer"
    for number, text in enumerate(TEXTS):
        ids = tokenizer.encode(text)
        same = ids == found[f"ids{number}"].tolist()
        print(f"{text!r}\n  token ids       {'the same' if same else 'DIFFERENT'} ({len(ids)})")
        if not same:
            print(f"  clearhead {ids}\n  llama.cpp {found[f'ids{number}'].tolist()}")
            continue
        with torch.inference_mode():
            logits = gpt.model(torch.tensor([ids]))[0].numpy()
            ours = greedy(gpt.model, torch.tensor([ids]), _NEW)[0, len(ids) :].tolist()
        theirs = found[f"logits{number}"][:, : logits.shape[1]]
        agree = (logits.argmax(1) == theirs.argmax(1)).mean()
        spread = logits.max() - logits.min()
        print(f"  logits          differ by {np.abs(logits - theirs).max():.2g} at most, of a range of {spread:.3g}")
        print(f"  likeliest token the same at {agree:.0%} of the places")
        new = found[f"greedy{number}"].tolist()
        first = next((i for i, pair in enumerate(zip(ours, new, strict=True)) if pair[0] != pair[1]), None)
        print(f"  greedy text     {'the same' if first is None else f'parts at token {first} of {_NEW}'}")
        print(f"    clearhead {tokenizer.decode(ours)!r}\n    llama.cpp {tokenizer.decode(new)!r}")


def main() -> None:
    """Writes, runs llama.cpp, compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--llama-python", required=True, help="a Python that has llama_cpp and NumPy")
    parser.add_argument("--dtype", default="float32")
    arguments = parser.parse_args()
    from clearhead import weights

    with tempfile.TemporaryDirectory() as place:
        path, answers = Path(place) / "model.gguf", Path(place) / "answers.npz"
        saved = weights.convert(arguments.model, path, "gguf", arguments.dtype)
        print(json.dumps({"layout": saved.layout, "dtype": saved.dtype, "bytes": saved.nbytes}))
        subprocess.run([arguments.llama_python, __file__, "--llama", str(path), str(answers)], check=True)
        with np.load(answers) as found:
            compare(arguments.model, found)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--llama"]:
        llama(sys.argv[2], sys.argv[3])
    else:
        main()
