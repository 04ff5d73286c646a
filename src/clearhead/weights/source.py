"""`Source`: a model on disk, opened but not read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from clearhead.config import GPTConfig
from clearhead.errors import WeightsError
from clearhead.utils.progress import ByteProgress
from clearhead.weights.companions import SETTINGS_FILES, Companions
from clearhead.weights.fidelity import head_tensors
from clearhead.weights.formats.gguf import GGUFFile
from clearhead.weights.plan import ConversionPlan, LazyTensors
from clearhead.weights.planning import make_plan
from clearhead.weights.saving import SaveResult, check, save_plan
from clearhead.weights.schemes.adapters import data_files
from clearhead.weights.steps import TensorReader
from clearhead.weights.streaming import StreamingReader
from clearhead.weights.tensors import SAVED, TensorFile, TensorInfo

if TYPE_CHECKING:
    from clearhead.tokenizer import Tokenizer


@dataclass(frozen=True)
class Source:
    """A model on disk, opened but not read.

    Attributes:
        name: what the user called it.
        layout: the layout of its tensors, a key of `layouts.LAYOUTS`.
        config: the model's shape, as its config and its tensors agree on it.
        folder: the folder of the weights; a tokenizer is looked for there.
        notes: sentences for the user on what had to be decided.
        file: the file with the tensors, opened.
        query_scales: for each layer, what the plan multiplies the queries by; empty for GPT-2's own attention scale.
    """

    name: str
    layout: str
    config: GPTConfig
    folder: Path
    notes: tuple[str, ...]
    file: TensorFile = field(repr=False)
    query_scales: tuple[float, ...] = ()

    @property
    def path(self) -> Path:
        """The file with the weights; the index if there are several."""
        return self.file.path

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that decides the config and the tensors' values: what is made from the model depends on these."""
        parts = data_files(self.file)
        settings = [path.parent / name for path in parts for name in SETTINGS_FILES]
        return tuple(dict.fromkeys([*parts, *(path for path in settings if path.is_file())]))

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every stored tensor's shape and dtype, by its stored name."""
        return self.file.tensors

    @property
    def companions(self) -> Companions:
        """What belongs to the model besides its tensors: tokenizer, special token ids, generation settings."""
        return Companions(self.folder, self.file, self.config.vocab_size)

    def read(self, name: str) -> npt.NDArray[Any]:
        """Return one tensor as stored (bfloat16 widened to float32); it may be a view of the file.

        Raises:
            WeightsError: if there is no tensor of that name, or its data cannot be read.
        """
        if name not in self.tensors:
            raise WeightsError(f"{self.path} holds no tensor {name!r}; it holds {', '.join(list(self.tensors)[:3])}, …")
        return self.file.read(name)

    def plan(self, to: str = "canonical") -> ConversionPlan:
        """Return the plan that makes every tensor of a layout (Clearhead's own, by default) from the stored tensors.

        Raises:
            WeightsError: if a tensor is missing, unknown, or does not fit the config; the message names it.
        """
        return self._plan(to, self.file.read)

    def stream(self, to: str = "canonical") -> ConversionPlan:
        """Return the same plan for one run, in which memory that was read is released as soon as nobody uses it.

        It is for models larger than the memory. The file must not change until the plan has run.

        Raises:
            WeightsError: as `plan`; and when it runs, if the file was changed.
        """
        return self._plan(to, StreamingReader(self.file))

    def _plan(self, to: str, read: TensorReader) -> ConversionPlan:
        return make_plan(self.tensors, read, self.config, self.layout, to, str(self.path), self.query_scales)

    @property
    def dtype(self) -> str:
        """The dtype of the weights; float32 if there are several, or one in which Clearhead does not save."""
        found = {part.info.dtype for step in self.plan().steps for part in step.slices}
        quantized = isinstance(self.file, GGUFFile) and self.file.quantized
        return found.pop() if len(found) == 1 and found <= set(SAVED) and not quantized else "float32"

    def tokenizer(self) -> Tokenizer | None:
        """Return the model's tokenizer, from the files in its folder or from its GGUF file; None if there is none.

        Raises:
            TokenizerError: if the tokenizer's files are broken.
        """
        return self.companions.tokenizer()

    def load(self) -> dict[str, npt.NDArray[Any]]:
        """Return every tensor by its canonical name, as float32; a tied head is the token embedding's own array.

        Embeddings of a float32 file stay views of the file; the system reads them when they are used.

        Raises:
            WeightsError: as `plan` and `read`.
        """
        plan = self.plan()
        arrays: dict[str, npt.NDArray[Any]] = {}
        total = sum(TensorInfo(shape, "float32").nbytes for shape in plan.targets.values())
        with ByteProgress(f"Loading {self.name}", total) as progress:
            for name, values in plan.run_parallel():
                arrays[name] = values
                progress.advance(values.nbytes)
        return arrays | {name: arrays[other] for name, other in plan.tied.items()}

    def lazy(self, row_major: bool = True) -> LazyTensors:
        """Return what `load` returns as a mapping that reads each tensor when it is asked for.

        Args:
            row_major: if False, a matrix that is stored transposed is a column-major view and not a copy.
        """
        return LazyTensors(self.plan(), row_major)

    def save(
        self,
        dest: str | os.PathLike[str],
        to: str = "huggingface",
        dtype: str = "float32",
        *,
        lossy: bool = False,
    ) -> SaveResult:
        """Write the model in a layout, with one tensor, or one layer of it, in memory at a time.

        Args:
            dest: the folder for `huggingface`, `openai` and `onnx`, else the file.
            to: huggingface, openai, onnx, book, nanogpt, llmc, transformerlens, gguf or canonical.
            dtype: float32, float16, bfloat16, for some layouts fewer; for gguf also q8_0.
            lossy: whether to write the model even if the layout cannot hold every part of it, such as special tokens,
                a classifier's head or a setting; the result's notes name what is lost.

        Raises:
            WeightsError: as `plan`; and if the layout or the dtype is unknown or cannot hold this model, or `dest`
                cannot be written.
        """
        check(to, dtype)
        head = head_tensors(self.file, self.layout)
        return save_plan(Path(dest).expanduser(), self.stream(to), dtype, self.companions, lossy, head)
