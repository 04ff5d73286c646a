"""A process that reads files for the fuzzers, with a limit on its memory; run as `python worker.py`.

The fuzzer sends requests on standard input, one JSON object a line: a reader's name and a folder. The answer is one
line: `ok`, `refused` with the sentence, or `crash` with the traceback. What never answers is killed by the fuzzer.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch  # before the limit: its libraries reserve much address space

from clearhead import weights
from clearhead.config import GPTConfig
from clearhead.errors import ClearheadError
from clearhead.tokenizer import Tokenizer
from clearhead.weights.formats import gguf

GIB = 2**30
TEXTS = ["", "Hello, world!", "aaaa " * 40, "naïve 你好 🙂\n\t<|endoftext|></s> ##x ▁", "\x00\ufffd \u3000"]


def read_tokenizer(folder: Path) -> None:
    """Open a tokenizer and use it in every way."""
    tokenizer = Tokenizer.from_folder(folder)
    for text in TEXTS:
        for special in (False, True):
            try:
                ids = tokenizer.encode(text, special=special)
                tokenizer.decode(ids)
                stream = tokenizer.stream()
                for id in ids[:50]:
                    stream.push(id)
                    tokenizer.token_bytes(id)
                stream.finish()
            except ClearheadError:
                pass
    tokenizer.encode_batch([], threads=1)
    tokenizer.byte_lengths()
    tokenizer.byte_pairs()
    tokenizer.sha256()
    tokenizer.save(folder / "again")
    Tokenizer.from_folder(folder / "again")


def read_weights(folder: Path) -> None:
    """Open a model, plan its tensors, and read all of them; and its tokenizer."""
    opened = weights.open(folder)
    plan = opened.plan()
    for name in opened.tensors:
        opened.read(name)
    for _ in plan.run():
        pass
    opened.tokenizer()


def read_config(folder: Path) -> None:
    """Read a config."""
    for name in ("config.json", "hparams.json"):
        if (folder / name).is_file():
            GPTConfig.from_file(folder / name)


READERS: dict[str, Callable[[Path], None]] = {
    "tokenizer": read_tokenizer,
    "weights": read_weights,
    "config": read_config,
}


def main() -> None:
    """Answer requests until standard input ends."""
    torch.zeros(1)
    gguf._library(Path())
    Tokenizer.of_bytes()
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + GIB
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        begin = time.process_time()
        try:
            READERS[request["reader"]](Path(request["folder"]))
            answer: dict[str, Any] = {"kind": "ok", "text": ""}
        except ClearheadError as error:
            answer = {"kind": "refused", "text": str(error)}
        except BaseException:
            answer = {"kind": "crash", "text": traceback.format_exc()[-3000:]}
        answer["seconds"] = time.process_time() - begin
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
