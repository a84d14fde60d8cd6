"""The whole page, for everybody: faults that axe finds, narrow windows, names, announcements, and the sums above the box."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Locator, Page, expect

from ..product import ScriptedServer
from .conftest import Chat, tab

QUESTION = "What is the example price of output tokens?"
PRICE = "The example price of output tokens is 1.60 dollars per million tokens [1]."
SILENT = "Which zebra file won the Uruguayan regatta?"
NARROW: Any = {"width": 320, "height": 700}


@pytest.fixture(autouse=True)
def answers(scripted: ScriptedServer) -> None:
    scripted.script = lambda model, _: "It is 999 dollars." if model == "small" else PRICE


def faults(page: Page) -> list[str]:
    """What axe calls critical or serious, and still does when names were given to what the page had just drawn anew."""
    seen = seen_faults(page)
    if not seen:
        return []
    named(page)
    return [fault for fault in seen_faults(page) if fault in seen]


def seen_faults(page: Page) -> list[str]:
    found = Axe().run(page).response["violations"]
    return [
        f"{one['id']}: {node['html'][:200]} {node['failureSummary']}"
        for one in found
        for node in one["nodes"]
        if one["impact"] in ("critical", "serious")
    ]


def named(page: Page) -> None:
    """Every button and slider that is shown has its name, or has been given one."""
    page.wait_for_function(
        """() => [...document.querySelectorAll('button, [role=slider]')]
          .every(one => one.ariaLabel || one.textContent.trim() || one.labels?.length
            || !one.checkVisibility({visibilityProperty: true}))"""
    )


def totals(page: Page) -> Locator:
    return page.get_by_test_id("totals-list")


def open_receipt(chat: Chat) -> None:
    chat.ask(QUESTION)
    chat.page.get_by_test_id("receipt-toggle").click()
    chat.page.get_by_test_id("receipt-rejected").locator("summary").click()
    chat.page.get_by_role("button", name="Good answer").click()
    expect(chat.page.get_by_test_id("receipt-comment")).to_be_visible()


def open_passage(chat: Chat) -> None:
    chat.ask(QUESTION)
    chat.page.locator('.message-content a[href="#source-1"]').click()
    expect(chat.page.get_by_test_id("passages").get_by_role("link").last).to_be_visible()


def open_found(chat: Chat) -> None:
    chat.ask(QUESTION)
    chat.page.get_by_test_id("receipt-passages").click()
    expect(chat.page.get_by_test_id("passages-found")).to_be_visible()


def open_totals(chat: Chat) -> None:
    chat.ask(QUESTION)
    chat.page.get_by_test_id("totals-toggle").click()
    totals(chat.page).locator("summary").click()


def open_settings(chat: Chat) -> None:
    chat.page.locator("#chat-settings-open-modal").click()
    expect(chat.page.get_by_role("dialog")).to_be_visible()


def open_sidebar(chat: Chat) -> None:
    chat.ask(QUESTION)
    chat.page.locator("#sidebar-trigger-button:visible").click()
    expect(chat.page.locator("[data-sidebar=menu-button]").first).to_be_visible()
    # What is announced by a script in a moment; nothing else tells of it.
    chat.page.locator("#thread-options[role=button]").first.wait_for(state="attached")


STATES: dict[str, Callable[[Chat], None]] = {
    "empty": lambda chat: None,
    "receipt": open_receipt,
    "passage": open_passage,
    "found": open_found,
    "totals": open_totals,
    "settings": open_settings,
    "sidebar": open_sidebar,
}


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("state", STATES)
def test_axe_finds_no_serious_fault(browser: Browser, scripted_url: str, state: str, theme: Any) -> None:
    with tab(browser, scripted_url) as chat:
        chat.page.emulate_media(color_scheme=theme, reduced_motion="reduce")  # nothing is half faded in
        chat.page.reload()
        chat.page.locator("#chat-settings-open-modal").wait_for()
        expect(chat.page.locator("html")).to_have_class(re.compile(rf"\b{theme}\b"))
        STATES[state](chat)
        named(chat.page)
        assert faults(chat.page) == []


@pytest.mark.parametrize("state", ["empty", "receipt", "passage", "found", "totals"])
def test_a_narrow_window_needs_no_sideways_scrolling_and_has_room_for_a_finger(
    browser: Browser, scripted_url: str, state: str
) -> None:
    with tab(browser, scripted_url) as chat:
        page = chat.page
        page.set_viewport_size(NARROW)
        page.emulate_media(reduced_motion="reduce")  # nothing is still on its way in
        STATES[state](chat)
        assert page.evaluate("document.documentElement.scrollWidth") == 320
        # Marks stand in a sentence, where smaller targets may be.
        small = page.evaluate(
            """() => [...document.querySelectorAll('button, a[href]:not([href^="#source-"]), summary, input, [role=button]')]
              .map(one => [one.outerHTML.slice(0, 120), one.checkVisibility({visibilityProperty: true}) && one.getBoundingClientRect()])
              .filter(([, box]) => box && box.width && (box.width < 24 || box.height < 24)).map(([html]) => html)"""
        )
        assert small == []
        out = page.evaluate(
            """() => [...document.querySelectorAll('body *')].filter(one => one.checkVisibility({visibilityProperty: true})
              && !one.closest('[data-sidebar], .small-first-unseen') && one.getBoundingClientRect().right > 321)
              .map(one => one.outerHTML.slice(0, 120))"""
        )
        assert out == []


def test_every_button_has_a_name(browser: Browser, scripted_url: str) -> None:
    with tab(browser, scripted_url) as chat:
        page = chat.page
        open_sidebar(chat)
        for name in ("Attach files", "Chat settings", "Send message", "Search past chats", "Options of this chat"):
            expect(page.get_by_role("button", name=name).first).to_be_attached()
        edit = page.get_by_role("button", name="Edit this question")
        expect(edit).to_have_css("opacity", "0")
        edit.focus()
        page.keyboard.press("Shift")  # the keyboard is in use
        expect(edit).to_have_css("opacity", "1")
        named(page)


def test_past_chats_are_not_reached_while_they_are_put_away_and_their_menu_has_a_key(
    browser: Browser, scripted_url: str
) -> None:
    with tab(browser, scripted_url) as chat:
        page = chat.page
        sidebar = page.locator("[data-sidebar=sidebar]")
        expect(sidebar).to_be_hidden()
        open_sidebar(chat)
        expect(sidebar).to_be_visible()
        options = page.get_by_role("button", name="Options of this chat").first
        options.focus()
        page.keyboard.press("Enter")
        expect(page.locator("#rename-thread")).to_be_visible()


def test_only_our_own_thumbs_are_shown(browser: Browser, scripted_url: str) -> None:
    with tab(browser, scripted_url) as chat:
        chat.ask(QUESTION)
        expect(chat.page.locator("button:has(> .lucide-thumbs-up):visible")).to_have_count(1)
        expect(chat.page.get_by_role("button", name="Copy to clipboard")).to_have_count(1)


def test_an_answer_is_announced_once_when_it_is_whole(browser: Browser, scripted_url: str) -> None:
    with tab(browser, scripted_url) as chat:
        page = chat.page
        page.evaluate(
            """() => {
              window.heard = [];
              for (const region of document.querySelectorAll('[role=log], [role=status]')) new MutationObserver(() =>
                region.textContent && window.heard.push(region.textContent)).observe(region, {childList: true});
            }"""
        )
        answer = chat.ask(QUESTION)["answer"].replace("[1]", "").strip(" .")
        expect(page.get_by_role("log", name="Latest answer")).to_contain_text(answer)
        chat.page.get_by_test_id("receipt-toggle").click()
        chat.page.get_by_role("button", name="Good answer").click()
        expect(page.get_by_test_id("receipt-comment")).to_be_visible()
        page.wait_for_timeout(1000)  # it takes as long until a change is announced
        heard = page.evaluate("window.heard")
        assert sum(answer in text for text in heard) == 1
        assert not [text for text in heard if "Try again" in text]


def test_motion_is_reduced_for_who_asked_for_that(browser: Browser, scripted_url: str) -> None:
    with tab(browser, scripted_url) as chat:
        chat.page.emulate_media(reduced_motion="reduce")
        open_passage(chat)
        took = "getComputedStyle(document.getElementById('small-first-passages')).animationDuration"
        assert float(chat.page.evaluate(took).removesuffix("s")) < 0.001


def test_the_sums_are_hidden_until_there_is_a_turn_and_then_tell_of_each(browser: Browser, scripted_url: str) -> None:
    with tab(browser, scripted_url) as chat:
        page = chat.page
        toggle = page.get_by_test_id("totals-toggle")
        expect(toggle).to_be_hidden()
        chat.ask(QUESTION)
        chat.ask(SILENT)
        expect(toggle).to_have_text("2 turns · 1 escalated")
        toggle.press("Enter")
        sums = totals(page)
        expect(sums).to_contain_text("Answered by the larger model")
        expect(sums).to_contain_text("1 (50%)")
        picture = sums.get_by_role("img")
        expect(picture).to_have_attribute("aria-label", re.compile(r"how long the last 2 turns took, at most \d"))
        expect(picture.locator("rect")).to_have_count(2)
        sums.locator("summary").press("Enter")
        rows = sums.get_by_role("row")
        expect(rows).to_have_count(3)
        expect(rows.nth(1)).to_contain_text(re.compile(rf"{re.escape(QUESTION)}larger model\d"))
        expect(rows.nth(2)).to_contain_text(f"{SILENT}not in the documents–")
        page.keyboard.press("Escape")
        expect(sums).to_be_hidden()
        expect(toggle).to_be_focused()

        page.reload()
        expect(toggle).to_have_text("2 turns · 1 escalated")
        page.locator("#new-chat-button:visible").click()
        page.get_by_role("dialog").get_by_role("button", name="Confirm").click()
        page.locator("#welcome-screen").wait_for()
        expect(toggle).to_be_hidden()


@pytest.mark.parametrize("ending", ["md", "csv"])
def test_the_conversation_can_be_exported(browser: Browser, scripted_url: str, ending: str) -> None:
    with tab(browser, scripted_url) as chat:
        chat.ask(QUESTION)
        chat.page.get_by_test_id("totals-toggle").click()
        with chat.page.expect_download() as download:
            totals(chat.page).get_by_role("link", name={"md": "Markdown", "csv": "CSV"}[ending]).click()
        assert QUESTION in Path(download.value.path()).read_text(encoding="utf-8-sig")
