"""The plain PyTorch script as most people write it: the peer of every claim about training.

Files through PIL in a Dataset of ImageFolder's kind (torchvision is not needed and not used: the transforms below do
what its Resize, ToTensor and Normalize do), a DataLoader without workers, float32, NCHW, eager mode, torch.optim.Adam
as it comes, convolutions with bias, ReLU before the pooling, `loss.item()` after each step.

Same start, same order, same dropout: weights are copied from dftrack's network of that seed (the biases it has not
start at zero; BatchNorm takes them away again), `order` gives dftrack's order of an epoch, and
`same_dropout` seeds torch before each step as dftrack does, so that both draw the same (B, 512) mask. So dropout is on
in every comparison, and the losses can be compared step by step.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from material import Files
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from dftrack.learning.training import _step_seed

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


class FaceFolder(Dataset[tuple[Tensor, int]]):
    """Files and labels -> (3, S, S) normalised float32 pictures, each read when it is asked for."""

    def __init__(self, files: Files, size: int) -> None:
        self.files, self.size = files, size

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.files[index]
        with open(path, "rb") as handle:
            image = Image.open(handle).convert("RGB")
        if image.size != (self.size, self.size):
            image = image.resize((self.size, self.size), Image.Resampling.BILINEAR)
        picture = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().to(torch.float32).div(255)
        return picture.sub_(MEAN).div_(STD), label


class PlainCNN(nn.Module):
    """The published network as it is usually written down."""

    def __init__(self, size: int, kernel_size: int = 3, dropout: float = 0.5) -> None:
        super().__init__()
        padding = kernel_size // 2
        self.conv1, self.bn1 = nn.Conv2d(3, 32, kernel_size, padding=padding), nn.BatchNorm2d(32)
        self.conv2, self.bn2 = nn.Conv2d(32, 64, kernel_size, padding=padding), nn.BatchNorm2d(64)
        self.conv3, self.bn3 = nn.Conv2d(64, 128, kernel_size, padding=padding), nn.BatchNorm2d(128)
        self.pool, self.relu = nn.MaxPool2d(2, 2), nn.ReLU()
        self.fc1, self.dropout = nn.Linear(128 * (size // 8) ** 2, 512), nn.Dropout(dropout)
        self.fc2 = nn.Linear(512, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.bn1(self.conv1(x))))
        x = self.pool(self.relu(self.bn2(self.conv2(x))))
        x = self.pool(self.relu(self.bn3(self.conv3(x))))
        x = self.dropout(self.relu(self.fc1(torch.flatten(x, 1))))
        logits: Tensor = self.fc2(x)
        return logits


def plain_model(size: int, seed: int) -> PlainCNN:
    """The plain network with the weights that dftrack's has at its start with this seed."""
    from dftrack.config import ModelConfig
    from dftrack.learning.model import build_model

    torch.manual_seed(seed)
    ours = build_model(ModelConfig(), size)
    model = PlainCNN(size)
    missing = model.load_state_dict({k: v.contiguous() for k, v in ours.state_dict().items()}, strict=False)
    assert not missing.unexpected_keys and all(k.startswith("conv") for k in missing.missing_keys), missing
    for convolution in (model.conv1, model.conv2, model.conv3):
        assert convolution.bias is not None
        nn.init.zeros_(convolution.bias)
    return model


@torch.no_grad()
def settle(model: nn.Module) -> None:
    """BatchNorm as after training, not as made, the same in every network that has the same ones; speed stays."""
    drawn = torch.Generator().manual_seed(0)
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        assert norm.running_mean is not None and norm.running_var is not None
        norm.running_mean.normal_(0, 0.1, generator=drawn)
        norm.running_var.uniform_(0.5, 2, generator=drawn)
        norm.weight.uniform_(0.5, 1.5, generator=drawn)
        norm.bias.normal_(0, 0.1, generator=drawn)


def plain_loader(
    files: Files,
    size: int,
    batch_size: int,
    *,
    order: Sequence[int] | NDArray[np.int64] | None = None,
    workers: int = 0,
) -> "DataLoader[tuple[Tensor, Tensor]]":
    """Batches read file by file, in `order` (None: as they lie)."""
    sampler = None if order is None else [int(place) for place in order]
    return DataLoader(FaceFolder(files, size), batch_size, sampler=sampler, num_workers=workers)


def train_plain(
    model: nn.Module,
    batches: Iterable[Sequence[Tensor]],
    optimizer: torch.optim.Optimizer,
    *,
    device: str = "cpu",
    before_step: Callable[[int], None] = lambda step: None,
) -> Iterator[float]:
    """One epoch; yields the loss after each step (nats), as everybody reads it."""
    criterion = nn.CrossEntropyLoss()
    model.train()
    for step, (images, labels) in enumerate(batches):
        before_step(step)
        images, labels = images.to(device), labels.to(device)
        optimizer.zero_grad()
        loss = criterion(model(images), labels)
        loss.backward()
        optimizer.step()
        yield loss.item()


def same_dropout(seed: int, epoch: int) -> Callable[[int], None]:
    """For `before_step`: seeds torch as dftrack does before that step."""
    return lambda step: torch.manual_seed(_step_seed(seed, epoch, step)) and None


@torch.no_grad()
def score_plain(
    model: PlainCNN, batches: "DataLoader[tuple[Tensor, Tensor]]", device: str = "cpu"
) -> NDArray[np.float64]:
    """P(fake) of each picture, (n,)."""
    model.eval()
    scores = [torch.softmax(model(images.to(device)), 1)[:, 1].cpu() for images, _ in batches]
    return torch.cat(scores).double().numpy()
