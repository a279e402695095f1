"""Pydantic's errors -> problems with line, column, allowed values and a fix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from pydantic import ValidationError

from hil.scenario.expect import STAT_PATTERN
from hil.scenario.fields import ID_PATTERN
from hil.scenario.keys import allowed_keys, allowed_values, description_of, homes_of
from hil.scenario.latency import LATENCY_SHAPES
from hil.scenario.problems import Problem, did_you_mean
from hil.scenario.text import Document, Path
from hil.scenario.unsupported import homes_of_not_built

_WRONG_TYPE: Final[Mapping[str, str]] = {
    "string_type": "a text",
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "tuple_type": "a list",
    "is_instance_of": "a frequency",
}
_FORMS: Final = {
    ID_PATTERN: "a letter, then letters, digits, '-' and '_'",
    STAT_PATTERN: "p1 to p99.9999999, for example p50 or p99.9",
}
_RANGE: Final[Mapping[str, tuple[str, str]]] = {
    "greater_than": (">", "gt"),
    "greater_than_equal": (">=", "ge"),
    "less_than": ("<", "lt"),
    "less_than_equal": ("<=", "le"),
}


def translate(error: ValidationError, document: Document, data: object) -> list[Problem]:
    """All problems of one validation.

    Args:
        error: what pydantic raised for ``data``.
        document: where the positions come from.
        data: what was validated.
    """
    return [_one(entry, document, data) for entry in error.errors(include_url=False)]


def _path_of(loc: Sequence[int | str], data: object, *, missing: bool) -> Path:
    """Location without the tags that pydantic adds for members of unions."""
    path: list[str] = []
    for i, item in enumerate(loc):
        if isinstance(data, dict):
            if item in data:
                data = data[item]
            elif not (missing and i == len(loc) - 1):
                continue
        elif isinstance(data, list | tuple):
            if not isinstance(item, int) or item >= len(data):
                continue
            data = data[item]
        else:
            continue
        path.append(str(item))
    return tuple(path)


def _one(entry: Any, document: Document, data: object) -> Problem:  # noqa: ANN401, PLR0911
    kind: str = entry["type"]
    context: dict[str, Any] = entry.get("ctx") or {}
    path = _path_of(entry["loc"], data, missing=kind == "missing")
    value = entry.get("input")
    if kind == "missing":
        return _missing(document, path, data)
    if kind == "extra_forbidden":
        return unknown_key(document, path, data)
    if kind == "scenario":
        path = (*path, *context["at"].split(".")) if context["at"] else path
        return document.problem(
            context["code"],
            path,
            context["what"],
            got=_got(document, path, context),
            allowed=context["allowed"],
            fix=context["fix"],
            key=context["code"] in {"E201", "E202"},
        )
    if kind in {"literal_error", "union_tag_invalid"}:
        return _not_in_list(document, path, value, context)
    if kind == "union_tag_not_found":
        return _missing_choice(document, (*path, _discriminator(path)))
    if kind in _RANGE or kind in {"too_short", "string_too_short", "string_pattern_mismatch"}:
        return _out_of_range(document, path, entry)
    got = document.shown(path, value)
    allowed = _WRONG_TYPE.get(kind, entry["msg"].lower())
    quote = allowed == "a text" and not isinstance(value, dict | list)
    fix = "quote it" if quote else f"write {allowed}"
    return document.problem("E203", path, "wrong type", got=got, allowed=allowed, fix=fix)


def _got(document: Document, path: Path, context: Mapping[str, Any]) -> str:
    """The value as written, where the validator saw a number that lost its spelling."""
    raw = document.raw.get(path, "")
    return raw or context["got"] if context["code"] == "E301" else context["got"] or raw


def _out_of_range(document: Document, path: Path, entry: Any) -> Problem:  # noqa: ANN401 same
    kind: str = entry["type"]
    context: dict[str, Any] = entry.get("ctx") or {}
    got, key = document.shown(path, entry["input"]), False
    if kind in _RANGE:
        sign, name = _RANGE[kind]
        what, allowed, fix = "out of range", f"{sign} {context[name]}", "write a value in range"
    elif kind == "string_pattern_mismatch":
        key = entry["loc"][-1] == "[key]"
        got, pattern = str(entry["input"]), context["pattern"]
        allowed = _FORMS.get(pattern, pattern)
        what, fix = ("not a valid id", "rename it") if key else ("wrong form", "write this form")
    else:
        what, allowed, fix = "empty", "at least one", "write one"
    return document.problem("E205", path, what, got=got, allowed=allowed, fix=fix, key=key)


def _discriminator(path: Path) -> str:
    if path and path[0] == "faults":
        return "kind"
    return {"circuit": "family", "noise": "model"}.get(path[-1] if path else "", "dist")


def _missing(document: Document, path: Path, data: object) -> Problem:
    key = path[-1]
    siblings = allowed_keys(path[:-1], data)
    what = description_of(path)
    return document.problem(
        "E202",
        path,
        f"missing key '{key}'",
        allowed=", ".join(siblings),
        fix=f"add '{key}': {what}" if what else f"add '{key}'",
        key=True,
    )


def _missing_choice(document: Document, path: Path) -> Problem:
    """A mapping without the key that says which of several it is."""
    kinds = allowed_values(path) or list(LATENCY_SHAPES)
    return document.problem(
        "E202",
        path,
        f"missing key '{path[-1]}'",
        allowed=", ".join(kinds),
        fix=f"write {path[-1]}: {kinds[0]}",
        key=True,
    )


def unknown_key(document: Document, path: Path, data: object) -> Problem:
    """A key that does not exist here: what exists, what was meant, where it belongs."""
    key = path[-1]
    allowed = allowed_keys(path[:-1], data)
    fix = did_you_mean(key, allowed)
    if not fix:
        known = homes_of(key) + homes_of_not_built(key)
        homes = [home for home in known if home != ".".join(path)]
        if 0 < len(homes) <= 3:
            places = [home if "." in home else "the top level" for home in homes]
            fix = f"'{key}' belongs to {' or '.join(places)}"
    return document.problem(
        "E201",
        path,
        f"unknown key '{key}'",
        allowed=", ".join(allowed),
        fix=fix or "remove it",
        key=True,
    )


def _not_in_list(
    document: Document, path: Path, value: object, context: Mapping[str, Any]
) -> Problem:
    if "discriminator" in context:
        name = _discriminator(path)
        path = (*path, name)
        value = value.get(name) if isinstance(value, dict) else value
    text = context.get("expected") or context.get("expected_tags") or ""
    allowed = [word.strip().strip("'") for word in text.replace(" or ", ", ").split(",")]
    if "const" in allowed and path[-1] == "dist":
        allowed.remove("const")
    got = document.shown(path, value)
    if path == ("schema",):
        return document.problem(
            "E206",
            path,
            "schema version",
            got=got,
            allowed=", ".join(allowed),
            fix=f"write schema: {allowed[0]}",
        )
    if path[0] == "faults" and path[-1] == "target":
        return document.problem(
            "E405",
            path,
            "fault does not fit target",
            got=got,
            allowed=", ".join(allowed),
            fix=did_you_mean(got, allowed) or "choose one of these",
        )
    return document.problem(
        "E204",
        path,
        "not in the list",
        got=got,
        allowed=", ".join(allowed),
        fix=did_you_mean(got, allowed) or "choose one of these",
    )
