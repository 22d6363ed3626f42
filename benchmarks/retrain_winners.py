"""The settings that win simulated studies, trained again with other seeds: how good are they without their luck?

Run: python benchmarks/retrain_winners.py STORE CURVES.json [--seeds 3]. Taken are the settings that win one of the
studies that `replay_halving.py` simulates, for the full search or for a plan. Each is trained in full with the seeds
that follow the one of the curves; its last AUC on val and on test-dev is kept in CURVES-again.json.
Stopped and started again it goes on where it was.
"""

import argparse
import json
import time
from pathlib import Path

from record_curves import UNDEFINED, curve_of
from replay_halving import Recorded, again_file, plans, recorded, simulated

from dftrack.config import Config, vary
from dftrack.data.cache import open_data
from dftrack.files import write_text
from dftrack.learning.evaluation import predict
from dftrack.learning.metrics import summarise
from dftrack.learning.model import FaceCNN

STUDIES, TRIALS = 1000, 30


def main(asked: argparse.Namespace) -> None:
    """Train what is not in the file yet."""
    told = json.loads(asked.curves.read_text())
    out = again_file(asked.curves)
    seeds = [told.get("seed", 0) + 1 + index for index in range(asked.seeds)]
    found = json.loads(out.read_text())["settings"] if out.exists() else {}
    fixed = {"data.image_size": told["image_size"], "train.precision": told.get("precision", "fp32")}
    data = open_data(vary(Config(), fixed).data, asked.store)
    assert data.digest == told.get("data_digest", data.digest), "the curves are of other data"
    test = data.splits["test-dev"]
    for index in winners(recorded(asked.curves)):
        setting = told["trials"][index]["parameters"]
        kept = found.setdefault(str(index), {"val": [], "test-dev": []})
        for seed in seeds[len(kept["val"]) :]:
            began = time.monotonic()
            models: list[FaceCNN] = []
            curve = curve_of(vary(Config(), {**fixed, **setting, "train.seed": seed}), data, models.append)
            judged = predict(models[0], test)
            value = summarise(judged.scores, judged.labels)["roc_auc"]
            kept["val"].append(curve[-1])
            kept["test-dev"].append(UNDEFINED if value is None else round(value, 4))
            write_text(out, json.dumps({"seeds": seeds, "settings": found}, indent=1))
            print(f"{index}, seed {seed}: {curve[-1]:.4f} {value} in {time.monotonic() - began:.0f} s", flush=True)


def winners(whole: Recorded) -> list[int]:
    """The settings that win a study, of the full search or of a plan."""
    won = set()
    for plan in plans().values():
        for ended in simulated(whole, plan, STUDIES, TRIALS):
            won |= {ended.full, ended.plan}
    return sorted(won)


if __name__ == "__main__":
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("store", type=Path)
    words.add_argument("curves", type=Path)
    words.add_argument("--seeds", type=int, default=3)
    main(words.parse_args())
