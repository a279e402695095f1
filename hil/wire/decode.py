"""One frame in words: a dictionary of its fields, or one line of text."""

from __future__ import annotations

from typing import Any

from hil.errors import WireError
from hil.wire import rpc
from hil.wire.roce import Opcode, Packet, parse_frame

_NAMES = {
    rpc.ENQUEUE_SYNDROMES: "enqueue_syndromes",
    rpc.GET_CORRECTIONS: "get_corrections",
    rpc.RESET_DECODER: "reset_decoder",
    rpc.SET_EPOCH: "set_epoch",
}


def decode(frame: bytes) -> dict[str, Any]:
    """Fields of one Ethernet frame, in the order of the wire; absent headers have no keys.

    A frame that is not RoCEv2 gives the single key ``error``. An RPC message inside is decoded as
    far as its CRC: ``envelope_ok`` tells whether it has a right envelope ``hil``.
    """
    try:
        found = parse_frame(frame)
    except WireError as error:
        return {"error": error.what, "length": len(frame)}
    bth = found.packet.bth
    fields: dict[str, Any] = {
        "src": f"{found.ip.src}:{found.udp.src_port}",
        "dst": f"{found.ip.dst}:{found.udp.dst_port}",
        "length": len(frame),
        "opcode": Opcode(bth.opcode).name,
        "qp": bth.dest_qp,
        "psn": bth.psn,
    }
    if found.packet.reth:
        reth = found.packet.reth
        fields |= {"va": reth.va, "rkey": reth.rkey, "dma_length": reth.length}
    if found.packet.imm is not None:
        imm = found.packet.imm
        fields |= {"imm": imm, "imm_psn": imm >> 12, "imm_slot": imm & 0xFFF}
    if found.packet.aeth:
        fields |= {"syndrome": found.packet.aeth.syndrome, "msn": found.packet.aeth.msn}
    return fields | {"icrc_ok": found.icrc_ok} | _message(found.packet)


def one_line(frame: bytes) -> str:
    """The same in one line of text: hexadecimal where engineers expect it."""
    fields = decode(frame)
    if "error" in fields:
        return f"{fields['length']} B, not RoCEv2: {fields['error']}"
    parts = [f"{fields.pop('src')} > {fields.pop('dst')}", f"{fields.pop('length')} B"]
    for name, value in fields.items():
        if name in {"qp", "psn", "va", "rkey", "imm", "syndrome"}:
            parts.append(f"{name} 0x{value:x}")
        elif name in {"opcode", "rpc"}:
            parts.append(str(value))
        elif name == "icrc_ok":
            parts.append("ICRC ok" if value else "ICRC WRONG")
        elif name not in {"imm_psn", "imm_slot"}:
            parts.append(f"{name} {value}")
    return ", ".join(parts)


def _message(packet: Packet) -> dict[str, Any]:
    try:
        request = rpc.peek_request(packet.payload)
    except rpc.RpcError:
        return _answer(packet)
    fields: dict[str, Any] = {
        "rpc": _NAMES.get(request.function_id, f"function 0x{request.function_id:08x}"),
        "request_id": request.request_id,
    }
    try:
        parsed = rpc.parse_request(packet.payload)
    except rpc.RpcError as error:
        return fields | {"envelope_ok": False, "refused": error.cause}
    extra = {"counter": parsed.counter} if isinstance(parsed, rpc.EnqueueSyndromes) else {}
    return fields | extra | _epoch(parsed.envelope)


def _answer(packet: Packet) -> dict[str, Any]:
    try:
        head = rpc.peek_response(packet.payload)
    except rpc.RpcError:
        return {"payload": len(packet.payload)}
    fields = {"rpc": "response", "status": head.status, "request_id": head.request_id}
    try:
        parsed = rpc.parse_response(packet.payload)
    except rpc.RpcError as error:
        return fields | {"envelope_ok": False, "refused": error.cause}
    return fields | _epoch(parsed.envelope)


def _epoch(envelope: rpc.Envelope | None) -> dict[str, Any]:
    return {"envelope_ok": True, "epoch": envelope.epoch if envelope else 0}
