"""The dimensions of a search: ranges and choices of settings, as plain values."""

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal

from dftrack.config import Value

Params = dict[str, Value]  # dotted name -> value: one point of a space
MANY = 10_000  # a dimension with more values than this is treated as endless


@dataclass(frozen=True, slots=True)
class Float:
    """A real number from `low` to `high`, both included; evenly spread over the logarithm if `log`."""

    low: float
    high: float
    log: bool = False
    step: float | None = None  # only low, low + step, ...

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}" + (" (log)" if self.log else "") + _steps(self.step)

    def values(self) -> tuple[float, ...] | None:
        """Every value it can take, ascending; None if there is no end of them."""
        if self.step is None:
            return None
        low, step = Decimal(repr(self.low)), Decimal(repr(self.step))
        count = int((Decimal(repr(self.high)) - low) / step) + 1
        return tuple(float(low + i * step) for i in range(count)) if count <= MANY else None

    def nearest(self, value: float) -> float:
        """The value it can take that is nearest: 0.3 for 3 x 0.1, which is 0.30000000000000004. No step: itself."""
        if self.step is None:
            return value
        low, step = Decimal(repr(self.low)), Decimal(repr(self.step))
        last = int((Decimal(repr(self.high)) - low) / step)
        return float(low + min(max(round((Decimal(value) - low) / step), 0), last) * step)

    def ends(self) -> tuple[float, ...]:
        return (self.low, self.high)

    def place(self, value: Value) -> float:
        """Where a value lies between the ends, 0 to 1."""
        return _place(self, value)

    def contains(self, value: Value) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        values = self.values()
        return self.low <= value <= self.high if values is None else any(math.isclose(value, v) for v in values)


@dataclass(frozen=True, slots=True)
class Int:
    """A whole number from `low` to `high`, both included."""

    low: int
    high: int
    log: bool = False
    step: int = 1

    def __str__(self) -> str:
        return f"{self.low} to {self.high}" + (" (log)" if self.log else "") + _steps(self.step if self.step > 1 else 0)

    def values(self) -> tuple[int, ...] | None:
        """Every value it can take, ascending; None if there are more than `MANY`."""
        values = range(self.low, self.high + 1, self.step)
        return tuple(values) if len(values) <= MANY else None

    def ends(self) -> tuple[int, ...]:
        return (self.low, self.high)

    def place(self, value: Value) -> float:
        """Where a value lies between the ends, 0 to 1."""
        return _place(self, value)

    def contains(self, value: Value) -> bool:
        return type(value) is int and value in range(self.low, self.high + 1, self.step)


@dataclass(frozen=True, slots=True)
class Choice:
    """One of several values, without order."""

    options: tuple[Value, ...]

    def __str__(self) -> str:
        return "one of " + ", ".join(map(str, self.options))

    def values(self) -> tuple[Value, ...]:
        return self.options

    def ends(self) -> tuple[Value, ...]:
        return self.options

    def place(self, value: Value) -> float:
        """Where a value stands in the list, 0 to 1."""
        return self.options.index(value) / len(self.options)

    def contains(self, value: Value) -> bool:
        return value in self.options


Dimension = Float | Int | Choice
Space = Mapping[str, Dimension]  # dotted name of a setting -> what it may be


def size(space: Space) -> int | None:
    """How many points the space has; None if it is endless."""
    counts = [None if (values := dimension.values()) is None else len(values) for dimension in space.values()]
    return None if None in counts else math.prod(count for count in counts if count is not None)


def points(space: Space) -> Iterator[Params]:
    """Every point of a space that is not endless, the last setting changing fastest."""
    axes = [dimension.values() for dimension in space.values()]
    assert None not in axes, "an endless space cannot be listed"
    for values in itertools.product(*(axis for axis in axes if axis is not None)):
        yield dict(zip(space, values, strict=True))


def _place(range_: Float | Int, value: Value) -> float:
    assert isinstance(value, int | float), f"{value!r} lies in no range"
    low, high, at = float(range_.low), float(range_.high), float(value)
    if range_.log:
        low, high, at = math.log(low), math.log(high), math.log(at)
    return min(1.0, max(0.0, (at - low) / (high - low))) if high > low else 0.0


def _steps(step: float | None) -> str:
    return f" in steps of {step:g}" if step else ""
