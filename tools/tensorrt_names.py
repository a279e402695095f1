"""Which names that we use occur in the Python module of classic TensorRT.

``python tools/tensorrt_names.py tensorrt.so`` writes ``classic_11_4_names.json`` in
``tests/data/tensorrt``. The module (package tensorrt-cu13-bindings) cannot be imported without the
library and a driver, so its binary is searched for the names as texts.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from gpu_decoder.runtime import tensorrt_api as api

OUT = Path(__file__).resolve().parents[1] / "tests/data/tensorrt/classic_11_4_names.json"
NOT_CLASSIC = ("EXPLICIT_BATCH", "set_compute_capability", "num_compute_capabilities")


def used() -> set[str]:
    """Names of classic TensorRT that our code uses."""
    names = {name for protocol in api.CLASSES.values() for name in api.names(protocol)}
    return names | {n for members in api.MEMBERS.values() for n in members} | set(api.CLASSES)


def main() -> None:
    """Search, write."""
    binary = Path(sys.argv[1]).read_bytes()
    names = sorted({*used(), *NOT_CLASSIC})
    found = [name for name in names if name.encode() + b"\0" in binary]
    absent = [name for name in names if name not in found]
    OUT.write_text(json.dumps({"found": found, "absent": absent}, indent=1) + "\n")


if __name__ == "__main__":
    main()
