"""Corpora that are interrupted and gone on with, and work among processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clearhead.data import shards
from clearhead.data.corpus import Corpus
from clearhead.data.corpus_builder import _CorpusBuild, build_corpus
from clearhead.data.corpus_plan import CorpusPlan, TextPlan
from clearhead.data.sources.find import find_sources
from clearhead.data.vocabulary import Vocabulary
from clearhead.data.workers import map_in_processes
from clearhead.errors import InputError, TrainingError
from clearhead.utils.locks import exclusive_lock
from corpora.small_corpora import TAKE, all_stories, documents_in, files_in, interrupt_at, interrupted, plan_of


@pytest.mark.slow
@pytest.mark.parametrize("validation", ["0.2", "tail:0.3"])
def test_a_build_that_stops_anywhere_goes_on_to_the_same_bytes(
    validation: str, data: Path, vocabulary: Path, tmp_path: Path, saved: None
) -> None:
    plan = plan_of(data, tokenizer=vocabulary, validation=validation, shard_tokens=1024)
    build_corpus(plan, tmp_path / "undisturbed", processes=1)
    expected = files_in(tmp_path / "undisturbed")
    stops = 0
    places: list[tuple[type, str]] = [
        *(
            (_CorpusBuild, name)
            for name in ("_write_chunk", "_save", "_end_source", "_end_text", "_cut_tail", "_write_manifest")
        ),
        *((shards._OpenShard, name) for name in ("write", "close")),
        (shards.ShardWriter, "close"),
    ]
    for owner, method in places:
        for number in (1, 7):
            folder = tmp_path / f"{owner.__name__}{method}{number}"
            with pytest.MonkeyPatch.context() as patch:
                interrupt_at(number, method, owner)(patch)
                try:
                    build_corpus(plan, folder, processes=1)
                except KeyboardInterrupt:
                    stops += 1
            build_corpus(plan, folder, processes=1)
            assert files_in(folder) == expected, (method, number)
    assert stops >= 10


@pytest.mark.slow
def test_a_build_that_is_killed_goes_on_to_the_same_bytes(data: Path, vocabulary: Path, tmp_path: Path) -> None:
    """By SIGKILL, in another process, while two more encode for it."""
    program = (
        "import sys; from pathlib import Path; import time\n"
        "from clearhead.data import corpus_builder, corpus_plan, sources\n"
        "from clearhead.data.sources import find, json_lines, text_file\n"
        "text_file.BLOCK_BYTES, json_lines.BLOCK_BYTES, corpus_builder._SAVE_EVERY = 300, 300, 0.0\n"
        "build = corpus_builder._CorpusBuild\n"
        "write = build._write_chunk\n"
        "build._write_chunk = lambda *arguments: (write(*arguments), time.sleep(0.02))\n"
        "split = corpus_plan.ValidationSplit.from_text('0.2')\n"
        "text = corpus_plan.TextPlan('text', tuple(find.find_sources([sys.argv[1]])), (), split)\n"
        "plan = corpus_plan.CorpusPlan((text,), corpus_plan.Vocabulary.from_name(sys.argv[2]), shard_tokens=1024)\n"
        "corpus_builder.build_corpus(plan, Path(sys.argv[3]), processes=2)\n"
    )
    folder = tmp_path / "killed"
    command = [sys.executable, "-c", program, str(data), str(vocabulary), str(folder)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(list(folder.glob("*.bin"))) < 4 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert (folder / "build.json").exists()
    with pytest.raises(TrainingError, match="its build has not ended"):
        Corpus(folder)
    (folder / ".0123456789ab.part").touch()  # as if it had been killed while a file was written
    subprocess.run(command, check=True, timeout=60, stderr=subprocess.DEVNULL)
    plan = plan_of(data, tokenizer=vocabulary, validation="0.2", shard_tokens=1024)
    build_corpus(plan, tmp_path / "undisturbed", processes=1)
    assert files_in(folder) == files_in(tmp_path / "undisturbed")


def test_a_full_disk_is_a_sentence_and_loses_nothing(data: Path, tmp_path: Path) -> None:
    """A limit of the system on the size of files stands for the disk."""
    (data / "c.txt").write_text("0123456789" * 30_000)
    program = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop()),) * 2)\n"
        "from clearhead.cli import main; main()"
    )
    command = [*("corpus", "build", str(data), "-o", str(tmp_path / "corpus"), "-t", "bytes", "-v", "none")]
    full = subprocess.run(
        [sys.executable, "-c", program, *command, "500000"], capture_output=True, text=True, check=False
    )
    assert full.returncode == 2
    assert (
        full.stderr.strip()
        .splitlines()[-1]
        .startswith(f"clearhead: {tmp_path / 'corpus'} could not be written (File too large)")
    )
    assert "Traceback" not in full.stderr
    build_corpus(plan_of(data), tmp_path / "corpus", processes=1)
    build_corpus(plan_of(data), tmp_path / "undisturbed", processes=1)
    assert files_in(tmp_path / "corpus") == files_in(tmp_path / "undisturbed")


@pytest.mark.parametrize("number", [5, 33], ids=["in the source", "after it"])
def test_a_source_that_changed_meanwhile_is_named(number: int, data: Path, tmp_path: Path, saved: None) -> None:
    interrupted(plan_of(data), tmp_path / "corpus", number)
    text = (data / "a.txt").read_bytes()
    (data / "a.txt").write_bytes(text.replace(b"e", b"E", 1))
    with pytest.raises(TrainingError, match=r"a\.txt has changed since"):
        build_corpus(plan_of(data), tmp_path / "corpus", processes=1)
    (data / "a.txt").write_bytes(text)
    assert documents_in(build_corpus(plan_of(data), tmp_path / "corpus", processes=1)) == all_stories()


def test_what_learned_characters_were_found_in_may_not_change(data: Path, tmp_path: Path, saved: None) -> None:
    interrupted(plan_of(data, tokenizer="characters"), tmp_path / "corpus", 1)
    (data / "b.jsonl").write_bytes((data / "b.jsonl").read_bytes().replace(b"A", b"E", 1))
    with pytest.raises(TrainingError, match=r"b\.jsonl has changed since"):
        build_corpus(plan_of(data, tokenizer="characters"), tmp_path / "corpus", processes=1)


def test_a_broken_line_can_be_mended_and_the_build_goes_on(data: Path, tmp_path: Path, saved: None) -> None:
    good = (data / "b.jsonl").read_bytes()
    lines = good.split(b"\n")
    (data / "b.jsonl").write_bytes(b"\n".join([*lines[:30], lines[30][:-3], *lines[31:]]))
    with pytest.raises(InputError, match=r"line 31 of .*b\.jsonl is not JSON"):
        build_corpus(plan_of(data), tmp_path / "corpus", processes=1)
    (data / "b.jsonl").write_bytes(good)
    takes = []

    def take(*arguments: Any) -> None:
        takes.append(arguments)
        TAKE(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_CorpusBuild, "_write_chunk", take)
        build_corpus(plan_of(data), tmp_path / "corpus", processes=1)
    assert 0 < len(takes) < 15  # what was there was not done again
    build_corpus(plan_of(data), tmp_path / "undisturbed", processes=1)
    assert files_in(tmp_path / "corpus") == files_in(tmp_path / "undisturbed")


def test_a_build_does_not_go_on_as_another(data: Path, tmp_path: Path, saved: None) -> None:
    interrupted(plan_of(data), tmp_path / "corpus")
    others = [
        (plan_of(data, seed=2), "seed differ"),
        (plan_of(data, tokenizer="characters"), "vocabulary differ"),
        (plan_of(data / "b.jsonl"), "texts differ"),
        (plan_of(data, validation="0.1", shard_tokens=2000), "shard_tokens and texts differ"),
    ]
    for plan, words in others:
        with pytest.raises(TrainingError, match=words):
            build_corpus(plan, tmp_path / "corpus", processes=1)


def test_a_build_that_failed_at_once_is_forgotten(data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no field 'txt'"):
        build_corpus(
            CorpusPlan(
                (TextPlan("t", tuple(find_sources([str(data / "b.jsonl")], field="txt"))),), Vocabulary("bytes")
            ),
            tmp_path / "corpus",
        )
    assert documents_in(build_corpus(plan_of(data), tmp_path / "corpus")) == all_stories()


def test_two_builds_of_one_folder_keep_out_of_each_others_way(data: Path, tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    with (
        exclusive_lock(tmp_path / "corpus" / ".build.lock"),
        pytest.raises(TrainingError, match="another process is building"),
    ):
        build_corpus(plan_of(data), tmp_path / "corpus")
    corpus = build_corpus(plan_of(data), tmp_path / "corpus")
    with exclusive_lock(tmp_path / "corpus" / ".build.lock"):  # a complete corpus is read without the lock
        assert build_corpus(plan_of(data), tmp_path / "corpus").key == corpus.key


def test_results_come_in_order_and_work_is_bounded() -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for item in range(40):
            taken += 1
            yield item

    for done, (item, found) in enumerate(map_in_processes(hex, items(), lambda item: (item,), 3)):
        assert (item, found) == (done, hex(done))
        assert taken - done <= 6


def test_a_process_that_ends_is_a_sentence() -> None:
    with pytest.raises(TrainingError, match=r"ended with status 3.*run the same command again"):
        list(map_in_processes(os._exit, [3], lambda item: (item,), 2))


def test_an_error_in_a_process_is_the_error(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"text": "good"}\n{"text": 1}\n')
    with pytest.raises(InputError, match=r"line 2 of .*bad\.jsonl has int in 'text'"):
        build_corpus(plan_of(tmp_path / "bad.jsonl"), tmp_path / "corpus", processes=2)
