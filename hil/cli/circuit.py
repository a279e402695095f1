"""``hil circuit``: the noisy circuit of a scenario, or its detector error model, as stim text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hil.cli.complete import profiles
from hil.errors import UsageError


def circuit(
    scenario: Annotated[Path, typer.Argument(help="Scenario file.", show_default=False)],
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
        str | None, typer.Option(help="X or Z: which circuit, where bases alternate.")
    ] = None,
    *,
    dem: Annotated[
        bool, typer.Option("--dem", help="Print the detector error model instead.")
    ] = False,
) -> None:
    """Print the circuit of SCENARIO with its noise, as it is sampled and kept in traces."""
    from hil.device.families import build_models
    from hil.scenario.load import load_scenario

    loaded = load_scenario(scenario, bind=bind, overrides=set_ or ())
    models = {model.basis: model for model in build_models(loaded.scenario.system.qpu)}
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
    model = models[basis or next(iter(models))]
    typer.echo(model.dem_text if dem else model.circuit_text)
