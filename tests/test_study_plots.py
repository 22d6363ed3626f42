"""The plots of a study: in every legal state, of every trial, quiet, and in one page that opens by itself."""

import dataclasses
import io
import math
import shutil
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import optuna
import pytest
import standins
from browser import open_browser
from matplotlib import pyplot, rcParams
from optuna.trial import TrialState, create_trial
from PIL import Image

from dftrack.config import Value
from dftrack.study.definition import StudyDefinition
from dftrack.study.importance import importances
from dftrack.study.opening import OpenStudy, load
from dftrack.study.plots import PAGE, draw, plots
from dftrack.study.records import Record
from dftrack.study.sampling import distributions
from dftrack.study.storage import Storage

NOW = datetime(2026, 1, 2)
PICTURES = {f"study/{name}.png" for name in ("history", "curves", "slices", "parallel", "importance", "timeline")}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "optuna.db"
    Storage(path).close()
    return path


@pytest.fixture
def opened(template: Path, tmp_path: Path) -> Iterator[OpenStudy]:
    study = standins.opened(shutil.copy(template, tmp_path / "optuna.db"), standins.definition())
    yield study
    study.storage.close()


def record(number: int, status: str, epochs: int, **params: Value) -> Record:
    settings: dict[str, Value] = {
        "train.learning_rate": 10 ** (-5 + 3 * ((number * 7) % 31) / 31),
        "model.dropout": 0.7 * ((number * 11) % 29) / 29,
        "model.kernel_size": (3, 5, 7)[number % 3],
        **params,
    }
    curve = {epoch: standins.curve(dict(settings), epoch) for epoch in range(1, epochs + 1)}
    return Record(
        number=number,
        status=status,  # type: ignore[arg-type]
        params=settings,
        curve=curve,
        value=curve[epochs] if curve and status in ("complete", "pruned") else None,
        claim=None,
        reason="",
        traceback="",
        beat="",
        started=NOW + timedelta(seconds=number),
        ended=NOW + timedelta(minutes=number + 1) if status in ("complete", "pruned", "failed") else None,
    )


def searched() -> list[Record]:
    """30 trials as successive halving leaves them, a failed one and two that are at work."""
    records = [record(n, "complete" if n < 3 else "pruned", 10 if n < 3 else 3 if n < 12 else 1) for n in range(27)]
    return [*records, record(27, "failed", 0), record(28, "paused", 1), record(29, "running", 2)]


def sizes(drawn: dict[str, bytes]) -> dict[str, tuple[int, int]]:
    found = {}
    for path, content in drawn.items():
        if path.endswith(".png"):
            with Image.open(io.BytesIO(content)) as picture:
                picture.load()
                found[path] = picture.size
    return found


def test_a_study_at_work_is_drawn_whole(capfd: pytest.CaptureFixture[str]) -> None:
    before, hostile = dict(rcParams), "</title><script>alert(1)</script>"
    drawn = draw(searched(), standins.definition(), name=hostile, now=NOW + timedelta(hours=1))
    assert set(drawn) == {PAGE, *PICTURES}
    assert min(min(size) for size in sizes(drawn).values()) >= 250
    page = drawn[PAGE].decode()
    assert page.count("Plotly.newPlot(") == 10, "history, curves, importance, 3 parallel, 3 slices, timeline"
    assert hostile not in page and "<script>alert" not in page, "the name of a study can run in the page"
    assert not pyplot.get_fignums() and dict(rcParams) == before, "matplotlib's global state was touched"
    assert capfd.readouterr() == ("", ""), "something was said on the terminal"


def odd(number: int, value: float) -> Record:
    """A script's own trial: other settings, values that are no numbers."""
    return dataclasses.replace(record(number, "complete", 0, strange="x"), value=value, curve={7: value})


STATES: dict[str, list[Record]] = {
    "no trial": [],
    "one that has just begun": [record(0, "running", 0)],
    "one failed": [record(0, "failed", 0)],
    "one complete": [record(0, "complete", 10)],
    "one value for all": [record(n, "complete", 10, **dict(record(0, "complete", 1).params)) for n in range(12)],
    "a script's trials": [odd(0, math.inf), odd(1, math.nan), odd(2, 0.5)],
    "paused ones only": [record(n, "paused", 1) for n in range(4)],
}


@pytest.mark.parametrize("state", STATES)
def test_every_legal_state_is_drawn_or_said(state: str) -> None:
    drawn = draw(STATES[state], standins.definition(), now=NOW)
    assert PAGE in drawn
    sizes(drawn)
    if state == "no trial":
        assert set(drawn) == {PAGE} and "There are no trials yet" in drawn[PAGE].decode()


def test_spaces_of_other_kinds_and_the_smaller_the_better_are_drawn() -> None:
    text = """
    name = "other"
    metric = "val/loss"
    [base]
    train.epochs = 1
    [space]
    train.batch_size = { low = 8, high = 64, log = true }
    train.optimizer = ["adam", "sgd"]
    [pruning]
    kind = "none"
    """
    definition = standins.definition(text)
    records = []
    for n in range(12):
        made = record(n, "complete", definition.epochs)
        params = {"train.batch_size": 8 + n, "train.optimizer": ("adam", "sgd")[n % 2]}
        records.append(dataclasses.replace(made, params=params))
    drawn = draw(records, definition, now=NOW)
    assert set(sizes(drawn)) == PICTURES
    assert "sgd" in drawn[PAGE].decode()


def test_importance_is_undefined_with_few_trials_and_finds_the_setting_that_matters() -> None:
    definition = standins.definition()
    few, none = importances([record(n, "complete", 10) for n in range(9)], definition)[::2]
    assert not few.shares and not none.shares and few.reason == "undefined: 9 trials, at least 10 are needed"
    first = importances(searched(), definition)[0]
    assert set(first.shares) == {"fANOVA", "PED-ANOVA"} and first.trials == 29
    for method, shares in first.shares.items():
        assert sum(shares.values()) == pytest.approx(1), method
    fanova = first.shares["fANOVA"]
    assert fanova["train.learning_rate"] > fanova["model.kernel_size"], fanova


def fill(study: OpenStudy, definition: StudyDefinition) -> None:
    states = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
    stored = load(study)
    for made in searched()[:13]:
        stored.add_trial(
            create_trial(
                state=states[made.status],
                value=made.value,
                params=dict(made.params),
                distributions=distributions(definition.space),
                intermediate_values=dict(made.curve),
            )
        )


@pytest.mark.slow
@pytest.mark.browser
def test_the_page_of_a_stored_study_opens_by_itself_in_a_browser(opened: OpenStudy, tmp_path: Path) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    definition = standins.definition()
    fill(opened, definition)
    target = tmp_path / "plots.html"
    target.write_bytes(plots(opened, definition)[PAGE])
    with open_browser() as page:
        faults: list[str] = []
        asked: list[str] = []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(target.as_uri())
        page.wait_for_function("document.querySelectorAll('.js-plotly-plot .main-svg').length >= 10")
        assert not faults, faults
        assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
