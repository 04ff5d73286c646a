"""The command line in Chinese: the tables are complete, their fields agree, and the language is chosen as usual."""

from __future__ import annotations

import ast
import json
import logging
import re
import string
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from command_line import call, run

import clearhead
from clearhead.cli import chinese, language
from clearhead.cli.app import make_app
from clearhead.cli.language import choose, tr, translate, translation
from clearhead.drawing.png import picture_language
from clearhead.evaluation.learning_curves import RevisionResult, learning_curves_svg
from clearhead.evaluation.results import Metric, TaskResult
from clearhead.server.logs import in_users_language
from clearhead.training.curves import curves_svg, find_lr_svg

PACKAGE = Path(clearhead.__file__).parent
TABLES = {name: json.loads((PACKAGE / "cli/chinese" / name).read_text(encoding="utf-8")) for name in chinese.FILES}
OF_PROGRAMS = {"TypeError", "KeyError", "IndexError", "AttributeError", "RuntimeError"}
"""Errors of the code that calls Clearhead; a user of the command line does not meet them."""
SPOKEN = {
    *("BadParameter", "notice", "say", "announce", "compile_notice", "busy", "Progress", "ByteProgress"),
    *("localized", "localized_phrase"),
}
"""What prints its first argument in the user's language."""

PUT_TOGETHER = {
    "{0} for none",
    "it lacks {0}",
    "there is no block {0}; the model's blocks are 0 to {1}.",
    "there is no head {0}; the model's heads are 0 to {1}.",
    "Files of this format ({0}) carry no checksums.",
    "{0} of its {1} tensors differs from the published ones: {2}",
}
"""Entries that the code makes in a way that the test below does not see."""


@pytest.fixture(autouse=True)
def english_afterwards() -> Iterator[None]:
    yield
    choose([], {})


def template(node: ast.expr) -> str:
    """Return a text of the source with {0}, {1}, ... for what is filled in."""
    count = 0

    def walk(part: ast.expr) -> str:
        nonlocal count
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            return part.value
        if isinstance(part, ast.JoinedStr):
            return "".join(map(walk, part.values))
        if isinstance(part, ast.BinOp) and isinstance(part.op, ast.Add):
            return walk(part.left) + walk(part.right)
        count += 1
        return f"{{{count - 1}}}"

    return walk(node)


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and node.args and isinstance(node.func, (ast.Name, ast.Attribute)):
            yield node.func.id if isinstance(node.func, ast.Name) else node.func.attr, node


def files(room: str) -> list[Path]:
    return sorted((PACKAGE / room).rglob("*.py")) if (PACKAGE / room).is_dir() else [PACKAGE / room]


def commands(command: Any) -> Iterator[Any]:
    yield command
    for below in getattr(command, "commands", {}).values():
        yield from commands(below)


def help_texts() -> set[str]:
    """Return every text that `--help` shows, in the language that is chosen."""
    from typer.main import get_command

    found = set()
    for command in commands(get_command(make_app())):
        found |= set((command.help or "").split("\n\n"))
        for line in (command.epilog or "").splitlines():
            found.add(line.partition("[/]")[2].strip() if line.startswith("[bold]") else line)
        for parameter in command.params:
            if not getattr(parameter, "hidden", False):
                found |= {getattr(parameter, "help", None) or "", getattr(parameter, "rich_help_panel", None) or ""}
    return {text for text in found if text and "completion" not in text}


def test_every_text_of_help_is_in_chinese() -> None:
    choose(["--lang", "zh"], {})
    assert not sorted(text for text in help_texts() if not re.search(r"[\u4e00-\u9fff]", text) and " " in text)


def test_no_text_of_help_is_left_over() -> None:
    """What a change of the English leaves behind in the table would never be shown."""
    nodes = (node for file in PACKAGE.rglob("*.py") for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    texts = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    texts |= help_texts()  # some are put together
    source = "\n".join(" ".join(text.split()) for text in texts)
    left = [key for key in TABLES["help.json"] if " ".join(key.split()) not in source]
    assert [key for key in left if "completion" not in key] == []  # of these two the library asks


def word_pairs(text: str) -> set[str]:
    """Return the pairs of neighbouring words of a text; of a shorter one its words."""
    text = re.sub(r"\{[^{}]*\}", "{}", text)
    pairs = re.findall(r"(?=(?<![\w-])([A-Za-z][\w-]* [A-Za-z][\w-]*)(?![\w{]))", text)
    return set(pairs) or set(re.findall(r"[A-Za-z][\w-]*", text))


def test_no_message_is_left_over() -> None:
    """An entry is a text of the source, or put together from such texts: then every two neighbouring words are in one.

    `messages_libraries.json` has what Python, the operating system, typer and uvicorn say.
    """
    texts = set()
    for file in PACKAGE.rglob("*.py"):
        nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
        docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        for node in nodes:
            if isinstance(node, (ast.Constant, ast.JoinedStr, ast.BinOp)) and id(node) not in docstrings:
                texts.add(template(node))
    found = set().union(*map(word_pairs, texts), *(re.findall(r"[A-Za-z][\w-]*", text) for text in texts))
    left = {
        key
        for name in TABLES
        if name not in ("help.json", "messages_libraries.json")
        for key in TABLES[name]
        if key not in PUT_TOGETHER and key not in texts and not word_pairs(key) <= found
    }
    assert sorted(left) == []


def said(path: Path) -> Iterator[str]:
    """Return the texts of a file that a user of the command line may see, and the phrases that fill their fields."""
    for name, node in calls(path):
        if name == "tr" or name in SPOKEN or (name.endswith("Error") and name not in OF_PROGRAMS):
            yield template(node.args[0])
            for field in ast.walk(node.args[0]):
                if isinstance(field, ast.FormattedValue):
                    yield from (one for one in map(template, phrases(field.value)) if " " in one.strip())


def phrases(node: ast.expr) -> Iterator[ast.expr]:
    """Return the texts that an expression chooses from: `"a" if x else "b"`."""
    if isinstance(node, ast.IfExp):
        yield from phrases(node.body)
        yield from phrases(node.orelse)
    elif isinstance(node, ast.BoolOp):
        for value in node.values:
            yield from phrases(value)
    elif isinstance(node, (ast.JoinedStr, ast.Constant)):
        yield node


@pytest.mark.parametrize("room", sorted({path.relative_to(PACKAGE).parts[0] for path in PACKAGE.rglob("*.py")}))
def test_every_message_has_an_entry(room: str) -> None:
    """Add what is missing to the `messages*.json` of its part of the package in cli/chinese."""
    table = {key: text for entries in TABLES.values() for key, text in entries.items()}
    missing = set()
    for path in files(room):
        if path.name == "walk_text.py":  # it has words of its own, in `lens`
            continue
        for text in said(path):
            words = re.sub(r"\{\d+\}", "", text).replace("clearhead: ", "")
            if re.search(r"[a-z]{2}", words) and text not in table:
                missing.add(f"{path.name}: {text}")
    assert not sorted(missing)


@pytest.mark.parametrize("name", TABLES)
def test_the_fields_of_both_languages_agree(name: str) -> None:
    def fields(text: str) -> set[str]:
        if name.startswith("messages"):  # the English is a pattern, not a format
            return set(re.findall(r"\{(\d+)\}", text))
        return {field for _, field, _, _ in string.Formatter().parse(text) if field is not None}

    for english, chinese_text in TABLES[name].items():
        endings = set(re.findall(r"[a-z]\{(\d+)\}", english))  # as in "core{1}": Chinese has no plural
        assert fields(english) - endings <= fields(chinese_text) <= fields(english), english
        assert re.search(r"[\u4e00-\u9fff：、]", chinese_text) or not re.search("[a-z]{4}", english), english
        assert not re.search(r"[\u4e00-\u9fff][,;?!]", chinese_text), chinese_text  # Chinese punctuation


def test_no_text_has_two_entries() -> None:
    every = [english for entries in TABLES.values() for english in entries]
    assert sorted(text for text, count in Counter(every).items() if count > 1) == []


def test_every_message_finds_its_own_entry() -> None:
    choose(["--lang", "zh"], {})
    taken = {}
    for name in TABLES:
        for english, chinese_text in TABLES[name].items() if name.startswith("messages") else ():
            values = [f"<v{n}>" for n in range(12)]
            expected = language._fill(chinese_text, values) if "{0}" in english else chinese_text
            found = language._translate(re.sub(r"\{(\d+)\}", r"<v\1>", english), 1)
            if found != expected:
                taken[english] = found
    assert not taken


@pytest.mark.parametrize(
    ("arguments", "environment", "expected"),
    [
        ([], {}, "en"),
        (["generate", "a", "--lang", "zh"], {"LANG": "de_DE.UTF-8"}, "zh"),
        (["--lang=zh", "generate"], {}, "zh"),
        (["generate", "--lang", "en"], {"LANG": "zh_CN.UTF-8"}, "en"),
        ([], {"LANG": "zh_CN.UTF-8"}, "zh"),
        ([], {"LC_ALL": "C.UTF-8", "LANG": "zh_CN.UTF-8"}, "en"),
        ([], {"LC_ALL": "", "LC_MESSAGES": "zh_TW", "LANG": "C"}, "zh"),
    ],
)
def test_the_language_is_chosen(arguments: list[str], environment: dict[str, str], expected: str) -> None:
    choose(arguments, environment)
    assert language.language() == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["tokenize", "Hello, world"], "3 个词元，12 个字符，12 字节：每个词元 4.0 字节"),
        (["params", "124M"], "GPT-2 124M：124,439,808 个参数"),
        (["params", "124M", "--markdown"], "**运行所需内存**"),
        (["params", "124M", "355M"], "词元向量宽度"),
        (["weights", "inspect", "bundled"], "每个张量都属于模型"),
    ],
)
def test_what_verbs_print_is_chinese(words: list[str], expected: str) -> None:
    result = call(*words, "--lang", "zh")
    assert result.returncode == 0, result.stderr
    assert expected in result.stdout.decode()


def test_what_a_model_writes_is_not_translated() -> None:
    chinese_output = call("generate", "wrote x.", "-n", "4", "--seed", "1", "--lang", "zh").stdout
    assert chinese_output == call("generate", "wrote x.", "-n", "4", "--seed", "1").stdout


def test_a_finished_sentence_is_found_with_what_it_quotes() -> None:
    choose(["--lang", "zh"], {})
    assert translate("'n_head' is not a setting of a GPT-2 (did you mean 'n_heads'?); the settings are n_heads.") == (
        "'n_head' 不是 GPT-2 的设置（是不是 'n_heads'？）；可用的设置有 n_heads。"
    )
    assert (
        translate("temperature is -1.0; give a number of at least 0.") == "temperature 为 -1.0；请给出不小于 0 的数。"
    )
    assert translate("nobody wrote an entry for this.") == "nobody wrote an entry for this."
    assert translation("The model") == "模型"
    choose([], {})
    assert translate("wrote x.") == "wrote x." and tr("{n} tokens", n=3) == "3 tokens"


@pytest.mark.slow
def test_errors_and_usage_errors_are_chinese() -> None:
    result = call("generate", "a", "--dtype", "int3", "--lang", "zh")
    assert (result.returncode, result.stdout) == (2, b"")
    assert result.stderr.decode() == (
        "clearhead: --dtype 为 'int3'；权重在内存中可用的类型是 float32, bfloat16, int8, int4, float16。\n"
    )
    result = call("generate", "a", "--temp", "1", "--lang", "zh")
    assert result.returncode == 2 and "没有选项 --temp（可能是：--temperature）" in result.stderr.decode()
    assert "用法：" in call("params", "--help", "--lang", "zh").stdout.decode()
    assert "Usage:" in call("params", "--help").stdout.decode()  # the choice does not stay
    assert "查看、核对" in call("weights", "--help", "--lang", "zh").stdout.decode()
    assert "缺少命令" in call("--lang", "zh").stderr.decode()
    assert "--lang is 'fr'; give en or zh." in call("params", "--lang", "fr").stderr.decode()
    result = run("new", "--help", env={"LC_ALL": "zh_CN.UTF-8"})
    assert "创建一个随机权重的模型。" in result.stdout.decode() and "…" not in result.stdout.decode()


def words_of(svg: str) -> list[str]:
    """Return the texts of a picture that contain a word in Latin letters and no Chinese."""
    texts = re.findall(r"<(?:text|title|desc)[^>]*>([^<]+)<", svg)
    return [text for text in texts if re.search(r"[A-Za-z]{3}", text) and not re.search(r"[\u4e00-\u9fff]", text)]


def test_curves_are_in_the_language_that_is_asked_for() -> None:
    lines = [
        {
            "step": step,
            "loss": 3.0,
            "rate": 1.0,
            "norm": 1.0,
            "tokens_per_second": 10,
            "valid": {"birds": {"bits_per_byte": 1.0 + step, "loss": 2.0}},
        }
        for step in (1, 2, 3)
    ]
    runs = {"my run": lines, "other": lines}
    assert set(words_of(curves_svg(runs, "zh"))) == {"my run", "other"}
    assert "留出文本 birds：每字节比特数" in curves_svg(runs, "zh")
    assert 'xml:lang="zh"' in curves_svg(runs, "zh") and "birds, held out: bits per byte" in curves_svg(runs)
    assert words_of(find_lr_svg([(1e-4, 3.0), (1e-3, 2.0)], 5e-4, "zh")) == []
    result = TaskResult("blimp", (Metric("acc", 0.5),), 2, {})
    found = [RevisionResult(name, words, "a.jsonl", result) for name, words in (("1M", 1.0), ("2M", 2.0))]
    assert "已训练的词数（百万）" in learning_curves_svg(found, "zh") and "over training" in learning_curves_svg(found)
    assert set(words_of(learning_curves_svg(found, "zh"))) == {"blimp：acc"}  # names


def test_a_png_falls_back_to_english_without_a_chinese_font(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clearhead.drawing.png._has_chinese", lambda: False)
    assert picture_language(Path("a.png"), "zh") == "en" == picture_language(Path("a.png"), "en")
    assert picture_language(Path("a.svg"), "zh") == "zh"


def test_the_server_logs_in_chinese_but_never_touches_texts() -> None:
    choose(["--lang", "zh"], {})
    logger = logging.getLogger("uvicorn.error")
    record = logger.makeRecord(
        logger.name, logging.INFO, "", 0, "Started server process [%d]", (7,), None, extra={"color_message": "English"}
    )
    assert in_users_language(record) and record.getMessage() == "服务进程 [7] 已启动"
    assert not hasattr(record, "color_message")
    error = logging.LogRecord(
        "clearhead.server", logging.ERROR, "", 0, "the model could not be loaded: %s", (ValueError("timed out"),), None
    )
    assert in_users_language(error) and error.getMessage() == "无法加载模型：超时"
    body = logging.LogRecord("clearhead.texts", logging.INFO, "", 0, "POST %s: %s", ("/v1", "Shutting down"), None)
    assert in_users_language(body) and body.getMessage() == "POST /v1: Shutting down"


def test_every_line_of_uvicorn_that_a_server_logs_has_an_entry() -> None:
    source = "".join(
        (Path(uvicorn.__file__).parent / name).read_text(encoding="utf-8") for name in ("server.py", "lifespan/on.py")
    )
    ours = {key for key in TABLES["messages_libraries.json"] if key in source}
    begun = {"Started server process [%d]", "Waiting for application startup.", "Application startup complete."}
    ended = {"Shutting down", "Waiting for application shutdown.", "Application shutdown complete."}
    assert begun | ended | {"Finished server process [%d]"} <= ours
