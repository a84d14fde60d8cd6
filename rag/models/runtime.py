"""The embedded llama.cpp server: start, watch, stop; and the turn-taking of models that share this machine's cores.

Knows how to keep one llama.cpp server alive in a child process (`python -m rag.models.runtime`), how to tell why it
died, and that it must not outlive its parent. Knows nothing of chat, prompts or answers: whoever talks to the server
does so over HTTP at `base_url`, like to any other OpenAI-compatible server. xllamacpp is imported in the child only, so
a crash in C++ costs a restart and never the program.

The two processes know three things of each other:

    child's stdout   one JSON line, {"address": "http://127.0.0.1:PORT"}, once the model is loaded
    child's stderr   llama.cpp's log; the parent keeps the end of it to explain a death
    child's stdin    never written to; its end tells the child that the parent is gone
"""

import argparse
import asyncio
import ctypes
import http.client
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

from rag.errors import ModelUnreachable

LOG_LINES = 50
STOP_GRACE_S = 1
# A server that dies this often within this time will die again.
MOST_DEATHS = 3
DEATHS_WITHIN_S = 60
FIRST_BACKOFF_S = 0.1
HEALTH_TIMEOUT_S = 5
# Tokens that llama.cpp computes in one go; between two of them it looks whether the client has gone, and reports its
# progress. Its own 2048 made a closed stream hold the server for a whole prompt, and at 256 a prompt is read as fast
# (SmolLM2 on two cores: 450 tokens/s at 2048, 512 and 256).
BATCH_TOKENS = 256
# The wheel's threads meet at libgomp's barriers, dozens of times a token. By default a thread spins there for
# milliseconds, which is fatal when another process has the core: two models at once fell from 110 tokens/s to under 1.
# With this count each gets its fair half (34 tokens/s decoding, 240 of 460 reading), and a model alone loses nothing.
GOMP_SPINCOUNT = "1000"
KEY_VARIABLE = "SMALLFIRST_MODEL_SERVER_KEY"


class EmbeddedServer:
    """One model, served by llama.cpp in a child process that is restarted when it dies."""

    def __init__(
        self, name: str, model_path: Path, *, context_tokens: int, threads: int = 0, prompt_cache_mb: int = 64
    ) -> None:
        """`name` is the model's id on the wire. `threads` 0: one for each physical core this process may use."""
        self.name = name
        self.model_path = model_path
        self.context_tokens = context_tokens
        self.threads = threads
        self.prompt_cache_mb = prompt_cache_mb
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
                    failure = f"The model {self.name} ({self.model_path}) cannot be started: {reason}"
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
        if not self.model_path.is_file():
            return False, "there is no such file. Pull the model, or choose another."
        self._log.clear()
        process = await asyncio.create_subprocess_exec(
            *self._command(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # Not an argument: those can be read by everybody on the machine.
            env={**_child_environment(), KEY_VARIABLE: self.api_key},
            # A group of its own: Ctrl-C in the terminal is the parent's to answer, and may only mean the turn.
            start_new_session=os.name == "posix",
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )
        self._process = process
        log = asyncio.create_task(self._read_log(process), name=f"log of {self.name}")
        was_ready = False
        try:
            assert process.stdout is not None
            if announcement := await process.stdout.readline():
                address = str(json.loads(announcement)["address"])
                if await _healthy(address, process):
                    was_ready = True
                    self._address = address
                    self.ready.set()
                    self._settled.set()
            status = await process.wait()
            await log
            return was_ready, self._reason(status, was_ready)
        finally:
            self.ready.clear()
            self._settled.clear()
            self._address = None
            try:
                await _end(process)
            finally:
                log.cancel()

    def _command(self) -> list[str]:
        # -P: the working directory is the user's; a file of theirs must not pass for a module of ours.
        command = [sys.executable, "-P", "-m", "rag.models.runtime", "--model", str(self.model_path)]
        command += ["--name", self.name, "--context-tokens", str(self.context_tokens)]
        command += ["--threads", str(self.threads or _physical_cores())]
        return [*command, "--prompt-cache-mb", str(self.prompt_cache_mb), "--parent", str(os.getpid())]

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

    def _reason(self, status: int, was_ready: bool) -> str:
        """Why it died. While loading, llama.cpp's first error is the cause and the rest are consequences.

        An error logged while serving (a prompt that was too long, say) is no cause of death: then only the signal is.
        """
        errors = [line for line in self._log if _LOG_ERROR.match(line)]
        if errors and not was_ready:
            said = _LOG_ERROR.sub("", errors[0])
        elif self._log and not was_ready:
            said = self._log[-1].strip()
        else:
            said = ""
        how = _how_it_ended(status)
        if not said:
            return f"the process {how}."
        return f"{said}{'' if status >= 0 else f' ({how})'}. Pull it again, or choose another model."


# "0.00.003.557 E gguf_init_from_reader: "
_LOG_ERROR = re.compile(r"^[\d.]+ E (\w+ +)?\w*(\(\))?: +")


def _how_it_ended(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    hints = {
        "SIGKILL": "; often the system ran out of memory",
        "SIGILL": "; the processor lacks an instruction that this build of llama.cpp uses",
    }
    return f"was ended by {name}{hints.get(name, '')}"


def _physical_cores() -> int:
    """Of those this process may use: hyper-threads only slow matrix products down, and a container may allow fewer."""
    import psutil  # only the parent needs it

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(psutil.cpu_count(logical=False) or allowed, allowed))


def _child_environment() -> dict[str, str]:
    """Ours, and what the child needs to find this package however the parent found it."""
    package_home = str(Path(__file__).resolve().parents[2])
    search_path = os.pathsep.join(filter(None, (package_home, os.environ.get("PYTHONPATH", ""))))
    return {"GOMP_SPINCOUNT": GOMP_SPINCOUNT, **os.environ, "PYTHONPATH": search_path}


async def _healthy(address: str, process: asyncio.subprocess.Process) -> bool:
    """Wait until /health says ok; False when the child died before."""
    while process.returncode is None:
        if await asyncio.to_thread(_health_ok, address):
            return True
        await asyncio.sleep(0.05)
    return False


def _health_ok(address: str) -> bool:
    # http.client and not a client library: it knows no proxies, and the child imports this module too.
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=HEALTH_TIMEOUT_S)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        # Not listening yet, or dead; the caller sees which.
        return False
    finally:
        connection.close()


async def _end(process: asyncio.subprocess.Process) -> None:
    """Terminate, then kill. Also when cancelled on the way, the child gets its SIGKILL."""
    if process.returncode is not None:
        return
    # It may die by itself at any moment; then there is nothing left to signal.
    with suppress(ProcessLookupError):
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), STOP_GRACE_S)
    except TimeoutError:
        pass  # frozen, or deep in C++: `finally` is for it
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
    await process.wait()


@dataclass(eq=False)
class _Waiter:
    granted: asyncio.Future[None]
    on_wait: Callable[[int], None] | None


class Cores:
    """One model computes at a time: two at once on the same cores write fewer tokens together than one alone.

    First come, first served. Belongs to one event loop.
    """

    def __init__(self) -> None:
        self._held = False
        self._queue: deque[_Waiter] = deque()

    @property
    def waiting(self) -> int:
        """How many wait; the one that computes is not among them."""
        return len(self._queue)

    @asynccontextmanager
    async def claim(self, on_wait: Callable[[int], None] | None = None) -> AsyncIterator[None]:
        """Hold the cores for the body.

        `on_wait(ahead)` is called when there is a wait, and whenever the number ahead (the one that computes included)
        changes; not with 0: then the body runs. What it raises ends the claim that it belongs to.
        """
        if self._held:
            await self._wait(on_wait)
        self._held = True
        try:
            yield
        finally:
            self._pass_on()

    async def _wait(self, on_wait: Callable[[int], None] | None) -> None:
        waiter = _Waiter(asyncio.get_running_loop().create_future(), on_wait)
        self._queue.append(waiter)
        try:
            if on_wait is not None:
                on_wait(len(self._queue))
            await waiter.granted
        except BaseException:
            if waiter in self._queue:
                behind = self._queue.index(waiter)
                self._queue.remove(waiter)
                self._tell(behind)
            elif waiter.granted.done() and not waiter.granted.cancelled() and waiter.granted.exception() is None:
                # Granted and cancelled in the same breath: the cores are ours, and nobody else would pass them on.
                self._pass_on()
            raise

    def _pass_on(self) -> None:
        """The cores stay held when they go to the next in the queue, so that nobody can slip in between."""
        self._held = bool(self._queue)
        if self._queue:
            self._queue.popleft().granted.set_result(None)
            self._tell(0)

    def _tell(self, first: int) -> None:
        """Everybody from that place on has one fewer ahead."""
        for ahead, waiter in enumerate(list(self._queue)[first:], first + 1):
            try:
                if waiter.on_wait is not None:
                    waiter.on_wait(ahead)
            except Exception as error:
                # Its own claim fails, not that of the one who happens to leave.
                self._queue.remove(waiter)
                waiter.granted.set_exception(error)


# The child


def _exit_with_parent(parent: int) -> None:
    """However the parent ends, SIGKILL included, this process ends too."""

    def watch() -> None:
        while os.read(0, 4096):
            pass
        os._exit(0)

    threading.Thread(target=watch, name="watch the parent", daemon=True).start()
    # The thread cannot run while a model loads: xllamacpp holds the GIL then (for 1 GB, seconds). Linux can do it
    # without Python; elsewhere the child ends when loading does.
    _set_parent_death_signal(signal.SIGKILL if sys.platform == "linux" else 0)
    if sys.platform == "linux" and os.getppid() != parent:
        os._exit(0)  # it died before the line above


def _set_parent_death_signal(number: int) -> None:
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, int(number))


def serve(name: str, model: Path, context_tokens: int, threads: int, prompt_cache_mb: int, parent: int) -> NoReturn:
    """The child's whole life. It ends with its parent, by a signal, or with status 1 and a logged reason."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _exit_with_parent(parent)
    # llama.cpp and libraries below it may print; the announcement gets a stdout of its own, theirs goes to the log.
    announce = os.dup(1)
    os.dup2(2, 1)

    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.model_alias = {name}
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.n_ctx = context_tokens
    params.n_parallel = 1
    params.n_batch = BATCH_TOKENS
    params.n_ubatch = BATCH_TOKENS
    # Measured with SmolLM2 on two cores: one thread instead of two reads 235 tokens/s instead of 455 and writes 80
    # instead of 110. Flash attention stays on its default, auto, which is on here: off, the prompt is read a fifth
    # slower (370 tokens/s), while 900 tokens in it writes a quarter faster (130 against 100), which short answers to
    # long prompts never earn back.
    params.cpuparams.n_threads = threads
    params.cpuparams_batch.n_threads = threads
    # Unbounded, old prompts grew one server to 4.6 GB. llama.cpp counts in MiB.
    params.cache_ram_mib = prompt_cache_mb * 1_000_000 // (1 << 20)
    params.warmup = False
    params.ui = False
    params.endpoint_slots = False
    # Pages from the web must not read this server's answers; our own programs send no Origin.
    params.cors_origins = "http://127.0.0.1"
    params.cors_credentials = False
    params.api_keys = [os.environ[KEY_VARIABLE]]
    params.verbosity = 2  # warnings and errors

    try:
        server = xllamacpp.Server(params)
    except RuntimeError:
        # It says only "failed to init"; the reason is in the log, which a thread of llama.cpp writes: only an orderly
        # exit waits for that.
        sys.exit(1)
    _set_parent_death_signal(0)
    os.write(announce, json.dumps({"address": server.listening_address}).encode() + b"\n")
    os.close(announce)
    while True:
        # Its own threads serve; `server` must stay referenced, and this thread asleep without the GIL.
        threading.Event().wait()


def main() -> NoReturn:
    parser = argparse.ArgumentParser(prog="python -m rag.models.runtime", description="Serve one model; internal.")
    parser.add_argument("--name", required=True)
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--context-tokens", required=True, type=int)
    parser.add_argument("--threads", required=True, type=int)
    parser.add_argument("--prompt-cache-mb", required=True, type=int)
    parser.add_argument("--parent", required=True, type=int)
    serve(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
