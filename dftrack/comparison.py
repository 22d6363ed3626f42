"""Runs side by side: what differs in settings, code, data and results, and what of it is more than chance.

Two runs are tested against each other only on the very same pictures with the same labels, row by row.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dftrack.errors import MetricError, SettingError, StoreError
from dftrack.learning import statistics
from dftrack.learning.evaluation import Predictions
from dftrack.learning.metrics import FloatArray
from dftrack.learning.statistics import Paired
from dftrack.scored import aligned, stored_predictions, threshold_of
from dftrack.tracking import RunRecord, Tracker

LEVEL = 0.05  # an adjusted p value below it tells two runs apart
SHOWN = ("roc_auc", "average_precision", "accuracy", "balanced_accuracy", "f1", "eer", "log_loss", "brier")
ABSENT = "-"
SHORT_ID = 8  # characters of a run id that people read

Kind = Literal["setting", "code", "data", "result"]
Word = Literal["better", "worse", "not told apart", "undefined"]


@dataclass(frozen=True, slots=True)
class Difference:
    """Something that is not the same in all runs (results: whatever was measured)."""

    kind: Kind
    name: str
    values: tuple[str, ...]  # one for each run, "-" where it has none


@dataclass(frozen=True, slots=True)
class Tested:
    """A run against the first one, on the same pictures."""

    run: str  # run id; the other one is the first
    split: str
    metric: str
    method: str
    pictures: int
    groups: int
    paired: Paired | None  # this run minus the first, with its own p value; None: undefined
    adjusted: float | None  # p value for all tests of the comparison together (Holm)
    word: Word  # what this run is


@dataclass(frozen=True, slots=True)
class Comparison:
    """Everything that `compare` found out. The first run is the one the others are measured against."""

    runs: tuple[RunRecord, ...]
    differences: tuple[Difference, ...]
    tests: tuple[Tested, ...]
    notes: tuple[str, ...]  # why something was not tested, and what to keep in mind
    predictions: Mapping[str, Mapping[str, Predictions]]  # run id -> split -> scores
    histories: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]]  # run id -> metric -> (epoch, value)

    def verdicts(self) -> list[str]:
        """One sentence for each run but the first: better, worse, or not told apart, and by how much."""
        return [_verdict(self, run) for run in self.runs[1:]]


def find_runs(tracker: Tracker, references: Sequence[str], study: str, top: int) -> list[RunRecord]:
    """The runs that were named; with `study`, also its best `top` trials that were trained to the end, best first.

    Raises SettingError for fewer than two runs or one named twice, StoreError for one that is not there.
    """
    found = [tracker.find_run(reference) for reference in references]
    named = {run.run_id for run in found}
    if len(named) < len(found):
        raise SettingError("one run is named twice", "name each run once")
    if study:
        found += [trial for trial in _best_trials(tracker, study, top) if trial.run_id not in named]
    if len(found) < 2:
        raise SettingError(
            f"a comparison needs two runs, got {len(found)}", "dftrack compare RUN RUN..., or --study NAME --top 5"
        )
    return found


def _best_trials(tracker: Tracker, study: str, top: int) -> list[RunRecord]:
    if top < 1:
        raise SettingError(f"--top must be at least 1, got {top}")
    trials = tracker.runs(tags={"dftrack.study": study, "dftrack.kind": "trial"}, status="FINISHED")
    parents = tracker.runs(tags={"dftrack.study": study, "dftrack.kind": "study"}, limit=1)
    if not trials or not parents:
        known = sorted({run.tags["dftrack.study"] for run in tracker.runs(tags={"dftrack.kind": "study"})})
        raise StoreError(
            f"no trial of a study {study!r} was trained to the end",
            f"studies in this store: {', '.join(known)}" if known else "start one: dftrack study",
        )
    metric = parents[0].settings.get("study.metric", "val/roc_auc")
    sign = -1 if parents[0].settings.get("study.direction") == "minimize" else 1
    ranked = [run for run in trials if metric in run.metrics]
    return sorted(ranked, key=lambda run: -sign * run.metrics[metric])[:top]


def compare(tracker: Tracker, runs: Sequence[RunRecord], *, resamples: int = 1000, seed: int = 0) -> Comparison:
    """Put `runs` side by side and test each against the first.

    Tested are the test splits that both have scored; where there is none (the trials of a study), val, with a note:
    it chose the runs. All p values together are adjusted by Holm's method. resamples, seed: of the bootstrap.
    """
    predictions = {run.run_id: stored_predictions(tracker, run.run_id) for run in runs}
    thresholds = {run.run_id: threshold_of(tracker, run.run_id) for run in runs}
    tests: list[Tested] = []
    notes = _notes(runs)
    first = runs[0]
    for run in runs[1:]:
        for split in _splits(predictions[first.run_id], predictions[run.run_id], first, run, notes):
            ours, reason = aligned(predictions[run.run_id][split], predictions[first.run_id][split])
            if ours is None:
                notes.append(f"{split}: {called(run)} and {called(first)} were not tested: {reason}")
                continue
            pair = _Pair(
                run=run.run_id,
                ours=ours,
                first=predictions[first.run_id][split],
                thresholds=(thresholds[run.run_id], thresholds[first.run_id]),
            )
            tests += _tests(pair, resamples, seed)
    return Comparison(
        runs=tuple(runs),
        differences=tuple(_differences(tracker, runs)),
        tests=tuple(_adjusted(tests)),
        notes=tuple(notes),
        predictions=predictions,
        histories={run.run_id: _history(tracker, run) for run in runs},
    )


def _history(tracker: Tracker, run: RunRecord) -> dict[str, list[tuple[int, float]]]:
    return {
        name: tracker.metric_history(run.run_id, name) for name in ("train/loss", "val/loss") if name in run.metrics
    }


# ---- differences


def _differences(tracker: Tracker, runs: Sequence[RunRecord]) -> list[Difference]:
    found: list[Difference] = []

    def add(kind: Kind, name: str, values: Sequence[str | None], *, also_equal: bool = False) -> None:
        if also_equal or len(set(values)) > 1:
            found.append(Difference(kind, name, tuple(ABSENT if value is None else value for value in values)))

    for name in _names(run.settings for run in runs):
        add("setting", name, [run.settings.get(name) for run in runs])
    add("code", "commit", [run.tags.get("mlflow.source.git.commit", "")[:12] or None for run in runs])
    add("code", "uncommitted changes", [_uncommitted(tracker, run) for run in runs])
    for name in _names(run.tags for run in runs):
        if name.startswith(("version.", "machine.")) and name != "machine.host":
            add("code", name, [run.tags.get(name) for run in runs])
    add("data", "digest", [run.tags.get("dftrack.data_digest", "")[:12] or None for run in runs])
    add("data", "leaks trained on", [run.tags.get("dftrack.leaks") for run in runs])
    for name in _names(run.metrics for run in runs):
        values = [run.metrics.get(name) for run in runs]
        if name.startswith("data/"):
            add("data", name.removeprefix("data/"), [None if value is None else f"{value:,.0f}" for value in values])
    for name in _result_names(runs):
        values = [run.metrics.get(name) for run in runs]
        add("result", name, [None if value is None else f"{value:.4f}" for value in values], also_equal=True)
    return found


def _names(mappings: Iterable[Mapping[str, object]]) -> list[str]:
    """Every key, in the order of first appearance."""
    return list(dict.fromkeys(name for mapping in mappings for name in mapping))


def _result_names(runs: Sequence[RunRecord]) -> list[str]:
    """The usual metrics of each split, test splits before val."""
    splits = sorted(
        {name.removesuffix("/roc_auc") for run in runs for name in run.metrics if name.count("/") == 1}
        & {name.removesuffix("/accuracy") for run in runs for name in run.metrics},
        key=lambda split: (split == "val", split),
    )
    present = {name for run in runs for name in run.metrics}
    return [f"{s}/{metric}" for s in splits if s != "train" for metric in SHOWN if f"{s}/{metric}" in present]


def _uncommitted(tracker: Tracker, run: RunRecord) -> str | None:
    """How many lines of code were changed and not committed, with a name for exactly this change."""
    name = "uncommitted.diff.txt"
    if name not in tracker.artifacts(run.run_id, "provenance"):
        return "none" if run.tags.get("dftrack.uncommitted") == "no" else None
    diff = tracker.download(run.run_id, f"provenance/{name}").read_bytes()
    lines = [line for line in diff.splitlines() if line[:1] in (b"+", b"-") and line[:3] not in (b"+++", b"---")]
    return f"{len(lines)} lines ({hashlib.sha256(diff).hexdigest()[:8]})"


def _notes(runs: Sequence[RunRecord]) -> list[str]:
    notes = [f"{called(run)} is {run.status}, not finished" for run in runs if run.status != "FINISHED"]
    if len({run.tags.get("dftrack.data_digest") for run in runs}) > 1:
        notes.append(
            "the data digests differ: pictures are matched by name and label, their content may be another one, and "
            "the runs may have been trained on other pictures"
        )
    return notes


# ---- tests


@dataclass(frozen=True, slots=True, eq=False)
class _Pair:
    """A run and the first one on the same pictures in the same order."""

    run: str
    ours: Predictions
    first: Predictions
    thresholds: tuple[float, float]


def _splits(
    ours: Mapping[str, Predictions],
    others: Mapping[str, Predictions],
    first: RunRecord,
    run: RunRecord,
    notes: list[str],
) -> list[str]:
    """The splits to test on."""
    common = [split for split in ours if split in others]
    tests = [split for split in common if split not in ("train", "val")]
    if tests:
        return tests
    if "val" in common:
        notes.append(
            f"{called(run)} and {called(first)} have no test split in common: tested on val, by which runs are "
            "chosen, so that differences on it flatter the chosen one"
        )
        return ["val"]
    notes.append(f"{called(run)} and {called(first)} were not tested: they scored no split in common")
    return []


def _tests(pair: _Pair, resamples: int, seed: int) -> list[Tested]:
    labels, groups = pair.first.labels, pair.first.groups
    ours, first = pair.ours.scores, pair.first.scores
    calls = [(s >= t).astype(np.float64) for s, t in zip((ours, first), pair.thresholds, strict=True)]  # (n,) 0 or 1

    def bootstrap(measure: str, a: FloatArray, b: FloatArray) -> Paired | None:
        return statistics.paired_bootstrap(a, b, labels, groups, measure, resamples=resamples, seed=seed)

    def accuracy() -> Paired | None:
        """The larger of the two p values: McNemar's test takes pictures to be independent, the bootstrap groups."""
        exact = statistics.mcnemar(calls[0] == labels, calls[1] == labels)
        by_group = bootstrap("accuracy", *calls)
        if by_group is None:  # too few groups: pictures of a few videos say nothing of other videos
            return None
        return Paired(by_group.difference, by_group.low, by_group.high, max(exact.p_value, by_group.p_value))

    def made(metric: str, method: str, test: Callable[[], Paired | None]) -> Tested:
        try:
            paired = test()
        except MetricError:
            paired = None
        return Tested(
            pair.run, pair.first.split, metric, method, len(labels), len(set(groups)), paired, None, "undefined"
        )

    return [
        made("roc_auc", "DeLong, clustered", lambda: statistics.clustered_delong(ours, first, labels, groups)),
        made("accuracy", "McNemar and bootstrap over groups", accuracy),
        made("average_precision", "bootstrap over groups", lambda: bootstrap("average_precision", ours, first)),
    ]


def _adjusted(tests: Sequence[Tested]) -> list[Tested]:
    """The tests with p values for all of them together, and their words."""
    p_values = iter(statistics.holm([test.paired.p_value for test in tests if test.paired]))
    found = []
    for test in tests:
        if test.paired is None:
            found.append(test)
            continue
        adjusted = next(p_values)
        word: Word = "not told apart"
        if adjusted < LEVEL:
            word = "better" if test.paired.difference > 0 else "worse"
        found.append(dataclasses.replace(test, adjusted=adjusted, word=word))
    return found


def _verdict(found: Comparison, run: RunRecord) -> str:
    tests = [test for test in found.tests if test.run == run.run_id]
    against = f"{called(run)} against {called(found.runs[0])}"
    if not any(test.paired for test in tests):
        return f"{against}: not tested" + (" (undefined on these pictures)" if tests else "")
    better = [test for test in tests if test.word == "better"]
    worse = [test for test in tests if test.word == "worse"]
    if better and worse:
        return f"{against}: better in {_listed(better)}; worse in {_listed(worse)}"
    if better or worse:
        return f"{against}: {'better' if better else 'worse'}: {_listed(better or worse)}"
    return f"{against}: not told apart: {_listed([test for test in tests if test.paired][:1])}"


def _listed(tests: Sequence[Tested]) -> str:
    return "; ".join(f"{test.split} {test.metric} {difference(test.paired)}" for test in tests)


def difference(paired: Paired | None) -> str:
    """ "+0.031 (95 % interval +0.010 to +0.052)"."""
    if paired is None:
        return "undefined"
    return f"{paired.difference:+.4f} (95 % interval {paired.low:+.4f} to {paired.high:+.4f})"


def called(run: RunRecord) -> str:
    """What a person calls a run: the beginning of its id, and its name."""
    return f"{run.run_id[:SHORT_ID]} ({run.name})"
