"""Round trips, mutations and batch against scalar for everything that `hil.wire` builds."""

from __future__ import annotations

import contextlib
import itertools
import pickle
import warnings
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hil.errors import WireError
from hil.wire import roce, rpc, rpc_batch
from hil.wire.icrc import IcrcPath, crc32_rows
from hil.wire.roce import Flow, Target
from hil.wire.roce_batch import send_rows, write_imm_rows

u8, u16, u32, u64 = (st.integers(0, 2**bits - 1) for bits in (8, 16, 32, 64))
i64 = st.integers(-(2**63), 2**63 - 1)
u24 = st.integers(0, 2**24 - 1)
payloads = st.binary(max_size=96)
envelopes = st.none() | st.builds(rpc.Envelope, u32, u32, u32)
FLOW = Flow(bytes(6), bytes.fromhex("020000000001"), "10.1.2.3", "127.3.2.1", 0x3000, 4791)


def enqueues(envelope: st.SearchStrategy[rpc.Envelope | None]) -> st.SearchStrategy[rpc.Request]:
    def sized(bits: bytes) -> st.SearchStrategy[rpc.Request]:
        n = st.integers(8 * len(bits) - 7, 8 * len(bits))
        return st.builds(
            rpc.EnqueueSyndromes, u32, u64, i64, i64, n, st.just(bits), envelope, st.just(0)
        )

    return st.binary(min_size=1, max_size=40).flatmap(sized)


def requests(envelope: st.SearchStrategy[rpc.Envelope | None]) -> st.SearchStrategy[rpc.Request]:
    return st.one_of(
        enqueues(envelope),
        st.builds(rpc.GetCorrections, u32, u64, i64, i64, u8, envelope),
        st.builds(rpc.ResetDecoder, u32, u64, i64, envelope),
    )


def kind(message: Any) -> rpc.EnvelopeKind:
    return "hil" if message.envelope else "nvidia"


@settings(max_examples=300, deadline=None)
@given(requests(envelopes), st.integers(0, 40))
def test_requests_survive_the_wire(message: rpc.Request, behind: int) -> None:
    raw = rpc.build_request(message) + b"\xa5" * behind
    assert rpc.parse_request(raw, kind(message)) == message
    assert rpc.parse_request(memoryview(raw), kind(message)) == message
    header = rpc.peek_request(raw)
    assert (header.request_id, header.arg_len) == (message.request_id, len(raw) - behind - 24)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(list(rpc.Status)) | st.integers(-9, -1), u32, u64, payloads, envelopes)
def test_responses_survive_the_wire(
    status: int, request_id: int, stamp: int, result: bytes, envelope: rpc.Envelope | None
) -> None:
    message = rpc.Response(int(status), request_id, stamp, result, envelope)
    raw = rpc.pad(rpc.build_response(message))
    assert len(raw) % 64 == 0
    assert rpc.parse_response(raw, kind(message)) == message


@settings(max_examples=150, deadline=None)
@given(requests(st.builds(rpc.Envelope, u32, u32, u32)), st.data())
def test_any_flipped_bit_of_an_enveloped_request_is_refused(
    message: rpc.Request, data: st.DataObject
) -> None:
    """Magic, function id and length are outside the CRC; they are refused by their own rules."""
    raw = bytearray(rpc.build_request(message))
    bit = data.draw(st.integers(0, 8 * len(raw) - 1))
    raw[bit // 8] ^= 1 << bit % 8
    with pytest.raises(rpc.RpcError) as caught:
        rpc.parse_request(bytes(raw))
    byte = bit // 8
    if byte < 4:
        assert caught.value.cause == "magic"
    elif byte < 8:
        assert caught.value.cause == "function"
    elif byte < 12:
        assert caught.value.cause in {"length", "envelope_crc"}
    else:
        assert caught.value.cause == "envelope_crc"


@settings(max_examples=150, deadline=None)
@given(u32, u64, payloads, st.builds(rpc.Envelope, u32, u32, u32), st.data())
def test_any_flipped_bit_behind_the_status_of_a_response_is_refused(
    request_id: int, stamp: int, result: bytes, envelope: rpc.Envelope, data: st.DataObject
) -> None:
    raw = bytearray(rpc.build_response(rpc.Response(0, request_id, stamp, result, envelope)))
    bit = data.draw(st.integers(0, 8 * len(raw) - 1).filter(lambda b: b // 8 not in range(4, 8)))
    raw[bit // 8] ^= 1 << bit % 8
    with pytest.raises(rpc.RpcError):
        rpc.parse_response(bytes(raw))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=120), st.sampled_from(["hil", "nvidia"]))
@example(rpc.build_request(rpc.ResetDecoder(1, 2, 3, None)), "hil")
def test_parsers_answer_any_bytes_with_a_message_or_a_wire_error(
    raw: bytes, envelope: rpc.EnvelopeKind
) -> None:
    for parse in (rpc.parse_request, rpc.parse_response):
        for prefix in (b"", b"RQUC", b"SQUC", b"RQUC\x82\xbe\xd8~"):
            with contextlib.suppress(rpc.RpcError):
                parse(prefix + raw, envelope)
    for parser in (roce.parse_packet, roce.parse_frame):
        with contextlib.suppress(WireError):
            parser(raw)


def test_an_rpc_error_keeps_its_cause_when_pickled() -> None:
    error = pickle.loads(pickle.dumps(rpc.RpcError("w", cause="magic", got="g", allowed="a")))
    assert (error.what, error.cause, error.got, error.allowed) == ("w", "magic", "g", "a")


bths = st.builds(
    roce.Bth,
    *(st.sampled_from([int(op) for op in roce.Opcode]), u24, u24, st.just(0)),
    *(st.booleans(), st.booleans(), st.just(0), u16, u8, st.booleans()),
)


@settings(max_examples=300, deadline=None)
@given(bths, st.builds(roce.Reth, u64, u32, u32), st.builds(roce.Aeth, u8, u24), u32, payloads)
def test_packets_survive_the_wire(
    bth: roce.Bth, reth: roce.Reth, aeth: roce.Aeth, imm: int, payload: bytes
) -> None:
    packet = roce.Packet(
        bth._replace(pad=-len(payload) % 4),
        reth if bth.opcode in roce.WITH_RETH else None,
        aeth if bth.opcode in roce.WITH_AETH else None,
        imm if bth.opcode in roce.WITH_IMM else None,
        payload,
    )
    raw = FLOW.frame(packet)
    frame = roce.parse_frame(raw)
    assert frame.packet == packet
    assert frame.icrc_ok
    assert frame.pack() == raw


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 40).flatmap(
        lambda length: st.lists(st.binary(min_size=length, max_size=length), min_size=1, max_size=5)
    ),
    st.sampled_from([0, 5, 2**20 - 2, 2**24 - 2, 2**24 - 1]),
    st.integers(0, 4091),
)
def test_batches_of_packets_equal_single_packets(
    rows: list[bytes], psn: int, first_slot: int
) -> None:
    target = Target(0x123456, 0xDEADBEEF, 0x1000_0000, 128)
    matrix = np.frombuffer(b"".join(rows), np.uint8).reshape(len(rows), -1)
    slots = first_slot + np.arange(len(rows))
    writes = FLOW.frame_rows(write_imm_rows(matrix, slots, psn, target, FLOW.path))
    sends = FLOW.frame_rows(send_rows(matrix, psn, target.qp, FLOW.path))
    for i, row in enumerate(rows):
        number = (psn + i) % 2**24
        one = roce.write_only_imm(target, number, first_slot + i, row)
        assert one.imm == (number % 2**20) << 12 | first_slot + i
        assert writes[i].tobytes() == FLOW.frame(one)
        assert sends[i].tobytes() == FLOW.frame(roce.send_only(target.qp, number, row))


def test_all_single_and_all_double_bit_errors_of_a_frame_fail_the_icrc() -> None:
    datagram = np.frombuffer(FLOW.frame(roce.send_only(7, 9, bytes(range(16)))), np.uint8)[42:]
    bits = [b for b in range(8 * len(datagram)) if b // 8 != 4]
    pairs = np.array([(b, b) for b in bits] + list(itertools.combinations(bits, 2)))
    rows = np.repeat(datagram[None], len(pairs), axis=0)
    index = np.arange(len(pairs))
    for column in (0, 1):
        once = index if column == 0 else index[pairs[:, 0] != pairs[:, 1]]
        bit = pairs[once, column]
        rows[once, bit // 8] ^= (1 << bit % 8).astype(np.uint8)
    assert FLOW.path.check_rows(datagram[None]).all()
    assert not FLOW.path.check_rows(rows).any()


@settings(max_examples=100, deadline=None)
@given(st.binary(min_size=16, max_size=80), u16, u16)
def test_the_icrc_of_a_path_equals_the_rule_spelled_out(
    raw: bytes, src_port: int, dst_port: int
) -> None:
    path = IcrcPath("127.1.2.3", "127.3.2.1", src_port, dst_port)
    data = bytearray(raw)
    size = len(data)
    head = b"\xff" * 8 + bytes([0x45, 0xFF]) + (28 + size).to_bytes(2, "big") + b"\0\0\x40\0\xff"
    head += b"\x11\xff\xff" + bytes([127, 1, 2, 3, 127, 3, 2, 1])
    head += src_port.to_bytes(2, "big") + dst_port.to_bytes(2, "big")
    head += (8 + size).to_bytes(2, "big") + b"\xff\xff"
    want = zlib.crc32(head + raw[:4] + b"\xff" + raw[5:-4])
    assert path.of(data) == want
    assert bytes(data) == raw
    path.seal(data)
    assert path.check(data)
    assert path.check_rows(np.frombuffer(bytes(data), np.uint8)[None]).all()


def test_crc_of_rows_continues_a_prefix_and_takes_any_strides() -> None:
    rows = np.arange(60, dtype=np.uint8).reshape(5, 12)
    for view in (rows, rows[::2], rows[:, 3:9], rows[:, ::-1]):
        want = [zlib.crc32(b"prefix" + row.tobytes()) for row in view]
        assert crc32_rows(view, zlib.crc32(b"prefix")).tolist() == want
    assert crc32_rows(rows[:0]).tolist() == []


# -- batches of RPC messages ---------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=5),
    st.integers(0, 4),
    st.sampled_from(["hil", "nvidia"]),
    st.sampled_from([0, 2**32 - 3, 2**62]),
    st.randoms(use_true_random=False),
)
def test_batches_of_requests_equal_single_requests(
    sizes: list[int], n: int, envelope: rpc.EnvelopeKind, first: int, random: Any
) -> None:
    r, total = len(sizes), sum(sizes)
    bits = np.array([[random.randrange(2) for _ in range(total)] for _ in range(n)], np.uint8)
    shots = np.packbits(bits.reshape(n, total), axis=1, bitorder="little")
    blocks = rpc_batch.split_blocks(shots, np.array(sizes))
    counters = (np.uint64(first) + np.arange(n * r, dtype=np.uint64)).reshape(n, r)
    ns = np.arange(n * r, dtype=np.int64).reshape(n, r) + 1_999_999_998
    epochs = np.arange(n)[:, None]
    rows = rpc_batch.build_enqueue_batch(
        blocks,
        np.array(sizes),
        counters=counters,
        ptp_timestamps=rpc_batch.ptp_from_ns_array(ns),
        decoder_id=2,
        envelope=envelope,
        epoch=epochs,
        board_mask=5,
        valid_until_round=np.arange(r),
    )
    assert rows.shape == (n, r, rpc_batch.enqueue_row_bytes(max(sizes), envelope))
    ends = np.cumsum(sizes)
    for s, k in itertools.product(range(n), range(r)):
        block = np.packbits(bits[s, ends[k] - sizes[k] : ends[k]], bitorder="little")
        message = rpc.EnqueueSyndromes(
            (first + s * r + k) % 2**32,
            rpc.ptp_from_ns(int(ns[s, k])),
            2,
            first + s * r + k,
            sizes[k],
            block.tobytes(),
            rpc.Envelope(s, 5, k) if envelope == "hil" else None,
        )
        assert rows[s, k].tobytes() == rpc.build_request(message).ljust(rows.shape[2], b"\0")
        assert rpc.ptp_to_ns(message.ptp_timestamp) == ns[s, k]
    gets = rpc_batch.build_get_batch(
        counters[:, 0],
        rpc_batch.ptp_from_ns_array(ns[:, 0]),
        return_size=3,
        reset=1,
        decoder_id=2,
        envelope=envelope,
        epoch=np.arange(n),
    )
    for s in range(n):
        get = rpc.GetCorrections(
            (first + s * r) % 2**32,
            rpc.ptp_from_ns(int(ns[s, 0])),
            *(2, 3, 1),
            rpc.Envelope(s, 0, 0) if envelope == "hil" else None,
        )
        assert gets[s].tobytes() == rpc.build_request(get).ljust(gets.shape[1], b"\0")


@pytest.mark.parametrize("sizes", [[0], [9], [4, 4]])
def test_blocks_that_do_not_fit_their_bits_are_refused(sizes: list[int]) -> None:
    one = np.zeros((1, 1), np.uint64)
    with pytest.raises(WireError, match="blocks do not fit"):
        rpc_batch.build_enqueue_batch(
            np.zeros((1, 1, 1), np.uint8), np.array(sizes), counters=one, ptp_timestamps=one
        )


def test_block_sizes_must_cover_the_shot() -> None:
    with pytest.raises(WireError, match="block sizes"):
        rpc_batch.split_blocks(np.zeros((2, 3), np.uint8), np.array([8, 8]))


def test_walking_one_lands_in_its_block_and_bit() -> None:
    """Bit i of a shot is bit i - start of its block, LSB first, and nowhere else."""
    sizes = np.array([4, 8, 8, 4])
    shots = np.packbits(np.eye(24, dtype=np.uint8), axis=1, bitorder="little")
    blocks = rpc_batch.split_blocks(shots, sizes)
    bits = np.unpackbits(blocks, axis=2, bitorder="little")
    starts = np.cumsum(sizes) - sizes
    for i in range(24):
        block = int(np.searchsorted(starts, i, side="right")) - 1
        assert np.argwhere(bits[i]).tolist() == [[block, i - starts[block]]]


# -- another implementation ----------------------------------------------------------------------


def test_scapy_reads_our_frames_and_makes_the_same_icrc() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from scapy.contrib.roce import BTH
        from scapy.layers.inet import IP, UDP
        from scapy.layers.l2 import Ether

        target = Target(0x41, 0x1F02, 0x10000000, 256)
        packets = [
            roce.write_only_imm(target, 0xFFFFFF, 5, bytes(range(58))),
            roce.write_only(target, 0x105, 4095, b""),
            roce.send_only(0xABCDEF, 0x800000, b"\xff" * 33),
        ]
        for packet in packets:
            raw = FLOW.frame(packet)
            seen = Ether(raw)
            bth = seen[BTH]
            assert (bth.opcode, bth.dqpn, bth.psn, bth.padcount) == (
                *(packet.bth.opcode, packet.bth.dest_qp, packet.bth.psn, packet.bth.pad),
            )
            assert seen[IP].chksum == roce.parse_frame(raw).ip.checksum
            assert seen[UDP].len == len(raw) - 34
            bth.icrc = None
            seen[IP].chksum = None
            assert bytes(seen) == raw


@pytest.mark.parametrize(
    "build",
    [
        lambda: rpc.build_request(rpc.ResetDecoder(2**32, 0, 0, None)),
        lambda: rpc.build_request(rpc.ResetDecoder(0, 0, 2**63, None)),
        lambda: rpc.build_response(rpc.Response(0, 0, 2**64, b"", None)),
        lambda: rpc.build_response(rpc.Response(0, 0, 0, b"", rpc.Envelope(2**32, 0, 0))),
        lambda: rpc_batch.build_get_batch(
            np.zeros(1, np.uint64), np.zeros(1, np.uint64), return_size=1, epoch=2**32
        ),
        lambda: rpc_batch.build_get_batch(
            np.zeros(1, np.uint64), np.zeros(1, np.uint64), return_size=1, board_mask=-1
        ),
        lambda: roce.send_only(2**24, 0, b"").pack(),
        lambda: roce.Packet(roce.Bth(0x2A, 1, 0, congestion=256)).pack(),
        lambda: roce.write_only(Target(1, 2**32, 0, 128), 0, 0, b"").pack(),
        lambda: roce.write_only_imm(Target(1, 0, 0, 128), 0, 4096, b""),
        lambda: write_imm_rows(
            np.zeros((1, 4), np.uint8), np.array([4096]), 0, Target(1, 0, 0, 128), None
        ),
        lambda: Flow(bytes(5), bytes(6), "127.0.0.1", "127.0.0.2"),
        lambda: Flow(bytes(6), bytes(6), "localhost", "127.0.0.2"),
    ],
)
def test_a_field_that_does_not_fit_is_refused_and_never_cut(build: Callable[[], object]) -> None:
    with pytest.raises(WireError):
        build()


@pytest.mark.parametrize(
    ("raw", "cause"),
    [
        (bytes(23), "length"),
        (rpc.build_request(rpc.GetCorrections(1, 0, 0, 1, 1, None)), "length"),
        (rpc.build_request(rpc.ResetDecoder(1, 0, 0, None)), "length"),
    ],
)
def test_a_message_without_the_envelope_is_refused_where_it_is_due(raw: bytes, cause: str) -> None:
    with pytest.raises(rpc.RpcError) as caught:
        rpc.parse_request(raw)
    assert caught.value.cause in {cause, "envelope_crc"}


@pytest.mark.parametrize(
    ("n", "mapping", "bits", "cause"),
    [
        (0, 0, b"", "arguments"),
        (2**20 + 1, 0, b"", "arguments"),
        (8, 1, b"x", "arguments"),
        (9, 0, b"x", "length"),
        (8, 0, b"xy", "length"),
    ],
)
def test_wrong_enqueue_arguments_are_named(n: int, mapping: int, bits: bytes, cause: str) -> None:
    message = rpc.EnqueueSyndromes(1, 0, 0, 1, n, bits, rpc.Envelope(0, 0, 0), mapping)
    with pytest.raises(rpc.RpcError) as caught:
        rpc.parse_request(rpc.build_request(message))
    assert caught.value.cause == cause
    plain = message._replace(envelope=None)
    if bits == b"xy":  # the reference server tolerates excess bytes
        assert rpc.parse_request(rpc.build_request(plain), "nvidia") == plain._replace(bits=b"x")


def test_unknown_functions_and_statuses_are_named() -> None:
    raw = bytearray(rpc.build_request(rpc.ResetDecoder(1, 0, 0, rpc.Envelope(0, 0, 0))))
    raw[4:8] = rpc.SET_EPOCH.to_bytes(4, "little")
    with pytest.raises(rpc.RpcError) as caught:
        rpc.parse_request(bytes(raw))
    assert caught.value.cause == "function"
    with pytest.raises(rpc.RpcError) as refused:
        rpc.parse_response(rpc.build_response(rpc.Response(7, 1, 0, b"", None)), "nvidia")
    assert refused.value.cause == "status"
