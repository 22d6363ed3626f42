"""Where the network looked: Grad-CAM, the pictures worth showing, and what their maps say about the masks.

A map shows where evidence for a class was found, not whether the class is right. How far maps can be trusted: trust.py.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from captum.attr import LayerAttribution, LayerGradCam
from numpy.typing import NDArray
from torch import Tensor, nn

from dftrack.data.cache import Split
from dftrack.data.pictures import decode
from dftrack.data.pixel_file import read_rows
from dftrack.errors import DataError, DftrackError
from dftrack.learning.evaluation import Predictions
from dftrack.learning.figures import PanelRow
from dftrack.learning.metrics import DEFAULT_THRESHOLD, FAKE, REAL
from dftrack.learning.model import FaceCNN, normalise
from dftrack.learning.scores import evaluating, full_float32

FLAT = 1e-3  # a map whose range is below this share of its peak has no place to point at
SILENT = 1e-9  # a peak below this, in logits, is the arithmetic's own noise
BATCH_SIZE = 32  # images; activations and gradients of a batch are held at once

Kind = Literal["caught fake", "passed real", "missed fake", "false alarm"]
KINDS: tuple[Kind, ...] = ("caught fake", "passed real", "missed fake", "false alarm")


class ExplanationError(DftrackError):
    """A heat map that cannot be made, or would not mean what it is taken for."""


@dataclass(frozen=True, slots=True, eq=False)
class HeatMaps:
    """Grad-CAM of B pictures. A flat map points nowhere: it is all zero here, and must be shown as "no evidence"."""

    heat: NDArray[np.float32]  # (B, S, S) in [0, 1]: 1 = the strongest place of this picture, 0 = none or against
    flat: NDArray[np.bool_]  # (B,) the map is constant or nothing speaks for the class anywhere
    peak: NDArray[np.float32]  # (B,) what 1 stands for, in logits: pictures can be compared by this, not by their heat
    targets: NDArray[np.int64]  # (B,) the class explained


def grad_cam(model: nn.Module, images: Tensor, target: int | None = None) -> NDArray[np.float32]:
    """The heat of `heat_maps`: (B, 3, S, S) normalised pictures -> (B, S, S) float32 in [0, 1]; a flat map is all 0."""
    return heat_maps(model, images, target).heat


def heat_maps(
    model: nn.Module, images: Tensor, target: int | None = None, *, layer: nn.Conv2d | None = None
) -> HeatMaps:
    """Grad-CAM for the class `target` (0 real, 1 fake; None: for each picture the class it is given).

    images: (B, 3, S, S) normalised, on the model's device; any B, done in batches. The class's logit before the
    softmax is explained, at the output of `layer` (None: the last convolution, the only one accepted): the gradient is
    averaged over each channel's map, the channels are summed with these weights, what speaks against the class is cut
    off (ReLU), and the map is enlarged to (S, S), bilinear. Each map is then divided by its own peak.
    The model keeps its mode, its gradients and its weights. Raises ExplanationError for another layer, a class that is
    none, and maps that are not finite. Source: Selvaraju et al. 2017, through Captum's LayerGradCam.
    """
    if target not in (None, REAL, FAKE):
        raise ExplanationError(f"there is no class {target} to explain: 0 is real, 1 is fake")
    layer = check_last_convolution(model, layer)
    if not len(images):
        none = np.empty(0, np.float32)
        return HeatMaps(np.empty((0, *images.shape[2:]), np.float32), none.astype(bool), none, none.astype(np.int64))
    raws, targets = [], []
    explainer = LayerGradCam(model, layer)
    with torch.inference_mode(False), torch.enable_grad(), evaluating(model), full_float32():
        for batch in torch.split(images, BATCH_SIZE):
            batch = batch.detach().clone()  # inference tensors cannot be differentiated, their copies can
            wanted = (
                model(batch).argmax(dim=1) if target is None else torch.full((len(batch),), target).to(batch.device)
            )
            small = explainer.attribute(batch, wanted, relu_attributions=True).detach()  # (B, 1, h, w)
            large = LayerAttribution.interpolate(small, tuple(batch.shape[2:]), "bilinear")
            raws.append(large[:, 0].float().cpu().numpy())
            targets.append(wanted.cpu().numpy())
    return _normalise(np.concatenate(raws), np.concatenate(targets))


def _normalise(raw: NDArray[np.float32], targets: NDArray[np.int64]) -> HeatMaps:
    """(B, S, S) maps of at least 0, in logits -> HeatMaps."""
    if not np.all(np.isfinite(raw)):
        raise ExplanationError("the network's gradients are not finite: there is nothing to explain")
    peak = raw.max(axis=(1, 2))
    flat = (peak < SILENT) | (peak - raw.min(axis=(1, 2)) < FLAT * peak)
    heat = np.where(flat[:, None, None], 0, raw / np.where(flat, 1, peak)[:, None, None]).astype(np.float32)
    return HeatMaps(heat=np.minimum(heat, 1), flat=flat, peak=peak, targets=targets)


def last_convolution(model: nn.Module) -> tuple[str, nn.Conv2d]:
    """Name and module of the last Conv2d in the model's order. Raises ExplanationError if there is none."""
    found = [(name, part) for name, part in model.named_modules() if isinstance(part, nn.Conv2d)]
    if not found:
        raise ExplanationError("the model has no convolution, so Grad-CAM has no map to explain")
    return found[-1]


def check_last_convolution(model: nn.Module, layer: nn.Conv2d | None = None) -> nn.Conv2d:
    """`layer`, or the model's `conv3`, if it is the model's last convolution. Raises ExplanationError otherwise.

    An earlier layer gives a finer map of edges that looks convincing and explains little of the decision.
    """
    name, last = last_convolution(model)
    chosen = layer if layer is not None else getattr(model, "conv3", last)
    if chosen is not last:
        named = next((other for other, part in model.named_modules() if part is chosen), "a layer outside the model")
        raise ExplanationError(f"Grad-CAM needs the last convolution, {name}; got {named}")
    return last


@dataclass(frozen=True, slots=True)
class Example:
    """A picture worth looking at."""

    kind: Kind
    index: int  # its place in the predictions
    name: str
    label: int  # 0 real, 1 fake
    score: float  # P(fake)


def choose_examples(
    predictions: Predictions,
    per_kind: int = 2,
    threshold: float = DEFAULT_THRESHOLD,
    kinds: Sequence[Kind] = KINDS,
) -> list[Example]:
    """The surest hits and the worst misses of both classes: up to `per_kind` of each of `kinds`, in that order.

    Surest and worst alike are farthest from the threshold on their side; equal scores go by name, so that the choice
    depends on nothing else. Fewer where there are fewer; pictures whose score is not finite are never chosen.
    """
    called_fake = predictions.scores >= threshold
    fake = predictions.labels == FAKE
    of_kind: dict[Kind, NDArray[np.bool_]] = {
        "caught fake": fake & called_fake,
        "passed real": ~fake & ~called_fake,
        "missed fake": fake & ~called_fake,
        "false alarm": ~fake & called_fake,
    }
    chosen = []
    for kind in kinds:
        sign = -1 if kind in ("caught fake", "false alarm") else 1  # high scores first, or low ones
        places = np.flatnonzero(of_kind[kind] & np.isfinite(predictions.scores)).tolist()
        places.sort(key=lambda i: (sign * predictions.scores[i], predictions.names[i]))
        chosen += [
            Example(kind, i, predictions.names[i], int(predictions.labels[i]), float(predictions.scores[i]))
            for i in places[:per_kind]
        ]
    return chosen


def gradcam_rows(
    model: FaceCNN,
    split: Split,
    predictions: Predictions,
    *,
    per_kind: int = 2,
    threshold: float = DEFAULT_THRESHOLD,
    kinds: Sequence[Kind] = KINDS,
) -> list[PanelRow]:
    """The rows of a Grad-CAM panel for `choose_examples`: each picture with the places that speak for "fake".

    One question for all of them, hits and misses: a real is called real for want of such places more than for others.

    `predictions` are the model's on `split`, row by row. Known masks are read and laid over.
    """
    if predictions.names != split.names:
        raise ExplanationError(f"the predictions on {predictions.split} are not those of the pictures of {split.name}")
    examples = choose_examples(predictions, per_kind, threshold, kinds)
    if not examples:
        return []
    photos = read_rows(split.pixels, [example.index for example in examples])
    maps = maps_of(model, photos, FAKE)
    rows = []
    for place, example in enumerate(examples):
        mask, known = split.masks[example.index], None
        if mask and example.label == FAKE:
            with contextlib.suppress(DataError):  # a mask that cannot be read: the picture is shown without
                known = read_mask(mask, photos.shape[1])
        row = PanelRow(
            photo=photos[place], heat=maps.heat[place], flat=bool(maps.flat[place]), target=FAKE, mask=known,
            name=example.name, label=example.label, score=example.score, threshold=threshold,
        )  # fmt: skip
        rows.append(row)
    return rows


def gradcam_row(
    model: FaceCNN,
    pixels: NDArray[np.uint8],
    *,
    name: str,
    score: float | None,
    threshold: float = DEFAULT_THRESHOLD,
) -> PanelRow:
    """One row of a Grad-CAM panel for a picture whose class is not known, with the places that speak for "fake".

    pixels: (S, S, 3) uint8 RGB, as scored. score: P(fake), from the detector; None (unreadable) is refused.
    """
    if score is None:
        raise ExplanationError(f"{name} has no score, so there is no decision to explain")
    maps = maps_of(model, np.array(pixels[None]), FAKE)
    return PanelRow(
        photo=pixels, heat=maps.heat[0], flat=bool(maps.flat[0]), target=FAKE,
        name=name, label=None, score=score, threshold=threshold,
    )  # fmt: skip


def maps_of(model: FaceCNN, pixels: NDArray[np.uint8], target: int) -> HeatMaps:
    """`heat_maps` of (n, S, S, 3) uint8 pictures for the class `target`."""
    return heat_maps(model, normalise(torch.from_numpy(pixels).to(next(model.parameters()).device)), target)


def read_mask(path: Path, size: int) -> NDArray[np.bool_]:
    """Where the forgery lies as the network sees it: (size, size), True where the mask is bright; clear is not."""
    bright: NDArray[np.bool_] = decode(path, size, ground="black").mean(axis=2) > 127
    return bright
