"""What follows from leaks before a training: left out, refused, or used and said so."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from dftrack.config import DataConfig, Leaks
from dftrack.data import identity
from dftrack.data import leaks as module
from dftrack.data.cache import DataSet, open_data
from dftrack.data.folder import read_folder
from dftrack.data.look import look
from dftrack.errors import DataError
from tests.makers import make_faces


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    return make_faces(tmp_path / "faces", train=8, val=4, test=60)


def opened(faces: Path, leaks: Leaks = "leave-out") -> DataSet:
    return open_data(DataConfig(source=str(faces), image_size=16, leaks=leaks), faces.parent / "home")


def plant(faces: Path, copies: int = 1, label: str = "fake") -> None:
    for number in range(copies):
        source = faces / "train" / "fake" / f"train-fake-{number:03}.jpg"
        shutil.copy(source, faces / "test-dev" / label / f"copy-{number}.jpg")


def test_clean_data_are_used_whole_and_the_floor_is_known(faces: Path) -> None:
    data = opened(faces)
    assert data.review is not None and data.review.left_out == () and data.review.allowed == 0
    assert data.counts()["test-dev"] == {"real": 60, "fake": 60}
    assert data.review.audit.shortcut.reason, "eight pictures a class cannot carry a probe, and it says so"


def test_a_copy_on_the_later_side_is_left_out_and_named(faces: Path) -> None:
    before = opened(faces).digest
    plant(faces)
    data = opened(faces)
    assert data.counts()["test-dev"] == {"real": 60, "fake": 60}
    assert data.review is not None
    assert [(pair.first, pair.second) for pair in data.review.left_out] == [
        ("train/fake/train-fake-000.jpg", "test-dev/fake/copy-0.jpg")
    ]
    assert data.digest == before, "what is trained and tested on is what it was without the copy"


def test_more_copies_than_one_in_a_hundred_are_refused(faces: Path) -> None:
    plant(faces, copies=2)
    with pytest.raises(DataError, match=r"2 of the 122 pictures of test-dev are copies .*copy-0"):
        opened(faces)


def test_whoever_asks_is_refused_at_the_first_copy(faces: Path) -> None:
    plant(faces)
    with pytest.raises(DataError, match="1 picture of test-dev has the same bytes"):
        opened(faces, "refuse")


def test_a_picture_with_both_labels_is_refused(faces: Path) -> None:
    plant(faces, label="real")
    with pytest.raises(DataError, match="labelled both real and fake") as caught:
        opened(faces)
    assert "data.leaks=allow" in caught.value.hint


def test_a_copy_saved_anew_without_loss_is_left_out_too(faces: Path) -> None:
    before = opened(faces).digest
    Image.open(faces / "train" / "fake" / "train-fake-000.jpg").save(faces / "test-dev" / "fake" / "copy.png")
    data = opened(faces)
    assert data.review is not None
    assert [pair.second for pair in data.review.left_out] == ["test-dev/fake/copy.png"]
    assert data.digest == before
    with pytest.raises(DataError, match="1 picture of test-dev has the same pixels"):
        opened(faces, "refuse")
    allowed = opened(faces, "allow").review
    assert allowed is not None and allowed.allowed == 1


def test_one_picture_in_two_formats_with_both_labels_is_refused(faces: Path) -> None:
    Image.open(faces / "train" / "fake" / "train-fake-000.jpg").save(faces / "train" / "real" / "copy.png")
    with pytest.raises(DataError, match="1 picture labelled both real and fake"):
        opened(faces)


def test_what_an_older_audit_left_is_not_believed(faces: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It knew equal bytes only."""
    Image.open(faces / "train" / "fake" / "train-fake-000.jpg").save(faces / "test-dev" / "fake" / "copy.png")
    with monkeypatch.context() as earlier:
        earlier.setattr(module, "FORMAT", 1)
        opened(faces)
    [place] = (faces.parent / "home" / "cache").glob("audit-*.json")
    old = json.loads(place.read_text())
    place.write_text(json.dumps({**old, "same": [], "findings": []}))
    review = opened(faces).review
    assert review is not None and len(review.left_out) == 1


def test_the_same_files_are_decoded_once_to_find_equal_ones_and_a_damaged_memory_is_made_anew(
    faces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures, home = read_folder(faces).pictures, faces.parent / "home"

    def kept() -> dict[str, identity.Identity]:
        return identity.kept_identities(identity.identities_place(home, pictures), pictures, {})

    first = kept()
    assert first.keys() == {picture.name for picture in pictures}
    with monkeypatch.context() as patched:
        patched.setattr(identity, "decode", lambda *_: pytest.fail("decoded again"))
        assert kept() == first
    [place] = (home / "cache").glob("identities-*.json")
    place.write_text(place.read_text().replace(first[pictures[0].name].pixels, "0" * 32))
    assert kept() == first
    pictures[0].path.write_bytes(pictures[1].path.read_bytes())
    changed = kept()
    assert changed[pictures[0].name] == changed[pictures[1].name]


def test_a_picture_that_the_probe_has_read_is_not_read_again_and_is_the_same_for_both(
    faces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures, read = read_folder(faces).pictures, []
    seen = {picture.name: look(picture).identity for picture in pictures if picture.split == "train"}
    everyone = identity.named_identities(pictures, {})
    assert {name: one for name, one in everyone.items() if name in seen} == seen
    original = identity.read_bytes
    monkeypatch.setattr(identity, "read_bytes", lambda path: read.append(path) or original(path))
    opened(faces)
    probed = {picture.path for picture in pictures if picture.split in ("train", "val")}
    assert read and not probed & set(read), "the short audit looks at train and val, and asks for the others only"


def test_a_leak_that_is_allowed_stays_in_and_is_counted(faces: Path) -> None:
    plant(faces, copies=3)
    data = opened(faces, "allow")
    assert data.review is not None and data.review.allowed == 3
    assert data.counts()["test-dev"]["fake"] == 63


def test_the_same_files_are_looked_at_once(faces: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = opened(faces)
    monkeypatch.setattr(module, "audit", lambda *_, **__: pytest.fail("the pictures were looked at again"))
    assert opened(faces).review == first.review


def test_a_mask_that_comes_later_is_seen(faces: Path) -> None:
    """The audit of the same pictures is kept, but it also said that their masks were not there."""
    rows = [
        f"{path.relative_to(faces)},{path.parent.name},{path.parents[1].name},{path.stem},masks/{path.stem}.png"
        for path in sorted(faces.rglob("*.jpg"))
    ]
    (faces / "manifest.csv").write_text("\n".join(["path,label,split,group,mask", *rows]) + "\n")

    def missing() -> list[str]:
        review = opened(faces).review
        assert review is not None
        return [found.message for found in review.audit.findings if "mask" in found.message]

    assert missing()
    (faces / "masks").mkdir()
    for path in faces.rglob("*/fake/*.jpg"):
        Image.new("L", (16, 16), 255).save(faces / "masks" / f"{path.stem}.png")
    for path in faces.rglob("*/real/*.jpg"):
        Image.new("L", (16, 16), 0).save(faces / "masks" / f"{path.stem}.png")
    assert not missing()


def test_with_and_without_its_copies_a_source_is_decoded_once_each(faces: Path) -> None:
    plant(faces)
    opened(faces)
    opened(faces, "allow")
    kept = sorted((faces.parent / "home" / "cache").glob("*/pixels.u8"))
    assert len(kept) == 2
    opened(faces)
    opened(faces, "allow")
    assert sorted((faces.parent / "home" / "cache").glob("*/pixels.u8")) == kept


def test_a_damaged_memory_of_an_audit_is_made_anew(faces: Path) -> None:
    first = opened(faces)
    [place] = (faces.parent / "home" / "cache").glob("audit-*.json")
    place.write_text(place.read_text()[:-40])
    assert opened(faces).review == first.review
