"""``hil node``: the decoder node as a process of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hil.cli.complete import profiles
from hil.cli.place import Remote, TokenFile, host_and_port
from hil.errors import UsageError

app = typer.Typer(no_args_is_help=True, help="Decoder node: alone, for racks from anywhere.")


@app.callback()
def node() -> None:
    """Decoder node: alone, for racks from anywhere."""


@app.command()
def serve(
    scenario: Annotated[
        Path | None, typer.Argument(help="Scenario file.", show_default=False)
    ] = None,
    bind: Annotated[
        str | None,
        typer.Option(help="Live profile instead of bind.use.", autocompletion=profiles),
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Change one value: path=value.")
    ] = None,
    listen: Annotated[
        str, typer.Option(help="HOST:PORT of session set-ups (TCP); frames come to HOST too.")
    ] = "127.0.0.1:47910",
    rack: Annotated[
        str | None,
        typer.Option(help="Serve the foreign rack at HOST[:UDP PORT], without session set-up."),
    ] = None,
    rack_qp: Annotated[int, typer.Option(help="With --rack: queue pair of its replies.")] = 2,
    rack_psn: Annotated[int, typer.Option(help="With --rack: PSN of the first reply.")] = 0,
    psn: Annotated[int, typer.Option(help="With --rack: PSN that it begins with.")] = 0,
    sessions: Annotated[
        int | None, typer.Option(min=1, help="End after so many sessions.  [default: on Ctrl-C]")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Summary of all sessions as JSON.")] = None,
    token_file: TokenFile = None,
    *,
    allow_remote: Remote = False,
    config: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Serve SCENARIO's decoder to racks that come from anywhere, until Ctrl-C.

    Exit codes: 0, 2 usage or scenario error, 3 it could not serve.
    """
    if config is not None:
        raise typer.Exit(_serve_parent(config))
    if scenario is None:
        raise UsageError("a scenario is missing", fix="hil node serve SCENARIO")
    from hil.link.endpoint import PeerAddress
    from hil.node.lobby import Lobby
    from hil.node.setup import read_token
    from hil.run.interrupt import Interrupt
    from hil.run.lab import Lab, Passport
    from hil.run.standalone import REPLY_STRIDE, Standalone, write_summary

    passport = Passport(allow_remote, read_token(token_file))
    lab = Lab.open(scenario, bind, set_ or ())
    port = lab.scenario.system.links.up.udp_port
    host, tcp_port = host_and_port(listen, "--listen")
    there, their_port = host_and_port(rack, "--rack", port) if rack is not None else ("", 0)
    passport.check(host, *([there] if there else []))
    network = lab.loaded.profile.network
    away = there or (network.rack_address if network.rack_address != host else "127.0.0.2")
    exchange = lab.exchange(rack=away, node=host, passport=passport)
    if there:
        exchange = exchange.model_copy(update={"psn_start_up": psn}).checked()
    interrupt = Interrupt("\nended at once\n", "the node")
    served = Standalone(lab, exchange, typer.echo, interrupt, sessions)
    with interrupt.listening():
        if there:
            peer = PeerAddress(there, their_port, rack_qp, rack_psn, 0, 0, REPLY_STRIDE, 1)
            served.serve_foreign(peer)
        else:
            lobby = Lobby(host, tcp_port, passport.token)
            try:
                served.serve(lobby)
            finally:
                lobby.close()
    if out is not None:
        write_summary(out, served.summary())
    raise typer.Exit(3 if any(one.failed for one in served.sessions) else 0)


def _serve_parent(config: str) -> int:
    """The node process of a run: serve one rack until standard input ends."""
    from hil.node.server import main, read_launch

    try:
        line = read_launch() if config == "-" else Path(config).read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError("launch file cannot be read", where=config, got=str(error)) from error
    return main(line)
