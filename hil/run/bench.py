"""Speed of the testbed as ratios measured side by side in one run, never as absolute promises.

``model``: (a) bare ``stim`` detector sampler + ``decode_batch`` of the scenario's primary decoder,
(b) a virtual run at record level ``shots`` with close, rewrite and verdict, (c) the same at level
``rounds``. One thread's worth of processor: the process is bound to one core, so the trace
writer's thread pays too. a, b, c alternate; each figure is the best of the repeats.
"""

from __future__ import annotations

import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from statistics import median

import numpy as np

from gpu_decoder.build import build_decoder
from hil.device.circuits import CodeCircuit, surface_memory
from hil.device.sampler import StimSampler, batch_shots, event_counts
from hil.run.runner import RunOptions, execute
from hil.scenario.load import Loaded, load_scenario

DISTANCES = (5, 7, 13)
FALLBACK_QUANTILE = 0.99
_P = 3.0e-3
_PILOT = 4096


@dataclass(frozen=True, slots=True)
class ModelRow:
    """One distance. Rates in shots per second; ratios of rates: b / a and c / a.

    ``overhead_us`` is what a shot costs beyond sampling and decoding (b - a).
    """

    distance: int
    shots: int
    rate_bare: float
    rate_shots: float
    rate_rounds: float
    ratio: float
    ratio_rounds: float
    overhead_us: float
    fallback_rate: float
    decoder: str


def bench_model(
    distances: Sequence[int] = DISTANCES,
    *,
    seconds: float = 10.0,
    repeats: int = 3,
    primary: str = "pymatching_corr",
    tell: Callable[[str], None] = lambda _text: None,
) -> list[ModelRow]:
    """Measure all rows.

    Args:
        distances: code distances; rounds = distance, p = 0.003.
        seconds: about how long the bare reference of one row takes.
        repeats: alternations; the median counts.
        primary: decoder of the reference and of the scenario.
        tell: receives progress lines.
    """
    rows = []
    with _one_core():
        for distance in distances:
            tell(f"d = {distance}")
            rows.append(_row(distance, seconds, repeats, primary))
    return rows


def _row(distance: int, seconds: float, repeats: int, primary: str) -> ModelRow:
    code = surface_memory(distance=distance, rounds=distance, basis="Z", p=_P)
    pilot_rate = _PILOT / _bare(code, primary, _PILOT)
    size = batch_shots(code.n_detectors)
    shots = max(_PILOT, int(pilot_rate * seconds) // size * size)
    fewer = max(_PILOT, shots // 4)
    with tempfile.TemporaryDirectory(prefix="hil-bench-") as folder:
        loaded = {
            "shots": _scenario(Path(folder), code, distance, "shots", shots, primary),
            "rounds": _scenario(Path(folder), code, distance, "rounds", fewer, primary),
        }
        warm = _scenario(Path(folder), code, distance, "shots", _PILOT, primary)
        _virtual(warm, Path(folder) / "warm")  # compiles, loads
        bare = [_bare(code, primary, shots)]
        ours: dict[str, list[float]] = {"shots": [], "rounds": []}
        ratios: dict[str, list[float]] = {"shots": [], "rounds": []}
        fallback = 0.0
        for k in range(repeats):
            spent, fallback = _virtual(loaded["shots"], Path(folder) / f"shots-{k}")
            bare.append(_bare(code, primary, shots))
            fewer_spent, _ = _virtual(loaded["rounds"], Path(folder) / f"rounds-{k}")
            ours["shots"].append(spent / shots)
            ours["rounds"].append(fewer_spent / fewer)
            ratios["shots"].append((bare[-2] + bare[-1]) / 2 / spent)
            ratios["rounds"].append(bare[-1] / shots / ours["rounds"][-1])
    return ModelRow(
        distance=distance,
        shots=shots,
        rate_bare=shots / median(bare),
        rate_shots=1 / median(ours["shots"]),
        rate_rounds=1 / median(ours["rounds"]),
        ratio=median(ratios["shots"]),
        ratio_rounds=median(ratios["rounds"]),
        overhead_us=(median(ours["shots"]) - median(bare) / shots) * 1e6,
        fallback_rate=fallback,
        decoder=primary,
    )


def _bare(code: CodeCircuit, primary: str, shots: int) -> float:
    """Seconds for sampling and decoding alone, in batches of our size."""
    import stim

    decoder = build_decoder(primary, code.dem_text)
    sampler = stim.Circuit(code.circuit_text).compile_detector_sampler(seed=3)
    size = batch_shots(code.n_detectors)
    failures = 0
    begin = time.perf_counter()
    for done in range(0, shots, size):
        n = min(size, shots - done)
        detectors, observables = sampler.sample(n, separate_observables=True, bit_packed=True)
        predictions = decoder.decode_batch(detectors).predictions_b8
        failures += int((predictions != observables).any(axis=1).sum())
    return time.perf_counter() - begin


def _virtual(loaded: Loaded, out: Path) -> tuple[float, float]:
    """Seconds for a whole virtual run (load apart), and its fallback rate."""
    begin = time.perf_counter()
    outcome = execute(loaded, RunOptions(out=out))
    spent = time.perf_counter() - begin
    rate = outcome.rig.metrics.measure("decoder.fallback_rate").value
    return spent, rate


def _scenario(
    folder: Path, code: CodeCircuit, distance: int, level: str, shots: int, primary: str
) -> Loaded:
    """The bench scenario with a service time that sends about 1 % of the shots to the fallback.

    The primary's time is 10 us for usual shots and 59 us beyond the 99 % quantile of the event
    count, which is more than is left before its deadline.
    """
    events = event_counts(next(StimSampler(code, 99).batches(_PILOT)).detectors_b8)
    edge = int(np.quantile(events, FALLBACK_QUANTILE))
    path = folder / "bench_model.yaml"
    path.write_text(resources.files("hil.run").joinpath("bench_model.yaml").read_text())
    service = f"{{'0': 10us, '{edge}': 12us, '{edge + 1}': 59us}}"
    profile = "bind.profiles.mil.decoder"
    return load_scenario(
        path,
        overrides=[
            f"system.qpu.circuit.distance={distance}",
            f"system.qpu.circuit.rounds={distance}",
            f"system.decoder.primary={primary}",
            f"run.shots={shots}",
            f"run.record.level={level}",
            f"{profile}.service.by_events={service}",
        ],
    )


@contextmanager
def _one_core() -> Iterator[None]:
    """Bind the process to one core, so that threads of ours share it."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def as_data(rows: Sequence[ModelRow]) -> dict[str, object]:
    """JSON form of ``bench_model``."""
    return {
        "bench": "model",
        "p": _P,
        "threads": 1,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "rows": [asdict(row) for row in rows],
    }
