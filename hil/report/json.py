"""report.json: the whole document, canonical (sorted keys, no infinity, ends with a newline)."""

from __future__ import annotations

import dataclasses
import json
import math

from hil.report.document import Document


def render(document: Document) -> str:
    """The document as JSON text; the same document gives the same bytes.

    A figure is ``{"value": number or null, "text": text}``. ``null`` with text ``never``
    stands for infinity (a quantile that falls on unanswered shots), with ``-`` for no value.
    """
    plain = _plain(dataclasses.asdict(document))
    return json.dumps(plain, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
