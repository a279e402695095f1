"""Detector error models by stim, that of a user's circuit in a process with limits.

How much memory and time stim's analysis takes cannot be told from the size of a circuit: gates
may spread many detectors over many qubits, a few lines of text can ask for terabytes. The circuits
that this product generates are known to be harmless and are analysed in place.
"""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from hil.errors import ScenarioError

if TYPE_CHECKING:
    import stim

Analysis: TypeAlias = Callable[["stim.Circuit"], str]
"""Finds the decomposed detector error model of a circuit, as text."""

MODEL_BYTES: Final = 4 << 30
"""Address space of the analysis above that of the interpreter. For scale: 30 MiB for a rotated
surface code of distance 21 with 500 rounds in a REPEAT block."""

MODEL_CPU_S: Final = 120
"""For scale: 0.4 s for the same circuit."""

_REFUSED, _TOO_LARGE = 3, 4


def error_model(circuit: stim.Circuit) -> str:
    """Text of the detector error model, decomposed into graphlike parts, loops folded.

    Raises:
        ValueError: a detector is not deterministic, or an error has no graphlike parts.
    """
    return str(circuit.detector_error_model(decompose_errors=True))


def disjoint_error_model(circuit: stim.Circuit) -> str:
    """``error_model`` of a circuit whose channels apply one of several Paulis.

    The graph of a matching decoder holds independent errors: the alternatives of PAULI_CHANNEL_1
    and _2 become independent ones with the same probabilities (stim's
    ``approximate_disjoint_errors``), an error of second order in them. What is sampled is exact.

    Raises:
        ValueError: as ``error_model``.
    """
    model = circuit.detector_error_model(decompose_errors=True, approximate_disjoint_errors=True)
    return str(model)


def limited_error_model(circuit: stim.Circuit) -> str:
    """``error_model`` in a process of its own, which may use MODEL_BYTES and MODEL_CPU_S.

    Raises:
        ValueError: as ``error_model``.
        ScenarioError: the analysis needs more, or it died.
    """
    limits = f"{MODEL_BYTES}, {MODEL_CPU_S}"
    done = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-c", f"from {__name__} import _analyse; _analyse({limits})"],
        input=str(circuit).encode(),
        capture_output=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    if done.returncode == 0:
        return done.stdout.decode()
    if done.returncode == _REFUSED:
        raise ValueError(done.stdout.decode())
    if done.returncode == _TOO_LARGE:
        ended = "ran out of memory"
    elif done.returncode < 0:
        ended = f"was ended by {signal.Signals(-done.returncode).name}"
    else:
        raise RuntimeError(f"the analysis of the circuit failed: {done.stderr.decode()[-500:]}")
    raise ScenarioError(
        "the detector error model of the circuit is too large",
        where="system.qpu.circuit.file",
        got=f"the analysis {ended}",
        allowed=f"{MODEL_BYTES >> 30} GiB of memory and {MODEL_CPU_S} s of CPU time",
        fix="use a smaller circuit, or one in which errors flip fewer detectors",
    )


def _analyse(model_bytes: int, cpu_s: int) -> None:
    """The process: a circuit from stdin, its model or what stim says against it to stdout."""
    import stim

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    room = pages * resource.getpagesize() + model_bytes
    resource.setrlimit(resource.RLIMIT_AS, (room, room))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 5))  # first SIGXCPU
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        text = error_model(stim.Circuit(sys.stdin.buffer.read().decode()))
    except ValueError as error:
        text, code = str(error), _REFUSED
    except MemoryError:
        text, code = "", _TOO_LARGE
    else:
        code = 0
    sys.stdout.buffer.write(text.encode())
    sys.stdout.buffer.flush()
    sys.exit(code)
