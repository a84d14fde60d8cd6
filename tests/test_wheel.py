"""The wheel is whole: installed elsewhere, it starts without the checkout."""

import os
import socket
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import httpx2
import pytest

from rag.words import LANGUAGES

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), "."],
        cwd=ROOT, check=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    return next(folder.glob("smallfirst-*.whl"))


def test_everything_the_chat_needs_travels_inside(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for needed in ("app.py", "chainlit.md", ".chainlit/config.toml", "public/elements/Receipt.jsx", "public/status.js"):
        assert f"rag/bundle/{needed}" in names
    documents = {path.name for path in (ROOT / "docs_corpus").iterdir()}
    assert {f"rag/bundle/docs_corpus/{name}" for name in documents} <= names
    assert not [name for name in names if name.startswith("tests/")]
    tags = {language for language in LANGUAGES if language != "en"}
    assert {f"rag/bundle/chainlit_{tag}.md" for tag in tags} <= names
    files = {name.rpartition("/")[2] for name in names if "translations" in name}
    assert files == {f"{tag}.json" for tag in (*tags, "en-US")}, "only our own; Chainlit brings the others"
    assert {f"rag/words/{tag}/page.json" for tag in (*tags, "en")} <= names
    assert {"rag/lab/prices.json", "rag/lab/questions.json"} <= names
    ondevice = Path("rag", "serve", "ondevice")
    shipped = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / ondevice).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert (ondevice / "vendor" / "3.8.1" / "wllama.wasm").as_posix() in shipped
    assert shipped <= names


def test_it_answers_from_an_empty_folder(wheel: Path, small_weights: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    # -P and PYTHONPATH: this package from the wheel, everything else from this environment.
    done = subprocess.run(
        [sys.executable, "-P", "-m", "rag.cli", "ask", "What does the name ONNX stand for?", "--mode", "slm"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(site)}, stdin=subprocess.DEVNULL, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "onnx-runtime.md" in done.stdout


def test_it_chats_over_a_folder_of_ones_own(wheel: Path, small_weights: Path, tmp_path: Path) -> None:
    site, docs = tmp_path / "site", tmp_path / "docs"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    docs.mkdir()
    (docs / "manual.md").write_text("The frobnicator must be oiled every 17 days.")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {"PYTHONPATH": str(site), "XDG_STATE_HOME": str(tmp_path / "state")}
    environment |= {"RAG_SLM_MODEL": "smollm2-135m", "RAG_LLM_MODEL": "smollm2-135m"}
    chat = subprocess.Popen(
        [sys.executable, "-P", "-m", "rag.cli", "chat", "--docs", str(docs), "--no-open", "--port", str(port)],
        cwd=tmp_path, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while True:
            assert chat.poll() is None, chat.stderr and chat.stderr.read()
            assert time.monotonic() < deadline
            try:
                status = httpx2.get(f"http://127.0.0.1:{port}/status", trust_env=False).json()
            except httpx2.TransportError:
                status = {}
            if status and status["documents"]["files"] and not status["documents"]["reading"]:
                break
            time.sleep(0.1)
        assert status["documents"] == {"files": 1, "passages": 1, "reading": None}
        page = httpx2.get(f"http://127.0.0.1:{port}/project/settings?language=en-US", trust_env=False).json()
        assert page["starters"] == [], "the shipped questions are about the shipped documents"
        for path, says in {"/": "Small First", "/public/status.js": "model-status"}.items():
            assert says in httpx2.get(f"http://127.0.0.1:{port}{path}", trust_env=False).text
    finally:
        chat.terminate()
        chat.wait(20)
    assert [path for path in site.rglob(".files")] == [], "nothing is written into the package"
