"""``hil check``: read scenario files and list everything that is wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hil.cli.complete import profiles
from hil.errors import UsageError


def check(
    files: Annotated[list[Path], typer.Argument(help="Scenario files.")],
    bind: Annotated[
        str | None,
        typer.Option(
            help="Check that this profile exists and would be used.", autocompletion=profiles
        ),
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="path=value; may be given several times.")
    ] = None,
) -> None:
    """Check scenario files: one line per good file on stdout, errors on stderr, exit 0 or 2."""
    from hil.scenario.load import load_scenario

    failed = False
    for path in files:
        try:
            loaded = load_scenario(path, bind=bind, overrides=set_ or ())
        except UsageError as error:
            failed = True
            typer.echo(error.message, err=True)
            continue
        for warning in loaded.warnings:
            typer.echo(str(warning), err=True)
        profiles = ", ".join(loaded.scenario.bind.profiles)
        typer.echo(
            f"ok {path}: {loaded.scenario.id}, profiles {profiles}, uses {loaded.scenario.bind.use}"
        )
    if failed:
        raise typer.Exit(code=UsageError.exit_code)
