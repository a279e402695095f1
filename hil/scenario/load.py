"""Reads scenario files: text -> checked, frozen ``Scenario``. All errors are found in one pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any, Final

from pydantic import ValidationError

from hil.errors import UsageError
from hil.scenario.check import check_parts, parts_of
from hil.scenario.fields import TextContext
from hil.scenario.model import BoundProfile, Scenario
from hil.scenario.override import apply_override, select_profile
from hil.scenario.problems import Problem, ScenarioErrors
from hil.scenario.rack_profile import merge_profile
from hil.scenario.text import Document, Path, read_document
from hil.scenario.translate import translate, unknown_key
from hil.scenario.unsupported import strip_unsupported

_SILENCING: Final = ("E101", "E103", "E104", "E207", "E602")
"""Codes after which nothing more is said about the same place."""

_CHOOSERS: Final = ("family", "model", "kind", "metric", "mode", "dist")
"""Keys that decide which other keys make sense beside them."""


_FILLED: Final = ("system.links", "system.qpu.round_period", "system.qpu.shot_period")
"""Keys that a rack profile may fill: not missed where the profile could not be read."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A checked scenario.

    Attributes:
        scenario: the scenario; ``bind.use`` is the selected profile.
        profile: the selected profile.
        text: the file exactly as it was read.
        resolved: everything with defaults filled in and overrides applied, as JSON data; of the
            profiles only the selected one. Equal runs have equal ``resolved``.
        warnings: problems that do not stop a run.
        folder: folder of the file; relative names in it start here.
    """

    scenario: Scenario
    profile: BoundProfile
    text: str
    resolved: dict[str, Any]
    warnings: tuple[Problem, ...]
    folder: FilePath


def load_scenario(
    path: FilePath, *, bind: str | None = None, overrides: Sequence[str] = ()
) -> Loaded:
    """Read, override, check.

    Args:
        path: the scenario file.
        bind: profile to use instead of ``bind.use``.
        overrides: ``path=value`` texts; the value is YAML, e.g. ``run.shots=100``.

    Raises:
        UsageError: the file cannot be read.
        ScenarioErrors: everything that is wrong, sorted by line (exit code 2).
    """
    path = FilePath(path)
    text = _read(path)
    document = read_document(text, str(path))
    if document.data is None and document.problems:
        raise ScenarioErrors(document.problems)
    if not isinstance(document.data, dict):
        what = "not a mapping of keys to values"
        raise ScenarioErrors([document.problem("E203", (), what, fix="see docs/scenario.md")])
    failed = [found for change in overrides for found in apply_override(document, change)]
    if bind is not None:
        select_profile(document, bind)
    problems = [*document.problems, *failed]
    data, refused = strip_unsupported(document)
    context = TextContext(path.resolve().parent)
    data, more = merge_profile(document, data, context.folder)
    hidden = [entry for entry in more if entry.level == "warning"]
    problems.extend([*refused, *(entry for entry in more if entry.level == "error")])
    scenario, found = _validate(document, data, context)
    problems = _merge(problems, found)
    rules = list(check_parts(parts_of(scenario, data, context), document))
    problems = _merge(problems, [entry for entry in rules if entry.level == "error"])
    if scenario is None or problems:
        raise ScenarioErrors(problems)
    return Loaded(
        scenario=scenario,
        profile=scenario.profile,
        text=text,
        resolved=resolve(scenario),
        warnings=(*hidden, *(entry for entry in rules if entry.level == "warning")),
        folder=context.folder,
    )


def resolve(scenario: Scenario) -> dict[str, Any]:
    """The scenario as JSON data, with the selected profile only; a function of its content."""
    data = scenario.model_dump(mode="json")
    use = scenario.bind.use
    data["bind"]["profiles"] = {use: data["bind"]["profiles"][use]}
    return data


def _read(path: FilePath) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except OSError as err:
        raise UsageError(
            "cannot read the scenario",
            where=str(path),
            got=err.strerror or str(err),
            allowed="a readable YAML file",
            fix="check the name",
        ) from err
    except UnicodeDecodeError as err:
        line = err.object[: err.start].count(b"\n") + 1
        what = "not UTF-8"
        raise ScenarioErrors(
            [Problem(str(path), line, 1, "E101", "", what, fix="save the file as UTF-8")]
        ) from err


def _validate(
    document: Document, data: object, context: TextContext
) -> tuple[Scenario | None, list[Problem]]:
    hidden = [
        unknown_key(document, path, data) for path in _private_keys(data, ()) if path[-1] != ""
    ]
    try:
        scenario = Scenario.model_validate(data, context=context, by_alias=True, by_name=False)
    except ValidationError as err:
        return None, [*hidden, *translate(err, document, data)]
    return (None if hidden else scenario), hidden


def _private_keys(data: object, path: Path) -> Iterator[Path]:
    """Keys that models keep for themselves: their aliases start with a bracket."""
    if isinstance(data, dict):
        for key, value in data.items():
            here = (*path, str(key))
            if str(key).startswith("("):
                yield here
            yield from _private_keys(value, here)


def _merge(known: list[Problem], found: list[Problem]) -> list[Problem]:
    """Add problems, but nothing about a place that was refused already, nor anything twice."""
    silent = {entry.dotted for entry in known if entry.code in _SILENCING}
    for place in list(silent):
        parent, _, last = place.rpartition(".")
        if last in _CHOOSERS or last.isdigit():
            silent.add(parent)
    no_profile = any(entry.dotted == "system.rack.profile" for entry in known)
    if no_profile:
        silent.add("system.rack")
    out = list(known)
    seen = {(entry.code, entry.dotted, entry.line, entry.col) for entry in known}
    for entry in found:
        parts = entry.dotted.split(".")
        above = {".".join(parts[:end]) for end in range(1, len(parts) + 1)}
        if above & silent or (no_profile and entry.code == "E202" and entry.dotted in _FILLED):
            continue
        mark = (entry.code, entry.dotted, entry.line, entry.col)
        if mark not in seen:
            seen.add(mark)
            out.append(entry)
    return out
