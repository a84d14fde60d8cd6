"""No key and no password leaves by another way than to the server that it is for.

They are planted, a chat is used as people use it, with model servers that demand the keys and then repeat them in every
place that a server has words for; afterwards everything that came out of it is searched.
"""

import asyncio
import base64
import html
import json
import os
import re
import sqlite3
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, urljoin

import httpx2
import psutil
import pytest
from pydantic import SecretStr

from rag import doctor
from rag.errors import ModelError
from rag.models.backend import Backend, Limits
from rag.settings import Settings
from rag.trace import Trace

from .conftest import until
from .product import ROOT, chat, free_port
from .test_app import connected
from .test_telemetry import Collector

# With characters that look different in an address, in HTML and in JSON.
SMALL_KEY = "sk-small/Zq7+first&planted=W2vX"
LARGE_KEY = "sk-large/Hb3+other&planted=T9cM"
PASSWORD = "pw-Kd5+planted&third=R8nJ"
PLANTED = (SMALL_KEY, LARGE_KEY, PASSWORD)


def forms(secret: str) -> dict[str, str]:
    """What to look for: as it is, and as programs write it."""
    data = secret.encode()
    # Where a text begins inside of what is encoded decides how: at one of three places. The ends hang on the neighbours.
    encoded = {f"base64 at {n}": base64.b64encode(b"." * n + data).decode()[2 * n : -4] for n in range(3)}
    return {
        "as it is": secret,
        "its beginning": secret[: len(secret) // 2],
        "its end": secret[len(secret) // 2 :],
        "in an address": quote(secret, safe=""),
        "in a path": quote(secret),
        "in HTML": html.escape(secret),
        "in JSON of others": secret.replace("/", "\\/"),
        "hexadecimal": data.hex(),
        **encoded,
        **{f"{name}, for addresses": text.replace("+", "-").replace("/", "_") for name, text in encoded.items()},
    }


def planted(data: bytes) -> list[str]:
    """What of the planted secrets stands there, how, and after what."""
    text = data.decode("utf-8", "replace")
    return [
        f"{secret[:8]}… {form}, after {text[: text.index(words)][-80:]!r}"
        for secret in PLANTED
        for form, words in forms(secret).items()
        if words in text
    ]


# --- model servers that repeat the key -------------------------------------------------------------------------------


def event(delta: dict[str, str], finish: str | None = None, **more: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    body = {"id": "x", "object": "chat.completion.chunk", "created": 0, "model": "m", "choices": [choice], **more}
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def error_of(key: str) -> dict[str, Any]:
    """As careless servers explain themselves."""
    said = f"Incorrect API key provided: {key} ({base64.b64encode(key.encode()).decode()}, {quote(key, safe='')})"
    return {"error": {"message": said, "type": key, "param": key, "code": key}}


def long(key: str, before: int) -> "Said":
    said = {"error": {"message": "." * before + f"{key} " * 100, "type": "server_error"}}
    return 500, "application/json", [json.dumps(said).encode()]


STREAM = "text/event-stream"
WORDS = [event({"content": word}) for word in ("The ", "largest ", "file ", "is ", "10 MB.")]
END = [event({}, "stop"), b"data: [DONE]\n\n"]

Said = tuple[int, str, list[bytes]]
"""Status, content type, body in pieces."""

WAYS: dict[str, Callable[[str], Said]] = {
    "answered": lambda key: (200, STREAM, [*(one.replace(b'"x"', json.dumps(key).encode()) for one in WORDS), *END]),
    "refused": lambda key: (401, "application/json", [json.dumps(error_of(key)).encode()]),
    "forbidden": lambda key: (403, "text/plain", [f"{key} may not".encode()]),
    "unknown": lambda key: (404, "application/json", [json.dumps(error_of(key)).encode()]),
    "busy": lambda key: (429, "application/json", [json.dumps(error_of(key)).encode()]),
    "malformed": lambda key: (400, "application/json", [json.dumps(error_of(key)).encode()]),
    "mistaken": lambda key: (422, "application/json", [json.dumps({"detail": [{"msg": key, "input": key}]}).encode()]),
    "broken": lambda key: (500, "application/json", [json.dumps(error_of(key)).encode()]),
    "gateway": lambda key: (502, "text/html", [f"<p>Bearer {html.escape(key)}</p>".encode()]),
    "midway": lambda key: (200, STREAM, [*WORDS[:3], b"data: " + json.dumps(error_of(key)).encode() + b"\n\n"]),
    "early": lambda key: (200, STREAM, [b"data: " + json.dumps(error_of(key)).encode() + b"\n\n"]),
    "named": lambda key: (200, STREAM, [b"event: error\ndata: " + json.dumps(error_of(key)).encode() + b"\n\n"]),
    "torn": lambda key: (200, STREAM, [*WORDS[:2], f"data: {{Bearer {key}\n\n".encode()]),
    "page": lambda key: (200, "text/html", [f"<html>{key}</html>".encode()]),
    "strange": lambda key: (200, STREAM, [b"data: " + json.dumps({"choices": key, "usage": key}).encode() + b"\n\n"]),
    "finished": lambda key: (200, STREAM, [*WORDS, event({}, key), b"data: [DONE]\n\n"]),
    "typed": lambda key: (200, f"text/plain; charset={key}", [b"{}"]),
    "phrased": lambda key: (500, "text/plain", []),
    "moved": lambda key: (302, f"text/plain; location={quote(key)}", []),
}  # fmt: skip
# Long words are cut for a person: wherever that is, in one of these the end of a key is cut off.
WAYS |= {f"cut{before}": lambda key, before=before: long(key, before) for before in (0, 8, 16, 24)}  # type: ignore[misc]
DOCUMENT = f"# Files\n\nThe largest file is 10 MB. Each way to ask: {', '.join(WAYS)}.\n"


def question(way: str) -> str:
    return f"What is the largest file, way {way}?"


class KeyedServer:
    """An OpenAI-compatible server that answers whoever has its key, in the way that the question names.

    Whatever it answers, the key stands in its headers, too.
    """

    def __init__(self, model: str, key: str) -> None:
        self.heard: list[str] = []
        """The headers of each request, as they came."""
        self.lists_models = True
        self.asked: list[str] = []
        """The ways, in the order of the questions that had the key."""
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                server.heard.append(str(self.headers))
                if not self.path.endswith("/models"):
                    self._say((404, "application/json", [json.dumps(error_of(key)).encode()]))
                elif not server.lists_models or not self._has_key():
                    self._say((401, "application/json", [json.dumps(error_of(key)).encode()]))
                else:
                    entry = {"id": model, "object": "model", "created": 0, "owned_by": key, "path": key}
                    listed = {"object": "list", "data": [entry], "version": key}
                    self._say((200, "application/json", [json.dumps(listed).encode()]))

            def do_POST(self) -> None:
                server.heard.append(str(self.headers))
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                named = re.findall(r"way (\w+)\?", body["messages"][-1]["content"]) or ["answered"]
                if not self._has_key():
                    named = ["refused"]
                elif body["messages"][-1]["content"].count("way "):
                    server.asked.append(named[-1])
                self._say(WAYS[named[-1]](key))

            def _has_key(self) -> bool:
                return self.headers["Authorization"] == f"Bearer {key}"

            def _say(self, said: Said) -> None:
                status, kind, pieces = said
                self.close_connection = True
                self.send_response(status, f"No: {key}")
                self.send_header("Content-Type", kind)
                self.send_header("Connection", "close")
                self.send_header("Retry-After", "0")
                self.send_header("X-Request-Id", key)
                self.send_header("Set-Cookie", f"key={key}")
                if status == 302:
                    self.send_header("Location", f"/v1/elsewhere?key={quote(key)}")
                self.end_headers()
                for piece in pieces:
                    self.wfile.write(piece)
                    self.wfile.flush()

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


# --- what comes out of a chat ----------------------------------------------------------------------------------------


@dataclass
class Evidence:
    """Everything that came out, by where."""

    small: KeyedServer
    large: KeyedServer
    environment: dict[str, str]
    came: dict[str, bytes] = field(default_factory=dict)

    def add(self, where: str, what: Any) -> None:
        data = (
            what if isinstance(what, bytes) else what.encode() if isinstance(what, str) else json.dumps(what).encode()
        )
        self.came[where] = self.came.get(where, b"") + b"\n" + data


@pytest.fixture(scope="module")
def small() -> Iterator[KeyedServer]:
    server = KeyedServer("small", SMALL_KEY)
    yield server
    server.close()


@pytest.fixture(scope="module")
def large() -> Iterator[KeyedServer]:
    server = KeyedServer("large", LARGE_KEY)
    yield server
    server.close()


@pytest.fixture(scope="module")
def evidence(small: KeyedServer, large: KeyedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Evidence]:
    folder = tmp_path_factory.mktemp("secrets")
    for name in ("docs", "tmp", "cache", "data"):
        (folder / name).mkdir(mode=0o700)
    (folder / "docs" / "files.md").write_text(DOCUMENT)
    collector = Collector()
    environment = {
        "RAG_DOCS": str(folder / "docs"), "RAG_CACHE_DIR": str(folder / "cache"), "RAG_DATA_DIR": str(folder / "data"),
        "RAG_SLM_BASE_URL": small.url, "RAG_SLM_MODEL": "small", "RAG_SLM_API_KEY": SMALL_KEY,
        "RAG_LLM_BASE_URL": large.url, "RAG_LLM_MODEL": "large", "RAG_LLM_API_KEY": LARGE_KEY,
        "RAG_DISCOVER": "false", "RAG_RETRY_AFTER_S": "0", "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "TMPDIR": str(folder / "tmp"),
    }  # fmt: skip
    found = Evidence(small, large, environment)
    port = free_port()
    try:
        with chat(port, folder / "log", **environment) as url:
            asyncio.run(use(url, found))
            found.add("the processes' arguments", [one.cmdline() for one in psutil.Process().children(recursive=True)])
            gather(found, ROOT / ".files" / str(port), "Chainlit's files")
        found.add("the log", (folder / "log").read_bytes())
        found.add("the collector", b"".join(collector.bodies) + str(collector.requests).encode())
        for name in ("cache", "data", "tmp"):
            gather(found, folder / name, "files")
        yield found
    finally:
        collector.close()


async def use(url: str, found: Evidence) -> None:
    """As programs do, as the page does, and as somebody does who takes a conversation away."""
    async with httpx2.AsyncClient(base_url=url, trust_env=False, timeout=30) as http:
        for way in WAYS:
            for model, stream in (("auto", True), ("auto", False), ("llm", True), ("llm", False)):
                asked = {"role": "user", "content": question(way)}
                body = {"model": f"smallfirst-{model}", "messages": [asked], "stream": stream}
                try:
                    answer = await http.post("/v1/chat/completions", json=body)
                    found.add("the API", answer.content + str(answer.headers).encode())
                except httpx2.HTTPError as error:  # a bug may end the connection; then the log must not say more
                    found.add("the API", repr(error))

        async with connected(url) as client:
            client.socket.on("*", lambda event, *told: found.add("the socket", repr((event, told))))
            for way in WAYS:
                before = len(client.receipts)
                await client.send(question(way))
                await until(lambda before=before: len(client.receipts) > before, 30)  # type: ignore[misc]
            found.add("the socket", [client.steps, client.settings, client.told, list(client.receipts.values())])
            answers = [receipt["answer_id"] for receipt in client.receipts.values()]
            thread = client.thread_id
        async with connected(url, thread_id=thread) as again:
            await until(lambda: bool(again.threads))
            found.add("the socket", again.threads)

        for path in (f"{thread}.md", f"{thread}.csv", *(f"{thread}/{answer}.json" for answer in answers)):
            exported = await http.get(f"/export/{path}")
            assert exported.status_code == 200, path
            found.add("exports", exported.content)

        page = await http.get("/")
        linked = re.findall(r'(?:src|href)="([^"#]+)"', page.text)
        ours = [f"/public/{path.relative_to(ROOT / 'public').as_posix()}" for path in (ROOT / "public").rglob("*.*")]
        told = "/status /words /user /auth/config /health /project/settings /project/translations?language=en-US"
        for path in ("/", *linked, *ours, *told.split(), "/v1/models", "/openapi.json", "/docs", "/metrics"):
            answer = await http.get(urljoin("/", path))
            found.add("pages", f"{path} {answer.status_code} {answer.headers}".encode() + answer.content)


def gather(found: Evidence, folder: Path, where: str) -> None:
    """Every file; a database also as what it says, since a text may lie in it in two places."""
    for path in folder.rglob("*"):
        if not path.is_file():
            continue
        found.add(where, path.name.encode() + path.read_bytes())
        if path.suffix == ".sqlite":
            with closing(sqlite3.connect(path)) as database:
                found.add(where, "\n".join(database.iterdump()))


# --- the search ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", list(forms(SMALL_KEY)))
def test_a_key_is_found_in_whatever_form_it_came(form: str) -> None:
    written = forms(SMALL_KEY)[form]
    assert f"{SMALL_KEY[:8]}… {form}, after 'before'" in planted(f"before{written}after".encode())
    assert not planted(b"before, after, [key]")


def test_a_key_is_found_in_base64_wherever_it_begins() -> None:
    for before in range(6):
        around = base64.b64encode(b"x" * before + SMALL_KEY.encode() + b"yz")
        assert any("base64" in one for one in planted(around)), before


def test_the_servers_had_the_keys_and_repeated_them(evidence: Evidence) -> None:
    for server, key in ((evidence.small, SMALL_KEY), (evidence.large, LARGE_KEY)):
        assert planted("".join(server.heard).encode()), "the search finds it where it was sent"
        assert f"Bearer {key}" in "".join(server.heard)
        assert set(server.asked) == set(WAYS)
        for way, said in WAYS.items():
            _, kind, pieces = said(key)
            # That one says it before the headers, where all of them do.
            assert way == "phrased" or planted(b"".join(pieces) + kind.encode()), f"{way} repeats the key"


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("the API", "status 401"),
        ("the API", "The largest file is 10 MB."),
        ("the socket", "status 401"),
        ("the socket", "The largest file is 10 MB."),
        ("exports", "status 401"),
        ("exports", "The largest file is 10 MB."),
        ("pages", "/public/status.js 200"),
        ("pages", "/openapi.json 404"),
        ("pages", "/docs 404"),
        ("pages", '"slm":'),
        ("the log", "Chat at http://127.0.0.1"),
        ("the collector", "smallfirst.outcome"),
        ("the processes' arguments", "rag.cli"),
        ("files", "history.sqlite"),
        ("files", "passages.sqlite"),
        ("files", "status 401"),
    ],
)
def test_it_was_looked_for_where_there_was_something_to_find(evidence: Evidence, where: str, says: str) -> None:
    assert evidence.came[where].decode("utf-8", "replace").count(says), f"nothing says {says!r}"


@pytest.mark.parametrize(
    "where",
    ["the API", "the socket", "exports", "pages", "the log", "the collector", "the processes' arguments", "files"],
)
def test_no_key_came_out(evidence: Evidence, where: str) -> None:
    assert planted(evidence.came[where]) == []


def test_nothing_else_came_out(evidence: Evidence) -> None:
    assert {where for where, what in evidence.came.items() if planted(what)} == set()


# --- commands, errors and values -------------------------------------------------------------------------------------


def commands(evidence: Evidence, *lines: tuple[str, ...], **environment: str) -> list[str]:
    """All that each of them says, however it ends; they run at the same time."""
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "rag.cli", *line], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, env={**os.environ, **evidence.environment, **environment}, text=True,
        )
        for line in lines
    ]  # fmt: skip
    return [one.communicate(timeout=60)[0] for one in running]


def test_no_command_says_it(evidence: Evidence) -> None:
    (listed,) = commands(evidence, ("models", "list", "--json"))
    evidence.small.lists_models = evidence.large.lists_models = False
    nowhere = f"postgresql://u:{quote(PASSWORD, safe='')}@127.0.0.1:{free_port()}/x"
    try:
        refused, examined, asked, chatted = commands(
            evidence,
            ("models", "list", "--json"),
            ("doctor", "--json"),
            ("ask", question("refused"), "--json"),
            ("chat", "--no-open", "--port", str(free_port())),
            RAG_DATABASE_URL=nowhere,
        )
    finally:
        evidence.small.lists_models = evidence.large.lists_models = True
    assert json.loads(listed.splitlines()[-1])["models"]
    assert json.loads(examined.splitlines()[-1])["checks"]
    assert "key (status 401)" in asked
    assert "the database x on 127.0.0.1" in chatted
    assert planted(f"{listed} {refused} {examined} {asked} {chatted}".encode()) == []


@pytest.mark.parametrize("lists_models", [True, False])
@pytest.mark.parametrize("deep", [True, False])
async def test_the_doctor_does_not_say_it(evidence: Evidence, monkeypatch: Any, deep: bool, lists_models: bool) -> None:
    for name, value in evidence.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RAG_DATABASE_URL", f"postgresql://u:{PASSWORD}@127.0.0.1:1/x")
    monkeypatch.setenv("HTTPS_PROXY", f"http://u:{quote(PASSWORD)}@proxy.example:3128")
    evidence.small.lists_models = evidence.large.lists_models = lists_models
    said: list[str] = []
    checks = doctor.named("variables", "servers", "slm", "llm", "capabilities", "window", "history", "proxies")
    try:
        findings = await doctor.examine(Settings.load(), deep=deep, checks=checks, tell=said.append)
    finally:
        evidence.small.lists_models = evidence.large.lists_models = True
    told = json.dumps([doctor.to_dict(findings), said])
    assert "RAG_SLM_API_KEY (secret)" in told
    assert "key (status 401)" in told or lists_models
    assert planted(told.encode()) == []


async def test_no_address_with_a_password_in_it_is_repeated(settings: Settings) -> None:
    wrong = settings.model_copy(update={"slm_base_url": f"http://u:{quote(SMALL_KEY, safe='')}@127.0.0.1:9/v1"})
    findings = await doctor.examine(wrong, checks=doctor.named("servers", "slm", "llm", "window"))
    assert not doctor.works(findings)
    assert planted(json.dumps(doctor.to_dict(findings)).encode()) == []


@pytest.mark.parametrize("way", [way for way in WAYS if way not in ("answered", "finished")])
async def test_no_error_holds_it_with_all_its_causes(small: KeyedServer, way: str) -> None:
    """As a log shows an error that nobody handled."""
    backend = Backend("slm", "small", small.url, api_key=SMALL_KEY, limits=Limits(5, 5, 5))
    messages = [{"role": "user", "content": question(way)}]
    try:
        with pytest.raises(ModelError) as caught:
            async for _ in backend.stream(messages, max_tokens=9, trace=Trace()):
                pass
    finally:
        await backend.close()
    shown = "".join(traceback.format_exception(caught.value, chain=True))
    assert "Traceback" in shown
    assert planted(f"{shown} {caught.value!r} {vars(caught.value)} {backend!r}".encode()) == []


def test_no_settings_show_it(settings: Settings) -> None:
    kept = settings.model_copy(
        update={
            "slm_api_key": SecretStr(SMALL_KEY),
            "llm_api_key": SecretStr(LARGE_KEY),
            "database_url": SecretStr(f"postgresql://u:{PASSWORD}@h/x"),
        }
    )
    assert kept.slm_api_key is not None
    assert kept.slm_api_key.get_secret_value() == SMALL_KEY
    for shown in (repr(kept), str(kept), kept.model_dump_json(), str(kept.model_dump()), f"{vars(kept)}"):
        assert planted(shown.encode()) == []
