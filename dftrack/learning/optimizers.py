"""The optimizers, without the compiler: torch's own arithmetic, and not the six seconds that its wrappers import.

In torch 2.15 making an optimizer, and every step, imports torch._dynamo (with sympy and the inductor) only to keep a
compiler out. Here nothing is compiled, so the functions beneath those wrappers are called.
"""

import inspect
from collections.abc import Iterable
from typing import TypeVar

import torch
from torch.nn import Parameter

from dftrack.config import TrainConfig

SGD_MOMENTUM = 0.9
_WRAPPED = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")

Kind = TypeVar("Kind", bound=torch.optim.Optimizer)


def new_optimizer(parameters: Iterable[Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    """Adam, AdamW or SGD with momentum, fused; the same bits and the same state as torch's of that name."""
    rate, decay = config.learning_rate, config.weight_decay
    if config.optimizer == "sgd":
        return _uncompiled(torch.optim.SGD)(parameters, rate, momentum=SGD_MOMENTUM, weight_decay=decay, fused=True)
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return _uncompiled(kind)(parameters, rate, weight_decay=decay, fused=True)


def _uncompiled(kind: type[Kind]) -> type[Kind]:
    """`kind` with the functions beneath torch's wrappers in their place."""
    beneath = {name: inspect.unwrap(getattr(kind, name)) for name in _WRAPPED}
    step = torch.no_grad()(inspect.unwrap(kind.step))
    return type(kind.__name__, (kind,), {**beneath, "step": step})
