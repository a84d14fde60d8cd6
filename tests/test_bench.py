"""How fast models are: the real SmolLM2 in a short sweep, servers of others, and runs that end too soon."""

import asyncio
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from rag.cli import main
from rag.energy import UNKNOWN
from rag.errors import ModelBroke, ModelError, RagError, UserError
from rag.lab import bench, bench_view, runtimes, sweep
from rag.lab.runtimes import Runner, Running
from rag.lab.speed import Timed
from rag.lab.sweep import AtConcurrency, AtLength, Measured, Plan, Report
from rag.models import weights
from rag.resources import Used
from rag.settings import Settings

from .conftest import until
from .product import ScriptedServer
from .scripted import Reply, ScriptedBackend
from .wire.servers import Reply as Recorded
from .wire.servers import serving, wire

VLLM = "Qwen/Qwen2.5-0.5B-Instruct"


def quiet(*_: Any) -> None:
    """Nobody watches."""


@pytest.fixture
def real(small_weights: Path) -> Settings:
    """SmolLM2 with a small window."""
    return Settings(_env_file=None, cache_dir=small_weights.parent, context_tokens=512)  # type: ignore[call-arg]


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    started = ScriptedServer()
    started.script = lambda model, question: "one two three four"
    yield started
    started.close()


def at(server: ScriptedServer, settings: Settings, *, of: str = "slm") -> Settings:
    return settings.model_copy(update={f"{of}_base_url": server.url, f"{of}_model": f"scripted-{of}"})


# The real model


async def test_a_sweep_of_a_real_model_tells_everything(real: Settings) -> None:
    report = Report(Plan(1, lengths=(1024,), concurrency=(2,)))
    told: list[str] = []
    await bench.run(report, real, models=["smollm2-135m"], progress=lambda what, *_: told.append(what))
    (one,) = report.models
    assert (one.title, one.context_tokens) == ("smollm2-135m on llama.cpp, as installed", 512)
    assert (one.load_s or 0) > 0
    assert one.threads
    assert {"smollm2-135m: loading", "smollm2-135m: warming up", "smollm2-135m: 2 at once"} <= set(told)
    # What does not fit is asked as long as it fits, and that is said.
    (row,) = one.lengths
    assert row.label == "pp432"
    assert any("window of 512 tokens" in note for note in one.notes)
    assert row.input_tokens is not None
    assert row.input_tokens.p50 == pytest.approx(432, rel=0.03)
    assert row.prefill_tokens_per_s is not None
    assert row.decode_tokens_per_s is not None
    assert row.inter_token_ms is not None
    assert row.prefill_tokens_per_s.p50 > row.decode_tokens_per_s.p50 > 0
    assert (row.cpu_s or 0) > 0
    assert (row.used.peak_memory_mb or 0) > 90, "the weights alone have 98 MB"
    (both,) = one.concurrency
    assert (both.requests, both.failures) == (2, ())
    assert both.queue_ms is not None
    assert both.compute_ms is not None
    # One of them waits at least until the other's first token.
    assert max(both.queue_ms.values) > min(both.compute_ms.values) > min(both.queue_ms.values)
    saved = report.to_dict()
    assert saved["metrics"]["smollm2-135m on llama.cpp, as installed, pp432, prefill_tokens_per_s_mean"] > 0
    assert saved["metrics"]["smollm2-135m on llama.cpp, as installed, 2 at once, queue_ms_p95"] > 0
    assert saved["backends"][0]["model"] == "smollm2-135m"
    assert saved["machine"]["cores"] > 0
    assert saved["complete"]


async def test_a_model_that_dies_midway_leaves_what_was_measured(real: Settings) -> None:
    report = Report(Plan(1, prompt="Tell a long story.", lengths=(), concurrency=(16,)))
    before = set(psutil.Process().children(recursive=True))
    running = asyncio.create_task(bench.run(report, real, models=["smollm2-135m"], progress=quiet))
    await until(lambda: bool(report.models and report.models[0].lengths) or running.done())
    for child in set(psutil.Process().children(recursive=True)) - before:
        with suppress(psutil.Error):
            if "rag.models.runtime" in child.cmdline():
                child.kill()
    with pytest.raises(ModelError):
        await running
    assert [row.label for row in report.models[0].lengths] == ["prompt"]
    assert report.failures[0].startswith("smollm2-135m, llama.cpp")
    assert not report.complete


# Servers of others


async def test_a_server_of_others_gets_all_requests_at_once(settings: Settings) -> None:
    chat = wire("vllm")["chat"]
    events = [*(event | {"model": VLLM} for event in chat["events"]), "[DONE]"]
    slow = Recorded(events, content_type="text/event-stream", delay_s=0.2)
    async with serving("vllm", replies={"/v1/chat/completions": slow}) as address:
        named = settings.model_copy(update={"slm_base_url": address.v1})
        report = Report(Plan(1, prompt="Say yes.", lengths=(), concurrency=(8,)))
        await bench.run(report, named, models=["Qwen2.5-0.5B-Instruct"], progress=quiet)
        prompts = [asked.body["messages"] for asked in address.asked if asked.method == "POST"]
    (one,) = report.models
    assert (one.model, one.runtime) == (VLLM, f"vLLM at {address.v1}")
    (row,) = one.concurrency
    assert (row.requests, len(row.timed), row.failures) == (8, 8, ())
    # One after the other they would take as long as all of them together.
    assert row.wall_s < sum(timed.total_ms for timed in row.timed) / 1000 / 2
    assert row.to_dict(queued=one.queued)["queue_ms"] is None
    assert (one.load_s, row.cpu_s) == (None, None)
    # Each has something in front that no other has, and the same behind.
    assert len({messages[0]["content"] for messages in prompts}) == len(prompts)
    assert {messages[1]["content"] for messages in prompts} == {"Say yes."}


async def test_without_streaming_only_whole_requests_are_timed(settings: Settings) -> None:
    report = Report(Plan(2, prompt="Name a colour.", lengths=(), concurrency=(), stream=False))
    async with serving("openai") as address:
        named = settings.model_copy(update={"slm_base_url": address.v1})
        await bench.run(report, named, survey="servers", models=["small-model"], progress=quiet)
        assert not any(asked.body["stream"] for asked in address.asked if asked.method == "POST")
    (row,) = report.models[0].lengths
    assert (row.label, row.rounds, row.first_token_ms, row.prefill_tokens_per_s) == ("prompt", 2, None, None)
    assert row.total_ms is not None
    assert row.input_tokens is not None
    assert any("BENCH_STREAM=0" in note for note in report.models[0].notes)
    assert "first_token" not in " ".join(report.to_dict()["metrics"])


async def test_what_a_server_refuses_under_load_is_counted(settings: Settings) -> None:
    broke = ModelBroke("It closed the connection.")
    backend = ScriptedBackend("slm", ["one two", Reply("one", error=broke), "one two", "one two three"])
    measured = Measured("scripted", "a script", "here", None, queued=False)
    work = bench._Bench(
        Plan(1, prompt="?", lengths=(), concurrency=(4,)),
        settings,
        Running("scripted", "a script", "here", backend, None, lambda: None, queued=False),  # type: ignore[arg-type]
        measured,
        quiet,
    )
    await work._at_once(4)
    (row,) = measured.concurrency
    assert (row.requests, len(row.failures)) == (4, 1)
    assert "Failed from 4 at once on: It closed the connection." in bench_view._refusals(measured)
    backend.replies = [Reply("", error=broke)] * 2
    with pytest.raises(ModelBroke):
        await work._at_once(2)
    assert measured.concurrency == [row]


async def test_the_other_model_is_measured_when_one_is_gone(
    settings: Settings, server: ScriptedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    mortal = ScriptedServer()

    def script(model: str, question: str) -> str:
        if len(mortal.messages) == 3:
            mortal.close()
        return "five six seven"

    mortal.script = script
    report = Report(Plan(5, prompt="Count.", lengths=(), concurrency=()))
    with pytest.raises(RagError, match="No model at scripted-slm"):
        await bench.run(report, at(mortal, at(server, settings, of="llm")), progress=quiet)
    small, large = report.models
    assert (small.lengths[0].rounds, large.lengths[0].rounds) == (2, 5), "the warm-up is not counted"
    assert large.lengths[0].first_token_ms is not None
    assert large.lengths[0].prefill_tokens_per_s is None, "it does not count its tokens"
    bench_view.show(report)
    shown = capsys.readouterr()
    assert "scripted-slm" in shown.out
    assert "No model at scripted-slm" in shown.err


def test_ctrl_c_keeps_what_was_measured(settings: Settings, server: ScriptedServer, tmp_path: Path) -> None:
    environment = {"RAG_SLM_BASE_URL": server.url, "RAG_SLM_MODEL": "scripted", "BENCH_MODELS": "scripted"}
    page = tmp_path / "bench.html"
    command = [
        "bench",
        "--prompt",
        "Count.",
        "--concurrency",
        "none",
        "--rounds",
        "1000",
        "--json",
        "--page",
        str(page),
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "rag.cli", *command], env={**os.environ, **environment}, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    asked = 0

    def script(model: str, question: str) -> str | None:
        nonlocal asked
        asked += 1
        if asked == 4:
            process.send_signal(signal.SIGINT)
            return None
        return "one two three four"

    server.script = script
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err.splitlines()[-1] == "smallfirst: stopped."
    saved = json.loads(out.splitlines()[-1])
    assert not saved["complete"]
    (row,) = saved["models"][0]["by_length"]
    assert row["rounds"] == 2
    assert row["first_token_ms"]["n"] == 2
    assert '"rounds": 2' in page.read_text()
    assert "broken off" in page.read_text()


# What is asked for


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--models", "gpt-5"), "gpt-5"),
        (("--models", " , "), "--models names no model"),
        (("--rounds", "0"), "--rounds is 0"),
        (("--lengths", "64,many"), "--lengths is '64,many'"),
        (("--lengths", "0"), "--lengths is '0'"),
        (("--concurrency", "2000"), "from 1 to 1,024"),
        (("--lengths", "none", "--concurrency", "none"), "left to measure"),
        (("--prompt", " "), "--prompt is empty"),
        (("--prompt", "Hi.", "--lengths", "64"), "--lengths"),
        (("--turns", "--rounds", "0"), "--rounds is 0"),
        (("--turns", "--models", "x"), "--turns measures the product"),
        (("--backend", "native"), "nothing to measure for native"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: tuple[str, ...],
    says: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("RAG_CACHE_DIR", str(tmp_path))
    assert main(["bench", *arguments]) == 2
    shown = capsys.readouterr()
    (line,) = shown.err.splitlines()
    assert line.startswith("smallfirst: ")
    assert says in line
    assert shown.out == ""


def test_long_prompts_are_asked_less_often(settings: Settings) -> None:
    plan = Plan.of(settings, lengths="4096,64, 64")
    assert (plan.rounds, plan.lengths, plan.concurrency) == (5, (64, 4096), sweep.CONCURRENCY)
    assert [plan.rounds_of(tokens) for tokens in (64, 1024, 2048, 4096)] == [5, 5, 3, 2]
    assert [replace(plan, rounds=rounds).rounds_of(4096) for rounds in (1, 2, 20)] == [1, 2, 5]
    asked = settings.model_copy(update={"bench_prompt": "Hello?", "bench_rounds": 3, "bench_stream": False})
    plan = Plan.of(asked, concurrency="none")
    assert plan == Plan(3, lengths=(), concurrency=(), prompt="Hello?", stream=False)
    assert Plan.of(settings, survey=True) == Plan(5, lengths=sweep.SURVEY_LENGTHS, concurrency=())


async def test_a_name_is_looked_for_on_the_servers_that_were_named_and_here(
    settings: Settings, small_weights: Path
) -> None:
    here = settings.model_copy(update={"cache_dir": small_weights.parent})
    async with serving("vllm") as address, serving("ollama") as other:
        named = here.model_copy(update={"slm_base_url": address.v1, "llm_base_url": other.v1})
        (theirs,) = await runtimes.named(["Qwen2.5-0.5B-Instruct"], named)
        (ours,) = await runtimes.named(["smollm2-135m"], named)
        with pytest.raises(RagError, match=r"(?s)No model 'gpt-5'.*Qwen2.5-0.5B-Instruct"):
            await runtimes.named(["gpt-5"], named)
    assert (theirs.model, theirs.runtime) == (VLLM, "vLLM")
    assert (ours.model, ours.runtime) == ("smollm2-135m", "llama.cpp")
    twice = here.model_copy(update={"slm_model": "smollm2-135m", "llm_model": "smollm2-135m"})
    assert len(await runtimes.named([], twice)) == 1
    absent = settings.model_copy(update={"slm_model": "smollm2-135m"})
    with pytest.raises(UserError, match="smallfirst models pull"):
        await runtimes.named([], absent)
    away = settings.model_copy(update={"slm_base_url": "http://192.0.2.1:8000/v1"})
    with pytest.raises(UserError, match="RAG_REMOTE=allow"):
        await runtimes.named([], away)


async def test_of_the_runtimes_here_only_the_models_that_were_named(settings: Settings, small_weights: Path) -> None:
    settings.cache_dir.mkdir(parents=True)
    for name in (small_weights.name, f"{small_weights.name}.verified"):
        os.link(small_weights.with_name(name), settings.cache_dir / name)
    assert weights.installed(weights.find("smollm2-135m"), settings.cache_dir)
    (runner,) = await runtimes.everywhere(settings, ["embedded"], ["smollm2-135m"])
    assert (runner.model, runner.runtime) == ("smollm2-135m", "llama.cpp, as installed")
    with pytest.raises(UserError, match="there is smollm2-135m"):
        await runtimes.everywhere(settings, ["embedded"], ["gpt-5"])
    async with serving("llama.cpp") as address:
        named = settings.model_copy(update={"slm_base_url": address.v1})
        found: list[Runner] = await runtimes.everywhere(named, ["embedded", "servers"])
    assert [runner.runtime for runner in found] == ["llama.cpp, as installed", f"llama.cpp at {address.v1}"]


def test_a_llama_server_tells_its_devices(tmp_path: Path) -> None:
    program = tmp_path / "llama-server"
    program.write_text(
        "#!/bin/sh\necho 'ggml_cuda_init: found 1 CUDA devices'\necho 'Available devices:'\n"
        "echo '  CUDA0: NVIDIA GeForce RTX 4070 (12282 MiB, 11000 MiB free)'\n"
    )
    program.chmod(program.stat().st_mode | stat.S_IEXEC)
    assert runtimes.devices(program) == ("CUDA0: NVIDIA GeForce RTX 4070",)
    program.write_text("#!/bin/sh\necho 'Available devices:'\necho '  (none)'\n")
    assert runtimes.devices(program) == ()
    assert runtimes.devices(tmp_path / "nothing") == ()


# The report


def a_report() -> Report:
    """Of figures that were made up."""
    used = Used(6.0, 300.0, None, None, UNKNOWN)
    one = Measured("small", "llama.cpp", "on this machine", 4096, queued=True, load_s=0.5, threads=2)
    for tokens in (64, 256):
        quick, slow = (
            Timed(0, ms, ms + 470, (10.0,) * 46 + (20.0,), input_tokens=tokens, output_tokens=48, writing_ms=470)
            for ms in (tokens * 5.0, tokens * 10.0)
        )
        one.lengths.append(AtLength(f"pp{tokens}", (quick, slow), used))
    for many in (1, 2):
        timed = tuple(Timed(100.0 * n, 50, 150, (), 128, 10, 90) for n in range(many))
        one.concurrency.append(AtConcurrency(many, timed, (), 0.5, used))
    return Report(Plan(2, lengths=(64, 256), concurrency=(1, 2)), [one])


def test_figures_are_what_can_be_computed_by_hand() -> None:
    report = a_report()
    metrics = {name.removeprefix("small on llama.cpp, "): value for name, value in report.to_dict()["metrics"].items()}
    # 64 tokens in 320 and in 640 ms: 200 and 100 tokens/s.
    assert (metrics["pp64, prefill_tokens_per_s_mean"], metrics["pp64, prefill_tokens_per_s_sd"]) == (150, 70.711)
    assert (metrics["pp64, first_token_ms_p50"], metrics["pp64, first_token_ms_p95"]) == (480, 624)
    assert (metrics["pp64, inter_token_ms_p50"], metrics["pp64, decode_tokens_per_s_mean"]) == (10, 100)
    assert metrics["pp64, cpu_s"] == 3, "of one of two requests"
    # Two at once wrote 20 tokens in half a second; the second waited 100 ms for its turn.
    assert metrics["2 at once, tokens_per_s"] == 40
    assert (metrics["2 at once, queue_ms_p50"], metrics["2 at once, compute_ms_p50"]) == (50, 50)
    assert (metrics["2 at once, first_token_ms_p50"], metrics["2 at once, total_ms_p50"]) == (100, 200)
    assert metrics["peak_memory_mb"] == 300
    (line,) = report.to_dict()["backends"]
    assert (line["input_tokens"], line["prefill_tokens_per_s"], line["decode_tokens_per_s"]) == (256, 150.0, 100.0)


def test_the_page_and_the_table_call_things_as_llama_bench_does(capsys: pytest.CaptureFixture[str]) -> None:
    report = a_report()
    report.models[0].notes.append("<script>alert(1)</script>")
    bench_view.show(report)
    shown = capsys.readouterr().out
    for said in ("pp64", "tg48 @ d256", "150.00 ± 70.71", "480 / 624 ms", "in queue"):
        assert said in shown
    html = bench_view.html(report)
    for said in ("pp64", "tg48 @ d256", "llama-bench", "TTFT", "The queue is ours", "in our queue, ms", "<svg"):
        assert said in html
    assert "<script>alert" not in html
