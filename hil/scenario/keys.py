"""Walks the models: which keys exist where, under the names that scenario files use."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from hil.scenario.fields import Spec
from hil.scenario.model import (
    ByEvents,
    Const,
    Cycles,
    Empirical,
    LogNormal,
    Normal,
    Recorded,
    Scenario,
    Zhinst,
)

ANY_ID = "*"
"""Stands for the id of a map entry in a pattern."""

_LEAVES = (Const, Normal, LogNormal, Cycles, Empirical, Recorded, Zhinst, ByEvents)
"""Models that are one value to a reader; ``docs/scenario.md`` explains their forms in prose."""


@dataclass(frozen=True, slots=True)
class Key:
    """One key of the format: its path with ``*`` for ids, its field, the model that holds it."""

    path: tuple[str, ...]
    info: FieldInfo
    model: type[Spec]


def written_fields(model: type[Spec]) -> dict[str, FieldInfo]:
    """Fields of a model that a file may set, by the key used in files."""
    return {
        info.alias or name: info
        for name, info in model.model_fields.items()
        if not (info.alias or name).startswith("(")
    }


def specs_of(annotation: Any) -> list[type[Spec]]:  # noqa: ANN401 an annotation is any object
    """Models that a value of this annotation can be, directly or as entries of a map."""
    if isinstance(annotation, type) and issubclass(annotation, Spec):
        return [annotation]
    args = get_args(annotation)
    origin = get_origin(annotation)
    if origin is Annotated:
        return specs_of(args[0])
    if origin is dict:
        return specs_of(args[1])
    if origin is tuple:
        return []
    return [spec for arg in args for spec in specs_of(arg)]


def is_map(annotation: Any) -> bool:  # noqa: ANN401 an annotation is any object
    """True for maps keyed by id."""
    if get_origin(annotation) is Annotated:
        return is_map(get_args(annotation)[0])
    return get_origin(annotation) is dict


def _chosen(specs: Sequence[type[Spec]], value: object) -> list[type[Spec]]:
    """Narrow a union by the key of the value that says which of them it is."""
    if not isinstance(value, dict) or len(specs) < 2:
        return list(specs)
    for name in ("kind", "dist", "family", "model"):
        hits = [
            spec
            for spec in specs
            if name in spec.model_fields
            and value.get(name) in get_args(spec.model_fields[name].annotation)
        ]
        if hits:
            return hits
    return [spec for spec in specs if len(written_fields(spec)) > 1]


def allowed_keys(path: Sequence[str], data: object) -> list[str]:
    """Keys that may stand in the mapping at ``path`` of ``data``; empty where ids are free."""
    specs: list[type[Spec]] = [Scenario]
    entry_of_map = False
    for key in path:
        data = data.get(key) if isinstance(data, dict) else None
        if entry_of_map:
            entry_of_map = False
            specs = _chosen(specs, data)
            continue
        infos = [fields[key] for spec in specs if key in (fields := written_fields(spec))]
        entry_of_map = any(is_map(info.annotation) for info in infos)
        found = [spec for info in infos for spec in specs_of(info.annotation)]
        specs = found if entry_of_map else _chosen(found, data)
    if entry_of_map:
        return []
    return list(dict.fromkeys(key for spec in specs for key in written_fields(spec)))


@cache
def all_keys() -> tuple[Key, ...]:
    """Every key of the format, parents first, in the order of the models."""
    return tuple(_walk(Scenario, ()))


def _walk(model: type[Spec], path: tuple[str, ...]) -> Iterator[Key]:
    for name, info in written_fields(model).items():
        here = (*path, name)
        yield Key(here, info, model)
        below = (*here, ANY_ID) if is_map(info.annotation) else here
        for spec in specs_of(info.annotation):
            if spec not in _LEAVES:
                yield from _walk(spec, below)


def homes_of(key: str) -> list[str]:
    """Dotted patterns of all places where ``key`` may stand."""
    return list(dict.fromkeys(".".join(k.path) for k in all_keys() if k.path[-1] == key))


def keys_at(path: Sequence[str]) -> list[Key]:
    """Keys of the format that stand at a concrete path; several where models differ by kind."""
    return [
        key
        for key in all_keys()
        if len(key.path) == len(path)
        and all(part in (ANY_ID, here) for part, here in zip(key.path, path, strict=True))
    ]


def description_of(path: Sequence[str]) -> str:
    """What the key at ``path`` means, as a clause; empty if nothing stands there."""
    text = next((key.info.description or "" for key in keys_at(path)), "")
    return text[:1].lower() + text[1:].rstrip(".")


def allowed_values(path: Sequence[str]) -> list[str]:
    """Values that the key at ``path`` may have, where they are a list."""
    found: list[str] = []
    for key in keys_at(path):
        extra = key.info.json_schema_extra
        listed = extra.get("enum") if isinstance(extra, dict) else None
        found += map(str, listed) if isinstance(listed, list) else _literals(key.info.annotation)
    return list(dict.fromkeys(found))


def _literals(annotation: Any) -> list[str]:  # noqa: ANN401 an annotation is any object
    if get_origin(annotation) is Literal:
        return [str(value) for value in get_args(annotation)]
    return [value for arg in get_args(annotation) for value in _literals(arg)]
