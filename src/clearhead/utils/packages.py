"""Packages that only a part of Clearhead needs, and the sentence that names the one that is missing."""

from __future__ import annotations

import importlib

from clearhead.errors import MissingPackageError

_EXTRAS = {
    "torch": ("PyTorch", "torch"),
    "gguf": ("the package gguf", "gguf"),
    "onnx": ("the package onnx", "onnx"),
    "resvg_py": ("the package resvg-py", "diagram"),
    "pyarrow": ("the package pyarrow", "train"),
    "peft": ("the package peft", "train"),
    "tensorboard": ("the package tensorboard", "train"),
    "wandb": ("the package wandb", "track"),
    "mlflow": ("the package mlflow", "track"),
}
"""The packages of the extras: what people call each, and the extra that installs it."""


def need_torch(what: str) -> None:
    """Check that PyTorch is installed.

    Args:
        what: what needs it, to begin the sentence with: "watching activations".

    Raises:
        MissingPackageError: if it is not installed.
    """
    try:
        importlib.import_module("torch")
    except ModuleNotFoundError as error:
        raise missing_package(error, what) from None


def has_torch() -> bool:
    """Return whether PyTorch is installed."""
    try:
        importlib.import_module("torch")
    except ModuleNotFoundError:
        return False
    return True


def missing_package(error: ModuleNotFoundError, what: str = "this") -> Exception:
    """Return the error that names the extra to install, or `error` itself if no extra has the package.

    Args:
        error: what the import raised.
        what: what needs the package.
    """
    package = (error.name or "").partition(".")[0]
    if package not in _EXTRAS:
        return error
    name, extra = _EXTRAS[package]
    return MissingPackageError(
        f"{what} needs {name}, which is not installed; install it with: pip install 'clearhead[{extra}]'.",
        name=package,
    )
