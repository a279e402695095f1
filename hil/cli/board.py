"""``hil rack board``: registers of a sensor bridge (a real board, or an emulator of one)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from hil.cli.place import Remote, host_and_port, number
from hil.errors import UsageError

if TYPE_CHECKING:
    from hil.link.control_plane import ControlPlane

app = typer.Typer(no_args_is_help=True, help="Registers of a sensor bridge: set up, play, read.")

Address: TypeAlias = Annotated[str, typer.Option(help="HOST[:PORT] of the control plane.")]


def _board(address: str, *, allow_remote: bool) -> ControlPlane:
    from hil.link.control_plane import ControlPlane
    from hil.wire.ecb import PORT

    host, port = host_and_port(address, "--address", PORT)
    return ControlPlane(host, port, allow_remote=allow_remote)


@app.command()
def info(address: Address, *, allow_remote: Remote = False) -> None:
    """Print the version of the board's IP."""
    with _board(address, allow_remote=allow_remote) as board:
        typer.echo(f"IP version {board.version():#06x}")


@app.command()
def setup(
    address: Address,
    host: Annotated[str, typer.Option(help="IPv4 address of the receiver.")],
    mac: Annotated[str, typer.Option(help="MAC address of the receiver.")],
    qp: Annotated[int, typer.Option(parser=number, help="Its queue pair.")],
    rkey: Annotated[int, typer.Option(parser=number, help="Its memory key.")],
    va: Annotated[int, typer.Option(parser=number, help="Address of its slot 0.")],
    stride: Annotated[int, typer.Option(help="Bytes from slot to slot.")],
    slots: Annotated[int, typer.Option(help="Slots.")],
    window: Annotated[int, typer.Option(help="Bytes of a window.")],
    *,
    allow_remote: Remote = False,
) -> None:
    """Point the board's data plane at a receiver, such as one that `hil node serve` printed."""
    from hil.link.control_plane import DataPlane
    from hil.wire.roce import ROCE_PORT

    try:
        hardware = bytes.fromhex(mac.replace(":", ""))
    except ValueError:
        raise UsageError("not a MAC address", where="--mac", got=mac) from None
    plane = DataPlane(hardware, host, qp, rkey, va, stride, slots, window, source_port=ROCE_PORT)
    with _board(address, allow_remote=allow_remote) as board:
        board.version()
        board.set_up(plane)
    typer.echo(f"{window} B windows go to {host} QP {qp:#x}, {slots} slots of {stride} B")


@app.command()
def play(
    address: Address,
    folder: Annotated[Path, typer.Argument(help="What `hil export cudaq-config` wrote.")],
    first: Annotated[int, typer.Option(min=0, help="First shot of the load.")] = 0,
    period: Annotated[int, typer.Option(help="Host clocks from frame to frame.")] = 3220,
    *,
    loop: Annotated[bool, typer.Option("--loop", help="Again and again.")] = False,
    allow_remote: Remote = False,
) -> None:
    """Load as many shots as the player holds, read them back, play them."""
    from hil.run.export_cudaq import read_playback

    frames = read_playback(folder, first)
    with _board(address, allow_remote=allow_remote) as board:
        board.load(frames)
        board.play(period, frames.shape[1], loop=loop)
    typer.echo(f"{len(frames)} frames of {frames.shape[1]} B, from shot {first} on")


@app.command()
def ila(
    address: Address,
    *,
    arm: Annotated[bool, typer.Option("--arm", help="Clear it and let it record.")] = False,
    allow_remote: Remote = False,
) -> None:
    """Stop the analyser and print its frames, a time in ns and hex a line; or --arm it."""
    with _board(address, allow_remote=allow_remote) as board:
        if arm:
            board.arm()
            return
        for time_ns, frame in board.recorded().frames():
            typer.echo(f"{time_ns} {frame.hex()}")
