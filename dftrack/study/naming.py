"""Short names for people: of a trial, of a value; and the keys of runs and checkpoints."""

from collections.abc import Mapping

from dftrack.config import Value

SHORT = {"learning_rate": "lr", "kernel_size": "kernel", "batch_size": "batch", "weight_decay": "decay"}
LONGEST = 200  # characters of a name; a space with very many settings is cut


def trial_name(number: int, params: Mapping[str, Value]) -> str:
    """What a person calls a trial: "trial 7: lr 3.2e-4, dropout 0.31, kernel 5"."""
    settings = ", ".join(f"{short_setting(name)} {short_value(value)}" for name, value in params.items())
    name = f"trial {number}: {settings}" if settings else f"trial {number}"
    return name if len(name) <= LONGEST else name[: LONGEST - 3] + "..."


def short_setting(name: str) -> str:
    """A dotted name without its section, and shorter where there is a usual word: train.learning_rate: lr."""
    last = name.rpartition(".")[2]
    return SHORT.get(last, last.replace("_", " "))


def short_value(value: Value) -> str:
    """A value with at most two significant digits: 3.2e-4, 0.31, 5, adam."""
    if not isinstance(value, float):
        return str(value).lower() if isinstance(value, bool) else str(value)
    if value != 0 and (abs(value) < 0.01 or abs(value) >= 10_000):
        digits, exponent = f"{value:.1e}".split("e")
        return f"{digits.removesuffix('.0')}e{int(exponent)}"
    return f"{value:.2g}" if abs(value) < 100 else f"{value:.0f}"


def parent_key(study_key: str) -> str:
    """Names the run of the study itself."""
    return f"{study_key}-parent"


def trial_key(study_key: str, number: int) -> str:
    """Names a trial's run and its checkpoints, the same for whoever takes the trial up again."""
    return f"{study_key}-trial-{number}"


def final_key(study_key: str, trial: int, seed: int) -> str:
    """Names the training of the winner `trial` with another seed."""
    return f"{finals_prefix(study_key)}{trial}-seed-{seed}"


def finals_prefix(study_key: str) -> str:
    """How the keys of all final trainings of a study begin, whichever trial was the winner then."""
    return f"{study_key}-final-"
