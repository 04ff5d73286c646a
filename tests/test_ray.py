"""Scoring and building a corpus on a Ray cluster of two workers: the same rows and shards as on one machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dying_work import DyingWork
from typer.testing import CliRunner

from clearhead.cli.app import make_app
from clearhead.data import corpus_builder
from clearhead.data.ray_workers import RayCluster, map_on_ray
from clearhead.data.workers import distribute
from clearhead.errors import InputError
from clearhead.evaluation import distributed_scoring
from clearhead.evaluation.distributed_scoring import TextScorer, rows_on_ray
from clearhead.evaluation.surprisal import InputText, SurprisalOptions, SurprisalTable
from clearhead.loading import bundled, load

ray = pytest.importorskip("ray", reason='Ray is not installed: pip install "clearhead[ray]"')
CLUSTER = RayCluster()


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """Two workers on this machine, which import the tests' modules too."""
    folders = [str(Path(__file__).parent), str(Path(corpus_builder.__file__).parents[2])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(folders))
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()


def texts(n: int) -> list[InputText]:
    return [InputText(str(i), f"The dog number {i} ran to the big red house and slept. " * 3) for i in range(n)]


def test_rows_are_those_of_one_machine_with_a_worker_killed_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed_scoring, "_CHUNK_CHARACTERS", 400)
    options = SurprisalOptions(by="word", top=0)
    expected = list(SurprisalTable(load(dtype="float32"), options).rows(texts(24)))
    scorer = TextScorer(None, {"dtype": "float32", "threads": 1}, options)
    assert list(rows_on_ray(scorer, texts(24), CLUSTER)) == expected
    marker = tmp_path / "died"
    dying: Any = DyingWork(scorer, marker)
    assert list(rows_on_ray(dying, texts(24), CLUSTER)) == expected and marker.exists()


def test_shards_are_those_of_one_machine_with_a_worker_killed_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n<|endoftext|>\n".join(f"Story {i}. " + "The cat sat. " * (i % 50) for i in range(9000)))
    arguments = ["corpus", "build", str(text), "-t", str(bundled()), "-o"]
    one = CliRunner().invoke(make_app(), [*arguments, str(tmp_path / "one"), "--processes", "1"])
    assert one.exit_code == 0, one.output

    def dying(work: Any, items: Any, argument: Any, where: Any) -> Any:
        return distribute(DyingWork(work, tmp_path / "died", after=0), items, argument, where)

    monkeypatch.setattr(corpus_builder, "distribute", dying)
    other = CliRunner().invoke(make_app(), [*arguments, str(tmp_path / "other"), "--ray", "local"])
    assert other.exit_code == 0 and (tmp_path / "died").exists(), other.output
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert files == sorted(
        path.relative_to(tmp_path / "other") for path in (tmp_path / "other").rglob("*") if path.is_file()
    )
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "other" / file).read_bytes(), file


def test_the_command_writes_the_same_table(tmp_path: Path) -> None:
    file = tmp_path / "texts.csv"
    file.write_text("id,text\n" + "".join(f"{one.id},{one.text}\n" for one in texts(6)))
    for name, more in (("one.csv", []), ("other.csv", ["--ray", "local"])):
        found = CliRunner().invoke(make_app(), ["score", str(file), "--id", "id", "-o", str(tmp_path / name), *more])
        assert found.exit_code == 0, found.output
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "other.csv").read_bytes()


def test_an_error_of_the_work_is_raised_in_order() -> None:
    scorer = TextScorer(None, {}, SurprisalOptions())
    rows = rows_on_ray(scorer, [InputText("a", "")], CLUSTER)
    with pytest.raises(InputError, match="is empty"):
        next(rows)


def test_results_are_in_the_order_of_the_items() -> None:
    found = list(map_on_ray(divmod, range(40), lambda item: (item, 7), CLUSTER))
    assert found == [(item, divmod(item, 7)) for item in range(40)]
