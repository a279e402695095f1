"""Queue pairs of the guest's verbs device as seen from here: what ``guest_verbs.py`` serves."""

from __future__ import annotations

import json
import select
import socket
import time
from collections import deque
from collections.abc import Callable

from hil.link.verbs_queue import Got

ANSWER_S = 30.0


class Line:
    """The channel to the guest; shared by all queue pairs.

    ``pump``: called while an answer is awaited, so that the network goes on.
    """

    def __init__(self, channel: socket.socket, pump: Callable[[], object] = lambda: None) -> None:
        channel.setblocking(False)
        self.channel, self.pump = channel, pump
        self.queues: dict[str, RemoteQueue] = {}
        self._rest = bytearray()

    def say(self, *command: object) -> None:
        data = memoryview(json.dumps(command, separators=(",", ":")).encode() + b"\n")
        while data:
            try:
                data = data[self.channel.send(data) :]
            except BlockingIOError:
                select.select((), (self.channel,), (), 1.0)

    def hear(self) -> None:
        """Hand on the events that are there."""
        while True:
            try:
                more = self.channel.recv(1 << 16)
            except BlockingIOError:
                return
            if not more:
                raise ConnectionError("the guest is gone")
            *lines, self._rest = (self._rest + more).split(b"\n")
            for line in lines:
                event, name, *args = json.loads(line)
                if name in self.queues:  # else one that was closed here already
                    self.queues[name].happened(event, args)


class RemoteQueue:
    """One queue pair; a mirror of its memory is kept here. See ``hil.link.verbs.Queue``."""

    def __init__(self, line: Line, name: str, *args: object) -> None:
        self.line, self.name = line, name
        self.n_slots, self.stride = int(args[3]), int(args[4])
        self.memory = memoryview(bytearray(self.n_slots * self.stride))
        self.error = ""
        self.refused = 0
        self._got: deque[Got] = deque()
        self._released: list[tuple[int, str]] = []  # told with the next poll, all at once
        self._answers: deque[list[object]] = deque()
        line.queues[name] = self
        line.say("open", name, *args)
        _, self.number, self.rkey, self.va = self._answer("opened")

    @property
    def descriptor(self) -> int:
        return self.line.channel.fileno()

    def happened(self, event: str, args: list) -> None:
        if event == "got":
            for kind, slot, imm, length, data in args[0]:
                at = (imm & 0xFFF if kind == "write_imm" else slot) * self.stride
                self._got.append(Got(kind, slot, imm, length))
                if at + length <= len(self.memory):
                    self.memory[at : at + length] = bytes.fromhex(data).ljust(length, b"\0")
        elif event == "error":
            self.error = args[0]
        elif event == "refused":
            self.refused += 1
        else:
            self._answers.append([event, *args])

    def _answer(self, wanted: str) -> list:
        end = time.monotonic() + ANSWER_S
        while not self._answers:
            if time.monotonic() > end:
                raise TimeoutError(f"no {wanted!r} from the guest")
            self.line.pump()
            self.line.hear()
        answer = self._answers.popleft()
        assert answer[0] == wanted, answer
        return answer

    def connect(self, host: str, number: int, psn: int) -> None:
        self.line.say("connect", self.name, host, number, psn)
        self._answer("connected")

    def write(self, data: bytes, va: int, rkey: int, imm: int | None) -> bool:
        self.line.say("write", self.name, data.hex(), va, rkey, imm)
        return not self.error

    def send(self, data: bytes) -> bool:
        self.line.say("send", self.name, data.hex())
        return not self.error

    def read(self, at: int, length: int) -> bytes:
        self.line.say("read", self.name, at, length)
        return bytes.fromhex(self._answer("read")[1])

    def poll(self, most: int) -> list[Got]:
        if self._released:
            self.line.say("release", self.name, self._released)
            self._released = []
        self.line.hear()
        return [self._got.popleft() for _ in range(min(most, len(self._got)))]

    def release(self, slot: int, kind: str) -> None:
        self._released.append((slot, kind))

    def close(self) -> None:
        """Asked for, not waited for: a guest without processor time may take seconds."""
        self.line.say("close", self.name)
        del self.line.queues[self.name]
