"""The picture files that a person means: named one by one, by folder, or by a pattern like `holiday/**/*.jpg`."""

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dftrack.data.folder import SUFFIXES
from dftrack.errors import DataError


@dataclass(frozen=True, slots=True)
class Named:
    """What the names stand for."""

    paths: tuple[Path, ...]  # each file once, in the order of the names; sorted inside a folder or a pattern
    notes: tuple[str, ...]  # what found nothing or could not be listed, while other names found something


def find_pictures(names: Sequence[str]) -> Named:
    """The files behind `names`.

    A file is taken whatever it is called, even if it is missing: reading it will say what is wrong. A folder gives its
    JPEG, PNG and WebP files by their suffix, folders inside it too; hidden files and folders are left out and links to
    folders not followed. A name with * ? or [ that is no file is a pattern, ** goes into folders; here, too, only
    pictures by their suffix count, and no hidden ones. A file named twice counts once.
    Raises DataError if all of it finds nothing.
    """
    found: dict[str, Path] = {}  # absolute path -> as it was named
    notes: list[str] = []
    for name in names:
        before = len(found)
        for path in _behind(name, notes):
            found.setdefault(os.path.abspath(path), path)
        if len(found) == before and not _is_file_name(name) and not _known(name, found):
            notes.append(f"no pictures in {name}")
    if not found:
        raise DataError(
            "; ".join(notes) or "no picture was named", f"looked for files that end in {' '.join(sorted(SUFFIXES))}"
        )
    return Named(tuple(found.values()), tuple(notes))


def _behind(name: str, notes: list[str]) -> Iterator[Path]:
    if os.path.isdir(name):
        yield from _inside(Path(name), notes)
    elif _is_file_name(name):
        yield Path(name)
    else:
        for match in sorted(glob.glob(name, recursive=True)):
            if os.path.isdir(match):
                if "**" not in name:  # which names what is inside by itself
                    yield from _inside(Path(match), notes)
            elif _is_picture(match) and not ("**" in name and _through_a_link(match, name)):
                yield Path(match)


def _is_file_name(name: str) -> bool:
    """Is it one file (there or not), rather than a folder or a pattern?"""
    return not os.path.isdir(name) and (os.path.lexists(name) or not glob.has_magic(name))


def _known(name: str, found: Iterable[str]) -> bool:
    """Did earlier names find what this one stands for?"""
    return any(os.path.abspath(path) in found for path in _behind(name, []))


def _inside(folder: Path, notes: list[str]) -> Iterator[Path]:
    """The pictures below the folder, sorted by path."""

    def note(error: OSError) -> None:
        notes.append(f"cannot list {error.filename}: {error.strerror}")

    for place, folders, files in os.walk(folder, onerror=note):
        folders[:] = sorted(inner for inner in folders if not inner.startswith("."))
        yield from (Path(place, name) for name in sorted(files) if _is_picture(os.path.join(place, name)))


def _through_a_link(match: str, pattern: str) -> bool:
    """Is one of the folders that the pattern left open a link? (** follows them, in circles too.)"""
    fixed = next(number for number, part in enumerate(Path(pattern).parts) if glob.has_magic(part))
    return any(os.path.islink(Path(*Path(match).parts[:end])) for end in range(fixed + 1, len(Path(match).parts)))


def _is_picture(path: str) -> bool:
    """By its name; what is there must be a file: whoever opened a pipe would wait for ever."""
    suffix = os.path.splitext(path)[1].lower()
    wanted = suffix in SUFFIXES and not os.path.basename(path).startswith(".")
    return wanted and (os.path.isfile(path) or not os.path.exists(path))  # a broken link is told as what it is
