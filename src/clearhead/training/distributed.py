"""The processes of a run: one, or those that torchrun starts, and the communication between them.

`torchrun --nproc-per-node=8 -m clearhead train ...` starts eight processes and identifies each by environment variables
(RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR). Each computes its share of every batch.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn

from clearhead.errors import ClearheadError, TrainingError
from clearhead.training.recipe import Parallel

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

_TIMEOUT = timedelta(minutes=30)  # of collective operations
_LONGEST_PAUSE = 1.0  # seconds between two checks whether the first process has finished its work alone
_FAILURE = "failure"  # the store's key for the error of the first process that failed


@dataclass(frozen=True, slots=True)
class Processes:
    """This process among the processes of the run.

    Attributes:
        rank: its number, from 0.
        world: the number of processes.
        device: the device that this process computes on.
    """

    rank: int
    world: int
    device: torch.device
    _store: dist.Store | None = field(default=None, repr=False, compare=False)
    _meetings: Iterator[int] = field(default_factory=itertools.count, repr=False, compare=False)
    _replicas: list[nn.parallel.DistributedDataParallel] = field(default_factory=list, repr=False, compare=False)

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files and prints messages."""
        return self.rank == 0

    def sums(self, values: Sequence[float]) -> list[float]:
        """Return each value summed over the processes, in float64."""
        if self.world == 1:
            return list(values)
        kind = torch.float32 if self.device.type == "mps" else torch.float64
        together = torch.tensor(values, dtype=kind, device=self.device)
        dist.all_reduce(together)
        return together.tolist()

    def wait(self) -> None:
        """Return when all processes have called this."""
        if self.world > 1:
            dist.barrier()

    def from_first(self, value: Any) -> Any:
        """Return the first process's value in all processes."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    @contextlib.contextmanager
    def first_alone(self) -> Iterator[bool]:
        """Yield whether this is the first process, and let the others wait; an error of the first is raised in all.

        The others wait for as long as it takes, which may be hours if a corpus is built: not in a collective operation,
        which times out, but by polling the store. If the first process dies, the store dies with it, or torchrun, which
        owns the store, ends the rest.

        with processes.first_alone() as first:
            if first: ...
        """
        error: BaseException | None = None
        try:
            yield self.is_first
        except BaseException as found:
            error = found
        self._await_first()
        message = None if error is None else str(error) or f"process {self.rank} was stopped ({type(error).__name__})."
        message = self.from_first(message)
        if error is not None:
            raise error
        if message is not None:
            raise TrainingError(message)

    def _await_first(self) -> None:
        """Return when the first process has called this.

        Raises:
            TrainingError: if another process has failed.
        """
        if self._store is None:
            return
        key = f"done alone {next(self._meetings)}"
        if self.is_first:
            self._store.set(key, "done")
        pause = 0.001
        while not self._store.check([key]):
            if self._store.check([_FAILURE]):
                raise TrainingError(self._store.get(_FAILURE).decode())
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def spread(
        self, objective: nn.Module, blocks: Sequence[nn.Module], parallel: Parallel, shard_processes: int = 0
    ) -> nn.Module:
        """Spread a module over the processes: a replica in each (DDP), or a part in each (FSDP2).

        Args:
            objective: the module whose forward returns the loss.
            blocks: its large parts; if the model is sharded, one at a time is gathered.
            parallel: `replicate`, `shard`, or `hybrid`: replicas, each of them sharded.
            shard_processes: with `hybrid`, the number of processes that share a replica; 0 for those of a machine.

        Raises:
            TrainingError: if the processes cannot be divided into such replicas.
        """
        if self.world == 1:
            return objective
        if parallel == "replicate":
            replica = nn.parallel.DistributedDataParallel(objective, gradient_as_bucket_view=True)
            self._replicas.append(replica)
            return replica
        from torch.distributed.fsdp import fully_shard

        mesh = self._mesh(shard_processes, parallel)
        for block in blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(objective, mesh=mesh)
        return objective

    def _mesh(self, shard_processes: int, parallel: Parallel) -> DeviceMesh:
        """Return the processes in a line or, for replicas that are sharded, in a table with a row for each replica."""
        from torch.distributed.device_mesh import init_device_mesh

        if parallel == "shard":
            return init_device_mesh(self.device.type, (self.world,))
        columns = shard_processes or int(os.environ.get("LOCAL_WORLD_SIZE", self.world))
        if self.world % columns:
            raise TrainingError(
                f"{self.world} processes cannot be divided into replicas of {columns}; set shard_processes to a "
                "divisor of their number, or start another number of them."
            )
        shape, names = (self.world // columns, columns), ("replica", "shard")
        return init_device_mesh(self.device.type, shape, mesh_dim_names=names)

    def disconnect(self) -> None:
        """Close the connections between the processes; modules that were spread become unusable.

        The last owner of a group waits for the group's threads, and these may still need the GIL to release the last
        tensors that were sent. A replica's reducer is a C++ object that owns the group too and holds the GIL when it is
        destroyed: as the last owner it would wait for ever. So it is destroyed first; the group's own Python object
        releases the GIL while it waits.
        """
        for replica in self._replicas:
            del replica.logger, replica.reducer, replica.process_group  # what torch, too, drops to pickle one
        self._replicas.clear()
        dist.destroy_process_group()


@contextlib.contextmanager
def connect_processes(device: str) -> Iterator[Processes]:
    """Connect the processes of this run while the block runs.

    Args:
        device: a value of `clearhead train --device`; of several GPUs each process takes the one of its local rank.

    Raises:
        TrainingError: if the device does not exist, the processes do not find each other, or another process failed;
            the message is then that process's.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Processes(0, 1, find_device(device))
        return
    rank, local = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    kind = find_device(device).type
    this_device = torch.device(kind, local) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        if local >= torch.cuda.device_count():
            raise TrainingError(
                f"process {local} of this machine has no GPU: there are {torch.cuda.device_count()}; "
                "start as many processes as there are GPUs (torchrun --nproc-per-node)."
            )
        torch.cuda.set_device(this_device)
    try:
        store, rank, world = next(dist.rendezvous("env://", timeout=_TIMEOUT))
        store.set_timeout(_TIMEOUT)
        store = _of_this_attempt(store)
        backend = "nccl" if kind == "cuda" else "gloo"
        group_store = dist.PrefixStore("group", store)
        dist.init_process_group(backend, store=group_store, rank=rank, world_size=world, timeout=_TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise TrainingError(
            f"the {world} processes did not find each other ({str(error).splitlines()[0]}); start them with torchrun."
        ) from None
    group = Processes(rank, world, this_device, store)
    try:
        yield group
    except Exception as error:
        _report_failure(store, rank, error)
        raise
    finally:
        group.disconnect()


def open_store(timeout: timedelta) -> dist.Store | None:
    """Return torchrun's store, which outlives the processes' connections; None if torchrun did not start this one.

    Raises:
        RuntimeError, ValueError: if it cannot be reached.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    store, _, _ = next(dist.rendezvous("env://", timeout=timeout))
    return _of_this_attempt(store)


def _of_this_attempt(store: dist.Store) -> dist.Store:
    """Return a part of torchrun's store in which the keys of other attempts are not found."""
    return dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _report_failure(store: dist.Store, rank: int, error: Exception) -> None:
    """Report this process's error to the others before its connections close; the first report counts.

    The others see only the closed connection. Whichever process ends first, torchrun ends the rest, so each has to know
    the reason.

    Raises:
        TrainingError: if another process reported its error before, or died without a report.
    """
    lost = isinstance(error, dist.DistError) or "gloo/transport" in str(error)
    if lost:
        words = str(error).splitlines()[0].partition(". ")[0]  # without torch's advice
        mine = (
            f"another process of this run died, or the connection to it broke ({words}); see its last message, and "
            "resume from the newest checkpoint if there is one (--resume)."
        )
    else:
        mine = str(error) if isinstance(error, ClearheadError) else f"process {rank} failed: {error!r}"
    first = mine
    with contextlib.suppress(RuntimeError):  # the store may have died with its process
        first = store.compare_set(_FAILURE, "", mine).decode()
    if lost or first != mine:
        raise TrainingError(first) from None


def first_process() -> bool:
    """Return whether this is the first process of its run, the one that prints. No connection is needed."""
    return os.environ.get("RANK", "0") == "0"


def find_device(name: str) -> torch.device:
    """Return the device of a name; `auto` is cuda if there is one, else the CPU.

    Raises:
        TrainingError: if there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError):
        raise TrainingError(f"there is no device {name!r} here; use cpu or auto.") from None
