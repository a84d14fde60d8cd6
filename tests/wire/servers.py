"""Model servers as they speak on the wire, replayed by real HTTP servers on 127.0.0.1.

Each `.json` file beside this one is one kind of server: what it answers to which GET, to a path that it does not have, to
a request without its key, and how it streams a chat completion. `source` says where the shapes are from: `llama.cpp` was
recorded from a running server, the others were written from documentation, source code and what people published of
running ones. Knows shapes only; nothing here generates.

    async with serving("ollama") as address:          # http://127.0.0.1:PORT
        ...
        assert address.asked[0].path == "/api/version"
"""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

KINDS = tuple(sorted(path.stem for path in Path(__file__).parent.glob("*.json")))
"""foundry (SDK 2.x), foundry-cli (0.x), foundry-server (0.10), llama.cpp, lmstudio, ollama, openai, smallfirst, vllm."""


@dataclass(frozen=True)
class Asked:
    """One request. Names of headers are in lower case; `body` is the parsed JSON of a POST."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: Any = None


@dataclass(frozen=True)
class Reply:
    """A JSON body, or text of another type; `delay_s` before the first byte."""

    body: Any = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str | None = "application/json"
    delay_s: float = 0


class Address(str):
    """Where it listens, `http://127.0.0.1:PORT`, and what it was asked."""

    asked: list[Asked]

    @property
    def v1(self) -> str:
        return f"{self}/v1"

    @property
    def port(self) -> int:
        return int(self.rsplit(":", 1)[1])


def wire(kind: str) -> dict[str, Any]:
    """The shapes of one kind of server."""
    shapes: dict[str, Any] = json.loads(Path(__file__).with_name(f"{kind}.json").read_text())
    return shapes


@asynccontextmanager
async def serving(
    kind: str, *, port: int = 0, key: str | None = None, replies: Mapping[str, Reply] | None = None
) -> AsyncIterator[Address]:
    """A server of that kind; yields its address.

    With `key` it refuses whoever does not send that one. `replies` are given instead of the recorded ones, by path.
    """
    shapes = wire(kind)
    asked: list[Asked] = []

    working: set[asyncio.Task[Any]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        working.add(task)
        task.add_done_callback(working.discard)
        with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            request = await _read(reader)
            asked.append(request)
            reply = _reply(request, shapes, address, key, replies or {})
            await asyncio.sleep(reply.delay_s)
            headers = {**shapes.get("headers", {}), **reply.headers, "Connection": "close"}
            if reply.content_type is not None:
                headers["Content-Type"] = reply.content_type
            events = isinstance(reply.body, list) and reply.content_type == "text/event-stream"
            payload = b"" if events else _payload(reply.body)
            if not events:
                headers["Content-Length"] = str(len(payload))
            head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            writer.write(f"HTTP/1.1 {reply.status} X\r\n{head}\r\n".encode() + payload)
            for event in reply.body if events else ():
                writer.write(b"data: " + _payload(event) + b"\n\n")
                await writer.drain()
            await writer.drain()
        writer.close()

    listener = await asyncio.start_server(handle, "127.0.0.1", port)
    address = Address(f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}")
    address.asked = asked
    try:
        yield address
    finally:
        listener.close()
        for task in list(working):
            task.cancel()


async def _read(reader: asyncio.StreamReader) -> Asked:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    method, path, _ = head[0].split(" ", 2)
    headers = {
        name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)
    }
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Asked(method, path, headers, json.loads(body) if body else None)


def _payload(body: Any) -> bytes:
    return b"" if body is None else body.encode() if isinstance(body, str) else json.dumps(body).encode()


def _reply(asked: Asked, shapes: dict[str, Any], address: str, key: str | None, replies: Mapping[str, Reply]) -> Reply:
    if asked.path in replies:
        return replies[asked.path]
    keyed = asked.headers.get("authorization") == f"Bearer {key}"
    if key is not None and not keyed and asked.path not in shapes.get("public", ()):
        return _shaped(shapes.get("no_key") or {"status": 401, "body": {"error": {"message": "Unauthorized"}}})
    if asked.method == "POST" and asked.path.endswith("/chat/completions"):
        return _chat(asked, shapes["chat"])
    known = shapes["gets"].get(asked.path) if asked.method == "GET" else None
    return _shaped(known or shapes["unknown_path"], address=address, path=asked.path)


def _shaped(shape: dict[str, Any], **values: str) -> Reply:
    """`{address}`, `{path}` and `{model}` in a recorded text stand for this server's own."""
    text = json.dumps(shape["body"])
    for name, value in values.items():
        text = text.replace(f"{{{name}}}", value)
    return Reply(json.loads(text), shape.get("status", 200), {}, shape.get("content_type", "application/json"))


def _chat(asked: Asked, chat: dict[str, Any]) -> Reply:
    wanted = asked.body
    known = chat.get("local_models" if asked.path.startswith("/catalogs/local/") else "models")
    if known is not None and wanted["model"] not in known:
        refusal = "unloaded_model" if wanted["model"] in chat.get("unloaded", ()) else "unknown_model"
        return _shaped(chat[refusal], model=wanted["model"])
    for name, reason in chat.get("refuses", {}).items():
        if wanted.get(name):
            body = {"error": {"message": reason, "type": "invalid_request_error", "param": None, "code": None}}
            return Reply(body, 400)
    if not wanted.get("stream"):
        return Reply(_told(chat["whole"], wanted))
    usage = (wanted.get("stream_options") or {}).get("include_usage")
    events = [_told(event, wanted) for event in chat["events"] if usage or event["choices"]]
    return Reply([*events, "[DONE]"], content_type="text/event-stream")


def _told(event: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """A recorded event for the model that was asked; its logprobs only where they were asked for."""
    event = json.loads(json.dumps(event)) | {"model": wanted["model"]}
    for choice in event["choices"] if not wanted.get("logprobs") else ():
        choice.pop("logprobs", None)
    return event
