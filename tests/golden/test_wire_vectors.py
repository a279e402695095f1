"""Bytes against documented examples and recorded frames (``tests/data/rxe``, ``hsb_frames``)."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from hil.errors import WireError
from hil.wire import roce, rpc
from hil.wire.decode import decode, one_line
from hil.wire.icrc import icrc_of_headers
from hil.wire.pcap import read_capture
from hil.wire.roce import Flow, Target
from hil.wire.roce_batch import write_imm_rows

DATA = Path(__file__).parents[1] / "data"
RXE = [frame.data for frame in read_capture(DATA / "rxe" / "rxe.pcap")]
HOST_MAC, FPGA_MAC = bytes.fromhex("123456789abc"), bytes.fromhex("cafec0ffee00")
UP = Flow(FPGA_MAC, HOST_MAC, "192.168.0.2", "192.168.0.101")
ENQUEUE = rpc.EnqueueSyndromes(7, rpc.ptp_from_ns(1_000_000_250), 0, 7, 12, b"\x8d\x09", None)

EXAMPLE_A = bytes.fromhex(
    "123456789abccafec0ffee000800 4500007c000040004011b8b9c0a80002c0a80065 300012b700680000"
    "2a00ffff0000123400000000 0000000010000000 0000abcd 00000040"
    "5251554382bed87e21000000000000007886010000000000 0000000000000000"
    "000000000000000000000000000000000800000000000000a000000000000000 a1514ed2"
)
EXAMPLE_B = bytes.fromhex(
    "0200000000fe0200000000010800 45000080000040004011266b0a0000020a000001 300012b7006c0000"
    "2b00ffff0000004100000105 0000000010000500 00001f02 00000040 00105005"
    "5251554382bed87e2200000007000000fa00000001000000000000000000000007000000000000000000000000"
    "0000000c000000000000008d09000000000000 25bf3edb"
)
EXAMPLE_C = bytes.fromhex(
    "cafec0ffee00123456789abc0800 4500004c000040004011b8e9c0a80065c0a80002 c00012b700380000"
    "2400ffff0000000200000000"
    "5351554300000000010000000700000000000000000000000100000000000000 4d762d50"
)
ACK = (
    "525400123456525400aa00010800 45000030000040004011b6b9c0000201c0000202 c12312b7001c0000"
    "1100ffff0000001500"
)


def test_example_a_write_only() -> None:
    stamp = rpc.ptp_from_ns(99_960)
    message = rpc.EnqueueSyndromes(0, stamp, 0, 0, 8, b"\xa0", None)
    packet = roce.write_only(
        Target(0x1234, 0xABCD, 0x10000000, 256), 0, 0, rpc.pad(rpc.build_request(message))
    )
    assert UP.frame(packet).hex() == EXAMPLE_A.hex()


def test_example_b_write_only_with_immediate_also_in_batch() -> None:
    flow = Flow(
        bytes.fromhex("020000000001"), bytes.fromhex("0200000000fe"), "10.0.0.2", "10.0.0.1"
    )
    target = Target(0x41, 0x1F02, 0x10000000, 256)
    payload = rpc.pad(rpc.build_request(ENQUEUE))
    assert flow.frame(roce.write_only_imm(target, 0x105, 5, payload)).hex() == EXAMPLE_B.hex()
    row = np.frombuffer(payload, np.uint8)[None]
    rows = write_imm_rows(row, np.array([5]), 0x105, target, flow.path)
    assert flow.frame_rows(rows)[0].tobytes().hex() == EXAMPLE_B.hex()


def test_example_c_send_only() -> None:
    flow = Flow(HOST_MAC, FPGA_MAC, "192.168.0.101", "192.168.0.2", src_port=0xC000)
    response = rpc.pad(rpc.build_response(rpc.Response(0, 7, 0, b"\x01", None)), 32)
    assert flow.frame(roce.send_only(2, 0, response)).hex() == EXAMPLE_C.hex()


@pytest.mark.parametrize(
    ("rest", "psn", "syndrome"),
    [
        ("001002 1f000003 0e9e3e9f", 0x1002, roce.ACK_NO_CREDIT_LIMIT),
        ("001003 60000003 74070291", 0x1003, roce.NAK_SEQUENCE),
        ("001003 2c000003 f1e0c040", 0x1003, 0x2C),
    ],
)
def test_acknowledgements_of_rc_are_parsed(rest: str, psn: int, syndrome: int) -> None:
    raw = bytes.fromhex(ACK + rest)
    frame = roce.parse_frame(raw)
    assert frame.icrc_ok
    assert (frame.packet.bth.psn, frame.packet.aeth) == (psn, (syndrome, 3))
    assert frame.pack() == raw


# -- recorded: Linux rdma_rxe --------------------------------------------------------------------


def test_every_rxe_frame_parses_to_its_documented_fields_and_packs_back() -> None:
    known = json.loads((DATA / "rxe" / "frames.json").read_text())
    assert len(known) == len(RXE) == 63
    for raw, want in zip(RXE, known, strict=True):
        frame = roce.parse_frame(raw)
        bth, packet = frame.packet.bth, frame.packet
        got = {
            "length": len(raw),
            "ip_id": frame.ip.ident,
            "src_port": frame.udp.src_port,
            "opcode": bth.opcode,
            "se": int(bth.solicited),
            "mig": int(bth.migreq),
            "pad": bth.pad,
            "tver": bth.version,
            "pkey": bth.pkey,
            "dest_qp": bth.dest_qp,
            "ack_request": int(bth.ack_request),
            "psn": bth.psn,
            "payload_length": len(packet.payload),
            "icrc": frame.icrc.hex(),
        }
        if packet.reth:
            got |= dict(zip(("va", "rkey", "dma_length"), packet.reth, strict=True))
        if packet.imm is not None:
            got |= {"imm": packet.imm}
        if packet.aeth:
            got |= {"syndrome": packet.aeth.syndrome, "msn": packet.aeth.msn}
        assert got == {k: v for k, v in want.items() if k in got}
        assert {"va", "imm", "syndrome"} & set(got) == {"va", "imm", "syndrome"} & set(want)
        assert frame.icrc_ok
        assert frame.pack() == raw


def test_rxe_payloads_and_times_are_as_documented() -> None:
    captured = list(read_capture(DATA / "rxe" / "rxe.pcap"))
    known = json.loads((DATA / "rxe" / "frames.json").read_text())
    assert [c.t_ns for c in captured] == [1000 * frame["t_us"] for frame in known]
    checked = 0
    for one, want in zip(captured, known, strict=True):
        payload = roce.parse_frame(one.data).packet.payload
        if len(payload) == 48:
            factor = 7 if want["sender"] == "host" else 3
            assert payload == bytes((factor * want["imm"] + j) & 0xFF for j in range(48))
            checked += 1
    assert checked > 20


def test_every_covered_bit_of_a_recorded_frame_changes_the_icrc() -> None:
    raw = RXE[20]  # UC WRITE ONLY WITH IMM
    masked = {15, 22, 24, 25, 40, 41, 46}
    sealed = raw[-4:]
    assert roce.parse_frame(raw).packet.bth.opcode == roce.Opcode.UC_WRITE_ONLY_IMM
    for bit in range(14 * 8, (len(raw) - 4) * 8):
        spoiled = bytearray(raw)
        spoiled[bit // 8] ^= 1 << bit % 8
        crc = icrc_of_headers(bytes(spoiled[14:34]), bytes(spoiled[34:42]), bytes(spoiled[42:-4]))
        assert (struct.pack("<I", crc) == sealed) == (bit // 8 in masked), f"byte {bit // 8}"


# -- recorded: NVIDIA HSB RTL --------------------------------------------------------------------


def recorded(name: str) -> list[bytes]:
    lines = (DATA / "hsb_frames" / name).read_text().splitlines()
    return [bytes.fromhex(line.split()[-1]) for line in lines if line.startswith("DATA ")]


def player_request(index: int, stamp_ns: int) -> bytes:
    message = rpc.EnqueueSyndromes(
        index, rpc.ptp_from_ns(stamp_ns), 0, index, 8, bytes([0xA0 + index]), None
    )
    return rpc.pad(rpc.build_request(message))


def test_hsb_windows_with_metadata_are_rebuilt_byte_for_byte() -> None:
    frames = recorded("hsb_window64_meta.txt")
    target = Target(0x1234, 0xABCD, 0x10000000, 256)
    stamps = (99_960, 101_960, 103_970)
    assert len(frames) == 6
    for window, stamp in enumerate(stamps):
        data, meta = frames[2 * window : 2 * window + 2]
        payload = player_request(window, stamp)
        assert UP.frame(roce.write_only(target, 2 * window, window, payload)) == data
        block = roce.parse_frame(meta).packet.payload
        assert int.from_bytes(block[8:12], "big") == zlib.crc32(payload) ^ 0xFFFFFFFF
        behind = Target(0x1234, 0xABCD, 0x10000000 + 128, 256)
        assert UP.frame(roce.write_only_imm(behind, 2 * window + 1, window, block)) == meta


def test_hsb_windows_without_metadata_are_rebuilt_byte_for_byte_in_one_batch() -> None:
    frames = recorded("hsb_window512_nometa.txt")
    payloads = np.zeros((3, 512), np.uint8)
    stamps = (99_960, 101_980, 104_010)
    first = player_request(0, stamps[0]) + player_request(1, 0) + player_request(2, 0)
    payloads[0, :192] = np.frombuffer(first, np.uint8)
    for window in (1, 2):
        stamp = struct.pack("<Q", rpc.ptp_from_ns(stamps[window]))
        payloads[window, 16:24] = np.frombuffer(stamp, np.uint8)
    target = Target(0x1234, 0xABCD, 0x10000000, 1024)
    rows = UP.frame_rows(write_imm_rows(payloads, np.arange(3), 0, target, UP.path))
    assert [row.tobytes() for row in rows] == frames


def test_hsb_data_frames_all_have_a_right_icrc() -> None:
    frames = recorded("hsb_window64_meta.txt") + recorded("hsb_window512_nometa.txt")
    assert [roce.parse_frame(raw).icrc_ok for raw in frames] == [True] * 9


# -- RPC messages --------------------------------------------------------------------------------

STAMP = "fa00000001000000"
REQUESTS = [
    (
        ENQUEUE,
        (
            f"52515543 82bed87e 22000000 07000000 {STAMP} 0000000000000000 0700000000000000"
            "0000000000000000 0c00000000000000 8d09"
        ),
    ),
    (
        rpc.GetCorrections(8, rpc.ptp_from_ns(1_000_000_250), 0, 3, 1, None),
        f"52515543 a15b2d88 11000000 08000000 {STAMP} 0000000000000000 0300000000000000 01",
    ),
    (
        rpc.ResetDecoder(9, rpc.ptp_from_ns(1_000_000_250), 0, None),
        f"52515543 cf597a97 08000000 09000000 {STAMP} 0000000000000000",
    ),
]
RESPONSES = [
    (0, 7, b"", f"53515543 00000000 00000000 07000000 {STAMP}"),
    (0, 8, b"\x05", f"53515543 00000000 01000000 08000000 {STAMP} 05"),
    (4, 8, b"", f"53515543 04000000 00000000 08000000 {STAMP}"),
    (0, 9, b"", f"53515543 00000000 00000000 09000000 {STAMP}"),
]


@pytest.mark.parametrize(("message", "text"), REQUESTS)
def test_documented_requests(message: rpc.Request, text: str) -> None:
    assert rpc.build_request(message).hex() == text.replace(" ", "")
    assert rpc.parse_request(bytes.fromhex(text), "nvidia") == message


@pytest.mark.parametrize(("status", "request_id", "result", "text"), RESPONSES)
def test_documented_responses(status: int, request_id: int, result: bytes, text: str) -> None:
    message = rpc.Response(status, request_id, rpc.ptp_from_ns(1_000_000_250), result, None)
    assert rpc.build_response(message).hex() == text.replace(" ", "")
    assert rpc.parse_response(bytes.fromhex(text), "nvidia") == message


@pytest.mark.parametrize(
    ("name", "identity"),
    [
        ("enqueue_syndromes", 0x7ED8BE82),
        ("get_corrections", 0x882D5BA1),
        ("reset_decoder", 0x977A59CF),
        ("predecode", 0xEAD9E510),
        ("mock_decode", 0x6C45A6D6),
        ("rpc_increment", 0x191B6322),
    ],
)
def test_documented_function_ids(name: str, identity: int) -> None:
    assert rpc.fnv1a32(name) == identity


def test_bits_are_packed_lsb_first_as_documented() -> None:
    bits = np.array([1, 0, 1, 1, 0, 0, 0, 1, 1, 0, 0, 1], np.uint8)
    assert np.packbits(bits, bitorder="little").tobytes() == ENQUEUE.bits


def test_enqueue_in_the_envelope_hil_has_fixed_bytes() -> None:
    """Our own layout, frozen here: 24 + 34 + 16 bytes, CRC-32 over bytes 4..69."""
    message = rpc.build_request(ENQUEUE._replace(envelope=rpc.Envelope(3, 0b101, 9)))
    plain = bytearray(rpc.build_request(ENQUEUE))
    plain[8] += 16
    plain += bytes.fromhex("03000000 05000000 09000000")
    assert message == bytes(plain) + struct.pack("<I", zlib.crc32(plain[4:]))
    assert rpc.parse_request(message).envelope == rpc.Envelope(3, 5, 9)


# -- in words ------------------------------------------------------------------------------------


def test_one_frame_in_words() -> None:
    fields = decode(EXAMPLE_B)
    assert (fields["opcode"], fields["name"]) == (0x2B, "UC_WRITE_ONLY_IMM")
    assert (fields["imm_psn"], fields["imm_slot"]) == (0x105, 5)
    assert fields["rpc"]["message"] == "enqueue_syndromes"
    assert fields["qec"] == {
        "decoder_id": 0, "counter": 7, "num_syndromes": 12, "bits": "8d09", "mapping_id": 0,
        "envelope": "none",
    }  # fmt: skip
    assert fields["drop"] is None
    assert one_line(EXAMPLE_B) == (
        "10.0.0.2:12288 > 10.0.0.1:4791, 142 B, UC_WRITE_ONLY_IMM, dest_qp 0x41, psn 0x105, "
        "va 0x10000500, rkey 0x1f02, imm 0x105005, ICRC ok, message enqueue_syndromes, "
        "request_id 7, counter 7"
    )
    assert "ICRC WRONG" in one_line(EXAMPLE_C[:-1] + b"\x00")
    assert "NAK" not in one_line(RXE[15])
    assert "syndrome 0x60" in one_line(RXE[15])
    assert one_line(b"\x00" * 60).startswith("60 B, not RoCEv2: not UDP over IPv4 without")


def test_enveloped_messages_in_words() -> None:
    envelope = rpc.Envelope(3, 1, 9)
    request = rpc.build_request(ENQUEUE._replace(envelope=envelope))
    fields = decode(UP.frame(roce.send_only(2, 0, request)))
    qec = fields["qec"]
    assert (qec["envelope"], qec["epoch"], qec["counter"], fields["drop"]) == ("hil", 3, 7, None)
    response = bytearray(rpc.build_response(rpc.Response(16, 7, 0, b"", envelope)))
    line = one_line(UP.frame(roce.send_only(2, 0, bytes(response))))
    assert line.endswith("message response, status 16, request_id 7, epoch 3")
    response[-1] ^= 1
    line = one_line(UP.frame(roce.send_only(2, 0, bytes(response))))
    assert line.endswith("refused: envelope_crc")
    damaged = bytearray(request)
    damaged[60] ^= 1
    assert decode(UP.frame(roce.send_only(2, 0, bytes(damaged))))["drop"] == "envelope_crc"
    other = decode(UP.frame(roce.send_only(2, 0, b"other")))
    assert (other["payload_len"], other["drop"]) == (5, "length")


def test_frames_that_are_not_roce_are_refused() -> None:
    short = EXAMPLE_A[:57]
    cut = EXAMPLE_A[:-1]
    unknown = bytearray(EXAMPLE_A)
    unknown[42] = 0xFF
    checksum = bytearray(EXAMPLE_A)
    checksum[24] ^= 1
    for raw in (short, cut, bytes(unknown), bytes(checksum)):
        with pytest.raises(WireError):
            roce.parse_frame(raw)
    assert roce.parse_frame(EXAMPLE_A + bytes(6)).icrc_ok  # Ethernet padding is cut off
