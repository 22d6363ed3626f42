"""A recorded model held against any data set, as a run of its own: `dftrack evaluate`."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from dftrack.config import DataConfig, Leaks, Value
from dftrack.data.cache import DataSet, open_data, open_for_judging
from dftrack.data.parallel import spread
from dftrack.data.sources import find_pictures
from dftrack.data_place import data_source_of
from dftrack.errors import DataError, SettingError
from dftrack.files import sha256
from dftrack.learning.assessment import Assessment, Chosen, Progress, choose, plain
from dftrack.learning.detector import Detector
from dftrack.learning.evaluation import Predictions, Report, predict, report
from dftrack.learning.statistics import Interval
from dftrack.recording import (
    TESTS_OPENED,
    flat_metrics,
    floor_of,
    intervals_of,
    prediction_columns,
    record_judgement,
    record_start,
)
from dftrack.registry import resolve_model
from dftrack.runtime import pick_device
from dftrack.scored import EVALUATED_TAG, decided_by
from dftrack.tracking import Run, Tracker

KIND = "evaluation"
SEEN_TAG = "dftrack.trained_on"  # how many of the pictures the model was trained on; absent if none
NO_CHOICE = Chosen(None, {}, {"temperature": "no val split decided it"})


@dataclass(frozen=True, slots=True)
class Request:
    """What to hold against what."""

    model: str | None  # RUN, NAME@alias, NAME/3; None: the champion, else the newest baseline
    source: str | None = None  # the data; None: what the model was trained on
    splits: Sequence[str] = ()  # none: val and the test splits, or all there are if there is neither
    device: str = "auto"


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What came of it."""

    run_id: str  # of the evaluation
    model: str  # for a person
    data_digest: str
    reports: tuple[Report, ...]
    floor: float | None  # AUC that the traits of the files alone reach on val; None = not known
    intervals: Mapping[str, Mapping[str, Interval | None]]  # split -> metric
    assessment: Assessment
    notices: tuple[str, ...]  # what a person should know of these data

    def flat(self) -> dict[str, float | None]:
        """Metric name -> value, as in MLflow. None = undefined."""
        return {name: value for found in self.reports for name, value in flat_metrics(found).items()}

    def plain(self) -> dict[str, Any]:
        """What evaluation.json holds: intervals, answers by group, thresholds, calibration and more of each split."""
        return {**plain(self.assessment), "shortcut": self.floor}


def evaluate(tracker: Tracker, store: Path, request: Request, progress: Progress) -> Evaluated:
    """Score, judge, record. Raises DftrackError if the model, the data or a split is not to be had."""
    resolved = resolve_model(tracker, request.model)
    device = pick_device(request.device)
    detector = Detector.load(resolved.folder, device=device)
    own = data_source_of(tracker.find_run(resolved.run_id))
    data = _open(detector, own, request, store, progress)
    names = _splits(data, request.splits)
    settings: dict[str, Value] = {"data.source": data.source, "data.image_size": data.image_size, "run.device": device}
    seen = _seen(own, data, names, store)
    run = tracker.start_run(
        f"evaluation of {resolved.described}"[:120],
        key=uuid.uuid4().hex,
        settings=settings,
        tags={
            "dftrack.kind": KIND,
            "dftrack.data_digest": data.digest,
            EVALUATED_TAG: resolved.run_id,
            TESTS_OPENED: ", ".join(name for name in names if name not in ("train", "val")),
            **({SEEN_TAG: str(seen)} if seen else {}),
        },
    )
    try:
        record_start(run, data, opened=names)
        reports, found = _judge(run, detector, data, names, decided_by(tracker, resolved.run_id), device, progress)
    except BaseException as error:
        run.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED", reason=str(error) or "stopped")
        raise
    run.finish("FINISHED")
    return Evaluated(
        run.run_id, resolved.described, data.digest, reports, floor_of(data), intervals_of(found), found, _notices(seen)
    )


def _judge(
    run: Run,
    detector: Detector,
    data: DataSet,
    names: Sequence[str],
    chosen: Chosen | None,
    device: str,
    progress: Progress,
) -> tuple[tuple[Report, ...], Assessment]:
    predictions: list[Predictions] = []
    for name in names:
        progress(f"scoring {name}", len(predictions), len(names))
        predictions.append(predict(detector.model, data.splits[name], device=device))
    if chosen is None:
        chosen = next((choose(scored) for scored in predictions if scored.split == "val"), NO_CHOICE)
    reports = tuple(report(scored, detector.threshold) for scored in predictions)
    for judged in reports:
        run.log_metrics(flat_metrics(judged))
    for scored in predictions:
        run.log_table(prediction_columns(scored), f"predictions/{scored.split}.csv")
    found = record_judgement(
        run, detector.model, data, predictions, chosen, threshold=detector.threshold, device=device, progress=progress
    )
    return reports, found


def _seen(own: str, data: DataSet, names: Sequence[str], store: Path) -> int | None:
    """How many of the pictures the model was trained on, by their bytes; None if its data are not there any more."""
    try:
        listing = find_pictures(own, store)
    except DataError:
        return None
    asked = [path for name in names for path in data.splits[name].paths]
    sizes = {path.stat().st_size for path in asked}
    trained = [
        p.path for p in listing.pictures if p.split == "train" and p.path.is_file() and p.path.stat().st_size in sizes
    ]
    known = set(spread(sha256, trained))
    return sum(digest in known for digest in spread(sha256, asked)) if known else 0


def _notices(seen: int | None) -> tuple[str, ...]:
    if seen is None:
        return ("whether the model was trained on these pictures cannot be told: its data are not there any more",)
    return (
        (f"the model was trained on {seen} of these pictures: what it says of them is no measure of skill",)
        if seen
        else ()
    )


def _open(detector: Detector, own: str, request: Request, store: Path, progress: Progress) -> DataSet:
    """The pictures at the size the network wants: its own data set, or another one, which needs no train."""
    config = DataConfig(
        source=request.source or own,
        image_size=detector.image_size,
        leaks=cast(Leaks, detector.settings.get("data.leaks", "leave-out")),
    )
    if request.source is None or request.source == own:
        return open_data(config, store, progress)
    return open_for_judging(config, store, progress)


def _splits(data: DataSet, wanted: Sequence[str]) -> list[str]:
    unknown = [name for name in wanted if name not in data.splits]
    if unknown:
        raise SettingError(f"{data.source!r} has no split {unknown[0]!r}", f"it has {', '.join(data.splits)}")
    usual = [name for name in data.splits if name != "train"] or list(data.splits)
    chosen = list(dict.fromkeys(wanted)) or usual
    if not any(len(data.splits[name].labels) for name in chosen):
        raise DataError(f"there is no picture of {', '.join(chosen)} in {data.source!r}")
    return chosen
