"""What the server gives to who opens a citation, and to whom it gives nothing: real servers, real logins, real PDFs."""

import asyncio
import io
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urljoin, urlsplit
from uuid import uuid4

import httpx2
import pytest
from PIL import Image

from rag.corpus.documents import Ingest, Passage, ingest
from rag.errors import DocumentError
from rag.serve.sources import AROUND_CHARS, Document, Pages, around
from rag.settings import Settings
from rag.words import LANGUAGES, say, told

from . import files
from .conftest import CORPUS
from .test_hardening import Server, run

ADA, BOB = "aaaaaaaa-0000-4000-8000-000000000001", "bbbbbbbb-0000-4000-8000-000000000002"
OWNERS = {ADA: "ada", BOB: "bob"}
QUOTE = "Prefill grows with the length of the prompt: twice as many passages take about twice as long to read."
SECRET = "The vault opens at nine."

APP = """
import os
os.environ["CHAINLIT_AUTH_SECRET"] = "a secret of thirty-two characters at least"
from pathlib import Path
import chainlit as cl
from chainlit.server import app, sio
from rag.corpus.documents import ingest
from rag.corpus.library import Library
from rag.serve import sources
from rag.serve.hardening import harden
from rag.settings import Settings

settings = Settings(_env_file=None, docs=Path("docs"), cache_dir=Path("cache"))
library = Library(settings)
library.update()
owners = {owners}

async def open_upload(thread, source, user):
    Path("asked").open("a").write(f"{{thread}} {{source!r}}\\n")
    if thread not in owners or owners[thread] != (user and user.identifier):
        return None
    stored = Path("uploads", thread)
    names = (stored / "names").read_text().split()
    if source not in names:
        return None
    path = stored / str(names.index(source))
    data = path.read_bytes()
    return sources.Upload(data if source.startswith("bytes") else path, *ingest(data, source, 700))

harden(app, sio)
app.include_router(sources.router(library, sources.Pages(settings), open_upload))
app.router.routes.insert(0, app.router.routes.pop())

@cl.on_message
async def answer(message):
    pass
{login}
"""
LOGIN = """
@cl.password_auth_callback
def login(username, password):
    return cl.User(identifier=username) if password == "right" else None
"""


def fill(folder: Path) -> None:
    docs = folder / "docs"
    shutil.copytree(CORPUS, docs)
    (docs / "deep").mkdir()
    shutil.copy(CORPUS / "latency.pdf", docs / "deep" / "zażółć & 50%.pdf")
    (docs / "page.html").write_text("<html><body><h1>Title</h1><p>Some words.</p><script>alert(1)</script>")
    (docs / "pdf.txt").write_bytes(files.pdf(["A PDF by any other name"]))
    (docs / "scan.pdf").write_bytes(files.pdf(["Words", ""]))
    for name in ("goes", "link", "shorter", "locked", "torn", "pipe", "changes"):
        (docs / f"{name}.pdf").write_bytes(files.pdf([f"The {name} one", "second", "third"]))
    (folder / "outside.pdf").write_bytes(files.pdf([SECRET]))
    (docs / "unread.pdf").symlink_to(folder / "outside.pdf")
    for thread, owner in OWNERS.items():
        stored = folder / "uploads" / thread
        stored.mkdir(parents=True)
        (stored / "names").write_text("mine.pdf bytes.pdf note.md")
        (stored / "0").write_bytes(files.pdf([f"The first page of {owner}", f"The diary of {owner}"]))
        (stored / "1").write_bytes(files.pdf([f"The second diary of {owner}"]))
        (stored / "2").write_text(f"# Note\n\nA note of {owner}.")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("signed-in")
    fill(folder)
    yield from run(folder, APP.format(owners=OWNERS, login=LOGIN))


@pytest.fixture(scope="module")
def without_login(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("open")
    fill(folder)
    yield from run(folder, APP.format(owners={ADA: None}, login=""))


@contextmanager
def signed_in(server: Server, name: str) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=server.url, timeout=60) as client:
        assert client.post("/login", data={"username": name, "password": "right"}).status_code == 200
        yield client


@pytest.fixture(scope="module")
def ada(server: Server) -> Iterator[httpx2.Client]:
    with signed_in(server, "ada") as client:
        yield client


@pytest.fixture(scope="module")
def bob(server: Server) -> Iterator[httpx2.Client]:
    with signed_in(server, "bob") as client:
        yield client


def ask(client: httpx2.Client, name: str, **more: object) -> dict[str, Any]:
    answer = client.get("/source", params={"name": name, **more})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    found: dict[str, Any] = answer.json()
    return found


def follow(client: httpx2.Client, found: dict[str, Any], part: str) -> httpx2.Response:
    """What an address in an answer leads to, taken as relative to the answer's own."""
    return client.get(urljoin(f"{client.base_url}/source", found[part]))


def refusal(answer: httpx2.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    detail = answer.json()["detail"]
    assert isinstance(detail, str)
    return detail


def everywhere(client: httpx2.Client, name: str, thread: str = "") -> set[tuple[int, str]]:
    """What each route says of one name."""
    paths = ("/source", "/source/picture", "/source/document")
    answers = [client.get(path, params={"name": name, "thread": thread, "page": 1}) for path in paths]
    return {(answer.status_code, answer.json().get("detail", "")) for answer in answers}


def dark(png: bytes, box: Sequence[float]) -> float:
    seen = Image.open(io.BytesIO(png)).convert("L")
    left, top, width, height = box
    part = seen.crop(
        (
            int(left * seen.width),
            int(top * seen.height),
            int((left + width) * seen.width),
            int((top + height) * seen.height),
        )
    )
    return sum(part.histogram()[:128]) / (part.width * part.height)


# --- what is given ---


def test_a_citation_of_a_pdf_opens_its_page_with_the_sentence_marked(ada: httpx2.Client) -> None:
    _, passages = ingest((CORPUS / "latency.pdf").read_bytes(), "latency.pdf", 700)
    cited = next(passage for passage in passages if "twice as many passages" in passage.text)
    assert cited.page == 1
    quote = next(part for part in cited.text.split(". ") if part.startswith("Prefill grows"))
    found = ask(ada, "latency.pdf", page=1, quote=quote, start=cited.start + cited.text.index(quote))
    assert {key: found[key] for key in ("name", "unit", "page", "pages")} == {
        "name": "latency.pdf", "unit": "page", "page": 1, "pages": 2,
    }  # fmt: skip
    assert len(found["marks"]) == 2
    picture = follow(ada, found, "picture")
    assert picture.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(picture.content)).size == (1200, 1699)
    assert all(dark(picture.content, mark) > 0.03 for mark in found["marks"])
    assert found["before"].endswith(cited.text[: cited.text.index(quote)][-100:])
    assert found["after"].startswith(cited.text.partition(quote)[2][:100])
    # Another sentence of the same page: the picture stays, the marks move.
    other = ask(ada, "latency.pdf", page=1, quote="Prefill is the phase in which the model reads the prompt.")
    assert other["picture"] == found["picture"]
    assert other["marks"]
    assert other["marks"] != found["marks"]


def test_the_document_of_a_pdf_opens_in_the_browsers_viewer(ada: httpx2.Client) -> None:
    answer = follow(ada, ask(ada, "deep/zażółć & 50%.pdf", page=2), "document")
    assert answer.content == (CORPUS / "latency.pdf").read_bytes()
    assert answer.headers["content-type"] == "application/pdf"
    assert (
        answer.headers["content-disposition"] == "inline; filename*=UTF-8''za%C5%BC%C3%B3%C5%82%C4%87%20%26%2050%25.pdf"
    )
    policy = answer.headers["content-security-policy"]
    # Some browsers draw their viewer around the document by these; a sandbox would keep it away.
    assert "object-src 'self'" in policy
    assert "style-src 'unsafe-inline'" in policy
    assert "sandbox" not in policy
    assert "script-src" not in policy
    assert "default-src 'none'" in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    part = ada.get(str(answer.request.url), headers={"Range": "bytes=0-4"})
    assert (part.status_code, part.content) == (206, b"%PDF-")


def test_what_is_no_pdf_has_no_picture_and_is_saved_never_shown(ada: httpx2.Client) -> None:
    for name, kind in {
        "page.html": "text/plain; charset=utf-8", "bm25.md": "text/markdown; charset=utf-8",
        "小模型優先.md": "text/markdown; charset=utf-8",
    }.items():  # fmt: skip
        found = ask(ada, name)
        assert found["picture"] is None
        assert found["marks"] == []
        assert found["unit"] is found["page"] is found["pages"] is None
        answer = follow(ada, found, "document")
        assert answer.content
        assert answer.headers["content-type"] == kind
        assert answer.headers["content-disposition"].startswith("attachment; filename*=UTF-8''")
        assert "sandbox" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
    answer = ada.get("/source/picture", params={"name": "page.html", "page": 1})
    assert refusal(answer, 415) == (
        "page.html is no PDF, so there is no picture of its pages. Read the passage instead."
    )


def test_a_pdf_is_told_by_its_bytes(ada: httpx2.Client) -> None:
    found = ask(ada, "pdf.txt", page=1, quote="any other name")
    assert found["marks"]
    assert follow(ada, found, "document").headers["content-type"] == "application/pdf"


def test_a_page_without_text_has_a_picture_without_marks(ada: httpx2.Client) -> None:
    found = ask(ada, "scan.pdf", page=2, quote="Words")
    assert (found["pages"], found["marks"]) == (2, [])
    assert follow(ada, found, "picture").status_code == 200


def test_without_a_page_the_first_is_opened(ada: httpx2.Client) -> None:
    found = ask(ada, "latency.pdf")
    assert found["page"] == 1
    assert parse_qs(urlsplit(found["picture"]).query) == {"name": ["latency.pdf"], "page": ["1"]}


def test_addresses_lead_to_the_same_server_under_any_path(ada: httpx2.Client) -> None:
    found = ask(ada, "latency.pdf", page=1)
    for part in ("picture", "document"):
        assert urljoin("https://chat.example/small/source?name=x", found[part]).startswith(
            f"https://chat.example/small/source/{part}?name=latency.pdf"
        )


# --- what is refused ---


@pytest.mark.parametrize("page", ["0", "-1", "x", "1.5", "9999999999", "٣", "1;2"])
def test_a_page_that_is_no_number_is_refused(ada: httpx2.Client, page: str) -> None:
    for path in ("/source", "/source/picture"):
        answer = ada.get(path, params={"name": "latency.pdf", "page": page})
        assert refusal(answer, 400) == f"There is no page {page}. Give its number, from 1."


@pytest.mark.parametrize(
    "name",
    [
        "", ".", "..", "/", "../outside.pdf", "docs/../latency.pdf", "deep/../latency.pdf", "./latency.pdf", "//latency.pdf",
        "latency.pdf/", "latency.pdf\0", "latency.pdf\0.md", "LATENCY.PDF", "deep", "/etc/passwd", "..\\outside.pdf",
        "%2e%2e/outside.pdf", "unread.pdf", "app.py", "x" * 5000, "\ud83d\ude00.pdf".encode("utf-16", "surrogatepass").decode("utf-16"),
    ],
    ids=lambda name: ascii(name)[:30],
)  # fmt: skip
def test_only_names_of_documents_that_were_read_are_found(ada: httpx2.Client, name: str) -> None:
    ((status, detail),) = everywhere(ada, name)
    assert status == 404
    assert detail.startswith("There is no document ")
    assert len(detail) < 250


def test_what_was_put_in_the_place_of_a_document_is_not_opened(ada: httpx2.Client, server: Server) -> None:
    docs = server.folder / "docs"
    assert ask(ada, "link.pdf", page=1)["picture"]
    for name in ("link", "goes", "pipe"):
        (docs / f"{name}.pdf").unlink()
    (docs / "link.pdf").symlink_to(server.folder / "outside.pdf")
    os.mkfifo(docs / "pipe.pdf")
    for name in ("link.pdf", "goes.pdf", "pipe.pdf"):
        ((status, detail),) = everywhere(ada, name)
        assert (status, detail) == (
            404,
            f"There is no document {name} here. It was removed, renamed, or may not be read.",
        )


def test_a_document_that_cannot_be_drawn_says_why_and_can_still_be_opened(ada: httpx2.Client, server: Server) -> None:
    docs = server.folder / "docs"
    (docs / "locked.pdf").write_bytes(files.pdf(["x"], encrypted=True))
    (docs / "torn.pdf").write_bytes(b"%PDF-1.4 torn")
    (docs / "shorter.pdf").write_bytes(files.pdf(["x"]))
    for name, page, status, says in (
        ("locked.pdf", 1, 415, "locked.pdf is protected by a password, so its pages cannot be shown."),
        ("torn.pdf", 1, 415, "torn.pdf is a damaged PDF"),
        (
            "shorter.pdf",
            3,
            404,
            "shorter.pdf has 1 page only, so there is no page 3. It was changed after this answer.",
        ),
    ):
        answer = ada.get("/source", params={"name": name, "page": page, "quote": "third"})
        assert refusal(answer, status).startswith(says)
        assert follow(ada, answer.json(), "document").content == (docs / name).read_bytes()
        picture = ada.get("/source/picture", params={"name": name, "page": page})
        assert refusal(picture, status).startswith(says)


def test_a_document_that_has_changed_is_drawn_anew(ada: httpx2.Client, server: Server) -> None:
    before = follow(ada, ask(ada, "changes.pdf", page=1, quote="changes"), "picture").content
    (server.folder / "docs" / "changes.pdf").write_bytes(files.pdf(["Quite another text"]))
    found = ask(ada, "changes.pdf", page=1, quote="Quite another")
    assert found["marks"]
    assert found["pages"] == 1
    assert follow(ada, found, "picture").content != before


@pytest.mark.parametrize("language", LANGUAGES)
def test_what_is_refused_is_said_in_the_readers_language(ada: httpx2.Client, language: str) -> None:
    wanted = told(say("documents.bad_page", page="x"), language)
    asked = {"name": "latency.pdf", "page": "x"}
    assert refusal(ada.get("/source", params={**asked, "language": language}), 400) == wanted
    assert (
        refusal(ada.get("/source", params=asked, headers={"Accept-Language": f"{language}, en;q=0.5"}), 400) == wanted
    )


# --- who may see what ---


def test_nobody_sees_a_document_before_signing_in(server: Server) -> None:
    with httpx2.Client(base_url=server.url) as stranger:
        for path in ("/source", "/source/picture", "/source/document"):
            for thread in ("", ADA):
                answer = stranger.get(path, params={"name": "latency.pdf", "thread": thread, "page": 1})
                assert answer.status_code == 401
                assert answer.headers["content-type"] == "application/json"


def test_an_upload_is_seen_by_its_owner_only(ada: httpx2.Client, bob: httpx2.Client) -> None:
    for name, page in (("mine.pdf", 2), ("bytes.pdf", 1)):
        found = ask(ada, name, thread=ADA, page=page, quote="diary of ada")
        assert found["marks"]
        picture = follow(ada, found, "picture")
        assert picture.headers["content-type"] == "image/png"
        assert b"diary of ada" in follow(ada, found, "document").content
        # It was drawn and kept a moment ago; whoever asks next must be asked who they are all the same.
        for part in ("picture", "document"):
            assert refusal(follow(bob, found, part), 404)
        assert everywhere(bob, name, ADA) == everywhere(bob, name, str(uuid4()))
    theirs = ask(bob, "mine.pdf", thread=BOB, page=2, quote="diary of bob")
    assert follow(bob, theirs, "picture").content != picture.content
    assert ask(ada, "note.md", thread=ADA)["picture"] is None


def test_an_upload_and_a_shared_document_are_not_taken_for_each_other(ada: httpx2.Client) -> None:
    assert everywhere(ada, "latency.pdf", ADA) == {
        (404, "There is no document latency.pdf here. It was removed, renamed, or may not be read.")
    }
    assert {status for status, _ in everywhere(ada, "mine.pdf")} == {404}
    assert ask(ada, "latency.pdf", thread="")["pages"] == 2


@pytest.mark.parametrize("thread", ["x", "..", f"{ADA}/..", ADA.upper(), f"{ADA}\0", "' OR 1=1 --"])
def test_what_is_no_thread_is_not_even_looked_for(ada: httpx2.Client, server: Server, thread: str) -> None:
    assert {status for status, _ in everywhere(ada, "mine.pdf", thread)} == {404}
    assert {status for status, _ in everywhere(ada, "mine.pdf\0", ADA)} == {404}
    ask(ada, "mine.pdf", thread=ADA)
    looked_for = (server.folder / "asked").read_text().splitlines()
    assert f"{ADA} 'mine.pdf'" in looked_for
    assert not [line for line in looked_for if line.startswith(f"{thread} ") or "\\x00" in line]


def test_where_nobody_signs_in_everybody_is_the_same(without_login: Server) -> None:
    with httpx2.Client(base_url=without_login.url, timeout=60) as client:
        assert ask(client, "latency.pdf", page=1, quote="Prefill")["marks"]
        assert ask(client, "mine.pdf", thread=ADA, page=2, quote="diary of ada")["marks"]
        assert everywhere(client, "mine.pdf", BOB) == everywhere(client, "mine.pdf", str(uuid4()))


def test_pages_of_other_sites_get_nothing(ada: httpx2.Client) -> None:
    answer = ada.get("/source", params={"name": "latency.pdf"}, headers={"Origin": "https://evil.example"})
    assert answer.status_code == 403
    assert ask(ada, "latency.pdf")
    for path in ("/source", "/source/picture", "/source/document"):
        headers = ada.get(path, params={"name": "latency.pdf"}).headers
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert headers["x-frame-options"] == "DENY"
        assert "no-store" in headers["cache-control"]


# --- what is kept ---


@pytest.fixture
def pages(settings: Settings) -> Iterator[Pages]:
    made = Pages(settings)
    yield made
    made.close()


def a_document(data: bytes, source: str = "a.pdf", thread: str = "", version: int = 0) -> Document:
    return Document(data, Ingest(source), lambda: [], thread, version, True)


async def test_a_page_that_was_drawn_is_not_drawn_again(pages: Pages) -> None:
    document = a_document(files.pdf(["Lions sleep.", "Zebras drink."]))
    first = await pages.draw(document, 1, "Lions")
    assert first.marks
    assert (await pages.draw(document, 1)).png == first.png
    pages.close()
    assert await pages.draw(document, 1, "Lions") == first
    for other in (
        a_document(document.file, version=1),  # type: ignore[arg-type]
        a_document(document.file, thread=ADA),  # type: ignore[arg-type]
        a_document(document.file, source="b.pdf"),  # type: ignore[arg-type]
    ):
        with pytest.raises(DocumentError):
            await pages.draw(other, 1, "Lions")
    with pytest.raises(DocumentError):
        await pages.draw(document, 2)


async def test_only_the_last_few_pages_are_kept(pages: Pages) -> None:
    document = a_document(files.pdf([f"Page {number}" for number in range(40)]))
    for number in range(1, 41):
        assert (await pages.draw(document, number)).png
    pages.close()
    assert (await pages.draw(document, 40)).png
    with pytest.raises(DocumentError):
        await pages.draw(document, 1)


async def test_pages_that_are_large_are_kept_for_less_long(settings: Settings) -> None:
    document = a_document(files.pdf([f"Page {number}" for number in range(3)]))
    pages = Pages(settings, kept_bytes=1)
    size = len((await pages.draw(document, 1)).png)
    pages.close()
    with pytest.raises(DocumentError):
        await pages.draw(document, 1)
    pages = Pages(settings, kept_bytes=size * 5 // 2)
    for number in (1, 2, 3):
        await pages.draw(document, number)
    pages.close()
    assert (await pages.draw(document, 2)).png
    with pytest.raises(DocumentError):
        await pages.draw(document, 1)


async def test_many_ask_at_once_and_each_gets_their_own(pages: Pages) -> None:
    document = a_document(files.pdf([f"Page {number}" for number in range(1, 6)]))
    wanted = [(1 + n % 5, f"Page {1 + (n * 3) % 5}") for n in range(40)]
    found = await asyncio.gather(*(pages.draw(document, number, quote) for number, quote in wanted))
    for (number, quote), page in zip(wanted, found, strict=True):
        assert bool(page.marks) is (quote == f"Page {number}")
        assert page.png == (await pages.draw(document, number)).png


# --- the text around a passage ---


def passages(*texts: str, gap: int = 2) -> list[Passage]:
    made, start = [], 0
    for number, text in enumerate(texts):
        made.append(Passage(f"d:{start}", "a.md", 1 + number // 3, "page", (), start, start + len(text), text, "en"))
        start += len(text) + gap
    return made


def test_a_quote_stands_in_its_passage_and_between_the_neighbours() -> None:
    found = passages("One.", "Two, three. Four.", "Five.", "Six.")
    assert around(found, 1, "three.", None) == ("One.\n\nTwo, ", "Two, three. Four.", " Four.\n\nFive.\n\nSix.")
    assert around(found, 1, "One.", None)[::2] == ("", "\n\nTwo, three. Four.\n\nFive.\n\nSix.")
    assert around(found, 2, "Six.", None)[::2] == ("One.\n\nTwo, three. Four.\n\nFive.\n\n", "")
    assert around(passages("One.", "Two.", "Three.", gap=1), None, "Two.", None)[::2] == ("One. ", " Three.")


def test_before_quote_and_after_are_the_documents_text() -> None:
    data = (CORPUS / "latency.pdf").read_bytes()
    _, found = ingest(data, "latency.pdf", 300)
    for passage in found:
        quote = passage.text[5:50].strip()
        at = passage.text.index(quote)
        before, text, after = around(found, passage.page, quote, passage.start + at)
        assert text == passage.text
        assert before.endswith(text[:at])
        assert after.startswith(text[at + len(quote) :])


def test_of_two_alike_the_one_at_the_answers_place_is_meant() -> None:
    found = passages("Same words. A.", "Same\n words. B.", "Same words. C.", "Same words. D.")
    assert [around(found, 1, "Same words.", found[n].start)[2][:3] for n in range(3)] == [" A.", " B.", " C."]
    assert around(found, 1, "Same words.", None)[2].startswith(" A.")
    assert around(found, 2, "Same words.", 0)[2] == " D."
    # The document has changed, and the sentence has moved.
    assert around(found, 1, "Same words.", 10_000)[2].startswith(" C.")


@pytest.mark.parametrize("quote", ["", " \n", "Gone.", "[", "A.*"])
def test_what_no_passage_holds_has_nothing_around_it(quote: str) -> None:
    assert around(passages("A.", "B (b) B."), 1, quote, 0) == ("", "", "")
    assert around([], 1, quote, 0) == ("", "", "")


def test_what_is_around_a_quote_is_short_and_cut_between_words() -> None:
    found = passages("words and more " * 60, "here", "words and more " * 60)
    before, _, after = around(found, 1, "here", None)
    for text in (before, after):
        assert AROUND_CHARS - 40 < len(text) <= AROUND_CHARS + 1
        assert set(text.strip("…").split()) == {"words", "and", "more"}
    assert before.startswith("…")
    assert after.endswith("…")
    before, _, after = around(passages("小" * 2000 + "型" + "模" * 2000), 1, "型", None)
    assert (before, after) == ("…" + "小" * AROUND_CHARS, "模" * AROUND_CHARS + "…")
