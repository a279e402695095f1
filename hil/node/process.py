"""The rack's handle of the node process: start, READY handshake, orderly end, kill, reap."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import IO, Any, Final, cast

from hil.errors import NodeError
from hil.link.endpoint import PeerAddress
from hil.node.config import Launch

COMMAND: Final = (sys.executable, "-m", "hil", "node", "serve", "--config", "-")
"""What is started; the launch line follows on its standard input."""

_STDERR_TAIL: Final = 2000
_END_S: Final = 10.0


class NodeProcess:
    """A node in its own process; never outlives its starter.

    Args:
        launch: the line that starts it.
        timeout_s: limit for the READY line (the decoders are built and warmed before it).
        pass_fds: descriptors that the node inherits.

    Raises:
        NodeError: it did not become ready; with what it wrote to standard error.
    """

    def __init__(self, launch: Launch, *, timeout_s: float, pass_fds: Sequence[int] = ()) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        self._buffer = b""
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            pass_fds=pass_fds,
            process_group=0,  # Ctrl-C is for the run, which ends the exchange first
        )
        self._stdin = cast("IO[bytes]", self._process.stdin)
        self._stdout = cast("IO[bytes]", self._process.stdout)
        try:
            self._send(launch.model_dump_json())
            ready = self._handshake(time.monotonic() + timeout_s)
        except BaseException:
            self.kill()
            self.close()
            raise
        self.peer = PeerAddress(**ready["peer"])
        self.fingerprints: dict[str, dict[str, str]] = ready["fingerprints"]
        self.worker_pids: list[int] = ready["worker_pids"]

    @property
    def pid(self) -> int:
        """Process id of the node."""
        return self._process.pid

    @property
    def name(self) -> str:
        """How errors name it."""
        return f"node pid {self.pid}"

    def fileno(self) -> int:
        """Descriptor that becomes readable when the node dies (or ends)."""
        return self._stdout.fileno()

    def is_alive(self) -> bool:
        """Does the process still run?"""
        return self._process.poll() is None

    def epitaph(self) -> str:
        """Exit code and the end of standard error of a dead node."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=1.0)
        self._errors.seek(max(0, self._errors.seek(0, os.SEEK_END) - _STDERR_TAIL))
        text = self._errors.read().decode(errors="replace").strip()
        return f"exit code {self._process.returncode}" + (f", stderr: {text}" if text else "")

    def end(self, next_counter: int | None) -> dict[str, int]:
        """Ask for an orderly end; returns the node's counters, empty if it is dead already.

        ``None``: nobody can tell which counter would have come next.
        """
        if not self.is_alive():
            return {}
        try:
            self._send(json.dumps({"end": next_counter}))
            self._stdin.close()
            line = self._line(time.monotonic() + _END_S)
        except (OSError, NodeError):
            return {}
        counters: dict[str, int] = json.loads(line).get("counters", {})
        return counters

    def terminate(self) -> None:
        """Send SIGTERM."""
        self._process.terminate()

    def kill(self) -> None:
        """Send SIGKILL; its workers die with it."""
        self._process.kill()

    def close(self) -> None:
        """Make sure that it is gone, reap it, close all pipes. Closing twice is fine."""
        for pipe in (self._stdin, self._stdout):
            with contextlib.suppress(OSError):
                pipe.close()
        try:
            self._process.wait(timeout=2.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()

    # -- pipes --------------------------------------------------------------------------------

    def _send(self, line: str) -> None:
        data = memoryview(line.encode() + b"\n")
        descriptor = self._stdin.fileno()
        while data:
            try:
                data = data[os.write(descriptor, data) :]
            except BrokenPipeError:
                raise NodeError("node died", got=self.epitaph()) from None

    def _line(self, until_s: float) -> bytes:
        while b"\n" not in self._buffer:
            wait_s = until_s - time.monotonic()
            readable, _, _ = select.select([self._stdout.fileno()], (), (), max(0.0, wait_s))
            if not readable:
                raise NodeError("node does not answer in time", where=f"pid {self.pid}")
            more = os.read(self._stdout.fileno(), 65536)
            if not more:
                raise NodeError("node died", where=f"pid {self.pid}", got=self.epitaph())
            self._buffer += more
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _handshake(self, until_s: float) -> dict[str, Any]:
        line = self._line(until_s)
        try:
            said: dict[str, Any] = json.loads(line)
        except json.JSONDecodeError:
            raise NodeError("node said something else than READY", got=repr(line[:200])) from None
        if "ready" not in said:
            raise NodeError(f"node could not start: {said.get('error', said)}")
        ready: dict[str, Any] = said["ready"]
        return ready
