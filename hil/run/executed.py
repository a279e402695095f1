"""What has been executed on this machine: one line per run, appended, never rewritten.

The file is ``executed.jsonl`` in ``$XDG_STATE_HOME/hil``, by default ``~/.local/state/hil``. Only
``hil run`` writes it. A place that cannot be written is reported, never an error.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from hil.report.document import Document

_LINE_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class Ran:
    """One run, as it is kept.

    Attributes:
        date: ISO 8601, start of the run.
        version: of this distribution.
        level: ``mil``, ``sil``.
        network: backend that carried the frames.
        node: where the decoder ran.
        primary: decoder asked first, as it executed.
        verdict: of the run.
        scenario: its id.
        predecoder: what ran before the primary decoder: weights, runtime and version, number
            format; empty without one and in lines of older versions.
    """

    date: str
    version: str
    level: str
    network: str
    node: str
    primary: str
    verdict: str
    scenario: str
    predecoder: str = ""


@dataclass(frozen=True, slots=True)
class Summary:
    """Runs of one kind: level, network, node, pre-decoder and primary decoder are equal.

    Attributes:
        runs: how many.
        passed: how many of them with verdict PASS.
        last: the latest one.
    """

    runs: int
    passed: int
    last: Ran


def record_path() -> Path:
    """The file of this user."""
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(home) / "hil" / "executed.jsonl"


def keep(document: Document) -> str:
    """Append a run; returns why it could not be kept, or an empty text."""
    facts = document.facts
    executed = {row.part: row.executed for row in facts.executed}
    ran = Ran(
        date=facts.created_utc,
        version=dict(facts.versions).get("hil", ""),
        level=facts.level,
        network=executed.get("network", ""),
        node=executed.get("node", ""),
        primary=executed.get("primary decoder", ""),
        verdict=document.verdict,
        scenario=facts.scenario_id,
        predecoder=executed.get("pre-decoder", ""),
    )
    try:
        path = record_path()
        path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps(asdict(ran)).encode() + b"\n"
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line[:_LINE_BYTES])  # one write: lines of two runs do not mix
        finally:
            os.close(descriptor)
    except (OSError, RuntimeError) as error:
        return f"the record of executed runs cannot be written: {error}"
    return ""


def summary() -> list[Summary]:
    """Runs kept so far by kind, latest last; lines that are damaged are left out."""
    found: dict[tuple[str, ...], Summary] = {}
    try:
        with record_path().open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                ran = _parsed(line)
                if ran is not None:
                    key = (ran.level, ran.network, ran.node, ran.predecoder, ran.primary)
                    known = found.pop(key, None)
                    runs, passed = (known.runs, known.passed) if known else (0, 0)
                    found[key] = Summary(runs + 1, passed + (ran.verdict == "PASS"), ran)
    except (OSError, RuntimeError):
        return []
    return list(found.values())


def _parsed(line: str) -> Ran | None:
    try:
        data = {"predecoder": ""} | json.loads(line)
        return Ran(**{field.name: str(data[field.name]) for field in fields(Ran)})
    except (ValueError, KeyError, TypeError):
        return None
