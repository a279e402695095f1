"""Draws docs/images/house.svg: data walks through the house once. Run by ``tools/gendocs.py``."""

from __future__ import annotations

from html import escape
from pathlib import Path

OUT = Path(__file__).resolve().parent.parent / "docs" / "images" / "house.svg"
INK, SOFT, PAPER, LINE = "#1b2733", "#5b6b7a", "#ffffff", "#c3ccd5"
TITLE = "One scenario file. Data walks through the house once: device to verdict."
COLOURS = {
    "device": "#e8f1fb", "rack": "#e6f5ee", "wire": "#fdf3e1", "node": "#f4eafa", "out": "#eef0f2"
}  # fmt: skip


def box(x: int, y: int, w: int, h: int, colour: str, title: str, *lines: str) -> str:
    """A room: title, then small lines."""
    parts = [
        (
            f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="8" fill="{COLOURS[colour]}" '
            f'stroke="{LINE}"/>'
        ),
        f'<text x="{x + 12}" y="{y + 24}" class="t">{escape(title)}</text>',
    ]
    parts += [
        f'<text x="{x + 12}" y="{y + 44 + 17 * i}" class="s">{escape(line)}</text>'
        for i, line in enumerate(lines)
    ]
    return "".join(parts)


def arrow(points: str, label: str, x: int, y: int, anchor: str = "middle") -> str:
    """A labelled arrow along ``points``."""
    return (
        f'<polyline points="{points}" fill="none" stroke="{INK}" stroke-width="1.6" '
        'marker-end="url(#a)"/>'
        f'<text x="{x}" y="{y}" class="l" text-anchor="{anchor}">{escape(label)}</text>'
    )


def dashed(points: str) -> str:
    """A dashed arrow: what the control side must not see."""
    return (
        f'<polyline points="{points}" fill="none" stroke="{SOFT}" stroke-width="1.4" '
        'stroke-dasharray="5 4" marker-end="url(#a)"/>'
    )


def draw() -> str:
    """The whole picture as SVG text."""
    body = [
        box(
            20,
            60,
            190,
            112,
            "device",
            "device",
            "stim circuit, sampler",
            "detection events, truth",
            "one seed per batch",
        ),
        box(
            290,
            60,
            230,
            112,
            "rack",
            "rack",
            "demod, merge, packetize",
            "SimPy or exact recursion",
            "T0 intended  T1 syndrome",
            "T2 first bit out",
        ),
        box(
            640,
            60,
            250,
            112,
            "node",
            "node",
            "ring, session, sequence audit",
            "deadline + fallback policy",
            "T3 received  T4 visible",
            "own process when live",
        ),
        box(
            640,
            232,
            250,
            94,
            "node",
            "decoder workers",
            "primary: correlated matching",
            "fallback: plain matching",
            "T5 start .. T7 answer",
        ),
        box(
            290,
            232,
            230,
            94,
            "rack",
            "rack, way back",
            "checks id, CRC, valid-until",
            "T9 received  T10 applied",
            "late answers are discarded",
        ),
        box(
            20,
            232,
            190,
            94,
            "out",
            "record",
            "columns per batch",
            "one set of rules,",
            "virtual and live",
        ),
        box(20, 392, 190, 76, "out", "trace.h5", "SWMR + commit ledger", "readable after a kill"),
        box(
            290,
            392,
            230,
            76,
            "out",
            "metrics, verdict",
            "streaming, bounded memory",
            "PASS FAIL INCONCLUSIVE",
        ),
        box(
            640, 392, 250, 76, "out", "report", "terminal, HTML, JSON, JUnit", "same numbers in all"
        ),
        arrow("210,116 286,116", "shots", 248, 106),
        arrow("520,102 636,102", "RoCEv2 up", 578, 92),
        '<text x="578" y="120" class="s" text-anchor="middle">UC WRITE+IMM</text>',
        '<text x="578" y="136" class="s" text-anchor="middle">1 frame / round</text>',
        arrow("765,172 765,228", "window", 773, 206, "start"),
        arrow("640,279 524,279", "RoCEv2 down", 582, 269),
        '<text x="582" y="297" class="s" text-anchor="middle">UC SEND, T8</text>',
        arrow("290,279 214,279", "stamps", 252, 269),
        arrow("115,326 115,388", "record", 123, 362, "start"),
        arrow("210,430 286,430", "columns", 248, 420),
        arrow("520,430 636,430", "document", 578, 420),
        dashed("115,172 115,228"),
        '<text x="123" y="206" class="s">truth</text>',
        f'<text x="20" y="32" class="h">{escape(TITLE)}</text>',
    ]
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 910 490" width="910" height="490" '
        'role="img" aria-label="Data flow from device to verdict">'
        f"<style>text{{font-family:Helvetica,Arial,sans-serif;fill:{INK}}}"
        ".h{font-size:16px;font-weight:600}.t{font-size:15px;font-weight:600}"
        f".s{{font-size:12.5px;fill:{SOFT}}}.l{{font-size:12.5px;font-weight:600}}</style>"
        f'<defs><marker id="a" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" '
        f'markerHeight="7" orient="auto"><path d="M0 0L10 5L0 10z" fill="{INK}"/></marker></defs>'
        f'<rect width="910" height="490" fill="{PAPER}"/>' + "".join(body) + "</svg>\n"
    )


if __name__ == "__main__":
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(draw())
