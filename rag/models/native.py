"""llama.cpp's own server, compiled for this processor.

The wheel's llama.cpp is compiled for many processors, this one for the one that it runs on: with its newer instructions
it reads prompts up to 1.8 times as fast. Knows where the sources come from (the source distribution of exactly the
xllamacpp that is installed, which carries llama.cpp's), how they are compiled, and where the result is kept. Knows
nothing of models and of how the program is run (`rag.models.runtime`).

pip fetches the sources and, as with any source distribution, asks their build script for its metadata; nothing of it is
installed. cmake and ninja are the system's, or else fetched for the build alone. In the cache folder:

    runtime/llama-server-VERSION-PROCESSOR   the finished program, which ran once
    runtime/build-*/                         a build that goes on, or was killed; the next one removes it
    runtime/build.lock                       held by the one process that builds
"""

import errno
import importlib.metadata
import os
import queue
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
from filelock import FileLock, Timeout

from rag.errors import RagError
from rag.models import processor

Phase = Literal["fetching", "configuring", "compiling", "trying"]

PACKAGE = "xllamacpp"
PROGRAM = "llama-server.exe" if sys.platform == "win32" else "llama-server"
PROGRESS_INTERVAL_S = 0.1
# Sources, what pip unpacks to ask for their metadata, objects: 480 MB at most; cmake, if it must be fetched, 90.
NEEDED_BYTES = 650_000_000
# A compiler's process for llama.cpp's larger files.
COMPILER_BYTES = 700_000_000
TRY_LIMIT_S = 60
STOP_GRACE_S = 3
# The oldest that llama.cpp's build files accept.
CMAKE_VERSION = (3, 14)
OPTIONS = {
    "CMAKE_BUILD_TYPE": "Release",
    "GGML_NATIVE": "ON",
    # One file, that can be moved.
    "BUILD_SHARED_LIBS": "OFF",
    # It only ever talks to this machine, and must fetch nothing: neither models nor, while it is built, its web page.
    "LLAMA_CURL": "OFF",
    "LLAMA_OPENSSL": "OFF",
    "LLAMA_BUILD_UI": "OFF",
    "LLAMA_USE_PREBUILT_UI": "OFF",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_BUILD_APP": "OFF",
    "LLAMA_ALL_WARNINGS": "OFF",
}


@dataclass(frozen=True)
class Progress:
    """`done` of `total` steps when compiling, bytes when fetching; `total` 0: not known."""

    phase: Phase
    done: int = 0
    total: int = 0
    note: str = ""


class BuildError(RagError):
    """llama.cpp could not be compiled here. Nothing of the attempt is left."""


class BuildCancelled(BuildError):
    """The caller set `cancelled`."""


def find(cache_dir: Path) -> Path | None:
    """The program built for this processor out of the sources of the xllamacpp that is installed, if there is one."""
    try:
        path = _path(cache_dir)
    except importlib.metadata.PackageNotFoundError:
        return None
    return path if path.is_file() and os.access(path, os.X_OK) else None


def build(
    cache_dir: Path,
    progress: Callable[[Progress], None] = lambda _: None,
    cancelled: threading.Event | None = None,
) -> Path:
    """The program, built if it must be. Blocks for minutes: call it in a thread.

    `progress` is called in this thread, up to ten times a second. After `cancelled` is set, `BuildCancelled` follows in
    a fraction of a second, and no compiler runs on.
    """
    meter = _Meter(progress, cancelled or threading.Event())
    folder = cache_dir / "runtime"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "build.lock")
        while not lock.is_locked:
            try:
                lock.acquire(timeout=PROGRESS_INTERVAL_S)
            except Timeout:
                meter.tell(Progress("compiling", note="another process is building it"))
        try:
            if (path := find(cache_dir)) and not _why_it_fails(path, meter):
                return path
            for stale in folder.glob("build-*/"):
                shutil.rmtree(stale, ignore_errors=True)
            # A short name: Windows counts the characters of a path.
            work = Path(tempfile.mkdtemp(prefix="build-", dir=folder))
            try:
                return _build(work, _path(cache_dir), meter)
            finally:
                shutil.rmtree(work, ignore_errors=True)
        finally:
            lock.release()
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise BuildError(_no_space(folder)) from error
        raise BuildError(
            f"llama.cpp cannot be built in {folder}: {error.strerror or error}. Make the folder writable, "
            "or set RAG_CACHE_DIR to another one."
        ) from error


def _path(cache_dir: Path) -> Path:
    version = importlib.metadata.version(PACKAGE)
    return cache_dir / "runtime" / f"llama-server-{version}-{processor.key()}{Path(PROGRAM).suffix}"


def _build(work: Path, path: Path, meter: "_Meter") -> Path:
    # What would fail anyway fails before anything is fetched.
    _need_compiler()
    if shutil.disk_usage(work).free < NEEDED_BYTES:
        raise BuildError(_no_space(work.parent))
    cmake, ninja = _tools(work / "tools", meter)
    archive = _fetch(work / "fetched", meter)
    sources = unpack(archive, work / "src", meter.check)
    archive.unlink()
    built = _compile(cmake, ninja, sources, work / "out", meter)
    meter.tell(Progress("trying"), at_once=True)
    if why := _why_it_fails(built, meter):
        raise BuildError(f"llama.cpp was compiled, and the program does not run: {why}.")
    with built.open("rb+") as file:
        os.fsync(file.fileno())  # after a power cut the final name must not stand over half a program
    os.replace(built, path)
    return path


class _Meter:
    """Throttles progress, and is the one place where a build notices that it was cancelled."""

    def __init__(self, progress: Callable[[Progress], None], cancelled: threading.Event) -> None:
        self._progress = progress
        self._cancelled = cancelled
        self._told_s = float("-inf")

    def tell(self, progress: Progress, *, at_once: bool = False) -> None:
        self.check()
        now_s = time.monotonic()
        if at_once or now_s - self._told_s >= PROGRESS_INTERVAL_S:
            self._told_s = now_s
            self._progress(progress)

    def check(self) -> None:
        if self._cancelled.is_set():
            raise BuildCancelled("Building llama.cpp was cancelled. Nothing of it is left.")


# What is needed


def _need_compiler() -> None:
    named = shlex.split(os.environ.get("CXX", ""))[:1]
    if sys.platform == "win32":
        return  # cmake knows where Visual Studio keeps its own; it is not on the search path
    found = any(map(shutil.which, named or ("c++", "g++", "clang++")))
    if found and sys.platform == "darwin":
        # There c++ is always there; without Apple's tools it only asks for them.
        found = subprocess.run(["xcode-select", "-p"], capture_output=True, check=False).returncode == 0
    if not found:
        raise BuildError(_no_compiler())


def _no_compiler() -> str:
    if sys.platform == "win32":
        how = 'install Visual Studio\'s Build Tools with "Desktop development with C++"'
    elif sys.platform == "darwin":
        how = "run: xcode-select --install"
    else:
        commands = {
            "apt-get": "sudo apt-get install g++",
            "dnf": "sudo dnf install gcc-c++",
            "apk": "sudo apk add g++ linux-headers",
            "pacman": "sudo pacman -S gcc",
            "zypper": "sudo zypper install gcc-c++",
        }
        fitting = [command for manager, command in commands.items() if shutil.which(manager)]
        how = f"run: {fitting[0]}" if fitting else "install g++ or clang"
    return f"There is no C++ compiler here, which building llama.cpp needs. To have one, {how}. Then build again."


def _no_space(folder: Path) -> str:
    return (
        f"Building llama.cpp needs {NEEDED_BYTES:,} bytes for a while in {folder}, and "
        f"{shutil.disk_usage(folder).free:,} are free. Free some space, or set RAG_CACHE_DIR to a folder on another disk."
    )


def _tools(folder: Path, meter: _Meter) -> tuple[str, str]:
    """cmake and ninja, fetched where the system has none or too old a one."""
    cmake, ninja = shutil.which("cmake"), shutil.which("ninja")
    if cmake:
        status, said = _run([cmake, "--version"], meter)
        version = re.search(r"version (\d+)\.(\d+)", "\n".join(said))
        if status != 0 or not version or (int(version[1]), int(version[2])) < CMAKE_VERSION:
            cmake = None
    lacking = [name for name, found in (("cmake", cmake), ("ninja", ninja)) if not found]
    if lacking:
        _pip(["install", "--only-binary=:all:", f"--target={folder}", *lacking], folder, meter)
    suffix = Path(PROGRAM).suffix
    # Not the cmake beside ninja in bin/: that is a script which looks for its package.
    cmake = cmake or str(folder / "cmake" / "data" / "bin" / f"cmake{suffix}")
    ninja = ninja or str(folder / "bin" / f"ninja{suffix}")
    return cmake, ninja


# From the index to a program


def _fetch(folder: Path, meter: _Meter) -> Path:
    requirement = f"{PACKAGE}=={importlib.metadata.version(PACKAGE)}"
    _pip(["download", f"--no-binary={PACKAGE}", "--dest", str(folder), requirement], folder, meter)
    archives = list(folder.glob(f"{PACKAGE}-*.tar.gz"))
    if len(archives) != 1:
        raise BuildError(f"pip brought no source distribution of {requirement}. Build again later.")
    return archives[0]


def _pip(command: list[str], folder: Path, meter: _Meter) -> None:
    """With the user's own configuration: which index, which proxy and which certificates is their business.

    Old pips report no progress that a program can read, so the bytes are counted on disk.
    """
    temporary = folder.with_name(f"{folder.name}.tmp")
    folder.mkdir()
    temporary.mkdir()
    options = ["--no-deps", "--no-cache-dir", "--no-input", "--disable-pip-version-check", "--progress-bar=off"]

    def arrived() -> None:
        sizes = [_size_or_zero(Path(parent, name)) for parent, _, names in os.walk(temporary) for name in names]
        meter.tell(Progress("fetching", max(sizes, default=0)))

    status, said = _run(
        [sys.executable, "-m", "pip", command[0], *options, *command[1:]],
        meter,
        environment={**os.environ, **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temporary))},
        meanwhile=arrived,
    )
    shutil.rmtree(temporary, ignore_errors=True)
    if status != 0:
        errors = [line.removeprefix("ERROR:").strip() for line in said if line.startswith("ERROR:")]
        why = (errors or said[-1:] or [f"it ended with status {status}"])[0].rstrip(".")
        raise BuildError(f"pip did not bring {' and '.join(command[-1:])}: {why}. Build again when it can be fetched.")


def unpack(archive: Path, folder: Path, check: Callable[[], None] = lambda: None) -> Path:
    """llama.cpp's sources out of the archive, and nothing that would land elsewhere; returns their folder."""
    if not hasattr(tarfile, "data_filter"):
        raise BuildError(f"Python {sys.version.split()[0]} cannot unpack archives safely; 3.11.4 and later can.")
    try:
        with tarfile.open(archive) as opened:
            for member in opened:
                check()
                inside = member.name.split("/", 1)[-1]
                if inside.startswith("thirdparty/llama.cpp/"):
                    opened.extract(member, folder, filter="data")
    except tarfile.FilterError as error:
        raise BuildError(
            f"{archive.name} holds {error.tarinfo.name}, which would land outside; it is not used."
        ) from error
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        raise BuildError(f"{archive.name} is damaged: {error}. Build again, so that it is fetched anew.") from error
    sources = list(folder.glob("*/thirdparty/llama.cpp/CMakeLists.txt"))
    if len(sources) != 1:
        raise BuildError(f"{archive.name} does not hold llama.cpp's sources in thirdparty/llama.cpp.")
    return sources[0].parent


def _compile(cmake: str, ninja: str, sources: Path, out: Path, meter: _Meter) -> Path:
    meter.tell(Progress("configuring"), at_once=True)
    # On Windows cmake's own choice, Visual Studio: with ninja the compiler would have to be on the search path.
    windows = sys.platform == "win32"
    generator = [] if windows else ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    definitions = [f"-D{name}={value}" for name, value in OPTIONS.items()]
    status, said = _run([cmake, "-S", str(sources), "-B", str(out), *generator, *definitions], meter)
    if status != 0:
        if re.search(r"No CMAKE_C(XX)?_COMPILER could be found", "\n".join(said)):
            raise BuildError(_no_compiler())
        raise BuildError(f"llama.cpp cannot be compiled here: {_cmake_reason(said, sources)}")
    jobs = min(processor.logical_cores(), max(1, psutil.virtual_memory().available // COMPILER_BYTES))
    target = "llama-server"

    def count(line: str) -> None:
        if step := re.match(r"\[(\d+)/(\d+)\]", line):
            meter.tell(Progress("compiling", int(step[1]), int(step[2])))

    if windows:
        command = [cmake, "--build", str(out), "--config", "Release", "--target", target, "--parallel", str(jobs)]
    else:
        # Itself and not through cmake: told to end, it ends its compilers.
        command = [ninja, "-C", str(out), f"-j{jobs}", target]
    meter.tell(Progress("compiling"), at_once=True)
    status, said = _run(command, meter, on_line=count, politely=True)
    if status != 0:
        raise BuildError(f"llama.cpp cannot be compiled here: {_compiler_reason(said, status, sources)}")
    programs = [path for path in out.rglob(PROGRAM) if path.is_file()]
    if not programs:
        raise BuildError(f"llama.cpp's build made no {PROGRAM}; these sources cannot be used.")
    return programs[0]


def _cmake_reason(said: list[str], sources: Path) -> str:
    """`CMake Error at FILE:LINE (COMMAND):`, and below it, indented, what is wrong."""
    start = next((number for number, line in enumerate(said) if line.startswith("CMake Error")), None)
    if start is None:
        return _end_of(said)
    words = [line.strip() for line in said[start + 1 : start + 6] if line.strip()]
    return f"{_shortened(said[start].rstrip(':'), sources)}: {' '.join(words)}"


def _compiler_reason(said: list[str], status: int, sources: Path) -> str:
    """The compiler's first error; what follows is mostly its consequence."""
    for line in said:
        if _COMPILE_ERROR.search(line):
            return _shortened(line.strip(), sources)
    return _end_of(said) or f"the compiler ended with status {status}."


# gcc and clang `x.cpp:1:2: error: `, `c++: fatal error: `; MSVC `x.cpp(1,2): error C1234: `; a linker.
_COMPILE_ERROR = re.compile(r"\berror( [A-Z]+\d+)?:|undefined reference|unresolved external")


def _end_of(said: list[str]) -> str:
    return next((line.strip() for line in reversed(said) if line.strip()), "")


def _shortened(line: str, sources: Path) -> str:
    return line.replace(f"{sources}{os.sep}", "")


def _why_it_fails(program: Path, meter: _Meter) -> str | None:
    """Run it once: None if it can."""
    deadline_s = time.monotonic() + TRY_LIMIT_S

    def wait() -> None:
        if time.monotonic() > deadline_s:
            raise BuildError(f"{program.name} did not end within {TRY_LIMIT_S} seconds.")

    try:
        status, said = _run([str(program), "--version"], meter, meanwhile=wait)
    except OSError as error:
        return error.strerror or str(error)
    return None if status == 0 else _end_of(said) or f"it ended with status {status}"


def _run(
    command: list[str],
    meter: _Meter,
    *,
    environment: Mapping[str, str] | None = None,
    on_line: Callable[[str], None] = lambda _: None,
    meanwhile: Callable[[], None] = lambda: None,
    politely: bool = False,
) -> tuple[int, list[str]]:
    """Its status and its output, both streams together. However this ends, nothing of it runs on.

    `politely`: behind everything else that this machine has to do, an answer of the chat above all.
    """
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        encoding="utf-8",
        errors="replace",
        # Ctrl-C in the terminal is ours to answer.
        start_new_session=os.name == "posix",
        creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
    )
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    said: list[str] = []

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(line.rstrip("\n"))
        lines.put(None)

    reader = threading.Thread(target=read, name="read a build", daemon=True)
    reader.start()
    try:
        if politely:
            with suppress(psutil.Error):  # it has ended already
                _step_back(process.pid)
        while True:
            meter.check()
            meanwhile()
            try:
                line = lines.get(timeout=PROGRESS_INTERVAL_S)
            except queue.Empty:
                continue
            if line is None:
                break
            said.append(line)
            on_line(line)
        return process.wait(), said
    finally:
        _end(process)
        reader.join()
        assert process.stdout is not None
        process.stdout.close()


def _step_back(pid: int) -> None:
    below = psutil.BELOW_NORMAL_PRIORITY_CLASS if sys.platform == "win32" else 10
    psutil.Process(pid).nice(below)


def _end(process: "subprocess.Popen[str]") -> None:
    """With all that it started. ninja ends its compilers itself, which stand in groups of their own."""
    if process.poll() is not None:
        return
    try:
        family = psutil.Process(process.pid).children(recursive=True)
    except psutil.Error:
        family = []
    process.terminate()
    try:
        process.wait(STOP_GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for member in family:
        with suppress(psutil.Error):
            member.kill()


def _size_or_zero(path: Path) -> int:
    # pip creates and removes files while we look.
    try:
        return path.stat().st_size
    except OSError:
        return 0
