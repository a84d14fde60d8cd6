"""The Gate: what every request passes before there are routes, users or conversations.

ASGI middleware for whatever application stands behind it, Chainlit's or the API's alone. Knows paths, headers, ids and
the lengths of bodies, and of Chainlit its routes; nothing of its Python objects: whose session is in which conversation
it asks the function that it was given. It does not know who somebody is, nor how often they ask. Which holes it closes
is in the table of rag/serve/hardening.py.
"""

import json
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rag.hosts import host_name, is_address, is_loopback, own_names, port_of
from rag.serve.api_errors import ApiError
from rag.serve.ids import is_uuid, is_uuid_or_empty
from rag.serve.media import EXTENSIONS, FILE_POLICY

# Chainlit evaluates custom elements in the page, hence 'unsafe-eval', and its page has inline scripts with the theme.
# Everything else stays at this server: a picture that a document talks a model into writing cannot carry data away.
PAGE_POLICY: Final = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "media-src 'self' blob:",
        "worker-src 'self' blob:",
        "connect-src 'self'",
        "object-src 'none'",
        "base-uri 'none'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)

HEADERS: Final[Mapping[str, str]] = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}

# Not offered by this project. Without the Gate, Chainlit's catch-all would answer some of them with its page. Elements
# are closed because the ids in such a request may be another user's, feedback because nobody asks whose it is.
CLOSED: Final = re.compile(
    r"/(openapi\.json|docs(/.*)?|redoc|mcp|copilot/.*|feedback|project/(element|share/.*|thread/share)"
    r"|auth/(jwt|oauth/.*)|ws/socket\.io(/.*)?)"
)

# Chainlit's own routes that take JSON with ids in it. Other routes of the application judge their bodies themselves.
JSON_WITH_IDS: Final = re.compile(r"/(project/(action|thread|threads)|set-session-cookie)")
ID_IN_PATH: Final = re.compile(r"/project/thread/([^/]*)(?:/element/([^/]*))?/?")

# What a page of a named origin may read of an answer, beside its body.
EXPOSED: Final = ("x-request-id", "Retry-After")

# Names and boundaries around a file in a multipart body; the file itself is measured again, exactly.
FRAMING_BYTES: Final = 64 * 1024


@dataclass(frozen=True)
class Rules:
    """What is let in. Sizes are bytes."""

    listen: str
    """The address the server listens on."""
    root_path: str = ""
    allowed_hosts: frozenset[str] = frozenset()
    """Further names this server is reached by; `*` lets every name in."""
    allowed_origins: frozenset[str] = frozenset()
    """Further origins (`https://chat.example`) whose pages may use this server."""
    extensions: tuple[str, ...] = EXTENSIONS
    upload_bytes: int = 10_000_000
    session_uploads: int = 20
    """Of one conversation."""
    body_bytes: int = 2_000_000
    """Longest body of a request that is not an upload."""

    def knows_host(self, header: str) -> bool:
        """Whether a Host header names this machine.

        A foreign page reaches a local server by letting its own domain name point to 127.0.0.1; the browser then
        takes both for one origin, and only the Host header tells them apart.
        """
        name = host_name(header)
        if name is None:
            return False
        if "*" in self.allowed_hosts or name in self.allowed_hosts:
            return True
        if is_loopback(self.listen):
            return name in {"localhost", "127.0.0.1", "::1", self.listen.lower()}
        # Listening beyond this machine, under names that cannot all be known. Rebinding needs a name that its owner
        # can point anywhere: an address is none, nor is a name without a dot, nor this machine's own.
        return is_address(name) or "." not in name or name in own_names()

    def knows_origin(self, origin: str, host: str) -> bool:
        """Whether a page of that origin belongs to this server, as reached under `host`."""
        if origin in self.allowed_origins:
            return True
        try:
            url = urlsplit(origin)
            # A page served over TLS by a proxy reaches us as plain HTTP, so the schemes are not compared.
            here = urlsplit(f"{url.scheme}://{host}")
            same = (url.hostname, url.port or port_of(url.scheme)) == (here.hostname, here.port or port_of(url.scheme))
        except ValueError:
            return False
        return url.scheme in {"http", "https"} and bool(url.hostname) and same


@dataclass
class Uploads:
    """How many files each conversation has been sent. Chainlit counts in the browser only, and for each choice anew.

    A conversation outlives its sessions: a reloaded page, or one that was closed for an hour, goes on counting.
    """

    most: int
    remembered: int = 10_000
    """Conversations; the one that was used last is the last to be forgotten."""
    sent: OrderedDict[str, int] = field(default_factory=OrderedDict)

    def take(self, thread_id: str) -> bool:
        count = self.sent.get(thread_id, 0)
        if count >= self.most:
            return False
        self.sent[thread_id] = count + 1
        self.sent.move_to_end(thread_id)
        if len(self.sent) > self.remembered:
            self.sent.popitem(last=False)
        return True

    def give_back(self, thread_id: str) -> None:
        if self.sent.get(thread_id, 0) > 0:
            self.sent[thread_id] -= 1


@dataclass(frozen=True)
class Refusal:
    status: int
    why: str


class Gate:
    """ASGI middleware before every route: refuses, counts, and puts headers on whatever answers."""

    def __init__(self, app: ASGIApp, rules: Rules, uploads: Uploads, thread_of: Callable[[str], str | None]) -> None:
        self.app = app
        self.rules = rules
        self.uploads = uploads
        self.thread_of = thread_of
        """A living session's conversation; None of another session."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            if self.unclear(scope["path"]) or self.stranger(Headers(scope=scope)):
                await send({"type": "websocket.close", "code": 1008})  # before the handshake: the client sees 403
            else:
                await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await self.http(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def http(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"].removeprefix(self.rules.root_path)
        answer = Answer(send, attachment=path.startswith("/project/file/"))
        upload = path == "/project/file" and scope["method"] == "POST"
        limit = self.limit(path, scope["method"])
        answer.to_program = path.startswith("/v1/")

        headers = Headers(scope=scope)
        query = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        refusal = (
            self.unclear(path)
            or self.stranger(headers)
            or self.bad_request(path, query)
            or self.too_long(headers, limit)
        )
        thread_id = self.thread_of(query["session_id"][0]) if upload and len(query.get("session_id", [])) == 1 else None
        if refusal is None and upload:
            refusal = self.no_room(query, thread_id)
        if refusal is not None:
            await answer.refuse(refusal)
            return

        body = Body(receive, limit, answer, self.too_long_text(limit))
        try:
            if JSON_WITH_IDS.fullmatch(path) and scope["method"] != "GET":
                refusal = self.bad_json(await body.whole(), needs_session=path != "/set-session-cookie")
                if refusal is not None:
                    await answer.refuse(refusal)
            if answer.status is None:
                await self.app(scope, body.receive, answer.send)
        except Exception as error:
            if answer.refused:
                return  # the application noticed that its client is gone
            if answer.status is not None:
                raise
            if upload and isinstance(error, AssertionError):  # Chainlit asserts that the part has a name and a type
                await answer.refuse(Refusal(400, "The uploaded file has no name. Choose a file, then send it."))
                return
            # Answered here, so that this answer too carries the headers; raised again, so that it is still logged.
            await answer.refuse(Refusal(500, "Something went wrong in the server. Its log says what."))
            raise
        finally:
            if thread_id is not None and answer.status != 200:
                self.uploads.give_back(thread_id)

    def unclear(self, path: str) -> Refusal | None:
        """An address that patterns and routes could read differently: a route's `$` matches before a final newline."""
        if any(character < " " or character == "\x7f" for character in path):
            return Refusal(400, "The address holds a control character. Take it out.")
        return None

    def stranger(self, headers: Headers) -> Refusal | None:
        """Someone who came under another name, or a page of another site."""
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self.rules.knows_host(host):
            return Refusal(
                400, f"This server is not known as {host!r}. Use localhost, or allow that name where it is hardened."
            )
        if origin is not None and not self.rules.knows_origin(origin, host):
            return Refusal(403, f"Pages of {origin!r} may not use this server.")
        return None

    def bad_request(self, path: str, query: Mapping[str, list[str]]) -> Refusal | None:
        if CLOSED.fullmatch(path):
            return Refusal(404, "Not found")
        match = ID_IN_PATH.fullmatch(path)
        if match and not all(is_uuid(part) for part in match.groups() if part is not None):
            return Refusal(400, "A thread's or element's id in the address is not a UUID.")
        if path.startswith("/project/") and not all(is_uuid(value) for value in query.get("session_id", [])):
            return Refusal(400, "session_id is not a UUID.")
        return None

    def limit(self, path: str, method: str) -> int:
        """Of a body, bytes: what carries a file may be as long as files may be."""
        if method == "POST" and path in ("/project/file", "/v1/files"):
            return self.rules.upload_bytes + FRAMING_BYTES
        if method == "POST" and path == "/v1/chat/completions":
            return self.rules.upload_bytes * 4 // 3 + self.rules.body_bytes  # a file in it is written in base64
        return self.rules.body_bytes

    def too_long_text(self, limit: int) -> str:
        file = limit == self.rules.upload_bytes + FRAMING_BYTES
        what, most = ("file", self.rules.upload_bytes) if file else ("request", limit)
        return f"The {what} is too large: at most {most / 1_000_000:.3g} MB."

    def too_long(self, headers: Headers, limit: int) -> Refusal | None:
        declared = headers.get("content-length", "0")
        if not declared.isdecimal() or int(declared) > limit:
            return Refusal(413, self.too_long_text(limit))
        return None

    def no_room(self, query: Mapping[str, list[str]], thread_id: str | None) -> Refusal | None:
        """Before a byte of an upload is read: is there a session, and may its conversation have one more?"""
        if len(query.get("session_id", [])) != 1:
            return Refusal(400, "An upload needs one session_id.")
        if thread_id is None:
            return Refusal(404, "This conversation has ended. Reload the page, then attach the file again.")
        if not self.uploads.take(thread_id):
            return Refusal(
                403, f"At most {self.uploads.most} files in one conversation. Start a new chat to add others."
            )
        return None

    def bad_json(self, raw: bytes | None, needs_session: bool) -> Refusal | None:
        """Ids in the JSON bodies of Chainlit's routes; they end in SQL text and in names of stored files."""
        if raw is None:
            return None  # too long, and already refused
        try:
            body = json.loads(raw or b"{}")
        except (ValueError, RecursionError):
            return Refusal(400, "The body is not JSON.")
        if not isinstance(body, dict):
            return Refusal(400, "The body is not a JSON object.")
        for key in ("sessionId", "session_id", "threadId"):
            if not is_uuid_or_empty(body.get(key)):
                return Refusal(400, f"{key} is not a UUID.")
        session_id = body.get("sessionId")
        if needs_session and session_id and self.thread_of(session_id) is None:
            return Refusal(404, "This conversation has ended. Reload the page.")
        return None


class Answer:
    """The way back to the client. Puts the headers on; after a refusal, what the application still says is dropped."""

    def __init__(self, send: Send, attachment: bool) -> None:
        self.to_client = send
        self.attachment = attachment
        self.to_program = False
        """Whoever asks speaks OpenAI's format, and reads errors in it."""
        self.status: int | None = None
        self.refused = False

    async def send(self, message: Message) -> None:
        if self.refused:
            return
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(raw=message.setdefault("headers", []))
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
            if self.attachment:
                # Also in a tab of its own, an uploaded file must not run as a page of this server.
                headers["Content-Disposition"] = "attachment"
                headers["Content-Security-Policy"] = FILE_POLICY
            else:
                headers.setdefault("Content-Security-Policy", PAGE_POLICY)
        await self.to_client(message)

    async def refuse(self, refusal: Refusal) -> None:
        """Answer instead of the application. `detail` is the key that Chainlit's page shows to the person."""
        told: dict[str, Any] = {"detail": refusal.why}
        if self.to_program:
            told |= ApiError(refusal.status, refusal.why).body()
        response = JSONResponse(told, refusal.status)
        await self.send({"type": "http.response.start", "status": refusal.status, "headers": response.raw_headers})
        await self.send({"type": "http.response.body", "body": response.body})
        self.refused = True


class Body:
    """A request's body, counted as it comes. Past the limit the client is told, and the application sees it hang up."""

    def __init__(self, receive: Receive, limit: int, answer: Answer, too_long: str) -> None:
        self.from_client = receive
        self.limit = limit
        self.answer = answer
        self.too_long = too_long
        self.seen = 0
        self.read_ahead: bytes | None = None

    async def receive(self) -> Message:
        if self.read_ahead is not None:
            ahead, self.read_ahead = self.read_ahead, None
            return {"type": "http.request", "body": ahead, "more_body": False}
        message = await self.from_client()
        self.seen += len(message.get("body", b""))
        if self.seen > self.limit:
            if self.answer.status is None:
                await self.answer.refuse(Refusal(413, self.too_long))
            return {"type": "http.disconnect"}
        return message

    async def whole(self) -> bytes | None:
        """All of it, to be received once more by the application; None if the client hung up or was refused."""
        parts: list[bytes] = []
        while True:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            if not message.get("more_body"):
                self.read_ahead = b"".join(parts)
                return self.read_ahead
