"""The health of both models, above the message box: a mark for each, and a panel that tells what is known of them."""

import http.server
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, Route, ViewportSize, expect

from ..product import ScriptedServer, chat, free_port
from .conftest import tab
from .test_page import PRICE, QUESTION, faults, named

PHONE: ViewportSize = {"width": 390, "height": 844}
LOW: ViewportSize = {"width": 360, "height": 640}
GONE = "The model server at http://127.0.0.1:11434/v1 is gone. Start it again."
TOLD = {
    "ready": ("good", "ready"),
    "remote": ("good", "ready"),
    "resting": ("quiet", "unloaded to save memory"),
    "absent": ("quiet", "not here yet"),
    "fetching": ("busy", "being fetched"),
    "verifying": ("busy", "file being checked"),
    "loading": ("busy", "starting"),
    "failed": ("bad", "not available"),
    "of a later version": ("quiet", "state not known"),
}
"""Of each state: the kind of its mark, and its words."""


@pytest.fixture(autouse=True)
def answers(scripted: ScriptedServer) -> None:
    scripted.script = lambda *_: PRICE


def toggle(page: Page) -> Locator:
    return page.get_by_test_id("models-toggle")


def panel(page: Page) -> Locator:
    return page.get_by_test_id("models-list")


def row(page: Page, leg: str) -> Locator:
    return page.get_by_test_id(f"models-{leg}")


def marks(page: Page) -> Locator:
    """The small model's and the larger one's."""
    return toggle(page).locator(".mark")


def shape(page: Page, index: int) -> str:
    return "/".join(marks(page).nth(index).locator("path").evaluate_all("all => all.map(one => one.getAttribute('d'))"))


def model(state: str, **more: Any) -> dict[str, Any]:
    told = {"name": "small-one", "runs_on": "llama.cpp", "where": "on this machine", "state": state}
    return {**told, "done_bytes": 0, "total_bytes": 0, "detail": "", **more}


class Status:
    """What a page hears in the server's place, for states that take a download or an hour of rest."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._now: dict[str, Any] | None = None
        page.route("**/status", self._answer)

    def _answer(self, route: Route) -> None:
        route.fulfill(json=self._now) if self._now else route.abort()

    def tell(self, slm: dict[str, Any], llm: dict[str, Any]) -> None:
        self._now = {"slm": slm, "llm": llm, "documents": {"files": 0, "passages": 0, "reading": None}}
        self._page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")  # it asks at once

    def fall_silent(self) -> None:
        self._now = None
        self._page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")


@contextmanager
def again(server: ScriptedServer) -> Iterator[None]:
    """The same server, where it was before it was closed."""
    closed = server._server
    address: Any = closed.server_address
    back = http.server.ThreadingHTTPServer(address, closed.RequestHandlerClass)
    back.daemon_threads = True
    threading.Thread(target=back.serve_forever, daemon=True).start()
    try:
        yield
    finally:
        back.shutdown()
        back.server_close()


def test_a_server_that_dies_is_seen_at_once_and_so_is_its_return(browser: Browser, tmp_path: Path) -> None:
    small, large = ScriptedServer(), ScriptedServer()
    small.script = large.script = lambda *_: PRICE
    environment = {
        "RAG_CACHE_DIR": str(tmp_path / "cache"),
        "RAG_SLM_BASE_URL": small.url, "RAG_SLM_MODEL": "small-one",
        "RAG_LLM_BASE_URL": large.url, "RAG_LLM_MODEL": "large-one",
    }  # fmt: skip
    try:
        with chat(free_port(), tmp_path / "chat.log", **environment) as url, tab(browser, url, "slm") as one:
            page = one.page
            pill = page.get_by_test_id("model-status")
            expect(toggle(page)).to_have_accessible_name("Models: small model ready, larger model ready")
            expect(marks(page).nth(0)).to_have_attribute("data-kind", "good")
            expect(marks(page).nth(1)).to_have_attribute("data-kind", "good")
            toggle(page).click()
            for leg, who, name in (("slm", "Small model", "small-one"), ("llm", "Larger model", "large-one")):
                expect(row(page, leg)).to_contain_text(who)
                expect(row(page, leg)).to_contain_text(name)
                expect(row(page, leg)).to_contain_text("Text for it stays on this machine.")
            expect(pill).to_be_hidden()

            small.close()
            expect(marks(page).nth(0)).to_have_attribute("data-kind", "bad")
            expect(marks(page).nth(1)).to_have_attribute("data-kind", "good")
            expect(toggle(page)).to_have_accessible_name("Models: small model not available, larger model ready")
            expect(row(page, "slm")).to_contain_text(small.url)
            expect(pill).to_contain_text("The small model is not available.")
            expect(pill).to_contain_text("The larger model answers until then.")

            with again(small):
                expect(marks(page).nth(0)).to_have_attribute("data-kind", "good")
                expect(toggle(page)).to_have_accessible_name("Models: small model ready, larger model ready")
                expect(row(page, "slm")).not_to_contain_text(small.url)
                expect(pill).to_be_hidden()
                turn = one.ask(QUESTION)
                assert [draft["model"] for draft in turn["drafts"]] == ["small-one"]
    finally:
        large.close()


def test_each_state_has_its_mark_and_its_words_and_none_moves_the_page(browser: Browser, scripted_url: str) -> None:
    with tab(browser, scripted_url) as one:
        page = one.page
        status = Status(page)
        shapes: dict[str, set[str]] = {}
        boxes = []
        for state, (kind, words) in TOLD.items():
            status.tell(model(state), model("ready"))
            expect(toggle(page)).to_have_accessible_name(f"Models: small model {words}, larger model ready")
            expect(marks(page).nth(0)).to_have_attribute("data-kind", kind)
            shapes.setdefault(kind, set()).add(shape(page, 0))
            boxes.append([toggle(page).bounding_box(), page.locator("#chat-input").bounding_box()])
        assert all(len(drawn) == 1 for drawn in shapes.values())
        assert len(set.union(*shapes.values())) == 4, "whoever sees no colours sees four shapes"
        assert all(box == boxes[0] for box in boxes)


def test_the_panel_tells_what_runs_a_model_and_where_its_text_goes(browser: Browser, scripted_url: str) -> None:
    with tab(browser, scripted_url) as one:
        page = one.page
        status = Status(page)
        elsewhere = model("remote", name="big", runs_on="OpenAI-compatible server", where="models.example.org")
        status.tell(model("fetching", done_bytes=123_000_000, total_bytes=491_000_000), elsewhere)
        toggle(page).click()
        expect(row(page, "slm")).to_contain_text("being fetched · 123 of 491 MB")
        expect(row(page, "slm")).to_contain_text("llama.cpp · Text for it stays on this machine.")
        expect(row(page, "llm")).to_contain_text("on another machine")
        expect(row(page, "llm")).to_contain_text("OpenAI-compatible server · Text for it goes to models.example.org.")
        status.tell(model("resting"), model("failed", detail=GONE))
        expect(row(page, "slm")).to_contain_text("It loads again with the next question.")
        expect(row(page, "llm")).to_contain_text(GONE)


def test_what_nobody_can_tell_is_not_shown_as_well(browser: Browser, scripted_url: str) -> None:
    with tab(browser, scripted_url) as one:
        page = one.page
        expect(marks(page).nth(0)).to_have_attribute("data-kind", "good")
        status = Status(page)
        status.fall_silent()
        expect(page.get_by_test_id("model-status")).to_have_text(re.compile("Server not reachable"))
        expect(marks(page).nth(0)).to_have_attribute("data-kind", "quiet")
        expect(toggle(page)).to_have_accessible_name(
            "Models: small model state not known, larger model state not known"
        )
        status.tell(model("ready"), model("ready"))
        expect(marks(page).nth(0)).to_have_attribute("data-kind", "good")
        expect(page.get_by_test_id("model-status")).to_be_hidden()


def test_it_is_opened_and_closed_by_keys(browser: Browser, scripted_url: str) -> None:
    with tab(browser, scripted_url) as one:
        page = one.page
        page.locator("#chat-input").focus()
        page.keyboard.press("Shift+Tab")
        expect(toggle(page)).to_be_focused()
        page.keyboard.press("Enter")
        expect(panel(page)).to_be_visible()
        expect(toggle(page)).to_have_attribute("aria-expanded", "true")
        page.keyboard.press("Tab")  # it may be longer than its room: the arrow keys scroll it
        expect(panel(page)).to_be_focused()
        page.keyboard.press("Escape")
        expect(panel(page)).to_be_hidden()
        expect(toggle(page)).to_be_focused()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", [None, PHONE], ids=["wide", "phone"])
def test_axe_finds_no_serious_fault(browser: Browser, scripted_url: str, size: ViewportSize | None, theme: Any) -> None:
    with tab(browser, scripted_url) as one:
        page = one.page
        page.emulate_media(color_scheme=theme, reduced_motion="reduce")
        page.reload()
        page.locator("#chat-settings-open-modal").wait_for()
        expect(page.locator("html")).to_have_class(re.compile(rf"\b{theme}\b"))
        if size:
            page.set_viewport_size(size)
        status = Status(page)
        toggle(page).click()
        for states in (("ready", "fetching"), ("failed", "resting")):
            status.tell(*(model(state, detail=GONE if state == "failed" else "") for state in states))
            expect(marks(page).nth(0)).to_have_attribute("data-kind", TOLD[states[0]][0])
            named(page)
            assert faults(page) == []


@pytest.mark.parametrize("size", [PHONE, LOW], ids=["phone", "low"])
@pytest.mark.parametrize("asked", [False, True], ids=["welcome", "conversation"])
def test_on_a_phone_the_whole_panel_is_in_sight(
    browser: Browser, scripted_url: str, asked: bool, size: ViewportSize
) -> None:
    with tab(browser, scripted_url) as one:
        page = one.page
        page.set_viewport_size(size)
        if asked:
            one.ask(QUESTION)
        Status(page).tell(model("failed", detail=GONE), model("failed", detail=GONE))
        expect(marks(page).nth(1)).to_have_attribute("data-kind", "bad")
        toggle(page).click()
        expect(panel(page)).to_be_in_viewport(ratio=1)
        opener, shown = toggle(page).bounding_box(), panel(page).bounding_box()
        assert opener is not None
        assert shown is not None
        assert opener["height"] >= 24
        assert shown["y"] >= 60, "the page's head would cover it"
        assert page.evaluate("document.documentElement.scrollWidth") == size["width"]


def test_it_stands_beside_the_other_drawers(browser: Browser, scripted_url: str) -> None:
    def top(page: Page, name: str) -> float:
        box = page.get_by_test_id(name).bounding_box()
        assert box is not None
        return box["y"]

    with tab(browser, scripted_url) as one:
        one.page.set_viewport_size(PHONE)
        one.ask(QUESTION)
        expect(one.page.get_by_test_id("totals-toggle")).to_be_visible()
        assert top(one.page, "models-toggle") == top(one.page, "totals-toggle")
