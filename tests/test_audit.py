"""The audit finds what was planted, all of it, and leaves clean data alone."""

import io
import random
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import imagehash
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from dftrack.data import audit as audit_module
from dftrack.data.audit import Audit, audit, blocking
from dftrack.data.duplicates import MAX_BITS, NearPair, near_duplicates, perceptual_hashes
from dftrack.data.findings import about_shortcut
from dftrack.data.folder import Listing, Picture, read_folder
from dftrack.data.look import look
from dftrack.data.shortcuts import Rows, Shortcut, probe

Save = Callable[[Image.Image, Path], None]


def face(seed: object, *, smile: float = 0.0) -> Image.Image:
    """A drawing with some features of its own for each seed; `smile` changes one of them only, as a forgery would."""
    draw = random.Random(str(seed))
    image = Image.new("RGB", (80, 80), tuple(draw.randrange(40, 220) for _ in range(3)))
    pen = ImageDraw.Draw(image)
    for _ in range(14):
        x, y, width, height = (draw.uniform(low, high) for low, high in ((-10, 70), (-10, 70), (8, 40), (8, 40)))
        pen.ellipse((x, y, x + width, y + height), fill=tuple(draw.randrange(256) for _ in range(3)))
    pen.arc((25, 45, 55, 65), 0, 180 + 90 * smile, fill=(200, 30, 30), width=3)
    grain = np.random.default_rng(zlib.crc32(str(seed).encode())).normal(0, 6, (80, 80, 3))
    soft = np.asarray(image.filter(ImageFilter.GaussianBlur(1)), float)
    return Image.fromarray(np.clip(soft + grain, 0, 255).astype(np.uint8))


def save_jpeg(image: Image.Image, path: Path) -> None:
    image.save(path, quality=90)


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("clean"), {"train": 60, "val": 20, "test-dev": 20})


@pytest.fixture
def clean(made_once: Path, tmp_path: Path) -> Path:
    """Pairs of a real picture and its fake, which look alike, in one split: 60, 20 and 20 pairs."""
    shutil.copytree(made_once, tmp_path / "faces")
    return tmp_path / "faces"


def make(root: Path, pairs: dict[str, int], *, save_fake: Save = save_jpeg, suffix: str = ".jpg") -> Path:
    for split, count in pairs.items():
        for label in ("real", "fake"):
            (root / split / label).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            save_jpeg(face((split, number)), root / split / "real" / f"{split}{number}.jpg")
            save_fake(face((split, number), smile=1.0), root / split / "fake" / f"{split}{number}{suffix}")
    return root


def check(root: Path, *, thorough: bool = True) -> Audit:
    return audit(read_folder(root), thorough=thorough)


def kinds(found: Audit, severity: str) -> dict[str, int]:
    return {finding.kind: finding.count for finding in found.findings if finding.severity == severity}


def test_clean_data_has_no_errors_and_no_warnings_though_fakes_look_like_their_originals(clean: Path) -> None:
    found = check(clean)
    assert kinds(found, "error") == {}
    assert kinds(found, "warning") == {}, found.findings
    assert found.counts == {
        split: {"real": n, "fake": n} for split, n in (("train", 60), ("val", 20), ("test-dev", 20))
    }
    assert (found.same, found.alike, blocking(found)) == ((), (), ())


def test_a_planted_leak_is_found_completely(clean: Path) -> None:
    """10 exact copies, 10 near-copies, one picture in both classes."""
    exact, near = set(), set()
    for number in range(10):
        label = ("real", "fake")[number % 2]
        split = ("val", "test-dev")[number // 5]
        source = clean / "train" / label / f"train{number}.jpg"
        (clean / split / label / f"copy{number}.jpg").write_bytes(source.read_bytes())
        exact.add((f"train/{label}/train{number}.jpg", f"{split}/{label}/copy{number}.jpg"))

        source = clean / "train" / label / f"train{number + 20}.jpg"
        image = Image.open(source)
        changes: list[tuple[Image.Image, int]] = [
            (image, 60),
            (image.resize((50, 50)), 85),
            (image.resize((160, 160)), 75),
        ]
        changed, quality = changes[number % 3]
        changed.save(clean / split / label / f"near{number}.jpg", quality=quality)
        near.add((f"train/{label}/train{number + 20}.jpg", f"{split}/{label}/near{number}.jpg"))
    both = clean / "train" / "real" / "train50.jpg"
    (clean / "train" / "fake" / "again.jpg").write_bytes(both.read_bytes())

    found = check(clean)
    assert {(pair.first, pair.second) for pair in found.same} == exact
    alike = {(pair.first, pair.second) for pair in found.alike}
    assert near <= alike, f"not found: {near - alike}"
    # A near-copy of a real picture is like its fake too, which is true: the pair leaks. Nothing else may be named.
    leaked = {f"train{number}.jpg" for number in range(30)}
    assert all(Path(first).name in leaked for first, _ in alike)
    assert kinds(found, "error") == {"bytes-across-splits": 5, "both-labels": 1}
    assert {finding.kind for finding in blocking(found)} == {"bytes-across-splits", "both-labels"}
    labels = next(finding for finding in found.findings if finding.kind == "both-labels")
    assert labels.examples == ("train/fake/again.jpg = train/real/train50.jpg",)

    short = check(clean, thorough=False)
    assert set(short.same) == set(found.same), "the short form finds exact leaks as completely"
    assert blocking(short) == blocking(found)


@pytest.mark.parametrize("thorough", [True, False])
def test_a_picture_saved_anew_without_loss_is_the_same_picture(clean: Path, thorough: bool) -> None:
    """Whatever the format, the metadata and the bytes after the end: a network sees the same."""
    real, fake = clean / "train" / "real", clean / "train" / "fake"
    for number in range(10):
        Image.open(real / f"train{number}.jpg").save(fake / f"again{number}.png")
    (fake / "longer.jpg").write_bytes((real / "train10.jpg").read_bytes() + b"x")
    Image.open(real / "train11.jpg").save(clean / "val" / "real" / "leak.png")
    Image.open(real / "train12.jpg").save(clean / "test-dev" / "fake" / "leak.webp", lossless=True)

    found = check(clean, thorough=thorough)
    assert kinds(found, "error") == {"both-labels": 12, "pixels-across-splits": 1}
    assert {finding.kind for finding in blocking(found)} == {"both-labels", "pixels-across-splits"}
    assert {(pair.first, pair.second) for pair in found.same} == {
        ("train/real/train11.jpg", "val/real/leak.png"),
        ("train/real/train12.jpg", "test-dev/fake/leak.webp"),
    }
    told = [finding.message for finding in found.findings if finding.kind == "pixels-across-splits"]
    assert told == [
        "1 picture of val has the same pixels as pictures of train",
        "1 picture of test-dev has the same pixels as pictures of train, with the other label",
    ]
    paired = {(pair.first, pair.second) for pair in (*found.alike, *found.contradicting)}
    assert not paired & {(pair.first, pair.second) for pair in found.same}, "what is equal is not called alike"
    assert ("train/real/train10.jpg", "train/fake/longer.jpg") not in paired


def test_a_copy_is_paired_with_the_file_of_its_own_bytes(clean: Path) -> None:
    first = clean / "train" / "real" / "train1.jpg"
    Image.open(first).save(clean / "val" / "real" / "as.png")
    shutil.copy(clean / "val" / "real" / "as.png", clean / "test-dev" / "real" / "as.png")
    found = check(clean, thorough=False)
    assert {(pair.first, pair.second) for pair in found.same} == {
        ("train/real/train1.jpg", "val/real/as.png"),
        ("val/real/as.png", "test-dev/real/as.png"),
    }
    assert kinds(found, "error") == {"bytes-across-splits": 1, "pixels-across-splits": 1}


def test_the_same_bytes_in_another_shape_are_another_picture(tmp_path: Path) -> None:
    (tmp_path / "train" / "real").mkdir(parents=True)
    (tmp_path / "train" / "fake").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (20, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "train" / "real" / "wide.png")
    Image.fromarray(pixels.reshape(40, 20, 3)).save(tmp_path / "train" / "fake" / "high.png")
    for thorough in (True, False):
        assert "both-labels" not in kinds(check(tmp_path, thorough=thorough), "error")


def test_a_near_copy_with_the_other_label_is_said_to_be_one(clean: Path) -> None:
    Image.open(clean / "train" / "real" / "train5.jpg").save(clean / "val" / "fake" / "turned.jpg", quality=85)
    Image.open(clean / "train" / "real" / "train6.jpg").save(
        clean / "train" / "fake" / "turned.jpg", quality=95, subsampling=0
    )
    found = check(clean)
    [across] = [finding for finding in found.findings if finding.kind == "alike-across-splits"]
    assert across.message == "1 picture of val has nearly the same content as pictures of train, with the other label"
    assert across.examples[0] == "train/real/train5.jpg ~ val/fake/turned.jpg with the other label"
    [within] = [finding for finding in found.findings if finding.kind == "alike-with-both-labels"]
    assert (within.severity, within.count) == ("warning", 1), "fakes made from a picture are no copies of it"
    assert within.examples == ("train/real/train6.jpg ~ train/fake/turned.jpg",)
    assert [(pair.first, pair.second) for pair in found.contradicting] == [
        ("train/real/train6.jpg", "train/fake/turned.jpg")
    ]
    assert blocking(found) == ()


def test_a_floor_below_chance_is_none() -> None:
    def said(auc: float) -> str:
        return about_shortcut(Shortcut(auc, auc, "logistic regression", {}, (40, 20))).message

    assert "none found (0.46)" in said(0.46) and "the floor" not in said(0.46)
    assert "AUC 0.54 (val): the floor for any detector here" in said(0.54)


def test_a_planted_shortcut_gives_an_auc_above_99_and_names_the_culprit(tmp_path: Path) -> None:
    root = make(tmp_path, {"train": 40, "val": 15}, save_fake=lambda i, path: i.save(path), suffix=".png")
    for thorough in (True, False):
        found = check(root, thorough=thorough)
        assert found.shortcut.auc is not None and found.shortcut.auc > 0.99
        assert list(found.shortcut.traits)[:2] == ["suffix", "format"]
        assert found.shortcut.traits["suffix"] == 1
        assert found.shortcut.traits["width"] == 0.5, "a trait that is always the same tells nothing"
        assert kinds(found, "warning") == {"shortcut": 80 + 30}


@pytest.mark.parametrize("quality", [88, 92])
def test_slightly_other_jpeg_tables_are_a_shortcut_too(tmp_path: Path, quality: int) -> None:
    found = check(make(tmp_path, {"train": 40, "val": 15}, save_fake=lambda i, path: i.save(path, quality=quality)))
    assert found.shortcut.auc is not None and found.shortcut.auc > 0.99
    assert found.shortcut.traits["JPEG tables"] == 1


def test_the_floor_of_data_without_a_shortcut_is_about_a_half(clean: Path) -> None:
    shortcut = check(clean).shortcut
    assert shortcut.auc is not None and shortcut.train_auc is not None
    assert 0.3 < shortcut.auc < 0.7, shortcut
    assert shortcut.pictures == (120, 40)


def test_the_same_group_on_two_sides_is_an_error_and_two_test_splits_are_one_side(clean: Path) -> None:
    listing = read_folder(clean)
    pictures = list(listing.pictures)
    for row, split in ((0, "val"), (1, "test-dev")):
        first = pictures[row]
        pictures.append(Picture(first.path, f"more{row}.jpg", first.label, split, first.group, None))
    test = next(picture for picture in pictures if picture.split == "test-dev")
    pictures.append(Picture(test.path, "again.jpg", test.label, "test-challenge", test.group, None))
    found = audit(Listing("made", clean, tuple(pictures), 224), thorough=False)
    assert kinds(found, "error") == {"group-across-splits": 2, "bytes-across-splits": 1}
    assert {pair.second for pair in found.same} == {"more0.jpg", "more1.jpg"}
    assert "repeated" in kinds(found, "note")


def test_files_that_cannot_be_read_are_named_with_the_reason(clean: Path) -> None:
    (clean / "train" / "real" / "train3.jpg").write_bytes(b"")
    (clean / "train" / "fake" / "train3.jpg").write_bytes(b"")
    whole = (clean / "val" / "fake" / "val4.jpg").read_bytes()
    (clean / "val" / "fake" / "val4.jpg").write_bytes(whole[: len(whole) // 2])
    found = check(clean)
    named = {finding.message: finding for finding in found.findings if finding.kind == "unreadable"}
    assert {finding.severity for finding in named.values()} == {"error"}, "over 1 % of a split"
    assert "2 pictures of train cannot be read, over 1 %" in named
    assert any("val4.jpg: truncated" in example for finding in named.values() for example in finding.examples)
    assert blocking(found) == (), "two empty files are no leak"
    assert blocking(check(clean, thorough=False)) == ()


def test_missing_masks_are_named(clean: Path) -> None:
    rows = [f"{p.name},{'fake' if p.label else 'real'},{p.split},{p.group}," for p in read_folder(clean).pictures]
    rows[5] += "masks/gone.png"
    (clean / "manifest.csv").write_text("\n".join(["path,label,split,group,mask", *rows]))
    assert kinds(check(clean), "warning") == {"no-mask": 1}


@pytest.mark.parametrize("thorough", [True, False])
def test_five_pictures_or_one_class_are_undefined_and_do_not_crash(tmp_path: Path, thorough: bool) -> None:
    five = make(tmp_path / "five", {"train": 2})
    save_jpeg(face("fifth"), five / "train" / "real" / "fifth.jpg")
    found = check(five, thorough=thorough)
    assert found.shortcut.auc is None and "20 are needed" in found.shortcut.reason
    assert kinds(found, "error") == {"no-split": 0}

    pictures = [p for p in read_folder(make(tmp_path / "one", {"train": 30, "val": 3})).pictures if p.label == 1]
    found = audit(Listing("one", tmp_path, tuple(pictures), 224), thorough=thorough)
    assert found.shortcut.auc is None
    assert kinds(found, "error")["one-class"] == 3

    nothing = audit(Listing("nothing", tmp_path, (), 224), thorough=thorough)
    assert nothing.shortcut.auc is None


def test_a_lopsided_train_split_is_a_warning(tmp_path: Path) -> None:
    pictures = read_folder(make(tmp_path, {"train": 40, "val": 5})).pictures
    few = [p for p in pictures if p.label or p.split == "val" or p.name.endswith(("1.jpg", "2.jpg"))]
    found = audit(Listing("few", tmp_path, tuple(few), 224), thorough=False)
    assert "imbalance" in kinds(found, "warning")


def test_the_probe_on_part_of_the_pictures_takes_whole_groups_and_always_the_same(
    clean: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_module, "QUICK_TRAIN", 50)
    monkeypatch.setattr(audit_module, "QUICK_VAL", 40)
    first, second = check(clean, thorough=False), check(clean, thorough=False)
    assert first == second
    assert first.shortcut.pictures == (50, 40)
    drawn = audit_module._drawn(read_folder(clean).pictures, 50, 10)
    assert sum(p.split == "val" for p in drawn) == 10
    by_group: dict[str, int] = {}
    for picture in drawn:
        by_group[picture.group] = by_group.get(picture.group, 0) + 1
    assert set(by_group.values()) == {2}, "a real picture comes with its fake"


def test_perceptual_hashes_are_those_of_imagehash(clean: Path) -> None:
    pictures = read_folder(clean).pictures[:60]
    thumbs = [look(picture).thumb for picture in pictures]
    ours = perceptual_hashes(np.array(thumbs))
    theirs = [int(str(imagehash.phash(Image.open(picture.path))), 16) for picture in pictures]
    assert [int(value) for value in ours] == theirs


def brute_force(thumbs: np.ndarray, sides: np.ndarray) -> set[tuple[int, int]]:
    """Every picture with every other, by imagehash's own distance and NumPy's own correlation."""
    hashes = [imagehash.phash(Image.fromarray(thumb)) for thumb in thumbs]
    return {
        (i, j)
        for i in range(len(thumbs))
        for j in range(i + 1, len(thumbs))
        if sides[i] != sides[j]
        and hashes[i] - hashes[j] <= MAX_BITS
        and np.corrcoef(thumbs[i].ravel(), thumbs[j].ravel())[0, 1] >= 0.98
    }


def test_the_search_finds_the_same_pairs_as_comparing_everything_with_everything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    random_ = np.random.default_rng(5)
    thumbs, sides = [], []
    for _ in range(40):
        smooth = Image.fromarray(random_.integers(0, 256, (6, 6), dtype=np.uint8)).resize(
            (32, 32), Image.Resampling.BICUBIC
        )
        for _ in range(3):  # nearer and farther relatives
            noise = random_.normal(0, random_.choice([1, 5, 12]), (32, 32))
            thumbs.append(np.clip(np.asarray(smooth) + noise, 0, 255).astype(np.uint8))
            sides.append(random_.integers(3))
    wanted = brute_force(np.array(thumbs), np.array(sides))
    assert len(wanted) > 20, "the test needs pairs to find"
    for block in (1, 50, 1 << 21):
        monkeypatch.setattr("dftrack.data.duplicates.BLOCK", block)
        found = near_duplicates(np.array(thumbs), np.array(sides))
        assert {(pair.first, pair.second) for pair in found} == wanted
        assert found == sorted(found, key=lambda pair: (-pair.likeness, pair.first, pair.second))


def test_many_copies_of_one_picture_are_all_named_in_linear_time() -> None:
    picture = np.asarray(face("popular").convert("L").resize((32, 32)))
    copies = 3000
    sides = np.arange(copies) % 2
    found = near_duplicates(np.repeat(picture[None], copies, axis=0), sides)
    assert {place for pair in found for place in (pair.first, pair.second)} == set(range(copies))
    assert len(found) < 10 * copies


def test_pictures_of_one_tone_are_not_called_alike() -> None:
    flat = np.full((50, 32, 32), 90, np.uint8)
    flat[::2] += 40
    assert near_duplicates(flat, np.arange(50) % 3) == []
    assert near_duplicates(flat[:0], np.arange(0)) == []


def test_a_pair_says_how_alike_it_is() -> None:
    picture = np.asarray(face("one").convert("L").resize((32, 32)))
    assert near_duplicates(np.stack([picture, picture]), np.array([0, 1])) == [NearPair(0, 1, 0, pytest.approx(1.0))]


def test_a_trait_may_tell_the_classes_apart_in_any_direction_and_in_words() -> None:
    draw = random.Random(1)
    labels = np.arange(400) % 2
    traits = [
        {
            "less": float(-label + draw.random() / 2),
            "middle": float(0.5 + draw.random() / 10 if label else draw.choice([0.0, 1.0])),
            "word": "ab"[label] if draw.random() < 0.8 else "c",
            "noise": draw.random(),
            "always": 1.0,
        }
        for label in labels
    ]
    groups = [str(number // 4) for number in range(400)]
    found = probe(Rows(traits[:300], labels[:300], groups[:300]), Rows(traits[300:], labels[300:], groups[300:]))
    assert found.traits["less"] == pytest.approx(1)
    assert found.traits["middle"] > 0.97
    assert 0.95 < found.traits["word"] < 0.99
    assert 0.4 < found.traits["noise"] < 0.6
    assert found.traits["always"] == 0.5
    assert found.auc == pytest.approx(1)
    alone = probe(Rows(traits[:300], labels[:300], groups[:300]), Rows([], labels[:0], []))
    assert alone.auc == alone.train_auc and "val lacks a class" in alone.reason


def test_a_group_is_never_learned_and_scored_at_once() -> None:
    """Each group has a colour of its own and one class: seen in training, the colour would give the answer away."""
    draw = random.Random(2)
    groups = [number // 10 for number in range(600)]
    colours = [draw.random() for _ in range(60)]
    classes = [draw.randrange(2) for _ in range(60)]
    traits = [{"colour": colours[group]} for group in groups]
    rows = Rows(traits, np.array([classes[group] for group in groups]), [str(group) for group in groups])
    found = probe(rows, Rows([], rows.labels[:0], []))
    assert found.auc is not None and found.auc < 0.75, f"AUC {found.auc:.2f}: groups leak between the folds"


def test_reading_the_header_says_what_the_file_is(tmp_path: Path) -> None:
    content = io.BytesIO()
    exif = Image.Exif()
    exif[0x010F] = "maker"
    face(1).save(content, "JPEG", quality=50, progressive=True, exif=exif, dpi=(72, 72))
    (tmp_path / "x.JPG").write_bytes(content.getvalue())
    traits = look(Picture(tmp_path / "x.JPG", "x", 0, "train", "x", None)).traits
    assert traits is not None
    expected = {"width": 80, "height": 80, "suffix": ".jpg", "format": "JPEG", "EXIF": 1, "JPEG progressive": 1}
    assert {name: traits[name] for name in expected} == expected
    pixels = np.asarray(Image.open(tmp_path / "x.JPG"), float).reshape(-1, 3)
    assert [traits[f"mean {c}"] for c in ("red", "green", "blue")] == pytest.approx(pixels.mean(0).tolist())
    assert [traits[f"spread of {c}"] for c in ("red", "green", "blue")] == pytest.approx(pixels.std(0).tolist())
