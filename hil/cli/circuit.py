"""``hil circuit``: a noisy circuit, or its detector error model, as stim text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hil.cli.complete import profiles
from hil.errors import UsageError

if TYPE_CHECKING:
    from hil.device.circuits import CodeCircuit
    from hil.scenario.model import QpuSpec


def circuit(
    scenario: Annotated[
        Path | None, typer.Argument(help="Scenario file; or --family.", show_default=False)
    ] = None,
    bind: Annotated[
        str | None,
        typer.Option(
            help="Profile to use instead of the scenario's bind.use.", autocompletion=profiles
        ),
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Change one value: path=value.")
    ] = None,
    basis: Annotated[
        str | None,
        typer.Option(help="X or Z; of a scenario: which circuit, where bases alternate."),
    ] = None,
    family: Annotated[
        str | None, typer.Option(help="Without a scenario: ising_memory or stim_generated.")
    ] = None,
    distance: Annotated[int | None, typer.Option(help="With --family: code distance.")] = None,
    rounds: Annotated[int | None, typer.Option(help="With --family: rounds of a shot.")] = None,
    orientation: Annotated[
        str | None, typer.Option(help="With --family ising_memory: XV, XH, ZV, ZH (O1 to O4).")
    ] = None,
    noise: Annotated[
        str | None, typer.Option(help="With --family: noise model, for example ising25.")
    ] = None,
    p: Annotated[float | None, typer.Option(help="With --family: strength of the noise.")] = None,
    *,
    dem: Annotated[
        bool, typer.Option("--dem", help="Print the detector error model instead.")
    ] = False,
) -> None:
    """Print the circuit of SCENARIO, or of --family, with its noise, as it is sampled and kept."""
    circuit = {"family": family, "distance": distance, "rounds": rounds, "orientation": orientation}
    options = circuit | {"noise": noise, "p": p}
    if scenario is None:
        _refuse("a scenario is missing, or --family", {"bind": bind, "set": set_}, "SCENARIO")
        device = _from_options(circuit | {"basis": basis}, {"model": noise, "p": p})
    else:
        _refuse("two circuits at a time", options, "either SCENARIO, or --family with its options")
        device = _from_scenario(scenario, bind, set_ or ())
    model = _chosen(device, basis)
    typer.echo(model.dem_text if dem else model.circuit_text)


def _refuse(what: str, options: Mapping[str, object], allowed: str) -> None:
    """Refuse options that do not go with how the circuit was named."""
    for name, value in options.items():
        if value is not None:
            raise UsageError(
                what,
                where=f"--{name}",
                got=str(value),
                allowed=allowed,
                fix="see `hil circuit --help`; --set changes the circuit of a scenario",
            )


def _from_scenario(scenario: Path, bind: str | None, changes: Sequence[str]) -> QpuSpec:
    from hil.scenario.load import load_scenario

    return load_scenario(scenario, bind=bind, overrides=changes).scenario.system.qpu


def _from_options(circuit: Mapping[str, object], noise: Mapping[str, object]) -> QpuSpec:
    from hil.scenario.options import device_from_options

    return device_from_options(circuit, noise)


def _chosen(device: QpuSpec, basis: str | None) -> CodeCircuit:
    """The circuit of one basis."""
    from hil.device.families import build_models

    models = {model.basis: model for model in build_models(device)}
    if basis is None and len(models) > 1:
        raise UsageError(
            "the scenario has one circuit per basis",
            where="--basis",
            got="nothing",
            allowed=", ".join(models),
            fix=f"write --basis {next(iter(models))}",
        )
    if basis is not None and basis not in models:
        raise UsageError(
            "no circuit in this basis",
            where="--basis",
            got=basis,
            allowed=", ".join(models),
            fix="leave --basis out, or write --set system.qpu.circuit.basis=alternate",
        )
    return models[basis or next(iter(models))]
