"""What stands behind a citation: the document, how its page looks with the sentence marked, and the text around it.

Knows who may see a document: everybody who may use this server sees the shared folder's, and only the owner of a
conversation what was uploaded to it. A name is looked up among known ones and never becomes a path. How a page is drawn
is `pages`', in which process `reader`'s; how uploads are kept, and whose they are, is told by the caller.
"""

import asyncio
import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, HTTPException, Request
from fastapi.responses import JSONResponse, Response

from rag.corpus.documents import Ingest, Passage, shown
from rag.corpus.library import LARGEST_BYTES, Library
from rag.corpus.pages import Page
from rag.corpus.reader import Reader
from rag.errors import DocumentError
from rag.serve.documents import served, shared, version
from rag.serve.ids import is_uuid
from rag.settings import Settings
from rag.words import language_of, say, told

DRAWING_S: Final = 20
"""The longest time for one page: somebody waits for it, and everybody else behind them."""
PAGES_KEPT: Final = 16
KEPT_BYTES: Final = 50_000_000
AROUND_CHARS: Final = 600


@dataclass(frozen=True)
class Upload:
    """A document of one conversation, as it was stored and as it was read."""

    file: Path | bytes
    report: Ingest
    passages: Sequence[Passage]
    """In reading order."""


OpenUpload = Callable[[str, str, Any], Awaitable[Upload | None]]
"""Thread, source and user (None where nobody signs in) to an upload; None if that thread, if it is theirs, has none."""


@dataclass(frozen=True)
class Document:
    """One that was asked for by somebody who may see it."""

    file: Path | bytes
    report: Ingest
    passages: Callable[[], Sequence[Passage]]
    thread: str
    """Empty for one of the shared folder."""
    version: Hashable
    """Another one whenever the file has changed."""
    pdf: bool

    def address(self, part: str, **more: object) -> str:
        """Relative to the address of `/source` itself."""
        thread = {"thread": self.thread} if self.thread else {}
        return f"source/{part}?{urlencode({'name': self.report.source, **thread, **more})}"


class Pages:
    """Draws pages, one at a time, and keeps the last few: what is opened twice is drawn once."""

    def __init__(self, settings: Settings, kept_bytes: int = KEPT_BYTES) -> None:
        self.kept_bytes = kept_bytes
        # Of its own, so that nobody waits for a folder that is being read.
        self._reader = Reader(
            passage_chars=settings.passage_chars,
            timeout_s=min(DRAWING_S, settings.read_timeout_s),
            memory_mb=settings.read_memory_mb,
            largest_bytes=LARGEST_BYTES,
        )
        self._kept: OrderedDict[Hashable, tuple[Page, tuple[str, str]]] = OrderedDict()
        # Who waits here holds no thread.
        self._turn = asyncio.Lock()

    async def draw(self, document: Document, number: int, quote: str = "", passage: str = "") -> Page:
        """See `Reader.draw`. A quote's marks are kept until another one of the same page is asked for."""
        source, sought = document.report.source, (quote, passage)
        key = document.thread, source, document.version, number
        async with self._turn:
            kept, marked = self._kept.get(key, (None, ("", "")))
            if kept is None or (quote and sought != marked):
                page = await asyncio.to_thread(
                    self._reader.draw, document.file, source, number, quote, passage, kept is None
                )
                kept, marked = page if kept is None else replace(page, png=kept.png), sought
            if kept.png:
                self._kept[key] = kept, marked
                self._kept.move_to_end(key)
            size = sum(len(page.png) for page, _ in self._kept.values())
            while len(self._kept) > PAGES_KEPT or size > self.kept_bytes:
                size -= len(self._kept.popitem(last=False)[1][0].png)
            return kept if quote else replace(kept, marks=())

    def close(self) -> None:
        """End the process that draws, and what it is drawing."""
        self._reader.close()


def router(library: Library, pages: Pages, open_upload: OpenUpload) -> APIRouter:
    """`GET /source`, `/source/picture`, `/source/document`; each takes `name`, and `thread` for an upload.

    All tell what is wrong as `{"detail": sentence}`: 400, 404, or 415 where no page can be shown.
    """
    from chainlit.auth import get_current_user  # imported late: it reads a configuration and makes folders

    routes = APIRouter()
    User = Annotated[Any, Depends(get_current_user)]
    Language = Annotated[str, Depends(_language)]

    async def find(user: User, language: Language, name: str = "", thread: str = "") -> Document:
        if not thread:
            found = await asyncio.to_thread(_shared, library, name)
        else:
            upload = await open_upload(thread, name, user) if is_uuid(thread) and "\0" not in name else None
            found = await asyncio.to_thread(_uploaded, thread, upload) if upload is not None else None
        if found is None:
            raise HTTPException(404, told(say("documents.unknown", name=shown(name)), language))
        return found

    Found = Annotated[Document, Depends(find)]

    @routes.get("/source")
    async def source(document: Found, language: Language, page: str = "", quote: str = "", start: str = "") -> Response:
        """`page`, `quote` and `start` are a citation's; where the quote stands twice, `start` tells which is meant."""
        number = _page(page, language)
        before, passage, after = await asyncio.to_thread(
            lambda: around(document.passages(), number, quote, _number(start))
        )
        answer: dict[str, Any] = {
            "name": document.report.source,
            "unit": document.report.unit,
            "page": number,
            "pages": document.report.pages if document.report.unit else None,
            "picture": None,
            "marks": [],
            "document": document.address("document"),
            "before": before,
            "after": after,
        }
        if document.pdf:
            number = number or 1
            try:
                drawn = await _drawn(pages, document, number, language, quote, passage)
            except HTTPException as error:
                # There is no picture; the document itself may still be opened.
                return JSONResponse({"detail": error.detail, "document": answer["document"]}, error.status_code)
            answer |= {
                "page": number,
                "pages": drawn.pages,
                "picture": document.address("picture", page=number),
                "marks": drawn.marks,
            }
        return JSONResponse(answer, headers={"Cache-Control": "no-store"})

    @routes.get("/source/picture")
    async def picture(document: Found, language: Language, page: str = "") -> Response:
        number = _page(page, language) or 1
        if not document.pdf:
            name = shown(document.report.source)
            raise HTTPException(415, told(say("documents.no_picture", name=name), language))
        drawn = await _drawn(pages, document, number, language)
        return Response(drawn.png, media_type="image/png", headers={"Cache-Control": "private, no-store"})

    @routes.get("/source/document")
    async def file(document: Found) -> Response:
        """A PDF for the browser's viewer (`#page=3` is the browser's to read); any other kind to be saved."""
        return served(document.file, document.report.source, pdf=document.pdf)

    return routes


def around(passages: Sequence[Passage], page: int | None, quote: str, start: int | None) -> tuple[str, str, str]:
    """The text before a quote, the passage that holds it, and the text after it; empty where no passage does.

    Several passages may say the same: the nearest to `start` is meant. It is an answer's, and the document may have
    changed since.
    """
    if not (words := quote.split()):
        return "", "", ""
    sought = re.compile(r"\s+".join(map(re.escape, words)))
    found = [
        (number, match)
        for number, passage in enumerate(passages)
        if page is None or passage.page == page
        for match in sought.finditer(passage.text)
    ]
    if not found:
        return "", "", ""
    number, match = min(found, key=lambda one: abs(passages[one[0]].start + one[1].start() - (start or 0)))
    text = passages[number].text
    before = _before(passages[: number + 1], text[: match.start()])
    return before, text, _after(passages[number:], text[match.end() :])


def _before(passages: Sequence[Passage], text: str) -> str:
    """The end of what leads to `text`, which stands in the last of the passages, and `text`."""
    for second, first in pairwise(reversed(passages)):
        if len(text) > AROUND_CHARS:
            break
        text = first.text + _gap(first, second) + text
    if len(text) <= AROUND_CHARS:
        return text
    cut = text[-AROUND_CHARS:]
    return "…" + cut[cut.find(" ") + 1 if " " in cut[:40] else 0 :]


def _after(passages: Sequence[Passage], text: str) -> str:
    """`text`, which stands in the first of the passages, and the beginning of what follows."""
    for first, second in pairwise(passages):
        if len(text) > AROUND_CHARS:
            break
        text += _gap(first, second) + second.text
    if len(text) <= AROUND_CHARS:
        return text
    cut = text[:AROUND_CHARS]
    return cut[: cut.rfind(" ") if " " in cut[-40:] else None] + "…"


def _gap(first: Passage, second: Passage) -> str:
    """A sentence that was cut from the one before it goes on in the same line."""
    return " " if second.start - first.end == 1 else "\n\n"


async def _drawn(
    pages: Pages, document: Document, number: int, language: str, quote: str = "", passage: str = ""
) -> Page:
    try:
        page = await pages.draw(document, number, quote, passage)
    except DocumentError as error:
        raise HTTPException(415, told(error.told, language)) from None
    if not page.png:
        name = shown(document.report.source)
        sentence = say("documents.no_page", name=name, count=page.pages, page=str(number))
        raise HTTPException(404, told(sentence, language))
    return page


def _language(request: Request, language: str | None = None) -> str:
    return language_of(request.headers.get("accept-language", "") if language is None else language)


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else None


def _page(text: str, language: str) -> int | None:
    number = _number(text)
    if text and not number:
        raise HTTPException(400, told(say("documents.bad_page", page=shown(text)), language))
    return number


def _shared(library: Library, name: str) -> Document | None:
    """A document of the folder that was read and is still there; blocks."""
    placed = shared(library, name)
    if placed is None:
        return None
    report, path = placed
    source = report.source
    known = version(path, source)
    return known and Document(path, report, lambda: library.opening(source), "", *known)


def _uploaded(thread: str, upload: Upload) -> Document | None:
    known = version(upload.file, upload.report.source)
    return known and Document(upload.file, upload.report, lambda: upload.passages, thread, *known)
