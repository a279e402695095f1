"""report.html: one self-contained file, readable without JavaScript, light, dark and on paper."""

from __future__ import annotations

from importlib.resources import files
from typing import Final

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from hil.report import chart, text
from hil.report.build import facts_table
from hil.report.document import Document

_TEMPLATE: Final = "page.html.j2"
_CLASSES: Final = {
    "PASS": "pass",
    "FAIL": "fail",
    "INCONCLUSIVE": "open",
    "RIG ERROR": "rig",
    "SKIP": "skip",
}


def render(document: Document) -> str:
    """The document as one HTML page; the same document gives the same bytes."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["count"] = text.count
    environment.filters["percent"] = text.percent
    template = environment.from_string(files("hil.report").joinpath(_TEMPLATE).read_text("utf-8"))
    return template.render(
        doc=document,
        facts=document.facts,
        rows=facts_table(document),
        classes=_CLASSES,
        waterfall=_markup(chart.waterfall(document.hops)),
        spread=_markup(chart.spread(document.hops, document.end_to_end, document.deadline)),
    )


def _markup(svg: str) -> Markup:
    """SVG made by `hil.report.chart`, which escapes every text itself."""
    return Markup(svg)  # noqa: S704
