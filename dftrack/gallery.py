"""The error gallery: the worst misses of a model with score, source and heat map, as one page that opens by itself."""

from collections.abc import Sequence

from dftrack.data.cache import Split
from dftrack.data.pictures import encode_jpeg
from dftrack.document import Block, Card, Cards, Heading, Words
from dftrack.learning import calibration
from dftrack.learning.assessment import Assessment, SplitAssessment
from dftrack.learning.explain import Example, Kind, choose_examples, gradcam_rows
from dftrack.learning.figures import PanelRow, photo_and_heat
from dftrack.learning.model import FaceCNN
from dftrack.learning.trust import marked

PER_KIND = 12  # missed fakes of a split, and false alarms
MISSES: dict[Kind, str] = {
    "missed fake": "Fakes that were taken for real",
    "false alarm": "Real faces that were taken for fake",
}


def gallery(model: FaceCNN, splits: Sequence[Split], assessment: Assessment) -> list[Block]:
    """The page, the worst first: for each split its missed fakes and its false alarms."""
    blocks: list[Block] = [
        Heading("The worst misses", 1),
        Words(
            "Each card shows the picture as the network saw it and, at its right, the places that speak for a fake "
            "(Grad-CAM; bright = most). A false alarm has the places that misled; a missed fake often has none."
        ),
    ]
    for split, found in zip(splits, assessment.splits, strict=True):
        blocks += _of_split(model, split, found, assessment.chosen.temperature)
    return blocks


def _of_split(model: FaceCNN, split: Split, found: SplitAssessment, temperature: float | None) -> list[Block]:
    threshold = found.report.threshold
    examples = choose_examples(found.predictions, PER_KIND, threshold, tuple(MISSES))
    rows = gradcam_rows(model, split, found.predictions, per_kind=PER_KIND, threshold=threshold, kinds=tuple(MISSES))
    (_, alarms), (missed, _) = found.report.confusion
    counts = {"missed fake": missed, "false alarm": alarms}
    totals = {"missed fake": sum(found.report.confusion[1]), "false alarm": sum(found.report.confusion[0])}
    warning = marked(found.trust.warnings)
    blocks: list[Block] = [Heading(f"{split.name} ({len(split.names):,} pictures)")]
    if warning:
        blocks.append(Words(f"The heat maps of this split are {warning}", key=True))
    for kind, title in MISSES.items():
        cards = [
            _card(example, row, split, temperature)
            for example, row in zip(examples, rows, strict=True)
            if example.kind == kind
        ]
        blocks.append(Words(f"{title}: {counts[kind]:,} of {totals[kind]:,}" + (", the worst first" if cards else "")))
        if cards:
            blocks.append(Cards(cards))
    return blocks


def _card(example: Example, row: PanelRow, split: Split, temperature: float | None) -> Card:
    tempered = ""
    if temperature is not None:
        tempered = f", calibrated {calibration.apply_temperature([example.score], temperature)[0]:.3f}"
    flat = ["the map is flat: no place speaks for a fake"] if row.flat else []
    lines = [f"P(fake) {example.score:.3f}{tempered}", example.name, f"group {split.groups[example.index]}", *flat]
    return Card(lines, encode_jpeg(photo_and_heat(row), quality=85))
