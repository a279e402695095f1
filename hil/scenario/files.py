"""Files that a scenario names, relative to its own folder."""

from __future__ import annotations

import hashlib
from typing import Final

from hil.scenario.fields import TextContext, problem

MAX_FILE_BYTES: Final = 16 << 20
"""Largest file that a scenario may name."""


def read_named(
    context: TextContext, name: str, key: str, *, most_bytes: int = MAX_FILE_BYTES
) -> tuple[bytes, str]:
    """Bytes and SHA-256 (lower-case hex) of the file ``name`` beside the scenario.

    Args:
        context: where relative names start.
        name: file name as written in the scenario.
        key: key of the model that holds the name, for messages.
        most_bytes: largest size.

    Raises:
        PydanticCustomError: E403 absent, not a plain file or too large; E207 placeholder.
    """
    if "{" in name:
        raise problem(
            "E207",
            "not yet supported: placeholders in file names",
            got=name,
            allowed="a plain file name",
            fix="write the name out",
            at=key,
        )
    path = context.folder / name
    try:
        if path.exists() and not path.is_file():  # a pipe or a device could be read for ever
            raise _unreadable(name, key, "not a plain file")
        if path.stat().st_size > most_bytes:
            raise _unreadable(name, key, f"more than {most_bytes >> 20} MiB")
        raw = path.read_bytes()
    except OSError as err:
        raise _unreadable(name, key, err.strerror or str(err)) from err
    except ValueError as err:
        if "null byte" not in str(err):
            raise
        raise _unreadable(name, key, "a name with a null byte") from err
    return raw, hashlib.sha256(raw).hexdigest()


def _unreadable(name: str, key: str, got: str) -> Exception:
    return problem(
        "E403",
        f"cannot read file '{name}'",
        got=got,
        allowed="a readable file, named relative to the scenario",
        fix="correct the name or add the file",
        at=key,
    )
