"""One bare request to a model on a server, and what was heard: Asking, Heard.

For whoever tries what a server does. Nothing is repaired here, nothing left out and nothing tried again; what the server
refuses is heard as a fault. Knows no turns: whoever answers a user does it by `Backend`.
"""

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx2

from rag.errors import ModelBroke, ModelError, ModelRefused, ModelTimeout, ModelUnknown, ModelUnreachable
from rag.models import wire

# So many tokens, and the speed is no accident.
SPEED_TOKENS = 32


@dataclass
class Heard:
    """What came back for one request."""

    status: int = 200
    fault: wire.Fault | None = None
    inside: bool = False
    """The fault came inside a stream that had begun well."""
    streamed: bool = False
    text: str = ""
    pieces: int = 0
    tokens: int = 0
    top: int = 0
    usage: tuple[int, int] | None = None
    cached: int | None = None
    read_afresh: int = 0
    read_per_s: float | None = None
    progress: bool = False
    finish: str | None = None
    first_s: float | None = None
    last_s: float = 0
    retry_after_s: float | None = None

    def take(self, event: wire.Event, now_s: float) -> None:
        if event.get("error") or event.get("object") == "error":
            self.fault, self.inside = wire.fault(event), True
            return
        self.usage = wire.usage(event) or self.usage
        self.progress = self.progress or wire.progress(event) is not None
        self._take_counts(event)
        one = wire.choice(event)
        if one is None:
            return
        text, thought = wire.said(one)
        entries = wire.logprobs(one)
        if text or thought:
            self.text += text
            self.pieces += 1
            self.first_s = now_s if self.first_s is None else self.first_s
            self.last_s = now_s
        for entry in entries:
            if isinstance(entry, dict) and isinstance(entry.get("logprob"), float | int):
                top = entry.get("top_logprobs")
                self.tokens += 1
                self.top = max(self.top, len(top) if isinstance(top, list) else 0)
        self.finish = wire.finish(one) or self.finish

    def _take_counts(self, event: wire.Event) -> None:
        """How much of the prompt was known already, and how fast the rest was read."""
        usage, timings = event.get("usage"), event.get("timings")
        details = usage.get("prompt_tokens_details") if isinstance(usage, dict) else None
        cached = details.get("cached_tokens") if isinstance(details, dict) else None
        if isinstance(timings, dict):
            cached = timings.get("cache_n", cached)
            read, per_s = timings.get("prompt_n"), timings.get("prompt_per_second")
            if isinstance(read, int) and isinstance(per_s, int | float):
                self.read_afresh, self.read_per_s = read, float(per_s)
        if isinstance(cached, int):
            self.cached = cached

    @property
    def per_s(self) -> float | None:
        """Tokens written in a second, as they came."""
        written = self.tokens or self.pieces
        span_s = self.last_s - (self.first_s or 0)
        return (written - 1) / span_s if written >= SPEED_TOKENS and span_s > 0 else None


class Asking:
    """Requests to one model on one server."""

    def __init__(
        self, client: httpx2.AsyncClient, base_url: str, model: str, key: wire.Secret, timeout_s: float
    ) -> None:
        self._client = client
        self._url = f"{base_url.rstrip('/')}/chat/completions"
        self._model = model
        self._key = key
        self.timeout_s = timeout_s
        url = httpx2.URL(base_url)
        self.who = f"{model} at {url.copy_with(userinfo=b'', query=None, fragment=None)}"

    async def ask(
        self,
        prompt: str,
        wanted: Mapping[str, Any],
        *,
        until: Callable[[Heard], bool] | None = None,
    ) -> Heard:
        """One request; the stream is closed as soon as `until` holds, which is asked after each piece."""
        heard = Heard()
        body = {"model": self._model, "messages": [{"role": "user", "content": prompt}], **wanted}
        clock = asyncio.get_running_loop().time
        try:
            async with asyncio.timeout(self.timeout_s):
                began = clock()
                async with self._client.stream("POST", self._url, json=body) as response:
                    heard.status = response.status_code
                    if response.status_code != 200:
                        heard.retry_after_s = wire.retry_after_s(response.headers)
                        heard.fault = await _read_fault(response)
                        return heard
                    events = wire.Events()
                    async for data in response.aiter_bytes():
                        for event in events.feed(data):
                            heard.streamed = True
                            heard.take(event, clock() - began)
                        if events.broken is not None:
                            raise events.broken
                        if events.done or heard.fault or (until is not None and until(heard)):
                            return heard
                    for event in events.end():
                        heard.take(event, clock() - began)
                    if events.broken is not None:
                        raise events.broken
        except (TimeoutError, httpx2.TimeoutException) as error:
            if isinstance(error, httpx2.ConnectTimeout):
                raise ModelUnreachable(
                    f"No connection to {self.who}. Start that server, or check the address."
                ) from error
            raise ModelTimeout(
                f"{self.who} did not answer in {self.timeout_s:g} s. Try again once its model is loaded."
            ) from error
        except httpx2.LocalProtocolError:
            raise
        except (httpx2.ConnectError, httpx2.UnsupportedProtocol) as error:
            raise ModelUnreachable(
                f"No model at {self.who}: {error}. Start that server, or check the address."
            ) from error
        except httpx2.HTTPError as error:
            raise ModelBroke(f"{self.who} closed the connection in the middle of its answer. Try again.") from error
        except wire.NotACompletion as error:
            said = self._key.shown(str(error))
            raise ModelBroke(
                f"{self.who} sent something that is no chat completion ({said}). Check the address."
            ) from None
        return heard

    def refusal(self, heard: Heard) -> ModelError:
        """The error of a server that does not answer the simplest request."""
        assert heard.fault is not None
        said = self._key.shown(heard.fault.text or "it does not say why").rstrip(".")
        status = f" (status {heard.status})" if heard.status != 200 else ""
        if heard.status in (401, 403):
            return ModelRefused(f"{self.who} refused the key{status}. Set the right one.", heard.status)
        about_model = heard.fault.about_model or (heard.status == 404 and not heard.fault.about_path)
        if about_model and heard.status in (200, 400, 404):
            return ModelUnknown(
                f"{self.who} is not there{status}: {said}. Name a model that it has, or load it there.", heard.status
            )
        if heard.fault.about_path or heard.status == 405 or 300 <= heard.status < 400:
            return ModelRefused(f"{self.who} has no chat at that address{status}: {said}. Check it.", heard.status)
        return ModelRefused(f"{self.who} refused the request{status}: {said}. Try again later.", heard.status)


async def _read_fault(response: httpx2.Response) -> wire.Fault:
    body = b""
    async for data in response.aiter_bytes():
        body += data
        if len(body) > wire.LINE_CHARS:
            break
    text = body.decode("utf-8", "replace")
    try:
        return wire.fault(json.loads(text), text)
    except (ValueError, RecursionError):
        return wire.fault(text, text)
