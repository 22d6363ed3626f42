"""Runs one small training many times, each killed with -9 at a random moment and started again until it ends.

Not a test by itself: test_experiment.py runs it. Prints one JSON object: how many kills hit, and what every training
ended with. Children are forked from a process that has imported everything, so that most of a child's life is training.
"""

import hashlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from dftrack.config import Config, DataConfig, TrainConfig
from dftrack.experiment import Plan, Result, run_experiment
from dftrack.tracking import open_tracker


def main(faces: Path, store: Path, times: int) -> None:
    config = Config(
        data=DataConfig(source=str(faces), image_size=16),
        train=TrainConfig(epochs=2, batch_size=8, learning_rate=1e-3, checkpoint_seconds=0.0),
    )
    chance = random.Random(20)
    for _ in run_experiment(config, store.with_name("warm-up"), plan=Plan(pictures=False)):
        pass  # imports what is imported late, in the parent: a store of its own, since connections must not be forked
    in_child(config, store, "first", None)  # decodes the pictures
    began = time.monotonic()
    in_child(config, store, "undisturbed", None)
    usual = time.monotonic() - began
    killed = trainings = 0
    while trainings < times or (killed < times and trainings < 4 * times):
        longest = 0.8 * usual  # so that the first kill of each training hits, wherever in it
        before, began = killed, time.monotonic()
        while in_child(config, store, f"kill-{trainings}", chance.uniform(0.02, longest)):
            killed += 1
            longest = 4 * usual  # and more of them by chance
        if killed == before:  # it missed: the machine was busier when `usual` was taken
            usual = min(usual, time.monotonic() - began)
        trainings += 1
    tracker = open_tracker(store)
    names = ["undisturbed", *(f"kill-{number}" for number in range(trainings))]
    runs = [tracker.runs(tags={"key": name})[0].run_id for name in names]
    files = [
        (tracker.detector_folder(run) / "model.safetensors", tracker.download(run, "predictions/test-dev.csv"))
        for run in runs
    ]
    digests = [[hashlib.sha256(path.read_bytes()).hexdigest() for path in pair] for pair in files]
    outcome = {"killed": killed, "weights": [w for w, _ in digests], "predictions": [p for _, p in digests]}
    print(json.dumps({**outcome, "compiler": "torch._dynamo" in sys.modules}))


def in_child(config: Config, store: Path, key: str, kill_after: float | None) -> bool:
    """Run the experiment in a forked process; kill it after so many seconds. Returns whether the kill hit."""
    child = os.fork()
    if child == 0:
        *_, last = run_experiment(config, store, plan=Plan(key=key, tags={"key": key}, pictures=False))
        os._exit(0 if isinstance(last, Result) else 1)
    if kill_after is not None:
        deadline = time.monotonic() + kill_after
        while time.monotonic() < deadline:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                assert status == 0, f"the training ended with {status}"
                return False
            time.sleep(0.005)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return True
    assert status == 0, f"the training ended with {status}"
    return False


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
