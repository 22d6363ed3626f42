"""How far a detector can be trusted, in pictures: robustness, calibration, slices -> PNG bytes. No global state."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dftrack.learning import figures
from dftrack.learning.calibration import Bin
from dftrack.learning.corruption import LEVELS, Robustness
from dftrack.learning.figures import COLOURS, DASHES, GREY
from dftrack.learning.slices import WHOLE, Slice, worst
from dftrack.learning.statistics import Interval

SEVEN = (*COLOURS, "#000000")  # one more of Okabe and Ito's, for the seventh kind
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
CHANCE = 0.5  # AUC of a coin
DOTS = (0, (2, 3))  # of a line to compare with
ROW = 0.27  # inches, the height of a slice


def robustness_curves(found: Robustness) -> bytes:
    """AUC and accuracy over the level of each kind of damage, from the clean pictures (level 0) on."""
    figure = Figure(figsize=(11, 5.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True)
    reals = found.pictures - found.fakes
    majority = max(found.fakes, reals) / found.pictures if found.pictures else None
    aucs = [[outcome.auc for outcome in row] for row in found.damaged.values()]
    accuracies = [[outcome.accuracy for outcome in row] for row in found.damaged.values()]
    _draw_damage(left, found, aucs, found.clean.auc, CHANCE)
    _draw_damage(right, found, accuracies, found.clean.accuracy, majority)
    figures.name_axes(left, "AUC", "strength of the damage (0: none)", "AUC")
    title = f"Accuracy, fake from P(fake) = {found.threshold:.3g} on"
    figures.name_axes(right, title, "strength of the damage (0: none)", "accuracy")
    right.plot([], [], color=GREY, linewidth=1, label="undamaged")
    right.plot([], [], color=GREY, linewidth=1, linestyle=DOTS, label="chance: AUC 0.5, or naming the larger class")
    figure.suptitle(
        f"The same {found.pictures:,} pictures ({reals:,} real + {found.fakes:,} fake), damaged", fontsize=12
    )
    figures.legend_below(figure, right, columns=5)
    return figures.to_png(figure)


def _draw_damage(
    axes: Axes, found: Robustness, rows: Sequence[list[float | None]], clean: float | None, chance: float | None
) -> None:
    """One line for each kind. rows: (kinds, levels)."""
    for index, (kind, row) in enumerate(zip(found.damaged, rows, strict=True)):
        values = [figures.or_nan(value) for value in (clean, *row)]
        axes.plot(
            (0, *LEVELS), values, color=SEVEN[index % len(SEVEN)], linestyle=DASHES[index % len(DASHES)],
            marker=MARKERS[index % len(MARKERS)], markersize=5.5, linewidth=1.8, label=kind.replace("_", " "),
        )  # fmt: skip
    if clean is None and not any(value is not None for row in rows for value in row):
        axes.text(0.5, 0.5, "undefined for these pictures", transform=axes.transAxes, ha="center", color=GREY)
    for value, dashes in ((clean, "-"), (chance, DOTS)):
        if value is not None:
            axes.axhline(value, color=GREY, linewidth=1, linestyle=dashes, zorder=1)
    known = [value for row in (*rows, [clean, chance]) for value in row if value is not None]
    axes.set_ylim(min([0.45, *known]) - 0.02, 1.01)
    axes.set_xticks((0, *LEVELS))


def reliability_diagram(
    before: Sequence[Bin], after: Sequence[Bin], ece: float | None, ece_tempered: float | None, split: str
) -> bytes:
    """Share of fakes over P(fake) by bin, and below it how many pictures say so: as scored, and with the temperature.

    before, after: of `calibration.reliability`; `after` is empty if val gave no temperature. ece: expected calibration
    errors, None = undefined. Calibrated scores lie on the diagonal.
    """
    series = [("as scored", before, ece)] + ([("with the temperature of val", after, ece_tempered)] if after else [])
    figure = Figure(figsize=(6.2, 7.0), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=DOTS, label="calibrated")
    for index, (name, bins, error) in enumerate(series):
        filled = [part for part in bins if part.n]
        said = [figures.or_nan(part.mean_score) for part in filled]
        true = [figures.or_nan(part.share_fake) for part in filled]
        colour, dashes = figures.style_of(index)
        label = f"{name}: ECE {'undefined' if error is None else f'{error:.3f}'}"
        upper.plot(said, true, color=colour, linestyle=dashes, linewidth=1.5, label=label)
        shares = [math.sqrt(part.n / max(part.n for part in filled)) for part in filled]
        upper.scatter(
            said, true, s=[10 + 90 * share for share in shares], color=colour, marker=MARKERS[index], zorder=3
        )
        edges = [*(part.low for part in bins), bins[-1].high] if bins else [0.0, 1.0]
        counts = [part.n for part in bins] or [0]
        lower.stairs(counts, edges, color=colour, linestyle=dashes, linewidth=1.8, fill=False)
    if not after:
        upper.plot([], [], " ", label="no temperature: val gives none")
    total = sum(part.n for part in before)
    figures.name_axes(upper, f"{split}: does P(fake) mean what it says? ({total:,} pictures)", "", "share of fakes")
    figures.name_axes(lower, "", "P(fake)", "pictures")
    upper.set_ylim(-0.03, 1.03)
    lower.set_xlim(-0.02, 1.02)
    figures.legend_below(figure, upper)
    return figures.to_png(figure)


def slice_chart(slices: Sequence[Slice]) -> bytes:
    """Accuracy and AUC of each slice with intervals, the whole as a line; the slice that is surely worse is marked.

    slices: of `slices.slice_table`, the whole first.
    """
    flagged = worst(slices) if slices else None
    heights = [-(place + 0.6 * _kinds_before(slices, place)) for place in range(len(slices))]
    high = 1.5 + ROW * (1 - min(heights, default=0))
    figure = Figure(figsize=(10.5, high), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    accuracies = [(part.accuracy, part.accuracy_interval) for part in slices]
    _draw_forest(left, "Accuracy", heights, accuracies, slices.index(flagged) if flagged else None)
    _draw_forest(right, "AUC", heights, [(part.roc_auc, part.roc_auc_interval) for part in slices], None)
    left.set_yticks(heights, [f"{_called(part)} (n = {part.n:,})" for part in slices], fontsize=9.5)
    left.set_ylim(min(heights, default=0) - 0.8, 0.8)
    for axes in (left, right):
        axes.tick_params(axis="y", length=0)
    if flagged:
        left.get_yticklabels()[slices.index(flagged)].set_color(COLOURS[1])
        note = f"Surely worse than the whole: {_called(flagged)}"
    else:
        told = any(part.accuracy_interval for part in slices[1:])
        note = "No slice is surely worse than the whole" if told else "Too few pictures or groups to tell slices apart"
    figure.supxlabel(f"95 % intervals over groups; line: all pictures. {note}.", fontsize=10)
    return figures.to_png(figure)


def _draw_forest(
    axes: Axes,
    title: str,
    heights: Sequence[float],
    rows: Sequence[tuple[float | None, Interval | None]],
    flagged: int | None,
) -> None:
    """A point and its interval in each row, or in words why there is none. rows: the whole first."""
    for place, (height, (value, interval)) in enumerate(zip(heights, rows, strict=True)):
        colour = COLOURS[1] if place == flagged else "black" if place == 0 else COLOURS[0]
        if value is None or interval is None:
            words = "undefined" if value is None else f"{value:.3f}, no interval"
            across = axes.get_yaxis_transform()  # 0 is the left end of the row
            axes.text(0.02, height, words, fontsize=8.5, transform=across, va="center", color=GREY)
            continue
        axes.plot([interval.low, interval.high], [height, height], color=colour, linewidth=2)
        marker = "D" if place == 0 else "X" if place == flagged else "o"
        axes.plot(value, height, marker, color=colour, markersize=7, zorder=3)
    if rows and rows[0][0] is not None:
        axes.axvline(rows[0][0], color=GREY, linewidth=1, zorder=1)
    ends = [interval.low for _, interval in rows if interval]
    axes.set_xlim(max(-0.02, min([0.5, *ends]) - 0.03), 1.02)
    axes.set_title(title, fontsize=12)
    axes.grid(axis="x", alpha=0.25)


def _kinds_before(slices: Sequence[Slice], place: int) -> int:
    """How often the kind changes down to `place`: a gap stands for each."""
    return int(np.sum([slices[i].kind != slices[i - 1].kind for i in range(1, place + 1)]))


def _called(part: Slice) -> str:
    return "all pictures" if part.kind == WHOLE else f"{part.kind}: {part.name}"
