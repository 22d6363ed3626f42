"""Read a COCO annotation file of hundreds of megabytes piece by piece, keeping only where each annotation lies.

The file is read as Latin-1, in which one character is one byte: a position in the text is an offset in the file, and
an annotation can be read again, alone, when its scene is cut. JSON's own signs are ASCII, so nothing is lost by it.
Format: https://cocodataset.org/#format-data
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from dftrack.errors import DataError

CHUNK = 1 << 20  # bytes read at a time
LARGEST_ITEM = 1 << 26  # bytes of one image, annotation or other value; more means that the file is broken
ARRAYS = ("images", "annotations", "categories")
DECODER = json.JSONDecoder()
Point = tuple[float, float]
FAR = 1e9  # pixels: no honest coordinate is as large; NaN and infinity are neither below nor above
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Scene:
    """One picture of an annotation file and where its annotations lie."""

    id: int | str
    file_name: str  # as written in the file, e.g. Images/Train/ab12.jpg
    width: int | None  # pixels, None where the file does not say
    height: int | None
    spans: tuple[tuple[int, int], ...]  # (offset, bytes) of each annotation, in the file's order


@dataclass(frozen=True, slots=True)
class Index:
    """What an annotation file holds: categories and scenes in the file's order, and what had to be left out."""

    path: Path
    sha256: str  # of the whole file, hex
    categories: Mapping[int | str, str]  # id -> name
    scenes: tuple[Scene, ...]
    faults: tuple[tuple[str, str], ...]  # (reason, which)


@dataclass(frozen=True, slots=True)
class Annotation:
    """One face of a scene, in the scene's pixels."""

    category: int | str | None
    box: tuple[float, float, float, float]  # left, top, width, height
    polygons: tuple[tuple[Point, ...], ...]  # their union is the face; empty where `no_polygons` says why
    no_polygons: str


class AnnotationError(ValueError):
    """Why one annotation cannot be used."""


def read_index(path: Path) -> Index:
    """Read the file once and note what it holds; memory grows with the number of scenes and faces, not with polygons.

    Raises DataError if the file cannot be read, is not COCO JSON or lacks its images or annotations.
    """
    digest = hashlib.sha256()
    images: dict[int | str, Json] = {}
    spans: dict[int | str, list[tuple[int, int]]] = {}
    categories: dict[int | str, str] = {}
    faults: list[tuple[str, str]] = []
    seen: set[str] = set()
    try:
        with open(path, "rb") as handle:
            for key, item, (begin, length) in _walk(handle, digest, seen):
                if key == "images":
                    _add_image(item, images, faults)
                elif key == "annotations":
                    spans.setdefault(_key(item.get("image_id")), []).append((begin, length))
                elif isinstance(item.get("name"), str):
                    categories[_key(item.get("id"))] = item["name"]
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not a whole COCO file: {error}", "copy or unpack it again") from error
    missing = [key for key in ("images", "annotations") if key not in seen]
    if missing:
        raise DataError(f"{path} has no list of {' and '.join(missing)}", "a COCO annotation file is needed")
    scenes = tuple(_scene(key, image, tuple(spans.pop(key, ()))) for key, image in images.items())
    faults += [("annotation of a scene that the file does not list", f"scene {k}") for k, v in spans.items() for _ in v]
    return Index(path, digest.hexdigest(), categories, scenes, tuple(faults))


def read_annotation(handle: int, span: tuple[int, int]) -> Annotation:
    """The annotation at `span` of the open file descriptor `handle`; may be called from several threads.

    Raises AnnotationError if it has no usable box.
    """
    item = json.loads(os.pread(handle, span[1], span[0]))
    box = item.get("bbox")
    if not (isinstance(box, list) and len(box) == 4 and all(_finite(number) for number in box)):
        raise AnnotationError("no box of four numbers")
    left, top, width, height = (float(number) for number in box)
    if width <= 0 or height <= 0:
        raise AnnotationError("a box of no size")
    category = item.get("category_id")
    polygons, why_none = _polygons(item.get("segmentation"))
    return Annotation(
        category if isinstance(category, int | str) else None, (left, top, width, height), polygons, why_none
    )


def _polygons(segmentation: object) -> tuple[tuple[tuple[Point, ...], ...], str]:
    """The polygons of one annotation, and, where there are none that can be used, why."""
    if not segmentation:
        return (), "no polygon"
    if isinstance(segmentation, dict):
        return (), "mask is run-length encoded, only polygons are read"
    if not isinstance(segmentation, list):
        return (), "broken polygon"
    polygons = []
    for part in segmentation if isinstance(segmentation[0], list) else [segmentation]:  # the outer list may be missing
        if not (isinstance(part, list) and len(part) >= 6 and len(part) % 2 == 0 and all(map(_finite, part))):
            return (), "broken polygon"
        polygons.append(tuple((float(x), float(y)) for x, y in zip(part[::2], part[1::2], strict=True)))
    return tuple(polygons), ""


def _finite(number: object) -> bool:
    return isinstance(number, int | float) and not isinstance(number, bool) and abs(number) < FAR


def _key(value: object) -> int | str:
    return value if isinstance(value, int | str) else repr(value)


def _add_image(item: Json, images: dict[int | str, Json], faults: list[tuple[str, str]]) -> None:
    key, name = item.get("id"), item.get("file_name")
    if not isinstance(key, int | str) or not isinstance(name, str) or not name:
        faults.append(("scene without id or file name", f"{str(item)[:80]}"))
    elif key in images:
        faults.append(("scene id used twice", f"{name} (id {key})"))
    else:
        images[key] = {side: item.get(side) for side in ("width", "height")} | {"name": name}


def _scene(key: int | str, image: Json, spans: tuple[tuple[int, int], ...]) -> Scene:
    sides = [side if isinstance(side, int) else None for side in (image["width"], image["height"])]
    return Scene(key, image["name"], sides[0], sides[1], spans)


class _Window:
    """A window of text over the file, which moves on as values are taken from it."""

    def __init__(self, handle: BinaryIO, digest: "hashlib._Hash") -> None:
        self.handle, self.digest = handle, digest
        self.text, self.at = "", 0
        self.start = 0  # offset in the file of text[0]
        while len(self.text) < 3 and self.fill():
            pass
        if self.text.startswith("\xef\xbb\xbf"):  # a byte order mark
            self.at = 3

    def fill(self) -> bool:
        """Read on, twice as much each time while one value lasts; False at the end of the file."""
        block = self.handle.read(max(CHUNK, len(self.text) - self.at))
        self.digest.update(block)
        self.text, self.start, self.at = self.text[self.at :] + block.decode("latin-1"), self.start + self.at, 0
        return bool(block)

    def peek(self) -> str:
        """The next sign that is no white space; "" at the end."""
        while True:
            while self.at < len(self.text):
                if self.text[self.at] not in " \t\r\n":
                    return self.text[self.at]
                self.at += 1
            if not self.fill():
                return ""

    def take(self, signs: str) -> str:
        """Go past the next sign, which must be one of `signs`."""
        sign = self.peek()
        if not sign or sign not in signs:
            wanted = " or ".join(signs)
            raise ValueError(f"{wanted} expected at byte {self.start + self.at}, found {sign or 'the end'}")
        self.at += 1
        return sign

    def value(self) -> tuple[Any, tuple[int, int]]:
        """The next JSON value and its (offset, bytes)."""
        self.peek()
        while True:
            try:
                value, end = DECODER.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                place = self.start + error.pos
                if len(self.text) - self.at > LARGEST_ITEM or not self.fill():
                    raise ValueError(f"{error.msg} at byte {place}") from None
                continue
            if end < len(self.text) or not self.fill():  # a number at the window's edge may go on behind it
                break
        written = self.text[self.at : end]
        if not written.isascii():
            value = json.loads(written.encode("latin-1").decode())
        span = (self.start + self.at, end - self.at)
        self.at = end
        return value, span


def _walk(handle: BinaryIO, digest: "hashlib._Hash", seen: set[str]) -> Iterator[tuple[str, Json, tuple[int, int]]]:
    """Each (key, item, span) of the file's three arrays; `seen` gathers the keys of the arrays that were there."""
    window = _Window(handle, digest)
    window.take("{")
    if window.peek() == "}":
        return
    while True:
        key, _ = window.value()
        window.take(":")
        if key in ARRAYS and window.peek() == "[":
            seen.add(key)
            for item, span in _array(window):
                if not isinstance(item, dict):
                    raise ValueError(f"an item of {key} is not an object, at byte {span[0]}")
                yield key, item, span
        else:
            window.value()
        if window.take(",}") == "}":
            break
    if window.peek():
        raise ValueError(f"more text follows the end, at byte {window.start + window.at}")


def _array(window: _Window) -> Iterator[tuple[Any, tuple[int, int]]]:
    window.take("[")
    if window.peek() == "]":
        window.take("]")
        return
    while True:
        yield window.value()
        if window.take(",]") == "]":
            return
