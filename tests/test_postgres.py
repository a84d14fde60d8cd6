"""What is Postgres' own: its tables, a server that is away, a database that others use. The rest is in test_history."""

import asyncio
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from .sessions import Tab, data_layer, settled  # before anything that imports Chainlit

# isort: split
import chainlit as cl
from chainlit.types import Pagination, ThreadFilter
from chainlit.user import User

from rag.errors import UserError
from rag.serve.history import Kept, open_history
from rag.settings import Settings

from .conftest import until
from .postgres import Server, server

pytest.importorskip("asyncpg")

from chainlit.data.chainlit_data_layer import ChainlitDataLayer

from rag.serve.postgres import PostgresHistory

TABLES = ["Element", "Feedback", "Step", "Thread", "User"]


@pytest.fixture(scope="module")
def postgres() -> Iterator[Server]:
    with server() as running:
        yield running


def opened(url: str, data_dir: Path) -> Kept:
    return open_history(Settings(_env_file=None, data_dir=data_dir, database_url=url))  # type: ignore[call-arg]


async def ask(history: Any, text: str) -> Tab:
    """A conversation of ada's."""
    page = Tab(await history.create_user(User(identifier="ada")))
    with data_layer(history):
        await page.ask(text)
        await settled()
    return page


async def names(history: Any) -> list[Any]:
    ada = await history.create_user(User(identifier="ada"))
    listed = await history.list_threads(Pagination(first=20), ThreadFilter(userId=ada.id))
    return [thread["name"] for thread in listed.data]


async def test_missing_tables_are_made_once_and_by_one(postgres: Server, tmp_path: Path) -> None:
    url = postgres.database()
    servers = await asyncio.gather(*[asyncio.to_thread(opened, url, tmp_path / str(n)) for n in range(4)])
    found = postgres.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1", url)
    assert [row["tablename"] for row in found] == [
        *TABLES, "smallfirst_attachments", "smallfirst_settings", "smallfirst_texts"
    ]  # fmt: skip
    await ask(servers[0], "Kept?")
    for one in servers:
        assert await names(one) == ["Kept?"]
        await one.close()


async def test_chainlits_own_layer_reads_what_is_kept(postgres: Server, tmp_path: Path) -> None:
    url = postgres.database()
    history = opened(url, tmp_path)
    page = await ask(history, "What is ONNX?")
    with data_layer(history):
        receipt = cl.CustomElement(name="Receipt", props={"a": 1})
        answer = await cl.Message("A format.", metadata={"score": 0.5}, elements=[receipt]).send()
        await settled()
    theirs = ChainlitDataLayer(url)
    thread: Any = await theirs.get_thread(page.thread_id)
    assert (thread["name"], thread["userIdentifier"]) == ("What is ONNX?", "ada")
    assert [(s["type"], s["output"], s["metadata"]) for s in thread["steps"]] == [
        ("user_message", "What is ONNX?", {}), ("assistant_message", "A format.", {"score": 0.5})
    ]  # fmt: skip
    (element,) = thread["elements"]
    assert (element["type"], element["props"], element["forId"]) == ("custom", {"a": 1}, answer.id)
    await theirs.close()
    await history.close()


async def test_what_chainlits_own_layer_kept_is_taken_over(postgres: Server, tmp_path: Path) -> None:
    """Tables as an earlier program made them: other types, other keys, and rows of its own."""
    url, thread_id, question, answer = postgres.database(), *(str(uuid4()) for _ in range(3))
    for statement in FORMER.split(";"):
        postgres.execute(statement, url)
    theirs = ChainlitDataLayer(url)
    ada = await theirs.create_user(User(identifier="ada"))
    assert ada is not None
    await theirs.update_thread(thread_id, name="Стара Розмова", user_id=ada.id, metadata={"a": 1})
    for id, type, text, second in (
        (question, "user_message", "Що?", 1),
        (answer, "assistant_message", "Ось ПРИКЛАД.", 2),
    ):
        step: Any = {
            "id": id, "threadId": thread_id, "type": type, "name": "x", "output": text, "metadata": {"n": second},
            "createdAt": f"2025-01-02T03:04:0{second}.5Z",
        }  # fmt: skip
        await theirs.create_step.__wrapped__(theirs, step)  # type: ignore[attr-defined]
    await theirs.close()

    history = opened(url, tmp_path)
    thread: Any = await history.get_thread(thread_id)
    assert (thread["name"], thread["metadata"], thread["userIdentifier"]) == ("Стара Розмова", {"a": 1}, "ada")
    assert [(s["id"], s["output"], s["metadata"], s["createdAt"]) for s in thread["steps"]] == [
        (question, "Що?", {"n": 1}, "2025-01-02T03:04:01.500000Z"),
        (answer, "Ось ПРИКЛАД.", {"n": 2}, "2025-01-02T03:04:02.500000Z"),
    ]
    for word in ("приклад", "розмова"):
        found = await history.list_threads(Pagination(first=9), ThreadFilter(userId=ada.id, search=word))
        assert len(found.data) == 1
    page = Tab(await history.get_user("ada"), thread_id)  # type: ignore[attr-defined]
    page.session.has_first_interaction = True
    with data_layer(history):
        message = cl.Message.from_dict(thread["steps"][1])
        message.content = "Changed."
        message.elements = [cl.File(name="a.md", content="text")]
        await message.update()
        await settled()
    thread = await history.get_thread(thread_id)
    assert [step["output"] for step in thread["steps"]] == ["Що?", "Changed."]
    assert await history.file(thread_id, thread["elements"][0]["id"]) is not None
    await history.delete_thread(thread_id)
    for table in (*TABLES[:4], "smallfirst_texts"):
        assert postgres.execute(f'SELECT * FROM "{table}"', url) == []
    await history.close()


# As Chainlit's own program makes them, in what differs from ours.
FORMER = """
    CREATE TYPE "StepType" AS ENUM ('assistant_message', 'run', 'tool', 'undefined', 'user_message');
    CREATE TABLE "User" (
        id TEXT PRIMARY KEY DEFAULT gen_random_uuid(), identifier TEXT NOT NULL UNIQUE, metadata JSONB NOT NULL,
        "createdAt" TIMESTAMP(3) NOT NULL DEFAULT now(), "updatedAt" TIMESTAMP(3) NOT NULL DEFAULT now()
    );
    CREATE TABLE "Thread" (
        id TEXT PRIMARY KEY DEFAULT gen_random_uuid(), name TEXT, metadata JSONB NOT NULL, "userId" TEXT REFERENCES "User",
        tags TEXT[] DEFAULT ARRAY[]::TEXT[], "createdAt" TIMESTAMP(3) NOT NULL DEFAULT now(),
        "updatedAt" TIMESTAMP(3) NOT NULL DEFAULT now(), "deletedAt" TIMESTAMP(3)
    );
    CREATE TABLE "Step" (
        id TEXT PRIMARY KEY DEFAULT gen_random_uuid(), "parentId" TEXT REFERENCES "Step" ON DELETE CASCADE,
        "threadId" TEXT REFERENCES "Thread" ON DELETE CASCADE, input TEXT, metadata JSONB NOT NULL, name TEXT, output TEXT,
        type "StepType" NOT NULL, "showInput" TEXT DEFAULT 'json', "isError" BOOLEAN DEFAULT false,
        "startTime" TIMESTAMP(3) NOT NULL, "endTime" TIMESTAMP(3) NOT NULL,
        "createdAt" TIMESTAMP(3) NOT NULL DEFAULT now(), "updatedAt" TIMESTAMP(3) NOT NULL DEFAULT now()
    );
    CREATE TABLE "Element" (
        id TEXT PRIMARY KEY DEFAULT gen_random_uuid(), "threadId" TEXT REFERENCES "Thread" ON DELETE CASCADE,
        "stepId" TEXT NOT NULL REFERENCES "Step" ON DELETE CASCADE, metadata JSONB NOT NULL, mime TEXT,
        name TEXT NOT NULL, "objectKey" TEXT, url TEXT, "chainlitKey" TEXT, display TEXT, size TEXT, language TEXT,
        page INTEGER, props JSONB, "createdAt" TIMESTAMP(3) NOT NULL DEFAULT now(),
        "updatedAt" TIMESTAMP(3) NOT NULL DEFAULT now()
    );
    CREATE TABLE "Feedback" (
        id TEXT PRIMARY KEY DEFAULT gen_random_uuid(), "stepId" TEXT REFERENCES "Step" ON DELETE SET NULL,
        name TEXT NOT NULL, value DOUBLE PRECISION NOT NULL, comment TEXT,
        "createdAt" TIMESTAMP(3) NOT NULL DEFAULT now(), "updatedAt" TIMESTAMP(3) NOT NULL DEFAULT now()
    )
"""


async def test_tables_that_are_not_chainlits_are_left_alone(postgres: Server, tmp_path: Path) -> None:
    url = postgres.database()
    postgres.execute('CREATE TABLE "User" (id TEXT PRIMARY KEY, something TEXT)', url)
    with pytest.raises(UserError, match=r"tables in the database test_\d+ on 127\.0\.0\.1 are not .* another database"):
        opened(url, tmp_path)
    found = postgres.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'", url)
    assert [row["tablename"] for row in found] == ["User"]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (("a-secret", "another-secret"), "password authentication failed"),
        (("/postgres", "/nowhere"), '"nowhere" does not exist'),
        (("postgresql://", "mysql://"), "scheme"),
        ((":a-secret@127.0.0.1", ":a-secret@[broken"), "RAG_DATABASE_URL"),
    ],
)
def test_a_database_that_cannot_be_used_is_told_in_a_sentence(
    postgres: Server, tmp_path: Path, change: tuple[str, str], why: str
) -> None:
    with pytest.raises(UserError) as raised:
        opened(postgres.url().replace(*change), tmp_path)
    said = str(raised.value)
    assert why in said
    assert "Is RAG_DATABASE_URL right?" in said
    assert "secret" not in said
    assert "\n" not in said


def test_a_server_that_does_not_listen_is_told_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the database chat on 127\.0\.0\.1 cannot be used .*onnect.* right\?"):
        opened("postgresql://tester:a-secret@127.0.0.1:1/chat", tmp_path)


def test_without_its_package_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    for name in ("rag.serve.postgres", "chainlit.data.chainlit_data_layer"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(UserError, match=r"pip install 'smallfirst\[postgres\]'"):
        opened("postgresql://somewhere/chat", tmp_path)


async def test_the_chat_goes_on_while_the_server_is_away(
    postgres: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    history = opened(postgres.database(), tmp_path)
    page = await ask(history, "First.")
    postgres.stop()
    try:
        with data_layer(history), caplog.at_level(logging.ERROR, "smallfirst"):
            for _ in range(3):
                await cl.Message("Not kept.").send()
            await settled()
        assert len([record for record in caplog.records if record.name == "smallfirst"]) == 1
        assert "Not all of a conversation is kept" in caplog.text
        with pytest.raises(UserError, match="cannot be used"):
            await history.get_thread(page.thread_id)
        with pytest.raises(UserError, match="cannot be used"):
            await history.delete_thread(page.thread_id)
    finally:
        postgres.start()
    with data_layer(history):
        await cl.Message("Kept again.").send()
        await settled()
    thread: Any = await history.get_thread(page.thread_id)
    assert [step["output"] for step in thread["steps"]] == ["First.", "Kept again."]
    await history.close()


async def test_two_servers_may_share_it(postgres: Server, tmp_path: Path) -> None:
    url = postgres.database()
    one, two = opened(url, tmp_path), opened(url, tmp_path)
    page = await ask(one, "Go.")
    await asyncio.gather(*[(one, two)[n % 2].keep_settings(f"user {n % 3}", {"n": n}) for n in range(30)])
    assert await two.get_thread(page.thread_id) == await one.get_thread(page.thread_id)
    await two.delete_thread(page.thread_id)
    assert await one.get_thread(page.thread_id) is None
    await one.close()
    await two.close()


async def test_a_slow_statement_loses_no_place(postgres: Server, tmp_path: Path) -> None:
    """What waits for another program's lock is followed by what was asked for after it."""
    import asyncpg

    url = postgres.database()
    history = opened(url, tmp_path)
    page = await ask(history, "Go.")
    other = await asyncpg.connect(url)
    with data_layer(history):
        async with other.transaction():
            await other.execute("LOCK TABLE smallfirst_texts")
            message = cl.Message("draft")
            await message.send()
            message.content = "final"
            await message.update()
            waiting = asyncio.create_task(history.get_thread(page.thread_id))
            await until(lambda: bool(blocked(postgres)))
        thread: Any = await waiting
    assert [step["output"] for step in thread["steps"]] == ["Go.", "final"]
    await other.close()
    await history.close()


def blocked(postgres: Server) -> list[dict[str, object]]:
    return postgres.execute("SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'")


async def test_it_is_chainlits_layer_with_its_own_words(postgres: Server, tmp_path: Path) -> None:
    history = opened(postgres.database(), tmp_path)
    assert isinstance(history, PostgresHistory)
    assert isinstance(history, ChainlitDataLayer)
    page = await ask(history, "Go.")
    back: Any = await history.get_thread(page.thread_id)
    assert json.loads(json.dumps(back)) == back
    assert back["steps"][0]["createdAt"].endswith("Z"), "Chainlit cannot read its own times without it"
    await history.close()
