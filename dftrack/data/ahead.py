"""The sample, made and decoded by another process while this one is busy with something else, such as imports."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from dftrack.config import DataConfig
from dftrack.data.folder import MANIFEST
from dftrack.data.sample import sample_folder

# One core is left to who waits. More threads would not be faster: on so small pictures they wait for each other.
# On SIGTERM it ends as on Ctrl-C, so that what it began is cleaned up.
CODE = """
import json, os, pathlib, signal, sys
from dftrack.config import DataConfig
from dftrack.data.cache import open_listing
from dftrack.data.sources import find_pictures
signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
asked, home = DataConfig(**json.loads(sys.argv[1])), pathlib.Path(sys.argv[2])
listing = find_pictures(asked.source, home)
open_listing(listing, asked.image_size or listing.usual_size, home)
"""


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
