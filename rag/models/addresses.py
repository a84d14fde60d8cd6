"""Addresses of model servers: what a person means by one, whose machine it is, and whether anything listens there.

Knows URLs; nothing of what a server is or has.
"""

import asyncio

import httpx2

from rag import hosts
from rag.errors import UserError


def tidy(address: str) -> str:
    """The base address that is meant: with a scheme, with /v1 where there is no path. Raises UserError.

    Understands what people copy: a host and port alone, the address of an endpoint, that of Foundry Local's status.
    """
    text = address.strip()
    try:
        if any(letter.isspace() for letter in text):
            raise ValueError("an address has no spaces")
        url = httpx2.URL(text if "://" in text else f"http://{text}")
        port = url.port
    except (httpx2.InvalidURL, ValueError):
        raise UserError(f"{harmless(text)} is no address. Give one like http://127.0.0.1:11434/v1.") from None
    if url.scheme not in ("http", "https") or not url.host or (port is not None and not 0 < port < 65536):
        raise UserError(f"{harmless(text)} is no address. Give one like http://127.0.0.1:11434/v1.")
    if url.userinfo or url.query or url.fragment:
        raise UserError(
            f"The address of a model server at {url.host} holds more than scheme, host, port and path. Names, passwords"
            " and keys would be shown with it: put a key in RAG_SLM_API_KEY or RAG_LLM_API_KEY instead."
        )
    # Where a server listens on every interface, this machine's own is meant.
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(url.host, url.host)
    path = url.raw_path.decode().partition("?")[0].rstrip("/")
    for end in ("/chat/completions", "/completions", "/models", "/openai/status", "/status"):
        if path.endswith(end):
            path = path.removesuffix(end)
            break
    return f"{origin(url.copy_with(host=host))}{path or '/v1'}"


def host_of(base_url: str) -> str:
    """The server's host, for a person."""
    return httpx2.URL(base_url).host or base_url


def is_loopback(base_url: str) -> bool:
    """Is that server on this machine?"""
    return hosts.is_loopback(httpx2.URL(base_url).host)


async def accepts(base_url: str, timeout_s: float = 1) -> bool:
    """Does anything listen there? Nothing is sent."""
    url = httpx2.URL(base_url)
    port = url.port or (443 if url.scheme == "https" else 80)
    try:
        async with asyncio.timeout(timeout_s):
            _, writer = await asyncio.open_connection(url.host, port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True


def origin(url: httpx2.URL) -> str:
    return f"{url.scheme}://{url.netloc.decode()}"


def identity(base_url: str) -> tuple[str, str, int, str]:
    """The same for every spelling of one address."""
    url = httpx2.URL(base_url)
    host = "127.0.0.1" if url.host == "localhost" else url.host
    return url.scheme, host, url.port or (443 if url.scheme == "https" else 80), url.path.rstrip("/")


def harmless(text: str) -> str:
    """An address that could not be read, for a message; one that may hold a secret is not repeated."""
    return "What was given" if any(mark in text for mark in "@?#") or not text.isprintable() else repr(text)
