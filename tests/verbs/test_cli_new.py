"""`clearhead new`."""

import json
from pathlib import Path

import pytest
from command_line import call, refused, run

from verbs.verb_runs import SMALL


def test_new_model_opens_in_transformers(vocabulary: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, GPT2LMHeadModel

    folder = tmp_path / "new" / "model"
    result = call("new", folder, *SMALL, "--tokenizer", vocabulary, "--seed", "5")
    assert result.returncode == 0, result.stderr
    model, info = GPT2LMHeadModel.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    assert model.config.vocab_size == len(AutoTokenizer.from_pretrained(folder)) == 400
    assert model.config.eos_token_id == AutoTokenizer.from_pretrained(folder).eos_token_id
    # Initialised as OpenAI's code does it: 0.02, for positions 0.01, and scaled where a block adds to the stream.
    state = model.state_dict()
    for name, std in (
        ("transformer.wte.weight", 0.02),
        ("transformer.wpe.weight", 0.01),
        ("transformer.h.1.attn.c_attn.weight", 0.02),
        ("transformer.h.0.attn.c_proj.weight", 0.01),
        ("transformer.h.1.mlp.c_proj.weight", 0.01),
    ):
        assert state[name].std().item() == pytest.approx(std, rel=0.1), name
    assert not state["transformer.h.0.mlp.c_fc.bias"].any()


def test_new_model_is_decided_by_its_seed(tmp_path: Path) -> None:
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert call("new", tmp_path / name, *SMALL, "--vocab-size", "50", "--seed", seed).returncode == 0
    files = {name: (tmp_path / name / "model.safetensors").read_bytes() for name in "abc"}
    assert files["a"] == files["b"] != files["c"]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["config.json", "model.safetensors"]


def test_new_takes_its_shape_from_a_size_or_a_file_and_changes_it(tmp_path: Path) -> None:
    from clearhead.config import RELEASED, GPTConfig

    changes = ["--emb-dim", "36", "--n-layers", "1", "--vocab-size", "60", "--context-length", "20"]
    assert call("new", tmp_path / "a", "--size", "124M", *changes).returncode == 0
    made = GPTConfig.from_file(tmp_path / "a" / "config.json")
    assert made == RELEASED["124M"].replace(emb_dim=36, n_layers=1, vocab_size=60, context_length=20)
    options = ["--config", tmp_path / "a" / "config.json", "--no-qkv-bias", "--no-tie-weights", "--ff-dim", "10"]
    assert call("new", tmp_path / "b", *options).returncode == 0
    expected = made.replace(qkv_bias=False, tie_weights=False, ff_dim=10)
    assert GPTConfig.from_file(tmp_path / "b" / "config.json") == expected
    account = json.loads(call("params", tmp_path / "b", "--json").stdout)
    assert "every part agrees" in account["counted_in_the_weights"]


def test_new_refuses_in_a_sentence(vocabulary: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    assert "give --size, --config, or --emb-dim, --n-heads" in refused(call("new", folder, "--n-layers", "2"))
    assert "does not divide into 5 heads" in refused(call("new", folder, "--size", "124M", "--n-heads", "5"))
    assert "no GPT-2 size '125M'" in refused(call("new", folder, "--size", "125M"))
    assert "give one of them" in refused(call("new", folder, "--size", "124M", "--config", "c.json"))
    assert "the seed is -1" in refused(call("new", folder, *SMALL, "--seed", "-1"))
    too_small = [*SMALL, "--tokenizer", vocabulary, "--vocab-size", "300"]
    assert "give --vocab-size 400 or more" in refused(call("new", folder, *too_small))
    assert not folder.exists(), "what is refused leaves nothing behind"


def test_new_does_not_write_over_what_is_there(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    assert call("new", folder, *SMALL, "--vocab-size", "50").returncode == 0, "an empty folder is free"
    (folder / "notes.txt").write_text("mine")
    before = (folder / "model.safetensors").read_bytes()
    again = ["new", folder, *SMALL, "--vocab-size", "50", "--seed", "1"]
    assert "is not empty" in refused(call(*again))
    assert (folder / "model.safetensors").read_bytes() == before
    assert call(*again, "--force").returncode == 0
    assert (folder / "model.safetensors").read_bytes() != before
    assert (folder / "notes.txt").read_text() == "mine"
    assert "is a file" in refused(call("new", folder / "notes.txt", *SMALL))


@pytest.mark.slow
def test_new_as_a_process(vocabulary: Path, tmp_path: Path) -> None:
    result = run("new", tmp_path / "model", *SMALL, "--tokenizer", vocabulary)
    assert result.returncode == 0
    assert result.stdout.decode().startswith(f"{tmp_path / 'model'}: a GPT-2 with ")
    assert result.stderr == b""
