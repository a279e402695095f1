"""Runs in the guest: queue pairs of its verbs device, served over the second serial line.

Standard library, pyverbs and ``verbs_queue.py`` beside it; no numpy. One JSON list a line: commands
``[method, name, arguments..]`` come, events ``[event, name, ..]`` go (``remote_queue.py``).
"""

from __future__ import annotations

import json
import os
import select
import sys
import time
import tty

from verbs_queue import Got, VerbsQueue

LINE = "/dev/ttyS1"
IDLE_S = 0.0005


class Server:
    def __init__(self) -> None:
        self.line = os.open(LINE, os.O_RDWR | os.O_NOCTTY)
        tty.setraw(self.line)
        self.queues: dict[str, VerbsQueue] = {}
        self.strides: dict[str, int] = {}
        self.told: set[str] = set()

    def say(self, *event: object) -> None:
        data = json.dumps(event, separators=(",", ":")).encode() + b"\n"
        while data:
            data = data[os.write(self.line, data) :]

    def do(self, method: str, name: str, *args: object) -> None:
        if method == "neighbour":  # the host's rack does not poll while its node starts
            words = f"ip neigh replace {name} lladdr {args[0]} dev eth0 nud permanent".split()
            if os.spawnv(os.P_WAIT, "/usr/sbin/ip", words):
                raise OSError(" ".join(words))
            return
        if method == "open":
            queue = self.queues[name] = VerbsQueue(*args)
            self.strides[name] = int(args[4])
            self.say("opened", name, queue.number, queue.rkey, queue.va)
            return
        queue = self.queues[name]
        if method == "connect":
            queue.connect(*args)
            self.say("connected", name)
        elif method == "write":
            data, va, rkey, imm = args
            if not queue.write(bytes.fromhex(data), va, rkey, imm):
                self.say("refused", name)
        elif method == "send":
            if not queue.send(bytes.fromhex(args[0])):
                self.say("refused", name)
        elif method == "release":
            for slot, kind in args[0]:
                queue.release(slot, kind)
        elif method == "read":
            at, length = args
            self.say("read", name, bytes(queue.memory[at : at + length]).hex())
        elif method == "close":
            self.queues.pop(name).close()

    def shown(self, name: str, queue: VerbsQueue, got: Got) -> tuple[str, int, int, int, str]:
        slot = got.imm & 0xFFF if got.kind == "write_imm" else got.slot
        at = slot * self.strides[name]
        data = bytes(queue.memory[at : at + got.length])
        return (*got, data.rstrip(b"\0").hex())  # the line is slow: a message ends with zeros

    def tell(self) -> bool:
        """What the queue pairs got; True if it was anything."""
        busy = False
        for name, queue in self.queues.items():
            found = [self.shown(name, queue, got) for got in queue.poll(64)]
            if found:
                busy = True
                self.say("got", name, found)
            if queue.error and name not in self.told:
                self.told.add(name)
                self.say("error", name, queue.error)
        return busy

    def serve(self) -> None:
        sys.stdout.write("READY\n")
        sys.stdout.flush()
        rest = b""
        while True:
            busy = self.tell()
            if select.select([self.line], [], [], 0)[0]:
                *lines, rest = (rest + os.read(self.line, 65536)).split(b"\n")
                for line in lines:
                    command = json.loads(line)
                    if command == ["quit"]:
                        return
                    self.do(*command)
            elif not busy:
                time.sleep(IDLE_S)


if __name__ == "__main__":
    Server().serve()
    sys.exit(0)
