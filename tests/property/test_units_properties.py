"""Properties of quantities: exactness, round trips, one verdict per text."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hil import units
from hil.errors import UnitError

SIZES = {"ps": 1, "ns": 10**3, "us": 10**6, "ms": 10**9, "s": 10**12}
times = st.integers(-(2**63) + 1, 2**63 - 1)


@settings(max_examples=700, deadline=None)
@given(times)
def test_exact_text_is_read_back(ps: int) -> None:
    assert units.parse_time_ps(units.format_time(ps)) == ps


@settings(max_examples=500, deadline=None)
@given(st.integers(0, 2**63 - 1))
def test_rates_and_sizes_are_read_back(value: int) -> None:
    assert units.parse_rate_bps(units.format_rate(value)) == value
    assert units.parse_size_bytes(units.format_size(value)) == value


@settings(max_examples=700, deadline=None)
@given(
    st.decimals(min_value=-(10**9), max_value=10**9, places=9).map(lambda d: d.normalize()),
    st.sampled_from(sorted(SIZES)),
    st.sampled_from(["", " ", "  "]),
)
@example(Decimal("0.1"), "s", "")
def test_a_time_is_whole_or_refused(number: Decimal, unit: str, space: str) -> None:
    text = f"{number:f}{space}{unit}"
    exact = Fraction(number) * SIZES[unit]
    if exact.denominator == 1 and abs(exact) < 2**63:
        assert units.parse_time_ps(text) == exact
        return
    whole = exact.denominator == 1
    with pytest.raises(units.QuantityRangeError if whole else units.NotWholeError):
        units.parse_time_ps(text)


@settings(max_examples=700, deadline=None)
@given(st.text(alphabet="0123456789.eE+- unspmhzHGMkKiB/bt_x", max_size=12))
def test_any_text_gives_a_number_or_a_unit_error(text: str) -> None:
    for kind in (units.TIME, units.RATE, units.FREQUENCY, units.SIZE, units.DRIFT):
        try:
            value = units.parse(text, kind)
        except UnitError:
            continue
        assert isinstance(value, Fraction)
        assert value.denominator == 1 or not kind.whole


@settings(max_examples=700, deadline=None)
@given(times)
def test_human_form_is_near_and_short(ps: int) -> None:
    text = units.format_ps(ps)
    number, unit = text.split(" ")
    shown = Fraction(number) * SIZES[unit]
    assert abs(shown - ps) <= Fraction(SIZES[unit], 2000)
    assert abs(Fraction(number)) < 1000 or unit == "s"
