"""The kernel variants: one source of kernels, specialised for a CPU when it is compiled.

A variant says how wide vectors are, how many sums a tile holds in registers, and which instruction multiplies whole
numbers. The first variant of the table that the CPU can run is taken; CLEARHEAD_KERNELS names another one. Results have
the same bits for any batch, prompt split and number of threads within a variant; between two variants they differ in
rounding.
"""

from __future__ import annotations

import os
import platform
from typing import NamedTuple

from clearhead.errors import InputError
from clearhead.utils.machine_code import KERNELS_VARIABLE, target


class Variant(NamedTuple):
    """One row of the table.

    Attributes:
        name: what CLEARHEAD_KERNELS calls it.
        features: what the CPU must have, in LLVM's words.
        lanes: 32-bit numbers in a vector.
        float_tokens: tokens in the largest tile of a product in float32 (a tile is two vectors of rows wide).
        pair_tokens: the same for 16-bit activations, whose products are summed in int32.
        group_tokens: the same for 8-bit activations; each sum needs a second register, for the groups in float32.
        queries: tokens that attend together.
        dot: the LLVM intrinsic that adds four products of bytes to an int32, or "" to build it from 16-bit products.
        bfloat16: whether bfloat16 weights are multiplied by bfloat16 activations, in one instruction for two columns.
        activations: how activations are rounded for int8 and int4 weights unless the caller says otherwise.
    """

    name: str
    features: frozenset[str]
    lanes: int
    float_tokens: int
    pair_tokens: int
    group_tokens: int
    queries: int
    dot: str
    bfloat16: bool
    activations: str


_AVX512 = frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl", "fma"})
_VNNI = _AVX512 | {"avx512vnni"}
_NEON_DOT = frozenset({"neon", "i8mm"})
_AVX2 = frozenset({"avx2", "fma"})

VARIANTS = (
    Variant("avx512-bf16", _VNNI | {"avx512bf16"}, 16, 8, 8, 8, 6, "llvm.x86.avx512.vpdpbusd.512", True, "8bit"),
    Variant("avx512-vnni", _VNNI, 16, 8, 8, 8, 6, "llvm.x86.avx512.vpdpbusd.512", False, "8bit"),
    Variant("avx512", _AVX512, 16, 8, 8, 6, 6, "", False, "16bit"),
    Variant("avx-vnni", _AVX2 | {"avxvnni"}, 8, 6, 5, 3, 3, "llvm.x86.avx512.vpdpbusd.256", False, "8bit"),
    Variant("avx512-vnni-256", _VNNI, 8, 8, 8, 6, 6, "llvm.x86.avx512.vpdpbusd.256", False, "8bit"),
    Variant("avx2", _AVX2, 8, 6, 6, 3, 3, "", False, "16bit"),
    Variant("neon-dot", _NEON_DOT, 4, 8, 8, 4, 6, "llvm.aarch64.neon.usdot.v4i32.v16i8", False, "8bit"),
    Variant("generic", frozenset(), 4, 4, 4, 3, 3, "", False, "16bit"),
)
"""All variants, the best first."""


def cpu_features() -> frozenset[str]:
    """Return the features of the CPU that code is compiled for, in LLVM's words."""
    return frozenset(word[1:] for word in target()[2].split(",") if word.startswith("+"))


def runnable() -> list[Variant]:
    """Return the variants that the CPU can run, the best first."""
    features = cpu_features()
    return [variant for variant in VARIANTS if variant.features <= features]


def choose() -> Variant:
    """Return the variant of this process.

    Raises:
        InputError: if CLEARHEAD_KERNELS names a variant that does not exist or that the CPU cannot run.
    """
    available = runnable()
    name = os.environ.get(KERNELS_VARIABLE, "")
    if not name:
        return available[0]
    for variant in VARIANTS:
        if variant.name == name:
            if variant not in available:
                missing = ", ".join(sorted(variant.features - cpu_features()))
                raise InputError(
                    f"{KERNELS_VARIABLE} is {name}, and this CPU ({platform.machine()}) lacks {missing}; "
                    f"it can run {', '.join(one.name for one in available)}."
                )
            return variant
    raise InputError(
        f"{KERNELS_VARIABLE} is {name!r}, which is no kernel variant; "
        f"there are {', '.join(one.name for one in VARIANTS)}."
    )


VARIANT = choose()
LANES = VARIANT.lanes
"""32-bit numbers in a vector."""
