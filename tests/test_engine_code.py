"""Compiled code that is kept on disk: for which machine, what damages it, and that it runs without Numba."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from clearhead.engine.variants import runnable
from clearhead.utils import machine_code

_OUTSIDE = dict(os.environ)


def test_damaged_machine_code_is_compiled_anew(tmp_path: Path) -> None:
    """Files that are cut short, emptied or flipped, and a disk that cannot be written."""
    script = "from clearhead.benchmark.bandwidth import read_speeds; print(read_speeds(1, 1, 8000)[0] > 0)"

    def run() -> None:
        made = subprocess.run(
            [sys.executable, "-c", script],
            env=_OUTSIDE | {"CLEARHEAD_CACHE": str(tmp_path / "cache")},
            capture_output=True,
            text=True,
        )
        assert (made.returncode, made.stdout) == (0, "True\n"), made.stderr

    run()
    for damage in (
        lambda data: data[:50],
        lambda data: b"",
        lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:],
    ):
        files = list((tmp_path / "cache" / "compiled").rglob("*.code"))
        assert len(files) == 1
        whole = {path: path.read_bytes() for path in files}
        for path, data in whole.items():
            path.write_bytes(damage(data))
        run()
        assert all(len(path.read_bytes()) == len(data) for path, data in whole.items())  # they were written anew
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").write_text("in the way")
    run()


def _read_bandwidth(cache: Path, **environment: str) -> bool:
    """Measure the bandwidth, which takes one small compiled function; return whether Numba was imported for it."""
    script = (
        "import sys; from clearhead.utils.machine_code import CompiledFunction; import numpy as np; "
        "double = CompiledFunction('clearhead.benchmark.bandwidth', '_sum'); "
        "assert double(np.arange(10, dtype=np.uint64)) == 45; print('numba' in sys.modules)"
    )
    made = subprocess.run(
        [sys.executable, "-c", script],
        env=_OUTSIDE | {"CLEARHEAD_CACHE": str(cache)} | environment,
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0, made.stderr
    return made.stdout == "True\n"


def test_code_is_kept_for_one_cpu_and_one_variant(tmp_path: Path) -> None:
    assert _read_bandwidth(tmp_path)
    assert not _read_bandwidth(tmp_path)
    variant = runnable()[-1].name
    for environment in ({"NUMBA_CPU_NAME": "generic"}, {"CLEARHEAD_KERNELS": variant}, {"NUMBA_OPT": "1"}):
        assert _read_bandwidth(tmp_path, **environment)
        assert not _read_bandwidth(tmp_path, **environment)
    assert not _read_bandwidth(tmp_path)


def test_code_that_needs_what_the_process_lacks_is_compiled_anew(tmp_path: Path) -> None:
    _read_bandwidth(tmp_path)
    (path,) = (tmp_path / "compiled").rglob("*.code")
    whole, code = path.read_bytes(), machine_code.read_checked(path)
    assert code is not None
    machine_code.write_checked(path, code._replace(needs=["no_function_has_this_name"]))
    assert _read_bandwidth(tmp_path)
    assert path.read_bytes() == whole


def test_a_model_runs_from_kept_code_without_numba(tmp_path: Path, compiled_engine: None) -> None:
    script = (
        "import sys; import clearhead; clearhead.load().generate('Once upon a time', max_new_tokens=3); "
        "print([name for name in ('numba', 'torch', 'scipy') if name in sys.modules])"
    )
    made = subprocess.run([sys.executable, "-c", script], env=_OUTSIDE, capture_output=True, text=True)
    assert (made.returncode, made.stdout) == (0, "[]\n"), made.stderr
