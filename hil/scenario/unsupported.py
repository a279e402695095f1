"""What the format names and this version does not build: refused as "not yet supported" (E207).

Refusing these apart from typing errors (E201, E204) tells a user that the file is right and the
version too old. Patterns use ``*`` for ids.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from hil.scenario.keys import allowed_values
from hil.scenario.problems import Problem
from hil.scenario.text import Document, Path

KEYS: Final[Mapping[str, tuple[str, ...]]] = {
    "": ("budgets", "sweep"),
    "system": ("calibration",),
    "system.qpu": ("physics", "drift"),
    "system.rack.clocks.*": ("offset", "drift", "jitter", "asymmetry"),
    "system.rack.boards.*": ("timeout",),
    "system.decoder": ("conceal", "global"),
    "system.decoder.fallback": ("predecoder_deadline", "return_after_shots"),
    "bind.profiles.*": ("analyst",),
    "bind.profiles.*.rack": ("top", "address"),
    "bind.profiles.*.network": ("address", "device"),
    "bind.profiles.*.decoder": ("global",),
    "run": ("looks", "cap_shots"),
    "run.record": ("waves",),
    "faults.*": ("add", "pair"),
    "expect.*": ("cap_shots", "when", "against", "after"),
}
"""Parent pattern -> keys below it that are not built."""

VALUES: Final[Mapping[str, tuple[str, ...]]] = {
    "system.rack.clocks.*.kind": ("ptp_slave",),
    "system.links.up.profile": ("rocev2-uc-send",),
    "system.links.down.profile": ("rocev2-uc-write-imm",),
    "system.decoder.ring.when_full": ("conceal",),
    "system.decoder.fallback.to": ("global_on_raw",),
    "bind.profiles.*.level": ("rtl", "hil"),
    "bind.profiles.*.rack.backend": ("rtl", "cocotb", "hardware"),
    "bind.profiles.*.network.backend": ("shm",),
    "run.record.streams": ("calib",),
    "faults.*.kind": (
        "clock_offset",
        "clock_drift",
        "clock_step",
        "delay_board",
        "mute_board",
        "swap_channels",
        "bit_order",
        "stale_response",
        "wrong_echo",
        "skip_reset",
        "decoder_crash",
        "analyst_error",
        "disk_full",
    ),
    "expect.*.metric": (
        "ler.ratio",
        "calibration.false_triggers",
        "calibration.detect_delay",
        "fault.recovery_time",
    ),
}
"""Pattern of a value -> values that are not built."""


def _matches(pattern: str, path: Path) -> bool:
    parts = pattern.split(".") if pattern else []
    return len(parts) == len(path) and all(
        part in ("*", key) for part, key in zip(parts, path, strict=True)
    )


def not_built_keys(path: Path) -> tuple[str, ...]:
    """Keys below ``path`` that are refused as not yet supported."""
    return tuple(key for pattern, keys in KEYS.items() if _matches(pattern, path) for key in keys)


def not_built_values(path: Path) -> tuple[str, ...]:
    """Values at ``path`` that are refused as not yet supported."""
    return tuple(v for pattern, values in VALUES.items() if _matches(pattern, path) for v in values)


def homes_of_not_built(key: str) -> list[str]:
    """Dotted patterns of places where a key that is not built would stand."""
    return [f"{parent}.{key}".lstrip(".") for parent, keys in KEYS.items() if key in keys]


def strip_unsupported(document: Document) -> tuple[object, list[Problem]]:
    """Remove keys that are not built, and report them and the values that are not built.

    Returns:
        The data without these keys (values stay), and the problems.
    """
    problems: list[Problem] = []
    data = _strip(document, document.data, (), problems)
    problems.extend(_levels(document, data))
    problems.extend(_requires(document, data))
    problems.extend(_closed_loop(document, data))
    return data, problems


def _strip(document: Document, data: object, path: Path, problems: list[Problem]) -> object:
    if isinstance(data, dict):
        refused = not_built_keys(path)
        out = {}
        for key, value in data.items():
            here = (*path, str(key))
            if key in refused:
                problems.append(_refusal(document, here))
            else:
                out[key] = _strip(document, value, here, problems)
        return out
    values = not_built_values(path)
    for item, here in _entries(data, path):
        if item in values:
            problems.append(_refused_value(document, here, str(item)))
    return data


def _entries(data: object, path: Path) -> Iterator[tuple[object, Path]]:
    if isinstance(data, list):
        yield from ((item, (*path, str(i))) for i, item in enumerate(data))
    elif isinstance(data, str):
        yield data, path


def _refusal(document: Document, path: Path) -> Problem:
    if path[-2:] in {("network", "address"), ("network", "device")}:
        fix = f"write rack_{path[-1]} and node_{path[-1]}"
    else:
        fix = f"remove '{path[-1]}'"
    return document.problem("E207", path, f"not yet supported: {path[-1]}", fix=fix, key=True)


def _refused_value(document: Document, path: Path, value: str) -> Problem:
    named = path[:-1] if path[-1].isdigit() else path
    allowed = allowed_values(named)
    return document.problem(
        "E207",
        path,
        f"not yet supported: {named[-1]}: {value}",
        got=value,
        allowed=", ".join(allowed),
        fix=f"write {named[-1]}: {allowed[0]}" if len(allowed) == 1 else "choose one of these",
    )


def _levels(document: Document, data: object) -> Iterator[Problem]:
    """A profile that is named after a level has that level."""
    bind = data.get("bind") if isinstance(data, dict) else None
    profiles = bind.get("profiles") if isinstance(bind, dict) else None
    for name, body in profiles.items() if isinstance(profiles, dict) else ():
        if name in {"rtl", "hil"} and isinstance(body, dict) and "level" not in body:
            yield document.problem(
                "E207",
                ("bind", "profiles", name),
                f"not yet supported: level: {name}",
                got=name,
                allowed="mil, sil",
                fix=f"remove the profile '{name}', or give it another level",
                key=True,
            )


def _requires(document: Document, data: object) -> Iterator[Problem]:
    needs = data.get("requires") if isinstance(data, dict) else None
    if isinstance(needs, list) and needs:
        yield document.problem(
            "E207",
            ("requires",),
            "not yet supported: requires",
            got=", ".join(map(str, needs)),
            allowed="[]",
            fix="write requires: []",
        )


def _closed_loop(document: Document, data: object) -> Iterator[Problem]:
    """A closed loop hides the very waits that a latency is judged for (E602)."""
    run = data.get("run") if isinstance(data, dict) else None
    if not isinstance(run, dict) or run.get("arrivals") != "closed_loop":
        return
    path = ("run", "arrivals")
    expect = data.get("expect") if isinstance(data, dict) else None
    judged = [
        str(name)
        for name, body in (expect.items() if isinstance(expect, dict) else ())
        if isinstance(body, dict)
        and str(body.get("metric", "")).startswith(
            ("latency.", "deadline.", "backlog.", "reaction_time", "window.")
        )
    ]
    if judged:
        yield document.problem(
            "E602",
            path,
            "closed_loop with a latency",
            got=f"closed_loop, and expect.{judged[0]} judges a latency",
            allowed="open_loop",
            fix="write arrivals: open_loop",
        )
    else:
        yield _refused_value(document, path, "closed_loop")
