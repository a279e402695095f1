"""Hardware-in-the-loop co-simulation testbed for real-time quantum error correction.

The public surface is listed in ``__all__``; names are imported on first use, so that
``import hil`` stays cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from hil._version import __version__

if TYPE_CHECKING:
    from hil.scenario.load import load_scenario
    from hil.trace.reader import open_trace

__all__ = ["__version__", "load_scenario", "open_trace"]

_HOME = {"load_scenario": "hil.scenario.load", "open_trace": "hil.trace.reader"}


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'hil' has no attribute {name!r}")
