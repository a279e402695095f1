"""``hil decoder judge``: pre-decoder weights against plain matching on the same shots."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from hil.run.trial.result import Row


def judge(
    weights: Annotated[str, typer.Argument(help="Weights file, or a shipped name.")],
    cells: Annotated[
        list[str] | None,
        typer.Option(
            help="Only cells of this name, * allowed: 'ising25-d5-*'; repeatable.  "
            "[default: all 24]"
        ),
    ] = None,
    shots: Annotated[
        int | None,
        typer.Option(min=1, help="Shots of each cell.  [default: 200,000 to 600,000 by cell]"),
    ] = None,
    scale: Annotated[
        float, typer.Option(min=1e-6, max=100.0, help="Share of each cell's own number of shots.")
    ] = 1.0,
    threshold: Annotated[
        float | None, typer.Option(help="Threshold of all channels instead of the stored ones.")
    ] = None,
    orientation: Annotated[str, typer.Option(help="XV, XH, ZV or ZH.")] = "XV",
    runtime: Annotated[
        Literal["ort_cpu", "openvino"], typer.Option(help="Runtime of the network, fp32.")
    ] = "ort_cpu",
    processes: Annotated[int, typer.Option(min=1, help="Worker processes.")] = 2,
    seed: Annotated[int, typer.Option(min=0, help="Seed of all shots.")] = 0,
    work: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the counts; an interrupted trial goes on there.  "
            "[default: runs/trial-HASH]"
        ),
    ] = None,
    store: Annotated[
        Path | None, typer.Option(help="With --choose: write the weights with the threshold here.")
    ] = None,
    residual: Annotated[
        Literal["compatible", "keep_last"],
        typer.Option(help="Last round of the other basis: dropped as the reference does, or kept."),
    ] = "compatible",
    *,
    choose: Annotated[
        bool, typer.Option("--choose", help="Choose a threshold, on shots of its own.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print data instead of tables.")] = False,
) -> None:
    """Judge pre-decoder WEIGHTS: plain matching alone and behind the network, on the same shots.

    Exit code 0: not inferior in any cell (margin 10 % of the error rate, 95 %, Holm); 1: inferior
    in one; 4: too few shots to tell. With --choose 0: a threshold was found; 1: none suits.
    """
    from gpu_decoder.protocol import Backend
    from hil.errors import UsageError
    from hil.run.trial import run as trial
    from hil.run.trial.cells import chosen_cells, subject

    if store is not None and not choose:
        raise UsageError("--store needs --choose", fix="add --choose, or leave --store out")
    if choose and threshold is not None:
        raise UsageError("--choose and --threshold exclude each other", fix="leave one out")
    grid: dict[str, tuple[float | None, float | None]] = (
        {f"{t:g}": (t, t) for t in trial.THRESHOLDS}
        if choose
        else {trial.CHAIN: (threshold, threshold)}
    )
    tested = subject(
        weights, grid, orientation=orientation, keep_last=residual == "keep_last",
        backend=Backend[runtime.upper()],
    )  # fmt: skip
    purpose = "choose" if choose else "judge"
    tallies = trial.run_trial(
        tested,
        trial.shots_of(
            chosen_cells(cells or ()),
            scale=scale * (trial.CHOICE_SHARE if choose else 1.0),
            shots=shots,
        ),
        purpose,
        work or Path("runs") / f"trial-{tested.network_sha256[:12]}",
        processes=processes,
        seed=seed,
        tell=lambda text: typer.echo(text, err=True),
    )
    if choose:
        _choose(tallies, Path(tested.weights), store, as_json=as_json)
    else:
        _judge(trial.judged(tallies), as_json=as_json)


def _judge(rows: list[Row], *, as_json: bool) -> None:
    from json import dumps

    from hil.run.trial.result import worst
    from hil.verdict.judge import Verdict

    verdict = worst(rows)
    if as_json:
        typer.echo(dumps({"verdict": verdict, "cells": [_data(row) for row in rows]}, indent=2))
    else:
        _show(rows)
        typer.echo(f"verdict: {verdict}")
    raise typer.Exit({Verdict.PASS: 0, Verdict.FAIL: 1}.get(verdict, 4))


def _show(rows: list[Row]) -> None:
    """Two tables of 80 columns: error rates, work left to the matcher; the rest is in --json."""
    from hil.run.trial.cells import PAIR_RULE
    from hil.run.trial.result import DENSITY_GOAL

    accuracy, work = [], []
    for row in rows:
        cell, tally = row.cell.name, row.tally
        chain, rule = tally.chains[row.name], tally.chains[PAIR_RULE]
        accuracy.append((
            cell, f"{tally.shots:,}", f"{tally.plain / tally.shots:.3g}",
            f"{chain.failures / tally.shots:.3g}", f"{100 * row.upper:+.1f} %", row.verdict,
            row.compared,
        ))  # fmt: skip
        work.append((
            cell, f"{tally.events / tally.shots:.2f}",
            f"/{tally.events / max(1, chain.events):.2f}",
            f"/{tally.events / max(1, rule.events):.2f}", f"{row.density_ratio:.2f}",
            "met" if row.density_ratio >= DENSITY_GOAL else "NOT met",
            f"/{tally.matching_ns / max(1, chain.matching_ns):.2f}",
        ))  # fmt: skip
    _table(("error rates of", "shots", "plain", "network", "excess <=", "verdict", "McNemar"),
           accuracy)  # fmt: skip
    _table(("fired detectors of", "a shot", "network", "pair rule", "ratio",
            f">= {DENSITY_GOAL}", "matching"), work)  # fmt: skip


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(
        *columns, box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0)
    )
    for k, column in enumerate(table.columns):
        column.justify, column.no_wrap = ("right" if k else "left"), k == 0
        column.overflow = "fold"
    for row in rows:
        table.add_row(*row)
    console = Console(highlight=False)
    console.print(table)
    console.print()


def _data(row: Row) -> dict[str, Any]:
    return {
        "cell": row.cell.name,
        "verdict": row.verdict,
        "upper_bound_share": row.upper,
        "not_inferior_p": row.not_inferior,
        "equal_p": row.equal,
        "against_plain": row.compared,
        "density_ratio": row.density_ratio,
        "counts": row.tally.document(),
    }


def _choose(tallies: Any, weights: Path, store: Path | None, *, as_json: bool) -> None:  # noqa: ANN401
    from json import dumps

    from hil.run.trial import run as trial

    found, best = trial.chosen(tallies)
    stored = ""
    if best is not None and store is not None:
        stored = trial.store_threshold(weights, best, store)
    if as_json:
        typer.echo(dumps({"threshold": best, "stored_sha256": stored or None}, indent=2))
    else:
        keys = [f"d{d} p{p:g}" for d, p in found[0].upper]
        _table(
            ("threshold", *keys, "within margin", "density", "least ratio"),
            [
                (c.name, *(f"{100 * u:+.1f}%" for u in c.upper.values()),
                 "yes" if c.allowed else "no", f"/{c.density:.2f}", f"{min(c.ratio.values()):.2f}")
                for c in found
            ],
        )  # fmt: skip
        none = "no threshold reaches the density goal"
        typer.echo(none if best is None else f"threshold: {best:g}")
        if stored:
            typer.echo(f"stored: {store}, sha256 {stored}")
    raise typer.Exit(1 if best is None else 0)
