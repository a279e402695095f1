"""``hil doctor``: what is installed, what works here, what has been executed here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from hil.run.doctor import Examination


def doctor(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print data instead of a page.")] = False,
) -> None:
    """Examine this machine; changes nothing.

    Exit codes: 0 everything works that the levels mil and sil need, 3 something does not.
    """
    from hil.run.doctor import examine

    found = examine()
    if as_json:
        typer.echo(found.as_json())
    else:
        _show(found)
    raise typer.Exit(found.exit_code)


def _show(found: Examination) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from hil.run.doctor import LEVELS

    console = Console(highlight=False)
    marks = {"ok": ("ok", "green"), "absent": ("-", "dim"), "broken": ("FAIL", "bold red")}
    sections = list(dict.fromkeys(check.section for check in found.checks))
    width = max(len(check.name) for check in found.checks)
    for section in sections:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, expand=False)
        table.add_column(section, min_width=width, no_wrap=True)
        table.add_column("", min_width=4)
        table.add_column("what was seen", overflow="fold")
        for check in (c for c in found.checks if c.section == section):
            seen = Text(check.detail)
            if check.fix:
                seen.append(f"\nfix: {check.fix}", style="yellow")
            table.add_row(check.name, Text(*marks[check.status]), seen)
        console.print(table)
        console.print()
    _show_executed(found, console)
    for level in LEVELS:
        works = found.works(level)
        text = "everything it needs works" if works else "does not work here: see FAIL"
        console.print(f"{level}:", Text(text, style="green" if works else "bold red"))


def _show_executed(found: Examination, console: Console) -> None:
    from rich import box
    from rich.table import Table

    if not found.executed:
        console.print(f"executed here: no run is on record ({found.record})\n", soft_wrap=True)
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("executed here", overflow="fold")
    for name in ("runs", "pass"):
        table.add_column(name, justify="right")
    table.add_column("last", overflow="fold")
    for entry in found.executed:
        ran = entry.last
        last = f"{ran.date[:10]} {ran.verdict}\n{ran.scenario}, hil {ran.version}"
        decoder = f"{ran.predecoder}, then {ran.primary}" if ran.predecoder else ran.primary
        what = f"{ran.level}: {ran.network}, {ran.node}\n{decoder}"
        table.add_row(what, str(entry.runs), str(entry.passed), last)
    console.print(table)
    console.print()
