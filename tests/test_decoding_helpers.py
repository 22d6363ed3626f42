"""Helpers that decode in other processes: the same bytes with and without them, and none of them stays or is missed."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from makers import make_faces
from PIL import Image

from dftrack.data import decoding_helpers as helping
from dftrack.data.cache import open_listing
from dftrack.data.decoding import INDEX, PIXELS, build
from dftrack.data.folder import Listing, read_folder
from dftrack.data.rows import Row, stamp_of
from dftrack.errors import DataError

SIZE = 16
ANYWHERE = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}  # finds dftrack in any folder


@pytest.fixture
def listing(tmp_path: Path) -> Listing:
    """122 pictures: of odd names, one turned, one not square, one with broken EXIF, one cut, one empty."""
    faces = make_faces(tmp_path / "faces", train=50, val=6, test=5)
    folder = faces / "train" / "real"
    exif = Image.Exif()
    exif[0x0112] = 6
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    noise.save(folder / "train-real-007.jpg", exif=exif)
    noise.save(folder / "train-real-020.jpg", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff garbage")
    os.rename(folder / "train-real-008.jpg", os.fsencode(folder) + b"/train-real-\xff\n.jpg")
    cut = folder / "train-real-030.jpg"
    cut.write_bytes(cut.read_bytes()[:300])
    (folder / "train-real-049.jpg").write_bytes(b"")
    return read_folder(faces)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Two helpers, waited for until they are there; whether each part that they were asked for was done by them."""
    return with_helpers(monkeypatch, 2)


def with_helpers(monkeypatch: pytest.MonkeyPatch, count: int) -> list[bool]:
    parts: list[bool] = []
    real = helping._Helper.fill

    def noted(helper: helping._Helper, rows: list[Row]) -> object:
        done = real(helper, rows)
        parts.append(done is not None)
        return done

    monkeypatch.setattr("dftrack.data.decoding.how_many", lambda rows: count)
    monkeypatch.setattr(helping._Helper, "has_spoken", lambda helper: True)
    monkeypatch.setattr(helping._Helper, "fill", noted)
    return parts


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The process ids of all helpers."""
    pids: list[int] = []
    real = subprocess.Popen

    def noted(*given: object, **named: object) -> object:
        process = real(*given, **named)
        pids.append(process.pid)
        return process

    monkeypatch.setattr(helping.subprocess, "Popen", noted)
    return pids


def built(listing: Listing, place: Path) -> tuple[bytes, bytes]:
    """The pixels and the index."""
    place.parent.mkdir(exist_ok=True)
    build(place, listing, [stamp_of(picture.path) for picture in listing.pictures], SIZE, None)
    return (place / PIXELS).read_bytes(), (place / INDEX).read_bytes()


def is_there(pid: int) -> bool:
    """Whether the process runs; one that ended and was not collected by its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_helpers_make_the_same_file_and_index(
    listing: Listing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = built(listing, tmp_path / "cache" / "a-1")
    assert json.loads(alone[1].split(b"\n")[0])["shape"][0] == 120, "two are unreadable"
    monkeypatch.setenv("PYTHONWARNINGS", "error")  # Pillow warns of the broken EXIF block
    with pytest.MonkeyPatch.context() as patch:
        parts = with_helpers(patch, 2)
        assert built(listing, tmp_path / "cache" / "b-1") == alone
    assert parts.count(True) >= 2, "no helper did anything"
    assert all(parts)


@pytest.mark.parametrize("when", ["over its work", "before it is asked"])
def test_a_helper_that_is_killed_costs_nothing(
    when: str, listing: Listing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = built(listing, tmp_path / "cache" / "a-1")
    real = helping._Helper.fill

    def struck(helper: helping._Helper, rows: list[Row]) -> object:
        if helper._known and when == "before it is asked":
            helper.process.kill()
            helper.process.wait()
        elif helper._known:  # the second time: it has the rows before it
            helper.process.send_signal(signal.SIGSTOP)
            threading.Timer(0.1, helper.process.kill).start()
        return real(helper, rows)

    monkeypatch.setattr(helping._Helper, "fill", struck)
    parts = with_helpers(monkeypatch, 2)
    assert built(listing, tmp_path / "cache" / "b-1") == alone
    assert True in parts and False in parts, "none was killed after it had done something"


@pytest.mark.parametrize("fault", ["no Python", "no such code", "other code", "silence"])
def test_helpers_that_do_not_come_about_cost_nothing(
    fault: str, listing: Listing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[bool]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("dftrack.data.decoding.how_many", lambda rows: 0)
        alone = built(listing, tmp_path / "cache" / "a-1")
    if fault == "no Python":
        monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    elif fault == "no such code":
        monkeypatch.setattr(helping, "CODE", "import no_such_module")
    elif fault == "other code":
        monkeypatch.setattr(helping, "_greeting", lambda: b"another Pillow\n")
    else:
        monkeypatch.undo()
        monkeypatch.setattr("dftrack.data.decoding.how_many", lambda rows: 2)
        monkeypatch.setattr(helping, "CODE", "import time; time.sleep(60)")
    assert built(listing, tmp_path / "cache" / "b-1") == alone
    assert not any(asked)


def test_a_stop_ends_the_helpers_whatever_they_do(
    listing: Listing, tmp_path: Path, asked: list[bool], started: list[int]
) -> None:
    def stop(what: str, done: int, total: int) -> None:
        if what == "decoding pictures" and done == 20:
            for pid in started:
                os.kill(pid, signal.SIGSTOP)  # so whoever waits for an answer waits for ever
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_listing(listing, SIZE, tmp_path, stop)
    assert len(started) == 2 and any(asked)
    assert not any(is_there(pid) for pid in started)
    assert [path for path in (tmp_path / "cache").iterdir() if path.is_dir()] == []


def test_helpers_are_gone_when_the_file_is_there(
    listing: Listing, tmp_path: Path, asked: list[bool], started: list[int]
) -> None:
    built(listing, tmp_path / "cache" / "a-1")
    assert len(started) == 2 and not any(is_there(pid) for pid in started)


def test_a_helper_that_comes_late_is_still_asked(
    listing: Listing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = iter([False])
    parts = with_helpers(monkeypatch, 1)
    monkeypatch.setattr(helping._Helper, "has_spoken", lambda helper: next(looks, True))
    built(listing, tmp_path / "cache" / "a-1")
    assert any(parts)


def test_a_picture_that_changed_is_refused_as_ever(listing: Listing, tmp_path: Path, asked: list[bool]) -> None:
    stamps = [stamp_of(picture.path) for picture in listing.pictures]
    victim = listing.pictures[3]
    victim.path.write_bytes(victim.path.read_bytes() + b"more")
    (tmp_path / "cache").mkdir()
    with pytest.raises(DataError, match=f"{victim.name}' changed while"):
        build(tmp_path / "cache" / "a-1", listing, stamps, SIZE, None)
    assert asked


def test_a_helper_ends_in_the_middle_of_its_work_when_nobody_holds_its_stdin(listing: Listing, tmp_path: Path) -> None:
    picture, count, row_bytes = listing.pictures[0], 50_000, 64 * 64 * 3
    with open(tmp_path / "pixels", "w+b") as target:
        helper = subprocess.Popen(
            [sys.executable, "-c", helping.CODE, str(target.fileno()), "64"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[target.fileno()],
        )  # fmt: skip
        assert helper.stdin and helper.stdout
        assert helper.stdout.readline() == helping._greeting()
        many = [(place * row_bytes, str(picture.path), picture.name, stamp_of(picture.path)) for place in range(count)]
        helper.stdin.write(helping._line(many))
        helper.stdin.flush()
        while not os.fstat(target.fileno()).st_size:  # until it writes
            assert helper.poll() is None
            time.sleep(0.01)
        helper.stdin.close()
        assert helper.stdout.read() == b"", "it answered: it went on to the end"
        assert helper.wait() == 0
        assert os.fstat(target.fileno()).st_size < count * row_bytes
        helper.stdout.close()


SCRIPT = """
import multiprocessing, os, sys
from pathlib import Path
from dftrack.data import decoding, decoding_helpers as helping
from dftrack.data.cache import open_listing
from dftrack.data.folder import read_folder
helping._Helper.has_spoken = lambda helper: True
decoding.how_many = lambda rows: 1
real = helping._Helper.fill
def noted(helper, rows):
    done = real(helper, rows)
    print("pid", helper.process.pid, done is not None, flush=True)
    return done
helping._Helper.fill = noted
os.chdir("/")
def work():
    open_listing(read_folder(Path(sys.argv[1])), 16, Path(sys.argv[2]), {progress})
    print("digest", flush=True)
"""


def test_an_unguarded_script_and_its_forked_daemon_have_helpers(listing: Listing, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    forked = "worker = multiprocessing.get_context('fork').Process(target=work, daemon=True)\nworker.start()\n"
    script.write_text(SCRIPT.replace("{progress}", "None") + forked + "worker.join(); sys.exit(worker.exitcode)")
    for name in ("train/real/train-real-030.jpg", "train/real/train-real-049.jpg"):
        (listing.root / name).unlink()
    command = [sys.executable, str(script), str(listing.root), str(tmp_path / "home")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=ANYWHERE)
    assert done.returncode == 0, done.stderr
    words = done.stdout.split()
    assert words.count("pid") == words.count("True") >= 1 and words.count("digest") == 1, done.stdout + done.stderr


def test_helpers_do_not_outlive_a_killed_builder(listing: Listing, tmp_path: Path) -> None:
    code = SCRIPT.replace("{progress}", "lambda *_: __import__('time').sleep(60)") + "work()"
    command = [sys.executable, "-c", code, str(listing.root), str(tmp_path / "home")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ANYWHERE) as builder:
        assert builder.stdout
        line = builder.stdout.readline()
        pid = int(line.split()[1])
        was_there = is_there(pid)
        builder.kill()
        builder.wait()
        assert was_there and line.split()[2] == "True", line
        for _ in range(1000):
            if not is_there(pid):
                break
            time.sleep(0.01)
        assert not is_there(pid)


def test_a_helper_loads_little() -> None:
    code = helping.CODE.partition(";")[0] + "; import sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "PIL.Image" in loaded
    assert not {"numpy", "torch", "filelock", "dftrack.data.folder"} & set(loaded), "each helper would wait for it"


def test_helpers_are_for_many_small_files_and_further_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    def many(count: int, size: int = 5_000) -> list[Row]:
        return [Row(0, Path("a.jpg"), "a.jpg", (size, 0, 0))] * count

    monkeypatch.setattr(helping, "cores", lambda: 4)
    counts = (0, 1, 2_120, 2_400, 3_600, 4_800, 10**5)
    assert [helping.how_many(many(count)) for count in counts] == [0, 0, 0, 1, 2, 3, 3]
    assert helping.how_many(many(10**5, size=100_000)) == 0, "threads do as well"
    assert helping.how_many([Row(0, Path("a.jpg"), "a.jpg", None)] * 10**5) == 0, "files that are not there"
    monkeypatch.setattr(helping, "cores", lambda: 1)
    assert helping.how_many(many(10**5)) == 0
