"""The shared folder and a session's uploads."""

import os
from pathlib import Path

import pytest

from rag.corpus.library import Attachments, Library
from rag.errors import DocumentError, UserError


def test_a_folder_that_is_not_there_says_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="RAG_DOCS"):
        Library(tmp_path / "nowhere", passage_chars=700)


def test_a_bad_file_costs_only_itself(tmp_path: Path) -> None:
    (tmp_path / "good.md").write_text("Fine words.")
    (tmp_path / "bad.pdf").write_bytes(b"not a pdf")
    (tmp_path / ".hidden.md").write_text("secret")
    (tmp_path / "notes.docx").write_bytes(b"ignored")
    library = Library(tmp_path, passage_chars=700)
    assert [(report.source, report.error is None) for report in library.reports] == [
        ("bad.pdf", False),
        ("good.md", True),
    ]
    assert library.files == 1
    assert "not read" in library.reports[0].line


@pytest.mark.skipif(os.name == "nt", reason="needs symbolic links")
def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    folder.mkdir()
    (tmp_path / "outside.md").write_text("outside words")
    (folder / "link.md").symlink_to(tmp_path / "outside.md")
    library = Library(folder, passage_chars=700)
    assert len(library.index) == 0
    assert "link to a file outside" in str(library.reports[0].error)


async def test_an_upload_joins_its_own_session_only_and_at_once(library: Library) -> None:
    mine, theirs = Attachments(library), Attachments(library)
    before = len(library.index)
    mine.add(b"The frobnicator hums at 440 hertz.", "manual.txt")
    assert [hit.passage.source for hit in await mine.index.search("frobnicator", 3)] == ["manual.txt"]
    assert await theirs.index.search("frobnicator", 3) == []
    assert await library.index.search("frobnicator", 3) == []
    assert len(library.index) == before
    assert "bm25.md" in {hit.passage.source for hit in await mine.index.search("BM25 k1", 3)}


async def test_an_upload_of_the_same_name_takes_its_place_and_a_removed_one_is_gone(library: Library) -> None:
    attachments = Attachments(library)
    attachments.add(b"old frobnicator", "manual.txt")
    attachments.add(b"new gizmo", "manual.txt")
    assert await attachments.index.search("frobnicator", 3) == []
    attachments.remove("manual.txt")
    assert await attachments.index.search("gizmo", 3) == []
    with pytest.raises(UserError, match=r"manual\.txt is not attached"):
        attachments.remove("manual.txt")


async def test_a_bad_upload_changes_nothing(library: Library) -> None:
    attachments = Attachments(library)
    attachments.add(b"the frobnicator", "manual.txt")
    with pytest.raises(DocumentError):
        attachments.add(b"", "manual.txt")
    assert len(await attachments.index.search("frobnicator", 3)) == 1
