"""A study of 30 trials: `dftrack study` beside plain Optuna around the same loop without pruning, and Ray Tune.

Wanted: a winner as good with a quarter of the epochs, 4 times faster on the clock. The space is that of dftrack's
default study; every trial of the peers trains with dftrack's own loop, so that only the search is compared. Plain
Optuna: TPE, storage in memory, no tracking. Ray Tune: random search with ASHA (1, 3, 10), one trial at a time. All have
the baseline first. dftrack's time holds imports, the store, records and reports, but no final trainings (the peers have
none). It starts as many workers as it does by itself, with a share of the cores each; the peers train one trial at a
time on all cores.
"""

import importlib.util
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from material import open_faces
from side_by_side import Check, Report, arguments, fresh, in_turn, show

from dftrack.study.workers import how_many_pay

WITHIN = 0.005  # AUC: as good
BASELINE = {"train.learning_rate": 1e-4, "model.dropout": 0.5, "model.kernel_size": 3}


@dataclass(frozen=True, slots=True)
class Search:
    """What is searched. Travels to the processes."""

    faces: str
    size: int
    trials: int
    epochs: int
    store: Path  # absolute


@dataclass(frozen=True, slots=True)
class Turn:
    """Seconds on the clock, epochs trained, val AUC of the winner after its last epoch."""

    seconds: float
    epochs: int
    winner: float


def train(search: Search, parameters: dict[str, float], after: Callable[[int, float], None]) -> float:
    """One trial with dftrack's loop; `after` hears epoch and val AUC. Returns the last one (0.5 where undefined)."""
    import torch

    from dftrack.config import Config, vary
    from dftrack.data.batches import Batches
    from dftrack.learning.model import build_model
    from dftrack.learning.training import Epoch, fit, new_state
    from dftrack.runtime import pick_precision

    config = vary(Config(), {**parameters, "train.epochs": search.epochs, "data.image_size": search.size})
    data = open_faces(search.faces, search.size, search.store)
    torch.manual_seed(config.train.seed)
    model, split = build_model(config.model, search.size), data.splits["train"]
    precision = pick_precision(config.train.precision, "cpu")  # as dftrack's
    state = new_state(model, config.train, images=len(split.labels), precision=precision, device="cpu")
    auc = 0.5
    for event in fit(state, Batches(split, batch_size=32, seed=config.train.seed), data.splits["val"], config.train):
        if isinstance(event, Epoch):
            auc = event.metrics["val/roc_auc"] or 0.5
            after(event.number, auc)
    return auc


def plain_optuna(search: Search, seed: int) -> tuple[int, float]:
    """Every trial to its end; leaves the curves for `replay_halving.py`. Returns epochs and the winner's AUC."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)

    def objective(trial: optuna.Trial) -> float:
        parameters = {
            "train.learning_rate": trial.suggest_float("train.learning_rate", 1e-5, 1e-2, log=True),
            "model.dropout": trial.suggest_float("model.dropout", 0.0, 0.7),
            "model.kernel_size": trial.suggest_categorical("model.kernel_size", [3, 5, 7]),
        }
        curve: list[float] = []
        value = train(search, parameters, lambda epoch, auc: curve.append(auc))
        kept.append({"parameters": parameters, "curve": curve})
        return value

    kept: list[dict[str, object]] = []
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
    study.enqueue_trial(BASELINE)
    study.optimize(objective, n_trials=search.trials)
    (search.store / f"curves-{search.size}px-{seed}.json").write_text(json.dumps({"trials": kept}))
    return search.trials * search.epochs, study.best_value


def ray_tune(search: Search, seed: int) -> tuple[int, float]:
    """Random search with ASHA on this machine, one trial at a time. Returns epochs and the winner's AUC."""
    import ray
    import study as this  # by the name under which Ray's own processes can import it
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search import BasicVariantGenerator

    plain = asdict(search)

    def trainable(parameters: dict[str, float]) -> None:
        again = this.Search(**plain)
        this.train(again, parameters, lambda epoch, auc: tune.report({"auc": auc, "epoch": epoch}))

    cores = len(os.sched_getaffinity(0))
    packages = os.pathsep.join(filter(None, sys.path))
    ray.init(num_cpus=cores, include_dashboard=False, log_to_driver=False, configure_logging=False,
             runtime_env={"env_vars": {"PYTHONPATH": packages}})  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        random.seed(seed)
        space = {
            "train.learning_rate": tune.loguniform(1e-5, 1e-2),
            "model.dropout": tune.uniform(0.0, 0.7),
            "model.kernel_size": tune.choice([3, 5, 7]),
        }
        halving = ASHAScheduler(time_attr="epoch", max_t=search.epochs, grace_period=1, reduction_factor=3)
        tuner = tune.Tuner(
            tune.with_resources(trainable, {"cpu": cores}),
            param_space=space,
            tune_config=tune.TuneConfig(
                num_samples=search.trials,
                metric="auc",
                mode="max",
                scheduler=halving,
                search_alg=BasicVariantGenerator(points_to_evaluate=[BASELINE]),
            ),
            run_config=tune.RunConfig(storage_path=folder, verbose=0),
        )
        results = tuner.fit()
        if results.errors:
            raise RuntimeError(f"a trial of Ray Tune failed: {results.errors[0]}")
        ended = [result.metrics for result in results]
        ray.shutdown()
    whole = [found["auc"] for found in ended if found["epoch"] == search.epochs] or [found["auc"] for found in ended]
    return sum(found["epoch"] for found in ended), max(whole)


def timed(work: Callable[[Search, int], tuple[int, float]], search: Search, seed: int) -> Turn:
    """A turn in a fresh process, its start included."""
    began = time.monotonic()
    epochs, winner = fresh(work, search, seed)
    return Turn(time.monotonic() - began, epochs, winner)


def dftrack_study(search: Search, seed: int) -> Turn:
    """`dftrack study` as typed, with a store of its own."""
    from dftrack.study.definition import find_study_file

    text = find_study_file("default").read_text()
    for old, new in (("final_seeds = 3", "final_seeds = 0"), ("\nseed = 0", f"\nseed = {seed}")):
        assert text.count(old) == 1, f"studies/default.toml has no {old!r} any more"
        text = text.replace(old, new)
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder)
        if search.faces == "sample":
            (store / "data").symlink_to(search.store / "data")
        file = store / "beside.toml"
        file.write_text(text)
        words = ["study", "--study", file, "--data", search.faces, "--store", store, "--trials", search.trials]
        words += ["--set", f"data.image_size={search.size}", "--set", f"train.epochs={search.epochs}", "--json"]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "dftrack", *map(str, words)], capture_output=True, text=True, env=environment
        )
        seconds = time.monotonic() - began
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        said = json.loads(done.stdout)
        return Turn(seconds, said["epochs"], said["best"]["value"])


def main() -> None:
    """Take turns, another seed of the sampler in each, and print."""
    parser = arguments(__doc__, size=16)
    parser.add_argument("--trials", type=int, default=4, help="of each study [4]")
    parser.add_argument("--epochs", type=int, default=3, help="of a whole trial [3]")
    parser.add_argument("--no-ray", action="store_true", help="leave Ray Tune out")
    given = parser.parse_args()
    search = Search(given.faces, given.size, given.trials, given.epochs, given.store.resolve())
    open_faces(search.faces, search.size, search.store)
    seeds: dict[str, int] = {}

    def next_seed(name: str) -> int:
        seeds[name] = seeds.get(name, -1) + 1
        return seeds[name]

    workers = how_many_pay("cpu")
    contenders: dict[str, Callable[[], Turn]] = {
        "plain Optuna": lambda: timed(plain_optuna, search, next_seed("plain")),
        "dftrack study": lambda: dftrack_study(search, next_seed("dftrack")),
    }
    left_out = {}
    if importlib.util.find_spec("ray") is None:
        left_out["Ray Tune"] = "ray is not installed (uv pip install 'ray[tune]')"
    elif given.no_ray:
        left_out["Ray Tune"] = "left out by --no-ray"
    else:
        contenders["Ray Tune, ASHA"] = lambda: timed(ray_tune, search, next_seed("ray"))
    turns = in_turn(contenders, given.turns)
    for name, of in turns.items():
        print(f"{name}: " + "; ".join(f"{turn.epochs} epochs, winner {turn.winner:.4f}" for turn in of))
    full, own = turns["plain Optuna"], turns["dftrack study"]
    lost = sum(a.winner - b.winner for a, b in zip(full, own, strict=True)) / len(full)
    share = sum(turn.epochs for turn in own) / sum(turn.epochs for turn in full)
    show(
        Report(
            claim=f"study of {given.trials} trials of {given.epochs} epochs, {given.size} px",
            wanted="4 x on the clock, a quarter of the epochs, a winner as good",
            base="plain Optuna",
            unit="s",
            samples={name: [turn.seconds for turn in of] for name, of in turns.items()},
            more_is_better=False,
            setting={
                "trials": given.trials,
                "epochs": given.epochs,
                "turns": given.turns,
                "workers": workers,
            },
            checks=[
                Check(f"winner's val AUC at most {100 * WITHIN:.1f} points below, mean of turns", lost <= WITHIN,
                      f"{100 * lost:+.2f} points lost; {len(full)} turns are few: see replay_halving.py for 1,000"),
                Check("a quarter of the epochs", share <= 0.25 if given.trials >= 30 and given.epochs >= 10 else None,
                      f"{share:.1%}"),
            ],
            not_measured=left_out,
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
