"""``hil node serve SCENARIO``: a decoder node for racks that come from anywhere.

Two ways in. Racks of ours set up a session each, one after the other, and a fresh node process with
fresh numbers (queue pair, key, first PSN) serves each. A foreign rack (an FPGA) cannot do that: its
address is told, the numbers are printed, and one node process serves it until the end.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from hil.errors import HilError, RigError
from hil.link.endpoint import PeerAddress
from hil.node import setup
from hil.node.config import Launch, NodeConfig, Peer
from hil.node.lobby import Guest, Lobby
from hil.node.process import NodeProcess
from hil.node.setup import SetupError, Welcome
from hil.node.stamps import StampReader, create_stamp_file
from hil.run.interrupt import Interrupt
from hil.run.lab import Lab
from hil.timebase import MISSING_PS, PS_PER_NS
from hil.wire.roce import PSN_MASK

REPLY_STRIDE: Final = 4096
"""Slot size taken for a foreign rack: it limits our replies, which are far smaller."""

_NORMAL: Final = ("orderly", "the rack hung up", "interrupted here")
_WAIT_S: Final = 0.2
_START_S: Final = 120.0
Say = Callable[[str], None]


@dataclass
class SessionRecord:
    """One session, as it goes into the summary.

    Attributes:
        rack: where it came from.
        seconds: how long it lasted, the node's start included.
        ended: ``orderly``, or why not.
        counters: of the node, empty if it died.
        decode_ns: ``n``, ``p50``, ``p99``, ``max`` of the last decodes (at most ``stamp_shots``).
    """

    rack: str
    seconds: float = 0.0
    ended: str = "orderly"
    counters: dict[str, int] = field(default_factory=dict)
    decode_ns: dict[str, int] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        """Whether it was this side that could not go on."""
        return self.ended not in _NORMAL


@dataclass
class Standalone:
    """A node that serves until somebody ends it.

    Attributes:
        lab: the scenario and what was built of it.
        config: the exchange, as this side knows it.
        say: gets one line per fact.
        interrupt: ends it.
        most: sessions after which it ends by itself, ``None`` for no end.
    """

    lab: Lab
    config: NodeConfig
    say: Say
    interrupt: Interrupt
    most: int | None = None
    sessions: list[SessionRecord] = field(default_factory=list)

    def serve(self, lobby: Lobby) -> None:
        """Serve racks of ours, one session after the other."""
        self._introduce()
        host, port = lobby.address
        self.say(f"listening: TCP {host}:{port}")
        self.say(f"connect:   hil rack stream SCENARIO --to {host}:{port}")
        while not self.interrupt and (self.most is None or len(self.sessions) < self.most):
            _wait(lobby.filenos())
            for guest in lobby.serve(time.monotonic()):
                self._receive(guest, lobby)
        if lobby.count:
            told = ", ".join(f"{name} {n}" for name, n in sorted(lobby.count.items()))
            self.say(f"set-ups:   {told}")

    def serve_foreign(self, rack: PeerAddress) -> None:
        """Serve one sender that knows no session set-up, until the end."""
        self._introduce()
        record = SessionRecord(f"{rack.host} qp {rack.qp:#x}")
        self.sessions.append(record)
        begin = time.monotonic()
        changes = {"rack_address": rack.host, "start": "open"}
        config = self.config.model_copy(update=changes).checked()
        with self._node(config, Peer(**asdict(rack)), record) as node:
            _tell_receiver(node.peer, self.say)
            _tell_foreign(node.peer, rack, config, self.say)
            while not self.interrupt and not select.select([node], (), (), _WAIT_S)[0]:
                pass
            if not self.interrupt:
                record.ended = f"the node died: {node.epitaph()}"
            record.counters = node.end(None)
        record.seconds = round(time.monotonic() - begin, 3)
        self._tell_end(record)

    def summary(self) -> dict[str, Any]:
        """What was served, as JSON data."""
        return {
            "format": "hil.node/1",
            "scenario": self.lab.scenario.id,
            "exchange": setup.facts(self.config),
            "sessions": [asdict(record) for record in self.sessions],
        }

    # -- one session --------------------------------------------------------------------------

    def _receive(self, guest: Guest, lobby: Lobby) -> None:
        """Serve a rack, unless the two sides do not mean the same."""
        hello = guest.hello
        unlike = setup.disagreement(hello.facts, setup.facts(self.config))
        if hello.peer.host != guest.end:
            unlike = f"replies to {hello.peer.host} for a set-up from {guest.end}"
        if unlike:
            self.say(f"refused:   rack {guest.end}: {unlike}")
            guest.refuse(f"the two sides differ: {unlike}")
            return
        record = SessionRecord(guest.end)
        self.sessions.append(record)
        changes = {
            "rack_address": hello.peer.host,
            "psn_start_up": secrets.randbelow(PSN_MASK + 1),
            "gap_timeout_ps": max(self.config.gap_timeout_ps, hello.gap_timeout_ps),
        }
        begin = time.monotonic()
        try:
            config = self.config.model_copy(update=changes).checked()
            with self._node(config, Peer(**hello.peer.model_dump()), record) as node:
                self.say(f"session {len(self.sessions)}: rack {guest.end}")
                _tell_receiver(node.peer, self.say)
                guest.welcome(
                    Welcome.model_validate(
                        {"peer": asdict(node.peer), "fingerprints": node.fingerprints}
                    )
                )
                self._attend(guest, node, lobby, record)
        except HilError as error:
            record.ended = error.message
            guest.refuse(f"the node cannot serve: {error.message}")
        finally:
            guest.close()
            record.seconds = round(time.monotonic() - begin, 3)
        self._tell_end(record)

    def _attend(self, guest: Guest, node: NodeProcess, lobby: Lobby, record: SessionRecord) -> None:
        """Wait for the end of the session, whoever brings it about; send others away."""
        while not self.interrupt:
            readable = _wait([*lobby.filenos(), guest.fileno(), node.fileno()])
            for other in lobby.serve(time.monotonic()):
                other.refuse("busy: one session at a time")
            if node.fileno() in readable:
                record.ended = f"the node died: {node.epitaph()}"
                return
            said = guest.heard() if guest.fileno() in readable else b""
            if said is None:
                record.ended = "the rack hung up"
                record.counters = node.end(None)
                return
            if said:
                self._farewell(guest, node, said, record)
                return
        record.ended = "interrupted here"
        record.counters = node.end(None)

    @staticmethod
    def _farewell(guest: Guest, node: NodeProcess, said: bytes, record: SessionRecord) -> None:
        next_counter = None
        try:
            next_counter = setup.read_end(said)
        except SetupError as error:
            record.ended = error.message
        record.counters = node.end(next_counter)
        guest.farewell(record.counters)

    @contextlib.contextmanager
    def _node(self, config: NodeConfig, peer: Peer, record: SessionRecord) -> Iterator[NodeProcess]:
        """A node process with a stamp file of its own."""
        frames = config.stamp_shots * config.n_blocks
        path = create_stamp_file(frames, config.stamp_shots, config.prediction_bytes)
        try:
            stamps = StampReader(path)
            descriptor = os.open(path, os.O_RDWR)
        finally:
            path.unlink()
        launch = Launch(
            config=config,
            peer=peer,
            stamp_path=f"/proc/self/fd/{descriptor}",
            parent_pid=os.getpid(),
        )
        try:
            node = NodeProcess(launch, timeout_s=_START_S, pass_fds=(descriptor,))
        except BaseException:
            stamps.close()
            raise
        finally:
            os.close(descriptor)
        try:
            yield node
        finally:
            node.close()
            record.decode_ns = _decodes(stamps, config, record.counters)
            stamps.close()

    # -- words --------------------------------------------------------------------------------

    def _introduce(self) -> None:
        config, scenario = self.config, self.lab.scenario
        blocks = " ".join(str(len(block)) for block in config.block_detectors)
        self.say(f"scenario:  {scenario.id}, {scenario.title}")
        self.say(f"circuit:   dem sha256 {', '.join(m.dem_sha256 for m in self.lab.models)}")
        self.say(f"shot:      {config.n_blocks} blocks of {blocks} bits, "
                 f"{config.n_observables} observables")  # fmt: skip
        self.say(f"decoder:   {self.lab.decoders.primary_name}, no deadline on this clock")
        self.say(f"messages:  envelope {config.envelope}, payload {config.payload}")
        self.say(f"link:      {config.network}, {config.transport}, MTU {config.mtu_bytes}")

    def _tell_end(self, record: SessionRecord) -> None:
        self.say(f"ended:     {record.ended}, {record.seconds:.1f} s")
        told = ("enqueue", "shots_primary", "shots_unanswered", "lost", "duplicate", "reordered")
        counts = " ".join(f"{name} {record.counters.get(name, 0)}" for name in told)
        self.say(f"counted:   {counts}" if record.counters else "counted:   nothing is known")
        if record.decode_ns:
            times = ", ".join(f"{k} {v} ns" for k, v in record.decode_ns.items() if k != "n")
            self.say(f"decode:    {times} of the last {record.decode_ns['n']} shots")


def write_summary(path: Path, data: dict[str, Any]) -> None:
    """Write JSON data, whole.

    Raises:
        RigError: the file cannot be written.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise RigError("cannot be written", where=str(path), got=str(error.strerror)) from error


def _wait(descriptors: list[int]) -> list[int]:
    return select.select(descriptors, (), (), _WAIT_S)[0]


def _decodes(stamps: StampReader, config: NodeConfig, counters: dict[str, int]) -> dict[str, int]:
    """Durations of the last decodes that the ring of stamps still holds."""
    answered = counters.get("shots_primary", 0) + counters.get("shots_unanswered", 0)
    numbers = np.arange(max(0, answered - config.stamp_shots), answered) + config.first_shot
    rows, there = stamps.shots(numbers)
    known = there & (rows["primary_end_ps"] != MISSING_PS)
    if not known.any():
        return {}
    spent_ns = (rows["primary_end_ps"] - rows["primary_start_ps"])[known] // PS_PER_NS
    p50, p99 = np.quantile(spent_ns, (0.5, 0.99), method="higher")
    return {"n": spent_ns.size, "p50": int(p50), "p99": int(p99), "max": int(spent_ns.max())}


def _tell_receiver(peer: PeerAddress, say: Say) -> None:
    """Where frames go; three of the lines read as those of NVIDIA's server, for its scripts."""
    say(f"receiver:  {peer.host} UDP {peer.port}")
    say(f"QP Number: {peer.qp:#x}")
    say(f"RKey: {peer.rkey}")
    say(f"Buffer Addr: {peer.base_va:#x}")
    say(f"slots:     {peer.n_slots} of {peer.stride} bytes")
    say(f"first PSN: {peer.psn}")


def _tell_foreign(peer: PeerAddress, rack: PeerAddress, config: NodeConfig, say: Say) -> None:
    say(f"replies:   SEND to {rack.host} UDP {rack.port}, QP {rack.qp:#x}, from PSN {rack.psn}")
    say(f"by hand:   hil rack stream SCENARIO --to {peer.host}:{peer.port} --qp {peer.qp:#x} "
        f"--rkey {peer.rkey:#x} --va {peer.base_va:#x} --stride {peer.stride} "
        f"--slots {peer.n_slots} --psn {peer.psn} --own-qp {rack.qp:#x}")  # fmt: skip
    say(f"HSB:       VP +0 {peer.qp:#x}, +4 {peer.rkey:#x}, +8 {peer.base_va & 0xFFFFFFFF:#x}, "
        f"+0xC {peer.base_va >> 32:#x}, +0x10 {peer.stride // 128}, "
        f"+0x14 {peer.n_slots - 1}, +0x2C {peer.port | 1 << 16:#x} (no metadata)")  # fmt: skip
    say(f"           HIF +8 {peer.port}: our socket hears one port only")
    say(f"playback:  --per-round --qp-number {peer.qp:#x} --rkey {peer.rkey} "
        f"--buffer-addr {peer.base_va:#x} --page-size {peer.stride}")  # fmt: skip
    say(f"ring:      slots in turn, {config.messages_per_shot} messages a shot")
