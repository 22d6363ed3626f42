"""Every setting of one experiment: frozen values, checked when made, known by dotted names.

A setting is added here and used where it acts; parsing, recording, searching and printing follow from its type.
"""

import dataclasses
import difflib
import functools
import math
import types
import typing
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from dftrack.errors import SettingError, require

Value = str | int | float | bool | None
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Device = Literal["auto", "cpu", "cuda"]
Optimizer = Literal["adam", "adamw", "sgd"]
Augmentation = Literal["none", "flip", "flip-color"]
Leaks = Literal["leave-out", "refuse", "allow"]

SEEDS = 2**31  # a seed is one of 0 to SEEDS - 1
POOLINGS = 3  # each halves the picture, so a side of at least 2**3 pixels is needed
BASELINE_DATA = "sample"
TRUE, FALSE = frozenset({"true", "yes", "on", "1"}), frozenset({"false", "no", "off", "0"})


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """Which pictures are read, and at what size."""

    source: str = BASELINE_DATA  # "sample", or the path of a folder or of a manifest.csv
    image_size: int | None = None  # pixels, side of the square; None: the source's usual size (sample 96, others 224)
    leaks: Leaks = "leave-out"  # copies of a picture on two sides of train | val | test: left out, refused, or used

    def __post_init__(self) -> None:
        fit_types("data", self)
        require(bool(self.source), "data.source must name a data set, got ''")
        size = self.image_size
        require(
            size is None or size >= 2**POOLINGS,
            f"data.image_size must be at least {2**POOLINGS} pixels, got {size}",
            f"the network halves the picture {POOLINGS} times",
        )
        require(size is None or size <= 1024, f"data.image_size must be at most 1024 pixels, got {size}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The shape of the three-block network."""

    kernel_size: int = 3  # pixels, side of every convolution's kernel; odd
    dropout: float = 0.5  # probability in [0, 1) that a hidden unit is left out in training

    def __post_init__(self) -> None:
        fit_types("model", self)
        k = self.kernel_size
        require(
            1 <= k <= 15 and k % 2 == 1,
            f"model.kernel_size must be odd and from 1 to 15, got {k}",
            "an odd kernel padded by k//2 keeps the size of the map; 3 is the baseline",
        )
        require(0 <= self.dropout < 1, f"model.dropout must be in [0, 1), got {self.dropout}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """How one model is trained."""

    epochs: int = 10  # passes over the training images
    batch_size: int = 32  # images per optimizer step
    learning_rate: float = 1e-4  # the optimizer's step size
    optimizer: Optimizer = "adam"
    weight_decay: float = 0.0  # L2 for adam and sgd, decoupled for adamw
    augmentation: Augmentation = "none"  # training images only
    seed: int = 0  # of weights, order, dropout and augmentation
    device: Device = "auto"  # auto: cuda where there is one
    precision: Precision = "auto"  # auto: bf16 where it is native, on CUDA else fp16, on the CPU else fp32
    compile: bool = False  # torch.compile for the step: for a card; starting takes longer, the last digits differ
    checkpoint_seconds: float = 30.0  # at least this long between two full checkpoints; 0: after every step

    def __post_init__(self) -> None:
        fit_types("train", self)
        require(self.epochs >= 1, f"train.epochs must be at least 1, got {self.epochs}")
        require(2 <= self.batch_size <= 65536, f"train.batch_size must be from 2 to 65536, got {self.batch_size}")
        require(
            math.isfinite(self.learning_rate) and self.learning_rate > 0,
            f"train.learning_rate must be a positive number, got {self.learning_rate}",
        )
        require(
            math.isfinite(self.weight_decay) and self.weight_decay >= 0,
            f"train.weight_decay must be 0 or more, got {self.weight_decay}",
        )
        require(0 <= self.seed < SEEDS, f"train.seed must be from 0 to {SEEDS - 1}, got {self.seed}")
        require(
            math.isfinite(self.checkpoint_seconds) and self.checkpoint_seconds >= 0,
            f"train.checkpoint_seconds must be 0 or more, got {self.checkpoint_seconds}",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything that decides one experiment. Immutable: vary it with `vary` or `dataclasses.replace`."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


# Settings that say where and how safely a training runs, not what it computes: they are no part of its identity.
# (What becomes of leaks shows in the digest of the data.)
INCIDENTAL = frozenset({"train.checkpoint_seconds", "data.leaks"})


def flatten(config: Config) -> dict[str, Value]:
    """Every setting under its dotted name, in the order of definition."""
    return {
        f"{section.name}.{setting.name}": getattr(getattr(config, section.name), setting.name)
        for section in dataclasses.fields(config)
        for setting in dataclasses.fields(getattr(config, section.name))
    }


@functools.cache
def setting_types() -> dict[str, Any]:
    """Dotted name -> annotated type of every setting."""
    sections = typing.get_type_hints(Config)
    return {
        f"{section}.{name}": kind
        for section, cls in sections.items()
        for name, kind in typing.get_type_hints(cls).items()
    }


def vary(config: Config, changes: Mapping[str, Value]) -> Config:
    """A copy of `config` with the settings of `changes` (dotted name -> value) replaced.

    Strings are read as the setting's type, so this serves the command line and study files alike.
    Raises SettingError for an unknown name (with the nearest right one), a wrong type or a value out of range.
    """
    by_section: dict[str, dict[str, Value]] = {}
    for name, value in changes.items():
        section, _, key = name.partition(".")
        by_section.setdefault(section, {})[key] = read_value(name, value)
    sections = {s: dataclasses.replace(getattr(config, s), **values) for s, values in by_section.items()}
    return dataclasses.replace(config, **sections)


def fit_types(section: str, settings: object) -> None:
    """Check that every value of a section has its setting's type; whole numbers become floats where a float is due.

    To be called first of all in the section's `__post_init__`: the bounds may then compare what they like.
    """
    for name, kind in typing.get_type_hints(type(settings)).items():
        value = getattr(settings, name)
        fitted = checked(f"{section}.{name}", kind, value)
        if fitted is not value:
            object.__setattr__(settings, name, fitted)


def read_value(name: str, value: Value) -> Value:
    """`value` as the type of the setting `name`, read from its text if it is a string (a command line has no other).

    Raises SettingError if there is no such setting (with the nearest right name) or the value does not fit its type.
    """
    kinds = setting_types()
    if name not in kinds:
        near = nearest(name, kinds)
        raise SettingError(
            f"there is no setting {name!r}",
            f"did you mean {near}?" if near else "known settings: " + ", ".join(kinds),
        )
    kind = kinds[name]
    if isinstance(value, str) and str not in typing.get_args(kind) and kind is not str:
        value = parse(kind, value)
    return checked(name, kind, value)


def parse(kind: Any, text: str) -> Value:
    """`text` read as `kind` (int, float, bool or such a type | None); `text` itself if it cannot be read so."""
    options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if type(None) in options and text.lower() in ("", "none"):
        return None
    if bool in options and text.lower() in TRUE | FALSE:
        return text.lower() in TRUE
    with suppress(ValueError):
        if int in options:
            return int(text)
        if float in options:
            return float(text)
    return text


def checked(name: str, kind: Any, value: Value) -> Value:
    """`value` if it is of `kind`, an int turned float where a float is due. Raises SettingError otherwise."""
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        require(value in choices, f"{name} must be one of {', '.join(choices)}, got {value!r}")
        return value
    options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if type(value) in options:  # exactly: True is no whole number
        return value
    if float in options and type(value) is int:
        return float(value)
    words = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "none"}
    raise SettingError(f"{name} must be {' or '.join(words[option] for option in options)}, got {value!r}")


def nearest(name: str, known: Collection[str]) -> str | None:
    """The known dotted name that `name` most likely means, None if there is no likely one.

    The section may be missing or wrong, and a setting may be named by the first letters of its words (lr, bs).
    """
    name = name.lower().replace("-", "_")
    by_key = {full.rpartition(".")[2]: full for full in known}  # keys are unique across sections (tested)
    key = name.rpartition(".")[2]
    by_initials = {"".join(word[0] for word in known_key.split("_")): full for known_key, full in by_key.items()}
    if len(key) > 1 and key in by_initials:
        return by_initials[key]
    if near := difflib.get_close_matches(name, known, n=1, cutoff=0.8):
        return near[0]
    near = difflib.get_close_matches(key, by_key, n=1, cutoff=0.6)
    return by_key[near[0]] if near else None
