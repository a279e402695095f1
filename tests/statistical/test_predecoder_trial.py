"""The trial of pre-decoders: judged right, counted once, chosen on other shots."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpu_decoder.ising.network import Architecture
from gpu_decoder.ising.weights import Weights, load_weights, save_weights
from gpu_decoder.protocol import Backend
from hil.errors import UsageError
from hil.run.trial.cells import GRID, PAIR_RULE, Cell, Chain, Tally, chosen_cells, subject
from hil.run.trial.count import CellBench, seen_detectors
from hil.run.trial.result import (
    CHOICE_CONFIDENCE,
    accuracy_table,
    choices,
    judge,
    work_table,
    worst,
)
from hil.run.trial.run import CHAIN, chosen, shots_of, store_threshold
from hil.verdict.judge import Verdict

CELL = Cell(5, 0.006, "ising25", "X")
FALSE_ALARM = 1e-6  # of the statistical claims below: each is beyond 6 standard deviations

# Networks of one 1 x 1 x 1 convolution: detector bits of a cell -> output of that cell.
SILENT = {"bias": -3.0}
GREEDY = {"bias": -3.0, "gain": 5.0}
"""Takes every fired X check for a data flip at its cell: mostly wrong."""


def network(folder: Path, bias: float = 0.0, gain: float = 0.0, name: str = "w") -> str:
    net = Architecture("tiny", "tiny", (4,), (1,))
    weight = np.zeros(net.shapes[0], np.float32)
    weight[0, 0] = weight[1, 1] = gain
    layers = ((weight, np.full(4, bias, np.float32)),)
    path = folder / f"{name}.safetensors"
    save_weights(path, Weights(net, layers, "fp32"))
    return str(path)


def block(
    folder: Path, shots: int, thresholds: dict[str, Any] | None = None, **net: float
) -> Tally:
    pairs = thresholds or {CHAIN: (None, None)}
    return CellBench(CELL, subject(network(folder, **net), pairs)).block(1, "judge", 0, shots)


def test_a_network_that_does_nothing_is_plain_matching(tmp_path: Path) -> None:
    tally = block(tmp_path, 8_000, **SILENT)
    chain = tally.chains[CHAIN]
    assert (chain.failures, chain.worse, chain.better) == (tally.plain, 0, 0)
    assert chain.events == tally.events
    (row,) = judge({CELL: tally}, CHAIN)
    assert (row.verdict, row.compared) == (Verdict.PASS, "equal")
    assert row.density_ratio < 1  # the rule leaves less
    assert tally.correlated < tally.plain  # known: a quarter to a half fewer failures
    assert 0.5 < tally.chains[PAIR_RULE].events / tally.events < 0.75


def test_a_network_that_flips_wrongly_is_inferior(tmp_path: Path) -> None:
    tally = block(tmp_path, 4_000, **GREEDY)
    (row,) = judge({CELL: tally}, CHAIN)
    assert (row.verdict, row.compared) == (Verdict.FAIL, "worse")
    assert row.upper > 0.5


def test_few_shots_tell_nothing(tmp_path: Path) -> None:
    few = Tally(100, 3, 2, 900, 1, {CHAIN: Chain(3, 1, 1, 90, 1), PAIR_RULE: Chain()})
    rows = judge(
        {CELL: few, Cell(5, 0.006, "ising25", "Z"): block(tmp_path, 3_000, **SILENT)}, CHAIN
    )
    assert [row.verdict for row in rows] == [Verdict.INCONCLUSIVE, Verdict.PASS]
    assert worst(rows) == Verdict.INCONCLUSIVE
    assert worst([*rows, *judge({CELL: block(tmp_path, 4_000, **GREEDY)}, CHAIN)]) == Verdict.FAIL
    for table, columns in ((accuracy_table(rows), 14), (work_table(rows), 11)):
        assert {line.count("|") for line in table.splitlines()} == {columns + 1}


def test_holm_makes_many_cells_harder_to_pass() -> None:
    tally = Tally(10_000, 400, 300, 1, 1, {CHAIN: Chain(405, 138, 133, 1, 1), PAIR_RULE: Chain()})
    assert judge({CELL: tally}, CHAIN)[0].verdict == Verdict.PASS
    many = judge(dict.fromkeys(GRID, tally), CHAIN)
    assert {row.verdict for row in many} == {Verdict.INCONCLUSIVE}


def test_thresholds_share_one_pass_and_equal_the_chain(tmp_path: Path) -> None:
    """The twin in numpy behind the logits counts what the exported chain counts."""
    net = {"bias": -1.0, "gain": 2.5}
    sweep = block(tmp_path, 1_000, {"0": (0.0, 0.0), "1": (1.0, 1.0), "2": (2.0, 2.0)}, **net)
    for name in ("0", "1", "2"):
        alone = block(tmp_path, 1_000, {CHAIN: (float(name), float(name))}, **net)
        mine, chain = sweep.chains[name], alone.chains[CHAIN]
        assert (mine.failures, mine.worse, mine.better, mine.events) == (
            chain.failures, chain.worse, chain.better, chain.events,
        )  # fmt: skip
    # Logits are -1 or +1.5: thresholds 0 and 1 act alike, 2 never.
    assert sweep.chains["0"].failures == sweep.chains["1"].failures > sweep.chains["2"].failures
    assert sweep.chains["2"].failures == sweep.plain
    assert [choice.allowed for choice in choices({CELL: sweep})] == [False, False, True]


def test_of_the_useful_thresholds_the_safest_is_chosen() -> None:
    def tally(*chains: tuple[int, int]) -> Tally:
        """Per threshold: shots that it alone gets wrong (of 60 discordant), events left."""
        made = {str(k): Chain(0, w, 60 - w, left, 1) for k, (w, left) in enumerate(chains)}
        return Tally(10_000, 350, 300, 900, 1, {**made, PAIR_RULE: Chain(350, 0, 0, 600, 1)})

    found, best = chosen({CELL: tally((52, 100), (50, 300), (30, 400), (20, 500))})
    assert [choice.useful for choice in found] == [True, True, True, False]
    assert [choice.allowed for choice in found] == [False, False, True, True]
    assert best == 2.0
    assert chosen({CELL: tally((20, 500))})[1] is None


def test_bounds_of_a_choice_pool_noises_and_bases() -> None:
    cells = [c for c in GRID if c.distance == 5 and c.p == 0.006]
    tally = Tally(10_000, 350, 300, 9, 1, {"0": Chain(340, 100, 110, 3, 1), PAIR_RULE: Chain()})
    alone, pooled = (
        choices(dict.fromkeys(some, tally))[0].upper[5, 0.006] for some in (cells[:1], cells)
    )
    assert len(cells) == 4
    assert 0 < alone - -10 / 350 < 2.1 * (pooled - -10 / 350)  # half as wide
    assert CHOICE_CONFIDENCE == 0.9


def test_the_grid() -> None:
    assert len(GRID) == len({cell.name for cell in GRID}) == 24
    assert {cell.shots for cell in GRID} <= {200_000, 400_000, 600_000}
    assert [c.name for c in chosen_cells(["ising25-d9-p0.006-?"])] == [
        "ising25-d9-p0.006-X", "ising25-d9-p0.006-Z",
    ]  # fmt: skip
    with pytest.raises(UsageError, match="no such cell"):
        chosen_cells(["d11"])
    assert shots_of(GRID[:1], scale=0.01, shots=None) == {GRID[0]: 4_000}
    assert shots_of(GRID[:1], scale=1.0, shots=7) == {GRID[0]: 7}


@pytest.mark.parametrize("basis", ["X", "Z"])
def test_events_leave_out_what_the_reference_drops(basis: Any) -> None:
    layout = Cell(3, 0.003, "ising25", basis).layout("XV", keep_last=False)
    seen = seen_detectors(layout)
    detectors = np.eye(layout.n_detectors, dtype=np.uint8)
    boundary = layout.n_detectors - layout.geometry.half
    shown = layout.per_check(detectors).any(axis=(1, 2, 3))
    np.testing.assert_array_equal(seen[:boundary], shown[:boundary])
    assert seen.sum() == layout.n_detectors - layout.geometry.half


def test_purposes_and_cells_have_shots_of_their_own(tmp_path: Path) -> None:
    tested = subject(network(tmp_path, **SILENT), {CHAIN: (None, None)})
    bench = CellBench(CELL, tested)
    events = {
        bench.block(seed, purpose, number, 500).events
        for seed, purpose, number in (
            (1, "judge", 0),
            (1, "judge", 1),
            (1, "choose", 0),
            (2, "judge", 0),
        )
    }
    assert len(events) == 4


def test_stored_thresholds_come_back(tmp_path: Path) -> None:
    path = network(tmp_path, **SILENT)
    sha256 = store_threshold(Path(path), 1.5, tmp_path / "new.safetensors")
    loaded = load_weights(tmp_path / "new.safetensors")
    assert (loaded.threshold_data, loaded.threshold_syndrome, loaded.sha256) == (1.5, 1.5, sha256)
    tested = subject(str(tmp_path / "new.safetensors"), {CHAIN: (None, None)}, orientation="O2")
    assert (tested.thresholds, tested.orientation) == ({CHAIN: (1.5, 1.5)}, "XH")
    with pytest.raises(UsageError, match="exists already"):
        store_threshold(tmp_path / "new.safetensors", 1.0, Path(path))
    assert store_threshold(Path(path), 2.0, Path(path)) == load_weights(path).sha256  # in place
    known = str(tmp_path / "known.safetensors")
    save_weights(known, replace(loaded, metadata={**loaded.metadata, "orientation": "XV"}))
    for weights, orientation, what in (
        ("nothing", "XV", "no weights"), (path, "XW", "allowed: XV"),
        (known, "ZH", "trained on orientation XV, the circuit has ZH"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=f"(?s)these weights cannot be judged.*{what}"):
            subject(weights, {CHAIN: (None, None)}, orientation=orientation)
    assert subject(path, {CHAIN: (None, None)}).backend == Backend.ORT_CPU


def test_sums_of_tallies() -> None:
    one = Tally(1, 2, 3, 4, 5, {"a": Chain(1, 2, 3, 4, 5)})
    two = one + one
    assert two == Tally(2, 4, 6, 8, 10, {"a": Chain(2, 4, 6, 8, 10)})
    assert Tally() + one == one == one + Tally()
    assert Tally.read(json.loads(json.dumps(two.document()))) == two
    with pytest.raises(ValueError, match="do not add"):
        _ = one + Tally(1, chains={"b": Chain()})
