"""Reading a trace: final files, and live ones while their writer is at work.

``open_trace`` (public as ``hil.open_trace``) checks format and version, then serves columns as
numpy arrays, xarray datasets or pandas frames. A live file is read up to its commit ledger and
never beyond, so rows of one commit are seen together or not at all.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import h5py
import numpy as np
from numpy.typing import NDArray

from hil.errors import TraceError, UsageError
from hil.trace.column import Array, Block, Record
from hil.trace.extras import HopSummary, read_summary
from hil.trace.handles import open_file
from hil.trace.layout import COMMITS
from hil.trace.ledger import Ledger, read_ledger
from hil.trace.opening import plain, read_meta, root_attributes
from hil.trace.paths import PART_SUFFIX, final_path, is_live
from hil.trace.schema import NO_FIRST_ROW, STREAMS

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped]
    import xarray as xr


class Trace:
    """An open trace; use it as a context manager.

    Attributes:
        path: the file.
        live: whether it is a live file (``NAME.part.h5``), running or killed.
        attrs: root attributes as plain Python values.
        handles: the open file; for rules that look below the columns.
        meta: contents of ``/meta``: texts, decoded JSON, detector tables, links and boards.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.live = is_live(path)
        self.handles = open_file(path)
        self._file = self.handles.file
        try:
            self.attrs = root_attributes(self._file, path)
            self._ledger = read_ledger(self._commits())
            self.meta = read_meta(self._file)
        except BaseException:
            self.handles.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self.handles.close()

    # Identity.

    @property
    def run_id(self) -> str:
        """UUID of the run."""
        return str(self.attrs["run_id"])

    @property
    def problem_id(self) -> str:
        """SHA-256 of circuit, model, decoder and noise."""
        return str(self.attrs["problem_id"])

    @property
    def content_id(self) -> str:
        """SHA-256 of the content; empty for a live file."""
        return str(self.attrs.get("content_id", ""))

    @property
    def exit_status(self) -> str:
        """How the run ended; ``running`` for a live file."""
        return str(self.attrs["exit_status"])

    @property
    def level(self) -> str:
        """Bind level of the run: mil, sil, rtl, hil or import."""
        return str(self.attrs["level"])

    @property
    def record_level(self) -> str:
        """``rounds``, or ``shots`` where only kept shots have rows in /rounds."""
        return str(self.attrs["record_level"])

    @property
    def measured(self) -> bool:
        """Whether times come from a wall clock."""
        return bool(self.attrs["measured"])

    @property
    def pace(self) -> int:
        """Slow-down of the wall clock against scenario time; 0 where time is simulated."""
        return int(self.attrs["pace"])

    @property
    def n_rounds(self) -> int:
        """Rounds of a shot without the final data readout."""
        return int(self.attrs["n_rounds"])

    # Rows.

    @property
    def streams(self) -> tuple[str, ...]:
        """Names of the streams in this file, alphabetical."""
        final_only = () if self.live else tuple(n for n in ("expect",) if n in self._file)
        return tuple(sorted([*self._ledger.rows, *final_only]))

    @property
    def overflow(self) -> int:
        """Rows of all streams that were lost because the writer's queue was full."""
        return self._ledger.overflow

    @property
    def commits(self) -> int:
        """Number of commits."""
        return self._ledger.commits

    def rows(self, stream: str) -> int:
        """Committed rows of a stream."""
        if stream in self._ledger.rows:
            return self._ledger.rows[stream]
        return int(self._dataset(stream, "row").shape[0])

    def stream(
        self,
        stream: str,
        columns: Sequence[str] | None = None,
        start: int = 0,
        stop: int | None = None,
    ) -> Block:
        """Rows ``start`` to ``stop`` (committed ones only) of some or all columns.

        Args:
            stream: name of the stream.
            columns: column names, default all; enums come as uint8 codes (``enum_names``).
            start: first row.
            stop: row behind the last one, default all.

        Raises:
            TraceError: no such stream or column, or damaged data.
        """
        end = min(self.rows(stream), self.rows(stream) if stop is None else stop)
        out: Block = {}
        for name in self.columns(stream) if columns is None else columns:
            out[name] = self._read(stream, name, start, max(start, end))
        return out

    def iter_blocks(
        self, stream: str, columns: Sequence[str] | None = None, rows: int = 65_536
    ) -> Iterator[Block]:
        """The stream in pieces of at most ``rows`` rows."""
        for first in range(0, self.rows(stream), rows):
            yield self.stream(stream, columns, first, first + rows)

    def records(self, shots: int = 16_384) -> Iterator[Record]:
        """Whole shots with their rows of /rounds, /syndromes and /decodes.

        Each record has the form that the driver handed to the writer: ``first_round_row`` counts
        from the first row of /rounds in the same record.
        """
        total = self.rows("shots")
        at = {name: 0 for name in ("rounds", "decodes") if name in self._ledger.rows}
        for first in range(0, total, shots):
            record: Record = {"shots": self.stream("shots", None, first, first + shots)}
            last = int(record["shots"]["shot"][-1])
            for name, begin in list(at.items()):
                end = begin + self._rows_up_to(name, last, begin)
                record[name] = self.stream(name, None, begin, end)
                if name == "rounds":
                    record["shots"]["first_round_row"] = _moved(record["shots"], begin)
                    if "syndromes" in self._ledger.rows:
                        record["syndromes"] = self.stream("syndromes", None, begin, end)
                at[name] = end
            yield record

    def columns(self, stream: str) -> list[str]:
        """Column names of a stream: those of the schema in its order, then unknown ones."""
        self._check_stream(stream)
        present = self.handles.columns(stream)
        known = [n for n in STREAMS[stream].columns if n in present]
        return known + sorted(set(present) - set(known))

    def enum_members(self, stream: str, column: str) -> dict[str, int]:
        """Member names and codes of an enum column; empty for all other columns."""
        members = h5py.check_enum_dtype(self._dataset(stream, column).dtype)
        return dict(sorted((members or {}).items(), key=lambda item: item[1]))

    def enum_names(self, stream: str, column: str) -> list[str]:
        """Member names of an enum column; position = code.

        Raises:
            TraceError: not an enum column.
        """
        members = self.enum_members(stream, column)
        if not members:
            raise TraceError("not an enum column", where=f"{self.path}:/{stream}/{column}")
        return list(members)

    def attributes(self, stream: str, column: str) -> dict[str, Any]:
        """Attributes of a column: units, long_name, clock, sentinel, volatile, flags."""
        attributes = self._dataset(stream, column).attrs
        hidden = ("DIMENSION_LIST", "REFERENCE_LIST", "CLASS", "NAME")
        return {k: plain(attributes[k]) for k in attributes if k not in hidden}

    # Static content.

    def epoch(self, number: int) -> dict[str, Any]:
        """Parameters (``params``) and detector error model (``dem``) of a calibration epoch."""
        path = f"meta/epochs/{number}"
        if path not in self._file:
            raise TraceError(
                "no such epoch", where=f"{self.path}:/{path}", got=str(number),
                allowed=", ".join(self._file["meta/epochs"]),
            )  # fmt: skip
        texts = {name: node.asstr()[()] for name, node in self._file[path].items()}
        return {**texts, "params": json.loads(texts["params_json"])}

    @property
    def expect(self) -> Block:
        """Rows of /expect; no rows in a live file."""
        return self.stream("expect") if "expect" in self.streams else {}

    @property
    def hops(self) -> tuple[str, ...]:
        """Hops with a distribution in /summary."""
        return tuple(self._file["summary"]) if "summary" in self._file else ()

    def summary(self, hop: str) -> HopSummary:
        """Distribution of one hop from /summary."""
        if hop not in self.hops:
            raise TraceError(
                "no such hop in the summary", where=f"{self.path}:/summary", got=hop,
                allowed=", ".join(self.hops) or "no hop: the file is live or was recovered",
            )  # fmt: skip
        return read_summary(self._file["summary"][hop])

    # Other forms.

    def to_xarray(self, stream: str) -> xr.Dataset:
        """The stream as a dataset over ``row``; attributes hold units, clock and enum names."""
        import xarray as xr

        data = {}
        for name, values in self.stream(stream).items():
            dims = ("row",) if values.ndim == 1 else ("row", f"{name}_byte")
            data[name] = (dims, values, self.attributes(stream, name))
        coords = {"row": np.arange(self.rows(stream), dtype=np.uint64)}
        return xr.Dataset(data, coords=coords, attrs={"stream": stream, "run_id": self.run_id})

    def to_pandas(self, stream: str) -> pd.DataFrame:
        """The stream as a frame; enums are categories, packed bits are bytes objects."""
        import pandas as pd

        out: dict[str, Any] = {}
        for name, values in self.stream(stream).items():
            if values.ndim > 1:
                out[name] = [row.tobytes() for row in values]
            elif members := self.enum_members(stream, name):
                out[name] = pd.Categorical.from_codes(values.astype(np.int16), list(members))
            elif values.dtype.kind == "S":
                out[name] = [v.decode() for v in values.tolist()]
            else:
                out[name] = values
        return pd.DataFrame(out)

    def to_stim_b8(self) -> NDArray[np.uint8]:
        """Detection events of all shots, uint8 [shots, ceil(D/8)]; the bytes of a stim b8 file."""
        return self.stream("shots", ["detectors_b8"])["detectors_b8"]

    # Live reading.

    def refresh(self) -> Ledger:
        """Read the ledger again; rows and streams then follow it."""
        self.handles.advance()
        self._ledger = read_ledger(self._commits())
        return self._ledger

    def follow(
        self,
        stream: str,
        columns: Sequence[str] | None = None,
        *,
        poll_s: float = 0.2,
        timeout_s: float = 10.0,
    ) -> Iterator[Block]:
        """New rows of a live file as they are committed.

        Ends when the run has closed its trace (the rows of the final file included), or after
        ``timeout_s`` without a new row.
        """
        done = 0
        patience = time.monotonic() + timeout_s
        while True:
            closed = self.live and not self.path.exists()
            n = self.refresh().rows[stream]
            if n > done:
                yield self.stream(stream, columns, done, n)
                done, patience = n, time.monotonic() + timeout_s
            elif not self.live or time.monotonic() > patience:
                return
            elif closed:
                break
            else:
                time.sleep(poll_s)
        if final_path(self.path).exists():
            with Trace(final_path(self.path)) as final:
                if final.rows(stream) > done:
                    yield final.stream(stream, columns, done)

    # Inside.

    def _commits(self) -> h5py.Dataset:
        if COMMITS not in self._file:
            raise TraceError("no commit ledger", where=f"{self.path}:/{COMMITS}")
        return self.handles.dataset(COMMITS)

    def _check_stream(self, stream: str) -> None:
        if stream not in self.streams or stream not in self._file:
            raise TraceError(
                "no such stream", where=str(self.path), got=stream, allowed=", ".join(self.streams)
            )

    def _dataset(self, stream: str, column: str) -> h5py.Dataset:
        self._check_stream(stream)
        if column not in self._file[stream]:
            raise TraceError(
                "no such column", where=f"{self.path}:/{stream}", got=column,
                allowed=", ".join(self.columns(stream)),
            )  # fmt: skip
        return self.handles.dataset(f"{stream}/{column}")

    def _read(self, stream: str, name: str, start: int, stop: int) -> Array:
        dataset = self._dataset(stream, name)
        try:
            values: Array = dataset[start:stop]
        except OSError as error:
            raise TraceError(
                "damaged data", where=f"{self.path}:{dataset.name}", got=str(error),
                fix=f"`hil trace validate {self.path}` lists what is damaged",
            ) from error  # fmt: skip
        return values.view(values.dtype.str)

    def _rows_up_to(self, stream: str, shot: int, begin: int) -> int:
        """Rows from ``begin`` on whose shot is at most ``shot``."""
        count, step = 0, 131_072
        while True:
            first = begin + count
            shots = self.stream(stream, ["shot"], first, first + step)["shot"]
            inside = int(np.searchsorted(shots, shot, side="right"))
            count += inside
            if inside < len(shots) or not len(shots):
                return count


def open_trace(path: Path | str) -> Trace:
    """Open a trace for reading: ``NAME.h5``, or a live ``NAME.part.h5``.

    Raises:
        UsageError: no such file.
        TraceError: not a trace, damaged, or of an unknown major version.
    """
    path = Path(path)
    if not path.exists():
        part = path.with_name(path.stem + PART_SUFFIX)
        fix = (
            f"the run did not close it: `hil trace recover {part}`"
            if part.exists()
            else "check the name"
        )
        raise UsageError("no such trace", where=str(path), fix=fix)
    return Trace(path)


def _moved(shots: Block, begin: int) -> Array:
    rows = shots["first_round_row"]
    return np.where(rows == NO_FIRST_ROW, rows, rows - rows.dtype.type(begin))
