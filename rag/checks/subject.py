"""What is examined: the settings, the address that the chat would have, and what several checks want to know of them.

Knows how to look without being held up: in a thread that nobody waits for, in a process that may crash. Judges nothing.
"""

import asyncio
import importlib.metadata
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar
from urllib.parse import urlsplit

from rag.errors import RagError
from rag.settings import PACKAGE, Settings

if TYPE_CHECKING:
    from rag.models.discovery import Server
    from rag.models.places import LegName, Place, Search
    from rag.models.weights import Weights

Status = Literal["ok", "note", "bad"]
"""note: the chat works, and something about it could be better. bad: it could not work as it is set up."""

LEGS: "tuple[LegName, ...]" = ("slm", "llm")
SPOKEN = {"slm": "small model", "llm": "larger model"}

Outcome = TypeVar("Outcome")


@dataclass(frozen=True)
class Seen:
    """What a check found. `mend` says what to do now; empty where nothing needs to be done."""

    status: Status
    detail: str
    mend: str = ""


def ok(detail: str, mend: str = "") -> Seen:
    return Seen("ok", detail, mend)


def note(detail: str, mend: str) -> Seen:
    return Seen("note", detail, mend)


def bad(detail: str, mend: str) -> Seen:
    return Seen("bad", detail, mend)


@dataclass
class Subject:
    """What is examined, and what several checks want to know of it."""

    settings: Settings
    host: str = "127.0.0.1"
    port: int = 8000
    deep: bool = False
    tell: Callable[[str], None] = lambda words: None
    _search: "Search | None" = None
    _places: "dict[LegName, asyncio.Task[tuple[Place, str]]]" = field(default_factory=dict)

    @property
    def search(self) -> "Search":
        from rag.models.places import Search

        if self._search is None:
            self._search = Search(self.settings)
        return self._search

    async def servers(self) -> "list[Server]":
        """All that are named or found; looked for once."""
        return await self.search.servers()

    async def place(self, leg: "LegName") -> "tuple[Place, str]":
        """Where that leg's model is to be had, and a word on it; looked for once. Raises RagError, as the chat would."""
        if leg not in self._places:
            self._places[leg] = asyncio.create_task(self._place(leg))
        # One check that takes too long must not end it for the others.
        return await asyncio.shield(self._places[leg])

    async def _place(self, leg: "LegName") -> "tuple[Place, str]":
        from rag.models import places

        place = places.declared(leg, self.settings)
        if place is None:
            return await places.locate(leg, self.settings, self.search)
        if isinstance(place, places.Hosted):
            servers = await self.servers()
            # One that is both legs' has the name of the other one's setting; one may have two doors, of which one is right.
            meant = [
                one for one in servers if place.server.base_url == one.base_url or place.server.found_by == one.found_by
            ]
            if meant:
                server = next((one for one in meant if one.models), meant[0])
                place = places.settle(leg, self.settings, server, [one for one in servers if one is not server])
        return place, ""

    async def embedded(self) -> "dict[LegName, tuple[Path | None, Weights | None]]":
        """The legs whose models llama.cpp runs here: the file, None where it is not here yet, and what it should be."""
        from rag.models import places, weights

        found: dict[LegName, tuple[Path | None, Weights | None]] = {}
        for leg in LEGS:
            with suppress(RagError):
                place, _ = await self.place(leg)
                if isinstance(place, places.Embedded) and place.weights is not None:
                    found[leg] = weights.installed(place.weights, self.settings.cache_dir), place.weights
                elif isinstance(place, places.Embedded):
                    found[leg] = place.file, None
        return found


def of_text(status: Status, text: str) -> Seen:
    """Of one of our errors: it says what is wrong, and in its last sentence what to do."""
    what, _, mend = text.rpartition(". ")
    return Seen(status, what, mend) if what else Seen(status, text)


def together(seen: Sequence[Seen]) -> Seen:
    """Several as one: what is worst decides, and is told first."""
    order: list[Status] = ["bad", "note", "ok"]
    ranked = sorted(seen, key=lambda one: order.index(one.status))
    mends = dict.fromkeys(one.mend for one in ranked if one.mend)
    return Seen(ranked[0].status, "; ".join(one.detail for one in ranked), " ".join(mends))


async def aside(work: Callable[[], Outcome]) -> Outcome:
    """In a thread that nobody waits for at the end: what hangs in a system call cannot be ended."""
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[Outcome] = loop.create_future()

    def settle(result: Outcome | None, error: BaseException | None) -> None:
        if outcome.done():
            return
        if error is not None:
            outcome.set_exception(error)
        else:
            outcome.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result: Outcome | None = None
        failure: BaseException | None = None
        try:
            result = work()
        except BaseException as error:
            failure = error
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=run, name="doctor", daemon=True).start()
    return await outcome


async def child(code: str, **environment: str) -> tuple[int, str, str]:
    """This Python runs some code elsewhere: its status, and what it said. A crash there is no crash here."""
    search_path = os.pathsep.join(filter(None, (str(PACKAGE.parent), os.environ.get("PYTHONPATH", ""))))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-c", code, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": search_path, **environment},
    )  # fmt: skip
    try:
        out, said = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode or 0, out.decode(errors="replace"), said.decode(errors="replace")


def last_line(said: str, status: int) -> str:
    """Of what a child said before it ended: Python's tracebacks end with the reason."""
    lines = said.strip().splitlines()
    return lines[-1] if lines else f"it ended with status {status}"


def version_of(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def pip() -> str:
    """How this installation was made, and can be made whole."""
    if (PACKAGE.parent / "pyproject.toml").is_file():
        return f"{sys.executable} -m pip install -e {PACKAGE.parent} -c {PACKAGE.parent / 'constraints.txt'}"
    return f"{sys.executable} -m pip install --upgrade smallfirst"


def without_password(url: str) -> str:
    """An address as it may be shown."""
    parts = urlsplit(url)
    if "@" not in parts.netloc:
        return url
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def others_may_read(path: Path) -> bool:
    return os.name == "posix" and bool(path.stat().st_mode & 0o077)


def mb(size: float) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.0f} MB"
