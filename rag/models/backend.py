"""Streaming from any OpenAI-compatible server: Backend, Draft, Usage, and the translation of its errors.

Knows one server and one model; knows nothing of questions, passages or of whether an answer is good. Whoever consumes
the stream may stop at any time: closing it closes the HTTP stream, which is how these servers learn to stop computing.
"""

import asyncio
import ipaddress
import json
import math
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, aclosing, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

import httpx2
import openai
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from rag.errors import ModelBroke, ModelError, ModelRefused, ModelSilent, ModelTimeout, ModelUnreachable
from rag.models.runtime import Cores
from rag.trace import Trace

Message = dict[str, str]
TOP_LOGPROBS = 5
HERE = "on this machine"
PROGRESS_FROM_CHARS = 1500
"""A shorter prompt is read at once, and each word on its progress costs the first token a millisecond."""
KEEPALIVE_S = 2.0
"""Servers close a connection that was idle, after 5 s most of them (llama.cpp, uvicorn). A request that goes out at that
moment is lost, so ours are given up well before."""


@dataclass(frozen=True)
class Token:
    """One token as the server reported it."""

    text: str
    logprob: float
    """Natural logarithm of its probability, at most 0."""
    top: tuple[float, ...] = ()
    """Logprobs of the most probable tokens in its place, best first, at most `TOP_LOGPROBS`."""
    top_texts: tuple[str, ...] = ()
    """Those tokens."""


@dataclass(frozen=True)
class Usage:
    """Tokens read and written, as the server counted them."""

    input_tokens: int
    output_tokens: int

    def to_dict(self) -> dict[str, int]:
        return {"input_tokens": self.input_tokens, "output_tokens": self.output_tokens}


@dataclass(frozen=True)
class Draft:
    """What one model wrote."""

    leg: str
    model: str
    text: str
    tokens: tuple[Token, ...] = ()
    """Empty where the server gives no logprobs."""
    usage: Usage | None = None
    finish_reason: str | None = None
    """`stop`, `length`, or None when the answer was cut off by us."""

    def to_dict(self) -> dict[str, Any]:
        return {
            "leg": self.leg,
            "model": self.model,
            "text": self.text,
            "usage": self.usage.to_dict() if self.usage else None,
            "finish_reason": self.finish_reason,
        }


@dataclass(frozen=True)
class Waiting:
    """The model computes for somebody else; `ahead` others come first."""

    ahead: int


@dataclass(frozen=True)
class Delta:
    """Text as it comes, and the tokens that the server reported with it."""

    text: str
    tokens: tuple[Token, ...] = ()


@dataclass(frozen=True)
class Reading:
    """How far the server has read its prompt, 0 to 1; only some tell."""

    share: float


Piece = Waiting | Reading | Delta | Draft


class ChatBackend(Protocol):
    """A model that streams: the one seam between the turn and whoever answers."""

    leg: str
    model: str
    where: str
    """Where the text goes: `on this machine`, or the server's host."""
    context_tokens: int | None
    """The window if known, prompt and answer together."""

    def stream(
        self, messages: list[Message], *, max_tokens: int, trace: Trace, temperature: float = 0
    ) -> AsyncGenerator[Piece, None]:
        """Any number of `Waiting` and `Reading`, a `Delta` for each piece of text, then one `Draft`. Raises ModelError.

        Spans `queue`, `request` (until the request is sent), `first_token` and `completion` go into the trace.
        """
        ...


@dataclass(frozen=True)
class Limits:
    """Longest waits, in seconds."""

    connect_s: float = 5
    first_token_s: float = 180
    stall_s: float = 60


# The moment a request's last byte was handed to the socket, told by the HTTP library to the task that sent it.
_on_sent: ContextVar[Callable[[], None] | None] = ContextVar("on_sent", default=None)


async def _report_sent(request: httpx2.Request) -> None:
    callback = _on_sent.get()

    async def trace(event: str, info: dict[str, Any]) -> None:
        if callback is not None and event.endswith("send_request_body.complete"):
            callback()

    request.extensions = {**request.extensions, "trace": trace}


class Backend:
    """One model on one OpenAI-compatible server."""

    def __init__(
        self,
        leg: str,
        model: str,
        base_url: str,
        *,
        api_key: str | None = None,
        where: str | None = None,
        cores: Cores | None = None,
        context_tokens: int | None = None,
        limits: Limits | None = None,
    ) -> None:
        """`cores` is given when the server computes on this machine's cores: then one model computes at a time."""
        self.leg = leg
        self.model = model
        self.base_url = base_url
        self.where = where or (httpx2.URL(base_url).host or base_url)
        self.context_tokens = context_tokens
        self._cores = cores
        self._limits = limits or Limits()
        self._ask_logprobs = True
        limit = self._limits
        self._client = openai.AsyncOpenAI(
            base_url=base_url,
            # The client insists on a key; local servers ignore it.
            api_key=api_key or "none",
            # A silent retry would hide a failing server and spoil the first-token time.
            max_retries=0,
            # The waits for tokens are limited in `_next`; these guard the connection.
            timeout=httpx2.Timeout(None, connect=limit.connect_s, write=limit.stall_s, pool=limit.connect_s),
            http_client=openai.DefaultAsyncHttpxClient(
                event_hooks={"request": [_report_sent]},
                limits=httpx2.Limits(keepalive_expiry=KEEPALIVE_S),
                # A proxy named in the environment must never see a request to this machine.
                trust_env=not is_loopback(base_url),
            ),
        )

    async def connect(self) -> None:
        """Open the connection, and load what the client loads late: the first question need not. Raises ModelError."""
        with self._translated():
            async with asyncio.timeout(self._limits.stall_s):
                await self._client.models.list()

    async def close(self) -> None:
        await self._client.close()

    async def stream(
        self, messages: list[Message], *, max_tokens: int, trace: Trace, temperature: float = 0
    ) -> AsyncGenerator[Piece, None]:
        async with AsyncExitStack() as held:
            if self._cores is not None:
                queue = trace.open("queue", self.leg)
                try:
                    async with aclosing(_claim(self._cores, held)) as places:
                        async for ahead in places:
                            yield Waiting(ahead)
                finally:
                    trace.close(queue)
            async with aclosing(self._pieces(messages, max_tokens, trace, temperature)) as pieces:
                async for piece in pieces:
                    yield piece

    async def _pieces(
        self, messages: list[Message], max_tokens: int, trace: Trace, temperature: float
    ) -> AsyncGenerator[Reading | Delta | Draft, None]:
        request = trace.open("request", self.leg)
        first = completion = None
        text: list[str] = []
        tokens: list[Token] = []
        usage: Usage | None = None
        finish_reason: str | None = None
        try:
            with self._translated():
                stream = await self._open(messages, max_tokens, temperature, lambda: trace.close(request))
                trace.close(request)
                first = trace.open("first_token", self.leg)
                # The server may hold its headers back until the first token; the wait began when the request was sent.
                first.start_ms = request.end_ms or first.start_ms
                async with stream:
                    iterator = aiter(stream)
                    while (chunk := await self._next(iterator, bool(text))) is not None:
                        if (read := _read_share(chunk)) is not None:
                            yield Reading(read)
                        if chunk.usage is not None:
                            usage = Usage(chunk.usage.prompt_tokens, chunk.usage.completion_tokens)
                        if not chunk.choices:
                            continue
                        choice = chunk.choices[0]
                        finish_reason = choice.finish_reason or finish_reason
                        new: tuple[Token, ...] = ()
                        if choice.logprobs is not None:
                            new = tuple(
                                Token(
                                    entry.token,
                                    min(0.0, entry.logprob),
                                    tuple(top.logprob for top in entry.top_logprobs or ()),
                                    tuple(top.token for top in entry.top_logprobs or ()),
                                )
                                for entry in choice.logprobs.content or ()
                                if math.isfinite(entry.logprob)
                            )
                            tokens.extend(new)
                        if choice.delta is not None and isinstance(choice.delta.content, str) and choice.delta.content:
                            if completion is None:
                                trace.close(first)
                                completion = trace.open("completion", self.leg)
                            text.append(choice.delta.content)
                            yield Delta(choice.delta.content, new)
            if finish_reason is None:
                raise ModelBroke(f"{self.model} ({self.where}) stopped in the middle of its answer. Ask again.")
            if not "".join(text).strip():
                raise ModelSilent(f"{self.model} ({self.where}) returned an empty answer. Ask again or in other words.")
        finally:
            for span in (request, first, completion):
                if span is not None:
                    trace.close(span)
        yield Draft(self.leg, self.model, "".join(text), tuple(tokens), usage, finish_reason)

    async def _open(
        self,
        messages: list[Message],
        max_tokens: int,
        temperature: float,
        on_sent: Callable[[], None],
        *,
        again: bool = False,
    ) -> "openai.AsyncStream[ChatCompletionChunk]":
        wanted: dict[str, Any] = {
            "model": self.model,
            "messages": messages,
            "max_tokens": max_tokens,
            "temperature": temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self._ask_logprobs:
            wanted |= {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
        if self._cores is not None and sum(len(one["content"]) for one in messages) >= PROGRESS_FROM_CHARS:
            # llama.cpp's own; other servers may refuse what they do not know.
            wanted["return_progress"] = True
        reset = _on_sent.set(on_sent)
        try:
            async with asyncio.timeout(self._limits.first_token_s):
                # Not `chat.completions.create`: it walks every message to translate Python names, which costs more
                # than everything else that is ours before the request is sent.
                return await self._client.post(
                    "/chat/completions",
                    body=wanted,
                    cast_to=ChatCompletion,
                    stream=True,
                    stream_cls=openai.AsyncStream[ChatCompletionChunk],
                )
        except openai.BadRequestError as error:
            if not (self._ask_logprobs and "logprob" in str(error).lower()):
                raise
            # This server refuses them: remember, and judge its answers without.
            self._ask_logprobs = False
        except openai.APIConnectionError as error:
            # A kept connection that the server gave up just as it was used again. Nothing was answered on it, so asking
            # once more on another one hides no failure: a server that is gone refuses that one.
            if again or not isinstance(error.__cause__, httpx2.RemoteProtocolError):
                raise
            again = True
        finally:
            _on_sent.reset(reset)
        return await self._open(messages, max_tokens, temperature, on_sent, again=again)

    async def _next(self, chunks: AsyncIterator[ChatCompletionChunk], begun: bool) -> ChatCompletionChunk | None:
        limit = self._limits.stall_s if begun else self._limits.first_token_s
        async with asyncio.timeout(limit):
            return await anext(chunks, None)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Every error of the client and its HTTP library becomes one of ours."""
        who = f"{self.model} ({HERE})" if self._cores is not None else f"{self.model} at {self.base_url}"
        try:
            yield
        except ModelError:
            raise
        except (TimeoutError, openai.APITimeoutError, httpx2.TimeoutException) as error:
            if isinstance(error.__cause__, httpx2.ConnectTimeout) or isinstance(error, httpx2.ConnectTimeout):
                raise ModelUnreachable(
                    f"No connection to {who} within {self._limits.connect_s:g} s. {self._mend}"
                ) from error
            raise ModelTimeout(
                f"{who} did not answer in time (first token {self._limits.first_token_s:g} s, pause"
                f" {self._limits.stall_s:g} s). Ask again, or raise RAG_FIRST_TOKEN_TIMEOUT_S or RAG_STALL_TIMEOUT_S."
            ) from error
        except openai.APIStatusError as error:
            raise ModelRefused(self._status_text(who, error), error.status_code) from error
        except (openai.APIConnectionError, httpx2.ConnectError) as error:
            cause = error.__cause__ or error
            if isinstance(cause, httpx2.RemoteProtocolError | httpx2.ReadError | httpx2.WriteError):
                raise ModelBroke(f"{who} closed the connection in the middle of its answer. {self._mend}") from error
            raise ModelUnreachable(f"No model at {who}: {cause}. {self._mend}") from error
        except httpx2.HTTPError as error:
            raise ModelBroke(
                f"{who} stopped in the middle of its answer ({type(error).__name__}). Ask again."
            ) from error
        except openai.APIError as error:
            # An error event inside a stream that began with status 200.
            raise ModelRefused(f"{who} failed while answering: {error.message}. Ask again.") from error
        except (openai.OpenAIError, json.JSONDecodeError) as error:
            raise ModelBroke(
                f"{who} sent something that is no chat completion ({error}). Check the address."
            ) from error

    @property
    def _mend(self) -> str:
        if self._cores is not None:
            return "It is being started again; ask again in a moment."
        return f"Start that server, or set RAG_{self.leg.upper()}_BASE_URL."

    def _status_text(self, who: str, error: openai.APIStatusError) -> str:
        status, detail = error.status_code, error.message
        if status in (401, 403):
            return f"{who} refused the key (status {status}). Set RAG_{self.leg.upper()}_API_KEY."
        if status == 404:
            return (
                f"{who} knows no such model or path (status 404). Set RAG_{self.leg.upper()}_MODEL to a model it has."
            )
        if status == 429:
            return f"{who} takes no more requests just now (status 429). Wait a little, then ask again."
        if status >= 500:
            return f"{who} failed (status {status}): {detail}. Ask again; if it stays, restart that server."
        return f"{who} refused the request (status {status}): {detail}"


async def _claim(cores: Cores, held: AsyncExitStack) -> AsyncGenerator[int, None]:
    """Enter the queue for the cores; yields how many come first, whenever that changes, until they are ours."""
    news: asyncio.Queue[int | None] = asyncio.Queue()
    claim = asyncio.ensure_future(held.enter_async_context(cores.claim(news.put_nowait)))
    claim.add_done_callback(lambda _: news.put_nowait(None))
    try:
        while (ahead := await news.get()) is not None:
            yield ahead
        await claim
    finally:
        if not claim.done():
            claim.cancel()
            await asyncio.wait([claim])


def _read_share(chunk: ChatCompletionChunk) -> float | None:
    """Of llama.cpp's progress: what is read of the prompt, 0 to 1."""
    progress: Any = (chunk.model_extra or {}).get("prompt_progress")
    try:
        return float(progress["processed"] / progress["total"])
    except (TypeError, KeyError, ZeroDivisionError):
        return None


def is_loopback(url: str) -> bool:
    """Is that server on this machine?"""
    host = httpx2.URL(url).host
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
