"""`dftrack doctor`: compares MLflow with Optuna, run by run, and mends MLflow. Read `examine` first, then `fix`.

Optuna owns the state of a trial. A trial that a living worker trains is left alone, and so is one whose worker may be
alive: a worker of another machine is known to be dead only to a `Watch` that has seen it silent for a minute.
"""

import platform
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from filelock import FileLock, Timeout

from dftrack.study.case import NOBODY, Ailment, Case, Finding, Folder, Runs
from dftrack.study.checkups import look_at_parent, look_at_trial
from dftrack.study.liveness import Watch
from dftrack.study.naming import trial_key
from dftrack.study.opening import OpenStudy, reopen
from dftrack.study.storage import Storage
from dftrack.tracking import KEY_TAG, RunRecord, Tracker

__all__ = ["Finding", "examine", "fix", "studies_in"]

BEGUN_ANEW = "its process is gone; an evaluation does not go on: dftrack evaluate begins it anew"
ROUNDS = 4  # a run that was restored may need further mending, and so on: no chain is longer


def studies_in(storage: Storage) -> tuple[OpenStudy, ...]:
    """Every study of the storage, by name."""
    studies = storage.patiently(storage.backend.get_all_studies)
    return tuple(reopen(storage, name) for name in sorted(one.study_name for one in studies))


def examine(tracker: Tracker, studies: Iterable[OpenStudy], *, watch: Watch | None = None) -> tuple[Finding, ...]:
    """What is not as it should be, in the order of studies and trials; changes nothing.

    watch: of an observer that has looked before: it can tell that a worker on another machine has fallen silent.
    What looks wrong is looked at a second time, since others may write meanwhile.
    """
    runs = _by_key(tracker.runs())  # before the storage is read: a trial begun in between is then no orphan
    cases = _cases(tracker, studies, watch)
    found: list[Finding] = []
    for case in cases:
        records = case.patiently(case.records)
        if look_at_parent(case, records, runs):
            found += [ailment.finding for ailment in case.patiently(partial(_parent_anew, case))]
        parent = _parent(case, runs)
        for record in records:
            if look_at_trial(case, record, runs, parent):
                found += [ailment.finding for ailment in case.patiently(partial(_trial_anew, case, record.number))]
        found += _unknown_trials(case, runs)
    found += [ailment.finding for ailment in _outside(tracker, cases, runs)]
    return tuple(found + _unknown_studies(cases, runs))


def fix(
    findings: Iterable[Finding], tracker: Tracker, studies: Iterable[OpenStudy], *, watch: Watch | None = None
) -> tuple[Finding, ...]:
    """Mend what was found, and return what was mended; what has mended itself meanwhile is left as it is.

    All that ails a trial that is named in `findings` is mended, while no worker can take it up. Only what can be made
    again is removed: checkpoints of ended trials. A second run of a trial is marked as deleted and can be restored.
    Mending again changes nothing.
    """
    wanted = [finding for finding in findings if finding.mend]
    cases = _cases(tracker, studies, watch)
    mended: list[Finding] = []
    for case in cases:
        own = [finding for finding in wanted if finding.study == case.study.name]
        if any(finding.trial is None for finding in own):
            mended += case.steady(partial(_treat, partial(_parent_anew, case)))
        for number in sorted({finding.trial for finding in own if finding.trial is not None}):
            mended += case.steady(partial(_treat, partial(_trial_anew, case, number)))
    if named := {(finding.kind, finding.run_id) for finding in wanted if not finding.study}:
        for ailment in _outside(tracker, cases, _by_key(tracker.runs())):
            if ailment.cure and (ailment.finding.kind, ailment.finding.run_id) in named:
                ailment.cure()
                mended.append(ailment.finding)
    return tuple(mended)


def _treat(look: Callable[[], list[Ailment]]) -> list[Finding]:
    """Cure what a look finds until it finds nothing."""
    cured: list[Finding] = []
    for _ in range(ROUNDS):
        ailments = [ailment for ailment in look() if ailment.cure]
        if not ailments:
            break
        for ailment in ailments:
            assert ailment.cure is not None
            ailment.cure()
            cured.append(ailment.finding)
    return cured


def _cases(tracker: Tracker, studies: Iterable[OpenStudy], watch: Watch | None) -> list[Case]:
    watch = watch or Watch()
    return [case for study in studies if (case := Case.of(tracker, study, watch))]


def _by_key(runs: Sequence[RunRecord]) -> Runs:
    found: dict[str, list[RunRecord]] = defaultdict(list)
    for run in runs:
        if key := run.tags.get(KEY_TAG):
            found[key].append(run)
    return found


def _parent(case: Case, runs: Runs) -> str:
    """Run id of the study's run; "" if there is not exactly one."""
    parents = runs.get(case.parent_key, ())
    return parents[0].run_id if len(parents) == 1 else ""


def _parent_anew(case: Case) -> list[Ailment]:
    records = case.records()
    return look_at_parent(case, records, _by_key(case.tracker.runs()))


def _trial_anew(case: Case, number: int) -> list[Ailment]:
    """Look at one trial as it is now: at the storage first, since MLflow is behind it."""
    record = case.record(number)
    runs = {key: case.runs_of(key) for key in (trial_key(case.key, number), case.parent_key)}
    return look_at_trial(case, record, runs, _parent(case, runs))


def _unknown_trials(case: Case, runs: Runs) -> list[Finding]:
    """Runs of trials that the study in Optuna does not have."""
    beginning = trial_key(case.key, 0).removesuffix("0")
    keys = [key for key in runs if key.startswith(beginning)]
    known = {trial_key(case.key, record.number) for record in case.patiently(case.records)} if keys else set()
    return [
        Finding(
            kind="orphan",
            study=case.study.name,
            trial=None,
            run_id=run.run_id,
            message=f"run {run.run_id[:12]} ({run.name}) is of a trial that Optuna does not know",
            mend="",
        )
        for key in keys
        if key not in known
        for run in runs[key]
    ]


def _unknown_studies(cases: Sequence[Case], runs: Runs) -> list[Finding]:
    """Runs of studies that are not in this storage, one line for each study."""
    families: dict[tuple[str, str], list[RunRecord]] = defaultdict(list)
    for key, found in runs.items():
        if any(key.startswith(f"{case.key}-") for case in cases):
            continue
        for run in found:
            is_parent = run.tags.get("dftrack.kind") == "study"
            if is_parent or run.parent:
                families[run.tags.get("dftrack.study", ""), run.run_id if is_parent else run.parent or ""].append(run)
    return [
        Finding(
            kind="orphan",
            study=study,
            trial=None,
            run_id=family[0].run_id,
            message=f"{len(family)} runs of the study {study!r}, below {parent[:12]}, which is not in this storage: "
            "it lives in another one, was deleted, or is a script's own",
            mend="",
        )
        for (study, parent), family in sorted(families.items())
    ]


def _outside(tracker: Tracker, cases: Sequence[Case], runs: Runs) -> list[Ailment]:
    """What ails runs that are no trial's: baselines, final trainings, evaluations, a script's trials."""
    known = {key for case in cases for key in runs if key.startswith(trial_key(case.key, 0).removesuffix("0"))}
    known |= {case.parent_key for case in cases}
    ours = {run.run_id for case in cases for run in runs.get(case.parent_key, ())}
    folders = [Folder(path) for path in sorted(tracker.store.checkpoints.glob("*")) if path.is_dir()]
    by_key = {key: folder for folder in folders for key in (folder.path.name, folder.key) if key}
    found = []
    for key, bearers in runs.items():
        if key in known:
            continue
        for run in bearers:
            folder = by_key.get(key)
            if run.status == "RUNNING" and run.tags.get("dftrack.kind") not in (None, "study"):
                if folder or not run.parent or run.parent in ours:  # else another storage knows whether it is trained
                    found += _zombie(tracker, run, folder, folders)
            elif folder and folder.key == key and run.end in ("complete", "pruned", "failed"):
                found += _left(run, folder)
    return found


def _zombie(tracker: Tracker, run: RunRecord, folder: Folder | None, folders: Sequence[Folder]) -> list[Ailment]:
    """A run that is RUNNING though the lock of its folder is free: its process is gone.

    Without a folder it is judged only if it was begun on this machine and nothing at all is trained here.
    """
    if folder is None:
        here = run.tags.get("machine.host", platform.node()) == platform.node()
        if not here or any(one.is_held for one in folders):
            return []
    elif folder.is_held:
        return []
    if tracker.find_run(run.run_id).status != "RUNNING":  # it ended well while we looked
        return []

    reason = BEGUN_ANEW if run.tags.get("dftrack.kind") == "evaluation" else NOBODY

    def cure() -> None:
        if folder is None:
            tracker.close_run(run.run_id, "KILLED", end="interrupted", reason=reason)
            return
        try:
            with FileLock(folder.path / "lock", timeout=0, is_singleton=False):  # nobody goes on with it just now
                tracker.close_run(run.run_id, "KILLED", end="interrupted", reason=reason)
        except Timeout:
            return

    message = f"run {run.run_id[:12]} ({run.name}) is RUNNING in MLflow, though its process is gone"
    finding = Finding("zombie", "", None, run.run_id, message, "set KILLED, interrupted")
    return [Ailment(finding, cure)]


def _left(run: RunRecord, folder: Folder) -> list[Ailment]:
    """Checkpoints of a run that has ended."""
    if folder.is_held or not folder.content():
        return []
    message = f"run {run.run_id[:12]} ({run.name}) is {run.end}, its checkpoints still take {folder.bytes():,} bytes"
    finding = Finding("checkpoints", "", None, run.run_id, message, f"remove those in {folder.path}")
    return [Ailment(finding, folder.clear)]
