"""Before anything is trained: the short audit, and what follows from it.

A picture of a later side (val, test) that equals one of an earlier side, pixel for pixel, is left out and counted; more
than 1 % of a split, a group on two sides or a picture with both labels is refused, unless the user says otherwise. What
was found is kept below the cache, so that the same files are looked at once.
"""

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from dftrack.config import Leaks
from dftrack.data.audit import Audit, audit, blocking
from dftrack.data.findings import SAME, Finding, Pair
from dftrack.data.folder import Listing, Progress
from dftrack.data.identity import identities_place, kept_identities
from dftrack.data.rows import Stamp, stamp_of
from dftrack.data.shortcuts import Shortcut
from dftrack.errors import DataError
from dftrack.files import write_text

FORMAT = 3  # raise it when the same files give another audit
MOST_LEFT_OUT = 0.01  # share of a split
HINT = (
    "dftrack data check lists them all; --set data.leaks=allow trains on them, says so in the run, and bars promotion"
)


@dataclass(frozen=True, slots=True)
class Review:
    """What was found before training, and what was done about it."""

    audit: Audit  # the short form, of the pictures as they were listed
    left_out: tuple[Pair, ...]  # each second picture is not in the data set
    allowed: int  # exact leaks that stay in because the user said so

    def notices(self) -> tuple[str, ...]:
        """What a person should know before the training starts."""
        said = []
        if self.left_out:
            named = "; ".join(f"{pair.second} is {pair.first}" for pair in self.left_out[:3])
            said.append(f"left out, since the picture stands in an earlier split too: {len(self.left_out)} ({named})")
        if self.allowed:
            said.append(f"{self.allowed} exact leaks are trained on, as asked for: the results are no measure of skill")
        return (*said, *(f"data: {f.message}" for f in self.audit.findings if f.severity == "warning"))

    def plain(self) -> dict[str, Any]:
        """For a JSON file."""
        return dataclasses.asdict(self)


def review(listing: Listing, leaks: Leaks, home: Path, progress: Progress | None = None) -> tuple[Listing, Review]:
    """The pictures that may be used, and what was found. Raises DataError if a leak blocks."""
    found = _audit(listing, home, progress)
    faults = blocking(found)
    if leaks == "allow":
        return listing, Review(found, (), sum(fault.count for fault in faults))
    beyond = [fault for fault in faults if fault.kind not in SAME or leaks == "refuse"]
    if beyond:
        raise DataError(_sentence(beyond[0]), HINT)
    left_out = {pair.second for pair in found.same}
    _require_few(listing, left_out)
    kept = tuple(picture for picture in listing.pictures if picture.name not in left_out)
    return dataclasses.replace(listing, pictures=kept), Review(found, found.same, 0)


def _require_few(listing: Listing, left_out: set[str]) -> None:
    totals = Counter(picture.split for picture in listing.pictures)
    lost = Counter(picture.split for picture in listing.pictures if picture.name in left_out)
    for split, count in lost.items():
        if count > MOST_LEFT_OUT * totals[split]:
            raise DataError(
                f"{count} of the {totals[split]} pictures of {split} are copies of pictures in another split, "
                f"for example {min(name for name in left_out)}: more than the {MOST_LEFT_OUT:.0%} that is left out",
                HINT,
            )


def _sentence(fault: Finding) -> str:
    examples = f" ({'; '.join(fault.examples[:3])})" if fault.examples else ""
    return f"a leak in the data: {fault.message}{examples}"


def _audit(listing: Listing, home: Path, progress: Progress | None) -> Audit:
    """The short audit, from the file that an earlier one left if the pictures are still the same."""
    place = home / "cache" / f"audit-{_key(listing, [stamp_of(picture.path) for picture in listing.pictures])}.json"
    if (known := _read(place)) is not None:
        return known
    identify = partial(kept_identities, identities_place(home, listing.pictures))
    found = audit(listing, thorough=False, progress=progress, identify=identify)
    write_text(place, json.dumps(dataclasses.asdict(found)))
    return found


def _key(listing: Listing, stamps: Sequence[Stamp | None]) -> str:
    state = sha256(json.dumps([FORMAT, os.path.abspath(listing.root), listing.source]).encode())
    for picture, stamp in zip(listing.pictures, stamps, strict=True):
        mask = picture.mask and [str(picture.mask), picture.mask.is_file()]
        state.update(json.dumps([picture.name, picture.label, picture.split, picture.group, stamp, mask]).encode())
    return state.hexdigest()[:20]


def _read(place: Path) -> Audit | None:
    """The audit kept in `place`; None if there is none, or if it is damaged."""
    try:
        plain: Mapping[str, Any] = json.loads(place.read_text())
        shortcut = plain["shortcut"] | {"pictures": tuple(plain["shortcut"]["pictures"])}
        return Audit(
            source=plain["source"],
            thorough=plain["thorough"],
            counts=plain["counts"],
            findings=tuple(Finding(**f | {"examples": tuple(f["examples"])}) for f in plain["findings"]),
            same=tuple(Pair(**pair) for pair in plain["same"]),
            alike=tuple(Pair(**pair) for pair in plain["alike"]),
            contradicting=tuple(Pair(**pair) for pair in plain["contradicting"]),
            shortcut=Shortcut(**shortcut),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
