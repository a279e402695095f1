"""What one probe of ``hil doctor`` returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Status: TypeAlias = Literal["ok", "absent", "broken"]
"""``absent``: optional, and not there; ``broken``: needed, and does not work."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at.

    Attributes:
        section: ``installed``, ``network``, ``machine``, ``GPU path`` or ``tools``.
        name: what was looked at.
        status: what came of it.
        detail: what was seen.
        fix: what to do about it, if anything.
        needed_by: levels that cannot run without it.
    """

    section: str
    name: str
    status: Status
    detail: str
    fix: str = ""
    needed_by: tuple[str, ...] = ()
