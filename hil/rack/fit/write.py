"""Writes a fitted rack: the profile (YAML) and the recording (npz) that it names."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hil.errors import RigError, UsageError
from hil.rack.fit.capture import Capture
from hil.rack.fit.check import Check
from hil.scenario.rack_profile import read_profile
from hil.scenario.recording import Recording, encode
from hil.units import format_ps

NODE_HOPS: Final = ("deliver", "queue", "decode", "reply")
"""Hops that belong to the decoder node: a rack profile does not hold them."""
_LINKS: Final = {"uplink": "up", "downlink": "down"}
_LAST: Final = ("packetize", "apply")
_BASE: Final = "generic-fpga"
"""Shipped rack whose stages stand where a capture has none."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """A fit that is ready to be written.

    Attributes:
        name: of the profile and its files.
        capture: all rounds that were read.
        recording: fitted on the earlier ones.
        check: what the later ones say.
        independent: draw each stage alone, in random order: evidence ``assumed``.
    """

    name: str
    capture: Capture
    recording: Recording
    check: Check
    independent: bool

    @property
    def evidence(self) -> str:
        """``measured`` only where order and stages are kept as they were recorded."""
        return "assumed" if self.independent or self.capture.round_trip else "measured"


def rack_part(capture: Capture) -> Capture:
    """The capture without hops of the node.

    Raises:
        UsageError: nothing is left.
    """
    keep = [k for k, name in enumerate(capture.stages) if name not in NODE_HOPS]
    if not keep:
        raise UsageError(
            "the capture holds no part of the rack",
            where=capture.file,
            got=", ".join(capture.stages),
            allowed="stages of the rack, uplink, downlink",
            fix="the node's times belong into the bind profile (service, deliver, reply)",
        )
    left = [name for name in capture.stages if name in NODE_HOPS]
    notes = capture.notes
    if left:
        notes = (*notes, f"{', '.join(left)}: of the decoder node, not part of a rack profile")
    return Capture(
        capture.file,
        tuple(capture.stages[k] for k in keep),
        capture.durations_ps[keep],
        capture.events,
        capture.rounds_per_shot,
        notes,
        capture.round_trip,
    )


def profile_files(fitted: Fitted) -> dict[str, bytes]:
    """File name -> content of the profile and of what it names; the profile comes last."""
    if fitted.independent:
        files = {
            f"{fitted.name}-{stage}.txt": _lines(fitted.capture, k)
            for k, stage in enumerate(fitted.capture.stages)
        }
        shapes = {
            stage: f"{{dist: empirical, file: {fitted.name}-{stage}.txt}}"
            for stage in fitted.capture.stages
        }
    else:
        raw = encode(fitted.recording)
        files = {f"{fitted.name}.npz": raw}
        sha = hashlib.sha256(raw).hexdigest()
        shapes = {
            stage: f"{{dist: recorded, file: {fitted.name}.npz, sha256: '{sha}', stage: {stage}}}"
            for stage in fitted.capture.stages
        }
    files[f"{fitted.name}.yaml"] = _profile(fitted, shapes).encode()
    return files


def _lines(capture: Capture, k: int) -> bytes:
    return "".join(f"{value}\n" for value in capture.durations_ps[k].tolist()).encode()


def _profile(fitted: Fitted, shapes: dict[str, str]) -> str:
    base, file = read_profile(_BASE), _plain(fitted.capture.file)
    lines = [
        f"# Fitted by hil rack fit to {fitted.check.n_fit:,} rounds of {file},",
        f"# judged on the {fitted.check.n_held_out:,} rounds after them: {fitted.name}.json.",
        *(f"# {_plain(note)}." for note in fitted.capture.notes),
        f"title: {_quoted(f'Rack {fitted.name}, fitted to {fitted.capture.file}')}",
        "",
        "clocks:",
        *(f"  {name}: {_flow(body)}" for name, body in base["clocks"].items()),
        "boards:",
        *(f"  {name}: {_flow(body)}" for name, body in base["boards"].items()),
        "stages:",
    ]
    chain = [s for s in fitted.capture.stages if s not in {*_LINKS, *_LAST, "round_trip"}]
    for i, stage in enumerate(chain):
        place = "[ro0, ro1]" if i == 0 else "[agg]"
        lines += _entry(fitted, stage, shapes[stage], place)
    if not chain:
        lines += [line for name in base["stages"] if name not in _LAST for line in _copied(name)]
    for name in _LAST:
        if name in shapes:
            lines += _entry(fitted, name, shapes[name], "[agg]")
        elif name == "packetize" and "acquire" in chain and "PTP stamp" in fitted.capture.notes[0]:
            lines += [
                "  packetize:", "    at: [agg]", "    latency: 0ps", "    evidence: assumed",
                '    source: "inside acquire: the tap does not tell them apart"',
            ]  # fmt: skip
        else:
            lines += _copied(name)
    lines += _links(fitted, shapes)
    return "\n".join(lines) + "\n"


def _entry(fitted: Fitted, stage: str, shape: str, place: str, key: str = "") -> list[str]:
    head = [f"  {key or stage}:"] + ([f"    at: {place}"] if place else [])
    return [
        *head,
        f"    latency: {shape}",
        f"    evidence: {fitted.evidence}",
        f"    source: {_quoted(_source(fitted, stage))}",
    ]


def _links(fitted: Fitted, shapes: dict[str, str]) -> list[str]:
    if fitted.capture.round_trip:
        shape = shapes["round_trip"].removesuffix("}")
        found = [
            _entry(fitted, "round_trip", f"{shape}, half: {half}}}", "", link)
            for link, half in (("up", "first"), ("down", "second"))
        ]
    else:
        found = [
            _entry(fitted, stage, shapes[stage], "", link)
            for stage, link in _LINKS.items()
            if stage in shapes
        ]
    return ["links:", *(line for entry in found for line in entry)] if found else []


def _source(fitted: Fitted, stage: str) -> str:
    sort = fitted.recording
    marks = ", ".join(
        f"{name} {format_ps(sort.quantile_ps(stage, q))}"
        for name, q in (("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999))
    )
    within = 100 * fitted.check.tolerance
    how = (
        "drawn independently, the tail of queues is lost"
        if fitted.independent
        else f"replayed, held-out quantiles within {within:g} %"
    )
    half = "; half of a round trip, the split is assumed" if fitted.capture.round_trip else ""
    return f"{sort.n_rounds} rounds of {fitted.capture.file}, {how}; {marks}{half}"


def _copied(stage: str) -> list[str]:
    """A stage of the base rack, with its own evidence."""
    body = read_profile(_BASE)["stages"][stage]
    if not isinstance(body, dict):
        raise UsageError("not a rack profile", where=_BASE)
    return [
        f"  {stage}:",
        f"    at: {_flow(body['at'])}",
        f"    latency: {_flow(body['latency'])}",
        f"    evidence: {body['evidence']}",
        f"    source: {_quoted(f'not in the capture, as in {_BASE}: ' + str(body['source']))}",
    ]


def _flow(value: object) -> str:
    """Plain data as one line of YAML."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_flow(body)}" for key, body in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    text = str(value)
    return _quoted(text) if any(c in text for c in ":[]{}#,") else text


def _plain(text: str) -> str:
    """Text without characters that could end a line."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _quoted(text: str) -> str:
    escaped = _plain(text).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def check_absent(folder: Path, names: Iterable[str]) -> None:
    """Refuse to replace a file.

    Raises:
        UsageError: one of them exists.
    """
    for name in names:
        if (folder / name).exists():
            raise UsageError(
                "the file exists already",
                where=str(folder / name),
                allowed="a new name",
                fix="give another --name or --out, or remove it",
            )


def write_files(folder: Path, files: dict[str, bytes]) -> list[Path]:
    """Write files whole and in order; nothing that exists is replaced.

    Raises:
        UsageError: one of them exists.
        RigError: the folder cannot be written.
    """
    check_absent(folder, files)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            partial = folder / f".{name}.part"
            partial.write_bytes(content)
            partial.replace(folder / name)
    except OSError as error:
        raise RigError(
            "the fit cannot be written",
            where=str(folder),
            got=error.strerror or str(error),
            fix="choose another --out",
        ) from error
    return [folder / name for name in files]
