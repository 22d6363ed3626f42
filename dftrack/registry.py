"""Which model is the released one: a name of a model resolved to its files; a run promoted when it earns it."""

import re
from pathlib import Path
from typing import NamedTuple

from dftrack import logged_model
from dftrack.errors import StoreError
from dftrack.registered import Version
from dftrack.tracking import Tracker

MODEL, ALIAS = "dftrack", "champion"
_ALIASED = re.compile(r"(?:models:/)?(?P<name>[^/@]+)@(?P<alias>[^/@]+)")
_NUMBERED = re.compile(r"(?:models:/)?(?P<name>[^/@]+)/(?:v(?:ersion )?)?(?P<number>[0-9]{1,9})")


class Resolved(NamedTuple):
    """What a reference to a model means."""

    folder: Path  # for Detector.load
    run_id: str
    described: str  # for a person: "dftrack@champion (version 3)", "run 0a1b2c3d4e5f (baseline)"


def resolve_model(tracker: Tracker, reference: str | None = None) -> Resolved:
    """The model that `reference` means: NAME@alias, NAME/3, or a run id or its beginning.

    None or "": the champion of the model "dftrack" if there is one, else the newest finished baseline.
    Raises StoreError if there is no such model, or its files are gone.
    """
    if not reference:
        champion = tracker.registered(MODEL).at(ALIAS)
        if champion is not None:
            return _of_version(tracker, champion, f"{MODEL}@{ALIAS} (version {champion.number})")
        return _of_run(tracker, tracker.latest_run(tags={"dftrack.kind": "baseline"}).run_id)
    if aliased := _ALIASED.fullmatch(reference.strip()):
        name, alias = aliased["name"], aliased["alias"]
        version = tracker.registered(name).at(alias)
        if version is None:
            known = [f"{name}@{other}" for other in sorted(tracker.registered(name).aliases())]
            raise StoreError(
                f"no version of the model {name!r} is called {alias!r}",
                f"known: {', '.join(f'{name}@{other}' for other in known)}"
                if known
                else "dftrack promote RUN makes one",
            )
        return _of_version(tracker, version, f"{name}@{alias} (version {version.number})")
    if numbered := _NUMBERED.fullmatch(reference.strip()):
        name, number = numbered["name"], int(numbered["number"])
        version = tracker.registered(name).number(number)
        if version is None:
            known_numbers = [str(other.number) for other in tracker.registered(name).versions()]
            raise StoreError(
                f"the model {name!r} has no version {number}",
                f"it has {', '.join(known_numbers)}" if known_numbers else "dftrack promote RUN makes one",
            )
        return _of_version(tracker, version, str(version))
    return _of_run(tracker, reference)


def _of_version(tracker: Tracker, version: Version, described: str) -> Resolved:
    folder = tracker.registered(version.name).model_folder(version) / logged_model.FOLDER
    return Resolved(folder, version.run_id, described)


def _of_run(tracker: Tracker, reference: str) -> Resolved:
    record = tracker.find_run(reference)
    return Resolved(tracker.detector_folder(record.run_id), record.run_id, f"run {record.run_id[:12]} ({record.name})")
