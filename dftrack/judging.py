"""Use a recorded model on pictures that nobody has labelled: score them, show where the model looked."""

from collections.abc import Sequence
from pathlib import Path

from dftrack.data.pictures import decode
from dftrack.errors import DataError
from dftrack.files import write_bytes
from dftrack.learning import figures
from dftrack.learning.detector import Detector, Verdict
from dftrack.learning.explain import gradcam_row
from dftrack.tracking import open_tracker

PANEL_ROWS = 16  # pictures in one Grad-CAM panel


def fetch_detector(store: Path, run: str | None) -> tuple[Detector, str]:
    """The detector that a run recorded, and that run's id. `run` None: the newest finished baseline."""
    tracker = open_tracker(store)
    record = tracker.find_run(run) if run else tracker.latest_run(tags={"dftrack.kind": "baseline"})
    return Detector.load(tracker.detector_folder(record.run_id)), record.run_id


def explain_files(detector: Detector, verdicts: Sequence[tuple[Path, Verdict]], target: Path) -> None:
    """Write a PNG with photo, heat and overlay of each readable picture (the first 16). Raises DataError if none is."""
    readable = [(path, verdict) for path, verdict in verdicts if verdict.score is not None][:PANEL_ROWS]
    if not readable:
        raise DataError("there is no readable picture to explain")
    rows = [
        gradcam_row(
            detector.model,
            decode(path, detector.image_size),
            name=path.name,
            score=verdict.score,
            threshold=detector.threshold,
        )
        for path, verdict in readable
    ]
    write_bytes(target, figures.gradcam_panel(rows))
