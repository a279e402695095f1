"""Debian packages: resolved, downloaded and unpacked below a cache directory, never installed."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

from .commands import Unavailable, call, reason, tied


class Apt:
    """apt with private cache directories, and a private index where the system's is stale."""

    def __init__(self, state, say):
        self.state, self.say, self.updated = state, say, False
        for d in ("cache/archives/partial", "lists/partial"):
            (state / d).mkdir(parents=True, exist_ok=True)
        (state / "empty_status").write_text("")
        self.opts = [
            "-o",
            f"Dir::Cache={state}/cache",
            "-o",
            "Debug::NoLocking=1",
            "-o",
            "Acquire::Retries=3",
            "-o",
            "Acquire::http::Timeout=30",
            "-o",
            "Acquire::https::Timeout=30",
        ]
        if os.geteuid() == 0:  # the download user may not be able to enter the cache directory
            self.opts += ["-o", "APT::Sandbox::User=root"]
        self.env = dict(os.environ, LC_ALL="C", DEBIAN_FRONTEND="noninteractive")

    def run(self, tool, *args, timeout=900, cwd=None):
        return call([tool, *self.opts, *args], timeout, env=self.env, cwd=cwd)

    def update(self):
        """Switch to a private, fresh package index; False if that was done or cannot be done."""
        if self.updated:
            return False
        self.updated = True
        self.say("reading package lists into the cache")
        private = ["-o", f"Dir::State::lists={self.state}/lists"]
        self.run("apt-get", *private, "update")
        if not any(p.is_file() and p.name != "lock" for p in (self.state / "lists").iterdir()):
            return False
        self.opts += private
        return True

    def retry(self, step):
        """step() gives (value, error); once more with fresh package lists if it failed."""
        value, error = step()
        if error and self.update():
            value, error = step()
        if error:
            raise Unavailable(error)
        return value

    def closure(self, packages, fresh):
        """[(name, version)] that an installation fetches; fresh: as if nothing were installed."""
        opts = ["-o", f"Dir::State::status={self.state}/empty_status"] if fresh else []

        def step():
            rc, out = self.run(
                "apt-get", *opts, "-s", "install", "--no-install-recommends", *packages
            )
            if rc:
                return None, f"apt cannot resolve {' '.join(packages)}: {reason(out)}"
            return re.findall(r"^Inst (\S+)(?: \[[^\]]*\])? \((\S+) ", out, re.M), None

        return self.retry(step)

    def depends(self, package):
        def step():
            rc, out = self.run("apt-cache", "depends", package)
            if rc or not out.strip():
                return None, f"apt knows no package {package}"
            return re.findall(r"^\s*\|?(?:Pre)?Depends: ([a-z0-9][^\s:]*)", out, re.M), None

        return self.retry(step)

    def download(self, specs, where, resolve_again=None):
        """Download `specs` ("name" or "name=version"); with fresh lists, resolved again."""
        where.mkdir(parents=True, exist_ok=True)
        current = [specs]

        def step():
            if self.updated and resolve_again:
                current[0] = resolve_again()
            rc, out = self.run("apt-get", "download", *current[0], cwd=where)
            return current[0], (f"apt-get download failed: {reason(out)}" if rc else None)

        self.retry(step)
        return sorted(where.glob("*.deb"))


def unpack(deb, dest, want):
    """Unpack the members of a .deb for which want(name) holds."""
    p = subprocess.Popen(
        tied(["dpkg-deb", "--fsys-tarfile", deb]), stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
    )
    try:
        with tarfile.open(fileobj=p.stdout, mode="r|") as t:
            for m in t:
                name = m.name[2:] if m.name.startswith("./") else m.name
                if (
                    not name
                    or m.isdir()
                    or ".." in name.split("/")
                    or name.startswith("/")
                    or not want(name)
                ):
                    continue
                path = dest / name
                path.parent.mkdir(parents=True, exist_ok=True)
                with contextlib.suppress(FileNotFoundError):
                    path.unlink()
                if m.issym():
                    path.symlink_to(m.linkname)
                elif m.islnk():
                    link = m.linkname[2:] if m.linkname.startswith("./") else m.linkname
                    if (dest / link).exists():
                        os.link(dest / link, path)
                elif m.isreg():
                    with open(path, "wb") as f:
                        shutil.copyfileobj(t.extractfile(m), f)
                    path.chmod(m.mode & 0o777 | 0o400)
        while p.stdout.read(1 << 16):  # padding behind the archive's end mark
            pass
    except tarfile.TarError as e:
        raise Unavailable(f"{Path(deb).name} is damaged: {e}") from None
    finally:
        p.stdout.close()
        status = p.wait()
    if status:
        raise Unavailable(f"dpkg-deb cannot read {Path(deb).name}")
