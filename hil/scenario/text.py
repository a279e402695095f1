"""Scenario text -> plain data with the position of every key and value.

The text is YAML 1.2 that YAML 1.1 readers understand alike. Everything that tools read in
different ways (duplicate keys, tags, merge keys, ``yes``, ``010``, ``1e-3``, empty values) is
refused here, before any meaning is looked at.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import DocumentStartEvent, NodeEvent
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from hil.scenario.problems import Problem
from hil.scenario.yaml_versions import portable_form, yaml_1_1

Path: TypeAlias = tuple[str, ...]
"""Keys from the root of the document; list items by their index as text."""

_CORE: Final = "tag:yaml.org,2002:"
_MARKUP: Final = re.compile(r"!|^%|^---", re.MULTILINE)
"""Without these a text has no tags, directives or further documents."""

_MAX_NODES: Final = 100_000
_NUMBER_KEYS: Final = "by_events"
"""The one map whose keys are counts."""


@dataclass(slots=True)
class Document:
    """A parsed file.

    Attributes:
        name: file name for messages.
        data: plain dicts, lists, texts, numbers, booleans.
        keys: position (line, column, from 1) of each key.
        values: position of each value.
        raw: each scalar as it was written.
        problems: what was refused (E1xx).
        origin: path -> command line option that set this value.
        tags: position -> explicit tag, which is refused.
    """

    name: str
    data: object = None
    keys: dict[Path, tuple[int, int]] = field(default_factory=dict)
    values: dict[Path, tuple[int, int]] = field(default_factory=dict)
    raw: dict[Path, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    origin: dict[Path, str] = field(default_factory=dict)
    tags: dict[tuple[int, int], str] = field(default_factory=dict)

    def place(self, path: Path, *, key: bool = False) -> tuple[str, int, int]:
        """File or option, line and column of a path, or of its nearest written ancestor."""
        marks = self.keys if key else self.values
        for end in range(len(path), -1, -1):
            part = path[:end]
            if part in self.origin:
                return self.origin[part], 0, 0
            mark = (marks if end == len(path) else self.keys).get(part)
            if mark is not None:
                return self.name, *mark
        return self.name, 1, 1

    def problem(  # one argument per part of the message
        self,
        code: str,
        path: Path,
        what: str,
        *,
        got: str = "",
        allowed: str = "",
        fix: str = "",
        key: bool = False,
    ) -> Problem:
        """A problem at ``path`` (at its key with ``key``, else at its value)."""
        place, line, col = self.place(path, key=key)
        return Problem(place, line, col, code, ".".join(path), what, got, allowed, fix)

    def shown(self, path: Path, value: object) -> str:
        """A value as the user wrote it."""
        if path in self.raw:
            return self.raw[path]
        if isinstance(value, dict):
            return "a mapping"
        return "a list" if isinstance(value, list | tuple) else str(value)


def read_document(text: str, name: str) -> Document:
    """Parse ``text``; problems are collected in the document, nothing is raised."""
    document = Document(name)
    try:
        if _MARKUP.search(text):
            _scan_events(text, document)
            if document.problems:
                return document
        root = YAML(typ="safe", pure=True).compose(text)
    except (YAMLError, RecursionError) as err:
        document.problems.append(_syntax(err, name))
        return document
    if root is None:
        document.problems.append(
            Problem(name, 1, 1, "E104", "", "the file is empty", fix="write schema: hil.scenario/1")
        )
        return document
    document.data = _Walker(document).value(root, ())
    return document


def _syntax(err: Exception, name: str) -> Problem:
    line, col, got = 1, 1, str(err).partition("\n")[0]
    if isinstance(err, MarkedYAMLError):
        mark = err.problem_mark or err.context_mark
        got = str(err.problem or err.context or "")
        if mark is not None:
            line, col = mark.line + 1, mark.column + 1
    return Problem(
        name,
        line,
        col,
        "E101",
        "",
        "not YAML 1.2",
        got=got,
        allowed="YAML 1.2",
        fix="quote texts with : { } [ ] # and indent with spaces",
    )


def _scan_events(text: str, document: Document) -> None:
    """Refuse what the node tree no longer shows: tags, directives, second documents."""
    documents = 0
    for event in YAML(typ="safe", pure=True).parse(text):
        line, col = event.start_mark.line + 1, event.start_mark.column + 1
        if isinstance(event, DocumentStartEvent):
            documents += 1
            if documents > 1:
                document.problems.append(
                    Problem(
                        document.name,
                        line,
                        col,
                        "E103",
                        "",
                        "second document",
                        allowed="one document per file",
                        fix="split the file",
                    )
                )
                return
            if event.version is not None and tuple(event.version) != (1, 2):
                document.problems.append(
                    Problem(
                        document.name,
                        line,
                        col,
                        "E101",
                        "",
                        "not YAML 1.2",
                        got="%YAML " + ".".join(map(str, event.version)),
                        allowed="%YAML 1.2, or no directive",
                        fix="remove the directive",
                    )
                )
                return
        tag = getattr(event, "tag", None)
        if isinstance(event, NodeEvent) and tag is not None:
            document.tags[line, col] = str(tag).replace(_CORE, "!!")


class _Walker:
    """Builds plain data from the node tree and notes positions and refusals."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.scalars = YAML(typ="safe", pure=True).constructor
        self.open: list[int] = []
        self.count = 0

    def refuse(  # one argument per part of the message
        self,
        code: str,
        place: Node | tuple[int, int],
        path: Path,
        what: str,
        *,
        got: str = "",
        allowed: str = "",
        fix: str = "",
    ) -> None:
        line, col = _place(place) if isinstance(place, Node) else place
        name, dotted = self.document.name, ".".join(path)
        self.document.problems.append(
            Problem(name, line, col, code, dotted, what, got, allowed, fix)
        )

    def value(self, node: Node, path: Path) -> object:
        place = _place(node)
        self.document.values[path] = place
        if place in self.document.tags:
            tag = self.document.tags[place]
            self.refuse(
                "E103",
                node,
                path,
                f"tag '{tag}'",
                got=tag,
                allowed="plain values",
                fix="remove the tag; quote a text that looks like a number",
            )
        self.count += 1
        if id(node) in self.open or self.count > _MAX_NODES:
            what = "alias cycle" if id(node) in self.open else "aliases expand without end"
            if self.count <= _MAX_NODES + 1:
                self.refuse("E103", node, path, what, allowed="plain values", fix="write it out")
            return {}
        if isinstance(node, ScalarNode):
            return self.scalar(node, path)
        self.open.append(id(node))
        try:
            return (
                self.mapping(node, path)
                if isinstance(node, MappingNode)
                else self.items(node, path)
            )
        finally:
            self.open.pop()

    def items(self, node: Node, path: Path) -> list[object]:
        entries = node.value if isinstance(node, SequenceNode) else []
        return [self.value(item, (*path, str(i))) for i, item in enumerate(entries)]

    def mapping(self, node: MappingNode, path: Path) -> dict[object, object]:
        out: dict[object, object] = {}
        lines: dict[object, int] = {}
        for key_node, value_node in node.value:
            key = self.key(key_node, value_node, path)
            if key is None:
                continue
            here = (*path, str(key))
            if key in out:
                self.refuse(
                    "E102",
                    key_node,
                    here,
                    f"duplicate key '{key}'",
                    got=f"first given in line {lines[key]}",
                    allowed="each key once",
                    fix="remove one of them",
                )
                continue
            lines[key], _ = self.document.keys[here] = _place(key_node)
            glued = re.fullmatch(r"([A-Za-z_]+):(\S+)", str(key))
            if glued and value_node.tag == f"{_CORE}null":
                self.refuse(
                    "E104",
                    key_node,
                    (*path, glued[1]),
                    "value empty",
                    got=str(key),
                    allowed="key: value",
                    fix=f"write a space after the colon: {glued[1]}: {glued[2]}",
                )
                continue
            out[key] = self.value(value_node, here)
        return out

    def key(self, node: Node, value: Node, path: Path) -> str | int | None:
        """The key, or None if it was refused."""
        raw = node.value if isinstance(node, ScalarNode) else ""
        here = (*path, raw) if raw else path
        if node.tag == f"{_CORE}merge":
            self.refuse(
                "E103", node, here, "merge key", got="<<", allowed="plain keys", fix="write it out"
            )
            return None
        if not isinstance(node, ScalarNode):
            self.refuse(
                "E104",
                node,
                path,
                "key is not text",
                got="a mapping or list",
                allowed="a text",
                fix="quote texts that contain { } [ ]",
            )
            return None
        if node.style is not None or node.tag == f"{_CORE}str":
            if node.style is None:
                self.same_in_both(node, here, raw)
            return str(raw)
        count = self.plain(node)
        if path and path[-1] == _NUMBER_KEYS and type(count) is int:
            self.same_in_both(node, here, count)
            return count
        empty = isinstance(value, ScalarNode) and value.style is None and value.value == ""
        self.refuse(
            "E104",
            node,
            here,
            "value empty" if empty else "key is not text",
            got=str(raw) or "empty",
            allowed="text: value",
            fix="write 1.5, not 1,5; quote the key if it is a name" if empty else "quote the key",
        )
        return None

    def scalar(self, node: ScalarNode, path: Path) -> object:
        raw = str(node.value)
        self.document.raw[path] = raw
        if node.style is not None:
            return raw
        if node.tag == f"{_CORE}null":
            self.refuse(
                "E104",
                self.document.keys.get(path, node),
                path,
                "value empty",
                got=raw or "nothing",
                allowed="a value",
                fix="write a value or remove the key",
            )
            return None
        value = self.plain(node)
        self.same_in_both(node, path, value)
        return value

    def plain(self, node: ScalarNode) -> object:
        """The value that YAML 1.2 gives a plain scalar."""
        if not str(node.tag).startswith(_CORE):
            return str(node.value)
        try:
            return self.scalars.construct_object(node, deep=True)
        except (ValueError, YAMLError):
            return str(node.value)

    def same_in_both(self, node: ScalarNode, path: Path, new: object) -> None:
        raw = str(node.value)
        old = yaml_1_1(raw)
        if _place(node) in self.document.tags:
            return
        if str(node.tag) != f"{_CORE}str" and isinstance(new, str):
            old = "an impossible " + str(node.tag).removeprefix(_CORE)
        if type(new).__name__ in {"date", "datetime", "TimeStamp"} or repr(old) == repr(new):
            return
        self.refuse(
            "E101",
            node,
            path,
            "reads differently in YAML 1.1 and 1.2",
            got=f"{raw} is {old!r} in YAML 1.1, {new!r} in YAML 1.2",
            allowed="the same in both",
            fix=portable_form(raw, new),
        )


def _place(node: Node) -> tuple[int, int]:
    return node.start_mark.line + 1, node.start_mark.column + 1
