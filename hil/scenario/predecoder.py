"""Section ``system.decoder.predecoder``: what thins out the syndrome before matching.

Exactly one of ``weights`` (a network, built for the circuit of the scenario), ``model`` (a network
that was exported for one circuit) and ``rule`` (no network) is given. Files are read for their
SHA-256 only; the decode library reads them again where the decoder is built, and refuses another
file.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Annotated, Final, Literal, TypeAlias

from pydantic import Field, ValidationInfo, model_validator
from pydantic.json_schema import SkipJsonSchema

from hil.scenario.fields import Spec, TextContext, from_text, problem
from hil.scenario.files import read_named
from hil.scenario.problems import did_you_mean

MAX_MODEL_BYTES: Final = 512 << 20
"""Largest file of weights or of a model."""

WEIGHT_SUFFIXES: Final = (".safetensors", ".pt", ".pth")
"""What the name of a file of weights ends in; anything else is the name of shipped weights."""

GlobalName: TypeAlias = Literal["pymatching_corr", "pymatching"]

Logit: TypeAlias = Annotated[float, Field(allow_inf_nan=False)]


class ThresholdSpec(Spec):
    """Logits from which an output of the network counts as 1."""

    data: Logit = Field(description="Threshold of the flips of data qubits.")
    syndrome: Logit = Field(description="Threshold of the flips of measurements.")

    @model_validator(mode="before")
    @classmethod
    def _one_number(cls, data: object) -> object:
        if isinstance(data, int | float) and not isinstance(data, bool):
            return {"data": float(data), "syndrome": float(data)}
        if isinstance(data, dict):  # 2 is as good as 2.0
            return {
                key: float(value) if type(value) is int else value for key, value in data.items()
            }
        raise problem(
            "E203",
            "wrong type",
            got=str(data),
            allowed="a number, or {data: number, syndrome: number}",
            fix="write for example threshold: 0.5",
        )


class PredecoderSpec(Spec):
    """The pre-decoder and the matcher behind it."""

    weights: str | None = Field(
        default=None, min_length=1, description="Shipped weights, or a file (./my.safetensors)."
    )
    model: str | None = Field(
        default=None, min_length=1, description="ONNX file that was exported for this circuit."
    )
    rule: Literal["isolated_pair"] | None = Field(
        default=None, description="A rule in place of a network."
    )
    sha256: str = Field(default="", description="What the file must be, if stated.")
    threshold: ThresholdSpec | None = Field(
        default=None,
        description="Logit, or data and syndrome apart; absent: that of the file.",
    )
    residual: Literal["compatible", "keep_last"] = Field(
        default="compatible",
        description="Last-round detectors of the other basis: dropped (the reference), or kept.",
    )
    global_: GlobalName = Field(
        default="pymatching", alias="global", description="Matcher of what is left."
    )
    path: SkipJsonSchema[str] = Field(default="", alias="(path)", repr=False, exclude=True)

    @model_validator(mode="before")
    @classmethod
    def _read(cls, data: object, info: ValidationInfo) -> object:
        """Complete ``sha256`` and the place of the file."""
        context = from_text(info)
        if context is None or not isinstance(data, dict):
            return data
        key = next((key for key in ("weights", "model") if isinstance(data.get(key), str)), "")
        if not key or not data[key]:
            return data
        path, digest = _found(context, data[key], key)
        stated = data.get("sha256", "")
        if stated and isinstance(stated, str) and stated != digest:
            raise problem(
                "E403",
                f"file '{data[key]}' is another one",
                got=f"sha256 {digest}",
                allowed=stated,
                fix="restore the file, or correct sha256",
                at="sha256",
            )
        return {**data, "sha256": stated or digest, "(path)": str(path)}

    @model_validator(mode="after")
    def _one_way(self) -> PredecoderSpec:
        ways = ("weights", "model", "rule")
        given = [key for key in ways if getattr(self, key) is not None]
        if len(given) != 1:
            raise problem(
                "E202" if not given else "E201",
                "exactly one of weights, model and rule must be given",
                got=", ".join(given) or "none",
                allowed="weights | model | rule",
                fix="write rule: isolated_pair" if not given else f"remove {given[-1]}",
                at=given[-1] if given else "weights",
            )
        if self.rule is not None:
            self._without_network()
        return self

    def _without_network(self) -> None:
        for name in ("sha256", "threshold"):
            if getattr(self, name):
                raise problem(
                    "E201",
                    f"key '{name}' does not fit a rule",
                    got=f"rule: {self.rule}",
                    allowed="weights or model with it",
                    fix=f"remove '{name}'",
                    at=name,
                )
        if self.residual != "compatible":
            raise problem(
                "E201",
                "key 'residual' does not fit a rule",
                got=f"rule: {self.rule}, which drops no detector",
                allowed="weights or model with it",
                fix="remove 'residual'",
                at="residual",
            )

    @property
    def shown(self) -> str:
        """For people: where it comes from."""
        name = self.weights or self.model
        return f"{name}, sha256 {self.sha256[:12]}" if name else f"rule {self.rule}"


def shipped_weights() -> dict[str, Path]:
    """Name to file of the weights that come with the decode library."""
    folder = Path(str(files("gpu_decoder.ising").joinpath("models")))
    return {path.stem: path for path in sorted(folder.glob("*.safetensors"))}


def _found(context: TextContext, name: str, key: str) -> tuple[Path, str]:
    """File and SHA-256 of a name of shipped weights, or of a file beside the scenario."""
    if key == "weights" and not name.endswith(WEIGHT_SUFFIXES):
        known = shipped_weights()
        if name not in known:
            raise problem(
                "E401",
                f"unknown weights '{name}'",
                got=name,
                allowed="weights that `hil list` names, or a file (./my.safetensors)",
                fix=did_you_mean(name, known) or "write the name of a file, or choose others",
                at=key,
            )
        context, name = TextContext(known[name].parent), known[name].name
    _, digest = read_named(context, name, key, most_bytes=MAX_MODEL_BYTES)
    return context.folder / name, digest
