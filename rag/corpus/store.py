"""What was read, kept on disk: files, the reports of them, and their passages.

Knows one SQLite file; knows nothing of folders, terms or ranking. Every change is one transaction, so that a process
killed at any moment leaves what was there before it or after it. A file that is torn, or was made by another version, is
made anew: it holds nothing that cannot be read again.
"""

import contextlib
import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rag.corpus.documents import Ingest, Passage

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE files (
    -- AUTOINCREMENT: a number is never given again, so that no engine can take one file for another.
    number INTEGER PRIMARY KEY AUTOINCREMENT, source TEXT NOT NULL UNIQUE, size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL, digest TEXT NOT NULL, report TEXT NOT NULL
);
CREATE TABLE passages (
    number INTEGER PRIMARY KEY AUTOINCREMENT, file INTEGER NOT NULL REFERENCES files (number) ON DELETE CASCADE,
    id TEXT NOT NULL, page INTEGER, unit TEXT, heading TEXT NOT NULL, start INTEGER NOT NULL, end INTEGER NOT NULL,
    text TEXT NOT NULL, language TEXT NOT NULL
);
CREATE INDEX passages_of_file ON passages (file);
"""
_PASSAGE = "p.id, f.source, p.page, p.unit, p.heading, p.start, p.end, p.text, p.language"
# Larger files are checked by use only: reading all of one takes longer than a start may.
_CHECKED_BYTES = 200_000_000


@dataclass(frozen=True)
class File:
    """What is known of one file of the folder. Unchanged size and time mean: need not be opened."""

    number: int
    source: str
    size: int
    mtime_ns: int
    digest: str
    """SHA-256 of its bytes, hexadecimal; empty when it could not be opened."""


class Store:
    """The files and passages of one folder. `made_with` names every version that decides what a file becomes."""

    def __init__(self, path: Path, *, made_with: str) -> None:
        self.path = path
        self.rebuilt = False
        """Was something there that could not be used?"""
        try:
            self._open(made_with)
        except (sqlite3.DatabaseError, ValueError):
            self.close()
            self.rebuilt = True
            for suffix in ("", "-wal", "-shm"):
                Path(f"{path}{suffix}").unlink(missing_ok=True)
            self._open(made_with)

    def _open(self, made_with: str) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._writes = sqlite3.connect(self.path, check_same_thread=False, isolation_level=None, timeout=30)
        # Reads have a connection of their own: they see the last whole state while a change is under way.
        self._reads = sqlite3.connect(self.path, check_same_thread=False, timeout=30)
        self._write_lock = threading.Lock()
        self._read_lock = threading.Lock()
        self._writes.execute("PRAGMA journal_mode = WAL")
        self._writes.execute("PRAGMA synchronous = NORMAL")
        self._writes.execute("PRAGMA foreign_keys = ON")
        with self._change():
            if not self._writes.execute("SELECT 1 FROM sqlite_master WHERE name = 'meta'").fetchone():
                for statement in _SCHEMA.split(";"):
                    self._writes.execute(statement)
                self._set("made_with", made_with)
                self._set("generation", "0")
        if self.meta("made_with") != made_with:
            raise ValueError("made by another version")
        if self.path.stat().st_size < _CHECKED_BYTES:
            told = self._writes.execute("PRAGMA quick_check(1)").fetchone()[0]
            if told != "ok":
                raise sqlite3.DatabaseError(told)

    def close(self) -> None:
        for connection in ("_reads", "_writes"):
            if hasattr(self, connection):
                getattr(self, connection).close()

    @contextlib.contextmanager
    def _change(self) -> Iterator[None]:
        with self._write_lock:
            self._writes.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._writes.execute("ROLLBACK")
                raise
            self._writes.execute("COMMIT")

    def _set(self, key: str, value: str) -> None:
        self._writes.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def _read(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        with self._read_lock:
            return self._reads.execute(statement, values).fetchall()

    def meta(self, key: str) -> str | None:
        found = self._read("SELECT value FROM meta WHERE key = ?", (key,))
        return str(found[0][0]) if found else None

    def note(self, **values: object) -> None:
        """Keep some facts for `meta`; all of them, or none."""
        with self._change():
            for key, value in values.items():
                self._set(key, str(value))

    @property
    def generation(self) -> int:
        """Counts the changes of passages."""
        return int(self.meta("generation") or 0)

    def _next_generation(self) -> None:
        self._writes.execute("UPDATE meta SET value = value + 1 WHERE key = 'generation'")

    def files(self) -> dict[str, File]:
        """By source."""
        rows = self._read("SELECT number, source, size, mtime_ns, digest FROM files")
        return {row[1]: File(*row) for row in rows}

    def reports(self) -> list[Ingest]:
        """Of all files, by source."""
        found = []
        for (text,) in self._read("SELECT report FROM files ORDER BY source"):
            fields: Any = {k: tuple(v) if isinstance(v, list) else v for k, v in json.loads(text).items()}
            found.append(Ingest(**fields))
        return found

    def replace(
        self, source: str, size: int, mtime_ns: int, digest: str, report: Ingest, passages: Iterable[Passage]
    ) -> int:
        """Put a file's passages in the place of those that it had; returns its number."""
        with self._change():
            self._writes.execute("DELETE FROM files WHERE source = ?", (source,))
            number = self._writes.execute(
                "INSERT INTO files (source, size, mtime_ns, digest, report) VALUES (?, ?, ?, ?, ?)",
                (source, size, mtime_ns, digest, json.dumps(report.to_dict())),
            ).lastrowid
            assert number is not None
            self._writes.executemany(
                "INSERT INTO passages (file, id, page, unit, heading, start, end, text, language)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    (number, p.id, p.page, p.unit, json.dumps(p.heading), p.start, p.end, p.text, p.language)
                    for p in passages
                ),
            )
            self._next_generation()
        return number

    def touch(self, number: int, size: int, mtime_ns: int) -> None:
        """The file was written again with the same bytes."""
        with self._change():
            self._writes.execute("UPDATE files SET size = ?, mtime_ns = ? WHERE number = ?", (size, mtime_ns, number))

    def rename(self, number: int, source: str, mtime_ns: int, document_id: str) -> None:
        """The file has another name, and its passages other ids."""
        with self._change():
            (report,) = self._writes.execute("SELECT report FROM files WHERE number = ?", (number,)).fetchone()
            self._writes.execute(
                "UPDATE files SET source = ?, mtime_ns = ?, report = ? WHERE number = ?",
                (source, mtime_ns, json.dumps({**json.loads(report), "source": source}), number),
            )
            self._writes.execute(
                "UPDATE passages SET id = ? || substr(id, instr(id, ':')) WHERE file = ?", (document_id, number)
            )
            self._next_generation()

    def remove(self, numbers: Iterable[int]) -> None:
        with self._change():
            self._writes.executemany("DELETE FROM files WHERE number = ?", ((number,) for number in numbers))
            self._next_generation()

    def __len__(self) -> int:
        """How many passages there are."""
        return int(self._read("SELECT count(*) FROM passages")[0][0])

    def languages(self) -> dict[str, int]:
        """How many passages are in each language; told by the reports, without looking at a passage."""
        rows = self._read(
            "SELECT json_extract(report, '$.language'), sum(json_extract(report, '$.passages')) FROM files GROUP BY 1"
        )
        return {language: count for language, count in rows if count}

    def all(self) -> list[Passage]:
        """Every passage, by source and place."""
        rows = self._read(
            f"SELECT {_PASSAGE} FROM passages p JOIN files f ON f.number = p.file ORDER BY f.source, p.number"
        )
        return [_passage(row) for row in rows]

    def of_source(self, source: str) -> list[Passage]:
        """One file's passages in reading order."""
        rows = self._read(
            f"SELECT {_PASSAGE} FROM passages p JOIN files f ON f.number = p.file WHERE f.source = ? ORDER BY p.number",
            (source,),
        )
        return [_passage(row) for row in rows]

    def numbered(self, files: Iterable[int] | None = None) -> Iterator[tuple[int, int, Passage]]:
        """(number, file's number, passage), of some files or all; a few thousand at a time, whatever their number."""
        wanted = None if files is None else json.dumps(list(files))
        among = "" if wanted is None else "AND p.file IN (SELECT value FROM json_each(?))"
        last = 0
        while True:
            rows = self._read(
                f"SELECT p.number, p.file, {_PASSAGE} FROM passages p JOIN files f ON f.number = p.file"
                f" WHERE p.number > ? {among} ORDER BY p.number LIMIT 5000",
                (last,) if wanted is None else (last, wanted),
            )
            for row in rows:
                yield row[0], row[1], _passage(row[2:])
            if not rows:
                return
            last = rows[-1][0]

    def passages(self, numbers: Sequence[int]) -> list[Passage | None]:
        """In the order of `numbers`; None for one that is there no more."""
        marks = ",".join("?" * len(numbers))
        rows = self._read(
            f"SELECT p.number, {_PASSAGE} FROM passages p JOIN files f ON f.number = p.file WHERE p.number IN ({marks})",
            numbers,
        )
        found = {row[0]: _passage(row[1:]) for row in rows}
        return [found.get(number) for number in numbers]


def _passage(row: Sequence[Any]) -> Passage:
    id, source, page, unit, heading, start, end, text, language = row
    return Passage(id, source, page, unit, tuple(json.loads(heading)), start, end, text, language)
