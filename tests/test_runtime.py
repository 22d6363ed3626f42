"""This machine and this process: what is picked, what is noticed, what is told."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dftrack import runtime
from dftrack.errors import DeviceError, Interrupted
from dftrack.runtime import (
    THREAD_VARIABLES,
    catch_stop_requests,
    cpu_has_bf16,
    limit_threads,
    pick_device,
    pick_precision,
    provenance,
    tune_allocator,
)


@pytest.mark.parametrize("library", ["json", "triton", "onnx"])
def test_a_process_that_ends_quickly_looks_for_rubbish_only_where_a_library_would_complain(library: str) -> None:
    pytest.importorskip(library)
    code = (
        f"import atexit, gc, {library}; from dftrack.runtime import end_quickly\n"
        "atexit.register(lambda: print(len(gc.get_objects()))); end_quickly()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (int(done.stdout) < 100) is (library == "json")
    assert not done.stderr


def test_a_process_that_ends_quickly_leaves_no_log_beside_its_database(tmp_path: Path) -> None:
    database = tmp_path / "some.db"
    code = (
        "import gc, sqlalchemy; from dftrack.runtime import end_quickly; end_quickly()\n"
        f"engine = sqlalchemy.create_engine('sqlite:///{database}'); engine.itself = engine\n"
        "with engine.begin() as session:\n"
        "    session.exec_driver_sql('pragma journal_mode=wal'); session.exec_driver_sql('create table t (x)')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert [path.name for path in tmp_path.iterdir()] == ["some.db"]


def test_without_cuda_auto_is_the_cpu_and_cuda_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == pick_device("cpu") == "cpu"
    with pytest.raises(DeviceError, match=r"train\.device is cuda") as refused:
        pick_device("cuda")
    assert "--device cpu" in refused.value.hint


def test_with_cuda_auto_takes_it_in_bf16_where_the_card_has_it_else_in_fp16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto") == "cuda" and pick_device("cpu") == "cpu"
    for capability, precision in (((9, 0), "bf16"), ((8, 0), "bf16"), ((7, 5), "fp16")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda c=capability: c)
        assert pick_precision("auto", "cuda") == precision
    assert pick_precision("fp32", "cuda") == "fp32"


@pytest.mark.parametrize(
    ("flags", "native"), [("sse avx2 fma", False), ("avx512f avx512_bf16", True), ("amx_bf16 amx_tile", True)]
)
def test_a_cpu_multiplies_in_bf16_only_where_it_can_natively(
    flags: str, native: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    described = tmp_path / "cpuinfo"
    described.write_text(f"model name : Example 1\nflags\t\t: {flags}\n")
    monkeypatch.setattr(runtime, "CPUINFO", described)
    assert cpu_has_bf16() is native
    assert pick_precision("auto", "cpu") == ("bf16" if native else "fp32")
    assert pick_precision("bf16", "cpu") == "bf16", "--precision overrides"


def test_fp16_on_a_cpu_is_refused() -> None:
    with pytest.raises(DeviceError, match="fp16 needs a CUDA card"):
        pick_precision("fp16", "cpu")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_is_noted_and_acted_on_where_it_is_safe(number: signal.Signals, code: int) -> None:
    before = signal.getsignal(number)
    with catch_stop_requests() as requests:
        requests.check()
        os.kill(os.getpid(), number)
        with pytest.raises(Interrupted) as stopped:
            requests.check()
        assert stopped.value.exit_code == code
        with pytest.raises(KeyboardInterrupt):  # the second one is not patient
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


def test_provenance_tells_code_versions_and_machine_and_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "hunter2-made-up")
    told = provenance()
    assert told.versions["torch"] == torch.__version__.partition("+")[0] or told.versions["torch"] == torch.__version__
    assert told.machine["threads"] == str(torch.get_num_threads())
    assert "hunter2-made-up" not in repr(told)


def test_the_allocator_can_be_tuned_without_changing_a_bit() -> None:
    torch.manual_seed(0)
    values = torch.randn(1000, 1000)
    before = values @ values
    tune_allocator()
    assert torch.equal(before, values @ values)


def test_a_training_takes_no_more_threads_than_it_may_unless_somebody_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in THREAD_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        limit_threads(3)
        assert torch.get_num_threads() == 3
        limit_threads(8)
        assert torch.get_num_threads() == 3
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        limit_threads(2)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
