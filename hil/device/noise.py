"""Noise that is written into a noiseless circuit: SI1000.

SI1000 ("superconducting-inspired, 1000 ns", arXiv:2108.10457) has one parameter p:

====================================  =========================================
two-qubit gate                        DEPOLARIZE2(p) after it
one-qubit gate                        DEPOLARIZE1(p/10) after it
reset                                 flipped with 2p after it
measurement                           result flipped with 5p
idle beside gates                     DEPOLARIZE1(p/10)
idle beside a measurement or a reset  DEPOLARIZE1(2p)
====================================  =========================================

A *layer* is what stands between two TICKs; the edges of a REPEAT block end a layer as well, as
its iterations must be alike. Every qubit that the circuit uses anywhere idles in each layer that
works on others and not on it. Paulis controlled by measurement results or sweep bits are
bookkeeping: they take no time and have no noise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from hil.errors import ScenarioError
from hil.scenario.user_circuit import noise_of

if TYPE_CHECKING:
    import stim

_ANNOTATIONS: Final = frozenset(
    {"DETECTOR", "OBSERVABLE_INCLUDE", "QUBIT_COORDS", "SHIFT_COORDS", "MPAD"}
)
MAX_ADDED_TARGETS: Final = 10**7
"""Targets of the noise, REPEAT blocks not unrolled: qubits times layers grows beyond any text."""

_FLIP_OF_X_RESET: Final = "Z_ERROR"
_FLIP_OF_RESET: Final = "X_ERROR"


def si1000(circuit: stim.Circuit, p: float) -> stim.Circuit:
    """Copy of a noiseless ``circuit`` with SI1000 noise of strength ``p``, 0 to 0.1.

    Raises:
        ScenarioError: the circuit has noise already, or an operation on qubits that is neither a
            gate on one or two of them, a reset, nor a measurement of one; or the noise has
            more than MAX_ADDED_TARGETS targets.
    """
    found = noise_of(circuit)
    if found:
        raise _refusal("the circuit has noise already", found, "a circuit without noise")
    return _Walk(p, _qubits_of(circuit)).noisy(circuit)


class _Walk:
    """One walk over a circuit of ``qubits``; REPEAT blocks stay blocks."""

    def __init__(self, p: float, qubits: set[int]) -> None:
        self._p = p
        self._qubits = qubits
        self._added = 0

    def noisy(self, circuit: stim.Circuit) -> stim.Circuit:
        """Copy of a circuit, or of the body of a block, with noise."""
        import stim

        out = stim.Circuit()
        layer: list[stim.CircuitInstruction] = []
        for step in circuit:
            if isinstance(step, stim.CircuitRepeatBlock):
                self._end_layer(out, layer)
                body = self.noisy(step.body_copy())
                out.append(stim.CircuitRepeatBlock(step.repeat_count, body, tag=step.tag))
            elif step.name == "TICK":
                self._end_layer(out, layer)
                out.append(step)
            elif step.name in _ANNOTATIONS:
                out.append(step)
            else:
                layer.append(step)
                self._operate(out, step)
        self._end_layer(out, layer)
        return out

    def _operate(self, out: stim.Circuit, step: stim.CircuitInstruction) -> None:
        """Append one operation with its own noise."""
        import stim

        gate = stim.gate_data(step.name)
        groups = [g for g in step.target_groups() if all(t.qubit_value is not None for t in g)]
        qubits = [t.qubit_value for group in groups for t in group]
        if len(set(qubits)) < len(qubits):  # gates on one qubit follow one another
            for group in step.target_groups():
                self._operate(out, stim.CircuitInstruction(step.name, group, tag=step.tag))
            return
        if gate.is_two_qubit_gate and gate.is_unitary:
            out.append(step)
            self._channel(out, "DEPOLARIZE2", qubits, self._p)
        elif gate.is_single_qubit_gate and gate.is_unitary:
            out.append(step)
            self._channel(out, "DEPOLARIZE1", qubits, self._p / 10)
        elif gate.is_single_qubit_gate and (gate.produces_measurements or gate.is_reset):
            flip = [5 * self._p] if gate.produces_measurements else []
            out.append(step.name, step.targets_copy(), flip, tag=step.tag)
            if gate.is_reset:
                x_basis = step.name.endswith("X")
                channel = _FLIP_OF_X_RESET if x_basis else _FLIP_OF_RESET
                self._channel(out, channel, qubits, 2 * self._p)
        else:
            raise _refusal(
                "SI1000 has no noise for this operation",
                str(step),
                "gates on one or two qubits, resets, measurements of one qubit",
            )

    def _end_layer(self, out: stim.Circuit, layer: list[stim.CircuitInstruction]) -> None:
        """Append the noise of the qubits that idled, and begin a new layer."""
        import stim

        gates = [stim.gate_data(step.name) for step in layer]
        slow = any(gate.produces_measurements or gate.is_reset for gate in gates)
        busy = {q for step in layer for q in _step_qubits(step)}
        if busy:
            idle = sorted(self._qubits - busy)
            self._channel(out, "DEPOLARIZE1", idle, 2 * self._p if slow else self._p / 10)
        layer.clear()

    def _channel(self, out: stim.Circuit, name: str, qubits: list[int], p: float) -> None:
        self._added += len(qubits)
        if self._added > MAX_ADDED_TARGETS:
            raise _refusal(
                "SI1000 adds too much noise",
                f"more than {MAX_ADDED_TARGETS} targets",
                "fewer layers, or fewer qubits that idle in them",
            )
        if qubits:  # as text: a hundred times faster than a list, and stim reads p exactly
            targets = " ".join(map(str, qubits))
            out.append_from_stim_program_text(f"{name}({p!r}) {targets}")


def _step_qubits(step: stim.CircuitInstruction) -> set[int]:
    """Qubits that an operation works on; none for those that only change the book-keeping."""
    return {
        target.qubit_value
        for group in step.target_groups()
        if all(target.qubit_value is not None for target in group)
        for target in group
    }


def _qubits_of(circuit: stim.Circuit) -> set[int]:
    """Qubits that any operation of a circuit works on."""
    import stim

    found: set[int] = set()
    for step in circuit:
        if isinstance(step, stim.CircuitRepeatBlock):
            found |= _qubits_of(step.body_copy())
        elif step.name not in _ANNOTATIONS:
            found |= _step_qubits(step)
    return found


def _refusal(what: str, got: str, allowed: str) -> ScenarioError:
    fix = "use another noise model, or change the circuit"
    return ScenarioError(what, where="system.qpu.noise", got=got, allowed=allowed, fix=fix)
