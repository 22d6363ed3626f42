"""What everything beyond scoring costs: intervals, thresholds, calibration, slices, damages, heat maps, pages.

Run: python benchmarks/judging_extras.py STORE RUN SPLIT. Judges RUN's model on SPLIT as `dftrack evaluate` does,
and says how long the plain forward passes over the split took, those over damaged pictures, and all the rest.
"""

import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dftrack import reassessment
from dftrack.learning import assessment, evaluation
from dftrack.reassessment import Request, evaluate
from dftrack.tracking import open_tracker


def main(store: Path, run: str, split: str) -> None:
    """Judge once, and say where the time went."""
    spent: Counter[str] = Counter()

    def timed(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **more: Any) -> Any:
            began = time.perf_counter()
            try:
                return work(*args, **more)
            finally:
                spent[name] += time.perf_counter() - began

        return wrapper

    evaluation.score_pixels = timed("plain forward passes", evaluation.score_pixels)
    assessment.score_pixels = timed("forward passes over damaged pictures", assessment.score_pixels)
    for module, name in ((assessment, "robustness"), (assessment, "examine"), (assessment, "group_intervals"),
                         (assessment, "slice_table"), (assessment, "read_traits")):  # fmt: skip
        setattr(module, name, timed(f"(of which {name})", getattr(module, name)))
    reassessment._judge = timed("judging in all", reassessment._judge)
    tracker = open_tracker(store)
    found = evaluate(tracker, store, Request(run, splits=(split,)), lambda what, done, total: None)
    rest = spent["judging in all"] - spent["plain forward passes"]
    pictures = found.reports[0].metrics["n"]
    print(f"{pictures:.0f} pictures of {split}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for name, seconds in spent.items():
        print(f"  {name}: {seconds:.1f} s")
    print(f"everything beyond the plain forward passes: {rest:.1f} s")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
