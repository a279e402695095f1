"""Session set-up: what must agree, who has the token, what strangers may cost."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from node_peer import BLOCKS, config

from hil.errors import UsageError
from hil.link.endpoint import PeerAddress
from hil.node import setup
from hil.node.lobby import Guest, Limits, Lobby
from hil.node.remote import Door
from hil.node.setup import Nonces, SetupError

TOKEN = b"0123456789abcdef0123456789abcdef"
HERE = PeerAddress("127.0.0.2", 4791, 17, 5, 99, 1 << 28, 128, 1024)
NONCES = Nonces("0" * 32, "f" * 32)


def hello(**changes: object) -> dict[str, object]:
    body: dict[str, object] = {
        "nonce": NONCES.rack,
        "facts": setup.facts(config()),
        "peer": {**{name: getattr(HERE, name) for name in HERE.__slots__}},
        "gap_timeout_ps": 10**12,
    }
    return body | changes


def test_facts_name_every_field_that_both_sides_must_share() -> None:
    ours = setup.facts(config())
    assert setup.disagreement(ours, setup.facts(config(rack_address="127.0.0.9", spin=True))) == ""
    for change in (
        {"ring_slots": 32},
        {"board_mask": 1},
        {"dem_text": "error(0.1) D0 and far more text, so that a hash stands for it in the facts"},
        {"block_detectors": BLOCKS[::-1]},
        {"n_observables": 1},
        {"mtu_bytes": 4096},
        {"epoch": 1},
    ):
        (name,) = change
        unlike = setup.disagreement(ours, setup.facts(config(**change)))
        assert unlike.startswith(f"{name}: rack "), unlike
        assert ", node " in unlike


def test_a_field_that_only_one_side_knows_is_a_disagreement() -> None:
    assert setup.disagreement({"a": "1"}, {}) == "a: rack 1, node nothing"


@pytest.mark.parametrize("token", [None, TOKEN])
def test_hello_and_welcome_round_trip(token: bytes | None) -> None:
    line = setup.signed(hello(), "rack", NONCES, token)
    read = setup.read_hello(line, NONCES.node, token)
    assert PeerAddress(**read.peer.model_dump()) == HERE
    peer = read.peer.model_dump()
    answer = setup.signed({"peer": peer, "fingerprints": {}}, "node", NONCES, token)
    assert setup.read_welcome(answer, NONCES, token).peer == read.peer


def test_the_token_never_travels_and_a_proof_fits_one_set_up_only() -> None:
    line = setup.signed(hello(), "rack", NONCES, TOKEN)
    assert TOKEN not in line
    assert TOKEN.hex().encode() not in line
    for nonce, token in (("1" * 32, TOKEN), (NONCES.node, None), (NONCES.node, TOKEN[::-1])):
        with pytest.raises(SetupError, match="does not have our token"):
            setup.read_hello(line, nonce, token)
    changed = json.loads(line)
    changed["body"]["peer"]["host"] = "127.0.0.3"
    with pytest.raises(SetupError, match="does not have our token"):
        setup.read_hello(setup.line(changed), NONCES.node, TOKEN)


def test_a_proof_of_the_rack_is_none_of_the_node() -> None:
    """Sent back to its sender it must not pass for an answer."""
    body = {"peer": hello()["peer"], "fingerprints": {}}
    reflected = setup.signed(body, "rack", NONCES, TOKEN)
    with pytest.raises(SetupError, match="the node does not have our token"):
        setup.read_welcome(reflected, NONCES, TOKEN)


def test_a_refusal_carries_its_reason() -> None:
    with pytest.raises(SetupError, match="the two sides differ"):
        setup.read_welcome(setup.line({"refused": "the two sides differ"}), NONCES, None)


@pytest.mark.parametrize(
    ("part", "value"),
    [("n_slots", 4097), ("n_slots", 0), ("stride", 1 << 21), ("stride", 64), ("qp", -1),
     ("qp", 1 << 24), ("psn", 1 << 24), ("rkey", -1), ("port", 0), ("base_va", 1 << 63)],
)  # fmt: skip
def test_numbers_beyond_the_limits_of_a_session_are_refused(part: str, value: int) -> None:
    peer = {**hello()["peer"], part: value}  # type: ignore[dict-item]
    with pytest.raises(SetupError, match="not the hello of a rack"):
        setup.read_hello(setup.signed(hello(peer=peer), "rack", NONCES, None), NONCES.node, None)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["body", "proof", "nonce", "facts", "peer", "end"]), inner
        )
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200) | JSON.map(lambda data: json.dumps(data).encode()))
def test_garbage_is_a_setup_error_and_nothing_else(text: bytes) -> None:
    for read in (
        setup.read_greeting,
        setup.read_end,
        setup.read_counters,
        lambda t: setup.read_hello(t, NONCES.node, None),
        lambda t: setup.read_welcome(t, NONCES, None),
    ):
        try:
            read(text)
        except SetupError:
            continue
        assert b"end" in text
        assert read is setup.read_end


def test_tokens_come_from_a_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(setup.TOKEN_VARIABLE, raising=False)
    assert setup.read_token(None) is None
    file = tmp_path / "token"
    file.write_bytes(TOKEN + b"\n")
    assert setup.read_token(file) == TOKEN
    monkeypatch.setenv(setup.TOKEN_VARIABLE, "short")
    with pytest.raises(UsageError, match="too short"):
        setup.read_token(None)
    with pytest.raises(UsageError, match="cannot be read"):
        setup.read_token(tmp_path / "absent")
    file.write_text("\n")
    with pytest.raises(UsageError, match="too short"):
        setup.read_token(file)


def test_leaving_the_machine_needs_the_flag_and_a_token() -> None:
    setup.demand_permission("127.3.4.5", None, allow_remote=False)
    setup.demand_permission("192.0.2.1", TOKEN, allow_remote=True)
    for token, flag, missing in (
        (None, False, "--allow-remote and a token"),
        (None, True, "a token"),
        (TOKEN, False, "--allow-remote"),
    ):
        with pytest.raises(UsageError, match=missing):
            setup.demand_permission("192.0.2.1", token, allow_remote=flag)
    for host in ("0.0.0.0", "224.0.0.1"):
        with pytest.raises(UsageError, match="no single address"):
            setup.demand_permission(host, TOKEN, allow_remote=True)
    with pytest.raises(UsageError, match="not an address"):
        setup.demand_permission("localhost", TOKEN, allow_remote=True)


# -- the lobby ---------------------------------------------------------------------------------

LIMITS = Limits(half_open=8, handshake_s=5.0, setups_per_s=20)


@pytest.fixture
def lobby() -> Iterator[Lobby]:
    made = Lobby("127.0.0.1", 0, TOKEN, LIMITS)
    yield made
    made.close()


def knock(lobby: Lobby) -> socket.socket:
    return socket.create_connection(lobby.address, 2.0)


def serve_until(lobby: Lobby, now_s: float, enough: int = 1) -> list[Guest]:
    guests: list[Guest] = []
    until = time.monotonic() + 5.0
    while len(guests) < enough and time.monotonic() < until:
        guests += lobby.serve(now_s)
        time.sleep(0.005)
    return guests


def introduce(connection: socket.socket, token: bytes | None = TOKEN) -> Nonces:
    greeting = setup.read_greeting(connection.recv(setup.LINE_BYTES))
    nonces = Nonces(greeting.nonce, NONCES.rack)
    connection.sendall(setup.signed(hello(), "rack", nonces, token))
    return nonces


def test_a_rack_with_the_token_is_let_in_and_one_without_is_not(lobby: Lobby) -> None:
    with knock(lobby) as good, knock(lobby) as bad:
        lobby.serve(0.0)
        introduce(bad, TOKEN[::-1])
        introduce(good)
        (guest,) = serve_until(lobby, 0.0)
        assert guest.hello.peer.qp == HERE.qp
        assert b"does not have our token" in bad.recv(1000)
        assert bad.recv(1) == b""
        guest.farewell({"received": 3})
        assert setup.read_counters(good.recv(1000)) == {"received": 3}
    assert lobby.half_open == 0
    assert lobby.count == {"accepted": 1, "refused": 1}


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_thousand_half_open_set_ups_are_bounded(lobby: Lobby) -> None:
    """And a rack that comes behind them is served."""
    before = _open_files()
    strangers, most = [], 0
    try:
        for number in range(1000):
            strangers.append(knock(lobby))
            lobby.serve(number / 100)  # ten seconds of a clock that is passed in
            most = max(most, lobby.half_open)
            others = 20  # the rest of this process may open some, but none per stranger
            assert _open_files() <= before + len(strangers) + LIMITS.half_open + others
        assert most == LIMITS.half_open
        assert lobby.count["over_rate"] + lobby.count["displaced"] + lobby.half_open == 1000
        assert lobby.count["over_rate"] == 800
        with knock(lobby) as rack:
            lobby.serve(11.0)
            introduce(rack)
            (guest,) = serve_until(lobby, 11.0)
            guest.close()
    finally:
        for stranger in strangers:
            stranger.close()
    lobby.serve(11.5)
    lobby.serve(17.0)
    assert lobby.half_open == 0


def test_who_is_slow_or_talks_too_much_is_hung_up_on(lobby: Lobby) -> None:
    with knock(lobby) as slow, knock(lobby) as loud:
        lobby.serve(0.0)
        slow.sendall(b'{"body":')
        loud.sendall(b"x" * (2 * setup.LINE_BYTES))
        for _ in range(20):
            lobby.serve(1.0)
            time.sleep(0.005)
        assert lobby.half_open == 1
        lobby.serve(5.0)
    assert lobby.half_open == 0
    assert lobby.count == {"too_long": 1, "too_slow": 1}


@settings(max_examples=40, deadline=None)
@given(st.binary(min_size=1, max_size=300))
def test_garbage_at_the_door_leaves_nothing_behind(text: bytes) -> None:
    lobby = Lobby("127.0.0.1", 0, None)
    try:
        with knock(lobby) as stranger:
            lobby.serve(0.0)
            stranger.sendall(text + b"\n")
            until = time.monotonic() + 2.0
            while lobby.half_open and time.monotonic() < until:
                assert lobby.serve(0.0) == []
        assert lobby.half_open == 0
    finally:
        lobby.close()


# -- the rack's side ---------------------------------------------------------------------------


def test_nobody_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        door = Door("127.0.0.1", taken.getsockname()[1], patience_s=0.0)
        with pytest.raises(SetupError, match="no node answers"):
            door.attach(config(), HERE)


@pytest.mark.parametrize(("ours", "theirs"), [(None, TOKEN), (TOKEN, None)])
def test_a_token_on_one_side_only_is_named(ours: bytes | None, theirs: bytes | None) -> None:
    lobby = Lobby("127.0.0.1", 0, theirs)
    door = Door(*lobby.address, ours)
    answer: list[Exception] = []

    def attach() -> None:
        try:
            door.attach(config(), HERE)
        except SetupError as error:
            answer.append(error)

    rack = threading.Thread(target=attach)
    rack.start()
    while rack.is_alive():
        lobby.serve(0.0)
        time.sleep(0.005)
    lobby.close()
    assert "one side has a token" in str(answer[0])
