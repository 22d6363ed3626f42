"""One look at each picture file: read once, on all cores, everything noted that an audit asks about."""

import hashlib
import io
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dftrack.data.folder import Picture
from dftrack.data.parallel import spread
from dftrack.data.pictures import FORMATS, PictureError, decode, read_bytes

THUMB = 32  # pixels, side of the grey thumbnail that perceptual hashes are made from

Thumb = NDArray[np.uint8]  # (32, 32)
Traits = dict[str, float | str]


@dataclass(frozen=True, slots=True)
class Look:
    """What one file shows. Of a file that cannot be read, only why."""

    unreadable: str = ""
    sha256: bytes = b""
    traits: Traits | None = None  # what could give a class away without looking at the face
    thumb: Thumb | None = None


def look_at(pictures: Sequence[Picture]) -> Iterator[Look]:
    """A Look at each of `pictures`, in their order. Each file is read once and decoded once."""
    return spread(look, pictures)


def look(picture: Picture) -> Look:
    """Read one file. It is unreadable by the same rules as for training."""
    try:
        content = read_bytes(picture.path)
        image = Image.fromarray(decode(content))
    except PictureError as error:
        return Look(unreadable=error.message)
    grey = image.convert("L").resize((THUMB, THUMB), Image.Resampling.LANCZOS)
    traits = header_traits(content, picture.path.suffix.lower()) | colour_traits(image)
    return Look(sha256=hashlib.sha256(content).digest(), traits=traits, thumb=np.array(grey))


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
