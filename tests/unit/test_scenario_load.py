"""What a good file becomes: values, defaults, overrides, profiles, racks, files beside it."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest
from pydantic import ValidationError
from ruamel.yaml import YAML

import hil
from gpu_decoder.policy import RECOVERABLE
from gpu_decoder.protocol import Reason
from hil.errors import UsageError
from hil.scenario import load as loader
from hil.scenario.load import Loaded, load_scenario
from hil.scenario.model import (
    STREAMS,
    ByEvents,
    Const,
    Cycles,
    DelayFault,
    Empirical,
    LogNormal,
    Normal,
    Scenario,
    StallFault,
)
from hil.scenario.problems import ScenarioErrors
from hil.scenario.text import Document

ROOT = Path(__file__).parents[2]
BASE = (ROOT / "tests" / "data" / "scenario" / "base.yaml").read_text()
BASE_DATA = YAML(typ="safe", pure=True).load(BASE)


def load(tmp_path: Path, *edits: tuple[str, str], **options: object) -> Loaded:
    text = BASE
    for old, new in edits:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    path = tmp_path / "scenario.yaml"
    path.write_text(text)
    return load_scenario(path, **options)  # type: ignore[arg-type]


def problems_of(
    tmp_path: Path, *edits: tuple[str, str], **options: object
) -> list[tuple[str, str]]:
    with pytest.raises(ScenarioErrors) as info:
        load(tmp_path, *edits, **options)
    return [(problem.code, problem.dotted) for problem in info.value.problems]


def test_values(tmp_path: Path) -> None:
    loaded = load(tmp_path)
    scenario = loaded.scenario
    assert loaded.text == BASE
    assert loaded.folder == tmp_path
    assert loaded.warnings == ()
    qpu = scenario.system.qpu
    assert (qpu.circuit.distance, qpu.circuit.rounds, qpu.n_blocks) == (5, 4, 5)
    assert (qpu.circuit.basis, qpu.circuit.task) == ("X", "surface_code:rotated_memory_x")
    assert (qpu.circuit.code, qpu.circuit.checks["x_check"]) == ("surface_code:rotated_memory", 12)
    assert (qpu.round_period_ps, qpu.shot_period_ps) == (1_100_000, 10_000_000)
    rack = scenario.system.rack
    assert rack.clocks["fpga"].freq_hz == Fraction(322_265_625)
    assert rack.ticks("agg").edge_ps(33) == 102_400
    assert rack.boards["ro0"].channels == ("x_check[:]",)
    assert rack.boards["ro1"].skew_ps == 8_000
    assert rack.readout_boards == ("ro0", "ro1")
    assert rack.aggregate_board == "agg"
    assert rack.stage_order == ("demod", "merge", "packetize", "apply")
    assert rack.board_stages == ("demod",)
    assert rack.rack_stages == ("merge", "packetize")
    merge = rack.stages["merge"]
    assert merge.latency == Normal(dist="normal", mean_ps=60_000, sd_ps=4_000, min_ps=48_000)
    assert (merge.servers, merge.buffer, merge.evidence) == (1, 2, "assumed")
    assert rack.stages["packetize"].latency == Cycles(dist="cycles", n=20)
    up, down = scenario.system.links.up, scenario.system.links.down
    assert (up.from_, up.to, down.from_, down.to) == ("agg", "decoder", "decoder", "agg")
    assert (up.rate_bps, down.rate_bps, up.mtu_bytes) == (10**11, 10**10, 4096)
    assert (up.psn_start, up.udp_port, up.payload, up.envelope) == (0, 4791, "detectors", "hil")
    decoder = scenario.system.decoder
    assert (decoder.deadline_ps, decoder.fallback.primary_deadline_ps) == (60_000_000, 45_000_000)
    assert decoder.fallback.when == ("deadline",)
    assert decoder.on_node_lost == "in_process"


def test_bound_parts(tmp_path: Path) -> None:
    loaded = load(tmp_path)
    profile = loaded.profile
    assert loaded.scenario.profile is profile
    assert (profile.level, profile.live, profile.rack.pace) == ("mil", False, 1)
    assert profile.decoder.service is not None
    model = profile.decoder.service.model
    assert isinstance(model, ByEvents)
    assert (model.events, model.service_ps) == ((0, 20), (4_000_000, 9_000_000))
    assert profile.decoder.fallback_service is not None
    assert isinstance(profile.decoder.fallback_service.model, LogNormal)
    assert profile.decoder.deliver == Const(ps=500_000)


def test_run_faults_and_expectations(tmp_path: Path) -> None:
    scenario = load(tmp_path).scenario
    run = scenario.run
    assert (run.shots, run.warmup.shots, run.judged_shots) == (4000, 500, 3500)
    assert run.wall_ps == 30 * 60 * 10**12
    assert run.record.streams == ("shots", "rounds")
    slow, stall = scenario.faults["slow"], scenario.faults["stall"]
    assert isinstance(slow, DelayFault)
    assert isinstance(stall, StallFault)
    assert (slow.target, slow.value_ps, slow.at.shot) == ("uplink", 20_000_000, 100)
    assert (stall.target, stall.value_ps, stall.at.shot) == ("primary", 2 * 10**9, 2000)
    tail, misses = scenario.expect["tail"], scenario.expect["misses"]
    assert (tail.max, tail.marginal, tail.quantile) == (60_000_000, 50_000_000, Fraction(999, 1000))
    assert isinstance(tail.max, int)
    assert (misses.max, misses.confidence, misses.scope) == (1e-3, 0.95, "clean")
    assert scenario.expect["backlog"].max == 1000
    assert (scenario.expect["lost"].equals, scenario.expect["lost"].scope) == (0, "all")


def test_defaults(tmp_path: Path) -> None:
    edits = [
        ("tags: [test]\nrequires: []\n", ""),
        ("  warmup: {shots: 500}\n  wall: 30min\n", ""),
        (", streams: [shots, rounds], every: 10", ""),
        (", when: [deadline]", ""),
        ("    on_node_lost: in_process\n", ""),
        (", rack_address: 127.0.1.2, node_address: 127.0.1.1", ""),
        (", executor: bulk", ""),
    ]
    loaded = load(tmp_path, *edits)
    run = loaded.scenario.run
    assert (run.warmup.shots, run.wall_ps) == (0, None)
    assert (run.record.streams, run.record.every) == (STREAMS, 1000)
    assert loaded.scenario.tags == loaded.scenario.requires == ()
    assert loaded.scenario.system.decoder.on_node_lost == "fail"
    assert {Reason[name.upper()] for name in loaded.scenario.system.decoder.fallback.when} == (
        RECOVERABLE
    )
    assert loaded.profile.rack.executor == "auto"
    live = loaded.scenario.bind.profiles["live"].network
    assert (live.rack_address, live.node_address) == ("127.0.0.2", "127.0.0.1")
    assert loaded.resolved["run"]["record"]["every"] == 1000


def test_empty_sections_are_allowed(tmp_path: Path) -> None:
    head, _, _ = BASE.partition("faults:\n")
    path = tmp_path / "scenario.yaml"
    path.write_text(head)
    scenario = load_scenario(path).scenario
    assert (scenario.expect, scenario.faults) == ({}, {})
    path.write_text(head + "expect: {}\nfaults: {}\n")
    assert load_scenario(path).scenario == scenario


def test_task_gives_basis(tmp_path: Path) -> None:
    loaded = load(tmp_path, ("basis: X", "task: surface_code:rotated_memory_z"))
    assert loaded.scenario.system.qpu.circuit.basis == "Z"
    loaded = load(tmp_path, ("basis: X", "basis: X, task: surface_code:rotated_memory_x"))
    assert loaded.scenario.system.qpu.circuit.basis == "X"


def test_public_name() -> None:
    assert hil.load_scenario is load_scenario


def test_models_are_frozen(tmp_path: Path) -> None:
    scenario = load(tmp_path).scenario
    with pytest.raises(ValidationError):
        scenario.run.shots = 1  # type: ignore[misc]


# ------------------------------------------------------------------------------------ required


def _required_paths() -> Iterator[tuple[str, ...]]:
    """All keys of the base file that have no default."""
    optional = {
        "tags", "requires", "faults", "expect", "task", "skew", "servers", "buffer", "source",
        "psn_start", "udp_port", "payload", "envelope", "on_node_lost", "executor", "pace",
        "rack_address", "node_address", "warmup", "wall", "streams", "every", "marginal", "scope",
        "when",
    }  # fmt: skip

    def walk(node: object, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        for key, value in node.items() if isinstance(node, dict) else ():
            here = (*path, str(key))
            ids = path in {("bind", "profiles"), ("faults",), ("expect",)}
            ids = ids or path[-1:] in {("boards",), ("clocks",), ("by_events",)}
            ids = ids or (path[-1:] == ("stages",) and key not in {"packetize", "apply"})
            default = path[:1] == ("faults",) and key == "at" and node["kind"] == "delay"
            workers = here[-2:] == ("fallback", "workers")
            if key not in optional and not ids and not default and not workers:
                yield here
            yield from walk(value, here)

    yield from walk(BASE_DATA, ())


@pytest.mark.parametrize("path", list(_required_paths()), ids=".".join)
def test_each_required_key_is_missed(
    path: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = copy.deepcopy(BASE_DATA)
    node = data
    for key in path[:-1]:
        node = node[key]
    del node[path[-1]]
    monkeypatch.setattr(loader, "read_document", lambda text, name: Document(name, data))
    file = tmp_path / "scenario.yaml"
    file.write_text(BASE)
    with pytest.raises(ScenarioErrors) as info:
        load_scenario(file)
    found = [p for p in info.value.problems if p.code == "E202"]
    assert any(p.dotted == ".".join(path) and f"'{path[-1]}'" in p.what + p.fix for p in found) or (
        path[-1] in {"by_events", "latency"} and found
    )


def test_there_are_many_required_keys() -> None:
    paths = list(_required_paths())
    assert len(paths) > 80
    assert ("system", "decoder", "deadline") in paths


# ------------------------------------------------------------------------------------ resolved


def test_resolved_is_canonical(tmp_path: Path) -> None:
    loaded = load(tmp_path)
    again = load(tmp_path)
    assert json.dumps(loaded.resolved) == json.dumps(again.resolved)
    assert list(loaded.resolved["bind"]["profiles"]) == ["mil"]
    assert loaded.resolved["system"]["rack"]["clocks"]["fpga"]["freq_hz"] == "322265625"
    reordered = load(
        tmp_path, ("    workers: 2\n", ""), ("    window:", "    workers: 2\n    window:")
    )
    text = json.dumps(loaded.resolved, sort_keys=True)
    assert json.dumps(reordered.resolved, sort_keys=True) == text
    spelled = load(tmp_path, ("round_period: 1.1us", "round_period: 1100 ns  # same"))
    assert json.dumps(spelled.resolved, sort_keys=True) == text
    other = load(tmp_path, ("round_period: 1.1us", "round_period: 1101ns"))
    assert json.dumps(other.resolved, sort_keys=True) != text


def test_resolved_does_not_depend_on_unused_profiles(tmp_path: Path) -> None:
    loaded = load(tmp_path)
    other = load(tmp_path, ("pace: 100", "pace: 50"))
    assert loaded.resolved == other.resolved
    assert loaded.resolved != load(tmp_path, bind="live").resolved


def test_resolved_rebuilds_the_scenario(tmp_path: Path) -> None:
    loaded = load(tmp_path)
    text = json.dumps(loaded.resolved, sort_keys=True)
    rebuilt = Scenario.model_validate(json.loads(text))
    assert rebuilt.system == loaded.scenario.system
    assert tuple(rebuilt.system.rack.stages) == loaded.scenario.system.rack.stage_order
    assert rebuilt.run == loaded.scenario.run
    assert rebuilt.expect == loaded.scenario.expect
    assert rebuilt.profile == loaded.profile


def test_scenario_survives_pickling(tmp_path: Path) -> None:
    scenario = load(tmp_path).scenario
    assert pickle.loads(pickle.dumps(scenario)) == scenario


# ------------------------------------------------------------------------------------ bind, set


def test_bind_selects(tmp_path: Path) -> None:
    loaded = load(tmp_path, bind="live")
    assert (loaded.profile.level, loaded.profile.live, loaded.profile.rack.pace) == (
        "sil",
        True,
        100,
    )
    assert loaded.scenario.bind.use == "live"
    assert set(loaded.scenario.bind.profiles) == {"mil", "live"}


def test_bind_of_unknown_profile(tmp_path: Path) -> None:
    with pytest.raises(ScenarioErrors) as info:
        load(tmp_path, bind="liv")
    assert str(info.value) == (
        "--bind liv: error[E401]: bind.use: unknown profile 'liv'\n"
        "    got:     liv\n"
        "    allowed: mil, live\n"
        "    fix:     did you mean 'live'?"
    )


def test_profiles_that_are_not_used_are_checked_too(tmp_path: Path) -> None:
    assert problems_of(tmp_path, ("pace: 100", "pace: 0")) == [
        ("E205", "bind.profiles.live.rack.pace")
    ]


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("run.shots=9000", lambda s: s.run.shots == 9000),
        ("system.qpu.round_period=2us", lambda s: s.system.qpu.round_period_ps == 2_000_000),
        ("system.qpu.noise.p = 1.0e-3", lambda s: s.system.qpu.noise.p == 1e-3),
        ("title='a: b'", lambda s: s.title == "a: b"),
        ("run.record.streams=[shots]", lambda s: s.run.record.streams == ("shots",)),
        ("expect={}", lambda s: s.expect == {}),
        ("faults.more={kind: delay, target: queue, value: 1us}", lambda s: "more" in s.faults),
        ("expect.tail.max=70us", lambda s: s.expect["tail"].max == 70_000_000),
        ("system.links.up.psn_start=5", lambda s: s.system.links.up.psn_start == 5),
    ],
)
def test_override(override: str, read: object, tmp_path: Path) -> None:
    assert read(load(tmp_path, overrides=[override]).scenario)  # type: ignore[operator]


def test_override_may_add_a_section(tmp_path: Path) -> None:
    loaded = load(tmp_path, ("  warmup: {shots: 500}\n", ""), overrides=["run.warmup.shots=10"])
    assert loaded.scenario.run.warmup.shots == 10


def test_later_overrides_win(tmp_path: Path) -> None:
    loaded = load(tmp_path, overrides=["run.seed=1", "run.seed=2"])
    assert loaded.scenario.run.seed == 2


def test_override_mends_a_broken_value(tmp_path: Path) -> None:
    assert load(tmp_path, ("seed: 7", "seed:"), overrides=["run.seed=1"]).scenario.run.seed == 1


def test_override_can_choose_the_profile(tmp_path: Path) -> None:
    assert load(tmp_path, overrides=["bind.use=live"]).profile.live


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "run.shotz=1",
            (
                "--set run.shotz=1: error[E201]: run.shotz: unknown key 'shotz'\n"
                "    allowed: seed, arrivals, shots, warmup, wall, record\n"
                "    fix:     did you mean 'shots'?"
            ),
        ),
        (
            "system.decoders.workers=1",
            (
                "--set system.decoders.workers=1: error[E402]: system.decoders: "
                "no such path in the scenario\n"
                "    got:     system.decoders.workers\n"
                "    allowed: qpu, rack, links, decoder\n"
                "    fix:     did you mean 'decoder'?"
            ),
        ),
        (
            "expect.none.max=1",
            (
                "--set expect.none.max=1: error[E402]: expect.none: no such path in the scenario\n"
                "    got:     expect.none.max\n"
                "    allowed: tail, misses, backlog, lost\n"
                "    fix:     write the path of an existing section"
            ),
        ),
        (
            "run.seed.deep=1",
            (
                "--set run.seed.deep=1: error[E402]: run.seed.deep: no such path in the scenario\n"
                "    got:     run.seed.deep\n"
                "    fix:     write the path of an existing section"
            ),
        ),
        (
            "run.shots",
            (
                "--set run.shots: error[E402]: not of the form path=value\n"
                "    got:     run.shots\n"
                "    fix:     write --set run.shots=1000"
            ),
        ),
        (
            "run.shots=many",
            (
                "--set run.shots=many: error[E203]: run.shots: wrong type\n"
                "    got:     many\n"
                "    allowed: a whole number\n"
                "    fix:     write a whole number"
            ),
        ),
        (
            "system.qpu.round_period=1.10",
            (
                "--set system.qpu.round_period=1.10: error[E301]: system.qpu.round_period: "
                "unit missing\n"
                "    got:     1.10\n"
                "    allowed: number with unit ps, ns, us, ms, s, min, h\n"
                "    fix:     write the unit, for example 1.1us"
            ),
        ),
        (
            "run.seed=010",
            (
                "--set run.seed=010: error[E101]: run.seed: reads differently in YAML 1.1 and 1.2\n"
                "    got:     010 is 8 in YAML 1.1, 10 in YAML 1.2\n"
                "    allowed: the same in both\n"
                "    fix:     write 10, or quote a text: '010'"
            ),
        ),
        (
            "run.seed=",
            (
                "--set run.seed=: error[E104]: run.seed: the file is empty\n"
                "    fix:     write schema: hil.scenario/1"
            ),
        ),
        (
            "system.qpu.drift={}",
            (
                "--set system.qpu.drift={}: error[E207]: system.qpu.drift: "
                "not yet supported: drift\n"
                "    fix:     remove 'drift'"
            ),
        ),
    ],
)
def test_bad_override(override: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ScenarioErrors) as info:
        load(tmp_path, overrides=[override])
    assert str(info.value) == message


# ------------------------------------------------------------------------------------ racks

CLOCKS_TO_STAGES = BASE[BASE.index("    clocks:") : BASE.index("  links:\n")]
USE_PROFILE = (CLOCKS_TO_STAGES, "    profile: generic-fpga\n")


def test_rack_profile_fills_the_rack(tmp_path: Path) -> None:
    rack = load(tmp_path, USE_PROFILE).scenario.system.rack
    assert rack.profile == "generic-fpga"
    assert rack.clocks["fpga"].freq_hz == 156_250_000
    assert tuple(rack.stages) == ("demod", "merge", "packetize", "apply")
    assert rack.stages["packetize"].evidence == "rtl"
    assert all(stage.source for stage in rack.stages.values())


def test_rack_profile_can_be_overridden(tmp_path: Path) -> None:
    override = (
        "    stages:\n      merge: {latency: 75ns, evidence: measured}\n      demod: {servers: 1}\n"
    )
    boards = "    boards:\n      ro1: {skew: 8ns}\n"
    rack = load(tmp_path, (USE_PROFILE[0], USE_PROFILE[1] + override + boards)).scenario.system.rack
    merge = rack.stages["merge"]
    assert (merge.latency, merge.evidence, merge.source) == (Const(ps=75_000), "measured", "")
    assert merge.at == ("agg",)
    assert rack.stages["demod"].servers == 1
    assert rack.stages["demod"].source
    assert tuple(rack.stages) == ("demod", "merge", "packetize", "apply")
    assert (rack.boards["ro0"].skew_ps, rack.boards["ro1"].skew_ps) == (0, 8_000)


def test_new_latency_needs_its_own_evidence(tmp_path: Path) -> None:
    override = "    stages:\n      merge: {latency: 75ns}\n"
    assert problems_of(tmp_path, (USE_PROFILE[0], USE_PROFILE[1] + override)) == [
        ("E202", "system.rack.stages.merge.evidence")
    ]


def test_set_reaches_into_the_rack_profile(tmp_path: Path) -> None:
    loaded = load(tmp_path, USE_PROFILE, overrides=["system.rack.stages.merge.servers=2"])
    assert loaded.scenario.system.rack.stages["merge"].servers == 2
    found = problems_of(tmp_path, USE_PROFILE, overrides=["system.rack.stages.mix.servers=2"])
    assert found == [("E402", "system.rack.stages.mix")]


# ------------------------------------------------------------------------------------ files


def test_service_table(tmp_path: Path) -> None:
    (tmp_path / "service.csv").write_text("events,ps\n20,9000000\n0,4000000\n")
    edit = ("by_events: {0: 4us, 20: 9us}", "table: service.csv")
    loaded = load(tmp_path, edit)
    service = loaded.profile.decoder.service
    assert service is not None
    assert service.table == "service.csv"
    assert isinstance(service.model, ByEvents)
    assert service.model.points == ((0, 4_000_000), (20, 9_000_000))
    resolved = loaded.resolved["bind"]["profiles"]["mil"]["decoder"]["service"]
    assert resolved["by_events"]["points"] == [[0, 4_000_000], [20, 9_000_000]]
    assert len(resolved["sha256"]) == 64


@pytest.mark.parametrize(
    "text", ["0,1\n0,2\n", "0\n", "0,1.5\n", "0,-1\n", "", "events,ps\n", "0,1ns\n"]
)
def test_bad_service_table(text: str, tmp_path: Path) -> None:
    (tmp_path / "service.csv").write_text(text)
    found = problems_of(tmp_path, ("by_events: {0: 4us, 20: 9us}", "table: service.csv"))
    assert [code for code, _ in found] in (["E203"], ["E205"])
    assert found[0][1].startswith("bind.profiles.mil.decoder.service")


def test_empirical_latency(tmp_path: Path) -> None:
    (tmp_path / "demod.txt").write_text("110000\n111000\n")
    edit = ("latency: 110ns", "latency: {dist: empirical, file: demod.txt}")
    loaded = load(tmp_path, edit)
    latency = loaded.scenario.system.rack.stages["demod"].latency
    assert isinstance(latency, Empirical)
    assert latency.values_ps == (110_000, 111_000)
    shown = loaded.resolved["system"]["rack"]["stages"]["demod"]["latency"]
    assert shown == {"dist": "empirical", "file": "demod.txt", "sha256": latency.sha256}
    (tmp_path / "demod.txt").write_text("110000\n112000\n")
    assert load(tmp_path, edit).resolved != loaded.resolved


def test_lognormal_parameters() -> None:
    latency = LogNormal(dist="lognormal", min_ps=850_000, p50_ps=900_000, p99_ps=1_200_000)
    assert latency.mu == pytest.approx(10.819778, abs=1e-6)  # ln 50000
    assert latency.sigma == pytest.approx(0.836466, abs=1e-6)  # ln 7 / 2.326348
    assert latency.mean_ps == pytest.approx(850_000 + 70_942, rel=1e-4)


# ------------------------------------------------------------------------------------ warnings


def test_high_load_is_a_warning(tmp_path: Path) -> None:
    loaded = load(tmp_path, ("0: 4us, 20: 9us", "0: 18.5us, 20: 19us"))
    (warning,) = loaded.warnings
    assert (warning.code, warning.level) == ("E503", "warning")
    assert "warning[E503]" in str(warning)


def test_absent_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as info:
        load_scenario(tmp_path / "none.yaml")
    assert info.value.exit_code == 2
    assert "none.yaml" in str(info.value)


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"", "E104"),
        (b"# nothing\n", "E104"),
        (b"- a\n- b\n", "E203"),
        (b"5\n", "E203"),
        (b"title: \xff\n", "E101"),
        (b"[" * 600, "E101"),
        (b"a: &a [x, x]\nb: &b [*a, *a]\n", "E201"),
    ],
)
def test_files_that_are_no_scenario(raw: bytes, code: str, tmp_path: Path) -> None:
    path = tmp_path / "scenario.yaml"
    path.write_bytes(raw)
    with pytest.raises(ScenarioErrors) as info:
        load_scenario(path)
    assert code in {problem.code for problem in info.value.problems}


def test_aliases_that_explode_are_refused(tmp_path: Path) -> None:
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{i}: &a{i} [" + ", ".join([f"*a{i - 1}"] * 10) + "]" for i in range(1, 12)]
    path = tmp_path / "scenario.yaml"
    path.write_text("\n".join(rows))
    with pytest.raises(ScenarioErrors) as info:
        load_scenario(path)
    assert "aliases expand without end" in str(info.value)
