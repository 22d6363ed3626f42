"""The MLflow page of a store: a small server process, started, awaited and ended whole."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from dftrack.errors import StoreError
from dftrack.redaction import scrub
from dftrack.store import Store, connect, public_address, tracking_uri

START_SECONDS = 120.0  # it needs 5 to 12 s on two cores; more on a busy machine
USUAL_PORT = 5000
EVERY_NETWORK = ("0.0.0.0", "::")
PORTS_TRIED = 50


@dataclass(frozen=True, slots=True)
class Page:
    """A running MLflow page."""

    url: str  # like http://127.0.0.1:5000
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)  # None: a server that runs already
    _log: Path | None = field(default=None, repr=False)  # what our server says

    @property
    def process_group(self) -> int | None:
        """Id of the group of processes that serve it, or None if MLFLOW_TRACKING_URI names a running server."""
        return self._process.pid if self._process else None

    def run_url(self, experiment: str, run_id: str) -> str:
        """The address of one run; `experiment` is its experiment's id."""
        return f"{self.url}/#/experiments/{experiment}/runs/{run_id}"

    def alive(self) -> bool:
        """Does our server run? True of a server that is not ours: its end is not for us to see."""
        return self._process is None or self._process.poll() is None

    def last_words(self) -> str:
        """The end of what our server said."""
        return _last_words(self._log) if self._log else ""

    def wait(self) -> None:
        """Return when the server has ended; at once if it is not ours."""
        if self._process:
            self._process.wait()


@contextmanager
def serve_ui(store: Path, host: str = "127.0.0.1", port: int | None = None) -> Iterator[Page]:
    """Serve the MLflow page of `store` until the block ends: two processes, about 0.5 GB.

    port: 5000 if None; if it is taken, the next free one.
    Raises StoreError if there is none, the store is unfit or the server does not come up.
    """
    place = Store.at(store)
    uri = tracking_uri(place)
    if uri.startswith("http"):
        yield Page(public_address(uri))
        return
    connect(place.folder)  # makes it if missing, and says clearly what is wrong with it
    descriptor, name = tempfile.mkstemp(prefix="dftrack-ui-", suffix=".log")
    os.close(descriptor)
    log = Path(name)
    try:
        for chosen in _free_ports(host, USUAL_PORT if port is None else port):
            process = _start(_command(place, host, chosen), _environment(uri), log)
            try:
                page = Page(f"http://{_shown(host)}:{chosen}", process, log)
                if _await(page, process, host, chosen):
                    yield page
                    return
            finally:
                _end(process)
    finally:
        log.unlink(missing_ok=True)


def _shown(host: str) -> str:
    """The host as it stands in an address that works on this machine."""
    name = "127.0.0.1" if host in EVERY_NETWORK else host
    return f"[{name}]" if ":" in name else name


def _command(store: Store, host: str, port: int) -> list[str]:
    names = {"localhost", "127.0.0.1", "[::1]", _shown(host)}
    if host in EVERY_NETWORK:  # somebody asked for it: then this machine's names are right as well
        names |= {socket.gethostname(), socket.getfqdn()}
    return [
        *(sys.executable, "-m", "mlflow", "server", "--workers", "1"),
        *("--host", host, "--port", str(port)),
        *("--default-artifact-root", store.artifacts.as_uri()),
        *("--allowed-hosts", ",".join(f"{name}:{port}" for name in sorted(names))),  # against DNS rebinding
    ]


def _environment(uri: str) -> dict[str, str]:
    """The database goes by the environment: a command line, with its password, can be read by every user."""
    return os.environ | {
        "MLFLOW_BACKEND_STORE_URI": uri,
        "MLFLOW_REGISTRY_STORE_URI": uri,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    }


def _start(command: list[str], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    with open(log, "wb") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # its own process group, so that all of it can be ended
            env=environment,
        )


def _free_ports(host: str, first: int) -> Iterator[int]:
    """The free ports from `first` on, each looked at when it is asked for. Raises StoreError when there are no more."""
    reason = "others took each of them first"
    for port in range(first, first + PORTS_TRIED):
        taken = _why_taken(host, port)
        if taken is None:
            yield port
        reason = taken or reason
    raise StoreError(
        f"cannot serve on {host}, ports {first} to {first + PORTS_TRIED - 1}: {reason}", "name another with --port"
    )


def _why_taken(host: str, port: int) -> str | None:
    """Why nobody can listen there now; None if the port is free. Raises StoreError if there is no such port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((host, port))
        except OverflowError as error:
            raise StoreError(f"there is no port {port}", "ports go from 1 to 65535") from error
        except OSError as error:
            return error.strerror or str(error)
    return None


def _await(page: Page, process: subprocess.Popen[bytes], host: str, port: int) -> bool:
    """Return when the server answers: True. False: somebody else was faster and has the port now.

    The server listens only seconds after its port was found free. Raises StoreError with its last words if it ends or
    stays silent.
    """
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and page.alive():
        with suppress(OSError), urllib.request.urlopen(page.url + "/health", timeout=5) as answer:
            if answer.status == 200:
                return _listens(process, port)
        time.sleep(0.1)
    ended = process.poll()
    if ended is not None and _why_taken(host, port):
        return False
    fate = f"was silent for {START_SECONDS:.0f} s" if ended is None else f"ended with {ended}"
    raise StoreError(f"the MLflow page {fate}: {page.last_words()}")


def _listens(process: subprocess.Popen[bytes], port: int) -> bool:
    """Is it this process, or a child of it, that listens on the port?"""
    import psutil

    with suppress(psutil.Error):  # it has just ended
        first = psutil.Process(process.pid)
        for member in (first, *first.children(recursive=True)):
            with suppress(psutil.Error):
                open_ones = member.net_connections("tcp")
                if any(one.status == psutil.CONN_LISTEN and one.laddr.port == port for one in open_ones):
                    return True
    return False


def _last_words(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return scrub(" | ".join(lines[-3:])) or "it said nothing"


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the whole group: asked first, then killed."""
    for request, patience in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, request)
        with suppress(subprocess.TimeoutExpired):
            process.wait(patience)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)  # children that outlived their parent
