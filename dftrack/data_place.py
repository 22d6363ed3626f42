"""Where the pictures of a run lie, wherever the command that asks was started."""

import os
from pathlib import Path

from dftrack.config import BASELINE_DATA
from dftrack.tracking import RunRecord

PATH_TAG = "dftrack.data_path"  # absolute: data.source, as the user gave it, may be relative to where it was given


def place_tag(source: str) -> dict[str, str]:
    """The tag that keeps where `source` lies; none for the data set that is made on demand."""
    return {} if source == BASELINE_DATA else {PATH_TAG: os.path.abspath(Path(source).expanduser())}


def data_source_of(record: RunRecord) -> str:
    """What to open to see the pictures of a run again: the source as it was given if it still means that place, else
    the place itself if it is there, else the source as it was given (the pictures may have been moved with the store).

    Nothing is read: whether they are the same pictures is for the digest to say.
    """
    source, place = record.settings.get("data.source", BASELINE_DATA), record.tags.get(PATH_TAG, "")
    if not place or place_tag(source).get(PATH_TAG) == place or not Path(place).exists():
        return source
    return place
