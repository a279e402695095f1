"""Changes from the command line: ``--set path=value`` and ``--bind NAME``."""

from __future__ import annotations

import re

from hil.scenario.keys import allowed_keys
from hil.scenario.problems import Problem, did_you_mean
from hil.scenario.rack_profile import profile_names, read_profile
from hil.scenario.text import Document, Path, read_document


def select_profile(document: Document, bind: str) -> None:
    """``--bind NAME`` replaces ``bind.use``; whether the name exists is a rule like any other."""
    data = document.data
    section = data.get("bind") if isinstance(data, dict) else None
    if isinstance(section, dict):
        section["use"] = bind
        _forget(document, ("bind", "use"), f"--bind {bind}")


def _forget(document: Document, path: Path, option: str) -> None:
    """From now on ``path`` and what is below comes from a command line option."""
    for marks in (document.raw, document.keys, document.values, document.origin):
        for known in [known for known in marks if known[: len(path)] == path]:
            del marks[known]
    document.problems[:] = [
        entry
        for entry in document.problems
        if not (entry.dotted + ".").startswith(".".join(path) + ".")
    ]
    document.origin[path] = option


def apply_override(document: Document, override: str) -> list[Problem]:
    """Change one value of a document: ``path=value`` with a YAML value.

    A path may enter sections that the file leaves out (``run.warmup.shots``) and entries that a
    rack profile fills (``system.rack.stages.merge.buffer``); ids that nobody defines are refused.

    Returns:
        Problems: E402 for a path that does not exist, E1xx for a value that is not YAML.
    """
    option = f"--set {override}"
    dotted, equals, text = override.partition("=")
    keys = tuple(dotted.strip().split("."))
    if not equals or not all(re.fullmatch(r"[A-Za-z0-9_-]+", key) for key in keys):
        what, fix = "not of the form path=value", "write --set run.shots=1000"
        return [Problem(option, 0, 0, "E402", "", what, got=override, fix=fix)]
    value = read_document(text, option)
    if value.problems:
        return [
            Problem(option, 0, 0, p.code, dotted, p.what, p.got, p.allowed, p.fix)
            for p in value.problems
        ]
    target = document.data
    for depth, key in enumerate(keys[:-1]):
        if not isinstance(target, dict):
            return [_no_such_path(option, keys, depth, [])]
        if key not in target:
            allowed = _may_add(document, keys[:depth])
            if key not in allowed:
                return [_no_such_path(option, keys, depth, [*map(str, target), *allowed])]
            target[key] = {}
        target = target[key]
    if not isinstance(target, dict):
        return [_no_such_path(option, keys, len(keys) - 1, [])]
    target[keys[-1]] = value.data
    _forget(document, keys, option)
    document.raw.update({(*keys, *path): raw for path, raw in value.raw.items()})
    return []


def _may_add(document: Document, path: Path) -> list[str]:
    """Sections that may be added at ``path``: those of the format, or of the rack profile."""
    if path[:-1] == ("system", "rack"):
        name = document.data
        for key in ("system", "rack", "profile"):
            name = name.get(key) if isinstance(name, dict) else None
        known = read_profile(name) if isinstance(name, str) and name in profile_names() else {}
        section = known.get(path[-1], {})
        return list(section) if isinstance(section, dict) else []
    return allowed_keys(path, document.data)


def _no_such_path(option: str, keys: Path, depth: int, known: list[str]) -> Problem:
    known = list(dict.fromkeys(known))
    return Problem(
        option,
        0,
        0,
        "E402",
        ".".join(keys[: depth + 1]),
        "no such path in the scenario",
        got=".".join(keys),
        allowed=", ".join(known),
        fix=did_you_mean(keys[depth], known) or "write the path of an existing section",
    )
