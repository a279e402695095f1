"""A device from options of the command line, in place of a scenario file; the same rules hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pydantic import ValidationError

from hil.errors import UsageError
from hil.scenario.qpu import QpuSpec
from hil.timebase import PS_PER_US

FAMILIES: Final = ("ising_memory", "stim_generated")
"""Families whose circuits need no file."""

_OPTION_OF: Final[Mapping[tuple[str, str], str]] = {("noise", "model"): "--noise"}


def device_from_options(circuit: Mapping[str, object], noise: Mapping[str, object]) -> QpuSpec:
    """The device of ``system.qpu`` sections given as options; its periods mean nothing.

    Args:
        circuit: keys of ``system.qpu.circuit``; ``None`` where an option was left out.
        noise: keys of ``system.qpu.noise``, likewise.

    Raises:
        UsageError: the first thing that is wrong, by the name of its option.
    """
    family = circuit.get("family")
    if family not in FAMILIES:
        raise UsageError(
            "a circuit that cannot be made from options"
            if family is not None
            else "neither a scenario nor a family",
            where="--family",
            got=str(family or "nothing"),
            allowed=", ".join(FAMILIES),
            fix="name a scenario for other circuits",
        )
    if circuit.get("basis") == "alternate":
        raise UsageError("one circuit at a time", where="--basis", got="alternate", allowed="X, Z")
    sections = {
        "circuit": {key: value for key, value in circuit.items() if value is not None},
        "noise": {key: value for key, value in noise.items() if value is not None},
        "round_period_ps": PS_PER_US,
        "shot_period_ps": PS_PER_US,
    }
    try:
        return QpuSpec.model_validate(sections)
    except ValidationError as error:
        raise _refusal(error.errors()[0]) from error


def _refusal(entry: Any) -> UsageError:  # noqa: ANN401 - an entry of pydantic's list
    kind: str = entry["type"]
    context: dict[str, Any] = entry.get("ctx") or {}
    words = [str(part) for part in entry["loc"] if isinstance(part, str)]
    if kind == "scenario":
        words += context["at"].split(".") if context["at"] else []
        what, got, allowed = context["what"], context["got"], context["allowed"]
    elif kind in {"missing", "union_tag_not_found"}:
        words += ["model"] if kind == "union_tag_not_found" else []
        what, got, allowed = "option missing", "nothing", ""
    elif kind == "extra_forbidden":
        what, got, allowed = (
            "option that this family or noise does not have",
            str(entry["input"]),
            "",
        )
    else:
        words += ["model"] if kind == "union_tag_invalid" else []
        what, got = "value that does not fit", str(context.get("tag", entry["input"]))
        allowed = context.get("expected") or context.get("expected_tags") or entry["msg"].lower()
    section, name = words[0], words[-1]
    return UsageError(
        what,
        where=_OPTION_OF.get((section, name), f"--{name}"),
        got=got,
        allowed=allowed,
        fix="see `hil circuit --help`",
    )
