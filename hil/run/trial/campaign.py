"""All cells on some processes, in blocks; a ledger per cell, so that an interruption goes on."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

from hil.errors import RigError
from hil.node.processes import signal_when_parent_dies
from hil.run.trial.cells import Cell, Subject, Tally
from hil.run.trial.count import CellBench

BLOCK: Final = 2_000
"""Shots of a block, the unit of resuming."""

_bench: dict[tuple[Cell, str], CellBench] = {}
"""Of this worker process: the cell that it counted last."""


@dataclass(frozen=True)
class Plan:
    """What a campaign does.

    Attributes:
        subject: what is put to the trial.
        shots: shots of each cell.
        purpose: ``judge`` or ``choose``; each has shots of its own.
        seed: of the campaign.
    """

    subject: Subject
    shots: Mapping[Cell, int]
    purpose: str
    seed: int = 0

    def identity(self, cell: Cell) -> dict[str, Any]:
        """What the counts of a ledger belong to."""
        import pymatching
        import stim

        return {
            "cell": cell.name,
            "purpose": self.purpose,
            "seed": self.seed,
            "block": BLOCK,
            "stim": str(stim.__version__),
            "pymatching": str(pymatching.__version__),
            **self.subject.identity(),
        }


class Ledger:
    """Which blocks of a cell are counted, and their sum; written whole after each block.

    Args:
        path: the file.
        identity: what its counts belong to.

    Raises:
        RigError: the file is damaged or belongs to another trial.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self._path, self._identity = path, dict(identity)
        self.tally, self.done = Tally(), set[int]()
        if not path.exists():
            return
        try:
            document = json.loads(path.read_bytes())
            found, self.done = document["identity"], set(document["blocks"])
            self.tally = Tally.read(document["tally"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RigError(
                "the ledger of a trial is damaged", where=str(path), got=str(error),
                fix="remove the file; its cell is then counted anew",
            ) from error  # fmt: skip
        different = [key for key in self._identity if found.get(key) != self._identity[key]]
        if different:
            raise RigError(
                "the ledger belongs to another trial", where=str(path),
                got=", ".join(f"{key}: {found.get(key)}" for key in different),
                allowed=", ".join(f"{key}: {self._identity[key]}" for key in different),
                fix="name another --work folder, or remove this one",
            )  # fmt: skip

    def add(self, block: int, tally: Tally) -> None:
        """Count a block and write the ledger."""
        self.tally += tally
        self.done.add(block)
        document = {
            "identity": self._identity, "blocks": sorted(self.done), "tally": self.tally.document()
        }  # fmt: skip
        new = self._path.with_suffix(".new")
        new.write_text(json.dumps(document) + "\n")
        new.replace(self._path)


def duration(seconds: float) -> str:
    """For people: hours, below one of them minutes, below one of these seconds."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def seconds(plan: Plan, processes: int) -> float:
    """About how long a campaign takes, from a few shots of its smallest cell."""
    cell = min(plan.shots, key=lambda c: c.work)
    bench = CellBench(cell, plan.subject)
    bench.block(plan.seed, "warm", 0, 8)
    begin = time.process_time()
    bench.block(plan.seed, "warm", 1, 64)
    per_cell_of_grid = (time.process_time() - begin) / 64 / cell.work
    total = sum(shots * c.work for c, shots in plan.shots.items())
    return total * per_cell_of_grid / processes


def run_campaign(
    plan: Plan, work: Path, *, processes: int, tell: Callable[[str], None]
) -> dict[Cell, Tally]:
    """Count all cells.

    Args:
        plan: what.
        work: folder of the ledgers, ``PURPOSE/CELL.json``; what they hold is not counted again.
        processes: worker processes, one thread each.
        tell: receives progress lines.

    Returns:
        The tally of each cell.

    Raises:
        RigError: a ledger is damaged or of another trial, a worker died, or Ctrl-C: blocks under
            way are then finished and counted first.
    """
    folder = work / plan.purpose
    folder.mkdir(parents=True, exist_ok=True)
    blocks = {cell: _blocks(shots) for cell, shots in plan.shots.items()}
    ledgers = _ledgers(plan, folder, blocks)
    todo = [
        (cell, k)
        for cell in sorted(plan.shots, key=lambda c: (-c.work, c.name))
        for k in range(len(blocks[cell]))
        if k not in ledgers[cell].done
    ]
    progress = _Progress(todo, blocks, tell)
    jobs: dict[Future[Tally], tuple[Cell, int]] = {}
    pool = ProcessPoolExecutor(processes, get_context("spawn"), _start_worker)
    try:
        queue = iter(todo)
        while True:
            while len(jobs) < 2 * processes and (task := next(queue, None)) is not None:
                cell, k = task
                job = pool.submit(
                    _count, cell, plan.subject, plan.seed, plan.purpose, k, blocks[cell][k]
                )
                jobs[job] = task
            if not jobs:
                break
            for job in wait(jobs, return_when=FIRST_COMPLETED).done:
                cell, k = jobs.pop(job)
                ledgers[cell].add(k, job.result())
                progress.done(cell, k, ledgers[cell])
    except KeyboardInterrupt:
        pool.shutdown(wait=True, cancel_futures=True)
        for job, (cell, k) in jobs.items():
            if not job.cancelled() and job.exception() is None:
                ledgers[cell].add(k, job.result())
        raise RigError(
            "interrupted", where=str(folder), fix="the same command goes on with what is counted"
        ) from None
    except (OSError, BrokenProcessPool) as error:
        raise RigError(
            "the trial cannot go on",
            got=str(error),
            fix="the same command goes on with what is counted",
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return {cell: ledger.tally for cell, ledger in ledgers.items()}


def _ledgers(plan: Plan, folder: Path, blocks: Mapping[Cell, list[int]]) -> dict[Cell, Ledger]:
    """What is counted already, of exactly these blocks."""
    ledgers = {c: Ledger(folder / f"{c.name}.json", plan.identity(c)) for c in plan.shots}
    for cell, ledger in ledgers.items():
        extra = ledger.done - set(range(len(blocks[cell])))
        if extra or ledger.tally.shots != sum(blocks[cell][k] for k in ledger.done):
            raise RigError(
                "the ledger holds other shots than asked for", where=str(folder / cell.name),
                got=str(ledger.tally.shots),
                allowed=f"whole blocks of {BLOCK}, at most {plan.shots[cell]}",
                fix="ask for as many shots as before, or name another --work folder",
            )  # fmt: skip
    return ledgers


def _blocks(shots: int) -> list[int]:
    """Sizes of the blocks of a cell."""
    return [BLOCK] * (shots // BLOCK) + ([shots % BLOCK] if shots % BLOCK else [])


def _start_worker() -> None:
    signal_when_parent_dies(signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us


def _count(cell: Cell, subject: Subject, seed: int, purpose: str, number: int, shots: int) -> Tally:
    key = (cell, json.dumps(subject.identity()))
    if key not in _bench:
        _bench.clear()
        _bench[key] = CellBench(cell, subject)
    return _bench[key].block(seed, purpose, number, shots)


class _Progress:
    """A line per finished cell, and one a minute in between."""

    def __init__(
        self, todo: Sequence[tuple[Cell, int]], blocks: Mapping[Cell, list[int]],
        tell: Callable[[str], None],
    ) -> None:  # fmt: skip
        self._blocks, self._tell = blocks, tell
        self._left = sum(blocks[cell][k] * cell.work for cell, k in todo)
        self._all, self._begin = self._left, time.monotonic()
        self._last = self._begin

    def done(self, cell: Cell, k: int, ledger: Ledger) -> None:
        self._left -= self._blocks[cell][k] * cell.work
        now = time.monotonic()
        whole = len(ledger.done) == len(self._blocks[cell])
        if not whole and now - self._last < 60:
            return
        self._last = now
        left_s = (now - self._begin) * self._left / (self._all - self._left)
        t = ledger.tally
        counts = ", ".join(f"{n} {c.worse}/{c.better}" for n, c in t.chains.items())
        self._tell(
            f"{cell.name}: {t.shots:,} shots, plain matching wrong {t.plain:,}, "
            f"worse/better {counts}; about {duration(left_s)} to go"
        )
