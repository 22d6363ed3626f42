"""A kill, a full disk or a failure leaves the old file or the new one, never a third."""

import hashlib
import os
import resource
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from filelock import FileLock, Timeout
from hypothesis import given, settings
from hypothesis import strategies as st

from dftrack import files
from dftrack.errors import Interrupted, StoreError
from dftrack.files import locked, sha256, temporary_folder, write_aside, write_bytes, write_many, write_text

OLD, NEW = b"old content", b"new content" * 1000


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "folder" / "settings.json"
    path.parent.mkdir()
    path.write_bytes(OLD)
    return path


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_file_is_replaced_whole_and_nothing_stays_beside_it(target: Path) -> None:
    write_bytes(target, NEW)
    assert target.read_bytes() == NEW
    assert names(target.parent) == [target.name]


def test_missing_folders_are_made(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b" / "é.txt", "naïve\n")
    assert (tmp_path / "a" / "b" / "é.txt").read_bytes() == "naïve\n".encode()


def test_the_old_content_is_there_until_the_block_has_ended(target: Path) -> None:
    with write_aside(target) as aside:
        aside.write_bytes(NEW)
        assert target.read_bytes() == OLD
        assert aside.parent == target.parent, "a rename is atomic only inside one file system"
        assert aside.name.startswith("."), "a reader that lists the folder would see half a file"
    assert target.read_bytes() == NEW


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt(), SystemExit(3)])
def test_a_block_that_fails_leaves_the_old_file_and_its_own_error(target: Path, error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, write_aside(target) as aside:
        aside.write_bytes(NEW)
        raise error
    assert caught.value is error
    assert target.read_bytes() == OLD
    assert names(target.parent) == [target.name]


def test_a_block_that_cannot_read_another_file_is_not_reported_as_a_failure_to_write(
    target: Path, tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError, match=r"source\.jpg"), write_aside(target):
        (tmp_path / "source.jpg").read_bytes()
    assert target.read_bytes() == OLD


def run_python(code: str, *args: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


HALF_WRITTEN = """
import pathlib, sys, time
from dftrack.files import write_aside
with write_aside(pathlib.Path(sys.argv[1])) as aside:
    with open(aside, "wb") as handle:
        handle.write(b"half of the new cont")
        handle.flush()
        print("half", flush=True)
        time.sleep(60)
"""


def kill_half_way(target: Path) -> None:
    with run_python(HALF_WRITTEN, target) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"half\n", "the writer never came so far"
        writer.kill()
    assert writer.returncode == -signal.SIGKILL


def test_a_kill_half_way_leaves_the_old_file_and_the_next_writer_clears_up(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_half_way(target)
    assert target.read_bytes() == OLD
    left = [name for name in names(target.parent) if name != target.name]
    assert len(left) == 1 and left[0].endswith(".tmp"), f"expected one temporary file, found {left}"

    write_bytes(target, NEW)
    assert left[0] in names(target.parent), "a file written to a moment ago may belong to a process on another machine"
    monkeypatch.setattr(files, "ORPHAN_SECONDS", -1.0)
    write_bytes(target, NEW)
    assert names(target.parent) == [target.name], "each kill would cost the disk one more checkpoint"


def test_the_temporary_file_of_a_living_process_is_left_alone_however_old(target: Path) -> None:
    with write_aside(target) as aside:
        aside.write_bytes(b"slow")
        os.utime(aside, (0, 0))
        write_bytes(target, b"quick")
        assert aside.exists(), "another write to the same path removed a file that was being written"
    assert target.read_bytes() == b"slow"


def test_files_that_only_look_like_left_ones_are_left_alone(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "ORPHAN_SECONDS", -1.0)
    others = [".settings.json.mine-of-hand.tmp", ".other.json.4194305-00000000.tmp", "settings.json.tmp"]
    for name in others:
        (target.parent / name).write_bytes(b"not ours")
    write_bytes(target, NEW)
    assert names(target.parent) == sorted([target.name, *others])


MANY_TIMES = """
import pathlib, sys
from dftrack.files import write_bytes
print("go", flush=True)
for turn in range(10**9):
    write_bytes(pathlib.Path(sys.argv[1]), bytes([turn % 256]) * 300_000)
"""


def test_twelve_kills_at_any_moment_never_leave_a_mixed_file(target: Path) -> None:
    for turn in range(12):
        with run_python(MANY_TIMES, target) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            time.sleep(0.004 * turn)
            writer.kill()
        content = target.read_bytes()
        whole = content == OLD or (len(content) == 300_000 and len(set(content)) == 1)
        assert whole, f"after kill {turn}: {len(content)} bytes of {len(set(content))} kinds"


FULL_DISK = """
import pathlib, resource, signal, sys
from dftrack.errors import StoreError
from dftrack.files import write_bytes, write_many
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
target = pathlib.Path(sys.argv[1])
for write in (write_bytes, lambda path, content: write_many({path: content})):
    try:
        write(target, b"x" * 200_000)
    except StoreError as error:
        print(error.message, "|", error.hint)
"""


def test_a_full_disk_leaves_the_old_file_and_says_what_to_do(target: Path) -> None:
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] != 0
    with run_python(FULL_DISK, target) as writer:
        out, err = writer.communicate(timeout=60)
    assert not err, err.decode()
    lines = out.decode().splitlines()
    assert lines == [f"cannot write {target}: File too large | is there space, and may you write there?"] * 2
    assert target.read_bytes() == OLD
    assert names(target.parent) == [target.name], "the half-written file keeps the disk full"


def test_a_place_that_cannot_be_written_is_a_store_error_that_names_it(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_bytes(OLD)
    for write in (lambda path: write_bytes(path, NEW), lambda path: write_many({path: NEW})):
        with pytest.raises(StoreError, match=f"^cannot make the folder {blocker}: a file of that name is in the way$"):
            write(blocker / "settings.json")
        with pytest.raises(StoreError, match=f"^cannot make the folder {blocker}/below: Not a directory$"):
            write(blocker / "below" / "settings.json")
    with pytest.raises(StoreError, match="Is a directory"):
        write_bytes(tmp_path, NEW)
    assert names(tmp_path) == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_a_store_error(target: Path) -> None:
    target.parent.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(StoreError, match="Permission denied"):
        write_bytes(target, NEW)


def test_the_content_is_on_the_disk_before_the_name_is(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(handle: int) -> None:
        calls.append("sync folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "sync file")
        real_fsync(handle)

    def replace(source: Path, destination: Path) -> None:
        calls.append("rename")
        real_replace(source, destination)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    write_bytes(target, NEW)
    assert calls == ["sync file", "rename", "sync folder"], "after a power cut the name could point at an empty file"
    calls.clear()
    write_many({target: OLD, target.with_name("second"): NEW})
    assert calls == ["sync file", "sync file", "rename", "rename", "sync folder"]


def test_many_files_are_all_written(tmp_path: Path) -> None:
    contents = {tmp_path / f"{number % 3}" / f"{number}.bin": bytes([number]) * number for number in range(20)}
    write_many(contents)
    assert {path: path.read_bytes() for path in contents} == contents
    assert all(not name.startswith(".") for folder in tmp_path.iterdir() for name in names(folder))
    write_many({})


WRITER = """
import pathlib, sys
from dftrack.files import write_text
for turn in range(40):
    write_text(pathlib.Path(sys.argv[1]), sys.argv[2] * 5000)
"""


def test_writers_at_the_same_time_leave_one_whole_file(target: Path) -> None:
    writers = [run_python(WRITER, target, letter) for letter in "abc"]
    for writer in writers:
        _, err = writer.communicate(timeout=60)
        assert writer.returncode == 0, err.decode()
    content = target.read_text()
    assert len(content) == 5000 and len(set(content)) == 1
    assert names(target.parent) == [target.name]


@pytest.mark.parametrize("end", ["", "; raise SystemExit(3)", "; 1 / 0"])
def test_a_passing_folder_goes_with_its_process_however_that_ends(end: str) -> None:
    script = f"from dftrack.files import passing_folder as p; f = p(); (f / 'a').mkdir(); print(f, flush=True){end}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    folder = Path(done.stdout.strip())
    assert folder.name.startswith("dftrack-") and not folder.exists()


@settings(max_examples=25)
@given(st.binary(max_size=2000))
def test_the_hash_is_the_standard_one(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "hashed"
    path.write_bytes(content)
    assert sha256(path) == hashlib.sha256(content).hexdigest()


def test_the_progress_of_a_hash_adds_up_to_the_file(tmp_path: Path) -> None:
    path = tmp_path / "big"
    path.write_bytes(b"x" * ((1 << 22) + 5))
    told: list[int] = []
    sha256(path, told.append)
    assert told == [1 << 22, 5]


def test_who_waits_for_a_lock_hears_of_a_request_to_stop(tmp_path: Path) -> None:
    looks = iter([None, None, Interrupted(143)])

    def look() -> None:
        if (request := next(looks)) is not None:
            raise request

    with FileLock(tmp_path / "lock"), pytest.raises(Interrupted), locked(tmp_path / "lock", look):
        raise AssertionError("the lock was held by another")
    with locked(tmp_path / "lock", lambda: pytest.fail("nobody holds it")), pytest.raises(Timeout):
        FileLock(tmp_path / "lock").acquire(timeout=0)


def test_no_room_for_a_temporary_folder_is_the_store_s_fault_and_not_the_training_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(StoreError, match="cannot make a temporary folder") as caught, temporary_folder():
        pass
    assert "TMPDIR" in caught.value.hint
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with temporary_folder() as folder:
        (folder / "file").write_bytes(NEW)
    assert not list(tmp_path.iterdir()), "it goes with all in it"
