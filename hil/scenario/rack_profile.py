"""Shipped racks: ``profile: NAME`` fills clocks, boards and stages; a scenario may override them.

A profile is a YAML file of ``hil/rack/profiles/``. Entries of a scenario replace single keys of the
entry of the same id. A new latency needs its own evidence: the one of the profile, and its source,
speak about the number that was replaced.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Final

from hil.errors import ScenarioError
from hil.scenario.problems import Problem, did_you_mean
from hil.scenario.text import Document, read_document

_SECTIONS: Final = ("clocks", "boards", "stages")
_RACK: Final = ("system", "rack")


@cache
def profile_names() -> tuple[str, ...]:
    """Names of the shipped racks."""
    folder = files("hil").joinpath("rack", "profiles")
    names = (entry.name for entry in folder.iterdir())
    return tuple(sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml")))


def read_profile(name: str) -> dict[str, dict[str, object]]:
    """Clocks, boards and stages of a shipped rack, as plain data.

    Raises:
        ScenarioError: the file is not a rack profile (a broken installation).
    """
    text = files("hil").joinpath("rack", "profiles", f"{name}.yaml").read_text(encoding="utf-8")
    document = read_document(text, f"{name}.yaml")
    data = document.data
    if document.problems or not isinstance(data, dict) or set(data) != {"title", *_SECTIONS}:
        raise ScenarioError(
            "not a rack profile",
            where=f"hil/rack/profiles/{name}.yaml",
            allowed="title, clocks, boards, stages",
            fix="repair the file or reinstall",
        )
    return {section: data[section] for section in _SECTIONS}


def merge_profile(document: Document, data: object) -> tuple[object, list[Problem]]:
    """Fill ``system.rack`` from its profile, if it names one.

    Returns:
        The data with complete clocks, boards and stages, and the problems found on the way.
    """
    rack = _at(data, _RACK)
    name = rack.get("profile") if rack is not None else None
    if rack is None or not isinstance(name, str):
        return data, []
    if name not in profile_names():
        place = (*_RACK, "profile")
        return _without(data), [
            document.problem(
                "E401",
                place,
                f"unknown rack profile '{name}'",
                got=name,
                allowed=", ".join(profile_names()),
                fix=did_you_mean(name, profile_names()) or "write one of these",
            )
        ]
    problems: list[Problem] = []
    merged: dict[str, object] = dict(rack)
    for section, entries in read_profile(name).items():
        merged[section] = _merge_section(document, section, entries, rack.get(section), problems)
    return _with_rack(data, merged), problems


def _merge_section(
    document: Document,
    section: str,
    base: dict[str, object],
    override: object,
    problems: list[Problem],
) -> object:
    if override is None:
        return base
    if not isinstance(override, dict):
        return override
    out: dict[str, object] = dict(base)
    for name, body in override.items():
        path = (*_RACK, section, str(name))
        known = base.get(name)
        if not isinstance(known, dict):
            problems.append(
                document.problem(
                    "E401",
                    path,
                    f"the rack profile has no {section.removesuffix('s')} '{name}'",
                    got=str(name),
                    allowed=", ".join(base),
                    fix=did_you_mean(str(name), base) or "override one of these",
                    key=True,
                )
            )
        elif not isinstance(body, dict):
            out[name] = body
        else:
            kept = dict(known)
            if "latency" in body:
                kept.pop("evidence", None)
                kept.pop("source", None)
            out[name] = {**kept, **body}
    return out


def _at(data: object, path: tuple[str, ...]) -> dict[str, object] | None:
    for key in path:
        data = data.get(key) if isinstance(data, dict) else None
    return data if isinstance(data, dict) else None


def _with_rack(data: object, rack: object) -> object:
    if not isinstance(data, dict):
        return data
    return {**data, "system": {**data["system"], "rack": rack}}


def _without(data: object) -> object:
    """Drop a rack that cannot be completed, so that it is not reported as empty as well."""
    if not isinstance(data, dict):
        return data
    system = {key: value for key, value in data["system"].items() if key != "rack"}
    return {**data, "system": system}
