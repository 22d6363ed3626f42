"""Verdicts -> rows on standard output, each as soon as it is known: for the eye, as CSV, or as one JSON object.

And how far the judging is, on standard error.
"""

import csv
import json
import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Literal, Protocol, Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dftrack.learning.detector import Verdict

Face = tuple[int, int, int, int]  # left, top, width, height in pixels of the file's picture

COLUMNS = ("file", "score", "verdict", "probability", "status", "reason")
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")  # a spreadsheet takes a cell that begins so for a formula, or trims it
Kind = Literal["plain", "csv", "json"]


class Rows(Protocol):
    """Writes one row a verdict."""

    def add(self, verdict: Verdict, heat_map: str | None = None, face: Face | None = None) -> None:
        """The next verdict, the file that explains it if one was asked for, and where the face is in a scene."""

    def finish(self, about: Mapping[str, object]) -> None:
        """All is said: `about` the model and the counts."""


def rows_to(kind: Kind, out: TextIO | None = None, faces: bool = False) -> Rows:
    """The writer for `kind`, to standard output unless told. faces: rows are faces in scenes, and say where."""
    out = out or sys.stdout
    kinds: dict[Kind, Callable[[TextIO, bool], Rows]] = {"plain": PlainRows, "csv": CsvRows, "json": JsonRows}
    return kinds[kind](out, faces)


class PlainRows:
    """Aligned columns, the file last, as long names have it best; control characters in names are spelled out."""

    def __init__(self, out: TextIO, faces: bool) -> None:
        self._out, self._faces = out, faces
        self._begun = False

    def add(self, verdict: Verdict, heat_map: str | None = None, face: Face | None = None) -> None:
        if not self._begun:
            self._out.write(f"{'verdict':<10}  {'P(fake)':>7}  {'calibrated':>10}  picture\n")
            self._begun = True
        score = "" if verdict.score is None else f"{verdict.score:.4f}"
        probability = "" if verdict.probability is None else f"{verdict.probability:.4f}"
        reason = f": {verdict.reason}" if verdict.reason else ""
        reason = reason if face is None else f", face of {face[2]} x {face[3]} at ({face[0]}, {face[1]}){reason}"
        line = f"{verdict.verdict or verdict.status:<10}  {score:>7}  {probability:>10}  {verdict.name}{reason}"
        self._out.write(printable(line) + "\n")
        self._out.flush()

    def finish(self, about: Mapping[str, object]) -> None:
        self._out.flush()


class CsvRows:
    """Comma-separated values with a header. No cell can act as a formula in a spreadsheet.

    A last column `face` (left top width height) where rows are faces.
    """

    def __init__(self, out: TextIO, faces: bool) -> None:
        self._out, self._faces = out, faces
        self._writer = csv.writer(out, lineterminator="\n")
        self._writer.writerow([*COLUMNS, "face"] if faces else COLUMNS)

    def add(self, verdict: Verdict, heat_map: str | None = None, face: Face | None = None) -> None:
        self._writer.writerow(
            [
                _encodable(f"./{verdict.name}" if verdict.name.startswith(FORMULA) else verdict.name),  # the same file
                "" if verdict.score is None else repr(verdict.score),
                verdict.verdict,
                "" if verdict.probability is None else repr(verdict.probability),
                verdict.status,
                _encodable(f"'{verdict.reason}" if verdict.reason.startswith(FORMULA) else verdict.reason),
                *([" ".join(map(str, face or ()))] if self._faces else []),
            ]
        )
        self._out.flush()

    def finish(self, about: Mapping[str, object]) -> None:
        self._out.flush()


class JsonRows:
    """One object: what `about` says, and the list `pictures`, whose rows are written as they come."""

    _BEGINNING = '{\n  "pictures": ['

    def __init__(self, out: TextIO, faces: bool) -> None:
        self._out, self._faces = out, faces
        self._begun = False

    def add(self, verdict: Verdict, heat_map: str | None = None, face: Face | None = None) -> None:
        row: dict[str, object] = {
            "file": verdict.name,
            "score": verdict.score,
            "verdict": verdict.verdict or None,
            "probability": verdict.probability,
            "status": verdict.status,
            "reason": verdict.reason,
        }
        if self._faces:
            row["face"] = face
        if heat_map is not None:
            row["heat_map"] = heat_map
        self._out.write((",\n    " if self._begun else self._BEGINNING + "\n    ") + json.dumps(row, allow_nan=False))
        self._begun = True
        self._out.flush()

    def finish(self, about: Mapping[str, object]) -> None:
        if not self._begun:
            self._out.write(self._BEGINNING)
        entries = [f"  {json.dumps(name)}: {json.dumps(value, allow_nan=False)}" for name, value in about.items()]
        self._out.write("\n  ],\n" + ",\n".join(entries) + "\n}\n")
        self._out.flush()


class JudgingScreen:
    """How many pictures are judged, on standard error: a live bar on a terminal, a line every ten seconds elsewhere.

    On a terminal that shows the rows themselves there is no bar: the rows are the progress.
    """

    EVERY = 10.0  # seconds between lines

    def __init__(self, total: int | None) -> None:  # None: nobody knows before, as with the faces of scenes
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._total, self._done = total, 0
        self._rows_show = sys.stdout.isatty()
        self._progress = Progress(
            TextColumn("judging"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[detail]}"),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal or self._rows_show,
            transient=True,
        )
        self._task = self._progress.add_task("", total=total, detail="")
        self._begun = self._told = time.monotonic()

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    @property
    def images_per_second(self) -> float:
        """Since the screen was made."""
        return self._done / max(time.monotonic() - self._begun, 1e-9)

    def advance(self) -> None:
        """One more picture is judged."""
        self._done += 1
        now = time.monotonic()
        rate = f"{self.images_per_second:.1f} images/s"
        self._progress.update(self._task, completed=self._done, detail=rate)
        if not self.console.is_terminal and now - self._told >= self.EVERY:
            self._told = now
            of = "" if self._total is None else f" of {self._total:,}"
            self.console.print(f"{self._done:,}{of} judged, {rate}")


def printable(text: str) -> str:
    """`text` on one line, with nothing in it that a terminal would obey: ESC becomes \\x1b."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape", "surrogatepass").decode() for letter in text
    )


def _encodable(text: str) -> str:
    """File names that are no UTF-8 with their odd bytes spelled out: a CSV is text."""
    return text.encode(errors="backslashreplace").decode()
