"""A recorded run trained again: the same settings, seed, data and threads, and a verdict on what came out.

Read `rerun` first. What differs before training is in `surroundings`, what came out of it in `likeness`.
"""

import dataclasses
import json
import os
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from dftrack.config import Config, Value, flatten, setting_types, vary
from dftrack.data.cache import DataSet, open_data
from dftrack.data_place import data_source_of
from dftrack.errors import DataError, DeviceError, SettingError, StoreError
from dftrack.experiment import Event, Plan, Result, Stage, run_experiment
from dftrack.likeness import Likeness, likeness
from dftrack.recording import TESTS_OPENED
from dftrack.runtime import StopRequests, pick_device, pick_precision
from dftrack.scored import EVALUATED_TAG, stored_predictions
from dftrack.surroundings import Change, Surroundings, surroundings
from dftrack.tracking import CHANGED_TAG, KEY_TAG, RunRecord, Tracker, open_tracker

KIND = "rerun"
NO_TRAINING = ("study", "evaluation")  # kinds of runs; a study's has the settings that its trials share, epochs too
OF_TAG, VERDICT_TAG = "dftrack.rerun_of", "dftrack.rerun_verdict"
FOLDER = "rerun"  # of the new run's artifacts
EXAMPLES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Which run, and what is to be otherwise on purpose."""

    run: str  # its id, or the beginning of it
    changes: Mapping[str, Value] = field(default_factory=dict)  # settings
    source: str | None = None  # where the pictures lie now
    anyway: bool = False  # train although the pictures are not the same ones


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What is about to be trained, and what of it differs from the recorded run."""

    run: RunRecord
    config: Config
    threads: int
    changes: tuple[Change, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """How the two runs compare, and what may explain it."""

    run_id: str  # the new one
    of: str  # the one that was trained again
    likeness: Likeness
    changes: tuple[Change, ...]
    notes: tuple[str, ...]
    metrics: Mapping[str, float | None] = field(default_factory=dict)

    def sentence(self) -> str:
        """The verdict for a person, with what differs if anything does."""
        found = self.likeness
        if found.word == "bit-identical":
            return f"bit-identical: {', '.join(found.equal)} are the same to the last bit"
        reasons = [str(change) for change in self.changes if change.kind in ("setting", "data")]
        reasons += [str(change) for change in self.changes if change.kind not in ("setting", "data")]
        why = "; ".join(reasons) or "nothing that was recorded explains it"
        return f"{found.word}: {'; '.join(found.unequal) or 'nothing could be compared'}. What differs: {why}"

    def plain(self) -> dict[str, object]:
        """For JSON and for the record."""
        return {
            "run_id": self.run_id,
            "of": self.of,
            "verdict": self.likeness.word,
            "sentence": self.sentence(),
            "equal": list(self.likeness.equal),
            "unequal": list(self.likeness.unequal),
            "method": self.likeness.method,
            "changes": [dataclasses.asdict(change) for change in self.changes],
            "notes": [*self.notes, *self.likeness.notes],
            "metrics": dict(self.metrics),
        }


def rerun(
    request: Request,
    store: Path,
    *,
    stop: StopRequests | None = None,
    watch: Callable[[Stage], None] = lambda stage: None,
) -> Iterator[Event | Rebuilt | Verdict]:
    """Train a recorded run again as a new run, linked to it; the last event is the Verdict.

    Interrupted, the same request goes on in the same new run. Raises StoreError if there is no such run or it is no
    training, SettingError for a change that cannot be, DataError if the pictures are not the ones it was trained on
    (unless `request.anyway`), and what run_experiment raises.
    """
    stop, store = stop or StopRequests(), store.expanduser()
    tracker = open_tracker(store)
    run = tracker.find_run(request.run)
    config, notes = rebuild(run, request)
    threads, more = _threads(run)

    def prepare(what: str, done: int, total: int) -> None:
        stop.check()
        watch(Stage(what, done, total))

    with _set_threads(threads):
        data = open_data(config.data, store, prepare)
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, image_size=data.image_size))
        altered = data_changes(tracker, run, data)
        if altered and not request.anyway:
            raise DataError(
                f"the pictures are not those of run {run.run_id[:12]}: {'; '.join(map(str, altered))}",
                "--data names where the same ones lie now; --anyway trains on these",
            )
        around = surroundings(tracker, run, config, _resolved(config))
        changes = (*altered, *around.changes)
        yield Rebuilt(run, config, threads, changes, (*notes, *more))
        for event in run_experiment(config, store, plan=_plan(tracker, run, config, store), stop=stop, watch=watch):
            yield event
    assert isinstance(event, Result), "an experiment ends with its Result"
    yield _judged(tracker, run, event, around, Verdict(event.run_id, run.run_id, _NOTHING, changes, (*notes, *more)))


_NOTHING = Likeness("not comparable", (), (), "", ())


def rebuild(run: RunRecord, request: Request) -> tuple[Config, list[str]]:
    """The settings that `run` was trained with, `request`'s on top; and what could not be taken over."""
    kind = run.tags.get("dftrack.kind", "unknown kind")
    if kind in NO_TRAINING or "train.epochs" not in run.settings:
        judged = run.tags.get(EVALUATED_TAG, "")
        raise StoreError(
            f"run {run.run_id[:12]} ({run.name}) is no training but {'an' if kind[:1] in 'aeiou' else 'a'} {kind}",
            f"it judged the model of run {judged[:12]}: dftrack rerun {judged[:12]}"
            if judged
            else f"its trainings can be run again: dftrack runs --where parent={run.run_id}",
        )
    known = setting_types()
    recorded: dict[str, Value] = {name: text for name, text in run.settings.items() if name in known}
    notes = [
        f"the setting {name}={text} of the run does not exist any more"
        for name, text in run.settings.items()
        if name not in known and name.partition(".")[0] in ("data", "model", "train")
    ]
    notes += [f"the run has no {name}: it is now {flatten(Config())[name]}" for name in known if name not in recorded]
    if CHANGED_TAG in run.tags:
        notes.append(f"the run was resumed with other settings: {run.tags[CHANGED_TAG]}")
    try:
        config = vary(Config(), recorded)
    except SettingError as error:
        raise StoreError(f"run {run.run_id[:12]} has settings that cannot be used: {error.message}") from error
    changes = {"data.source": request.source or data_source_of(run)} | dict(request.changes)
    return _as_resolved(vary(config, changes), run, changes), notes


def _as_resolved(config: Config, run: RunRecord, changes: Collection[str]) -> Config:
    """With "auto" as it came out then, where it would come out otherwise now and can be had; what is among the
    `changes` stays as it is. Raises DeviceError if the run's device is not there.
    """
    device = run.settings.get("run.device")
    precision = run.settings.get("run.precision")
    try:
        here = pick_device(config.train.device)
    except DeviceError as error:
        raise DeviceError(error.message, "--set train.device=cpu trains it on the processor") from error
    if "train.device" not in changes and config.train.device == "auto" and device == "cpu" and here != "cpu":
        config, here = vary(config, {"train.device": "cpu"}), "cpu"
    open_still = "train.precision" not in changes and config.train.precision == "auto"
    settled = open_still and precision not in (None, pick_precision("auto", here))
    if settled and not (precision == "fp16" and here == "cpu"):
        config = vary(config, {"train.precision": precision})
    return config


def _resolved(config: Config) -> dict[str, Value]:
    device = pick_device(config.train.device)
    precision = pick_precision(config.train.precision, device)
    return {"run.device": device, "run.precision": precision, "run.threads": torch.get_num_threads()}


def _threads(run: RunRecord) -> tuple[int, list[str]]:
    """The threads that the run was trained with: on a CPU, other numbers of them give other last digits."""
    text = run.settings.get("run.threads", "")
    if not text.isdigit() or int(text) < 1:
        return torch.get_num_threads(), ["the run does not say with how many threads it was trained"]
    wanted, cores = int(text), os.cpu_count() or 1
    slow = [f"the run used {wanted} threads and this machine has {cores} cores: the same numbers, only slower"]
    return wanted, slow if wanted > cores else []


@contextmanager
def _set_threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def data_changes(tracker: Tracker, run: RunRecord, data: DataSet) -> list[Change]:
    """What differs between the pictures that `run` was trained on and `data`; nothing if the digest is the same."""
    digest = run.tags.get("dftrack.data_digest", "")
    if digest == data.digest:
        return []
    found = [Change("data", "the digest", digest[:12] or "unknown", data.digest[:12])]
    counts = {f"data/{split}/{name}": n for split, of in data.counts().items() for name, n in of.items()}
    for name in sorted(
        counts.keys() | {name for name in run.metrics if name.startswith("data/") and name.count("/") == 2}
    ):
        before, after = run.metrics.get(name, 0), counts.get(name, 0)
        if before != after:
            found.append(Change("data", name.removeprefix("data/"), f"{before:.0f} pictures", f"{after:.0f}"))
    for split, then in stored_predictions(tracker, run.run_id).items():
        now = set(data.splits[split].names) if split in data.splits else set()
        for what, names in (("no more", set(then.names) - now), ("new", now - set(then.names))):
            if names:
                shown = ", ".join(sorted(names)[:EXAMPLES]) + (", ..." if len(names) > EXAMPLES else "")
                found.append(Change("data", f"{len(names)} pictures of {split} are {what} ({shown})", "", ""))
    if len(found) == 1:
        found[0] = dataclasses.replace(
            found[0], meaning="the same number of pictures, of other content or in other groups"
        )
    return found


def _plan(tracker: Tracker, run: RunRecord, config: Config, store: Path) -> Plan:
    """A run of its own; one that was begun with this very request and interrupted goes on."""
    wanted = {name: str(value) for name, value in flatten(config).items()}
    key = f"rerun-{run.run_id[:12]}-{uuid.uuid4().hex[:12]}"
    for begun in tracker.runs(tags={OF_TAG: run.run_id, "dftrack.kind": KIND}):
        known = begun.tags.get(KEY_TAG, "")
        unfinished = begun.status == "RUNNING" or begun.end == "interrupted"
        same = all(begun.settings.get(name) == text for name, text in wanted.items())
        if unfinished and same and known and (store / "checkpoints" / known / "run.json").exists():
            key = known
            break
    return Plan(
        name=f"rerun of {run.name}"[:200],
        kind=KIND,
        key=key,
        tags={OF_TAG: run.run_id},
        open_tests=TESTS_OPENED in run.tags or any(name.startswith("test") for name in run.metrics),
        pictures=bool(tracker.artifacts(run.run_id, "curves")),
    )


def _judged(tracker: Tracker, run: RunRecord, result: Result, around: Surroundings, verdict: Verdict) -> Verdict:
    """The verdict on a training that has ended, recorded with the new run."""
    new = tracker.find_run(result.run_id)
    verdict = dataclasses.replace(
        verdict,
        likeness=likeness(tracker, run, new),
        metrics=result.final.flat() if result.final else {},
    )
    opened = tracker.open_run(new.run_id)
    opened.log_json(json.loads(json.dumps(verdict.plain(), default=str)), f"{FOLDER}/verdict.json")
    if around.diff:
        opened.log_text(around.diff, f"{FOLDER}/code.diff.txt")
    opened.set_tags({VERDICT_TAG: verdict.likeness.word, "note": verdict.sentence()})
    return verdict
