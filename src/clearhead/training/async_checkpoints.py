"""Checkpoints that are written while training goes on, by torch.distributed.checkpoint's `async_save`.

A step waits only for a copy of weights and optimizer state in memory. Threads of the processes then write them, and one
of the first process completes the folder. So a checkpoint appears a little later, and is as whole as any.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor

from clearhead.training.checkpoint import CheckpointState, NewCheckpoint, begin_checkpoint, write_errors_explained
from clearhead.training.distributed import Processes


class AsyncCheckpoints:
    """Write the checkpoints of a run in the background, one at a time.

    Args:
        processes: the processes of the run. Their threads agree over connections of their own.
    """

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._group = dist.new_group(backend="gloo") if processes.world > 1 else None
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[Any] | None = None
        # A filter of the process: one for a block would also catch what another thread warns of.
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")

    def save(
        self,
        run: Path,
        state: CheckpointState,
        tensors: Mapping[str, Tensor],
        save_model: Callable[[Path], None],
        keep: int,
    ) -> None:
        """Begin to write a checkpoint when the last one is complete. All processes call this together.

        Args:
            run, state, tensors, keep: as `save_checkpoint`; the tensors are copied.
            save_model: likewise; what it writes must not change any more.

        Raises:
            TrainingError: as `save_checkpoint`, also for the last checkpoint.
        """
        self.wait()
        new = begin_checkpoint(run, state, tensors, self._processes, keep)
        if new is None:
            return
        written: Any = dcp.async_save(
            dict(tensors),
            storage_writer=new.writer(),
            process_group=self._group,
            no_dist=self._processes.world == 1,
        )
        self._pending = self._thread.submit(self._complete, new, written, save_model)

    def _complete(self, new: NewCheckpoint, written: Future[Any], save_model: Callable[[Path], None]) -> None:
        """Wait for the tensors, which in the first process are written when those of all are; add the rest."""
        try:
            with write_errors_explained(new):
                written.result()
            if self._processes.is_first:
                new.complete(save_model)
        except BaseException:
            if self._processes.is_first:
                new.discard()
            raise

    def wait(self) -> None:
        """Return when the last checkpoint is complete. All processes call this together.

        Raises:
            TrainingError: if it could not be written.
        """
        pending, self._pending = self._pending, None
        with self._processes.first_alone() as first:
            if first and pending is not None:
                pending.result()
        if pending is not None:
            pending.result()

    def __enter__(self) -> AsyncCheckpoints:
        """Return it."""
        return self

    def __exit__(self, *error: object) -> None:
        """Let the last checkpoint be completed if that is possible, also when the run ends with an error."""
        pending, self._pending = self._pending, None
        if pending is not None:
            with contextlib.suppress(BaseException):
                pending.result()
        self._thread.shutdown()
