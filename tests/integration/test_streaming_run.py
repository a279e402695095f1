"""Sliding windows end to end: what a streaming run writes, measures and costs in memory."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import hil
from gpu_decoder.windowed import SlidingMatching
from hil.errors import ScenarioError
from hil.rack.timeline import Status
from hil.run.runner import RunOptions, RunResult, run_scenario
from hil.scenario.load import load_scenario
from hil.timebase import MISSING_PS
from hil.verdict.judge import Verdict
from hil.verdict.measured import NotMeasuredError
from hil.verdict.summary import from_trace

SCENARIOS = Path(__file__).resolve().parents[2] / "scenarios"
SMALL = (
    "system.qpu.circuit.distance=3",
    "system.qpu.circuit.rounds=40",
    "system.qpu.noise.p=0.005",
    "system.qpu.shot_period=50us",
    "run.warmup.shots=10",
    "run.record.level=rounds",
    "expect={keeps-up: {metric: window.load, max: 0.9, confidence: 0.95}}",
)
WINDOWS = 8  # 41 blocks, commit 5, buffer 5


def _run(scenarios: Path, out: Path, *overrides: str) -> RunResult:
    path = scenarios / "streaming_d5.yaml"
    return run_scenario(path, RunOptions(out=out, overrides=(*SMALL, *overrides)))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    return _run(SCENARIOS, tmp_path_factory.mktemp("small") / "run", "run.shots=300")


def test_the_trace_is_valid_and_holds_a_row_per_window(small: RunResult) -> None:
    assert small.verdict is Verdict.PASS
    with hil.open_trace(small.trace) as trace:
        decodes, shots = trace.stream("decodes"), trace.stream("shots")
        rounds = trace.stream("rounds")
    n = len(shots["shot"])
    first = decodes["window_first"].reshape(n, WINDOWS)
    last = decodes["window_last"].reshape(n, WINDOWS)
    assert (first == np.arange(WINDOWS) * 5).all()
    assert (last == np.minimum(np.arange(WINDOWS) * 5 + 9, 40)).all()
    assert np.unique(decodes["request_id"]).size == n * WINDOWS
    flips = decodes["obs_pred_b8"].reshape(n, WINDOWS, -1)
    assert (np.bitwise_xor.reduce(flips, axis=1) == shots["obs_pred_b8"]).all()
    assert (decodes["slack_ps"].reshape(n, WINDOWS)[:, -1] == shots["slack_ps"]).all()
    assert (decodes["slack_ps"].reshape(n, WINDOWS)[:, :-1] == MISSING_PS).all()
    # a round carries the decode stamps of the window that commits it
    start = decodes["t_glob_start_ps"].reshape(n, WINDOWS)
    owner = np.minimum(np.arange(41) // 5, WINDOWS - 1)
    assert (rounds["t_decode_start_ps"].reshape(n, 41) == start[:, owner]).all()
    validated = subprocess.run(
        [sys.executable, "-m", "hil", "trace", "validate", str(small.trace)], check=False
    )
    assert validated.returncode == 0


def test_hops_of_the_last_block_add_up_and_windows_are_sequential(small: RunResult) -> None:
    with hil.open_trace(small.trace) as trace:
        rounds, decodes = trace.stream("rounds"), trace.stream("decodes")
    last = rounds["round"] == 40
    chain = [
        "t_intended_ps", "t_syndrome_ps", "t_tx_ps", "t_rx_ps", "t_visible_ps", "t_decode_start_ps",
        "t_decode_end_ps", "t_reply_tx_ps", "t_reply_rx_ps", "t_applied_ps",
    ]  # fmt: skip
    hops = [rounds[b][last] - rounds[a][last] for a, b in pairwise(chain)]
    assert all((hop >= 0).all() for hop in hops)
    assert (sum(hops) == rounds["latency_ps"][last]).all()
    start = decodes["t_glob_start_ps"].reshape(-1, WINDOWS)
    end = decodes["t_glob_end_ps"].reshape(-1, WINDOWS)
    assert (start[:, 1:] >= end[:, :-1]).all()


def test_a_file_gives_the_figures_of_the_run(small: RunResult) -> None:
    rows = {row.name: row for row in small.document.rates}
    with hil.open_trace(small.trace) as trace:
        again = from_trace(trace)
    load = again.measure("window.load", "", 0.95, "clean")
    assert rows["window.load"].value.value == load.value
    assert rows["window.load"].n == load.n == 290 * (WINDOWS - 1)
    reaction = again.measure("reaction_time", "p99", 0.95, "clean")
    whole = again.measure("latency.end_to_end", "p99", 0.95, "clean")
    assert (reaction.value, reaction.lower) == (whole.value, whole.lower)


def test_a_file_without_all_windows_says_so(scenarios: Path, tmp_path: Path) -> None:
    result = _run(scenarios, tmp_path / "few", "run.shots=60", "run.record.level=shots")
    assert ("decode window", "sliding, commit 5, buffer 5 rounds") in result.document.facts.workload
    with hil.open_trace(result.trace) as trace:
        metrics = from_trace(trace)
    with pytest.raises(NotMeasuredError, match="no full window is known"):
        metrics.measure("window.load", "", 0.95, "clean")


def test_executors_write_the_same_content(scenarios: Path, tmp_path: Path) -> None:
    runs = [
        _run(scenarios, tmp_path / name, "run.shots=60", f"bind.profiles.mil.rack.executor={name}")
        for name in ("bulk", "events")
    ]
    with hil.open_trace(runs[0].trace) as a, hil.open_trace(runs[1].trace) as b:
        for stream in ("shots", "rounds", "syndromes", "decodes"):
            left, right = a.stream(stream), b.stream(stream)
            for column in left:
                assert left[column].tobytes() == right[column].tobytes(), f"{stream}/{column}"


def test_streaming_leaves_less_to_do_after_the_last_round(scenarios: Path, tmp_path: Path) -> None:
    """The same events decoded as a whole cost more after the last round: the point of streaming."""
    windows = _run(scenarios, tmp_path / "windows", "run.shots=300")
    whole = _run(
        scenarios, tmp_path / "whole", "run.shots=300", "system.decoder.window={mode: shot}",
        "expect={r: {metric: reaction_time, stat: p50, max: 1ms, confidence: 0.95}}",
    )  # fmt: skip
    median = []
    for result in (windows, whole):
        with hil.open_trace(result.trace) as trace:
            median.append(from_trace(trace).measure("reaction_time", "p50").value)
    assert median[0] < median[1]


@pytest.mark.parametrize("hop", ["queue", "decode", "uplink"])
def test_an_injected_delay_shows_on_its_hop_only(scenarios: Path, tmp_path: Path, hop: str) -> None:
    fault = f"faults={{extra: {{kind: delay, target: {hop}, value: 20us, at: {{shot: 100}}}}}}"
    common = ("run.shots=200", "system.qpu.shot_period=100us")  # a late shot delays no other
    plain = _run(scenarios, tmp_path / "plain", *common)
    late = _run(scenarios, tmp_path / "late", *common, fault)
    with hil.open_trace(plain.trace) as a, hil.open_trace(late.trace) as b:
        before, after = a.stream("rounds"), b.stream("rounds")
    last = (before["round"] == 40) & (before["shot"] >= 101)
    ends = {"queue": ("t_visible_ps", "t_decode_start_ps"), "uplink": ("t_tx_ps", "t_rx_ps"),
            "decode": ("t_decode_start_ps", "t_decode_end_ps")}  # fmt: skip
    for name, (start, stop) in ends.items():
        extra = (after[stop] - after[start])[last] - (before[stop] - before[start])[last]
        if name == hop and hop != "queue":
            assert (extra == 20_000_000).all()
        elif name == hop:  # dispatch runs beside the window before: the wait for it is absorbed
            assert ((extra > 0) & (extra <= 20_000_000)).all()
        elif not (hop == "uplink" and name == "queue"):  # all rounds later: no wait changes there
            assert (extra == 0).all()


def test_lost_answers_are_declared(scenarios: Path, tmp_path: Path) -> None:
    """A ring that holds just one window refuses rounds while a slow decoder holds its slots."""
    result = _run(
        scenarios, tmp_path / "full", "run.shots=100", "system.decoder.ring.slots=10",
        "bind.profiles.mil.decoder.service={by_events: {0: 1us, 1: 9us}, evidence: assumed}",
    )  # fmt: skip
    with hil.open_trace(result.trace) as trace:
        shots, decodes = trace.stream("shots"), trace.stream("decodes")
    dropped = shots["status"] == Status.DROPPED
    assert dropped.any()
    assert not np.isin(decodes["shot"], shots["shot"][dropped]).any()
    assert (shots["latency_ps"][dropped] == MISSING_PS).all()


def test_the_load_counts_windows_of_shots_that_are_given_up(
    scenarios: Path, tmp_path: Path
) -> None:
    """An overloaded node gives up the slow shots: without them it would seem to keep up."""
    loads = []
    for name, slots, period in (("full", 10, "46us"), ("ample", 4096, "1ms")):
        result = _run(
            scenarios, tmp_path / name, "run.shots=400", "system.qpu.noise.p=0.012",
            f"system.decoder.ring.slots={slots}", f"system.qpu.shot_period={period}",
        )  # fmt: skip
        with hil.open_trace(result.trace) as trace:
            again = from_trace(trace)
        load = again.measure("window.load", "", 0.95, "clean")
        shown = next(row for row in result.document.rates if row.name == "window.load")
        assert (shown.value.value, shown.n) == (load.value, load.n)
        loads.append((load, again.measure("decoder.unanswered_rate", "", 0.95, "clean").value))
    (full, lost), (ample, none) = loads
    assert none == 0.0
    assert lost > 0.2
    assert full.n > (1 - lost) * ample.n, "windows of shots that were given up are in it"
    assert full.value == pytest.approx(ample.value, rel=0.03)


def test_a_decoder_that_refuses_is_a_rig_error(
    scenarios: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("a detector fired that no error flips")

    monkeypatch.setattr(SlidingMatching, "decode_batch", refuse)
    result = _run(scenarios, tmp_path / "run", "run.shots=60")
    assert result.verdict is Verdict.RIG_ERROR
    assert "refused a batch" in result.document.headline
    with hil.open_trace(result.trace) as trace:
        assert trace.rows("shots") == 0


def test_live_networks_are_refused(scenarios: Path) -> None:
    path = scenarios / "surface_d5.yaml"
    options = RunOptions(
        bind="sil",
        overrides=(
            "system.decoder.window={mode: sliding, commit: 3, buffer: 2}",
            "system.decoder.primary=pymatching",
            "system.decoder.fallback={to: pymatching, policy: never}",
        ),
    )
    with pytest.raises(ScenarioError, match="not decoded on a live network"):
        run_scenario(path, options)


def test_a_memory_of_a_hundred_thousand_rounds_is_a_valid_scenario(scenarios: Path) -> None:
    overrides = ("system.qpu.circuit.rounds=100000", "system.qpu.shot_period=120ms")
    loaded = load_scenario(scenarios / "streaming_d5.yaml", overrides=overrides)
    assert loaded.scenario.system.qpu.n_blocks == 100_001


def test_load_of_shots_that_are_one_window_is_refused(scenarios: Path) -> None:
    """Only the last window of a shot would be left, and that one is not measured."""
    overrides = (*SMALL, "run.shots=300", "system.decoder.window.commit=36")
    with pytest.raises(ScenarioError, match=r"E513.*window\.load of shots that are one window"):
        load_scenario(scenarios / "streaming_d5.yaml", overrides=overrides)


_PEAK = """
import sys
from pathlib import Path
from hil.run.runner import RunOptions, run_scenario
result = run_scenario(Path(sys.argv[1]), RunOptions(out=Path(sys.argv[2]), overrides=sys.argv[3:]))
status = Path("/proc/self/status").read_text()
peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
print(result.verdict.value, peak.split()[1])
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_hundred_thousand_rounds_fit_into_300_mb(scenarios: Path, tmp_path: Path) -> None:
    """Peak resident memory of the whole process, libraries included (VmHWM)."""
    overrides = (
        "system.qpu.circuit.distance=3",
        "system.qpu.circuit.rounds=100000",
        "system.qpu.shot_period=120ms",
        "run.shots=4",
        "run.warmup.shots=0",
        "expect={keeps-up: {metric: window.load, max: 0.9, confidence: 0.95}}",
    )
    command = [sys.executable, "-c", _PEAK, str(scenarios / "streaming_d5.yaml")]
    done = subprocess.run(
        [*command, str(tmp_path / "run"), *overrides], capture_output=True, text=True, check=True
    )
    verdict, peak_kb = done.stdout.split()
    assert verdict == "PASS"
    assert int(peak_kb) * 1024 <= 300e6
