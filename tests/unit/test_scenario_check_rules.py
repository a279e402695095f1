"""Numbers behind E601 and E503, and channel ranges, against independent formulas."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hil.scenario.check_expect import (
    least_shots_quantile_max,
    least_shots_quantile_min,
    least_shots_rate_max,
    least_shots_rate_min,
)
from hil.scenario.check_rack import ChannelRange, channel_ranges
from hil.scenario.load import load_scenario
from hil.scenario.problems import ScenarioErrors


@pytest.mark.parametrize(
    ("quantile", "confidence", "n"),
    [
        (0.99, 0.95, 299),
        (0.99, 0.99, 459),
        (0.999, 0.95, 2_995),
        (0.999, 0.99, 4_603),
        (0.9999, 0.95, 29_956),
        (0.9999, 0.99, 46_050),
        (0.99999, 0.95, 299_572),
        (0.99999, 0.99, 460_515),
        (0.999999, 0.95, 2_995_731),
        (0.999999, 0.99, 4_605_168),
    ],
)
def test_least_shots_of_the_reference(quantile: float, confidence: float, n: int) -> None:
    assert least_shots_quantile_max(quantile, confidence) == n
    assert least_shots_rate_max(round(1 - quantile, 9), confidence) == n


@settings(max_examples=30, deadline=None)
@given(st.floats(1e-5, 0.5), st.floats(0.6, 0.999))
def test_least_shots_is_where_clopper_pearson_first_passes(limit: float, confidence: float) -> None:
    from scipy.stats import beta

    n = least_shots_rate_max(limit, confidence)
    assert beta.ppf(confidence, 1, n) <= limit * (1 + 1e-9)
    if n > 1:
        assert beta.ppf(confidence, 1, n - 1) > limit * (1 - 1e-9)


@settings(max_examples=30, deadline=None)
@given(st.floats(0.5, 0.999), st.floats(0.6, 0.999))
def test_least_shots_of_a_lower_limit(limit: float, confidence: float) -> None:
    from scipy.stats import beta

    n = least_shots_rate_min(limit, confidence)
    assert beta.ppf(1 - confidence, n, 1) >= limit * (1 - 1e-9)
    if n > 1:
        assert beta.ppf(1 - confidence, n - 1, 1) < limit * (1 + 1e-9)


@settings(max_examples=30, deadline=None)
@given(st.floats(0.5, 0.9999), st.floats(0.6, 0.999))
def test_least_shots_of_a_quantile(quantile: float, confidence: float) -> None:
    n = least_shots_quantile_max(quantile, confidence)
    assert 1 - quantile**n >= confidence - 1e-12
    assert n == 1 or 1 - quantile ** (n - 1) < confidence
    m = least_shots_quantile_min(quantile, confidence)
    assert 1 - (1 - quantile) ** m >= confidence - 1e-12
    assert m <= n or math.isclose(quantile, 0.5)


@pytest.mark.parametrize(
    ("text", "ranges"),
    [
        ("x_check[:]", [ChannelRange("x_check", 0, 12)]),
        ("z_check[3]", [ChannelRange("z_check", 3, 4)]),
        ("x_check[2:5]", [ChannelRange("x_check", 2, 5)]),
        ("x_check[:5]", [ChannelRange("x_check", 0, 5)]),
        ("x_check[5:]", [ChannelRange("x_check", 5, 12)]),
        ("all", [ChannelRange("x_check", 0, 12), ChannelRange("z_check", 0, 12)]),
    ],
)
def test_channel_ranges(text: str, ranges: list[ChannelRange]) -> None:
    assert channel_ranges(text, {"x_check": 12, "z_check": 12}) == ranges


def test_a_kind_without_checks_has_an_empty_channel() -> None:
    checks = {"x_check": 0, "z_check": 4}
    assert channel_ranges("x_check[:]", checks) == [ChannelRange("x_check", 0, 0)]
    assert channel_ranges("all", checks)[1] == ChannelRange("z_check", 0, 4)
    for text in ("x_check[0]", "x_check[0:0]", "x_check[:1]"):
        with pytest.raises(IndexError):
            channel_ranges(text, checks)


@pytest.mark.parametrize("text", ["x_check[12]", "x_check[0:13]", "x_check[5:5]", "x_check[6:2]"])
def test_channels_outside(text: str) -> None:
    with pytest.raises(IndexError):
        channel_ranges(text, {"x_check": 12, "z_check": 12})


@pytest.mark.parametrize("text", ["x_check", "x_check[]", "x_check[-1]", "data[0]", "X[:]", ""])
def test_no_channels(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        channel_ranges(text, {"x_check": 12, "z_check": 12})


def test_messages_without_an_epoch_cannot_be_judged_by_it() -> None:
    base = Path(__file__).parents[1] / "data" / "scenario" / "base.yaml"
    bare = "system.links.up.envelope=nvidia"
    load_scenario(base, overrides=[bare])
    mixed = "expect={mixed: {metric: shots.mixed_epoch, equals: 0}}"
    load_scenario(base, overrides=[mixed])
    with pytest.raises(ScenarioErrors) as caught:
        load_scenario(base, overrides=[bare, mixed])
    (problem,) = caught.value.problems
    assert (problem.code, problem.dotted) == ("E513", "expect.mixed.metric")
    assert "cannot be seen without an epoch" in problem.what


def test_plain_udp_is_no_reliable_connection() -> None:
    base = Path(__file__).parents[1] / "data" / "scenario" / "base.yaml"
    plain = ("bind.use=live", "bind.profiles.live.network.backend=cudaq_udp")
    reliable = (
        "system.links.up.profile=rocev2-rc-write-imm",
        "system.links.down.profile=rocev2-rc-send",
    )
    load_scenario(base, overrides=plain)
    load_scenario(base, overrides=reliable)
    with pytest.raises(ScenarioErrors) as caught:
        load_scenario(base, overrides=(*plain, *reliable))
    (problem,) = caught.value.problems
    assert (problem.code, problem.dotted) == ("E513", "bind.profiles.live.network.backend")
