"""One picture as an array: from a file, into a file, blurred, shrunk."""

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from dftrack.data.upright import decode_bytes, read_bytes

Pixels = NDArray[np.uint8]


def decode(source: Path | bytes, size: int | None = None, *, ground: str = "white") -> Pixels:
    """The picture in a file (or in a file's bytes) as RGB.

    Returns (size, size, 3) uint8, or (height, width, 3) as stored when `size` is None. A picture that is not square is
    squeezed into the square (bilinear over the whole footprint of each pixel), never cut.
    The EXIF orientation is carried out; 16-bit greys are scaled by 255 / 65535; transparent pixels lie on `ground`;
    palette, CMYK, grey and 1-bit files become RGB; of an animation the first frame counts.
    Raises PictureError if the file is missing, empty, truncated, damaged, of another format, or over MAX_PIXELS
    (known from its header: nothing is allocated for it).
    """
    return decode_bytes(source if isinstance(source, bytes) else read_bytes(source), size, ground)


def encode_jpeg(pixels: Pixels, quality: int = 90) -> bytes:
    """JPEG (4:2:0, no metadata) of (H, W, 3) RGB or (H, W) grey uint8."""
    return _encode(pixels, "JPEG", quality=quality, subsampling=2 if pixels.ndim == 3 else -1)


def encode_png(pixels: Pixels) -> bytes:
    """PNG of (H, W, 3) RGB or (H, W) grey uint8, exact."""
    return _encode(pixels, "PNG")


def blur(pixels: Pixels, radius: float) -> Pixels:
    """(H, W, 3) after a Gaussian blur of standard deviation `radius`, in pixels."""
    return np.array(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(radius)))


def shrink(pixels: Pixels, side: int) -> Pixels:
    """(S, S, 3) after being made `side` pixels wide and S again, both bilinear: detail finer than S / side is gone."""
    image, whole = Image.fromarray(pixels), pixels.shape[0]
    small = image.resize((side, side), Image.Resampling.BILINEAR)
    return np.array(small.resize((whole, whole), Image.Resampling.BILINEAR))


def _encode(pixels: Pixels, kind: str, **options: int) -> bytes:
    target = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(target, kind, **options)
    return target.getvalue()
