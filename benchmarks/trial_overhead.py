"""What a trial costs beyond its training: asking, opening, recording 10 epochs, closing. In a warm process.

Run: python benchmarks/trial_overhead.py STORE FACES [trials] [seconds]. FACES: a tiny folder: little is trained.
Prints medians, and their share of a trial of the sample (of so many seconds).
"""

import sys
import time
from pathlib import Path
from statistics import median

from dftrack.config import Config, DataConfig, TrainConfig
from dftrack.experiment import Plan, Result, run_experiment
from dftrack.study.definition import find_study_file
from dftrack.study.file import read_study
from dftrack.study.fingerprint import fingerprint
from dftrack.study.jobs import Job, Outcome, Queue
from dftrack.study.liveness import Life
from dftrack.study.opening import open_study
from dftrack.study.storage import Storage


def main(store: Path, faces: Path, trials: int = 8, sample_trial: float = 117.0) -> None:
    """Time the queue (ask, 10 reports, finish) and the recording of experiments that train next to nothing."""
    definition = read_study(find_study_file("grid"))
    storage = Storage(store / "overhead.db")
    study = open_study(storage, definition, fingerprint(definition, "0" * 32), new=True)
    life = Life(store / "lives")
    queue = Queue(study, definition, life.worker)
    asking, recording = [], []
    for number in range(trials):
        began = time.perf_counter()
        job = queue.next_job()
        assert isinstance(job, Job)
        for epoch in range(job.start_epoch + 1, job.stop_epoch + 1):
            queue.report(job, epoch, 0.5)
        queue.finish(job, Outcome("complete" if job.is_last else "paused"))
        asking.append(time.perf_counter() - began)
        config = Config(
            data=DataConfig(source=str(faces), image_size=16), train=TrainConfig(batch_size=8, seed=number, epochs=10)
        )
        began = time.perf_counter()
        *_, result = run_experiment(config, store, plan=Plan(kind="trial", pictures=False, open_tests=False))
        assert isinstance(result, Result)
        trained = sum(epoch["time/epoch_seconds"] or 0.0 for epoch in result.history)
        recording.append(time.perf_counter() - began - trained)
    life.end()
    for name, seconds in (("ask, report, finish", asking), ("open, record, judge, keep the model", recording[1:])):
        print(
            f"{name:38} {median(seconds) * 1000:7.0f} ms  {median(seconds) / sample_trial:6.2%} of {sample_trial:.0f} s"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *(int(word) for word in sys.argv[3:]))
