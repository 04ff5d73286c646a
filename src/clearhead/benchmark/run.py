"""The whole measurement: memory bandwidth, then each dtype in processes of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clearhead.anatomy.count import bytes_of, count_parameters
from clearhead.benchmark.bandwidth import read_speeds
from clearhead.benchmark.speed import Figure, Workload
from clearhead.config import GPTConfig
from clearhead.engine.building import layout, size
from clearhead.engine.pages import PAGE, cache_type, page_bytes
from clearhead.errors import InputError
from clearhead.utils.system import scratch_folder

_RUNS = 5  # of what is run several times


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds, or bytes per second, of several runs.

    Attributes:
        median: of the runs.
        best: the shortest time, or the highest speed.
    """

    median: float
    best: float


@dataclass(slots=True)
class FormatReport:
    """The results for one dtype of weights.

    Attributes:
        dtype: the dtype.
        weight_bytes: of all weights in memory.
        first_token: seconds from the start of a new process to its first token, with everything kept on disk.
        read_speed: memory bandwidth in bytes per second, before and after the other figures.
        peak_bytes: peak resident memory of the process with one sequence as long as the context; None if the system
            does not report it.
        figures: speeds.
    """

    dtype: str
    weight_bytes: int
    first_token: Times
    read_speed: Times
    peak_bytes: int | None
    figures: list[Figure]


@dataclass(slots=True)
class Report:
    """A whole measurement.

    Attributes:
        config: the model's shape.
        threads: how many shared the work.
        import_torch: seconds that a new process takes for `import torch`; None if PyTorch is not installed.
        formats: the results for each dtype, in the order that was asked for.
    """

    config: GPTConfig
    threads: int
    import_torch: Times | None
    formats: list[FormatReport]

    def step_bytes(self, dtype: str, context: int, batch: int) -> int:
        """Return the bytes of weights, keys and values that decoding one token of each of `batch` sequences reads.

        Of an embedding only one row per token is read, which is left out; a tied head reads all of it.
        """
        config = self.config
        skipped = (
            {"positions"} if config.tie_weights else {"positions", "tokens.weights", "tokens.scales", "tokens.bias"}
        )
        arrays = layout(config, dtype)
        weights = sum(kind.itemsize * math.prod(shape) for name, (kind, shape) in arrays.items() if name not in skipped)
        token = page_bytes(config, cache_type(arrays["qkv.weights"][0])) // PAGE
        return weights + batch * context * token

    def share(self, one: FormatReport, figure: Figure) -> float:
        """Return the bytes per second that decoding reads, as a fraction of the memory bandwidth."""
        return self.step_bytes(one.dtype, figure.context, figure.batch) / figure.seconds / one.read_speed.median


@contextlib.contextmanager
def random_model(config: GPTConfig, dtypes: Sequence[str], threads: int) -> Iterator[Path]:
    """Yield a folder with a model of this shape and random weights, which the engine opens in these dtypes.

    It is removed afterwards, with what the engine kept of it.
    """
    from clearhead import weights
    from clearhead.engine.store import forget, keep_rounded
    from clearhead.weights.random_tensors import RandomTensors

    n_bytes = bytes_of(count_parameters(config).total, "bfloat16")
    with tempfile.TemporaryDirectory(dir=scratch_folder(n_bytes), prefix="random-") as made:
        folder = Path(made) / "model"
        weights.save(folder, config, RandomTensors(config), dtype="bfloat16")
        try:
            for dtype in dtypes:
                keep_rounded(weights.open(folder), dtype, threads)
            yield folder
        finally:
            forget(weights.open(folder))


def benchmark(
    model: str,
    config: GPTConfig,
    dtypes: Sequence[str],
    threads: int,
    *,
    quick: bool,
    advance: Callable[[int, str], None],
) -> Report:
    """Measure a model.

    Args:
        model: what `clearhead.load` opens.
        config: its shape.
        dtypes: of the weights.
        threads: how many share the work.
        quick: measure less.
        advance: called with the number of steps done, out of `steps`, and what comes next.

    Raises:
        ClearheadError: if the model cannot be opened or there is not enough memory.
    """
    work = Workload.of(config, quick)
    formats = []
    for dtype in dtypes:
        job = {"model": model, "config": dataclasses.asdict(config), "dtype": dtype, "threads": threads, "quick": quick}
        advance(0, f"{dtype}, preparing")
        for _ in _lines({**job, "task": "first token"}):
            pass  # compiles, and keeps compiled code and weights on disk, if that was not done before
        advance(0, f"{dtype}, start-up")
        first_token = _times([_until_first_token(job) for _ in range(_RUNS)])
        advance(1, f"{dtype}, speed")
        speeds = read_speeds(threads, _RUNS)
        figures, peak_bytes = [], None
        for line in _lines({**job, "task": "measure"}):
            if "figure" in line:
                figures.append(Figure(**line["figure"]))
                advance(1, f"{dtype}, speed")
            else:
                peak_bytes = line["peak_bytes"]
        assert len(figures) == work.figures
        speeds += read_speeds(threads, _RUNS)
        read_speed = Times(statistics.median(speeds), max(speeds))
        formats.append(FormatReport(dtype, size(config, dtype), first_token, read_speed, peak_bytes, figures))
    advance(0, "import torch")
    torch = _import_torch()
    advance(1, "done")
    return Report(config, threads, torch, formats)


def steps(config: GPTConfig, dtypes: Sequence[str], quick: bool) -> int:
    """Return the number of steps that `benchmark` reports."""
    return len(dtypes) * (Workload.of(config, quick).figures + 1) + 1


def _times(seconds: list[float]) -> Times:
    return Times(statistics.median(seconds), min(seconds))


def _command(job: dict[str, Any]) -> list[str]:
    return [sys.executable, "-m", "clearhead.benchmark.process", json.dumps(job)]


def _lines(job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Run a process and yield what it prints, line by line.

    Raises:
        InputError: with the sentence that the process printed, or its exit status.
    """
    with subprocess.Popen(_command(job), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            for text in process.stdout:
                line = json.loads(text)
                if "error" in line:
                    raise InputError(line["error"])
                yield line
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        raise InputError(
            f"the process that measured {job['dtype']} ended with status {process.returncode}; "
            "if there was not enough memory, take a smaller dtype or model."
        )


def _until_first_token(job: dict[str, Any]) -> float:
    start = time.perf_counter()
    for _ in _lines({**job, "task": "first token"}):
        first = time.perf_counter()
    return first - start


def _import_torch() -> Times | None:
    seconds = []
    for _ in range(_RUNS):
        start = time.perf_counter()
        if subprocess.run([sys.executable, "-c", "import torch"], stderr=subprocess.DEVNULL).returncode:
            return None
        seconds.append(time.perf_counter() - start)
    return _times(seconds)
