"""Use a recorded model on pictures that nobody has labelled: score them, show where the model looked."""

import base64
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from dftrack.data.faces import Face, FaceFinder, cut_face
from dftrack.data.pictures import decode, encode_png
from dftrack.data.upright import PictureError
from dftrack.errors import DataError, DftrackError, SettingError
from dftrack.files import write_bytes
from dftrack.learning import figures
from dftrack.learning.detector import Detector, Verdict
from dftrack.learning.explain import ExplanationError, gradcam_row
from dftrack.learning.figures import PanelRow
from dftrack.resolving import resolve_model
from dftrack.tracking import open_tracker

PANEL_ROWS = 16  # pictures in one Grad-CAM panel
NAME_BYTES = 180  # of a panel's own name: file systems take 255, and a name while writing is longer than that after
OTHER_PICTURES = (".jpg", ".jpeg", ".webp", ".gif", ".svg", ".pdf")  # what a panel cannot be


class Fetched(NamedTuple):
    """A detector and where it comes from."""

    detector: Detector
    run_id: str
    described: str  # for a person: "dftrack@champion (version 3)", "run 0a1b2c3d4e5f (baseline)"
    caution: str  # what a person should know before trusting it; mostly empty


def fetch_detector(store: Path, reference: str | None = None) -> Fetched:
    """The detector that `reference` means: NAME@alias, NAME/3 or a run. None: the champion, else the last baseline."""
    found = resolve_model(open_tracker(store), reference)
    return Fetched(Detector.load(found.folder), found.run_id, found.described, found.caution)


class Judged(NamedTuple):
    """One row of a prediction."""

    verdict: Verdict
    source: Path | bytes  # what was judged: the file, or the face that was cut out of it
    face: Face | None = None  # where in the file


def judge_files(detector: Detector, paths: Iterable[Path], finder: FaceFinder | None = None) -> Iterator[Judged]:
    """A row for each file as it is judged; with a `finder`, for each face in it, or one that says there is none."""
    if finder is None:
        kept = list(paths)
        yield from (Judged(verdict, path) for path, verdict in zip(kept, detector.judge(kept), strict=True))
        return
    for path in paths:
        try:
            scene = decode(path)
        except PictureError as error:
            yield Judged(Verdict(str(path), None, "", "unreadable", error.message), path)
            continue
        faces = finder.find(scene)
        if not faces:
            yield Judged(Verdict(str(path), None, "", "no face", "no face was found in it"), path)
        crops = [cut_face(scene, face) for face in faces]
        for face, crop, verdict in zip(faces, crops, detector.judge(crops), strict=True):
            yield Judged(replace(verdict, name=str(path)), crop, face)


def judge_and_explain(detector: Detector, content: bytes) -> dict[str, object]:
    """Everything to say of one picture, fit for JSON; `heat_map` is a PNG of the detector's size as a data URL.

    Raises PictureError if `content` is no readable picture.
    """
    pixels = decode(content, detector.image_size)
    score = float(detector.score(pixels[None])[0])
    row = gradcam_row(detector.model, pixels, name="picture", score=score, threshold=detector.threshold)
    overlay = figures.photo_and_heat(row)[:, detector.image_size :]
    return {
        "score": score,
        "verdict": "fake" if score >= detector.threshold else "real",
        "probability": detector.calibrated(score),
        "threshold": detector.threshold,
        "heat_map": f"data:image/png;base64,{base64.b64encode(encode_png(overlay)).decode()}",
        "heat_is_flat": row.flat,  # the map points nowhere: the picture is shown in grey
    }


class Panels:
    """Where a set of heat maps goes: all in one PNG (the first 16 readable pictures), or a PNG each in a folder."""

    def __init__(self, detector: Detector, target: Path) -> None:
        if target.suffix.lower() in OTHER_PICTURES and not target.is_dir():
            raise SettingError(
                f"--gradcam writes PNG, got {target.name!r}", "name a file that ends in .png, or a folder"
            )
        self._detector, self._target = detector, target
        self._together = target.suffix.lower() == ".png" and not target.is_dir()
        self._kept: list[PanelRow] = []
        self._names: set[str] = set()

    def add(self, judged: Judged) -> Path | None:
        """Explain one verdict; returns the file written for it.

        None for an unreadable picture, and for one that waits for the panel of all or is one too many for it.
        Raises DftrackError if this one cannot be explained or written; the next one may.
        """
        verdict, name = judged.verdict, Path(judged.verdict.name).name
        if verdict.score is None or (self._together and len(self._kept) == PANEL_ROWS):
            return None
        detector = self._detector
        with _explaining():
            row = gradcam_row(
                detector.model,
                decode(judged.source, detector.image_size),
                name=name,
                score=verdict.score,
                threshold=detector.threshold,
            )
            if self._together:
                self._kept.append(row)
                return None
            place = self._target / self._name(name)
            write_bytes(place, figures.gradcam_panel([row]))
            return place

    def finish(self) -> Path | None:
        """Write the panel of all, and return where; None if each picture has a file of its own.

        Raises DftrackError if there was no readable picture, or it cannot be drawn or written.
        """
        if not self._together:
            return None
        if not self._kept:
            raise DataError("there is no readable picture to explain")
        with _explaining():
            write_bytes(self._target, figures.gradcam_panel(self._kept))
        return self._target

    def _name(self, name: str) -> str:
        """A file name of its own for each picture, also where folders hold files of the same name."""
        while len(os.fsencode(name)) > NAME_BYTES:
            name = name[:-1]
        number, chosen = 1, f"{name}.png"
        while chosen in self._names:
            number += 1
            chosen = f"{name}-{number}.png"
        self._names.add(chosen)
        return chosen


@contextmanager
def _explaining() -> Iterator[None]:
    """Whatever a picture does to the libraries that explain and draw it, the scores of all others are worth more."""
    try:
        yield
    except DftrackError:
        raise
    except Exception as error:
        raise ExplanationError(f"it cannot be drawn: {type(error).__name__}: {error}") from error
