"""Downloading from a hub, with the real client against a server on this machine."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hub_server import serving
from huggingface_hub import constants
from huggingface_hub.utils import _http
from test_weights_cli import call

from clearhead import weights
from clearhead.errors import ClearheadError, HubError, WeightsError
from clearhead.utils.locks import exclusive_lock
from clearhead.weights.hub.hub import quiet_hub

CLOSED = "http://127.0.0.1:9"  # the discard port: nothing listens there

Answers = list[dict[str, Any]]


def look(names: tuple[str, ...]) -> Answers:
    """What opening each model (`name` or `name@revision`) gave."""
    answers: Answers = []
    for text in names:
        name, _, revision = text.partition("@")
        try:
            source = weights.open(name, revision=revision or None)
            total = float(sum(np.abs(a).sum(dtype=float) for a in source.load().values()))
            files = sorted(path.name for path in source.folder.iterdir())
            answers.append({"layers": source.config.n_layers, "files": files, "sum": total})
        except ClearheadError as error:
            answers.append({"error": type(error).__name__, "text": str(error)})
    return answers


def fetch(home: Path, endpoint: str, *names: str, offline: bool = False) -> Answers:
    """The same with this cache and this hub, which the client otherwise takes from the environment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", endpoint)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
        patch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
        patch.setattr(constants, "HF_HUB_OFFLINE", offline)
        patch.chdir(home)
        if offline:
            patch.setenv("HF_HUB_OFFLINE", "1")
        return look(names)


def fetch_in_new_process(home: Path, endpoint: str, *names: str) -> tuple[Answers, str]:
    """The same as a user meets it, HF_ENDPOINT in the environment; and what stood on standard error."""
    script = "import json, sys, test_weights_hub as t; print(json.dumps(t.look(tuple(sys.argv[1:]))))"
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", script, *names],
        env={**inherited, "HF_HOME": str(home), "HF_ENDPOINT": endpoint, "PYTHONPATH": path},
        cwd=home,
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models as they are on the hub: one file, shards, an old one, one without weights."""
    root = tmp_path_factory.mktemp("models")
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=61, n_positions=16, n_embd=24, n_head=3, n_layer=2))
    found = {}
    for name in ("tiny", "owner/shards", "owner/old", "owner/empty"):
        folder = found[name] = root / name.replace("/", "-")
        model.save_pretrained(folder, max_shard_size="20KB" if name == "owner/shards" else "1GB")
        (folder / "README.md").write_text("not needed")
        (folder / "rust_model.ot").write_bytes(b"not needed")
        (folder / "merges.txt").write_text("#version: 0.2\n")
    import torch

    torch.save(model.state_dict(), found["owner/old"] / "pytorch_model.bin")
    (found["owner/old"] / "model.safetensors").unlink()
    (found["owner/empty"] / "model.safetensors").unlink()
    return found


def test_only_what_is_needed_is_fetched_and_then_kept(
    models: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with serving(models) as hub:
        one, shards, old = fetch(tmp_path, hub.url, "tiny", "owner/shards", "owner/old")
        for answer in (one, shards, old):
            assert answer["layers"] == 2
            assert answer["sum"] == pytest.approx(one["sum"])
        assert one["files"] == ["config.json", "generation_config.json", "merges.txt", "model.safetensors"]
        assert "pytorch_model.bin" in old["files"]
        assert len([name for name in shards["files"] if name.endswith(".safetensors")]) > 1
        assert not [request for request in hub.requests if "README" in request or "rust_model" in request]
        hub.requests.clear()
        assert fetch(tmp_path, hub.url, "tiny") == [one]
        assert not [request for request in hub.requests if "/resolve/" in request and request.startswith("GET")]
        hub.broken = True
        assert fetch(tmp_path, hub.url, "tiny") == [one]
    # From the cache: without the network, and with the network forbidden.
    assert fetch(tmp_path, CLOSED, "tiny", "owner/shards") == [one, shards]
    assert fetch(tmp_path, CLOSED, "tiny", offline=True) == [one]
    # The one thing said is that a download begins; nothing when it is there already.
    said = [line.partition(",")[0] for line in capfd.readouterr().err.splitlines()]
    assert said == ["Downloading tiny", "Downloading owner/shards", "Downloading owner/old"]


def test_what_the_hub_refuses(models: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with serving(models, gated=frozenset({"owner/gated"})) as hub:
        names = ("nosuch", "owner/gated", "tiny@v9", "owner/empty")
        answers = fetch(tmp_path, hub.url, *names)
        hub.broken = True
        (broken,) = fetch(tmp_path, hub.url, "tiny")
    expected = [
        ("HubError", "no visible model of that name"),
        ("HubError", "is gated"),
        ("HubError", "no branch, tag or commit 'v9'"),
        ("WeightsError", "has no model.safetensors"),
    ]
    for name, answer, (kind, words) in zip(names, answers, expected, strict=True):
        assert answer["error"] == kind, (name, answer)
        assert words in answer["text"]
        assert "\n" not in answer["text"]
    assert broken["error"] == "HubError"
    assert "status 503" in broken["text"]
    assert capfd.readouterr().err == ""


def test_without_a_network_one_sentence_and_soon(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    started = time.monotonic()
    (closed, path, folder, odd), noise = fetch_in_new_process(tmp_path, CLOSED, "gpt2", "./nowhere", "mine", "a name!")
    assert time.monotonic() - started < 60
    assert noise == ""
    assert closed["error"] == "HubError"
    assert "could not be reached" in closed["text"]
    assert "HF_ENDPOINT" in closed["text"]
    assert "local folder" in closed["text"]
    assert path["error"] == "WeightsError"
    assert "./nowhere does not exist" in path["text"]
    assert folder["error"] == "HubError"  # a folder wins over a hub name, but not an empty one
    assert "could not be reached" in folder["text"]
    assert odd["error"] == "WeightsError"
    assert "is not a valid name on the hub" in odd["text"]
    (offline,) = fetch(tmp_path, CLOSED, "gpt2", offline=True)
    assert "HF_HUB_OFFLINE" in offline["text"]


def test_waiting_for_the_hub_is_said_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The library tries a data set's files again for half a minute; its own log would say so several times."""
    waits: list[float] = []
    monkeypatch.setattr(_http, "time", SimpleNamespace(sleep=waits.append, time=time.time, monotonic=time.monotonic))
    monkeypatch.setattr(constants, "ENDPOINT", CLOSED)
    logger = logging.getLogger("huggingface_hub")
    before = logger.level, logger.handlers, logger.propagate
    for retries, expected in (1, ""), (5, f"no answer from {CLOSED} yet; trying again, for up to half a minute …\n"):
        with quiet_hub(), pytest.raises(Exception, match="refused"):
            _http.http_backoff("HEAD", CLOSED, max_retries=retries)
        assert capsys.readouterr().err == expected
    assert 20 < sum(waits) < 30 and before == (logger.level, logger.handlers, logger.propagate)


def test_the_environment_names_the_hub(models: dict[str, Path], tmp_path: Path) -> None:
    with serving(models) as hub:
        (answer,), noise = fetch_in_new_process(tmp_path, hub.url, "tiny")
    assert answer["layers"] == 2
    assert noise == f"Downloading tiny, 0 MB, from {hub.url} …\n"


def test_an_interrupted_download_is_not_taken_for_a_model(models: dict[str, Path], tmp_path: Path) -> None:
    with serving(models) as hub:
        fetch(tmp_path, hub.url, "owner/shards")
    next(path for path in tmp_path.rglob("model-00002-of-*.safetensors")).unlink()
    (answer,) = fetch(tmp_path, CLOSED, "owner/shards")
    assert answer["error"] in ("HubError", "WeightsError")
    with serving(models) as hub:
        (answer,) = fetch(tmp_path, hub.url, "owner/shards")
    assert answer["layers"] == 2


def test_a_released_size_is_fetched_by_its_name_on_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[str] = []

    def fetch(name: str, revision: str | None) -> Path:
        asked.append(name)
        return tmp_path

    monkeypatch.setattr(weights.hub.hub, "fetch", fetch)
    assert weights.locate("124M") == weights.locate("gpt2-xl") == tmp_path
    assert asked == ["gpt2", "gpt2-xl"]


class TestIntoAFolder:
    @pytest.fixture
    def here(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A cache of its own; where a hub is, `at` says."""
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.chdir(tmp_path)
        return tmp_path / "model"

    @staticmethod
    def at(patch: pytest.MonkeyPatch, url: str) -> None:
        patch.setattr(constants, "ENDPOINT", url)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")

    def test_all_files_and_nothing_twice(
        self, models: dict[str, Path], here: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with serving(models) as hub:
            self.at(monkeypatch, hub.url)
            assert weights.fetch_into("owner/shards", here) == here
            names = {path.name for path in here.iterdir()}
            assert names == {path.name for path in models["owner/shards"].iterdir()} - {"README.md", "rust_model.ot"}
            for name in names:
                assert (here / name).read_bytes() == (models["owner/shards"] / name).read_bytes()
            assert not (here.parent / "cache").exists()
            hub.requests.clear()
            weights.fetch_into("owner/shards", here)
            assert not [request for request in hub.requests if "/resolve/" in request]
            shard = next(here.glob("*.safetensors"))
            right = shard.read_bytes()
            shard.write_bytes(right[:-1] + b"x")
            weights.fetch_into("owner/shards", here)
            assert shard.read_bytes() == right

    @pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
    def test_a_wrong_file_never_takes_its_name(
        self, models: dict[str, Path], here: Path, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        with serving(models) as hub:
            self.at(monkeypatch, hub.url)
            right = (models["tiny"] / name).read_bytes()
            hub.wrong[name] = right[:-2] + b"!!"
            with pytest.raises(HubError, match=rf"^{name} of 'tiny' came from .* the wrong size or checksum"):
                weights.fetch_into("tiny", here)
            assert not (here / name).exists() and not (here / "model.safetensors").exists()
            hub.wrong.clear()
            weights.fetch_into("tiny", here)
            assert (here / name).read_bytes() == right
            assert not (here / ".fetching").exists()

    def test_what_cannot_be(self, models: dict[str, Path], here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with serving(models, gated=frozenset({"owner/gated"})) as hub:
            self.at(monkeypatch, hub.url)
            for name, words in (("owner/none", "no visible model of that name"), ("owner/gated", "is gated")):
                with pytest.raises(HubError, match=words):
                    weights.fetch_into(name, here)
            with pytest.raises(WeightsError, match=r"has no model\.safetensors"):
                weights.fetch_into("owner/empty", here)
            here.mkdir(exist_ok=True)
            with (
                exclusive_lock(here / ".fetching.lock"),
                pytest.raises(WeightsError, match="another process is downloading"),
            ):
                weights.fetch_into("tiny", here)
            (here.parent / "file").write_text("")
            with pytest.raises(WeightsError, match="could not be written"):
                weights.fetch_into("tiny", here.parent / "file" / "x")
        self.at(monkeypatch, CLOSED)
        with pytest.raises(HubError, match="could not be reached"):
            weights.fetch_into("tiny", here)

    def test_from_the_command_line(self, models: dict[str, Path], here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        with serving({"owner/small": models["tiny"], "gpt2-medium": models["tiny"]}) as hub:
            self.at(monkeypatch, hub.url)
            status, out, _ = call("fetch", "owner/small", "--from", "hub")
            total = sum(path.stat().st_size for path in Path("small").iterdir())
            assert (status, out.splitlines()[0]) == (0, f"small: 4 files, {total:,} bytes")
            assert call("fetch", "355M", "--from", "hub")[0] == 0 and Path("355M", "config.json").is_file()
            status, out, err = call("fetch", "owner/none", "--from", "hub")
            assert (status, out) == (2, "") and "no visible model of that name" in err
            assert call("fetch", "355M", "--from", "hub", "--mirror", "https://x")[0] == 2


@pytest.mark.parametrize(
    "evil",
    [
        "model-x/../../../../evil-1-of-1",
        "model-..\\..\\evil-1-of-1",
        "model-\x1b[2J-1-of-1",
        "model-" + "x" * 300 + "-1-of-1",
        "model-[a-z]*-1-of-1",
    ],
)
def test_a_file_name_that_leaves_the_folder_is_refused(models: dict[str, Path], tmp_path: Path, evil: str) -> None:
    with serving(models) as hub:
        hub.more_files = [evil]
        (answer,) = fetch(tmp_path, hub.url, "owner/shards")
        assert answer["error"] == "HubError" and "which Clearhead does not download" in answer["text"]
        assert "\x1b" not in answer["text"]
        assert not [request for request in hub.requests if "/resolve/" in request]
        hub.more_files = ["onnx/model.onnx", "../README.md", "\x1b[2J"]  # names that nobody needs do no harm
        (answer,) = fetch(tmp_path, hub.url, "owner/shards")
        assert answer["layers"] == 2
        (answer,) = fetch(tmp_path, hub.url, "owner/empty")
        assert "has no model.safetensors" in answer["text"] and "\x1b" not in answer["text"]


def test_a_page_to_sign_in_is_not_taken_for_the_hub(models: dict[str, Path], tmp_path: Path) -> None:
    with serving(models) as hub:
        for page in (b"<html><body>Sign in to the hotel network</body></html>", b"[]", b"{}", b"\x00\xff"):
            hub.portal = page
            (answer,) = fetch(tmp_path, hub.url, "tiny")
            assert answer["error"] in ("HubError", "WeightsError"), answer


@pytest.mark.parametrize("name", ["x" * 300, "owner/" + "y" * 5000, "a\0b", "~nobody-of-that-name/model"])
def test_names_that_no_path_can_have(name: str, tmp_path: Path) -> None:
    (answer,) = fetch(tmp_path, CLOSED, name)
    assert answer["error"] in ("HubError", "WeightsError") and len(answer["text"]) < 600
