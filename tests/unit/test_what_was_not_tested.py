"""What a report says about the way that the frames went."""

from __future__ import annotations

import pytest

from hil.run.facts import _crossed, _or
from hil.scenario.bind import NetworkBinding


@pytest.mark.parametrize(
    ("network", "said"),
    [
        ({"backend": "soft_roce"}, "loopback UDP sockets, not a NIC"),
        ({"backend": "frames"}, "UNIX sockets, not a NIC"),
        (
            {"backend": "frames", "rack_device": "v0", "node_device": "v1"},
            "the interfaces v0 and v1",
        ),
        (
            {"backend": "verbs", "rack_device": "a", "node_device": "b",
             "rack_address": "192.0.2.1", "node_address": "192.0.2.2"},
            "the verbs devices a and b",
        ),
    ],
)  # fmt: skip
def test_the_way_of_the_frames_is_named(network: dict[str, str], said: str) -> None:
    assert _crossed(NetworkBinding(**network)) == said


def test_names_are_joined() -> None:
    assert _or(["FPGA"]) == "FPGA"
    assert _or(["GPU", "RDMA device", "FPGA"]) == "GPU, RDMA device or FPGA"
