"""Compare every per-sample result with lm-evaluation-harness's own hf model: LAMBADA, HellaSwag, BLiMP and WikiText-2.

    python bench/lm_eval_agreement.py --lambada lambada_test.jsonl --hellaswag hellaswag_val.jsonl \\
        --blimp blimp.zip --wikitext wiki.test.raw
    python bench/lm_eval_agreement.py --lambada lambada_test.jsonl --random 124M --limit 50

Both models get the same requests through the harness's own interface: log-likelihoods with greedy flags, and rolling
log-likelihoods of whole documents. Each row is printed as soon as it is known; every paradigm of BLiMP has its own. The
peer's log-softmax runs in float64 (its option `softmax_dtype`): by default it adds the log-probabilities of a window in
float32, whose steps at 2,000 nats are 1.2e-4. Exits with 1 if a greedy flag differs, or a log-likelihood by more than
1e-4 nats. A document has thousands of tokens, for each of which both models round on their own: its sum may differ by
1e-5 nats times the square root of their number.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Agreement:
    """How far two models' results on one task are apart."""

    task: str
    samples: int
    worst: float
    exceeded: int
    flags_differ: int
    seconds: tuple[float, float]  # ours, the peer's


def main() -> int:
    """Read the arguments, compare, print a table; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for task in ("lambada", "hellaswag", "blimp", "wikitext"):
        parser.add_argument(f"--{task}", type=Path, metavar="FILE")
    parser.add_argument(
        "--model", type=Path, default=bundled(), help="a transformers folder; the bundled model if none"
    )
    parser.add_argument("--random", metavar="SIZE", help="a model of this size with random weights, such as 124M")
    parser.add_argument("--limit", type=int, help="at most so many samples of each task (of BLiMP: pairs a paradigm)")
    parser.add_argument("--paradigms", type=int, default=BLIMP_PARADIGMS, help="at most so many paradigms of BLiMP")
    parser.add_argument("--batch-size", type=int, default=8, help="of the peer")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model if arguments.random is None else make_random(Path(folder), arguments.random)
        own = ClearheadLM(str(model), dtype="float32", threads=arguments.threads)
        peer = HFLM(
            pretrained=str(model),
            device="cpu",
            dtype="float32",
            batch_size=arguments.batch_size,
            softmax_dtype="float64",
        )
        failed = False
        print("| task | samples | largest difference, nats | greedy flags that differ | ours | hf |")
        print("|---|---:|---:|---:|---:|---:|", flush=True)
        for task, kind, samples in requests_of(arguments):
            found = compare(task, kind, samples, own, peer)
            print(
                f"| {found.task} | {found.samples:,} | {found.worst:.1e} | {found.flags_differ} | "
                f"{found.seconds[0]:.1f} s | {found.seconds[1]:.1f} s |",
                flush=True,
            )
            failed = failed or found.exceeded > 0 or found.flags_differ > 0
    return int(failed)


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


def compare(task: str, kind: str, samples: Sequence[tuple[str, ...]], own: ClearheadLM, peer: HFLM) -> Agreement:
    """Run the same requests through both models."""
    answers: list[list[Any]] = []
    seconds = []
    for model in (own, peer):
        requests = [Instance(kind, {}, sample, index) for index, sample in enumerate(samples)]
        start = time.perf_counter()
        answers.append(getattr(model, kind)(requests, disable_tqdm=True))
        seconds.append(time.perf_counter() - start)
    worst, flags, exceeded = 0.0, 0, 0
    for sample, mine, theirs in zip(samples, *answers, strict=True):
        allowed = TOLERANCE
        if kind == "loglikelihood":
            (mine, greedy), (theirs, peer_greedy) = mine, theirs
            flags += greedy != peer_greedy
        else:
            allowed = max(TOLERANCE, ROUNDING * len(own.tok_encode(sample[0])) ** 0.5)
        worst = max(worst, abs(mine - float(theirs)))
        exceeded += abs(mine - float(theirs)) > allowed
    return Agreement(task, len(samples), worst, exceeded, flags, (seconds[0], seconds[1]))


if __name__ == "__main__":
    sys.exit(main())
