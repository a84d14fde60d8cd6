"""What can be asked about, and where conversations are kept.

Looks at what is kept of the documents; reads none.
"""

import json
import os
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from rag.checks.subject import Seen, Subject, bad, note, ok, version_of

CONNECT_S = 5.0


def documents(subject: Subject) -> Seen:
    """The folder, and what is kept of it."""
    from rag.corpus.documents import SUFFIXES

    folder = subject.settings.docs
    mend = "or name another with --docs or RAG_DOCS."
    if not folder.is_dir():
        return bad(f"No folder at {folder}", f"Make it, {mend}")
    if not os.access(folder, os.R_OK | os.X_OK):
        return bad(f"{folder} cannot be read", f"Make it readable, {mend}")
    files = [path for path in _files(folder) if path.suffix.lower() in SUFFIXES]
    kept = _kept(subject.settings.cache_dir, folder.resolve())
    detail = f"{len(files):,} files in {folder}, "
    detail += f"of which {kept.files:,} are read: {kept.passages:,} passages" if kept else "not read yet"
    if shut := [path.name for path in files if not os.access(path, os.R_OK)]:
        return note(f"{detail}; {len(shut)} cannot be opened: {', '.join(shut[:3])}", "Make them readable.")
    if not files:
        return note(detail, f"Put documents there, drop files into the chat, {mend}")
    if kept and kept.failed:
        return note(f"{detail}; {kept.failed:,} could not be read", "Why, tells: smallfirst index")
    return ok(detail if kept else f"{detail}: the chat reads them when it starts")


def _files(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(parent, name) for name in names if not name.startswith("."))


@dataclass(frozen=True)
class _Kept:
    files: int
    passages: int
    failed: int
    """Files that could not be read."""


def _kept(cache_dir: Path, root: Path) -> _Kept | None:
    """What is kept of that folder; None where that is nothing, or torn: then it is made anew."""
    for folder in cache_dir.glob("library/*/folder.txt"):
        if folder.read_text(encoding="utf-8", errors="surrogateescape").strip() != str(root):
            continue
        # To look must not change it, nor wait for who does.
        address = f"{folder.with_name('passages.sqlite').as_uri()}?mode=ro"
        try:
            with closing(sqlite3.connect(address, uri=True, timeout=1)) as database:
                passages = database.execute("SELECT count(*) FROM passages").fetchone()[0]
                reports = [json.loads(row[0]) for row in database.execute("SELECT report FROM files")]
        except sqlite3.Error:
            return None
        failed = sum(report.get("error") is not None for report in reports)
        return _Kept(len(reports) - failed, passages, failed)
    return None


def scans(subject: Subject) -> Seen:
    """Pictures of text."""
    from rag.corpus.ocr import Tesseract

    if found := Tesseract.found():
        return ok(f"Tesseract reads them, in {found.languages.replace('+', ', ')}")
    return ok("Without Tesseract, pictures and pages without text are left out")


def history(subject: Subject) -> Seen:
    """Where conversations are kept. Nobody signs in to the database here: that it listens is all that is looked at."""
    secret = subject.settings.database_url
    if secret is None:
        return ok(f"Kept in SQLite in {subject.settings.data_dir}")
    if version_of("asyncpg") is None:
        return bad("RAG_DATABASE_URL needs the package asyncpg", "pip install 'smallfirst[postgres]'")
    try:
        url = urlsplit(secret.get_secret_value())
        host, port = url.hostname or "localhost", url.port or 5432
    except ValueError:
        return bad("RAG_DATABASE_URL is no address", "It looks like postgresql://USER:PASSWORD@HOST:5432/NAME")
    try:
        socket.create_connection((host, port), timeout=CONNECT_S).close()
    except OSError as error:
        why = error.strerror or "no answer"
        return bad(f"No database at {host}:{port}, which RAG_DATABASE_URL names: {why}",
                   "Start Postgres, or remove RAG_DATABASE_URL to keep conversations in SQLite.")  # fmt: skip
    return ok(f"Kept in Postgres; {host}:{port} listens")
