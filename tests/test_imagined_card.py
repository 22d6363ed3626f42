"""On a card that is only imagined: torch follows devices and shapes there, and has no numbers to give away.

So what lies on the wrong device fails, and so does whoever asks a number of the card: on a real one that is waiting.
Gradients and the optimizers' kernels are left out; torch can imagine neither without a card.
"""

from collections.abc import Iterator
from functools import partial

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from dftrack.config import TrainConfig
from dftrack.data.batches import Batches
from dftrack.learning import program, training
from dftrack.learning.model import FaceCNN
from dftrack.learning.training import Step, new_state
from tests.makers import made_split

pytestmark = pytest.mark.filterwarnings("ignore:Guards may run slower")  # torch on Python 3.13.0

TRAIN = made_split("train", 30, size=32)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaceCNN]:
    """A network on the card."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1 << 33, 1 << 33))
    monkeypatch.setattr(FaceCNN, "to", lambda model, device: model)  # it lies there already
    for name in ("_fused_adam_", "_fused_sgd_"):
        monkeypatch.setattr(torch, name, lambda *given, **named: None)
    with FakeTensorMode(allow_non_fake_inputs=True):
        with torch.device("cuda"):
            model = FaceCNN(kernel_size=3, dropout=0.5, image_size=32)
        monkeypatch.setattr(torch.autograd, "backward", lambda loss: give_gradients(model))
        yield model


def give_gradients(model: FaceCNN) -> None:
    for weight in model.parameters():
        weight.grad = torch.empty_like(weight)


def three_steps(model: FaceCNN, optimizer: str) -> list[Step]:
    config = TrainConfig(batch_size=8, optimizer=optimizer)
    state = new_state(model, config, images=30, precision="fp32", device="cuda")
    batches = Batches(TRAIN, batch_size=8, seed=0, augmentation="flip-color", device="cuda")
    return [step for _, step in zip(range(3), training._one_pass(state, batches, config), strict=False)]


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_all_of_a_step_is_on_the_card_and_asks_no_number_of_it(model: FaceCNN, optimizer: str) -> None:
    assert [step.loss for step in three_steps(model, optimizer)] == [None] * 3


def test_a_loss_that_is_looked_at_is_noticed(model: FaceCNN, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "CUDA_LOSS_EVERY", 2)
    with pytest.raises(DataDependentOutputException):
        three_steps(model, "adam")


def test_a_compiled_pass_sends_nothing_to_the_card(model: FaceCNN, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[torch.fx.GraphModule] = []

    def noting(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        made.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=noting))
    program._program.cache_clear()
    pixels = torch.empty((8, 32, 32, 3), dtype=torch.uint8, device="cuda")
    labels = torch.empty(8, dtype=torch.int64, device="cuda")
    with torch.no_grad():
        loss, logits = program.compiled_loss_and_logits(model, pixels, labels, None)
    program._program.cache_clear()
    assert loss.is_cuda and logits.shape == (8, 2)
    makers = {str(node.target) for node in made[0].graph.nodes if node.op == "get_attr" or "tensor" in str(node.target)}
    assert not makers, "what it makes of numbers it would make, and send, in every step"
