"""What a C++ compiler reads from cuda.h about the calls and numbers of ``gpu_decoder.gpu``.

``python tools/cuda_signatures.py FOLDER_OF_CUDA_H`` writes ``tests/data/cuda/signatures.json``,
which the tests compare with our own tables. Needs g++; the header is in the package
nvidia-cuda-runtime.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from gpu_decoder.gpu import graph, memory
from gpu_decoder.gpu.driver import CALLS, Attribute, MemAccessDesc, MemAllocationProp

OUT = Path(__file__).resolve().parents[1] / "tests" / "data" / "cuda" / "signatures.json"
_PROGRAM = """
#include <cuda.h>
#include <cstddef>
#include <cstdio>
template <class... A> void show(const char* name, CUresult (*)(A...)) {
    int sizes[] = {0, (int)sizeof(A)...};
    printf("call %s", name);
    for (size_t i = 1; i <= sizeof...(A); ++i) printf(" %d", sizes[i]);
    printf("\\n");
}
#define NUMBER(name, value) printf("number %s %lld\\n", name, (long long)(value))
int main() {
@LINES@
}
"""
_STRUCTURES: dict[str, tuple[type[ctypes.Structure], tuple[str, ...]]] = {
    "CUmemAllocationProp": (MemAllocationProp, ("location", "allocFlags")),
    "CUmemAccessDesc": (MemAccessDesc, ("flags",)),
}


def numbers() -> dict[str, int]:
    """Our constants, sizes and offsets, by their names in the header."""
    found = {f"CU_DEVICE_ATTRIBUTE_{a.name}": int(a) for a in Attribute}
    found |= memory.NUMBERS | graph.NUMBERS
    for name, (structure, parts) in _STRUCTURES.items():
        found[f"sizeof({name})"] = ctypes.sizeof(structure)
        for part in parts:
            found[f"offsetof({name}, {part})"] = getattr(structure, part).offset
    return found


def arguments() -> dict[str, list[int]]:
    """Bytes of each argument of each call, as we declare them."""
    return {name: [ctypes.sizeof(t) for t in types] for name, types in CALLS.items()}


def main() -> None:
    """Compile, run, write."""
    lines = [f'    NUMBER("{name}", {name});' for name in numbers()]
    lines += [f'    show("{name}", (decltype(&{name}))nullptr);' for name in CALLS]
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder) / "main.cpp", Path(folder) / "main"
        source.write_text(_PROGRAM.replace("@LINES@", "\n".join(lines)))
        subprocess.run(
            ["g++", "-std=c++17", f"-I{sys.argv[1]}", str(source), "-o", str(program)], check=True
        )
        shown = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    found: dict[str, dict[str, object]] = {"numbers": {}, "arguments": {}}
    for line in shown.splitlines():
        kind, rest = line.split(" ", 1)
        if kind == "number":
            name, value = rest.rsplit(" ", 1)
            found["numbers"][name] = int(value)
        else:
            name, *sizes = rest.split()
            found["arguments"][name] = [int(size) for size in sizes]
    OUT.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
