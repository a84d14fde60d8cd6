"""The embedded llama.cpp server: one GGUF model in a child process.

Knows how llama.cpp is started so that it is fast, modest and private on this machine, and how to read its log for the
reason of its death. The child's life is `rag.models.child`'s. There are two programs to serve with: xllamacpp, which is
imported in the child only, and any llama-server, built for this processor (`rag.models.native`) or the user's own. On
the wire they are the same.

A llama-server finds itself a free port and tells nobody. Its parent looks which port the child listens on, so that no
other program can come between, as it could if a port were chosen first and opened later.
"""

import argparse
import asyncio
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NoReturn

from rag.models.child import (
    KEY_VARIABLE,
    Announcement,
    ChildServer,
    Hopeless,
    exit_with_parent,
    how_it_ended,
    python_command,
    status_of,
)

# Tokens that llama.cpp computes in one go; between two of them it looks whether the client has gone, and reports its
# progress. Its own 2048 made a closed stream hold the server for a whole prompt, and at 256 a prompt is read as fast
# (SmolLM2 on two cores: 450 tokens/s at 2048, 512 and 256).
BATCH_TOKENS = 256
# The wheel's threads meet at libgomp's barriers, dozens of times a token. By default a thread spins there for
# milliseconds, which is fatal when another process has the core: two models at once fell from 110 tokens/s to under 1.
# With this count each gets its fair half (34 tokens/s decoding, 240 of 460 reading), and a model alone loses nothing.
GOMP_SPINCOUNT = "1000"
# A llama-server opens its port before it loads the model, so this waits for no disk.
LISTEN_LIMIT_S = 60
# What else llama.cpp would read from the environment: another address, a folder to serve, tools for agents.
_FOREIGN_VARIABLES = ("LLAMA_", "AIP_")


class EmbeddedServer(ChildServer):
    """One model, served by llama.cpp in a child process that is restarted when it dies."""

    def __init__(
        self,
        name: str,
        model_path: Path,
        *,
        context_tokens: int,
        threads: int = 0,
        prompt_cache_mb: int = 64,
        batch_tokens: int = BATCH_TOKENS,
        program: Path | None = None,
    ) -> None:
        """`name` is the model's id on the wire. `threads` 0: one for each physical core this process may use.

        `program` is a llama-server to run instead of xllamacpp.
        """
        super().__init__(name)
        self.model_path = model_path
        self.context_tokens = context_tokens
        self.threads = threads
        self.prompt_cache_mb = prompt_cache_mb
        self.batch_tokens = batch_tokens
        self.program = program
        self.stays = sys.platform != "linux"
        """Does a process of ours stay beside the program? Not on Linux, where it becomes the program."""

    @property
    def _subject(self) -> str:
        with_program = f" with {self.program}" if self.program else ""
        return f"The model {self.name} ({self.model_path}){with_program}"

    def _check(self) -> str | None:
        if not self.model_path.is_file():
            return "there is no such file. Pull the model, or choose another."
        if self.program and not self.program.is_file():
            return f"there is no such program. {OTHER_PROGRAM}"
        if self.program and not os.access(self.program, os.X_OK):
            return f"that file may not be executed. {OTHER_PROGRAM}"
        return None

    def _command(self) -> list[str]:
        threads = self.threads
        if not threads:
            from rag.models import processor  # brings psutil, which only the parent needs

            threads = processor.physical_cores()
        arguments = [f"--model={self.model_path}", f"--name={self.name}"]
        arguments += ["--context-tokens", str(self.context_tokens), "--threads", str(threads)]
        arguments += ["--batch-tokens", str(self.batch_tokens), "--prompt-cache-mb", str(self.prompt_cache_mb)]
        if self.program:
            # Absolute: without a slash in it, a name would be looked for elsewhere.
            arguments += ["--program", str(self.program.absolute()), *(["--stay"] if self.stays else [])]
        return python_command("rag.models.runtime", *arguments)

    def _environment(self) -> dict[str, str]:
        own = {name: value for name, value in super()._environment().items() if not name.startswith(_FOREIGN_VARIABLES)}
        if self.program:
            own["LLAMA_API_KEY"] = self.api_key
        return {"GOMP_SPINCOUNT": GOMP_SPINCOUNT, **own}

    async def _address_of(self, process: asyncio.subprocess.Process) -> str | None:
        if self.program is None:
            return await super()._address_of(process)
        deadline_s = time.monotonic() + LISTEN_LIMIT_S
        while process.returncode is None:
            if port := await asyncio.to_thread(_listening_port, process.pid):
                return f"http://127.0.0.1:{port}"
            if time.monotonic() > deadline_s:
                raise Hopeless(f"it did not listen on a port within {LISTEN_LIMIT_S} seconds. {OTHER_PROGRAM}")
            await asyncio.sleep(0.02)
        return None

    def _answers(self, address: str) -> bool:
        status = status_of(f"{address}/health")
        # 503: it is loading; None: it has just died.
        if self.program and status not in (200, 503, None):
            raise Hopeless(f"it answers /health with status {status}, as no llama-server does. {OTHER_PROGRAM}")
        return status == 200

    def _reason(self, status: int, was_ready: bool) -> str:
        """Why it died. While loading, llama.cpp's first error is the cause and the rest are consequences.

        An error logged while serving (a prompt that was too long, say) is no cause of death: then only the signal is.
        """
        how = how_it_ended(status)
        if was_ready or not self._log:
            return f"the process {how}.{f' {OTHER_PROGRAM}' if self.program and not was_ready else ''}"
        if errors := [line for line in self._log if _LOG_ERROR.match(line)]:
            said, advice = _LOG_ERROR.sub("", errors[0]), "Pull it again, or choose another model."
        elif self.program is None:
            said, advice = self._log[-1].strip(), "Pull it again, or choose another model."
        elif refused := next(filter(None, map(_REFUSED_OPTION.search, self._log)), None):
            said, advice = (
                f"it does not know the option {refused[1]}, so it is too old or no llama-server",
                OTHER_PROGRAM,
            )
        else:
            complaint = next(filter(_COMPLAINT.search, self._log), self._log[-1])
            said, advice = complaint.strip().rstrip("."), OTHER_PROGRAM
        return f"{said}{'' if status >= 0 else f' ({how})'}. {advice}"


OTHER_PROGRAM = "Set RAG_LLAMA_SERVER to another llama-server, or build one: smallfirst models build."
# "0.00.003.557 E gguf_init_from_reader: "
_LOG_ERROR = re.compile(r"^[\d.]+ E (\w+ +)?\w*(\(\))?: +")
# llama.cpp's own "error: invalid argument: --cache-ram", and how other programs put it.
_REFUSED_OPTION = re.compile(r"(?i)(?:invalid|unknown|unrecogni[sz]ed|illegal) (?:argument|option)\W+(--[\w-]+)")
_COMPLAINT = re.compile(r"(?i)error|fail|cannot|can't|invalid|not found|no such|denied")


def _listening_port(pid: int) -> int | None:
    """Of the child, or of one that it started."""
    import psutil  # only the parent needs it

    try:
        child = psutil.Process(pid)
        for process in (child, *child.children(recursive=True)):
            for connection in process.net_connections(kind="tcp4"):
                if connection.status == psutil.CONN_LISTEN:
                    return int(connection.laddr.port)
    except (psutil.Error, OSError):
        pass  # it has just died
    return None


# The child


def serve(
    name: str, model: Path, context_tokens: int, threads: int, batch_tokens: int, prompt_cache_mb: int
) -> NoReturn:
    """With xllamacpp. Ends by a signal, or with status 1 and a logged reason."""
    announcement = Announcement()

    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.model_alias = {name}
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.n_ctx = context_tokens
    params.n_parallel = 1
    params.n_batch = batch_tokens
    params.n_ubatch = batch_tokens
    # Measured with SmolLM2 on two cores: one thread instead of two reads 235 tokens/s instead of 455 and writes 80
    # instead of 110. Flash attention stays on its default, auto, which is on here: off, the prompt is read a fifth
    # slower (370 tokens/s), while 900 tokens in it writes a quarter faster (130 against 100), which short answers to
    # long prompts never earn back.
    params.cpuparams.n_threads = threads
    params.cpuparams_batch.n_threads = threads
    # Unbounded, old prompts grew one server to 4.6 GB.
    params.cache_ram_mib = _mebibytes(prompt_cache_mb)
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
    announcement.tell(server.listening_address)
    while True:
        # Its own threads serve; `server` must stay referenced, and this thread asleep without the GIL.
        threading.Event().wait()


def program_command(
    program: Path, name: str, model: Path, context_tokens: int, threads: int, batch_tokens: int, prompt_cache_mb: int
) -> list[str]:
    """What `serve` does, said to a llama-server. The key is in its environment, where llama-server looks for it."""
    command = [str(program), "--model", str(model), "--alias", name, "--host", "127.0.0.1", "--port", "0"]
    command += ["--ctx-size", str(context_tokens), "--parallel", "1"]
    command += ["--batch-size", str(batch_tokens), "--ubatch-size", str(batch_tokens)]
    command += ["--threads", str(threads), "--threads-batch", str(threads)]
    command += ["--cache-ram", str(_mebibytes(prompt_cache_mb)), "--no-warmup", "--no-webui", "--no-slots"]
    command += ["--cors-origins", "http://127.0.0.1", "--no-cors-credentials"]
    return [*command, "--offline", "--verbosity", "2"]


def _mebibytes(megabytes: int) -> int:
    """llama.cpp counts in these."""
    return megabytes * 1_000_000 // (1 << 20)


def become(command: list[str]) -> NoReturn:
    """Linux: this process goes on as that program, and the signal at its parent's death goes with it."""
    os.dup2(2, 1)  # what it prints goes to the log
    try:
        os.execv(command[0], command)
    except OSError as error:
        sys.exit(f"error: {error.strerror}")


def stay(command: list[str]) -> NoReturn:
    """Elsewhere: this process stays, and ends that program when its own parent or itself is ended."""
    try:
        program = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=2)
    except OSError as error:
        sys.exit(f"error: {error.strerror}")
    signal.signal(signal.SIGTERM, lambda *_: program.terminate())

    def watch() -> None:
        while os.read(0, 4096):
            pass
        program.kill()

    threading.Thread(target=watch, name="watch the parent", daemon=True).start()
    status = program.wait()
    if status < 0:
        # The parent reads a death by its signal.
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


def main() -> NoReturn:
    parser = argparse.ArgumentParser(prog="python -m rag.models.runtime", description="Serve one model; internal.")
    parser.add_argument("--name", required=True)
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--context-tokens", required=True, type=int)
    parser.add_argument("--threads", required=True, type=int)
    parser.add_argument("--batch-tokens", required=True, type=int)
    parser.add_argument("--prompt-cache-mb", required=True, type=int)
    parser.add_argument("--parent", required=True, type=int)
    parser.add_argument("--program", type=Path)
    parser.add_argument("--stay", action="store_true")
    options = vars(parser.parse_args())
    parent, program, stays = (options.pop(name) for name in ("parent", "program", "stay"))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if program and stays:
        stay(program_command(program, **options))
    exit_with_parent(parent)
    if program:
        become(program_command(program, **options))
    serve(**options)


if __name__ == "__main__":
    main()
