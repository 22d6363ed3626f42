"""A recorded model held against any data set, as a run of its own: `dftrack evaluate`."""

import shutil
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from filelock import FileLock

from dftrack.config import DataConfig, Leaks, Value
from dftrack.data.cache import DataSet, open_data, open_for_judging
from dftrack.data.identity import identities, identities_place, kept_identities
from dftrack.data.sources import find_pictures
from dftrack.data_place import data_source_of
from dftrack.errors import DataError, SettingError, StoreError
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
CHOSEN_TAG = "dftrack.chosen_on"  # how many, of the others, were in the val split that decided its thresholds; so too
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
    notices: tuple[str, ...]  # what a person should know of this model and these data
    caution: str = ""  # the one of them that speaks against the model itself; mostly empty

    def flat(self) -> dict[str, float | None]:
        """Metric name -> value, as in MLflow. None = undefined."""
        return {name: value for found in self.reports for name, value in flat_metrics(found).items()}

    def plain(self) -> dict[str, Any]:
        """What evaluation.json holds: intervals, answers by group, thresholds, calibration and more of each split."""
        return {**plain(self.assessment), "shortcut": self.floor, "notices": list(self.notices)}


def evaluate(tracker: Tracker, store: Path, request: Request, progress: Progress) -> Evaluated:
    """Score, judge, record. Raises DftrackError if the model, the data or a split is not to be had."""
    resolved = resolve_model(tracker, request.model)
    device = pick_device(request.device)
    detector = Detector.load(resolved.folder, device=device)
    own = data_source_of(tracker.find_run(resolved.run_id))
    data = _open(detector, own, request, store, progress)
    names = _splits(data, request.splits)
    settings: dict[str, Value] = {"data.source": data.source, "data.image_size": data.image_size, "run.device": device}
    judged = _judged(data, names, progress)
    known = _known(own, data, judged, store, progress)
    notices = (*filter(None, [resolved.caution]), *_notices(judged, known))
    key = uuid.uuid4().hex
    with _at_work(tracker.store.checkpoints / key):
        run = tracker.start_run(
            f"evaluation of {resolved.described}"[:120],
            key=key,
            settings=settings,
            tags={
                "dftrack.kind": KIND,
                "dftrack.data_digest": data.digest,
                EVALUATED_TAG: resolved.run_id,
                TESTS_OPENED: ", ".join(name for name in names if name not in ("train", "val")),
                **({SEEN_TAG: str(known.trained_on)} if known and known.trained_on else {}),
                **({CHOSEN_TAG: str(known.chosen_on)} if known and known.chosen_on else {}),
            },
        )
        try:
            record_start(run, data, opened=names)
            chosen = decided_by(tracker, resolved.run_id)
            reports, found = _judge(run, detector, data, names, chosen, notices, device, progress)
        except BaseException as error:
            run.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED", reason=str(error) or "stopped")
            raise
        run.finish("FINISHED")
    return Evaluated(
        run_id=run.run_id,
        model=resolved.described,
        data_digest=data.digest,
        reports=reports,
        floor=floor_of(data),
        intervals=intervals_of(found),
        assessment=found,
        notices=notices,
        caution=resolved.caution,
    )


@contextmanager
def _at_work(folder: Path) -> Iterator[None]:
    """Hold a folder of the run's key as a training does: by its lock `dftrack doctor` sees that the process lives."""
    try:
        folder.mkdir(parents=True)
        lock = FileLock(folder / "lock", timeout=1.0)  # seconds: somebody may just be looking whether it is held
        lock.acquire()
    except OSError as error:
        raise StoreError(f"cannot use the folder {folder}: {error.strerror or error}") from error
    try:
        yield
    finally:
        lock.release()
        shutil.rmtree(folder, ignore_errors=True)


def _judge(
    run: Run,
    detector: Detector,
    data: DataSet,
    names: Sequence[str],
    chosen: Chosen | None,
    notices: Sequence[str],
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
        run,
        detector.model,
        data,
        predictions,
        chosen,
        threshold=detector.threshold,
        device=device,
        progress=progress,
        notices=notices,
    )
    return reports, found


@dataclass(frozen=True, slots=True)
class _Judged:
    """A picture that is judged."""

    split: str
    label: int
    pixels: str  # by which equal pictures are known


@dataclass(frozen=True, slots=True)
class _Known:
    """How many of the judged pictures the model knows, whatever they are called and however they are saved."""

    trained_on: int
    chosen_on: int  # of the others: in its val split


def _judged(data: DataSet, names: Sequence[str], progress: Progress) -> list[_Judged]:
    asked = [
        (name, int(label), path)
        for name in names
        for label, path in zip(data.splits[name].labels, data.splits[name].paths, strict=True)
    ]
    found = identities([path for _, _, path in asked], progress)
    return [_Judged(name, label, one.pixels) for (name, label, _), one in zip(asked, found, strict=True) if one]


def _known(own: str, data: DataSet, judged: Sequence[_Judged], store: Path, progress: Progress) -> _Known | None:
    """None if the data that the model was trained on are not there any more.

    That its own val split is its val split goes without saying: there nothing is counted as chosen on.
    """
    try:
        listing = find_pictures(own, store)
    except DataError:
        return None
    of = kept_identities(identities_place(store, listing.pictures), listing.pictures, {}, progress)
    train, val = (
        {of[p.name].pixels for p in listing.pictures if p.split == split and p.name in of} for split in ("train", "val")
    )
    if not train:
        return None
    trained_on = sum(picture.pixels in train for picture in judged)
    others = [p for p in judged if p.pixels not in train and not (p.split == "val" and data.source == listing.source)]
    return _Known(trained_on, sum(picture.pixels in val for picture in others))


def _notices(judged: Sequence[_Judged], known: _Known | None) -> tuple[str, ...]:
    said = []
    if known is None:
        said.append("whether the model was trained on these pictures cannot be told: its data are not there any more")
    elif known.trained_on:
        said.append(
            f"the model was trained on {known.trained_on} of these pictures: what it says of them is no measure of "
            "skill"
        )
    if known and known.chosen_on:
        said.append(
            f"{known.chosen_on} of these pictures are of the model's val split, which chose its thresholds and "
            "temperature: what it says of them is flattered"
        )
    labels: dict[str, set[int]] = {}
    for picture in judged:
        labels.setdefault(picture.pixels, set()).add(picture.label)
    if both := sum(len(of) > 1 for of in labels.values()):
        are = "picture is" if both == 1 else "pictures are"
        said.append(f"{both} {are} labelled both real and fake: no answer is right")
    times = Counter((picture.split, picture.pixels) for picture in judged)
    if more := sum(count - 1 for count in times.values()):
        repeated = sum(count > 1 for count in times.values())
        come = "picture comes" if repeated == 1 else "pictures come"
        said.append(f"{repeated} {come} more than once in a split: {more} too many, each counted as one of its own")
    return tuple(said)


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
