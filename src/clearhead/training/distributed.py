"""The processes of a run: one, or as many as torchrun starts, and what they say to each other.

`torchrun --nproc-per-node=8 -m clearhead train ...` starts eight processes and tells each who it is by environment
variables (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR). Each takes its share of every batch.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from clearhead.errors import ClearheadError, TrainingError
from clearhead.training.recipe import Parallel

_PATIENCE = timedelta(minutes=30)  # for the others, in what all do together
_LONGEST_PAUSE = 1.0  # seconds between two looks at whether the first process is done with what it does alone
_STOPPED = "stopped by"  # where the store says what stopped the first process that failed


@dataclass(frozen=True, slots=True)
class Processes:
    """Who this process is among those of the run.

    Attributes:
        rank: its number, from 0.
        world: how many there are.
        device: what this one computes on.
    """

    rank: int
    world: int
    device: torch.device
    _store: dist.Store | None = field(default=None, repr=False, compare=False)
    _meetings: Iterator[int] = field(default_factory=itertools.count, repr=False, compare=False)
    _replicas: list[nn.parallel.DistributedDataParallel] = field(default_factory=list, repr=False, compare=False)

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.rank == 0

    def sums(self, values: Sequence[float]) -> list[float]:
        """Each value summed over the processes, in float64."""
        if self.world == 1:
            return list(values)
        kind = torch.float32 if self.device.type == "mps" else torch.float64
        together = torch.tensor(values, dtype=kind, device=self.device)
        dist.all_reduce(together)
        return together.tolist()

    def wait(self) -> None:
        """Returns when all processes have come here."""
        if self.world > 1:
            dist.barrier()

    def from_first(self, value: Any) -> Any:
        """What the first process gives, in all of them."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    @contextlib.contextmanager
    def first_alone(self) -> Iterator[bool]:
        """Runs the block where the value is true, on the first process; an error there is raised in all.

        The others wait for as long as it takes, which may be hours where a corpus is built: not in one of torch's
        meetings, whose patience ends, but by looking at the store. Should the first process die, the store dies with
        it, or torchrun, which has the store, ends the rest.

        with processes.first_alone() as first:
            if first: ...
        """
        error: BaseException | None = None
        try:
            yield self.is_first
        except BaseException as found:
            error = found
        self._await_first()
        told = None if error is None else str(error) or f"process {self.rank} was stopped ({type(error).__name__})."
        told = self.from_first(told)
        if error is not None:
            raise error
        if told is not None:
            raise TrainingError(told)

    def _await_first(self) -> None:
        """Returns when the first process has come here.

        Raises:
            TrainingError: where another process says that something stopped it; it will not come any more.
        """
        if self._store is None:
            return
        key = f"done alone {next(self._meetings)}"
        if self.is_first:
            self._store.set(key, "done")
        pause = 0.001
        while not self._store.check([key]):
            if self._store.check([_STOPPED]):
                raise TrainingError(self._store.get(_STOPPED).decode())
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def spread(self, objective: nn.Module, blocks: Sequence[nn.Module], parallel: Parallel) -> nn.Module:
        """The module as all processes train it together: a replica in each (DDP), or a part in each (FSDP2).

        Args:
            objective: whose forward gives the loss.
            blocks: its large pieces, of which one at a time is brought together where the model is sharded.
            parallel: `replicate` or `shard`.
        """
        if self.world == 1:
            return objective
        if parallel == "replicate":
            replica = nn.parallel.DistributedDataParallel(objective, gradient_as_bucket_view=True)
            self._replicas.append(replica)
            return replica
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(self.device.type, (self.world,))
        for block in blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(objective, mesh=mesh)
        return objective

    def part(self) -> None:
        """Ends what connects the processes; modules that were spread are of no use any more.

        Whoever lets go of a group last waits for the group's threads, and these may still need Python's lock to let
        go of the last tensors that were sent. A replica's reducer is a C++ object that owns the group too, and holds
        that lock when it dies: as the last owner it would wait for ever. So it goes first; the group's own Python
        object gives up the lock while it waits.
        """
        for replica in self._replicas:
            del replica.logger, replica.reducer, replica.process_group  # what torch, too, drops to pickle one
        self._replicas.clear()
        dist.destroy_process_group()


@contextlib.contextmanager
def processes(device: str) -> Iterator[Processes]:
    """The processes of this run, connected while the block runs.

    Args:
        device: as `clearhead train --device` has it; of several GPUs each process takes the one of its local rank.

    Raises:
        TrainingError: where the device is not there, the processes do not find each other, or another one of them
            failed; the text is then what that one said first.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Processes(0, 1, find_device(device))
        return
    rank, local = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    kind = find_device(device).type
    place = torch.device(kind, local) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        if local >= torch.cuda.device_count():
            raise TrainingError(
                f"process {local} of this machine has no GPU: there are {torch.cuda.device_count()}; "
                "start as many processes as there are GPUs (torchrun --nproc-per-node)."
            )
        torch.cuda.set_device(place)
    try:
        store, rank, world = next(dist.rendezvous("env://", timeout=_PATIENCE))
        store.set_timeout(_PATIENCE)
        backend = "nccl" if kind == "cuda" else "gloo"
        apart = dist.PrefixStore("group", store)
        dist.init_process_group(backend, store=apart, rank=rank, world_size=world, timeout=_PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise TrainingError(
            f"the {world} processes did not find each other ({str(error).splitlines()[0]}); start them with torchrun."
        ) from None
    group = Processes(rank, world, place, store)
    try:
        yield group
    except Exception as error:
        _tell(store, rank, error)
        raise
    finally:
        group.part()


def _tell(store: dist.Store, rank: int, error: Exception) -> None:
    """Tells the other processes what stopped this one, before its connections close; the first to tell is believed.

    What the others run into is the closed connection only. Whichever of them ends first, torchrun ends the rest, so
    each has to know the reason.

    Raises:
        TrainingError: where another process told its reason before, or died without one.
    """
    lost = isinstance(error, dist.DistError) or "gloo/transport" in str(error)
    if lost:
        words = str(error).splitlines()[0].partition(". ")[0]  # torch's advice follows
        mine = (
            f"another process of this run died, or the connection to it broke ({words}); see what it said last, and go "
            "on from the newest checkpoint with --resume."
        )
    else:
        mine = str(error) if isinstance(error, ClearheadError) else f"process {rank} failed: {error!r}"
    told = mine
    with contextlib.suppress(RuntimeError):  # the store may have died with its process
        told = store.compare_set(_STOPPED, "", mine).decode()
    if lost or told != mine:
        raise TrainingError(told) from None


def find_device(name: str) -> torch.device:
    """The device of a name; `auto` is cuda where there is one, else the CPU.

    Raises:
        TrainingError: where there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError):
        raise TrainingError(f"there is no device {name!r} here; use cpu or auto.") from None
