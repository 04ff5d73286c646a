"""`config=` and `--config`: a shape, or some of its settings, for weights whose files do not say all of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from command_line import call

import clearhead
from clearhead import weights
from clearhead.config import RELEASED, GPTConfig, parse_config
from clearhead.errors import ConfigError, HubError, WeightsError
from clearhead.weights.location import is_on_disk, locate

SHAPE = {"vocab_size": 50257, "context_length": 24, "emb_dim": 48, "n_heads": 3, "n_layers": 2}


@pytest.fixture(scope="module")
def state_dict(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a `model.pth` as the book's reader saves it: 3 heads of 16 numbers, which the file does not say."""
    import torch

    from clearhead.model import GPTModel

    torch.manual_seed(1)
    model = GPTModel(GPTConfig.from_dict({**SHAPE, "qkv_bias": True, "tie_weights": True}))
    folder = tmp_path_factory.mktemp("config")
    torch.save(model.state_dict(), folder / "model.pth")
    (folder / "shape.json").write_text(json.dumps({"n_heads": 3}))
    (folder / "book.json").write_text(json.dumps({**SHAPE, "drop_rate": 0.1, "qkv_bias": True}))
    return folder / "model.pth"


def test_without_the_number_of_heads_the_message_says_how_to_give_it(state_dict: Path) -> None:
    with pytest.raises(WeightsError, match=r"--config '\{\"n_heads\": \.\.\.\}'"):
        clearhead.load(state_dict)


@pytest.mark.parametrize("given", [{"n_heads": 3}, '{"n_heads": 3}', "shape.json", "book.json"])
def test_load_takes_a_config_or_some_settings(state_dict: Path, given: Any) -> None:
    config = state_dict.parent / given if isinstance(given, str) and given.endswith(".json") else given
    gpt = clearhead.load(state_dict, config=config)
    assert (gpt.config.n_heads, gpt.config.emb_dim, gpt.config.tie_weights) == (3, 48, True)
    other = clearhead.load(state_dict, config=GPTConfig.from_dict({**SHAPE, "qkv_bias": True, "tie_weights": True}))
    assert gpt.score("Once upon a time").surprisal == other.score("Once upon a time").surprisal
    six = clearhead.load(state_dict, config={"n_heads": 6})
    assert six.score("Once upon a time").surprisal != gpt.score("Once upon a time").surprisal


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"n_head": 3}, "did you mean 'n_heads'"),
        ('{"n_heads": 3', "is not JSON"),
        ("125M", "no GPT-2 size '125M'"),
        ("missing.json", "does not exist"),
        (3, "the config is an int"),
        ({"n_heads": 5}, "does not divide into 5 heads"),
        ({"n_heads": 3, "n_layers": 9}, r"blocks\.2\."),
    ],
)
def test_a_config_that_cannot_be_is_one_sentence(state_dict: Path, given: Any, sentence: str) -> None:
    with pytest.raises((ConfigError, WeightsError), match=sentence):
        weights.open(state_dict, config=given).plan()


def test_sizes_files_and_folders_are_whole_configs(state_dict: Path, tmp_path: Path) -> None:
    assert parse_config("124M") == parse_config("gpt2") == RELEASED["124M"]
    file = tmp_path / "config.json"
    file.write_text(json.dumps(RELEASED["355M"].to_huggingface()))
    assert parse_config(file) == parse_config(tmp_path) == RELEASED["355M"]


@pytest.mark.slow
def test_every_verb_that_reads_weights_takes_a_config(
    state_dict: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("Once upon a time there was a dog.\n")
    config = ["--config", '{"n_heads": 3}']
    model = ["-m", state_dict, *config]
    for words in (
        ["generate", "Once", "-n", "2", *model],
        ["score", "text.txt", *model],
        ["evaluate", "text.txt", *model],
        ["walk", "Once", *model],
        ["compress", "text.txt", "-o", "small", *model],
        ["decompress", "small", "-o", "again.txt", *model],
        ["page", "-o", "page.html", *model],
        ["params", state_dict, *config],
        ["diagram", state_dict, *config],
        ["weights", "inspect", state_dict, *config],
        ["weights", "map", state_dict, *config],
        ["weights", "verify", state_dict, "--no-run", *config],
        ["weights", "convert", state_dict, "folder", "--to", "huggingface", *config],
    ):
        result = call(*words)
        assert result.returncode == 0, (words, result.stderr.decode())
    assert Path("again.txt").read_bytes() == Path("text.txt").read_bytes()
    assert json.loads(Path("folder/config.json").read_text())["n_head"] == 3
    for verb in (["serve"], ["bench"]):
        assert b"--config" in call(*verb, "--help").stdout


def test_weights_without_a_config_file_need_a_few_settings_only(tmp_path: Path) -> None:
    shutil.copy(locate("bundled") / "model.safetensors", tmp_path)
    assert weights.open(tmp_path, config={"n_heads": 7}).config == weights.open("bundled").config
    assert weights.open("bundled", config={"n_heads": 7}).config.n_heads == 7


def test_bundled_and_the_sizes_are_found_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr("clearhead.weights.location.hub.fetch", lambda name, revision: asked.append(name))
    monkeypatch.chdir(tmp_path)
    for name in ("124M", "gpt2-xl", "1558M", "owner/name"):
        locate(name)
    assert asked == ["gpt2", "gpt2-xl", "gpt2-xl", "owner/name"]
    assert clearhead.load("bundled").config == clearhead.load().config
    Path("bundled").mkdir()
    assert locate("bundled").name == "bundled" and locate("bundled").is_absolute()
    (Path("bundled") / "config.json").write_text("{}")
    assert locate("bundled") == Path("bundled")


def test_an_empty_folder_is_not_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    Path("openai-community/gpt2").mkdir(parents=True)
    assert not is_on_disk("openai-community/gpt2") and is_on_disk("./openai-community/gpt2")
    with pytest.raises(HubError, match="is empty, so it is taken for a name on the hub"):
        clearhead.load("openai-community/gpt2")
    with pytest.raises(WeightsError, match="holds nothing"):
        clearhead.load("./openai-community/gpt2")


def test_a_failed_download_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = call("weights", "fetch", "124M", "--mirror", "http://127.0.0.1:9/none")
    assert result.returncode == 2 and b"--mirror" in result.stderr
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert call("weights", "fetch", "355M", "some/where", "--from", "hub").returncode == 2
    assert not list(tmp_path.iterdir())
