"""``hil node``: the decoder node's process. Started by live runs, seldom by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Decoder node of a live run.")


@app.callback()
def node() -> None:
    """Decoder node of a live run."""


@app.command()
def serve(
    config: Annotated[
        str,
        typer.Option(help="File with the launch line (JSON), or - to read it from standard input."),
    ],
) -> None:
    """Serve one rack until standard input ends."""
    from hil.errors import UsageError
    from hil.node.server import main, read_launch

    try:
        line = read_launch() if config == "-" else Path(config).read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError("launch file cannot be read", where=config, got=str(error)) from error
    raise typer.Exit(main(line))
