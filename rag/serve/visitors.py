"""Who a request is from, as far as it is known, and how often somebody may be wrong.

Knows no way of finding out: that is `login`'s for people and `callers`' for programs. They write `VISITOR`; whoever is
behind them reads it.
"""

import hashlib
import hmac
import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote

from starlette.requests import HTTPConnection

from rag.words import language_of

LOCAL: Final = "local"
"""The name of the one user of `auto`. With RAG_LOGIN=password, a user of this name finds those conversations again."""

FORGOTTEN_S: Final = 900.0


@dataclass(frozen=True)
class Visitor:
    """Of the request under way."""

    name: str | None
    address: str
    language: str
    by_key: bool = False
    """A program with an API key; `name` tells its key from others, and is no part of it."""
    by_link: bool = False
    """Somebody who opens an address that was signed for that program."""
    secret: bytes = field(default=b"", repr=False)
    """With which its links are signed. Nobody but a program needs that: a browser sends cookies with a link, but no key."""

    @classmethod
    def of(
        cls, connection: HTTPConnection, name: str | None, *, by_key: bool = False, secret: bytes = b""
    ) -> "Visitor":
        """Whoever that is, with what the connection tells of them."""
        language = language_of(connection.headers.get("accept-language", ""))
        return cls(name, address_of(connection), language, by_key=by_key, secret=secret)

    @property
    def owner(self) -> str:
        """By which what this visitor keeps is found again: no key is a user's name, nor the other way round."""
        return f"{'key' if self.by_key else 'user'} {self.name or ''}"

    def link(self, path: str) -> str:
        """The address of that path, quoted, as a browser opens it that has no key."""
        signature = self.signature(path)
        return f"{quote(path)}{f'?signature={signature}' if signature else ''}"

    def signature(self, path: str) -> str | None:
        """What lets whoever has it read that one address in this visitor's name; None where nothing needs it."""
        if not self.secret:
            return None
        return hmac.new(self.secret, path.encode(), hashlib.sha256).hexdigest()[:32]


VISITOR: Final[ContextVar[Visitor]] = ContextVar("visitor")


class Tries:
    """Failed tries of a name, or from an address. So many are free, then each wait is twice the one before."""

    def __init__(
        self, free: int, longest_s: float, *, most: int = 10_000, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.free = free
        self.longest_s = longest_s
        self.most = most
        self.clock = clock
        self._failed: OrderedDict[str, tuple[int, float]] = OrderedDict()
        """How many, and when the last one was; the longest untouched first."""

    def wait_s(self, key: str) -> float:
        """Until the next try; 0 for now."""
        count, last = self._of(key)
        if count < self.free:
            return 0.0
        return max(0.0, last + min(self.longest_s, 2.0 ** min(count - self.free, 30)) - self.clock())

    def failed(self, key: str) -> None:
        self._failed[key] = (self._of(key)[0] + 1, self.clock())
        self._failed.move_to_end(key)
        if len(self._failed) > self.most:
            self._failed.popitem(last=False)

    def give_back(self, key: str) -> None:
        """The try that was counted last was none."""
        count, last = self._of(key)
        if count > 1:
            self._failed[key] = (count - 1, last)
        else:
            self.forget(key)

    def forget(self, key: str) -> None:
        self._failed.pop(key, None)

    def __len__(self) -> int:
        return len(self._failed)

    def _of(self, key: str) -> tuple[int, float]:
        count, last = self._failed.get(key, (0, 0.0))
        return (0, 0.0) if self.clock() - last > FORGOTTEN_S else (count, last)


def address_of(connection: HTTPConnection) -> str:
    """The network that it came from; "" where that is not known, as through a socket of the file system."""
    return network(connection.client.host) if connection.client else ""


def network(address: str) -> str:
    """What one sender can be expected to have of addresses: of IPv6, a whole /64."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if parsed.version == 6 and parsed.ipv4_mapped is None:
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed.ipv4_mapped or parsed) if parsed.version == 6 else str(parsed)
