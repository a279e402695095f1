"""One frame in words: a dictionary of its fields (``hil wire decode``), or one line of text.

Numbers are numbers. ``rpc`` holds the header of the message inside, ``qec`` what it says about
shots, ``drop`` the first reason for which our receiver (``drop_*``, as it counts them) or the node
behind it (``rpc.Cause``) would not take the frame, or None; frames of UC and RC are judged each by
the rules of their transport. What depends on the receiver's memory (queue pair, memory key, bounds,
slots) or on other frames (PSN, parts of a message) is not judged here.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Final

from hil.errors import WireError
from hil.wire import rpc
from hil.wire.hsb import METADATA_BYTES, Metadata
from hil.wire.icrc import ICRC_BYTES, icrc_of_headers
from hil.wire.predecode import PREDECODE, parse_predecode
from hil.wire.roce import (
    FRAME_HEADER_BYTES,
    MIN_DATAGRAM_BYTES,
    PKEY_DEFAULT,
    Frame,
    Opcode,
    parse_frame,
)
from hil.wire.segments import RC_FORMS, UC_FORMS

_FUNCTIONS: Final = {
    rpc.ENQUEUE_SYNDROMES: "enqueue_syndromes",
    rpc.GET_CORRECTIONS: "get_corrections",
    rpc.RESET_DECODER: "reset_decoder",
    rpc.SET_EPOCH: "set_epoch",
    PREDECODE: "predecode",
}
_METADATA_FLAGS: Final = 4
_FORMS: Final = {**UC_FORMS, **RC_FORMS}
_TAKEN: Final = frozenset({*_FORMS, int(Opcode.RC_ACKNOWLEDGE)})


def decode(frame: bytes) -> dict[str, Any]:
    """Fields of one Ethernet frame, in the order of the wire; absent headers have no keys.

    A frame that is not RoCEv2 gives ``length``, ``error`` and ``drop`` only. Never raises.
    """
    try:
        found = parse_frame(frame)
    except WireError as error:
        detail = f"{error.what} ({error.got})" if error.got else error.what
        return {"length": len(frame), "error": detail, "drop": _unparsed(frame)}
    bth = found.packet.bth
    fields: dict[str, Any] = {
        "src": f"{found.ip.src}:{found.udp.src_port}",
        "dst": f"{found.ip.dst}:{found.udp.dst_port}",
        "length": len(frame),
        "opcode": bth.opcode,
        "name": Opcode(bth.opcode).name,
        "pkey": bth.pkey,
        "dest_qp": bth.dest_qp,
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
    fields |= {"payload_len": len(found.packet.payload), "icrc_ok": found.icrc_ok}
    message, cause = _metadata(found) or _message(found.packet.payload)
    if not _judged(bth.opcode, cause):
        cause = None
    return fields | message | {"drop": _refused(found) or cause}


def one_line(frame: bytes) -> str:
    """The same in one line of text: hexadecimal where engineers expect it."""
    fields = decode(frame)
    if "error" in fields:
        return f"{fields['length']} B, not RoCEv2: {fields['error']}"
    shown = fields | fields.get("rpc", {}) | fields.get("qec", {})
    parts = [f"{shown['src']} > {shown['dst']}", f"{shown['length']} B", shown["name"]]
    hexadecimal = ("dest_qp", "psn", "va", "rkey", "imm", "syndrome")
    parts += [f"{name} 0x{shown[name]:x}" for name in hexadecimal if name in shown]
    parts += ["ICRC ok" if shown["icrc_ok"] else "ICRC WRONG"]
    words = ("message", "status", "request_id", "counter", "epoch")
    parts += [f"{name} {shown[name]}" for name in words if name in shown]
    return ", ".join(parts if shown["drop"] is None else [*parts, f"refused: {shown['drop']}"])


def _unparsed(frame: bytes) -> str:
    """Why a receiver drops a frame that ``parse_frame`` refuses."""
    datagram = frame[FRAME_HEADER_BYTES : 14 + int.from_bytes(frame[16:18], "big")]
    right_length = len(datagram) + 8 == int.from_bytes(frame[38:40], "big")
    if frame[12:15] != b"\x08\x00\x45" or frame[23:24] != b"\x11" or not right_length:
        return "not_roce"
    if len(datagram) < MIN_DATAGRAM_BYTES:
        return "drop_length"
    right = icrc_of_headers(frame[14:34], frame[34:42], datagram[:-ICRC_BYTES])
    if datagram[-ICRC_BYTES:] != right.to_bytes(ICRC_BYTES, "little"):
        return "drop_icrc"
    return "drop_length" if datagram[0] in _TAKEN and not datagram[1] & 15 else "drop_opcode"


def _judged(opcode: int, cause: str | None) -> bool:
    """Whether a payload must be a message: not of an ACK, nor of parts that need the others."""
    form = _FORMS.get(opcode)
    if form is None or not form.first:
        return False
    begins = not form.last or opcode == Opcode.UC_WRITE_ONLY  # later frames complete it
    return not (begins and cause == "length")


def _refused(found: Frame) -> str | None:
    """The transport's reason, in the order in which ``hil.link.receiver`` checks."""
    packet, bth = found.packet, found.packet.bth
    whole = MIN_DATAGRAM_BYTES + len(packet.payload) + bth.pad
    form = _FORMS.get(bth.opcode)
    part = form is not None and not form.last
    imm_psn = bth.psn & 0xFFFFF
    if packet.imm is not None and form is not None and not form.send and bth.opcode in UC_FORMS:
        imm_psn = packet.imm >> 12
    checks = {
        "drop_icrc": found.icrc_ok,
        "drop_opcode": bth.opcode in _TAKEN,
        "drop_pkey": bth.pkey == PKEY_DEFAULT,
        "drop_length": whole % 4 == 0
        and (
            packet.reth is None
            or packet.reth.length == len(packet.payload)
            or (part and packet.reth.length > len(packet.payload))
        ),
        "drop_imm": imm_psn == bth.psn & 0xFFFFF,
    }
    return next((cause for cause, good in checks.items() if not good), None)


def _metadata(found: Frame) -> tuple[dict[str, Any], str | None] | None:
    """Key ``metadata`` of a frame in which the sensor bridge tells about a window, else ``None``.

    No message begins with the flags and the PSN of the very packet that carries it.
    """
    packet = found.packet
    if packet.bth.opcode != Opcode.UC_WRITE_ONLY_IMM or len(packet.payload) != METADATA_BYTES:
        return None
    try:
        metadata = Metadata.unpack(packet.payload)
    except WireError:
        return None
    own = metadata.psn == packet.bth.psn and metadata.flags < _METADATA_FLAGS
    return ({"metadata": asdict(metadata)}, None) if own else None


def _message(payload: bytes) -> tuple[dict[str, Any], str | None]:
    """Keys ``rpc`` and ``qec`` of a payload, and why the node would refuse it."""
    try:
        head = rpc.peek_request(payload)
    except rpc.RpcError as error:
        return _answer(payload, error.cause)
    name = _FUNCTIONS.get(head.function_id, f"function 0x{head.function_id:08x}")
    out: dict[str, Any] = {"rpc": {"message": name, **head._asdict()}}
    if head.function_id == PREDECODE:
        return _whole_shot(payload, out)
    envelope = _envelope_of(payload)
    try:
        parsed = rpc.parse_request(payload, envelope)
    except rpc.RpcError as error:
        return out, error.cause
    return out | {"qec": _plain(parsed)}, None


def _whole_shot(payload: bytes, out: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
    try:
        detectors = parse_predecode(payload).detectors
    except rpc.RpcError as error:
        return out, error.cause
    qec = {"num_detectors": len(detectors), "detectors": detectors.hex(), "envelope": "none"}
    return out | {"qec": qec}, None


def _envelope_of(payload: bytes) -> rpc.EnvelopeKind:
    """``nvidia`` for a request that is whole without an envelope, else ``hil``."""
    try:
        bare = rpc.build_request(rpc.parse_request(payload, "nvidia"))
    except WireError:
        return "hil"
    return "nvidia" if bare == payload[: len(bare)] else "hil"


def _answer(payload: bytes, cause: str) -> tuple[dict[str, Any], str | None]:
    try:
        head = rpc.peek_response(payload)
    except rpc.RpcError:
        return {}, cause
    out: dict[str, Any] = {"rpc": {"message": "response", **head._asdict()}}
    try:
        return out | {"qec": _plain(rpc.parse_response(payload))}, None
    except rpc.RpcError as error:
        refused = error.cause
    try:  # an answer has no length that is known beforehand: it may be whole without envelope
        bare = rpc.parse_response(payload, "nvidia")
    except rpc.RpcError:
        return out, refused
    if head.result_len >= rpc.ENVELOPE_BYTES:
        return out | {"qec": _plain(bare)}, "envelope_crc"
    return out | {"qec": _plain(bare)}, None


def _plain(message: rpc.Request | rpc.Response) -> dict[str, Any]:
    """Fields behind the header; bits as hex, the envelope flat, its kind named."""
    fields = message._asdict()
    for known in ("request_id", "ptp_timestamp", "status"):
        fields.pop(known, None)
    envelope = fields.pop("envelope")
    plain = {k: v.hex() if isinstance(v, bytes) else v for k, v in fields.items()}
    return plain | ({"envelope": "hil", **envelope._asdict()} if envelope else {"envelope": "none"})
