"""The final trainings: the winner trained again with seeds that the search did not use, its test splits opened."""

from collections.abc import Callable, Iterator, Sequence

from dftrack.config import SEEDS
from dftrack.errors import DataError, DeviceError, DftrackError, Interrupted, StoreError
from dftrack.experiment import Event, Notice, Plan, Result, run_experiment
from dftrack.files import locked
from dftrack.runtime import StopRequests
from dftrack.study.begun import Begun
from dftrack.study.definition import StudyDefinition
from dftrack.study.events import FinalStarted
from dftrack.study.naming import final_key
from dftrack.study.records import Record
from dftrack.study.summary import FailedFinal, FinalTraining
from dftrack.study.verdict import spread
from dftrack.tracking import KEY_TAG, REASON_TAG, RunRecord

Watch = Callable[[FinalStarted | Event], None]


def train_finals(begun: Begun, watch: Watch, stop: StopRequests) -> None:
    """Train the winner again with other seeds, and open the test splits for it. One process at a time.

    A seed whose training fails is left to the report; the next start of the command tries it again.
    """
    definition = begun.definition
    ranked = begun.ranked()
    if not ranked or not definition.final_seeds:
        return
    winner = ranked[0]
    lock = begun.request.store / "studies" / f"{begun.key}.finals.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with locked(lock, stop.check):
        done = {final.seed for final in finals(begun)}
        for number, seed in enumerate(unused_seeds(definition), start=1):
            if seed not in done:
                stop.check()
                watch(FinalStarted(winner.number, seed, number, definition.final_seeds))
                try:
                    _train(begun, winner, seed, watch, stop)
                except (Interrupted, StoreError, DataError, DeviceError):  # every other seed would end so, too
                    raise
                except Exception as error:  # its run keeps the traceback
                    reason = error.message if isinstance(error, DftrackError) else f"{type(error).__name__}: {error}"
                    watch(Notice(f"the final training with seed {seed} failed: {reason}"))


def _train(begun: Begun, winner: Record, seed: int, watch: Watch, stop: StopRequests) -> None:
    config = begun.definition.config({**winner.params, "train.seed": seed})
    plan = Plan(
        name=f"final of trial {winner.number}: seed {seed}",
        kind="final",
        parent=begun.run.run_id,
        key=final_key(begun.key, winner.number, seed),
        tags={"dftrack.study": begun.study.name, "dftrack.trial": str(winner.number), "dftrack.seed": str(seed)},
        data_digest=begun.data.digest,
    )
    for event in run_experiment(config, begun.request.store, plan=plan, stop=stop):
        if not isinstance(event, Result):
            watch(event)


def finals(begun: Begun) -> list[FinalTraining]:
    """The final trainings of the winner that are finished, by seed."""
    return [
        FinalTraining(
            seed,
            run.run_id,
            run.metrics[begun.definition.metric],
            {split: _on_split(split, run) for split in begun.data.test_splits},
        )
        for seed, run in _runs(begun, "FINISHED")
    ]


def failed_finals(begun: Begun) -> list[FailedFinal]:
    """The final trainings of the winner that failed, by seed."""
    return [
        FailedFinal(seed, run.run_id, run.tags.get(REASON_TAG, "no reason was recorded"))
        for seed, run in _runs(begun, "FAILED")
    ]


def _runs(begun: Begun, status: str) -> Iterator[tuple[int, RunRecord]]:
    for winner in begun.ranked()[:1]:
        for seed in unused_seeds(begun.definition):
            tags = {KEY_TAG: final_key(begun.key, winner.number, seed)}
            for run in begun.tracker.runs(tags=tags, status=status):
                yield seed, run


def _on_split(split: str, run: RunRecord) -> dict[str, float | None]:
    return {
        name.removeprefix(f"{split}/"): value
        for name, value in run.metrics.items()
        if name.startswith(f"{split}/") and "always_fake" not in name
    }


def unused_seeds(definition: StudyDefinition) -> list[int]:
    """Seeds that no trial was trained with: those after the study's own; after the last one comes 0."""
    own = definition.config({}).train.seed
    return [(own + 1 + index) % SEEDS for index in range(definition.final_seeds)]


def final_metrics(trainings: Sequence[FinalTraining]) -> dict[str, float | None]:
    """Mean and standard deviation of the final trainings: on val, and of each metric on each test split."""
    found: dict[str, float | None] = {}
    columns = {"final/val": [final.val for final in trainings]}
    for split, metrics in trainings[0].tests.items() if trainings else ():
        for name in metrics:
            values = [value for final in trainings if (value := final.tests[split].get(name)) is not None]
            columns[f"final/{split}/{name}"] = values
    for name, values in columns.items():
        if known := spread(values):
            found |= {f"{name}/mean": known.mean, f"{name}/sd": known.sd}
    return found
