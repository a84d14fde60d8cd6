"""A citation as people follow it: from the mark in the answer to the sentence in its document, and back."""

import json

from playwright.sync_api import Browser, Locator, Page, Route, expect

from ..product import ScriptedServer
from .conftest import Chat, tab

QUESTION = "What is the example price of output tokens?"
PRICE = "The example price of output tokens is 1.60 dollars per million tokens"
TWO = f"{PRICE} [1]. In a prompt, input tokens usually outnumber output tokens [2]."
NARROW = {"width": 320, "height": 700}


def mark(page: Page, number: int = 1) -> Locator:
    return page.locator(f'.message-content a[href="#source-{number}"]').last


def panel(page: Page) -> Locator:
    return page.get_by_test_id("passages")


def ask(chat: Chat, scripted: ScriptedServer, answer: str = f"{PRICE} [1].") -> dict[str, object]:
    scripted.script = lambda model, _: "It is 999 dollars." if model == "small" else answer
    return chat.ask(QUESTION)


def answered(route: Route, **source: object) -> None:
    told = {"name": "x", "unit": "page", "page": 1, "pages": 3, "picture": None, "marks": [], "document": None}
    route.fulfill(status=200, content_type="application/json", body=json.dumps({**told, **source}))


def test_a_mark_opens_its_sentence_beside_the_chat_and_escape_leads_back(
    browser: Browser, scripted_url: str, scripted: ScriptedServer
) -> None:
    with tab(browser, scripted_url) as chat:
        page = chat.page
        turn = ask(chat, scripted)
        expect(panel(page)).to_be_hidden()
        mark(page).focus()
        page.keyboard.press("Enter")
        expect(panel(page)).to_be_visible()
        cited = turn["citations"][0]  # type: ignore[index]
        expect(panel(page).locator("h3")).to_contain_text(cited["source"])
        expect(panel(page).locator("mark")).to_have_text(" ".join(cited["quote"].split()), use_inner_text=True)
        text = panel(page).locator(".sf-text")
        assert len(text.inner_text()) > len(cited["quote"]), "the sentence stands in its passage"
        box, beside = page.locator("#message-composer").bounding_box(), panel(page).bounding_box()
        assert box
        assert beside
        assert box["x"] + box["width"] <= beside["x"], "the chat gives way"
        assert len(page.context.pages) == 1, "Chainlit would open a tab"
        expect(page.locator("#chat-input")).to_be_editable()

        page.keyboard.press("Escape")
        expect(panel(page)).to_be_hidden()
        expect(mark(page)).to_be_focused()


def test_the_page_of_a_pdf_is_shown_with_the_sentence_marked(
    browser: Browser, scripted_url: str, scripted: ScriptedServer
) -> None:
    with tab(browser, scripted_url) as chat:
        page = chat.page
        cited = ask(chat, scripted)["citations"][0]  # type: ignore[index]
        mark(page).click()
        picture = panel(page).get_by_role("img", name=f"Picture of page {cited['page']} of {cited['source']}")
        expect(picture).to_be_visible()
        page.wait_for_function("image => image.naturalWidth > 100", arg=picture.element_handle())
        frame = picture.bounding_box()
        assert frame
        marked = [box.bounding_box() for box in panel(page).locator(".sf-marked").all()]
        assert marked
        for box in marked:
            assert box
            assert frame["x"] <= box["x"]
            assert box["x"] + box["width"] <= frame["x"] + frame["width"] + 1
        link = panel(page).get_by_role("link", name=f"Open the document at page {cited['page']}")
        assert str(link.get_attribute("href")).endswith(f"#page={cited['page']}")
        assert link.get_attribute("target") == "_blank"
        answer = page.request.get(str(link.get_attribute("href")))
        assert answer.headers["content-type"] == "application/pdf"


def test_one_source_after_the_other_from_marks_and_chips(
    browser: Browser, scripted_url: str, scripted: ScriptedServer
) -> None:
    with tab(browser, scripted_url) as chat:
        page = chat.page
        cited = ask(chat, scripted, TWO)["citations"]
        assert isinstance(cited, list)
        assert len(cited) == 2
        chips = page.get_by_test_id("receipt-sources").get_by_role("button")
        expect(chips).to_have_count(2)
        chips.last.click()
        title, number = panel(page).locator("h2"), panel(page).locator("h3 .sf-number")
        expect(title).to_have_text("Source 2 of 2")
        expect(number).to_have_text(str(cited[1]["marker"]))
        following, previous = page.get_by_test_id("passages-next"), page.get_by_test_id("passages-previous")
        expect(following).to_be_disabled()
        previous.press("Enter")
        expect(title).to_have_text("Source 1 of 2")
        expect(number).to_have_text(str(cited[0]["marker"]))
        expect(previous).to_be_disabled()
        mark(page, 2).click()
        expect(title).to_have_text("Source 2 of 2")
        page.get_by_test_id("passages-close").click()
        expect(mark(page, 2)).to_be_focused()


def test_what_was_found_is_listed_with_scores_and_can_be_read_whole(
    browser: Browser, scripted_url: str, scripted: ScriptedServer
) -> None:
    with tab(browser, scripted_url) as chat:
        page = chat.page
        hits = ask(chat, scripted)["hits"]
        assert isinstance(hits, list)
        page.get_by_test_id("receipt-passages").press("Enter")
        rows = page.get_by_test_id("passages-found").get_by_role("listitem")
        expect(rows).to_have_count(len(hits))
        expect(panel(page)).to_contain_text(f"Searched for: {QUESTION}")
        for row, hit in zip(rows.all(), hits, strict=True):
            expect(row).to_contain_text(hit["source"])
            expect(row).to_contain_text("score")
        rows.nth(1).get_by_role("button").click()
        expect(panel(page).locator("h2")).to_have_text(f"Found 2 of {len(hits)}")
        assert hits[1]["text"].split()[-1] in panel(page).locator(".sf-text").inner_text()
        page.get_by_test_id("passages-list").click()
        expect(rows).to_have_count(len(hits))
        page.keyboard.press("Escape")
        expect(page.get_by_test_id("receipt-passages")).to_be_focused()


def test_on_a_narrow_window_the_panel_covers_the_page_and_keeps_the_focus(
    browser: Browser, scripted_url: str, scripted: ScriptedServer
) -> None:
    with tab(browser, scripted_url) as chat:
        page = chat.page
        ask(chat, scripted)
        page.set_viewport_size(NARROW)  # type: ignore[arg-type]
        page.emulate_media(reduced_motion="reduce")  # it is there at once
        mark(page).click()
        dialog = page.get_by_role("dialog")
        expect(dialog).to_be_visible()
        box = dialog.bounding_box()
        assert box
        assert (box["x"], box["width"]) == (0, 320)
        assert page.evaluate("document.getElementById('root').inert")
        assert page.evaluate("document.documentElement.scrollWidth") == 320
        page.keyboard.press("Escape")
        expect(dialog).to_have_count(0)
        assert not page.evaluate("document.getElementById('root').inert")
        expect(mark(page)).to_be_focused()


def test_a_document_that_is_gone_says_so_and_the_sentence_still_stands(
    browser: Browser, scripted_url: str, scripted: ScriptedServer
) -> None:
    with tab(browser, scripted_url) as chat:
        page = chat.page
        ask(chat, scripted)
        refusal = json.dumps({"detail": "token-costs.pdf is no longer here."})
        page.route("**/source?*", lambda route: route.fulfill(status=404, body=refusal))
        mark(page).click()
        expect(panel(page)).to_contain_text("token-costs.pdf is no longer here.")
        expect(panel(page).locator("mark")).to_contain_text("1.60 dollars")
        expect(panel(page).get_by_role("link")).to_have_count(0)


def test_documents_cannot_bring_markup_into_the_panel(
    browser: Browser, scripted_url: str, scripted: ScriptedServer
) -> None:
    hostile = '<img src=x onerror="document.title=1"><b>bold</b>'
    with tab(browser, scripted_url) as chat:
        page = chat.page
        ask(chat, scripted)
        page.route("**/source?*", lambda route: answered(route, name=hostile, before=hostile, after=hostile))
        # A quote that no passage holds stands alone, with what the server knows of its surroundings.
        page.evaluate(
            """() => window.smallFirst.passages.show({
              answer: document.querySelector('[data-answer]').dataset.answer, uploads: [], hits: [], kind: 'cited', index: 0,
              citations: [{marker: 1, source: '<i>x</i>', page: 1, heading: ['<u>h</u>'], start: 0, end: 4, quote: '<s>q'}],
            })"""
        )
        expect(panel(page).locator("mark")).to_have_text("<s>q")
        expect(panel(page).locator(".sf-text")).to_contain_text(hostile)
        assert panel(page).locator("img, b, i, u, s").count() == 0


def test_the_panel_closes_with_its_conversation(browser: Browser, scripted_url: str, scripted: ScriptedServer) -> None:
    with tab(browser, scripted_url) as chat:
        page = chat.page
        ask(chat, scripted)
        mark(page).click()
        expect(panel(page)).to_be_visible()
        page.locator("#new-chat-button:visible").click()
        page.get_by_role("dialog").get_by_role("button", name="Confirm").click()
        page.locator("#welcome-screen").wait_for()
        expect(panel(page)).to_be_hidden()
