"""`clearhead weights inspect` and `map`, on folders that transformers saved, with what tests plant in them."""

from __future__ import annotations

import itertools
import json
import re
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

import command_line
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from reference_models import peer_config
from safetensors.numpy import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from clearhead import weights
from clearhead.config import GPTConfig
from clearhead.errors import WeightsError
from clearhead.weights.inspection import measure
from clearhead.weights.layouts import LAYOUTS, TABLE
from clearhead.weights.plan import ConversionPlan
from clearhead.weights.plan_chart import PlanChart, make_chart
from clearhead.weights.plan_chart_svg import chart_svg
from clearhead.weights.planning import make_plan
from clearhead.weights.tensors import TensorInfo

HEAD = next(row for row in TABLE if row.needs == "head")
SVG = "{http://www.w3.org/2000/svg}"


def call(*args: object) -> tuple[int, str, str]:
    """Run the verb in this process; return its exit status, standard output and standard error."""
    result = command_line.call("weights", *args)
    return result.returncode, result.stdout.decode(), result.stderr.decode()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model of transformers', as new."""
    config = GPT2Config(vocab_size=61, n_positions=16, n_embd=24, n_head=3, n_layer=3, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def plant(folder: Path, changes: dict[str, np.ndarray]) -> None:
    """Puts tensors into a folder's file."""
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, **changes}, folder / "model.safetensors")


def plan_of(config: GPTConfig, to: str, halves: frozenset[int] = frozenset()) -> ConversionPlan:
    """A plan from the names that transformers gives such a model, to a layout; no data.

    Args:
        halves: layers whose tensors are stored as float16.
    """
    with torch.device("meta"):
        state = GPT2LMHeadModel(peer_config(config)).state_dict()
    infos = {}
    for name, tensor in state.items():
        layer = re.search(r"\.h\.(\d+)\.", name)
        half = layer is not None and int(layer[1]) in halves
        infos[name] = TensorInfo(tuple(tensor.shape), "float16" if half else "float32")
    for layer_number in range(0, config.n_layers, 2):  # masks in some layers only
        infos[f"transformer.h.{layer_number}.attn.bias"] = TensorInfo((1, 1, 16, 16), "bool")
    return make_plan(infos, lambda name: np.zeros(infos[name].shape), config, "huggingface", to, "a test")


WITH_HEAD = {name for name, layout in LAYOUTS.items() if name in HEAD.cells and not layout.always_tied}
"""The schemes with a place for a head of its own."""

CONFIGS = st.builds(
    GPTConfig,
    vocab_size=st.just(61),
    context_length=st.just(16),
    emb_dim=st.just(24),
    n_heads=st.just(3),
    n_layers=st.integers(1, 14),
    drop_rate=st.just(0.0),
    qkv_bias=st.booleans(),
    tie_weights=st.booleans(),
)


@settings(deadline=None, max_examples=12)
@given(CONFIGS, st.sampled_from(sorted(LAYOUTS)), st.frozensets(st.integers(0, 13), max_size=3))
def test_the_groups_written_out_are_the_rows_of_the_plan(config: GPTConfig, to: str, halves: frozenset[int]) -> None:
    assume(config.tie_weights or to in WITH_HEAD)
    plan = plan_of(config, to, halves)
    chart = make_chart(plan)
    assert Counter(chart.rows()) == Counter(plan.rows())
    used = {part.source for step in plan.steps for part in step.slices}
    shown = {name for g in chart.groups if "tie" not in g.operations for s in g.sources for name in s.pattern.names}
    assert shown == used | set(plan.ignored) == set(plan.sources)
    targets = [name for group in chart.groups if group.target for name in group.target.pattern.names]
    assert sorted(targets) == sorted([*plan.targets, *plan.tied])


def test_a_model_of_48_blocks_reads_like_one_of_two() -> None:
    charts = [make_chart(plan_of(GPTConfig(61, 16, 24, 3, layers, 0.0, True), "canonical")) for layers in (2, 48)]
    assert len(charts[0].groups) == len(charts[1].groups)
    labels = [group.target.pattern.label for group in charts[1].groups if group.target]
    assert "blocks.{0..47}.attention.qkv.weight" in labels


def boxes(root: ET.Element) -> list[tuple[float, float, float, float]]:
    """The rectangles of tensors and operations in a drawing: left, top, right, bottom."""
    found = []
    for rect in root.iter(SVG + "rect"):
        if rect.get("class") in ("stored", "made", "absent", "pill"):
            x, y, width, height = (float(rect.get(key, "")) for key in ("x", "y", "width", "height"))
            found.append((x, y, x + width, y + height))
    return found


def drawn(chart: PlanChart) -> ET.Element:
    return ET.fromstring(chart_svg(chart, "a <model> & \x07more"))


@pytest.mark.parametrize(
    ("to", "tied"), [(to, tied) for to in LAYOUTS for tied in (True, False) if tied or to in WITH_HEAD]
)
@pytest.mark.parametrize("layers", [2, 48])
def test_the_drawing_names_everything_and_nothing_overlaps(to: str, layers: int, tied: bool) -> None:
    config = GPTConfig(61, 16, 24, 3, layers, 0.0, qkv_bias=False, tie_weights=tied)
    chart = make_chart(plan_of(config, to))
    root = drawn(chart)
    texts = [text.text or "" for text in root.iter(SVG + "text")]
    for group in chart.groups:
        for tensor in (*group.sources, *([group.target] if group.target else [])):
            assert tensor.pattern.label in texts
        assert all(word in " ".join(texts) for word in group.reason.split())
    assert chart.frame in texts
    width, height = float(root.get("width", "")), float(root.get("height", ""))
    found = boxes(root)
    assert len(found) > len(chart.groups)
    assert all(min(x, y) >= 0 and right <= width and bottom <= height for x, y, right, bottom in found)
    for one, other in itertools.combinations(found, 2):
        assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
    for text in root.iter(SVG + "text"):  # a character of a monospaced font is 0.6 of its size wide
        if text.get("class") == "name":
            x, y = float(text.get("x", "")), float(text.get("y", ""))
            inside = [box for box in found if box[0] < x < box[2] and box[1] < y < box[3]]
            assert len(inside) == 1 and x + 0.6 * 13 * len(text.text or "") < inside[0][2]


def test_map_writes_the_drawing_and_prints_the_other_forms(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "chart.svg"
    file.write_text("old")
    status, out, err = call("map", folder, "--svg", file)
    assert (status, out) == (0, "") and str(file.name) in err.replace("\n", "")
    assert "prefers-color-scheme: dark" in file.read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    status, out, _ = call("map", folder)
    assert status == 0 and max(map(len, out.splitlines())) <= 80
    assert "transformer.h.{0..2}." in out and "transpose" in out and "token_embedding.weight" in out
    found = json.loads(call("map", folder, "--json")[1])
    stored = {name for g in found["groups"] if g["operations"] != ["tie"] for s in g["sources"] for name in s["names"]}
    assert stored == set(load_file(folder / "model.safetensors"))
    mermaid = call("map", folder, "--mermaid")[1]
    assert mermaid.startswith("flowchart LR\n") and mermaid.count("subgraph") == mermaid.count("  end\n") == 1
    assert mermaid.count("-->") == len([g for g in found["groups"] if g["operations"] != ["tie"]])
    back = json.loads(call("map", folder, "--to", "huggingface", "--json")[1])
    assert {name for g in back["groups"] for name in g["target"]["names"]} == stored


def test_inspect_says_once_that_a_new_model_is_untrained(folder: Path) -> None:
    status, out, _ = call("inspect", folder)
    assert status == 0 and out.count("Untrained") == 1 and "nothing but zeros" not in out
    tensors = load_file(folder / "model.safetensors")
    found = json.loads(call("inspect", folder, "--json")[1])
    assert (found["layout"], found["tensor_count"], found["anomalies"]) == ("huggingface", len(tensors), {})
    assert found["bytes"] == sum(array.nbytes for array in tensors.values())
    assert found["dtypes"] == {"float32": len(tensors)} and found["fits"] and "stored once" in found["head"]


def test_inspect_finds_what_is_planted(folder: Path) -> None:
    rng = np.random.default_rng(0)
    tensors = {
        name: rng.normal(size=array.shape).astype("f4")
        for name, array in load_file(folder / "model.safetensors").items()
    }
    tensors["transformer.h.1.attn.c_attn.weight"][3, 4] = np.nan
    tensors["transformer.wpe.weight"][2, :2] = [np.inf, -np.inf]
    tensors["transformer.h.2.mlp.c_fc.weight"][:] = 0
    for layer in range(3):
        tensors[f"transformer.h.{layer}.ln_2.bias"][:] = 0.25
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"].copy()
    tensors["transformer.h.0.attn.bias"] = np.ones((1, 1, 16, 16), np.uint8)
    plant(folder, tensors)
    found = json.loads(call("inspect", folder, "--json")[1])
    assert found["anomalies"] == {
        "nan": ["transformer.h.1.attn.c_attn.weight"],
        "infinite": ["transformer.wpe.weight"],
        "zero": ["transformer.h.2.mlp.c_fc.weight"],
        "constant": [f"transformer.h.{layer}.ln_2.bias" for layer in range(3)],
    }
    assert not found["untrained"] and set(found["ignored"]) == {"lm_head.weight", "transformer.h.0.attn.bias"}
    assert "lm_head.weight is a stored copy" in found["head"]
    by_name = {tensor["name"]: tensor for tensor in found["tensors"]}
    array = tensors["transformer.wte.weight"]
    assert by_name["transformer.wte.weight"]["std"] == pytest.approx(array.astype("f8").std())
    assert by_name["transformer.wpe.weight"]["infinite"] == 2
    out = call("inspect", folder)[1]
    assert "transformer.h.{0..2}.ln_2.bias (all 0.25)" in out and "c_attn.weight (1 number)" in out


def test_inspect_says_what_does_not_fit(folder: Path) -> None:
    plant(folder, {"something.else": np.ones(3, "f4")})
    status, out, _ = call("inspect", folder)
    assert status == 0 and "something.else" in out and "does not have" in out


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_measures_in_pieces_agree_with_numpy(offset: float) -> None:
    values = (np.random.default_rng(1).normal(size=(3, 1 << 19)) + offset).astype("f4")
    values[0, 5] = np.nan
    exact = values.astype("f8")
    found = measure(values)
    assert (found["nan"], found["infinite"]) == (1, 0)
    assert (found["minimum"], found["maximum"]) == (np.nanmin(exact), np.nanmax(exact))
    assert found["mean"] == pytest.approx(np.nanmean(exact), rel=1e-12)
    assert found["std"] == pytest.approx(np.nanstd(exact), rel=1e-9)


@pytest.mark.parametrize(
    "args",
    [
        ("inspect", "./no/such/folder"),
        ("map", "./no/such/folder"),
        ("map", "FOLDER", "--to", "unknown"),
        ("map", "FOLDER", "--svg", "no/such/folder/chart.svg"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(folder: Path, args: tuple[str, ...]) -> None:
    status, out, err = call(*(str(folder) if arg == "FOLDER" else arg for arg in args))
    assert (status, out) == (2, "") and err.startswith("clearhead: ") and len(err.splitlines()) == 1


def test_map_refuses_weights_that_do_not_fit(folder: Path) -> None:
    plant(folder, {"something.else": np.ones(3, "f4")})
    status, _, err = call("map", folder)
    assert status == 2 and "something.else" in err and weights.open(folder).tensors["something.else"].shape == (3,)


class TestMapOfAnIndex:
    """`map` reads no numbers, so an index without its data is enough."""

    def test_tensorflow(self, folder: Path, tmp_path: Path) -> None:
        weights.open(folder).save(tmp_path / "out", "openai")
        status, whole, _ = call("map", tmp_path / "out", "--json")
        assert status == 0
        (tmp_path / "out" / "model.ckpt.data-00000-of-00001").unlink()
        for path in (tmp_path / "out", tmp_path / "out" / "model.ckpt.index", tmp_path / "out" / "model.ckpt"):
            status, out, _ = call("map", path, "--json")
            assert status == 0 and json.loads(out)["groups"] == json.loads(whole)["groups"]
        status, _, err = call("inspect", tmp_path / "out")
        assert status == 2 and "lacks model.ckpt.data-00000-of-00001" in err

    def test_shards(self, folder: Path, tmp_path: Path) -> None:
        source = weights.open(folder)
        weights.save_huggingface(tmp_path, source.config, source.lazy(), shard_bytes=20_000)
        status, whole, _ = call("map", tmp_path, "--json")
        assert status == 0
        for path in tmp_path.glob("model-*.safetensors"):
            path.unlink()
        status, out, err = call("map", tmp_path, "--json")
        assert status == 0 and json.loads(out)["groups"] == json.loads(whole)["groups"]
        assert "the shapes are those that config.json implies" in err
        with pytest.raises(WeightsError, match="is not there"):
            weights.open_names(tmp_path).load()
        (tmp_path / "config.json").unlink()
        status, _, err = call("map", tmp_path)
        assert status == 2 and "no config.json" in err
