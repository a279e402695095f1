"""Section ``bind`` of a scenario: how each part is realised, one profile per level of fidelity."""

from __future__ import annotations

import re
from typing import Final, Literal, TypeAlias

from pydantic import Field, model_validator

from hil.scenario.fields import Id, Spec, problem
from hil.scenario.latency import Cycles, Latency, Recorded
from hil.scenario.service import Service

Level: TypeAlias = Literal["mil", "sil"]


class RackBinding(Spec):
    """How the rack is realised."""

    backend: Literal["simpy"] = Field(description="Model of the rack.")
    executor: Literal["auto", "bulk", "events"] = Field(
        default="auto", description="Which executor of the stages runs."
    )
    pace: int = Field(
        default=1,
        ge=1,
        le=10**6,
        description="Wall time = pace x scenario time (live network only).",
    )
    spin: bool = Field(
        default=False,
        description="Live: rack and node poll without sleeping; wants two free cores.",
    )


class NetworkBinding(Spec):
    """How the links are realised."""

    backend: Literal["virtual", "soft_roce", "frames", "verbs", "cudaq_udp"] = Field(
        description="Arrays in one process, RoCEv2 frames over UDP sockets, RoCEv2 in whole "
        "Ethernet frames, RDMA devices, or plain UDP datagrams as CUDA-Q Realtime sends them "
        "without a NIC."
    )
    rack_address: str = Field(
        default="127.0.0.2", description="Loopback address of the rack; of its device (verbs)."
    )
    node_address: str = Field(
        default="127.0.0.1", description="Loopback address of the node; of its device (verbs)."
    )
    rack_device: str | None = Field(
        default=None,
        description="RDMA device of the rack (verbs), or its network interface (frames; without "
        "one a pair of UNIX sockets joins rack and node).",
    )
    node_device: str | None = Field(default=None, description="The same of the node.")

    @model_validator(mode="after")
    def _devices(self) -> NetworkBinding:
        given = [name for name in ("rack_device", "node_device") if getattr(self, name) is not None]
        if self.backend == "verbs" or (self.backend == "frames" and given):
            if len(given) < 2:
                missing = "node_device" if given == ["rack_device"] else "rack_device"
                raise problem(
                    "E202",
                    f"missing key '{missing}'",
                    got=f"backend {self.backend}, {given[0] if given else 'no device'}",
                    allowed="rack_device and node_device",
                    fix="add it, for example mlx5_0 (verbs; `hil doctor` lists the devices) or "
                    "eth1 (frames)",
                    at="backend",
                )
        elif given:
            raise problem(
                "E513",
                f"network {self.backend} has no devices",
                got=f"{given[0]}: {getattr(self, given[0])}",
                allowed="devices with backend verbs or frames",
                fix=f"remove {given[0]}",
                at=given[0],
            )
        return self

    @model_validator(mode="after")
    def _addresses(self) -> NetworkBinding:
        for name in ("rack_address", "node_address"):
            address = getattr(self, name)
            parts = address.split(".")
            good = len(parts) == 4 and all(
                re.fullmatch("0|[1-9][0-9]{0,2}", part) and int(part) < 2**8 for part in parts
            )
            if not good or (parts[0] == "127") is (self.backend == "verbs"):
                verbs = self.backend == "verbs"
                raise problem(
                    "E205",
                    f"{name} is not {'an address of a device' if verbs else 'a loopback address'}",
                    got=address,
                    allowed="an IPv4 address outside 127.0.0.0/8" if verbs else "127.0.0.0/8",
                    fix="write the address that the device has (`rdma link`, `ip addr`)"
                    if verbs
                    else "write 127.0.0.1 and 127.0.0.2",
                    at=name,
                )
        if self.rack_address == self.node_address:
            raise problem(
                "E205",
                "rack and node share one address",
                got=self.rack_address,
                allowed="two different loopback addresses: both receive on one UDP port",
                fix="write rack_address: 127.0.0.2 and node_address: 127.0.0.1",
                at="rack_address",
            )
        return self


_MODELLED: Final = (
    "service",
    "predecoder_service",
    "fallback_service",
    "deliver",
    "dispatch",
    "reply",
)
_OPTIONAL: Final = ("fallback_service", "predecoder_service")
"""Times that a profile needs or not, as the decoder of the system is."""


_PRECISIONS: Final = {"ort_cpu": ("fp32", "int8"), "openvino": ("fp32", "bf16", "int8")}
"""Precisions in which a runtime on a processor really executes; of a GPU the engine decides."""


class DecoderBinding(Spec):
    """How the decoder is realised and what its time costs."""

    node: Literal["in_process", "process"] = Field(description="Where the decoder runs.")
    predecoder: Literal["ort_cpu", "openvino", "tensorrt", "tensorrt_rtx", "none"] = Field(
        default="none", description="Runtime of the pre-decoder's network, none without a network."
    )
    precision: Literal["fp32", "fp16", "bf16", "fp8", "int8"] | None = Field(
        default=None, description="Number format of the pre-decoder's network."
    )
    time: Literal["modelled", "measured"] = Field(
        description="Charge modelled service times, or the clock."
    )
    service: Service | None = Field(
        default=None,
        description="Primary decode (modelled); behind a pre-decoder the matching alone, "
        "as a function of the events that are left.",
    )
    predecoder_service: Service | None = Field(
        default=None,
        description="Pre-decoder (modelled), as a function of the events of the raw syndrome.",
    )
    fallback_service: Service | None = Field(
        default=None, description="Fallback decode (modelled)."
    )
    deliver: Latency | None = Field(
        default=None, description="Last bit received to payload visible (modelled)."
    )
    dispatch: Latency | None = Field(
        default=None, description="Window complete to eligible for a worker (modelled)."
    )
    reply: Latency | None = Field(
        default=None, description="Decode end to first bit of the reply (modelled)."
    )

    @model_validator(mode="after")
    def _runtime(self) -> DecoderBinding:
        network = self.predecoder != "none"
        if network == (self.precision is not None):
            known = _PRECISIONS.get(self.predecoder)
            if known is not None and self.precision not in known:
                raise problem(
                    "E513",
                    f"{self.predecoder} does not compute in {self.precision}",
                    got=str(self.precision),
                    allowed=", ".join(known),
                    fix=f"write precision: {known[0]}, or another predecoder",
                    at="precision",
                )
            return self
        raise problem(
            "E202" if network else "E513",
            "missing key 'precision'" if network else "precision without a network",
            got=f"predecoder: {self.predecoder}",
            allowed="a runtime with its precision, or none of both",
            fix="add 'precision', for example fp32" if network else "remove precision",
            at="precision",
        )

    @model_validator(mode="after")
    def _times(self) -> DecoderBinding:
        given = [name for name in _MODELLED if getattr(self, name) is not None]
        if self.time == "measured" and given:
            raise problem(
                "E513",
                "modelled times beside time: measured",
                got=", ".join(given),
                allowed="none of " + ", ".join(_MODELLED),
                fix="remove them, or write time: modelled",
                at=given[0],
            )
        missing = [name for name in _MODELLED if name not in given and name not in _OPTIONAL]
        if self.time == "modelled" and missing:
            raise problem(
                "E202",
                f"missing key '{missing[0]}'",
                got=f"time: modelled without {', '.join(missing)}",
                allowed=", ".join(_MODELLED),
                fix=f"add '{missing[0]}', or write time: measured",
                at=missing[0],
            )
        for name in ("deliver", "dispatch", "reply"):
            latency = getattr(self, name)
            if isinstance(latency, Cycles | Recorded):
                raise problem(
                    "E204",
                    "cycles need the clock of a board"
                    if isinstance(latency, Cycles)
                    else "this latency belongs to a stage of the rack or a link",
                    got=latency.dist,
                    allowed="a time, normal, lognormal, empirical",
                    fix="write a time",
                    at=f"{name}.dist",
                )
        return self


class BoundProfile(Spec):
    """How each part is realised, at one level of fidelity."""

    level: Level = Field(description="mil or sil; may be absent where the profile is named so.")
    rack: RackBinding = Field(description="The rack.")
    network: NetworkBinding = Field(description="The links.")
    decoder: DecoderBinding = Field(description="The decoder.")

    @property
    def live(self) -> bool:
        """True when real frames travel."""
        return self.network.backend != "virtual"

    @model_validator(mode="after")
    def _together(self) -> BoundProfile:
        network, node, time = self.network.backend, self.decoder.node, self.decoder.time
        want = "process" if self.live else "in_process"
        if node != want:
            raise problem(
                "E513",
                f"network {network} does not go with node {node}",
                got=f"network.backend: {network}, decoder.node: {node}",
                allowed="virtual with in_process, live networks with process",
                fix=f"write decoder.node: {want}",
                at="decoder.node",
            )
        if not self.live and time == "measured":
            raise problem(
                "E513",
                "a virtual run charges modelled time",
                got="network.backend: virtual, decoder.time: measured",
                allowed="decoder.time: modelled",
                fix="write time: modelled with service times, or network.backend: soft_roce",
                at="decoder.time",
            )
        if self.live and time == "modelled":
            raise problem(
                "E207",
                f"not yet supported: time: modelled with network.backend: {network}",
                got="decoder.time: modelled",
                allowed="decoder.time: measured",
                fix="write time: measured, or network.backend: virtual",
                at="decoder.time",
            )
        if not self.live and self.rack.pace != 1:
            raise problem(
                "E513",
                "pace without a live network",
                got=f"rack.pace: {self.rack.pace}",
                allowed="pace 1 with network.backend: virtual",
                fix="remove pace",
                at="rack.pace",
            )
        return self


class BindSpec(Spec):
    """Profiles by id, and which one is used."""

    use: Id = Field(description="Profile that runs unless --bind names another.")
    profiles: dict[Id, BoundProfile] = Field(min_length=1, description="Profiles by id.")

    @model_validator(mode="before")
    @classmethod
    def _levels(cls, data: object) -> object:
        """A profile named after a level has that level."""
        if not isinstance(data, dict) or not isinstance(data.get("profiles"), dict):
            return data
        profiles = {
            name: {"level": name, **body}
            if name in {"mil", "sil"} and isinstance(body, dict)
            else body
            for name, body in data["profiles"].items()
        }
        return {**data, "profiles": profiles}
