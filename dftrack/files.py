"""The only way a file is written: aside, synced, renamed; and how its content is named (sha256).

A kill or a full disk leaves the old file or the new one, never a third.
"""

import atexit
import glob
import hashlib
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from dftrack.errors import StoreError

ORPHAN_SECONDS = 60.0  # a temporary file of a dead process is removed when it is this old


@contextmanager
def write_aside(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends well it is synced and takes the name `path`.

    If the block fails, the temporary file goes and `path` is untouched. Missing parent folders are made, and what a
    killed process left of the same file is removed. Raises StoreError if the place cannot be written.
    """
    aside = _aside(path)
    try:
        _make_folder(path.parent)
        _sweep(path)
        yield aside
        with open(aside, "rb+") as handle:
            os.fsync(handle.fileno())
        os.replace(aside, path)
        sync_folder(path.parent)
    except OSError as error:
        if error.filename is not None and not _concerns(error.filename, path, aside):
            raise  # the block failed on a file of its own: no fault of the place written to
        raise _cannot_write(path, error) from error
    finally:
        _remove(aside)


@contextmanager
def usual_mode(path: Path) -> Iterator[None]:
    """Let a library write `path`, which may be read afterwards by whoever may read other new files (see umask).

    safetensors gives its files to the owner alone: neither a colleague nor a worker of another user could go on.
    """
    path.touch()
    mode = path.stat().st_mode
    yield
    path.chmod(mode)


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise StoreError(f"cannot make the folder {folder}: a file of that name is in the way") from error
    except OSError as error:
        raise StoreError(f"cannot make the folder {folder}: {error.strerror or error}") from error


def _sweep(path: Path) -> None:
    """Remove the temporary files of `path` whose process is gone and which nobody has written to for a minute."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*-*.tmp"):
        with suppress(OSError, ValueError):
            process = int(left.name.removeprefix(f".{path.name}.").partition("-")[0])
            if time.time() - left.stat().st_mtime > ORPHAN_SECONDS and not _alive(process):
                left.unlink()


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # somebody else's, but alive
    return True


def _concerns(name: str | bytes | int, path: Path, aside: Path) -> bool:
    """Is `name` (of an OSError) the file being written, or a folder above it?"""
    if isinstance(name, int):
        return True
    named = Path(os.fsdecode(name)).absolute()
    return named in (path.absolute(), aside.absolute(), *path.absolute().parents)


def _remove(aside: Path) -> None:
    """Unlink a temporary file, if it was ever made; what stands in the way was reported by the write itself."""
    with suppress(OSError):
        aside.unlink()


def _cannot_write(path: Path, error: OSError) -> StoreError:
    return StoreError(f"cannot write {path}: {error.strerror or error}", "is there space, and may you write there?")


def write_bytes(path: Path, content: bytes) -> None:
    """Put `content` at `path`, all or nothing."""
    with write_aside(path) as aside:
        aside.write_bytes(content)


def write_many(contents: Mapping[Path, bytes]) -> None:
    """Put each content at its path, each all or nothing; cheaper than one by one, since folders are synced once.

    Raises StoreError if one cannot be written; some of the others may be in place then.
    """
    with ExitStack() as stack:
        places = []
        for path, content in contents.items():
            aside = _aside(path)
            stack.callback(_remove, aside)
            try:
                _make_folder(path.parent)
                with open(aside, "wb") as handle:
                    handle.write(content)
                    handle.flush()
                    os.fsync(handle.fileno())
                places.append((aside, path))
            except OSError as error:
                raise _cannot_write(path, error) from error
        for aside, path in places:
            try:
                os.replace(aside, path)
            except OSError as error:
                raise _cannot_write(path, error) from error
    for folder in {path.parent for path in contents}:
        sync_folder(folder)


def write_text(path: Path, text: str) -> None:
    """Put `text` (UTF-8) at `path`, all or nothing."""
    write_bytes(path, text.encode(errors="backslashreplace"))


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def passing_folder() -> Path:
    """A new empty folder for copies from elsewhere, gone with all in it when this process ends. Raises StoreError."""
    folder = _new_temporary()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A new empty folder, deleted with all in it when the block ends. Raises StoreError if none can be made."""
    folder = _new_temporary()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _new_temporary() -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix="dftrack-"))
    except OSError as error:
        raise StoreError(
            f"cannot make a temporary folder: {error.strerror or error}", "is there space? TMPDIR names another place"
        ) from error


@contextmanager
def locked(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold the lock at `path`; while another process does, `waiting` is called again and again, and may raise."""
    lock = FileLock(path)
    while not lock.is_locked:
        with suppress(Timeout):
            lock.acquire(timeout=0.5)
        if not lock.is_locked:
            waiting()
    try:
        yield
    finally:
        lock.release()


def sha256(path: Path, progress: Callable[[int], None] | None = None) -> str:
    """Hex digest of the file's content; `progress` is told the bytes of each 4 MiB block."""
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while block := handle.read(1 << 22):
            digest.update(block)
            if progress:
                progress(len(block))
    return digest.hexdigest()
