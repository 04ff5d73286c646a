"""How fast training is: tokens a second of one step, beside transformers' GPT-2 in a plain PyTorch loop, in one run.

    python bench/training.py [--shapes 10M 124M] [--rounds 3] [--precision bfloat16] [--compile]

Each way starts from the same shape, takes the same batches in the same precision, and makes whole steps: forward,
backward, clipping, AdamW. `clearhead train` lets its process keep the memory that it frees (training/memory.py);
transformers has a row with the same setting, to which the ratio is, and a row without. Each way has a process
of its own. They take turns; the best of the rounds counts.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

import numpy as np
import torch
import torch.nn.functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from clearhead.config import GPTConfig
from clearhead.model import GPTModel
from clearhead.training.cpu.choices import head_operations, use_cpu_kernels
from clearhead.training.distributed import Processes
from clearhead.training.memory import keep_freed_memory
from clearhead.training.objective import Objective
from clearhead.training.optimizer import make_optimizers
from clearhead.training.precision import autocast
from clearhead.training.recipe import TrainingRecipe
from clearhead.training.step import Stepper
from clearhead.training.throughput import peak_flops, training_flops

SHAPES = {
    # name: shape, windows in a batch, tokens in a window
    "10M": (GPTConfig(8192, 512, 320, 5, 6, qkv_bias=True, tie_weights=True), 1, 512),
    "124M": (GPTConfig.named("124M").replace(drop_rate=0.0), 1, 256),
}
PEER = "transformers, memory kept"
Take = Callable[[], float]


def clearhead_step(config: GPTConfig, windows: int, length: int, dtype: torch.dtype, compiled: bool) -> Take:
    """A step of `clearhead train`."""
    keep_freed_memory()
    torch.manual_seed(1)
    recipe = TrainingRecipe(steps=1000, batch_size=windows, warmup_steps=0, compile=compiled, precision="float32")
    model = GPTModel(config)
    if not compiled:
        use_cpu_kernels(model, config, dtype, alone=True, low_gradients=True)
    alone = Processes(0, 1, torch.device("cpu"))
    objective = Objective(model, compiled=compiled, head=head_operations(dtype, alone=True))
    stepper = Stepper(objective, make_optimizers(model, recipe), recipe, alone, dtype, dropout=False)
    batch = ids_of(config, windows, length)
    return lambda: stepper.take(0, batch).loss


def transformers_step(config: GPTConfig, windows: int, length: int, dtype: torch.dtype) -> Take:
    """A step as one writes it with transformers: its own loss, torch's AdamW as it comes."""
    torch.manual_seed(1)
    values = {**config.to_huggingface(), "bos_token_id": 0, "eos_token_id": 0}
    model = GPT2LMHeadModel(GPT2Config(**values)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    inputs, targets = map(torch.from_numpy, ids_of(config, windows, length))

    def take() -> float:
        with autocast(torch.device("cpu"), dtype):
            logits = model(inputs, use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return take


def ids_of(config: GPTConfig, windows: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """A batch of random tokens."""
    ids = np.random.default_rng(1).integers(config.vocab_size, size=(windows, length + 1))
    return ids[:, :-1].copy(), ids[:, 1:].copy()


def serve(name: str, way: str, dtype: torch.dtype, asked: Connection) -> None:
    """Takes a step each time it is asked to, and answers with its seconds."""
    config, windows, length = SHAPES[name]
    if way.startswith("transformers"):
        if way == PEER:
            keep_freed_memory()
        take = transformers_step(config, windows, length, dtype)
    else:
        take = clearhead_step(config, windows, length, dtype, compiled=way.endswith("compiled"))
    while asked.recv():
        start = time.perf_counter()
        take()
        asked.send(time.perf_counter() - start)


def measured(name: str, ways: list[str], rounds: int, dtype: torch.dtype) -> dict[str, float]:
    """The seconds of the fastest step of each way."""
    spawned = multiprocessing.get_context("spawn")
    pipes = {way: spawned.Pipe() for way in ways}
    processes = [spawned.Process(target=serve, args=(name, way, dtype, pipes[way][1]), daemon=True) for way in ways]
    for process in processes:
        process.start()
    best = dict.fromkeys(ways, math.inf)
    for turn in range(rounds + 1):
        for way, (here, _) in pipes.items():
            here.send(True)
            seconds = here.recv()
            if turn > 0:  # in the first, memory is laid out, and code compiled
                best[way] = min(best[way], seconds)
    for here, _ in pipes.values():
        here.send(False)
    for process in processes:
        process.join()
    return best


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument(
        "--compile", action="store_true", help="measure the compiled loop too; it compiles for a minute"
    )
    arguments = parser.parse_args()
    dtype: torch.dtype = getattr(torch, arguments.precision)
    peak = peak_flops(torch.device("cpu"), dtype)
    print(
        f"{torch.get_num_threads()} threads; a large product reaches {peak / 1e9:.0f} GFLOP/s in {arguments.precision}"
    )
    for name in arguments.shapes:
        config, windows, length = SHAPES[name]
        ways = [PEER, "transformers", "clearhead", *(["clearhead, compiled"] if arguments.compile else [])]
        best = measured(name, ways, arguments.rounds, dtype)
        print(f"\n{name}: {windows} x {length} tokens a step")
        for way, seconds in best.items():
            speed = windows * length / seconds
            share = speed * training_flops(config.replace(context_length=length)) / peak
            ratio = best[PEER] / seconds
            print(f"  {way:<29} {speed:9,.0f} tokens/s   {ratio:.2f} times   {100 * share:3.0f}% of peak")


if __name__ == "__main__":
    main()
