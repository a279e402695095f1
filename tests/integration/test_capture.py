"""Captures of live runs: every frame of the rack, whole, counted, and the loop undisturbed."""

from __future__ import annotations

import os
import signal
from itertools import pairwise
from pathlib import Path

import pytest

import hil
from hil.cli import main
from hil.errors import RigError, UsageError
from hil.link.capture import HELD_BYTES, Capture, Ends
from hil.link.soft_roce import SoftRoceEndpoint
from hil.run.runner import RunOptions, run_scenario
from hil.timebase import monotonic_ps
from hil.verdict.judge import Verdict
from hil.wire.decode import decode
from hil.wire.pcap import read_capture

ENDS = Ends("127.0.0.2", "127.0.0.1", 4791)


@pytest.mark.live
@pytest.mark.usefixtures("no_orphans")
def test_every_frame_of_a_live_run_is_captured(
    scenarios: Path, tmp_path: Path, loopback: tuple[str, str],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    file, network = tmp_path / "run.pcapng", "bind.profiles.sil.network"
    result = run_scenario(
        scenarios / "surface_d5.yaml",
        RunOptions(
            bind="sil", out=tmp_path / "run", pcap=file,
            overrides=["run.shots=600", f"{network}.rack_address={loopback[0]}",
                       f"{network}.node_address={loopback[1]}"],
        ),
    )  # fmt: skip
    assert result.verdict is not Verdict.RIG_ERROR
    counts = dict(result.document.facts.detectors)
    sent, received = counts["rack.link.tx"], counts["rack.link.rx_ok"]
    assert (sent, counts["capture.left_out"]) == (600 * 7, 0)
    frames = [decode(found.data) for found in read_capture(file)]
    assert len(frames) == counts["capture.frames"] == sent + received
    assert all(fields["icrc_ok"] and fields["drop"] is None for fields in frames)
    up = [f for f in frames if f["src"].startswith(loopback[0])]
    assert len(up) == sent
    rounds = [f["qec"]["counter"] for f in up if f["rpc"]["message"] == "enqueue_syndromes"]
    assert rounds == [shot * 7 + k for shot in range(600) for k in range(6)]
    times = [found.t_ns for found in read_capture(file)]
    assert all(b >= a for a, b in pairwise(times))
    with hil.open_trace(result.trace) as trace:
        packets = trace.stream("packets", ["kind", "psn"])
    assert [f["psn"] for f in up if f["rpc"]["message"] == "enqueue_syndromes"] == [
        int(p) for p, kind in zip(packets["psn"], packets["kind"], strict=True)
        if kind == 0 and p != 0xFFFFFFFF
    ]  # fmt: skip
    assert main(["wire", "decode", str(file)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(frames)
    _scapy_reads(file, len(frames))


def _scapy_reads(file: Path, count: int) -> None:
    from scapy.contrib.roce import BTH
    from scapy.utils import RawPcapNgReader

    with RawPcapNgReader(str(file)) as reader:
        packets = [data for data, _ in reader]
    assert len(packets) == count
    from scapy.layers.l2 import Ether

    bth = Ether(packets[0])[BTH]
    assert bth.opcode == 0x2B
    assert bth.icrc.to_bytes(4, "big") == packets[0][-4:]


def test_what_finds_no_room_is_counted_and_left_out(tmp_path: Path) -> None:
    """A writer that stands still: memory stays bounded, the loop is not held up."""
    file, frame = tmp_path / "a.pcapng", bytes(1000)
    with Capture(file, ENDS) as capture:
        os.kill(capture._process.pid, signal.SIGSTOP)
        before = monotonic_ps()
        for _ in range(5000):
            capture.tap(True, monotonic_ps(), frame)
        spent_us = (monotonic_ps() - before) / 5000 / 1e6
        assert len(capture._held) <= HELD_BYTES + 2000
        os.kill(capture._process.pid, signal.SIGCONT)
    assert capture.left_out > 1000
    assert capture.taken + capture.left_out == 5000
    assert len(list(read_capture(file))) == capture.taken == capture.written
    assert spent_us < 100, "a full pipe must not block"


def test_a_capture_that_lacks_frames_is_a_rig_error(tmp_path: Path) -> None:
    capture = Capture(tmp_path / "a.pcapng", ENDS)
    capture.tap(True, monotonic_ps(), bytes(100))
    capture._process.kill()
    with pytest.raises(RigError, match="lacks frames"):
        capture.close()


def test_foreign_datagrams_are_not_the_racks(tmp_path: Path, loopback: tuple[str, str]) -> None:
    seen: list[bool] = []
    rack = SoftRoceEndpoint(loopback[0], tap=lambda sent, _t, _data: seen.append(sent))
    node = SoftRoceEndpoint(loopback[1])
    rack.register(1, 128)
    node.register(1, 128)
    rack.connect(node.address())
    node.connect(rack.address())
    rack.post_send(b"abcd")
    node.post_send(b"efgh")
    assert rack.poll(1)
    assert seen == [True, False]
    rack.close()
    node.close()


def test_captures_are_refused_where_there_is_nothing_to_capture(
    scenarios: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, file = str(scenarios / "surface_d5.yaml"), tmp_path / "a.pcapng"
    out = str(tmp_path / "run")
    assert main(["run", path, "--bind", "mil", "--pcap", str(file), "--out", out]) == 2
    assert "no frame travels in a virtual run" in capsys.readouterr().err
    assert not file.exists()
    file.write_text("mine")
    with pytest.raises(UsageError, match="exists already"):
        Capture(file, ENDS)
    assert file.read_text() == "mine"
    assert main(["run", path, "--pcap", str(tmp_path / "no" / "a.pcapng"), "--out", out]) == 2
    assert "cannot create the capture file" in capsys.readouterr().err
    assert not Path(out).exists()
