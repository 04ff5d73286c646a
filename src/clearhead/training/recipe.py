"""The settings of a recipe: everything that decides the result of a training run.

A recipe is a TOML file (`recipe_reader.py` reads it) with three tables: `[model]` (the fields of `GPTConfig`),
`[corpus]` (the texts and their shares) and `[training]` (steps, batch, optimizer, schedule); or with two, if an
existing model is trained further: `[finetune]` (the model and its data) and `[training]`. Two runs of one recipe on the
same texts see the same batches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Literal

from clearhead.config import GPTConfig
from clearhead.data.corpus_recipe import CorpusRecipe

Precision = Literal["auto", "float32", "bfloat16", "float16"]
OptimizerName = Literal["adamw", "muon", "normuon"]
Schedule = Literal["wsd", "cosine"]
OnSpike = Literal["report", "skip"]
FineTuneKind = Literal["text", "instructions", "preferences", "classes"]
CountedTokens = Literal["response", "all"]
Freeze = Literal["none", "all but the last block"]
Parallel = Literal["replicate", "shard", "hybrid"]

TrackerName = Literal["tensorboard", "wandb", "mlflow"]


@dataclass(frozen=True, slots=True)
class FineTuneRecipe:
    """The `[finetune]` table: an existing model and its new training data.

    Attributes:
        start: the model: `bundled`, a folder, a file of weights (relative to the current folder), or a name on the
            hub.
        kind: `text` continues pre-training on a file of documents; `instructions` trains on prompts and responses,
            with the loss on the responses; `preferences` on prompts with a `chosen` and a `rejected` response (DPO);
            `classes` adds a classification head that reads the last token.
        train: the training file, relative to the data folder. For `text`, documents separated by a line
            `<|endoftext|>`; otherwise JSON lines, a JSON array, CSV or TSV with `prompt` and `response` (or
            `instruction`, `input` and `output`), or with `text` and `label`.
        valid: a held-out file in the same format; empty for none.
        test: another one, on which the model is evaluated once, after training: its scores are recorded, and responses
            or predictions for it are written to `test.jsonl`.
        valid_share, test_share: in place of such files, the shares of the examples in `train` to hold out, drawn at
            random by the seed.
        template: the text before the response, with `{prompt}`, or with `{instruction}` and `{input}`, for the prompt;
            or `alpaca` or `phi3`, the templates of the book's chapter 7. Special tokens in it are tokens.
        loss: of `instructions`, which tokens count: those of the `response`, or `all`.
        response_tokens: the maximum length of a response to a test example.
        beta: of `preferences`, how closely the model stays to the one it starts from (Rafailov et al. 2023).
        freeze: which weights stay as they are: `none`, or all but the last block, the final norm and a new head
            (`all but the last block`).
        save_adapter: whether the LoRA matrices are also saved by themselves, for the library peft.
        context_length: the maximum number of tokens of an example, or of a window of text; 0 for the model's own.
        lora_rank: the rank of the LoRA matrices, which are trained instead of the model's own (Hu et al. 2021); 0 to
            train all weights.
        lora_alpha: the factor of the LoRA matrices' product, over lora_rank.
        lora_dropout: the dropout rate before them.
    """

    start: str
    kind: FineTuneKind
    train: str
    valid: str = ""
    test: str = ""
    valid_share: float = 0.0
    test_share: float = 0.0
    template: str = "{prompt}"
    loss: CountedTokens = "response"
    response_tokens: int = 256
    beta: float = 0.1
    freeze: Freeze = "none"
    save_adapter: bool = False
    context_length: int = 0
    lora_rank: int = 0
    lora_alpha: float = 16.0
    lora_dropout: float = 0.0


@dataclass(frozen=True, slots=True)
class TrainingRecipe:
    """The `[training]` table: how the model is trained.

    Attributes:
        steps: optimizer steps; steps, tokens and words may be texts such as `10k`, `1.5M` or `2B`; or, in place of it,
        epochs: how often the training data are seen; or
        tokens: how many tokens are seen; or
        words: how many words are seen, as white space separates them.
        batch_size: windows of context_length tokens in one step.
        micro_batch_size: windows computed at once; gradients are accumulated over batch_size / micro_batch_size of
            them. 0: the whole batch at once.
        seed: the seed of the initial weights, the order of the batches and the dropout.
        optimizer: `adamw` for every parameter, or `muon` or `normuon` for the blocks' matrices and AdamW for the rest.
        learning_rate: AdamW's peak learning rate.
        muon_learning_rate: Muon's and NorMuon's peak learning rate.
        beta_1, beta_2: AdamW's averaging of gradients and of their squares.
        weight_decay: AdamW's and Muon's, on matrices only (not on norms and biases).
        clip_norm: longer gradients (all together) are scaled to this norm.
        warmup_steps: the steps over which the learning rate rises from 0.
        schedule: what follows: `wsd` stays at the peak until the decay, `cosine` falls from there to the end.
        decay_steps: for `wsd`, the last steps, over which it falls linearly to `final_share` of its peak.
        final_share: the learning rate at the end, as a share of its peak.
        precision: `bfloat16` and `float16` autocast the matrix products, float16 with a scaled loss; `auto` chooses
            bfloat16 if it is faster on this machine.
        compile: whether torch.compile fuses the step; it needs a C++ compiler on a CPU.
        recompute: keep only the input of each block, and compute its inside again in the backward pass (activation
            checkpointing): less memory for a third more time.
        head_chunk: tokens whose logits are in memory at a time; 0 for as many as make 64 MiB.
        on_spike: what happens to a step whose loss or gradient norm jumps: `report` takes it, `skip` skips it. A loss
            that is NaN or infinite is skipped by `skip` and stops the run otherwise.
        parallel: with several processes, whether each has the whole model (`replicate`, DDP) or a part (`shard`,
            FSDP2, for a model that does not fit), or groups of processes share a replica (`hybrid`, FSDP2's HSDP).
        shard_processes: with `hybrid`, the number of processes in such a group; 0 for those of a machine.
        log_every: steps between lines of metrics.
        log_to: where metrics go besides the run's folder, of `tensorboard`, `wandb` and `mlflow`; TensorBoard, if it
            is installed, by default.
        evaluate_every: steps between validations.
        evaluate_windows: windows of each held-out text in such a validation; the end evaluates all of it.
        samples: prompts that the model continues at each validation.
        sample_tokens: the tokens of each continuation.
        sampling: the sampling options of the continuations, such as `temperature` and `top_p`; those that are not
            given have the defaults of `GPT.generate`, and the seed 1.
        checkpoint_every: steps between checkpoints.
        async_checkpoints: whether checkpoints are written in the background, from a copy in memory, while training goes
            on.
        keep_checkpoints: the number of checkpoints to keep; older ones are deleted.
        milestones: points of the run such as `1000 steps`, `2 epochs`, `10M tokens` or `1M words`, at which a
            checkpoint is written that is never deleted.
    """

    batch_size: int
    steps: int = 0
    epochs: float = 0.0
    tokens: float = 0.0
    words: float = 0.0
    micro_batch_size: int = 0
    seed: int = 1
    optimizer: OptimizerName = "adamw"
    learning_rate: float = 1e-3
    muon_learning_rate: float = 0.02
    beta_1: float = 0.9
    beta_2: float = 0.95
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    warmup_steps: int = 100
    schedule: Schedule = "wsd"
    decay_steps: int = 0
    final_share: float = 0.0
    precision: Precision = "auto"
    compile: bool = False
    recompute: bool = False
    head_chunk: int = 0
    on_spike: OnSpike = "report"
    parallel: Parallel = "replicate"
    shard_processes: int = 0
    log_every: int = 10
    log_to: tuple[str, ...] = ()
    evaluate_every: int = 250
    evaluate_windows: int = 32
    samples: tuple[str, ...] = ()
    sample_tokens: int = 40
    sampling: Mapping[str, Any] = field(default_factory=dict)
    checkpoint_every: int = 250
    async_checkpoints: bool = False
    keep_checkpoints: int = 2
    milestones: tuple[str, ...] = ()


RESUMABLE_KEYS = frozenset(
    (
        *("steps", "decay_steps", "final_share", "schedule", "warmup_steps"),  # the rates themselves are compared
        *(
            "parallel",
            "shard_processes",
            "log_every",
            "log_to",
            "evaluate_every",
            "evaluate_windows",
            "samples",
            "sample_tokens",
            "sampling",
        ),
        *("checkpoint_every", "async_checkpoints", "keep_checkpoints", "milestones", "epochs", "tokens", "words"),
        *(
            "start",
            "train",
            "valid",
            "test",
            "response_tokens",
            "save_adapter",
        ),  # the weights and the training text are compared themselves
        "precision",  # the resolved precision is compared
    )
)
"""Keys of `[training]` and `[finetune]` that may change between a checkpoint and the run that resumes from it."""


DEFAULTS: Mapping[str, Any] = {
    f.name: f.default for table in (FineTuneRecipe, TrainingRecipe) for f in fields(table) if f.default is not MISSING
}
"""The defaults of the keys of `[finetune]` and `[training]`."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """A whole recipe.

    Attributes:
        shape: the model's configuration; None in a recipe with `[finetune]` until its model is opened.
        corpus: the texts; empty in a recipe with `[finetune]`.
        training: the `[training]` table.
        finetune: the `[finetune]` table; None if the model is trained from scratch.
        text: the TOML that it was read from, stored with the run.
    """

    shape: GPTConfig | None
    corpus: CorpusRecipe
    training: TrainingRecipe
    finetune: FineTuneRecipe | None = None
    text: str = ""

    @property
    def model(self) -> GPTConfig:
        """The model's configuration."""
        assert self.shape is not None, "the model that the recipe starts from was not opened yet"
        return self.shape

    @property
    def verb(self) -> Literal["generate", "chat", "classify"]:
        """The verb of the command line that uses the trained model."""
        if self.finetune is None or self.finetune.kind == "text":
            return "generate"
        return "classify" if self.finetune.kind == "classes" else "chat"
