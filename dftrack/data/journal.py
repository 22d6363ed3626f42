"""What a long preparation has finished: one line of JSON per scene, appended when its files are in place.

A kill can tear the last line only; what does not parse is cut off and done again.
"""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from dftrack.errors import DataError, StoreError
from dftrack.files import write_text


@dataclass(frozen=True, slots=True)
class Face:
    """One face crop that was written."""

    path: str  # relative to the prepared folder, as is `mask`
    label: str  # "real" or "fake"
    group: str  # its scene, unique across splits
    mask: str  # "" where there is none, for the reason `no_mask`
    no_mask: str
    sizes: tuple[int, int]  # bytes of the crop and of its mask: a file cut short by a power failure is noticed


@dataclass(frozen=True, slots=True)
class SceneDone:
    """One scene that was worked on."""

    id: int | str
    picture: str  # its file name as the annotations write it
    faces: tuple[Face, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()  # (reason, which face)
    bad: str = ""  # why the scene could not be used; such a scene is never noted as done


@dataclass(slots=True)
class Journal:
    """The scenes done of one split. Made by `Journal.open`."""

    path: Path
    recipe: Mapping[str, object]  # what the files depend on; the journal's first line
    done: dict[int | str, SceneDone] = field(default_factory=dict)
    handle: int = -1

    @classmethod
    def open(cls, path: Path, root: Path, recipe: Mapping[str, object]) -> "Journal":
        """Read the journal at `path`, or begin one; scenes whose files under `root` are gone or cut short are not done.

        Raises DataError if it was begun with another recipe.
        """
        journal = cls(path, recipe)
        if not path.exists():
            write_text(path, json.dumps(recipe) + "\n")
            return journal
        first, *lines = path.read_bytes().split(b"\n")
        if json.loads(first) != recipe:
            raise DataError(
                f"{root} was begun with other settings or annotations: {first.decode()}, now {json.dumps(recipe)}",
                "name a new folder, or delete this one",
            )
        for line in lines[:-1]:  # behind the last line end stands nothing, or a torn line
            try:
                scene = _scene(line)
            except (ValueError, TypeError, KeyError):
                break
            if all(_is_whole(root, face) for face in scene.faces):
                journal.done[scene.id] = scene
        journal.rewrite(journal.done.values())
        return journal

    def note(self, scene: SceneDone) -> None:
        """Append one scene whose files are in place."""
        if self.handle < 0:
            self.handle = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(self.handle, _line(scene))
        except OSError as error:
            raise StoreError(f"cannot write {self.path}: {error.strerror}", "is there space?") from error
        self.done[scene.id] = scene

    def rewrite(self, scenes: Iterable[SceneDone]) -> None:
        """Put the scenes down in this order and nothing else, all or nothing."""
        self.close()
        write_text(self.path, json.dumps(self.recipe) + "\n" + b"".join(map(_line, scenes)).decode())

    def close(self) -> None:
        if self.handle >= 0:
            os.close(self.handle)
        self.handle = -1


def _line(scene: SceneDone) -> bytes:
    return json.dumps(asdict(scene)).encode() + b"\n"  # ASCII


def _scene(line: bytes) -> SceneDone:
    item = json.loads(line)
    faces = tuple(Face(**{**face, "sizes": tuple(face["sizes"])}) for face in item["faces"])
    skipped = tuple((reason, which) for reason, which in item["skipped"])
    return SceneDone(item["id"], item["picture"], faces, skipped)


def _is_whole(root: Path, face: Face) -> bool:
    places = zip((face.path, face.mask), face.sizes, strict=True)
    try:
        return all(os.stat(root / path).st_size == size for path, size in places if path)
    except OSError:
        return False
