"""Several runs in one picture: their ROC curves over each other, and their losses -> PNG bytes."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import roc_curve

from dftrack.learning import metrics
from dftrack.learning.evaluation import Predictions
from dftrack.learning.figures import COLOURS, DASHES, GREY, to_png

MOST_SPLITS = 4  # panels; of more splits the first are drawn
History = Mapping[str, Sequence[tuple[int, float]]]


def curves(predictions: Mapping[str, Sequence[Predictions]], histories: Mapping[str, History]) -> bytes:
    """ROC of every run, one panel a split, and the loss of every run by epoch (val solid, train thin).

    predictions: run's name -> its splits. histories: run's name -> "train/loss" and "val/loss" -> (epoch, value).
    A curve that is undefined (one class, no scores) is named in the legend and not drawn.
    """
    splits = list(dict.fromkeys(found.split for of_run in predictions.values() for found in of_run))
    splits = sorted(splits, key=lambda split: split == "val")[:MOST_SPLITS]
    panels = len(splits) + 1
    figure = Figure(figsize=(5.0 * panels, 5.2 + 0.24 * len(predictions)), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    for panel, split in zip(axes, splits, strict=False):
        _roc(panel, split, predictions)
    _losses(axes[-1], histories)
    return to_png(figure)


def _roc(axes: Axes, split: str, predictions: Mapping[str, Sequence[Predictions]]) -> None:
    for index, (name, of_run) in enumerate(predictions.items()):
        found = next((one for one in of_run if one.split == split), None)
        auc = None if found is None else _auc(found)
        label = f"{_short(name)}: {'not scored' if found is None else 'undefined' if auc is None else f'AUC {auc:.3f}'}"
        fpr = tpr = np.empty(0)
        if found is not None and auc is not None:
            fpr, tpr, _ = roc_curve(found.labels, found.scores, drop_intermediate=True)
        colour, dashes = COLOURS[index % len(COLOURS)], DASHES[index % len(DASHES)]
        axes.plot(fpr, tpr, color=colour, linestyle=dashes, linewidth=2, label=label)
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=(0, (2, 3)), label="chance")
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.set_aspect("equal")
    _finish(axes, f"ROC, {split}", "share of reals called fake (FPR)", "share of fakes caught (TPR)")


def _losses(axes: Axes, histories: Mapping[str, History]) -> None:
    for index, (name, history) in enumerate(histories.items()):
        colour, dashes = COLOURS[index % len(COLOURS)], DASHES[index % len(DASHES)]
        for metric, width in (("val/loss", 2.0), ("train/loss", 0.9)):
            points = history.get(metric, ())
            label = f"{_short(name)}{'' if points else ': not recorded'}" if metric == "val/loss" else None
            axes.plot(
                [step for step, _ in points], [value for _, value in points], color=colour, linestyle=dashes,
                marker="o", markersize=4 if width > 1 else 2, linewidth=width, label=label,
            )  # fmt: skip
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _finish(axes, "Loss (bold: val, thin: train)", "epoch", "cross-entropy (nats)")


def _finish(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=12)
    axes.set_xlabel(x, fontsize=11)
    axes.set_ylabel(y, fontsize=11)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.14))


def _auc(found: Predictions) -> float | None:
    return metrics.or_none(lambda: metrics.roc_auc(found.scores, found.labels))


def _short(name: str, most: int = 40) -> str:
    return name if len(name) <= most else name[: most - 3] + "..."
