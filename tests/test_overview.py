"""Questions about documents as a whole: which are, about which document, and what is read for them."""

from pathlib import Path

import pytest

from rag.corpus.documents import Passage, read, split
from rag.corpus.library import Library
from rag.turn.overview import find, reach

from .conftest import CORPUS

ONE = """
What is this about?|what is this document about|What's it about?|Summarise the upload
Summarize this document, please.|Summarise it|give me an overview of report.pdf
Please give me a short summary of the document in three sentences|Can you summarize the report I uploaded?
Summary|TL;DR|What does this document say?|What does report.pdf contain?|What is in this file?
Tell me about this document|What are the main points of this paper?|What are the key points?
What topics does this document cover?|What kind of document is this?|What is report.pdf about?
Explain this document|worum geht es in diesem Dokument?|Worum geht es hier?|Worum geht es in report.pdf?
Fasse das Dokument zusammen|Gib mir einen Überblick über dieses Dokument|Zusammenfassung bitte
Wovon handelt der Text?|這份文件在說什麼|这份文件在说什么？|總結一下這份文件|這份文件的重點是什麼？|請幫我總結這個檔案|report.pdf 的內容是什麼？
о чём этот документ|О чем говорится в этом файле?|Кратко перескажи документ|Перескажи этот файл
De quoi parle ce document ?|Résume ce document|¿De qué trata este documento?
Resume el documento, por favor|この文書は何についてですか？|この文書を要約してください|このファイルの概要は？
"""
ALL = """
What documents are there?|What are these documents about?|Which files do you have?|List the documents
What do the documents cover?|What can I ask about?|Welche Dokumente gibt es?
Worum geht es in diesen Dokumenten?|有哪些文件？|這些文件在說什麼？|какие документы есть?|О чём эти документы?
Quels documents y a-t-il ?|¿Qué documentos hay?|どんな文書がありますか？
"""
NEITHER = """
which document format does it read?|what does this parameter do?|What is BM25?
What is this parameter about?|Summarise the BM25 parameters|What does this document say about k1?
How large may a document be?|What is the summary metric?|What is prefill?|What does it cost?|What is that?
Is this document encrypted?|Which documents mention BM25?|What are these settings about?
Who wrote this document?|When was the report published?|Describe BM25|Explain it
What is the main idea of a cascade?|Tell me about Small First|Tell me about BM25
Welche Dateiformate liest das Programm?|Was steht in Abschnitt 3?|Worum geht es bei BM25?|Was ist das?
什麼是升級？|文件可以有多大？|這個參數是什麼？|какой формат документа?|что такое BM25?|De quoi dépend le score ?
What is the overview page?|What is the title of this document?|What does this mean?
What are the key points of BM25?
"""


def questions(lines: str) -> list[str]:
    return [question for line in lines.split("\n") for question in line.split("|") if question]


class Shelf:
    """Documents of text."""

    def __init__(self, **texts: str) -> None:
        self.documents = {
            name.replace("_", "."): read(text.encode(), name.replace("_", ".")) for name, text in texts.items()
        }

    @property
    def sources(self) -> list[str]:
        return list(self.documents)

    def opening(self, source: str) -> list[Passage]:
        return split(self.documents[source], 700)


NOTHING = Shelf()
REPORT = (
    "The year in figures.\n\n# Sales\n\nSales of bicycles doubled. The rest fell.\n\n## North\n\nIt snowed."
    "\n\n# Staff\n\nNobody left. All stayed.\n"
)


@pytest.mark.parametrize("question", questions(ONE))
def test_a_question_about_a_document_as_a_whole_is_recognised(question: str) -> None:
    assert reach(question, ["report.pdf"]) == "one"


@pytest.mark.parametrize("question", questions(ALL))
def test_a_question_about_all_documents_is_recognised(question: str) -> None:
    assert reach(question) == "all"


@pytest.mark.parametrize("question", questions(NEITHER))
def test_a_question_about_something_in_the_documents_is_not(question: str) -> None:
    assert reach(question) is None


def test_the_outline_and_true_passages_are_read() -> None:
    uploads = Shelf(report_md=REPORT)
    overview = find("What is this about?", uploads, NOTHING, talking=True)
    assert overview is not None
    assert overview.name == "report.md"
    assert overview.outline == "- Sales\n  - North\n- Staff"
    texts = [hit.passage.text for hit in overview.hits]
    assert texts == ["The year in figures.", "Sales of bicycles doubled. The rest fell.", "Nobody left."]
    document = uploads.documents["report.md"]
    assert all(document.text[hit.passage.start : hit.passage.end] == hit.passage.text for hit in overview.hits)


def test_the_named_document_wins_then_the_newest_upload_then_the_only_document() -> None:
    folder = Shelf(plan_txt="A plan.", report_md=REPORT)
    uploads = Shelf(old_txt="An old text.", new_txt="A new text.")

    def of(question: str, uploads: Shelf, folder: Shelf, *, talking: bool = False) -> tuple[str, ...]:
        overview = find(question, uploads, folder, talking=talking)
        return overview.sources if overview else ()

    assert of("Give me an overview of report.md", uploads, folder) == ("report.md",)
    assert of('Summarise "plan.txt", please', uploads, folder) == ("plan.txt",)
    assert of("Summarise this", uploads, folder) == ("new.txt",)
    assert of("Summarise this document", NOTHING, Shelf(plan_txt="A plan.")) == ("plan.txt",)
    assert of("What is this document about?", NOTHING, folder) == ("plan.txt", "report.md")
    assert of("What is this about?", NOTHING, NOTHING) == ()


def test_without_an_upload_a_bare_it_is_what_was_talked_about() -> None:
    folder = Shelf(plan_txt="A plan.", report_md=REPORT)
    assert find("What is it about?", NOTHING, folder, talking=True) is None
    assert find("What is it about?", NOTHING, folder, talking=False) is not None
    assert find("What is it about?", Shelf(new_txt="A new text."), folder, talking=True) is not None


def test_a_document_named_in_an_ordinary_question_is_not_summed_up() -> None:
    folder = Shelf(plan_txt="A plan.", report_md=REPORT)
    assert find("Who wrote report.md?", NOTHING, folder, talking=False) is None
    assert find("What plan is this?", NOTHING, folder, talking=False) is None


def test_a_folder_is_told_as_a_list_of_documents_with_their_headings(library: Library) -> None:
    overview = find("What documents are there?", NOTHING, library, talking=False)
    assert overview is not None
    assert set(overview.sources) == {path.name for path in CORPUS.iterdir()}
    assert "bm25.md: How BM25 scores a passage; The parameter k1" in overview.outline
    assert "latency.pdf" in overview.outline
    assert len(overview.hits) == len(overview.sources)


@pytest.mark.parametrize("path", sorted(CORPUS.iterdir()), ids=lambda path: path.name)
def test_every_shipped_document_can_be_summed_up(library: Library, path: Path) -> None:
    overview = find(f"What is {path.name} about?", NOTHING, library, talking=False)
    assert overview is not None
    text = read(path.read_bytes(), path.name).text
    assert overview.sources == (path.name,)
    assert all(text[hit.passage.start : hit.passage.end] == hit.passage.text for hit in overview.hits)


def test_a_long_outline_keeps_its_main_headings_and_says_what_is_missing() -> None:
    text = "\n\n".join(
        f"# Chapter {n}\n\n" + "\n\n".join(f"## Part {n}.{m}\n\nText." for m in range(9)) for n in range(30)
    )
    overview = find("Summarise it", Shelf(book_md=text), NOTHING, talking=False)
    assert overview is not None
    lines = overview.outline.split("\n")
    assert lines[:30] == [f"- Chapter {n}" for n in range(30)]
    assert lines[30:] == ["and 270 more headings"]
