"""The interactive plots of a study: one HTML page with plotly inside it, that opens by itself without a network."""

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots

from dftrack.learning.figures import COLOURS, GREY
from dftrack.learning.search_figures import BEST, STYLES, Dimension, best_so_far, last_value, time_spans
from dftrack.study.importance import METHODS, Importance
from dftrack.study.naming import trial_name
from dftrack.study.records import Record

SYMBOLS = {
    "complete": "circle",
    "pruned": "square-open",
    "paused": "diamond-open",
    "running": "triangle-up-open",
    "failed": "x",
}
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 1.5rem auto; max-width: 1180px; padding: 0 1rem; color: #222; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin: 2rem 0 0.2rem; } p { margin: 0.2rem 0; color: #555; }
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What the plots of one study show."""

    name: str
    metric: str
    maximize: bool
    records: tuple[Record, ...]
    dimensions: tuple[Dimension, ...]
    rungs: tuple[int, ...]
    reached: Mapping[int, Sequence[Record]]  # rung -> the trials that can be compared there; only rungs with some
    winner: int | None  # number of the trial
    now: datetime

    @property
    def has_values(self) -> bool:
        return any(math.isfinite(value) for record in self.records for value in record.curve.values())

    @property
    def has_started(self) -> bool:
        return any(record.started is not None for record in self.records)


@dataclass(frozen=True, slots=True)
class _Section:
    key: str
    title: str
    words: str
    figure: Any  # plotly's; None: it cannot be drawn


def page(scene: Scene, found: Sequence[Importance]) -> str:
    """The whole page."""
    sections = [_history(scene), _curves(scene), _importance(scene, found)]
    sections += [_parallel(scene, rung) for rung in scene.reached] + [_slices(scene, rung) for rung in scene.reached]
    sections.append(_timeline(scene))
    title = f"Study {html.escape(scene.name)}: {len(scene.records)} trials, {html.escape(scene.metric)}"
    body = "\n".join(map(_write, sections))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>\n'
        f"<script>{get_plotlyjs()}</script></head>\n<body><h1>{title}</h1>\n"
        "<p>Hover for a trial's settings; drag to zoom, double-click to go back; click a legend to hide.</p>\n"
        f"{body}\n</body></html>\n"
    )


def _write(section: _Section) -> str:
    head = f'<h2 id="{section.key}-title">{html.escape(section.title)}</h2>\n<p>{html.escape(section.words)}</p>\n'
    if section.figure is None:
        return head
    section.figure.update_layout(template="plotly_white", font={"size": 13})
    config = {"displaylogo": False, "responsive": True}
    return head + str(
        section.figure.to_html(full_html=False, include_plotlyjs=False, div_id=section.key, config=config)
    )


def _history(scene: Scene) -> _Section:
    title = "Values by trial"
    if not scene.records:
        return _Section("history", title, "There are no trials yet.", None)
    figure = go.Figure()
    for status, (colour, _, _, words) in STYLES.items():
        shown = [record for record in scene.records if record.status == status and math.isfinite(last_value(record))]
        if shown:
            figure.add_scatter(
                x=[record.number for record in shown],
                y=[last_value(record) for record in shown],
                mode="markers",
                marker={"color": colour, "size": 10, "symbol": SYMBOLS[status]},
                name=words,
                text=[_hover(record) for record in shown],
                hovertemplate="%{text}<extra></extra>",
            )
    if line := best_so_far(scene.records, scene.maximize):
        x, y = zip(*line, (scene.records[-1].number, line[-1][1]), strict=True)
        figure.add_scatter(x=x, y=y, mode="lines", line={"color": BEST, "shape": "hv"}, name="best trained to the end")
    figure.update_layout(height=430, xaxis_title="trial", yaxis_title=_text(scene.metric), margin={"t": 20})
    missing = [str(r.number) for r in scene.records if not math.isfinite(last_value(r))]
    words = (
        f"Without any value: trial {', '.join(missing[:20])}{', ...' if len(missing) > 20 else ''}." if missing else ""
    )
    return _Section("history", title, words, figure)


def _curves(scene: Scene) -> _Section:
    title = "Learning curves"
    if not scene.has_values:
        return _Section("curves", title, "No trial has a value yet.", None)
    figure = go.Figure()
    named: set[str] = set()
    for record in sorted(scene.records, key=lambda record: record.status == "complete"):
        if not record.curve:
            continue
        epochs = sorted(record.curve)
        colour, _, _, words = STYLES[record.status]
        figure.add_scatter(
            x=epochs,
            y=[_finite(record.curve[epoch]) for epoch in epochs],
            mode="lines+markers",
            line={"color": colour, "width": 2.5 if record.status == "complete" else 1.2},
            name=words.partition(":")[0],
            legendgroup=record.status,
            showlegend=record.status not in named,
            text=[_hover(record)] * len(epochs),
            hovertemplate="epoch %{x}: %{y:.4f}<br>%{text}<extra></extra>",
        )
        named.add(record.status)
    for rung in scene.rungs[:-1]:
        figure.add_vline(x=rung, line_dash="dot", line_color=GREY)
    figure.update_layout(height=450, xaxis_title="epoch", yaxis_title=_text(scene.metric), margin={"t": 20})
    rungs = ", ".join(map(str, scene.rungs[:-1]))
    return _Section("curves", title, f"Dotted: the rungs, after epoch {rungs}." if rungs else "", figure)


def _importance(scene: Scene, found: Sequence[Importance]) -> _Section:
    title = "Which settings mattered"
    defined = [item for item in found if item.shares]
    words = [f"{item.title}: {item.reason}." for item in found if not item.shares]
    if not defined:
        return _Section("importance", title, " ".join(words), None)
    words.insert(0, "Two methods; where they disagree, believe neither. PED-ANOVA is unreliable with few trials.")
    names = [dimension.name for dimension in scene.dimensions]
    figure = make_subplots(1, len(defined), shared_yaxes=True, subplot_titles=[_text(item.title) for item in defined])
    for column, item in enumerate(defined, 1):
        for index, method in enumerate(METHODS):
            shares = item.shares.get(method, {})
            figure.add_bar(
                x=[shares.get(name) for name in names],
                y=[_text(name) for name in names],
                orientation="h",
                name=method,
                legendgroup=method,
                showlegend=column == 1,
                marker_color=COLOURS[index],
                hovertemplate="%{y}: %{x:.3f}",
                row=1,
                col=column,
            )
    figure.update_xaxes(range=[0, 1], title="share of importance")
    figure.update_yaxes(autorange="reversed")
    figure.update_layout(height=170 + 60 * len(names), barmode="group", margin={"t": 40})
    return _Section("importance", title, " ".join(words), figure)


def _parallel(scene: Scene, rung: int) -> _Section:
    shown = scene.reached[rung]
    axes = [_parallel_axis(dimension, shown) for dimension in scene.dimensions]
    values = [record.curve[rung] for record in shown]
    low, high = min(values), max(values)
    axes.append({"label": _text(scene.metric), "values": values, "range": [low, high if high > low else low + 1e-9]})
    line = {"color": values, "colorscale": "Viridis", "showscale": True, "cmin": low, "cmax": axes[-1]["range"][1]}
    figure = go.Figure(go.Parcoords(dimensions=axes, line=line, labelangle=0, labelside="top"))
    figure.update_layout(height=430, margin={"t": 60, "l": 90, "r": 60})
    words = f"{len(shown)} trials that reached epoch {rung}. Drag along an axis to pick trials."
    return _Section(f"parallel-{rung}", f"Parallel coordinates, values after epoch {rung}", words, figure)


def _parallel_axis(dimension: Dimension, shown: Sequence[Record]) -> dict[str, Any]:
    places = [dimension.place(record.params[dimension.name]) for record in shown]
    label = _text(dimension.name)
    if dimension.options is not None:
        marks = list(range(len(dimension.options)))
        return {"label": label, "values": places, "tickvals": marks, "ticktext": list(map(_text, dimension.options)),
                "range": [0, max(1, len(marks) - 1)]}  # fmt: skip
    low, high = dimension.low, dimension.high if dimension.high > dimension.low else dimension.low + 1e-9
    if not dimension.log:
        return {"label": label, "values": places, "range": [low, high]}
    ends = [math.log10(low), math.log10(high)]
    ticks = [ends[0] + (ends[1] - ends[0]) * part / 4 for part in range(5)]
    return {"label": label, "values": [math.log10(place) for place in places], "range": ends, "tickvals": ticks,
            "ticktext": [f"{10**tick:.2g}" for tick in ticks]}  # fmt: skip


def _slices(scene: Scene, rung: int) -> _Section:
    shown = scene.reached[rung]
    columns = min(4, len(scene.dimensions))
    rows = math.ceil(len(scene.dimensions) / columns)
    figure = make_subplots(rows, columns, shared_yaxes=True, horizontal_spacing=0.03, vertical_spacing=0.18)
    for index, dimension in enumerate(scene.dimensions):
        row, column = divmod(index, columns)
        at = {"row": row + 1, "col": column + 1}
        figure.add_scatter(
            x=[dimension.place(record.params[dimension.name]) for record in shown],
            y=[record.curve[rung] for record in shown],
            mode="markers",
            marker={
                "color": [record.number for record in shown],
                "colorscale": "Cividis",
                "reversescale": True,
                "size": 9,
                "line": {"width": 0.5, "color": "#333"},
                "showscale": index == 0,
                "colorbar": {"title": "trial"},
            },
            text=[_hover(record) for record in shown],
            hovertemplate="%{y:.4f}<br>%{text}<extra></extra>",
            showlegend=False,
            **at,
        )
        kind = "log" if dimension.log else "linear"
        figure.update_xaxes(title=_text(dimension.name), type=kind, range=_range(dimension), **at)
        if dimension.options is not None:
            ticks = list(range(len(dimension.options)))
            names = list(map(_text, dimension.options))
            figure.update_xaxes(tickvals=ticks, ticktext=names, **at)
        if column == 0:
            figure.update_yaxes(title=_text(scene.metric), **at)
    figure.update_xaxes(exponentformat="power")
    figure.update_layout(height=330 * rows, margin={"t": 20})
    words = f"{len(shown)} trials that reached epoch {rung}; the darker, the later."
    return _Section(f"slices-{rung}", f"Settings one by one, values after epoch {rung}", words, figure)


def _range(dimension: Dimension) -> list[float]:
    """The whole range that was searched and a little more, as plotly wants it: of a logarithmic axis the exponents."""
    if dimension.options is not None:
        return [-0.5, len(dimension.options) - 0.5]
    low, high = (math.log10(end) if dimension.log else end for end in (dimension.low, dimension.high))
    margin = (high - low) * 0.05 or 0.5
    return [low - margin, high + margin]


def _timeline(scene: Scene) -> _Section:
    title = "Timeline"
    if not scene.has_started:
        return _Section("timeline", title, "No trial has started yet.", None)
    figure = go.Figure()
    spans = time_spans(scene.records, scene.now)
    for status, (colour, _, _, words) in STYLES.items():
        shown = [span for span in spans if span[0].status == status]
        if shown:
            figure.add_bar(
                y=[record.number for record, _, _ in shown],
                x=[minutes for _, _, minutes in shown],
                base=[start for _, start, _ in shown],
                orientation="h",
                width=0.75,
                marker_color=colour,
                name=words.partition(":")[0],
                text=[_hover(record) for record, _, _ in shown],
                textposition="none",
                hovertemplate="%{x:.1f} min<br>%{text}<extra></extra>",
            )
    figure.update_yaxes(autorange="reversed", title="trial")
    figure.update_xaxes(title="minutes since the first trial began")
    figure.update_layout(height=min(1400, 200 + 16 * len(spans)), barmode="overlay", margin={"t": 20})
    return _Section("timeline", title, "From a trial's beginning to its end, the waiting at rungs included.", figure)


def _hover(record: Record) -> str:
    value = last_value(record)
    ended = f"{record.status}: {value:.4f} after epoch {record.epoch}" if math.isfinite(value) else record.status
    why = f"<br>{_text(record.reason[:120])}" if record.reason else ""
    return f"{_text(trial_name(record.number, record.params))}<br>{ended}{why}"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _text(text: str) -> str:
    """Text as plotly shows it literally: it reads a little HTML."""
    return html.escape(text)
