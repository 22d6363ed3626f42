"""A search in pictures: trials -> PNG bytes. With `figures` the only place that knows matplotlib; no global state."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol, TypeVar

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from dftrack.config import Value
from dftrack.learning.figures import COLOURS, GREY, name_axes, to_png

# Status of a trial -> colour, marker, whether it is filled, and what to call it.
STYLES: Mapping[str, tuple[str, str, bool, str]] = {
    "complete": (COLOURS[0], "o", True, "trained to the end"),
    "pruned": (COLOURS[4], "s", False, "pruned: its last value"),
    "paused": (COLOURS[5], "D", False, "paused: waits at a rung"),
    "running": (COLOURS[2], "^", False, "running: its last value"),
    "failed": (COLOURS[1], "x", True, "failed"),
}
BEST = "#000000"
HEAT = "viridis"
ORDER = "cividis_r"  # of the trials: the darker, the later


class Trial(Protocol):
    """What is drawn of a trial."""

    @property
    def number(self) -> int: ...
    @property
    def status(self) -> str: ...  # one of STYLES
    @property
    def params(self) -> Mapping[str, Value]: ...  # dotted name -> value
    @property
    def curve(self) -> Mapping[int, float]: ...  # epoch, from 1 -> value of the metric
    @property
    def value(self) -> float | None: ...
    @property
    def started(self) -> datetime | None: ...
    @property
    def ended(self) -> datetime | None: ...


T = TypeVar("T", bound=Trial)


@dataclass(frozen=True, slots=True)
class Dimension:
    """A searched setting as an axis."""

    name: str
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    options: tuple[str, ...] | None = None  # a choice: each value in words

    def place(self, value: Value) -> float:
        """Where a value lies, in the axis' own numbers: a choice by its place in the list. NaN: nowhere on it."""
        if self.options is not None:
            return float(self.options.index(str(value))) if str(value) in self.options else math.nan
        number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
        return number if number > 0 or not self.log else math.nan

    def share(self, value: Value) -> float:
        """The same from 0 (low) to 1 (high), over the logarithm if `log`."""
        if self.options is not None:
            return self.place(value) / max(1, len(self.options) - 1)
        ends = [math.log(n) if self.log else n for n in (self.low, self.high)]
        at = self.place(value)
        at = math.log(at) if self.log and at > 0 else at
        return (at - ends[0]) / (ends[1] - ends[0]) if ends[1] > ends[0] else 0.5


def last_value(trial: Trial) -> float:
    """The result, or the last finite value of the curve; NaN if there is none."""
    if trial.value is not None and math.isfinite(trial.value):
        return trial.value
    finite = [epoch for epoch, value in trial.curve.items() if math.isfinite(value)]
    return trial.curve[max(finite)] if finite else math.nan


def best_so_far(trials: Sequence[Trial], maximize: bool) -> list[tuple[int, float]]:
    """(number, best result up to it) for every trial that was trained to the end, by number."""
    line: list[tuple[int, float]] = []
    for trial in sorted(trials, key=lambda trial: trial.number):
        if trial.status == "complete" and math.isfinite(last_value(trial)):
            value = last_value(trial)
            line.append((trial.number, (max if maximize else min)(value, line[-1][1]) if line else value))
    return line


def search_history(trials: Sequence[Trial], metric: str, *, maximize: bool) -> bytes:
    """Every trial's value by its number, and the best so far among those trained to the end."""
    figure = Figure(figsize=(9, 4.4), layout="constrained")
    axes = figure.add_subplot()
    for status, (colour, marker, filled, words) in STYLES.items():
        shown = [trial for trial in trials if trial.status == status]
        if not shown:
            continue
        x = [trial.number for trial in shown]
        if status == "failed":  # at the foot: a failure has no result
            axes.plot(x, [0.02] * len(x), marker, color=colour, transform=axes.get_xaxis_transform(),
                      clip_on=False, label=f"{words} ({len(x)})", markersize=8, markeredgewidth=2)  # fmt: skip
            continue
        face = colour if filled else "white"
        y = [last_value(trial) for trial in shown]
        axes.plot(x, y, marker, color=colour, markerfacecolor=face, markersize=7, label=f"{words} ({len(x)})", zorder=3)
    if line := best_so_far(trials, maximize):
        last = max(trial.number for trial in trials)
        x, y = [number for number, _ in line] + [last], [value for _, value in line] + [line[-1][1]]
        axes.step(x, y, where="post", color=BEST, linewidth=1.2, label=f"best trained to the end: {y[-1]:.4f}")
    name_axes(axes, "", "trial", metric)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(y=0.12)
    figure.legend(loc="outside lower center", frameon=False, fontsize=9.5, ncols=3)
    return to_png(figure)


def search_curves(trials: Sequence[Trial], metric: str, rungs: Sequence[int]) -> bytes:
    """Every trial's value by epoch; the rungs are dotted lines."""
    figure = Figure(figsize=(9, 4.8), layout="constrained")
    axes = figure.add_subplot()
    for rung in rungs[:-1]:
        axes.axvline(rung, color=GREY, linestyle=":", linewidth=1.2)
    for status in ("failed", "pruned", "running", "paused", "complete"):  # the last ones on top
        colour, marker, filled, words = STYLES[status]
        label = words.partition(":")[0]
        for trial in (trial for trial in trials if trial.status == status and trial.curve):
            epochs = sorted(trial.curve)
            face = colour if filled else "white"
            axes.plot(epochs, [trial.curve[epoch] for epoch in epochs], marker=marker, markersize=4.5, color=colour,
                      markerfacecolor=face, linewidth=2 if status == "complete" else 1.1,
                      alpha=1 if status == "complete" else 0.75, label=label)  # fmt: skip
            label = "_again"
    if len(rungs) > 1:
        axes.plot([], [], color=GREY, linestyle=":", label=f"rungs: {', '.join(map(str, rungs[:-1]))}")
    name_axes(axes, "", "epoch", metric)
    axes.set_xlim(0.5, rungs[-1] + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside lower center", frameon=False, fontsize=10, ncols=6)
    return to_png(figure)


def search_slices(shown: Mapping[int, Sequence[Trial]], dimensions: Sequence[Dimension], metric: str) -> bytes:
    """The metric over each setting, a row for each rung: only values after the same epoch can be compared.

    shown: epoch -> the trials with a value after it, at least one.
    """
    figure = Figure(figsize=(max(5.0, 2.9 * len(dimensions) + 0.8), 2.7 * len(shown) + 0.5), layout="constrained")
    grid = figure.subplots(len(shown), len(dimensions), squeeze=False, sharey="row")
    shade = Normalize(0, max(1, *(trial.number for trials in shown.values() for trial in trials)))
    for panels, (rung, trials) in zip(grid, shown.items(), strict=True):
        values, numbers = [trial.curve[rung] for trial in trials], [trial.number for trial in trials]
        panels[0].set_ylabel(f"{metric}\nafter epoch {rung} (n = {len(trials)})", fontsize=9.5)
        for axes, dimension in zip(panels, dimensions, strict=True):
            x = [dimension.place(trial.params[dimension.name]) for trial in trials]
            axes.scatter(x, values, c=numbers, cmap=ORDER, norm=shade, s=34, edgecolors="#333333", linewidths=0.5)
            _scale(axes, dimension)
            axes.grid(alpha=0.25)
    for axes, dimension in zip(grid[-1], dimensions, strict=True):
        axes.set_xlabel(dimension.name, fontsize=10)
    bar = figure.colorbar(ScalarMappable(shade, ORDER), ax=list(grid.flat), fraction=0.03, pad=0.01, label="trial")
    bar.locator = MaxNLocator(integer=True, nbins=6)
    bar.update_ticks()
    return to_png(figure)


def search_parallel(
    shown: Sequence[Trial], dimensions: Sequence[Dimension], metric: str, epoch: int, best: int | None
) -> bytes:
    """Each trial as a line through its settings, coloured by the metric after `epoch`; the winner is thick.

    shown: at least one trial, each with a value after `epoch`. best: the number of the winner, if there is one.
    """
    values = [trial.curve[epoch] for trial in shown]
    shade = Normalize(min(values), max(values) if max(values) > min(values) else min(values) + 1e-9)
    figure = Figure(figsize=(max(6.0, 2.2 * len(dimensions) + 2.4), 4.6), layout="constrained")
    axes = figure.add_subplot()
    places = range(len(dimensions) + 1)
    for trial in sorted(shown, key=lambda trial: trial.number == best):
        heights = [dimension.share(trial.params[dimension.name]) for dimension in dimensions]
        heights.append(float(shade(trial.curve[epoch])))
        if trial.number == best:
            axes.plot(places, heights, color=COLOURS[1], linewidth=3.4, label=f"the winner, trial {best}", zorder=4)
        else:
            axes.plot(places, heights, color=colormaps[HEAT](shade(trial.curve[epoch])), linewidth=1.3, alpha=0.85)
    for place, dimension in enumerate(dimensions):
        axes.axvline(place, color="#333333", linewidth=1)
        for height, words in _marks(dimension):
            box = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.8}
            axes.annotate(
                words,
                (place, height),
                (4, 0),
                textcoords="offset points",
                fontsize=8.5,
                va="center",
                bbox=box,
                zorder=5,
            )
    axes.axvline(len(dimensions), color="#333333", linewidth=1)
    axes.set_xticks(places, [*(dimension.name for dimension in dimensions), metric], fontsize=9.5)
    axes.set_xlim(-0.15, len(dimensions) + 0.05)
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_visible(False)
    figure.colorbar(
        ScalarMappable(shade, HEAT), ax=axes, label=f"{metric} after epoch {epoch} (n = {len(shown)})", pad=0.01
    )
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside lower center", frameon=False, fontsize=10)
    return to_png(figure)


def search_timeline(trials: Sequence[Trial], now: datetime) -> bytes:
    """When each trial began and ended, the waiting at rungs included; those not ended reach up to `now`.

    trials: at least one that has started.
    """
    spans = time_spans(trials, now)
    figure = Figure(figsize=(9, min(14.0, max(3.0, 0.17 * len(spans) + 1.3))), layout="constrained")
    axes = figure.add_subplot()
    for trial, start, minutes in spans:
        axes.barh(trial.number, minutes, left=start, height=0.75, color=STYLES[trial.status][0])
    present = [status for status in STYLES if any(trial.status == status for trial, _, _ in spans)]
    words = {status: STYLES[status][3].partition(":")[0] for status in present}
    handles = [Patch(color=STYLES[status][0], label=words[status]) for status in present]
    name_axes(axes, "", "minutes since the first trial began (waiting at rungs included)", "trial")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.invert_yaxis()
    figure.legend(handles=handles, loc="outside lower center", frameon=False, fontsize=10, ncols=5)
    return to_png(figure)


def time_spans(trials: Sequence[T], now: datetime) -> list[tuple[T, float, float]]:
    """(trial, minutes from the first start to its own, minutes it took so far) of those that have started."""
    begun = [(trial, trial.started) for trial in trials if trial.started is not None]
    first = min((started for _, started in begun), default=now)
    return [
        (trial, (started - first).total_seconds() / 60, max(0.0, ((trial.ended or now) - started).total_seconds() / 60))
        for trial, started in begun
    ]


def search_importance(
    panels: Sequence[tuple[str, Mapping[str, Mapping[str, float]], str]], names: Sequence[str]
) -> bytes:
    """Shares of importance by method, a panel for each rung: (title, method -> setting -> share, why undefined)."""
    height = max(2.6, 0.55 * len(names) + 1.2)
    figure = Figure(figsize=(max(6.4, 4.3 * len(panels)), height), layout="constrained")
    for index, (axes, (title, shares, reason)) in enumerate(
        zip(figure.subplots(1, len(panels), squeeze=False, sharey=True)[0], panels, strict=True)
    ):
        axes.set_yticks(range(len(names)), names, fontsize=10)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlim(0, 1.12)
        axes.set_title(title, fontsize=10.5)
        axes.set_xlabel("share of importance", fontsize=10)
        axes.grid(alpha=0.25, axis="x")
        if not shares:
            axes.text(0.5, 0.5, reason.replace(": ", ":\n").replace(", ", ",\n"), transform=axes.transAxes, ha="center",
                      va="center", fontsize=10)  # fmt: skip
        for nth, (method, found) in enumerate(shares.items()):
            at = np.arange(len(names)) + (nth - 0.5) * 0.36
            axes.barh(at, [found.get(name, 0.0) for name in names], height=0.34, color=COLOURS[nth], label=method)
            for y, name in zip(at, names, strict=True):
                words = f"{found[name]:.2f}" if name in found else "undefined"
                axes.text(found.get(name, 0.0) + 0.015, y, words, va="center", fontsize=8.5)
        if shares and not any(shares for _, shares, _ in panels[:index]):
            figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", frameon=False, ncols=2)
    return to_png(figure)


def _scale(axes: Axes, dimension: Dimension) -> None:
    """Make the x axis show the whole range that was searched."""
    if dimension.options is not None:
        axes.set_xticks(range(len(dimension.options)), dimension.options, fontsize=9)
        axes.set_xlim(-0.5, len(dimension.options) - 0.5)
        return
    if dimension.log:
        axes.set_xscale("log")
        margin = (dimension.high / dimension.low) ** 0.04 if dimension.high > dimension.low else 1.1
        axes.set_xlim(dimension.low / margin, dimension.high * margin)
        return
    margin = (dimension.high - dimension.low) * 0.04 or 0.5
    axes.set_xlim(dimension.low - margin, dimension.high + margin)


def _marks(dimension: Dimension) -> list[tuple[float, str]]:
    """(height from 0 to 1, words) beside an axis of the parallel coordinates."""
    if dimension.options is not None:
        return [(dimension.share(option), option) for option in dimension.options]
    if dimension.high == dimension.low:
        return [(0.5, f"{dimension.low:g}")]
    toward: Callable[[float], float] = (lambda value: math.log(value)) if dimension.log else (lambda value: value)
    low, high = toward(dimension.low), toward(dimension.high)
    middle = [low + (high - low) * part for part in (0, 0.25, 0.5, 0.75, 1)]
    return [(part / 4, f"{math.exp(at) if dimension.log else at:.2g}") for part, at in enumerate(middle)]
