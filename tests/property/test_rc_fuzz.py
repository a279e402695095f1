"""Hostile frames at an RC queue pair, compared with a rule of its own (``tools/fuzz_rc.py``)."""

from __future__ import annotations

from collections.abc import Callable

import fuzz_rc
import pytest

from hil.link import rc_pair
from hil.link.rc_requester import Requester
from hil.link.rc_responder import Responder
from hil.link.slots import Slots

FATES = {
    *("drop_length", "drop_icrc", "drop_opcode", "drop_pkey", "drop_qp", "rx_ahead"),
    *("rx_duplicate", "mine: rx_ok", "mine: drop_rkey", "mine: drop_bounds", "mine: drop_length"),
    *("mine: drop_opcode", "answer: inside", "answer: outside"),
}


def test_mutations_by_the_thousand() -> None:
    """1e6 of them in ``make soak``."""
    tally = fuzz_rc.campaign(20_000, 1)
    assert tally.frames >= 20_000
    assert set(tally.fates) == FATES
    assert 0.3 < tally.fates["drop_icrc"] / tally.frames < 0.7


def _anything_goes(datagram: memoryview, *_: object) -> str:
    return "" if len(datagram) >= 16 else "drop_length"


def _every_psn(self: Responder, datagram: memoryview, t_rx_ps: int, right=Responder.accept):
    self._expected = int.from_bytes(datagram[9:12], "big")
    return right(self, datagram, t_rx_ps)


def _no_bounds(self: Slots, va: int, length: int) -> tuple[int, int]:
    return (va - self.base_va) // self.stride % self.n_slots, 0


def _any_answer(self: Requester, psn: int, syndrome: int, now_ps: int) -> bool:
    self._acked = self._cursor
    return True


BROKEN: dict[str, tuple[object, str, Callable[..., object]]] = {
    "headers not checked": (rc_pair, "header_fault", _anything_goes),
    "every PSN is taken": (Responder, "accept", _every_psn),
    "bounds not checked": (Slots, "locate", _no_bounds),
    "every answer is believed": (Requester, "acknowledge", _any_answer),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_pair_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*BROKEN[name])
    with pytest.raises(fuzz_rc.Violation):
        fuzz_rc.campaign(20_000, 1)
