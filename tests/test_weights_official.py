"""What is known of the published models, telling whether a model is one of them, and fetching them."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
import shutil
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from official_facts import official_tensors
from test_weights_cli import call

from clearhead import weights
from clearhead.config import RELEASED, GPTConfig
from clearhead.errors import ClearheadError, ConfigError, HubError, WeightsError
from clearhead.utils.locks import LockHeldError, exclusive_lock
from clearhead.weights.formats.tensorflow import CheckpointEntry, TensorFlowFile, index_bytes
from clearhead.weights.hub import download, official
from clearhead.weights.hub.official import Identity, Official, SmallFile, identify
from clearhead.weights.layouts import TABLE, axis_sizes, layout_tensors
from clearhead.weights.tensors import TensorInfo

FIXTURE = Path(__file__).parent / "fixtures" / "tf_plain"
DATA, INDEX = "model.ckpt.data-00000-of-00001", "model.ckpt.index"
SHAPE = GPTConfig(61, 16, 12, 3, 2, qkv_bias=True, tie_weights=True)


def test_the_facts_agree_with_the_shapes() -> None:
    released = official.released()
    assert released.keys() == RELEASED.keys()
    for size, known in released.items():
        assert known.config == RELEASED[size]
        sizes = axis_sizes(known.config)
        shapes = {
            piece.name: piece.shape(sizes)
            for row in TABLE
            for piece in layout_tensors(row, "openai", known.config.n_layers)
        }
        assert len(shapes) == known.n_tensors
        assert sum(TensorInfo(shape, "float32").nbytes for shape in shapes.values()) == known.data_bytes
        if known.tensors:
            assert {name: tensor.shape for name, tensor in known.tensors.items()} == shapes


def test_from_the_facts_openais_own_index_comes_out() -> None:
    known = official.released()["124M"]
    entries = {n: CheckpointEntry(TensorInfo(t.shape, "float32"), 0, t.offset, t.crc) for n, t in known.tensors.items()}
    assert len(entries) == 148
    index = index_bytes(entries)
    assert len(index) == known.index_bytes == 5215
    assert hashlib.sha256(index).hexdigest() == known.index_sha256
    assert sum(tensor.nbytes for tensor in known.tensors.values()) == known.data_bytes
    # Of the 355M the checksums are not known, but how long its index is.
    medium = official.released()["355M"]
    sizes, offset, entries = axis_sizes(medium.config), 0, {}
    found = {p.name: p.shape(sizes) for row in TABLE for p in layout_tensors(row, "openai", medium.config.n_layers)}
    for name in sorted(found):
        entries[name] = CheckpointEntry(TensorInfo(found[name], "float32"), 0, offset, 0)
        offset += entries[name].info.nbytes
    assert len(index_bytes(entries)) == medium.index_bytes


def facts_of(folder: Path) -> Official:
    """What would be known of the model in a folder, had OpenAI published it."""
    tensors = official_tensors(folder)
    index = (folder / INDEX).read_bytes()
    return Official(
        "124M",
        dataclasses.replace(weights.open(folder).config, drop_rate=0.1),
        len(tensors),
        sum(tensor.nbytes for tensor in tensors.values()),
        len(index),
        hashlib.sha256(index).hexdigest(),
        hashlib.sha256((folder / DATA).read_bytes()).hexdigest(),
        tensors,
    )


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> Official:
    """The small checkpoint that TensorFlow wrote, as if it were the 124M."""
    facts = facts_of(FIXTURE)
    for module in (official, download):
        monkeypatch.setattr(module, "released", lambda: {"124M": facts})
    return facts


class TestIdentify:
    def test_the_published_weights_in_every_form(self, known: Official, tmp_path: Path) -> None:
        source = weights.open(FIXTURE)
        weights.save_huggingface(tmp_path / "hf", source.config, source.lazy())
        weights.save_openai(tmp_path / "tf", source.config, source.lazy())
        for folder in (FIXTURE, FIXTURE.parent / "tf_trained", tmp_path / "hf", tmp_path / "tf"):
            found = identify(weights.open(folder))
            assert found == Identity("124M", "official", (), 28, ("float32",)), folder
            assert found.is_official
        assert str(found) == "These are, bit for bit, the weights that OpenAI published as 124M."

    def test_one_bit_changed(self, known: Official, tmp_path: Path) -> None:
        source = weights.open(FIXTURE)
        tensors = source.load()
        changed = tensors["blocks.1.feed_forward.up.weight"]
        changed.view(np.uint32)[3, 4] ^= 1
        weights.save_huggingface(tmp_path, source.config, tensors)
        found = identify(weights.open(tmp_path))
        assert (found.verdict, found.differing) == ("different", ("model/h1/mlp/c_fc/w",))
        assert "1 of its 28 tensors differs from the published ones: model/h1/mlp/c_fc/w." in str(found)

    def test_stored_with_fewer_digits(self, known: Official, tmp_path: Path) -> None:
        source = weights.open(FIXTURE)
        weights.save_huggingface(tmp_path, source.config, source.lazy(), dtype="bfloat16")
        found = identify(weights.open(tmp_path))
        assert len(found.differing) == 28
        assert "all of its 28 tensors" in str(found)
        assert "stored as bfloat16" in str(found)

    def test_by_the_digest_of_the_whole_file(
        self, known: Official, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(official, "released", lambda: {"355M": dataclasses.replace(known, size="355M", tensors={})})
        source = weights.open(FIXTURE)
        tensors = source.load()
        weights.save_huggingface(tmp_path, source.config, tensors)
        assert identify(weights.open(tmp_path)).is_official
        tensors["final_norm.bias"][0] += 1
        weights.save_huggingface(tmp_path, source.config, tensors)
        found = identify(weights.open(tmp_path))
        assert (found.verdict, found.differing) == ("different", ())
        assert str(found).endswith("its values differ from the published ones.")

    def test_what_cannot_be_told(self, known: Official, monkeypatch: pytest.MonkeyPatch) -> None:
        source = weights.open(FIXTURE)
        assert identify(dataclasses.replace(source, config=SHAPE.replace(n_heads=2))).size is None
        blank = dataclasses.replace(known, tensors={}, data_sha256=None)
        monkeypatch.setattr(official, "released", lambda: {"124M": blank})
        found = identify(source)
        assert (found.size, found.verdict) == ("124M", "unknown")
        assert "whose checksums" in str(found)


class Server(ThreadingHTTPServer):
    """Serves a folder under /models, and misbehaves as it is told.

    Attributes:
        cut: after how many bytes of each answer for the data file to break the connection.
        ranges: whether Range is heeded.
        wrong: what to give in place of a file, by its name: a status, or other bytes.
        requests: every request so far, as `name from-byte`.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.root = root
        self.cut: int | None = None
        self.ranges = True
        self.wrong: dict[str, int | bytes] = {}
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        """The address to give as a mirror."""
        return f"http://127.0.0.1:{self.server_port}/models"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing."""


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""

    def do_GET(self) -> None:
        match = re.fullmatch(r"/models/124M/([\w.-]+)", self.path)
        name = match[1] if match else ""
        where = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        begin = int(where[1]) if where else 0
        self.server.requests.append(f"{name} {begin}")
        wrong = self.server.wrong.get(name)
        path = self.server.root / name
        if isinstance(wrong, int) or not path.is_file():
            self.reply(wrong if isinstance(wrong, int) else 404, b"no", "text/plain", {})
            return
        data = wrong if isinstance(wrong, bytes) else path.read_bytes()
        kind = "text/html" if data.startswith(b"<") else "application/octet-stream"
        if where and self.server.ranges:
            if begin >= len(data):
                self.reply(416, b"", kind, {"Content-Range": f"bytes */{len(data)}"})
            else:
                there = {"Content-Range": f"bytes {begin}-{len(data) - 1}/{len(data)}"}
                self.reply(206, data[begin:], kind, there, name)
        else:
            self.reply(200, data, kind, {}, name)

    def reply(self, status: int, body: bytes, kind: str, headers: dict[str, str], name: str = "") -> None:
        self.send_response(status)
        for key, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if name == DATA and self.server.cut is not None and len(body) > self.server.cut:
            self.wfile.write(body[: self.server.cut])
            self.wfile.flush()
            self.close_connection = True
            # A reset on odd requests, an early end on even ones: both are met in the wild.
            if len(self.server.requests) % 2:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return
        self.wfile.write(body)


@pytest.fixture
def server(known: Official, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A mirror with the small checkpoint as the 124M."""
    root = tmp_path / "served"
    source = weights.open(FIXTURE)
    weights.save_openai(root, source.config, source.lazy())
    small = {}
    for name in ("encoder.json", "vocab.bpe"):
        content = f"{name} of the test".encode()
        (root / name).write_bytes(content)
        small[name] = SmallFile(len(content), hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(download, "tokenizer_files", lambda: small)
    monkeypatch.setattr(download, "_PAUSE", 0.0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    one = Server(root)
    thread = threading.Thread(target=functools.partial(one.serve_forever, poll_interval=0.02), daemon=True)
    thread.start()
    yield one
    one.shutdown()
    one.server_close()
    thread.join()


def assert_complete(folder: Path, server: Server) -> None:
    assert {path.name for path in folder.iterdir()} == {path.name for path in server.root.iterdir()}
    for path in folder.iterdir():
        assert path.read_bytes() == (server.root / path.name).read_bytes()
    assert identify(weights.open(folder)).is_official


class TestFetch:
    def test_all_files_and_nothing_twice(self, server: Server, tmp_path: Path) -> None:
        folder = weights.fetch_openai("124M", tmp_path / "out", [server.url])
        assert folder == tmp_path / "out"
        assert_complete(folder, server)
        assert len(server.requests) == 6
        weights.fetch_openai("gpt2", str(folder), [server.url + "/"])
        assert len(server.requests) == 6
        (folder / INDEX).write_bytes(b"damaged")
        (folder / "hparams.json").unlink()
        weights.fetch_openai("124M", folder, [server.url])
        assert_complete(folder, server)
        assert [request.split()[0] for request in server.requests[6:]] == ["hparams.json", INDEX]

    def test_it_goes_on_where_the_connection_broke(self, server: Server, tmp_path: Path) -> None:
        server.cut = 5000
        assert_complete(weights.fetch_openai("124M", tmp_path / "out", [server.url]), server)
        begins = [int(request.split()[1]) for request in server.requests if DATA in request]
        assert begins == [0, 5000, 10000, 15000]

    def test_it_goes_on_after_the_program_was_stopped(self, server: Server, tmp_path: Path) -> None:
        folder = tmp_path / "out"
        folder.mkdir()
        data = (server.root / DATA).read_bytes()
        (folder / f"{DATA}.part").write_bytes(data[:7000])
        assert_complete(weights.fetch_openai("124M", folder, [server.url]), server)
        assert f"{DATA} 7000" in server.requests

    def test_a_server_without_ranges(self, server: Server, tmp_path: Path) -> None:
        folder = tmp_path / "out"
        folder.mkdir()
        server.ranges = False
        (folder / f"{DATA}.part").write_bytes(b"x" * 7000)
        assert_complete(weights.fetch_openai("124M", folder, [server.url]), server)

    @pytest.mark.parametrize("size", [7000, None, 10**5])
    def test_a_part_that_is_wrong(self, server: Server, tmp_path: Path, size: int | None) -> None:
        folder = tmp_path / "out"
        folder.mkdir()
        (folder / f"{DATA}.part").write_bytes(b"x" * (size or (server.root / DATA).stat().st_size))
        (folder / "checkpoint.part").write_bytes((server.root / "checkpoint").read_bytes())
        assert_complete(weights.fetch_openai("124M", folder, [server.url]), server)

    @pytest.mark.parametrize(
        ("name", "wrong", "words"),
        [
            (DATA, 404, "answered with status 404"),
            (DATA, 503, "answered with status 503"),
            (DATA, b"<html>Sign in to the hotel network</html>", "(it is a web page) instead of 18,864"),
            (DATA, bytes(18864), "served something else"),
            (DATA, b"short", "served 5 bytes instead of 18,864"),
            (INDEX, b"x" * 2000, "served 2,000 bytes instead"),
            ("hparams.json", b"<!doctype html>", "web page"),
            ("hparams.json", json.dumps({"n_vocab": 5}).encode(), "lacks n_ctx"),
            ("hparams.json", b"\0" * 3_000_000, "instead of at most 1,048,576"),
            ("encoder.json", b"encoder.json of no one.", "served 23 bytes instead of 24"),
            ("vocab.bpe", b"vocab.bpe of the tesT", "SHA-256"),
            ("checkpoint", b"Entry not found", "does not name model.ckpt"),
        ],
    )
    def test_a_bad_mirror_is_passed_over_and_named(
        self, server: Server, tmp_path: Path, name: str, wrong: int | bytes, words: str
    ) -> None:
        bad = Server(server.root)
        bad.wrong[name] = wrong
        threading.Thread(target=functools.partial(bad.serve_forever, poll_interval=0.02), daemon=True).start()
        try:
            assert_complete(weights.fetch_openai("124M", tmp_path / "out", [bad.url, server.url]), server)
            with pytest.raises(HubError) as caught:
                weights.fetch_openai("124M", tmp_path / "alone", [bad.url])
        finally:
            bad.shutdown()
            bad.server_close()
        text = str(caught.value)
        assert f"{name} could not be downloaded: {bad.url}/124M/{name} " in text
        assert words in text
        assert "\n" not in text
        assert not (tmp_path / "alone" / name).exists()
        assert not list((tmp_path / "alone").glob("*.part"))

    def test_nobody_there(self, server: Server, tmp_path: Path) -> None:
        with pytest.raises(HubError, match=r"hparams\.json could not be downloaded: .*could not be reached.*--mirror"):
            weights.fetch_openai("124M", tmp_path / "out", ["http://127.0.0.1:9/models"])
        assert not (tmp_path / "out").exists()
        server.cut = 0
        with pytest.raises(HubError, match="broke off at 0 bytes"):
            weights.fetch_openai("124M", tmp_path / "out", [server.url])
        shutil.copy(server.root / INDEX, tmp_path / "x")
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / f"{DATA}.part").write_bytes((server.root / DATA).read_bytes()[:100])
        with pytest.raises(HubError, match=r"100 bytes are kept: try again to continue\.$"):
            weights.fetch_openai("124M", tmp_path / "out", [server.url])

    def test_a_proxy_is_heeded(self, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("no_proxy")
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(HubError, match="status 404"):
            weights.fetch_openai("124M", tmp_path, ["http://mirror.invalid/models"])
        assert len(server.requests) == 1  # it came here, and not to mirror.invalid

    def test_what_the_user_gets_wrong(self, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(ConfigError, match="no GPT-2 size '125M'"):
            weights.fetch_openai("125M", tmp_path)
        with pytest.raises(WeightsError, match="'ftp://x' is not an address"):
            weights.fetch_openai("124M", tmp_path, ["ftp://x"])
        (tmp_path / "file").write_text("")
        with pytest.raises(ClearheadError, match="could not be written"):
            weights.fetch_openai("124M", tmp_path / "file" / "out", [server.url])
        full = type(shutil.disk_usage(tmp_path))(9, 9, 0)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
        with pytest.raises(WeightsError, match="space for 0 MB"):
            weights.fetch_openai("124M", tmp_path / "out", [server.url])


class TestCommand:
    def test_files_are_fetched_and_identified(
        self, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        server.cut = 5000
        status, out, err = call("fetch", "gpt2", "--mirror", "http://127.0.0.1:9/none", "--mirror", server.url)
        total = sum(path.stat().st_size for path in server.root.iterdir())
        assert (status, err) == (0, "")
        assert out.splitlines() == [
            f"124M: 6 files, {total:,} bytes",
            "These are, bit for bit, the weights that OpenAI published as 124M.",
        ]
        assert_complete(tmp_path / "124M", server)
        assert [int(request.split()[1]) for request in server.requests if DATA in request] == [0, 5000, 10000, 15000]

    def test_a_stopped_download_goes_on_and_a_wrong_one_is_refused(self, server: Server, tmp_path: Path) -> None:
        folder = tmp_path / "out"
        folder.mkdir()
        data = (server.root / DATA).read_bytes()
        (folder / f"{DATA}.part").write_bytes(data[:7000])
        server.wrong[DATA] = data[:-1] + bytes([data[-1] ^ 1])
        status, out, err = call("fetch", "124M", folder, "--mirror", server.url)
        assert (status, out) == (2, "") and "served something else" in err and len(err.splitlines()) == 1
        assert not list(folder.glob(f"{DATA}*"))
        server.wrong.clear()
        assert call("fetch", "124M", folder, "--mirror", server.url)[0] == 0
        assert_complete(folder, server)

    def test_one_at_a_time(self, server: Server, tmp_path: Path) -> None:
        folder = tmp_path / "out"
        folder.mkdir()
        with exclusive_lock(folder / ".fetching.lock"):
            status, _, err = call("fetch", "124M", folder, "--mirror", server.url)
            assert status == 2 and "another process is downloading" in err
            assert server.requests == []
        assert call("fetch", "124M", folder, "--mirror", server.url)[0] == 0
        assert_complete(folder, server)  # and no lock is left

    def test_a_killed_process_leaves_no_lock(self, tmp_path: Path) -> None:
        lock = tmp_path / ".fetching.lock"
        script = "import sys, time; from clearhead.utils.locks import exclusive_lock\n"
        script += "with exclusive_lock(sys.argv[1]): print('held', flush=True); time.sleep(60)"
        with subprocess.Popen([sys.executable, "-c", script, lock], stdout=subprocess.PIPE) as other:
            assert other.stdout is not None and other.stdout.readline() == b"held\n"
            with pytest.raises(LockHeldError), exclusive_lock(lock):
                pass
            other.kill()
        with exclusive_lock(lock):
            pass

    @pytest.mark.parametrize(
        ("args", "words"),
        [
            (("125M",), "there is no GPT-2 size '125M'.*--from hub"),
            (("124M", "x", "--mirror", "ftp://x"), "'ftp://x' is not an address"),
            (("124M", "x", "--mirror", "http://127.0.0.1:9/"), "hparams.json could not be downloaded"),
        ],
    )
    def test_bad_input(
        self, server: Server, tmp_path: Path, monkeypatch: Any, args: tuple[str, ...], words: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        status, out, err = call("fetch", *args)
        assert (status, out) == (2, "") and re.search(words, err) and len(err.splitlines()) == 1, err


def test_a_data_file_longer_than_its_index_says_is_remarked(tmp_path: Path) -> None:
    for name in (INDEX, DATA, "hparams.json"):
        shutil.copy(FIXTURE / name, tmp_path)
    assert weights.open(tmp_path).notes == ()
    with (tmp_path / DATA).open("ab") as file:
        file.write(b"12345")
    source = weights.open(tmp_path)
    assert len(source.notes) == 1 and "5 bytes follow the last tensor" in source.notes[0]
    np.testing.assert_array_equal(source.read("model/wte"), weights.open(FIXTURE).read("model/wte"))


def test_data_can_be_elsewhere_than_its_index(tmp_path: Path) -> None:
    shutil.copy(FIXTURE / INDEX, tmp_path / "a.index")
    shutil.copy(FIXTURE / DATA, tmp_path / "b.part")
    TensorFlowFile(tmp_path / "a.index", shards=[tmp_path / "b.part"]).verify()
    (tmp_path / "b.part").write_bytes((tmp_path / "b.part").read_bytes()[:-1] + b"\xff")
    with pytest.raises(WeightsError, match=r"b\.part: 'model/wte' does not"):
        TensorFlowFile(tmp_path / "a.index", shards=[tmp_path / "b.part"]).verify()
