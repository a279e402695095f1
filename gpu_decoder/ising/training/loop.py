"""The training loop: seeded, resumable, on the CPU or wherever torch is told to run.

A step draws one window and one noise model, samples as many X as Z shots with their labels, and
takes one AdamW step on the binary cross-entropy of all cells. Cells that no detector and no
observable ever sees (data errors of the other basis in round 0) are left out. What is drawn follows
from the seed and the number of the step, so a resumed run sees the shots that an uninterrupted one
would have seen.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gpu_decoder.files import write_whole
from gpu_decoder.ising.geometry import Basis, geometry
from gpu_decoder.ising.tensors import Layout
from gpu_decoder.ising.training.config import TrainingConfig
from gpu_decoder.ising.training.equivalence import equivalent
from gpu_decoder.ising.training.labels import LabelSampler, label_grid

if TYPE_CHECKING:
    from torch import nn

CHECKPOINT = "checkpoint.pt"
LOG = "log.jsonl"


@dataclass(frozen=True)
class Progress:
    """A row of the log.

    Attributes:
        step: steps taken.
        steps: steps in all.
        shots: labelled shots seen.
        loss: cross-entropy per cell, mean since the last row.
        rate: learning rate.
        seconds: time spent in training, interruptions left out.
    """

    step: int
    steps: int
    shots: int
    loss: float
    rate: float
    seconds: float


class Batches:
    """Labelled batches by the number of the step."""

    def __init__(self, config: TrainingConfig) -> None:
        self._config = config
        self._samplers: dict[tuple[int, int, Basis], LabelSampler] = {}

    def __call__(self, step: int) -> tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[Any]]:
        """Input float32 [n, 4, T, d, d], labels uint8 and mask float32 of the same shape."""
        config = self._config
        draw, *seeds = np.random.SeedSequence((config.seed, step)).spawn(3)
        rng = np.random.default_rng(draw)
        w = _pick(rng, [w.share for w in config.windows])
        k = _pick(rng, [noise.share for noise in config.noises])
        window = config.windows[w]
        cells = window.rounds * window.distance**2
        n = max(1, round(config.cells_per_step / cells / 2))
        parts = []
        for basis, seed in zip(("X", "Z"), seeds, strict=True):
            sampler = self._sampler(w, k, "X" if basis == "X" else "Z")
            shots = sampler.sample(n, int(seed.generate_state(1, np.uint64)[0] >> 1))
            layout = sampler.layout
            mask = np.ones((n, *layout.shape), dtype=np.float32)
            mask[:, 1 if basis == "X" else 0, 0] = 0.0
            labels = label_grid(layout, equivalent(layout, shots))
            parts.append((layout.network_input(shots.detectors), labels, mask))
        inputs, labels, masks = (np.concatenate(column) for column in zip(*parts, strict=True))
        return inputs, labels, masks

    def _sampler(self, w: int, k: int, basis: Basis) -> LabelSampler:
        key = (w, k, basis)
        if key not in self._samplers:
            window = self._config.windows[w]
            code = geometry(window.distance, self._config.orientation)
            layout = Layout(code, window.rounds, basis)
            self._samplers[key] = LabelSampler(layout, self._config.noises[k].build())
        return self._samplers[key]


def _pick(rng: np.random.Generator, shares: list[float]) -> int:
    weights = np.asarray(shares)
    return int(rng.choice(len(weights), p=weights / weights.sum()))


def build_network(filters: tuple[int, ...], kernels: tuple[int, ...]) -> nn.Module:
    """The torch module of the family: convolutions with GELU (tanh form) between them.

    Its state has the keys of the reference, ``net.{0,3,..}.{weight,bias}``: the places between
    are dropout, which is not used, and activation.
    """
    from torch import nn

    layers: list[nn.Module] = []
    channels = 4
    for i, (out, kernel) in enumerate(zip(filters, kernels, strict=True)):
        layers.append(nn.Conv3d(channels, out, kernel, padding=kernel // 2))
        if i < len(filters) - 1:
            layers += [nn.Identity(), nn.GELU(approximate="tanh")]
        channels = out
    module = nn.Module()
    module.net = nn.Sequential(*layers)
    return module


class CheckpointError(ValueError):
    """A folder holds a checkpoint that this run cannot go on from; the message says why."""


class Training:
    """A training run in a folder: checkpoint and log; an interrupted one goes on.

    Args:
        config: what to do.
        folder: where checkpoint and log lie; made if absent.

    Raises:
        CheckpointError: the folder holds a checkpoint that is damaged or of another configuration.
        OSError: the folder cannot be written.
    """

    def __init__(self, config: TrainingConfig, folder: Path) -> None:
        import torch

        self.config = config
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        torch.set_num_threads(config.threads)
        torch.manual_seed(config.seed)
        self._module = build_network(config.filters, config.kernels)
        self._module.net.to(memory_format=torch.channels_last_3d)
        self._average = {k: v.detach().clone() for k, v in self._module.state_dict().items()}
        self._optimiser = torch.optim.AdamW(
            self._module.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.step, self.shots, self.seconds = 0, 0, 0.0
        if (folder / CHECKPOINT).exists():
            self._load()

    def run(self, report: Callable[[Progress], None], until: Callable[[], bool]) -> None:
        """Train until the last step, or until asked to stop; leaves a checkpoint.

        Args:
            report: gets a row every ``log_every`` steps.
            until: asked before each step; true ends the run.

        Raises:
            FloatingPointError: loss or gradient is not finite; the last checkpoint is kept.
            OSError: checkpoint or log cannot be written.
        """
        batches, losses = Batches(self.config), []
        began, before = time.monotonic(), self.seconds
        while self.step < self.config.steps and not until():
            losses.append(self._one_step(batches))
            self.seconds = before + time.monotonic() - began
            if self.step % self.config.log_every == 0:
                self._log(report, float(np.mean(losses)))
                losses = []
            if self.step % self.config.save_every == 0:
                self._save()
        self._save()

    def layers(self) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """Averaged weight and bias of each layer."""
        state = self._average
        places = [3 * i for i in range(len(self.config.filters))]
        return [
            (state[f"net.{i}.weight"].numpy().copy(), state[f"net.{i}.bias"].numpy().copy())
            for i in places
        ]

    def _one_step(self, batches: Batches) -> float:
        import torch
        from torch.nn import functional

        inputs, labels, mask = batches(self.step)
        rate = self.config.rate(self.step)
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        x = torch.from_numpy(inputs).contiguous(memory_format=torch.channels_last_3d)
        logits = self._module.net(x)
        weights = torch.from_numpy(mask)
        loss = (
            functional.binary_cross_entropy_with_logits(
                logits, torch.from_numpy(labels).float(), weight=weights, reduction="sum"
            )
            / weights.sum()
        )
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self._module.parameters(), 1.0)
        if not torch.isfinite(norm):  # nor is it where the loss is not
            raise FloatingPointError(
                f"step {self.step + 1}: loss {loss.item()}, norm of its gradient {norm.item()}"
            )
        self._optimiser.step()
        self.step += 1
        self.shots += len(inputs)
        decay = min(self.config.averaging, self.step / (self.step + 10))
        with torch.no_grad():
            for name, value in self._module.state_dict().items():
                self._average[name].lerp_(value, 1.0 - decay)
        return float(loss.detach())

    def _log(self, report: Callable[[Progress], None], loss: float) -> None:
        config = self.config
        row = Progress(
            self.step, config.steps, self.shots, loss, config.rate(self.step - 1), self.seconds
        )
        with (self.folder / LOG).open("a") as log:
            log.write(json.dumps(row.__dict__) + "\n")
        report(row)

    def _save(self) -> None:
        import torch

        part = self.folder / f"{CHECKPOINT}.part"
        torch.save(
            {
                "config": self.config.model_dump_json(),
                "model": self._module.state_dict(),
                "average": self._average,
                "optimiser": self._optimiser.state_dict(),
                "step": self.step,
                "shots": self.shots,
                "seconds": self.seconds,
            },
            part,
        )
        part.replace(self.folder / CHECKPOINT)

    def _load(self) -> None:
        import torch

        path = self.folder / CHECKPOINT
        data = io.BytesIO(path.read_bytes())
        try:
            state = torch.load(data, weights_only=True)
            _demand_same(self.config, TrainingConfig.model_validate_json(state["config"]))
            self._module.load_state_dict(state["model"])
            self._average = state["average"]
            self._optimiser.load_state_dict(state["optimiser"])
            self.step, self.shots = state["step"], state["shots"]
            self.seconds = state["seconds"]
        except CheckpointError:
            raise
        except Exception as error:  # torch raises what it likes for a damaged file
            what = f"{type(error).__name__}: {error}".splitlines()[0]
            raise CheckpointError(f"{path} is damaged ({what}): remove it to begin anew") from error
        self._forget_rows()

    def _forget_rows(self) -> None:
        """Drop rows of the log behind the checkpoint: their steps are taken again."""
        log = self.folder / LOG
        if log.exists():
            rows = log.read_text().splitlines(keepends=True)
            kept = [row for row in rows if row.endswith("\n") and _step(row) <= self.step]
            write_whole(log, "".join(kept).encode())


SCHEDULE = frozenset(
    {"steps", "decay_steps", "learning_rate", "threads", "log_every", "save_every"}
)
"""Fields that a resumed run may change: how long and how fast, never what is learnt."""


def _step(row: str) -> int:
    return int(json.loads(row)["step"])


def _demand_same(now: TrainingConfig, then: TrainingConfig) -> None:
    exclude = set(SCHEDULE)
    a, b = now.model_dump(exclude=exclude), then.model_dump(exclude=exclude)
    for key in a:
        if a[key] != b[key]:
            raise CheckpointError(
                f"the folder holds a checkpoint of another configuration: {key} is {a[key]!r}, "
                f"was {b[key]!r}; choose another folder, or restore {key}"
            )
