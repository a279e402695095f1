"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def write_whole(path: Path, data: bytes) -> None:
    """Write or replace a file; a reader sees the old content or the new, never a part.

    Raises:
        OSError: it cannot be written; the old file stays and no part of the new one is left.
    """
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    part = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.chmod(0o644)  # mkstemp keeps others out
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
