"""Section ``system`` of a scenario: what is wired to what. Names no simulator, host or device."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field, model_validator

from hil.scenario.fields import (
    Id,
    PeriodPs,
    RateBps,
    SizeBytes,
    Spec,
    as_tuple,
    problem,
)
from hil.scenario.latency import EvidenceField, Latency, check_evidence
from hil.scenario.predecoder import GlobalName, PredecoderSpec
from hil.scenario.qpu import QpuSpec
from hil.scenario.rack import RackSpec
from hil.units import format_time

HOPS = (
    "acquire",
    "packetize",
    "uplink",
    "deliver",
    "queue",
    "decode",
    "reply",
    "downlink",
    "apply",
)
"""Hops of a window's last block; they add up to the end-to-end latency exactly."""

Hop: TypeAlias = Literal[
    "acquire",
    "packetize",
    "uplink",
    "deliver",
    "queue",
    "decode",
    "reply",
    "downlink",
    "apply",
]
Primary: TypeAlias = Literal["ising", "pymatching_corr", "pymatching"]
FallbackReason: TypeAlias = Literal[
    "deadline",
    "predecoder_error",
    "output_invalid",
    "queue_full",
    "engine_missing",
    "engine_mismatch",
    "epoch_mismatch",
    "transport_loss",
    "device_lost",
    "forced",
]


class _Link(Spec):
    rate_bps: RateBps = Field(alias="rate", description="Line rate.")
    mtu_bytes: SizeBytes = Field(alias="mtu", description="RoCEv2 path MTU.")
    latency: Latency = Field(description="Flight time, serialisation excluded.")
    evidence: EvidenceField = Field(description="Where the latency comes from.")
    source: str = Field(default="", description="Who says so.")
    psn_start: int = Field(default=0, ge=0, lt=2**24, description="First packet sequence number.")
    udp_port: int = Field(
        default=4791, ge=1, le=65535, description="UDP destination port; 4791 is the standard."
    )

    @model_validator(mode="after")
    def _mtu(self) -> _Link:
        sizes = (256, 512, 1024, 2048, 4096)
        if self.mtu_bytes not in sizes:
            raise problem(
                "E509",
                "not a RoCEv2 path MTU",
                got=f"{self.mtu_bytes}B",
                allowed=", ".join(f"{size}B" for size in sizes),
                fix="write mtu: 4096B",
                at="mtu",
            )
        return self

    @model_validator(mode="after")
    def _honest(self) -> _Link:
        check_evidence(self.latency, self.evidence)
        return self


class UpLinkSpec(_Link):
    """Link from the rack to the decoder."""

    from_: Id = Field(alias="from", description="Aggregate board that sends.")
    to: Literal["decoder"] = Field(description="Where it ends.")
    profile: Literal["rocev2-uc-write-imm", "rocev2-rc-write-imm"] = Field(
        description="Transport: uc, unreliable, or rc, reliable connection; both links alike."
    )
    payload: Literal["detectors", "measurements"] = Field(
        default="detectors",
        description="What a frame carries of its round: detection events, or raw measurements "
        "from which the decoder forms them.",
    )
    envelope: Literal["hil", "nvidia"] = Field(
        default="hil",
        description="Fields that protect each message: hil (epoch, boards, crc32), or nvidia: "
        "none beside counter and request id.",
    )


class DownLinkSpec(_Link):
    """Link from the decoder to the rack."""

    from_: Literal["decoder"] = Field(alias="from", description="Where it starts.")
    to: Id = Field(description="Aggregate board that receives.")
    profile: Literal["rocev2-uc-send", "rocev2-rc-send"] = Field(
        description="Transport: uc or rc, as of the other link."
    )


class LinksSpec(Spec):
    """Both directions between rack and decoder."""

    up: UpLinkSpec = Field(description="Rack to decoder.")
    down: DownLinkSpec = Field(description="Decoder to rack.")

    @property
    def transport(self) -> Literal["uc", "rc"]:
        """Connection that both directions share: unreliable or reliable."""
        return "rc" if self.up.profile == "rocev2-rc-write-imm" else "uc"

    @model_validator(mode="after")
    def _one_connection(self) -> LinksSpec:
        wanted = f"rocev2-{self.transport}-send"
        if self.down.profile != wanted:
            raise problem(
                "E513",
                "both links are one connection and have one transport",
                got=f"up: {self.up.profile}, down: {self.down.profile}",
                allowed="uc with uc, rc with rc",
                fix=f"write down.profile: {wanted}",
                at="down.profile",
            )
        return self


class WindowSpec(Spec):
    """How rounds are grouped for decoding."""

    mode: Literal["shot", "sliding"] = Field(
        description="shot: one window; sliding: overlapping windows, decoded as rounds arrive."
    )
    commit: int | None = Field(
        default=None, ge=1, description="sliding: rounds that a window commits."
    )
    buffer: int | None = Field(
        default=None, ge=0, description="sliding: rounds that it looks ahead."
    )

    @model_validator(mode="after")
    def _sizes(self) -> WindowSpec:
        for name in ("commit", "buffer"):
            given = getattr(self, name) is not None
            if given == (self.mode == "sliding"):
                continue
            raise problem(
                "E201" if given else "E202",
                f"key '{name}' does not fit mode: shot" if given else f"missing key '{name}'",
                allowed="mode: sliding with commit and buffer",
                fix=f"remove '{name}'" if given else f"add '{name}', for example the distance",
                at=name,
            )
        return self

    @property
    def sliding(self) -> tuple[int, int] | None:
        """Commit and buffer of sliding windows, else ``None``."""
        if self.commit is None or self.buffer is None:
            return None
        return self.commit, self.buffer


class RingSpec(Spec):
    """Receive ring of the decoder node."""

    slots: int = Field(ge=1, le=4096, description="Frames it can hold.")
    when_full: Literal["drop"] = Field(description="A frame without a slot is refused.")


class FallbackSpec(Spec):
    """What answers when the primary decoder cannot."""

    to: GlobalName = Field(description="Fallback decoder, always on the raw syndrome.")
    policy: Literal["on_deadline", "never"] = Field(description="Whether it is used.")
    workers: int = Field(default=1, ge=1, le=256, description="Workers of its own.")
    primary_deadline_ps: PeriodPs | None = Field(
        default=None,
        alias="primary_deadline",
        description="Time after the last round until which the primary may answer.",
    )
    when: Annotated[tuple[FallbackReason, ...], as_tuple] = Field(
        default=(
            "deadline",
            "predecoder_error",
            "output_invalid",
            "engine_missing",
            "engine_mismatch",
            "device_lost",
            "forced",
        ),
        description="Reasons for which the fallback is asked; queue_full, epoch_mismatch and "
        "transport_loss leave nothing to decode.",
    )

    @model_validator(mode="after")
    def _deadline(self) -> FallbackSpec:
        if self.policy == "never":
            return self
        if self.primary_deadline_ps is None:
            raise problem(
                "E202",
                "missing key 'primary_deadline'",
                allowed="policy on_deadline has a primary_deadline",
                fix="add 'primary_deadline', below decoder.deadline",
                at="primary_deadline",
            )
        if "deadline" not in self.when:
            raise problem(
                "E204",
                "policy on_deadline without reason 'deadline'",
                got=f"when: [{', '.join(self.when)}]",
                allowed="a list with deadline",
                fix="write when: [deadline]",
                at="when",
            )
        return self


class DecoderSpec(Spec):
    """The decoder as a part of the system: what is asked of it, not where it runs."""

    deadline_ps: PeriodPs = Field(
        alias="deadline", description="From the intended time of the window's last round."
    )
    window: WindowSpec = Field(description="What one decode covers.")
    workers: int = Field(ge=1, le=256, description="Primary workers.")
    ring: RingSpec = Field(description="Receive ring.")
    primary: Primary = Field(description="Decoder that is asked first.")
    predecoder: PredecoderSpec | None = Field(
        default=None, description="primary: ising: the pre-decoder and the matcher behind it."
    )
    fallback: FallbackSpec = Field(description="What answers in its place.")
    on_node_lost: Literal["fail", "in_process"] = Field(
        default="fail", description="When the node dies: rig error, or go on in process."
    )

    @property
    def matcher(self) -> GlobalName:
        """The decoder that finishes what the primary begins; without a pre-decoder all of it."""
        if self.predecoder is not None:
            return self.predecoder.global_
        return "pymatching" if self.primary == "pymatching" else "pymatching_corr"

    @model_validator(mode="after")
    def _deadlines(self) -> DecoderSpec:
        early = self.fallback.primary_deadline_ps
        if early is not None and early >= self.deadline_ps:
            raise problem(
                "E205",
                "primary_deadline is not below the deadline",
                got=format_time(early),
                allowed=f"< {format_time(self.deadline_ps)}",
                fix="lower primary_deadline",
                at="fallback.primary_deadline",
            )
        return self

    @model_validator(mode="after")
    def _predecoded(self) -> DecoderSpec:
        given = self.predecoder is not None
        if given == (self.primary == "ising"):
            return self
        raise problem(
            "E513" if given else "E202",
            f"a pre-decoder beside primary: {self.primary}"
            if given
            else "missing key 'predecoder'",
            got=f"primary: {self.primary}",
            allowed="primary: ising with predecoder",
            fix="write primary: ising, or remove predecoder"
            if given
            else "add 'predecoder', for example {rule: isolated_pair}",
            at="predecoder",
        )

    @model_validator(mode="after")
    def _streaming(self) -> DecoderSpec:
        """A window hands its defects on to the next: no second decoder can take over halfway."""
        if self.window.sliding is None:
            return self
        if self.primary == "ising":
            raise problem(
                "E506",
                "a pre-decoder does not go with sliding windows",
                got="window.mode: sliding, primary: ising",
                allowed="window.mode: shot: it masks the first and the last round of a whole shot",
                fix="write window: {mode: shot}, or primary: pymatching",
                at="primary",
            )
        if self.fallback.policy != "never":
            raise problem(
                "E513",
                "sliding windows have no fallback",
                got=f"window.mode: sliding, fallback.policy: {self.fallback.policy}",
                allowed="policy: never",
                fix="write fallback.policy: never",
                at="fallback.policy",
            )
        if self.primary != "pymatching":
            raise problem(
                "E513",
                f"{self.primary} does not decode sliding windows",
                got=f"window.mode: sliding, primary: {self.primary}",
                allowed="pymatching",
                fix="write primary: pymatching",
                at="primary",
            )
        return self


class SystemSpec(Spec):
    """What is wired to what."""

    qpu: QpuSpec = Field(description="The quantum device.")
    rack: RackSpec = Field(description="The control electronics.")
    links: LinksSpec = Field(description="Links between rack and decoder.")
    decoder: DecoderSpec = Field(description="The decoder.")
