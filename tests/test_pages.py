"""Pictures of pages, and whether the marks lie where the words are."""

import io
import struct
from pathlib import Path

import pypdfium2 as pdfium
import pytest
from PIL import Image, ImageDraw

from rag.corpus.analysis import sentences
from rag.corpus.documents import ingest
from rag.corpus.pages import Box, Page, draw, is_pdf
from rag.errors import DocumentError
from rag.words import Said

from . import files
from .conftest import CORPUS

WIDTH, HEIGHT = 612, 792
# One field with a value in it, as a program writes that lets people fill in forms.
FORM = [
    "<</Type/Catalog/Pages 2 0 R/AcroForm<</Fields[5 0 R]/DR<</Font<</F1 3 0 R>>>>/DA(/F1 20 Tf 0 g)>>>>",
    "<</Type/Pages/Count 1/Kids[4 0 R]>>",
    "<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    "<</Type/Page/Parent 2 0 R/MediaBox[0 0 300 200]/Annots[5 0 R]>>",
    "<</Type/Annot/Subtype/Widget/FT/Tx/T(a)/V(Filled in)/F 4/Rect[50 100 250 140]/DA(/F1 20 Tf 0 g)/P 4 0 R/AP<</N 6 0 R>>>>",
    "<</Type/XObject/Subtype/Form/BBox[0 0 200 40]/Resources<</Font<</F1 3 0 R>>>>/Length 57>>\nstream\n"
    "/Tx BMC BT /F1 20 Tf 5 10 Td (Filled in) Tj ET EMC      \nendstream",
]


def typeset(*lines: tuple[int, int, str], size: int = 12, across: str = "1 0 0 1") -> bytes:
    """One page with each text's first letter at (x, y) points from the lower left; `across` turns the letters."""
    set_lines = "".join(f") Tj /F1 {size} Tf {across} {x} {y} Tm ({text}" for x, y, text in lines)
    return files.pdf([set_lines])


def marks(data: bytes, quote: str, passage: str = "", page: int = 1) -> tuple[Box, ...]:
    return draw(data, "a.pdf", page, quote, passage, picture=False).marks


def picture(page: Page) -> Image.Image:
    return Image.open(io.BytesIO(page.png))


def inked(page: Page, box: Box) -> float:
    """The share of dark points within a mark."""
    seen = picture(page).convert("L")
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


def lies_on(box: Box, x: int, y: int, size: int = 12) -> bool:
    """Does a mark begin at a text's first letter and cover its small letters, but not a line above or below?"""
    left, top, _, height = box
    highest, lowest = HEIGHT * (1 - top), HEIGHT * (1 - top - height)
    begins = abs(left * WIDTH - x) < 3
    return begins and lowest <= y and y + size / 2 < highest and highest - lowest < 2 * size


@pytest.mark.parametrize("name", ["latency.pdf", "token-costs.pdf"])
def test_every_sentence_of_the_shipped_documents_is_marked_where_it_is_printed(name: str) -> None:
    data = (CORPUS / name).read_bytes()
    _, passages = ingest(data, name, 700)
    pages = {number: draw(data, name, number, "", "", picture=True) for number in {p.page or 0 for p in passages}}
    count = 0
    for passage in passages:
        page = pages[passage.page or 0]
        for start, end in sentences(passage.text):
            found = marks(data, passage.text[start:end], passage.text, passage.page or 0)
            assert found, passage.text[start:end]
            for left, top, width, height in found:
                assert 0 <= left < left + width <= 1
                assert 0 <= top < top + height <= 1
                assert inked(page, (left, top, width, height)) > 0.03
            count += 1
    assert count > 40


def test_a_mark_covers_the_sentence_and_nothing_else() -> None:
    data = typeset((50, 700, "Zebras drink at dawn."), (50, 680, "Lions sleep."), (300, 680, "Hyenas laugh."))
    page = draw(data, "a.pdf", 1, "Lions sleep.", "", picture=True)
    assert len(page.marks) == 1
    assert lies_on(page.marks[0], 50, 680)
    # Painted over, the sentence is gone and the others still stand there.
    left = picture(page).convert("L")
    x, y, width, height = page.marks[0]
    ImageDraw.Draw(left).rectangle(
        (x * left.width - 1, y * left.height, (x + width) * left.width + 1, (y + height) * left.height), fill=255
    )
    others = typeset((50, 700, "Zebras drink at dawn."), (300, 680, "Hyenas laugh."))
    assert left.tobytes() == picture(draw(others, "a.pdf", 1, "", "", picture=True)).convert("L").tobytes()


def test_a_sentence_over_hyphens_and_columns_has_a_mark_for_each_line() -> None:
    places = [(50, 700), (50, 685), (320, 700), (320, 685)]
    texts = [
        "Small models answer first, and quanti-",
        "sation makes them smaller; a larg-",
        "er one answers what",
        "remains. It costs more.",
    ]
    data = typeset(*[(x, y, text) for (x, y), text in zip(places, texts, strict=True)])
    _, passages = ingest(data, "a.pdf", 700)
    quote = passages[0].text[slice(*next(iter(sentences(passages[0].text))))]
    assert "quantisation" in quote
    assert "larger one" in quote
    found = marks(data, quote, passages[0].text)
    assert len(found) == 4
    assert all(lies_on(mark, *place) for mark, place in zip(found, places, strict=True))
    # "remains." only, and not what follows in that line.
    assert found[3][2] * WIDTH < 60


def test_cells_of_a_row_have_a_mark_each_and_words_of_a_line_one() -> None:
    data = typeset((50, 700, "The small model"), (300, 700, "answers first."))
    found = marks(data, "The small model answers first.")
    assert len(found) == 2
    assert lies_on(found[0], 50, 700)
    assert lies_on(found[1], 300, 700)
    assert len(marks(typeset((50, 700, "The small model   answers first.")), "The small model answers first.")) == 1


def test_a_sentence_that_stands_twice_is_marked_in_the_passage_that_was_read() -> None:
    data = typeset(
        (50, 700, "The blue pump."), (50, 680, "It costs nine euros."), (50, 600, "The red pump."), (50, 580, "It costs nine euros.")
    )  # fmt: skip
    quote = "It costs nine euros."
    assert lies_on(marks(data, quote, "The blue pump.\nIt costs nine euros.")[0], 50, 680)
    assert lies_on(marks(data, quote, "The red pump.\nIt costs nine euros.")[0], 50, 580)
    assert lies_on(marks(data, quote)[0], 50, 680)
    assert lies_on(marks(data, quote, "A passage of another document.")[0], 50, 680)


@pytest.mark.parametrize(
    "quote",
    [
        "Lions  sleep\n\nall day.",
        "LIONS sleep all day.",
        "Li-\nons sleep all\u00a0day.",
        "“Lions sleep all day.”",
        "Ｌions sleep all day",
    ],
)
def test_spaces_breaks_case_and_widths_do_not_hide_a_sentence(quote: str) -> None:
    assert lies_on(marks(typeset((50, 700, "Lions sleep all day.")), quote)[0], 50, 700)


@pytest.mark.parametrize(
    "quote", ["", " \n", "...", "Lions sleep all night.", "Zebras", "Lions sleep all day. And night."]
)
def test_what_is_not_on_the_page_has_no_marks(quote: str) -> None:
    assert marks(typeset((50, 700, "Lions sleep all day.")), quote) == ()


def test_a_scanned_page_has_a_picture_and_no_marks() -> None:
    page = draw(files.scanned("Invoice 4711"), "a.pdf", 1, "Invoice 4711", "", picture=True)
    assert page.marks == ()
    assert picture(page).width == 1200
    assert inked(page, (0.05, 0.05, 0.5, 0.2)) > 0.01


def test_a_turned_page_is_drawn_and_marked_as_it_is_read() -> None:
    turned = files.pdf([""]).replace(b"/MediaBox", b"/Rotate 90/MediaBox")
    assert picture(draw(turned, "a.pdf", 1, "", "", picture=True)).size == (1200, 928)
    # Letters that run up an upright page stand upright on one that is turned by a quarter.
    data = typeset((100, 50, "Lions sleep."), (120, 50, "Zebras drink."), across="0 1 -1 0").replace(
        b"/MediaBox", b"/Rotate 90/MediaBox"
    )
    ((left, top, width, height),) = marks(data, "Lions sleep.")
    assert left * HEIGHT == pytest.approx(50, abs=3)
    assert top * WIDTH < 100 < (top + height) * WIDTH + 3
    assert width * HEIGHT > 3 * height * WIDTH


def test_lines_that_run_up_the_page_have_one_mark_each() -> None:
    data = typeset((100, 50, "Lions sleep"), (120, 50, "all day."), across="0 1 -1 0")
    page = draw(data, "a.pdf", 1, "Lions sleep all day.", "", picture=True)
    assert len(page.marks) == 2
    for left, top, width, height in page.marks:
        assert height * HEIGHT > 2 * width * WIDTH
        assert (top + height) * HEIGHT == pytest.approx(HEIGHT - 50, abs=3)
        assert inked(page, (left, top, width, height)) > 0.03


def test_a_cropped_page_is_marked_from_its_own_corner() -> None:
    data = typeset((300, 700, "Lions sleep.")).replace(b"/MediaBox", b"/CropBox[200 600 500 750]/MediaBox")
    page = draw(data, "a.pdf", 1, "Lions sleep.", "", picture=True)
    ((left, top, _, height),) = page.marks
    assert picture(page).size == (1200, 600)
    assert left * 300 == pytest.approx(100, abs=3)
    assert top * 150 < 50 < (top + height) * 150 + 3


def test_a_page_that_is_not_there_is_no_picture_and_the_pages_are_counted() -> None:
    data = files.pdf(["one", "two", "three"])
    for number in (0, -1, 4, 10**9):
        assert draw(data, "a.pdf", number, "two", "", picture=True) == Page(b"", 3)
    assert draw(data, "a.pdf", 2, "two", "", picture=False).marks


@pytest.mark.parametrize(
    ("data", "key"),
    [
        (files.pdf(["x"], encrypted=True), "documents.protected"),
        (b"%PDF-1.4\nnothing else", "documents.damaged"),
        (b"<html><script>alert(1)</script>", "documents.damaged"),
        (b"", "documents.damaged"),
        (files.pdf(["x"]).replace(b"/Type/Page/Parent", b"/Type/Pgae/Prent").replace(b"/Kids[4 0 R]", b"/Kids[9 0 R]"), "documents.damaged"),
    ],
    ids=["encrypted", "torn", "no pdf", "empty", "a page that is not there"],
)  # fmt: skip
def test_what_cannot_be_drawn_says_why_in_words(data: bytes, key: str) -> None:
    with pytest.raises(DocumentError) as caught:
        draw(data, "a.pdf", 1, "x", "", picture=True)
    said = caught.value.told
    assert isinstance(said, Said)
    assert said.key == key
    assert said.startswith("a.pdf is ")


@pytest.mark.parametrize(
    ("size", "points"),
    [
        (b"0 0 1 1", (1200, 1200)),
        (b"0 0 1000000000 1000000000", (1200, 1200)),
        (b"0 0 1 100000", (1, 4800)),
        (b"0 0 100000 1", (1200, 1)),
        (b"0 0 0 0", (1200, 1553)),
    ],
)
def test_no_size_of_a_page_makes_a_larger_picture(size: bytes, points: tuple[int, int]) -> None:
    page = draw(files.pdf(["x"]).replace(b"0 0 612 792", size), "a.pdf", 1, "x", "", picture=True)
    assert struct.unpack(">II", page.png[16:24]) == points


def test_what_was_filled_in_is_drawn() -> None:
    data, offsets = b"%PDF-1.4\n", []
    for number, content in enumerate(FORM, start=1):
        offsets.append(len(data))
        data += f"{number} 0 obj\n{content}\nendobj\n".encode()
    table = "".join(f"{offset:010} 00000 n \n" for offset in offsets)
    data += f"xref\n0 7\n0000000000 65535 f \n{table}trailer\n<</Size 7/Root 1 0 R>>\nstartxref\n{len(data)}\n%%EOF\n".encode()
    assert inked(draw(data, "a.pdf", 1, "", "", picture=True), (0.15, 0.3, 0.4, 0.2)) > 0.02


def test_colours_are_kept_and_grey_pages_are_smaller() -> None:
    grey = draw(typeset((50, 700, "Lions")), "a.pdf", 1, "", "", picture=True)
    red = draw(typeset((50, 700, ") Tj 1 0 0 rg (Lions")), "a.pdf", 1, "", "", picture=True)
    assert picture(grey).mode == "L"
    colours = picture(red).getcolors()
    assert colours is not None
    assert (255, 0, 0) in {colour for _, colour in colours}
    assert len(grey.png) < len(red.png)


def test_the_picture_is_the_one_that_pdfium_makes() -> None:
    path = Path(CORPUS / "latency.pdf")
    with pdfium.PdfDocument(path) as pdf:
        width = pdf[0].get_width()
        wanted = pdf[0].render(scale=1200 / width).to_pil().convert("RGB")
    found = picture(draw(path.read_bytes(), "a.pdf", 1, "", "", picture=True)).convert("RGB")
    assert found.size == wanted.size
    assert found.tobytes() == wanted.tobytes()


@pytest.mark.parametrize(
    ("beginning", "suffix", "found"),
    [
        (b"%PDF-1.7", ".pdf", True),
        (b"%PDF-1.7", ".txt", True),
        (b"\n\n%PDF-1.7", ".txt", True),
        (b"junk %PDF-1.7", ".pdf", True),
        (b"junk %PDF-1.7", ".txt", False),
        (b"<html>", ".pdf", False),
        (b"", ".pdf", False),
    ],
)
def test_a_pdf_is_told_by_its_beginning(beginning: bytes, suffix: str, found: bool) -> None:
    assert is_pdf(beginning, suffix) is found
