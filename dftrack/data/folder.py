"""Folders of real and fake pictures, with or without a manifest: who is labelled what, and in which split."""

import csv
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dftrack.errors import DataError

REAL, FAKE = 0, 1  # labels everywhere: fake is the positive class, whatever order the names sort in
USUAL_SIZE = 224  # pixels, side of the square, unless a source knows better
MANIFEST = "manifest.csv"
COLUMNS = ("path", "label", "split", "group", "mask")  # of a manifest; the last two optional, others are passed over
TRAIN_SHARE, VAL_SHARE = 0.70, 0.15  # of the groups, where the split is made here; the rest is "test"
SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp"})
FOREIGN_SUFFIXES = frozenset({".gif", ".bmp", ".tif", ".tiff", ".heic", ".avif", ".jp2"})  # listed, to refuse by name

Progress = Callable[[str, int, int], None]  # told (what is being done, done, of how many); may raise, to stop it

_REAL = {"real", "reals", "original", "originals", "genuine", "authentic", "pristine", "bonafide", "bona-fide"}
_FAKE = {"fake", "fakes", "deepfake", "deepfakes", "forged", "forgery", "manipulated", "synthetic"}
_TRAIN = {"train", "training", "trainset", "train-set"}
_VAL = {"val", "valid", "validation", "validate", "dev", "development", "valset", "val-set"}
_HINT = (
    "expected DIR/{train,val,test}/{real,fake}/, or DIR/{real,fake}/, or DIR/manifest.csv (path,label,split,group,mask)"
)


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture of a data set, not yet read."""

    path: Path
    name: str  # posix, relative to the data set's root, unique in it
    label: int  # 0 real, 1 fake
    split: str  # "train", "val", or any "test*"
    group: str  # person, scene or video: never on two sides of train | val | test
    mask: Path | None  # where the picture was forged: a picture of the same shape, bright where forged


@dataclass(frozen=True, slots=True)
class Listing:
    """The pictures of a data set, in order: train, val, then the test splits; by name within a split."""

    source: str  # as the user named it
    root: Path
    pictures: tuple[Picture, ...]
    usual_size: int  # pixels, side of the square that suits this source


def read_folder(path: Path) -> Listing:
    """List a data set: a manifest.csv (or the folder that holds one), split folders, or two class folders.

    manifest.csv: columns path (relative to it), label (real or fake), split; optional group and mask.
        Without a group, a picture is its own group.
    split folders: {train,val,test*}/{real,fake}/ in any case or with the usual other names. A folder below a class
        (a video, a person) is a group; else pictures of one split that share a file name without suffix are.
        Links to folders are followed, each folder once.
    class folders: {real,fake}/, split here by a hash of the group (70 % train, 15 % val, 15 % test): the same group
        goes the same way on every machine, whatever is added later. Groups as above.
    Raises DataError if nothing fits, a class folder is empty, or a group lies on two sides of train | val | test.
    """
    source = str(path)
    if not path.exists():
        raise DataError(f"there is no {source!r}", "give a folder of pictures or a manifest.csv, or `sample`")
    if path.is_file():
        if path.suffix.lower() != ".csv":
            raise DataError(f"{source!r} is neither a folder nor a .csv manifest", _HINT)
        pictures = _from_manifest(path)
        root = path.parent
    else:
        root = path
        pictures = _from_manifest(path / MANIFEST) if (path / MANIFEST).is_file() else _from_layout(path)
    _refuse_straddling(pictures)
    ordered = sorted(pictures, key=lambda picture: (_rank(picture.split), picture.split, picture.name))
    return Listing(source=source, root=root, pictures=tuple(ordered), usual_size=USUAL_SIZE)


def side(split: str) -> str:
    """The side of the wall a split is on: train, val or test. All test splits are one side, since one may be a
    damaged copy of another, and nothing is ever learned from either.
    """
    return "test" if split.startswith("test") else split


def split_name(text: str) -> str | None:
    """`text` as the name of a split ("Validation" -> "val", "Test_Dev" -> "test-dev"), or None if it is none."""
    name = re.sub(r"[\s_.-]+", "-", text.strip().casefold()).strip("-")
    if name in _TRAIN:
        return "train"
    if name in _VAL:
        return "val"
    if re.fullmatch(r"test[\w-]*", name):
        return {"testing": "test", "testset": "test", "test-set": "test", "testdev": "test-dev"}.get(name, name)
    return None


def label_of(text: str) -> int | None:
    """0 for a word that means real, 1 for one that means fake (any case), None for anything else.

    Bare numbers are not read: half of the published sets count fake as 0.
    """
    word = re.sub(r"[\s_]+", "-", text.strip().casefold())
    return REAL if word in _REAL else FAKE if word in _FAKE else None


# ---- manifests


def _from_manifest(path: Path) -> list[Picture]:
    seen: dict[str, int] = {}
    pictures = []
    for line, row in _rows(path):
        picture = _from_row(path, line, row)
        if picture.name in seen:
            raise DataError(
                f"{path}, line {line}: {picture.name!r} stands in line {seen[picture.name]} already",
                "name each picture once",
            )
        seen[picture.name] = line
        pictures.append(picture)
    if not pictures:
        raise DataError(f"{path} names no pictures", "write one line per picture below the header")
    return pictures


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, column -> text) of every row that is not blank."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as handle:
            reader = csv.reader(handle, strict=True)
            header = [cell.strip().casefold() for cell in next(reader, [])]
            missing = [column for column in COLUMNS[:3] if column not in header]
            if missing:
                raise DataError(
                    f"{path} has no column {missing[0]!r}: its first line is {','.join(header)[:80]!r}",
                    "its first line must be path,label,split, with group and mask where there are any",
                )
            for column in COLUMNS:
                if header.count(column) > 1:
                    raise DataError(f"{path} has the column {column!r} twice", "leave one of them in its first line")
            for row in reader:
                if any(cell.strip() for cell in row):
                    if len(row) != len(header):
                        raise DataError(f"{path}, line {reader.line_num}: {len(row)} cells under {len(header)} columns")
                    yield reader.line_num, dict(zip(header, row, strict=True))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is no CSV in UTF-8: {error}", "separate its columns by commas") from error


def _from_row(manifest: Path, line: int, row: Mapping[str, str]) -> Picture:
    label, split = label_of(row["label"]), split_name(row["split"])
    if label is None:
        raise DataError(
            f"{manifest}, line {line}: label {row['label']!r} is neither real nor fake",
            "write real or fake; numbers are refused, since sets differ on which class is 0",
        )
    if split is None:
        raise DataError(f"{manifest}, line {line}: split {row['split']!r} is not train, val or test...")
    name = _inside(manifest, line, row["path"])
    mask = row.get("mask", "").strip()
    return Picture(
        path=manifest.parent / name,
        name=name,
        label=label,
        split=split,
        group=row.get("group", "").strip() or name,
        mask=manifest.parent / _inside(manifest, line, mask) if mask else None,
    )


def _inside(manifest: Path, line: int, text: str) -> str:
    """A path of the manifest, tidied. Raises DataError if it is empty, absolute, or climbs out of the folder."""
    path = PurePosixPath(text.strip())
    if not path.parts or path.is_absolute() or ".." in path.parts or "\0" in text:
        raise DataError(
            f"{manifest}, line {line}: path {text!r} is not below the manifest's folder",
            "paths are relative to the manifest, with / between folders",
        )
    return str(path)


# ---- folders


def _from_layout(root: Path) -> list[Picture]:
    folders = _folders(root)
    splits: dict[str, Path] = {}
    for folder in folders:
        name = split_name(folder.name)
        if name in splits:
            raise DataError(f"{root}: {splits[name].name!r} and {folder.name!r} both mean the split {name}")
        if name is not None:
            splits[name] = folder
    if splits:
        for folder in folders:
            if split_name(folder.name) is None and any(label_of(inner.name) is not None for inner in _folders(folder)):
                raise DataError(
                    f"{folder} holds real or fake pictures, but {folder.name!r} is no split's name",
                    "splits are called train, val (or valid, validation, dev), and test or test-something",
                )
        return [picture for name, folder in splits.items() for picture in _from_split(root, folder, name)]
    if any(label_of(folder.name) is not None for folder in folders):
        return list(_from_split(root, root, None))
    inner = [folder for folder in folders if any(_names(sub) for sub in _folders(folder))]
    hint = f"did you mean {inner[0]}?" if len(inner) == 1 else _HINT
    raise DataError(f"{root} holds no data set: no manifest.csv, no split folders, no real/ and fake/", hint)


def _names(folder: Path) -> bool:
    return split_name(folder.name) is not None or label_of(folder.name) is not None


def _from_split(root: Path, folder: Path, split: str | None) -> Iterator[Picture]:
    """The pictures of the class folders in `folder`; their split is hashed from the group where none is given."""
    classes = {inner: label_of(inner.name) for inner in _folders(folder)}
    if not any(label is not None for label in classes.values()):
        raise DataError(f"{folder} has no folder real/ or fake/", _HINT)
    for inner, label in classes.items():
        files = list(_files(inner))
        if label is None:
            if files and not inner.name.casefold().startswith("mask"):
                raise DataError(
                    f"{inner} holds pictures, but {inner.name!r} is neither real nor fake",
                    "name the folder real or fake, or write a manifest.csv",
                )
            continue
        if not files:
            raise DataError(
                f"the class folder {inner} is empty: no pictures in it", f"looked for {' '.join(sorted(SUFFIXES))}"
            )
        for file in files:
            group = _group(inner, file)
            yield Picture(
                path=file,
                name=file.relative_to(root).as_posix(),
                label=label,
                split=split or _hashed_split(group),
                group=f"{split}/{group}" if split else group,
                mask=None,
            )


def _group(class_folder: Path, file: Path) -> str:
    """The folder the file lies in below its class, else its name without suffix."""
    inner = file.relative_to(class_folder)
    return (inner.parent if inner.parent.parts else inner.with_suffix("")).as_posix()


def _hashed_split(group: str) -> str:
    draw = int.from_bytes(hashlib.sha256(os.fsencode(group)).digest()[:8], "big") / 2**64
    return "train" if draw < TRAIN_SHARE else "val" if draw < TRAIN_SHARE + VAL_SHARE else "test"


def _folders(folder: Path) -> list[Path]:
    try:
        found = [inner for inner in folder.iterdir() if inner.is_dir() and not inner.name.startswith(".")]
    except OSError as error:
        raise DataError(f"cannot read the folder {folder}: {error.strerror}") from error
    return sorted(found)


def _files(folder: Path) -> Iterator[Path]:
    """Every picture below the folder by its suffix, hidden ones apart; a pipe or device is none, whatever its name.

    Links to folders are followed, as class folders may be links too. Each real folder counts once, by its own name
    where it has one here; a link to a folder that holds this one is a circle, and not followed.
    """
    home = folder.resolve()
    around = {str(home), *map(str, home.parents)}
    seen: set[str] = set()
    waiting, links = [str(folder)], list[str]()
    while waiting or links:
        place = waiting.pop() if waiting else links.pop(0)  # links last
        real = os.path.realpath(place)
        if real in seen or (real in around and place != str(folder)):
            continue
        seen.add(real)
        for entry in _listed(place):
            if entry.name.startswith("."):  # thumbnails, checkpoints of notebooks, a waste basket
                continue
            if entry.is_dir(follow_symlinks=False):
                waiting.append(entry.path)
            elif entry.is_symlink() and os.path.isdir(entry.path):
                links.append(entry.path)
            elif _is_picture(entry):
                yield Path(entry.path)


def _listed(place: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(place) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"cannot read the folder {place}: {error.strerror}") from error


def _is_picture(entry: os.DirEntry[str]) -> bool:
    suffix = os.path.splitext(entry.name)[1].lower()
    wanted = suffix in SUFFIXES | FOREIGN_SUFFIXES and not entry.name.startswith(".")
    if not wanted or entry.is_file(follow_symlinks=False):
        return wanted
    return os.path.isfile(entry.path) or not os.path.exists(entry.path)  # a broken link is told as what it is


# ---- both


def _refuse_straddling(pictures: Iterable[Picture]) -> None:
    first: dict[str, Picture] = {}
    for picture in pictures:
        known = first.setdefault(picture.group, picture)
        if side(known.split) != side(picture.split):
            raise DataError(
                f"the group {picture.group!r} lies in both {known.split} ({known.name!r}) and "
                f"{picture.split} ({picture.name!r})",
                "all pictures of one person, scene or video belong in one split: else the test measures memory",
            )


def _rank(split: str) -> int:
    return {"train": 0, "val": 1}.get(split, 2)
