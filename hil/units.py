"""Quantities with written units, read and written exactly.

Text such as ``1.1us`` or ``322.265625MHz`` becomes an exact integer or fraction; no float is ever
involved. Times are integer picoseconds, rates bits per second, sizes bytes, frequencies exact
``Fraction`` hertz, drifts exact ``Fraction`` (dimensionless). Number forms: decimal or exponent
(``20``, ``0.5``, ``1.5e3``), no leading zeros, spaces between number and unit are optional.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, Final

from hil.errors import UnitError
from hil.timebase import MISSING_PS, PS_PER_NS

_TEXT: Final = re.compile(
    r"(?P<number>[+-]?(?:0|[1-9][0-9]{0,39})(?:\.[0-9]{1,40})?(?:[eE][+-]?[0-9]{1,3})?)"
    r"[ \t]*(?P<unit>[A-Za-z/%\u00b5\u03bc][A-Za-z0-9/%\u00b5\u03bc]*)?"
)
_INT64_MAX: Final = 2**63 - 1
_MAX_PLACES: Final = 12


class QuantityError(UnitError):
    """Base of the errors below; ``code`` is the error code of scenario files."""

    code: ClassVar[str] = "E302"


class UnitMissingError(QuantityError):
    """A number without a unit (E301)."""

    code: ClassVar[str] = "E301"


class UnitWrongError(QuantityError):
    """Not a number followed by a unit of the quantity (E302)."""

    code: ClassVar[str] = "E302"


class NotWholeError(QuantityError):
    """Not a whole number of the base unit (E303)."""

    code: ClassVar[str] = "E303"


class QuantityRangeError(QuantityError):
    """Does not fit a 64-bit integer of the base unit (E205)."""

    code: ClassVar[str] = "E205"


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of quantity.

    Attributes:
        name: word for messages.
        factors: unit name -> size in base units, smallest first.
        base: name of the base unit, for messages.
        whole: whether only whole multiples of the base unit exist.
        example: a valid text, for messages.
    """

    name: str
    factors: Mapping[str, Fraction]
    base: str
    whole: bool
    example: str

    @property
    def allowed(self) -> str:
        """What a text must look like."""
        return f"number with unit {', '.join(self.factors)}"


def _factors(**units: int | Fraction) -> dict[str, Fraction]:
    return {name.replace("_per_", "/"): Fraction(size) for name, size in units.items()}


TIME: Final = Kind(
    "time",
    _factors(ps=1, ns=10**3, us=10**6, ms=10**9, s=10**12, min=60 * 10**12, h=3600 * 10**12),
    "ps",
    whole=True,
    example="1.1us",
)
RATE: Final = Kind(
    "rate",
    _factors(bit_per_s=1, kbit_per_s=10**3, Mbit_per_s=10**6, Gbit_per_s=10**9),
    "bit/s",
    whole=True,
    example="100Gbit/s",
)
FREQUENCY: Final = Kind(
    "frequency",
    _factors(Hz=1, kHz=10**3, MHz=10**6, GHz=10**9),
    "Hz",
    whole=False,
    example="156.25MHz",
)
SIZE: Final = Kind("size", _factors(B=1, KiB=2**10, MiB=2**20), "B", whole=True, example="4096B")
DRIFT: Final = Kind(
    "drift",
    _factors(ppb=Fraction(1, 10**9), ppm=Fraction(1, 10**6)),
    "ppb",
    whole=False,
    example="40ppb",
)


def parse(text: str, kind: Kind) -> Fraction:
    """Read one quantity as an exact multiple of the base unit of ``kind`` (drift: of 1).

    Args:
        text: number and unit.
        kind: one of ``TIME``, ``RATE``, ``FREQUENCY``, ``SIZE``, ``DRIFT``.

    Raises:
        UnitMissingError: the number has no unit (E301).
        UnitWrongError: no number, or a unit of something else (E302).
        NotWholeError: not a whole number of ps, bit/s or bytes (E303).
        QuantityRangeError: a whole quantity beyond 64 bits (E205).
    """
    match = _TEXT.fullmatch(text.strip())
    if match is None:
        raise UnitWrongError(
            f"not a {kind.name}",
            got=text,
            allowed=kind.allowed,
            fix=f"write for example {kind.example}",
        )
    unit = match["unit"]
    if unit is None:
        raise UnitMissingError(
            "unit missing",
            got=text,
            allowed=kind.allowed,
            fix=f"write the unit, for example {match['number']}{_likely_unit(kind)}",
        )
    factor = kind.factors.get(unit)
    if factor is None:
        raise UnitWrongError(
            f"unit '{unit}' is not a unit of {kind.name}",
            got=text,
            allowed=kind.allowed,
            fix=_unit_hint(unit, match["number"], kind),
        )
    value = Fraction(match["number"]) * factor
    if kind.whole:
        _demand_whole(value, text, kind)
    return value


def _likely_unit(kind: Kind) -> str:
    match = _TEXT.fullmatch(kind.example)
    return match["unit"] if match else kind.base


def _unit_hint(unit: str, number: str, kind: Kind) -> str:
    for name in kind.factors:
        if name.lower() == unit.lower().replace("\u00b5", "u").replace("\u03bc", "u"):
            return f"did you mean {number}{name}?"
    return f"write for example {kind.example}"


def _demand_whole(value: Fraction, text: str, kind: Kind) -> None:
    if value.denominator != 1:
        raise NotWholeError(
            f"not a whole number of {kind.base}",
            got=text,
            allowed=f"a whole number of {kind.base}",
            fix=f"round it, for example to {_exact(Fraction(round(value)), kind)}",
        )
    if abs(value) > _INT64_MAX:
        raise QuantityRangeError(
            "does not fit 64 bits",
            got=text,
            allowed=f"at most {_INT64_MAX} {kind.base}",
            fix="write a smaller value",
        )


def parse_time_ps(text: str) -> int:
    """Time in whole picoseconds: ``parse_time_ps("1.1us") == 1_100_000``. Raises UnitError."""
    return int(parse(text, TIME))


def parse_rate_bps(text: str) -> int:
    """Data rate in whole bits per second. Raises UnitError."""
    return int(parse(text, RATE))


def parse_frequency_hz(text: str) -> Fraction:
    """Frequency as an exact fraction of hertz. Raises UnitError."""
    return parse(text, FREQUENCY)


def parse_size_bytes(text: str) -> int:
    """Size in bytes. Raises UnitError."""
    return int(parse(text, SIZE))


def parse_drift(text: str) -> Fraction:
    """Relative clock drift as an exact fraction (40ppb = 1/25000000). Raises UnitError."""
    return parse(text, DRIFT)


def format_ps(ps: int, decimals: int = 3) -> str:
    """Human form of a time, rounded half to even in integers: ``"1.100 us"``, ``"750 ps"``.

    The unit is the smallest of ps, ns, us, ms, s that leaves a number below 1000 after rounding
    (s has no upper end), so the same integer always gives the same text. ``MISSING_PS`` gives
    ``"-"``.
    """
    if ps == MISSING_PS:
        return "-"
    size, sign = abs(ps), "-" if ps < 0 else ""
    if size < PS_PER_NS:
        return f"{sign}{size} ps"
    scale = 10**decimals
    for unit in ("ns", "us", "ms", "s"):
        digits = round(size * scale / TIME.factors[unit])
        if digits < 1000 * scale or unit == "s":
            break
    whole, part = divmod(digits, scale)
    tail = f".{part:0{decimals}d}" if decimals else ""
    return f"{sign}{whole}{tail} {unit}"


def format_time(ps: int) -> str:
    """Exact text that ``parse_time_ps`` reads back: ``1100000 -> "1.1us"``."""
    return _exact(Fraction(ps), TIME)


def format_rate(bps: int) -> str:
    """Exact text that ``parse_rate_bps`` reads back: ``"100Gbit/s"``."""
    return _exact(Fraction(bps), RATE)


def format_frequency(hz: Fraction) -> str:
    """Exact text where the fraction has a decimal form (``"156.25MHz"``), else ``"n/d Hz"``."""
    return _exact(hz, FREQUENCY)


def format_size(size: int) -> str:
    """Exact text that ``parse_size_bytes`` reads back: ``"4KiB"``."""
    return _exact(Fraction(size), SIZE)


def format_drift(drift: Fraction) -> str:
    """Exact text where the fraction has a decimal form (``"40ppb"``), else ``"n/d ppb"``."""
    return _exact(drift, DRIFT)


def _exact(value: Fraction, kind: Kind) -> str:
    """Exact decimal text in the largest unit that keeps the number >= 1 and its tail short."""
    if value == 0:
        return f"0{kind.base}"
    for name in reversed([name for name in kind.factors if name not in {"min", "h"}]):
        scaled = value / kind.factors[name]
        number = _decimal(scaled)
        if number is not None and (abs(scaled) >= 1 or name == kind.base):
            return number + name
    ratio = value / kind.factors[kind.base]
    return f"{ratio.numerator}/{ratio.denominator} {kind.base}"


def _decimal(value: Fraction) -> str | None:
    """Exact decimal text of a fraction, or None if it has none or a very long one."""
    rest, places = value.denominator, 0
    for prime in (2, 5):
        count = 0
        while rest % prime == 0:
            rest //= prime
            count += 1
        places = max(places, count)
    if rest != 1 or places > _MAX_PLACES:
        return None
    digits = abs(value.numerator) * 10**places // value.denominator
    whole, part = divmod(digits, 10**places)
    sign = "-" if value < 0 else ""
    return f"{sign}{whole}" + (f".{part:0{places}d}" if places else "")
