"""The host's side of the guest's network: endpoints on one cable, and a wire that does harm."""

from __future__ import annotations

import random
import select
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from remote_queue import Line, RemoteQueue
from rxe_vm import GUEST_MAC, Guest

from hil.link.endpoint import Completion, Endpoint, Transport
from hil.link.frame_wires import UnixFrames
from hil.link.frames_endpoint import FramesEndpoint
from hil.link.rc_requester import RcAttributes
from hil.link.verbs import VerbsEndpoint
from hil.wire.roce import FRAME_HEADER_BYTES, Opcode

HOST, GUEST = "192.0.2.1", "192.0.2.2"
HOST_MAC = bytes.fromhex("525400aa0001")
DEVICE = "rxe0"
MTU_BYTES = 1098  # its HSB payload limit is 1024, the path MTU of rxe on Ethernet
PSN_START = 0xFFFFF0
SLOTS, STRIDE = 64, 4096
WINDOW = 24
UC_WINDOW = 2  # nothing tells the sender that no receive is posted, and rxe 6.1 then goes silent
GIVE_UP_S = 15.0
# 4.3 s: both ends may wait for a processor. A small window and a wait of 5 ms when no slot is
# free: what is repeated in vain takes the guest's time.
PATIENT = RcAttributes(
    path_mtu=1024, timeout=20, min_rnr_timer=18, queue_packets=8192, window_packets=16
)


def is_ack(frame: bytes | memoryview) -> bool:
    return len(frame) > FRAME_HEADER_BYTES and frame[FRAME_HEADER_BYTES] == Opcode.RC_ACKNOWLEDGE


def is_roce(frame: bytes | memoryview) -> bool:
    return len(frame) > FRAME_HEADER_BYTES and frame[36:38] == b"\x12\xb7"


class HarmfulWire:
    """A wire on which ``harm(frame, outwards)`` says what becomes of each RoCE frame.

    It returns the frame, another one, or None for a lost one.
    """

    def __init__(self, wire: UnixFrames) -> None:
        self.wire = wire
        self.harm: Callable[[bytes, bool], bytes | None] = lambda frame, outwards: frame
        self.lost: list[bytes] = []

    def _through(self, frame: bytes, *, outwards: bool) -> bytes | None:
        if not is_roce(frame):
            return frame
        left = self.harm(frame, outwards)
        if left is None:
            self.lost.append(frame)
        return left

    def send(self, frame: bytes | bytearray) -> None:
        left = self._through(bytes(frame), outwards=True)
        if left is not None:
            self.wire.send(left)

    def receive(self) -> memoryview | None:
        while (frame := self.wire.receive()) is not None:
            left = self._through(bytes(frame), outwards=False)
            if left is not None:
                return memoryview(bytearray(left))
        return None

    def fileno(self) -> int:
        return self.wire.fileno()

    def dropped(self) -> int:
        return 0

    def close(self) -> None:
        self.wire.close()


def lossy(seed: int, rate: float) -> Callable[[bytes, bool], bytes | None]:
    """Every frame is lost with that probability, in both directions."""
    dice = random.Random(seed)
    return lambda frame, outwards: None if dice.random() < rate else frame


@dataclass
class Ends:
    """A host endpoint and a queue pair of the guest, joined."""

    host: FramesEndpoint
    guest: VerbsEndpoint
    wire: HarmfulWire
    host_memory: memoryview
    guest_memory: memoryview
    queue: RemoteQueue

    def close(self) -> None:
        self.wire.harm = lambda frame, outwards: frame
        self.guest.close()  # the host's pump runs meanwhile
        self.host.close()


class Joint:
    """One running guest and all that is joined to it, one pair of ends after the other."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self.line = Line(guest.channel)
        self.line.say("neighbour", HOST, HOST_MAC.hex(":"))
        self.count = 0

    def queue(self, name: str, transport: Transport, **more: int) -> VerbsEndpoint:
        def opened(*args: object) -> RemoteQueue:
            return RemoteQueue(self.line, name, *args)

        return VerbsEndpoint(
            DEVICE, GUEST, transport=transport, mtu_bytes=MTU_BYTES, open_queue=opened, **more
        )

    def cable(self) -> socket.socket:
        """Our end of the guest's network; may be closed."""
        assert self.guest.frames is not None
        return self.guest.frames.dup()

    def ends(
        self, transport: Transport, *, host_slots: int = SLOTS, guest_slots: int = SLOTS
    ) -> Ends:
        """A host endpoint and a queue pair of the guest, registered and connected."""
        self.count += 1
        wire = HarmfulWire(UnixFrames(self.cable()))
        host = FramesEndpoint(
            *(wire, HOST_MAC, HOST),
            psn_start=PSN_START,
            mtu_bytes=MTU_BYTES,
            transport=transport,
            peer_mac=GUEST_MAC if self.count % 2 else None,  # half of them ask for it
        )
        self.line.pump = lambda: (host.poll(1), wait((host,)))
        guest = self.queue(f"q{self.count}", transport, psn_start=PSN_START)
        guest_memory = guest.register(guest_slots, STRIDE)
        host_memory = host.register(host_slots, STRIDE)
        host.connect(guest.address())
        guest.connect(host.address())
        queue = self.line.queues[f"q{self.count}"]
        return Ends(host, guest, wire, host_memory, guest_memory, queue)


@dataclass
class Received:
    """What came out of one direction."""

    messages: list[bytes] = field(default_factory=list)
    completions: list[Completion] = field(default_factory=list)

    @property
    def numbers(self) -> list[int]:
        return [int.from_bytes(message[:4], "big") for message in self.messages]


def numbered(count: int, long_every: int = 40, long_bytes: int = 2100) -> list[bytes]:
    """Messages that begin with their number; some take several packets."""
    sizes = [long_bytes if i % long_every == 5 else 48 + i % 5 for i in range(count)]
    ramp = bytes(range(256)) * (1 + long_bytes // 256)
    return [i.to_bytes(4, "big") + ramp[i & 0x7F :][: size - 4] for i, size in enumerate(sizes)]


def transfer(
    sender: Endpoint,
    receiver: Endpoint,
    memory: memoryview,
    messages: Sequence[bytes],
    *,
    lost: Callable[[], int] = lambda: 0,
    quiet_s: float = 0.1,
    limit_s: float = 150.0,
) -> Received:
    """Post all messages, a window ahead of what came out, and take what comes.

    ``lost``: messages known not to arrive. Ends when all others are there, or nothing comes more
    (for :data:`GIVE_UP_S`), and it was quiet for ``quiet_s``.
    """
    got = Received()
    window = WINDOW if sender.transport == "rc" else UC_WINDOW
    posted, busy_s = 0, time.monotonic()
    end_s = busy_s + limit_s
    while time.monotonic() < end_s:
        if posted < len(messages) and posted - len(got.messages) - lost() < window:
            sender.post_write_imm(messages[posted], posted % SLOTS)
            posted += 1
            busy_s = time.monotonic()
        for done in receiver.poll(16):
            assert not done.busy
            at = done.slot * STRIDE
            got.messages.append(bytes(memory[at : at + done.length]))
            got.completions.append(done)
            receiver.release(done.slot)
            busy_s = time.monotonic()
        assert sender.poll(16) == []
        if time.monotonic() - busy_s > 0.001:
            wait((sender, receiver))
        arrived = len(got.messages) >= len(messages) - lost()
        idle_s = time.monotonic() - busy_s
        if posted == len(messages) and idle_s > (quiet_s if arrived else GIVE_UP_S):
            break
    return got


def wait(ends: Sequence[Endpoint]) -> None:
    """Leave the processor to the guest for 2 ms, or until something came."""
    select.select([end for end in ends if end.fileno() is not None], (), (), 0.002)


def seconds(limit_s: float) -> Iterator[float]:
    """Instants until so many seconds are over."""
    end_s = time.monotonic() + limit_s
    while (now_s := time.monotonic()) < end_s:
        yield now_s
