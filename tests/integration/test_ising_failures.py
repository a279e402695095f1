"""A runtime that fails on some shots of a virtual run: these fall back, the others go on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

import hil
from gpu_decoder.build import build_decoder
from gpu_decoder.ising import config
from gpu_decoder.protocol import Reason, U8Array
from gpu_decoder.runtime.protocol import EngineError, Runtime
from hil.rack.timeline import Status
from hil.run.runner import RunOptions, run_scenario

WEIGHTS = Path(__file__).parents[1] / "data" / "ising_e2e" / "custom16_random_fp16.safetensors"
MANY_EVENTS = 7


class Sick:
    """A broken peer: fails on every batch that has a shot with many events."""

    def __init__(self, inner: Runtime, reason: Reason) -> None:
        self._inner, self._reason = inner, reason

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    def run(self, dets: U8Array) -> U8Array:
        if (dets.sum(axis=1) >= MANY_EVENTS).any():
            raise EngineError("on purpose", self._reason)
        return self._inner.run(dets)


@pytest.mark.parametrize(
    ("policy", "reason"),
    [("on_deadline", Reason.PREDECODER_ERROR), ("never", Reason.ENGINE_MISMATCH)],
)
def test_shots_are_given_up_one_by_one(
    scenarios: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    policy: str,
    reason: Reason,
) -> None:
    data = yaml.safe_load((scenarios / "ising_d5.yaml").read_text())
    (tmp_path / "w.safetensors").write_bytes(WEIGHTS.read_bytes())
    data["system"]["qpu"]["circuit"] |= {"distance": 3, "rounds": 3}
    data["system"]["qpu"]["noise"]["p"] = 0.01
    decoder = data["system"]["decoder"]
    decoder["predecoder"] = {"weights": "./w.safetensors"}
    if policy == "never":
        decoder["fallback"] = {"to": "pymatching", "policy": "never"}
    for profile in data["bind"]["profiles"].values():
        profile["decoder"] |= {"predecoder": "ort_cpu", "precision": "fp32"}
    path = tmp_path / "s.yaml"
    path.write_text(yaml.safe_dump(data | {"expect": {}}))
    build = config.build_runtime
    monkeypatch.setattr(config, "build_runtime", lambda *a, **k: Sick(build(*a, **k), reason))
    options = RunOptions(bind="mil", out=tmp_path / "out", overrides=["run.shots=600"])
    result = run_scenario(path, options)
    with hil.open_trace(result.trace) as trace:
        shots, decodes = trace.stream("shots"), trace.stream("decodes")
        plain = build_decoder("pymatching", trace.epoch(0)["dem"])
    sick = np.bitwise_count(shots["detectors_b8"]).sum(axis=1) >= MANY_EVENTS
    assert 5 < sick.sum() < 300
    assert np.array_equal(shots["fallback"], np.where(sick, reason, Reason.NONE))
    assert np.unique(decodes["shot"], return_counts=True)[1].max() == 1, "nothing answered twice"
    if policy == "on_deadline":
        raw = np.ascontiguousarray(shots["detectors_b8"][sick])
        want = plain.decode_batch(raw).predictions_b8
        assert np.array_equal(shots["obs_pred_b8"][sick], want)
        assert (shots["status"] == Status.OK).all()
        assert decodes["shot"].size == 600
    else:
        assert np.array_equal(shots["status"] == Status.DROPPED, sick)
        assert not shots["obs_pred_b8"][sick].any()
        assert np.array_equal(decodes["shot"], shots["shot"][~sick])
