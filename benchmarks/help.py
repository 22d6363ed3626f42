"""How long `--help` takes, as a multiple of `python -c pass`; with `mlflow --help` for comparison.

Run: python benchmarks/help.py [rounds]. Wanted: 2.5 times `python -c pass`, and a tenth of `mlflow --help`.
"""

import subprocess
import sys
import time
from statistics import median

# The script that pip writes as bin/dftrack; --help is answered before anything heavy is imported.
SCRIPT = "import re, sys; from dftrack.__main__ import main; main()"
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "dftrack --help": ["-c", SCRIPT, "--help"],
    "dftrack baseline --help": ["-c", SCRIPT, "baseline", "--help"],
    "mlflow --help": ["-m", "mlflow", "--help"],
}


def seconds(arguments: list[str]) -> float:
    """Wall clock of one Python with these arguments."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, timeout=120)
    return time.perf_counter() - start


def main(rounds: int = 7) -> None:
    """Time every command in turn, so many rounds, and print medians and ratios."""
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(rounds):
        for name, arguments in COMMANDS.items():
            times[name].append(seconds(arguments))
    base = median(times["python -c pass"])
    for name, taken in times.items():
        print(f"{name:26} {median(taken) * 1000:8.1f} ms  {median(taken) / base:6.1f} x")


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:]))
