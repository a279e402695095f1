"""Racks in the loop: every shipped profile runs, and a fitted one gives back what was held out."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from hil.errors import MissingExtraError
from hil.rack.fit.check import windows
from hil.rack.fit.stamps import read_csv
from hil.rack.plan import WorkloadSource
from hil.run.fit import FitOptions, fit_rack
from hil.run.runner import RunOptions, run_scenario
from hil.scenario.load import load_scenario
from hil.scenario.model import Zhinst
from hil.scenario.problems import ScenarioErrors
from hil.scenario.rack_profile import profile_names, profile_rows, read_profile
from hil.scenario.vendor import feedback_cycles
from hil.trace.reader import open_trace

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "unit"))
from synthetic_rack import rack, with_profile, write_stamps  # noqa: E402

LINKS = (ROOT / "tests/data/scenario/base.yaml").read_text().split("  links:\n")[1]
LINKS = "  links:\n" + LINKS.split("  decoder:\n")[0]
PERIODS = "    round_period: 1.1us\n    shot_period: 10us\n"


def for_profile(folder: Path, name: str) -> Path:
    """A scenario that leaves out what the profile fills."""
    sections = read_profile(name)
    aggregate = next(b for b, body in sections["boards"].items() if body["role"] == "aggregate")  # type: ignore[index]
    changes = [(LINKS, "" if "links" in sections else LINKS.replace("agg", aggregate))]
    if "cadence" in sections:
        changes.append((PERIODS, ""))
    return with_profile(folder, name, *changes)


@pytest.mark.parametrize("name", profile_names())
def test_every_shipped_profile_runs_and_names_evidence_and_source(
    name: str, tmp_path: Path
) -> None:
    _, rows = profile_rows(name)
    assert rows
    for part, value, evidence, source in rows:
        assert evidence in {"rtl", "modelled", "assumed"}, part
        assert value, part
        assert len(source) > 10 or source.startswith("zhinst"), part
    path = for_profile(tmp_path, name)
    loaded = load_scenario(path)
    assert loaded.scenario.system.rack.profile == name
    overrides = ["run.shots=300", "run.warmup.shots=10"]
    if "cadence" in read_profile(name):
        assert loaded.scenario.system.qpu.round_period_ps >= 10**9
        overrides.append("system.decoder.deadline=20ms")
    options = RunOptions(out=tmp_path / "out", overrides=[*overrides, "expect={}"])
    result = run_scenario(path, options)
    assert result.document.facts.evidence
    with open_trace(result.trace) as trace:
        assert trace.rows("shots") == 300


def test_explicit_keys_win_over_links_and_cadence_of_a_profile(tmp_path: Path) -> None:
    path = with_profile(
        tmp_path, "nvqlink", (LINKS, "  links:\n    up: {latency: 1us, evidence: assumed}\n")
    )
    links = load_scenario(path).scenario.system.links
    assert (links.up.latency.ps, links.up.source, links.up.mtu_bytes) == (1_000_000, "", 4096)  # type: ignore[union-attr]
    assert (links.down.latency.ps, links.down.evidence) == (1_915_000, "assumed")  # type: ignore[union-attr]
    path = with_profile(tmp_path, "nvqlink", (LINKS, "  links:\n    up: {latency: 1us}\n"))
    with pytest.raises(ScenarioErrors, match=r"system\.links\.up\.evidence: missing key"):
        load_scenario(path)
    path = with_profile(tmp_path, "trapped-ions", ("    shot_period: 10us\n", ""))
    qpu = load_scenario(path).scenario.system.qpu
    assert (qpu.round_period_ps, qpu.shot_period_ps) == (1_100_000, 500 * 10**9)


@pytest.mark.parametrize("name", ["zurich-shf", "generic-fpga"])
def test_one_latency_of_a_shipped_profile_can_be_replaced(name: str, tmp_path: Path) -> None:
    path = for_profile(tmp_path, name)
    override = "system.rack.stages.demod={latency: 1ns, evidence: assumed}"
    stage = load_scenario(path, overrides=[override]).scenario.system.rack.stages["demod"]
    assert (stage.latency.ps, stage.source) == (1_000, "")  # type: ignore[union-attr]


# --------------------------------------------------------------------- Zurich Instruments

GRID = [
    (generator, analyzer, path, trigger, alignment)
    for generator, analyzer, path, trigger in (
        ("HDAWG", "SHFQA", "register", "zsync"),
        ("HDAWG", "SHFQC", "decoder", "zsync"),
        ("SHFSG", "SHFQA", "register", "zsync"),
        ("SHFSG", "SHFQA", "decoder", "zsync"),
        ("SHFQC", "SHFQC", "decoder", "zsync"),
        ("SHFQC", "SHFQC", "internal", "zsync"),
        ("SHFQC", "SHFQC", "internal", "internal"),
    )
    for alignment in (True, False)
]


@pytest.mark.parametrize(("generator", "analyzer", "path", "trigger", "alignment"), GRID)
def test_zurich_equals_the_vendors_model(
    generator: str, analyzer: str, path: str, trigger: str, alignment: bool, tmp_path: Path
) -> None:
    from zhinst import timing_models as zi

    model = zi.QCCSFeedbackModel(
        zi.get_feedback_system_description(
            zi.SGType[generator],
            zi.QAType[analyzer],
            {"register": zi.PQSCMode.REGISTER_FORWARD, "decoder": zi.PQSCMode.DECODER}.get(path),
            zi.TriggerSource[trigger.upper()],
            zi.FeedbackPath.INTERNAL if path == "internal" else zi.FeedbackPath.ZSYNC,
            alignment,
        )
    )
    for samples in [*range(20, 260, 4), 1_000, 4_016]:
        cycles = model.get_latency(samples)
        assert feedback_cycles(
            generator, analyzer, path, trigger, samples, alignment=alignment  # type: ignore[arg-type]
        ) == cycles  # fmt: skip
    changes = f"generator: {generator}, analyzer: {analyzer}, path: {path}, "
    changes += f"trigger: {trigger}, alignment: {str(alignment).lower()}"
    stage = "{latency: {dist: zhinst, %s, integration: 508ns, %s}, evidence: assumed}"
    loaded = load_scenario(
        for_profile(tmp_path, "zurich-shf"),
        overrides=[
            "system.rack.stages.demod=" + stage % (changes, "part: to_hub"),
            "system.rack.stages.apply=" + stage % (changes, "part: from_hub"),
        ],
    )
    stages = loaded.scenario.system.rack.stages
    parts = [stages[name].latency for name in ("demod", "apply")]
    assert all(isinstance(part, Zhinst) for part in parts)
    total = model.get_latency(1_016) * 4_000 - 1_016 * 500
    assert sum(part.ps for part in parts) == total  # type: ignore[union-attr]
    assert loaded.resolved["system"]["rack"]["stages"]["demod"]["latency"]["ps"] == parts[0].ps  # type: ignore[union-attr]


def test_zurich_without_the_package_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = for_profile(tmp_path, "zurich-shf")
    monkeypatch.setitem(sys.modules, "zhinst", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'hil\[vendors\]'") as info:
        load_scenario(path)
    assert info.value.exit_code == 2


def test_zurich_refuses_what_the_model_refuses(tmp_path: Path) -> None:
    path = for_profile(tmp_path, "zurich-shf")
    for change, code in (("path=internal", "E204"), ("integration=5ns", "E205")):
        with pytest.raises(ScenarioErrors, match=code):
            load_scenario(path, overrides=[f"system.rack.stages.demod.latency.{change}"])
    longer = load_scenario(path, overrides=["system.rack.stages.demod.latency.integration=700ns"])
    demod = longer.scenario.system.rack.stages["demod"]
    cycles = feedback_cycles("SHFSG", "SHFQA", "register", "zsync", 1_400, alignment=True)
    assert demod.latency.ps == (cycles * 4_000 - 700_000) // 2  # type: ignore[union-attr]
    assert (demod.evidence, demod.source[:8]) == ("assumed", "zhinst-t")


# --------------------------------------------------------------------- a fitted rack, run


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a capture of 120,000 rounds, five per shot, and the profile fitted to it."""
    folder = tmp_path_factory.mktemp("fitted")
    write_stamps(folder / "lab.csv", *rack(120_000, 12), rounds=5)
    assert fit_rack(FitOptions(csv=folder / "lab.csv", out=folder)).exit_code == 0
    return folder


def test_the_trace_shows_the_held_out_latency(fitted: Path) -> None:
    """T1 - T0 of a run against the held-out rounds at equal event counts."""
    result = run_scenario(
        with_profile(fitted, "./lab.yaml"),
        RunOptions(
            out=fitted / "run",
            overrides=["run.shots=20000", "run.record.level=rounds", "expect={}",
                       "run.record.streams=[shots, rounds, syndromes]",
                       "system.qpu.noise.p=0.004"],
        ),
    )  # fmt: skip
    with open_trace(result.trace) as trace:
        rounds, syndromes = trace.stream("rounds"), trace.stream("syndromes")
    acquire = rounds["t_syndrome_ps"] - rounds["t_intended_ps"]
    events = np.bitwise_count(syndromes["detectors_b8"]).sum(axis=1)
    capture = read_csv(fitted / "lab.csv")
    held_out = capture.part(84_000, 120_000)
    assert held_out.events is not None
    truth, total = held_out.durations_ps.sum(axis=0), 0
    for count in (0, 1, 2):
        have = np.quantile(acquire[events == count], [0.5, 0.99])
        want = np.quantile(truth[held_out.events == count], [0.5, 0.99])
        assert np.abs(have / want - 1).max() < 0.03, count
        total += int((events == count).sum())
    assert total > 0.5 * events.size
    assert events.size == 100_000


def test_a_run_draws_what_the_check_promised(fitted: Path) -> None:
    """Driven by the held-out event counts, the rack's workload has their quantiles and sums."""
    scenario = load_scenario(with_profile(fitted, "./lab.yaml")).scenario
    source = WorkloadSource(scenario)
    assert source.replays
    held_out = read_csv(fitted / "lab.csv").part(84_000, 120_000)
    assert held_out.events is not None
    events = held_out.events.reshape(-1, 5)
    drawn = []
    for batch in range(8):
        work = source.rack_only(batch, 0, len(events), events)
        assert (work.board_ps[:, 0] == work.board_ps[:, 1]).all(), "one row for both boards"
        drawn.append((work.board_ps[0, 0] + work.rack_ps[0]).ravel())
        assert (work.rack_ps[0] >= 0).all()
    truth, model = held_out.durations_ps.sum(axis=0), np.stack(drawn)
    for q in (0.5, 0.99, 0.999):
        assert np.quantile(model, q) == pytest.approx(np.quantile(truth, q), rel=0.03)
    assert np.quantile(windows(model), 0.99) == pytest.approx(
        np.quantile(windows(truth), 0.99), rel=0.03
    )
    again = source.rack_only(3, 0, 7, events[:7])
    assert (again.board_ps[0, 0] + again.rack_ps[0]).ravel().tolist() == drawn[3][:35].tolist()
