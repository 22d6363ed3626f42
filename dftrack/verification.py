"""Do the numbers of a run follow from what it stored? Every metric computed again from the predictions, and compared.

What rests on more than the predictions (losses of the training set, damaged pictures, heat maps) cannot be derived
again here and is listed as such, so that nobody takes it for proven.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from dftrack.dossier import EVALUATION, INTERVALS_TAG
from dftrack.errors import StoreError, require
from dftrack.learning import identities
from dftrack.learning.assessment import Chosen, measure, measured_numbers, plain_numbers
from dftrack.learning.evaluation import Predictions, report
from dftrack.learning.metrics import METRICS
from dftrack.learning.statistics import METHOD
from dftrack.scored import EVALUATED_TAG, decided_by, stored_predictions, threshold_of
from dftrack.tracking import UNDEFINED_TAG, RunRecord, Tracker

SAME = 1e-6  # of a number of order 1: what another order of adding up may change on a graphics card
TOLD = ("accuracy", "precision", "recall", "f1", "share_fake")

OF_A_SPLIT = ("interval", "by_group", "operating", "calibration")  # then comes the split's name
Verdict = Literal["follows", "differs", "nothing to show it", "not to be derived"]


@dataclass(frozen=True, slots=True)
class Claim:
    """A number that was logged, and what the predictions say it is. None: undefined, or not logged."""

    name: str
    logged: float | None
    computed: float | None
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Verification:
    """What became of every logged metric of a run."""

    run_id: str
    claims: tuple[Claim, ...]
    contradictions: tuple[str, ...]  # logged numbers that cannot be one classifier's

    @property
    def faults(self) -> tuple[Claim, ...]:
        """The claims that do not follow, or that nothing is left to show."""
        return tuple(claim for claim in self.claims if claim.verdict in ("differs", "nothing to show it"))

    @property
    def holds(self) -> bool:
        """Whether everything that can be derived again is what was logged."""
        return not self.faults and not self.contradictions


def verify(tracker: Tracker, reference: str) -> Verification:
    """Compute the metrics of a run again from its stored predictions.

    reference: a run id or its beginning. Raises StoreError if the run stored no predictions, or damaged ones.
    """
    record = tracker.find_run(reference)
    predictions = stored_predictions(tracker, record.run_id)
    if not predictions:
        raise StoreError(
            f"run {record.run_id[:12]} ({record.name}, {record.end or record.status}) stored no predictions",
            "only a run that was trained to its end did",
        )
    for split, found in predictions.items():
        if len(set(found.names)) < len(found):
            raise StoreError(f"predictions/{split}.csv does not hold predictions: a picture stands in it twice")
        if bad := [name for name, s in zip(found.names, found.scores, strict=True) if not 0 <= s <= 1]:
            raise StoreError(f"the stored scores of {split} are no probabilities, for example that of {bad[0]}")
    if judged := record.tags.get(EVALUATED_TAG):
        _require_judged(tracker, judged)
    threshold = threshold_of(tracker, record.tags.get(EVALUATED_TAG) or record.run_id)
    chosen = decided_by(tracker, record.run_id)
    evidence = _Evidence(predictions, threshold, chosen, same_intervals=record.tags.get(INTERVALS_TAG) == METHOD)
    claims = [*_claims(record, evidence), *_claims_of_the_file(tracker, record, evidence)]
    return Verification(record.run_id, tuple(claims), tuple(_contradictions(record, predictions)))


def _require_judged(tracker: Tracker, run_id: str) -> None:
    """Raise StoreError if the run is gone whose val decided the thresholds and the temperature of an evaluation."""
    try:
        tracker.find_run(run_id)
    except StoreError as error:
        raise StoreError(
            f"run {run_id[:12]}, whose model was judged, is not there: its val decided thresholds and temperature",
            "restore it in the MLflow page, then verify again",
        ) from error


@dataclass(frozen=True, slots=True)
class _Evidence:
    """What a run stored of each picture, and what it takes to compute its numbers again."""

    predictions: Mapping[str, Predictions]
    threshold: float
    chosen: Chosen | None  # what val decided
    same_intervals: bool  # were its intervals made as they are made now? Otherwise they cannot be derived again


def derived(predictions: Mapping[str, Predictions], threshold: float, chosen: Chosen | None) -> dict[str, float | None]:
    """Every metric that follows from the predictions of a run, under its name in MLflow. None = undefined.

    chosen: what val decided, see `decided_by`.
    """
    numbers: dict[str, float | None] = {}
    if chosen is not None:
        numbers["calibration/temperature"] = chosen.temperature
    for split, found in predictions.items():
        judged = report(found, threshold)
        numbers |= {f"{split}/{name}": value for name, value in judged.metrics.items()}
        numbers |= {f"{split}/always_fake/{name}": value for name, value in judged.always_fake.items()}
        numbers[f"{split}/loss"] = judged.metrics["log_loss"]
        numbers |= measured_numbers(split, measure(found, chosen.temperature if chosen else None, threshold))
    return numbers


def _claims(record: RunRecord, evidence: _Evidence) -> Iterator[Claim]:
    computed = derived(evidence.predictions, evidence.threshold, evidence.chosen)
    if not evidence.same_intervals:
        computed = {name: value for name, value in computed.items() if not name.startswith("interval/")}
    undefined = _told_undefined(record)
    for name in sorted(record.metrics):
        logged = record.metrics[name]
        if name in computed:
            yield Claim(name, logged, computed[name], "follows" if _same(logged, computed[name]) else "differs")
        else:
            old = name.startswith("interval/") and not evidence.same_intervals
            shown = old or not _of_a_split(name)
            yield Claim(name, logged, None, "not to be derived" if shown else "nothing to show it")
    for name in sorted(undefined & set(computed) - set(record.metrics)):
        yield Claim(name, None, computed[name], "follows" if computed[name] is None else "differs")
    judged = _is_judged(record)
    for name in sorted(set(computed) - set(record.metrics) - undefined):
        wanted = judged or name.partition("/")[0] not in OF_A_SPLIT  # every run records the others
        if wanted and _of_a_split(name) and computed[name] is not None:
            yield Claim(name, None, computed[name], "differs")


def _same(said: object, known: float | None) -> bool:
    if said is None or known is None:
        return said is known
    return isinstance(said, float | int) and abs(said - known) <= SAME * max(1.0, abs(known))


def _is_judged(record: RunRecord) -> bool:
    """Does the run claim more than metrics, as a baseline does, and no trial? Then all of it must be there."""
    return INTERVALS_TAG in record.tags or any(name.partition("/")[0] in OF_A_SPLIT for name in record.metrics)


def _of_a_split(name: str) -> bool:
    """Is it a number of a split's predictions, whatever the split is called? (Of train none are stored.)"""
    first, _, rest = name.partition("/")
    if first in OF_A_SPLIT:
        return "/" in rest
    return first not in ("train", "shortcut") and rest.removeprefix("always_fake/") in METRICS


def _claims_of_the_file(tracker: Tracker, record: RunRecord, evidence: _Evidence) -> Iterator[Claim]:
    """What evaluation.json says other than the predictions."""
    try:
        stored = json.loads(tracker.download(record.run_id, EVALUATION).read_text())
        splits, said = dict(stored["splits"]), dict(stored["chosen"])
    except StoreError:
        if _is_judged(record):
            yield Claim(EVALUATION, None, None, "nothing to show it")
        return
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        yield Claim(EVALUATION, None, None, "nothing to show it")
        return
    for split in sorted(splits.keys() - evidence.predictions.keys()):
        yield Claim(f"{EVALUATION}: {split}", None, None, "nothing to show it")
    chosen = evidence.chosen or Chosen(temperature=None, thresholds={}, reasons={})
    if evidence.chosen is not None:
        decided = {"temperature": chosen.temperature, "thresholds": dict(chosen.thresholds)}
        yield from _differences(said, decided, "chosen")
    for split, predictions in evidence.predictions.items():
        known = json.loads(json.dumps(plain_numbers(predictions, chosen, evidence.threshold)))
        if not evidence.same_intervals:
            del known["intervals"]
        yield from _differences(splits.get(split), known, split)


def _differences(said: object, known: object, place: str) -> Iterator[Claim]:
    """The places under `place` where what the file says is not what the predictions say."""
    if isinstance(known, dict) and isinstance(said, dict):
        for name, value in known.items():
            yield from _differences(said.get(name), value, f"{place}/{name}")
    elif isinstance(known, list) and isinstance(said, list) and len(known) == len(said):
        for number, value in enumerate(known):
            yield from _differences(said[number], value, f"{place}/{number}")
    elif known is None or isinstance(known, float | int):
        if not _same(said, known):
            yield Claim(f"{EVALUATION}: {place}", said if isinstance(said, float | int) else None, known, "differs")
    elif said != known:
        yield Claim(f"{EVALUATION}: {place}", None, None, "differs")


def _told_undefined(record: RunRecord) -> set[str]:
    return set(filter(None, record.tags.get(UNDEFINED_TAG, "").split(", ")))


def _contradictions(record: RunRecord, splits: Iterable[str]) -> Iterator[str]:
    """What the logged numbers of a split owe each other and do not keep."""
    for split in splits:
        told = {name: record.metrics.get(f"{split}/{name}") for name in TOLD}
        if told["accuracy"] is None or not all(value is None or math.isfinite(value) for value in told.values()):
            continue
        for sentence in identities.check_identities(
            told["accuracy"], told["precision"], told["recall"], told["f1"], told["share_fake"], rounding=1e-9
        ):
            yield f"{split}: {sentence}"


@dataclass(frozen=True, slots=True)
class Published:
    """What a printed table says, and whether one classifier can have given it."""

    numbers: Mapping[str, float]
    contradictions: tuple[str, ...]
    share_fake: identities.ShareRange | None  # the share of fakes that the numbers imply
    digits: Mapping[str, int]  # after the point, that each number was taken to be rounded to
    checked: bool  # False: these numbers owe each other nothing, whatever they are


def check_published(numbers: Mapping[str, float], digits: int | Mapping[str, int] = 4) -> Published:
    """Whether accuracy, precision, recall and F1, printed with so many digits, can be one classifier's.

    numbers: any of accuracy, precision, recall, f1 and share_fake, each in [0, 1]. digits: of all, or of each.
    """
    each = {name: digits if isinstance(digits, int) else digits[name] for name in numbers}
    for name, value in numbers.items():
        require(0 <= each[name] <= 15, f"--digits must be from 0 to 15, got {each[name]}")
        require(math.isfinite(value), f"{name} must be a finite number, got {value}")
    rounding = {name: 0.5 * 10.0**-count for name, count in each.items()}
    found = identities.check_identities(
        *(numbers.get(name) for name in ("accuracy", "precision", "recall", "f1", "share_fake")), rounding=rounding
    )
    share = None
    if not found and {"accuracy", "precision", "recall"} <= set(numbers):
        share = identities.implied_share(numbers["accuracy"], numbers["precision"], numbers["recall"], rounding)
    return Published(dict(numbers), tuple(found), share, each, bool(found) or identities.can_contradict(numbers))
