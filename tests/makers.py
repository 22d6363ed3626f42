"""Small things that tests are made of."""

from pathlib import Path

import numpy as np
from PIL import Image

from dftrack.data.cache import Split

# Code of a child process: KiB it held at most (Linux). Not ru_maxrss: a child has that of its parent.
PEAK_KIB = "int(open('/proc/self/status').read().partition('VmHWM:')[2].split()[0])"


def made_split(name: str, images: int, *, size: int = 16, seed: int = 0) -> Split:
    """Noise pictures, the fakes a little brighter on the left: there is something to learn. Labels alternate."""
    random = np.random.default_rng(seed)
    labels = (np.arange(images) % 2).astype(np.int64)
    pixels = random.integers(0, 200, (images, size, size, 3), dtype=np.uint8)
    pixels[labels == 1, :, : size // 2] += 55
    names = tuple(f"{name}/{i:05}.jpg" for i in range(images))
    return Split(
        name=name,
        pixels=pixels,
        labels=labels,
        names=names,
        groups=tuple(f"group{i // 2}" for i in range(images)),
        paths=tuple(Path(name) for name in names),
        masks=(None,) * images,
    )


def make_faces(root: Path, *, train: int, val: int, test: int, size: int = 24) -> Path:
    """A folder {train,val,test-dev}/{real,fake} with that many JPEGs of each class in each split; fakes are greener."""
    random = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val), ("test-dev", test)):
        for label in ("real", "fake"):
            folder = root / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 160, (size, size, 3), dtype=np.uint8)
                pixels[..., 1] += 60 if label == "fake" else 0
                Image.fromarray(pixels).save(folder / f"{split}-{label}-{number:03}.jpg", quality=95)
    return root
