"""``hil init``: a folder with a first scenario that runs at once."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Final

from hil.errors import RigError, UsageError

FILE: Final = "first.yaml"


def begin(directory: Path) -> Path:
    """Make the folder with its scenario; returns the scenario's path.

    Raises:
        UsageError: something is there already; it is left alone.
        RigError: the folder cannot be written.
    """
    text = files("hil").joinpath("run", "starter.yaml").read_text(encoding="utf-8")
    path = directory / FILE
    try:
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise UsageError(
                "there is something already",
                where=str(directory),
                allowed="a folder that is empty or does not exist",
                fix="choose another name",
            )
        directory.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise RigError(
            "cannot make the folder",
            where=str(directory),
            got=error.strerror or str(error),
            fix="choose a folder that you may write",
        ) from error
    return path
