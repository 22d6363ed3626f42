"""Whole validation curves of many settings, for `replay_halving.py`: what a search without pruning would have seen.

Run: python benchmarks/record_curves.py STORE OUT.json [--sampler random|tpe] [--seed N] [--data sample] [--settings 36]
[--size 32] [--precision fp32|bf16]. Settings are drawn from the default study's space as `dftrack study` without
pruning draws them (the baseline first); each is trained for all its epochs with `train.seed` N, and its val AUC kept
by epoch.
Stopped and started again it goes on where it was.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from dftrack.config import Config, vary
from dftrack.data.batches import Batches
from dftrack.data.cache import DataSet, open_data
from dftrack.files import write_text
from dftrack.learning.model import FaceCNN, build_model
from dftrack.learning.training import Epoch, NonFiniteError, fit, new_state
from dftrack.study.definition import StudyDefinition, find_study_file
from dftrack.study.file import read_study
from dftrack.study.records import Record
from dftrack.study.sampling import suggest

UNDEFINED = 0.5  # the AUC that a training has from the epoch on in which its loss was not finite


def main(asked: argparse.Namespace) -> None:
    """Train what is not in the file yet."""
    out: Path = asked.out
    whole = dataclasses.replace(
        read_study(find_study_file("default")), sampler=asked.sampler, seed=asked.seed, pruning=None
    )
    fixed = {
        "data.source": asked.data, "data.image_size": asked.size,
        "train.seed": asked.seed, "train.precision": asked.precision,
    }  # fmt: skip
    data = open_data(vary(Config(), fixed).data, asked.store)
    how = {
        "image_size": asked.size, "precision": asked.precision, "data_digest": data.digest,
        "sampler": asked.sampler, "seed": asked.seed,
    }  # fmt: skip
    told = {"precision": "fp32", **json.loads(out.read_text())} if out.exists() else {**how, "trials": []}
    assert {name: told[name] for name in how} == how, f"{out} was begun otherwise"
    known = told["trials"]
    for number in range(len(known), asked.settings):
        began = time.monotonic()
        parameters = next_setting(whole, known)
        curve = curve_of(vary(Config(), {**fixed, **parameters}), data)
        known.append({"parameters": parameters, "curve": curve})
        write_text(out, json.dumps({**how, "trials": known}, indent=1))
        print(f"{number}: {parameters} {curve[-1]:.4f} in {time.monotonic() - began:.0f} s", flush=True)


def next_setting(study: StudyDefinition, known: list[dict]) -> dict:  # type: ignore[type-arg] # as JSON holds it
    """What the study would try after these complete trials."""
    records = [
        Record(
            number=number, status="complete", params=trial["parameters"], curve=dict(enumerate(trial["curve"], 1)),
            value=trial["curve"][-1], claim=None, reason="", traceback="", beat="", started=None, ended=None,
        )
        for number, trial in enumerate(known)
    ]  # fmt: skip
    found = suggest(study, records)
    assert found is not None
    return dict(found)


def curve_of(config: Config, data: DataSet, trained: Callable[[FaceCNN], object] = lambda model: None) -> list[float]:
    """Val AUC after each epoch. `config` names its precision; `trained` is shown the model at the end.

    A loss that is not finite ends it, in bf16 too, where dftrack would go on in fp32.
    """
    torch.manual_seed(config.train.seed)
    train = data.splits["train"]
    model = build_model(config.model, data.image_size)
    state = new_state(model, config.train, images=len(train.labels), precision=config.train.precision, device="cpu")
    batches = Batches(train, batch_size=config.train.batch_size, seed=config.train.seed)
    curve: list[float] = []
    with suppress(NonFiniteError):
        for event in fit(state, batches, data.splits["val"], config.train):
            if isinstance(event, Epoch):
                value = event.metrics["val/roc_auc"]
                curve.append(UNDEFINED if value is None else round(value, 4))
    trained(model)
    return curve + [UNDEFINED] * (config.train.epochs - len(curve))


if __name__ == "__main__":
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("store", type=Path)
    words.add_argument("out", type=Path)
    words.add_argument("--sampler", choices=("random", "tpe"), default="random")
    words.add_argument("--seed", type=int, default=0)
    words.add_argument("--data", default="sample")
    words.add_argument("--settings", type=int, default=36)
    words.add_argument("--size", type=int, default=32)
    words.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    main(words.parse_args())
