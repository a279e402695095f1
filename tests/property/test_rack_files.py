"""Whatever stands in a capture or a profile: it is read, or refused with an error of ours."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hil.errors import UsageError
from hil.rack.fit.stamps import read_csv
from hil.rack.fit.tap import read_tap
from hil.scenario.load import load_scenario
from hil.scenario.problems import ScenarioErrors
from hil.scenario.rack_profile import profile_rows

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "unit"))
from synthetic_rack import with_profile  # noqa: E402

HEADS = (
    "shot,round,a_ns",
    "shot,round,events,t_a_us,t_b_us",
    "request_id,shot,local,kind,send_sec,send_nsec,recv_sec,recv_nsec,delta_ns",
)
CELL = st.one_of(
    st.integers(-2, 10**20).map(str),
    st.floats(allow_nan=True, allow_infinity=True).map(str),
    st.sampled_from(["", "x", "1e400", "0x1", "1_0", "\u0663", "1.5", '"', "enqueue", " 7 "]),
)
PROFILE = (ROOT / "hil" / "rack" / "profiles" / "nvqlink.yaml").read_text()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rack")


@given(st.sampled_from(HEADS), st.lists(st.lists(CELL, min_size=1, max_size=10), max_size=6))
@settings(max_examples=200, deadline=None)
def test_any_rows(folder: Path, head: str, rows: list[list[str]]) -> None:
    path = folder / "any.csv"
    path.write_text("\n".join([head, *(",".join(row) for row in rows)]))
    try:
        capture = read_csv(path)
    except UsageError:
        return
    assert (capture.durations_ps >= 0).all()
    assert capture.n_rounds <= len(rows)


@given(st.binary(max_size=300))
@settings(max_examples=150, deadline=None)
def test_any_bytes(folder: Path, raw: bytes) -> None:
    path = folder / "any.bin"
    path.write_bytes(raw)
    for read in (read_csv, lambda p: read_tap(p, ptp_clock=True)):
        with pytest.raises(UsageError) as info:
            read(path)
        assert info.value.exit_code == 2


@given(
    st.integers(0, len(PROFILE)),
    st.integers(0, 60),
    st.text("{}[]:,-#\"' \nabz019", max_size=12),
)
@settings(max_examples=30, deadline=None)
def test_any_change_of_a_profile(folder: Path, at: int, cut: int, text: str) -> None:
    (folder / "any.yaml").write_text(PROFILE[:at] + text + PROFILE[at + cut :])
    for use in (
        lambda: load_scenario(with_profile(folder, "./any.yaml")),
        lambda: profile_rows(str(folder / "any.yaml")),
    ):
        with contextlib.suppress(ScenarioErrors):
            use()
