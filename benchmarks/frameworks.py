"""PyTorch Lightning with its MLFlowLogger, and skorch, beside the plain script and dftrack: whole trainings.

Wanted: nothing in particular; how far the frameworks people reach for are from dftrack. All get the same files, weights
of the same start, batch size, epochs, Adam; val is scored after each epoch. The frameworks use the plain network and
the plain Dataset, in fp32, without workers, bars and checkpoints off. Each turn is a fresh process; imports are not
counted. Neither framework is needed by dftrack: what is not installed is left out and said
(uv pip install lightning skorch).
"""

import importlib.util
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from material import Files, files_of, open_faces
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
    pictures: int  # of train and of val, at most
    store: Path


@dataclass(frozen=True, slots=True)
class Turn:
    """Seconds from the first batch to the last epoch's score, and that val AUC."""

    seconds: float
    auc: float


def files(job: Job, split: str) -> Files:
    """The first so many files of each class, classes in turn."""
    listed = files_of(open_faces(job.faces, job.size, job.store).splits[split])
    classes = [[entry for entry in listed if entry[1] == label] for label in (0, 1)]
    mixed = [entry for pair in zip(*classes, strict=False) for entry in pair]
    return mixed[: job.pictures] if job.pictures else mixed


def order(job: Job, epoch: int, count: int) -> np.ndarray:
    """The order of an epoch, as dftrack draws it."""
    return np.random.default_rng([0, epoch]).permutation(count)


def auc_of(job: Job, scores: np.ndarray) -> float:
    """Val AUC."""
    return float(roc_auc_score([label for _, label in files(job, "val")], scores))


def plain(job: Job) -> Turn:
    """The plain script."""
    train, val = files(job, "train"), plain_loader(files(job, "val"), job.size, 32)
    model = plain_model(job.size, 0)
    optimizer, auc = torch.optim.Adam(model.parameters(), lr=1e-4), 0.0
    began = time.perf_counter()
    for epoch in range(1, job.epochs + 1):
        loader = plain_loader(train, job.size, 32, order=order(job, epoch, len(train)))
        for _ in train_plain(model, loader, optimizer, before_step=same_dropout(0, epoch)):
            pass
        auc = auc_of(job, score_plain(model, val))
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
            self.auc = auc_of(job, torch.cat(self.scores).cpu().numpy())
            self.log("val_auc", self.auc)
            self.scores = []

    torch.manual_seed(0)
    train, module = files(job, "train"), Module()
    with tempfile.TemporaryDirectory() as folder:
        logger = MLFlowLogger("bench", tracking_uri=f"sqlite:///{folder}/mlflow.db", artifact_location=f"{folder}/a")
        assert logger.experiment  # the schema is made here, which is not what is compared
        trainer = lightning.Trainer(
            max_epochs=job.epochs, accelerator="cpu", logger=logger, enable_progress_bar=False, num_sanity_val_steps=0,
            enable_checkpointing=False, enable_model_summary=False, default_root_dir=folder,
        )  # fmt: skip
        loader = torch.utils.data.DataLoader(plain_loader(train, job.size, 32).dataset, 32, shuffle=True)
        began = time.perf_counter()
        trainer.fit(module, loader, plain_loader(files(job, "val"), job.size, 32))
        return Turn(time.perf_counter() - began, module.auc)


def with_skorch(job: Job) -> Turn:
    """skorch's NeuralNetClassifier on the network's logits."""
    from skorch import NeuralNetClassifier

    torch.manual_seed(0)
    train, val = (plain_loader(files(job, split), job.size, 32) for split in ("train", "val"))
    aucs = []

    def score(net, *_) -> float:  # type: ignore[no-untyped-def]
        aucs.append(auc_of(job, net.forward(val.dataset).softmax(1)[:, 1].numpy()))
        return aucs[-1]

    from skorch.callbacks import Callback

    class Score(Callback):  # type: ignore[misc]
        def on_epoch_end(self, net, **_) -> None:  # type: ignore[no-untyped-def]
            net.history.record("val_auc", score(net))

    net = NeuralNetClassifier(
        plain_model(job.size, 0), criterion=nn.CrossEntropyLoss, optimizer=torch.optim.Adam, lr=1e-4, batch_size=32,
        max_epochs=job.epochs, train_split=None, iterator_train__shuffle=True, callbacks=[Score()], verbose=0,
    )  # fmt: skip
    net.initialize()
    began = time.perf_counter()
    net.partial_fit(train.dataset, np.array([label for _, label in files(job, "train")]))
    return Turn(time.perf_counter() - began, aucs[-1])


def ours(job: Job) -> Turn:
    """dftrack's loop on the same pictures, decoded before, without tracking (see harness.py for what that adds)."""
    import dataclasses

    from dftrack.config import ModelConfig, TrainConfig
    from dftrack.data.batches import Batches
    from dftrack.learning.model import build_model
    from dftrack.learning.training import Epoch, fit, new_state

    data = open_faces(job.faces, job.size, job.store)
    splits = []
    for name in ("train", "val"):
        split = data.splits[name]
        place = {path: row for row, path in enumerate(split.paths)}
        rows = [place[path] for path, _ in files(job, name)]
        chosen = dataclasses.replace(
            split, pixels=split.pixels[rows], labels=split.labels[rows], names=tuple(split.names[r] for r in rows),
            groups=tuple(split.groups[r] for r in rows), paths=tuple(split.paths[r] for r in rows),
            masks=(None,) * len(rows),
        )  # fmt: skip
        splits.append(chosen)
    config = TrainConfig(epochs=job.epochs)
    torch.manual_seed(0)
    state = new_state(
        build_model(ModelConfig(), job.size), config, images=len(splits[0].labels), precision="fp32", device="cpu"
    )
    auc, began = 0.0, time.perf_counter()
    for event in fit(state, Batches(splits[0], batch_size=32, seed=0), splits[1], config):
        if isinstance(event, Epoch):
            auc = event.metrics["val/roc_auc"] or 0.0
    return Turn(time.perf_counter() - began, auc)


def main() -> None:
    """Take turns and print."""
    parser = arguments(__doc__, size=32)
    parser.add_argument("--epochs", type=int, default=1, help="passes [1]")
    parser.add_argument("--pictures", type=int, default=256, help="of train and of val, at most; 0: all [256]")
    given = parser.parse_args()
    job = Job(given.faces, given.size, given.epochs, given.pictures, given.store)
    open_faces(job.faces, job.size, job.store)
    contenders = {"plain": partial(fresh, plain, job), "dftrack": partial(fresh, ours, job)}
    left_out = {}
    for name, package, work in (("Lightning", "lightning", with_lightning), ("skorch", "skorch", with_skorch)):
        if importlib.util.find_spec(package):
            contenders[name] = partial(fresh, work, job)
        else:
            left_out[name] = f"{package} is not installed (uv pip install {package})"
    turns = in_turn(contenders, given.turns)
    aucs = ", ".join(f"{name} {of[0].auc:.4f}" for name, of in turns.items())
    apart = abs(turns["plain"][0].auc - turns["dftrack"][0].auc)
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
                Check("val AUC of plain and dftrack within 2 points (frameworks draw their own order)",
                      apart <= 0.02, aucs)
            ],
            not_measured=left_out,
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
