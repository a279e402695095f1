"""What can be chosen from: scenarios, racks, decoders, pre-decoders and their runtimes, links.

What ``hil list`` shows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from importlib.resources import files
from pathlib import Path
from typing import Final, get_args

import hil
from gpu_decoder.build import NAMES
from hil.errors import UsageError
from hil.scenario.load import load_scenario
from hil.scenario.model import Evidence, NetworkBinding
from hil.scenario.predecoder import shipped_weights
from hil.scenario.rack_profile import profile_names
from hil.scenario.text import read_document

WEAKEST_FIRST: Final[tuple[Evidence, ...]] = ("assumed", "modelled", "rtl", "measured")

_RUNTIMES: Final = {
    "ort_cpu": ("onnxruntime",),
    "openvino": ("openvino",),
    "tensorrt": ("tensorrt",),
    "tensorrt_rtx": ("tensorrt_rtx", "tensorrt_rtx_cu13_bindings", "tensorrt_rtx_cu12_bindings"),
}
"""Runtime -> packages of which it needs one."""

_LINKS: Final = {
    "virtual": "arrays in one process, no frame; latencies are the scenario's models",
    "soft_roce": "RoCEv2 frames with exact ICRC over UDP sockets on loopback, real processes; "
    "no RDMA device: its timing says nothing about one",
    "cudaq_udp": "plain UDP datagrams on loopback, one per slot; no packet number, no ICRC",
    "frames": "RoCEv2 in whole Ethernet frames made here, over a pair of UNIX sockets between real "
    "processes, or over interfaces that are named (CAP_NET_RAW); foreign ICRCs are checked",
    "verbs": "RDMA devices that are named, through pyverbs; proven against Linux rdma_rxe, on "
    "hardware not run yet",
}


@dataclass(frozen=True, slots=True)
class ScenarioRow:
    """One scenario file. ``problem``: first error of a file that is not valid, else empty."""

    file: str
    id: str
    title: str
    profiles: tuple[str, ...]
    use: str
    tags: tuple[str, ...]
    problem: str = ""


@dataclass(frozen=True, slots=True)
class ProfileRow:
    """One shipped rack. ``evidence``: class and number of figures, weakest first."""

    name: str
    title: str
    evidence: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class DecoderRow:
    """One decoder name. ``version`` of its package, empty if that is not installed."""

    name: str
    package: str
    version: str


@dataclass(frozen=True, slots=True)
class PredecoderRow:
    """One pre-decoder that needs no file of the user's."""

    name: str
    what: str


@dataclass(frozen=True, slots=True)
class LinkRow:
    """One network backend and how real it is."""

    name: str
    what: str


def scenario_folder(folder: Path | None) -> Path:
    """The folder to list: the given one, ``./scenarios``, or that of the checkout.

    Raises:
        UsageError: there is none.
    """
    shipped = Path(hil.__file__).parent.parent / "scenarios"
    candidates = [folder] if folder is not None else [Path("scenarios"), shipped]
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    raise UsageError(
        "no folder of scenarios",
        where=str(candidates[0]),
        fix="give one with --folder, or begin one with `hil init DIR`",
    )


def scenarios(folder: Path | None = None) -> list[ScenarioRow]:
    """All YAML files of a folder, broken ones included, by name."""
    return [_scenario(path) for path in sorted(scenario_folder(folder).glob("*.yaml"))]


def _scenario(path: Path) -> ScenarioRow:
    try:
        found = load_scenario(path).scenario
    except UsageError as error:
        lines = [line for line in error.message.splitlines() if "[E" in line]
        first = (lines or error.message.splitlines())[0].removeprefix(f"{path}:")
        more = f" (and {len(lines) - 1} more)" if len(lines) > 1 else ""
        return ScenarioRow(str(path), "", "", (), "", (), first + more)
    return ScenarioRow(
        str(path), found.id, found.title, tuple(found.bind.profiles), found.bind.use, found.tags
    )


def profiles() -> list[ProfileRow]:
    """The shipped racks."""
    return [_profile(name) for name in profile_names()]


def _profile(name: str) -> ProfileRow:
    text = files("hil").joinpath("rack", "profiles", f"{name}.yaml").read_text(encoding="utf-8")
    data = read_document(text, f"{name}.yaml").data
    seen = list(_evidence(data))
    counts = tuple((e, seen.count(e)) for e in WEAKEST_FIRST if e in seen)
    title = str(data.get("title", "")) if isinstance(data, dict) else ""
    return ProfileRow(name, title, counts)


def _evidence(data: object) -> Iterator[str]:
    """Every evidence class that a profile names; ``doc`` is read as ``assumed``."""
    if isinstance(data, dict):
        for key, value in data.items():
            if key == "evidence" and isinstance(value, str):
                yield "assumed" if value == "doc" else value
            else:
                yield from _evidence(value)
    elif isinstance(data, list | tuple):
        for value in data:
            yield from _evidence(value)


def decoders() -> list[DecoderRow]:
    """Names for ``system.decoder.primary``; all but ``ising`` also for ``fallback.to``."""
    version = _version("pymatching")
    behind = DecoderRow("ising", "a pre-decoder, then pymatching", version)
    return [*(DecoderRow(name, "pymatching", version) for name in NAMES), behind]


def predecoders() -> list[PredecoderRow]:
    """Names for ``system.decoder.predecoder``: shipped weights, and the rule."""
    from gpu_decoder.ising.weights import WeightsError, load_weights

    rows = []
    for name, path in shipped_weights().items():
        try:
            found = load_weights(path)
        except WeightsError as error:
            rows.append(PredecoderRow(name, f"broken: {error}"))
            continue
        size = f"{found.architecture.name}, {found.architecture.parameters:,} parameters"
        limits = f"threshold {found.threshold_data:g}, {found.threshold_syndrome:g}"
        rows.append(PredecoderRow(name, f"weights: {size}, {limits}, {found.sha256[:12]}"))
    return [*rows, PredecoderRow("isolated_pair", "rule: two fired neighbours without another")]


def runtimes() -> list[DecoderRow]:
    """Names for ``bind.profiles.*.decoder.predecoder``, and whether their package is there.

    A package is not a device: `hil doctor` tells what can execute on this machine.
    """
    rows = []
    for name, packages in _RUNTIMES.items():
        package = next((p for p in packages if _version(p)), packages[0])
        rows.append(DecoderRow(name, package, _version(package)))
    return rows


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def links() -> list[LinkRow]:
    """Names for ``bind.profiles.*.network.backend``."""
    names = get_args(NetworkBinding.model_fields["backend"].annotation)
    return [LinkRow(name, _LINKS[name]) for name in names]
