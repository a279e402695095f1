"""``hil rack stream``: the rack of a scenario alone, towards any node."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hil.cli.complete import profiles
from hil.cli.place import Remote, TokenFile, host_and_port, number

if TYPE_CHECKING:
    from hil.link.endpoint import PeerAddress
    from hil.node.remote import Attach, ForeignNode
    from hil.run.stream import Streamed


def stream(
    scenario: Annotated[Path, typer.Argument(help="Scenario file.", show_default=False)],
    to: Annotated[
        str, typer.Option(help="HOST:PORT: set-up port of `hil node serve`, or UDP with --qp.")
    ],
    bind: Annotated[
        str | None,
        typer.Option(help="Live profile instead of bind.use.", autocompletion=profiles),
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Change one value: path=value.")
    ] = None,
    own: Annotated[
        str | None, typer.Option("--from", help="Own address.  [default: network.rack_address]")
    ] = None,
    qp: Annotated[
        int | None, typer.Option(parser=number, help="Queue pair of a foreign node.")
    ] = None,
    rkey: Annotated[int, typer.Option(parser=number, help="Foreign node: memory key.")] = 0,
    va: Annotated[int, typer.Option(parser=number, help="Foreign node: address of slot 0.")] = 0,
    stride: Annotated[int, typer.Option(help="Foreign node: bytes from slot to slot.")] = 256,
    slots: Annotated[
        int | None, typer.Option(help="Foreign node: slots.  [default: decoder.ring.slots]")
    ] = None,
    psn: Annotated[int, typer.Option(help="Foreign node: first PSN that it expects.")] = 0,
    own_qp: Annotated[
        int | None,
        typer.Option(parser=number, help="Foreign node: our queue pair.  [default: random]"),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Summary as JSON.")] = None,
    token_file: TokenFile = None,
    *,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare every answer with our own decoder's.")
    ] = False,
    allow_remote: Remote = False,
) -> None:
    """Send SCENARIO's shots to a node that runs already; count and time its answers.

    Exit codes: 0 every shot was answered (with --verify: as our decoder does), 1 not, 2 usage or
    scenario error, 3 no session.
    """
    from functools import partial
    from secrets import randbelow

    from hil.link.endpoint import PeerAddress
    from hil.node.remote import Door, ForeignNode
    from hil.node.setup import read_token
    from hil.run import stream as streaming
    from hil.run.interrupt import Interrupt
    from hil.run.lab import Lab, Passport
    from hil.run.standalone import write_summary
    from hil.wire.roce import PSN_MASK

    passport = Passport(allow_remote, read_token(token_file))
    ring = [] if slots is None else [f"system.decoder.ring.slots={slots}"]
    lab = Lab.open(scenario, bind, [*(set_ or ()), *ring])
    host, port = host_and_port(to, "--to")
    own = own or lab.loaded.profile.network.rack_address
    passport.check(host, own)
    config = lab.exchange(rack=own, node=host, passport=passport)
    attach: Attach
    if qp is None:
        config = config.model_copy(update={"psn_start_down": randbelow(PSN_MASK + 1)})
        attach = partial(Door(host, port, passport.token).attach, config)
    else:  # the node was told our queue pair; replies of foreign nodes begin with PSN 0
        told = {"rack_qp": own_qp, "psn_start_down": 0, "reply_bytes": stride}
        config = config.model_copy(update=told)
        there = PeerAddress(host, port, qp, psn, rkey, va, stride, config.ring_slots)
        attach = partial(_foreign, there, ForeignNode)
    interrupt = Interrupt("\nended at once\n", "the stream")
    with interrupt.listening():
        result = streaming.stream(lab, config, attach, interrupt, verify=verify)
    _print(result)
    if out is not None:
        write_summary(out, result.summary(lab.scenario.id))
        typer.echo(f"summary:   {out}")
    raise typer.Exit(0 if result.complete else 1)


def _foreign(there: PeerAddress, node: type[ForeignNode], receiver: PeerAddress) -> ForeignNode:
    """A node that was told us by people; it must be told of us too."""
    typer.echo(
        f"replies:   to {receiver.host} UDP {receiver.port}, QP {receiver.qp:#x}, first PSN "
        f"{receiver.psn}"
    )
    return node(there)


def _print(result: Streamed) -> None:
    from hil.timebase import PS_PER_NS
    from hil.units import format_ps

    tally, told = result.tally, result.summary("")
    if result.lost:
        typer.echo(f"ended early: {result.lost}")
    for name, print_ in result.fingerprints.items():
        typer.echo(f"{name}:   {print_['decoder']}")
    typer.echo(f"answered:  {tally.answered} of {tally.shots} shots; "
               f"{', '.join(f'{k} {v}' for k, v in told['statuses'].items())}")  # fmt: skip
    typer.echo(f"correct:   {tally.answered - tally.failed}, wrong {tally.failed} (truth of the "
               "device model)")  # fmt: skip
    if tally.compared:
        typer.echo(f"compared:  {tally.unlike} of {tally.compared} unlike our own decoder's")
    figures = told["latency_ns"].items()
    times = ", ".join(f"{k} {format_ps(v * PS_PER_NS)}" for k, v in figures if k != "n")
    typer.echo(f"latency:   {times or 'no answer'}")
    held = "held its cadence" if tally.lateness.held else "DID NOT HOLD its cadence"
    typer.echo(f"sender:    {held}: {tally.lateness.words()}")
