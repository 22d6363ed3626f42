"""Whole validation curves of many settings, for `replay_halving.py`: what a search without pruning would have seen.

Run: python benchmarks/record_curves.py STORE OUT.json [settings] [image_size]. Draws settings at random from the
default study's space (the baseline first), trains each for all its epochs on the sample, and keeps val AUC by epoch.
Stopped and started again it goes on where it was.
"""

import json
import math
import random
import sys
import time
from contextlib import suppress
from pathlib import Path

import torch

from dftrack.config import Config, DataConfig, ModelConfig, TrainConfig, vary
from dftrack.data.batches import Batches
from dftrack.data.cache import open_data
from dftrack.files import write_text
from dftrack.learning.model import build_model
from dftrack.learning.training import Epoch, NonFiniteError, fit, new_state


def main(store: Path, out: Path, settings: int = 45, image_size: int = 48) -> None:
    """Train what is not in `out` yet."""
    base = Config(data=DataConfig(image_size=image_size), model=ModelConfig(), train=TrainConfig())
    data = open_data(base.data, store)
    known = json.loads(out.read_text())["trials"] if out.exists() else []
    chance = random.Random(0)
    for number in range(settings):
        drawn = {
            "train.learning_rate": math.exp(chance.uniform(math.log(1e-5), math.log(1e-2))),
            "model.dropout": chance.uniform(0.0, 0.7),
            "model.kernel_size": chance.choice([3, 5, 7]),
        }
        if number < len(known):
            continue
        parameters = {} if number == 0 else drawn
        began = time.monotonic()
        curve = curve_of(vary(base, parameters), data)
        known.append({"parameters": parameters, "curve": curve})
        write_text(out, json.dumps({"image_size": image_size, "data_digest": data.digest, "trials": known}, indent=1))
        print(f"{number}: {parameters} {curve[-1]} in {time.monotonic() - began:.0f} s", flush=True)


def curve_of(config: Config, data) -> list[float | None]:  # type: ignore[no-untyped-def]
    """Val AUC after each epoch; None from the epoch on in which the loss was not finite."""
    torch.manual_seed(config.train.seed)
    train = data.splits["train"]
    model = build_model(config.model, data.image_size)
    state = new_state(model, config.train, images=len(train.labels), precision="fp32", device="cpu")
    batches = Batches(train, batch_size=config.train.batch_size, seed=config.train.seed)
    curve: list[float | None] = []
    with suppress(NonFiniteError):
        for event in fit(state, batches, data.splits["val"], config.train):
            if isinstance(event, Epoch):
                curve.append(event.metrics["val/roc_auc"])
    return curve + [None] * (config.train.epochs - len(curve))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *(int(word) for word in sys.argv[3:]))
