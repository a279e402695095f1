"""The parts of a run, built from a scenario: circuit, decoders, pipeline. Nothing runs yet."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gpu_decoder.build import NAMES
from gpu_decoder.protocol import Backend, GlobalDecoder, Precision
from gpu_decoder.runtime.protocol import EngineError, RuntimeUnavailable
from gpu_decoder.turns import TurnDecoders, build_turns
from hil.device.families import Models, build_models
from hil.device.sampler import BlockCutter
from hil.errors import DecoderError
from hil.rack.link_faults import link_plans
from hil.rack.plan import window_plan
from hil.rack.timeline import U8
from hil.run.record import RecordBuilder
from hil.scenario.model import (
    BreakFault,
    DelayFault,
    IsingCircuit,
    PredecoderSpec,
    Scenario,
    StallFault,
)
from hil.trace.column import ByteWidths

if TYPE_CHECKING:
    from gpu_decoder.ising.config import PredecoderConfig


@dataclass(frozen=True)
class Decoders:
    """Primary and fallback decoder of a run, built when first used.

    Attributes:
        dem_texts: detector error models of epoch 0, one per model of the device.
        primary_name, fallback_name: names of the matchers as the scenario asks for them.
        sliding: commit and buffer rounds of sliding windows, ``None`` for whole shots.
        predecoders: what runs before the primary matcher, one per model; empty: nothing does.
    """

    dem_texts: tuple[str, ...]
    primary_name: str
    fallback_name: str
    sliding: tuple[int, int] | None = None
    predecoders: tuple[PredecoderConfig, ...] = ()

    @cached_property
    def primary(self) -> TurnDecoders:
        """The decoder that is asked first."""
        where = "system.decoder.predecoder" if self.predecoders else "system.decoder.primary"
        return _built(
            self.primary_name, self.dem_texts, where, self.sliding, predecoders=self.predecoders
        )

    @cached_property
    def fallback(self) -> TurnDecoders:
        """The decoder that answers in its place."""
        if self.fallback_name == self.primary_name and not self.predecoders:
            return self.primary
        return _built(self.fallback_name, self.dem_texts, "system.decoder.fallback.to")

    def requested(self, path: U8) -> U8:
        """uint8 [n]: ``GlobalDecoder`` asked for on each ``Path``; NONE where nobody answers."""
        table = np.array(
            [NAMES[self.primary_name], NAMES[self.fallback_name], GlobalDecoder.NONE],
            dtype=np.uint8,
        )
        codes: U8 = table[path]
        return codes


def _built(
    name: str,
    dem_texts: tuple[str, ...],
    where: str,
    sliding: tuple[int, int] | None = None,
    *,
    predecoders: tuple[PredecoderConfig, ...] = (),
) -> TurnDecoders:
    """Build a decoder; whatever stops it becomes one clear error before the first shot."""
    try:
        return build_turns(name, dem_texts, sliding=sliding, predecoders=predecoders)
    except RuntimeUnavailable as error:
        raise DecoderError(
            f"{predecoders[0].backend.name.lower()} is not available on this machine",
            where="bind.profiles.*.decoder.predecoder",
            got=str(error),
            fix="see `hil doctor`, or choose another runtime; nothing takes its place",
        ) from error
    except (ValueError, EngineError) as error:
        raise DecoderError(
            f"{'the pre-decoder' if predecoders else name} cannot be built",
            where=where,
            got=str(error),
            fix="`hil decoder info FILE` tells what weights or a model hold" if predecoders else "",
        ) from error


def build_circuits(scenario: Scenario) -> Models:
    """The circuits of a scenario's device; shots of several take turns."""
    return build_models(scenario.system.qpu)


def build_decoders(scenario: Scenario, models: Models) -> Decoders:
    """The decoders of a scenario, not built yet."""
    spec = scenario.system.decoder
    dem_texts = tuple(code.dem_text for code in models)
    return Decoders(
        dem_texts,
        spec.matcher,
        spec.fallback.to,
        spec.window.sliding,
        predecoder_configs(scenario),
    )


def predecoder_configs(scenario: Scenario) -> tuple[PredecoderConfig, ...]:
    """The pre-decoder of each model as plain data, for this process or a worker's; or none.

    Raises:
        DecoderError: the file is not the one that was checked.
    """
    from gpu_decoder.ising.config import PredecoderConfig

    circuit, asked = scenario.system.qpu.circuit, scenario.system.decoder.predecoder
    if asked is None or not isinstance(circuit, IsingCircuit):
        return ()
    binding, limits = scenario.profile.decoder, asked.threshold
    _demand_same_file(asked)
    return tuple(
        PredecoderConfig(
            distance=circuit.distance,
            rounds=circuit.rounds,
            basis=basis,
            orientation=circuit.orientation,
            weights=asked.path if asked.weights is not None else "",
            model=asked.path if asked.model is not None else "",
            rule=asked.rule or "",
            keep_last=asked.residual == "keep_last",
            threshold_data=None if limits is None else limits.data,
            threshold_syndrome=None if limits is None else limits.syndrome,
            backend=Backend[binding.predecoder.upper()],
            precision=Precision[(binding.precision or "na").upper()],
        )
        for basis in circuit.bases
    )


def _demand_same_file(asked: PredecoderSpec) -> None:
    """The decode library reads the file again: it must be the one whose hash is recorded."""
    if not asked.path:
        return
    try:
        digest = hashlib.sha256(Path(asked.path).read_bytes()).hexdigest()
    except OSError as error:
        digest = error.strerror or str(error)
    if digest != asked.sha256:
        raise DecoderError(
            "the file of the pre-decoder changed after it was checked",
            where="system.decoder.predecoder",
            got=digest,
            allowed=f"sha256 {asked.sha256}",
            fix="begin again",
        )


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
        bases=scenario.system.qpu.circuit.bases,
        shot_period_ps=scenario.system.qpu.shot_period_ps,
        measured=scenario.profile.live,
        board_mask=board_mask(scenario),
        plan=window_plan(scenario),
        delays=tuple(f for f in faults if isinstance(f, DelayFault)),
        stalled=frozenset(f.at.shot for f in faults if isinstance(f, StallFault)),
        breaks=tuple(f for f in faults if isinstance(f, BreakFault)),
        link_plans=link_plans(scenario),
    )


def board_mask(scenario: Scenario) -> int:
    """One bit per readout board, all set: every board's part arrived."""
    return (1 << len(scenario.system.rack.readout_boards)) - 1
