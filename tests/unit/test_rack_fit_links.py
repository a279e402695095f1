"""Round trips of the FPGA's capture core and taps on the link: what they tell apart, and cannot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from synthetic_rack import gauss_markov, with_profile

from hil.errors import UsageError
from hil.rack.fit.stamps import read_csv
from hil.rack.fit.tap import read_tap
from hil.rack.plan import FRAME_OVERHEAD_BYTES, WorkloadSource, wire_ps
from hil.run.fit import FitOptions, fit_rack
from hil.scenario.load import load_scenario
from hil.wire.pcap import PcapngWriter
from hil.wire.roce import Flow, Target, send_only, write_only_imm
from hil.wire.rpc import (
    EnqueueSyndromes,
    Envelope,
    GetCorrections,
    Response,
    build_request,
    build_response,
    ptp_from_ns,
)

HEAD = "request_id,shot,local,kind,send_sec,send_nsec,recv_sec,recv_nsec,delta_ns\n"
S = 1_000_000_000


def fpga_rows(round_trips_ns: np.ndarray, rounds: int = 7) -> list[str]:
    """Rows of ``rounds`` enqueue frames and one get per shot, as the capture core writes them."""
    rows = []
    for i, ns in enumerate(round_trips_ns.tolist()):
        shot, local = divmod(i, rounds + 1)
        send = 1_700_000_000 * S + 999_000_000 + 1_100 * i
        kind = "enqueue" if local < rounds else "get"
        ns = ns if local < rounds else 10 * ns  # noqa: PLW2901 - a get waits for the decoder
        recv = send + ns
        rows.append(f"{i},{shot},{local},{kind},{send // S},{send % S},{recv // S},{recv % S},{ns}")
    return rows


def write_fpga(path: Path, rows: list[str]) -> Path:
    path.write_text(HEAD + "\n".join(rows) + "\n")
    return path


def round_trips(n: int) -> np.ndarray:
    return np.rint(3_500 + 150 * gauss_markov(n, 0.6, np.random.default_rng(3))).astype(np.int64)


def test_round_trips_are_split_in_halves_that_add_up(tmp_path: Path) -> None:
    ns = round_trips(40_000)
    path = write_fpga(tmp_path / "ptp_latency.csv", fpga_rows(ns))
    capture = read_csv(path)
    assert capture.round_trip
    assert (capture.stages, capture.rounds_per_shot) == (("round_trip",), 7)
    kept = ns.reshape(-1, 8)[:, :7].ravel() * 1_000
    assert (capture.durations_ps[0] == kept).all()
    assert "35000 frames of kind 'enqueue' used; left out: 5000 of kind get" in capture.notes
    assert any("not told apart" in note for note in capture.notes)

    result = fit_rack(FitOptions(csv=path, out=tmp_path))
    assert result.exit_code == 0
    links = (
        "up: {from: agg, to: decoder, profile: rocev2-uc-write-imm, rate: 100Gbit/s, mtu: 4096B}",
        "down: {from: decoder, to: agg, profile: rocev2-uc-send, rate: 100Gbit/s, mtu: 4096B}",
    )
    base = with_profile(tmp_path, "./ptp_latency.yaml").read_text()
    start, stop = base.index("    up: {from"), base.index("  decoder:\n    deadline")
    scenario = tmp_path / "scenario.yaml"
    scenario.write_text(base[:start] + "".join(f"    {x}\n" for x in links) + base[stop:])
    loaded = load_scenario(scenario).scenario
    up, down = loaded.system.links.up, loaded.system.links.down
    assert (up.evidence, down.evidence) == ("assumed", "assumed")
    assert "split is assumed" in up.source
    events = np.zeros((50, 5), dtype=np.int64)
    work = WorkloadSource(loaded).rack_only(0, 0, 50, events)
    reply_frame_ps = wire_ps(FRAME_OVERHEAD_BYTES - 20 + 64 + 12, 100 * 10**9)
    both = work.uplink_ps[:, -1] + work.downlink_ps - reply_frame_ps
    assert np.isin(both, kept).all(), "the two halves of one recorded round trip"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda row: row.replace("enqueue", "enqueue") + "9", "delta_ns differs from the stamps"),
        (lambda row: row.rsplit(",", 1)[0], "wrong number of columns"),
        (lambda row: ",".join([*row.split(",")[:5], "1000000000", *row.split(",")[6:]]),
         "send_nsec out of range"),
        (lambda row: row.replace(",1700000000,", ",x,", 1), "send_sec is not a count"),
    ],
)  # fmt: skip
def test_bad_rows_of_the_capture_core(change: object, words: str, tmp_path: Path) -> None:
    rows = fpga_rows(round_trips(80))
    rows[10] = change(rows[10])  # type: ignore[operator]
    with pytest.raises(UsageError) as info:
        read_csv(write_fpga(tmp_path / "a.csv", rows))
    assert words in info.value.message
    assert "line 12" in info.value.message


def test_negative_round_trips_and_gaps_of_the_capture_core(tmp_path: Path) -> None:
    rows = fpga_rows(np.full(80, -5))
    with pytest.raises(UsageError, match=r"negative round trip: 80 row\(s\)"):
        read_csv(write_fpga(tmp_path / "a.csv", rows))
    rows = fpga_rows(round_trips(80))
    del rows[20]
    with pytest.raises(UsageError, match=r"gap: 1 row\(s\), first line 22"):
        read_csv(write_fpga(tmp_path / "a.csv", rows))
    with pytest.raises(UsageError, match="column 'local' is missing"):
        read_csv(write_fpga(tmp_path / "b.csv", []) and _without_local(tmp_path / "b.csv"))


def _without_local(path: Path) -> Path:
    path.write_text(HEAD.replace("local,", ""))
    return path


# ------------------------------------------------------------------------------- taps

UP = Flow(b"\2\0\0\0\0\1", b"\2\0\0\0\0\2", "10.0.0.1", "10.0.0.2")
DOWN = Flow(b"\2\0\0\0\0\2", b"\2\0\0\0\0\1", "10.0.0.2", "10.0.0.1")
TARGET = Target(qp=5, rkey=7, base_va=0, stride=256)
SEAL = Envelope(0, 3, 0)


def tap_frames(
    acquire_ns: np.ndarray, events: np.ndarray, rounds: int = 3, *, replies: bool = False
) -> list[tuple[int, bytes]]:
    """(time, frame) of shots with ``rounds`` enqueues and a get; the first shot starts late."""
    frames, row = [], 0
    for number in range(1, len(acquire_ns) // rounds * (rounds + 1)):
        t0 = 1_700_000_000 * S + 1_100 * number
        stamp = ptp_from_ns(t0)
        if number % (rounds + 1) == rounds:
            message = build_request(GetCorrections(number, stamp, 0, 1, 1, SEAL))
            seen = t0
        else:
            bits = ((1 << int(events[row])) - 1).to_bytes(3, "little")
            message = build_request(EnqueueSyndromes(number, stamp, 0, number, 24, bits, SEAL))
            seen = t0 + int(acquire_ns[row])
            row += 1
        frames.append((seen, UP.frame(write_only_imm(TARGET, number, number % 64, message))))
        if replies:
            answer = build_response(Response(0, number, stamp, b"\0", SEAL))
            frames.append((seen + 2_000 + number, DOWN.frame(send_only(6, number, answer))))
    return frames


def write_tap(path: Path, frames: list[tuple[int, bytes]]) -> Path:
    with PcapngWriter(path) as out:
        for t_ns, frame in frames:
            out.write(t_ns, frame)
    return path


def test_a_tap_on_the_racks_clock_gives_acquire_and_events(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    acquire, events = rng.integers(150, 250, 90), rng.integers(0, 9, 90)
    frames = tap_frames(acquire, events)
    frames.insert(7, (frames[7][0], b"\xff" * 60))
    capture = read_tap(write_tap(tmp_path / "a.pcapng", frames), ptp_clock=True)
    assert (capture.stages, capture.rounds_per_shot) == (("acquire",), 3)
    assert capture.events is not None
    assert (capture.durations_ps[0] == acquire[2:89] * 1_000).all(), "whole shots only"
    assert (capture.events == events[2:89]).all()
    assert "1 frame(s) that are no QEC messages left out" in capture.notes
    assert "2 round(s) of incomplete shots at the ends left out" in capture.notes


def test_a_tap_without_the_racks_clock_gives_round_trips(tmp_path: Path) -> None:
    frames = tap_frames(np.full(30, 200), np.ones(30, dtype=np.int64), replies=True)
    capture = read_tap(write_tap(tmp_path / "a.pcapng", frames), ptp_clock=False)
    assert capture.round_trip
    assert capture.durations_ps[0, :4].tolist() == [2_004_000, 2_005_000, 2_006_000, 2_008_000]
    with pytest.raises(UsageError, match="no replies to enqueue_syndromes"):
        read_tap(
            write_tap(tmp_path / "b.pcapng", tap_frames(np.full(30, 200), np.ones(30))),
            ptp_clock=False,
        )


def test_damaged_taps_are_refused_with_their_frames(tmp_path: Path) -> None:
    frames = tap_frames(np.full(30, 200), np.ones(30, dtype=np.int64))
    broken = bytearray(frames[4][1])
    broken[-1] ^= 1
    cases = {
        r"ICRC wrong: 1 row\(s\), first frame 5": [*frames[:4], (0, bytes(broken)), *frames[5:]],
        r"gap: 1 row\(s\), first frame 5": frames[:4] + frames[5:],
        r"request twice: 1 row\(s\), first frame 6": frames[:5] + frames[4:],
        r"not in time order: 1 row\(s\)": [frames[5], *frames[:5], *frames[6:]],
        "the tap holds no shot": frames[:1],
    }
    for words, listed in cases.items():
        with pytest.raises(UsageError, match=words):
            read_tap(write_tap(tmp_path / "a.pcapng", listed), ptp_clock=True)
    early = tap_frames(np.full(30, -200), np.ones(30, dtype=np.int64))
    with pytest.raises(UsageError, match="negative duration of acquire"):
        read_tap(write_tap(tmp_path / "a.pcapng", early), ptp_clock=True)
    (tmp_path / "no.pcap").write_bytes(b"shot,round,a_ns\n")
    with pytest.raises(UsageError, match="neither pcap nor pcapng") as info:
        read_tap(tmp_path / "no.pcap", ptp_clock=True)
    assert info.value.exit_code == 2


def test_a_profile_from_a_tap(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    n = 12_000
    events = rng.binomial(20, 0.05, n)
    acquire = np.rint(600 + 6 * events + 5 * gauss_markov(n, 0.5, rng)).astype(np.int64)
    path = write_tap(tmp_path / "tap.pcapng", tap_frames(acquire, events))
    result = fit_rack(FitOptions(pcap=path, ptp_clock=True, out=tmp_path))
    assert result.exit_code == 0
    rack = load_scenario(with_profile(tmp_path, "./tap.yaml")).scenario.system.rack
    packetize = rack.stages["packetize"]
    assert rack.stages["acquire"].evidence == "measured"
    assert (packetize.latency.ps, packetize.evidence) == (0, "assumed")  # type: ignore[union-attr]
