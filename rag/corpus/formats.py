"""What is in a file's bytes: one reader for each kind of file.

The kind is told by the bytes first and by the name only among kinds of text. pypdfium2, markitdown, openpyxl and
striprtf do the reading; they are imported when a file first needs them, because whoever only wants the names of things
(the chat's start) should not wait for them. Nothing here opens a file, reaches a network or follows a link in a
document. It runs in the worker of `reader`, whose limits stop what grows without end; the limits here are those that
have a better sentence.
"""

import codecs
import csv
import datetime
import io
import json
import re
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from typing import Any, Final

from rag.corpus.ocr import Tesseract
from rag.corpus.outline import Section, header, markdown, org, rst
from rag.errors import DocumentError

PAGE_BREAK: Final = "\f"

CODE: Final = (
    ".py .pyi .js .mjs .cjs .ts .tsx .jsx .vue .java .c .h .cc .cpp .cxx .hpp .rs .go .rb .php .cs .fs .swift .kt .scala"
    " .lua .pl .r .jl .dart .ex .erl .hs .clj .sh .bash .zsh .fish .ps1 .bat .sql .css .scss .less .tex .yaml .yml .toml"
    " .ini .cfg .conf .properties .xml .proto .graphql .tf .cmake .gradle .diff .patch .srt .vtt .log"
).split()
PICTURES: Final = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".gif")

# What a name promises. Only among kinds of text is it believed; the old Office and the OpenDocument kinds stand here
# because a file that is not read should say so.
KINDS: Final[Mapping[str, str]] = {
    ".md": "markdown",
    ".markdown": "markdown",
    ".txt": "text",
    ".rst": "rst",
    ".org": "org",
    ".pdf": "pdf",
    **dict.fromkeys((".docx", ".docm"), "docx"),
    **dict.fromkeys((".pptx", ".pptm"), "pptx"),
    **dict.fromkeys((".xlsx", ".xlsm"), "xlsx"),
    ".epub": "epub",
    ".rtf": "rtf",
    **dict.fromkeys((".html", ".htm", ".xhtml"), "html"),
    ".csv": "csv",
    ".tsv": "tsv",
    ".json": "json",
    **dict.fromkeys((".jsonl", ".ndjson"), "jsonl"),
    ".ipynb": "ipynb",
    ".eml": "eml",
    **dict.fromkeys(CODE, "code"),
    **dict.fromkeys(PICTURES, "picture"),
    **dict.fromkeys((".doc", ".xls", ".ppt"), "ole"),
    **dict.fromkeys((".odt", ".ods", ".odp"), "opendocument"),
}
NAMES: Final = {
    "pdf": "PDF file",
    "docx": "Word file",
    "pptx": "PowerPoint file",
    "xlsx": "Excel file",
    "epub": "EPUB book",
    "rtf": "RTF file",
    "picture": "picture",
    "ole": "Office file",
    "opendocument": "OpenDocument file",
    "html": "web page",
    "ipynb": "notebook",
    "eml": "mail",
}
PICTURE_MAGIC: Final = (
    (b"\x89PNG\r\n", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"GIF8", "a GIF picture"),
    (b"II*\0", "a TIFF picture"),
    (b"MM\0*", "a TIFF picture"),
)
BINARY_MAGIC: Final = (
    (b"MZ", "a Windows program"),
    (b"\x7fELF", "a program"),
    (b"\xca\xfe\xba\xbe", "a program"),
    (b"\xcf\xfa\xed\xfe", "a program"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ", "an xz archive"),
    (b"7z\xbc\xaf", "a 7-Zip archive"),
    (b"Rar!", "a RAR archive"),
    (b"SQLite format 3\0", "a SQLite database"),
    (b"ID3", "a sound file"),
    (b"OggS", "a sound file"),
    (b"RIFF", "a sound or video file"),
    (b"%!PS", "a PostScript file"),
)
OLE_MAGIC: Final = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"

# A zip's directory says how large its members become. Real Office files stay under 100 times; deflate itself ends at
# about 1,000 times, and small files may well be that empty.
MOST_UNZIPPED: Final = 1_000_000_000
SUSPECT_UNZIPPED: Final = 50_000_000
MOST_RATIO: Final = 150
# A workbook can hold a million rows, a minute of reading; whoever has so many wants a database.
MOST_ROWS: Final = 200_000


@dataclass(frozen=True)
class Content:
    """A file's text and its parts. `text` holds pages, slides or sheets joined by form feeds."""

    text: str
    sections: tuple[Section, ...]
    unit: str | None = None
    blank_pages: tuple[int, ...] = ()
    ocr_pages: tuple[int, ...] = ()
    skipped: tuple[str, ...] = ()


def content(data: bytes, name: str, suffix: str, ocr_s: float) -> Content:
    """Read one file. `name` is what messages call it, `suffix` its lower-case ending, `ocr_s` the longest time for
    reading pictures of pages. Raises DocumentError."""
    kind = _kind(data, name, suffix)
    if kind in ("pdf", "picture"):
        return _pdf(data, name, ocr_s) if kind == "pdf" else _picture(data, name, ocr_s)
    media = _check_zip(data, name, kind) if kind in ("docx", "pptx", "xlsx", "epub") else 0
    try:
        found = _READERS[kind](data, name)
    except (DocumentError, MemoryError):
        raise
    except Exception as error:  # whatever a library makes of a damaged file
        if _no_memory(error):
            raise MemoryError from error
        raise DocumentError(
            f"{name} cannot be read as {_a(kind)} ({_said(error)}). Open it, save it again, then add it."
        ) from error
    if media:
        found = replace(found, skipped=(*found.skipped, f"{media} picture{'s' * (media > 1)}"))
    return found


def _kind(data: bytes, name: str, suffix: str) -> str:
    """What the bytes are; a DocumentError where they are nothing that holds text, or not what the name says."""
    promised = KINDS.get(suffix)
    beginning = data[:1024].removeprefix(codecs.BOM_UTF8).lstrip()
    if beginning.startswith(b"%PDF-") or (suffix == ".pdf" and b"%PDF-" in data[:1024]):
        return "pdf"
    if data.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _zip_kind(data, name, promised)
    if data.startswith(OLE_MAGIC):
        raise DocumentError(_about_ole(data, name))
    if beginning.startswith(b"{\\rtf"):
        return "rtf"
    picture = next((what for magic, what in PICTURE_MAGIC if data.startswith(magic)), None)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        picture = "a WebP picture"
    elif data.startswith(b"BM") and data[6:10] == bytes(4):
        picture = "a BMP picture"
    if picture is not None:
        if promised == "picture":
            return "picture"
        raise DocumentError(f"{name} is {picture}{_not(promised)}. Add a file with text in it.")
    for magic, what in BINARY_MAGIC:
        # A text may begin with these letters; it will not go on with control characters.
        if data.startswith(magic) and _control(data[:1024]):
            raise DocumentError(f"{name} is {what}{_not(promised)}. Add a file with text in it.")
    if data[4:8] == b"ftyp":
        raise DocumentError(f"{name} is a video or picture{_not(promised)}. Add a file with text in it.")
    if promised in ("pdf", "docx", "pptx", "xlsx", "epub", "rtf", "picture", "ole", "opendocument"):
        raise DocumentError(f"{name} is named {suffix} but is no {NAMES[promised]}. Export it again, then add it.")
    if promised is None:
        raise DocumentError(
            f"{name}: files of type {suffix or 'none'} are not read. Save it as .txt, .md, .pdf or .docx, then add it."
        )
    if promised in ("text", "markdown") and re.match(rb"<!doctype html|<html[\s>]", beginning, re.IGNORECASE):
        return "html"
    return promised


def _not(promised: str | None) -> str:
    return f", not {_a(promised)}" if promised and promised != "picture" else ""


def _a(kind: str) -> str:
    name = NAMES.get(kind, "text")
    return name if name == "text" else f"{'an' if name[0] in 'EOR' else 'a'} {name}"


def _said(error: Exception) -> str:
    """The library's own words in one short line, because they may help whoever made the file."""
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words[:80]}" if words else type(error).__name__


_NO_MEMORY = re.compile("cannot allocate memory$|failed to map segment", re.IGNORECASE | re.MULTILINE)


def _no_memory(error: BaseException | None) -> bool:
    """Libraries wrap a MemoryError in their own, and the loader of shared objects tells it as an ImportError."""
    while error is not None:
        if isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


# --- Containers: zip (Office, EPUB, OpenDocument) and OLE (old or encrypted Office) ---


def _zip_kind(data: bytes, name: str, promised: str | None) -> str:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.namelist()
            declared = archive.open("mimetype").read(80) if "mimetype" in members else b""
    except Exception:
        what = NAMES.get(promised or "", "ZIP archive")
        raise DocumentError(
            f"{name} is a damaged {what}, probably cut off. Copy or save it again, then add it."
        ) from None
    for folder, kind in (("word/", "docx"), ("ppt/", "pptx"), ("xl/", "xlsx")):
        if any(member.startswith(folder) for member in members):
            return kind
    if declared.startswith(b"application/epub"):
        return "epub"
    if b"opendocument" in declared:
        raise DocumentError(f"{name} is an OpenDocument file, which is not read. Save it as .docx, .xlsx or .pdf.")
    if promised in ("docx", "pptx", "xlsx", "epub"):
        raise DocumentError(f"{name} is a ZIP archive, not {_a(promised)}. Export it again, then add it.")
    raise DocumentError(f"{name} is a ZIP archive. Unpack it, then add the files inside.")


def _check_zip(data: bytes, name: str, kind: str) -> int:
    """Refuse what unpacks without measure or declares XML entities; tell how many pictures it holds."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            size = sum(member.file_size for member in members)
            if size > MOST_UNZIPPED or size > max(SUSPECT_UNZIPPED, MOST_RATIO * len(data)):
                raise DocumentError(
                    f"{name} unpacks from {len(data) / 1e6:.3g} to {size / 1e6:,.0f} MB, as only a zip bomb does, and is"
                    " not opened. Save its contents as another file."
                )
            if any(member.flag_bits & 1 for member in members):
                raise DocumentError(f"{name} is protected by a password. Save it without one, then add it.")
            for member in members:
                # Office and EPUB files have no use for entities of their own; the parsers would unfold them.
                if member.filename.lower().endswith((".xml", ".rels", ".opf", ".ncx", ".xhtml", ".html", ".htm")):
                    part = archive.read(member)
                    if b"<!ENTITY" in part or b"<\0!\0E\0N\0T\0I\0T\0Y" in part:
                        raise DocumentError(
                            f"{name} declares XML entities ({member.filename}), as only an attack does, and is not"
                            " opened. Save it again with an Office program, then add it."
                        )
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, RuntimeError, zlib.error):
        raise DocumentError(
            f"{name} is a damaged {NAMES[kind]}, probably cut off. Copy or save it again, then add it."
        ) from None
    # What else is a picture in an Office file is its own preview.
    return sum(
        member.filename.lower().endswith(PICTURES) if kind == "epub" else "/media/" in member.filename
        for member in members
    )


def _about_ole(data: bytes, name: str) -> str:
    # The directory names its streams in UTF-16; no more of the format is needed for a useful sentence.
    if "EncryptedPackage".encode("utf-16-le") in data:
        return f"{name} is protected by a password. Save it without one, then add it."
    for stream, new in (("WordDocument", "docx"), ("Workbook", "xlsx"), ("PowerPoint Document", "pptx")):
        if stream.encode("utf-16-le") in data:
            return f"{name} is {_a(new)} of the old kind (before 2007), which is not read. Save it as .{new} or .pdf."
    return f"{name} is in an old Office format, which is not read. Save it as .docx, .xlsx, .pptx or .pdf."


# --- PDF and pictures ---

# PDFium keeps global state: two threads inside it at once crash the process.
_PDFIUM = threading.Lock()
# Where a word is hyphenated at the end of a line, PDFium writes one of these and joins the lines.
_HYPHENS = str.maketrans("", "", "\ufffe\x02\0")
OCR_DPI: Final = 300
MOST_PIXELS: Final = 25_000_000


def _pdf(data: bytes, name: str, ocr_s: float) -> Content:
    with _PDFIUM:
        texts, pictures, unread = _pdf_pages(data, name, ocr_s)
    text, sections, start = PAGE_BREAK.join(texts), [], 0
    for number, page in enumerate(texts, start=1):
        sections.append(Section(start, start + len(page), page=number))
        start += len(page) + len(PAGE_BREAK)
    blank = tuple(number for number, page in enumerate(texts, start=1) if not page.strip())
    told: tuple[str, ...] = ()
    if blank:
        told = (f"{len(blank)} of {len(texts)} pages hold{'s' * (len(blank) == 1)} no text; {unread}",)
    if len(blank) == len(texts):
        raise DocumentError(f"{name} is probably scanned: {told[0] if told else 'it has no pages'}.")
    return Content(text, tuple(sections), "page", blank, pictures, told)


def _pdf_pages(data: bytes, name: str, ocr_s: float) -> tuple[list[str], tuple[int, ...], str]:
    """Each page's text, which pages Tesseract read (from 1), and what to do about those without text."""
    import pypdfium2 as pdfium

    try:
        pdf = pdfium.PdfDocument(data)
    except pdfium.PdfiumError as error:
        if "assword" in str(error):
            raise DocumentError(f"{name} is protected by a password. Save it without one, then add it.") from None
        raise DocumentError(f"{name} is a damaged PDF ({error}). Export it again, then add it.") from None
    try:
        texts = [_page_text(pdf, index) for index in range(len(pdf))]
        blank = [index for index, text in enumerate(texts) if not text.strip()]
        tesseract = Tesseract.found() if blank else None
        if tesseract is None:
            return texts, (), "install Tesseract or upload a text version"
        read: list[int] = []
        deadline = time.monotonic() + ocr_s
        for index in blank:
            left = deadline - time.monotonic()
            if left <= 0:
                told = f"Tesseract was stopped after {ocr_s:g} s; upload a text version"
                return texts, tuple(read), told
            texts[index] = _clean(tesseract.read(_render(pdf, index), left, OCR_DPI))
            if texts[index].strip():
                read.append(index + 1)
        return texts, tuple(read), "Tesseract found none; upload a text version"
    finally:
        pdf.close()


def _page_text(pdf: Any, index: int) -> str:
    import pypdfium2 as pdfium

    try:
        page = pdf[index]
    except pdfium.PdfiumError:  # one broken page is a page without text
        return ""
    try:
        text_page = page.get_textpage()
        try:
            return _clean(text_page.get_text_bounded().translate(_HYPHENS))
        finally:
            text_page.close()
    except pdfium.PdfiumError:
        return ""
    finally:
        page.close()


def _render(pdf: Any, index: int) -> bytes:
    """A page as a grey picture in the PGM format, which needs no library."""
    page = pdf[index]
    try:
        width, height = page.get_size()
        scale = min(OCR_DPI / 72, (MOST_PIXELS / max(1.0, width * height)) ** 0.5)
        bitmap = page.render(scale=scale, grayscale=True)
        try:
            rows, stride = memoryview(bitmap.buffer).cast("B"), bitmap.stride
            lines = (rows[y * stride : y * stride + bitmap.width] for y in range(bitmap.height))
            return b"P5 %d %d 255\n" % (bitmap.width, bitmap.height) + b"".join(lines)
        finally:
            bitmap.close()
    finally:
        page.close()


def _picture(data: bytes, name: str, ocr_s: float) -> Content:
    tesseract = Tesseract.found()
    if tesseract is None:
        raise DocumentError(f"{name} is a picture. Install Tesseract to have its text read, or add a text version.")
    text = _clean(tesseract.read(data, ocr_s))
    if not text.strip():
        raise DocumentError(f"{name} is a picture on which Tesseract found no text. Add a text version.")
    return Content(text, (Section(0, len(text), page=1),), "page", ocr_pages=(1,))


# --- What markitdown reads ---

_FENCE_IMAGE_LINK = re.compile(
    r"(?P<code>^ {0,3}(?P<ticks>```+).*?(?:^ {0,3}(?P=ticks)|\Z)|`[^`\n]*`)"
    r"|(?P<image>!\[(?P<alt>[^\[\]]*)\]\([^()\s]*(?: \"[^\"\n]*\")?\))"
    r"|\[(?P<words>[^\[\]\n]+)\]\((?!https?://)[^()\s]*(?: \"[^\"\n]*\")?\)",
    re.MULTILINE | re.DOTALL,
)
# The name of a picture's file or of its shape ("Picture 3").
_NO_DESCRIPTION = re.compile(r"\S+\.\w{2,4}|\S+ \d+|\s*")


def _convert(converter: str, data: bytes, suffix: str) -> tuple[str, str | None]:
    """Markdown and title. One converter by name, never markitdown's front door: that loads a neural network to guess
    what we know, and would take an address for a file."""
    from markitdown import StreamInfo, converters

    result = getattr(converters, converter)().convert(
        io.BytesIO(data),
        StreamInfo(extension=suffix, charset="utf-8"),
        # Text is read here, not shown: max\_tokens would be another word.
        escape_underscores=False,
        escape_asterisks=False,
        # Word has no mark for a table's header; without one, Markdown's would be empty.
        table_infer_header=True,
    )
    return _tidy(result.markdown), result.title


def _tidy(text: str) -> str:
    """Without what points out of the document: a picture leaves its description, a link inside the site its words."""

    def keep(match: re.Match[str]) -> str:
        if match["code"]:
            return match["code"]
        if match["image"]:
            return "" if _NO_DESCRIPTION.fullmatch(match["alt"]) else match["alt"]
        return match["words"]

    return re.sub(r"\n{3,}", "\n\n", _clean(_FENCE_IMAGE_LINK.sub(keep, text)))


def _docx(data: bytes, name: str) -> Content:
    return _marked(_convert("DocxConverter", data, ".docx")[0])


def _epub(data: bytes, name: str) -> Content:
    return _marked(_convert("EpubConverter", data, ".epub")[0])


def _ipynb(data: bytes, name: str) -> Content:
    text = _decode(data, name).encode("utf-8", "replace")
    return _marked(_convert("IpynbConverter", text, ".ipynb")[0])


def _html(data: bytes, name: str) -> Content:
    declared = re.search(rb"""charset\s*=\s*["']?\s*([\w.:-]{1,40})""", data[:4096])
    return _marked(_page(_decode(data, name, declared[1].decode("ascii", "replace") if declared else None)))


def _page(html: str) -> str:
    text, title = _convert("HtmlConverter", html.encode("utf-8", "replace"), ".html")
    title = " ".join((title or "").split())
    # The title stands outside the body. Most pages repeat it as their first heading; the others need it as one.
    if not title or re.search(r"^# ", text, re.MULTILINE):
        return text
    return f"# {title}\n\n{text.removeprefix(title).lstrip()}"


def _marked(text: str) -> Content:
    return Content(text, tuple(markdown(text)))


def _slide_mark(number: int) -> str:
    return f"<!-- Slide number: {number} -->"


def _pptx(data: bytes, name: str) -> Content:
    text, _ = _convert("PptxConverter", data, ".pptx")
    marks: list[int] = []
    # Each slide begins with its number; only the next number is one, whatever else a slide's text says.
    while (at := text.find(_slide_mark(len(marks) + 1), marks[-1] if marks else 0)) >= 0:
        marks.append(at)
    slides = [
        text[at + len(_slide_mark(number)) : end].strip("\n")
        for number, (at, end) in enumerate(pairwise([*marks, len(text)]), start=1)
    ]
    sections: list[Section] = []
    start = 0
    for number, slide in enumerate(slides, start=1):
        sections.extend(
            replace(section, start=start + section.start, end=start + section.end)
            for section in markdown(slide, page=number)
        )
        start += len(slide) + len(PAGE_BREAK)
    blank = tuple(number for number, slide in enumerate(slides, start=1) if not slide.strip())
    told: tuple[str, ...] = ()
    if blank:
        told = (f"{len(blank)} of {len(slides)} slides hold{'s' * (len(blank) == 1)} no text",)
    return Content(PAGE_BREAK.join(slides), tuple(sections), "slide", blank, (), told)


# --- Tables ---


def _xlsx(data: bytes, name: str) -> Content:
    # openpyxl reads row by row; markitdown's own converter makes a web page of each sheet first (six times slower, and
    # 3 becomes 3.0).
    import openpyxl

    book = openpyxl.load_workbook(io.BytesIO(data), read_only=True, data_only=True)
    texts: list[str] = []
    sections: list[Section] = []
    told: list[str] = []
    start, left = 0, MOST_ROWS
    try:
        for number, sheet in enumerate(book.worksheets, start=1):
            # A sheet may claim to be 16,384 columns wide, and every row would be filled up to there.
            sheet.reset_dimensions()
            rows = ([_cell(value) for value in row] for row in sheet.iter_rows(values_only=True))
            kept = [row for row in islice(rows, left + 1) if any(row)]
            if len(kept) > left:
                kept.pop()
                told.append(f"rows of the sheet {sheet.title} after the first {len(kept):,}")
            left = max(0, left - len(kept))
            text, found = _table(kept, (sheet.title,), number)
            sections.extend(replace(s, start=start + s.start, end=start + s.end) for s in found)
            texts.append(text)
            start += len(text) + len(PAGE_BREAK)
    finally:
        book.close()
    return Content(PAGE_BREAK.join(texts), tuple(sections), "sheet", skipped=tuple(told))


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.15g}"
    if isinstance(value, datetime.datetime):
        return value.isoformat(" ") if value.time() != datetime.time() else value.date().isoformat()
    return _inline(str(value))


def _inline(value: str) -> str:
    return " ".join(value.split())


def _csv(data: bytes, name: str, delimiter: str | None = None) -> Content:
    text = _decode(data, name)
    first = text[: text.find("\n")] if "\n" in text else text
    if delimiter is None:
        delimiter = max(",;\t|", key=first.count)
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    try:
        rows = [
            [_inline(cell) for cell in row] for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        ]
    except csv.Error:
        return _lines(text)
    table, sections = _table([row for row in rows if any(row)], (), None)
    return Content(table, tuple(sections))


def _tsv(data: bytes, name: str) -> Content:
    return _csv(data, name, "\t")


def _table(rows: Sequence[Sequence[str]], heading: tuple[str, ...], page: int | None) -> tuple[str, list[Section]]:
    """One line for each row. The names of the columns become a heading, so that row 200 is found and understood."""
    lines = [" | ".join(row).rstrip(" |") for row in rows]
    text = "\n".join(lines)
    at = _header_row(rows)
    if at is None:
        return text, [Section(0, len(text), heading, page, "lines")]
    names = header(rows[at])
    above = sum(len(line) + 1 for line in lines[:at])
    # A header too long for a heading stays in the text as well, so that no column is lost.
    below = above if names.endswith("…") else above + len(lines[at]) + 1
    return text, [
        Section(0, above, heading, page, "lines"),
        Section(below, len(text), (*heading, names), page, "lines"),
    ]


_FIGURE = re.compile(r"[-+(]?[\d.,:/ %€$£-]*\d[\d.,:/ %€$£)-]*")


def _header_row(rows: Sequence[Sequence[str]]) -> int | None:
    """The first row of several short names, none of them a figure, with rows below it; titles may stand above it."""
    for number, row in enumerate(rows[:10]):
        cells = [cell for cell in row if cell]
        if len(cells) < 2:
            continue
        names = all(len(cell) <= 60 and not _FIGURE.fullmatch(cell) for cell in cells)
        return number if names and len(set(cells)) == len(cells) and number + 1 < len(rows) else None
    return None


# --- Text ---


def _text(data: bytes, name: str) -> Content:
    text = _decode(data, name)
    return Content(text, (Section(0, len(text)),))


def _lines(text: str) -> Content:
    return Content(text, (Section(0, len(text), form="lines"),))


def _code(data: bytes, name: str) -> Content:
    return _lines(_decode(data, name))


def _md(data: bytes, name: str) -> Content:
    return _marked(_decode(data, name))


def _rst(data: bytes, name: str) -> Content:
    text = _decode(data, name)
    return Content(text, tuple(rst(text)))


def _org(data: bytes, name: str) -> Content:
    text = _decode(data, name)
    return Content(text, tuple(org(text)))


def _json(data: bytes, name: str) -> Content:
    text = _decode(data, name)
    if "\\u" in text or len(text) > 1000 * (text.count("\n") + 1):
        # Escapes hide the words, and one long line the structure.
        with suppress(ValueError, RecursionError):  # not quite JSON is still text
            text = _clean(json.dumps(json.loads(text), ensure_ascii=False, indent=1))
    return _lines(text)


def _jsonl(data: bytes, name: str) -> Content:
    text = _decode(data, name)
    if "\\u" in text:
        text = "\n".join(map(_unescaped, text.split("\n")))
    return _lines(text)


def _unescaped(line: str) -> str:
    try:
        return _clean(json.dumps(json.loads(line), ensure_ascii=False))
    except (ValueError, RecursionError):
        return line


def _rtf(data: bytes, name: str) -> Content:
    from striprtf.striprtf import rtf_to_text

    text = _clean(rtf_to_text(data.decode("latin-1"), errors="replace"))  # type: ignore[no-untyped-call]
    return Content(text, (Section(0, len(text)),))


def _eml(data: bytes, name: str) -> Content:
    from email import message_from_bytes, policy
    from email.message import EmailMessage

    mail = message_from_bytes(data, policy=policy.default)
    assert isinstance(mail, EmailMessage)
    top = [f"{field}: {_inline(str(mail[field]))}" for field in ("From", "To", "Cc", "Date", "Subject") if mail[field]]
    subject = _inline(str(mail["Subject"] or ""))
    heading = (subject,) if subject else ()
    head = _clean("\n".join(top))
    body = mail.get_body(("plain", "html"))
    words = _mail_text(body, name) if body is not None else ""
    html = body is not None and body.get_content_type() == "text/html"
    words = _page(words) if html else words
    text = f"{head}\n\n{words}"
    sections = [Section(0, len(head), form="lines")]
    if html:
        found = markdown(text, start=len(head) + 2)
        sections.extend(replace(section, heading=(*heading, *section.heading)) for section in found)
    else:
        sections.append(Section(len(head) + 2, len(text), heading))
    attached = [_inline(part.get_filename() or part.get_content_type()) for part in mail.iter_attachments()]
    told = (f"{len(attached)} attachment{'s' * (len(attached) > 1)} ({', '.join(attached)})",) if attached else ()
    if not top and not words.strip():
        raise DocumentError(f"{name} holds no mail. Save it again, then add it.")
    return Content(text, tuple(sections), skipped=told)


def _mail_text(body: Any, name: str) -> str:
    raw = body.get_payload(decode=True)
    return _decode(raw, name, body.get_content_charset()) if raw else ""


# Forms are characters; controls other than these four are none of a text's.
_CONTROLS = bytes(set(range(32)) - {9, 10, 12, 13, 27})


def _control(data: bytes) -> int:
    return len(data) - len(data.translate(None, _CONTROLS))


def _decode(data: bytes, name: str, declared: str | None = None) -> str:
    """Text in whatever encoding: its own mark, UTF-8, what it declares, what its letters look like."""
    for mark, encoding in (
        (codecs.BOM_UTF8, "utf-8-sig"),
        (codecs.BOM_UTF32_LE, "utf-32"),
        (codecs.BOM_UTF32_BE, "utf-32"),
        (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"),
    ):
        if data.startswith(mark):
            return _clean(data.decode(encoding, "replace"))
    if b"\0" in data[:8192] or _control(data[:8192]) * 20 > len(data[:8192]):
        raise DocumentError(f"{name} is not text. Add it as .txt, .md, .pdf or .docx.")
    for encoding in filter(None, ("utf-8", declared)):
        with suppress(UnicodeDecodeError, LookupError):
            return _clean(data.decode(encoding))
    # Nearly UTF-8: a file cut inside a letter, or with one foreign line, is not in another encoding.
    text = data.decode("utf-8", "replace")
    foreign = len(text) - len(text.encode("ascii", "ignore"))
    if text.count("\ufffd") * 10 < foreign:
        return _clean(text)
    from charset_normalizer import from_bytes

    # A megabyte is enough to tell, cut at a line so that no letter is.
    sample = data if len(data) <= 1_000_000 else data[: data.rfind(b"\n", 500_000, 1_000_000)]
    best = from_bytes(sample).best()
    if best is None:
        raise DocumentError(f"{name} is not text in any encoding known here. Save it as UTF-8, then add it.")
    return _clean(data.decode(best.encoding, "replace"))


def _clean(text: str) -> str:
    """Line ends of one kind; no form feed but between pages; nothing that cannot be written as UTF-8."""
    text = (
        text.replace("\r\n", "\n").replace("\r", "\n").replace(PAGE_BREAK, "\n").replace("\v", "\n").replace("\0", " ")
    )
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a pair, as JSON can escape it
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


_READERS: Final[Mapping[str, Callable[[bytes, str], Content]]] = {
    "markdown": _md,
    "text": _text,
    "rst": _rst,
    "org": _org,
    "docx": _docx,
    "pptx": _pptx,
    "xlsx": _xlsx,
    "epub": _epub,
    "rtf": _rtf,
    "html": _html,
    "csv": _csv,
    "tsv": _tsv,
    "json": _json,
    "jsonl": _jsonl,
    "ipynb": _ipynb,
    "eml": _eml,
    "code": _code,
}
