"""``hil doctor``: what is installed, what works here, what has been executed here.

Each probe is a function of its own that looks at one thing and returns what it saw, no more: a
library that loads is reported as loading, not as a device that computes.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Final

from hil.run import executed
from hil.run.doctor import gpu_path, machine, network, software
from hil.run.doctor.check import Check

__all__ = ["LEVELS", "Check", "Examination", "examine"]

LEVELS: Final = ("mil", "sil")
"""Levels that are built, and therefore must work."""


@dataclass(frozen=True, slots=True)
class Examination:
    """Everything that was seen.

    Attributes:
        checks: in order of the page.
        executed: what has been run on this machine, by kind.
        record: the file that says so.
    """

    checks: tuple[Check, ...]
    executed: tuple[executed.Summary, ...]
    record: str

    def works(self, level: str) -> bool:
        """Whether all that a level needs works."""
        return not any(c.status == "broken" and level in c.needed_by for c in self.checks)

    @property
    def exit_code(self) -> int:
        """0 if everything works that the built levels need, else 3."""
        return 0 if all(self.works(level) for level in LEVELS) else 3

    def as_json(self) -> str:
        """The same as data."""
        return json.dumps(
            {
                "format": "hil.doctor/1",
                "levels": {level: self.works(level) for level in LEVELS},
                "exit_code": self.exit_code,
                "checks": [asdict(check) for check in self.checks],
                "executed": [asdict(entry) for entry in self.executed],
                "record": self.record,
            },
            indent=1,
        )


def examine() -> Examination:
    """Look at this machine; takes about two seconds, changes nothing."""
    checks = (
        *software.packages(),
        *software.extras(),
        network.loopback(),
        *network.port_4791(),
        network.offloads(),
        network.packet_sockets(),
        network.verbs(),
        *machine.checks(),
        *gpu_path.checks(),
        *software.tools(),
    )
    return Examination(checks, tuple(executed.summary()), str(executed.record_path()))
