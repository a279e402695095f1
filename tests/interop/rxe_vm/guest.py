"""One run of the guest: QEMU in plain emulation, its Ethernet link, its serial log, a channel.

No /dev/kvm, no superuser rights, and no tap device unless one is handed over. Nothing has a name
in the file system and QEMU dies with the thread that started it, so nothing is left behind.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

from .build import Image
from .commands import tied
from .initrd import Newc

HERE = Path(__file__).resolve().parent
GUEST_MAC = bytes.fromhex("525400123456")
KERNEL_ARGS = (
    "console=ttyS0 quiet panic=-1 nokaslr mitigations=off tsc=reliable random.trust_cpu=on"
)
MARK = re.compile(r"^\[rxe_vm [\d.]+\] exit (\d+)$", re.MULTILINE)
QUEUE_BYTES = 1 << 20


class GuestTimeout(Exception):
    """The guest did not do what was waited for in time; ends with the serial log's tail."""


@dataclasses.dataclass(frozen=True)
class Result:
    """How the run ended.

    Attributes:
        code: of the program in the guest; 124 its own time limit, 125 set-up, -1 none seen.
        log: the serial log.
        qemu: what QEMU wrote to its standard error.
    """

    code: int
    log: str
    qemu: str


class Guest:
    """One run of one program; a context manager. Start it in a thread that stays.

    Attributes:
        frames: our end of the Ethernet link, an AF_UNIX datagram socket: one datagram is one
            frame. None if a tap device was handed over.
        channel: our end of the guest's second serial line (/dev/ttyS1), a stream socket.

    Args:
        image: from :func:`rxe_vm.ensure`.
        program: Python file that runs in the guest, as its only program and as superuser.
        args: its arguments.
        files: more files, placed beside it.
        timeout: seconds for the whole run; the guest switches itself off 5 s later.
        netem: arguments of ``tc qdisc add dev eth0 root netem``; acts on frames the guest sends.
        address: address of the guest's ``eth0``.
        tap: open descriptor of a tap device to use in place of ``frames``.
    """

    def __init__(
        self,
        image: Image,
        program: Path,
        args: Sequence[str] = (),
        files: Sequence[Path] = (),
        *,
        timeout: float = 120,
        netem: str = "",
        address: str = "192.0.2.2/24",
        tap: int | None = None,
    ) -> None:
        self.image, self.program, self.args = image, program, args
        self.files, self.timeout, self.netem = files, timeout, netem
        self.address, self.tap = address, tap

    # -- start and stop -------------------------------------------------------------------------

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._start(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start(self, stack: contextlib.ExitStack) -> None:
        self.serial = stack.enter_context(tempfile.TemporaryFile())
        self.stderr = stack.enter_context(tempfile.TemporaryFile())
        self.frames: socket.socket | None = None
        with contextlib.ExitStack() as theirs:
            initrd = theirs.enter_context(tempfile.TemporaryFile())
            with self.image.initrd.open("rb") as base:
                shutil.copyfileobj(base, initrd, 1 << 20)
            initrd.write(self._overlay())  # archives may follow one another; later files win
            initrd.flush()
            self.channel, line = socket.socketpair()
            stack.enter_context(self.channel)
            inherited = [initrd.fileno(), theirs.enter_context(line).fileno()]
            if self.tap is None:
                self.frames, port = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
                stack.enter_context(self.frames)
                inherited.append(theirs.enter_context(port).fileno())
                for end in (self.frames, port):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, QUEUE_BYTES)
                net = f"dgram,id=n0,local.type=fd,local.str={port.fileno()}"
            else:
                inherited.append(self.tap)
                net = f"tap,id=n0,fd={self.tap}"
            argv, env = self.image.qemu()
            self.proc = subprocess.Popen(
                tied([*argv, *self._machine(inherited[0], inherited[1], net)]),
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=self.serial,
                stderr=self.stderr,
                pass_fds=inherited,
            )
        stack.callback(self._end)
        self.deadline = time.monotonic() + self.timeout

    def _machine(self, initrd: int, line: int, net: str) -> list[object]:
        return [
            *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-M", "pc"),
            *("-accel", "tcg,thread=multi", "-cpu", "max", "-smp", 1, "-m", 512),
            *("-kernel", self.image.kernel, "-initrd", f"/proc/self/fd/{initrd}"),
            *("-append", KERNEL_ARGS, "-serial", "stdio"),
            *("-chardev", f"socket,id=c1,fd={line}", "-serial", "chardev:c1"),
            *("-netdev", net),
            *("-device", f"virtio-net-pci,netdev=n0,mac={GUEST_MAC.hex(':')},romfile="),
        ]

    def _overlay(self) -> bytes:
        data = io.BytesIO()
        archive = Newc(data)
        archive.directory("app")
        for path in [self.program, *self.files]:
            archive.file(f"app/{path.name}", path.read_bytes(), 0o755)
        conf = {
            "ADDRESS": self.address,
            "NETEM": self.netem,
            "LIMIT": str(int(self.timeout) + 5),
            "PROGRAM": " ".join(shlex.quote(a) for a in [self.program.name, *self.args]),
        }
        lines = "".join(f"{key}={shlex.quote(value)}\n" for key, value in conf.items())
        archive.file("app/conf", lines.encode())
        archive.file("init", (HERE / "init.sh").read_bytes(), 0o755)
        archive.close()
        return data.getvalue()

    def _end(self) -> None:
        if self.proc.poll() is None:
            self.proc.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.proc.wait(3)
        if self.proc.poll() is None:
            self.proc.kill()
            self.proc.wait()

    # -- serial log -----------------------------------------------------------------------------

    def log(self) -> str:
        """The serial log so far."""
        return _text(self.serial.fileno())

    def alive(self) -> bool:
        """Whether the guest runs."""
        return self.proc.poll() is None

    def wait_for(
        self, pattern: str, pump: Callable[[], object], timeout: float = 120
    ) -> re.Match[str]:
        """Wait until a line of the log matches; ``pump`` is called meanwhile, again and again."""
        end = min(self.deadline, time.monotonic() + timeout)
        wanted = re.compile(pattern, re.MULTILINE)
        while True:
            over = not self.alive()
            text = self.log()
            if found := wanted.search(text[: text.rfind("\n") + 1]):
                return found
            if over or time.monotonic() > end:
                what = "guest ended" if over else "timeout"
                raise GuestTimeout(f"{what} before {pattern!r}{self._tail()}")
            pump()

    def idle(self) -> None:
        """A pump for those who want no frames: throws away what the guest sends."""
        time.sleep(0.01)
        if self.frames is not None:
            with contextlib.suppress(BlockingIOError):
                while self.frames.recv(1 << 16, socket.MSG_DONTWAIT):
                    pass

    def wait(self, pump: Callable[[], object]) -> Result:
        """Wait for the guest to switch itself off."""
        while self.alive():
            if time.monotonic() > self.deadline:
                raise GuestTimeout(f"guest still running{self._tail()}")
            pump()
        marks = MARK.findall(self.log())
        return Result(int(marks[-1]) if marks else -1, self.log(), _text(self.stderr.fileno()))

    def _tail(self) -> str:
        error = _text(self.stderr.fileno()).strip()
        return "\n" + "\n".join([*self.log().splitlines()[-12:], f"QEMU: {error}" * bool(error)])


def _text(descriptor: int) -> str:
    data = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
    return data.decode(errors="replace").replace("\r\n", "\n")
