"""The worker process: what a file may cost, and that the next one is read all the same."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from rag.corpus.documents import ingest
from rag.corpus.pages import Page, draw
from rag.corpus.reader import Reader, ReadingStopped
from rag.errors import DocumentError
from rag.words import Said

from . import files
from .conftest import CORPUS

GOOD = b"# Title\n\nOne sentence.\n"
# Minutes of work for any parser, made in no time.
SLOW = b"<html><body>" + b"<p>word <b>word</b></p>" * 400_000
# Half a million times the whole page is painted over.
SLOW_PAGE = files.pdf([") Tj ET " + "0 0 612 792 re f " * 500_000 + "BT (Text"])


@pytest.fixture
def reader() -> Iterator[Reader]:
    with Reader(passage_chars=700) as made:
        yield made


def until(condition: Callable[[], object], limit_s: float = 20) -> None:
    """Wait for a condition that nothing announces."""
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def reads(reader: Reader) -> bool:
    return [passage.text for passage in reader.read(GOOD, "good.md")[1]] == ["One sentence."]


def refusal(reader: Reader, file: bytes | Path, source: str) -> str:
    """The one line that a bad file costs; the next file is read, from the same reader."""
    with pytest.raises(DocumentError) as caught:
        reader.read(file, source)
    assert reads(reader)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


# --- what it gives ---


@pytest.mark.parametrize("path", sorted(CORPUS.iterdir()), ids=lambda path: path.name)
def test_a_file_comes_back_as_if_read_here(reader: Reader, path: Path) -> None:
    here = ingest(path.read_bytes(), path.name, 700)
    for file in (path, path.read_bytes()):
        report, passages = reader.read(file, path.name)
        assert passages == here[1]
        assert report.duration_ms > 0
        assert {**report.to_dict(), "duration_ms": 0} == {**here[0].to_dict(), "duration_ms": 0}


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (files.docx([("Heading1", "A"), ("Normal", "text")]), "a.docx"),
        (files.pptx([("A", "text", "")]), "a.pptx"),
        (files.xlsx({"A": [["a", "b"], [1, 2]]}), "a.xlsx"),
        (files.epub("A", {"B": "text"}), "a.epub"),
        (b"<html><body><h1>A</h1><p>text", "a.html"),
        (rb"{\rtf1 text}", "a.rtf"),
        (GOOD, "\udcff\n../" + "x" * 300 + ".md"),
    ],
    ids=["docx", "pptx", "xlsx", "epub", "html", "rtf", "a name of any kind"],
)
def test_each_kind_is_read_within_the_default_limits(reader: Reader, data: bytes, name: str) -> None:
    assert reader.read(data, name)[1] == ingest(data, name, 700)[1]


def test_one_process_reads_many_files_from_many_threads(reader: Reader) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: reader.read(f"# Title {n}\n\ntext {n}".encode(), f"{n}.md"), range(200)))
        pids = set(pool.map(lambda _: reads(reader) and reader.pid, range(20)))
    assert [passages[0].text for _, passages in found] == [f"text {n}" for n in range(200)]
    assert [report.source for report, _ in found] == [f"{n}.md" for n in range(200)]
    assert len(pids) == 1


def test_no_process_before_the_first_file_and_none_when_idle() -> None:
    with Reader(passage_chars=700, idle_s=0.2) as reader:
        assert reader.pid is None
        assert reads(reader)
        pid = reader.pid
        assert pid is not None
        until(lambda: reader.pid is None)
        until(lambda: gone(pid))
        assert reads(reader)
        assert reader.pid not in (pid, None)


def test_a_large_parent_does_not_make_a_small_worker_end() -> None:
    ballast = b"x" * 400_000_000
    with Reader(passage_chars=700, memory_mb=700) as reader:
        assert reads(reader)
        pid = reader.pid
        assert pid is not None
        assert reads(reader)
        assert reader.pid == pid
    assert len(ballast) == 400_000_000


def test_the_process_ends_when_its_parent_is_killed() -> None:
    program = (
        "from rag.corpus.reader import Reader\nimport time\n"
        "reader = Reader(passage_chars=700)\nreader.read(b'text', 'a.md')\nprint(reader.pid, flush=True)\ntime.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=CORPUS.parent)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert not gone(pid)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    until(lambda: gone(pid))


def test_modules_in_the_current_folder_are_not_run(tmp_path: Path) -> None:
    for name in ("json", "markitdown", "rag", "email"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')\nraise SystemExit")
    program = (
        f"import sys; sys.path.insert(0, {str(CORPUS.parent)!r}); sys.path.remove('')\n"
        "from rag.corpus.reader import Reader\n"
        "print(Reader(passage_chars=700).read(b'<html><body><p>text', 'a.html')[1][0].text)"
    )
    answer = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert answer.stdout == "text\n"
    assert not (tmp_path / "run").exists()


def test_the_report_in_json_survives_the_way(reader: Reader) -> None:
    report, _ = reader.read(files.pdf(["text", ""]), "a.pdf")
    assert json.loads(json.dumps(report.to_dict()))["blank_pages"] == [2]
    assert "1 of 2 pages holds no text" in report.line


def test_where_there_is_no_tesseract_a_scan_says_so(tmp_path: Path) -> None:
    with Reader(passage_chars=700, env={**os.environ, "PATH": str(tmp_path)}) as reader:
        message = refusal(reader, files.scanned("Invoice 4711"), "scan.pdf")
    assert (
        message
        == "scan.pdf is probably scanned: 1 of 1 pages holds no text; install Tesseract or upload a text version."
    )


# --- files on the disk ---


def test_a_file_of_two_gigabytes_is_refused_before_it_is_read(reader: Reader, tmp_path: Path) -> None:
    path = tmp_path / "huge.txt"
    with path.open("wb") as file:
        file.truncate(2_000_000_000)
    assert (
        refusal(reader, path, "huge.txt") == "huge.txt is too large: 2,000 MB, and at most 200 MB are read. Split it."
    )
    assert reader.pid is not None
    assert psutil.Process(reader.pid).memory_info().rss < 200_000_000


def test_an_upload_that_is_too_large_is_not_even_sent() -> None:
    with Reader(passage_chars=700, largest_bytes=1_000_000) as reader:
        with pytest.raises(DocumentError, match=r"a\.md is too large: 2 MB, and at most 1 MB are read\. Split it\."):
            reader.read(b"x" * 2_000_000, "a.md")
        assert reader.pid is None


def test_what_is_no_file_is_refused_and_not_waited_for(reader: Reader, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.md")
    (tmp_path / "folder.md").mkdir()
    (tmp_path / "target.md").write_bytes(GOOD)
    (tmp_path / "link.md").symlink_to(tmp_path / "target.md")
    (tmp_path / "loop.md").symlink_to(tmp_path / "loop.md")
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(tmp_path / "socket.md"))
        said = {
            name: refusal(reader, tmp_path / f"{name}.md", name)
            for name in ("pipe", "folder", "link", "loop", "socket")
        }
    assert said["pipe"] == "pipe is a pipe or a device, not a file. Add a file."
    assert said["folder"] == "folder is a folder, not a file. Add a file."
    assert said["link"] == "link is a link. Add the file that it points to."
    assert said["loop"] == "loop is a link. Add the file that it points to."
    assert said["socket"].startswith("socket cannot be read from the disk (")
    assert refusal(reader, Path("/dev/zero"), "zero.md") == "zero.md is a pipe or a device, not a file. Add a file."


def test_a_file_that_vanished_is_told_as_gone(reader: Reader, tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_bytes(GOOD)
    reader.read(path, "a.md")
    path.unlink()
    assert (
        refusal(reader, path, "a.md") == "a.md is gone: it was removed or renamed. Add it again if it should be there."
    )
    assert "cannot be read from the disk (" in refusal(reader, tmp_path / ("x" * 300 + ".md"), "long.md")


def test_files_that_come_and_go_while_read_cost_only_themselves(reader: Reader, tmp_path: Path) -> None:
    path, over = tmp_path / "a.md", threading.Event()

    def come_and_go() -> None:
        while not over.is_set():
            path.write_bytes(GOOD)
            path.unlink()

    thread = threading.Thread(target=come_and_go)
    thread.start()
    said, texts = set(), set()
    try:
        for _ in range(300):
            try:
                texts.add(reader.read(path, "a.md")[1][0].text)
            except DocumentError as error:
                said.add(str(error).split(".md ")[1].split(":")[0].split(".")[0])
    finally:
        over.set()
        thread.join()
    assert texts <= {"One sentence."}
    assert said
    assert said <= {"is gone", "is empty"}
    assert reads(reader)


def test_a_file_without_permission_is_told(tmp_path: Path) -> None:
    # Root may read everything, so the reading is done as someone else.
    path = tmp_path / "secret.md"
    path.write_bytes(GOOD)
    path.chmod(0)
    program = (
        "import os, sys\nfrom rag.corpus.reader import contents\nfrom rag.errors import DocumentError\n"
        "if os.geteuid() == 0: os.seteuid(65534)\n"
        "try: contents(sys.argv[1], 'secret.md', 1000)\n"
        "except DocumentError as error: print(error)\n"
    )
    folder = tmp_path
    while folder != folder.parent:  # pytest's folders are its user's alone
        if os.stat(folder).st_uid == os.geteuid() and str(folder) != "/tmp":
            folder.chmod(folder.stat().st_mode | 0o011)
        folder = folder.parent
    answer = subprocess.run(
        [sys.executable, "-c", program, path], cwd=CORPUS.parent, capture_output=True, text=True, check=True
    )
    assert answer.stdout == "secret.md may not be read by this user. Change its permissions, then add it.\n"


# --- limits ---


def test_a_file_that_takes_too_long_is_given_up() -> None:
    with Reader(passage_chars=700, timeout_s=1) as reader:
        message = refusal(reader, SLOW, "slow.html")
    assert message == "slow.html took longer than 1 s to read. Split it, or save it in a simpler format."


def test_a_file_that_needs_too_much_memory_is_given_up() -> None:
    with Reader(passage_chars=700, memory_mb=300) as reader:
        message = refusal(reader, "wörter ".encode() * 12_000_000, "big.txt")
        assert message == "big.txt needs more than 300 MB to read. Split it, or save it in a simpler format."
        # A few kilobytes of Word whose paragraphs, each with nothing in it, become objects.
        many = files.docx([("Normal", "x")] + [("", "")] * 300_000)
        assert "needs more than 300 MB" in refusal(reader, many, "many.docx")


@pytest.mark.parametrize("memory_mb", [60, 120])
def test_too_little_memory_for_a_library_is_told_as_that(memory_mb: int) -> None:
    with Reader(passage_chars=700, memory_mb=memory_mb) as reader:
        assert f"needs more than {memory_mb} MB" in refusal(reader, b"<html><body><p>text", "a.html")


def test_a_process_that_was_killed_costs_only_the_file_it_read(reader: Reader) -> None:
    assert reads(reader)
    first = reader.pid
    assert first is not None
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(reader.read, SLOW, "slow.html")
        # Once it has begun, it uses the processor.
        until(lambda: gone(first) or psutil.Process(first).cpu_times().user > 0.5)
        os.kill(first, signal.SIGKILL)
        with pytest.raises(
            DocumentError, match=r"slow\.html ended the process that read it \(signal 9\): it is damaged"
        ):
            slow.result(timeout=20)
    assert reads(reader)
    assert reader.pid != first


def test_a_process_that_was_killed_between_two_files_costs_none(reader: Reader) -> None:
    assert reads(reader)
    pid = reader.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    until(lambda: gone(pid))
    assert reads(reader)


def test_reading_can_be_stopped(reader: Reader) -> None:
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(reader.read, SLOW, "slow.html")
        until(lambda: reader.pid is not None)
        reader.stop()
        with pytest.raises(ReadingStopped, match=r"Reading slow\.html was stopped\. Add it again"):
            slow.result(timeout=20)
    assert reads(reader)
    reader.stop()  # nothing is being read: nothing ends
    assert reads(reader)


def test_closing_ends_what_is_read_and_all_that_comes_after() -> None:
    reader = Reader(passage_chars=700)
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(reader.read, SLOW, "slow.html")
        until(lambda: reader.pid is not None)
        pid = reader.pid
        reader.close()
        with pytest.raises(ReadingStopped):
            slow.result(timeout=20)
    assert pid is not None
    assert gone(pid)
    with pytest.raises(ReadingStopped):
        reader.read(GOOD, "a.md")
    reader.close()


def test_what_a_file_starts_ends_with_it(tmp_path: Path) -> None:
    script = tmp_path / "tesseract"
    script.write_text(
        f"#!{sys.executable}\nimport os, sys, time\n"
        "if '--list-langs' in sys.argv: sys.exit(print('List (1):\\neng'))\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(f'{{os.getpid()}}\\n')\ntime.sleep(600)\n"
    )
    script.chmod(0o755)
    with (
        Reader(passage_chars=700, env={**os.environ, "PATH": str(tmp_path)}) as reader,
        ThreadPoolExecutor(1) as pool,
    ):
        slow = pool.submit(reader.read, files.pdf(["", "x"]), "scan.pdf")
        until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().endswith("\n"))
        reader.stop()
        with pytest.raises(ReadingStopped):
            slow.result(timeout=20)
        until(lambda: gone(int((tmp_path / "pid").read_text())))


# --- every bad file of the list, through the process ---


@pytest.mark.parametrize(
    ("data", "name", "says"),
    [
        (b"", "empty.md", "is empty"),
        (files.pdf(["x"], encrypted=True), "locked.pdf", "protected by a password"),
        (files.encrypted_office(), "locked.docx", "protected by a password"),
        (files.docx([("Normal", "x")])[:700], "torn.docx", "probably cut off"),
        (files.zip_bomb(), "bomb.docx", "zip bomb"),
        (files.docx([("Normal", "&lol9;")], before=files.BILLION_LAUGHS), "laughs.docx", "XML entities"),
        (files.PNG, "picture.pdf", "is a PNG picture"),
        (b"MZ" + bytes(900), "program.txt", "is a Windows program"),
        (b"", "../" * 20 + "x" * 300 + ".md", "is empty"),
    ],
    ids=lambda value: value[-40:] if isinstance(value, str) else "",
)
def test_bad_input_costs_one_line_and_no_process(reader: Reader, data: bytes, name: str, says: str) -> None:
    assert reads(reader)
    pid = reader.pid
    assert says in refusal(reader, data, name)
    assert reader.pid == pid


# --- pages ---


def unseen(reader: Reader, file: bytes | Path, source: str = "a.pdf", number: int = 1) -> Said:
    """Why a page cannot be shown, which can be said in other languages; the next one can."""
    with pytest.raises(DocumentError) as caught:
        reader.draw(file, source, number)
    assert reader.draw(files.pdf(["good"]), "good.pdf", 1).png
    assert isinstance(caught.value.told, Said)
    return caught.value.told


@pytest.mark.parametrize("name", ["latency.pdf", "token-costs.pdf"])
def test_a_page_comes_back_as_if_drawn_here(reader: Reader, name: str) -> None:
    path = CORPUS / name
    _, passages = ingest(path.read_bytes(), name, 700)
    passage = next(passage for passage in passages if passage.page == 2)
    quote = passage.text.split(". ")[-1]
    for wanted in (True, False):
        here = draw(path.read_bytes(), name, 2, quote, passage.text, wanted)
        assert here.marks
        for file in (path, path.read_bytes()):
            assert reader.draw(file, name, 2, quote, passage.text, wanted) == here
    assert reader.draw(path, name, 99, quote) == Page(b"", here.pages)


def test_one_process_reads_and_draws_in_turn_for_many_threads(reader: Reader) -> None:
    texts = [f"Sentence number {number}." for number in range(20)]

    def both(number: int) -> bool:
        page = reader.draw(files.pdf(texts), "a.pdf", number + 1, texts[number])
        return bool(page.marks) and page.pages == 20 and reads(reader)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(both, range(20)))
    assert reader.pid is not None


def test_what_cannot_be_drawn_is_said_through_the_process(reader: Reader) -> None:
    assert reads(reader)
    pid = reader.pid
    locked = unseen(reader, files.pdf(["x"], encrypted=True), "locked.pdf")
    assert (locked.key, locked.values) == ("documents.protected", {"name": "locked.pdf"})
    assert locked.startswith("locked.pdf is protected by a password")
    assert unseen(reader, b"%PDF-1.4 torn").key == "documents.damaged"
    assert reader.pid == pid


def test_a_page_that_takes_too_long_is_given_up() -> None:
    with Reader(passage_chars=700, timeout_s=1) as reader:
        told = unseen(reader, SLOW_PAGE, "slow.pdf")
    assert told.key == "documents.not_drawn"
    assert told.startswith("Page 1 of slow.pdf cannot be shown: it takes more time or memory than is allowed")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not hold a process to its memory")
def test_a_page_that_needs_too_much_memory_is_given_up() -> None:
    with Reader(passage_chars=700, memory_mb=120) as reader:
        big = files.pdf(["x"]) + b"%" + b" " * 120_000_000
        assert unseen(reader, big).key == "documents.not_drawn"


def test_a_process_that_was_killed_costs_only_the_page_it_drew(reader: Reader) -> None:
    assert reads(reader)
    first = reader.pid
    assert first is not None
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(reader.draw, SLOW_PAGE, "slow.pdf", 1)
        until(lambda: gone(first) or psutil.Process(first).cpu_times().user > 0.5)
        os.kill(first, signal.SIGKILL)
        with pytest.raises(DocumentError, match=r"Page 1 of slow\.pdf cannot be shown"):
            slow.result(timeout=20)
    assert reader.draw(files.pdf(["good"]), "good.pdf", 1).png
    assert reader.pid != first


def test_a_file_that_is_gone_or_no_file_is_not_drawn(reader: Reader, tmp_path: Path) -> None:
    (tmp_path / "target.pdf").write_bytes(files.pdf(["x"]))
    (tmp_path / "link.pdf").symlink_to(tmp_path / "target.pdf")
    os.mkfifo(tmp_path / "pipe.pdf")
    assert reader.draw(tmp_path / "target.pdf", "target.pdf", 1).png
    for name in ("gone.pdf", "link.pdf", "pipe.pdf"):
        assert unseen(reader, tmp_path / name, name).key == "documents.not_drawn"


def test_drawing_ends_with_the_reader() -> None:
    reader = Reader(passage_chars=700)
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(reader.draw, SLOW_PAGE, "slow.pdf", 1)
        until(lambda: reader.pid is not None)
        reader.close()
        with pytest.raises(ReadingStopped):
            slow.result(timeout=20)
