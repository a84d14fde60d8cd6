"""Streaming from any OpenAI-compatible server: Backend, Draft, Usage, and the translation of its errors.

Knows one server and one model; knows nothing of questions, passages or of whether an answer is good. Whoever consumes
the stream may stop at any time: closing it closes the HTTP stream, which is how these servers learn to stop computing.

Each request ends as a whole answer or as one `ModelError`, and every wait in it has a limit. What the model thinks
before it answers is told as `Thinking` and is no part of the answer. What a server refuses is not sent to it: its
`Capabilities` say so, or its first refusal teaches it.
"""

import asyncio
import math
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, aclosing, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import httpx2
import openai

from rag.errors import (
    ModelBroke,
    ModelError,
    ModelRefused,
    ModelSilent,
    ModelTimeout,
    ModelUnknown,
    ModelUnreachable,
    PromptTooLong,
)
from rag.models import wire
from rag.models.addresses import is_loopback
from rag.models.answer import TOP_LOGPROBS as TOP_LOGPROBS
from rag.models.answer import Answer
from rag.models.answer import Delta as Delta
from rag.models.answer import Token as Token
from rag.models.answer import Usage as Usage
from rag.models.capabilities import Capabilities
from rag.models.cores import Cores
from rag.models.thinking import Splitter
from rag.trace import Span, Trace

Message = dict[str, str]
Kind = TypeVar("Kind", bound=ModelError)
HERE = "on this machine"
PROGRESS_FROM_CHARS = 1500
"""A shorter prompt is read at once, and each word on its progress costs the first token a millisecond."""
KEEPALIVE_S = 2.0
"""Servers close a connection that was idle, after 5 s most of them (llama.cpp, uvicorn). A request that goes out at that
moment is lost, so ours are given up well before."""
# How often it is told that a model still thinks.
THINKING_EVERY_S = 1.0
# How long a server that has said why it stopped may take to say how many tokens that were.
TAIL_S = 2.0
# What comes after the last event is read, so that the connection can be used again; not if it takes long.
DRAIN_S = 0.2
# A server that loads its model and does not say for how long is asked again after this.
LOADING_S = 0.5
# Optional fields that a server may mean when it refuses a request without saying why, the likeliest first.
SUSPECTS = ("return_progress", "seed", "logprobs", "stream_options")
SENT_HEADERS = frozenset(
    b"host authorization content-type content-length accept accept-encoding user-agent connection".split()
)
"""The client also sends what it finds in the environment (an organization, headers of the user's) and what machine this
is; none of that is a model server's business."""


@dataclass(frozen=True)
class Draft:
    """What one model wrote."""

    leg: str
    model: str
    text: str
    tokens: tuple[Token, ...] = ()
    """All of its text; empty where the server gives no logprobs, or not for each token."""
    usage: Usage | None = None
    finish_reason: str | None = None
    """`stop`, `length`, `content_filter`, or None when the answer was cut off by us."""
    runs_on: str = ""
    """What ran the model, for a person: `llama.cpp`, or `Foundry Local, CPU`."""

    def to_dict(self) -> dict[str, Any]:
        return {
            "leg": self.leg,
            "model": self.model,
            "text": self.text,
            "usage": self.usage.to_dict() if self.usage else None,
            "finish_reason": self.finish_reason,
            "runs_on": self.runs_on,
        }


@dataclass(frozen=True)
class Waiting:
    """The model computes for somebody else; `ahead` others come first."""

    ahead: int
    again_s: float | None = None
    """The server asked to be asked again after so long; how many others there are it did not say."""


@dataclass(frozen=True)
class Reading:
    """How far the server has read its prompt, 0 to 1; only some tell."""

    share: float
    prompt_tokens: int | None = None
    """Of the whole prompt."""


@dataclass(frozen=True)
class Thinking:
    """The model thinks before it answers; told when it begins, then about once a second."""

    retract: bool = False
    """The text so far was thought, too, and is no part of the answer. Known only now: the prompt had opened the thought."""


Piece = Waiting | Reading | Thinking | Delta | Draft


class ChatBackend(Protocol):
    """A model that streams: the one seam between the turn and whoever answers."""

    leg: str
    model: str
    where: str
    """Where the text goes: `on this machine`, or the server's host."""
    context_tokens: int | None
    """The window if known, prompt and answer together."""
    runs_on: str
    """What runs the model, for a person; "" where nobody told."""

    def stream(
        self,
        messages: list[Message],
        *,
        max_tokens: int,
        trace: Trace,
        temperature: float = 0,
        seed: int | None = None,
    ) -> AsyncGenerator[Piece, None]:
        """Any number of `Waiting`, `Reading` and `Thinking`, a `Delta` for each piece of text, then one `Draft`.

        A `seed` has a server that draws its words draw the same ones again, where it knows the field. Raises ModelError.
        Spans `queue`, `request` (until the request is sent), `first_token`, `thinking` and
        `completion` go into the trace.
        """
        ...


@dataclass(frozen=True)
class Limits:
    """Longest waits, in seconds."""

    connect_s: float = 5
    first_token_s: float = 180
    """From the request to the first sign of an answer, and between two words on how far the prompt is read."""
    stall_s: float = 60


# The moment a request's last byte was handed to the socket, told by the HTTP library to the task that sent it.
_on_sent: ContextVar[Callable[[], None] | None] = ContextVar("on_sent", default=None)


async def _report_sent(request: httpx2.Request) -> None:
    request.headers = httpx2.Headers([pair for pair in request.headers.raw if pair[0].lower() in SENT_HEADERS])
    callback = _on_sent.get()

    async def trace(event: str, info: dict[str, Any]) -> None:
        if callback is not None and event.endswith("send_request_body.complete"):
            callback()

    request.extensions = {**request.extensions, "trace": trace}


async def _limit(response: httpx2.Response) -> None:
    """What the client reads whole must end."""
    if response.status_code != 200 or response.request.method == "GET":
        assert isinstance(response.stream, httpx2.AsyncByteStream), "an async client streams"
        response.stream = _Limited(response.stream)


class _Limited(httpx2.AsyncByteStream):
    """The beginning of a body."""

    def __init__(self, stream: httpx2.AsyncByteStream) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        left = wire.LARGEST_BYTES
        async for chunk in self._stream:
            yield chunk
            left -= len(chunk)
            if left <= 0:
                return

    async def aclose(self) -> None:
        await self._stream.aclose()


@dataclass
class _Asked:
    """One question to the server, however many requests it takes."""

    messages: list[Message]
    max_tokens: int
    temperature: float
    seed: int | None
    left_s: float
    """How long may still be waited for the first sign of an answer."""
    on_sent: Callable[[], None] = lambda: None
    resolved: bool = False
    came_back: int = 0
    waited_s: float = 0


class _ComeBack(Exception):
    """The server wants to be asked again after a while."""

    def __init__(self, after_s: float) -> None:
        super().__init__(after_s)
        self.after_s = after_s


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
        capabilities: Capabilities | None = None,
        runs_on: str = "",
        resolve: Callable[[], Awaitable[str]] | None = None,
        retry_after_s: float = 10,
    ) -> None:
        """`cores` is given when the server computes on this machine's cores: then one model computes at a time.

        `resolve` is asked once for each question whose model the server does not have; it gives the id to use from then
        on. `retry_after_s` is the longest that a busy server may ask to be left alone before it is asked again.
        """
        self.leg = leg
        self.model = model
        self.base_url = base_url
        url = httpx2.URL(base_url)
        self.where = where or url.host or base_url
        self.context_tokens = context_tokens
        self.capabilities = capabilities
        self.runs_on = runs_on
        self.streaming = 0
        """How many questions it is answering now."""
        self._cores = cores
        self._limits = limits or Limits()
        self._resolve = resolve
        self._retry_after_s = retry_after_s
        self._key = wire.Secret(api_key)
        # What stands before the host, or after the path, may be a secret.
        self._address = str(url.copy_with(userinfo=b"", query=None, fragment=None))
        self._refused: set[str] = set()
        """Fields that it was seen to refuse, beside those that `capabilities` names."""
        self._opened = False
        """Its prompts end with the mark that opens a thought."""
        self._closed = False
        limit, local = self._limits, is_loopback(base_url)
        self._client = openai.AsyncOpenAI(
            base_url=base_url,
            # The client insists on a key; local servers ignore it.
            api_key=self._key.reveal() or "none",
            # A silent retry would hide a failing server and spoil the first-token time.
            max_retries=0,
            # The waits for tokens are limited in `_read`; these guard the connection.
            timeout=httpx2.Timeout(None, connect=limit.connect_s, write=limit.stall_s, pool=limit.connect_s),
            http_client=openai.DefaultAsyncHttpxClient(
                event_hooks={"request": [_report_sent], "response": [_limit]},
                limits=httpx2.Limits(keepalive_expiry=KEEPALIVE_S),
                # A proxy named in the environment must never see a request to this machine.
                trust_env=not local,
                # To read all certificates takes 40 ms, and without encryption there is none to verify.
                verify=url.scheme != "http" or not local,
                # Neither text nor key may go where a server points.
                follow_redirects=False,
            ),
        )

    async def connect(self) -> None:
        """Open the connection, and load what the client loads late: the first question need not. Raises ModelError."""
        with self._translated():
            async with asyncio.timeout(self._limits.stall_s):
                try:
                    await self._client.get("/models", cast_to=httpx2.Response)
                except openai.APIStatusError as error:
                    # A server need not list its models.
                    if error.status_code not in (404, 405, 501):
                        raise

    async def close(self) -> None:
        self._closed = True
        await self._client.close()

    async def stream(
        self,
        messages: list[Message],
        *,
        max_tokens: int,
        trace: Trace,
        temperature: float = 0,
        seed: int | None = None,
    ) -> AsyncGenerator[Piece, None]:
        self.streaming += 1
        try:
            async with AsyncExitStack() as held:
                if self._cores is not None:
                    queue = trace.open("queue", self.leg)
                    try:
                        async with aclosing(_claim(self._cores, held)) as places:
                            async for ahead in places:
                                yield Waiting(ahead)
                    finally:
                        trace.close(queue)
                asked = _Asked(messages, max_tokens, temperature, seed, self._limits.first_token_s)
                async with aclosing(self._pieces(asked, trace)) as pieces:
                    async for piece in pieces:
                        yield piece
        finally:
            self.streaming -= 1

    async def _pieces(self, asked: _Asked, trace: Trace) -> AsyncGenerator[Piece, None]:
        spans: dict[str, Span] = {}

        def begin(name: str) -> None:
            end()
            spans[name] = trace.open(name, self.leg)

        def end() -> None:
            for span in spans.values():
                trace.close(span)

        answer = Answer(asked.max_tokens, Splitter(opened=self._opened))
        asked.on_sent = end
        told_at = -math.inf
        try:
            with self._translated():
                if self._closed:
                    raise self._error(ModelUnreachable, f"{self._who} is not connected any more. Ask again.")
                while True:
                    begin("request")
                    try:
                        response = await self._open(asked)
                        break
                    except _ComeBack as later:
                        begin("queue")
                        yield Waiting(1, later.after_s)
                        await asyncio.sleep(later.after_s)
                begin("first_token")
                # The server may hold its headers back until the first token; the wait began when the request was sent.
                spans["first_token"].start_ms = spans["request"].end_ms or spans["first_token"].start_ms
                try:
                    async with aclosing(self._read(response, answer, asked.left_s)) as pieces:
                        async for piece in pieces:
                            if isinstance(piece, Thinking):
                                if piece.retract and "completion" in spans:
                                    spans["thinking"] = spans.pop("completion")
                                    spans["thinking"].name = "thinking"
                                elif "thinking" not in spans and "completion" not in spans:
                                    begin("thinking")
                                now = asyncio.get_running_loop().time()
                                if now - told_at < THINKING_EVERY_S and not piece.retract:
                                    continue
                                told_at = now
                            elif isinstance(piece, Delta) and "completion" not in spans:
                                begin("completion")
                            yield piece
                finally:
                    await response.aclose()
                draft = self._draft(answer)
        finally:
            end()
        yield draft

    async def _read(
        self, response: httpx2.Response, answer: Answer, left_s: float
    ) -> AsyncGenerator[Reading | Thinking | Delta, None]:
        """What the response holds, until the answer is whole or nothing more comes."""
        if "html" in response.headers.get("content-type", ""):
            raise wire.NotACompletion(response.headers["content-type"])
        events = wire.Events()
        clock = asyncio.get_running_loop().time
        chunks = response.aiter_bytes()
        share = -1.0
        ended = False
        while not ended and not events.done and not answer.endless:
            began = clock()
            try:
                # Comments and empty events are no news: only what is news gives the server more time.
                async with asyncio.timeout(left_s):
                    data = await anext(chunks, None)
            except (TimeoutError, httpx2.HTTPError):
                if answer.finish_reason is None:
                    raise
                break  # the answer is whole; only its tail is missing
            left_s -= clock() - began
            ended = data is None
            for event in events.end() if data is None else events.feed(data):
                if (event.get("error") or event.get("object") == "error") and answer.finish_reason is None:
                    raise self._failed(wire.fault(event))
                if (read := wire.usage(event)) is not None:
                    answer.usage = Usage(*read)
                if (reading := wire.progress(event)) is not None:
                    if reading[0] > share:
                        share, left_s = reading[0], self._limits.first_token_s
                    yield Reading(*reading)
                if (one := wire.choice(event)) is None:
                    continue
                delta = answer.take(one)
                if answer.news:
                    left_s = self._limits.stall_s
                if answer.thinking:
                    yield Thinking(retract=answer.retracted)
                if delta is not None:
                    yield delta
                if answer.finish_reason is not None:
                    left_s = min(left_s, TAIL_S)
                if answer.endless:
                    break
            if events.broken is not None and answer.finish_reason is None:
                raise events.broken
            ended = ended or events.broken is not None
        if (delta := answer.end()) is not None:
            yield delta
        if answer.endless:
            return
        if events.began and not answer.begun and answer.usage is None:
            raise wire.NotACompletion("it has no choices")
        if answer.finish_reason is None and events.done:
            # Some servers only say that they are done.
            full = answer.usage is not None and answer.usage.output_tokens >= answer.max_tokens
            answer.finish_reason = "length" if full else "stop"
        if events.done:
            with suppress(TimeoutError, httpx2.HTTPError):
                async with asyncio.timeout(DRAIN_S):
                    async for _ in chunks:
                        pass

    def _draft(self, answer: Answer) -> Draft:
        """The whole answer. Raises ModelBroke, ModelSilent or PromptTooLong where there is none."""
        self._opened = self._opened or answer.opened
        who, reason, usage = f"{self.model} ({self.where})", answer.finish_reason, answer.usage
        if reason is None or reason == "error":
            raise self._error(ModelBroke, f"{who} stopped in the middle of its answer. Ask again.")
        text = "".join(answer.text)
        if text.strip():
            reason = "stop" if reason == "tool_calls" else reason
            return Draft(self.leg, self.model, text, answer.covering(text), usage, reason, self.runs_on)
        if usage is not None and self.context_tokens is not None and usage.input_tokens >= self.context_tokens:
            raise self._too_long(usage.input_tokens, self.context_tokens)
        limit = f"RAG_{self.leg.upper()}_MAX_TOKENS"
        if answer.thought:
            wrote = f"used up its {answer.max_tokens} tokens" if reason == "length" else "stopped"
            raise self._error(
                ModelSilent,
                f"{who} {wrote} while it was thinking and wrote no answer."
                f" Raise {limit}, or choose a model that does not think.",
            )
        if reason == "content_filter":
            raise self._error(ModelSilent, f"{who} has a filter that withheld the answer. Ask in other words.")
        if reason == "tool_calls":
            raise self._error(ModelSilent, f"{who} asked for a tool instead of answering. Ask in other words.")
        raise self._error(ModelSilent, f"{who} returned an empty answer. Ask again or in other words.")

    # The request

    async def _open(self, asked: _Asked) -> httpx2.Response:
        """The response to that question, whose body has still to be read. What the server refuses is left out."""
        named: set[str] = set()
        suspected: list[str] = []
        vague: openai.APIStatusError | None = None
        again = False
        while True:
            wanted = self._wanted(asked, self._refused.union(named, suspected))
            try:
                response = await self._send(wanted, asked)
            except openai.APIStatusError as caught:
                error = caught
            except openai.APIConnectionError as caught:
                # A kept connection that the server gave up just as it was used again. Nothing was answered on it, so
                # asking once more on another one hides no failure: a server that is gone refuses that one.
                if again or not isinstance(caught.__cause__, httpx2.RemoteProtocolError):
                    raise
                again = True
                continue
            else:
                # Of the suspects the last was guilty; the others may have been left out for nothing.
                self._refused.update(named, suspected[-1:])
                return response
            # Out of the handler: what is raised from here on drags no server's words along.
            fault = _fault(error)
            if fault.too_long and error.status_code != 429:
                raise self._too_long(fault.needed_tokens, fault.window_tokens, error.status_code)
            if pause_s := self._pause_s(error, fault, asked):
                asked.came_back += 1
                asked.waited_s += pause_s
                raise _ComeBack(pause_s)
            if self._knows_no_model(error, fault) and self._resolve is not None and not asked.resolved:
                asked.resolved = True
                await self._look_up(asked)
            elif more := self._named(error, fault, wanted):
                named |= more
            elif (
                error.status_code in (400, 422)
                and not fault.fields.intersection(wanted)
                and not self._knows_no_model(error, fault)
                and (suspects := [one for one in SUSPECTS if one in wanted])
            ):
                vague = vague or error
                suspected.append(suspects[0])
            else:
                raise vague or error

    def _wanted(self, asked: _Asked, refused: set[str]) -> dict[str, Any]:
        known = self.capabilities
        out = refused | known.refuses if known is not None else refused
        wanted: dict[str, Any] = {"model": self.model, "messages": asked.messages, "stream": "stream" not in out}
        lengths = wire.LENGTHS if known is None or known.length_field == wire.LENGTHS[0] else wire.LENGTHS[::-1]
        if length := next((one for one in lengths if one not in out), None):
            wanted[length] = asked.max_tokens
        if "temperature" not in out:
            # Not left to the server: some take chances where nothing is said (Foundry Local).
            wanted["temperature"] = asked.temperature
        if asked.seed is not None and "seed" not in out:
            wanted["seed"] = asked.seed
        if wanted["stream"] and "stream_options" not in out:
            wanted["stream_options"] = {"include_usage": True}
        if "logprobs" not in out and (known is None or known.logprobs is not False):
            wanted["logprobs"] = True
            if "top_logprobs" not in out:
                wanted["top_logprobs"] = TOP_LOGPROBS
        # llama.cpp's own; other servers may refuse what they do not know.
        progress = self._cores is not None if known is None else bool(known.prompt_progress)
        if progress and wanted["stream"] and "return_progress" not in out and _is_long(asked.messages):
            wanted["return_progress"] = True
        return wanted

    async def _send(self, wanted: dict[str, Any], asked: _Asked) -> httpx2.Response:
        clock = asyncio.get_running_loop().time
        began = clock()
        reset = _on_sent.set(asked.on_sent)
        try:
            async with asyncio.timeout(asked.left_s):
                # Not `chat.completions.create`: it walks every message to translate Python names, which costs more
                # than everything else that is ours before the request is sent. Nor its stream, which makes a pydantic
                # model of each event and cannot tell an answer that ended from one that broke off.
                response = await self._client.post(
                    "/chat/completions",
                    body=wanted,
                    cast_to=httpx2.Response,
                    stream=True,
                    stream_cls=openai.AsyncStream[Any],
                )
        except UnicodeEncodeError as error:
            raise self._error(
                ModelRefused,
                f"The key for {self._who} cannot be sent. Set RAG_{self.leg.upper()}_API_KEY to a valid one.",
            ) from error
        finally:
            _on_sent.reset(reset)
            asked.left_s -= clock() - began
        assert isinstance(response, httpx2.Response), "asked for in place of a stream"
        return response

    def _pause_s(self, error: openai.APIStatusError, fault: wire.Fault, asked: _Asked) -> float | None:
        """How long to leave a busy server alone before it is asked again; None: it is not."""
        told_s = wire.retry_after_s(error.response.headers)
        loading = error.status_code == 503 and fault.loading
        if error.status_code not in (429, 503) or (told_s is None and not loading) or (asked.came_back and not loading):
            return None
        pause_s = max(LOADING_S if told_s is None else told_s, 0.01)
        return pause_s if asked.waited_s + pause_s <= self._retry_after_s else None

    def _knows_no_model(self, error: openai.APIStatusError, fault: wire.Fault) -> bool:
        if error.status_code == 404:
            return fault.about_model or not fault.about_path
        return error.status_code == 400 and fault.about_model and not fault.fields

    async def _look_up(self, asked: _Asked) -> None:
        """The server does not have the model under that id: what is it called there now?"""
        assert self._resolve is not None
        async with asyncio.timeout(max(asked.left_s, 0)):
            model = await self._resolve()
        if not model or model == self.model:
            raise self._no_model(404)
        self.model = model

    def _named(self, error: openai.APIStatusError, fault: wire.Fault, wanted: dict[str, Any]) -> set[str]:
        """Fields of the request that the server named in its refusal, and that it can be asked without."""
        if error.status_code not in (400, 403, 422, 500, 501):
            return set()
        named = fault.fields & set(wanted)
        if _VALUE.search(fault.text):
            # It takes the field, and wants another number.
            named -= set(wire.LENGTHS)
        if "stream" in named and not _NO_STREAM.search(fault.text):
            named -= {"stream"}
        return set(named)

    # Errors

    @property
    def _who(self) -> str:
        if self._cores is not None:
            return f"{self.model} ({HERE})"
        return f"{self.model} at {self._address}"

    def _error(self, kind: type[Kind], text: str, *more: object) -> Kind:
        """Servers repeat what they were sent; the key must not travel on. Nor in what an error was raised from."""
        return kind(self._key.removed(text), *more)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Every error of the client and its HTTP library becomes one of ours."""
        who, leg = self._who, self.leg.upper()
        try:
            yield
        except ModelError:
            raise
        except (TimeoutError, openai.APITimeoutError, httpx2.TimeoutException) as error:
            if isinstance(_cause(error), httpx2.ConnectTimeout | httpx2.PoolTimeout):
                raise self._error(
                    ModelUnreachable, f"No connection to {who} within {self._limits.connect_s:g} s. {self._mend}"
                ) from error
            raise self._error(
                ModelTimeout,
                f"{who} did not answer in time (first token {self._limits.first_token_s:g} s, pause"
                f" {self._limits.stall_s:g} s). Ask again, or raise RAG_FIRST_TOKEN_TIMEOUT_S or RAG_STALL_TIMEOUT_S.",
            ) from error
        except openai.APIStatusError as error:
            raise self._answered(error) from None
        except (openai.APIConnectionError, httpx2.HTTPError) as error:
            cause = _cause(error)
            if isinstance(cause, httpx2.RemoteProtocolError | httpx2.ReadError | httpx2.WriteError):
                raise self._error(
                    ModelBroke, f"{who} closed the connection in the middle of its answer. {self._mend}"
                ) from error
            if isinstance(cause, httpx2.LocalProtocolError):
                raise self._error(
                    ModelRefused, f"The key for {who} cannot be sent. Set RAG_{leg}_API_KEY to a valid one."
                ) from None
            if isinstance(cause, httpx2.TransportError):
                raise self._error(ModelUnreachable, f"No model at {who}: {cause}. {self._mend}") from error
            raise self._error(
                ModelBroke, f"{who} sent an answer that cannot be read ({type(cause).__name__}). Ask again."
            ) from error
        except (wire.NotACompletion, openai.OpenAIError) as error:
            said = self._key.shown(str(error))
            raise self._error(
                ModelBroke, f"{who} sent something that is no chat completion ({said}). {self._check_address}"
            ) from None

    @property
    def _mend(self) -> str:
        if self._cores is not None:
            return "It is being started again; ask again in a moment."
        return f"Start that server, or set RAG_{self.leg.upper()}_BASE_URL."

    @property
    def _check_address(self) -> str:
        return "Ask again." if self._cores is not None else f"Check the address, RAG_{self.leg.upper()}_BASE_URL."

    def _no_model(self, status: int | None, words: str = "It has no such model.") -> ModelUnknown:
        told = f" (status {status})" if status else ""
        return self._error(
            ModelUnknown,
            f"{self._who} is not there{told}: {words} Set RAG_{self.leg.upper()}_MODEL to one that it has.",
            status,
        )

    def _too_long(self, needed: int | None, window: int | None, status: int | None = None) -> PromptTooLong:
        sizes = f": {needed} tokens" if needed else ""
        sizes += f"{',' if needed else ':'} and its window has {window}" if window else ""
        if window and self.context_tokens is None:
            # The next prompt is made to fit.
            self.context_tokens = window
        return self._error(
            PromptTooLong,
            f"The prompt is too long for {self._who}{sizes}. Shorten the question, attach less, lower RAG_EVIDENCE_TOKENS,"
            " or choose a model with a larger window.",
            status,
        )

    def _quoted(self, fault: wire.Fault, otherwise: str = "") -> str:
        """The server's own words, ended as a sentence."""
        text = self._key.shown(fault.text or otherwise or "it does not say why")
        return text if text.endswith((".", "!", "?", "…")) else f"{text}."

    def _failed(self, fault: wire.Fault) -> ModelError:
        """An error event inside a stream that began with status 200."""
        code = next((int(part) for part in fault.code.split() if part.isdecimal() and len(part) == 3), None)
        if fault.too_long:
            return self._too_long(fault.needed_tokens, fault.window_tokens, code)
        if fault.about_model:
            return self._no_model(code, self._quoted(fault))
        if fault.about_path:
            return self._error(
                ModelRefused, f"{self._who} is no address for a chat: {self._quoted(fault)} {self._check_address}", code
            )
        return self._error(ModelRefused, f"{self._who} failed while answering: {self._quoted(fault)} Ask again.", code)

    def _answered(self, error: openai.APIStatusError) -> ModelRefused:
        """An answer with another status than 200."""
        status, fault, leg = error.status_code, _fault(error), self.leg.upper()
        who, detail = self._who, self._quoted(fault, error.response.reason_phrase)
        if 300 <= status < 400:
            to = self._key.shown(error.response.headers.get("location", "another address"))
            text = (
                f"{who} points to {to} (status {status}), where neither text nor key is sent unasked."
                f" Set RAG_{leg}_BASE_URL to the address that is meant."
            )
        elif status in (401, 403):
            text = f"{who} refused the key (status {status}). Set RAG_{leg}_API_KEY."
        elif self._knows_no_model(error, fault):
            if "loaded" not in fault.text:
                return self._no_model(status, detail)
            text = (
                f"{who} is not loaded there (status {status}): {detail} Load it, or set RAG_{leg}_MODEL to one that is."
            )
        elif status in (404, 405):
            text = f"{who} has no chat at that address (status {status}): {detail} {self._check_address}"
        elif status in (429, 503):
            wait_s = wire.retry_after_s(error.response.headers)
            when = (
                "Wait a little, then ask again."
                if wait_s is None
                else f"It wants to be asked again after {wait_s:.0f} s: ask then, or raise RAG_RETRY_AFTER_S."
            )
            what = (
                "is still loading its model" if status == 503 and fault.loading else "takes no more requests just now"
            )
            text = f"{who} {what} (status {status}): {detail} {when}"
        elif status >= 500:
            mend = "ask again in a moment" if self._cores is not None else "restart that server"
            text = f"{who} failed (status {status}): {detail} Ask again; if it stays, {mend}."
        else:
            text = (
                f"{who} refused the request (status {status}): {detail}"
                f" Ask in other words, or set RAG_{leg}_MODEL to another model."
            )
        return self._error(ModelRefused, text, status)


# "max_tokens is too large: 9000" is no refusal of the field.
_VALUE = re.compile(r"too (?:large|big|high|small)|at (?:most|least)|must be|(?:less|greater) than|exceed|[<>]", re.I)
_NO_STREAM = re.compile(r"not (?:supported|allowed|available|implemented)|unsupported|must be|does not", re.I)


def _is_long(messages: list[Message]) -> bool:
    return sum(len(one["content"]) for one in messages) >= PROGRESS_FROM_CHARS


def _cause(error: BaseException) -> BaseException:
    """What the HTTP library said, below the client."""
    return error.__cause__ or error if isinstance(error, openai.OpenAIError) else error


def _fault(error: openai.APIStatusError) -> wire.Fault:
    body = error.body
    return wire.fault(body, "" if isinstance(body, dict) else str(body or ""))


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
