"""``python -m hil``."""

from __future__ import annotations

from hil.cli import script

script()
