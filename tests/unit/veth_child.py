"""Two endpoints at the two ends of a veth pair; run by test_frames_endpoint in its own namespace.

The namespace ends with the process, and the pair with it: nothing of the machine is touched.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import time

from hil.link.frame_wires import PacketFrames
from hil.link.frames_endpoint import FramesEndpoint

CLONE_NEWNET = 0x40000000


def set_up() -> None:
    """A new network namespace with the pair v0 - v1, both up.

    Raises:
        OSError: namespaces are not permitted.
        subprocess.CalledProcessError: interfaces cannot be made.
    """
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    for command in (
        "link add v0 type veth peer name v1",
        "link set v0 up",
        "link set v1 up",
    ):
        subprocess.run(["ip", *command.split()], check=True, capture_output=True)


def main() -> int:
    set_up()
    if sys.argv[1:] == ["probe"]:
        return 0
    wires = PacketFrames("v0"), PacketFrames("v1")
    rack, node = (FramesEndpoint(wires[i], wires[i].mac, f"10.9.0.{i + 1}") for i in (0, 1))
    rack.register(8, 128)
    node.register(8, 128)
    node.connect(rack.address())
    rack.connect(node.address())
    tagged = wires[1].mac + wires[0].mac + bytes.fromhex("8100002a0800") + bytes(46)
    wires[0].send(tagged)
    for slot in range(8):
        rack.post_write_imm(bytes([slot]) * 40, slot)
    slots: list[int] = []
    answers = 0
    end = time.monotonic() + 10
    while (len(slots) < 8 or answers < 8) and time.monotonic() < end:
        for done in node.poll(8):
            slots.append(done.slot)
            node.post_send(b"answer")
        answers += len(rack.poll(8))
    seen, asked = node.counters(), rack.counters()
    sys.stdout.write(
        json.dumps(
            {
                "slots": slots,
                "answers": answers,
                "vlan": seen["drop_vlan"],
                "asked": asked["arp_asked"],
                "answered": seen["arp_answered"],
                "own": asked["drop_peer"] + asked["other_mac"],
            }
        )
    )
    rack.close()
    node.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
