"""What can be asked about: the shared folder, and what one session has attached.

Knows the folder, what has changed in it, and uploads. How a file becomes passages is `documents`', the process that reads
it `reader`'s, where passages are kept `store`'s, how they are ranked `index`'s.
"""

import asyncio
import hashlib
import logging
import os
import shutil
import sqlite3
import tempfile
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import AcquireReturnProxy, FileLock, Timeout
from watchfiles import awatch

from rag.corpus import analysis, documents, languages
from rag.corpus.documents import PICTURES, SUFFIXES, Ingest, Passage
from rag.corpus.engines import engine, stored_engine
from rag.corpus.index import BM25Index, Engine, SmallEngine
from rag.corpus.reader import Reader, ReadingFailed, ReadingStopped, contents
from rag.corpus.store import File, Store
from rag.errors import DocumentError, RagError, UserError
from rag.settings import Settings
from rag.words import say

log = logging.getLogger("smallfirst")

LARGEST_BYTES = 200_000_000
# Changes come in bursts (an editor writes, renames, removes); this long without another one ends a burst.
BURST_MS = 50
# Where a file system does not tell of changes (some network drives), they are looked for this often.
LOOK_EVERY_S = 30
# While many documents are read, those that are done can be asked about after this long.
PUBLISH_EVERY_S = 5
# The time of a file that is to be read again.
NEVER_NS = -1
ABANDONED_S = 30 * 24 * 3600


@dataclass(frozen=True)
class Progress:
    """How far the reading of changed documents has come."""

    done: int
    total: int

    @property
    def words(self) -> str:
        if not self.total:
            return say("turn.progress_looking")
        return say("turn.progress_documents", done=self.done, total=self.total)


class Library:
    """The shared folder, and its index, which outlives the process: a start over an unchanged folder reads no document.

    Opening it shows what was there when the folder was last looked at; `update` or `watch` makes it current.
    """

    def __init__(self, settings: Settings) -> None:
        folder = settings.docs
        if not folder.is_dir():
            raise UserError(f"No folder of documents at {folder}. Make it, or set RAG_DOCS (or --docs) to another.")
        self.folder = folder
        self.settings = settings
        self.passage_chars = settings.passage_chars
        self.reading: Progress | None = None
        self.looked = False
        """The whole folder was looked at since this was opened."""
        self.index = BM25Index()
        self.reports: list[Ingest] = []
        self._root = folder.resolve()
        self._reader = new_reader(settings)
        self._home = _home(settings.cache_dir, self._root)
        self._temporary = None
        try:
            self._home.mkdir(parents=True, exist_ok=True)
            (self._home / "folder.txt").write_text(f"{self._root}\n", encoding="utf-8", errors="surrogateescape")
        except OSError as error:
            log.warning(
                "The index cannot be kept in %s (%s); it is made anew at each start. Make the folder writable, or set"
                " RAG_CACHE_DIR to another.", self._home, error.strerror,
            )  # fmt: skip
            self._temporary = tempfile.TemporaryDirectory()
            self._home = Path(self._temporary.name)
        tesseract = "tesseract" if shutil.which("tesseract") else "no tesseract"
        made_with = (
            f"{documents.VERSION}, {analysis.VERSION}, {languages.VERSION}, {settings.passage_chars}, {tesseract}"
        )
        _forget_abandoned(settings.cache_dir / "library")
        self._store = Store(self._home / "passages.sqlite", made_with=made_with)
        if self._store.rebuilt:
            log.warning("The index of %s was torn or made by another version; the documents are read anew.", folder)
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._failed: dict[str, tuple[int, int]] = {}
        self._unnamed: set[Path] = set()
        self._listeners: list[Callable[[], None]] = []
        self._generation = -1
        self._engine: Engine = SmallEngine(())
        with suppress(Timeout), FileLock(self._home / "lock").acquire(timeout=0):
            self._show()  # while another process is at it, the first `update` waits and shows

    def close(self) -> None:
        """End a reading under way; what was read until then is kept."""
        self._closed.set()
        self._reader.close()
        with self._lock:
            self._store.close()
        if self._temporary is not None:
            self._temporary.cleanup()

    @property
    def files(self) -> int:
        """How many files were read."""
        return sum(report.error is None for report in self.reports)

    @property
    def sources(self) -> list[str]:
        """Of the documents that were read, in order."""
        return [report.source for report in self.reports if report.error is None]

    @property
    def engine(self) -> Engine:
        return self._engine

    def opening(self, source: str) -> list[Passage]:
        """The passages of one document in reading order."""
        return self._store.of_source(source)

    # Bringing it up to date

    def update(self, progress: Callable[[Progress], None] | None = None) -> list[str]:
        """Read what has changed in the folder since it was last looked at; blocks. What is gone goes first.

        Returns the sources that were opened.
        """
        opened: list[str] = []
        with self._lock:
            try:
                self._tell(Progress(0, 0), progress)
                with self._alone():
                    for source in self._bring_up_to_date(progress):
                        opened.append(source)
                    self._show()
                self.looked = True
            except ReadingStopped:
                pass
            except sqlite3.Error as error:
                raise RagError(
                    f"The index in {self._home} cannot be written ({error}). Free some space, or delete that folder; the"
                    " documents themselves are not touched."
                ) from error
            finally:
                self._tell(None, None)
        return opened

    def _alone(self) -> "AcquireReturnProxy[FileLock]":
        """One process at a time changes what is kept; another one waits, then finds it done."""
        lock = FileLock(self._home / "lock")
        while not self._closed.is_set():
            with suppress(Timeout):
                return lock.acquire(timeout=0.5)
        raise ReadingStopped("Stopped while another Small First was reading the same folder.")

    def _bring_up_to_date(self, progress: Callable[[Progress], None] | None) -> Iterator[str]:
        """Yields the source of each file that was opened."""
        known, found = self._store.files(), dict(self._scan())
        gone = {source: file for source, file in known.items() if source not in found}
        changed = [
            source
            for source, status in found.items()
            if ((file := known.get(source)) is None or (file.size, file.mtime_ns) != _state_of(status))
            and self._failed.get(source) != _state_of(status)
        ]
        yield from self._rename(changed, gone, found)
        if gone:
            self._store.remove(file.number for file in gone.values())
        # What changed must not answer with its old text while others are read.
        shown = time.monotonic()
        if gone:
            self._show()
        for done, source in enumerate(changed):
            if self._closed.is_set():
                raise ReadingStopped("Stopped.")
            self._tell(Progress(done, len(changed)), progress)
            self._read(source, known.get(source), found[source])
            yield source
            if time.monotonic() - shown > PUBLISH_EVERY_S:
                self._show()
                shown = time.monotonic()
        if changed:
            self._tell(Progress(len(changed), len(changed)), progress)

    def _scan(self) -> Iterator[tuple[str, os.stat_result]]:
        """Each file of a known kind, by name; hidden ones and links to folders are left out."""
        pictures = shutil.which("tesseract") is not None
        for folder, folders, names in os.walk(self._root):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(names):
                suffix = os.path.splitext(name)[1].lower()
                if name.startswith(".") or suffix not in SUFFIXES or (suffix in PICTURES and not pictures):
                    continue
                path = Path(folder, name)
                if not _is_citable(str(path.relative_to(self._root))):
                    self._say_unnamed(path)
                    continue
                with suppress(OSError):  # it has just vanished
                    # Of a link, the file behind it counts: it is that which changes.
                    status = path.stat() if path.exists() else path.lstat()
                    yield path.relative_to(self._root).as_posix(), status

    def _say_unnamed(self, path: Path) -> None:
        """Once: a name that is no text can be neither kept nor cited, and no address can hold a control character."""
        if path not in self._unnamed:
            self._unnamed.add(path)
            log.warning(
                "%s was not read: its name, or its folder's, is not UTF-8 or holds a control character. Rename it.",
                documents.shown(str(path)),
            )

    def _rename(self, changed: list[str], gone: dict[str, File], found: dict[str, os.stat_result]) -> list[str]:
        """A file that came with the bytes of one that went keeps that one's passages. Returns those that did."""
        renamed = []
        sizes = {file.size for file in gone.values() if file.digest}
        for source in list(changed):
            if found[source].st_size not in sizes:
                continue
            with suppress(DocumentError, OSError):
                data = self._bytes(source)
                digest = hashlib.sha256(data).hexdigest()
                former = next((file for file in gone.values() if file.digest == digest), None)
                # A name decides how a file is read, if only by its ending.
                if former and Path(former.source).suffix.lower() == Path(source).suffix.lower():
                    id = documents.document_id(data, source)
                    self._store.rename(former.number, source, found[source].st_mtime_ns, id)
                    del gone[former.source]
                    changed.remove(source)
                    renamed.append(source)
        return renamed

    def _bytes(self, source: str) -> bytes:
        path = (self._root / source).resolve()
        if not path.is_relative_to(self._root):
            raise DocumentError(f"{documents.shown(source)} is a link to a file outside the folder. Copy the file in.")
        return contents(path, source, LARGEST_BYTES)

    def _read(self, source: str, known: File | None, status: os.stat_result) -> None:
        digest, passages = "", list[Passage]()
        try:
            data = self._bytes(source)
            digest = hashlib.sha256(data).hexdigest()
            if known is not None and known.digest == digest:
                self._store.touch(known.number, status.st_size, status.st_mtime_ns)
                return
            report, passages = self._reader.read(data, source)
        except ReadingStopped:
            raise
        except DocumentError as error:
            if not os.path.lexists(self._root / source):
                return  # it has vanished: the next look forgets it
            report = Ingest(source, error=str(error))
            if isinstance(error, ReadingFailed):
                # Not for good: once in each process, as its fault may have been this one's.
                self._failed[source] = _state_of(status)
                self._store.replace(source, status.st_size, NEVER_NS, "", report, ())
                return
        self._store.replace(source, status.st_size, status.st_mtime_ns, digest, report, passages)

    def _show(self) -> None:
        """Let questions see what the store holds."""
        self.reports = self._store.reports()
        if self._store.generation != self._generation:
            self._generation = self._store.generation
            self._engine = stored_engine(self._store, self._home, self._engine)
            self.index = BM25Index([self._engine])
        self._announce()

    def _tell(self, reading: Progress | None, progress: Callable[[Progress], None] | None) -> None:
        self.reading = reading
        if reading is not None and progress is not None:
            progress(reading)
        self._announce()

    def _announce(self) -> None:
        for listener in list(self._listeners):
            listener()

    # Following it

    async def watch(self) -> None:
        """Bring the index up to date, then follow the folder until cancelled. Called once."""
        try:
            await self._look()
            last, first = time.monotonic(), True
            while not self._closed.is_set():
                try:
                    async for changes in awatch(
                        self._root, watch_filter=None, step=BURST_MS, debounce=10 * BURST_MS, rust_timeout=1000,
                        yield_on_timeout=True,
                    ):  # fmt: skip
                        # What changed between the first look and the first watch was seen by neither.
                        if changes or first or time.monotonic() - last > LOOK_EVERY_S:
                            await self._look()
                            last, first = time.monotonic(), False
                except FileNotFoundError:
                    # The folder itself is gone, and with it what it held; it may come back.
                    await self._look()
                    first = True
                    await asyncio.sleep(1)
                except (OSError, RuntimeError) as error:
                    # A system watches only so many folders.
                    log.warning(
                        "%s cannot be watched (%s); it is looked at every %d s.", self.folder, error, LOOK_EVERY_S
                    )
                    while not self._closed.is_set():
                        await asyncio.sleep(LOOK_EVERY_S)
                        await self._look()
        finally:
            self._closed.set()
            self._reader.stop()

    async def _look(self) -> None:
        try:
            await asyncio.to_thread(self.update)
        except RagError as error:
            log.error("%s It is tried again within %d s.", error, LOOK_EVERY_S)

    async def changes(self) -> AsyncGenerator[None, None]:
        """Yields at once, and whenever progress or contents have changed."""
        loop, changed = asyncio.get_running_loop(), asyncio.Event()

        def announce() -> None:
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(changed.set)

        self._listeners.append(announce)
        try:
            while True:
                changed.clear()
                yield
                await changed.wait()
        finally:
            self._listeners.remove(announce)

    async def settled(self, limit_s: float) -> bool:
        """Wait until what has changed on disk can be found; False if that takes longer."""
        with suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                changes = self.changes()
                try:
                    async for _ in changes:
                        if self.reading is None:
                            return True
                finally:
                    await changes.aclose()
        return self.reading is None


class Attachments:
    """The documents of one session: they join that session's index only, and stay while the session does."""

    def __init__(self, library: Library) -> None:
        self.library = library
        self._documents: dict[str, tuple[Ingest, list[Passage]]] = {}
        self._reader: Reader | None = None
        self._lock = threading.Lock()
        self._engine: Engine = SmallEngine(())
        self._joined: tuple[Engine, Engine, BM25Index] | None = None

    @property
    def index(self) -> BM25Index:
        """Over folder and uploads as they are now, with one set of statistics, so that all scores compare."""
        shared, own = self.library.engine, self._engine
        if not len(own):
            return self.library.index
        if self._joined is None or self._joined[:2] != (shared, own):
            self._joined = (shared, own, BM25Index([shared, own]))
        return self._joined[2]

    def add(self, data: bytes, source: str) -> Ingest:
        """Read an upload and make it searchable at once; blocks. A file of the same name takes the earlier one's place.

        Raises DocumentError; then nothing has changed.
        """
        with self._lock:
            if self._reader is None:
                # Its own, so that one session's long document does not hold up another's.
                self._reader = new_reader(self.library.settings)
            reader = self._reader
        report, passages = reader.read(data, source)
        with self._lock:
            self._documents.pop(source, None)  # the newest comes last
            self._documents[source] = (report, passages)
            self._rank()
        return report

    def restore(self, report: Ingest, passages: list[Passage]) -> None:
        """Make searchable again what was read before, without reading it."""
        self.restore_all([(report, passages)])

    def restore_all(self, documents: Iterable[tuple[Ingest, list[Passage]]]) -> None:
        """See `restore`; they are ranked once, and not anew for each."""
        with self._lock:
            for report, passages in documents:
                self._documents.pop(report.source, None)
                self._documents[report.source] = (report, passages)
            self._rank()

    def stop(self) -> None:
        """End a reading under way; its `add` raises DocumentError."""
        if self._reader is not None:
            self._reader.stop()

    def remove(self, source: str) -> None:
        """Forget an upload; a name that is not attached is a UserError."""
        with self._lock:
            if source not in self._documents:
                raise UserError(f"{source} is not attached. Attached: {', '.join(self.sources) or 'nothing'}.")
            del self._documents[source]
            self._rank()

    def close(self) -> None:
        """The session has ended."""
        with self._lock:
            self._documents.clear()
            self._rank()
            if self._reader is not None:
                self._reader.close()

    @property
    def sources(self) -> list[str]:
        """Names of the attached documents, the newest last."""
        return list(self._documents)

    @property
    def reports(self) -> list[Ingest]:
        return [report for report, _ in self._documents.values()]

    def opening(self, source: str) -> list[Passage]:
        """The passages of one upload in reading order."""
        return self._documents[source][1]

    def _rank(self) -> None:
        self._engine = engine([p for _, passages in self._documents.values() for p in passages])


def _is_citable(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return not any(character < " " or character == "\x7f" for character in name)


def _state_of(status: os.stat_result) -> tuple[int, int]:
    """By which a changed file is known: size and time."""
    return status.st_size, status.st_mtime_ns


def new_reader(settings: Settings) -> Reader:
    return Reader(
        passage_chars=settings.passage_chars,
        timeout_s=settings.read_timeout_s,
        memory_mb=settings.read_memory_mb,
        largest_bytes=LARGEST_BYTES,
    )


def _forget_abandoned(kept: Path) -> None:
    """Indexes of folders that are there no more, and have not been for a while: a drive may only be unplugged."""
    for note in kept.glob("*/folder.txt"):
        with suppress(OSError):
            folder = Path(note.read_text(encoding="utf-8", errors="surrogateescape").strip())
            if not folder.exists() and time.time() - note.stat().st_mtime > ABANDONED_S:
                shutil.rmtree(note.parent, ignore_errors=True)


def _home(cache_dir: Path, root: Path) -> Path:
    return cache_dir / "library" / hashlib.sha256(os.fsencode(root)).hexdigest()[:16]
