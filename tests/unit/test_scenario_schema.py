"""Generated documents are fresh, and the JSON Schema accepts what the loader accepts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from hil.scenario import schema

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
FILES = [*sorted((ROOT / "scenarios").glob("*.yaml")), ROOT / "tests/data/scenario/base.yaml"]
COMMAND = "run: python -m hil.scenario.schema docs"


def test_schema_is_fresh() -> None:
    assert (DOCS / schema.SCHEMA_FILE).read_text() == schema.schema_text(), COMMAND


def test_table_of_keys_is_fresh() -> None:
    page = (DOCS / schema.PAGE_FILE).read_text()
    assert page == schema.page_with_table(page), COMMAND


def test_writing_documents(tmp_path: Path) -> None:
    (tmp_path / schema.PAGE_FILE).write_text(f"before\n{schema.BEGIN}stale{schema.END}\nafter\n")
    assert schema.main([str(tmp_path)]) == 0
    page = (tmp_path / schema.PAGE_FILE).read_text()
    assert page.startswith("before\n")
    assert page.endswith("\nafter\n")
    assert "stale" not in page
    assert "`system.decoder.deadline`" in page
    assert schema.main([]) == 2


def test_every_field_is_described() -> None:
    def walk(node: object) -> Iterator[tuple[str, dict[str, Any]]]:
        if isinstance(node, dict):
            yield from node.get("properties", {}).items()
            for part in node.values():
                yield from walk(part)

    root = schema.json_schema()

    def described(body: dict[str, Any]) -> bool:
        target = root["$defs"].get(body.get("$ref", "").rpartition("/")[2], {})
        return bool(body.get("description") or target.get("description"))

    fields = [(name, body) for name, body in walk(root) if name != "dist"]
    assert len(fields) > 80
    assert [name for name, body in fields if not described(body)] == []


KNOWN = set(  # a list of words
    """$schema $id $defs $ref title description examples default type enum const pattern minimum
    maximum exclusiveMinimum exclusiveMaximum minLength minItems maxItems minProperties properties
    required additionalProperties patternProperties items anyOf oneOf discriminator""".split()  # noqa: SIM905 one word per line would fill a page
)
TYPES = {
    "object": dict, "array": list, "string": str, "boolean": bool, "integer": int,
    "number": (int, float), "null": type(None),
}  # fmt: skip


class Validator:
    """The part of JSON Schema that our schema uses; unknown keywords are an error."""

    def __init__(self, root: dict[str, Any]) -> None:
        self.root = root

    def errors(self, node: dict[str, Any], value: object, where: str = "") -> Iterator[str]:
        assert set(node) <= KNOWN, set(node) - KNOWN
        if "$ref" in node:
            target = self.root["$defs"][node["$ref"].rpartition("/")[2]]
            yield from self.errors(target, value, where)
        for word, least in (("anyOf", 1), ("oneOf", 1)):
            if word in node:
                fits = sum(not list(self.errors(part, value, where)) for part in node[word])
                if fits < least or (word == "oneOf" and fits != 1):
                    yield f"{where}: {fits} of {word} fit"
        kinds = node.get("type", [])
        kinds = kinds if isinstance(kinds, list) else [kinds]
        if kinds and not any(self.is_a(value, kind) for kind in kinds):
            yield f"{where}: not {kinds}"
            return
        yield from self.scalar(node, value, where)
        if isinstance(value, dict):
            yield from self.mapping(node, value, where)
        if isinstance(value, list):
            if len(value) > node.get("maxItems", len(value)) or len(value) < node.get(
                "minItems", 0
            ):
                yield f"{where}: {len(value)} items"
            for i, item in enumerate(value):
                yield from self.errors(node.get("items", {}), item, f"{where}[{i}]")

    def is_a(self, value: object, kind: str) -> bool:
        if isinstance(value, bool):
            return kind == "boolean"
        return isinstance(value, TYPES[kind])

    def scalar(self, node: dict[str, Any], value: object, where: str) -> Iterator[str]:
        if "enum" in node and value not in node["enum"]:
            yield f"{where}: {value} not in {node['enum']}"
        if "const" in node and value != node["const"]:
            yield f"{where}: {value} is not {node['const']}"
        if isinstance(value, str) and not re.search(node.get("pattern", ""), value):
            yield f"{where}: {value} does not match {node['pattern']}"
        if isinstance(value, int | float):
            low, high = node.get("minimum", value), node.get("maximum", value)
            over, under = node.get("exclusiveMinimum"), node.get("exclusiveMaximum")
            inside = low <= value <= high
            inside &= (over is None or value > over) and (under is None or value < under)
            if not inside:
                yield f"{where}: {value} out of range"

    def mapping(self, node: dict[str, Any], value: dict[Any, Any], where: str) -> Iterator[str]:
        for key in node.get("required", []):
            if key not in value:
                yield f"{where}: {key} is missing"
        for key, item in value.items():
            known = node.get("properties", {})
            patterns = [p for p in node.get("patternProperties", {}) if re.search(p, str(key))]
            if key in known:
                yield from self.errors(known[key], item, f"{where}.{key}")
            elif patterns:
                yield from self.errors(
                    node["patternProperties"][patterns[0]], item, f"{where}.{key}"
                )
            elif node.get("additionalProperties", True) is False:
                yield f"{where}: {key} is unknown"


def errors_of(data: object) -> list[str]:
    root = json.loads((DOCS / schema.SCHEMA_FILE).read_text())
    return list(Validator(root).errors(root, data))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_schema_accepts_valid_files(path: Path) -> None:
    assert errors_of(YAML(typ="safe", pure=True).load(path.read_text())) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("system.qpu.circuit.bases", "X"),
        ("system.qpu.round_period", 1.1),
        ("system.qpu.round_period", "1.1"),
        ("system.decoder.workers", 0),
        ("system.decoder.primary", "union_find"),
        ("system.decoder.ring.when_full", "conceal"),
        ("run.warmup", {}),
        ("run.seed", "7"),
        ("run.record.streams", ["shots", "shoots"]),
        ("expect.tail.metric", "latency.all"),
        ("faults.slow.target", "links.up"),
        ("requires", ["gpu"]),
        ("bind.profiles.mil.decoder.service.by_events", {"x": "4us"}),
        ("system.rack.boards.5", {}),
    ],
)
def test_schema_refuses_typing_errors(path: str, value: object) -> None:
    data = YAML(typ="safe", pure=True).load(FILES[-1].read_text())
    *parents, last = path.split(".")
    node = data
    for key in parents:
        node = node[key]
    node[last] = value
    assert errors_of(data) != []
