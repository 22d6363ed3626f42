"""What every test may ask for: a store of its own, made in a moment as a copy of one that was migrated once.

Property tests try the same examples in every run, so that a red run is the fault of a change; new examples are sought
with `--hypothesis-profile default`.
"""

import gc
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("same", derandomize=True)
settings.load_profile("same")
gc.disable()  # while the tests are imported


def pytest_collection_finish() -> None:
    """What imports made stays to the end: looking through it for rubbish again and again took a tenth of the time."""
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test writes into a store or server that the person who runs it uses."""
    for name in [name for name in os.environ if name.startswith("DFTRACK_")]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="session")
def template_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store nobody writes into. Its schema takes 2 to 8 s to make: once for all test processes."""
    from dftrack.tracking import prepare_store

    own = os.environ.pop("MLFLOW_TRACKING_URI", None)
    try:
        base = tmp_path_factory.getbasetemp()
        folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "template" / "store"
        prepare_store(folder)
        return folder
    finally:
        if own is not None:
            os.environ["MLFLOW_TRACKING_URI"] = own


@pytest.fixture
def store(template_store: Path, tmp_path: Path) -> Iterator[Path]:
    """A fresh, empty store of this test's own."""
    folder = tmp_path / "store"
    folder.mkdir()
    (folder / "artifacts").mkdir()
    shutil.copy2(template_store / "mlflow.db", folder / "mlflow.db")
    yield folder
