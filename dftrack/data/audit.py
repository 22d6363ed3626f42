"""What is wrong with a data set, said before any training: leaks between splits, shortcuts, unreadable files.

A leak between train and val, train and test or val and test flatters the result. Test splits may share pictures with
each other (one may be a damaged copy of another), and a real picture and its fake may well look alike within a split.
"""

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from dftrack.data.duplicates import (
    COPY_DIFFERENCE,
    COPY_LIKENESS,
    DETAIL,
    MIN_LIKENESS,
    local_difference,
    near_duplicates,
)
from dftrack.data.findings import (
    ALIKE,
    BYTES,
    LEAKS,
    PIXELS,
    SEVERITIES,
    SIDES,
    Finding,
    Pair,
    about_contradictions,
    about_counts,
    about_files,
    about_groups,
    about_labels,
    about_pairs,
    about_shortcut,
    class_counts,
    twins_of,
)
from dftrack.data.folder import Listing, Picture, Progress, side
from dftrack.data.identity import Identity, named_identities
from dftrack.data.look import THUMB, Traits, look_at
from dftrack.data.parallel import spread
from dftrack.data.pictures import decode
from dftrack.data.shortcuts import Rows, Shortcut, probe

MOST = 10_000  # pictures of train, and of val, given to the shortcut probe
QUICK_TRAIN, QUICK_VAL = 2000, 1000  # the same in the short form

Identify = Callable[[Sequence[Picture], Mapping[str, Identity], Progress | None], Mapping[str, Identity]]


@dataclass(frozen=True, slots=True)
class Audit:
    """What was found, the worst first."""

    source: str
    thorough: bool  # False: the short form, without near-duplicates and unreadable files, its probe on fewer pictures
    counts: Mapping[str, Mapping[str, int]]  # split -> class -> pictures listed
    findings: tuple[Finding, ...]
    same: tuple[Pair, ...]  # the same pixels on two sides: each picture of the later side, with one of the earlier
    alike: tuple[Pair, ...]  # nearly the same on two sides, the most alike first
    contradicting: tuple[Pair, ...]  # as alike as copies on one side, one real and one fake
    shortcut: Shortcut


def blocking(audit: Audit) -> tuple[Finding, ...]:
    """The findings that make a result worthless: exact leaks between splits, and one picture with both labels."""
    return tuple(finding for finding in audit.findings if finding.kind in LEAKS)


def audit(
    listing: Listing,
    *,
    thorough: bool,
    progress: Progress | None = None,
    identify: Identify = named_identities,
) -> Audit:
    """Look for what is wrong with the pictures of `listing`.

    thorough: read every file once, on all cores, and compare all pictures; time and memory (2 kB for each picture)
    grow with their number. Otherwise the short form for every run: names, equal pictures, and the probe on a few.
    progress: told (what, done, total).
    identify: gives the short form the identities of all pictures, from those of the pictures that the probe read.
    """
    pictures = listing.pictures
    probed = _drawn(pictures, *((MOST, MOST) if thorough else (QUICK_TRAIN, QUICK_VAL)))
    seen = _see(pictures if thorough else probed, {picture.name for picture in probed}, progress, thumbs=thorough)
    equal = seen.identities if thorough else identify(pictures, seen.identities, progress)
    same = _equal_across(pictures, equal)
    copies = [pair for pair in same if equal[pair.first].content == equal[pair.second].content]
    saved_anew = [pair for pair in same if equal[pair.first].content != equal[pair.second].content]
    alike = _alike_across(seen, progress) if thorough else []
    contradicting = _alike_within(seen) if thorough else []
    shortcut = probe(_rows(probed, "train", seen), _rows(probed, "val", seen))
    findings = [
        *about_counts(pictures),
        *about_groups(pictures),
        *about_files(pictures, seen.pictures, seen.unreadable),
        *about_labels(pictures, equal),
        *about_pairs(pictures, copies, BYTES, "error", "the same bytes as"),
        *about_pairs(pictures, saved_anew, PIXELS, "error", "the same pixels as"),
        *about_pairs(pictures, alike, ALIKE, "warning", "nearly the same content as"),
        *about_contradictions(contradicting),
        about_shortcut(shortcut),
    ]
    findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    counts = class_counts(pictures)
    return Audit(
        listing.source,
        thorough,
        counts,
        tuple(findings),
        same=tuple(same),
        alike=tuple(alike),
        contradicting=tuple(contradicting),
        shortcut=shortcut,
    )


# ---- reading


@dataclass(slots=True)
class _Seen:
    """What is kept of the looks at some pictures."""

    pictures: Sequence[Picture]
    thumbs: NDArray[np.uint8]  # (n, 32, 32), black where the file cannot be read; of none, if not asked for
    unreadable: dict[str, str]  # name -> why
    identities: dict[str, Identity]  # by name
    traits: dict[str, Traits]  # of the pictures that the probe asks about


def _see(pictures: Sequence[Picture], probed: Set[str], progress: Progress | None, *, thumbs: bool) -> _Seen:
    seen = _Seen(pictures, np.zeros((len(pictures) if thumbs else 0, THUMB, THUMB), np.uint8), {}, {}, {})
    for row, (picture, look) in enumerate(zip(pictures, look_at(pictures, thumbs=thumbs), strict=True)):
        if look.traits is None or look.identity is None:
            seen.unreadable[picture.name] = look.unreadable
        else:
            seen.identities[picture.name] = look.identity
            if look.thumb is not None:
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


# ---- comparing


def _equal_across(pictures: Sequence[Picture], known: Mapping[str, Identity]) -> list[Pair]:
    """Each picture of a later side that equals one of an earlier side, with the first such; rather one of its bytes."""
    pairs = []
    for twins in twins_of(pictures, known):
        by_content: dict[str, Picture] = {}
        for twin in twins:
            first = by_content.setdefault(known[twin.name].content, twin)
            if side(first.split) == side(twin.split):
                first = twins[0]
            if side(first.split) != side(twin.split):
                pairs.append(Pair(first.name, twin.name, 1.0))
    return pairs


def _alike_across(seen: _Seen, progress: Progress | None) -> list[Pair]:
    """Near-duplicates on two sides, equal pictures apart; the earlier side first."""
    if progress:
        progress("comparing pictures", 0, 1)
    rows = _readable(seen)
    sides = np.array([SIDES.index(side(seen.pictures[row].split)) for row in rows], np.int64)
    pairs = _near(seen, rows, sides, MIN_LIKENESS)
    if progress:
        progress("comparing pictures", 1, 1)
    return pairs


def _alike_within(seen: _Seen) -> list[Pair]:
    """On each side the pairs of a real and a fake picture that are as alike as copies, equal pictures apart.

    A forgery changes one place; a copy saved anew differs a little everywhere.
    """
    rows = _readable(seen)
    pairs: list[Pair] = []
    for name in SIDES:
        there = [row for row in rows if side(seen.pictures[row].split) == name]
        labels = np.array([seen.pictures[row].label for row in there], np.int64)
        pairs += _near(seen, there, labels, COPY_LIKENESS)
    path_of = {picture.name: picture.path for picture in seen.pictures}

    def difference(pair: Pair) -> float:
        return local_difference(decode(path_of[pair.first], DETAIL), decode(path_of[pair.second], DETAIL))

    found = [pair for pair, by in zip(pairs, spread(difference, pairs), strict=True) if by <= COPY_DIFFERENCE]
    return sorted(found, key=lambda pair: -pair.likeness)


def _readable(seen: _Seen) -> list[int]:
    return [row for row, picture in enumerate(seen.pictures) if picture.name in seen.identities]


def _near(seen: _Seen, rows: Sequence[int], parts: NDArray[np.int64], least: float) -> list[Pair]:
    """Near-duplicates in two `parts`, equal pictures apart; the smaller part first."""
    pairs = []
    for pair in near_duplicates(seen.thumbs[rows], parts, least):
        two = sorted((pair.first, pair.second), key=lambda place: (parts[place], place))
        first, second = (seen.pictures[rows[place]].name for place in two)
        if seen.identities[first].pixels != seen.identities[second].pixels:
            pairs.append(Pair(first, second, round(pair.likeness, 4)))
    return pairs
