#!/usr/bin/env python3
"""Boot the rxe guest, run one Python program in it, exchange raw Ethernet frames with it.

    run.py [--cache DIR] [--timeout S] [--netem SPEC] [--pcap FILE] PROGRAM.py [ARG...]

prints the serial log; exit code: that of the program in the guest, 124 on a timeout,
77 if the guest cannot be had on this machine.

In a test, with the directory above this one in sys.path:

    from rxe_vm import Guest, Unavailable
    with Guest('guest_program.py', args=['x']) as g:
        g.wait_for(r'^READY (.*)$')      # match object, from the serial log
        g.send(frame)                    # Ethernet frame, no FCS
        frame = g.recv(timeout=1)        # bytes or None
        result = g.wait()                # Result(code, log)

QEMU runs in plain emulation (TCG): no /dev/kvm, no tap device, no superuser rights.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import os
import re
import select
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

if True:
    from . import build
else:  # run as a program
    import build
SKIP_EXIT, Unavailable = build.SKIP_EXIT, build.Unavailable

HERE = Path(__file__).resolve().parent
GUEST_MAC = "52:54:00:12:34:56"
GUEST_ADDRESS = "192.0.2.2/24"
KERNEL_ARGS = (
    "console=ttyS0 quiet panic=-1 nokaslr mitigations=off tsc=reliable random.trust_cpu=on"
)
MARK = re.compile(r"^\[rxe_vm [\d.]+\] exit (\d+)$", re.M)


class GuestTimeout(Exception):
    """The guest did not do what was waited for in time; the message ends with the serial log's tail."""


@dataclasses.dataclass
class Result:
    code: int  # exit status of the program in the guest; 124 guest's own limit, 125 guest set-up, -1 none seen
    log: str  # serial log
    qemu: str  # what QEMU wrote to its standard error


class Pcap:
    """Little-endian microsecond pcap, link type Ethernet."""

    def __init__(self, path):
        self.f = open(path, "wb")
        self.f.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1))

    def add(self, frame):
        t = time.time_ns() // 1000
        self.f.write(
            struct.pack("<IIII", t // 1000000, t % 1000000, len(frame), len(frame)) + frame
        )

    def close(self):
        self.f.close()


class Guest:
    """One run of the guest.  QEMU is killed when the thread that started it ends, so start it in one that stays."""

    def __init__(
        self,
        program,
        args=(),
        files=(),
        cache=None,
        image=None,
        timeout=120,
        netem="",
        address=GUEST_ADDRESS,
        memory=512,
        cpus=1,
        accel="tcg,thread=multi",
        cpu="max",
        kernel_args="",
        pcap=None,
    ):
        self.program, self.args, self.files = (
            Path(program),
            [str(a) for a in args],
            [Path(f) for f in files],
        )
        self.cache, self.image, self.timeout, self.netem, self.address = (
            cache,
            image,
            timeout,
            netem,
            address,
        )
        self.memory, self.cpus, self.accel, self.cpu, self.kernel_args = (
            memory,
            cpus,
            accel,
            cpu,
            kernel_args,
        )
        self.proc = self.frames = self.serial = self.stderr = self.deadline = None
        self.pcap_path, self.pcap = pcap, None

    # ------------------------------------------------------------ start and stop

    def __enter__(self):
        image = self.image or build.ensure(self.cache)
        try:
            self._start(image)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc):
        self.close()

    def _start(self, image):
        # Nothing here has a name in the file system, so nothing is left behind however this process ends.
        self.serial, self.stderr = tempfile.TemporaryFile(), tempfile.TemporaryFile()
        self.frames, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        with theirs, tempfile.TemporaryFile() as initrd:
            with open(image.initrd, "rb") as base:
                shutil.copyfileobj(base, initrd, 1 << 20)
            initrd.write(self._overlay())  # archives may follow one another; later files win
            initrd.flush()
            for s in (self.frames, theirs):
                s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            self.frames.setblocking(False)
            if self.pcap_path:
                self.pcap = Pcap(self.pcap_path)
            argv, env = image.qemu()
            argv = [
                *argv,
                "-nodefaults",
                "-no-user-config",
                "-display",
                "none",
                "-no-reboot",
                "-M",
                "pc",
                "-accel",
                self.accel,
                "-cpu",
                self.cpu,
                "-smp",
                self.cpus,
                "-m",
                self.memory,
                "-kernel",
                image.kernel,
                "-initrd",
                f"/proc/self/fd/{initrd.fileno()}",
                "-append",
                f"{KERNEL_ARGS} {self.kernel_args}".strip(),
                "-serial",
                "stdio",
                "-netdev",
                f"dgram,id=n0,local.type=fd,local.str={theirs.fileno()}",
                "-device",
                f"virtio-net-pci,netdev=n0,mac={GUEST_MAC},romfile=",
            ]
            self.proc = subprocess.Popen(
                build.tied(argv),
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=self.serial,
                stderr=self.stderr,
                pass_fds=[theirs.fileno(), initrd.fileno()],
            )
        self.deadline = time.monotonic() + self.timeout

    def _overlay(self):
        data = io.BytesIO()
        z = build.Newc(data)
        z.directory("app")
        names = {}
        for p in [self.program, *self.files]:
            if p.name in names or p.name == "conf":
                raise ValueError(f"two files named {p.name}")
            names[p.name] = p
            z.file(f"app/{p.name}", p.read_bytes(), 0o755)
        conf = dict(
            ADDRESS=self.address,
            NETEM=self.netem,
            LIMIT=str(int(self.timeout) + 5),
            PROGRAM=" ".join(shlex.quote(a) for a in [self.program.name, *self.args]),
        )
        z.file("app/conf", "".join(f"{k}={shlex.quote(v)}\n" for k, v in conf.items()).encode())
        z.file("init", (HERE / "init.sh").read_bytes(), 0o755)
        z.close()
        return data.getvalue()

    def close(self):
        """End QEMU and remove the temporary files; may be called more than once."""
        if self.proc is not None and self.proc.poll() is None:
            self.proc.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.proc.wait(3)
            if self.proc.poll() is None:
                self.proc.kill()
                self.proc.wait()
        for x in (self.frames, self.pcap, self.serial, self.stderr):
            if x is not None:
                x.close()

    # ------------------------------------------------------------ frames

    def send(self, frame, timeout=10):
        """Hand one Ethernet frame to the guest; blocks while QEMU's queue (about ten frames) is full."""
        end = time.monotonic() + timeout
        while True:
            try:
                self.frames.send(frame)
                break
            except BlockingIOError:
                if time.monotonic() > end or self.proc.poll() is not None:
                    raise GuestTimeout("the guest takes no frames" + self._tail()) from None
                select.select([], [self.frames], [], 0.05)
            except (ConnectionRefusedError, ConnectionResetError, BrokenPipeError):
                raise GuestTimeout("the guest is gone" + self._tail()) from None
        if self.pcap:
            self.pcap.add(frame)

    def recv(self, timeout=1.0):
        """Next Ethernet frame from the guest; None after `timeout` seconds or when the guest has ended."""
        end = time.monotonic() + timeout
        while True:
            try:
                frame = self.frames.recv(65536)
                if self.pcap:
                    self.pcap.add(frame)
                return frame
            except (BlockingIOError, ConnectionResetError):
                left = end - time.monotonic()
                if left <= 0 or self.proc.poll() is not None:
                    return None
                select.select([self.frames], [], [], min(left, 0.05))

    # ------------------------------------------------------------ serial log

    @staticmethod
    def _text(f):
        fd = f.fileno()
        return os.pread(fd, os.fstat(fd).st_size, 0).decode(errors="replace").replace("\r\n", "\n")

    def log(self):
        return self._text(self.serial)

    def _tail(self, lines=12):
        err = self._text(self.stderr).strip()
        return (
            "\n" + "\n".join(self.log().splitlines()[-lines:]) + ("\nQEMU: " + err if err else "")
        )

    def wait_for(self, pattern, timeout=None, pump=None):
        """Wait until a line of the log matches; pump(), if given, is called again and again meanwhile."""
        end = self.deadline if timeout is None else min(self.deadline, time.monotonic() + timeout)
        rx = re.compile(pattern, re.M)
        while True:
            over = self.proc.poll() is not None
            text = self.log()
            m = rx.search(text[: text.rfind("\n") + 1])
            if m:
                return m
            if over or time.monotonic() > end:
                raise GuestTimeout(
                    f"{'guest ended' if over else 'timeout'} before {pattern!r}" + self._tail()
                )
            if pump:
                pump()
            else:
                time.sleep(0.05)

    def wait(self, timeout=None, pump=None):
        """Wait for the guest to switch itself off; frames that nobody takes are thrown away unless pump() is given."""
        end = self.deadline if timeout is None else min(self.deadline, time.monotonic() + timeout)
        while self.proc.poll() is None:
            if time.monotonic() > end:
                raise GuestTimeout("guest still running" + self._tail())
            if pump:
                pump()
            else:
                self.recv(0.05)
        return self.result()

    def result(self):
        log = self.log()
        marks = MARK.findall(log)
        return Result(int(marks[-1]) if marks else -1, log, self._text(self.stderr))


def main():
    ap = argparse.ArgumentParser(
        description="Run a Python program in the rxe guest and print the serial log."
    )
    ap.add_argument("--cache", help="cache directory of the image")
    ap.add_argument("--timeout", type=float, default=120)
    ap.add_argument("--netem", default="", help='for example "loss 5%% delay 2ms 1ms"')
    ap.add_argument("--pcap", help="write all frames of the link to this file")
    ap.add_argument(
        "--file",
        action="append",
        default=[],
        help="another file to place beside the program (repeatable)",
    )
    ap.add_argument("program")
    ap.add_argument("args", nargs=argparse.REMAINDER)
    a = ap.parse_args()
    try:
        with Guest(
            a.program, a.args, a.file, cache=a.cache, timeout=a.timeout, netem=a.netem, pcap=a.pcap
        ) as g:
            r = g.wait()
    except Unavailable as e:
        print(f"SKIP: {e}")
        return SKIP_EXIT
    except GuestTimeout as e:
        print(f"TIMEOUT: {e}")
        return 124
    print(r.log, end="")
    if r.qemu.strip():
        print("QEMU:", r.qemu.strip(), file=sys.stderr)
    return r.code if r.code >= 0 else 1


if __name__ == "__main__":
    sys.exit(main())
