"""The optimizers without torch's compiler have torch's bits and torch's state.

That no training loads the compiler is seen where one runs in a process of its own: test_experiment.py, by kills.py.
"""

import pytest
import torch

from dftrack.config import TrainConfig
from dftrack.learning.optimizers import SGD_MOMENTUM, new_optimizer

USUAL = {
    "adam": lambda p: torch.optim.Adam(p, 1e-2, weight_decay=0.1, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, 1e-2, weight_decay=0.1, fused=True),
    "sgd": lambda p: torch.optim.SGD(p, 1e-2, momentum=SGD_MOMENTUM, weight_decay=0.1, fused=True),
}


def trained(optimizer: torch.optim.Optimizer, layer: torch.nn.Linear, steps: int) -> None:
    pictures = torch.randn(8, 5, generator=torch.Generator().manual_seed(1))
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        layer(pictures).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("name", USUAL)
def test_weights_and_state_have_the_bits_of_torch_and_go_on_with_each_others_state(name: str) -> None:
    ours, theirs = torch.nn.Linear(5, 3), torch.nn.Linear(5, 3)
    theirs.load_state_dict(ours.state_dict())
    config = TrainConfig(optimizer=name, learning_rate=1e-2, weight_decay=0.1)
    mine, usual = new_optimizer(ours.parameters(), config), USUAL[name](theirs.parameters())
    trained(mine, ours, 4)
    trained(usual, theirs, 4)
    first, second = new_optimizer(ours.parameters(), config), USUAL[name](theirs.parameters())
    first.load_state_dict(usual.state_dict())
    second.load_state_dict(mine.state_dict())
    trained(first, ours, 3)
    trained(second, theirs, 3)
    assert torch.equal(ours.weight, theirs.weight) and torch.equal(ours.bias, theirs.bias)
    assert all(weight.requires_grad and weight.is_leaf for weight in ours.parameters())
    assert first.state_dict()["param_groups"] == second.state_dict()["param_groups"]
    for mine_of, usual_of in zip(first.state.values(), second.state.values(), strict=True):
        assert mine_of.keys() == usual_of.keys()
        assert all(torch.equal(torch.as_tensor(mine_of[key]), torch.as_tensor(usual_of[key])) for key in mine_of)
