"""Conversations in one SQLite file.

Chainlit 2.12 has a layer for SQLite too, SQLAlchemyDataLayer, and it does not serve: it makes no tables; writes in no
order, so that an answer's first state may take the place of its last; drops whole messages for a value that SQLite has no
type for; puts the ids of threads, which a client may choose, into the text of its SQL; and loads every conversation with
all that was said in order to show a list of names.

Here one thread owns the database, and does one thing after another in the order in which it was asked. A conversation
begins with its first message; what comes for one that does not exist, since it was deleted meanwhile, is not kept.
What is deleted is overwritten in the file. Knows Chainlit's interface, nothing of models or how a chat looks.
"""

import asyncio
import json
import os
import sqlite3
import uuid
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

from chainlit.data.base import BaseDataLayer
from chainlit.element import Element, ElementDict
from chainlit.step import StepDict
from chainlit.types import Feedback, PageInfo, PaginatedResponse, Pagination, ThreadDict, ThreadFilter
from chainlit.user import PersistedUser, User

from rag.corpus.documents import Ingest, Passage
from rag.errors import UserError
from rag.serve.history_files import FILES, Files
from rag.serve.history_records import (
    LONGEST_PAGE,
    Attached,
    Clock,
    as_json,
    clean,
    document_back,
    document_row,
    element_back,
    element_content,
    folded,
    instant,
    merged,
    said,
    step_row,
    steps_back,
    terms,
    thread_back,
    title,
)
from rag.serve.history_writes import Trouble, queued, session_user

FILE: Final = "history.sqlite"
# Another process may be writing, such as a second chat with the same data folder.
LOCKED_MS: Final = 10_000

# Each brings the database from the version that is its place here to the next one; none is ever changed once it was
# released. `said` is what a message or a name is searched by; it stands before `row`, which need not be read for that.
MIGRATIONS: Final[tuple[str, ...]] = (
    """
    CREATE TABLE users (
        id TEXT PRIMARY KEY, identifier TEXT NOT NULL UNIQUE, metadata TEXT NOT NULL, created TEXT NOT NULL
    );
    CREATE TABLE threads (
        id TEXT PRIMARY KEY, user_id TEXT, name TEXT NOT NULL DEFAULT '', said TEXT NOT NULL DEFAULT '',
        metadata TEXT NOT NULL DEFAULT '{}', tags TEXT, created TEXT NOT NULL, used TEXT NOT NULL
    );
    CREATE INDEX threads_by_use ON threads (user_id, used, id);
    CREATE TABLE steps (
        number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE,
        thread_id TEXT NOT NULL REFERENCES threads ON DELETE CASCADE,
        parent_id TEXT, created TEXT NOT NULL, said TEXT, row TEXT NOT NULL
    );
    CREATE INDEX steps_by_thread ON steps (thread_id, created, number);
    CREATE INDEX steps_by_parent ON steps (parent_id);
    CREATE TABLE elements (
        number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE,
        thread_id TEXT NOT NULL REFERENCES threads ON DELETE CASCADE,
        step_id TEXT NOT NULL REFERENCES steps (id) ON DELETE CASCADE, row TEXT NOT NULL
    );
    CREATE INDEX elements_by_thread ON elements (thread_id);
    CREATE INDEX elements_by_step ON elements (step_id);
    CREATE TABLE feedback (
        id TEXT PRIMARY KEY, step_id TEXT NOT NULL UNIQUE REFERENCES steps (id) ON DELETE CASCADE,
        value REAL NOT NULL, comment TEXT
    )
    """,
    """
    CREATE TABLE attachments (
        thread_id TEXT NOT NULL REFERENCES threads ON DELETE CASCADE,
        number INTEGER NOT NULL, source TEXT NOT NULL, element_id TEXT NOT NULL, row TEXT NOT NULL,
        PRIMARY KEY (thread_id, number)
    );
    CREATE TABLE settings (identifier TEXT PRIMARY KEY, row TEXT NOT NULL)
    """,
)

Outcome = TypeVar("Outcome")


class History(BaseDataLayer):
    """Conversations in `<data_dir>/history.sqlite`, their files under `<data_dir>/files`.

    What Chainlit writes by the way, such as a message, never fails the chat: that it is not kept is told in the log. What
    a person asked for, such as to delete a conversation, raises UserError.
    """

    def __init__(self, data_dir: Path) -> None:
        self.deleted: Callable[[str], Awaitable[None]] | None = None
        self.path = data_dir / FILE
        self._files = Files(data_dir / FILES)
        self._clock = Clock()
        self._trouble = Trouble(str(self.path))
        # A message that is removed while its turn is being stopped is still updated by that turn.
        self._removed: set[str] = set()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="history")
        self._leftovers = False
        self._closed = False
        try:
            self._db = self._thread.submit(self._open).result()
        except BaseException:
            self._thread.shutdown()
            raise

    # --- Users ---

    async def get_user(self, identifier: str) -> PersistedUser | None:
        def work() -> PersistedUser | None:
            row = self._db.execute(
                "SELECT id, identifier, created, metadata FROM users WHERE identifier = ?", (clean(identifier),)
            ).fetchone()
            return row and PersistedUser(id=row[0], identifier=row[1], createdAt=row[2], metadata=json.loads(row[3]))

        return await self._ask(work)

    async def create_user(self, user: User) -> PersistedUser | None:
        """Or keep what is new about a user who is known."""

        def work() -> None:
            with self._transaction() as db:
                db.execute(
                    "INSERT INTO users (id, identifier, metadata, created) VALUES (?, ?, ?, ?)"
                    " ON CONFLICT (identifier) DO UPDATE SET metadata = excluded.metadata",
                    (str(uuid.uuid4()), clean(user.identifier), as_json(user.metadata), instant()),
                )

        await self._ask(work)
        return await self.get_user(user.identifier)

    # --- What Chainlit writes while a chat goes on ---

    @queued
    async def create_step(self, step_dict: StepDict) -> None:
        await self._keep_step(step_dict, new=True)

    @queued
    async def update_step(self, step_dict: StepDict) -> None:
        await self._keep_step(step_dict, new=False)

    async def _keep_step(self, step_dict: StepDict, *, new: bool) -> None:
        id, thread_id, owner = step_dict["id"], step_dict.get("threadId") or "", session_user()

        def prepare() -> Callable[[], None]:
            row = step_row(step_dict)  # now: the dictionary may change

            def work() -> None:
                if new:
                    self._removed.discard(id)
                with self._transaction() as db:
                    if id in self._removed or not self._begun(db, thread_id, owner, step_dict.get("type")):
                        return
                    former = db.execute("SELECT thread_id, row FROM steps WHERE id = ?", (id,)).fetchone()
                    if former is not None and former[0] != thread_id:
                        return  # the id was chosen by a client, and is somebody's already
                    step = merged(former and former[1], row)
                    db.execute(
                        "INSERT INTO steps (id, thread_id, parent_id, created, said, row) VALUES (?, ?, ?, ?, ?, ?)"
                        " ON CONFLICT (id) DO UPDATE SET parent_id = excluded.parent_id, created = excluded.created,"
                        " said = excluded.said, row = excluded.row",
                        (id, thread_id, step.get("parentId"), step["createdAt"], said(step), as_json(step)),
                    )
                    if former is None and said(step) is not None:
                        db.execute("UPDATE threads SET used = ? WHERE id = ?", (self._clock.now(), thread_id))
                    if step.get("type") == "user_message":
                        self._name(db, thread_id, str(step.get("output") or ""))

            return work

        await self._write(prepare)

    @queued
    async def delete_step(self, step_id: str) -> None:
        owner = session_user()

        def work() -> None:
            with self._transaction() as db:
                rows = db.execute(
                    "WITH RECURSIVE gone (id, thread_id) AS ("
                    " SELECT s.id, s.thread_id FROM steps s JOIN threads t ON t.id = s.thread_id"
                    " WHERE s.id = ? AND (? IS NULL OR t.user_id IS NULL OR t.user_id = ?)"
                    " UNION SELECT s.id, s.thread_id FROM steps s JOIN gone ON s.parent_id = gone.id"
                    " AND s.thread_id = gone.thread_id) SELECT id, thread_id FROM gone",
                    (step_id, owner, owner),
                ).fetchall()
                elements = [
                    (thread_id, element_id)
                    for id, thread_id in rows
                    for (element_id,) in db.execute("SELECT id FROM elements WHERE step_id = ?", (id,))
                ]
                db.executemany("DELETE FROM steps WHERE id = ?", [(id,) for id, _ in rows])
            self._removed.update({step_id}, (id for id, _ in rows))
            self._drop_files(elements)
            self._overwrite()

        await self._write(lambda: work)

    @queued
    async def create_element(self, element: Element) -> None:
        id, thread_id, step_id, owner = element.id, element.thread_id, element.for_id, session_user()

        def prepare() -> Callable[[], None]:
            row = as_json(element.to_dict())
            content: bytes | Path | None = Path(element.path) if element.path else element_content(element)

            def work() -> None:
                with self._transaction() as db:
                    if not self._begun(db, thread_id, owner) or not self._stands(db, thread_id, step_id, id):
                        return
                    db.execute(
                        "INSERT INTO elements (id, thread_id, step_id, row) VALUES (?, ?, ?, ?)"
                        " ON CONFLICT (id) DO UPDATE SET step_id = excluded.step_id, row = excluded.row",
                        (id, thread_id, step_id, row),
                    )
                    if content is not None:
                        self._name(db, thread_id, element.name)
                # The element is kept even where its file cannot be.
                if content is not None:
                    self._files.keep(thread_id, id, content)

            return work

        await self._write(prepare)

    @queued
    async def delete_element(self, element_id: str, thread_id: str | None = None) -> None:
        owner = session_user()

        def work() -> None:
            with self._transaction() as db:
                gone = db.execute(
                    "DELETE FROM elements WHERE id = ? AND (? IS NULL OR thread_id = ?) AND thread_id IN"
                    " (SELECT id FROM threads WHERE ? IS NULL OR user_id IS NULL OR user_id = ?) RETURNING thread_id",
                    (element_id, thread_id, thread_id, owner, owner),
                ).fetchall()
            self._drop_files([(whose, element_id) for (whose,) in gone])
            self._overwrite()

        await self._write(lambda: work)

    def _begun(self, db: sqlite3.Connection, thread_id: str, owner: str | None, type: str | None = None) -> bool:
        """May something be added to this conversation? A question begins one that does not exist yet."""
        row = db.execute("SELECT user_id FROM threads WHERE id = ?", (thread_id,)).fetchone()
        if row is None and thread_id and type == "user_message":
            now = self._clock.now()
            db.execute(
                "INSERT INTO threads (id, user_id, created, used) VALUES (?, ?, ?, ?)", (thread_id, owner, now, now)
            )
            return True
        return row is not None and (owner is None or row[0] is None or row[0] == owner)

    @staticmethod
    def _stands(db: sqlite3.Connection, thread_id: str, step_id: str | None, element_id: str) -> bool:
        """Is the message there that an element belongs to, and the element's id nobody else's?"""
        message = db.execute("SELECT 1 FROM steps WHERE id = ? AND thread_id = ?", (step_id, thread_id)).fetchone()
        other = db.execute("SELECT 1 FROM elements WHERE id = ? AND thread_id != ?", (element_id, thread_id)).fetchone()
        return message is not None and other is None

    @staticmethod
    def _name(db: sqlite3.Connection, thread_id: str, text: str) -> None:
        """A conversation is called after its first question, or the file that it began with; a name that it has stays."""
        name = title(text)
        db.execute(
            "UPDATE threads SET name = ?, said = ? WHERE id = ? AND name = '' AND ? != ''",
            (name, folded(name), thread_id, name),
        )

    # --- Conversations ---

    async def update_thread(
        self,
        thread_id: str,
        name: str | None = None,
        user_id: str | None = None,
        metadata: dict[str, Any] | None = None,
        tags: list[str] | None = None,
    ) -> None:
        """Name, owner, tags; of the metadata what is given, and None takes a key out.

        A name or an owner makes a conversation that is not there; what a closed tab leaves behind does not.
        """
        owner = session_user()

        def prepare() -> Callable[[], None]:
            changes = as_json(metadata or {})
            new_tags = None if tags is None else as_json(tags)

            def work() -> None:
                with self._transaction() as db:
                    row = db.execute("SELECT user_id, metadata FROM threads WHERE id = ?", (thread_id,)).fetchone()
                    if row is None:
                        if name is None and user_id is None:
                            return
                        row, now = (None, "{}"), self._clock.now()
                        db.execute("INSERT INTO threads (id, created, used) VALUES (?, ?, ?)", (thread_id, now, now))
                    if row[0] is not None and any(one is not None and one != row[0] for one in (owner, user_id)):
                        return
                    all_metadata = {**json.loads(row[1]), **json.loads(changes)}
                    db.execute(
                        "UPDATE threads SET metadata = ?, tags = coalesce(?, tags), user_id = coalesce(user_id, ?)"
                        " WHERE id = ?",
                        (
                            as_json({key: value for key, value in all_metadata.items() if value is not None}),
                            new_tags,
                            user_id or owner,
                            thread_id,
                        ),
                    )
                    if new_name := title(name):
                        db.execute(
                            "UPDATE threads SET name = ?, said = ? WHERE id = ?",
                            (new_name, folded(new_name), thread_id),
                        )

            return work

        if name is not None and user_id is None and metadata is None and tags is None:
            await self._ask(prepare())  # a person gave it another name
        else:
            await self._write(prepare)

    async def delete_thread(self, thread_id: str) -> None:
        def work() -> None:
            with self._files.removing(thread_id), self._transaction() as db:
                db.execute("DELETE FROM threads WHERE id = ?", (thread_id,))
            self._overwrite()

        await self._ask(work)
        if self.deleted is not None:
            await self.deleted(thread_id)

    async def thread_ids(self) -> list[str]:
        def work() -> list[str]:
            return [id for (id,) in self._db.execute("SELECT id FROM threads ORDER BY created, id")]

        return await self._ask(work)

    async def get_thread_author(self, thread_id: str) -> str:
        def work() -> str:
            row = self._db.execute(
                "SELECT u.identifier FROM threads t JOIN users u ON u.id = t.user_id WHERE t.id = ?", (thread_id,)
            ).fetchone()
            return row[0] if row else ""

        return await self._ask(work)

    async def get_thread(self, thread_id: str) -> ThreadDict | None:
        def work() -> ThreadDict | None:
            steps = self._db.execute(
                "SELECT s.row, f.id, f.value, f.comment FROM steps s LEFT JOIN feedback f ON f.step_id = s.id"
                " WHERE s.thread_id = ? ORDER BY s.created, s.number",
                (thread_id,),
            ).fetchall()
            thread = self._db.execute(f"{_THREADS} WHERE t.id = ?", (thread_id,)).fetchone()
            if not steps or thread is None:
                return None
            found = self._db.execute("SELECT row FROM elements WHERE thread_id = ? ORDER BY number", (thread_id,))
            back = thread_back(thread)
            back["steps"] = steps_back(steps)
            back["elements"] = [self._element_back(json.loads(row)) for (row,) in found]
            return back

        return await self._ask(work)

    async def get_element(self, thread_id: str, element_id: str) -> ElementDict | None:
        def work() -> ElementDict | None:
            row = self._db.execute(
                "SELECT row FROM elements WHERE id = ? AND thread_id = ?", (element_id, thread_id)
            ).fetchone()
            return row and self._element_back(json.loads(row[0]))

        return await self._ask(work)

    async def list_threads(self, pagination: Pagination, filters: ThreadFilter) -> PaginatedResponse[ThreadDict]:
        """`createdAt` is when it was last used: the page sorts and groups by it.

        A search finds every word in the conversation's name or in one of its messages; it looks through all of the
        user's, which takes less than a tenth of a second for ten million characters, and nothing else is kept for it.
        """
        first = min(max(pagination.first, 1), LONGEST_PAGE)
        conditions = ["t.user_id = ?", "EXISTS (SELECT 1 FROM steps s WHERE s.thread_id = t.id)"]
        values: list[object] = [filters.userId]
        for term in terms(filters.search):
            conditions.append(
                "(instr(t.said, ?) OR EXISTS (SELECT 1 FROM steps s WHERE s.thread_id = t.id AND instr(s.said, ?)))"
            )
            values += [term, term]
        if filters.feedback is not None:
            conditions.append(
                "EXISTS (SELECT 1 FROM steps s JOIN feedback f ON f.step_id = s.id"
                " WHERE s.thread_id = t.id AND f.value = ?)"
            )
            values.append(filters.feedback)
        if pagination.cursor:
            used, _, id = clean(pagination.cursor).partition(" ")
            conditions.append("(t.used, t.id) < (?, ?)")
            values += [used, id]

        def work() -> list[tuple[Any, ...]]:
            return self._db.execute(
                f"{_THREADS} WHERE {' AND '.join(conditions)} ORDER BY t.used DESC, t.id DESC LIMIT ?",
                (*values, first + 1),
            ).fetchall()

        rows = await self._ask(work)
        threads = [thread_back(row, by_use=True) for row in rows[:first]]
        cursors = [f"{row[7]} {row[0]}" for row in rows[:first]]
        page = PageInfo(len(rows) > first, cursors[0] if cursors else None, cursors[-1] if cursors else None)
        return PaginatedResponse(pageInfo=page, data=threads)

    # --- Feedback and favourites ---

    async def upsert_feedback(self, feedback: Feedback) -> str:
        """One for each message; the newer takes the earlier one's place. Returns its id."""

        def work() -> str:
            with self._transaction() as db:
                if db.execute("SELECT 1 FROM steps WHERE id = ?", (feedback.forId,)).fetchone() is None:
                    raise UserError("That message is not kept, so nothing can be noted about it. Reload the page.")
                comment = None if feedback.comment is None else clean(feedback.comment)
                row = db.execute(
                    "INSERT INTO feedback (id, step_id, value, comment) VALUES (?, ?, ?, ?)"
                    " ON CONFLICT (step_id) DO UPDATE SET value = excluded.value, comment = excluded.comment"
                    " RETURNING id",
                    (str(uuid.uuid4()), feedback.forId, feedback.value, comment),
                ).fetchone()
                return str(row[0])

        return await self._ask(work)

    async def delete_feedback(self, feedback_id: str) -> bool:
        def work() -> bool:
            with self._transaction() as db:
                return db.execute("DELETE FROM feedback WHERE id = ?", (feedback_id,)).rowcount > 0

        return await self._ask(work)

    async def get_favorite_steps(self, user_id: str) -> list[StepDict]:
        def work() -> list[StepDict]:
            rows = self._db.execute(
                "SELECT s.row FROM steps s JOIN threads t ON t.id = s.thread_id"
                " WHERE t.user_id = ? AND json_extract(s.row, '$.metadata.favorite') ORDER BY s.created DESC",
                (user_id,),
            )
            return steps_back((row, None, 0, None) for (row,) in rows)

        return await self._ask(work)

    # --- What this project adds ---

    async def attach(
        self, thread_id: str, number: int, source: str, element_id: str, report: Ingest, passages: list[Passage]
    ) -> None:
        def work() -> None:
            row, name = document_row(report, passages), clean(source)
            with self._transaction() as db:
                if not self._begun(db, thread_id, None):
                    return
                gone = db.execute(
                    "DELETE FROM attachments WHERE thread_id = ? AND (number = ? OR source = ?) RETURNING element_id",
                    (thread_id, number, name),
                ).fetchall()
                db.execute(
                    "INSERT INTO attachments (thread_id, number, source, element_id, row) VALUES (?, ?, ?, ?, ?)",
                    (thread_id, number, name, element_id, row),
                )
            self._drop_files([(thread_id, former) for (former,) in gone])

        await self._write(lambda: work)

    async def detach(self, thread_id: str, number: int) -> None:
        def work() -> None:
            with self._transaction() as db:
                gone = db.execute(
                    "DELETE FROM attachments WHERE thread_id = ? AND number = ? RETURNING element_id",
                    (thread_id, number),
                ).fetchall()
            self._drop_files([(thread_id, element_id) for (element_id,) in gone])
            self._overwrite()

        await self._write(lambda: work)

    async def attachments(self, thread_id: str) -> list[Attached]:
        def work() -> list[Attached]:
            rows = self._db.execute(
                "SELECT number, source, element_id, row FROM attachments WHERE thread_id = ? ORDER BY number",
                (thread_id,),
            )
            return [document_back(*row) for row in rows]

        return await self._ask(work)

    async def file(self, thread_id: str, element_id: str) -> Path | None:
        return await self._ask(lambda: self._files.find(thread_id, element_id))

    async def settings(self, user: str) -> dict[str, Any]:
        def work() -> dict[str, Any]:
            row = self._db.execute("SELECT row FROM settings WHERE identifier = ?", (clean(user),)).fetchone()
            return json.loads(row[0]) if row else {}

        return await self._ask(work)

    async def keep_settings(self, user: str, values: dict[str, Any]) -> None:
        def prepare() -> Callable[[], None]:
            row = as_json(values)

            def work() -> None:
                with self._transaction() as db:
                    db.execute("INSERT OR REPLACE INTO settings (identifier, row) VALUES (?, ?)", (clean(user), row))

            return work

        await self._write(prepare)

    async def build_debug_url(self) -> str:
        return ""

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._thread.submit(self._db.close)
            await asyncio.to_thread(self._thread.shutdown)

    # --- The database ---

    async def _ask(self, work: Callable[[], Outcome]) -> Outcome:
        """The outcome of `work` in the database's thread, after all that was asked for before. Raises UserError.

        It is done even if whoever asked is cancelled meanwhile, as a turn is that was stopped.
        """
        try:
            return await self._run(work)
        except (OSError, sqlite3.Error) as error:
            raise _unusable(self.path, error) from error

    async def _write(self, prepare: Callable[[], Callable[[], None]]) -> None:
        """For what must not fail the chat."""
        try:
            await self._run(prepare())
        except (OSError, sqlite3.Error, ValueError) as error:
            self._trouble.tell(error)
        else:
            self._trouble.over()

    async def _run(self, work: Callable[[], Outcome]) -> Outcome:
        if self._closed:
            raise sqlite3.ProgrammingError("the history was closed")
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._thread, work))

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with _transaction(self._db):
            yield self._db
        if self._leftovers:
            self._overwrite()

    def _element_back(self, row: dict[str, Any]) -> ElementDict:
        return element_back(row, has_file=self._files.find(row["threadId"], row["id"]) is not None)

    def _drop_files(self, files: list[tuple[str, str]]) -> None:
        """Those that neither a message shows nor a document was read from."""
        for thread_id, element_id in files:
            used = self._db.execute(
                "SELECT 1 FROM elements WHERE id = :id AND thread_id = :thread"
                " UNION SELECT 1 FROM attachments WHERE element_id = :id AND thread_id = :thread",
                {"id": element_id, "thread": thread_id},
            ).fetchone()
            if used is None:
                self._files.remove(thread_id, element_id)

    def _overwrite(self) -> None:
        """`secure_delete` overwrites what is deleted, and this what is left of it in the file beside the database.

        While somebody reads that file it cannot be done; then it is tried again after each write.
        """
        self._db.execute("PRAGMA busy_timeout = 100")
        self._leftovers = bool(self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0])
        self._db.execute(f"PRAGMA busy_timeout = {LOCKED_MS}")

    def _open(self) -> sqlite3.Connection:
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # What was said is nobody else's, so the file is its owner's from its first byte on.
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
            db = sqlite3.connect(self.path, timeout=LOCKED_MS / 1000, isolation_level=None)
            try:
                migrate(db, self.path, MIGRATIONS)
                db.execute("PRAGMA journal_mode = WAL")
                # A process that is killed loses nothing that was acknowledged; a power cut may cost the last seconds.
                db.execute("PRAGMA synchronous = NORMAL")
                db.execute("PRAGMA secure_delete = ON")
                db.execute("PRAGMA foreign_keys = ON")
                # Somebody pressed a button, or opened a page, and said nothing.
                db.execute("DELETE FROM threads WHERE id NOT IN (SELECT thread_id FROM steps)")
                self._files.open()
            except BaseException:
                db.close()
                raise
            return db
        except (OSError, sqlite3.Error) as error:
            raise _unusable(self.path, error) from None


# For the rows that thread_back takes.
_THREADS: Final = (
    "SELECT t.id, t.name, t.user_id, u.identifier, t.metadata, t.tags, t.created, t.used"
    " FROM threads t LEFT JOIN users u ON u.id = t.user_id"
)


def _unusable(path: Path, error: Exception) -> UserError:
    if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
        what = f"is damaged ({error}). Restore it from a copy, or move it away to begin with none"
    else:
        what = f"cannot be used ({error}). Look at its permissions and the room on its disk, or set RAG_DATA_DIR"
    return UserError(f"The file of the conversations, {path}, {what}.")


@contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")


def migrate(db: sqlite3.Connection, path: Path, migrations: tuple[str, ...]) -> None:
    """Bring the database to the newest version, or leave it as it was. One that is newer still is a UserError."""
    if db.execute("PRAGMA user_version").fetchone()[0] == len(migrations):
        return
    with _transaction(db):
        version: int = db.execute("PRAGMA user_version").fetchone()[0]  # again: another process may have come first
        if version > len(migrations):
            raise UserError(
                f"The conversations in {path} were written by a newer version of this program (format {version}; this"
                f" one knows {len(migrations)}). Install that version again, or set RAG_DATA_DIR to another folder."
            )
        for script in migrations[version:]:
            for statement in script.split(";"):
                db.execute(statement)
        db.execute(f"PRAGMA user_version = {len(migrations)}")
