"""Compare every per-sample result with lm-evaluation-harness's own hf model: LAMBADA, HellaSwag, WikiText-2 and BLiMP.

    python bench/lm_eval_agreement.py --lambada lambada_test.jsonl --hellaswag hellaswag_val.jsonl \\
        --wikitext wiki.test.raw --blimp blimp.zip --record bundled.jsonl
    python bench/lm_eval_agreement.py --blimp blimp.zip --random 124M --record random.jsonl
    python bench/lm_eval_agreement.py --wikitext wiki.test.raw --limit 4 --float64

Both models get the same requests through the harness's own interface: log-likelihoods with greedy flags, and rolling
log-likelihoods of whole documents. They run in portions, one paradigm of BLiMP after another in turn. With `--record`
each portion's result is added to a file of JSON lines, and the same command goes on where it was stopped; the table at
the end has one row a task, with every sample that is in the file.

The peer's log-softmax runs in float64 (its option `softmax_dtype`): by default it adds the log-probabilities of a
window in float32, whose steps at 2,000 nats are 1.2e-4. Exits with 1 if a greedy flag differs, or a log-likelihood by
more than 1e-4 nats. A document has thousands of tokens, for each of which both models round on their own: its sum may
differ by 1e-5 nats times the square root of their number. `--float64` runs the peer a second time with its weights in
float64, and says how far each of the two is from that.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from scoring import make_random

from clearhead.evaluation.lm_eval import ClearheadLM
from clearhead.evaluation.task_files import detokenize_wikitext, read_blimp, read_hellaswag, read_lambada
from clearhead.loading import bundled

TOLERANCE = 1e-4  # nats
ROUNDING = 1e-5  # nats, for the square root of a document's tokens
BLIMP_PARADIGMS = 10
PORTION = 100  # requests that run together; of documents, PORTION // 25


@dataclass(frozen=True)
class Portion:
    """Some of a task's requests.

    Attributes:
        task: its name.
        kind: the method of the harness's models that takes the requests.
        first: the index of the first request.
        samples: the requests' arguments, as the harness's tasks make them.
    """

    task: str
    kind: str
    first: int
    samples: Sequence[tuple[str, ...]]


@dataclass(frozen=True)
class Agreement:
    """How far two models' results are apart, in nats.

    Attributes:
        model, task, first, samples: of which model; which requests, and how many of them.
        worst, worst_mean: the largest difference of a request, and of a request's mean over its tokens.
        exceeded: how many differ by more than is allowed.
        flags_differ: how many greedy flags differ.
        seconds: of ours and of the peer.
        worst_float64: the largest difference of ours, and of the peer, from float64; empty if that did not run.
    """

    model: str
    task: str
    first: int
    samples: int
    worst: float
    worst_mean: float
    exceeded: int
    flags_differ: int
    seconds: tuple[float, float]
    worst_float64: tuple[float, ...] = ()


def main() -> int:
    """Read the arguments, compare, print a table; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for task in ("lambada", "hellaswag", "wikitext", "blimp"):
        parser.add_argument(f"--{task}", type=Path, metavar="FILE")
    parser.add_argument(
        "--model", type=Path, default=bundled(), help="a transformers folder; the bundled model if none"
    )
    parser.add_argument("--random", metavar="SIZE", help="a model of this size with random weights, such as 124M")
    parser.add_argument("--limit", type=int, help="at most so many samples of each task (of BLiMP: pairs a paradigm)")
    parser.add_argument("--paradigms", type=int, default=BLIMP_PARADIGMS, help="at most so many paradigms of BLiMP")
    parser.add_argument("--record", type=Path, metavar="FILE", help="add results to this file, and go on after them")
    parser.add_argument("--float64", action="store_true", help="say how far both models are from float64")
    parser.add_argument("--batch-size", type=int, default=8, help="of the peer")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    name = arguments.random or arguments.model.name
    found = [one for one in read_record(arguments.record) if one.model == name]
    done = {one.task: one.first + one.samples for one in found}  # the records of a task follow one another
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model if arguments.random is None else make_random(Path(folder), arguments.random)
        dtypes = ("float32", "float64") if arguments.float64 else ("float32",)
        models = [
            ClearheadLM(str(model), dtype="float32", threads=arguments.threads),
            *(harness_model(model, dtype, arguments.batch_size) for dtype in dtypes),
        ]
        for portion in portions_of(requests_of(arguments), done):
            found.append(compare(name, portion, models))
            if arguments.record is not None:
                with arguments.record.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(found[-1])) + "\n")
            print(row_of(found[-1:]), file=sys.stderr, flush=True)
    print_table(found)
    return int(any(one.exceeded or one.flags_differ for one in found))


def harness_model(folder: Path, dtype: str, batch_size: int) -> HFLM:
    """Return the harness's own model."""
    return HFLM(pretrained=str(folder), device="cpu", dtype=dtype, batch_size=batch_size, softmax_dtype="float64")


def read_record(path: Path | None) -> list[Agreement]:
    """Return the results of earlier runs; a last line that was cut off is removed from the file."""
    if path is None or not path.exists():
        return []
    whole = path.read_text(encoding="utf-8").rpartition("\n")[0]
    path.write_text(whole + "\n" if whole else "", encoding="utf-8")
    return [Agreement(**json.loads(line)) for line in whole.splitlines()]


def portions_of(tasks: Sequence[tuple[str, str, list[tuple[str, ...]]]], done: Mapping[str, int]) -> Iterator[Portion]:
    """Cut the requests that are not done into portions; BLiMP's paradigms come last, and take turns."""

    def cut(task: str, kind: str, samples: Sequence[tuple[str, ...]]) -> list[Portion]:
        size = PORTION if kind == "loglikelihood" else PORTION // 25
        starts = range(done.get(task, 0), len(samples), size)
        return [Portion(task, kind, first, samples[first : first + size]) for first in starts]

    paradigms = [cut(*task) for task in tasks if task[0].startswith("BLiMP")]
    for task in tasks:
        if not task[0].startswith("BLiMP"):
            yield from cut(*task)
    for turn in range(max(map(len, paradigms), default=0)):
        yield from (portions[turn] for portions in paradigms if turn < len(portions))


def print_table(found: Sequence[Agreement]) -> None:
    """Print one row a task, and one for all paradigms of BLiMP."""
    columns = ["samples", "largest difference, nats", "mean over tokens", "greedy flags that differ", "ours", "hf"]
    print(f"| task | {' | '.join(columns)} | ours / hf from float64 |\n|---|{'---:|' * len(columns)}---|")
    tasks = list(dict.fromkeys(one.task for one in found))
    for task in tasks:
        print(row_of([one for one in found if one.task == task]))
    blimp = [one for one in found if one.task.startswith("BLiMP")]
    if blimp:
        print(row_of(blimp, f"BLiMP, {len({one.task for one in blimp})} paradigms"))


def row_of(found: Sequence[Agreement], name: str | None = None) -> str:
    """Return the table's row of some results."""
    ours, peer = (sum(one.seconds[which] for one in found) for which in (0, 1))
    float64 = [one.worst_float64 for one in found if one.worst_float64]
    distances = "" if not float64 else " / ".join(f"{max(values):.1e}" for values in zip(*float64, strict=True))
    return (
        f"| {name or found[0].task} | {sum(one.samples for one in found):,} | {max(one.worst for one in found):.1e} | "
        f"{max(one.worst_mean for one in found):.1e} | "
        f"{sum(one.flags_differ for one in found)} | {ours:.1f} s | {peer:.1f} s | {distances} |"
    )


def requests_of(arguments: argparse.Namespace) -> list[tuple[str, str, list[tuple[str, ...]]]]:
    """Return each task's name, kind of request, and the requests' arguments, as the harness's tasks make them."""
    found: list[tuple[str, str, list[tuple[str, ...]]]] = []
    if arguments.lambada is not None:
        passages = read_lambada(arguments.lambada)[: arguments.limit or 500]
        pairs = [(text[: text.rindex(" ")], text[text.rindex(" ") :]) for text in passages]
        found.append(("LAMBADA", "loglikelihood", list(pairs)))
    if arguments.hellaswag is not None:
        questions = read_hellaswag(arguments.hellaswag, with_label=True)[: arguments.limit or 200]
        found.append(
            ("HellaSwag", "loglikelihood", [(one.context, f" {end}") for one in questions for end in one.endings])
        )
    if arguments.blimp is not None:
        pairs_of = by_paradigm(arguments.blimp)
        for paradigm in sorted(pairs_of)[: arguments.paradigms]:
            chosen = pairs_of[paradigm][: arguments.limit]
            found.append((f"BLiMP {paradigm}", "loglikelihood", [("", f" {text}") for pair in chosen for text in pair]))
    if arguments.wikitext is not None:
        text = arguments.wikitext.read_text(encoding="utf-8")
        documents = [one for one in re.split(r"(?m)^(?= = [^=].* = $)", text) if one.strip()]
        found.append(
            (
                "WikiText-2",
                "loglikelihood_rolling",
                [(detokenize_wikitext(one),) for one in documents[: arguments.limit]],
            )
        )
    return found


def by_paradigm(source: Path) -> dict[str, list[tuple[str, str]]]:
    """Return BLiMP's pairs by paradigm."""
    found: dict[str, list[tuple[str, str]]] = {}
    for pair in read_blimp(source):
        found.setdefault(pair.paradigm, []).append((pair.good, pair.bad))
    return found


def compare(name: str, portion: Portion, models: Sequence[ClearheadLM | HFLM]) -> Agreement:
    """Run the same requests through ours, the peer, and the peer in float64 if there is one."""
    answers: list[list[Any]] = []
    seconds = []
    for model in models:
        requests = [Instance(portion.kind, {}, sample, index) for index, sample in enumerate(portion.samples)]
        start = time.perf_counter()
        answers.append(getattr(model, portion.kind)(requests, disable_tqdm=True))
        seconds.append(time.perf_counter() - start)
    flags = 0
    if portion.kind == "loglikelihood":
        flags = sum(mine[1] != theirs[1] for mine, theirs in zip(*answers[:2], strict=True))
        answers = [[value for value, _ in values] for values in answers]
    own = models[0]
    lengths = [len(own.tok_encode(sample[-1])) for sample in portion.samples]
    rolling = portion.kind == "loglikelihood_rolling"
    allowed = [max(TOLERANCE, ROUNDING * length**0.5) if rolling else TOLERANCE for length in lengths]
    differences = distances(answers[0], answers[1])
    return Agreement(
        name,
        portion.task,
        portion.first,
        len(portion.samples),
        max(differences),
        max(one / length for one, length in zip(differences, lengths, strict=True)),
        sum(one > most for one, most in zip(differences, allowed, strict=True)),
        flags,
        (seconds[0], seconds[1]),
        () if len(answers) < 3 else tuple(max(distances(one, answers[2])) for one in answers[:2]),
    )


def distances(one: Sequence[float], other: Sequence[float]) -> list[float]:
    """Return the absolute differences."""
    return [abs(float(a) - float(b)) for a, b in zip(one, other, strict=True)]


if __name__ == "__main__":
    sys.exit(main())
