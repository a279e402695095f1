"""``hil decoder train``: train a pre-decoder network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from gpu_decoder.ising.training.loop import Progress


def train(
    config: Annotated[Path, typer.Argument(help="Training configuration.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder of checkpoint, log and weights.")],
) -> None:
    """Train the network that CONFIG describes; a run interrupted in --out goes on there."""
    from hil.run.train import read_config, train, training_interrupt

    interrupt = training_interrupt()
    with interrupt.listening():
        done = train(read_config(config), out, _tell, interrupt)
    if done.weights is None:
        typer.echo(
            f"{done.signal or 'stopped'} at step {done.step} of {done.steps}; "
            "the same command goes on from there",
            err=True,
        )
        raise typer.Exit(3)
    typer.echo(f"weights: {done.weights}")


def _tell(row: Progress) -> None:
    left = row.seconds / row.step * (row.steps - row.step)
    typer.echo(
        f"step {row.step:,} of {row.steps:,}  shots {row.shots:,}  loss {row.loss:.5f}  "
        f"rate {row.rate:.2e}  {row.seconds:,.0f} s, about {left:,.0f} s to go",
        err=True,
    )
