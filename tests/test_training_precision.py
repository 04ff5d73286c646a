"""The precision of a run: what `auto` chooses, what a checkpoint keeps, and TF32, which is stated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from small_runs import recipe, small_run

from clearhead.data.corpus import Corpus
from clearhead.errors import TrainingError
from clearhead.training import precision
from clearhead.training.checkpoint import checkpoints
from clearhead.training.distributed import Processes
from clearhead.training.environment import environment
from clearhead.training.precision import choose_precision, float32_products
from clearhead.training.run_folder import read_metrics
from clearhead.training.train import train
from clearhead.utils.json_files import record_text

CPU = torch.device("cpu")


def rates(monkeypatch: pytest.MonkeyPatch, float32: float, bfloat16: float) -> None:
    """Let this machine measure so many FLOP/s."""
    measured = {torch.float32: float32, torch.bfloat16: bfloat16}
    monkeypatch.setattr(precision, "_product_rates", lambda device: measured)


@pytest.mark.parametrize(
    ("bfloat16", "chosen"),
    [(3e9, torch.float32), (92e9, torch.float32), (110e9, torch.float32), (130e9, torch.bfloat16)],
)
def test_auto_takes_what_is_measured_to_be_faster(
    monkeypatch: pytest.MonkeyPatch, bfloat16: float, chosen: torch.dtype
) -> None:
    rates(monkeypatch, 92e9, bfloat16)
    found = choose_precision("auto", CPU)
    assert found.dtype == chosen
    assert found.reason == f"float32 92 GFLOP/s, bfloat16 {bfloat16 / 1e9:.0f} GFLOP/s"


def test_a_measurement_gives_a_rate_for_both() -> None:
    threads = torch.get_num_threads()
    found = precision._product_rates(CPU)
    assert found.keys() == {torch.float32, torch.bfloat16} and min(found.values()) > 0
    assert torch.get_num_threads() == threads


def test_auto_keeps_the_checkpoints_precision_unless_it_is_much_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    rates(monkeypatch, 92e9, 130e9)
    assert choose_precision("auto", CPU, "float32").dtype == torch.float32
    rates(monkeypatch, 92e9, 3e9)
    with pytest.raises(TrainingError) as caught:
        choose_precision("auto", CPU, "bfloat16")
    assert str(caught.value) == (
        "the checkpoint was computed in bfloat16, which is slow on this machine (float32 92 GFLOP/s, bfloat16 3 "
        'GFLOP/s); set precision = "float32" in the recipe to resume in that, or "bfloat16" to resume all the same.'
    )
    assert choose_precision("bfloat16", CPU, "bfloat16").dtype == torch.bfloat16


def test_a_run_on_a_slower_machine_is_refused_and_resumes_when_its_precision_is_named(
    data: Path, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = small_run(recipe(("float32", "bfloat16")), corpus, tmp_path)
    run.save()
    rates(monkeypatch, 92e9, 3e9)
    with pytest.raises(TrainingError, match="the checkpoint was computed in bfloat16, which is slow"):
        train(recipe(("float32", "auto")), data, tmp_path, corpus_folder=corpus.folder, resume=True)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000000"]
    train(recipe(), data, tmp_path, corpus_folder=corpus.folder, resume=True)
    assert read_metrics(tmp_path)[-1]["step"] == 12
    assert "the products were in bfloat16 and are in float32 from here on." in capsys.readouterr().err


def test_a_checkpoint_of_an_unknown_precision_is_refused(data: Path, corpus: Corpus, tmp_path: Path) -> None:
    small_run(recipe(), corpus, tmp_path).save()
    file = checkpoints(tmp_path)[-1] / "state.json"
    state = json.loads(file.read_text())
    del state["checksum"]
    file.write_text(record_text({**state, "precision": "float8"}), encoding="utf-8")
    with pytest.raises(TrainingError, match="precision is 'float8', and one of float32"):
        train(recipe(("float32", "auto")), data, tmp_path, corpus_folder=corpus.folder, resume=True)


def test_tf32_is_stated_and_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_float32_matmul_precision()
    gpu = Processes(0, 1, torch.device("cuda"))
    monkeypatch.setattr("clearhead.training.environment.device_name", lambda device: "a GPU")
    try:
        torch.set_float32_matmul_precision("highest")
        assert float32_products() == "whole float32; TF32 is off"
        torch.set_float32_matmul_precision("high")
        assert environment(gpu, torch.float32)["float32_products"].startswith("TF32, 10 of 23 bits")
    finally:
        torch.set_float32_matmul_precision(before)
