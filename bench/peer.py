"""Runs one program on one model and prints how long everything took, as one line of JSON.

    python peer.py PROGRAM FORM FOLDER --threads 2

`peers.py` calls it, each program in a process of its own and in the Python that has it. FOLDER is what
`peer_models.py` made. All programs get the same work, greedy, on fresh random ids: prompts, and tokens one by one.
The time of a prompt is from the call until its first token is there; that of a token from one to the next.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

VOCABULARY = 50256  # of the ids that GPT-2 has, those before the end of text
Prompts = list[list[int]]


class Program(Protocol):
    """A program with a model in it."""

    version: str

    def write(self, prompts: Prompts, n: int) -> list[float]:
        """Goes on from prompts of one length, together, by n tokens each.

        Returns:
            n times in seconds: until the first token of all, and from each to the next.
        """


class Clearhead:
    """Clearhead's compiled engine."""

    def __init__(self, form: Any, folder: Path, threads: int) -> None:
        import clearhead

        self.version = clearhead.__version__
        self._runner = clearhead.load(folder / "transformers", backend="engine", dtype=form, threads=threads).runner

    def write(self, prompts: Prompts, n: int) -> list[float]:
        slots = [self._runner.open() for _ in prompts]
        given: list[Any] = prompts
        times = []
        for _ in range(n):
            start = time.perf_counter()
            logits = self._runner.extend(list(zip(slots, given, strict=True)))
            given = [[int(row.argmax())] for row in logits]
            times.append(time.perf_counter() - start)
        for slot in slots:
            self._runner.close(slot)
        return times


class Transformers:
    """Hugging Face's transformers: the model called directly with its key/value cache, without `generate` around it."""

    def __init__(self, form: str, folder: Path, threads: int) -> None:
        import torch
        import transformers

        torch.set_num_threads(threads)
        self.version = f"{transformers.__version__}, torch {torch.__version__}"
        kind = transformers.GPT2LMHeadModel
        self._model = kind.from_pretrained(folder / "transformers", dtype=getattr(torch, form)).eval()

    def write(self, prompts: Prompts, n: int) -> list[float]:
        import torch

        times = []
        with torch.inference_mode():
            given, cache = torch.tensor(prompts), None
            for _ in range(n):
                start = time.perf_counter()
                out = self._model(given, past_key_values=cache, use_cache=True, logits_to_keep=1)
                given, cache = out.logits[:, -1:].argmax(-1), out.past_key_values
                times.append(time.perf_counter() - start)
        return times


class TorchAO:
    """transformers with weights quantized by torchao, compiled by torch.compile."""

    def __init__(self, form: str, folder: Path, threads: int) -> None:
        import torch
        import torchao
        import transformers
        from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        torch.set_num_threads(threads)
        self.version = f"{torchao.__version__}, torch {torch.__version__}"
        kind = transformers.GPT2LMHeadModel
        model = kind.from_pretrained(folder / "transformers", dtype=torch.bfloat16).eval()
        for block in model.transformer.h:  # GPT-2's matrices are Conv1D there, which torchao does not know
            for owner, name in (
                (block.attn, "c_attn"),
                (block.attn, "c_proj"),
                (block.mlp, "c_fc"),
                (block.mlp, "c_proj"),
            ):
                old = getattr(owner, name)
                rows, columns = old.weight.shape
                linear = torch.nn.Linear(rows, columns, dtype=old.weight.dtype)
                linear.weight.data, linear.bias.data = old.weight.data.T.contiguous(), old.bias.data
                setattr(owner, name, linear)
        head = model.lm_head.weight.detach()  # the kernel of int4 wants a multiple of 16 rows
        model.lm_head.weight = torch.nn.Parameter(torch.nn.functional.pad(head, (0, 0, 0, -len(head) % 16)))
        if form == "int8":
            quantize_(model, Int8WeightOnlyConfig())
        else:  # the one for CPUs
            quantize_(model, PrototypeInt4WeightOnlyConfig(group_size=32))
        self._config, self._model = model.config, torch.compile(model, dynamic=True)

    def write(self, prompts: Prompts, n: int) -> list[float]:
        import torch
        import transformers

        times = []
        with torch.inference_mode():
            given = torch.tensor(prompts)
            cache = transformers.StaticCache(self._config, max_cache_len=1024)
            start_position = 0
            for _ in range(n):
                start = time.perf_counter()
                positions = torch.arange(start_position, start_position + given.shape[1])
                out = self._model(
                    given, past_key_values=cache, use_cache=True, logits_to_keep=1, cache_position=positions
                )
                start_position += given.shape[1]
                given = out.logits[:, -1:, : self._config.vocab_size].argmax(-1)
                times.append(time.perf_counter() - start)
        return times


class CTranslate2:
    """CTranslate2's Generator, which tells each token as it comes."""

    def __init__(self, form: str, folder: Path, threads: int) -> None:
        import ctranslate2

        self.version = ctranslate2.__version__
        path = folder / f"ctranslate2-{form}"
        self._generator = ctranslate2.Generator(
            str(path), device="cpu", compute_type=form, inter_threads=1, intra_threads=threads
        )
        self._tokens = json.loads((path / "vocabulary.json").read_text(encoding="utf-8"))

    def write(self, prompts: Prompts, n: int) -> list[float]:
        came: list[float] = []

        def tell(step: Any) -> bool:
            if step.batch_id == 0:
                came.append(time.perf_counter())
            return False

        words = [[self._tokens[id] for id in ids] for ids in prompts]
        start = time.perf_counter()
        self._generator.generate_batch(
            words, max_length=n, min_length=n, beam_size=1, include_prompt_in_result=False, end_token=[], callback=tell
        )
        assert len(came) == n
        return [b - a for a, b in itertools.pairwise([start, *came])]


class LlamaCpp:
    """llama.cpp through the C interface that llama-cpp-python gives.

    Its default, flash attention, is the faster one for a prompt and a short context, and the slower one for single
    tokens after a long context: there it is switched off.
    """

    def __init__(self, form: str, folder: Path, threads: int) -> None:
        import llama_cpp

        self._lib: Any = llama_cpp
        self.version = f"llama-cpp-python {llama_cpp.__version__}"
        self._log = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._log, None)
        llama_cpp.llama_backend_init()
        model = llama_cpp.llama_model_load_from_file(
            str(folder / f"gguf-{form}").encode(), llama_cpp.llama_model_default_params()
        )
        self._model, self._threads = model, threads
        self._size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        self._contexts: dict[tuple[int, bool], Any] = {}

    def _context(self, sequences: int, flash: bool) -> Any:
        if (sequences, flash) not in self._contexts:
            params = self._lib.llama_context_default_params()
            params.n_ctx, params.n_batch, params.n_ubatch = 1024 * sequences, 1024, 512
            params.n_seq_max = sequences
            params.n_threads = params.n_threads_batch = self._threads
            if not flash:
                params.flash_attn_type = self._lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
            self._contexts[sequences, flash] = self._lib.llama_init_from_model(self._model, params)
        return self._contexts[sequences, flash]

    def write(self, prompts: Prompts, n: int) -> list[float]:
        import numpy as np

        lib, context = self._lib, self._context(len(prompts), flash=n == 1 or len(prompts[0]) < 512)
        lib.llama_memory_clear(lib.llama_get_memory(context), True)
        batch = lib.llama_batch_init(1024, 0, 1)
        given, done, times = prompts, 0, []
        for _ in range(n):
            start = time.perf_counter()
            rows = [(id, done + i, seq, i == len(ids) - 1) for seq, ids in enumerate(given) for i, id in enumerate(ids)]
            batch.n_tokens = len(rows)
            for at, (id, place, seq, wanted) in enumerate(rows):
                batch.token[at], batch.pos[at], batch.n_seq_id[at] = id, place, 1
                batch.seq_id[at][0], batch.logits[at] = seq, wanted
            if lib.llama_decode(context, batch):
                raise SystemExit("llama.cpp could not run the tokens")
            last = [at for at, row in enumerate(rows) if row[3]]
            found = [np.ctypeslib.as_array(lib.llama_get_logits_ith(context, at), (self._size,)) for at in last]
            done += len(given[0])
            given = [[int(row.argmax())] for row in found]
            times.append(time.perf_counter() - start)
        lib.llama_batch_free(batch)
        return times


class OpenVINO:
    """OpenVINO GenAI's LLMPipeline with its defaults, which keep the cache of keys and values in 8 bits."""

    def __init__(self, form: str, folder: Path, threads: int) -> None:
        import openvino_genai

        self.version = openvino_genai.__version__
        self._pipeline = openvino_genai.LLMPipeline(
            str(folder / f"openvino-{form}"), "CPU", INFERENCE_NUM_THREADS=threads
        )

    def write(self, prompts: Prompts, n: int) -> list[float]:
        import numpy as np
        import openvino
        import openvino_genai

        config = openvino_genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = n, True, False
        ids = np.array(prompts, np.int64)
        mask = openvino.Tensor(np.ones_like(ids))
        result = self._pipeline.generate(openvino_genai.TokenizedInputs(openvino.Tensor(ids), mask), config)
        assert all(len(tokens) == n for tokens in result.tokens)
        raw = result.perf_metrics.raw_metrics
        came = [at / 1e3 for at in raw.m_new_token_times]
        return [raw.m_times_to_first_token[0] / 1e6, *(b - a for a, b in itertools.pairwise(came))]


class OnnxRuntime:
    """ONNX Runtime on Clearhead's own export, which has a cache of keys and values, quantized by ONNX Runtime.

    The export returns the logits of every token, so a prompt's time includes the head for all of it.
    """

    def __init__(self, form: str, folder: Path, threads: int) -> None:
        import onnxruntime

        self.version = onnxruntime.__version__
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        file = folder / f"onnx-{form}" / "model.onnx"
        self._session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self._config = json.loads((folder / "transformers" / "config.json").read_text(encoding="utf-8"))

    def write(self, prompts: Prompts, n: int) -> list[float]:
        import numpy as np

        names = [one.name for one in self._session.get_inputs()]
        heads, width = self._config["n_head"], self._config["n_embd"]
        empty = np.zeros((len(prompts), heads, 0, width // heads), np.float32)
        cache = {name: empty for name in names if name.startswith("past_key_values")}
        results = [one.name for one in self._session.get_outputs()]
        given, done, times = np.array(prompts, np.int64), 0, []
        for _ in range(n):
            start = time.perf_counter()
            end = done + given.shape[1]
            inputs = {"input_ids": given, **cache}
            if "position_ids" in names:
                inputs["position_ids"] = np.tile(np.arange(done, end), (len(given), 1))
            if "attention_mask" in names:
                inputs["attention_mask"] = np.ones((len(given), end), np.int64)
            found = dict(zip(results, self._session.run(None, inputs), strict=True))
            given, done = found["logits"][:, -1:].argmax(-1), end
            cache = {name: found[name.replace("past_key_values", "present")] for name in cache}
            times.append(time.perf_counter() - start)
        return times


PROGRAMS: dict[str, Callable[[str, Path, int], Program]] = {
    "clearhead": Clearhead,
    "transformers": Transformers,
    "torchao": TorchAO,
    "ctranslate2": CTranslate2,
    "llama.cpp": LlamaCpp,
    "openvino": OpenVINO,
    "onnxruntime": OnnxRuntime,
}


def measure(program: Program, runs: int, tokens: int, together: int) -> dict[str, list[float]]:
    """The times of each kind of work in seconds, of several runs; a first, short one is not counted."""
    draw = random.SystemRandom()

    def fresh(sequences: int, length: int) -> Prompts:
        return [[draw.randrange(VOCABULARY) for _ in range(length)] for _ in range(sequences)]

    program.write(fresh(1, 512), 4)
    program.write(fresh(together, 16), 4)
    times: dict[str, list[float]] = {name: [] for name in ("prompt 512", "decode 128", "decode 900", "together 128")}
    for _ in range(runs):
        times["prompt 512"] += program.write(fresh(1, 512), 1)
        times["decode 128"] += program.write(fresh(1, 128), tokens + 1)[1:]
        times["decode 900"] += program.write(fresh(1, 900), tokens + 1)[1:]
        times["together 128"] += program.write(fresh(together, 128), tokens // 2 + 1)[1:]
    return times


def main() -> None:
    """Reads the arguments, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", choices=PROGRAMS)
    parser.add_argument("form")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=24, help="decoded in a run")
    parser.add_argument("--together", type=int, default=8, help="sequences decoded together")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    start = time.perf_counter()
    program = PROGRAMS[arguments.program](arguments.form, arguments.folder, arguments.threads)
    loading = time.perf_counter() - start
    times = measure(program, arguments.runs, arguments.tokens, arguments.together)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"version": program.version, "load": loading, "peak_bytes": peak, "times": times}), flush=True)


if __name__ == "__main__":
    main()
