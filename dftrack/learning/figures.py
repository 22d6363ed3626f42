"""Arrays -> figures as PNG bytes. The one place that knows matplotlib; no global state of it is touched.

Colours are Okabe and Ito's, which colour-blind readers tell apart; every line also has its own dashes.
"""

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.axis import Tick
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import imsave
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_curve, roc_curve

from dftrack.learning import metrics
from dftrack.learning.evaluation import Predictions, Report
from dftrack.learning.metrics import CLASSES, FAKE, REAL

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))
GREY = "#666666"
DPI = 120
HEAT = "viridis"  # even in brightness, for colour-blind readers too
TILE, GAP = 1.85, 0.06  # inches, the side of a picture in the Grad-CAM panel and the space beside it
LOWEST_FPR = 1e-3  # where the logarithmic axis of the ROC begins


@dataclass(frozen=True, slots=True, eq=False)
class PanelRow:
    """One picture with its heat map, for `gradcam_panel`."""

    photo: NDArray[np.uint8]  # (S, S, 3) RGB
    heat: NDArray[np.float32]  # (S, S) in [0, 1]
    name: str
    label: int | None  # 0 real, 1 fake; None: not known
    score: float  # P(fake)
    threshold: float  # P(fake) from which on a picture is called fake
    target: int  # the class that the heat speaks for
    mask: NDArray[np.bool_] | None = None  # (S, S) where the forgery lies, if known
    flat: bool = False  # the map points nowhere: said in words, not drawn
    warning: str = ""  # why the map is not to be trusted


def confusion_matrix(report: Report) -> bytes:
    """Counts and shares of each true class, at the report's threshold."""
    counts = np.array(report.confusion)  # [true][predicted]
    totals = counts.sum(axis=1)
    shares = counts / np.maximum(totals, 1)[:, None]
    figure = Figure(figsize=(5.2, 4.6), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for true in (REAL, FAKE):
        for called in (REAL, FAKE):
            share = f"{shares[true, called]:.1%}" if totals[true] else "undefined"
            colour = "white" if shares[true, called] > 0.5 else "black"
            axes.text(called, true - 0.06, f"{counts[true, called]:,}", ha="center", color=colour, fontsize=20)
            axes.text(called, true + 0.2, share, ha="center", color=colour, fontsize=12)
    axes.set_xticks([REAL, FAKE], [f"called {name}" for name in CLASSES], fontsize=11)
    axes.set_yticks(
        [REAL, FAKE], [f"{name}\n(n = {n:,})" for name, n in zip(CLASSES, totals, strict=True)], fontsize=11
    )
    axes.set_ylabel("true class", fontsize=11)
    figure.suptitle(f"{report.split}: called fake where P(fake) is at least {report.threshold:.3g}", fontsize=11.5)
    figure.colorbar(image, format=PercentFormatter(1), label="share of the true class", shrink=0.9)
    return to_png(figure)


def roc_curves(predictions: Sequence[Predictions]) -> bytes:
    """ROC of each split with its equal-error point; beside it the low false-alarm rates on a logarithmic axis.

    A split with one class only has no ROC: its legend says undefined. Below 1 / (number of reals) nothing is drawn.
    """
    figure = Figure(figsize=(10.5, 4.9), layout="constrained")
    whole, low = figure.subplots(1, 2)
    for index, split in enumerate(predictions):
        colour, dashes = style_of(index)
        label = f"{split.split}: undefined ({_why_not(split)})"
        fpr = tpr = np.empty(0)
        if _drawable(split):
            fpr, tpr, _ = roc_curve(split.labels, split.scores, drop_intermediate=False)
            eer = metrics.equal_error_rate(split.scores, split.labels)
            label = f"{split.split}: AUC {metrics.roc_auc(split.scores, split.labels):.3f}, EER {eer:.1%} ({_n(split)})"
            whole.plot(eer, 1 - eer, "o", color=colour, markeredgecolor="white", markersize=8, zorder=3)
            first = 1 / np.sum(split.labels == REAL)  # the lowest rate that these reals can tell from 0
            beyond = fpr > first
            rates, caught = np.append(first, fpr[beyond]), np.append(tpr[~beyond].max(), tpr[beyond])
            low.step(rates, caught, where="post", color=colour, linestyle=dashes, linewidth=2)
        whole.plot(fpr, tpr, color=colour, linestyle=dashes, linewidth=2, label=label)
    whole.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=(0, (2, 3)), label="chance")
    whole.plot([], [], "o", color=GREY, label="equal error rate (EER)")
    chance = np.geomspace(LOWEST_FPR, 1, 200)
    low.plot(chance, chance, color=GREY, linewidth=1, linestyle=(0, (2, 3)))
    low.set_xscale("log")
    low.set_xlim(LOWEST_FPR, 1)
    for axes, title in ((whole, "ROC"), (low, "ROC at low false-alarm rates")):
        name_axes(axes, title, "share of reals called fake (FPR)", "share of fakes caught (TPR)")
        axes.set_ylim(-0.02, 1.02)
    whole.set_aspect("equal")
    low.set_xticks([0.001, 0.01, 0.05, 0.1, 0.5, 1], ["0.1 %", "1 %", "5 %", "10 %", "50 %", "100 %"])
    low.minorticks_off()
    legend_below(figure, whole, columns=2)
    return to_png(figure)


def pr_curves(predictions: Sequence[Predictions]) -> bytes:
    """Precision over recall of each split, with the precision of chance (its share of fakes) as a thin line."""
    figure = Figure(figsize=(6.4, 6.0), layout="constrained")
    axes = figure.add_subplot()
    for index, split in enumerate(predictions):
        colour, dashes = style_of(index)
        label = f"{split.split}: undefined ({_why_not(split)})"
        recall = precision = np.empty(0)
        if _drawable(split):
            precision, recall, _ = precision_recall_curve(split.labels, split.scores)
            share = metrics.share_fake(split.labels)
            found = metrics.average_precision(split.scores, split.labels)
            label = f"{split.split}: AP {found:.3f}, chance {share:.3f} ({_n(split)})"
            axes.axhline(share, color=colour, linewidth=1, linestyle=(0, (2, 3)))
        axes.step(recall, precision, where="post", color=colour, linestyle=dashes, linewidth=2, label=label)
    axes.plot([], [], color=GREY, linewidth=1, linestyle=(0, (2, 3)), label="chance: the share of fakes")
    name_axes(
        axes,
        "Precision and recall",
        "recall: share of fakes caught",
        "precision: share of true fakes among those named",
    )
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    legend_below(figure, axes)
    return to_png(figure)


def loss_curves(history: Sequence[Mapping[str, float | None]]) -> bytes:
    """Loss and AUC of training and validation by epoch, from `train/loss`, `val/loss`, `train/roc_auc`, `val/roc_auc`.

    history: one mapping per epoch, the first is epoch 1. A value that is missing or None leaves a gap.
    """
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    epochs = np.arange(1, len(history) + 1)
    for axes, key, name in zip(
        figure.subplots(1, 2), ("loss", "roc_auc"), ("cross-entropy (nats)", "AUC"), strict=True
    ):
        for index, part in enumerate(("train", "val")):
            values = np.array([or_nan(epoch.get(f"{part}/{key}")) for epoch in history], dtype=float)
            colour, dashes = style_of(index)
            axes.plot(epochs, values, color=colour, linestyle=dashes, marker="o", markersize=5, linewidth=2, label=part)
            if part == "val" and np.any(np.isfinite(values)):
                best = int(np.nanargmin(values) if key == "loss" else np.nanargmax(values))
                axes.plot(
                    epochs[best], values[best], "o", markersize=12, markerfacecolor="none", markeredgecolor=colour,
                    label=f"best val: {values[best]:.3f}, epoch {best + 1}",
                )  # fmt: skip
        name_axes(axes, name, "epoch", name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False, fontsize=10)
    return to_png(figure)


def gradcam_panel(rows: Sequence[PanelRow], title: str = "") -> bytes:
    """Photo, heat and overlay of each picture, two pictures side by side; the known forgery is outlined in white.

    A flat map is said in words, a warning stands in the heading. All in one Axes with inches as its unit.
    """
    across = 1 if len(rows) < 3 else 2
    down = math.ceil(len(rows) / across)
    head = 0.45 + (0.16 if any(row.warning for row in rows) else 0)  # inches above a picture's tiles
    high, wide = head + TILE + 0.15, 3 * (TILE + GAP) + 0.15
    width, height = max(across, 1) * wide + 0.1, 0.4 + down * high + 0.6
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.text(width / 2, 0.22, title or "Grad-CAM: evidence for the class named", ha="center", va="center", fontsize=12)
    for place, row in enumerate(rows):
        x, y = 0.1 + place % across * wide, 0.4 + place // across * high
        verdict, wrong = _verdict(row)
        heading = "\n".join([_short(row.name), f"{verdict}, P(fake) = {row.score:.3f}", row.warning]).rstrip()
        axes.text(x, y + 0.03, heading, va="top", fontsize=9, color=COLOURS[1] if wrong else "black")
        _draw_tiles(axes, row, x, y + head)
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    bar = figure.add_axes((0.3, 0.4 / height, 0.4, 0.1 / height))
    figure.colorbar(ScalarMappable(Normalize(0, 1), HEAT), cax=bar, orientation="horizontal", ticks=[0, 0.5, 1])
    bar.tick_params(labelsize=8)
    bar.set_xlabel("evidence, 1 = strongest place of that picture; white line = forged area", fontsize=8.5, labelpad=1)
    return to_png(figure)


def photo_and_heat(row: PanelRow) -> NDArray[np.uint8]:
    """The photo with, at its right, the heat laid over it in grey: (S, 2 S, 3) RGB."""
    return np.concatenate([row.photo, _overlay(row)[1].astype(np.uint8)], axis=1)


def _overlay(row: PanelRow) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The heat in colours, and laid over the photo in grey: two of (S, S, 3), 0..255."""
    heat = np.zeros_like(row.heat) if row.flat else row.heat
    colours = 255 * np.asarray(colormaps[HEAT](heat))[..., :3]
    weight = np.where(row.flat, 0, 0.1 + 0.65 * heat)[..., None]
    return colours, (1 - weight) * row.photo.mean(axis=2, keepdims=True) + weight * colours


def _draw_tiles(axes: Axes, row: PanelRow, x: float, y: float) -> None:
    """Photo, heat and overlay from (x, y) on, in inches."""
    colours, overlay = _overlay(row)
    lefts = [x + i * (TILE + GAP) for i in range(3)]
    tiles = (row.photo, colours.astype(np.uint8), overlay.astype(np.uint8))
    for left, tile in zip(lefts, tiles, strict=True):
        axes.imshow(tile, extent=(left, left + TILE, y + TILE, y), aspect="auto")
    if row.flat:
        flat = f"flat map:\nno place speaks\nfor {CLASSES[row.target]}"
        axes.text(lefts[1] + TILE / 2, y + TILE / 2, flat, color="white", ha="center", va="center", fontsize=10)
    else:
        box = {"facecolor": "black", "alpha": 0.6, "edgecolor": "none", "pad": 1.5}
        axes.text(lefts[1] + 0.07, y + TILE - 0.08, f"for {CLASSES[row.target]}", color="white", fontsize=8.5, bbox=box)
    if row.mask is not None and row.mask.any() and not row.mask.all():
        centres = (np.arange(len(row.mask)) + 0.5) / len(row.mask) * TILE
        for left in lefts[2:] if row.flat else lefts[1:]:
            for colour, line in (("black", 2.6), ("white", 1.3)):
                axes.contour(left + centres, y + centres, row.mask, levels=[0.5], colors=[colour], linewidths=line)


def _verdict(row: PanelRow) -> tuple[str, bool]:
    """What to say of the row, and whether the network was wrong."""
    called = FAKE if row.score >= row.threshold else REAL
    if row.label is None:
        return f"called {CLASSES[called]}", False
    wrong = called != row.label
    return f"{'WRONG' if wrong else 'right'}: {CLASSES[row.label]}, called {CLASSES[called]}", wrong


def _drawable(split: Predictions) -> bool:
    return metrics.or_none(lambda: metrics.roc_auc(split.scores, split.labels)) is not None


def _why_not(split: Predictions) -> str:
    present = [name for label, name in enumerate(CLASSES) if np.any(split.labels == label)]
    if not present:
        return "no pictures"
    return f"only {present[0]}s, n = {len(split):,}" if len(present) == 1 else "scores that are not finite"


def _n(split: Predictions) -> str:
    fakes = int(np.sum(split.labels == FAKE))
    return f"{len(split) - fakes:,} real + {fakes:,} fake"


def or_nan(value: float | None) -> float:
    """For matplotlib, to which NaN is a gap."""
    return math.nan if value is None else value


def style_of(index: int) -> tuple[str, str | tuple[int, tuple[int, ...]]]:
    """Colour and dashes of the line with this number."""
    return COLOURS[index % len(COLOURS)], DASHES[index % len(DASHES)]


def _short(name: str, most: int = 56) -> str:
    return name if len(name) <= most else "..." + name[3 - most :]


def _drawable_text(text: str) -> str:
    """Matplotlib's fonts take no lone surrogates, as which Python keeps bytes of a file name that are no UTF-8."""
    return text.encode(errors="backslashreplace").decode()


def name_axes(axes: Axes, title: str, x: str, y: str) -> None:
    """Title, names of both axes, and a faint grid."""
    axes.set_title(title, fontsize=12)
    axes.set_xlabel(x, fontsize=11)
    axes.set_ylabel(y, fontsize=11)
    axes.grid(alpha=0.25)


def legend_below(figure: Figure, axes: Axes, columns: int = 1) -> None:
    """One legend under the whole figure, of what is drawn in `axes`."""
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside lower center", frameon=False, fontsize=10, ncols=columns
    )


def to_png(figure: Figure) -> bytes:
    """The figure as a PNG file. A name that is no UTF-8 is shown with its odd bytes spelled out."""
    numbers = {label for tick in figure.findobj(Tick) for label in (tick.label1, tick.label2)}
    for text in figure.findobj(Text):
        if text not in numbers:
            text.set_parse_math(False)  # a name may hold two dollars, and is no formula
            text.set_text(_drawable_text(text.get_text()))
    figure.set_dpi(DPI)
    canvas = FigureCanvasAgg(figure)  # becomes the figure's canvas: no backend is chosen, none is needed
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)  # a box stands for such a letter
        # drawn once: `savefig` draws, and finds the layout, twice
        canvas.draw()  # type: ignore[no-untyped-call]
    target = io.BytesIO()
    pixels = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
    how = {"compress_level": 4}  # half the time of the usual 6, files 5 % larger
    imsave(target, pixels, format="png", dpi=DPI, pil_kwargs=how)
    return target.getvalue()
