"""The first file system of the guest: interpreter, pyverbs, tools, libraries, kernel modules."""

from __future__ import annotations

import os
import re
import stat

from .commands import Unavailable
from .kernel import elf_needed

LIBDIR = "usr/lib/x86_64-linux-gnu"
GUEST_BINARIES = [
    "usr/bin/python3.*",
    "bin/busybox",
    "usr/bin/busybox",
    "sbin/ip",
    "bin/ip",
    "usr/sbin/ip",
    "usr/bin/ip",
    "usr/bin/rdma",
    "sbin/rdma",
    "bin/rdma",
    "usr/sbin/rdma",
    "sbin/tc",
    "usr/sbin/tc",
]
STDLIB_SKIP = (
    "test",
    "idlelib",
    "lib2to3",
    "ensurepip",
    "tkinter",
    "turtledemo",
    "pydoc_data",
    "__pycache__",
    "distutils",
)


class Newc:
    """Writer of "newc" cpio archives, the format the kernel unpacks as its first file system."""

    def __init__(self, stream):
        self.out, self.ino, self.size, self.seen = stream, 0, 0, set()

    def _put(self, b):
        self.out.write(b)
        self.size += len(b)

    def add(self, name, mode, data=b"", rdev=(0, 0)):
        if name in self.seen:
            return
        self.seen.add(name)
        self.ino += 1
        raw = name.encode() + b"\0"
        head = (self.ino, mode, 0, 0, 1, 0, len(data), 0, 0, *rdev, len(raw), 0)
        self._put(b"070701" + b"".join(b"%08X" % v for v in head) + raw)
        self._put(b"\0" * (-self.size % 4))
        self._put(data)
        self._put(b"\0" * (-self.size % 4))

    def directory(self, name):
        parts = name.split("/")
        for i in range(1, len(parts) + 1):
            self.add("/".join(parts[:i]), stat.S_IFDIR | 0o755)

    def file(self, name, data, mode=0o644):
        if "/" in name:
            self.directory(name.rpartition("/")[0])
        self.add(name, stat.S_IFREG | mode, data)

    def symlink(self, name, target):
        self.add(name, stat.S_IFLNK | 0o777, target.encode())

    def node(self, name, major, minor):
        self.add(name, stat.S_IFCHR | 0o600, b"", (major, minor))

    def close(self):
        self.seen.discard("TRAILER!!!")
        self.add("TRAILER!!!", 0)
        self._put(b"\0" * (-self.size % 512))


def write_initrd(path, root, modules):
    """Pack python, pyverbs, ip/rdma/tc, busybox, their libraries, and the kernel modules."""
    libs = {}
    for d in (LIBDIR, "lib/x86_64-linux-gnu"):
        for p in sorted((root / d).glob("*.so*")) if (root / d).is_dir() else ():
            libs.setdefault(p.name, p)

    def content(p):
        for _ in range(8):
            if not p.is_symlink():
                return p.read_bytes()
            t = os.readlink(p)
            p = root / t.lstrip("/") if t.startswith("/") else p.parent / t
        raise Unavailable(f"link loop at {p.name}")

    needed = {}

    def need(data):
        """Missing libraries of an ELF file; those found are queued with all that they need."""
        missing = []
        for name in elf_needed(data):
            if name in needed:
                continue
            if name not in libs:
                missing.append(name)
                continue
            needed[name] = content(libs[name])
            missing += need(needed[name])
        return missing

    with open(path, "wb") as f:
        z = Newc(f)
        for d in (
            "usr/bin",
            "usr/sbin",
            LIBDIR,
            "usr/lib64",
            "proc",
            "sys",
            "dev",
            "run",
            "tmp",
            "etc/libibverbs.d",
            "modules",
            "app",
        ):
            z.directory(d)
        for d in ("bin", "sbin", "lib", "lib64"):
            z.symlink(d, "usr/" + d)
        z.node("dev/console", 5, 1)
        z.node("dev/null", 1, 3)
        missing = []
        for pattern in GUEST_BINARIES:
            for p in sorted(root.glob(pattern)):
                if p.is_symlink() or "-config" in p.name:
                    continue
                where = "usr/sbin/" if p.name in ("ip", "rdma", "tc") else "usr/bin/"
                missing += need(p.read_bytes())
                z.file(where + p.name, p.read_bytes(), 0o755)
        names = {n.rpartition("/")[2]: n for n in z.seen}
        for tool in ("busybox", "ip", "rdma", "tc"):
            if tool not in names:
                raise Unavailable(f"the packages for the guest hold no {tool}")
        python = max(n for n in names if re.fullmatch(r"python3\.\d+", n))
        z.symlink("usr/bin/python3", python)
        stdlib = root / "usr/lib" / python
        for p in sorted(stdlib.rglob("*")):
            rel = p.relative_to(stdlib).parts
            if (
                p.is_dir()
                or p.is_symlink()
                or any(r in STDLIB_SKIP or r.startswith("config-") for r in rel[:-1])
            ):
                continue
            data = p.read_bytes()
            if p.suffix == ".so" and any(n not in libs for n in elf_needed(data)):
                continue  # optional extension whose library is left out
            missing += need(data)
            z.file(str(p.relative_to(root)), data)
        dist = root / "usr/lib/python3/dist-packages/pyverbs"
        if not (dist / "__init__.py").exists() and not list(dist.glob("device*.so")):
            raise Unavailable("the packages for the guest hold no pyverbs")
        for p in sorted(dist.rglob("*")):
            if (
                p.suffix in (".py", ".so")
                and not p.is_symlink()
                and "providers" not in p.relative_to(dist).parts
            ):
                missing += need(p.read_bytes())
                z.file(str(p.relative_to(root)), p.read_bytes())
        drivers = [
            p for d in ("libibverbs", "") for p in sorted((root / LIBDIR / d).glob("librxe*.so"))
        ]
        if not drivers:
            raise Unavailable("the packages for the guest hold no rxe user-space driver")
        for p in drivers:
            missing += need(content(p))
            z.file(str(p.relative_to(root)), content(p))
        z.file("etc/libibverbs.d/rxe.driver", b"driver rxe\n")
        for p in sorted(p for d in ("usr/lib/tc", "lib/tc") for p in (root / d).glob("*.dist")):
            z.file("usr/lib/tc/" + p.name, p.read_bytes())  # delay distributions of netem
        for extra in ("ld-linux-x86-64.so.2", "libgcc_s.so.1"):
            if extra in libs:
                needed.setdefault(extra, content(libs[extra]))
        if missing:
            raise LookupError(" ".join(sorted(set(missing))))
        for name, data in needed.items():
            z.file(f"{LIBDIR}/{name}", data, 0o755)
        z.symlink("usr/lib64/ld-linux-x86-64.so.2", f"/{LIBDIR}/ld-linux-x86-64.so.2")
        for name, data in modules:
            z.file(f"modules/{name}.ko", data)
        z.file("modules/order", "".join(n + "\n" for n, _ in modules).encode())
        z.close()
    return python
