"""Which pictures a run used, as the data set input that the MLflow page shows beside it.

A part of the door to MLflow: only `recorder` imports it, after `speaking` has set the switches that MLflow reads.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow.data.dataset_source import DatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import DatasetInput, InputTag


def describe(source: str, digest: str, counts: Mapping[str, Mapping[str, int]], splits: Sequence[str]) -> DatasetInput:
    """source: "sample" or a folder's path; counts: split -> class -> pictures; splits: those opened, all if empty."""
    described = _Pictures(_Source(source), Path(source).name or source, digest, counts)
    return DatasetInput(described._to_mlflow_entity(), [InputTag("mlflow.data.context", ", ".join(splits or counts))])


class _Source(DatasetSource):
    """Where the pictures come from: "sample", or a folder's path. Nothing can be loaded through MLflow."""

    def __init__(self, name: str) -> None:
        self._name = name

    @staticmethod
    def _get_source_type() -> str:
        return "dftrack"

    def load(self) -> Any:
        raise NotImplementedError("dftrack reads its own pictures")

    @staticmethod
    def _can_resolve(raw_source: Any) -> bool:
        return False

    @classmethod
    def _resolve(cls, raw_source: Any) -> "_Source":
        raise NotImplementedError("dftrack reads its own pictures")

    def to_dict(self) -> dict[str, Any]:
        return {"uri": self._name}

    @classmethod
    def from_dict(cls, source_dict: dict[Any, Any]) -> "_Source":
        return cls(source_dict["uri"])


class _Pictures(MetaDataset):
    """A data set of pictures, described by its digest and by how many of each class every split holds."""

    def __init__(self, source: _Source, name: str, digest: str, counts: Mapping[str, Mapping[str, int]]) -> None:
        self._counts = counts
        super().__init__(source, name=name, digest=digest)

    @property
    def profile(self) -> dict[str, Any]:
        """What the page shows of it: the number of pictures, in all and by split and class."""
        return {"pictures": sum(sum(classes.values()) for classes in self._counts.values())} | {
            split: dict(classes) for split, classes in self._counts.items()
        }

    def to_dict(self) -> dict[str, str]:
        """Every field as text, as MLflow stores it."""
        return {**super().to_dict(), "profile": json.dumps(self.profile)}
