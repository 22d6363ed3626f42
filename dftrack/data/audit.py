"""What is wrong with a data set, said before any training: leaks between splits, shortcuts, unreadable files.

A leak between train and val, train and test or val and test flatters the result. Test splits may share pictures with
each other (one may be a damaged copy of another), and a real picture and its fake may well look alike within a split.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from dftrack.data.duplicates import near_duplicates
from dftrack.data.findings import (
    ALIKE,
    BYTES,
    LEAKS,
    SEVERITIES,
    SIDES,
    Finding,
    Pair,
    about_counts,
    about_files,
    about_groups,
    about_labels,
    about_pairs,
    about_shortcut,
    by_bytes,
    class_counts,
)
from dftrack.data.folder import Listing, Picture, Progress, side
from dftrack.data.look import THUMB, Traits, look_at
from dftrack.data.parallel import spread
from dftrack.data.shortcuts import Rows, Shortcut, probe

MOST = 10_000  # pictures of train, and of val, given to the shortcut probe
QUICK_TRAIN, QUICK_VAL = 2000, 1000  # the same in the short form
TAIL = 1024  # bytes at the end of a file, compared before whole files are


@dataclass(frozen=True, slots=True)
class Audit:
    """What was found, the worst first."""

    source: str
    thorough: bool  # False: the short form, without near-duplicates and unreadable files, its probe on fewer pictures
    counts: Mapping[str, Mapping[str, int]]  # split -> class -> pictures listed
    findings: tuple[Finding, ...]
    same: tuple[Pair, ...]  # the same bytes on two sides: each picture of the later side, with one of the earlier
    alike: tuple[Pair, ...]  # nearly the same on two sides, the most alike first
    shortcut: Shortcut


def blocking(audit: Audit) -> tuple[Finding, ...]:
    """The findings that make a result worthless: exact leaks between splits, and one picture with both labels."""
    return tuple(finding for finding in audit.findings if finding.kind in LEAKS)


def audit(listing: Listing, *, thorough: bool, progress: Progress | None = None) -> Audit:
    """Look for what is wrong with the pictures of `listing`.

    thorough: read every file once, on all cores, and compare all pictures; time and memory (2 kB for each picture)
    grow with their number. Otherwise the short form for every run: names, equal bytes, and the probe on a few pictures.
    progress: told (what, done, total).
    """
    pictures = listing.pictures
    probed = _drawn(pictures, *((MOST, MOST) if thorough else (QUICK_TRAIN, QUICK_VAL)))
    seen = _see(pictures if thorough else probed, {picture.name for picture in probed}, progress)
    digests = seen.digests if thorough else _twins(pictures, progress)
    same = _equal_across(pictures, digests)
    alike = _alike_across(seen, progress) if thorough else []
    shortcut = probe(_rows(probed, "train", seen), _rows(probed, "val", seen))
    findings = [
        *about_counts(pictures),
        *about_groups(pictures),
        *about_files(pictures, seen.pictures, seen.unreadable),
        *about_labels(pictures, digests),
        *about_pairs(pictures, same, BYTES, "error", "the same bytes as"),
        *about_pairs(pictures, alike, ALIKE, "warning", "nearly the same content as"),
        about_shortcut(shortcut),
    ]
    findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    counts = class_counts(pictures)
    return Audit(listing.source, thorough, counts, tuple(findings), tuple(same), tuple(alike), shortcut)


# ---- reading


@dataclass(slots=True)
class _Seen:
    """What is kept of the looks at some pictures."""

    pictures: Sequence[Picture]
    thumbs: NDArray[np.uint8]  # (n, 32, 32), black where the file cannot be read
    unreadable: dict[str, str]  # name -> why
    digests: dict[str, bytes]  # name -> sha256
    traits: dict[str, Traits]  # of the pictures that the probe asks about


def _see(pictures: Sequence[Picture], probed: Set[str], progress: Progress | None) -> _Seen:
    seen = _Seen(pictures, np.zeros((len(pictures), THUMB, THUMB), np.uint8), {}, {}, {})
    for row, (picture, look) in enumerate(zip(pictures, look_at(pictures), strict=True)):
        if look.traits is None or look.thumb is None:
            seen.unreadable[picture.name] = look.unreadable
        else:
            seen.digests[picture.name] = look.sha256
            seen.thumbs[row] = look.thumb
            if picture.name in probed:
                seen.traits[picture.name] = look.traits
        if progress:
            progress("checking pictures", row + 1, len(pictures))
    return seen


def _drawn(pictures: Sequence[Picture], most_train: int, most_val: int) -> list[Picture]:
    """Pictures of train and val for the probe, the same ones every time: group by group in the order of a hash."""
    chosen: list[Picture] = []
    for split, most in (("train", most_train), ("val", most_val)):
        there = [picture for picture in pictures if picture.split == split]
        if len(there) > most:
            draws = {picture.group: sha256(picture.group.encode(errors="replace")).digest() for picture in there}
            there = sorted(there, key=lambda picture: (draws[picture.group], picture.name))[:most]
        chosen += there
    return chosen


def _rows(probed: Sequence[Picture], split: str, seen: _Seen) -> Rows:
    readable = [picture for picture in probed if picture.split == split and picture.name in seen.traits]
    return Rows(
        [seen.traits[picture.name] for picture in readable],
        np.array([picture.label for picture in readable], np.int64),
        [picture.group for picture in readable],
    )


def _twins(pictures: Sequence[Picture], progress: Progress | None) -> dict[str, bytes]:
    """Name -> sha256 of the files that have a twin, found by size and last bytes, then by all bytes."""
    suspects, marks = list(pictures), dict[str, bytes]()
    for what, mark in (("comparing file endings", _ending), ("comparing files", _digest)):
        marks.clear()
        for picture, value in zip(suspects, spread(mark, suspects), strict=True):
            marks[picture.name] = value
            if progress:
                progress(what, len(marks), len(suspects))
        frequent = Counter(marks.values())
        suspects = [p for p in suspects if marks[p.name] and frequent[marks[p.name]] > 1]
    return {picture.name: marks[picture.name] for picture in suspects}


def _ending(picture: Picture) -> bytes:
    """Size and last bytes of the file; b"" if it is empty or cannot be read."""
    try:
        with open(picture.path, "rb") as handle:
            size = os.fstat(handle.fileno()).st_size
            return b"%d " % size + os.pread(handle.fileno(), TAIL, max(0, size - TAIL)) if size else b""
    except (OSError, ValueError):
        return b""


def _digest(picture: Picture) -> bytes:
    try:
        return sha256(picture.path.read_bytes()).digest()
    except OSError:
        return b""


# ---- comparing


def _equal_across(pictures: Sequence[Picture], digests: Mapping[str, bytes]) -> list[Pair]:
    """Each picture of a later side that has the bytes of one of an earlier side, with the first such."""
    return [
        Pair(twins[0].name, twin.name, 1.0)
        for twins in by_bytes(pictures, digests)
        for twin in twins[1:]
        if side(twin.split) != side(twins[0].split)
    ]


def _alike_across(seen: _Seen, progress: Progress | None) -> list[Pair]:
    """Near-duplicates on two sides, those with the same bytes apart; the earlier side first."""
    if progress:
        progress("comparing pictures", 0, 1)
    readable = [row for row, picture in enumerate(seen.pictures) if picture.name in seen.digests]
    sides = np.array([SIDES.index(side(seen.pictures[row].split)) for row in readable], np.int64)
    pairs = []
    for pair in near_duplicates(seen.thumbs[readable], sides):
        two = sorted((pair.first, pair.second), key=lambda place: (sides[place], place))
        first, second = (seen.pictures[readable[place]].name for place in two)
        if seen.digests[first] != seen.digests[second]:
            pairs.append(Pair(first, second, round(pair.likeness, 4)))
    if progress:
        progress("comparing pictures", 1, 1)
    return pairs
