"""Rules of the RC requester, one by one, in virtual time."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hil.errors import LinkError, WireError
from hil.link.rc_requester import RNR_FOR_EVER, RcAttributes, Requester
from hil.wire.roce import (
    ACK_NO_CREDIT_LIMIT,
    NAK_ACCESS,
    NAK_OPERATION,
    NAK_REQUEST,
    NAK_SEQUENCE,
    RNR_NAK,
    Target,
)
from hil.wire.segments import (
    RNR_WAIT_PS,
    ack_timeout_ps,
    path_mtu,
    psn_distance,
    send_packets,
    write_packets,
)

PSN = 2**24 - 4
RULES = RcAttributes(path_mtu=256, timeout=10, queue_packets=16, window_packets=8)
TIMEOUT_PS = ack_timeout_ps(10)
ACK = ACK_NO_CREDIT_LIMIT


def sent(requester: Requester, now_ps: int = 0) -> list[tuple[int, bool]]:
    """(PSN relative to the first one, AckReq) of what goes out now."""
    return [
        (psn_distance(int.from_bytes(d[9:12], "big"), PSN), bool(d[8] & 0x80))
        for d in requester.outgoing(now_ps)
    ]


def post(requester: Requester, *sizes: int) -> list[bool]:
    """One send per size in bytes."""
    taken = []
    for size in sizes:
        packets = send_packets(5, requester.psn, bytes(size), 256)
        taken.append(requester.post([bytearray(p.pack() + bytes(4)) for p in packets]))
    return taken


def begun(*sizes: int, rules: RcAttributes = RULES) -> Requester:
    """A requester that has sent one message per size."""
    requester = Requester(PSN, rules)
    assert all(post(requester, *sizes))
    requester.outgoing(0)
    return requester


def ack(requester: Requester, place: int, syndrome: int = ACK, now_ps: int = 1) -> bool:
    return requester.acknowledge((PSN + place) % 2**24, syndrome, now_ps)


def test_an_ack_is_asked_for_with_the_last_packet_of_each_message_and_of_a_full_window() -> None:
    requester = Requester(PSN, RULES)
    post(requester, 1, 600, 2000)
    asked = [False, False, True]
    assert [a for _, a in sent(requester)] == [True, *asked, False, False, False, True]
    ack(requester, 7)
    assert sent(requester) == [(8, False), (9, False), (10, False), (11, True)]


def test_an_ack_retires_all_packets_up_to_its_psn_across_the_wrap() -> None:
    requester = begun(*[1] * 8)
    ack(requester, 5)
    requester.expire(1 + TIMEOUT_PS)
    assert sent(requester) == [(6, True), (7, True)]
    ack(requester, 7)
    assert requester.idle
    assert requester.next_timer_ps() is None
    assert requester.psn == (PSN + 8) % 2**24 == 4


@pytest.mark.parametrize("place", [-1, -100, 3, 100, 2**23 - 1, -(2**23)])
@pytest.mark.parametrize("syndrome", [ACK, NAK_SEQUENCE, RNR_NAK, NAK_ACCESS])
def test_an_answer_to_what_was_retired_or_never_sent_is_ignored(place: int, syndrome: int) -> None:
    requester = begun(1, 1, 1)
    assert ack(requester, place, syndrome)
    assert sent(requester) == []
    assert requester.next_timer_ps() == TIMEOUT_PS
    assert requester.error == ""


def test_an_answer_to_what_waits_behind_a_full_window_is_ignored() -> None:
    requester = Requester(PSN, RULES)
    post(requester, *[1] * 14)
    assert len(requester.outgoing(0)) == 8
    for syndrome in (ACK, NAK_SEQUENCE, RNR_NAK):
        ack(requester, 8, syndrome)
    assert sent(requester) == []
    ack(requester, 7)
    assert [place for place, _ in sent(requester)] == [8, 9, 10, 11, 12, 13]


@pytest.mark.parametrize("syndrome", [0x40, 0x5F, 0x64, 0x7F, 0x80, 0xFF])
def test_a_reserved_syndrome_changes_nothing(syndrome: int) -> None:
    requester = begun(1, 1)
    before = dict(requester.counts)
    assert not ack(requester, 0, syndrome)
    assert requester.counts == before
    assert requester.next_timer_ps() == TIMEOUT_PS


@pytest.mark.parametrize("syndrome", [0x00, 0x1E, 0x1F])
def test_every_credit_count_is_an_ack(syndrome: int) -> None:
    requester = begun(1)
    assert ack(requester, 0, syndrome)
    assert requester.idle


def test_a_sequence_nak_acknowledges_what_is_before_it_and_repeats_from_it() -> None:
    requester = begun(1, 1, 600, 1)
    ack(requester, 2, NAK_SEQUENCE)
    assert sent(requester) == [(2, False), (3, False), (4, True), (5, True)]
    assert (requester.counts["retransmit"], requester.counts["tx"]) == (4, 6)
    assert requester.next_timer_ps() == 1 + TIMEOUT_PS


def test_the_last_packet_of_a_repetition_asks_for_an_ack_inside_a_message() -> None:
    requester = begun(2048)
    assert post(requester, 512) == [True]
    ack(requester, 1)
    assert sent(requester) == [(8, False), (9, True)]
    requester = begun(*[600] * 2, rules=replace(RULES, window_packets=5))
    ack(requester, 1, NAK_SEQUENCE)
    assert sent(requester) == [(1, False), (2, True), (3, False), (4, True), (5, True)]


def test_a_nak_without_progress_repeats_but_never_puts_the_timeout_off() -> None:
    requester = begun(1, 1)
    for now_ps in range(1, 50):
        ack(requester, 0, NAK_SEQUENCE, now_ps)
        assert len(sent(requester, now_ps)) == 2
    assert requester.next_timer_ps() == TIMEOUT_PS


def test_a_timeout_repeats_everything_and_progress_resets_the_count() -> None:
    requester = begun(1, 1, 1)
    now_ps = 0
    for _ in range(RULES.retry_cnt):
        now_ps += TIMEOUT_PS
        requester.expire(now_ps - 1)
        assert sent(requester, now_ps - 1) == []
        requester.expire(now_ps)
        assert sent(requester, now_ps) == [(0, True), (1, True), (2, True)]
    ack(requester, 0, ACK, now_ps)
    for _ in range(RULES.retry_cnt):
        now_ps += TIMEOUT_PS
        requester.expire(now_ps)
        assert sent(requester, now_ps) == [(1, True), (2, True)]
    requester.expire(now_ps + TIMEOUT_PS)
    assert "does not acknowledge" in requester.error
    assert sent(requester) == []
    assert requester.next_timer_ps() is None
    assert requester.counts["timeouts"] == 2 * RULES.retry_cnt + 1


def test_the_timer_runs_from_the_last_progress_and_not_without_packets() -> None:
    requester = Requester(PSN, RULES)
    requester.outgoing(5)
    assert requester.next_timer_ps() is None
    post(requester, 1, 1)
    requester.outgoing(100)
    assert requester.next_timer_ps() == 100 + TIMEOUT_PS
    ack(requester, 0, ACK, 300)
    assert requester.next_timer_ps() == 300 + TIMEOUT_PS


@pytest.mark.parametrize("code", [0, 1, 12, 31])
def test_an_rnr_nak_waits_the_coded_time_and_ignores_sequence_naks_meanwhile(code: int) -> None:
    requester = begun(1, 1, 1, 1)
    ack(requester, 1, RNR_NAK + code, 7)
    ready_ps = 7 + RNR_WAIT_PS[code]
    assert requester.next_timer_ps() == ready_ps
    ack(requester, 1, NAK_SEQUENCE, 8)
    ack(requester, 1, RNR_NAK + 31, 9)
    post(requester, 1)
    requester.expire(ready_ps - 1)
    assert sent(requester, ready_ps - 1) == []
    requester.expire(ready_ps)
    assert [place for place, _ in sent(requester, ready_ps)] == [1, 2, 3, 4]
    assert requester.next_timer_ps() == ready_ps + TIMEOUT_PS
    assert (requester.counts["rx_rnr"], requester.counts["rx_nak"]) == (2, 1)
    assert requester.counts["timeouts"] == 0


def test_rnr_retries_are_limited_unless_told_otherwise() -> None:
    requester = begun(1, rules=replace(RULES, rnr_retry=2))
    patient = begun(1, rules=replace(RULES, rnr_retry=RNR_FOR_EVER))
    now_ps = 0
    for k in range(20):
        for one in (requester, patient):
            ack(one, 0, RNR_NAK + 1, now_ps)
        assert bool(requester.error) is (k >= 2)
        now_ps += RNR_WAIT_PS[1]
        for one in (requester, patient):
            one.expire(now_ps)
            one.outgoing(now_ps)
    assert "no free slot" in requester.error
    assert patient.error == ""
    ack(patient, 0, ACK, now_ps)
    assert patient.idle


@pytest.mark.parametrize("syndrome", [NAK_REQUEST, NAK_ACCESS, NAK_OPERATION])
def test_the_other_naks_are_final(syndrome: int) -> None:
    requester = begun(1, 1, 1)
    ack(requester, 1, syndrome)
    assert f"0x{syndrome:x}" in requester.error
    assert post(requester, 1) == [False]
    assert sent(requester) == []
    assert requester.next_timer_ps() is None
    before = requester.error
    ack(requester, 1, NAK_SEQUENCE)
    requester.stop("something else")
    assert requester.error == before
    assert requester.counts["tx_refused"] == 1


def test_the_queue_is_bounded_and_takes_messages_whole() -> None:
    requester = Requester(PSN, RULES)
    assert post(requester, *[1] * 14) == [True] * 14
    assert post(requester, 768, 512, 1) == [False, True, False]
    assert requester.counts["tx_refused"] == 2
    assert len(requester.outgoing(0)) == 8
    assert requester.outgoing(0) == []
    ack(requester, 2)
    assert post(requester, 768, 1) == [True, False]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("path_mtu", 1000), ("timeout", 0), ("timeout", 32), ("retry_cnt", 8)),
        *(("rnr_retry", -1), ("min_rnr_timer", 32), ("queue_packets", 0), ("window_packets", 17)),
    ],
)
def test_impossible_attributes_are_refused(name: str, value: int) -> None:
    with pytest.raises(LinkError, match=name):
        replace(RULES, **{name: value})


def test_times_and_sizes_of_the_specification() -> None:
    assert ack_timeout_ps(14) == 67_108_864_000
    assert (len(RNR_WAIT_PS), RNR_WAIT_PS[0], RNR_WAIT_PS[12]) == (32, 655_360_000_000, 640_000_000)
    assert RNR_WAIT_PS[31] == 491_520_000_000
    assert list(RNR_WAIT_PS[1:]) == sorted(RNR_WAIT_PS[1:])
    assert [path_mtu(size) for size in (256, 1023, 1500, 4096, 9000)] == [
        256,
        512,
        1024,
        4096,
        4096,
    ]
    for wrong in (0, 32):
        with pytest.raises(WireError):
            ack_timeout_ps(wrong)
    with pytest.raises(WireError):
        path_mtu(255)


@pytest.mark.parametrize(
    ("size", "opcodes", "with_imm"),
    [
        (0, [0x0A], [0x0B]),
        (256, [0x0A], [0x0B]),
        (257, [0x06, 0x08], [0x06, 0x09]),
        (1000, [0x06, 0x07, 0x07, 0x08], [0x06, 0x07, 0x07, 0x09]),
    ],
)
def test_messages_are_split_at_the_path_mtu(
    size: int, opcodes: list[int], with_imm: list[int]
) -> None:
    target, payload = Target(9, 0xAB, 0x1000, 2048), bytes(range(250)) * 4
    for flag, wanted in ((False, opcodes), (True, with_imm)):
        packets = write_packets(target, PSN + 2, 3, payload[:size], 256, with_imm=flag)
        assert [p.bth.opcode for p in packets] == wanted
        assert [p.bth.psn for p in packets] == [(PSN + 2 + k) % 2**24 for k in range(len(wanted))]
        assert b"".join(p.payload for p in packets) == payload[:size]
        assert packets[0].reth == (0x1000 + 3 * 2048, 0xAB, size)
        assert all(p.reth is None for p in packets[1:])
        imms = [p.imm for p in packets]
        last_psn = (PSN + 1 + len(wanted)) & 0xFFFFF
        assert imms == [None] * (len(wanted) - 1) + [last_psn << 12 | 3 if flag else None]
        assert packets[-1].bth.pad == -size % 4
    sends = [p.bth.opcode for p in send_packets(9, 0, payload[:size], 256)]
    assert sends == [{0x0A: 4, 0x06: 0, 0x07: 1, 0x08: 2}[op] for op in opcodes]
