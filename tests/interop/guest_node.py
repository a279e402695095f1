"""A decoder node that receives through the guest's verbs device; in place of `hil node serve`.

Argument: the inherited descriptor of the channel to the guest.
"""

from __future__ import annotations

import socket
import sys

from link_to_guest import DEVICE, GUEST, MTU_BYTES, PATIENT
from remote_queue import Line, RemoteQueue

from hil.link.verbs import VerbsEndpoint
from hil.node import server
from hil.node.config import NodeConfig

MESSAGE_BYTES = 512


def open_endpoint(config: NodeConfig, side: str, *, end: object) -> VerbsEndpoint:
    line = Line(socket.socket(fileno=int(sys.argv[1])))
    return VerbsEndpoint(
        DEVICE,
        GUEST,
        psn_start=config.psn_start_up,
        mtu_bytes=MTU_BYTES,
        transport=config.transport,
        attributes=PATIENT,
        message_bytes=MESSAGE_BYTES,
        open_queue=lambda *args: RemoteQueue(line, "node", *args),
    )


if __name__ == "__main__":
    server.open_endpoint = open_endpoint
    sys.exit(server.main(server.read_launch()))
