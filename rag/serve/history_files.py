"""The uploaded files of conversations on the disk: `<folder>/<thread id>/<element id>`, for their owner's eyes only.

Knows bytes and ids, nothing of databases, names or who may read. An id that is no UUID names no file, so that none can
lead out of the folder. The bytes of a deleted file are left to the file system, as with any file.
"""

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from rag.serve.ids import is_uuid

FILES: Final = "files"
"""The folder's name in the data folder."""
# A folder that is being deleted bears this; what cannot be deleted now is deleted at the next start.
GONE: Final = ".gone"
NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0)


class Files:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def open(self) -> None:
        """Make the folder, and delete what a former process could not."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in self.folder.glob(f"*{GONE}"):
            shutil.rmtree(folder, ignore_errors=True)

    def find(self, thread_id: str, element_id: str) -> Path | None:
        path = self._path(thread_id, element_id)
        return path if path is not None and path.is_file() else None

    def keep(self, thread_id: str, element_id: str, content: bytes | Path) -> bool:
        """Whole, or not at all; False if the ids name no file. Raises OSError."""
        path = self._path(thread_id, element_id)
        if path is None:
            return False
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        unfinished = path.with_name(f"{element_id}.part")
        try:
            with os.fdopen(os.open(unfinished, NEW, 0o600), "wb") as file:
                if isinstance(content, bytes):
                    file.write(content)
                else:
                    with content.open("rb") as source:
                        shutil.copyfileobj(source, file, 1 << 20)
            unfinished.replace(path)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            self._tidy(path.parent)
            raise
        return True

    def remove(self, thread_id: str, element_id: str) -> None:
        path = self._path(thread_id, element_id)
        if path is not None:
            path.unlink(missing_ok=True)
            self._tidy(path.parent)

    @contextlib.contextmanager
    def removing(self, thread_id: str) -> Iterator[None]:
        """All of a conversation, once the body has succeeded; if it fails, they are where they were."""
        folder = self.folder / thread_id
        gone = self.folder / f"{thread_id}.{secrets.token_hex(4)}{GONE}"
        if not is_uuid(thread_id) or not folder.is_dir():
            yield
            return
        folder.rename(gone)
        try:
            yield
        except BaseException:
            gone.rename(folder)
            raise
        shutil.rmtree(gone, ignore_errors=True)

    def _path(self, thread_id: str, element_id: str) -> Path | None:
        return self.folder / thread_id / element_id if is_uuid(thread_id) and is_uuid(element_id) else None

    @staticmethod
    def _tidy(folder: Path) -> None:
        with contextlib.suppress(OSError):  # it holds others, or was never made
            folder.rmdir()
