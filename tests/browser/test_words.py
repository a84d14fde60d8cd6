"""The page's half of the words: `t` says in a real browser what `told` says in Python."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.responses import FileResponse, HTMLResponse
from playwright.sync_api import Browser

from rag.serve.words import router
from rag.words import LANGUAGES, catalogue, say, told

from ..product import free_port
from .conftest import visitor

ROOT = Path(__file__).parent.parent.parent
BROWSERS = {"en": "en-GB", "zh-TW": "zh-Hant-TW", "uk": "uk-UA", "ms": "ms-MY", "sv": "sv-FI", "pl": "pl-PL"}
COUNTS = (0, 1, 2, 5, 11, 21, 22, 1234, 1234567)
PLURAL = "turn.phase_search"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """An empty page, the script, and the words, without the rest of the product."""
    app = FastAPI()
    app.include_router(router())

    @app.get("/public/words.js")
    async def script() -> FileResponse:
        return FileResponse(ROOT / "public" / "words.js", media_type="text/javascript")

    @app.get("/thread/{thread_id}", response_class=HTMLResponse)
    async def page(thread_id: str) -> str:
        return "<!doctype html><title>A page</title>"

    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


ASK = """async ([key, counts]) => {
  const heard = [];
  window.addEventListener("smallfirst:words", () => heard.push(window.smallFirst.language));
  const words = await import("/public/words.js");
  const before = words.t("page.some_key");
  await words.ready;
  const said = counts.map((count) => words.t(key, { count }));
  return { before, said, language: words.language, heard, same: window.smallFirst.t === words.t,
    kept: words.t(key, { count: "1 or 2" }), unknown: words.t("page.not_there") };
}"""


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_page_says_what_the_server_says(browser: Browser, url: str, language: str) -> None:
    with visitor(browser, locale=BROWSERS[language]) as context:
        page = context.new_page()
        page.goto(f"{url}/thread/1")
        asked = page.evaluate(ASK, [PLURAL, COUNTS])
    assert asked["before"] == "some_key"
    assert asked["said"] == [told(say(PLURAL, count=count), language) for count in COUNTS]
    assert (asked["language"], asked["heard"], asked["same"]) == (language, [language], True)
    assert "1 or 2" in asked["kept"]
    assert asked["unknown"] == "not_there"


def test_the_page_waits_for_a_server_that_is_just_starting(browser: Browser, url: str) -> None:
    failures = iter([503, None])

    def answer(route: object) -> None:
        status = next(failures)
        route.fulfill(status=status) if status else route.fulfill(  # type: ignore[attr-defined]
            body=json.dumps(catalogue("sv")), headers={"Content-Language": "sv", "Content-Type": "application/json"}
        )

    with visitor(browser, locale="sv-SE") as context:
        page = context.new_page()
        page.route("**/words?**", answer)
        page.goto(f"{url}/thread/1")
        assert page.evaluate('import("/public/words.js").then(async (w) => (await w.ready, w.language))') == "sv"
