"""Writes the report files of a run."""

from __future__ import annotations

import contextlib
from pathlib import Path

from hil.errors import RigError
from hil.report import html, json, junit
from hil.report.document import Document


def write_all(document: Document, directory: Path) -> dict[str, Path]:
    """Write ``report.json``, ``junit.xml`` and ``report.html`` into ``directory``.

    Returns:
        Name -> path. Files are replaced whole; writing the same document again changes no byte.

    Raises:
        RigError: a file cannot be written; those before it are whole, of it nothing is left.
    """
    directory.mkdir(parents=True, exist_ok=True)
    texts = {
        "report.json": json.render(document),
        "junit.xml": junit.render(document),
        "report.html": html.render(document),
    }
    out = {}
    for name, body in texts.items():
        path = directory / name
        partial = directory / f".{name}.part"
        try:
            partial.write_text(body, encoding="utf-8", newline="\n")
            partial.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise RigError(
                "the report cannot be written",
                where=str(path),
                got=str(error),
                fix="free space or choose another --out, and run again",
            ) from error
        out[name] = path
    return out
