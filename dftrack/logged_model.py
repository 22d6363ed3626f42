"""How a model is laid down in MLflow: weights and settings as files, and the code that scores; no pickle anywhere.

A part of the door to MLflow: only `tracking`, `recorder` and `registered` call it.
"""

import hashlib
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path

from dftrack.store import local_path

# store brings speaking with it, which sets the switches that MLflow reads while it is imported itself
# isort: split
import mlflow.pyfunc
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput, Metric
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types.schema import ColSpec, DataType, Schema

import dftrack
from dftrack.files import passing_folder, sha256, temporary_folder

NAME = "detector"
WEIGHTS_TAG = "dftrack.weights"  # sha256 of the weights: the same ones are logged once
CONTENT_TAG = "dftrack.content"  # sha256 of all files together, see `content_digest`
FILES = ("model.safetensors", "detector.json")  # what Detector.save wrote
FOLDER = "artifacts"  # inside the model: where they lie
# What loading and scoring import.
REQUIREMENTS = ("mlflow", "numpy", "pandas", "pillow", "safetensors", "simplejpeg", "torch")

# Shown with the model as an example of its input: a grey PNG of 8 x 8 pixels in base64.
GREY_PICTURE = "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAAAAADhZOFXAAAADklEQVR42mNogAIGyhgAgIQgARDoahcAAAAASUVORK5CYII="


def log(client: MlflowClient, run_id: str, folder: Path, metrics: Mapping[str, tuple[float, int, int]]) -> str:
    """Log the detector in `folder` as an output of the run; returns its URI. metrics: name -> (value, ms, step)."""
    assert all((folder / file).is_file() for file in FILES), f"no detector was saved in {folder}"
    digest = sha256(folder / FILES[0])
    if (known := _ready(client, run_id, digest)) is not None:
        return str(known.model_uri)
    run = client.get_run(run_id)
    model = client.create_logged_model(
        run.info.experiment_id,
        name=NAME,
        source_run_id=run_id,
        tags={WEIGHTS_TAG: digest},
        params=dict(run.data.params),
    )
    try:
        with _place(client, model) as place:
            _save(place, folder, model, run_id)
            content = content_digest(place)
        client.set_logged_model_tags(model.model_id, {CONTENT_TAG: content})
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
        values = [
            Metric(name, value, stamp, step, model_id=model.model_id, run_id=run_id)
            for name, (value, stamp, step) in metrics.items()
        ]
        client.log_batch(run_id, metrics=values)
        client.finalize_logged_model(model.model_id, "READY")
    except BaseException:
        client.finalize_logged_model(model.model_id, "FAILED")
        raise
    return str(model.model_uri)


def content_digest(place: Path) -> str:
    """sha256 of the names and contents of all files of a logged model, but for what loading it leaves there."""
    digest = hashlib.sha256()
    for file in sorted(place.rglob("*")):
        name = file.relative_to(place).as_posix()
        if file.is_file() and not is_left_by_loading(name):
            digest.update(f"{sha256(file)} {name}\n".encode(errors="backslashreplace"))
    return digest.hexdigest()


def is_left_by_loading(name: str) -> bool:
    """Is the file something that Python or MLflow writes into a model's folder when the model is loaded?"""
    return "__pycache__/" in name or name == "registered_model_meta"


def fetch(client: MlflowClient, run_id: str) -> Path | None:
    """The local folder with the detector that a run logged last, or None; a copy only if the store is elsewhere."""
    model = latest(client, run_id)
    if model is None:
        return None
    if place := local_path(model.artifact_location):
        return place / FOLDER
    return Path(
        mlflow.artifacts.download_artifacts(
            artifact_uri=f"{model.artifact_location}/{FOLDER}",
            dst_path=str(passing_folder()),
            tracking_uri=client.tracking_uri,
        )
    )


def drop(client: MlflowClient, run_id: str) -> bool:
    """Delete the models that a run logged: their files where they are local, and their entries. False if none was."""
    dropped = False
    while (model := _ready(client, run_id)) is not None:
        if place := local_path(model.artifact_location):
            shutil.rmtree(place, ignore_errors=True)
        client.delete_logged_model(model.model_id)
        dropped = True
    return dropped


def latest(client: MlflowClient, run_id: str) -> LoggedModel | None:
    """The model that a run logged last and whole, or None."""
    return _ready(client, run_id)


def _ready(client: MlflowClient, run_id: str, digest: str | None = None) -> LoggedModel | None:
    outputs = client.get_run(run_id).outputs
    models = []
    for output in outputs.model_outputs if outputs else []:
        with suppress(MlflowException):  # one that was dropped
            models.append(client.get_logged_model(output.model_id))
    ready = [
        model
        for model in models
        if model.status == "READY" and WEIGHTS_TAG in model.tags and digest in (None, model.tags[WEIGHTS_TAG])
    ]
    return max(ready, key=lambda model: int(model.creation_timestamp), default=None)


@contextmanager
def _place(client: MlflowClient, model: LoggedModel) -> Iterator[Path]:
    """A folder to save the model in: its final place if that is local (the weights may have 206 MB), else to upload."""
    if place := local_path(model.artifact_location):
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield place
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise
        return
    with temporary_folder() as aside:
        yield aside / "model"
        client.log_model_artifacts(model.model_id, str(aside / "model"))


def _save(place: Path, folder: Path, model: LoggedModel, run_id: str) -> None:
    package = Path(dftrack.__file__).parent
    mlflow.pyfunc.save_model(
        path=str(place),
        python_model=str(package / "scoring.py"),
        artifacts={file: str(folder / file) for file in FILES},  # MLflow keeps the files' own names
        code_paths=[str(package)],  # so that it loads where dftrack is not installed
        pip_requirements=requirements(),  # guessing them takes MLflow 20 s
        input_example=[GREY_PICTURE],
        signature=ModelSignature(
            inputs=Schema([ColSpec(DataType.string)]),
            outputs=Schema(
                [
                    ColSpec(DataType.double, "score"),
                    ColSpec(DataType.string, "verdict"),
                    ColSpec(DataType.double, "probability"),
                    ColSpec(DataType.string, "status"),
                    ColSpec(DataType.string, "reason"),
                ]
            ),
        ),
        mlflow_model=Model(
            artifact_path=model.artifact_location, model_uuid=model.model_id, model_id=model.model_id, run_id=run_id
        ),
    )


def requirements() -> list[str]:
    """The packages that scoring imports, at the versions installed here (without a build's local label, like +cpu)."""
    return [f"{name}=={metadata.version(name).partition('+')[0]}" for name in REQUIREMENTS]
