"""Two runs are told apart when they differ beyond chance, on the same pictures only, and it is said in plain words."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from dftrack import comparison, comparison_page
from dftrack.errors import SettingError, StoreError
from dftrack.tracking import Tracker, open_tracker
from tests.released import Recipe, record, scored


@pytest.fixture
def tracker(store: Path) -> Tracker:
    return open_tracker(store)


def compared(tracker: Tracker, *runs: object, resamples: int = 200) -> comparison.Comparison:
    found = [tracker.find_run(run.run_id) for run in runs]
    return comparison.compare(tracker, found, resamples=resamples)


def test_a_better_run_a_worse_one_and_a_like_one_are_called_so(tracker: Tracker) -> None:
    middle = record(tracker, [scored("test-dev", 400, skill=1.2)])
    better = record(tracker, [scored("test-dev", 400, skill=2.4)])
    worse = record(tracker, [scored("test-dev", 400, skill=0.3)])
    alike = record(tracker, [scored("test-dev", 400, skill=1.2, noise=1)])
    found = compared(tracker, middle, better, worse, alike)
    words = {test.run: test.word for test in found.tests if test.metric == "roc_auc"}
    assert words == {better.run_id: "better", worse.run_id: "worse", alike.run_id: "not told apart"}
    sentences = found.verdicts()
    for sentence, word in zip(sentences, ("better", "worse", "not told apart"), strict=True):
        assert f": {word}: test-dev roc_auc" in sentence and "95 % interval" in sentence, sentence


def test_the_numbers_are_those_of_independent_libraries(tracker: Tracker) -> None:
    ones, twos = scored("test-dev", 300, skill=1.0, pictures_a_group=1), scored("test-dev", 300, skill=1.6)
    twos = dataclasses.replace(twos, groups=ones.groups)
    found = compared(tracker, record(tracker, [ones]), record(tracker, [twos]))
    auc, accuracy, _ = found.tests
    gap = roc_auc_score(twos.labels, twos.scores) - roc_auc_score(ones.labels, ones.scores)
    assert auc.paired.difference == pytest.approx(gap)
    right = [(found.scores >= 0.5) == found.labels for found in (twos, ones)]
    assert accuracy.paired.difference == pytest.approx(right[0].mean() - right[1].mean())
    only = [int(np.sum(right[0] & ~right[1])), int(np.sum(~right[0] & right[1]))]
    assert accuracy.paired.p_value >= stats.binomtest(only[0], sum(only)).pvalue, "the larger p value counts"
    raw = sorted(test.paired.p_value for test in found.tests)
    assert min(test.adjusted for test in found.tests) == pytest.approx(min(1, 3 * raw[0])), "three tests were made"


def test_rows_are_matched_by_name_whatever_their_order(tracker: Tracker) -> None:
    ours = scored("test-dev", 60, skill=1.0)
    order = np.random.default_rng(1).permutation(60)
    shuffled = dataclasses.replace(
        ours,
        names=tuple(ours.names[i] for i in order),
        groups=tuple(ours.groups[i] for i in order),
        labels=ours.labels[order],
        scores=ours.scores[order],
    )
    found = compared(tracker, record(tracker, [ours]), record(tracker, [shuffled]))
    assert [test.paired.difference for test in found.tests] == [0, 0, 0]
    assert {test.word for test in found.tests} == {"not told apart"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda p: dataclasses.replace(p, names=("other.jpg", *p.names[1:])), "scored other pictures"),
        (lambda p: dataclasses.replace(p, labels=1 - p.labels), "60 pictures have another label"),
        (lambda p: dataclasses.replace(p, names=(p.names[1], *p.names[1:])), "stands twice"),
        (lambda p: dataclasses.replace(p, split="test-other"), "scored no split in common"),
    ],
)
def test_runs_that_were_scored_on_other_pictures_are_not_tested(tracker: Tracker, change, said: str) -> None:
    ours = scored("test-dev", 60, skill=1.0)
    found = compared(tracker, record(tracker, [ours]), record(tracker, [change(ours)]))
    assert not found.tests and "not tested" in found.verdicts()[0]
    assert any(said in note for note in found.notes), found.notes


def test_a_test_that_is_undefined_is_said_to_be(tracker: Tracker) -> None:
    ours = scored("test-dev", 40, skill=1.0)
    fakes = dataclasses.replace(ours, labels=np.ones_like(ours.labels))
    found = compared(tracker, record(tracker, [fakes]), record(tracker, [fakes]))
    assert {test.metric: test.word for test in found.tests}["roc_auc"] == "undefined"
    json.dumps(comparison_page.plain(found), allow_nan=False)


def test_what_differs_in_settings_code_and_data_is_listed(tracker: Tracker) -> None:
    first = record(
        tracker, [scored("test-dev", 40, skill=1.0)], Recipe(tags={"commit": "a" * 40, "version.torch": "1"})
    )
    changes = Recipe(
        settings={"train.learning_rate": 1e-3},
        tags={"commit": "b" * 40, "version.torch": "2", "version.numpy": "3"},
        digest="e" * 32,
    )
    second = record(tracker, [scored("test-dev", 40, skill=1.0)], changes)
    second.log_text("--- a\n+++ b\n-old\n+new\n", "provenance/uncommitted.diff.txt")
    found = compared(tracker, first, second)
    by_name = {(each.kind, each.name): each.values for each in found.differences}
    assert by_name["setting", "train.learning_rate"] == ("0.0001", "0.001")
    assert ("setting", "train.epochs") not in by_name
    assert by_name["code", "commit"] == ("a" * 12, "b" * 12)
    assert by_name["code", "version.numpy"] == ("-", "3")
    assert by_name["code", "uncommitted changes"][1].startswith("2 lines (")
    assert by_name["data", "digest"] == ("d" * 12, "e" * 12)
    assert by_name["result", "test-dev/roc_auc"][0] == by_name["result", "test-dev/roc_auc"][1]
    assert any("digests differ" in note for note in found.notes)


def test_trials_without_tests_are_compared_on_val_with_a_warning(tracker: Tracker) -> None:
    tags = {"dftrack.study": "tiny", "dftrack.kind": "study"}
    parent = tracker.start_run("study", key="s", settings={"study.metric": "val/roc_auc"}, tags=tags)
    parent.finish("FINISHED")
    made = [
        record(tracker, [scored("val", 80, skill=skill)], Recipe(tags={**tags, "dftrack.kind": "trial"}, model=False))
        for skill in (0.5, 2.0, 1.0)
    ]
    runs = comparison.find_runs(tracker, [], "tiny", 2)
    assert [run.run_id for run in runs] == [made[1].run_id, made[2].run_id], "the best come first"
    beside = comparison.find_runs(tracker, [made[2].run_id], "tiny", 2)
    assert [run.run_id for run in beside] == [made[2].run_id, made[1].run_id], "the run it is compared with may be one"
    found = comparison.compare(tracker, runs, resamples=100)
    assert {test.split for test in found.tests} == {"val"}
    assert any("flatter" in note for note in found.notes)


def test_a_comparison_of_one_run_or_of_nothing_is_refused(tracker: Tracker) -> None:
    run = record(tracker, [scored("test-dev", 20, skill=1.0)], Recipe(model=False))
    with pytest.raises(SettingError, match="needs two runs, got 1"):
        comparison.find_runs(tracker, [run.run_id], "", 5)
    with pytest.raises(SettingError, match="named twice"):
        comparison.find_runs(tracker, [run.run_id, run.run_id[:8]], "", 5)
    with pytest.raises(StoreError, match="no trial of a study 'none'"):
        comparison.find_runs(tracker, [], "none", 5)


def test_the_page_is_self_contained_and_holds_curves_and_tables(tracker: Tracker, tmp_path: Path) -> None:
    name = "<script>alert(1)</script>"
    runs = [record(tracker, [scored("test-dev", 40, skill=s)], Recipe(name=name, model=False)) for s in (1.0, 2.0)]
    page = comparison_page.write(compared(tracker, *runs), tmp_path / "out")
    text = page.read_text()
    assert "data:image/png;base64," in text and "test-dev" in text and "http" not in text.replace("http-equiv", "")
    assert name not in text
    assert (tmp_path / "out" / "comparison.png").read_bytes().startswith(b"\x89PNG")
