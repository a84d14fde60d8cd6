"""Servers of every kind, and servers that misbehave: each is told for what it is, and nobody else is asked."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from rag.errors import UserError
from rag.models.addresses import accepts, is_loopback, tidy
from rag.models.discovery import (
    MOST_BYTES,
    NOT_ASKED,
    PLACES,
    TITLES,
    Offered,
    ask_foundry,
    find,
    identify,
)
from rag.models.runtime import EmbeddedServer
from rag.settings import Settings
from tests.conftest import until
from tests.product import free_port
from tests.wire.servers import KINDS, Address, Reply, serving, wire

# Generous: only a hang reaches it, also on a machine that has much else to do.
PATIENCE_S = 60
KEY = "sk-planted-5f2e"
posix_only = pytest.mark.skipif(os.name != "posix", reason="needs programs that are scripts")


@pytest.fixture(autouse=True)
async def nothing_hangs() -> AsyncIterator[None]:
    async with asyncio.timeout(PATIENCE_S):
        yield


def settings_of(**more: Any) -> Settings:
    return Settings(_env_file=None, **{"discover": False, **more})  # type: ignore[call-arg]


# what each kind of server shows


EXPECTED: dict[str, tuple[str, str | None, list[Offered]]] = {
    "llama.cpp": ("llama.cpp", "b0-unknown", [Offered("smollm2-135m", True, 2048)]),
    "ollama": ("ollama", "0.12.11", [Offered("qwen3:8b", True, 4096), Offered("phi4-mini:latest", False)]),
    "lmstudio": (
        "lmstudio",
        None,
        [Offered("microsoft/phi-4-mini", True, 8192), Offered("qwen2-vl-7b-instruct", False)],
    ),
    "vllm": ("vllm", "0.11.0", [Offered("Qwen/Qwen2.5-0.5B-Instruct", True, 32768)]),
    "foundry": ("foundry", None, [Offered("Phi-4-mini-instruct-generic-cpu:5", True)]),
    "foundry-cli": (
        "foundry",
        None,
        [
            Offered("Phi-4-mini-instruct-generic-cpu:5", True, 131072, "phi-4-mini"),
            Offered("deepseek-r1-distill-qwen-7b-generic-cpu:4", False, 131072, "deepseek-r1-7b"),
        ],
    ),
    "foundry-server": (
        "foundry",
        None,
        [
            Offered("phi-4-mini-instruct-cuda-gpu", True, 131072, "phi-4-mini"),
            Offered("qwen2.5-1.5b-instruct-trtrtx-gpu", False, 32768, "qwen2.5-1.5b"),
        ],
    ),
    "openai": ("openai", None, [Offered("small-model"), Offered("large-model")]),
}


@pytest.mark.parametrize("kind", sorted(EXPECTED))
async def test_each_kind_of_server_is_told_with_its_models(kind: str) -> None:
    async with serving(kind) as address:
        server = await identify(address, found_by="here")
    assert (server.kind, server.version, list(server.models)) == EXPECTED[kind]
    assert (server.base_url, server.found_by, server.problem) == (address.v1, "here", None)
    assert {asked.method for asked in address.asked} == {"GET"}
    assert {asked.headers["accept-encoding"] for asked in address.asked} == {"identity"}
    assert json.loads(json.dumps(server.to_dict()))["title"] == TITLES[server.kind]


def test_every_recorded_kind_of_model_server_is_expected_above() -> None:
    assert set(KINDS) == {*EXPECTED, "smallfirst"}


async def test_the_embedded_server_is_told_by_the_real_one_as_by_its_recording(small_weights: Path) -> None:
    embedded = EmbeddedServer("smollm2-135m", small_weights, context_tokens=2048, prompt_cache_mb=16)
    await embedded.start()
    try:
        server = await identify(embedded.base_url, found_by="here", api_key=embedded.api_key)
        stranger = await identify(embedded.base_url, found_by="here")
        headers = {"Authorization": f"Bearer {embedded.api_key}"}
        async with httpx2.AsyncClient(trust_env=False, headers=headers) as client:
            root = embedded.base_url.removesuffix("/v1")
            real = {path: (await client.get(f"{root}{path}")).json() for path in wire("llama.cpp")["gets"]}
    finally:
        await embedded.stop()
    kind, _, models = EXPECTED["llama.cpp"]
    assert (server.kind, list(server.models), server.problem) == (kind, models, None)
    assert server.version
    assert (stranger.kind, stranger.models) == ("llama.cpp", ())
    assert "wants a key (status 401)" in str(stranger.problem)
    # The recording is true as long as it has what we read.
    recorded = {path: shape["body"] for path, shape in wire("llama.cpp")["gets"].items()}
    assert real["/v1/models"]["data"][0].keys() >= {"id", "owned_by", "meta"}
    assert _outline(real["/v1/models"]["data"][0]["meta"]) == _outline(recorded["/v1/models"]["data"][0]["meta"])
    assert real["/props"]["default_generation_settings"]["n_ctx"] == 2048
    assert recorded["/props"].keys() <= real["/props"].keys()


def _outline(value: Any) -> Any:
    return {key: _outline(one) for key, one in value.items()} if isinstance(value, dict) else type(value)


@pytest.mark.parametrize(
    "replies",
    [
        {"/props": Reply({"error": "no"}, 404)},
        {"/props": Reply({"default_generation_settings": {"n_ctx": "many"}})},
        {"/props": Reply([])},
    ],
)
async def test_llama_cpp_without_props_is_known_by_its_list(replies: dict[str, Reply]) -> None:
    async with serving("llama.cpp", replies=replies) as address:
        server = await identify(address, found_by="here")
    assert (server.kind, list(server.models)) == ("llama.cpp", [Offered("smollm2-135m", True, 2048)])


async def test_the_window_of_llama_cpp_is_that_of_one_answer_not_that_of_all_at_once() -> None:
    async with serving(
        "llama.cpp", replies={"/props": Reply({"default_generation_settings": {"n_ctx": 512}})}
    ) as address:
        server = await identify(address, found_by="here")
    assert [one.context_tokens for one in server.models] == [512]


async def test_llama_cpp_is_known_behind_a_proxy_and_asleep() -> None:
    listed = Reply(wire("llama.cpp")["gets"]["/v1/models"]["body"], headers={"Server": "nginx"})
    async with serving("llama.cpp", replies={"/v1/models": listed, "/props": Reply({"is_sleeping": True})}) as address:
        server = await identify(address, found_by="here")
    assert (server.kind, [one.loaded for one in server.models]) == ("llama.cpp", [False])


async def test_llama_cpp_that_is_still_loading_says_so() -> None:
    loading = Reply({"error": {"message": "Loading model", "type": "unavailable_error", "code": 503}}, 503)
    async with serving("llama.cpp", replies={"/v1/models": loading, "/props": loading}) as address:
        server = await identify(address, found_by="here")
    assert (server.kind, server.models) == ("llama.cpp", ())
    assert server.problem == (
        f"The server at {address.v1} is not ready (status 503): it may still be loading its model. Try again in a moment."
    )


async def test_llama_cpp_with_several_models_tells_of_each_whether_it_is_loaded() -> None:
    entries = [
        {"id": "a", "owned_by": "llamacpp", "status": {"value": "loaded"}, "meta": {"n_ctx": 512}},
        {"id": "b", "owned_by": "llamacpp", "status": {"value": "unloaded"}},
    ]
    async with serving("llama.cpp", replies={"/v1/models": Reply({"object": "list", "data": entries})}) as address:
        server = await identify(address, found_by="here")
    assert list(server.models) == [Offered("a", True, 512), Offered("b", False)]


async def test_ollama_without_models_or_without_its_list_of_loaded_ones_is_still_ollama() -> None:
    empty = {
        "/api/tags": Reply({"models": None}),
        "/api/ps": Reply({"models": []}),
        "/v1/models": Reply({"object": "list", "data": None}),
    }
    async with serving("ollama", replies=empty) as address:
        server = await identify(address, found_by="here")
    assert (server.kind, server.models, server.problem) == ("ollama", (), None)
    async with serving("ollama", replies={"/api/ps": Reply(None, 500)}) as address:
        server = await identify(address, found_by="here")
    assert [one.loaded for one in server.models] == [None, None]


async def test_another_server_with_a_version_of_its_own_is_not_taken_for_ollama() -> None:
    replies = {"/api/version": Reply({"version": "0.6.5"}), "/api/tags": Reply({"detail": "Not authenticated"})}
    async with serving("openai", replies=replies) as address:
        server = await identify(address, found_by="here")
    assert (server.kind, len(server.models)) == ("openai", 2)


async def test_a_server_that_answers_every_path_alike_is_only_taken_for_what_it_says_it_is() -> None:
    listed = Reply(wire("openai")["gets"]["/v1/models"]["body"])
    paths = ("/api/version", "/api/v0/models", "/api/tags", "/api/ps", "/status", "/openai/status")
    for everything in (listed, Reply([]), Reply({})):
        async with serving("openai", replies=dict.fromkeys(paths, everything)) as address:
            server = await identify(address, found_by="here")
        assert (server.kind, len(server.models)) == ("openai", 2)


async def test_the_window_of_another_server_is_read_where_it_tells_it() -> None:
    entries = [
        {"id": "a", "max_model_len": 1024},
        {"id": "b", "context_length": 2048},
        {"id": "c", "context_window": "x"},
    ]
    async with serving("openai", replies={"/v1/models": Reply({"data": entries})}) as address:
        server = await identify(address, found_by="here")
    assert [one.context_tokens for one in server.models] == [1024, 2048, None]


async def test_ids_that_cannot_be_shown_and_ids_told_twice_are_left_out() -> None:
    entries = [{"id": "a"}, {"id": "a"}, {"id": "\x1b[31mred"}, {"id": "x" * 500}, {"id": ""}, {"id": 7}, {}, "b", None]
    async with serving("openai", replies={"/v1/models": Reply({"data": entries})}) as address:
        server = await identify(address, found_by="here")
    assert [one.id for one in server.models] == ["a"]


# Foundry Local


async def test_what_foundry_local_has_fetched_is_kept_apart_from_what_it_could_fetch() -> None:
    async with serving("foundry-cli") as address:
        server = await identify(address, found_by="here")
    assert [one.id for one in server.catalogue] == ["Phi-4-mini-instruct-generic-gpu:5", "gpt-oss-20b-generic-cpu:1"]
    assert [one.alias for one in server.catalogue] == ["phi-4-mini", "gpt-oss-20b"]
    assert server.to_dict()["catalogue"] == [one.id for one in server.catalogue]


async def test_the_service_inside_a_program_offers_what_is_loaded_and_lists_the_rest() -> None:
    async with serving("foundry") as address:
        server = await identify(address, found_by="here")
    assert [one.id for one in server.models] == ["Phi-4-mini-instruct-generic-cpu:5"]
    assert "gpt-oss-20b-generic-cpu:1" in [one.id for one in server.catalogue]


async def test_where_foundry_local_does_not_tell_what_is_loaded_all_of_its_list_counts() -> None:
    async with serving("foundry", replies={"/models/loaded": Reply(None, 404)}) as address:
        server = await identify(address, found_by="here")
    assert len(server.models) == 5
    assert {one.loaded for one in server.models} == {None}


OFFLINE = {"/v1/models": Reply({"object": "list", "data": []}), "/models/loaded": Reply([])}


async def test_models_brought_along_are_reached_at_the_address_that_serves_them() -> None:
    async with serving("foundry", replies=OFFLINE) as address:
        for asked in (address, f"{address}/v1", f"{address}/catalogs/local/v1"):
            server = await identify(asked, found_by="here")
            assert server.base_url == f"{address}/catalogs/local/v1"
            assert server.kind == "foundry"
            assert list(server.models) == [Offered("smollm2-135m-instruct-generic-cpu:1", True)]
        assert await find(settings_of(foundry_endpoint=address)) == [replace(server, found_by="FOUNDRY_LOCAL_ENDPOINT")]
    async with serving("foundry", replies={"/models/loaded": Reply([])}) as address:
        # A catalogue of which nothing is loaded cannot answer.
        server = await identify(address, found_by="here")
        assert server.base_url == f"{address}/catalogs/local/v1"


async def test_a_foundry_local_with_both_catalogues_has_two_addresses() -> None:
    async with serving("foundry") as address:
        found = await find(settings_of(foundry_endpoint=address))
    assert [(one.base_url, [model.id for model in one.models]) for one in found] == [
        (f"{address}/v1", ["Phi-4-mini-instruct-generic-cpu:5"]),
        (f"{address}/catalogs/local/v1", ["smollm2-135m-instruct-generic-cpu:1"]),
    ]


async def test_a_public_catalogue_that_is_slow_without_the_internet_does_not_hide_the_models_that_are_here() -> None:
    slow = {"/v1/models": Reply({"object": "list", "data": []}, delay_s=PATIENCE_S)}
    async with serving("foundry", replies=slow) as address:
        server = await identify(address, found_by="here", timeout_s=1)
        assert (server.base_url, server.problem) == (f"{address}/catalogs/local/v1", None)
        assert len(server.models) == 1
    async with serving("foundry", replies=slow | {"/catalogs/local/v1/models": Reply(None, 404)}) as address:
        server = await identify(address, found_by="FOUNDRY_LOCAL_ENDPOINT", timeout_s=1)
        assert (server.kind, server.models) == ("foundry", ())
        assert server.problem == f"Foundry Local at {address}/v1 did not answer within 1 s. Check that server."


async def test_the_newer_command_lists_what_it_has_fetched_whether_it_is_loaded_or_not() -> None:
    entries = [{"id": "phi-4-mini-instruct-cuda-gpu", "parent": "phi-4-mini"}]
    replies = {"/v1/models": Reply({"object": "list", "data": entries}), "/models/loaded": Reply([])}
    async with serving("foundry-server", replies=replies) as address:
        server = await identify(address, found_by="here")
    assert list(server.models) == [Offered("phi-4-mini-instruct-cuda-gpu", False, None, "phi-4-mini")]


async def test_the_older_service_lists_what_it_has_fetched_even_where_its_openai_list_fails() -> None:
    async with serving("foundry-cli", replies={"/v1/models": Reply(None, 500)}) as address:
        server = await identify(address, found_by="here")
    assert [(one.id, one.alias, one.loaded) for one in server.models] == [
        ("Phi-4-mini-instruct-generic-cpu", "phi-4-mini", True),
        ("deepseek-r1-distill-qwen-7b-generic-cpu", "deepseek-r1-7b", False),
    ]


async def test_models_of_foundry_local_that_cannot_chat_are_left_out() -> None:
    async with serving(
        "foundry-cli", replies={"/openai/models": Reply(["openai-whisper-tiny-generic-cpu"])}
    ) as address:
        server = await identify(address, found_by="here")
    assert not [one.id for one in (*server.models, *server.catalogue) if "whisper" in one.id]


async def test_a_bare_list_with_ids_of_foundry_local_is_foundry_local() -> None:
    entries = [{"id": "Phi-4-mini-instruct-cuda-gpu:5", "object": "model", "owned_by": "Microsoft"}]
    async with serving("openai", replies={"/v1/models": Reply({"object": "list", "data": entries})}) as address:
        assert (await identify(address, found_by="here")).kind == "foundry"
    async with serving("openai") as address:
        assert (await identify(address, found_by="FOUNDRY_LOCAL_ENDPOINT")).kind == "foundry"
        assert (await identify(address, found_by="RAG_SLM_BASE_URL")).kind == "openai"


# servers that misbehave

Misbehaviour = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def raw(*pieces: bytes, pause_s: float = 0, hang: bool = False) -> Misbehaviour:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause_s)
        if hang:
            await asyncio.sleep(PATIENCE_S)

    return answer


def http(body: bytes, content_type: str = "application/json", status: str = "200 OK", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Type: {content_type}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode() + body


async def endless(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{"data": [')
    while True:
        writer.write(b'{"id": "model"}, ' * 1000)
        await writer.drain()


async def endless_headers(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        writer.write(b"X-More: and more\r\n" * 100)
        await writer.drain()


@asynccontextmanager
async def misbehaving(answer: Misbehaviour) -> AsyncIterator[str]:
    tasks: set[asyncio.Task[Any]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await reader.readuntil(b"\r\n\r\n")
            await answer(reader, writer)
        writer.close()

    listener = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    finally:
        listener.close()
        for task in tasks:
            task.cancel()


LIST = b'{"object": "list", "data": [{"id": "a"}]}'
MISBEHAVIOURS = {
    "says nothing": (raw(hang=True), "did not answer within 0.5 s"),
    "hangs up": (raw(), "hung up"),
    "is not HTTP": (raw(b"SSH-2.0-OpenSSH_9.6\r\n"), "no HTTP answer"),
    "half a header": (raw(b"HTTP/1.1 200 OK\r\nContent-Ty", hang=True), "did not answer"),
    "headers only": (raw(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n", hang=True), "did not answer"),
    "stalls midway": (raw(http(LIST)[:-9], hang=True), "did not answer"),
    "drips": (raw(*(http(LIST)[n : n + 1] for n in range(len(http(LIST)))), pause_s=0.05), "did not answer"),
    "stops midway": (raw(http(LIST)[:-9]), "hung up"),
    "endless": (endless, "more than 2 MB"),
    "endless headers": (endless_headers, "no HTTP answer"),
    "huge": (raw(http(b'{"data": ["' + b"x" * MOST_BYTES + b'"]}')), "more than 2 MB"),
    "HTML": (raw(http(b"<html>hello</html>", "text/html; charset=utf-8")), "text/html instead of JSON"),
    "JSON that says that it is HTML": (raw(http(LIST, "text/html")), "text/html instead of JSON"),
    "HTML that says that it is JSON": (raw(http(b"<html>")), "not JSON"),
    "nothing": (raw(http(b"")), "not JSON"),
    "bytes": (raw(http(b"\xff\xfe\x00")), "not JSON"),
    "JSON too deep to read": (raw(http(b"[" * 500_000)), "not JSON"),
    "compressed": (raw(http(LIST, "application/json", "200 OK", "Content-Encoding: gzip")), "compressed"),
    "a number": (raw(http(b"3")), "no list of models"),
    "null": (raw(http(b"null")), "no list of models"),
    "no list": (raw(http(b'{"data": {"id": "a"}}')), "no list of models"),
    "an error with status 200": (raw(http(b'{"error": "Unexpected endpoint or method. (GET /v1/models)"}')), "no list of models"),
    "204": (raw(http(b"", status="204 No Content")), "status 204"),
    "400": (raw(http(b'{"error": {"message": "because"}}', status="400 X")), "status 400"),
    "401": (raw(http(b"{}", status="401 X")), "refused the key (status 401). Set RAG_SLM_API_KEY."),
    "403": (raw(http(b"{}", status="403 X")), "refused the key (status 403). Set RAG_SLM_API_KEY."),
    "404": (raw(http(b"{}", status="404 X")), "has no list of models (status 404)"),
    "429": (raw(http(b"{}", status="429 X")), "no more requests just now (status 429). Try again"),
    "500": (raw(http(b"oops", "text/plain", "500 X")), "status 500"),
    "a redirect elsewhere": (raw(http(b"", "text/plain", "307 X", "Location: http://192.0.2.7/v1/models")), "sends its visitors on to http://192.0.2.7;"),
    "a redirect to another port": (raw(http(b"", "text/plain", "302 X", "Location: http://127.0.0.1:9/v1/models")), "sends its visitors on to http://127.0.0.1;"),
    "a redirect to what is no address": (raw(http(b"", "text/plain", "302 X", "Location: javascript:alert(1)")), "sends its visitors on"),
    "a redirect to an address with errors": (raw(http(b"", "text/plain", "302 X", "Location: http://x:abc/")), "no HTTP answer"),
    "a circle": (raw(http(b"", "text/plain", "302 X", "Location: /v1/models")), "in circles"),
    "a redirect to nowhere": (raw(http(b"", "text/plain", "302 X")), "status 302"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISBEHAVIOURS)
async def test_a_server_that_misbehaves_is_a_problem_in_words_and_never_the_key(name: str) -> None:
    answer, says = MISBEHAVIOURS[name]
    async with misbehaving(answer) as address:
        server = await identify(address, found_by="RAG_SLM_BASE_URL", api_key=KEY, timeout_s=0.5)
    assert says in str(server.problem)
    assert str(server.problem).startswith(f"The server at {address}/v1 ")
    assert str(server.problem).endswith(".")
    assert "\n" not in str(server.problem)
    assert (server.kind, server.models, server.base_url) == ("openai", (), f"{address}/v1")
    assert KEY not in repr(server) + json.dumps(server.to_dict())


@pytest.mark.parametrize("status", ["200 OK", "401 X", "302 X"])
async def test_what_a_server_repeats_of_the_key_is_not_passed_on(status: str) -> None:
    secret = f"Bearer {KEY}"

    def echo(content_type: str) -> Misbehaviour:
        entries = [{"id": secret, "name": secret, "owned_by": secret, "state": secret, "type": "llm"}]
        body = {"object": "list", "data": entries, "models": entries, "version": secret, "error": {"message": secret}}
        body = body if status == "401 X" else {name: value for name, value in body.items() if name != "error"}
        headers = (f"Location: /{KEY}", f"Server: {secret}", f"WWW-Authenticate: {secret}")
        return raw(http(json.dumps(body).encode(), content_type, f"{status} {secret}", *headers))

    for content_type in ("application/json", f"text/{KEY}", secret):
        async with misbehaving(echo(content_type)) as address:
            server = await identify(address, found_by="RAG_SLM_BASE_URL", api_key=KEY)
        assert server.problem
        assert KEY not in repr(server) + json.dumps(server.to_dict())


async def test_a_key_that_is_none_may_be_part_of_a_models_name() -> None:
    async with serving("ollama", key="qwen3") as address:
        server = await identify(address, found_by="here", api_key="qwen3")
    assert len(server.models) == 2


async def test_nobody_listening_says_what_to_start_or_change() -> None:
    port = free_port()
    server = await identify(f"http://127.0.0.1:{port}", found_by="RAG_LLM_BASE_URL")
    assert server.problem == (
        f"The server at http://127.0.0.1:{port}/v1 cannot be reached: nothing listens there."
        " Start that server, or change RAG_LLM_BASE_URL."
    )


async def test_a_name_that_can_be_no_hosts_is_a_problem() -> None:
    server = await identify(f"http://{'a' * 80}.example", found_by="here")
    assert server.problem


async def test_a_server_without_tls_that_is_asked_with_tls_is_told_apart() -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(http(b"", "text/plain", "400 X"))
        await writer.drain()
        writer.close()

    listener = await asyncio.start_server(refuse, "127.0.0.1", 0)
    async with listener:
        port = listener.sockets[0].getsockname()[1]
        server = await identify(f"https://127.0.0.1:{port}", found_by="RAG_LLM_BASE_URL")
    assert "does not speak TLS; its address may have to begin with http://" in str(server.problem)


@pytest.mark.parametrize("key", ["sk-ключ", "sk-\nX-Evil: 1", "sk-\x00"])
async def test_a_key_that_no_request_can_carry_is_told_without_it(key: str) -> None:
    async with serving("openai") as address:
        server = await identify(address, found_by="RAG_SLM_BASE_URL", api_key=key)
    assert "has characters that no request can carry" in str(server.problem)
    assert key not in repr(server)
    assert address.asked == []


async def test_a_redirect_within_the_server_is_followed() -> None:
    moved = Reply(None, 307, {"Location": "/v1/models/"})
    listed = Reply(wire("openai")["gets"]["/v1/models"]["body"])
    async with serving("openai", replies={"/v1/models": moved, "/v1/models/": listed}) as address:
        server = await identify(address, found_by="here")
    assert len(server.models) == 2


async def test_a_redirect_to_another_server_takes_neither_the_key_nor_anything_else_there() -> None:
    async with serving("openai") as other:
        away = Reply(None, 307, {"Location": f"{other}/v1/models"})
        async with serving("openai", replies={"/v1/models": away}) as address:
            server = await identify(address, found_by="here", api_key=KEY)
    assert f"sends its visitors on to {other.rsplit(':', 1)[0]}" in str(server.problem)
    assert other.asked == []


@pytest.mark.parametrize("kind", [kind for kind in sorted(EXPECTED) if kind != "llama.cpp"])
async def test_a_server_with_a_key_is_known_with_it_and_says_that_it_wants_one_without(kind: str) -> None:
    async with serving(kind, key=KEY) as address:
        assert list((await identify(address, found_by="here", api_key=KEY)).models) == EXPECTED[kind][2]
        stranger = await identify(address, found_by="RAG_SLM_BASE_URL")
        assert "wants a key (status 401). Set RAG_SLM_API_KEY." in str(stranger.problem)
        assert stranger.models == ()


# addresses


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("http://127.0.0.1:11434", "http://127.0.0.1:11434/v1"),
        ("http://127.0.0.1:11434/", "http://127.0.0.1:11434/v1"),
        ("http://127.0.0.1:11434/v1", "http://127.0.0.1:11434/v1"),
        (" http://127.0.0.1:11434/v1/ ", "http://127.0.0.1:11434/v1"),
        ("127.0.0.1:11434", "http://127.0.0.1:11434/v1"),
        ("localhost:11434", "http://localhost:11434/v1"),
        ("HTTP://LocalHost:11434", "http://localhost:11434/v1"),
        ("http://0.0.0.0:11434", "http://127.0.0.1:11434/v1"),
        ("http://[::1]:8080/v1", "http://[::1]:8080/v1"),
        ("http://[::]:8080", "http://[::1]:8080/v1"),
        ("https://api.example.com", "https://api.example.com/v1"),
        ("https://api.example.com:443/v1", "https://api.example.com/v1"),
        ("https://example.com/api/v1", "https://example.com/api/v1"),
        ("https://example.com/v1beta/openai/", "https://example.com/v1beta/openai"),
        ("http://127.0.0.1:8080/v1/chat/completions", "http://127.0.0.1:8080/v1"),
        ("http://127.0.0.1:8080/v1/models", "http://127.0.0.1:8080/v1"),
        ("http://127.0.0.1:5273/openai/status", "http://127.0.0.1:5273/v1"),
        ("http://127.0.0.1:5273/catalogs/local/v1", "http://127.0.0.1:5273/catalogs/local/v1"),
    ],
)
def test_an_address_means_what_people_mean(given: str, meant: str) -> None:
    assert tidy(given) == meant
    assert tidy(meant) == meant


@pytest.mark.parametrize(
    "given",
    ["", "   ", "http://", "ftp://127.0.0.1", "http://127.0.0.1:abc", "http://127.0.0.1:99999", "http://127.0.0.1:0",
     "file:///etc/passwd", "http://\x1b[31m:1/", "http://[::1", "phi-4-mini at home"],
)  # fmt: skip
async def test_what_is_no_address_is_a_problem_that_shows_one(given: str) -> None:
    with pytest.raises(UserError, match=r"is no address\. Give one like http://127\.0\.0\.1:11434/v1"):
        tidy(given)
    server = await identify(given, found_by="RAG_SLM_BASE_URL")
    assert "is no address" in str(server.problem)
    assert str(server.problem).isprintable()


@pytest.mark.parametrize(
    "given",
    [f"http://user:{KEY}@127.0.0.1:1/v1", f"http://{KEY}@127.0.0.1:1", f"https://example.com/v1?key={KEY}",
     f"https://example.com/v1#{KEY}", f"http://user:{KEY}@127.0.0.1:abc", f"user:{KEY}@127.0.0.1:1"],
)  # fmt: skip
async def test_an_address_that_holds_a_secret_is_refused_without_repeating_it(given: str) -> None:
    with pytest.raises(UserError) as refused:
        tidy(given)
    server = await identify(given, found_by="RAG_SLM_BASE_URL")
    found = await find(settings_of(slm_base_url=given))
    assert KEY not in str(refused.value) + repr(server) + repr(found) + json.dumps([one.to_dict() for one in found])
    assert found[0].problem


@pytest.mark.parametrize(
    ("address", "here"),
    [
        ("http://127.0.0.1:1/v1", True),
        ("http://127.9.9.9:1/v1", True),
        ("http://localhost/v1", True),
        ("http://[::1]:1/v1", True),
        ("http://192.168.1.7:1/v1", False),
        ("http://127.0.0.1.example.com/v1", False),
        ("http://localhost.example.com/v1", False),
        ("http://0.0.0.0/v1", False),
    ],
)
def test_this_machine_is_told_from_others(address: str, here: bool) -> None:
    assert is_loopback(address) is here


async def test_whether_anything_listens_is_told_without_sending_anything() -> None:
    async with serving("openai") as address:
        assert await accepts(address.v1)
        assert address.asked == []
    assert not await accepts(f"http://127.0.0.1:{free_port()}/v1")


# all servers


async def test_named_servers_come_first_then_foundry_local_then_those_that_are_found() -> None:
    async with AsyncExitStack() as stack:
        slm, llm, foundry, one, two = [
            await stack.enter_async_context(serving(kind))
            for kind in ("ollama", "vllm", "foundry-cli", "llama.cpp", "lmstudio")
        ]
        settings = settings_of(slm_base_url=slm, llm_base_url=llm, foundry_endpoint=foundry, discover=True)
        found = await find(settings, places=(one.port, free_port(), two.port))
    assert [(server.found_by, server.kind) for server in found] == [
        ("RAG_SLM_BASE_URL", "ollama"),
        ("RAG_LLM_BASE_URL", "vllm"),
        ("FOUNDRY_LOCAL_ENDPOINT", "foundry"),
        (f"port {one.port}", "llama.cpp"),
        (f"port {two.port}", "lmstudio"),
    ]
    assert all(server.problem is None for server in found)


@pytest.mark.parametrize("spelling", ["http://localhost:{port}", "http://127.0.0.1:{port}/v1/", "localhost:{port}/v1"])
async def test_two_spellings_of_one_address_are_one_server_which_is_asked_once(spelling: str) -> None:
    async with serving("vllm") as address:
        settings = settings_of(
            slm_base_url=spelling.format(port=address.port),
            llm_base_url=address,
            foundry_endpoint=address.v1,
            discover=True,
        )
        found = await find(settings, places=(address.port,))
    assert [server.found_by for server in found] == ["RAG_SLM_BASE_URL"]
    assert [asked.path for asked in address.asked].count("/v1/models") == 1


async def test_each_key_goes_to_its_own_server_and_to_no_other() -> None:
    async with serving("openai") as slm, serving("openai") as llm, serving("openai") as third:
        settings = settings_of(
            slm_base_url=slm, slm_api_key="sk-small", llm_base_url=llm, llm_api_key="sk-large", discover=True
        )
        found = await find(settings, places=(third.port,))
    assert len(found) == 3
    assert _keys(slm) == {"Bearer sk-small"}
    assert _keys(llm) == {"Bearer sk-large"}
    assert _keys(third) == {None}
    assert "sk-" not in repr(found) + json.dumps([server.to_dict() for server in found])


async def test_a_server_that_is_named_twice_is_asked_with_the_key_that_one_of_them_has() -> None:
    async with serving("openai", key=KEY) as address:
        found = await find(settings_of(slm_base_url=address, llm_base_url=address.v1, llm_api_key=KEY))
        both = settings_of(slm_base_url=address, slm_api_key=KEY, llm_base_url=address.v1, llm_api_key="sk-other")
        assert await find(both) == found
    assert [(server.found_by, len(server.models)) for server in found] == [("RAG_SLM_BASE_URL", 2)]


def _keys(address: Address) -> set[str | None]:
    return {asked.headers.get("authorization") for asked in address.asked}


async def test_a_chat_of_this_product_is_no_model_server() -> None:
    async with serving("smallfirst") as address:
        assert await find(settings_of(discover=True), places=(address.port,)) == []
        (named,) = await find(settings_of(slm_base_url=address))
    assert "is a Small First chat, not a model server" in str(named.problem)
    assert named.models == ()


@pytest.mark.parametrize("name", ["says nothing", "HTML", "404", "401", "an error with status 200", "hangs up"])
async def test_what_happens_to_listen_on_a_port_and_is_no_model_server_is_left_out(name: str) -> None:
    async with misbehaving(MISBEHAVIOURS[name][0]) as address, serving("ollama") as ollama:
        found = await find(settings_of(discover=True), places=(int(address.rsplit(":", 1)[1]), ollama.port))
    assert [server.kind for server in found] == ["ollama"]


async def test_a_known_server_that_wants_a_key_is_shown_where_it_was_found() -> None:
    async with serving("llama.cpp", key=KEY) as address:
        (server,) = await find(settings_of(discover=True), places=(address.port,))
    assert server.kind == "llama.cpp"
    assert server.problem == (
        f"The server at {address.v1} wants a key (status 401). Name it in RAG_SLM_BASE_URL or RAG_LLM_BASE_URL, with"
        " RAG_SLM_API_KEY or RAG_LLM_API_KEY."
    )


async def test_a_named_server_that_is_down_stays_in_the_list() -> None:
    port = free_port()
    (server,) = await find(settings_of(slm_base_url=f"http://127.0.0.1:{port}"))
    assert (server.base_url, server.found_by) == (f"http://127.0.0.1:{port}/v1", "RAG_SLM_BASE_URL")
    assert "nothing listens there" in str(server.problem)


async def test_places_are_asked_at_the_same_time() -> None:
    reached = [asyncio.Event() for _ in range(4)]

    def meeting(mine: asyncio.Event) -> Misbehaviour:
        async def meet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            # Nobody is answered before all have been asked.
            mine.set()
            for event in reached:
                await event.wait()
            writer.write(http(LIST))
            await writer.drain()

        return meet

    async with AsyncExitStack() as stack:
        addresses = [await stack.enter_async_context(misbehaving(meeting(mine))) for mine in reached]
        settings = settings_of(slm_base_url=addresses[0], llm_base_url=addresses[1], discover=True)
        found = await find(settings, places=[int(address.rsplit(":", 1)[1]) for address in addresses[2:]])
    assert [len(server.models) for server in found] == [1, 1, 1, 1]


async def test_nothing_is_searched_where_that_is_switched_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving("ollama") as address:
        fake_foundry(tmp_path, monkeypatch, f"print('{address}')")
        monkeypatch.setenv("OLLAMA_HOST", address)
        assert await find(settings_of(discover=False), places=(address.port,)) == []
        assert address.asked == []
        assert await find(settings_of(discover=True), places=()) != []


async def test_the_environment_of_other_programs_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving("ollama") as address:
        for name in ("OLLAMA_HOST", "OPENAI_BASE_URL", "OPENAI_API_BASE"):
            monkeypatch.setenv(name, address)
        monkeypatch.setenv("PATH", "")
        assert await find(settings_of(discover=True), places=()) == []
    assert address.asked == []


# servers elsewhere


@pytest.mark.parametrize("remote", ["ask", "never"])
async def test_a_server_elsewhere_is_not_asked_before_somebody_allowed_it(
    remote: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving("openai") as proxy:
        monkeypatch.setenv("http_proxy", proxy)
        settings = settings_of(
            slm_base_url="http://models.example:8000", foundry_endpoint="http://192.0.2.7:5273", remote=remote
        )
        found = await find(settings)
    assert [(server.base_url, server.problem) for server in found] == [
        ("http://models.example:8000/v1", NOT_ASKED),
        ("http://192.0.2.7:5273/v1", NOT_ASKED),
    ]
    assert proxy.asked == []


async def test_a_server_elsewhere_is_asked_once_that_is_allowed_and_only_that_one_through_the_proxy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with serving("openai") as proxy, serving("ollama") as local:
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy)
        settings = settings_of(
            slm_base_url="http://models.example:8000",
            slm_api_key=KEY,
            llm_base_url=local,
            remote="allow",
            discover=True,
        )
        found = await find(settings, places=(local.port,))
    assert [server.kind for server in found] == ["openai", "ollama"]
    assert {asked.path.split("/")[2] for asked in proxy.asked} == {"models.example:8000"}
    assert _keys(proxy) == {f"Bearer {KEY}"}


CONNECTIONS = """
import asyncio, json, sys
seen = []
def hook(event, arguments):
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        seen.append(arguments[1][:2])
    elif event == "socket.getaddrinfo":
        seen.append([arguments[0], "looked up"])
from rag.models.discovery import PLACES, find
from rag.settings import Settings
async def main():
    asyncio.get_running_loop()
    sys.addaudithook(hook)
    settings = Settings(_env_file=None, slm_base_url="http://192.0.2.7:8000", llm_base_url="https://models.example",
                        foundry_endpoint="http://192.0.2.8:5273", discover=True)
    await find(settings, places=(*PLACES, int(sys.argv[1])))
asyncio.run(main())
print(json.dumps(seen))
"""


async def test_nobody_but_this_machine_hears_of_a_search(tmp_path: Path) -> None:
    fake_foundry(tmp_path, None, "print('http://192.0.2.9:5273 http://foundry.example:5273')")
    async with serving("openai") as address:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", CONNECTIONS, str(address.port),
            cwd=Path(__file__).parent.parent, stdout=subprocess.PIPE,
            env={**os.environ, "PATH": str(tmp_path / "bin"), "RAG_DISCOVER": "true"},
        )  # fmt: skip
        out, _ = await process.communicate()
    assert process.returncode == 0
    seen = json.loads(out.splitlines()[-1])
    ports = {port for _, port in seen}
    assert {host for host, _ in seen} == {"127.0.0.1"}
    assert {*PLACES, address.port} <= ports


# Foundry Local's own command


def fake_foundry(folder: Path, monkeypatch: pytest.MonkeyPatch | None, code: str) -> None:
    """A command `foundry` that runs this; `noun` is its first argument."""
    if os.name != "posix":
        pytest.skip("needs programs that are scripts")
    (folder / "bin").mkdir(exist_ok=True)
    program = folder / "bin" / "foundry"
    head = "import os, subprocess, sys, time\nassert sys.argv[2:] == ['status'], sys.argv\nnoun = sys.argv[1]\n"
    program.write_text(f"#!{sys.executable} -S\n{head}{code}\n")
    program.chmod(0o755)
    if monkeypatch is not None:
        monkeypatch.setenv("PATH", str(folder / "bin"))


OLDER = "🟢 Model management service is running on {address}/openai/status"
NEWER = "╭─ Foundry Local server ─╮\n│ Status    Ready\n│ PID       4711\n│ Web URLs  {address}\n╰───╯"
COLOURED = "\x1b[32m●\x1b[0m on \x1b]8;;http://127.0.0.1:1/\x1b\\\x1b[4;36mhttp://127.0.0.1:\x1b[1m{port}\x1b[0m\x1b]8;;\x1b\\/openai/status\x1b[K"
AS_JSON = '{{"running": true, "webUrls": ["{address}"], "pid": 4711}}'


@pytest.mark.parametrize(
    "said", [OLDER, NEWER, COLOURED, AS_JSON, "\r\n\r\n  {address}\r\n", "x" * 20000 + " {address}"]
)
@pytest.mark.parametrize("noun", ["service", "server"])
async def test_foundry_local_is_found_by_what_its_command_says(
    noun: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving("foundry-cli") as address:
        fake_foundry(
            tmp_path, monkeypatch,
            f"""
if noun != {noun!r}:
    sys.exit(f"Unrecognized command or argument '{{noun}}'.")
sys.stdout.buffer.write({said.format(address=address, port=address.port)!r}.encode())""",
        )  # fmt: skip
        (server,) = await find(settings_of(discover=True), places=())
    assert (server.found_by, server.kind, server.base_url) == (f"foundry {noun} status", "foundry", address.v1)
    assert len(server.models) == 2


async def test_a_command_that_knows_both_spellings_names_one_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving("foundry-server") as address:
        fake_foundry(tmp_path, monkeypatch, f"print('{address}')")
        found = await find(settings_of(discover=True), places=(address.port,))
        assert [server.found_by for server in found] == ["foundry service status"]
        address.asked.clear()
        found = await find(settings_of(foundry_endpoint=address, discover=True), places=())
        assert [server.found_by for server in found] == ["FOUNDRY_LOCAL_ENDPOINT"]
        assert [asked.path for asked in address.asked].count("/v1/models") == 1


@pytest.mark.parametrize(
    "said",
    [
        "",
        "🔴 Model management service is not running!",
        "http://192.168.1.7:5273/openai/status",
        "http://127.0.0.1.example.com:5273",
        "http://foundry.example:5273",
        "http://localhost.example:5273",
        "http://127.0.0.1",
        "http://127.0.0.1:",
        "http://127.0.0.1:123456",
        "http://[::ffff]:5273",
        "https://127.0.0.1:5273",
        "ws://127.0.0.1:5273 and 127.0.0.1:5273",
        "\x00\xff\xfe http:// \x1b[",
    ],
)
async def test_an_address_that_is_none_or_not_of_this_machine_is_refused(
    said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_foundry(tmp_path, monkeypatch, f"sys.stdout.buffer.write({said.encode('utf-8', 'surrogatepass')!r})")
    assert await ask_foundry() == []


async def test_a_loopback_address_behind_others_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_foundry(
        tmp_path, monkeypatch, "print('see http://docs.example:80 , http://192.168.1.7:1 , http://localhost:5273/')"
    )
    assert await ask_foundry() == [
        (f"foundry {noun} status", "http://localhost:5273/v1") for noun in ("service", "server")
    ]


async def test_a_service_that_its_command_calls_running_and_is_not_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    fake_foundry(tmp_path, monkeypatch, f"print('http://127.0.0.1:{port}')")
    (server,) = await find(settings_of(discover=True), places=())
    assert (server.kind, server.found_by) == ("foundry", "foundry service status")
    assert "nothing listens there" in str(server.problem)


@pytest.mark.parametrize("how", ["its time is over", "nobody waits any more"])
async def test_a_command_that_hangs_is_ended_with_all_that_it_started(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_foundry(
        tmp_path, monkeypatch,
        f"""
sleep = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]
if noun == "server":  # a child with a session of its own
    child = subprocess.Popen(sleep, start_new_session=True).pid
else:  # one whose own parent has gone
    start = f"import subprocess; print(subprocess.Popen({{sleep!r}}, stdout=subprocess.DEVNULL).pid)"
    child = int(subprocess.check_output([sys.executable, "-S", "-c", start]))
with open(f"{tmp_path}/{{noun}}.new", "w") as file:
    file.write(f"{{os.getpid()}} {{child}}")
os.rename(f"{tmp_path}/{{noun}}.new", f"{tmp_path}/{{noun}}.pids")
time.sleep(600)""",
    )  # fmt: skip
    pids = [tmp_path / f"{noun}.pids" for noun in ("service", "server")]
    # As long as it takes until both have begun: the clock itself is not under test.
    task = asyncio.create_task(ask_foundry(600 if how == "nobody waits any more" else 4))
    started: list[int] = []
    try:
        await until(lambda: all(path.exists() for path in pids))
        started += [int(pid) for path in pids for pid in path.read_text().split()]
        assert len(started) == 4
        if how == "nobody waits any more":
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            assert await task == []
        await until(lambda: not any(_runs(pid) for pid in started))
    finally:
        for pid in started:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _runs(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def left_behind(tmp_path: Path) -> Iterator[Path]:
    """A file with the id of a process that must be ended after the test."""
    path = tmp_path / "daemon.pid"
    yield path
    with suppress(OSError, ValueError):
        os.kill(int(path.read_text()), signal.SIGKILL)


async def test_a_service_that_the_command_leaves_behind_is_neither_waited_for_nor_ended(
    left_behind: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_foundry(
        tmp_path, monkeypatch,
        f"""
if noun == "server":
    sys.exit(1)
daemon = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
open({str(left_behind)!r}, "w").write(str(daemon.pid))
print("http://127.0.0.1:5273")""",
    )  # fmt: skip
    # Its output stays open for as long as the service lives.
    assert await ask_foundry(PATIENCE_S * 10) == [("foundry service status", "http://127.0.0.1:5273/v1")]
    assert _runs(int(left_behind.read_text()))


@posix_only
async def test_a_command_in_the_users_own_folder_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_foundry(tmp_path, monkeypatch, f"open({str(tmp_path / 'ran')!r}, 'w'); print('http://127.0.0.1:5273')")
    monkeypatch.chdir(tmp_path / "bin")
    for path in ("", ".", f".{os.pathsep}"):
        monkeypatch.setenv("PATH", path)
        assert await ask_foundry() == []
    assert not (tmp_path / "ran").exists()


@posix_only
async def test_a_command_that_cannot_be_run_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_foundry(tmp_path, monkeypatch, "")
    (tmp_path / "bin" / "foundry").write_bytes(b"#!/no/such/program\n")
    assert await ask_foundry() == []
