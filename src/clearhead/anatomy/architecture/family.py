"""What is special about a family of models: its tensor names and how to read its config."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from clearhead.anatomy.architecture.description import Architecture

Config = Mapping[str, Any]
"""A parsed config.json."""


@dataclass(frozen=True)
class Family:
    """What distinguishes a family of models.

    Attributes:
        title: how people call it.
        names: local tensor names by component; those of a block stand under `block`.
        stem: the prefix of everything but the head.
        block: the prefix of one block, with `{i}`.
        head: the name of the head's tensor.
        facts: attributes of `Architecture` that hold for every member.
        read: completes the facts from a config.
        transposed: whether matrices are stored `[in, out]`.
        renamed: local names that only some members have, from a config.
    """

    title: str
    names: Mapping[str, str]
    stem: str = "model."
    block: str = "layers.{i}."
    head: str = "lm_head"
    facts: Mapping[str, Any] = field(default_factory=dict)
    read: Callable[[Architecture, Config], Architecture] = lambda architecture, config: architecture
    transposed: bool = False
    renamed: Callable[[Config], Mapping[str, str]] = lambda config: {}
