"""Bytes to Document to Passages with positions, and the report of what became of a file.

What each kind of file holds is `formats`'; where its parts begin is `outline`'s; a process of its own, with limits of
time and memory, is `reader`'s. Knows nothing of folders, sessions or indexes. A file that cannot be read raises a
`DocumentError` whose text a person can act on.
"""

import hashlib
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from rag.corpus import formats
from rag.corpus.languages import language
from rag.corpus.outline import Section
from rag.errors import DocumentError

if TYPE_CHECKING:
    from semantic_text_splitter import TextSplitter

VERSION = 1
"""Changes whenever the same file would become other passages: what was read with another version is read anew."""

SUFFIXES = tuple(formats.KINDS)
"""What a folder's scan picks up: files that are read, and files of known kinds whose report says why they are not."""
PICTURES = tuple(formats.PICTURES)
"""Those among them that need Tesseract."""
PAGE_BREAK = formats.PAGE_BREAK

# How a place is written: "p. 3", but "slide 3".
_UNITS = {"page": "p."}
# The splitter's time grows with the square of a text that has no line breaks; beyond this a cut costs nothing.
_BLOCK_CHARS = 20_000


@dataclass(frozen=True)
class Document:
    """One file's text. `text` holds pages, slides or sheets joined by form feeds, so that one offset names one place."""

    id: str
    """See `document_id`: the same file has the same id everywhere."""
    source: str
    """The name that people know: a path inside the folder, or an upload's file name."""
    text: str
    sections: tuple[Section, ...]
    """In reading order; what lies between them is headings and rules."""
    unit: str | None = None
    """What a page is called: "page", "slide", "sheet"; None where there are none."""
    blank_pages: tuple[int, ...] = ()
    """Pages and slides (from 1) on which no text was found, for instance because they are scanned."""
    ocr_pages: tuple[int, ...] = ()
    """Pages (from 1) whose text Tesseract read from their picture."""
    skipped: tuple[str, ...] = ()
    """What was left out and why, for people: "2 pictures"."""
    language: str = ""
    """ISO 639-1; "" if unknown."""

    @property
    def paged(self) -> bool:
        return self.unit is not None

    @property
    def pages(self) -> int:
        return self.text.count(PAGE_BREAK) + 1 if self.paged else 1


@dataclass(frozen=True)
class Passage:
    """A piece of one document, small enough to be put before a model."""

    id: str
    source: str
    page: int | None
    """Of the document's unit, from 1; None where it has none."""
    unit: str | None
    heading: tuple[str, ...]
    """The headings above it, outermost first; a sheet's name; a table's column names, joined by " | "."""
    start: int
    end: int
    """`document.text[start:end] == text`, in characters."""
    text: str
    language: str
    """The document's: ISO 639-1, "" if unknown."""

    @property
    def place(self) -> str:
        """Where a person finds it: document, page, headings."""
        parts = [self.source]
        if self.page is not None:
            parts.append(f"{_UNITS.get(self.unit or 'page', self.unit)} {self.page}")
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
    unit: str | None = None
    ocr_pages: tuple[int, ...] = ()
    skipped: tuple[str, ...] = ()
    language: str = ""
    duration_ms: float = 0.0

    @property
    def line(self) -> str:
        """One line for a person."""
        source = shown(self.source)
        if self.error is not None:
            # Most of these sentences begin with the name already.
            return f"not read: {self.error}" if self.error.startswith(source) else f"{source}: not read. {self.error}"
        parts = [f"{self.chars:,} characters, {_number(self.passages, 'passage')}"]
        if self.unit is not None:
            parts[0] += f", {_number(self.pages, self.unit)}"
        if self.ocr_pages:
            parts.append(f"{_number(len(self.ocr_pages), 'page')} read by Tesseract")
        # What is told of pages is a sentence by itself; the rest is a list of things.
        parts.extend(told for told in self.skipped if "no text" in told)
        left_out = [told for told in self.skipped if "no text" not in told]
        if left_out:
            parts.append(f"left out: {', '.join(left_out)}")
        return f"{source}: {'; '.join(parts)}"

    def to_dict(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "chars": self.chars,
            "passages": self.passages,
            "pages": self.pages,
            "unit": self.unit,
            "blank_pages": list(self.blank_pages),
            "ocr_pages": list(self.ocr_pages),
            "skipped": list(self.skipped),
            "language": self.language,
            "duration_ms": self.duration_ms,
            "error": self.error,
        }


def shown(source: str) -> str:
    """A name as messages have it: one line, printable, not endless."""
    name = "".join(character if character.isprintable() else "�" for character in source)
    return name if len(name) <= 120 else f"{name[:60]}…{name[-40:]}"


def document_id(data: bytes, source: str) -> str:
    """First 16 hexadecimal digits of the SHA-256 of name and bytes."""
    return hashlib.sha256(source.encode("utf-8", "surrogatepass") + b"\0" + data).hexdigest()[:16]


def read(data: bytes, source: str, *, ocr_s: float = 40) -> Document:
    """Make a Document of a file's bytes; raises DocumentError when there is no text to be had.

    `ocr_s` is the longest time for reading pages that are pictures; what is left then is told as blank.
    """
    name = shown(source)
    if not data:
        raise DocumentError(f"{name} is empty. Save it again, then add it.")
    suffix = PurePosixPath(source.replace("\\", "/")).suffix.lower()
    found = formats.content(data, name, suffix, ocr_s)
    if not found.text.strip():
        told = f" ({', '.join(found.skipped)} left out)" if found.skipped else ""
        raise DocumentError(f"{name} holds no text{told}. Save it again with text in it, then add it.")
    return Document(
        document_id(data, source),
        source,
        found.text,
        found.sections,
        found.unit,
        found.blank_pages,
        found.ocr_pages,
        found.skipped,
        language(found.text),
    )


def split(document: Document, max_chars: int) -> list[Passage]:
    """Passages in reading order, none longer than `max_chars`, none across a page or a heading."""
    return [
        Passage(
            id=f"{document.id}:{start}",
            source=document.source,
            page=section.page,
            unit=document.unit,
            heading=section.heading,
            start=start,
            end=end,
            text=document.text[start:end],
            language=document.language,
        )
        for section in document.sections
        for start, end in _pieces(document.text, section, max_chars)
    ]


def ingest(data: bytes, source: str, max_chars: int, *, ocr_s: float = 40) -> tuple[Ingest, list[Passage]]:
    """Read and split one file, and report."""
    began = time.perf_counter()
    document = read(data, source, ocr_s=ocr_s)
    passages = split(document, max_chars)
    report = Ingest(
        source=source,
        chars=len(document.text),
        passages=len(passages),
        pages=document.pages,
        blank_pages=document.blank_pages,
        unit=document.unit,
        ocr_pages=document.ocr_pages,
        skipped=document.skipped,
        language=document.language,
        duration_ms=round((time.perf_counter() - began) * 1000, 3),
    )
    return report, passages


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


# A line break inside a sentence that was only broken where its line was full: the line is not short, does not end as
# sentences do, and the next one starts no list item, row, heading, quote, code block or indented part.
_WRAP = re.compile(
    r"(?P<fence>^ {0,3}(?P<ticks>```+|~~~+).*?(?:^ {0,3}(?P=ticks)|\Z))"
    r"|(?<=[^\n]{30})(?<![.!?:;|。！？：；])\n(?![\s*+#>|`~=<•‣▪–—-]|\d+[.)]|\Z)",
    re.MULTILINE | re.DOTALL,
)


def _unwrapped(text: str) -> str:
    """The same length, with spaces for those line breaks, so that a sentence counts more than the edge of a page."""
    return _WRAP.sub(lambda match: match["fence"] or " ", text)


def _pieces(text: str, section: Section, max_chars: int) -> Iterator[tuple[int, int]]:
    """Start and end of each piece of a section: paragraphs, lines, sentences, words kept whole where they fit."""
    for start, end in _blocks(text, section.start, section.end):
        block = text[start:end]
        if len(block) <= max_chars:  # most sections are that short
            if block.strip():
                yield start + len(block) - len(block.lstrip()), start + len(block.rstrip())
            continue
        cut = _unwrapped(block) if section.form == "prose" else block
        spans = [(at, at + len(piece)) for at, piece in _splitter(max_chars).chunk_indices(cut)]
        for piece_start, piece_end in _without_crumb(cut, spans, max_chars):
            yield start + piece_start, start + piece_end


def _blocks(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    while end - start > _BLOCK_CHARS:
        latest = start + _BLOCK_CHARS
        for mark in ("\n\n", "\n", "。", ". ", " ", ""):  # the best place in the last tenth; at worst, anywhere
            at = text.rfind(mark, latest - _BLOCK_CHARS // 10, latest) if mark else latest
            if at >= 0:
                break
        yield start, at + len(mark)
        start = at + len(mark)
    yield start, end


def _without_crumb(text: str, spans: list[tuple[int, int]], max_chars: int) -> list[tuple[int, int]]:
    """Filled to the brim, the last piece of a section is often a few words; then the last two share alike."""
    if len(spans) < 2 or spans[-1][1] - spans[-1][0] >= max_chars // 4:
        return spans
    start, end = spans[-2][0], spans[-1][1]
    for share in (0.55, 0.65, 0.75):
        size = int((end - start) * share)
        halves = [(start + at, start + at + len(piece)) for at, piece in _splitter(size).chunk_indices(text[start:end])]
        if size <= max_chars and len(halves) == 2 and halves[1][1] - halves[1][0] >= max_chars // 4:
            return [*spans[:-2], *halves]
    return spans


@lru_cache(maxsize=256)
def _splitter(max_chars: int) -> "TextSplitter":
    from semantic_text_splitter import TextSplitter

    return TextSplitter(max_chars)
