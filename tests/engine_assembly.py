"""Print the assembly of the engine's products for another CPU than this one.

    python tests/engine_assembly.py aarch64-unknown-linux-gnu neoverse-v1 +neon,+i8mm,+bf16 int8 8bit

The kernels are specialised for the CPU that is named, as on such a machine; LLVM optimises and translates them for it.
Nothing is run.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from typing import Any

from llvmlite import binding

from clearhead.utils import machine_code


def main() -> None:
    """Read the arguments and print the variant of the kernels and the assembly."""
    triple, cpu, features, dtype, activations = sys.argv[1:6]
    os.environ["NUMBA_OPT"] = "0"  # what Numba optimises is optimised for this CPU
    machine_code.target = lambda: (triple, cpu, features)  # type: ignore[assignment]
    platform.machine = lambda: triple.partition("-")[0]
    print(translate(intermediate_code(dtype, activations), triple, cpu, features))


def intermediate_code(dtype: str, activations: str) -> str:
    """Return LLVM's intermediate representation of the products of a dtype, not optimised."""
    from numba import njit, typeof
    from numba.core.codegen import JITCodeLibrary
    from numba.core.compiler_lock import global_compiler_lock
    from numba.core.cpu import CPUContext

    # Numba would translate the code for this CPU at once, which has no such instructions.
    JITCodeLibrary._finalize_specific = lambda self: None
    CPUContext.get_executable = lambda self, library, fndesc, env: print  # nobody calls it

    from clearhead.config import GPTConfig
    from clearhead.engine.building import layout, weights_of
    from clearhead.engine.pages import cache_type
    from clearhead.engine.products import multiply
    from clearhead.engine.runner import _new_scratch
    from clearhead.engine.variants import VARIANT

    print(f"# variant {VARIANT.name}")
    config = GPTConfig(vocab_size=64, context_length=8, emb_dim=64, n_heads=1, n_layers=1)
    weights = weights_of(make_arrays(layout(config, dtype, activations)))
    stored = weights.up.weights.dtype
    scratch = _new_scratch(config, 1, stored, cache_type(stored))

    @njit(nogil=True, error_model="numpy", _nrt=False)
    def run(matrix: Any, columns: int, panels: int, inputs: Any, tokens: int, result: Any) -> None:
        multiply(matrix, 0, columns, 0, panels, inputs, 0, tokens, result, 0, 0)

    kinds = tuple(typeof(one) for one in (weights.up, 64, 2, scratch.inputs, 1, scratch.projected))
    run.compile(kinds)
    (compiled,) = run.overloads.values()
    with global_compiler_lock:
        compiled.library.finalize()  # put what it calls into the same module
    return str(compiled.library.get_llvm_str())


def make_arrays(kinds: dict[str, tuple[Any, tuple[int, ...]]]) -> dict[str, Any]:
    """Return arrays of zeros of these types and shapes."""
    import numpy as np

    return {name: np.zeros(shape, kind) for name, (kind, shape) in kinds.items()}


def translate(code: str, triple: str, cpu: str, features: str) -> str:
    """Optimise LLVM's intermediate representation for a CPU, and return its assembly."""
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    machine = binding.Target.from_triple(triple).create_target_machine(cpu, features, opt=3)
    code = re.sub(r"^target (triple|datalayout) = .*$", "", code, flags=re.MULTILINE)
    module = binding.parse_assembly(f'target datalayout = "{machine.target_data}"\ntarget triple = "{triple}"\n{code}')
    builder = binding.create_pass_builder(machine, binding.create_pipeline_tuning_options(speed_level=3))
    builder.getModulePassManager().run(module, builder)
    return machine.emit_assembly(module)


if __name__ == "__main__":
    main()
