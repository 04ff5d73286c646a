"""The engine's products, translated for CPUs that need not be at hand: the instructions of their inner loops."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from llvmlite import binding

_SCRIPT = Path(__file__).with_name("engine_assembly.py")
_ARM = "aarch64-unknown-linux-gnu"
_X86 = "x86_64-unknown-linux-gnu"
_NEOVERSE = (_ARM, "neoverse-v1", "+neon,+fp-armv8,+dotprod,+i8mm,+bf16")
_OLDER_ARM = (_ARM, "neoverse-n1", "+neon,+fp-armv8,+dotprod")
_AVX2 = (_X86, "znver3", "+avx2,+fma,+avx,+f16c,+bmi2")
_AVX512 = (_X86, "znver4", "+avx512f,+avx512bw,+avx512dq,+avx512vl,+avx512vnni,+avx512bf16,+avx2,+fma,+avx")
_LABEL = re.compile(r"^(\.L\w+):", re.MULTILINE)
_STACK = re.compile(r"\[sp\b|\(%rsp\b|\(%rbp\)")


def _assembly(target: tuple[str, str, str], dtype: str, activations: str) -> str:
    binding.initialize_all_targets()
    try:
        binding.Target.from_triple(target[0])
    except RuntimeError:
        pytest.skip(f"this llvmlite cannot compile for {target[0]}")
    chosen_here = ("NUMBA_", "CLEARHEAD_KERNELS")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(chosen_here)}
    command = [sys.executable, str(_SCRIPT), *target, dtype, activations]
    made = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return made.stdout


def _loops(assembly: str) -> list[str]:
    """Return the bodies of the loops that consist of one block."""
    _, *blocks = _LABEL.split(assembly)
    labels, bodies = blocks[::2], blocks[1::2]
    jump = r"^\s+(?:j\w+|b\.\w+|cbn?z\s+\w+,)\s+{}$"
    return [
        body
        for label, body in zip(labels, bodies, strict=True)
        if re.search(jump.format(re.escape(label)), body, re.MULTILINE)
    ]


@pytest.mark.parametrize(
    ("target", "dtype", "activations", "variant", "instruction", "least"),
    [
        # `least`: how often the instruction stands in the loop of the largest tile, two vectors of rows by its tokens
        (_NEOVERSE, "int8", "8bit", "neon-dot", r"usdot\s", 2 * 4 * 16),
        (_NEOVERSE, "int4", "8bit", "neon-dot", r"usdot\s", 2 * 4 * 8),
        (_NEOVERSE, "float32", "16bit", "neon-dot", r"fmla\s.*\.s\[", 2 * 8 * 4),
        (_OLDER_ARM, "int8", "16bit", "generic", r"addp\s", 2 * 4 * 8),
        (_AVX2, "int8", "16bit", "avx2", r"vpmaddwd\s", 2 * 6 * 8),
        (_AVX512, "int8", "8bit", "avx512-bf16", r"vpdpbusd\s.*%zmm", 2 * 8 * 16),
        (_AVX512, "bfloat16", "16bit", "avx512-bf16", r"vdpbf16ps\s.*%zmm", 2 * 8 * 32),
    ],
)
def test_the_largest_tile_consists_of_the_right_instruction(
    target: tuple[str, str, str], dtype: str, activations: str, variant: str, instruction: str, least: int
) -> None:
    assembly = _assembly(target, dtype, activations)
    assert assembly.startswith(f"# variant {variant}\n")
    counts = {len(re.findall(instruction, body)): body for body in _loops(assembly)}
    most = max(counts)
    assert most >= least
    # A register too many is a sum that goes through memory for each of its products.
    assert len(_STACK.findall(counts[most])) <= most // 4, counts[most]
