"""`clearhead params`."""

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
from command_line import call, refused

import clearhead
import clearhead.config
from clearhead.anatomy import CostModel

SIZES = {"124M": 124_439_808, "355M": 354_823_168, "774M": 774_030_080, "1558M": 1_557_611_200}


@pytest.mark.parametrize("size", SIZES)
def test_params_of_a_released_size(size: str) -> None:
    result = call("params", size)
    assert result.returncode == 0
    text = result.stdout.decode()
    assert text.startswith(f"GPT-2 {size}: {SIZES[size]:,} parameters\n")
    assert max(map(len, text.splitlines())) <= 80
    assert f"{4 * SIZES[size]:,}" in text
    tensors = {"124M": 148, "355M": 292, "774M": 436, "1558M": 580}[size]
    assert re.search(rf"^tensors +{tensors} ", text, re.MULTILINE)


def test_params_of_the_books_model_shows_every_number_of_the_book() -> None:
    text = call("params", "--book").stdout.decode()
    table, _, totals = text.partition("the model")
    rows = {line.split()[0]: line for line in table.splitlines() if line.strip()}
    for part, number in {
        "token": "38,597,376",
        "position": "786,432",
        "W_query": "589,824",
        "W_key": "589,824",
        "W_value": "589,824",
        "qkv": "1,769,472",
        "out": "590,592",
        "norm_1": "1,536",
        "norm_2": "1,536",
        "up": "2,362,368",
        "down": "2,360,064",
        "feed_forward": "4,722,432",
        "block": "7,085,568",
        "blocks": "85,026,816",
        "head": "38,597,376",
        "output": "38,598,912",
    }.items():
        assert number in rows[part].split(), rows[part]
    assert "163,009,536" in totals and "124,412,160" in totals
    assert "474.59 MiB" in totals


def test_params_as_json_is_the_whole_account() -> None:
    account = json.loads(call("params", "gpt2-medium", "--json").stdout)
    assert account["parameters"] == account["parameters_tied"] == SIZES["355M"]
    assert account["tensors"] == 292
    assert account["bytes"]["float32"] == 1_419_292_672
    assert account["config"]["emb_dim"] == 1024
    assert account["counted_in_the_weights"] is None

    def leaves(part: dict[str, Any]) -> list[dict[str, Any]]:
        return [leaf for inner in part["parts"] for leaf in leaves(inner)] if part["parts"] else [part]

    assert sum(leaf["parameters"] * leaf["times"] for leaf in leaves(account["parts"])) == SIZES["355M"]


def test_params_as_markdown_is_three_tables() -> None:
    lines = call("params", "124M", "--markdown").stdout.decode().splitlines()
    assert lines[0].startswith("**GPT-2 124M: 124,439,808 parameters**")
    starts = [i for i, line in enumerate(lines) if line.startswith("|---")]
    assert len(starts) == 3
    for start in starts:
        rows = [lines[start - 1], *itertools.takewhile(lambda line: line.startswith("|"), lines[start:])]
        assert len(rows) > 6
        assert len({row.count("|") for row in rows}) == 1
        assert all(row.endswith("|") for row in rows)


def test_params_takes_one_form_at_a_time() -> None:
    result = call("params", "--json", "--markdown")
    assert result.returncode == 2
    assert b"not both" in result.stderr


def test_params_of_a_config_file(tmp_path: Path) -> None:
    path = tmp_path / "book.json"
    path.write_text('{"vocab_size": 50, "context_length": 8, "emb_dim": 12, "n_heads": 3, "n_layers": 2, "ff_dim": 20}')
    text = call("params", path).stdout.decode()
    assert "F = 20 in feed_forward" in text
    path.write_text('{"vocab_size": 50, "emb_dims": 12}')
    assert "book.json has none of the keys" in refused(call("params", path))


def test_params_counts_the_weights_in_a_folder(huggingface_folder: Path) -> None:
    text = call("params", huggingface_folder).stdout.decode()
    from transformers import GPT2LMHeadModel

    theirs = GPT2LMHeadModel.from_pretrained(huggingface_folder)
    total = sum(parameter.numel() for parameter in theirs.parameters())
    assert f": {total:,} parameters\n" in text
    assert "Counted in the weights too: 28 tensors" in text
    assert "every part agrees" in " ".join(text.split())


def test_params_of_a_folder_with_a_config_only(huggingface_folder: Path) -> None:
    (huggingface_folder / "model.safetensors").unlink()
    result = call("params", huggingface_folder)
    assert result.returncode == 0
    assert b"Counted in the weights" not in result.stdout


def test_params_of_weights_that_do_not_belong_to_the_config(huggingface_folder: Path) -> None:
    path = huggingface_folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "n_layer": 3}))
    assert "h.2" in refused(call("params", huggingface_folder))


def test_params_of_several_models_stand_side_by_side() -> None:
    text = call("params", "124M", "1558M", "bundled", "774M", "gpt2-medium").stdout.decode()
    largest = call("params", "1558M", "1558M", "1558M", "774M", "--batch", "64", "--book").stdout.decode()
    assert max(map(len, (text + largest).splitlines())) <= 80
    assert "…" not in text + largest, "no number is cut"
    (row,) = (line for line in text.splitlines() if line.startswith("parameters") and "124,439,808" in line)
    assert row.split()[1:] == ["124,439,808", "1,557,611,200", "4,605,440", "774,030,080"]
    assert "354,823,168" in text.partition(row)[2]
    assert "bundled: Counted in the weights too" in text
    several = json.loads(call("params", "124M", "bundled", "--json").stdout)
    assert [account["parameters"] for account in several] == [SIZES["124M"], 4_605_440]
    assert several[1]["counted_in_the_weights"].startswith("Counted in the weights too: 76 tensors")


def test_params_shows_the_costs_of_the_work_that_is_asked_for() -> None:
    options = ("124M", "--batch", "4", "--context", "256", "--dtype", "bfloat16")
    costs = CostModel(clearhead.config.RELEASED["124M"], "bfloat16", 4, 256)
    text = call("params", *options).stdout.decode()
    assert "The costs of 4 sequences of 256 tokens in bfloat16" in text
    assert f"{costs.training_flops().amount:,}" in text
    shown = json.loads(call("params", *options, "--json").stdout)["costs"]
    assert shown["bytes_to_train"]["amount"] == costs.memory_to_train().amount
    assert sum(part["amount"] for part in shown["bytes_to_train"]["parts"]) == shown["bytes_to_train"]["amount"]
    assert shown["bytes_moved_a_pass"]["amount"] == costs.decoding_bytes().amount
    in_int8 = call("params", "124M", "--dtype", "int8").stdout.decode()
    assert "memory to run" in in_int8 and "memory to train" not in in_int8


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--context", "2000"], "2,000 tokens"),
        (["--context", "0"], "at least 1 token"),
        (["--batch", "0"], "at least 1 sequence"),
        (["--dtype", "bfloat61"], "did you mean 'bfloat16'"),
    ],
)
def test_params_of_work_that_cannot_be(options: list[str], sentence: str) -> None:
    assert sentence in refused(call("params", "124M", *options))


def test_params_of_what_is_nowhere() -> None:
    assert "./nowhere does not exist" in refused(call("params", "./nowhere"))
    unknown = refused(call("params", "125M"))
    assert "124M, 355M, 774M, 1558M" in unknown


@pytest.fixture
def huggingface_folder(tmp_path: Path) -> Path:
    """A small GPT-2 as transformers saves it, without a tokenizer."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    folder = tmp_path / "saved"
    ends = {"bos_token_id": None, "eos_token_id": None}
    config = GPT2Config(vocab_size=300, n_positions=32, n_embd=24, n_head=4, n_layer=2, **ends)
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder
