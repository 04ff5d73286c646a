"""Run what a page shows: commands as a user types them, Python in one session a page, servers in the background."""

from __future__ import annotations

import ast
import contextlib
import functools
import io
import itertools
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from command_line import PATIENCE, call
from documented import ROOT, Block, Command, difference

import clearhead

SERVER = "127.0.0.1:8000"
RUN = ("clearhead", "python", "curl", "lm_eval", "printf", "cat", "sed")
"""The programs whose commands are run."""
_BACKGROUND = ("serve", "tour")  # verbs that run until they are stopped
_FIRST = """They were not railway children to begin with. I don't suppose they had ever thought about railways \
except as a means of getting to Maskelyne and Cook's, the Pantomime, Zoological Gardens, and Madame Tussaud's. They \
were just ordinary suburban children, and they lived with their Father and Mother in an ordinary villa."""
"""The first document of the page about corpora."""
_BUNDLED = Path(clearhead.__file__).parent / "bundled"


def furnish(folder: Path) -> None:
    """Write what the pages assume that a reader has: texts, models and the folders of a clone."""
    for name in ("docs", "src", "recipes", "bench", "examples"):
        (folder / name).symlink_to(ROOT / name)
    for name in ("path/to/gpt2", "models/124M", "microsoft/DialoGPT-small", "runs/mine/model"):
        shutil.copytree(_BUNDLED, folder / name)
    prose = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md")))
    prose = prose.encode("ascii", "ignore").decode()
    for name in ("held_out.txt", "story.txt", "my.txt"):
        (folder / name).write_text("Once upon a time there was a dog. It was happy.\n" * 60)
    (folder / "items.csv").write_text("id,item,text\n1,1,The dog ran home.\n2,2,The cat sat down.\n")
    (folder / "texts").mkdir()
    documents = "\n<|endoftext|>\n".join([_FIRST, *prose.split("\n\n")])
    for name, text in (("kids_valid", documents), ("tinyshakespeare", prose), ("the_verdict", prose[:10_000])):
        (folder / "texts" / f"{name}.txt").write_text(text)
    (folder / "texts/lambada_test.jsonl").write_text('{"text": "The dog ran home."}\n' * 300)


class Session:
    """What a page's blocks have in common: a working folder, the names of its Python, the server that runs.

    The current folder must be `folder`; use it in a `with` statement, which stops the servers.
    """

    def __init__(self, page: str, folder: Path) -> None:
        self._page, self._folder = page, folder
        self._names: dict[str, Any] = {"__name__": "__main__"}
        self._address = SERVER
        self._servers: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers:
            self._stop(server)

    def run(self, block: Block, commands: list[Command], shown: str | None) -> None:
        """Run a block: its commands, or its Python, which prints `shown`; keep and check a file."""
        where = f"{self._page}:{block.line}"
        if block.directives.file:
            (self._folder / block.directives.file).write_text(block.text, encoding="utf-8")
        if block.language == "toml":
            assert tomllib.loads(block.text), where
        elif block.language == "python":
            printed = self._run_python(block.text, where)
            if shown is not None:
                self._compare(where, shown, printed, block)
        for command in commands:
            printed = self._run_command(command.text, where)
            if command.shown is not None:
                self._compare(f"{where}: `{command.text}`", command.shown, printed, block)

    def _compare(self, where: str, shown: str, printed: str, block: Block) -> None:
        missing = difference(shown, printed, block.directives.numbers_vary)
        assert not missing, (
            f"{where}: the page does not show, or the command does not print:\n{missing}\n---\n{printed}"
        )

    def _run_python(self, code: str, where: str) -> str:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code.replace(SERVER, self._address), where, "exec"), self._names)
        return printed.getvalue()

    def _run_command(self, command: str, where: str) -> str:
        words = shlex.split(command.replace(SERVER, self._address), comments=True)
        if words[0] == "clearhead" and words[1] in _BACKGROUND and "--check" not in words:
            return self._start(words[1:])
        if words[0] not in RUN:
            check_elsewhere(words, where)
            return ""
        if words[0] == "clearhead" and not {"|", ">"} & set(words):
            result = call(*words[1:])
        else:
            result = self._run_process(["bash", "-c", command.replace(SERVER, self._address)])
        assert result.returncode == 0, f"{where}: `{command}` failed:\n{result.stderr.decode()}"
        _check_written(words)
        return result.stdout.decode()

    def _run_process(self, words: list[str]) -> subprocess.CompletedProcess[bytes]:
        environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        environment |= {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])}
        return subprocess.run(words, capture_output=True, timeout=20 * PATIENCE, env=environment)

    def _start(self, words: list[str]) -> str:
        """Start a server on a free port, in place of the one before; return once it has said where it listens."""
        while self._servers:
            self._stop(self._servers.pop())
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "BROWSER": "true"}
        log = self._folder / "server.log"
        command = [sys.executable, "-m", "clearhead", *words, "--port", "0"]
        with log.open("wb") as output:
            server = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        self._servers.append(server)
        self._address = _wait(server, log, lambda: _address(log))
        _wait(server, log, lambda: _answers(self._address))
        return ""

    def _stop(self, server: subprocess.Popen[bytes]) -> None:
        server.send_signal(signal.SIGINT)
        assert server.wait(PATIENCE) in (0, 130)


def _wait(server: subprocess.Popen[bytes], log: Path, found: Callable[[], str]) -> str:
    """Wait until a server that has started can say something, and return it."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and server.poll() is None:
        if text := found():
            return text
        time.sleep(0.05)
    raise AssertionError(f"the server did not start: {log.read_text(encoding='utf-8')}")


def _address(log: Path) -> str:
    """Return the address that a server has printed, without `http://`, or ""."""
    found = re.search(r"http://([\d.]+:\d+)", log.read_text(encoding="utf-8"))
    return found[1] if found else ""


def _answers(address: str) -> str:
    """Return the address if a server has loaded its model, or "" while it answers with an error."""
    try:
        urllib.request.urlopen(f"http://{address}/", timeout=PATIENCE).close()
    except urllib.error.HTTPError as error:
        error.close()
        return ""
    return address


def _check_written(words: list[str]) -> None:
    """Check that the file that a command names was written."""
    for option, name in itertools.pairwise(words):
        if option in ("-o", "--html", "--svg", "--curves") and Path(name).is_file():
            assert Path(name).stat().st_size > 0, name
        elif option in ("-o", "--html", "--svg", "--curves"):
            assert Path(name).is_dir(), f"{name} was not written"


def check_elsewhere(words: list[str], where: str) -> None:
    """Check what is not run here, since it installs or is a test itself: extras of pip, targets of make, tools.

    Raises:
        AssertionError: if there is no such extra or target, or the command is of no known kind.
    """
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = set(settings["project"]["optional-dependencies"])
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert words[1] in targets, f"{where}: make has no target {words[1]}"
    elif words[:2] in (["pip", "install"], ["pipx", "install"]):
        for package in words[2:]:
            found = re.fullmatch(r"(?:clearhead|\.)(?:\[([\w,]+)\])?", package)
            assert found, f"{where}: {package} is not installed by this project"
            assert set((found[1] or "").split(",")) - {""} <= extras, f"{where}: {package} is no extra"
    elif words[0] == "clearhead":
        check_options(words[1:], where)
    elif words[0] == "python":
        check_script(words[1:], where)
    else:
        raise AssertionError(f"{where}: `{' '.join(words)}` is neither run nor marked; see tests/documented.py")


@functools.cache
def _command() -> Any:
    from typer.main import get_command

    from clearhead.cli.app import make_app

    return get_command(make_app())


def check_options(words: list[str], where: str) -> None:
    """Check that a verb has the options with which a command calls it, without running it."""
    import click

    command = _command()
    context = click.Context(command, info_name="clearhead")
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        found = command.get_command(context, words[0])
        assert found is not None, f"{where}: there is no verb {words[0]}"
        command, words = found, words[1:]
        context = click.Context(command, parent=context)
    if "--help" in words or isinstance(command, click.Group):
        return
    try:
        command.make_parser(context).parse_args(list(words))
    except click.UsageError as error:
        raise AssertionError(f"{where}: `{command.name} {' '.join(words)}`: {error.format_message()}") from error


def check_script(words: list[str], where: str) -> None:
    """Check that a script of the repository exists, and has the options with which a command calls it."""
    if not words[0].endswith(".py"):
        return
    source = (ROOT / words[0]).read_text(encoding="utf-8")
    for word in words[1:]:
        if word.startswith("--"):
            assert f'"{word.partition("=")[0]}"' in source, f"{where}: {words[0]} has no option {word}"


def same_code(one: str, other: str) -> bool:
    """Return whether two pieces of Python are the same but for comments, docstrings and white space."""

    def bare(code: str) -> str:
        tree = ast.parse(code)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and ast.get_docstring(node) is not None:
                node.body = node.body[1:]
        return ast.dump(tree)

    return bare(one) == bare(other)
