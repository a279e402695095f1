"""Live loopback: a real node process with decode workers, frames through real sockets."""

from __future__ import annotations

import functools
import itertools
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import stim

from gpu_decoder.build import build_decoder
from gpu_decoder.protocol import GlobalDecoder, Reason
from hil.errors import LinkError, NodeError, UsageError
from hil.link.endpoint import Endpoint
from hil.link.faults import FaultPlan, Faulty
from hil.node.client import Exchange, NodeLostError, Plan, RackClient
from hil.node.config import HOPS, NodeConfig
from hil.node.exchange import concatenate
from hil.node.shots import NO_REPLY, Answerer
from hil.timebase import MISSING_PS, PS_PER_MS, PS_PER_S, PS_PER_US, monotonic_ps
from hil.wire.rpc import Status
from hil.wire.rpc_batch import (
    build_enqueue_batch,
    build_get_batch,
    ptp_from_ns_array,
    split_blocks,
)

pytestmark = pytest.mark.live

EPOCH, BOARDS = 3, 1
MARGIN_PS = 30 * PS_PER_MS
_pairs = itertools.count(1, 2)


@functools.cache
def experiment() -> tuple[str, tuple[tuple[int, ...], ...], np.ndarray]:
    """Detector error model, blocks and 600 shots of a d = 3 memory experiment."""
    circuit = stim.Circuit.generated(
        "surface_code:rotated_memory_z",
        distance=3,
        rounds=3,
        after_clifford_depolarization=0.02,
        before_measure_flip_probability=0.02,
    )
    model = circuit.detector_error_model(decompose_errors=True)
    times = [int(c[2]) for _, c in sorted(circuit.get_detector_coordinates().items())]
    blocks = tuple(
        tuple(i for i, t in enumerate(times) if t == block) for block in range(max(times) + 1)
    )
    shots = circuit.compile_detector_sampler(seed=11).sample(600, bit_packed=True)
    return str(model), blocks, shots


def expected(kind: str) -> np.ndarray:
    model, _, shots = experiment()
    return build_decoder(kind, model).decode_batch(shots).predictions_b8


def config(**changes: object) -> NodeConfig:
    model, blocks, _ = experiment()
    pid, pair = os.getpid(), next(_pairs)
    fields: dict[str, object] = {
        "rack_address": f"127.12.{pid % 250}.{pair}",
        "node_address": f"127.12.{pid % 250}.{pair + 1}",
        "ring_slots": 1024,
        "block_detectors": blocks,
        "n_observables": 1,
        "epoch": EPOCH,
        "board_mask": BOARDS,
        "dem_text": model,
        "primary": "pymatching_corr",
        "mode": "measure",
        "deadline_ps": PS_PER_S,
    }
    return NodeConfig.create(**{**fields, **changes})


def plan_of(first: int, n: int, start_ps: int, period_ps: int) -> Plan:
    """Shots ``first .. first + n``, one frame every ``period_ps``, from ``start_ps`` on."""
    _, blocks, shots = experiment()
    r = len(blocks)
    sizes = np.array([len(block) for block in blocks])
    counters = (first + np.arange(n))[:, None] * (r + 1) + np.arange(r + 1)
    t_send_ps = start_ps + (counters[:, :r] - counters[0, 0]) * period_ps
    stamps = ptp_from_ns_array(t_send_ps // 1000)
    common = {"epoch": EPOCH, "board_mask": BOARDS, "valid_until_round": r}
    enqueue = build_enqueue_batch(
        split_blocks(shots[first : first + n], sizes),
        sizes,
        counters=counters[:, :r].astype(np.uint64),
        ptp_timestamps=stamps,
        **common,
    )
    get = build_get_batch(counters[:, r].astype(np.uint64), stamps[:, -1], return_size=1, **common)
    return Plan(first, enqueue, get, t_send_ps)


def plans_of(n: int, parts: int, period_ps: int) -> Iterator[Plan]:
    """``n`` shots in equal parts, seamless in time."""
    messages = len(experiment()[1]) + 1
    size = n // parts
    start_ps = monotonic_ps() + MARGIN_PS
    for part in range(parts):
        yield plan_of(part * size, size, start_ps + part * size * messages * period_ps, period_ps)


def run(rack: RackClient, plans: Iterable[Plan]) -> Exchange:
    return concatenate(list(rack.stream(plans)))


def gone(pids: Iterable[int], within_s: float = 2.0) -> bool:
    """True when no such process runs any more (a zombie that nobody reaps yet is dead)."""
    until = time.monotonic() + within_s
    left = set(pids)
    while left and time.monotonic() < until:
        left = {pid for pid in left if _runs(pid)}
        time.sleep(0.02)
    return not left


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def test_every_shot_is_answered_and_answers_equal_the_batch_decoder() -> None:
    with RackClient(config(fallback="pymatching")) as rack:
        found = run(rack, plans_of(300, 3, 700 * PS_PER_US))
        pids = [rack.node_pid, *rack.worker_pids]
        prints = rack.fingerprints()
        with pytest.raises(UsageError, match="takes no whole shots"):
            rack.predecode(np.zeros(found.prediction_b8.shape[1], np.uint8))
        node = rack.close()
        rack_side = rack.counters()
    assert gone(pids)
    assert (found.path == Answerer.PRIMARY).all()
    assert (found.status_code == 0).all()
    np.testing.assert_array_equal(found.prediction_b8, expected("pymatching_corr")[:300])
    np.testing.assert_array_equal(found.primary_prediction_b8, found.prediction_b8)
    np.testing.assert_array_equal(found.fallback_prediction_b8, expected("pymatching")[:300])
    assert (found.executed_primary == GlobalDecoder.PYMATCHING_CORR).all()
    assert (found.executed_fallback == GlobalDecoder.PYMATCHING).all()
    assert prints["primary"]["decoder"] == "pymatching_corr"
    events = np.unpackbits(experiment()[2][:300], axis=1).sum(axis=1)
    np.testing.assert_array_equal(found.n_events, events)
    stamps = [found.t_tx_ps, found.t_rx_ps, found.t_visible_ps]
    assert all((b >= a).all() for a, b in itertools.pairwise(stamps))
    answer = [
        *(found.t_visible_ps[:, -1], found.t_decode_start_ps, found.t_decode_end_ps),
        *(found.t_reply_tx_ps, found.t_reply_rx_ps),
    ]
    assert all((b >= a).all() for a, b in itertools.pairwise(answer))
    assert not found.lost.any()
    assert not found.refused.any()
    blocks = len(experiment()[1])
    assert (rack_side["frames_sent"], rack_side["reply_ok"]) == (300 * blocks, 300 * (blocks + 1))
    assert node["received"] == 300 * (blocks + 1)
    troubles = ("gaps", "lost", "duplicate", "reordered", "stale", "link.rx_busy")
    assert {name: node[name] for name in troubles} == dict.fromkeys(troubles, 0)


def answerable(arrivals: np.ndarray, shots: int, per_shot: int) -> np.ndarray:
    """Which shots can be answered, by the order of arrival alone: bool [shots]."""
    seen: dict[int, set[int]] = {}
    newest, whole = -1, set()
    for counter in arrivals.tolist():
        shot, block = divmod(counter, per_shot)
        blocks = seen.setdefault(shot, set())
        if block == per_shot - 1 or (shot >= newest and shot not in whole):
            blocks.add(block)
        newest = max(newest, shot)
        if set(range(per_shot - 1)) <= blocks:
            whole.add(shot)
    complete = [seen.get(shot, set()) >= set(range(per_shot)) for shot in range(shots)]
    return np.array(complete)


def test_lost_copied_and_reordered_frames_are_counted_and_never_assembled() -> None:
    shots, per_shot = 240, len(experiment()[1]) + 1
    faults = FaultPlan.seeded(
        5, shots * per_shot, drop=10, duplicate=10, reorder=10, flip=4, max_delay=7
    )
    made = config(answer_timeout_ps=PS_PER_S // 2, gap_timeout_ps=PS_PER_S // 4)
    with RackClient(made, wrap=lambda inner: Faulty(inner, faults)) as rack:
        found = run(rack, plans_of(shots, 2, 700 * PS_PER_US))
        node = rack.close()
        rack_side = rack.counters()
    good = answerable(faults.arrivals(shots * per_shot), shots, per_shot)
    assert 0 < np.count_nonzero(~good) <= 24
    np.testing.assert_array_equal(found.path != Answerer.UNANSWERED, good)
    np.testing.assert_array_equal(
        found.prediction_b8[good], expected("pymatching_corr")[:240][good]
    )
    assert set(found.reason[~good].tolist()) == {int(Reason.TRANSPORT_LOSS)}
    assert set(found.status_code[~good].tolist()) <= {int(Status.SYNDROMES_DROPPED), NO_REPLY}
    assert (found.prediction_b8[~good] == 0).all()
    counts = {name: node[name] for name in ("lost", "duplicate", "reordered", "link.drop_icrc")}
    assert counts == {"lost": 14, "duplicate": 10, "reordered": 10, "link.drop_icrc": 4}
    gone_frames = {*faults.drop, *faults.flip}
    assert found.lost.sum() == sum(frame % per_shot != per_shot - 1 for frame in gone_frames)
    lost_gets = [frame for frame in gone_frames if frame % per_shot == per_shot - 1]
    assert rack_side.get("answers_missing", 0) == len(lost_gets)


def test_a_full_ring_answers_busy_and_recovers() -> None:
    stall = {"stalls_ps": {20: 80 * PS_PER_MS}}
    with RackClient(config(ring_slots=15, delays=stall)) as rack:
        found = run(rack, plans_of(120, 1, 700 * PS_PER_US))
        node = rack.close()
    answered = found.path == Answerer.PRIMARY
    refused = found.reason == Reason.QUEUE_FULL
    assert (answered | refused).all()
    assert refused[21:40].any()
    assert answered[-60:].any(), "slots come free again"
    np.testing.assert_array_equal(
        found.prediction_b8[answered], expected("pymatching_corr")[:120][answered]
    )
    assert node["busy"] >= found.refused.sum() > 0
    assert set(found.status_code[refused].tolist()) == {int(Status.BUSY)}
    assert node["lost"] == 0, "refused is not lost"


def test_a_stalled_primary_leads_to_fallbacks_or_declared_shots_never_to_silence() -> None:
    policy = {
        "mode": "decide",
        "fallback": "pymatching",
        "primary_deadline_ps": 100 * PS_PER_MS,
        "primary_pred_ps": PS_PER_MS,
        "deadline_ps": 800 * PS_PER_MS,
        "fallback_pred": ((0, PS_PER_MS),),
        "delays": {"stalls_ps": {20: 250 * PS_PER_MS}},
    }
    with RackClient(config(**policy)) as rack:
        found = run(rack, plans_of(80, 1, 1500 * PS_PER_US))
        rack_side = rack.counters()
    assert "answers_missing" not in rack_side
    assert (found.status_code != NO_REPLY).all()
    assert found.path[20] in (Answerer.FALLBACK, Answerer.UNANSWERED)
    assert found.reason[20] == Reason.DEADLINE
    assert (found.path[20:] == Answerer.FALLBACK).any()
    for path, kind in ((Answerer.PRIMARY, "pymatching_corr"), (Answerer.FALLBACK, "pymatching")):
        mine = found.path == path
        np.testing.assert_array_equal(found.prediction_b8[mine], expected(kind)[:80][mine])
    assert found.primary_end_ps[20] - found.primary_start_ps[20] >= 250 * PS_PER_MS
    declared = found.path == Answerer.UNANSWERED
    assert set(found.status_code[declared].tolist()) <= {int(Status.DEADLINE_MISSED)}
    assert (found.t_decode_end_ps[declared] == MISSING_PS).all()
    assert (found.path[-20:] == Answerer.PRIMARY).any(), "the primary is back"


def test_a_killed_node_is_noticed_and_leaves_no_process() -> None:
    with RackClient(config(fallback="pymatching")) as rack:
        pids = [rack.node_pid, *rack.worker_pids]
        done: list[Exchange] = []
        killed_ps: list[int] = []

        def kill_after_the_first_exchange() -> None:
            for exchange in rack.stream(plans_of(160, 4, 700 * PS_PER_US)):
                done.append(exchange)
                if len(done) == 1:
                    os.kill(rack.node_pid, signal.SIGKILL)
                    killed_ps.append(monotonic_ps())

        with pytest.raises(NodeLostError, match="decoder node died") as caught:
            kill_after_the_first_exchange()
        assert monotonic_ps() - killed_ps[0] < PS_PER_S // 2
        assert rack.close() == {}
    assert gone(pids)
    partial = caught.value.partial
    assert partial is not None
    assert partial.first_shot == 40
    known = concatenate([*done, partial])
    answered = known.path == Answerer.PRIMARY
    assert answered[:40].all()
    assert not answered.all()
    assert (known.reason[~answered] == Reason.DEVICE_LOST).all()
    assert (known.path[~answered] == Answerer.UNANSWERED).all()
    truth = expected("pymatching_corr")[: known.n_shots]
    np.testing.assert_array_equal(known.prediction_b8[answered], truth[answered])
    assert "exit code -9" in str(caught.value)


def test_sigterm_ends_the_node_with_its_workers() -> None:
    with RackClient(config()) as rack:
        pids = [rack.node_pid, *rack.worker_pids]
        os.kill(rack.node_pid, signal.SIGTERM)
        assert gone(pids)
        with pytest.raises(NodeLostError, match="exit code 143"):
            run(rack, plans_of(10, 1, PS_PER_MS))


PARENT = """
    import sys, time
    from hil.node.client import RackClient
    from hil.node.config import NodeConfig
    with RackClient(NodeConfig.from_json(sys.stdin.readline())) as rack:
        print(rack.node_pid, *rack.worker_pids, flush=True)
        time.sleep(60)
"""


def test_a_killed_rack_takes_node_and_workers_with_it() -> None:
    made = config(fallback="pymatching")
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PARENT)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        parent.stdin.write(made.model_dump_json() + "\n")
        parent.stdin.flush()
        pids = [int(word) for word in parent.stdout.readline().split()]
        assert len(pids) == 3
        assert all(_runs(pid) for pid in pids)
        maps = Path(f"/proc/{pids[0]}/maps").read_text()
        stamps = [line for line in maps.splitlines() if "hil-stamps-" in line]
        assert stamps
        assert all(line.endswith("(deleted)") for line in stamps), "no file is left behind"
        parent.kill()
    assert gone(pids, within_s=2.0)


def _spoilt(inner: Endpoint, datagram: bytes) -> Iterator[bytes]:
    """Copies of a good write-with-immediate, each wrong in one way that the link must see."""
    changes = {
        "opcode": (0, b"\x2c"),
        "pkey": (2, b"\x12\x34"),
        "qp": (5, bytes([datagram[5] ^ 1])),
        "va": (12, b"\x7f"),
        "rkey": (20, bytes([datagram[20] ^ 1])),
        "imm": (28, bytes([datagram[28] ^ 1])),
        "magic": (32, b"\x00"),
    }
    for place, value in changes.values():
        copy = bytearray(datagram)
        copy[place : place + len(value)] = value
        inner.seal(copy)
        yield bytes(copy)
    yield datagram[:-1] + bytes([datagram[-1] ^ 1])  # ICRC
    yield datagram[:14]  # length


def test_garbage_is_counted_by_cause_and_disturbs_no_shot() -> None:
    every = 40
    posted = itertools.count()

    def wrap(inner: Endpoint) -> Endpoint:
        def stage(datagram: bytes) -> Iterator[bytes]:
            yield datagram
            if next(posted) % every == 0:
                yield from _spoilt(inner, datagram)

        inner.intercept(stage)
        return inner

    made = config()
    with RackClient(made, wrap=wrap) as rack, socket.socket(type=socket.SOCK_DGRAM) as stranger:
        stranger.bind((made.rack_address, 0))
        for size in (0, 3, 100):
            stranger.sendto(bytes(size), (made.node_address, made.udp_port))
        found = run(rack, plans_of(80, 1, 700 * PS_PER_US))
        node = rack.close()
    assert (found.path == Answerer.PRIMARY).all()
    np.testing.assert_array_equal(found.prediction_b8, expected("pymatching_corr")[:80])
    times = 80 * (len(experiment()[1]) + 1) // every
    causes = ("opcode", "pkey", "qp", "bounds", "rkey", "imm", "icrc", "length")
    assert {cause: node[f"link.drop_{cause}"] for cause in causes} == dict.fromkeys(causes, times)
    assert node["link.drop_peer"] == 3
    assert node["bad_magic"] == times


def test_a_known_delay_shows_on_its_hop_only() -> None:
    """From a certain shot on each hop gets +1 ms for good; each step must show on its hop alone.

    A pure delay moves every quantile alike; a busy machine moves the low ones least. So lower
    deciles are compared, with a tolerance of half the delay.
    """
    part, delay_ps = 30, PS_PER_MS
    delays: dict[str, object] = {f"{hop}_ps": delay_ps for hop in HOPS}
    delays["from_shot"] = {hop: part * (i + 1) for i, hop in enumerate(HOPS)}
    patient = config(delays=delays, ring_slots=4096, gap_timeout_ps=5 * PS_PER_S)  # of pauses
    with RackClient(patient) as rack:
        found = run(rack, plans_of(part * (len(HOPS) + 1), 1, 2500 * PS_PER_US))
    assert (found.path == Answerer.PRIMARY).all(), np.unique(found.reason, return_counts=True)
    visible_ps = found.t_visible_ps[:, -1]
    hops_ps = {
        "uplink": found.t_rx_ps[:, -1] - found.t_tx_ps[:, -1],
        "deliver": visible_ps - found.t_rx_ps[:, -1],
        "queue": found.t_decode_start_ps - visible_ps,
        "decode": found.t_decode_end_ps - found.t_decode_start_ps,
        "reply": found.t_reply_tx_ps - found.t_decode_end_ps,
        "downlink": found.t_reply_rx_ps - found.t_reply_tx_ps,
    }
    for name, values_ps in hops_ps.items():
        steps = np.diff(np.quantile(values_ps.reshape(len(HOPS) + 1, part), 0.1, axis=1))
        wanted = np.array([delay_ps if hop == name else 0 for hop in HOPS])
        assert (np.abs(steps - wanted) < delay_ps / 2).all(), (name, (steps / 1e6).round())


def test_a_node_that_cannot_build_its_decoder_says_so() -> None:
    broken = config().model_copy(update={"dem_text": "error(0.1) D0 D1 D2"})
    with pytest.raises(NodeError, match="cannot build its decoder"):
        RackClient(broken)


def test_a_taken_port_is_refused_before_anything_starts() -> None:
    made = config()
    with socket.socket(type=socket.SOCK_DGRAM) as owner:
        owner.bind((made.rack_address, made.udp_port))
        with pytest.raises(LinkError, match="taken"):
            RackClient(made)
