"""Ten AdamW steps of GPT-2 124M on one batch, beside the losses that llm.c publishes for them.

    python bench/llmc_ten_steps.py gpt2                 the official weights, from the hub or a folder
    python bench/llmc_ten_steps.py MODEL --batch 2 16   another model: prints its losses, with nothing to compare to

The batch is the first 4 windows of 64 tokens of tiny Shakespeare's validation part. llm.c's test_gpt2.c (at commit
f1e2ace) takes the loss before each of ten updates of AdamW: learning rate 1e-4, betas 0.9 and 0.999, epsilon 1e-8,
weight decay 0.01 on every parameter, no clipping, in float32; and it allows 0.01 between C and PyTorch. The steps here
are those of `clearhead train`: its head loss and its fused AdamW. Exits with 1 where a loss is further away.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np
import torch

from clearhead.data.batches import Batch
from clearhead.loading import load
from clearhead.model import GPTModel
from clearhead.training.distributed import Processes
from clearhead.training.objective import Objective
from clearhead.training.recipe import TrainingRecipe
from clearhead.training.step import Stepper

PUBLISHED = (
    *(5.270007133483887, 4.059706687927246, 3.3751230239868164, 2.8007826805114746, 2.315382242202759),
    *(1.8490285873413086, 1.3946564197540283, 0.9991465210914612, 0.6240804195404053, 0.37651097774505615),
)
TOLERANCE = 1e-2

# The first 4 * 64 + 1 tokens of tiny Shakespeare's validation part, as llm.c's dev/data/tinyshakespeare.py makes it.
TOKENS = """
    50256 5962 22307 25 198 8421 356 5120 597 2252 11 3285 502 2740 13 628 50256 3237 25 198 5248 461 11 2740 13
    628 50256 5962 22307 25 198 1639 389 477 12939 2138 284 4656 621 284 1145 680 30 628 50256 3237 25 198 4965
    5634 13 12939 13 628 50256 5962 22307 25 198 5962 11 345 760 327 1872 385 1526 28599 318 4039 4472 284 262
    661 13 628 50256 3237 25 198 1135 760 470 11 356 760 470 13 628 50256 5962 22307 25 198 5756 514 1494 683 11
    290 356 1183 423 11676 379 674 898 2756 13 198 3792 470 257 15593 30 628 50256 3237 25 198 2949 517 3375 319
    470 26 1309 340 307 1760 25 1497 11 1497 0 628 50256 12211 22307 25 198 3198 1573 11 922 4290 13 628 50256
    5962 22307 25 198 1135 389 17830 3595 4290 11 262 1458 1173 1547 922 13 198 2061 4934 969 5036 896 319 561
    26958 514 25 611 484 198 19188 7800 514 475 262 48713 414 11 981 340 547 198 1929 4316 462 11 356 1244 4724
    484 22598 514 31533 306 26 198 4360 484 892 356 389 1165 13674 25 262 10904 1108 326 198 2001 42267 514 11
    262 2134 286 674 24672 11 318 355 281 198 24807 284 1948 786 511 20038 26 674 198 82 13712 590 318 257 4461
    284 606 3914 514 15827 428 351 198 454 279
"""


def ten_steps(model: GPTModel, batch: Batch) -> list[float]:
    """The loss before each of ten updates on one batch, as llm.c makes them."""
    recipe = TrainingRecipe(steps=10, batch_size=len(batch[0]), warmup_steps=0, clip_norm=1e30, precision="float32")
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-4, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01, fused=True
    )
    alone = Processes(0, 1, torch.device("cpu"))
    # Dropout is off, as in llm.c, whatever the config says.
    stepper = Stepper(Objective(model.eval()), [optimizer], recipe, alone, torch.float32, dropout=False)
    return [stepper.take(number, batch, rate=1.0).loss for number in range(10)]


def main() -> None:
    """Reads the arguments, takes the steps, compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--batch", nargs=2, type=int, metavar=("B", "T"), help="random tokens instead of Shakespeare")
    arguments = parser.parse_args()
    model = load(arguments.model).model
    if arguments.batch:
        ids = np.random.default_rng(1).integers(model.config.vocab_size, size=arguments.batch)
        batch: Batch = ids, np.roll(ids, -1, axis=1)
    else:
        tokens = np.array(TOKENS.split(), np.int64)
        batch = tokens[:-1].reshape(4, 64), tokens[1:].reshape(4, 64)
    losses = ten_steps(model, batch)
    if arguments.batch:
        print("\n".join(f"step {n}: {loss:.6f}" for n, loss in enumerate(losses)))
        return
    print("step  clearhead      llm.c  difference")
    for number, (loss, expected) in enumerate(zip(losses, PUBLISHED, strict=True)):
        print(f"{number:4} {loss:10.6f} {expected:10.6f} {loss - expected:11.6f}")
    furthest = max(abs(loss - expected) for loss, expected in zip(losses, PUBLISHED, strict=True))
    print(f"furthest away: {furthest:.2g} (llm.c allows {TOLERANCE:g})")
    sys.exit(furthest > TOLERANCE)


if __name__ == "__main__":
    main()
