"""What the numbers of one classifier owe each other: a published table that breaks this cannot be right.

With s the share of fakes, A accuracy, P precision, R recall, t the caught fakes as a share of all pictures:

    F1 = 2 P R / (P + R)                         so F1 lies between P and R
    1 - A = t (1 / P + 1 / R - 2),  s = t / R    every error is a false alarm, t / P - t, or a miss, t / R - t
    t <= A                                       the caught fakes are among the right answers; else s > 1 or worse

Printed numbers are rounded, so each stands for an interval, and each bound below is monotone in every number: the
corners decide. The check accuses only where no unrounded numbers can satisfy an identity, never a possible table.
"""

import math
from dataclasses import dataclass
from itertools import product

FOUR_DIGITS = 5e-5  # half a unit of the last of four printed digits
_SLACK = 1e-12  # for the arithmetic itself


@dataclass(frozen=True, slots=True)
class ShareRange:
    """The share of fakes, in [0, 1], that accuracy, precision and recall imply: `value` from the numbers as printed,
    `low` to `high` with their rounding."""

    value: float
    low: float
    high: float


def implied_share(accuracy: float, precision: float, recall: float, rounding: float = FOUR_DIGITS) -> ShareRange | None:
    """The share of fakes among the pictures that gave these numbers: s = (1 - A) / (1 + R / P - 2 R).

    All in [0, 1]; `rounding` is half a unit of the last printed digit. None where the numbers leave the share open:
    no fake caught (P or R = 0), everything right (P = R = 1). Not checked for being possible: `check_identities`.
    """
    if min(precision, recall) <= 0 or precision == recall == 1:
        return None
    corners = [
        _share(a, p, r)
        for a, p, r in product(_around(accuracy, rounding), _around(precision, rounding), _around(recall, rounding))
    ]
    value = _share(accuracy, precision, recall)
    return ShareRange(value=value, low=max(0.0, min(corners)), high=min(1.0, max(corners)))


def check_identities(
    accuracy: float | None,
    precision: float | None,
    recall: float | None,
    f1: float | None,
    share_fake: float | None = None,
    *,
    rounding: float = FOUR_DIGITS,
) -> list[str]:
    """The contradictions among the printed numbers of one classifier, each a sentence; empty if it can exist.

    All in [0, 1]; None = not given, nothing is asked of it. `rounding` is half a unit of the last printed digit: 5e-5
    for four digits, about 1e-9 for numbers at full precision.
    """
    given = {"accuracy": accuracy, "precision": precision, "recall": recall, "F1": f1, "share of fakes": share_fake}
    outside = [name for name, value in given.items() if value is not None and not 0 <= value <= 1]
    if outside:
        return [f"{name} {given[name]:g} is not a number between 0 and 1" for name in outside]
    if precision is None or recall is None:
        return []
    if rounding < _SLACK and (precision == 0) != (recall == 0):
        return [f"precision {precision:g} and recall {recall:g}: without a caught fake both are 0, with one neither is"]
    found = _check_f1(precision, recall, f1, rounding) if f1 is not None else []
    if accuracy is not None:
        found += _check_accuracy(accuracy, precision, recall, rounding)
        if share_fake is not None and not found:
            found += _check_share(accuracy, precision, recall, share_fake, rounding)
    return found


def _check_f1(precision: float, recall: float, f1: float, rounding: float) -> list[str]:
    """F1 against the harmonic mean, which rises with both precision and recall."""
    (p_low, p_high), (r_low, r_high) = _around(precision, rounding), _around(recall, rounding)
    margin = rounding + _SLACK
    if _harmonic(p_low, r_low) - margin <= f1 <= _harmonic(p_high, r_high) + margin:
        return []
    must = f"it must be their harmonic mean, {_harmonic(precision, recall):.4f}"
    if min(precision, recall) - 2 * margin <= f1 <= max(precision, recall) + 2 * margin:
        return [f"F1 {f1:g} lies between precision {precision:g} and recall {recall:g}, but {must}"]
    side = "above" if f1 > precision else "below"
    return [f"F1 {f1:g} lies {side} both precision {precision:g} and recall {recall:g}: {must}"]


def _check_accuracy(accuracy: float, precision: float, recall: float, rounding: float) -> list[str]:
    """Whether any share of fakes in (0, 1) gives this accuracy with this precision and recall."""
    a_low, a_high = _around(accuracy, rounding)
    errors_per_catch = _errors_per_catch(_around(precision, rounding)[0], _around(recall, rounding)[0])  # the most
    numbers = f"accuracy {accuracy:g}, precision {precision:g} and recall {recall:g}"
    if precision == recall == 1 and 1 - a_high > a_high * errors_per_catch + _SLACK:
        return [f"{numbers}: nothing can be judged wrongly at that precision and recall, so accuracy must be 1"]
    if a_low == 1 and _errors_per_catch(_around(precision, rounding)[1], _around(recall, rounding)[1]) > _SLACK:
        return [f"{numbers}: at accuracy 1 nothing is judged wrongly, so precision and recall must be 1"]
    if 1 - a_high > a_high * errors_per_catch + _SLACK:  # even the fewest caught fakes, t = (1 - A) / errors, exceed A
        share = _share(accuracy, precision, recall)
        caught = (1 - accuracy) / _errors_per_catch(precision, recall)
        if share >= 1:
            return [f"{numbers} imply a share of fakes of {share:.1%}, more than all pictures"]
        return [
            f"{numbers} imply {share:.1%} fakes, and caught fakes of {caught:.1%} of all pictures: more than the "
            f"{accuracy:.1%} of right answers they belong to"
        ]
    return []


def _check_share(accuracy: float, precision: float, recall: float, share_fake: float, rounding: float) -> list[str]:
    """Whether the share given can be the one that the three numbers imply."""
    implied = implied_share(accuracy, precision, recall, rounding)
    margin = rounding + _SLACK
    if implied is not None and not implied.low - margin <= share_fake <= implied.high + margin:
        return [
            f"accuracy {accuracy:g}, precision {precision:g} and recall {recall:g} imply {implied.value:.1%} fakes "
            f"({implied.low:.1%} to {implied.high:.1%} with rounding), but {share_fake:.1%} is given"
        ]
    if precision == recall == 0 and accuracy > 1 - share_fake + 2 * rounding + _SLACK:
        return [f"accuracy {accuracy:g} without a caught fake needs at least as many reals, not {1 - share_fake:.1%}"]
    return []


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


def _around(value: float, rounding: float) -> tuple[float, float]:
    return max(0.0, value - rounding), min(1.0, value + rounding)
