"""Faces in whole scenes, by OpenCV's frontal-face cascade: its model comes with the library, nothing is fetched.

It finds most upright frontal faces and few profiles, and now and then takes something else for a face. The crops are
those of `dftrack data prepare`: the same margin, the same size. OpenCV is the extra `faces`; its version 5 has no
cascades any more.
"""

import importlib.util
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dftrack.data.crops import crop_jpeg, square_around
from dftrack.data.openforensics import MARGIN, SIZE
from dftrack.errors import DftrackError

STEP = 1.1  # each search is for faces so many times larger than the one before
NEIGHBOURS = 6  # overlapping hits that a face needs; fewer take more shadows for faces
SMALLEST = 32  # pixels
LONGEST = 1600  # pixels: a longer scene is searched at half, a third ... of its size

Face = tuple[int, int, int, int]  # left, top, width, height in pixels of the scene


class FaceFinder:
    """Finds faces; for one thread at a time. Raises DftrackError if OpenCV is missing or brings no cascade."""

    def __init__(self) -> None:
        if importlib.util.find_spec("cv2") is None:
            raise DftrackError("finding faces needs OpenCV, which is not installed", "pip install 'dftrack[faces]'")
        import cv2

        path = Path(cv2.__file__).parent / "data" / "haarcascade_frontalface_default.xml"
        if not hasattr(cv2, "CascadeClassifier") or not path.is_file():
            raise DftrackError(
                f"OpenCV {cv2.__version__} brings no face cascade", "pip install 'dftrack[faces]', which takes OpenCV 4"
            )
        self._cascade = cv2.CascadeClassifier(str(path))

    def find(self, scene: NDArray[np.uint8]) -> list[Face]:
        """The faces in (H, W, 3) RGB, from left to right."""
        shrink = max(1, -(-max(scene.shape[:2]) // LONGEST))
        small = scene[::shrink, ::shrink].astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
        grey = np.ascontiguousarray(np.rint(small).astype(np.uint8))
        found = self._cascade.detectMultiScale(grey, STEP, NEIGHBOURS, minSize=(SMALLEST, SMALLEST))
        faces = [tuple(int(number) * shrink for number in box) for box in found]
        return sorted((left, top, width, height) for left, top, width, height in faces)


def cut_face(scene: NDArray[np.uint8], face: Face) -> bytes:
    """The face as `dftrack data prepare` cuts it: a JPEG with a margin."""
    height, width = scene.shape[:2]
    square = square_around(face, (width, height), MARGIN)
    assert square is not None, f"{face} lies outside the scene of {width} x {height}"
    return crop_jpeg(scene, square, SIZE)
