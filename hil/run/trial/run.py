"""The two trials: judge weights as they are, choose their threshold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from gpu_decoder.ising.weights import load_weights, save_weights
from gpu_decoder.runtime.protocol import RuntimeUnavailable
from hil.errors import MissingExtraError, UsageError
from hil.run.trial.campaign import Plan, duration, run_campaign, seconds
from hil.run.trial.cells import Cell, Subject, Tally
from hil.run.trial.result import Choice, Row, choices, judge

CHAIN: Final = "network"
"""Name of the chain that is judged."""

THRESHOLDS: Final = (0.0, 1.0, 1.5, 2.0, 2.25, 2.5, 2.75, 3.0)
"""Thresholds to choose from, equal for data and measurement channels."""

CHOICE_SHARE: Final = 0.25
"""Shots that a threshold is chosen on, as a share of those it is judged on."""


def run_trial(
    subject: Subject,
    shots: Mapping[Cell, int],
    purpose: str,
    work: Path,
    *,
    processes: int,
    seed: int,
    tell: Callable[[str], None],
) -> dict[Cell, Tally]:
    """Say how long it will take, then count.

    Raises:
        MissingExtraError: the runtime is not installed.
        RigError: see ``run_campaign``.
    """
    plan = Plan(subject, shots, purpose, seed)
    try:
        estimate = seconds(plan, processes)
    except RuntimeUnavailable as error:
        raise MissingExtraError("the runtime is not installed", got=str(error)) from error
    tell(
        f"{sum(shots.values()):,} shots in {len(shots)} cells, {processes} processes: about "
        f"{duration(estimate)} on idle cores if nothing is counted yet"
    )
    return run_campaign(plan, work, processes=processes, tell=tell)


def shots_of(cells: Sequence[Cell], *, scale: float, shots: int | None) -> dict[Cell, int]:
    """Shots of each cell: as stated by the cell times ``scale``, or ``shots``."""
    return {cell: shots or max(1, round(cell.shots * scale)) for cell in cells}


def judged(tallies: Mapping[Cell, Tally]) -> list[Row]:
    """Rows of a trial of purpose ``judge``."""
    return judge(tallies, CHAIN)


def chosen(tallies: Mapping[Cell, Tally]) -> tuple[list[Choice], float | None]:
    """All thresholds of a trial of purpose ``choose``, and the one to take.

    Of those that reach the density goal for every (d, p) it is the one whose largest bound is
    smallest; None if none reaches it. Whether that bound is within the margin is another matter:
    ``Choice.allowed``.
    """
    found = choices(tallies)
    useful = [choice for choice in found if choice.useful]
    best = min(useful, key=lambda choice: choice.worst, default=None)
    return found, None if best is None else float(best.name)


def store_threshold(weights: Path, threshold: float, out: Path) -> str:
    """Write the weights with a threshold; SHA-256 of the new file.

    Raises:
        UsageError: ``out`` exists and is another file, or cannot be written.
    """
    if out.exists() and not out.samefile(weights):
        raise UsageError("exists already", where=str(out), fix="remove it or name another file")
    loaded = load_weights(weights)
    text = repr(float(threshold))
    metadata = {**loaded.metadata, "threshold_data": text, "threshold_syndrome": text}
    try:
        return save_weights(out, replace(loaded, metadata=metadata))
    except OSError as error:
        raise UsageError("cannot be written", where=str(out), got=str(error)) from error
