"""The node's door: every message is read, checked field by field and audited, or refused by name.

Pure. What is refused is counted by cause and answered where the header can be read and trusted.
"""

from __future__ import annotations

import struct
from collections import Counter
from typing import Final, NamedTuple

from gpu_decoder.protocol import Reason
from hil.link.sequence import Arrival, SequenceAudit
from hil.node.config import NodeConfig
from hil.node.shots import Answerer, Asked, Outcome, Reply
from hil.wire.predecode import (
    PREDECODE,
    Correction,
    Predecode,
    build_correction,
    parse_predecode,
)
from hil.wire.rpc import (
    ENQUEUE_SYNDROMES,
    GET_CORRECTIONS,
    MAGIC_REQUEST,
    EnqueueSyndromes,
    Envelope,
    GetCorrections,
    Request,
    ResetDecoder,
    Response,
    RpcError,
    Status,
    build_response,
    is_intact,
    pad,
    parse_request,
    peek_request,
)

MAX_JUMP: Final = 1 << 22
"""A counter further ahead than this is not believed."""

MAX_UNVERIFIED_SHOTS: Final = 4
"""The same in shots where one field alone tells the counter and no end-to-end CRC protects it: of a
refused frame, and of a request for corrections without envelope."""

PROTOCOL_ERROR: Final = -1
"""Status of a readable message with an unknown function id."""

NO_COUNTER: Final = -1
"""Stands for the counter of a ``reset_decoder``, which has none."""

_PREDECODE_HEAD: Final = struct.pack("<II", MAGIC_REQUEST, PREDECODE)
_RID_MASK: Final = (1 << 32) - 1
_NS_PER_S: Final = 1_000_000_000
_REPEATED: Final = (Arrival.DUPLICATE, Arrival.STALE)


class Admitted(NamedTuple):
    """A message that is read and new. ``counter``: of a predecode, the number of its shot."""

    request: Request | Predecode
    counter: int
    arrival: Arrival


class Turned(NamedTuple):
    """A frame that found its slot owned: only the header is known."""

    shot: int
    request_id: int
    ptp_timestamp: int
    is_get: bool
    whole: bool


class Rejected(NamedTuple):
    """A message that goes no further; ``reply`` is ``None`` if it gets no answer."""

    reply: Reply | None


class Fault(NamedTuple):
    """A readable message that cannot be used: status of its reply, reason for its shot."""

    status: Status
    reason: Reason


class Intake:
    """Reads messages and audits their counters.

    Args:
        config: the node's configuration.
        first_counter: counter of the first message that the rack will send.
        memory: how many counters back a late message is told from a repeated one.
    """

    def __init__(self, config: NodeConfig, first_counter: int, memory: int) -> None:
        self._config = config
        self._per_shot = config.messages_per_shot
        self._origin: int | None = 0 if config.start == "agreed" else None
        self._first_slot = 0
        self._bare = config.envelope == "nvidia"
        self.audit = SequenceAudit(64, first_counter, memory)
        self.count: Counter[str] = Counter()

    def admit(self, data: memoryview, slot: int) -> Admitted | Rejected:
        """Read one whole message, the bytes of ``slot``."""
        if self._is_predecode(data):
            return self._admit_predecode(data, slot)
        try:
            request = parse_request(data, self._config.envelope)
        except RpcError as error:
            self.count[f"bad_{error.cause}"] += 1
            return Rejected(self._refuse_unparsed(data, error))
        if request.decoder_id != self._config.decoder_id:
            self.count["bad_decoder_id"] += 1
            return Rejected(self.reply(request, Status.INVALID_DECODER))
        if isinstance(request, ResetDecoder):
            if self._config.start == "open":
                self._origin = None
            return Admitted(request, NO_COUNTER, Arrival.IN_ORDER)
        self._begin(request, slot)
        counter = self._counter_of(request)
        if counter is None or not self._fits_slot(counter, slot):
            self.count["bad_request" if counter is None else "bad_slot"] += 1
            return Rejected(self.reply(request, Status.BAD_REQUEST))
        arrival = self.audit.observe(counter)
        return Rejected(None) if arrival in _REPEATED else Admitted(request, counter, arrival)

    def admit_header(self, header: bytes, slot: int) -> Turned | Rejected:
        """Read the header of a frame that was not stored because ``slot`` is owned."""
        try:
            function, _, request_id, ptp_timestamp = peek_request(header)
        except RpcError as error:
            self.count[f"bad_{error.cause}"] += 1
            return Rejected(None)
        if self._is_predecode(header):
            number = self._number_of(request_id, slot, MAX_UNVERIFIED_SHOTS)
            if number is None:
                self.count["bad_request"] += 1
            if number is None or self._observe_shot(number) in _REPEATED:
                return Rejected(None)
            self.count["busy"] += 1
            return Turned(number, request_id, ptp_timestamp, is_get=True, whole=True)
        counter = self._extend(request_id) if self._origin is not None else NO_COUNTER
        is_get = counter % self._per_shot == self._config.n_blocks
        expected = GET_CORRECTIONS if is_get else ENQUEUE_SYNDROMES
        near = self._plausible(counter, MAX_UNVERIFIED_SHOTS * self._per_shot)
        if function != expected or not near or not self._fits_slot(counter, slot):
            self.count["bad_request"] += 1
            return Rejected(None)
        if self.audit.observe(counter) in _REPEATED:
            return Rejected(None)
        self.count["busy"] += 1
        shot = counter // self._per_shot
        return Turned(shot, request_id, ptp_timestamp, is_get, whole=False)

    def shot_of_header(self, header: bytes) -> int:
        """The shot that a header's request id stands for, unchecked."""
        request_id = int.from_bytes(header[12:16], "little")
        if self._is_predecode(header):
            return _nearest(request_id, self._expected_shot)
        return self._extend(request_id) // self._per_shot if self._origin is not None else 0

    def enqueue_fault(self, request: EnqueueSyndromes, block: int) -> Fault | None:
        """Why a block cannot be used, or ``None``."""
        fault = self._envelope_fault(request)
        if fault is None and request.num_syndromes != self._config.block_bits[block]:
            fault = self._bad_request()
        return fault

    def get_fault(self, request: GetCorrections) -> Fault | None:
        """Why a request for corrections cannot be served, or ``None``."""
        fault = self._envelope_fault(request)
        wanted = (self._config.n_observables, 1)
        if fault is None and (request.return_size, request.reset) != wanted:
            fault = self._bad_request()
        return fault

    def reply(self, request: Request, status: int) -> Reply:
        """Reply without a result to a message that could be read."""
        valid_until = request.envelope.valid_until_round if request.envelope else 0
        return self.reply_to(
            request.request_id, request.ptp_timestamp, status, valid_until=valid_until
        )

    def reply_to(
        self,
        request_id: int,
        ptp_timestamp: int,
        status: int,
        result: bytes = b"",
        *,
        valid_until: int = 0,
        shot: int = -1,
    ) -> Reply:
        """Reply with our epoch and board mask, padded as every message."""
        known = Envelope(self._config.epoch, self._config.board_mask, valid_until)
        envelope = None if self._bare else known
        response = Response(int(status), request_id, ptp_timestamp, result, envelope)
        return Reply(pad(build_response(response)), shot)

    def correction(self, asked: Asked, outcome: Outcome, shot: int) -> Reply:
        """Reply to the predecode of ``shot``."""
        found = Correction(0, 0)
        if outcome.status is Status.OK:
            converged = int(outcome.path is Answerer.PRIMARY)
            found = Correction(outcome.prediction[0] & 1, converged)
        data = build_correction(asked.request_id, asked.ptp_timestamp, int(outcome.status), found)
        return Reply(pad(data), shot)

    def refuse_whole(self, request_id: int, ptp_timestamp: int) -> Reply:
        """Reply to a predecode that cannot be served."""
        self.count["bad_request"] += 1
        status = int(Status.BAD_REQUEST)
        return Reply(pad(build_correction(request_id, ptp_timestamp, status, Correction(0, 0))))

    def _is_predecode(self, data: bytes | memoryview) -> bool:
        return self._config.predecode and bytes(data[:8]) == _PREDECODE_HEAD

    def _admit_predecode(self, data: memoryview, slot: int) -> Admitted | Rejected:
        """Its request id is the number of its shot; nothing else tells two shots apart."""
        try:
            header = peek_request(data)
        except RpcError as error:
            self.count[f"bad_{error.cause}"] += 1
            return Rejected(None)
        named = (header.request_id, header.ptp_timestamp)
        number = self._number_of(header.request_id, slot, MAX_JUMP // self._per_shot)
        if number is None:
            return Rejected(self.refuse_whole(*named))
        arrival = self._observe_shot(number)
        if arrival in _REPEATED:
            return Rejected(None)
        try:
            request = parse_predecode(data)
        except RpcError as error:
            self.count[f"bad_{error.cause}"] += 1
            return Rejected(self.refuse_whole(*named))
        stamp = header.ptp_timestamp
        wrong = stamp == 0 or stamp & _RID_MASK >= _NS_PER_S
        if wrong or len(request.detectors) != self._config.n_detectors:
            return Rejected(self.refuse_whole(*named))
        return Admitted(request, number, arrival)

    def _number_of(self, request_id: int, slot: int, jump: int) -> int | None:
        """The shot of a predecode, or ``None`` if it is not near or does not fit the slot."""
        number = _nearest(request_id, self._expected_shot)
        near = 0 <= number <= self._expected_shot + jump
        return number if near and self._fits_slot(number, slot) else None

    @property
    def _expected_shot(self) -> int:
        return (self.audit.expected or 0) // self._per_shot

    def _observe_shot(self, number: int) -> Arrival:
        """A whole shot takes all the counters that its blocks and its request would have."""
        first = number * self._per_shot
        return [self.audit.observe(first + k) for k in range(self._per_shot)][-1]

    def _refuse_unparsed(self, data: memoryview, error: RpcError) -> Reply | None:
        try:
            header = peek_request(data)
        except RpcError:
            return None  # not a request
        if not self._bare and not is_intact(data):
            return None  # its request_id cannot be trusted
        status = PROTOCOL_ERROR if error.cause == "function" else Status.BAD_REQUEST
        return self.reply_to(header.request_id, header.ptp_timestamp, status)

    def _begin(self, request: EnqueueSyndromes | GetCorrections, slot: int) -> None:
        """Open start: what comes with the size of a first block begins the next shot."""
        if self._origin is not None or isinstance(request, GetCorrections):
            return
        if (request.num_syndromes, request.counter & _RID_MASK) != (
            self._config.block_bits[0],
            request.request_id,
        ):
            return
        shots = -(-(self.audit.expected or 0) // self._per_shot)
        self._origin = request.counter - shots * self._per_shot
        self._first_slot = slot - shots * self._per_shot

    def _fits_slot(self, counter: int, slot: int) -> bool:
        """Whether a message may lie in ``slot``: the sender fills the ring strictly in turn."""
        if self._config.network == "cudaq_udp":
            return True  # the receiver does, by arrival: behind a loss no counter tells the slot
        return (counter + self._first_slot - slot) % self._config.ring_slots == 0

    def _counter_of(self, request: EnqueueSyndromes | GetCorrections) -> int | None:
        """The message's counter since the start, ``None`` if its fields contradict each other."""
        if self._origin is None:
            return None
        if isinstance(request, GetCorrections):
            is_get, counter = True, self._extend(request.request_id)
        else:
            is_get, counter = False, request.counter - self._origin
        consistent = counter >= 0 and (counter + self._origin) & _RID_MASK == request.request_id
        right_kind = (counter % self._per_shot == self._config.n_blocks) == is_get
        jump = MAX_UNVERIFIED_SHOTS * self._per_shot if self._bare and is_get else MAX_JUMP
        believed = consistent and self._plausible(counter, jump)
        if self._config.start == "open" and believed and not right_kind:
            self._origin = None  # it began inside a shot: begin anew, rather than splice shots
        return counter if believed and right_kind else None

    def _extend(self, request_id: int) -> int:
        """The counter nearest to the expected one that has this ``request_id``."""
        return _nearest(request_id - (self._origin or 0), self.audit.expected or 0)

    def _plausible(self, counter: int, jump: int = MAX_JUMP) -> bool:
        return 0 <= counter <= (self.audit.expected or 0) + jump

    def _envelope_fault(self, request: EnqueueSyndromes | GetCorrections) -> Fault | None:
        envelope, stamp = request.envelope, request.ptp_timestamp
        if stamp == 0 or stamp & _RID_MASK >= _NS_PER_S:
            if not (self._bare and self._config.mode == "measure"):
                return self._bad_request()
            self.count["unstamped"] += 1  # a foreign clock or none: nothing here needs it
        if self._bare:
            return None
        if envelope is None:
            return self._bad_request()
        if envelope.epoch != self._config.epoch:
            self.count["bad_epoch"] += 1
            return Fault(Status.BAD_REQUEST, Reason.EPOCH_MISMATCH)
        if envelope.board_mask != self._config.board_mask:
            self.count["bad_boards"] += 1
            return Fault(Status.SYNDROMES_DROPPED, Reason.TRANSPORT_LOSS)
        return None

    def _bad_request(self) -> Fault:
        self.count["bad_request"] += 1
        return Fault(Status.BAD_REQUEST, Reason.TRANSPORT_LOSS)


def _nearest(request_id: int, expected: int) -> int:
    """The number nearest to ``expected`` whose low 32 bits are ``request_id``."""
    return expected + ((request_id - expected + (1 << 31)) & _RID_MASK) - (1 << 31)
