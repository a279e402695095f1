"""Complete windows on their way to a decoder: queue, deadline policy, second opinion.

Pure: time passed in, steps out. In mode ``decide`` the policy ends the wait of a window when its
time has come; in mode ``measure`` (and with policy ``never``) the primary answers whenever it is
done, and in mode ``measure`` the fallback decodes every shot too, behind the primary and off the
answer's path, so that somebody else can decide later; it answers where the primary gave up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gpu_decoder.policy import Action as PolicyAction
from gpu_decoder.policy import DeadlinePolicy, Do, PolicyConfig
from gpu_decoder.protocol import Reason
from hil.node.config import NodeConfig
from hil.node.shots import Shot


@dataclass(frozen=True, slots=True)
class Take:
    """A worker takes the window of ``shot``."""

    shot: Shot
    fallback: bool


@dataclass(frozen=True, slots=True)
class Decide:
    """The policy settles the open ``shot``: one of two answers, or ``DECLARE_UNANSWERED``.

    ``reason``: why the primary does not answer, where it does not.
    """

    shot: Shot
    do: Do
    reason: Reason = Reason.NONE


class Windows:
    """Queue in front of the decode workers.

    Args:
        config: the node's configuration.
        shots: all shots that the session keeps, by number (shared, not copied).
    """

    def __init__(self, config: NodeConfig, shots: Mapping[int, Shot]) -> None:
        self._config = config
        self._shots = shots
        self._second_opinion = config.mode == "measure" and config.fallback is not None
        self._policy = DeadlinePolicy(
            PolicyConfig(
                enabled=config.mode == "decide" and config.fallback is not None,
                primary_workers=config.primary_workers,
                fallback_workers=config.fallback_workers,
                way_back_pred_ps=config.way_back_pred_ps,
                when=config.fallback_when,
            )
        )
        self._second: deque[Shot] = deque()
        self._second_running = 0

    def eligible(self, shot: Shot, now_ps: int) -> list[Take | Decide]:
        """A worker may take ``shot`` from ``now_ps`` on. Shots must come in rising order."""
        shot.queue_depth = self._policy.backlog
        return self._steps(self._ready(shot, now_ps), now_ps)

    def primary_done(self, shot: Shot, now_ps: int) -> list[Take | Decide]:
        """The primary worker of ``shot`` is idle again; ``shot.primary`` says how it ended."""
        shot.busy_workers -= 1
        failed = Reason.NONE if shot.primary is None else shot.primary.failed
        if failed is Reason.NONE:
            steps = self._steps(self._policy.primary_done(shot.number, now_ps), now_ps)
        else:
            actions = self._policy.primary_failed(shot.number, now_ps, failed)
            if self._second_opinion and failed in self._config.fallback_when:
                actions = [a for a in actions if a.key != shot.number]  # the second one answers
            steps = self._steps(actions, now_ps)
        if self._second_opinion:
            self._second.append(shot)
            steps += self._start_second()
        return steps

    def fallback_done(self, shot: Shot, now_ps: int) -> list[Take | Decide]:
        """The fallback worker of ``shot`` is idle again."""
        shot.busy_workers -= 1
        if self._second_opinion:
            self._second_running -= 1
            steps = self._start_second()
            if shot.outcome is None and shot.primary is not None:
                steps.insert(0, Decide(shot, Do.ANSWER_FALLBACK, shot.primary.failed))
            return steps
        return self._steps(self._policy.fallback_done(shot.number, now_ps), now_ps)

    def tick(self, now_ps: int) -> list[Take | Decide]:
        """Time has passed. Call after completions and ready windows of the same instant."""
        return self._steps(self._policy.tick(now_ps), now_ps)

    def next_timer_ps(self) -> int | None:
        """When ``tick`` is needed next, or ``None``."""
        return self._policy.next_timer_ps()

    def _ready(self, shot: Shot, now_ps: int) -> list[PolicyAction]:
        config = self._config
        primary_deadline_ps = config.primary_deadline_ps or config.deadline_ps
        fallback_pred_ps = config.fallback_pred_ps(shot.n_events) if config.fallback_pred else 0
        return self._policy.ready(
            shot.number,
            now_ps,
            primary_deadline_ps=shot.t0_last_ps + primary_deadline_ps,
            deadline_ps=shot.t0_last_ps + config.deadline_ps,
            primary_pred_ps=config.primary_pred_ps,
            fallback_pred_ps=fallback_pred_ps,
        )

    def _steps(self, actions: Iterable[PolicyAction], now_ps: int) -> list[Take | Decide]:
        """Translate what the policy wants; settled windows do not start any more."""
        steps: list[Take | Decide] = []
        todo = deque(actions)
        while todo:
            action = todo.popleft()
            shot = self._shots.get(action.key)
            if shot is None or shot.outcome is not None:
                todo.extend(self._pass(action, now_ps))
            elif action.do is Do.START_PRIMARY:
                shot.busy_workers += 1 + self._second_opinion
                steps.append(Take(shot, fallback=False))
            elif action.do is Do.START_FALLBACK:
                shot.busy_workers += 1
                steps.append(Take(shot, fallback=True))
            else:
                steps.append(Decide(shot, action.do, action.reason))
        return steps

    def _pass(self, action: PolicyAction, now_ps: int) -> list[PolicyAction]:
        """A settled window occupies no worker: it is done as soon as it would start."""
        if action.do is Do.START_PRIMARY:
            return self._policy.primary_done(action.key, now_ps)
        if action.do is Do.START_FALLBACK:
            return self._policy.fallback_done(action.key, now_ps)
        return []

    def _start_second(self) -> list[Take | Decide]:
        steps: list[Take | Decide] = []
        while self._second and self._second_running < self._config.fallback_workers:
            self._second_running += 1
            steps.append(Take(self._second.popleft(), fallback=True))
        return steps
