"""The training loop: what it is told, resuming, learning."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from gpu_decoder.ising.training.config import TrainingConfig

SMALL = {
    "name": "tiny",
    "filters": [8, 4],
    "kernels": [3, 3],
    "windows": [{"distance": 3, "rounds": 3}, {"distance": 5, "rounds": 4, "share": 0.5}],
    "noises": [{"model": "ising25", "p": 0.006}, {"model": "ising_scalar", "p": 0.01}],
    "seed": 5,
    "steps": 12,
    "cells_per_step": 600,
    "warmup_steps": 4,
    "decay_steps": 4,
    "log_every": 2,
    "save_every": 5,
}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"filters": [8, 5]}, "the last layer has 5 channels, allowed: 4"),
        ({"filters": [8, 8, 4]}, "3 filters and 2 kernels"),
        ({"kernels": [3, 2]}, "odd kernels"),
        ({"windows": []}, "at least 1 item"),
        ({"windows": [{"distance": 4, "rounds": 4}]}, "distance 4, allowed: odd"),
        ({"noises": [{"model": "ising25", "p": 0.0}]}, "greater than 0"),
        ({"steps": "12"}, "valid integer"),
        ({"stepps": 12}, "Extra inputs are not permitted"),
        ({"name": "../x"}, "match pattern"),
    ],
)
def test_a_wrong_configuration_is_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        TrainingConfig.model_validate(SMALL | change)


def test_the_rate_rises_and_falls() -> None:
    config = TrainingConfig.model_validate(SMALL)
    rates = [config.rate(step) / config.learning_rate for step in range(config.steps)]
    assert rates == [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]


@pytest.mark.needs("torch")
def test_batches_follow_from_seed_and_step() -> None:
    from gpu_decoder.ising.training.loop import Batches

    config = TrainingConfig.model_validate(SMALL)
    for a, b in zip(Batches(config)(3), Batches(config)(3), strict=True):
        np.testing.assert_array_equal(a, b)
    shapes = {Batches(config)(step)[0].shape[1:] for step in range(12)}
    assert shapes == {(4, 3, 3, 3), (4, 4, 5, 5)}
    assert not np.array_equal(Batches(config)(0)[1].sum(), Batches(config)(1)[1].sum())


@pytest.mark.needs("torch")
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    from gpu_decoder.ising.training.loop import Training

    config = TrainingConfig.model_validate(SMALL)
    whole = Training(config, tmp_path / "whole")
    whole.run(lambda _: None, lambda: False)
    first = Training(config, tmp_path / "parts")
    first.run(lambda _: None, lambda: first.step == 7)
    assert first.step == 7
    second = Training(config, tmp_path / "parts")
    assert (second.step, second.shots) == (7, first.shots)
    second.run(lambda _: None, lambda: False)
    for (w, b), (w2, b2) in zip(whole.layers(), second.layers(), strict=True):
        np.testing.assert_array_equal(w, w2)
        np.testing.assert_array_equal(b, b2)
    assert (tmp_path / "whole" / "log.jsonl").read_text().count("\n") == 6


@pytest.mark.needs("torch")
def test_a_killed_run_forgets_rows_behind_its_checkpoint(tmp_path: Path) -> None:
    from gpu_decoder.ising.training.loop import Training

    config = TrainingConfig.model_validate(SMALL)
    killed = Training(config, tmp_path)

    def kill(row: object) -> None:
        if killed.step == 8:  # the checkpoint is of step 5
            raise RuntimeError

    with pytest.raises(RuntimeError):
        killed.run(kill, lambda: False)
    log = tmp_path / "log.jsonl"
    assert _steps(log) == [2, 4, 6, 8]
    with log.open("a") as file:
        file.write('{"step": 1')  # cut by the kill
    again = Training(config, tmp_path)
    assert again.step == 5
    assert _steps(log) == [2, 4]
    again.run(lambda _: None, lambda: False)
    assert _steps(log) == [2, 4, 6, 8, 10, 12]


def _steps(log: Path) -> list[int]:
    return [json.loads(row)["step"] for row in log.read_text().splitlines()]


@pytest.mark.needs("torch")
def test_a_loss_that_is_not_finite_ends_the_run(tmp_path: Path) -> None:
    import torch

    from gpu_decoder.ising.training.loop import Training

    training = Training(TrainingConfig.model_validate(SMALL), tmp_path)
    training.run(lambda _: None, lambda: training.step == 2)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    with torch.no_grad():
        next(training._module.parameters()).fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="step 3: loss nan"):
        training.run(lambda _: None, lambda: False)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


@pytest.mark.needs("torch")
def test_a_checkpoint_of_another_configuration_is_refused(tmp_path: Path) -> None:
    from gpu_decoder.ising.training.loop import Training

    config = TrainingConfig.model_validate(SMALL | {"steps": 1})
    Training(config, tmp_path).run(lambda _: None, lambda: False)
    Training(TrainingConfig.model_validate(SMALL | {"steps": 3}), tmp_path)  # longer is allowed
    path = tmp_path / "checkpoint.pt"
    whole = path.read_bytes()
    with pytest.raises(ValueError, match="seed is 6, was 5"):
        Training(TrainingConfig.model_validate(SMALL | {"seed": 6}), tmp_path)
    for damaged in (b"", whole[:-100], b"not a checkpoint"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"checkpoint\.pt is damaged .*: remove it"):
            Training(config, tmp_path)


@pytest.mark.needs("torch")
def test_it_learns(tmp_path: Path) -> None:
    from gpu_decoder.ising.training.loop import Progress, Training

    rows: list[Progress] = []
    changes = {"steps": 60, "log_every": 20, "learning_rate": 0.01, "decay_steps": 0}
    training = Training(TrainingConfig.model_validate(SMALL | changes), tmp_path)
    training.run(rows.append, lambda: False)
    assert rows[-1].loss < 0.5 * rows[0].loss
    assert rows[-1].shots == training.shots
