"""Running programs as whole processes, in turn, and taking the time of each one's fastest run."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Run:
    """One run of a program: how long it took from its start to its end, and what it printed."""

    seconds: float
    output: str


def fastest(commands: Mapping[str, Sequence[str]], runs: int) -> dict[str, Run]:
    """The fastest run of each program, by name.

    They run in turn, so that what slows the machine for a while slows all of them; the first round, in which files
    come from the disk, does not count.

    Args:
        commands: each program's arguments.
        runs: how many rounds count.
    """
    found: dict[str, Run] = {}
    for round_ in range(runs + 1):
        for name, command in commands.items():
            began = time.perf_counter()
            done = subprocess.run(command, capture_output=True, text=True)
            seconds = time.perf_counter() - began
            if done.returncode:
                raise SystemExit(f"{name} failed:\n{done.stderr}")
            if round_ and (name not in found or seconds < found[name].seconds):
                found[name] = Run(seconds, done.stdout)
    return found
