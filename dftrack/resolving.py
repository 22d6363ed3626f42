"""What a name of a model means: NAME@alias, NAME/3 or a run, resolved to files that are those that were released."""

import re
from pathlib import Path
from typing import NamedTuple

from dftrack import logged_model
from dftrack.errors import DetectorError, StoreError
from dftrack.model_files import file_problems
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
    caution: str = ""  # what a person should know before trusting it


def resolve_model(tracker: Tracker, reference: str | None = None) -> Resolved:
    """The model that `reference` means: NAME@alias, NAME/3, or a run id or its beginning.

    None or "": the champion of the model "dftrack" if there is one, else the newest finished baseline.
    Raises StoreError if there is no such model, or its files are gone; DetectorError if the files of a version are not
    those that were released.
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
            known = ", ".join(f"{name}@{other}" for other in sorted(tracker.registered(name).aliases()))
            raise StoreError(
                f"no version of the model {name!r} is called {alias!r}",
                f"known: {known}" if known else "dftrack promote RUN makes one",
            )
        return _of_version(tracker, version, f"{name}@{alias} (version {version.number})")
    if numbered := _NUMBERED.fullmatch(reference.strip()):
        name, number = numbered["name"], int(numbered["number"])
        version = tracker.registered(name).number(number)
        if version is None:
            known = ", ".join(str(other.number) for other in tracker.registered(name).versions())
            raise StoreError(
                f"the model {name!r} has no version {number}",
                f"it has {known}" if known else "dftrack promote RUN makes one",
            )
        return _of_version(tracker, version, str(version))
    return _of_run(tracker, reference)


def _of_version(tracker: Tracker, version: Version, described: str) -> Resolved:
    """The files of a version. The detector's own hashes are checked when it is loaded; here, that it is that one."""
    folder = tracker.registered(version.name).model_folder(version)
    digest = released_digest(tracker, version)
    if digest is not None and logged_model.content_digest(folder) != digest:
        raise DetectorError(
            f"{described} is not what was released: {file_problems(folder, digest)[0]}",
            "dftrack rollback goes back to the version before it; or promote another run",
        )
    return Resolved(folder / logged_model.FOLDER, version.run_id, described)


def _of_run(tracker: Tracker, reference: str) -> Resolved:
    record = tracker.find_run(reference)
    described = f"run {record.run_id[:12]} ({record.name})"
    caution = "" if record.status == "FINISHED" else f"{described} did not finish: it is {record.status}"
    return Resolved(tracker.detector_folder(record.run_id), record.run_id, described, caution)


def version_problems(tracker: Tracker, version: Version) -> list[str]:
    """What speaks against using the files of a version; empty if nothing does. Raises StoreError if they are gone."""
    return file_problems(tracker.registered(version.name).model_folder(version), released_digest(tracker, version))


def released_digest(tracker: Tracker, version: Version) -> str | None:
    """The sha256 of a version's files when it was released, or else when its run logged them; None if none was kept."""
    if kept := version.tags.get(logged_model.CONTENT_TAG):
        return kept
    try:
        return tracker.model_digest(version.run_id)
    except StoreError:  # its run was deleted
        return None
