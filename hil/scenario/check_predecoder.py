"""Rules of pre-decoders across sections: the circuit they know, the runtime that a profile names.

E506: the order of detectors and the noise that a network was made for are those of one family.
"""

from __future__ import annotations

from collections.abc import Iterator

from hil.scenario.model import BindSpec, DecoderSpec, IsingCircuit, QpuSpec
from hil.scenario.problems import Problem
from hil.scenario.text import Document


def check_predecoder(
    decoder: DecoderSpec, qpu: QpuSpec | None, bind: BindSpec | None, document: Document
) -> Iterator[Problem]:
    """All rules of the pre-decoder of one scenario, or of its absence."""
    if qpu is not None:
        yield from _check_family(decoder, qpu, document)
    for name, profile in bind.profiles.items() if bind is not None else ():
        yield from _check_runtime(decoder, name, profile.decoder.predecoder, document)
        here = ("bind", "profiles", name, "decoder", "predecoder_service")
        given = profile.decoder.predecoder_service is not None
        needed = decoder.predecoder is not None and profile.decoder.time == "modelled"
        if given and not needed:
            yield document.problem(
                "E513",
                here,
                "time of a pre-decoder without one",
                got=f"primary: {decoder.primary}",
                allowed="primary: ising",
                fix="remove predecoder_service",
                key=True,
            )
        if needed and not given:
            yield document.problem(
                "E202",
                here,
                "missing key 'predecoder_service'",
                got="primary: ising, time: modelled",
                allowed="the time of the pre-decoder beside that of the matching (service)",
                fix="add 'predecoder_service', for example {by_events: {0: 500us}, evidence: ...}",
                key=True,
            )


def _check_family(decoder: DecoderSpec, qpu: QpuSpec, document: Document) -> Iterator[Problem]:
    ising = isinstance(qpu.circuit, IsingCircuit)
    if decoder.predecoder is not None and not ising:
        yield document.problem(
            "E506",
            ("system", "decoder", "predecoder"),
            "a pre-decoder knows the circuits of one family only",
            got=f"family: {qpu.circuit.family}",
            allowed="family: ising_memory",
            fix="write family: ising_memory, or primary: pymatching",
            key=True,
        )
    if decoder.window.sliding is not None and ising:
        yield document.problem(
            "E513",
            ("system", "decoder", "window", "mode"),
            "sliding windows need detectors with coordinates",
            got="family: ising_memory, whose detectors have none",
            allowed="window.mode: shot, or another family",
            fix="write window: {mode: shot}",
        )
    if isinstance(qpu.circuit, IsingCircuit) and decoder.predecoder is not None:
        model = decoder.predecoder.model
        if model is not None and len(qpu.circuit.bases) > 1:
            yield document.problem(
                "E506",
                ("system", "decoder", "predecoder", "model"),
                "an exported model knows one basis",
                got="basis: alternate",
                allowed="basis: X or Z; or weights, from which a model per basis is made",
                fix="write weights in place of model",
            )


def _check_runtime(
    decoder: DecoderSpec, name: str, runtime: str, document: Document
) -> Iterator[Problem]:
    """A network needs a runtime, everything else has none."""
    network = decoder.predecoder is not None and decoder.predecoder.rule is None
    if network == (runtime != "none"):
        return
    what = "rule" if decoder.predecoder is not None else f"primary: {decoder.primary}"
    yield document.problem(
        "E202" if network else "E513",
        ("bind", "profiles", name, "decoder", "predecoder"),
        "missing key 'predecoder'" if network else "a runtime without a network",
        got="a network without a runtime" if network else f"predecoder: {runtime}, {what}",
        allowed="ort_cpu, openvino, tensorrt, tensorrt_rtx" if network else "none",
        fix="add 'predecoder: ort_cpu' and 'precision: fp32'"
        if network
        else "remove predecoder and precision",
        key=True,
    )
