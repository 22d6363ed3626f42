"""The report of a study: statistics against simulation, words in every state, pages against hostile text."""

import csv
import dataclasses
import io
import math
import random
import re
import statistics
from datetime import datetime
from html.parser import HTMLParser

import pytest
import standins
from hypothesis import given
from hypothesis import strategies as st

from dftrack.config import Value
from dftrack.document import Commands, Grid, Words, to_html, to_markdown
from dftrack.study import report
from dftrack.study.naming import trial_name
from dftrack.study.records import Record
from dftrack.study.summary import FailedFinal, FinalTraining, StudySummary, best_record, cost, trials_table, verdict
from dftrack.study.verdict import judge, spread

PNG = b"\x89PNG\r\n\x1a\nxx"
HOSTILE = "</td><script>alert(1)</script> | `x` *y* <img src=x onerror=alert(2)>"
BASELINE: dict[str, Value] = {"train.learning_rate": 1e-4, "model.dropout": 0.5, "model.kernel_size": 3}


def record(number: int, status: str, curve: list[float], reason: str = "", **params: Value) -> Record:
    settings = BASELINE if number == 0 else {**BASELINE, "model.dropout": 0.01 * number, **params}
    return Record(
        number=number,
        status=status,  # type: ignore[arg-type]
        params=settings,
        curve=dict(enumerate(curve, 1)),
        value=curve[-1] if curve and status in ("complete", "pruned") else None,
        claim=None,
        reason=reason,
        traceback="",
        beat="",
        started=datetime(2026, 1, 1, 12, number),
        ended=datetime(2026, 1, 1, 13, number) if status in ("complete", "pruned", "failed") else None,
    )


RECORDS = (
    record(0, "complete", [0.6] * 9 + [0.70]),
    record(1, "complete", [0.7] * 9 + [0.90]),
    record(2, "pruned", [0.5], "out after epoch 1 of 10"),
    record(3, "pruned", [0.5, 0.6, 0.65], "out after epoch 3 of 10"),
    record(4, "failed", [], HOSTILE),
)


def summary(**changes: object) -> StudySummary:
    known: dict[str, object] = {
        "name": "stand-in",
        "definition": standins.definition(),
        "records": RECORDS,
        "trials": 5,
        "data_digest": "d" * 32,
        "baseline": 0.70,
        "seconds": {0: 100.0, 1: 200.0, 2: 5.0, 3: 30.0},
        "run_ids": {1: "a" * 32},
    }
    return StudySummary(**{**known, **changes})  # type: ignore[arg-type]


def finals(*values: float) -> list[FinalTraining]:
    return [
        FinalTraining(seed, f"run{seed}", value, {"test": {"roc_auc": value}}) for seed, value in enumerate(values, 1)
    ]


@pytest.mark.parametrize("n", [2, 3])
def test_the_interval_holds_one_more_training_95_times_in_100(n: int) -> None:
    draw = random.Random(n)
    rounds, hits = 1500, 0
    for _ in range(rounds):
        found = spread([draw.gauss(0.9, 0.01) for _ in range(n)])
        assert found is not None and found.low is not None and found.high is not None
        hits += found.low <= draw.gauss(0.9, 0.01) <= found.high
    assert hits / rounds == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / rounds)), f"{hits} of {rounds}"


def test_the_interval_is_the_one_of_the_tables() -> None:
    found = spread([0.90, 0.91, 0.92])
    assert found is not None and found.high is not None
    assert found.high - found.mean == pytest.approx(4.302653 * 0.01 * math.sqrt(4 / 3)), "t(0.975, 2) = 4.302653"


@pytest.mark.parametrize(
    ("values", "baseline", "direction", "word"),
    [
        ([0.90, 0.91, 0.92], 0.80, "maximize", "better"),
        ([0.90, 0.91, 0.92], 0.99, "maximize", "worse"),
        ([0.90, 0.91, 0.92], 0.90, "maximize", "not told apart"),
        ([0.50, 0.51, 0.52], 0.90, "minimize", "better"),
        ([0.50, 0.51, 0.52], 0.10, "minimize", "worse"),
        ([0.90], 0.80, "maximize", "undefined"),
        ([], 0.80, "maximize", "undefined"),
        ([0.9, 0.9], 0.80, "maximize", "undefined"),
        ([0.90, 0.91, 0.92], None, "maximize", "undefined"),
        ([0.90, 0.91, 0.92], math.nan, "maximize", "undefined"),
    ],
)
def test_better_worse_or_not_told_apart(values: list[float], baseline: float, direction: str, word: str) -> None:
    assert judge(values, baseline, direction).word == word  # type: ignore[arg-type]


@given(st.lists(st.floats(0, 1), max_size=6), st.one_of(st.none(), st.floats(0, 1)))
def test_a_verdict_is_never_stronger_than_the_interval(values: list[float], baseline: float | None) -> None:
    found, noise = judge(values, baseline, "maximize"), spread(values)
    if found.word in ("better", "worse"):
        assert noise is not None and noise.low is not None and noise.high is not None and baseline is not None
        assert not noise.low <= baseline <= noise.high
        assert (found.word == "better") == (noise.mean > baseline)


def test_what_pruning_saved_is_counted_at_each_trials_own_pace() -> None:
    spent = cost(summary())
    assert (spent.epochs, spent.full_epochs, spent.saved_epochs) == (24, 50, 16)
    assert spent.saved_seconds == pytest.approx(9 * 5.0 + 7 * 10.0), "9 epochs at 5 s, 7 at 10 s"
    assert spent.seconds_per_epoch == pytest.approx(335 / 24)
    assert cost(summary(seconds={})).saved_seconds is None, "without any time there is nothing to estimate from"


def test_the_best_is_the_best_by_the_studys_direction_and_ties_go_to_the_lower_number() -> None:
    tied = [record(3, "complete", [0.9]), record(2, "complete", [0.9]), record(1, "pruned", [0.99])]
    best = best_record(tied, "maximize")
    assert best is not None and best.number == 2, "a pruned trial never wins"
    assert best_record(RECORDS, "minimize") == RECORDS[0]
    assert best_record(RECORDS[2:], "maximize") is None


def test_the_table_has_a_row_for_each_trial_and_survives_a_csv() -> None:
    table = trials_table(summary())
    assert {len(column) for column in table.values()} == {5}
    assert list(table)[:6] == ["number", "name", "status", "value", "epochs", "seconds"]
    assert set(BASELINE) < set(table)
    target = io.StringIO()
    writer = csv.writer(target)
    writer.writerow(table)
    writer.writerows(zip(*table.values(), strict=True))
    rows = list(csv.DictReader(io.StringIO(target.getvalue())))
    assert rows[4]["reason"] == HOSTILE and rows[4]["value"] == "" and rows[4]["run_id"] == ""
    assert rows[1]["run_id"] == "a" * 32 and float(rows[1]["value"]) == 0.90


@pytest.mark.parametrize(
    ("params", "name"),
    [
        ({"train.learning_rate": 3.24e-4, "model.dropout": 0.3149, "model.kernel_size": 5},
         "trial 7: lr 3.2e-4, dropout 0.31, kernel 5"),
        ({"train.learning_rate": 1e-3, "train.weight_decay": 0.0}, "trial 7: lr 1e-3, decay 0"),
        ({"train.optimizer": "adam", "data.image_size": None}, "trial 7: optimizer adam, image size None"),
        ({}, "trial 7"),
    ],
)  # fmt: skip
def test_a_trial_has_a_name_for_people(params: dict[str, Value], name: str) -> None:
    assert trial_name(7, params) == name


def test_the_report_answers_every_question() -> None:
    whole = summary(
        finals=finals(0.90, 0.91, 0.92), tests_opened_before=1, tests_opened_after=2, final_seconds=600.0,
        ended=datetime(2026, 1, 1, 13),
    )  # fmt: skip
    text = report.markdown(whole)
    for words in (
        "Compared with the baseline: better",
        "0.8603 to 0.9597",  # the interval, from the table of t above
        "| model.dropout | 0.01 | searched |",
        "| train.optimizer | adam | default |",
        "24 of 50 (48%)",
        "16 epochs (32%)",
        "115 s (1.9 min)",
        "For this data: once before this study, twice in all: each further look",
        "| test | 0.9100 ± 0.0100 (n = 3) | undefined |",
        "1e-05 to 0.01 (log)",
        "dftrack study --trials 10",
        "--set model.dropout=0.01",
    ):
        assert words in text, f"the report does not say {words!r}"
    assert "Opened for the winner only." in text
    assert "go on, the best by their value. Data" in text
    spread = dataclasses.replace(whole.definition.pruning, spread_over="model.dropout")
    told = report.markdown(dataclasses.replace(whole, definition=dataclasses.replace(whole.definition, pruning=spread)))
    assert "go on, the best by their value, those after epoch 1 spread over model.dropout. Data" in told
    twice = dataclasses.replace(whole, tests_opened_after=3, command="dftrack study --store /s/t --study my.toml")
    text = report.markdown(twice)
    assert "Opened for the winner, and once for an earlier winner of this study." in text
    for words in ("study status --store /s/t --study my.toml", "ui --store /s/t", "doctor --store /s/t"):
        assert f"dftrack {words}" in text, f"the report does not say {words!r}"


def test_a_final_training_that_failed_is_told_with_its_reason_and_left_out_of_the_mean() -> None:
    told = summary(
        finals=finals(0.90, 0.92), failed_finals=(FailedFinal(3, "run3", "the loss is not finite at epoch 2, step 1"),)
    )
    text = report.markdown(told)
    assert "| winner, mean of 2 of 3 final trainings | 0.9100 |" in text
    assert "| 3 | the loss is not finite at epoch 2, step 1 | run3 |" in text
    assert "final training failed" not in report.markdown(dataclasses.replace(told, failed_finals=()))


STATES = {
    "nothing yet": {"records": (), "baseline": None, "seconds": {}},
    "all failed": {"records": (RECORDS[4],), "baseline": None},
    "no finals": {},
    "one final": {"finals": finals(0.9)},
    "equal finals": {"finals": finals(0.9, 0.9)},
    "at work": {
        "records": (*RECORDS, record(5, "running", []), record(6, "paused", [0.4]), record(7, "running", [0.3]))
    },
    "a script's trials": {"records": (record(0, "complete", [], strange=1), RECORDS[1])},
}


@pytest.mark.parametrize("state", STATES)
def test_every_state_of_a_study_can_be_told_without_numbers_that_are_none(state: str) -> None:
    told = summary(**STATES[state])
    for text in (report.markdown(told), report.html(told, {})):
        assert not re.search(r"\b(nan|inf)\b", text, re.IGNORECASE), "undefined must be said in words"
    assert trials_table(told)
    if state != "nothing yet" and state != "all failed":
        assert verdict(told).word == "undefined" and "undefined" in report.markdown(told)


def test_a_baseline_that_wins_is_not_compared_with_itself() -> None:
    told = summary(records=RECORDS[:1], finals=finals(0.8, 0.81))
    assert verdict(told).word == "not told apart" and "the winner is the baseline itself" in report.markdown(told)


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_page_needs_nothing_from_elsewhere_and_shows_hostile_text_literally() -> None:
    told = summary(name=HOSTILE, run_ids={1: HOSTILE}, data_digest=HOSTILE, command=HOSTILE)
    page = report.html(told, {"study/history.png": PNG, f"{HOSTILE}.png": PNG, "study/plots.html": b"<script>"})
    tags = _Tags()
    tags.feed(page)
    assert not [tag for tag, _ in tags.seen if tag in ("script", "link", "iframe", "object")]
    pictures = [attributes for tag, attributes in tags.seen if tag == "img"]
    assert len(pictures) == 2 and all(str(p["src"]).startswith("data:image/png;base64,") for p in pictures)
    assert not [a for _, attributes in tags.seen for a in attributes if a.startswith("on")]
    assert sum(HOSTILE in words for words in tags.words) >= 5, "title, heading, run, data, reason, commands"


def test_markdown_shows_hostile_text_literally_and_keeps_its_tables_whole() -> None:
    text = to_markdown([Grid(("a", "b"), [(HOSTILE, "1\n2")]), Words("<b>"), Commands(["```", "x"])])
    rows = text.splitlines()[:3]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {3}, rows
    assert "<script>" not in text and "<b>" not in text and text.count("````") == 2


def test_numbers_stand_to_the_right_only_in_columns_of_numbers() -> None:
    page = to_html([Grid(("n", "mixed"), [("1", "2"), ("3 s", "adam")])], "t")
    assert page.count('class="number"') == 2, page


def test_mean_and_deviation_are_those_of_the_standard_library() -> None:
    values = [0.1, 0.4, 0.25, 0.7]
    found = spread(values)
    assert found is not None and (found.mean, found.sd) == (statistics.fmean(values), statistics.stdev(values))


def test_the_interval_is_told_within_what_the_metric_can_be() -> None:
    found = judge([0.91, 0.92, 0.85], 0.86, "maximize", (0.0, 1.0))
    assert found.word == "not told apart"
    assert "to 1.0000" in found.reason, f"no AUC is above 1: {found.reason}"
