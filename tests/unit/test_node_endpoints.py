"""Which endpoint a node configuration asks for, and what it refuses."""

from __future__ import annotations

import pytest

from hil.errors import LinkError, UsageError
from hil.link.frames_endpoint import FramesEndpoint
from hil.link.soft_roce import SoftRoceEndpoint
from hil.link.verbs import VerbsEndpoint
from hil.node.config import NodeConfig
from hil.node.endpoints import cable, needs_cable, open_endpoint
from hil.timebase import PS_PER_MS

LOOPBACK = {"rack_address": "127.77.0.2", "node_address": "127.77.0.1"}


def config(**changes: object) -> NodeConfig:
    fields = {
        **LOOPBACK,
        "ring_slots": 4,
        "block_detectors": ((0, 1), (2,)),
        "n_observables": 1,
        "dem_text": "error(0.1) D0 D1 D2 L0",
        "primary": "pymatching",
        "mode": "measure",
        "deadline_ps": PS_PER_MS,
    }
    return NodeConfig.create(**(fields | changes))


def test_frames_without_devices_join_rack_and_node_by_a_cable() -> None:
    made = config(network="frames")
    assert needs_cable(made)
    mine, theirs = cable()
    rack = open_endpoint(made, "rack", end=mine)
    node = open_endpoint(made, "node", end=theirs)
    assert isinstance(rack, FramesEndpoint)
    memory = node.register(4, 128)
    rack.register(4, 128)
    rack.connect(node.address())
    node.connect(rack.address())
    rack.post_write_imm(b"a round", 2)
    assert [done.slot for done in node.poll(1)] == [2]
    assert bytes(memory[256:263]) == b"a round"
    node.post_send(b"an answer")
    assert len(rack.poll(1)) == 1
    rack.close()
    node.close()


def test_soft_roce_is_what_nothing_else_was_asked_for() -> None:
    assert not needs_cable(config())
    end = open_endpoint(config(), "rack")
    assert isinstance(end, SoftRoceEndpoint)
    end.close()


def test_devices_go_to_the_end_that_they_are_named_for() -> None:
    verbs = config(
        network="verbs", rack_device="mlx5_0", node_device="mlx5_1",
        rack_address="192.0.2.1", node_address="192.0.2.2", transport="rc",
    )  # fmt: skip
    for side, name in (("rack", "mlx5_0"), ("node", "mlx5_1")):
        end = open_endpoint(verbs, side)
        assert isinstance(end, VerbsEndpoint)
        assert end.transport == "rc"
        with pytest.raises(LinkError) as caught:  # no such device, or no pyverbs
            end.register(4, 128)
        assert caught.value.where == f"verbs {name}"
    frames = config(network="frames", rack_device="no-port", node_device="no-port-either")
    assert not needs_cable(frames)
    with pytest.raises(LinkError) as caught:
        open_endpoint(frames, "node")
    assert caught.value.where == "interface no-port-either"


@pytest.mark.parametrize(
    "wrong",
    [
        {"rack_device": "eth1", "node_device": "eth2"},
        {"network": "frames", "rack_device": "eth1"},
        {"network": "verbs"},
        {"network": "verbs", "node_device": "mlx5_0"},
        {"network": "frames", "rack_address": "192.0.2.1"},
        {"network": "verbs", "rack_device": "a", "node_device": "b", "rack_address": "here"},
    ],
)
def test_devices_and_addresses_must_fit_the_network(wrong: dict[str, str]) -> None:
    with pytest.raises(UsageError):
        config(**wrong)
