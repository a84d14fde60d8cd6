"""The terminal door, as a person types it: a process of its own, its outputs and its exit status."""

import asyncio
import json
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from rag.cli import main
from rag.lab.labels import Labels

from .conftest import CORPUS
from .wire.servers import serving


def smallfirst(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """With the smallest model, which answers fast, unless another is named."""
    return subprocess.run(
        [sys.executable, "-m", "rag.cli", *arguments],
        env={**os.environ, "RAG_SLM_MODEL": "smollm2-135m", **environment}, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=180,
    )  # fmt: skip


def test_ask_with_json_ends_with_the_turn(small_weights: Path, tmp_path: Path) -> None:
    (tmp_path / "manual.md").write_text("The frobnicator must be oiled every 17 days.")
    done = smallfirst(
        "ask",
        "How often must the frobnicator be oiled?",
        "--attach",
        str(tmp_path / "manual.md"),
        "--mode",
        "slm",
        "--json",
    )
    assert done.returncode == 0, done.stderr
    turn = json.loads(done.stdout.splitlines()[-1])
    assert turn["mode"] == "slm"
    assert turn["citations"][0]["source"] == "manual.md"
    assert "17" in turn["answer"]
    assert {span["name"] for span in turn["trace"]["spans"]} >= {
        "retrieve",
        "prompt",
        "request",
        "first_token",
        "completion",
    }


def test_ask_prints_the_answer_its_sources_and_where_the_time_went(small_weights: Path, tmp_path: Path) -> None:
    (tmp_path / "manual.md").write_text("The frobnicator must be oiled every 17 days.")
    question = "How often must the frobnicator be oiled?"
    done = smallfirst("ask", question, "--attach", str(tmp_path / "manual.md"), "--mode", "slm")
    assert done.returncode == 0, done.stderr
    assert "manual.md" in done.stdout
    assert "first token" in done.stderr
    assert "smollm2-135m" in done.stderr


def test_ask_about_what_no_document_holds_says_so(small_weights: Path) -> None:
    done = smallfirst("ask", "Who won the football world cup in Uruguay?", "--json")
    turn = json.loads(done.stdout.splitlines()[-1])
    assert turn["model"] is None
    assert "not in your documents" in turn["answer"]


@pytest.mark.parametrize(
    ("arguments", "environment", "says"),
    [
        (("ask", "hi", "--docs", "/nowhere"), {}, "No folder of documents at /nowhere"),
        (("ask", "hi", "--attach", "/nowhere.md"), {}, "/nowhere.md cannot be read"),
        (("ask", "hi"), {"RAG_SLM_MODEL": "gpt-5"}, "gpt-5"),
        (("ask", "hi"), {"RAG_CONFIDENCE": "7"}, "RAG_CONFIDENCE"),
        (("ask", "hi", "--mode", "both"), {}, "--mode"),
        (("ask", "What is BM25?"), {"RAG_SLM_BASE_URL": "http://127.0.0.1:9/v1", "RAG_LLM_BASE_URL": "http://127.0.0.1:9/v1"}, "Neither model answered"),
        (("models", "pull", "gpt-5"), {}, "gpt-5"),
        (("chat", "--docs", "/nowhere"), {}, "/nowhere"),
        (("chat", "--port", "99999"), {}, "99999"),
        (("bench", "--rounds", "0"), {}, "--rounds"),
        ((), {}, "COMMAND"),
    ],
)  # fmt: skip
def test_a_mistake_is_status_2_and_one_line(arguments: tuple[str, ...], environment: dict[str, str], says: str) -> None:
    done = smallfirst(*arguments, **environment)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAG_CACHE_DIR", str(tmp_path / "cache"))


@pytest.mark.usefixtures("own_cache")
def test_index_tells_the_truth_about_each_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "good.md").write_text("Fine words.")
    (docs / "bad.pdf").write_bytes(b"not a pdf")
    assert main(["index", "--docs", str(docs), "--json"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {file["source"]: file["error"] is None for file in report["files"]} == {"good.md": True, "bad.pdf": False}
    assert report["opened"] == ["bad.pdf", "good.md"]
    assert (report["passages"], report["engine"]) == (1, "rank-bm25")
    assert main(["index", "--docs", str(docs)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("bad.pdf") or lines[0].startswith("not read: bad.pdf")
    assert "good.md: 11 characters, 1 passage (unchanged)" in lines
    assert "1 files, 1 passages" in lines[-1]


def test_evaluate_retrieval_ends_with_its_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "squad.json"
    asked = {"id": "1", "question": "Where do zebras drink?", "answers": [{"text": "Mara"}]}
    path.write_text(json.dumps({"data": [{"paragraphs": [{"context": "Zebras drink at the Mara.", "qas": [asked]}]}]}))
    assert main(["evaluate", "retrieval", "--dataset", str(path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["metrics"]["recall@1"] == 1
    assert main(["evaluate", "retrieval", "--dataset", str(path)]) == 0
    assert "recall@1" in capsys.readouterr().out
    assert main(["evaluate", "retrieval", "--dataset", str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_labels_are_shown_and_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAG_CACHE_DIR", str(tmp_path))
    assert main(["labels"]) == 0
    assert "Nothing was said of an answer yet" in capsys.readouterr().err
    turn = {
        "question": "How large may a file be?", "answer": "10 MB.", "mode": "slm", "escalated": False, "refused": False,
        "verdict": {"score": 0.71}, "drafts": [{"leg": "slm", "model": "small"}],
    }  # fmt: skip
    with closing(Labels(tmp_path / "labels.sqlite")) as labels:
        labels.add("a", turn, "good")
        labels.add("a", turn, "asked_larger")
    assert main(["labels", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["labels"]
    assert [row["kind"] for row in rows] == ["good", "asked_larger"]
    assert main(["labels"]) == 0
    table = capsys.readouterr().out
    assert "asked larger" in " ".join(table.split())
    assert "0.71" in table
    assert main(["labels", "--clear"]) == 0
    assert "Deleting 2 labels" in capsys.readouterr().err
    assert main(["labels", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"labels": []}


@pytest.mark.usefixtures("own_cache")
def test_search_finds_without_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", "k1 saturation", "--docs", str(CORPUS), "--top-k", "2", "--json"]) == 0
    hits = json.loads(capsys.readouterr().out.splitlines()[-1])["hits"]
    assert len(hits) == 2
    assert hits[0]["source"] == "bm25.md"
    assert main(["search", "k1 saturation", "--docs", str(CORPUS)]) == 0
    assert "bm25.md" in capsys.readouterr().out


def test_models_list_names_all_three(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["models"]
    assert [row["name"] for row in rows] == ["smollm2-135m", "qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b"]


async def test_a_server_is_probed_once_and_listed_with_what_was_seen(tmp_path: Path) -> None:
    async with serving("llama.cpp") as address:
        named = {"RAG_CACHE_DIR": str(tmp_path), "RAG_SLM_BASE_URL": address.v1}
        probed = await asyncio.to_thread(smallfirst, "models", "probe", address, "--json", **named)
        assert probed.returncode == 0, probed.stderr
        seen = json.loads(probed.stdout.splitlines()[-1])
        (model,) = seen["capabilities"]
        assert seen["capabilities"][model]["logprobs"] is True
        listed = await asyncio.to_thread(smallfirst, "models", "list", "--json", **named)
        (server,) = json.loads(listed.stdout.splitlines()[-1])["servers"]
        assert (server["kind"], server["models"][0]["id"]) == ("llama.cpp", model)
        assert server["models"][0]["capabilities"] == seen["capabilities"][model]


def test_a_server_that_is_not_there_cannot_be_probed() -> None:
    done = smallfirst("models", "probe", "http://127.0.0.1:9")
    assert done.returncode == 2
    assert "127.0.0.1:9" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_the_doctor_says_whether_the_chat_could_work(tmp_path: Path) -> None:
    kept = {"RAG_CACHE_DIR": str(tmp_path / "cache"), "RAG_DATA_DIR": str(tmp_path / "data")}
    well = smallfirst("doctor", "--json", "--port", "8123", **kept)
    told = json.loads(well.stdout.splitlines()[-1])
    assert (well.returncode, told["ok"]) == (0, True), told
    ill = smallfirst("doctor", "--json", **kept, RAG_SLM_BASE_URL="http://127.0.0.1:9/v1")
    told = json.loads(ill.stdout.splitlines()[-1])
    assert (ill.returncode, told["ok"]) == (1, False)
    assert any(check["status"] == "bad" and check["mend"] for check in told["checks"])
