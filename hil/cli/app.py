"""The command tree, and the translation of errors into exit codes."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Annotated

import typer

from hil._version import __version__
from hil.cli import (
    bench,
    check,
    circuit,
    decoder,
    decoder_judge,
    decoder_train,
    doctor,
    export,
    init,
    listing,
    node,
    rack,
    run,
    trace,
    wire,
)
from hil.errors import HilError

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Co-simulation testbed for real-time quantum error correction: "
    "device, control rack, RoCEv2 link, decoder node, trace, verdict.",
)
app.command()(run.run)
app.command()(check.check)
app.command()(circuit.circuit)
app.command("list")(listing.list_)
app.command()(init.init)
app.command()(doctor.doctor)
app.add_typer(trace.app, name="trace")
app.add_typer(wire.app, name="wire")
app.add_typer(node.app, name="node")
app.add_typer(bench.app, name="bench")
app.add_typer(rack.app, name="rack")
app.add_typer(export.app, name="export")
decoder.app.command()(decoder_train.train)
decoder.app.command()(decoder_judge.judge)
app.add_typer(decoder.app, name="decoder")


@app.callback(invoke_without_command=True)
def _top(
    *,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


def run_app(arguments: list[str]) -> int:
    """Exit code of one invocation; every error ends here."""
    try:
        return _invoke(arguments)
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _invoke(arguments: list[str]) -> int:
    try:
        result = app(args=arguments, prog_name="hil", standalone_mode=False)
    except HilError as error:
        sys.stderr.write(f"error: {error.message}\n")
        return error.exit_code
    except typer.Exit as stop:
        return int(stop.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        sys.stderr.write("interrupted\n")
        return 3
    except BrokenPipeError:
        raise
    except Exception as error:  # noqa: BLE001 - an unforeseen error must not read as verdict FAIL (1)
        show = getattr(error, "show", None)
        if callable(show):  # a usage error of the command line parser, which typer does not export
            show()
            return 2
        traceback.print_exc()
        sys.stderr.write("error: unforeseen; please report the lines above\n")
        return 3
    return result if isinstance(result, int) else 0
