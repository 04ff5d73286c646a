"""`clearhead weights verify`: files, checksums, identity, tokenizer and the command line."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import command_line
import numpy as np
import pytest
import torch
from official_facts import official_tensors
from perturbed import SMALL, Tensors, perturbed_weights
from transformers import GPT2LMHeadModel

import clearhead
from clearhead import weights
from clearhead.config import GPTConfig
from clearhead.errors import InputError, WeightsError
from clearhead.loading import bundled
from clearhead.tokenizer import Tokenizer
from clearhead.verification import verify_weights
from clearhead.verification.published import PUBLISHED, PublishedContinuation
from clearhead.verification.reference_text import GPT2_IDS, TEXT
from clearhead.weights.hub.official import Official

DATA, INDEX = "model.ckpt.data-00000-of-00001", "model.ckpt.index"
SHORT = TEXT[:1200]  # a few hundred tokens are enough here


def as_if_published(folder: Path, config: GPTConfig) -> dict[str, Official]:
    """What would be known of a model in OpenAI's layout, had they published it."""
    tensors = official_tensors(folder)
    size = sum(tensor.nbytes for tensor in tensors.values())
    return {"124M": Official("124M", config, len(tensors), size, tensors=tensors)}


# --------------------------------------------------------------------------------------------------------------
# Identity and continuation
# --------------------------------------------------------------------------------------------------------------

FORMS = ["openai", "huggingface", "book", "nanogpt", "llmc", "transformerlens", "gguf", "canonical", "onnx"]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tensors, dict[str, Official]]:
    """A small model as if OpenAI had published it as the 124M."""
    folder = tmp_path_factory.mktemp("published")
    tensors = perturbed_weights()
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
    weights.save_huggingface(tmp_path, SMALL, perturbed_weights(seed=1))
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

    def expect(ids: list[int]) -> dict[str, tuple[PublishedContinuation, ...]]:
        return {"124M": (PublishedContinuation("a test", "…", "…", tuple(prompt), tuple(ids)),)}

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
    weights.save_openai(tmp_path / "other", SMALL, perturbed_weights(seed=1))
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
    state = {name: torch.from_numpy(values) for name, values in perturbed_weights().items() if name != "head.weight"}
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

    weights.save_huggingface(tmp_path / "snapshot", SMALL, perturbed_weights())
    file = tmp_path / "snapshot" / "model.safetensors"
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    if not right:
        flip(file, -3)
    file.rename(tmp_path / digest)
    file.symlink_to(tmp_path / digest)
    check = verify_weights(tmp_path / "snapshot")["checksums"]
    assert check.verdict == ("passed" if right else "failed") and digest[:12] in " ".join((check.text, *check.details))


def test_an_index_of_shards_with_another_sum(tmp_path: Path) -> None:
    weights.save_huggingface(tmp_path, SMALL, perturbed_weights(), shard_bytes=20_000)
    assert "shards, as recorded" in verify_weights(tmp_path)["files"].details[-1]
    index = tmp_path / "model.safetensors.index.json"
    values = json.loads(index.read_text())
    index.write_text("\ufeff" + json.dumps(values), encoding="utf-8")  # as some editors save it
    assert "shards, as recorded" in verify_weights(tmp_path)["files"].details[-1]
    values["metadata"]["total_size"] += 4
    index.write_text(json.dumps(values))
    found = verify_weights(tmp_path)
    assert found["files"].verdict == "failed" and "different models" in found["files"].text


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_none(tmp_path: Path, bad: float) -> None:
    tensors = perturbed_weights()
    tensors["blocks.1.feed_forward.up.weight"][2, 3] = bad
    tensors["blocks.0.norm_2.bias"][:] = 0
    weights.save_huggingface(tmp_path, SMALL, tensors)
    found = clearhead.verify(tmp_path)
    assert found["numbers"].verdict == "failed" and "h.1.mlp.c_fc.weight" in found["numbers"].details[0]
    assert found["text"].verdict == "not applicable"


def test_numbers_in_the_wrong_byte_order(tmp_path: Path) -> None:
    tensors = perturbed_weights()
    swapped = tensors["blocks.0.feed_forward.down.weight"].byteswap()
    tensors["blocks.0.feed_forward.down.weight"] = np.nan_to_num(swapped, nan=0.0, posinf=1e30, neginf=-1e30)
    weights.save_huggingface(tmp_path, SMALL, tensors)
    check = verify_weights(tmp_path)["statistics"]
    assert check.verdict == "failed" and "h.0.mlp.c_proj.weight" in check.details[0]


def test_tensors_that_do_not_fit(tmp_path: Path) -> None:
    weights.save_huggingface(tmp_path, SMALL, perturbed_weights())
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, "n_layer": 3}))
    found = verify_weights(tmp_path)
    assert found.checks[-1].name == "tensors" and "h.2." in found["tensors"].text and not found.ok


def test_the_tokenizer(tmp_path: Path) -> None:
    weights.save_huggingface(tmp_path, SMALL, perturbed_weights())
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
    """Run the verb in this process; return its exit status, standard output and standard error."""
    result = command_line.call("weights", "verify", *args)
    return result.returncode, result.stdout.decode(), result.stderr.decode()


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
    weights.save_openai(tmp_path, SMALL, perturbed_weights())
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


def test_the_json_has_every_field() -> None:
    found = verify_weights(weights.open(bundled())).as_json()
    assert found["config"] == dataclasses.asdict(weights.open(bundled()).config)
    assert {"name", "verdict", "text", "details"} == found["checks"][0].keys()
    assert json.loads(json.dumps(found))["checks"][0]["details"] == list(found["checks"][0]["details"])
