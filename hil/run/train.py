"""``hil decoder train``: from a configuration file to weights with their record."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hil.errors import MissingExtraError, RigError, UsageError
from hil.run.interrupt import Interrupt
from hil.run.provenance import software

if TYPE_CHECKING:
    from gpu_decoder.ising.network import Architecture
    from gpu_decoder.ising.training.config import TrainingConfig
    from gpu_decoder.ising.training.loop import Progress, Training

_MAX_BYTES: Final = 1 << 20
_AT_ONCE: Final = "\nended at once; training goes on from its last checkpoint\n"


@dataclass(frozen=True)
class Trained:
    """What a training run left.

    Attributes:
        weights: the SafeTensors file; ``None`` if the run was interrupted before its last step.
        step: steps taken.
        steps: steps in all.
        signal: name of the signal that interrupted the run, or empty.
    """

    weights: Path | None
    step: int
    steps: int
    signal: str


def read_config(path: Path) -> TrainingConfig:
    """Read and check a training configuration (YAML or JSON).

    Raises:
        UsageError: the file cannot be read, is no YAML, or describes no training run.
    """
    from pydantic import ValidationError
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    from gpu_decoder.ising.training.config import TrainingConfig

    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_BYTES + 1)
        if len(raw) > _MAX_BYTES:
            raise UsageError("configuration is too large", where=str(path), allowed="1 MiB")
        return TrainingConfig.model_validate(YAML(typ="safe", pure=True).load(raw.decode()))
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise UsageError(
            "configuration cannot be read", where=str(path), got=str(error).splitlines()[0]
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UsageError(
            f"not a training configuration: {first['msg']}",
            where=f"{path}: {place}" if place else str(path),
            got=repr(first["input"])[:80],
            allowed="docs/predecoder.md lists the keys",
        ) from error


def train(
    config: TrainingConfig, folder: Path, report: Callable[[Progress], None], interrupt: Interrupt
) -> Trained:
    """Train in a folder, or go on there; write the weights after the last step.

    Raises:
        MissingExtraError: torch is not installed.
        UsageError: the folder holds a checkpoint that is damaged or of another configuration.
        RigError: the folder cannot be written, or loss or weights are no longer finite.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError(
            "training needs torch",
            got="not installed",
            fix="install the extra: pip install 'hil[train]'",
        ) from error
    from gpu_decoder.ising.training.loop import CheckpointError, Training
    from gpu_decoder.ising.weights import WeightsError

    try:
        training = Training(config, folder)
        training.run(report, lambda: bool(interrupt))
        if training.step < config.steps:
            return Trained(None, training.step, config.steps, interrupt.name)
        path = _write(training, folder, {**software(), "torch": torch.__version__})
    except CheckpointError as error:
        raise UsageError(str(error), where=str(folder)) from error
    except (FloatingPointError, WeightsError) as error:
        raise RigError(
            "training has diverged", where=str(folder), got=str(error),
            fix="lower learning_rate; the same command goes on from the last checkpoint",
        ) from error  # fmt: skip
    except OSError as error:
        raise RigError(
            "training cannot be written", where=str(folder), got=error.strerror or str(error)
        ) from error
    return Trained(path, training.step, config.steps, "")


def _write(training: Training, folder: Path, versions: dict[str, str]) -> Path:
    """Averaged weights as SafeTensors, and beside them what they come from."""
    from gpu_decoder.ising.weights import Weights, save_weights

    config = training.config
    noises = sorted({(n.model, n.p): n.build().fingerprint() for n in config.noises}.items())
    record: dict[str, Any] = {
        "config": config.model_dump(mode="json"),
        "steps": training.step,
        "shots": training.shots,
        "seconds": round(training.seconds),
        "software": versions,
        "noise_sha256": {f"{model} p={p:g}": digest for (model, p), digest in noises},
    }
    weights = Weights(
        architecture=_architecture(config.filters, config.kernels),
        layers=tuple(training.layers()),
        quant_format="fp16",
        metadata={
            "name": config.name,
            "orientation": config.orientation,
            "trained_noise": ", ".join(record["noise_sha256"]),
        },
        sha256="",
    )
    path = folder / f"{config.name}.safetensors"
    record["sha256"] = save_weights(path, weights)
    path.with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return path


def _architecture(filters: tuple[int, ...], kernels: tuple[int, ...]) -> Architecture:
    """The registered one of this form, or one that is described by it."""
    from gpu_decoder.ising.network import REGISTRY, architecture

    for known in REGISTRY.values():
        if (known.filters, known.kernels) == (filters, kernels):
            return known
    return architecture("custom", filters, kernels)


def training_interrupt() -> Interrupt:
    """An interrupt whose words are those of a training run."""
    return Interrupt(second=_AT_ONCE)
