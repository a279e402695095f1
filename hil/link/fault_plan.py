"""Fault plans drawn from a seed: rules with a rate, a window and a size, for runs of any length.

A plan is a pure function of seed and frame number, made block by block, so that a virtual run
(arrays) and a live run (datagrams) let the same frames suffer, a run of any length needs no memory
for it, and a resumed run goes on with the same faults.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from hil.link.frame_fault import I64, U8, FrameFault
from hil.seeds import generator

BLOCK: Final = 1 << 14
"""Frames that are drawn together."""

CLEAN_RULE: Final = -1

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Burst:
    """Gilbert-Elliott: a two-state chain, good and bad; frames suffer in the bad state only.

    Attributes:
        frames: mean length of a stay in the bad state, > 1 (1 / P(bad -> good)).
        share: probability that a frame of the bad state suffers.
    """

    frames: float
    share: float = 1.0

    def leave_good(self, p: float) -> float:
        """P(good -> bad) at which a share ``p`` of all frames suffers.

        The bad state holds the share b = p / share of the time, and in balance
        (1 - b) P(good -> bad) = b / frames. Above 1 no such chain exists.
        """
        bad = p / self.share
        return bad / (self.frames * (1.0 - bad)) if bad < 1.0 else np.inf


@dataclass(frozen=True, slots=True)
class Cadence:
    """When frames are due: frame f belongs to shot f // len(offsets_ps).

    Attributes:
        shot_period_ps: start to start of shots.
        offsets_ps: due time of each frame of a shot, from its start, ascending.
    """

    shot_period_ps: int
    offsets_ps: tuple[int, ...]

    def due_ps(self, frames: I64) -> I64:
        """Intended time of each frame, i8[n]."""
        shot, place = np.divmod(frames, len(self.offsets_ps))
        due: I64 = shot * self.shot_period_ps + np.array(self.offsets_ps, np.int64)[place]
        return due

    def first_at(self, t_ps: int) -> int:
        """The first frame that is due at ``t_ps`` or later."""
        shot = max(0, t_ps // self.shot_period_ps - 1)
        while self.offsets_ps[-1] + shot * self.shot_period_ps < t_ps:
            shot += 1
        place = int(np.searchsorted(np.array(self.offsets_ps), t_ps - shot * self.shot_period_ps))
        return shot * len(self.offsets_ps) + place


@dataclass(frozen=True, slots=True)
class Pauses:
    """A port that lets nothing out: for ``length_ps``, again after every ``every_ps``.

    Attributes:
        start_ps: when the first pause begins.
        length_ps: how long each one is.
        every_ps: begin to begin; 0 = once.
        gap_ps: first bit to first bit of two frames that leave as fast as the line allows.
    """

    start_ps: int
    length_ps: int
    every_ps: int = 0
    gap_ps: int = 0

    def holds_ps(self, frames: I64, cadence: Cadence) -> I64:
        """How much later than due each frame leaves, i8[n].

        Frame i that is due in a pause or behind one leaves at max(due, end of pause + i x gap), i
        counted from the first frame that is due in the pause: a queue of load rho is empty again
        length x rho / (1 - rho) after the end.
        """
        due = cadence.due_ps(frames)
        since = due - self.start_ps
        if self.every_ps:
            number = since // self.every_ps
            begin = self.start_ps + number * self.every_ps
        else:
            begin = np.full_like(due, self.start_ps)
        starts, which = np.unique(begin, return_inverse=True)
        first = np.array([cadence.first_at(int(t)) for t in starts.tolist()], np.int64)[which]
        leaves = begin + self.length_ps + (frames - first) * self.gap_ps
        return np.where(since >= 0, np.maximum(leaves - due, 0), 0)


@dataclass(frozen=True, slots=True)
class Rule:
    """One fault of a link.

    Attributes:
        name: its id; names the random stream too.
        kind: what happens to a frame.
        first, stop: frames that may suffer, ``stop`` excluded.
        p: share of these frames that does.
        burst: in bursts; ``None``: each frame on its own.
        low, high: smallest and largest amount (:class:`FrameFault`), drawn evenly.
        pauses: for kind HOLD, in place of ``p`` and amounts.
    """

    name: str
    kind: FrameFault
    first: int
    stop: int
    p: float = 1.0
    burst: Burst | None = None
    low: int = 0
    high: int = 0
    pauses: Pauses | None = None


class Suffering(NamedTuple):
    """What happens to consecutive frames.

    ``kinds`` u1[n] codes of :class:`FrameFault`, ``amounts`` i8[n], ``rules`` i8[n] number of the
    rule or ``CLEAN_RULE``.
    """

    kinds: U8
    amounts: I64
    rules: I64


@dataclass(frozen=True, slots=True)
class LinkPlan:
    """Everything that happens to the frames of one link.

    Attributes:
        seed: run seed; the streams are ``faults / link / name of the rule``.
        link: ``up`` or ``down``.
        frames: frames of the whole run: nothing is held back behind the last one.
        cadence: when they are due.
        rules: in order; where two name a frame, the first one counts.
    """

    seed: int
    link: str
    frames: int
    cadence: Cadence
    rules: tuple[Rule, ...]

    @property
    def longest_wait(self) -> int:
        """Frames by which one can be late."""
        late = (FrameFault.REORDER, FrameFault.DUPLICATE)
        return max((rule.high for rule in self.rules if rule.kind in late), default=0)

    def of(self, frame: int) -> tuple[FrameFault, int]:
        """See :class:`hil.link.faults.Plan`."""
        block, place = divmod(frame, BLOCK)
        suffering = _block(self, block)
        return FrameFault(suffering.kinds[place]), int(suffering.amounts[place])

    def suffering(self, first: int, n: int) -> Suffering:
        """The frames ``first`` .. ``first + n - 1``."""
        if n == 0:
            empty = np.zeros(0, np.int64)
            return Suffering(np.zeros(0, np.uint8), empty, empty)
        low, high = first // BLOCK, (first + n - 1) // BLOCK
        parts = [_block(self, block) for block in range(low, high + 1)]
        at = slice(first - low * BLOCK, first - low * BLOCK + n)
        kinds, amounts, rules = (np.concatenate(column)[at] for column in zip(*parts, strict=True))
        return Suffering(kinds, amounts, rules)


@lru_cache(maxsize=16)
def _block(plan: LinkPlan, block: int) -> Suffering:
    frames = np.arange(block * BLOCK, (block + 1) * BLOCK, dtype=np.int64)
    kinds = np.zeros(BLOCK, np.uint8)
    amounts = np.zeros(BLOCK, np.int64)
    rules = np.full(BLOCK, CLEAN_RULE, np.int64)
    for number, rule in enumerate(plan.rules):
        if rule.stop <= frames[0] or rule.first > frames[-1]:
            continue
        hit, amount = _hits(plan, rule, block, frames)
        hit &= (frames >= rule.first) & (frames < min(rule.stop, plan.frames)) & (kinds == 0)
        if rule.kind in (FrameFault.REORDER, FrameFault.DUPLICATE):
            hit &= frames + amount < plan.frames
        kinds[hit], amounts[hit], rules[hit] = rule.kind, amount[hit], number
    return Suffering(kinds, amounts, rules)


def _hits(plan: LinkPlan, rule: Rule, block: int, frames: I64) -> tuple[Bools, I64]:
    """Which frames of a block the rule would hit, and with which amounts."""
    if rule.pauses is not None:
        holds = rule.pauses.holds_ps(frames, plan.cadence)
        return holds > 0, holds
    rng = generator(plan.seed, "faults", plan.link, rule.name, block)
    draws = rng.random(BLOCK)
    amount = rng.integers(rule.low, rule.high, BLOCK, endpoint=True)
    if rule.burst is None:
        return draws < rule.p, amount
    return bad_states(rule.burst, rule.p, BLOCK, rng) & (draws < rule.burst.share), amount


def bad_states(burst: Burst, p: float, n: int, rng: np.random.Generator) -> Bools:
    """Which of ``n`` frames find the chain in its bad state, bool[n].

    The first state is drawn from the chain's balance, so that blocks drawn apart have the same
    statistics as one long chain, but for the bursts that a border cuts.
    """
    leave_good = burst.leave_good(p)
    bad = bool(rng.random() < p / burst.share)
    pieces: list[Bools] = []
    filled = 0
    while filled < n:
        size = 2 + int(n * leave_good)
        good_stays = rng.geometric(leave_good, size)
        bad_stays = rng.geometric(1.0 / burst.frames, size)
        stays = np.stack((bad_stays, good_stays) if bad else (good_stays, bad_stays), 1).ravel()
        states = np.tile([bad, not bad], size)
        stays = np.minimum(stays, n)
        pieces.append(np.repeat(states, stays)[: n - filled])
        filled += pieces[-1].size
    return np.concatenate(pieces)
