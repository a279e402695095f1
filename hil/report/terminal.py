"""The report on a terminal: banner, expectations, hops, logical errors, files; one screen."""

from __future__ import annotations

from typing import Final

from rich import box
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from hil.report.document import Document, ExpectationRow, HopRow, RateRow
from hil.report.text import NONE, count, percent

STYLES: Final = {
    "PASS": "green",
    "FAIL": "red",
    "INCONCLUSIVE": "yellow",
    "RIG ERROR": "magenta",
    "SKIP": "dim",
}
WIDE: Final = 124
"""Columns from which the metric is shown beside the expectation's name."""
FULL: Final = 100
"""Columns from which n and every bound is shown."""
NARROW: Final = 92
"""Columns from which the events behind a rate are shown."""


def show(document: Document, console: Console) -> None:
    """Print the document on ``console`` (its width and colours decide the form)."""
    console.print(Group(*_parts(document, console.width)))


def _parts(document: Document, width: int) -> list[RenderableType]:
    parts: list[RenderableType] = [_banner(document)]
    if document.expectations:
        parts += [_expectations(document, width), *_remarks(document, width)]
    if document.hops:
        parts += ["", _hops(document, width)]
    parts += ["", _figures(document, width), _counts_line(document), *_faults(document)]
    parts += [Text(line, style="dim") for line in (*_decoded_by(document), *document.labels)]
    if document.facts.files:
        parts.append(_files(document))
    return parts


def _banner(document: Document) -> RenderableType:
    style = STYLES[document.verdict]
    facts = document.facts
    line = Text.assemble(
        (f" {document.verdict} ", f"bold reverse {style}"), "  ", (document.headline, "bold")
    )
    where = Text(
        f"{facts.scenario_id} · {facts.profile or facts.level} · {count(document.shots)} shots "
        f"({count(document.judged_shots)} judged) · seed {facts.seed} · exit {document.exit_code}",
        style="dim",
    )
    return Panel(Group(line, where), box=box.ROUNDED, border_style=style, expand=True)


def _table() -> Table:
    return Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        header_style="dim",
    )


def _expectations(document: Document, width: int) -> Table:
    """One line each; the metric is added where it fits, n and the need are left out if narrow."""
    wide, narrow = width >= WIDE, width < FULL
    table = _table()
    table.add_column("expectation", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    if wide:
        table.add_column("metric", no_wrap=True)
    for name in ("measured", "bounds", "limit", *(() if narrow else ("n", "still needed"))):
        table.add_column(name, justify="right", no_wrap=True)
    for row in document.expectations:
        verdict = Text(row.verdict, style=f"bold {STYLES[row.verdict]}")
        figures = (row.measured.text, row.interval, row.limit_text)
        counts = () if narrow else (row.n_text if row.n else NONE, row.needed_text)
        table.add_row(row.id, verdict, *((row.metric,) if wide else ()), *figures, *counts)
    return table


def _remarks(document: Document, width: int) -> list[Text]:
    """Why, for every line that is not a plain PASS."""
    rows = [r for r in document.expectations if r.verdict != "PASS" or r.marginal_hit]
    return [_remark(row, narrow=width < FULL) for row in rows]


def _remark(row: ExpectationRow, *, narrow: bool) -> Text:
    style = STYLES[row.verdict]
    need = f", about {count(row.shots_needed)} more shots" if narrow and row.shots_needed else ""
    n = f" (n = {row.n_text})" if narrow and row.n else ""
    return Text.assemble((f"  {row.id}: ", style), f"{row.reason}{need}{n}")


def _hops(document: Document, width: int) -> Table:
    """One line per hop; narrow terminals lose the bound of the median and n."""
    full = width >= FULL
    bound = percent(document.bound_confidence)
    table = _table()
    table.add_column("hop", no_wrap=True)
    for cell in document.hops[0].quantiles:
        table.add_column(cell.stat, justify="right", no_wrap=True)
        if full or cell.stat != "p50":
            table.add_column(f"<= {bound}", justify="right", no_wrap=True, style="dim")
    table.add_column("max", justify="right", no_wrap=True)
    if full:
        table.add_column("n", justify="right", no_wrap=True, style="dim")
    for hop in document.hops:
        table.add_row(*_hop_cells(hop, full=full))
    if document.end_to_end is not None:
        table.add_section()
        table.add_row(*_hop_cells(document.end_to_end, full=full), style="bold")
    return table


def _hop_cells(hop: HopRow, *, full: bool) -> list[str]:
    cells = [hop.name.replace("_", " ")]
    for cell in hop.quantiles:
        cells.append(cell.value.text)
        if full or cell.stat != "p50":
            cells.append(cell.upper.text)
    return [*cells, hop.maximum.text, *([count(hop.n)] if full else [])]


def _figures(document: Document, width: int) -> Table:
    """Logical errors, rates and backlog: one line each."""
    table = _table()
    table.add_column("clean shots", no_wrap=True)
    for name in ("measured", "bounds"):
        table.add_column(name, justify="right", no_wrap=True)
    if width >= NARROW:
        table.add_column("events", justify="right", no_wrap=True, style="dim")
    bound = percent(document.bound_confidence)
    logical = document.logical
    rows = [
        (f"LER per shot (two-sided {bound})", logical.per_shot),
        (f"LER per round (r = {logical.rounds})", logical.per_round),
        *((f"{row.name} ({bound})", row) for row in (*document.rates, document.backlog) if row),
    ]
    for name, row in rows:
        if row is not None:
            events = (_of(row),) if width >= NARROW else ()
            table.add_row(name, row.value.text, row.interval, *events)
    return table


def _of(row: RateRow) -> str:
    if row.events is None:
        return f"{count(row.n)} shots"
    return f"{count(row.events)} of {count(row.n)}"


def _counts_line(document: Document) -> Text:
    """Counts that are not zero, how many are, and what was not counted."""
    rows = document.counts
    events = [f"{row.name} {row.text}" for row in rows if row.value]
    zeros = sum(row.value == 0 for row in rows)
    missing = [row.name for row in rows if row.value is None]
    parts = [*events, *([f"{'the other' if events else 'all'} {zeros} are 0"] if zeros else [])]
    if missing:
        parts.append(f"not counted: {', '.join(missing)}")
    return Text(f"counts: {'; '.join(parts) or 'none taken'}")


def _faults(document: Document) -> list[Text]:
    """What was injected and when, which detectors fired and which had to."""
    facts = document.facts
    lines = [Text(f"fault {row.id}: {row.what}, {row.when}") for row in facts.faults]
    if facts.faults and facts.alarms:
        told = [row for row in facts.alarms if row.alarms or row.role.startswith("must fire")]
        rest = len(facts.alarms) - len(told)
        parts = [f"{row.name} {count(row.alarms)} ({row.role})" for row in told]
        parts += [f"{'the other' if told else 'all'} {rest} silent"] if rest else []
        lines.append(Text(f"detectors: {'; '.join(parts)}"))
    return lines


def _decoded_by(document: Document) -> tuple[str, ...]:
    """What executed, in order; nothing where the runner did not state it."""
    ran = {row.part: row.executed for row in document.facts.executed}
    parts = [ran[part] for part in ("pre-decoder", "primary decoder") if part in ran]
    return (f"decoded by: {', then '.join(parts)}",) if parts else ()


def _files(document: Document) -> Text:
    return Text("files:  ").append(
        "  ".join(path for _, path in document.facts.files), style="cyan"
    )
