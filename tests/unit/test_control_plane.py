"""Registers of a sensor bridge: recorded bytes, and our client against a stand-in board."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stand_ins.hsb_board import Board, Dialect

from hil.cli import main
from hil.errors import LinkError, WireError
from hil.link.control_plane import PLAYER, PLAYER_RAM, ControlPlane, DataPlane
from hil.wire.ecb import (
    MAX_PAIRS,
    UNMAPPED,
    Reply,
    build_read,
    build_reply,
    build_write,
    parse_reply,
    parse_request,
)
from hil.wire.hsb_player import parse_samples, player_words

RECORDED = Path(__file__).resolve().parents[1] / "data" / "hsb_frames"
RECEIVER = DataPlane(
    host_mac=bytes.fromhex("123456789abc"), host="192.168.0.101", qp=0x1234, rkey=0xABCD,
    base_va=0x1000_0000, stride=1024, n_slots=4, window_bytes=512,
)  # fmt: skip


def recorded() -> Iterator[tuple[int, int, int, bytes]]:
    """Command, address, value and UDP payload of every recorded access."""
    pattern = r"ECB (..) addr=(.{8}) val=(.{8}) -> resp .* len=60 ([0-9a-f]+)"
    for file in sorted(RECORDED.glob("*.txt")):
        for found in re.finditer(pattern, file.read_text()):
            frame = bytes.fromhex(found[4])
            length = int.from_bytes(frame[38:40], "big")
            yield int(found[1], 16), int(found[2], 16), int(found[3], 16), frame[42 : 34 + length]


def test_worked_examples_are_byte_exact() -> None:
    assert build_read([0x80], 0x100) == bytes.fromhex("14010100000000000080")
    assert build_write([(0x5000_000C, 64)], 0x101) == bytes.fromhex("0401010100005000000c00000040")
    block = build_write([(0x5000_0008, 644), (0x5000_0010, 3)], 0x102)
    assert block == bytes.fromhex("09010102000050000008000002845000001000000003")
    read = bytes.fromhex("940101000000000000800000260601000000")
    assert parse_reply(read, build_read([0x80], 0x100)) == Reply(
        0x94, 1, 0x100, 0, ((0x80, 0x2606),), 0x100
    )
    written = bytes.fromhex("8401010100005000000c0000000001010000")
    assert parse_reply(written, block[:2] + b"\1\1" + block[4:]) is None  # of another command
    assert parse_reply(written, build_write([(0x5000_000C, 64)], 0x101)) is not None


def test_every_recorded_reply_is_read() -> None:
    seen = set()
    for number, (command, address, value, payload) in enumerate(recorded()):
        sequence = int.from_bytes(payload[2:4], "big")
        if command == 0x14:
            request = build_read([address], sequence)
        elif command == 0x04:
            request = build_write([(address, value)], sequence)
        else:
            request = bytes([command]) + build_write([(address, value)], sequence)[1:]
        reply = parse_reply(payload, request)
        assert reply is not None, number
        assert reply.pairs[0][0] == address
        assert build_reply(reply, payload[16:]) == payload
        seen.add((command, reply.status, reply.command))
        if address == 0xDEAC:
            assert reply.pairs == ((0xDEAC, UNMAPPED),)
    assert {(0x14, 0, 0x94), (0x04, 0, 0x84), (0x77, 4, 0x77), (0x14, 3, 0x94)} == seen


def test_the_recorded_sample_of_the_analyser() -> None:
    words = np.zeros((19, 1), np.uint32)
    text = (RECORDED / "hsb_window64_meta.txt").read_text()
    for bank, value in re.findall(r"ILA bank(\d+)\[0\]=([0-9a-f]{8})", text):
        words[int(bank)] = int(value, 16)
    samples = parse_samples(words)
    assert samples.data[0, :32].tobytes() == bytes.fromhex(
        "5351554300000000010000000700000000000000000000000100000000000000"
    )
    assert (samples.valid[0], samples.last[0], samples.n_bytes[0]) == (True, True, 32)
    assert samples.ptp_ns[0] == 121_100
    assert samples.frames() == [(121_100, samples.data[0, :32].tobytes())]


def test_time_of_a_sample_has_64_bits() -> None:
    """Bits 584 down to 521: seconds and nanoseconds lie across three banks."""
    stamp = (0xFEDC_BA98 << 32) | 999_999_999
    value = 1 | 2 | 63 << 2 | stamp << 9
    words = np.zeros((19, 1), np.uint32)
    for k in range(3):
        words[16 + k] = value >> (32 * k) & 0xFFFFFFFF
    samples = parse_samples(words)
    assert samples.ptp_ns[0] == 0xFEDC_BA98 * 10**9 + 999_999_999
    assert samples.n_bytes[0] == 64


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=40))
def test_no_datagram_raises_but_a_wire_error(data: bytes) -> None:
    for request in (build_read([4, 8], 7), build_read([4], 7), build_write([(4, 1)], 7)):
        for bytes_ in (data, request[:1] + b"\1\0\7" + data):
            try:
                parse_reply(bytes_, request)
            except WireError:
                continue
    try:
        parse_request(data)
    except WireError:
        return


def test_limits_of_a_packet() -> None:
    assert len(build_write([(0, 0)] * MAX_PAIRS, 0)) <= 1472
    for bad in ([], [(0, 0)] * (MAX_PAIRS + 1), [(1 << 32, 0)], [(0, -1)]):
        with pytest.raises(WireError):
            build_write(bad, 0)


@pytest.mark.parametrize("dialect", ["rtl", "emulator", "cudaq"])
def test_reads_and_writes_in_every_dialect(dialect: Dialect) -> None:
    with Board(dialect) as board, ControlPlane("127.0.0.1", board.port) as control:
        assert control.version() == 0x2606
        pairs = [(0x5010_0000 + 4 * k, k) for k in range(2 * MAX_PAIRS + 1)]
        control.write(pairs)
        assert control.read([a for a, _ in pairs]) == [v for _, v in pairs]
        control.write([(0x1000, 5)])
    assert board.requests[0] == bytes.fromhex("14010100000000000080")
    sequences = [int.from_bytes(r[2:4], "big") for r in board.requests]
    assert sequences == list(range(0x100, 0x100 + len(sequences)))


def test_lost_requests_and_lost_or_double_replies_are_survived() -> None:
    with (
        Board(drop=[0], mute=[2], twice=[4]) as board,
        ControlPlane("127.0.0.1", board.port, timeout_s=0.05) as control,
    ):
        assert control.read([0x80]) == [0x2606]
        control.write([(0x1000, 1)])
        assert control.read([0x1000]) == [1]
        assert control.read([0x84]) == [0]
    assert control.count == {"requests": 4, "repeated": 2, "ignored": 1}
    assert board.requests[0] == board.requests[1]


def test_a_board_that_refuses_or_is_silent_is_named() -> None:
    with Board() as board, ControlPlane("127.0.0.1", board.port) as control:
        with pytest.raises(LinkError, match="status 3 ADDRESS"):
            control.read([0xDEAC])
        board.registers[0x80] = 0x2601
        with pytest.raises(LinkError, match="too old"):
            control.version()
    with (
        ControlPlane("127.0.0.1", 1, timeout_s=0.01, retries=1) as silent,
        pytest.raises(LinkError, match="does not answer"),
    ):
        silent.read([0x80])
    with pytest.raises(LinkError, match="loopback only"):
        ControlPlane("192.0.2.1")


def test_the_data_plane_is_set_up_as_it_was_recorded() -> None:
    """Values and order of the set-up behind the recorded frames (512-B windows)."""
    with Board() as board, ControlPlane("127.0.0.1", board.port) as control:
        control.set_up(RECEIVER)
    assert board.written == [
        (0x0200_030C, 0), (0x0200_0304, 11), (0x0200_0308, 12288), (0x1018, 512),
        (0x1020, 0x5678_9ABC), (0x1024, 0x1234), (0x1028, 0xC0A8_0065), (0x102C, 4791 | 0x10000),
        (0x1000, 0x1234), (0x1004, 0xABCD), (0x1008, 0x1000_0000), (0x100C, 0), (0x1010, 8),
        (0x1014, 3), (0x0200_030C, 1), (0x0120_0000, 5),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"stride": 512}, "stride"), ({"stride": 1000}, "stride"), ({"n_slots": 4097}, "n_slots"),
        ({"base_va": 64}, "base_va"), ({"base_va": (1 << 39) - 4096}, "base_va"),
        ({"base_va": (1 << 33) - 1024}, "base_va"), ({"qp": 0}, "qp"), ({"rkey": 1 << 32}, "rkey"),
        ({"host_mac": b""}, "host_mac"), ({"window_bytes": 0}, "window_bytes"),
    ],
)  # fmt: skip
def test_what_the_board_cannot_hold_is_refused_before_it_is_touched(
    change: dict[str, object], where: str
) -> None:
    with pytest.raises(LinkError, match=where):
        replace(RECEIVER, **change).writes()  # type: ignore[arg-type]


def test_the_player_is_loaded_checked_and_started() -> None:
    frames = np.random.default_rng(1).integers(0, 256, (3, 128), dtype=np.uint8)
    with Board() as board, ControlPlane("127.0.0.1", board.port) as control:
        control.load(frames)
        control.play(646 + 1, 128)
        control.play(1000, 128, loop=True)
        control.stop()
    beats = frames.reshape(-1, 64)
    for beat in range(6):
        words = [board.registers[PLAYER_RAM + i * 2048 + 4 * beat] for i in range(16)]
        assert np.array(words, "<u4").tobytes() == beats[beat].tobytes()
    control_writes = [pair for pair in board.written if pair[0] < PLAYER_RAM]
    assert control_writes == [
        (PLAYER + 4, 0), (PLAYER + 0xC, 128), (PLAYER + 0x10, 3),
        (PLAYER + 4, 0), (PLAYER + 8, 644), (PLAYER + 4, 0xD),
        (PLAYER + 4, 0), (PLAYER + 8, 997), (PLAYER + 4, 9), (PLAYER + 4, 0),
    ]  # fmt: skip
    with pytest.raises(LinkError, match="cannot be so fast"):
        control.play(2, 128)


def test_a_memory_that_does_not_keep_what_is_written_is_found() -> None:
    with (
        Board(stuck=[PLAYER_RAM + 2048]) as board,
        ControlPlane("127.0.0.1", board.port) as control,
        pytest.raises(LinkError, match=r"1 words, the first at 0x50100800"),
    ):
        control.load(np.full((1, 64), 7, np.uint8))


def test_the_player_holds_whole_beats_and_no_more_than_it_has() -> None:
    assert len(player_words(np.zeros((512, 64), np.uint8))) == 512 * 16
    for shape in ((1, 63), (513, 64), (0, 64)):
        with pytest.raises(WireError):
            player_words(np.zeros(shape, np.uint8))


def test_the_analyser_is_armed_and_read() -> None:
    with Board() as board, ControlPlane("127.0.0.1", board.port) as control:
        control.arm()
        assert board.written == [(0x4000_0000, 2), (0x4000_0000, 0), (0x4000_0000, 1)]
        board.registers[0x4000_0084] = 2
        for sample, last in ((0, 0), (1, 1)):
            board.registers[0x4010_0000 + 16 * 0x8000 + 4 * sample] = (
                1 | last << 1 | 63 << 2 | (100 + sample) << 9
            )
            board.registers[0x4010_0000 + 4 * sample] = 0xAB
        samples = control.recorded()
        assert board.written[-1] == (0x4000_0000, 0)
        board.registers[0x4000_0084] = 0
        assert control.recorded().frames() == []
    ((begin, data),) = samples.frames()
    assert (begin, len(data)) == (100, 128)


def test_the_commands_of_a_board(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Set up, load a shot of an export, play it, read what came back."""
    frames = np.random.default_rng(2).integers(0, 256, (2, 3, 64), dtype=np.uint8)
    frames.tofile(tmp_path / "playback.bin")
    told = {"shots": 2, "frames_per_shot": 3, "frame_bytes": 64, "shots_per_load": 1}
    (tmp_path / "playback.json").write_text(json.dumps(told))
    with Board() as board:
        address = ["--address", f"127.0.0.1:{board.port}"]
        where = ["--host", "127.0.0.1", "--mac", "12:34:56:78:9a:bc", "--qp", "0x41", "--rkey", "7",
                 "--va", "0x10000000", "--stride", "256", "--slots", "64",
                 "--window", "64"]  # fmt: skip
        assert main(["rack", "board", "info", *address]) == 0
        assert main(["rack", "board", "setup", *address, *where]) == 0
        assert main(["rack", "board", "play", *address, str(tmp_path), "--first", "1"]) == 0
        assert main(["rack", "board", "ila", *address, "--arm"]) == 0
        board.registers[0x4000_0084] = 1
        board.registers[0x4010_0000] = 0x43555153
        board.registers[0x4010_0000 + 16 * 0x8000] = 1 | 2 | 3 << 2 | 250 << 9
        assert main(["rack", "board", "ila", *address]) == 0
        assert main(["rack", "board", "play", *address, str(tmp_path), "--first", "2"]) == 2
    printed = capfd.readouterr()
    assert "IP version 0x2606" in printed.out
    assert "250 53515543" in printed.out
    assert "no such shot to load" in printed.err
    assert board.registers[0x0200_0308] == 4791  # our socket hears one port only
    words = [board.registers[PLAYER_RAM + i * 2048] for i in range(16)]
    assert np.array(words, "<u4").tobytes() == frames[1, 0].tobytes()
    assert board.registers[PLAYER + 0x10] == 3
