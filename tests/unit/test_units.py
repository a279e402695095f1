"""Quantities: what is read, what is refused with which code, how values are shown."""

from __future__ import annotations

import pickle
from fractions import Fraction

import pytest

from hil import units
from hil.errors import UnitError
from hil.timebase import MISSING_PS, Ticks


@pytest.mark.parametrize(
    ("text", "ps"),
    [
        ("1.1us", 1_100_000),
        ("1.1 us", 1_100_000),
        ("0ps", 0),
        ("1ps", 1),
        ("0.001ns", 1),
        ("3e3ns", 3_000_000),
        ("1.5E-3ms", 1_500_000),
        ("-8ns", -8_000),
        ("+8ns", 8_000),
        ("2min", 120 * 10**12),
        ("1h", 3600 * 10**12),
        ("0.1s", 10**11),  # not a binary fraction: a float would do here, but not everywhere
        ("9223372036.854775807ms", 2**63 - 1),
        ("1.000000000000s", 10**12),
    ],
)
def test_time(text: str, ps: int) -> None:
    assert units.parse_time_ps(text) == ps


def test_other_kinds() -> None:
    assert units.parse_rate_bps("100Gbit/s") == 10**11
    assert units.parse_rate_bps("9.6kbit/s") == 9600
    assert units.parse_size_bytes("4KiB") == units.parse_size_bytes("4096B") == 4096
    assert units.parse_size_bytes("1MiB") == 2**20
    assert units.parse_drift("40ppb") == Fraction(1, 25_000_000)
    assert units.parse_drift("-2ppm") == Fraction(-1, 500_000)


def test_frequency_stays_a_fraction() -> None:
    hz = units.parse_frequency_hz("322.265625MHz")
    assert hz == Fraction(322_265_625)
    period = Ticks.from_hz(hz)
    assert (period.num, period.den) == (102_400, 33)
    assert units.parse_frequency_hz("0.1Hz") == Fraction(1, 10)


@pytest.mark.parametrize(
    ("text", "error", "code"),
    [
        ("1.1", units.UnitMissingError, "E301"),
        ("5", units.UnitMissingError, "E301"),
        ("1.1uS", units.UnitWrongError, "E302"),
        ("1.1Gbit/s", units.UnitWrongError, "E302"),
        ("1.1us 2ns", units.UnitWrongError, "E302"),
        ("us", units.UnitWrongError, "E302"),
        ("", units.UnitWrongError, "E302"),
        ("1,1us", units.UnitWrongError, "E302"),
        (".5us", units.UnitWrongError, "E302"),
        ("1.us", units.UnitWrongError, "E302"),
        ("010us", units.UnitWrongError, "E302"),
        ("1_000us", units.UnitWrongError, "E302"),
        ("0x10us", units.UnitWrongError, "E302"),
        ("nanus", units.UnitWrongError, "E302"),
        ("infs", units.UnitWrongError, "E302"),
        ("\u0661us", units.UnitWrongError, "E302"),  # an Arabic-Indic one
        ("1e9999us", units.UnitWrongError, "E302"),  # must not cost memory
        ("0.5ps", units.NotWholeError, "E303"),
        ("1.1234567us", units.NotWholeError, "E303"),
        ("9223372036.854775808ms", units.QuantityRangeError, "E205"),
        ("1e999h", units.QuantityRangeError, "E205"),
    ],
)
def test_refused_time(text: str, error: type[UnitError], code: str) -> None:
    with pytest.raises(error) as info:
        units.parse_time_ps(text)
    assert info.value.code == code
    assert info.value.exit_code == 2
    assert info.value.allowed
    assert info.value.fix


def test_refusal_of_other_kinds_names_their_units() -> None:
    with pytest.raises(units.UnitWrongError) as info:
        units.parse_rate_bps("1us")
    assert info.value.allowed == "number with unit bit/s, kbit/s, Mbit/s, Gbit/s"
    with pytest.raises(units.NotWholeError):
        units.parse_size_bytes("0.3B")
    with pytest.raises(units.NotWholeError):
        units.parse_rate_bps("0.5bit/s")


def test_wrong_case_and_micro_sign_get_a_suggestion() -> None:
    for text in ("5US", "5\u00b5s", "5\u03bcs"):
        with pytest.raises(units.UnitWrongError) as info:
            units.parse_time_ps(text)
        assert info.value.fix == "did you mean 5us?"


def test_errors_survive_pickling() -> None:
    with pytest.raises(units.NotWholeError) as info:
        units.parse_time_ps("0.5ps")
    copy = pickle.loads(pickle.dumps(info.value))
    assert type(copy) is units.NotWholeError
    assert str(copy) == str(info.value)


@pytest.mark.parametrize(
    ("ps", "text"),
    [
        (1_100_000, "1.100 us"),
        (0, "0 ps"),
        (999, "999 ps"),
        (1_000, "1.000 ns"),
        (-1_500, "-1.500 ns"),
        (999_999_499, "999.999 us"),
        (999_999_500, "1.000 ms"),  # rounding may lift a value into the next unit, never to 1000
        (1_000_500, "1.000 us"),  # a tie goes to the even digit
        (1_001_500, "1.002 us"),
        (90 * 10**12, "90.000 s"),
        (MISSING_PS, "-"),
    ],
)
def test_human_form(ps: int, text: str) -> None:
    assert units.format_ps(ps) == text


def test_human_form_with_other_decimals() -> None:
    assert units.format_ps(1_234_567, 1) == "1.2 us"
    assert units.format_ps(1_500_000, 0) == "2 us"


def test_exact_forms() -> None:
    assert units.format_time(1_100_000) == "1.1us"
    assert units.format_time(0) == "0ps"
    assert units.format_time(60 * 10**12) == "60s"
    assert units.format_rate(10**11) == "100Gbit/s"
    assert units.format_size(4096) == "4KiB"
    assert units.format_frequency(Fraction(156_250_000)) == "156.25MHz"
    assert units.format_frequency(Fraction(10**12 * 33, 102_400)) == "322.265625MHz"
    assert units.format_frequency(Fraction(10**6, 3)) == "1000000/3 Hz"
    assert units.format_drift(Fraction(1, 25_000_000)) == "40ppb"
