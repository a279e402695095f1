"""Rules of sliding windows: they fit the shot, the ring, the network and the decoder's speed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from hil.scenario.expect import METRICS, Expectation
from hil.scenario.model import BindSpec, DecoderSpec, QpuSpec, RackSpec
from hil.scenario.problems import Problem
from hil.scenario.text import Document


def check_windows(
    decoder: DecoderSpec,
    qpu: QpuSpec | None,
    rack: RackSpec | None,
    bind: BindSpec | None,
    document: Document,
) -> Iterator[Problem]:
    """What must hold where shots are decoded in sliding windows."""
    sizes = decoder.window.sliding
    if sizes is None:
        return
    length = sum(sizes)
    if qpu is not None and length > qpu.n_blocks:
        yield document.problem(
            "E205",
            ("system", "decoder", "window", "commit"),
            "the window is longer than the shot",
            got=f"commit {sizes[0]} + buffer {sizes[1]}",
            allowed=f"at most {qpu.n_blocks} = rounds + 1",
            fix="write mode: shot, lower commit or buffer, or raise rounds",
        )
    for name, stage in rack.stages.items() if rack is not None else ():
        if stage.buffer is not None:
            yield document.problem(
                "E513",
                ("system", "rack", "stages", name, "buffer"),
                "a finite buffer does not go with sliding windows",
                got=f"buffer: {stage.buffer}, window.mode: sliding",
                allowed="stages without buffer, or window.mode: shot",
                fix="remove buffer",
            )
    used = bind.profiles.get(bind.use) if bind is not None else None
    if bind is not None and used is not None and used.live:
        yield document.problem(
            "E513",
            ("bind", "profiles", bind.use, "network", "backend"),
            "sliding windows are not decoded on a live network",
            got=f"network.backend: {used.network.backend}, window.mode: sliding",
            allowed="virtual",
            fix="choose a profile with network.backend: virtual, or write window.mode: shot",
        )


def check_window_metrics(
    expect: Mapping[str, Expectation],
    decoder: DecoderSpec,
    qpu: QpuSpec | None,
    document: Document,
) -> Iterator[Problem]:
    """A load of windows is measured where shots have windows beside their last one."""
    sizes = decoder.window.sliding
    if sizes is None:
        what, got = "without sliding windows", "window.mode: shot"
        allowed, mend = "window.mode: sliding", "write mode: sliding with commit and buffer"
    elif qpu is not None and sum(sizes) == qpu.n_blocks:
        what, got = "of shots that are one window", f"commit + buffer = {sum(sizes)} = rounds + 1"
        allowed, mend = f"commit + buffer < {qpu.n_blocks}", "raise rounds"
    else:
        return
    for name, expectation in expect.items():
        if METRICS[expectation.metric].kind == "load":
            yield document.problem(
                "E513",
                ("expect", name, "metric"),
                f"{expectation.metric} {what}",
                got=got,
                allowed=allowed,
                fix=f"remove this expectation, or {mend}",
            )
