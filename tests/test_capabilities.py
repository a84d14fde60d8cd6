"""What the probe finds out of servers that each speak in their own way, and that nothing is sent which they refuse."""

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from rag.errors import ModelBroke, ModelError, ModelRefused, ModelTimeout, ModelUnknown, ModelUnreachable
from rag.models import capabilities
from rag.models.backend import Backend, Delta, Draft, Limits
from rag.models.capabilities import EMBEDDED, Capabilities, Tried, probe, rows
from rag.models.runtime import EmbeddedServer
from rag.trace import Trace

WORDS = "the keeper climbs up stairs and lights his old lamp while ships pass by slowly".split()
Refusal = tuple[int, Any]


def openai_error(message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}}


@dataclass
class Shape:
    """How a kind of server behaves. Written from its documentation and its maintainers' words."""

    model: str = "m"
    streams: bool = True
    usage: bool = True
    logprobs: str = "full"
    """`full`, `null` or `absent`."""
    most_top: int = 20
    refuses: dict[str, Refusal] = field(default_factory=dict)
    """By request field that is there."""
    window: int = 4096
    too_long: str = "status"
    too_long_says: str = (
        "This model's maximum context length is {window} tokens. However, you requested {needed} tokens."
    )
    stop: bool = True
    seed: bool = True
    wobbles: bool = False
    """A prompt that is read for the first time leads to other words."""
    caches: bool | None = True
    """None: it does not tell."""
    progress: bool = False
    timings: bool = False
    slots: int = 8
    cancels: bool = True
    pause_s: float = 0.002
    """For each token."""
    thinks: bool = False
    """So long that a tiny answer is all thought."""
    missing: Refusal = (404, openai_error("The model does not exist.", code="model_not_found"))


class ShapedServer:
    """One model behind one shape: it writes words, counts, and obeys what its kind obeys."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.asked: list[dict[str, Any]] = []
        self.refused: list[int] = []
        self.read: set[str] = set()
        self.slots = asyncio.Semaphore(shape.slots)
        self.answering: set[asyncio.Task[None]] = set()

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            lines = head.lower().split(b"\r\n")
            length = next(int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length"))
            body = json.loads(await reader.readexactly(length))
            self.asked.append(body)
            answering = asyncio.create_task(self.answer(writer, body))
            self.answering.add(answering)
            leaving = asyncio.create_task(reader.read())
            await asyncio.wait([answering, leaving], return_when=asyncio.FIRST_COMPLETED)
            if leaving.done() and self.shape.cancels:
                answering.cancel()
            await asyncio.wait([answering])
            leaving.cancel()
        writer.close()

    async def answer(self, writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
        shape = self.shape
        if body["model"] != shape.model:
            return await self.refuse(writer, shape.missing)
        for name, refusal in shape.refuses.items():
            if name in body:
                return await self.refuse(writer, refusal)
        prompt = body["messages"][-1]["content"]
        most = body.get("max_completion_tokens") or body.get("max_tokens") or 50
        read = len(prompt.split()) + 8
        stream = body.get("stream") and shape.streams
        says = {
            "error": {
                "message": shape.too_long_says.format(needed=read + most, read=read, window=shape.window),
                "code": 400,
            }
        }
        if read + most > shape.window and shape.too_long != "cut":
            if shape.too_long == "status":
                return await self.refuse(writer, (400, says))
            return await self.send(writer, stream, [says])
        async with self.slots:
            words, finish = self.words(body, most)
            events: list[dict[str, Any]] = []
            cached = min(read, shape.window) - 1 if prompt in self.read and shape.caches else 0
            if shape.progress and body.get("return_progress"):
                events.append({"choices": [], "prompt_progress": {"total": read, "processed": read}})
            for word in words:
                choice = {"index": 0, "delta": {"content": word}, "finish_reason": None}
                if shape.thinks:
                    choice["delta"] = {"reasoning_content": word}
                if shape.logprobs != "absent":
                    choice["logprobs"] = self.logprobs(word, body)
                events.append({"choices": [choice]})
            events.append({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
            counts: dict[str, Any] = {"choices": []}
            if shape.usage and (not stream or (body.get("stream_options") or {}).get("include_usage")):
                counts["usage"] = {"prompt_tokens": min(read, shape.window), "completion_tokens": len(words)}
                if shape.caches is not None:
                    counts["usage"]["prompt_tokens_details"] = {"cached_tokens": cached}
            if shape.timings:
                counts["timings"] = {"cache_n": cached, "prompt_n": read - cached, "prompt_per_second": 480.0}
            self.read.add(prompt)
            await self.send(writer, stream, [*events, counts])

    def words(self, body: dict[str, Any], most: int) -> tuple[list[str], str]:
        sure = body.get("temperature") == 0
        chance = random.Random(body["seed"] if body.get("seed") is not None and self.shape.seed else None)
        if self.shape.wobbles and body["messages"][-1]["content"] not in self.read:
            chance.random()
        words = [f"{WORDS[at % len(WORDS)] if sure else chance.choice(WORDS)} " for at in range(most)]
        for at, word in enumerate(words if self.shape.stop else ()):
            if any(mark in word for mark in body.get("stop") or ()):
                return words[:at], "stop"
        return words, "length"

    def logprobs(self, word: str, body: dict[str, Any]) -> dict[str, Any] | None:
        if self.shape.logprobs == "null" or not body.get("logprobs"):
            return None
        top = [
            {"token": word, "logprob": -0.1 - at} for at in range(min(body.get("top_logprobs", 0), self.shape.most_top))
        ]
        return {"content": [{"token": word, "logprob": -0.1, "top_logprobs": top}]}

    async def refuse(self, writer: asyncio.StreamWriter, refusal: Refusal) -> None:
        status, body = refusal
        self.refused.append(status)
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {len(data)}\r\n\r\n"
        writer.write(head.encode() + data)
        await writer.drain()

    async def send(self, writer: asyncio.StreamWriter, stream: bool, events: list[dict[str, Any]]) -> None:
        if not stream:
            await asyncio.sleep(self.shape.pause_s * len(events))
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n")
            writer.write(json.dumps(whole(events)).encode())
            await writer.drain()
            return
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
        for event in events:
            with suppress(OSError):
                writer.write(b"data: " + json.dumps(event).encode() + b"\n\n")
                await writer.drain()
            await asyncio.sleep(self.shape.pause_s)
        writer.write(b"data: [DONE]\n\n")
        await writer.drain()


def whole(events: list[dict[str, Any]]) -> dict[str, Any]:
    if "error" in events[0]:
        return events[0]
    choices = [event["choices"][0] for event in events if event["choices"]]
    entries = [entry for one in choices if one.get("logprobs") for entry in one["logprobs"]["content"]]
    text = "".join(one["delta"].get("content", "") for one in choices)
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text},
        "finish_reason": choices[-1]["finish_reason"],
    }
    return {**events[-1], "choices": [{**choice, "logprobs": {"content": entries} if entries else None}]}


@asynccontextmanager
async def shaped(shape: Shape) -> AsyncIterator[tuple[str, ShapedServer]]:
    server = ShapedServer(shape)
    listener = await asyncio.start_server(server.handle, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/v1", server
    finally:
        listener.close()
        for task in server.answering:
            task.cancel()
        await asyncio.gather(*server.answering, return_exceptions=True)


NO_PENALTIES = openai_error("Unsupported parameter: nonzero frequency_penalty and presence_penalty are not supported")
FOUNDRY = Shape(
    model="phi-4-mini:5",
    logprobs="null",
    refuses={"frequency_penalty": (400, NO_PENALTIES)},
    too_long="event",
    too_long_says="The request requires {needed} total tokens ({read} input + 5 output), the model's limit is {window}",
    caches=None,
    missing=(404, openai_error("Model not found: No model matching")),
)
OLLAMA = Shape(too_long="cut", caches=None, slots=1)
LMSTUDIO = Shape(
    logprobs="null",
    usage=False,
    too_long="event",
    too_long_says="Trying to keep the first {needed} tokens when context the overflows. However, the model is loaded with"
    " context length of only {window} tokens, which is not enough.",
    caches=None,
    slots=1,
)
VLLM = Shape(model="Qwen/Qwen2.5-0.5B-Instruct", caches=None, too_long="status")
LLAMA = Shape(
    too_long_says="request ({needed} tokens) exceeds the available context size ({window} tokens), try increasing it",
    progress=True, timings=True, slots=1,
)  # fmt: skip
REASONING = Shape(
    window=200_000,
    thinks=True,
    refuses={
        "max_tokens": (400, openai_error(
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
            "max_tokens", "unsupported_parameter")),
        "logprobs": (403, openai_error("You are not allowed to request logprobs from this model")),
        "return_progress": (400, openai_error("Unrecognized request argument supplied: return_progress")),
        "temperature": (400, openai_error(
            "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) value is supported.",
            "temperature", "unsupported_value")),
        "stop": (400, openai_error("Unsupported parameter: 'stop' is not supported with this model.", "stop")),
        "frequency_penalty": (400, openai_error("Unsupported parameter: 'frequency_penalty'", "frequency_penalty")),
    },
    caches=None,
)  # fmt: skip

KNOWN = Capabilities(
    stream=True, usage=True, logprobs=True, top_logprobs=5, context_tokens=4096, penalties=True, stop=True, seed=True,
    prompt_progress=False,
)  # fmt: skip
EXPECTED: dict[str, tuple[Shape, Capabilities]] = {
    "llama.cpp": (LLAMA, replace(EMBEDDED, context_tokens=4096, prompt_tokens_per_s=480.0)),
    "Foundry Local": (FOUNDRY, replace(
        KNOWN, logprobs=False, top_logprobs=None, too_long="event", penalties=False, refuses=frozenset({"frequency_penalty"}))),
    "Ollama": (OLLAMA, replace(KNOWN, too_long="cut", cancels=True)),
    "Ollama before 0.12.11": (replace(OLLAMA, logprobs="absent"), replace(
        KNOWN, too_long="cut", cancels=True, logprobs=False, top_logprobs=None)),
    "LM Studio": (LMSTUDIO, replace(
        KNOWN, usage=False, logprobs=False, top_logprobs=None, too_long="event", cancels=True)),
    "vLLM": (VLLM, replace(KNOWN, too_long="status")),
    "few rivals": (replace(VLLM, most_top=2), replace(KNOWN, too_long="status", top_logprobs=2)),
    "a reasoning model": (REASONING, Capabilities(
        stream=True, usage=True, logprobs=False, context_tokens=200_000, penalties=False, stop=False, prompt_progress=False,
        refuses=frozenset(REASONING.refuses), length_field="max_completion_tokens")),
    "one that does not cancel": (replace(LLAMA, cancels=False, window=1024, pause_s=0.005), replace(
        EMBEDDED, context_tokens=1024, prompt_tokens_per_s=480.0, cancels=False)),
    "one that obeys nothing": (replace(VLLM, stop=False, seed=False, caches=False, timings=True), replace(
        KNOWN, too_long="status", stop=False, seed=False, prompt_cache=False, prompt_tokens_per_s=480.0)),
    "one that cannot stream": (replace(VLLM, streams=False), replace(
        KNOWN, stream=False, usage=None, too_long="status", cancels=None)),
    "a strict one, which says nothing": (
        replace(VLLM, refuses={name: (422, {"detail": "Unprocessable"}) for name in ("return_progress", "stream_options")}),
        replace(KNOWN, usage=False, too_long="status", refuses=frozenset({"return_progress", "stream_options"}))),
    "a strict one, which names what it means": (
        replace(VLLM, refuses={"top_logprobs": (422, {"detail": [
            {"type": "extra_forbidden", "loc": ["body", "top_logprobs"], "msg": "Extra inputs are not permitted"}]})}),
        replace(KNOWN, top_logprobs=0, too_long="status", refuses=frozenset({"top_logprobs"}))),
}  # fmt: skip


@pytest.mark.parametrize("kind", list(EXPECTED))
async def test_each_server_is_known_by_what_it_does(kind: str) -> None:
    shape, expected = EXPECTED[kind]
    async with shaped(shape) as (url, server):
        seen = await probe(url, shape.model, timeout_s=10, context_tokens=shape.window)
        asked = len(server.asked)
        assert replace(seen, tokens_per_s=None) == expected
        if shape.streams:
            assert seen.tokens_per_s is not None
            assert 1 < seen.tokens_per_s < 1 / shape.pause_s
        assert asked <= 14 + len(shape.refuses), "a dozen tiny requests, and one for each refusal"

        # What was learnt is obeyed: nothing is refused any more.
        server.refused.clear()
        backend = Backend("slm", shape.model, url, limits=Limits(2, 5, 5), capabilities=seen)
        try:
            pieces = []
            with suppress(ModelError if shape.thinks else ()):
                stream = backend.stream([{"role": "user", "content": "hi"}], max_tokens=5, trace=Trace())
                pieces = [piece async for piece in stream]
        finally:
            await backend.close()
        assert server.refused == []
        assert not set(server.asked[-1]) & seen.refuses
        assert server.asked[-1][seen.length_field] == 5
        assert ("logprobs" in server.asked[-1]) == (
            seen.logprobs is True or (seen.logprobs is None and not shape.refuses)
        )
        if not shape.thinks:
            draft = pieces[-1]
            assert isinstance(draft, Draft)
            assert draft.text == "".join(piece.text for piece in pieces if isinstance(piece, Delta))
            assert len(draft.tokens) == (5 if seen.logprobs else 0)


async def test_every_stream_is_closed_and_none_is_left_computing() -> None:
    async with shaped(LLAMA) as (url, server):
        await probe(url, "m", timeout_s=10, context_tokens=4096)
        async with asyncio.timeout(5), server.slots:
            pass


async def test_a_probe_that_is_called_off_leaves_nothing_running() -> None:
    told: list[str] = []
    async with shaped(LLAMA) as (url, server):
        probing = asyncio.create_task(probe(url, "m", timeout_s=10, context_tokens=4096, tell=told.append))
        while "speed, closing a stream" not in told or not any("story" in str(body) for body in server.asked):
            await asyncio.sleep(0.01)
        probing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await probing
        async with asyncio.timeout(5), server.slots:
            pass


async def test_the_window_is_learnt_from_the_refusal_and_a_large_one_is_left_alone() -> None:
    async with shaped(replace(VLLM, window=1000)) as (url, _):
        assert (await probe(url, VLLM.model, timeout_s=10, context_tokens=2000)).context_tokens == 1000
    async with shaped(replace(VLLM, window=131_072)) as (url, server):
        seen = await probe(url, VLLM.model, timeout_s=10, context_tokens=131_072)
        assert seen.too_long is None
        assert max(len(str(body)) for body in server.asked) < 2000


async def test_a_window_larger_than_it_was_told_cuts_nothing() -> None:
    async with shaped(replace(VLLM, window=100_000)) as (url, _):
        assert (await probe(url, VLLM.model, timeout_s=10, context_tokens=1000)).too_long is None


async def test_a_seed_is_obeyed_although_the_first_reading_makes_a_difference() -> None:
    async with shaped(replace(VLLM, wobbles=True)) as (url, _):
        assert (await probe(url, VLLM.model, timeout_s=10)).seed is True


async def test_only_our_own_sentences_are_sent_and_the_key_to_nobody_else() -> None:
    ours = {capabilities.SENTENCE, capabilities.STORY, capabilities.ANIMAL, capabilities.YES}
    async with shaped(VLLM) as (url, server):
        await probe(url, VLLM.model, timeout_s=10)
        assert {body["messages"][0]["content"] for body in server.asked} == ours
        assert {len(body["messages"]) for body in server.asked} == {1}


KEY = "sk-planted-2749-secret"


@pytest.mark.parametrize(
    ("refusal", "error", "says"),
    [
        ((401, openai_error(f"Incorrect API key provided: {KEY}")), ModelRefused, "refused the key"),
        ((400, openai_error(f"{KEY} is bad")), ModelRefused, "[key] is bad"),
        ((404, openai_error("model 'm' not found")), ModelUnknown, "not found"),
        ((404, {"detail": "Not Found"}), ModelRefused, "no chat at that address"),
        ((400, openai_error("Model m must be loaded first")), ModelUnknown, "load it there"),
        ((307, ""), ModelRefused, "no chat at that address"),
        ((429, openai_error("slow down")), ModelRefused, "slow down"),
        ((500, "<html>oops</html>"), ModelRefused, "oops"),
        ((200, "<html>hello</html>"), ModelBroke, "no chat completion"),
        ((200, {"error": "Unexpected endpoint or method. (POST /v1/chat/completions)"}), ModelRefused, "no chat at that address"),
        ((200, {"hello": "world"}), ModelBroke, "no"),
        ((200, ""), ModelBroke, "nothing that is a chat completion"),
    ],
)  # fmt: skip
async def test_a_server_that_does_not_answer_the_simplest_request_is_an_error(
    refusal: Refusal, error: type[ModelError], says: str
) -> None:
    async with shaped(Shape(refuses={"model": refusal})) as (url, _):
        with pytest.raises(error) as caught:
            await probe(url, "m", api_key=KEY, timeout_s=1)
    assert says in str(caught.value)
    assert KEY not in f"{caught.value!r}"
    assert str(caught.value).endswith(".")


async def test_nobody_there_and_nobody_answering() -> None:
    with pytest.raises(ModelUnreachable, match=r"http://127\.0\.0\.1:9/v1"):
        await probe("http://user:word@127.0.0.1:9/v1", "m")
    async with shaped(replace(VLLM, pause_s=60)) as (url, _):
        with pytest.raises(ModelTimeout, match=r"0\.2 s"):
            await probe(url, VLLM.model, timeout_s=0.2)


async def test_a_server_that_breaks_in_one_trial_is_tried_in_the_others() -> None:
    shape = replace(VLLM, refuses={"seed": (500, openai_error("internal error")), "stop": (200, "<html>oops</html>")})
    async with shaped(shape) as (url, _):
        seen = await probe(url, VLLM.model, timeout_s=10, context_tokens=4096)
    assert replace(seen, tokens_per_s=None) == replace(KNOWN, too_long="status", seed=None, stop=None)


async def test_a_server_that_loads_is_waited_for() -> None:
    shape = replace(VLLM, refuses={"stream": (503, openai_error("Loading model"))})
    async with shaped(shape) as (url, server):
        probing = asyncio.create_task(probe(url, VLLM.model, timeout_s=10, context_tokens=4096))
        while len(server.refused) < 2:
            await asyncio.sleep(0.01)
        shape.refuses.clear()
        assert (await probing).stream is True


# --- the real one ----------------------------------------------------------------------------------------------------


async def test_the_embedded_runtime_can_what_is_said_of_it(small_weights: Path) -> None:
    server = EmbeddedServer("small", small_weights, context_tokens=2048, prompt_cache_mb=16)
    told: list[str] = []
    try:
        await server.start()
        seen = await probe(
            server.base_url, "small", api_key=server.api_key, timeout_s=60, context_tokens=2048, tell=told.append
        )
    finally:
        await server.stop()
    assert replace(seen, context_tokens=None, prompt_tokens_per_s=None, tokens_per_s=None) == EMBEDDED
    assert seen.context_tokens == 2048
    assert seen.tokens_per_s
    assert seen.prompt_tokens_per_s
    assert "seed" in told


# --- memory ----------------------------------------------------------------------------------------------------------

SEEN = replace(EMBEDDED, refuses=frozenset({"seed", "stop"}), tokens_per_s=17.5, length_field="max_completion_tokens")


def test_what_was_seen_is_known_again_for_the_same_server_model_and_version(tmp_path: Path) -> None:
    tried = Tried(tmp_path / "cache")
    assert tried.get("http://127.0.0.1:1/v1", "m", "1.0") is None
    tried.put("http://127.0.0.1:1/v1", "m", "1.0", SEEN)
    tried.put("http://127.0.0.1:1/v1", "n", None, EMBEDDED)
    again = Tried(tmp_path / "cache")
    assert again.get("http://127.0.0.1:1/v1", "m", "1.0") == SEEN
    assert again.get("http://127.0.0.1:1/v1", "n", None) == EMBEDDED
    assert again.get("http://127.0.0.1:1/v1", "m", "1.1") is None
    assert again.get("http://127.0.0.1:1/v1", "m", None) is None
    assert again.get("http://127.0.0.1:2/v1", "m", "1.0") is None
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["capabilities.json"]


def test_it_holds_no_password_of_an_address(tmp_path: Path) -> None:
    Tried(tmp_path).put(f"http://user:{KEY}@127.0.0.1:1/v1?key={KEY}", "m", None, SEEN)
    assert KEY not in (tmp_path / "capabilities.json").read_text()


@pytest.mark.parametrize(
    "text",
    ["", "{torn", "[]", '{"m at http://127.0.0.1:1/v1": 7}', '{"m at http://127.0.0.1:1/v1": {"version": null, "seen": []}}']
    + [
        json.dumps({"m at http://127.0.0.1:1/v1": {"version": None, "seen": seen}})
        for seen in (
            {"stream": "yes"}, {"unheard": 1}, {"refuses": "stop"}, {"refuses": [1]}, {"too_long": "perhaps"},
            {"length_field": None}, {"tokens_per_s": "fast"}, {"top_logprobs": -1}, {"context_tokens": True},
        )
    ],
)  # fmt: skip
def test_a_damaged_file_is_as_good_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "capabilities.json").write_text(text)
    tried = Tried(tmp_path)
    assert tried.get("http://127.0.0.1:1/v1", "m", None) is None
    tried.put("http://127.0.0.1:1/v1", "m", None, SEEN)
    assert tried.get("http://127.0.0.1:1/v1", "m", None) == SEEN


def test_servers_that_come_back_on_other_ports_do_not_pile_up(tmp_path: Path) -> None:
    tried = Tried(tmp_path)
    tried.path.write_text(json.dumps({f"m at {port}": {} for port in range(capabilities.MOST_KEPT)}))
    tried.put("http://127.0.0.1:1/v1", "m", None, SEEN)
    kept = json.loads(tried.path.read_text())
    assert len(kept) == capabilities.MOST_KEPT
    assert "m at 0" not in kept
    assert tried.get("http://127.0.0.1:1/v1", "m", None) == SEEN


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    tried = Tried(tmp_path / "file")
    tried.put("http://127.0.0.1:1/v1", "m", None, SEEN)
    assert tried.get("http://127.0.0.1:1/v1", "m", None) is None


def test_capabilities_are_the_same_after_a_trip_through_json() -> None:
    for seen in (SEEN, EMBEDDED, Capabilities()):
        assert Capabilities.from_dict(json.loads(json.dumps(seen.to_dict()))) == seen


def test_a_person_reads_yes_no_and_not_told() -> None:
    table = {name: value for name, value, _ in rows(replace(SEEN, seed=None, cancels=False, top_logprobs=3))}
    assert table["logprobs"] == "yes, the best 3"
    assert (table["obeys a seed"], table["stops when nobody listens"], table["streams"]) == ("not told", "no", "yes")
    assert table["refuses"] == "seed, stop"
    assert table["writes"] == "18 tokens/s"
    assert table["too long a prompt"] == "refused"
    assert {value for name, value, _ in rows(Capabilities()) if name != "refuses"} == {"not told"}


def test_the_table_names_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    capabilities.show("phi-4-mini:5", SEEN)
    shown = capsys.readouterr().out
    assert "phi-4-mini:5" in shown
    assert all(name in shown for name, _, _ in rows(SEEN))
