"""One guest for all interoperation tests of a run; it ends with them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from link_to_guest import Joint
from rxe_vm import Guest, ensure

from hil.link import verbs_queue

BOOT_S = 280
HERE = Path(__file__).parent
RUN_S = 1200  # the guest ends with the tests; this is for a machine that has no time for it


@pytest.fixture(scope="package")
def joint() -> Iterator[Joint]:
    """A running guest that serves queue pairs; needs ``rxe_vm``."""
    files = [Path(verbs_queue.__file__)]
    with Guest(ensure(), HERE / "guest_verbs.py", files=files, timeout=RUN_S) as guest:
        guest.wait_for("^READY$", guest.idle, BOOT_S)
        joint = Joint(guest)
        yield joint
        joint.line.say("quit")
        result = guest.wait(guest.idle)
        assert result.code == 0, result.log
