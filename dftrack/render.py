"""Results -> the terminal: progress, tables and messages. The only module that prints."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from dftrack.data.audit import Audit
from dftrack.data.openforensics import Prepared
from dftrack.errors import DftrackError, Interrupted
from dftrack.experiment import Event, Notice, Result, Stage, Started
from dftrack.learning.training import Epoch, Step

SHOWN = {  # metric -> heading; the rest is in MLflow
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "roc_auc": "ROC AUC",
    "average_precision": "AP",
    "eer": "EER",
    "log_loss": "log loss",
    "brier": "Brier",
}
UNDEFINED = "undefined"


def number(value: float | None, digits: int = 4) -> str:
    """A number for a table; None is "undefined"."""
    return UNDEFINED if value is None else f"{value:.{digits}f}"


def print_json(value: object) -> None:
    """One JSON object on standard output."""
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False, default=str) + "\n")
    sys.stdout.flush()


class Screen:
    """Shows the events of an experiment on standard error: a live bar on a terminal, a line per epoch elsewhere."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._live = self.console.is_terminal
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[detail]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self._live,
        )
        self._stage = self._progress.add_task("", total=None, detail="", visible=False)
        self._training = self._progress.add_task("", total=None, detail="", visible=False)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def show(self, event: Event) -> None:
        """Bring the screen up to date."""
        match event:
            case Stage():
                self._show_stage(event)
            case Started():
                self._show_start(event)
            case Notice():
                self.console.print(f"[yellow]note:[/] {event.text}")
            case Step():
                self._show_step(event)
            case Epoch():
                self._show_epoch(event)
            case Result():
                self._progress.update(self._stage, visible=False)

    def advance(self, what: str, done: int, total: int) -> None:
        """Show how far some preparation is."""
        self._show_stage(Stage(what, done, total))

    def _show_stage(self, stage: Stage) -> None:
        finished = stage.total > 0 and stage.done >= stage.total
        self._progress.update(
            self._stage,
            description=stage.what,
            completed=stage.done,
            total=stage.total or None,
            visible=not finished,
        )

    def _show_start(self, started: Started) -> None:
        data, train = started.data, started.config.train
        counts = ", ".join(f"{name} {sum(of.values()):,}" for name, of in data.counts().items())
        self.console.print(f"data      {data.source}: {counts} pictures at {data.image_size} px")
        for bad in data.unreadable[:5]:
            self.console.print(f"[yellow]left out[/]  {bad.name}: {bad.reason}")
        if len(data.unreadable) > 5:
            self.console.print(f"          and {len(data.unreadable) - 5} more that cannot be read")
        self.console.print(f"training  {train.epochs} epochs on {started.device} in {started.precision}")
        going_on = started.epoch > 1 or started.step > 0
        where = f", going on at epoch {started.epoch}, step {started.step + 1}" if going_on else ""
        self.console.print(f"run       {started.run_id}{where}")

    def _show_step(self, step: Step) -> None:
        loss = "" if step.loss is None else f"loss {step.loss:.4f}  "
        self._progress.update(
            self._training,
            description=f"epoch {step.epoch}/{step.epochs}",
            completed=(step.epoch - 1) * step.steps + step.step,
            total=step.epochs * step.steps,
            detail=f"{loss}{step.images_per_second:.0f} images/s",
            visible=True,
        )

    def _show_epoch(self, epoch: Epoch) -> None:
        m = epoch.metrics
        self.console.print(
            f"epoch {epoch.number:>3}  train loss {number(m['train/loss'])}  val loss {number(m['val/loss'])}"
            f"  accuracy {number(m['val/accuracy'], 3)}  AUC {number(m['val/roc_auc'], 3)}"
            f"  {number(m['time/epoch_seconds'], 1)} s"
        )


def show_results(
    metrics: Mapping[str, Mapping[str, float | None]], always_fake: Mapping[str, Mapping[str, float | None]]
) -> None:
    """A table on standard output: one row a split, and under each what answering "fake" every time would get."""
    table = Table(title="Results (fake = positive)", title_justify="left")
    table.add_column("split")
    table.add_column("pictures", justify="right")
    for heading in SHOWN.values():
        table.add_column(heading, justify="right")
    for split, found in metrics.items():
        table.add_row(split, f"{found['n'] or 0:,.0f}", *(number(found[name], 3) for name in SHOWN))
        base = always_fake[split]
        table.add_row("  always fake", "", *(number(base[name], 3) for name in SHOWN), style="dim", end_section=True)
    _out().print(table)


def show_audit(audit: Audit) -> None:
    """The counts and every finding, the worst first."""
    show_table(
        f"{audit.source}",
        ["split", "real", "fake"],
        [(split, f"{of['real']:,}", f"{of['fake']:,}") for split, of in audit.counts.items()],
    )
    out, colours = _out(), {"error": "red", "warning": "yellow", "note": "cyan"}
    for finding in audit.findings:
        out.print(f"[{colours[finding.severity]}]{finding.severity}[/]: {_plain(finding.message)}", soft_wrap=True)
        for example in finding.examples:
            out.print(f"    {_plain(example)}", soft_wrap=True)
    if not audit.findings:
        out.print("nothing is wrong with it")


def show_prepared(made: Prepared) -> None:
    """What was cut out of how many scenes, and what was left out."""
    rows = [
        (split, f"{made.scenes.get(split, 0):,}", f"{of.get('real', 0):,}", f"{of.get('fake', 0):,}")
        for split, of in made.counts.items()
    ]
    show_table(f"{made.manifest}", ["split", "scenes", "real", "fake"], rows)
    if made.already_done:
        say(f"{made.already_done:,} scenes had been done before")
    for what, groups in (("left out", made.skipped), ("without a mask", made.unmasked)):
        for skipped in groups:
            say(f"{what}: {skipped.count:,} ({skipped.reason}), for example {', '.join(skipped.examples[:3])}")
    if made.absent:
        say(f"no annotations for: {', '.join(made.absent)}")


def show_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A plain table on standard output."""
    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        table.add_row(*row)
    _out().print(table)


def say(text: str) -> None:
    """A line for the person at the terminal, on standard error (so that --json and --csv stay clean)."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(text, markup=False)


def show_error(error: DftrackError | Interrupted | KeyboardInterrupt) -> None:
    """Two lines: what went wrong, what to do."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    if isinstance(error, DftrackError):
        console.print(f"[red bold]error:[/] {_plain(error.message)}")
        if error.hint:
            console.print(f"[dim]hint:[/]  {_plain(error.hint)}")
    else:
        console.print("[yellow]stopped.[/] The same command goes on where this one ended.")


def _plain(text: str) -> str:
    return text.replace("[", r"\[")


def _out() -> Console:
    """Standard output; wide enough for a table when it is not a terminal."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=160)
