"""Two models asked the same: SmolLM2 against itself, and scripted servers for what no model does when it is told to."""

import asyncio
import html
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from rag.cli import main
from rag.errors import UserError
from rag.lab import compare, compare_view, prompts
from rag.lab.compare import forget
from rag.lab.comparison import LEGS, Model, Plan, Refinement, Report, Run, blended
from rag.lab.difference import differences, similarity
from rag.lab.prepared import prepare
from rag.models.backend import Backend
from rag.models.legs import Legs
from rag.settings import Settings
from rag.turn import cascade
from rag.turn.bill import Price
from rag.turn.prompt import REFINE
from rag.turn.session import Session

from .conftest import open_library
from .product import ROOT, ScriptedServer
from .scripted import ScriptedLegs
from .wire.servers import Reply, serving, wire

QUESTION = "Which fat is the frobnicator oiled with?"
SILENT = "Who won the football world cup in Uruguay?"
TOLD = "The frobnicator must be oiled every 17 days, and only with goose fat."


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "manual.md").write_text(TOLD)
    return folder


@pytest.fixture
def cache(small_weights: Path, tmp_path: Path) -> Path:
    """A cache folder of the test's own that holds SmolLM2."""
    folder = tmp_path / "cache"
    folder.mkdir()
    for name in (small_weights.name, f"{small_weights.name}.verified"):
        os.link(small_weights.with_name(name), folder / name)
    return folder


@pytest.fixture
def twice(cache: Path, docs: Path, settings: Settings) -> Settings:
    """SmolLM2 as both models."""
    own = {"docs": docs, "cache_dir": cache, "slm_model": "smollm2-135m", "llm_model": "smollm2-135m"}
    return settings.model_copy(update=own | {"slm_max_tokens": 12, "llm_max_tokens": 12, "slm_examples": False})


@pytest.fixture(scope="module")
def one_server() -> Iterator[ScriptedServer]:
    server = ScriptedServer()
    yield server
    server.close()


@pytest.fixture
def server(one_server: ScriptedServer) -> ScriptedServer:
    one_server.reset()
    return one_server


@pytest.fixture
def scripted(server: ScriptedServer, docs: Path, settings: Settings) -> Settings:
    """Two models of one scripted server."""
    own = {
        "docs": docs,
        "slm_model": "small",
        "llm_model": "large",
        "slm_base_url": server.url,
        "llm_base_url": server.url,
    }
    return settings.model_copy(update=own)


def a_run(leg: str, *, cold: bool = True, prompt: int = 0, text: str = "Words.", **more: Any) -> Run:
    known: dict[str, Any] = {
        "ttft_ms": 100.0, "total_ms": 1100.0, "read_ms": 100.0, "write_ms": 1000.0, "streamed": True, "input_tokens": 50,
        "output_tokens": 21, "cost": 0.5, "finish_reason": "stop", "model": leg,
    }  # fmt: skip
    return Run(prompt=prompt, leg=leg, cold=cold, text=text, **known | more)  # type: ignore[arg-type]


# With a real model


async def test_both_models_are_measured_on_the_same_messages(twice: Settings) -> None:
    report = Report(Plan((QUESTION, SILENT), repeat=1, refine=True))
    counted: list[tuple[str, int, int]] = []
    before = set(psutil.Process().children(recursive=True))
    await compare.run(report, twice, progress=lambda *told: counted.append(told))

    told = json.loads(json.dumps(report.to_dict()))
    assert told["complete"]
    assert (told["models"]["slm"]["name"], told["models"]["llm"]["name"]) == ("smollm2-135m", "smollm2-135m")
    assert counted[0] == ("Answers", 0, 10)
    assert counted[-1] == ("Answers", 10, 10)
    covered, silent = told["prompts"]
    assert TOLD in covered["messages"][-1]["content"]
    assert covered["passages"] == ["manual.md"]
    assert silent["silent"]
    assert silent["messages"] == [{"role": "user", "content": SILENT}]
    for asked in (covered, silent):
        # Two servers of one model count the same tokens in the same messages.
        assert asked["slm"]["input_tokens"] == asked["llm"]["input_tokens"] > 0
        for leg in LEGS:
            found = asked[leg]
            assert found["text"].strip()
            assert [run["cold"] for run in found["runs"]] == [True, False]
            assert 0 < found["cold_ttft_ms"] <= found["cold_total_ms"]
            assert found["prefill_tokens_per_s"] > 0
            assert found["runs"][1]["prefill_tokens_per_s"] is None
            assert 0 < found["output_tokens"] <= 12
            assert found["peak_memory_mb"] > 50
            assert found["cost"] == 0
            texts = {run.get("text", found["text"]) for run in found["runs"]}
            assert found["same_text"] == (len(texts) == 1)
        assert asked["ratios"]["input_tokens"] == 1
    metrics = told["metrics"]
    assert metrics["slm_load_s"] > 0
    assert metrics["ratio_cold_ttft_ms"] == pytest.approx(
        metrics["llm_cold_ttft_ms"] / metrics["slm_cold_ttft_ms"], abs=0.01
    )
    assert told["machine"]["cores"] > 0
    assert set(psutil.Process().children(recursive=True)) <= before

    # The documents hold nothing of the second prompt, so its turn asked nobody.
    refined, unasked = (asked["refinement"] for asked in told["prompts"])
    assert unasked["draft"] is unasked["refined"] is None
    assert "0%" in unasked["why_not"]
    assert refined["why_not"] is None
    assert refined["draft"]["text"].strip()
    assert refined["refined"]["text"].strip()
    assert refined["draft"]["ttft_ms"] <= refined["ttft_ms"] < refined["answer_ttft_ms"] <= refined["total_ms"]
    assert metrics["refine_total_ms"] == pytest.approx(refined["total_ms"], abs=0.1)


async def test_a_server_that_was_asked_something_else_holds_nothing_of_a_prompt(twice: Settings) -> None:
    """Not even of one that it has read before; and in the answers of a run nothing else makes a prompt cold."""
    legs = Legs(twice.model_copy(update={"prompt_cache_mb": 0}))
    messages = [{"role": "system", "content": "Answer in one word. " * 5}, {"role": "user", "content": QUESTION}]
    try:
        backend = await legs.slm.backend()
        assert isinstance(backend, Backend)

        async def cached() -> int:
            body = {"model": backend.model, "messages": messages, "max_tokens": 1}
            headers = {"Authorization": f"Bearer {legs.slm.key}"}
            async with httpx2.AsyncClient(trust_env=False, timeout=60, headers=headers) as client:
                answer = await client.post(f"{backend.base_url}/chat/completions", json=body)
            return int(answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"])

        await forget(backend)
        assert await cached() <= 3
        assert await cached() > 30
        await forget(backend)
        assert await cached() <= 3
    finally:
        await legs.close()


def test_the_command_ends_with_its_report_and_writes_a_page(cache: Path, docs: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    done = subprocess.run(
        [
            sys.executable, "-m", "rag.cli", "compare", "--slm", "smollm2-135m", "--llm", "smollm2-135m", "--repeat", "1",
            "--no-retrieve", "--docs", str(docs), "--json", "--page", str(page),
        ],
        cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120,
        env={**os.environ, "RAG_CACHE_DIR": str(cache), "RAG_LLM_MAX_TOKENS": "16", "COMPARE_PROMPT": "Say something."},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["prompts"][0]["messages"] == [{"role": "user", "content": "Say something."}]
    assert told["metrics"]["llm_output_tokens"] > 0
    written = page.read_text(encoding="utf-8")
    (raw,) = re.findall(r'<script id=data type="application/json">(.*?)</script>', written)
    assert json.loads(raw) == told
    assert "<svg" in written
    for leg in LEGS:
        words = re.sub(r"</?mark>", "", written)
        assert html.escape(told["prompts"][0][leg]["text"]) in words


def test_ctrl_c_keeps_what_was_measured_and_leaves_no_process(cache: Path, server: ScriptedServer) -> None:
    writing = threading.Event()

    def script(model: str, question: str) -> str | None:
        if question != QUESTION:
            return "x"
        writing.set()
        return None  # without end

    server.script = script
    process = subprocess.Popen(
        [sys.executable, "-m", "rag.cli", "compare", "--slm", "smollm2-135m", "--no-retrieve", "--repeat", "1", "--prompt", QUESTION, "--json"],
        cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "RAG_CACHE_DIR": str(cache), "RAG_LLM_MODEL": "large", "RAG_LLM_BASE_URL": server.url, "RAG_LLM_MAX_TOKENS": "16"},
    )  # fmt: skip
    try:
        assert writing.wait(60)
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130
    assert error.splitlines()[-1] == "smallfirst: stopped."
    told = json.loads(out.splitlines()[-1])
    assert not told["complete"]
    (asked,) = told["prompts"]
    assert len(asked["slm"]["runs"]) == 2
    assert asked["slm"]["text"].strip()
    assert asked["llm"]["runs"] == []
    assert children
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)


# With scripted servers


async def test_what_both_are_sent_is_fair_and_in_turn(server: ScriptedServer, scripted: Settings) -> None:
    asked: list[tuple[str, str]] = []

    def script(model: str, question: str) -> str:
        asked.append((model, question))
        return "One two three four five six seven eight."

    server.script = script
    report = Report(Plan(("First?", "Second?"), repeat=2, retrieve=False))
    await compare.run(report, scripted)

    def both(models: str, prompt: str) -> list[tuple[str, str]]:
        """Something else, so that the prompt is new; cold; warm."""
        return [(model, text) for model in models.split() for text in ("?", prompt, prompt)]

    assert asked == [
        ("small", "?"), ("large", "?"), *both("small large", "First?"), *both("large small", "First?"),
        *both("large small", "Second?"), *both("small large", "Second?"),
    ]  # fmt: skip
    assert not report.models["slm"].ours
    # This server counts no tokens, and it is on this machine but no process of ours.
    assert report.figures(0, "slm").keys() == {
        "cold_ttft_ms", "warm_ttft_ms", "cold_total_ms", "warm_total_ms", "cost",
    }  # fmt: skip
    assert report.metrics()["slm_same_text"] == 1


async def test_a_model_that_dies_midway_gives_one_line_and_keeps_what_was_measured(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chat = wire("openai")["chat"]["events"]
    broken = Reply([event for event in chat if not (event["choices"] and event["choices"][0]["finish_reason"])][:3], content_type="text/event-stream")  # fmt: skip
    replies: dict[str, Reply] = {}
    page = tmp_path / "report.html"
    async with serving("openai") as small, serving("openai", replies=replies) as large:
        environment = {
            "RAG_SLM_MODEL": "small-model", "RAG_SLM_BASE_URL": small.v1, "RAG_LLM_MODEL": "large-model",
            "RAG_LLM_BASE_URL": large.v1, "RAG_CACHE_DIR": str(tmp_path / "cache"),
        }  # fmt: skip
        for name, value in environment.items():
            monkeypatch.setenv(name, value)

        async def die() -> None:
            # After the one token that loads it, and the cold answer.
            while sum(one.method == "POST" for one in large.asked) < 3:
                await asyncio.sleep(0.001)
            replies["/v1/chat/completions"] = broken

        dying = asyncio.create_task(die())
        arguments = [
            "compare",
            "--no-retrieve",
            "--prompt",
            "Anything?",
            "--repeat",
            "3",
            "--json",
            "--page",
            str(page),
        ]
        status = await asyncio.to_thread(main, arguments)
        await dying
    assert status == 2
    out, error = capsys.readouterr()
    (line,) = [line for line in error.splitlines() if line.startswith("smallfirst:")]
    assert "large-model" in line
    told = json.loads(out.splitlines()[-1])
    assert not told["complete"]
    assert [run["cold"] for run in told["prompts"][0]["slm"]["runs"]] == [True, False]
    assert 1 <= len(told["prompts"][0]["llm"]["runs"]) <= 2
    assert told["metrics"]["slm_output_tokens"] > 0
    assert "The run broke off" in page.read_text(encoding="utf-8")


async def test_a_model_with_no_answer_to_one_prompt_is_noted_and_the_others_go_on(
    server: ScriptedServer, scripted: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    server.script = lambda model, question: (
        "" if (model, question) == ("small", "First?") else "[bold]<b>fine</b> :smile:"
    )
    report = Report(Plan(("First?", "Second?"), repeat=1, retrieve=False))
    await compare.run(report, scripted)
    assert report.complete
    assert [(one.prompt, one.leg) for one in report.failures] == [(0, "slm")]
    assert "empty answer" in report.to_dict()["prompts"][0]["slm"]["error"]
    # Averages are over what both have answered.
    assert report.averages()["llm"]["cold_ttft_ms"] == report.figures(1, "llm")["cold_ttft_ms"]
    # What a model writes is shown as it is.
    compare_view.show(report)
    shown = capsys.readouterr().out
    assert "[bold]<b>fine</b> :smile:" in shown
    assert "empty answer" in " ".join(shown.split())
    page = compare_view.html(report)
    assert "[bold]&lt;b&gt;fine&lt;/b&gt; :smile:" in page
    assert "<b>" not in page


async def test_without_documents_the_larger_model_refines_the_draft_of_the_same_prompt(
    server: ScriptedServer, scripted: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    server.script = lambda model, question: "A draft of eight words, as it is." if model == "small" else "A better one."
    report = Report(Plan((QUESTION,), repeat=1, retrieve=False, refine=True))
    await compare.run(report, scripted)
    (refinement,) = report.refinements
    assert refinement.draft is not None
    assert refinement.refined is not None
    assert refinement.refined.text.strip() == "A better one."
    asked = f"{QUESTION}\n\n{REFINE}\n{refinement.draft.text}"
    assert server.messages[-1] == [{"role": "user", "content": asked}]
    compare_view.show(report)
    assert "A better one." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("draft", "question", "why"),
    [
        ("I don't know.", "Which goose fat is the frobnicator quiet with?", "it found no answer"),
        ("", QUESTION, "empty answer"),
    ],
)
async def test_what_is_not_refined_says_why(
    draft: str, question: str, why: str, server: ScriptedServer, scripted: Settings
) -> None:
    alone = [{"role": "user", "content": "?"}]
    server.script = lambda model, _: draft if model == "small" and server.messages[-1][-1:] != alone else "Goose fat."
    report = Report(Plan((question,), repeat=1, refine=True))
    await compare.run(report, scripted)
    (refinement,) = report.refinements
    assert not refinement.whole
    assert why in refinement.why
    assert f"Nothing was refined: {html.escape(refinement.why)}" in compare_view.html(report)
    assert "refine_total_ms" not in report.metrics()


async def test_no_text_leaves_this_machine_unless_it_was_allowed(settings: Settings) -> None:
    """The tests' own guard would break a connection to elsewhere, and the error would be another."""
    elsewhere = settings.model_copy(update={"slm_base_url": "http://192.0.2.1:9/v1"})
    for remote, says in (("ask", "RAG_REMOTE=allow"), ("never", "may not leave this machine")):
        report = Report(Plan((QUESTION,), retrieve=False))
        with pytest.raises(UserError, match=says):
            await compare.run(report, elsewhere.model_copy(update={"remote": remote}))
        assert report.empty


# Prompts


async def test_the_prompt_is_the_turns_own(docs: Path, settings: Settings) -> None:
    library = open_library(docs, settings.cache_dir)
    try:
        built = await prepare(QUESTION, library, settings, context_tokens=4096, max_tokens=160)
        assert built is not None
        assert not built.checks
        legs = ScriptedLegs(llm=["Goose fat [1]."])
        asked = settings.model_copy(update={"check": False, "mode": "llm"})
        async for event in cascade.answer(QUESTION, session=Session(library, "llm"), legs=legs, settings=asked):
            if isinstance(event, cascade.Answered):
                assert event.turn.prompts["llm"].messages == built.messages == legs.llm.backend_.asked[0]
        assert await prepare(SILENT, library, settings, context_tokens=4096, max_tokens=160) is None
        with pytest.raises(UserError, match="too long"):
            await prepare("word " * 9000, library, settings, context_tokens=4096, max_tokens=160)
    finally:
        library.close()


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("a.txt", b"# ours\n\n One? \r\n[2] Two?\n", ("One?", "[2] Two?")),
        ("a.txt", b"\xef\xbb\xbf[not JSON\n", ("[not JSON",)),
        ("a.txt", b'["One?", "of two\\nlines"]', ("One?", "of two\nlines")),
        ("a.json", '["升級？"]'.encode(), ("升級？",)),
    ],
)
def test_a_file_of_prompts_has_one_a_line_or_is_a_list(
    name: str, content: bytes, found: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    assert prompts.read(tmp_path / name) == found


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("empty.txt", b"", "holds no prompt"),
        ("comments.txt", b"# nothing\n\n", "holds no prompt"),
        ("binary", b"\x89PNG\r\n\x1a\n\xff", "not text in UTF-8"),
        ("zeros", b"\0\0", "not text"),
        ("broken.json", b"[1", "is not JSON"),
        ("numbers.json", b"[1, 2]", "no list of texts"),
        ("blank.json", b'["", " "]', "holds no prompt"),
        ("half.json", b'["\\ud800"]', "not Unicode"),
        ("missing.txt", None, "cannot be read: No such file"),
    ],
)
def test_a_file_without_prompts_is_one_line(
    name: str, content: bytes | None, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    assert main(["compare", "--prompts", str(path)]) == 2
    out, error = capsys.readouterr()
    (line,) = error.splitlines()
    assert says in line
    assert name in line
    assert out == ""


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--prompt", " "], "--prompt holds no prompt"),
        (["--repeat", "0"], "--repeat is 0"),
        (["--slm", "gpt-5"], "gpt-5"),
        (["--docs", "/nowhere"], "No folder of documents at /nowhere"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAG_CACHE_DIR", str(tmp_path))
    assert main(["compare", *arguments]) == 2
    out, error = capsys.readouterr()
    (line,) = error.splitlines()
    assert says in line
    assert out == ""


def test_what_is_typed_goes_before_settings_and_these_before_ours(settings: Settings) -> None:
    named = settings.model_copy(update={"compare_prompt": "From settings?"})
    assert prompts.of("Typed?", named) == ("Typed?",)
    assert prompts.of(None, named) == ("From settings?",)
    assert prompts.of(None, settings) == (prompts.DEFAULT,)


# Figures


def test_the_blended_speed_lies_between_its_parts_and_the_longer_one_weighs_more() -> None:
    draft = a_run("slm", output_tokens=101, write_ms=1000.0)
    refined = a_run("llm", output_tokens=21, write_ms=2000.0)
    assert (draft.decode_tokens_per_s, refined.decode_tokens_per_s) == (100, 10)
    assert blended([draft, refined]) == 120 / 3
    assert blended([draft, a_run("llm", output_tokens=None)]) is None
    assert blended([draft, a_run("llm", streamed=False)]) is None
    assert blended([a_run("slm", output_tokens=2)]) is None
    assert blended([]) is None
    whole = Refinement(0, draft, refined, 100.0, 1200.0, 3100.0, None)
    assert (whole.output_tokens, whole.cost) == (122, 1.0)
    assert Refinement(0, draft, None, 100.0, None, 1100.0, None, "why").to_dict()["blended_tokens_per_s"] is None


def test_figures_are_medians_of_the_cold_and_of_the_warm_answers() -> None:
    report = Report(Plan(("A?",)))
    for cold_ms, warm_ms in ((100.0, 10.0), (80.0, 90.0), (900.0, 20.0)):
        report.runs += [a_run("slm", ttft_ms=cold_ms), a_run("slm", cold=False, ttft_ms=warm_ms, total_ms=500.0)]
    report.runs.append(a_run("llm", ttft_ms=300.0, total_ms=2000.0, cost=None))
    figures = report.figures(0, "slm")
    assert (figures["cold_ttft_ms"], figures["warm_ttft_ms"], figures["cold_total_ms"]) == (100, 20, 1100)
    assert figures["prefill_tokens_per_s"] == 500
    assert report.ratios(0)["cold_ttft_ms"] == 3
    assert "cost" not in report.ratios(0)
    assert "warm_ttft_ms" not in report.figures(0, "llm")
    assert report.same_text(0, "slm") is True
    assert report.same_text(0, "llm") is None


def test_the_result_is_told_in_words_made_of_the_figures() -> None:
    report = Report(Plan(("A?",)), complete=True)
    for leg in LEGS:
        report.models[leg] = Model(f"model-{leg}", "a script", "here", False, None, Price(0, 0))
    report.asked.append(compare.Asked("A?", []))
    assert compare_view.told(report) == "Nothing can be compared: not both models have answered."
    report.runs += [a_run("slm"), a_run("llm", ttft_ms=310.0, write_ms=4000.0)]
    assert compare_view.told(report) == (
        "The first token of model-slm came 3.1 times sooner than that of model-llm (100 ms against 310 ms), and it wrote 4.0"
        " times faster than the other (20.0 against 5.0 tokens/s)."
    )
    report.runs[1] = a_run("llm", ttft_ms=50.0, write_ms=1010.0)
    report.complete = False
    assert compare_view.told(report) == (
        "The first token of model-slm came 2.0 times later than that of model-llm (100 ms against 50 ms), and it wrote as"
        " fast as the other (20.0 against 19.8 tokens/s). The run broke off before its end."
    )


def test_words_that_the_other_lacks_are_marked() -> None:
    one, other = "The default is 1.2, says Lucene.", "the default is 0.75."
    first, second = differences(one, other)
    assert [one[start:end] for start, end in first] == ["1.2, says Lucene."]
    assert [other[start:end] for start, end in second] == ["0.75."]
    first, second = differences("小模型先答", "小模型後答")
    assert (first, second) == ([(3, 4)], [(3, 4)])
    assert differences("", "a b") == ([], [(0, 3)])
    assert similarity(one, one.upper()) == similarity("", "") == 1
    assert similarity(one, "nothing in common") == 0


async def test_a_prompt_that_is_too_long_for_a_turn_costs_only_itself(twice: Settings) -> None:
    report = Report(Plan(("word " * 9000, QUESTION), repeat=1, refine=True))
    counted: list[tuple[str, int, int]] = []
    await compare.run(report, twice, progress=lambda *told: counted.append(told))
    assert report.complete
    assert [(one.prompt, one.leg) for one in report.failures] == [(0, "slm"), (0, "llm")]
    assert "too long" in report.failures[0].error
    assert {run.prompt for run in report.runs} == {1}
    assert [one.prompt for one in report.refinements] == [1]
    assert counted[-1][1:] == (10, 10)
