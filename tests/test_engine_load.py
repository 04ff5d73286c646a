"""Loading a model into the engine: what is kept on disk, what is said, and what is refused."""

from __future__ import annotations

import contextlib
import copy
import errno
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import clearhead
from clearhead import weights
from clearhead.config import GPTConfig
from clearhead.engine import building, store
from clearhead.engine.dtypes import DTYPES
from clearhead.engine.runner import EngineRunner
from clearhead.engine.variants import VARIANTS, runnable
from clearhead.errors import InputError
from clearhead.gpt import GPT
from clearhead.loading import bundled
from clearhead.model import GPTModel
from clearhead.utils import system
from clearhead.utils.system import usable_cores
from clearhead.weights.formats.safetensors import SafetensorsFile, write_safetensors

CONFIG = GPTConfig(vocab_size=101, context_length=40, emb_dim=48, n_heads=3, n_layers=2, qkv_bias=True)
_OUTSIDE = dict(os.environ)
IDS = [int(i) for i in np.random.default_rng(3).integers(0, 101, 30)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    made = tmp_path_factory.mktemp("model")
    GPT(GPTModel(CONFIG)).save(made)
    return made


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Kept weights go to a folder of the test's own. Compiled code was placed when the engine was imported."""
    monkeypatch.setenv("CLEARHEAD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "weights"


def _logits(gpt: GPT) -> np.ndarray:
    return gpt.runner.logits(IDS)


def test_a_cpu_takes_the_engine_and_the_rest_takes_pytorch(folder: Path) -> None:
    gpt, reference = clearhead.load(folder), clearhead.load(folder, backend="torch")
    assert isinstance(gpt.runner, EngineRunner)
    assert not isinstance(reference.runner, EngineRunner)
    assert np.abs(_logits(gpt) - _logits(reference)).max() < 1e-4
    assert not isinstance(clearhead.load(folder, dtype="float16").runner, EngineRunner)


def test_one_seed_gives_one_text_on_both(folder: Path) -> None:
    options: dict[str, Any] = {"max_new_tokens": 60, "seed": 5, "temperature": 1.0}
    on_engine = clearhead.load(folder).generate(IDS[:4], **options)
    on_torch = clearhead.load(folder, backend="torch").generate(IDS[:4], **options)
    assert on_engine.ids == on_torch.ids
    greedy = [
        clearhead.load(folder, backend=name).generate(IDS[:4], max_new_tokens=64, temperature=0)
        for name in ("engine", "torch")
    ]
    assert greedy[0].ids == greedy[1].ids


def test_the_bundled_model_writes_greedily_what_pytorch_writes() -> None:
    texts = [
        clearhead.load(backend=name).generate("One day, a little girl", max_new_tokens=64, temperature=0).text
        for name in ("engine", "torch")
    ]
    assert texts[0] == texts[1]


def test_the_network_is_there_when_it_is_asked_for(folder: Path) -> None:
    gpt = clearhead.load(folder)
    expected = clearhead.load(folder, backend="torch").model.state_dict()
    for name, tensor in gpt.model.state_dict().items():
        assert torch.equal(tensor, expected[name])
    assert gpt.model is gpt.model


def test_a_network_that_was_made_in_inference_mode_is_one_like_any_other(folder: Path) -> None:
    gpt = clearhead.load(folder)
    with torch.inference_mode():
        before = gpt.model(torch.tensor([IDS]))[0, -1]
        copied = copy.deepcopy(gpt)
        assert torch.equal(copied.model(torch.tensor([IDS]))[0, -1], before)
    np.testing.assert_allclose(gpt.runner.logits(IDS)[-1], before, atol=1e-4)
    with torch.no_grad():
        gpt.model.final_norm.weight.mul_(2)
    np.testing.assert_allclose(gpt.runner.logits(IDS)[-1], gpt.model(torch.tensor([IDS]))[0, -1].detach(), atol=1e-4)
    assert np.abs(gpt.runner.logits(IDS)[-1] - before.numpy()).max() > 0.01


def test_weights_are_kept_and_mapped_again(folder: Path, cache: Path) -> None:
    first = _logits(clearhead.load(folder, dtype="int8"))
    (kept,) = cache.iterdir()
    made = kept.stat()
    assert (_logits(clearhead.load(folder, dtype="int8")) == first).all()
    assert kept.stat().st_mtime_ns == made.st_mtime_ns


def test_float32_is_kept_too(folder: Path, cache: Path) -> None:
    first = _logits(clearhead.load(folder))
    (kept,) = cache.iterdir()
    made = kept.stat()
    assert (_logits(clearhead.load(folder)) == first).all()
    assert kept.stat().st_mtime_ns == made.st_mtime_ns


def test_the_longest_unused_weights_make_room(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {}
    for dtype in ("int8", "int4", "bfloat16"):
        before = set(cache.glob("*"))
        clearhead.load(folder, dtype=dtype)
        (new,) = set(cache.iterdir()) - before
        sizes[dtype] = (new, new.stat().st_size)
    clearhead.load(folder, dtype="int8")  # so int4 is the one that was not used for the longest time
    taken = sum(size for _, size in sizes.values())
    # Free space such that a tenth of it and of what is taken holds float32 and all but int4.
    most = taken - sizes["int4"][1] + building.size(CONFIG, "float32") + 1000
    usage = shutil.disk_usage(cache)._replace(free=10 * most - taken)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    clearhead.load(folder, dtype="float32")
    assert not sizes["int4"][0].exists()
    assert sizes["int8"][0].exists()
    assert len(list(cache.iterdir())) == 3


def test_a_disk_with_little_room_keeps_nothing(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = shutil.disk_usage(folder)._replace(free=100_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(system._Reported, "lost_cache", False)
    for _ in range(2):
        assert np.isfinite(_logits(clearhead.load(folder))).all()
    assert list(cache.iterdir()) == []
    assert capsys.readouterr().err.count("are more than a tenth of the free space), so every run") == 1


def test_kept_weights_that_are_cut_short_are_made_anew(
    folder: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = _logits(clearhead.load(folder, dtype="int4"))
    (kept,) = cache.iterdir()
    whole = kept.read_bytes()
    kept.write_bytes(whole[:-100])
    assert (_logits(clearhead.load(folder, dtype="int4")) == first).all()
    assert "made anew" in capsys.readouterr().err
    assert kept.read_bytes() == whole


def test_kept_weights_of_a_model_that_changed_are_made_anew(tmp_path: Path, cache: Path) -> None:
    torch.manual_seed(2)
    GPT(GPTModel(CONFIG)).save(tmp_path / "model")
    before = _logits(clearhead.load(tmp_path / "model", dtype="bfloat16"))
    torch.manual_seed(3)
    GPT(GPTModel(CONFIG)).save(tmp_path / "model")
    after = _logits(clearhead.load(tmp_path / "model", dtype="bfloat16"))
    assert (before != after).any()
    assert len(list(cache.iterdir())) == 1


def test_kept_weights_of_a_model_changed_in_place_are_made_anew(tmp_path: Path) -> None:
    """The same path, size and modification time prove nothing."""
    torch.manual_seed(2)
    GPT(GPTModel(CONFIG)).save(tmp_path / "model")
    before = _logits(clearhead.load(tmp_path / "model"))
    file = tmp_path / "model" / "model.safetensors"
    stat = file.stat()
    torch.manual_seed(3)
    GPT(GPTModel(CONFIG)).save(tmp_path / "other")
    with file.open("r+b") as target:
        target.write((tmp_path / "other" / "model.safetensors").read_bytes())
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert file.stat().st_size == stat.st_size
    after = _logits(clearhead.load(tmp_path / "model"))
    assert (before != after).any()
    assert (after == _logits(clearhead.load(tmp_path / "other"))).all()


def test_kept_weights_with_flipped_bits_are_made_anew(
    folder: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = _logits(clearhead.load(folder, dtype="int8"))
    (kept,) = cache.iterdir()
    data = bytearray(kept.read_bytes())
    data[len(data) // 2] ^= 1
    kept.write_bytes(data)
    assert (_logits(clearhead.load(folder, dtype="int8")) == first).all()
    assert "is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["checksums", "made_from", "settings"])
@pytest.mark.parametrize("text", ["[]", '"x"', "[" * 2000, "[1, [[Infinity]]]", ""])
def test_kept_weights_with_another_record_are_made_anew(folder: Path, cache: Path, key: str, text: str) -> None:
    first = _logits(clearhead.load(folder, dtype="int8"))
    (kept,) = cache.iterdir()
    file = SafetensorsFile(kept)
    arrays = {name: file.read(name).copy() for name in file.tensors}
    write_safetensors(kept, file.tensors, arrays.items(), {**file.metadata, key: text})
    assert (_logits(clearhead.load(folder, dtype="int8")) == first).all()
    anew = SafetensorsFile(kept)
    assert anew.metadata[key] != text and anew.metadata["checksums"] == file.metadata["checksums"]


def test_a_cache_that_cannot_be_written_is_said_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("CLEARHEAD_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(system._Reported, "lost_cache", False)
    for _ in range(2):
        assert np.isfinite(_logits(clearhead.load(folder, dtype="int8"))).all()
    assert capsys.readouterr().err.count(f"cannot be kept in {tmp_path / 'file'} (") == 1


def test_weights_in_a_folder_that_cannot_be_read_are_packed_again(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = _logits(clearhead.load(folder, dtype="int8"))

    is_file = Path.is_file

    def refuse(path: Path) -> bool:
        if path.parent == cache:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return is_file(path)

    monkeypatch.setattr(system._Reported, "lost_cache", False)
    monkeypatch.setattr(Path, "is_file", refuse)
    assert (_logits(clearhead.load(folder, dtype="int8")) == first).all()
    assert "packed weights cannot be kept in" in capsys.readouterr().err


SMALL = """
from clearhead.utils.jit import entry
from clearhead.utils.machine_code import compile_notice


@entry
def double(x):
    return 2 * x


@entry
def half(x):
    return x / 2


with compile_notice("Compiling"):
    doubled = double(4)
with compile_notice("Compiling"):
    print(doubled, half(4.0))
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has neither this limit nor these permissions")
@pytest.mark.parametrize("loss", ["full", "unreadable", "another user's", "small disk"])
def test_code_that_cannot_be_kept_runs_and_that_is_said_once(tmp_path: Path, loss: str) -> None:
    """A process that may write no byte to any file stands for a full disk."""
    import resource

    command = [sys.executable, "-B", str(tmp_path / "small.py")]
    if loss in ("another user's", "small disk") and os.geteuid() != 0:
        pytest.skip("only root can make such a folder")
    if (
        loss in ("unreadable", "another user's") and os.geteuid() == 0
    ):  # root reads every folder, unless it gives up that right
        if shutil.which("setpriv") is None:
            pytest.skip("setpriv is not installed")
        command = ["setpriv", "--bounding-set=-all", *command]
    cache = tmp_path / "cache"
    cache.mkdir(mode=0o000 if loss == "unreadable" else 0o755)
    (tmp_path / "small.py").write_text(SMALL)
    with contextlib.ExitStack() as stack:
        if loss == "another user's":
            os.chown(cache, 54321, 54321)
        if loss == "small disk":
            if subprocess.run(
                ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", cache], capture_output=True
            ).returncode:
                pytest.skip("nothing can be mounted here")
            stack.callback(lambda: subprocess.check_call(["umount", cache]))
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            env={**os.environ, "CLEARHEAD_CACHE": str(cache)},
            preexec_fn=(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))) if loss == "full" else None,
        )
    reason = {"full": "File too large", "small disk": "No space left on device"}.get(loss, "Permission denied")
    assert (done.returncode, done.stdout) == (0, "8 2.0\n"), done.stderr
    assert done.stderr.count("compiled code cannot be kept in") == done.stderr.count(f"({reason})") == 1, done.stderr
    assert done.stderr.count("Compiling") == 1, done.stderr


def test_more_threads_than_cores_are_warned_of(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cores = usable_cores()
    gpt = clearhead.load(folder, threads=cores + 1)
    assert f"{cores + 1} threads were asked for" in capsys.readouterr().err
    assert (_logits(gpt) == _logits(clearhead.load(folder, threads=1))).all()


def test_the_usual_variable_sets_the_threads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for value, expected in (("1", 1), ("1000", usable_cores()), ("", usable_cores()), ("²", usable_cores())):
        monkeypatch.setenv("OMP_NUM_THREADS", value)
        runner = clearhead.load(folder).runner
        assert isinstance(runner, EngineRunner)
        assert runner.threads == expected


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"threads": 0}, "threads is 0"),
        ({"dtype": "int3"}, "dtype is 'int3'"),
        ({"dtype": "int8", "backend": "torch"}, "backend torch.* float32, bfloat16, float16"),
        ({"dtype": "float16", "backend": "engine"}, "backend engine.* int8, int4"),
        ({"backend": "engine", "device": "cuda"}, "engine runs on the CPU"),
        ({"dtype": "int8", "activations": "4bit"}, "activations is '4bit'; give 8bit or 16bit"),
        ({"activations": "8bit", "backend": "torch"}, "settings of the engine"),
        ({"cache_tokens": 10}, "cache_tokens is 10, and one sequence may have 40"),
        ({"backend": "fast"}, "backends are auto, engine, torch"),
    ],
)
def test_what_cannot_be_had_is_refused(folder: Path, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        clearhead.load(folder, **options)


def test_too_little_memory_is_said_before_anything_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "free_memory", lambda: 1_000_000)
    with pytest.raises(InputError, match="1 MB are free; take a smaller dtype"):
        clearhead.load(folder)


def test_several_threads_may_call_one_runner(folder: Path) -> None:
    runner = clearhead.load(folder).runner
    alone = runner.logits(IDS)[-1]
    found: list[np.ndarray] = []

    def one() -> None:
        for _ in range(20):
            slot = runner.open()
            found.append(runner.extend([(slot, IDS)])[0])
            runner.close(slot)

    callers = [threading.Thread(target=one) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(found) == 80
    assert all((logits == alone).all() for logits in found)


_SCRIPT = """
import sys
import numpy as np
import clearhead
gpt = clearhead.load(sys.argv[1], dtype=sys.argv[2])
ids = list(range(1, 38))
logits = gpt.runner.logits(ids)
slot = gpt.runner.open()
assert all((gpt.runner.extend([(slot, [id])])[0] == row).all() for id, row in zip(ids, logits))
np.save(sys.argv[3], logits)
print("torch" in sys.modules)
"""


def _run(folder: Path, dtype: str, **environment: str) -> tuple[np.ndarray, str, str]:
    """Run a model in a process of its own: its logits, and both streams."""
    result = folder / "logits.npy"
    made = subprocess.run(
        [sys.executable, "-c", _SCRIPT, str(folder), dtype, str(result)],
        env=_OUTSIDE | environment,  # where the compiled code is kept already
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0, made.stderr
    return np.load(result), made.stdout, made.stderr


def test_the_engine_imports_no_torch(folder: Path) -> None:
    assert _run(folder, "float32")[1] == "False\n"


_SCORES = """
import resource, sys
import clearhead
from clearhead.inference.runner import ScoreTask

runner = clearhead.load(sys.argv[1]).runner
ids = [i % 1000 for i in range(1025)]
slot = runner.open()
runner.extend([(slot, ids[:1024])])
runner.close(slot)
peaks = []
for _ in range(2):
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    slot = runner.open()
    runner.score([ScoreTask(slot, ids[:-1], ids[1:])])
print((peaks[1] - peaks[0]) * (1 if sys.platform == "darwin" else 1024))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no resource module")
def test_scoring_a_long_text_takes_little_memory(tmp_path: Path) -> None:
    """The logits of 1,024 tokens would be 206 MB."""
    config = GPTConfig(vocab_size=50257, context_length=1024, emb_dim=16, n_heads=1, n_layers=1)
    GPT(GPTModel(config)).save(tmp_path / "model")
    command = [sys.executable, "-c", _SCORES, str(tmp_path / "model")]
    done = subprocess.run(command, env=_OUTSIDE, capture_output=True, text=True)
    assert int(done.stdout) < 20_000_000, done.stderr


def _variants_and_dtypes() -> list[tuple[str, str]]:
    """Return what this CPU can run, without what two variants compile alike; a part unless TEST_KERNELS is all."""
    found = []
    for index, variant in enumerate(runnable()):
        alike = any(
            other._replace(name=variant.name, features=variant.features, bfloat16=variant.bfloat16) == variant
            for other in runnable()[:index]
        )
        found += [(variant.name, dtype) for dtype in DTYPES if dtype == "bfloat16" or not alike]
    found += [("no features", dtype) for dtype in DTYPES]
    if os.environ.get("TEST_KERNELS") == "all":
        return found
    # Each takes half a minute to compile: all dtypes of the most common other CPU, one of each further variant.
    every = ("avx2", "neon")
    one = {name: dtype for name, dtype in found if name not in (*every, runnable()[0].name)}
    return [(name, dtype) for name, dtype in found if name in every or one.get(name) == dtype]


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "dtype"), _variants_and_dtypes())
def test_every_variant_that_this_cpu_can_run(folder: Path, variant: str, dtype: Any) -> None:
    """Token by token gives the bits of the whole text, and all variants agree to rounding."""
    environment = {"NUMBA_CPU_NAME": "generic"} if variant == "no features" else {"CLEARHEAD_KERNELS": variant}
    # 8-bit activations have weights of their own: outlier channels are evened out before they are rounded.
    activations: Any = next((one.activations for one in VARIANTS if one.name == variant), VARIANTS[-1].activations)
    expected = _logits_of(clearhead.load(folder, dtype=dtype, activations=activations))
    error = np.abs(_run(folder, dtype, **environment)[0] - expected)
    assert error.max() < (1e-5 if dtype == "float32" else 0.3 * expected.std())
    # int4 is fitted to a text that is sampled from the model, and a variant's rounding can change a token of it.
    assert dtype == "int4" or error.max() < 0.1 * expected.std()
    assert error.mean() < 0.05 * expected.std()


def _logits_of(gpt: GPT) -> np.ndarray:
    return gpt.runner.logits(list(range(1, 38)))


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"CLEARHEAD_KERNELS": "fast"}, "CLEARHEAD_KERNELS is 'fast', which is no kernel variant; there are avx512"),
        ({"CLEARHEAD_KERNELS": "avx2", "NUMBA_CPU_NAME": "generic"}, "CLEARHEAD_KERNELS is avx2, and this CPU"),
    ],
)
def test_a_variant_that_cannot_run_is_refused(environment: dict[str, str], sentence: str) -> None:
    made = subprocess.run(
        [sys.executable, "-m", "clearhead", "generate", "Hello", "--max-new-tokens", "1"],
        env=_OUTSIDE | environment,
        capture_output=True,
        text=True,
    )
    assert made.returncode == 2
    assert sentence in made.stderr
    assert "Traceback" not in made.stderr


def test_outlier_channels_cost_int8_nothing(tmp_path: Path) -> None:
    """A model with some channels 32 times as large, and the weights after them as much smaller, has the same bits."""
    source = weights.open(bundled())
    tensors = {name: np.array(tensor) for name, tensor in source.lazy().items()}
    draw = np.random.default_rng(0)
    for layer in range(source.config.n_layers):
        for norm, matrix in (("norm_1", "attention.qkv"), ("norm_2", "feed_forward.up")):
            channels = draw.choice(source.config.emb_dim, 6, replace=False)
            for part in ("weight", "bias"):
                tensors[f"blocks.{layer}.{norm}.{part}"][channels] *= 32
            tensors[f"blocks.{layer}.{matrix}.weight"][:, channels] /= 32
    weights.save(tmp_path, source.config, tensors)
    ids = [int(i) for i in draw.integers(0, source.config.vocab_size, 100)]
    exact, scaled = (weights.open(folder) for folder in (bundled(), tmp_path))
    for dtype, activations in (("float32", None), ("int8", "8bit")):
        found = [store.open_runner(one, dtype, 1, activations).logits(ids) for one in (exact, scaled)]
        assert (found[0] == found[1]).all()
