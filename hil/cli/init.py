"""``hil init``: a folder with a first scenario."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def init(
    directory: Annotated[Path, typer.Argument(help="Folder to make.", show_default=False)],
) -> None:
    """Make DIRECTORY with a commented scenario that runs at once. Never overwrites anything."""
    from hil.run.starter import begin

    path = begin(directory)
    typer.echo(f"{path}")
    typer.echo(
        "next:\n"
        f"  hil check {path}\n"
        f"  hil run {path} --out {directory / 'mil'}\n"
        f"  hil run {path} --bind sil --out {directory / 'sil'}\n"
        "  hil doctor        what works on this machine\n"
        "  hil list          racks, decoders and links to choose from",
        err=True,
    )
