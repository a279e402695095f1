"""Numbers as people read them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hil.report import text


@pytest.mark.parametrize(
    ("ps", "words"),
    [
        (0, "0 ps"),
        (7, "7 ps"),
        (999, "999 ps"),
        (1_000, "1.000 ns"),
        (170_000, "170.0 ns"),
        (999_949, "999.9 ns"),
        (999_950, "1.000 us"),
        (14_752_301, "14.75 us"),
        (60_000_000, "60.00 us"),
        (1_234_567_890_123, "1.235 s"),
        (1_234_567_890_123_456, "1,235 s"),
        (12_345_678_901_234_567, "12,346 s"),
        (-14_752_301, "-14.75 us"),
    ],
)
def test_duration(ps: int, words: str) -> None:
    assert text.duration(ps) == words


@given(st.integers(-(10**17), 10**17))
def test_duration_is_right_to_four_digits(ps: int) -> None:
    number, unit = text.duration(ps).replace(",", "").split()
    factor = {"ps": 1, "ns": 10**3, "us": 10**6, "ms": 10**9, "s": 10**12}[unit]
    assert float(number) * factor == pytest.approx(ps, rel=5.1e-4)


@pytest.mark.parametrize(
    ("value", "unit", "words"),
    [
        (None, "ps", "-"),
        (math.inf, "ps", "never"),
        (0.0, "1", "0"),
        (1.0, "1", "1"),
        (0.25, "1", "0.250"),
        (0.01, "1", "1.00e-2"),
        (2.9957e-6, "1", "3.00e-6"),
        (12_345, "count", "12,345"),
        (0.0, "ps/shot", "0 ps/shot"),
        (-10.72, "ps/shot", "-10.7 ps/shot"),
        (100_000.0, "ps/shot", "100 ns/shot"),
        (-116_072_000.0, "ps/shot", "-116 us/shot"),
        (999.6, "ps/shot", "1.00 ns/shot"),
        (999.4, "ps/shot", "999 ps/shot"),
        (9.999, "ps/shot", "10.0 ps/shot"),
        (1.234e-5, "ps/shot", "1.23e-5 ps/shot"),
    ],
)
def test_figure(value: float | None, unit: str, words: str) -> None:
    assert text.figure(value, unit) == words


@pytest.mark.parametrize(
    ("value", "unit", "words"),
    [
        (60_000_000, "ps", "60 us"),
        (1_234_567, "ps", "1.234567 us"),
        (1_000, "ps/shot", "1 ns/shot"),
        (1e-3, "1", "1.00e-3"),
        (None, "1", "-"),
    ],
)
def test_limits_are_shown_exactly(value: float | None, unit: str, words: str) -> None:
    assert text.limit(value, unit) == words


def test_interval_names_the_unit_once() -> None:
    assert text.interval(14_666_000, 14_864_000, "ps") == "14.67 .. 14.86 us"
    assert text.interval(999_000, 1_002_000, "ps") == "999.0 ns .. 1.002 us"
    assert text.interval(170_000, 170_000, "ps") == "170.0 ns"
    assert text.interval(170_000, None, "ps") == "170.0 ns .. -"
    assert text.interval(170_000, math.inf, "ps") == "170.0 ns .. never"
    assert text.interval(1e-4, 3e-4, "1") == "1.00e-4 .. 3.00e-4"
    assert text.percent(0.95) == "95 %"
    assert text.percent(0.999) == "99.9 %"
