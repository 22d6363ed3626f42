"""What a run has to show before it is released: each gate says what it wanted and what it found. Pure: nothing is read.

A gate that could not be judged through no fault of the run (there is no champion yet, nothing was measured) says so
openly and does not stop it. `registry` gathers what the gates are given.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dftrack.data.findings import CHANCE, floor_words
from dftrack.errors import MetricError, require
from dftrack.learning.calibration import expected_calibration_error
from dftrack.learning.evaluation import Predictions, report
from dftrack.learning.identities import check_identities
from dftrack.learning.metrics import DEFAULT_THRESHOLD
from dftrack.learning.statistics import Paired
from dftrack.learning.temperature import apply_temperature

LARGEST = 1e300  # MLflow stores an infinite metric as 1.798e308
EXACT, NEARLY = 1e-6, 1e-3  # how far a logged metric may lie from the one computed again: test splits, val (whose
# logged value is the last epoch's, scored apart from the predictions: on a GPU not bit for bit)
SIGNIFICANT = 0.05  # p value from which on downwards a champion counts as better
SAME_SCORE = 1e-5  # how far a score may lie from the recorded one after the round trip


@dataclass(frozen=True, slots=True)
class Gate:
    """One condition, and what became of it."""

    name: str
    wanted: str
    found: str
    passed: bool | None  # None: not judged, which stops nobody
    firm: bool = False  # no reason overrides it: the model could not be used, or must not be loaded


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the gates want."""

    pictures: int = 200  # test pictures, in all
    margin: float = 0.02  # AUC that a run may lack against the champion without being called worse
    robustness: float = 0.03  # mean AUC under corruption that it may lack
    ece: float = 0.15  # expected calibration error in [0, 1] of the probability that ships

    def __post_init__(self) -> None:
        require(self.pictures >= 1, f"--min-pictures must be at least 1, got {self.pictures}")
        for name, value in (("margin", self.margin), ("robustness-margin", self.robustness), ("max-ece", self.ece)):
            require(0 <= value <= 1, f"--{name} must be in [0, 1], got {value}")


def allowed(gates: Sequence[Gate]) -> bool:
    """Does every gate that was judged let the run pass?"""
    return all(gate.passed is not False for gate in gates)


def finished(status: str, end: str) -> Gate:
    """A run that was stopped, failed or still runs has no final numbers."""
    found = f"{status}{f', {end}' if end else ''}"
    return Gate("run finished", "FINISHED, complete", found, status == "FINISHED" and end in ("complete", ""))


def metrics_true(
    logged: Mapping[str, float],
    predictions: Mapping[str, Predictions],
    threshold: float = DEFAULT_THRESHOLD,
    faults: Sequence[str] = (),
    owed: Sequence[str] = (),
) -> Gate:
    """Every logged metric is a finite number, and those of each split are what its stored predictions give.

    threshold: the model's own; a run whose numbers hold at it, rather than at 0.5, is right as well.
    faults: what else does not follow from the predictions (intervals, calibration), found by `verification`.
    owed: the splits that were scored, which therefore must have stored predictions.
    """
    wanted = "all finite, equal to those of the stored predictions, no contradictions"
    unfit = [name for name, value in logged.items() if not math.isfinite(value) or abs(value) >= LARGEST]
    if unfit:
        said = ", ".join(f"{name} is {'not a number' if math.isnan(logged[name]) else 'infinite'}" for name in unfit)
        return Gate("metrics", wanted, said, False)
    if not any(is_test(split) for split in predictions):
        return Gate("metrics", wanted, "no test split was scored: there are no predictions to compute them from", False)
    wrong = [f"{split} was scored and has no stored predictions" for split in owed if split not in predictions]
    for split, found in predictions.items():
        tries = [contradictions(logged, found, at) for at in dict.fromkeys((DEFAULT_THRESHOLD, threshold))]
        wrong += [f"{split}: {text}" for text in min(tries, key=len)]
    wrong += faults
    count = sum(len(found) for found in predictions.values())
    said = "; ".join(wrong[:3]) + (f"; and {len(wrong) - 3} more" if len(wrong) > 3 else "")
    return Gate("metrics", wanted, said or f"so it is ({len(logged)} metrics, {count:,} predictions)", not wrong)


def contradictions(logged: Mapping[str, float], found: Predictions, threshold: float) -> list[str]:
    """What of the logged metrics of a split does not follow from its predictions."""
    try:
        again = report(found, threshold)
    except MetricError as error:
        return [error.message]
    near = EXACT if is_test(found.split) else NEARLY
    wrong = []
    for prefix, values in ((found.split, again.metrics), (f"{found.split}/always_fake", again.always_fake)):
        for name, value in values.items():
            said = logged.get(f"{prefix}/{name}")
            if (said is None) != (value is None) or (
                said is not None and value is not None and abs(said - value) > near * max(1.0, abs(value))
            ):
                wrong.append(f"{prefix}/{name} is logged as {_number(said)}, computed again {_number(value)}")
    accuracy, precision, recall, f1, share = (
        logged.get(f"{found.split}/{name}") for name in ("accuracy", "precision", "recall", "f1", "share_fake")
    )
    return wrong + check_identities(accuracy, precision, recall, f1, share, rounding=near)


def no_leaks(leaks: Sequence[str], audited: bool) -> Gate:
    """leaks: what says that pictures which leak between splits were trained on. audited: was it looked for?"""
    wanted = "an audit, and no picture of a test or val split in training"
    found = "; ".join(leaks) or ("none" if audited else "nobody looked: no audit is recorded (audit.json)")
    return Gate("no leaks", wanted, found, audited and not leaks)


def enough_pictures(predictions: Mapping[str, Predictions], least: int) -> Gate:
    """Enough test pictures to tell anything."""
    counts = {split: len(found) for split, found in predictions.items() if is_test(split)}
    found = ", ".join(f"{split} {count:,}" for split, count in counts.items()) or "none"
    return Gate("test pictures", f"at least {least:,}", found, sum(counts.values()) >= least)


def same_data(ours: str | None, champions: str | None, again: str, problem: str) -> Gate:
    """again: what was done about it ("" if the digests agree); problem: why it could not be done."""
    wanted = "the champion judged on the same pictures"
    if problem:
        return Gate("same data", wanted, problem, False)
    if again:
        digests = f"digest {(ours or 'unknown')[:8]}, the champion's {(champions or 'unknown')[:8]}"
        return Gate("same data", wanted, f"{digests}: {again}", True)
    return Gate("same data", wanted, f"digest {(ours or '')[:8]} of both", True)


def not_worse(pairs: Mapping[str, Paired | None], margin: float) -> Gate:
    """pairs: test split -> AUC of the run minus the champion's, with groups as the unit; None: undefined.

    A run is refused if the champion is significantly better, or if more than `margin` is missing, whether that is
    significant or not. The lower end of the interval is told, not judged: with some hundred pictures it lies below
    any useful margin for a run that is exactly as good (see docs/release.md).
    """
    wanted = f"not significantly worse on any test split, nor more than {margin:g} AUC below"
    name = "against the champion"
    said: list[str] = []
    bad = False
    for split, pair in pairs.items():
        if pair is None:
            said.append(f"{split} undefined")
            bad = True
            continue
        worse = pair.difference < 0 and pair.p_value < SIGNIFICANT
        below = pair.difference < -margin
        bad = bad or worse or below
        words = "significantly worse" if worse else "below the margin" if below else ""
        words = words or (f"a loss of {-pair.low:.3f} is not ruled out" if pair.low < -margin else "")
        interval = f"{pair.difference:+.4f} ({pair.low:+.4f} to {pair.high:+.4f}, p {pair.p_value:.2g})"
        said.append(f"{split} {interval}{': ' + words if words else ''}")
    return Gate(name, wanted, "; ".join(said) or "no test split in common", bool(pairs) and not bad)


def above_shortcuts(val_auc: float | None, floor: float | None) -> Gate:
    """Both on val: what the network reaches, and what the traits of the files alone give away."""
    wanted = "a val AUC above that of the files' traits alone"
    if floor is None:
        return Gate("shortcut floor", wanted, "no floor was measured (metric shortcut/roc_auc)", None)
    found = f"{_number(val_auc)} against {floor_words(floor, 4)}"
    return Gate("shortcut floor", wanted, found, val_auc is not None and val_auc > max(CHANCE, floor))


def above_always_fake(predictions: Mapping[str, Predictions], threshold: float) -> Gate:
    """On every test split: better than the answer "fake" to everything, in ranking and in right answers."""
    said: list[str] = []
    bad = False
    for split, found in predictions.items():
        if not is_test(split):
            continue
        try:
            judged = report(found, threshold)
        except MetricError as error:
            said, bad = [*said, f"{split} {error.message}"], True
            continue
        auc, accuracy, base = judged.metrics["roc_auc"], judged.metrics["accuracy"], judged.always_fake["accuracy"]
        said.append(f"{split} AUC {_number(auc)}, accuracy {_number(accuracy)} against {_number(base)}")
        bad = bad or auc is None or auc <= 0.5 or accuracy is None or base is None or accuracy <= base
    wanted = "AUC above 0.5 and accuracy above that of always saying fake"
    return Gate("always fake", wanted, "; ".join(said) or "no test split", bool(said) and not bad)


def robust(ours: Mapping[str, float], champions: Mapping[str, float] | None, same: bool, margin: float) -> Gate:
    """ours, champions: logged metrics, of which those named robustness/... count; same: on the same pictures."""
    name, wanted = "robustness", f"mean AUC under corruption at most {margin:g} below the champion's"
    if champions is None:
        return Gate(name, wanted, "there is no champion yet", None)
    both = sorted(key for key in ours.keys() & champions.keys() if key.startswith("robustness/"))
    if not both:
        lacking = " and ".join(
            who
            for who, metrics in (("the run", ours), ("the champion", champions))
            if not any(key.startswith("robustness/") for key in metrics)
        )
        return Gate(name, wanted, f"nothing was measured under corruption for {lacking or 'both alike'}", None)
    if not same:
        return Gate(name, wanted, "measured on other pictures than the champion's", None)
    here, there = (sum(metrics[key] for key in both) / len(both) for metrics in (ours, champions))
    return Gate(name, wanted, f"{here:.4f} against {there:.4f} ({len(both)} corruptions)", here >= there - margin)


def calibrated(predictions: Mapping[str, Predictions], temperature: float | None, most: float) -> Gate:
    """The probability that ships means what it says: scores divided by the detector's temperature, if it has one."""
    said: list[str] = []
    bad = False
    for split, found in predictions.items():
        if is_test(split):
            try:
                scores = found.scores if temperature is None else apply_temperature(found.scores, temperature)
                error = expected_calibration_error(scores, found.labels)
            except MetricError as problem:
                said, bad = [*said, f"{split} {problem.message}"], True
                continue
            said.append(f"{split} {error:.4f}")
            bad = bad or error > most
    how = "no temperature was fitted" if temperature is None else f"temperature {temperature:.3g}"
    wanted = f"expected calibration error at most {most:g}"
    return Gate("calibration", wanted, f"{'; '.join(said) or 'no test split'} ({how})", bool(said) and not bad)


def files_whole(problems: Sequence[str]) -> Gate:
    """problems: what is wrong with the files of the logged model."""
    wanted = "every file as it was logged, nothing pickled"
    return Gate("files", wanted, "; ".join(problems[:3]) or "so it is", not problems, firm=True)


def round_trip(pictures: int, furthest: float | None, problem: str) -> Gate:
    """furthest: the largest distance of a score from the recorded one; None: it was not done, `problem` says why."""
    wanted = f"a clean process gives the recorded scores within {SAME_SCORE:g}"
    if problem or furthest is None:
        return Gate("round trip", wanted, problem or "not done", False)
    found = f"{pictures} pictures, furthest {furthest:.1e}"
    return Gate("round trip", wanted, found, furthest <= SAME_SCORE)


def predictions_hold(problems: Sequence[str], scored: int, furthest: float | None) -> Gate:
    """problems: how they differ from the data set. furthest: the largest distance of a score from the model's."""
    wanted = f"pictures, labels and groups of the data set, and the scores that the model gives within {SAME_SCORE:g}"
    if problems or furthest is None:
        return Gate("predictions", wanted, "; ".join(problems[:3]) or "not done", False)
    found = f"so it is ({scored:,} pictures scored, furthest {furthest:.1e})"
    if furthest > SAME_SCORE:
        found = f"the model gives other scores: furthest {furthest:.1e} of {scored:,} pictures"
    return Gate("predictions", wanted, found, furthest <= SAME_SCORE)


def is_test(split: str) -> bool:
    """Neither trained on nor chosen by."""
    return split not in ("train", "val")


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"
