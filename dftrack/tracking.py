"""The one door to MLflow: a Tracker finds and starts runs, a Run records one experiment. Nothing else knows MLflow.

`store` (where it all lies), `recorder` (a run), `page` (the MLflow page) and `logged_model` (a model's files) stand
behind the same door.
"""

import time
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from dftrack.speaking import speaking
from dftrack.store import Connection, Store, connect, experiment_id, local_path, prepare_store

# speaking is imported first: it sets the switches that MLflow reads while it is imported itself
# isort: split
from mlflow.entities import Run as MlflowRun
from mlflow.entities import ViewType

from dftrack import logged_model
from dftrack.config import Value
from dftrack.errors import StoreError
from dftrack.page import Page, serve_ui
from dftrack.page_view import View, offer
from dftrack.recorder import (
    CHANGED_TAG,
    END_TAG,
    EPOCH_METRIC,
    KEY_TAG,
    PAGE_TAGS,
    PARENT_TAG,
    REASON_TAG,
    UNDEFINED_TAG,
    Run,
    RunRecord,
    inside,
    page_tags,
)
from dftrack.redaction import scrub
from dftrack.registered import Registered, content_tag, model_folder

__all__ = [
    "CHANGED_TAG", "KEY_TAG", "PARENT_TAG", "REASON_TAG", "UNDEFINED_TAG",
    "Page", "Run", "RunRecord", "Store", "Tracker", "open_tracker", "prepare_store", "scrub", "serve_ui",
]  # fmt: skip


def open_tracker(store: Path, experiment: str = "dftrack", *, known: bool = False) -> "Tracker":
    """Open the store (made if missing, safely when many processes do so at once) or what MLFLOW_TRACKING_URI names.

    known: it has answered before: a database that is being started again is waited for.
    Raises StoreError if it cannot be reached, written or understood.
    """
    connection = connect(store, known=known)
    return Tracker(connection, experiment_id(connection, experiment))


class _Place(NamedTuple):
    """Where a run's artifacts lie."""

    run_id: str  # all 32 digits
    artifact_uri: str


class Tracker:
    """Starts, resumes and finds the runs of one experiment."""

    def __init__(self, connection: Connection, experiment: str) -> None:
        self._connection, self.experiment_id = connection, experiment
        self._client = connection.client
        self._places: dict[str, _Place] = {}  # by whole run id

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

        A run that goes on bears the name, the tags and the parent given now: what they say of it holds now.
        Raises StoreError if the store fails; calling again with the same key is then safe.
        """
        assert key and "'" not in key, f"a run needs a key without quotes, got {key!r}"
        own = page_tags(tags) | {KEY_TAG: key} | ({PARENT_TAG: parent} if parent else {})
        found = self._by_key(key)
        if found:
            self._describe(found[0], name, own)
            run = self.resume_run(found[0].run_id)
        else:
            run = Run(self._connection, self._create(name, key, own))
        run.set_settings(settings)
        return run

    def _describe(self, record: RunRecord, name: str, tags: Mapping[str, str]) -> None:
        """Bring a run's name and these of its tags up to date, if they are not."""
        if record.name != scrub(name):
            with speaking(self._connection.uri):
                self._client.update_run(record.run_id, name=scrub(name))
        changed = {tag: text for tag, text in tags.items() if record.tags.get(tag) != text}
        if changed:
            Run(self._connection, record).set_tags(changed)

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

    def _place(self, run_id: str) -> "_Place":
        """Where a run's artifacts lie. Asked once per run: neither its id nor its place ever changes."""
        if run_id not in self._places:
            record = self.find_run(run_id)
            run_id = record.run_id
            self._places[run_id] = _Place(run_id, record.artifact_uri)
        return self._places[run_id]

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
        conditions = [f"tags.`{PAGE_TAGS.get(name, name)}` = {_quoted(value)}" for name, value in wanted.items()]
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
        place = self._place(run_id)
        if folder := local_path(place.artifact_uri):
            if (folder / inside(path)).exists():
                return folder / path
            raise StoreError(f"run {place.run_id[:12]} has no artifact {path}")
        with speaking(self._connection.uri):
            return Path(self._client.download_artifacts(place.run_id, str(inside(path))))

    def drop_model(self, run_id: str) -> bool:
        """Delete the model that a run logged, weights and all. Returns whether there was one."""
        with speaking(self._connection.uri):
            return logged_model.drop(self._client, run_id)

    def is_registered(self, run_id: str) -> bool:
        """Whether a version of any registered model is the model of this run."""
        with speaking(self._connection.uri):
            return bool(self._client.search_model_versions(f"run_id = '{run_id}'", max_results=1))

    def offer_view(self, view: View) -> str:
        """Keep a view of the list of runs for the MLflow page; returns what follows the page's address to see it."""
        return offer(self._connection, self.experiment_id, view)

    def registered(self, name: str) -> Registered:
        """The versions and aliases of the registered model `name`, which need not exist."""
        return Registered(self._connection, name)

    def model_folder(self, run_id: str) -> Path:
        """The whole folder of the model that a run logged, with MLflow's own files. StoreError if it logged none."""
        return model_folder(self._connection, self._place(run_id).run_id)

    def model_digest(self, run_id: str) -> str | None:
        """The sha256 of all files of the model that a run logged, as they were then; None if that was not kept."""
        return content_tag(self._connection, self._place(run_id).run_id)

    def artifacts(self, run_id: str, folder: str = "") -> list[str]:
        """The names of what lies in the artifact folder `folder` of a run, sorted; none if there is no such folder."""
        place = self._place(run_id)
        if root := local_path(place.artifact_uri):
            shown = root / inside(folder) if folder else root
            return sorted(file.name for file in shown.iterdir()) if shown.is_dir() else []
        with speaking(self._connection.uri):
            found = self._client.list_artifacts(place.run_id, folder or None)
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


def _quoted(text: str) -> str:
    mark = '"' if "'" in text else "'"
    if mark in text:
        raise StoreError(f"MLflow cannot search for a text with both kinds of quotes: {text!r}")
    return f"{mark}{text}{mark}"
