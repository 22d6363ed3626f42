"""One look at each picture file: read once, on all cores, everything noted that an audit asks about."""

import hashlib
import io
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dftrack.data.folder import USUAL_SIZE, Picture
from dftrack.data.identity import Identity, identity
from dftrack.data.parallel import QUICK, spread
from dftrack.data.pictures import decode
from dftrack.data.upright import FORMATS, PictureError, read_bytes

# The luma table of the JPEG standard (ITU-T T.81, table K.1), which libjpeg scales by the quality.
STANDARD_LUMA = (
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51,
    87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92, 49, 64, 78, 87, 103, 121, 120, 101,
    72, 92, 95, 98, 112, 100, 103, 99,
)  # fmt: skip
THUMB = 32  # pixels, side of the grey thumbnail that perceptual hashes are made from

Thumb = NDArray[np.uint8]  # (32, 32)
Traits = dict[str, float | str]


@dataclass(frozen=True, slots=True)
class Look:
    """What one file shows. Of a file that cannot be read, only why."""

    unreadable: str = ""
    identity: Identity | None = None
    traits: Traits | None = None  # what could give a class away without looking at the face
    thumb: Thumb | None = None  # if it was asked for


def look_at(pictures: Sequence[Picture], *, thumbs: bool = True) -> Iterator[Look]:
    """A Look at each of `pictures`, in their order. Each file is read once and decoded once."""
    return spread(partial(look, thumb=thumbs), pictures, together=QUICK)


def look(picture: Picture, *, thumb: bool = True) -> Look:
    """Read one file. It is unreadable by the same rules as for training."""
    try:
        content = read_bytes(picture.path)
        pixels = decode(content)
    except PictureError as error:
        return Look(unreadable=error.message)
    image = Image.fromarray(pixels)
    traits = header_traits(content, picture.path.suffix.lower()) | colour_traits(image)
    return Look(identity=identity(content, pixels), traits=traits, thumb=_thumb(image) if thumb else None)


def _thumb(image: Image.Image) -> Thumb:
    return np.array(image.convert("L").resize((THUMB, THUMB), Image.Resampling.LANCZOS))


def header_traits(content: bytes, suffix: str) -> Traits:
    """What the file says about itself: sizes, format, JPEG tables, what was written beside the picture."""
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        tables: dict[int, list[int]] = getattr(image, "quantization", None) or {}
        samplings = [(part[1], part[2]) for part in getattr(image, "layer", [])]  # of a JPEG's colour planes
        return {
            "suffix": suffix,
            "format": str(image.format),
            "mode": image.mode,
            "file bytes": float(len(content)),
            "bytes per pixel": len(content) / (image.width * image.height),
            "width": float(image.width),
            "height": float(image.height),
            "JPEG luma table": _mean(tables.get(0)),
            "JPEG chroma table": _mean(tables.get(1)),
            "JPEG tables": hashlib.sha256(repr(sorted(tables.items())).encode()).hexdigest()[:8] if tables else "",
            "JPEG sampling": repr(samplings) if samplings else "",
            "JPEG progressive": float(bool(image.info.get("progressive"))),
            "EXIF": float("exif" in image.info),
            "colour profile": float("icc_profile" in image.info),
            "resolution note": repr(image.info.get("dpi") or ""),
        }


def _mean(table: Sequence[int] | None) -> float:
    return float(statistics.fmean(table)) if table else 0.0


def colour_traits(image: Image.Image) -> Traits:
    """Mean and standard deviation of each colour of an RGB picture, 0..255."""
    counts = np.array(image.histogram(), np.float64).reshape(3, 256)
    shares, values = counts / counts[0].sum(), np.arange(256)
    traits: Traits = {}
    for name, share in zip(("red", "green", "blue"), shares, strict=True):
        mean = float(share @ values)
        traits[f"mean {name}"] = mean
        traits[f"spread of {name}"] = float(share @ (values - mean) ** 2) ** 0.5
    return traits


def read_traits(paths: Sequence[Path]) -> list[Traits | None]:
    """What sets the pictures in these files apart, in their order, read on all cores; None for one that is unreadable.

    The header's traits, and "brightness" (mean grey, 0..255), "sharpness" (variance of the Laplacian of the greys at
    224 px, so that files of different sizes compare), and, of a JPEG, "JPEG quality" (1..100).
    """
    return list(spread(_read_traits, paths, together=QUICK))


def _read_traits(path: Path) -> Traits | None:
    try:
        content = read_bytes(path)
        pixels = decode(content, USUAL_SIZE)
    except PictureError:
        return None
    greys = np.asarray(Image.fromarray(pixels).convert("L"), np.int16)
    traits = header_traits(content, path.suffix.lower())
    traits |= {"brightness": float(greys.mean()), "sharpness": sharpness(greys)}
    luma = traits["JPEG luma table"]
    return traits | {"JPEG quality": float(jpeg_quality(float(luma)))} if luma else traits


def sharpness(greys: NDArray[np.int16]) -> float:
    """Variance of the Laplacian (4 neighbours) of (H, W) greys, 0..255: small where a picture is blurred or smooth.

    Source: Pech-Pacheco et al. 2000.
    """
    beside = greys[1:-1, :-2] + greys[1:-1, 2:] + greys[:-2, 1:-1] + greys[2:, 1:-1]
    return float(np.var(beside - 4 * greys[1:-1, 1:-1]))


def jpeg_quality(luma: float) -> int:
    """libjpeg's quality, 1 to 100, whose luma table has a mean nearest to `luma`: an estimate for other encoders."""
    return min(range(1, 101), key=lambda quality: abs(_luma_mean(quality) - luma))


@cache
def _luma_mean(quality: int) -> float:
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return statistics.fmean(min(255, max(1, (entry * scale + 50) // 100)) for entry in STANDARD_LUMA)
