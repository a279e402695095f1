"""Rack and node started apart, as in docs/lab.md."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import threading
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from hil.cli import main
from hil.errors import UsageError
from hil.link.endpoint import PeerAddress
from hil.node import setup
from hil.node.lobby import Lobby
from hil.node.remote import Door, ForeignNode
from hil.node.setup import SetupError
from hil.run import stream
from hil.run.export_cudaq import CONFIG, export_cudaq, server_matching
from hil.run.interrupt import Interrupt
from hil.run.lab import Lab, Passport
from hil.run.standalone import REPLY_STRIDE, Standalone
from hil.trace.exchange.cudaq_yaml import read_matcher
from tests.stand_ins.nvidia_server import NvidiaServer, UdpServer

ROOT = Path(__file__).resolve().parents[2]
SCENARIO = ROOT / "scenarios" / "surface_d5.yaml"
HOME = f"127.31.{os.getpid() % 250}"
TOKEN = b"0123456789abcdef"
SHOTS = 60
FAST = (
    "bind.profiles.sil.rack.pace=20", f"run.shots={SHOTS}", "run.warmup.shots=0", "expect={}",
)  # fmt: skip

pytestmark = pytest.mark.live


def _document(command: str, **place: str) -> list[str]:
    """The first such command of docs/lab.md, at another place and with fewer shots."""
    text = (ROOT / "docs" / "lab.md").read_text()
    line = re.search(rf"^    (hil {command} .*)$", text, re.MULTILINE)
    assert line is not None
    words = shlex.split(line[1])[1:]
    words[2] = str(SCENARIO)
    for option, value in place.items():
        if f"--{option}" in words:
            words[words.index(f"--{option}") + 1] = value
        else:
            words += [f"--{option}", value]
    return words + [word for change in FAST for word in ("--set", change)]


def test_two_terminals_as_documented(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    node_out, rack_out = tmp_path / "node.json", tmp_path / "rack.json"
    port = 20000 + os.getpid() % 20000
    here = f"{HOME}.1:{port}"
    node = _document("node serve", listen=here, sessions="1", out=str(node_out))
    rack = _document("rack stream", to=here, **{"from": f"{HOME}.2"}, out=str(rack_out))
    codes: list[int] = []
    serving = threading.Thread(target=lambda: codes.append(main(node)))
    serving.start()
    code = main(rack)
    serving.join(120.0)
    printed = capfd.readouterr().out
    assert (code, codes) == (0, [0]), printed
    told = json.loads(rack_out.read_text())
    assert told["complete"]
    assert (told["shots"], told["answered"], told["statuses"]) == (SHOTS, SHOTS, {"OK": SHOTS})
    assert told["answers"]["compared"] == SHOTS
    assert told["answers"]["unlike_own_decoder"] == 0
    assert told["latency_ns"]["n"] == SHOTS
    assert told["sender"]["frames"] == SHOTS * 6
    assert told["decoders"]["primary"]["decoder"] == "pymatching_corr"
    assert told["node"]["shots_primary"] == SHOTS
    (session,) = json.loads(node_out.read_text())["sessions"]
    assert session["ended"] == "orderly"
    assert session["counters"] == told["node"]
    assert session["decode_ns"]["n"] == SHOTS
    for fact in (r"QP Number: 0x[0-9a-f]+", r"RKey: \d+", r"Buffer Addr: 0x\d+", r"first PSN: \d+"):
        assert re.search(fact, printed), fact
    assert session["counters"]["link.rx_ok"] == SHOTS * 7


@pytest.mark.slow
def test_a_foreign_rack_and_a_foreign_node_need_no_set_up() -> None:
    """Both ends by told numbers, as with hardware: here they happen to be ours."""
    theirs = ("system.links.up.envelope=nvidia", "system.links.up.payload=measurements")
    lab = Lab.open(SCENARIO, "sil", [*FAST, *theirs])
    here, there = f"{HOME}.3", f"{HOME}.4"
    config = lab.exchange(rack=there, node=here, passport=Passport())
    config = config.model_copy(update={"rack_qp": 2})
    told: list[str] = []
    node = Standalone(lab, config, told.append, Interrupt())
    up = lab.scenario.system.links.up
    rack = PeerAddress(there, up.udp_port, 2, lab.scenario.system.links.down.psn_start, 0, 0,
                       REPLY_STRIDE, 1)  # fmt: skip
    serving = threading.Thread(target=node.serve_foreign, args=(rack,))
    serving.start()
    try:
        until = time.monotonic() + 60
        while not any(line.startswith("by hand") for line in told) and time.monotonic() < until:
            time.sleep(0.05)
        (by_hand,) = [line for line in told if line.startswith("by hand")]
        words = by_hand.split()
        numbers = {n: int(words[words.index(f"--{n}") + 1], 0)
                   for n in ("qp", "rkey", "va", "stride", "slots", "psn")}  # fmt: skip
        peer = PeerAddress(here, up.udp_port, numbers["qp"], numbers["psn"], numbers["rkey"],
                           numbers["va"], numbers["stride"], numbers["slots"])  # fmt: skip
        result = stream.stream(
            lab, config, lambda _receiver: ForeignNode(peer), Interrupt(), verify=True
        )
    finally:
        node.interrupt.name = "test"
        serving.join(120.0)
    assert result.complete, result.summary("")
    assert (result.tally.answered, result.tally.unlike) == (SHOTS, 0)
    assert node.sessions[0].counters["shots_primary"] == SHOTS
    assert any(line.startswith("HSB:") for line in told)


@pytest.mark.slow
def test_a_model_of_nvidias_server_decodes_what_was_exported_for_it(tmp_path: Path) -> None:
    """The server forms the events by the D of our YAML and matches on its H; we stream to it."""
    theirs = (
        *FAST, "bind.profiles.sil.network.backend=cudaq_udp", "system.decoder.primary=pymatching",
        "system.links.up.envelope=nvidia", "system.links.up.payload=measurements",
    )  # fmt: skip
    done = export_cudaq(SCENARIO, tmp_path / "set", bind="sil", overrides=theirs)
    told = read_matcher(tmp_path / "set" / CONFIG)
    matching = server_matching(told.edges)

    def decode(bits: list[int]) -> list[int]:
        events = [sum(bits[k] for k in row) % 2 for row in told.rows]
        return [int(bit) for bit in matching.decode(np.array(events, np.uint8))]

    out = tmp_path / "rack.json"
    model = NvidiaServer(done.n_measurements, 1, decode)
    with UdpServer(model, f"{HOME}.7") as server:
        words = ["rack", "stream", str(SCENARIO), "--bind", "sil", "--from", f"{HOME}.8",
                 "--to", f"{server.host}:{server.port}", "--qp", "0", "--stride", "256",
                 "--slots", "8", "--out", str(out), "--verify"]  # fmt: skip
        code = main(words + [word for change in theirs for word in ("--set", change)])
    found = json.loads(out.read_text())
    assert code == 0, found
    assert (found["answered"], found["answers"]["unlike_own_decoder"]) == (SHOTS, 0)
    assert model.decoders[0].decodes == SHOTS


def test_two_sides_that_differ_are_named_and_a_second_rack_is_sent_away() -> None:
    lab = Lab.open(SCENARIO, "sil", FAST)
    other = Lab.open(SCENARIO, "sil", [*FAST, "system.decoder.ring.slots=64"])
    here, there = f"{HOME}.5", f"{HOME}.6"
    told: list[str] = []
    config = lab.exchange(rack=there, node=here, passport=Passport())
    node = Standalone(lab, config, told.append, Interrupt())
    lobby = Lobby(here, 0, TOKEN)
    serving = threading.Thread(target=node.serve, args=(lobby,))
    serving.start()
    door = Door(*lobby.address, TOKEN)
    receiver = PeerAddress(there, 4791, 5, 0, 7, 0, 4096, 1)
    try:
        unlike = other.exchange(rack=there, node=here, passport=Passport())
        with pytest.raises(SetupError, match="ring_slots: rack 64, node 4096"):
            door.attach(unlike, receiver)
        with pytest.raises(SetupError, match=rf"replies to {there} for a set-up from 127.0.0.1"):
            _asks_for_replies_elsewhere(door, receiver)
        first = door.attach(config, receiver)
        with pytest.raises(SetupError, match="one session at a time"):
            door.attach(config, receiver)
        first.close()  # the rack hangs up without an end
        until = time.monotonic() + 30
        while not (node.sessions and node.sessions[0].seconds) and time.monotonic() < until:
            time.sleep(0.05)
    finally:
        node.interrupt.name = "test"
        serving.join(120.0)
        lobby.close()
    assert [one.ended for one in node.sessions] == ["the rack hung up"]
    assert any("ring_slots: rack 64, node 4096" in line for line in told)


def _asks_for_replies_elsewhere(door: Door, receiver: PeerAddress) -> None:
    """A hello from here that wants the replies sent to somebody else."""
    with socket.create_connection((door.host, door.port), 5.0) as connection:
        greeting = setup.read_greeting(connection.recv(setup.LINE_BYTES))
        nonces = setup.Nonces(greeting.nonce, setup.fresh_nonce())
        body = {"nonce": nonces.rack, "facts": {}, "peer": asdict(receiver), "gap_timeout_ps": 1}
        connection.sendall(setup.signed(body, "rack", nonces, TOKEN))
        setup.read_welcome(connection.recv(setup.LINE_BYTES), nonces, TOKEN)


def test_an_address_outside_needs_flag_and_token(capfd: pytest.CaptureFixture[str]) -> None:
    for words in (
        ["node", "serve", str(SCENARIO), "--bind", "sil", "--listen", "192.0.2.1:47910"],
        ["rack", "stream", str(SCENARIO), "--bind", "sil", "--to", "192.0.2.1:47910"],
        ["node", "serve", str(SCENARIO), "--bind", "sil", "--rack", "192.0.2.1", "--allow-remote"],
    ):
        assert main(words) == 2
        assert "this address leaves the machine" in capfd.readouterr().err


def test_a_virtual_profile_has_nothing_to_stream() -> None:
    with pytest.raises(UsageError, match="no frame travels in this profile"):
        Lab.open(SCENARIO, "mil", ())


def test_a_cable_inside_one_run_does_not_lead_anywhere_else() -> None:
    lab = Lab.open(SCENARIO, "sil", [*FAST, "bind.profiles.sil.network.backend=frames"])
    with pytest.raises(UsageError, match="joins two processes of one run"):
        lab.exchange(rack="127.0.0.2", node="127.0.0.1", passport=Passport())
