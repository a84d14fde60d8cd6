"""Conversations on a Postgres server, in Chainlit's own tables.

Chainlit 2.12 has a layer for Postgres, and this one is built on it. Chainlit leaves its tables to be made by another
program, and keeps of a step only what they have a column for; it writes through several connections in no order, deletes
no files, and gives back times without their zone, which it cannot read itself when a message of theirs is edited. So the
tables are made here when they are missing, each step is also kept whole beside them, and all that is written is written
anew, one thing after another. Whatever reads Chainlit's tables finds in them what it expects.

The files are on this machine, in the data folder. Knows Chainlit's interface, nothing of models or how a chat looks.
"""

import asyncio
import json
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import asyncpg  # type: ignore[import-untyped]
from chainlit.data.chainlit_data_layer import ChainlitDataLayer
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

CONNECT_S: Final = 10.0
STATEMENT_S: Final = 60.0
# Any number will do that no other program uses: of several servers that start at once, one makes the tables.
LOCK: Final = 7_120_634_451

# Chainlit's tables: the names are those in its queries, the types what these pass and expect.
CHAINLITS: Final = """
    CREATE TABLE IF NOT EXISTS "User" (
        id TEXT PRIMARY KEY, identifier TEXT NOT NULL UNIQUE, metadata JSONB NOT NULL,
        "createdAt" TIMESTAMP NOT NULL, "updatedAt" TIMESTAMP NOT NULL
    );
    CREATE TABLE IF NOT EXISTS "Thread" (
        id TEXT PRIMARY KEY, name TEXT, "userId" TEXT REFERENCES "User" (id) ON DELETE SET NULL, tags TEXT[],
        metadata JSONB NOT NULL DEFAULT '{}', "createdAt" TIMESTAMP NOT NULL DEFAULT (now() AT TIME ZONE 'UTC'),
        "updatedAt" TIMESTAMP NOT NULL DEFAULT (now() AT TIME ZONE 'UTC'), "deletedAt" TIMESTAMP
    );
    CREATE INDEX IF NOT EXISTS "Thread_by_use" ON "Thread" ("userId", "updatedAt");
    CREATE TABLE IF NOT EXISTS "Step" (
        id TEXT PRIMARY KEY, "threadId" TEXT REFERENCES "Thread" (id) ON DELETE CASCADE, "parentId" TEXT,
        name TEXT, type TEXT NOT NULL, input TEXT, output TEXT, metadata JSONB NOT NULL,
        "startTime" TIMESTAMP NOT NULL, "endTime" TIMESTAMP NOT NULL, "showInput" TEXT, "isError" BOOLEAN,
        "createdAt" TIMESTAMP NOT NULL DEFAULT (now() AT TIME ZONE 'UTC')
    );
    CREATE INDEX IF NOT EXISTS "Step_by_thread" ON "Step" ("threadId", "startTime");
    CREATE INDEX IF NOT EXISTS "Step_by_parent" ON "Step" ("parentId");
    CREATE TABLE IF NOT EXISTS "Element" (
        id TEXT PRIMARY KEY, "threadId" TEXT REFERENCES "Thread" (id) ON DELETE CASCADE,
        "stepId" TEXT NOT NULL REFERENCES "Step" (id) ON DELETE CASCADE, metadata JSONB NOT NULL, mime TEXT,
        name TEXT NOT NULL, "objectKey" TEXT, url TEXT, "chainlitKey" TEXT, display TEXT, size TEXT, language TEXT,
        page INTEGER, props JSONB, "createdAt" TIMESTAMP NOT NULL DEFAULT (now() AT TIME ZONE 'UTC')
    );
    CREATE INDEX IF NOT EXISTS "Element_by_thread" ON "Element" ("threadId");
    CREATE INDEX IF NOT EXISTS "Element_by_step" ON "Element" ("stepId");
    CREATE TABLE IF NOT EXISTS "Feedback" (
        id TEXT PRIMARY KEY, "stepId" TEXT REFERENCES "Step" (id) ON DELETE CASCADE, name TEXT NOT NULL,
        value DOUBLE PRECISION NOT NULL, comment TEXT
    );
    CREATE INDEX IF NOT EXISTS "Feedback_by_step" ON "Feedback" ("stepId")
"""

# Ours. Of each step what Chainlit's columns have no room for, and what it is searched by; of each thread the latter.
OURS: Final = """
    CREATE TABLE IF NOT EXISTS smallfirst_texts (
        number BIGSERIAL PRIMARY KEY, id TEXT NOT NULL UNIQUE, thread_id TEXT NOT NULL, said TEXT, row TEXT
    );
    CREATE INDEX IF NOT EXISTS smallfirst_texts_by_thread ON smallfirst_texts (thread_id);
    CREATE TABLE IF NOT EXISTS smallfirst_attachments (
        thread_id TEXT NOT NULL, number INTEGER NOT NULL, source TEXT NOT NULL, element_id TEXT NOT NULL,
        row TEXT NOT NULL, PRIMARY KEY (thread_id, number)
    );
    CREATE TABLE IF NOT EXISTS smallfirst_settings (identifier TEXT PRIMARY KEY, row TEXT NOT NULL)
"""

# What is read or written below, in case the tables are there already.
NEEDED: Final = {
    "User": 'id, identifier, metadata, "createdAt", "updatedAt"',
    "Thread": 'id, name, "userId", tags, metadata, "createdAt", "updatedAt", "deletedAt"',
    "Step": 'id, "threadId", "parentId", name, type, input, output, metadata, "startTime", "endTime", "showInput",'
    ' "isError"',
    "Element": 'id, "threadId", "stepId", metadata, mime, name, "objectKey", url, "chainlitKey", display, size,'
    ' language, page, props, "createdAt"',
    "Feedback": 'id, "stepId", name, value, comment',
}

_THREADS: Final = (
    'SELECT t.id, t.name, t."userId", u.identifier, t.metadata, t.tags, t."createdAt", t."updatedAt"'
    ' FROM "Thread" t LEFT JOIN "User" u ON u.id = t."userId"'
)
# Of a connection that has gone, asyncpg tells in any of these ways.
_LOST: Final = (OSError, asyncpg.PostgresConnectionError, asyncpg.InterfaceError, asyncpg.InternalClientError)
_FAILURES: Final = (*_LOST, asyncpg.PostgresError)

Outcome = TypeVar("Outcome")


class PostgresHistory(ChainlitDataLayer):
    """Like `rag.serve.history_sqlite.History`, whose docstrings say what each method promises."""

    def __init__(self, database_url: str, data_dir: Path) -> None:
        super().__init__(database_url)
        self.deleted: Callable[[str], Awaitable[None]] | None = None
        self.place = _place(database_url)
        self._files = Files(data_dir / FILES)
        self._clock = Clock()
        self._trouble = Trouble(self.place)
        self._removed: set[str] = set()
        self._one_at_a_time = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False

    @classmethod
    def open(cls, database_url: str, data_dir: Path) -> "PostgresHistory":
        """Blocks until the tables are there. Raises UserError in one sentence if they cannot be."""
        history = cls(database_url, data_dir)
        try:
            _blocking(history._prepare())
            history._files.open()
        except (*_FAILURES, ValueError) as error:
            raise history._unusable(error) from None
        return history

    async def _prepare(self) -> None:
        db = await asyncpg.connect(self.database_url, timeout=CONNECT_S)
        try:
            async with db.transaction():
                await db.execute("SELECT pg_advisory_xact_lock($1)", LOCK)
                await db.execute(CHAINLITS)
                await db.execute(OURS)
                for table, columns in NEEDED.items():
                    await db.execute(f'SELECT {columns} FROM "{table}" LIMIT 0')
                await self._take_over(db)
                # Somebody pressed a button, or opened a page, and said nothing. Another server's may be about to.
                await db.execute(
                    'DELETE FROM "Thread" t WHERE "updatedAt" < $1'
                    ' AND NOT EXISTS (SELECT 1 FROM "Step" s WHERE s."threadId" = t.id)',
                    _time(instant()) - timedelta(days=1),
                )
        except (asyncpg.UndefinedColumnError, asyncpg.UndefinedFunctionError) as error:
            raise UserError(
                f"The tables in {self.place} are not as Chainlit 2.12 has them ({error})."
                " Set RAG_DATABASE_URL to another database."
            ) from None
        finally:
            await db.close()

    async def _take_over(self, db: Any) -> None:
        """What another program has written into Chainlit's tables."""
        for thread in await db.fetch(
            'SELECT id, name FROM "Thread" WHERE id NOT IN (SELECT id FROM smallfirst_texts) ORDER BY "createdAt"'
        ):
            await self._keep_text(db, thread["id"], thread["id"], folded(thread["name"] or ""), None)
        for row in await db.fetch(
            'SELECT * FROM "Step" WHERE "threadId" IS NOT NULL AND id NOT IN (SELECT id FROM smallfirst_texts)'
            ' ORDER BY "startTime"'
        ):
            step: Any = self._convert_step_row_to_dict(dict(row))
            step["createdAt"] = instant(row["startTime"].isoformat())
            await self._keep_text(db, step["id"], step["threadId"], said(step), step_row(step))

    # --- Users ---

    async def get_user(self, identifier: str) -> PersistedUser | None:
        async def work(db: Any) -> PersistedUser | None:
            return _user(await db.fetchrow('SELECT * FROM "User" WHERE identifier = $1', clean(identifier)))

        return await self._ask(work)

    async def create_user(self, user: User) -> PersistedUser | None:
        async def work(db: Any) -> PersistedUser | None:
            return _user(
                await db.fetchrow(
                    'INSERT INTO "User" (id, identifier, metadata, "createdAt", "updatedAt") VALUES ($1, $2, $3, $4, $4)'
                    " ON CONFLICT (identifier) DO UPDATE SET metadata = excluded.metadata RETURNING *",
                    str(uuid.uuid4()),
                    clean(user.identifier),
                    as_json(user.metadata),
                    _time(instant()),
                )
            )

        return await self._ask(work)

    # --- What Chainlit writes while a chat goes on ---

    @queued
    async def create_step(self, step_dict: StepDict) -> None:
        await self._keep_step(step_dict, new=True)

    @queued
    async def update_step(self, step_dict: StepDict) -> None:
        await self._keep_step(step_dict, new=False)

    async def _keep_step(self, step_dict: StepDict, *, new: bool) -> None:
        id, thread_id, owner = step_dict["id"], step_dict.get("threadId") or "", session_user()

        def prepare() -> Callable[[Any], Awaitable[None]]:
            row, type = step_row(step_dict), step_dict.get("type")

            async def work(db: Any) -> None:
                if new:
                    self._removed.discard(id)
                if id in self._removed or not await self._begun(db, thread_id, owner, type):
                    return
                former = await db.fetchrow("SELECT thread_id, row FROM smallfirst_texts WHERE id = $1", id)
                if former is not None and former["thread_id"] != thread_id:
                    return
                step = merged(former and former["row"], row)
                await self._keep_columns(db, thread_id, step)
                await self._keep_text(db, id, thread_id, said(step), as_json(step))
                if former is None and said(step) is not None:
                    await db.execute(
                        'UPDATE "Thread" SET "updatedAt" = $2 WHERE id = $1', thread_id, _time(self._clock.now())
                    )
                if type == "user_message":
                    await self._name(db, thread_id, str(step.get("output") or ""))

            return work

        await self._write(prepare)

    @staticmethod
    async def _keep_columns(db: Any, thread_id: str, step: dict[str, Any]) -> None:
        """For whatever else reads Chainlit's tables."""
        began = _time(step["createdAt"])
        show_input = step.get("showInput")
        await db.execute(
            'INSERT INTO "Step" (id, "threadId", "parentId", name, type, input, output, metadata, "startTime", "endTime",'
            ' "showInput", "isError") VALUES ($1, $2, (SELECT id FROM "Step" WHERE id = $3), $4, $5, $6, $7, $8, $9,'
            ' $10, $11, $12) ON CONFLICT (id) DO UPDATE SET "parentId" = excluded."parentId", name = excluded.name,'
            " type = excluded.type, input = excluded.input, output = excluded.output, metadata = excluded.metadata,"
            ' "startTime" = excluded."startTime", "endTime" = excluded."endTime", "showInput" = excluded."showInput",'
            ' "isError" = excluded."isError"',
            step["id"],
            thread_id,
            step.get("parentId"),
            step.get("name"),
            step.get("type") or "undefined",
            step.get("input"),
            step.get("output"),
            as_json(step.get("metadata") or {}),
            began,
            _time(instant(step["end"])) if step.get("end") else began,
            None if show_input is None else str(show_input),
            bool(step.get("isError")),
        )

    @queued
    async def delete_step(self, step_id: str) -> None:
        owner = session_user()

        async def work(db: Any) -> list[tuple[str, str]]:
            steps = await db.fetch(
                "WITH RECURSIVE gone (id, thread_id) AS ("
                ' SELECT s.id, s."threadId" FROM "Step" s JOIN "Thread" t ON t.id = s."threadId"'
                ' WHERE s.id = $1 AND ($2::text IS NULL OR t."userId" IS NULL OR t."userId" = $2)'
                ' UNION SELECT s.id, s."threadId" FROM "Step" s JOIN gone ON s."parentId" = gone.id'
                ' AND s."threadId" = gone.thread_id) SELECT id FROM gone',
                step_id,
                owner,
            )
            ids = [id for (id,) in steps]
            elements = await db.fetch(
                'DELETE FROM "Element" WHERE "stepId" = ANY ($1) RETURNING "threadId" AS thread_id, id', ids
            )
            await self._delete_steps(db, ids)
            self._removed.update({step_id}, ids)
            return await self._unused(db, [tuple(row) for row in elements])

        await self._write(lambda: work, self._drop_files)

    @staticmethod
    async def _delete_steps(db: Any, ids: list[str]) -> None:
        await db.execute('DELETE FROM "Feedback" WHERE "stepId" = ANY ($1)', ids)
        await db.execute('DELETE FROM "Step" WHERE id = ANY ($1)', ids)
        await db.execute("DELETE FROM smallfirst_texts WHERE id = ANY ($1)", ids)

    @queued
    async def create_element(self, element: Element) -> None:
        id, thread_id, step_id, owner = element.id, element.thread_id, element.for_id, session_user()

        def prepare() -> Callable[[Any], Awaitable[None]]:
            kept = json.loads(as_json(element.to_dict()))
            props = as_json(kept.pop("props", None) or {})
            content: bytes | Path | None = Path(element.path) if element.path else element_content(element)

            async def work(db: Any) -> None:
                if not await self._begun(db, thread_id, owner) or not await self._stands(db, thread_id, step_id, id):
                    return
                await db.execute(
                    'INSERT INTO "Element" (id, "threadId", "stepId", metadata, mime, name, url, "chainlitKey", display,'
                    " size, language, page, props) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)"
                    ' ON CONFLICT (id) DO UPDATE SET "stepId" = excluded."stepId", metadata = excluded.metadata,'
                    " name = excluded.name, url = excluded.url, props = excluded.props",
                    id,
                    thread_id,
                    step_id,
                    as_json(kept),
                    *(kept.get(key) for key in ("mime", "name", "url", "chainlitKey", "display", "size", "language")),
                    kept.get("page"),
                    props,
                )
                if content is not None:
                    await self._name(db, thread_id, element.name)
                    # The element is kept even where its file cannot be.
                    try:
                        await asyncio.to_thread(self._files.keep, thread_id, id, content)
                    except OSError as error:
                        self._trouble.tell(error)

            return work

        await self._write(prepare)

    @queued
    async def delete_element(self, element_id: str, thread_id: str | None = None) -> None:
        owner = session_user()

        async def work(db: Any) -> list[tuple[str, str]]:
            gone = await db.fetch(
                'DELETE FROM "Element" WHERE id = $1 AND ($2::text IS NULL OR "threadId" = $2) AND "threadId" IN'
                ' (SELECT id FROM "Thread" WHERE $3::text IS NULL OR "userId" IS NULL OR "userId" = $3)'
                ' RETURNING "threadId", id',
                element_id,
                thread_id,
                owner,
            )
            return await self._unused(db, [tuple(row) for row in gone])

        await self._write(lambda: work, self._drop_files)

    async def _begun(self, db: Any, thread_id: str, owner: str | None, type: str | None = None) -> bool:
        row = await db.fetchrow('SELECT "userId" FROM "Thread" WHERE id = $1', thread_id)
        if row is None and thread_id and type == "user_message":
            await self._begin(db, thread_id, owner)
            return True
        return row is not None and (owner is None or row[0] is None or row[0] == owner)

    async def _begin(self, db: Any, thread_id: str, owner: str | None) -> None:
        await db.execute(
            'INSERT INTO "Thread" (id, name, "userId", tags, metadata, "createdAt", "updatedAt")'
            " VALUES ($1, '', $2, '{}', '{}', $3, $3) ON CONFLICT DO NOTHING",
            thread_id,
            owner,
            _time(self._clock.now()),
        )
        await self._keep_text(db, thread_id, thread_id, "", None)

    @staticmethod
    async def _stands(db: Any, thread_id: str, step_id: str | None, element_id: str) -> bool:
        message = await db.fetchrow('SELECT 1 FROM "Step" WHERE id = $1 AND "threadId" = $2', step_id, thread_id)
        other = await db.fetchrow(
            'SELECT 1 FROM "Element" WHERE id = $1 AND "threadId" IS DISTINCT FROM $2', element_id, thread_id
        )
        return message is not None and other is None

    async def _name(self, db: Any, thread_id: str, text: str, *, again: bool = False) -> None:
        if name := title(text):
            named = await db.fetchrow(
                "UPDATE \"Thread\" SET name = $2 WHERE id = $1 AND ($3 OR coalesce(name, '') = '') RETURNING id",
                thread_id,
                name,
                again,
            )
            if named is not None:
                await self._keep_text(db, thread_id, thread_id, folded(name), None)

    @staticmethod
    async def _keep_text(db: Any, id: str, thread_id: str, said: str | None, row: str | None) -> None:
        await db.execute(
            "INSERT INTO smallfirst_texts (id, thread_id, said, row) VALUES ($1, $2, $3, $4)"
            " ON CONFLICT (id) DO UPDATE SET said = excluded.said, row = excluded.row",
            id,
            thread_id,
            said,
            row,
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
        owner = session_user()

        def prepare() -> Callable[[Any], Awaitable[None]]:
            changes = json.loads(as_json(metadata or {}))

            async def work(db: Any) -> None:
                if await db.fetchrow('SELECT 1 FROM "Thread" WHERE id = $1', thread_id) is None:
                    if name is None and user_id is None:
                        return
                    await self._begin(db, thread_id, user_id or owner)
                row = await db.fetchrow('SELECT "userId", metadata FROM "Thread" WHERE id = $1', thread_id)
                if row[0] is not None and any(one is not None and one != row[0] for one in (owner, user_id)):
                    return
                all_metadata = {**json.loads(row[1]), **changes}
                await db.execute(
                    'UPDATE "Thread" SET metadata = $2, tags = coalesce($3, tags), "userId" = coalesce("userId", $4)'
                    " WHERE id = $1",
                    thread_id,
                    as_json({key: value for key, value in all_metadata.items() if value is not None}),
                    None if tags is None else [clean(tag) for tag in tags],
                    user_id or owner,
                )
                await self._name(db, thread_id, name or "", again=True)

            return work

        if name is not None and user_id is None and metadata is None and tags is None:
            await self._ask(prepare())
        else:
            await self._write(prepare)

    async def delete_thread(self, thread_id: str) -> None:
        async def work(db: Any) -> None:
            ids = [id for (id,) in await db.fetch('SELECT id FROM "Step" WHERE "threadId" = $1', thread_id)]
            await db.execute('DELETE FROM "Element" WHERE "threadId" = $1 OR "stepId" = ANY ($2)', thread_id, ids)
            await self._delete_steps(db, ids)
            for table in ("smallfirst_texts", "smallfirst_attachments"):
                await db.execute(f"DELETE FROM {table} WHERE thread_id = $1", thread_id)
            await db.execute('DELETE FROM "Thread" WHERE id = $1', thread_id)

        async def work_and_files() -> None:
            async with self._one_at_a_time:
                with self._files.removing(thread_id):
                    await self._transact(work)

        try:
            await self._shielded(work_and_files)
        except _FAILURES as error:
            raise self._unusable(error) from error
        if self.deleted is not None:
            await self.deleted(thread_id)

    async def thread_ids(self) -> list[str]:
        async def work(db: Any) -> list[str]:
            rows = await db.fetch('SELECT id FROM "Thread" WHERE "deletedAt" IS NULL ORDER BY "createdAt", id')
            return [id for (id,) in rows]

        return await self._ask(work)

    async def get_thread_author(self, thread_id: str) -> str:
        async def work(db: Any) -> str:
            row = await db.fetchrow(
                'SELECT u.identifier FROM "Thread" t JOIN "User" u ON u.id = t."userId" WHERE t.id = $1', thread_id
            )
            return row[0] if row else ""

        return await self._ask(work)

    async def get_thread(self, thread_id: str) -> ThreadDict | None:
        async def work(db: Any) -> ThreadDict | None:
            steps = await db.fetch(
                "SELECT x.row, f.id, f.value, f.comment FROM smallfirst_texts x"
                ' JOIN "Step" s ON s.id = x.id LEFT JOIN "Feedback" f ON f."stepId" = x.id'
                ' WHERE x.thread_id = $1 ORDER BY s."startTime", x.number',
                thread_id,
            )
            thread = await db.fetchrow(f'{_THREADS} WHERE t.id = $1 AND t."deletedAt" IS NULL', thread_id)
            if not steps or thread is None:
                return None
            elements = await db.fetch(
                'SELECT * FROM "Element" WHERE "threadId" = $1 ORDER BY "createdAt", id', thread_id
            )
            back = thread_back(_thread(thread))
            back["steps"] = steps_back(tuple(row) for row in steps)
            back["elements"] = [self._element_back(dict(row)) for row in elements]
            return back

        return await self._ask(work)

    async def get_element(self, thread_id: str, element_id: str) -> ElementDict | None:
        async def work(db: Any) -> ElementDict | None:
            row = await db.fetchrow('SELECT * FROM "Element" WHERE id = $1 AND "threadId" = $2', element_id, thread_id)
            return row and self._element_back(dict(row))

        return await self._ask(work)

    def _element_back(self, row: dict[str, Any]) -> ElementDict:
        has_file = self._files.find(row["threadId"], row["id"]) is not None
        return element_back(
            {**self._convert_element_row_to_dict(row), **json.loads(row["metadata"])}, has_file=has_file
        )

    async def list_threads(self, pagination: Pagination, filters: ThreadFilter) -> PaginatedResponse[ThreadDict]:
        first = min(max(pagination.first, 1), LONGEST_PAGE)
        values: list[object] = [filters.userId]

        def value(one: object) -> str:
            values.append(one)
            return f"${len(values)}"

        conditions = ['t."userId" = $1', 't."deletedAt" IS NULL', _exists('"Step" s WHERE s."threadId" = t.id')]
        for term in terms(filters.search):
            conditions.append(
                _exists(f"smallfirst_texts x WHERE x.thread_id = t.id AND strpos(x.said, {value(term)}) > 0")
            )
        if filters.feedback is not None:
            conditions.append(
                _exists(
                    '"Step" s JOIN "Feedback" f ON f."stepId" = s.id'
                    f' WHERE s."threadId" = t.id AND f.value = {value(float(filters.feedback))}'
                )
            )
        if pagination.cursor:
            used, _, id = clean(pagination.cursor).partition(" ")
            conditions.append(f'(t."updatedAt", t.id) < ({value(_time(instant(used)))}, {value(id)})')
        query = f'{_THREADS} WHERE {" AND ".join(conditions)} ORDER BY t."updatedAt" DESC, t.id DESC LIMIT {first + 1}'

        async def work(db: Any) -> list[tuple[Any, ...]]:
            return [_thread(row) for row in await db.fetch(query, *values)]

        rows = await self._ask(work)
        threads = [thread_back(row, by_use=True) for row in rows[:first]]
        cursors = [f"{row[7]} {row[0]}" for row in rows[:first]]
        page = PageInfo(len(rows) > first, cursors[0] if cursors else None, cursors[-1] if cursors else None)
        return PaginatedResponse(pageInfo=page, data=threads)

    # --- Feedback and favourites ---

    async def upsert_feedback(self, feedback: Feedback) -> str:
        async def work(db: Any) -> str:
            if await db.fetchrow("SELECT 1 FROM smallfirst_texts WHERE id = $1", feedback.forId) is None:
                raise UserError("That message is not kept, so nothing can be noted about it. Reload the page.")
            comment = None if feedback.comment is None else clean(feedback.comment)
            row = await db.fetchrow(
                'UPDATE "Feedback" SET value = $2, comment = $3 WHERE "stepId" = $1 RETURNING id',
                feedback.forId,
                float(feedback.value),
                comment,
            ) or await db.fetchrow(
                'INSERT INTO "Feedback" (id, "stepId", name, value, comment) VALUES ($1, $2, $3, $4, $5) RETURNING id',
                str(uuid.uuid4()),
                feedback.forId,
                "user_feedback",
                float(feedback.value),
                comment,
            )
            return str(row[0])

        return await self._ask(work)

    async def delete_feedback(self, feedback_id: str) -> bool:
        async def work(db: Any) -> bool:
            return bool(await db.fetch('DELETE FROM "Feedback" WHERE id = $1 RETURNING id', feedback_id))

        return await self._ask(work)

    async def get_favorite_steps(self, user_id: str) -> list[StepDict]:
        async def work(db: Any) -> list[StepDict]:
            rows = await db.fetch(
                'SELECT x.row FROM smallfirst_texts x JOIN "Step" s ON s.id = x.id JOIN "Thread" t ON t.id = s."threadId"'
                " WHERE t.\"userId\" = $1 AND s.metadata->>'favorite' = 'true' ORDER BY s.\"startTime\" DESC",
                user_id,
            )
            return steps_back((row, None, 0, None) for (row,) in rows)

        return await self._ask(work)

    # --- What this project adds ---

    async def attach(
        self, thread_id: str, number: int, source: str, element_id: str, report: Ingest, passages: list[Passage]
    ) -> None:
        async def work(db: Any) -> list[tuple[str, str]]:
            row, name = await asyncio.to_thread(document_row, report, passages), clean(source)
            if not await self._begun(db, thread_id, None):
                return []
            gone = await db.fetch(
                "DELETE FROM smallfirst_attachments WHERE thread_id = $1 AND (number = $2 OR source = $3)"
                " RETURNING thread_id, element_id",
                thread_id,
                number,
                name,
            )
            await db.execute(
                "INSERT INTO smallfirst_attachments (thread_id, number, source, element_id, row)"
                " VALUES ($1, $2, $3, $4, $5)",
                thread_id,
                number,
                name,
                element_id,
                row,
            )
            return await self._unused(db, [tuple(row) for row in gone])

        await self._write(lambda: work, self._drop_files)

    async def detach(self, thread_id: str, number: int) -> None:
        async def work(db: Any) -> list[tuple[str, str]]:
            gone = await db.fetch(
                "DELETE FROM smallfirst_attachments WHERE thread_id = $1 AND number = $2"
                " RETURNING thread_id, element_id",
                thread_id,
                number,
            )
            return await self._unused(db, [tuple(row) for row in gone])

        await self._write(lambda: work, self._drop_files)

    async def attachments(self, thread_id: str) -> list[Attached]:
        async def work(db: Any) -> list[Attached]:
            rows = await db.fetch(
                "SELECT number, source, element_id, row FROM smallfirst_attachments WHERE thread_id = $1"
                " ORDER BY number",
                thread_id,
            )
            return await asyncio.to_thread(lambda: [document_back(*row) for row in rows])

        return await self._ask(work)

    async def file(self, thread_id: str, element_id: str) -> Path | None:
        async with self._one_at_a_time:
            return self._files.find(thread_id, element_id)

    async def settings(self, user: str) -> dict[str, Any]:
        async def work(db: Any) -> dict[str, Any]:
            row = await db.fetchrow("SELECT row FROM smallfirst_settings WHERE identifier = $1", clean(user))
            return json.loads(row[0]) if row else {}

        return await self._ask(work)

    async def keep_settings(self, user: str, values: dict[str, Any]) -> None:
        def prepare() -> Callable[[Any], Awaitable[None]]:
            row = as_json(values)

            async def work(db: Any) -> None:
                await db.execute(
                    "INSERT INTO smallfirst_settings (identifier, row) VALUES ($1, $2)"
                    " ON CONFLICT (identifier) DO UPDATE SET row = excluded.row",
                    clean(user),
                    row,
                )

            return work

        await self._write(prepare)

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            async with self._one_at_a_time:
                await super().close()

    # --- The database ---

    async def connect(self) -> None:
        if self.pool is None:
            self.pool = await asyncpg.create_pool(
                self.database_url, min_size=0, max_size=1, timeout=CONNECT_S, command_timeout=STATEMENT_S
            )

    async def _ask(self, work: Callable[[Any], Awaitable[Outcome]]) -> Outcome:
        """In a transaction of its own, after all that was asked for before. Raises UserError."""
        try:
            return await self._run(work)
        except _FAILURES as error:
            raise self._unusable(error) from error

    async def _write(
        self,
        prepare: Callable[[], Callable[[Any], Awaitable[Outcome]]],
        then: Callable[[Outcome], None] = lambda _: None,
    ) -> None:
        """For what must not fail the chat."""
        try:
            await self._run(prepare(), then)
        except (*_FAILURES, ValueError) as error:
            self._trouble.tell(error)
        else:
            self._trouble.over()

    async def _run(
        self, work: Callable[[Any], Awaitable[Outcome]], then: Callable[[Outcome], None] = lambda _: None
    ) -> Outcome:
        """`then` is done with the outcome once it is certain."""

        async def in_turn() -> Outcome:
            async with self._one_at_a_time:
                outcome = await self._transact(work)
                then(outcome)
                return outcome

        return await self._shielded(in_turn)

    async def _transact(self, work: Callable[[Any], Awaitable[Outcome]]) -> Outcome:
        try:
            return await self._attempt(work)
        except _LOST:
            return await self._attempt(work)  # the connection had gone while nobody used it

    async def _attempt(self, work: Callable[[Any], Awaitable[Outcome]]) -> Outcome:
        await self.connect()
        assert self.pool is not None
        async with self.pool.acquire(timeout=CONNECT_S) as db, db.transaction():
            return await work(db)

    async def _shielded(self, work: Callable[[], Coroutine[Any, Any, Outcome]]) -> Outcome:
        """It is done even if whoever asked is cancelled meanwhile, or closes the history."""
        if self._closed:
            raise asyncpg.InterfaceError("the history was closed")
        task = asyncio.create_task(work())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)

    def _drop_files(self, files: list[tuple[str, str]]) -> None:
        for thread_id, element_id in files:
            self._files.remove(thread_id, element_id)

    @staticmethod
    async def _unused(db: Any, files: list[tuple[Any, ...]]) -> list[tuple[str, str]]:
        """Those that neither a message shows nor a document was read from."""
        return [
            (thread_id, element_id)
            for thread_id, element_id in files
            if not await db.fetchrow(
                'SELECT 1 FROM "Element" WHERE id = $2 AND "threadId" = $1'
                " UNION SELECT 1 FROM smallfirst_attachments WHERE element_id = $2 AND thread_id = $1",
                thread_id,
                element_id,
            )
        ]

    def _unusable(self, error: Exception) -> UserError:
        said = str(error).strip() or type(error).__name__
        return UserError(f"The conversations in {self.place} cannot be used ({said}). Is RAG_DATABASE_URL right?")


def _blocking(work: Coroutine[Any, Any, Outcome]) -> Outcome:
    """Whether or not an event loop runs in this thread."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


def _place(database_url: str) -> str:
    """The database as messages have it, without the password."""
    try:
        url = urlsplit(database_url)
        return f"the database {url.path.lstrip('/') or 'postgres'} on {url.hostname or 'this machine'}"
    except ValueError:
        return "the database of RAG_DATABASE_URL"


def _time(instant: str) -> datetime:
    """Without a zone, as Chainlit's columns are; it is UTC."""
    return datetime.fromisoformat(instant).astimezone(UTC).replace(tzinfo=None)


def _exists(what: str) -> str:
    return f"EXISTS (SELECT 1 FROM {what})"


def _user(row: Any) -> PersistedUser | None:
    return row and PersistedUser(
        id=row["id"],
        identifier=row["identifier"],
        createdAt=instant(row["createdAt"].isoformat()),
        metadata=json.loads(row["metadata"]),
    )


def _thread(row: Any) -> tuple[Any, ...]:
    """As `thread_back` takes it."""
    id, name, user_id, identifier, metadata, tags, created, used = row
    times = (instant(created.isoformat()), instant(used.isoformat()))
    return (id, name or "", user_id, identifier, metadata, as_json(tags) if tags else None, *times)
