"""What YAML 1.1 readers make of a plain scalar, and how to write one that all readers agree on."""

from __future__ import annotations

import re
from typing import Final


def portable_form(raw: str, new: object) -> str:
    """What to write instead of a plain scalar that the two versions read differently."""
    number = re.fullmatch(r"([-+]?[0-9]+)(\.[0-9]+)?[eE]([-+]?)([0-9]{1,3})", raw)
    if number:
        return f"write {number[1]}{number[2] or '.0'}e{number[3] or '+'}{number[4]}"
    if isinstance(new, int) and not isinstance(new, bool):
        return f"write {new}, or quote a text: '{raw}'"
    return f"quote it: '{raw}'"


_BOOL_1_1: Final = {
    word: state
    for state, words in ((True, ("yes", "on", "true")), (False, ("no", "off", "false")))
    for lower in words
    for word in (lower, lower.capitalize(), lower.upper())
}
_INT_1_1: Final = re.compile(
    r"[-+]?0b[01_]+|[-+]?0[0-7_]+|[-+]?(?:0|[1-9][0-9_]*)|[-+]?0x[0-9a-fA-F_]+"
    r"|[-+]?[1-9][0-9_]*(?::[0-5]?[0-9])+"
)
_FLOAT_1_1: Final = re.compile(
    r"[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+][0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+][0-9]+)?"
    r"|[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+\.[0-9_]*|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)


def yaml_1_1(raw: str) -> object:
    """The value that a YAML 1.1 reader gives a plain scalar (dates and nulls excepted).

    The patterns are those of the YAML 1.1 type repository (yaml.org/type), as PyYAML has them.
    """
    try:
        return _number_or_text(raw)
    except ValueError:
        return f"an impossible number ({raw})"


def _number_or_text(raw: str) -> object:
    if raw in _BOOL_1_1:
        return _BOOL_1_1[raw]
    text = raw.replace("_", "")
    if _FLOAT_1_1.fullmatch(raw):
        return _float_1_1(text.lower())
    if not _INT_1_1.fullmatch(raw):
        return raw
    sign, digits = (-1 if text[0] == "-" else 1), text.lstrip("+-")
    if ":" in digits:
        return sign * int(_sexagesimal(digits))
    if digits[:2] in {"0b", "0x"}:
        return sign * int(digits, 0)
    return sign * int(digits, 8 if digits[0] == "0" and len(digits) > 1 else 10)


def _float_1_1(text: str) -> float:
    sign, digits = (-1.0 if text[0] == "-" else 1.0), text.lstrip("+-")
    if ":" in digits:
        return sign * _sexagesimal(digits)
    return sign * float(digits.replace(".inf", "inf").replace(".nan", "nan"))


def _sexagesimal(digits: str) -> float:
    total = 0.0
    for part in digits.split(":"):
        total = total * 60 + float(part)
    return total
