"""hil rack fit: known truth is found again, broken peers are refused, bad captures are named."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from synthetic_rack import gauss_markov, rack, with_profile, write_stamps

from hil.errors import UsageError
from hil.rack.fit.capture import Capture
from hil.rack.fit.check import State, Statistic, check_fit, ks_distance, lag_1, windows, worst
from hil.rack.fit.model import CLASS_ROWS, event_classes, fit_recording
from hil.rack.fit.stamps import read_csv
from hil.run.fit import FitOptions, FitResult, fit_rack
from hil.scenario.load import load_scenario
from hil.scenario.problems import ScenarioErrors
from hil.scenario.rack_profile import profile_rows

N = 100_000


def capture(durations: np.ndarray, events: np.ndarray | None, rounds: int = 8) -> Capture:
    n = durations.shape[1] // rounds * rounds
    return Capture(
        "made-up", ("demod", "merge"), durations[:, :n],
        None if events is None else events[:n], rounds, (),
    )  # fmt: skip


def split(whole: Capture, share: float = 0.7) -> tuple[Capture, Capture]:
    cut = int(whole.n_rounds * share) // 8 * 8
    return whole.part(0, cut), whole.part(cut, whole.n_rounds)


# --------------------------------------------------------------------------- known truth


@pytest.mark.parametrize("seed", [1, *(pytest.param(s, marks=pytest.mark.slow) for s in (2, 3))])
def test_known_truth_is_reproduced_within_three_percent(seed: int) -> None:
    seen, unseen = split(capture(*rack(2 * N, seed)))
    check = check_fit(fit_recording(seen), unseen)
    assert check.state is State.REPRODUCED
    errors = {entry.name: abs(entry.error) for entry in check.statistics}
    assert max(errors["p50"], errors["p99"], errors["p99.9"]) < 0.03
    assert errors["p99 of 32 rounds"] < 0.03


def test_an_independent_draw_misses_the_sums_that_a_queue_sees() -> None:
    seen, unseen = split(capture(*rack(N, 1)))
    check = check_fit(fit_recording(seen), unseen)
    assert worst(check.independent) is State.NOT_REPRODUCED
    wrong = {s.name: s.error for s in check.independent if s.state is State.NOT_REPRODUCED}
    assert set(wrong) == {"p99 of 32 rounds", "lag-1 correlation"}
    assert wrong["p99 of 32 rounds"] < -0.1


# --------------------------------------------------------------------------- broken peers


def test_a_fit_to_shuffled_rounds_is_refused() -> None:
    durations, events = rack(N, 2)
    seen, unseen = split(capture(durations, events))
    order = np.random.default_rng(0).permutation(seen.n_rounds)
    assert seen.events is not None
    shuffled = Capture(
        "shuffled", seen.stages, seen.durations_ps[:, order], seen.events[order], 8, ()
    )
    assert check_fit(fit_recording(shuffled), unseen).state is State.NOT_REPRODUCED


def test_a_rack_that_drifts_is_refused() -> None:
    durations, events = rack(N, 3)
    durations[0, N // 2 :] += 20_000
    seen, unseen = split(capture(durations, events))
    check = check_fit(fit_recording(seen), unseen)
    assert check.state is State.NOT_REPRODUCED
    assert "p50" in {s.name for s in check.statistics if s.state is State.NOT_REPRODUCED}


@pytest.mark.slow
def test_stages_that_are_mixed_up_are_refused() -> None:
    """Dependence between stages is part of the tail: shifting one stage in time loses it."""
    n = 2 * N
    common = 60_000 * gauss_markov(n, 0.9, np.random.default_rng(4))
    durations = np.rint(np.stack([300_000 + common, 300_000 + common])).astype(np.int64)
    seen, unseen = split(capture(durations, None))
    assert check_fit(fit_recording(seen), unseen).state is State.REPRODUCED
    mixed = np.stack([seen.durations_ps[0], np.roll(seen.durations_ps[1], 5_000)])
    wrong = Capture("mixed", seen.stages, mixed, None, 8, ())
    check = check_fit(fit_recording(wrong), unseen)
    assert "p99.9" in {s.name for s in check.statistics if s.state is State.NOT_REPRODUCED}


def test_dependence_on_events_that_is_not_recorded_is_refused() -> None:
    """Another event rate later on: a fit without event counts cannot follow it."""
    durations, events = rack(N, 5)
    busy = np.random.default_rng(5).binomial(24, 0.12, size=N - 7 * N // 10)
    late = slice(7 * N // 10, N)
    durations[0, late] += 4_000 * (busy - events[late])
    events[late] = busy
    seen, unseen = split(capture(durations, events))
    assert check_fit(fit_recording(seen), unseen).state is not State.NOT_REPRODUCED
    blind = [Capture(p.file, p.stages, p.durations_ps, None, 8, ()) for p in (seen, unseen)]
    assert check_fit(fit_recording(blind[0]), blind[1]).state is State.NOT_REPRODUCED


def test_too_few_data_are_inconclusive_and_say_how_many_are_needed() -> None:
    """Few long episodes: whether the tail is right cannot be told."""
    slow = np.repeat(np.random.default_rng(6).random(20) < 0.3, 1_000) * 60_000
    durations = np.stack([np.full(20_000, 110_000), 60_000 + slow]).astype(np.int64)
    seen, unseen = split(capture(durations, None))
    check = check_fit(fit_recording(seen), unseen)
    assert check.state is State.INCONCLUSIVE
    assert check.rounds_needed > 20_000


@pytest.mark.parametrize(
    ("error", "noise", "state"),
    [
        (0.02, 0.01, State.REPRODUCED),
        (-0.04, 0.01, State.NOT_REPRODUCED),
        (0.04, 0.05, State.INCONCLUSIVE),
        (0.02, 0.2, State.INCONCLUSIVE),
        (0.02, math.inf, State.INCONCLUSIVE),
    ],
)
def test_states_of_a_statistic(error: float, noise: float, state: State) -> None:
    assert Statistic("x", "ps", 1.0, 1.0 + error, error, 0.03, noise).state is state


# ------------------------------------------------------------------------------ its parts


def test_statistics_by_hand() -> None:
    assert windows(np.arange(34)).tolist() == [sum(range(32)), sum(range(1, 33)), sum(range(2, 34))]
    assert ks_distance(np.array([1, 2, 3, 4]), np.array([3, 4, 5, 6])) == 0.5
    assert lag_1(np.array([1, -1] * 500)) == pytest.approx(-1.0, abs=0.01)
    assert lag_1(np.full(9, 7)) == 0.0


def test_classes_of_event_counts_are_large_enough() -> None:
    events = np.repeat([0, 1, 2, 3, 9], [1000, CLASS_ROWS - 1, 1, 400, 5])
    assert event_classes(events).tolist() == [0, 1, 3]
    assert event_classes(np.zeros(10, dtype=np.int64)).tolist() == [0]


def test_fit_and_its_file_are_deterministic() -> None:
    from hil.scenario.recording import decode, encode

    first, second = (encode(fit_recording(capture(*rack(5_000, 7)))) for _ in range(2))
    assert first == second
    again = decode(first)
    assert (again.stages, again.n_rounds, again.rounds_per_shot) == (("demod", "merge"), 5_000, 8)


# -------------------------------------------------------------------- the whole command


@pytest.fixture(scope="module")
def stamps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stamps(tmp_path_factory.mktemp("stamps") / "lab.csv", *rack(N, 7))


@pytest.fixture(scope="module")
def result(stamps: Path) -> FitResult:
    return fit_rack(FitOptions(csv=stamps, out=stamps.parent / "racks"))


def test_fit_writes_a_profile_with_evidence_measured(stamps: Path, result: FitResult) -> None:
    tmp_path = stamps.parent / "racks"
    assert (result.state, result.exit_code) == (State.REPRODUCED, 0)
    assert [path.name for path in result.files] == ["lab.json", "lab.svg", "lab.npz", "lab.yaml"]
    data = json.loads((tmp_path / "lab.json").read_text())
    assert (data["state"], data["evidence"]) == ("reproduced", "measured")
    assert data["rounds"] == {"fit": 70_000, "held_out": 30_000,
                              "bootstrap_block": data["rounds"]["bootstrap_block"]}  # fmt: skip
    _, rows = profile_rows(str(tmp_path / "lab.yaml"))
    evidence = {part: kind for part, _, kind, _ in rows}
    assert evidence == {"stage demod": "measured", "stage merge": "measured",
                        "stage packetize": "rtl", "stage apply": "assumed"}  # fmt: skip
    assert all(source for *_, source in rows)
    fitted = [source for *_, evidence, source in rows if evidence == "measured"]
    assert fitted
    assert all("held-out quantiles within 3 %" in source for source in fitted)
    with pytest.raises(UsageError, match="exists already"):
        fit_rack(FitOptions(csv=stamps, out=tmp_path))


def test_a_refused_fit_writes_no_profile(tmp_path: Path) -> None:
    durations, events = rack(N, 3)
    durations[0, N // 2 :] += 20_000
    path = write_stamps(tmp_path / "drift.csv", durations, events)
    result = fit_rack(FitOptions(csv=path, out=tmp_path / "out"))
    assert (result.state, result.exit_code) == (State.NOT_REPRODUCED, 1)
    assert "no profile written" in result.verdict
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["drift.json", "drift.svg"]


def test_an_independent_fit_is_labelled_assumed(stamps: Path, tmp_path: Path) -> None:
    result = fit_rack(FitOptions(csv=stamps, out=tmp_path, name="loose", independent=True))
    assert result.exit_code == 0
    assert "not reproduced" in result.verdict
    assert result.state is State.NOT_REPRODUCED, "of the model that was asked for"
    assert json.loads((tmp_path / "loose.json").read_text())["state"] == "not reproduced"
    scenario = with_profile(tmp_path, "./loose.yaml")
    stage = load_scenario(scenario).scenario.system.rack.stages["demod"]
    assert stage.evidence == "assumed"
    profile = tmp_path / "loose.yaml"
    profile.write_text(profile.read_text().replace("evidence: assumed", "evidence: measured", 1))
    with pytest.raises(ScenarioErrors, match="E510") as info:
        load_scenario(scenario)
    assert "loose.yaml:" in str(info.value), "the profile's file and line are named"


def test_a_profile_lies_anywhere_and_its_recording_beside_it(
    result: FitResult, tmp_path: Path
) -> None:
    shutil.copytree(result.files[0].parent, tmp_path / "racks")
    scenario = with_profile(tmp_path, "racks/lab.yaml")
    latency = load_scenario(scenario).resolved["system"]["rack"]["stages"]["demod"]["latency"]
    assert latency["file"] == "racks/lab.npz"
    assert set(latency) == {"dist", "file", "sha256", "stage", "half"}
    recording = tmp_path / "racks" / "lab.npz"
    raw = bytearray(recording.read_bytes())
    raw[len(raw) // 2] ^= 1
    recording.write_bytes(raw)
    with pytest.raises(ScenarioErrors, match="is another one") as info:
        load_scenario(scenario)
    assert info.value.exit_code == 2
    recording.unlink()
    with pytest.raises(ScenarioErrors, match=r"cannot read file 'racks/lab\.npz'"):
        load_scenario(scenario)


def test_stage_that_the_recording_lacks(result: FitResult, tmp_path: Path) -> None:
    shutil.copytree(result.files[0].parent, tmp_path, dirs_exist_ok=True)
    profile = tmp_path / "lab.yaml"
    profile.write_text(profile.read_text().replace("stage: merge}", "stage: mergee}"))
    with pytest.raises(ScenarioErrors, match="the recording has no stage 'mergee'"):
        load_scenario(with_profile(tmp_path, "./lab.yaml"))


# ------------------------------------------------------------------------- hostile input


def refused(tmp_path: Path, text: str, **options: object) -> str:
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(UsageError) as info:
        fit_rack(FitOptions(csv=path, out=tmp_path / "out", **options))  # type: ignore[arg-type]
    assert info.value.exit_code == 2
    assert not (tmp_path / "out").exists()
    return info.value.message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "column 'shot' is missing"),
        ("shot,rund,a_ns\n", "did you mean 'rund'?"),
        ("shot,round,a\n0,0,5\n", "column 'a' names no unit"),
        ("shot,round\n0,0\n", "too few columns of times"),
        ("shot,round,t_a_ns\n0,0,5\n", "too few columns of times"),
        ("shot,round,t_a_ns,b_ns\n", "stamps and durations are mixed"),
        ("shot,round,a_ns,a_ns\n", "column twice"),
        ("shot,round,a_ns\n0,0,x\n0,1,nan\n0,2,\n", "not a number: 3 row(s), first line 2: x"),
        ("shot,round,a_ns\n0,0,5\n0,1\n", "wrong number of columns: 1 row(s), first line 3"),
        ("shot,round,a_ns\n0,0,5\n0,2,5\n", "gap: 1 row(s), first line 3: shot 0 round 0"),
        ("shot,round,a_ns\n0,1,5\n0,0,5\n", "not in time order: 1 row(s), first line 3"),
        ("shot,round,a_ns\n0,0,5\n0,0,5\n", "round twice: 1 row(s), first line 3"),
        ("shot,round,a_ns\n0,0,5\n0,1,-5\n", "negative duration of a: 1 row(s), first line 3"),
        ("shot,round,t_a_ns,t_b_ns\n0,0,9,5\n", "negative duration of b: 1 row(s), first line 2"),
        ("shot,round,a_ns\n-1,0,5\n", "shot is not a count: 1 row(s), first line 2: -1"),
        ("shot,round,events,a_ns\n0,0,1.5,5\n", "events is not a count"),
        ("shot,round,events,a_ns\n0,0,9999999,5\n", "event count out of range"),
        ("shot,round,a_us\n0,0,1e29\n", "time out of range"),
        ("shot,round,a_ns\n0,0,5\n0,1,5\n", "too few rounds to judge p99.9"),
        ("shot,round,decode_ns\n0,0,5\n", "holds no part of the rack"),
        ('shot,round,a_ns\n0,0,"5\n', "not CSV"),
    ],
)  # fmt: skip
def test_bad_captures(text: str, words: str, tmp_path: Path) -> None:
    assert words in refused(tmp_path, text)


def test_every_reason_is_counted(tmp_path: Path) -> None:
    message = refused(tmp_path, "shot,round,a_ns\n0,0,x\n0,1\n0,2,y\na,3,1\n")
    assert message.startswith(f"{tmp_path / 'bad.csv'}: 4 bad row(s)")
    for reason in ("not a number: 2", "wrong number of columns: 1", "shot is not a count: 1"):
        assert reason in message


def test_a_short_shot_is_a_gap(tmp_path: Path) -> None:
    rows = [(s, r) for s in range(5) for r in range(4) if (s, r) != (2, 3)]
    text = "shot,round,a_ns\n" + "".join(f"{s},{r},5\n" for s, r in rows)
    assert "gap at the end of a shot: 1 row(s), first line 13: shot 2 has 3 of 4" in refused(
        tmp_path, text
    )


def test_shuffled_rows_are_refused_by_their_order(tmp_path: Path) -> None:
    lines = write_stamps(tmp_path / "a.csv", *rack(400, 1)).read_text().splitlines()
    mixed = np.random.default_rng(1).permutation(lines[1:]).tolist()
    assert "not in time order" in refused(tmp_path, "\n".join([lines[0], *mixed]))


def test_incomplete_shots_at_the_ends_are_left_out_and_said(tmp_path: Path) -> None:
    path = tmp_path / "ends.csv"
    rows = [(s, r) for s in range(6) for r in range(4)][2:-1]
    path.write_text("shot,round,a_ns\n" + "".join(f"{s},{r},{s}.{r}\n" for s, r in rows))
    found = read_csv(path)
    assert (found.n_rounds, found.rounds_per_shot) == (16, 4)
    assert found.durations_ps[0, :2].tolist() == [1_000, 1_100]
    assert "5 row(s) of incomplete shots at the ends left out" in found.notes


def test_too_few_rounds_name_n_min_and_the_share_that_would_do(tmp_path: Path) -> None:
    path = write_stamps(tmp_path / "few.csv", *rack(8_192, 1))
    with pytest.raises(UsageError) as info:
        fit_rack(FitOptions(csv=path, out=tmp_path))
    assert ">= 2995 in each part" in info.value.allowed
    assert info.value.fix == "give --hold-out 0.37"
    result = fit_rack(FitOptions(csv=path, out=tmp_path, hold_out=0.37))
    assert result.fitted.check.n_held_out >= 2_995


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "give one of --csv and --pcap"),
        ({"csv": Path("a"), "pcap": Path("b")}, "give one of --csv and --pcap"),
        ({"csv": Path("none.csv")}, "the capture cannot be read"),
        ({"csv": Path("none.csv"), "name": "../x"}, "not a name for a profile"),
        ({"pcap": Path("none.pcap")}, "the capture cannot be read"),
    ],
)
def test_wrong_options(options: dict[str, Path], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        fit_rack(FitOptions(**options))  # type: ignore[arg-type]


def test_names_of_our_stamps_become_hops(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("shot,round,t_intended_ps,t_syndrome_ps,t_tx_ps,t_rx_ps\n0,0,0,110,150,1050\n")
    found = read_csv(path)
    assert found.stages == ("acquire", "packetize", "uplink")
    assert found.durations_ps[:, 0].tolist() == [110, 40, 900]
