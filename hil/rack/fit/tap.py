"""Captures of a tap on the link: RoCEv2 frames with QEC requests, in pcap or pcapng."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hil.errors import UsageError, WireError
from hil.rack.fit.capture import Capture, Refusals, check_order, unreadable
from hil.timebase import PS_PER_NS
from hil.wire import rpc
from hil.wire.pcap import read_capture
from hil.wire.roce import parse_frame

_NS_PER_S = 1_000_000_000


@dataclass
class _Tap:
    """Requests in the order of the tap; one entry of each list per ``enqueue_syndromes``."""

    places: list[int] = field(default_factory=list)
    seen_ns: list[int] = field(default_factory=list)
    stamp_ns: list[int] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    events: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)  # entries before each get_corrections
    sequence: list[tuple[int, int]] = field(default_factory=list)  # place, id of all requests
    replies: dict[int, int] = field(default_factory=dict)  # request id -> tap time
    others: int = 0


def read_tap(path: Path, *, ptp_clock: bool) -> Capture:
    """Durations from the frames of a tap.

    A request carries the rack's PTP stamp of its round. With ``ptp_clock`` the tap is stamped by
    that same clock, and the duration from stamp to tap is the rack's way (``acquire``; packing is
    inside). Otherwise only the time from a request to its reply is known: a round trip, halves
    assumed. Event counts are those of the payloads.

    Args:
        path: pcap or pcapng file.
        ptp_clock: the tap's clock is the rack's PTP clock.

    Raises:
        UsageError: not a capture, bad frames (all reasons are named), or nothing to measure.
    """
    refusals = Refusals(str(path))
    try:
        tap = _frames(path, refusals)
    except WireError as error:
        raise UsageError(
            error.what,
            where=error.where,
            got=error.got,
            allowed="pcap or pcapng of Ethernet frames",
            fix="record it anew; a CSV file belongs to --csv",
        ) from error
    except OSError as error:
        raise unreadable(path, error) from error
    _check_sequence(tap, refusals)
    refusals.check()
    if not tap.ids or not tap.ends:
        raise UsageError(
            "the tap holds no shot",
            where=str(path),
            got=f"{len(tap.ids)} enqueue_syndromes, {len(tap.ends)} get_corrections",
            allowed="RoCEv2 frames with requests of the rack",
            fix="tap the link from the rack to the decoder",
        )
    return _capture(path, tap, refusals, ptp_clock=ptp_clock)


def _frames(path: Path, refusals: Refusals) -> _Tap:
    tap = _Tap()
    for place, captured in enumerate(read_capture(path), 1):
        here = f"frame {place}"
        if captured.original_bytes > len(captured.data):
            refusals.add("cut by the capture's snap length", here)
            continue
        try:
            frame = parse_frame(captured.data)
        except WireError:
            tap.others += 1
            continue
        if not frame.icrc_ok:
            refusals.add("ICRC wrong", here)
            continue
        _message(tap, place, captured.t_ns, frame.packet.payload, refusals)
    return tap


def _message(tap: _Tap, place: int, t_ns: int, payload: bytes, refusals: Refusals) -> None:
    """Note one RPC message."""
    try:
        tap.replies.setdefault(rpc.peek_response(payload).request_id, t_ns)
    except rpc.RpcError:
        pass
    else:
        return
    try:
        request = _request(payload)
    except rpc.RpcError as error:
        if error.cause == "magic":
            tap.others += 1
        else:
            refusals.add(f"request refused: {error.what}", f"frame {place}", error.got)
        return
    if isinstance(request, rpc.ResetDecoder):
        return
    tap.sequence.append((place, request.request_id))
    if isinstance(request, rpc.GetCorrections):
        tap.ends.append(len(tap.ids))
        return
    stamp = request.ptp_timestamp
    tap.places.append(place)
    tap.seen_ns.append(t_ns)
    tap.stamp_ns.append((stamp >> 32) * _NS_PER_S + (stamp & 0xFFFFFFFF) if stamp else 0)
    tap.ids.append(request.request_id)
    tap.events.append(int.from_bytes(request.bits, "little").bit_count())


def _request(payload: bytes) -> rpc.Request:
    """A request with the envelope ``hil``, or without one."""
    try:
        return rpc.parse_request(payload, "hil")
    except rpc.RpcError as error:
        if error.cause not in {"envelope_crc", "length"}:
            raise
        return rpc.parse_request(payload, "nvidia")


def _check_sequence(tap: _Tap, refusals: Refusals) -> None:
    """Request ids count up by one over all requests of the rack (modulo 2^32)."""
    ids = np.array([found for _, found in tap.sequence], dtype=np.int64)
    steps = np.diff(ids) % 2**32
    for reason, hits in (
        ("request twice", steps == 0),
        ("gap", (steps > 1) & (steps < 2**31)),
        ("not in time order", steps >= 2**31),
    ):
        found = np.flatnonzero(hits)
        if found.size:
            i = int(found[0])
            got = f"request {ids[i]}, then {ids[i + 1]}"
            refusals.add(reason, f"frame {tap.sequence[i + 1][0]}", got, int(found.size))


def _capture(path: Path, tap: _Tap, refusals: Refusals, *, ptp_clock: bool) -> Capture:
    n = len(tap.ids)
    edges = np.array([0, *tap.ends, n], dtype=np.int64)
    rows = np.arange(n)
    shot = np.searchsorted(edges[1:], rows, side="right")
    round_ = rows - edges[shot]
    places = np.array(tap.places, dtype=np.int64)
    keep = np.ones(n, dtype=np.bool_)
    if len(tap.ends) > 1 and tap.ends[0] != tap.ends[1] - tap.ends[0]:
        keep[: tap.ends[0]] = False  # the tap began inside a shot
    seen, lost = np.array(tap.seen_ns, dtype=np.int64), np.zeros(n, dtype=np.bool_)
    if ptp_clock:
        stamps = np.array(tap.stamp_ns, dtype=np.int64)
        keep_stamps = stamps[keep] == 0
        if keep_stamps.any():
            refusals.add("no PTP stamp", f"frame {places[keep][keep_stamps][0]}",
                         "", int(keep_stamps.sum()))  # fmt: skip
        durations, name = seen - stamps, "acquire"
        note = "PTP stamp to tap, one clock: acquire and packetize are not told apart"
    else:
        back = np.array([tap.replies.get(found, -1) for found in tap.ids], dtype=np.int64)
        lost = keep & (back < 0)
        if lost[keep].all():
            raise UsageError(
                "the tap holds no replies to enqueue_syndromes",
                where=str(path),
                got=f"{n} requests, {len(tap.replies)} replies",
                allowed="replies in the tap, or a tap on the rack's PTP clock",
                fix="tap both directions, or give --tap-clock ptp if tap and rack share a clock",
            )
        if lost.any():
            refusals.add("no reply", f"frame {places[lost][0]}", "", int(lost.sum()))
        durations, name = back - seen, "round_trip"
        note = (
            "request to reply at the tap: the way there and the way back are not told apart, "
            "each gets one half (assumed); what the node adds is inside"
        )
    negative = np.flatnonzero(keep & ~lost & (durations < 0))
    if negative.size:
        i = int(negative[0])
        refusals.add(f"negative duration of {name}", f"frame {places[i]}",
                     f"{durations[i]} ns", int(negative.size))  # fmt: skip
    start, stop, per_shot = check_order(shot[keep], round_[keep], places[keep], "frame", refusals)
    refusals.check()
    left = n - (stop - start)
    notes = [note, "event counts of the payloads: durations may depend on them"]
    notes += [f"{left} round(s) of incomplete shots at the ends left out"] if left else []
    notes += [f"{tap.others} frame(s) that are no QEC messages left out"] if tap.others else []
    events = np.array(tap.events, dtype=np.int64)
    whole = Capture(
        path.name, (name,), durations[None, keep] * PS_PER_NS, events[keep], per_shot,
        tuple(notes), round_trip=not ptp_clock,
    )  # fmt: skip
    return whole.part(start, stop)
