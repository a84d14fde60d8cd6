"""Signing in, as people see it: the page that asks, the one they wanted, the way out, and somebody else's browser."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from playwright.sync_api import Browser, Page, expect

from rag.serve.users import Users

from ..product import ScriptedServer, chat, free_port
from .conftest import send, visitor

USERS = {"anna": "correct horse", "bo": "another good one", "carl": "a third password"}
HEADING = "Sign in to Small First"


@dataclass(frozen=True)
class Site:
    url: str
    users: Users


@pytest.fixture(scope="module")
def site(browser: Browser, scripted: ScriptedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("login")
    environment = {
        "RAG_CACHE_DIR": str(folder / "cache"), "RAG_DATA_DIR": str(folder / "data"), "RAG_REMOTE": "allow",
        "RAG_SLM_BASE_URL": scripted.url, "RAG_SLM_MODEL": "small", "RAG_LLM_BASE_URL": scripted.url, "RAG_LLM_MODEL": "large",
    }  # fmt: skip
    with chat(free_port(), folder / "chat.log", users=USERS, **environment) as url:
        yield Site(url, Users(folder / "data"))


def sign_in(page: Page, name: str, password: str) -> None:
    page.locator("#email").fill(name)
    page.locator("#password").fill(password)
    page.get_by_role("button", name="Sign in").click()


def ready(page: Page) -> None:
    """A conversation has begun."""
    page.locator("#chat-input").wait_for()
    page.locator("#chat-settings-open-modal").wait_for()


def ask(page: Page, question: str) -> None:
    send(page, question)
    expect(page.get_by_test_id("receipt-toggle")).to_be_visible()


def test_a_password_is_asked_for_and_the_way_out_asks_again(browser: Browser, site: Site) -> None:
    with visitor(browser) as context:
        page = context.new_page()
        page.goto(site.url)
        expect(page.get_by_text(HEADING)).to_be_visible()
        assert page.url == f"{site.url}/login"
        expect(page.locator("#chat-input")).to_have_count(0)

        sign_in(page, "anna", "a wrong one")
        expect(page.get_by_text("The name or the password is wrong.")).to_be_visible()
        expect(page.get_by_role("alert").filter(has_text="Could not sign in")).to_be_visible()
        sign_in(page, "Anna ", USERS["anna"])
        ready(page)
        assert page.url == f"{site.url}/"

        page.reload()
        ready(page)
        page.locator("#user-nav-button").click()
        expect(page.get_by_text("anna", exact=True)).to_be_visible()
        page.get_by_role("menuitem").filter(has_text="out").click()
        expect(page.get_by_text(HEADING)).to_be_visible()
        page.goto(site.url)
        expect(page.get_by_text(HEADING)).to_be_visible()


def test_two_users_see_their_own_conversations(browser: Browser, scripted: ScriptedServer, site: Site) -> None:
    scripted.script = lambda model, _: "The largest file is 10 MB."
    questions = {
        "anna": "What is the largest file that anna can drop?",
        "bo": "What is the largest file that bo can drop?",
    }
    addresses = {}
    with visitor(browser) as annas, visitor(browser) as bos:
        anna, bo = annas.new_page(), bos.new_page()
        for name, page in (("anna", anna), ("bo", bo)):
            page.goto(site.url)
            sign_in(page, name, USERS[name])
            ready(page)
            ask(page, questions[name])
            page.wait_for_url("**/thread/*")
            addresses[name] = page.url
        for name, page, other in (("anna", anna, "bo"), ("bo", bo, "anna")):
            if not page.locator("#thread-history").is_visible():
                page.locator("#sidebar-trigger-button:visible").click()
            history = page.locator("#thread-history")
            expect(history).to_contain_text(questions[name][:20])
            expect(history).not_to_contain_text(f"that {other} can")
            page.goto(addresses[other])
            page.wait_for_url(f"{site.url}/")
            expect(page.locator("body")).not_to_contain_text(questions[other])


def test_a_link_to_a_conversation_survives_signing_in(browser: Browser, scripted: ScriptedServer, site: Site) -> None:
    scripted.script = lambda model, _: "The largest file is 10 MB."
    question = "What is the largest file in the conversation of the link?"
    with visitor(browser) as context:
        page = context.new_page()
        page.goto(site.url)
        sign_in(page, "anna", USERS["anna"])
        ready(page)
        ask(page, question)
        page.wait_for_url("**/thread/*")
        address = page.url
    with visitor(browser) as context:
        page = context.new_page()
        page.goto(address)
        expect(page.get_by_text(HEADING)).to_be_visible()
        sign_in(page, "anna", USERS["anna"])
        page.wait_for_url(address)
        expect(page.locator("[data-step-type=user_message]")).to_contain_text(question)


def test_whoever_is_removed_sees_the_page_that_asks(browser: Browser, site: Site) -> None:
    with visitor(browser) as context:
        page = context.new_page()
        page.goto(site.url)
        sign_in(page, "carl", USERS["carl"])
        ready(page)
        page.locator("#chat-input").fill("Am I still here?")
        site.users.remove("carl")
        # The page may have found out by itself meanwhile: it asks for the state of the models every few seconds.
        page.keyboard.press("Enter")
        expect(page.get_by_text(HEADING)).to_be_visible()


def test_on_this_machine_no_page_asks_and_none_flashes(browser: Browser, scripted_url: str) -> None:
    with visitor(browser) as context:
        page = context.new_page()
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url.removeprefix(scripted_url)))
        page.goto(scripted_url)
        ready(page)
        assert not [path for path in asked if path.startswith(("/login", "/auth/header"))]
        assert page.context.cookies() == [
            cookie for cookie in page.context.cookies() if cookie["name"] == "X-Chainlit-Session-id"
        ]
