"""The large weight in bfloat16: every bit is that of torch's autocast and its fused optimizers."""

from dataclasses import dataclass, field
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from dftrack.config import TrainConfig
from dftrack.learning import narrow
from dftrack.learning.narrow import NarrowWeight
from dftrack.learning.optimizers import new_optimizer

KINDS = ["adam", "adamw", "sgd"]


@dataclass
class Pair:
    """The same layer twice, trained as a narrow weight and as torch does; its numbers fill whole vectors."""

    kind: str = "adam"
    decay: float = 0.0
    config: TrainConfig = field(init=False)

    def __post_init__(self) -> None:
        self.config = TrainConfig(optimizer=self.kind, learning_rate=1e-2, weight_decay=self.decay)
        self.ours, self.theirs = nn.Linear(48, 32), nn.Linear(48, 32)
        self.theirs.load_state_dict(self.ours.state_dict())
        self.our_optimizer = new_optimizer(self.ours.parameters(), self.config)
        self.their_optimizer = new_optimizer(self.theirs.parameters(), self.config)
        self.narrow = NarrowWeight(self.ours.weight)

    def learn(self, seed: int, found_inf: float = 0.0) -> None:
        """One step of both; their logits and the gradient of what comes in are the same."""
        inputs = torch.randn(8, 48, generator=torch.Generator().manual_seed(seed)).bfloat16()
        seen = []
        for hidden, below in (self.pass_ours(inputs), self.pass_theirs(inputs)):
            hidden.float().square().sum().backward()
            seen.append((hidden, below.grad))
        for our, their in zip(*seen, strict=True):
            torch.testing.assert_close(our, their, rtol=0.02, atol=0.02)  # bfloat16 of weights of the same bits, or not
        self.our_optimizer.found_inf = self.their_optimizer.found_inf = torch.tensor(found_inf)
        self.narrow.step(self.our_optimizer)
        for optimizer in (self.our_optimizer, self.their_optimizer):
            optimizer.step()
            optimizer.zero_grad()

    def pass_ours(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        inputs = inputs.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            return self.narrow.linear(inputs, self.ours.bias), inputs

    def pass_theirs(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        inputs = inputs.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            return self.theirs(inputs), inputs

    def are_the_same(self) -> bool:
        """Weights and all that the optimizers keep, bit for bit where torch joins products and sums as we do."""
        joining = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
        same_number = torch.equal if joining else partial(torch.allclose, rtol=0.05, atol=0.05)
        for name in ("weight", "bias"):
            our, their = getattr(self.ours, name), getattr(self.theirs, name)
            state, usual = self.our_optimizer.state[our], self.their_optimizer.state[their]
            same = [same_number(torch.as_tensor(state[key]), torch.as_tensor(usual[key])) for key in usual]
            if not (same_number(our, their) and state.keys() == usual.keys() and all(same)):
                return False
        return True


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_and_state_have_the_bits_of_autocast_and_torchs_optimizer(
    kind: str, decay: float, threads: int
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        pair = Pair(kind, decay)
        for seed in range(4):
            pair.learn(seed)
            assert pair.are_the_same()
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("kind", KINDS)
def test_each_goes_on_with_the_others_state(kind: str) -> None:
    before, pair = Pair(kind, 0.1), Pair(kind, 0.1)
    for seed in range(3):
        before.learn(seed)
    pair.ours.load_state_dict(before.theirs.state_dict())
    pair.theirs.load_state_dict(before.ours.state_dict())
    pair.our_optimizer.load_state_dict(before.their_optimizer.state_dict())
    pair.their_optimizer.load_state_dict(before.our_optimizer.state_dict())
    pair.learn(3)
    assert pair.are_the_same()


def test_the_weight_lies_where_its_gradient_was_and_the_gradient_where_it_was() -> None:
    pair, places = Pair(), []
    for seed in range(3):
        inputs = torch.randn(8, 48, generator=torch.Generator().manual_seed(seed)).bfloat16()
        pair.pass_ours(inputs)[0].sum().backward()
        assert pair.ours.weight.grad.dtype == torch.bfloat16
        places.append(pair.ours.weight.grad.data_ptr())
        pair.narrow.step(pair.our_optimizer)
        assert pair.ours.weight.grad is None
    assert len(set(places)) == 1


def test_weights_that_were_changed_by_somebody_else_are_cast_anew() -> None:
    pair = Pair()
    pair.learn(0)
    state = {"weight": torch.randn(32, 48), "bias": torch.randn(32)}
    for layer in (pair.ours, pair.theirs):
        layer.load_state_dict(state)
    pair.learn(1)
    assert pair.are_the_same()


def test_an_update_that_is_not_finite_changes_nothing_and_the_next_one_starts_from_the_weight() -> None:
    pair = Pair()
    pair.learn(0)
    weight = pair.ours.weight.clone()
    pair.learn(1, found_inf=1.0)
    assert torch.equal(pair.ours.weight, weight)
    pair.learn(2)
    assert pair.are_the_same()


def test_a_step_that_was_broken_off_leaves_nothing_behind() -> None:
    pair = Pair()
    pair.learn(0)
    pair.pass_ours(torch.randn(8, 48).bfloat16())[0].sum().backward()  # and nobody updates
    pair.our_optimizer.zero_grad(set_to_none=False)
    pair.learn(1)
    assert pair.are_the_same()


def test_a_second_forward_before_the_backward_has_memory_of_its_own() -> None:
    pair, grads = Pair(), []
    inputs = [torch.randn(8, 48).bfloat16() for _ in range(2)]
    for each in (pair.pass_ours, pair.pass_theirs):
        first, second = (each(part)[0].float().square().sum() for part in inputs)
        second.backward()
        first.backward()
        grads.append((pair.ours if each == pair.pass_ours else pair.theirs).weight.grad)
    torch.testing.assert_close(grads[0].float(), grads[1], rtol=0.01, atol=0.1)  # added up in bfloat16


def test_after_it_the_weight_is_as_any_other() -> None:
    pair = Pair()
    pair.learn(0)
    pair.narrow.let_go()
    pair.ours(torch.randn(8, 48)).sum().backward()
    assert pair.ours.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
def test_kernels_that_compute_something_else_are_noticed(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "_sgd" if kind == "sgd" else "_adam"
    both = (name, f"{name}_in_parts")
    for one in both:
        monkeypatch.setattr(narrow, one, lambda *_: None)
    assert not narrow._works(kind)
