"""``hil doctor``: every probe sees what is there, and sees it broken when it is."""

from __future__ import annotations

import errno
import itertools
import json
import os
import socket
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from gpu_decoder.gpu.compile import CompileError
from gpu_decoder.runtime.protocol import RuntimeUnavailable
from hil.cli import main
from hil.link.verbs import Devices
from hil.run import doctor, executed
from hil.run.doctor import gpu_path, machine, network, software
from hil.run.doctor.check import Check


def _script(folder: Path, name: str, text: str) -> str:
    file = folder / name
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
    return str(folder)


def test_a_port_that_is_taken_names_its_owner(loopback: tuple[str, str]) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as owner:
        owner.bind((loopback[0], 0))
        port = owner.getsockname()[1]
        taken, free = network.port_4791(port, loopback)
    assert (taken.status, free.status) == ("broken", "ok")
    assert f"pid {os.getpid()}: " in taken.detail
    assert "python" in taken.detail
    assert taken.needed_by == ("sil",)
    assert network.port_4791(port, loopback)[0].status == "ok", "free again"


def test_an_owner_of_all_addresses_is_found_too(loopback: tuple[str, str]) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as owner:
        owner.bind(("", 0))
        taken = network.port_4791(owner.getsockname()[1], loopback)[0]
    assert f"pid {os.getpid()}" in taken.detail


def test_an_owner_that_proc_does_not_show(tmp_path: Path) -> None:
    assert "another user" in network.owner_of("127.0.0.1", 4791, tmp_path)


def test_frames_go_both_ways_or_it_says_why(loopback: tuple[str, str]) -> None:
    assert network.loopback(*loopback).status == "ok"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as owner:
        owner.bind((loopback[1], 0))
        broken = network.loopback(*loopback, owner.getsockname()[1])
    assert (broken.status, broken.needed_by) == ("broken", ("sil",))
    assert "taken" in broken.detail
    assert network.loopback("192.0.2.1", loopback[1]).status == "broken"


def test_offloads_are_reported_as_the_kernel_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(socket.socket):
        def setsockopt(self, *_: object) -> None:
            raise OSError(errno.ENOPROTOOPT, "Protocol not available")

    monkeypatch.setattr(network.socket, "socket", Refusing)
    seen = network.offloads()
    assert (seen.status, seen.needed_by) == ("absent", ())
    assert "GSO refused" in seen.detail


def test_packet_sockets_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(socket.socket):
        def __init__(self, *_: object) -> None:
            raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(network.socket, "socket", Refusing)
    seen = network.packet_sockets()
    assert (seen.status, seen.needed_by) == ("absent", ())
    assert "CAP_NET_RAW" in seen.fix


def test_verbs_devices_or_why_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "probe", lambda: Devices(("mlx5_0",), ""))
    assert network.verbs().detail.startswith("mlx5_0: ")
    monkeypatch.setattr(network, "probe", lambda: Devices((), "no verbs device"))
    seen = network.verbs()
    assert (seen.status, seen.detail, seen.needed_by) == ("absent", "no verbs device", ())


def test_a_package_that_is_missing_or_old_breaks_both_levels() -> None:
    for requirement in ("no-such-package>=1.0", "numpy>=99.0"):
        check = software.packages(["h5py>=3", requirement, "zzz>=1; extra == 'x'"])[-1]
        assert (check.status, check.needed_by) == ("broken", ("mil", "sil"))
        assert requirement in check.detail
        assert check.fix == f"pip install '{requirement}'"
    assert software.packages(["numpy>=1.0"])[-1].status == "ok"
    assert software.packages([])[-1].status == "absent"


def test_extras_say_what_they_lack_and_how_to_get_it() -> None:
    lines = ["numpy>=1; extra == 'a'", 'no-such>=1; extra == "a"', "hil[a]; extra == 'b'"]
    half, empty = software.extras(lines, ["a", "b"])
    assert (half.status, half.fix) == ("absent", "pip install 'hil[a]'")
    assert "without no-such; has numpy" in half.detail
    assert "brings nothing" in empty.detail
    assert software.extras(lines[:1], ["a"])[0].status == "ok"


def test_tools_that_do_not_start_are_not_there(tmp_path: Path) -> None:
    search = _script(tmp_path, "verilator", "echo Verilator 5.48; exit 0")
    _script(tmp_path, "iverilog", "exit 3")
    verilator, iverilog, browser = software.tools(search)
    assert (verilator.status, iverilog.status, browser.status) == ("ok", "absent", "absent")
    assert "Verilator 5.48" in verilator.detail
    assert "ends with 3" in iverilog.detail


def test_the_compile_cache_needs_one_place(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    broken = software.compile_cache([file / "below"])
    assert (broken.status, broken.needed_by) == ("broken", ("mil", "sil"))
    assert "NUMBA_CACHE_DIR" in broken.fix
    assert software.compile_cache([file / "below", tmp_path / "new"]).status == "ok"


@pytest.mark.parametrize(
    ("step_ns", "status"), [(50, "ok"), (0, "broken"), (10_000_000, "broken"), (-5, "broken")]
)
def test_a_clock_that_is_coarse_or_runs_backwards(step_ns: int, status: str) -> None:
    ticks = itertools.count(10**12, step_ns)
    assert machine.clock(lambda: next(ticks)).status == status
    assert machine.clock().status == "ok"


def test_pinning_is_what_a_child_could_do() -> None:
    assert machine.pinning().status == "ok"
    assert machine.pinning((sys.executable, "-c", "raise SystemExit(1)")).status == "absent"
    assert machine.pinning((sys.executable, "-c", "print(0, 2)")).status == "absent"


def test_one_processor_is_said(tmp_path: Path) -> None:
    assert machine.processors(1).status == "absent"
    assert machine.processors(8).status == "ok"
    assert machine.memory_files(tmp_path).status == "ok"
    assert machine.memory_files(tmp_path / "absent").status == "absent"


def test_a_disk_that_is_full_or_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.touch()
    assert machine.space("x", file).status == "broken"
    assert machine.space("x", tmp_path).status == "ok"
    usage = machine.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: usage._replace(free=1 << 20))
    full = machine.space("x", tmp_path)
    assert (full.status, full.needed_by) == ("broken", ("mil", "sil"))


def test_a_gpu_is_claimed_only_as_far_as_it_was_seen(tmp_path: Path) -> None:
    nothing = machine.gpu(str(tmp_path), "libabsent.so")
    assert (nothing.status, nothing.detail) == ("absent", "no libabsent.so, no nvidia-smi")
    library_only = machine.gpu(str(tmp_path), "libc.so.6")
    assert (library_only.status, library_only.detail) == ("absent", "libc.so.6 loads")
    _script(tmp_path, "nvidia-smi", "exit 9")
    assert "ends with 9" in machine.gpu(str(tmp_path), "libabsent.so").detail
    _script(tmp_path, "nvidia-smi", "echo 'GPU 0: Some GPU (UUID: GPU-1)'")
    seen = machine.gpu(str(tmp_path), "libabsent.so")
    assert seen.status == "ok"
    assert seen.detail == "nvidia-smi lists GPU 0: Some GPU; nothing was computed on it"


def _run(predecoder: str, date: str = "2026-01-01") -> executed.Ran:
    return executed.Ran(
        date, "1", "sil", "soft_roce", "in_process", "ising", "PASS", "x", predecoder
    )


def test_the_gpu_path_has_run_only_if_a_run_is_on_record() -> None:
    def seen(*texts: str) -> Check:
        return gpu_path.path([executed.Summary(2, 1, _run(text)) for text in texts])

    for texts in ((), ("",), ("hil-x, onnxruntime 1.32.0, fp32", "isolated_pair")):
        never = seen(*texts)
        assert never.status == "absent"
        assert never.detail.startswith("the GPU path has never run on this machine")
    ran = seen("", "hil-x, tensorrt 11.4, fp16", "hil-x, tensorrt_rtx 1.7, fp16")
    assert ran.status == "ok"
    assert ran.detail == "4 runs, last 2026-01-01 PASS: hil-x, tensorrt_rtx 1.7, fp16"


def test_parts_of_the_gpu_path_are_reported_as_far_as_they_go() -> None:
    absent = gpu_path.tensorrt("no-such-package")
    assert (absent.status, absent.needed_by) == ("absent", ())
    assert "pip install tensorrt" in absent.fix
    assert gpu_path.tensorrt("numpy").status == "ok"

    def missing(_: tuple[int, int]) -> bytes:
        raise RuntimeUnavailable("NVRTC is not installed")

    def refused(_: tuple[int, int]) -> bytes:
        raise CompileError("kernels.cu(3): error")

    assert gpu_path.kernels(missing).status == "absent"
    assert gpu_path.kernels(refused).status == "broken"
    assert gpu_path.kernels(refused).needed_by == ()


@pytest.mark.needs("nvrtc")
def test_kernels_that_compile_are_not_said_to_have_run() -> None:
    found = gpu_path.kernels()
    assert found.status == "ok"
    assert found.detail.endswith("not executed")


def test_a_line_of_an_older_version_still_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    executed.record_path().parent.mkdir(parents=True)
    line = asdict(_run("hil-x, tensorrt 11.4, fp16"))
    older = {name: value for name, value in line.items() if name != "predecoder"}
    executed.record_path().write_text(json.dumps(older) + "\n" + json.dumps(line) + "\n")
    assert [entry.last.predecoder for entry in executed.summary()] == ["", line["predecoder"]]


def test_rdma_devices_are_listed(tmp_path: Path) -> None:
    assert machine.verbs(tmp_path).status == "absent"
    (tmp_path / "rxe0").mkdir()
    assert "rxe0; nothing was sent" in machine.verbs(tmp_path).detail


def test_exit_code_follows_what_mil_and_sil_need() -> None:
    good = Check("machine", "a", "ok", "")
    optional = Check("machine", "b", "broken", "")
    needed = Check("machine", "c", "broken", "", needed_by=("sil",))
    assert doctor.Examination((good, optional), (), "").exit_code == 0
    found = doctor.Examination((good, needed), (), "")
    assert (found.exit_code, found.works("mil"), found.works("sil")) == (3, True, False)


@pytest.mark.live
def test_the_page_and_the_data(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["doctor", "--json"])
    data = json.loads(capsys.readouterr().out)
    assert (data["format"], data["exit_code"]) == ("hil.doctor/1", code)
    broken = [c["name"] for c in data["checks"] if c["status"] == "broken"]
    assert code == (3 if broken else 0)
    assert main(["doctor"]) == code
    page = capsys.readouterr().out
    assert all(c["name"] in page for c in data["checks"])


def test_runs_are_kept_and_summed_up(
    scenarios: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    command = ["run", str(scenarios / "surface_d5.yaml"), "--bind", "mil", "-q"]
    assert main([*command, "--out", str(tmp_path / "a")]) == 0
    assert main([*command, "--out", str(tmp_path / "b"), "--set", "expect={}"]) == 4
    with executed.record_path().open("a") as file:
        file.write('{"level": "sil"\nnot json\n')  # cut short by a crash
    (entry,) = executed.summary()
    assert (entry.runs, entry.passed) == (2, 1)
    assert (entry.last.level, entry.last.network, entry.last.verdict) == (
        "mil", "virtual", "SKIP"
    )  # fmt: skip
    capsys.readouterr()
    main(["doctor"])
    assert "surface-d5" in capsys.readouterr().out


def test_a_record_that_cannot_be_written_is_said_and_changes_nothing(
    scenarios: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    blocked = tmp_path / "file"
    blocked.touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(blocked))
    path = str(scenarios / "surface_d5.yaml")
    assert main(["run", path, "--bind", "mil", "--out", str(tmp_path / "a")]) == 0
    assert "cannot be written" in capsys.readouterr().err
    assert executed.summary() == []
