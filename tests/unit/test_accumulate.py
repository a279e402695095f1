"""Episodes and batch tables against direct computation on the whole sequence."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hil.errors import UsageError
from hil.verdict.accumulate import TABLE_BINS, BatchTable, Episodes, Runs


def clusters(positions: list[int], gap: int) -> list[int]:
    """Lengths of clusters, by walking."""
    lengths: list[int] = []
    for i, position in enumerate(positions):
        if i and position - positions[i - 1] <= gap:
            lengths[-1] += 1
        else:
            lengths.append(1)
    return lengths


@given(
    st.lists(st.integers(0, 400), unique=True, max_size=80),
    st.integers(1, 60),
    st.lists(st.integers(0, 80), max_size=4),
)
@settings(max_examples=300, deadline=None)
def test_runs_in_any_pieces(found: list[int], gap: int, cuts: list[int]) -> None:
    positions = sorted(found)
    runs = Runs(gap)
    for piece in np.split(np.array(positions, np.int64), sorted(cuts)):
        runs.update(piece)
    lengths = clusters(positions, gap)
    assert runs.events == len(positions)
    assert runs.count == len(lengths)
    assert runs.longest == max(lengths, default=0)
    assert runs.close_pairs == len(positions) - len(lengths)


def test_events_must_ascend() -> None:
    runs = Runs(5)
    runs.update(np.array([3, 9]))
    with pytest.raises(UsageError, match="out of order"):
        runs.update(np.array([9]))
    with pytest.raises(UsageError, match="gap"):
        Runs(0)


def test_episodes_of_the_reference_example() -> None:
    # 8 episodes of about 502 misses in 1e6 shots
    positions = np.concatenate([np.arange(502) + 100_000 * k for k in range(8)])
    episodes = Episodes(50)
    episodes.update(positions)
    assert episodes.p_value(10**6) < 1e-12
    scale = episodes.scale(10**6)
    assert (scale.gap, scale.count, scale.mean_length, scale.longest) == (50, 8, 502.0, 502)


def test_frequent_events_form_episodes_only_if_adjacent() -> None:
    every_tenth = np.arange(0, 10_000, 10)
    episodes = Episodes(50)
    episodes.update(every_tenth)
    assert episodes.wide.count == 1  # chained by chance
    assert episodes.scale(10_000).count == 1_000


@pytest.mark.parametrize("n", [20, 1_000, TABLE_BINS, TABLE_BINS + 1, 300_000])
def test_table_gives_equal_batches_of_exact_sums(n: int) -> None:
    values = np.random.default_rng(3).integers(-(10**9), 10**12, n)
    flags = np.random.default_rng(4).random(n) < 0.3
    table = BatchTable(("value", "flag"))
    for start in range(0, n, 7_777):
        stop = min(n, start + 7_777)
        rows = np.arange(start, stop)
        table.update(rows, {"value": values[start:stop], "flag": flags[start:stop]})
    batches = table.batches()
    assert int(batches["value"].sum()) == int(values.sum())
    assert int(batches["flag"].sum()) == int(flags.sum())
    width = 2 ** max(0, int(np.ceil(np.log2(n / TABLE_BINS))))
    assert table.width == width
    bins = -(-n // width)
    edges = np.minimum(n, (np.arange(21) * bins // 20) * width)
    direct = [int(values[a:b].sum()) for a, b in itertools.pairwise(edges)]
    assert batches["value"].tolist() == direct
    assert max(np.diff(edges)) - min(np.diff(edges)) <= 2 * width


def test_table_starts_where_the_shots_start() -> None:
    table = BatchTable(("rows",))
    table.update(np.arange(1_000, 1_200), {"rows": np.ones(200, np.int64)})
    assert table.batches()["rows"].tolist() == [10] * 20


def test_merge_of_tables_with_other_widths() -> None:
    rows = np.arange(100_000)
    even = rows % 2 == 0
    together, clean, rest = (BatchTable(("x",)) for _ in range(3))
    together.update(rows, {"x": rows})
    clean.update(rows[even], {"x": rows[even]})
    rest.update(rows[~even][:50], {"x": rows[~even][:50]})
    rest.update(rows[~even][50:], {"x": rows[~even][50:]})
    narrow = BatchTable(("x",))
    narrow.update(np.array([1, 3]), {"x": np.array([1, 3])})
    assert narrow.width < clean.width
    merged = clean.copy()
    merged.merge(rest)
    assert merged.batches()["x"].tolist() == together.batches()["x"].tolist()
    narrow.merge(clean)
    assert narrow.width == clean.width
    assert int(narrow.columns["x"].sum()) == int(clean.columns["x"].sum()) + 4
    assert int(merged.columns["x"].sum()) == int(rows.sum())


def test_merge_of_a_short_warmup_into_a_very_long_run() -> None:
    long, warmup = BatchTable(("x",)), BatchTable(("x",))
    warmup.update(np.arange(200), {"x": np.ones(200, np.int64)})
    far = np.array([200, 3 * 10**9])
    long.update(far, {"x": np.array([5, 7])})
    assert long.width > TABLE_BINS
    long.merge(warmup)
    assert (int(long.columns["x"][0]), int(long.columns["x"].sum())) == (205, 212)
    assert warmup.width == 1
