"""Runs that are interrupted or killed at any moment, and go on as if nothing had happened."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import hil
from gpu_decoder.protocol import Reason
from hil.cli import main
from hil.errors import HilError, RigError, UsageError
from hil.run import provenance, runner
from hil.run.interrupt import Interrupt
from hil.run.resume import Earlier
from hil.run.runner import RunOptions, run_scenario
from hil.trace.reader import open_trace
from hil.trace.validate import validate_trace
from hil.verdict.judge import Verdict

MORE_FALLBACKS = "system.decoder.fallback.primary_deadline=17us"
FASTER = "system.qpu.shot_period=13us"
SHOTS = "run.shots=40000"
"""Three batches of the sampler."""


def _options(out: Path, *overrides: str, resume: bool = False, stop_at: int = 0) -> RunOptions:
    def progress(done: int, _all: int) -> None:
        if stop_at and done >= stop_at:
            signal.raise_signal(signal.SIGINT)

    return RunOptions(
        bind="mil", out=out, overrides=[SHOTS, *overrides], resume=resume,
        progress=progress if stop_at else lambda _done, _all: None,
    )  # fmt: skip


@pytest.mark.parametrize(
    "overrides",
    [("run.record.level=rounds",), (MORE_FALLBACKS, FASTER)],
    ids=["rounds", "shots-with-fallbacks"],
)
def test_an_interrupted_run_resumes_to_the_same_content(
    scenarios: Path, tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    path, out = scenarios / "surface_d7_mil.yaml", tmp_path / "run"
    whole = run_scenario(path, _options(tmp_path / "whole", *overrides))
    stopped = run_scenario(path, _options(out, *overrides, stop_at=1))
    assert (stopped.verdict, stopped.exit_code) == (Verdict.RIG_ERROR, 3)
    assert validate_trace(stopped.trace).ok
    with open_trace(stopped.trace) as trace:
        done = trace.rows("shots")
        assert trace.exit_status == "aborted"
    assert 0 < done < 40_000
    reasons = [j.reason for j in stopped.document.expectations if j.metric == "rig"]
    assert len(reasons) == 1
    assert reasons[0].startswith(f"interrupted by SIGINT after {done} of ")
    again = run_scenario(path, _options(out, *overrides, resume=True))
    assert again.content_id == whole.content_id
    assert again.verdict == whole.verdict
    assert sorted(p.name for p in out.iterdir()) == sorted(
        p.name for p in whole.directory.iterdir()
    )
    with open_trace(again.trace) as trace:
        reason = trace.stream("shots", ["fallback"], 0, done)["fallback"]
    if overrides and overrides[0] == MORE_FALLBACKS:
        assert (reason != Reason.NONE).sum() > 100
    label = next(text for text in again.document.labels if text.startswith("resumed"))
    assert int(label.split()[1]) == int((reason == Reason.NONE).sum()), "all others were read"


def test_behind_a_predecoder_an_interrupted_run_is_decoded_again_to_the_same_content(
    pair_rule_scenario: Path, tmp_path: Path
) -> None:
    """The pre-decoder's events left decide the service times, and only decoding tells them."""
    path, out = pair_rule_scenario, tmp_path / "run"
    few = (
        "run.shots=17000",  # two batches of the sampler
        "run.record.level=shots",
        "system.decoder.fallback.primary_deadline=450us",
        "expect={}",
    )
    whole = run_scenario(path, _options(tmp_path / "whole", *few))
    stopped = run_scenario(path, _options(out, *few, stop_at=1))
    assert (stopped.verdict, stopped.exit_code) == (Verdict.RIG_ERROR, 3)
    again = run_scenario(path, _options(out, *few, resume=True))
    assert again.content_id == whole.content_id
    assert any(text.startswith("resumed: 0 answers") for text in again.document.labels)
    with open_trace(again.trace) as trace:
        late = trace.stream("shots", ["fallback"])["fallback"] == Reason.DEADLINE
    assert 100 < late.sum() < late.size - 100, "primary and fallback both answered"


def test_answers_are_read_and_not_decoded(
    scenarios: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stored answer that is altered comes through: proof that it was not decoded anew."""
    path, out = scenarios / "surface_d7_mil.yaml", tmp_path / "run"
    run_scenario(path, _options(out, stop_at=1))
    original = Earlier.primary

    def altered(self: Earlier, batch: object, decoder: object) -> object:
        answers = original(self, batch, decoder)
        if batch.first_shot == 0:
            assert self.reused > 0
            answers.predictions_b8[0] ^= 1
        return answers

    monkeypatch.setattr(Earlier, "primary", altered)
    whole = run_scenario(path, _options(tmp_path / "whole"))
    assert run_scenario(path, _options(out, resume=True)).content_id != whole.content_id


def _start(out: Path, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "hil", "run", *more, "--out", str(out), "--quiet"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def _wait(ready: Callable[[], bool], process: subprocess.Popen[str], limit_s: float = 90) -> None:
    end = time.monotonic() + limit_s
    while not ready() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.live
def test_kill_9_again_and_again_then_resume(scenarios: Path, tmp_path: Path) -> None:
    """Killed at random moments, also while it resumes: nothing committed is ever lost."""
    path, out = scenarios / "surface_d7_mil.yaml", tmp_path / "run"
    overrides = ("run.shots=150000", "run.record.level=rounds")
    arguments = [str(path), *(w for o in overrides for w in ("--set", o))]
    rng = random.Random(20251122)
    committed, kills = 0, 0
    for attempt in range(6):
        process = _start(out, *arguments, *(["--resume"] if attempt else []))
        if attempt == 0:
            _wait(lambda: _rows(out / "trace.part.h5") > 0, process)
        time.sleep(rng.uniform(0.0, 3.0))
        process.kill()
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
        if (out / "trace.h5").exists():  # a fast machine: the run was through before the kill
            break
        now = max(_rows(out / name) for name in ("trace.part.h5", "earlier.part.h5"))
        assert now >= committed, "a kill lost what was committed before"
        committed = now
    assert kills >= 1
    assert committed > 0
    if not (out / "trace.h5").exists():
        assert main(["run", *arguments, "--out", str(out), "-q", "--resume"]) == 0
    whole = run_scenario(path, RunOptions(out=tmp_path / "whole", overrides=overrides))
    with open_trace(out / "trace.h5") as trace:
        assert trace.content_id == whole.content_id
    assert not list(out.glob("*.part.h5"))


def _broken(out: Path) -> dict[str, Callable[[], tuple[RunOptions, str]]]:
    return {
        "seed": lambda: (_options(out, "run.seed=5", resume=True), "run.seed 5, was 20240817"),
        "noise": lambda: (
            _options(out, "system.qpu.noise.p=2.0e-3", resume=True), "system.qpu.noise.p 0.002"
        ),
        "no folder": lambda: (_options(out / "absent", resume=True), "nothing to resume"),
        "no --out": lambda: (RunOptions(bind="mil", resume=True), "--resume needs"),
    }  # fmt: skip


def test_what_cannot_be_resumed_is_refused_and_left_alone(
    scenarios: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = scenarios / "surface_d7_mil.yaml", tmp_path / "run"
    run_scenario(path, _options(out, stop_at=1))
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    for case in _broken(out).values():
        options, words = case()
        with pytest.raises(UsageError) as caught:
            run_scenario(path, options)
        assert words in caught.value.message
    software = provenance.software()
    monkeypatch.setattr(provenance, "software", lambda: software | {"stim": "1.0"})
    with pytest.raises(UsageError, match="stim differs"):
        run_scenario(path, _options(out, resume=True))
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before


def test_a_finished_run_and_a_live_run_are_not_resumed(scenarios: Path, tmp_path: Path) -> None:
    path, out = scenarios / "surface_d7_mil.yaml", tmp_path / "run"
    run_scenario(path, _options(out))
    with pytest.raises(UsageError, match="has ended"):
        run_scenario(path, _options(out, resume=True))
    with pytest.raises(UsageError, match="live run cannot be resumed"):
        run_scenario(scenarios / "surface_d5.yaml", RunOptions(out=out, resume=True))


def test_a_run_that_still_goes_on_is_left_alone(
    scenarios: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = scenarios / "surface_d7_mil.yaml", tmp_path / "run"
    refused = []

    def try_to_resume(_done: int, _all: int) -> None:
        command = ["run", str(path), "--set", SHOTS, "--out", str(out), "-q", "--resume"]
        refused.append(main(command))

    options = replace(_options(out), progress=try_to_resume)
    assert run_scenario(path, options).verdict is Verdict.PASS
    assert set(refused) == {2}
    assert "still going on" in capsys.readouterr().err


def test_a_trace_that_cannot_be_read_is_kept_and_the_run_begins_anew(
    scenarios: Path, tmp_path: Path
) -> None:
    path, out = scenarios / "surface_d7_mil.yaml", tmp_path / "run"
    out.mkdir()
    (out / "trace.part.h5").write_bytes(b"killed before its first commit")
    with pytest.raises(UsageError, match="holds a trace already") as caught:
        run_scenario(path, _options(out))
    assert "--resume" in caught.value.fix
    assert run_scenario(path, _options(out, resume=True)).verdict is Verdict.PASS
    assert (out / "unreadable.part.h5").read_bytes() == b"killed before its first commit"


def test_a_resumed_run_killed_before_its_first_commit_leaves_nothing(
    scenarios: Path, tmp_path: Path
) -> None:
    """Beside an earlier trace with shots, one that got nowhere is no evidence of anything."""
    path, out = scenarios / "surface_d7_mil.yaml", tmp_path / "run"
    few = ("run.shots=17000", "expect={}")  # two batches of the sampler
    run_scenario(path, _options(out, *few, stop_at=1))
    (out / "trace.h5").replace(out / "earlier.h5")
    (out / "trace.part.h5").write_bytes(b"killed before its first commit")
    result = run_scenario(path, _options(out, *few, resume=True))
    assert result.verdict is not Verdict.RIG_ERROR
    assert any("come from the interrupted run" in text for text in result.document.labels)
    assert not list(out.glob("*.part.h5"))
    assert not (out / "earlier.h5").exists()


def test_other_syndromes_are_noticed(scenarios: Path, tmp_path: Path) -> None:
    """An earlier trace whose syndromes this machine does not make again ends in a rig error."""
    import h5py

    path, out = scenarios / "surface_d7_mil.yaml", tmp_path / "run"
    run_scenario(path, _options(out, stop_at=1))
    copy = out / "copy.h5"
    with h5py.File(out / "trace.h5", "r") as old, h5py.File(copy, "w", libver="latest") as new:
        for name in old:
            old.copy(name, new)
        new.attrs.update(old.attrs)
        new["shots/detectors_b8"][7, 0] ^= 1
    copy.replace(out / "trace.h5")
    result = run_scenario(path, _options(out, resume=True))
    assert result.exit_code == 3
    assert any("other syndromes" in j.reason for j in result.document.expectations)
    assert (out / "earlier.h5").exists(), "the earlier answers are kept"


def test_before_the_first_shot_nothing_is_written(scenarios: Path, tmp_path: Path) -> None:
    asked = Interrupt()
    asked.name = "SIGINT"
    loaded = runner.load_scenario(scenarios / "surface_d7_mil.yaml", bind="mil")
    with pytest.raises(RigError, match="before the first shot"):
        runner.execute(loaded, RunOptions(out=tmp_path / "run"), asked)
    assert not (tmp_path / "run").exists()


@pytest.mark.live
@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_a_live_run_ends_in_good_order(
    scenarios: Path, tmp_path: Path, loopback: tuple[str, str], number: signal.Signals
) -> None:
    """As from a terminal: the signal goes to the whole process group."""
    out = tmp_path / "run"
    network = "bind.profiles.sil.network"
    process = subprocess.Popen(
        [sys.executable, "-m", "hil", "run", str(scenarios / "surface_d5.yaml"), "-q",
         "--out", str(out), "--set", f"{network}.rack_address={loopback[0]}",
         "--set", f"{network}.node_address={loopback[1]}"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    part = out / "trace.part.h5"
    _wait(lambda: _rows(part) > 0, process)
    time.sleep(random.Random(int(number)).uniform(0.0, 1.0))
    os.killpg(process.pid, number)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 3, said
    assert validate_trace(out / "trace.h5").ok
    with hil.open_trace(out / "trace.h5") as trace:
        shots = trace.stream("shots")
        assert trace.exit_status == "aborted"
    assert 0 < shots["shot"].size < 4000
    assert (shots["fallback"] == Reason.NONE).all(), "what was sent was answered"
    assert np.array_equal(shots["shot"], np.arange(shots["shot"].size))
    assert not _left_of(process.pid)


def _rows(part: Path) -> int:
    try:
        with open_trace(part) as trace:
            return trace.rows("shots")
    except HilError:
        return 0


def _left_of(session: int) -> list[str]:
    """Processes of a session that still run."""
    left = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if fields[3] == str(session) and fields[0] != "Z":
            left.append(stat.parent.name)
    return left


@pytest.mark.live
@pytest.mark.slow
def test_a_second_signal_ends_at_once_and_the_trace_can_be_recovered(
    scenarios: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "hil", "run", str(scenarios / "surface_d5.yaml"), "-q",
         "--bind", "sil", "--out", str(out), "--set", "bind.profiles.sil.rack.pace=100"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    part = out / "trace.part.h5"
    _wait(lambda: _rows(part) > 0, process)
    process.send_signal(signal.SIGINT)
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=10)
    assert process.returncode == 3, said
    assert "ended at once" in said
    end = time.monotonic() + 5
    while _left_of(process.pid) and time.monotonic() < end:
        time.sleep(0.05)
    assert not _left_of(process.pid)
    assert main(["trace", "recover", str(part)]) == 0
    assert validate_trace(out / "trace.h5").ok
    shutil.rmtree(out)
