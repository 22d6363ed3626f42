"""The one door to MLflow: a Tracker finds and starts runs, a Run records one experiment. Nothing else knows MLflow.

`store` (where it all lies), `page` (the MLflow page) and `logged_model` (a model's files) stand behind the same door.
"""

import contextlib
import csv
import io
import json
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from dftrack.store import Connection, Store, connect, experiment_id, local_path, prepare_store, speaking

# store is imported first: it sets the switches that MLflow reads while it is imported itself
# isort: split
from mlflow.data.dataset_source import DatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import DatasetInput, InputTag, Metric, Param, RunTag, ViewType
from mlflow.entities import Run as MlflowRun

from dftrack import logged_model
from dftrack.config import Value
from dftrack.errors import StoreError
from dftrack.files import write_bytes
from dftrack.page import Page, serve_ui
from dftrack.page_view import View, offer
from dftrack.redaction import scrub
from dftrack.registered import Registered, content_tag, model_folder

__all__ = ["Page", "Run", "RunRecord", "Store", "Tracker", "open_tracker", "prepare_store", "scrub", "serve_ui"]

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
_PAGE_TAGS = {
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


def open_tracker(store: Path, experiment: str = "dftrack") -> "Tracker":
    """Open the store (made if missing, safely when many processes do so at once) or what MLFLOW_TRACKING_URI names.

    Raises StoreError if it cannot be reached, written or understood.
    """
    connection = connect(store)
    return Tracker(connection, experiment_id(connection, experiment))


class Tracker:
    """Starts, resumes and finds the runs of one experiment."""

    def __init__(self, connection: Connection, experiment: str) -> None:
        self._connection, self.experiment_id = connection, experiment
        self._client = connection.client

    @property
    def store(self) -> Store:
        """The local folder; with a server or PostgreSQL it still holds data, caches and checkpoints."""
        return self._connection.store

    def start_run(
        self,
        name: str,
        *,
        key: str,
        settings: Mapping[str, Value],
        tags: Mapping[str, str],
        parent: str | None = None,
    ) -> "Run":
        """Start the run `key`, or go on with it if it has been started: two attempts never make two runs.

        Raises StoreError if the store fails; calling again with the same key is then safe.
        """
        assert key and "'" not in key, f"a run needs a key without quotes, got {key!r}"
        found = self._by_key(key)
        if found:
            run = self.resume_run(found[0].run_id)
        else:
            own = _tags(tags) | {KEY_TAG: key} | ({PARENT_TAG: parent} if parent else {})
            run = Run(self._connection, self._create(name, key, own))
        run._set_settings(settings)
        return run

    def _create(self, name: str, key: str, tags: Mapping[str, str]) -> RunRecord:
        """Create the run; whatever the network does to the answer, one run bears the key in the end."""
        started = int(time.time() * 1000)
        failure: StoreError | None = None
        try:
            with speaking(self._connection.uri):
                self._client.create_run(self.experiment_id, start_time=started, tags=dict(tags), run_name=scrub(name))
        except StoreError as error:
            failure = error  # perhaps only the answer was lost
        found = self._by_key(key)
        if not found:
            raise failure or StoreError(f"the run {name!r} was created and is not to be found")
        for double in found[1:]:  # MLflow resends a request whose answer was lost
            with speaking(self._connection.uri):
                self._client.delete_run(double.run_id)
        return found[0]

    def _by_key(self, key: str) -> list[RunRecord]:
        """Runs that bear `key`, in an order every process agrees on."""
        return sorted(self.runs(tags={KEY_TAG: key}), key=lambda run: (run.start_time, run.run_id))

    def resume_run(self, run_id: str) -> "Run":
        """Go on with a run: it is RUNNING again, keeps its settings, and epochs that are in are not recorded twice."""
        with speaking(self._connection.uri):
            if self._client.get_run(run_id).info.status != "RUNNING":
                self._client.update_run(run_id, status="RUNNING")
            for tag in (END_TAG, REASON_TAG):
                if tag in self._client.get_run(run_id).data.tags:
                    self._client.delete_tag(run_id, tag)
            history = self._client.get_metric_history(run_id, EPOCH_METRIC)
        return Run(self._connection, self.find_run(run_id), {metric.step for metric in history})

    def open_run(self, run_id: str) -> "Run":
        """The run as it is, to mend its record: it is not RUNNING again, and epochs are recorded over what is there."""
        return Run(self._connection, self.find_run(run_id))

    def close_run(self, run_id: str, status: str, *, end: str = "", reason: str = "", trace: str = "") -> None:
        """Bring a run, in whatever state it is, to the end `Run.finish` would give it; an older reason goes."""
        run = self.open_run(run_id)
        if REASON_TAG in run.record.tags and not reason:
            with speaking(self._connection.uri):
                self._client.delete_tag(run_id, REASON_TAG)
        run.finish(status, end=end, reason=reason, trace=trace)

    def delete_run(self, run_id: str) -> None:
        """Mark a run as deleted: nothing finds it any more, nothing of it is lost, `restore_run` brings it back."""
        with speaking(self._connection.uri):
            self._client.delete_run(run_id)

    def restore_run(self, run_id: str) -> None:
        """Bring back a run that was marked as deleted, here or in the MLflow page."""
        with speaking(self._connection.uri):
            self._client.restore_run(run_id)

    def find_run(self, run_id: str) -> RunRecord:
        """The run with this id, or the one whose id begins so. Raises StoreError if there is none, or more than one."""
        wanted = run_id.strip().lower()
        if not wanted or not set(wanted) <= set("0123456789abcdef"):
            raise StoreError(f"{run_id!r} is not a run id", "a run id has 32 hexadecimal digits; its beginning will do")
        found = self._search(f"attributes.run_id LIKE '{wanted}%'", limit=3)
        if len(found) == 1:
            return found[0]
        if not found:
            raise StoreError(f"there is no run {run_id}", "the MLflow page lists all of them: dftrack ui")
        names = ", ".join(f"{run.run_id[:12]} ({run.name})" for run in found)
        raise StoreError(f"several runs begin with {run_id}: {names}", "give more of its digits")

    def latest_run(self, status: str | None = "FINISHED", tags: Mapping[str, str] | None = None) -> RunRecord:
        """The run started last, of this status and with these tags. Raises StoreError if there is none."""
        if found := self.runs(status=status, tags=tags, limit=1):
            return found[0]
        raise StoreError(
            f"there is no {status or ''} run in {scrub(self._connection.uri)}".replace("  ", " "),
            "train one first: dftrack baseline",
        )

    def runs(
        self,
        *,
        tags: Mapping[str, str] | None = None,
        status: str | None = None,
        parent: str | None = None,
        limit: int | None = None,
        deleted: bool = False,
    ) -> list[RunRecord]:
        """Runs that have all of these tags, this status, this parent; the latest first.

        deleted: those marked as deleted, instead of the others.
        """
        wanted = dict(tags or {}) | ({PARENT_TAG: parent} if parent else {})
        conditions = [f"tags.`{_PAGE_TAGS.get(name, name)}` = {_quoted(value)}" for name, value in wanted.items()]
        if status:
            conditions.append(f"attributes.status = {_quoted(status)}")
        return self._search(" and ".join(conditions), limit, deleted=deleted)

    def _search(self, conditions: str, limit: int | None, *, deleted: bool = False) -> list[RunRecord]:
        view = ViewType.DELETED_ONLY if deleted else ViewType.ACTIVE_ONLY
        found: list[RunRecord] = []
        token = None
        while True:
            size = min(1000, limit - len(found)) if limit else 1000
            with speaking(self._connection.uri):
                page = self._client.search_runs(
                    [self.experiment_id], conditions, run_view_type=view, max_results=size, page_token=token,
                    order_by=["attributes.start_time DESC"],
                )  # fmt: skip
            found += [_record(run) for run in page]
            token = page.token
            if not token or (limit and len(found) >= limit):
                return found

    def metric_history(self, run_id: str, name: str) -> list[tuple[int, float]]:
        """(step, value) of one metric, by step; a step resent counts once, with its last value."""
        with speaking(self._connection.uri):
            history = self._client.get_metric_history(run_id, name)
        return sorted({metric.step: metric.value for metric in sorted(history, key=lambda m: m.timestamp)}.items())

    def download(self, run_id: str, path: str) -> Path:
        """A local path of an artifact (file or folder): the file itself where the store is local, else a copy.

        Raises StoreError if there is none.
        """
        record = self.find_run(run_id)
        if folder := local_path(record.artifact_uri):
            if (folder / _inside(path)).exists():
                return folder / path
            raise StoreError(f"run {record.run_id[:12]} has no artifact {path}")
        with speaking(self._connection.uri):
            return Path(self._client.download_artifacts(record.run_id, str(_inside(path))))

    def drop_model(self, run_id: str) -> bool:
        """Delete the model that a run logged, weights and all. Returns whether there was one."""
        with speaking(self._connection.uri):
            return logged_model.drop(self._client, run_id)

    def offer_view(self, view: View) -> str:
        """Keep a view of the list of runs for the MLflow page; returns what follows the page's address to see it."""
        return offer(self._connection, self.experiment_id, view)

    def registered(self, name: str) -> Registered:
        """The versions and aliases of the registered model `name`, which need not exist."""
        return Registered(self._connection, name)

    def model_folder(self, run_id: str) -> Path:
        """The whole folder of the model that a run logged, with MLflow's own files. StoreError if it logged none."""
        return model_folder(self._connection, self.find_run(run_id).run_id)

    def model_digest(self, run_id: str) -> str | None:
        """The sha256 of all files of the model that a run logged, as they were then; None if that was not kept."""
        return content_tag(self._connection, self.find_run(run_id).run_id)

    def artifacts(self, run_id: str, folder: str = "") -> list[str]:
        """The names of what lies in the artifact folder `folder` of a run, sorted; none if there is no such folder."""
        record = self.find_run(run_id)
        if place := local_path(record.artifact_uri):
            inside = place / _inside(folder) if folder else place
            return sorted(file.name for file in inside.iterdir()) if inside.is_dir() else []
        with speaking(self._connection.uri):
            found = self._client.list_artifacts(record.run_id, folder or None)
        return sorted(PurePosixPath(file.path).name for file in found)

    def detector_folder(self, run_id: str) -> Path:
        """The folder with a run's weights and settings, for Detector.load. Raises StoreError if it logged no model."""
        record = self.find_run(run_id)
        with speaking(self._connection.uri):
            folder = logged_model.fetch(self._client, record.run_id)
        if folder is None:
            raise StoreError(
                f"run {record.run_id[:12]} ({record.name}, {record.end or record.status}) has no model",
                "only a completed run has one",
            )
        return folder


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

    def log_metrics(self, metrics: Mapping[str, float | None]) -> None:
        """Record values that belong to the run as a whole, undefined ones by name as in `log_epoch`.

        A value that the run had already when it was started or resumed is not recorded again.
        """
        had = self.record.metrics
        self._log({name: value for name, value in metrics.items() if value is None or had.get(name) != value}, 0, "")

    def forget_epochs(self, first: int) -> None:
        """Let the epochs from `first` on be recorded again: what is in of them was overtaken (see `metric_history`)."""
        self._steps = {step for step in self._steps if step < first}

    def _log(self, metrics: Mapping[str, float | None], step: int, mark: str) -> None:
        defined = {name: float(value) for name, value in metrics.items() if value is not None and math.isfinite(value)}
        undefined = {name + mark for name in metrics if name not in defined}
        now = int(time.time() * 1000)
        tags = []
        if undefined - self._undefined:
            self._undefined |= undefined
            tags = [RunTag(UNDEFINED_TAG, _cut(", ".join(sorted(self._undefined)), LONGEST_TAG))]
        self._stamped |= {name: (value, now, step) for name, value in defined.items()}
        with self._speaking():
            self._client.log_batch(
                self.run_id, [Metric(name, value, now, step) for name, value in defined.items()], (), tags
            )

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set or replace tags; "user", "source", "commit", "branch" and "note" show in the page's own places."""
        items = [RunTag(name, value) for name, value in _tags(tags).items()]
        with self._speaking():
            for start in range(0, len(items), BATCH):
                self._client.log_batch(self.run_id, tags=items[start : start + BATCH])

    def _set_settings(self, settings: Mapping[str, Value]) -> None:
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
        described = _Pictures(_Source(source), Path(source).name or source, digest, counts)
        tags = [InputTag("mlflow.data.context", ", ".join(splits or counts))]
        with self._speaking():
            inputs = self._client.get_run(self.run_id).inputs
            if all(known.dataset.digest != digest for known in (inputs.dataset_inputs if inputs else ())):
                self._client.log_inputs(self.run_id, [DatasetInput(described._to_mlflow_entity(), tags)])

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
        inside = _inside(path)
        if folder := local_path(self.record.artifact_uri):
            write_bytes(folder / inside, content)
            return
        with tempfile.TemporaryDirectory() as aside, self._speaking():
            file = Path(aside) / inside.name
            file.write_bytes(content)
            parent = str(inside.parent)
            self._client.log_artifact(self.run_id, str(file), None if parent == "." else parent)

    def _speaking(self) -> contextlib.AbstractContextManager[None]:
        return speaking(self._connection.uri)


class _Source(DatasetSource):
    """Where the pictures come from: "sample", or a folder's path. Nothing can be loaded through MLflow."""

    def __init__(self, name: str) -> None:
        self._name = name

    @staticmethod
    def _get_source_type() -> str:
        return "dftrack"

    def load(self) -> Any:
        raise NotImplementedError("dftrack reads its own pictures")

    @staticmethod
    def _can_resolve(raw_source: Any) -> bool:
        return False

    @classmethod
    def _resolve(cls, raw_source: Any) -> "_Source":
        raise NotImplementedError("dftrack reads its own pictures")

    def to_dict(self) -> dict[str, Any]:
        return {"uri": self._name}

    @classmethod
    def from_dict(cls, source_dict: dict[Any, Any]) -> "_Source":
        return cls(source_dict["uri"])


class _Pictures(MetaDataset):
    """A data set of pictures, described by its digest and by how many of each class every split holds."""

    def __init__(self, source: _Source, name: str, digest: str, counts: Mapping[str, Mapping[str, int]]) -> None:
        self._counts = counts
        super().__init__(source, name=name, digest=digest)

    @property
    def profile(self) -> dict[str, Any]:
        """What the page shows of it: the number of pictures, in all and by split and class."""
        return {"pictures": sum(sum(classes.values()) for classes in self._counts.values())} | {
            split: dict(classes) for split, classes in self._counts.items()
        }

    def to_dict(self) -> dict[str, str]:
        """Every field as text, as MLflow stores it."""
        return {**super().to_dict(), "profile": json.dumps(self.profile)}


def _record(run: MlflowRun) -> RunRecord:
    info, data = run.info, run.data
    return RunRecord(
        run_id=info.run_id,
        name=info.run_name or "",
        status=info.status,
        tags=dict(data.tags),
        settings=dict(data.params),
        metrics=dict(data.metrics),
        start_time=info.start_time / 1000,
        end_time=info.end_time / 1000 if info.end_time and info.status != "RUNNING" else None,
        parent=data.tags.get(PARENT_TAG),
        artifact_uri=info.artifact_uri,
        experiment_id=info.experiment_id,
    )


def _tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Scrubbed, cut to what MLflow keeps, under the names the page knows."""
    named = {_PAGE_TAGS.get(name, name): _cut(scrub(str(value)), LONGEST_TAG) for name, value in tags.items()}
    if "mlflow.source.name" in named:
        named["mlflow.source.type"] = "LOCAL"
    return named


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 40]}... [cut: {len(text)} characters]"


def _cell(value: object) -> object:
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else value


def _quoted(text: str) -> str:
    mark = '"' if "'" in text else "'"
    assert mark not in text, f"MLflow cannot search for a text with both kinds of quotes: {text!r}"
    return f"{mark}{text}{mark}"


def _inside(path: str) -> PurePosixPath:
    """`path` as an artifact path: relative, and never out of the run's folder."""
    pure = PurePosixPath(path)
    assert pure.parts and not pure.is_absolute() and ".." not in pure.parts, f"not an artifact path: {path!r}"
    return pure
