"""Where the pictures come from: the word a user gives, as a list of pictures."""

import dataclasses
from pathlib import Path

from dftrack.config import BASELINE_DATA
from dftrack.data.folder import Listing, Progress, read_folder
from dftrack.data.sample import SIZE, make_sample


def find_pictures(source: str, home: Path, progress: Progress | None = None) -> Listing:
    """The pictures of `source`: "sample" (made below `home`/data at first use), a folder, or a manifest.csv.

    (A folder of your own that is called sample is ./sample.) Raises DataError if nothing readable is there, StoreError
    if the sample cannot be written.
    """
    if source == BASELINE_DATA:
        listing = read_folder(make_sample(home, progress))
        return dataclasses.replace(listing, source=BASELINE_DATA, usual_size=SIZE)
    return dataclasses.replace(read_folder(Path(source).expanduser()), source=source)
