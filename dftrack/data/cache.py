"""Decode once: all pictures of a data set as one uint8 array on disk, shared by every process that reads it.

A cache is a folder named by what was listed (names, labels, splits, groups, and each file's size and times) that holds
`pixels.u8` (n, S, S, 3) and `index.json` with its hash. It is built in a temporary folder and renamed, by one process
at a time. A picture that changes on disk gives another name, hence another cache; the one it replaces is removed.
"""

import dataclasses
import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dftrack.config import DataConfig
from dftrack.data.decoding import INDEX, PIXELS, build
from dftrack.data.folder import FAKE, REAL, Listing, Picture, Progress
from dftrack.data.leaks import Review, review
from dftrack.data.one_process import one_process
from dftrack.data.pixel_file import map_pixels
from dftrack.data.rows import Stamp, stamp_of
from dftrack.data.sources import find_pictures
from dftrack.data.upright import DECODERS
from dftrack.errors import DataError, StoreError

FORMAT = 1  # raise it whenever the same files come out as other numbers, or the folder is laid out anew
UNREADABLE_SHARE = 0.01  # of a split: more than this is an error


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A picture that was left out, and why."""

    name: str
    split: str
    reason: str


@dataclass(frozen=True, slots=True)
class Split:
    """The readable pictures of one split, by name."""

    name: str
    pixels: NDArray[np.uint8]  # (n, S, S, 3) RGB, read-only, on disk
    labels: NDArray[np.int64]  # (n,) 0 real, 1 fake
    names: tuple[str, ...]
    groups: tuple[str, ...]
    paths: tuple[Path, ...]
    masks: tuple[Path | None, ...]


@dataclass(frozen=True, slots=True)
class DataSet:
    """Decoded pictures, ready to train on."""

    source: str
    image_size: int  # pixels, side of the square
    digest: str  # 32 hex digits: names, labels, splits, groups and contents of the readable pictures, nothing else
    splits: Mapping[str, Split]  # "train", "val", then the test splits by name
    unreadable: tuple[Unreadable, ...]
    review: Review | None = None  # what the audit found before; None: opened without one

    @property
    def test_splits(self) -> tuple[str, ...]:
        return tuple(name for name in self.splits if name not in ("train", "val"))

    def counts(self) -> dict[str, dict[str, int]]:
        """split -> {"real": pictures, "fake": pictures}"""
        return {
            name: {"real": int((split.labels == REAL).sum()), "fake": int((split.labels == FAKE).sum())}
            for name, split in self.splits.items()
        }


def open_data(config: DataConfig, home: Path, progress: Progress | None = None) -> DataSet:
    """The data set that `config` names, decoded below `home`/cache unless it is there already.

    Decodes on all cores, a few pictures in memory at a time; opening again reads only folders and file times.
    `progress` is told what is being done, how far, of how much; an exception it raises ends the work cleanly.
    Safe when several processes open the same data at once: one builds, the others wait.
    Copies of a picture on two sides of train | val | test are left out, see `leaks`.
    Raises DataError if the data are missing or unfit (train and val must hold both classes; over 1 % of a split
    unreadable; leaks that leaving out does not mend), StoreError if the cache cannot be written.
    """
    listed = find_pictures(config.source, home, progress)
    _require_classes(listed.source, Counter((picture.split, picture.label) for picture in listed.pictures))
    listing, found = review(listed, config.leaks, home, progress)
    size = config.image_size or listing.usual_size
    opened = open_listing(listing, size, home, progress, part=bool(found.left_out))
    return dataclasses.replace(opened, review=found)


def open_for_judging(config: DataConfig, home: Path, progress: Progress | None = None) -> DataSet:
    """`open_data` for a model that is trained already: any splits with any classes will do, nothing is left out."""
    listing = find_pictures(config.source, home, progress)
    return open_listing(listing, config.image_size or listing.usual_size, home, progress, to_train=False)


def open_listing(
    listing: Listing,
    size: int,
    home: Path,
    progress: Progress | None = None,
    *,
    to_train: bool = True,
    part: bool = False,
) -> DataSet:
    """`open_data` for pictures already listed, at `size` pixels.

    to_train: train and val must hold both classes. part: copies were left out; lies beside the whole.
    """
    if to_train:
        _require_classes(listing.source, Counter((picture.split, picture.label) for picture in listing.pictures))
    stamps = [stamp_of(picture.path) for picture in listing.pictures]
    place = home / "cache" / _key(listing, stamps, size, part)
    opened = _open(place)
    if opened is None:
        try:
            with one_process(place.with_name(f"{place.name}.lock"), "decodes the same pictures", progress):
                opened = _open(place)  # another process may have built it while this one waited
                if opened is None:
                    build(place, listing, stamps, size, progress)
                    opened = _open(place)
        except OSError as error:
            gigabytes = len(stamps) * size * size * 3 / 1e9
            raise StoreError(
                f"cannot write the decoded pictures to {place.parent}: {error.strerror or error}",
                f"they take {gigabytes:.2f} GB; is there space, and may you write there?",
            ) from error
    if opened is None:
        raise StoreError(f"the decoded pictures in {place} vanished while they were opened", "run it again")
    return _data_set(listing, size, opened, to_train)


# ---- reading


@dataclass(frozen=True, slots=True)
class _Opened:
    """What a complete cache holds."""

    digest: str
    reasons: Mapping[int, str]  # place in the listing -> why the picture cannot be read
    pixels: NDArray[np.uint8]  # (readable pictures, S, S, 3), in the order of the listing


def _open(place: Path) -> _Opened | None:
    """The cache in `place`; None if there is none, or if it is damaged or cut short."""
    try:
        body, _, seal = (place / INDEX).read_bytes().rpartition(b"\n")
        if sha256(body).hexdigest().encode() != seal:
            return None
        content = json.loads(body)
        shape = tuple(content["shape"])
        if (place / PIXELS).stat().st_size != math.prod(shape):
            return None
        reasons = {int(row): reason for row, reason in content["unreadable"].items()}
        empty = shape[0] == 0  # a file of no bytes cannot be mapped
        pixels = np.zeros(shape, np.uint8) if empty else map_pixels(place / PIXELS, shape)
        return _Opened(digest=content["digest"], reasons=reasons, pixels=pixels)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _data_set(listing: Listing, size: int, opened: _Opened, to_train: bool) -> DataSet:
    readable = [picture for row, picture in enumerate(listing.pictures) if row not in opened.reasons]
    unreadable = tuple(
        Unreadable(listing.pictures[row].name, listing.pictures[row].split, reason)
        for row, reason in sorted(opened.reasons.items())
    )
    _require_readable(listing, unreadable)
    if to_train:
        _require_classes(listing.source, Counter((picture.split, picture.label) for picture in readable))
    names = dict.fromkeys(picture.split for picture in readable)
    splits = {name: _split(name, readable, opened.pixels) for name in names}
    return DataSet(listing.source, size, opened.digest, splits, unreadable)


def _split(name: str, readable: Sequence[Picture], pixels: NDArray[np.uint8]) -> Split:
    rows = [row for row, picture in enumerate(readable) if picture.split == name]  # neighbours: the listing is sorted
    pictures = readable[rows[0] : rows[-1] + 1]
    labels = np.array([picture.label for picture in pictures], np.int64)
    labels.setflags(write=False)
    return Split(
        name=name,
        pixels=pixels[rows[0] : rows[-1] + 1],
        labels=labels,
        names=tuple(picture.name for picture in pictures),
        groups=tuple(picture.group for picture in pictures),
        paths=tuple(picture.path for picture in pictures),
        masks=tuple(picture.mask for picture in pictures),
    )


# ---- refusing


def _require_classes(source: str, counts: Mapping[tuple[str, int], int]) -> None:
    """Raise DataError unless train and val hold real and fake pictures."""
    present = sorted({split for split, _ in counts})
    for split in ("train", "val"):
        if split not in present:
            raise DataError(
                f"{source!r} has no split {split!r}: it has {', '.join(present) or 'none'}",
                "training needs train and val, with real and fake pictures in both",
            )
        for label, word in ((REAL, "real"), (FAKE, "fake")):
            if not counts.get((split, label)):
                raise DataError(
                    f"the split {split!r} of {source!r} holds no {word} pictures",
                    "both classes are needed in train and val: a network cannot learn or be measured on one",
                )


def _require_readable(listing: Listing, unreadable: Sequence[Unreadable]) -> None:
    """Raise DataError if more than 1 % of a split cannot be read."""
    totals = Counter(picture.split for picture in listing.pictures)
    for split, total in totals.items():
        bad = [entry for entry in unreadable if entry.split == split]
        if len(bad) > UNREADABLE_SHARE * total:
            named = "; ".join(f"{entry.name!r}: {entry.reason}" for entry in bad[:3])
            more = f"; and {len(bad) - 3} more" if len(bad) > 3 else ""
            raise DataError(
                f"{len(bad)} of the {total} pictures of {split} cannot be read ({named}{more})",
                f"up to {UNREADABLE_SHARE:.0%} of a split is left out, more is an error: mend or remove these files",
            )


# ---- naming


def _key(listing: Listing, stamps: Sequence[Stamp | None], size: int, part: bool) -> str:
    """FAMILY-STATE: the source and size, whole or without its copies, then everything listed."""
    whose = [os.path.abspath(listing.root), listing.source, size, *(["part"] if part else [])]
    family = sha256(json.dumps(whose).encode())
    state = sha256(json.dumps([FORMAT, *DECODERS, os.path.abspath(listing.root), size]).encode())
    for picture, stamp in zip(listing.pictures, stamps, strict=True):
        state.update(json.dumps([picture.name, picture.label, picture.split, picture.group, stamp]).encode())
    return f"{family.hexdigest()[:12]}-{state.hexdigest()[:20]}"
