"""Several processes on this machine that train together, as torchrun would start them.

They are forked from a process that has imported what training needs and done nothing yet, which is much faster than to
start each anew. That process has one thread: a fork takes no other along, and a lock that another held would stay held.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["clearhead.training.loop", "clearhead.inference.sampling_kernels", "torch._dynamo", "torch.utils.tensorboard"]
)
_LIMIT = 100.0


def run_together(world: int, recipe: str, data: Path, out: Path, corpus: Path, *, resume: bool = False) -> list[str]:
    """Trains with so many processes; returns what each one was stopped by, an empty text where it came through."""
    return in_processes(world, _train, recipe, data, out, corpus, resume)


def in_processes(world: int, work: Callable[..., str], *arguments: Any) -> list[str]:
    """What the work returns in each of so many processes that know each other by torchrun's variables.

    The store that they meet at belongs to this process, as torchrun's does to torchrun: nobody else can be given its
    port in between.

    Raises:
        AssertionError: where one raises something, dies, or is not done in time. The others are ended, and the message
            has what all of them said, with the lines where each one of them stands.
    """
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=_LIMIT))
    with tempfile.TemporaryDirectory() as logs, _started(world, store.port, Path(logs), work, arguments) as receivers:
        answers: dict[int, str] = {}
        end = time.monotonic() + _LIMIT
        while len(answers) < world:
            ready = wait(
                [receiver for rank, receiver in enumerate(receivers) if rank not in answers], end - time.monotonic()
            )
            fault = "" if ready else f"only {sorted(answers)} of {world} processes were done after {_LIMIT:.0f} seconds"
            try:
                answers |= {rank: receiver.recv() for rank, receiver in enumerate(receivers) if receiver in ready}
            except EOFError:
                fault = "a process died"
            if fault:
                said = "\n".join(path.read_text(errors="replace") for path in sorted(Path(logs).iterdir()))
                raise AssertionError(f"{fault}; they said:\n{said}")
    return [answers[rank] for rank in range(world)]


@contextmanager
def _started(
    world: int, port: int, logs: Path, work: Callable[..., str], arguments: Sequence[Any]
) -> Iterator[list[Connection]]:
    """So many processes, and where each one will be heard from; at the end of the block none is left."""
    receivers, processes = [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENBLAS_NUM_THREADS", "1")  # or NumPy's import starts a thread for each core
        forkserver.ensure_running()
    try:
        for rank in range(world):
            receiver, sender = _CONTEXT.Pipe(duplex=False)
            process = _CONTEXT.Process(
                target=_work, args=(rank, world, port, logs, sender, work, arguments), daemon=True
            )
            process.start()
            sender.close()
            receivers.append(receiver)
            processes.append(process)
        yield receivers
        for process in processes:
            process.join(timeout=20)
            assert process.exitcode == 0
    finally:
        for process in processes:
            process.kill()
            process.join()


def _work(
    rank: int, world: int, port: int, logs: Path, sender: Connection, work: Callable[..., str], arguments: Sequence[Any]
) -> None:
    log = (logs / f"{rank}.txt").open("w", buffering=1)
    os.dup2(log.fileno(), 2)
    faulthandler.dump_traceback_later(0.9 * _LIMIT, file=log)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "OMP_NUM_THREADS": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    # By these torch knows that the store is there already and that the first process need not make one.
    os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    import torch

    torch.set_num_threads(1)
    try:
        answer = work(*arguments)
    except BaseException:
        traceback.print_exc(file=log)
        raise SystemExit(1) from None
    sender.send(answer)


def _train(recipe: str, data: Path, out: Path, corpus: Path, resume: bool) -> str:
    from clearhead.errors import ClearheadError
    from clearhead.training.recipe_reader import parse_recipe
    from clearhead.training.train import train

    try:
        train(parse_recipe(recipe), data, out, corpus_folder=corpus, resume=resume, device="cpu")
    except ClearheadError as error:
        return str(error)
    return ""
