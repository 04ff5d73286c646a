"""`verify`: on models that are right, on the same with mistakes planted in them, and on files that are broken."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import google_crc32c
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

import clearhead
from clearhead import weights
from clearhead.cli import main
from clearhead.config import GPTConfig
from clearhead.errors import InputError, WeightsError
from clearhead.gpt import bundled
from clearhead.tokenizer import Tokenizer
from clearhead.verification import Verification, verify_weights
from clearhead.verification.attention_order import measure_layer
from clearhead.verification.published import PUBLISHED, Continuation
from clearhead.verification.reference_text import GPT2_IDS, TEXT
from clearhead.weights.hub.official import Official, OfficialTensor

DATA, INDEX = "model.ckpt.data-00000-of-00001", "model.ckpt.index"
SHORT = TEXT[:1200]  # the model reads as much as it is given, and a little is enough here
SMALL = GPTConfig(61, 16, 24, 3, 2, qkv_bias=True, tie_weights=True)
Tensors = dict[str, np.ndarray]


def moved(config: GPTConfig = SMALL, seed: int = 0) -> Tensors:
    """Random numbers in the shapes of a model, its norms and biases moved as if it were trained."""
    generator = torch.Generator().manual_seed(seed)
    own = GPT2Config(
        vocab_size=config.vocab_size,
        n_positions=config.context_length,
        n_embd=config.emb_dim,
        n_head=config.n_heads,
        n_layer=config.n_layers,
    )
    model = GPT2LMHeadModel(own)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return {name: values.copy() for name, values in weights.open(folder).load().items()}


def as_if_published(folder: Path, config: GPTConfig) -> dict[str, Official]:
    """What would be known of a model in OpenAI's layout, had they published it; checksums by the library itself."""
    source = weights.open(folder)
    offset, tensors = 0, {}
    for name in sorted(source.tensors):
        data = source.read(name).tobytes()
        tensors[name] = OfficialTensor(source.tensors[name].shape, offset, len(data), google_crc32c.value(data))
        offset += len(data)
    return {"124M": Official("124M", config, len(tensors), offset, tensors=tensors)}


@pytest.fixture(scope="module")
def trained() -> Tensors:
    """The bundled model's weights, float32; a test that changes one puts another array in its place."""
    return weights.open(bundled()).load()


@pytest.fixture(scope="module")
def config() -> GPTConfig:
    """Its shape."""
    return weights.open(bundled()).config


def test_the_bundled_model_passes() -> None:
    found = clearhead.verify(bundled(), text=SHORT)
    verdicts = {check.name: check.verdict for check in found.checks}
    assert verdicts == {
        "files": "passed",
        "checksums": "not applicable",
        "tensors": "passed",
        "numbers": "passed",
        "statistics": "passed",
        "arrangement": "passed",
        "heads": "passed",
        "identity": "not applicable",
        "tokenizer": "passed",
        "text": "passed",
        "continuation": "not applicable",
    }
    assert found.ok and found.as_json()["ok"] is True


# --------------------------------------------------------------------------------------------------------------
# Mistakes that no check of shapes sees
# --------------------------------------------------------------------------------------------------------------


def thirds(change: Callable[..., list[np.ndarray]]) -> Callable[[Tensors, int], None]:
    """A mistake in q, k and v: what is made of the three, for the weights and for the biases."""

    def plant(tensors: Tensors, layer: int) -> None:
        for kind in ("weight", "bias"):
            name = f"blocks.{layer}.attention.qkv.{kind}"
            tensors[name] = np.concatenate(change(*np.split(tensors[name], 3)))

    return plant


def out_transposed(tensors: Tensors, layer: int) -> None:
    name = f"blocks.{layer}.attention.out.weight"
    tensors[name] = np.ascontiguousarray(tensors[name].T)


def head_by_head(tensors: Tensors, layer: int) -> None:
    """As Megatron stores them: head 0's q, k and v, then head 1's."""
    for kind in ("weight", "bias"):
        name = f"blocks.{layer}.attention.qkv.{kind}"
        parts = [np.split(part, 7) for part in np.split(tensors[name], 3)]
        tensors[name] = np.concatenate([parts[which][head] for head in range(7) for which in range(3)])


MISTAKES: dict[str, tuple[Callable[[Tensors, int], None], str]] = {
    "out transposed": (out_transposed, "attention.out is transposed"),
    "k, v, q": (thirds(lambda q, k, v: [k, v, q]), "with v in the middle"),
    "q, v, k": (thirds(lambda q, k, v: [q, v, k]), "with v in the middle"),
    "v, q, k": (thirds(lambda q, k, v: [v, q, k]), "with v first"),
    "v, k, q": (thirds(lambda q, k, v: [v, k, q]), "with v first"),
    "each transposed": (
        thirds(lambda *parts: [np.ascontiguousarray(part.T) for part in parts]),
        "q, k and v are transposed",
    ),
    "head by head": (head_by_head, "interleaved head by head"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_any_one_layer_is_caught_and_named(trained: Tensors, config: GPTConfig, mistake: str) -> None:
    plant, words = MISTAKES[mistake]
    for layer in range(config.n_layers):
        tensors = dict(trained)
        plant(tensors, layer)
        prefix = f"blocks.{layer}.attention."
        found = measure_layer(layer, tensors[prefix + "qkv.weight"], tensors[prefix + "out.weight"], None, config)
        assert found.verdict == "wrong"
        assert [words in fault for fault in found.best_alternative.faults()] == [True]
        assert found.sigmas(found.correlations[found.best_alternative].weaker) > 20


def verify_changed(folder: Path, config: GPTConfig, tensors: Tensors, *, run: bool = False) -> Verification:
    """Saves a model beside the bundled tokenizer and verifies it."""
    weights.save_huggingface(folder, config, tensors)
    shutil.copy(bundled() / "tokenizer.json", folder)
    return clearhead.verify(folder, text=SHORT) if run else verify_weights(folder)


@pytest.mark.parametrize("layers", [(2,), (0, 1, 2, 3, 4, 5)])
def test_the_layers_with_a_mistake_are_named(
    trained: Tensors, config: GPTConfig, tmp_path: Path, layers: tuple[int, ...]
) -> None:
    tensors = dict(trained)
    for layer in layers:
        out_transposed(tensors, layer)
    found = verify_changed(tmp_path, config, tensors)
    assert [check.name for check in found.checks if check.verdict == "failed"] == ["arrangement"]
    check = found["arrangement"]
    assert check.text == f"{'Layer 2' if layers == (2,) else 'All layers'}: attention.out is transposed."
    assert [detail.split(":")[0] for detail in check.details] == [f"layer {layer}" for layer in layers]
    assert not found.ok


def test_q_and_k_exchanged_are_known_by_their_biases_and_by_a_text(
    trained: Tensors, config: GPTConfig, tmp_path: Path
) -> None:
    tensors = dict(trained)
    for layer in range(config.n_layers):
        thirds(lambda q, k, v: [k, q, v])(tensors, layer)
    found = verify_changed(tmp_path, config, tensors, run=True)
    assert [check.name for check in found.checks if check.verdict == "failed"] == ["arrangement", "text"]
    assert found["arrangement"].text.startswith("All layers: q and k")
    assert "more likely with q and k exchanged in the whole model" in found["text"].text


def test_exchanged_norms_are_known_by_a_text(trained: Tensors, config: GPTConfig, tmp_path: Path) -> None:
    tensors = dict(trained)
    for field in ("weight", "bias"):
        one, other = f"blocks.5.norm_1.{field}", f"blocks.5.norm_2.{field}"
        tensors[one], tensors[other] = trained[other], trained[one]
    found = verify_changed(tmp_path, config, tensors, run=True)
    assert [check.name for check in found.checks if check.verdict == "failed"] == ["text"]
    assert "norm_1 and norm_2 exchanged in layer 5" in found["text"].text


def test_a_wrong_number_of_heads_is_known(trained: Tensors, config: GPTConfig, tmp_path: Path) -> None:
    for heads in (14, 28):
        found = verify_changed(tmp_path / str(heads), config.replace(n_heads=heads), trained)
        assert [check.name for check in found.checks if check.verdict == "failed"] == ["heads"], heads
        assert "7 heads of 32" in found["heads"].text
    found = verify_changed(tmp_path / "14", config.replace(n_heads=14), trained, run=True)
    assert "7 heads" in found["text"].text and found["text"].verdict == "failed"


def test_layers_in_the_order_of_a_sorted_list(config: GPTConfig) -> None:
    """A model of twelve layers, every other one of which does nothing, with its layers as 0, 1, 10, 11, 2, …"""
    from clearhead.model import GPTModel
    from clearhead.verification.permutation_test import count_alternatives, permutation_test

    torch.manual_seed(0)
    deep, own = config.replace(n_layers=12), clearhead.load()
    model = GPTModel(deep).eval()
    rest = {name: values for name, values in own.model.state_dict().items() if not name.startswith("blocks.")}
    model.load_state_dict(rest, strict=False)
    with torch.no_grad():
        for layer, block in enumerate(model.blocks):
            if layer % 2 == 0:
                block.load_state_dict(own.model.blocks[layer // 2].state_dict())
                continue
            for name, parameter in block.named_parameters():
                if name.startswith(("attention.out", "feed_forward.down")):
                    parameter.zero_()
    ids = own.tokenizer.encode(TEXT)[:97]  # type: ignore[union-attr]
    right = permutation_test(model, ids, layer_by_layer=False)
    assert len(right.alternatives) == count_alternatives(deep, False)
    assert min(alternative.nats for alternative in right.alternatives) > 10
    wrong = list(model.blocks)
    by_name = sorted(range(12), key=str)
    model.blocks = torch.nn.ModuleList(wrong[number] for number in by_name)
    found = permutation_test(model, ids, layer_by_layer=False)
    best = min(found.alternatives, key=lambda alternative: alternative.nats)
    assert best.name == "the layers read as sorted by name (0, 1, 10, …)" and best.nats < -100
    assert right.loss == pytest.approx(found.loss + best.nats / found.tokens, rel=1e-4)


# --------------------------------------------------------------------------------------------------------------
# Nothing is claimed where nothing can be told
# --------------------------------------------------------------------------------------------------------------


def test_an_untrained_model_is_not_failed(tmp_path: Path) -> None:
    own = GPT2Config(vocab_size=61, n_positions=16, n_embd=24, n_head=3, n_layer=2)
    GPT2LMHeadModel(own).save_pretrained(tmp_path)
    found = clearhead.verify(tmp_path)
    assert found.ok and "Untrained" in found["numbers"].text
    assert {found[name].verdict for name in ("arrangement", "heads", "text", "statistics")} == {"not applicable"}


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32), st.sampled_from([(24, 3), (64, 4), (96, 2), (64, 64)]), st.floats(0, 1))
def test_random_numbers_are_never_wrong_nor_right(seed: int, shape: tuple[int, int], common: float) -> None:
    """Also where all matrices share a direction, as those of a trained model do."""
    size, heads = shape
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(1, size))
    qkv = rng.normal(size=(3 * size, size)) + common * rng.normal(size=(3 * size, 1)) * shared
    out = rng.normal(size=(size, size)) + common * shared.T * rng.normal(size=(1, size))
    found = measure_layer(0, qkv.astype("f4"), out.astype("f4"), None, GPTConfig(61, 16, size, heads, 2))
    assert found.verdict == "unknown"


def test_moved_but_untrained_weights_are_a_warning(tmp_path: Path) -> None:
    weights.save_huggingface(tmp_path, SMALL, moved())
    found = verify_weights(tmp_path)
    assert found.ok and found["arrangement"].verdict == "warning" and found["heads"].verdict == "not applicable"


def test_a_text_that_the_model_does_not_know_is_no_ground(tmp_path: Path) -> None:
    found = clearhead.verify(bundled(), text="def f(x):\n    return {k: [v] for k, v in x.items() if v != 3}\n" * 9)
    assert found["text"].verdict == "warning" and found.ok
    found = clearhead.verify(bundled(), text="Too short.")
    assert found["text"].verdict == "not applicable"


# --------------------------------------------------------------------------------------------------------------
# Identity and continuation
# --------------------------------------------------------------------------------------------------------------

FORMS = ["openai", "huggingface", "book", "nanogpt", "llmc", "transformerlens", "gguf", "canonical", "onnx"]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tensors, dict[str, Official]]:
    """A small model as if OpenAI had published it as the 124M."""
    folder = tmp_path_factory.mktemp("published")
    tensors = moved()
    weights.save_openai(folder, SMALL, tensors)
    return tensors, as_if_published(folder, SMALL)


@pytest.mark.parametrize("layout", FORMS)
def test_every_form_of_the_published_weights(
    published: tuple[Tensors, dict[str, Official]], tmp_path: Path, layout: str
) -> None:
    tensors, known = published
    dest = tmp_path / "model"
    weights.save(dest, SMALL, tensors, layout)
    found = verify_weights(dest, config=SMALL if layout in ("book", "canonical") else None, known=known)
    assert found["identity"].text == "These are, bit for bit, the weights that OpenAI published as 124M."
    assert [found[name].verdict for name in ("files", "tensors", "numbers")] == ["passed"] * 3
    carries = {"openai", "book", "nanogpt", "transformerlens", "canonical"}  # a TensorFlow index, or a zip
    assert found["checksums"].verdict == ("passed" if layout in carries else "not applicable")
    changed = dict(tensors)
    changed["blocks.1.attention.out.weight"] = tensors["blocks.1.attention.out.weight"].copy()
    changed["blocks.1.attention.out.weight"].view(np.uint32)[3, 4] ^= 1
    weights.save(dest, SMALL, changed, layout)
    found = verify_weights(dest, config=SMALL if layout in ("book", "canonical") else None, known=known)
    assert (found["identity"].verdict, found["identity"].details) == ("failed", ("model/h1/attn/c_proj/w",))


def test_weights_that_were_trained_further_are_no_failure(
    published: tuple[Tensors, dict[str, Official]], tmp_path: Path
) -> None:
    weights.save_huggingface(tmp_path, SMALL, moved(seed=1))
    found = verify_weights(tmp_path, known=published[1])
    assert found["identity"].verdict == "warning" and "Further training" in found["identity"].text


def test_the_published_continuation(published: tuple[Tensors, dict[str, Official]], tmp_path: Path) -> None:
    tensors, known = published
    weights.save_huggingface(tmp_path, SMALL, tensors)
    prompt = [5, 17, 3]
    theirs = GPT2LMHeadModel.from_pretrained(tmp_path)
    ids = theirs.generate(
        torch.tensor([prompt]), max_new_tokens=9, do_sample=False, eos_token_id=None, pad_token_id=0
    ).tolist()[0][3:]

    def expect(ids: list[int]) -> dict[str, tuple[Continuation, ...]]:
        return {"124M": (Continuation("a test", "…", "…", tuple(prompt), tuple(ids)),)}

    found = clearhead.verify(tmp_path, known=known, published=expect(ids))
    assert found["continuation"].verdict == "passed" and "all 9 tokens" in found["continuation"].details[0]
    wrong = [*ids[:4], (ids[4] + 1) % 61, *ids[5:]]
    found = clearhead.verify(tmp_path, known=known, published=expect(wrong))
    assert found["continuation"].verdict == "failed" and "the first 4 of 9" in found["continuation"].details[0]
    tensors = {**tensors, **{name: -values for name, values in tensors.items() if "bias" in name}}
    weights.save_huggingface(tmp_path, SMALL, tensors)
    assert clearhead.verify(tmp_path, known=known, published=expect(wrong))["continuation"].verdict == "warning"


def test_the_tokens_on_record_are_those_of_the_texts(gpt2_files: Path) -> None:
    import tiktoken

    merges = (gpt2_files / "vocab.bpe").read_text(encoding="utf-8").split("\n")[1:-1]
    with mock.patch("tiktoken.load.read_file_cached", lambda path, *more: Path(path).read_bytes()):
        from tiktoken.load import data_gym_to_mergeable_bpe_ranks

        ranks = data_gym_to_mergeable_bpe_ranks(str(gpt2_files / "vocab.bpe"), str(gpt2_files / "encoder.json"))
    assert len(merges) == 50000
    pattern = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    theirs = tiktoken.Encoding("gpt2", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    assert tuple(theirs.encode(TEXT)[:512]) == GPT2_IDS
    for cases in PUBLISHED.values():
        for case in cases:
            assert (list(case.prompt_ids), list(case.ids)) == (theirs.encode(case.prompt), theirs.encode(case.text))


# --------------------------------------------------------------------------------------------------------------
# Broken files
# --------------------------------------------------------------------------------------------------------------


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path, at: int = -150) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(bytes(data))


def pointer(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 498000000\n")


def page(path: Path) -> None:
    path.write_text("<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>\n")


@pytest.mark.parametrize(
    ("layout", "file", "harm", "check", "words"),
    [
        ("openai", DATA, cut, "files", "cut short"),
        ("openai", DATA, flip, "checksums", "model/wte does not match its CRC-32C"),
        ("openai", DATA, pointer, "files", "Git LFS pointer"),
        ("openai", INDEX, page, "files", "web page"),
        ("openai", INDEX, flip, "files", "download it again"),
        ("openai", "hparams.json", page, "files", "not JSON"),
        ("huggingface", "model.safetensors", cut, "files", "cut short"),
        ("huggingface", "model.safetensors", pointer, "files", "Git LFS pointer"),
        ("huggingface", "config.json", page, "files", "not JSON"),
        ("book", "", lambda path: flip(path, 4000), "checksums", "do not match their CRC-32"),
        ("book", "", cut, "files", "cut short"),
        ("gguf", "", cut, "files", "cut short"),
        ("llmc", "", cut, "files", "cut short"),
        ("onnx", "model.onnx", cut, "files", "cut short"),
        ("llmc", "", page, "files", "web page"),
    ],
)
def test_a_broken_file_is_a_failed_point(
    published: tuple[Tensors, dict[str, Official]],
    tmp_path: Path,
    layout: str,
    file: str,
    harm: Callable[[Path], None],
    check: str,
    words: str,
) -> None:
    dest = tmp_path / "model"
    weights.save(dest, SMALL, published[0], layout)
    harm(dest / file)
    found = clearhead.verify(dest, config=SMALL if layout == "book" else None)
    failed = [one.name for one in found.checks if one.verdict == "failed"]
    assert failed == [check] and words in found[check].text and not found.ok


def test_the_index_of_another_checkpoint(published: tuple[Tensors, dict[str, Official]], tmp_path: Path) -> None:
    weights.save_openai(tmp_path / "one", SMALL, published[0])
    weights.save_openai(tmp_path / "other", SMALL, moved(seed=1))
    shutil.copy(tmp_path / "other" / INDEX, tmp_path / "one")
    found = verify_weights(tmp_path / "one")
    assert found["checksums"].verdict == "failed" and "another checkpoint" in found["checksums"].text


def test_bytes_behind_the_last_tensor_are_said(published: tuple[Tensors, dict[str, Official]], tmp_path: Path) -> None:
    weights.save_openai(tmp_path, SMALL, published[0])
    with (tmp_path / DATA).open("ab") as file:
        file.write(b"more")
    found = verify_weights(tmp_path)
    assert found["files"].verdict == "warning" and "4 unused bytes follow" in found["files"].details[0] and found.ok


def test_torch_saves_what_passes(tmp_path: Path) -> None:
    """A file that PyTorch itself wrote; and one that it wrote with checksums switched off."""
    state = {name: torch.from_numpy(values) for name, values in moved().items() if name != "head.weight"}
    torch.save(state, tmp_path / "model.pt")
    assert verify_weights(tmp_path / "model.pt", config=SMALL)["checksums"].verdict == "passed"
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(state, tmp_path / "model.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    check = verify_weights(tmp_path / "model.pt", config=SMALL)["checksums"]
    assert check.verdict == "not applicable" and "switched off" in check.text


@pytest.mark.parametrize("right", [True, False])
def test_the_hubs_cache_names_a_file_by_its_sha256(tmp_path: Path, right: bool) -> None:
    import hashlib

    weights.save_huggingface(tmp_path / "snapshot", SMALL, moved())
    file = tmp_path / "snapshot" / "model.safetensors"
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    if not right:
        flip(file, -3)
    file.rename(tmp_path / digest)
    file.symlink_to(tmp_path / digest)
    check = verify_weights(tmp_path / "snapshot")["checksums"]
    assert check.verdict == ("passed" if right else "failed") and digest[:12] in " ".join((check.text, *check.details))


def test_an_index_of_shards_with_another_sum(tmp_path: Path) -> None:
    weights.save_huggingface(tmp_path, SMALL, moved(), shard_bytes=20_000)
    assert "shards, as recorded" in verify_weights(tmp_path)["files"].details[-1]
    index = tmp_path / "model.safetensors.index.json"
    values = json.loads(index.read_text())
    values["metadata"]["total_size"] += 4
    index.write_text(json.dumps(values))
    found = verify_weights(tmp_path)
    assert found["files"].verdict == "failed" and "different models" in found["files"].text


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_none(tmp_path: Path, bad: float) -> None:
    tensors = moved()
    tensors["blocks.1.feed_forward.up.weight"][2, 3] = bad
    tensors["blocks.0.norm_2.bias"][:] = 0
    weights.save_huggingface(tmp_path, SMALL, tensors)
    found = clearhead.verify(tmp_path)
    assert found["numbers"].verdict == "failed" and "h.1.mlp.c_fc.weight" in found["numbers"].details[0]
    assert found["text"].verdict == "not applicable"


def test_numbers_in_the_wrong_byte_order(tmp_path: Path) -> None:
    tensors = moved()
    swapped = tensors["blocks.0.feed_forward.down.weight"].byteswap()
    tensors["blocks.0.feed_forward.down.weight"] = np.nan_to_num(swapped, nan=0.0, posinf=1e30, neginf=-1e30)
    weights.save_huggingface(tmp_path, SMALL, tensors)
    check = verify_weights(tmp_path)["statistics"]
    assert check.verdict == "failed" and "h.0.mlp.c_proj.weight" in check.details[0]


def test_tensors_that_do_not_fit(tmp_path: Path) -> None:
    weights.save_huggingface(tmp_path, SMALL, moved())
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, "n_layer": 3}))
    found = verify_weights(tmp_path)
    assert found.checks[-1].name == "tensors" and "h.2." in found["tensors"].text and not found.ok


def test_the_tokenizer(tmp_path: Path) -> None:
    weights.save_huggingface(tmp_path, SMALL, moved())
    assert clearhead.verify(tmp_path)["tokenizer"].verdict == "not applicable"
    shutil.copy(bundled() / "tokenizer.json", tmp_path)
    found = clearhead.verify(tmp_path)
    assert found["tokenizer"].verdict == "failed" and "different models" in found["tokenizer"].text
    page(tmp_path / "tokenizer.json")
    assert clearhead.verify(tmp_path)["tokenizer"].verdict == "failed"


def test_the_tokenizer_inside_a_gguf_file(tmp_path: Path) -> None:
    weights.convert(bundled(), tmp_path / "model.gguf", "gguf")
    found = clearhead.verify(tmp_path / "model.gguf", text=SHORT)
    assert found["tokenizer"].verdict == "passed" and found["text"].verdict == "passed"
    assert Tokenizer.from_folder(bundled()).vocab_size == 4096 and "4,096 tokens" in found["tokenizer"].text


# --------------------------------------------------------------------------------------------------------------
# The command line
# --------------------------------------------------------------------------------------------------------------


def call(*args: object) -> tuple[int, str, str]:
    """Runs the command line in this process: its exit status, standard output and standard error."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    status: Any = 0
    with (
        mock.patch.dict(os.environ, {"COLUMNS": "80", "HF_HUB_OFFLINE": "1"}),
        mock.patch.multiple(sys, argv=["clearhead", "weights", "verify", *map(str, args)], stdout=out, stderr=err),
    ):
        try:
            main()
        except SystemExit as end:
            status = end.code or 0
    texts = []
    for stream in (out, err):
        stream.flush()
        stream.seek(0)
        texts.append(stream.read())
    return status, texts[0], texts[1]


def test_the_command_line(published: tuple[Tensors, dict[str, Official]], tmp_path: Path) -> None:
    weights.save_openai(tmp_path / "model", SMALL, published[0])
    status, out, _ = call(tmp_path / "model", "--no-run")
    assert status == 0 and "✓ checksums" in out and "– identity" in out and "! arrangement" in out
    assert max(map(len, out.splitlines()[1:])) <= 80 and "tokenizer" not in out
    page_of_text = tmp_path / "page.txt"
    page_of_text.write_text("Once upon a time there was a page of text. " * 9)
    assert "✓ tokenizer" in call(bundled(), "--text", page_of_text)[1]
    assert call(bundled(), "--text", page_of_text, "--no-run")[0] == 2
    flip(tmp_path / "model" / DATA)
    status, out, err = call(tmp_path / "model", "--no-run")
    assert status == 2 and "✗ checksums" in out and out.rstrip().endswith("Failed: checksums.") and err == ""
    status, out, _ = call(tmp_path / "model", "--json")
    found = json.loads(out)
    assert status == 2 and not found["ok"] and found["layout"] == "openai"
    assert [check["name"] for check in found["checks"] if check["verdict"] == "failed"] == ["checksums"]


def test_what_is_not_there_is_one_sentence() -> None:
    status, out, err = call("./no/such/model")
    assert (status, out) == (2, "") and err.startswith("clearhead: ") and len(err.splitlines()) == 1
    with pytest.raises(WeightsError):
        verify_weights("./no/such/model")
    with pytest.raises(InputError):
        clearhead.verify(bundled(), device="no such device")


def test_looking_needs_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from clearhead.verification import verify_weights\n"
        "verify_weights(sys.argv[1]); sys.exit('torch' in sys.modules)"
    )
    weights.save_openai(tmp_path, SMALL, moved())
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


def test_the_json_has_every_field() -> None:
    found = verify_weights(weights.open(bundled())).as_json()
    assert found["config"] == dataclasses.asdict(weights.open(bundled()).config)
    assert {"name", "verdict", "text", "details"} == found["checks"][0].keys()
    assert json.loads(json.dumps(found))["checks"][0]["details"] == list(found["checks"][0]["details"])
