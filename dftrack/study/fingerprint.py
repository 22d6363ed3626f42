"""What makes two starts the same study: a canonical account of it, its hash, and their differences in words."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from dftrack.config import INCIDENTAL, Config, flatten, vary
from dftrack.study.definition import StudyDefinition

# Where a training runs and where its data lie do not decide what comes out; the data's digest stands for the data.
ELSEWHERE = INCIDENTAL | {"data.source", "train.device"}


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What a study is, as names and words; two with the same `digest` may share their trials."""

    values: Mapping[str, str]

    @property
    def digest(self) -> str:
        """16 hex digits of the SHA-256 of the sorted values."""
        return hashlib.sha256(json.dumps(dict(sorted(self.values.items()))).encode()).hexdigest()[:16]


def fingerprint(definition: StudyDefinition, data_digest: str, code: Mapping[str, str] | None = None) -> Fingerprint:
    """The fingerprint of `definition` on the data with this digest.

    code: what else results depend on (say, the version of the training code), as names and words.
    The number of trials, of final seeds and of kept weights may change while a study goes on: they are no part of it.
    """
    shared = flatten(vary(Config(), definition.base))
    values = {
        "metric": f"{definition.direction} {definition.metric}",
        "data": data_digest,
        "sampler": f"{definition.sampler}, seed {definition.seed}",
        "pruning": _pruning(definition),
        "enqueued": json.dumps(definition.enqueue, sort_keys=True),
        "baseline": "has a seat of its own" if definition.protects_baseline else "like any other",
        **{f"space {name}": str(dimension) for name, dimension in sorted(definition.space.items())},
        **{
            f"setting {name}": str(value)
            for name, value in sorted(shared.items())
            if name not in definition.space and name not in ELSEWHERE
        },
        **{f"code {name}": word for name, word in sorted((code or {}).items())},
    }
    return Fingerprint(values)


def differences(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """One plain line for each value that differs, in the order of `new`, then what only `old` has."""
    lines = []
    for name in [*new, *(name for name in old if name not in new)]:
        before, after = old.get(name), new.get(name)
        if before != after:
            if before is None:
                lines.append(f"{name}: new, {after}")
            elif after is None:
                lines.append(f"{name}: no longer, was {before}")
            else:
                lines.append(f"{name}: was {before}, is {after}")
    return lines


def _pruning(definition: StudyDefinition) -> str:
    pruning = definition.pruning
    if pruning is None:
        return "none"
    by = f"to {', '.join(map(str, pruning.shares))}" if pruning.shares else f"by {pruning.eta}"
    rungs = ", ".join(map(str, definition.rungs[:-1]))
    spread = f", spread over {pruning.spread_over}" if pruning.spread_over else ""
    return f"halving {by} after {rungs} of {definition.epochs} epochs{spread}"
