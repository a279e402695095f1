"""One document, four writers: same numbers, same bytes, nothing from outside."""

from __future__ import annotations

import html.parser
import io
import json
import math
import re
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from junitparser import Error, Failure, JUnitXml, Skipped
from rich.console import Console
from synthetic_run import DEADLINE_PS, HOP_PS, ROUND_PERIOD_PS, SHOT_PERIOD_PS, Shots

from hil.report import chart, terminal
from hil.report import html as html_report
from hil.report import json as json_report
from hil.report import junit as junit_report
from hil.report.build import build
from hil.report.document import Document, EvidenceRow, Executed, FaultRow, RunFacts
from hil.report.write import write_all
from hil.scenario.expect import Expectation
from hil.verdict.group import HOPS
from hil.verdict.judge import judge, limits_of, skipped
from hil.verdict.metrics import COUNT_METRICS, Metrics

E = Expectation
EXPECT = {
    "tail": E(metric="latency.end_to_end", stat="p99", max=60_000_000, confidence=0.95),
    "deep-tail": E(metric="latency.uplink", stat="p99.99", max=60_000_000, confidence=0.95),
    "slow-decode": E(metric="latency.decode", stat="p50", max=1_000_000, confidence=0.95),
    "misses": E(metric="deadline.miss_rate", max=0.5, confidence=0.95),
    "ler": E(metric="ler.per_shot", max=0.2, marginal=0.01, confidence=0.95),
    "lost": E(metric="packets.lost", equals=0),
    "order": E(metric="rounds.out_of_order_commits", equals=0),
}
VERDICTS = {
    "tail": "PASS",
    "deep-tail": "INCONCLUSIVE",
    "slow-decode": "FAIL",
    "misses": "PASS",
    "ler": "PASS",
    "lost": "PASS",
    "order": "RIG ERROR",
}
NASTY = '<script>alert("x")</script> & "quotes"'


def facts(**changes: object) -> RunFacts:
    known: dict[str, object] = {
        "run_id": "run-1",
        "scenario_id": "surface-d5",
        "title": NASTY,
        "level": "sil",
        "profile": "sil",
        "created_utc": "2026-11-22T10:00:00Z",
        "seed": 20240817,
        "simulated_ps": 5 * 10**11,
        "wall_s": 12.3456,
        "workload": (("distance", "5"),),
        "executed": (Executed("rack", "auto", "bulk", "no feedback in this scenario"),),
        "faults": (FaultRow("slow", "delay 20us on deliver", "shot 0"),),
        "detectors": (("icrc", 0), ("sequence gap", 3)),
        "evidence": (EvidenceRow("demod", "assumed", "a paper"),),
        "provenance": (("problem_id", "ab" * 32),),
        "seeds": (("run", "20240817"),),
        "versions": (("stim", "1.16.0"),),
        "not_tested": ("Clock offsets were not varied.",),
        "labels": ("A remark of the runner.",),
        "files": (("trace", "trace.h5"),),
    }
    return RunFacts(**{**known, **changes})  # type: ignore[arg-type]


def metrics_of(n: int = 4_000, pace: int = 100) -> Metrics:
    rng = np.random.default_rng(8)
    shots = Shots(n, warmup=100)
    shots.hops["decode"] = rng.lognormal(16, 0.3, n).astype(np.int64)
    shots.hops["queue"] = rng.integers(0, 400_000, n)
    shots.failed = rng.random(n) < 0.02
    shots.fallback[rng.random(n) < 0.02] = 1
    shots.unanswered(np.flatnonzero(rng.random(n) < 0.003))
    metrics = Metrics(
        *(1, ROUND_PERIOD_PS, SHOT_PERIOD_PS, 100, DEADLINE_PS, "measured", pace),
        watch=limits_of(EXPECT),
    )
    metrics.update(*shots.columns())
    metrics.add_counts({"packets.lost": 0, "node.stale": 4})
    return metrics


@pytest.fixture(scope="module")
def document() -> Document:
    metrics = metrics_of()
    return build(metrics, judge(EXPECT, metrics), facts())


def terminal_text(document: Document, width: int = 200) -> str:
    stream = io.StringIO()
    terminal.show(document, Console(file=stream, width=width, color_system=None))
    return stream.getvalue()


def flat(text: str) -> str:
    return re.sub(r"\s+", " ", text)


class Page(html.parser.HTMLParser):
    """Tags, attributes and visible text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.hidden = 0
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "br"} and self.get_starttag_text()[-2:] != "/>":  # type: ignore[index]
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)


def test_verdicts_and_exit_code(document: Document) -> None:
    assert {row.id: row.verdict for row in document.expectations} == VERDICTS
    assert (document.verdict, document.exit_code) == ("RIG ERROR", 3)
    assert "order" in document.headline


def test_every_writer_shows_the_same_numbers(document: Document) -> None:
    page = flat(" ".join(Page(html_report.render(document)).words))
    screen = flat(terminal_text(document))
    xml = flat(junit_report.render(document).replace("&lt;", "<").replace("&gt;", ">"))
    data = json.loads(json_report.render(document))
    for row, stored in zip(document.expectations, data["expectations"], strict=True):
        assert stored["measured"] == {"value": row.measured.value, "text": row.measured.text}
        for words in (row.id, row.verdict, row.measured.text, row.interval, row.limit_text):
            for place in (page, screen, xml, json.dumps(stored)):
                assert words in place
    for hop in (*document.hops, document.end_to_end):
        assert hop is not None
        for cell in hop.quantiles:
            for words in (cell.value.text, cell.upper.text, hop.maximum.text):
                assert words in page
                assert words in screen
    logical = document.logical
    assert logical.per_shot is not None
    assert logical.per_round is not None
    for row in (logical.per_shot, logical.per_round, *document.rates, document.backlog):
        assert row is not None
        for words in (row.value.text, row.interval):
            assert words in page
            assert words in screen


def test_writing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = (
        write_all(build(m, judge(EXPECT, m), facts()), tmp_path / name)
        for name in ("a", "b")
        for m in [metrics_of()]
    )
    assert list(first) == ["report.json", "junit.xml", "report.html"]
    for name, path in first.items():
        assert path.read_bytes() == second[name].read_bytes()
        assert b"\r" not in path.read_bytes()
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == sorted(first)


def test_json_is_canonical_and_holds_everything(document: Document) -> None:
    body = json_report.render(document)
    data = json.loads(body, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert body == json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    assert data["format"] == "hil-report/1"
    assert data["facts"]["seed"] == 20240817
    assert [hop["name"] for hop in data["hops"]] == list(HOPS)
    acquire = data["hops"][0]
    assert acquire["maximum"]["value"] == HOP_PS["acquire"]
    counts = {row["name"]: row["value"] for row in data["counts"]}
    assert counts["packets.lost"] == 0
    assert counts["node.stale"] == 4
    assert counts["packets.duplicate"] is None
    assert set(COUNT_METRICS) <= set(counts)


def test_infinity_is_null_in_json_and_said_in_words() -> None:
    shots = Shots(1_000)
    shots.unanswered(slice(0, 40))
    metrics = Metrics(1, 1, 1, 0, DEADLINE_PS, "modelled")
    metrics.update(*shots.columns())
    document = build(metrics, judge({"tail": EXPECT["tail"]}, metrics), facts())
    (row,) = document.expectations
    assert row.measured.value == math.inf
    stored = json.loads(json_report.render(document))["expectations"][0]
    assert stored["measured"] == {"value": None, "text": "never"}
    assert " never " in terminal_text(document)
    assert "40 unanswered count as never" in html_report.render(document)


def test_junit_reads_back(document: Document) -> None:
    body = junit_report.render(document)
    report = JUnitXml.fromstring(body.encode())
    assert (report.tests, report.failures, report.errors) == (len(EXPECT), 1, 2)
    (suite,) = report
    assert suite.name == "surface-d5"
    properties = {p.name: p.value for p in suite.properties()}
    assert properties["run_id"] == "run-1"
    assert properties["seed"] == "20240817"
    assert properties["simulated_time_ps"] == "500000000000"
    wanted = {
        "PASS": [],
        "FAIL": [(Failure, "fail")],
        "RIG ERROR": [(Error, "rig")],
        "INCONCLUSIVE": [(Error, "inconclusive")],
    }
    cases = {case.name: case for case in suite}
    assert list(cases) == list(EXPECT)
    for name, case in cases.items():
        assert [(type(r), r.type) for r in case.result] == wanted[VERDICTS[name]]
    # properties stand inside <properties>, as readers of JUnit expect
    tree = ET.fromstring(body)
    assert all(next(iter(case)).tag == "properties" for case in tree.iter("testcase"))


def test_skips_are_skips_and_the_run_is_no_pass() -> None:
    metrics = Metrics(1, 1, 1, 0, DEADLINE_PS, "modelled")
    document = build(metrics, skipped(EXPECT, "needs gpu"), facts())
    assert (document.verdict, document.exit_code) == ("SKIP", 4)
    report = JUnitXml.fromstring(junit_report.render(document).encode())
    (suite,) = report
    assert all(type(case.result[0]) is Skipped for case in suite)
    assert "needs gpu" in terminal_text(document)
    assert "Every expectation was skipped" in html_report.render(document)
    assert "No stamps were recorded" in html_report.render(document)


def test_page_is_one_file_without_script_or_reference(document: Document) -> None:
    body = html_report.render(document)
    page = Page(body)
    assert page.open == []
    assert not {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "object"}
    for _, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in {"href", "src", "xlink:href"}:
                assert value == "trace.h5"
    assert not re.search(r"https?:|url\(|@import|//", body.replace("</", "").replace("/>", ""))


def test_page_escapes_what_it_is_given(document: Document) -> None:
    body = html_report.render(document)
    assert "<script" not in body
    assert "&lt;script&gt;" in body
    assert NASTY in " ".join(Page(body).words)


def test_page_says_what_matters(document: Document) -> None:
    words = flat(" ".join(Page(html_report.render(document)).words))
    for expected in (
        "RIG ERROR",
        "Wall timing informational: pace 100",
        "scenario time from measured durations (pace 100)",
        "A remark of the runner.",
        "Clock offsets were not varied.",
        "Not counted in this run:",
        "no feedback in this scenario",
        "delay 20us on deliver",
        "sequence gap",
        "Warm-up, 100 shots",
        "deadline 60.00 us",
        "ab" * 32,
        "stim",
    ):
        assert expected in words


def test_page_is_drawn_light_dark_and_on_paper(document: Document) -> None:
    body = html_report.render(document)
    for rule in ("prefers-color-scheme: dark", "@media print", 'name="viewport"', 'lang="en"'):
        assert rule in body


def test_pace_one_is_not_called_informational() -> None:
    metrics = metrics_of(pace=1)
    document = build(metrics, judge(EXPECT, metrics), facts())
    assert document.labels[0] == "Latencies are wall stamps (pace 1); rack stages are models."
    assert not any("informational" in label for label in document.labels)


def test_what_was_not_shown_is_said(document: Document) -> None:
    gaps = " ".join(document.not_tested)
    assert "packets.duplicate" in gaps
    assert "No fault was injected" not in gaps
    metrics = Metrics(1, 1, 1, 0, DEADLINE_PS, "modelled")
    shots = Shots(50)
    shots.dq[40:] = 2
    metrics.update(shots.columns()[0], {})
    quiet = build(metrics, [], facts(faults=()))
    gaps = " ".join(quiet.not_tested)
    for words in ("No fault was injected", "No sample of hop acquire", "fallback decoder answered"):
        assert words in gaps
    assert "10 shots in fault windows" in gaps


@pytest.mark.parametrize("width", [80, 100, 124, 200])
def test_screen_fits_its_width_and_one_line_per_expectation(document: Document, width: int) -> None:
    lines = terminal_text(document, width).splitlines()
    assert max(len(line) for line in lines) <= width
    assert "…" not in "".join(lines)
    for row in document.expectations:
        (line,) = [x for x in lines if x.startswith(f"{row.id} ")]
        for words in (row.verdict, row.measured.text, row.interval, row.limit_text):
            assert words in line
    assert len(lines) <= 60


def test_screen_names_the_shots_still_needed(document: Document) -> None:
    row = next(row for row in document.expectations if row.id == "deep-tail")
    assert row.shots_needed == 29_956 - 3_900
    assert f"+{row.shots_needed:,}" in terminal_text(document, 120)
    assert f"{row.shots_needed:,} more shots" in flat(terminal_text(document, 80))


def test_headlines() -> None:
    metrics = metrics_of()
    passing = {k: v for k, v in EXPECT.items() if VERDICTS[k] == "PASS"}

    def headline(**expect: Expectation) -> str:
        return build(metrics, judge(expect, metrics), facts()).headline

    assert headline(**passing) == "4 of 4 expectations hold; beyond marginal: ler"
    failing = {**passing, "slow-decode": EXPECT["slow-decode"]}
    assert headline(**failing) == "1 of 5 expectations fail: slow-decode"
    open_end = {**passing, "deep": EXPECT["deep-tail"]}
    assert headline(**open_end) == "1 of 5 expectations need more shots: deep (about 26,056 more)"
    assert headline() == "Nothing was judged."


def test_chart_draws_every_hop_inside_its_frame(document: Document) -> None:
    for svg in (
        chart.waterfall(document.hops),
        chart.spread(document.hops, document.end_to_end, document.deadline),
    ):
        tree = ET.fromstring(svg)
        _, _, width, height = (float(v) for v in tree.attrib["viewBox"].split())
        labels = [node.text for node in tree.iter("text")]
        assert [hop for hop in HOPS if hop in labels] == list(HOPS)
        for node in tree.iter():
            x = float(node.attrib.get("x", node.attrib.get("cx", "0")))
            assert 0 <= x <= width
            assert x + float(node.attrib.get("width", "0")) <= width
            assert 0 <= float(node.attrib.get("y", node.attrib.get("cy", "0"))) <= height


def test_chart_of_hops_that_take_no_time() -> None:
    shots = Shots(50)
    for hop in HOPS:
        shots.hops[hop][:] = 0
    metrics = Metrics(1, 1, 1, 0, DEADLINE_PS, "modelled")
    metrics.update(*shots.columns())
    document = build(metrics, [], facts())
    assert "<svg" in html_report.render(document)
    assert chart.spread((), None, document.deadline)
