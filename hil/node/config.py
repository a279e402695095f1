"""What a decoder node must know before the first frame: one frozen, validated, JSON-able model.

The rack process writes it as one line to the node's standard input (``Launch``). Nothing in it
changes while the node lives.
"""

from __future__ import annotations

import ipaddress
from functools import cached_property
from itertools import pairwise
from typing import Annotated, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gpu_decoder.build import NAMES
from gpu_decoder.ising.config import PredecoderConfig
from gpu_decoder.policy import RECOVERABLE
from gpu_decoder.protocol import Reason
from hil.errors import UsageError
from hil.link.endpoint import Transport
from hil.link.fault_plan import LinkPlan
from hil.link.rc_requester import RcAttributes
from hil.timebase import PS_PER_MS, PS_PER_S
from hil.wire.rpc import EnvelopeKind
from hil.wire.segments import path_mtu

HOPS: Final = ("uplink", "deliver", "queue", "decode", "reply", "downlink")
"""Hops whose delay can be injected in a live run, in the order of a shot's life."""

_ACK_TIMEOUT: Final = 17
NonNegative = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Psn = Annotated[int, Field(ge=0, lt=1 << 24)]
U32 = Annotated[int, Field(ge=0, lt=1 << 32)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Delays(_Model):
    """Pure delays added on purpose, in ps (0 = none), for the known-delay test and stall faults.

    Attributes:
        uplink_ps: the sender holds a frame between its stamp T2 (tx) and the socket.
        deliver_ps: the node holds a frame between T3 (rx) and T4 (visible).
        queue_ps: the node holds a complete window before a worker may take it.
        decode_ps: the worker spins inside its start and end stamps.
        reply_ps: the node waits between decode end and its stamp T8 (reply tx).
        downlink_ps: the node holds the reply between T8 and the socket.
        from_shot: hop name -> first shot with that delay; 0 where a hop is not named.
        bursts: hop name -> (shots, every): only so many shots of each period, the first ones.
        stalls_ps: shot -> extra time of its primary decode (fault ``decoder_stall``).
    """

    uplink_ps: NonNegative = 0
    deliver_ps: NonNegative = 0
    queue_ps: NonNegative = 0
    decode_ps: NonNegative = 0
    reply_ps: NonNegative = 0
    downlink_ps: NonNegative = 0
    from_shot: dict[Literal["uplink", "deliver", "queue", "decode", "reply", "downlink"], int] = {}
    bursts: dict[
        Literal["uplink", "deliver", "queue", "decode", "reply", "downlink"],
        tuple[Positive, Positive],
    ] = {}
    stalls_ps: dict[int, int] = {}

    def of(self, hop: str, shot: int) -> int:
        """Injected delay in ps of ``hop`` (one of ``HOPS``) for ``shot``."""
        delay_ps: int = getattr(self, f"{hop}_ps")
        if not delay_ps or shot < self.from_shot.get(hop, 0):  # type: ignore[call-overload]
            return 0
        shots, every = self.bursts.get(hop, (1, 1))  # type: ignore[call-overload]
        off = (shot - self.from_shot.get(hop, 0)) % every >= shots  # type: ignore[call-overload]
        return 0 if off else delay_ps


class Breakage(_Model):
    """Shots whose primary decode is broken on purpose.

    Attributes:
        reason: how it breaks (``hil.node.worker``).
        first: first shot.
        shots: how many in a row.
    """

    reason: Reason
    first: NonNegative
    shots: Positive = 1


class DetectorMap(_Model):
    """How the detectors of one model follow from raw measurements.

    Attributes:
        rows: D, per detector the measurements (counted from 0 over the blocks) whose parity it is.
        inverted: detectors whose parity is 1 without noise.
    """

    rows: tuple[tuple[NonNegative, ...], ...]
    inverted: tuple[NonNegative, ...] = ()


LiveNetwork: TypeAlias = Literal["soft_roce", "frames", "verbs", "cudaq_udp"]
"""Network backends on which messages really travel."""


class NodeConfig(_Model):
    """Configuration of one live exchange: addresses, geometry of a shot, decoders, policy, faults.

    Attributes:
        rack_address: IPv4 address of the rack's endpoint, loopback unless ``allow_remote``.
        node_address: address of the node's endpoint, another one.
        network: what carries the messages (``hil.node.endpoints``). With ``verbs`` the addresses
            are those of the devices.
        rack_device: ``verbs``: the rack's RDMA device; ``frames``: its network interface, or
            ``None`` on both sides for a pair of UNIX sockets.
        node_device: the same of the node.
        udp_port: UDP port of both (4791 is RoCEv2's).
        psn_start_up: first packet sequence number rack -> node.
        psn_start_down: first packet sequence number node -> rack.
        ring_slots: slots of the node's memory; a frame owns one until its window is taken.
        block_detectors: per block (round; the last one is the final data readout) the detector
            index of each bit on the wire, in order. Together a permutation of ``range(D)``.
        payload: what the bits on the wire are.
        block_measurements: payload ``measurements``: bits of each block, in order of the record.
        detector_maps: payload ``measurements``: D of each model.
        envelope: what protects a message beside its counter (``hil.wire.rpc``).
        start: ``agreed``: counters begin at ``first_shot``; ``open``: the first
            ``enqueue_syndromes`` that arrives begins a shot, whatever its counter and slot.
        n_observables: O, bits of an answer.
        first_shot: number of the first shot that will be sent.
        decoder_id: id that every message must carry.
        epoch: calibration epoch that every message must carry.
        board_mask: boards that must have contributed to every block.
        dem_text: stim detector error model with D detectors and O observables.
        more_dem_texts: further models of the same shape; shots of all of them take turns.
        primary: decoder name (``gpu_decoder.build.NAMES``).
        predecoders: what runs before the primary, one per model; empty: nothing does.
        primary_workers: processes that run it.
        fallback: decoder name of the fallback, or ``None``: policy ``never``.
        fallback_workers: processes that run it.
        fallback_when: reasons for which it is asked.
        predecode: whole shots are taken too (RPC ``predecode``): the slots have room for one.
        mode: ``decide``: deadlines hold on the wall clock; ``measure``: durations are measured
            and the fates are decided elsewhere, in scenario time.
        deadline_ps: answer in effect, relative to T0 of the last block.
        primary_deadline_ps: primary done, relative to T0 of the last block.
        primary_pred_ps: P, predicted primary service time.
        way_back_pred_ps: predicted time from decode end to correction in effect.
        fallback_pred: predicted fallback service by event count: points ``(events, ps)``, linear in
            between, constant outside.
        gap_timeout_ps: without any frame for that long, incomplete shots are declared. Must exceed
            the largest spacing of two frames of a shot.
        answer_timeout_ps: rack side: no reply so long after the request = declared by the rack.
        stamp_shots: shots kept in the shared stamp file.
        spin: the node polls without sleeping (wants a core of its own).
        delays: injected delays and stalls.
        breakages: shots whose primary decode is broken; the first that names a shot counts.
        mtu_bytes: path MTU of both directions.
        transport: connection of both directions, unreliable or reliable. On ``rc`` a full ring is
            never answered BUSY: the rack's frames wait for a slot (RNR).
        allow_remote: addresses may lie outside this machine.
        rack_qp: queue pair of the rack, for a node that was told it; random if ``None``.
        reply_bytes: least size of a reply slot, for a node whose replies fill a whole slot.
    """

    rack_address: str
    node_address: str
    network: LiveNetwork = "soft_roce"
    rack_device: str | None = None
    node_device: str | None = None
    udp_port: Annotated[int, Field(ge=1, le=65535)] = 4791
    psn_start_up: Psn = 0
    psn_start_down: Psn = 0
    ring_slots: Annotated[int, Field(ge=1, le=4096)]
    block_detectors: tuple[tuple[NonNegative, ...], ...]
    payload: Literal["detectors", "measurements"] = "detectors"
    block_measurements: tuple[Positive, ...] = ()
    detector_maps: tuple[DetectorMap, ...] = ()
    envelope: EnvelopeKind = "hil"
    start: Literal["agreed", "open"] = "agreed"
    n_observables: Annotated[int, Field(ge=1)]
    first_shot: NonNegative = 0
    decoder_id: Annotated[int, Field(ge=0, le=31)] = 0
    epoch: U32 = 0
    board_mask: U32 = 1
    dem_text: str
    more_dem_texts: tuple[str, ...] = ()
    primary: str
    predecoders: tuple[PredecoderConfig, ...] = ()
    primary_workers: Positive = 1
    fallback: str | None = None
    fallback_workers: Positive = 1
    fallback_when: frozenset[Reason] = RECOVERABLE
    predecode: bool = False
    mode: Literal["decide", "measure"]
    deadline_ps: Positive
    primary_deadline_ps: Positive | None = None
    primary_pred_ps: NonNegative = 0
    way_back_pred_ps: NonNegative = 0
    fallback_pred: tuple[tuple[int, int], ...] = ()
    gap_timeout_ps: Positive = 200 * PS_PER_MS
    answer_timeout_ps: Positive = 2 * PS_PER_S
    stamp_shots: Annotated[int, Field(ge=16)] = 8192
    spin: bool = False
    delays: Delays = Delays()
    breakages: tuple[Breakage, ...] = ()
    mtu_bytes: Annotated[int, Field(ge=256, le=4096)] = 1500
    transport: Transport = "uc"
    allow_remote: bool = False
    rack_qp: Annotated[int, Field(ge=1, lt=1 << 24)] | None = None
    reply_bytes: NonNegative = 0

    @classmethod
    def create(cls, **fields: object) -> NodeConfig:
        """Build and check a configuration.

        Raises:
            UsageError: a field is missing, unknown, malformed or at odds with another one.
        """
        try:
            config = cls.model_validate(fields)
        except ValidationError as error:
            raise _usage(error) from None
        return config.checked()

    @classmethod
    def from_json(cls, text: str) -> NodeConfig:
        """Read what ``model_dump_json`` wrote, and check it.

        Raises:
            UsageError: as ``create``.
        """
        try:
            config = cls.model_validate_json(text)
        except ValidationError as error:
            raise _usage(error) from None
        return config.checked()

    def checked(self) -> NodeConfig:
        """Return self after the checks that span several fields.

        Raises:
            UsageError: naming the field, what it holds and what is allowed.
        """
        for name in ("rack_address", "node_address"):
            remote = self.allow_remote or self.network == "verbs"
            _check_address(name, getattr(self, name), allow_remote=remote)
        devices = {"frames": (False, True), "verbs": (True,)}.get(self.network, (False,))
        given = (self.rack_device is not None, self.node_device is not None)
        if given[0] != given[1] or given[0] not in devices:
            got = f"{self.rack_device}, {self.node_device}, network {self.network}"
            _refuse("rack_device, node_device", got, "both for verbs, both or none for frames")
        if self.rack_address == self.node_address:
            _refuse("node_address", self.node_address, "another address than rack_address")
        for name, value in (("primary", self.primary), ("fallback", self.fallback)):
            if value is not None and value not in NAMES:
                _refuse(name, value, ", ".join(sorted(NAMES)))
        flat = [d for block in self.block_detectors for d in block]
        if not all(self.block_detectors) or sorted(flat) != list(range(len(flat))) or not flat:
            _refuse(
                "block_detectors",
                f"{len(self.block_detectors)} blocks, {len(flat)} indices",
                "blocks with at least one detector, each of range(D) exactly once",
            )
        self._check_payload()
        if len(self.predecoders) not in (0, 1 + len(self.more_dem_texts)):
            models = 1 + len(self.more_dem_texts)
            _refuse("predecoders", str(len(self.predecoders)), f"one for each of {models} models")
        if self.predecode and self.start == "open":
            _refuse("predecode", "start: open", "start agreed: its request id is the shot's number")
        if self.more_dem_texts and self.start == "open":
            _refuse("more_dem_texts", "start: open", "one model: whose turn it is nobody knows")
        if self.predecode and self.n_observables != 1:
            _refuse("predecode", f"{self.n_observables} observables", "1: its answer is a parity")
        if self.mode == "decide" and self.fallback is not None:
            self._check_policy()
        return self

    def _check_payload(self) -> None:
        measured = self.payload == "measurements"
        models, total = 1 + len(self.more_dem_texts), sum(self.block_measurements)
        if len(self.block_measurements) != (self.n_blocks if measured else 0):
            _refuse(
                "block_measurements",
                f"{len(self.block_measurements)} blocks, payload {self.payload}",
                f"{self.n_blocks} blocks with payload measurements, else none",
            )
        if len(self.detector_maps) != (models if measured else 0):
            _refuse(
                "detector_maps",
                f"{len(self.detector_maps)}, payload {self.payload}",
                f"{models}, one per model, with payload measurements, else none",
            )
        for one in self.detector_maps:
            inside = all(m < total for row in one.rows for m in row)
            rows = len(one.rows) == self.n_detectors
            if not (inside and rows and all(d < self.n_detectors for d in one.inverted)):
                _refuse(
                    "detector_maps",
                    f"{len(one.rows)} rows",
                    f"{self.n_detectors} rows of measurements below {total}",
                )

    def _check_policy(self) -> None:
        if self.primary_deadline_ps is None or self.primary_deadline_ps >= self.deadline_ps:
            _refuse(
                "primary_deadline_ps",
                str(self.primary_deadline_ps),
                f"a time below deadline_ps ({self.deadline_ps} ps)",
            )
        if not self.fallback_pred:
            _refuse("fallback_pred", "()", "at least one point (events, ps)")

    @property
    def n_blocks(self) -> int:
        """r: blocks of a shot, the rounds and the final data readout."""
        return len(self.block_detectors)

    @property
    def messages_per_shot(self) -> int:
        """r enqueue_syndromes and one get_corrections."""
        return self.n_blocks + 1

    @cached_property
    def n_detectors(self) -> int:
        """D: detectors of a whole shot."""
        return sum(len(block) for block in self.block_detectors)

    @cached_property
    def block_bits(self) -> tuple[int, ...]:
        """Bits on the wire of each block."""
        return self.block_measurements or tuple(len(block) for block in self.block_detectors)

    @property
    def prediction_bytes(self) -> int:
        """ceil(O / 8)."""
        return -(-self.n_observables // 8)

    @cached_property
    def detector_index(self) -> tuple[NDArray[np.int64], ...]:
        """Per block the detector index of each bit, int64 [bits]."""
        return tuple(np.asarray(block, dtype=np.int64) for block in self.block_detectors)

    @property
    def rc_attributes(self) -> RcAttributes:
        """Limits and times of both ends on RC.

        The ack timeout is 0.54 s, so that error comes after 4.3 s: a rack that is busy elsewhere
        between two plans must not be taken for dead.
        """
        return RcAttributes(path_mtu=path_mtu(self.mtu_bytes), timeout=_ACK_TIMEOUT)

    def broken(self, shot: int) -> Reason:
        """How the primary decode of ``shot`` is to break; ``NONE`` for almost all."""
        for breakage in self.breakages:
            if 0 <= shot - breakage.first < breakage.shots:
                return breakage.reason
        return Reason.NONE

    def fallback_pred_ps(self, n_events: int) -> int:
        """Predicted fallback service in ps for a shot with ``n_events`` detection events."""
        points = self.fallback_pred
        if n_events <= points[0][0]:
            return points[0][1]
        for (x0, y0), (x1, y1) in pairwise(points):
            if n_events <= x1:
                return y0 + (y1 - y0) * (n_events - x0) // (x1 - x0)
        return points[-1][1]


class Peer(_Model):
    """Receiver address in JSON form (``hil.link.endpoint.PeerAddress``)."""

    host: str
    port: int
    qp: int
    psn: int
    rkey: int
    base_va: int
    stride: int
    n_slots: int


class Launch(_Model):
    """The control line that starts a node.

    Attributes:
        config: the exchange.
        peer: the rack's receiver.
        stamp_path: the stamp file.
        parent_pid: the rack's process.
        cable: inherited descriptor of the node's end of the cable, if there is one.
        answer_faults: what its port does to answers on their way out; decoders never see it.
    """

    config: NodeConfig
    peer: Peer
    stamp_path: str
    parent_pid: int
    cable: int | None = None
    answer_faults: LinkPlan | None = None


def _check_address(name: str, text: str, *, allow_remote: bool) -> None:
    try:
        good = allow_remote or ipaddress.IPv4Address(text).is_loopback
        ipaddress.IPv4Address(text)
    except ValueError:
        good = False
    if not good:
        where = "address" if allow_remote else "loopback address, 127.0.0.0/8"
        _refuse(name, text, f"an IPv4 {where}")


def _refuse(field: str, got: str, allowed: str) -> None:
    raise UsageError(
        "value not allowed in the node's configuration", where=field, got=got, allowed=allowed
    )


def _usage(error: ValidationError) -> UsageError:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return UsageError(
        f"node configuration: {first['msg']}", where=where, got=str(first.get("input"))[:80]
    )
