"""junit.xml: one test case per expectation, for continuous integration.

FAIL is a ``<failure>``, RIG ERROR an ``<error type="rig">``, INCONCLUSIVE an
``<error type="inconclusive">``: many dashboards show ``<skipped>`` as green, so only SKIP is that.
"""

from __future__ import annotations

from xml.etree import ElementTree as ET

from junitparser import Error, Failure, JUnitXml, Properties, Property, Skipped, TestCase, TestSuite

from hil.report.document import Document, ExpectationRow


def render(document: Document) -> str:
    """The document as JUnit XML; the same document gives the same bytes."""
    facts = document.facts
    suite = TestSuite(facts.scenario_id)
    for name, value in _run_properties(document):
        suite.add_property(name, value)
    for row in document.expectations:
        suite.add_testcase(_case(row, facts.scenario_id))
    if facts.created_utc:
        suite.timestamp = facts.created_utc
    report = JUnitXml("hil")
    report.add_testsuite(suite)
    report.update_statistics()  # type: ignore[no-untyped-call]
    # one serialiser whatever the library is built on, so that the bytes never depend on it
    tree = ET.fromstring(report.tostring())  # type: ignore[no-untyped-call]  # noqa: S314 - our own text
    ET.indent(tree)
    body = ET.tostring(tree, encoding="unicode")
    return f'<?xml version="1.0" encoding="utf-8"?>\n{body}\n'


def _run_properties(document: Document) -> list[tuple[str, str]]:
    facts = document.facts
    return [
        ("run_id", facts.run_id),
        ("seed", str(facts.seed)),
        ("simulated_time_ps", str(facts.simulated_ps)),
        ("verdict", document.verdict),
        ("exit_code", str(document.exit_code)),
        ("level", facts.level),
        ("profile", facts.profile),
        ("pace", str(document.pace)),
        ("shots", str(document.shots)),
        *(("attachment", path) for _, path in facts.files),
    ]


def _case(row: ExpectationRow, scenario_id: str) -> TestCase:
    case = TestCase(row.id, classname=scenario_id)
    properties = Properties()  # type: ignore[no-untyped-call]
    for name, value in _figures(row):
        properties.add_property(Property(name, value))
    case.append(properties)  # type: ignore[no-untyped-call]
    message = _message(row)
    if row.verdict == "FAIL":
        case.result = [Failure(message, "fail")]
    elif row.verdict == "RIG ERROR":
        case.result = [Error(message, "rig")]
    elif row.verdict == "INCONCLUSIVE":
        case.result = [Error(message, "inconclusive")]
    elif row.verdict == "SKIP":
        case.result = [Skipped(message)]
    return case


def _figures(row: ExpectationRow) -> list[tuple[str, str]]:
    return [
        ("metric", row.metric),
        ("verdict", row.verdict),
        ("measured", row.measured.text),
        ("bounds", row.interval),
        ("limit", row.limit_text),
        ("n", str(row.n)),
        ("confidence", f"{row.confidence:g}"),
        ("shots_needed", row.needed_text),
    ]


def _message(row: ExpectationRow) -> str:
    return (
        f"{row.metric}: measured {row.measured.text}, bounds {row.interval}, "
        f"limit {row.limit_text}, n {row.n_text}: {row.reason}"
    )
