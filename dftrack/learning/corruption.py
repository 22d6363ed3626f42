"""What is left of a detector when its pictures suffer: seven kinds of damage, each in five strengths.

The kinds are those that forgeries meet on their way through the net (Jiang et al. 2020, DeeperForensics-1.0: colour,
contrast, blocks, noise, blur, JPEG); the grid of five strengths is Hendrycks and Dietterich's 2019. Level 1 is hardly
seen, level 5 is strong. What is measured in pixels grows with the picture, so that 96 and 224 px are damaged alike.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dftrack.data.parallel import spread
from dftrack.data.pictures import Pixels, blur, decode, encode_jpeg, shrink
from dftrack.errors import SettingError
from dftrack.learning import metrics
from dftrack.learning.metrics import DEFAULT_THRESHOLD, FAKE, REAL, IntArray

LEVELS = (1, 2, 3, 4, 5)
USUAL = 224  # pixels, the side for which lengths are given
CELLS = 14  # blocks across a picture: 16 pixels at 224
BLOCK = 128  # grey level of a masked block
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601

# kind -> level -> strength
STRENGTHS: Mapping[str, Mapping[int, float]] = {
    "gaussian_noise": {1: 4, 2: 8, 3: 14, 4: 23, 5: 36},  # grey levels (0..255), standard deviation in each colour
    "blur": {1: 0.6, 2: 1.2, 3: 2.0, 4: 3.0, 5: 4.5},  # pixels at 224, standard deviation
    "jpeg": {1: 95, 2: 75, 3: 50, 4: 30, 5: 10},  # quality of libjpeg, 4:2:0
    "resize": {1: 0.8, 2: 0.6, 3: 0.4, 4: 0.25, 5: 0.15},  # of the side, down (bilinear) and up again
    "contrast": {1: 0.85, 2: 0.7, 3: 0.55, 4: 0.4, 5: 0.25},  # factor about the picture's mean grey
    "saturation": {1: 0.8, 2: 0.6, 3: 0.4, 4: 0.2, 5: 0.0},  # factor about each pixel's grey; 0 is a grey picture
    "block_masks": {1: 0.02, 2: 0.05, 3: 0.1, 4: 0.2, 5: 0.35},  # share of the CELLS x CELLS blocks that turn grey
}
KINDS = tuple(STRENGTHS)

Score = Callable[[Pixels], NDArray[np.float64]]  # (n, S, S, 3) -> (n,) P(fake)
Progress = Callable[[str, int, int], None]  # told (what is being done, done, of how many)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a detector reaches on one set of pictures; None where it is undefined."""

    auc: float | None
    accuracy: float | None

    def below(self, clean: "Outcome") -> "Outcome":
        """How much is lost since `clean`: positive where this is worse."""
        return Outcome(_minus(clean.auc, self.auc), _minus(clean.accuracy, self.accuracy))


@dataclass(frozen=True, slots=True)
class Robustness:
    """A detector on the same pictures, whole and damaged."""

    pictures: int
    fakes: int  # of the pictures
    threshold: float  # P(fake) from which on a picture is called fake
    clean: Outcome
    damaged: Mapping[str, tuple[Outcome, ...]]  # kind -> one for each of LEVELS

    def drop(self, kind: str, level: int) -> Outcome:
        """What is lost at a level, in AUC and in accuracy."""
        return self.damaged[kind][level - 1].below(self.clean)


def robustness(
    score: Score,
    pixels: Pixels,
    labels: IntArray,
    *,
    threshold: float = DEFAULT_THRESHOLD,
    seed: int = 0,
    progress: Progress | None = None,
) -> Robustness:
    """Score the pictures whole and after each of the 35 damages: 36 passes, so choose them with `subset`.

    score: gives (n,) P(fake) for (n, S, S, 3) uint8; labels: (n,) 0 real, 1 fake. Scores that are not finite leave an
    outcome undefined. The noise and the blocks of a picture are the same at each level, only stronger or more: curves
    fall because of the strength, not by luck of the draw.
    """

    def outcome(of: Pixels) -> Outcome:
        scores = score(of)
        return Outcome(
            auc=metrics.or_none(lambda: metrics.roc_auc(scores, labels)),
            accuracy=metrics.or_none(lambda: metrics.accuracy(scores, labels, threshold)),
        )

    steps = [(kind, level) for kind in KINDS for level in LEVELS]
    clean, found = outcome(np.asarray(pixels)), []
    for done, (kind, level) in enumerate(steps):
        if progress:
            progress(f"{kind} {level}", done, len(steps))
        found.append(outcome(damage(pixels, kind, level, seed=seed)))
    if progress:
        progress("robustness", len(steps), len(steps))
    rows = iter(found)
    damaged = {kind: tuple(next(rows) for _ in LEVELS) for kind in KINDS}
    return Robustness(len(labels), int(np.sum(labels == FAKE)), threshold, clean, damaged)


def subset(labels: IntArray, groups: Sequence[str], most: int = 160, seed: int = 0) -> NDArray[np.intp]:
    """Places of at most `most` pictures, rising: each class with its share, from as many groups as possible.

    labels: (n,) 0 real, 1 fake; groups: n names. All places if n <= most. Both classes stay if both are there.
    """
    if len(labels) <= most:
        return np.arange(len(labels))
    random = np.random.default_rng(seed)
    fakes = int(np.sum(labels == FAKE))
    quota = round(most * fakes / len(labels))
    if 0 < fakes < len(labels):
        quota = min(max(quota, 1), most - 1)
    chosen = [
        _from_many_groups(np.flatnonzero(labels == label), groups, count, random)
        for label, count in ((REAL, most - quota), (FAKE, quota))
    ]
    return np.sort(np.concatenate(chosen))


def _from_many_groups(
    places: NDArray[np.intp], groups: Sequence[str], count: int, random: np.random.Generator
) -> NDArray[np.intp]:
    """`count` of `places`: one of each group in turn, in random order."""
    seen: dict[str, int] = {}
    turns: list[tuple[int, int, int]] = []  # (how many of the group came before, order, place)
    for place in random.permutation(places):
        turn = seen.get(groups[place], 0)
        seen[groups[place]] = turn + 1
        turns.append((turn, len(turns), int(place)))
    return np.array([place for _, _, place in sorted(turns)[:count]], dtype=np.intp)


def damage(pixels: Pixels, kind: str, level: int, *, seed: int = 0) -> Pixels:
    """(n, S, S, 3) uint8 -> the same shape, damaged.

    kind: one of KINDS; level: 1..5. What is drawn for a picture follows from its own bytes and the seed, so it does
    not depend on its place or company, and the same grain or blocks serve every level.
    Raises SettingError for an unknown kind or level. On all cores.
    """
    if kind not in STRENGTHS or level not in LEVELS:
        raise SettingError(f"there is no damage {kind!r} of level {level}", f"{', '.join(KINDS)}; levels 1 to 5")
    strength, work = STRENGTHS[kind][level], _DAMAGES[kind]
    damaged = np.empty_like(pixels, subok=False)
    for row, picture in enumerate(spread(lambda one: work(one, strength, seed), pixels)):
        damaged[row] = picture
    return damaged


def _random(picture: Pixels, kind: str, seed: int) -> np.random.Generator:
    digest = hashlib.sha256(picture.tobytes()).digest()
    return np.random.default_rng([seed, KINDS.index(kind), int.from_bytes(digest[:8], "little")])


def _noise(picture: Pixels, strength: float, seed: int) -> Pixels:
    grain = _random(picture, "gaussian_noise", seed).standard_normal(picture.shape, dtype=np.float32)
    return _bytes(picture + grain * np.float32(strength))


def _blur(picture: Pixels, strength: float, seed: int) -> Pixels:
    return blur(picture, strength * len(picture) / USUAL)


def _jpeg(picture: Pixels, strength: float, seed: int) -> Pixels:
    return decode(encode_jpeg(picture, int(strength)))


def _resize(picture: Pixels, strength: float, seed: int) -> Pixels:
    return shrink(picture, max(1, round(strength * len(picture))))


def _contrast(picture: Pixels, strength: float, seed: int) -> Pixels:
    middle = np.float32(_grey(picture).mean(dtype=np.float64))
    return _bytes((picture - middle) * np.float32(strength) + middle)


def _saturation(picture: Pixels, strength: float, seed: int) -> Pixels:
    grey = _grey(picture)[..., None]
    return _bytes((picture - grey) * np.float32(strength) + grey)


def _block_masks(picture: Pixels, strength: float, seed: int) -> Pixels:
    order = _random(picture, "block_masks", seed).permutation(CELLS * CELLS)
    edges = np.arange(CELLS + 1) * len(picture) // CELLS
    masked = picture.copy()
    for cell in order[: round(strength * CELLS * CELLS)]:
        row, column = divmod(int(cell), CELLS)
        masked[edges[row] : edges[row + 1], edges[column] : edges[column + 1]] = BLOCK
    return masked


def _grey(picture: Pixels) -> NDArray[np.float32]:
    red, green, blue = (np.float32(share) * picture[..., place] for place, share in enumerate(LUMA))
    return np.asarray(red + green + blue, dtype=np.float32)  # (S, S), added in this order


def _bytes(values: NDArray[np.float32]) -> Pixels:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _minus(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first - second


_DAMAGES: Mapping[str, Callable[[Pixels, float, int], Pixels]] = {
    "gaussian_noise": _noise,
    "blur": _blur,
    "jpeg": _jpeg,
    "resize": _resize,
    "contrast": _contrast,
    "saturation": _saturation,
    "block_masks": _block_masks,
}
