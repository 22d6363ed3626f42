"""A study in plots: one interactive page that needs nothing from the network, and a PNG of each plot.

Optuna's own plots show trials that were trained to the end: with successive halving 3 of 30. These show them all, and
compare only values that were reached after the same epoch.
"""

from collections.abc import Callable, Sequence
from datetime import datetime

from dftrack.learning import search_figures as figures
from dftrack.learning.search_figures import Dimension
from dftrack.study.definition import StudyDefinition
from dftrack.study.importance import Importance, comparable, importances
from dftrack.study.interactive import Scene, page
from dftrack.study.opening import OpenStudy
from dftrack.study.records import Reader, Record
from dftrack.study.space import Choice, Space
from dftrack.study.summary import best_record

PAGE = "study/plots.html"
HISTORY, CURVES, SLICES = "study/history.png", "study/curves.png", "study/slices.png"
PARALLEL, IMPORTANCE, TIMELINE = "study/parallel.png", "study/importance.png", "study/timeline.png"


def plots(
    study: OpenStudy, definition: StudyDefinition, *, check: Callable[[], None] = lambda: None
) -> dict[str, bytes]:
    """Artifact path -> content: `study/plots.html`, and of every plot that can be drawn a PNG.

    What cannot be drawn yet (no trial, no value) is left out, and the page says why. Reads the storage once.
    check: asked between two pictures; what it raises ends the drawing.
    Raises StoreError if the storage fails for longer than its patience.
    """
    records = study.storage.patiently(Reader(study.storage.backend, study.study_id).read)
    return draw(records, definition, name=study.name, check=check)


def draw(
    records: Sequence[Record],
    definition: StudyDefinition,
    *,
    name: str = "",
    now: datetime | None = None,
    check: Callable[[], None] = lambda: None,
) -> dict[str, bytes]:
    """The same from records. name: of the study, if it is not the definition's; now: where open bars end."""
    scene = _scene(records, definition, name or definition.name, now or datetime.now())
    found = importances(records, definition)
    drawn = {}
    for path, make in _pictures(scene, found):
        check()
        if make is not None:
            drawn[path] = make()
    check()
    return {PAGE: page(scene, found).encode(), **drawn}


def dimensions(space: Space) -> tuple[Dimension, ...]:
    """The space as axes."""
    return tuple(
        Dimension(name, options=tuple(map(str, dimension.options)))
        if isinstance(dimension, Choice)
        else Dimension(name, dimension.low, dimension.high, dimension.log)
        for name, dimension in space.items()
    )


def _scene(records: Sequence[Record], definition: StudyDefinition, name: str, now: datetime) -> Scene:
    winner = best_record(records, definition.direction)
    return Scene(
        name=name,
        metric=definition.metric,
        maximize=definition.direction == "maximize",
        records=tuple(records),
        dimensions=dimensions(definition.space),
        rungs=definition.rungs,
        reached={rung: shown for rung in definition.rungs if (shown := comparable(records, definition, rung))},
        winner=None if winner is None else winner.number,
        now=now,
    )


def _pictures(scene: Scene, found: Sequence[Importance]) -> list[tuple[str, Callable[[], bytes] | None]]:
    """Artifact path, and how to draw it; None: there is nothing to draw."""
    records, metric, reached = scene.records, scene.metric, scene.reached
    first = min(reached, default=0)
    panels = [(item.title, item.shares, item.reason) for item in found if item.shares] or [
        (item.title, item.shares, item.reason) for item in found[:1]
    ]
    names = [dimension.name for dimension in scene.dimensions]
    return [
        (HISTORY, (lambda: figures.search_history(records, metric, maximize=scene.maximize)) if records else None),
        (CURVES, (lambda: figures.search_curves(records, metric, scene.rungs)) if scene.has_values else None),
        (SLICES, (lambda: figures.search_slices(reached, scene.dimensions, metric)) if reached else None),
        (
            PARALLEL,
            (lambda: figures.search_parallel(reached[first], scene.dimensions, metric, first, scene.winner))
            if reached
            else None,
        ),
        (IMPORTANCE, (lambda: figures.search_importance(panels, names)) if reached else None),
        (TIMELINE, (lambda: figures.search_timeline(records, scene.now)) if scene.has_started else None),
    ]
