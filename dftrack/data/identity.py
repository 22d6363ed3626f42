"""Which files hold the same picture: equal when decoded, whatever format, metadata or trailing bytes they have.

A JPEG saved again without loss as a PNG, or with one byte appended, is the same picture for a network, so it is one for
labels, leaks and "seen in training" too. That takes a full decoding of every file, about half a minute of one core for
100,000 faces of 96 px; what came of it is kept below the cache, so that the same files are decoded once.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dftrack.data.folder import Picture, Progress
from dftrack.data.parallel import QUICK, spread
from dftrack.data.pictures import decode
from dftrack.data.rows import stamp_of
from dftrack.data.upright import DECODERS, PictureError, read_bytes
from dftrack.files import write_text

FORMAT = 1  # raise it when the same files give other identities


@dataclass(frozen=True, slots=True)
class Identity:
    """What a readable file is equal by."""

    content: str  # 32 hex digits of the file's bytes
    pixels: str  # 32 hex digits of its size and decoded pixels


def identity(content: bytes, pixels: NDArray[np.uint8]) -> Identity:
    """Of a file's bytes and the (H, W, 3) RGB they decode to, upright and at full size."""
    seen = sha256(repr(pixels.shape).encode())
    seen.update(np.ascontiguousarray(pixels).data)
    return Identity(sha256(content).hexdigest()[:32], seen.hexdigest()[:32])


def identities(paths: Sequence[Path], progress: Progress | None = None) -> list[Identity | None]:
    """The identity of each file, in their order, read on all cores; None for one that is unreadable."""
    found: list[Identity | None] = []
    for one in spread(_identify, paths, together=QUICK):
        found.append(one)
        if progress:
            progress("looking for equal pictures", len(found), len(paths))
    return found


def named_identities(
    pictures: Sequence[Picture], seen: Mapping[str, Identity], progress: Progress | None = None
) -> dict[str, Identity]:
    """Name -> identity of the readable pictures; those in `seen` are known already."""
    unseen = [picture for picture in pictures if picture.name not in seen]
    found = identities([picture.path for picture in unseen], progress)
    return {**seen, **{picture.name: one for picture, one in zip(unseen, found, strict=True) if one is not None}}


def identities_place(home: Path, pictures: Sequence[Picture]) -> Path:
    """Where `kept_identities` of the pictures are kept below `home`: another file when one has changed on disk."""
    return home / "cache" / f"identities-{_key(pictures)}.json"


def kept_identities(
    place: Path, pictures: Sequence[Picture], seen: Mapping[str, Identity], progress: Progress | None = None
) -> dict[str, Identity]:
    """`named_identities` from what an earlier call left in `place`, if any.

    place: from `identities_place` of the same pictures, asked before those in `seen` were read: if one changes between,
    what is kept is never found again. Raises StoreError if it cannot be kept.
    """
    if (known := _read(place)) is not None:
        return known
    named = named_identities(pictures, seen, progress)
    body = json.dumps({name: [one.content, one.pixels] for name, one in named.items()})
    write_text(place, f"{body}\n{sha256(body.encode()).hexdigest()}")
    return named


def _identify(path: Path) -> Identity | None:
    try:
        content = read_bytes(path)
        return identity(content, decode(content))
    except PictureError:
        return None


def _key(pictures: Sequence[Picture]) -> str:
    state = sha256(json.dumps([FORMAT, *DECODERS]).encode())
    for picture in pictures:
        state.update(json.dumps([picture.name, os.path.abspath(picture.path), stamp_of(picture.path)]).encode())
    return state.hexdigest()[:20]


def _read(place: Path) -> dict[str, Identity] | None:
    """What is kept in `place`; None if there is nothing, or if it is damaged."""
    try:
        body, _, seal = place.read_text().rpartition("\n")
        if sha256(body.encode()).hexdigest() != seal:
            return None
        return {name: Identity(*two) for name, two in json.loads(body).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return None
