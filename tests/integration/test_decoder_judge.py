"""``hil decoder judge`` from the command line, and the page of the shipped networks."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import predecoder_results
import pytest
import typer
from typer.testing import CliRunner

from gpu_decoder.ising.network import Architecture
from gpu_decoder.ising.weights import Weights, load_weights, save_weights
from hil.cli.decoder_judge import judge
from hil.errors import RigError, UsageError
from hil.run.trial import campaign
from hil.run.trial.cells import Cell, Tally, chosen_cells, subject
from hil.run.trial.run import CHAIN

CELL = "ising25-d5-p0.006-X"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A network that takes a fired X check for a data flip where its logit, 1.5, may."""
    net = Architecture("tiny", "tiny", (4,), (1,))
    weight = np.zeros(net.shapes[0], np.float32)
    weight[0, 0] = 2.5
    save_weights(tmp_path / "w.safetensors", Weights(net, ((weight, -np.ones(4, "f4")),), "fp32"))
    return tmp_path / "w.safetensors"


class Inline:
    """Counts in this process what a pool would in others: they take seconds to start."""

    def __init__(self, *_: object) -> None: ...

    def submit(self, function: Callable[..., Tally], *arguments: object) -> Future[Tally]:
        job: Future[Tally] = Future()
        job.set_result(function(*arguments))
        return job

    def shutdown(self, **_: object) -> None: ...


@pytest.fixture
def _inline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaign, "ProcessPoolExecutor", Inline)


def run(*arguments: str) -> tuple[int, str]:
    app = typer.Typer()
    app.command()(judge)
    done = CliRunner().invoke(app, list(arguments))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout


@pytest.mark.usefixtures("_inline")
def test_verdicts_are_exit_codes(weights: Path, tmp_path: Path) -> None:
    common = [str(weights), "--cells", CELL, "--work"]
    code, text = run(*common, str(tmp_path / "a"), "--shots", "2000")
    assert (code, "verdict: FAIL" in text) == (1, True)
    accuracy, work = (line.split() for line in text.splitlines() if line.startswith(CELL))
    assert (accuracy[1], accuracy[-2:]) == ("2,000", ["FAIL", "worse"])
    assert len(work) == 8 - (work[5] == "met")
    code, text = run(*common, str(tmp_path / "b"), "--shots", "2500", "--threshold", "2", "--json")
    document = json.loads(text)
    assert (code, document["verdict"]) == (0, "PASS")
    (cell,) = document["cells"]
    assert (cell["cell"], cell["counts"]["shots"]) == (CELL, 2_500)
    code, _ = run(*common, str(tmp_path / "c"), "--scale", "0.0005", "--threshold", "2")
    assert code == 4


@pytest.mark.usefixtures("_inline")
def test_a_threshold_is_chosen_and_stored(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "new.safetensors"
    common = [str(weights), "--choose", "--cells", CELL, "--work", str(tmp_path / "work")]
    code, text = run(*common, "--shots", "2500", "--store", str(out))
    assert (code, "no threshold reaches the density goal" in text, out.exists()) == (1, True, False)
    monkeypatch.setattr("hil.run.trial.result.DENSITY_GOAL", 0.0)
    code, text = run(*common, "--shots", "2500", "--store", str(out))  # counted already
    assert code == 0
    assert "threshold: 2\n" in text
    assert load_weights(out).threshold_data == load_weights(out).threshold_syndrome == 2.0
    code, text = run(*common, "--shots", "2500", "--json")
    assert json.loads(text) == {"threshold": 2.0, "stored_sha256": None}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--store", "x"],
        ["--choose", "--threshold", "1"],
        ["--cells", "d11"],
        ["--orientation", "N"],
    ],
)
def test_wrong_usage(weights: Path, arguments: list[str]) -> None:
    with pytest.raises(UsageError):
        run(str(weights), *arguments)


@pytest.mark.slow
@pytest.mark.usefixtures("_inline")
def test_the_page_states_every_cell(weights: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    arguments = [
        str(weights), "--work", str(tmp_path / "work"), "--page", str(page), "--scale", "0.004",
        "--cells", "ising25-d5-*", "--store",
    ]  # fmt: skip
    assert predecoder_results.main(arguments) == 0
    text = " ".join(page.read_text().split())
    assert "Thresholds 0 (data) and 0 (measurements); the rule chooses none." in text
    for basis in "XZ":
        for p in (0.003, 0.006):
            assert text.count(f"| ising25 | 5 | {p} | {basis} |") == 2
            assert f"ising25-d5-p{p}-{basis} (" in text  # lost, by name
    assert not set(predecoder_results.NUMBERS) & set(text.split())


def test_a_campaign_goes_on_where_it_was_stopped(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(campaign, "BLOCK", 300)
    cells = chosen_cells(["ising25-d5-p0.003-?"])
    tested = subject(str(weights), {CHAIN: (None, None)})
    lines: list[str] = []

    def count(shots: int, folder: str) -> dict[Cell, Tally]:
        plan = campaign.Plan(tested, dict.fromkeys(cells, shots), "judge")
        return campaign.run_campaign(plan, tmp_path / folder, processes=1, tell=lines.append)

    count(600, "a")  # in a process of its own
    monkeypatch.setattr(campaign, "ProcessPoolExecutor", Inline)
    before = len(lines)
    assert before == 2  # a line per finished cell
    longer = count(1_000, "a")
    assert {t.shots for t in longer.values()} == {1_000}
    assert plain_counts(longer) == plain_counts(count(1_000, "b"))
    done = len(lines)
    assert plain_counts(count(1_000, "a")) == plain_counts(longer)
    assert len(lines) == done  # nothing was counted again

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(campaign, "wait", interrupted)
        with pytest.raises(RigError, match="interrupted"):
            count(1_000, "c")
    held = json.loads((tmp_path / "c" / "judge" / f"{cells[0].name}.json").read_text())
    assert held["blocks"] == [0, 1]  # what was under way is not lost
    assert plain_counts(count(1_000, "c")) == plain_counts(longer)

    path = tmp_path / "a" / "judge" / f"{cells[0].name}.json"
    document = json.loads(path.read_text())
    for text, what in (
        ("{", "damaged"),
        (json.dumps({**document, "tally": {}}), "damaged"),
        (json.dumps({**document, "blocks": [0, 1]}), "other shots"),
        (
            json.dumps({**document, "identity": {**document["identity"], "seed": 5}}),
            "another trial",
        ),
    ):
        path.write_text(text)
        with pytest.raises(RigError, match=what):
            count(1_000, "a")
        assert path.read_text() == text  # refused, not repaired


def plain_counts(tallies: dict[Cell, Tally]) -> list[Any]:
    """Counts without CPU times."""

    def strip(tally: Tally) -> dict[str, Any]:
        document = tally.document()
        for row in (document, *document["chains"].values()):
            del row["matching_ns"]
        return document

    return [strip(tally) for _, tally in sorted(tallies.items())]
