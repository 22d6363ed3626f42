"""How long a list of runs takes: `dftrack runs` against MLflow's own search, whole processes, in turn (A B A B).

    python benchmarks/runs.py [runs ...] [--times 5]

A store is made with that many copies of one run with 20 settings, 120 metrics and 30 tags (a baseline's), each copy
with other values; both sides then list the 30 best by test AUC among those with seed 0, and must
name the same runs in the same order. Printed: medians in seconds, their ratio, and the versions.
"""

import argparse
import json
import os
import platform
import random
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from importlib import metadata
from pathlib import Path

METRIC, SETTING = "test-dev/roc_auc", "train.learning_rate"
MLFLOW_SEARCH = """
import json, sys, mlflow
client = mlflow.MlflowClient("sqlite:///" + sys.argv[1] + "/mlflow.db")
experiment = client.get_experiment_by_name("dftrack").experiment_id
found = client.search_runs(
    [experiment], "params.`train.seed` = '0'", max_results=30, order_by=["metrics.`test-dev/roc_auc` DESC"]
)
print(json.dumps([[run.info.run_id, run.data.metrics["test-dev/roc_auc"]] for run in found]))
"""


def make_store(folder: Path, runs: int) -> None:
    """A store with `runs` copies of a run that was recorded through dftrack."""
    from dftrack.tracking import open_tracker

    tracker = open_tracker(folder)
    run = tracker.start_run(
        "baseline",
        key="template",
        settings={SETTING: 1e-4, "train.seed": 0, **{f"model.setting_{i}": i for i in range(18)}},
        tags={"dftrack.kind": "baseline", **{f"version.{i}": "1.2.3" for i in range(25)}},
    )
    run.log_epoch(1, {"val/roc_auc": 0.5, "train/loss": 0.5})
    run.log_metrics({METRIC: 0.5, **{f"robustness/kind_{i % 7}/{i}": 0.5 for i in range(120)}})
    run.finish("FINISHED")
    with closing(sqlite3.connect(folder / "mlflow.db")) as raw:
        copy_runs(raw, run.run_id, runs - 1)


def copy_runs(raw: sqlite3.Connection, template: str, copies: int) -> None:
    """Copies of the run `template` with other ids, times, learning rates, seeds and AUCs."""
    chance = random.Random(0)
    ids = [f"{chance.getrandbits(128):032x}" for _ in range(copies)]
    start = raw.execute("select start_time from runs").fetchone()[0]
    raw.execute("create temp table made (run_uuid text, start_time integer, rate text, seed text, auc real)")
    raw.executemany(
        "insert into made values (?, ?, ?, ?, ?)",
        (
            (run, start - 1000 * place, str(10 ** chance.uniform(-5, -2)), str(place % 3), chance.random())
            for place, run in enumerate(ids, start=1)
        ),
    )
    for table in ("runs", "params", "tags", "latest_metrics"):
        columns = [row[1] for row in raw.execute(f"pragma table_info({table})")]
        new = {"run_uuid": "made.run_uuid", "start_time": "made.start_time"}
        if table == "params":
            new["value"] = f"case key when '{SETTING}' then made.rate when 'train.seed' then made.seed else value end"
        if table == "latest_metrics":
            new["value"] = f"case key when '{METRIC}' then made.auc else value end"
        wanted = ", ".join(new.get(column, f"t.{column}") for column in columns)
        raw.execute(
            f"insert into {table} ({', '.join(columns)}) select {wanted} from {table} t, made where t.run_uuid = ?",
            (template,),
        )
    raw.commit()
    raw.execute("pragma wal_checkpoint(truncate)")


def timed(command: list[str]) -> tuple[float, list[list[object]]]:
    """Seconds of a whole process, and the runs it names."""
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - start
    said = json.loads(done.stdout)
    return seconds, said if isinstance(said, list) else [[run["run_id"], run[METRIC]] for run in said["runs"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=int, default=[1000, 10_000])
    parser.add_argument("--times", type=int, default=5)
    asked = parser.parse_args()
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("mlflow", "typer", "sqlalchemy"))
    print(f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, {versions}, {os.cpu_count()} cores")
    for runs in asked.runs:
        with tempfile.TemporaryDirectory(prefix="dftrack-runs-") as name:
            store = Path(name)
            make_store(store, runs)
            size = (store / "mlflow.db").stat().st_size / 1e6
            sides = {
                "dftrack runs": [
                    *(sys.executable, "-m", "dftrack", "runs", "--json", "--store", name),
                    *("--where", "train.seed=0", "--sort", f"-{METRIC}"),
                ],
                "MLflow search": [sys.executable, "-c", MLFLOW_SEARCH, name],
            }
            seconds: dict[str, list[float]] = {side: [] for side in sides}
            for _ in range(asked.times):
                answers = []
                for side, command in sides.items():
                    took, found = timed(command)
                    seconds[side].append(took)
                    answers.append(found)
                assert answers[0] == answers[1], f"the two name other runs: {answers}"
            ours, theirs = (statistics.median(values) for values in seconds.values())
            print(f"{runs:>7,} runs ({size:.0f} MB): ", end="")
            print(", ".join(f"{side} {statistics.median(values):.2f} s" for side, values in seconds.items()), end="")
            print(f", {theirs / ours:.1f} times")


if __name__ == "__main__":
    main()
