"""Uploads and documents, as OpenAI's own client and bare HTTP ask for them; the real server, reader and disk behind."""

import asyncio
import hashlib
import os
import re
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import httpx2
import openai
import pytest
import uvicorn
from fastapi import FastAPI
from pydantic import SecretStr
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rag.corpus.documents import ingest
from rag.corpus.library import Library
from rag.errors import DocumentError
from rag.serve import files as rooms
from rag.serve.api_errors import ApiError
from rag.serve.file_store import File, FileStore
from rag.serve.files import FOLDER, READERS, Files
from rag.serve.server import application
from rag.serve.visitors import VISITOR, Visitor
from rag.settings import Settings
from rag.turn.session import Session

from . import files
from .conftest import open_library, until
from .scripted import ScriptedLegs
from .serving import ScriptedService, socket_of_its_own

MOST = 6
NOTE = b"Zebras drink at the Mara river every morning."
# Takes seconds to read, and is a document.
SLOW = b"<html><body>" + b"<p>word <b>word</b></p>" * 40_000
NAMES = ("a b.md", "50% #1?.md", "zażółć gęślą.md", "deep/小模型.md", "page.html", "table.csv")


@dataclass
class Server:
    url: str
    settings: Settings
    keys: Iterator[str]
    library: Library

    def client(self, key: str | None = None) -> openai.OpenAI:
        """As a caller of its own, if no key is given."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key or next(self.keys), max_retries=0, timeout=30)

    def kept(self, client: openai.OpenAI) -> Path:
        """Where that caller's files are."""
        return FileStore(self.settings.data_dir / FOLDER)._home(owner(client))


def owner(client: openai.OpenAI) -> str:
    return Visitor(hashlib.sha256(client.api_key.encode()).hexdigest()[:12], "", "en", by_key=True).owner


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`smallfirst serve` with a scripted model, a small limit, and a key for each test."""
    folder = tmp_path_factory.mktemp("files")
    docs = folder / "docs"
    (docs / "deep").mkdir(parents=True)
    for name in NAMES:
        (docs / name).write_text(f"This document is called {name}.")
    (docs / "paper.pdf").write_bytes(files.pdf(["First page.", "Second page."]))
    (docs / "letter.docx").write_bytes(files.docx([("Normal", "Dear reader.")]))
    (docs / "empty.md").write_text("")
    (folder / "outside.md").write_text("A secret.")
    (docs / "link.md").symlink_to(folder / "outside.md")
    (docs / "lions #1?.md").write_text("Lions sleep under the acacia tree all day.")
    (docs / "goes.md").write_text("This one goes.")
    keys = [f"key-{number}" for number in range(100)]
    settings = Settings(
        _env_file=None, data_dir=folder / "data", cache_dir=folder / "cache", api_keys=tuple(map(SecretStr, keys)), api_files=MOST,
        api_rate=0, upload_mb=1,
    )  # type: ignore[call-arg]  # fmt: skip
    library = open_library(docs, folder / "cache")
    legs = ScriptedLegs(["Zebras drink at the Mara river.", "Lions sleep under the acacia tree."])
    listening = socket_of_its_own()
    app = application(ScriptedService(settings, library, legs), "127.0.0.1")  # type: ignore[arg-type]
    running = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    thread = threading.Thread(target=running.run, args=([listening],))
    thread.start()
    yield Server(f"http://127.0.0.1:{listening.getsockname()[1]}", settings, iter(keys), library)
    running.should_exit = True
    thread.join()
    library.close()


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with server.client() as made:
        yield made


def http(client: openai.OpenAI) -> httpx2.Client:
    """Without OpenAI's own ways of writing a request."""
    return httpx2.Client(
        base_url=str(client.base_url), headers={"Authorization": f"Bearer {client.api_key}"}, verify=False
    )


def refusal(answer: httpx2.Response, status: int, param: str | None = "file") -> str:
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (status, param), answer.text
    assert error["type"] == ("server_error" if status == 500 else "invalid_request_error")
    said: str = error["message"]
    assert said.endswith(".")
    return said


def put(client: openai.OpenAI, name: str = "note.md", data: bytes = NOTE, **more: Any) -> Any:
    return client.files.create(file=(name, data), purpose=more.pop("purpose", "user_data"), **more)


# --- as OpenAI's client asks ---


def test_a_file_is_uploaded_listed_found_fetched_and_deleted(client: openai.OpenAI) -> None:
    before = int(time.time())
    made = put(client, "zebras.md", purpose="assistants")
    assert re.fullmatch("file-[0-9a-f]{24}", made.id)
    assert (made.object, made.filename, made.bytes, made.purpose) == ("file", "zebras.md", len(NOTE), "assistants")
    assert (made.status, made.status_details, made.expires_at) == ("processed", None, None)
    assert before <= made.created_at <= time.time()
    assert made.smallfirst == {"passages": 1, "pages": 1, "conversation": None, "note": None}
    assert client.files.retrieve(made.id) == made
    assert client.files.list().data == [made]
    assert client.files.content(made.id).read() == NOTE
    gone = client.files.delete(made.id)
    assert (gone.id, gone.object, gone.deleted) == (made.id, "file", True)
    assert client.files.list().data == []
    for again in (client.files.retrieve, client.files.delete, client.files.content):
        with pytest.raises(openai.NotFoundError, match=f"There is no file {made.id} here") as caught:
            again(made.id)
        assert caught.value.param == "file_id"


@pytest.mark.parametrize(
    ("name", "data", "pages", "kind", "shown"),
    [
        ("two.pdf", files.pdf(["First page.", "Second page."]), 2, "application/pdf", "inline"),
        ("no.txt", files.pdf(["A PDF by any other name."]), 1, "application/pdf", "inline"),
        ("page.html", b"<h1>Hi</h1><p>Words.</p><script>alert(1)</script>", 1, "text/plain; charset=utf-8", "inline"),
        (
            "letter.docx", files.docx([("Normal", "Dear reader.")]), 1,
            "application/vnd.openxmlformats-officedocument.wordprocessingml.document", "attachment",
        ),
    ],
    ids=["pdf", "pdf by its bytes", "html", "docx"],
)  # fmt: skip
def test_what_was_uploaded_comes_back_and_cannot_run_here(
    client: openai.OpenAI, name: str, data: bytes, pages: int, kind: str, shown: str
) -> None:
    made = put(client, name, data)
    assert made.smallfirst["pages"] == pages
    answer = client.files.content(made.id)
    assert answer.read() == data
    headers = answer.response.headers
    assert headers["content-type"] == kind
    assert headers["content-disposition"] == f"{shown}; filename*=UTF-8''{name}"
    assert headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in headers["content-security-policy"]
    assert ("sandbox" in headers["content-security-policy"]) is (kind != "application/pdf")
    assert "no-store" in headers["cache-control"]


def test_what_was_not_read_of_a_file_is_told(client: openai.OpenAI) -> None:
    note = put(client, "scan.pdf", files.pdf(["Words.", ""])).smallfirst["note"]
    assert note.startswith("scan.pdf: ")
    assert "no text" in note


def test_a_list_is_paged_ordered_and_filtered(client: openai.OpenAI) -> None:
    made = [put(client, f"{n}.md", purpose="batch" if n == 1 else "user_data").id for n in range(4)]
    assert [file.id for file in client.files.list()] == made[::-1]
    assert [file.id for file in client.files.list(order="asc", limit=1)] == made  # page after page
    assert [file.id for file in client.files.list(purpose="batch")] == [made[1]]
    page = client.files.list(limit=2)
    assert page.has_more
    assert [file.id for file in page.data] == made[:1:-1]
    assert [file.id for file in client.files.list(after=made[2]).data] == made[1::-1]
    with pytest.raises(openai.NotFoundError, match="no file nowhere to go on after"):
        client.files.list(after="nowhere")
    for wrong in ({"limit": 0}, {"limit": 10_001}, {"order": "up"}):
        with pytest.raises(openai.BadRequestError) as caught:
            client.files.list(**wrong)
        assert caught.value.param == next(iter(wrong))


def test_an_expired_file_is_gone_and_off_the_disk(server: Server, client: openai.OpenAI) -> None:
    made = put(client, expires_after={"anchor": "created_at", "seconds": 3600})
    stays = put(client, "stays.md")
    assert made.expires_at == made.created_at + 3600
    assert client.files.retrieve(made.id) == made
    later = FileStore(server.settings.data_dir / FOLDER, clock=lambda: made.created_at + 3600)
    assert later.find(owner(client), made.id) is None
    assert not (server.kept(client) / made.id).exists()
    # The server's own memory of it does not outlive it.
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(made.id)
    assert [file.id for file in client.files.list()] == [stays.id]


@pytest.mark.parametrize(
    ("expires_after", "param"),
    [
        ({"anchor": "created_at", "seconds": 3599}, "expires_after.seconds"),
        ({"anchor": "created_at", "seconds": 2_592_001}, "expires_after.seconds"),
        ({"anchor": "created_at", "seconds": "soon"}, "expires_after.seconds"),
        ({"anchor": "last_active_at", "seconds": 3600}, "expires_after.anchor"),
        ({"anchor": "created_at"}, "expires_after"),
        ({"seconds": 3600}, "expires_after"),
    ],
)
def test_a_file_that_could_not_expire_as_asked_is_refused(
    client: openai.OpenAI, expires_after: Any, param: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=r"expires_after") as caught:
        put(client, expires_after=expires_after)
    assert caught.value.param == param
    assert client.files.list().data == []


# --- what is refused ---


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("tool.exe", NOTE, "tool.exe is not of a kind that can be read here. Save it as one of .pdf, .docx"),
        ("noending", NOTE, "is not of a kind that can be read here"),
        (".md", NOTE, "is not of a kind"),
        ("empty.md", b"", "empty.md is empty: there is nothing in it to answer from."),
        ("blank.md", b" \n ", "blank.md holds no text"),
        ("locked.pdf", files.pdf(["x"], encrypted=True), "password"),
        ("torn.pdf", b"%PDF-1.4 torn", "torn.pdf"),
        ("torn.docx", b"PK\3\4 torn", "torn.docx"),
        (f"{'x' * 300}.md", NOTE, "is too long: at most 255 characters. Rename the file."),
    ],
    ids=lambda value: value[:12] if isinstance(value, str) else "",
)
def test_what_cannot_be_read_is_refused_in_a_sentence_and_not_kept(
    client: openai.OpenAI, name: str, data: bytes, says: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        put(client, name, data)
    assert caught.value.param == "file"
    assert says in caught.value.message
    assert client.files.list().data == []


@pytest.mark.parametrize("size", [1_000_001, 1_100_000], ids=["measured", "declared"])
def test_a_file_that_is_too_large_is_a_413(client: openai.OpenAI, size: int) -> None:
    with pytest.raises(openai.APIStatusError, match=r"too large: at most 1 MB") as caught:
        put(client, "large.md", b"x" * size)
    assert caught.value.status_code == 413
    assert client.files.list().data == []


def form(client: openai.OpenAI, body: bytes, kind: str = "multipart/form-data; boundary=-") -> httpx2.Response:
    with http(client) as one:
        return one.post("files", content=body, headers={"Content-Type": kind})


def part(name: bytes, filename: bytes | None = None, data: bytes = NOTE) -> bytes:
    called = b"" if filename is None else b'; filename="' + filename + b'"'
    return b'---\r\nContent-Disposition: form-data; name="' + name + b'"' + called + b"\r\n\r\n" + data + b"\r\n"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"", "file"),
        (b"{}", None),
        (b"-----\r\n", "file"),
        (part(b"purpose", None, b"user_data") + b"-----\r\n", "file"),
        (part(b"file", None) + b"-----\r\n", "file"),
        (part(b"file", b"a.md") + part(b"file", b"b.md") + b"-----\r\n", "file"),
        (part(b"file", b"") + b"-----\r\n", "file"),
        (part(b"file", b"  ") + b"-----\r\n", "file"),
        (part(b"file", b"nul\0.md") + b"-----\r\n", "file"),
        (part(b"file", b"a.md") + part(b"purpose", None, b"fun") + b"-----\r\n", "purpose"),
        (part(b"file", b"a.md") + part(b"conversation", None, b"x" * 256) + b"-----\r\n", "conversation"),
        (b'---\r\nContent-Disposition: form-data; filename="a.md"\r\n\r\nx\r\n-----\r\n', None),
        (b"---\r\ntorn", "file"),
    ],
)
def test_a_form_that_is_none_is_refused(client: openai.OpenAI, body: bytes, param: str | None) -> None:
    answer = form(client, body)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"]) == (400, "invalid_request_error"), answer.text
    assert error["param"] == param
    assert client.files.list().data == []


@pytest.mark.parametrize(
    ("charset", "status"), [("unicode_escape", 400), ("utf-16", 400), ("idna", 200), ("none-such", 200)]
)
def test_a_form_in_a_strange_encoding_is_no_error_of_ours(client: openai.OpenAI, charset: str, status: int) -> None:
    """The first one makes half a surrogate pair of this name; an encoding that is none is read as Latin-1."""
    body = part(b"file", rb"\ud800.md") + b"-----\r\n"
    assert form(client, body, f"multipart/form-data; boundary=-; charset={charset}").status_code == status


@pytest.mark.parametrize(
    "name",
    ["../../escape.md", "/etc/escape.md", "..\\..\\escape.md", "bell\a\x1b[31m\u202e.md", "\u2028.md",
     "💾 zażółć 小模型.md", "a;b='c'.md", ".md.md", "con.md", "file-0123456789abcdef01234567.md"],
    ids=ascii,
)  # fmt: skip
def test_a_name_is_data_and_leads_nowhere(server: Server, client: openai.OpenAI, name: str) -> None:
    before = set(server.settings.data_dir.rglob("*"))
    answer = form(client, part(b"file", name.encode()) + b"-----\r\n")
    assert answer.status_code == 200, answer.text
    made = client.files.retrieve(answer.json()["id"])
    assert made.filename == name
    content = client.files.content(made.id)
    assert content.read() == NOTE
    disposition = content.response.headers["content-disposition"]
    assert disposition.isascii()
    assert unquote(disposition.partition("''")[2]) == re.split(r"[/\\]", name)[-1]
    home = server.kept(client)
    folder = home / made.id
    new = {home, home / ".lock", folder, *(folder / part for part in ("about.json", "passages.json", "content"))}
    assert set(server.settings.data_dir.rglob("*")) - before == new
    client.files.delete(made.id)
    assert set(server.settings.data_dir.rglob("*")) - before == {home, home / ".lock"}


def test_ids_that_are_none_find_nothing(client: openai.OpenAI) -> None:
    with http(client) as one:
        none = (
            "x",
            "%2e%2e",
            "file-",
            "file-" + "0" * 24,
            "FILE-" + "0" * 24,
            "file-" + "g" * 24,
            "x" * 3000,
        )
        for id in none:
            for method, path in (("GET", f"files/{id}"), ("DELETE", f"files/{id}"), ("GET", f"files/{id}/content")):
                answer = one.request(method, path)
                assert answer.status_code == 404, (method, path, answer.text)
                assert len(answer.text) < 500


# --- how many, how fast, and who hangs up ---


def test_only_so_many_are_kept_however_many_come_at_once(client: openai.OpenAI, server: Server) -> None:
    refused: list[openai.BadRequestError] = []

    def one(n: int) -> str:
        try:
            return str(put(client, f"{n}.md").id)
        except openai.BadRequestError as error:
            refused.append(error)
            return ""

    with ThreadPoolExecutor(MOST + 3) as pool:
        made = set(filter(None, pool.map(one, range(MOST + 3))))
    assert len(made) == MOST
    assert {file.id for file in client.files.list()} == made
    assert [error.param for error in refused] == ["file"] * 3
    assert f"as many files here as you may: {MOST} (RAG_API_FILES). Delete one" in refused[0].message
    client.files.delete(made.pop())
    assert one(1)


def test_who_keeps_as_many_as_they_may_is_told_before_the_next_is_read(settings: Settings) -> None:
    kept = Files(settings.model_copy(update={"api_files": 1}))
    keep(kept.store)
    kept.close()  # to read it would be another error
    with pytest.raises(ApiError, match="RAG_API_FILES"):
        asyncio.run(kept.add("ada", "another.md", NOTE, purpose="user_data"))


def test_of_many_processes_that_delete_a_file_one_does(store: FileStore) -> None:
    made = [keep(store).id for _ in range(20)]
    others = [FileStore(store.folder) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for id in made:
            assert sum(pool.map(lambda one, id=id: one.remove("ada", id), others)) == 1
    assert store.all("ada") == []


def test_of_many_who_delete_one_succeeds_and_nobody_meets_half_a_file(client: openai.OpenAI) -> None:
    made = put(client)

    def delete(_: int) -> bool:
        try:
            return client.files.delete(made.id).deleted
        except openai.NotFoundError:
            return False

    def look(_: int) -> None:
        for file in client.files.list():
            try:
                assert client.files.content(file.id).read() == NOTE
            except openai.NotFoundError:
                assert file.id == made.id

    with ThreadPoolExecutor(8) as pool:
        looks = [pool.submit(look, n) for n in range(4)]
        assert sum(pool.map(delete, range(4))) == 1
        for one in looks:
            one.result()


async def test_reading_ends_when_the_client_hangs_up_and_nothing_is_kept(settings: Settings, library: Library) -> None:
    kept = Files(settings)
    app = alone(kept)
    gone = asyncio.Event()
    body = part(b"file", b"slow.html", SLOW) + b"-----\r\n"

    async def upload() -> list[Message]:
        messages = iter([{"type": "http.request", "body": body, "more_body": False}])
        sent: list[Message] = []

        async def receive() -> Message:
            if (message := next(messages, None)) is None:
                await gone.wait()
            return message or {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            sent.append(message)

        headers = [(b"content-type", b"multipart/form-data; boundary=-")]
        scope = {"type": "http", "method": "POST", "path": "/v1/files", "query_string": b"", "headers": headers}
        await app(scope, receive, send)
        return sent

    # One more than are read at once waits for its turn.
    uploads = [asyncio.create_task(upload()) for _ in range(READERS + 1)]
    await until(lambda: all(reader.pid for reader in kept._all_readers))
    gone.set()
    for sent in await asyncio.gather(*uploads):
        assert sent[0]["status"] == 499
    assert [reader.pid for reader in kept._all_readers] == [None] * READERS  # one that has read waits for another file
    assert await kept.all("user ada") == []
    assert list(settings.data_dir.rglob("*")) == []
    assert (await kept.add("user ada", "note.md", NOTE, purpose="user_data")).filename == "note.md"
    kept.close()


def alone(kept: Files) -> ASGIApp:
    """These routes and nothing before them; everybody is ada."""
    app = FastAPI()
    app.include_router(rooms.router(kept))

    async def door(scope: Scope, receive: Receive, send: Send) -> None:
        VISITOR.set(Visitor("ada", "", "en"))
        await app(scope, receive, send)

    return door


# --- whose they are ---


def test_owners_never_see_each_others_files(server: Server) -> None:
    with server.client() as ada, server.client() as bob:
        made = put(ada, extra_body={"conversation": "talk"})
        assert made.smallfirst["conversation"] == "talk"
        other = put(bob, extra_body={"conversation": "talk"})
        assert [file.id for file in bob.files.list()] == [other.id]
        for ask in (bob.files.retrieve, bob.files.content, bob.files.delete):
            with pytest.raises(openai.NotFoundError) as caught:
                ask(made.id)
            with pytest.raises(openai.NotFoundError) as unknown:
                ask("file-" + "0" * 24)
            assert caught.value.message.replace(made.id, "") == unknown.value.message.replace("file-" + "0" * 24, "")
        with pytest.raises(openai.NotFoundError):
            bob.files.list(after=made.id)
        assert ada.files.content(made.id).read() == NOTE
    with server.client("no-such-key") as nobody, pytest.raises(openai.AuthenticationError):
        nobody.files.retrieve(made.id)
    with httpx2.Client(base_url=server.url, trust_env=False) as stranger:
        for path in ("files", f"files/{made.id}", f"files/{made.id}/content", "documents/page.html"):
            assert stranger.get(f"/v1/{path}").status_code == 401


def test_what_is_kept_is_for_its_owners_eyes_only(server: Server, client: openai.OpenAI) -> None:
    put(client)
    home = server.kept(client)
    for path in (home.parent, home, *home.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


# --- on the disk ---


def keep(store: FileStore, name: str = "note.md", data: bytes = NOTE, *, by: str = "ada", **more: Any) -> File:
    """As an upload is kept, without a process that reads it."""
    report, passages = ingest(data, name, 700)
    chosen = {"purpose": "user_data", "conversation": None, "expires_after_s": None, "most": 100, **more}
    file = store.keep(by, data, report, passages, **chosen)
    assert file is not None
    return file


@pytest.fixture
def store(settings: Settings) -> FileStore:
    ticks = count(1000)
    return FileStore(settings.data_dir / FOLDER, clock=lambda: float(next(ticks)))


def tear(name: str, data: bytes | None) -> Callable[[Path], None]:
    def torn(folder: Path) -> None:
        (folder / name).unlink()
        if data is not None:
            (folder / name).write_bytes(data)

    return torn


@pytest.mark.parametrize(
    "torn",
    [
        *(tear(name, data) for name in ("about.json", "passages.json") for data in (None, b"", b"{", b"[]", b"{}", b"\xff", b"7")),
        *(tear("content", data) for data in (None, b"", NOTE[:5])),
        shutil.rmtree,
    ],
)  # fmt: skip
@pytest.mark.parametrize("known", [True, False])
def test_a_torn_file_is_taken_away_and_costs_nobody_else(
    settings: Settings, library: Library, torn: Callable[[Path], None], known: bool
) -> None:
    kept = Files(settings)
    whole, broken = keep(kept.store, "whole.md", conversation="c"), keep(kept.store, "broken.md", conversation="c")
    if known:
        assert kept.find("ada", broken.id) == broken
        assert len(kept.store.all("ada")) == 2
    folder = kept.store._home("ada") / broken.id
    torn(folder)
    session = Session(library)
    asyncio.run(kept.attach("ada", session, conversation="c"))
    assert "whole.md" in session.attachments.sources
    if known:  # then only who wants that part finds it torn
        assert kept.store.content("ada", broken) in (None, NOTE)
        assert kept.store.passages("ada", broken) is None or folder.exists()
    assert whole in kept.store.all("ada")
    again = FileStore(kept.store.folder)
    assert again.find("ada", broken.id) is None
    assert again.all("ada") == [whole]
    assert not folder.exists()


def test_a_restart_and_a_second_process_find_all_files_without_reading_them(
    settings: Settings, library: Library, store: FileStore
) -> None:
    made = [keep(store, f"{n}.md", f"Document {n}.".encode()) for n in range(3)]
    restarted = Files(settings)
    restarted.close()  # whatever would be read now would fail
    assert asyncio.run(restarted.all("ada")) == made
    with pytest.raises(DocumentError):
        asyncio.run(restarted.add("ada", "new.md", NOTE, purpose="user_data"))
    session = Session(library)
    asyncio.run(restarted.attach("ada", session, ids=[made[1].id]))
    assert [passage.text for passage in session.attachments.opening("1.md")] == ["Document 1."]
    assert session.attachments.reports == [made[1].report]
    # What the other one does is seen at once.
    assert store.remove("ada", made[0].id)
    assert restarted.store.find("ada", made[0].id) is None
    more = keep(store, "more.md")
    assert [file.id for file in restarted.store.all("ada")] == [made[1].id, made[2].id, more.id]


async def test_a_file_that_is_named_often_is_read_once_and_no_request_names_more_than_there_can_be(
    settings: Settings, library: Library, store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = keep(store, "a.md", b"Some words.")
    kept = Files(settings.model_copy(update={"api_files": 3}))
    looked: list[str] = []
    find = kept.find
    monkeypatch.setattr(kept, "find", lambda owner, id: (looked.append(id), find(owner, id))[1])
    session = Session(library)
    assert await kept.attach("ada", session, ids=[file.id] * 10_000) == {"a.md": file.id}
    assert looked == [file.id]
    with pytest.raises(ApiError, match="at most 3 files") as caught:
        await kept.attach("ada", session, ids=[f"file-{n}" for n in range(4)])
    assert (caught.value.status, looked) == (400, [file.id])


def test_the_newest_of_a_name_stands_for_it_unless_another_is_named(
    settings: Settings, library: Library, store: FileStore
) -> None:
    old, new = (keep(store, "a.md", text, conversation="talk") for text in (b"Old words.", b"New words."))
    keep(store, "b.md", b"Other words.", conversation="another talk")
    keep(store, "c.md", b"Words of bob.", by="bob", conversation="talk")
    loose = keep(store, "d.md", b"Loose words.")
    kept = Files(settings)

    def texts(*ids: str, conversation: str | None = None) -> dict[str, str]:
        session = Session(library)
        ids_of = asyncio.run(kept.attach("ada", session, ids=ids, conversation=conversation))
        attached = session.attachments
        assert list(ids_of) == attached.sources
        for id in ids_of.values():
            assert kept.find("ada", id).report in attached.reports
        return {source: attached.opening(source)[0].text for source in attached.sources}

    assert texts() == {}
    assert texts(conversation="talk") == {"a.md": "New words."}
    assert texts(loose.id, conversation="talk") == {"a.md": "New words.", "d.md": "Loose words."}
    assert texts(old.id, conversation="talk") == {"a.md": "Old words."}
    assert texts(new.id, old.id) == {"a.md": "New words."}
    assert texts(conversation="silence") == {}
    with pytest.raises(ApiError, match="There is no file") as caught:
        texts("file-" + "0" * 24, conversation="talk")
    assert (caught.value.status, caught.value.param) == (404, "file_id")
    for foreign in kept.store.all("bob"):
        with pytest.raises(ApiError, match="There is no file"):
            texts(foreign.id)


def test_what_expired_or_was_never_finished_is_tidied_away_whoever_looks(settings: Settings) -> None:
    now = time.time()
    store = FileStore(settings.data_dir / FOLDER, clock=lambda: now)
    gone = keep(store, by="bob", expires_after_s=3600)
    stays = keep(store, "stays.md", by="bob")
    home = store._home("bob")
    (home / ".file-x.part").mkdir()
    (home / ".file-y.part").mkdir()
    os.utime(home / ".file-y.part", (now - 4000, now - 4000))
    (home / ".file-z.0.gone").mkdir()
    assert store.all("ada") == []
    now += 3601
    assert store.all("ada") == []
    assert {path.name for path in home.iterdir()} == {".lock", ".file-x.part", stays.id}
    assert gone.id != stays.id


async def test_a_disk_that_fails_is_told_with_the_setting_that_mends_it(settings: Settings) -> None:
    settings.data_dir.mkdir(parents=True)
    (settings.data_dir / FOLDER).write_text("in the way")
    async with httpx2.AsyncClient(
        transport=httpx2.ASGITransport(alone(Files(settings))), base_url="http://test"
    ) as one:
        for answer in (await one.post("/v1/files", files={"file": ("a.md", NOTE)}), await one.get("/v1/files")):
            said = refusal(answer, 500, None)
            assert "RAG_DATA_DIR" in said
            assert str(settings.data_dir) not in said


# --- documents of the shared folder ---


@pytest.mark.parametrize("name", NAMES)
def test_a_shared_document_is_found_by_the_name_that_citations_give(client: openai.OpenAI, name: str) -> None:
    with http(client) as one:
        answer = one.get(f"documents/{quote(name)}")
        assert answer.text == f"This document is called {name}."
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        assert (
            answer.headers["content-disposition"]
            == f"inline; filename*=UTF-8''{quote(name.rpartition('/')[2], safe='')}"
        )
        assert "sandbox" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_a_shared_pdf_is_shown_and_an_office_file_saved(client: openai.OpenAI) -> None:
    with http(client) as one:
        paper, letter = one.get("documents/paper.pdf"), one.get("documents/letter.docx")
    assert paper.headers["content-type"] == "application/pdf"
    assert paper.headers["content-disposition"].startswith("inline")
    assert "sandbox" not in paper.headers["content-security-policy"]  # the browser's viewer would not start
    assert letter.headers["content-disposition"].startswith("attachment")


@pytest.mark.parametrize(
    "path",
    ["", "%2e%2e/outside.md", "..%2foutside.md", "%2fetc%2fpasswd", "deep/..%2fpage.html", ".%2fpage.html", "deep", "deep%2f",
     "page.html/", "PAGE.HTML", "empty.md", "link.md", "none.md", "%ff.md", "x" * 3000],
)  # fmt: skip
def test_only_documents_that_were_read_are_found_and_never_a_path(client: openai.OpenAI, path: str) -> None:
    with http(client) as one:
        answer = one.get(f"documents/{path}")
    assert "secret" not in answer.text
    said = refusal(answer, 404, "source")
    assert said.startswith("There is no document ")
    assert len(said) < 250


def test_what_was_put_in_a_documents_place_is_not_sent(client: openai.OpenAI, server: Server) -> None:
    docs = server.library.folder
    with http(client) as one:
        assert one.get("documents/goes.md").text == "This one goes."
        (docs / "goes.md").unlink()
        assert refusal(one.get("documents/goes.md"), 404, "source")
        (docs / "goes.md").symlink_to(docs.parent / "outside.md")
        assert refusal(one.get("documents/goes.md"), 404, "source")
        (docs / "goes.md").unlink()
        os.mkfifo(docs / "goes.md")
        assert refusal(one.get("documents/goes.md"), 404, "source")


@pytest.mark.parametrize(
    ("question", "source", "text"),
    [
        ("Where do zebras drink?", "zebras #1?.md", NOTE),
        ("Where do lions sleep?", "lions #1?.md", b"Lions sleep under the acacia tree all day."),
    ],
)
def test_what_an_answer_cites_is_found_at_the_address_that_it_gives(
    client: openai.OpenAI, question: str, source: str, text: bytes
) -> None:
    put(client, "zebras #1?.md", extra_body={"conversation": "talk"})
    answer = client.chat.completions.create(
        model="smallfirst-slm", messages=[{"role": "user", "content": question}], extra_body={"conversation": "talk"}
    )
    cited = (answer.choices[0].message.annotations or [])[0].url_citation
    assert cited.title == source
    with http(client) as one:
        assert one.get(cited.url).content == text


def test_the_schema_tells_of_forms_errors_and_bytes(server: Server) -> None:
    with httpx2.Client(base_url=server.url, trust_env=False, headers={"Authorization": "Bearer key-0"}) as one:
        schema = one.get("/v1/openapi.json").json()
    create = schema["paths"]["/v1/files"]["post"]
    reference = create["requestBody"]["content"]["multipart/form-data"]["schema"]["$ref"].rpartition("/")[2]
    body = schema["components"]["schemas"][reference]
    assert body["required"] == ["file"]
    assert set(body["properties"]) == {
        "file", "purpose", "conversation", "expires_after[anchor]", "expires_after[seconds]",
    }  # fmt: skip
    assert set(create["responses"]) >= {"200", "400", "401", "404", "413", "429"}
    sent = schema["paths"]["/v1/files/{file_id}/content"]["get"]["responses"]["200"]["content"]
    assert {"application/pdf", "text/plain", "application/octet-stream"} <= set(sent)
