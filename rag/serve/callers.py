"""Who calls the API: by a key, by being signed in, or by being on this machine; and how often.

    RAG_API_KEYS set      the key as `Authorization: Bearer`, or somebody who signed in by himself (rag/serve/login.py);
                          one document also by a link that was signed for the holder of a key
    no keys, loopback     everybody on this machine, as at the chat
    no keys, elsewhere    only who is signed in; `smallfirst serve`, where nobody can sign in, does not start

Knows paths and headers, nothing of what is asked. Keys are compared by their digests, each with every known one and in
constant time; so are signatures, which hold as long as their key. What a caller keeps here (rag/serve/files.py) is found
again by `Visitor.owner`.
"""

import hashlib
import hmac
import math
import re
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from rag.errors import UserError
from rag.hosts import is_loopback
from rag.serve.api_errors import ApiError
from rag.serve.secret import secret
from rag.serve.visitors import LOCAL, VISITOR, Tries, Visitor, address_of
from rag.settings import Settings

# What programs ask for. Everything else of the chat is for who signed in; of `smallfirst serve`, for everybody.
KEYED: Final = re.compile(r"/(v1(/.*)?|metrics|ondevice/(prompt|verdict))\s*", re.DOTALL)
# Of these, what may be asked for as often as a scraper likes.
UNCOUNTED: Final = re.compile(r"/metrics")
# What a citation may link to, where a signature in the query stands for the key.
LINKED: Final = re.compile(r"/v1/(documents/.+|files/[^/]+/content)", re.DOTALL)
MINUTE_S: Final = 60.0


class Keys:
    """The keys of settings. A UserError if there are some, and the secret that links are signed with cannot be kept."""

    def __init__(self, settings: Settings) -> None:
        self._digests = [hashlib.sha256(key.get_secret_value().encode()).digest() for key in settings.api_keys]
        # Without it, whoever has a link could try which key it was signed for, as fast as a machine counts.
        self._secret = bytes.fromhex(secret(settings.data_dir)) if self._digests else b""
        # Behind one address there may be several programs with a former key, but not so many.
        self._of_addresses = Tries(free=20, longest_s=60)

    def __bool__(self) -> bool:
        return bool(self._digests)

    def of_key(self, connection: HTTPConnection) -> Visitor | None:
        """Whose key it carries; None where it carries none, or an unknown one."""
        bearer = _bearer(connection)
        if bearer is None:
            return None
        digest = hashlib.sha256(bearer.encode("latin-1")).digest()  # as its bytes came
        # Every one is looked at: how long it takes says nothing of which it was.
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return self._holder(digest, connection) if any(matches) else None

    def of_link(self, connection: HTTPConnection) -> Visitor | None:
        """For whom the address that is asked for was signed; None where it was not, or there is a key to be judged by."""
        signed = None if _bearer(connection) is not None else _signed(connection)
        if signed is None:
            return None
        path, signature = signed
        holders = [self._holder(digest, connection) for digest in self._digests]
        matches = [hmac.compare_digest(signature, str(one.signature(path)).encode()) for one in holders]
        return next((replace(one, by_link=True) for one, match in zip(holders, matches, strict=True) if match), None)

    def _holder(self, digest: bytes, connection: HTTPConnection) -> Visitor:
        of_links = hmac.new(self._secret, b"links " + digest, hashlib.sha256).digest()
        return Visitor.of(connection, digest.hex()[:12], by_key=True, secret=of_links)

    def refusal(self, connection: HTTPConnection) -> ApiError:
        """For who is nobody: 401; 429 for a while, from where too many unknown keys came. Who has a key is not held up."""
        address = address_of(connection)
        if (wait_s := self._of_addresses.wait_s(address)) > 0:
            seconds = math.ceil(wait_s)
            why = f"Too many unknown keys came from there. Try again in {seconds} s."
            return ApiError(429, why, headers={"Retry-After": str(seconds)})
        if connection.headers.get("authorization"):
            self._of_addresses.failed(address)
            why = "This API key is not one of RAG_API_KEYS."
        elif _signed(connection):
            why = "This link is not whole, or the API key that it was made for is no longer one of RAG_API_KEYS."
        else:
            why = "No API key was sent."
        mend = "Send one as the header `Authorization: Bearer KEY`."
        return ApiError(401, f"{why} {mend}", code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def _bearer(connection: HTTPConnection) -> str | None:
    scheme, _, bearer = connection.headers.get("authorization", "").partition(" ")
    return bearer.strip() or None if scheme.lower() == "bearer" else None


def _signed(connection: HTTPConnection) -> tuple[str, bytes] | None:
    """The path that is asked for and the signature in its query; None where there is none, or none counts."""
    scope = connection.scope
    path = scope["path"].removeprefix(scope.get("root_path", ""))
    signature = connection.query_params.get("signature")
    if not signature or scope.get("method") not in ("GET", "HEAD") or not LINKED.fullmatch(path):
        return None
    return path, signature.encode("utf-8", "replace")


def check(settings: Settings, host: str) -> None:
    """A UserError if an API without any sign-in would let everybody in."""
    if not settings.api_keys and not is_loopback(host):
        raise UserError(
            f"Who reaches {host} would be let in unasked. Set RAG_API_KEYS to one or more keys, such as what"
            " `python -c 'import secrets; print(secrets.token_urlsafe(24))'` prints, or listen on 127.0.0.1."
        )


class KeyDoor:
    """ASGI middleware of a server where nobody signs in: what is `KEYED` needs a key, if there are keys."""

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self.app = app
        self.keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        connection = HTTPConnection(scope)
        answer: Response | None = None
        visitor = self.keys.of_key(connection) or self.keys.of_link(connection)
        if visitor is None and self.keys and KEYED.fullmatch(scope["path"]):
            answer = self.keys.refusal(connection).response()
        VISITOR.set(visitor or Visitor.of(connection, LOCAL))
        await (answer or self.app)(scope, receive, send)


class Allowance:
    """ASGI middleware behind the door: so many requests for each caller in any 60 seconds."""

    def __init__(self, app: ASGIApp, a_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.app = app
        self.a_minute = a_minute
        self.clock = clock
        self._asked: OrderedDict[str, deque[float]] = OrderedDict()
        """When each caller's last requests came; who asked last stands last."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if scope["type"] != "http" or not self.a_minute or not KEYED.fullmatch(path) or UNCOUNTED.fullmatch(path):
            await self.app(scope, receive, send)
            return
        visitor = VISITOR.get()
        # Whoever has a link takes nothing of its owner's allowance.
        wait_s = self.wait_s(f"link {visitor.address}" if visitor.by_link else visitor.owner)
        if wait_s <= 0:
            await self.app(scope, receive, send)
            return
        seconds = max(1, math.ceil(wait_s))
        why = f"More than {self.a_minute} requests in a minute (RAG_API_RATE). Try again in {seconds} s."
        error = ApiError(429, why, code="rate_limit_exceeded", headers={"Retry-After": str(seconds)})
        await error.response()(scope, receive, send)

    def wait_s(self, caller: str) -> float:
        """Until that caller may ask; 0 for now, and then this request is counted."""
        now = self.clock()
        while self._asked and now - next(iter(self._asked.values()))[-1] >= MINUTE_S:
            self._asked.popitem(last=False)  # nothing of theirs counts any more
        times = self._asked.setdefault(caller, deque(maxlen=self.a_minute))
        if len(times) == self.a_minute and (wait_s := times[0] + MINUTE_S - now) > 0:
            return wait_s
        times.append(now)
        self._asked.move_to_end(caller)
        return 0.0
