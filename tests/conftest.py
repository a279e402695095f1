"""Fixtures shared by all tests, and the marker of optional capabilities."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from check_skips import missing

ROOT = Path(__file__).resolve().parent.parent


def _net_raw() -> str:
    try:
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0).close()
    except (AttributeError, OSError) as error:
        return f"packet sockets are not permitted: {error}"
    return ""


def _tmpfs() -> str:
    with tempfile.TemporaryDirectory() as folder:
        command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            return f"mount cannot be started: {error}"
        if done.returncode:
            return f"tmpfs cannot be mounted: {done.stderr.strip()}"
        subprocess.run(["umount", folder], check=True)
    return ""


def _rxe_vm() -> str:
    from rxe_vm import Unavailable, ensure

    try:
        ensure()
    except Unavailable as error:
        return str(error)
    return ""


def _child(name: str) -> Callable[[], str]:
    """Whether a program of the tests can set up what it needs; it says so with ``probe``."""

    def probe() -> str:
        command = [sys.executable, str(ROOT / "tests" / name), "probe"]
        path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "interop")])
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": path},
        )
        return f"cannot be set up: {done.stderr.strip()[-200:]}" if done.returncode else ""

    return probe


def _nvrtc() -> str:
    from gpu_decoder.gpu.compile import nvrtc_version

    return _unless(nvrtc_version)


def _cuda() -> str:
    from gpu_decoder.gpu.driver import Driver

    return _unless(lambda: Driver().close())


def _unless(attempt: Callable[[], object]) -> str:
    from gpu_decoder.runtime.protocol import RuntimeUnavailable

    try:
        attempt()
    except RuntimeUnavailable as error:
        return str(error)
    return ""


def _part(name: str) -> Callable[[], str]:
    return lambda: f"{name} cannot be found" if missing(name) else ""


_OPTIONAL: dict[str, str] = tomllib.loads((ROOT / "tests" / "expected_skips.toml").read_text())[
    "optional"
]
CAPABILITIES: dict[str, Callable[[], str]] = {
    **{name: _part(part) for name, part in _OPTIONAL.items()},
    "net_raw": _net_raw,
    "tmpfs": _tmpfs,
    "veth": _child("unit/veth_child.py"),
    "tap": _child("interop/tap_child.py"),
    "rxe_vm": _rxe_vm,
    "nvrtc": _nvrtc,
    "cuda": _cuda,
}
"""Capability -> probe that returns why it is missing, or an empty text."""


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests whose ``needs(...)`` this machine does not meet; the reason is shown."""
    for marker in item.iter_markers("needs"):
        for name in marker.args:
            why = CAPABILITIES[name]()
            if why:
                pytest.skip(f"needs {name}: {why}")


@pytest.fixture(autouse=True, scope="session")
def _own_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Runs of tests are no runs of the user: their record goes elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture
def scenarios() -> Path:
    """Folder of the shipped scenarios."""
    return ROOT / "scenarios"


@pytest.fixture
def pair_rule_scenario(scenarios: Path, tmp_path: Path) -> Path:
    """The shipped scenario with a pre-decoder, but the isolated-pair rule instead of a network."""
    text = (scenarios / "ising_d5.yaml").read_text()
    for network, rule in (
        ("weights: hil-surface-1,", "rule: isolated_pair,"),
        ("        predecoder: ort_cpu\n        precision: fp32\n", ""),
        (", predecoder: ort_cpu, precision: fp32", ""),
        ("by_events: {0: 1.9ms}", "by_events: {0: 430us, 10: 530us}"),
    ):
        assert network in text
        text = text.replace(network, rule)
    path = tmp_path / "pair_rule.yaml"
    path.write_text(text)
    return path


@pytest.fixture
def loopback() -> tuple[str, str]:
    """Rack and node address of this process's own, so that parallel tests do not collide."""
    number = os.getpid() % 16000
    return (
        f"127.31.{number // 250}.{number % 250 + 1}",
        f"127.32.{number // 250}.{number % 250 + 1}",
    )


@pytest.fixture
def no_orphans() -> Iterator[None]:
    """After the test, no child process is left (Linux: looked up in /proc)."""
    yield
    if not Path("/proc").is_dir():
        return
    me = str(os.getpid())
    left = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
            command = (stat.parent / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
        if fields[1] == me and fields[0] != "Z" and "resource_tracker" not in command:
            left.append(command)
    assert not left, left
