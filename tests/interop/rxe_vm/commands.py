"""Commands of the build machine that cannot outlive us, and the reason why they failed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

# Runs between this process and a longer one: asks the kernel to kill that one when the thread
# that started it ends.
STUB = (
    "import ctypes,os,sys\n"
    "ctypes.CDLL(None).prctl(1,9,0,0,0)\n"
    "if os.getppid()!=int(sys.argv[1]): sys.exit(1)\n"
    "os.execvp(sys.argv[2],sys.argv[2:])\n"
)


class Unavailable(Exception):
    """The guest cannot be built or run on this machine; str() is a one-line reason."""


def tied(argv):
    """The same command, but it cannot outlive the thread that starts it."""
    return [sys.executable, "-I", "-S", "-c", STUB, str(os.getpid()), *map(str, argv)]


def call(argv, timeout, **kw):
    """Run a command without a terminal; (exit status, stdout + stderr)."""
    name = Path(argv[0]).name
    try:
        p = subprocess.run(
            tied(argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout,
            text=True,
            errors="replace",
            **kw,
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{name} did not finish within {timeout} s") from None
    return p.returncode, p.stdout


def reason(text):
    """The line of a command's output that says most about its failure."""
    lines = [ln.strip() for ln in text.splitlines() if ln.strip()]
    errors = [ln for ln in lines if ln.startswith("E:")]
    return errors[0] if errors else lines[-1] if lines else "no output"
