"""An assessment written down: numbers, tables and pictures in the run, a report and an error gallery as pages."""

from collections.abc import Mapping, Sequence

import dftrack.learning.judgement_figures as drawings
from dftrack.data.cache import DataSet, Split
from dftrack.data.findings import floor_words
from dftrack.data.leaks import Review
from dftrack.document import Block, Grid, Heading, Picture, Words, to_html
from dftrack.gallery import gallery
from dftrack.learning.assessment import Assessment, SplitAssessment, flat, plain
from dftrack.learning.model import FaceCNN
from dftrack.learning.slices import Slice
from dftrack.learning.statistics import METHOD
from dftrack.learning.thresholds import LOW_RATES
from dftrack.tracking import Run

LEAKS_TAG = "dftrack.leaks"  # how many exact leaks were trained on because the user said so; absent if none
EVALUATION = "evaluation.json"
INTERVALS_TAG = "dftrack.intervals"  # how the intervals of a run were made; another way gives other numbers
SHOWN = {
    "roc_auc": "ROC AUC", "accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "precision": "precision",
    "recall": "recall", "f1": "F1", "average_precision": "AP", "eer": "EER", "log_loss": "log loss", "brier": "Brier",
}  # fmt: skip


def record_review(run: Run, data: DataSet) -> None:
    """What the audit found before training, and the floor that files alone reach."""
    found = data.review
    if found is None:
        return
    run.log_json(found.plain(), "audit.json")
    shortcut = found.audit.shortcut
    counts = {severity: sum(f.severity == severity for f in found.audit.findings) for severity in ("error", "warning")}
    run.log_metrics(
        {
            "shortcut/roc_auc": shortcut.auc,
            "audit/errors": counts["error"],
            "audit/warnings": counts["warning"],
            "audit/left_out": len(found.left_out),
        }
    )
    if found.allowed:
        run.set_tags({LEAKS_TAG: str(found.allowed)})


def record_assessment(
    run: Run,
    model: FaceCNN,
    splits: Sequence[Split],
    assessment: Assessment,
    review: Review | None,
    notices: Sequence[str] = (),
) -> None:
    """Numbers as metrics, all of it as JSON, figures, the report and the gallery."""
    run.set_tags({INTERVALS_TAG: METHOD})
    run.log_metrics(flat(assessment))
    floor = review.audit.shortcut.auc if review else None
    run.log_json({**plain(assessment), "shortcut": floor, "notices": list(notices)}, EVALUATION)
    pictures = figures_of(assessment)
    for path, png in pictures.items():
        run.log_bytes(png, path)
    for found in assessment.splits:
        run.log_table(_slice_columns(found.slices), f"slices/{found.report.split}.csv")
    run.log_text(to_html(report_blocks(assessment, review, pictures, notices), "Evaluation"), "report/evaluation.html")
    run.log_text(to_html(gallery(model, splits, assessment), "The worst misses"), "errors/gallery.html")


def figures_of(assessment: Assessment) -> dict[str, bytes]:
    """Artifact path -> PNG."""
    drawn: dict[str, bytes] = {}
    for found in assessment.splits:
        split, judged = found.report.split, found.measured.calibration
        drawn[f"calibration/{split}.png"] = drawings.reliability_diagram(
            judged.bins, judged.bins_tempered, judged.ece, judged.ece_tempered, split
        )
        drawn[f"slices/{split}.png"] = drawings.slice_chart(found.slices)
    if assessment.robustness is not None:
        drawn["robustness/curves.png"] = drawings.robustness_curves(assessment.robustness)
    return drawn


def report_blocks(
    assessment: Assessment, review: Review | None, pictures: Mapping[str, bytes], notices: Sequence[str] = ()
) -> list[Block]:
    """The written report, the most important first."""
    blocks: list[Block] = [Heading("How good is it, and how far can that be trusted?", 1)]
    blocks += [Words(f"Note: {notice}.", key=True) for notice in notices]
    for found in assessment.splits:
        blocks += _split_blocks(found, review, pictures)
    blocks += _chosen_blocks(assessment)
    if assessment.robustness is not None:
        caption = (
            f"AUC and accuracy on {assessment.robustness.pictures:,} pictures of {assessment.robust_split} under "
            "damages of five strengths."
        )
        blocks += [Heading("Robustness"), Picture(caption, pictures["robustness/curves.png"])]
    return [*blocks, *_review_blocks(review)]


def _split_blocks(found: SplitAssessment, review: Review | None, pictures: Mapping[str, bytes]) -> list[Block]:
    split, metrics, always = found.report.split, found.report.metrics, found.report.always_fake
    floor = review.audit.shortcut.auc if review else None
    size = f"{len(found.predictions):,} pictures of {found.groups:,} groups"
    headline = f"ROC AUC {_with_interval(found, 'roc_auc')} on {size}"
    against = "" if floor is None else f"; file traits alone reach {floor_words(floor)}"
    rows = [
        [name, _number(metrics[key]), _interval(found, key), _number(always[key]), _number(found.measured.grouped[key])]
        for key, name in SHOWN.items()
    ]
    operating = [
        [p.name, f"{p.threshold:.4f}", *map(_number, (p.accuracy, p.precision, p.recall, p.f1, p.fpr))]
        for p in found.operating
    ]
    rates = (f"{100 * rate:g} %" for rate in LOW_RATES.values())
    tpr = ", ".join(
        f"{_number(value)} at {rate}" for rate, value in zip(rates, found.measured.tpr.values(), strict=True)
    )
    return [
        Heading(f"On {split}"),
        Words(headline + against, key=True),
        Grid(["metric", "value", "95 % interval", "always fake", "by group"], rows),
        Words("The intervals come from a bootstrap over groups: pictures of one person, scene or video are no "
              "independent witnesses. By group: one answer for each, the mean score of its pictures."),
        Grid(["threshold", "P(fake) from", "accuracy", "precision", "recall", "F1", "false alarms"], operating),
        Words(f"Share of fakes caught, by share of false alarms allowed: {tpr}."),
        Picture(f"Calibration on {split}.", pictures[f"calibration/{split}.png"]),
        Words(_worst_sentence(found)),
        Picture(f"Parts of {split}, with intervals.", pictures[f"slices/{split}.png"]),
        *_trust_blocks(found),
    ]  # fmt: skip


def _trust_blocks(found: SplitAssessment) -> list[Block]:
    verdicts = {True: "passed", False: "FAILED", None: "too few pictures"}
    rows = [
        [
            check.name + (f", median of {check.draws} draws" if check.draws > 1 else ""),
            _short(check.value),
            f"below {check.limit:g}",
            str(check.n),
            verdicts[check.passed],
        ]
        for check in found.trust.checks
    ]
    blocks: list[Block] = [
        Words(f"Can the heat maps be believed? {found.trust.verdict}"),
        Grid(["check", "value", "wanted", "pictures", "verdict"], rows),
    ]
    for name, agreement in (("caught", found.trust.right), ("missed", found.trust.wrong)):
        if agreement.n:
            blocks.append(
                Words(
                    f"Of {agreement.n} fakes that were {name}, {_number(agreement.energy)} of the heat lies on the "
                    f"forged area, which is {_number(agreement.area)} of the picture (lift "
                    f"{_number(agreement.lift)}); the hottest place hits it in {_number(agreement.pointing)}."
                )
            )
    return blocks


def _chosen_blocks(assessment: Assessment) -> list[Block]:
    chosen = assessment.chosen
    said = [f"temperature {chosen.temperature:.3f}"] if chosen.temperature is not None else []
    said += [f"{name}: P(fake) from {at:.4f}" for name, at in chosen.thresholds.items() if at is not None]
    said += [f"{name}: {why}" for name, why in chosen.reasons.items()]
    return [Heading("What val decided"), Words("; ".join(said) + ".")]


def _review_blocks(review: Review | None) -> list[Block]:
    if review is None:
        return []
    rows = [[f.severity, f.message, "; ".join(f.examples[:3])] for f in review.audit.findings]
    left = [f"{pair.second} (is {pair.first})" for pair in review.left_out[:10]]
    blocks: list[Block] = [Heading("The data"), Grid(["", "finding", "examples"], rows)]
    if left:
        blocks.append(Words(f"Left out, since they stand on two sides: {'; '.join(left)}."))
    if review.allowed:
        blocks.append(Words(f"{review.allowed} exact leaks were trained on because the user said so.", key=True))
    return blocks


def _worst_sentence(found: SplitAssessment) -> str:
    if all(part.accuracy_interval is None for part in found.slices[1:]):
        return "Whether a part of it is worse than the whole cannot be told: too few pictures or groups."
    if found.worst is None:
        return "No part of it is surely worse than the whole."
    part = found.worst
    size = f"{part.n} pictures, accuracy {_number(part.accuracy)}"
    return f"Surely worse than the whole: {part.kind} {part.name} ({size})."


def _slice_columns(slices: Sequence[Slice]) -> dict[str, list[object]]:
    return {
        "kind": [s.kind for s in slices],
        "slice": [s.name for s in slices],
        "pictures": [s.n for s in slices],
        "accuracy": [s.accuracy for s in slices],
        "accuracy_low": [s.accuracy_interval.low if s.accuracy_interval else None for s in slices],
        "accuracy_high": [s.accuracy_interval.high if s.accuracy_interval else None for s in slices],
        "roc_auc": [s.roc_auc for s in slices],
        "roc_auc_low": [s.roc_auc_interval.low if s.roc_auc_interval else None for s in slices],
        "roc_auc_high": [s.roc_auc_interval.high if s.roc_auc_interval else None for s in slices],
    }


def _with_interval(found: SplitAssessment, name: str) -> str:
    value = found.report.metrics[name]
    return "undefined" if value is None else f"{value:.3f} (95 %: {_interval(found, name)})"


def _interval(found: SplitAssessment, name: str) -> str:
    interval = found.measured.intervals.get(name)
    return f"{interval.low:.3f} to {interval.high:.3f}" if interval else "undefined"


def _short(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3g}"


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"
