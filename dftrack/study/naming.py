"""What trials, their runs and their checkpoints are called."""

from collections.abc import Mapping

from dftrack.config import Value

SHORT = {"train.learning_rate": "lr", "model.kernel_size": "kernel", "train.batch_size": "batch"}


def trial_name(number: int, params: Mapping[str, Value]) -> str:
    """A name that a person can read: `trial 7: lr 3.2e-04, dropout 0.31, kernel 5`."""
    words = [f"{SHORT.get(name, name.rpartition('.')[2])} {_short(value)}" for name, value in params.items()]
    return f"trial {number}: " + ", ".join(words) if words else f"trial {number}"


def trial_key(study_key: str, number: int) -> str:
    """Names a trial's run and its checkpoints, the same for whoever takes the trial up again."""
    return f"{study_key}-trial-{number}"


def final_key(study_key: str, trial: int, seed: int) -> str:
    """Names the training of the winner `trial` with another seed."""
    return f"{study_key}-final-{trial}-seed-{seed}"


def _short(value: Value) -> str:
    return f"{value:.2g}" if isinstance(value, float) else str(value)
