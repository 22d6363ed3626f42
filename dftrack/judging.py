"""Use a recorded model on pictures that nobody has labelled: score them, show where the model looked."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from dftrack.data.pictures import decode
from dftrack.errors import DataError
from dftrack.files import write_bytes
from dftrack.learning import figures
from dftrack.learning.detector import Detector, Verdict
from dftrack.learning.explain import heat_maps
from dftrack.learning.model import normalise
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
    photos = np.stack([decode(path, detector.image_size) for path, _ in readable])
    maps = heat_maps(detector.model, normalise(torch.from_numpy(photos)))
    rows = [
        figures.PanelRow(
            photo=photos[place],
            heat=maps.heat[place],
            name=path.name,
            label=None,
            score=verdict.score or 0.0,
            threshold=detector.threshold,
            target=int(maps.targets[place]),
            flat=bool(maps.flat[place]),
        )
        for place, (path, verdict) in enumerate(readable)
    ]
    write_bytes(target, figures.gradcam_panel(rows))
