"""Rules of the rack: ids exist, every check has one channel, stages form one chain."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias

from hil.scenario.model import LinksSpec, QpuSpec, RackSpec, UserCircuit
from hil.scenario.problems import Problem, did_you_mean
from hil.scenario.text import Document, Path

_RACK: Final = ("system", "rack")
_CHANNEL: Final = re.compile(
    r"(?P<kind>x_check|z_check|data)\[(?:(?P<one>\d+)|(?P<start>\d+)?:(?P<stop>\d+)?)\]"
)


Kind: TypeAlias = Literal["x_check", "z_check"]
_KINDS: Final[tuple[Kind, ...]] = ("x_check", "z_check")


@dataclass(frozen=True, slots=True)
class ChannelRange:
    """Checks ``start`` to ``stop`` (half open) of one kind."""

    kind: Kind
    start: int
    stop: int


def channel_ranges(text: str, checks: Mapping[str, int]) -> list[ChannelRange]:
    """Read ``x_check[0:12]``, ``x_check[3]``, ``x_check[:]`` or ``all``.

    Args:
        text: one channel text of a board.
        checks: number of checks of each kind; all checks of a kind without any are no checks.

    Raises:
        ValueError: not of this form.
        IndexError: beyond the number of checks.
    """
    if text == "all":
        return [ChannelRange(kind, 0, checks[kind]) for kind in _KINDS]
    match = _CHANNEL.fullmatch(text)
    if match is None or match["kind"] == "data":
        raise ValueError(text)
    kind: Kind = "x_check" if match["kind"] == "x_check" else "z_check"
    if match["one"] is not None:
        start, stop = int(match["one"]), int(match["one"]) + 1
    else:
        start = int(match["start"] or 0)
        stop = int(match["stop"]) if match["stop"] is not None else checks[kind]
    if not 0 <= start < stop <= checks[kind] and text != f"{kind}[:]":
        raise IndexError(text)
    return [ChannelRange(kind, start, stop)]


def check_rack(rack: RackSpec, qpu: QpuSpec | None, document: Document) -> Iterator[Problem]:
    """All rules of one rack."""
    roles = list(_check_roles(rack, document))
    ids = list(_check_ids(rack, document))
    yield from roles
    yield from ids
    if qpu is not None:
        yield from _check_channels(rack, qpu.circuit.checks, document)
        if isinstance(qpu.circuit, UserCircuit):
            yield from _check_layout(rack, qpu.circuit, document)
    if not roles and not ids:
        yield from _check_chain(rack, document)


def _unknown(document: Document, path: Path, kind: str, name: str, known: Sequence[str]) -> Problem:
    return document.problem(
        "E401",
        path,
        f"unknown {kind} '{name}'",
        got=name,
        allowed=", ".join(known),
        fix=did_you_mean(name, known) or "choose one of these",
    )


def _check_roles(rack: RackSpec, document: Document) -> Iterator[Problem]:
    for role, allowed in (("readout", "at least one"), ("aggregate", "exactly one")):
        count = sum(board.role == role for board in rack.boards.values())
        if count == 0 or (role == "aggregate" and count > 1):
            yield document.problem(
                "E512",
                (*_RACK, "boards"),
                f"number of {role} boards",
                got=str(count),
                allowed=allowed,
                fix=f"write {allowed} board with role: {role}",
                key=True,
            )


def _check_ids(rack: RackSpec, document: Document) -> Iterator[Problem]:
    for name, board in rack.boards.items():
        path = (*_RACK, "boards", name)
        if board.clock not in rack.clocks:
            yield _unknown(document, (*path, "clock"), "clock", board.clock, list(rack.clocks))
        for i, other in enumerate(board.inputs):
            if other not in rack.readout_boards:
                yield _unknown(
                    document, (*path, "inputs", str(i)), "readout board", other, rack.readout_boards
                )
        unheard = [other for other in rack.readout_boards if other not in board.inputs]
        if board.role == "aggregate" and unheard:
            yield document.problem(
                "E512",
                (*path, "inputs"),
                f"readout board '{unheard[0]}' leads nowhere",
                got=", ".join(board.inputs),
                allowed="every readout board",
                fix=f"add {unheard[0]}",
            )
    for name, stage in rack.stages.items():
        for i, board_id in enumerate(stage.at):
            if board_id not in rack.boards:
                here = (*_RACK, "stages", name, "at", str(i))
                yield _unknown(document, here, "board", board_id, list(rack.boards))


def _check_channels(
    rack: RackSpec, checks: Mapping[str, int], document: Document
) -> Iterator[Problem]:
    owners: dict[tuple[str, int], str] = {}
    broken = False
    for name, board in rack.boards.items():
        for i, text in enumerate(board.channels):
            path = (*_RACK, "boards", name, "channels")
            here = (*path, str(i)) if (*path, str(i)) in document.values else path
            ranges, problem = _read_channels(document, here, text, checks)
            if problem is not None:
                broken = True
                yield problem
            for part in ranges:
                yield from _claim(document, here, name, part, owners)
    missing = [
        f"{kind}[{i}]" for kind in _KINDS for i in range(checks[kind]) if (kind, i) not in owners
    ]
    if missing and not broken:
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        yield document.problem(
            "E508",
            (*_RACK, "boards"),
            "channel claimed by nobody",
            got=f"{len(missing)} of {sum(checks.values())} checks without a board: {shown}",
            allowed="each check on exactly one readout board",
            fix=f"add {missing[0]} to a readout board",
            key=True,
        )


def _read_channels(
    document: Document, path: Path, text: str, checks: Mapping[str, int]
) -> tuple[list[ChannelRange], Problem | None]:
    try:
        return channel_ranges(text, checks), None
    except IndexError:
        kind = text.partition("[")[0]
        return [], document.problem(
            "E404",
            path,
            "index outside",
            got=text,
            allowed=f"0 to {checks[kind] - 1}; a range is half open and not empty"
            if checks[kind]
            else f"{kind}[:], as the code has no such checks",
            fix="use [:] for all checks of one kind",
        )
    except ValueError:
        if text.startswith("data["):
            what, code = "not yet supported: channels of data qubits", "E207"
        else:
            what, code = "not a channel", "E204"
        return [], document.problem(
            code,
            path,
            what,
            got=text,
            allowed="x_check[i], x_check[a:b], x_check[:], z_check likewise, all",
            fix='write "x_check[:]"',
        )


def _claim(
    document: Document,
    path: Path,
    board: str,
    part: ChannelRange,
    owners: dict[tuple[str, int], str],
) -> Iterator[Problem]:
    """Note the owner of each channel; the first doubly claimed one is reported."""
    clashes = [
        f"{part.kind}[{i}] by {owners[part.kind, i]} and {board}"
        for i in range(part.start, part.stop)
        if (part.kind, i) in owners
    ]
    owners.update(dict.fromkeys(((part.kind, i) for i in range(part.start, part.stop)), board))
    if clashes:
        yield document.problem(
            "E508",
            path,
            "channel claimed twice",
            got=clashes[0],
            allowed="each check on exactly one readout board",
            fix="remove it from one of them",
        )


def _check_layout(rack: RackSpec, circuit: UserCircuit, document: Document) -> Iterator[Problem]:
    """Boards that a layout names are readout boards; the first unknown one is reported."""
    for detector, (board, _) in enumerate(circuit.readout):
        if board not in rack.readout_boards:
            found = _unknown(
                document,
                ("system", "qpu", "circuit", "layout"),
                "readout board",
                board,
                rack.readout_boards,
            )
            yield replace(found, got=f"{board}, for detector D{detector}")
            return


def _check_chain(rack: RackSpec, document: Document) -> Iterator[Problem]:
    """Readout stages, then stages of the aggregator, then packetize, then apply."""
    path = (*_RACK, "stages")
    for name in ("packetize", "apply"):
        if name not in rack.stages:
            yield document.problem(
                "E202",
                (*path, name),
                f"missing key '{name}'",
                got=", ".join(rack.stages),
                allowed="stages end with packetize, apply",
                fix=f"write {name}",
                key=True,
            )
            return
    if tuple(rack.stages)[-2:] != ("packetize", "apply"):
        yield document.problem(
            "E512",
            path,
            "stages do not end with packetize, apply",
            got=", ".join(rack.stages),
            allowed="..., packetize, apply",
            fix="move packetize and apply to the end",
            key=True,
        )
        return
    yield from _check_places(rack, document)


def _check_places(rack: RackSpec, document: Document) -> Iterator[Problem]:
    path = (*_RACK, "stages")
    readout, aggregate = set(rack.readout_boards), {rack.aggregate_board}
    joined = False
    for name, stage in rack.stages.items():
        boards = set(stage.at)
        last = name in {"packetize", "apply"}
        if boards == aggregate:
            if not joined and not _any_before(rack, name, readout):
                yield document.problem(
                    "E512",
                    (*path, name, "at"),
                    "no stage on the readout boards before this one",
                    got=f"[{', '.join(stage.at)}]",
                    allowed="at least one stage at the readout boards first",
                    fix=f"write a stage at [{', '.join(rack.readout_boards)}]",
                )
                return
            joined = True
        elif boards != readout or joined or last:
            allowed = (
                f"[{rack.aggregate_board}]"
                if joined or last
                else f"all of [{', '.join(rack.readout_boards)}], or [{rack.aggregate_board}]"
            )
            yield document.problem(
                "E512",
                (*path, name, "at"),
                "stage on boards where the chain does not pass",
                got=f"[{', '.join(stage.at)}]",
                allowed=allowed,
                fix="readout stages run on every readout board, before those of the aggregator",
            )
            return


def _any_before(rack: RackSpec, name: str, boards: set[str]) -> bool:
    for other, stage in rack.stages.items():
        if other == name:
            return False
        if set(stage.at) == boards:
            return True
    return False


def check_links(links: LinksSpec, rack: RackSpec, document: Document) -> Iterator[Problem]:
    """Both links end at the aggregate board."""
    aggregators = [name for name, board in rack.boards.items() if board.role == "aggregate"]
    for name, end, board in (("up", "from", links.up.from_), ("down", "to", links.down.to)):
        if board not in aggregators:
            yield _unknown(
                document, ("system", "links", name, end), "aggregate board", board, aggregators
            )
