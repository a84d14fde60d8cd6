"""The files that programs uploaded, on the disk: `<folder>/<owner>/<id>/`, for their owner's eyes only.

Knows bytes, records, whose they are and until when; nothing of HTTP, nor of how a document is read. Folders are named by
digests and ids, so that no name of a file, an owner or a conversation ever becomes a path. Several processes may use one
folder: each look is at the disk, and a file is there whole or not at all. One that is torn all the same, as by a failing
disk, is taken away. What is deleted is left to the file system, as with any file.

    about.json      the File
    passages.json   as it was read, so that it need not be read again
    content         its bytes
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from filelock import FileLock

from rag.corpus import reader
from rag.corpus.documents import Ingest, Passage

log = logging.getLogger("smallfirst")

ID: Final = re.compile("file-[0-9a-f]{24}")
OWNER: Final = re.compile("[0-9a-f]{32}")
ABOUT: Final = "about.json"
PASSAGES: Final = "passages.json"
CONTENT: Final = "content"
# Of a folder that is being written, and of one that is being deleted. Neither is an id.
PART: Final = ".part"
GONE: Final = ".gone"
UNFINISHED_S: Final = 3600.0
"""A folder that was not written whole for so long never will be: its process has ended."""
TIDY_EVERY_S: Final = 3600.0
"""Nobody else may look after what has expired of an owner who does not come back."""


@dataclass(frozen=True)
class File:
    """One upload, as it was read then."""

    id: str
    filename: str
    """As its sender called it: data, never a path."""
    bytes: int
    created: float
    """Unix time, s."""
    expires_at: int | None
    """Unix time, s."""
    purpose: str
    conversation: str | None
    report: Ingest

    @property
    def created_at(self) -> int:
        return int(self.created)


class FileStore:
    """Blocks, from any thread. Everything may raise OSError."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        self.folder = folder
        self.clock = clock
        # A record never changes: what was read once is still so while its folder is there.
        self._known: dict[str, dict[str, File]] = {}
        self._tidied: float | None = None

    def keep(
        self,
        owner: str,
        content: bytes,
        report: Ingest,
        passages: list[Passage],
        *,
        purpose: str,
        conversation: str | None,
        expires_after_s: int | None,
        most: int,
    ) -> File | None:
        """None if that owner has `most` files already."""
        now = self.clock()
        file = File(
            id=f"file-{secrets.token_hex(12)}",
            filename=report.source,
            bytes=len(content),
            created=now,
            expires_at=None if expires_after_s is None else int(now) + expires_after_s,
            purpose=purpose,
            conversation=conversation,
            report=report,
        )
        self.folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        home = self._home(owner)
        for folder in (self.folder, home):
            folder.mkdir(mode=0o700, exist_ok=True)
        part = home / f".{file.id}{PART}"
        try:
            part.mkdir(mode=0o700)
            _write(part / ABOUT, json.dumps(_about(file)).encode())
            _write(part / PASSAGES, json.dumps(reader.packed(report, passages)).encode())
            _write(part / CONTENT, content)
            with FileLock(home / ".lock", mode=0o600):
                if len(self._scan(home)) >= most:
                    return None
                part.rename(home / file.id)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        return file

    def find(self, owner: str, id: str) -> File | None:
        if not ID.fullmatch(id):
            return None
        home = self._home(owner)
        file = self._known.get(home.name, {}).get(id)
        if file is None or not (home / id).is_dir():
            file = self._load(home / id)
        return file if file is not None and self._lasts(home, file) else None

    def all(self, owner: str) -> list[File]:
        """The oldest first."""
        if self._tidied is None or self.clock() - self._tidied > TIDY_EVERY_S:
            self.tidy()
        return sorted(self._scan(self._home(owner)), key=lambda file: (file.created, file.id))

    def content(self, owner: str, file: File) -> bytes | None:
        """None if it has just been removed."""
        content = self._part_of(owner, file, CONTENT)
        if content is not None and len(content) != file.bytes:
            self._tear(self._home(owner) / file.id)
            return None
        return content

    def passages(self, owner: str, file: File) -> list[Passage] | None:
        """In reading order; None if it has just been removed."""
        packed = self._part_of(owner, file, PASSAGES)
        if packed is None:
            return None
        try:
            return reader.unpacked(json.loads(packed), file.filename, 0.0)[1]
        except (ValueError, KeyError, TypeError):
            self._tear(self._home(owner) / file.id)
            return None

    def remove(self, owner: str, id: str) -> bool:
        """False if there is none of that owner."""
        return self.find(owner, id) is not None and _discard(self._home(owner) / id)

    def tidy(self) -> None:
        """Delete what has expired, whoever's it is, and what an ended process could not finish."""
        self._tidied = self.clock()
        for home in [folder for folder in _inside(self.folder) if OWNER.fullmatch(folder.name)]:
            self._scan(home)
            for folder in _inside(home):
                with contextlib.suppress(OSError):  # its own process is at it
                    if folder.suffix == GONE or (
                        folder.suffix == PART and time.time() - folder.stat().st_mtime > UNFINISHED_S
                    ):
                        shutil.rmtree(folder, ignore_errors=True)

    def _home(self, owner: str) -> Path:
        return self.folder / hashlib.sha256(owner.encode("utf-8", "surrogatepass")).hexdigest()[:32]

    def _scan(self, home: Path) -> list[File]:
        former = self._known.get(home.name, {})
        found = {}
        for folder in _inside(home):
            if ID.fullmatch(folder.name):
                file = former.get(folder.name) or self._load(folder)
                if file is not None and self._lasts(home, file):
                    found[file.id] = file
        if found or former:
            self._known[home.name] = found
        return list(found.values())

    def _lasts(self, home: Path, file: File) -> bool:
        if file.expires_at is None or self.clock() < file.expires_at:
            return True
        with contextlib.suppress(OSError):  # it is not shown again, whether or not the disk lets it go
            _discard(home / file.id)
        return False

    def _load(self, folder: Path) -> File | None:
        """None if it is not there, or not whole."""
        try:
            file = _file(json.loads((folder / ABOUT).read_bytes()))
            if (
                file.id == folder.name
                and (folder / CONTENT).stat().st_size == file.bytes
                and (folder / PASSAGES).is_file()
            ):
                return file
        except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, AttributeError):
            pass
        self._tear(folder)
        return None

    def _part_of(self, owner: str, file: File, name: str) -> bytes | None:
        folder = self._home(owner) / file.id
        try:
            return (folder / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            self._tear(folder)
            return None

    def _tear(self, folder: Path) -> None:
        """Take away what is not whole, if it is there at all."""
        with contextlib.suppress(OSError):
            if _discard(folder):
                log.warning("The uploaded file in %s was torn, and was removed. Upload it again.", folder)


def _about(file: File) -> dict[str, Any]:
    return {
        "id": file.id,
        "filename": file.filename,
        "bytes": file.bytes,
        "created": file.created,
        "expires_at": file.expires_at,
        "purpose": file.purpose,
        "conversation": file.conversation,
        "passages": file.report.passages,
        "duration_ms": file.report.duration_ms,
        "report": reader.packed(file.report, []),
    }


def _file(about: dict[str, Any]) -> File:
    """Raises ValueError, KeyError, TypeError or AttributeError for what `_about` did not write."""
    filename, expires_at, conversation = str(about["filename"]), about["expires_at"], about["conversation"]
    report = reader.unpacked(about["report"], filename, float(about["duration_ms"]))[0]
    return File(
        id=str(about["id"]),
        filename=filename,
        bytes=int(about["bytes"]),
        created=float(about["created"]),
        expires_at=None if expires_at is None else int(expires_at),
        purpose=str(about["purpose"]),
        conversation=None if conversation is None else str(conversation),
        report=replace(report, passages=int(about["passages"])),
    )


def _inside(folder: Path) -> Sequence[Path]:
    try:
        return list(folder.iterdir())
    except FileNotFoundError:
        return ()


def _write(path: Path, data: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())  # a folder's name may reach the disk before what is in it


def _discard(folder: Path) -> bool:
    """Out of sight at once, then off the disk; False if somebody else was faster."""
    gone = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}{GONE}")
    try:
        folder.rename(gone)
    except FileNotFoundError:
        return False
    shutil.rmtree(gone, ignore_errors=True)
    return True
