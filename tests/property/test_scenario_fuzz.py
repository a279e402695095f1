"""Whatever stands where: a scenario is loaded or refused with a place and a code, never a crash."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from hypothesis import example, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from hil.scenario import load as loader
from hil.scenario.load import load_scenario
from hil.scenario.problems import ScenarioErrors
from hil.scenario.text import Document

BASE = Path(__file__).parents[1] / "data" / "scenario" / "base.yaml"
DATA = YAML(typ="safe", pure=True).load(BASE.read_text())

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**30), 10**30),
    st.integers(-2, 5),
    st.floats(),
    st.sampled_from(["", "x", "agg", "1us", "-5us", "1.1", "X", "mil", "p99", "x_check[:]", "(x)"]),
    st.dates(),
)
keys = st.sampled_from(["dist", "kind", "shot", "metric", "latency", "by_events", "(values)", "x"])
junk = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=4,
)


def _paths(node: object, path: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    items: Any = ()
    if isinstance(node, dict):
        items = node.items()
    elif isinstance(node, list):
        items = enumerate(node)
    for key, value in items:
        yield (*path, key)
        yield from _paths(value, (*path, key))


PATHS = list(_paths(DATA, ()))


@settings(max_examples=250, deadline=None)
@given(st.sampled_from(PATHS), junk)
@example(("system", "qpu", "circuit", "basis"), [])
@example(("bind", "profiles", "mil", "decoder", "service", "by_events"), None)
@example(("run", "shots"), 10**12)
def test_junk_at_any_path_is_loaded_or_refused(path: tuple[Any, ...], value: object) -> None:
    data = copy.deepcopy(DATA)
    node = data
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    parsed = mock.patch.object(loader, "read_document", lambda text, name: Document(name, data))
    try:
        with parsed:
            loaded = load_scenario(BASE)
    except ScenarioErrors as errors:
        lines = str(errors).splitlines()
        heads = [line for line in lines if not line.startswith("    ")]
        assert all(re.search(r": error\[E\d{3}\]: ", line) for line in heads)
    else:
        again = type(loaded.scenario).model_validate(loaded.scenario.model_dump())
        assert again.model_dump() == loaded.scenario.model_dump()
