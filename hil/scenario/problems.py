"""What is wrong in a scenario file, and the exception that lists all of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from hil.errors import ScenarioError

_LONGEST = 400


@dataclass(frozen=True, slots=True)
class Problem:
    """One error or warning at one place.

    Attributes:
        path: file, or the command line option that brought the value (then ``line`` is 0).
        line: line in the file, from 1.
        col: column in the line, from 1.
        code: error code, see ``docs/scenario.md``.
        dotted: path of the key inside the scenario.
        what: what is wrong.
        got: the offending value as written.
        allowed: what would have been accepted.
        fix: what to do about it.
        level: error or warning.
    """

    path: str
    line: int
    col: int
    code: str
    dotted: str
    what: str
    got: str = ""
    allowed: str = ""
    fix: str = ""
    level: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        place = f"{self.path}:{self.line}:{self.col}" if self.line else self.path
        dotted = f"{self.dotted}: " if self.dotted else ""
        head = f"{place}: {self.level}[{self.code}]: {dotted}{self.what}"
        parts = (("got", _clipped(self.got)), ("allowed", self.allowed), ("fix", self.fix))
        return "\n".join([head, *(f"    {name + ':':<9}{text}" for name, text in parts if text)])


def _clipped(text: str) -> str:
    """A value of thousands of digits must not bury the message."""
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ... ({len(text)} characters)"


class ScenarioErrors(ScenarioError):  # noqa: N818 it holds several errors
    """All problems of one scenario file, sorted by line; exit code 2."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = sorted(problems, key=lambda p: (p.path, p.line, p.col, p.code, p.dotted))
        super().__init__(f"{len(self.problems)} problem(s) in the scenario")

    @property
    def message(self) -> str:
        """Every problem, one block each."""
        return "\n".join(str(problem) for problem in self.problems)

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.problems,)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``did you mean 'basis'?``, or an empty text if nothing is near."""
    near = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"did you mean '{near[0]}'?" if near else ""
