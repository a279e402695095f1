"""Addresses and numbers on the command line, and what permits to leave this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from hil.errors import UsageError

TokenFile: TypeAlias = Annotated[
    Path | None, typer.Option(help="File with the shared token, in place of HIL_TOKEN.")
]
Remote: TypeAlias = Annotated[
    bool, typer.Option("--allow-remote", help="Permit addresses outside this machine.")
]


def host_and_port(text: str, option: str, default_port: int | None = None) -> tuple[str, int]:
    """Host and port of ``HOST:PORT``, or of ``HOST`` where there is a default port.

    Raises:
        UsageError: it is neither, or no port; the host is checked by who uses it.
    """
    host, colon, port = text.rpartition(":") if ":" in text else (text, "", "")
    if not colon and default_port is not None:
        return host, default_port
    if not host or not port.isascii() or not port.isdigit() or int(port) > 0xFFFF:
        raise UsageError(
            "not an address with a port",
            where=option,
            got=text,
            allowed="HOST:PORT, such as 127.0.0.1:47910",
        )
    return host, int(port)


def number(value: str | int) -> int:
    """A number, also in hex (a default is one already).

    Raises:
        UsageError: it is none.
    """
    try:
        return int(str(value), 0)
    except ValueError:
        raise UsageError("not a number", got=str(value), allowed="digits, or 0x and hex") from None
