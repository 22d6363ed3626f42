"""A study in its storage: made, continued or refused."""

import itertools
import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.study import StudyDirection

from dftrack.errors import StoreError
from dftrack.study.definition import StudyDefinition, check_trials
from dftrack.study.fingerprint import Fingerprint, differences
from dftrack.study.storage import Storage

# Attributes of a study in the storage. OWNER: the name in its study file, which tells `cnn-2` that a fresh start of
# `cnn` made from one whose file is called so. WORKERS: of the command that made it.
FINGERPRINT, TRIALS, EPOCHS, OWNER, WORKERS = "fingerprint", "trials", "epochs", "definition", "workers"


class StudyChanged(StoreError):  # noqa: N818 - says what happened
    """The study in the storage is not the one asked for: `differences` says in which way, line by line."""

    def __init__(self, name: str, place: str, lines: list[str]) -> None:
        message = f"the study {name!r} in {place} is another one:\n" + "\n".join(f"  {line}" for line in lines)
        super().__init__(message, "undo the change, or start a fresh study beside it with --new")
        self.differences = lines


@dataclass(frozen=True, slots=True)
class OpenStudy:
    """A study that may be worked on."""

    storage: Storage
    name: str  # the definition's name, or name-2, name-3, ... after fresh starts
    study_id: int  # Optuna's
    is_new: bool

    def trials(self) -> int:
        """How many trials it ends with: as the latest start said, which workers already at work obey as well."""
        noted = self.storage.backend.get_study_user_attrs(self.study_id).get(TRIALS)
        if noted is None:
            hint = "if dftrack study was killed while it made it, the same command again mends it"
            raise StoreError(f"the study {self.name!r} in {self.storage.place} was not made by dftrack study", hint)
        return int(noted)

    def workers(self) -> int:
        """How many workers it was begun with, for which its suggestions are spaced; 1 where nobody noted it."""
        return int(self.storage.backend.get_study_user_attrs(self.study_id).get(WORKERS, 1))

    def epochs(self) -> int | None:
        """Passes of a trial that reaches the end, as the study was made with; None: not noted."""
        noted = self.storage.backend.get_study_user_attrs(self.study_id).get(EPOCHS)
        return None if noted is None else int(noted)


def open_study(
    storage: Storage,
    definition: StudyDefinition,
    mark: Fingerprint,
    *,
    trials: int | None = None,
    new: bool = False,
    workers: int = 1,
) -> OpenStudy:
    """Make the study, or continue the latest of its name.

    trials: how many there are in the end, those done included; None: as many as said before, or the study file says.
    new: make a fresh one beside those there are, with the next free number in its name.
    workers: how many it begins with, unless it has begun.
    Raises StudyChanged if its fingerprint is another, StoreError if somebody else made a study of this name,
    SettingError if `trials` is no number of trials.
    """
    if trials is not None:
        check_trials(trials)

    def step() -> OpenStudy:
        backend = storage.backend
        studies = _studies(storage)
        names = numbered(definition.name, studies)
        if names and not new:
            opened = _continue(storage, names[-1], mark)
            if OWNER not in backend.get_study_user_attrs(opened.study_id):
                backend.set_study_user_attr(opened.study_id, OWNER, definition.name)
            if trials is not None or TRIALS not in backend.get_study_user_attrs(opened.study_id):
                backend.set_study_user_attr(opened.study_id, TRIALS, trials or definition.trials)
            noted = WORKERS in backend.get_study_user_attrs(opened.study_id)
            if not noted and not backend.get_n_trials(opened.study_id):  # its maker was killed in between
                backend.set_study_user_attr(opened.study_id, WORKERS, workers)
            return opened
        name = _next_name(definition.name, names, studies)
        maximize = definition.direction == "maximize"
        study_id = backend.create_new_study([StudyDirection.MAXIMIZE if maximize else StudyDirection.MINIMIZE], name)
        backend.set_study_user_attr(study_id, OWNER, definition.name)
        backend.set_study_user_attr(study_id, FINGERPRINT, dict(mark.values))
        backend.set_study_user_attr(study_id, TRIALS, trials or definition.trials)
        backend.set_study_user_attr(study_id, EPOCHS, definition.epochs)
        backend.set_study_user_attr(study_id, WORKERS, workers)
        return OpenStudy(storage, name, study_id, is_new=True)

    return storage.steady(step)


def reopen(storage: Storage, name: str) -> OpenStudy:
    """The study of exactly this name, as it is. Raises StoreError if there is none."""

    def look() -> OpenStudy:
        try:
            return OpenStudy(storage, name, storage.backend.get_study_id_from_name(name), is_new=False)
        except KeyError as error:
            raise _missing(storage, name) from error

    return storage.patiently(look)


def latest(storage: Storage, name: str) -> OpenStudy:
    """The newest of the studies that the study file `name` has made, as it is. Raises StoreError if there is none."""

    def look() -> str:
        if names := numbered(name, _studies(storage)):
            return names[-1]
        raise _missing(storage, name)

    return reopen(storage, storage.patiently(look))


def load(opened: OpenStudy) -> optuna.Study:
    """Optuna's own object for the study: for its plots and importances."""
    return optuna.load_study(study_name=opened.name, storage=opened.storage.backend)


def numbered(name: str, studies: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The names of those that the study file `name` has made, in order: `name`, `name-2`, `name-3`, ...

    studies: name in the storage -> attributes. One that does not say whose it is, since an older version made it,
    counts by its name alone.
    """
    own = [other for other, attributes in studies.items() if attributes.get(OWNER, name) == name]
    return sorted((other for other in own if _number(name, other)), key=lambda other: _number(name, other))


def _next_name(name: str, own: Sequence[str], taken: Container[str]) -> str:
    """The name of a fresh study after those of its `own`: the next number that no other study's name has."""
    count = 1 + max((_number(name, other) for other in own), default=0)
    candidates = (name if number == 1 else f"{name}-{number}" for number in itertools.count(count))
    return next(candidate for candidate in candidates if candidate not in taken)


def _studies(storage: Storage) -> dict[str, dict[str, Any]]:
    """Name in the storage -> attributes, of every study there."""
    return {study.study_name: study.user_attrs for study in storage.backend.get_all_studies()}


def _missing(storage: Storage, name: str) -> StoreError:
    names = ", ".join(sorted(_studies(storage)))
    hint = f"studies there: {names}" if names else "there are no studies yet"
    return StoreError(f"there is no study {name!r} in {storage.place}", hint)


def _number(name: str, other: str) -> int:
    """1 for the name itself, n for name-n, 0 for another name."""
    if other == name:
        return 1
    match = re.fullmatch(re.escape(name) + r"-([2-9]|[1-9]\d+)", other)
    return int(match[1]) if match else 0


def _continue(storage: Storage, name: str, mark: Fingerprint) -> OpenStudy:
    backend: BaseStorage = storage.backend
    study_id = backend.get_study_id_from_name(name)
    before = backend.get_study_user_attrs(study_id).get(FINGERPRINT)
    if before is None:
        if backend.get_n_trials(study_id):
            hint = "rename the study in its file, or start one with --new"
            raise StoreError(f"the study {name!r} in {storage.place} was not made by dftrack study", hint)
        backend.set_study_user_attr(study_id, FINGERPRINT, dict(mark.values))  # its maker was killed in between
    elif lines := differences(before, mark.values):
        raise StudyChanged(name, storage.place, lines)
    return OpenStudy(storage, name, study_id, is_new=False)
