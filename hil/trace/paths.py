"""Names of the files of a trace."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from hil.errors import UsageError

PART_SUFFIX: Final = ".part.h5"


def is_live(path: Path) -> bool:
    """Whether the name is that of a live file."""
    return path.name.endswith(PART_SUFFIX)


def part_path(final: Path) -> Path:
    """Live file of a final file: ``NAME.h5`` -> ``NAME.part.h5``.

    Raises:
        UsageError: the name does not end in ``.h5`` or is that of a live file.
    """
    if final.suffix != ".h5" or is_live(final):
        raise UsageError("a trace is named NAME.h5", got=str(final))
    return final.with_name(final.stem + PART_SUFFIX)


def final_path(part: Path) -> Path:
    """Final file of a live file: ``NAME.part.h5`` -> ``NAME.h5``.

    Raises:
        UsageError: the name is not that of a live file.
    """
    if not is_live(part):
        raise UsageError(
            "not the name of a live trace",
            got=str(part),
            allowed="NAME.part.h5",
            fix="NAME.h5 is final already; `hil trace validate` tells whether it is whole",
        )
    return part.with_name(part.name.removesuffix(PART_SUFFIX) + ".h5")
