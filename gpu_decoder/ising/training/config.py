"""What a training run is told: a frozen, checked description."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from gpu_decoder.ising.geometry import Orientation
from gpu_decoder.ising.noise import Ising25, IsingNoise, IsingScalar

_tuple = BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Window(_Model):
    """A size of the shots that the network sees.

    Attributes:
        distance: d.
        rounds: T.
        share: how often it is drawn, relative to the others.
    """

    distance: int = Field(ge=3, le=31)
    rounds: int = Field(ge=2, le=64)
    share: float = Field(default=1.0, gt=0.0)

    @model_validator(mode="after")
    def _odd(self) -> Window:
        if self.distance % 2 == 0:
            raise ValueError(f"distance {self.distance}, allowed: odd")
        return self


class Noise(_Model):
    """A noise model of the shots.

    Attributes:
        model: ``ising25`` or ``ising_scalar``.
        p: its strength.
        share: how often it is drawn, relative to the others.
    """

    model: Literal["ising25", "ising_scalar"]
    p: float = Field(gt=0.0, le=0.05)
    share: float = Field(default=1.0, gt=0.0)

    def build(self) -> IsingNoise:
        """The noise of the circuit."""
        return Ising25.from_p(self.p) if self.model == "ising25" else IsingScalar(self.p)


class TrainingConfig(_Model):
    """A whole training run.

    Attributes:
        name: of the weights, also their file name.
        orientation: of the code; X and Z shots alternate within every batch.
        filters: channels of each layer; the last one has 4.
        kernels: kernel size of each layer, odd.
        windows: sizes of the shots.
        noises: noise models of the shots.
        seed: everything random follows from it and from the number of the step.
        steps: optimiser steps in all.
        cells_per_step: grid cells of a batch, about; the batch is at least one shot of each basis.
        learning_rate: peak; rises over ``warmup_steps``, falls to 0 over the last
            ``decay_steps``.
        warmup_steps: steps of the rise.
        decay_steps: steps of the fall.
        weight_decay: of AdamW.
        averaging: decay of the running average of the weights, which is what is saved.
        threads: CPU threads of torch.
        log_every: steps between two rows of the log.
        save_every: steps between two checkpoints.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    orientation: Orientation = "XV"
    filters: Annotated[tuple[int, ...], _tuple] = Field(min_length=2)
    kernels: Annotated[tuple[int, ...], _tuple] = Field(min_length=2)
    windows: Annotated[tuple[Window, ...], _tuple] = Field(min_length=1)
    noises: Annotated[tuple[Noise, ...], _tuple] = Field(min_length=1)
    seed: int = Field(ge=0)
    steps: int = Field(ge=1)
    cells_per_step: int = Field(default=32_000, ge=1)
    learning_rate: float = Field(default=2e-3, gt=0.0)
    warmup_steps: int = Field(default=200, ge=0)
    decay_steps: int = Field(default=0, ge=0)
    weight_decay: float = Field(default=1e-4, ge=0.0)
    averaging: float = Field(default=0.999, ge=0.0, lt=1.0)
    threads: int = Field(default=1, ge=1)
    log_every: int = Field(default=50, ge=1)
    save_every: int = Field(default=500, ge=1)

    @model_validator(mode="after")
    def _consistent(self) -> TrainingConfig:
        if len(self.filters) != len(self.kernels):
            raise ValueError(
                f"{len(self.filters)} filters and {len(self.kernels)} kernels, allowed: as many"
            )
        if self.filters[-1] != 4:
            raise ValueError(f"the last layer has {self.filters[-1]} channels, allowed: 4")
        if any(k % 2 == 0 or k < 1 for k in self.kernels) or min(self.filters) < 1:
            raise ValueError(
                f"filters {self.filters}, kernels {self.kernels}, allowed: odd kernels"
            )
        return self

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        rise = min(1.0, (step + 1) / max(1, self.warmup_steps))
        fall = min(1.0, (self.steps - step) / max(1, self.decay_steps))
        return self.learning_rate * min(rise, fall)
