"""The compiled pass: the numbers of the one as it is written, made once for all trials of a shape."""

import dataclasses
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dftrack.config import ModelConfig, TrainConfig
from dftrack.data.batches import Batches
from dftrack.errors import DeviceError
from dftrack.learning import program
from dftrack.learning.checkpoint import Checkpoints
from dftrack.learning.evaluation import predict
from dftrack.learning.model import build_model, dropped_by
from dftrack.learning.program import compiled_loss_and_logits, compiling
from dftrack.learning.training import State, Step, fit, new_state
from tests.makers import made_split

pytestmark = pytest.mark.filterwarnings("ignore:Guards may run slower")  # torch on Python 3.13.0

CONFIG = TrainConfig(epochs=2, batch_size=8, learning_rate=1e-3, compile=True)
NO_DROPOUT = ModelConfig(dropout=0.0)
TRAIN, VAL = made_split("train", 30), made_split("val", 20, seed=1)  # the last batch is a smaller one


@pytest.fixture
def forgotten() -> Iterator[None]:
    """No program is there before the test, none is left behind."""
    import torch._dynamo

    program._program.cache_clear()
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=torch._dynamo.config.recompile_limit):
        yield
    program._program.cache_clear()
    torch._dynamo.reset()


@pytest.fixture
def made(forgotten: None, monkeypatch: pytest.MonkeyPatch) -> list[torch.fx.GraphModule]:
    """The programs, as torch finds them in the code and derives them; they run without machine code of their own."""
    from torch._dynamo.backends.debugging import aot_eager

    programs: list[torch.fx.GraphModule] = []

    def noting(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> object:
        programs.append(graph)
        return aot_eager(graph, inputs)

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=noting))
    return programs


@pytest.fixture
def compiler(forgotten: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler itself, with nothing kept from before."""
    if not any(map(shutil.which, ("g++", "clang++"))):
        pytest.skip("needs a C++ compiler")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))


def started(model: ModelConfig, config: TrainConfig = CONFIG, precision: str = "fp32") -> tuple[State, Batches]:
    torch.manual_seed(config.seed)
    state = new_state(build_model(model, 16), config, images=30, precision=precision, device="cpu")
    return state, Batches(TRAIN, batch_size=config.batch_size, seed=config.seed)


def losses(model: ModelConfig, config: TrainConfig = CONFIG, precision: str = "fp32") -> list[float | None]:
    state, batches = started(model, config, precision)
    return [event.loss for event in fit(state, batches, VAL, config) if isinstance(event, Step)]


def check_losses(precision: str, within: float) -> None:
    written = losses(NO_DROPOUT, dataclasses.replace(CONFIG, compile=False), precision)
    np.testing.assert_allclose(losses(NO_DROPOUT, CONFIG, precision), written, rtol=within)


def check_going_on(folder: Path) -> None:
    undisturbed, stopped, resumed = (started(ModelConfig()) for _ in range(3))
    for _ in fit(*undisturbed, VAL, CONFIG):
        pass
    for _, _ in zip(range(2), fit(*stopped, VAL, CONFIG), strict=False):
        pass
    checkpoints = Checkpoints(folder, every_seconds=0)
    checkpoints.save(stopped[0])
    assert checkpoints.restore(resumed[0])
    for _ in fit(*resumed, VAL, CONFIG):
        torch.rand(1)  # somebody else draws from the global generator in between
    for (name, wanted), found in zip(
        undisturbed[0].model.state_dict().items(), resumed[0].model.state_dict().values(), strict=True
    ):
        assert torch.equal(wanted, found), f"{name} is another after going on"


@pytest.mark.parametrize(("precision", "within"), [("fp32", 1e-4), ("bf16", 0.1)])
def test_the_losses_are_those_of_the_pass_as_it_is_written(made: object, precision: str, within: float) -> None:
    check_losses(precision, within)


def test_training_goes_on_from_a_checkpoint_bit_for_bit(made: object, tmp_path: Path) -> None:
    check_going_on(tmp_path)


@pytest.mark.slow
def test_all_this_holds_for_the_machine_code_too(compiler: None, tmp_path: Path) -> None:
    check_losses("fp32", 1e-4)
    check_losses("bf16", 0.1)
    check_going_on(tmp_path)


def test_trials_of_a_shape_share_one_program_and_evaluation_makes_no_other(made: list[object]) -> None:
    for dropout, rate, optimizer in ((0.5, 1e-3, "adam"), (0.1, 3e-4, "adam"), (0.0, 1e-2, "sgd")):
        config = dataclasses.replace(CONFIG, learning_rate=rate, optimizer=optimizer)
        losses(ModelConfig(dropout=dropout), config)
        assert len(made) == 1, f"dropout {dropout} at learning rate {rate} was compiled for again"
    losses(ModelConfig(kernel_size=5))
    assert len(made) == 2, "another kernel is another program"


def test_a_process_holds_as_many_programs_as_we_say_and_never_goes_on_without_one(
    made: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def at(size: int) -> None:
        pixels, labels = torch.from_numpy(TRAIN.pixels[:size]), torch.from_numpy(TRAIN.labels[:size])
        with torch.no_grad(), compiling():
            compiled_loss_and_logits(model, pixels, labels, None)

    assert program.SHAPES > torch._dynamo.config.recompile_limit >= 8, "torch by itself allows enough"
    monkeypatch.setattr(program, "SHAPES", 2)
    model = build_model(ModelConfig(), 16)
    at(4), at(5), at(4)
    assert len(made) == 2
    with pytest.raises(DeviceError, match="fullgraph"):
        at(6)


@pytest.mark.parametrize("dropout", [0.0, 0.25, 0.9])
def test_dropout_leaves_its_share_and_scales_it(dropout: float) -> None:
    torch.manual_seed(0)
    hidden = torch.rand(2000, 512) + 0.5
    dropped = dropped_by(hidden, torch.tensor(1 - dropout))
    left = dropped != 0
    assert left.double().mean().item() == pytest.approx(1 - dropout, abs=0.002)
    torch.testing.assert_close(dropped[left], hidden[left] / (1 - dropout))


def test_each_step_draws_its_own_dropout_and_the_seed_decides_it(made: object) -> None:
    first, again = losses(ModelConfig()), losses(ModelConfig())
    assert first == again
    assert first != losses(NO_DROPOUT)


def test_only_whole_batches_are_compiled_for(made: list[object]) -> None:
    state, batches = started(ModelConfig())
    for _ in fit(state, batches, VAL, dataclasses.replace(CONFIG, epochs=1)):
        pass
    assert len(made) == 1, "30 pictures are three batches of 8 and one of 6"


def test_the_scores_of_a_network_trained_so_are_those_of_any_other(made: object) -> None:
    state, batches = started(ModelConfig())
    for _ in fit(state, batches, VAL, CONFIG):
        pass
    copy = build_model(ModelConfig(), 16)
    copy.load_state_dict(state.model.state_dict())
    np.testing.assert_array_equal(predict(state.model, VAL).scores, predict(copy, VAL).scores)


def test_a_machine_that_cannot_compile_says_what_is_missing(
    forgotten: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch._inductor.config

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    patched = torch._inductor.config.patch({"cpp.cxx": (None, "/nowhere/c++")})
    with patched, pytest.raises(DeviceError, match=r"torch\.compile fails on this machine: .*C\+\+ compiler") as caught:
        losses(ModelConfig())
    assert "train.compile=false" in caught.value.hint
