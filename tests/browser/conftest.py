"""A real Chromium before the real product, started as a user starts it."""

import http.server
import json
import os
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Request, expect, sync_playwright

from ..run import find_browser

ROOT = Path(__file__).parent.parent.parent
READY_LIMIT_S = 90
# A loaded machine is slow; what is awaited comes, or the test fails.
expect.set_options(timeout=60_000)


@contextmanager
def chat(port: int, log: Path, **environment: str) -> Iterator[str]:
    """`smallfirst chat` in a process of its own; yields its address once the small model can answer."""
    url = f"http://127.0.0.1:{port}"
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "rag.cli", "chat", "--no-open", "--port", str(port)],
            cwd=ROOT, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            deadline = time.monotonic() + READY_LIMIT_S
            while True:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                try:
                    with urllib.request.urlopen(f"{url}/status", timeout=2) as answer:
                        status = json.load(answer)
                    if all(status[leg]["state"] in ("ready", "remote") for leg in ("slm", "llm")):
                        break
                except OSError:
                    pass
                time.sleep(0.1)
            yield url
        finally:
            process.terminate()
            process.wait(20)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = find_browser()
    if path is None:
        pytest.skip("no Chromium on this machine and none could be installed (see tests/run.py)")
    flags = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-sync"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=flags.split())
        yield browser
        browser.close()


@dataclass
class Chat:
    """One tab: what a user does, and what the server told the page."""

    page: Page
    url: str
    events: list[Any] = field(default_factory=list)
    """WebSocket events in order: [name, payload]."""
    requests: list[str] = field(default_factory=list)

    def open(self) -> "Chat":
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("websocket", lambda socket: socket.on("framereceived", self._received))
        self.page.goto(self.url)
        self.page.locator("#chat-input").wait_for()
        # The settings button comes with what on_chat_start sends: from then on the session is there.
        self.page.locator("#chat-settings-open-modal").wait_for()
        return self

    def _received(self, frame: str | bytes) -> None:
        if isinstance(frame, str) and frame.startswith("42"):
            self.events.append(json.loads(frame[2:]))

    def send(self, text: str) -> None:
        self.page.locator("#chat-input").fill(text)
        self.page.keyboard.press("Enter")

    def attach(self, path: Path) -> None:
        with self.page.expect_response("**/project/file**") as answer:
            self.page.locator("#upload-button-input").set_input_files(path)
        assert answer.value.ok

    def ask(self, question: str) -> dict[str, Any]:
        """Ask, wait for the receipt, and return the turn that the message carries."""
        before = self.page.get_by_test_id("receipt-toggle").count()
        self.send(question)
        expect(self.page.get_by_test_id("receipt-toggle")).to_have_count(before + 1)
        return self.turn()

    def turn(self) -> dict[str, Any]:
        """Metadata of the newest answer."""
        answers = [
            payload["metadata"]
            for name, payload in (event for event in self.events if len(event) > 1)
            if name in ("new_message", "update_message") and payload["type"] == "assistant_message"
            and "answer" in (payload.get("metadata") or {})
        ]  # fmt: skip
        return answers[-1]

    @property
    def answer(self) -> str:
        return self.page.locator("[data-step-type=assistant_message] .message-content").last.inner_text()

    def switch(self, label: str) -> None:
        self.page.locator("#chat-settings-open-modal").click()
        self.page.get_by_role("radio", name=re.compile(f"^{label}")).click()
        self.page.locator("#confirm").click()
        self.page.locator("#confirm").wait_for(state="detached")


@contextmanager
def tab(browser: Browser, url: str) -> Iterator[Chat]:
    context = browser.new_context(viewport={"width": 1000, "height": 900}, locale="en-US")
    foreign: list[str] = []

    def note(request: Request) -> None:
        if not request.url.startswith((url, "data:", "blob:")):
            foreign.append(request.url)

    def forget(request: Request) -> None:
        # The page's own policy stopped it before it left.
        if request.url in foreign and "csp" in (request.failure or "").lower():
            foreign.remove(request.url)

    context.on("request", note)
    context.on("requestfailed", forget)
    try:
        yield Chat(context.new_page(), url).open()
    finally:
        context.close()
    assert foreign == [], "the page asked somebody else"


class ScriptedServer:
    """An OpenAI-compatible server that writes what a test tells it to: plumbing, never quality.

    `script` gives the words for a model and a question; None means to write without end.
    """

    def __init__(self) -> None:
        self.script: Callable[[str, str], str | None] = lambda model, question: "Nothing was scripted."
        self.hung_up = threading.Event()
        self.asked = threading.Event()
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                text = server.script(body["model"], body["messages"][-1]["content"])
                server.asked.set()
                self.close_connection = True
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.send_header("Connection", "close")
                self.end_headers()
                try:
                    if text is None:
                        while True:
                            self._chunk({"content": "on and "})
                            time.sleep(0.02)
                    for word in text.split(" "):
                        self._chunk({"content": f"{word} "})
                    self._chunk({}, "stop")
                    self.wfile.write(b"data: [DONE]\n\n")
                except OSError:
                    server.hung_up.set()

            def _chunk(self, delta: dict[str, str], finish: str | None = None) -> None:
                choice = {"index": 0, "delta": delta, "finish_reason": finish}
                body = {"id": "x", "object": "chat.completion.chunk", "created": 0, "model": "m", "choices": [choice]}
                self.wfile.write(b"data: " + json.dumps(body).encode() + b"\n\n")
                self.wfile.flush()

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def reset(self) -> None:
        self.hung_up.clear()
        self.asked.clear()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def real_url(browser: Browser, small_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The product with real models; a second SmolLM2 stands in for the larger one."""
    log = tmp_path_factory.mktemp("real") / "chat.log"
    with chat(free_port(), log, RAG_LLM_MODEL="smollm2-135m") as url:
        yield url


@pytest.fixture(scope="session")
def scripted() -> Iterator[ScriptedServer]:
    server = ScriptedServer()
    yield server
    server.close()


@pytest.fixture(scope="session")
def scripted_url(browser: Browser, scripted: ScriptedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The product before a scripted server that plays both models."""
    log = tmp_path_factory.mktemp("scripted") / "chat.log"
    environment = {
        "RAG_SLM_BASE_URL": scripted.url, "RAG_SLM_MODEL": "small", "RAG_LLM_BASE_URL": scripted.url,
        "RAG_LLM_MODEL": "large", "RAG_DISCONNECT_GRACE_S": "0.5",
    }  # fmt: skip
    with chat(free_port(), log, **environment) as url:
        yield url
