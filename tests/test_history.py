"""What outlasts the process: Chainlit's own sessions, messages and elements, into a real SQLite file and a real Postgres."""

import asyncio
import json
import logging
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
import pytest
import socketio
from fastapi import FastAPI

from .sessions import Tab, data_layer, folder_of, settled  # before anything that imports Chainlit

# isort: split
import chainlit as cl
from chainlit.auth import create_jwt
from chainlit.config import config
from chainlit.element import Element
from chainlit.message import Message
from chainlit.step import Step
from chainlit.types import Feedback, Pagination, ThreadFilter
from chainlit.user import PersistedUser, User

from rag.corpus.documents import Ingest, Passage, ingest
from rag.errors import UserError
from rag.serve import history_sqlite
from rag.serve.exports import turns
from rag.serve.history import History, open_history, router
from rag.serve.history_files import Files
from rag.serve.history_records import as_json, folded, instant, terms, title
from rag.settings import Settings

from .conftest import until
from .postgres import Server, server
from .product import client_message, free_port

PDF = b"%PDF-1.4 not much of one"


@pytest.fixture(scope="module")
def postgres() -> Iterator[Server]:
    with server() as running:
        yield running


@pytest.fixture(params=["sqlite", "postgres"])
async def history(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Any]:
    """Either, as the settings choose it, and Chainlit writes to it."""
    url = None if request.param == "sqlite" else request.getfixturevalue("postgres").database()
    opened = open_history(settings_for(tmp_path / "data", url))
    with data_layer(opened):
        yield opened
        await settled()
    await opened.close()


@pytest.fixture
async def sqlite(tmp_path: Path) -> AsyncIterator[History]:
    opened = History(tmp_path / "data")
    with data_layer(opened):
        yield opened
        await settled()
    await opened.close()


def settings_for(data_dir: Path, database_url: str | None = None) -> Settings:
    return Settings(_env_file=None, data_dir=data_dir, database_url=database_url)  # type: ignore[call-arg]


async def user(history: Any, name: str = "ada") -> PersistedUser:
    made = await history.create_user(User(identifier=name, metadata={"provider": "credentials"}))
    assert made is not None
    return made


async def tab(history: Any, name: str = "ada") -> Tab:
    return Tab(await user(history, name))


async def kept(history: Any, thread_id: str) -> dict[str, Any]:
    await settled()
    thread = await history.get_thread(thread_id)
    assert thread is not None
    # As Chainlit sends it to the page, and answers requests with it.
    return json.loads(json.dumps(thread, ensure_ascii=False, allow_nan=False).encode())


async def listed(history: Any, owner: PersistedUser, first: int = 20, cursor: str | None = None, **filters: Any) -> Any:
    return await history.list_threads(Pagination(first=first, cursor=cursor), ThreadFilter(userId=owner.id, **filters))


async def found(history: Any, owner: PersistedUser, search: str) -> list[str]:
    return [thread["name"] for thread in (await listed(history, owner, search=search)).data]


def passages(
    source: str = "manual.md", text: str = "The frobnicator is oiled every 17 days."
) -> tuple[Ingest, list[Passage]]:
    return ingest(f"# Oil\n\n{text}".encode(), source, 700)


# --- What was said ---


async def test_a_conversation_comes_back_as_it_was_said(history: Any) -> None:
    page = await tab(history)
    question = await page.ask("How large may a file be?")
    turn = {"question": question.content, "drafts": [{"leg": "slm", "text": "10"}], "verdict": None, "score": 0.5}
    answer = await cl.Message("10 MB [1].", metadata=turn).send()
    receipt = cl.CustomElement(name="Receipt", props={"answer": "10 MB", "hits": [{"page": 3}]}, display="inline")
    await receipt.send(for_id=answer.id)
    thread = await kept(history, page.thread_id)

    assert (thread["id"], thread["name"], thread["userIdentifier"]) == (page.thread_id, question.content, "ada")
    assert thread["userId"] == page.session.user.id
    assert [(step["id"], step["type"], step["output"]) for step in thread["steps"]] == [
        (question.id, "user_message", "How large may a file be?"),
        (answer.id, "assistant_message", "10 MB [1]."),
    ]
    assert thread["steps"][1]["metadata"] == turn
    (element,) = thread["elements"]
    assert (element["type"], element["name"], element["forId"]) == ("custom", "Receipt", answer.id)
    assert element["props"] == {"answer": "10 MB", "hits": [{"page": 3}]}
    assert not element["url"], "its props are all there is to it"


async def test_every_time_is_told_in_utc(history: Any) -> None:
    page = await tab(history)
    before = datetime.now(UTC)
    await page.ask("When?")
    thread = await kept(history, page.thread_id)
    (in_list,) = (await listed(history, page.session.user)).data
    for text in (thread["createdAt"], thread["steps"][0]["createdAt"], in_list["createdAt"]):
        assert text.endswith("Z")
        assert before <= datetime.fromisoformat(text) <= datetime.now(UTC)


async def test_what_was_said_before_the_first_question_stands_before_it(history: Any) -> None:
    page = await tab(history)
    await cl.Message("Welcome. Ask about your documents.").send()
    await settled()
    assert await history.get_thread(page.thread_id) is None
    await page.ask("What is ONNX?")
    thread = await kept(history, page.thread_id)
    assert [step["output"] for step in thread["steps"]] == ["Welcome. Ask about your documents.", "What is ONNX?"]
    assert thread["name"] == "What is ONNX?"


async def test_of_quick_writes_the_last_one_stands(history: Any) -> None:
    """Chainlit fires them as tasks that nobody awaits: an answer's first state must not outlast its last."""
    page = await tab(history)
    await page.ask("Go.")
    for number in range(50):
        message = cl.Message("thinking")
        await message.send()
        message.content = f"answer {number}"
        await message.update()
    thread = await kept(history, page.thread_id)
    assert [step["output"] for step in thread["steps"][1:]] == [f"answer {number}" for number in range(50)]


async def test_nothing_of_a_step_is_lost(history: Any) -> None:
    page = await tab(history)
    question = await page.ask("Go.")
    step = {
        "id": str(uuid4()), "threadId": page.thread_id, "parentId": question.id, "name": "Ask", "type": "tool",
        "command": "search", "modes": {"route": "slm"}, "streaming": True, "waitForAnswer": True, "isError": True,
        "metadata": {"a": {"b": [1, None]}}, "tags": ["x", "y"], "input": "in", "output": "out",
        "createdAt": "2030-01-02T03:04:05.678901Z", "start": "2030-01-02T03:04:05Z", "end": "2030-01-02T03:04:06Z",
        "generation": {"provider": "p", "tokenCount": 3}, "showInput": "json", "defaultOpen": True,
        "autoCollapse": False, "language": "json", "icon": "cog", "of a later version": {"kept": True},
    }  # fmt: skip
    await settled()
    await history.create_step(dict(step))
    (_, back) = (await kept(history, page.thread_id))["steps"]
    assert back == {**step, "streaming": False, "feedback": None}, "nothing streams any more"


async def test_an_update_alone_is_kept_and_what_it_does_not_say_stays(history: Any) -> None:
    page = await tab(history)
    await page.ask("Go.")
    message = cl.Message("A", metadata={"score": 1}, tags=["first"])
    await message.update()
    later = await kept(history, page.thread_id)
    # As after a return to the conversation, where Chainlit makes its messages of what was kept.
    again = Message.from_dict(later["steps"][1])
    again.content = "B"
    await again.update()
    thread = await kept(history, page.thread_id)
    assert [(s["output"], s["metadata"], s["tags"]) for s in thread["steps"][1:]] == [("B", {"score": 1}, ["first"])]


async def test_a_step_comes_after_its_parent_or_without_one(history: Any) -> None:
    """The page drops a step whose parent it has not met."""
    page = await tab(history)
    question = await page.ask("Go.")
    async with Step(name="on_message", type="run", parent_id=question.id) as run:
        answer = await cl.Message("Gone.").send()
    orphan = cl.Message("Still here.", parent_id=str(uuid4()))
    await orphan.send()
    steps = {step["id"]: step["parentId"] for step in (await kept(history, page.thread_id))["steps"]}
    assert steps == {question.id: None, run.id: question.id, answer.id: run.id, orphan.id: None}
    assert list(steps) == [question.id, run.id, answer.id, orphan.id]


async def test_what_is_no_text_is_kept_as_well_as_it_can_be(history: Any) -> None:
    page = await tab(history)
    strange = "half a \ud800 pair, \0 and 🦓"
    metadata = {"nan": float("nan"), "path": Path("a/b"), "deep": [{"\ud800": (1, 2)}], 3: True, strange: None}
    await page.ask(strange)
    await cl.Message(strange, metadata=metadata).send()
    await cl.Message("numbers", metadata={"score": float("inf")}).send()
    await history.keep_settings("ada", {"language": strange})
    thread = await kept(history, page.thread_id)
    clean = "half a � pair, � and 🦓"
    assert [step["output"] for step in thread["steps"]] == [clean, clean, "numbers"]
    assert thread["steps"][1]["metadata"] == {
        "nan": None, "path": "a/b", "deep": [{"�": [1, 2]}], "3": True, clean: None
    }  # fmt: skip
    assert thread["steps"][2]["metadata"] == {"score": None}
    assert await history.settings("ada") == {"language": clean}
    assert thread["name"] == "half a pair, and 🦓"


async def test_a_very_long_text_is_kept_whole(history: Any) -> None:
    page = await tab(history)
    text = "зебра " * 500_000
    await page.ask(text)
    thread = await kept(history, page.thread_id)
    assert thread["steps"][0]["output"] == text
    assert len(thread["name"]) <= 120


async def test_what_cannot_be_kept_costs_only_itself(history: Any, caplog: pytest.LogCaptureFixture) -> None:
    page = await tab(history)
    endless: dict[str, Any] = {}
    endless["again"] = endless
    with caplog.at_level(logging.ERROR, "smallfirst"):
        await page.ask("Go.")
        await cl.Message("A", metadata=endless).send()
        await cl.Message("B").send()
        thread = await kept(history, page.thread_id)
    assert [step["output"] for step in thread["steps"]] == ["Go.", "B"]
    (record,) = caplog.records
    assert "Not all of a conversation is kept" in record.getMessage()


async def test_a_write_is_done_though_its_task_is_cancelled(history: Any) -> None:
    page = await tab(history)
    await page.ask("Go.")
    step = cl.Message("Stopped, and kept.").to_dict()
    for _ in range(20):
        await cl.Message("busy").send()
    writing = asyncio.create_task(history.create_step(step))
    await asyncio.sleep(0)
    writing.cancel()
    thread = await kept(history, page.thread_id)
    assert thread["steps"][-1]["output"] == "Stopped, and kept."


# --- Which conversations there are ---


async def test_a_conversation_in_which_nothing_was_said_does_not_exist(history: Any) -> None:
    page = await tab(history)
    # A button before any message, and a closed tab.
    await history.update_thread(page.thread_id, name="good", user_id=page.session.user.id)
    elsewhere = str(uuid4())
    await history.update_thread(elsewhere, metadata=page.session.to_persistable())
    for thread_id in (page.thread_id, elsewhere):
        assert await history.get_thread(thread_id) is None
    assert (await listed(history, page.session.user)).data == []
    assert await history.get_thread_author(elsewhere) == ""


async def test_metadata_is_added_to_and_none_takes_away(history: Any) -> None:
    page = await tab(history)
    await page.ask("Go.")
    await history.update_thread(page.thread_id, metadata={"a": {"b": 1}, "c": 2, "gone": 3}, tags=["x"])
    await history.update_thread(page.thread_id, metadata={"c": 4, "gone": None})
    thread = await kept(history, page.thread_id)
    assert (thread["metadata"], thread["tags"]) == ({"a": {"b": 1}, "c": 4}, ["x"])


async def test_a_conversation_is_named_by_its_question_its_file_or_its_owner(history: Any) -> None:
    asked, uploaded = await tab(history), await tab(history)
    asked.enter()
    await asked.ask("  What is\n\u202eONNX? ")
    await asked.ask("And what is GGUF?")
    uploaded.enter()
    await uploaded.ask("", manual__pdf=PDF)
    await uploaded.ask("What does it say?")
    assert (await kept(history, asked.thread_id))["name"] == "What is ONNX?"
    assert (await kept(history, uploaded.thread_id))["name"] == "manual.pdf"
    await history.update_thread(asked.thread_id, name="Formats")
    await history.update_thread(asked.thread_id, name=" ")
    asked.enter()
    await asked.ask("And safetensors?")
    assert (await kept(history, asked.thread_id))["name"] == "Formats"


async def test_the_list_is_the_users_own_the_one_used_last_first(history: Any) -> None:
    ada, eve = await user(history, "ada"), await user(history, "eve")
    pages = [Tab(ada) for _ in range(7)]
    for number, page in enumerate(pages):
        page.enter()
        await page.ask(f"Question {number}")
        await settled()
    Tab(eve).enter()
    await Tab(eve).ask("Of somebody else")
    pages[2].enter()
    await pages[2].ask("Again")
    await settled()

    seen, times, cursor = [], [], None
    for size in (3, 3, 1):
        page = await listed(history, ada, first=3, cursor=cursor)
        assert len(page.data) == size
        assert page.pageInfo.hasNextPage is (size == 3 and len(seen) < 4)
        seen += [thread["name"] for thread in page.data]
        times += [thread["createdAt"] for thread in page.data]
        cursor = page.pageInfo.endCursor
    assert seen == [f"Question {number}" for number in (2, 6, 5, 4, 3, 1, 0)]
    assert times == sorted(times, reverse=True), "the page sorts by it"
    assert page.to_dict()["data"][0]["steps"] == []
    await history.update_thread(pages[0].thread_id, name="Renamed", metadata={"seen": True})
    assert (await listed(history, ada)).data[-1]["name"] == "Renamed", "to look is not to use"


@pytest.mark.parametrize("cursor", ["", "nonsense", "' OR 1=1 --", "\ud800", "9" * 50])
async def test_a_strange_page_is_no_harm(history: Any, cursor: str) -> None:
    page = await tab(history)
    await page.ask("Mine")
    await settled()
    stranger = await user(history, "eve")
    for first in (-1, 0, 10**30):
        assert [t["name"] for t in (await listed(history, page.session.user, first=first)).data] == ["Mine"]
        assert (await listed(history, stranger, first=first, cursor=cursor)).data == []
    nobody = await history.list_threads(Pagination(first=9), ThreadFilter())
    assert nobody.data == []


async def test_every_language_is_found_and_nothing_is_syntax(history: Any) -> None:
    ada = await user(history)
    texts = {
        "en": ("What does it cost?", 'The price is "10 %" (per_year) AND more* — NEAR/2.'),
        "uk": ("Питання перше", "Відповідь: СТАРТ О ДЕВ'ЯТІЙ у Києві."),
        "zh": ("問題", "這個檔案太大，無法上傳。"),
        "ja": ("質問", "ファイルの最大サイズは１０ＭＢです。"),
        "th": ("คำถาม", "ไฟล์มีขนาดใหญ่เกินไป"),
        "sv": ("Fråga", "Straße und İstanbul, Ärende"),
    }
    for question, answer in texts.values():
        page = Tab(ada)
        page.enter()
        await page.ask(question)
        await cl.Message(answer).send()
        await settled()
    for search, language in {
        "PRICE": "en", "cost per_year": "en", '"10': "en", "more*": "en", "NEAR/2": "en", "10 %": "en",
        "києві": "uk", "дев'ять": None, "дев'ятій": "uk", "перше старт": "uk", "檔案": "zh", "傳": "zh", "無法上傳": "zh",
        "10mb": "ja", "最大": "ja", "ขนาด": "th", "STRASSE": "sv", "ärende": "sv", "fråga": "sv", "x": None,
        "' OR 1=1 --": None, "-price": None, "price NOT cost": None, "%%": None, "(": "en", "\ud800\0": None,
    }.items():  # fmt: skip
        expected = [texts[language][0]] if language else []
        assert await found(history, ada, search) == expected, search
    assert len(await found(history, ada, "  ")) == len(texts), "nothing is asked for"
    assert await found(history, await user(history, "eve"), "price") == []


async def test_what_was_changed_is_found_as_it_is_now(history: Any) -> None:
    page = await tab(history)
    owner = page.session.user
    await page.ask("Before")
    message = await cl.Message("draft").send()
    message.content = "refined"
    await message.update()
    removed = await cl.Message("removed").send()
    await removed.remove()
    await settled()
    await history.update_thread(page.thread_id, name="Кит")
    assert [len(await found(history, owner, word)) for word in ("draft", "refined", "removed", "кит", "before")] == [
        0, 1, 0, 1, 1
    ]  # fmt: skip
    await history.update_thread(page.thread_id, name="Pes")
    assert await found(history, owner, "кит") == []


# --- Files ---


async def test_an_uploaded_file_outlasts_its_session(history: Any, tmp_path: Path) -> None:
    page = await tab(history)
    question = await page.ask("What does it say?", manual__pdf=PDF, notes__md=b"# Notes")
    await settled()
    await page.close()
    assert not folder_of(page).exists()
    elements = {element["name"]: element for element in (await kept(history, page.thread_id))["elements"]}
    assert {name: (e["type"], e["mime"], e["forId"]) for name, e in elements.items()} == {
        "manual.pdf": ("pdf", "application/pdf", question.id), "notes.md": ("file", "text/markdown", question.id)
    }  # fmt: skip
    for name, data in {"manual.pdf": PDF, "notes.md": b"# Notes"}.items():
        element = elements[name]
        assert element["url"] == f"/history/{page.thread_id}/{element['id']}", "the page stands at /thread/..."
        assert element["chainlitKey"] is None
        path = await history.file(page.thread_id, element["id"])
        assert path == tmp_path / "data" / "files" / page.thread_id / element["id"]
        assert path.read_bytes() == data
        alone = await history.get_element(page.thread_id, element["id"])
        assert json.loads(json.dumps(alone)) == element
    if sys.platform != "win32":
        assert path.stat().st_mode & 0o077 == 0
        assert path.parent.stat().st_mode & 0o077 == 0


async def test_what_an_element_carries_itself_is_kept_too(history: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config.run, "root_path", "/chat")
    page = await tab(history)
    await page.ask("Show me.")
    shown = [
        cl.Text(name="code", content="print('ü')", language="python"),
        cl.Image(name="dot", content=b"\x89PNG\r\n\x1a\n", size="small"),
        cl.Image(name="linked", url="/public/logo.png"),
    ]
    await cl.Message("Here.", elements=shown).send()
    elements = (await kept(history, page.thread_id))["elements"]
    code, dot, linked = sorted(elements, key=lambda element: str(element["name"]))
    for element, data in ((code, "print('ü')".encode()), (dot, b"\x89PNG\r\n\x1a\n")):
        assert element["url"] == f"/chat/history/{page.thread_id}/{element['id']}"
        assert (await history.file(page.thread_id, element["id"])).read_bytes() == data
    assert (code["language"], dot["size"]) == ("python", "small")
    assert linked["url"] == "/public/logo.png"


async def test_an_element_that_changes_has_its_last_props(history: Any) -> None:
    page = await tab(history)
    await page.ask("Go.")
    receipt = cl.CustomElement(name="Receipt", props={"state": 0}, display="inline")
    answer = await cl.Message("A", elements=[receipt]).send()
    for state in range(1, 20):
        receipt.props = {"state": state}
        await receipt.update()
    (element,) = (await kept(history, page.thread_id))["elements"]
    assert (element["props"], element["forId"]) == ({"state": 19}, answer.id)
    await receipt.remove()
    assert (await kept(history, page.thread_id))["elements"] == []


async def test_a_file_that_is_gone_costs_only_itself(history: Any, caplog: pytest.LogCaptureFixture) -> None:
    page = await tab(history)
    question = await page.ask("Look.")
    with caplog.at_level(logging.ERROR, "smallfirst"):
        await cl.File(name="gone.md", path="/nowhere/gone.md", mime="text/markdown", chainlit_key=str(uuid4())).send(
            for_id=question.id
        )
        await cl.Message("Go on.").send()
        thread = await kept(history, page.thread_id)
    assert "gone.md" in caplog.text
    assert [element["name"] for element in thread["elements"]] == ["gone.md"]
    assert await history.file(page.thread_id, thread["elements"][0]["id"]) is None
    assert thread["steps"][-1]["output"] == "Go on."


@pytest.mark.parametrize("id", ["../../outside", "..", "a/b", "", "\ud800", "C:\\outside", "x" * 300])
async def test_an_id_that_is_none_names_no_file(history: Any, tmp_path: Path, id: str) -> None:
    page = await tab(history)
    question = await page.ask("Go.")
    await settled()
    before = sorted(tmp_path.rglob("*"))
    await Element.from_dict({"id": id, "name": "x", "type": "file", "url": None, "content": "evil"}).send(question.id)  # type: ignore[typeddict-item]
    await settled()
    assert sorted(set(tmp_path.rglob("*")) - set(before)) == []
    for thread_id, element_id in ((page.thread_id, id), (id, str(uuid4()))):
        assert await history.file(thread_id, element_id) is None


# --- What is deleted ---


async def test_a_removed_message_goes_with_all_that_hangs_on_it(history: Any, tmp_path: Path) -> None:
    """As when an earlier question is edited: Chainlit removes the later messages."""
    page = await tab(history)
    first = await page.ask("Edited.")
    second = await page.ask("Removed.", manual__pdf=PDF)
    async with Step(name="on_message", type="run", parent_id=second.id):
        answer = await cl.Message("Removed too.", elements=[cl.CustomElement(name="Receipt", props={"a": 1})]).send()
    await history.upsert_feedback(Feedback(forId=answer.id, value=1))
    await second.remove()
    # Its turn is being stopped, and still says something.
    answer.content = "Half of an answer"
    await answer.update()
    thread = await kept(history, page.thread_id)
    assert [step["id"] for step in thread["steps"]] == [first.id]
    assert thread["elements"] == []
    assert [path for path in (tmp_path / "data" / "files").rglob("*") if path.is_file()] == []
    await cl.Message("Said again.", id=answer.id).send()
    assert (await kept(history, page.thread_id))["steps"][-1]["output"] == "Said again."


async def test_a_deleted_conversation_is_gone_and_stays_gone(history: Any, tmp_path: Path) -> None:
    page, other = await tab(history), await tab(history)
    other.enter()
    await other.ask("Stays.")
    page.enter()
    await page.ask("What does it say?", manual__pdf=PDF)
    report, read = passages()
    await history.attach(page.thread_id, 1, "manual.md", str(uuid4()), report, read)
    running = cl.Message("Half of an ")
    await running.send()
    await settled()
    await history.delete_thread(page.thread_id)
    # The turn goes on, and the tab is closed only now.
    running.content += "answer"
    running.elements = [cl.CustomElement(name="Receipt", props={})]
    await running.update()
    await history.attach(page.thread_id, 2, "late.md", str(uuid4()), report, read)
    await history.update_thread(page.thread_id, metadata=page.session.to_persistable())
    await settled()
    assert await history.get_thread(page.thread_id) is None
    assert await history.attachments(page.thread_id) == []
    assert await history.get_thread_author(page.thread_id) == ""
    assert list((tmp_path / "data" / "files").iterdir()) == []
    assert [thread["name"] for thread in (await listed(history, page.session.user)).data] == ["Stays."]
    await history.delete_thread(page.thread_id)  # twice is once
    # Another tab is still in it, and somebody asks there: that is a conversation again.
    await page.ask("Hello?")
    assert [step["output"] for step in (await kept(history, page.thread_id))["steps"]] == ["Hello?"]
    assert await history.get_thread_author(page.thread_id) == "ada"


# --- Whose it is ---


async def test_nobody_writes_into_somebody_elses_conversation(history: Any) -> None:
    """Ids of messages and elements are a client's choice, and the id of a conversation stands in its address."""
    page = await tab(history, "ada")
    question = await page.ask("Mine.", manual__pdf=PDF)
    await settled()
    before = await kept(history, page.thread_id)
    (element,) = before["elements"]

    stranger = await tab(history, "eve")
    theirs = await stranger.ask("Yours?")
    await cl.Message("overwritten", id=question.id).send()
    for id in (str(uuid4()), element["id"]):
        planted = cl.CustomElement(id=id, thread_id=page.thread_id, name="Receipt", props={"planted": True})
        await planted.send(for_id=question.id)
    taken = cl.CustomElement(id=element["id"], name="Receipt", props={"taken": True})
    await taken.send(for_id=theirs.id)
    await history.update_step({**cl.Message("planted").to_dict(), "threadId": page.thread_id})
    await history.delete_element(element["id"], page.thread_id)
    await history.delete_element(element["id"])
    await history.delete_step(question.id)
    await history.update_thread(page.thread_id, name="Stolen", user_id=stranger.session.user.id)
    await history.update_thread(page.thread_id, metadata={"stolen": True})
    assert await kept(history, page.thread_id) == before
    assert await history.file(page.thread_id, element["id"]) is not None


async def test_a_user_is_known_by_the_name(history: Any) -> None:
    assert await history.get_user("ada") is None
    made = await history.create_user(User(identifier="ada", metadata={"role": "a \ud800"}))
    again = await history.create_user(User(identifier="ada", metadata={"role": "b"}))
    assert (again.id, again.identifier, again.metadata) == (made.id, "ada", {"role": "b"})
    assert await history.get_user("ada") == again
    assert await history.get_user("Ada") is None


async def test_a_thumb_comes_back_with_its_message(history: Any) -> None:
    page = await tab(history)
    await page.ask("Go.")
    answer = await cl.Message("Gone.").send()
    await settled()
    id = await history.upsert_feedback(Feedback(forId=answer.id, value=0, comment="wrong \ud800"))
    assert await history.upsert_feedback(Feedback(forId=answer.id, value=1, id=id)) == id
    step = (await kept(history, page.thread_id))["steps"][1]
    assert step["feedback"] == {"forId": answer.id, "id": id, "value": 1, "comment": None}
    assert [len((await listed(history, page.session.user, feedback=value)).data) for value in (0, 1)] == [0, 1]
    assert await history.delete_feedback(id)
    assert not await history.delete_feedback(id)
    assert (await kept(history, page.thread_id))["steps"][1]["feedback"] is None
    with pytest.raises(UserError, match="That message is not kept"):
        await history.upsert_feedback(Feedback(forId=str(uuid4()), value=1))


async def test_a_favourite_is_found_again(history: Any) -> None:
    page = await tab(history)
    question = await page.ask("Keep me.")
    await page.ask("Not me.")
    await settled()
    (step, _) = (await kept(history, page.thread_id))["steps"]
    await history.set_step_favorite(step, True)
    assert [found["id"] for found in await history.get_favorite_steps(page.session.user.id)] == [question.id]
    assert await history.get_favorite_steps((await user(history, "eve")).id) == []


# --- What this project adds ---


async def test_a_document_is_attached_as_it_was_read(history: Any) -> None:
    page = await tab(history)
    await page.ask("", manual__md=b"text")
    await settled()
    report, read = passages("manual.md")
    second, others = passages("other.md", "Приклад: 10 МБ. " * 300)
    element_id = str(uuid4())
    await history.attach(page.thread_id, 2, "other.md", str(uuid4()), second, others)
    await history.attach(page.thread_id, 1, "manual.md", element_id, report, read)
    one, two = await history.attachments(page.thread_id)
    assert (one.number, one.source, one.element_id, one.report, one.passages) == (
        1,
        "manual.md",
        element_id,
        report,
        read,
    )
    assert (two.number, two.report, two.passages) == (2, second, others)
    newer = passages("manual.md", "It is oiled every 18 days.")
    await history.attach(page.thread_id, 3, "manual.md", str(uuid4()), *newer)
    assert [(a.number, a.source) for a in await history.attachments(page.thread_id)] == [
        (2, "other.md"),
        (3, "manual.md"),
    ]
    await history.detach(page.thread_id, 2)
    await history.detach(page.thread_id, 2)
    assert [a.passages for a in await history.attachments(page.thread_id)] == [newer[1]]


async def test_a_file_stays_while_a_message_shows_it_or_a_document_was_read_from_it(history: Any) -> None:
    page = await tab(history)
    shown, removed = await page.ask("", one__md=b"1"), await page.ask("", two__md=b"2")
    thread = await kept(history, page.thread_id)
    ids = {element["name"]: element["id"] for element in thread["elements"]}
    for number, name in enumerate(ids, 1):
        await history.attach(page.thread_id, number, name, ids[name], *passages(name))
    await removed.remove()
    await settled()
    assert all([await history.file(page.thread_id, id) for id in ids.values()])
    for number in (1, 2):
        await history.detach(page.thread_id, number)
    assert await history.file(page.thread_id, ids["one.md"]) is not None, f"{shown.id} shows it"
    assert await history.file(page.thread_id, ids["two.md"]) is None


async def test_settings_are_each_users_own(history: Any) -> None:
    assert await history.settings("ada") == {}
    await history.keep_settings("ada", {"mode": "slm", "confidence": 0.7})
    await history.keep_settings("eve", {"mode": "llm"})
    await history.keep_settings("ada", {"mode": "auto"})
    assert await history.settings("ada") == {"mode": "auto"}
    assert await history.settings("eve") == {"mode": "llm"}


async def test_what_was_asked_for_is_written_before_it_closes(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    for url in (None, request.getfixturevalue("postgres").database()):
        settings = settings_for(tmp_path / ("a" if url is None else "b"), url)
        closing_one = open_history(settings)
        with data_layer(closing_one):
            page = await tab(closing_one)
            await page.ask("Go.")
            for number in range(30):
                await cl.Message(f"answer {number}").send()
            writing = asyncio.all_tasks() - {asyncio.current_task()}
            await asyncio.sleep(0)
            await asyncio.gather(*writing, closing_one.close())
            await settled()
            await closing_one.close()
        again = open_history(settings)
        assert len((await kept(again, page.thread_id))["steps"]) == 31
        await again.close()


async def test_what_comes_after_the_end_is_told_once(history: Any, caplog: pytest.LogCaptureFixture) -> None:
    page = await tab(history)
    await page.ask("Go.")
    await settled()
    await history.close()
    with caplog.at_level(logging.ERROR, "smallfirst"):
        await cl.Message("Too late.").send()
        await cl.Message("Too late again.").send()
        await settled()
    (record,) = caplog.records
    assert "closed" in record.getMessage()
    for asked in (history.get_thread(page.thread_id), history.delete_thread(page.thread_id)):
        with pytest.raises(UserError, match="closed"):
            await asked


async def test_every_turn_of_everybody_can_be_told_in_its_order(history: Any) -> None:
    pages = [await tab(history, name) for name in ("ada", "eve", "ada")]
    for number in (2, 0, 1, 2):
        pages[number].enter()
        question = await pages[number].ask("Where?")
        await cl.Message("There.", metadata={"answer": f"of {number}", "id": question.id}).send()
        await cl.Message("A notice.").send()
        await settled()
    told = await turns(history)
    assert [turn["answer"] for turn in told] == ["of 2", "of 0", "of 1", "of 2"]
    assert [turn["asked_at"] for turn in told] == sorted(turn["asked_at"] for turn in told)
    assert await history.thread_ids() == [pages[number].thread_id for number in (2, 0, 1)]
    await history.delete_thread(pages[2].thread_id)
    assert [turn["answer"] for turn in await turns(history)] == ["of 0", "of 1"]


# --- The route ---


@asynccontextmanager
async def client(history: Any, monkeypatch: pytest.MonkeyPatch, signed_in: str | None) -> AsyncIterator[Any]:
    monkeypatch.setenv("CHAINLIT_AUTH_SECRET", "a secret of at least thirty-two bytes")
    monkeypatch.setenv("CHAINLIT_CUSTOM_AUTH", "true")
    app = FastAPI()
    app.include_router(router(history))
    cookies = {} if signed_in is None else {"access_token": create_jwt(User(identifier=signed_in))}
    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://localhost", cookies=cookies) as http:
        yield http


async def test_a_file_is_served_to_its_owner_and_to_nobody_else(history: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    page = await tab(history, "ada")
    await page.ask("", manual__pdf=PDF, page__html=b"<script>alert(1)</script>", odd__xyz=b"?")
    elements = {element["name"]: element for element in (await kept(history, page.thread_id))["elements"]}
    kinds = {"manual.pdf": "application/pdf", "page.html": "text/plain", "odd.xyz": "application/octet-stream"}
    async with client(history, monkeypatch, "ada") as http:
        for name, kind in kinds.items():
            answer = await http.get(elements[name]["url"])
            assert answer.status_code == 200
            assert answer.headers["content-type"].split(";")[0] == kind
            assert answer.headers["content-disposition"] == f'attachment; filename="{name}"'
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert "sandbox" in answer.headers["content-security-policy"]
            assert "no-store" in answer.headers["cache-control"]
        assert (await http.get(elements["manual.pdf"]["url"])).content == PDF
        for path in (
            f"{page.thread_id}/{uuid4()}",
            f"{uuid4()}/{uuid4()}",
            "%2e%2e/%2e%2e",
            f"{page.thread_id}/..%2fx",
        ):
            assert (await http.get(f"/history/{path}")).status_code == 404
    for stranger in ("eve", "", None):
        async with client(history, monkeypatch, stranger) as http:
            for element in elements.values():
                answer = await http.get(element["url"])
                assert (answer.status_code, answer.json()) == (404, {"detail": "There is no such file."})
    async with client(history, monkeypatch, None) as http:
        http.cookies.set("access_token", "forged")
        assert (await http.get(elements["manual.pdf"]["url"])).status_code == 404


@pytest.mark.parametrize(
    "name", ["a\r\nSet-Cookie: x=1.pdf", 'q"uo;te.pdf', "Звіт за рік.pdf", "\ud800.pdf", "n" * 500 + ".pdf"]
)
async def test_a_hostile_name_is_only_a_name(history: Any, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    page = await tab(history)
    question = await page.ask("Look.")
    await cl.File(name=name, content=PDF, mime="text/html").send(for_id=question.id)
    (element,) = (await kept(history, page.thread_id))["elements"]
    async with client(history, monkeypatch, "ada") as http:
        answer = await http.get(element["url"])
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/pdf")
    assert "set-cookie" not in answer.headers
    assert answer.headers["content-disposition"].startswith("attachment; filename")
    assert len(answer.headers["content-disposition"]) < 300


async def test_a_file_that_only_a_document_uses_has_its_name(history: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    page = await tab(history)
    await page.ask("First.")
    message = await page.ask("", manual__md=b"text")
    (element,) = (await kept(history, page.thread_id))["elements"]
    await history.attach(page.thread_id, 1, "manual.md", element["id"], *passages("manual.md"))
    await message.remove()
    await settled()
    async with client(history, monkeypatch, "ada") as http:
        answer = await http.get(element["url"])
    assert answer.headers["content-disposition"] == 'attachment; filename="manual.md"'


async def test_where_nobody_signs_in_nobody_owns_a_file(history: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Tab()
    await page.ask("", manual__pdf=PDF)
    (element,) = (await kept(history, page.thread_id))["elements"]
    async with client(history, monkeypatch, None) as http:
        monkeypatch.delenv("CHAINLIT_CUSTOM_AUTH")
        assert (await http.get(element["url"])).status_code == 404


# --- Chainlit's own server ---

APP = """
import os
from pathlib import Path
import chainlit as cl
from chainlit.server import app
from rag.serve.history import open_history, router
from rag.settings import Settings

history = open_history(Settings(_env_file=None))
app.include_router(router(history))
app.router.routes.insert(0, app.router.routes.pop())

@cl.data_layer
def layer():
    return history

@cl.password_auth_callback
async def sign_in(name, password):
    return cl.User(identifier=name)

@cl.on_chat_resume
async def resume(thread):
    pass

@cl.on_message
async def answer(message):
    receipt = cl.CustomElement(name="Receipt", props={"question": message.content})
    await cl.Message(f"You said {message.content}.", metadata={"a": 1}, elements=[receipt]).send()
"""


@contextmanager
def chainlit_server(folder: Path) -> Iterator[str]:
    port = free_port()
    (folder / "app.py").write_text(APP)
    (folder / ".chainlit").mkdir(exist_ok=True)
    (folder / ".chainlit" / "config.toml").write_text(
        "[project]\nsession_timeout = 0\n[features]\nedit_message = true\n[features.spontaneous_file_upload]\n"
        'enabled = true\naccept = ["*/*"]\n[UI]\nname = "t"\n[meta]\ngenerated_by = "2.12.0"\n'
    )
    environment = {
        **os.environ, "CHAINLIT_APP_ROOT": str(folder), "PYTHONPATH": str(Path(__file__).parent.parent),
        "RAG_DATA_DIR": str(folder / "data"), "CHAINLIT_AUTH_SECRET": "a secret of at least thirty-two bytes",
    }  # fmt: skip
    command = [sys.executable, "-m", "chainlit", "run", "app.py", "-h", "--host", "127.0.0.1", "--port", str(port)]
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
        try:
            end = time.monotonic() + 60
            while True:
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                assert process.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < end, (folder / "log").read_text()
                time.sleep(0.05)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(20)


class Page:
    """What Chainlit's page does, signed in, spoken by hand."""

    def __init__(self, url: str, name: str) -> None:
        self.url = url
        self.session_id = str(uuid4())
        self.http = httpx2.AsyncClient(base_url=url, trust_env=False)
        self.name = name
        self.socket = socketio.AsyncClient(reconnection=False)
        self.told: dict[str, list[Any]] = {}
        self.socket.on("*", lambda event, *data: self.told.setdefault(event, []).append(data[0] if data else None))

    async def __aenter__(self) -> "Page":
        signed_in = await self.http.post("/login", data={"username": self.name, "password": "any"})
        assert signed_in.status_code == 200
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.socket.disconnect()
        await self.http.aclose()

    async def connect(self, thread_id: str = "") -> None:
        cookies = "; ".join(f"{name}={value}" for name, value in self.http.cookies.items())
        session = {"sessionId": self.session_id, "threadId": thread_id, "clientType": "webapp", "userEnv": "{}"}
        await self.socket.connect(
            self.url, socketio_path="/ws/socket.io", auth=session, transports=["websocket"], headers={"Cookie": cookies}
        )
        await self.socket.emit("connection_successful")

    async def ask(self, text: str, files: list[str] | None = None) -> dict[str, Any]:
        """Returns the message that it sent, once it was answered."""
        before = len(self.told.get("task_end", []))
        sent = client_message(text, files or [])
        await self.socket.emit("client_message", sent)
        await until(lambda: len(self.told.get("task_end", [])) > before)
        return dict(sent["message"])

    async def threads(self, **filters: Any) -> list[dict[str, Any]]:
        body = {"pagination": {"first": 35}, "filter": filters}
        return list((await self.http.post("/project/threads", json=body)).json()["data"])


async def test_a_conversation_outlasts_chainlits_server(tmp_path: Path) -> None:
    with chainlit_server(tmp_path) as url:
        async with Page(url, "ada") as page:
            await page.connect()
            upload = await page.http.post(
                "/project/file", params={"session_id": page.session_id}, files={"file": ("manual.pdf", PDF)}
            )
            await page.ask("", [upload.json()["id"]])
            question = await page.ask("Is it kept?")
            await page.ask("And this?")
            await page.socket.emit("edit_message", {"message": {**question, "output": "Is it edited?"}})
            await until(lambda: any(m["output"] == "You said Is it edited?." for m in page.told["new_message"]))
            thread_id = page.told["first_interaction"][0]["thread_id"]
            assert [thread["name"] for thread in await page.threads()] == ["manual.pdf"]
    with chainlit_server(tmp_path) as url:
        async with Page(url, "eve") as stranger:
            with pytest.raises(socketio.exceptions.ConnectionError):
                await stranger.connect(thread_id)
            assert await stranger.threads() == []
            for method, body in (("PUT", {"threadId": thread_id, "name": "Mine"}), ("DELETE", {"threadId": thread_id})):
                assert (await stranger.http.request(method, "/project/thread", json=body)).status_code == 401
        async with Page(url, "ada") as page:
            await page.connect(thread_id)
            await until(lambda: "resume_thread" in page.told)
            (thread,) = page.told["resume_thread"]
            said = [step["output"] for step in thread["steps"] if "message" in step["type"]]
            assert said == ["", "You said .", "Is it edited?", "You said Is it edited?."]
            receipts = {e["forId"]: e["props"] for e in thread["elements"] if e["type"] == "custom"}
            answers = [step for step in thread["steps"] if step["type"] == "assistant_message"]
            assert [receipts[step["id"]]["question"] for step in answers] == ["", "Is it edited?"]
            assert [step["metadata"] for step in answers] == [{"a": 1}, {"a": 1}]
            (manual,) = [e for e in thread["elements"] if e["name"] == "manual.pdf"]
            served = await page.http.get(manual["url"])
            assert (served.content, served.headers["content-type"]) == (PDF, "application/pdf")

            await page.ask("Does it go on?")
            found = await page.threads(search="go ON")
            assert [thread["id"] for thread in found] == [thread_id]
            renamed = await page.http.put("/project/thread", json={"threadId": thread_id, "name": "Manual"})
            assert renamed.status_code == 200
            assert [thread["name"] for thread in await page.threads()] == ["Manual"]
            # The page leaves a conversation before it deletes it.
            await page.socket.emit("clear_session")
            await page.socket.disconnect()
            deleted = await page.http.request("DELETE", "/project/thread", json={"threadId": thread_id})
            assert deleted.status_code == 200
            assert await page.threads() == []
            assert (await page.http.get(manual["url"])).status_code == 404
    assert list((tmp_path / "data" / "files").iterdir()) == []
    assert "Traceback" not in (tmp_path / "log").read_text()


# --- The file of SQLite ---


async def test_the_database_is_its_owners(sqlite: History, tmp_path: Path) -> None:
    page = await tab(sqlite)
    await page.ask("Go.")
    await settled()
    assert sqlite.path == tmp_path / "data" / "history.sqlite"
    if sys.platform != "win32":
        names = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "data").iterdir()}
        assert names == {
            "history.sqlite": 0o600,
            "history.sqlite-wal": 0o600,
            "history.sqlite-shm": 0o600,
            "files": 0o700,
        }
        assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700


async def test_nothing_of_what_is_deleted_is_left_on_the_disk(sqlite: History, tmp_path: Path) -> None:
    page = await tab(sqlite)
    secret = "xyzzyplugh"

    def left() -> list[str]:
        files = [path for path in (tmp_path / "data").rglob("*") if path.is_file()]
        return [path.name for path in files if secret.encode() in path.read_bytes().lower()]

    async def tell() -> Message:
        question = await page.ask(f"Is {secret} the word?", manual__md=secret.encode() * 100)
        metadata = {"hits": [f"{secret} {number}" for number in range(500)]}
        elements = [cl.CustomElement(name="Receipt", props=metadata)]
        await cl.Message(
            f"It is {secret.upper()}. " * 2000, metadata=metadata, elements=elements, parent_id=question.id
        ).send()
        await settled()
        return question

    await page.ask("Harmless.")
    await settled()
    removed = await tell()
    assert left()
    await removed.remove()
    await settled()
    assert left() == []

    await tell()
    await sqlite.attach(page.thread_id, 1, "manual.md", str(uuid4()), *passages("manual.md", f"{secret} " * 3000))
    assert "history.sqlite-wal" in left()
    await sqlite.delete_thread(page.thread_id)
    assert left() == []
    assert list((tmp_path / "data" / "files").iterdir()) == []
    await sqlite.keep_settings("ada", {"still": "works"})


async def test_who_reads_meanwhile_does_not_stop_a_deletion(sqlite: History) -> None:
    page = await tab(sqlite)
    await page.ask("xyzzyplugh")
    await settled()
    with closing(sqlite3.connect(sqlite.path, isolation_level=None)) as other:
        other.execute("BEGIN")
        other.execute("SELECT * FROM steps").fetchall()
        await sqlite.delete_thread(page.thread_id)
        assert await sqlite.get_thread(page.thread_id) is None
        assert b"xyzzyplugh" in sqlite.path.with_name("history.sqlite-wal").read_bytes(), "the other still reads it"
    await sqlite.keep_settings("ada", {"the next": "write"})
    for path in sqlite.path.parent.glob("history.sqlite*"):
        assert b"xyzzyplugh" not in path.read_bytes()


async def test_what_a_deletion_cannot_do_is_told(
    sqlite: History, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    page = await tab(sqlite)
    await page.ask("Go.", manual__pdf=PDF)
    await settled()
    await sqlite._run(lambda: sqlite._db.execute("PRAGMA busy_timeout = 20"))
    with closing(sqlite3.connect(sqlite.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with caplog.at_level(logging.ERROR, "smallfirst"):
            for _ in range(3):
                await cl.Message("Not kept.").send()
            await settled()
        (record,) = caplog.records
        assert str(sqlite.path) in record.getMessage()
        for asked in (
            sqlite.delete_thread(page.thread_id),
            sqlite.update_thread(page.thread_id, name="Other"),
            sqlite.create_user(User(identifier="eve")),
        ):
            with pytest.raises(UserError, match=r"history\.sqlite, cannot be used \(database is locked\)"):
                await asked
        other.execute("ROLLBACK")
    thread = await kept(sqlite, page.thread_id)
    assert (await sqlite.file(page.thread_id, thread["elements"][0]["id"])) is not None, "the files came back"
    await cl.Message("Kept again.").send()
    assert (await kept(sqlite, page.thread_id))["steps"][-1]["output"] == "Kept again."
    caplog.clear()
    with closing(sqlite3.connect(sqlite.path, isolation_level=None)) as other, caplog.at_level(logging.ERROR):
        other.execute("BEGIN IMMEDIATE")
        await cl.Message("Not kept.").send()
        await settled()
    assert len(caplog.records) == 1, "it is told again, since it was kept in between"


def test_an_older_database_is_brought_up_to_date(tmp_path: Path) -> None:
    async def look(folder: Path) -> None:
        opened = History(folder)
        thread = await opened.get_thread("t1")
        assert thread is not None
        assert (thread["name"], thread["steps"][0]["output"]) == ("Old", "Hello.")
        await opened.attach("t1", 1, "manual.md", str(uuid4()), *passages())
        await opened.keep_settings("ada", {"a": 1})
        assert len(await opened.attachments("t1")) == 1
        await opened.close()

    for version in range(1, len(history_sqlite.MIGRATIONS) + 1):
        folder = tmp_path / str(version)
        folder.mkdir()
        path = folder / "history.sqlite"
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            history_sqlite.migrate(db, path, history_sqlite.MIGRATIONS[:version])
            assert db.execute("PRAGMA user_version").fetchone() == (version,)
            db.execute("INSERT INTO threads (id, name, created, used) VALUES ('t1', 'Old', '2026', '2026')")
            row = as_json({"id": "s1", "threadId": "t1", "type": "user_message", "output": "Hello."})
            db.execute(
                "INSERT INTO steps (id, thread_id, created, said, row) VALUES ('s1', 't1', '2026', 'hello.', ?)", (row,)
            )
        asyncio.run(look(folder))
        asyncio.run(look(folder))


def test_a_migration_that_fails_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite"
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        history_sqlite.migrate(db, path, history_sqlite.MIGRATIONS)
        db.execute("INSERT INTO settings VALUES ('ada', '{}')")

        def state() -> Any:
            tables = db.execute("SELECT sql FROM sqlite_master ORDER BY name").fetchall()
            return tables, db.execute("SELECT * FROM settings").fetchall(), db.execute("PRAGMA user_version").fetchone()

        before = state()
        broken = "CREATE TABLE more (id TEXT); UPDATE settings SET row = ''; DROP TABLE users; INSERT INTO nowhere VALUES (1)"
        with pytest.raises(sqlite3.OperationalError, match="nowhere"):
            history_sqlite.migrate(db, path, (*history_sqlite.MIGRATIONS, broken))
        assert state() == before
        history_sqlite.migrate(db, path, (*history_sqlite.MIGRATIONS, "CREATE TABLE more (id TEXT)"))
        assert db.execute("SELECT * FROM more").fetchall() == []


def test_a_database_of_a_newer_program_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite"
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 99")
        db.execute("CREATE TABLE of_tomorrow (id TEXT)")
    before = path.read_bytes()
    with pytest.raises(
        UserError, match=r"newer version of this program \(format 99.*Install that version.*RAG_DATA_DIR"
    ):
        History(tmp_path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("spoiled", ["is something else", "is cut off", "is a folder", "lies in a file"])
def test_a_database_that_cannot_be_used_says_what_to_do(tmp_path: Path, spoiled: str) -> None:
    data = tmp_path / "data"
    path = data / "history.sqlite"
    if spoiled == "lies in a file":
        data.write_text("a file")
    elif spoiled == "is a folder":
        path.mkdir(parents=True)
    else:
        asyncio.run(History(data).close())
        path.write_bytes(b"no database at all " * 100 if spoiled == "is something else" else path.read_bytes()[:1500])
    expected = (
        r"is damaged .* (Restore|move)"
        if spoiled.startswith("is ") and path.is_file()
        else r"cannot be used .* RAG_DATA_DIR"
    )
    with pytest.raises(UserError, match=expected) as raised:
        History(data)
    assert str(path) in str(raised.value)
    if path.is_file():
        assert path.stat().st_size > 1000, "it is not ours to throw away"


async def test_damage_that_shows_later_is_told_in_words(sqlite: History) -> None:
    page = await tab(sqlite)
    await page.ask("Go." * 20_000)
    await settled()
    await sqlite.close()
    data = bytearray(sqlite.path.read_bytes())
    data[2 * 4096 :] = os.urandom(len(data) - 2 * 4096)
    sqlite.path.write_bytes(data)

    async def look() -> None:
        opened = History(sqlite.path.parent)
        try:
            await opened.get_thread(page.thread_id)
        finally:
            await opened.close()

    with pytest.raises(UserError, match="is damaged"):
        await look()


async def test_two_processes_may_share_it(sqlite: History) -> None:
    other = History(sqlite.path.parent)
    page = await tab(sqlite)
    await page.ask("Go.")
    await settled()
    for number in range(20):
        await asyncio.gather(sqlite.keep_settings("a", {"n": number}), other.keep_settings("b", {"n": number}))
    assert await other.get_thread(page.thread_id) == await sqlite.get_thread(page.thread_id)
    assert (await sqlite.settings("b"), await other.settings("a")) == ({"n": 19}, {"n": 19})
    await other.close()


async def test_the_next_start_ends_what_was_left_undone(tmp_path: Path) -> None:
    opened = History(tmp_path)
    owner = await user(opened)
    empty, thread_id = str(uuid4()), str(uuid4())
    await opened.update_thread(empty, name="A button", user_id=owner.id)
    Files(tmp_path / "files").keep(thread_id, str(uuid4()), b"being deleted")
    (tmp_path / "files" / thread_id).rename(tmp_path / "files" / f"{thread_id}.gone")
    await opened.close()
    opened = History(tmp_path)
    await opened.close()
    with closing(sqlite3.connect(tmp_path / "history.sqlite")) as db:
        assert db.execute("SELECT count(*) FROM threads").fetchone() == (0,)
    assert list((tmp_path / "files").iterdir()) == []


KILLED = """
import asyncio, os, sys, tempfile
os.environ["CHAINLIT_APP_ROOT"] = sys.argv[2]
from pathlib import Path
from uuid import uuid4
from rag.serve.history import History

async def main():
    history = History(Path(sys.argv[1]))
    thread = str(uuid4())
    print(thread, flush=True)
    number = 0
    while True:
        step = {"id": str(uuid4()), "threadId": thread, "type": "user_message", "output": f"{number} " + "x" * 5000}
        await History._keep_step(history, step, new=True)
        print(number, flush=True)
        number += 1

asyncio.run(main())
"""


async def test_a_killed_process_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    process = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-c", KILLED, str(tmp_path / "data"), str(tmp_path / "root")],
        cwd=Path(__file__).parent.parent, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        thread_id = process.stdout.readline().strip()
        while "200" not in process.stdout.readline():
            assert process.poll() is None
    finally:
        process.send_signal(signal.SIGKILL if sys.platform != "win32" else signal.SIGTERM)
        rest = process.communicate()[0].split()
    acknowledged = int(rest[-1]) if rest else 200
    opened = History(tmp_path / "data")
    thread = await opened.get_thread(thread_id)
    assert thread is not None
    numbers = [int(step["output"].split()[0]) for step in thread["steps"]]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) > acknowledged
    with closing(sqlite3.connect(tmp_path / "data" / "history.sqlite")) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    await opened.close()


# --- Small things ---


def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    files = Files(tmp_path / "files")
    files.open()
    thread_id, element_id = str(uuid4()), str(uuid4())
    with pytest.raises(FileNotFoundError):
        files.keep(thread_id, element_id, tmp_path / "nowhere")
    assert list((tmp_path / "files").iterdir()) == []
    assert files.keep(thread_id, element_id, b"first")
    with pytest.raises(IsADirectoryError):
        files.keep(thread_id, element_id, tmp_path)
    path = files.find(thread_id, element_id)
    assert path is not None
    assert path.read_bytes() == b"first"
    with pytest.raises(RuntimeError), files.removing(thread_id):
        raise RuntimeError
    assert path.exists()
    with files.removing(thread_id):
        pass
    assert list((tmp_path / "files").iterdir()) == []


def test_names_terms_and_times() -> None:
    assert title(None) == title(" \n\t\0") == ""
    assert title("a\r\nb\u202ec\ud800d") == "a b c d"
    assert title("क्षि 👩‍👩‍👧") == "क्षि 👩‍👩‍👧", "what joins signs is no control"
    assert len(title("word " * 1000)) <= 120
    assert title("word " * 1000).endswith("word…")
    assert folded("ＳＴＲＡẞＥ ΣΊΣΥΦΟΣ") == folded("strasse σίσυφος")
    assert terms(" a  B\tb ") == ["a", "b"]
    assert len(terms("x y z " * 1000)) == 3
    assert len(terms(" ".join(map(str, range(100))))) == 10
    assert instant("2026-01-02T03:04:05Z") == "2026-01-02T03:04:05.000000Z"
    assert instant("2026-01-02T05:04:05.6+02:00") == "2026-01-02T03:04:05.600000Z"
    for text in ("nonsense", "", None, 3, "0001-01-01T00:00:00+23:59"):
        now = datetime.fromisoformat(instant(text))
        assert timedelta(0) <= datetime.now(UTC) - now < timedelta(minutes=1)


def test_where_conversations_are_is_a_setting(tmp_path: Path) -> None:
    opened = open_history(settings_for(tmp_path / "here"))
    assert isinstance(opened, History)
    assert opened.path == tmp_path / "here" / "history.sqlite"
    asyncio.run(opened.close())
