"""The code that is logged with a model: MLflow runs it where the model is loaded or served.

Input: a list of texts, each a picture as base64 (also as a `data:` URL) or the path of a picture file.
Output: a table with a row per picture: score in [0, 1] (how surely fake), verdict, probability (the calibrated P(fake);
NaN where the model was not calibrated), status, reason.
The weights are safetensors and JSON, checked against their hash; nothing is unpickled.
"""

import base64
import binascii
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

from dftrack.learning.detector import Detector

BATCH = 32  # pictures scored at once
LONGEST_PATH = 4096  # characters


class ScoringModel(PythonModel):
    """A detector behind MLflow's pyfunc interface."""

    def load_context(self, context: Any) -> None:
        """Load the weights that were logged. Raises if they differ from their hash."""
        self.detector = Detector.load(Path(context.artifacts["detector.json"]).parent)

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Score every text of `model_input`; what cannot be read gets status "unreadable" and a score of NaN."""
        verdicts = self.detector.judge([_source(text) for text in _texts(model_input)], batch_size=BATCH)
        rows = [
            (
                math.nan if verdict.score is None else verdict.score,
                verdict.verdict,
                math.nan if verdict.probability is None else verdict.probability,
                verdict.status,
                verdict.reason,
            )
            for verdict in verdicts
        ]
        return pd.DataFrame(rows, columns=["score", "verdict", "probability", "status", "reason"])


def _texts(model_input: Any) -> Iterable[str]:
    """The texts, from any of the forms in which MLflow hands them over."""
    if isinstance(model_input, str):
        return [model_input]
    if isinstance(model_input, pd.DataFrame):
        return [str(text) for text in model_input.iloc[:, 0]]
    return [str(text) for text in model_input]


def _source(text: str) -> Path | bytes:
    """A path if there is such a file (base64 of a JPEG starts with a slash, too), else the bytes that base64 spells."""
    if text.startswith("data:"):
        text = text.partition(",")[2]
    elif len(text) <= LONGEST_PATH and "\0" not in text and Path(text).is_file():
        return Path(text)
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        return Path(text[:LONGEST_PATH].replace("\0", "")) if len(text) <= LONGEST_PATH else b""


set_model(ScoringModel())
