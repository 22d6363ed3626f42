"""This machine and this process: device, precision, threads, memory allocator, requests to stop, provenance."""

import atexit
import ctypes
import gc
import getpass
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import FrameType

from dftrack import __version__
from dftrack.errors import EXIT_INTERRUPTED, EXIT_TERMINATED, DeviceError, Interrupted

PACKAGES = (
    "torch", "numpy", "numba", "mlflow", "optuna", "scikit-learn", "pillow", "simplejpeg", "captum", "safetensors"
)  # fmt: skip
DIFF_LIMIT = 1 << 20  # bytes of an uncommitted diff that are kept

# Who sets one of these says how many threads a process is to have.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

TELLTALES = {"triton", "onnx"}  # their bindings write on the screen what of them is left when Python ends

CPUINFO = Path("/proc/cpuinfo")  # Linux
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h


def tune_allocator() -> bool:
    """Tell glibc to keep big blocks instead of returning them to the kernel after every step.

    Half of a training step on a CPU is page faults otherwise; not one computed bit changes. To be called when what
    lasts is allocated: in one heap with what comes and goes it would break the heap up.
    Returns whether it took effect (False on another C library).
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, 2**31 - 1))


def trim_allocator() -> None:
    """Give free memory back to the kernel, which `tune_allocator` keeps glibc from doing. Not for every step."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def end_quickly() -> None:
    """Nothing is looked through for rubbish when this process ends: the kernel takes its memory as a whole.

    Python looks three times, through half a million objects of torch and MLflow: 2.0 s instead of 0.4.
    Databases are closed before, so that no write-ahead log is left beside them.
    """
    atexit.register(_close_databases_and_freeze)


def _close_databases_and_freeze() -> None:
    if not TELLTALES.isdisjoint(sys.modules):
        return
    if sqlalchemy := sys.modules.get("sqlalchemy"):  # MLflow keeps its engines to itself
        for engine in [thing for thing in gc.get_objects() if type(thing) is sqlalchemy.Engine]:
            engine.dispose()
    gc.freeze()


def limit_threads(most: int) -> None:
    """Let torch compute with `most` threads at most, unless the environment says how many.

    By itself it counts the processors of a machine, also where its container may have the time of a few of them only.
    """
    import torch

    if torch.get_num_threads() > most and not any(os.environ.get(name) for name in THREAD_VARIABLES):
        torch.set_num_threads(most)


def pick_device(wanted: str) -> str:
    """ "cpu" or "cuda" for the setting auto, cpu or cuda. Raises DeviceError if CUDA is asked for and not there."""
    import torch

    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return "cpu"
    if not torch.cuda.is_available():
        built = "this PyTorch is built without CUDA" if torch.version.cuda is None else "PyTorch sees no CUDA card"
        raise DeviceError(f"train.device is cuda, but {built}", "use --device cpu, or auto to take what is there")
    return "cuda"


def pick_precision(wanted: str, device: str) -> str:
    """ "fp32", "bf16" or "fp16" for the setting auto or one of these, on `device` ("cpu" or "cuda").

    Raises DeviceError for fp16 on a CPU: without a card it is slower and less exact than fp32.
    """
    import torch

    if wanted == "fp16" and device == "cpu":
        raise DeviceError("train.precision fp16 needs a CUDA card", "on a CPU use fp32, bf16 or auto")
    if wanted != "auto":
        return wanted
    if device == "cuda":
        return "bf16" if torch.cuda.get_device_capability()[0] >= 8 else "fp16"  # native from Ampere on
    return "bf16" if cpu_has_bf16() else "fp32"


def cpu_has_bf16() -> bool:
    """Whether the processor multiplies bfloat16 natively (emulated it is ten times slower than float32)."""
    try:
        words = set(CPUINFO.read_text().split())
    except OSError:
        return False
    return bool(words & {"avx512_bf16", "amx_bf16", "bf16"})  # x86 (two ways), Arm


class StopRequests:
    """Whether somebody asked this process to stop. Ask `check()` at points where stopping is safe."""

    def __init__(self) -> None:
        self.exit_code: int | None = None

    def check(self) -> None:
        """Raise Interrupted if a stop was asked for."""
        if self.exit_code is not None:
            raise Interrupted(self.exit_code)


@contextmanager
def catch_stop_requests() -> Iterator[StopRequests]:
    """While the block runs, Ctrl-C and SIGTERM are noted instead of acted on; a second one interrupts at once.

    A request that came another way (somebody set `exit_code`) does not make the first signal a second one.
    Only the main thread can do this; elsewhere the requests are simply never set.
    """
    requests = StopRequests()
    codes = {signal.SIGINT: EXIT_INTERRUPTED, signal.SIGTERM: EXIT_TERMINATED}
    signals: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        signals.append(number)
        if len(signals) > 1:
            raise KeyboardInterrupt
        requests.exit_code = requests.exit_code or codes[signal.Signals(number)]

    try:
        before = {number: signal.signal(number, note) for number in codes}
    except ValueError:  # not the main thread
        yield requests
        return
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a result comes from: enough to find the same code on a like machine."""

    command: str
    user: str
    commit: str  # "" outside a git checkout
    diff: str  # of tracked files against that commit; "" if clean
    versions: Mapping[str, str]
    machine: Mapping[str, str]


def provenance() -> Provenance:
    """Describe this process. Reads git and package metadata; never the values of environment variables."""
    commit = _git("rev-parse", "HEAD").strip()
    diff = _git("diff", "HEAD") if commit else ""
    if len(diff) > DIFF_LIMIT:
        diff = diff[:DIFF_LIMIT] + f"\n[cut: the diff has {len(diff)} characters]\n"
    return Provenance(
        command=" ".join(["dftrack", *sys.argv[1:]]),
        user=user_name(),
        commit=commit,
        diff=diff,
        versions={"dftrack": __version__, "python": platform.python_version(), **_versions()},
        machine=_machine(),
    )


def difference_from(commit: str) -> str | None:
    """The diff of this package's tracked files from `commit` to what is here; None if git knows no such commit."""
    if not commit or not _git("rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}"):
        return None
    return _git("diff", commit, "--", ".")


def user_name() -> str:
    """Who runs this process; the number of a user who has no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _machine() -> dict[str, str]:
    import psutil
    import torch

    described = {
        "host": platform.node(),
        "system": platform.platform(),
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "memory_gib": f"{psutil.virtual_memory().total / 2**30:.1f}",
        "threads": str(torch.get_num_threads()),
    }
    if torch.cuda.is_available():
        described["cuda"] = str(torch.version.cuda)
        described["gpu"] = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    return described


def _processor() -> str:
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _git(*words: str) -> str:
    """Output of git in the folder of this package's source; "" where there is none."""
    try:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), *words], capture_output=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace") if done.returncode == 0 else ""
