"""Bytes to passages: positions, headings, pages, cuts, and the report."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pypdfium2 as pdfium
import pytest

from rag.corpus.documents import PAGE_BREAK, SUFFIXES, Document, Ingest, Passage, ingest, read, split
from rag.corpus.languages import language
from rag.errors import DocumentError

from . import files
from .conftest import CORPUS


def passages_of(text: str, name: str, max_chars: int = 700) -> list[Passage]:
    return split(read(text.encode(), name), max_chars)


def check(document: Document, passages: list[Passage], max_chars: int) -> None:
    """What holds for every document."""
    for passage in passages:
        assert document.text[passage.start : passage.end] == passage.text
        assert 0 < len(passage.text) <= max_chars
        assert passage.text.strip()
        assert PAGE_BREAK not in passage.text
        assert passage.unit == document.unit
        assert passage.language == document.language
        assert (passage.page is None) == (document.unit is None)
        if passage.page is not None:
            assert document.text[: passage.start].count(PAGE_BREAK) + 1 == passage.page
    assert len({passage.id for passage in passages}) == len(passages)
    assert [p.start for p in passages] == sorted(p.start for p in passages)


@pytest.mark.parametrize("max_chars", [100, 700])
@pytest.mark.parametrize("path", sorted(p for p in CORPUS.iterdir() if p.suffix in SUFFIXES), ids=lambda p: p.name)
def test_every_shipped_document_becomes_passages_whose_positions_are_true(path: Path, max_chars: int) -> None:
    document = read(path.read_bytes(), path.name)
    passages = split(document, max_chars)
    assert passages
    check(document, passages, max_chars)
    assert document.language == language(document.text)


def test_no_word_is_lost_between_passages() -> None:
    text = (CORPUS / "bm25.md").read_text(encoding="utf-8")
    passages = passages_of(text, "bm25.md", 300)
    headings = [line for line in text.splitlines() if line.startswith("#")]
    left = " ".join(passage.text for passage in passages).split()
    assert left == "\n".join(line for line in text.splitlines() if line not in headings).split()


def test_the_same_file_has_the_same_ids_and_another_name_or_text_has_others() -> None:
    ids = [
        [p.id for p in passages_of(*file)]
        for file in (("a b", "x.md"), ("a b", "x.md"), ("a b", "y.md"), ("a c", "x.md"))
    ]
    assert ids[0] == ids[1]
    assert len({tuple(found) for found in ids}) == 3


# --- cuts ---


def test_sentences_are_kept_whole_across_the_edge_of_the_page() -> None:
    # Broken at a fixed width, as in mails and PDFs: the breaks mean nothing.
    sentences = [
        f"Sentence number {n} tells that the small model answers before the large one does." for n in range(40)
    ]
    words, lines, line = " ".join(sentences).split(), [], ""
    for word in words:
        if len(line) + len(word) > 70:
            lines.append(line.rstrip())
            line = ""
        line += word + " "
    text = "\n".join([*lines, line.rstrip()])
    found = passages_of(text, "a.txt", 300)
    assert len(found) > 10
    assert all(passage.text.endswith("does.") and passage.text.startswith("Sentence") for passage in found)


def test_chinese_sentences_are_kept_whole() -> None:
    found = passages_of("小模型優先回答問題。大模型再補充說明！這是真的嗎？" * 30, "a.txt", 60)
    assert all(passage.text[-1] in "。！？" for passage in found)


def test_list_items_and_table_rows_are_kept_whole() -> None:
    items = [f"- item {n} has one sentence. And it has another one" for n in range(30)]
    rows = [f"| row {n}. First | cell. Second |" for n in range(30)]
    text = "\n".join(items) + "\n\n" + "\n".join(["| a | b |", "|---|---|", *rows])
    lines = [line for passage in passages_of(text, "a.md", 200) for line in passage.text.splitlines() if line]
    assert lines == [line for line in text.splitlines() if line]


def test_code_is_cut_between_definitions() -> None:
    code = "\n\n\n".join(f"def f{n}(x):\n    y = x + {n}\n\n    return y" for n in range(40))
    found = passages_of(code, "a.py", 200)
    assert len(found) > 5
    assert all(passage.text.startswith("def ") and "return y" in passage.text[-10:] for passage in found)


def test_no_crumb_is_left_at_the_end_of_a_section() -> None:
    sentences = " ".join(f"Sentence number {n} is here." for n in range(30))
    for cut in range(300, len(sentences), 7):
        found = passages_of(sentences[:cut], "a.txt", 300)
        assert all(len(passage.text) >= 75 for passage in found)
        assert " ".join(passage.text for passage in found).split() == sentences[:cut].split()


@pytest.mark.parametrize("text", ["word " * 40_000, "x" * 100_000, "語" * 50_000], ids=["words", "letters", "Chinese"])
def test_a_text_without_breaks_is_cut_all_the_same_and_nothing_is_lost(text: str) -> None:
    document = read(text.encode(), "a.txt")
    passages = split(document, 700)
    check(document, passages, 700)
    assert "".join(p.text for p in passages).replace(" ", "") == text.replace(" ", "")


# --- reports ---


def test_the_report_says_where_a_passage_stands_and_in_what_language() -> None:
    report, passages = ingest(
        b"# Preise\n\n## Autos\n\nDer Wagen ist nicht billig und das Rad auch nicht.\n", "p.md", 700
    )
    assert (report.language, report.unit, report.pages, report.passages) == ("de", None, 1, 1)
    assert passages[0].place == "p.md › Preise › Autos"
    assert passages[0].language == "de"
    _, (first, *_) = ingest(files.pdf(["Hello"]), "a.pdf", 700)
    assert (first.unit, first.place) == ("page", "a.pdf, p. 1")


def test_the_report_as_json_has_every_field() -> None:
    report, _ = ingest(files.pdf(["Hello", ""]), "a.pdf", 700)
    found = json.loads(json.dumps(report.to_dict()))
    assert found["duration_ms"] > 0
    assert {key: found[key] for key in found if key != "duration_ms"} == {
        "source": "a.pdf",
        "chars": 6,
        "passages": 1,
        "pages": 2,
        "unit": "page",
        "blank_pages": [2],
        "ocr_pages": [],
        "skipped": list(report.skipped),
        "language": "en",
        "error": None,
    }


def test_the_report_is_one_line_whatever_the_name() -> None:
    line = Ingest("a\nb\x1b[31m" + "x" * 300 + ".md", error="It is empty.").line
    assert line.isprintable()
    assert len(line) < 200
    assert Ingest("a.md", error="a.md is empty. Save it.").line == "not read: a.md is empty. Save it."


def test_the_report_tells_what_was_left_out() -> None:
    report = Ingest("a.pptx", 10, 1, 3, (2,), unit="slide", skipped=("1 of 3 slides holds no text", "2 pictures"))
    assert (
        report.line == "a.pptx: 10 characters, 1 passage, 3 slides; 1 of 3 slides holds no text; left out: 2 pictures"
    )


# --- PDF ---


def test_a_truncated_pdf_costs_only_itself() -> None:
    data = (CORPUS / "latency.pdf").read_bytes()
    with pytest.raises(DocumentError):
        read(data[:800], "latency.pdf")


def test_blank_pages_are_told(tmp_path: Path) -> None:
    pdf = pdfium.PdfDocument((CORPUS / "latency.pdf").read_bytes())
    pages = len(pdf)
    pdf.new_page(200, 200)
    pdf.save(tmp_path / "part.pdf")
    assert read((tmp_path / "part.pdf").read_bytes(), "part.pdf").blank_pages == (pages + 1,)


def test_many_threads_read_pdfs_at_once() -> None:
    # PDFium crashes the process if two threads are inside it.
    data = (CORPUS / "latency.pdf").read_bytes()
    with ThreadPoolExecutor(8) as pool:
        texts = set(pool.map(lambda number: read(data, "latency.pdf").text, range(600)))
    assert len(texts) == 1


def test_a_pdf_is_known_by_its_bytes_not_its_name() -> None:
    assert read((CORPUS / "latency.pdf").read_bytes(), "latency.txt").paged
