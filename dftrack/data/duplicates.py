"""Near-duplicate pictures across the sides train | val | test, found without comparing every picture with every other.

A picture's hash is 64 bits of the signs of its coarsest cosine terms (the pHash of the library imagehash, for many
pictures at once). Two hashes that differ in at most 7 of 64 bits differ in at most 1 bit of one of four 16-bit bands:
looking up each band and its 16 neighbours finds all such pairs, in time about linear in the number of pictures
(Norouzi et al., "Fast search in Hamming space with multi-index hashing", CVPR 2012). What is found is then verified
by the correlation of the two grey thumbnails. Seconds of one core for 20, 40, 80 and 160 thousand faces: 0.6, 1.6,
4.4 and 11.

Measured on 4,800 faces of 2,400 videos: copies after JPEG at quality 50 or resizing to a half, a third or 1.5 times
differ in at most 4 bits and correlate by over .99; the few other pairs above .98 showed one person in one scene.
A copy that was cropped by more than about 2 %, mirrored or turned is not found.
A fake that was made from a picture is much like it: of those faces 76 pairs of a real and a fake one of one side
correlate by over .995. But a forgery changes one place, saving anew changes all a little: the means of blocks of 8 px
(of 96, in any colour) differ by up to 2 after JPEG at quality 75 or more (99 of 100 faces), up to 3 at quality 50 (half
of them), and by 3.6 or more in each of the 76 pairs. A copy in half the size may differ by more and is then not named.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dctn

MAX_BITS = 6  # of 64, by which the hashes of near-duplicates may differ; the search is complete up to 7
MIN_LIKENESS = 0.98  # correlation of the thumbnails
COPY_LIKENESS = 0.995  # the same, from which a real and a fake picture of one side are looked at more closely
DETAIL, DETAIL_BLOCK = 96, 8  # pixels, sides of the square that is then compared, and of its blocks
COPY_DIFFERENCE = 2.5  # of 255, by which the mean of any block may differ in a copy
FLAT = 3.0  # standard deviation (0..255) of a thumbnail below which it shows too little to be compared
BANDS, BAND_BITS = 4, 16
NEIGHBOURS = (0, *(1 << bit for bit in range(BAND_BITS)))
REPRESENTATIVES = 4  # of equal hashes on one side, against which each picture of the other side is held
CHUNK = 4096  # thumbnails turned into floats at a time: 32 MiB
BLOCK = 1 << 21  # candidate pairs looked at together

Hashes = NDArray[np.uint64]
Thumbs = NDArray[np.uint8]  # (n, 32, 32)
Indices = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class NearPair:
    """Two pictures (by their place in the arrays) on different sides that show nearly the same."""

    first: int
    second: int  # larger than `first`
    bits: int  # by which their hashes differ
    likeness: float  # correlation of their thumbnails, at most 1


def perceptual_hashes(thumbs: Thumbs) -> Hashes:
    """The pHash of each of (n, 32, 32) grey thumbnails as (n,) 64-bit numbers, as imagehash.phash gives it."""
    hashes = np.empty(len(thumbs), np.uint64)
    for start in range(0, len(thumbs), CHUNK):
        part = dctn(thumbs[start : start + CHUNK].astype(np.float64), axes=(1, 2))[:, :8, :8].reshape(-1, 64)
        bits = part > np.median(part, axis=1, keepdims=True)
        hashes[start : start + CHUNK] = np.packbits(bits, axis=1).view(">u8").ravel()
    return hashes


def near_duplicates(thumbs: Thumbs, sides: NDArray[np.int64], least: float = MIN_LIKENESS) -> list[NearPair]:
    """The pairs of pictures on different sides that show nearly the same, the most alike first.

    thumbs: (n, 32, 32) uint8. sides: (n,) any whole number for each side. least: correlation of a pair.
    Where many pictures share one hash, each is held against a few of the other side: every picture that has a
    near-duplicate is named, not every pair. Pictures of one even tone are left out.
    """
    spreads = [thumbs[start : start + CHUNK].std(axis=(1, 2)) for start in range(0, len(thumbs), CHUNK)]
    shown = np.flatnonzero(np.concatenate(spreads) >= FLAT) if spreads else np.empty(0, np.intp)
    if len(shown) < 2:
        return []
    hashes = perceptual_hashes(thumbs)[shown]
    order = np.lexsort((shown, sides[shown], hashes))
    places, hashes, here = shown[order], hashes[order], sides[shown][order]
    new_hash = np.r_[True, hashes[1:] != hashes[:-1]]
    segments = np.flatnonzero(new_hash | np.r_[True, here[1:] != here[:-1]])  # pictures of one hash on one side
    members = np.split(places, segments[1:])
    unique = np.flatnonzero(new_hash[segments])  # the first segment of each hash
    ends = np.r_[unique[1:], len(segments)]
    side_of = here[segments]
    firsts: list[int] = []
    seconds: list[int] = []
    for one, other in _close_hashes(hashes[segments[unique]], _side_sets(side_of, unique)):
        for left in range(unique[one], ends[one]):
            for right in range(left + 1 if one == other else unique[other], ends[other]):
                if side_of[left] != side_of[right]:
                    for first, second in _some_of_each(members[left], members[right]):
                        firsts.append(first)
                        seconds.append(second)
    return _verified(thumbs, np.array(firsts, np.intp), np.array(seconds, np.intp), least)


def local_difference(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> float:
    """The largest difference of the means of any block of two (96, 96, 3) pictures, 0..255, in any colour."""
    change = first.astype(np.float64) - second
    blocks = change.reshape(DETAIL // DETAIL_BLOCK, DETAIL_BLOCK, DETAIL // DETAIL_BLOCK, DETAIL_BLOCK, 3)
    return float(np.abs(blocks.mean(axis=(1, 3))).max())


def _side_sets(side_of: NDArray[np.int64], unique: Indices) -> NDArray[np.uint64]:
    """For each hash the sides it is found on, as bits."""
    _, codes = np.unique(side_of, return_inverse=True)
    bits = np.left_shift(np.uint64(1), codes.astype(np.uint64))
    return np.bitwise_or.reduceat(bits, unique)


def _close_hashes(unique: Hashes, side_sets: NDArray[np.uint64]) -> Iterator[tuple[int, int]]:
    """Each (i, j), i <= j, of `unique` hashes that differ in at most MAX_BITS and are not both on one side alone."""
    found = [np.flatnonzero(np.bitwise_count(side_sets) > 1).astype(np.int64) * (len(unique) + 1)]  # (i, i)
    for band in range(BANDS):
        keys = (unique >> np.uint64(BAND_BITS * band) & np.uint64((1 << BAND_BITS) - 1)).astype(np.int64)
        order = np.argsort(keys, kind="stable")
        bounds = np.searchsorted(keys[order], np.arange((1 << BAND_BITS) + 1))
        ranks = np.empty(len(unique), np.int64)
        ranks[order] = np.arange(len(unique))
        for flip in NEIGHBOURS:
            partners = keys ^ flip
            begins = bounds[partners] if flip else ranks + 1  # in one's own bucket: those that come after oneself
            counts = np.where(partners >= keys, bounds[partners + 1] - begins, 0)  # each pair once
            for one, other in _expanded(begins, counts):
                first, second = one, order[other]
                near = np.bitwise_count(unique[first] ^ unique[second]) <= MAX_BITS
                near &= np.bitwise_count(side_sets[first] | side_sets[second]) > 1
                first, second = first[near], second[near]
                found.append(np.minimum(first, second) * len(unique) + np.maximum(first, second))
    for code in np.unique(np.concatenate(found)):  # the same pair may be close in several bands
        yield divmod(int(code), len(unique))


def _expanded(begins: NDArray[np.int64], counts: NDArray[np.int64]) -> Iterator[tuple[Indices, Indices]]:
    """Each (i, begins[i] + k) for k < counts[i], as two arrays of about BLOCK at a time."""
    sums = np.cumsum(counts)
    inner = np.searchsorted(sums, np.arange(BLOCK, int(sums[-1]), BLOCK))
    cuts = np.unique([0, *inner, len(counts)])
    for start, end in pairwise(cuts.tolist()):
        part = counts[start:end]
        one = np.repeat(np.arange(start, end), part)
        within = np.arange(len(one)) - np.repeat(np.cumsum(part) - part, part)
        yield one, begins[one] + within


def _some_of_each(left: Indices, right: Indices) -> Iterator[tuple[int, int]]:
    """Every member of each with the first few of the other, each pair once: linear in the number of members."""
    for row, first in enumerate(left):
        for second in right if row < REPRESENTATIVES else right[:REPRESENTATIVES]:
            yield (int(first), int(second)) if first < second else (int(second), int(first))


def _verified(thumbs: Thumbs, firsts: Indices, seconds: Indices, least: float) -> list[NearPair]:
    """The pairs whose thumbnails correlate by at least `least`, the most alike first."""
    pairs = []
    for start in range(0, len(firsts), CHUNK):
        first, second = firsts[start : start + CHUNK], seconds[start : start + CHUNK]
        likeness = np.einsum("nk,nk->n", _unit(thumbs[first]), _unit(thumbs[second]))
        bits = np.bitwise_count(perceptual_hashes(thumbs[first]) ^ perceptual_hashes(thumbs[second]))
        for row in np.flatnonzero(likeness >= least):
            pairs.append(NearPair(int(first[row]), int(second[row]), int(bits[row]), min(float(likeness[row]), 1.0)))
    return sorted(pairs, key=lambda pair: (-pair.likeness, pair.first, pair.second))


def _unit(thumbs: Thumbs) -> NDArray[np.float64]:
    """(n, 1024) of mean 0 and length 1. No thumbnail here is of one tone."""
    flat = thumbs.reshape(len(thumbs), -1).astype(np.float64)
    flat -= flat.mean(1, keepdims=True)
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    return flat
