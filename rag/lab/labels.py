"""What people said of answers: good, bad, or "ask the larger model". Kept on this machine only, for calibration.

One SQLite file with one row for each thumb and each request; of a turn it keeps what a confidence model can learn from
(question, answer, models, verdict with its signals), not the documents' text. Knows the dictionary of a turn, nothing of
buttons. That labels cannot be kept must not break a chat, so what a chat calls says it in the log, once; what a person
asks for in the terminal raises UserError.
"""

import json
import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

from rich.table import Column, Table

from rag import terminal
from rag.errors import UserError

log = logging.getLogger("smallfirst")

Thumb = Literal["good", "bad"]
Kind = Literal["good", "bad", "asked_larger"]
FILE = "labels.sqlite"
# The chat's event loop waits behind another process that writes, such as `smallfirst labels --clear`.
LOCKED_S = 1.0
SHOWN_CHARS = 60

Outcome = TypeVar("Outcome")


class Labels:
    """The file at `path`, which is made by the first label and not before."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._database: sqlite3.Connection | None = None
        self._lock = threading.Lock()
        self._warned = False

    def add(self, turn_id: str, turn: Mapping[str, Any], kind: Kind, comment: str = "") -> bool:
        """Keep what was said of a turn (`Turn.to_dict()`); False if it cannot be kept.

        A thumb takes the place of an earlier one of the same turn; a request for the larger model stands beside it.
        """
        row = json.dumps(_row(turn, kind, comment), ensure_ascii=False).encode("utf-8", "replace").decode()
        return self._write(
            "INSERT OR REPLACE INTO labels (turn_id, thumb, row) VALUES (?, ?, ?)", turn_id, kind != "asked_larger", row
        )

    def remove(self, turn_id: str) -> bool:
        """Take a thumb back; False if that cannot be done. That the larger model was asked stays: it was."""
        return self._write("DELETE FROM labels WHERE turn_id = ? AND thumb", turn_id)

    def rows(self) -> list[dict[str, Any]]:
        """Oldest first."""
        found: list[tuple[str]] = self._read(
            lambda db: db.execute("SELECT row FROM labels ORDER BY rowid").fetchall(), []
        )
        return [json.loads(row) for (row,) in found]

    def clear(self) -> None:
        """Forget all of them, on the disk too."""

        def forget(database: sqlite3.Connection) -> None:
            database.execute("DELETE FROM labels")
            database.execute("VACUUM")

        self._read(forget, None)

    def close(self) -> None:
        with self._lock:
            if self._database is not None:
                self._database.close()
                self._database = None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows())

    def __len__(self) -> int:
        return int(self._read(lambda db: db.execute("SELECT count(*) FROM labels").fetchone()[0], 0))

    def _write(self, statement: str, *values: object) -> bool:
        try:
            with self._lock:
                self._open().execute(statement, values)
        except (OSError, sqlite3.Error) as error:
            if not self._warned:
                log.warning("Labels are not kept: %s cannot be written (%s).", self.path, error)
                self._warned = True
            return False
        return True

    def _read(self, work: Callable[[sqlite3.Connection], Outcome], without: Outcome) -> Outcome:
        """`without` is the outcome where nothing was ever kept: to look must not make a file."""
        try:
            with self._lock:
                if self._database is None and not self.path.exists():
                    return without
                return work(self._open())
        except (OSError, sqlite3.Error) as error:
            raise UserError(
                f"The labels in {self.path} cannot be used ({error}). Check its permissions, or move it away."
            ) from None

    def _open(self) -> sqlite3.Connection:
        if self._database is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Questions and answers are nobody else's, so the file is its owner's from its first byte on.
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
            # Any thread may call; the lock lets one at a time.
            database = sqlite3.connect(self.path, timeout=LOCKED_S, isolation_level=None, check_same_thread=False)
            try:
                database.execute("PRAGMA secure_delete = ON")
                database.execute(
                    "CREATE TABLE IF NOT EXISTS labels"
                    " (turn_id TEXT, thumb INTEGER, row TEXT NOT NULL, UNIQUE (turn_id, thumb))"
                )
            except BaseException:
                database.close()
                raise
            self._database = database
        return self._database


def _row(turn: Mapping[str, Any], kind: Kind, comment: str) -> dict[str, Any]:
    models = {draft["leg"]: draft["model"] for draft in turn["drafts"]}
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "kind": kind,
        "question": turn["question"],
        "answer": turn["answer"],
        "slm": models.get("slm"),
        "llm": models.get("llm"),
        "mode": turn["mode"],
        "escalated": turn["escalated"],
        "refused": turn["refused"],
        "verdict": turn["verdict"],
        "comment": comment,
    }


def show(rows: list[dict[str, Any]]) -> None:
    """As a table; long texts are cut."""
    table = Table(
        Column("when (UTC)", no_wrap=True),
        Column("said", no_wrap=True),
        "question",
        "answer",
        "models",
        Column("score", no_wrap=True),
    )
    for row in rows:
        verdict = row["verdict"]
        table.add_row(
            row["time"][:10],
            row["kind"].replace("_", " "),
            _cut(row["question"]),
            _cut(row["answer"]),
            ", ".join(filter(None, (row["slm"], row["llm"]))),
            f"{verdict['score']:.2f}" if verdict else "",
        )
    terminal.out.print(table)


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN_CHARS else f"{line[: SHOWN_CHARS - 1]}…"
