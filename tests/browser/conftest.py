"""A real Chromium before the real product, started as a user starts it."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Request, expect, sync_playwright

from ..product import ScriptedServer, chat, free_port
from ..run import find_browser

# A loaded machine is slow; what is awaited comes, or the test fails.
PATIENCE_MS = 60_000
expect.set_options(timeout=PATIENCE_MS)


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


def send(page: Page, text: str) -> None:
    page.locator("#chat-input").fill(text)
    # What is typed while a file is on its way, or before the conversation has begun, is not sent.
    expect(page.locator("#chat-submit")).to_be_enabled()
    page.keyboard.press("Enter")


@contextmanager
def visitor(browser: Browser, **options: Any) -> Iterator[BrowserContext]:
    """Somebody with a browser of their own, in English unless the options say otherwise."""
    context = browser.new_context(**{"locale": "en-US", "viewport": {"width": 1000, "height": 900}, **options})
    context.set_default_timeout(PATIENCE_MS)
    try:
        yield context
    finally:
        context.close()


@dataclass
class Chat:
    """One tab: what a user does, and what the server told the page."""

    page: Page
    url: str
    mode: str = "auto"
    """With which it begins."""
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
        # What another test chose holds for the user's next conversation.
        forms = [payload for name, *rest in self.events if name == "chat_settings" for payload in rest]
        if any(widget["id"] == "mode" and widget["initial"] != self.mode for widget in forms[-1]):
            self.switch(self.mode.title() if self.mode == "auto" else self.mode.upper())
        return self

    def _received(self, frame: str | bytes) -> None:
        if isinstance(frame, str) and frame.startswith("42"):
            self.events.append(json.loads(frame[2:]))

    def send(self, text: str) -> None:
        send(self.page, text)

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
def tab(browser: Browser, url: str, mode: str = "auto") -> Iterator[Chat]:
    foreign: list[str] = []

    def note(request: Request) -> None:
        if not request.url.startswith((url, "data:", "blob:")):
            foreign.append(request.url)

    def forget(request: Request) -> None:
        # The page's own policy stopped it before it left.
        if request.url in foreign and "csp" in (request.failure or "").lower():
            foreign.remove(request.url)

    with visitor(browser) as context:
        context.on("request", note)
        context.on("requestfailed", forget)
        yield Chat(context.new_page(), url, mode).open()
    assert foreign == [], "the page asked somebody else"


@pytest.fixture(scope="session")
def real_url(browser: Browser, small_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The product with real models; a second SmolLM2 stands in for the larger one."""
    log = tmp_path_factory.mktemp("real") / "chat.log"
    with chat(free_port(), log, RAG_SLM_MODEL="smollm2-135m", RAG_LLM_MODEL="smollm2-135m") as url:
        yield url


@pytest.fixture(scope="session")
def scripted() -> Iterator[ScriptedServer]:
    server = ScriptedServer()
    yield server
    server.close()


@pytest.fixture(scope="session")
def scripted_url(browser: Browser, scripted: ScriptedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The product before a scripted server that plays both models."""
    folder = tmp_path_factory.mktemp("scripted")
    log = folder / "chat.log"
    environment = {
        "RAG_CACHE_DIR": str(folder / "cache"),
        "RAG_SLM_BASE_URL": scripted.url, "RAG_SLM_MODEL": "small", "RAG_LLM_BASE_URL": scripted.url,
        "RAG_LLM_MODEL": "large", "RAG_DISCONNECT_GRACE_S": "0.5",
        # A server that writes far more than it was asked for is cut off; here one writes thousands of words.
        "RAG_SLM_MAX_TOKENS": "4000",
    }  # fmt: skip
    with chat(free_port(), log, **environment) as url:
        yield url
