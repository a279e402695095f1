"""``hil decoder``: files of the pre-decoder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

app = typer.Typer(no_args_is_help=True, help="Files of the Ising pre-decoder.")


@app.callback()
def _decoder() -> None:
    """Files of the Ising pre-decoder."""


@app.command("export-onnx")
def export_onnx(
    out: Annotated[Path, typer.Argument(help="ONNX file to write.", show_default=False)],
    weights: Annotated[str, typer.Option(help="Weights file or shipped name.", show_default=False)],
    distance: Annotated[int, typer.Option(help="Code distance, odd.", show_default=False)],
    rounds: Annotated[int, typer.Option(help="T, at least 2.", show_default=False)],
    basis: Annotated[Literal["X", "Z"], typer.Option(help="Memory basis.", show_default=False)],
    orientation: Annotated[str, typer.Option(help="XV, XH, ZV, ZH or O1 .. O4.")] = "XV",
    threshold: Annotated[
        float | None,
        typer.Option(
            help="Logit from which an output bit is 1.  [default: stored with the weights]"
        ),
    ] = None,
    threshold_syndrome: Annotated[
        float | None,
        typer.Option(help="The same for measurement bits alone.  [default: as --threshold]"),
    ] = None,
    residual: Annotated[
        Literal["compatible", "keep_last"],
        typer.Option(help="Last round of the other basis: dropped as the reference does, or kept."),
    ] = "compatible",
    precision: Annotated[
        Literal["fp32", "fp16", "int8"], typer.Option(help="Of the convolutions.")
    ] = "fp32",
    *,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Write the pre-decoder of one circuit as one ONNX file, for any runtime."""
    from hil.run import export

    info = export.export_onnx(
        weights,
        out,
        distance=distance,
        rounds=rounds,
        basis=basis,
        orientation=orientation,
        threshold=threshold,
        threshold_syndrome=threshold_syndrome,
        keep_last=residual == "keep_last",
        precision=precision,
        force=force,
    )
    typer.echo(
        f"{out}: {info.model_id}, d = {info.distance}, T = {info.rounds}, basis {info.basis}, "
        f"orientation {info.orientation}, thresholds {info.threshold_data:g} and "
        f"{info.threshold_syndrome:g}, {info.precision}"
    )


@app.command()
def info(
    file: Annotated[
        str, typer.Argument(help="Weights, shipped name or ONNX file.", show_default=False)
    ],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print data instead of lines.")] = False,
) -> None:
    """Tell what a weights file or an exported model holds, checked against itself."""
    from json import dumps

    from hil.run.export import file_facts

    facts = file_facts(file)
    if as_json:
        typer.echo(dumps(facts, indent=2))
        return
    for key, value in facts.items():
        lines = value.items() if isinstance(value, dict) else ()
        typer.echo(f"{key:<20}{'' if lines else '-' if value == '' else value}".rstrip())
        for inner, text in lines:
            typer.echo(f"  {inner:<18}{text}")
