"""Session set-up between a rack and a standalone node: lines, proof of the token, what must agree.

One TCP connection per session, JSON objects, one a line, each at most ``LINE_BYTES``::

    node: {"hil": "session/1", "nonce": HEX, "token": true | false}
    rack: {"body": {"nonce", "facts", "peer", "gap_timeout_ps"}, "proof": HEX}
    node: {"body": {"peer", "fingerprints"}, "proof": HEX}      or {"refused": WHY}
    rack: {"end": COUNTER}                                      when it has sent everything
    node: {"counters": {...}}

``proof`` is HMAC-SHA256 under the shared token over who speaks, both nonces and the body: the token
itself never travels, an answer cannot be replayed, and both sides prove that they have it. Without
a token (loopback only) the proof is empty. Pure: no socket, no clock. Rules: ``docs/lab.md``.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hil.errors import NodeError, UsageError
from hil.node.config import NodeConfig
from hil.timebase import PS_PER_S
from hil.wire.roce import MAX_QP, MAX_SLOTS, PSN_MASK, STRIDE_UNIT

PROTOCOL: Final = "session/1"
LINE_BYTES: Final = 1 << 14
TOKEN_VARIABLE: Final = "HIL_TOKEN"  # noqa: S105 - the name of a variable
LEAST_TOKEN_BYTES: Final = 16
MOST_GAP_PS: Final = 60 * PS_PER_S
"""Longest pause between two frames of a shot that a rack may announce."""

MOST_STRIDE: Final = 1 << 20
"""Largest slot of a reply ring, in bytes, that a rack may announce."""

_LONG: Final = 64
_OWN_AFFAIR: Final = frozenset(
    (
        *("rack_address", "node_address", "psn_start_up", "psn_start_down", "allow_remote"),
        *("rack_qp", "start", "reply_bytes", "rack_device", "node_device"),
        *("primary", "predecoders", "primary_workers", "fallback", "fallback_workers"),
        *("fallback_when", "mode", "deadline_ps", "primary_deadline_ps", "primary_pred_ps"),
        *("way_back_pred_ps", "fallback_pred", "gap_timeout_ps", "answer_timeout_ps"),
        *("stamp_shots", "spin", "delays", "breakages", "predecode"),
    )
)
"""Fields of ``NodeConfig`` that may differ between the two sides; all others must be equal."""

Speaker = Literal["rack", "node"]
M = TypeVar("M", bound=BaseModel)


class SetupError(NodeError):
    """The other side broke the set-up, or refused it."""


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Greeting(_Line):
    """First line of the node."""

    hil: Literal["session/1"]
    nonce: str = Field(pattern="^[0-9a-f]{32}$")
    token: bool


class Receiver(_Line):
    """A receiver's address (``hil.link.endpoint.PeerAddress``) within the limits of a session."""

    host: str = Field(max_length=15)
    port: Annotated[int, Field(ge=1, le=0xFFFF)]
    qp: Annotated[int, Field(ge=0, le=MAX_QP)]  # 0 where the network has none
    psn: Annotated[int, Field(ge=0, le=PSN_MASK)]
    rkey: Annotated[int, Field(ge=0, lt=1 << 32)]
    base_va: Annotated[int, Field(ge=0, lt=1 << 63)]
    stride: Annotated[int, Field(ge=STRIDE_UNIT, le=MOST_STRIDE)]
    n_slots: Annotated[int, Field(ge=1, le=MAX_SLOTS)]


class Hello(_Line):
    """What a rack says of itself: its facts, where replies go, the longest pause in a shot."""

    nonce: str = Field(pattern="^[0-9a-f]{32}$")
    facts: dict[str, str] = Field(max_length=64)
    peer: Receiver
    gap_timeout_ps: int = Field(ge=1, le=MOST_GAP_PS)


class Welcome(_Line):
    """What a node answers: where frames go, and which decoders will answer."""

    peer: Receiver
    fingerprints: dict[str, dict[str, str]]


class Signed(_Line):
    """A body and the proof that its sender has the token; empty without one."""

    body: dict[str, Any]
    proof: str = Field(pattern="^([0-9a-f]{64})?$")


@dataclass(frozen=True, slots=True)
class Nonces:
    """Fresh numbers of both sides: a proof holds for one set-up only."""

    node: str
    rack: str


def fresh_nonce() -> str:
    """128 random bits as hex."""
    return secrets.token_hex(16)


def facts(config: NodeConfig) -> dict[str, str]:
    """What rack and node must agree on: circuit, layout of a shot, sizes, how frames are made.

    Every field of the configuration counts, but for those that are a side's own affair; long ones
    go as a hash.
    """
    found: dict[str, str] = {}
    for name, value in config.model_dump(mode="json").items():
        if name in _OWN_AFFAIR:
            continue
        text = json.dumps(value, sort_keys=True)
        long = len(text) > _LONG
        found[name] = f"sha256 {hashlib.sha256(text.encode()).hexdigest()}" if long else text
    return found


def disagreement(rack: Mapping[str, str], node: Mapping[str, str]) -> str:
    """Where two sides differ, both named; empty if they agree."""
    return "; ".join(
        f"{name}: rack {rack.get(name, 'nothing')[:80]}, node {node.get(name, 'nothing')[:80]}"
        for name in sorted(rack.keys() | node.keys())
        if rack.get(name) != node.get(name)
    )


def line(message: Mapping[str, object]) -> bytes:
    """One message as it travels."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def greeting(nonce: str, token: bytes | None) -> bytes:
    """The node's first line."""
    return line({"hil": PROTOCOL, "nonce": nonce, "token": token is not None})


def signed(
    body: Mapping[str, object], speaker: Speaker, nonces: Nonces, token: bytes | None
) -> bytes:
    """A body with its proof, as a line."""
    return line({"body": body, "proof": _proof(body, speaker, nonces, token)})


def read_greeting(text: bytes) -> Greeting:
    """The node's first line.

    Raises:
        SetupError: it is none.
    """
    return _read(Greeting, text, "not the greeting of a node")


def read_hello(text: bytes, node_nonce: str, token: bytes | None) -> Hello:
    """What a rack says, its proof checked.

    Raises:
        SetupError: malformed, or the proof is not made with our token.
    """
    said = _read(Signed, text, "not the hello of a rack")
    hello = _validated(Hello, said.body, "not the hello of a rack")
    _demand(said, "rack", Nonces(node_nonce, hello.nonce), token)
    return hello


def read_welcome(text: bytes, nonces: Nonces, token: bytes | None) -> Welcome:
    """What the node answers, its proof checked.

    Raises:
        SetupError: refused, malformed, or the proof is not made with our token.
    """
    said = _object(text)
    if isinstance(said.get("refused"), str):
        raise SetupError("the node refused the session", got=said["refused"][:1000])
    answer = _validated(Signed, said, "not the answer of a node")
    _demand(answer, "node", nonces, token)
    return _validated(Welcome, answer.body, "not the answer of a node")


def read_end(text: bytes) -> int | None:
    """The counter that the rack would have sent next.

    Raises:
        SetupError: the line says something else.
    """
    said = _object(text)
    counter = said.get("end")
    if set(said) != {"end"} or type(counter) not in {int, type(None)}:
        raise SetupError("not the end of a session", got=repr(text[:80]))
    return counter


def read_counters(text: bytes) -> dict[str, int]:
    """What the node counted.

    Raises:
        SetupError: the line says something else.
    """
    found = _object(text).get("counters")
    if not isinstance(found, dict) or not all(type(n) is int for n in found.values()):
        raise SetupError("not the counters of a node", got=repr(text[:80]))
    return found


def read_token(file: Path | None) -> bytes | None:
    """The shared token, from ``file`` or else from the variable HIL_TOKEN; ``None`` without one.

    Raises:
        UsageError: the file cannot be read, or the token is too short to be worth checking.
    """
    where = str(file) if file is not None else TOKEN_VARIABLE
    try:
        text = file.read_text() if file is not None else os.environ.get(TOKEN_VARIABLE, "")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError("the token cannot be read", where=where, got=str(error)) from error
    token = text.strip().encode()
    if not token and file is None:
        return None
    if len(token) < LEAST_TOKEN_BYTES:
        raise UsageError(
            "the token is too short",
            where=where,
            got=f"{len(token)} bytes",
            allowed=f"at least {LEAST_TOKEN_BYTES}",
            fix="make one with `openssl rand -hex 32`, the same at both ends",
        )
    return token


def demand_permission(host: str, token: bytes | None, *, allow_remote: bool) -> None:
    """Loopback is free; any other address needs the explicit flag and a token.

    Raises:
        UsageError: ``host`` is no IPv4 address, or one that leaves this machine without both.
    """
    try:
        address = ipaddress.IPv4Address(host)
    except ValueError:
        raise UsageError(
            "not an address", got=repr(host), allowed="an IPv4 address in numbers"
        ) from None
    if address.is_loopback:
        return
    missing = [] if allow_remote else ["--allow-remote"]
    missing += [] if token is not None else [f"a token ({TOKEN_VARIABLE} or --token-file)"]
    if missing or address.is_unspecified or address.is_multicast:
        raise UsageError(
            "this address leaves the machine",
            where=host,
            got=f"without {' and '.join(missing)}" if missing else "no single address",
            allowed="127.0.0.0/8; another one with --allow-remote and a shared token",
            fix="stay on loopback, or give both at both ends",
        )


def _proof(
    body: Mapping[str, object], speaker: Speaker, nonces: Nonces, token: bytes | None
) -> str:
    if token is None:
        return ""
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    said = f"hil {PROTOCOL}\n{speaker}\n{nonces.node}\n{nonces.rack}\n{text}"
    return hmac.new(token, said.encode(), hashlib.sha256).hexdigest()


def _demand(said: Signed, speaker: Speaker, nonces: Nonces, token: bytes | None) -> None:
    wanted = _proof(said.body, speaker, nonces, token)
    if not hmac.compare_digest(said.proof, wanted):
        raise SetupError(
            f"the {speaker} does not have our token",
            got="no proof" if not said.proof else "a proof that does not fit",
            allowed="no token" if token is None else "a proof made with the shared token",
            fix=f"set {TOKEN_VARIABLE} to the same value at both ends",
        )


def _object(text: bytes) -> dict[str, Any]:
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict):
        raise SetupError("not a line of the session set-up", got=repr(text[:80]))
    return said


def _read(model: type[M], text: bytes, what: str) -> M:
    return _validated(model, _object(text), what)


def _validated(model: type[M], data: object, what: str) -> M:
    try:
        return model.model_validate(data)
    except (ValidationError, RecursionError) as error:
        raise SetupError(what, got=str(error).splitlines()[0]) from None
