"""Racks by name: ``profile: NAME`` fills what a scenario leaves out; the scenario may override it.

A profile is a YAML file of ``hil/rack/profiles/``, or a file of one's own (``profile:
./my-rack.yaml``, relative to the scenario; file names in it are relative to it). It holds clocks,
boards and stages, and may hold ``links`` (up, down) and ``cadence`` (round_period, shot_period).
Entries of a scenario replace single keys of the entry of the same id. A new latency needs its own
evidence: the one of the profile, and its source, speak about the number that was replaced.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path, PurePosixPath
from typing import Final

from pydantic import TypeAdapter, ValidationError

from hil.errors import ScenarioError
from hil.scenario.fields import TextContext
from hil.scenario.latency import Latency, Recorded
from hil.scenario.problems import Problem, ScenarioErrors, did_you_mean
from hil.scenario.text import Document, read_document
from hil.scenario.translate import translate
from hil.scenario.vendor import Zhinst
from hil.units import format_ps, format_time

_SECTIONS: Final = ("clocks", "boards", "stages")
_OPTIONAL: Final = ("links", "cadence")
_CADENCE: Final = ("round_period", "shot_period")
_CLAIMED: Final = ("latency", "evidence", "source")
_RACK: Final = ("system", "rack")
_PLACE: Final = (*_RACK, "profile")


@cache
def profile_names() -> tuple[str, ...]:
    """Names of the shipped racks."""
    folder = files("hil").joinpath("rack", "profiles")
    names = (entry.name for entry in folder.iterdir())
    return tuple(sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml")))


def is_file(name: str) -> bool:
    """True where ``rack.profile`` names a file, not a shipped rack."""
    return "/" in name or name.endswith((".yaml", ".yml"))


def read_profile(name: str) -> dict[str, dict[str, object]]:
    """Sections of a shipped rack as plain data: clocks, boards, stages; links, cadence if any.

    Raises:
        ScenarioError: the file is not a rack profile (a broken installation).
    """
    text = files("hil").joinpath("rack", "profiles", f"{name}.yaml").read_text(encoding="utf-8")
    profile = _parse(text, f"hil/rack/profiles/{name}.yaml")
    if profile.problems:
        raise ScenarioError(
            "not a rack profile",
            where=profile.document.name,
            got=profile.problems[0].what,
            allowed=f"title, {', '.join((*_SECTIONS, *_OPTIONAL))}",
            fix="repair the file or reinstall",
        )
    return profile.sections


@dataclass(frozen=True, slots=True)
class _Profile:
    """A parsed profile; ``sections`` is empty where there are problems."""

    document: Document
    sections: dict[str, dict[str, object]]
    problems: tuple[Problem, ...]


def _parse(text: str, name: str) -> _Profile:
    document = read_document(text, name)
    data = document.data
    problems = [
        replace(found, fix=f"write {', '.join(('title', *_SECTIONS))}")
        if found.code == "E104" and not text.strip()
        else found
        for found in document.problems
    ]
    if not problems and not isinstance(data, dict):
        problems.append(document.problem("E203", (), "not a mapping of keys to values"))
    if problems or not isinstance(data, dict):
        return _Profile(document, {}, tuple(problems))
    known = ("title", *_SECTIONS, *_OPTIONAL)
    if "schema" in data:
        found = document.problem(
            "E201",
            ("schema",),
            "a scenario, not a rack profile",
            got="key schema",
            allowed=", ".join(known),
            fix="name a rack profile; `hil list profiles` shows the shipped ones",
            key=True,
        )
        return _Profile(document, {}, (found,))
    for key, value in data.items():
        if key not in known:
            problems.append(_unknown(document, (str(key),), known))
        elif key != "title":
            problems += _check_section(document, str(key), value)
    problems += [
        document.problem("E202", (key,), f"missing key '{key}'", fix=f"add '{key}'")
        for key in ("title", *_SECTIONS)
        if key not in data
    ]
    sections = {} if problems else {k: data[k] for k in (*_SECTIONS, *_OPTIONAL) if k in data}
    return _Profile(document, sections, tuple(problems))


def _check_section(document: Document, section: str, value: object) -> list[Problem]:
    if not isinstance(value, dict):
        return [document.problem("E203", (section,), "wrong type", allowed="a mapping")]
    allowed = {"links": ("up", "down"), "cadence": (*_CADENCE, "evidence", "source")}.get(section)
    if allowed is None:
        return []
    missing = [] if section == "links" else [k for k in ("evidence", "source") if k not in value]
    return [
        *(_unknown(document, (section, k), allowed) for k in map(str, value) if k not in allowed),
        *(
            document.problem("E202", (section, k), f"missing key '{k}'", fix=f"add '{k}'", key=True)
            for k in missing
        ),
    ]


def _unknown(document: Document, path: tuple[str, ...], known: tuple[str, ...]) -> Problem:
    return document.problem(
        "E201",
        path,
        f"unknown key '{path[-1]}' in a rack profile",
        got=path[-1],
        allowed=", ".join(known),
        fix=did_you_mean(path[-1], known) or "remove it",
        key=True,
    )


def profile_rows(name: str) -> tuple[str, list[tuple[str, str, str, str]]]:
    """Title of a profile, and a row per duration: part, value, evidence, source.

    Args:
        name: shipped rack, or a file relative to the working directory.

    Raises:
        ScenarioErrors: the profile is unknown, not readable or not valid.
    """
    document = Document("", origin={(): "hil rack show"})
    sections, problems = _sections(document, name, Path())
    if problems:
        raise ScenarioErrors(problems)
    context = TextContext(Path())
    rows: list[tuple[str, str, str, str]] = []
    entries = [("stage", sections["stages"]), ("link", sections.get("links", {}))]
    for kind, bodies in entries:
        for key, body in bodies.items():
            if not isinstance(body, dict):
                continue
            value = _flow(body.get("latency", "not given"))
            if "latency" in body:
                try:
                    latency = TypeAdapter[Latency](Latency).validate_python(
                        body["latency"], context=context, by_alias=True, by_name=False
                    )
                except ValidationError as error:
                    where = {kind + "s": {key: {"latency": body["latency"]}}}
                    raise ScenarioErrors(translate(error, document, where)) from error
                value = _shown(latency, value)
            rows.append(
                (f"{kind} {key}", value, str(body.get("evidence", "")), str(body.get("source", "")))
            )
    cadence = sections.get("cadence", {})
    rows += [
        (key, str(cadence[key]), str(cadence["evidence"]), str(cadence["source"]))
        for key in _CADENCE
        if key in cadence
    ]
    return f"rack profile {name}", rows


def chosen_rows(name: str) -> list[tuple[str, str]]:
    """What a profile chooses and nobody claims: clocks, boards, and the rates of its links.

    Raises:
        ScenarioErrors: the profile is unknown, not readable or not valid.
    """
    sections, problems = _sections(Document("", origin={(): "hil rack show"}), name, Path())
    if problems:
        raise ScenarioErrors(problems)
    rows = [
        (f"{section.removesuffix('s')} {key}", _flow(body))
        for section in ("clocks", "boards")
        for key, body in sections[section].items()
    ]
    for key, body in sections.get("links", {}).items():
        own = {k: v for k, v in body.items() if k not in _CLAIMED} if isinstance(body, dict) else {}
        rows += [(f"link {key}", _flow(own))] if own else []
    return rows


def _flow(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_flow(body)}" for key, body in value.items())
    if isinstance(value, list):
        return " and ".join(map(str, value))
    return str(value)


def _shown(latency: Latency, written: str) -> str:
    if isinstance(latency, Zhinst):
        return f"{format_time(latency.ps)}: {written}"
    if isinstance(latency, Recorded) and latency.recording is not None:
        p50, p999 = (latency.recording.quantile_ps(latency.stage, q) for q in (0.5, 0.999))
        half = f", {latency.half} half" if latency.half else ""
        rounds = latency.recording.n_rounds
        return f"{rounds} recorded rounds, p50 {format_ps(p50)}, p99.9 {format_ps(p999)}{half}"
    return written


def merge_profile(document: Document, data: object, folder: Path) -> tuple[object, list[Problem]]:
    """Fill the system from the profile of its rack, if it names one.

    Args:
        document: the scenario, for positions; positions inside a profile's file are added to it.
        data: its data.
        folder: where relative names start.

    Returns:
        The data with complete clocks, boards and stages, with links and cadence where the scenario
        leaves them out, and the problems found on the way; a value of the profile that the scenario
        hides outside of its rack section is a warning.
    """
    rack = _at(data, _RACK)
    name = rack.get("profile") if rack is not None else None
    if rack is None or not isinstance(name, str) or not isinstance(data, dict):
        return data, []
    sections, problems = _sections(document, name, folder)
    if problems:
        return _without(data), problems
    merged: dict[str, object] = dict(rack)
    for section in _SECTIONS:
        base, given = sections[section], rack.get(section)
        merged[section] = _merged(document, (*_RACK, section), base, given, problems)
    system = {**data["system"], "rack": merged}
    if "links" in sections:
        base, given = sections["links"], system.get("links")
        system["links"] = _merged(document, ("system", "links"), base, given, problems)
    qpu = system.get("qpu")
    if isinstance(qpu, dict):
        cadence = sections.get("cadence", {})
        system["qpu"] = {**{k: cadence[k] for k in _CADENCE if k in cadence}, **qpu}
    problems += _unused(document, name, sections, data)
    return {**data, "system": system}, problems


def _unused(
    document: Document, name: str, sections: dict[str, dict[str, object]], data: object
) -> list[Problem]:
    """Warnings: latencies of links and periods of the profile that the scenario's own ones hide."""
    links, cadence = sections.get("links", {}), sections.get("cadence", {})
    claimed: list[tuple[tuple[str, ...], str, object]] = [
        (("system", "links", way), "latency", body.get("latency"))
        for way, body in links.items()
        if isinstance(body, dict)
    ]
    claimed += [(("system", "qpu"), key, cadence.get(key)) for key in _CADENCE]
    found = []
    for place, key, value in claimed:
        given = (_at(data, place) or {}).get(key)
        if value is None or given is None or given == value:
            continue
        path = (*place, key)
        hidden = document.problem(
            "E201",
            path,
            f"stands before the value of rack profile '{name}', which is not used",
            got=_flow(given),
            allowed=f"{_flow(value)} of the profile",
            fix="remove it to use the profile's"
            + (", with its evidence and source" if key == "latency" else ""),
            key=True,
        )
        found.append(replace(hidden, level="warning"))
    return found


def _sections(
    document: Document, name: str, folder: Path
) -> tuple[dict[str, dict[str, object]], list[Problem]]:
    """Sections of a profile by its name in the scenario."""
    if not is_file(name):
        if name in profile_names():
            return read_profile(name), []
        return {}, [
            document.problem(
                "E401",
                _PLACE,
                f"unknown rack profile '{name}'",
                got=name,
                allowed=", ".join(profile_names()) + ", or a file such as ./my-rack.yaml",
                fix=did_you_mean(name, profile_names()) or "write one of these",
            )
        ]
    try:
        text = (folder / name).read_bytes().decode("utf-8")
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8"
        return {}, [
            document.problem(
                "E403",
                _PLACE,
                f"cannot read the rack profile '{name}'",
                got=why or str(error),
                allowed="a rack profile, named relative to the scenario",
                fix="correct the name, or make one with hil rack fit",
            )
        ]
    profile = _parse(text, name)
    if not profile.problems:
        _note_places(document, profile.document)
    moved = {
        section: {key: _moved(body, name) for key, body in bodies.items()}
        for section, bodies in profile.sections.items()
    }
    return moved, [replace(found, dotted=".".join(_PLACE)) for found in profile.problems]


def _moved(value: object, name: str) -> object:
    """File names of a profile, relative to the scenario instead of to the profile."""
    if not isinstance(value, dict):
        return value
    beside = PurePosixPath(name).parent
    return {
        key: str(beside / body) if key == "file" and isinstance(body, str) else _moved(body, name)
        for key, body in value.items()
    }


def _note_places(document: Document, profile: Document) -> None:
    """Let errors in values of a profile name its file and line, not the scenario's."""
    for path, (line, col) in profile.values.items():
        if not path or path[0] == "title":
            continue
        if path[0] == "cadence":
            here = ("system", "qpu", *path[1:])
        else:
            here = ("system", *path) if path[0] == "links" else (*_RACK, *path)
        if len(path) > 1 and here not in document.values:
            document.origin[here] = f"{profile.name}:{line}:{col}"
            if path in profile.raw:
                document.raw[here] = profile.raw[path]


def _merged(
    document: Document,
    place: tuple[str, ...],
    base: dict[str, object],
    override: object,
    problems: list[Problem],
) -> object:
    """Entries of a profile with single keys replaced by those of the scenario."""
    if override is None:
        return base
    if not isinstance(override, dict):
        return override
    out: dict[str, object] = dict(base)
    for name, body in override.items():
        path = (*place, str(name))
        known = base.get(name)
        if not isinstance(known, dict):
            if place[-1] == "links":  # a direction that the profile does not know
                out[name] = body
                continue
            problems.append(
                document.problem(
                    "E401",
                    path,
                    f"the rack profile has no {place[-1].removesuffix('s')} '{name}'",
                    got=str(name),
                    allowed=", ".join(base),
                    fix=did_you_mean(str(name), base) or "override one of these",
                    key=True,
                )
            )
        elif not isinstance(body, dict):
            out[name] = body
        else:
            out[name] = _merged_entry(known, body)
    return out


def _merged_entry(known: dict[str, object], body: dict[str, object]) -> dict[str, object]:
    """One entry with single keys replaced; a new latency drops the evidence of the old one.

    A latency without ``dist`` changes single keys of the profile's; parameters of a vendor's timing
    model keep its evidence, since it is still that model that speaks.
    """
    new, old = body.get("latency"), known.get("latency")
    if new is None:
        return {**known, **body}
    kept = dict(known)
    if isinstance(new, dict) and isinstance(old, dict) and "dist" not in new:
        body = {**body, "latency": {**old, **new}}
        if old.get("dist") == "zhinst":
            return {**kept, **body}
    kept.pop("evidence", None)
    kept.pop("source", None)
    return {**kept, **body}


def _at(data: object, path: tuple[str, ...]) -> dict[str, object] | None:
    for key in path:
        data = data.get(key) if isinstance(data, dict) else None
    return data if isinstance(data, dict) else None


def _without(data: object) -> object:
    """Drop a rack that cannot be completed, so that it is not reported as empty as well."""
    if not isinstance(data, dict):
        return data
    system = {key: value for key, value in data["system"].items() if key != "rack"}
    return {**data, "system": system}
