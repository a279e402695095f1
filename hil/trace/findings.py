"""What a validation found: refusals and notes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing found in a trace.

    Attributes:
        rule: short name of the rule, stable across versions.
        where: dataset path or root attribute.
        what: one sentence.
        got: offending value, with the row where there is one.
        allowed: what the rule accepts.
    """

    rule: str
    where: str
    what: str
    got: str = ""
    allowed: str = ""

    def __str__(self) -> str:
        parts = [f"{self.where}: {self.what}"]
        parts += [f"{n} {t}" for n, t in (("got", self.got), ("allowed", self.allowed)) if t]
        return "; ".join(parts) + f" [{self.rule}]"


@dataclass(slots=True)
class Validation:
    """Result of a validation.

    Attributes:
        path: the trace.
        refused: why the trace is not valid; empty for a valid one.
        notes: what a reader should know; does not make a trace invalid.
    """

    path: Path
    refused: list[Finding] = field(default_factory=list)
    notes: list[Finding] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether the trace is valid."""
        return not self.refused

    def refuse(self, rule: str, where: str, what: str, got: str = "", allowed: str = "") -> None:
        """Record a refusal."""
        self.refused.append(Finding(rule, where, what, got, allowed))

    def note(self, rule: str, where: str, what: str, got: str = "") -> None:
        """Record a note."""
        self.notes.append(Finding(rule, where, what, got))

    def has(self, rule: str) -> bool:
        """Whether the rule found something, refused or noted."""
        return any(f.rule == rule for f in [*self.refused, *self.notes])


@dataclass(slots=True)
class BadRows:
    """Counts rows that break a rule over many blocks; remembers the first one."""

    count: int = 0
    first: int = -1
    example: str = ""

    def add(self, bad: NDArray[np.bool_], first_row: int, **values: NDArray[np.generic]) -> None:
        """Add a block: ``bad`` [n], ``values`` are shown for the first bad row."""
        n = int(bad.sum())
        if n and self.count == 0:
            at = int(bad.argmax())
            self.first = first_row + at
            shown = ", ".join(f"{name} {v[at]}" for name, v in values.items())
            self.example = f"row {self.first}: {shown}" if shown else f"row {self.first}"
        self.count += n

    @property
    def text(self) -> str:
        """First bad row and how many there are."""
        more = f" and {self.count - 1} more rows" if self.count > 1 else ""
        return self.example + more
