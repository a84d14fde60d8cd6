"""The shared folder, how it is followed and kept, and a session's uploads."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from rag.corpus.engines import SMALL, stored_engine
from rag.corpus.library import Attachments, Library
from rag.corpus.reader import Reader, ReadingFailed
from rag.errors import DocumentError, RagError, UserError
from rag.settings import Settings

from .conftest import open_library, until


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    return folder


async def sources(library: Library, query: str, top_k: int = 10) -> list[str]:
    return [hit.passage.source for hit in await library.index.search(query, top_k)]


def many(folder: Path, files: int, passages: int) -> None:
    """Files of so many passages each; every one holds a word of its own file and one of its own."""
    for number in range(files):
        text = "\n\n".join(f"# Part {part}\n\ncommon file{number} part{number}x{part}" for part in range(passages))
        (folder / f"{number:04}.md").write_text(text)


def test_a_folder_that_is_not_there_says_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="RAG_DOCS"):
        open_library(tmp_path / "nowhere", tmp_path / "cache")


def test_a_bad_file_costs_only_itself(folder: Path, tmp_path: Path) -> None:
    (folder / "good.md").write_text("Fine words.")
    (folder / "bad.pdf").write_bytes(b"not a pdf")
    (folder / ".hidden.md").write_text("secret")
    (folder / "film.mp4").write_bytes(b"ignored")
    library = open_library(folder, tmp_path / "cache")
    assert [(report.source, report.error is None) for report in library.reports] == [
        ("bad.pdf", False),
        ("good.md", True),
    ]
    assert library.files == 1
    assert "not read" in library.reports[0].line
    library.close()


@pytest.mark.skipif(os.name == "nt", reason="needs symbolic links")
async def test_a_link_out_of_the_folder_is_not_followed_and_one_inside_is(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "outside.md").write_text("outside words")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "other.md").write_text("outside words")
    (folder / "inside.md").write_text("inside words")
    (folder / "link.md").symlink_to(tmp_path / "outside.md")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "same.md").symlink_to(folder / "inside.md")
    library = open_library(folder, tmp_path / "cache")
    assert await sources(library, "outside") == []
    assert await sources(library, "inside") == ["inside.md", "same.md"]
    assert "link to a file outside" in next(str(r.error) for r in library.reports if r.source == "link.md")
    library.close()


# The folder lives


async def test_only_what_changed_is_read_again(folder: Path, tmp_path: Path) -> None:
    for name in ("a.md", "b.md", "c.md"):
        (folder / name).write_text(f"words of {name[0]}lpha")
    library = open_library(folder, tmp_path / "cache")
    assert library.update() == []
    (folder / "b.md").write_text("quite other words")
    (folder / "d.txt").write_text("delta words")
    assert library.update() == ["b.md", "d.txt"]
    assert await sources(library, "quite other") == ["b.md"]
    assert await sources(library, "blpha") == []
    os.utime(folder / "a.md", ns=(1, 1))
    assert library.update() == ["a.md"], "a new time is looked into"
    assert library.update() == [], "and the same bytes are remembered with it"
    library.close()


async def test_a_renamed_file_keeps_its_passages_under_its_new_name(folder: Path, tmp_path: Path) -> None:
    (folder / "old.md").write_text("The frobnicator hums.")
    library = open_library(folder, tmp_path / "cache")
    (folder / "old.md").rename(folder / "new.md")
    library.update()
    assert await sources(library, "frobnicator") == ["new.md"]
    assert [report.source for report in library.reports] == ["new.md"]
    fresh = open_library(folder, tmp_path / "other-cache")
    assert [p.id for p in library.opening("new.md")] == [p.id for p in fresh.opening("new.md")]
    library.close()
    fresh.close()


@pytest.mark.parametrize("size", [1, SMALL + 50], ids=["small", "large"])
async def test_a_deleted_document_never_answers_again(folder: Path, tmp_path: Path, size: int) -> None:
    many(folder, 10, size // 10 + 1)
    library = open_library(folder, tmp_path / "cache")
    assert set(await sources(library, "file3", 100)) == {"0003.md"}
    engine = library.engine
    (folder / "0003.md").unlink()
    library.update()
    assert (library.engine is engine) == (engine.name == "tantivy"), "a large one is changed, not built anew"
    assert await sources(library, "file3") == []
    assert "0003.md" not in await sources(library, "common", 1000)
    library.close()
    again = Library(library.settings)  # also before the folder is looked at
    assert await sources(again, "file3") == []
    again.close()


async def test_an_unchanged_folder_of_a_thousand_files_is_ready_without_a_document_read(
    folder: Path, tmp_path: Path
) -> None:
    many(folder, 1000, 2)
    open_library(folder, tmp_path / "cache").close()
    library = Library(library_settings(folder, tmp_path))
    assert len(library.index) == 2000, "ready before the folder is looked at"
    assert await sources(library, "file77") == ["0077.md"] * 2
    assert library.update() == []
    assert library._reader.pid is None, "no process was started to read"
    library.close()


def library_settings(folder: Path, tmp_path: Path) -> Settings:
    return Settings(_env_file=None, docs=folder, cache_dir=tmp_path / "cache")  # type: ignore[call-arg]


async def test_the_engine_changes_with_the_size_both_ways(folder: Path, tmp_path: Path) -> None:
    many(folder, 2, SMALL // 2)
    library = open_library(folder, tmp_path / "cache")
    assert library.engine.name == "rank-bm25"
    (folder / "more.md").write_text("one more thing")
    library.update()
    assert library.engine.name == "tantivy"
    assert await sources(library, "one more thing", 1) == ["more.md"]
    (folder / "more.md").unlink()
    library.update()
    assert library.engine.name == "rank-bm25"
    assert await sources(library, "thing") == []
    library.close()


async def test_many_changes_leave_the_same_ranking_as_a_fresh_index(folder: Path, tmp_path: Path) -> None:
    many(folder, 30, SMALL // 20)
    library = open_library(folder, tmp_path / "cache")
    for number in range(0, 30, 2):
        if number % 4:
            (folder / f"{number:04}.md").unlink()
        else:
            (folder / f"{number:04}.md").write_text(f"# Part 1\n\ncommon changed{number} words")
        library.update()
    fresh = open_library(folder, tmp_path / "other-cache")
    assert len(library.index) == len(fresh.index) > SMALL // 2
    for query in ("changed4", "file5", "part7x3", "file2"):
        assert sorted(await sources(library, query, 100)) == sorted(await sources(fresh, query, 100))
    library.close()
    fresh.close()


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
async def test_a_process_killed_at_any_moment_loses_nothing(folder: Path, tmp_path: Path) -> None:
    many(folder, 60, SMALL // 40)
    program = (
        "import sys; from pathlib import Path; from rag.settings import Settings; from rag.corpus.library import Library\n"
        "library = Library(Settings(_env_file=None, docs=Path(sys.argv[1]), cache_dir=Path(sys.argv[2])))\n"
        "library.update(lambda p: print(p.done, flush=True)); print('done', flush=True); sys.stdin.read()\n"
    )
    for when in ("0", "1", "7", "20", "41", "59", "60", "done"):
        child = subprocess.Popen(  # noqa: ASYNC220 (nothing else runs in this loop)
            [sys.executable, "-c", program, str(folder), str(tmp_path / "cache")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert child.stdout is not None
        for line in child.stdout:
            if line.strip() in (when, "done"):
                break
        child.send_signal(signal.SIGKILL)
        child.communicate()
        # What is there answers rightly or not at all.
        library = Library(library_settings(folder, tmp_path))
        for number in (0, 30, 59):
            assert set(await sources(library, f"file{number}", 100)) <= {f"{number:04}.md"}
        library.close()
        (folder / f"{int(when) if when.isdigit() else 33:04}.md").write_text(f"changed by {when}")
    library = open_library(folder, tmp_path / "cache")
    fresh = open_library(folder, tmp_path / "other-cache")
    assert len(library.index) == len(fresh.index)
    for query in ("file5", "changed", "part30x3"):
        assert sorted(await sources(library, query, 100)) == sorted(await sources(fresh, query, 100))
    library.close()
    fresh.close()


@pytest.mark.parametrize("harm", ["torn", "other version", "not a database"])
async def test_a_torn_or_outdated_index_is_made_anew(folder: Path, tmp_path: Path, harm: str) -> None:
    many(folder, 3, 40)
    library = open_library(folder, tmp_path / "cache")
    library.close()
    path = next((tmp_path / "cache").rglob("passages.sqlite"))
    if harm == "torn":
        data = bytearray(path.read_bytes())
        data[len(data) // 3 : len(data) // 2] = b"\xa5" * (len(data) // 2 - len(data) // 3)
        path.write_bytes(data)
    elif harm == "not a database":
        path.write_bytes(b"nonsense" * 1000)
    else:
        with sqlite3.connect(path) as connection:
            connection.execute("UPDATE meta SET value = 'an older one' WHERE key = 'made_with'")
        connection.close()
    library = open_library(folder, tmp_path / "cache")
    assert len(library.index) == 120
    assert set(await sources(library, "file2")) == {"0002.md"}
    library.close()


async def test_a_torn_engine_is_made_anew_from_what_was_read(folder: Path, tmp_path: Path) -> None:
    many(folder, 10, SMALL // 5)
    open_library(folder, tmp_path / "cache").close()
    for file in next((tmp_path / "cache").rglob("engine-*")).iterdir():
        if file.suffix not in (".json", ".lock"):
            file.write_bytes(file.read_bytes()[:100])
    library = Library(library_settings(folder, tmp_path))
    assert set(await sources(library, "file7", 100)) == {"0007.md"}
    assert library.update() == []
    library.close()


async def test_an_engine_behind_its_store_is_brought_up_to_date(folder: Path, tmp_path: Path) -> None:
    many(folder, 10, SMALL // 5)
    library = open_library(folder, tmp_path / "cache")
    # As after a kill between the store's commit and the engine's.
    library._store.remove([library._store.files()["0004.md"].number])
    engine = stored_engine(library._store, library._home)
    assert len(engine) == len(library._store) == 9 * (SMALL // 5)
    library.close()


@asynccontextmanager
async def watched(folder: Path, tmp_path: Path) -> AsyncIterator[Library]:
    library = Library(library_settings(folder, tmp_path))
    watching = asyncio.create_task(library.watch())
    try:
        await until(lambda: library.reading is not None or library.files > 0)
        yield library
    finally:
        watching.cancel()
        await asyncio.wait([watching])
        library.close()


async def test_a_watched_folder_shows_what_is_added_changed_renamed_and_deleted(folder: Path, tmp_path: Path) -> None:
    (folder / "a.md").write_text("The frobnicator hums.")
    async with watched(folder, tmp_path) as library:

        async def found(query: str, expected: list[str]) -> None:
            async with asyncio.timeout(20):
                async for _ in library.changes():
                    if await sources(library, query) == expected:
                        return

        await found("frobnicator", ["a.md"])
        (folder / "sub").mkdir()
        (folder / "sub" / "b.txt").write_text("A gizmo whirrs.")
        await found("gizmo", ["sub/b.txt"])
        (folder / "a.md").write_text("The widget clicks.")
        await found("widget", ["a.md"])
        assert await sources(library, "frobnicator") == []
        (folder / "a.md").rename(folder / "c.md")
        await found("widget", ["c.md"])
        (folder / "c.md").unlink()
        await found("widget", [])
        assert await library.settled(20)


async def test_progress_is_told_while_documents_are_read(folder: Path, tmp_path: Path) -> None:
    many(folder, 5, 2)
    library = Library(library_settings(folder, tmp_path))
    told: list[str] = []
    library.update(lambda progress: told.append(progress.words))
    assert told[0] == "looking for changes"
    assert told[1] == "0 of 5 documents"
    assert told[-1] == "5 of 5 documents"
    assert library.reading is None
    library.close()


def test_an_index_is_forgotten_a_while_after_its_folder(folder: Path, tmp_path: Path) -> None:
    (folder / "a.md").write_text("words")
    open_library(folder, tmp_path / "cache").close()
    note = next((tmp_path / "cache").rglob("folder.txt"))
    folder.rename(tmp_path / "moved")
    open_library(tmp_path / "moved", tmp_path / "cache").close()
    assert note.exists(), "it may come back"
    os.utime(note, (1, 1))
    open_library(tmp_path / "moved", tmp_path / "cache").close()
    assert not note.parent.exists()


async def test_a_full_disk_is_told_and_loses_nothing(folder: Path, tmp_path: Path) -> None:
    (folder / "a.md").write_text("The frobnicator hums.")
    library = open_library(folder, tmp_path / "cache")
    store = library._store._writes
    pages = store.execute("PRAGMA page_count").fetchone()[0]
    store.execute(f"PRAGMA max_page_count = {pages}")  # as if no more could be written
    many(folder, 3, 200)
    with pytest.raises(RagError, match="Free some space"):
        library.update()
    assert library.reading is None
    assert await sources(library, "frobnicator") == ["a.md"]
    store.execute("PRAGMA max_page_count = 1000000")
    library.update()
    assert set(await sources(library, "file2")) == {"0002.md"}
    library.close()


async def test_two_processes_share_one_index(folder: Path, tmp_path: Path) -> None:
    many(folder, 10, SMALL // 8)
    one, other = Library(library_settings(folder, tmp_path)), Library(library_settings(folder, tmp_path))
    first, second = await asyncio.gather(asyncio.to_thread(one.update), asyncio.to_thread(other.update))
    assert sorted([len(first), len(second)]) == [0, 10], "each file is read once"
    for library in (one, other):
        library.update()
        assert set(await sources(library, "file7", 100)) == {"0007.md"}
        library.close()


# Uploads


async def test_an_upload_joins_its_own_session_only_and_at_once(library: Library) -> None:
    mine, theirs = Attachments(library), Attachments(library)
    before = len(library.index)
    mine.add(b"The frobnicator hums at 440 hertz.", "manual.txt")
    assert [hit.passage.source for hit in await mine.index.search("frobnicator", 3)] == ["manual.txt"]
    assert await theirs.index.search("frobnicator", 3) == []
    assert await library.index.search("frobnicator", 3) == []
    assert len(library.index) == before
    assert theirs.index.idf("frobnicator") == library.index.idf("frobnicator"), "nor does it show in their scores"
    assert "bm25.md" in {hit.passage.source for hit in await mine.index.search("BM25 k1", 3)}
    for session in (mine, theirs):
        session.close()


async def test_an_upload_sees_the_folder_as_it_is_now(folder: Path, tmp_path: Path) -> None:
    (folder / "a.md").write_text("old words")
    library = open_library(folder, tmp_path / "cache")
    session = Attachments(library)
    session.add(b"upload words", "u.txt")
    (folder / "a.md").write_text("changed words")
    library.update()
    assert {hit.passage.text for hit in await session.index.search("old changed upload", 5)} == {
        "changed words",
        "upload words",
    }
    session.close()
    library.close()


async def test_an_upload_into_a_large_folder_leaves_the_folders_engine_alone(folder: Path, tmp_path: Path) -> None:
    many(folder, 10, SMALL // 5)
    library = open_library(folder, tmp_path / "cache")
    session, shared = Attachments(library), library.engine
    text = "\n\n".join(f"# Chapter {n}\n\nThe frobnicator's setting number{n} is common." for n in range(40))
    assert session.add(text.encode(), "manual.md").passages == 40
    assert library.engine is shared
    hits = await session.index.search("common frobnicator", 50)
    assert {hit.passage.source for hit in hits[:40]} == {"manual.md"}
    assert len(session.index) == len(shared) + 40
    session.close()
    library.close()


async def test_an_upload_of_the_same_name_takes_its_place_and_a_removed_one_is_gone(library: Library) -> None:
    attachments = Attachments(library)
    attachments.add(b"old frobnicator", "manual.txt")
    attachments.add(b"another", "other.txt")
    attachments.add(b"new gizmo", "manual.txt")
    assert attachments.sources == ["other.txt", "manual.txt"], "the newest last"
    assert await attachments.index.search("frobnicator", 3) == []
    attachments.remove("manual.txt")
    assert await attachments.index.search("gizmo", 3) == []
    with pytest.raises(UserError, match=r"manual\.txt is not attached"):
        attachments.remove("manual.txt")
    attachments.close()
    assert attachments.sources == []


async def test_a_bad_upload_changes_nothing(library: Library) -> None:
    attachments = Attachments(library)
    attachments.add(b"the frobnicator", "manual.txt")
    with pytest.raises(DocumentError):
        attachments.add(b"", "manual.txt")
    assert len(await attachments.index.search("frobnicator", 3)) == 1
    attachments.close()


async def test_a_reading_that_is_stopped_attaches_nothing(library: Library) -> None:
    attachments = Attachments(library)
    slow = b"word " * 8_000_000
    reading = asyncio.create_task(asyncio.to_thread(attachments.add, slow, "slow.txt"))
    while not reading.done():
        attachments.stop()
        await asyncio.sleep(0.01)
    with pytest.raises(DocumentError):
        await reading
    assert attachments.sources == []
    attachments.close()


def test_time_is_told_for_each_document(library: Library) -> None:
    assert all(report.duration_ms > 0 for report in library.reports)


def test_a_document_whose_reading_failed_by_our_fault_is_tried_again_by_the_next_process(tmp_path: Path) -> None:
    """As when the program is replaced while it runs: what cannot be read today may be read tomorrow, unchanged."""
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "a.md").write_text("The zeppelin flies.")
    settings = Settings(_env_file=None, docs=docs, cache_dir=tmp_path / "cache")  # type: ignore[call-arg]

    class Failing(Reader):
        def read(self, file: object, source: str) -> Any:
            raise ReadingFailed(f"{source} ended the process that read it.")

    with closing(Library(settings)) as library:
        library._reader.close()
        library._reader = Failing(passage_chars=700)
        assert library.update() == ["a.md"]
        assert library.reports[0].error is not None
        assert library.update() == [], "in this process it would fail once more"
    with closing(Library(settings)) as library:
        assert library.update() == ["a.md"]
        assert library.reports[0].error is None
        assert len(library.index) == 1
        assert library.update() == []


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="file names there are text")
@pytest.mark.parametrize(
    ("name", "shown"), [(b"b\xe4d.md", "b�d.md"), (b"b\nd.md", "b�d.md"), (b"b\x7fd.md", "b�d.md")]
)
async def test_a_file_whose_name_is_no_text_costs_only_itself_and_is_told_once(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: bytes, shown: str
) -> None:
    (folder / "good.md").write_text("Zebras drink at the Mara river.")
    (folder / os.fsdecode(name)).write_text("Lions sleep.")
    library = open_library(folder, tmp_path / "cache")
    library.update()
    assert library.sources == ["good.md"]
    assert await sources(library, "zebras") == ["good.md"]
    assert [record.message for record in caplog.records if f"{shown} was not read" in record.message] != []
    assert sum("was not read" in record.message for record in caplog.records) == 1
    library.close()
