"""A detector for other runtimes: one file that takes uint8 pictures and gives P(fake), checked before it is kept.

What is exported scores sample pictures in the other runtime; unless every number is that of the detector within 1e-4,
nothing is left behind. The optional libraries are the extra `export`.
"""

import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dftrack import __version__
from dftrack.errors import DetectorError, DftrackError
from dftrack.files import sha256, temporary_folder, write_aside
from dftrack.learning.detector import CLASSES, RESIZE, WEIGHTS, Detector
from dftrack.learning.model import FaceCNN, normalise

Format = Literal["onnx", "safetensors", "torchexport"]
USUAL_NAMES: dict[Format, str] = {"onnx": "detector.onnx", "safetensors": "detector", "torchexport": "detector.pt2"}
TOLERANCE = 1e-4  # in P(fake)
NEEDED = ("onnx", "onnxscript", "onnxruntime")
INPUT, OUTPUT = "pictures", "fake"
BATCHES = (1, 4, 3)  # pictures scored in the check: any number must do


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written."""

    path: Path  # a file, for safetensors a folder
    sha256: str  # of the file, for safetensors of the weights
    bytes: int
    largest_difference: float  # in P(fake), between the other runtime and the detector, on the sample pictures


class Scorer(nn.Module):
    """(N, S, S, 3) uint8 RGB pictures -> (N,) float32 P(fake): the network with its preprocessing inside."""

    def __init__(self, model: FaceCNN) -> None:
        super().__init__()
        self.model = deepcopy(model).to(memory_format=torch.contiguous_format)

    def forward(self, pictures: Tensor) -> Tensor:
        """The pictures' scores."""
        logits = self.model(normalise(pictures))
        return torch.sigmoid(logits[:, 1] - logits[:, 0])


def export(detector: Detector, kind: Format, target: Path | None = None) -> Exported:
    """Write `detector`, on the CPU, for another runtime. target None: a usual name in the working directory.

    Raises DftrackError if a library is missing, DetectorError if the other runtime gives other numbers, StoreError if
    the place cannot be written. Whatever lay there stays until the new file is checked.
    """
    place = target if target is not None else Path(USUAL_NAMES[kind])
    if kind == "safetensors":
        return _as_folder(detector, place)
    if place.is_dir():
        place /= USUAL_NAMES[kind]
    write, score = {"onnx": (_write_onnx, _score_onnx), "torchexport": (_write_program, _score_program)}[kind]
    with write_aside(place) as aside:
        with _quiet():
            write(detector, aside)
            difference = _difference(detector, score(aside))
        digest, size = sha256(aside), aside.stat().st_size
    return Exported(place, digest, size, difference)


def facts(detector: Detector) -> dict[str, str]:
    """What a user of the file has to know, as texts; JSON where it is more than a word."""
    return {
        "classes": json.dumps(CLASSES),
        "output": "P(fake); a picture is called fake from the threshold on",
        "threshold": repr(detector.threshold),
        "temperature": json.dumps(detector.temperature),
        "calibrated": "sigmoid(logit(P(fake)) / temperature); null: not calibrated",
        "image_size": str(detector.image_size),
        "input": f"(N, {detector.image_size}, {detector.image_size}, 3) uint8 RGB, upright, {RESIZE}",
        "settings": json.dumps(dict(detector.settings)),
        "dftrack": __version__,
    }


def sample_pictures(size: int, count: int) -> NDArray[np.uint8]:
    """Pictures of every kind of number, always the same: noise, ramps, black, white: (count, size, size, 3)."""
    random = np.random.default_rng(0)
    ramp = np.broadcast_to(np.linspace(0, 255, size)[:, None, None], (size, size, 3))
    kinds = (random.integers(0, 256, (size, size, 3)), ramp, np.zeros_like(ramp), np.full_like(ramp, 255))
    blends = [kinds[i % 4] if i < 4 else (kinds[0] * (i % 3) + kinds[1]) / 3 for i in range(count)]
    return np.stack(blends).astype(np.uint8)


def _difference(detector: Detector, score: Callable[[NDArray[np.uint8]], NDArray[np.float64]]) -> float:
    """The largest difference from the detector's own scores. Raises DetectorError beyond TOLERANCE."""
    pictures = sample_pictures(detector.image_size, sum(BATCHES))
    parts = np.split(pictures, np.cumsum(BATCHES)[:-1])
    found = np.concatenate([score(part) for part in parts])
    expected = detector.score(pictures)
    if found.shape != expected.shape or not np.all(np.abs(found - expected) <= TOLERANCE):  # NaN is refused, too
        raise DetectorError(
            f"the exported model gives {found.tolist()} where the detector gives {expected.tolist()}",
            "nothing was kept; try another format",
        )
    return float(np.abs(found - expected).max())


def _as_folder(detector: Detector, folder: Path) -> Exported:
    """The detector's own two files, for `Detector.load`."""
    with temporary_folder() as aside:
        detector.save(aside)
        difference = _difference(detector, Detector.load(aside).score)
    detector.save(folder)
    weights = folder / WEIGHTS
    return Exported(folder, sha256(weights), weights.stat().st_size, difference)


def _example(detector: Detector) -> tuple[Tensor]:
    return (torch.from_numpy(sample_pictures(detector.image_size, 3)),)  # 1 would fix the number of pictures at 1


def _write_program(detector: Detector, path: Path) -> None:
    """A torch.export archive; `facts.json` lies inside."""
    program = torch.export.export(
        Scorer(detector.model).eval(), _example(detector), dynamic_shapes=({0: torch.export.Dim(INPUT, min=1)},)
    )
    content = io.BytesIO()
    torch.export.save(program, content, extra_files={"facts.json": json.dumps(facts(detector))})
    path.write_bytes(content.getbuffer())


def _score_program(path: Path) -> Callable[[NDArray[np.uint8]], NDArray[np.float64]]:
    with open(path, "rb") as file:
        program = torch.export.load(io.BytesIO(file.read())).module()

    def score(pictures: NDArray[np.uint8]) -> NDArray[np.float64]:
        with torch.inference_mode():
            scores: NDArray[np.float64] = program(torch.from_numpy(pictures)).double().numpy()
        return scores

    return score


def _write_onnx(detector: Detector, path: Path) -> None:
    """An ONNX file with `facts` as its metadata."""
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise DftrackError(
            f"ONNX needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed",
            "pip install 'dftrack[export]'",
        )
    program = torch.onnx.export(
        Scorer(detector.model).eval(),
        _example(detector),
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim(INPUT, min=1)},),
        input_names=[INPUT],
        output_names=[OUTPUT],
        verbose=False,
    )
    assert program is not None
    program.model.metadata_props.update(facts(detector))
    program.save(str(path))


def _score_onnx(path: Path) -> Callable[[NDArray[np.uint8]], NDArray[np.float64]]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda pictures: session.run([OUTPUT], {INPUT: pictures})[0].astype(np.float64)


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporters talk of what they skip and of what is deprecated inside them."""
    speakers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [speaker.level for speaker in speakers]
    for speaker in speakers:
        speaker.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for speaker, level in zip(speakers, levels, strict=True):
            speaker.setLevel(level)
