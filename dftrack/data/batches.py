"""Batches of training images, drawn so that (seed, epoch, sample) alone decides what is in them.

No generator runs along: any batch of any epoch can be made again, which is what exact resume stands on.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dftrack.config import Augmentation
from dftrack.data.cache import Split
from dftrack.data.pixel_file import read_rows

DRAWS: dict[Augmentation, int] = {"none": 0, "flip": 1, "flip-color": 3}  # random numbers a picture needs
RESIDENT_SHARE = 0.5  # of a card's free memory that the pixels may take

IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Batch:
    """One optimizer step's worth: `pixels` (B, S, S, 3) uint8, or float32 in 0..255 when augmented; `labels` (B,)."""

    pixels: Tensor
    labels: Tensor


class Batches:
    """The training images of a split, in shuffled batches on a device."""

    def __init__(
        self, split: Split, *, batch_size: int, seed: int, augmentation: Augmentation = "none", device: str = "cpu"
    ) -> None:
        self.images = len(split.labels)
        self.batch_size = batch_size
        self.seed = seed
        self.augmentation = augmentation
        self.device = device
        self._pixels = split.pixels
        self._resident = _on_card(split.pixels, device)
        self._labels = torch.from_numpy(np.array(split.labels)).to(device)

    def __len__(self) -> int:
        """Steps per epoch; the last batch may be smaller."""
        return -(-self.images // self.batch_size)

    def order(self, epoch: int) -> IntArray:
        """The order of the images in `epoch` (from 1): (n,) positions in the split."""
        return np.random.default_rng([self.seed, epoch]).permutation(self.images)

    def labels_of(self, epoch: int) -> Tensor:
        """The labels in the order of `epoch`: (n,) int64 on the device."""
        return self._labels[self._sent(self.order(epoch))]

    def epoch(self, epoch: int, *, skip: int = 0) -> Iterator[Batch]:
        """The batches of `epoch`, without its first `skip`. On a card nothing waits for it between two of them."""
        order = self.order(epoch)
        places = self._sent(order)  # once, as the draws: sending a little in every step would be waiting in every step
        draws = [
            self._sent(keyed_uniform(self.seed, epoch, order, stream).astype(np.float32)).view(-1, 1, 1, 1)
            for stream in range(DRAWS[self.augmentation])
        ]  # each (n, 1, 1, 1) in [0, 1)
        for step in range(skip, len(self)):
            part = slice(step * self.batch_size, (step + 1) * self.batch_size)
            pixels = self._gather(order[part], places[part])
            yield Batch(_augmented(pixels, [drawn[part] for drawn in draws]), self._labels[places[part]])

    def _sent(self, values: NDArray[Any]) -> Tensor:
        return torch.from_numpy(values).to(self.device)

    def _gather(self, chosen: IntArray, places: Tensor) -> Tensor:
        if self._resident is not None:
            return self._resident[places]
        rows = torch.from_numpy(read_rows(self._pixels, chosen))
        return rows.pin_memory().to(self.device, non_blocking=True) if self.device == "cuda" else rows


def _augmented(pixels: Tensor, draws: Sequence[Tensor]) -> Tensor:
    """(B, S, S, 3) uint8, mirrored by the first of `draws`, and as float32 in changed light by the others, if any."""
    if not draws:
        return pixels
    pixels = torch.where(draws[0] < 0.5, pixels.flip(2), pixels)
    if len(draws) == 1:
        return pixels
    values = pixels.float()
    mean = values.mean(dim=(1, 2, 3), keepdim=True)
    contrast, brightness = (0.8 + 0.4 * drawn for drawn in draws[1:])
    return ((values - mean) * contrast + mean * brightness).clamp_(0, 255)


def keyed_uniform(seed: int, epoch: int, samples: IntArray, stream: int) -> NDArray[np.float64]:
    """(n,) numbers in [0, 1), each a function of (seed, epoch, sample, stream) alone.

    SplitMix64 (Steele, Lea and Flood 2014) over the four words, one after the other.
    """
    state = np.full(samples.shape, seed, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for word in (np.uint64(epoch), samples.astype(np.uint64), np.uint64(stream)):
            state = (state ^ word) + np.uint64(0x9E3779B97F4A7C15)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _on_card(pixels: NDArray[np.uint8], device: str) -> Tensor | None:
    """All pixels on the CUDA card if they fit well, else None: they are then sent batch by batch."""
    if device != "cuda" or pixels.nbytes > RESIDENT_SHARE * torch.cuda.mem_get_info()[0]:
        return None
    resident = torch.empty(pixels.shape, dtype=torch.uint8, device=device)
    for start in range(0, len(pixels), 1024):  # a bounded copy in host memory at a time
        part = range(start, min(start + 1024, len(pixels)))
        resident[start : part.stop] = torch.from_numpy(read_rows(pixels, part))
    return resident
