"""Decoded once, shared, never half: kills, full disks, changed pictures and damaged caches included."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from makers import PEAK_KIB, make_faces
from PIL import Image

from dftrack.config import DataConfig
from dftrack.data import cache, decoding, rows
from dftrack.data.cache import DataSet, open_data
from dftrack.data.folder import read_folder
from dftrack.data.pictures import decode
from dftrack.errors import DataError, StoreError

OPEN = (
    "import sys; from pathlib import Path; from dftrack.config import DataConfig; "
    "from dftrack.data.cache import open_data; "
    "print(open_data(DataConfig(source=sys.argv[1], image_size=int(sys.argv[3])), Path(sys.argv[2])).digest)"
)


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    return make_faces(tmp_path / "faces", train=12, val=6, test=5)


def opened(source: Path, home: Path, size: int = 16) -> DataSet:
    return open_data(DataConfig(source=str(source), image_size=size), home)


def no_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "build", lambda *_: pytest.fail("it was decoded again"))


def leftovers(home: Path) -> list[str]:
    return sorted(path.name for path in (home / "cache").iterdir() if path.suffix in (".tmp", ".alive"))


def refused(source: Path, home: Path) -> DataError:
    """The DataError that opening ends in: one line of what was seen, one of what to do."""
    with pytest.raises(DataError) as caught:
        opened(source, home)
    assert caught.value.hint
    assert "\n" not in caught.value.message + caught.value.hint
    return caught.value


def test_what_is_opened_is_what_the_files_hold(faces: Path, tmp_path: Path) -> None:
    data = opened(faces, tmp_path / "home")
    assert list(data.splits) == ["train", "val", "test-dev"]
    assert data.test_splits == ("test-dev",)
    assert data.counts()["train"] == {"real": 12, "fake": 12}
    for name, split in data.splits.items():
        assert split.name == name
        assert split.pixels.shape == (len(split.names), 16, 16, 3)
        assert isinstance(split.pixels, np.memmap) and not split.pixels.flags.writeable
        for row, path in enumerate(split.paths):
            assert (split.pixels[row] == decode(path, 16)).all(), f"row {row} of {name} is another picture"
            assert split.labels[row] == ("/fake/" in str(path))
            assert str(path).endswith(split.names[row])
    assert len(data.digest) == 32 and int(data.digest, 16) >= 0


def test_each_source_has_its_usual_size(faces: Path, tmp_path: Path) -> None:
    assert open_data(DataConfig(source=str(faces)), tmp_path / "home").splits["val"].pixels.shape[1:] == (224, 224, 3)


def test_opening_again_decodes_and_reads_nothing(faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = opened(faces, tmp_path / "home")
    no_build(monkeypatch)
    monkeypatch.setattr(rows, "decode", lambda *_: pytest.fail("a picture was read again"))
    second = opened(faces, tmp_path / "home")
    assert second.digest == first.digest
    assert (second.splits["train"].pixels == first.splits["train"].pixels).all()


def test_progress_is_told_to_the_end(faces: Path, tmp_path: Path) -> None:
    said: list[tuple[str, int, int]] = []
    open_data(DataConfig(source=str(faces), image_size=16), tmp_path, lambda *words: said.append(words))
    decoding = [words for words in said if words[0] == "decoding pictures"]
    assert decoding == [("decoding pictures", done, 46) for done in range(1, 47)]


def test_the_digest_knows_contents_and_names_not_places_sizes_or_order(faces: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    digest = opened(faces, home).digest
    assert opened(faces, home, size=24).digest == digest, "the digest depends on the image size"
    elsewhere = shutil.copytree(faces, tmp_path / "moved")
    assert opened(elsewhere, home).digest == digest, "the digest depends on where the folder lies"
    rows = [f"{p.name},{'fake' if p.label else 'real'},{p.split},{p.group}" for p in read_folder(faces).pictures]
    (elsewhere / "manifest.csv").write_text("\n".join(["path,label,split,group", *reversed(rows)]))
    assert opened(elsewhere, home).digest == digest, "the digest depends on the order of a manifest"
    (elsewhere / "manifest.csv").write_text("\n".join(["path,label,split,group", *rows[1:]]))
    assert opened(elsewhere, home).digest != digest, "a missing picture goes unnoticed"
    (elsewhere / "manifest.csv").write_text("\n".join(["path,label,split,group", *rows[:-1], rows[-1] + "x"]))
    assert opened(elsewhere, home).digest != digest, "another group goes unnoticed"


def test_a_picture_that_changes_on_disk_is_noticed_even_with_its_old_size_and_time(faces: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    before = opened(faces, home)
    path = before.splits["train"].paths[3]
    status, content = path.stat(), bytearray(path.read_bytes())
    content[-40] ^= 0x15
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size and path.stat().st_mtime_ns == status.st_mtime_ns
    after = opened(faces, home)
    assert after.digest != before.digest, "a picture was changed behind the cache's back"
    assert (after.splits["train"].pixels[3] == decode(path, 16)).all()


def test_the_cache_of_the_old_state_goes_and_other_data_stay(faces: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    held = opened(faces, home)
    opened(faces, home, size=24)
    other = make_faces(tmp_path / "others", train=4, val=2, test=1)
    opened(other, home)
    (faces / "train" / "real" / "train-real-000.jpg").unlink()
    assert len(opened(faces, home).splits["train"].names) == 23
    assert len([path for path in (home / "cache").iterdir() if path.is_dir()]) == 3
    assert int(held.splits["train"].pixels.sum()) > 0, "who has the old one open keeps it"


@pytest.mark.parametrize("harm", ["cut pixels", "cut index", "flip index", "no index", "no pixels", "empty index"])
def test_a_damaged_cache_is_noticed_and_built_again(harm: str, faces: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    before = opened(faces, home)
    (place,) = [path for path in (home / "cache").iterdir() if path.is_dir()]
    what, name = harm.split()
    path = place / {"pixels": decoding.PIXELS, "index": decoding.INDEX}[name]
    if what == "cut":
        os.truncate(path, path.stat().st_size - 1)
    elif what == "flip":
        content = bytearray(path.read_bytes())
        content[content.index(b"digest") + 12] ^= 1
        path.write_bytes(content)
    elif what == "no":
        path.unlink()
    else:
        path.write_bytes(b"")
    after = opened(faces, home)
    assert after.digest == before.digest
    assert (after.splits["val"].pixels == np.stack([decode(p, 16) for p in after.splits["val"].paths])).all()


def test_processes_that_start_at_once_build_one_cache(faces: Path, tmp_path: Path) -> None:
    script = (
        "from dftrack.data import cache\n"
        "real = cache.build\n"
        "def counted(*given): real(*given); print('built')\n"
        "cache.build = counted\n" + OPEN
    )
    command = [sys.executable, "-c", script, str(faces), str(tmp_path / "home"), "16"]
    starts = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    outputs = [process.communicate(timeout=120)[0].split() for process in starts]
    assert all(process.returncode == 0 for process in starts)
    assert len({words[-1] for words in outputs}) == 1
    assert sum("built" in words for words in outputs) == 1, f"built more than once: {outputs}"


def test_a_kill_in_the_middle_leaves_no_cache_and_its_rest_is_cleared(faces: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    script = (
        "import time; from dftrack.data import rows\n"
        "real = rows.decode\n"
        "def slow(*given): time.sleep(0.2); return real(*given)\n"
        "rows.decode = slow\n" + OPEN
    )
    builder = subprocess.Popen([sys.executable, "-c", script, str(faces), str(home), "16"])
    while not list(home.glob("cache/.*.tmp/*")):
        assert builder.poll() is None, "it ended before it could be killed"
        time.sleep(0.02)
    os.kill(builder.pid, signal.SIGKILL)
    builder.wait()
    assert leftovers(home), "nothing was under way"
    other = make_faces(tmp_path / "others", train=4, val=2, test=1)
    opened(other, home)
    assert leftovers(home) == [], "a dead builder's files stay for ever"
    assert opened(faces, home).counts()["train"] == {"real": 12, "fake": 12}


def test_what_another_builder_is_writing_is_not_taken_for_a_leftover(faces: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    other = make_faces(tmp_path / "others", train=4, val=2, test=1)

    def build_another_meanwhile(what: str, done: int, total: int) -> None:
        if done == 5:
            script = [sys.executable, "-c", OPEN, str(other), str(home), "16"]
            subprocess.run(script, check=True, capture_output=True, timeout=60)

    data = open_data(DataConfig(source=str(faces), image_size=16), home, build_another_meanwhile)
    assert len(data.splits["train"].names) == 24
    assert leftovers(home) == []


def test_a_full_disk_leaves_nothing_and_says_so(faces: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # the kernel refuses, as a full disk does
    try:
        with pytest.raises(StoreError, match=r"cannot (write|make the folder)") as caught:
            opened(faces, home)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "space" in caught.value.hint
    assert [path for path in (home / "cache").iterdir() if path.is_dir()] == []
    assert leftovers(home) == []
    opened(faces, home)


@pytest.mark.parametrize("call", ["pwrite", "fsync", "replace", "ftruncate"])
def test_a_disk_that_fails_at_any_step_leaves_nothing(
    call: str, faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    real, calls = getattr(os, call), [0]

    def failing(*given: object) -> object:
        calls[0] += 1
        if calls[0] >= (20 if call == "pwrite" else 1):
            raise OSError(28, "No space left on device")
        return real(*given)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing)
        with pytest.raises(StoreError, match="No space left"):
            opened(faces, home)
    assert [path for path in (home / "cache").iterdir() if path.is_dir()] == []
    assert opened(faces, home).counts()["val"] == {"real": 6, "fake": 6}


def test_a_write_that_failed_is_told_though_the_kernel_tells_only_the_first_sync(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = os.fsync, [0]

    def failing_once(handle: int) -> None:
        calls[0] += 1
        if calls[0] == 1:
            raise OSError(5, "Input/output error")
        real(handle)

    monkeypatch.setattr(decoding, "SYNC_BYTES", 10 * 16 * 16 * 3)
    monkeypatch.setattr(os, "fsync", failing_once)
    with pytest.raises(StoreError, match="Input/output error"):
        opened(faces, tmp_path / "home")
    assert leftovers(tmp_path / "home") == []


def test_pictures_are_synced_while_others_are_decoded(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, done_at = [0], list[int]()
    real, synced = os.fsync, threading.Event()

    def noted(handle: int) -> None:
        done_at.append(told[0])
        real(handle)
        synced.set()

    def wait_for_a_sync(what: str, done: int, total: int) -> None:
        told[0] = done
        assert what != "decoding pictures" or done < 20 or synced.wait(20)

    monkeypatch.setattr(decoding, "SYNC_BYTES", 10 * 16 * 16 * 3)
    monkeypatch.setattr(os, "fsync", noted)
    open_data(DataConfig(source=str(faces), image_size=16), tmp_path / "home", wait_for_a_sync)
    assert done_at[0] <= 20, "nothing was synced before all were decoded"


def test_a_short_write_is_completed(faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda handle, content, offset: real(handle, content[:100], offset))
    data = opened(faces, tmp_path / "home")
    assert all(
        (data.splits["val"].pixels[row] == decode(path, 16)).all() for row, path in enumerate(data.splits["val"].paths)
    )


def test_an_interruption_leaves_nothing(faces: Path, tmp_path: Path) -> None:
    def stop(what: str, done: int, total: int) -> None:
        if what == "decoding pictures" and done == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_data(DataConfig(source=str(faces), image_size=16), tmp_path / "home", stop)
    assert [path for path in (tmp_path / "home" / "cache").iterdir() if path.is_dir()] == []


def test_a_picture_that_changes_while_it_is_read_is_told(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = faces / "val" / "fake" / "val-fake-002.jpg"

    def late(what: str, done: int, total: int) -> None:
        if done == 1:
            victim.write_bytes(victim.read_bytes() + b"more")

    monkeypatch.setattr("dftrack.data.parallel.cores", lambda: 1)
    monkeypatch.setattr("dftrack.data.decoding.QUICK", 1)  # else all of them are read before the first is told
    with pytest.raises(DataError, match=r"val-fake-002\.jpg' changed while"):
        open_data(DataConfig(source=str(faces), image_size=16), tmp_path / "home", late)


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """A set whose train split has 100 pictures of a class: two of them may be unreadable."""
    return make_faces(tmp_path / "many", train=100, val=3, test=2, size=8)


def test_unreadable_pictures_up_to_1_percent_are_named_and_left_out(many: Path, tmp_path: Path) -> None:
    intact = {path: decode(path, 16) for path in (many / "train").rglob("*.jpg")}
    first, last = many / "train/fake/train-fake-000.jpg", many / "train/real/train-real-050.jpg"
    first.write_bytes(first.read_bytes()[:200])
    last.write_bytes(b"")
    data = opened(many, tmp_path / "home")
    assert [(bad.name, bad.split) for bad in data.unreadable] == [
        ("train/fake/train-fake-000.jpg", "train"),
        ("train/real/train-real-050.jpg", "train"),
    ]
    assert "truncated" in data.unreadable[0].reason and "0 bytes" in data.unreadable[1].reason
    assert data.counts()["train"] == {"real": 99, "fake": 99}
    for split in data.splits.values():
        for row, path in enumerate(split.paths):
            expected = intact.get(path)
            expected = decode(path, 16) if expected is None else expected
            assert (split.pixels[row] == expected).all(), "the rows slipped after a picture was left out"
    assert opened(many, tmp_path / "home").unreadable == data.unreadable, "the second opening forgets them"
    first.unlink()
    last.unlink()
    assert opened(many, tmp_path / "home").digest == data.digest, "unreadable files are part of the digest"


def test_a_pipe_that_a_manifest_names_is_unreadable_and_waited_for_by_nobody(many: Path, tmp_path: Path) -> None:
    rows = [f"{path.relative_to(many)},{path.parent.name},{path.parents[1].name}" for path in many.rglob("*.jpg")]
    os.mkfifo(many / "pipe.jpg")
    (many / "manifest.csv").write_text("\n".join(["path,label,split", *sorted(rows), "pipe.jpg,fake,train"]) + "\n")
    [bad] = opened(many, tmp_path / "home").unreadable
    assert (bad.name, bad.reason) == ("pipe.jpg", "not a regular file but a pipe or a device")


def test_over_1_percent_unreadable_is_an_error_that_names_the_first(many: Path, tmp_path: Path) -> None:
    for number in (3, 5, 7, 9):
        (many / f"train/fake/train-fake-{number:03}.jpg").write_bytes(b"GIF89a")
    for _ in range(2):  # the second time from the cache
        error = refused(many, tmp_path / "home")
        assert "4 of the 200 pictures of train cannot be read" in error.message
        assert "train-fake-003.jpg" in error.message and "and 1 more" in error.message
    missing = tmp_path / "m.csv"
    missing.write_text("path,label,split\n" + "\n".join(f"{n}.jpg,{k},{s}" for n, k, s in gone()))
    assert "No such file" in refused(missing, tmp_path / "home").message


def gone() -> list[tuple[str, str, str]]:
    return [(f"{split}{kind}", kind, split) for split in ("train", "val") for kind in ("real", "fake")]


def test_a_bomb_among_the_pictures_is_left_out_by_name(many: Path, tmp_path: Path) -> None:
    bomb = many / "train/real/train-real-001.jpg"
    Image.new("1", (20_000, 20_000)).save(bomb, "PNG")
    data = opened(many, tmp_path / "home")
    assert [bad.reason for bad in data.unreadable] == ["20000 x 20000 pixels, over the limit of 50 million"]


def test_train_and_val_must_hold_both_classes(tmp_path: Path) -> None:
    home = tmp_path / "home"
    assert "there is no" in refused(tmp_path / "nowhere", home).message
    no_val = make_faces(tmp_path / "a", train=4, val=2, test=2)
    shutil.rmtree(no_val / "val")
    assert "has no split 'val'" in refused(no_val, home).message
    one_class = make_faces(tmp_path / "b", train=4, val=2, test=2)
    shutil.rmtree(one_class / "train" / "fake")
    assert "'train'" in refused(one_class, home).message and "no fake pictures" in refused(one_class, home).message
    test_only = make_faces(tmp_path / "c", train=4, val=2, test=2)
    shutil.rmtree(test_only / "test-dev" / "real")
    assert opened(test_only, home).counts()["test-dev"] == {"real": 0, "fake": 2}, "a test split may hold one class"


def test_a_store_that_cannot_be_written_is_told(faces: Path, tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file where the folder should be")
    with pytest.raises(StoreError, match=r"cannot (write|make the folder)"):
        opened(faces, tmp_path / "home")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_memory_does_not_grow_with_the_number_of_pictures(tmp_path: Path) -> None:
    faces = make_faces(tmp_path / "faces", train=60, val=2, test=1, size=16)
    script = OPEN.replace("print(", f"base = {PEAK_KIB}; print(") + f"; print(({PEAK_KIB} - base) // 1024)"
    command = [sys.executable, "-c", script, str(faces), str(tmp_path / "home"), "1024"]
    _, megabytes = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout.split()
    # what the audit imports takes 170 MB
    assert 1 < int(megabytes) < 250, f"{megabytes} MB for an array of 396 MB: it is held in memory"


def test_the_index_holds_no_path_of_this_machine(faces: Path, tmp_path: Path) -> None:
    opened(faces, tmp_path / "home")
    (index,) = (tmp_path / "home").rglob(decoding.INDEX)
    assert str(tmp_path) not in index.read_text()
    assert set(json.loads(index.read_text().rpartition("\n")[0])) == {"shape", "digest", "unreadable"}
