"""Whether the files of a logged model are whole, and harmless to load. They are read, never run."""

import pickletools
from pathlib import Path

from dftrack import logged_model, registered
from dftrack.errors import DetectorError, StoreError
from dftrack.learning.detector import Detector

LOADER = "mlflow.pyfunc.loaders.code_model"  # of a model that is code and plain files; any other unpickles something
PICKLES = frozenset({".pkl", ".pickle", ".joblib", ".pt", ".pth", ".ckpt", ".bin", ".npy", ".npz", ".h5", ".keras"})
PLAIN = frozenset({".py", ".json", ".txt", ".toml", ".yaml", ".yml", ".md", ".typed", ".csv", ".html", ".safetensors"})
MAGIC = (b"PK\x03\x04", b"\x1f\x8b", *(b"\x80" + bytes([protocol]) for protocol in range(1, 6)))  # ZIP, gzip, pickle
CALLING = frozenset({"GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "REDUCE", "BUILD", "NEWOBJ"})  # opcodes that can run code
NAMELESS = frozenset({"MLmodel", "registered_model_meta"})


def file_problems(folder: Path, digest: str | None) -> list[str]:
    """What speaks against loading the logged model in `folder`; empty if nothing does. Nothing of it is run.

    digest: of all its files when it was logged, None if that was not kept; the weights and their card are then still
    held against the card's own hashes by `Detector.load`.
    """
    if not folder.is_dir():
        return [f"the model's files are gone: {folder}"]
    problems = [
        said
        for file in sorted(folder.rglob("*"))
        if (said := _file_problem(file, file.relative_to(folder).as_posix())) is not None
    ]
    try:
        made = registered.how_made(folder)
    except StoreError as error:
        return [*problems, error.message]
    if made.loader != LOADER or not made.code or made.other_flavours:
        others = f", and as {', '.join(made.other_flavours)}" if made.other_flavours else ""
        problems.append(f"it is not loaded from code and plain files, but by {made.loader or 'nothing'}{others}")
    problems += _damage(folder)
    if not problems and digest is not None and logged_model.content_digest(folder) != digest:
        problems.append("its files are not those that were logged: their common sha256 differs")
    return problems


def _file_problem(file: Path, name: str) -> str | None:
    if file.is_symlink():
        return f"{name} is a link"
    if file.is_dir() or "__pycache__/" in name:
        return None
    if file.suffix.lower() in PICKLES or _is_pickled(file):
        return f"{name} holds, or may hold, a pickle: loading it could run anything"
    if file.suffix.lower() not in PLAIN and file.name not in NAMELESS:
        return f"{name} is no file that a detector has"
    return None


def _is_pickled(file: Path) -> bool:
    """A pickle, also one in a ZIP, as torch writes it; of those without a magic number, one that calls something."""
    if file.suffix == ".safetensors":  # its first bytes are a length, which may look like a pickle's; see `_damage`
        return False
    content = file.read_bytes()
    if content.startswith(MAGIC):
        return True
    try:
        names = {opcode.name for opcode, _, _ in pickletools.genops(content)}
    except Exception:  # it is something else, as nearly every text
        return False
    return bool(names & CALLING)


def _damage(folder: Path) -> list[str]:
    try:
        Detector.load(folder / logged_model.FOLDER)
    except DetectorError as error:
        return [error.message]
    return []
