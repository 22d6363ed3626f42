"""What the numbers of one classifier owe each other: a published table that breaks this cannot be right.

With s the share of fakes, A accuracy, P precision, R recall, t the caught fakes as a share of all pictures, and for
each of them x false alarms and y misses:

    P = 1 / (1 + x),  R = 1 / (1 + y),  F1 = 2 P R / (P + R) = 2 / (2 + x + y)
    1 - A = t (x + y),  s = t (1 + y)
    x, y >= 0,  t (1 + x + y) <= 1               the rest are reals that pass as real

Printed numbers are rounded, so each stands for an interval. In x, y and 1 / t all of this is linear, so whether any
classifier satisfies it is decided exactly, in fractions (elimination after Fourier and Motzkin), whichever of the
numbers are given. A possible table is never accused.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations, product

FOUR_DIGITS = 5e-5  # half a unit of the last of four printed digits
NAMES = {
    "accuracy": "accuracy", "precision": "precision", "recall": "recall", "f1": "F1", "share_fake": "share of fakes",
}  # fmt: skip
_SLACK = 1e-12  # for the arithmetic that made the numbers
_NO_LIMIT = (Fraction(0), Fraction(1))

Rounding = float | Mapping[str, float]  # of every number, or of each by its name: half a unit of the last digit
Range = tuple[Fraction, Fraction]
Row = tuple[Fraction, ...]  # (a, b, ..., c) says a u + b v + ... <= c


@dataclass(frozen=True, slots=True)
class ShareRange:
    """The share of fakes, in [0, 1], that accuracy, precision and recall imply: `value` from the numbers as printed,
    `low` to `high` with their rounding."""

    value: float
    low: float
    high: float


def implied_share(
    accuracy: float, precision: float, recall: float, rounding: Rounding = FOUR_DIGITS
) -> ShareRange | None:
    """The share of fakes among the pictures that gave these numbers: s = (1 - A) / (1 + R / P - 2 R).

    All in [0, 1]; `rounding` is half a unit of the last printed digit. None where the numbers leave the share open:
    no fake caught (P or R = 0), everything right (P = R = 1). Not checked for being possible: `check_identities`.
    """
    if min(precision, recall) <= 0 or precision == recall == 1:
        return None
    printed = {"accuracy": accuracy, "precision": precision, "recall": recall}
    corners = [_share(*corner) for corner in product(*(_around(v, _half(rounding, n)) for n, v in printed.items()))]
    low, high = _clamped(min(corners), 0.0, 1.0), _clamped(max(corners), 0.0, 1.0)
    return ShareRange(value=_clamped(_share(accuracy, precision, recall), low, high), low=low, high=high)


def can_contradict(names: Collection[str]) -> bool:
    """Whether numbers of these names owe each other anything at all: accuracy alone, or recall beside the share of
    fakes, can have any values in [0, 1]."""
    return len(set(names)) >= 3 or ("f1" in names and bool({"accuracy", "precision", "recall"} & set(names)))


def check_identities(
    accuracy: float | None,
    precision: float | None,
    recall: float | None,
    f1: float | None,
    share_fake: float | None = None,
    *,
    rounding: Rounding = FOUR_DIGITS,
) -> list[str]:
    """The contradictions among the printed numbers of one classifier, each a sentence; empty if it can exist.

    All in [0, 1]; None = not given, nothing is asked of it. `rounding` is half a unit of the last printed digit, of
    all or of each by its name in `NAMES`: 5e-5 for four digits, about 1e-9 for numbers at full precision.
    """
    told = {"accuracy": accuracy, "precision": precision, "recall": recall, "f1": f1, "share_fake": share_fake}
    given = {name: float(value) for name, value in told.items() if value is not None}
    outside = [name for name, value in given.items() if not 0 <= value <= 1]
    if outside:
        return [f"{NAMES[name]} {given[name]:g} is not a number between 0 and 1" for name in outside]
    ranges = {name: _range(value, _half(rounding, name)) for name, value in given.items()}
    return [] if _possible(ranges) else _reasons(given, ranges, rounding)


# ---- is there a classifier?


def _possible(ranges: Mapping[str, Range]) -> bool:
    """Whether one classifier can have its numbers in all these ranges. A name that is not there may be anything."""
    return _possible_without_catch(ranges) or _possible_with_catch(ranges)


def _possible_without_catch(ranges: Mapping[str, Range]) -> bool:
    """t = 0: precision, recall and F1 are 0 or undefined, and every fake is an error."""
    if any(ranges.get(name, _NO_LIMIT)[0] > 0 for name in ("precision", "recall", "f1")):
        return False
    return ranges.get("share_fake", _NO_LIMIT)[0] <= 1 - ranges.get("accuracy", _NO_LIMIT)[0]


def _possible_with_catch(ranges: Mapping[str, Range]) -> bool:
    """t > 0: rows in n = 1 / t, z = x + y and y."""
    rows = [_row(y=-1), _row(z=-1, y=1), _row(n=-1, z=1, most=-1)]
    for name, z, y, times in (("precision", 1, -1, 1), ("recall", 0, 1, 1), ("f1", 1, 0, 2)):
        low, high = ranges.get(name, _NO_LIMIT)
        if high <= 0:
            return False
        rows.append(_row(z=-z, y=-y, most=times - times / high))
        if low > 0:
            rows.append(_row(z=z, y=y, most=times / low - times))
    if "accuracy" in ranges:
        low, high = ranges["accuracy"]
        rows += [_row(n=low - 1, z=1), _row(n=1 - high, z=-1)]
    if "share_fake" in ranges:
        low, high = ranges["share_fake"]
        rows += [_row(n=-high, y=1, most=-1), _row(n=low, y=-1, most=1)]
    return _solvable(rows)


def _row(n: Fraction | int = 0, z: int = 0, y: int = 0, most: Fraction | int = 0) -> Row:
    return Fraction(n), Fraction(z), Fraction(y), Fraction(most)


def _solvable(rows: Sequence[Row]) -> bool:
    """Whether any numbers satisfy all rows: one unknown after the other is eliminated."""
    while len(rows[0]) > 2:
        over = [row for row in rows if row[0] > 0]
        under = [row for row in rows if row[0] < 0]
        free = [row[1:] for row in rows if row[0] == 0]
        # each upper bound of the unknown must leave room for each lower one
        pairs = [tuple(b * u[0] - a * d[0] for a, b in zip(u[1:], d[1:], strict=True)) for u, d in product(over, under)]
        rows = list(dict.fromkeys([*free, *pairs]))
    if any(most < 0 for factor, most in rows if factor == 0):
        return False
    highest = min((most / factor for factor, most in rows if factor > 0), default=None)
    lowest = max((most / factor for factor, most in rows if factor < 0), default=None)
    return highest is None or lowest is None or lowest <= highest


# ---- if not, why?


def _reasons(given: Mapping[str, float], ranges: Mapping[str, Range], rounding: Rounding) -> list[str]:
    """Sentences for numbers that no classifier has: the best known identities, else the fewest that contradict."""

    def broken(*names: str) -> bool:
        return set(names) <= set(given) and not _possible({name: ranges[name] for name in names})

    if broken("precision", "recall"):
        told = f"precision {given['precision']:g} and recall {given['recall']:g}"
        return [f"{told}: without a caught fake both are 0, with one neither is"]
    found = [_why_not_f1(given)] if broken("precision", "recall", "f1") else []
    if broken("accuracy", "precision", "recall"):
        found.append(_why_not_accuracy(given))
    if found:
        return found
    if broken("accuracy", "precision", "recall", "share_fake"):
        found = _why_not_share(given, rounding)
    return found or [_why_not_together(given, ranges)]


def _why_not_f1(given: Mapping[str, float]) -> str:
    precision, recall, f1 = given["precision"], given["recall"], given["f1"]
    must = f"it must be their harmonic mean, {_harmonic(precision, recall):.4f}"
    if min(precision, recall) <= f1 <= max(precision, recall):
        return f"F1 {f1:g} lies between precision {precision:g} and recall {recall:g}, but {must}"
    side = "above" if f1 > precision else "below"
    return f"F1 {f1:g} lies {side} both precision {precision:g} and recall {recall:g}: {must}"


def _why_not_accuracy(given: Mapping[str, float]) -> str:
    accuracy, precision, recall = given["accuracy"], given["precision"], given["recall"]
    numbers = f"accuracy {accuracy:g}, precision {precision:g} and recall {recall:g}"
    if precision == recall == 1:
        return f"{numbers}: nothing can be judged wrongly at that precision and recall, so accuracy must be 1"
    if accuracy == 1:
        return f"{numbers}: at accuracy 1 nothing is judged wrongly, so precision and recall must be 1"
    share = _share(accuracy, precision, recall)
    if share >= 1:
        return f"{numbers} imply a share of fakes of {share:.1%}, more than all pictures"
    return (
        f"{numbers} imply {share:.1%} fakes, and caught fakes of {share * recall:.1%} of all pictures: more than the "
        f"{accuracy:.1%} of right answers they belong to"
    )


def _why_not_share(given: Mapping[str, float], rounding: Rounding) -> list[str]:
    accuracy, precision, recall = given["accuracy"], given["precision"], given["recall"]
    implied = implied_share(accuracy, precision, recall, rounding)
    if implied is None or implied.low <= given["share_fake"] <= implied.high:
        return []
    return [
        f"accuracy {accuracy:g}, precision {precision:g} and recall {recall:g} imply {implied.value:.1%} fakes "
        f"({implied.low:.1%} to {implied.high:.1%} with rounding), but {given['share_fake']:.1%} is given"
    ]


def _why_not_together(given: Mapping[str, float], ranges: Mapping[str, Range]) -> str:
    """The fewest numbers that contradict each other, and what one of them would have to be beside the others."""
    names = next(
        names
        for size in range(2, len(given) + 1)
        for names in combinations(given, size)
        if not _possible({name: ranges[name] for name in names})
    )
    if set(names) == {"precision", "recall", "share_fake"}:
        precision, recall, share = (given[name] for name in names)
        alarms = share * recall * (1 / precision - 1) if precision else 0.0
        if alarms > 1 - share:
            return (
                f"precision {precision:g}, recall {recall:g} and a share of fakes of {share:g} imply false alarms of "
                f"{alarms:.1%} of all pictures, more than the {1 - share:.1%} that are real"
            )
    moved = next(name for name in ("accuracy", "f1", "share_fake", "recall", "precision") if name in names)
    others = [name for name in names if name != moved]
    exact = {name: (Fraction(str(given[name])),) * 2 for name in others}
    bound = _bound(moved, given[moved], exact) or _bound(moved, given[moved], {name: ranges[name] for name in others})
    beside = " and ".join(f"{NAMES[name]} {given[name]:g}" for name in others)
    return f"with {beside}, {NAMES[moved]} must be {bound}, but {given[moved]:g} is given" + _needed(given, names)


def _bound(moved: str, value: float, others: Mapping[str, Range]) -> str:
    """In words, the possible values of `moved`, all of which lie on one side of `value`; empty if it has none."""
    here = Fraction(str(value))
    for words, far in (("at least", Fraction(1)), ("at most", Fraction(0))):
        near, reached = here, far
        if not _possible({**others, moved: (min(here, far), max(here, far))}):
            continue
        for _ in range(24):
            middle = (near + reached) / 2
            if _possible({**others, moved: (min(here, middle), max(here, middle))}):
                reached = middle
            else:
                near = middle
        return f"{words} {round(float(reached), 4):g}"
    return ""


def _needed(given: Mapping[str, float], names: Collection[str]) -> str:
    """What F1 and one of precision and recall ask of the other: F1 = 2 P R / (P + R), solved for it."""
    for known, other in (("precision", "recall"), ("recall", "precision")):
        if set(names) == {known, "f1"} and 2 * given[known] > given["f1"]:
            needed = given["f1"] * given[known] / (2 * given[known] - given["f1"])
            return f": it would need {other} {needed:.4g}"
    return ""


# ---- arithmetic


def _share(accuracy: float, precision: float, recall: float) -> float:
    """s = t / R, or infinity where no number of errors per caught fake can explain an error."""
    divisor = recall * _errors_per_catch(precision, recall) if recall > 0 else (1.0 if precision > 0 else math.inf)
    if divisor <= _SLACK:
        return math.inf if accuracy < 1 else 0.0
    return (1 - accuracy) / divisor


def _errors_per_catch(precision: float, recall: float) -> float:
    """Wrong answers per caught fake, 1 / P + 1 / R - 2, at least 0; infinite where nothing is caught."""
    return 1 / precision + 1 / recall - 2 if min(precision, recall) > 0 else math.inf


def _harmonic(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _half(rounding: Rounding, name: str) -> float:
    return rounding[name] if isinstance(rounding, Mapping) else rounding


def _around(value: float, rounding: float) -> tuple[float, float]:
    return max(0.0, value - rounding), min(1.0, value + rounding)


def _range(value: float, rounding: float) -> Range:
    """The numbers that `value` can stand for. A plain 0 or 1 comes out of arithmetic as it is."""
    half = Fraction(str(rounding)) + (0 if value in (0, 1) else Fraction(str(_SLACK)))
    exact = Fraction(str(value))
    return max(Fraction(0), exact - half), min(Fraction(1), exact + half)


def _clamped(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)
