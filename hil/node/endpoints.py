"""The endpoints of a live exchange, by network backend; both ends are chosen here."""

from __future__ import annotations

import socket
from typing import Final, Literal, TypeAlias

from hil.link.cudaq_udp import CudaqUdpEndpoint
from hil.link.endpoint import Endpoint
from hil.link.frame_wires import FrameWire, PacketFrames, UnixFrames
from hil.link.frames_endpoint import FramesEndpoint
from hil.link.soft_roce import SoftRoceEndpoint, Tap
from hil.link.verbs import VerbsEndpoint
from hil.node.config import NodeConfig
from hil.wire.rpc_batch import (
    enqueue_row_bytes,
    get_row_bytes,
    predecode_row_bytes,
    row_bytes,
)

Side: TypeAlias = Literal["rack", "node"]

_REPLY_BYTES: Final = 24 + 16
_UNIX_MACS: Final = {
    "rack": bytes.fromhex("020000000002"),
    "node": bytes.fromhex("020000000001"),
}
"""Locally administered; a pair of UNIX sockets has no other card on it."""

_OTHER: Final[dict[str, Side]] = {"rack": "node", "node": "rack"}


def needs_cable(config: NodeConfig) -> bool:
    """Whether rack and node are joined by a pair of UNIX sockets (:func:`cable`)."""
    return config.network == "frames" and config.rack_device is None


def cable() -> tuple[socket.socket, socket.socket]:
    """Both ends of an Ethernet cable within this machine; the node's end is inherited by it."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)


def open_endpoint(
    config: NodeConfig, side: Side, tap: Tap | None = None, end: socket.socket | None = None
) -> Endpoint:
    """One end of the exchange, bound and without memory.

    Args:
        config: names the backend, its addresses and devices.
        side: which end.
        tap: is shown every frame; verbs devices have none to show.
        end: own end of the cable, where there is one.

    Raises:
        LinkError: the address is taken or not permitted, or the device cannot be used.
    """
    host, psn_start, device = config.rack_address, config.psn_start_down, config.rack_device
    if side == "node":
        host, psn_start, device = config.node_address, config.psn_start_up, config.node_device
    if config.network == "cudaq_udp":
        return CudaqUdpEndpoint(host, port=config.udp_port, tap=tap)
    if config.network == "verbs":
        return VerbsEndpoint(
            device or "",
            host,
            psn_start=psn_start,
            mtu_bytes=config.mtu_bytes,
            transport=config.transport,
            attributes=config.rc_attributes,
            message_bytes=max(slot_bytes(config), reply_slot_bytes(config)),
        )
    if config.network == "frames":
        wire: FrameWire
        if end is not None:
            wire, mac, peer_mac = UnixFrames(end), _UNIX_MACS[side], _UNIX_MACS[_OTHER[side]]
        else:
            wire = packets = PacketFrames(device or "")
            mac, peer_mac = packets.mac, None
        return FramesEndpoint(
            wire,
            mac,
            host,
            port=config.udp_port,
            psn_start=psn_start,
            mtu_bytes=config.mtu_bytes,
            transport=config.transport,
            attributes=config.rc_attributes,
            peer_mac=peer_mac,
            tap=tap,
        )
    return SoftRoceEndpoint(
        host,
        port=config.udp_port,
        qp=config.rack_qp if side == "rack" else None,
        psn_start=psn_start,
        mtu_bytes=config.mtu_bytes,
        transport=config.transport,
        attributes=config.rc_attributes,
        tap=tap,
        allow_remote=config.allow_remote,
    )


def slot_bytes(config: NodeConfig) -> int:
    """Bytes of a slot that holds any request of this configuration."""
    whole = predecode_row_bytes(config.n_detectors) if config.predecode else 0
    blocks = enqueue_row_bytes(max(config.block_bits), config.envelope)
    return max(blocks, get_row_bytes(config.envelope), whole)


def reply_slot_bytes(config: NodeConfig) -> int:
    """Bytes of a slot that holds any reply of this configuration."""
    return max(config.reply_bytes, row_bytes(_REPLY_BYTES + config.prediction_bytes))
