"""What the web server must refuse.

`harden(app, sio)` is called once, when app.py is loaded and before the server listens. Nearly everything is one ASGI
middleware, the `Gate`, which stands before all routes and knows only paths, headers and bodies. Five things cannot be
seen from there and are put into Chainlit 2.12 itself; each is looked for first, and if it is not where it was, the
server does not start: an upgrade must not reopen a hole in silence.

It knows nothing of models, documents or turns, and decides nothing about who may sign in: that is rag/serve/login.py,
whose Door stands behind the Gate. It does not limit how often someone asks, and it does not replace TLS.

What belongs to one user and is asked for by another, Chainlit itself refuses in most places: lists, conversations,
elements, names, uploads, files, actions, and sockets with somebody's session or kept conversation (tests/test_login.py
asks for each). Where it does not, the table says so.

The holes that it closes, each shown open and closed in tests/test_hardening.py:

    sessionId becomes a folder's name that is deleted later     only UUIDs connect; the folder is checked again
    threadId is written into SQL text                           only UUIDs, wherever a request carries one
    any site's page may open the WebSocket                      Origin must be this server's own
    any site's page may read REST answers, with cookies         the same, and no CORS answer
    another name that resolves to 127.0.0.1 (DNS rebinding)     Host must be a name of this machine
    uploads are served as what their sender called them         typed by extension, attachment, nosniff, sandbox
    uploads are read whole before their size is looked at       Content-Length first, then counted as they come
    an empty upload is an internal error                        refused in words
    any number of uploads                                       counted for each conversation, over reloads
    a conversation that is not kept yet can be joined           only its own user's sockets may name it
    elements, thumbs and shares are written for anybody         404: this project uses none of these routes
    a token can be renewed for ever                             404, and there is no OAuth either
    long polling is served, frames of it are not followed       404: sockets only
    pictures in an answer load from anywhere                    Content-Security-Policy
    the page itself calls font and style servers                those lines are taken out of it
    the list of all routes is public                            404
    a newline ends an address, and no pattern here knows it     400, whatever control character it is
    messages of a closed conversation stay in memory            forgotten with the session
"""

import inspect
import ipaddress
import json
import re
import socket
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rag.serve.api_errors import ApiError

# What an accepted extension is, whatever the sender called it. Pages and scripts are plain text here: what someone
# uploads is never run in this server's name. tests/test_formats.py holds the list to the one that documents are read by.
_EXTENSIONS_OF: Final[Mapping[str, str]] = {
    "text/plain": (
        ".txt .rst .org .html .htm .xhtml .csv .tsv .json .jsonl .ndjson .ipynb .eml .py .pyi .js .mjs .cjs .ts"
        " .tsx .jsx .vue .java .c .h .cc .cpp .cxx .hpp .rs .go .rb .php .cs .fs .swift .kt .scala .lua .pl .r .jl"
        " .dart .ex .erl .hs .clj .sh .bash .zsh .fish .ps1 .bat .sql .css .scss .less .tex .yaml .yml .toml .ini"
        " .cfg .conf .properties .xml .proto .graphql .tf .cmake .gradle .diff .patch .srt .vtt .log"
    ),
    "text/markdown": ".md .markdown",
    "application/pdf": ".pdf",
    "application/rtf": ".rtf",
    "application/epub+zip": ".epub",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": ".docx .docm",
    "application/vnd.openxmlformats-officedocument.presentationml.presentation": ".pptx .pptm",
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet": ".xlsx .xlsm",
    "application/msword": ".doc",
    "application/vnd.ms-powerpoint": ".ppt",
    "application/vnd.ms-excel": ".xls",
    "application/vnd.oasis.opendocument.text": ".odt",
    "application/vnd.oasis.opendocument.spreadsheet": ".ods",
    "application/vnd.oasis.opendocument.presentation": ".odp",
    "image/png": ".png",
    "image/jpeg": ".jpg .jpeg",
    "image/tiff": ".tif .tiff",
    "image/bmp": ".bmp",
    "image/webp": ".webp",
    "image/gif": ".gif",
}
MEDIA_TYPES: Final[Mapping[str, str]] = {
    extension: kind for kind, extensions in _EXTENSIONS_OF.items() for extension in extensions.split()
}
EXTENSIONS: Final = tuple(MEDIA_TYPES)
# To be named where all of them would be too many.
USUAL: Final = (".pdf", ".docx", ".pptx", ".xlsx", ".html", ".md", ".txt")

# Lower case only: on a file system that ignores case, two spellings would be two sessions in one folder.
UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

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
FILE_POLICY: Final = "default-src 'none'; sandbox; frame-ancestors 'none'"

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

FOREIGN_LINK: Final = re.compile(r"""<link\b[^>]*\bhref=["'](?:https?:)?//[^>]*>\s*""")

# Names and boundaries around a file in a multipart body; the file itself is measured again, exactly.
FRAMING_BYTES: Final = 64 * 1024


class Unhardened(RuntimeError):
    """Chainlit is not built as this module expects; starting it would leave a hole open."""


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


def port_of(scheme: str) -> int:
    return 443 if scheme == "https" else 80


def host_name(header: str) -> str | None:
    """The name in a Host header, lower case, without port, brackets and final dot; None if it is not one."""
    match = re.fullmatch(r"(\[[0-9a-f:.]+\]|[0-9a-z._-]+)(:[0-9]{1,5})?", header.strip().lower())
    return match[1].strip("[]").rstrip(".") if match else None


def is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_loopback(name: str) -> bool:
    return name.lower() == "localhost" or (is_address(name) and ipaddress.ip_address(name).is_loopback)


def own_names() -> set[str]:
    name = socket.gethostname().lower()
    return {name, f"{name.split('.')[0]}.local"}


def is_uuid(value: object) -> bool:
    return isinstance(value, str) and UUID.fullmatch(value) is not None


def is_uuid_or_empty(value: object) -> bool:
    return value is None or value == "" or is_uuid(value)


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


def harden(
    app: Starlette,
    sio: Any,
    *,
    listen: str | None = None,
    allowed_hosts: Iterable[str] = (),
    allowed_origins: Iterable[str] = (),
    extensions: Iterable[str] = EXTENSIONS,
    upload_mb: int = 10,
    session_uploads: int = 20,
    message_bytes: int = 200_000,
    body_bytes: int = 2_000_000,
) -> None:
    """Close Chainlit's server to strangers. A second call, as after a reload in watch mode, does nothing.

    `listen` is the address listened on (Chainlit's own setting if None); `message_bytes` the longest WebSocket frame.
    Raises `Unhardened` if Chainlit is not built as expected.
    """
    if getattr(app.state, "hardened", False):
        return

    # Importing Chainlit reads a configuration and makes folders where it runs, so it waits until someone hardens it.
    from chainlit import server
    from chainlit.chat_context import chat_contexts
    from chainlit.config import FILES_DIRECTORY, config
    from chainlit.session import WebsocketSession, ws_sessions_id

    rules = Rules(
        listen=listen or config.run.host,
        root_path=config.run.root_path.rstrip("/"),
        allowed_hosts=frozenset(host.lower() for host in allowed_hosts),
        allowed_origins=frozenset(origin.rstrip("/") for origin in allowed_origins),
        extensions=tuple(extension.lower() for extension in extensions),
        upload_bytes=upload_mb * 1_000_000,
        session_uploads=session_uploads,
        body_bytes=body_bytes,
    )
    uploads = Uploads(rules.session_uploads)

    def thread_of(session_id: str) -> str | None:
        session = WebsocketSession.get_by_id(session_id)
        return None if session is None else str(session.thread_id)

    check_connections(sio, WebsocketSession, ws_sessions_id)
    check_uploads(server, rules)
    keep_page_at_home(server)
    forget_sessions(WebsocketSession, chat_contexts, FILES_DIRECTORY)
    answer_no_foreign_page(app, rules.allowed_origins)

    expect(hasattr(sio.eio, "max_http_buffer_size"), "the socket server's max_http_buffer_size")
    sio.eio.max_http_buffer_size = message_bytes

    expect(app.middleware_stack is None, "an application that has not answered a request yet")
    app.add_middleware(Gate, rules=rules, uploads=uploads, thread_of=thread_of)
    app.state.hardened = True


def expect(found: bool, what: str) -> None:
    if not found:
        from chainlit.version import __version__

        raise Unhardened(
            f"Chainlit {__version__} does not have {what} where version 2.12 has it, so it cannot be secured. "
            "Install chainlit==2.12.0, or bring rag/serve/hardening.py up to date."
        )


def check_connections(sio: Any, session_class: Any, sessions: Any) -> None:
    """Only well-formed ids reach Chainlit's connect handler: it makes a path of one and SQL of the other.

    It asks whose a kept conversation is, but one without a message is kept nowhere yet: whoever names it would be in it.
    """
    connect: Callable[..., Awaitable[Any]] | None = sio.handlers.get("/", {}).get("connect")
    expect(
        connect is not None and list(inspect.signature(connect).parameters) == ["sid", "environ", "auth"],
        "its socket connect handler",
    )
    expect(isinstance(sessions, dict) and callable(getattr(session_class, "get", None)), "the list of its sessions")
    assert connect is not None
    from socketio.exceptions import ConnectionRefusedError as Refused  # this one's text reaches the client

    def stranger_in_thread(here: Any) -> bool:
        return any(
            other.thread_id == here.thread_id and user_of(other) != user_of(here) for other in list(sessions.values())
        )

    async def checked(sid: str, environ: dict[str, Any], auth: object = None) -> Any:
        why = bad_connection(auth, parse_qs(environ.get("QUERY_STRING", ""), keep_blank_values=True))
        if why is not None:
            raise Refused(why)
        connected = await connect(sid, environ, auth)
        session = session_class.get(sid)
        if session is not None and stranger_in_thread(session):
            await session.delete()
            raise Refused("This conversation is another user's.")
        return connected

    sio.on("connect", checked)


def user_of(session: Any) -> str | None:
    return session.user.identifier if session.user else None


def bad_connection(auth: object, query: Mapping[str, list[str]]) -> str | None:
    """Why a socket's first packet is refused, or None. Chainlit takes all these values as they come."""
    if not isinstance(auth, dict):
        return "No session was named."
    if not is_uuid(auth.get("sessionId")) or not all(is_uuid(value) for value in query.get("sessionId", [])):
        return "sessionId is not a UUID."
    threads = [auth.get("threadId"), *query.get("threadId", [])]
    if not all(is_uuid_or_empty(value) for value in threads):
        return "threadId is not a UUID."
    if auth.get("clientType") not in ("webapp", "copilot"):
        return "clientType is neither webapp nor copilot."
    if not isinstance(auth.get("chatProfile") or "", str):
        return "chatProfile is not a text."
    try:
        environment = json.loads(auth.get("userEnv") or "{}")
    except (TypeError, ValueError, RecursionError):
        return "userEnv is not JSON."
    return None if isinstance(environment, dict) else "userEnv is not a JSON object."


def check_uploads(server: Any, rules: Rules) -> None:
    """Chainlit's check of an upload believes the type that the sender declares, and lets an empty file through to an
    internal error. Ours comes before it: it looks at the name and the size, and sets the type from the name."""
    original = getattr(server, "validate_file_upload", None)
    expect(
        callable(original)
        and list(inspect.signature(original).parameters) == ["file", "spec"]
        and "validate_file_upload" in server.upload_file.__code__.co_names,
        "its check of uploaded files",
    )
    paths = {getattr(route, "path", None) for route in server.router.routes}
    root = rules.root_path
    expect({f"{root}/project/file", f"{root}/project/file/{{file_id}}"} <= paths, "its routes for uploaded files")
    assert original is not None

    def validate(file: Any, spec: Any = None) -> None:
        name = file.filename or ""
        extension = PurePosixPath(name.replace("\\", "/")).suffix.lower()
        if extension not in rules.extensions:
            usual = [one for one in USUAL if one in rules.extensions] or rules.extensions
            raise ValueError(
                f"{name} is not of a kind that can be read here. Save it as one of {', '.join(usual)}, then add it."
            )
        if not file.size:
            raise ValueError(f"{name} is empty: there is nothing in it to answer from.")
        if file.size > rules.upload_bytes:
            raise ValueError(f"{name} is too large: at most {rules.upload_bytes / 1_000_000:g} MB.")
        # Chainlit stores and serves the file under this type.
        file.headers = Headers({"content-type": MEDIA_TYPES.get(extension, "application/octet-stream")})
        original(file, spec)

    server.validate_file_upload = validate


def keep_page_at_home(server: Any) -> None:
    """Chainlit's page opens connections to font and style servers, whoever they tell of it. The policy stops the style
    sheets, not the connections, so the lines themselves go."""
    original = getattr(server, "get_html_template", None)
    expect(callable(original) and "get_html_template" in server.serve.__code__.co_names, "the making of its page")
    assert original is not None

    def page(root_path: str) -> str:
        return FOREIGN_LINK.sub("", original(root_path))

    server.get_html_template = page


def forget_sessions(session_class: Any, chat_contexts: Any, files_directory: Any) -> None:
    """Chainlit keeps a deleted session's messages for as long as it runs; and what it deletes is checked once more."""
    delete = getattr(session_class, "delete", None)
    expect(
        inspect.iscoroutinefunction(delete) and isinstance(getattr(session_class, "files_dir", None), property),
        "the deletion of a session",
    )
    expect(isinstance(chat_contexts, dict), "the messages of its sessions")
    assert delete is not None

    async def delete_and_forget(session: Any) -> None:
        if not is_uuid(session.id) or session.files_dir.parent != files_directory:
            raise PermissionError(f"Refused to delete {session.files_dir}: not a session's folder.")
        try:
            await delete(session)
        finally:
            chat_contexts.pop(session.id, None)

    session_class.delete = delete_and_forget


def answer_no_foreign_page(app: Starlette, allowed_origins: Collection[str]) -> None:
    """Chainlit's default answers every Origin with leave to read, cookies included."""
    middleware: list[Any] = app.user_middleware
    cors = [entry for entry in middleware if entry.cls is CORSMiddleware]
    expect(len(cors) == 1 and "allow_origins" in cors[0].kwargs, "its CORS middleware")
    cors[0].kwargs.update(allow_origins=sorted(allowed_origins), expose_headers=list(EXPOSED))
    # Before the door: a page of a named origin must be able to read why it is not let in, and asks first without a key.
    middleware.remove(cors[0])
    middleware.insert(0, cors[0])
