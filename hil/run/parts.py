"""The parts of a run, built from a scenario: circuit, decoders, pipeline. Nothing runs yet."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from gpu_decoder.build import NAMES, build_decoder
from gpu_decoder.protocol import Decoder, GlobalDecoder
from hil.device.circuits import CodeCircuit, surface_memory
from hil.device.sampler import BlockCutter
from hil.errors import DecoderError
from hil.rack.plan import window_plan
from hil.rack.timeline import U8
from hil.run.record import RecordBuilder
from hil.scenario.model import DelayFault, Scenario, StallFault
from hil.trace.column import ByteWidths


@dataclass(frozen=True)
class Decoders:
    """Primary and fallback decoder of a run, built when first used.

    Attributes:
        dem_text: model of epoch 0.
        primary_name, fallback_name: names as the scenario asks for them.
        sliding: commit and buffer rounds of sliding windows, ``None`` for whole shots.
    """

    dem_text: str
    primary_name: str
    fallback_name: str
    sliding: tuple[int, int] | None = None

    @cached_property
    def primary(self) -> Decoder:
        """The decoder that is asked first."""
        return _built(self.primary_name, self.dem_text, "system.decoder.primary", self.sliding)

    @cached_property
    def fallback(self) -> Decoder:
        """The decoder that answers in its place."""
        if self.fallback_name == self.primary_name:
            return self.primary
        return _built(self.fallback_name, self.dem_text, "system.decoder.fallback.to")

    def requested(self, path: U8) -> U8:
        """uint8 [n]: ``GlobalDecoder`` asked for on each ``Path``; NONE where nobody answers."""
        table = np.array(
            [NAMES[self.primary_name], NAMES[self.fallback_name], GlobalDecoder.NONE],
            dtype=np.uint8,
        )
        codes: U8 = table[path]
        return codes


def _built(name: str, dem_text: str, where: str, sliding: tuple[int, int] | None = None) -> Decoder:
    try:
        return build_decoder(name, dem_text, sliding=sliding)
    except ValueError as error:
        raise DecoderError(
            "the decoder cannot be built", where=where, got=name, fix=str(error)
        ) from error


def build_circuit(scenario: Scenario) -> CodeCircuit:
    """The circuit of a scenario's device."""
    qpu = scenario.system.qpu
    return surface_memory(
        distance=qpu.circuit.distance,
        rounds=qpu.circuit.rounds,
        basis=qpu.circuit.basis,
        p=qpu.noise.p,
    )


def build_decoders(scenario: Scenario, code: CodeCircuit) -> Decoders:
    """The decoders of a scenario, not built yet."""
    spec = scenario.system.decoder
    return Decoders(code.dem_text, spec.primary, spec.fallback.to, spec.window.sliding)


def build_recorder(scenario: Scenario, cutter: BlockCutter, widths: ByteWidths) -> RecordBuilder:
    """The rules by which this scenario's shots become columns."""
    faults = scenario.faults.values()
    record = scenario.run.record
    return RecordBuilder(
        cutter=cutter,
        widths=widths,
        level=record.level,
        every=record.every,
        warmup_shots=scenario.run.warmup.shots,
        basis=scenario.system.qpu.circuit.basis,
        shot_period_ps=scenario.system.qpu.shot_period_ps,
        measured=scenario.profile.live,
        board_mask=board_mask(scenario),
        plan=window_plan(scenario),
        delays=tuple(f for f in faults if isinstance(f, DelayFault)),
        stalled=frozenset(f.at.shot for f in faults if isinstance(f, StallFault)),
    )


def board_mask(scenario: Scenario) -> int:
    """One bit per readout board, all set: every board's part arrived."""
    return (1 << len(scenario.system.rack.readout_boards)) - 1
