"""``hil rack``: racks from measurements, and what the shipped ones are made of."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from hil.cli import board
from hil.cli.complete import racks
from hil.cli.rack_stream import stream

if TYPE_CHECKING:
    from hil.run.fit import FitResult

app = typer.Typer(no_args_is_help=True, help="Racks: fit or show a profile, stream to a node.")
app.command()(stream)
app.add_typer(board.app, name="board")


@app.command()
def fit(
    csv: Annotated[
        Path | None, typer.Option(help="Stamps or durations per round, or ptp_latency.csv.")
    ] = None,
    pcap: Annotated[Path | None, typer.Option(help="Tap on the link: pcap or pcapng.")] = None,
    tap_clock: Annotated[
        Literal["own", "ptp"], typer.Option(help="ptp: the tap is stamped by the rack's PTP clock.")
    ] = "own",
    hold_out: Annotated[
        float, typer.Option(min=0.05, max=0.9, help="Share of rounds, the last, kept for judging.")
    ] = 0.3,
    tolerance: Annotated[
        float, typer.Option(min=0.001, max=0.5, help="Largest error of a held-out quantile.")
    ] = 0.03,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path(),
    name: Annotated[
        str | None, typer.Option(help="Name of the profile.  [default: the file's]")
    ] = None,
    *,
    independent: Annotated[
        bool, typer.Option("--independent", help="Independent draws, labelled 'assumed'.")
    ] = False,
) -> None:
    """Make a rack profile from measurements and judge it on rounds that it has not seen.

    Exit codes: 0 written, 1 the held-out tail is not reproduced (no profile), 2 the capture is
    refused, 4 too few data to tell (no profile).
    """
    from hil.run.fit import FitOptions, fit_rack

    result = fit_rack(
        FitOptions(csv, pcap, tap_clock == "ptp", hold_out, out, name, independent, tolerance)
    )
    _print(result)
    raise typer.Exit(result.exit_code)


def _print(result: FitResult) -> None:
    from rich.console import Console

    from hil.report.rack_fit import comparison_table

    fitted, console = result.fitted, Console()
    for note in fitted.capture.notes:
        typer.echo(f"- {note}")
    ours, loose = fitted.check.statistics, fitted.check.independent
    model = "recorded order"
    if fitted.independent:
        model, ours = "independent draws", loose
    console.print(comparison_table(f"{model}, held-out rounds", ours))
    if not fitted.independent:
        wrong = [entry.name for entry in loose if entry.state == "not reproduced"]
        typer.echo(f"independent draws would miss: {', '.join(wrong) or 'nothing here'}")
    typer.echo(result.verdict)
    for path in result.files:
        typer.echo(f"  {path}")


@app.command()
def show(
    profile: Annotated[
        str,
        typer.Argument(
            help="Shipped rack, or a file such as ./my-rack.yaml.", autocompletion=racks
        ),
    ],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print data instead of a table.")] = False,
) -> None:
    """Show every duration of a rack profile with evidence and source, then what it is built of."""
    from json import dumps

    from rich import box
    from rich.console import Console
    from rich.table import Table

    from hil.scenario.rack_profile import chosen_rows, profile_rows

    title, rows = profile_rows(profile)
    rows += [(part, value, "", "") for part, value in chosen_rows(profile)]
    columns = ("part", "value", "evidence", "source")
    if as_json:
        parts = [dict(zip(columns, row, strict=True)) for row in rows]
        typer.echo(dumps({"profile": profile, "parts": parts}, indent=1))
        return
    table = Table(
        title=title, title_justify="left",
        box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False,
    )  # fmt: skip
    for name in columns:
        table.add_column(name, overflow="fold", no_wrap=name in {"part", "evidence"})
    for row in rows:
        table.add_row(*row)
    Console(highlight=False).print(table)
