"""One queue pair of a verbs device, through pyverbs: memory, posts, completions; nothing of ours.

Imports the standard library and pyverbs alone, so that this file also runs where nothing else of
this package does. pyverbs is an optional package of the distribution (tested with 44.0) and may end
the process when it does not fit the machine: ask :func:`hil.link.verbs.probe` first.

Facts of the library (rdma-core 44 to 59): constants lie flat or in enum classes of a module that
was renamed; a receive needs one scatter entry before 57; immediates are in network byte order.
"""

from __future__ import annotations

import ctypes
import mmap
import socket
from collections import deque
from typing import Any, Literal, NamedTuple

ROCE_V2 = 2  # GIDEntry.gid_type
FLUSHED = 5  # ibv_wc_status: follows another error

_RECV = 128  # ibv_wc_opcode
_RECV_WITH_IMM = 129
_SEND_ID = 1 << 32
_PORT = 1
_HOP_LIMIT = 64


class VerbsUnavailableError(Exception):
    """The device, its address or the library is not what is needed; says which."""


class Got(NamedTuple):
    """A completed receive.

    ``slot``: where a send lies; of a write it is meaningless, the immediate tells.
    """

    kind: Literal["send", "write_imm"]
    slot: int
    imm: int
    length: int


class VerbsQueue:
    """An RC or UC queue pair on one device, with memory of ``n_slots`` slots that a peer may write.

    A receive is posted for every free slot; it is used up by a send (which lands in that slot) or
    by a write with immediate, and posted again by :meth:`release`.

    Attributes:
        number: queue pair number.
        rkey: key of the memory.
        va: address of the memory as the peer must use it.
        memory: the memory, ``n_slots * stride`` bytes; empty if it lies on a GPU.
        error: why the pair is in error; empty while it works.

    Args:
        device: name, such as ``rxe0``.
        host: own IPv4 address: chooses the RoCE v2 entry of the device's GID table.
        transport: ``rc`` or ``uc``.
        n_slots: slots of the memory, and receives posted.
        stride: bytes from slot to slot.
        n_sends: posts that may wait for their completion.
        send_bytes: the longest message to be sent.
        psn: PSN that is expected first.
        path_mtu: payload of a packet: 256, 512, 1024, 2048 or 4096.
        timeout: code of the ack timeout, 4.096 us x 2^code; this and the rest for RC only.
        retry_cnt: repetitions for want of an acknowledgement.
        rnr_retry: waits for a receiver that is not ready; 7 = no limit.
        min_rnr_timer: code of the wait that this end asks of a sender.
        dmabuf: (descriptor, offset) of GPU memory to use in place of host memory. Never run by us.

    Raises:
        VerbsUnavailableError: see there.
    """

    def __init__(
        self,
        device: str,
        host: str,
        transport: str,
        n_slots: int,
        stride: int,
        n_sends: int,
        send_bytes: int,
        psn: int,
        path_mtu: int,
        timeout: int,
        retry_cnt: int,
        rnr_retry: int,
        min_rnr_timer: int,
        dmabuf: tuple[int, int] | None = None,
    ) -> None:
        self._api = api = _Api()
        self.error = ""
        self._n_slots, self._stride, self._send_bytes = n_slots, stride, send_bytes
        self._psn, self._path_mtu = psn, path_mtu
        self._patience = (timeout, retry_cnt, rnr_retry, min_rnr_timer)
        self._context = api.call(f"device {device}", api.Context, name=device)
        self._gid_index = self._find_gid(device, host)
        self._pd = api.PD(self._context)
        self._cq = api.CQ(self._context, 2 * (n_slots + n_sends))
        access = api.const["IBV_ACCESS_LOCAL_WRITE"] | api.const["IBV_ACCESS_REMOTE_WRITE"]
        self._register(n_slots * stride, access, dmabuf)
        self._outbox = mmap.mmap(-1, n_sends * send_bytes)
        self._out_mr = api.MR(self._pd, len(self._outbox), access, address=_address(self._outbox))
        self._free = deque(range(n_sends))
        self._got: deque[Got] = deque()
        self._idle: deque[int] = deque()
        self._open(transport, n_sends, access)
        for slot in range(n_slots):
            self._post_receive(slot)

    def _find_gid(self, device: str, host: str) -> int:
        mapped = _mapped(host)
        entries = self._context.query_gid_table(64)
        for entry in entries:
            if entry.gid_type == ROCE_V2 and entry.gid_str() == mapped:
                return int(entry.gid_index)
        known = ", ".join(f"{entry.gid_str()} (type {entry.gid_type})" for entry in entries)
        raise VerbsUnavailableError(
            f"device {device} has no RoCE v2 address {host}; it has {known}"
        )

    def _register(self, size: int, access: int, dmabuf: tuple[int, int] | None) -> None:
        api = self._api
        if dmabuf is not None:
            descriptor, offset = dmabuf
            self._mr = api.DmaBufMR(self._pd, size, access, dmabuf=descriptor, offset=offset)
            self.memory, self.va = memoryview(b""), offset
        else:
            self._inbox = mmap.mmap(-1, size)
            self.va = _address(self._inbox)
            self._mr = api.MR(self._pd, size, access, address=self.va)
            self.memory = memoryview(self._inbox)
        self.rkey = int(self._mr.rkey)

    def _open(self, transport: str, n_sends: int, access: int) -> None:
        api = self._api
        cap = api.QPCap(
            max_send_wr=n_sends, max_recv_wr=self._n_slots, max_send_sge=1, max_recv_sge=1
        )
        kind = api.const["IBV_QPT_RC" if transport == "rc" else "IBV_QPT_UC"]
        init = api.QPInitAttr(qp_type=kind, scq=self._cq, rcq=self._cq, cap=cap, sq_sig_all=1)
        self._qp = api.QP(self._pd, init)
        attr = api.QPAttr(port_num=_PORT)
        attr.qp_access_flags = access
        self._qp.to_init(attr)
        self._access = access
        self.number = int(self._qp.qp_num)

    def connect(self, host: str, number: int, psn: int) -> None:
        """Join the peer: its IPv4 address, queue pair, and the PSN that it expects first."""
        api = self._api
        attr = api.QPAttr(port_num=_PORT)
        attr.qp_access_flags = self._access
        route = api.GlobalRoute(
            dgid=api.GID(_mapped(host)), sgid_index=self._gid_index, hop_limit=_HOP_LIMIT
        )
        attr.ah_attr = api.AHAttr(port_num=_PORT, is_global=1, gr=route)
        attr.path_mtu = api.const[f"IBV_MTU_{self._path_mtu}"]
        attr.dest_qp_num, attr.rq_psn, attr.sq_psn = number, self._psn, psn
        attr.max_dest_rd_atomic = attr.max_rd_atomic = 1
        attr.timeout, attr.retry_cnt, attr.rnr_retry, attr.min_rnr_timer = self._patience
        self._qp.to_rtr(attr)
        self._qp.to_rts(attr)

    # -- posting --------------------------------------------------------------------------------

    def write(self, data: bytes, va: int, rkey: int, imm: int | None) -> bool:
        """RDMA write, with immediate unless that is None; False if there is no room, or an error.

        ``va`` and ``rkey``: the peer's.
        """
        opcode = "IBV_WR_RDMA_WRITE" if imm is None else "IBV_WR_RDMA_WRITE_WITH_IMM"
        return self._post(data, opcode, imm or 0, (rkey, va))

    def send(self, data: bytes) -> bool:
        """Send into the peer's next receive; False if there is no room, or an error."""
        return self._post(data, "IBV_WR_SEND", 0, None)

    def _post(self, data: bytes, opcode: str, imm: int, place: tuple[int, int] | None) -> bool:
        if not self._free:
            self._reap()
        if not self._free or self.error:
            return False
        api, index = self._api, self._free.popleft()
        at = index * self._send_bytes
        self._outbox[at : at + len(data)] = data
        sge = api.SGE(_address(self._outbox) + at, len(data), self._out_mr.lkey)
        work = api.SendWR(
            wr_id=_SEND_ID + index,
            num_sge=1,
            sg=[sge],
            opcode=api.const[opcode],
            imm_data=socket.htonl(imm),
            send_flags=api.const["IBV_SEND_SIGNALED"],
        )
        if place is not None:
            work.set_wr_rdma(*place)
        self._qp.post_send(work)
        return True

    # -- receiving ------------------------------------------------------------------------------

    def poll(self, most: int) -> list[Got]:
        """Completed receives, at most so many."""
        self._reap()
        return [self._got.popleft() for _ in range(min(most, len(self._got)))]

    def _reap(self) -> None:
        while True:
            count, completions = self._cq.poll(16)
            for completion in completions[:count]:
                self._take(completion)
            if count < 16:
                return

    def _take(self, completion: Any) -> None:  # noqa: ANN401 - pyverbs has no types
        if completion.status != 0:
            if not self.error and completion.status != FLUSHED:
                which = "send" if completion.wr_id >= _SEND_ID else "receive"
                self.error = f"{which} failed: work completion status {completion.status}"
            return
        if completion.wr_id >= _SEND_ID:
            self._free.append(completion.wr_id - _SEND_ID)
        elif completion.opcode == _RECV_WITH_IMM:
            self._idle.append(completion.wr_id)
            imm = socket.ntohl(completion.imm_data)
            self._got.append(Got("write_imm", completion.wr_id, imm, completion.byte_len))
        elif completion.opcode == _RECV:
            self._got.append(Got("send", completion.wr_id, 0, completion.byte_len))

    def release(self, slot: int, kind: str) -> None:
        """A slot is free again: post the receive that its message used up."""
        if not self.error:
            self._post_receive(slot if kind == "send" else self._idle.popleft())

    def _post_receive(self, slot: int) -> None:
        api = self._api
        at = self.va + slot * self._stride
        sge = api.SGE(at, self._stride, self._mr.lkey)
        self._qp.post_recv(api.RecvWR(wr_id=slot, num_sge=1, sg=[sge]))

    def close(self) -> None:
        """Give everything back to the device."""
        for part in (self._qp, self._cq, self._mr, self._out_mr, self._pd, self._context):
            part.close()


class _Api:
    """The names of pyverbs that are used, whatever release it is."""

    def __init__(self) -> None:
        try:
            from pyverbs.addr import GID, AHAttr, GlobalRoute
            from pyverbs.cq import CQ
            from pyverbs.device import Context
            from pyverbs.mr import MR, DmaBufMR
            from pyverbs.pd import PD
            from pyverbs.pyverbs_error import PyverbsError
            from pyverbs.qp import QP, QPAttr, QPCap, QPInitAttr
            from pyverbs.wr import SGE, RecvWR, SendWR
        except ImportError as error:
            raise VerbsUnavailableError(f"pyverbs cannot be imported: {error}") from error
        self.GID, self.AHAttr, self.GlobalRoute, self.CQ = GID, AHAttr, GlobalRoute, CQ
        self.Context, self.MR, self.DmaBufMR, self.PD = Context, MR, DmaBufMR, PD
        self.QP, self.QPAttr, self.QPCap, self.QPInitAttr = QP, QPAttr, QPCap, QPInitAttr
        self.SGE, self.RecvWR, self.SendWR = SGE, RecvWR, SendWR
        self.const = _constants()
        self._failed = PyverbsError

    def call(self, what: str, make: Any, **arguments: Any) -> Any:  # noqa: ANN401 - as above
        try:
            return make(**arguments)
        except self._failed as error:
            raise VerbsUnavailableError(f"{what}: {error}") from error


def _constants() -> dict[str, int]:
    """All constants: module attributes up to some builds, always members of the enum classes."""
    try:
        import pyverbs.enums as module  # up to rdma-core 58
    except ImportError:
        import pyverbs.libibverbs_enums as module  # from 50 on
    found: dict[str, int] = {}
    for kind in list(vars(module).values()):
        found.update(getattr(kind, "__members__", {}))
    return found


def _address(buffer: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


def _mapped(host: str) -> str:
    """An IPv4 address as the GID text that pyverbs takes and gives."""
    digits = socket.inet_aton(host).hex()
    return f"0000:0000:0000:0000:0000:ffff:{digits[:4]}:{digits[4:]}"
