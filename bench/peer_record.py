"""The results of `peers.py` in a file of JSON lines, to which each run adds what the ones before it left out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Result:
    """What one process of a program gave.

    Attributes:
        settings: what must be equal for results to be comparable: the CPU, the model's size, threads, tokens.
        program, format: what ran.
        round: its number; 0 compiles and makes weights, and is not measured.
        measured: the line that `peer.py` printed, or nothing if it failed.
        problem: why it failed, in one sentence, or "".
    """

    settings: dict[str, Any]
    program: str
    format: str
    round: int
    measured: dict[str, Any]
    problem: str = ""


class Record:
    """The results with some settings, in memory and, if there is a file, in it.

    Args:
        path: of the file; None for none. Results with other settings may be in it too.
        settings: see `Result`.
    """

    def __init__(self, path: Path | None, settings: dict[str, Any]) -> None:
        self._path, self._settings = path, settings
        self.results: list[Result] = []
        if path is not None and path.exists():
            whole = path.read_text(encoding="utf-8").rpartition("\n")[0]  # a last line may have been cut off
            path.write_text(whole + "\n" if whole else "", encoding="utf-8")
            found = [Result(**json.loads(line)) for line in whole.splitlines()]
            self.results = [one for one in found if one.settings == settings]

    def add(self, key: tuple[str, str], number: int, measured: dict[str, Any], problem: str = "") -> None:
        """Add a result of the program and format `key`."""
        self.results.append(Result(self._settings, *key, number, measured, problem))
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(self.results[-1])) + "\n")

    def has(self, key: tuple[str, str], number: int) -> bool:
        """Return whether there is a result of a program's round, or its last run failed."""
        return bool(self.problem(key)) or any(
            (one.program, one.format, one.round) == (*key, number) for one in self.results
        )

    def forget_problems(self, keys: Sequence[tuple[str, str]]) -> None:
        """Drop failures of some programs, so that `has` does not count them; they stay in the file."""
        self.results = [one for one in self.results if not (one.problem and (one.program, one.format) in keys)]

    def rounds(self, key: tuple[str, str]) -> dict[int, dict[str, Any]]:
        """Return what a program measured in each round."""
        return {
            one.round: one.measured
            for one in self.results
            if (one.program, one.format) == key and one.round > 0 and not one.problem
        }

    def problem(self, key: tuple[str, str]) -> str:
        """Return why a program's last run failed; "" if it did not."""
        own = [one for one in self.results if (one.program, one.format) == key]
        return own[-1].problem if own else ""
