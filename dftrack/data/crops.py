"""One face out of a scene: the square around it, its pixels and its mask, the same way for both classes."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw

Box = tuple[float, float, float, float]  # left, top, width, height in pixels of the scene
Polygon = Sequence[tuple[float, float]]
FINER = 4  # times finer than the crop a mask is drawn
JPEG_QUALITY = 95  # and 4:4:4, so that the traces of a forgery in the colours survive


@dataclass(frozen=True, slots=True)
class Square:
    """Whole pixels of the scene. It may overhang the scene where the face is taller than the scene is wide."""

    left: int
    top: int
    side: int


def square_around(box: Box, scene: tuple[int, int], margin: float) -> Square | None:
    """The square around `box` with a margin, inside the scene (width, height) as far as it fits.

    The box is cut to the scene first. Near a border the square is moved inwards rather than cut or filled up, and is
    made smaller (down to the box itself) where the scene is too small for the margin.
    margin: added on each side, as a share of the box's longer side. None if less than a pixel of the box is inside.
    """
    (left, top, width, height), (scene_width, scene_height) = box, scene
    right, bottom = min(left + width, scene_width), min(top + height, scene_height)
    left, top = max(left, 0.0), max(top, 0.0)
    if right - left < 1 or bottom - top < 1:
        return None
    face = max(right - left, bottom - top)
    side = round(min(face * (1 + 2 * margin), max(face, min(scene_width, scene_height))))
    return Square(_start((left + right) / 2, side, scene_width), _start((top + bottom) / 2, side, scene_height), side)


def _start(middle: float, side: int, length: int) -> int:
    """Where a stretch of `side` around `middle` begins, moved to lie within [0, length] or, if longer, to cover it."""
    low, high = sorted((0, length - side))
    return min(max(round(middle - side / 2), low), high)


def crop_jpeg(pixels: NDArray[np.uint8], square: Square, size: int) -> bytes:
    """The square of the scene `pixels` (H, W, 3), resampled to (size, size), as JPEG.

    What overhangs the scene repeats its outermost pixels.
    """
    height, width = pixels.shape[:2]
    rows = np.clip(np.arange(square.top, square.top + square.side), 0, height - 1)
    columns = np.clip(np.arange(square.left, square.left + square.side), 0, width - 1)
    inside = rows[-1] - rows[0] == columns[-1] - columns[0] == square.side - 1
    part = (
        pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] if inside else pixels[rows[:, None], columns[None]]
    )
    image = Image.fromarray(np.ascontiguousarray(part)).resize((size, size), Image.Resampling.LANCZOS)
    target = BytesIO()
    image.save(target, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return target.getvalue()


def mask_png(polygons: Sequence[Polygon], square: Square, size: int) -> bytes:
    """The union of `polygons` (scene pixels; even-odd within each) in the square, as PNG: (size, size), 0 or 255."""
    side = size * FINER  # drawn larger and reduced: the drawer counts every pixel that an edge touches as inside
    scale = side / square.side
    whole = Image.new("L", (side, side))
    for polygon in polygons:
        # Scene coordinates run along pixel edges, the drawer's through pixel centres: half a pixel apart.
        points = [((x - square.left) * scale - 0.5, (y - square.top) * scale - 0.5) for x, y in polygon]
        part = Image.new("L", (side, side))
        ImageDraw.Draw(part).polygon(points, fill=255)
        whole = ImageChops.lighter(whole, part)
    target = BytesIO()
    whole.reduce(FINER).point([0] * 128 + [255] * 128).save(target, "PNG")
    return target.getvalue()
