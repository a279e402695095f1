"""Regenerates every generated document. Tests compare them with the sources they come from."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = (
    ("-m", "hil.scenario.schema", "docs"),
    ("-m", "hil.scenario.metrics_page", "docs/metrics.md"),
    ("-m", "hil.trace.document", "docs/trace.md"),
    ("-m", "hil.verdict.faults_page", "docs/faults.md"),
    ("tools/draw_house.py",),
)


def main() -> int:
    """Run all generators from the root of the repository."""
    for command in COMMANDS:
        subprocess.run([sys.executable, *command], cwd=ROOT, check=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
