"""Recipes, optimizers, the learning rate and the precision."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import get_type_hints

import pytest
import torch
from reference_models import SMALL, ours_of
from small_runs import RECIPE, one_step, recipe, small_run
from transformers import GPT2LMHeadModel

from clearhead.data.corpus import Corpus
from clearhead.data.corpus_recipe import CorpusRecipe, SourceRecipe
from clearhead.errors import TrainingError
from clearhead.gpt import GPT
from clearhead.model import GPTModel
from clearhead.training.checkpoint import checkpoints, read_state
from clearhead.training.optimizer import Muon, make_optimizers, orthogonalised
from clearhead.training.precision import _product_rates, choose_precision, dtype_name
from clearhead.training.recipe import FineTuneRecipe, TrainingRecipe
from clearhead.training.recipe_reader import RANGES, parse_recipe, read_recipe
from clearhead.training.schedule import rate_at
from clearhead.training.train import train


def test_a_recipe_says_what_it_says() -> None:
    found = recipe()
    assert found.model.emb_dim == 32
    assert [(s.name, s.weight, s.valid) for s in found.corpus.source] == [
        ("birds", 3.0, "birds_valid.txt"),
        ("fish", 1.0, ""),
    ]
    assert (found.training.steps, found.training.optimizer, found.training.beta_2) == (12, "muon", 0.95)


def test_the_recipes_of_the_repository_are_good() -> None:
    paths = sorted((Path(__file__).parents[2] / "recipes").glob("*.toml"))
    assert paths
    for path in paths:
        training = read_recipe(path).training
        assert any((training.steps, training.epochs, training.tokens, training.words))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("steps = 12", "stepz = 12", "did you mean 'steps'"),
        ("steps = 12", "", "lacks steps"),
        ("steps = 12", "steps = 0", "lacks steps"),
        ("steps = 12", "steps = 12\nseed = -1", r"seed in \[training\] is -1; it must be at least 0"),
        ("steps = 12", "steps = 12\nseed = 99999999999999999999", "seed .* does not fit into 64 bits"),
        ("steps = 12", "steps = 12\nbeta_1 = 1.5", "beta_1 .* must be at least 0 and below 1"),
        ("steps = 12", "steps = 12\nweight_decay = nan", "weight_decay .* is nan; it must be finite"),
        ("steps = 12", "steps = 12\nfinal_share = 7.0", "final_share .* must be at least 0 and at most 1"),
        ("learning_rate = 3e-3", "learning_rate = inf", "learning_rate .* is inf; it must be finite and above 0"),
        ("vocab_size = 300", "vocab_size = 99999999999999999999", r"vocab_size in \[model\] does not fit"),
        ('train = "fish.txt"', 'train = "fish\\u0000.txt"', "contains NUL"),
        ("steps = 12", "steps = 5", "do not fit into steps 5"),
        ("steps = 12", 'steps = 12\nmilestones = ["7 sheep"]', "milestone '7 sheep' is not of the form 1000 steps"),
        ("steps = 12", 'steps = "12"', "is '12'; it must be a whole number, or a text such as"),
        ("steps = 12", 'steps = "1.0001k"', r"is 1000\.1; it must be a whole number"),
        ("steps = 12", 'words = "1 k words"', r"is '1 k words'; it must be a number, or a text such as \"10k\""),
        ("steps = 12", 'epochs = "1k"', "is '1k'; it must be a number"),
        ('"muon"', '"adam"', "one of adamw, muon, normuon"),
        ("learning_rate = 3e-3", "learning_rate = -1", "above 0"),
        ("batch_size = 8", "batch_size = 8\nmicro_batch_size = 3", "does not divide"),
        (
            "batch_size = 8",
            "batch_size = 8\nshard_processes = 2",
            'is for parallel = "hybrid", and the recipe has "rep',
        ),
        ("emb_dim = 32", "emb_dim = 33", "does not divide into 2 heads"),
        ("emb_dim = 32", "emb_dimm = 32", "did you mean 'emb_dim'"),
        ("weight = 3", "weight = 0", "above 0"),
        ('name = "fish"', 'name = "birds"', "two sources"),
        ('name = "fish"', 'name = "../fish"', "letters, digits"),
        ("[corpus]", "[corpse]", "did you mean 'corpus'"),
        ("[model]", "[model", "not TOML"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(old: str, new: str, words: str) -> None:
    with pytest.raises(TrainingError, match=words):
        parse_recipe(RECIPE.replace(old, new, 1))


@pytest.mark.parametrize(
    ("length", "number"), [("steps = '2k'", 2000), ("tokens = ' 1.5M '", 1_500_000), ("words = '2 B'", 2_000_000_000)]
)
def test_the_length_of_a_run_may_have_a_unit(length: str, number: int) -> None:
    training = parse_recipe(RECIPE.replace("steps = 12", length, 1)).training
    assert getattr(training, length.split()[0]) == number
    assert type(training.steps) is int


@pytest.mark.parametrize("source", ["[1]", "1", "{ name = 'a', train = 'b' }"])
def test_sources_that_are_no_tables_are_refused(source: str) -> None:
    model = RECIPE[: RECIPE.index("[corpus]")]
    with pytest.raises(TrainingError, match="must name texts, each in a"):
        parse_recipe(f"{model}[corpus]\nsource = {source}\n[training]\nsteps = 1\nbatch_size = 1")


@pytest.mark.parametrize("table", [SourceRecipe, CorpusRecipe, FineTuneRecipe, TrainingRecipe])
def test_every_number_of_a_recipe_has_a_range(table: type) -> None:
    numbers = {name for name, kind in get_type_hints(table).items() if kind in (int, float)}
    assert numbers <= RANGES.keys()


def test_a_recipe_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes(b"# caf\xe9\n")
    with pytest.raises(TrainingError, match=r"latin\.toml is not UTF-8 text .* at byte 5"):
        read_recipe(tmp_path / "latin.toml")


def test_a_recipe_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"none\.toml could not be read"):
        read_recipe(tmp_path / "none.toml")


@pytest.mark.parametrize("shape", [(24, 24), (48, 16), (16, 48)])
def test_orthogonalised_is_near_the_polar_factor(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    found = orthogonalised(matrix)
    u, _, vt = torch.linalg.svd(matrix, full_matrices=False)
    assert ((torch.linalg.svdvals(found) > 0.6) & (torch.linalg.svdvals(found) < 1.3)).all()
    assert torch.cosine_similarity(found.flatten(), (u @ vt).flatten(), dim=0) > 0.97


@pytest.mark.parametrize("shape", [(12, 12), (24, 8), (8, 24)])
def test_muon_steps_as_torchs_own(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    start, gradients = torch.randn(shape), torch.randn(4, *shape)
    ours, theirs = (start.clone().requires_grad_() for _ in range(2))
    optimizer = Muon([ours], lr=0.1, weight_decay=0.2)
    peer = torch.optim.Muon([theirs], lr=0.1, weight_decay=0.2, momentum=0.95, nesterov=True)
    for gradient in gradients:
        for parameter, moved in ((ours, optimizer), (theirs, peer)):
            parameter.grad = gradient.clone()
            moved.step()
    # Theirs rounds to bfloat16 on the way: equal to 1% of the distance moved.
    assert (ours - theirs).norm() < 0.02 * (ours - start).norm()


def test_every_parameter_is_moved_by_one_group_and_only_matrices_decay() -> None:
    model = GPTModel(SMALL)
    groups = [group for o in make_optimizers(model, recipe().training) for group in o.param_groups]
    moved = Counter(id(parameter) for group in groups for parameter in group["params"])
    assert moved == Counter(id(parameter) for parameter in model.parameters())
    for group in groups:
        assert {parameter.ndim for parameter in group["params"]} == ({2} if group["weight_decay"] else {1})


def test_the_learning_rate_rises_stays_and_falls() -> None:
    shape = TrainingRecipe(steps=100, batch_size=1, warmup_steps=10, decay_steps=50, final_share=0.1)
    rates = [rate_at(step, shape) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9:51] == [1.0] * 42
    assert rates[75] == pytest.approx(0.1 + 0.9 * 0.5)
    assert rates[99] == pytest.approx(0.1 + 0.9 / 50)


def test_steps_are_those_of_a_plain_loop_over_transformers(corpus: Corpus, tmp_path: Path) -> None:
    """The same weights, batches and settings in a loop of their own: the same losses, and the same weights after."""
    plain = recipe(('"muon"', '"adamw"'))
    run = small_run(plain, corpus, tmp_path)
    GPT(run.model, corpus.tokenizer).save(tmp_path / "start")
    peer = GPT2LMHeadModel.from_pretrained(tmp_path / "start", attn_implementation="eager").train()
    t = plain.training
    matrices = [p for p in peer.parameters() if p.ndim == 2]
    others = [p for p in peer.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        lr=1.0,
        betas=(0.9, 0.95),
    )
    for step in range(10):
        inputs, targets = map(torch.from_numpy, run.task.draw(step))
        loss = torch.nn.functional.cross_entropy(peer(inputs).logits.flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = t.learning_rate * rate_at(step, t)
        optimizer.step()
        optimizer.zero_grad()
        assert one_step(run).loss == pytest.approx(loss.item(), abs=1e-4)
    after = ours_of(peer, tmp_path / "after").state_dict()
    for name, value in run.model.state_dict().items():
        assert torch.allclose(value, after[name], atol=1e-4), name


def test_a_batch_in_pieces_makes_the_same_step(corpus: Corpus, tmp_path: Path) -> None:
    runs = [
        small_run(recipe(("batch_size = 8", f"batch_size = 8\nmicro_batch_size = {size}")), corpus, tmp_path)
        for size in (0, 2)
    ]
    for _ in range(3):
        whole, pieces = map(one_step, runs)
        assert whole.loss == pytest.approx(pieces.loss, abs=1e-5)
        assert whole.norm == pytest.approx(pieces.norm, rel=1e-4)


def test_bfloat16_autocast_learns_as_float32_does(corpus: Corpus, tmp_path: Path) -> None:
    losses = []
    for precision in ("float32", "bfloat16"):
        run = small_run(recipe(("float32", precision)), corpus, tmp_path)
        losses.append([one_step(run).loss for _ in range(4)])
    assert losses[0] == pytest.approx(losses[1], abs=0.02)
    assert losses[0] != losses[1]


@pytest.mark.parametrize(
    ("float32", "bfloat16", "checkpoint", "expected"),
    [
        (90.0, 300.0, None, "bfloat16"),
        (90.0, 100.0, None, "float32"),
        (90.0, 3.0, None, "float32"),
        (90.0, 300.0, "float32", "float32 is slow on this machine"),
        (90.0, 120.0, "float32", "float32"),
        (90.0, 80.0, "bfloat16", "bfloat16"),
        (90.0, 3.0, "bfloat16", "bfloat16 is slow on this machine"),
        (90.0, 3.0, "float16", "float16"),
    ],
)
def test_auto_takes_the_measured_precision_or_the_checkpoints(
    monkeypatch: pytest.MonkeyPatch, float32: float, bfloat16: float, checkpoint: str | None, expected: str
) -> None:
    rates = {torch.float32: float32 * 1e9, torch.bfloat16: bfloat16 * 1e9}
    monkeypatch.setattr("clearhead.training.precision._product_rates", lambda device: rates)
    if "slow" in expected:
        with pytest.raises(TrainingError, match=r"which is slow on this machine .* set precision = "):
            choose_precision("auto", torch.device("cpu"), checkpoint)
    else:
        assert dtype_name(choose_precision("auto", torch.device("cpu"), checkpoint).dtype) == expected
    named = choose_precision("float32", torch.device("cpu"), checkpoint)
    assert (named.dtype, named.reason) == (torch.float32, "")


def test_the_precision_is_measured() -> None:
    rates = _product_rates(torch.device("cpu"))
    assert rates.keys() == {torch.float32, torch.bfloat16}
    assert all(1e7 < rate < 1e14 for rate in rates.values())


def test_a_run_resumes_in_the_precision_of_its_checkpoint(
    data: Path, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`auto` keeps it; a recipe that names another precision switches."""
    rates = {torch.float32: 9e10, torch.bfloat16: 2e11}
    monkeypatch.setattr("clearhead.training.precision._product_rates", lambda device: rates)

    def run(steps: int, precision: str, *, resume: bool = True) -> str:
        changes = (("steps = 12", f"steps = {steps}"), ("decay_steps = 4", "decay_steps = 0"), ("float32", precision))
        train(recipe(*changes), data, tmp_path, corpus_folder=corpus.folder, resume=resume)
        return str(read_state(checkpoints(tmp_path)[-1])["precision"])

    assert run(4, "auto", resume=False) == "bfloat16"
    rates[torch.bfloat16] = 8e10
    assert run(5, "auto") == "bfloat16"
    rates[torch.bfloat16] = 1e9
    with pytest.raises(TrainingError, match="computed in bfloat16, which is slow on this machine"):
        run(6, "auto")
    assert run(6, "float32") == "float32"
