"""Every layout is read the same way: fake is 1, splits have their names, groups stay on one side."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from dftrack.data import sources
from dftrack.data.folder import FAKE, REAL, Listing, label_of, read_folder, side, split_name
from dftrack.errors import DataError, DftrackError


def touch(root: Path, *names: str) -> Path:
    """Empty files: a listing looks at names only."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def manifest(root: Path, *rows: str, header: str = "path,label,split,group,mask") -> Path:
    root.mkdir(parents=True, exist_ok=True)
    path = root / "manifest.csv"
    path.write_text("\n".join((header, *rows)) + "\n", encoding="utf-8")
    return path


def labels(listing: Listing) -> dict[str, int]:
    return {picture.name: picture.label for picture in listing.pictures}


def refused(act: Callable[[], object]) -> DataError:
    """The DataError that `act` ends in: two lines, one of what was seen and one of what to do."""
    with pytest.raises(DataError) as caught:
        act()
    error = caught.value
    assert "\n" not in error.message + error.hint, f"more than one line: {error.message!r} / {error.hint!r}"
    assert error.exit_code == 3
    return error


@pytest.mark.parametrize(
    ("real", "fake"),
    [("real", "fake"), ("Real", "Fake"), ("REAL", "FAKE"), ("original", "deepfake"), ("real", "Deepfakes")],
)
def test_fake_is_1_whatever_the_order_of_the_names(real: str, fake: str, tmp_path: Path) -> None:
    listing = read_folder(
        touch(tmp_path, *(f"{split}/{kind}/a.jpg" for split in ("train", "val") for kind in (real, fake)))
    )
    alphabetical = {name: index for index, name in enumerate(sorted([real, fake]))}
    assert labels(listing)[f"train/{real}/a.jpg"] == REAL == 0
    assert labels(listing)[f"train/{fake}/a.jpg"] == FAKE == 1
    if alphabetical[fake] == 0:
        assert labels(listing)[f"train/{fake}/a.jpg"] != alphabetical[fake], "the labels follow the alphabet"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("train", "train"), ("Training", "train"), ("TRAIN", "train"),
        ("val", "val"), ("Validation", "val"), ("valid", "val"), ("dev", "val"),
        ("test", "test"), ("Test", "test"), ("Testing", "test"),
        ("Test-Dev", "test-dev"), ("test_dev", "test-dev"), ("TestDev", "test-dev"),
        ("Test Challenge", "test-challenge"),
        ("masks", None), ("tset", None), ("latest", None), ("trainer", None), ("", None),
    ],
)  # fmt: skip
def test_split_names_are_read_in_any_case_and_spelling(text: str, name: str | None) -> None:
    assert split_name(text) == name


@pytest.mark.parametrize("text", ["0", "1", "", "reel", "unreal", "true"])
def test_what_is_no_label_is_not_guessed(text: str) -> None:
    assert label_of(text) is None


def test_splits_come_in_order_and_pictures_by_name(tmp_path: Path) -> None:
    folders = ("Test-Dev", "Test-Challenge", "Validation", "Train")
    listing = read_folder(
        touch(tmp_path, *(f"{s}/{k}/{n}.png" for s in folders for k in ("Real", "Fake") for n in ("b", "a", "C")))
    )
    assert list(dict.fromkeys(p.split for p in listing.pictures)) == ["train", "val", "test-challenge", "test-dev"]
    names = [p.name for p in listing.pictures if p.split == "train"]
    assert names == sorted(names)
    assert len({p.name for p in listing.pictures}) == len(listing.pictures) == 24
    assert listing.pictures[0].path == tmp_path / listing.pictures[0].name
    assert listing.usual_size == 224


def test_hidden_and_other_files_are_no_pictures_but_other_formats_are_listed(tmp_path: Path) -> None:
    names = [f"{s}/{k}/a.jpg" for s in ("train", "val") for k in ("real", "fake")]
    touch(tmp_path, *names, "train/real/._a.jpg", "train/real/notes.txt", "train/real/.DS_Store", "train/masks/a.png")
    touch(tmp_path, "train/real/old.GIF", "README.md", "extra/thing.txt")
    touch(tmp_path, "train/real/.thumbs/a.jpg", "val/fake/.ipynb_checkpoints/a-checkpoint.jpg")
    assert sorted(labels(read_folder(tmp_path))) == sorted([*names, "train/real/old.GIF"])


def test_in_split_folders_equal_file_names_of_two_splits_are_no_group(tmp_path: Path) -> None:
    listing = read_folder(touch(tmp_path, *(f"{s}/{k}/0001.jpg" for s in ("train", "val") for k in ("real", "fake"))))
    assert {p.group for p in listing.pictures} == {"train/0001", "val/0001"}


def test_a_folder_below_a_class_is_a_group(tmp_path: Path) -> None:
    listing = read_folder(
        touch(tmp_path, *(f"{k}/video{v}/{n}.jpg" for k in ("real", "fake") for v in range(40) for n in range(3)))
    )
    by_group: dict[str, set[str]] = {}
    for picture in listing.pictures:
        by_group.setdefault(picture.group, set()).add(picture.split)
    assert len(by_group) == 40
    assert all(len(splits) == 1 for splits in by_group.values()), "frames of one video lie on both sides"


def test_a_pipe_that_is_called_like_a_picture_is_none(tmp_path: Path) -> None:
    touch(tmp_path, "real/a.jpg", "fake/a.jpg")
    os.mkfifo(tmp_path / "real" / "pipe.png")
    (tmp_path / "real" / "gone.png").symlink_to(tmp_path / "nowhere")
    assert sorted(labels(read_folder(tmp_path))) == ["fake/a.jpg", "real/a.jpg", "real/gone.png"]


def test_links_to_folders_are_followed_each_folder_once_and_in_no_circle(tmp_path: Path) -> None:
    touch(tmp_path, "set/real/ann/1.jpg", "set/fake/ann/1.jpg", "elsewhere/bob/2.jpg", "elsewhere/bob/deep/3.jpg")
    real = tmp_path / "set" / "real"
    for name, target in {
        "Bob": tmp_path / "elsewhere" / "bob",
        "also-bob": tmp_path / "elsewhere" / "bob",
        "aaa": real / "ann",
        "circle": real,
        "up": tmp_path / "set",  # holds the fakes
        "gone": tmp_path / "nowhere",
        "self": real / "self",
    }.items():
        (real / name).symlink_to(target)
    (tmp_path / "elsewhere" / "bob" / "back").symlink_to(tmp_path)
    listing = read_folder(tmp_path / "set")
    assert labels(listing) == {
        "real/ann/1.jpg": REAL, "real/Bob/2.jpg": REAL, "real/Bob/deep/3.jpg": REAL, "fake/ann/1.jpg": FAKE
    }  # fmt: skip


def test_flat_folders_are_split_by_a_hash_that_never_moves_a_picture(tmp_path: Path) -> None:
    names = [f"{k}/{n:04}.jpg" for k in ("real", "fake") for n in range(400)]
    before = {p.name: p.split for p in read_folder(touch(tmp_path / "a", *names)).pictures}
    more = [f"{k}/x{n:04}.jpg" for k in ("real", "fake") for n in range(50)]
    after = {p.name: p.split for p in read_folder(touch(tmp_path / "b", *names, *more)).pictures}
    assert all(after[name] == split for name, split in before.items()), "adding pictures moved others"
    shares = {split: list(before.values()).count(split) / len(before) for split in ("train", "val", "test")}
    assert sum(shares.values()) == 1
    assert abs(shares["train"] - 0.70) < 0.06, shares
    assert abs(shares["val"] - 0.15) < 0.05, shares
    assert all(before[f"real/{n:04}.jpg"] == before[f"fake/{n:04}.jpg"] for n in range(400)), "a pair is torn apart"


def test_a_manifest_is_read(tmp_path: Path) -> None:
    path = manifest(
        tmp_path,
        "a/1.jpg,Real,Train,ann,",
        '"b, c/2.jpg",FAKE,Validation,bob,m/2.png',
        "",
        "3.jpg,fake,Test-Dev,,",
    )
    listing = read_folder(tmp_path)
    assert listing == read_folder(tmp_path), "two readings differ"
    one, two, three = listing.pictures
    assert (one.name, one.label, one.split, one.group, one.mask) == ("a/1.jpg", 0, "train", "ann", None)
    assert (two.name, two.label, two.split, two.mask) == ("b, c/2.jpg", 1, "val", tmp_path / "m/2.png")
    assert three.group == "3.jpg", "without a group a picture is its own"
    assert [p.name for p in read_folder(path).pictures] == [p.name for p in listing.pictures]


def test_a_manifest_needs_no_group_and_mask_column_and_may_carry_others_and_a_bom(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("\ufeffPath, Label ,split,note\n./x.jpg,real,train,hi\n", encoding="utf-8")
    (picture,) = read_folder(tmp_path / "m.csv").pictures
    assert (picture.name, picture.group, picture.mask) == ("x.jpg", "x.jpg", None)


def test_a_group_on_two_sides_is_refused_by_name(tmp_path: Path) -> None:
    manifest(tmp_path, "a.jpg,real,train,ann,", "b.jpg,fake,val,ann,")
    error = refused(lambda: read_folder(tmp_path))
    assert "'ann'" in error.message and "train" in error.message and "val" in error.message


def test_two_test_splits_may_show_the_same_people(tmp_path: Path) -> None:
    manifest(tmp_path, "a.jpg,real,test-dev,ann,", "b.jpg,fake,test-challenge,ann,")
    assert {side(picture.split) for picture in read_folder(tmp_path).pictures} == {"test"}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("a.jpg,1,train,,", "line 2: label '1' is neither real nor fake"),
        ("a.jpg,real,holdout,,", "split 'holdout'"),
        ("../a.jpg,real,train,,", "not below the manifest's folder"),
        ("/etc/passwd,real,train,,", "not below the manifest's folder"),
        (",real,train,,", "not below the manifest's folder"),
        ("a.jpg,fake,train,,../m.png", "not below the manifest's folder"),
        ("a.jpg,real", "2 cells under 5 columns"),
        ("a.jpg,real,train,,\na.jpg,fake,train,,", "stands in line 2 already"),
        ('"a.jpg,real,train,,', "no CSV"),
    ],
)
def test_a_wrong_line_of_a_manifest_is_refused(row: str, words: str, tmp_path: Path) -> None:
    manifest(tmp_path, row)
    assert words in refused(lambda: read_folder(tmp_path)).message


def test_a_manifest_without_rows_columns_or_letters_is_refused(tmp_path: Path) -> None:
    assert "names no pictures" in refused(lambda: read_folder(manifest(tmp_path / "a"))).message
    assert "'split'" in refused(lambda: read_folder(manifest(tmp_path / "b", header="path,label"))).message
    for column in ("path", "label", "split", "group", "mask"):
        header = f"path,label,split,group,mask, {column.title()}"
        twice = manifest(tmp_path / "twice", "a.jpg,real,train,ann,,b", header=header)
        assert f"the column {column!r} twice" in refused(partial(read_folder, twice)).message
    (tmp_path / "c.csv").write_bytes(b"path,label,split\n\xff\xfe\x00,real,train\n")
    assert "UTF-8" in refused(lambda: read_folder(tmp_path / "c.csv")).message


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    assert "there is no" in refused(lambda: read_folder(tmp_path / "nowhere")).message
    touch(tmp_path, "x.jpg")
    assert "neither a folder nor a .csv" in refused(lambda: read_folder(tmp_path / "x.jpg")).message


def test_an_empty_class_folder_is_refused_by_name(tmp_path: Path) -> None:
    touch(tmp_path, "train/real/a.jpg", "val/real/a.jpg", "val/fake/a.jpg", "train/fake/readme.txt")
    error = refused(lambda: read_folder(tmp_path))
    assert "empty" in error.message and str(tmp_path / "train" / "fake") in error.message


def test_a_misspelt_split_or_class_is_not_passed_over(tmp_path: Path) -> None:
    touch(tmp_path / "a", "train/real/a.jpg", "train/fake/a.jpg", "tset/real/a.jpg", "tset/fake/a.jpg")
    assert "'tset'" in refused(lambda: read_folder(tmp_path / "a")).message
    touch(tmp_path / "b", "train/real/a.jpg", "train/fake/a.jpg", "train/Face2Face/a.jpg")
    assert "'Face2Face'" in refused(lambda: read_folder(tmp_path / "b")).message
    touch(tmp_path / "c", "train/a.jpg")
    assert "no folder real/ or fake/" in refused(lambda: read_folder(tmp_path / "c")).message


def test_two_folders_of_the_same_split_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "val/real/a.jpg", "Validation/real/a.jpg")
    assert "both mean the split val" in refused(lambda: read_folder(tmp_path)).message


def test_a_folder_without_data_says_what_was_expected(tmp_path: Path) -> None:
    assert "manifest.csv" in refused(lambda: read_folder(tmp_path)).hint
    touch(tmp_path, "Dataset/Train/Real/a.jpg")
    assert refused(lambda: read_folder(tmp_path)).hint == f"did you mean {tmp_path / 'Dataset'}?"


def test_a_source_keeps_the_name_the_user_gave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path / "faces", "real/a.jpg", "fake/a.jpg")
    monkeypatch.chdir(tmp_path)
    assert sources.find_pictures("faces", tmp_path / "store").source == "faces"
    monkeypatch.setenv("HOME", str(tmp_path))
    listing = sources.find_pictures("~/faces", tmp_path / "store")
    assert (listing.source, len(listing.pictures)) == ("~/faces", 2)
    with pytest.raises(DftrackError):
        sources.find_pictures("./sample", tmp_path / "store")
