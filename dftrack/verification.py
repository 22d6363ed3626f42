"""Do the numbers of a run follow from what it stored? Every metric computed again from the predictions, and compared.

What rests on more than the predictions (losses of the training set, damaged pictures, heat maps) cannot be derived
again here and is listed as such, so that nobody takes it for proven.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from dftrack.dossier import EVALUATION
from dftrack.errors import StoreError, require
from dftrack.learning import identities
from dftrack.learning.assessment import Chosen, measure, measured_numbers
from dftrack.learning.evaluation import Predictions, report
from dftrack.learning.metrics import METRICS
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
        if bad := [name for name, s in zip(found.names, found.scores, strict=True) if not 0 <= s <= 1]:
            raise StoreError(f"the stored scores of {split} are no probabilities, for example that of {bad[0]}")
    computed = derived(
        predictions,
        threshold_of(tracker, record.tags.get(EVALUATED_TAG) or record.run_id),
        decided_by(tracker, record.run_id),
    )
    claims = [*_claims(record, computed), *_claims_of_the_file(tracker, record, computed)]
    return Verification(record.run_id, tuple(claims), tuple(_contradictions(record, predictions)))


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


def _claims(record: RunRecord, computed: Mapping[str, float | None]) -> Iterator[Claim]:
    undefined = _told_undefined(record)
    for name in sorted(record.metrics):
        logged = record.metrics[name]
        if name in computed:
            value = computed[name]
            same = value is not None and abs(logged - value) <= SAME * max(1.0, abs(value))
            yield Claim(name, logged, value, "follows" if same else "differs")
        else:
            yield Claim(name, logged, None, "nothing to show it" if _of_a_split(name) else "not to be derived")
    for name in sorted(undefined & set(computed) - set(record.metrics)):
        yield Claim(name, None, computed[name], "follows" if computed[name] is None else "differs")
    for name in sorted(set(computed) - set(record.metrics) - undefined):
        if _of_a_split(name) and name.partition("/")[0] not in OF_A_SPLIT and computed[name] is not None:
            yield Claim(name, None, computed[name], "differs")  # every run records these


def _of_a_split(name: str) -> bool:
    """Is it a number of a split's predictions, whatever the split is called? (Of train none are stored.)"""
    first, _, rest = name.partition("/")
    if first in OF_A_SPLIT:
        return "/" in rest
    return first not in ("train", "shortcut") and rest.removeprefix("always_fake/") in METRICS


def _claims_of_the_file(tracker: Tracker, record: RunRecord, computed: Mapping[str, float | None]) -> Iterator[Claim]:
    """What evaluation.json says other than the predictions."""
    try:
        stored = json.loads(tracker.download(record.run_id, EVALUATION).read_text())
        said = {f"{split}/{name}": v for split, of in stored["splits"].items() for name, v in of["metrics"].items()}
        said["calibration/temperature"] = stored["chosen"]["temperature"]
    except StoreError:
        return  # a trial has none
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        yield Claim(EVALUATION, None, None, "nothing to show it")
        return
    for name, value in said.items():
        known = computed.get(name)
        same = value is known is None or (
            isinstance(value, float | int) and known is not None and abs(value - known) <= SAME * max(1.0, abs(known))
        )
        if not same:
            yield Claim(f"{EVALUATION}: {name}", value, known, "differs")


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


def check_published(numbers: Mapping[str, float], digits: int = 4) -> Published:
    """Whether accuracy, precision, recall and F1, printed with so many digits, can be one classifier's.

    numbers: any of accuracy, precision, recall, f1 and share_fake, each in [0, 1].
    """
    require(0 <= digits <= 15, f"--digits must be from 0 to 15, got {digits}")
    for name, value in numbers.items():
        require(math.isfinite(value), f"{name} must be a finite number, got {value}")
    rounding = 0.5 * 10.0**-digits
    found = identities.check_identities(
        *(numbers.get(name) for name in ("accuracy", "precision", "recall", "f1", "share_fake")), rounding=rounding
    )
    share = None
    if not found and {"accuracy", "precision", "recall"} <= set(numbers):
        share = identities.implied_share(numbers["accuracy"], numbers["precision"], numbers["recall"], rounding)
    return Published(dict(numbers), tuple(found), share)
