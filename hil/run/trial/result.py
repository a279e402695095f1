"""From counts to verdicts, a choice of threshold, and a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from hil.run.trial.cells import PAIR_RULE, Cell, Tally
from hil.verdict.judge import Verdict
from hil.verdict.paired import holm, mcnemar_exact, not_inferior_p, tango

MARGIN: Final = 0.10
"""Largest tolerated excess of the logical error rate, as a share of plain matching's."""

CONFIDENCE: Final = 0.95
DENSITY_GOAL: Final = 1.5
"""Fired detectors that the isolated-pair rule leaves, over those that the network leaves."""

CHOICE_CONFIDENCE: Final = 0.9
"""Of the bound that a threshold must meet on the shots it is chosen on."""


@dataclass(frozen=True)
class Row:
    """One cell judged.

    Attributes:
        cell: which.
        tally: its counts.
        name: the chain judged.
        verdict: PASS: not inferior, Holm over all cells; FAIL: inferior beyond the margin at 95 %;
            else INCONCLUSIVE.
        upper: one-sided 95 % upper bound of the difference of error rates (this cell alone), as a
            share of plain matching's rate; infinite where that never failed.
        not_inferior: p-value of inferiority, Holm-adjusted.
        equal: exact two-sided McNemar p-value, Holm-adjusted.
    """

    cell: Cell
    tally: Tally
    name: str
    verdict: Verdict
    upper: float
    not_inferior: float
    equal: float

    @property
    def density_ratio(self) -> float:
        """Fired detectors left by the isolated-pair rule, over those left by the chain."""
        chains = self.tally.chains
        return chains[PAIR_RULE].events / max(1, chains[self.name].events)

    @property
    def compared(self) -> str:
        """``better``, ``worse`` (both significant at 95 % after Holm) or ``equal``."""
        chain = self.tally.chains[self.name]
        if self.equal > 1 - CONFIDENCE:
            return "equal"
        return "better" if chain.better > chain.worse else "worse"


def judge(tallies: Mapping[Cell, Tally], name: str) -> list[Row]:
    """Judge a chain in all cells at once (non-inferiority with ``MARGIN``, Holm over the cells)."""
    cells = sorted(tallies)
    counts = [(tallies[c].chains[name], tallies[c]) for c in cells]
    margins = [MARGIN * t.plain / t.shots for _, t in counts]
    inferior = holm(
        [
            not_inferior_p(c.worse, c.better, t.shots, m)
            for (c, t), m in zip(counts, margins, strict=True)
        ]
    )
    unequal = holm([mcnemar_exact(c.worse, c.better) for c, _ in counts])
    rows = []
    for k, cell in enumerate(cells):
        chain, tally = counts[k]
        bounds = tango(chain.worse, chain.better, tally.shots, CONFIDENCE)
        if inferior[k] <= 1 - CONFIDENCE:
            verdict = Verdict.PASS
        else:
            verdict = Verdict.FAIL if bounds.lower > margins[k] else Verdict.INCONCLUSIVE
        upper = bounds.upper * tally.shots / tally.plain if tally.plain else float("inf")
        rows.append(Row(cell, tally, name, verdict, upper, inferior[k], unequal[k]))
    return rows


def worst(rows: Sequence[Row]) -> Verdict:
    """FAIL before INCONCLUSIVE before PASS."""
    order = (Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.PASS)
    return min((row.verdict for row in rows), key=order.index)


@dataclass(frozen=True)
class Choice:
    """How one threshold did on the shots it may be chosen on.

    Attributes:
        name: of the thresholds.
        upper: per (d, p), cells of both noises and bases pooled: one-sided upper bound of the
            difference at ``CHOICE_CONFIDENCE``, as a share of plain matching's error rate.
        ratio: per (d, p): left by the isolated-pair rule, over left by the network.
        density: fired detectors before, over those left, all cells together.
    """

    name: str
    upper: Mapping[tuple[int, float], float]
    ratio: Mapping[tuple[int, float], float]
    density: float

    @property
    def allowed(self) -> bool:
        """Whether every bound is within the margin."""
        return self.worst <= MARGIN

    @property
    def useful(self) -> bool:
        """Whether the density goal is reached for every (d, p)."""
        return min(self.ratio.values()) >= DENSITY_GOAL

    @property
    def worst(self) -> float:
        """The largest bound."""
        return max(self.upper.values())


def choices(tallies: Mapping[Cell, Tally]) -> list[Choice]:
    """All thresholds of a tally, in their order."""
    names = [n for n in next(iter(tallies.values())).chains if n != PAIR_RULE]
    pooled: dict[tuple[int, float], Tally] = {}
    for cell, tally in sorted(tallies.items()):
        key = (cell.distance, cell.p)
        pooled[key] = pooled.get(key, Tally()) + tally
    found = []
    for name in names:
        upper, ratio = {}, {}
        for key, tally in pooled.items():
            chain = tally.chains[name]
            bound = tango(chain.worse, chain.better, tally.shots, CHOICE_CONFIDENCE).upper
            upper[key] = bound * tally.shots / tally.plain if tally.plain else float("inf")
            ratio[key] = tally.chains[PAIR_RULE].events / max(1, chain.events)
        before = sum(t.events for t in pooled.values())
        after = sum(t.chains[name].events for t in pooled.values())
        found.append(Choice(name, upper, ratio, before / max(1, after)))
    return found


def choice_table(found: Sequence[Choice]) -> str:
    """Markdown table of thresholds."""
    keys = list(found[0].upper)
    lines = _head(
        "threshold", *(f"d{d} p{p:g}" for d, p in keys), "within margin", "density", "least ratio"
    )
    for choice in found:
        cells = "".join(f" {100 * choice.upper[key]:+.1f} % |" for key in keys)
        allowed, least = "yes" if choice.allowed else "no", min(choice.ratio.values())
        lines.append(f"| {choice.name} |{cells} {allowed} | /{choice.density:.2f} | {least:.2f} |")
    return "\n".join(lines) + "\n"


def accuracy_table(rows: Sequence[Row]) -> str:
    """Markdown table: error rates, discordant shots, bounds and verdicts."""
    lines = _head(
        "noise", "d", "p", "basis", "shots", "LER plain", "LER chain", "worse / better",
        "upper bound", "Holm p", "verdict", "against plain (McNemar p, Holm)", "LER correlated",
        "LER pair rule",
    )  # fmt: skip
    for row in rows:
        c, t, chain = row.cell, row.tally, row.tally.chains[row.name]
        lines.append(
            f"| {c.noise} | {c.distance} | {c.p:g} | {c.basis} | {t.shots:,} | {_rate(t.plain, t)} "
            f"| {_rate(chain.failures, t)} | {chain.worse:,} / {chain.better:,} "
            f"| {100 * row.upper:+.1f} % | {row.not_inferior:.2g} | {row.verdict} "
            f"| {row.compared} ({row.equal:.2g}) | {_rate(t.correlated, t)} "
            f"| {_rate(t.chains[PAIR_RULE].failures, t)} |"
        )
    return "\n".join(lines) + "\n"


def work_table(rows: Sequence[Row]) -> str:
    """Markdown table: what is left for the matcher."""
    lines = _head(
        "noise", "d", "p", "basis", "fired before, per shot", "density chain",
        "density pair rule", "ratio", f"goal {DENSITY_GOAL}", "matching time chain",
        "matching time pair rule",
    )  # fmt: skip
    for row in rows:
        c, t = row.cell, row.tally
        chain, rule = t.chains[row.name], t.chains[PAIR_RULE]
        met = "met" if row.density_ratio >= DENSITY_GOAL else "NOT met"
        lines.append(
            f"| {c.noise} | {c.distance} | {c.p:g} | {c.basis} | {t.events / t.shots:.2f} "
            f"| /{t.events / max(1, chain.events):.2f} | /{t.events / max(1, rule.events):.2f} "
            f"| {row.density_ratio:.2f} | {met} | /{t.matching_ns / max(1, chain.matching_ns):.2f} "
            f"| /{t.matching_ns / max(1, rule.matching_ns):.2f} |"
        )
    return "\n".join(lines) + "\n"


def _head(*names: str) -> list[str]:
    return [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]


def _rate(failures: int, tally: Tally) -> str:
    return f"{failures / tally.shots:.3g}"
