"""Who may use the chat: `RAG_LOGIN`, and the door before every route.

    auto      Whoever comes from this machine is `local`. Only where the server listens on this machine alone; every
              program and every account of it is let in.
    password  Names and passwords of `smallfirst users` (rag/serve/users.py). Chainlit's page asks for them; what it gets
              is a signed cookie, which programs may also send as `Authorization: Bearer`. It ends with
              `user_session_timeout` of .chainlit/config.toml, and at once when the user is removed or has another
              password: every request asks, and so does every frame of an open socket.
    header    A proxy has signed the person in and says who it is in `RAG_LOGIN_HEADER`, with every request and with the
              socket's handshake. It must delete that header from what clients send, and it must be the only one that
              reaches this server: who else does can be anybody. Names are taken as they are, letter for letter.

`install` is called once, before `harden`, so that the Door stands behind the Gate: Host, Origin and ids have been judged.
The Door asks who it is, and gives Chainlit its cookie for nobody else. Programs with an API key (rag/serve/callers.py) come
as far as the API. Where nobody is signed in, there are only the page that asks for the password and what it is made of;
everything else, our own routes too, is behind it.

What belongs to whom among those who are signed in is not decided here.
"""

import asyncio
import math
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rag.errors import UserError
from rag.hosts import host_name, is_address, is_loopback
from rag.serve.api_errors import ApiError
from rag.serve.callers import KEYED, Keys
from rag.serve.secret import secret
from rag.serve.users import Users, canonical
from rag.serve.visitors import LOCAL, VISITOR, Tries, Visitor
from rag.settings import Settings
from rag.words import Said, say, told

LONGEST_HEADER: Final = 256

# The page that asks for the password, its texts and pictures. None of it says anything of documents or people.
OPEN: Final = re.compile(
    r"/(login|logout|auth/(config|header)|health|favicon|logo|words|project/translations|(assets|public|avatars)/.*)"
)
# Whoever watches over servers cannot sign in; these tell that ours runs, and whether it can answer.
HEALTH: Final = re.compile(r"/(health|healthz|readyz)")
# Where Chainlit's page may be opened; whoever is not signed in is sent to /login from there.
PAGES: Final = re.compile(r"/|/login/callback|/env|/ondevice|/(?:element|share)/[^/]*|/thread(?:/([^/]*))?")
ON_DEVICE: Final = "ondevice"
# By a conversation's id, or the page in the browser.
WANTED: Final = re.compile(rf"[0-9a-f-]{{36}}|{ON_DEVICE}")

# In Socket.IO's spelling: the acknowledged connection, and Chainlit's event for "load this page again".
CONNECTED: Final = "40"
RELOAD: Final = '42["reload"]'
WANTED_S: Final = 600

AT_ONCE: Final = 2
"""Passwords that are verified at the same time; each takes 64 MiB."""


@dataclass(frozen=True)
class Pass:
    """Somebody is signed in. `token` is what Chainlit reads; `holds` tells whether that is still so."""

    name: str
    token: str
    holds: Callable[[], bool]


def install(settings: Settings, app: Starlette) -> None:
    """Tell Chainlit how people sign in, and put the Door before its application.

    Raises UserError if nobody could, or everybody. A second call, as after a reload in watch mode, leaves the Door.
    """
    # Importing Chainlit reads a configuration and makes folders where it runs.
    from chainlit.config import config

    check(settings, config.run.host)
    os.environ["CHAINLIT_AUTH_SECRET"] = secret(settings.data_dir)
    login = Login(settings)
    # Not by Chainlit's decorators: they swallow what is raised, and with it the words for whoever must wait.
    if settings.login == "password":
        config.code.password_auth_callback = login.sign_in
    else:
        config.code.header_auth_callback = login.named
    if not getattr(app.state, "login", False):
        app.add_middleware(
            Door,
            login=login,
            keys=Keys(settings),
            cookie=cookie_name(),
            root_path=config.run.root_path.rstrip("/"),
        )
        app.state.login = True


def check(settings: Settings, host: str) -> None:
    """A UserError if a chat that listens on `host` would let everybody in, or nobody."""
    if settings.login == "auto" and not is_loopback(host):
        raise UserError(
            f"Who reaches {host} would be let in unasked. Set RAG_LOGIN=password and add a user with"
            " `smallfirst users add NAME`, or RAG_LOGIN=header behind a proxy that signs people in."
        )
    if settings.login == "password" and not (users := Users(settings.data_dir)).names():
        raise UserError(
            f"RAG_LOGIN=password, and there is no user in {users.path}. Add one with `smallfirst users add NAME`."
        )
    if settings.login == "header" and not re.fullmatch(r"[A-Za-z0-9-]+", settings.login_header):
        raise UserError(
            f"RAG_LOGIN_HEADER has the value {settings.login_header!r}: a header's name is letters, digits and -."
            " Change it or remove it."
        )


def set_cookie_name(port: int) -> None:
    """Browsers keep one set of cookies for all ports of a machine: each chat has a cookie of its own name there.

    Chainlit reads it when it is imported. No name is the beginning of another, because Chainlit deletes by beginnings.
    """
    os.environ["CHAINLIT_AUTH_COOKIE_NAME"] = f"smallfirst-{port}-token"


def cookie_name() -> str:
    return os.environ.get("CHAINLIT_AUTH_COOKIE_NAME", "access_token")


class Login:
    """The three ways of telling who it is."""

    def __init__(self, settings: Settings) -> None:
        self.how = settings.login
        self.header = settings.login_header
        self.users = Users(settings.data_dir)
        # One name is tried by a few people at most; behind one address there may be an office.
        self.of_names = Tries(free=5, longest_s=30)
        self.of_addresses = Tries(free=20, longest_s=300)
        self._verifying = asyncio.Semaphore(AT_ONCE)

    def who(self, connection: HTTPConnection, cookie: str) -> Pass | Said:
        """Whose request it is, or why it is nobody's."""
        if self.how == "password":
            return self._by_token(connection, cookie)
        return self._by_machine(connection) if self.how == "auto" else self._by_header(connection)

    async def sign_in(self, name: str, password: str) -> Any:
        """Chainlit's password_auth_callback. Raises HTTPException in the visitor's language."""
        from chainlit.user import User

        visitor = VISITOR.get()
        try:
            name_key = canonical(name)
        except UserError:
            name_key = ""
        wait_s = max(self.of_names.wait_s(name_key), self.of_addresses.wait_s(visitor.address))
        if wait_s > 0:
            seconds = math.ceil(wait_s)
            why = told(say("login.wait", count=seconds), visitor.language)
            raise HTTPException(429, why, headers={"Retry-After": str(seconds)})
        # Counted before it is known, so that tries at the same time are counted too.
        self.of_names.failed(name_key)
        self.of_addresses.failed(visitor.address)
        async with self._verifying:
            verified = await asyncio.to_thread(self.users.verify, name, password)
        if verified is None:
            raise HTTPException(401, told(say("login.wrong"), visitor.language))
        self.of_names.forget(name_key)
        self.of_addresses.give_back(visitor.address)
        return User(identifier=verified[0], metadata={"generation": verified[1]})

    async def named(self, headers: Headers) -> Any:
        """Chainlit's header_auth_callback: the Door has asked already."""
        from chainlit.user import User

        name = VISITOR.get().name
        return None if name is None else User(identifier=name)

    def _by_machine(self, connection: HTTPConnection) -> Pass | Said:
        # Behind a proxy this machine is who comes for everybody; it says for whom, or the name is a public one.
        address = connection.client.host if connection.client else ""
        host = host_name(connection.headers.get("host", ""))
        if host is None or not is_loopback(host) or (is_address(address) and not is_loopback(address)):
            return say("login.elsewhere")
        return self._pass(LOCAL)

    def _by_header(self, connection: HTTPConnection) -> Pass | Said:
        values = [value for key, value in connection.scope["headers"] if key == self.header.lower().encode()]
        # Twice means that the proxy has added its own to the client's.
        name = values[0].decode("utf-8", "replace").strip() if len(values) == 1 else ""
        if not name or len(name) > LONGEST_HEADER or not name.isprintable() or "\ufffd" in name:
            return say("login.unnamed", header=self.header)
        return self._pass(name)

    def _by_token(self, connection: HTTPConnection, cookie: str) -> Pass | Said:
        scheme, _, bearer = connection.headers.get("authorization", "").partition(" ")
        for token in (connection.cookies.get(cookie, ""), bearer.strip() if scheme.lower() == "bearer" else ""):
            if token and (signed := self._read(token)) is not None and signed.holds():
                return signed
        return say("login.first")

    def _read(self, token: str) -> Pass | None:
        import jwt  # Chainlit's

        try:
            claims = jwt.decode(
                token,
                os.environ["CHAINLIT_AUTH_SECRET"],
                algorithms=["HS256"],
                options={"require": ["exp", "identifier", "metadata"]},
            )
            name, until, generation = claims["identifier"], float(claims["exp"]), claims["metadata"]["generation"]
        except (jwt.InvalidTokenError, KeyError, TypeError):
            return None
        if not isinstance(name, str) or not isinstance(generation, str):
            return None
        return Pass(name, token, lambda: time.time() < until and self.users.generation(name) == generation)

    def _pass(self, name: str) -> Pass:
        from chainlit.auth import create_jwt
        from chainlit.user import User

        return Pass(name, create_jwt(User(identifier=name)), lambda: True)


class Door:
    """ASGI middleware before every route: who is not signed in sees the page that asks for it, and no more."""

    def __init__(self, app: ASGIApp, login: Login, keys: Keys, cookie: str, root_path: str) -> None:
        self.app = app
        self.login = login
        self.keys = keys
        self.cookie = cookie
        self.wanted = f"wanted-{cookie}"
        """Which conversation, or other page, somebody wanted to open who had to sign in first."""
        self.root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        connection = HTTPConnection(scope)
        who = self.login.who(connection, self.cookie)
        unasked = self.login.how == "auto" and bool(self.keys)  # who is let in unasked has not signed in
        keyed = scope["type"] == "http" and KEYED.fullmatch(scope["path"].removeprefix(self.root_path))
        if keyed:
            # An address that was signed for somebody is theirs, whoever opens it.
            program = self.keys.of_link(connection)
            if program is None and (unasked or not isinstance(who, Pass)):
                program = self.keys.of_key(connection)
                if program is None and self.keys:
                    await self.keys.refusal(connection).response()(scope, receive, send)
                    return
            if program is not None:
                VISITOR.set(program)
                await self.app({**scope, "headers": carrying(scope["headers"], self.cookie, None)}, receive, send)
                return
        signed = who if isinstance(who, Pass) else None
        visitor = Visitor.of(connection, signed.name if signed else None)
        VISITOR.set(visitor)
        scope = {**scope, "headers": carrying(scope["headers"], self.cookie, signed.token if signed else None)}
        wanted = connection.cookies.get(self.wanted, "")
        if scope["type"] == "websocket":
            if signed is None:
                await send({"type": "websocket.close", "code": 1008})  # before the handshake: the client sees 403
            else:
                wire = Wire(receive, send, signed, reload=WANTED.fullmatch(wanted) is not None)
                await self.app(scope, wire.receive, wire.send)
            return
        answer = self._instead(scope, who, wanted, visitor.language)
        sent = secured(send) if scope.get("scheme") == "https" else send
        await (answer or self.app)(scope, receive, sent)

    def _instead(self, scope: Scope, who: Pass | Said, wanted: str, language: str) -> Response | None:
        """What is answered in the place of the application, if anything."""
        path, reading = scope["path"].removeprefix(self.root_path), scope["method"] in ("GET", "HEAD")
        if isinstance(who, Pass):
            if path != "/" or not reading or not WANTED.fullmatch(wanted):
                return None
            there = self._go(f"/{wanted}" if wanted == ON_DEVICE else f"/thread/{wanted}")
            there.delete_cookie(self.wanted)
            return there
        if HEALTH.fullmatch(path):
            return None
        if self.login.how == "password":
            if OPEN.fullmatch(path):
                return None
            if reading and (page := PAGES.fullmatch(path)):
                there = self._go("/login")
                wants = ON_DEVICE if path == f"/{ON_DEVICE}" else page[1] or ""
                if WANTED.fullmatch(wants):
                    there.set_cookie(self.wanted, wants, max_age=WANTED_S, httponly=True, samesite="lax")
                return there
        status = 403 if self.login.how == "auto" else 401
        why = told(who, language)
        body: dict[str, Any] = {"detail": why}
        if KEYED.fullmatch(path):  # what OpenAI's clients show
            body |= ApiError(status, why, code="invalid_api_key" if status == 401 else None).body()
        return JSONResponse(body, status, headers={"WWW-Authenticate": "Bearer"} if status == 401 else None)

    def _go(self, path: str) -> Response:
        return RedirectResponse(f"{self.root_path}{path}", 303, headers={"Cache-Control": "no-store"})


class Wire:
    """An open socket. Before every frame, either way, it is asked whether its user is still signed in."""

    def __init__(self, receive: Receive, send: Send, signed: Pass, reload: bool) -> None:
        self.from_client = receive
        self.to_client = send
        self.signed = signed
        self.reload = reload
        """The page is told to load again as soon as it listens."""
        self.accepted = False
        self.closed = False

    async def receive(self) -> Message:
        message = await self.from_client()
        if message["type"] == "websocket.receive" and not self.signed.holds():
            await self._close()
            return {"type": "websocket.disconnect", "code": 1008}
        return message

    async def send(self, message: Message) -> None:
        if self.closed:
            return
        if not self.signed.holds():
            await self._close()
            return
        self.accepted = self.accepted or message["type"] == "websocket.accept"
        await self.to_client(message)
        if self.reload and (message.get("text") or "").startswith(CONNECTED):
            self.reload = False
            await self.to_client({"type": "websocket.send", "text": RELOAD})

    async def _close(self) -> None:
        if self.closed:
            return
        self.closed = True
        if self.accepted:  # the page goes to where it can sign in
            await self.to_client({"type": "websocket.send", "text": RELOAD})
        await self.to_client({"type": "websocket.close", "code": 1008})


def carrying(headers: list[tuple[bytes, bytes]], cookie: str, token: str | None) -> list[tuple[bytes, bytes]]:
    """A request's headers with that token as Chainlit's cookie, and none but that."""
    crumbs = [crumb.strip() for key, value in headers if key == b"cookie" for crumb in value.split(b";")]
    kept = [crumb for crumb in crumbs if crumb and not crumb.startswith(cookie.encode())]
    if token is not None:
        kept.append(f"{cookie}={token}".encode())
    others = [(key, value) for key, value in headers if key != b"cookie"]
    return [*others, (b"cookie", b"; ".join(kept))] if kept else others


def secured(send: Send) -> Send:
    """Cookies that were set over TLS, by a proxy's word, go back over TLS only."""

    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(raw=list(message.get("headers", [])))
            cookies = headers.getlist("set-cookie")
            del headers["set-cookie"]
            for one in cookies:
                headers.append("set-cookie", one if re.search(r";\s*secure\b", one, re.I) else f"{one}; Secure")
            message = {**message, "headers": headers.raw}
        await send(message)

    return sent
