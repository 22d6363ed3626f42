"""A PostgreSQL server of a test's own: made in a temporary folder, on a free port of this machine, and taken down."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True, slots=True)
class Server:
    """A running server: `url` opens its one database."""

    url: str
    programs: Path
    folder: Path
    user: str | None

    def run(self, program: str, *arguments: str) -> None:
        """Run one of PostgreSQL's programs as the server's owner."""
        command = [str(self.programs / program), *arguments]
        subprocess.run(_as(self.user, command), check=True, capture_output=True, timeout=60, cwd=self.folder)

    def stop(self) -> None:
        self.run("pg_ctl", "-D", str(self.folder / "data"), "-m", "immediate", "-w", "stop")

    def start(self) -> None:
        self.run("pg_ctl", "-D", str(self.folder / "data"), "-l", str(self.folder / "log"), "-w", "start")


def find_programs() -> Path | None:
    """The folder of PostgreSQL's server programs, the newest version first; None if there are none."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: -float(path.parent.name))
    on_path = shutil.which("initdb")
    folders += [Path(on_path).resolve().parent] if on_path else []
    return next((folder for folder in folders if (folder / "initdb").exists() and (folder / "pg_ctl").exists()), None)


@contextmanager
def postgres_server() -> Iterator[Server]:
    """Start a server, with durability off (a test's data need not survive a power cut). Skips where there is none."""
    programs = find_programs()
    if programs is None:
        pytest.skip("no PostgreSQL server programs on this machine (Debian: apt-get install postgresql)")
    user = _other_user() if os.getuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="dftrack-pg-") as name:
        folder = Path(name)
        if user:
            shutil.chown(folder, user)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        server = Server(f"postgresql://test@127.0.0.1:{port}/postgres", programs, folder, user)
        server.run("initdb", "-D", str(folder / "data"), "-U", "test", "-A", "trust", "--no-sync", "-E", "UTF8")
        settings = f"port = {port}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = ''\nfsync = off\n"
        with open(folder / "data" / "postgresql.conf", "a") as file:
            file.write(settings)
        server.start()
        try:
            yield server
        finally:
            server.stop()


def _other_user() -> str:
    """Somebody who is not root: PostgreSQL refuses to run as root."""
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


def _as(user: str | None, command: list[str]) -> list[str]:
    if user is None:
        return command
    entry = pwd.getpwnam(user)
    return ["setpriv", f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--clear-groups", *command]
