"""Build a small bootable guest: stock Debian kernel with rdma_rxe, Python and pyverbs.

Everything comes from the Debian packages that apt can reach.  Packages are only
downloaded and unpacked below a cache directory, nothing is installed, and no
superuser rights are needed.

Cache directory: $XDG_CACHE_HOME/rxe_vm, else ~/.cache/rxe_vm.
"""

from __future__ import annotations

import dataclasses
import fcntl
import fnmatch
import hashlib
import json
import os
import platform
import re
import shutil
import sys
import time
from pathlib import Path

from .commands import Unavailable, call, reason
from .initrd import write_initrd
from .kernel import load_modules, vmlinux_from_bzimage
from .packages import Apt, unpack

QEMU = "qemu-system-x86_64"
QEMU_MIN = (7, 2)  # first release with "-netdev dgram"
QEMU_PACKAGE = "qemu-system-x86"
KERNEL_PACKAGE = "linux-image-amd64"
GUEST_PACKAGES = [
    "python3-minimal",
    "python3-pyverbs",
    "ibverbs-providers",
    "iproute2",
    "busybox-static",
]
# In the dependency closure of the guest packages, but nothing in the image uses them.
GUEST_UNUSED = re.compile(
    r"(perl|libperl|lib.*-perl|systemd|libsystemd|udev|libudev|dpkg|tar|debconf|adduser|passwd|usrmerge|init-|sysvinit|lsb"
    r"|libpam|libaudit|libsem|libsepol|libssl|openssl|libkrb|libk5|libgssapi|libtirpc|libnsl|libgcrypt|libgpg|libdb5|libgdbm"
    r"|media-types|rdma-core|readline|libreadline|libncurses|libtinfo|libsqlite|libcap2-bin|libkmod|gcc-.*-base)"
)


@dataclasses.dataclass
class Image:
    """Paths of a finished image plus what is needed to start QEMU."""

    directory: Path
    info: dict

    @property
    def kernel(self):
        return self.directory / self.info["kernel"]

    @property
    def initrd(self):
        return self.directory / "base.cpio"

    def qemu(self):
        """(argv prefix, environment) of the QEMU to use."""
        env = dict(os.environ)
        host = self.directory / "host"
        if not self.info["qemu_private"]:
            return [self.info["qemu"]], env
        libs = [str(host / d) for d in ("usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu")]
        env["LD_LIBRARY_PATH"] = ":".join(libs)
        env["QEMU_MODULE_DIR"] = str(host / "usr/lib/x86_64-linux-gnu/qemu")
        return [
            str(host / "usr/bin" / QEMU),
            "-L",
            str(host / "usr/share/qemu"),
            "-L",
            str(host / "usr/share/seabios"),
        ], env


def default_cache():
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rxe_vm"


def qemu_version(argv, env):
    rc, out = call([*argv, "-version"], 60, env=env)
    m = re.search(r"version (\d+)\.(\d+)\S*", out)
    return (
        (m.group(0)[8:], (int(m.group(1)), int(m.group(2))))
        if rc == 0 and m
        else (reason(out), (0, 0))
    )


def builder_id():
    """Changes with every file that shapes the image."""
    own = Path(__file__).parent
    parts = (own / f"{name}.py" for name in ("build", "initrd", "kernel", "packages"))
    return hashlib.sha256(b"".join(part.read_bytes() for part in parts)).hexdigest()[:16]


def ready(directory, kernel_package):
    try:
        info = json.loads((directory / "image.json").read_text())
    except (OSError, ValueError):
        return None
    image = Image(directory, info)
    if info.get("builder") != builder_id() or info.get("kernel_package") != kernel_package:
        return None
    return (
        image
        if image.kernel.exists() and image.initrd.exists() and Path(image.qemu()[0][0]).exists()
        else None
    )


def ensure(cache=None, refresh=False, kernel_package=None, say=lambda text: None):
    """Build the image unless the cache holds it; safe in several processes at once."""
    cache = Path(cache).expanduser().absolute() if cache else default_cache().absolute()
    kernel_package = kernel_package or KERNEL_PACKAGE
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise Unavailable(f"needs Linux on x86_64, this is {sys.platform} on {platform.machine()}")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        lock = open(cache / "lock", "w")
    except OSError as e:
        raise Unavailable(f"cache directory cannot be written: {e.strerror}") from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        image = None if refresh else ready(cache / "image", kernel_package)
        if image:
            return image
        for tool in ("apt-get", "apt-cache", "dpkg-deb"):
            if not shutil.which(tool):
                raise Unavailable(f"{tool} not found")
        if shutil.disk_usage(cache).free < 1500 << 20:
            raise Unavailable("less than 1.5 GB free in the cache directory")
        work = cache / "building"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        try:
            apt = Apt(work / "apt", say)
            if refresh:
                apt.update()
            build(work, apt, kernel_package, say)
            shutil.rmtree(cache / "image", ignore_errors=True)
            (work / "image").rename(cache / "image")
        finally:
            shutil.rmtree(work, ignore_errors=True)
        return ready(cache / "image", kernel_package)


def build(work, apt, kernel_package, say):
    t0 = time.monotonic()
    out = work / "image"
    out.mkdir()

    # kernel: follow the meta package to the versioned image (and to its modules if split off)
    names, queue = [], [kernel_package]
    while queue:
        name = queue.pop(0)
        if name in names:
            continue
        names.append(name)
        queue += [d for d in apt.depends(name) if re.match(r"linux-(image|modules|binary)-.*\d", d)]
    names = [n for n in names if re.search(r"\d\.\d", n)]
    if not names:
        raise Unavailable(f"{kernel_package} leads to no kernel image package")
    say("downloading " + " ".join(names))
    debs = apt.download(names, work / "debs/kernel")
    tree = (
        "crypto/",
        "lib/",
        "net/",
        "drivers/infiniband/",
        "drivers/net/",
        "drivers/virtio/",
        "arch/x86/crypto/",
    )

    def want(name):
        m = re.match(r"(?:usr/)?lib/modules/[^/]+/(modules\.builtin$|kernel/(.*))", name)
        return bool(
            re.match(r"boot/vmlinuz-", name)
            or (m and (m.group(2) is None or m.group(2).startswith(tree)))
        )

    for d in debs:
        unpack(d, work / "kernel", want)
    trees = sorted(p.parent for p in (work / "kernel").rglob("modules.builtin"))
    bz = sorted((work / "kernel").rglob("vmlinuz-*"))
    if not trees or not bz:
        raise Unavailable(f"{' '.join(names)} holds no kernel or no modules")
    modules = load_modules(trees[-1])
    image = bz[-1].read_bytes()
    vmlinux = vmlinux_from_bzimage(image)
    kernel = "vmlinux" if vmlinux else "vmlinuz"
    (out / kernel).write_bytes(vmlinux or image)
    packages = [d.name for d in debs]
    say(f"kernel {trees[-1].name} ({kernel}), {len(modules)} modules")

    # QEMU: the installed one if it is new enough, else a private copy
    found = shutil.which(QEMU)
    version, number = qemu_version([found], dict(os.environ)) if found else ("", (0, 0))
    private = number < QEMU_MIN
    if private:

        def specs():
            return [f"{n}={v}" for n, v in apt.closure([QEMU_PACKAGE], fresh=False)]

        wanted = specs()
        if not wanted:
            raise Unavailable(
                f"{QEMU_PACKAGE} counts as installed but no {QEMU} >= "
                f"{QEMU_MIN[0]}.{QEMU_MIN[1]} runs"
            )
        say(f"downloading QEMU ({len(wanted)} packages)")
        debs = apt.download(wanted, work / "debs/host", specs)
        for d in debs:
            rc, text = call(["dpkg-deb", "-x", d, out / "host"], 300)
            if rc:
                raise Unavailable(f"cannot unpack {d.name}: {reason(text)}")
        packages += [d.name for d in debs]
    info = dict(
        builder=builder_id(),
        kernel_package=kernel_package,
        kernel=kernel,
        release=trees[-1].name,
        modules=[n for n, _ in modules],
        qemu=found,
        qemu_private=private,
    )
    argv, env = Image(out, info).qemu()
    version, number = qemu_version(argv, env)
    if number < QEMU_MIN:
        raise Unavailable(f"no usable QEMU: {version}")

    # guest: first without the packages that are known to be unused, then with the whole closure
    root = work / "root"
    for unused in (GUEST_UNUSED, None):

        def specs():
            return [
                f"{n}={v}"
                for n, v in apt.closure(GUEST_PACKAGES, fresh=True)
                if not (unused and unused.match(n))
            ]

        wanted = specs()
        say(f"downloading the guest's user space ({len(wanted)} packages)")
        shutil.rmtree(work / "debs/guest", ignore_errors=True)
        debs = apt.download(wanted, work / "debs/guest", specs)
        for d in debs:
            unpack(
                d,
                root,
                lambda n: (
                    not fnmatch.fnmatch(n, "usr/share/*")
                    and not n.startswith(("usr/include/", "etc/", "var/"))
                ),
            )
        try:
            python = write_initrd(out / "base.cpio", root, modules)
            break
        except LookupError as e:
            if unused is None:
                raise Unavailable(f"guest libraries not found: {e}") from None
    packages += [d.name for d in debs]
    info.update(
        python=python,
        packages=packages,
        qemu_version=version,
        seconds=round(time.monotonic() - t0, 1),
        bytes_downloaded=sum(p.stat().st_size for p in (work / "debs").rglob("*.deb")),
    )
    (out / "image.json").write_text(json.dumps(info, indent=1) + "\n")
    say(
        f"initramfs {(out / 'base.cpio').stat().st_size >> 20} MiB, QEMU {version}, {python}, "
        f"{info['seconds']} s"
    )
