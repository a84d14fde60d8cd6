"""How one page of a PDF looks, and where on it a sentence stands.

Knows PDFium's picture and letters of a page, and how to tell a sentence from the way that it was set: over lines,
columns and hyphens. It runs in the worker of `reader`, like `formats`: files are hostile, and PDFium bears one thread.
What is kept of a page, and who may see it, is `sources`'.
"""

import ctypes
import struct
import unicodedata
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from statistics import median
from typing import Any, Final

from rag.errors import DocumentError
from rag.words import say

WIDTH_PX: Final = 1200
# A strip of wallpaper must not become a picture of a hundred million points.
MOST_HEIGHT_PX: Final = 4800
# Letters further apart than this many of their heights are in two columns or cells.
WIDEST_GAP: Final = 2.0
MOST_MARKS: Final = 200
# PDFium tells places in whole numbers; a page is made this many wide and high.
_GRID: Final = 1_000_000

Box = tuple[float, float, float, float]
"""Left, top, width, height; shares of the page's width and height, from its upper left corner."""


@dataclass(frozen=True)
class Page:
    """One page as a picture, and a sentence's place on it."""

    png: bytes
    """Empty if it was not asked for, or if the document has no such page."""
    pages: int
    """Of the whole document."""
    marks: tuple[Box, ...] = ()
    """One for each line of the sentence, in reading order; none where it is not found."""


def is_pdf(beginning: bytes, suffix: str) -> bool:
    """Would `formats` read it as a PDF? `beginning` is a file's first 1,024 bytes, `suffix` its lower-case ending."""
    return beginning.lstrip().startswith(b"%PDF-") or (suffix == ".pdf" and b"%PDF-" in beginning)


def draw(data: bytes, name: str, number: int, quote: str, passage: str, picture: bool) -> Page:
    """Page `number` (from 1) of a PDF, with marks for `quote`; where that stands twice, for the one in `passage`.

    Raises DocumentError for what is protected, damaged or no PDF.
    """
    import pypdfium2 as pdfium

    try:
        pdf = pdfium.PdfDocument(data)
    except pdfium.PdfiumError as error:
        reason = "documents.protected" if "assword" in str(error) else "documents.damaged"
        raise DocumentError(say(reason, name=name)) from None
    try:
        if not 1 <= number <= len(pdf):
            return Page(b"", len(pdf))
        if picture:
            pdf.init_forms()  # or what was filled in would be missing
        page = pdf[number - 1]
        try:
            return Page(_png(page) if picture else b"", len(pdf), _marks(page, quote, passage))
        finally:
            page.close()
    except pdfium.PdfiumError:
        raise DocumentError(say("documents.damaged", name=name)) from None
    finally:
        pdf.close()


# --- The picture ---


def _png(page: Any) -> bytes:
    width, height = page.get_size()
    scale = min(WIDTH_PX / max(width, 1e-3), MOST_HEIGHT_PX / max(height, 1e-3))
    bitmap = page.render(scale=scale, rev_byteorder=True)
    try:
        points = bytes(bitmap.buffer)
        red = points[::3]
        if red == points[1::3] == points[2::3]:  # black on white, as most pages are: a third of the bytes will do
            return png(red, bitmap.width, bitmap.height, channels=1)
        return png(points, bitmap.width, bitmap.height, channels=3)
    finally:
        bitmap.close()


def png(points: bytes, width: int, height: int, channels: int) -> bytes:
    """A PNG file of 8 bits for each of 1 (grey) or 3 (red, green, blue) channels, rows from the top."""
    line = width * channels
    rows = b"".join(b"\0" + points[at : at + line] for at in range(0, line * height, line))
    head = struct.pack(">IIBBBBB", width, height, 8, 0 if channels == 1 else 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(rows, 4)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


# --- The place of a sentence ---


def _marks(page: Any, quote: str, passage: str) -> tuple[Box, ...]:
    import pypdfium2 as pdfium

    if not _bare(quote):
        return ()
    try:
        text = page.get_textpage()
    except pdfium.PdfiumError:
        return ()
    try:
        found = _find(_letters(text), quote, passage)
        return tuple(islice(_lines(_boxes(page, text, found), *page.get_size()), MOST_MARKS)) if found else ()
    finally:
        text.close()


def _letters(text: Any) -> str:
    """The page's characters as PDFium counts them."""
    from pypdfium2 import raw

    return "".join(chr(raw.FPDFText_GetUnicode(text, index)) for index in range(text.count_chars()))


def _find(letters: str, quote: str, passage: str) -> range | None:
    """Where a quote stands among the characters of a page, whatever lies between its letters.

    Line breaks, hyphens, spaces and the like are the setting's; case, ligatures and widths are the font's.
    """
    bare: list[str] = []
    places: list[int] = []
    for place, letter in enumerate(letters):
        kept = _bare(letter)
        bare.extend(kept)
        places.extend([place] * len(kept))
    page, wanted = "".join(bare), _bare(quote)
    around = page.find(_bare(passage)) if passage else -1
    at = page.find(wanted, around) if around >= 0 else -1
    if at < 0:
        at = page.find(wanted)
    if at < 0:
        return None
    first, last = places[at], places[at + len(wanted) - 1]
    # Quotation marks, brackets and the full stop are its own too.
    before, after = _edges(quote)
    while first > 0 and letters[first - 1] in before:
        first -= 1
    while last + 1 < len(letters) and letters[last + 1] in after:
        last += 1
    return range(first, last + 1)


def _edges(quote: str) -> tuple[str, str]:
    """The marks before a quote's first letter and after its last."""
    letters = [place for place, letter in enumerate(quote) if _bare_letter(letter)]
    edges = quote[: letters[0]], quote[letters[-1] + 1 :]
    return "".join(edges[0].split()), "".join(edges[1].split())


def _bare(text: str) -> str:
    return "".join(map(_bare_letter, text))


@lru_cache(maxsize=20_000)
def _bare_letter(letter: str) -> str:
    if letter > "\uffff":
        return ""  # on some systems PDFium tells these in halves
    plain = unicodedata.normalize("NFKC", letter).casefold()
    return "".join(part for part in plain if part.isalnum())


def _boxes(page: Any, text: Any, found: range) -> Iterable[Box]:
    """Of each visible character: left, top, right, bottom on the page as it is seen, in points."""
    from pypdfium2 import PdfiumError, raw

    width, height = page.get_size()

    def seen(x: float, y: float) -> tuple[float, float]:
        # Only PDFium knows how a page is turned and cropped.
        across, down = ctypes.c_int(), ctypes.c_int()
        raw.FPDF_PageToDevice(page, 0, 0, _GRID, _GRID, 0, x, y, across, down)
        return _within(across.value / _GRID) * width, _within(down.value / _GRID) * height

    for index in found:
        try:
            # What the font says of all its characters keeps a line even; some fonts say too little.
            usual, own = text.get_charbox(index, loose=True), text.get_charbox(index)
        except PdfiumError:
            continue
        x, y = seen(min(usual[0], own[0]), max(usual[3], own[3]))
        other_x, other_y = seen(max(usual[2], own[2]), min(usual[1], own[1]))
        box = min(x, other_x), min(y, other_y), max(x, other_x), max(y, other_y)
        if box[2] > box[0] and box[3] > box[1]:  # a space or line break that PDFium made up has no size
            yield box


def _within(share: float) -> float:
    return min(1.0, max(0.0, share))


def _lines(boxes: Iterable[Box], width: float, height: float) -> Iterable[Box]:
    """Boxes of characters, joined line by line, as shares of the page."""
    line: list[Box] = []
    down = False
    for box in boxes:
        if line:
            # A table that was turned to fit has lines that run down or up the page.
            follows = _follows(line[-1], box), _follows(_turned(line[-1]), _turned(box))
            if not (any(follows) if len(line) == 1 else follows[down]):
                yield _joined(line, down, width, height)
                line = []
            elif len(line) == 1:
                down = not follows[0]
        line.append(box)
    if line:
        yield _joined(line, down, width, height)


def _follows(last: Box, box: Box) -> bool:
    """Does a character stand on one line with the one before it, and near?"""
    level = last[1] < (box[1] + box[3]) / 2 < last[3] or box[1] < (last[1] + last[3]) / 2 < box[3]
    gap = max(box[0] - last[2], last[0] - box[2])  # some scripts run to the left
    return level and gap < WIDEST_GAP * (last[3] - last[1])


def _turned(box: Box) -> Box:
    return box[1], box[0], box[3], box[2]


def _joined(line: Sequence[Box], down: bool, width: float, height: float) -> Box:
    boxes = [_turned(box) for box in line] if down else line
    # A formula's brackets claim to be as high as several lines, hence the usual height and not the greatest.
    top, bottom = median(box[1] for box in boxes), median(box[3] for box in boxes)
    whole = min(box[0] for box in boxes), top, max(box[2] for box in boxes), bottom
    left, top, right, bottom = _turned(whole) if down else whole
    shares = left / width, top / height, (right - left) / width, (bottom - top) / height
    return round(shares[0], 5), round(shares[1], 5), round(shares[2], 5), round(shares[3], 5)
