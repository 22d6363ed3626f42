"""How fast `dftrack predict` scores pictures at 224 px, against the loop that most people write.

Run: python benchmarks/predict.py [pictures] [rounds]. Wanted: 2.5 times the peer's images/s on the same cores.
The peer: Pillow opens, squeezes and scales one picture after the other, 32 are stacked, and the published network runs
eagerly in float32 on NCHW maps (convolutions with bias, ReLU before the pooling), in eval() under no_grad().
Both have the same weights and the same JPEGs (2,000 of 224 px unless told), each in a process of its own, in turn:
peer, predict, peer, predict ... Timed is what is done with the pictures: finding, reading, scoring, writing the rows as
CSV; loading libraries and weights is not. Prints images/s (median of the rounds), their ratio, and the largest
difference of any score, which may be 1e-4.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
from peers import settle
from PIL import Image
from torch import nn

from dftrack.config import Config, ModelConfig, flatten
from dftrack.data.named import find_pictures
from dftrack.learning.detector import Detector
from dftrack.learning.model import CHANNELS, CLASSES, HIDDEN, MEAN, STD, build_model
from dftrack.render_verdicts import rows_to

SIZE = 224
BATCH = 32
TOLERANCE = 1e-4


def make_pictures(folder: Path, count: int) -> None:
    """JPEGs with the sizes of photographs: soft shapes and some noise (about 15 kB each)."""
    random = np.random.default_rng(0)
    folder.mkdir()
    for number in range(count):
        soft = Image.fromarray(random.integers(0, 256, (12, 12, 3), dtype=np.uint8)).resize((SIZE, SIZE))
        noisy = np.asarray(soft, dtype=np.float32) + random.normal(0, 8, (SIZE, SIZE, 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{number:05}.jpg", quality=90)


def make_detector(folder: Path) -> None:
    """A network as after training. Speed does not depend on the weights."""
    torch.manual_seed(0)
    model = build_model(ModelConfig(), SIZE).eval()
    settle(model)
    Detector(model=model, settings=flatten(Config())).save(folder)


def peer_network(detector: Detector) -> nn.Sequential:
    """The network as published, with the detector's weights."""
    model, layers = detector.model, []
    for conv, norm in ((model.conv1, model.bn1), (model.conv2, model.bn2), (model.conv3, model.bn3)):
        layer = nn.Conv2d(conv.in_channels, conv.out_channels, 3, padding=1)
        layer.weight.data.copy_(conv.weight.data)
        layer.bias.data.zero_()
        layers += [layer, norm, nn.ReLU(), nn.MaxPool2d(2, 2)]
    features = CHANNELS[-1] * (SIZE // 8) ** 2
    head = [nn.Flatten(), nn.Linear(features, HIDDEN), nn.ReLU(), nn.Dropout(0.5), nn.Linear(HIDDEN, CLASSES)]
    head[1], head[4] = model.fc1, model.fc2
    return nn.Sequential(*layers, *head).eval()


def run_peer(detector: Detector, folder: Path) -> tuple[float, list[float]]:
    """Seconds and scores of the loop that most people write."""
    network = peer_network(detector)
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    began = time.perf_counter()
    scores: list[float] = []
    paths = sorted(folder.glob("*.jpg"))
    for start in range(0, len(paths), BATCH):
        tensors = []
        for path in paths[start : start + BATCH]:
            image = Image.open(path).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
            pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div(255)
            tensors.append((pixels - mean) / std)
        with torch.no_grad():
            scores += torch.softmax(network(torch.stack(tensors)), dim=1)[:, 1].tolist()
    return time.perf_counter() - began, scores


def run_ours(detector: Detector, folder: Path) -> tuple[float, list[float]]:
    """Seconds and scores of what `dftrack predict FOLDER --csv` does."""
    scores = []
    with open(folder.parent / "rows.csv", "w", encoding="utf-8") as out:
        began = time.perf_counter()
        rows = rows_to("csv", out)
        for verdict in detector.judge(find_pictures([str(folder)]).paths):
            rows.add(verdict)
            scores.append(verdict.score or 0.0)
        rows.finish({})
        return time.perf_counter() - began, scores


def main(count: int = 2000, rounds: int = 2) -> None:
    """Measure both in turn."""
    with tempfile.TemporaryDirectory(prefix="dftrack-benchmark-") as name:
        place = Path(name)
        make_pictures(place / "pictures", count)
        make_detector(place / "detector")
        rates: dict[str, list[float]] = {"peer": [], "predict": []}
        scores: dict[str, list[float]] = {}
        for _ in range(rounds):
            for who in rates:
                done = subprocess.run(
                    [sys.executable, __file__, who, name], check=True, stdout=subprocess.PIPE, text=True
                )
                seconds, scores[who] = json.loads(done.stdout)
                rates[who].append(count / seconds)
                print(f"{who:8} {rates[who][-1]:7.1f} images/s", flush=True)
    difference = float(np.abs(np.array(scores["peer"]) - scores["predict"]).max())
    print(f"medians: peer {median(rates['peer']):.1f}, predict {median(rates['predict']):.1f} images/s")
    print(
        f"ratio {median(rates['predict']) / median(rates['peer']):.2f}, largest difference of a score {difference:.1e}"
    )
    if difference > TOLERANCE:
        sys.exit(f"the scores differ by more than {TOLERANCE:g}: nothing is proved")


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in ("peer", "predict"):
        where = Path(sys.argv[2])
        loaded = Detector.load(where / "detector")
        print(json.dumps({"peer": run_peer, "predict": run_ours}[sys.argv[1]](loaded, where / "pictures")))
    else:
        main(*(int(word) for word in sys.argv[1:]))
