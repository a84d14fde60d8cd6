"""The receipt under an answer, in a real browser before a scripted model: its line, what it opens into, its buttons."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, Locator, expect

from ..product import ScriptedServer
from .conftest import Chat, tab

QUESTION = "What is the largest file that I can drop into a chat?"
GOOD = "The largest file is 10 MB."
WRONG = "The largest file is 999 MB."
REASON = "the number 999 is in no passage that was read"


def escalates(scripted: ScriptedServer) -> None:
    scripted.script = lambda model, _: WRONG if model == "small" else f"{GOOD} [1]"


def act(chat: Chat, name: str) -> Locator:
    """A control of the newest receipt."""
    return chat.page.get_by_test_id("receipt").last.locator(f"[data-act={name}]")


@contextmanager
def renewed(chat: Chat) -> Iterator[None]:
    """The body changes a receipt; then wait for the element that takes its place: what is typed into the old one is lost."""
    chat.page.evaluate("for (const one of document.querySelectorAll('[data-testid=receipt]')) one.dataset.old = ''")
    yield
    expect(chat.page.locator("[data-old]")).to_have_count(0)


def opened(chat: Chat) -> Locator:
    """The newest receipt, opened by the keyboard."""
    toggle = chat.page.get_by_test_id("receipt-toggle").last
    toggle.focus()
    chat.page.keyboard.press("Enter")
    body = chat.page.get_by_test_id("receipt-body").last
    expect(body).to_be_visible()
    return body


def test_the_line_says_who_answered_and_opens_into_what_the_turn_did(
    browser: Browser, scripted_url: str, scripted: ScriptedServer
) -> None:
    escalates(scripted)
    with tab(browser, scripted_url) as chat:
        turn = chat.ask(QUESTION)
        line = chat.page.get_by_test_id("receipt-toggle")
        expect(line).to_have_text(re.compile(r"^large · escalated · first token .*\d (m?s) · total .*\d m?s"))
        expect(line).not_to_contain_text("sent to")  # the scripted server is on this machine
        body = opened(chat)
        drawn = {
            (bar.get_attribute("data-span"), bar.get_attribute("data-leg"))
            for bar in body.get_by_test_id("receipt-bar").all()
        }
        steps = {"prompt", "request", "first_token", "completion"}
        assert {(step, leg) for step in steps for leg in ("slm", "llm")} | {("judge", "slm"), ("retrieve", "")} <= drawn
        expect(body).to_contain_text("The small model’s answer was not accepted, so the larger model was asked.")
        row = body.get_by_role("row").filter(has_text="Words of the question in the passages")
        expect(row).to_contain_text(f"{turn['verdict']['signals']['coverage']:.0%}")
        expect(body.get_by_role("row").filter(has_text="In no passage that was read")).to_contain_text("999")
        assert not re.search(r"[a-z]_[a-z]", body.inner_text()), "every signal and span has words"
        ledgers = body.get_by_test_id("receipt-ledger")
        expect(ledgers).to_have_count(2)
        expect(ledgers.last).to_contain_text(f"{turn['ledger']['llm']['passages_sent']} passage")
        expect(body).to_contain_text("Everything stayed on this machine.")


def test_the_reason_of_an_escalation_is_told_once(
    browser: Browser, scripted_url: str, scripted: ScriptedServer
) -> None:
    escalates(scripted)
    with tab(browser, scripted_url) as chat:
        assert chat.ask(QUESTION)["verdict"]["reason"] == REASON
        opened(chat)
        assert chat.page.get_by_test_id("receipt").inner_text().count(REASON) == 1
        expect(chat.page.get_by_test_id("receipt-rejected")).to_contain_text(REASON)


def test_energy_says_how_it_is_known(browser: Browser, scripted_url: str, scripted: ScriptedServer) -> None:
    scripted.script = lambda model, _: GOOD
    cases = [
        ({"energy_source": "RAPL, package", "energy_measured": True}, "12 J, measured (RAPL, package)"),
        ({"energy_source": "battery", "energy_measured": True}, "12 J, measured (battery)"),
        (
            {"energy_source": "NVML + estimated from CPU time", "energy_measured": False},
            "about 12 J: partly measured (NVML), partly estimated from CPU time, 20 W assumed",
        ),
        ({}, "about 12 J, estimated from computing time, 20 W assumed"),  # of an older version
        ({"watts": None}, "about 12 J, estimated from computing time"),
        ({"energy_j": 0}, None),
        ({"energy_j": None}, None),
    ]
    with tab(browser, scripted_url) as chat:
        turn = chat.ask(QUESTION)
        assert turn["bill"]["resources"] == {}, "whose server this is, nobody knows"
        words = "bill => window.smallFirst.turns.bill({bill})"
        for bill, told in cases:
            rows = chat.page.evaluate(words, {"energy_j": 12, "watts": 20, **bill})
            assert rows == ([["Energy", told]] if told else [])
        gpu = {"cpu_s": 1.5, "peak_memory_mb": 2006.4, "gpu_memory_mb": 1500, "gpu_share": 0.75}
        assert chat.page.evaluate(words, {"resources": {"llm": gpu}}) == [
            [
                "Larger model",
                "1.50 s of CPU time · at most 2,006 MB of memory · GPU 75% busy · at most 1,500 MB of GPU memory",
            ]
        ]


def test_a_thumb_and_a_word_about_it_are_kept_over_a_reload(
    browser: Browser, scripted_url: str, scripted: ScriptedServer
) -> None:
    scripted.script = lambda model, _: GOOD
    with tab(browser, scripted_url) as chat:
        chat.ask(QUESTION)
        up, down = act(chat, "good"), act(chat, "bad")
        expect(up).to_have_attribute("aria-pressed", "false")
        expect(act(chat, "comment")).to_have_count(0)
        with renewed(chat):
            up.click()
        expect(up).to_have_attribute("aria-pressed", "true")
        with renewed(chat):
            down.focus()
            chat.page.keyboard.press("Enter")
        expect(down).to_have_attribute("aria-pressed", "true")
        expect(up).to_have_attribute("aria-pressed", "false")
        expect(down).to_be_focused()
        act(chat, "comment").fill("too short")
        act(chat, "comment").press("Enter")
        expect(act(chat, "said")).to_have_text("“too short”")
        expect(act(chat, "said")).to_be_focused()

        chat.page.reload()
        expect(act(chat, "said")).to_have_text("“too short”")
        expect(down).to_have_attribute("aria-pressed", "true")
        down.click()
        expect(down).to_have_attribute("aria-pressed", "false")
        expect(act(chat, "said")).to_have_count(0)


def test_the_short_answer_can_be_kept_in_place_of_the_larger_models(
    browser: Browser, scripted_url: str, scripted: ScriptedServer
) -> None:
    escalates(scripted)
    with tab(browser, scripted_url) as chat:
        chat.ask(QUESTION)
        act(chat, "keep_short").press("Enter")
        expect(chat.page.get_by_test_id("receipt-toggle")).to_contain_text("short answer kept")
        assert "999 MB" in chat.answer
        expect(chat.page.get_by_test_id("receipt-rejected").locator("summary")).to_have_text(
            "The larger model’s answer, set aside: you kept the short one."
        )
        expect(act(chat, "keep_short")).to_have_count(0)
        expect(act(chat, "copy")).to_be_focused()  # the button that had the focus is gone
        chat.page.reload()
        expect(chat.page.get_by_test_id("receipt-toggle")).to_contain_text("short answer kept")


def test_an_open_receipt_stays_open_while_the_conversation_goes_on(
    browser: Browser, scripted_url: str, scripted: ScriptedServer
) -> None:
    escalates(scripted)
    with tab(browser, scripted_url) as chat:
        chat.ask(QUESTION)
        opened(chat)
        chat.page.get_by_test_id("receipt-rejected").locator("summary").click()
        scripted.script = lambda model, _: GOOD
        chat.ask("And what is the smallest file?")
        first = chat.page.get_by_test_id("receipt").first
        expect(first.get_by_test_id("receipt-body")).to_be_visible()
        expect(first.locator("del")).to_be_visible()
        expect(chat.page.get_by_test_id("receipt-body").last).to_be_hidden()


def test_what_could_not_be_done_is_told(browser: Browser, scripted_url: str, scripted: ScriptedServer) -> None:
    scripted.script = lambda model, _: GOOD
    with tab(browser, scripted_url) as chat:
        chat.ask(QUESTION)
        refusal = json.dumps({"detail": "The disk is full."})
        chat.page.route("**/project/action", lambda route: route.fulfill(status=500, body=refusal))
        act(chat, "good").click()
        expect(chat.page.get_by_test_id("receipt").get_by_role("alert")).to_have_text("The disk is full.")
        expect(act(chat, "good")).to_have_attribute("aria-pressed", "false")
        chat.page.unroute("**/project/action")
        act(chat, "good").click()
        expect(act(chat, "good")).to_have_attribute("aria-pressed", "true")
        expect(chat.page.get_by_test_id("receipt").get_by_role("alert")).to_have_count(0)


def test_a_button_that_was_pressed_cannot_be_pressed_again_meanwhile(
    browser: Browser, scripted_url: str, scripted: ScriptedServer
) -> None:
    scripted.script = lambda model, _: GOOD if model == "small" else None
    with tab(browser, scripted_url) as chat:
        chat.ask(QUESTION)
        receipt = chat.page.get_by_test_id("receipt").first
        receipt.locator("[data-act=ask_larger]").click()
        expect(chat.page.get_by_text("on and on")).to_be_visible()
        retry = receipt.locator("[data-act=retry]")
        expect(retry).to_have_attribute("aria-disabled", "true")
        retry.click(force=True)
        chat.page.locator("#stop-button").click()
        expect(retry).not_to_have_attribute("aria-disabled", "true")
        expect(chat.page.get_by_test_id("receipt")).to_have_count(2)


def test_a_copied_answer_carries_its_sources_and_no_receipt(
    browser: Browser, scripted_url: str, scripted: ScriptedServer
) -> None:
    escalates(scripted)
    with tab(browser, scripted_url) as chat:
        chat.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        turn = chat.ask(QUESTION)
        chat.page.get_by_role("button", name="Copy to clipboard").click()
        expect(chat.page.get_by_role("button", name="Copied")).to_be_visible()
        read = "async type => (await (await navigator.clipboard.read())[0].getType(type)).text()"
        text, html = (chat.page.evaluate(read, kind) for kind in ("text/plain", "text/html"))
        assert text.startswith(turn["answer"])
        source = turn["citations"][0]["source"]
        assert f"\n\n[1] {source}" in text
        assert source in html
        for not_said in ("Try again", "999", "escalated", "#source-1"):
            assert not_said not in text + html


def test_a_stopped_answer_can_be_tried_again(browser: Browser, scripted_url: str, scripted: ScriptedServer) -> None:
    scripted.script = lambda model, _: None
    with tab(browser, scripted_url) as chat:
        chat.send(QUESTION)
        expect(chat.page.get_by_text("on and on")).to_be_visible()
        chat.page.locator("#stop-button").click()
        expect(chat.page.get_by_test_id("receipt-toggle")).to_contain_text("stopped")
        expect(act(chat, "good")).to_have_count(0)
        scripted.script = lambda model, _: GOOD
        act(chat, "retry").press("Enter")
        expect(chat.page.locator("[data-step-type=assistant_message]").last).to_contain_text(GOOD.rstrip("."))
        expect(chat.page.get_by_test_id("receipt")).to_have_count(1)


def test_without_receipts_only_the_line_goes(browser: Browser, scripted_url: str, scripted: ScriptedServer) -> None:
    escalates(scripted)
    with tab(browser, scripted_url) as chat:
        page = chat.page
        chat.ask(QUESTION)
        for count in (0, 1):
            page.locator("#chat-settings-open-modal").click()
            page.get_by_role("switch", name="Show receipts").click()
            page.locator("#confirm").click()
            expect(page.get_by_test_id("receipt-toggle")).to_have_count(count)
            expect(page.get_by_test_id("receipt-sources")).to_be_visible()
            expect(page.get_by_test_id("receipt-tools")).to_be_visible()


def test_a_turn_can_be_exported(browser: Browser, scripted_url: str, scripted: ScriptedServer) -> None:
    scripted.script = lambda model, _: GOOD
    with tab(browser, scripted_url) as chat:
        turn = chat.ask(QUESTION)
        opened(chat)
        with chat.page.expect_download() as download:
            act(chat, "export").click()
        with open(download.value.path()) as file:
            assert turn["answer"] in json.dumps(json.load(file), ensure_ascii=False)
