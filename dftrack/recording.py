"""What one experiment leaves behind: where it came from, how it ended, its pictures, its predictions, its model."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dftrack.config import Config, Value, flatten
from dftrack.data.cache import DataSet
from dftrack.data_place import place_tag
from dftrack.dossier import record_assessment, record_review
from dftrack.files import temporary_folder
from dftrack.learning import figures
from dftrack.learning.assessment import Assessment, Chosen, Progress, assess, choose
from dftrack.learning.detector import Detector
from dftrack.learning.evaluation import Predictions, Report, predict, report
from dftrack.learning.explain import gradcam_rows
from dftrack.learning.metrics import CLASSES, DEFAULT_THRESHOLD
from dftrack.learning.model import FaceCNN
from dftrack.learning.statistics import Interval
from dftrack.learning.trust import marked
from dftrack.runtime import provenance
from dftrack.tracking import Run

TESTS_OPENED = "dftrack.tests_opened"  # tag of a run that scored test splits: which


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """A training that has come to its end, with what it was made from."""

    model: FaceCNN  # on `device`
    config: Config
    data: DataSet
    history: Sequence[Mapping[str, float | None]]  # the metrics of each epoch
    device: str


@dataclass(frozen=True, slots=True)
class Final:
    """The numbers an experiment ends with, as they were recorded."""

    reports: tuple[Report, ...]  # val first, then the test splits that were opened
    settings: Mapping[str, Value]
    data_digest: str
    model_uri: str | None
    floor: float | None = None  # AUC that the traits of the files alone reach on val
    intervals: Mapping[str, Mapping[str, Interval | None]] = field(default_factory=dict)  # split -> metric; none asked

    def flat(self) -> dict[str, float | None]:
        """Metric name -> value, under the names in MLflow, for example `test-dev/roc_auc`. None = undefined."""
        return {name: value for found in self.reports for name, value in flat_metrics(found).items()}


def flat_metrics(found: Report) -> dict[str, float | None]:
    """The metrics of one split under the names they have in MLflow."""
    own = {f"{found.split}/{name}": value for name, value in found.metrics.items()}
    return own | {f"{found.split}/always_fake/{name}": value for name, value in found.always_fake.items()}


def record_start(run: Run, data: DataSet, opened: Sequence[str] = ("train", "val")) -> None:
    """Record what is known before training: the data set and the splits it will open, this machine, this code."""
    origin = provenance()
    run.log_dataset(data.source, data.digest, data.counts(), opened)
    run.set_tags(
        {
            "user": origin.user,
            "source": origin.command,
            **place_tag(data.source),
            **({"commit": origin.commit} if origin.commit else {}),
            "dftrack.uncommitted": "yes" if origin.diff else "no",
            **{f"machine.{name}": value for name, value in origin.machine.items()},
            **{f"version.{name}": value for name, value in origin.versions.items()},
        }
    )
    run.log_json(
        {"command": origin.command, "commit": origin.commit, "versions": origin.versions, "machine": origin.machine},
        "provenance/environment.json",
    )
    if origin.diff:
        run.log_text(origin.diff, "provenance/uncommitted.diff.txt")
    run.log_json(
        {
            "source": data.source,
            "digest": data.digest,
            "image_size": data.image_size,
            "counts": data.counts(),
            "unreadable": [dataclasses.asdict(bad) for bad in data.unreadable],
        },
        "data.json",
    )
    counts = {f"data/{split}/{name}": n for split, of in data.counts().items() for name, n in of.items()}
    run.log_metrics({**counts, "data/unreadable": len(data.unreadable)})
    record_review(run, data)


def evaluate_and_record(
    run: Run,
    trained: Trained,
    *,
    tests: bool,
    pictures: bool,
    keep_model: bool,
    progress: Progress = lambda what, done, total: None,
) -> Final:
    """Score val (and, if `tests`, the test splits); record numbers, every prediction, and what else is asked for.

    pictures: curves, explanations, and everything that says how far the numbers can be trusted. `progress` is told
    what is being done; an exception it raises ends the work.
    """
    names = ["val", *(trained.data.test_splits if tests else ())]
    if tests and trained.data.test_splits:  # said before it is done: an opening that is then interrupted is an opening
        run.set_tags({TESTS_OPENED: ", ".join(trained.data.test_splits)})
    predictions: list[Predictions] = []
    for name in names:
        progress("scoring " + name, len(predictions), len(names))
        predictions.append(predict(trained.model, trained.data.splits[name], device=trained.device))
    reports = tuple(report(found) for found in predictions)
    curves = set(trained.history[-1])  # these have a point for each epoch, and the last one is this value
    for judged in reports:
        run.log_metrics({name: value for name, value in flat_metrics(judged).items() if name not in curves})
    for found in predictions:
        run.log_table(prediction_columns(found), f"predictions/{found.split}.csv")
    chosen = choose(predictions[0])
    model_uri = _record_model(run, trained, reports, chosen) if keep_model else None
    final = Final(reports, flatten(trained.config), trained.data.digest, model_uri, floor_of(trained.data))
    if not pictures:
        return final
    run.log_bytes(figures.loss_curves(trained.history), "curves/loss.png")
    judgement = record_judgement(
        run, trained.model, trained.data, predictions, chosen, device=trained.device, progress=progress
    )
    return dataclasses.replace(final, intervals=intervals_of(judgement))


def floor_of(data: DataSet) -> float | None:
    """AUC that the traits of the files alone reach on val; None = not known."""
    return data.review.audit.shortcut.auc if data.review else None


def intervals_of(found: Assessment) -> dict[str, Mapping[str, Interval | None]]:
    """split -> metric -> interval."""
    return {part.report.split: part.measured.intervals for part in found.splits}


def record_judgement(
    run: Run,
    model: FaceCNN,
    data: DataSet,
    predictions: Sequence[Predictions],
    chosen: Chosen,
    *,
    threshold: float = DEFAULT_THRESHOLD,
    device: str,
    progress: Progress,
    notices: Sequence[str] = (),
) -> Assessment:
    """Everything that is drawn from predictions, and everything that says how far they can be trusted.

    notices: what a person should know of these data, for the report.
    """
    splits = [data.splits[found.split] for found in predictions]
    damaged = next((name for name in data.test_splits if name in {s.name for s in splits}), splits[0].name)
    found = assess(
        model, splits, predictions, chosen, threshold=threshold, device=device, robust_on=damaged, progress=progress
    )
    record_assessment(run, model, splits, found, data.review, notices)
    run.log_bytes(figures.roc_curves(predictions), "curves/roc.png")
    run.log_bytes(figures.pr_curves(predictions), "curves/precision-recall.png")
    for split, part in zip(splits, found.splits, strict=True):
        progress(f"explaining {split.name}", 0, 1)
        run.log_bytes(figures.confusion_matrix(part.report), f"confusion/{split.name}.png")
        rows = gradcam_rows(model, split, part.predictions, threshold=threshold)
        title = marked(part.trust.warnings)
        marked_rows = [dataclasses.replace(row, warning=title) for row in rows]
        run.log_bytes(figures.gradcam_panel(marked_rows), f"grad-cam/{split.name}.png")
    return found


def prediction_columns(found: Predictions) -> dict[str, Sequence[str | float]]:
    """The table of predictions that a run keeps: a row for each picture."""
    return {
        "picture": found.names,
        "group": found.groups,
        "label": [CLASSES[label] for label in found.labels],
        "score": [float(score) for score in found.scores],
    }


def _record_model(run: Run, trained: Trained, reports: Sequence[Report], chosen: Chosen) -> str:
    with temporary_folder() as folder:
        detector = Detector(
            model=trained.model,
            settings=flatten(trained.config),
            device=trained.device,
            temperature=chosen.temperature,
        )
        detector.save(folder)
        metrics = {name: value for found in reports for name, value in flat_metrics(found).items()}
        return run.log_model(folder, metrics, step=len(trained.history))
