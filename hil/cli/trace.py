"""``hil trace``: look at, check and recover traces. Data go to stdout, remarks to stderr."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from hil.trace.reader import Trace

app = typer.Typer(no_args_is_help=True, help="Look at, check and recover traces.")

_FACTS = (
    "format_version", "run_id", "problem_id", "content_id", "exit_status", "level", "record_level",
    "measured", "pace", "arrivals", "created_utc", "closed_utc", "n_rounds", "round_period_ps",
    "shot_period_ps",
)  # fmt: skip


@app.command()
def info(
    file: Annotated[Path, typer.Argument(help="NAME.h5, or a live NAME.part.h5.")],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print data instead of tables.")] = False,
) -> None:
    """Show what a trace says about itself and how many rows it holds."""
    from json import dumps

    from hil.trace.reader import open_trace

    with open_trace(file) as trace:
        facts = _facts(trace)
    if as_json:
        typer.echo(dumps(facts, indent=2))
    else:
        _print_facts(facts)


def _facts(trace: Trace) -> dict[str, Any]:
    return {
        "file": str(trace.path),
        "live": trace.live,
        **{name: trace.attrs[name] for name in _FACTS if name in trace.attrs},
        "n_detectors": trace.meta["n_detectors"],
        "n_observables": trace.meta["n_observables"],
        "commits": trace.commits,
        "overflow": trace.overflow,
        "rows": {name: trace.rows(name) for name in trace.streams},
    }


def _print_facts(facts: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    for name, value in facts.items():
        if name != "rows":
            typer.echo(f"{name:<16} {value}")
    rows = Table("stream", "rows")
    rows.columns[1].justify = "right"
    for name, count in facts["rows"].items():
        rows.add_row(name, f"{count:,}")
    Console().print(rows)


@app.command()
def validate(
    files: Annotated[list[Path], typer.Argument(help="Traces; live ones are read to the ledger.")],
) -> None:
    """Check traces against the schema; exit code 1 if one is refused."""
    from hil.trace.validate import validate_trace

    refused = False
    for file in files:
        result = validate_trace(file)
        typer.echo(f"{file}: {'valid' if result.ok else 'REFUSED'}")
        for finding in result.refused:
            typer.echo(f"  refused: {finding}")
        for finding in result.notes:
            typer.echo(f"  note: {finding}")
        refused = refused or not result.ok
    if refused:
        raise typer.Exit(1)


@app.command()
def recover(
    files: Annotated[list[Path], typer.Argument(help="Live files NAME.part.h5 of ended runs.")],
) -> None:
    """Make the final file of a run that ended without closing its trace."""
    from hil.trace.recover import recover as recover_trace

    for file in files:
        typer.echo(str(recover_trace(file)))
