"""The command line, run as a user runs it: a process of its own, its exit status and its two streams."""

import ast
import inspect
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from command_line import PATIENCE, call, refused, run

import clearhead
import clearhead.config
from clearhead.anatomy import CostModel

SIZES = {"124M": 124_439_808, "355M": 354_823_168, "774M": 774_030_080, "1558M": 1_557_611_200}


# --- the command itself --------------------------------------------------------------------------


HEAVY = ("torch", "numba", "numpy", "transformers", "tiktoken", "tokenizers", "huggingface_hub", "safetensors")


@pytest.mark.parametrize(
    "args",
    [
        ["--help"],
        ["--version"],
        ["generate", "--help"],
        ["walk", "--help"],
        ["weights", "verify", "--help"],
        ["params", "124M"],
    ],
)
def test_light_verbs_load_nothing_heavy(args: list[str]) -> None:
    code = (
        "import sys\n"
        "from clearhead.cli import main\n"
        f"sys.argv = ['clearhead', *{args!r}]\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE)
    assert result.returncode == 0, result.stderr
    assert result.stderr.strip() == "[]"
    assert result.stdout


def test_version() -> None:
    result = run("--version")
    assert result.returncode == 0
    assert result.stdout.decode() == f"clearhead {clearhead.__version__}\n"


def test_help_lists_the_verbs_and_fits_80_columns() -> None:
    for args in [[], ["params"], ["tokenize"], ["new"], ["generate"]]:
        result = call(*args, "--help")
        assert result.returncode == 0
        lines = result.stdout.decode().splitlines()
        assert max(map(len, lines)) <= 80
        assert "Examples:" in result.stdout.decode()
    listed = call("--help").stdout.decode()
    for verb in ("generate", "tokenize", "params", "new"):
        assert f"│ {verb} " in listed


def test_help_says_all_that_is_written_of_a_verb() -> None:
    """Square brackets are how rich marks up text, and they are how a recipe names its tables."""
    from clearhead.cli import corpus, lens, weights
    from clearhead.cli.app import VERBS

    verbs: dict[tuple[str, ...], Any] = {(verb.__name__,): verb for verb in VERBS}
    verbs |= {("corpus", name): verb for name, (verb, _) in corpus.VERBS.items()}
    verbs |= {("lens", name): verb for name, (verb, _) in lens.VERBS.items()}
    verbs |= {("weights", name): verb for name, (verb, _) in weights.VERBS.items()}
    for words, verb in verbs.items():
        shown = " ".join(call(*words, "--help").stdout.decode().split())
        for paragraph in inspect.cleandoc(verb.__doc__ or "").split("\n\n"):
            assert " ".join(paragraph.split()) in shown


@pytest.mark.parametrize(
    "args",
    [
        ["no-such-verb"],
        ["params", "--no-such-option"],
        ["params", "--batch", "many"],
        ["new"],
        ["generate", "--top-p", "x"],
    ],
)
def test_usage_errors_exit_2_without_a_traceback(args: list[str]) -> None:
    result = call(*args)
    assert result.returncode == 2
    assert result.stdout == b""
    assert b"Traceback" not in result.stderr
    assert b"Usage: clearhead" in result.stderr


# --- params --------------------------------------------------------------------------------------


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


# --- tokenize ------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small byte-level BPE."""
    from clearhead.tokenizer import Tokenizer

    folder = tmp_path_factory.mktemp("vocabulary")
    Tokenizer.train(Path(clearhead.config.__file__).read_text(encoding="utf-8"), 400).save(folder)
    return folder


TEXT = "The model's heads: 12 of them, naïve 🎉\n\n  <|endoftext|> end"


def test_tokenize_gives_the_ids_of_transformers(vocabulary: Path) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(vocabulary)
    result = call("tokenize", "-m", vocabulary, TEXT, "--ids", "--special")
    assert result.returncode == 0
    assert [int(word) for word in result.stdout.split()] == theirs.encode(TEXT, add_special_tokens=False)


def test_tokenize_shows_pieces_and_counts(vocabulary: Path) -> None:
    result = call("tokenize", "-m", vocabulary, TEXT)
    *rows, summary = result.stdout.decode().splitlines()
    ids = [int(word) for word in call("tokenize", "-m", vocabulary, TEXT, "--ids").stdout.split()]
    assert [int(row.split()[0]) for row in rows] == ids
    pieces = [row.strip().partition("  ")[2] for row in rows]
    data = b"".join(
        bytes.fromhex(piece.strip("<>")) if piece.startswith("<") else ast.literal_eval(piece).encode()
        for piece in pieces
    )
    assert data.decode() == TEXT
    size = len(TEXT.encode())
    expected = f"{len(ids)} tokens, {len(TEXT)} characters, {size} bytes: {size / len(ids):.1f} bytes a token"
    assert summary == expected


def test_tokenize_as_json(vocabulary: Path) -> None:
    shown = json.loads(call("tokenize", "-m", vocabulary / "tokenizer.json", "two words", "--json").stdout)
    assert "".join(shown["pieces"]) == "two words"
    assert shown["tokens"] == len(shown["ids"]) == len(shown["pieces"])
    assert shown["characters"] == shown["bytes"] == 9


def test_text_comes_from_the_argument_a_file_or_a_pipe(vocabulary: Path, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(TEXT.encode())
    ways = [
        call("tokenize", "-m", vocabulary, "--ids", TEXT),
        call("tokenize", "-m", vocabulary, "--ids", "--file", path),
        call("tokenize", "-m", vocabulary, "--ids", stdin=TEXT.encode()),
        call("tokenize", "-m", vocabulary, "--ids", "-", stdin=TEXT.encode()),
        call("tokenize", "-m", vocabulary, "--ids", "--file", "-", stdin=TEXT.encode()),
    ]
    assert {(way.returncode, way.stdout, way.stderr) for way in ways} == {(0, ways[0].stdout, b"")}


def test_decode_gives_every_byte_back(vocabulary: Path, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(TEXT.encode() + b"\r\n\n")
    ids = call("tokenize", "-m", vocabulary, "--ids", "--file", path).stdout
    assert call("tokenize", "-m", vocabulary, "--decode", stdin=ids).stdout == path.read_bytes()
    pasted = json.dumps([int(word) for word in ids.split()])
    assert call("tokenize", "-m", vocabulary, "--decode", pasted).stdout == path.read_bytes()


def test_tokenize_refuses_in_a_sentence(vocabulary: Path, tmp_path: Path) -> None:
    assert "'x' is not a token id" in refused(call("tokenize", "-m", vocabulary, "--decode", "1 x"))
    assert "no token with the id 400" in refused(call("tokenize", "-m", vocabulary, "--decode", "400"))
    broken = tmp_path / "latin.txt"
    broken.write_bytes("café".encode("latin-1"))
    assert "is not UTF-8 text (unexpected end of data at byte 3)" in refused(
        call("tokenize", "-m", vocabulary, "--file", broken)
    )
    assert "could not be read" in refused(call("tokenize", "-m", vocabulary, "--file", tmp_path / "none.txt"))
    assert "given twice" in refused(call("tokenize", "-m", vocabulary, "--file", broken, "text"))
    assert "does not exist" in refused(call("tokenize", "-m", "./nowhere", "text"))
    result = call("tokenize", "-m", vocabulary, "--ids", "--json", "text")
    assert result.returncode == 2
    assert b"only one of --ids, --json and --decode" in result.stderr


def test_reader_that_has_seen_enough_is_no_error(vocabulary: Path, tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text("many words " * 50_000)
    command = [sys.executable, "-m", "clearhead", "tokenize", "-m", str(vocabulary), "--file", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(PATIENCE) == 1


def interrupt(process: subprocess.Popen[bytes]) -> tuple[bytes, bytes]:
    """Ctrl-C; what it still writes to its two streams. A process that goes on all the same is killed."""
    process.send_signal(signal.SIGINT)
    try:
        return process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        raise


def test_interrupt_is_quiet(vocabulary: Path) -> None:
    command = [sys.executable, "-m", "clearhead", "tokenize", "-m", str(vocabulary)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        # More than a pipe holds: when all is written, the command has started and reads.
        process.stdin.write(b"x" * 1_000_000)
        process.stdin.flush()
        time.sleep(0.5)  # and now it waits for more
        assert interrupt(process) == (b"", b"")
        assert process.returncode == 130


# --- new -----------------------------------------------------------------------------------------


SMALL = ["--emb-dim", "24", "--n-heads", "4", "--n-layers", "2", "--context-length", "32"]


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


# --- generate ------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def model(vocabulary: Path, compiled_engine: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small GPT-2 with a tokenizer, sure enough of itself that a sum in another order changes no token."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    shape = {"vocab_size": 400, "n_positions": 32, "n_embd": 24, "n_head": 4, "n_layer": 2}
    GPT2LMHeadModel(GPT2Config(**shape, initializer_range=0.3, bos_token_id=399, eos_token_id=399)).save_pretrained(
        folder
    )
    for file in vocabulary.iterdir():
        shutil.copy(file, folder)
    return folder


def made(*args: object, stdin: bytes = b"") -> dict[str, Any]:
    """What `generate --json` says."""
    result = call("generate", *args, "--json", stdin=stdin)
    assert result.returncode == 0, result.stderr
    return dict(json.loads(result.stdout))


PROMPT = "The config of a"


@pytest.mark.slow
def test_greedy_text_is_that_of_transformers(model: Path) -> None:
    import torch
    from transformers import AutoTokenizer, GPT2LMHeadModel

    theirs, tokenizer = GPT2LMHeadModel.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    written = theirs.generate(ids, max_new_tokens=15, do_sample=False, pad_token_id=0)[0, ids.shape[1] :].tolist()
    ours = made("-m", model, PROMPT, "--temperature", "0", "-n", "15", "--logprobs", "3")
    (sample,) = ours["samples"]
    assert sample["ids"] == [id for id in written if id != 399]
    assert ours["prompt_tokens"] == ids.shape[1]
    expected = torch.log_softmax(theirs(ids).logits[0, -1], dim=-1).topk(3)
    top = sample["logprobs"][0]["top"]
    assert [token["id"] for token in top] == expected.indices.tolist()
    assert [token["logprob"] for token in top] == pytest.approx(expected.values.tolist(), abs=1e-4)
    assert [token["token"] for token in top] == [tokenizer.decode([token["id"]]) for token in top]
    options = ("-m", model, PROMPT, "--temperature", "0", "-n", "15")
    result = run("generate", *options, env={"PYTHONIOENCODING": "utf-8"})
    assert result.returncode == 0
    assert result.stdout.decode() == tokenizer.decode(sample["ids"]) + "\n"
    assert result.stderr == b""


def test_prompt_comes_from_the_argument_a_file_or_a_pipe(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "prompt.txt"
    path.write_bytes(PROMPT.encode() + b"\n")
    options = ["-m", model, "--seed", "3", "-n", "8"]
    ways = [
        call("generate", *options, PROMPT),
        call("generate", *options, "--file", path),
        call("generate", *options, stdin=PROMPT.encode()),
        call("generate", *options, "-", stdin=PROMPT.encode() + b"\r\n"),
    ]
    assert len(ways[0].stdout) > 1
    assert {(way.returncode, way.stdout, way.stderr) for way in ways} == {(0, ways[0].stdout, b"")}
    # Only the newline that ends the file is left out; one in an argument was meant.
    assert made(*options, f"{PROMPT}\n")["prompt"] == made(*options, stdin=f"{PROMPT}\n\n".encode())["prompt"]


def test_one_seed_gives_one_text(model: Path) -> None:
    texts = {seed: made("-m", model, PROMPT, "--seed", seed)["samples"][0]["text"] for seed in ("1", "2")}
    assert texts["1"] != texts["2"]
    assert made("-m", model, PROMPT, "--seed", "1")["samples"][0]["text"] == texts["1"]
    fresh = made("-m", model, PROMPT)
    assert made("-m", model, PROMPT, "--seed", str(fresh["seed"])) == fresh


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1.3},
        {"top_k": 5},
        {"top_p": 0.5},
        {"min_p": 0.2},
        {"repetition_penalty": 5.0},
        {"presence_penalty": 9.0},
        {"frequency_penalty": 9.0},
        {"max_new_tokens": 7},
        {"stop": ["e"]},
        {"logprobs": 2},
    ],
    ids=str,
)
def test_every_option_arrives(model: Path, options: dict[str, Any]) -> None:
    from clearhead.loading import load

    words = []
    for name, value in options.items():
        words += ["--" + name.replace("_", "-"), str(value[0] if isinstance(value, list) else value)]
    ours = made("-m", model, PROMPT, "--seed", "4", *words)
    (expected,) = load(model).generate(PROMPT, seed=4, **options).samples
    (plain,) = load(model).generate(PROMPT, seed=4).samples
    assert expected != plain, "the option makes a difference here"
    (sample,) = ours["samples"]
    assert sample["text"] == expected.text
    assert tuple(sample["ids"]) == expected.ids
    assert sample["finish_reason"] == expected.finish_reason
    assert (sample["logprobs"] is None) == (expected.logprobs is None)


def test_options_and_defaults_are_those_of_the_library() -> None:
    from clearhead.cli.generate import generate
    from clearhead.inference.options import OPTIONS
    from clearhead.loading import load

    verb = {name: parameter.default for name, parameter in inspect.signature(generate).parameters.items()}
    declared = {name: option.default for name, option in OPTIONS.items() if option.flags}
    assert len(declared) == 14
    assert {name: verb[name] or None for name in declared} == {name: value or None for name, value in declared.items()}
    loading = inspect.signature(load).parameters
    for name in ("device", "dtype", "backend", "threads"):
        assert verb[name] == loading[name].default


def test_samples_are_written_one_below_another(model: Path) -> None:
    options = ["-m", model, PROMPT, "--seed", "9", "--samples", "3", "-n", "10"]
    texts = [sample["text"] for sample in made(*options)["samples"]]
    assert len(set(texts)) == 3
    lines = call("generate", *options).stdout.decode()
    parts = re.split(r"(?m)^(\d) of 3 ─+\n", lines)
    assert parts[0] == ""
    assert parts[1::2] == ["1", "2", "3"]
    assert [part.removesuffix("\n") for part in parts[2::2]] == texts


def test_logprobs_are_listed_below_the_text(model: Path) -> None:
    options = ["-m", model, PROMPT, "--seed", "9", "--logprobs", "2", "-n", "6"]
    (sample,) = made(*options)["samples"]
    text = call("generate", *options).stdout.decode()
    assert text.startswith(sample["text"] + "\n\n")
    lines = text.removeprefix(sample["text"] + "\n\n").splitlines()
    assert len(lines) == len(sample["ids"])
    for line, token in zip(lines, sample["logprobs"], strict=True):
        assert float(line.split()[0]) == pytest.approx(token["logprob"], abs=5e-4)
        for likely in token["top"]:
            assert f" {likely['logprob']:.2f}" in line


def test_end_of_the_context_is_told_once_beside_the_text(model: Path) -> None:
    options = ["generate", "-m", model, PROMPT, "--temperature", "0", "-n", "90"]
    result = call(*options)
    assert result.returncode == 0
    assert result.stderr.decode().splitlines() == [
        "clearhead: The text reached the 32 tokens that the model reads; it went on from the last 16."
    ]
    assert "the model reads 32" in refused(call(*options, "--strict-context"))
    cut = call("generate", "-m", model, PROMPT * 20, "--temperature", "0", "-n", "1")
    assert cut.returncode == 0
    assert "only the last 32 were used" in cut.stderr.decode()
    assert "only the last 32 were used" in made("-m", model, PROMPT * 20, "-n", "1")["notices"][0]


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ([""], "the prompt is empty"),
        ([], "the prompt is empty"),
        (["a", "--temperature", "-1"], "temperature is -1.0"),
        (["a", "--temperature", "nan"], "temperature is nan"),
        (["a", "--top-k", "0"], "--top-k is 0"),
        (["a", "--top-p", "1.5"], "--top-p is 1.5"),
        (["a", "--min-p", "-0.1"], "--min-p is -0.1"),
        (["a", "--repetition-penalty", "0"], "--repetition-penalty is 0.0"),
        (["a", "--seed", "-1"], "seed is -1"),
        (["a", "--max-new-tokens", "0"], "--max-new-tokens is 0"),
        (["a", "--samples", "0"], "samples is 0"),
        (["a", "--logprobs", "-1"], "logprobs is -1"),
        (["a", "--logprobs", "401"], "the vocabulary has 400 tokens"),
        (["a", "--stop", ""], "a string of at least one character"),
        (["a", "--device", "tpu9"], "device is 'tpu9'"),
        (["a", "--dtype", "int3"], "dtype is 'int3'"),
        (["a", "--file", "b.txt"], "the prompt was given twice"),
        (["--file", "nowhere.txt"], "nowhere.txt could not be read"),
    ],
)
def test_generate_refuses_in_a_sentence(model: Path, args: list[str], sentence: str) -> None:
    assert sentence in refused(call("generate", "-m", model, *args))


def test_generate_as_a_process_refuses_in_a_sentence() -> None:
    assert "the prompt is empty" in refused(run("generate", ""))
    assert "does not exist" in refused(call("generate", "-m", "./nowhere", "a"))


def test_generate_without_a_tokenizer_says_so(tmp_path: Path) -> None:
    assert call("new", tmp_path / "model", *SMALL, "--vocab-size", "50").returncode == 0
    assert "has no tokenizer" in refused(call("generate", "-m", tmp_path / "model", "a"))
    assert "tokenizer" in refused(call("tokenize", "-m", tmp_path / "model", "a"))


def test_text_appears_as_it_is_made_and_an_interrupt_ends_its_line(model: Path) -> None:
    # The likeliest tokens run in a circle here, so that the text goes on until it is interrupted.
    command = [sys.executable, "-m", "clearhead", "generate", "-m", str(model), PROMPT]
    command += ["-n", "1000000", "--temperature", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert len(process.stdout.read(100)) == 100
        rest, errors = interrupt(process)
    assert process.returncode == 130
    assert rest.endswith(b"\n")
    assert errors == b""


@pytest.mark.slow
def test_terminal_shows_the_prompt_before_the_text(model: Path) -> None:
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "clearhead", "generate", "-m", str(model), PROMPT, "--seed", "9", "-n", "10"]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        seen = b""
        try:
            while data := os.read(ours, 1000):
                seen += data
        except OSError:  # the other end is closed
            pass
        assert process.wait(PATIENCE) == 0
    os.close(ours)
    (sample,) = made("-m", model, PROMPT, "--seed", "9", "-n", "10")["samples"]
    plain = re.sub(rb"\x1b\[[\d;?]*[A-Za-z]", b"", seen).decode().replace("\r\n", "\n").replace("\r", "")
    assert f"{PROMPT}{sample['text']}\n" in plain


def test_demo_writes_a_story_and_says_what_to_try(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clearhead.loading.bundled", lambda: model)
    result = call("generate", "--demo")
    assert result.returncode == 0
    text = result.stdout.decode()
    assert text.startswith("A GPT-2 with 24,864 parameters (2 blocks, 4 heads, 24 numbers per token) writes:\n")
    assert "\nOnce upon a time" in text
    tried = re.findall(r"(?m)^  clearhead (.*)$", text)
    assert len(tried) == 3
    for command in tried:
        assert call(*shlex.split(command)).returncode == 0, command


def test_bundled_is_the_name_of_a_model_everywhere() -> None:
    assert call("tokenize", "-m", "bundled", "Hi", "--ids").stdout == call("tokenize", "Hi", "--ids").stdout
    assert call("weights", "inspect", "bundled").returncode == 0
    assert call("generate", "Hi", "-m", "bundled", "-n", "1").returncode == 0
