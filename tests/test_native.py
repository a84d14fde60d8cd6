"""Compiling llama.cpp: a tiny stand-in for its sources; pip, cmake, ninja, the compiler and the archives are real.

The package index is a folder that pip is pointed to. The last tests run the real program, if it was built in the user's
cache folder before (`smallfirst models build`).
"""

import asyncio
import contextlib
import importlib.metadata
import io
import json
import os
import shutil
import tarfile
import threading
import time
import zipfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
from platformdirs import user_cache_path

from rag.errors import ModelUnreachable
from rag.models import native
from rag.models.native import BuildCancelled, BuildError, Progress, build, find, unpack
from rag.models.runtime import EmbeddedServer

PATIENCE_S = 120
VERSION = importlib.metadata.version("xllamacpp")
TOP = f"xllamacpp-{VERSION}"
SOURCES = f"{TOP}/thirdparty/llama.cpp"
BACKEND = """
import os

def prepare_metadata_for_build_wheel(folder, config_settings=None):
    info = os.path.join(folder, "xllamacpp-VERSION.dist-info")
    os.makedirs(info)
    with open(os.path.join(info, "METADATA"), "w") as file:
        file.write("Metadata-Version: 2.1\\nName: xllamacpp\\nVersion: VERSION\\n")
    return os.path.basename(info)
""".replace("VERSION", VERSION)
CMAKE = """
cmake_minimum_required(VERSION 3.14)
project(tiny CXX)
add_executable(llama-server main.cpp)
set_target_properties(llama-server PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
"""
MAIN = """
#include <cstdio>
int main() { std::puts("version: tiny"); return STATUS; }
"""
GOOD = {"CMakeLists.txt": CMAKE, "main.cpp": MAIN.replace("STATUS", "0")}

needs_tools = pytest.mark.skipif(
    os.name != "posix" or not all(map(shutil.which, ("c++", "cmake", "ninja"))),
    reason="needs a C++ compiler, cmake and ninja",
)


def add(archive: tarfile.TarFile, name: str, text: str) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(text.encode())
    archive.addfile(member, io.BytesIO(text.encode()))


def publish(index: Path, sources: dict[str, str]) -> Path:
    """A source distribution like xllamacpp's, with these files for llama.cpp's."""
    path = index / f"{TOP}.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        add(archive, f"{TOP}/PKG-INFO", f"Metadata-Version: 2.1\nName: xllamacpp\nVersion: {VERSION}\n")
        add(
            archive,
            f"{TOP}/pyproject.toml",
            '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n',
        )
        add(archive, f"{TOP}/backend.py", BACKEND)
        for name, text in sources.items():
            add(archive, f"{SOURCES}/{name}", text)
    return path


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only package index that pip can see."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def left(cache: Path) -> list[str]:
    """What is in the cache folder, without the lock, which stays."""
    return sorted(path.name for path in (cache / "runtime").iterdir() if path.name != "build.lock")


def until(condition: Callable[[], Any]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


# a build


@needs_tools
def test_program_is_built_found_and_built_once(index: Path, cache: Path) -> None:
    published = publish(index, GOOD)
    stale = cache / "runtime" / "build-killed"
    stale.mkdir(parents=True)
    (stale / "half").write_text("of a program")
    told: list[Progress] = []
    assert find(cache) is None
    path = build(cache, told.append)
    assert find(cache) == path
    assert left(cache) == [path.name]
    assert VERSION in path.name
    phases = list(dict.fromkeys(progress.phase for progress in told))
    assert phases == ["fetching", "configuring", "compiling", "trying"]
    steps = [(progress.done, progress.total) for progress in told if progress.phase == "compiling"]
    assert steps == sorted(steps)
    published.unlink()
    assert build(cache) == path


@needs_tools
def test_program_that_runs_no_more_is_built_again(index: Path, cache: Path) -> None:
    publish(index, GOOD)
    path = build(cache)
    path.write_bytes(b"\x7fELF and then nothing")
    assert build(cache) == path
    assert path.stat().st_size > 1000


@needs_tools
def test_second_build_waits_for_the_first(index: Path, cache: Path) -> None:
    publish(index, GOOD)
    told: list[Progress] = []
    paths: list[Path] = []
    began = threading.Event()
    first = threading.Thread(target=lambda: paths.append(build(cache, lambda _: began.set())))
    first.start()
    assert began.wait(PATIENCE_S)
    waited = build(cache, told.append)
    first.join(PATIENCE_S)
    assert paths == [waited]
    assert {progress.note for progress in told} == {"another process is building it"}


@needs_tools
def test_tools_that_the_system_lacks_are_fetched(
    index: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(index, GOOD)
    used = tmp_path / "used"
    for name, place in (("cmake", "cmake/data/bin/cmake"), ("ninja", "ninja-9.9.data/scripts/ninja")):
        program = zipfile.ZipInfo(place)
        program.external_attr = 0o100755 << 16
        info = f"{name}-9.9.dist-info"
        with zipfile.ZipFile(index / f"{name}-9.9-py3-none-any.whl", "w") as wheel:
            wheel.writestr(program, f'#!/bin/sh\necho {name} >> {used}\nexec {shutil.which(name)} "$@"\n')
            wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 9.9\n")
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{info}/RECORD", "")
    path_of_tools(tmp_path, monkeypatch)
    old = tmp_path / "bin" / "cmake"
    old.write_text("#!/bin/sh\necho cmake version 3.5.1\n")
    old.chmod(0o755)
    assert build(cache).is_file()
    assert set(used.read_text().split()) == {"cmake", "ninja"}
    assert len(left(cache)) == 1


def path_of_tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, compiler: bool = True) -> None:
    """A search path with nothing but what a compiler needs."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sh", "env", "as", "ld", "ar", "ranlib", *(("c++", "cc") if compiler else ())):
        if found := shutil.which(name):
            (folder / name).symlink_to(found)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("CXX", raising=False)


# builds that fail


@needs_tools
def test_first_error_of_the_compiler_is_told(index: Path, cache: Path) -> None:
    publish(index, {**GOOD, "main.cpp": "int main() { return nothing; }\nint more() { return nowhere; }\n"})
    with pytest.raises(BuildError, match=r"cannot be compiled here: main\.cpp:1:\d+: error:.*nothing"):
        build(cache)
    assert left(cache) == []


@needs_tools
def test_error_of_cmake_is_told(index: Path, cache: Path) -> None:
    publish(index, {**GOOD, "CMakeLists.txt": f'{CMAKE}\nmessage(FATAL_ERROR "too warm here")\n'})
    with pytest.raises(BuildError, match=r"cannot be compiled here: CMake Error at CMakeLists\.txt:\d+.*too warm here"):
        build(cache)
    assert left(cache) == []


@needs_tools
def test_program_that_does_not_run_is_thrown_away(index: Path, cache: Path) -> None:
    publish(index, {**GOOD, "main.cpp": MAIN.replace("STATUS", "3")})
    with pytest.raises(BuildError, match="the program does not run: version: tiny"):
        build(cache)
    assert left(cache) == []


@pytest.mark.skipif(os.name != "posix", reason="Windows' compiler is not on the search path")
def test_without_a_compiler_nothing_is_fetched_and_the_remedy_told(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path_of_tools(tmp_path, monkeypatch, compiler=False)
    (tmp_path / "bin" / "apt-get").write_text("#!/bin/sh\n")
    (tmp_path / "bin" / "apt-get").chmod(0o755)
    told: list[Progress] = []
    with pytest.raises(BuildError, match=r"no C\+\+ compiler.*(apt-get install g\+\+|xcode-select --install)"):
        build(cache, told.append)
    assert (told, left(cache)) == ([], [])


def test_full_disk_is_told_before_anything_is_fetched(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "NEEDED_BYTES", 1 << 62)
    monkeypatch.setenv("CXX", "sh")
    with pytest.raises(BuildError, match=r"needs 4,611,686,018,427,387,904 bytes.*Free some space"):
        build(cache)
    assert left(cache) == []


@needs_tools
def test_index_without_the_sources_is_told_in_pips_words(index: Path, cache: Path) -> None:
    with pytest.raises(BuildError, match=rf"pip did not bring xllamacpp=={VERSION}: Could not find a version"):
        build(cache)
    assert left(cache) == []


@needs_tools
def test_archive_that_is_cut_off_is_told(index: Path, cache: Path) -> None:
    published = publish(index, GOOD)
    published.write_bytes(published.read_bytes()[:400])
    with pytest.raises(BuildError, match=r"pip did not bring xllamacpp"):
        build(cache)
    assert left(cache) == []


def test_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file, where a folder should be")
    with pytest.raises(BuildError, match=r"cannot be built in .*runtime: .*Make the folder writable"):
        build(tmp_path / "cache")


@needs_tools
def test_cancelled_build_ends_its_compilers_and_leaves_nothing(index: Path, cache: Path) -> None:
    seconds = f"86399.{os.getpid()}"
    publish(
        index,
        {
            **GOOD,
            "CMakeLists.txt": f"{CMAKE}\nadd_custom_command(OUTPUT late.h COMMAND sleep {seconds})\n"
            "target_sources(llama-server PRIVATE late.h)\n",
        },
    )

    def sleeping() -> list[psutil.Process]:
        return [process for process in psutil.process_iter(["cmdline"]) if seconds in (process.info["cmdline"] or [])]

    cancelled = threading.Event()
    raised: list[BaseException] = []

    def run() -> None:
        try:
            build(cache, cancelled=cancelled)
        except BuildError as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    until(sleeping)
    cancelled.set()
    thread.join(PATIENCE_S)
    assert [type(error) for error in raised] == [BuildCancelled]
    until(lambda: not sleeping())
    assert left(cache) == []


# archives


def test_archive_may_not_write_outside(tmp_path: Path) -> None:
    for number, name in enumerate((f"{SOURCES}/../../../../outside", f"{SOURCES}/link")):
        path = tmp_path / f"bad{number}.tar.gz"
        with tarfile.open(path, "w:gz") as archive:
            if name.endswith("link"):
                link = tarfile.TarInfo(name)
                link.type, link.linkname = tarfile.SYMTYPE, "/etc"
                archive.addfile(link)
            else:
                add(archive, name, "caught")
        with pytest.raises(BuildError, match=r"would land outside; it is not used"):
            unpack(path, tmp_path / "deep" / "src")
    assert not list(tmp_path.rglob("outside"))


@pytest.mark.parametrize("size", [100, 400])
def test_damaged_archive_is_told(tmp_path: Path, size: int) -> None:
    whole = publish(tmp_path, GOOD).read_bytes()
    damaged = tmp_path / "damaged.tar.gz"
    damaged.write_bytes(whole[:size])
    with pytest.raises(BuildError, match=r"damaged\.tar\.gz is damaged"):
        unpack(damaged, tmp_path / "src")


def test_archive_without_llama_cpp_is_told(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"does not hold llama\.cpp's sources"):
        unpack(publish(tmp_path, {}), tmp_path / "src")


def test_only_the_sources_are_unpacked(tmp_path: Path) -> None:
    folder = unpack(publish(tmp_path, GOOD), tmp_path / "src")
    assert sorted(path.name for path in folder.iterdir()) == ["CMakeLists.txt", "main.cpp"]
    assert [path.name for path in (tmp_path / "src" / TOP).iterdir()] == ["thirdparty"]


# finding


def test_another_versions_program_and_another_processors_are_not_found(cache: Path) -> None:
    folder = cache / "runtime"
    folder.mkdir(parents=True)
    for name in (f"llama-server-{VERSION}-00000000", "llama-server-2020.1-00000000"):
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    assert find(cache) is None


# the real program, where it was built


@pytest.fixture
def real() -> Path:
    if program := find(user_cache_path("smallfirst", appauthor=False)):
        return program
    pytest.skip("llama.cpp was not built for this processor here (smallfirst models build)")


@contextlib.asynccontextmanager
async def running(model: Path, program: Path | None) -> AsyncIterator[tuple[EmbeddedServer, httpx2.AsyncClient]]:
    server = EmbeddedServer("small", model, context_tokens=2048, program=program)
    async with asyncio.timeout(PATIENCE_S):
        await server.start()
    # A connection for each request: one that is used again at once after a stream is sometimes closed by llama.cpp.
    headers = {"Authorization": f"Bearer {server.api_key}", "Connection": "close"}
    try:
        async with httpx2.AsyncClient(timeout=PATIENCE_S, trust_env=False, headers=headers) as client:
            yield server, client
    finally:
        await server.stop()


def shape(value: Any) -> Any:
    """What is there and of which type, without what it says."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in sorted(value.items())}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return "number" if isinstance(value, int | float) else type(value).__name__


async def test_built_program_is_the_same_on_the_wire_as_the_wheel(real: Path, small_weights: Path) -> None:
    body = {
        "messages": [{"role": "user", "content": "word " * 600}],
        "max_tokens": 4,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "logprobs": True,
        "top_logprobs": 2,
        "return_progress": True,
    }
    seen: list[dict[str, Any]] = []
    for program in (None, real):
        events: list[Any] = []
        answers: dict[str, Any] = {}
        async with running(small_weights, program) as (server, client):
            async with client.stream("POST", f"{server.base_url}/chat/completions", json=body) as stream:
                answers["type"] = stream.headers["Content-Type"]
                async for line in stream.aiter_lines():
                    if line.startswith("data: {"):
                        events.append(json.loads(line.removeprefix("data: ")))
            root = server.base_url.removesuffix("/v1")
            for path in ("/health", "/v1/models", "/slots", "/props", "/metrics", "/"):
                for key in ({}, {"Authorization": "Bearer wrong"}):
                    response = await client.get(f"{root}{path}", headers={"Origin": "https://elsewhere.example", **key})
                    answers[f"{path} {key}"] = (
                        response.status_code,
                        response.headers.get("Access-Control-Allow-Origin"),
                        response.headers.get("Access-Control-Allow-Credentials"),
                    )
            too_long = {"messages": [{"role": "user", "content": "word " * 4000}]}
            refused = await client.post(f"{server.base_url}/chat/completions", json=too_long)
            answers["too long"] = (refused.status_code, refused.json())
            answers["name"] = (await client.get(f"{server.base_url}/models")).json()["data"][0]["id"]
        progress = [event["prompt_progress"]["processed"] for event in events if "prompt_progress" in event]
        assert len(progress) >= 2, "it told how far it had read"
        seen.append({**answers, "events": [shape(event) for event in events], "progress": progress})
    assert seen[0] == seen[1]
    assert seen[1]["name"] == "small"


async def test_built_program_explains_a_broken_model_as_the_wheel_does(real: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"this is no model at all")
    server = EmbeddedServer("broken", broken, context_tokens=512, program=real)
    with pytest.raises(ModelUnreachable, match=r"cannot be started: invalid magic.*'this'.*Pull it again"):
        await server.start()
    assert server.pid is None


async def test_built_program_does_not_know_an_option_and_says_which(real: Path, tmp_path: Path) -> None:
    """How an older one would refuse one of ours."""
    newer = tmp_path / "llama-server"
    newer.write_text(f'#!/bin/sh\nexec {real} --from-tomorrow "$@"\n')
    newer.chmod(0o755)
    (tmp_path / "small.gguf").write_bytes(b"GGUF")
    server = EmbeddedServer("small", tmp_path / "small.gguf", context_tokens=512, program=newer)
    with pytest.raises(ModelUnreachable, match=r"it does not know the option --from-tomorrow, so it is too old"):
        await server.start()
