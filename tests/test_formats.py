"""Each kind of file as programs write it, each kind of bad file, and names that lie."""

import json
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from rag.corpus.documents import SUFFIXES, Document, read, split
from rag.errors import DocumentError

from . import files
from .conftest import CORPUS
from .test_documents import check


def places(data: bytes, name: str, max_chars: int = 700) -> dict[str, str]:
    """Place and text of each passage, once all positions are known to be true."""
    document = read(data, name)
    passages = split(document, max_chars)
    check(document, passages, max_chars)
    return {passage.place.removeprefix(name).lstrip(", ›"): passage.text for passage in passages}


# --- each kind ---

WORD = [
    ("Heading1", "Prices"),
    ("Normal", "All max_tokens prices are net."),
    ("Heading2", "Cars"),
    ("Normal", "A car costs much."),
]


def test_word() -> None:
    assert places(files.docx(WORD, [["Name", "Price"], ["Ada", "3"]]), "a.docx") == {
        "Prices": "All max_tokens prices are net.",
        "Prices › Cars": "A car costs much.\n\n| Name | Price |\n| --- | --- |\n| Ada | 3 |",
    }


def test_word_counts_pictures() -> None:
    data = files.docx(WORD, members={"word/media/image1.png": files.PNG})
    assert read(data, "a.docx").skipped == ("1 picture",)


def test_a_long_table_in_word_keeps_its_header_in_sight() -> None:
    data = files.docx([], [["Name", "Price"], *([f"Article {n}", str(n)] for n in range(300))])
    passages = split(read(data, "a.docx"), 700)
    assert len(passages) > 5
    assert {passage.heading for passage in passages} == {("Name | Price",)}


def test_powerpoint() -> None:
    slides = [("Welcome", "Hello there", ""), ("", "", ""), ("Costs", "<!-- Slide number: 9 -->\nTen", "aloud")]
    data = files.pptx(slides, picture=True)
    document = read(data, "a.pptx")
    assert (document.unit, document.pages, document.blank_pages) == ("slide", 3, (2,))
    assert document.skipped == ("1 of 3 slides holds no text", "1 picture")
    assert places(data, "a.pptx") == {
        "slide 1 › Welcome": "Hello there",
        "slide 3 › Costs": "<!-- Slide number: 9 -->\nTen",
        "slide 3 › Costs › Notes:": "aloud",
    }


def test_excel() -> None:
    data = files.xlsx(
        {
            "Staff": [["Report 2024"], ["Name", "Born", "Pay"], ["Ada", 1815, 3.5], [], ["Bob\nB.", None, 4.0]],
            "Empty": [],
            "Other": [["only"], [7]],
        }
    )
    document = read(data, "a.xlsx")
    assert (document.unit, document.pages, document.blank_pages) == ("sheet", 3, ())
    assert places(data, "a.xlsx") == {
        "sheet 1 › Staff": "Report 2024",
        "sheet 1 › Staff › Name | Born | Pay": "Ada | 1815 | 3.5\nBob B. |  | 4",
        "sheet 3 › Other": "only\n7",
    }


def test_excel_tells_which_rows_it_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rag.corpus.formats.MOST_ROWS", 10)
    document = read(files.xlsx({"A": [["x", n] for n in range(8)], "B": [["y", n] for n in range(8)]}), "a.xlsx")
    assert document.skipped == ("rows of the sheet B after the first 2",)
    assert document.text.count("x") == 8
    assert document.text.count("y") == 2


def test_csv_rows_carry_the_names_of_their_columns() -> None:
    data = "Name;Ort;Preis\n" + "".join(f'Artikel {n};"Köln; am Rhein";{n}\n' for n in range(300))
    document = read(data.encode("cp1252"), "a.csv")
    passages = split(document, 700)
    check(document, passages, 700)
    assert {passage.heading for passage in passages} == {("Name | Ort | Preis",)}
    rows = [row for passage in passages for row in passage.text.split("\n")]
    assert rows == [f"Artikel {n} | Köln; am Rhein | {n}" for n in range(300)]


def test_a_row_longer_than_a_passage_is_cut_and_its_neighbours_are_not() -> None:
    data = "name,text\nshort,one\nlong," + "word. " * 200 + "\nshort,two\n"
    texts = [passage.text for passage in split(read(data.encode(), "a.csv"), 300)]
    assert texts[0].startswith("short | one")
    assert sum("short | two" in text for text in texts) == 1
    assert " ".join(texts).split() == ["short", "|", "one", "long", "|", *["word."] * 200, "short", "|", "two"]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_a_table_without_column_names_has_no_heading(name: str) -> None:
    text = "1,2\n3,4\n".replace(",", "\t" if name == "a.tsv" else ",")
    assert places(text.encode(), name) == {"": "1 | 2\n3 | 4"}


def test_web_page() -> None:
    page = (
        "<!doctype html><html><head><title>The title</title><style>p {}</style></head><body><h2>Links</h2>"
        "<p>Go <a href='/here'>here</a> or <a href='https://example.org/'>there</a>.<img src='http://x/y.png' alt='A cat'>"
        "<script>alert()</script></p><pre>h[name](event)</pre></body></html>"
    )
    assert places(page.encode(), "a.html") == {
        "The title › Links": "Go here or [there](https://example.org/).A cat\n\n```\nh[name](event)\n```"
    }


def test_the_encoding_that_a_web_page_declares_is_believed_when_it_is_not_utf_8() -> None:
    page = "<html><head><meta charset='iso-8859-2'></head><body><p>żółw</p></body></html>"
    assert places(page.encode("iso-8859-2"), "a.htm") == {"": "żółw"}


def test_epub() -> None:
    found = places(files.epub("The Book", {"One": "First chapter.", "Two": "Second chapter."}), "a.epub")
    assert found == {"": "**Title:** The Book", "One": "First chapter.", "Two": "Second chapter."}


def test_notebook() -> None:
    found = places(files.notebook([("markdown", "# Load\nWe load."), ("code", "# no heading\nx.load()")]), "a.ipynb")
    assert found == {"Load": "We load.\n\n```python\n# no heading\nx.load()\n```"}


def test_rtf() -> None:
    assert places(rb"{\rtf1\ansi\ansicpg1252 {\b Bold} word \'e9t\'e9.\par Next.}", "a.rtf") == {
        "": "Bold word été.\nNext."
    }


@pytest.mark.parametrize("kind", ["plain", "html"])
def test_mail(kind: str) -> None:
    body = "Yes, we do.\n# no heading" if kind == "plain" else "<p>Yes, we do.</p>"
    mail = (
        "From: a@example.org\nTo: b@example.org\nSubject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\nMIME-Version: 1.0\n"
        'Content-Type: multipart/mixed; boundary="x"\n\n'
        f"--x\nContent-Type: text/{kind}; charset=utf-8\n\n{body}\n"
        '--x\nContent-Type: application/pdf\nContent-Disposition: attachment; filename="offer.pdf"\n\n%PDF\n--x--\n'
    )
    found = places(mail.encode(), "a.eml")
    assert found[""] == "From: a@example.org\nTo: b@example.org\nSubject: Grüße"
    assert found["Grüße"].startswith("Yes, we do.")
    assert read(mail.encode(), "a.eml").skipped == ("1 attachment (offer.pdf)",)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", json.dumps({"title": "語言", "half": "\ud83d"}, ensure_ascii=True)),
        ("a.jsonl", json.dumps({"title": "語言"}) + "\nnot json\n"),
    ],
)
def test_words_hidden_in_json_escapes_are_found(name: str, text: str) -> None:
    document = read(text.encode(), name)
    assert '"title": "語言"' in document.text
    assert document.text.encode()


def test_json_on_one_line_is_laid_out() -> None:
    text = json.dumps([{"name": f"Article {n}"} for n in range(100)], separators=(",", ":"))
    assert '"name": "Article 7"\n' in read(text.encode(), "a.json").text


@pytest.mark.parametrize("suffix", [".py", ".yaml", ".xml", ".log", ".sql", ".toml", ".rst", ".org"])
def test_what_is_text_is_read_as_it_stands(suffix: str) -> None:
    assert read(b"first = 1\n\nsecond = 2\n", f"a{suffix}").text == "first = 1\n\nsecond = 2\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "big5", "cp1251", "shift_jis"])
def test_encodings_are_detected(encoding: str) -> None:
    text = {
        "big5": "小模型優先回答問題，大模型再補充說明。" * 5,
        "cp1251": "Малая модель отвечает первой, большая потом. " * 5,
        "shift_jis": "小さいモデルが先に答えます。大きいモデルは後で。" * 5,
    }
    expected = text.get(encoding, "Grüße aus Köln – naïve Fragen.\n")
    assert read(expected.encode(encoding), "a.txt").text.strip() == expected.strip()


def test_utf_8_cut_inside_a_letter_stays_utf_8() -> None:
    text = "Grüße aus Köln, schöne Tage, früh und spät, über Brücken und Flüsse. " * 3 + "ü"
    assert read(text.encode()[:-1], "a.txt").text == text[:-1] + "\ufffd"


def test_reading_plain_kinds_loads_no_converter() -> None:
    # Each takes a good part of a second, which a folder of notes should not wait for.
    program = (
        "import sys; from rag.corpus.documents import ingest\n"
        "heavy = {'markitdown', 'pypdfium2', 'openpyxl', 'charset_normalizer', 'semantic_text_splitter', 'numpy'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "for name in ('a.md', 'a.txt', 'a.csv', 'a.json', 'a.py'): ingest(b'word ' * 400, name, 700)\n"
        "ingest(open(sys.argv[1], 'rb').read(), 'a.pdf', 700)\n"
        "assert not {'markitdown', 'openpyxl', 'numpy'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program, CORPUS / "latency.pdf"], check=True, cwd=CORPUS.parent)


# --- names that lie ---


@pytest.mark.parametrize(
    ("data", "unit", "word"),
    [
        (files.docx(WORD), None, "net"),
        (files.pptx([("A", "net", "")]), "slide", "net"),
        (files.xlsx({"A": [["net"]]}), "sheet", "net"),
        (files.epub("A", {"B": "net"}), None, "net"),
        (files.pdf(["net"]), "page", "net"),
        (rb"{\rtf1 net}", None, "net"),
        (b"<!DOCTYPE html><p>net", None, "net"),
    ],
    ids=["docx", "pptx", "xlsx", "epub", "pdf", "rtf", "html"],
)
@pytest.mark.parametrize("name", ["a.txt", "../../etc/passwd.md"])
def test_content_is_read_as_what_it_is_not_as_it_is_called(data: bytes, unit: str | None, word: str, name: str) -> None:
    document: Document = read(data, name)
    assert (document.source, document.unit) == (name, unit)
    assert document.text.split()[-1] == word or word in document.text
    assert "<" not in document.text


def test_a_text_that_speaks_of_pdf_is_a_text() -> None:
    assert read(b"A PDF begins with %PDF-1.7.", "a.md").unit is None


# --- bad input ---


def scan() -> bytes:
    return files.scanned("Invoice 4711", 2)


@pytest.mark.parametrize(
    ("data", "name", "says"),
    [
        (b"", "empty.md", "is empty. Save it again"),
        (b" \n\t\n", "blank.txt", "holds no text. Save it again"),
        (files.PNG, "picture.pdf", "is a PNG picture, not a PDF file. Add a file"),
        (b"hello", "words.pdf", "is named .pdf but is no PDF file. Export it"),
        (b"hello", "words.docx", "is named .docx but is no Word file. Export it"),
        (b"MZ" + bytes(range(256)) * 8, "program.txt", "is a Windows program, not text. Add"),
        (b"\x7fELF" + bytes(60), "program.md", "is a program, not text. Add"),
        (bytes(range(256)) * 8, "noise.txt", "is not text. Add it as"),
        (b"\x01\x02\x03\x04\x05" * 100, "noise.py", "is not text. Add it as"),
        (b"%PDF-1.7\ngarbage", "torn.pdf", "is a damaged PDF"),
        (files.pdf(["secret"], encrypted=True), "locked.pdf", "is protected by a password. Save it without one"),
        (files.encrypted_office(), "locked.docx", "is protected by a password. Save it without one"),
        (files.docx(WORD)[:700], "torn.docx", "is a damaged Word file, probably cut off. Copy"),
        (files.docx(WORD)[:700], "torn.txt", "is a damaged ZIP archive, probably cut off. Copy"),
        (files.xlsx({"A": [["x"]]})[:-30], "torn.xlsx", "is a damaged Excel file, probably cut off. Copy"),
        (files.zip_bomb(), "bomb.docx", "MB, as only a zip bomb does, and is not opened. Save"),
        (files.docx(WORD, before=files.BILLION_LAUGHS), "laughs.docx", "declares XML entities (word/document.xml)"),
        (files.archive({"a.txt": "x"}), "a.docx", "is a ZIP archive, not a Word file. Export it"),
        (files.archive({"a.txt": "x"}), "a.zip", "is a ZIP archive. Unpack it"),
        (files.archive({"word/document.xml": "<a>"}), "a.docx", "cannot be read as a Word file"),
        (files.archive({"mimetype": "application/vnd.oasis.opendocument.text"}), "a.odt", "OpenDocument file, which is not"),
        (files.encrypted_office()[:512] + "WordDocument".encode("utf-16-le"), "a.doc", "of the old kind (before 2007)"),
        (b"anything", "noname", "files of type none are not read. Save it as"),
        (b"anything", "tune.mp3", "files of type .mp3 are not read. Save it as"),
        (b"not a notebook", "a.ipynb", "cannot be read as a notebook"),
    ],
)  # fmt: skip
def test_a_bad_file_says_in_one_line_why_and_what_to_do(data: bytes, name: str, says: str) -> None:
    with pytest.raises(DocumentError) as caught:
        read(data, name)
    message = str(caught.value)
    assert message.startswith(name)
    assert says in message
    assert message.count(". ") >= 1, "says what to do"
    assert message.endswith(".")
    assert "\n" not in message


@pytest.mark.parametrize("name", ["laughs.xml", "laughs.html", "laughs.txt"])
def test_a_billion_laughs_in_plain_text_stay_few(name: str) -> None:
    data = files.BILLION_LAUGHS.encode() + b"<html><body>&lol9; end</body></html>"
    document = read(data, name)
    assert "end" in document.text
    assert len(document.text) <= len(data)


@pytest.mark.parametrize("name", ["x" * 300 + ".md", "../../../etc/passwd.md", "a\nb\x1b[31m.md", "\udcff.md", "語.md"])
def test_any_name_is_only_a_name(name: str) -> None:
    document = read(b"# A\ntext", name)
    assert document.source == name
    assert split(document, 700)[0].source == name
    with pytest.raises(DocumentError) as caught:
        read(b"", name)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 200


@pytest.mark.filterwarnings("ignore:HTML document is too deeply nested")
def test_a_page_so_deep_that_nothing_can_follow_it_is_still_read() -> None:
    assert "bottom" in read(b"<html><body>" + b"<div>" * 5000 + b"bottom", "deep.html").text


# --- scans ---


@pytest.fixture
def without_tesseract(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.fixture
def tesseract_script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A program of Tesseract's name that answers as Tesseract does, and tells what picture it was given."""
    script = tmp_path / "tesseract"
    script.write_text(
        f"#!{sys.executable}\n"
        "import sys\n"
        "if '--list-langs' in sys.argv: sys.exit(print('List of available languages (3):\\ndeu\\neng\\nosd'))\n"
        "data = sys.stdin.buffer.read()\n"
        "head = data[:20].split()[:3]\n"
        "print('Read in', sys.argv[sys.argv.index('-l') + 1], *(part.decode('latin-1') for part in head))\n"
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path))
    return script


@pytest.mark.usefixtures("without_tesseract")
def test_pages_that_are_pictures_are_told_where_tesseract_is_missing() -> None:
    with pytest.raises(DocumentError) as caught:
        read(scan(), "scan.pdf")
    assert str(caught.value) == (
        "scan.pdf is probably scanned: 2 of 2 pages hold no text; install Tesseract or upload a text version."
    )
    report = read(files.pdf([*["text"] * 9, "", "", ""]), "part.pdf")
    assert report.skipped == ("3 of 12 pages hold no text; install Tesseract or upload a text version",)
    with pytest.raises(DocumentError, match=r"is a picture\. Install Tesseract to have its text read"):
        read(files.PNG, "a.png")


@pytest.mark.usefixtures("tesseract_script")
def test_tesseract_is_given_each_page_without_text_in_the_installed_languages() -> None:
    data = files.pdf(["typed", "", "typed too"])
    document = read(data, "part.pdf")
    assert document.ocr_pages == (2,)
    assert document.blank_pages == ()
    assert document.text.split("\f")[1].split()[:5] == ["Read", "in", "eng+deu", "P5", "2550"]
    assert places(data, "part.pdf")["p. 2"].startswith("Read in")
    assert read(files.PNG, "a.png").ocr_pages == (1,)


@pytest.mark.usefixtures("tesseract_script")
def test_pages_left_when_the_time_for_pictures_is_over_are_told() -> None:
    document = read(files.pdf(["typed", ""]), "part.pdf", ocr_s=0)
    assert document.blank_pages == (2,)
    assert document.skipped == ("1 of 2 pages holds no text; Tesseract was stopped after 0 s; upload a text version",)


@pytest.mark.skipif(shutil.which("tesseract") is None, reason="Tesseract is not installed here")
def test_a_scan_is_read() -> None:
    document = read(scan(), "scan.pdf")
    assert document.ocr_pages == (1, 2)
    assert "Invoice 4711" in document.text


# --- one list in two places ---


def test_server_and_folder_take_the_same_kinds_of_file() -> None:
    from rag.serve.media import EXTENSIONS, MEDIA_TYPES, USUAL

    assert set(EXTENSIONS) == set(SUFFIXES) > set(USUAL)
    assert not {"html", "xml", "script", "svg"} & set("+".join(MEDIA_TYPES.values()).replace("/", "+").split("+"))
