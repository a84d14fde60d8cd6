"""`smallfirst serve`: the API alone, as a process, with real models."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import openai
import psutil
import pytest

from .product import ROOT, api, free_port


def test_it_imports_nothing_of_the_chat() -> None:
    program = (
        "import sys, rag.serve.server; print([name for name in sys.modules if name.partition('.')[0] == 'chainlit'])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="there is no Ctrl-C to send to a process of its own")
def test_it_answers_from_the_documents_and_ctrl_c_ends_it_and_its_models(tmp_path: Path, small_weights: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "manual.md").write_text("The frobnicator must be oiled every 17 days.")
    log = tmp_path / "log"
    models = {"RAG_SLM_MODEL": "smollm2-135m", "RAG_LLM_MODEL": "smollm2-135m"}
    with api(free_port(), log, "--docs", str(docs), **models) as (url, process):
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            answer = client.chat.completions.create(
                model="smallfirst-slm",
                messages=[{"role": "user", "content": "What must be oiled every 17 days?"}],
            )
        turn = answer.model_dump()["smallfirst"]
        assert answer.choices[0].message.content
        assert turn["hits"][0]["source"] == "manual.md"
        assert turn["model"] == "smollm2-135m"
        assert answer.usage is not None
        assert answer.usage.completion_tokens > 0
        models_ = [child for child in psutil.Process(process.pid).children(recursive=True) if child.is_running()]
        assert models_
        process.send_signal(signal.SIGINT)
        process.wait(30)
        psutil.wait_procs(models_, timeout=20)
        assert [child for child in models_ if child.is_running() and child.status() != psutil.STATUS_ZOMBIE] == []
    said = log.read_text()
    assert f"API at {url}/v1" in said
    assert "1 documents, 1 passages" in said
    assert "Traceback" not in said


def test_what_cannot_be_served_is_told_in_one_line(tmp_path: Path) -> None:
    for arguments, said in (
        (["--host", "0.0.0.0"], "Set RAG_API_KEYS"),
        (["--port", "70000"], "no port 70000"),
        (["--docs", str(tmp_path / "none")], "No folder of documents"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "rag.cli", "serve", "--port", str(free_port()), *arguments],
            cwd=ROOT, env={**os.environ, "RAG_DATA_DIR": str(tmp_path)}, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 2
        assert said in done.stderr
        assert len(done.stderr.splitlines()) == 1, done.stderr
