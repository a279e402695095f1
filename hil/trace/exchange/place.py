"""Sets of files that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hil.errors import UsageError


@contextmanager
def new_files(folder: Path, *names: str) -> Iterator[Path]:
    """A scratch folder whose files ``names`` move into ``folder`` once the block has ended well.

    They move in the order given, so the presence of the last one says that the set is whole. After
    an error nothing of the set is left.

    Args:
        folder: where the files shall be; made if only its last part is missing.
        names: the files, all to be written by the block.

    Raises:
        UsageError: one of the files exists already, or the folder cannot be made.
    """
    for name in names:
        if (folder / name).exists():
            raise UsageError(
                "exists already", where=str(folder / name), fix="remove it or name another folder"
            )
    made = not folder.exists()
    try:
        folder.mkdir(exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".part-", dir=folder))
    except OSError as error:
        raise UsageError("cannot be written to", where=str(folder), got=str(error)) from error
    moved: list[Path] = []
    try:
        yield scratch
        for name in names:
            with (scratch / name).open("rb") as handle:
                os.fsync(handle.fileno())
            moved.append((scratch / name).rename(folder / name))
    except BaseException:
        for path in moved:
            path.unlink()
        shutil.rmtree(scratch)
        if made:
            folder.rmdir()
        raise
    scratch.rmdir()
