"""Probes of sockets and devices: loopback, the RoCEv2 port and its owner, offloads, verbs."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from pathlib import Path
from typing import Final

from hil.errors import LinkError
from hil.link.soft_roce import SoftRoceEndpoint
from hil.link.verbs import probe
from hil.run.doctor.check import Check
from hil.timebase import PS_PER_S, monotonic_ps
from hil.wire.roce import ROCE_PORT

RACK, NODE = "127.0.0.2", "127.0.0.1"
_SOL_UDP: Final = 17
_UDP_SEGMENT: Final = 103
_UDP_GRO: Final = 104


def loopback(rack: str = RACK, node: str = NODE, port: int | None = None) -> Check:
    """A RoCEv2 frame each way between two loopback addresses, on a port that is free."""
    name, fix = "loopback frames", "allow UDP between addresses of 127.0.0.0/8"
    try:
        number = _free_port(rack, node) if port is None else port
        spent_ps = _ping_pong(rack, node, number)
    except (OSError, LinkError) as error:
        text = error.message.replace("\n   ", ";") if isinstance(error, LinkError) else str(error)
        return Check("network", name, "broken", text, fix, ("sil",))
    detail = f"{node} and {rack}: a frame each way in {spent_ps / 1e6:.0f} us, ICRC right"
    return Check("network", name, "ok", detail, needed_by=("sil",))


def _free_port(*hosts: str) -> int:
    for _ in range(20):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as first:
            first.bind((hosts[0], 0))
            number = int(first.getsockname()[1])
            if all(_bind_error(host, number) == 0 for host in hosts[1:]):
                return number
    raise OSError(errno.EADDRINUSE, "no port is free at both addresses")


def _ping_pong(rack: str, node: str, port: int) -> int:
    ends = []
    try:
        for host in (rack, node):
            ends.append(SoftRoceEndpoint(host, port=port))
            ends[-1].register(1, 128)
        ends[0].connect(ends[1].address())
        ends[1].connect(ends[0].address())
        begin_ps = monotonic_ps()
        for sender, receiver in (ends, ends[::-1]):
            sender.post_write_imm(b"hil", 0)
            while not receiver.poll(1):
                if monotonic_ps() - begin_ps > PS_PER_S:
                    raise LinkError("no frame came within 1 s", got=str(receiver.counters()))
        return monotonic_ps() - begin_ps
    finally:
        for end in ends:
            end.close()


def port_4791(port: int = ROCE_PORT, hosts: tuple[str, ...] = (NODE, RACK)) -> list[Check]:
    """Whether both addresses can have RoCEv2's port, or who has it."""
    return [_port(host, port) for host in hosts]


def _port(host: str, port: int) -> Check:
    name = f"UDP {host}:{port}"
    number = _bind_error(host, port)
    if number == 0:
        return Check("network", name, "ok", "free", needed_by=("sil",))
    if number != errno.EADDRINUSE:
        return Check("network", name, "broken", os.strerror(number), needed_by=("sil",))
    fix = "stop it, or give links.up and links.down another udp_port in the scenario"
    return Check("network", name, "broken", f"taken by {owner_of(host, port)}", fix, ("sil",))


def _bind_error(host: str, port: int) -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as tried:
        try:
            tried.bind((host, port))
        except OSError as error:
            return error.errno or errno.EIO
    return 0


def owner_of(host: str, port: int, proc: Path = Path("/proc")) -> str:
    """Process that holds a UDP port of an address (or of all), as far as /proc tells."""
    sockets = {f"socket:[{inode}]" for inode in _inodes(host, port, proc)}
    for folder in proc.glob("[0-9]*"):
        if sockets & _links(folder / "fd"):
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ")
            return f"pid {folder.name}: {command.decode(errors='replace').strip()}"
    return "a process of another user, or the kernel (rdma_rxe)"


def _links(folder: Path) -> set[str]:
    """What the open files of a process are; those of other users are not shown to us."""
    found = set()
    with contextlib.suppress(OSError):
        for entry in folder.iterdir():
            with contextlib.suppress(OSError):  # closed meanwhile, as the listing's own one
                found.add(str(entry.readlink()))
    return found


def _inodes(host: str, port: int, proc: Path) -> set[str]:
    addresses = {socket.inet_aton(host)[::-1].hex().upper(), "00000000"}
    found = set()
    for table in ("udp", "udp6"):
        try:
            lines = (proc / "net" / table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            words = line.split()
            address, _, number = words[1].rpartition(":")
            everybody = table == "udp6" and set(address) == {"0"}
            if int(number, 16) == port and (address in addresses or everybody):
                found.add(words[9])
    return found


def offloads() -> Check:
    """Segmentation and aggregation of UDP; nice to have, used by nothing yet."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as tried:
        seen = []
        for name, option, value in (("GSO", _UDP_SEGMENT, 1400), ("GRO", _UDP_GRO, 1)):
            try:
                tried.setsockopt(_SOL_UDP, option, value)
                seen.append(f"{name} accepted")
            except OSError as error:
                seen.append(f"{name} refused: {error.strerror}")
    good = not any("refused" in text for text in seen)
    return Check("network", "UDP offloads", "ok" if good else "absent", ", ".join(seen))


def packet_sockets() -> Check:
    """Whether interfaces can be used by network backend ``frames``."""
    name, fix = "packet sockets", "run with CAP_NET_RAW if frames are to leave by an interface"
    try:
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0).close()
    except (AttributeError, OSError) as error:
        return Check("network", name, "absent", str(error), fix)
    return Check("network", name, "ok", "permitted: backend frames can use an interface")


def verbs() -> Check:
    """RDMA devices that network backend ``verbs`` could use, or why there are none."""
    found = probe()
    if found.names:
        detail = f"{', '.join(found.names)}: pyverbs lists them; nothing was sent"
        return Check("network", "verbs devices", "ok", detail)
    fix = "optional: python3-pyverbs and ibverbs-providers of your distribution, and a device"
    return Check("network", "verbs devices", "absent", found.why, fix)
