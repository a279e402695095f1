"""``hil rack fit``: from a capture to a rack profile, judged on rounds that it has not seen."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hil.errors import UsageError
from hil.rack.fit.capture import Capture, read_bytes
from hil.rack.fit.check import WINDOW, State, Statistic, check_fit, worst
from hil.rack.fit.model import fit_recording
from hil.rack.fit.stamps import read_csv
from hil.rack.fit.tap import read_tap
from hil.rack.fit.write import Fitted, check_absent, profile_files, rack_part, write_files
from hil.report.rack_fit import quantile_picture
from hil.scenario.fields import ID_PATTERN
from hil.timebase import PS_PER_S
from hil.units import format_ps
from hil.verdict.stats import minimum_samples

LONGEST_PS: Final = 10 * PS_PER_S
"""A round that takes longer was measured with two clocks, or names a wrong unit."""

QUANTILE: Final = 0.999
CONFIDENCE: Final = 0.95
"""The judged tail, and the confidence at which the held-out rounds must be able to bound it."""

EXIT_CODES: Final[Mapping[State, int]] = {
    State.REPRODUCED: 0,
    State.NOT_REPRODUCED: 1,
    State.INCONCLUSIVE: 4,
}


@dataclass(frozen=True)
class FitOptions:
    """What the caller asks for.

    Attributes:
        csv, pcap: the capture, one of them.
        ptp_clock: the tap's clock is the rack's PTP clock.
        hold_out: share of the rounds, the last in time, that the fit does not see.
        out: folder of the results.
        name: of the profile; default from the capture's file name.
        independent: fit independent draws, labelled ``assumed``.
        tolerance: largest relative error of a held-out quantile.
    """

    csv: Path | None = None
    pcap: Path | None = None
    ptp_clock: bool = False
    hold_out: float = 0.3
    out: Path = Path()
    name: str | None = None
    independent: bool = False
    tolerance: float = 0.03


@dataclass(frozen=True)
class FitResult:
    """Outcome of a fit: what was read, what the held-out rounds say, what was written."""

    fitted: Fitted
    files: tuple[Path, ...]

    @property
    def state(self) -> State:
        """Of the model that was asked for: what the held-out rounds say about it."""
        check = self.fitted.check
        return worst(check.independent) if self.fitted.independent else check.state

    @property
    def verdict(self) -> str:
        """One line for people."""
        check = self.fitted.check
        if self.fitted.independent:
            return f"independent draws: held-out rounds {self.state}; written as evidence assumed"
        if self.state is State.REPRODUCED:
            return f"REPRODUCED: profile written, evidence {self.fitted.evidence}"
        names = ", ".join(s.name for s in check.statistics if s.state is self.state)
        if self.state is State.NOT_REPRODUCED:
            return f"NOT REPRODUCED ({names}): no profile written"
        return (
            f"INCONCLUSIVE ({names}): too few data to tell, about "
            f"{check.rounds_needed:,} rounds are needed; no profile written"
        )

    @property
    def exit_code(self) -> int:
        """0 written, 1 not reproduced, 4 inconclusive; an independent fit promises nothing: 0."""
        return 0 if self.fitted.independent else EXIT_CODES[self.state]


def fit_rack(options: FitOptions) -> FitResult:
    """Read, fit, judge, write.

    ``NAME.json`` and ``NAME.svg`` are always written; the profile ``NAME.yaml`` and what it names
    only if the held-out tail is reproduced, or for an independent fit (evidence ``assumed``).

    Raises:
        UsageError: the capture is refused, too short, or a result exists already.
        RigError: the folder cannot be written.
    """
    source = _source(options)
    name = _name(options, source)
    check_absent(options.out, [f"{name}.{ending}" for ending in ("json", "svg", "yaml")])
    if options.csv is not None:
        capture = read_csv(options.csv)
    else:
        capture = read_tap(source, ptp_clock=options.ptp_clock)
    capture = rack_part(capture)
    _check_longest(capture, str(source))
    if options.independent and capture.round_trip:
        raise UsageError(
            "a round trip cannot be drawn independently: its halves would not add up",
            where=str(source),
            fix="leave out --independent",
        )
    cut = _cut(capture, options.hold_out, str(source))
    recording = fit_recording(capture.part(0, cut))
    check = check_fit(recording, capture.part(cut, capture.n_rounds), options.tolerance)
    fitted = Fitted(name, capture.part(0, cut), recording, check, options.independent)
    picture = quantile_picture(check, fitted.capture.file, WINDOW)
    files = {
        f"{name}.json": _numbers(fitted, source).encode(),
        f"{name}.svg": picture.encode(),
    }
    if options.independent or check.state is State.REPRODUCED:
        files |= profile_files(fitted)
    return FitResult(fitted, tuple(write_files(options.out, files)))


def _source(options: FitOptions) -> Path:
    """The one capture that was given."""
    given = [path for path in (options.csv, options.pcap) if path is not None]
    if len(given) != 1:
        raise UsageError(
            "give one of --csv and --pcap",
            got="both" if given else "neither",
            fix="hil rack fit --csv FILE",
        )
    if options.csv is not None and options.ptp_clock:
        raise UsageError(
            "--tap-clock ptp speaks about a tap",
            got=f"--csv {options.csv}",
            allowed="with --pcap only",
            fix="leave --tap-clock out",
        )
    if given[0].is_dir():
        raise UsageError(
            "the capture cannot be read",
            where=str(given[0]),
            got="a folder",
            allowed="a readable file",
            fix="name the file in it",
        )
    return given[0]


def _check_longest(capture: Capture, where: str) -> None:
    """Refuse durations that no rack has: sums of them would not fit 64 bits either."""
    longest = int(capture.durations_ps.max(initial=0))
    if longest > LONGEST_PS:
        raise UsageError(
            "a round takes longer than any rack does",
            where=where,
            got=format_ps(longest),
            allowed=f"at most {format_ps(LONGEST_PS)}",
            fix="correct the unit; for --tap-clock ptp the tap's clock must be the clock of the "
            "stamps (PTP counts TAI, 37 s ahead of UTC)",
        )


def _name(options: FitOptions, source: Path) -> str:
    name = options.name or re.sub(r"[^A-Za-z0-9_-]", "-", source.stem)
    if not re.fullmatch(ID_PATTERN, name):
        raise UsageError(
            "not a name for a profile",
            where="--name",
            got=name,
            allowed="a letter, then letters, digits, '-' and '_'",
            fix="give --name my-rack",
        )
    return name


def _cut(capture: Capture, hold_out: float, where: str) -> int:
    """First held-out round, at the start of a shot."""
    n, need = capture.n_rounds, minimum_samples(QUANTILE, CONFIDENCE)
    step = capture.rounds_per_shot or 1
    cut = round(n * (1.0 - hold_out)) // step * step
    if n - cut < need or cut < need:
        enough = n >= 2 * need + step
        share = min(1.0 - need / n, (need + step) / n) if enough else 0.0
        raise UsageError(
            f"too few rounds to judge p{100 * QUANTILE:g} at {100 * CONFIDENCE:g} % confidence",
            where=where,
            got=f"{cut} rounds to fit, {n - cut} held out",
            allowed=f">= {need} in each part (n_min = ln(1 - C) / ln(q))",
            fix=f"give --hold-out {share + 0.005:.2f}" if enough else "record more rounds",
        )
    return cut


def _numbers(fitted: Fitted, source: Path) -> str:
    """``NAME.json``: everything that was compared."""
    check, capture = fitted.check, fitted.capture
    judged = check.independent if fitted.independent else check.statistics
    data = {
        "schema": "hil.rack-fit/1",
        "capture": {
            "file": capture.file,
            "sha256": hashlib.sha256(read_bytes(source)).hexdigest(),
            "stages": list(capture.stages),
            "events_recorded": capture.events is not None,
            "rounds_per_shot": capture.rounds_per_shot,
            "notes": list(capture.notes),
        },
        "rounds": {
            "fit": check.n_fit,
            "held_out": check.n_held_out,
            "bootstrap_block": check.block,
        },
        "window_rounds": WINDOW,
        "model": "independent draws" if fitted.independent else "recorded order",
        "evidence": fitted.evidence,
        "state": str(worst(judged)),
        "event_classes_from": fitted.recording.events_from.tolist(),
        "statistics": [_row(entry) for entry in judged],
        "independent_draw": [_row(entry) for entry in check.independent],
    }
    return json.dumps(data, indent=2) + "\n"


def _row(entry: Statistic) -> dict[str, Any]:
    noise = entry.noise if entry.noise < 1e9 else None  # JSON knows no infinity
    return {
        "name": entry.name,
        "unit": entry.unit,
        "held_out": entry.held_out,
        "model": entry.model,
        "error": entry.error,
        "tolerance": entry.tolerance,
        "noise": noise,
        "state": str(entry.state),
    }
