"""``hil list``: what can be chosen from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

_WIDE = 100
"""Columns from which tags are shown."""


def list_(
    kind: Annotated[
        Literal["scenarios", "profiles", "decoders", "predecoders", "runtimes", "links"] | None,
        typer.Argument(help="Only these.  [default: all]", show_default=False),
    ] = None,
    *,
    folder: Annotated[
        Path | None, typer.Option(help="Folder of scenarios.  [default: ./scenarios]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print data instead of tables.")] = False,
) -> None:
    """List scenarios, rack profiles (with evidence), decoders, pre-decoders, runtimes and links.

    A scenario that is not valid is listed with its first error; `hil check` shows all of them.
    """
    from dataclasses import asdict
    from json import dumps

    from hil.run import catalogue

    sources: dict[str, Any] = {
        "scenarios": lambda: catalogue.scenarios(folder),
        "profiles": catalogue.profiles,
        "decoders": catalogue.decoders,
        "predecoders": catalogue.predecoders,
        "runtimes": catalogue.runtimes,
        "links": catalogue.links,
    }
    chosen = {name: sources[name]() for name in ([kind] if kind else sources)}
    if as_json:
        typer.echo(
            dumps({n: [asdict(row) for row in rows] for n, rows in chosen.items()}, indent=1)
        )
        return
    for name, rows in chosen.items():
        _show(name, rows)


def _show(name: str, rows: Sequence[Any]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    columns = {
        "scenarios": ("scenarios", "title", "profiles", "tags"),
        "profiles": ("rack profiles", "title", "evidence, weakest first"),
        "decoders": ("decoders", "package"),
        "predecoders": ("pre-decoders", "what it is"),
        "runtimes": ("runtimes of pre-decoders", "package"),
        "links": ("links", "how real"),
    }
    console = Console(highlight=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    shown = columns[name] if console.width >= _WIDE else columns[name][:3]
    for k, column in enumerate(shown):
        table.add_column(column, overflow="fold", no_wrap=k == 0)
    for row in rows:
        table.add_row(*_cells(name, row)[: len(shown)])
    console.print(table)
    if name == "scenarios" and rows:
        folder = Path(rows[0].file).parent
        console.print(f"in {folder}; * runs unless --bind names another", style="dim")
    console.print()


def _cells(name: str, row: Any) -> tuple[Any, ...]:  # noqa: ANN401 - a row of any kind
    from rich.text import Text

    if name == "scenarios":
        if row.problem:
            return Path(row.file).name, Text(f"broken: {row.problem}", style="red"), "", ""
        used = [f"{p}*" if p == row.use else p for p in row.profiles]
        return Path(row.file).name, row.title, ", ".join(used), ", ".join(row.tags)
    if name == "profiles":
        return row.name, row.title, ", ".join(f"{n} {evidence}" for evidence, n in row.evidence)
    if name in ("decoders", "runtimes"):
        missing = f"{row.package}: not installed"
        return row.name, f"{row.package} {row.version}" if row.version else missing
    return row.name, row.what
