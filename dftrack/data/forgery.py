"""How the sample's faces are forged, cropped and damaged: pure functions of greys and a random generator.

All arithmetic is in doubles, rounded to a byte once at the end: the last bit of a sine must not decide a pixel.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dftrack.data.pictures import Pixels, blur, decode, encode_jpeg, shrink

Greys = NDArray[np.float64]  # (H, W), 0..255

_CENTRE = (46.0, 60.0)  # pixels (x, y), about the middle of the face in a 92 x 112 photograph
_RADII = (24.0, 30.0)  # pixels (x, y), of an oval from the brows to below the lips
_REACH = 8  # pixels: how far the donor's face is moved in search of the best fit
_STEP = 2  # pixels: the search looks at every second one


@dataclass(frozen=True, slots=True)
class Crop:
    """What a real picture and its forgery go through alike."""

    box: tuple[float, float, float, float]  # pixels: left, top, right, bottom; square
    size: int  # pixels, side of the result
    flip: bool
    gain: float  # contrast about 128
    offset: float  # grey levels, brightness
    quality: int  # of the JPEG

    def place(self, greys: Greys) -> Greys:
        """(size, size): where each pixel goes, its tone untouched."""
        picture = Image.fromarray(greys.astype(np.float32))
        cut = np.asarray(picture.resize((self.size, self.size), Image.Resampling.BICUBIC, box=self.box), np.float64)
        return cut[:, ::-1] if self.flip else cut

    def apply(self, greys: Greys) -> Pixels:
        """(size, size) uint8 of an (H, W) photograph, placed and toned."""
        toned = (self.place(greys) - 128) * self.gain + 128 + self.offset
        return np.clip(np.rint(toned), 0, 255).astype(np.uint8)


def draw_crop(shape: tuple[int, ...], size: int, rng: np.random.Generator) -> Crop:
    """A crop of a photograph of (height, width) `shape` about its face."""
    height, width = shape
    side = rng.uniform(0.93, 0.99) * width
    left = rng.uniform(0, width - side)
    top = np.clip(_CENTRE[1] - side / 2 + rng.normal(0, 1.5), 0, height - side)
    return Crop(
        box=(left, top, left + side, top + side),
        size=size,
        flip=bool(rng.random() < 0.5),
        gain=rng.uniform(0.94, 1.06),
        offset=rng.uniform(-5, 5),
        quality=int(rng.integers(75, 96)),
    )


def forge(target: Greys, donor: list[Greys], rng: np.random.Generator) -> tuple[Greys, Greys]:
    """Move the inner face of a donor into `target`.

    target: (H, W); donor: photographs (H, W) of one other person, of which the best fitting of a few is taken.
    Returns the forged picture (H, W) and the mask (H, W) in [0, 1], how much of each pixel is the donor's.
    """
    mask = _oval(target.shape, rng)
    tries = rng.choice(len(donor), size=min(2, len(donor)), replace=False)
    fits = [(*_best_shift(target, donor[index], mask), int(index)) for index in tries]
    _, shift, index = max(fits)
    face = _moved(donor[index], shift, rng)
    face = _toned(face, target, mask)
    return np.clip(target + mask * (face - target), 0, 255), mask


def damage(picture: Pixels, rng: np.random.Generator) -> bytes:
    """JPEG of an (S, S, 3) picture after two different damages out of blur, noise, JPEG, colour and resize."""
    steps = (_blur, _noise, _recompress, _recolour, _shrink)
    for index in rng.choice(len(steps), size=2, replace=False):
        picture = steps[index](picture, rng)
    return encode_jpeg(picture, int(rng.integers(60, 91)))


# ---- forging


def _oval(shape: tuple[int, ...], rng: np.random.Generator) -> Greys:
    """(H, W) in [0, 1]: 1 inside a jittered, slightly wavy oval, falling softly to 0 outside."""
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float64)
    centre = np.array(_CENTRE) + rng.normal(0, (1.5, 2.5))
    radii = np.array(_RADII) * rng.uniform(0.85, 1.15, size=2)
    u, v = (x - centre[0]) / radii[0], (y - centre[1]) / radii[1]
    angle = np.arctan2(v, u)
    waves = sum(rng.uniform(0, 0.06) * np.cos(k * angle + rng.uniform(0, 2 * np.pi)) for k in (2, 3, 4))
    outside = (np.hypot(u, v) - 1 - waves) * radii.mean()  # pixels from the outline, about
    feather = rng.uniform(1, 3)  # pixels from all donor to all target
    ramp = np.clip(0.5 - outside / feather, 0, 1)
    return np.asarray(ramp * ramp * (3 - 2 * ramp))


def _best_shift(target: Greys, donor: Greys, mask: Greys) -> tuple[float, tuple[int, int]]:
    """The (dx, dy) within reach that brings the donor's face best onto the target's, after its correlation in [-1, 1].

    Compares coarse pictures: the eyes, the mouth and the shadow of the nose count, not the grain.
    """
    reach = _REACH // _STEP
    small_target, small_donor, weight = (_coarse(picture) for picture in (target, donor, mask))
    padded = np.pad(small_donor, reach, mode="edge")
    views = np.lib.stride_tricks.sliding_window_view(padded, small_target.shape)  # (2r + 1, 2r + 1, h, w)
    rows, columns = np.nonzero(weight > 0.5)
    patches = views[:, :, rows, columns]  # (2r + 1, 2r + 1, n)
    patches = patches - patches.mean(axis=2, keepdims=True)
    wanted = small_target[rows, columns] - small_target[rows, columns].mean()
    norms = np.sqrt((patches**2).sum(axis=2) * (wanted**2).sum()) + 1e-9
    scores = (patches * wanted).sum(axis=2) / norms
    row, column = np.unravel_index(int(np.argmax(scores)), scores.shape)
    return float(scores[row, column]), ((reach - int(column)) * _STEP, (reach - int(row)) * _STEP)


def _coarse(greys: Greys) -> Greys:
    """Means of blocks of _STEP x _STEP pixels."""
    height, width = (side // _STEP for side in greys.shape)
    blocks = greys[: height * _STEP, : width * _STEP].reshape(height, _STEP, width, _STEP)
    return np.asarray(blocks.mean(axis=(1, 3)))


def _moved(donor: Greys, shift: tuple[int, int], rng: np.random.Generator) -> Greys:
    """The donor shifted by (dx, dy) pixels, then turned, scaled and shifted a little about the face."""
    turn, scale = np.deg2rad(rng.normal(0, 2.5)), np.exp(rng.normal(0, 0.03))
    dx, dy = shift + rng.normal(0, 0.8, size=2)
    cos, sin = np.cos(turn) / scale, np.sin(turn) / scale
    x, y = _CENTRE
    back = (cos, sin, x - cos * (x + dx) - sin * (y + dy), -sin, cos, y + sin * (x + dx) - cos * (y + dy))
    picture = Image.fromarray(np.pad(donor, 16, mode="edge").astype(np.float32))
    a, b, c, d, e, f = back
    padded = (a, b, c + 16 - 16 * (a + b), d, e, f + 16 - 16 * (d + e))
    moved = picture.transform(picture.size, Image.Transform.AFFINE, padded, Image.Resampling.BICUBIC)
    return np.asarray(moved, np.float64)[16:-16, 16:-16]


def _toned(face: Greys, target: Greys, mask: Greys) -> Greys:
    """`face` with the target's mean and contrast under the mask."""
    total = mask.sum()
    face_mean, target_mean = (face * mask).sum() / total, (target * mask).sum() / total
    face_spread = np.sqrt((mask * (face - face_mean) ** 2).sum() / total)
    target_spread = np.sqrt((mask * (target - target_mean) ** 2).sum() / total)
    gain = float(np.clip(target_spread / (face_spread + 1e-9), 0.6, 1.6))
    return np.asarray((face - face_mean) * gain + target_mean)


# ---- damage


def _blur(picture: Pixels, rng: np.random.Generator) -> Pixels:
    return blur(picture, rng.uniform(0.6, 1.4))


def _noise(picture: Pixels, rng: np.random.Generator) -> Pixels:
    grain = rng.normal(0, rng.uniform(3, 9), size=picture.shape)
    return np.clip(np.rint(picture + grain), 0, 255).astype(np.uint8)


def _recompress(picture: Pixels, rng: np.random.Generator) -> Pixels:
    return decode(encode_jpeg(picture, int(rng.integers(25, 56))))


def _recolour(picture: Pixels, rng: np.random.Generator) -> Pixels:
    """Brightness, contrast and a cast of colour."""
    gains = rng.uniform(0.75, 1.25) * rng.uniform(0.92, 1.08, size=3)
    return np.clip(np.rint((picture - 128.0) * gains + 128 + rng.uniform(-25, 25)), 0, 255).astype(np.uint8)


def _shrink(picture: Pixels, rng: np.random.Generator) -> Pixels:
    """Down to a half to three quarters, and up again."""
    return shrink(picture, int(picture.shape[0] * rng.uniform(0.5, 0.75)))
