"""What a soft-RoCE endpoint really puts on the network, seen by a packet socket."""

from __future__ import annotations

import os
import socket
import time

import pytest

from hil.link.soft_roce import SoftRoceEndpoint
from hil.wire.decode import one_line
from hil.wire.roce import Frame, Opcode, parse_frame

ETH_P_ALL = 3


def loopback(last: int) -> str:
    number = os.getpid() * 4 + last
    return f"127.{11 + (number >> 16) % 200}.{number >> 8 & 255}.{number & 255}"


def sniffer() -> socket.socket:
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    opened.bind(("lo", 0))
    opened.settimeout(1.0)
    return opened


@pytest.mark.needs("net_raw")
def test_frames_leave_with_identification_0_df_and_an_exact_icrc() -> None:
    with sniffer() as tap:
        rack, node = SoftRoceEndpoint(loopback(0)), SoftRoceEndpoint(loopback(1))
        rack.register(1, 128)
        node.register(8, 128)
        rack.connect(node.address())
        node.connect(rack.address())
        for slot in range(8):
            rack.post_write_imm(bytes(40 + slot), slot)
        seen: dict[int, Frame] = {}
        end = time.monotonic() + 5
        while len(seen) < 8 and time.monotonic() < end:
            raw = tap.recv(65536)
            if raw[26:30] != socket.inet_aton(loopback(0)):
                continue
            frame = parse_frame(raw)
            seen[frame.packet.bth.psn] = frame
            assert "ICRC ok" in one_line(raw)
        rack.close()
        node.close()
    assert sorted(seen) == list(range(8))
    for psn, frame in seen.items():
        assert (frame.ip.ident, frame.ip.flags_fragment, frame.icrc_ok) == (0, 0x4000, True)
        assert (frame.udp.src_port, frame.udp.dst_port, frame.udp.length) == (
            *(4791, 4791, frame.ip.total_length - 20),
        )
        assert frame.packet.bth.opcode == Opcode.UC_WRITE_ONLY_IMM
        assert frame.packet.bth.pad == -(40 + psn) % 4
        assert len(frame.packet.payload) == 40 + psn
