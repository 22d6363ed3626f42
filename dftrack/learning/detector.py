"""Weights, preprocessing, threshold and settings in one folder: judges image files as training and tests did.

A saved detector is two files: `model.safetensors` (the weights) and `detector.json` (everything else, with the sha256
of the weights and of itself). Nothing is unpickled. Imports stay light: this is what a scoring service loads.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray

from dftrack.config import Config, Value, vary
from dftrack.data.pictures import decode
from dftrack.data.upright import PictureError
from dftrack.errors import DetectorError, DftrackError, StoreError
from dftrack.files import sha256, sync_folder, usual_mode, write_aside, write_text
from dftrack.learning.model import MEAN, STD, FaceCNN, build_model
from dftrack.learning.scores import BATCH_SIZE, score_pixels
from dftrack.learning.temperature import apply_temperature

FORMAT_VERSION = 1
WEIGHTS, CARD = "model.safetensors", "detector.json"
CLASSES = ("real", "fake")
RESIZE = "squeeze, bilinear"  # how dftrack.data.pictures.decode makes the square; never cut
DECODERS = min(8, os.cpu_count() or 1)  # threads; Pillow decodes without holding Python's lock


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the detector says of one picture; `score` is None and `verdict` empty if it could not be read."""

    name: str  # the path as given, or "picture N" (from 1) for bytes
    score: float | None  # P(fake) in (0, 1)
    verdict: Literal["real", "fake", ""]
    status: Literal["ok", "unreadable", "no face"]  # no face: in a whole scene that was searched for some
    reason: str  # why it has no score, else ""
    probability: float | None = None  # calibrated P(fake); None if unreadable or the detector is not calibrated


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Detector:
    """A trained network with all that is needed to use it again exactly. `model` lies on `device`."""

    model: FaceCNN
    settings: Mapping[str, Value]  # dotted name -> value, of the experiment that trained it
    threshold: float = 0.5  # P(fake) from which on a picture is called fake
    temperature: float | None = None  # divides the logits so that P(fake) means what it says; None: not calibrated
    device: str = "cpu"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.threshold) and 0 <= self.threshold <= 1):
            raise DetectorError(f"the threshold of a detector must be in [0, 1], got {self.threshold}")
        if self.temperature is not None and not (math.isfinite(self.temperature) and self.temperature > 0):
            raise DetectorError(f"the temperature of a detector must be positive, got {self.temperature}")

    @property
    def image_size(self) -> int:
        """Side in pixels of the square that a picture becomes."""
        return self.model.image_size

    def judge(self, sources: Iterable[Path | bytes], batch_size: int = BATCH_SIZE) -> Iterator[Verdict]:
        """One Verdict per source, in order, while they are read: any number of sources, two batches in memory.

        The next batch is decoded on other threads while the network judges this one.
        A source is a path or the content of an image file. One that cannot be read gets a Verdict that says why.
        """
        numbered = enumerate(sources, start=1)
        pool = ThreadPoolExecutor(DECODERS, thread_name_prefix="dftrack-decode")

        def begin() -> list[tuple[str, Future[NDArray[np.uint8] | str]]]:
            return [
                (str(source) if isinstance(source, Path) else f"picture {number}", pool.submit(self._read, source))
                for number, source in islice(numbered, batch_size)
            ]

        try:
            batch = begin()
            while batch:
                following = begin()
                yield from self._judge([name for name, _ in batch], [picture.result() for _, picture in batch])
                batch = following
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _judge(self, names: Sequence[str], read: Sequence[NDArray[np.uint8] | str]) -> Iterator[Verdict]:
        """The verdicts of one batch: pictures (S, S, 3), or the reasons why there is none."""
        pictures = [picture for picture in read if not isinstance(picture, str)]
        scores: Iterator[float] = iter(self.score(np.stack(pictures)).tolist() if pictures else [])
        for name, picture in zip(names, read, strict=True):
            if isinstance(picture, str):
                yield Verdict(name, None, "", "unreadable", picture)
            else:
                score = next(scores)
                word: Literal["real", "fake"] = "fake" if score >= self.threshold else "real"
                yield Verdict(name, score, word, "ok", "", self.calibrated(score))

    def score(self, pixels: NDArray[np.uint8], batch_size: int = BATCH_SIZE) -> NDArray[np.float64]:
        """P(fake) of decoded pictures: (n, S, S, 3) uint8 RGB with S the detector's size -> (n,) in (0, 1).

        Raises DetectorError if the network gives something that is not a number.
        """
        scores = score_pixels(self.model, pixels, batch_size=batch_size, device=self.device)
        if not np.all(np.isfinite(scores)):
            raise DetectorError(f"the network gives no finite score for {np.sum(~np.isfinite(scores))} pictures")
        return scores

    def calibrated(self, score: float) -> float | None:
        """What a score in (0, 1) is worth as a probability; None if the detector was never calibrated."""
        return None if self.temperature is None else float(apply_temperature(score, self.temperature))

    def _read(self, source: Path | bytes) -> NDArray[np.uint8] | str:
        """The picture (S, S, 3), or the reason why there is none."""
        try:
            return decode(source, self.image_size)
        except PictureError as error:
            return error.message

    def save(self, folder: Path) -> None:
        """Write `model.safetensors` and `detector.json` into `folder`, made if missing.

        An older detector there is first made unloadable, then replaced: a kill in between leaves none, never a mixture.
        Raises StoreError if the folder cannot be written, DetectorError if a weight is not finite.
        """
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.model.state_dict().items()}
        _check_finite(state)
        try:
            if (folder / CARD).exists():
                (folder / CARD).unlink()
                sync_folder(folder)
        except OSError as error:
            raise StoreError(f"cannot replace {folder / CARD}: {error.strerror}", "may you write there?") from error
        with write_aside(folder / WEIGHTS) as aside:
            try:
                with usual_mode(aside):
                    safetensors.torch.save_file(state, aside)
            except safetensors.SafetensorError as error:  # a full disk comes as this
                raise StoreError(f"cannot write {folder / WEIGHTS}: {error}", "is there space?") from error
            weights = sha256(aside)
        card: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            "classes": list(CLASSES),
            "preprocessing": self._preprocessing(),
            "threshold": self.threshold,
            "temperature": self.temperature,
            "settings": dict(self.settings),
            "weights_sha256": weights,
        }
        write_text(folder / CARD, json.dumps(card | {"sha256": _digest(card)}, indent=2, allow_nan=False) + "\n")

    def _preprocessing(self) -> dict[str, Any]:
        return {"image_size": self.image_size, "resize": RESIZE, "mean": list(MEAN), "std": list(STD)}

    @classmethod
    def load(cls, folder: Path, device: str = "cpu") -> "Detector":
        """The detector saved in `folder`, on `device`, ready to judge.

        Both files are checked against their sha256 before a weight is looked at; the bytes checked are the bytes used.
        Raises DetectorError if anything is missing, changed, unknown or not finite.
        """
        card = _read_card(folder / CARD)
        content = _read_file(folder / WEIGHTS)
        if hashlib.sha256(content).hexdigest() != card["weights_sha256"]:
            raise DetectorError(
                f"{folder / WEIGHTS} is not the file that was saved: its sha256 differs from the one in {CARD}",
                "copy the detector again from the run that trained it",
            )
        try:
            state = safetensors.torch.load(content)
        except safetensors.SafetensorError as error:
            raise DetectorError(f"{folder / WEIGHTS} does not hold weights: {error}") from error
        del content
        model = _fill(card, state, folder)
        model = model.to(device).eval()
        detector = cls(
            model=model,
            settings=card["settings"],
            threshold=float(card["threshold"]),
            temperature=card.get("temperature"),  # cards from before there was one have none
            device=device,
        )
        if card["preprocessing"] != detector._preprocessing():
            raise DetectorError(f"{folder / CARD} asks for another preprocessing than this version of dftrack does")
        return detector


_FIELDS: Mapping[str, type | tuple[type, ...]] = {
    "classes": list,
    "preprocessing": dict,
    "threshold": (int, float),
    "settings": dict,
    "weights_sha256": str,
}


def _read_card(path: Path) -> dict[str, Any]:
    """The content of detector.json, complete and unchanged. Raises DetectorError otherwise."""
    try:
        card: dict[str, Any] = json.loads(_read_file(path))
    except ValueError as error:  # broken JSON or broken UTF-8
        raise DetectorError(f"{path} is not readable as JSON: {error}") from error
    version = card.get("format_version") if isinstance(card, dict) else None
    if version is None:
        raise DetectorError(f"{path} is not the description of a detector: it has no format_version")
    if version != FORMAT_VERSION:
        raise DetectorError(
            f"{path} has the format {version!r}, this version of dftrack reads {FORMAT_VERSION}",
            "it was written by another version of dftrack: use that one",
        )
    for field, kind in {**_FIELDS, "sha256": str}.items():
        if not isinstance(card.get(field), kind) or isinstance(card[field], bool):
            raise DetectorError(f"{path}: the field {field!r} is missing or of the wrong kind")
    temperature = card.get("temperature")
    if temperature is not None and (isinstance(temperature, bool) or not isinstance(temperature, int | float)):
        raise DetectorError(f"{path}: the field 'temperature' must be a number or null, got {temperature!r}")
    if card.pop("sha256") != _digest(card):
        raise DetectorError(f"{path} is not what was saved: its sha256 differs", "copy the detector again from its run")
    if card["classes"] != list(CLASSES):
        raise DetectorError(f"{path}: the classes must be {list(CLASSES)}, got {card['classes']}")
    return card


def _fill(card: Mapping[str, Any], state: Mapping[str, torch.Tensor], folder: Path) -> FaceCNN:
    """The network that `card` describes with the weights `state`. Raises DetectorError unless they fit exactly."""
    size = card["preprocessing"].get("image_size")
    if not isinstance(size, int):
        raise DetectorError(f"{folder / CARD}: preprocessing.image_size must be a whole number, got {size!r}")
    shape = {name: value for name, value in card["settings"].items() if name.startswith("model.")}
    try:
        with torch.device("meta"):  # no memory, no random numbers: every weight comes from the file
            model = build_model(vary(Config(), {**shape, "data.image_size": size}).model, size)
    except DftrackError as error:
        raise DetectorError(f"{folder / CARD} describes no network: {error.message}", error.hint) from error
    wanted = {name: (tensor.shape, tensor.dtype) for name, tensor in model.state_dict().items()}
    for name in sorted(wanted.keys() | state.keys()):
        found = (state[name].shape, state[name].dtype) if name in state else None
        if found != wanted.get(name):
            raise DetectorError(f"{folder / WEIGHTS}: {name} is {_shape(found)}, should be {_shape(wanted.get(name))}")
    _check_finite(state)
    model.load_state_dict(state, assign=True)
    return model.to(memory_format=torch.channels_last)


def _shape(found: tuple[torch.Size, torch.dtype] | None) -> str:
    return f"{tuple(found[0])} {str(found[1]).removeprefix('torch.')}" if found else "absent"


def _check_finite(state: Mapping[str, torch.Tensor]) -> None:
    for name, tensor in state.items():
        if not bool(torch.isfinite(tensor).all()):
            raise DetectorError(f"the weights {name} are not all finite: such a network cannot judge")


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DetectorError(
            f"cannot read {path}: {error.strerror}", f"a detector is a folder with {WEIGHTS} and {CARD}"
        ) from error


def _digest(card: Mapping[str, Any]) -> str:
    """sha256 of the card's content, whatever its layout."""
    return hashlib.sha256(json.dumps(card, sort_keys=True).encode()).hexdigest()
