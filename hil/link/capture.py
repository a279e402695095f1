"""Capture of a live exchange: every frame of the rack's endpoint, as pcapng.

The loop only copies a datagram behind a header of 13 bytes into a buffer, and hands full buffers
to a pipe without waiting. A process of its own puts Ethernet, IPv4 and UDP headers in front (a UDP
socket does not show them: identification 0, DF, TTL 64, as ``soft_roce`` makes the kernel send
them; MAC addresses are zero on loopback) and writes the file. Memory is bounded by the buffer and
the pipe: a frame that finds no room is counted and left out.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Self

from hil.errors import RigError, UsageError
from hil.link.endpoint import Buffer
from hil.timebase import PS_PER_NS
from hil.wire.pcap import PcapngWriter
from hil.wire.roce import Flow

PIPE_BYTES: Final = 1 << 20
"""Asked for; the kernel may grant less (``/proc/sys/fs/pipe-max-size``)."""

BUFFER_BYTES: Final = 8 << 10
"""Handed to the pipe at once."""

HELD_BYTES: Final = 1 << 20
"""What may wait here for room in the pipe before frames are left out."""

_HEAD: Final = struct.Struct("<?Iq")
_MAC: Final = bytes(6)
_F_SETPIPE_SZ: Final = 1031  # Linux <linux/fcntl.h>
_END_S: Final = 20.0


@dataclass(frozen=True, slots=True)
class Ends:
    """Both ends of the exchange; the rack's is the one that is tapped."""

    rack: str
    node: str
    port: int


class Capture:
    """A capture file being written. A context manager; ``tap`` is what an endpoint calls.

    Attributes:
        path: the pcapng file.
        taken: frames handed to the writing process.
        left_out: frames for which there was no room.
        written: frames in the file; -1 until `close`.

    Args:
        path: file to create.
        ends: addresses of the frames.

    Raises:
        UsageError: the file exists or cannot be created.
    """

    def __init__(self, path: Path, ends: Ends) -> None:
        self.path = path
        self.taken = self.left_out = 0
        self.written = -1
        self._held = bytearray()
        try:
            file = path.open("xb")
        except FileExistsError:
            raise UsageError(
                "the capture file exists already", where=str(path), fix="choose another --pcap"
            ) from None
        except OSError as error:
            raise UsageError(
                "cannot create the capture file", where=str(path), got=str(error)
            ) from error
        with file:
            self._start(file, ends)

    def _start(self, file: BinaryIO, ends: Ends) -> None:
        source, self._pipe = os.pipe()
        os.set_blocking(self._pipe, False)
        _enlarge(self._pipe)
        offset_ns = time.time_ns() - time.monotonic_ns()
        setup = json.dumps([ends.rack, ends.node, ends.port, offset_ns])
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            [sys.executable, "-m", "hil.link.capture", str(source), str(file.fileno()), setup],
            pass_fds=[source, file.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            process_group=0,  # Ctrl-C is for the run; we end when its pipe does
        )
        os.close(source)

    def tap(self, sent: bool, t_ps: int, datagram: Buffer) -> None:
        """Take one frame; never blocks."""
        held = self._held
        if len(held) > HELD_BYTES:
            self._hand_over()
            if len(held) > HELD_BYTES:
                self.left_out += 1
                return
        held += _HEAD.pack(sent, len(datagram), t_ps)
        held += datagram
        self.taken += 1
        if len(held) >= BUFFER_BYTES:
            self._hand_over()

    def _hand_over(self) -> bool:
        try:
            done = os.write(self._pipe, self._held)
        except (BlockingIOError, BrokenPipeError):
            return False
        del self._held[:done]
        return True

    def close(self) -> None:
        """Hand over the rest, wait for the file to be whole. Closing twice is fine.

        Raises:
            RigError: the writing process failed: the file lacks frames.
        """
        if self.written >= 0:
            return
        self.written = 0
        os.set_blocking(self._pipe, True)
        try:
            while self._held and self._hand_over():
                pass
        finally:
            os.close(self._pipe)
        try:
            out, _ = self._process.communicate(timeout=_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            out, _ = self._process.communicate()
        self.written = int(out) if out.strip().isdigit() else 0
        if self.written != self.taken:
            raise RigError(
                "the capture lacks frames",
                where=str(self.path),
                got=f"{self.written} written",
                allowed=f"{self.taken} taken",
                fix="see the message of the capture process above",
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _enlarge(pipe: int) -> None:
    import fcntl

    if sys.platform.startswith("linux"):
        try:
            fcntl.fcntl(pipe, _F_SETPIPE_SZ, PIPE_BYTES)
        except OSError:
            return  # the default size; frames that find no room are counted


def read_records(source: BinaryIO) -> Iterator[tuple[bool, int, bytes]]:
    """What ``tap`` took: sent, monotonic ps, datagram; a record cut short by a kill is dropped."""
    while len(head := source.read(_HEAD.size)) == _HEAD.size:
        sent, length, t_ps = _HEAD.unpack(head)
        datagram = source.read(length)
        if len(datagram) < length:
            return
        yield sent, t_ps, datagram


def write_frames(source: BinaryIO, target: BinaryIO, ends: Ends, offset_ns: int) -> int:
    """Write all records as frames; returns how many."""
    flows = {
        True: Flow(_MAC, _MAC, ends.rack, ends.node, ends.port, ends.port),
        False: Flow(_MAC, _MAC, ends.node, ends.rack, ends.port, ends.port),
    }
    headers: dict[tuple[bool, int], bytes] = {}
    count = 0
    with PcapngWriter(target) as out:
        for sent, t_ps, datagram in read_records(source):
            key = (sent, len(datagram))
            if key not in headers:
                headers[key] = flows[sent].header(len(datagram))
            out.write(t_ps // PS_PER_NS + offset_ns, headers[key] + datagram)
            count += 1
    return count


def main(arguments: list[str]) -> int:
    """Entry of the process: ``SOURCE TARGET SETUP``; ends with its pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    rack, node, port, offset_ns = json.loads(arguments[2])
    with os.fdopen(int(arguments[0]), "rb") as source, os.fdopen(int(arguments[1]), "wb") as target:
        count = write_frames(source, target, Ends(rack, node, port), offset_ns)
    sys.stdout.write(f"{count}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
