"""What other people's programs say about our packets: scapy's ICRC, tshark's dissection."""

from __future__ import annotations

import subprocess
import warnings
from pathlib import Path

import numpy as np
import pytest

from hil.link.frame_wires import unix_wires
from hil.link.frames_endpoint import FramesEndpoint
from hil.run.runner import RunOptions, run_scenario
from hil.verdict.judge import Verdict
from hil.wire.pcap import PcapngWriter, read_capture
from hil.wire.roce import Bth, Flow, Opcode, Packet, Reth, Target, write_only_imm
from hil.wire.segments import acknowledgement, send_packets, write_packets

FRAMES = 1000
MACS = bytes.fromhex("02000000000a"), bytes.fromhex("02000000000b")
FLOW = Flow(*MACS, "192.0.2.1", "192.0.2.2", 4791)
BACK = Flow(*MACS[::-1], "192.0.2.2", "192.0.2.1", 4791)


def packets(seed: int) -> list[Packet]:
    """At least ``FRAMES`` packets of every kind that we send, with fields drawn at random."""
    rng = np.random.default_rng(seed)
    found: list[Packet] = []
    while len(found) < FRAMES:
        qp, psn, rkey = (int(rng.integers(1 << bits)) for bits in (24, 24, 32))
        target = Target(qp, rkey, int(rng.integers(1 << 40)), 8192)
        payload = rng.bytes(int(rng.integers(0, 1500)))
        slot = int(rng.integers(64))
        found += [
            *write_packets(target, psn, slot, payload, 512, with_imm=bool(rng.integers(2))),
            *send_packets(qp, psn, payload, 256),
            acknowledgement(qp, psn, int(rng.choice([0x1F, 0x60, 0x2C])), psn),
            write_only_imm(target, psn, slot, payload[:300]),
            Packet(
                Bth(Opcode.UC_WRITE_FIRST, qp, psn, congestion=int(rng.choice([0, 0x40, 0x80]))),
                Reth(target.base_va, rkey, 2048),
                payload=bytes(1024),
            ),
        ]
    return found[:FRAMES]


@pytest.mark.slow
def test_scapy_makes_the_same_icrc_of_a_thousand_frames() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from scapy.contrib.roce import BTH
        from scapy.layers.l2 import Ether

        for packet in packets(4):
            raw = FLOW.frame(packet)
            seen = Ether(raw)
            seen[BTH].icrc = None
            assert bytes(seen) == raw


def tshark(file: Path, *more: str) -> list[str]:
    """Lines that tshark prints; ``more``: what to show and for which frames."""
    command = ["tshark", "-n", "-r", str(file), *more]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def check(file: Path, count: int) -> list[str]:
    """All frames are RoCE to tshark and none is malformed; returns the opcodes."""
    wrong = "_ws.malformed || _ws.expert.severity >= error || !infiniband"
    assert tshark(file, "-Y", wrong) == []
    opcodes = tshark(file, "-T", "fields", "-e", "infiniband.bth.opcode")
    assert len(opcodes) == count
    return opcodes


class Recorder:
    """Writes what one end sends and receives; its tap."""

    def __init__(self, writer: PcapngWriter) -> None:
        self.writer, self.seen = writer, 0

    def __call__(self, sent: bool, t_ps: int, datagram: bytes) -> None:
        self.seen += 1
        flow = FLOW if sent else BACK
        self.writer.write(self.seen, flow.header(len(datagram)) + bytes(datagram))


def exchange(transport: str, tap: Recorder) -> None:
    """Writes of one and of several packets, sends, acknowledgements; PSNs that wrap."""
    macs, hosts = (FLOW.src_mac, FLOW.dst_mac), (FLOW.src, FLOW.dst)
    wires = unix_wires()
    ends = [
        FramesEndpoint(
            *(wires[i], macs[i], hosts[i]), peer_mac=macs[1 - i], psn_start=0xFFFFF0,
            mtu_bytes=1098, transport=transport, tap=None if i else tap,
        )
        for i in (0, 1)
    ]  # fmt: skip
    for end in ends:
        end.register(8, 4096)
    for i in (0, 1):
        ends[i].connect(ends[1 - i].address())
    for number in range(40):
        ends[0].post_write_imm(bytes(48 + 73 * number), number % 8)
        ends[1].post_send(b"CQPR" + bytes(40))
        for end in ends:
            for done in end.poll(8):
                end.release(done.slot)
    for end in (*ends, *ends):
        end.poll(8)
    for end in ends:
        end.close()


@pytest.mark.slow
@pytest.mark.needs("tshark")
def test_tshark_finds_nothing_wrong_in_an_exchange_on_both_transports(tmp_path: Path) -> None:
    file = tmp_path / "both.pcapng"
    with file.open("wb") as stream, PcapngWriter(stream) as writer:
        tap = Recorder(writer)
        exchange("uc", tap)
        exchange("rc", tap)
    opcodes = check(file, tap.seen)
    kinds = (
        *(Opcode.UC_WRITE_ONLY_IMM, Opcode.UC_SEND_ONLY, Opcode.RC_WRITE_FIRST),
        *(Opcode.RC_WRITE_MIDDLE, Opcode.RC_WRITE_LAST_IMM, Opcode.RC_ACKNOWLEDGE),
    )
    assert {str(int(opcode)) for opcode in kinds} <= set(opcodes)


@pytest.mark.live
@pytest.mark.slow
@pytest.mark.needs("tshark")
def test_tshark_finds_nothing_wrong_in_the_capture_of_a_run(
    scenarios: Path, tmp_path: Path, loopback: tuple[str, str]
) -> None:
    file, network = tmp_path / "run.pcapng", "bind.profiles.sil.network"
    overrides = [
        "run.shots=300",
        "run.warmup.shots=0",
        "expect={answers: {metric: answers.missing, equals: 0}}",
        f"{network}.rack_address={loopback[0]}",
        f"{network}.node_address={loopback[1]}",
    ]
    options = RunOptions(bind="sil", out=tmp_path / "run", pcap=file, overrides=overrides)
    result = run_scenario(scenarios / "surface_d5.yaml", options)
    assert result.verdict is Verdict.PASS
    check(file, len(list(read_capture(file))))
