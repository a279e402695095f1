"""The ELF kernel inside a bzImage, and the modules that it needs, in load order."""

from __future__ import annotations

import gzip
import lzma
import re
import struct
import subprocess
import zlib
from pathlib import Path

from .commands import Unavailable, call, reason

MODULES = ["virtio_pci", "virtio_net", "ib_uverbs", "rdma_rxe"]
MODULES_IF_PRESENT = ["crc32_generic", "sch_netem"]


def elf_segments(data):
    """[(type, file offset, virtual address, file size)] of a 64-bit LSB ELF file, else None."""
    if data[:6] != b"\x7fELF\x02\x01":
        return None
    (phoff,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    out = []
    for i in range(count):
        kind, _, off, va, _, fsz = struct.unpack_from("<IIQQQQ", data, phoff + i * size)
        out.append((kind, off, va, fsz))
    return out


def elf_needed(data):
    """Names of the shared libraries an ELF file asks for."""
    seg = elf_segments(data)
    dyn = next((s for s in seg or () if s[0] == 2), None)
    if not dyn:
        return []
    tags = [struct.unpack_from("<qQ", data, o) for o in range(dyn[1], dyn[1] + dyn[3] - 15, 16)]
    va = next((v for t, v in tags if t == 5), None)
    base = next((off + va - a for k, off, a, n in seg if k == 1 and a <= va < a + n), None)
    if base is None:
        return []
    return [data[base + v : data.index(b"\0", base + v)].decode() for t, v in tags if t == 1]


def has_pvh_entry(vmlinux):
    """True if QEMU can start this ELF kernel directly (note "Xen", type 18)."""
    for kind, off, _, size in elf_segments(vmlinux) or ():
        if kind != 4:
            continue
        end = off + size
        while off + 12 <= end:
            n, d, t = struct.unpack_from("<III", vmlinux, off)
            if t == 18 and vmlinux[off + 12 : off + 12 + n].rstrip(b"\0") == b"Xen":
                return True
            off += 12 + (n + 3 & ~3) + (d + 3 & ~3)
    return False


def vmlinux_from_bzimage(image):
    """ELF kernel inside a bzImage, or None.  Saves the guest from decompressing it in emulation."""
    if image[0x202:0x206] != b"HdrS":
        return None
    start = (image[0x1F1] or 4) * 512 + 512
    offset, length = struct.unpack_from("<II", image, 0x248)
    payload = image[start + offset : start + offset + length]
    try:
        if payload[:6] == b"\xfd7zXZ\0":
            data = lzma.LZMADecompressor().decompress(payload)
        elif payload[:2] == b"\x1f\x8b":
            data = zlib.decompressobj(31).decompress(payload)
        else:
            return None
    except (lzma.LZMAError, zlib.error):
        return None
    return data if has_pvh_entry(data) else None


def module_bytes(path):
    data = path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(data)
    if path.suffix == ".gz":
        return gzip.decompress(data)
    if path.suffix == ".zst":
        rc, out = call(["zstd", "-t", "-q", path], 60)
        if rc:
            raise Unavailable(
                "kernel modules are zstd-compressed and zstd cannot read them: " + reason(out)
            )
        return subprocess.run(
            ["zstd", "-dcq", str(path)],
            stdout=subprocess.PIPE,
            check=True,
            stdin=subprocess.DEVNULL,
        ).stdout
    return data


def load_modules(tree):
    """[(name, bytes)] in load order, dependencies first."""
    builtin = {
        Path(ln.strip()).stem.replace("-", "_")
        for ln in (tree / "modules.builtin").read_text().splitlines()
    }
    files = {p.name.split(".ko")[0].replace("-", "_"): p for p in tree.rglob("*.ko*")}
    done = {}

    def visit(name, optional=False):
        if name in done or name in builtin:
            return
        if name not in files:
            if optional:
                return
            raise Unavailable(f"kernel {tree.name} has no module {name}")
        data = module_bytes(files[name])
        m = re.search(rb"(?<![a-z_])depends=([^\0]*)\0", data)
        for dep in filter(None, m.group(1).decode().replace("-", "_").split(",") if m else ()):
            visit(dep)
        done[name] = data

    for name in MODULES_IF_PRESENT[:1] + MODULES:
        visit(name, name in MODULES_IF_PRESENT)
    for name in MODULES_IF_PRESENT[1:]:
        visit(name, True)
    return list(done.items())
