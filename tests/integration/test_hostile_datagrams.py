"""A running node under fire: 20,000 hostile datagrams through real sockets while a client works."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import fuzz
import numpy as np
import pytest
from test_node_live import config, expected, plans_of, run

from hil.link.endpoint import Endpoint
from hil.node.client import RackClient
from hil.timebase import PS_PER_MS
from hil.wire.rpc import Status

pytestmark = [pytest.mark.live, pytest.mark.usefixtures("no_orphans")]

SHOTS, PER_FRAME, FOREIGN = 600, 6, 5_000
SEED = 20_261_122
KINDS = ("flip", "truncate", "extend", "field", "random")
"""Damage. An intact copy in a foreign slot is the rack's own mistake and is answered as such."""


class Attacker:
    """Sends mutations of every frame from the rack's own address, before and behind the frame."""

    def __init__(self) -> None:
        self._rng = np.random.default_rng(SEED)
        self.sent = 0

    def around(self, endpoint: Endpoint) -> Endpoint:
        self._endpoint = endpoint
        endpoint.intercept(self._stage)
        return endpoint

    def _stage(self, frame: bytes) -> Iterator[bytes]:
        for k in range(PER_FRAME):
            if k == PER_FRAME // 2:
                yield frame
            yield self._mutation(frame)

    def _mutation(self, frame: bytes) -> bytes:
        rng = self._rng
        kind = KINDS[int(rng.integers(0, len(KINDS)))]
        word, noise = int(rng.integers(0, 1 << 63)), rng.bytes(256)
        data = bytearray(fuzz.mutate(frame, kind, word, noise, seal=False))
        if self.sent % 2 and len(data) >= 16:
            self._endpoint.seal(data)
        self.sent += 1
        return bytes(data)


def _foreign(address: tuple[str, int], stop: threading.Event) -> int:
    """Datagrams of a stranger."""
    rng, sent = np.random.default_rng(SEED + 1), 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        while sent < FOREIGN and not stop.is_set():
            stranger.sendto(rng.bytes(int(rng.integers(0, 1400))), address)
            sent += 1
            if sent % 20 == 0:
                time.sleep(0.01)
    return sent


def test_every_shot_is_answered_right_under_fire() -> None:
    attacker, stop = Attacker(), threading.Event()
    settings = config()
    strangers: list[int] = []
    with RackClient(settings, wrap=attacker.around) as rack:
        address = (settings.node_address, settings.udp_port)
        thread = threading.Thread(target=lambda: strangers.append(_foreign(address, stop)))
        thread.start()
        try:
            got = run(rack, plans_of(SHOTS, 6, 2 * PS_PER_MS))
        finally:
            stop.set()
            thread.join()
        own = rack.counters()["link.tx"]
        node = rack.close()
    hostile = attacker.sent + strangers[0]
    assert hostile >= 20_000
    assert (got.status_code == Status.OK).all()
    assert np.array_equal(got.prediction_b8, expected("pymatching_corr")[:SHOTS])
    assert node["shots_primary"] == SHOTS
    fates = {k: n for k, n in node.items() if k.startswith(("link.rx_", "link.drop_"))}
    assert node["link.buffer_overflow"] == 0
    assert sum(fates.values()) == own + hostile, "every datagram has a fate"
    assert node["link.drop_peer"] == strangers[0]
    assert min(fates[f"link.drop_{c}"] for c in ("icrc", "length", "opcode", "bounds", "imm")) > 0
    assert node["bad_envelope_crc"] > 100
