"""Work that kills its own process once, as a machine of a cluster may die."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class DyingWork:
    """Call `work`; the first process that comes to the call number `after` dies instead.

    Attributes:
        work: the function.
        marker: a file that the dying process leaves.
        after: how many calls a process completes before it may die.
    """

    work: Callable[..., Any]
    marker: Path
    after: int = 1

    def __call__(self, *arguments: Any) -> Any:
        self.after -= 1
        if self.after < 0 and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.work(*arguments)
