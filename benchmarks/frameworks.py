"""PyTorch Lightning with its MLFlowLogger, and skorch, beside the plain script and dftrack: whole trainings.

Wanted: nothing in particular; how far the frameworks people reach for are from dftrack. All get the same files, weights
of the same start, batch size, epochs, Adam; val is scored after each epoch. The frameworks use the plain network and
the plain Dataset, in fp32, without workers, bars and checkpoints off. dftrack runs a whole recorded experiment, without
tests, on pictures decoded before. Each turn is a fresh process; imports are not counted. Neither framework is needed by
dftrack: what is not installed is left out and said (uv pip install lightning skorch).
"""

import importlib.util
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from material import Files, files_of, open_faces, subset
from peers import plain_loader, plain_model, same_dropout, score_plain, train_plain
from side_by_side import Check, Report, arguments, fresh, in_turn, show
from sklearn.metrics import roc_auc_score
from torch import nn


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be trained."""

    faces: str
    size: int
    epochs: int
    store: Path


@dataclass(frozen=True, slots=True)
class Turn:
    """Seconds from the first batch to the last epoch's score, and that val AUC."""

    seconds: float
    auc: float


def files(job: Job, split: str) -> Files:
    """Paths and labels."""
    return files_of(open_faces(job.faces, job.size, job.store).splits[split])


def order(job: Job, epoch: int, count: int) -> np.ndarray:
    """The order of an epoch, as dftrack draws it."""
    return np.random.default_rng([0, epoch]).permutation(count)


def labels_of(listed: Files) -> np.ndarray:
    """(n,) 0 real, 1 fake."""
    return np.array([label for _, label in listed])


def plain(job: Job) -> Turn:
    """The plain script."""
    train, listed = files(job, "train"), files(job, "val")
    val, labels = plain_loader(listed, job.size, 32), labels_of(listed)
    model = plain_model(job.size, 0)
    optimizer, auc = torch.optim.Adam(model.parameters(), lr=1e-4), 0.0
    began = time.perf_counter()
    for epoch in range(1, job.epochs + 1):
        loader = plain_loader(train, job.size, 32, order=order(job, epoch, len(train)))
        for _ in train_plain(model, loader, optimizer, before_step=same_dropout(0, epoch)):
            pass
        auc = float(roc_auc_score(labels, score_plain(model, val)))
    return Turn(time.perf_counter() - began, auc)


def with_lightning(job: Job) -> Turn:
    """Lightning's Trainer, metrics to MLflow on SQLite."""
    import lightning
    from lightning.pytorch.loggers import MLFlowLogger

    class Module(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model, self.scores = plain_model(job.size, 0), []

        def configure_optimizers(self):  # type: ignore[no-untyped-def]
            return torch.optim.Adam(self.parameters(), lr=1e-4)

        def training_step(self, batch, index):  # type: ignore[no-untyped-def]
            loss = nn.functional.cross_entropy(self.model(batch[0]), batch[1])
            self.log("train_loss", loss)
            return loss

        def validation_step(self, batch, index):  # type: ignore[no-untyped-def]
            self.scores.append(torch.softmax(self.model(batch[0]), 1)[:, 1])

        def on_validation_epoch_end(self) -> None:
            self.auc = float(roc_auc_score(labels, torch.cat(self.scores).cpu().numpy()))
            self.log("val_auc", self.auc)
            self.scores = []

    torch.manual_seed(0)
    train, val, module = files(job, "train"), files(job, "val"), Module()
    labels = labels_of(val)
    with tempfile.TemporaryDirectory() as folder:
        logger = MLFlowLogger("bench", tracking_uri=f"sqlite:///{folder}/mlflow.db", artifact_location=f"{folder}/a")
        assert logger.experiment  # the schema is made here, which is not what is compared
        trainer = lightning.Trainer(
            max_epochs=job.epochs, accelerator="cpu", logger=logger, enable_progress_bar=False, num_sanity_val_steps=0,
            enable_checkpointing=False, enable_model_summary=False, default_root_dir=folder,
        )  # fmt: skip
        loader = torch.utils.data.DataLoader(plain_loader(train, job.size, 32).dataset, 32, shuffle=True)
        began = time.perf_counter()
        trainer.fit(module, loader, plain_loader(val, job.size, 32))
        return Turn(time.perf_counter() - began, module.auc)


def with_skorch(job: Job) -> Turn:
    """skorch's NeuralNetClassifier on the network's logits."""
    from skorch import NeuralNetClassifier
    from skorch.callbacks import Callback

    torch.manual_seed(0)
    train, val = (plain_loader(files(job, split), job.size, 32) for split in ("train", "val"))
    wanted, labels = labels_of(files(job, "train")), labels_of(files(job, "val"))

    class Score(Callback):  # type: ignore[misc]
        def on_epoch_end(self, net, **_) -> None:  # type: ignore[no-untyped-def]
            scores = net.forward(val.dataset).softmax(1)[:, 1].numpy()
            net.history.record("val_auc", float(roc_auc_score(labels, scores)))

    net = NeuralNetClassifier(
        plain_model(job.size, 0), criterion=nn.CrossEntropyLoss, optimizer=torch.optim.Adam, lr=1e-4, batch_size=32,
        max_epochs=job.epochs, train_split=None, iterator_train__shuffle=True, callbacks=[Score()], verbose=0,
    )  # fmt: skip
    net.initialize()
    began = time.perf_counter()
    net.partial_fit(train.dataset, wanted)
    return Turn(time.perf_counter() - began, net.history[-1, "val_auc"])


def ours(job: Job) -> Turn:
    """dftrack's experiment as `dftrack baseline` runs it up to the last epoch, recorded; pictures decoded before."""
    from dftrack.config import Config, DataConfig, TrainConfig
    from dftrack.experiment import Plan, Started, run_experiment
    from dftrack.learning.training import Epoch

    config = Config(
        data=DataConfig(source=job.faces, image_size=job.size, leaks="allow"),
        train=TrainConfig(epochs=job.epochs, device="cpu", precision="fp32"),
    )
    auc = began = ended = 0.0
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "data").symlink_to((job.store / "data").resolve())
        for event in run_experiment(config, Path(folder), plan=Plan(open_tests=False, pictures=False)):
            if isinstance(event, Started):
                began = time.perf_counter()
            elif isinstance(event, Epoch):
                auc, ended = event.metrics["val/roc_auc"] or 0.0, time.perf_counter()
    return Turn(ended - began, auc)


def main() -> None:
    """Take turns and print."""
    parser = arguments(__doc__, size=32)
    parser.add_argument("--epochs", type=int, default=1, help="passes [1]")
    parser.add_argument("--pictures", type=int, default=256, help="of train and of val, about; 0: all [256]")
    given = parser.parse_args()
    faces = given.faces
    if given.pictures:
        name = f"subset-{Path(faces).name}-{given.pictures}"
        faces = str(subset(faces, given.store / name, given.pictures, given.store))
    job = Job(faces, given.size, given.epochs, given.store)
    open_faces(job.faces, job.size, job.store)
    contenders = {"plain": partial(fresh, plain, job), "dftrack": partial(fresh, ours, job)}
    left_out = {}
    for name, package, work in (("Lightning", "lightning", with_lightning), ("skorch", "skorch", with_skorch)):
        if importlib.util.find_spec(package):
            contenders[name] = partial(fresh, work, job)
        else:
            left_out[name] = f"{package} is not installed (uv pip install {package})"
    turns = in_turn(contenders, given.turns)
    aucs = {name: of[0].auc for name, of in turns.items()}
    said = ", ".join(f"{name} {auc:.4f}" for name, auc in aucs.items())
    apart = abs(aucs["plain"] - aucs["dftrack"])
    furthest = max(abs(auc - aucs["plain"]) for auc in aucs.values())
    show(
        Report(
            claim=f"whole training beside frameworks, {given.size} px, {given.epochs} epochs",
            wanted="-",
            base="plain",
            unit="s",
            samples={name: [turn.seconds for turn in of] for name, of in turns.items()},
            more_is_better=False,
            setting={"pictures": given.pictures or "all", "epochs": given.epochs, "turns": given.turns},
            checks=[
                Check("val AUC of plain and dftrack within 2 points", apart <= 0.02, said),
                Check("of all within 10 (frameworks draw their own order)", furthest <= 0.1, f"{100 * furthest:.1f}"),
            ],
            not_measured=left_out,
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
