"""What the contenders work on: the same files for all, and dftrack's decoded pictures of them."""

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from dftrack.config import DataConfig
from dftrack.data.cache import DataSet, Split, open_for_judging
from dftrack.data.sources import find_pictures

Files = list[tuple[Path, int]]  # (file, 0 real or 1 fake): what ImageFolder would have listed


@dataclass(frozen=True, slots=True)
class Task:
    """What is to be trained, and how far. Travels to every contender's process."""

    faces: str
    size: int  # pixels
    batch_size: int
    steps: int  # at most; no more than one epoch holds
    store: Path
    seed: int = 0
    device: str = "cpu"


def open_faces(faces: str, size: int, store: Path) -> DataSet:
    """dftrack's decoded pictures, without the audit (it is no part of training)."""
    return open_for_judging(DataConfig(source=faces, image_size=size), store)


def files_of(split: Split) -> Files:
    """The files behind a split, in its order."""
    return list(zip(split.paths, split.labels.tolist(), strict=True))


def subset(faces: str, folder: Path, per_split: int, store: Path) -> Path:
    """A data folder of links to the first `per_split` groups' pictures of each split, both classes; its manifest."""
    listing = find_pictures(faces, store)
    rows, taken = [], dict.fromkeys((p.split for p in listing.pictures), 0)
    by_group: dict[tuple[str, str], list[int]] = {}
    for row, picture in enumerate(listing.pictures):
        by_group.setdefault((picture.split, picture.group), []).append(row)
    folder.mkdir(parents=True, exist_ok=True)
    for (split, group), members in by_group.items():
        if taken[split] >= per_split:
            continue
        for row in members:
            picture = listing.pictures[row]
            link = folder / f"{row:06}{picture.path.suffix}"
            if not link.exists():
                os.symlink(picture.path.resolve(), link)
            rows.append((link.name, "fake" if picture.label else "real", split, group))
        taken[split] += len(members)
    with open(folder / "manifest.csv", "w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(("path", "label", "split", "group"))
        writer.writerows(rows)
    return folder


def made_pixels(count: int, size: int, seed: int = 0) -> np.ndarray:
    """(count, size, size, 3) uint8: soft blobs with a little noise, about as hard for a JPEG decoder as faces."""
    random = np.random.default_rng(seed)
    made = np.empty((count, size, size, 3), np.uint8)
    for row in made:
        blobs = Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((size, size), 3)
        row[:] = np.clip(np.asarray(blobs, np.int16) + random.integers(-6, 7, row.shape, dtype=np.int16), 0, 255)
    return made


def made_split(name: str, count: int, size: int) -> Split:
    """A split of made pictures, labels in turn, in memory."""
    return split_of(name, made_pixels(count, size))


def split_of(name: str, pixels: np.ndarray) -> Split:
    """A split of these pictures, (n, S, S, 3) uint8, labels in turn."""
    count = len(pixels)
    return Split(
        name=name,
        pixels=pixels,
        labels=(np.arange(count) % 2).astype(np.int64),
        names=tuple(f"{name}/{number:06}.jpg" for number in range(count)),
        groups=tuple(f"{name}{number}" for number in range(count)),
        paths=(Path(),) * count,
        masks=(None,) * count,
    )


def write_jpegs(pixels: Sequence[np.ndarray] | np.ndarray, folder: Path) -> Files:
    """The pictures as JPEG files (quality 90), labels in turn."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for number, picture in enumerate(pixels):
        path = folder / f"{number:06}.jpg"
        if not path.exists():
            Image.fromarray(picture).save(path, quality=90)
        files.append((path, number % 2))
    return files
