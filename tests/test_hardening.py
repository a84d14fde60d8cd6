"""Real attacks on a real server, once as Chainlit comes and once hardened.

Every attack is shown to succeed on the open server, so that a refusal by the other means something. Both servers are
processes of their own with throw-away folders; nothing of the project but `rag.serve.hardening`, and what it imports, is in them.
"""

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
import pytest
import socketio
from socketio.exceptions import ConnectionError as Refused

from rag.serve.gate import Rules, Uploads
from rag.serve.hardening import bad_connection
from rag.serve.ids import is_uuid

from .product import client_message

ROOT = Path(__file__).resolve().parent.parent

APP = """
import chainlit as cl
from chainlit.chat_context import chat_contexts
from chainlit.server import app, sio
{harden}

@cl.on_message
async def answer(message):
    if message.content == "contexts":
        text = " ".join(chat_contexts)
    else:
        names = [element.name for element in message.elements]
        text = f"you said {{message.content}} with {{names}}"
    await cl.Message(text).send()
"""
HARDEN = (
    "from rag.serve.hardening import harden\nharden(app, sio, upload_mb=1, session_uploads=3, message_bytes=50_000)"
)


@dataclass(frozen=True)
class Server:
    folder: Path
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def wait_until(condition: Callable[[], bool], what: str, limit_s: float = 60) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.02)


def run(folder: Path, source: str) -> Iterator[Server]:
    """A server as `chainlit run` starts it, until the test is over."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "app.py").write_text(source)
    # A session whose socket is gone is deleted at once, so that a test need not wait for it.
    (folder / ".chainlit").mkdir()
    (folder / ".chainlit" / "config.toml").write_text(
        '[project]\nsession_timeout = 0\n[features]\n[UI]\nname = "t"\n[meta]\ngenerated_by = "2.12.0"\n'
    )
    environment = {**os.environ, "CHAINLIT_APP_ROOT": str(folder), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "chainlit", "run", "app.py", "-h", "--host", "127.0.0.1", "--port", str(port)]
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log) as process,
    ):

        def listening() -> bool:
            assert process.poll() is None, (folder / "log").read_text()
            with socket.socket() as client:
                return client.connect_ex(("127.0.0.1", port)) == 0

        try:
            wait_until(listening, "the server")
            yield Server(folder, port)
        finally:
            process.kill()


@pytest.fixture(scope="module")
def open_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from run(tmp_path_factory.mktemp("open"), APP.format(harden=""))


@pytest.fixture(scope="module")
def hardened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from run(tmp_path_factory.mktemp("hardened"), APP.format(harden=HARDEN))


def auth(session_id: str, thread_id: str = "") -> dict[str, str]:
    return {"sessionId": session_id, "threadId": thread_id, "userEnv": "{}", "clientType": "webapp", "chatProfile": ""}


@asynccontextmanager
async def connected(
    server: Server, auth_data: object, headers: dict[str, str] | None = None
) -> AsyncIterator[socketio.AsyncClient]:
    client = socketio.AsyncClient(reconnection=False)
    client.answers = asyncio.Queue()
    client.on("new_message", client.answers.put)
    reasons: list[Any] = []
    client.on("connect_error", reasons.append)
    try:
        await client.connect(
            server.url, headers or {}, auth=auth_data, transports=["websocket"], socketio_path="/ws/socket.io"
        )
        yield client
    except Refused as error:
        raise Refused(f"{error}: {reasons}") from None
    finally:
        await client.disconnect()


async def say(client: socketio.AsyncClient, text: str, files: list[str] | None = None) -> str:
    """Send a message as the page does, and wait for the answer to it."""
    await client.emit("client_message", client_message(text, files or ()))
    while True:
        step = await asyncio.wait_for(client.answers.get(), 30)
        if step["type"] == "assistant_message":
            return str(step["output"])


def browser(server: Server) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(base_url=server.url, timeout=30)


async def upload(
    server: Server, session_id: str, name: str = "note.md", content: bytes = b"# Note", kind: str = "text/markdown"
) -> httpx2.Response:
    async with browser(server) as client:
        return await client.post(
            "/project/file", params={"session_id": session_id}, files={"file": (name, content, kind)}
        )


async def raw(server: Server, request: bytes, body: AsyncIterator[bytes] | None = None) -> tuple[bytes, int]:
    """The first bytes of the answer, and how many of the body's bytes were sent until it came."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    answer = asyncio.create_task(reader.read(4096))
    sent = 0
    try:
        writer.write(request)
        async for part in body or nothing():
            if answer.done():
                break
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0)  # where the server reads fast, `drain` lets nobody see its answer
            sent += len(part)
        return await asyncio.wait_for(answer, 30), sent
    finally:
        writer.close()


async def nothing() -> AsyncIterator[bytes]:
    return
    yield b""


async def test_a_well_behaved_client_chats_and_attaches_a_document(hardened: Server) -> None:
    session_id = str(uuid4())
    async with connected(hardened, auth(session_id), {"Origin": hardened.url}) as client:
        sent = await upload(hardened, session_id, "guide.md", b"# Guide")
        assert sent.status_code == 200, sent.text
        assert await say(client, "hello", [sent.json()["id"]]) == "you said hello with ['guide.md']"


async def test_localhost_is_as_good_as_127_0_0_1(hardened: Server) -> None:
    here = f"localhost:{hardened.port}"
    headers = {"Host": here, "Origin": f"http://{here}"}
    async with browser(hardened) as client:
        assert (await client.get("/project/settings", headers=headers)).status_code == 200
    async with connected(hardened, auth(str(uuid4())), headers) as client:
        assert "hello" in await say(client, "hello")


async def test_a_session_id_that_is_a_path_deletes_a_folder_only_when_open(
    open_server: Server, hardened: Server
) -> None:
    def victim(server: Server) -> Path:
        folder = server.folder / f"victim-{uuid4()}"
        folder.mkdir()
        (folder / "precious.txt").write_text("precious")
        return folder

    lost = victim(open_server)
    async with connected(open_server, auth(f"../{lost.name}")) as client:
        await client.emit("clear_session")
    await asyncio.to_thread(wait_until, lambda: not lost.exists(), "the folder to be deleted")

    kept = victim(hardened)
    with pytest.raises(Refused, match="sessionId is not a UUID"):
        async with connected(hardened, auth(f"../{kept.name}")):
            pass
    async with connected(hardened, auth(str(uuid4()))) as client:
        assert "still here" in await say(client, "still here")
    assert (kept / "precious.txt").read_text() == "precious"


async def test_a_quote_in_the_thread_id_connects_only_when_open(open_server: Server, hardened: Server) -> None:
    thread_id = "x' OR '1'='1"
    async with connected(open_server, auth(str(uuid4()), thread_id)) as client:
        assert client.connected
    with pytest.raises(Refused, match="threadId is not a UUID"):
        async with connected(hardened, auth(str(uuid4()), thread_id)):
            pass
    async with connected(hardened, auth(str(uuid4()), str(uuid4()))) as client:
        assert client.connected


@pytest.mark.parametrize("auth_data", [None, "text", {}, {"sessionId": str(uuid4())}, {**auth("x"), "sessionId": None}])
async def test_a_connection_without_its_particulars_is_refused(hardened: Server, auth_data: object) -> None:
    with pytest.raises(Refused):
        async with connected(hardened, auth_data):
            pass


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://127.0.0.1:1", "http://127.0.0.1.evil.example"]
)
async def test_a_foreign_page_opens_the_socket_only_when_open(
    open_server: Server, hardened: Server, origin: str
) -> None:
    async with connected(open_server, auth(str(uuid4())), {"Origin": origin}) as client:
        assert "hello" in await say(client, "hello")
    with pytest.raises(Refused):
        async with connected(hardened, auth(str(uuid4())), {"Origin": origin}):
            pass


async def test_a_foreign_page_reads_answers_with_cookies_only_when_open(open_server: Server, hardened: Server) -> None:
    headers = {"Origin": "https://evil.example", "Cookie": "access_token=x"}
    async with browser(open_server) as client:
        answer = await client.get("/project/settings", headers=headers)
        assert answer.headers["access-control-allow-origin"] == "https://evil.example"
        assert answer.headers["access-control-allow-credentials"] == "true"
    async with browser(hardened) as client:
        answer = await client.get("/project/settings", headers=headers)
        assert answer.status_code == 403
        assert "access-control-allow-origin" not in answer.headers
        preflight = {**headers, "Access-Control-Request-Method": "POST"}
        assert (await client.options("/project/action", headers=preflight)).status_code == 403


async def test_a_name_rebound_to_this_machine_is_served_only_when_open(open_server: Server, hardened: Server) -> None:
    headers = {"Host": f"evil.example:{open_server.port}", "Origin": f"http://evil.example:{open_server.port}"}
    async with browser(open_server) as client:
        assert (await client.get("/project/settings", headers=headers)).status_code == 200
    async with connected(open_server, auth(str(uuid4())), headers) as client:
        assert client.connected

    async with browser(hardened) as client:
        answer = await client.get("/project/settings", headers=headers)
        assert answer.status_code == 400
        assert "evil.example" in answer.json()["detail"]
    with pytest.raises(Refused):
        async with connected(hardened, auth(str(uuid4())), headers):
            pass


async def test_a_page_among_the_uploads_is_a_page_only_when_open(open_server: Server, hardened: Server) -> None:
    page = b"<script>document.body.append('owned')</script>"
    session_id = str(uuid4())

    async def served(server: Server, name: str) -> httpx2.Response:
        sent = await upload(server, session_id, name, page, "text/html")
        assert sent.status_code == 200, sent.text
        async with browser(server) as client:
            return await client.get(f"/project/file/{sent.json()['id']}", params={"session_id": session_id})

    async with connected(open_server, auth(session_id)):
        answer = await served(open_server, "page.html")
        assert answer.headers["content-type"].startswith("text/html")
        assert not {"content-disposition", "content-security-policy", "x-content-type-options"} & set(answer.headers)

    async with connected(hardened, auth(session_id)):
        refused = await upload(hardened, session_id, "page.svg", page, "image/svg+xml")
        assert refused.status_code == 400
        assert "page.svg" in refused.json()["detail"]
        assert ".md" in refused.json()["detail"]

        for name, kind in (("page.html", "text/plain"), ("page.md", "text/markdown"), ("page.js", "text/plain")):
            answer = await served(hardened, name)
            assert answer.content == page
            assert answer.headers["content-type"].startswith(kind)
            assert answer.headers["content-disposition"] == "attachment"
            assert "sandbox" in answer.headers["content-security-policy"]
            assert answer.headers["x-content-type-options"] == "nosniff"


async def test_a_file_that_is_too_large_is_refused_in_words(open_server: Server, hardened: Server) -> None:
    session_id, large = str(uuid4()), b"x" * 1_000_001
    async with connected(open_server, auth(session_id)):
        assert (await upload(open_server, session_id, content=large)).status_code == 200
    async with connected(hardened, auth(session_id)):
        answer = await upload(hardened, session_id, content=large)
        assert answer.status_code == 400
        assert answer.json()["detail"] == "note.md is too large: at most 1 MB."
        answer = await upload(hardened, session_id, content=large * 3)
        assert answer.status_code == 413
        assert answer.json()["detail"] == "The file is too large: at most 1 MB."
        assert (await upload(hardened, session_id, content=b"x" * 1_000_000)).status_code == 200


async def test_a_length_that_is_too_large_is_refused_before_any_of_it_is_sent(hardened: Server) -> None:
    session_id = str(uuid4())
    async with connected(hardened, auth(session_id)):
        head = (
            f"POST /project/file?session_id={session_id} HTTP/1.1\r\nHost: 127.0.0.1:{hardened.port}\r\n"
            "Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 50000000000\r\n\r\n"
        )
        answer, _ = await raw(hardened, head.encode())
        assert answer.startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize("path", ["/project/file?session_id={session_id}", "/project/action"])
async def test_a_body_of_undeclared_length_is_counted_as_it_comes(hardened: Server, path: str) -> None:
    async def endless() -> AsyncIterator[bytes]:
        part = b"x" * 65536
        opening = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.md"\r\n\r\n'
        for piece in [opening, *[part] * 16000]:  # a gigabyte
            yield b"%x\r\n%s\r\n" % (len(piece), piece)

    session_id = str(uuid4())
    async with connected(hardened, auth(session_id)):
        head = (
            f"POST {path.format(session_id=session_id)} HTTP/1.1\r\nHost: 127.0.0.1:{hardened.port}\r\n"
            "Content-Type: multipart/form-data; boundary=b\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        answer, sent = await raw(hardened, head.encode(), endless())
    assert answer.startswith(b"HTTP/1.1 413")
    assert sent < 100_000_000


async def test_an_empty_file_is_an_internal_error_only_when_open(open_server: Server, hardened: Server) -> None:
    session_id = str(uuid4())
    async with connected(open_server, auth(session_id)):
        assert (await upload(open_server, session_id, "empty.md", b"")).status_code == 500
    async with connected(hardened, auth(session_id)):
        answer = await upload(hardened, session_id, "empty.md", b"")
        assert answer.status_code == 400
        assert answer.json()["detail"].startswith("empty.md is empty")


async def test_files_are_counted_for_the_conversation_and_refused_ones_are_not(hardened: Server) -> None:
    session_id = str(uuid4())
    async with connected(hardened, auth(session_id)):
        assert (await upload(hardened, session_id, "empty.md", b"")).status_code == 400
        answers = await asyncio.gather(*(upload(hardened, session_id) for _ in range(5)))
        assert sorted(answer.status_code for answer in answers) == [200, 200, 200, 403, 403]
        assert "At most 3 files" in next(a for a in answers if a.status_code == 403).json()["detail"]


async def test_a_page_that_was_loaded_again_goes_on_counting(open_server: Server, hardened: Server) -> None:
    thread_id = str(uuid4())
    for _ in range(3):
        session_id = str(uuid4())
        async with connected(hardened, auth(session_id, thread_id)) as client:
            assert (await upload(hardened, session_id)).status_code == 200
            await client.emit("clear_session")
    session_id = str(uuid4())
    async with connected(hardened, auth(session_id, thread_id)):
        assert (await upload(hardened, session_id)).status_code == 403
    session_id = str(uuid4())
    async with connected(hardened, auth(session_id)):
        assert (await upload(hardened, session_id)).status_code == 200, "another conversation"
    async with connected(open_server, auth(session_id)):
        assert {(await upload(open_server, session_id)).status_code for _ in range(5)} == {200}


@pytest.mark.parametrize("session_id", ["../x", "x", "", str(uuid4()).upper(), "{" + str(uuid4()) + "}"])
async def test_a_file_route_takes_no_other_session_id_than_a_uuid(hardened: Server, session_id: str) -> None:
    assert (await upload(hardened, session_id)).status_code == 400
    async with browser(hardened) as client:
        answer = await client.get(f"/project/file/{uuid4()}", params={"session_id": session_id})
        assert answer.status_code == 400


async def test_an_upload_to_no_session_is_refused(hardened: Server) -> None:
    answer = await upload(hardened, str(uuid4()))
    assert answer.status_code == 404
    assert "Reload" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PUT", "/project/thread", {"threadId": "x'", "name": "n"}),
        ("DELETE", "/project/thread", {"threadId": "x'"}),
        ("GET", "/project/thread/x'", None),
        ("GET", f"/project/thread/{uuid4()}/element/..", None),
        ("POST", "/set-session-cookie", {"session_id": "x; Path=/"}),
        ("POST", "/project/action", [1]),
    ],
)
async def test_ids_in_other_requests_are_uuids_too(hardened: Server, method: str, path: str, body: object) -> None:
    async with browser(hardened) as client:
        answer = await client.request(method, path, json=body)
    assert answer.status_code == 400, answer.text
    async with browser(hardened) as client:
        assert (await client.post("/set-session-cookie", json={"session_id": str(uuid4())})).status_code == 200


async def test_every_answer_carries_the_headers(open_server: Server, hardened: Server) -> None:
    names = {"content-security-policy", "x-content-type-options", "x-frame-options", "referrer-policy"}
    paths = ["/", "/health", "/project/settings", "/public/none", "/openapi.json", "/project/file/x?session_id=x"]
    async with browser(open_server) as client:
        assert not names & set((await client.get("/")).headers)
    async with browser(hardened) as client:
        for path in paths:
            answer = await client.get(path)
            assert names <= set(answer.headers), path
            assert "http" not in answer.headers["content-security-policy"], "no foreign origin"
        page = await client.get("/")
        assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
        # An error inside Chainlit: it takes the body's "action" for an Action without looking.
        session_id = str(uuid4())
        async with connected(hardened, auth(session_id)):
            broken = await client.post("/project/action", json={"sessionId": session_id, "action": {"name": 1}})
        assert broken.status_code == 500
        assert names <= set(broken.headers)


async def test_the_page_calls_other_servers_only_when_open(open_server: Server, hardened: Server) -> None:
    foreign = re.compile(r"""(?:src|href)=["'](?:https?:)?//[^"']+""")
    async with browser(open_server) as client:
        assert foreign.search((await client.get("/")).text)
    async with browser(hardened) as client:
        page = (await client.get("/")).text
    assert foreign.search(page) is None
    assert '<div id="root">' in page


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/openapi.json", "/docs/oauth2-redirect"])
async def test_the_list_of_routes_is_public_only_when_open(open_server: Server, hardened: Server, path: str) -> None:
    async with browser(open_server) as client:
        assert (await client.get(path)).status_code == 200
    async with browser(hardened) as client:
        assert (await client.get(path)).status_code == 404


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", "/feedback"),
        ("DELETE", "/feedback"),
        ("PUT", "/project/element"),
        ("DELETE", "/project/element"),
        ("PUT", "/project/thread/share"),
        ("GET", f"/project/share/{uuid4()}"),
        ("POST", "/auth/jwt"),
        ("GET", "/auth/oauth/github"),
        ("GET", "/ws/socket.io/?EIO=4&transport=polling"),
        ("POST", "/mcp"),
    ],
)
async def test_what_is_not_used_is_there_only_when_open(
    open_server: Server, hardened: Server, method: str, path: str
) -> None:
    async with browser(open_server) as client:
        answer = await client.request(method, path, json={})
        assert answer.text != '{"detail":"Not found"}'
    async with browser(hardened) as client:
        answer = await client.request(method, path, json={})
        assert (answer.status_code, answer.text) == (404, '{"detail":"Not found"}')


async def test_a_frame_that_is_too_long_closes_the_socket(open_server: Server, hardened: Server) -> None:
    async with connected(open_server, auth(str(uuid4()))) as client:
        assert len(await say(client, "x" * 60_000)) > 60_000
    async with connected(hardened, auth(str(uuid4()))) as client:
        gone = asyncio.Event()
        client.on("disconnect", lambda *_: gone.set())
        asking = asyncio.create_task(say(client, "x" * 60_000))
        await asyncio.wait_for(gone.wait(), 30)
        assert not asking.done()
        asking.cancel()


async def test_the_messages_of_a_closed_session_stay_only_when_open(open_server: Server, hardened: Server) -> None:
    async def contexts_after_one_closed(server: Server) -> tuple[str, Callable[[], Any]]:
        closed = str(uuid4())
        async with connected(server, auth(closed)) as client:
            await say(client, "hello")
            await client.emit("clear_session")

        async def contexts() -> str:
            async with connected(server, auth(str(uuid4()))) as client:
                return await say(client, "contexts")

        return closed, contexts

    closed, contexts = await contexts_after_one_closed(hardened)
    async with asyncio.timeout(30):
        while closed in await contexts():
            pass
    closed, contexts = await contexts_after_one_closed(open_server)
    assert closed in await contexts()


def test_a_chainlit_that_is_built_otherwise_does_not_start(tmp_path: Path) -> None:
    """Each thing that the hardening relies on, taken away in turn in a process of its own."""
    breaks = {
        "connect": "sio.handlers['/'].pop('connect')",
        "validate": "del server.validate_file_upload",
        "page": "del server.get_html_template",
        "cors": "app.user_middleware.pop()",
        "delete": "del WebsocketSession.delete",
        "routes": "server.router.routes[:] = [r for r in server.router.routes if r.path != '/project/file']",
        "sessions": "sys.modules['chainlit.session'].ws_sessions_id = None",
        "contexts": "sys.modules['chainlit.chat_context'].chat_contexts = None",
    }
    source = """
import sys
from chainlit import server
from chainlit.server import app, sio
from chainlit.session import WebsocketSession
from rag.serve.hardening import Unhardened, harden
exec(sys.argv[1])
try:
    harden(app, sio)
except Unhardened as error:
    print(error)
"""
    environment = {**os.environ, "CHAINLIT_APP_ROOT": str(tmp_path), "PYTHONPATH": str(ROOT)}
    for name, damage in {**breaks, "nothing": "pass"}.items():
        done = subprocess.run(
            [sys.executable, "-c", source, damage], env=environment, cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        refused = "cannot be secured" in done.stdout
        assert refused == (name != "nothing"), (name, done.stdout)


@pytest.mark.parametrize(
    ("listen", "host", "known"),
    [
        ("127.0.0.1", "localhost:8000", True),
        ("127.0.0.1", "LOCALHOST", True),
        ("127.0.0.1", "127.0.0.1:8000", True),
        ("127.0.0.1", "[::1]:8000", True),
        ("localhost", "127.0.0.1", True),
        ("127.0.0.1", "evil.example", False),
        ("127.0.0.1", "localhost.evil.example", False),
        ("127.0.0.1", "127.0.0.1.evil.example", False),
        ("127.0.0.1", "192.168.0.9", False),
        ("127.0.0.1", "", False),
        ("127.0.0.1", "a@localhost", False),
        ("127.0.0.1", "chat.example", True),
        ("0.0.0.0", "192.168.0.9:8000", True),
        ("0.0.0.0", "box:8000", True),
        ("0.0.0.0", "evil.example", False),
        ("0.0.0.0", "chat.example", True),
    ],
)
def test_known_hosts(listen: str, host: str, known: bool) -> None:
    assert Rules(listen, allowed_hosts=frozenset({"chat.example"})).knows_host(host) is known


@pytest.mark.parametrize(
    ("origin", "host", "known"),
    [
        ("http://localhost:8000", "localhost:8000", True),
        ("http://localhost", "localhost:80", True),
        ("https://chat.example", "chat.example", True),
        ("http://[::1]:8000", "[::1]:8000", True),
        ("http://localhost:8001", "localhost:8000", False),
        ("http://localhost:8000", "127.0.0.1:8000", False),
        ("file://", "localhost", False),
        ("null", "localhost", False),
        ("http://localhost:99999999", "localhost", False),
        ("https://partner.example", "localhost:8000", True),
    ],
)
def test_known_origins(origin: str, host: str, known: bool) -> None:
    rules = Rules("127.0.0.1", allowed_origins=frozenset({"https://partner.example"}))
    assert rules.knows_origin(origin, host) is known


def test_uploads_are_counted_for_as_many_conversations_as_were_used_last() -> None:
    uploads = Uploads(most=1, remembered=2)
    assert [uploads.take(thread) for thread in ("a", "a", "b", "a", "c", "b", "a")] == [
        True, False, True, False, True, False, True,
    ]  # fmt: skip
    uploads.give_back("a")
    uploads.give_back("a")
    assert [uploads.take("a"), uploads.take("a")] == [True, False]


def test_only_the_one_spelling_of_a_uuid_is_an_id() -> None:
    good = str(uuid4())
    assert is_uuid(good)
    for bad in (good.upper(), f"{{{good}}}", good.replace("-", ""), f"{good}\n", f"../{good}", "", None, 7):
        assert not is_uuid(bad), bad


def test_odd_connection_data_is_refused_not_raised() -> None:
    good = {**auth(str(uuid4())), "threadId": None}
    assert bad_connection(good, {}) is None
    assert bad_connection(good, {"sessionId": ["../x"]}) is not None
    assert bad_connection(good, {"threadId": ["x'"]}) is not None
    for key, value in {"userEnv": "[" * 100_000, "chatProfile": 7, "clientType": "slack", "threadId": ["x"]}.items():
        assert bad_connection({**good, key: value}, {}) is not None, key
    assert bad_connection(json.loads(json.dumps({**good, "userEnv": '"text"'})), {}) is not None
