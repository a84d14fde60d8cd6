"""Who gets in, over real HTTP and the real socket; and what two users who are in can do to each other: nothing.

The servers are processes of their own with Chainlit, the Gate, the Door and the history of this project in them, and an
echo in the place of the models.
"""

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
import jwt
import pytest
import socketio
from socketio.exceptions import ConnectionError as Refused

from rag.errors import UserError
from rag.serve.login import OPEN, carrying, check
from rag.serve.secret import SECRET_BYTES, secret
from rag.serve.users import Users
from rag.serve.visitors import Tries, network
from rag.settings import Settings

from .conftest import until
from .product import ROOT, chat, client_message, free_port, signed_in

USERS = {"anna": "correct horse", "bo": "another good one", "carl": "a third password", "dora": "the fourth of them"}

APP = """
import json
import chainlit as cl
from pathlib import Path
from chainlit.server import app, sio
from fastapi import APIRouter
from rag.serve import history, login
from rag.serve.hardening import harden
from rag.settings import Settings

settings = Settings.load()
login.install(settings, app)
harden(app, sio, allowed_hosts=settings.allowed_hosts, allowed_origins=settings.allowed_origins)
kept = history.open_history(settings)
own = APIRouter()

@own.get("/status")
async def status():
    return {"is": "ready"}

@own.post("/v1/chat/completions")
async def completions():
    return {"object": "chat.completion"}

for router in (own, history.router(kept)):
    app.include_router(router)
    app.router.routes.insert(0, app.router.routes.pop())

@cl.data_layer
def layer():
    return kept

@cl.on_app_startup
async def tell():
    def all_of(routes):
        for route in routes:
            if hasattr(route, "path"):
                yield sorted(getattr(route, "methods", None) or ["GET"]), route.path
            else:
                yield from all_of(route.original_router.routes)

    Path("routes.json").write_text(json.dumps([*all_of(app.routes)]))

@cl.on_chat_start
async def begin():
    await cl.send_window_message({"began": cl.context.session.thread_id})

@cl.on_chat_resume
async def resume(thread):
    await cl.send_window_message({"resumed": thread["id"]})

@cl.on_message
async def answer(message):
    if message.content == "count":
        counting = cl.Message("")
        for number in range(1000):
            await counting.stream_token(f"{number} ")
            await cl.sleep(0.02)
    await cl.Message(f"You said {message.content}.", elements=[cl.CustomElement(name="Receipt", props={"a": 1})]).send()

@cl.action_callback("press")
async def press(action):
    await cl.Message("pressed").send()
"""


@dataclass(frozen=True)
class Server:
    folder: Path
    url: str

    @property
    def data(self) -> Path:
        return self.folder / "data"


@contextmanager
def running(folder: Path, port: int | None = None, **environment: str) -> Iterator[Server]:
    """The server as `chainlit run` starts it, until it is no longer needed. A folder that was used before is used on."""
    port = port or free_port()
    (folder / "app.py").write_text(APP)
    (folder / ".chainlit").mkdir(exist_ok=True)
    (folder / ".chainlit" / "config.toml").write_text(
        '[project]\nuser_session_timeout = 600\n[features]\n[UI]\nname = "t"\n[meta]\ngenerated_by = "2.12.0"\n'
    )
    everything = {
        **os.environ, "CHAINLIT_APP_ROOT": str(folder), "PYTHONPATH": str(ROOT), "RAG_DATA_DIR": str(folder / "data"), **environment,
    }  # fmt: skip
    command = [sys.executable, "-m", "chainlit", "run", "app.py", "-h", "--host", "127.0.0.1", "--port", str(port)]
    log = folder / "log"
    with (
        log.open("wb") as out,
        subprocess.Popen(command, cwd=folder, env=everything, stdout=out, stderr=out) as process,
    ):
        try:
            url = f"http://127.0.0.1:{port}"
            with httpx2.Client(trust_env=False) as client:
                while True:
                    assert process.poll() is None, log.read_text()
                    try:
                        client.get(f"{url}/health")
                        break
                    except httpx2.TransportError:
                        pass
            yield Server(folder, url)
        finally:
            process.kill()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """With passwords."""
    folder = tmp_path_factory.mktemp("site")
    for name, password in USERS.items():
        Users(folder / "data").add(name, password)
    with running(folder, RAG_LOGIN="password", RAG_ALLOWED_ORIGINS='["https://partner.example"]') as server:
        yield server


@pytest.fixture(scope="module")
def proxied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Behind a proxy that signs people in."""
    folder = tmp_path_factory.mktemp("proxied")
    with running(folder, RAG_LOGIN="header", RAG_LOGIN_HEADER="X-Person") as server:
        yield server


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """For this machine, and for a name that a proxy would come under."""
    folder = tmp_path_factory.mktemp("local")
    with running(folder, RAG_ALLOWED_HOSTS='["chat.example"]') as server:
        yield server


def browser(server: Server, headers: dict[str, str] | None = None) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(base_url=server.url, headers=headers or {}, timeout=30, trust_env=False)


async def cookie_of(server: Server, name: str, password: str | None = None) -> dict[str, str]:
    return await asyncio.to_thread(signed_in, server.url, name, password or USERS[name])


class Tab:
    """What a page does, spoken by hand."""

    def __init__(self, server: Server, headers: dict[str, str]) -> None:
        self.server = server
        self.headers = headers
        self.id = str(uuid4())
        self.socket = socketio.AsyncClient(reconnection=False)
        self.steps: list[dict[str, Any]] = []
        self.elements: list[dict[str, Any]] = []
        self.told: list[Any] = []
        self.reloads: list[None] = []
        self.tokens: list[str] = []
        for event in ("new_message", "update_message"):
            self.socket.on(event, self.steps.append)
        self.socket.on("element", self.elements.append)
        self.socket.on("window_message", self.told.append)
        self.socket.on("reload", lambda *_: self.reloads.append(None))
        self.socket.on("stream_token", self.tokens.append)
        self.socket.on("resume_thread_error", self.told.append)

    async def say(self, text: str, files: tuple[str, ...] = ()) -> None:
        """And wait for the answer."""
        before = len(self.answers())
        await self.socket.emit("client_message", client_message(text, files))
        await until(lambda: len(self.answers()) > before)

    def answers(self) -> list[str]:
        return [step["output"] for step in self.steps if step["type"] == "assistant_message" and step["output"]]

    @property
    def thread_id(self) -> str:
        return str(next(message["began"] for message in self.told if isinstance(message, dict) and "began" in message))

    async def upload(self, name: str = "note.md", content: bytes = b"# Note") -> str:
        async with browser(self.server, self.headers) as client:
            files = {"file": (name, content, "text/markdown")}
            sent = await client.post("/project/file", params={"session_id": self.id}, files=files)
        assert sent.status_code == 200, sent.text
        return str(sent.json()["id"])


@asynccontextmanager
async def tab(
    server: Server, headers: dict[str, str], session_id: str | None = None, thread_id: str = "", *, waits: bool = True
) -> AsyncIterator[Tab]:
    here = Tab(server, headers)
    here.id = session_id or here.id
    auth = {"sessionId": here.id, "threadId": thread_id, "userEnv": "{}", "clientType": "webapp", "chatProfile": ""}
    try:
        await here.socket.connect(
            server.url, dict(headers), auth=auth, transports=["websocket"], socketio_path="/ws/socket.io"
        )
        await here.socket.emit("connection_successful")
        if waits:
            await until(lambda: bool(here.told))
        yield here
    finally:
        await here.socket.disconnect()


async def threads_of(client: httpx2.AsyncClient, **wanted: Any) -> list[dict[str, Any]]:
    answer = await client.post("/project/threads", json={"pagination": {"first": 50}, "filter": wanted})
    assert answer.status_code == 200, answer.text
    return list(answer.json()["data"])


async def eventually(condition: Callable[[], Any], limit_s: float = 20) -> Any:
    async with asyncio.timeout(limit_s):
        while not (found := await condition()):
            await asyncio.sleep(0.02)
    return found


# --- Nobody is signed in ----------------------------------------------------------------------------------------------


async def test_whoever_is_not_signed_in_gets_the_page_that_asks_and_nothing_else(site: Server) -> None:
    """Every route that the server has, Chainlit's and ours, whatever they will be."""
    routes = json.loads((site.folder / "routes.json").read_text())
    assert {"/project/threads", "/v1/chat/completions", "/status"} <= {path for _, path in routes}
    async with browser(site) as client:
        for methods, path in routes:
            address = re.sub(r"\{[^}]*\}", str(uuid4()), path)
            for method in methods:
                answer = await client.request(method, address, json={})
                if OPEN.fullmatch(address):
                    assert answer.status_code != 401, (method, path)
                elif answer.status_code == 303:
                    assert answer.headers["location"] == "/login", (method, path)
                else:
                    # The Gate stands before the Door; an upload that names no session comes no further.
                    refused = 400 if (method, path) == ("POST", "/project/file") else 401
                    assert answer.status_code in (refused, 404), (method, path, answer.status_code)
                    text = '{"detail":"Sign in first."}', '{"detail":"Not found"}'
                    assert refused == 400 or method == "HEAD" or answer.text in text or path.startswith("/v1/"), path


def test_what_is_open_is_the_page_that_asks_and_what_it_is_made_of() -> None:
    for path in (
        "/login",
        "/logout",
        "/auth/config",
        "/auth/header",
        "/health",
        "/assets/index.js",
        "/public/a.css",
        "/words",
    ):
        assert OPEN.fullmatch(path), path
    for path in (
        "/", "/user", "/status", "/v1/models", "/history/a/b", "/source", "/project/settings", "/project/file/x", "/login/x",
        "/status/../login", "/public", "/auth/jwt", "/public/\n", "//login", "/avatarsx", "/project/translations/x",
    ):  # fmt: skip
        assert not OPEN.fullmatch(path), path


async def test_the_socket_is_for_those_who_are_signed_in(site: Server) -> None:
    for headers in ({}, {"Cookie": "access_token=x"}, {"Cookie": "access_token="}):
        with pytest.raises(Refused):
            async with tab(site, headers):
                pass
    async with tab(site, await cookie_of(site, "anna")) as anna:
        await anna.say("hello")
        assert anna.answers() == ["You said hello."]


async def test_a_page_of_an_allowed_origin_may_ask_what_it_may_do(site: Server) -> None:
    asking = {"Origin": "https://partner.example", "Access-Control-Request-Method": "POST"}
    async with browser(site, asking) as client:
        assert (await client.options("/project/threads")).status_code == 200
        assert (await client.post("/project/threads", json={})).status_code == 401


# --- Signing in -------------------------------------------------------------------------------------------------------


async def sign_in(server: Server, name: str, password: str, address: str, **headers: str) -> httpx2.Response:
    """As the page does, from an address of one's own."""
    async with browser(server, {"X-Forwarded-For": address, **headers}) as client:
        return await client.post("/login", data={"username": name, "password": password})


async def test_a_wrong_password_and_an_unknown_name_are_told_the_same(site: Server) -> None:
    wrong = await sign_in(site, "anna", "wrong", "10.0.0.1")
    unknown = await sign_in(site, "nobody", "wrong", "10.0.0.1")
    empty = await sign_in(site, "\ud7ff", "\u0000", "10.0.0.1")
    assert (wrong.status_code, wrong.json()) == (401, {"detail": "The name or the password is wrong."})
    assert (unknown.status_code, unknown.content) == (wrong.status_code, wrong.content)
    assert (empty.status_code, empty.content) == (wrong.status_code, wrong.content)
    assert "set-cookie" not in wrong.headers
    assert (await sign_in(site, "anna", USERS["anna"], "10.0.0.1")).status_code == 200


async def test_a_form_that_is_none_is_refused(site: Server) -> None:
    async with browser(site) as client:
        assert (await client.post("/login", json={"username": "anna", "password": USERS["anna"]})).status_code == 422
        assert (await client.post("/login", content=b"\xff\xfe")).status_code == 422


async def test_the_cookie_is_not_for_scripts_nor_for_other_sites_and_over_tls_only_for_tls(site: Server) -> None:
    def crumb(answer: httpx2.Response) -> Any:
        return next(iter(SimpleCookie(answer.headers["set-cookie"]).values()))

    plain = crumb(await sign_in(site, "anna", USERS["anna"], "10.0.0.2"))
    assert (plain["httponly"], plain["samesite"], plain["max-age"], plain["secure"]) == (True, "lax", "600", "")
    tls = crumb(await sign_in(site, "anna", USERS["anna"], "10.0.0.2", **{"X-Forwarded-Proto": "https"}))
    assert (tls["httponly"], tls["samesite"], tls["secure"]) == (True, "lax", True)


async def test_a_name_is_one_user_however_it_is_typed(site: Server) -> None:
    async with browser(site, await cookie_of(site, " ＡNNA", USERS["anna"])) as client:
        assert (await client.get("/user")).json()["identifier"] == "anna"


async def test_a_program_sends_the_token_instead_of_the_cookie(site: Server) -> None:
    token = (await cookie_of(site, "anna"))["Cookie"].partition("=")[2]
    async with browser(site) as client:
        refused = await client.post("/v1/chat/completions", json={})
        assert refused.status_code == 401
        assert refused.json()["error"]["message"] == "Sign in first."
        assert refused.headers["www-authenticate"] == "Bearer"
        for headers in ({"Authorization": f"Bearer {token}"}, {"Cookie": f"access_token={token}"}):
            assert (await client.post("/v1/chat/completions", headers=headers, json={})).status_code == 200
            assert (await client.get("/status", headers=headers)).json() == {"is": "ready"}
            assert (await client.get("/user", headers=headers)).json()["identifier"] == "anna"
        for wrong in (f"Basic {token}", f"Bearer {token}x", "Bearer", token):
            assert (await client.get("/status", headers={"Authorization": wrong})).status_code == 401, wrong


async def test_a_forged_token_is_refused(site: Server) -> None:
    token = (await cookie_of(site, "anna"))["Cookie"].partition("=")[2]
    kept = secret(site.data)
    claims = jwt.decode(token, kept, algorithms=["HS256"])
    forged = {
        "another secret": jwt.encode(claims, "x" * 32, "HS256"),
        "no signature": jwt.encode(claims, None, "none"),
        "another algorithm": jwt.encode(claims, kept, "HS512"),
        "expired": jwt.encode({**claims, "exp": 1_000_000_000}, kept, "HS256"),
        "without an end": jwt.encode({key: claims[key] for key in claims if key != "exp"}, kept, "HS256"),
        "another name": jwt.encode({**claims, "identifier": "bo"}, kept, "HS256"),
        "nobody's name": jwt.encode({**claims, "identifier": "nobody"}, kept, "HS256"),
        "of a chat for one machine": jwt.encode({**claims, "identifier": "local", "metadata": {}}, kept, "HS256"),
        "of a nobody without a generation": jwt.encode(
            {**claims, "identifier": "nobody", "metadata": {"generation": None}}, kept, "HS256"
        ),
        "odd": jwt.encode({**claims, "metadata": [1]}, kept, "HS256"),
    }
    async with browser(site) as client:
        for what, value in forged.items():
            assert (await client.get("/user", headers={"Cookie": f"access_token={value}"})).status_code == 401, what
            with pytest.raises(Refused):
                async with tab(site, {"Cookie": f"access_token={value}"}):
                    pass
        good = jwt.encode(claims, kept, "HS256")
        assert (await client.get("/user", headers={"Cookie": f"access_token={good}"})).status_code == 200


async def test_signing_out_takes_the_cookie_away(site: Server) -> None:
    async with browser(site, await cookie_of(site, "anna")) as client:
        answer = await client.post("/logout")
    assert answer.status_code == 200
    assert 'access_token=""' in answer.headers["set-cookie"]
    assert "Max-Age=0" in answer.headers["set-cookie"]


async def test_after_some_wrong_tries_a_name_must_wait_and_others_need_not(site: Server) -> None:
    tried = [await sign_in(site, "dora", "wrong", f"10.1.0.{number}") for number in range(5)]
    assert [answer.status_code for answer in tried] == [401] * 5
    waits = await sign_in(site, "ＤORA", "wrong", "10.1.0.9", **{"Accept-Language": "de"})
    assert waits.status_code == 429
    assert re.fullmatch(r"Too many tries\. Wait \d+ seconds?, then try again\.", waits.json()["detail"])
    assert int(waits.headers["retry-after"]) > 0
    assert (await sign_in(site, "anna", USERS["anna"], "10.1.0.1")).status_code == 200
    async with asyncio.timeout(60):
        while (answer := await sign_in(site, "dora", USERS["dora"], "10.1.0.9")).status_code == 429:
            await asyncio.sleep(0.1)
    assert answer.status_code == 200
    assert [(await sign_in(site, "dora", "wrong", "10.1.0.1")).status_code for _ in range(2)] == [401, 401], "anew"


async def test_tries_at_the_same_time_are_counted_too(site: Server) -> None:
    answers = await asyncio.gather(*(sign_in(site, "nobody here", "wrong", f"10.2.0.{n}") for n in range(20)))
    assert sorted(answer.status_code for answer in answers) == [401] * 5 + [429] * 15


async def test_after_many_wrong_tries_an_address_must_wait_whatever_names_it_tries(site: Server) -> None:
    for number in range(20):
        assert (await sign_in(site, f"nobody{number}", "wrong", "2001:db8::1")).status_code == 401
    assert (await sign_in(site, "carl", USERS["carl"], "2001:db8::ffff")).status_code == 429, "the same network"
    assert (await sign_in(site, "carl", USERS["carl"], "2001:db8:1::1")).status_code == 200


async def test_a_link_to_a_conversation_or_page_survives_signing_in(site: Server) -> None:
    thread_id = str(uuid4())
    async with browser(site) as client:
        asked = await client.get(f"/thread/{thread_id}")
        assert (asked.status_code, asked.headers["location"]) == (303, "/login")
        assert (await client.get("/login")).status_code == 200
        await client.post("/login", data={"username": "carl", "password": USERS["carl"]})
        cookies = "; ".join(f"{key}={value}" for key, value in client.cookies.items())
        # The page goes to / by itself, without asking the server; its socket is told to load it.
        async with tab(site, {"Cookie": cookies}) as carl:
            await until(lambda: bool(carl.reloads))
        there = await client.get("/")
        assert (there.status_code, there.headers["location"]) == (303, f"/thread/{thread_id}")
        assert (await client.get(f"/thread/{thread_id}")).status_code == 200
        assert (await client.get("/")).status_code == 200, "once"
    async with browser(site) as client:
        asked = await client.get("/ondevice")
        assert (asked.status_code, asked.headers["location"]) == (303, "/login")
        await client.post("/login", data={"username": "carl", "password": USERS["carl"]})
        there = await client.get("/")
        assert (there.status_code, there.headers["location"]) == (303, "/ondevice")
    async with browser(site) as client:
        for elsewhere in ("/thread/..%2f..%2fx", "/thread/https:%2f%2fevil.example", "/thread/", "/"):
            asked = await client.get(elsewhere)
            assert (asked.status_code, asked.headers.get("location")) != (200, None)
            assert "set-cookie" not in asked.headers
    forged = {"Cookie": f"{(await cookie_of(site, 'carl'))['Cookie']}; wanted-access_token=/evil.example"}
    async with browser(site, forged) as client:
        assert (await client.get("/")).status_code == 200


# --- Signed in no more ------------------------------------------------------------------------------------------------


@contextmanager
def guest(server: Server) -> Iterator[tuple[str, Users]]:
    users, name = Users(server.data), f"guest-{uuid4()}"
    users.add(name, "a good password")
    try:
        yield name, users
    finally:
        if name in users.names():
            users.remove(name)


@pytest.mark.parametrize("how", ["removed", "removed and added again", "another password"])
async def test_whoever_is_signed_in_no_more_is_out_at_once(site: Server, how: str) -> None:
    with guest(site) as (name, users):
        headers = await cookie_of(site, name, "a good password")
        async with tab(site, headers) as here, browser(site, headers) as client:
            await here.say("hello")
            assert (await client.get("/user")).status_code == 200
            gone = asyncio.Event()
            here.socket.on("disconnect", lambda *_: gone.set())

            if how == "another password":
                users.change(name, "another good one")
            else:
                users.remove(name)
            if how == "removed and added again":
                users.add(name, "a good password")

            for path in ("/user", "/status", "/project/settings", f"/project/file/{uuid4()}?session_id={here.id}"):
                assert (await client.get(path)).status_code == 401, path
            with pytest.raises(Refused):
                async with tab(site, headers):
                    pass
            await here.socket.emit("client_message", client_message("still here"))
            await asyncio.wait_for(gone.wait(), 20)
            assert here.reloads, "the page goes to where it can sign in"
            assert here.answers() == ["You said hello."]
        again = await sign_in(site, name, "a good password", "10.3.0.1")
        assert again.status_code == (200 if how == "removed and added again" else 401)

        if how == "removed":
            users.add(name, "another good one")
        password = "a good password" if how == "removed and added again" else "another good one"
        async with browser(site, await cookie_of(site, name, password)) as client:
            steps = (await client.get(f"/project/thread/{here.thread_id}")).json()["steps"]
        assert [step["output"] for step in steps if step["type"] == "user_message"] == ["hello"], "it was not heard"


async def test_an_answer_under_way_does_not_reach_whoever_is_signed_in_no_more(site: Server) -> None:
    with guest(site) as (name, users):
        async with tab(site, await cookie_of(site, name, "a good password")) as here:
            gone = asyncio.Event()
            here.socket.on("disconnect", lambda *_: gone.set())
            await here.socket.emit("client_message", client_message("count"))
            await until(lambda: len(here.tokens) > 5)
            users.remove(name)
            await asyncio.wait_for(gone.wait(), 20)
            assert len(here.tokens) < 1000


async def test_a_restart_signs_nobody_out(tmp_path: Path) -> None:
    Users(tmp_path / "data").add("anna", USERS["anna"])
    with running(tmp_path, RAG_LOGIN="password") as server:
        headers = await cookie_of(server, "anna")
    with running(tmp_path, RAG_LOGIN="password") as server:
        async with browser(server, headers) as client:
            assert (await client.get("/user")).json()["identifier"] == "anna"


# --- Two users --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Belongings:
    """What anna has: a conversation with a file and an element, in an open tab."""

    tab: Tab
    thread_id: str
    file_id: str
    element_id: str


@asynccontextmanager
async def belongings(server: Server) -> AsyncIterator[Belongings]:
    headers = await cookie_of(server, "anna")
    async with tab(server, headers) as here, browser(server, headers) as client:
        file_id = await here.upload()
        await here.say("a secret", (file_id,))
        await until(lambda: any(element["type"] == "custom" for element in here.elements))
        element = next(element for element in here.elements if element["type"] == "custom")

        async def kept() -> bool:
            answer = await client.get(f"/project/thread/{here.thread_id}/element/{element['id']}")
            return answer.status_code == 200 and answer.json() is not None

        await eventually(kept)
        yield Belongings(here, here.thread_id, file_id, element["id"])


async def test_a_conversation_is_its_users_alone(site: Server) -> None:
    async with (
        belongings(site) as hers,
        browser(site, hers.tab.headers) as anna,
        browser(site, await cookie_of(site, "bo")) as bo,
    ):
        thread = f"/project/thread/{hers.thread_id}"
        assert [thread["id"] for thread in await threads_of(anna)].count(hers.thread_id) == 1
        mine = (await anna.get("/user")).json()["id"]
        for wanted in ({}, {"search": "secret"}, {"userId": mine}, {"userId": mine, "search": "secret"}):
            assert hers.thread_id not in [thread["id"] for thread in await threads_of(bo, **wanted)], wanted

        assert (await anna.get(thread)).json()["userIdentifier"] == "anna"
        assert (await bo.get(thread)).status_code == 401
        assert (await bo.get(f"{thread}/element/{hers.element_id}")).status_code == 401
        assert (await anna.get(f"{thread}/element/{hers.element_id}")).json()["id"] == hers.element_id

        for method, body in (("PUT", {"threadId": hers.thread_id, "name": "mine now"}), ("DELETE", {"threadId": hers.thread_id})):  # fmt: skip
            assert (await bo.request(method, "/project/thread", json=body)).status_code == 401
        after = (await anna.get(thread)).json()
        assert after["name"] != "mine now"
        assert [step["output"] for step in after["steps"] if step["type"] == "user_message"] == ["a secret"]

        # What a conversation of his own would lend him: its elements are asked for by its own id only.
        async with tab(site, await cookie_of(site, "bo")) as his:
            await his.say("hello")

            async def kept() -> bool:
                return his.thread_id in [thread["id"] for thread in await threads_of(bo)]

            await eventually(kept)
            assert (await bo.get(f"/project/thread/{his.thread_id}/element/{hers.element_id}")).json() is None

        assert (await anna.put("/project/thread", json={"threadId": hers.thread_id, "name": "ours"})).status_code == 200
        assert (await anna.get(thread)).json()["name"] == "ours"
        assert (await anna.request("DELETE", "/project/thread", json={"threadId": hers.thread_id})).status_code == 200
        assert (await anna.get(thread)).status_code == 404


async def test_a_file_is_its_users_alone(site: Server) -> None:
    async with (
        belongings(site) as hers,
        browser(site, hers.tab.headers) as anna,
        browser(site, await cookie_of(site, "bo")) as bo,
    ):
        file, session = f"/project/file/{hers.file_id}", {"session_id": hers.tab.id}
        assert (await anna.get(file, params=session)).content == b"# Note"
        assert (await bo.get(file, params=session)).status_code == 401
        upload = {"file": ("other.md", b"# Other", "text/markdown")}
        assert (await bo.post("/project/file", params=session, files=upload)).status_code == 401
        async with browser(site) as nobody:
            assert (await nobody.post("/project/file", params=session, files=upload)).status_code == 401
            assert (await nobody.get(file, params=session)).status_code == 401
        async with tab(site, await cookie_of(site, "bo")) as his:
            assert (await bo.get(file, params={"session_id": his.id})).status_code == 404
            await his.say("hello", (hers.file_id,))
            assert his.elements == [element for element in his.elements if element["type"] == "custom"]
        stored = f"/history/{hers.thread_id}/{hers.file_id}"

        async def served() -> bool:
            return (await anna.get(stored)).status_code == 200

        await eventually(served)
        assert (await anna.get(stored)).content == b"# Note"
        assert (await bo.get(stored)).status_code == 404


async def test_a_session_is_its_users_alone(site: Server) -> None:
    async with (
        belongings(site) as hers,
        browser(site, hers.tab.headers) as anna,
        browser(site, await cookie_of(site, "bo")) as bo,
    ):
        press = {"sessionId": hers.tab.id, "action": {"name": "press", "payload": {}, "id": str(uuid4())}}
        before = len(hers.tab.answers())
        assert (await bo.post("/project/action", json=press)).status_code == 401
        assert (await anna.post("/project/action", json=press)).status_code == 200
        await until(lambda: len(hers.tab.answers()) > before)
        assert hers.tab.answers()[before:] == ["pressed"], "once"

        his_cookie = await cookie_of(site, "bo")
        with pytest.raises(Refused):
            async with tab(site, his_cookie, session_id=hers.tab.id):
                pass
        with pytest.raises(Refused):
            async with tab(site, his_cookie, thread_id=hers.thread_id):
                pass
        await hers.tab.say("still mine")
        assert hers.tab.answers()[-1] == "You said still mine."
        async with tab(site, hers.tab.headers, thread_id=hers.thread_id) as again:
            assert again.told == [{"resumed": hers.thread_id}]


async def test_a_conversation_that_is_not_kept_yet_cannot_be_joined(site: Server) -> None:
    """Chainlit asks the history whose it is; before its first message it is nowhere."""
    async with tab(site, await cookie_of(site, "anna")) as anna:
        his_cookie = await cookie_of(site, "bo")
        with pytest.raises(Refused):
            async with tab(site, his_cookie, thread_id=anna.thread_id):
                pass
        await anna.say("hello")
        with pytest.raises(Refused):
            async with tab(site, his_cookie, thread_id=anna.thread_id):
                pass
        async with tab(site, anna.headers, thread_id=anna.thread_id) as again:
            assert again.told == [{"resumed": anna.thread_id}]


async def test_a_message_with_the_id_of_anothers_message_does_not_take_its_place(site: Server) -> None:
    async with belongings(site) as hers, browser(site, hers.tab.headers) as anna:
        steps = (await anna.get(f"/project/thread/{hers.thread_id}")).json()["steps"]
        question = next(step for step in steps if step["type"] == "user_message")
        async with tab(site, await cookie_of(site, "bo")) as his:
            forged = client_message("overwritten")
            forged["message"] |= {"id": question["id"], "threadId": hers.thread_id, "parentId": question["parentId"]}
            await his.socket.emit("client_message", forged)
            await until(lambda: his.answers() == ["You said overwritten."])
            await his.socket.emit("edit_message", forged)
            await until(lambda: len(his.answers()) == 2)
            await his.say("after it")
        after = (await anna.get(f"/project/thread/{hers.thread_id}")).json()["steps"]
        assert [step["output"] for step in after] == [step["output"] for step in steps]


# --- A proxy signs people in ------------------------------------------------------------------------------------------


async def test_whom_the_proxy_names_is_in_and_nobody_else(proxied: Server) -> None:
    async with browser(proxied) as client:
        for path in ("/", "/login", "/user", "/status", "/assets/x.js", "/words", "/auth/config"):
            answer = await client.get(path)
            assert answer.status_code == 401, path
            assert "X-Person" in answer.json()["detail"]
        assert (await client.get("/health")).status_code == 200
        named = {"X-Person": "Zoë@example".encode()}
        assert (await client.get("/user", headers=named)).json()["identifier"] == "Zoë@example"
        assert (await client.get("/", headers=named)).status_code == 200
        assert (await client.get("/status", headers=named)).status_code == 200
        for odd in ("", "a\tb", "x" * 300, b"\xff"):
            assert (await client.get("/user", headers={"X-Person": odd})).status_code == 401, odd
        twice = [("X-Person", "anna"), ("x-person", "bo")]
        assert (await client.get("/user", headers=twice)).status_code == 401


async def test_the_proxy_is_believed_and_not_a_cookie(proxied: Server) -> None:
    async with browser(proxied) as client:
        answer = await client.post("/auth/header", headers={"X-Person": "anna"})
        assert answer.status_code == 200
        assert (await client.get("/user")).status_code == 401, "with anna's cookie alone"
        assert (await client.get("/user", headers={"X-Person": "bo"})).json()["identifier"] == "bo"
        assert (await client.get("/user", headers={"X-Person": "Bo"})).json()["identifier"] == "Bo"
    with pytest.raises(Refused):
        async with tab(proxied, {}):
            pass
    async with tab(proxied, {"X-Person": "anna"}) as anna:
        await anna.say("hello")
        with pytest.raises(Refused):
            async with tab(proxied, {"X-Person": "bo"}, thread_id=anna.thread_id):
                pass


# --- One machine ------------------------------------------------------------------------------------------------------


async def test_on_this_machine_nobody_is_asked_anything(local: Server) -> None:
    async with browser(local) as client:
        assert (await client.get("/")).status_code == 200
        assert (await client.get("/user")).json()["identifier"] == "local"
        assert (await client.get(f"/thread/{uuid4()}")).status_code == 200
        assert (await client.post("/v1/chat/completions", json={})).status_code == 200
        assert not client.cookies
        assert (await client.get("/user", headers={"Cookie": "access_token=stale"})).json()["identifier"] == "local"
        async with tab(local, {}) as here:
            await here.say("hello")
            assert (await client.get("/project/settings")).json()["dataPersistence"]

        async def kept() -> bool:
            return [thread["id"] for thread in await threads_of(client)] == [here.thread_id]

        await eventually(kept)


async def test_whoever_comes_through_a_proxy_is_not_this_machine(local: Server) -> None:
    for headers in (
        {"Host": "chat.example"},
        {"X-Forwarded-For": "192.0.2.7"},
        {"X-Forwarded-For": "192.0.2.7, 127.0.0.1"},
    ):
        async with browser(local, headers) as client:
            for path in ("/", "/user", "/status", "/login"):
                answer = await client.get(path)
                assert answer.status_code == 403, (headers, path)
                assert "RAG_LOGIN" in answer.json()["detail"]
            assert (await client.get("/health")).status_code == 200
        with pytest.raises(Refused):
            async with tab(local, headers):
                pass


# --- What is kept, and what the door counts with ----------------------------------------------------------------------


def settings(folder: Path, **more: Any) -> Settings:
    return Settings(_env_file=None, data_dir=folder, **more)  # type: ignore[call-arg]


def test_a_chat_for_everybody_or_nobody_does_not_start(tmp_path: Path) -> None:
    for host in ("127.0.0.1", "localhost", "::1"):
        check(settings(tmp_path), host)
    for host in ("0.0.0.0", "::", "192.168.0.7", "chat.example"):
        with pytest.raises(UserError, match=rf"{re.escape(host)} .*RAG_LOGIN=password.*smallfirst users add"):
            check(settings(tmp_path), host)
        check(settings(tmp_path, login="header"), host)
    with pytest.raises(UserError, match=r"no user in .*users\.json.*smallfirst users add"):
        check(settings(tmp_path, login="password"), "127.0.0.1")
    Users(tmp_path).add("anna", USERS["anna"])
    check(settings(tmp_path, login="password"), "0.0.0.0")
    for header in ("", "X Forwarded", "X-Forwarded-User:", "Ü"):
        with pytest.raises(UserError, match="RAG_LOGIN_HEADER"):
            check(settings(tmp_path, login="header", login_header=header), "0.0.0.0")


def test_two_chats_of_one_machine_do_not_sign_each_other_out(tmp_path: Path) -> None:
    """Browsers send all cookies to every port, and Chainlit deletes those that begin with its cookie's name."""
    models = {"RAG_SLM_BASE_URL": "http://127.0.0.1:9/v1", "RAG_LLM_BASE_URL": "http://127.0.0.1:9/v1"}
    port = free_port()
    with chat(port, tmp_path / "log", ready=False, users={"anna": USERS["anna"]}, RAG_CACHE_DIR=str(tmp_path), **models) as url:  # fmt: skip
        name, _, token = signed_in(url, "anna", USERS["anna"])["Cookie"].partition("=")
        assert str(port) in name
        others = {"access_token": "x", name.replace(str(port), str(port)[:-1]): "x", f"x{name}": "x"}
        with httpx2.Client(base_url=url, cookies={**others, name: token}, trust_env=False) as client:
            assert client.get("/user").json()["identifier"] == "anna"
            gone = client.post("/logout").headers.get_list("set-cookie")
            assert [cookie.partition("=")[0] for cookie in gone] == [name]


def test_the_command_says_so_in_one_line(tmp_path: Path) -> None:
    for environment, said in (({}, "0.0.0.0"), ({"RAG_LOGIN": "password"}, "there is no user")):
        done = subprocess.run(
            [sys.executable, "-m", "rag.cli", "chat", "--no-open", "--host", "0.0.0.0", "--port", str(free_port())],
            env={**os.environ, "RAG_DATA_DIR": str(tmp_path), **environment}, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 2
        assert said in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_the_secret_is_made_once_by_however_many_begin(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    program = (
        "import sys; from pathlib import Path; from rag.serve.secret import secret; print(secret(Path(sys.argv[1])))"
    )
    command = [sys.executable, "-c", program, str(folder)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    made = {process.communicate(timeout=60)[0].strip() for process in processes}
    assert made == {secret(folder)}
    assert len((folder / "secret").read_bytes()) == SECRET_BYTES
    if sys.platform != "win32":
        assert (folder / "secret").stat().st_mode & 0o777 == 0o600
        assert folder.stat().st_mode & 0o777 == 0o700
    assert secret(tmp_path / "other") not in made
    (folder / "secret").write_bytes(b"short")
    with pytest.raises(UserError, match="damaged"):
        secret(folder)


def test_each_wait_is_twice_the_one_before_up_to_the_longest() -> None:
    now = 100.0
    tries = Tries(free=2, longest_s=5, clock=lambda: now)
    assert tries.wait_s("anna") == 0
    tries.failed("anna")
    assert tries.wait_s("anna") == 0
    waits = []
    for _ in range(5):
        tries.failed("anna")
        waits.append(tries.wait_s("anna"))
        now += waits[-1]
        assert tries.wait_s("anna") == 0
    assert waits == [1, 2, 4, 5, 5]
    tries.failed("anna")
    now += 3
    assert tries.wait_s("anna") == 2
    assert tries.wait_s("bo") == 0
    tries.forget("anna")
    assert tries.wait_s("anna") == 0


def test_what_was_long_ago_does_not_count_and_what_was_no_failure_is_given_back() -> None:
    now = 100.0
    tries = Tries(free=1, longest_s=5, clock=lambda: now)
    tries.failed("anna")
    now += 1000
    assert tries.wait_s("anna") == 0
    tries.failed("anna")
    assert tries.wait_s("anna") == 1
    tries.give_back("anna")
    assert tries.wait_s("anna") == 0
    tries.give_back("anna")
    assert len(tries) == 0


def test_not_more_is_remembered_than_was_said() -> None:
    tries = Tries(free=1, longest_s=5, most=100)
    for number in range(1000):
        tries.failed(f"name{number}")
        tries.failed("the one who goes on")
    assert len(tries) == 100
    assert tries.wait_s("the one who goes on") > 0


@pytest.mark.parametrize(
    ("address", "one"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8::ffff:1", "2001:db8::/64"),
        ("2001:db8:0:1::1", "2001:db8:0:1::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("testclient", "testclient"),
    ],
)
def test_senders_are_told_apart_by_what_they_can_have_of_addresses(address: str, one: str) -> None:
    assert network(address) == one


def test_a_request_carries_the_token_that_was_judged_and_no_other() -> None:
    headers = [(b"host", b"x"), (b"cookie", b"a=1; token=old; token_0=part"), (b"cookie", b"token=older;b=2")]
    assert carrying(headers, "token", "new") == [(b"host", b"x"), (b"cookie", b"a=1; b=2; token=new")]
    assert carrying(headers, "token", None) == [(b"host", b"x"), (b"cookie", b"a=1; b=2")]
    assert carrying([(b"cookie", b"token=old")], "token", None) == []
