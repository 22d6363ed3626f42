"""The written report of a study: what was searched, what won, whether it is really better, what it cost.

Pure: from a summary of plain values to Markdown and to one self-contained HTML page.
"""

import itertools
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime

from dftrack.config import Value, flatten
from dftrack.document import Block, Commands, Grid, Heading, Picture, Words, to_html, to_markdown
from dftrack.study.definition import StudyDefinition
from dftrack.study.naming import short_value, trial_name
from dftrack.study.records import Record
from dftrack.study.summary import (
    LIMITS,
    Cost,
    FailedFinal,
    FinalTraining,
    StudySummary,
    best_record,
    cost,
    ranking,
    verdict,
)
from dftrack.study.verdict import CONFIDENCE, Spread, Verdict, spread

UNDEFINED = "undefined"
TOP = 10  # trials in the table of the best
SHOWN_METRICS = ("roc_auc", "accuracy", "balanced_accuracy", "eer")  # of the test splits; the rest is in MLflow
CAPTIONS = {
    "history": "Every trial's value by its number, and the best so far. Values at different epochs cannot be compared.",
    "curves": "Learning curves of all trials; dotted: the rungs.",
    "slices": "The metric over each setting, a row for each rung: only values after the same epoch can be compared.",
    "parallel": "Each trial as a line through its settings, coloured by the metric.",
    "importance": "Which settings mattered, by two methods; where they disagree, believe neither.",
    "timeline": "When each trial began and ended, the waiting at rungs included.",
}
PNG = b"\x89PNG\r\n\x1a\n"


def markdown(summary: StudySummary) -> str:
    """The report as GitHub's Markdown."""
    return to_markdown(_blocks(summary, {}))


def html(summary: StudySummary, pictures: Mapping[str, bytes]) -> str:
    """The report as one HTML page that needs nothing else.

    pictures: path -> content, as `dftrack.study.plots.plots` returns them; what is no PNG is passed over.
    """
    return to_html(_blocks(summary, pictures), f"Study {summary.name}")


def _blocks(summary: StudySummary, pictures: Mapping[str, bytes]) -> list[Block]:
    return [
        *_opening(summary),
        *_winner(summary),
        *_comparison(summary),
        *_tests(summary),
        *_spent(summary),
        *_searched(summary),
        *_best(summary),
        *_failures(summary),
        *_pictures(pictures),
        *_going_on(summary),
    ]


def _opening(summary: StudySummary) -> list[Block]:
    records = summary.records
    counts = Counter(record.status for record in records)
    told = ", ".join(f"{counts[s]} {s}" for s in ("complete", "pruned", "failed", "paused", "running") if counts[s])
    done = sum(record.is_ended for record in records)
    times = f"Started {_time(summary.started)}, " + (
        f"ended {_time(summary.ended)}." if summary.ended else "not ended."
    )
    progress = f"{done} of {summary.trials} trials have ended" + (f" ({told})." if told else ".")
    best = best_record(records, summary.definition.direction)
    found = verdict(summary)
    if best is None:
        answer = "No trial has been trained to the end: there is no winner yet."
    elif found.word == "undefined":
        answer = (
            f"The best is {trial_name(best.number, best.params)}. Whether it beats the baseline: {_because(found)}."
        )
    else:
        answer = f"The winner is {trial_name(best.number, best.params)}. Compared with the baseline: {_because(found)}."
    return [Heading(f"Study {summary.name}", 1), Words(answer, key=True), Words(f"{progress} {times}")]


def _because(found: Verdict) -> str:
    return f"{found.word} ({found.reason})"


def _winner(summary: StudySummary) -> list[Block]:
    definition = summary.definition
    best = best_record(summary.records, definition.direction)
    if best is None:
        return []
    run = summary.run_ids.get(best.number)
    value = f"Trial {best.number} reached {definition.metric} {best.value:.4f} after {best.epoch} epochs"
    settings = flatten(definition.config(_known(best.params, definition)))
    rows = [
        (
            name,
            str(value),
            "searched" if name in definition.space else "set by the study" if name in definition.base else "default",
        )
        for name, value in settings.items()
    ]
    return [
        Heading("What won"),
        Words(value + (f" (run {run})." if run else ".")),
        Grid(("setting", "value", "where from"), rows),
    ]


def _known(params: Mapping[str, Value], definition: StudyDefinition) -> dict[str, Value]:
    return {name: value for name, value in params.items() if name in definition.space}


def _comparison(summary: StudySummary) -> list[Block]:
    definition, finals, failed = summary.definition, summary.finals, summary.failed_finals
    if best_record(summary.records, definition.direction) is None:
        return []
    blocks: list[Block] = [Heading("Is it better than the baseline, beyond seed noise?")]
    found = verdict(summary)
    blocks.append(Words(f"{found.word[0].upper()}{found.word[1:]}: {found.reason}."))
    noise = spread([final.val for final in finals])
    low, high = LIMITS.get(definition.metric, (float("-inf"), float("inf")))
    interval = UNDEFINED
    if noise is not None and noise.low is not None and noise.high is not None:
        interval = f"{max(low, noise.low):.4f} to {min(high, noise.high):.4f}"
    rows = [
        ("baseline", _number(summary.baseline)),
        (f"winner, mean of {_share_of(finals, failed)} final trainings", _number(noise.mean if noise else None)),
        ("standard deviation between seeds", _number(noise.sd if noise else None)),
        (f"one more training of the winner, {CONFIDENCE:.0%} prediction interval", interval),
    ]
    blocks.append(Grid(("", definition.metric), rows))
    blocks += _caution(summary, noise)
    if finals:
        blocks.append(
            Grid(("seed", definition.metric, "run"), [(str(f.seed), _number(f.val), f.run_id) for f in finals])
        )
    if failed:
        blocks.append(Words("With these seeds the final training failed; the mean leaves them out:"))
        blocks.append(Grid(("seed", "reason", "run"), [(str(f.seed), f.reason, f.run_id) for f in failed]))
    return blocks


def _share_of(finals: Sequence[FinalTraining], failed: Sequence[FailedFinal]) -> str:
    return f"{len(finals)} of {len(finals) + len(failed)}" if failed else str(len(finals))


def _caution(summary: StudySummary, noise: Spread | None) -> list[Block]:
    """What the numbers cannot say."""
    words = []
    if noise is not None and noise.n >= 2:
        words.append(
            "Source of the interval: Student's t with "
            f"{noise.n - 1} degree{'s' if noise.n > 2 else ''} of freedom, values taken as normal, "
            "the baseline as noisy as the winner."
        )
        if noise.n < 5:
            words.append(f"With {noise.n} final trainings it is wide; more (final_seeds in the study file) narrow it.")
    search_seed = summary.definition.config({}).train.seed
    if any(final.seed == search_seed for final in summary.finals):
        words.append(
            f"Seed {search_seed} is the one the search used: with it the winner was chosen, which flatters it."
        )
    words.append("Choosing by the validation split flatters the winner there; the test splits took no part in it.")
    return [Words(" ".join(words))]


def _tests(summary: StudySummary) -> list[Block]:
    before, after = summary.tests_opened_before, summary.tests_opened_after
    blocks: list[Block] = [Heading("Test splits")]
    if before is None or after is None:
        blocks.append(Words("How often the test splits of this data have been opened is not known."))
    elif after > before:
        caution = "." if before == 0 else ": each further look makes their numbers a little less trustworthy."
        counted = f"For this data: {_times(before)} before this study, {_times(after)} in all{caution}"
        earlier = after - before - 1
        others = f", and {_times(earlier)} for an earlier winner of this study" if earlier else " only"
        blocks.append(Words(f"Opened for the winner{others}. {counted}"))
    else:
        blocks.append(Words(f"Not opened by this study. For this data: {_times(after)} so far."))
    splits = sorted({split for final in summary.finals for split in final.tests})
    if splits:
        rows = [(split, *(_test_cell(summary.finals, split, metric) for metric in SHOWN_METRICS)) for split in splits]
        blocks.append(Grid(("split", *SHOWN_METRICS), rows))
        blocks.append(Words("Mean ± standard deviation over the final trainings that have the number (n)."))
    return blocks


def _times(count: int) -> str:
    return {0: "never", 1: "once", 2: "twice"}.get(count, f"{count} times")


def _test_cell(finals: Sequence[FinalTraining], split: str, metric: str) -> str:
    values = [value for final in finals if (value := final.tests.get(split, {}).get(metric)) is not None]
    found = spread(values)
    if found is None:
        return UNDEFINED
    sd = "" if found.sd is None else f" ± {found.sd:.4f}"
    return f"{found.mean:.4f}{sd} (n = {found.n})"


def _spent(summary: StudySummary) -> list[Block]:
    spent, records, end = cost(summary), summary.records, summary.definition.epochs
    counts = Counter(record.status for record in records)
    rows = [
        ("trials", f"{len(records)} begun of {summary.trials}"),
        *((f"trials {status}", str(counts[status])) for status in ("complete", "pruned", "failed")),
        (
            "epochs trained in the search",
            f"{spent.epochs} of {spent.full_epochs}{_share(spent.epochs, spent.full_epochs)}",
        ),
        ("saved by pruning", f"{spent.saved_epochs} epochs{_share(spent.saved_epochs, spent.full_epochs)}"),
        ("saved by pruning, estimated", _seconds(spent.saved_seconds)),
        ("training time of the search", _seconds(spent.seconds) + _timed(spent, len(records))),
        ("training time of an epoch, mean", _seconds(spent.seconds_per_epoch)),
        ("epochs of the final trainings", str(len(summary.finals) * end)),
        ("training time of the final trainings", _seconds(summary.final_seconds)),
    ]
    if summary.started and summary.ended:
        rows.append(("from start to end", _seconds((summary.ended - summary.started).total_seconds())))
    words = (
        "Training times are summed over all workers. Seconds saved: a pruned trial's missing epochs at its own pace."
    )
    return [Heading("What it cost, and what pruning saved"), Grid(("", ""), rows), Words(words)]


def _share(part: int, whole: int) -> str:
    return f" ({part / whole:.0%})" if whole else ""


def _timed(spent: Cost, trials: int) -> str:
    return f" ({spent.timed} of {trials} trials are timed)" if 0 < spent.timed < trials else ""


def _searched(summary: StudySummary) -> list[Block]:
    definition = summary.definition
    baseline = definition.baseline()
    rows = [(name, str(dimension), str(baseline[name])) for name, dimension in definition.space.items()]
    contest = definition.contest(summary.trials)
    steps = [f"{share} after epoch {rung}" for rung, share in zip(contest.rungs, contest.shares, strict=False)]
    pruning = "none: every trial is trained to the end"
    if steps:
        pruning = f"of all trials {', '.join(steps)} go on, the best by their value"
        if definition.pruning and definition.pruning.spread_over:
            pruning += f", those after epoch {contest.rungs[0]} spread over {definition.pruning.spread_over}"
    words = (
        f"{definition.direction.capitalize()} {definition.metric} after {definition.epochs} epochs. "
        f"Sampler: {definition.sampler}, seed {definition.seed}. Pruning: {pruning}. Data: {summary.data_digest}."
    )
    return [Heading("What was searched"), Words(words), Grid(("setting", "range", "baseline"), rows)]


def _best(summary: StudySummary) -> list[Block]:
    definition = summary.definition
    ranked = ranking(summary.records, definition.direction)
    if not ranked:
        return []
    unfinished = _runners_up(summary, TOP - len(ranked))
    rows = [
        (
            str(record.number),
            record.status,
            _number(record.value if record.status == "complete" else record.curve[record.epoch]),
            str(record.epoch),
            _seconds(summary.seconds.get(record.number)),
            *(_setting(record.params.get(name)) for name in definition.space),
        )
        for record in [*ranked[:TOP], *unfinished]
    ]
    words = "First those trained to the end; then those that came furthest, whose values are of earlier epochs."
    table = Grid(("trial", "status", definition.metric, "epochs", "time", *definition.space), rows)
    return [Heading(f"The top {len(rows)}"), *([Words(words)] if unfinished else []), table]


def _runners_up(summary: StudySummary, count: int) -> list[Record]:
    """The trials not trained to the end that came furthest, and of those that came as far, the best."""
    sign = -1 if summary.definition.direction == "maximize" else 1
    others = [r for r in summary.records if r.status in ("pruned", "paused", "running") and r.curve]
    others.sort(key=lambda r: (-r.epoch, sign * r.curve[r.epoch], r.number))
    return others[: max(0, count)]


def _setting(value: Value) -> str:
    return UNDEFINED if value is None else short_value(value)


def _failures(summary: StudySummary) -> list[Block]:
    failed = [record for record in summary.records if record.status == "failed"]
    if not failed:
        return [Heading("Failures"), Words("No trial failed.")]
    rows = [
        (
            str(record.number),
            str(record.epoch),
            record.reason or "no reason was recorded",
            ", ".join(f"{name} {_setting(value)}" for name, value in record.params.items()),
            summary.run_ids.get(record.number, ""),
        )
        for record in failed
    ]
    return [Heading("Failures"), Grid(("trial", "epochs", "reason", "settings", "run"), rows)]


def _pictures(pictures: Mapping[str, bytes]) -> list[Block]:
    drawn = {
        path.rpartition("/")[2].removesuffix(".png"): content
        for path, content in pictures.items()
        if content.startswith(PNG)
    }
    if not drawn:
        return []
    return [Heading("Pictures"), *(Picture(CAPTIONS.get(name, name), png) for name, png in drawn.items())]


def _going_on(summary: StudySummary) -> list[Block]:
    more = summary.definition.total(summary.trials * 2)
    lines = [
        f"{summary.command}   # if it was stopped: goes on where it was",
        *([f"{summary.command} --trials {more}   # {more} trials in all"] if more > summary.trials else []),
        f"dftrack study status{_options(summary.command, '--study', '--storage', '--store')}",
        f"dftrack ui{_options(summary.command, '--store')}   # every curve and every trial",
        f"dftrack doctor{_options(summary.command, '--storage', '--store')}   # compare Optuna with MLflow",
    ]
    best = best_record(summary.records, summary.definition.direction)
    if best is not None:
        chosen = {**summary.definition.base, **_known(best.params, summary.definition)}
        sets = " ".join(
            f"--set {shlex.quote(f'{name}={value}')}" for name, value in chosen.items() if value is not None
        )
        lines.append(f"dftrack baseline {sets}   # train the winner by itself")
    return [Heading("How to go on"), Commands(lines)]


def _options(command: str, *wanted: str) -> str:
    """Those of the command's options that are wanted, as they were typed."""
    words, kept = shlex.split(command), []
    for word, following in itertools.pairwise([*words, ""]):
        if word in wanted:
            kept += [word, following]
        elif word.partition("=")[0] in wanted:
            kept.append(word)
    return f" {shlex.join(kept)}" if kept else ""


def _number(value: float | None) -> str:
    return UNDEFINED if value is None else f"{value:.4f}"


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return UNDEFINED
    if seconds < 100:
        return f"{seconds:.1f} s"
    return (
        f"{seconds:.0f} s ({seconds / 60:.1f} min)" if seconds < 5400 else f"{seconds:.0f} s ({seconds / 3600:.1f} h)"
    )


def _time(moment: datetime | None) -> str:
    return "at an unknown time" if moment is None else moment.strftime("%Y-%m-%d %H:%M")
