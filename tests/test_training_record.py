"""What a run leaves behind and shows: metrics, curves, TensorBoard's files, the card, the display, the list of runs."""

from __future__ import annotations

import contextlib
import io
import json
import math
import random
import re
import threading
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import call, refused
from fuzz.harness import damage_json, dump
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from small_runs import ALONE, RECIPE, one_step, recipe, sentences, small_run
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

import clearhead
from clearhead.cli.app import make_app
from clearhead.cli.language import choose
from clearhead.config import GPTConfig
from clearhead.data.corpus import Corpus
from clearhead.data.examples import Example, pad_together
from clearhead.errors import ClearheadError, TrainingError
from clearhead.evaluation.cross_entropy import CrossEntropy
from clearhead.model import GPTModel
from clearhead.training.clock import Clock
from clearhead.training.curves import curves_svg
from clearhead.training.display import Display, Status, sparkline
from clearhead.training.find_lr import find_rate
from clearhead.training.loop import Run
from clearhead.training.overview import list_runs
from clearhead.training.recipe_reader import parse_recipe
from clearhead.training.run_folder import MetricsFile, is_in_progress, read_metrics, read_origin, run_lock
from clearhead.training.task import PretrainingTask
from clearhead.training.throughput import peak_flops, training_flops
from clearhead.training.train import find_lr, train

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def runs(data: Path, corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two finished runs."""
    folder = tmp_path_factory.mktemp("runs")
    logging = ("steps = 12", 'log_every = 2\nsamples = ["The old", ""]\nsample_tokens = 5\nsteps = 12')
    train(recipe(logging), data, folder / "muon", corpus_folder=corpus.folder)
    train(recipe(logging, ('"muon"', '"adamw"')), data, folder / "adamw", corpus_folder=corpus.folder)
    return folder


def test_a_run_leaves_its_record(runs: Path) -> None:
    lines = read_metrics(runs / "muon")
    assert [line["step"] for line in lines if "loss" in line] == [2, 4, 6, 8, 10, 12]
    assert {"loss", "norm", "rate", "tokens", "tokens_per_second", "memory", "seconds"} <= lines[0].keys()
    assert lines[0]["tokens"] == 2 * 8 * 16
    assert lines[0]["memory"] > 10_000_000
    samples = [(line["step"], line["prompt"]) for line in lines if "sample" in line]
    assert samples == [(5, "The old"), (5, ""), (10, "The old"), (10, "")]
    assert lines[-1]["final"]["birds"].keys() == {"loss", "bits_per_byte", "perplexity"}
    environment = json.loads((runs / "muon/environment.json").read_text())
    assert environment["torch"] == torch.__version__
    assert environment["products"] == "float32"
    card = (runs / "muon/model/README.md").read_text()
    assert f"{lines[-1]['final']['birds']['bits_per_byte']:.4f}" in card
    assert 'optimizer = "muon"' in card
    assert card.startswith("---\nlibrary_name: clearhead\n")


def test_tensorboard_reads_what_the_metrics_say(runs: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(runs / "muon/tensorboard"))
    events.Reload()
    expected = [(line["step"], line["loss"]) for line in read_metrics(runs / "muon") if "loss" in line]
    assert [(event.step, pytest.approx(event.value, rel=1e-6)) for event in events.Scalars("loss")] == expected
    assert [event.step for event in events.Scalars("valid/birds/bits_per_byte")] == [5, 10]
    assert [event.step for event in events.Scalars("final/birds/bits_per_byte")] == [12]


def test_a_line_of_metrics_is_json_whatever_it_holds(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path)
    metrics.add(step=1, sample="one\u2028two\x85three\x0cfour")
    metrics.add(
        step=2, loss=math.nan, valid={"birds": {"loss": 800.0, "perplexity": CrossEntropy(800.0, 1, 9).perplexity}}
    )
    metrics.add(step=2, final={})
    text = metrics.path.read_text(encoding="utf-8")
    assert "NaN" not in text
    assert "Infinity" not in text
    metrics.path.write_text(text + '{"step": 3, "loss": NaN}\n', encoding="utf-8")  # as earlier versions wrote it
    lines = read_metrics(tmp_path)
    assert [line.get("loss", 0) for line in lines] == [0, None, 0, None]
    assert lines[0]["sample"] == "one\u2028two\x85three\x0cfour"
    assert lines[1]["valid"] == {"birds": {"loss": 800.0, "perplexity": None}}
    metrics.forget_after(2)
    assert read_metrics(tmp_path) == lines[:2]


@settings(deadline=None, max_examples=100)
@given(seed=st.integers(0, 2**32))
def test_any_record_of_a_run_is_listed_and_drawn(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whatever JSON stands in the lines of the metrics and in the environment."""
    chance, folder = random.Random(seed), tmp_path_factory.mktemp("record")
    score = {"bits_per_byte": 2.5, "perplexity": None}
    report = {"norm": 1.0, "rate": 1.0, "tokens_per_second": 9, "seconds": 0.5}
    lines: list[dict[str, Any]] = [{"step": n, "loss": 3.0 / n, **report} for n in (1, 2, 3)]
    lines += [{"step": n, "valid": {"birds": score}} for n in (2, 3)] + [{"step": 3, "final": {"birds": score}}]
    damaged = [damage_json(line, chance) if chance.random() < 0.4 else line for line in lines]
    (folder / "metrics.jsonl").write_bytes(b"".join(dump(line) + b"\n" for line in damaged))
    (folder / "environment.json").write_bytes(dump(damage_json({"data": "texts", "corpus": None, "steps": 3}, chance)))
    (folder / "recipe.toml").write_text(RECIPE.replace("steps = 12", "epochs = 1"), encoding="utf-8")
    with contextlib.suppress(ClearheadError):
        read_origin(folder)
    app = make_app("runs")  # the other verbs would take nine tenths of the time
    for options in ([], ["--json"], ["--curves", str(folder / "curves.svg")]):
        result = CliRunner().invoke(app, ["runs", str(folder), *options])
        assert result.exit_code == 0 or isinstance(result.exception, ClearheadError), result.exception
    for step in (0, 2, 3):
        metrics = MetricsFile(folder)
        metrics.forget_after(3 - step)
        assert all(line["step"] <= 3 - step for line in read_metrics(folder))


def test_the_card_counts_what_is_saved(corpus: Corpus, tmp_path: Path) -> None:
    model = GPTModel(recipe().model)
    count = sum(parameter.numel() for parameter in model.parameters())
    model.blocks[0].register_parameter("lora_A", torch.nn.Parameter(torch.zeros(7)))  # is added into the others
    run = Run(recipe(), PretrainingTask(recipe(), corpus), tmp_path, ALONE, model)
    assert f"A GPT-2 with {count:,} parameters:" in run._card({})


def test_the_card_is_in_the_users_language(corpus: Corpus, tmp_path: Path) -> None:
    run = small_run(recipe(), corpus, tmp_path)
    scores = {"birds": {"bits_per_byte": 1.25, "loss": 2.0}}
    english = run._card(scores)
    choose(["--lang", "zh"], {})
    try:
        card = run._card(scores)
    finally:
        choose([], {})
    assert "个参数的 GPT-2" in card and "| 文本 | 词元 | 文档数 |" in card and "| birds | 1.2500 | 2.0000 |" in card
    assert "| 留出文本 | 每字节比特数 | 损失 |" in card
    prose = card.partition("## 配方")[0].partition("# ")[2]
    assert not re.search(r"\b(the|of|with|and|blocks|heads|steps|processes)\b", prose)
    assert card.partition("```toml")[2] == english.partition("```toml")[2] and card[:60] == english[:60]


def test_padding_is_not_counted_as_tokens(corpus: Corpus, tmp_path: Path) -> None:
    rows = []
    for length in (3, 9, 12, 1, 5, 5, 5, 5):
        targets = np.full(length, 7, np.int64)
        targets[: length // 2] = -100  # as of a prompt
        rows.append(Example(np.arange(length, dtype=np.int64), targets))
    inputs, targets = pad_together(rows, 64)
    run = small_run(recipe(), corpus, tmp_path)
    assert run.stepper.take(0, (inputs[:, :16], targets[:, :16])).tokens == 45


def test_curves_are_drawn_with_every_point_in_its_panel(runs: Path) -> None:
    svg = ElementTree.fromstring((runs / "muon/curves.svg").read_text())
    titles = [text.text for text in svg.iter(f"{SVG}text") if text.get("class") == "title"]
    assert titles[:2] == ["training loss (nats per token)", "birds, held out: bits per byte"]
    assert (runs / "muon/curves.png").read_bytes().startswith(b"\x89PNG\r\n")
    frames = [rect for rect in svg.iter(f"{SVG}rect") if rect.get("class") == "frame"]
    lines = [
        path
        for path in svg.iter(f"{SVG}path")
        if "line" in str(path.get("class")) and "faint" not in str(path.get("class")) and "L" in str(path.get("d"))
    ]
    assert len(frames) == len(titles) == len(lines)
    for frame, line in zip(frames, lines, strict=True):
        left, top, width, height = (float(frame.get(key) or "nan") for key in ("x", "y", "width", "height"))
        for point in str(line.get("d"))[1:].split("L"):
            x, y = map(float, point.split())
            assert left - 0.1 <= x <= left + width + 0.1
            assert top - 0.1 <= y <= top + height + 0.1


def test_evaluate_scores_the_held_out_texts_of_a_corpus_as_the_run_did(
    runs: Path, corpus: Corpus, data: Path, tmp_path: Path
) -> None:
    last = read_metrics(runs / "muon")[-1]["final"]["birds"]
    words = ("evaluate", str(corpus.folder), "-m", str(runs / "muon/model"))
    found = json.loads(call(*words, "--json").stdout)
    assert (found["text"], found["file"]) == ("birds", str(corpus.folder))
    assert found["bits_per_byte"] == pytest.approx(last["bits_per_byte"], rel=1e-5)
    assert found["perplexity"] == pytest.approx(last["perplexity"], rel=1e-5)
    row = call(*words).stdout.decode().splitlines()[1].split()
    assert row[0] == f"{last['bits_per_byte']:.4f}" and row[-2:] == [str(corpus.folder), "birds"]
    (tmp_path / "birds.txt").write_text((data / "birds_valid.txt").read_text())
    assert call("evaluate", tmp_path / "birds.txt", *words[2:]).stdout.decode().split()[-5] == row[0]


def test_a_folder_that_cannot_be_evaluated_says_what_to_give(runs: Path, corpus: Corpus, data: Path) -> None:
    model = runs / "muon/model"
    assert "is a folder and not a corpus; give text files" in refused(call("evaluate", data, "-m", model, "--json"))
    assert "another tokenizer than the model's" in refused(call("evaluate", corpus.folder, "--json"))


@pytest.mark.parametrize("more", [[], ["--out", "out"]])
def test_a_missing_recipe_is_said_before_a_missing_option(tmp_path: Path, more: list[str]) -> None:
    for name in ("nothere.txt", "nothere.toml"):
        assert refused(call("train", tmp_path / name, *more)).startswith(
            f"{tmp_path / name} could not be read (No such"
        )
    assert "is a folder; give a text file in it" in refused(call("train", tmp_path, *more))


def test_runs_are_listed_and_their_curves_laid_over_each_other(runs: Path, tmp_path: Path) -> None:
    found = CliRunner().invoke(make_app(), ["runs", str(runs), "--json", "--curves", str(tmp_path / "both.svg")])
    listed = {Path(line["folder"]).name: line for line in map(json.loads, found.output.splitlines())}
    assert listed.keys() == {"adamw", "muon"}
    last = read_metrics(runs / "muon")[-1]["final"]["birds"]["bits_per_byte"]
    assert (listed["muon"]["state"], listed["muon"]["step"], listed["muon"]["steps"]) == ("finished", 12, 12)
    assert listed["muon"]["scores"] == {"birds": last}
    svg = (tmp_path / "both.svg").read_text()
    assert svg.count(">muon</text>") == svg.count(">adamw</text>") >= 5
    arguments = ["runs", str(runs / "muon"), str(runs / "adamw")]
    table = CliRunner().invoke(make_app(), arguments, env={"COLUMNS": "160"}).output
    assert f"birds {last:.4f}" in table
    with run_lock(runs / "muon"):
        assert [run.state for run in list_runs([runs / "muon"])] == ["going on"]


def test_runs_of_one_name_go_by_their_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("p/a", "q/a", "q/b"):
        Path(name).mkdir(parents=True)
        Path(name, "recipe.toml").touch()
        lines = [{"step": n, "loss": 2.0, "norm": 1.0, "rate": 1.0, "tokens_per_second": 9} for n in (1, 2, 3)]
        Path(name, "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    arguments = ["runs", "p/a", "q", "--curves", "all.svg"]
    table = CliRunner().invoke(make_app(), arguments, catch_exceptions=False, env={"COLUMNS": "160"}).output
    assert [line.split()[0] for line in table.splitlines()[1:4]] == ["p/a", "q/a", "b"]
    svg = Path("all.svg").read_text()
    assert all(f">{name}</text>" in svg for name in ("p/a", "q/a", "b"))


def test_looking_at_a_run_does_not_keep_it_from_starting(tmp_path: Path) -> None:
    assert not is_in_progress(tmp_path)
    with run_lock(tmp_path):
        assert is_in_progress(tmp_path)
    assert not is_in_progress(tmp_path)
    ended = threading.Event()

    def look() -> None:
        while not ended.is_set():
            is_in_progress(tmp_path)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        for _ in range(20):
            with run_lock(tmp_path):
                pass
    finally:
        ended.set()
        watcher.join()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["nowhere"], "nowhere could not be read"), ([".", "--curves", "a.gif"], "is not a run and contains none")],
)
def test_runs_that_are_none_are_named(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    error = CliRunner().invoke(make_app(), ["runs", *arguments]).exception
    assert isinstance(error, ClearheadError)
    assert words in str(error)


def test_runs_with_too_few_lines_are_not_drawn() -> None:
    with pytest.raises(TrainingError, match="nothing to draw"):
        curves_svg({"a": []})


# ---------------------------------------------------------------------------------------------------------------
# The machine's share, the display, the search for a rate
# ---------------------------------------------------------------------------------------------------------------


def test_the_arithmetic_of_a_token_is_what_torch_counts() -> None:
    config = GPTConfig(vocab_size=101, context_length=24, emb_dim=32, n_heads=4, n_layers=3, tie_weights=True)
    model = GPTModel(config, plain=True)  # torch does not count inside its fused attention on a CPU
    ids = torch.randint(101, (2, 24))
    with FlopCounterMode(display=False) as counter:
        model.loss(ids, ids).backward()
    assert counter.get_total_flops() / ids.numel() == pytest.approx(training_flops(config), rel=0.001)


def test_the_peak_is_above_what_a_step_reaches() -> None:
    assert 1e8 < peak_flops(torch.device("cpu"), torch.float32) < 1e14


def test_the_display_shows_and_ends_with_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    display = Display(200)
    text = io.StringIO()
    display._console = Console(
        file=text, force_terminal=True, width=120, legacy_windows=False, highlight=False, markup=False
    )
    with display:
        for step, loss in ((48, 4.0), (49, math.nan)):
            display.update(Status(step, loss, 1234.0, 0.42, 2_500_000_000, 91.0))
        display._shown -= 10
        display.update(Status(50, 3.25, 1234.0, 0.42, 2_500_000_000, 90.0))
        display.say("a line [that] stays")
    shown = text.getvalue()
    for words in ("25.0%", "step 50 of 200", "90 s left", "loss 3.250", "1,234 tokens/s", "42% of peak", "2.5 GB"):
        assert words in shown
    assert "a line [that] stays\n" in shown
    assert "step 50 of 200, loss 3.250, 1,234 tokens/s, 42% of peak, 2.5 GB, 90 s left, " in shown


def test_the_smoothed_loss_is_a_mean_from_the_start_and_goes_on_from_a_checkpoint() -> None:
    losses = [8.0, math.nan, 6.0, 4.0, math.inf, 2.0]
    whole, part, other = Clock(), Clock(), Clock()
    for loss in losses:
        whole.tick(loss, 1)
    assert whole.loss == pytest.approx(5.0)
    for loss in losses[:3]:
        part.tick(loss, 1)
    other.restore(json.loads(json.dumps(part.state())))
    for loss in losses[3:]:
        other.tick(loss, 1)
    assert other.loss == whole.loss
    for _ in range(100):
        whole.tick(1.0, 1)
    assert whole.loss == pytest.approx(1 + 4 * math.prod(1 - max(1 / n, 1 / 50) for n in range(5, 105)))


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(-1e3, 1e3), max_size=200), st.integers(1, 50))
def test_a_sparkline_is_as_wide_as_it_may_be(values: list[float], width: int) -> None:
    line = sparkline(values, width)
    assert len(line) == min(width, len(values))
    if len(values) == len(line) > 0 and max(values) > min(values):
        assert line[int(np.argmax(values))] == "█"
        assert line[int(np.argmin(values))] == "▁"


def test_the_search_finds_a_rate_that_learns_and_touches_no_run(data: Path, corpus: Corpus, tmp_path: Path) -> None:
    rates = find_lr(recipe(), data, tmp_path, corpus_folder=corpus.folder)
    assert rates.keys() == {"learning_rate", "muon_learning_rate"}
    assert rates["muon_learning_rate"] / rates["learning_rate"] == pytest.approx(0.02 / 3e-3)
    saved = json.loads((tmp_path / "find_lr.json").read_text())
    assert saved["suggested"] == rates
    shares = [rate for rate, _ in saved["curve"]]
    assert shares == sorted(shares)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["find_lr.json", "find_lr.svg"]
    ElementTree.parse(tmp_path / "find_lr.svg")
    text = recipe().text.replace("learning_rate = 3e-3", f"learning_rate = {rates['learning_rate']}")
    text = text.replace('optimizer = "muon"', f'muon_learning_rate = {rates["muon_learning_rate"]}\noptimizer = "muon"')
    losses = []
    for share in (1.0, 0.01):
        run = small_run(parse_recipe(text), corpus, tmp_path)
        run.stepper.peaks = [[peak * share for peak in peaks] for peaks in run.stepper.peaks]
        losses.append([one_step(run).loss for _ in range(10)][-1])
    assert losses[0] < losses[1] - 0.5


def test_a_search_that_cannot_end_well_says_so(corpus: Corpus, tmp_path: Path) -> None:
    run = small_run(recipe(), corpus, tmp_path)
    with torch.no_grad():
        run.model.final_norm.weight.fill_(torch.nan)
    with pytest.raises(TrainingError, match="NaN or infinite from the first steps"):
        find_rate(run.stepper, run.task)


# ---------------------------------------------------------------------------------------------------------------
# The command line
# ---------------------------------------------------------------------------------------------------------------


def test_resume_remembers_recipe_and_texts(runs: Path, data: Path, tmp_path: Path) -> None:
    text = recipe(("steps = 12", "steps = 5"), ("decay_steps = 4", "decay_steps = 0")).text
    (tmp_path / "recipe.toml").write_text(text)
    out = tmp_path / "run"
    first = CliRunner().invoke(
        make_app(),
        ["train", str(tmp_path / "recipe.toml"), "--data", str(data), "--out", str(out)],
        catch_exceptions=False,
    )
    assert "clearhead generate" in first.output
    (out / "recipe.toml").write_text(text.replace("steps = 5", "steps = 6"))
    again = CliRunner().invoke(make_app(), ["train", "--resume", "--out", str(out)], catch_exceptions=False)
    assert again.exit_code == 0
    assert (list_runs([out])[0].step, list_runs([out])[0].state) == (6, "finished")
    assert [line["step"] for line in read_metrics(out) if "final" in line] == [6]
    (out / "recipe.toml").write_text(text.replace("steps = 5", "steps = 7"))
    assert list_runs([out])[0].state == "stopped"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--out", "new"], "a recipe is missing"),
        (["recipe.toml", "--out", "new"], r"the folder of its texts \(--data\) is missing"),
        (["--resume", "--out", "new"], "there is no checkpoint in new to resume from"),
        (["recipe.toml", "--resume", "--find-lr", "--out", "new"], "leave out --resume"),
    ],
)
def test_what_is_missing_is_named(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.toml").touch()
    error = CliRunner().invoke(make_app(), ["train", *arguments]).exception
    assert isinstance(error, ClearheadError)
    with pytest.raises(ClearheadError, match=words):
        raise error


@pytest.mark.slow
def test_one_text_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my texts.md").write_text(sentences("bird", 60, 1), encoding="utf-8")
    monkeypatch.setattr("clearhead.training.text_recipe._FEWEST_STEPS", 4)
    monkeypatch.setattr("clearhead.training.text_recipe._MOST_STEPS", 4)
    done = CliRunner().invoke(make_app(), ["train", "my texts.md", "--out", "run"], catch_exceptions=False)
    assert done.exit_code == 0
    assert re.search(r"my texts.md: a GPT-2 with [\d,]+ parameters will read 4,096 tokens in 4 steps, ", done.output)
    assert clearhead.load("run/model").generate("The", max_new_tokens=3).text
    resumed = CliRunner().invoke(make_app(), ["train", "--resume", "--out", "run"], catch_exceptions=False)
    assert resumed.exit_code == 0
    (tmp_path / "short.txt").write_text("too short")
    error = CliRunner().invoke(make_app(), ["train", "short.txt", "--out", "other"]).exception
    assert isinstance(error, ClearheadError) and "too few to learn from" in str(error)
    (tmp_path / "table.csv").write_text("text\n" + "a word\n" * 1000)
    refused = CliRunner().invoke(make_app(), ["train", "table.csv", "--out", "other"])
    assert "table.csv is a table" in str(refused.exception) and "will read" not in refused.output


@pytest.mark.slow
def test_a_data_set_on_the_hub_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder stands for a data set on the hub; its card says how large the download is, as on the hub."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "birds"
    folder.mkdir()
    rows = [{"text": sentences("bird", 3, seed)} for seed in range(60)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "README.md").write_text(
        "---\ndataset_info:\n  features:\n  - name: text\n    dtype: string\n  splits:\n  - name: train\n"
        "    num_bytes: 54321\n    num_examples: 60\n  download_size: 7000000\n  dataset_size: 54321\n---\n"
    )
    monkeypatch.setattr("clearhead.training.text_recipe._FEWEST_STEPS", 4)
    monkeypatch.setattr("clearhead.training.text_recipe._MOST_STEPS", 4)
    name = f"hf:{folder}"
    done = CliRunner().invoke(make_app(), ["train", name, "--out", "run"], catch_exceptions=False)
    assert done.exit_code == 0
    assert f"{name}: 7 MB will be downloaded to {tmp_path / 'cache'}" in done.output
    assert f"{name}: a GPT-2 with" in done.output and "will read 4,096 tokens in 4 steps" in done.output
    assert "texts of 54,321 bytes" in Path("run/recipe.toml").read_text()
    assert clearhead.load("run/model").generate("The", max_new_tokens=3).text
    again = CliRunner().invoke(make_app(), ["train", name, "--out", "other"], catch_exceptions=False)
    assert again.exit_code == 0 and "will be downloaded" not in again.output  # it is there
    resumed = CliRunner().invoke(make_app(), ["train", "--resume", "--out", "run"], catch_exceptions=False)
    assert resumed.exit_code == 0


def test_recipes_that_come_along_have_names(tmp_path: Path) -> None:
    from clearhead.training.text_recipe import bundled_recipe

    for file in (Path(__file__).parent.parent / "recipes").glob("*.toml"):
        assert bundled_recipe(file.stem) == file
    assert bundled_recipe("nothing") is None
    arguments = ["train", "storyteller", "--data", str(tmp_path), "--out", str(tmp_path / "run")]
    error = CliRunner().invoke(make_app(), arguments).exception
    assert isinstance(error, ClearheadError) and "tinystories_train.txt" in str(error)
