"""Bytes to Document to Passages with positions.

Reads Markdown, plain text and PDF. The kind is told by the bytes first and the name second. Knows nothing of folders,
sessions or indexes. A file that cannot be read raises a `DocumentError` whose text a person can act on.
"""

import hashlib
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

import pypdfium2 as pdfium
from charset_normalizer import from_bytes
from semantic_text_splitter import TextSplitter

from rag.corpus.analysis import terms
from rag.errors import DocumentError

SUFFIXES = (".md", ".txt", ".pdf")
PAGE_BREAK = "\f"

_ATX_HEADING = re.compile(r"^ {0,3}(#{1,6})[ \t]+(.*?)[ \t]*#*[ \t]*$", re.MULTILINE)
_CODE_FENCE = re.compile(r"^ {0,3}(```+|~~~+).*?(?:^ {0,3}\1[`~]*[ \t]*$|\Z)", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Document:
    """One file's text. `text` holds the pages joined by form feeds, so that one offset names one place."""

    id: str
    """First 16 hexadecimal digits of the SHA-256 of name and bytes: the same file has the same id everywhere."""
    source: str
    """The name that people know: a path inside the folder, or an upload's file name."""
    text: str
    paged: bool = False
    blank_pages: tuple[int, ...] = ()
    """Pages (from 1) on which no text was found, for instance because they are scanned."""

    @property
    def pages(self) -> int:
        return self.text.count(PAGE_BREAK) + 1 if self.paged else 1


@dataclass(frozen=True)
class Passage:
    """A piece of one document, small enough to be put before a model."""

    id: str
    source: str
    page: int | None
    """From 1; None where a document has no pages."""
    heading: tuple[str, ...]
    """The headings above it, outermost first."""
    start: int
    end: int
    """`document.text[start:end] == text`, in characters."""
    text: str
    terms: tuple[str, ...] = field(repr=False, compare=False)
    """What retrieval sees: the terms of the headings and of the text."""

    @property
    def place(self) -> str:
        """Where a person finds it: document, page, headings."""
        parts = [self.source]
        if self.page is not None:
            parts.append(f"p. {self.page}")
        return ", ".join(parts) + (f" › {' › '.join(self.heading)}" if self.heading else "")


@dataclass(frozen=True)
class Ingest:
    """What became of one file."""

    source: str
    chars: int = 0
    passages: int = 0
    pages: int = 1
    blank_pages: tuple[int, ...] = ()
    error: str | None = None

    @property
    def line(self) -> str:
        """One line for a person."""
        if self.error is not None:
            return f"{self.source}: not read. {self.error}"
        blank = ""
        if self.blank_pages:
            blank = f"; {len(self.blank_pages)} of {self.pages} pages hold no text (scanned?)"
        plural = "" if self.passages == 1 else "s"
        return f"{self.source}: {self.chars:,} characters, {self.passages:,} passage{plural}{blank}"

    def to_dict(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "chars": self.chars,
            "passages": self.passages,
            "pages": self.pages,
            "blank_pages": list(self.blank_pages),
            "error": self.error,
        }


def read(data: bytes, source: str) -> Document:
    """Make a Document of a file's bytes; raises DocumentError when there is no text to be had."""
    suffix = PurePath(source).suffix.lower()
    if not data:
        raise DocumentError(f"{source} is empty. Save it again, then add it.")
    digest = hashlib.sha256(source.encode("utf-8", "surrogatepass") + b"\0" + data).hexdigest()[:16]
    if b"%PDF-" in data[:1024]:
        pages = _pdf_pages(data, source)
        blank = tuple(number for number, page in enumerate(pages, start=1) if not page.strip())
        if len(blank) == len(pages):
            raise DocumentError(
                f"{source} holds no text on any of its {len(pages)} pages; it is probably scanned."
                " Add a version with text."
            )
        return Document(digest, source, PAGE_BREAK.join(pages), paged=True, blank_pages=blank)
    if suffix == ".pdf":
        raise DocumentError(f"{source} is named .pdf but is no PDF file. Export it again, then add it.")
    if suffix not in SUFFIXES:
        raise DocumentError(
            f"{source}: files of type {suffix or 'none'} are not read. Use one of {', '.join(SUFFIXES)}."
        )
    text = _decode(data, source).replace("\r\n", "\n").replace("\r", "\n").replace(PAGE_BREAK, "\n")
    if not text.strip():
        raise DocumentError(f"{source} holds only white space. Save it again, then add it.")
    return Document(digest, source, text)


def split(document: Document, max_chars: int) -> list[Passage]:
    """Passages in reading order, none longer than `max_chars`, none across a page or a heading."""
    markdown = document.source.lower().endswith(".md")
    splitter = TextSplitter(max_chars)
    passages = []
    for page, section_start, section_end, heading in _sections(document, markdown):
        for offset, text in splitter.chunk_indices(document.text[section_start:section_end]):
            start = section_start + offset
            passages.append(
                Passage(
                    id=f"{document.id}:{start}",
                    source=document.source,
                    page=page,
                    heading=heading,
                    start=start,
                    end=start + len(text),
                    text=text,
                    terms=tuple(terms(" ".join(heading)) + terms(text)),
                )
            )
    return passages


def _sections(document: Document, markdown: bool) -> Iterator[tuple[int | None, int, int, tuple[str, ...]]]:
    """(page, start, end, headings) of each stretch of text under one heading, the heading's own line left out."""
    if document.paged:
        start = 0
        for number, page in enumerate(document.text.split(PAGE_BREAK), start=1):
            yield number, start, start + len(page), ()
            start += len(page) + len(PAGE_BREAK)
        return
    if not markdown:
        yield None, 0, len(document.text), ()
        return
    fences = [match.span() for match in _CODE_FENCE.finditer(document.text)]
    headings = [
        match
        for match in _ATX_HEADING.finditer(document.text)
        if not any(start <= match.start() < end for start, end in fences)
    ]
    path: list[tuple[int, str]] = []
    start = 0
    for match in headings:
        yield None, start, match.start(), tuple(title for _, title in path)
        level = len(match.group(1))
        path = [*(entry for entry in path if entry[0] < level), (level, match.group(2))]
        start = match.end()
    yield None, start, len(document.text), tuple(title for _, title in path)


def _decode(data: bytes, source: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        pass
    # Text in UTF-16 has its mark; any other NUL byte tells a binary file with the wrong name.
    if b"\0" in data[:8192] and not data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DocumentError(f"{source} is not text. Add it as .md, .txt or .pdf.")
    best = from_bytes(data).best()
    if best is None:
        raise DocumentError(f"{source} is not text in any encoding known here. Save it as UTF-8, then add it.")
    return str(best)


# PDFium keeps global state: two threads inside it at once crash the process.
_PDFIUM = threading.Lock()


def _pdf_pages(data: bytes, source: str) -> list[str]:
    with _PDFIUM:
        return _read_pdf(data, source)


def _read_pdf(data: bytes, source: str) -> list[str]:
    try:
        pdf = pdfium.PdfDocument(data)
    except pdfium.PdfiumError as error:
        if "assword" in str(error):
            raise DocumentError(f"{source} is protected by a password. Save it without one, then add it.") from None
        raise DocumentError(f"{source} is a damaged PDF ({error}). Export it again, then add it.") from None
    try:
        pages = []
        for page in pdf:
            text_page = page.get_textpage()
            pages.append(
                text_page.get_text_bounded().replace("\r\n", "\n").replace("\r", "\n").replace(PAGE_BREAK, "\n")
            )
            text_page.close()
            page.close()
        return pages
    finally:
        pdf.close()
