"""Registered models in MLflow: versions of a model under a name, and aliases that point at one of them.

A part of the door to MLflow. `registry` decides what becomes a version and where an alias points.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dftrack import logged_model
from dftrack.errors import DetectorError, StoreError
from dftrack.files import passing_folder, temporary_folder
from dftrack.redaction import scrub
from dftrack.speaking import speaking
from dftrack.store import Connection, local_path

# speaking is imported first: it sets the switches that MLflow reads while it is imported itself
# isort: split
import mlflow.artifacts
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model

KEY_TAG = "dftrack.key"  # our own name of a version: a second attempt to make it finds the first
MODEL_TAG = "dftrack.model_id"  # the logged model that the version is
ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # MLflow says the second for an alias that is not there
LONGEST_TAG = 5000  # characters
APART_SECONDS = 300.0  # it needs 5 to 10 s
SWITCHES = {
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PYTHONDONTWRITEBYTECODE": "1",
}


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a registered model."""

    name: str
    number: int  # from 1; a deleted version's number is not given again
    run_id: str
    model_id: str  # of the logged model; "" if somebody else made the version
    tags: Mapping[str, str]
    aliases: tuple[str, ...]
    created: float  # seconds since 1970

    def __str__(self) -> str:
        return f"{self.name}/{self.number}"


@dataclass(frozen=True, slots=True)
class Made:
    """How a logged model is loaded, as its own description says."""

    loader: str  # the module that loads it
    code: str  # the file that holds the model as code; "" if it holds a pickled object
    other_flavours: tuple[str, ...]


class Registered:
    """The versions and aliases of one registered model. Nothing needs to exist before the first version is made."""

    def __init__(self, connection: Connection, name: str) -> None:
        self.name = name
        self._connection, self._client = connection, connection.client

    def versions(self) -> list[Version]:
        """All versions, the newest first."""
        found: list[ModelVersion] = []
        token = None
        mark = '"' if "'" in self.name else "'"
        if mark in self.name:
            raise StoreError(f"there is no model {self.name!r}", "dftrack promote --model NAME gives a name")
        while True:
            with speaking(self._connection.uri):
                page = self._client.search_model_versions(
                    f"name = {mark}{self.name}{mark}", max_results=1000, page_token=token
                )
            found += page
            token = page.token
            if not token:
                break
        aliases = self.aliases()
        return sorted((_version(version, aliases) for version in found), key=lambda version: -version.number)

    def aliases(self) -> dict[str, int]:
        """Alias -> the number of the version it points at."""
        with speaking(self._connection.uri):
            try:
                return {alias: int(n) for alias, n in self._client.get_registered_model(self.name).aliases.items()}
            except MlflowException as error:
                if error.error_code not in ABSENT:
                    raise
        return {}

    def at(self, alias: str) -> Version | None:
        """The version that `alias` points at, None if it points nowhere."""
        number = self.aliases().get(alias)
        return None if number is None else self.number(number)

    def number(self, number: int) -> Version | None:
        """The version with this number, None if there is none (any more)."""
        with speaking(self._connection.uri):
            try:
                return _version(self._client.get_model_version(self.name, str(number)), self.aliases())
            except MlflowException as error:
                if error.error_code not in ABSENT:
                    raise
        return None

    def create(self, run_id: str, *, key: str, tags: Mapping[str, str]) -> Version:
        """Make a version of the model that a run logged last. The same key twice makes one version.

        Raises StoreError if the run has no model or the store fails; calling again with the same key is then safe.
        """
        if (found := self._by_key(key)) is not None:
            return found
        with speaking(self._connection.uri):
            model = logged_model.latest(self._client, run_id)
            if model is None:
                raise StoreError(f"run {run_id[:12]} has no model", "only a completed run has one")
            self._create_name()
            failure: MlflowException | None = None
            try:
                self._client.create_model_version(
                    self.name,
                    model.artifact_location,
                    run_id,
                    tags=_texts({**tags, KEY_TAG: key, MODEL_TAG: model.model_id}),
                    model_id=model.model_id,
                )
            except MlflowException as error:
                failure = error  # perhaps only the answer was lost
            found = self._by_key(key)
            if found is None:
                raise failure or StoreError(f"a version of {self.name} was created and is not to be found")
        return found

    def _create_name(self) -> None:
        try:
            self._client.create_registered_model(self.name, description="Detectors of deepfake faces (dftrack)")
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _by_key(self, key: str) -> Version | None:
        """The first version that bears `key`; doubles, which a lost answer makes, are deleted."""
        same = sorted(
            (version for version in self.versions() if version.tags.get(KEY_TAG) == key),
            key=lambda version: version.number,
        )
        for double in same[1:]:
            self.delete(double.number)
        return same[0] if same else None

    def set_alias(self, alias: str, number: int) -> None:
        """Let `alias` point at a version, in one step: nobody ever sees it point nowhere."""
        with speaking(self._connection.uri):
            self._client.set_registered_model_alias(self.name, alias, str(number))

    def set_tags(self, number: int, tags: Mapping[str, str]) -> None:
        """Set or replace tags of a version, one by one."""
        with speaking(self._connection.uri):
            for key, value in _texts(tags).items():
                self._client.set_model_version_tag(self.name, str(number), key, value)

    def delete(self, number: int) -> None:
        """Delete a version (not the model that its run logged); MLflow takes its aliases away with it."""
        with speaking(self._connection.uri):
            self._client.delete_model_version(self.name, str(number))

    def model_folder(self, version: Version) -> Path:
        """The folder of a version's logged model, a copy if the store is elsewhere. Raises StoreError if it is gone."""
        with speaking(self._connection.uri):
            uri = self._client.get_model_version_download_uri(self.name, str(version.number))
        place = local_path(uri)
        if place is None:
            place = _download(uri, self._connection)
        if not place.is_dir():
            raise StoreError(f"the files of {version} are gone: {place}", "choose another version, or a run by its id")
        return place


def model_folder(connection: Connection, run_id: str) -> Path:
    """The whole folder of the model that a run logged last, a copy if the store is elsewhere. Raises StoreError."""
    with speaking(connection.uri):
        model = logged_model.latest(connection.client, run_id)
    if model is None:
        raise StoreError(f"run {run_id[:12]} has no model", "only a completed run has one")
    return local_path(model.artifact_location) or _download(model.artifact_location, connection)


def content_tag(connection: Connection, run_id: str) -> str | None:
    """The digest of all files of a run's model as it was logged; None if none was kept. See `content_digest`."""
    with speaking(connection.uri):
        model = logged_model.latest(connection.client, run_id)
        return None if model is None else model.tags.get(logged_model.CONTENT_TAG)


def how_made(folder: Path) -> Made:
    """How the logged model in `folder` is loaded. Raises StoreError if its MLmodel file is missing or not readable."""
    try:
        flavours = Model.load(str(folder)).flavors
        own = flavours.get("python_function", {})
        code = str(own.get("model_code_path") or "")
        return Made(
            loader=str(own.get("loader_module", "")),
            code="" if own.get("python_model") else code,
            other_flavours=tuple(sorted(set(flavours) - {"python_function"})),
        )
    except Exception as error:  # whatever a damaged YAML file makes its reader say
        raise StoreError(f"the description of the model in {folder} cannot be read: {error}") from error


LOADER = """
import json, sys
import mlflow.pyfunc
asked = json.load(sys.stdin)
said = mlflow.pyfunc.load_model(asked["model"]).predict(asked["inputs"])
with open(asked["answer"], "w") as answer:
    json.dump([None if status != "ok" else score for score, status in zip(said["score"], said["status"])], answer)
"""  # what the clean process does: the model brings its own code


def score_apart(folder: Path, pictures: Sequence[Path]) -> list[float | None]:
    """What the logged model in `folder` says of picture files when a clean process loads it by MLflow alone.

    The process finds the code that was logged with the model, and unpickles nothing. Returns P(fake), None for a
    picture that it could not read. Raises DetectorError with its last words if it fails, or takes longer than
    APART_SECONDS.
    """
    with temporary_folder() as aside:
        answer = aside / "answer.json"
        asked = {"model": str(folder), "inputs": [str(picture.absolute()) for picture in pictures]}
        try:
            done = subprocess.run(
                [sys.executable, "-P", "-c", LOADER],
                input=json.dumps({**asked, "answer": str(answer)}).encode(),
                capture_output=True,
                cwd=aside,
                timeout=APART_SECONDS,
                env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
                | SWITCHES
                | {"PYTHONPYCACHEPREFIX": str(aside / "byte-code")},  # what lies beside the code is in no digest
            )
        except subprocess.TimeoutExpired as error:
            raise DetectorError(f"a clean process did not score the pictures within {APART_SECONDS:.0f} s") from error
        if done.returncode or not answer.exists():
            said = scrub(" ".join(done.stderr.decode(errors="replace").strip().splitlines()[-1:]))
            raise DetectorError(f"the model cannot be loaded in a clean process: {said[:300] or 'it said nothing'}")
        scores: list[float | None] = json.loads(answer.read_text())
        return scores


def _download(uri: str, connection: Connection) -> Path:
    with speaking(connection.uri):
        copy = mlflow.artifacts.download_artifacts(uri, dst_path=str(passing_folder()), tracking_uri=connection.uri)
        return Path(copy)


def _version(version: ModelVersion, aliases: Mapping[str, int]) -> Version:
    number = int(version.version)
    return Version(
        name=version.name,
        number=number,
        run_id=version.run_id or "",
        model_id=version.tags.get(MODEL_TAG, ""),
        tags=dict(version.tags),
        aliases=tuple(sorted(alias for alias, pointed in aliases.items() if pointed == number)),
        created=version.creation_timestamp / 1000,
    )


def _texts(tags: Mapping[str, str]) -> dict[str, str]:
    """Scrubbed, and cut to what MLflow keeps."""
    return {key: scrub(str(value))[:LONGEST_TAG] for key, value in tags.items()}
