"""A real study, with real training, under `kill -9`: nothing may be lost, doubled or left running.

Run: python benchmarks/kill_study.py STORE FACES [kills] [workers] [trials]. FACES: a data folder, small pictures do.
Workers and the command itself are killed at random moments; a killed command is given again. At the end Optuna
and MLflow are counted: exactly the trials asked for, each once, none RUNNING. Then the same study is done again,
undisturbed, in a store of its own: it must have the same trials, bit for bit.
"""

import collections
import random
import subprocess
import sys
import time
from pathlib import Path

import psutil

from dftrack.study.doctor import examine, studies_in
from dftrack.study.storage import Storage
from dftrack.tracking import open_tracker

STUDY = """
name = "under-fire"
enqueue = "baseline"
final_seeds = 1
[base]
data.image_size = 16
train.batch_size = 8
train.epochs = 10
train.checkpoint_seconds = 0.0
[space]
train.learning_rate = { low = 1e-5, high = 1e-2, log = true }
model.dropout = { low = 0.0, high = 0.7 }
[pruning]
kind = "halving"
rungs = [1, 3, 10]
"""


def main(store: Path, faces: Path, kills: int = 20, workers: int = 4, trials: int = 30) -> None:
    """Kill, go on, and count."""
    store.mkdir(parents=True, exist_ok=True)
    file = store / "under-fire.toml"
    file.write_text(STUDY)
    words = ["study", "--study", file, "--data", faces, "--workers", workers, "--trials", trials]
    anywhere = [sys.executable, "-m", "dftrack", *map(str, words)]
    command = [*anywhere, "--store", str(store)]
    chance, hits, began = random.Random(9), collections.Counter[str](), time.monotonic()
    while hits.total() < kills:
        process = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while hits.total() < kills and process.poll() is None:
            crew = crew_of(process)
            if not crew:  # they need some seconds to start; a kill before that would hit nothing but imports
                time.sleep(0.5)
                continue
            time.sleep(chance.uniform(0.5, 10))
            crew = crew_of(process)
            victim = process if not crew or chance.random() < 0.12 else chance.choice(crew)
            if victim is process and process.poll() is not None:
                break
            victim.kill()
            hits["command" if victim is process else "worker"] += 1
            if victim is process:
                process.wait()
        if process.poll() == 0:
            break
    process.wait()  # before the next one: with more workers than it was begun with, a study may ask for other trials
    last = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.monotonic() - began
    print(f"kills: {dict(hits)} of {kills} in {seconds:.0f} s; the last command ended with {last.returncode}")
    count(store)
    subprocess.run(
        [*anywhere, "--store", str(store / "undisturbed")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    ours, theirs = outcomes(store), outcomes(store / "undisturbed")
    same = sum(one == other for one, other in zip(ours, theirs, strict=True))
    print(f"as in an undisturbed study, every parameter, value and end: {same} of {len(ours)} trials")


def outcomes(store: Path) -> list[tuple[object, ...]]:
    """What each trial was asked for and came to, by number."""
    (study,) = studies_in(Storage(store / "optuna.db"))
    trials = study.storage.backend.get_all_trials(study.study_id)
    return [(t.number, t.params, t.state, t.values, t.intermediate_values) for t in trials]


def crew_of(process: psutil.Process) -> list[psutil.Process]:
    """The workers that train at the moment."""
    try:
        return [child for child in process.children() if "spawn_main" in " ".join(child.cmdline())]
    except psutil.Error:  # one of them ended just now
        return []


def count(store: Path) -> None:
    """What Optuna and MLflow hold."""
    tracker = open_tracker(store)
    studies = studies_in(Storage(store / "optuna.db"))
    for study in studies:
        states = collections.Counter(t.state.name for t in study.storage.backend.get_all_trials(study.study_id))
        print(f"Optuna, {study.name}: {states.total()} trials: {dict(states)}")
    runs = tracker.runs()
    trials = [run for run in runs if run.tags.get("dftrack.kind") == "trial"]
    doubled = len(trials) - len({run.tags["dftrack.key"] for run in trials})
    print(
        f"MLflow: {len(trials)} runs of trials, {doubled} doubled, {dict(collections.Counter(r.end for r in trials))}"
    )
    print(f"MLflow: {sum(run.status == 'RUNNING' for run in runs)} of {len(runs)} runs RUNNING")
    steps = [[step for step, _ in tracker.metric_history(run.run_id, "epoch")] for run in trials]
    print(f"curves with a hole or a doubled epoch: {sum(s != list(range(1, len(s) + 1)) for s in steps)}")
    print(f"doctor: {[finding.message for finding in examine(tracker, studies)]}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *(int(word) for word in sys.argv[3:]))
