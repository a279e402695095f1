"""``hil export``: a scenario in the formats of other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hil.cli.complete import profiles

app = typer.Typer(no_args_is_help=True, help="A scenario in the formats of other programs.")


@app.callback()
def export() -> None:
    """A scenario in the formats of other programs."""


@app.command("cudaq-config")
def cudaq_config(
    scenario: Annotated[Path, typer.Argument(help="Scenario file.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder of the files.")],
    bind: Annotated[
        str | None,
        typer.Option(help="Profile instead of bind.use.", autocompletion=profiles),
    ] = None,
    shots: Annotated[int | None, typer.Option(min=1, help="Shots.  [default: run.shots]")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Change one value: path=value.")
    ] = None,
) -> None:
    """Write SCENARIO for NVIDIA's decoding server: decoder YAML, syndromes text, playback frames.

    Exit codes: 0 written, 2 usage, or a scenario that the server cannot express.
    """
    from hil.run.export_cudaq import export_cudaq

    fewer = [f"run.shots={shots}", "run.warmup.shots=0", "expect={}"]  # nothing is judged here
    changes = [*(set_ or ()), *(fewer if shots is not None else ())]
    done = export_cudaq(scenario, out, bind=bind, overrides=changes)
    typer.echo(
        f"{done.shots} shots; H {done.n_detectors} x {done.n_edges}, D {done.n_detectors} x "
        f"{done.n_measurements}; corrections wrong {done.failed}; {done.frames_per_shot} frames of "
        f"{done.frame_bytes} bytes a shot"
    )
    for name in done.files:
        typer.echo(f"  {out / name}")
