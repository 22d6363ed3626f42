"""What an audit can say: each function looks at one kind of fault and words what it finds."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from dftrack.data.folder import REAL, Picture, side
from dftrack.data.identity import Identity
from dftrack.data.shortcuts import Shortcut

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
SIDES = ("train", "val", "test")
GROUP, BYTES, PIXELS = "group-across-splits", "bytes-across-splits", "pixels-across-splits"
LABELS = "both-labels"
SAME = frozenset({BYTES, PIXELS})  # a picture on two sides, which can be left out of one
LEAKS = frozenset({GROUP, LABELS, *SAME})  # the exact ones, which block
ALIKE = "alike-across-splits"
ALIKE_LABELS = "alike-with-both-labels"

EXAMPLES = 10  # named in a finding
MAX_UNREADABLE = 0.01  # share of a split
IMBALANCE = 3.0  # times as many pictures of one class as of the other, from which it is worth a word
CHANCE = 0.5  # an AUC at or below which nothing was found
STRONG = 0.70  # AUC of the shortcut probe from which it is a warning
SHOWN_TRAITS = 5


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, or worth knowing."""

    severity: Severity
    kind: str  # a fixed word for programs, e.g. "bytes-across-splits"
    message: str  # one sentence for people
    count: int  # pictures, groups or pairs concerned
    examples: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Pair:
    """Two pictures that are the same, or nearly, on two sides of train | val | test or with two labels."""

    first: str  # names
    second: str
    likeness: float  # 1: the same pixels; else the correlation of their thumbnails


def class_counts(pictures: Iterable[Picture]) -> dict[str, dict[str, int]]:
    """split -> class -> pictures, in the order in which the splits come."""
    counts: dict[str, dict[str, int]] = {}
    for picture in pictures:
        counts.setdefault(picture.split, {"real": 0, "fake": 0})[_class(picture)] += 1
    return counts


def _class(picture: Picture) -> str:
    return "real" if picture.label == REAL else "fake"


def twins_of(pictures: Sequence[Picture], known: Mapping[str, Identity]) -> list[list[Picture]]:
    """The pictures that others equal pixel for pixel, together with them, in the order of the sides."""
    found: dict[str, list[Picture]] = {}
    for picture in sorted(
        pictures, key=lambda picture: (SIDES.index(side(picture.split)), picture.split, picture.name)
    ):
        if picture.name in known:
            found.setdefault(known[picture.name].pixels, []).append(picture)
    return [twins for twins in found.values() if len(twins) > 1]


def about_counts(pictures: Sequence[Picture]) -> Iterator[Finding]:
    """Splits and classes that are missing or few."""
    counts = class_counts(pictures)
    for split in ("train", "val"):
        if split not in counts:
            yield Finding("error", "no-split", f"there is no split {split}", 0)
    for split, classes in counts.items():
        (few, low), (many, high) = sorted(classes.items(), key=lambda item: item[1])
        if low == 0:
            severity: Severity = "note" if side(split) == "test" else "error"
            yield Finding(severity, "one-class", f"{split} holds {many} pictures only: no AUC can be computed", high)
        elif high >= IMBALANCE * low:
            message = f"{split} holds {high / low:.1f} times as many {many} as {few} pictures ({high} to {low})"
            yield Finding("warning" if split == "train" else "note", "imbalance", message, high)


def about_groups(pictures: Sequence[Picture]) -> Iterator[Finding]:
    """Groups on two sides, or none at all."""
    splits: dict[str, set[str]] = {}
    for picture in pictures:
        splits.setdefault(picture.group, set()).add(picture.split)
    straddling = {group: there for group, there in splits.items() if len({side(split) for split in there}) > 1}
    if straddling:
        named = [f"{group} in {', '.join(sorted(there))}" for group, there in sorted(straddling.items())]
        message = f"{_number(len(named), 'group')} (person, scene or video) on two sides of train | val | test"
        yield Finding("error", GROUP, message, len(named), tuple(named[:EXAMPLES]))
    if len(splits) == len(pictures) > 1:
        message = "every picture is its own group: pictures of one person or scene may be on two sides unnoticed"
        yield Finding("note", "no-groups", message, len(pictures))


def about_files(
    pictures: Sequence[Picture], read: Sequence[Picture], unreadable: Mapping[str, str]
) -> Iterator[Finding]:
    """Of the pictures that were `read`, those that cannot be (`unreadable`: name -> why); masks that are not there."""
    totals = Counter(picture.split for picture in read)
    bad: dict[str, list[str]] = {}
    for picture in read:
        if picture.name in unreadable:
            bad.setdefault(picture.split, []).append(f"{picture.name}: {unreadable[picture.name]}")
    for split, named in bad.items():
        many = len(named) > MAX_UNREADABLE * totals[split]
        message = f"{_number(len(named), 'picture')} of {split} cannot be read{', over 1 %' if many else ''}"
        yield Finding("error" if many else "warning", "unreadable", message, len(named), tuple(named[:EXAMPLES]))
    lost = sorted(str(picture.mask) for picture in pictures if picture.mask and not picture.mask.is_file())
    if lost:
        message = f"{_number(len(lost), 'mask')} named in the manifest cannot be found"
        yield Finding("warning", "no-mask", message, len(lost), tuple(lost[:EXAMPLES]))


def about_labels(pictures: Sequence[Picture], known: Mapping[str, Identity]) -> Iterator[Finding]:
    """Pictures with both labels, and pictures that come more than once."""
    both, repeated = [], []
    for twins in twins_of(pictures, known):
        names = " = ".join(twin.name for twin in twins[:EXAMPLES])
        if len({twin.label for twin in twins}) > 1:
            both.append(names)
        if len({side(twin.split) for twin in twins}) < len(twins):
            repeated.append(names)
    if both:
        message = f"{_number(len(both), 'picture')} labelled both real and fake"
        yield Finding("error", LABELS, message, len(both), tuple(both[:EXAMPLES]))
    if repeated:
        message = f"{_number(len(repeated), 'picture')} that come more than once within train, val or test"
        yield Finding("note", "repeated", message, len(repeated), tuple(repeated[:EXAMPLES]))


def about_pairs(
    pictures: Sequence[Picture], pairs: Sequence[Pair], kind: str, severity: Severity, what: str
) -> Iterator[Finding]:
    """Pictures that are the same, or nearly, on two sides: one finding for each two splits."""
    picture_of = {picture.name: picture for picture in pictures}
    together: dict[tuple[str, str], list[Pair]] = {}
    for pair in pairs:
        together.setdefault((picture_of[pair.first].split, picture_of[pair.second].split), []).append(pair)
    for (first, second), there in together.items():
        count = len({pair.second for pair in there})
        sign = "=" if kind in SAME else "~"
        other = {pair for pair in there if picture_of[pair.first].label != picture_of[pair.second].label}
        named = tuple(
            f"{pair.first} {sign} {pair.second}{' with the other label' if pair in other else ''}"
            for pair in sorted(there, key=lambda pair: pair not in other)[:EXAMPLES]  # the worst first
        )
        have = "has" if count == 1 else "have"
        message = f"{_number(count, 'picture')} of {second} {have} {what} pictures of {first}"
        if contradicted := len({pair.second for pair in other}):
            message += ", with the other label" if contradicted == count else f", {contradicted:,} with the other label"
        yield Finding(severity, kind, message, count, named)


def about_contradictions(pairs: Sequence[Pair]) -> Iterator[Finding]:
    """Pairs of a real picture and a fake one, on one side, that are too alike to be two pictures."""
    if pairs:
        named = tuple(f"{pair.first} ~ {pair.second}" for pair in pairs[:EXAMPLES])
        message = (
            f"{_number(len(pairs), 'pair')} of a real and a fake picture on one side that are as alike as copies: "
            "is one labelled wrongly?"
        )
        yield Finding("warning", ALIKE_LABELS, message, len(pairs), named)


def about_shortcut(shortcut: Shortcut) -> Finding:
    """What the shortcut probe came to."""
    looked_at = sum(shortcut.pictures)
    if shortcut.auc is None:
        message = f"whether the files alone tell the classes apart is undefined: {shortcut.reason}"
        return Finding("note", "shortcut", message, looked_at)
    where = "train, cross-validated" if shortcut.reason else "val"
    message = (
        f"without looking at a face, the files alone tell real from fake with AUC {shortcut.auc:.2f} ({where}): "
        "the floor for any detector here"
        if shortcut.auc >= CHANCE
        else f"without looking at a face, what tells real from fake by the files alone: {floor_words(shortcut.auc, 2)} "
        f"({where})"
    )
    named = tuple(f"{trait}: AUC {auc:.2f} alone" for trait, auc in list(shortcut.traits.items())[:SHOWN_TRAITS])
    return Finding("warning" if shortcut.auc >= STRONG else "note", "shortcut", message, looked_at, named)


def floor_words(auc: float, digits: int = 3) -> str:
    """The AUC that files alone reach, as a floor for detectors: below chance there is none."""
    return f"{auc:.{digits}f}" if auc >= CHANCE else f"none found ({auc:.{digits}f})"


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
