"""Latencies computed by a vendor's own timing model (extra ``vendors``)."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field, ValidationInfo, model_validator
from pydantic.json_schema import SkipJsonSchema

from hil.errors import MissingExtraError
from hil.scenario.fields import DurationPs, PeriodPs, Spec, from_text, problem
from hil.timebase import PS_PER_NS

_SAMPLE_PS: Final = 500
"""The analysers sample at 2 GSa/s."""
_CYCLE_PS: Final = 4 * PS_PER_NS
"""One sequencer clock cycle of the signal generators (250 MHz)."""

Generator = Literal["HDAWG", "SHFSG", "SHFQC"]
Analyzer = Literal["SHFQA", "SHFQC"]


class Zhinst(Spec):
    """Feedback latency of Zurich Instruments' QCCS by the package ``zhinst-timing-models``.

    The model gives the time from the trigger of a readout to the moment at which the signal
    generator's sequencer sees the result; without the readout (``integration``, in samples of
    0.5 ns) it is what the electronics add. It cannot say how that time divides between the way to
    the hub (PQSC) and the way from it: ``part`` takes the whole or one of two halves that add up.
    """

    dist: Literal["zhinst"]
    generator: Generator = Field(description="Signal generator.")
    analyzer: Analyzer = Field(description="Quantum analyser.")
    path: Literal["register", "decoder", "internal"] = Field(
        description="PQSC register forwarding, PQSC decoder, or inside one SHFQC."
    )
    trigger: Literal["zsync", "internal"] = Field(
        default="zsync", description="Where the start trigger comes from."
    )
    integration_ps: PeriodPs = Field(
        alias="integration", description="From the trigger to the end of the integration."
    )
    alignment: bool = Field(default=True, description="Automatic alignment of the instruments.")
    part: Literal["whole", "to_hub", "from_hub"] = Field(
        default="whole", description="The whole way, or one of its two halves."
    )
    counted_from: Literal["trigger", "integration_end"] = Field(
        default="integration_end", description="Where the time begins."
    )
    ps: SkipJsonSchema[DurationPs] = Field(default=0, alias="(ps)")

    @model_validator(mode="after")
    def _compute(self, info: ValidationInfo) -> Zhinst:
        if from_text(info) is None:
            return self
        total = self._total_ps()
        first = total // 2
        ps = {"whole": total, "to_hub": first, "from_hub": total - first}[self.part]
        object.__setattr__(self, "ps", ps)
        return self

    def _total_ps(self) -> int:
        """Latency by the vendor's model.

        Raises:
            MissingExtraError: the package is not installed.
            PydanticCustomError: E204 for a combination that the model refuses, E205 for a time
                that is too short or not a whole number of samples.
        """
        if self.integration_ps % _SAMPLE_PS:
            raise problem(
                "E205",
                "integration is not a whole number of samples",
                got=f"{self.integration_ps}ps",
                allowed="a multiple of 500ps, from 10ns",
                fix="round it",
                at="integration",
            )
        samples = self.integration_ps // _SAMPLE_PS
        try:
            total = feedback_cycles(
                self.generator, self.analyzer, self.path, self.trigger, samples,
                alignment=self.alignment,
            ) * _CYCLE_PS  # fmt: skip
        except ValueError as error:
            short = samples < 20
            raise problem(
                "E205" if short else "E204",
                "the vendor's timing model refuses this",
                got=str(error),
                allowed="a combination of instruments that zhinst-timing-models knows",
                fix="write integration: 10ns or more" if short else "change generator or path",
                at="integration" if short else "path",
            ) from error
        return total - (samples * _SAMPLE_PS if self.counted_from == "integration_end" else 0)


def feedback_cycles(
    generator: Generator,
    analyzer: Analyzer,
    path: str,
    trigger: str,
    samples: int,
    *,
    alignment: bool,
) -> int:
    """Latency in cycles of 4 ns: ``QCCSFeedbackModel.get_latency`` of zhinst-timing-models.

    Raises:
        MissingExtraError: the package is not installed.
        ValueError: the model refuses the combination, or fewer than 20 samples.
    """
    try:
        from zhinst import timing_models as zi
    except ImportError as error:
        raise MissingExtraError(
            "the timing model of Zurich Instruments is not installed",
            where="latency {dist: zhinst}",
            got=str(error),
            allowed="package zhinst-timing-models",
            fix="pip install 'hil[vendors]'",
        ) from error
    modes = {"register": zi.PQSCMode.REGISTER_FORWARD, "decoder": zi.PQSCMode.DECODER}
    description = zi.get_feedback_system_description(
        generator_type=zi.SGType[generator],
        analyzer_type=zi.QAType[analyzer],
        pqsc_mode=modes.get(path),
        trigger_source=zi.TriggerSource[trigger.upper()],
        feedback_path=zi.FeedbackPath.INTERNAL if path == "internal" else zi.FeedbackPath.ZSYNC,
        automatic_triggerdelays=alignment,
    )
    return int(zi.QCCSFeedbackModel(description=description).get_latency(samples))
