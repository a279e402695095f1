"""``hil wire``: frames in words. Data go to stdout, remarks to stderr."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from hil.wire.frames import Entry

_PATIENCE = 20
"""Lines without a frame, from the start, after which a file is taken to hold none."""

app = typer.Typer(no_args_is_help=True, help="Look into captured frames.")


@app.callback()
def _wire() -> None:
    """Look into captured frames."""


@app.command()
def decode(
    file: Annotated[
        Path, typer.Argument(help="pcap, pcapng, or text with one frame of hex a line; - = stdin.")
    ],
) -> None:
    """Print one JSON object per frame: headers, ICRC, message, and why it would be dropped.

    Exit codes: 0, or 2 if the file cannot be read or holds no frame (none in the first 20 lines).
    """
    import sys

    from hil.errors import UsageError
    from hil.wire.frames import read_frames

    name = "standard input" if str(file) == "-" else str(file)
    try:
        with sys.stdin.buffer if str(file) == "-" else file.open("rb") as stream:
            good = _show_all(read_frames(stream, name))
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise UsageError(
            "cannot read the frames",
            where=name,
            got=error.strerror or str(error),
            allowed="a readable file, or - for standard input",
            fix="check the name",
        ) from error
    if not good:
        raise UsageError(
            "no frame found",
            where=name,
            allowed="pcap or pcapng of Ethernet, or one frame of hex a line",
            fix="give a capture, for example of hil run --pcap",
        )


def _show_all(entries: Iterable[Entry]) -> int:
    """Print entries; how many were frames."""
    good = 0
    for number, entry in enumerate(entries, start=1):
        good += _show(entry)
        if not good and number == _PATIENCE:
            break
    return good


def _show(entry: Entry) -> bool:
    """Print one entry; whether it was a frame."""
    from json import dumps

    from hil.wire.decode import decode as fields_of

    head: dict[str, object] = {entry.unit: entry.number}
    if entry.t_ns is not None:
        head["t_ns"] = entry.t_ns
    if entry.error:
        typer.echo(dumps(head | {"error": entry.error}))
        return False
    if entry.original_bytes > len(entry.frame):
        head["original_bytes"] = entry.original_bytes
    typer.echo(dumps(head | fields_of(entry.frame)))
    return True
