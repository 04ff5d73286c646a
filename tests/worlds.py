"""Several processes on this machine that train together, as torchrun would start them.

They are forked from a process that has loaded torch and done nothing yet, which is much faster than to start each anew.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import socket
import sys
import traceback
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["clearhead.training.loop", "torch.utils.tensorboard"])


def run_together(world: int, recipe: str, data: Path, out: Path, corpus: Path, *, resume: bool = False) -> list[str]:
    """Trains with so many processes; returns what each one was stopped by, an empty text where it came through."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = _CONTEXT.Queue()
    arguments = (world, port, recipe, data, out, corpus, resume, told)
    processes = [_CONTEXT.Process(target=_work, args=(rank, *arguments), daemon=True) for rank in range(world)]
    for process in processes:
        process.start()
    ends: dict[int, str] = {}
    while len(ends) < world:
        try:
            rank, end = told.get(timeout=60)
        except queue.Empty:
            codes = {process.name: process.exitcode for process in processes}
            for process in processes:
                process.kill()
            raise AssertionError(f"nothing was heard for a minute; told so far: {ends}; exit codes: {codes}") from None
        ends[rank] = end
        assert "Traceback" not in end, end
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0
    return [ends[rank] for rank in range(world)]


def _work(
    rank: int, world: int, port: int, recipe: str, data: Path, out: Path, corpus: Path, resume: bool, told: object
) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    import torch

    from clearhead.errors import ClearheadError
    from clearhead.training.loop import train
    from clearhead.training.recipe import Recipe

    torch.set_num_threads(1)
    end = ""
    try:
        train(Recipe.from_text(recipe), data, out, corpus_folder=corpus, resume=resume, device="cpu")
    except ClearheadError as error:
        end = str(error)
    except BaseException:
        end = traceback.format_exc()
    told.put((rank, end))  # type: ignore[attr-defined]
