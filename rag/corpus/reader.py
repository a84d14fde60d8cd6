"""Reads files, and draws pages of them, in a process of its own, so that a bad one costs only itself.

Knows the worker: its limits of time and memory, its start, its end, and the few bytes that go between. What a file
holds is `documents`', how a page looks `pages`'. Between the processes goes JSON with the file's bytes behind it, never
pickle: a document that takes over the worker can tell lies about itself and nothing more.

    request     8 bytes: length of the header; header: source, path or null, size, limits, and of which page a picture
                is wanted, if one is; then the file's bytes
    reply       8 bytes: length; JSON: the report and its passages, or the page, or the sentence that says why not
"""

import base64
import contextlib
import errno
import json
import logging
import os
import re
import signal
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Final

from rag.corpus.documents import Ingest, Passage, ingest, shown
from rag.corpus.pages import Page, draw
from rag.errors import DocumentError
from rag.words import Said, say

log = logging.getLogger("smallfirst")

_LENGTH: Final = struct.Struct(">Q")
LARGEST_REPLY_BYTES: Final = 2_000_000_000
# Of a read's time, the share that pictures of pages may take; the rest of the document must still be read.
OCR_SHARE: Final = 0.6
# What the worker may have on top once a read has failed, so that it can still say why.
ROOM_MB: Final = 100


class ReadingStopped(DocumentError):
    """`stop` or `close` was called; it says nothing about the file."""


class ReadingFailed(DocumentError):
    """The process that read it ended, or met a fault of ours: another one, another day, may read it."""


class Reader:
    """Reads one file after another, from any thread. The worker starts with the first and ends when idle.

    `timeout_s` is the longest time for one file, `memory_mb` (millions of bytes) the most address space of the worker,
    `largest_bytes` the largest file that is opened at all.
    """

    def __init__(
        self,
        *,
        passage_chars: int,
        timeout_s: float = 60,
        memory_mb: int = 2000,
        largest_bytes: int = 200_000_000,
        idle_s: float = 20,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.passage_chars = passage_chars
        self.timeout_s = timeout_s
        self.memory_mb = memory_mb
        self.largest_bytes = largest_bytes
        self.idle_s = idle_s
        self._env = env
        self._one_at_a_time = threading.Lock()
        self._state = threading.Condition()
        self._worker: _Worker | None = None
        self._closed = False

    def read(self, file: bytes | Path, source: str) -> tuple[Ingest, list[Passage]]:
        """The report and the passages of one file; blocks. Raises DocumentError with a whole sentence.

        A path is opened by the worker and must name the file itself: a link is refused.
        """
        reply, duration_ms = self._ask(file, source)
        return unpacked(reply, source, duration_ms)

    def draw(
        self, file: bytes | Path, source: str, number: int, quote: str = "", passage: str = "", picture: bool = True
    ) -> Page:
        """One page of a PDF, from 1, and where `quote` stands on it; see `pages.draw`. Blocks, one after another.

        Raises DocumentError, whose sentence is known in other languages.
        """
        wanted = {"number": number, "quote": quote, "passage": passage, "picture": picture}
        try:
            return _drawn(self._ask(file, source, wanted)[0])
        except ReadingStopped:
            raise
        except DocumentError as error:
            if isinstance(error.told, Said):
                raise
            log.warning("Page %d of %s was not drawn: %s", number, shown(source), error)
            raise DocumentError(say("documents.not_drawn", name=shown(source), page=str(number))) from None

    def stop(self) -> None:
        """End what is being read, if anything is; that read raises ReadingStopped. The next one starts anew."""
        with self._state:
            if self._worker is not None and self._worker.busy:
                self._worker.kill("stopped")

    def close(self) -> None:
        """End the worker; a read that is under way, and any later one, raises ReadingStopped."""
        with self._state:
            self._closed = True
            if self._worker is not None:
                self._worker.kill("stopped")
                self._worker = None

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """The worker's process, where one is running."""
        with self._state:
            return self._worker.process.pid if self._worker is not None else None

    def _ask(
        self, file: bytes | Path, source: str, page: Mapping[str, Any] | None = None
    ) -> tuple[dict[str, Any], float]:
        """The worker's reply, and how long it took, ms."""
        if isinstance(file, bytes) and len(file) > self.largest_bytes:
            raise _too_large(source, len(file), self.largest_bytes)
        with self._one_at_a_time:
            began = time.perf_counter()
            worker = self._take(source)
            try:
                reply = worker.ask(self._request(file, source, page), file if isinstance(file, bytes) else b"")
            except OSError:
                raise self._lost(worker, source) from None
            finally:
                self._give_back(worker)
            if "bug" in reply:
                log.error("Reading %s failed:\n%s", shown(source), reply["bug"])
                raise ReadingFailed(_said(reply))
            if reply.get("error") is not None:
                raise DocumentError(_said(reply))
            return reply, (time.perf_counter() - began) * 1000

    def _request(self, file: bytes | Path, source: str, page: Mapping[str, Any] | None) -> dict[str, Any]:
        return {
            "source": source,
            "page": page,
            "path": None if isinstance(file, bytes) else os.fspath(file),
            "size": len(file) if isinstance(file, bytes) else 0,
            "passage_chars": self.passage_chars,
            "largest_bytes": self.largest_bytes,
            "timeout_s": self.timeout_s,
            "memory_mb": self.memory_mb,
        }

    def _take(self, source: str) -> "_Worker":
        with self._state:
            if self._closed:
                raise ReadingStopped(f"{shown(source)} was not read: reading has ended. Add it again after a restart.")
            if self._worker is not None and not self._worker.lives():
                self._worker.kill("gone")
                self._worker = None
            if self._worker is None:
                try:
                    self._worker = _Worker(self.memory_mb, self._env)
                except OSError as error:
                    raise DocumentError(
                        f"{shown(source)} was not read: no process can be started ({error.strerror})."
                        " Close other programs, then add it again."
                    ) from None
                threading.Thread(target=self._watch, args=(self._worker,), name="reader", daemon=True).start()
            self._worker.busy = True
            self._worker.deadline = time.monotonic() + self.timeout_s
            self._state.notify_all()
            return self._worker

    def _give_back(self, worker: "_Worker") -> None:
        with self._state:
            worker.busy = False
            worker.deadline = time.monotonic() + self.idle_s
            if worker.ending is not None or not worker.lives():
                worker.kill(worker.ending or "gone")
                if self._worker is worker:
                    self._worker = None
            self._state.notify_all()

    def _watch(self, worker: "_Worker") -> None:
        """Ends the worker at its deadline: one for the file it reads, one for having none."""
        with self._state:
            while worker.ending is None:
                left = worker.deadline - time.monotonic()
                if left > 0:
                    self._state.wait(left)
                    continue
                worker.kill("timeout" if worker.busy else "idle")
                if self._worker is worker:
                    self._worker = None

    def _lost(self, worker: "_Worker", source: str) -> DocumentError:
        """Why there was no reply."""
        name = shown(source)
        with self._state:
            ending = worker.ending
        if ending == "stopped":
            return ReadingStopped(f"Reading {name} was stopped. Add it again to have it read.")
        status, said = worker.last_words()
        if ending is None and said:
            log.error("The process that read %s ended (status %s):\n%s", name, status, said)
        if ending == "timeout" or status == -getattr(signal, "SIGALRM", 0):
            return DocumentError(
                f"{name} took longer than {self.timeout_s:g} s to read. Split it, or save it in a simpler format."
            )
        if re.search("out of memory|memory allocation|bad_alloc|MemoryError", said, re.IGNORECASE):
            return DocumentError(_needs_memory(source, self.memory_mb))  # C libraries give up without asking Python
        how = f"signal {-status}" if status < 0 else f"status {status}"
        return ReadingFailed(
            f"{name} ended the process that read it ({how}): it is damaged, or needs more memory than this machine has."
            " Save it again, or split it."
        )


class _Worker:
    """The process, as its parent sees it. Not safe for threads by itself: Reader's state guards it."""

    def __init__(self, memory_mb: int, env: Mapping[str, str] | None) -> None:
        self.busy = False
        self.deadline = float("inf")
        self.ending: str | None = None
        """Why it was ended, once it was."""
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        # The folder of this very package goes along: started by -m, the worker would look for modules in the current
        # folder, which may be someone's documents.
        root = str(Path(__file__).resolve().parents[2])
        program = (
            "import sys; root = sys.argv[1]\n"
            "if root not in sys.path: sys.path.insert(0, root)\n"
            "from rag.corpus.reader import serve; serve(int(sys.argv[2]))"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", program, root, str(memory_mb)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            # One thread each: on a machine with many cores their stacks alone would be more than the limit.
            env={**(os.environ if env is None else env), "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            # Ctrl-C is the parent's; and what it starts itself (Tesseract) ends together with it.
            start_new_session=True,
        )

    def lives(self) -> bool:
        return self.ending is None and self.process.poll() is None

    def ask(self, request: dict[str, Any], data: bytes) -> dict[str, Any]:
        """Raises OSError where no whole reply comes."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        header = json.dumps(request).encode()
        try:
            self.process.stdin.write(_LENGTH.pack(len(header)) + header)
            self.process.stdin.write(data)
            self.process.stdin.flush()
            size = _LENGTH.unpack(_exactly(self.process.stdout, _LENGTH.size))[0]
            if size > LARGEST_REPLY_BYTES:
                raise OSError("reply too long")
            reply = json.loads(_exactly(self.process.stdout, size))
        except ValueError as error:  # a pipe closed by another thread, or no JSON
            raise OSError(str(error)) from error
        if not isinstance(reply, dict):
            raise OSError("no reply")
        if reply.get("last"):
            self.process.wait()
        return reply

    def kill(self, why: str) -> None:
        """End it with all that it started. What it was ended for first counts."""
        if self.ending is None:
            self.ending = why
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if self.process.returncode is None and hasattr(os, "killpg"):
                    os.killpg(self.process.pid, signal.SIGKILL)
                else:
                    self.process.kill()
        if not self.busy:
            self.process.wait()
            for stream in (self.process.stdin, self.process.stdout, self._errors):
                with contextlib.suppress(OSError):
                    if stream is not None:
                        stream.close()

    def last_words(self) -> tuple[int, str]:
        """Its exit status, and the end of what it wrote to standard error."""
        status = self.process.wait()
        with contextlib.suppress(OSError, ValueError):
            self._errors.seek(max(0, self._errors.seek(0, os.SEEK_END) - 4000))
            return status, self._errors.read().decode("utf-8", "replace").strip()
        return status, ""


def _exactly(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise OSError("The other side has gone.")
    return data


def unpacked(reply: Mapping[str, Any], source: str, duration_ms: float) -> tuple[Ingest, list[Passage]]:
    """What `packed` made, also once it has been JSON. Name and duration are the caller's: a worker may lie about them."""
    unit, language = reply["unit"], reply["language"]
    passages = [
        Passage(id, source, page, unit, tuple(heading), start, end, text, language)
        for id, page, heading, start, end, text in reply["passages"]
    ]
    report = Ingest(
        source=source,
        chars=reply["chars"],
        passages=len(passages),
        pages=reply["pages"],
        blank_pages=tuple(reply["blank_pages"]),
        unit=unit,
        ocr_pages=tuple(reply["ocr_pages"]),
        skipped=tuple(reply["skipped"]),
        language=language,
        duration_ms=round(duration_ms, 3),
    )
    return report, passages


def packed(report: Ingest, passages: list[Passage]) -> dict[str, Any]:
    """Of a document that was read: what it needs to be searched again, ready for JSON."""
    rows = [(p.id, p.page, p.heading, p.start, p.end, p.text) for p in passages]
    return {**report.to_dict(), "error": None, "passages": rows}


def _drawn(reply: Mapping[str, Any]) -> Page:
    marks = tuple((float(left), float(top), float(width), float(height)) for left, top, width, height in reply["marks"])
    return Page(base64.b64decode(reply["png"]), int(reply["pages"]), marks)


def _said(reply: Mapping[str, Any]) -> str:
    """The worker's sentence; what it knows of other languages came beside it."""
    text = str(reply["error"])
    key, values = reply.get("key"), reply.get("values")
    return Said(text, key, values) if isinstance(key, str) and isinstance(values, dict) else text


def _too_large(source: str, size: int, largest: int) -> DocumentError:
    return DocumentError(
        f"{shown(source)} is too large: {size / 1e6:,.0f} MB, and at most {largest / 1e6:,.0f} MB are read. Split it."
    )


def _needs_memory(source: str, memory_mb: int) -> str:
    return f"{shown(source)} needs more than {memory_mb:,} MB to read. Split it, or save it in a simpler format."


# --- The worker's side ---


def serve(memory_mb: int) -> None:
    """Answer requests until standard input ends, as it does when the parent does."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    # What libraries print must not get between the replies, and what they start must not read the requests.
    os.dup2(2, 1)
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    _limit_memory(memory_mb)
    while start := requests.read(_LENGTH.size):
        request = json.loads(_exactly(requests, _LENGTH.unpack(start)[0]))
        # The parent ends a read that takes too long, unless the parent itself was killed.
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, request["timeout_s"] + 5)
        reply, last = _reply(request, _received(requests, request["size"]))
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        replies.write(_LENGTH.pack(len(reply)) + reply)
        replies.flush()
        if last:
            return


def _reply(request: Mapping[str, Any], data: bytes | None) -> tuple[bytes, bool]:
    """The reply's bytes, and whether this process has had its day."""
    source, memory_mb = request["source"], request["memory_mb"]
    reply: dict[str, Any]
    try:
        if data is None:
            raise MemoryError
        if request["path"] is not None:
            data = contents(request["path"], source, request["largest_bytes"])
        if request["page"] is not None:
            page = draw(data, shown(source), **request["page"])
            reply = {"png": base64.b64encode(page.png).decode(), "pages": page.pages, "marks": page.marks}
        else:
            reply = packed(*ingest(data, source, request["passage_chars"], ocr_s=request["timeout_s"] * OCR_SHARE))
        # An allocator that has once been as large as half the limit may have no room in one piece for the next file.
        reply["last"] = _peak_mb() > memory_mb / 2
        return json.dumps(reply).encode(), reply["last"]
    except Exception as error:
        _limit_memory(memory_mb + ROOM_MB)
        # Libraries without memory fail in many ways, and what they then say of the file is not to be believed.
        faulty = not isinstance(error, DocumentError) or error.__cause__ is not None
        if isinstance(error, MemoryError) or (faulty and _most_address_space_mb() > memory_mb * 0.9):
            reply = {"error": _needs_memory(source, memory_mb), "last": True}
        elif isinstance(error, DocumentError):
            told = error.told
            reply = {"error": told, "last": False}
            if isinstance(told, Said):
                reply |= {"key": told.key, "values": told.values}
        else:  # a fault of ours, which must not cost the other files
            said = f"{shown(source)} cannot be read ({type(error).__name__}). Save it in another format, then add it."
            reply = {"error": said, "bug": traceback.format_exc(), "last": True}
    return json.dumps(reply).encode(), reply["last"]


def contents(path: str | Path, source: str, largest_bytes: int) -> bytes:
    """A file's bytes, if it is a regular file of at most that size; told by the opened file, not by its name."""
    name = shown(source)
    flags = os.O_RDONLY
    for extra in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"):
        flags |= getattr(os, extra, 0)
    try:
        descriptor = os.open(path, flags)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                what = "folder" if stat.S_ISDIR(status.st_mode) else "pipe or a device"
                raise DocumentError(f"{name} is a {what}, not a file. Add a file.")
            if status.st_size > largest_bytes:
                raise _too_large(source, status.st_size, largest_bytes)
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                return file.read(status.st_size)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        raise DocumentError(f"{name} is gone: it was removed or renamed. Add it again if it should be there.") from None
    except PermissionError:
        raise DocumentError(f"{name} may not be read by this user. Change its permissions, then add it.") from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise DocumentError(f"{name} is a link. Add the file that it points to.") from None
        said = error.strerror or type(error).__name__
        raise DocumentError(f"{name} cannot be read from the disk ({said}). Copy it elsewhere, then add it.") from None


def _received(stream: IO[bytes], size: int) -> bytes | None:
    """The file behind a request; None if it has no room. It is taken from the pipe all the same."""
    left = size
    try:
        parts = bytearray()
        while left:
            part = _exactly(stream, min(left, 1 << 20))
            left -= len(part)
            parts += part
        return bytes(parts)
    except MemoryError:
        parts = bytearray()
        while left:
            left -= len(_exactly(stream, min(left, 1 << 16)))
        return None


def _limit_memory(memory_mb: int) -> None:
    try:
        import resource
    except ImportError:  # Windows has no such limit; there the time limit alone ends a file that grows
        return
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_AS, (memory_mb * 1_000_000, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _peak_mb() -> float:
    """The most memory that this process had since it began."""
    # Linux's ru_maxrss is no less than what the parent had when it started us.
    if (peak := _told_by_linux_mb("VmHWM")) is not None:
        return peak
    try:
        import resource
    except ImportError:
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6  # bytes there, KiB elsewhere


def _most_address_space_mb() -> float:
    return _told_by_linux_mb("VmPeak") or 0.0


def _told_by_linux_mb(name: str) -> float | None:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1]) * 1024 / 1e6
    return None
