"""Measuring what suits this machine: real processes; most of them stand-ins whose speed a test decides.

The last tests measure the real small model.
"""

import asyncio
import importlib.metadata
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from rag.errors import ModelUnreachable
from rag.models import processor, tuning
from rag.models.runtime import BATCH_TOKENS
from rag.models.tuning import BATCHES, FILE, Tuned, load, thread_counts
from rag.settings import Settings
from tests.conftest import until

PATIENCE_S = 120
DEFAULT = processor.physical_cores()
posix_only = pytest.mark.skipif(os.name != "posix", reason="the stand-in is a script")
STAND_IN = """#!PYTHON -IS
import http.server, json, sys, time

given = dict(zip(sys.argv[1:], sys.argv[2:]))
asked = 0
threads, batch = int(given["--threads"]), int(given["--ubatch-size"])

class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        self.answer({})

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        global asked
        asked += 1
        seconds = SECONDS
        time.sleep(REALLY)
        # Read as fast as written: a turn's time is the same share of both.
        self.answer({"timings": {"prompt_n": 400, "prompt_ms": 500 * seconds,
                                 "predicted_n": 40, "predicted_ms": 500 * seconds}})

    def answer(self, known):
        body = json.dumps(known).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

http.server.HTTPServer((given["--host"], int(given["--port"])), Handler).serve_forever()
"""


def stand_in(path: Path, seconds: str, *, really: str = "0") -> Path:
    """A llama-server that says of a typical turn that it takes `seconds`, an expression that may use `threads` and
    `batch`. It answers after `really`, which may also use `asked`, the number of the request."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(STAND_IN.replace("PYTHON", sys.executable).replace("SECONDS", seconds).replace("REALLY", really))
    path.chmod(0o755)
    return path


def built(settings: Settings) -> Path:
    """Where a program that was built for this processor lies."""
    version = importlib.metadata.version("xllamacpp")
    return settings.cache_dir / "runtime" / f"llama-server-{version}-{processor.key()}"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A file that stand-ins do not read."""
    path = tmp_path / "small.gguf"
    path.write_bytes(b"GGUF")
    return path


def with_program(settings: Settings, seconds: str, *, really: str = "0", **more: Any) -> Settings:
    program = stand_in(settings.cache_dir / "mine", seconds, really=really)
    return settings.model_copy(update={"llama_server": program, **more})


async def tune(model_path: Path, settings: Settings, budget_s: float = PATIENCE_S) -> Tuned:
    """However busy this machine is: other tests may run on it."""
    return await tuning.tune("small", model_path, settings, budget_s=budget_s, disturbing_cores=math.inf)


def children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children(recursive=True) if "--ctx-size" in child.cmdline()]


# what is chosen


@posix_only
async def test_faster_batch_is_chosen_and_remembered(settings: Settings, weights: Path) -> None:
    chosen = with_program(settings, "2.0 if batch == 512 else 3.0")
    tuned = await tune(weights, chosen)
    assert (tuned.threads, tuned.batch_tokens, tuned.program) == (DEFAULT, 512, chosen.llama_server)
    assert [figure["turn_ms"] for figure in tuned.figures if figure["batch_tokens"] == 512] == [2000]
    assert load(settings.cache_dir, weights, llama_server=chosen.llama_server) == tuned
    assert children() == []


@posix_only
async def test_what_is_better_only_by_chance_is_not_chosen(settings: Settings, weights: Path) -> None:
    tuned = await tune(weights, with_program(settings, f"3.0 if (threads, batch) == ({DEFAULT}, 256) else 2.9"))
    assert (tuned.threads, tuned.batch_tokens) == (DEFAULT, BATCH_TOKENS)
    assert len(tuned.figures) > 1


@posix_only
@pytest.mark.skipif(len(thread_counts()) < 2, reason="this machine has one core")
async def test_faster_number_of_threads_is_chosen_and_kept_for_the_batches(settings: Settings, weights: Path) -> None:
    other = thread_counts()[-1]
    tuned = await tune(weights, with_program(settings, f"1.0 if threads == {other} else 2.0"))
    assert (tuned.threads, tuned.batch_tokens) == (other, BATCH_TOKENS)
    assert [figure["threads"] for figure in tuned.figures[-2:]] == [other, other]


@posix_only
async def test_threads_that_the_user_set_are_kept(settings: Settings, weights: Path) -> None:
    chosen = with_program(settings, "1.0 / threads", threads=3)
    tuned = await tune(weights, chosen)
    assert {figure["threads"] for figure in tuned.figures} == {tuned.threads} == {3}
    assert load(settings.cache_dir, weights, llama_server=chosen.llama_server, threads=3) == tuned
    assert load(settings.cache_dir, weights, llama_server=chosen.llama_server) is None


@posix_only
async def test_slow_candidate_is_stopped_and_costs_no_minute(settings: Settings, weights: Path) -> None:
    began_s = time.monotonic()
    tuned = await tune(weights, with_program(settings, "1.0", really="600 if batch == 128 else 0"))
    assert time.monotonic() - began_s < 60
    assert 128 not in [figure["batch_tokens"] for figure in tuned.figures]
    assert tuned.batch_tokens == BATCH_TOKENS


@posix_only
async def test_default_stands_when_not_even_it_can_be_measured_in_time(settings: Settings, weights: Path) -> None:
    chosen = with_program(settings, "1.0", really="600")
    tuned = await tune(weights, chosen, budget_s=1)
    assert tuned == Tuned(DEFAULT, BATCH_TOKENS, chosen.llama_server)
    assert load(settings.cache_dir, weights, llama_server=chosen.llama_server) == tuned
    assert children() == []


@posix_only
async def test_cancelled_it_leaves_no_process_and_remembers_nothing(settings: Settings, weights: Path) -> None:
    chosen = with_program(settings, "1.0", really="600")
    task = asyncio.create_task(tune(weights, chosen, budget_s=1000))
    await until(lambda: bool(children()), PATIENCE_S)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert children() == []
    assert load(settings.cache_dir, weights, llama_server=chosen.llama_server) is None


@pytest.fixture
def busy_neighbours() -> Iterator[None]:
    """Programs that compute, one for each core."""
    busy = [sys.executable, "-c", "print(flush=True)\nwhile True: pass"]
    neighbours = [subprocess.Popen(busy, stdout=subprocess.PIPE) for _ in range(processor.logical_cores())]
    for neighbour in neighbours:
        assert neighbour.stdout is not None
        neighbour.stdout.readline()
    yield
    for neighbour in neighbours:
        neighbour.kill()
        neighbour.communicate()


@posix_only
@pytest.mark.usefixtures("busy_neighbours")
async def test_busy_neighbour_ends_it_and_nothing_is_remembered(settings: Settings, weights: Path) -> None:
    chosen = with_program(settings, "1.0 if batch == 512 else 2.0", really="0.3")
    tuned = await tuning.tune("small", weights, chosen, budget_s=PATIENCE_S)
    assert (tuned.threads, tuned.batch_tokens, len(tuned.figures)) == (DEFAULT, BATCH_TOKENS, 1)
    assert load(settings.cache_dir, weights, llama_server=chosen.llama_server) is None


@posix_only
async def test_no_program_that_runs_is_an_error(settings: Settings, weights: Path) -> None:
    program = settings.cache_dir / "mine"
    stand_in(program, "1.0").write_text("#!/bin/sh\nexit 3\n")
    with pytest.raises(ModelUnreachable, match="ended with status 3"):
        await tune(weights, settings.model_copy(update={"llama_server": program}))
    assert load(settings.cache_dir, weights, llama_server=program) is None


# what is remembered


@posix_only
async def test_other_weights_and_another_program_are_measured_anew(settings: Settings, weights: Path) -> None:
    chosen = with_program(settings, "1.0")
    await tune(weights, chosen)
    program = chosen.llama_server
    assert program is not None
    assert load(settings.cache_dir, weights, llama_server=program)
    assert load(settings.cache_dir, weights) is None
    weights.write_bytes(b"GGUF, and more of it")
    assert load(settings.cache_dir, weights, llama_server=program) is None
    weights.write_bytes(b"GGUF")
    program.write_text("another build")
    assert load(settings.cache_dir, weights, llama_server=program) is None


@posix_only
async def test_results_of_several_models_stand_side_by_side(settings: Settings, weights: Path, tmp_path: Path) -> None:
    chosen = with_program(settings, "2.0 if batch == 512 else 3.0")
    other = tmp_path / "other.gguf"
    other.write_bytes(b"GGUF")
    tuned = [await tune(path, chosen) for path in (weights, other)]
    found = [load(settings.cache_dir, path, llama_server=chosen.llama_server) for path in (weights, other)]
    assert found == tuned
    assert [path.name for path in settings.cache_dir.iterdir() if path.name.startswith(FILE)] == [FILE]


@posix_only
@pytest.mark.parametrize("damage", ["", "[]", "{", '{"a": 1}', "program", "threads", "list"])
async def test_damaged_file_is_as_good_as_none(settings: Settings, weights: Path, damage: str) -> None:
    chosen = with_program(settings, "1.0")
    first = await tune(weights, chosen, budget_s=0)
    file = settings.cache_dir / FILE
    if damage in ("program", "threads", "list"):
        wrong = {"program": {"program": "/absent"}, "threads": {"threads": "many"}, "list": {"figures": None}}[damage]
        stored = json.loads(file.read_text())
        file.write_text(json.dumps({key: {**value, **wrong} for key, value in stored.items()}))
    else:
        file.write_text(damage)
    assert load(settings.cache_dir, weights, llama_server=chosen.llama_server) is None
    assert await tune(weights, chosen, budget_s=0) == first
    assert load(settings.cache_dir, weights, llama_server=chosen.llama_server) == first


# with the real small model


@posix_only
async def test_built_program_that_is_faster_is_chosen(settings: Settings, small_weights: Path) -> None:
    program = stand_in(built(settings), "0.0001")
    tuned = await tune(small_weights, settings, budget_s=PATIENCE_S)
    assert tuned.program == program
    assert load(settings.cache_dir, small_weights) == tuned


@posix_only
async def test_built_program_that_does_not_run_is_passed_over(settings: Settings, small_weights: Path) -> None:
    stand_in(built(settings), "1.0").write_text("#!/bin/sh\nkill -ILL $$\n")
    tuned = await tune(small_weights, settings, budget_s=5)
    assert tuned.program is None
    assert all(figure["program"] is None for figure in tuned.figures)


@posix_only
async def test_real_model_is_measured_and_beats_a_built_program_that_is_slow(
    settings: Settings, small_weights: Path
) -> None:
    stand_in(built(settings), "6.0", really="0 if asked > 1 else 12")
    tuned = await tune(small_weights, settings, budget_s=PATIENCE_S)
    assert tuned.program is None
    assert tuned.threads in thread_counts()
    assert tuned.batch_tokens in BATCHES
    chosen = [
        figure
        for figure in tuned.figures
        if (figure["threads"], figure["batch_tokens"], figure["program"]) == (tuned.threads, tuned.batch_tokens, None)
    ]
    assert len(chosen) == 1
    # Reading is done many tokens at a time.
    assert chosen[0]["prompt_tokens_per_s"] > chosen[0]["tokens_per_s"] > 0
    assert load(settings.cache_dir, small_weights) == tuned
