"""Completion of values that are not files."""

from __future__ import annotations

from pathlib import Path

import typer


def racks(incomplete: str) -> list[str]:
    """Shipped rack profiles."""
    from hil.scenario.rack_profile import profile_names

    return [name for name in profile_names() if name.startswith(incomplete)]


def profiles(context: typer.Context, incomplete: str) -> list[str]:
    """Bind profiles of the scenario (or of the first of them) on the command line; never fails."""
    given = context.params.get("scenario") or context.params.get("files") or context.args
    first = given[0] if isinstance(given, list | tuple) and given else given
    if not isinstance(first, str | Path):
        return []
    from hil.scenario.text import read_document

    try:
        data = read_document(Path(first).read_text(encoding="utf-8"), str(first)).data
    except (OSError, UnicodeDecodeError):
        return []
    for key in ("bind", "profiles"):
        data = data.get(key) if isinstance(data, dict) else None
    names = map(str, data) if isinstance(data, dict) else ()
    return [name for name in names if name.startswith(incomplete)]
