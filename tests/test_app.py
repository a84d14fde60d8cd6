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
        for event in ("new_message", "update_message"):
            self.socket.on(event, self.steps.append)
        self.socket.on("chat_settings", self.settings.append)

    async def send(self, text: str, files: list[str] | None = None) -> None:
        await self.socket.emit("client_message", client_message(text, files or ()))

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
    question = "How often must the frobnicator be oiled?"
    async with connected(url) as mine, connected(url) as theirs:
        async with httpx2.AsyncClient(trust_env=False) as http:
            files = {"file": ("manual.md", b"The frobnicator must be oiled every 17 days.", "text/markdown")}
            sent = await http.post(f"{url}/project/file", params={"session_id": mine.session_id}, files=files)
        turn = await mine.ask(question, [sent.json()["id"]])
        assert turn["citations"][0]["source"] == "manual.md"
        assert (await mine.ask(question))["hits"][0]["source"] == "manual.md", "it stays"
        other = await theirs.ask(question)
        assert "manual.md" not in str(other["hits"])


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
        async with httpx2.AsyncClient(trust_env=False) as http:
            files = {"file": ("manual.md", b"words", "text/markdown")}
            sent = await http.post(f"{url}/project/file", params={"session_id": client.session_id}, files=files)
        for path in (ROOT / ".files" / client.session_id).iterdir():
            path.unlink()
        await client.send(QUESTION, [sent.json()["id"]])
        await until(lambda: any("did not arrive whole" in step["output"] for step in client.answers()))
        assert (await client.ask(QUESTION))["answer"]


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
