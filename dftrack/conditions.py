"""What a run must have to be listed: a name, a comparison, a value."""

import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dftrack.errors import SettingError
from dftrack.run_index import UNDEFINED, Known

TIME = re.compile(r"[0-9]{4}(-[0-9]{2}(-[0-9]{2}([ T][0-9]{2}(:[0-9]{2}(:[0-9]{2})?)?)?)?)?")  # 2026 to seconds
CONDITION = re.compile(r"\s*(.+?)\s*(<=|>=|!=|==|=|<|>|~)\s*(.*?)\s*", re.DOTALL)
COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "=": operator.eq, "!=": operator.ne,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Condition:
    """A run must have a value of this name for which this holds; `~`: the value contains the text, in any case."""

    name: str
    op: str  # < <= > >= = != ~
    value: str

    @staticmethod
    def read(text: str) -> "Condition":
        """`NAME OP VALUE`, like "train.learning_rate<1e-3". Raises SettingError if it is no such thing."""
        found = CONDITION.fullmatch(text)
        if not found or not found[3]:
            raise SettingError(
                f"--where wants NAME, one of < <= > >= = != ~ and a value, got {text!r}",
                "for example --where 'train.learning_rate<1e-3' or --where study=default",
            )
        return Condition(found[1], "=" if found[2] == "==" else found[2], _unquoted(found[3]))

    def holds(self, known: Known) -> bool:
        """Whether `known` fits: as numbers if both are, else as text. An undefined metric equals only "undefined"."""
        if self.op == "~":
            return self.value.lower() in str(known).lower()
        if known == UNDEFINED and self.value != UNDEFINED:
            return False
        ours, wanted = number_of(known), number_of(self.value)
        if ours is not None and wanted is not None:
            if math.isnan(ours) and math.isnan(wanted):
                return self.op == "="
            return COMPARE[self.op](ours, wanted)
        if self.op in ("=", "!="):
            return COMPARE[self.op](str(known), self.value)
        return ours is None and wanted is None and COMPARE[self.op](str(known), self.value)

    def holds_at(self, clock: str) -> bool:
        """Whether a time, like "2026-03-01 14:30:05", fits: as far as the value goes, so that a day is all its hours.

        Raises SettingError if the value is no time.
        """
        if self.op == "~":
            return self.holds(clock)
        if not TIME.fullmatch(self.value):
            raise SettingError(
                f"--where {self.name} wants a time of this machine, got {self.value!r}",
                "2026, 2026-03, 2026-03-01 or '2026-03-01 14:30'",
            )
        return COMPARE[self.op](clock[: len(self.value)], self.value.replace("T", " "))


def number_of(value: Known) -> float | None:
    """The number that a value is or that its text says, None if it is none."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return None
    return value


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text
