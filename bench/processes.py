"""Running programs as whole processes, in turn, and taking the time of each one's fastest run."""

from __future__ import annotations

import os
import random
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

    They run in turn, so that what slows the machine for a while slows all of them, and each round in another order,
    because a program also feels what the one before it left behind (a virtual machine gives freed memory back to its
    host, and the next program waits for it). The first round, in which files come from the disk, does not count.

    Args:
        commands: each program's arguments.
        runs: how many rounds count.
    """
    found: dict[str, Run] = {}
    # What is installed keeps its modules compiled; a variable that forbids it would slow down only what is not.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    for round_ in range(runs + 1):
        for name, command in random.Random(round_).sample(list(commands.items()), len(commands)):
            began = time.perf_counter()
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            seconds = time.perf_counter() - began
            if done.returncode:
                raise SystemExit(f"{name} failed:\n{done.stderr}")
            if round_ and (name not in found or seconds < found[name].seconds):
                found[name] = Run(seconds, done.stdout)
    return {name: found[name] for name in commands}
