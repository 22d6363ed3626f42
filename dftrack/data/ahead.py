"""The sample, made and decoded by another process while this one is busy with something else, such as imports."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

from dftrack.config import DataConfig
from dftrack.data.folder import MANIFEST
from dftrack.data.sample import SIZE, make_sample, sample_folder

CODE = f"from {__name__} import prepare; prepare()"


@contextmanager
def sample_ahead(config: DataConfig, home: Path) -> Iterator[None]:
    """Let another process do what `open_data` will find done: make the sample below `home`, and decode it.

    What it cannot do is not told: `open_data` waits for it and does what is left. When the block ends it is gone.
    Nothing is begun where the sample lies already. The audit is not done ahead: the pictures are made when the imports
    are, and then this process has time of its own.
    """
    if (sample_folder(home) / MANIFEST).is_file():
        yield
        return
    helper = subprocess.Popen(
        [sys.executable, "-P", "-c", CODE, json.dumps(asdict(config)), str(home)],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield
    finally:
        helper.terminate()
        helper.wait()


def prepare() -> None:
    """What the other process does. One core is left to who waits; more threads would not be faster on small pictures.

    Pictures that are to be larger than they are stored are left to `open_data`: that is work for all cores.
    """
    signal.signal(signal.SIGTERM, _end)
    with suppress(AttributeError, OSError):  # not on every system, nor everywhere allowed
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    config, home = DataConfig(**json.loads(sys.argv[1])), Path(sys.argv[2])
    make_sample(home)

    from dftrack.data.cache import open_listing  # now: what is made must not wait for imports
    from dftrack.data.sources import find_pictures

    if (config.image_size or SIZE) <= SIZE:
        open_listing(find_pictures(config.source, home), config.image_size or SIZE, home)


def _end(*_: object) -> NoReturn:
    """As on Ctrl-C, so that what was begun is cleaned up, undisturbed by a second request."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(1)
