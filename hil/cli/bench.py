"""``hil bench``: speed ratios, measured side by side on this machine."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

app = typer.Typer(no_args_is_help=True, help="Speed ratios, measured side by side.")


@app.callback()
def _bench() -> None:
    """Speed ratios, measured side by side."""


@app.command()
def model(
    json: Annotated[bool, typer.Option("--json", help="Print data instead of a table.")] = False,
    seconds: Annotated[
        float, typer.Option(min=0.1, help="Length of one reference measurement.")
    ] = 10.0,
    repeats: Annotated[int, typer.Option(min=1, help="Alternations; the median counts.")] = 3,
    distance: Annotated[
        list[int] | None, typer.Option("--distance", "-d", help="Code distance; repeatable.")
    ] = None,
    primary: Annotated[
        Literal["pymatching_corr", "pymatching"], typer.Option(help="Decoder of both sides.")
    ] = "pymatching_corr",
) -> None:
    """Virtual run against bare sampling + decoding; one thread, p = 0.003, rounds = distance."""
    from json import dumps

    from hil.run.bench import DISTANCES, as_data, bench_model

    rows = bench_model(
        distance or DISTANCES,
        seconds=seconds,
        repeats=repeats,
        primary=primary,
        tell=lambda text: typer.echo(text, err=True),
    )
    if json:
        typer.echo(dumps(as_data(rows), indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"virtual run / bare sampler + {primary}, one thread, p = 0.003")
    for name in (
        "d",
        "shots",
        "bare /s",
        "level shots /s",
        "ratio",
        "level rounds /s",
        "ratio rounds",
        "overhead us/shot",
        "fallbacks",
    ):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            str(row.distance), f"{row.shots:,}", f"{row.rate_bare:,.0f}", f"{row.rate_shots:,.0f}",
            f"{row.ratio:.2f}", f"{row.rate_rounds:,.0f}", f"{row.ratio_rounds:.2f}",
            f"{row.overhead_us:.2f}", f"{100 * row.fallback_rate:.2f} %",
        )  # fmt: skip
    Console().print(table)


@app.command()
def predecoder(
    json: Annotated[bool, typer.Option("--json", help="Print data instead of a table.")] = False,
    weights: Annotated[
        str, typer.Option(help="Weights file or shipped name.  [default: random values]")
    ] = "",
    model_id: Annotated[str, typer.Option(help="Architecture of the random weights.")] = "hil-48x6",
    runtime: Annotated[
        Literal["ort_cpu", "openvino"],
        typer.Option(help="Runtime of the network, fp32, one thread."),
    ] = "ort_cpu",
    repeats: Annotated[int, typer.Option(min=1, help="Alternations; the median counts.")] = 15,
    distance: Annotated[
        list[int] | None, typer.Option("--distance", "-d", help="Code distance; repeatable.")
    ] = None,
) -> None:
    """Whole pre-decoder against its bare network, one shot against a batch; processor time."""
    from json import dumps

    from gpu_decoder.runtime.protocol import RuntimeUnavailable
    from hil.errors import DecoderError, UsageError
    from hil.run.bench_predecoder import BATCH, DISTANCES, as_data, bench_predecoder

    try:
        rows = bench_predecoder(
            distance or DISTANCES,
            weights=weights,
            model_id=model_id,
            backend=runtime,
            repeats=repeats,
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    except RuntimeUnavailable as error:
        raise DecoderError(str(error)) from error
    if json:
        typer.echo(dumps(as_data(rows, runtime), indent=2))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    what = weights or model_id
    table = Table(
        box=box.SIMPLE_HEAD,
        title=f"{what} on {runtime} fp32, one thread, us of processor time per shot",
        caption=f"gain: one shot per call / batch of {BATCH}; decoder: network and matching",
    )
    for name in (
        "d", "network alone", "whole graph", "ratio", "graph in batch", "gain",
        "decoder one", "decoder batch", "gain",
    ):  # fmt: skip
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            str(row.distance), f"{row.network_us:,.0f}", f"{row.graph_us:,.0f}",
            f"{row.ratio:.2f}", f"{row.batch_us:,.0f}", f"{row.gain:.2f}",
            f"{row.decoder_us:,.0f}", f"{row.decoder_batch_us:,.0f}", f"{row.gain_decoder:.2f}",
        )  # fmt: skip
    Console().print(table)


@app.command()
def link(
    json: Annotated[bool, typer.Option("--json", help="Print data instead of a table.")] = False,
    packets: Annotated[
        int, typer.Option(min=1, help="Packets of each stream and repeat.")
    ] = 480_000,
    repeats: Annotated[int, typer.Option(min=1, help="Alternations; the median counts.")] = 5,
) -> None:
    """RoCEv2 over UDP sockets against bare UDP of the same sizes; loopback, two processes."""
    from json import dumps

    from hil.run.bench_link import PACKET_BYTES, as_data, bench_link

    result = bench_link(
        packets=packets, repeats=repeats, tell=lambda text: typer.echo(text, err=True)
    )
    if json:
        typer.echo(dumps(as_data(result), indent=2))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    names = {
        "raw": "UDP, many a call, nothing read",
        "bare": "UDP, many a call, payloads moved",
        "bulk": "RoCEv2, many a call",
        "single": "RoCEv2, one a call",
    }
    table = Table(
        box=box.SIMPLE_HEAD,
        title=f"datagrams of {PACKET_BYTES} B over loopback",
        caption=f"RoCEv2 in bulk / UDP with payloads moved {result.bulk_to_bare:.2f}, "
        f"/ nothing read {result.bulk_to_raw:.2f}, / one a call {result.bulk_to_single:.1f}",
    )
    for name in ("method", "packets/s", "sender us", "receiver us"):
        table.add_column(name, justify="left" if name == "method" else "right")
    for row in result.streams:
        table.add_row(
            names[row.method], f"{row.rate:,.0f}", f"{row.sender_us:.2f}", f"{row.receiver_us:.2f}"
        )
    Console().print(table)
    typer.echo(
        f"round trip p50: bare UDP {result.bare_p50_us:.1f} us, RoCEv2 {result.roce_p50_us:.1f} us "
        f"(p99 {result.roce_p99_us:.1f}), ratio {result.round_trip:.2f}"
    )
