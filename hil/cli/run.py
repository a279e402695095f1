"""``hil run``: one scenario from stim rounds to a verdict."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hil.cli.complete import profiles


def run(
    scenario: Annotated[Path, typer.Argument(help="Scenario file.", show_default=False)],
    bind: Annotated[
        str | None,
        typer.Option(
            help="Profile to use instead of the scenario's bind.use.", autocompletion=profiles
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Directory of the results.  [default: runs/<id>]")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed instead of run.seed.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Change one value: path=value.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the interrupted virtual run of --out.")
    ] = False,
    pcap: Annotated[
        Path | None, typer.Option(help="Capture all frames of a live run in this pcapng file.")
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress on standard error.")
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print report.json instead of the table.")
    ] = False,
) -> None:
    """Run SCENARIO; write trace.h5, report.json, junit.xml and report.html; print the verdict.

    Exit codes: 0 pass, 1 fail, 2 usage or scenario error, 3 rig error, 4 inconclusive.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    from hil.report import json as report_json
    from hil.report import terminal
    from hil.run import executed
    from hil.run.runner import RunOptions, run_scenario

    overrides = [*(set_ or ()), *([] if seed is None else [f"run.seed={seed}"])]
    errors = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("shots"),
        TimeRemainingColumn(),
        console=errors,
        transient=True,
        disable=quiet or not errors.is_terminal,
    ) as bar:
        task = bar.add_task(scenario.stem, total=None)
        result = run_scenario(
            scenario,
            RunOptions(
                bind=bind,
                out=out,
                overrides=overrides,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
                resume=resume,
                pcap=pcap,
            ),
        )
    unkept = executed.keep(result.document)
    if unkept and not quiet:
        errors.print(unkept, soft_wrap=True, highlight=False)
    if json:
        typer.echo(report_json.render(result.document))
    else:
        terminal.show(result.document, Console())
        if not quiet and not result.unwritten:
            errors.print(f"results: {result.directory}", soft_wrap=True, highlight=False)
    if result.unwritten:
        typer.echo(f"error: {result.unwritten}", err=True)
    raise typer.Exit(result.exit_code)
