"""A Postgres server of the test's own: a temporary folder, a free port, nobody else's data."""

import asyncio
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest

from .product import free_port

# Where distributions put what is not meant to be called by hand.
PLACES = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
READY_LIMIT_S = 60


def binary(name: str) -> str | None:
    found = shutil.which(name) or next((str(place / name) for place in PLACES if (place / name).exists()), None)
    # Beside its own shared libraries, which a link to it is not.
    return found and os.path.realpath(found)


class Server:
    """Databases are made with `database`; the server can be ended and started again, with what is in them."""

    def __init__(self, folder: Path, port: int, postgres: str) -> None:
        self.folder = folder
        self.port = port
        self._postgres = postgres
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = count()

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://tester:a-secret@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        log = (self.folder / "log").open("ab")
        options = ["-D", str(self.folder / "data"), "-p", str(self.port), "-k", "", "-c", "listen_addresses=127.0.0.1"]
        self._process = subprocess.Popen(
            [self._postgres, *options, "-c", "fsync=off"], stdout=log, stderr=log, cwd=self.folder, **as_nobody()
        )
        end = time.monotonic() + READY_LIMIT_S
        while not self._answers():
            assert self._process.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < end, (self.folder / "log").read_text()
            time.sleep(0.05)

    def _answers(self) -> bool:
        try:
            self.execute("SELECT 1")
        except Exception:  # it is still starting, and says so in several ways
            return False
        return True

    def stop(self) -> None:
        """At once, whoever is connected."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(READY_LIMIT_S)
            self._process = None

    def database(self) -> str:
        """The address of a new one."""
        name = f"test_{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def execute(self, statement: str, url: str | None = None) -> list[dict[str, object]]:
        """From outside any event loop, or beside one."""
        import asyncpg

        async def run() -> list[dict[str, object]]:
            db = await asyncpg.connect(url or self.url(), timeout=5)
            try:
                return [dict(row) for row in await db.fetch(statement)]
            finally:
                await db.close()

        with ThreadPoolExecutor(1) as thread:
            return thread.submit(asyncio.run, run()).result()


def as_nobody() -> dict[str, int]:
    """Postgres refuses to be root."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return {}
    import pwd  # not on Windows

    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid}


@contextmanager
def server() -> Iterator[Server]:
    """Skips where there is no Postgres."""
    pytest.importorskip("asyncpg")
    initdb, postgres = binary("initdb"), binary("postgres")
    if initdb is None or postgres is None:
        pytest.skip("There is no Postgres on this machine: neither initdb and postgres in PATH, nor in /usr/lib.")
    # Not in pytest's own folder, which nobody else may enter.
    folder = Path(tempfile.mkdtemp(prefix="smallfirst-postgres-"))
    try:
        (folder / "password").write_text("a-secret")
        if os.geteuid() == 0:
            for path in (folder, folder / "password"):
                shutil.chown(path, "nobody")
        options = "-U tester --pwfile password -A md5 --no-sync -E UTF8 --locale C".split()
        subprocess.run([initdb, "-D", "data", *options], check=True, capture_output=True, cwd=folder, **as_nobody())
        running = Server(folder, free_port(), postgres)
        try:
            running.start()
            yield running
        finally:
            running.stop()
    finally:
        shutil.rmtree(folder)
