"""Deadline and fallback policy: a pure state machine, time passed in, actions out.

A decode in progress cannot be cancelled, and the fallback may cost more than the primary. So:

* The primary queue is first in, first out. With ``P`` its predicted primary service, a window may
  start on a primary worker only until ``latest_start = primary_deadline - P``: work that is
  predicted to be useless is not begun. Return to the primary therefore follows from the backlog
  alone; there is no count of clean shots.
* A window that has not started by its latest start, or has started and is not done at its primary
  deadline, or whose primary has failed, *triggers* the fallback. Fates are decided in shot order,
  because corrections commit in shot order: a later window waits until every earlier one is decided.
* The fallback has its own workers, first in, first out. It is admitted only if its predicted
  finish plus the predicted way back meets the deadline, and only for the reasons that the
  configuration names; otherwise the window is declared unanswered. Late results of the primary
  are discarded.

The same rules are replayed as a per-shot loop by ``hil.rack.bulk``; a property test holds the two
equal. Events at one instant must be handed over in this order: completions, ready windows, ticks.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final

from gpu_decoder.protocol import Reason

RECOVERABLE: Final = frozenset(
    {
        *(Reason.DEADLINE, Reason.PREDECODER_ERROR, Reason.OUTPUT_INVALID, Reason.ENGINE_MISSING),
        *(Reason.ENGINE_MISMATCH, Reason.DEVICE_LOST, Reason.FORCED),
    }
)
"""Reasons that leave a whole syndrome behind, so that a fallback can answer."""


class Do(Enum):
    """What the owner of the policy must do."""

    START_PRIMARY = auto()
    START_FALLBACK = auto()
    ANSWER_PRIMARY = auto()
    ANSWER_FALLBACK = auto()
    DECLARE_UNANSWERED = auto()


@dataclass(frozen=True, slots=True)
class Action:
    """One action for window ``key``; ``reason`` says why where it is not the primary's answer."""

    do: Do
    key: int
    reason: Reason = Reason.NONE


@dataclass(frozen=True, slots=True)
class PolicyConfig:
    """Parameters of the policy.

    Attributes:
        enabled: ``False`` = policy ``never``: the primary answers however late.
        primary_workers: number of primary workers (>= 1).
        fallback_workers: number of fallback workers (>= 1).
        way_back_pred_ps: predicted time from decode end to correction in effect.
        when: reasons for which the fallback is asked.
    """

    enabled: bool
    primary_workers: int
    fallback_workers: int
    way_back_pred_ps: int
    when: frozenset[Reason] = RECOVERABLE


@dataclass(slots=True)
class _Window:
    key: int
    primary_deadline_ps: int
    deadline_ps: int
    primary_pred_ps: int
    fallback_pred_ps: int
    started: bool = False
    failed_ps: int = 0
    reason: Reason = Reason.DEADLINE  # why the primary does not answer, should it come to that


@dataclass(slots=True)
class DeadlinePolicy:
    """State machine of one decoder node. Keys must rise from one ``ready`` call to the next."""

    config: PolicyConfig
    _undecided: dict[int, _Window] = field(default_factory=dict)
    _waiting: deque[_Window] = field(default_factory=deque)
    _primary_running: set[int] = field(default_factory=set)
    _fallback_queue: deque[_Window] = field(default_factory=deque)
    _fallback_running: dict[int, tuple[int, Reason]] = field(default_factory=dict)
    """Key -> predicted end, and why it runs."""

    @property
    def backlog(self) -> int:
        """Windows that are complete and neither taken by any worker yet nor declared."""
        return len(self._waiting) + sum(not w.started for w in self._fallback_queue)

    def ready(
        self,
        key: int,
        now_ps: int,
        *,
        primary_deadline_ps: int,
        deadline_ps: int,
        primary_pred_ps: int,
        fallback_pred_ps: int,
    ) -> list[Action]:
        """Window ``key`` is complete at ``now_ps``.

        Its deadlines are absolute; ``*_pred_ps`` are predicted service times.
        """
        window = _Window(key, primary_deadline_ps, deadline_ps, primary_pred_ps, fallback_pred_ps)
        self._undecided[key] = window
        self._waiting.append(window)
        return self._start_primary(now_ps) + self.tick(now_ps)

    def primary_done(self, key: int, now_ps: int) -> list[Action]:
        """A primary worker finished window ``key``; a late result yields no answer."""
        self._primary_running.discard(key)
        actions: list[Action] = []
        if self._undecided.pop(key, None) is not None:
            actions.append(Action(Do.ANSWER_PRIMARY, key))
        return actions + self._start_primary(now_ps)

    def primary_failed(self, key: int, now_ps: int, reason: Reason) -> list[Action]:
        """A primary worker gave window ``key`` up; once past its deadline that changes nothing."""
        self._primary_running.discard(key)
        actions: list[Action] = []
        window = self._undecided.get(key)
        if window is not None and not self.config.enabled:
            del self._undecided[key]
            actions.append(Action(Do.DECLARE_UNANSWERED, key, reason))
        elif window is not None and now_ps <= window.primary_deadline_ps:
            window.failed_ps, window.reason = now_ps, reason
        return actions + self._start_primary(now_ps) + self.tick(now_ps)

    def fallback_done(self, key: int, now_ps: int) -> list[Action]:
        """A fallback worker finished window ``key``."""
        _, reason = self._fallback_running.pop(key, (0, Reason.DEADLINE))
        return [Action(Do.ANSWER_FALLBACK, key, reason), *self._start_fallback(now_ps)]

    def tick(self, now_ps: int) -> list[Action]:
        """Decide every window whose time has come, in shot order."""
        if not self.config.enabled:
            return []
        actions: list[Action] = []
        while self._undecided:
            window = next(iter(self._undecided.values()))
            if now_ps < self._trigger_ps(window):
                break
            del self._undecided[window.key]
            if not window.started:
                self._waiting.remove(window)
            actions += self._fall_back(window, now_ps)
        return actions

    def next_timer_ps(self) -> int | None:
        """When ``tick`` has to be called next, or ``None``."""
        if not self.config.enabled or not self._undecided:
            return None
        return self._trigger_ps(next(iter(self._undecided.values())))

    def _trigger_ps(self, window: _Window) -> int:
        if window.reason is not Reason.DEADLINE:
            return window.failed_ps
        if window.started:
            return window.primary_deadline_ps
        return window.primary_deadline_ps - window.primary_pred_ps

    def _start_primary(self, now_ps: int) -> list[Action]:
        actions: list[Action] = []
        skipped: list[_Window] = []  # past their latest start, waiting for their turn to be decided
        while self._waiting and len(self._primary_running) < self.config.primary_workers:
            window = self._waiting.popleft()
            if self.config.enabled and now_ps > self._trigger_ps(window):
                skipped.append(window)
                continue
            window.started = True
            self._primary_running.add(window.key)
            actions.append(Action(Do.START_PRIMARY, window.key))
        self._waiting.extendleft(reversed(skipped))
        return actions

    def _fall_back(self, window: _Window, now_ps: int) -> list[Action]:
        finish_ps = self._predicted_fallback_finish_ps(window, now_ps)
        late = finish_ps + self.config.way_back_pred_ps > window.deadline_ps
        if late or window.reason not in self.config.when:
            return [Action(Do.DECLARE_UNANSWERED, window.key, window.reason)]
        self._fallback_queue.append(window)
        return self._start_fallback(now_ps)

    def _start_fallback(self, now_ps: int) -> list[Action]:
        actions: list[Action] = []
        while self._fallback_queue and len(self._fallback_running) < self.config.fallback_workers:
            window = self._fallback_queue.popleft()
            end_ps = now_ps + window.fallback_pred_ps
            self._fallback_running[window.key] = end_ps, window.reason
            actions.append(Action(Do.START_FALLBACK, window.key, window.reason))
        return actions

    def _predicted_fallback_finish_ps(self, window: _Window, now_ps: int) -> int:
        """Predicted finish of ``window`` behind all admitted ones (overdue worker: any moment)."""
        free = [max(now_ps, end) for end, _ in self._fallback_running.values()]
        free += [now_ps] * (self.config.fallback_workers - len(free))
        for queued in self._fallback_queue:
            free.sort()
            free[0] += queued.fallback_pred_ps
        return min(free) + window.fallback_pred_ps
