"""What the fuzzers share: a worker process under limits, seeds, and ways to damage a file."""

from __future__ import annotations

import copy
import json
import os
import queue
import random
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CPU_SECONDS = 10.0  # for one input, on a slow machine; what takes more hangs
WALL_SECONDS = 600.0  # for one input that waits for something, on a machine that may pause this process
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Outcome:
    """How a reader ended.

    Attributes:
        kind: `ok`, `refused`, `crash`, `timeout` or `died`.
        text: the sentence, or the traceback.
        seconds: of CPU time; other programs on the machine do not change it.
    """

    kind: str
    text: str = ""
    seconds: float = 0.0


class Worker:
    """A process that reads one input after another; it is replaced when it hangs or dies.

    Attributes:
        slowest: the CPU time of the slowest input, and which it was.
    """

    def __init__(self) -> None:
        self.slowest = (0.0, "none")
        self._process: subprocess.Popen[str] | None = None
        self._answers: queue.Queue[str] = queue.Queue()
        self._listener = threading.Thread()

    def _start(self) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TOKENIZERS_PARALLELISM": "false"}
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("worker.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        answers: queue.Queue[str] = queue.Queue()
        assert process.stdout is not None
        stdout = process.stdout

        def listen() -> None:
            for line in stdout:
                answers.put(line)
            answers.put("")

        self._listener = threading.Thread(target=listen, daemon=True)
        self._listener.start()
        if answers.get(timeout=120) != "ready\n":
            raise RuntimeError("the worker did not start")
        self._process, self._answers = process, answers
        return process

    def read(self, reader: str, folder: Path) -> Outcome:
        """Let the worker read a folder; see `Outcome`."""
        process = self._process or self._start()
        assert process.stdin is not None
        used = _cpu_seconds(process.pid)
        process.stdin.write(json.dumps({"reader": reader, "folder": str(folder)}) + "\n")
        process.stdin.flush()
        line = self._answer(process, used)
        if line is None:
            self.close()
            return Outcome("timeout")
        if not line:
            status = process.wait()
            self.close()
            return Outcome("died", f"status {status}")
        return Outcome(**json.loads(line))

    def _answer(self, process: subprocess.Popen[str], used: float) -> str | None:
        """Return the worker's line, an empty one if it died, or None if it hangs."""
        end = time.monotonic() + WALL_SECONDS
        while time.monotonic() < end:
            try:
                return self._answers.get(timeout=POLL_SECONDS)
            except queue.Empty:
                if process.poll() is None and _cpu_seconds(process.pid) - used > CPU_SECONDS:
                    return None
        return None

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            process, self._process = self._process, None
            process.kill()
            process.wait()
            self._listener.join()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()


def _cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process has used."""
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")


WEIRD: list[Any] = [
    None, True, False, 0, -1, 1, 2, 10**9, 2**31, 2**63, 2**64, 10**30, 1e308, -1e-308, 0.5, "", "a", "\x00", "\ud800",
    "\x1b[2J", "(a+)+$", "(?=", "[", "x" * 5000, [], {}, [[]], [None], {"": None}, ["a", "b"], {"a": 1}, "Regex",
]  # fmt: skip


def damage_bytes(data: bytes, chance: random.Random) -> bytes:
    """Return bytes with a few damages: cuts, flips, insertions, repetitions, extreme numbers."""
    found = bytearray(data)
    for _ in range(chance.choice([1, 1, 2, 4, 8])):
        at = chance.randrange(len(found) + 1) if chance.random() < 0.5 else chance.randrange(min(len(found), 256) + 1)
        match chance.randrange(7):
            case 0:
                del found[at:]
            case 1 if at < len(found):
                found[at] ^= 1 << chance.randrange(8)
            case 2:
                found[at:at] = chance.randbytes(chance.choice([1, 4, 8, 64]))
            case 3:
                found[at : at + chance.choice([1, 2, 4, 8, 64])] = b""
            case 4:
                found[at : at + 4] = chance.choice(
                    [b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\x7f", b"\0\0\0\x80"]
                )
            case 5:
                found[at : at + 8] = chance.choice([b"\xff" * 8, bytes(8), b"\xff" * 7 + b"\x7f", b"\0\0\0\0\1\0\0\0"])
            case _:
                other = chance.randrange(len(found) + 1)
                found[at:at] = found[other : other + chance.choice([1, 16, 256])]
    return bytes(found)


def damage_json(value: Any, chance: random.Random) -> Any:
    """Return a JSON value in which a few nodes are replaced, removed, renamed, repeated or nested."""
    value = json.loads(json.dumps(value))
    for _ in range(chance.choice([1, 1, 2, 3])):
        value = _damage_node(value, chance, chance.randrange(1, 7))
    return value


def _damage_node(value: Any, chance: random.Random, depth: int) -> Any:
    if depth and isinstance(value, dict) and value:
        key = chance.choice(list(value))
        match chance.randrange(8):
            case 0:
                del value[key]
            case 1:
                value[chance.choice(["", "type", key + "x", "\x00"])] = value.pop(key)
            case _:
                value[key] = _damage_node(value[key], chance, depth - 1)
        return value
    if depth and isinstance(value, list) and value:
        index = chance.randrange(len(value))
        match chance.randrange(8):
            case 0:
                del value[index]
            case 1:
                value += value[index : index + 1] * chance.choice([1, 3])
            case _:
                value[index] = _damage_node(value[index], chance, depth - 1)
        return value
    match chance.randrange(12):
        case 0:
            return [value]
        case 1:
            nested: Any = value
            for _ in range(chance.choice([3, 60, 300, 3000])):
                nested = [nested] if chance.random() < 0.5 else {"type": "Sequence", "pretokenizers": [nested]}
            return nested
        case _:
            return copy.deepcopy(chance.choice(WEIRD))


def dump(value: Any) -> bytes:
    """Return JSON, deep as it may be; a lone surrogate stays an escape."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)
    try:
        return json.dumps(value).encode()
    finally:
        sys.setrecursionlimit(limit)


def fill(folder: Path, seed: Path, name: str, contents: bytes) -> None:
    """Make `folder` a copy of a seed in which one file has other contents."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(seed, folder)
    (folder / name).write_bytes(contents)
