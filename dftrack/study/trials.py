"""The training of one trial by a worker, and what becomes of its run and its checkpoint when the trial has ended."""

from dataclasses import dataclass
from pathlib import Path

from dftrack.experiment import Plan, Result, forget, run_experiment
from dftrack.learning.training import Epoch
from dftrack.objective import value_of
from dftrack.runtime import StopRequests
from dftrack.study.definition import StudyDefinition
from dftrack.study.jobs import Ended, Job, Outcome
from dftrack.study.naming import trial_key, trial_name
from dftrack.study.worker import Emit
from dftrack.tracking import KEY_TAG, open_tracker

# How a trial's end in Optuna shows in MLflow: the run's status, and the tag that says which.
MIRROR = {"complete": ("FINISHED", "complete"), "pruned": ("KILLED", "pruned"), "failed": ("FAILED", "failed")}


@dataclass(frozen=True, slots=True)
class TrialTrainer:
    """Trains stretches of trials; travels to the worker processes."""

    definition: StudyDefinition
    store: Path
    key: str  # of the study, in the names of runs and checkpoints
    parent: str  # run id of the study
    data_digest: str = ""  # of the data it began with; "": any will do

    def __call__(self, job: Job, emit: Emit, stop: StopRequests) -> Outcome:
        """Train from the trial's last checkpoint to the job's last epoch, in the trial's own run.

        Raises DataError if the data are not those that the study began with: nothing is trained on others.
        """

        def go_on(epoch: Epoch) -> str:
            emit(epoch.number, value_of(epoch, self.definition.metric))
            return "paused" if epoch.number >= job.stop_epoch and not job.is_last else ""

        plan = Plan(
            name=trial_name(job.trial, job.params),
            kind="trial",
            parent=self.parent,
            key=trial_key(self.key, job.trial),
            tags={"dftrack.study": job.study, "dftrack.trial": str(job.trial)},
            data_digest=self.data_digest,
            open_tests=False,
            pictures=False,
            keep_model=self.definition.keep_weights > 0,
            keep_checkpoints=True,  # a kill may come before Optuna knows of the end; then `TrialCloser` forgets them
            go_on=go_on,
        )
        *_, result = run_experiment(self.definition.config(job.params), self.store, plan=plan, stop=stop)
        assert isinstance(result, Result), "an experiment ends with its Result"
        if result.end == "paused":
            return Outcome("paused")
        return Outcome("complete", value=result.history[-1][self.definition.metric])


@dataclass(frozen=True, slots=True)
class TrialCloser:
    """Brings a trial's run to the state that Optuna gave the trial, and frees its checkpoint."""

    store: Path
    key: str

    def __call__(self, ended: Ended) -> None:
        name = trial_key(self.key, ended.trial)
        status, end = MIRROR[ended.status]
        tracker = open_tracker(self.store, known=True)
        for record in tracker.runs(tags={KEY_TAG: name}):
            if (record.status, record.end) != (status, end):
                tracker.close_run(record.run_id, status, end=end, reason=ended.reason)
        forget(self.store, name)
