"""Documents that are generated from the models: the JSON Schema and the table of keys.

``python -m hil.scenario.schema docs`` rewrites ``docs/scenario-1.json`` and the table inside
``docs/scenario.md``; a test demands that both are fresh. A JSON Schema cannot hold the rules
E4xx to E6xx: editors find typing errors with it, ``hil check`` finds the rest.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pydantic_core import PydanticUndefined

from hil.scenario.keys import Key, all_keys
from hil.scenario.model import Scenario

SCHEMA_FILE: Final = "scenario-1.json"
PAGE_FILE: Final = "scenario.md"
BEGIN: Final = "<!-- generated: keys -->"
END: Final = "<!-- end -->"

_PARTIAL: Final = ("ClockSpec", "BoardSpec", "StageSpec", "LinksSpec", "UpLinkSpec", "DownLinkSpec")
"""Entries that may hold single keys when a rack profile fills the rest."""


def json_schema() -> dict[str, Any]:
    """JSON Schema of scenario files (draft 2020-12)."""
    schema = Scenario.model_json_schema(by_alias=True, mode="validation")
    defs = schema["$defs"]
    for name in _PARTIAL:
        defs[name].pop("required", None)
    defs["RackSpec"]["required"] = []
    defs["RackSpec"]["anyOf"] = [
        {"required": ["profile"]},
        {"required": ["clocks", "boards", "stages"]},
    ]
    defs["SystemSpec"]["required"].remove("links")
    for name in ("round_period", "shot_period"):
        defs["QpuSpec"]["required"].remove(name)
    defs["BoundProfile"]["required"].remove("level")
    for model in (schema, *defs.values()):
        for entry in model.get("properties", {}).values():
            if "patternProperties" in entry:
                entry["additionalProperties"] = False
    defs["GeneratedCircuit"]["required"].remove("basis")
    defs["GeneratedCircuit"]["anyOf"] = [{"required": ["basis"]}, {"required": ["task"]}]
    defs["PredecoderSpec"]["properties"]["threshold"]["anyOf"].insert(0, {"type": "number"})
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "hil.scenario/1",
        **schema,
        "title": "hil.scenario/1",
    }


def schema_text() -> str:
    """The JSON Schema as it is committed."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


def key_table() -> str:
    """Markdown table of all keys: path, value, default, meaning."""
    defs = {**json_schema()["$defs"], "Scenario": json_schema()}
    rows = ["| key | value | default | meaning |", "|---|---|---|---|"]
    seen = set()
    for key in all_keys():
        schema = defs[key.model.__name__]["properties"][key.path[-1]]
        row = (
            f"| `{'.'.join(key.path)}` | {_value_text(schema)} | {_default_text(key)} "
            f"| {key.info.description or ''} |"
        )
        if row not in seen:
            seen.add(row)
            rows.append(row)
    return "\n".join(rows) + "\n"


def _value_text(schema: Mapping[str, Any]) -> str:
    choices = [part for part in schema.get("anyOf", [schema]) if part.get("type") != "null"]
    if len(choices) == 1 and choices[0] is not schema:
        return _value_text(choices[0])
    kind = schema.get("type")
    if "enum" in schema or "const" in schema:
        words = schema.get("enum") or [schema["const"]]
        return ", ".join(f"`{word}`" for word in words)
    if "oneOf" in schema or "$ref" in schema:
        return _model_text(schema)
    if "examples" in schema:
        return f"quantity, `{schema['examples'][0]}`"
    if kind == "array":
        items = schema.get("items", {})
        return "list of " + (_value_text(items) if "enum" in items else "texts")
    return "map of ids" if kind == "object" else _plain_text(schema)


def _model_text(schema: Mapping[str, Any]) -> str:
    refs = [schema, *schema.get("oneOf", [])]
    names = {str(part.get("$ref", "")).rpartition("/")[2] for part in refs}
    words = {"Const": "latency", "Service": "service", "ByEvents": "map event count: time"}
    return next((word for name, word in words.items() if name in names), "section")


def _plain_text(schema: Mapping[str, Any]) -> str:
    kind = schema.get("type", "value")
    if isinstance(kind, list):
        kind = " or ".join(kind)
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum", schema.get("exclusiveMaximum"))
    word = {"integer": "count", "string": "text"}.get(str(kind), str(kind))
    if low is None and high is None:
        return word
    if high is None:
        return f"{word} >= {low}"
    below = "below " if "exclusiveMaximum" in schema else ""
    return f"{word} {low} to {below}{high}"


def _default_text(key: Key) -> str:
    info = key.info
    if key.path[-2:] in {("circuit", "basis"), ("circuit", "task"), ("*", "level")}:
        return "see meaning"
    if info.is_required():
        return "required"
    if info.default is PydanticUndefined:
        return "none"
    value = info.default
    if value is None or value in ((), ""):
        return "none"
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return str(getattr(value, "shots", getattr(value, "shot", value)))


def page_with_table(page: str) -> str:
    """The text of ``docs/scenario.md`` with a fresh table between the markers."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{key_table()}{END}{after}"


def write_documents(folder: Path) -> list[Path]:
    """Rewrite the generated documents of ``folder``; returns their paths."""
    schema, page = folder / SCHEMA_FILE, folder / PAGE_FILE
    schema.write_text(schema_text(), encoding="utf-8")
    page.write_text(page_with_table(page.read_text(encoding="utf-8")), encoding="utf-8")
    return [schema, page]


def main(arguments: Sequence[str]) -> int:
    """Entry of ``python -m hil.scenario.schema FOLDER``."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m hil.scenario.schema FOLDER\n")
        return 2
    for path in write_documents(Path(arguments[0])):
        sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
