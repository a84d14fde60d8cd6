"""A model server in a child process: start, watch, restart, stop; and what the child itself needs for that.

Knows how to keep a server alive, when to give it up, and that it must not outlive its parent. What runs in the child,
when it is healthy and what its last words mean, a subclass says (`rag.models.runtime` for llama.cpp,
`rag.models.foundry` for Foundry Local). Knows nothing of chat, prompts or answers: whoever talks to the server does so
over HTTP at `base_url`, like to any other OpenAI-compatible server. What computes is imported in the child only, so a
crash in C++ costs a restart and never the program.

The two processes know three things of each other:

    child's stdout   one JSON line, {"address": "http://127.0.0.1:PORT"}, once the model is loaded; the address is
                     everything before /v1
    child's stderr   its log; the parent keeps the end of it to explain a death
    child's stdin    never written to; its end tells the child that the parent is gone
"""

import asyncio
import ctypes
import http.client
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from rag.errors import ModelUnreachable

if TYPE_CHECKING:
    import psutil

LOG_LINES = 50
STOP_GRACE_S = 1
NOTICE_S = 1
# A server that dies this often within this time will die again.
MOST_DEATHS = 3
DEATHS_WITHIN_S = 60
FIRST_BACKOFF_S = 0.1
HEALTH_TIMEOUT_S = 5
KEY_VARIABLE = "SMALLFIRST_MODEL_SERVER_KEY"


class Hopeless(Exception):
    """Raised by a subclass: this child lives and will never answer. The text is the reason, and what to do."""


class ChildServer:
    """One model, served in a child process that is restarted when it dies.

    A subclass overrides `_command`, and what differs from the defaults: `_environment`, `_check`, `_address_of`,
    `_answers`, `_reason`, `_subject`.
    """

    def __init__(self, name: str) -> None:
        """`name` is the model's id on the wire."""
        self.name = name
        self.api_key = secrets.token_urlsafe()
        """Whoever asks the server must know it: a page from the web can send requests to this machine, too."""
        self.ready = asyncio.Event()
        """Set while the server answers."""
        self.restarts = 0
        self._address: str | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._log: deque[str] = deque(maxlen=LOG_LINES)
        # Either `ready` is set or there is a failure to tell; while neither is so, waiting makes sense.
        self._failure: str | None = f"The model {name} has not been started."
        self._settled = asyncio.Event()
        self._settled.set()

    @property
    def base_url(self) -> str:
        """`http://127.0.0.1:PORT/v1`. Ask again for each request: the port changes with a restart."""
        if self._address is None:
            raise ModelUnreachable(self._failure or f"The model {self.name} is still starting.")
        return f"{self._address}/v1"

    @property
    def pid(self) -> int | None:
        """The child's process id; None while there is no child."""
        return None if self._process is None or self._process.returncode is not None else self._process.pid

    async def start(self) -> None:
        """Return when the server answers. If it cannot be started, or the caller is cancelled, no child is left."""
        mine = self._keeper is None or self._keeper.done()
        if mine:
            self._failure = None
            self._settled.clear()
            self._keeper = asyncio.create_task(self._keep(), name=f"keep {self.name}")
        try:
            await self.wait_ready()
        except asyncio.CancelledError:
            if mine:
                await self.stop()
            raise

    async def stop(self) -> None:
        """End the child and stop watching. When this returns there is no child; calling it again changes nothing."""
        keeper = self._keeper
        if keeper is not None and not keeper.done():
            keeper.cancel()
            # `wait` and not `await keeper`: if our caller is cancelled meanwhile, the keeper still cleans up in peace.
            await asyncio.wait([keeper])

    async def wait_ready(self) -> None:
        """During a start or a restart: wait for its end. `ModelUnreachable` when the server is stopped or given up."""
        while not self.ready.is_set():
            if self._failure is not None:
                raise ModelUnreachable(self._failure)
            await self._settled.wait()

    # What a subclass says

    def _command(self) -> list[str]:
        """The program and its arguments. Never the key: arguments can be read by everybody on the machine."""
        raise NotImplementedError

    def _environment(self) -> dict[str, str]:
        """Of the child, whole."""
        return {**child_environment(), KEY_VARIABLE: self.api_key}

    def _check(self) -> str | None:
        """Why no child need be started: a sentence that also says what to do. None: nothing is known against it."""
        return None

    async def _address_of(self, process: asyncio.subprocess.Process) -> str | None:
        """Everything before /v1, as soon as the child tells; None when it died before it told. May raise `Hopeless`."""
        assert process.stdout is not None
        announcement = await process.stdout.readline()
        return str(json.loads(announcement)["address"]) if announcement else None

    def _answers(self, address: str) -> bool:
        """Would a request be answered now? Asked in a thread, until it is so or the child is dead. May raise `Hopeless`."""
        return status_of(f"{address}/health") == 200

    def _reason(self, status: int, was_ready: bool) -> str:
        """Why it died, and what to do, as the end of a sentence."""
        said = "" if was_ready or not self._log else f"{self._log[-1].strip()} "
        how = how_it_ended(status)
        return f"{said}(the process {how})." if said else f"the process {how}."

    @property
    def _subject(self) -> str:
        """What could not be started, as the beginning of a sentence."""
        return f"The model {self.name}"

    # Its life

    async def _keep(self) -> None:
        """Run the child, again and again. The only place that decides about restarts."""
        deaths: deque[float] = deque(maxlen=MOST_DEATHS)
        failure = f"The model {self.name} was stopped."
        ever_ready = False
        try:
            while True:
                was_ready, reason = await self._run_child()
                deaths.append(time.monotonic())
                ever_ready = ever_ready or was_ready
                if not ever_ready:
                    failure = f"{self._subject} cannot be started: {reason}"
                    break
                if len(deaths) == MOST_DEATHS and deaths[-1] - deaths[0] < DEATHS_WITHIN_S:
                    failure = (
                        f"The model {self.name} died {MOST_DEATHS} times within {DEATHS_WITHIN_S} seconds and is not "
                        f"restarted: {reason} Restart the program, or choose another model."
                    )
                    break
                self.restarts += 1
                await asyncio.sleep(FIRST_BACKOFF_S * 4 ** (len(deaths) - 1))
        except OSError as error:
            failure = f"The model {self.name} cannot be started: no child process could be made ({error})."
        except Exception as error:
            failure = f"The model {self.name} is not watched any more: {error!r}."
            raise
        finally:
            self._failure = failure
            self._settled.set()

    async def _run_child(self) -> tuple[bool, str]:
        """One child from birth to death: whether it was ever ready, and why it died."""
        if reason := self._check():
            return False, reason
        self._log.clear()
        process = await asyncio.create_subprocess_exec(
            *self._command(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self._environment(),
            # A group of its own: Ctrl-C in the terminal is the parent's to answer, and may only mean the turn.
            start_new_session=os.name == "posix",
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )
        self._process = process
        log = asyncio.create_task(self._read_log(process), name=f"log of {self.name}")
        was_ready = False
        try:
            address = await self._address_of(process)
            if address is not None and await self._healthy(address, process):
                was_ready = True
                self._address = address
                self.ready.set()
                self._settled.set()
            status = await _ended(process)
            _kill_family(process.pid, [])
            # Bounded: where somebody else has the child's end of the pipe, the log has none.
            await asyncio.wait([log], timeout=STOP_GRACE_S)
            return was_ready, self._reason(status, was_ready)
        except Hopeless as hopeless:
            return False, str(hopeless)
        finally:
            self.ready.clear()
            self._settled.clear()
            self._address = None
            try:
                await _end(process)
            finally:
                log.cancel()

    async def _healthy(self, address: str, process: asyncio.subprocess.Process) -> bool:
        """Wait until it answers; False when the child died before."""
        while process.returncode is None:
            if await asyncio.to_thread(self._answers, address):
                return True
            await asyncio.sleep(0.05)
        return False

    async def _read_log(self, process: asyncio.subprocess.Process) -> None:
        """Always reads, so that the child never blocks on a full pipe. Chunks, because lines may be of any length."""
        assert process.stderr is not None
        rest = ""
        while chunk := await process.stderr.read(4096):
            *lines, rest = (rest + chunk.decode(errors="replace")).split("\n")
            rest = rest[-4096:]
            self._log.extend(line for line in lines if line.strip())
        if rest.strip():
            self._log.append(rest)


def child_environment() -> dict[str, str]:
    """Ours, and what a Python child needs to find this package however the parent found it."""
    package_home = str(Path(__file__).resolve().parents[2])
    search_path = os.pathsep.join(filter(None, (package_home, os.environ.get("PYTHONPATH", ""))))
    return {**os.environ, "PYTHONPATH": search_path}


def python_command(module: str, *arguments: str) -> list[str]:
    """`python -m MODULE ARGUMENTS --parent PID`: a module of ours as a child, which calls `exit_with_parent`."""
    # -P: the working directory is the user's; a file of theirs must not pass for a module of ours.
    return [sys.executable, "-P", "-m", module, *arguments, "--parent", str(os.getpid())]


def how_it_ended(status: int) -> str:
    """For a person: `ended with status 1`, `was ended by SIGKILL; often the system ran out of memory`."""
    lacks_instruction = "; the processor lacks an instruction that this program uses"
    if status >= 0:
        windows_illegal_instruction = 0xC000001D
        return f"ended with status {status}{lacks_instruction if status == windows_illegal_instruction else ''}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    hints = {"SIGKILL": "; often the system ran out of memory", "SIGILL": lacks_instruction}
    return f"was ended by {name}{hints.get(name, '')}"


def status_of(url: str, headers: dict[str, str] | None = None) -> int | None:
    """HTTP status of a GET; None when nobody answers. Blocks."""
    # http.client and not a client library: it knows no proxies, and the child imports this module too.
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=HEALTH_TIMEOUT_S)
    try:
        connection.request("GET", parts.path, headers=headers or {})
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        # Not listening yet, or dead; the caller sees which.
        return None
    finally:
        connection.close()


async def _ended(process: asyncio.subprocess.Process) -> int:
    """Its status, when it has one."""
    waiting = asyncio.create_task(process.wait())
    try:
        while process.returncode is None:
            # Some Pythons also wait for the end of its pipes, which a program that it left behind may hold.
            await asyncio.wait([waiting], timeout=NOTICE_S)
        return process.returncode
    finally:
        waiting.cancel()


async def _end(process: asyncio.subprocess.Process) -> None:
    """Terminate, then kill, with all that the child started. Also when cancelled on the way, they get their SIGKILL."""
    family = [] if os.name == "posix" or process.returncode is not None else _descendants(process.pid)
    try:
        if process.returncode is None:
            # It may die by itself at any moment; then there is nothing left to signal.
            with suppress(ProcessLookupError):
                process.terminate()
            await asyncio.wait_for(process.wait(), STOP_GRACE_S)
    except TimeoutError:
        pass  # frozen, or deep in C++: `finally` is for it
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
        _kill_family(process.pid, family)
    await process.wait()


def _descendants(pid: int) -> "list[psutil.Process]":
    import psutil  # only the parent needs it

    try:
        family: list[psutil.Process] = psutil.Process(pid).children(recursive=True)
        return family
    except psutil.Error:
        return []


def _kill_family(pid: int, family: "list[psutil.Process]") -> None:
    """A child may have children (a llama-server that is started by a script) which outlive it."""
    if os.name == "posix":
        # The group is the child's own. PermissionError: macOS, when only zombies are left in it.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
    for member in family:
        with suppress(Exception):  # whatever psutil says: it has gone
            member.kill()


# In the child


def exit_with_parent(parent: int) -> None:
    """However the parent ends, SIGKILL included, this process ends too. Call it first."""

    def watch() -> None:
        while os.read(0, 4096):
            pass
        os._exit(0)

    threading.Thread(target=watch, name="watch the parent", daemon=True).start()
    # The thread cannot run while a model loads, if a library holds the GIL then (xllamacpp does, for 1 GB seconds).
    # Linux can do it without Python; elsewhere the child ends when loading does.
    set_parent_death_signal(signal.SIGKILL if sys.platform == "linux" else 0)
    if sys.platform == "linux" and os.getppid() != parent:
        os._exit(0)  # it died before the line above


def set_parent_death_signal(number: int) -> None:
    """Linux only, elsewhere nothing; 0: none."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, int(number))


class Announcement:
    """What the parent is told: JSON lines, the last of them the address. Made before anything is loaded that may print."""

    def __init__(self) -> None:
        """The announcement gets a stdout of its own; what libraries print goes to the log."""
        self._stdout = os.dup(1)
        os.dup2(2, 1)

    def say(self, **facts: Any) -> None:
        """Something on the way there."""
        os.write(self._stdout, json.dumps(facts).encode() + b"\n")

    def tell(self, address: str, **facts: Any) -> None:
        """The model is loaded, the server listens; `address` is everything before /v1. Nothing more is said."""
        # From here on the thread runs. It watches the process, the signal only the thread that started us.
        set_parent_death_signal(0)
        self.say(address=address, **facts)
        os.close(self._stdout)
