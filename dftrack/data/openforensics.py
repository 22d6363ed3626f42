"""OpenForensics: published scenes with polygons of real and fake faces -> square face crops with masks and a manifest.

Both classes go through exactly the same steps, so that nothing but the face can tell them apart: the square around the
box with a margin, moved (not cut) where it would leave the picture, one resampling, one JPEG setting.
Source: Le et al., "OpenForensics", ICCV 2021, https://arxiv.org/abs/2107.14480
"""

import csv
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from io import StringIO
from pathlib import Path, PurePosixPath

from filelock import FileLock, Timeout

from dftrack.data.coco import Annotation, AnnotationError, Index, Scene, read_annotation, read_index
from dftrack.data.crops import Square, crop_jpeg, mask_png, square_around
from dftrack.data.journal import Face, Journal, SceneDone
from dftrack.data.parallel import spread
from dftrack.data.pictures import decode
from dftrack.data.upright import PictureError
from dftrack.errors import DataError, require
from dftrack.files import write_many, write_text

SPLITS = {"Train": "train", "Val": "val", "Test-Dev": "test-dev", "Test-Challenge": "test-challenge"}
SIZE = 224  # pixels, side of a crop
MARGIN = 0.3  # added on each side of the box, as a share of its longer side
MAX_BAD = 0.01  # share of a split's scenes that may be missing or unreadable
EXAMPLES = 5  # named of each kind of fault
PUBLISHED_CATEGORIES: dict[int | str, str] = {0: "Real", 1: "Fake"}

Fault = tuple[str, str]  # (reason, which)
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Skipped:
    """Scenes or faces that could not be used, for one reason."""

    reason: str
    count: int
    examples: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Prepared:
    """What was made."""

    manifest: Path
    counts: dict[str, dict[str, int]]  # split -> class -> face crops
    scenes: dict[str, int]  # split -> scenes read, those without a usable face too
    skipped: tuple[Skipped, ...]  # scenes and faces that are not in the manifest
    unmasked: tuple[Skipped, ...]  # faces that are in the manifest, without a mask
    absent: tuple[str, ...]  # splits without an annotation file
    already_done: int  # scenes that an earlier, stopped call had finished


@dataclass(frozen=True, slots=True)
class Plan:
    """One split, ready to be cut: where each scene's picture lies, and what was done before."""

    split: str
    index: Index
    labels: dict[int | str, str]  # category id -> "real" or "fake"
    todo: tuple[tuple[Scene, str, Path], ...]  # (scene, its unique name in the split, its picture)
    journal: Journal
    missing: tuple[Fault, ...]


@dataclass(frozen=True, slots=True)
class Cut:
    """How every face of every split is cut."""

    out: Path
    size: int
    margin: float


def prepare(
    src: Path,
    out: Path,
    *,
    size: int = SIZE,
    margin: float = MARGIN,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Prepared:
    """Cut every face out of the scenes under `src` into `out`/{split}/{real,fake}, masks beside, and write a manifest.

    size: pixels, side of a crop. margin: share of the box's longer side added on each side of it, in [0, 2].
    workers: scenes worked on at a time, by default the number of cores. progress: told (scenes done, scenes in all).
    Can be stopped at any moment and called again: scenes already done are not read again, and the files end the same.
    A scene missing, unreadable or of another size than its annotations say is left out and named, as is a face with a
    fault; a face whose mask cannot be drawn is kept without one. A split without an annotation file is left out.
    Raises DataError if there is no annotation file at all, one is broken, or over 1 % of a split's scenes are bad;
    SettingError if size or margin are out of range; StoreError if `out` cannot be written.
    """
    require(8 <= size <= 1024, f"the size of a crop must be from 8 to 1024 pixels, got {size}")
    require(0 <= margin <= 2, f"the margin must be from 0 to 2, got {margin}")
    require(workers is None or workers >= 1, f"at least one worker is needed, got {workers}")
    annotations = find_annotations(src)
    cut = Cut(out, size, margin)
    with _alone(out):
        plans = [_plan(cut, src, name, path) for name, path in annotations.items()]
        already = sum(len(plan.journal.done) for plan in plans)
        total = already + sum(len(plan.todo) for plan in plans)
        count = already
        if progress:
            progress(count, total)

        def step() -> None:
            nonlocal count
            count += 1
            if progress:
                progress(count, total)

        bad: list[Fault] = []
        for plan in plans:
            bad += _cut_split(cut, plan, workers, step)
        return _finish(out, plans, bad, already)


def find_annotations(src: Path) -> dict[str, Path]:
    """Published split name -> its annotation file, in `src` or one folder below.

    Raises DataError if `src` is no folder or holds none.
    """
    if not src.is_dir():
        raise DataError(f"there is no folder {src}")
    found = {}
    for name in SPLITS:
        places = sorted(src.glob(f"{name}_poly.json")) or sorted(src.glob(f"*/{name}_poly.json"))
        if len(places) > 1:
            raise DataError(f"{name}_poly.json lies in several places: {', '.join(map(str, places))}", "keep one")
        if places:
            found[name] = places[0]
    if not found:
        wanted = ", ".join(f"{name}_poly.json" for name in SPLITS)
        raise DataError(
            f"{src} holds no annotation file of OpenForensics", f"one of these at least is needed: {wanted}"
        )
    return found


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Hold the folder `out` for this process only, and sweep away what a killed one left half-written."""
    mark = out / ".prepare"
    if out.exists() and not mark.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} exists and is not a folder that this command has made", "name a new folder")
    try:
        mark.mkdir(parents=True, exist_ok=True)
        with FileLock(mark / "lock", timeout=0):
            for half in out.rglob(".*.tmp"):
                half.unlink()
            yield
    except Timeout:
        raise DataError(f"another process is preparing {out}", "wait for it to end") from None
    except OSError as error:
        raise DataError(f"cannot write into {out}: {error.strerror or error}") from error


def _plan(cut: Cut, src: Path, name: str, annotations: Path) -> Plan:
    """Read one annotation file, find its scenes' pictures, and see which are done already."""
    index = read_index(annotations)
    split = SPLITS[name]
    named = {key: name.strip().lower() for key, name in (index.categories or PUBLISHED_CATEGORIES).items()}
    labels = {key: name for key, name in named.items() if name in ("real", "fake")}
    if len(labels) != 2 or len(set(labels.values())) != 2:
        raise DataError(f"{annotations} knows the categories {sorted(index.categories.values())}, not Real and Fake")
    recipe = {"recipe": 1, "size": cut.size, "margin": cut.margin, "annotations": index.sha256}
    journal = Journal.open(cut.out / ".prepare" / f"{split}.jsonl", cut.out, recipe)
    locate = Locator(src, annotations.parent, name)
    todo, missing = [], []
    names: Counter[str] = Counter()
    for scene in index.scenes:
        stem = re.sub(r"[^A-Za-z0-9_-]", "_", PurePosixPath(scene.file_name).stem)[:100]
        names[stem] += 1
        unique = stem if names[stem] == 1 else f"{stem}.{names[stem]}"  # a stem holds no dot
        if scene.id in journal.done:
            continue
        picture = locate(scene.file_name)
        if picture is None:
            missing.append(("scene is missing", scene.file_name))
        else:
            todo.append((scene, unique, picture))
    _refuse_many_bad(split, len(index.scenes), missing, f"unpack {name}*.zip into {src}")
    return Plan(split, index, labels, tuple(todo), journal, tuple(missing))


class Locator:
    """Finds a scene's picture, however the archives were unpacked.

    Looked at: the name as written (Images/Train/ab12.jpg) and without its first folder, under the source and under the
    annotation file's folder, then the bare name beside the annotation file, last any folder that bears the split's
    name (Train, Train_part_1, ...), of which a list is made once.
    """

    def __init__(self, src: Path, beside: Path, split: str) -> None:
        self.src, self.beside, self.split = src, beside, split.lower()
        self.listed: dict[str, Path] | None = None

    def __call__(self, file_name: str) -> Path | None:
        name = PurePosixPath(file_name.replace("\\", "/"))
        if name.is_absolute() or ".." in name.parts:
            return None  # a picture outside the source is nobody's
        shorter = PurePosixPath(*name.parts[1:]) if len(name.parts) > 1 else name
        for place in (self.src / name, self.src / shorter, self.beside / name, self.beside / shorter):
            if place.is_file():
                return place
        beside = self.beside / name.name
        return beside if beside.is_file() else self._list().get(name.name)

    def _list(self) -> dict[str, Path]:
        if self.listed is None:
            self.listed = {}
            for folder, below, files in os.walk(self.src):
                below.sort()
                parts = Path(folder).relative_to(self.src).parts
                if any(re.fullmatch(rf"{re.escape(self.split)}(_part_\d+)?", part.lower()) for part in parts):
                    for file in files:
                        self.listed.setdefault(file, Path(folder) / file)
        return self.listed


def _refuse_many_bad(split: str, scenes: int, bad: Sequence[Fault], hint: str) -> None:
    if len(bad) > MAX_BAD * scenes:
        named = "; ".join(f"{which}: {reason}" for reason, which in bad[:EXAMPLES])
        raise DataError(f"{len(bad)} of the {scenes} scenes of {split} cannot be used, over 1 %: {named}", hint)


def _cut_split(cut: Cut, plan: Plan, workers: int | None, step: Callable[[], None]) -> list[Fault]:
    """Cut the scenes of one split that are left, noting each in the journal when its files are in place.

    Returns the bad scenes. Threads, not processes: a killed process leaves no others behind.
    """
    bad = list(plan.missing)
    handle = os.open(plan.index.path, os.O_RDONLY)
    try:
        with closing(spread(lambda job: cut_scene(cut, plan, handle, *job), plan.todo, workers)) as scenes:
            for scene in scenes:
                if scene.bad:
                    bad.append((scene.bad, scene.picture))
                    _refuse_many_bad(plan.split, len(plan.index.scenes), bad, "unpack its archives again")
                else:
                    plan.journal.note(scene)
                step()
    finally:
        plan.journal.close()
        os.close(handle)
    return bad


def cut_scene(cut: Cut, plan: Plan, handle: int, scene: Scene, name: str, picture: Path) -> SceneDone:
    """Decode one scene, write its crops and masks, and say what was made and what was left out.

    handle: descriptor of the split's annotation file. name: the scene's unique name in its split.
    """
    try:
        pixels = decode(picture)  # (H, W, 3)
    except (PictureError, OSError) as error:
        return SceneDone(scene.id, scene.file_name, bad=f"scene cannot be read ({error})")
    height, width = pixels.shape[:2]
    if (scene.width or width, scene.height or height) != (width, height):
        said = f"scene has {width} x {height} pixels, not the {scene.width} x {scene.height} of its annotations"
        return SceneDone(scene.id, scene.file_name, bad=said)
    faces, skipped, files = [], [], {}
    for number, span in enumerate(scene.spans):
        try:
            annotation, label, square = _face(handle, span, plan.labels, (width, height), cut.margin)
        except AnnotationError as fault:
            skipped.append((f"face with {fault}", f"{scene.file_name} face {number}"))
            continue
        path = f"{plan.split}/{label}/{name}-{number:02d}.jpg"
        files[path] = crop_jpeg(pixels, square, cut.size)
        mask = f"masks/{plan.split}/{name}-{number:02d}.png" if annotation.polygons else ""
        if mask:
            files[mask] = mask_png(annotation.polygons, square, cut.size)
        sizes = (len(files[path]), len(files[mask]) if mask else 0)
        faces.append(Face(path, label, f"{plan.split}/{name}", mask, annotation.no_polygons, sizes))
    write_many({cut.out / path: content for path, content in files.items()})
    return SceneDone(scene.id, scene.file_name, tuple(faces), tuple(skipped))


def _face(
    handle: int, span: tuple[int, int], labels: Mapping[int | str, str], scene: tuple[int, int], margin: float
) -> tuple[Annotation, str, Square]:
    """One face's annotation, class and square. Raises AnnotationError if there is no such thing."""
    annotation = read_annotation(handle, span)
    if annotation.category is None or annotation.category not in labels:
        raise AnnotationError(f"category {annotation.category!r}")
    square = square_around(annotation.box, scene, margin)
    if square is None:
        raise AnnotationError("a box outside the scene")
    return annotation, labels[annotation.category], square


def _finish(out: Path, plans: Sequence[Plan], bad: Sequence[Fault], already: int) -> Prepared:
    """Write the manifest, last of all and in the annotations' order, and sum up."""
    counts: dict[str, dict[str, int]] = {}
    skipped = [fault for plan in plans for fault in plan.index.faults] + list(bad)
    unmasked: list[Fault] = []
    table = StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(("path", "label", "split", "group", "mask"))
    for plan in plans:
        scenes = [plan.journal.done[scene.id] for scene in plan.index.scenes if scene.id in plan.journal.done]
        plan.journal.rewrite(scenes)
        counts[plan.split] = {"real": 0, "fake": 0}
        for scene in scenes:
            skipped += scene.skipped
            for face in scene.faces:
                rows.writerow((face.path, face.label, plan.split, face.group, face.mask))
                counts[plan.split][face.label] += 1
                if not face.mask:
                    unmasked.append((face.no_mask, face.path))
    if not any(number for split in counts.values() for number in split.values()):
        named = "; ".join(f"{part.count} x {part.reason}" for part in _summed(skipped))
        raise DataError("the scenes hold no face that can be used" + (f": {named}" if named else ""))
    write_text(out / "manifest.csv", table.getvalue())
    return Prepared(
        manifest=out / "manifest.csv",
        counts=counts,
        scenes={plan.split: len(plan.journal.done) for plan in plans},
        skipped=_summed(skipped),
        unmasked=_summed(unmasked),
        absent=tuple(split for split in SPLITS.values() if split not in counts),
        already_done=already,
    )


def _summed(faults: Iterable[Fault]) -> tuple[Skipped, ...]:
    """The faults by reason, the most frequent first, each with its first examples in alphabetical order."""
    by_reason: dict[str, list[str]] = {}
    for reason, which in faults:
        by_reason.setdefault(reason, []).append(which)
    ordered = sorted(by_reason.items(), key=lambda item: (-len(item[1]), item[0]))
    return tuple(Skipped(reason, len(names), tuple(sorted(names)[:EXAMPLES])) for reason, names in ordered)
