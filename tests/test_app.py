"""The chat's door over its real socket, without a browser: reconnects, bad values, isolation, faults."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
import pytest
import socketio

from .conftest import until
from .product import ROOT, ScriptedServer, chat, client_message, free_port

QUESTION = "What is the largest file that I can drop into a chat?"
GRACE_S = 2.0
MANUAL = b"The frobnicator must be oiled every 17 days."
OILED = "How often must the frobnicator be oiled?"


@pytest.fixture(scope="module")
def scripted() -> Iterator[ScriptedServer]:
    server = ScriptedServer()
    yield server
    server.close()


@pytest.fixture(scope="module")
def url(scripted: ScriptedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    environment = {
        "RAG_SLM_BASE_URL": scripted.url, "RAG_SLM_MODEL": "small", "RAG_LLM_BASE_URL": scripted.url,
        "RAG_LLM_MODEL": "large", "RAG_DISCONNECT_GRACE_S": str(GRACE_S), "RAG_SLM_MAX_TOKENS": "8000",
    }  # fmt: skip
    with chat(free_port(), tmp_path_factory.mktemp("app") / "chat.log", **environment) as address:
        yield address


class Client:
    """What a page does, spoken by hand."""

    def __init__(self, session_id: str) -> None:
        self.session_id = session_id
        self.socket = socketio.AsyncClient(reconnection=False)
        self.steps: list[dict[str, Any]] = []
        self.settings: list[Any] = []
        self.told: list[Any] = []
        """What the page's own script is told."""
        self.threads: list[Any] = []
        for event in ("new_message", "update_message"):
            self.socket.on(event, self.steps.append)
        self.socket.on("chat_settings", self.settings.append)
        self.socket.on("window_message", self.told.append)
        self.socket.on("resume_thread", self.threads.append)

    async def send(self, text: str, files: list[str] | None = None) -> None:
        await self.socket.emit("client_message", client_message(text, files or ()))

    async def begin_anew(self) -> None:
        """As the page does, both in one breath. The client's own disconnect may drop what it has not sent yet."""
        for packet in ('2["clear_session"]', "1"):
            await self.socket.eio.send(packet)

    async def say(self, message: Any) -> None:
        await self.socket.emit("window_message", message)

    async def upload(self, url: str, name: str, data: bytes) -> str:
        async with httpx2.AsyncClient(trust_env=False) as http:
            files = {"file": (name, data, "text/markdown")}
            sent = await http.post(f"{url}/project/file", params={"session_id": self.session_id}, files=files)
        return str(sent.json()["id"])

    async def attach(self, url: str, name: str, data: bytes) -> None:
        before = len(self.told)
        await self.send("", [await self.upload(url, name, data)])
        await until(lambda: len(self.told) > before, 60)

    @property
    def key(self) -> str:
        return str(self.told[0]["key"])

    def documents(self) -> list[str]:
        return [document["source"] for document in self.told[-1]["documents"]]

    def answers(self) -> list[dict[str, Any]]:
        return [step for step in self.steps if step["type"] == "assistant_message" and step["output"]]

    async def ask(self, text: str, files: list[str] | None = None) -> dict[str, Any]:
        """The first answer with a turn in it that comes after the question."""
        before = len(self.turns())
        await self.send(text, files)
        await until(lambda: len(self.turns()) > before, 60)
        return self.turns()[-1]

    def turns(self) -> list[dict[str, Any]]:
        return [step["metadata"] for step in self.answers() if "hits" in (step["metadata"] or {})]


@asynccontextmanager
async def connected(url: str, session_id: str | None = None) -> AsyncIterator[Client]:
    client = Client(session_id or str(uuid4()))
    auth = {"sessionId": client.session_id, "threadId": "", "userEnv": "{}", "clientType": "webapp", "chatProfile": ""}
    await client.socket.connect(url, auth=auth, transports=["websocket"], socketio_path="/ws/socket.io")
    try:
        await client.socket.emit("connection_successful")
        if session_id is None:
            await until(lambda: bool(client.settings))
        yield client
    finally:
        await client.socket.disconnect()


async def test_the_metadata_is_the_turn(url: str, scripted: ScriptedServer) -> None:
    scripted.script = lambda model, _: "The largest file is 10 MB."
    async with connected(url) as client:
        turn = await client.ask(QUESTION)
    assert turn["question"] == QUESTION
    assert [span["name"] for span in turn["trace"]["spans"] if span["leg"] == "slm"] == [
        "draft", "prompt", "request", "first_token", "completion", "judge",
    ]  # fmt: skip


async def test_a_short_disconnect_does_not_end_the_answer(url: str, scripted: ScriptedServer) -> None:
    scripted.script = lambda model, _: None
    scripted.reset()
    async with connected(url) as client:
        await client.send(QUESTION)
        await asyncio.to_thread(scripted.asked.wait, 20)
    async with connected(url, client.session_id) as again:
        # Longer than the grace period: a tab that came back must not be taken for a closed one.
        assert not await asyncio.to_thread(scripted.hung_up.wait, GRACE_S * 2)
        await again.socket.emit("stop")
        assert await asyncio.to_thread(scripted.hung_up.wait, 20)


async def test_a_long_disconnect_ends_the_models_work(url: str, scripted: ScriptedServer) -> None:
    scripted.script = lambda model, _: None
    scripted.reset()
    async with connected(url) as client:
        await client.send(QUESTION)
        await asyncio.to_thread(scripted.asked.wait, 20)
    assert await asyncio.to_thread(scripted.hung_up.wait, GRACE_S * 10)


@pytest.mark.parametrize("mode", ["both", "", None, 7, ["auto"], {"a": 1}])
async def test_a_mode_that_the_form_does_not_offer_is_refused(url: str, scripted: ScriptedServer, mode: Any) -> None:
    scripted.script = lambda model, _: "The largest file is 10 MB."
    async with connected(url) as client:
        await client.socket.emit("chat_settings_change", {"mode": mode})
        await until(lambda: any("There is no mode" in step["output"] for step in client.answers()))
        assert (await client.ask(QUESTION))["mode"] == "auto"


async def test_uploads_are_seen_by_their_own_session_only(url: str, scripted: ScriptedServer) -> None:
    scripted.script = lambda model, _: "It must be oiled every 17 days."
    async with connected(url) as mine, connected(url) as theirs:
        id = await mine.upload(url, "manual.md", MANUAL)
        turn = await mine.ask(OILED, [id])
        assert turn["citations"][0]["source"] == "manual.md"
        assert (await mine.ask(OILED))["hits"][0]["source"] == "manual.md", "it stays"
        other = await theirs.ask(OILED)
        assert "manual.md" not in str(other["hits"])


async def test_a_conversation_is_found_again_by_its_key(url: str, scripted: ScriptedServer) -> None:
    scripted.script = lambda model, _: "It must be oiled every 17 days."
    async with connected(url) as before:
        await before.attach(url, "manual.md", MANUAL)
        await before.ask(OILED)
    async with connected(url) as after:
        assert after.key != before.key
        await after.say({"smallfirst": "resume", "key": before.key})
        await until(lambda: bool(after.threads))
        await until(lambda: len(after.settings) > 1)
        assert after.told[-1]["key"] == before.key
        assert after.documents() == ["manual.md"]
        assert [step["output"] for step in after.threads[0]["steps"] if step["type"] == "user_message"] == ["", OILED]
        assert {element["name"] for element in after.threads[0]["elements"]} == {"Attachments", "Receipt"}
        assert (await after.ask(OILED))["hits"][0]["source"] == "manual.md"
        assert not (ROOT / ".files" / before.session_id).exists(), "the former session's copies are kept"


async def test_a_turn_under_way_is_kept_as_far_as_it_came(url: str, scripted: ScriptedServer) -> None:
    scripted.script = lambda model, _: None
    scripted.reset()
    async with connected(url) as before:
        await before.send(QUESTION)
        await asyncio.to_thread(scripted.asked.wait, 20)
    async with connected(url) as after:
        await after.say({"smallfirst": "resume", "key": before.key})
        await until(lambda: bool(after.threads))
        assert "*Stopped.*" in after.threads[0]["steps"][-1]["output"]
        assert await asyncio.to_thread(scripted.hung_up.wait, 20)


async def test_a_wrong_key_opens_nothing(url: str, scripted: ScriptedServer) -> None:
    scripted.script = lambda model, _: "It must be oiled every 17 days."
    async with connected(url) as mine:
        await mine.attach(url, "manual.md", MANUAL)
    async with connected(url) as other:
        for key in ("", mine.session_id, mine.key[:-1], mine.key + "=", "\ud800", None, 7, [mine.key]):
            await other.say({"smallfirst": "resume", "key": key})
        for message in (None, 7, "list", ["list"], {}, {"smallfirst": None}, {"smallfirst": "remove", "number": "1"}):
            await other.say(message)
        before = len(other.told)
        await other.say({"smallfirst": "list"})
        await until(lambda: len(other.told) > before)
        assert other.documents() == []
        assert other.told[-1]["key"] == other.key
        assert other.threads == []
        assert "manual.md" not in str((await other.ask(OILED))["hits"])


async def test_a_new_chat_forgets_the_documents(url: str, scripted: ScriptedServer) -> None:
    async with connected(url) as before:
        await before.attach(url, "manual.md", MANUAL)
        await before.begin_anew()
        await until(lambda: not (ROOT / ".files" / before.session_id).exists())
    async with connected(url) as after:
        await after.say({"smallfirst": "resume", "key": before.key})
        await after.say({"smallfirst": "list"})
        await until(lambda: len(after.told) > 1)
        assert after.documents() == []
        assert after.threads == []


async def test_a_new_chat_leaves_nothing_of_an_answer_under_way(url: str, scripted: ScriptedServer) -> None:
    scripted.script = lambda model, _: None
    scripted.reset()
    async with connected(url) as before:
        await before.attach(url, "manual.md", MANUAL)
        await before.send(OILED)
        await asyncio.to_thread(scripted.asked.wait, 20)
        await before.begin_anew()
        assert await asyncio.to_thread(scripted.hung_up.wait, 20)
    scripted.script = lambda model, _: "The largest file is 10 MB."
    async with connected(url) as after:
        await after.ask(QUESTION)
    assert not (ROOT / ".files" / before.session_id).exists()


async def test_a_tab_whose_conversation_went_elsewhere_is_told(url: str, scripted: ScriptedServer) -> None:
    async with connected(url) as first, connected(url) as second:
        await first.attach(url, "manual.md", MANUAL)
        await second.say({"smallfirst": "resume", "key": first.key})
        await until(lambda: {"smallfirst": "moved"} in first.told)
        await until(lambda: second.documents() == ["manual.md"])
        await first.send(OILED)
        await until(lambda: any("went on in another tab" in step["output"] for step in first.answers()))


async def test_a_removed_document_is_gone_for_its_session_only(url: str, scripted: ScriptedServer) -> None:
    scripted.script = lambda model, _: "It must be oiled every 17 days."
    async with connected(url) as mine, connected(url) as theirs:
        await mine.attach(url, "manual.md", MANUAL)
        await theirs.attach(url, "manual.md", MANUAL)
        number = mine.told[-1]["documents"][0]["number"]
        await mine.say({"smallfirst": "remove", "number": number})
        await until(lambda: mine.documents() == [])
        assert "manual.md" not in str((await mine.ask(OILED))["hits"])
        assert (await theirs.ask(OILED))["hits"][0]["source"] == "manual.md"


@pytest.mark.parametrize(
    "text", ["", "\x00\x01", "\u202e reversed", "🦓" * 500, "a" * 5000, "[1] [2] [99]", "'; DROP TABLE x; --"]
)
async def test_no_text_leaves_a_turn_without_words(url: str, scripted: ScriptedServer, text: str) -> None:
    scripted.script = lambda model, _: "The largest file is 10 MB."
    async with connected(url) as client:
        await client.send(text)
        await until(lambda: bool(client.answers()), 60)
        assert "Traceback" not in client.answers()[-1]["output"]


async def test_an_upload_that_vanished_is_told_and_the_next_question_works(url: str, scripted: ScriptedServer) -> None:
    scripted.script = lambda model, _: "The largest file is 10 MB."
    async with connected(url) as client:
        id = await client.upload(url, "manual.md", b"words")
        for path in (ROOT / ".files" / client.session_id).iterdir():
            path.unlink()
        await client.send(QUESTION, [id])
        await until(lambda: any("did not arrive whole" in step["output"] for step in client.answers()))
        assert (await client.ask(QUESTION))["answer"]


async def test_documents_end_with_the_session(scripted: ScriptedServer, tmp_path: Path) -> None:
    """Chainlit's timeout of a session that nobody came back to, here one second instead of hours."""
    planted = (
        "import rag.serve.hardening as room\n"
        "original = room.harden\n"
        "def harden(*args, **more):\n"
        "    from chainlit.config import config\n"
        "    config.project.session_timeout = 1\n"
        "    original(*args, **more)\n"
        "room.harden = harden\n"
    )
    (tmp_path / "sitecustomize.py").write_text(planted)
    environment = {
        "RAG_SLM_BASE_URL": scripted.url, "RAG_LLM_BASE_URL": scripted.url, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}",
    }  # fmt: skip
    with chat(free_port(), tmp_path / "chat.log", **environment) as address:
        async with connected(address) as before:
            await before.attach(address, "manual.md", MANUAL)
            folder = ROOT / ".files" / before.session_id
            assert folder.is_dir()
        await until(lambda: not folder.exists())
        async with connected(address) as after:
            await after.say({"smallfirst": "resume", "key": before.key})
            await after.say({"smallfirst": "list"})
            await until(lambda: len(after.told) > 1)
            assert after.documents() == []


async def test_a_fault_of_our_own_is_told_without_its_insides(scripted: ScriptedServer, tmp_path: Path) -> None:
    """A bug is planted in the process; the chat must say that it failed, and not what only the terminal should see."""
    scripted.script = lambda model, _: "The largest file is 10 MB."
    planted = "import rag.turn.citations as room\ndef resolve(*_):\n    raise ZeroDivisionError('secret detail')\nroom.resolve = resolve\n"
    (tmp_path / "sitecustomize.py").write_text(planted)
    environment = {
        "RAG_SLM_BASE_URL": scripted.url, "RAG_LLM_BASE_URL": scripted.url, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}",
    }  # fmt: skip
    log = tmp_path / "chat.log"
    with chat(free_port(), log, **environment) as address:
        async with connected(address) as client:
            await client.send(QUESTION)
            await until(lambda: any("Small First itself failed" in step["output"] for step in client.answers()))
            assert "secret detail" not in str(client.steps)
            assert "secret detail" in log.read_text()
