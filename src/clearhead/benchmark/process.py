"""The measuring process: `python -m clearhead.benchmark.process JOB`; JOB is a JSON object.

It prints one JSON object per line: {"figure": ...}, {"peak_bytes": ...}, {"first": id}, or {"error": ...} with a
sentence for the user.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from clearhead.errors import ClearheadError


def say(**values: Any) -> None:
    """Print one line for the process that waits."""
    print(json.dumps(values), flush=True)


def main() -> None:
    """Open the model of the job and do its task, "first token" or "measure"."""
    job = json.loads(sys.argv[1])
    try:
        import clearhead

        settings = {name: job[name] for name in ("config", "dtype", "threads")}
        runner = clearhead.load(job["model"], backend="engine", **settings).runner
        if job["task"] == "first token":
            slot = runner.open()
            say(first=int(runner.extend([(slot, list(range(min(16, runner.config.context_length))))])[0].argmax()))
        else:
            _measure(runner, job)
    except ClearheadError as error:
        say(error=str(error))
        sys.exit(2)


def _measure(runner: Any, job: dict[str, Any]) -> None:
    from clearhead.benchmark.speed import Workload, time_alone, time_together

    work = Workload.of(runner.config, job["quick"])
    warm = runner.open()
    runner.extend([(warm, [0])])
    runner.close(warm)
    for figure in time_alone(runner, work):
        say(figure=asdict(figure))
    say(peak_bytes=peak_bytes())  # of one sequence as long as the context; a batch needs what its caches need
    for figure in time_together(runner, work):
        say(figure=asdict(figure))


def peak_bytes() -> int | None:
    """Return the peak resident memory of this process in bytes; None if the system does not report it."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main()
