"""``hil wire decode``: recorded frames, garbage, and everything between."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hil.cli import main
from hil.wire.decode import decode
from hil.wire.frames import read_frames
from hil.wire.pcap import PcapngWriter, read_capture
from hil.wire.predecode import Predecode, build_predecode
from hil.wire.roce import Flow, Target, send_only, write_only, write_only_imm

DATA = Path(__file__).parents[1] / "data"
RXE = DATA / "rxe" / "rxe.pcap"
FLOW = Flow(bytes(6), bytes(6), "127.0.0.2", "127.0.0.1", 4791, 4791)
GOOD = FLOW.frame(write_only_imm(Target(0x41, 0x1F02, 0x10000000, 256), 0x105, 5, bytes(64)))


def _lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_every_recorded_rxe_frame_has_its_fields(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["wire", "decode", str(RXE)]) == 0
    rows = _lines(capsys)
    known = json.loads((DATA / "rxe" / "frames.json").read_text())
    assert len(rows) == len(known) == 63
    for row, true in zip(rows, known, strict=True):
        assert row["packet"] == true["n"]
        assert row["payload_len"] == true["payload_length"]
        for key in ("opcode", "psn", "dest_qp", "va", "rkey", "dma_length", "imm", "syndrome"):
            assert row.get(key) == true.get(key), key
            assert key not in row or type(row[key]) is int
        assert row["icrc_ok"] is True
        unjudged = true["opcode"] in {0x07, 0x09, 0x11}  # MIDDLE, LAST WITH IMM, ACK
        reason = "drop_imm" if true["transport"] == "UC" else None if unjudged else "magic"
        assert row["drop"] == reason, true["n"]


def test_every_frame_of_the_sensor_bridge_as_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logs = sorted((DATA / "hsb_frames").glob("*.txt"))
    frames = [x for log in logs for x in re.findall(r"^DATA .* (\w+)$", log.read_text(), re.M)]
    file = tmp_path / "frames.txt"
    file.write_text("# frames\n\n" + "\n".join([frames[0], f"0x{frames[1]}", *frames[2:]]))
    assert main(["wire", "decode", str(file)]) == 0
    rows = _lines(capsys)
    assert [row["line"] for row in rows] == list(range(3, 12))
    assert all(row["icrc_ok"] and row["rkey"] == 0xABCD for row in rows)
    requests = [row for row in rows if "qec" in row and row["qec"]["num_syndromes"] == 8]
    assert [r["qec"]["counter"] for r in requests] == [0, 0, 1, 2]
    assert {r["drop"] for r in rows} == {None, "magic"}


@pytest.mark.parametrize(
    ("at", "value", "drop"),
    [
        (None, b"", None),
        (-1, b"\x00", "drop_icrc"),
        (42, b"\xff", "drop_opcode"),
        (44, b"\x00\x01", "drop_pkey"),
        (69, b"\x3f", "drop_length"),
        (53, b"\x06", "drop_imm"),
        (12, b"\x86\xdd", "not_roce"),
    ],
)
def test_the_cause_of_a_drop_is_named(at: int | None, value: bytes, drop: str | None) -> None:
    """Each rule of the receiver, broken alone; the ICRC is made right again unless it is meant."""
    payload = bytes.fromhex("5351554300000000010000000700000000000000000000000100000000000000")
    frame = bytearray(FLOW.frame(write_only_imm(Target(2, 7, 1 << 28, 256), 0x105, 5, payload)))
    if drop == "drop_length":
        value = bytes([31])
    if at is not None:
        start = at % len(frame)
        frame[start : start + len(value)] = value
        if at > 12:
            datagram = frame[42:]
            FLOW.path.seal(datagram)
            frame[42:] = datagram
    fields = decode(bytes(frame))
    assert fields["drop"] == drop
    if drop == "drop_icrc":
        assert fields["icrc_ok"] is False


def test_a_whole_shot_is_shown_and_its_parts_are_no_fault() -> None:
    target, detectors = Target(2, 7, 1 << 28, 512), bytes([0, 1, 1] * 100)
    message = build_predecode(Predecode(3, 1, detectors))
    whole = decode(FLOW.frame(write_only_imm(target, 9, 1, message)))
    assert (whole["rpc"]["message"], whole["drop"]) == ("predecode", None)
    assert whole["qec"]["num_detectors"] == 300
    assert whole["qec"]["detectors"] == detectors.hex()
    first = decode(FLOW.frame(write_only(target, 9, 1, message[:128])))
    assert (first["rpc"]["arg_len"], first["drop"], "qec" in first) == (300, None, False)
    cut = decode(FLOW.frame(write_only_imm(target, 9, 1, message[:128])))
    assert cut["drop"] == "length"
    spoiled = decode(FLOW.frame(write_only_imm(target, 9, 1, message[:-1] + b"\x02")))
    assert spoiled["drop"] == "arguments"


@given(st.binary(max_size=300))
@settings(max_examples=1500)
def test_no_bytes_break_it(data: bytes) -> None:
    """Any text or capture: entries, never an exception; a good line behind it is still found."""
    for begin in (data, RXE.read_bytes()[:40] + data, GOOD[:60].hex().encode() + data):
        for entry in read_frames(io.BytesIO(begin), "x"):
            json.dumps(decode(entry.frame))
    clean = data.replace(b"\n", b"")
    if not clean[:4].strip().startswith(b"#") and clean[:4] != RXE.read_bytes()[:4]:
        entries = list(read_frames(io.BytesIO(b"## " + clean + b"\n" + GOOD.hex().encode()), "x"))
        assert entries[-1].frame == GOOD
        assert entries[-1].number == 2


@given(st.integers(0, len(GOOD) - 1), st.integers(0, 255), st.integers(0, len(GOOD)))
@settings(max_examples=1500)
def test_no_damage_breaks_it(at: int, value: int, cut: int) -> None:
    damaged = bytearray(GOOD)
    damaged[at] = value
    for frame in (bytes(damaged), GOOD[:cut]):
        fields = decode(frame)
        assert fields["drop"] is None or isinstance(fields["drop"], str)
        assert decode(GOOD[: max(cut, 1) - 1])["drop"] == "not_roce" or cut == len(GOOD)


def test_a_cut_capture_gives_its_frames_and_says_where_it_ends(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "cut.pcap"
    file.write_bytes(RXE.read_bytes()[:1000])
    assert main(["wire", "decode", str(file)]) == 0
    rows = _lines(capsys)
    assert all("icrc_ok" in row for row in rows[:-1])
    assert rows[-1]["packet"] == len(rows)
    assert "cut short" in str(rows[-1]["error"])


def test_what_cannot_be_read_is_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["wire", "decode", str(tmp_path / "absent")]) == 2
    assert "cannot read the frames" in capsys.readouterr().err
    assert main(["wire", "decode", str(tmp_path)]) == 2
    (tmp_path / "noise").write_bytes(bytes(range(256)) * 9)
    assert main(["wire", "decode", str(tmp_path / "noise")]) == 2
    assert "no frame found" in capsys.readouterr().err
    (tmp_path / "empty").touch()
    assert main(["wire", "decode", str(tmp_path / "empty")]) == 2


def test_captures_come_through_a_pipe(tmp_path: Path) -> None:
    """Standard input cannot seek; pcapng and text."""
    capture = tmp_path / "a.pcapng"
    with PcapngWriter(capture) as out:
        out.write(1, GOOD)
        out.write(2, FLOW.frame(send_only(2, 0, b"abcd")))
    for given_bytes, unit in ((capture.read_bytes(), "packet"), (GOOD.hex().encode(), "line")):
        done = subprocess.run(
            [sys.executable, "-m", "hil", "wire", "decode", "-"],
            input=given_bytes, capture_output=True, check=True,
        )  # fmt: skip
        assert json.loads(done.stdout.splitlines()[0])[unit] == 1
    assert [found.t_ns for found in read_capture(capture)] == [1, 2]
