"""The endpoints of a live exchange, by network backend; both ends are chosen here."""

from __future__ import annotations

from typing import Final, Literal

from hil.link.cudaq_udp import CudaqUdpEndpoint
from hil.link.endpoint import Endpoint
from hil.link.soft_roce import SoftRoceEndpoint, Tap
from hil.node.config import NodeConfig
from hil.wire.rpc_batch import (
    enqueue_row_bytes,
    get_row_bytes,
    predecode_row_bytes,
    row_bytes,
)

_REPLY_BYTES: Final = 24 + 16


def open_endpoint(
    config: NodeConfig, side: Literal["rack", "node"], tap: Tap | None = None
) -> Endpoint:
    """One end of the exchange, bound and without memory.

    Raises:
        LinkError: the address is taken or not permitted.
    """
    host, psn_start = config.rack_address, config.psn_start_down
    if side == "node":
        host, psn_start = config.node_address, config.psn_start_up
    if config.network == "cudaq_udp":
        return CudaqUdpEndpoint(host, port=config.udp_port, tap=tap)
    return SoftRoceEndpoint(
        host,
        port=config.udp_port,
        psn_start=psn_start,
        mtu_bytes=config.mtu_bytes,
        transport=config.transport,
        attributes=config.rc_attributes,
        tap=tap,
    )


def slot_bytes(config: NodeConfig) -> int:
    """Bytes of a slot that holds any request of this configuration."""
    whole = predecode_row_bytes(config.n_detectors) if config.predecode else 0
    blocks = enqueue_row_bytes(max(config.block_bits), config.envelope)
    return max(blocks, get_row_bytes(config.envelope), whole)


def reply_slot_bytes(config: NodeConfig) -> int:
    """Bytes of a slot that holds any reply of this configuration."""
    return row_bytes(_REPLY_BYTES + config.prediction_bytes)
