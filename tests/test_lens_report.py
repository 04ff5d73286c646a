"""`clearhead lens report`, and the numbers in it."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import run
from lens_models import TEXTS, perturbed_model

from clearhead import lens
from clearhead.errors import InputError
from clearhead.lens.report import LensReport, model_report
from clearhead.lens.report_page import report_page
from clearhead.lens.scored_heads import repeated_tokens
from clearhead.model import GPTModel


@pytest.fixture(scope="module")
def model() -> GPTModel:
    return perturbed_model()


@pytest.fixture(scope="module")
def report(model: GPTModel) -> LensReport:
    return model_report(model, text=TEXTS[0])


def test_losses_and_removals_are_those_of_the_model_run_by_hand(model: GPTModel, report: LensReport) -> None:
    n = 12  # as many as fit twice into the context
    (ids,) = repeated_tokens(model.config, n, 1, 1)
    assert ids[:n] == ids[n:]

    def second_loss() -> float:
        logits = torch.tensor(lens.watch(model, ids, "logits")["logits"]).double()
        return float(torch.nn.functional.cross_entropy(logits[n:-1], torch.tensor(ids[n + 1 :])))

    assert report.second_loss == pytest.approx(second_loss(), abs=1e-5)
    mixed = "blocks.1.attention.mixed"
    mean = lens.watch(model, ids, mixed)[mixed][2].mean(0)
    with lens.edit(model, mixed, mean[None, None], heads=2):
        expected = second_loss() - report.second_loss
    assert report.removal.values[1, 2] == pytest.approx(expected, abs=1e-5)
    assert report.removal.values.shape == (3, 4)


def test_the_strongest_heads_are_those_of_the_scores(model: GPTModel, report: LensReport) -> None:
    assert [one.kind for one in report.strongest] == list(report.scores.labels[0])
    for one, values in zip(report.strongest, lens.head_scores(model).values, strict=True):
        assert one.score == values.max() == values[one.layer, one.head]
        np.testing.assert_allclose(one.pattern.values.sum(1), 1, atol=1e-5)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_page_is_whole_and_needs_nothing_else(report: LensReport, language: str) -> None:
    page = report_page(report, "<my model>", language)
    assert f'<html lang="{language}">' in page and "<title>" in page and "&lt;my model&gt;" in page
    assert "@" not in re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    assert not re.search(r"<script|src=|href=\"http|url\(http", page)
    pictures = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(pictures) == 4 + 4 + 1 + 2
    for picture in pictures:
        ET.fromstring(picture)
    identifiers = re.findall(r'<svg id="([^"]+)"', page)
    assert len(set(identifiers)) == len(pictures)
    shown = {"en": ["induction", "layer 2", "embedding"], "zh": ["归纳", "第 2 层", "嵌入"]}[language]
    assert all(f">{word}<" in page for word in shown)


def test_a_context_too_short_to_repeat_anything_is_refused(model: GPTModel) -> None:
    with pytest.raises(InputError, match="reads 3 tokens; a report needs"):
        model_report(GPTModel(model.config.replace(context_length=3)))


@pytest.mark.slow
def test_the_verb_prints_writes_and_refuses(tmp_path: Path) -> None:
    printed = run("lens", "report", "--lang", "en").stdout.decode()
    assert "induction" in printed and "layer 4 head 0" in printed and "' she'" in printed
    found = json.loads(run("lens", "report", "--json").stdout)
    assert np.array(found["removal"]).shape == (6, 7) and found["strongest"][2]["layer"] == 4
    assert list(found["kl_by_depth"])[-1] == "layer 5" and found["kl_by_depth"]["layer 5"] == 0
    page = tmp_path / "report.html"
    assert run("lens", "report", "bundled", "--html", str(page)).returncode == 0
    assert page.stat().st_size > 100_000
    refused = run("lens", "report", "--html", "")
    assert refused.returncode == 2 and b"--html is empty" in refused.stderr
