"""A comparison on paper: one picture, one self-contained page, and plain data."""

from collections.abc import Sequence
from pathlib import Path

from dftrack.comparison import SHORT_ID, Comparison, called, difference
from dftrack.document import Block, Grid, Heading, Picture, Words, to_html
from dftrack.files import write_bytes, write_text
from dftrack.learning import comparison_figures
from dftrack.tracking import RunRecord

COLUMNS = ("run", "split", "metric", "verdict", "difference", "p", "p, Holm", "pictures", "groups", "test")


def draw(found: Comparison) -> bytes:
    """ROC curves over each other, one panel a split, and loss curves over each other: a PNG."""
    return comparison_figures.curves(
        {called(run): list(found.predictions[run.run_id].values()) for run in found.runs},
        {called(run): found.histories[run.run_id] for run in found.runs},
    )


def write(found: Comparison, folder: Path) -> Path:
    """Write comparison.png and the self-contained comparison.html into `folder`; returns the page's path."""
    png = draw(found)
    write_bytes(folder / "comparison.png", png)
    write_text(folder / "comparison.html", to_html(_page(found, png), "Comparison of runs"))
    return folder / "comparison.html"


def folder_name(runs: Sequence[RunRecord]) -> str:
    """A folder's name for this comparison: the beginnings of the ids, the first eight of them."""
    more = f"-and-{len(runs) - 8}-more" if len(runs) > 8 else ""
    return "-".join(run.run_id[:SHORT_ID] for run in runs[:8]) + more


def plain(found: Comparison) -> dict[str, object]:
    """Everything but the curves, as plain data for JSON."""
    return {
        "runs": [{"run_id": run.run_id, "name": run.name, "status": run.status} for run in found.runs],
        "verdicts": found.verdicts(),
        "differences": [{"kind": d.kind, "name": d.name, "values": list(d.values)} for d in found.differences],
        "tests": [
            {
                "run_id": test.run,
                "against": found.runs[0].run_id,
                "split": test.split,
                "metric": test.metric,
                "method": test.method,
                "pictures": test.pictures,
                "groups": test.groups,
                "difference": test.paired.difference if test.paired else None,
                "low": test.paired.low if test.paired else None,
                "high": test.paired.high if test.paired else None,
                "p_value": test.paired.p_value if test.paired else None,
                "p_adjusted": test.adjusted,
                "verdict": test.word,
            }
            for test in found.tests
        ],
        "notes": list(found.notes),
    }


def rows_of_tests(found: Comparison) -> list[tuple[str, ...]]:
    """The tests as rows of words under COLUMNS."""
    return [
        (
            test.run[:SHORT_ID],
            test.split,
            test.metric,
            test.word,
            difference(test.paired),
            f"{test.paired.p_value:.2g}" if test.paired else "undefined",
            "undefined" if test.adjusted is None else f"{test.adjusted:.2g}",
            f"{test.pictures:,}",
            f"{test.groups:,}",
            test.method,
        )
        for test in found.tests
    ]


def _page(found: Comparison, png: bytes) -> list[Block]:
    runs = [called(run) for run in found.runs]
    blocks: list[Block] = [Heading("Comparison of runs", 1)]
    blocks += [Words(sentence, key=True) for sentence in found.verdicts()]
    blocks += [Words(note) for note in found.notes]
    blocks.append(Words(f"Every run is measured against the first, {runs[0]}: a positive difference is in its favour."))
    if found.tests:
        blocks += [Heading("Tests on the same pictures"), Grid(COLUMNS, rows_of_tests(found))]
    blocks.append(Picture("ROC of each run and split, and loss by epoch", png))
    for kind, title in (("result", "Results"), ("setting", "Settings"), ("code", "Code"), ("data", "Data")):
        rows = [(d.name, *d.values) for d in found.differences if d.kind == kind]
        blocks.append(Heading(title if kind == "result" else f"{title} that differ"))
        blocks.append(Grid(["", *runs], rows) if rows else Words("no difference"))
    return blocks
