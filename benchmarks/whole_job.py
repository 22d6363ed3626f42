"""A whole job, from a folder of faces to a logged model: dftrack beside the plain script with MLflow logging.

Wanted: 5 times faster on 3,200 faces, 224 px, 3 epochs. Each turn is a fresh process with a fresh store, so imports,
the making of MLflow's schema and dftrack's decoding and audit are all inside. The plain script trains, scores val
after each epoch and the test split at the end, and logs parameters, metrics and the model with MLflow's fluent calls.
`dftrack, to the logged model` does as much (and the audit, predictions and provenance, which it always does);
`dftrack baseline` is the whole command, with intervals, robustness, calibration and explanations as well.
Both must end with about the same val AUC: they see the same pictures in the same order with the same start.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from material import subset
from side_by_side import Check, Report, arguments, fresh, in_turn, show


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be done. Travels to the processes."""

    faces: str
    size: int
    epochs: int
    store: Path  # for the sample's files only: each turn has a store of its own


@dataclass(frozen=True, slots=True)
class Done:
    """How long it took, whole process (seconds), and the last val AUC."""

    seconds: float
    auc: float


def plain(job: Job) -> float:
    """The plain script; returns the last val AUC."""
    import mlflow
    import numpy as np
    import torch
    from peers import plain_loader, plain_model, same_dropout, score_plain, train_plain
    from sklearn.metrics import roc_auc_score

    from dftrack.data.sources import find_pictures

    splits: dict[str, list[tuple[Path, int]]] = {}
    for picture in find_pictures(job.faces, job.store).pictures:
        splits.setdefault(picture.split, []).append((picture.path, picture.label))
    with tempfile.TemporaryDirectory() as folder:
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        mlflow.set_experiment(experiment_id=mlflow.create_experiment("plain", artifact_location=f"{folder}/artifacts"))
        model = plain_model(job.size, 0)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
        labels = {split: [label for _, label in files] for split, files in splits.items()}
        auc = 0.0
        with mlflow.start_run():
            mlflow.log_params({"lr": 1e-4, "batch_size": 32, "epochs": job.epochs})
            for epoch in range(1, job.epochs + 1):
                order = np.random.default_rng([0, epoch]).permutation(len(splits["train"]))
                loader = plain_loader(splits["train"], job.size, 32, order=order)
                losses = list(train_plain(model, loader, optimizer, before_step=same_dropout(0, epoch)))
                auc = float(roc_auc_score(labels["val"], score_plain(model, plain_loader(splits["val"], job.size, 32))))
                mlflow.log_metrics({"train_loss": float(np.mean(losses)), "val_auc": auc}, step=epoch)
            for split in splits.keys() - {"train", "val"}:
                scores = score_plain(model, plain_loader(splits[split], job.size, 32))
                mlflow.log_metric(f"{split}_auc", float(roc_auc_score(labels[split], scores)))
            version = torch.__version__.partition("+")[0]
            example = torch.zeros(2, 3, job.size, job.size).numpy()
            mlflow.pytorch.log_model(model, name="model", input_example=example, pip_requirements=[f"torch=={version}"])
    return auc


def to_the_model(job: Job) -> float:
    """dftrack up to the logged model, without pictures and what judges further; returns the last val AUC."""
    from dftrack.config import Config, DataConfig, TrainConfig
    from dftrack.experiment import Plan, Result, run_experiment

    with tempfile.TemporaryDirectory() as folder:
        store = own_store(job, Path(folder))
        config = Config(
            data=DataConfig(source=job.faces, image_size=job.size), train=TrainConfig(epochs=job.epochs, device="cpu")
        )
        *_, result = run_experiment(config, store, plan=Plan(pictures=False))
        assert isinstance(result, Result) and result.final and result.final.model_uri
        return float(result.history[-1]["val/roc_auc"] or 0.0)


def own_store(job: Job, folder: Path) -> Path:
    """A fresh store; the sample's files (not what is decoded from them) are there already, as they are for the peer."""
    if job.faces == "sample":
        shutil.copytree(job.store / "data", folder / "data")
    return folder


def timed(work, job: Job) -> Done:  # type: ignore[no-untyped-def]
    """One turn in a fresh process, its start and imports included."""
    began = time.monotonic()
    auc = fresh(work, job)
    return Done(time.monotonic() - began, auc)


def whole_command(job: Job) -> Done:
    """`dftrack baseline` as typed."""
    import json

    with tempfile.TemporaryDirectory() as folder:
        store = own_store(job, Path(folder))
        words = ["baseline", "--data", job.faces, "--epochs", job.epochs, "--set", f"data.image_size={job.size}"]
        command = [sys.executable, "-m", "dftrack", *map(str, words), "--device", "cpu", "--store", store, "--json"]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        began = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        seconds = time.monotonic() - began
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        return Done(seconds, json.loads(done.stdout)["metrics"]["val/roc_auc"])


def main() -> None:
    """Take turns and print."""
    parser = arguments(__doc__, size=96)
    parser.add_argument("--epochs", type=int, default=1, help="passes [1]")
    parser.add_argument("--per-split", type=int, default=64, help="pictures of each split; 0: all [64]")
    parser.add_argument("--no-command", action="store_true", help="leave `dftrack baseline` out")
    given = parser.parse_args()
    faces = given.faces
    if faces == "sample" and not (given.store / "data").exists():
        from dftrack.data.sample import make_sample

        make_sample(given.store)
    if given.per_split:
        name = f"subset-{Path(faces).name}-{given.per_split}"
        faces = str(subset(faces, given.store / name, given.per_split, given.store))
    job = Job(faces, given.size, given.epochs, given.store)
    contenders = {
        "plain + MLflow": partial(timed, plain, job),
        "dftrack, to the model": partial(timed, to_the_model, job),
    }
    if not given.no_command:
        contenders["dftrack baseline"] = partial(whole_command, job)
    turns = in_turn(contenders, given.turns)
    aucs = {name: of[0].auc for name, of in turns.items()}
    apart = 100 * abs(aucs["plain + MLflow"] - aucs["dftrack, to the model"])
    show(
        Report(
            claim=f"whole job, {given.size} px, {given.epochs} epochs",
            wanted="5 x the plain script",
            base="plain + MLflow",
            unit="s",
            samples={name: [turn.seconds for turn in of] for name, of in turns.items()},
            more_is_better=False,
            setting={"pictures per split": given.per_split or "all", "epochs": given.epochs, "turns": given.turns},
            checks=[Check("val AUC within 2 points (rounding differs, a short training is sensitive)", apart <= 2.0,
                          ", ".join(f"{name} {auc:.4f}" for name, auc in aucs.items()))],
            not_measured={"dftrack baseline": "left out by --no-command"} if given.no_command else {},
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
