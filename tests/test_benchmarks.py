"""The benchmarks: each can be tried, each says what it shows, and their arithmetic is right."""

import ast
import importlib
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from dftrack.config import DataConfig, ModelConfig
from dftrack.data.cache import open_for_judging
from dftrack.learning.model import build_model, normalise
from tests.makers import make_faces

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
SCRIPTS = sorted(FOLDER.glob("*.py"))
SHARED = {"side_by_side", "peers", "material"}


@pytest.fixture
def benchmark_module(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """Imports a file of benchmarks/ as its scripts do, and forgets it afterwards: their names are short."""
    monkeypatch.syspath_prepend(str(FOLDER))
    before = set(sys.modules)

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    yield load
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").parent == FOLDER:
            del sys.modules[name]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_every_script_compiles_says_what_it_shows_and_runs_only_when_asked(script: Path) -> None:
    source = script.read_text()
    compile(source, str(script), "exec")
    tree = ast.parse(source)
    assert ast.get_docstring(tree), f"{script.name} does not say what it measures"
    if script.stem in SHARED:
        return
    assert isinstance(tree.body[-1], ast.If), f"{script.name} does not end with `if __name__ == '__main__'`"
    assert any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body)


def test_the_readme_names_every_script() -> None:
    text = (FOLDER / "README.md").read_text()
    missing = [script.name for script in SCRIPTS if script.name not in text]
    assert not missing, f"benchmarks/README.md says nothing of {', '.join(missing)}"


def test_a_ratio_says_how_many_times_better_whatever_is_counted(benchmark_module) -> None:  # type: ignore[no-untyped-def]
    side_by_side = benchmark_module("side_by_side")
    rates = side_by_side.summarise({"a": [10.0, 12.0, 11.0], "b": [20.0, 36.0, 22.0]}, "a", more_is_better=True)
    assert rates["a"].ratio == 1.0 and rates["b"].median == 22.0
    assert (rates["b"].ratio, rates["b"].ratio_low, rates["b"].ratio_high) == (2.0, 2.0, 3.0)
    seconds = side_by_side.summarise({"a": [4.0, 8.0], "b": [2.0, 2.0]}, "a", more_is_better=False)
    assert (seconds["b"].ratio, seconds["b"].ratio_low, seconds["b"].ratio_high) == (3.0, 2.0, 4.0)
    assert (seconds["a"].low, seconds["a"].high) == (4.0, 8.0)


def test_contenders_with_unlike_turns_are_not_compared(benchmark_module) -> None:  # type: ignore[no-untyped-def]
    side_by_side = benchmark_module("side_by_side")
    with pytest.raises(ValueError, match="b had 1 turns, a had 2"):
        side_by_side.summarise({"a": [1.0, 2.0], "b": [1.0]}, "a", more_is_better=True)


def test_contenders_take_turns(benchmark_module) -> None:  # type: ignore[no-untyped-def]
    side_by_side = benchmark_module("side_by_side")
    order: list[str] = []
    found = side_by_side.in_turn({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3)
    assert order == ["a", "b"] * 3 and {name: len(of) for name, of in found.items()} == {"a": 3, "b": 3}


def test_a_loss_that_is_not_finite_is_never_near(benchmark_module) -> None:  # type: ignore[no-untyped-def]
    furthest = benchmark_module("side_by_side").furthest
    assert furthest([1.0, 2.0], [1.0, 2.0]) == 0.0
    assert furthest([1.0, 2.0], [1.0, 1.9]) == pytest.approx(0.05)
    assert furthest([1.0, math.nan], [1.0, math.nan]) == math.inf


def test_a_report_ends_with_one_line_for_programs_and_a_failed_check_with_1(  # type: ignore[no-untyped-def]
    benchmark_module, capsys: pytest.CaptureFixture[str]
) -> None:
    side_by_side = benchmark_module("side_by_side")
    report = side_by_side.Report(
        claim="speed", wanted="2 x", base="a", unit="s", samples={"a": [2.0], "b": [1.0]}, more_is_better=False,
        checks=[side_by_side.Check("same numbers", None, "no peer")], not_measured={"bf16": "not native"},
    )  # fmt: skip
    side_by_side.show(report)
    *lines, last = capsys.readouterr().out.strip().splitlines()
    told = json.loads(last.removeprefix("JSON "))
    assert told["summaries"]["b"]["ratio"] == 2.0 and told["device"]["torch"]
    assert "host" not in told["device"], "the name of the machine is nobody's business"
    assert any(line.startswith("not measured") and "not native" in line for line in lines)
    report.checks = [side_by_side.Check("same numbers", False, "1.0 apart")]
    with pytest.raises(SystemExit, match="1"):
        side_by_side.show(report)


def test_the_plain_script_starts_from_the_same_network_and_sees_the_same_pictures(  # type: ignore[no-untyped-def]
    benchmark_module, tmp_path: Path
) -> None:
    peers, material = benchmark_module("peers"), benchmark_module("material")
    faces = make_faces(tmp_path / "faces", train=4, val=2, test=2)
    split = open_for_judging(DataConfig(source=str(faces), image_size=16), tmp_path).splits["train"]
    images, labels = next(iter(peers.plain_loader(material.files_of(split), 16, 8)))
    ours = normalise(torch.from_numpy(np.array(split.pixels)))
    torch.testing.assert_close(images, ours.contiguous(), rtol=0, atol=1e-6)
    assert labels.tolist() == split.labels.tolist()
    torch.manual_seed(3)
    model, plain = build_model(ModelConfig(dropout=0.0), 16).double(), peers.plain_model(16, 3).double()
    plain.dropout.p = 0.0
    model.train()
    torch.testing.assert_close(model(ours.double()), plain(ours.double()), rtol=1e-9, atol=1e-9)


def test_a_subset_is_a_data_set_of_whole_groups(benchmark_module, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    material = benchmark_module("material")
    faces = make_faces(tmp_path / "faces", train=6, val=3, test=2)
    small = material.subset(str(faces), tmp_path / "small", 4, tmp_path)
    data = open_for_judging(DataConfig(source=str(small), image_size=16), tmp_path)
    assert {name: len(split.labels) for name, split in data.splits.items()} == {"train": 4, "val": 4, "test-dev": 4}


def test_the_floor_of_a_step_counts_the_bytes_of_adam(benchmark_module) -> None:  # type: ignore[no-untyped-def]
    gpu = benchmark_module("gpu")
    work = gpu.least_work(224, 32, value_bytes=2)
    weights = sum(p.numel() for p in build_model(ModelConfig(), 224).parameters())
    assert work.adam_bytes == 28 * weights, "parameters, gradients, two moments read; three of them written"
    assert gpu.least_work(224, 64, value_bytes=2).flops == 2 * work.flops


def test_a_winner_by_luck_is_told_from_one_that_is_better(  # type: ignore[no-untyped-def]
    benchmark_module, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    halving = benchmark_module("replay_halving")
    steady = [[0.6, 0.7, 0.75, 0.8]] * 5
    lucky = [0.5, 0.5, 0.5, 0.9]  # late: any halving ends it, and trained again it reaches less than the others
    file = tmp_path / "curves-made.json"
    file.write_text(json.dumps({"trials": [{"parameters": {}, "curve": curve} for curve in [*steady, lucky]]}))
    again = {str(index): {"val": [0.78, 0.82], "test-dev": [0.8, 0.8]} for index in range(5)}
    again["5"] = {"val": [0.6, 0.9], "test-dev": [0.7, 0.7]}
    halving.again_file(file).write_text(json.dumps({"seeds": [1, 2], "settings": again}))
    halving.main(file, studies=20, trials=30)
    told = capsys.readouterr().out.splitlines()
    for name in halving.plans():
        at = next(number for number, line in enumerate(told) if line.startswith(name))
        search, val, test = (line.split("mean ")[1].split(",")[0] for line in told[at + 1 : at + 4])
        assert (float(search), float(val), float(test)) == pytest.approx((10.0, -5.0, -10.0))


def test_only_settings_that_win_a_study_are_trained_again(benchmark_module) -> None:  # type: ignore[no-untyped-def]
    winners, recorded = benchmark_module("retrain_winners").winners, benchmark_module("replay_halving").Recorded
    good, late, bad = [0.6, 0.7, 0.8, 0.8], [0.5, 0.5, 0.5, 0.9], [0.5, 0.5, 0.5, 0.5]
    assert winners(recorded([[0.6, 0.6, 0.7, 0.7], bad, good, bad, late], [0.0] * 5)) == [2, 4]
