"""What moves on the terminal while dftrack works: a live bar, or a line for each epoch where there is no terminal."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from dftrack.experiment import Event, Notice, Result, Stage, Started
from dftrack.learning.training import Epoch, Step
from dftrack.render import number
from dftrack.study import events
from dftrack.study.definition import StudyDefinition
from dftrack.study.naming import trial_name

REFRESHES = 4  # of a live screen in a second: each costs 2 ms of a core that trains


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
            refresh_per_second=REFRESHES,
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
                self.console.print(f"[yellow]note:[/] {escape(event.text)}")
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
        self.console.print(f"data      {escape(data.source)}: {counts} pictures at {data.image_size} px")
        for bad in data.unreadable[:5]:
            self.console.print(f"[yellow]left out[/]  {escape(f'{bad.name}: {bad.reason}')}")
        if len(data.unreadable) > 5:
            self.console.print(f"          and {len(data.unreadable) - 5} more that cannot be read")
        here = "" if started.device == "cuda" else "; on a CPU dftrack trains faster without"
        how = f", compiled: the first step takes up to a minute{here}" if train.compile else ""
        self.console.print(f"training  {train.epochs} epochs on {started.device} in {started.precision}{how}")
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


class StudyScreen:
    """Shows a study at work: one bar for all of it, one for each worker, then the final trainings."""

    def __init__(self, definition: StudyDefinition) -> None:
        self._definition = definition
        self._single = Screen()  # for preparations and final trainings
        self.console = self._single.console
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[detail]}"),
            console=self.console,
            refresh_per_second=REFRESHES,
            disable=not self.console.is_terminal,
        )
        self._all: TaskID | None = None
        self._workers: dict[int, TaskID] = {}
        self._ended = 0
        self._best: tuple[float, int] | None = None

    def __enter__(self) -> Self:
        self._single.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
        self._single.__exit__(kind, error, trace)

    def show(self, event: Event | events.Opened | events.Event | events.FinalStarted) -> None:
        """Bring the screen up to date."""
        match event:
            case events.Opened():
                self._show_opened(event)
            case events.Started():
                self._begin(event)
            case events.Progress():
                self._advance(event)
            case events.TrialEnded():
                self._end(event)
            case events.WorkerDied():
                self.console.print(
                    f"[yellow]worker {event.worker} died[/] (exit code {event.exit_code}); another goes on"
                )
            case events.Idle():
                if event.worker in self._workers:
                    self._progress.update(self._workers[event.worker], description="waits for the others", detail="")
            case events.FinalStarted():
                self._progress.stop()
                self._single.__enter__()
                seed = f"seed {event.seed} ({event.number} of {event.count})"
                self.console.print(f"\nthe winner, trial {event.trial}, is trained again: {seed}")
            case events.Left() | events.Finished() | events.Refused():
                pass
            case _:
                self._single.show(event)

    def _show_opened(self, opened: events.Opened) -> None:
        self._single.__exit__(None, None, None)
        self._ended = opened.ended
        before = f", {opened.ended} had ended before" if opened.ended else ""
        self.console.print(f"study     {opened.name}: {opened.total} trials{before}")
        self.console.print(f"run       {opened.run_id}")
        self._all = self._progress.add_task("trials", total=opened.total, completed=opened.ended, detail="")
        self._progress.start()

    def _begin(self, started: events.Started) -> None:
        name = escape(trial_name(started.trial, started.params))
        if started.worker not in self._workers:
            self._workers[started.worker] = self._progress.add_task("", total=None, detail="")
        self._progress.update(
            self._workers[started.worker],
            description=name,
            completed=started.start_epoch,
            total=started.stop_epoch,
            detail="epochs",
        )

    def _advance(self, progress: events.Progress) -> None:
        value = f"{self._definition.metric} {number(progress.value)}"
        self._progress.update(self._workers[progress.worker], completed=progress.epoch, detail=value)
        if not self.console.is_terminal:
            self.console.print(f"trial {progress.trial:>3}  epoch {progress.epoch:>3}  {value}")

    def _end(self, ended: events.TrialEnded) -> None:
        self._ended += 1
        sign = 1 if self._definition.direction == "maximize" else -1
        if ended.status == "complete" and ended.value is not None:
            self._best = max(filter(None, (self._best, (sign * ended.value, -ended.trial))))
        if self._all is not None:
            best = f"best {number(sign * self._best[0])} (trial {-self._best[1]})" if self._best else ""
            self._progress.update(self._all, completed=self._ended, detail=best)
        colour = {"complete": "green", "failed": "red"}.get(ended.status, "dim")
        value = "" if ended.value is None else f" {number(ended.value)}"
        reason = f" ({escape(ended.reason)})" if ended.reason else ""
        self.console.print(f"[{colour}]trial {ended.trial:>3}  {ended.status}[/]{value}{reason}")
