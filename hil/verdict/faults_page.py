"""The tables of ``docs/faults.md``, generated: which fault of a link is seen by which detector.

Regenerate with ``python -m hil.verdict.faults_page docs/faults.md``; a test compares them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from hil.scenario.faults import ENDS_RC, NAMED, named_detector, side_effects
from hil.verdict.detectors import MEANING, NAMES, NOT_COVERED, READS

BEGIN: Final = "<!-- generated: matrix -->"
END: Final = "<!-- end -->"


class _Injected(NamedTuple):
    """Number in the catalogue of faults, how it is made, what does not see it."""

    number: str
    how: str
    blind: str


_INJECTED: Final = {
    "loss": _Injected(
        "F01, F08 (RC), F13 (flap)",
        "frames never leave; `p`, or bursts of mean length `burst.frames` (Gilbert-Elliott); a "
        "link flap is `p: 1.0` with `for`",
        "logical error rate; UC sends no NAK",
    ),
    "duplicate": _Injected("F02", "a second copy, `after` frames later", "count of received bits"),
    "reorder": _Injected(
        "F03", "1 to `window` later frames overtake it", "bit counts, logical error rate"
    ),
    "bit_flip": _Injected("F04", "one bit of the message behind its CRC-32", "ICRC, sequence"),
    "icrc": _Injected("F05", "one bit on the wire, ICRC left", "`seq_gap` does not tell the cause"),
    "truncate": _Injected(
        "F06", "`value` bytes cut off, ICRC right again", "a receiver that fills up with zeros"
    ),
    "wrong_qp": _Injected("F12", "another destination QP, ICRC right again", "completions"),
    "pause": _Injected(
        "F10", "the port lets nothing out for `value`, again after `every`", "mean and p99"
    ),
}


def tables() -> str:
    """Markdown between the markers."""
    rows = [
        "| kind | fault | how | detector | may fire too | does not see it |",
        "|---|---|---|---|---|---|",
    ]
    for kind, injected in _INJECTED.items():
        cells = (
            f"`{kind}`",
            injected.number,
            injected.how,
            _detector(kind),
            _side(kind),
            injected.blind,
        )
        rows.append(f"| {' | '.join(cells)} |")
    rows += ["", "| detector | alarms | counters whose sum they are |", "|---|---|---|"]
    for name in NAMES:
        read = ", ".join(f"`{counter}`" for counter in READS[name]) or "`node.widest`, one alarm"
        rows.append(f"| `{name}` | {MEANING[name]} | {read} |")
    rows += ["", "Not covered:", ""]
    rows += [f"- `{name}`: {why}." for name, why in NOT_COVERED.items()]
    return "\n".join(rows) + "\n"


def _detector(kind: str) -> str:
    """The detector on UC and, where it is another one, on RC."""
    named, reliable = NAMED[kind], named_detector(kind, "rc")
    if kind in ENDS_RC:
        return f"`{named}`; refused on RC"
    return f"`{named}`" if reliable == named else f"`{named}`; on RC `{reliable}`"


def _side(kind: str) -> str:
    cells = [f"`{name}`: {why}" for name, why in side_effects(kind, "uc").items()]
    if kind not in ENDS_RC:
        names = ", ".join(f"`{name}`" for name in side_effects(kind, "rc"))
        cells.append(f"on RC {names}")
    return "; ".join(cells)


def page_with_tables(page: str) -> str:
    """The text of ``docs/faults.md`` with fresh tables between the markers."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{tables()}{END}{after}"


def main(arguments: Sequence[str]) -> int:
    """Entry of ``python -m hil.verdict.faults_page FILE``."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m hil.verdict.faults_page FILE\n")
        return 2
    file = Path(arguments[0])
    file.write_text(page_with_tables(file.read_text(encoding="utf-8")), encoding="utf-8")
    sys.stdout.write(f"{file}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
