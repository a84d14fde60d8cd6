"""Bytes to passages: positions, headings, pages, and files that are not what they say."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pypdfium2 as pdfium
import pytest

from rag.corpus.documents import PAGE_BREAK, SUFFIXES, read, split
from rag.errors import DocumentError

from .conftest import CORPUS


@pytest.mark.parametrize("path", sorted(p for p in CORPUS.iterdir() if p.suffix in SUFFIXES), ids=lambda p: p.name)
def test_every_shipped_document_becomes_passages_whose_positions_are_true(path: Path) -> None:
    document = read(path.read_bytes(), path.name)
    passages = split(document, 700)
    assert passages
    for passage in passages:
        assert document.text[passage.start : passage.end] == passage.text
        assert len(passage.text) <= 700
        assert PAGE_BREAK not in passage.text
        if passage.page is not None:
            assert document.text[: passage.start].count(PAGE_BREAK) + 1 == passage.page
    assert len({passage.id for passage in passages}) == len(passages)


def test_no_word_is_lost_between_passages() -> None:
    text = (CORPUS / "bm25.md").read_text(encoding="utf-8")
    passages = split(read(text.encode(), "bm25.md"), 300)
    headings = [line for line in text.splitlines() if line.startswith("#")]
    left = " ".join(passage.text for passage in passages).split()
    assert left == "\n".join(line for line in text.splitlines() if line not in headings).split()


def test_headings_make_a_path_and_code_fences_none() -> None:
    text = "intro\n# A\none\n## B\ntwo\n```\n# not a heading\n```\n# C\nthree\n"
    found = {passage.text.split()[0]: passage.heading for passage in split(read(text.encode(), "x.md"), 700)}
    assert found == {"intro": (), "one": ("A",), "two": ("A", "B"), "three": ("C",)}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "big5", "cp1251"])
def test_encodings_are_detected(encoding: str) -> None:
    text = {
        "big5": "小模型優先回答問題，大模型再補充說明。" * 5,
        "cp1251": "Малая модель отвечает первой, большая потом. " * 5,
    }
    expected = text.get(encoding, "Grüße aus Köln – naïve Fragen.\n")
    assert read(expected.encode(encoding), "a.txt").text.strip() == expected.strip()


@pytest.mark.parametrize(
    ("data", "name", "says"),
    [
        (b"", "empty.md", "is empty"),
        (b" \n\t\n", "blank.txt", "only white space"),
        (b"\x89PNG\r\n\x1a\n" + bytes(64), "picture.pdf", "is no PDF"),
        (b"MZ" + bytes(range(256)) * 8, "program.txt", "is not text"),
        (b"%PDF-1.7\ngarbage", "torn.pdf", "damaged PDF"),
        (b"anything", "table.xlsx", "files of type .xlsx are not read"),
        (b"anything", "noname", "files of type none"),
    ],
)
def test_a_file_that_cannot_be_read_says_why_and_what_to_do(data: bytes, name: str, says: str) -> None:
    with pytest.raises(DocumentError) as caught:
        read(data, name)
    assert name in str(caught.value)
    assert says in str(caught.value)
    assert str(caught.value).count(". ") >= 1, "says what to do"


def test_a_truncated_pdf_costs_only_itself() -> None:
    data = (CORPUS / "latency.pdf").read_bytes()
    with pytest.raises(DocumentError):
        read(data[:800], "latency.pdf")


def test_a_pdf_without_text_is_called_scanned(tmp_path: Path) -> None:
    pdf = pdfium.PdfDocument.new()
    pdf.new_page(200, 200)
    pdf.save(tmp_path / "scan.pdf")
    with pytest.raises(DocumentError, match="no text on any of its 1 pages; it is probably scanned"):
        read((tmp_path / "scan.pdf").read_bytes(), "scan.pdf")


def test_blank_pages_are_told(tmp_path: Path) -> None:
    pdf = pdfium.PdfDocument((CORPUS / "latency.pdf").read_bytes())
    pages = len(pdf)
    pdf.new_page(200, 200)
    pdf.save(tmp_path / "part.pdf")
    assert read((tmp_path / "part.pdf").read_bytes(), "part.pdf").blank_pages == (pages + 1,)


def test_many_threads_read_pdfs_at_once() -> None:
    # PDFium crashes the process if two threads are inside it; uploads of several sessions are read in threads.
    data = (CORPUS / "latency.pdf").read_bytes()
    with ThreadPoolExecutor(8) as pool:
        texts = set(pool.map(lambda number: read(data, "latency.pdf").text, range(600)))
    assert len(texts) == 1


def test_a_pdf_is_known_by_its_bytes_not_its_name() -> None:
    assert read((CORPUS / "latency.pdf").read_bytes(), "latency.txt").paged
