"""The model inside a real Chromium: first visit, side by side, Stop, second visit, the server gone, and what can go wrong.

SmolLM2 is real, on one thread: what it says is not looked at, only that it says something and what the page tells of it.
"""

import json
import re
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Locator, Page, Request, Route, expect

from rag.words import say, told

from ..product import ScriptedServer, api, free_port
from ..run import find_browser
from .conftest import visitor
from .test_page import faults

REFERENCE = "The bakery at Varga opens at 6:30. On Sundays it opens at 8:00 and closes at noon."
QUESTION = "When does the bakery open on Sundays?"
# The shortest prompt and answer that a person can choose, on the thread that no other test takes away.
QUICK = {"way": "single", "window": "1024", "length": "16"}


@dataclass
class Serving:
    """`smallfirst serve` in a process of its own."""

    url: str
    process: "subprocess.Popen[bytes]"


@contextmanager
def serving(log: Path, **environment: str) -> Iterator[Serving]:
    environment = {"RAG_SLM_MODEL": "smollm2-135m", "RAG_LLM_MODEL": "smollm2-135m", **environment}
    with api(free_port(), log, **environment) as (url, process):
        yield Serving(url, process)


@dataclass
class Visit:
    """One browser profile, whose pages are watched: whom they ask, and what they complain of."""

    context: BrowserContext
    url: str
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def watch(self) -> "Visit":
        def heard(message: ConsoleMessage) -> None:
            if "Content Security Policy" in message.text:
                self.complaints.append(message.text)

        self.context.on("request", lambda request: self.requests.append(request.url))
        self.context.on("console", heard)
        self.context.on("weberror", lambda error: self.complaints.append(str(error.error)))
        return self

    def open(self, **chosen: str) -> Page:
        page = self.context.new_page()
        page.add_init_script(
            f"localStorage['smallfirst-ondevice'] ??= {json.dumps(json.dumps({**QUICK, **chosen}))}"
        )  # what was chosen at an earlier visit
        page.goto(f"{self.url}/ondevice")
        expect(page.locator("#model option").first).to_be_attached()
        return page

    @property
    def weights(self) -> list[str]:
        """Addresses of model files that were fetched."""
        return [url for url in self.requests if url.endswith(".gguf")]

    def judge(self) -> None:
        """After it was closed: nobody else was asked, and the page did not complain."""
        foreign = [url for url in self.requests if not url.startswith((self.url, "data:", f"blob:{self.url}"))]
        assert foreign == [], "the page asked somebody else"
        assert self.complaints == []


@pytest.fixture(scope="module")
def server(browser: Browser, small_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with serving(tmp_path_factory.mktemp("ondevice") / "serve.log") as one:
        yield one


@contextmanager
def visiting(browser: Browser, server: Serving, **options: Any) -> Iterator[Visit]:
    with visitor(browser, **{"viewport": {"width": 1100, "height": 900}, **options}) as context:
        visit = Visit(context, server.url)
        yield visit.watch()
    visit.judge()


@pytest.fixture
def fresh(browser: Browser, server: Serving) -> Iterator[Visit]:
    """Somebody who was never here."""
    with visiting(browser, server) as visit:
        yield visit


@pytest.fixture(scope="module")
def loaded(browser: Browser, server: Serving) -> Iterator[tuple[Visit, Page]]:
    """A page whose model runs, on its first visit."""
    with visiting(browser, server) as visit:
        page = visit.open()
        page.evaluate(
            """() => {
              window.said = [];
              for (const id of ["model-state", "amount"]) {
                const place = document.getElementById(id);
                new MutationObserver(() => window.said.push([id, place.textContent])).observe(place, {childList: true});
              }
            }"""
        )
        page.locator("#start").click()
        expect(page.locator("body")).to_have_attribute("data-model", "ready")
        page.locator("#reference").fill(REFERENCE)
        yield visit, page


SPEED = r"[\d.]+ tokens/s"
SPANS = re.compile(
    rf"Browser: loaded before [^;]+, until the first token [^;]+, writing [^;]+, {SPEED}; "
    rf"SLM: until the first token [^;]+, writing [^;]+, {SPEED}; LLM: "
)


def ask(page: Page, *engines: str, question: str = QUESTION) -> Locator:
    """Ask these, and wait until all has been said; the newest exchange."""
    for engine in ("browser", "slm", "llm"):
        page.locator(f"#ask-{engine}").set_checked(engine in engines)
    before = page.locator(".exchange").count()
    page.locator("#question").fill(question)
    page.keyboard.press("Enter")
    expect(page.locator(".exchange")).to_have_count(before + 1)
    expect(page.locator("#stop")).to_be_hidden()
    return page.locator(".exchange").first


def column(exchange: Locator, engine: str) -> Locator:
    return exchange.locator(f"[data-engine={engine}]")


def complaint(page: Page) -> Locator:
    return page.locator("#model-notes .failure")


# One person's afternoon, in this order


def test_the_first_visit_fetches_the_weights_and_says_how_far_it_is(loaded: tuple[Visit, Page]) -> None:
    visit, page = loaded
    said = page.evaluate("() => window.said")
    assert any(re.fullmatch(r"\d+ of 98 MB", text) for place, text in said if place == "amount"), said
    phases = [text.split(":")[0] for place, text in said if place == "model-state"]
    assert phases == [
        "Looking at what this browser can do", "Fetching from the server", "Checking the file", "Starting", "Ready",
    ], "what a screen reader says"  # fmt: skip
    assert len(visit.weights) == 1
    expect(page.locator("#model-state")).to_contain_text("one thread")
    assert page.locator("#why li").all_inner_texts() == [
        "The graphics card was not asked, as chosen.", "One thread, as chosen.",
    ]  # fmt: skip
    expect(page.locator("#times-server")).to_have_text("From the server, now")
    assert re.search(r"Weights fetched or opened\s[\d.]+ m?s\s–", page.locator("#times").inner_text())


def test_three_models_answer_side_by_side_with_times_and_verdicts(loaded: tuple[Visit, Page]) -> None:
    _, page = loaded
    exchange = ask(page, "browser", "slm", "llm")
    for engine in ("browser", "slm", "llm"):
        assert column(exchange, engine).locator(".text").inner_text().strip()
        assert column(exchange, engine).locator(".verdict").inner_text().strip()
        expect(column(exchange, engine).locator(".figures")).to_contain_text(re.compile(r"first token [\d.]+ m?s"))
        expect(column(exchange, engine).locator(".failure")).to_have_count(0)
    for engine in ("browser", "slm"):
        expect(column(exchange, engine).locator(".figures")).to_contain_text(
            re.compile(r"[\d.]+ tokens/s · \d+ tokens")
        )
    # The question did not wait for the model, which was there: that is no part of its time.
    expect(column(exchange, "browser").locator(".figures")).to_contain_text(
        re.compile(r"^loaded before, in [\d.]+ m?s · ")
    )
    expect(column(exchange, "browser").locator(".verdict")).to_contain_text("how sure the model was")
    assert column(exchange, "browser").inner_text().count("cut off at its longest allowed length") <= 1
    page.set_viewport_size({"width": 1000, "height": 900})
    tops = exchange.locator(".column").evaluate_all("(all) => all.map((one) => one.getBoundingClientRect().top)")
    assert len(set(tops)) == 1, "side by side"
    page.set_viewport_size({"width": 1100, "height": 900})
    picture = exchange.locator("svg.bars")
    expect(picture).to_have_attribute("aria-label", SPANS)
    assert picture.locator("rect:not(.track)").count() >= 6
    assert all(re.fullmatch(SPEED, speed) for speed in picture.locator(".speed").all_text_contents()[:2])
    exchange.locator(".passages summary").click()
    expect(exchange.locator(".passages li").first).to_contain_text("your reference text")
    assert faults(page) == []


def test_a_question_that_waits_for_the_model_says_so_and_can_be_taken_back(fresh: Visit) -> None:
    page = fresh.open()
    page.locator("#question").fill("What does BM25 stand for?")
    page.locator("#question").press("Enter")
    browsers = column(page.locator(".exchange"), "browser")
    expect(browsers.locator(".state")).to_contain_text(re.compile("Fetching from the server|Starting"))
    expect(page.locator("svg.bars rect.load")).to_have_count(1)
    page.locator("#question").fill("And who developed it?")
    page.locator("#question").press("Enter")
    expect(page.locator("#complaint")).to_have_text("The question before is still being answered. Wait, or press Stop.")
    assert page.locator(".exchange").count() == 1
    page.locator("#question").fill("")
    page.locator("#stop").click()
    expect(browsers.locator(".state")).to_have_text("Stopped.")
    expect(page.locator("#question")).to_have_value("What does BM25 stand for?")  # nothing came of it
    expect(page.locator("#complaint")).to_be_hidden()
    label = page.locator("svg.bars").get_attribute("aria-label") or ""
    assert "load" in label
    assert "first token" not in label, "none came"


def test_a_question_that_is_too_long_is_not_asked(loaded: tuple[Visit, Page]) -> None:
    _, page = loaded
    before = page.locator(".exchange").count()
    page.locator("#question").fill("x" * 20_001)
    page.locator("#ask").click()
    expect(page.locator("#complaint")).to_contain_text(
        "The question has 20,001 characters; at most 20,000 can be asked"
    )
    assert (page.locator(".exchange").count(), len(page.locator("#question").input_value())) == (before, 20_001)
    # One that the models have no room for is told by them, and stays to be shortened.
    exchange = ask(page, "browser", "slm", question="long words " * 900)
    for engine in ("browser", "slm"):
        expect(column(exchange, engine).locator(".failure")).to_contain_text("The question is too long")
    assert page.locator("#question").input_value().startswith("long words")
    assert exchange.locator("h3").evaluate("(one) => one.getBoundingClientRect().height") < 250
    page.locator("#question").fill("")


def test_where_the_documents_are_silent_that_is_the_answer(loaded: tuple[Visit, Page]) -> None:
    _, page = loaded
    browsers = column(ask(page, "browser", question="Zxqv blorptang wumpf?"), "browser")
    expect(browsers.locator(".state")).to_have_text("No model was asked.")
    expect(browsers.locator(".text")).to_contain_text("This is not in your documents")
    expect(page.locator("#question")).to_have_value("")  # it was answered


def test_a_citation_leads_to_the_document_here(loaded: tuple[Visit, Page]) -> None:
    _, page = loaded
    places = page.locator(".passages .place a")
    addresses = places.evaluate_all("(links) => links.map((link) => link.href)")
    assert addresses
    for address in addresses:
        with urllib.request.urlopen(address, timeout=10) as answer:
            assert answer.status == 200


def test_stop_ends_the_answer_and_the_next_question_is_answered(loaded: tuple[Visit, Page]) -> None:
    _, page = loaded
    page.locator("#length").select_option("400")
    page.locator("#question").fill("Tell me all about the bakery at Varga, at length.")
    page.locator("#ask-slm").uncheck()
    page.locator("#ask-llm").uncheck()
    page.locator("#ask").click()
    first = page.locator(".exchange").first
    expect(column(first, "browser").locator(".state")).to_contain_text("Reading the prompt")
    page.locator("#stop").click()
    expect(column(first, "browser").locator(".state")).to_have_text("Stopped.")
    expect(page.locator("#ask")).to_be_enabled()
    page.locator("#length").select_option("16")
    exchange = ask(page, "browser")
    assert column(exchange, "browser").locator(".text").inner_text().strip()
    page.locator("#question").fill(" ")
    page.keyboard.press("Enter")
    expect(page.locator("#complaint")).to_have_text("Type a question first.")


def test_a_new_conversation_forgets_what_is_still_being_judged(loaded: tuple[Visit, Page]) -> None:
    _, page = loaded
    page.route("**/ondevice/verdict", lambda route: None)  # no verdict comes
    page.locator("#question").fill(QUESTION)
    page.keyboard.press("Enter")
    answer = column(page.locator(".exchange").first, "browser")
    expect(answer.locator(".state")).to_have_text("Checking the answer")
    page.locator("#reference").focus()
    page.locator("#anew").evaluate("(button) => button.click()")
    expect(page.locator("#stop")).to_be_hidden()
    expect(page.locator("#reference")).to_be_focused()
    page.unroute("**/ondevice/verdict")
    with page.expect_request("**/ondevice/prompt") as asked:
        ask(page, "browser")
    assert json.loads(asked.value.post_data or "")["history"] == []


def test_a_slow_server_is_not_called_gone(loaded: tuple[Visit, Page]) -> None:
    _, page = loaded
    page.evaluate(
        """() => {
          window.timeout = AbortSignal.timeout;
          AbortSignal.timeout = () => AbortSignal.abort(new DOMException("", "TimeoutError"));
        }"""
    )
    answer = column(ask(page, "browser"), "browser")
    page.evaluate("() => { AbortSignal.timeout = window.timeout; }")
    assert answer.locator(".note").all_inner_texts()[:2] == [
        "The server did not search (The server did not answer in time): answered from the reference text alone.",
        "Earlier questions are not taken along without the server.",
    ]
    expect(answer.locator(".verdict")).to_have_text("Not judged: The server did not answer in time.")


def test_the_second_visit_fetches_no_weights_and_shows_both_times(loaded: tuple[Visit, Page]) -> None:
    visit, _ = loaded
    page = visit.open()
    expect(page.locator("body")).to_have_attribute("data-model", "ready")
    assert len(visit.weights) == 1
    expect(page.locator("#times-storage")).to_have_text("From storage, now")
    assert re.search(r"Weights fetched or opened\s[\d.]+ m?s\s[\d.]+ m?s", page.locator("#times").inner_text())
    page.close()


def test_with_the_server_gone_the_browser_answers_on(loaded: tuple[Visit, Page], server: Serving) -> None:
    _, page = loaded
    server.process.kill()
    server.process.wait(20)
    exchange = ask(page, "browser", "slm")
    answer = column(exchange, "browser")
    assert answer.locator(".text").inner_text().strip()
    expect(answer.locator(".note").first).to_have_text(
        "The server is not there: answered from the reference text alone."
    )
    expect(answer.locator(".verdict")).to_have_text("Not judged: the server, which judges, is not there.")
    expect(column(exchange, "slm").locator(".failure")).to_contain_text("The server is not there.")
    # Another way of running needs code and weights again: both are at hand.
    page.locator("#ask-slm").uncheck()
    page.locator("#question").fill("Tell me all about the bakery at Varga.")
    page.locator("#ask").click()
    stopped = column(page.locator(".exchange").first, "browser")
    expect(stopped.locator(".state")).to_contain_text("Reading the prompt")
    page.locator("#window").select_option("2048")
    expect(stopped.locator(".state")).to_have_text("Stopped: the model was started anew.")
    expect(page.locator("body")).to_have_attribute("data-model", "starting")
    expect(page.locator("body")).to_have_attribute("data-model", "ready")
    expect(stopped.locator(".failure")).to_have_count(0)
    expect(complaint(page)).to_have_count(0)
    page.locator("#reference").fill("")
    exchange = ask(page, "browser")
    expect(column(exchange, "browser").locator(".failure")).to_contain_text("no reference text to answer from")


# What can go wrong, each with a sentence and a way on


@pytest.fixture(scope="module")
def another(browser: Browser, small_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with serving(tmp_path_factory.mktemp("faults") / "serve.log") as one:
        yield one


@pytest.fixture
def visit(browser: Browser, another: Serving) -> Iterator[Visit]:
    with visiting(browser, another) as visit:
        yield visit


@pytest.mark.parametrize(("locale", "language"), [("uk-UA", "uk"), ("sv-FI", "sv"), ("zh-Hant-HK", "zh-TW")])
def test_the_page_speaks_the_language_of_the_browser(
    browser: Browser, another: Serving, locale: str, language: str
) -> None:
    with visiting(browser, another, locale=locale) as visit:
        page = visit.open()
        assert page.title() == f"{told(say('ondevice.title'), language)} · Small First"
        assert page.locator("html").get_attribute("lang") == language
        for window, key in ((1024, "window_quickest"), (2048, "tokens"), (8192, "window_most")):
            option = page.locator(f'#window option[value="{window}"]')
            assert option.text_content() == told(say(f"ondevice.{key}", count=window), language)
        page.locator("#ask").click()
        expect(page.locator("#complaint")).to_have_text(told(say("ondevice.ask_empty"), language))
        assert faults(page) == []


def test_a_damaged_file_is_fetched_again(visit: Visit) -> None:
    cut = [True]

    def some(route: Route) -> None:
        if cut:
            route.fulfill(body=b"GGUF and no more", content_type="application/octet-stream")
            cut.clear()
        else:
            route.continue_()

    page = visit.open()
    page.route("**/*.gguf", some)
    page.locator("#start").click()
    expect(complaint(page)).to_contain_text("it has 16 bytes and should have 98,362,432")
    kept = """async () => {
      const root = await navigator.storage.getDirectory();
      const names = [];
      for await (const name of (await root.getDirectoryHandle("smallfirst-weights")).keys()) names.push(name);
      return names;
    }"""
    assert page.evaluate(kept) == []
    page.get_by_role("button", name="Fetch again").click()
    expect(page.locator("#model-state")).to_contain_text("Starting")
    assert len(visit.weights) == 2
    assert [name for name in page.evaluate(kept) if name.endswith(".gguf")] == [visit.weights[0].rpartition("/")[2]]


def test_a_file_of_other_bytes_is_not_started(visit: Visit) -> None:
    def other(route: Route, _: Request) -> None:
        found = route.fetch().json()
        found["models"][0]["sha256"] = "0" * 64
        route.fulfill(json=found)

    page = visit.context.new_page()
    page.route("**/ondevice/models", other)
    page.goto(f"{visit.url}/ondevice")
    page.locator("#start").click()
    expect(complaint(page)).to_contain_text("its SHA-256 is not its publisher’s")
    expect(page.locator("body")).to_have_attribute("data-model", "idle")


def test_a_browser_that_refuses_storage_goes_on_and_says_so(visit: Visit) -> None:
    visit.context.add_init_script(
        "if (navigator.storage) navigator.storage.getDirectory = () => Promise.reject(new DOMException('It is off', 'SecurityError'))"
    )
    page = visit.open(way="auto")
    page.locator("#start").click()
    expect(page.locator("body")).to_have_attribute("data-model", "ready")
    expect(page.locator("#model-notes .note")).to_contain_text("This browser refuses to keep the weights (It is off)")
    expect(page.locator("#why li").first).to_have_text("Not on the graphics card: the browser offers no adapter.")
    expect(page.locator("#model-state")).to_contain_text("on the processor (WebAssembly)")


def test_without_simd_the_servers_models_can_still_be_asked(visit: Visit) -> None:
    visit.context.add_init_script("WebAssembly.validate = () => false")
    page = visit.open()
    expect(complaint(page)).to_contain_text("This browser’s WebAssembly lacks SIMD")
    exchange = ask(page, "browser", "slm", question="What is BM25?")
    expect(column(exchange, "browser").locator(".failure")).to_contain_text("is not started")
    assert column(exchange, "slm").locator(".text").inner_text().strip()
    exchange = ask(page, "slm", question="Zxqv blorptang wumpf?")
    silent = column(exchange, "slm")
    expect(silent.locator(".state")).to_have_text("No model was asked.")
    expect(silent.locator(".figures")).to_have_text(re.compile(r"[\d.]+ m?s in all"))
    # Nothing of a model is needed for reference texts from files.
    old = {"name": "old.txt", "mimeType": "text/plain", "buffer": "På söndagar".encode("latin-1")}
    page.locator("#files").set_input_files(old)  # type: ignore[arg-type]
    expect(page.locator("#complaint")).to_contain_text("old.txt is not in UTF-8.")
    page.locator("#files").set_input_files({**old, "buffer": "På söndagar".encode()})  # type: ignore[arg-type]
    expect(page.locator("#complaint")).to_be_hidden()
    expect(page.locator("#reference")).to_have_value("På söndagar")
    expect(page.locator("#files")).to_have_value("")


def test_a_server_with_keys_is_given_one_that_only_this_tab_keeps(
    browser: Browser, scripted: ScriptedServer, tmp_path: Path
) -> None:
    scripted.script = lambda model, _: "BM25 stands for best matching [1]."
    key, question = "сезам-open-sesame", "What does BM25 stand for?"
    legs = {
        "RAG_SLM_BASE_URL": scripted.url,
        "RAG_SLM_MODEL": "small",
        "RAG_LLM_BASE_URL": scripted.url,
        "RAG_LLM_MODEL": "large",
    }
    with serving(tmp_path / "serve.log", RAG_API_KEYS=key, **legs) as server, visiting(browser, server) as visit:
        page = visit.open()
        exchange = ask(page, "slm", question=question)
        expect(column(exchange, "slm").locator(".failure")).to_contain_text("The server wants an API key")
        expect(page.locator("#question")).to_have_value(question)  # it will be asked again
        page.locator("#key").fill("open-barley")
        exchange = ask(page, "slm", question=question)
        expect(column(exchange, "slm").locator(".failure")).to_contain_text("is not one of RAG_API_KEYS")
        page.locator("#key").fill(key)
        exchange = ask(page, "slm", question=question)
        expect(column(exchange, "slm").locator(".text")).to_contain_text("best matching")
        assert "open-sesame" not in page.evaluate("() => JSON.stringify(localStorage)")
        # A link carries no key: it is signed.
        links = column(exchange, "slm").locator(".text a, .sources a")
        addresses = links.evaluate_all("(links) => links.map((link) => link.href)")
        assert len(addresses) == 2
        for address in addresses:
            with urllib.request.urlopen(address, timeout=10) as answer:
                assert answer.status == 200


WEIGHTS = "(await (await navigator.storage.getDirectory()).getDirectoryHandle('smallfirst-weights', {create: true}))"


def test_a_fetch_can_be_cancelled_and_begun_again(visit: Visit) -> None:
    visit.context.add_init_script(
        """
        const file = globalThis.FileSystemWritableFileStream?.prototype; // none on a blank page
        const write = file?.write;
        const gate = new Promise((resolve) => { window.openGate = resolve; });
        if (file) file.write = async function (chunk) {
          window.writing = true;
          await gate;
          return write.call(this, chunk);
        };
        """
    )
    page = visit.open()
    page.locator("#start").click()
    page.wait_for_function("() => window.writing")
    page.get_by_role("button", name="Cancel").click()
    page.evaluate("() => window.openGate()")
    expect(page.locator("#forget")).to_be_visible()  # what had come by then
    expect(page.locator("#model-state")).to_contain_text("Not started.")
    expect(page.locator("body")).to_have_attribute("data-model", "idle")
    expect(page.locator("#start")).to_have_text("Start")


def test_a_start_can_be_cancelled_while_its_code_is_on_its_way(visit: Visit) -> None:
    held: list[Route] = []
    visit.context.route("**/wllama.wasm", lambda route: held.append(route))
    page = visit.open()
    page.locator("#start").click()
    expect(page.locator("#model-state")).to_contain_text("Starting")
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("body")).to_have_attribute("data-model", "idle")
    with page.expect_request_finished():
        held.pop().continue_()
    page.evaluate("() => new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)))")
    expect(page.locator("#model-state")).to_contain_text("Not started.")
    assert page.workers == []


def test_a_second_tab_waits_for_the_first_and_fetches_nothing(visit: Visit) -> None:
    held: list[Route] = []
    visit.context.route("**/*.gguf", lambda route: held.append(route))
    first = visit.open()
    first.locator("#start").click()
    expect(first.locator("#model-state")).to_have_text("Fetching from the server")
    # What an interrupted visit leaves is no file.
    first.reload()
    expect(first.locator("#model-state")).to_contain_text("Not started.")
    name = first.evaluate("async () => (await (await fetch('ondevice/models')).json()).models[0].file")
    first.evaluate(f"async (name) => void (await {WEIGHTS}.getFileHandle(name, {{create: true}}))", name)
    first.locator("#start").click()
    expect(first.locator("#model-state")).to_have_text("Fetching from the server")
    second = visit.open()
    second.locator("#start").click()
    expect(second.locator("#model-state")).to_have_text("Another tab is fetching it; this one waits for it")
    held.pop().continue_()
    expect(second.locator("#model-state")).to_contain_text("Starting")
    assert len(visit.weights) == 2, "one before the reload, one after it"


def test_without_the_list_of_models_a_start_asks_for_it_again(visit: Visit) -> None:
    page = visit.context.new_page()
    page.route("**/ondevice/models", lambda route: route.abort())
    page.goto(f"{visit.url}/ondevice")
    expect(complaint(page)).to_contain_text("The server is not there, and the weights are not stored")
    page.locator("#start").click()
    expect(complaint(page)).to_contain_text("The server is not there, and the weights are not stored")
    page.unroute("**/ondevice/models")
    signed_out = {"detail": "Sign in first."}
    page.route("**/*.gguf", lambda route: route.fulfill(status=401, json=signed_out))
    page.locator("#start").click()
    expect(complaint(page)).to_contain_text("The server asks who you are.")
    assert not page.locator("#key-fold").evaluate("(fold) => fold.open")


def test_a_start_that_hangs_is_ended_and_said(visit: Visit) -> None:
    asked: list[str] = []

    def once(route: Route) -> None:
        asked.append(route.request.url)
        if len(asked) == 1:
            route.continue_()  # the page's own copy; what the worker then asks for never comes

    visit.context.route("**/wllama.wasm", once)
    page = visit.context.new_page()
    page.clock.install()
    page.goto(f"{visit.url}/ondevice")
    expect(page.locator("#model option").first).to_be_attached()
    page.locator("#start").click()
    expect(page.locator("#model-state")).to_contain_text("Starting")
    page.clock.fast_forward(61_000)
    expect(complaint(page)).to_contain_text("Nothing has happened for 60 s")
    page.get_by_role("button", name="Try one thread and a short window").click()
    expect(page.locator("body")).to_have_attribute("data-model", "ready")
    assert len(asked) == 2, "the copy in memory serves"


def test_too_little_memory_is_told_with_a_smaller_way(visit: Visit) -> None:
    visit.context.add_init_script(
        """
        const Whole = Blob;
        window.Blob = function (parts, options) {
          const worker = typeof parts?.[0] === "string" && parts[0].includes("RUN_OPTIONS");
          const none = "WebAssembly.Memory = function () { throw new RangeError('could not allocate memory'); };";
          return new Whole(worker ? [none, ...parts] : parts, options);
        };
        window.Blob.prototype = Whole.prototype;
        """
    )
    page = visit.open(way="threads", window="8192")
    page.locator("#start").click()
    expect(complaint(page)).to_contain_text("There was not enough memory")
    page.get_by_role("button", name="Try one thread and a short window").click()
    expect(page.locator("#way")).to_have_value("single")
    expect(page.locator("#window")).to_have_value("1024")


def test_a_software_adapter_is_not_called_webgpu(another: Serving, browser: Browser) -> None:
    path = find_browser()
    flags = "--no-sandbox --enable-unsafe-webgpu --disable-quic --no-first-run --disable-background-networking"
    software = browser.browser_type.launch(executable_path=path, args=flags.split())
    try:
        with visiting(software, another) as visit:
            page = visit.open(way="gpu")
            page.locator("#start").click()
            expect(page.locator("body")).to_have_attribute("data-model", "ready")
            expect(page.locator("#model-state")).to_contain_text("on the processor (WebAssembly)")
            why = page.locator("#why li").first.inner_text()
            assert why.startswith("Not on the graphics card: "), why
    finally:
        software.close()
