"""A primary that fails at shot k, for every reason there is: node, both executors, virtual run.

In each case the shot is answered by the fallback or declared with its reason, nothing is answered
twice, and the primary answers the shots behind it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from node_peer import (
    BLOCKS,
    BOARDS,
    DECIDE,
    EPOCH,
    Peer,
    config,
    enqueue,
    get,
)

import hil
from gpu_decoder.policy import RECOVERABLE, DeadlinePolicy, Do, PolicyConfig
from gpu_decoder.protocol import GlobalDecoder, Reason
from hil.node.config import Breakage
from hil.node.session import Session
from hil.node.shots import Answerer, Decode
from hil.rack.timeline import Status
from hil.run.runner import RunOptions, RunResult, run_scenario
from hil.scenario.load import load_scenario
from hil.scenario.model import BREAKS
from hil.scenario.problems import ScenarioErrors
from hil.timebase import PS_PER_MS, PS_PER_NS
from hil.trace.validate import validate_trace
from hil.verdict.judge import Verdict
from hil.wire.rpc import Envelope, ptp_from_ns
from hil.wire.rpc import Status as Reply

K = 2
"""The shot that fails."""


def fails(reason: Reason) -> Callable[[Peer], None]:
    """The primary worker gives shot K up."""

    def at(peer: Peer) -> None:
        peer.whole(K)
        peer.send(get(K))
        done = Decode(peer.now_ps - 5, peer.now_ps, b"", reason)
        peer.replies += peer.take(peer.session.primary_done(K, done, peer.now_ps))

    return at


def late(peer: Peer) -> None:
    peer.whole(K)
    peer.send(get(K))
    peer.replies += peer.until(peer.now_ps + 2 * PS_PER_MS)


def refused(peer: Peer) -> None:
    peer.send(enqueue(K, 0))
    peer.refuse(enqueue(K, 1))
    peer.send(enqueue(K, 2))
    peer.replies += peer.send(get(K))


def of_another_epoch(peer: Peer) -> None:
    peer.send(enqueue(K, 0, envelope=Envelope(EPOCH + 1, BOARDS, 77)))
    peer.whole(K, blocks=range(1, len(BLOCKS)))
    peer.replies += peer.send(get(K))


def incomplete(peer: Peer) -> None:
    peer.whole(K, blocks=range(1, len(BLOCKS)))
    peer.send(get(K))
    peer.replies += peer.take(peer.session.tick(peer.now_ps))


FAILURES: dict[Reason, Callable[[Peer], None]] = {
    **{reason: fails(reason) for reason in RECOVERABLE - {Reason.DEADLINE}},
    Reason.DEADLINE: late,
    Reason.QUEUE_FULL: refused,
    Reason.EPOCH_MISMATCH: of_another_epoch,
    Reason.TRANSPORT_LOSS: incomplete,
}


def test_every_reason_is_forced() -> None:
    assert set(FAILURES) == set(Reason) - {Reason.NONE}


def answered(peer: Peer, shot: int) -> None:
    stamp = ptp_from_ns(peer.now_ps // PS_PER_NS)
    for block in range(len(BLOCKS)):
        peer.replies += peer.send(enqueue(shot, block, ptp_timestamp=stamp))
    peer.replies += peer.send(get(shot, ptp_timestamp=stamp))
    peer.replies += peer.primary(shot)


def gets(peer: Peer) -> list[tuple[int, int]]:
    """(shot, status) of every reply to a request for corrections, in the order they left."""
    asked = [r for r in peer.replies if r.request_id % (len(BLOCKS) + 1) == len(BLOCKS)]
    return [(reply.request_id // (len(BLOCKS) + 1), reply.status) for reply in asked]


@pytest.mark.parametrize("reason", sorted(FAILURES))
def test_the_node_answers_by_the_fallback_or_declares_and_recovers(reason: Reason) -> None:
    peer = Peer(Session(config(**DECIDE), (2, 1)))
    for shot in range(K):
        answered(peer, shot)
    FAILURES[reason](peer)
    if reason in RECOVERABLE:
        assert [job.shot for job in peer.starts if job.fallback] == [K]
        peer.replies += peer.fallback(K)
    if reason is Reason.DEADLINE:
        peer.replies += peer.primary(K)  # its late result is discarded
    for shot in range(K + 1, K + 4):
        answered(peer, shot)
    by_fallback = reason in RECOVERABLE
    row = peer.rows[K]
    path = Answerer.FALLBACK if by_fallback else Answerer.UNANSWERED
    assert (row["path"], row["reason"]) == (path, reason)
    assert [shot for shot, _ in gets(peer)] == list(range(K + 4)), "each answered once, in order"
    assert (dict(gets(peer))[K] == Reply.OK) == by_fallback
    others = [peer.rows[shot] for shot in range(K + 4) if shot != K]
    assert {(r["path"], r["reason"]) for r in others} == {(Answerer.PRIMARY, Reason.NONE)}
    assert not peer.owned


@pytest.mark.parametrize("reason", sorted(RECOVERABLE - {Reason.DEADLINE}))
@pytest.mark.parametrize("changes", [{}, {**DECIDE, "fallback_when": {Reason.DEADLINE}}])
def test_a_reason_without_fallback_is_declared(reason: Reason, changes: dict[str, object]) -> None:
    peer = Peer(Session(config(**changes), (2, 1)))
    FAILURES[reason](peer)
    assert [job.fallback for job in peer.starts] == [False]
    assert gets(peer) == [(K, Reply.INTERNAL_ERROR)]
    assert peer.rows[K]["reason"] == reason
    assert peer.rows[K]["primary_failed"] == reason
    answered(peer, K + 1)
    assert peer.rows[K + 1]["path"] == Answerer.PRIMARY


def test_where_others_decide_the_second_opinion_answers_in_its_place() -> None:
    peer = Peer(Session(config(fallback="pymatching"), (2, 1)))
    fails(Reason.FORCED)(peer)
    assert peer.replies == [], "held until the second opinion is there"
    peer.replies += peer.fallback(K, b"\x01\x00")
    assert gets(peer) == [(K, Reply.OK)]
    row = peer.rows[K]
    assert (row["path"], row["reason"]) == (Answerer.FALLBACK, Reason.FORCED)
    assert row["primary_failed"] == Reason.FORCED


@pytest.mark.parametrize("mode", [{}, DECIDE])
def test_when_both_fail_the_shot_is_declared_once(mode: dict[str, object]) -> None:
    peer = Peer(Session(config(**{"fallback": "pymatching", **mode}), (2, 1)))
    fails(Reason.PREDECODER_ERROR)(peer)
    peer.replies += peer.fallback(K, b"")
    assert gets(peer) == [(K, Reply.INTERNAL_ERROR)]
    row = peer.rows[K]
    assert (row["path"], row["reason"]) == (Answerer.UNANSWERED, Reason.PREDECODER_ERROR)


def test_the_session_breaks_the_shots_that_it_is_told_to() -> None:
    broken = (Breakage(reason=Reason.FORCED, first=1, shots=2),)
    peer = Peer(Session(config(breakages=broken), (2, 1)))
    for shot in range(4):
        peer.whole(shot)
        peer.primary(shot)
    assert [job.fails for job in peer.starts] == [0, Reason.FORCED, Reason.FORCED, 0]


# -- the policy ----------------------------------------------------------------------------------


def test_an_early_failure_waits_for_the_fate_of_its_predecessor() -> None:
    policy = DeadlinePolicy(PolicyConfig(True, 2, 1, 5))
    times = {"primary_deadline_ps": 100, "deadline_ps": 200}
    for key in (0, 1):
        policy.ready(key, 0, **times, primary_pred_ps=10, fallback_pred_ps=20)
    assert policy.primary_failed(1, 50, Reason.FORCED) == []
    assert policy.next_timer_ps() == 100, "shot 0 is decided first"
    policy.primary_done(0, 60)
    assert policy.next_timer_ps() == 50
    (action,) = policy.tick(60)
    assert (action.do, action.key, action.reason) == (Do.START_FALLBACK, 1, Reason.FORCED)
    (action,) = policy.fallback_done(1, 80)
    assert (action.do, action.reason) == (Do.ANSWER_FALLBACK, Reason.FORCED)


def test_a_failure_whose_fallback_would_be_late_is_declared_with_its_own_reason() -> None:
    policy = DeadlinePolicy(PolicyConfig(True, 1, 1, 5))
    policy.ready(
        0, 0, primary_deadline_ps=100, deadline_ps=110, primary_pred_ps=10, fallback_pred_ps=90
    )
    (action,) = policy.primary_failed(0, 50, Reason.OUTPUT_INVALID)
    assert (action.do, action.reason) == (Do.DECLARE_UNANSWERED, Reason.OUTPUT_INVALID)


def test_a_failure_behind_the_deadline_changes_nothing() -> None:
    policy = DeadlinePolicy(PolicyConfig(True, 1, 1, 5))
    policy.ready(
        0, 0, primary_deadline_ps=100, deadline_ps=300, primary_pred_ps=10, fallback_pred_ps=20
    )
    (action,) = policy.tick(100)
    assert (action.do, action.reason) == (Do.START_FALLBACK, Reason.DEADLINE)
    assert policy.primary_failed(0, 120, Reason.FORCED) == []


# -- a virtual run -------------------------------------------------------------------------------

FAULTS = {kind: 20 + 20 * i for i, kind in enumerate(BREAKS)}
POLICY = (
    "system.decoder.fallback.policy=on_deadline",
    "system.decoder.fallback.primary_deadline=2ms",
)


def faulty(scenarios: Path, out: Path, *overrides: str, bind: str = "mil") -> RunResult:
    broken = ", ".join(
        f"{kind}: {{kind: {kind}, at: {{shot: {at}}}, shots: 2}}" for kind, at in FAULTS.items()
    )
    expect = "expect={backend: {metric: decoder.backend_mismatch, equals: 0}}"
    common = (expect, "run.shots=160", "run.warmup.shots=0", f"faults={{{broken}}}")
    options = RunOptions(bind=bind, out=out, overrides=[*common, *overrides])
    return run_scenario(scenarios / "surface_d5.yaml", options)


def shots_by_reason(shots: dict[str, np.ndarray]) -> dict[int, list[int]]:
    reasons = shots["fallback"]
    return {int(r): np.flatnonzero(reasons == r).tolist() for r in np.unique(reasons) if r}


@pytest.mark.parametrize("executor", ["bulk", "events"])
def test_a_virtual_run_answers_broken_shots_by_the_fallback(
    scenarios: Path, tmp_path: Path, executor: str
) -> None:
    executed = f"bind.profiles.mil.rack.executor={executor}"
    result = faulty(scenarios, tmp_path / "run", *POLICY, executed)
    with hil.open_trace(result.trace) as trace:
        shots, decodes, faults = (trace.stream(s) for s in ("shots", "decodes", "faults"))
    wanted = {int(BREAKS[kind]): [at, at + 1] for kind, at in FAULTS.items()}
    assert shots_by_reason(shots) == wanted
    assert (shots["status"] == Status.OK).all()
    answered = decodes["global_executed"][np.argsort(decodes["shot"])]
    away = shots["fallback"] != Reason.NONE
    assert (answered[away] == GlobalDecoder.PYMATCHING).all()
    assert (answered[~away] == GlobalDecoder.PYMATCHING_CORR).all()
    assert len(decodes["shot"]) == len(np.unique(decodes["shot"])) == 160
    assert sorted(k.decode() for k in faults["kind"]) == sorted(FAULTS)
    assert validate_trace(result.trace).ok
    assert result.verdict is Verdict.PASS, "the fallback was asked for and answered"


def test_without_a_fallback_broken_shots_are_declared(scenarios: Path, tmp_path: Path) -> None:
    result = faulty(scenarios, tmp_path / "run")
    with hil.open_trace(result.trace) as trace:
        shots = trace.stream("shots")
    broken = sorted(k for at in FAULTS.values() for k in (at, at + 1))
    assert np.flatnonzero(shots["status"] == Status.DROPPED).tolist() == broken
    assert sorted(k for ks in shots_by_reason(shots).values() for k in ks) == broken


def test_only_the_reasons_named_lead_to_the_fallback(scenarios: Path, tmp_path: Path) -> None:
    when = "system.decoder.fallback.when=[deadline, predecoder_error]"
    result = faulty(scenarios, tmp_path / "run", *POLICY, when)
    with hil.open_trace(result.trace) as trace:
        shots = trace.stream("shots")
    at = FAULTS["backend_fail"]
    unanswered = np.flatnonzero(shots["status"] == Status.DROPPED)
    assert len(unanswered) == 2 * len(FAULTS) - 2
    assert not set(unanswered) & {at, at + 1}


def test_a_broken_primary_does_not_go_with_sliding_windows(scenarios: Path) -> None:
    overrides = [
        "system.decoder.window={mode: sliding, commit: 2, buffer: 2}",
        "system.decoder.primary=pymatching",
        "faults={dead: {kind: backend_fail, at: {shot: 3}}}",
        "bind.use=mil",
    ]
    with pytest.raises(ScenarioErrors, match="a broken primary does not go with sliding windows"):
        load_scenario(scenarios / "surface_d5.yaml", overrides=overrides)
