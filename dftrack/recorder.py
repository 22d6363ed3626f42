"""A Run records one experiment in MLflow: settings, curves, texts, pictures, tables, the model, and how it ended.

A part of the door to MLflow: a Tracker hands runs out.
"""

import contextlib
import csv
import io
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from dftrack.speaking import speaking
from dftrack.store import Connection, local_path

# speaking is imported first: it sets the switches that MLflow reads while it is imported itself
# isort: split
from mlflow.entities import Metric, Param, RunTag

from dftrack import logged_model
from dftrack.config import Value
from dftrack.dataset_input import describe
from dftrack.errors import StoreError
from dftrack.files import temporary_folder, write_bytes
from dftrack.redaction import scrub

KEY_TAG = "dftrack.key"  # our own name of a run: a second attempt to start it finds the first
END_TAG = "dftrack.end"  # how it ended, finer than MLflow's status: see ENDS
REASON_TAG = "dftrack.reason"
UNDEFINED_TAG = "dftrack.undefined"  # metrics that have no value, like the AUC of a split with one class
CHANGED_TAG = "dftrack.resumed_with"  # settings that a resumed run was given anew; its parameters keep the first
PARENT_TAG = "mlflow.parentRunId"
ENDS = {"FINISHED": ("complete",), "KILLED": ("interrupted", "pruned", "paused"), "FAILED": ("failed",)}
EPOCH_METRIC = "epoch"  # recorded with each epoch's metrics: its history says which epochs are in
LONGEST_TAG = 5000  # characters; MLflow's own limit is 8000
LONGEST_PARAM = 6000  # characters; MLflow cuts a longer one silently
BATCH = 100  # parameters or tags in one call: the REST limit
TEXT_SUFFIXES = frozenset({
    ".cfg", ".csv", ".diff", ".html", ".ini", ".json", ".jsonl", ".log", ".md", ".patch", ".py", ".toml", ".tsv",
    ".txt", ".xml", ".yaml", ".yml",
})  # fmt: skip

# Our names of tags that the MLflow page knows under names of its own.
PAGE_TAGS = {
    "user": "mlflow.user",
    "source": "mlflow.source.name",
    "commit": "mlflow.source.git.commit",
    "branch": "mlflow.source.git.branch",
    "note": "mlflow.note.content",
}


@dataclass(frozen=True, slots=True)
class RunRecord:
    """What the store knows of one run."""

    run_id: str
    name: str
    status: str  # RUNNING, FINISHED, KILLED or FAILED
    tags: Mapping[str, str]
    settings: Mapping[str, str]  # dotted name -> value as text
    metrics: Mapping[str, float]  # last values
    start_time: float  # seconds since 1970
    end_time: float | None  # seconds since 1970; None while it runs
    parent: str | None
    artifact_uri: str
    experiment_id: str

    @property
    def end(self) -> str:
        """How it ended: complete, interrupted, pruned, paused or failed; "" while it runs."""
        return self.tags.get(END_TAG, "")


class Run:
    """Records one experiment. Every text is scrubbed of secrets before it is stored."""

    def __init__(self, connection: Connection, record: RunRecord, steps: set[int] | None = None) -> None:
        self.record = record  # as it was when started or resumed
        self._connection, self._client = connection, connection.client
        self._steps = set(steps or ())  # epochs that are recorded
        self._undefined = set(filter(None, record.tags.get(UNDEFINED_TAG, "").split(", ")))
        self._stamped: dict[str, tuple[float, int, int]] = {}  # metric -> (value, time in ms, step)

    @property
    def run_id(self) -> str:
        """32 hexadecimal digits."""
        return self.record.run_id

    def log_epoch(self, step: int, metrics: Mapping[str, float | None]) -> bool:
        """Record one epoch in one call. Does nothing and returns False if this epoch is in already.

        None and what is not finite is undefined: left out of the metrics and named in a tag (MLflow stores an infinity
        as 1.8e308, which would sort first).
        """
        assert EPOCH_METRIC not in metrics, f"{EPOCH_METRIC!r} is recorded by log_epoch itself"
        if step in self._steps:
            return False
        self._log({**metrics, EPOCH_METRIC: float(step)}, step, mark=f"@{step}")
        self._steps.add(step)
        return True

    def correct_epoch(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Record one epoch over what is there, so that `metric_history` tells these values.

        The last value counts by its time: these are later than all others, even than those of a clock that was ahead.
        """
        with self._speaking():
            points = [point for name in metrics for point in self._client.get_metric_history(self.run_id, name)]
        newest = max((point.timestamp for point in points if point.step == step), default=0)  # ms since 1970
        self._log({**metrics, EPOCH_METRIC: float(step)}, step, mark=f"@{step}", after=newest)
        self._steps.add(step)

    def log_metrics(self, metrics: Mapping[str, float | None]) -> None:
        """Record values that belong to the run as a whole, undefined ones by name as in `log_epoch`.

        A value that the run had already when it was started or resumed is not recorded again.
        """
        had = self.record.metrics
        self._log({name: value for name, value in metrics.items() if value is None or had.get(name) != value}, 0, "")

    def forget_epochs(self, first: int) -> None:
        """Let the epochs from `first` on be recorded again: what is in of them was overtaken (see `metric_history`)."""
        self._steps = {step for step in self._steps if step < first}

    def _log(self, metrics: Mapping[str, float | None], step: int, mark: str, after: int = 0) -> None:
        """Record values. mark: stands behind the names of undefined ones; after: ms since 1970, an earlier time."""
        defined = {name: float(value) for name, value in metrics.items() if value is not None and math.isfinite(value)}
        undefined = {name + mark for name in metrics if name not in defined}
        now = max(int(time.time() * 1000), after + 1)
        tags = []
        before = set(self._undefined)
        self._undefined = (before - {name + mark for name in defined}) | undefined  # a value may come later
        if self._undefined != before:
            tags = [RunTag(UNDEFINED_TAG, _cut(", ".join(sorted(self._undefined)), LONGEST_TAG))]
        self._stamped |= {name: (value, now, step) for name, value in defined.items()}
        with self._speaking():
            self._client.log_batch(
                self.run_id, [Metric(name, value, now, step) for name, value in defined.items()], (), tags
            )

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set or replace tags; "user", "source", "commit", "branch" and "note" show in the page's own places."""
        items = [RunTag(name, value) for name, value in page_tags(tags).items()]
        with self._speaking():
            for start in range(0, len(items), BATCH):
                self._client.log_batch(self.run_id, tags=items[start : start + BATCH])

    def set_settings(self, settings: Mapping[str, Value]) -> None:
        """Record settings as parameters; one that is recorded keeps its value, and a tag tells of the change."""
        texts = {name: scrub(str(value)) for name, value in settings.items()}
        for name, text in texts.items():
            assert len(text) <= LONGEST_PARAM, (
                f"setting {name} has {len(text)} characters: MLflow would cut it silently"
            )
        known = self.record.settings
        new = [Param(name, text) for name, text in texts.items() if name not in known]
        with self._speaking():
            for start in range(0, len(new), BATCH):
                self._client.log_batch(self.run_id, params=new[start : start + BATCH])
        if changed := [f"{name}={text}" for name, text in texts.items() if known.get(name, text) != text]:
            self.set_tags({CHANGED_TAG: ", ".join(changed)})

    def log_text(self, text: str, path: str) -> None:
        """Store `text` as the artifact `path`, like "report/summary.md"; replaces an older one."""
        self._put(scrub(text).encode(errors="backslashreplace"), path)

    def log_json(self, value: Any, path: str) -> None:
        """Store plain data (dicts, lists, numbers, texts) as a JSON artifact; NaN and infinity are refused."""
        self.log_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", path)

    def log_bytes(self, content: bytes, path: str) -> None:
        """Store bytes as they are: a PNG shows in the page. Nothing is scrubbed; texts go through `log_text`."""
        self._put(content, path)

    def log_file(self, source: Path, folder: str = "") -> None:
        """Store a file under its own name in the artifact folder `folder`; texts are scrubbed, other files are not."""
        content = source.read_bytes()
        if source.suffix.lower() in TEXT_SUFFIXES:
            content = scrub(content.decode(errors="replace")).encode()
        self._put(content, str(PurePosixPath(folder) / source.name))

    def log_table(self, columns: Mapping[str, Sequence[object]], path: str) -> None:
        """Store a table as CSV (".csv" is added if missing): the page shows it, and any program reads it.

        columns: name -> values, all of the same length; None and NaN become an empty cell.
        """
        lengths = {name: len(values) for name, values in columns.items()}
        assert len(set(lengths.values())) == 1, f"columns differ in length: {lengths}"
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*([_cell(value) for value in values] for values in columns.values()), strict=True))
        self.log_text(text.getvalue(), path if path.endswith(".csv") else f"{path}.csv")

    def log_dataset(
        self, source: str, digest: str, counts: Mapping[str, Mapping[str, int]], splits: Sequence[str] = ()
    ) -> None:
        """Record which pictures were used as the run's dataset input; recording it again adds nothing.

        digest: at most 36 characters. counts: split -> class -> pictures. splits: those that were opened, all if empty.
        """
        assert len(digest) <= 36, f"MLflow keeps 36 characters of a digest, got {len(digest)}"
        source = scrub(source)
        described = describe(source, digest, counts, splits)
        with self._speaking():
            inputs = self._client.get_run(self.run_id).inputs
            if all(known.dataset.digest != digest for known in (inputs.dataset_inputs if inputs else ())):
                self._client.log_inputs(self.run_id, [described])

    def log_model(self, folder: Path, metrics: Mapping[str, float | None], step: int = 0) -> str:
        """Log the detector saved in `folder` as an MLflow model without pickle; returns its URI (models:/m-...).

        metrics: what this model reaches, shown beside it, after `step` epochs. One that the run has recorded with this
        value is that very point, not another. The same weights logged twice make one model.
        """
        now = int(time.time() * 1000)
        points = {}
        for name, value in metrics.items():
            if value is not None and math.isfinite(value):
                known = self._stamped.get(name)
                points[name] = known if known and known[0] == value else (value, now, step)
        with self._speaking():
            return logged_model.log(self._client, self.run_id, folder, points)

    def finish(self, status: str, *, end: str = "", reason: str = "", trace: str = "") -> None:
        """Close the run as FINISHED, KILLED or FAILED.

        end: complete, interrupted, pruned, paused or failed (from `status` if empty); reason: one line for a person;
        trace: a traceback, kept as an artifact.
        """
        end = end or ENDS[status][0]
        assert end in ENDS[status], f"a run that is {status} ends {' or '.join(ENDS[status])}, not {end}"
        if trace:
            with contextlib.suppress(StoreError):  # the reason matters more than its details
                self.log_text(trace, "failure/traceback.txt")
        self.set_tags({END_TAG: end} | ({REASON_TAG: reason} if reason else {}))
        with self._speaking():
            self._client.set_terminated(self.run_id, status)

    def _put(self, content: bytes, path: str) -> None:
        """Store an artifact, all or nothing where it is a local file."""
        place = inside(path)
        if folder := local_path(self.record.artifact_uri):
            write_bytes(folder / place, content)
            return
        with temporary_folder() as aside, self._speaking():
            file = aside / place.name
            file.write_bytes(content)
            parent = str(place.parent)
            self._client.log_artifact(self.run_id, str(file), None if parent == "." else parent)

    def _speaking(self) -> contextlib.AbstractContextManager[None]:
        return speaking(self._connection.uri)


def page_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Scrubbed, cut to what MLflow keeps, under the names the page knows."""
    named = {PAGE_TAGS.get(name, name): _cut(scrub(str(value)), LONGEST_TAG) for name, value in tags.items()}
    if "mlflow.source.name" in named:
        named["mlflow.source.type"] = "LOCAL"
    return named


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 40]}... [cut: {len(text)} characters]"


def _cell(value: object) -> object:
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else value


def inside(path: str) -> PurePosixPath:
    """`path` as an artifact path: relative, and never out of the run's folder."""
    pure = PurePosixPath(path)
    assert pure.parts and not pure.is_absolute() and ".." not in pure.parts, f"not an artifact path: {path!r}"
    return pure
