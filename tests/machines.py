"""Run the machine-sensitive tests as other machines would: `python tests/machines.py [short] [NAME ...]`.

Each variant is a set of environment variables that makes this machine behave like another: older instructions, another
number of threads, another locale, a HOME in which nothing can be stored. `short` runs a few tests in each variant.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

_NUMERIC = [
    "tests/test_model.py",
    "tests/test_engine.py",
    "tests/test_sampling.py",
    "tests/test_generation.py",
    "tests/test_scoring.py",
    "tests/runs",
    *(
        f"tests/test_training_distributed.py::test_{name}"
        for name in (
            "any_number_of_processes_makes_the_same_run",
            "replicas_that_are_sharded_make_the_same_run",
            "processes_agree_in_bfloat16_to_its_own_rounding",
            "a_checkpoint_of_two_goes_on_alone_and_with_three",
            "random_numbers_of_dropout_belong_to_the_piece",
        )
    ),
    "tests/test_finetune.py",
]
"""What instructions and threads could change: numbers. How processes start, wait and fail is not among it."""
_PRINTED = [
    "tests/verbs",
    "tests/corpora/test_corpus_documents.py",
    "tests/corpora/test_corpus_recipes.py",
    "tests/corpora/test_corpus_refused.py",
    "tests/test_training_record.py",
    "tests/test_weights_cli.py",
]
"""What a terminal, an encoding or a time zone could change: what is printed, and files that are read as text."""
_STORED = ["tests/test_engine_load.py", "tests/test_weights_convert.py", "tests/test_training_safety.py"]
_SHORT = ["tests/test_sampling.py", "tests/test_model.py"]


@dataclass(frozen=True)
class Machine:
    """One variant.

    Attributes:
        name: what is selected on the command line.
        variables: the environment variables that imitate it; None removes one.
        tests: the test files that it could change.
        short: the same for the short form.
        umask: the permissions that new files do not get.
    """

    name: str
    variables: dict[str, str | None]
    tests: list[str]
    short: list[str] = field(default_factory=lambda: _SHORT)
    umask: int = 0o022


MACHINES = [
    Machine(
        "oldest-cpu",
        {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "NUMBA_CPU_NAME": "generic"},
        _NUMERIC,
    ),
    Machine(
        "avx2", {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "CLEARHEAD_KERNELS": "avx2"}, _NUMERIC
    ),
    Machine("every-kernel", {"TEST_KERNELS": "all"}, ["tests/test_engine_load.py"]),
    Machine("two-threads", {"OMP_NUM_THREADS": "2", "NUMBA_NUM_THREADS": "2"}, _NUMERIC),
    Machine(
        "plain-locale",
        {"LC_ALL": "C", "LANG": None, "TZ": "Asia/Kolkata", "TERM": "dumb", "COLUMNS": "60", "PYTHONUTF8": "0"},
        _PRINTED,
        ["tests/test_weights_cli.py"],
    ),
    Machine("private-umask", {}, _STORED, ["tests/test_weights_convert.py"], umask=0o077),
    Machine(
        "read-only-home",
        {"HOME": "/dev/null/home", "XDG_CACHE_HOME": None, "CLEARHEAD_CACHE": None},
        ["tests/test_gpt.py", "tests/test_weights_convert.py"],
        ["tests/verbs/test_cli_generate.py::test_generate_as_a_process_refuses_in_a_sentence", "tests/test_model.py"],
    ),
]


def run(machine: Machine, short: bool) -> bool:
    """Run the tests of one variant; return whether they passed."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "HYPOTHESIS_PROFILE": "random"}
    for name, value in machine.variables.items():
        variables.pop(name, None)
        if value is not None:
            variables[name] = value
    options = ["-q", "-p", "no:cacheprovider", *(["-m", "not slow"] if short else [])]
    command = [sys.executable, "-m", "pytest", *options, *(machine.short if short else machine.tests)]
    started = time.monotonic()
    settings = " ".join(f"{name}={value}" for name, value in machine.variables.items()) or f"umask {machine.umask:o}"
    print(f"== {machine.name}: {settings}", flush=True)
    done = subprocess.run(command, env=variables, umask=machine.umask, check=False)
    print(f"== {machine.name}: {'failed' if done.returncode else 'passed'} in {time.monotonic() - started:.0f} s\n")
    return not done.returncode


def main(arguments: list[str]) -> int:
    """Run the named variants, or all; return the exit status."""
    names = [name for name in arguments if name != "short"]
    known = {machine.name: machine for machine in MACHINES}
    if unknown := [name for name in names if name not in known]:
        print(f"there is no machine {unknown[0]!r}; the machines are {', '.join(known)}.", file=sys.stderr)
        return 2
    os.chdir(Path(__file__).parent.parent)
    results = {name: run(known[name], "short" in arguments) for name in names or known}
    failed = [name for name, passed in results.items() if not passed]
    print(
        f"{len(results) - len(failed)} of {len(results)} machines passed"
        + (f"; failed: {', '.join(failed)}" * bool(failed))
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
