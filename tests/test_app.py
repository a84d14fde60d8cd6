"""The chat's door over its real socket, without a browser: reconnects, bad values, isolation, faults."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
import pytest
import socketio

from rag.lab.labels import Labels

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
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def url(scripted: ScriptedServer, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    environment = {
        "RAG_CACHE_DIR": str(cache),
        "RAG_SLM_BASE_URL": scripted.url, "RAG_SLM_MODEL": "small", "RAG_LLM_BASE_URL": scripted.url,
        "RAG_LLM_MODEL": "large", "RAG_DISCONNECT_GRACE_S": str(GRACE_S), "RAG_SLM_MAX_TOKENS": "8000",
    }  # fmt: skip
    with chat(free_port(), tmp_path_factory.mktemp("app") / "chat.log", **environment) as address:
        yield address


def copies(url: str, client: "Client") -> Path:
    """Where Chainlit keeps a session's uploads; each chat has a folder of its own, named by its port."""
    return ROOT / ".files" / url.rpartition(":")[2] / client.session_id


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
        self.receipts: dict[str, dict[str, Any]] = {}
        """Props of the receipts on the page, in their order."""
        self.thread_id = ""
        for event in ("new_message", "update_message"):
            self.socket.on(event, self.steps.append)
        self.socket.on("chat_settings", self.settings.append)
        self.socket.on("window_message", self.told.append)
        self.socket.on("resume_thread", self.threads.append)
        self.socket.on("element", self._element)
        self.socket.on("delete_message", lambda step: self._removed(step["id"]))
        self.socket.on("first_interaction", self._begun)

    def _element(self, element: dict[str, Any]) -> None:
        if element["name"] == "Receipt":
            self.receipts[element["id"]] = element["props"]

    def _removed(self, id: str) -> None:
        self.receipts = {key: props for key, props in self.receipts.items() if props["answer_id"] != id}

    def _begun(self, told: dict[str, Any]) -> None:
        self.thread_id = told["thread_id"]

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

    async def press(self, url: str, name: str, place: int = -1, **payload: Any) -> int:
        """A button of the receipt at that place. Returns the status of the answer to it."""
        payload = {"answer": list(self.receipts.values())[place]["answer_id"]} | payload
        return await self.act(url, {"name": name, "payload": payload})

    async def act(self, url: str, action: dict[str, Any]) -> int:
        async with httpx2.AsyncClient(trust_env=False) as http:
            pressed = {"sessionId": self.session_id, "action": action}
            return (await http.post(f"{url}/project/action", json=pressed, timeout=30)).status_code

    def offers(self) -> list[list[str]]:
        """What each receipt offers, but for trying again, which all do; first the thumb that is kept."""
        rows = []
        for props in self.receipts.values():
            assert props["offers"][-1] == "retry"
            rows.append([*filter(None, [props["kept"]]), *props["offers"][:-1]])
        return rows

    async def attach(self, url: str, name: str, data: bytes) -> None:
        before = len(self.answers())
        await self.send("", [await self.upload(url, name, data)])
        await until(lambda: name in self.documents() and bool(self.answers()[before:]), 60)

    def documents(self) -> list[str]:
        lists = [told["documents"] for told in self.told if told["smallfirst"] == "conversation"]
        return [document["source"] for document in lists[-1]]

    def totals(self) -> dict[str, Any]:
        return next(dict(told["totals"]) for told in reversed(self.told) if told["smallfirst"] == "totals")

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
async def connected(
    url: str, session_id: str | None = None, thread_id: str = "", *, as_chosen: bool = False
) -> AsyncIterator[Client]:
    """A new conversation begins with the mode Auto, whatever another test chose, unless it is to be `as_chosen`."""
    client = Client(session_id or str(uuid4()))
    client.thread_id = thread_id
    auth = {
        "sessionId": client.session_id,
        "threadId": thread_id,
        "userEnv": "{}",
        "clientType": "webapp",
        "chatProfile": "",
    }
    await client.socket.connect(url, auth=auth, transports=["websocket"], socketio_path="/ws/socket.io")
    try:
        await client.socket.emit("connection_successful")
        if session_id is None:
            await until(lambda: bool(client.settings))
        if not (session_id or thread_id or as_chosen):
            await client.socket.emit("chat_settings_change", {"mode": "auto"})
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


async def test_a_conversation_is_found_again_by_its_thread(url: str, scripted: ScriptedServer) -> None:
    scripted.script = lambda model, _: "It must be oiled every 17 days."
    async with connected(url) as before:
        await before.attach(url, "manual.md", MANUAL)
        await before.ask(OILED)
        await until(lambda: bool(before.receipts))
        shown = list(before.receipts.values())
    async with connected(url, thread_id=before.thread_id) as after:
        await until(lambda: bool(after.threads))
        assert after.documents() == ["manual.md"]
        assert [step["output"] for step in after.threads[0]["steps"] if step["type"] == "user_message"] == ["", OILED]
        elements = after.threads[0]["elements"]
        assert {element["name"] for element in elements} == {"manual.md", "Attachments", "Receipt"}
        assert [element["props"] for element in elements if element["name"] == "Receipt"] == shown
        assert after.totals()["turns"] == 1
        assert (await after.ask(OILED))["hits"][0]["source"] == "manual.md"
        assert not (copies(url, before)).exists(), "the former session's copies are kept"


async def test_a_turn_under_way_is_kept_as_far_as_it_came(url: str, scripted: ScriptedServer) -> None:
    scripted.script = lambda model, _: None
    scripted.reset()
    async with connected(url) as before:
        await before.send(QUESTION)
        await asyncio.to_thread(scripted.asked.wait, 20)
    async with connected(url, thread_id=before.thread_id) as after:
        await until(lambda: bool(after.threads))
        assert "*Stopped.*" in after.threads[0]["steps"][-1]["output"]
        assert await asyncio.to_thread(scripted.hung_up.wait, 20)


async def test_a_page_cannot_say_what_is_not_meant_for_it(url: str, scripted: ScriptedServer) -> None:
    scripted.script = lambda model, _: "It must be oiled every 17 days."
    async with connected(url) as mine:
        await mine.attach(url, "manual.md", MANUAL)
    async with connected(url) as other:
        for message in (None, 7, "list", ["list"], {}, {"smallfirst": None}, {"smallfirst": "remove", "number": "1"}):
            await other.say(message)
        before = len(other.told)
        await other.say({"smallfirst": "list"})
        await until(lambda: len(other.told) > before)
        assert other.documents() == []
        assert "manual.md" not in str((await other.ask(OILED))["hits"])


async def test_a_new_chat_begins_without_documents(url: str, scripted: ScriptedServer) -> None:
    async with connected(url) as before:
        await before.attach(url, "manual.md", MANUAL)
        assert copies(url, before).is_dir()
        await before.begin_anew()
        await until(lambda: not (copies(url, before)).exists())
    async with connected(url) as after:
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
    assert not (copies(url, before)).exists()


async def test_a_tab_whose_conversation_went_elsewhere_is_told(url: str, scripted: ScriptedServer) -> None:
    async with connected(url) as first:
        await first.attach(url, "manual.md", MANUAL)
        async with connected(url, thread_id=first.thread_id) as second:
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
        for path in (copies(url, client)).iterdir():
            path.unlink()
        await client.send(QUESTION, [id])
        await until(lambda: any("did not arrive whole" in step["output"] for step in client.answers()))
        assert (await client.ask(QUESTION))["answer"]


def kept(cache: Path, turn: dict[str, Any]) -> list[str]:
    with closing(Labels(cache / "labels.sqlite")) as labels:
        return [row["kind"] for row in labels if row["question"] == turn["question"]]


async def test_a_thumb_is_kept_replaced_and_taken_back(url: str, scripted: ScriptedServer, cache: Path) -> None:
    scripted.script = lambda model, _: "The largest file is 10 MB."
    async with connected(url) as client:
        turn = await client.ask("What is the largest file that I can drop in?")
        await until(lambda: client.offers() == [["ask_larger"]])
        for press, row, said in (("good", ["good"], ["good"]), ("bad", ["bad"], ["bad"]), ("bad", [], [])):
            assert await client.press(url, press) == 200
            await until(lambda wanted=[[*row, "ask_larger"]]: client.offers() == wanted)  # type: ignore[misc]
            assert kept(cache, turn) == said


async def test_a_thumb_can_have_a_word(url: str, scripted: ScriptedServer, cache: Path) -> None:
    scripted.script = lambda model, _: "The largest file is 10 MB."
    async with connected(url) as client:
        turn = await client.ask("What is the very largest file?")
        await until(lambda: bool(client.receipts))
        assert await client.press(url, "comment", comment="before a thumb") == 200
        assert kept(cache, turn) == []
        await client.press(url, "bad")
        for comment in (7, None, ["x"]):
            assert await client.press(url, "comment", comment=comment) == 200
        await client.press(url, "comment", comment="  It is\n20 MB. " + "x" * 1000)
        await until(lambda: list(client.receipts.values())[-1]["comment"].startswith("It is 20 MB. xx"))
        with closing(Labels(cache / "labels.sqlite")) as labels:
            (row,) = [row for row in labels if row["question"] == turn["question"]]
        assert row["kind"] == "bad"
        assert row["comment"].startswith("It is 20 MB. xx")
        assert len(row["comment"]) == 500
    async with connected(url, thread_id=client.thread_id) as after:
        await until(lambda: bool(after.threads))
        (receipt,) = [one["props"] for one in after.threads[0]["elements"] if one["name"] == "Receipt"]
        assert (receipt["kept"], receipt["comment"]) == ("bad", row["comment"])


async def test_the_larger_model_is_asked_the_same_question(url: str, scripted: ScriptedServer, cache: Path) -> None:
    asked: list[str] = []
    scripted.script = lambda model, _: asked.append(model) or "The largest file is 10 MB."  # type: ignore[func-returns-value]
    async with connected(url) as client:
        await client.socket.emit("chat_settings_change", {"mode": "slm"})
        first = await client.ask("What is the largest file that can be dropped?")
        await until(lambda: client.offers() == [["ask_larger"]])
        (receipt,) = client.receipts.values()
        assert receipt["larger"] == {"model": "large", "where": "on this machine", "leaves": False}
        assert await client.press(url, "ask_larger") == 200
        await until(lambda: len(client.turns()) == 2)
        second = client.turns()[-1]
        assert (second["question"], second["mode"], second["model"]) == (first["question"], "llm", "large")
        assert asked == ["small", "large"]
        await until(lambda: client.offers() == [[], []])
        assert kept(cache, first) == ["asked_larger"]
        assert await client.press(url, "ask_larger", 0) == 200, "from a page that has not seen yet that it is gone"
        assert (await client.ask(QUESTION))["mode"] == "slm", "the conversation's mode stays"
        assert asked == ["small", "large", "small"]


async def test_an_answer_of_the_larger_model_does_not_offer_it(url: str, scripted: ScriptedServer) -> None:
    scripted.script = lambda model, _: "The largest file is 10 MB." if model == "large" else "It is 999 MB."
    async with connected(url) as client:
        assert (await client.ask(QUESTION))["escalated"]
        await client.socket.emit("chat_settings_change", {"mode": "llm"})
        assert not (await client.ask(QUESTION))["escalated"]
        await until(lambda: client.offers() == [["keep_short"], []])


async def test_the_short_answer_can_be_kept_and_is_what_the_models_see(url: str, scripted: ScriptedServer) -> None:
    seen: list[str] = []

    def script(model: str, question: str) -> str:
        seen.append(question)
        return "The largest file is 10 MB." if model == "large" else "It is 999 MB."

    scripted.script = script
    async with connected(url) as client:
        await client.ask(QUESTION)
        await until(lambda: client.offers() == [["keep_short"]])
        assert await client.press(url, "keep_short") == 200
        await until(lambda: client.offers() == [["ask_larger"]])
        assert client.answers()[-1]["output"].startswith("It is 999 MB.")
        assert client.turns()[-1]["standing"] == "slm"
        assert client.turns()[-1]["model"] == "small"
        assert await client.press(url, "keep_short") == 200, "twice is once"
    async with connected(url, thread_id=client.thread_id) as after:
        await until(lambda: bool(after.threads))
        answers = [step for step in after.threads[0]["steps"] if step["type"] == "assistant_message"]
        assert [step["output"].split(" [")[0] for step in answers] == ["It is 999 MB."]


async def test_an_answer_can_be_tried_again_and_takes_the_former_ones_place(url: str, scripted: ScriptedServer) -> None:
    answers = iter(["The largest file is 10 MB.", "It is 10 MB.", "The largest is 10 MB."])
    scripted.script = lambda model, _: next(answers)
    async with connected(url) as client:
        await client.socket.emit("chat_settings_change", {"mode": "slm"})
        await client.ask(QUESTION)
        await until(lambda: len(client.receipts) == 1)
        first = list(client.receipts)
        assert await client.press(url, "retry") == 200
        await until(lambda: len(client.receipts) == 1 and list(client.receipts) != first)
        assert client.turns()[-1]["answer"].startswith("It is 10 MB.")
        assert client.totals()["turns"] == 1
        await client.ask("And the largest file that can be dropped?")
    async with connected(url, thread_id=client.thread_id) as after:
        await until(lambda: bool(after.threads))
        written = [
            step["output"].split(" [")[0] for step in after.threads[0]["steps"] if step["type"] == "assistant_message"
        ]
        assert written == ["It is 10 MB.", "The largest is 10 MB."]


async def test_what_was_stopped_or_failed_can_be_tried_again(url: str, scripted: ScriptedServer) -> None:
    scripted.script = lambda model, _: None
    scripted.reset()
    async with connected(url) as client:
        await client.socket.emit("chat_settings_change", {"mode": "slm"})
        await client.send(QUESTION)
        await asyncio.to_thread(scripted.asked.wait, 20)
        await client.socket.emit("stop")
        await until(lambda: client.offers() == [[]])
        assert await asyncio.to_thread(scripted.hung_up.wait, 20)
        scripted.script = lambda model, _: ""
        await client.press(url, "retry")
        await until(lambda: any("answer" in step["output"] and step["isError"] for step in client.answers()), 60)
        scripted.script = lambda model, _: "The largest file is 10 MB."
        await client.press(url, "retry")
        await until(lambda: bool(client.turns()), 60)


async def test_a_second_press_and_a_running_turn_do_nothing_and_stop_ends_it(
    url: str, scripted: ScriptedServer
) -> None:
    asked: list[str] = []
    scripted.script = lambda model, _: asked.append(model) or (None if model == "large" else "It is 10 MB.")  # type: ignore[func-returns-value]
    scripted.reset()
    async with connected(url) as client:
        await client.socket.emit("chat_settings_change", {"mode": "slm"})
        await client.ask(QUESTION)
        await until(lambda: client.offers() == [["ask_larger"]])
        statuses = await asyncio.gather(*(client.press(url, "ask_larger", 0) for _ in range(5)))
        assert set(statuses) == {200}
        await until(lambda: "large" in asked)
        assert await client.press(url, "good", 0) == 200, "a thumb does not wait"
        await client.socket.emit("stop")
        assert await asyncio.to_thread(scripted.hung_up.wait, 20)
        await until(lambda: any("*Stopped.*" in step["output"] for step in client.answers()))
        await until(lambda: client.offers() == [["good", "ask_larger"], []])
        assert asked == ["small", "large"]
        scripted.script = lambda model, _: "The largest file is 10 MB."
        assert await client.press(url, "ask_larger", 0) == 200
        await until(lambda: len(client.turns()) == 2)


async def test_a_closed_tab_ends_the_larger_models_work(url: str, scripted: ScriptedServer) -> None:
    scripted.script = lambda model, _: None if model == "large" else "The largest file is 10 MB."
    async with connected(url) as client:
        await client.socket.emit("chat_settings_change", {"mode": "slm"})
        await client.ask(QUESTION)
        await until(lambda: client.offers() == [["ask_larger"]])
        scripted.reset()
        await client.press(url, "ask_larger")
        await asyncio.to_thread(scripted.asked.wait, 20)
    assert await asyncio.to_thread(scripted.hung_up.wait, GRACE_S * 10)


async def test_where_the_documents_seem_silent_the_larger_model_may_be_asked_anyway(
    url: str, scripted: ScriptedServer
) -> None:
    scripted.script = lambda model, _: "I do not know."
    async with connected(url) as client:
        turn = await client.ask("Which zebra file won the Uruguayan regatta?")
        assert turn["refused"]
        assert turn["drafts"] == []
        assert turn["hits"], "of the corpus, something shares a word"
        await until(lambda: client.offers() == [["ask_larger"]])
        await client.press(url, "ask_larger")
        await until(lambda: len(client.turns()) == 2)
        assert [draft["leg"] for draft in client.turns()[-1]["drafts"]] == ["llm"]
        await until(lambda: client.offers() == [[], []]), "it has refused: there is nothing more to ask"


async def test_where_nothing_was_found_there_is_nothing_to_ask_about(url: str, scripted: ScriptedServer) -> None:
    async with connected(url) as client:
        assert (await client.ask("Qwzxv plorfk?"))["hits"] == []
        await until(lambda: client.offers() == [[]])


async def test_buttons_come_back_after_a_reload_and_work(url: str, scripted: ScriptedServer, cache: Path) -> None:
    scripted.script = lambda model, _: "The largest file is 10 MB."
    async with connected(url) as before:
        await before.socket.emit("chat_settings_change", {"mode": "slm"})
        turn = await before.ask("What is the largest file to be dropped?")
        await until(lambda: before.offers() == [["ask_larger"]])
        await before.press(url, "good")
        await until(lambda: before.offers() == [["good", "ask_larger"]])
    async with connected(url, thread_id=before.thread_id) as after:
        await until(lambda: bool(after.threads))
        for element in after.threads[0]["elements"]:
            after._element(element)
        assert after.offers() == [["good", "ask_larger"]]
        assert await before.press(url, "bad") in (200, 404), "the page that is no more"
        assert await after.press(url, "bad") == 200
        await until(lambda: after.offers() == [["bad", "ask_larger"]])
        assert kept(cache, turn) == ["bad"]
        await after.press(url, "ask_larger")
        await until(lambda: bool(after.turns()))
        assert after.turns()[-1]["mode"] == "llm"


async def test_the_models_see_the_conversation_as_it_stands_after_an_edit(url: str, scripted: ScriptedServer) -> None:
    scripted.script = lambda model, _: "The largest file is 10 MB."
    async with connected(url) as before:
        await before.socket.emit("chat_settings_change", {"mode": "llm"})
        await before.ask(f"{QUESTION} First.")
        await before.ask(f"{QUESTION} Second.")
        await before.ask(f"{QUESTION} Third.")
    async with connected(url, thread_id=before.thread_id) as after:
        await until(lambda: bool(after.threads))
        second = next(step for step in after.threads[0]["steps"] if step["output"].endswith("Second."))
        scripted.reset()
        edited = {"message": {**second, "output": f"{QUESTION} Edited."}}
        await after.socket.emit("edit_message", edited)
        await until(lambda: bool(after.turns()))
        sent = str(scripted.messages[-1])
        assert "First." in sent
        assert "Edited." in sent
        assert "Second." not in sent
        assert "Third." not in sent
        await until(lambda: after.totals()["turns"] == 2)
    async with connected(url, thread_id=before.thread_id) as again:
        await until(lambda: bool(again.threads))
        asked = [
            step["output"].rpartition(" ")[2] for step in again.threads[0]["steps"] if step["type"] == "user_message"
        ]
        assert asked == ["First.", "Edited."]


@pytest.mark.parametrize("payload", [{}, {"answer": None}, {"answer": ["x"]}, {"answer": str(uuid4())}])
async def test_a_button_that_never_was_does_nothing(
    url: str, scripted: ScriptedServer, cache: Path, payload: dict[str, Any]
) -> None:
    async with connected(url) as client:
        for name in ("good", "bad", "comment", "ask_larger", "keep_short", "retry"):
            assert await client.act(url, {"name": name, "payload": payload}) == 200
        assert client.receipts == {}
        assert client.answers() == []


async def test_what_was_chosen_holds_for_the_users_next_conversation(url: str, scripted: ScriptedServer) -> None:
    scripted.script = lambda model, _: "The largest file is 10 MB."
    async with connected(url) as before:
        await before.socket.emit("chat_settings_change", {"mode": "slm", "show_receipts": False})
        assert (await before.ask(QUESTION))["mode"] == "slm"
        await until(lambda: bool(before.receipts))
        assert not next(iter(before.receipts.values()))["shown"]
    async with connected(url, as_chosen=True) as after:
        initial = {widget["id"]: widget["initial"] for widget in after.settings[-1]}
        assert (initial["mode"], initial["show_receipts"]) == ("slm", False)
        assert (await after.ask(QUESTION))["mode"] == "slm"
        await after.socket.emit("chat_settings_change", {"mode": "auto", "show_receipts": True})
        await until(lambda: any(receipt["shown"] for receipt in after.receipts.values()))
    async with connected(url, thread_id=before.thread_id) as again:
        await until(lambda: bool(again.settings))
        initial = {widget["id"]: widget["initial"] for widget in again.settings[-1]}
        assert (initial["mode"], initial["show_receipts"]) == ("slm", False), "a conversation keeps its own"


# Each of the following has a process of its own.


async def test_a_model_elsewhere_is_asked_only_after_leave(scripted: ScriptedServer, tmp_path: Path) -> None:
    """The host does not exist; a proxy on this machine, which is the scripted server, answers for it."""
    asked: list[str] = []
    scripted.script = lambda model, _: asked.append(model) or "It is 999 MB."  # type: ignore[func-returns-value]
    environment = {
        "RAG_SLM_BASE_URL": scripted.url, "RAG_SLM_MODEL": "small", "RAG_LLM_BASE_URL": "http://models.invalid/v1",
        "RAG_LLM_MODEL": "large", "HTTP_PROXY": scripted.url.removesuffix("/v1"), "RAG_CACHE_DIR": str(tmp_path),
    }  # fmt: skip
    with chat(free_port(), tmp_path / "chat.log", **environment) as address:
        async with connected(address) as client:
            turn = await client.ask(QUESTION)
            assert turn["model"] == "small"
            assert "models.invalid" in turn["notes"][0]
            await client.socket.emit("chat_settings_change", {"mode": "llm"})
            assert (await client.ask(QUESTION))["model"] == "small", "to choose the mode is not to give leave"
            assert set(asked) == {"small"}
            await until(lambda: len(client.receipts) == 2)
            receipt = next(iter(client.receipts.values()))
            assert receipt["larger"] == {"model": "large", "where": "models.invalid", "leaves": True}
            assert "ask_larger" in receipt["offers"]
            await client.press(address, "ask_larger", 0)
            await until(lambda: len(client.turns()) == 3)
            assert client.turns()[-1]["where"] == "models.invalid"
            assert (await client.ask(QUESTION))["model"] == "large", "leave was given for this conversation"
        asked.clear()
        async with connected(address) as other:
            assert (await other.ask(QUESTION))["model"] == "small", "and for no other"
            assert set(asked) == {"small"}
            await other.socket.emit("chat_settings_change", {"allow_remote": True, "local_only": False})
            assert (await other.ask(QUESTION))["model"] == "large"
            await other.socket.emit("chat_settings_change", {"local_only": True})
            asked.clear()
            assert (await other.ask(QUESTION))["model"] == "small"
            assert set(asked) == {"small"}
            await until(lambda: len(other.receipts) == 3)
            assert other.offers()[-1] == [], "what is locked is not offered"
            await other.act(
                address, {"name": "ask_larger", "payload": {"answer": list(other.receipts.values())[-1]["answer_id"]}}
            )
            assert set(asked) == {"small"}


async def test_what_a_session_holds_in_memory_ends_with_it_and_comes_back_from_the_history(
    scripted: ScriptedServer, tmp_path: Path
) -> None:
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
            folder = copies(address, before)
            assert folder.is_dir()
        await until(lambda: not folder.exists())
        async with connected(address, thread_id=before.thread_id) as after:
            await until(lambda: bool(after.threads))
            assert after.documents() == ["manual.md"], "from the history"


async def test_without_labels_there_are_no_thumbs_and_nothing_is_kept(scripted: ScriptedServer, tmp_path: Path) -> None:
    scripted.script = lambda model, _: "The largest file is 10 MB."
    environment = {
        "RAG_SLM_BASE_URL": scripted.url, "RAG_LLM_BASE_URL": scripted.url, "RAG_LABELS": "false",
        "RAG_CACHE_DIR": str(tmp_path / "cache"),
    }  # fmt: skip
    with chat(free_port(), tmp_path / "chat.log", **environment) as address:
        async with connected(address) as client:
            await client.ask(QUESTION)
            await until(lambda: client.offers() == [["ask_larger"]])
            assert not next(iter(client.receipts.values()))["labels"]
            assert await client.press(address, "good") == 200
            await client.press(address, "ask_larger")
            await until(lambda: len(client.turns()) == 2)
    assert not (tmp_path / "cache" / "labels.sqlite").exists()


async def test_a_label_that_cannot_be_kept_is_said_so(scripted: ScriptedServer, tmp_path: Path) -> None:
    scripted.script = lambda model, _: "The largest file is 10 MB."
    (tmp_path / "cache" / "labels.sqlite").mkdir(parents=True)
    environment = {
        "RAG_SLM_BASE_URL": scripted.url, "RAG_LLM_BASE_URL": scripted.url, "RAG_CACHE_DIR": str(tmp_path / "cache"),
    }  # fmt: skip
    log = tmp_path / "chat.log"
    with chat(free_port(), log, **environment) as address:
        async with connected(address) as client:
            toasts: list[Any] = []
            client.socket.on("toast", toasts.append)
            await client.ask(QUESTION)
            await until(lambda: bool(client.receipts))
            await client.press(address, "good")
            await until(lambda: bool(toasts))
            assert client.offers() == [["ask_larger"]]
            assert "labels.sqlite cannot be written" in log.read_text()


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
