"""Contenders in turn (A B A B ...), each turn in a fresh process; then medians, ratios, checks, versions and device.

A fresh process for every turn: the allocator's setting, warm kernels and threads of one must not help the next.
What was not measured is said, with the reason; it never becomes a number. `show` ends with one JSON line.
"""

import argparse
import json
import math
import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Summary:
    """One contender's turns. A ratio says how many times better than the base it is: 2.0 = twice as fast."""

    median: float
    low: float
    high: float
    ratio: float  # of the medians
    ratio_low: float  # the turn-by-turn ratios, the worst
    ratio_high: float  # and the best


@dataclass(frozen=True, slots=True)
class Check:
    """Whether the result was the same. `passed` None: not measured."""

    what: str
    passed: bool | None
    seen: str

    def __str__(self) -> str:
        word = {True: "ok", False: "NOT SO", None: "not measured"}[self.passed]
        return f"{word:12}  {self.what}: {self.seen}"


@dataclass(slots=True)
class Report:
    """What one script found out about one claim."""

    claim: str
    wanted: str
    base: str  # the contender that ratios are against
    unit: str
    samples: Mapping[str, Sequence[float]]  # contender -> a value for each turn; the same number of turns for all
    more_is_better: bool  # True for images/s, False for seconds
    setting: Mapping[str, Any] = field(default_factory=dict)
    checks: Sequence[Check] = ()
    not_measured: Mapping[str, str] = field(default_factory=dict)  # contender or claim -> why

    def summaries(self) -> dict[str, Summary]:
        """Contender -> its summary."""
        return summarise(self.samples, self.base, more_is_better=self.more_is_better)


def summarise(samples: Mapping[str, Sequence[float]], base: str, *, more_is_better: bool) -> dict[str, Summary]:
    """Medians and ratios of every contender against `base`, in the order given."""
    of_base = samples[base]
    found = {}
    for name, values in samples.items():
        if len(values) != len(of_base) or not values:
            raise ValueError(f"{name} had {len(values)} turns, {base} had {len(of_base)}: they are not side by side")
        by_turn = [times_better(value, other, more_is_better) for value, other in zip(values, of_base, strict=True)]
        whole = times_better(median(values), median(of_base), more_is_better)
        found[name] = Summary(median(values), min(values), max(values), whole, min(by_turn), max(by_turn))
    return found


def times_better(value: float, base: float, more_is_better: bool) -> float:
    """How many times better `value` is than `base`."""
    top, bottom = (value, base) if more_is_better else (base, value)
    return top / bottom if bottom else math.inf


def furthest(first: Sequence[float], second: Sequence[float]) -> float:
    """The largest relative difference between two rows of numbers, as far as both go; NaN anywhere gives infinity."""
    worst = 0.0
    for a, b in zip(first, second, strict=False):
        apart = abs(a - b) / max(abs(a), abs(b), 1e-30)
        worst = max(worst, apart if math.isfinite(apart) else math.inf)
    return worst


# ---- taking turns


def in_turn(contenders: Mapping[str, Callable[[], T]], turns: int) -> dict[str, list[T]]:
    """A B A B ...: every contender once in each of so many turns. What is done is told on standard error."""
    found: dict[str, list[T]] = {name: [] for name in contenders}
    for turn in range(turns):
        for name, work in contenders.items():
            print(f"turn {turn + 1} of {turns}: {name}", file=sys.stderr, flush=True)
            found[name].append(work())
    return found


def fresh(work: Callable[..., T], *arguments: Any) -> T:
    """work(*arguments) in a new process (spawned, not forked), which then ends. Both must be picklable."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(work, *arguments).result()


# ---- showing


def show(report: Report) -> None:
    """`tell`, and end the script with 1 if a check failed."""
    if not tell(report):
        raise SystemExit(1)


def tell(report: Report) -> bool:
    """Print a table for people, then one line of JSON for documents. Says whether no check failed."""
    print(f"\n{report.claim}    wanted: {report.wanted}")
    if report.samples:
        width = max(map(len, report.samples))
        print(f"{'':{width}}  {'median ' + report.unit:>18}  {'of turns':>21}  {'against ' + report.base}")
        for name, s in report.summaries().items():
            turns = f"{short(s.low)} to {short(s.high)}"
            print(f"{name:{width}}  {short(s.median):>18}  {turns:>21}  {s.ratio:.2f} x"
                  f" ({s.ratio_low:.2f} to {s.ratio_high:.2f})")  # fmt: skip
    for check in report.checks:
        print(check)
    for name, why in report.not_measured.items():
        print(f"not measured  {name}: {why}")
    print("setting  " + ", ".join(f"{name} {value}" for name, value in report.setting.items()))
    device = here()
    print("device   " + ", ".join(f"{name} {value}" for name, value in device.items()))
    print("JSON " + json.dumps({**asdict(report), "summaries": {n: asdict(s) for n, s in report.summaries().items()}
                                if report.samples else {}, "device": device}))  # fmt: skip
    sys.stdout.flush()
    return all(check.passed is not False for check in report.checks)


def short(value: float) -> str:
    """Three to four digits, whatever the size."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def here() -> dict[str, str]:
    """Versions and device, and how busy the machine is; no name of the machine, no path, no user."""
    from dftrack.runtime import provenance

    origin = provenance()
    machine = {name: value for name, value in origin.machine.items() if name != "host"}
    versions = {name: value for name, value in origin.versions.items() if name in ("dftrack", "python", "torch")}
    busy = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    changed = " and changes" if origin.diff else ""
    return {**machine, **versions, "commit": (origin.commit[:10] or "unknown") + changed, "load": busy}


def arguments(doc: str | None, *, size: int = 224, turns: int = 1) -> argparse.ArgumentParser:
    """The options that every script has; small defaults, so that it can be tried at once."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faces", default="sample", help="sample, a folder of faces or a manifest.csv [sample]")
    parser.add_argument("--size", type=int, default=size, help=f"pixels, side of the square [{size}]")
    parser.add_argument("--turns", type=int, default=turns, help=f"how often each contender has its turn [{turns}]")
    parser.add_argument("--store", type=Path, default=Path("build/benchmarks"), help="where decoded pictures stay")
    return parser
