"""Foundry Local through its own library: what settings mean, what the two processes tell each other, and the real one.

The tests marked `foundry` run the real library with a real model (`tests.foundry_model`), and let nothing of it leave
this machine; they skip where one of the two is missing.
"""

import asyncio
import json
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import httpx2
import psutil
import pytest
import pytest_asyncio

from docs import onnx_from_gguf
from rag.corpus.library import Library
from rag.errors import ModelUnreachable, UserError
from rag.models import foundry
from rag.models.backend import Backend, Delta, Draft
from rag.models.child import ChildServer
from rag.models.discovery import Offered
from rag.models.foundry import (
    FoundryServer,
    Progress,
    Source,
    is_onnx_folder,
    model_id,
    parse,
    provider_in,
    provider_of,
)
from rag.models.legs import Legs
from rag.models.names import resolve
from rag.settings import Settings
from rag.trace import Trace
from rag.turn import cascade
from rag.turn.session import Session

from .conftest import until
from .foundry_model import Outside, catalogue, copied, fetched, onnx_folder

# Generous: only a hang reaches it, also on a machine that has much else to do.
PATIENCE_S = 120
ROOT = str(Path(__file__).resolve().parents[1])
VARIABLE = "RAG_SLM_MODEL"
FRANCE = [{"role": "user", "content": "What is the capital of France?"}]
installed_only = pytest.mark.skipif(not foundry.installed(), reason=f"needs the extra: {foundry.INSTALL}")
posix_only = pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")


def onnx(folder: Path, **model: object) -> Path:
    """A folder that looks like an ONNX model."""
    folder.mkdir(parents=True)
    (folder / "genai_config.json").write_text(json.dumps({"model": model}))
    return folder


# what a setting means


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@installed_only
def test_a_folder_with_a_model_is_one_however_its_path_is_written(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(here))
    monkeypatch.setenv("USERPROFILE", str(here))
    folder = onnx(here / "models" / "small")
    for written in (str(folder), "./models/small", "models/small", "~/models/small"):
        assert parse(written, VARIABLE) == Source(folder=folder.resolve()), written


@installed_only
def test_a_name_of_the_catalogue_is_told_by_its_prefix() -> None:
    assert parse("foundry:phi-4-mini", VARIABLE) == Source(model="phi-4-mini")
    assert parse("foundry: Phi-4-mini-instruct-generic-cpu:5 ", VARIABLE) == Source(
        model="Phi-4-mini-instruct-generic-cpu:5"
    )


@pytest.mark.parametrize(
    "model",
    ["phi-4-mini", "openai/gpt-oss-20b", "qwen2.5:7b", "small", "models/other", "", "/nowhere/x.gguf", "./x.GGUF"],
)
def test_anything_else_is_somebody_elses(here: Path, model: str) -> None:
    onnx(here / "small")  # a bare name is a model's, even where a folder has the same
    (here / "models" / "other").mkdir(parents=True)
    assert parse(model, VARIABLE) is None


@pytest.mark.parametrize(
    ("model", "what"),
    [
        ("foundry:", "names no model"),
        ("./empty", "a folder without genai_config.json"),
        ("./nowhere", "no such folder"),
        ("/nowhere/model", "no such folder"),
    ],
)
def test_what_is_meant_for_it_and_cannot_be_says_what_to_do(here: Path, model: str, what: str) -> None:
    (here / "empty").mkdir()
    with pytest.raises(UserError, match=what) as caught:
        parse(model, VARIABLE)
    assert str(caught.value).startswith(f"{VARIABLE} is ")


async def test_without_the_extra_the_command_that_installs_it_is_told(
    here: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "foundry_local_sdk", None)  # as if it were not installed
    assert not foundry.installed()
    folder = onnx(here / "models" / "small")
    for model in (str(folder), "foundry:phi-4-mini"):
        with pytest.raises(UserError, match=r"pip install 'smallfirst\[foundry\]'"):
            parse(model, VARIABLE)
    with pytest.raises(ModelUnreachable, match=r"small.* cannot be started: .*pip install 'smallfirst\[foundry\]'"):
        await FoundryServer(Source(folder=folder), settings).start()
    assert parse("phi-4-mini", VARIABLE) is None


@pytest.mark.parametrize(
    ("folder", "id"),
    [
        ("smollm2-135m-instruct-generic-cpu-1", "smollm2-135m-instruct-generic-cpu:1"),
        ("Phi-4-mini-instruct-cuda-gpu-12", "Phi-4-mini-instruct-cuda-gpu:12"),
        ("phi-4", "phi-4:1"),
        ("my model (new)", "my-model-new:1"),
        ("модель", "model:1"),
        ("a:b", "a-b:1"),
    ],
)
def test_a_folder_is_registered_under_an_id_as_the_library_wants_it(folder: str, id: str) -> None:
    assert model_id(Path("models") / folder) == id


@pytest.mark.parametrize(
    ("options", "provider"),
    [
        ([], "CPU"),
        ([{"cuda": {"enable_cuda_graph": "0"}}], "CUDA GPU"),
        ([{"dml": {}}], "DirectML GPU"),
        ([{"WebGPU": {}}], "WebGPU GPU"),
        ([{"NvTensorRtRtx": {}}], "TensorRT GPU"),
        ([{"qnn": {}}], "QNN NPU"),
        ([{"OpenVINO": {}}], "OpenVINO"),
    ],
)
def test_a_folders_execution_provider_is_read_from_its_configuration(
    tmp_path: Path, options: list[object], provider: str
) -> None:
    folder = onnx(tmp_path / "x", type="llama", decoder={"session_options": {"provider_options": options}})
    assert is_onnx_folder(folder)
    assert provider_in(folder) == provider


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"model": {"decoder": 3}}', '{"model": null}'])
def test_a_configuration_that_is_none_is_not_stumbled_over(tmp_path: Path, text: str) -> None:
    (tmp_path / "genai_config.json").write_text(text)
    assert provider_in(tmp_path) == "CPU"


@pytest.mark.parametrize(
    ("execution_provider", "device", "id"),
    [
        ("CPUExecutionProvider", "CPU", "x-generic-cpu:1"),
        ("CUDAExecutionProvider", "GPU", "x-cuda-gpu:1"),
        ("WebGpuExecutionProvider", "GPU", "x-webgpu-gpu:1"),
        ("DmlExecutionProvider", "GPU", "x-directml-gpu:1"),
        ("QNNExecutionProvider", "NPU", "x-qnn-npu:1"),
        ("OpenVINOExecutionProvider", "NPU", "x-openvino-npu:1"),
        ("OpenVINOExecutionProvider", "GPU", "x-openvino-gpu:1"),
        ("VitisAIExecutionProvider", "NPU", "x-vitis-npu:1"),
        ("NvTensorRTRTXExecutionProvider", "GPU", "x-trtrtx-gpu:1"),
    ],
)
def test_the_library_and_the_ids_of_its_models_name_a_provider_alike(
    execution_provider: str, device: str, id: str
) -> None:
    assert provider_of(execution_provider, device) == Offered(id).provider


def test_the_documented_names_find_the_documented_models() -> None:
    text = (Path(ROOT) / "docs" / "foundry.md").read_text()
    rows = re.findall(r"^\| `([^`]+)` \| `([^`]+)` \|$", text, re.MULTILINE)
    assert len(rows) >= 8
    offered = [Offered(id) for id in sorted({id for _, id in rows})]
    found = {written: resolve(written, offered) for written, _ in rows}
    assert {written: one and one.id for written, one in found.items()} == dict(rows)


def test_the_documented_recipe_is_the_one_that_is_run() -> None:
    text = (Path(ROOT) / "docs" / "foundry.md").read_text()
    by_hand = text[text.index("By hand:") :]
    assert all(requirement in by_hand for requirement in onnx_from_gguf.REQUIREMENTS)
    builder = by_hand[by_hand.index("models.builder") :].split("```")[0].replace("\\\n", " ").split()
    assert list(onnx_from_gguf.BUILD) == [word for word in builder if word in onnx_from_gguf.BUILD]
    assert "GgufConfig(dequantize=True)" in by_hand
    assert "GgufConfig(dequantize=True)" in onnx_from_gguf.TO_PYTORCH


# what the two processes tell each other


class Scripted(FoundryServer):
    """Its child runs the test's own program instead of the library."""

    def __init__(self, program: str, settings: Settings, told: list[Progress]) -> None:
        super().__init__(Source(model="phi-4-mini"), settings, progress=told.append)
        self._program = program

    def _check(self) -> str | None:
        return None

    def _command(self) -> list[str]:
        return [sys.executable, "-c", self._program]


SERVES = """
import json, os
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        allowed = self.headers["Authorization"] == "Bearer " + os.environ["SMALLFIRST_MODEL_SERVER_KEY"]
        self.send_response(200 if self.path == "/status" and allowed else 403)
        self.end_headers()

def tell(**facts):
    print(json.dumps(facts), flush=True)

for done in (0, 50, 100):
    tell(progress={"phase": "fetching", "done_bytes": done, "total_bytes": 100, "note": ""})
tell(progress={"phase": "fetching", "done_bytes": 0, "total_bytes": 0, "note": "CUDA GPU: 7 %"})
tell(progress={"phase": "loading", "done_bytes": 0, "total_bytes": 0, "note": ""})
server = HTTPServer(("127.0.0.1", 0), Handler)
tell(address=f"http://127.0.0.1:{server.server_port}", model="Phi-4-mini-instruct-cuda-gpu:5", provider="CUDA GPU",
     context_tokens=None)
server.serve_forever()
"""


async def test_how_far_a_download_is_is_told_and_then_who_answers(settings: Settings) -> None:
    told: list[Progress] = []
    server = Scripted(SERVES, settings, told)
    assert server.model_id == "phi-4-mini"
    async with asyncio.timeout(PATIENCE_S):
        await server.start()
    assert told == [
        Progress("fetching", 0, 100),
        Progress("fetching", 50, 100),
        Progress("fetching", 100, 100),
        Progress("fetching", 0, 0, "CUDA GPU: 7 %"),
        Progress("loading"),
    ]
    assert server.model_id == "Phi-4-mini-instruct-cuda-gpu:5"
    assert (server.provider, server.context_tokens) == ("CUDA GPU", None)
    assert server.base_url.endswith("/v1")
    await server.stop()


@pytest.mark.parametrize(
    ("program", "said"),
    [
        (
            'print(\'{"failure": "the catalogue is closed. Come back."}\'); raise SystemExit(1)',
            "The model phi-4-mini cannot be started: the catalogue is closed. Come back.",
        ),
        (
            "import sys; print('first', file=sys.stderr);"
            " sys.exit('[error] a/b.cc:12 void fl::Load(const std::string&) const no model.onnx.')",
            "The model phi-4-mini cannot be started: no model.onnx (the process ended with status 1).",
        ),
        pytest.param(
            "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
            "The model phi-4-mini cannot be started: the process was ended by SIGSEGV.",
            marks=posix_only,
        ),
        ("pass", "The model phi-4-mini cannot be started: the process ended with status 0."),
    ],
)
async def test_a_child_that_cannot_serve_is_one_sentence(settings: Settings, program: str, said: str) -> None:
    server = Scripted(program, settings, [])
    with pytest.raises(ModelUnreachable) as caught:
        await server.start()
    assert str(caught.value) == said
    assert server.pid is None


async def test_a_download_can_be_cancelled(settings: Settings) -> None:
    told: list[Progress] = []
    lasting = SERVES.replace("server = HTTP", "import time; time.sleep(1000); server = HTTP")
    server = Scripted(lasting, settings, told)
    starting = asyncio.create_task(server.start())
    await until(lambda: len(told) == 5)
    pid = server.pid
    assert pid is not None
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert not psutil.pid_exists(pid)


# the real one


@pytest.fixture(scope="session")
def model() -> Path:
    return onnx_folder()


@pytest.fixture(scope="module")
def outside() -> Iterator[Outside]:
    proxy = Outside()
    yield proxy
    proxy.close()


@pytest.fixture
def real(settings: Settings, outside: Outside, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name, value in outside.environment.items():
        monkeypatch.setenv(name, value)
    return settings


@asynccontextmanager
async def running(server: FoundryServer) -> AsyncIterator[FoundryServer]:
    try:
        async with asyncio.timeout(PATIENCE_S):
            await server.start()
            yield server
    finally:
        await server.stop()


@pytest_asyncio.fixture
async def server(model: Path, real: Settings) -> AsyncIterator[FoundryServer]:
    async with running(FoundryServer(Source(folder=model), real)) as server:
        yield server


@asynccontextmanager
async def backend_of(server: FoundryServer) -> AsyncIterator[Backend]:
    backend = Backend("slm", server.model_id, server.base_url, api_key=server.api_key)
    try:
        yield backend
    finally:
        await backend.close()


async def answer(server: FoundryServer, messages: list[dict[str, str]] = FRANCE) -> Draft:
    async with backend_of(server) as backend:
        pieces = [piece async for piece in backend.stream(messages, max_tokens=24, trace=Trace())]
    assert isinstance(pieces[-1], Draft)
    assert len([piece for piece in pieces if isinstance(piece, Delta)]) > 1, "it streams"
    return pieces[-1]


@pytest.mark.foundry
async def test_a_folders_model_answers_under_its_full_id(server: FoundryServer) -> None:
    assert server.model_id == "smollm2-135m-instruct-generic-cpu:1"
    assert server.base_url.endswith("/catalogs/local/v1")
    assert (server.provider, server.context_tokens) == ("CPU", 8192)
    draft = await answer(server)
    assert "Paris" in draft.text
    assert draft.model == server.model_id
    assert draft.finish_reason == "stop"
    assert draft.usage is not None
    assert draft.usage.input_tokens > 20
    assert draft.tokens == (), "this server gives no logprobs"


@pytest.mark.foundry
async def test_only_whoever_knows_the_key_is_heard(server: FoundryServer) -> None:
    body = {"model": server.model_id, "messages": FRANCE, "max_tokens": 1}
    key = {"Authorization": f"Bearer {server.api_key}"}
    async with httpx2.AsyncClient(trust_env=False, timeout=PATIENCE_S) as client:
        url = f"{server.base_url}/chat/completions"
        bare = await client.post(url, json=body)
        # What a page from the web can send without asking first.
        page = await client.post(
            url, content=json.dumps(body), headers={"Content-Type": "text/plain", "Origin": "https://elsewhere.example"}
        )
        known = await client.post(url, json=body, headers=key)
    assert [response.status_code for response in (bare, page, known)] == [401, 401, 200]


@pytest.mark.foundry
@pytest.mark.skipif(sys.platform != "linux", reason="other systems may have one loopback address only")
async def test_the_librarys_own_door_is_not_where_anybody_would_look(server: FoundryServer) -> None:
    listening = {
        connection.laddr.ip: connection.laddr.port
        for connection in psutil.Process(server.pid).net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    hidden = [ip for ip in listening if ip != "127.0.0.1"]
    assert len(listening) == 2
    assert len(hidden) == 1
    assert hidden[0].startswith("127.")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", listening[hidden[0]]), timeout=5)


WATCHERS = ("CI", "TF_BUILD", "GITHUB_ACTIONS", "GITLAB_CI", "CIRCLECI", "TRAVIS", "JENKINS_URL", "TEAMCITY_VERSION")


class Unhindered(FoundryServer):
    """As the library would run if nobody kept it from asking outside."""

    def _environment(self) -> dict[str, str]:
        # Where the environment names one of these, the library takes itself for run by a CI, and uploads nothing.
        return {name: value for name, value in ChildServer._environment(self).items() if name not in WATCHERS}


@pytest.mark.foundry
async def test_a_folders_model_asks_for_nothing_outside_though_the_library_would(
    server: FoundryServer, outside: Outside, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await answer(server)
    listening = Outside()
    for name, value in listening.environment.items():
        monkeypatch.setenv(name, value)
    elsewhere = settings.model_copy(update={"cache_dir": tmp_path / "other"})
    try:
        async with running(Unhindered(server.source, elsewhere)):
            await until(lambda: listening.asked == ["mobile.events.data.microsoft.com"], PATIENCE_S)
    finally:
        listening.close()
    assert outside.asked == []


@pytest.mark.foundry
async def test_a_stream_that_is_closed_ends_its_computation(server: FoundryServer) -> None:
    process = psutil.Process(server.pid)

    def computed_s() -> float:
        times = process.cpu_times()
        return float(times.user + times.system)

    endless = [{"role": "user", "content": "Count from 1 to 2000, one number a line."}]
    async with backend_of(server) as backend:
        before_s = computed_s()
        pieces = [piece async for piece in backend.stream(endless, max_tokens=600, trace=Trace())]
        whole_s = computed_s() - before_s
        assert len(pieces) > 500, "it would have gone on"

        before_s = computed_s()
        async with aclosing(backend.stream(endless, max_tokens=6000, trace=Trace())) as stream:
            async for piece in stream:
                if isinstance(piece, Delta):
                    break
        # Ten times as much was asked for. A second without work is the end of it: a process that has work gets more
        # than this of a second, however many others there are.
        last_s = float("-inf")
        while computed_s() - last_s > 0.02 and last_s - before_s < whole_s:
            last_s = computed_s()
            await asyncio.sleep(1)
        assert last_s - before_s < whole_s


@pytest.mark.foundry
@posix_only
async def test_a_killed_child_is_replaced_and_answers_again(server: FoundryServer) -> None:
    pid = server.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    await until(lambda: not server.ready.is_set())
    async with asyncio.timeout(PATIENCE_S):
        await server.wait_ready()
    assert server.restarts == 1
    assert server.pid not in (None, pid)
    assert "Paris" in (await answer(server)).text


PARENT = """
import asyncio, sys
from pathlib import Path
from rag.models.foundry import FoundryServer, Source
from rag.settings import Settings

async def main() -> None:
    server = FoundryServer(Source(folder=Path(sys.argv[1])), Settings(_env_file=None, cache_dir=Path(sys.argv[2])))
    starting = asyncio.create_task(server.start())
    while server.pid is None:
        await asyncio.sleep(0)
    print(server.pid, flush=True)
    await starting
    print("ready", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.foundry
@posix_only
@pytest.mark.parametrize("when", ["loading", "serving"])
async def test_the_child_ends_with_a_parent_that_was_killed(
    model: Path, real: Settings, tmp_path: Path, when: str
) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    parent = await asyncio.create_subprocess_exec(
        *(sys.executable, str(script), str(model), str(real.cache_dir)),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": ROOT},
    )
    assert parent.stdout is not None
    async with asyncio.timeout(PATIENCE_S):
        pid = int(await parent.stdout.readline())
        if when == "serving":
            assert await parent.stdout.readline() == b"ready\n"
    assert psutil.pid_exists(pid)
    parent.kill()
    await parent.wait()
    await until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)


@pytest.mark.foundry
async def test_the_parent_never_loads_the_library(server: FoundryServer) -> None:
    assert (await answer(server)).text
    assert not {"foundry_local_sdk", "onnxruntime_genai"} & set(sys.modules)


@pytest.mark.foundry
async def test_a_second_start_finds_the_registration_and_a_folder_filled_anew_is_registered_anew(
    model: Path, real: Settings, tmp_path: Path
) -> None:
    folder = copied(model, tmp_path / "mine" / "small")
    server = FoundryServer(Source(folder=folder), real)
    registry = real.cache_dir / "foundry" / "registered"
    for _ in range(2):
        async with running(server):
            assert (server.model_id, server.context_tokens) == ("small:1", 8192)
            assert "Paris" in (await answer(server)).text
    (kept,) = registry.rglob("foundry.local.modelinfo.json")
    assert [one["model_info"]["id"] for one in json.loads(kept.read_text())["models"]] == ["small:1"]

    about = json.loads((folder / "genai_config.json").read_text())
    about["model"]["context_length"] = 2048
    (folder / "genai_config.json").write_text(json.dumps(about))
    async with running(server):
        assert server.context_tokens == 2048
        assert "Paris" in (await answer(server)).text


@pytest.mark.foundry
async def test_two_folders_of_one_name_are_served_side_by_side(model: Path, real: Settings, tmp_path: Path) -> None:
    first, second = (
        copied(model, tmp_path / parent / "small", context_length=window)
        for parent, window in (("a", 4096), ("b", 2048))
    )
    async with (
        running(FoundryServer(Source(folder=first), real)) as one,
        running(FoundryServer(Source(folder=second), real)) as other,
    ):
        assert (one.model_id, one.context_tokens) == ("small:1", 4096)
        assert (other.model_id, other.context_tokens) == ("small:1", 2048)
        drafts = await asyncio.gather(answer(one), answer(other))
    assert all("Paris" in draft.text for draft in drafts)


@pytest.mark.foundry
async def test_a_folder_that_holds_half_a_model_is_explained(model: Path, real: Settings, tmp_path: Path) -> None:
    folder = copied(model, tmp_path / "half")
    (folder / "model.onnx").unlink()
    server = FoundryServer(Source(folder=folder), real)
    with pytest.raises(
        ModelUnreachable, match=r"half\) cannot be started: Foundry Local says: .*model\.onnx"
    ) as caught:
        await server.start()
    assert "\n" not in str(caught.value)
    assert ".cc:" not in str(caught.value)
    assert server.pid is None


# its catalogue


NAME = "small-instruct-generic-cpu"


@pytest.mark.foundry
async def test_a_model_of_the_catalogue_is_found_by_any_of_its_names_and_later_without_the_catalogue(
    model: Path, real: Settings
) -> None:
    home = real.cache_dir / "foundry"
    fetched(model, home, NAME, 3)
    told: list[Progress] = []
    with catalogue(("small", NAME, 3), ("other", "other-generic-cpu", 1)) as listed:
        url = listed.url
        for wanted in ("Small", f"{NAME}:3", NAME):
            server = FoundryServer(Source(model=wanted), real, progress=told.append, catalogue=url)
            async with running(server):
                assert server.model_id == f"{NAME}:3"
                assert server.provider == "CPU"
                assert server.base_url.endswith(f"{server.base_url.split('/')[2]}/v1")
                assert "Paris" in (await answer(server)).text
        assert [progress.phase for progress in told[:2]] == ["fetching", "loading"]

        unknown = FoundryServer(Source(model="phi-4-mini"), real, catalogue=url)
        with pytest.raises(
            ModelUnreachable, match=r"phi-4-mini cannot be started: .* no model of that name.* other, small\."
        ):
            await unknown.start()
    async with running(FoundryServer(Source(model="small"), real, catalogue=url)) as server:
        assert "Paris" in (await answer(server)).text


@pytest.mark.foundry
async def test_a_model_that_is_not_here_and_cannot_be_fetched_says_so(model: Path, real: Settings) -> None:
    with catalogue(("other", "other-generic-cpu", 1)) as listed:
        server = FoundryServer(Source(model="other"), real, catalogue=listed.url)
        with pytest.raises(
            ModelUnreachable, match=r"other cannot be started: it could not be fetched: .*network"
        ) as caught:
            async with asyncio.timeout(PATIENCE_S):
                await server.start()
    assert ".cc:" not in str(caught.value)


@pytest.mark.foundry
@pytest.mark.parametrize(("there", "limit_s"), [("nobody", 20), ("somebody silent", 2)])
async def test_without_the_catalogue_it_fails_within_a_bound_and_says_what_to_do(
    model: Path, real: Settings, there: str, limit_s: float
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/asset-gallery/v1.0/models"
        if there == "nobody":
            listening.close()
        server = FoundryServer(Source(model="phi-4-mini"), real, catalogue=url, catalogue_limit_s=limit_s)
        with pytest.raises(
            ModelUnreachable, match=r"catalogue cannot be reached.*folder of an ONNX model instead"
        ) as caught:
            async with asyncio.timeout(PATIENCE_S):
                await server.start()
    assert str(caught.value).startswith("The model phi-4-mini cannot be started: ")
    assert server.pid is None


# the whole product


@pytest.mark.foundry
async def test_a_question_about_the_shipped_documents_is_answered_by_it(
    library: Library, model: Path, real: Settings
) -> None:
    settings = real.model_copy(update={"slm_model": str(model), "llm_base_url": "http://127.0.0.1:9/v1"})
    legs = Legs(settings)
    try:
        question = "What is the default confidence threshold of Small First?"
        events = [
            event
            async for event in cascade.answer(
                question, session=Session(library), legs=legs, settings=settings, mode="slm"
            )
        ]
    finally:
        await legs.close()
    last = events[-1]
    assert isinstance(last, cascade.Answered), last
    (draft,) = last.turn.drafts
    assert draft.model == "smollm2-135m-instruct-generic-cpu:1"
    assert draft.runs_on == "Foundry Local, CPU"
    assert last.turn.to_dict()["drafts"][0]["runs_on"] == "Foundry Local, CPU"
    assert draft.text.strip(), "what it says is the model's affair"
    assert draft.usage is not None
    assert draft.usage.input_tokens > 50, "it was shown passages"
    assert last.turn.trace.find("first_token") is not None
    assert last.turn.verdict is not None
    assert last.turn.verdict.signals is not None
    assert last.turn.verdict.signals.mean_logprob is None, "this server gives none, and the verdict does without"
