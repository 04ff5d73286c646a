"""The vocabulary of a verification: one check and its verdict, the context that checks share, and the whole result."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from clearhead.utils.html import html_table
from clearhead.weights.hub.official import Identity
from clearhead.weights.source import Source

Verdict = Literal["passed", "failed", "warning", "not applicable"]


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
        name: one word.
        verdict: `failed` if something is wrong, `warning` if something is unusual or could not be decided,
            `not applicable` if there was nothing to check.
        text: one or two sentences that state the finding.
        details: further findings, one sentence or phrase each.
    """

    name: str
    verdict: Verdict
    text: str
    details: tuple[str, ...] = ()


@dataclass(frozen=True, repr=False)
class Verification:
    """The results of all checks of one model.

    Attributes:
        model: the model's name as the user gave it.
        checks: in the order in which they ran.
        source: the opened model; None if it could not be opened.
    """

    model: str
    checks: tuple[Check, ...]
    source: Source | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        return f"Verification({self.model!r}: " + ", ".join(f"{one.name} {one.verdict}" for one in self.checks) + ")"

    def _repr_html_(self) -> str:
        verdict = "nothing failed" if self.ok else "failed"
        rows = ((one.verdict, one.name, one.text) for one in self.checks)
        return html_table(["", "check", "result"], rows, f"{self.model}: {verdict}")

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return all(check.verdict != "failed" for check in self.checks)

    def __getitem__(self, name: str) -> Check:
        """Return the check with this name.

        Raises:
            KeyError: if no check of this name ran.
        """
        return {check.name: check for check in self.checks}[name]

    def as_json(self) -> dict[str, Any]:
        """Return the verification as values that `json` can write."""
        source = self.source
        return {
            "model": self.model,
            "ok": self.ok,
            "layout": source.layout if source else None,
            "file": str(source.path) if source else None,
            "config": dataclasses.asdict(source.config) if source else None,
            "notes": list(source.notes) if source else [],
            "checks": [dataclasses.asdict(check) for check in self.checks],
        }


@dataclass(frozen=True)
class Context:
    """What the checks of the weights found out, for the checks that run afterwards.

    Attributes:
        source: the opened model.
        trained: whether norms and biases differ from their initial values.
        identity: which published model this is, if any.
        broken: whether the weights contain NaN or infinity, so that running the model is pointless.
    """

    source: Source
    trained: bool
    identity: Identity
    broken: bool


CheckFunction = Callable[[Context], Check]
"""A check that needs more than the weights, such as a run of the model."""
