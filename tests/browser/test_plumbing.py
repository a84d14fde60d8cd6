"""The chat's plumbing in a real browser before a scripted model: escalation, Stop, a closed tab, errors."""

import threading
import time

from playwright.sync_api import Browser, expect

from ..product import ScriptedServer
from .conftest import tab

QUESTION = "What is the largest file that I can drop into a chat?"
GOOD = "The largest file is 10 MB."
HANG_UP_LIMIT_S = 20


def test_a_rejected_draft_is_replaced_and_folded_under_the_answer(
    browser: Browser, scripted_url: str, scripted: ScriptedServer
) -> None:
    scripted.script = lambda model, _: "The largest file is 999 MB." if model == "small" else f"{GOOD} [1]"
    with tab(browser, scripted_url) as chat:
        turn = chat.ask(QUESTION)
        assert turn["escalated"]
        assert turn["verdict"]["reason"] == "the number 999 is in no passage that was read"
        assert "999 MB" not in chat.answer
        assert GOOD.rstrip(".") in chat.answer
        toggle = chat.page.get_by_test_id("receipt-toggle")
        assert "escalated" in toggle.inner_text()
        rejected = chat.page.get_by_test_id("receipt-rejected")
        expect(rejected.locator("summary")).to_have_text(
            "The small model’s draft, set aside: the number 999 is in no passage that was read."
        )
        expect(rejected.locator("del")).to_be_hidden()
        rejected.locator("summary").focus()
        chat.page.keyboard.press("Enter")
        expect(rejected.locator("del")).to_be_visible()
        expect(rejected.locator("del")).to_have_text("The largest file is 999 MB.")


def test_what_is_being_done_is_told_with_a_running_clock(
    browser: Browser, scripted_url: str, scripted: ScriptedServer
) -> None:
    answer = threading.Event()
    scripted.script = lambda model, _: GOOD if answer.wait(60) else ""
    try:
        with tab(browser, scripted_url) as chat:
            chat.send(QUESTION)
            expect(chat.page.get_by_text("The small model is reading … 1 s")).to_be_visible()
            expect(chat.page.get_by_text("The small model is reading … 2 s")).to_be_visible()
            answer.set()
            expect(chat.page.get_by_text(GOOD.rstrip(".")).last).to_be_visible()
            expect(chat.page.get_by_text("is reading")).to_have_count(0)
    finally:
        answer.set()


def test_a_draft_is_dimmed_with_the_reason_until_the_first_sentence_of_the_larger_model(
    browser: Browser, scripted_url: str, scripted: ScriptedServer
) -> None:
    wrong, rest = "The largest file is 999 MB.", "And this is what follows it"
    scripted.script = lambda model, _: wrong if model == "small" else f"{GOOD} {rest}."
    scripted.pause_s = 0.25
    try:
        with tab(browser, scripted_url) as chat:
            chat.send(QUESTION)
            dimmed = chat.page.locator("[data-step-type=assistant_message] blockquote")
            expect(dimmed).to_have_text(wrong)
            colour = "one => getComputedStyle(one).color"
            assert dimmed.evaluate(colour) != chat.page.locator("[data-step-type=user_message]").evaluate(colour)
            reason = "Asking the larger model: the number 999 is in no passage that was read"
            expect(chat.page.get_by_text(reason)).to_be_visible()
            written = chat.page.locator("[data-step-type=assistant_message] .message-content").last
            # At its first sentence, not at its end.
            expect(written).to_contain_text(GOOD)
            expect(dimmed).to_have_count(0)
            assert rest not in written.inner_text()
            expect(written).to_contain_text(rest)
            expect(chat.page.get_by_test_id("receipt-rejected").locator("summary")).to_contain_text("999")
    finally:
        scripted.pause_s = 0.0


def test_a_long_fast_answer_takes_the_browser_no_longer_than_the_model(
    browser: Browser, scripted_url: str, scripted: ScriptedServer
) -> None:
    """Sent one by one, 3,000 tokens would take a browser some thirty times as long as a model that writes 1,000 a second."""
    words = " ".join(f"word{number}" for number in range(3000))
    scripted.script, scripted.pause_s = lambda model, _: words, 0.001
    try:
        with tab(browser, scripted_url) as chat:
            chat.switch("SLM")
            began = time.monotonic()
            chat.send(QUESTION)
            expect(chat.page.get_by_role("article").filter(has_text="word2999")).to_be_visible()
            seen_ms = (time.monotonic() - began) * 1000
            expect(chat.page.get_by_test_id("receipt-toggle")).to_be_visible()
            turn = chat.turn()
            assert len(turn["drafts"][0]["text"].split()) == 3000
            assert 2 < len([event for event in chat.events if event[0] == "stream_token"]) < 300
            assert seen_ms < 2 * turn["trace"]["total_ms"]
    finally:
        scripted.pause_s = 0.0


def test_stop_ends_the_answer_and_the_models_work(
    browser: Browser, scripted_url: str, scripted: ScriptedServer
) -> None:
    scripted.script = lambda model, _: None
    scripted.reset()
    with tab(browser, scripted_url) as chat:
        chat.send(QUESTION)
        expect(chat.page.get_by_text("on and on")).to_be_visible()
        chat.page.locator("#stop-button").click()
        assert scripted.hung_up.wait(HANG_UP_LIMIT_S), "the model went on"
        expect(chat.page.get_by_text("Stopped.", exact=True)).to_be_visible()
        expect(chat.page.locator("#stop-button")).to_have_count(0)
        expect(chat.page.get_by_text("Task manually stopped.")).to_have_count(0)
        chat.page.get_by_test_id("receipt-toggle").click()
        bars = chat.page.get_by_test_id("receipt-body").get_by_test_id("receipt-bar")
        assert "first_token" in {bar.get_attribute("data-span") for bar in bars.all()}
        scripted.script = lambda model, _: GOOD
        assert GOOD.rstrip(".") in chat.ask(QUESTION)["answer"], "the conversation goes on after a stop"


def test_a_stop_before_the_larger_models_first_sentence_leaves_the_draft_as_it_was_shown(
    browser: Browser, scripted_url: str, scripted: ScriptedServer
) -> None:
    asked = threading.Event()
    scripted.script = lambda model, _: "It is 999 MB." if model == "small" else asked.wait(60) and None
    scripted.reset()
    try:
        with tab(browser, scripted_url) as chat:
            chat.send(QUESTION)
            dimmed = chat.page.locator("[data-step-type=assistant_message] blockquote")
            expect(dimmed).to_have_text("It is 999 MB.")
            chat.page.locator("#stop-button").click()
            expect(chat.page.get_by_text("Stopped.", exact=True)).to_be_visible()
            expect(dimmed).to_have_text("It is 999 MB.")
            asked.set()
            assert scripted.hung_up.wait(HANG_UP_LIMIT_S), "the model went on"
    finally:
        asked.set()


def test_stop_also_stops_an_edited_message(browser: Browser, scripted_url: str, scripted: ScriptedServer) -> None:
    scripted.script = lambda model, question: None if "smallest" in question else GOOD
    with tab(browser, scripted_url) as chat:
        chat.ask(QUESTION)
        scripted.reset()
        chat.page.locator("[data-step-type=user_message]").get_by_text(QUESTION).hover()
        chat.page.locator(".edit-message").click()
        chat.page.locator("#edit-chat-input").fill("What is the smallest file that I can drop into a chat?")
        chat.page.locator(".confirm-edit").click()
        expect(chat.page.get_by_text("on and on")).to_be_visible()
        chat.page.locator("#stop-button").click()
        assert scripted.hung_up.wait(HANG_UP_LIMIT_S), "the model went on"


def test_a_closed_tab_ends_the_models_work(browser: Browser, scripted_url: str, scripted: ScriptedServer) -> None:
    scripted.script = lambda model, _: None
    scripted.reset()
    with tab(browser, scripted_url) as chat:
        chat.send(QUESTION)
        expect(chat.page.get_by_text("on and on")).to_be_visible()
        assert not scripted.hung_up.is_set()
    assert scripted.hung_up.wait(HANG_UP_LIMIT_S), "the model went on for nobody"


def test_an_unanswered_question_says_why_and_never_leaves_a_blank(
    browser: Browser, scripted_url: str, scripted: ScriptedServer
) -> None:
    scripted.script = lambda model, _: ""
    with tab(browser, scripted_url) as chat:
        chat.send(QUESTION)
        expect(chat.page.get_by_text("Neither model answered.")).to_be_visible()
        chat.send("   x " * 3000)
        expect(chat.page.get_by_text("The question is too long")).to_be_visible()


def test_a_model_cannot_bring_markup_or_pictures_from_elsewhere(
    browser: Browser, scripted_url: str, scripted: ScriptedServer
) -> None:
    hostile = "The file is 10 MB ![x](http://192.0.2.1/steal.png) <img src=http://192.0.2.1/a.png onerror=alert(1)>"
    scripted.script = lambda model, _: hostile
    with tab(browser, scripted_url) as chat:
        chat.switch("SLM")
        dialogs: list[str] = []
        chat.page.on("dialog", lambda dialog: dialogs.append(dialog.message))
        chat.ask(QUESTION)
        assert dialogs == []
        assert chat.page.locator("img[src*='192.0.2.1']").evaluate_all("all => all.filter(i => i.naturalWidth)") == []
