"""How fast Clearhead writes beside the programs that others use for GPT-2 on a CPU, in turn in one run.

    python bench/peers.py --folder models --python peers-venv/bin/python --threads 2

Models with random weights are made once in the folder (`peer_models.py`): speed does not depend on their numbers. Then
come rounds. In each, every program runs in a process of its own (`peer.py`), one after another, so that whatever else
slows the machine hits all alike. Of a program and a kind of work the median of its rounds is shown; a ratio is the
median of the rounds' ratios. What is not installed for the peers' Python is named and left out.

With `--record` each process's result is added to a file of JSON lines, and the same command goes on where it was
stopped: so five rounds can be measured in several quiet minutes, with `--seconds` for how many there are. The table at
the end shows what is in the file; `--rounds 0` measures nothing more. What failed is tried again if it is named with
`--programs`.

The peers may need another Python than Clearhead's. In an environment of their own, this installs all of them in
versions that work together (torch.compile and llama-cpp-python need a C++ compiler on the machine):

    CMAKE_ARGS=-DGGML_NATIVE=ON pip install -r bench/peers-requirements.txt
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from cpu import cpu_features, cpu_name
from peer_models import installed_for, make
from peer_record import Record

WORKER = Path(__file__).with_name("peer.py")

PROGRAMS = {
    ("clearhead", "float32"): 32,
    ("transformers", "float32"): 32,
    ("ctranslate2", "float32"): 32,
    ("clearhead", "bfloat16"): 16,
    ("transformers", "bfloat16"): 16,
    ("llama.cpp", "f16"): 16,
    ("openvino", "fp16"): 16,
    ("clearhead", "int8"): 8,
    ("openvino", "int8"): 8,
    ("llama.cpp", "q8_0"): 8,
    ("ctranslate2", "int8"): 8,
    ("torchao", "int8"): 8,
    ("onnxruntime", "int8"): 8,
    ("clearhead", "int4"): 4,
    ("openvino", "int4"): 4,
    ("llama.cpp", "q4_0"): 4,
    ("torchao", "int4"): 4,
}
"""Program and weight format, with the bits of a weight: those of one width are compared, so they run in turn."""

NEEDS = {
    "transformers": {"transformers"},
    "ctranslate2": {"ctranslate2"},
    "llama.cpp": {"llama_cpp"},
    "torchao": {"transformers", "torchao"},
    "openvino": {"openvino_genai", "optimum.intel"},
    "onnxruntime": {"onnxruntime", "onnx"},
}
"""The packages that each peer and the making of its models take."""

MODEL_NAMES = {"llama.cpp": "gguf", "onnxruntime": "onnx"}
"""What `peer_models.py` calls the models of a program, if not by its name."""

WORK = {"prompt 512": 512, "decode 128": 1, "decode 900": 1, "together 128": 8}
"""The kinds of work, and how many tokens one measured time of each stands for."""

COMPILING = {"clearhead", "torchao"}
"""Programs that compile for the machine once, and then keep what they compiled."""

Key = tuple[str, str]
Rounds = dict[Key, dict[int, dict[str, Any]]]  # of a program, by the round's number: what `peer.py` printed


def main() -> None:
    """Reads the arguments, makes the models, measures, prints."""
    arguments = _arguments()
    chosen = [_key(text) for text in arguments.programs or []] or list(PROGRAMS)
    installed = installed_for(arguments.python)
    missing = [key for key in chosen if not NEEDS.get(key[0], set()) <= installed]
    for name in dict.fromkeys(name for name, _ in missing):
        print(f"{name} is left out: {arguments.python} lacks {', '.join(sorted(NEEDS[name] - installed))}.")
    chosen = [key for key in chosen if key not in missing]
    wanted = {f"{MODEL_NAMES.get(name, name)}-{form}" for name, form in chosen}
    make(arguments.folder, arguments.size, arguments.python, installed, wanted)
    settings = {"cpu": cpu_name(), "size": arguments.size, "threads": arguments.threads, "tokens": arguments.tokens}
    record = Record(arguments.record, settings)
    if arguments.programs:
        record.forget_problems(chosen)
    _measure(chosen, arguments, record)
    rounds = {key: found for key in chosen if (found := record.rounds(key))}
    report = summarize(rounds)
    print("\n".join([_table(report), *filter(None, map(record.problem, chosen))]))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1), encoding="utf-8")


def _measure(chosen: list[Key], arguments: argparse.Namespace, record: Record) -> None:
    """Run what is not in the record, until there is no time for more.

    The programs of one width run one after another, as their speeds are compared.
    """
    start = time.monotonic()
    for number in range(arguments.rounds + 1):  # round 0 compiles, and makes the weights of Clearhead's formats
        for width in dict.fromkeys(PROGRAMS[key] for key in chosen):
            if arguments.seconds is not None and time.monotonic() - start > arguments.seconds:
                return
            for key in (key for key in chosen if PROGRAMS[key] == width and (number or key[0] in COMPILING)):
                if record.has(key, number):
                    continue
                _note(f"round {number} of {arguments.rounds}: {' '.join(key)}")
                try:
                    found = _run(key, arguments, ["--tokens", str(arguments.tokens)] if number else ["--runs", "0"])
                except RuntimeError as error:  # a program that cannot run here is left out, not the whole table
                    record.add(key, number, {}, str(error))
                else:
                    record.add(key, number, found)
    _note("")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the models are, or will be made (2 GB)")
    parser.add_argument("--python", default=sys.executable, help="the interpreter that has the peers")
    parser.add_argument("--size", default="124M", help="a released size")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=24, help="decoded in a round")
    parser.add_argument("--programs", nargs="+", metavar="NAME:FORMAT", help="only these, as llama.cpp:q8_0")
    parser.add_argument("--before", default="", help="a command that starts each process, as 'taskset -c 0,1'")
    parser.add_argument("--limit", type=int, default=600, help="seconds after which a process is given up")
    parser.add_argument("--record", type=Path, metavar="FILE", help="add results to this file, and go on after them")
    parser.add_argument("--seconds", type=float, help="after these, start no more programs of another width")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    return parser.parse_args()


def _key(text: str) -> Key:
    name, _, form = text.partition(":")
    if (name, form) not in PROGRAMS:
        raise SystemExit(f"{text} is unknown; there are {', '.join(':'.join(key) for key in PROGRAMS)}.")
    return name, form


def _run(key: Key, arguments: argparse.Namespace, options: list[str]) -> dict[str, Any]:
    """One process of a program: its version, peak memory, seconds to load, and times."""
    python = sys.executable if key[0] == "clearhead" else arguments.python
    command = [*shlex.split(arguments.before), python, str(WORKER), *key, str(arguments.folder)]
    threads = str(arguments.threads)
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}
    try:
        done = subprocess.run(
            [*command, "--threads", threads, *options],
            capture_output=True,
            text=True,
            timeout=arguments.limit,
            env=environment,
        )
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"{' '.join(key)} is left out: it did not finish in {arguments.limit} seconds.") from error
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        raise RuntimeError(f"{' '.join(key)} is left out: {reason[0][:300]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _note(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
    elif text:
        print(text, file=sys.stderr, flush=True)


# --------------------------------------------------------------------------------------------------------------
# From times to figures
# --------------------------------------------------------------------------------------------------------------


def summarize(rounds: Rounds) -> dict[str, Any]:
    """Tokens a second of every program, and Clearhead's ratio to the fastest peer of each width of weights."""
    speeds = {
        key: {
            work: {number: n / statistics.median(one["times"][work]) for number, one in found.items()}
            for work, n in WORK.items()
        }
        for key, found in rounds.items()
    }
    programs = [
        {
            "program": name,
            "format": form,
            "bits": PROGRAMS[name, form],
            "version": list(found.values())[-1]["version"],
            "load_seconds": statistics.median(one["load"] for one in found.values()),
            "peak_bytes": max(one["peak_bytes"] for one in found.values()),
            "tokens_per_second": {work: statistics.median(all_.values()) for work, all_ in speeds[name, form].items()},
            "rounds": {work: list(all_.values()) for work, all_ in speeds[name, form].items()},
        }
        for (name, form), found in rounds.items()
    ]
    return {"cpu": cpu_name(), "features": cpu_features(), "programs": programs, "ratios": _ratios(speeds)}


def _ratios(speeds: dict[Key, dict[str, dict[int, float]]]) -> list[dict[str, Any]]:
    peers = [key for key in speeds if key[0] != "clearhead"]
    found = []
    for ours in (key for key in speeds if key[0] == "clearhead"):
        for work in WORK:
            alike = {work: [key for key in peers if PROGRAMS[key] == PROGRAMS[ours]]}
            if work.startswith("prompt"):  # bound by arithmetic, so narrower weights may be multiplied faster or slower
                alike[f"{work}, any"] = peers
            for label, keys in alike.items():
                if not keys:
                    continue
                best = max(keys, key=lambda key: statistics.median(speeds[key][work].values()))
                own, other = speeds[ours][work], speeds[best][work]
                if not (both := own.keys() & other.keys()):
                    continue
                ratio = statistics.median(own[number] / other[number] for number in both)
                found.append({"format": ours[1], "work": label, "best_peer": " ".join(best), "ratio": ratio})
    return found


def _table(report: dict[str, Any]) -> str:
    """Both tables, in 80 columns."""
    lines = [
        f"CPU: {report['cpu']}",
        f"Features: {', '.join(report['features']) or 'unknown'}",
        "",
        "Tokens a second. Prompt: 512 tokens. Decode: after 128 and 900 tokens of",
        "context. Together: 8 sequences of 128 tokens, all their tokens. Medians of n",
        "rounds.",
        "",
        f"{'program':<22}{'n':>3}{'prompt':>9}{'at 128':>8}{'at 900':>8}{'together':>10}{'peak MB':>9}{'load s':>8}",
    ]
    for one in report["programs"]:
        speeds = "".join(
            f"{speed:>{width},.1f}"
            for speed, width in zip(one["tokens_per_second"].values(), (9, 8, 8, 10), strict=True)
        )
        name, n = f"{one['program']} {one['format']}", len(one["rounds"]["prompt 512"])
        lines.append(f"{name:<22}{n:>3}{speeds}{one['peak_bytes'] / 1e6:>9,.0f}{one['load_seconds']:>8.1f}")
    if report["ratios"]:
        lines += ["", "Clearhead beside the fastest peer with weights of the same width, or of any:", ""]
    for one in report["ratios"]:
        lines.append(f"{one['format']:<9} {one['work']:<16} {one['ratio']:>6.2f} x  {one['best_peer']}")
    versions = {one["program"]: one["version"] for one in report["programs"]}
    return "\n".join([*lines, "", *(f"{name} {version}" for name, version in versions.items())])


if __name__ == "__main__":
    main()
