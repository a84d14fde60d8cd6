"""The OpenAI-compatible door: `POST /v1/chat/completions`, `GET /v1/models`.

Knows how one request becomes a turn, and what is sent to its client while the turn goes on; the shapes are
`completions`', the turn is `cascade.answer`, as at every other door. A rejected draft reaches no client that did not ask
for it: `smallfirst-auto` holds the small model's back until it is judged, and whatever else is written is sent at once.
A client that hangs up ends the work, whatever it is just then.
"""

import asyncio
import base64
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Annotated, Any, Final
from urllib.parse import quote

from fastapi import APIRouter, Body, Depends, Request
from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from rag.corpus.documents import shown
from rag.errors import DocumentError, RagError
from rag.serve import completions, documents
from rag.serve.api_errors import ApiError, ApiRoute, declared
from rag.serve.completions import MODELS, ChatRequest, Chunks, FileData, Wording
from rag.serve.ending import hung_up, in_thread
from rag.serve.service import Service
from rag.serve.visitors import VISITOR
from rag.turn import cascade
from rag.turn.cascade import Phase, Turn
from rag.turn.citations import Citation, Marks
from rag.turn.session import Exchange, Session
from rag.words import LANGUAGES, say, told, translated

log = logging.getLogger("smallfirst")

BASE64_CHARS: Final = 4
"""The least that says a byte."""
BEAT_S = 10.0
"""A stream in which nothing came for so long says what is being done, so that nobody takes it for dead."""
# With one of these our own words begin where a turn ends without a model's.
SILENT: Final = tuple(
    told(sentence, language).partition("…")[0]
    for sentence in (
        say("turn.not_found_no_word"),
        say("turn.not_found", places="…"),
        say("turn.only_outline", name="…", outline=""),
        say("turn.only_begins", name="…", text=""),
    )
    for language in LANGUAGES
)


class Places:
    """How many turns may be under way at the same time."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.taken = 0

    def __enter__(self) -> None:
        if self.taken >= self.most:
            why = f"{self.most} questions are being answered already (RAG_API_TURNS). Ask again in a moment."
            raise ApiError(503, why, code="overloaded", headers={"Retry-After": "1"})
        self.taken += 1

    def __exit__(self, *_: object) -> None:
        self.taken -= 1


def router(service: Service) -> APIRouter:
    routes = APIRouter(prefix="/v1", route_class=ApiRoute)
    places = Places(service.settings.api_turns)

    @routes.get("/models", response_model=completions.Models, responses=declared(401, 429))
    async def models() -> dict[str, Any]:
        """The three ways to be answered: small first, the small model, the larger one."""
        return completions.MODEL_LIST

    @routes.get("/models/{id}", response_model=completions.Model, responses=declared(401, 404, 429))
    async def model(id: str) -> dict[str, Any]:
        if id not in MODELS:
            raise completions.no_model(id)
        return next(one for one in completions.MODEL_LIST["data"] if one["id"] == id)

    @routes.post(
        "/chat/completions",
        dependencies=[Depends(_is_json)],
        responses={
            200: {
                "model": completions.ChatCompletion,
                "description": "The answer; with `stream`, as server-sent events that end with `data: [DONE]`.",
                "content": {"text/event-stream": {"itemSchema": completions.EVENT_SCHEMA}},
            },
            **declared(400, 401, 403, 404, 413, 429, 500, 503),
        },
    )
    async def chat_completions(request: Request, wanted: Annotated[ChatRequest, Body()]) -> Response:
        """Answer the last question of a conversation from the documents."""
        completions.refuse(wanted)
        return Reply(Asked(wanted, service, str(request.base_url).rstrip("/")), places)

    return routes


def _is_json(request: Request) -> None:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise ApiError(
            400, "The body is not JSON, or does not say so: add the header `Content-Type: application/json`."
        )


def _is_refusal(text: str) -> bool:
    """Were these our own words? Where a stream's text could not be unsaid, they follow it after an empty line."""
    return any(part.startswith(SILENT) for part in text.split("\n\n"))


class Asked:
    """A request on its way through one turn. Its session lasts as long as the turn."""

    def __init__(self, wanted: ChatRequest, service: Service, base: str) -> None:
        """`base` is the address of this server, as the client knows it. Raises ApiError."""
        self.wanted = wanted
        self.mode = MODELS[wanted.model]
        self._service = service
        self._files = service.files
        self._base = base
        self._visitor = VISITOR.get()
        *earlier, last = wanted.talk
        self._question = last.text
        self.ending = service.ending
        self.session = Session(service.library, self.mode)
        asked: str | None = None
        for message in earlier:
            if message.role == "user":
                asked = message.text
            elif asked is not None:
                text = message.text
                self.session.remember(Exchange("", asked, asked, text, refused=_is_refusal(text)))
                asked = None
        self._conversation = wanted.conversation_name
        self._ids: list[str] = []
        self._kept: dict[str, str] = {}
        """By name, the id of each uploaded file that is attached."""
        self._inline: dict[str, tuple[str, str]] = {}
        """By name, the place in the request and the base64; of two with one name the later counts."""
        for place, file in completions.file_parts(wanted):
            self._take(place, file)
        most = service.settings.session_uploads
        if len(self._inline) > most:
            raise ApiError(400, f"messages: At most {most} files go with one request.", param="messages")
        instructed = any(message.role in ("system", "developer") for message in wanted.messages)
        self.notes = [say("turn.note_system_unused")] if instructed else []

    def _take(self, place: str, file: FileData) -> None:
        if (file.file_id is None) == (file.file_data is None):
            raise ApiError(400, f"{place}: Give either file_id or file_data.", param=place)
        if file.file_id is not None:
            self._ids.append(file.file_id)
            return
        name = (file.filename or "").replace("\\", "/").rpartition("/")[2].strip()
        if not name:
            why = f"{place}.filename: A file in the request needs its name, as in manual.pdf."
            raise ApiError(400, why, param=f"{place}.filename")
        assert file.file_data is not None
        data = file.file_data
        if data.startswith("data:"):
            head, comma, data = data.partition(",")
            if not comma or not head.endswith(";base64"):
                raise ApiError(400, f"{place}.file_data: This data URL is not in base64.", param=f"{place}.file_data")
        data = "".join(data.split())  # mail breaks it into lines
        try:
            self._files.check_name(name)
            if not data or len(data) >= BASE64_CHARS:  # what is shorter is no base64, and not nothing
                self._files.check_size(name, len(data) * 3 // 4 - data[-2:].count("="))
        except ApiError as error:
            raise ApiError(error.status, str(error), param=place) from None
        self._inline.pop(name, None)  # the newest comes last
        self._inline[name] = (place, data)

    async def events(self) -> AsyncGenerator[cascade.Event, None]:
        """The turn's, after those of reading what comes with the request. Closing it ends the work. Raises ApiError."""
        session, service = self.session, self._service
        try:
            owner, conversation = self._visitor.owner, self._conversation
            self._kept = await self._files.attach(owner, session, ids=self._ids, conversation=conversation)
            for name, (place, data) in self._inline.items():
                yield Phase("read", say("chat.reading", name=shown(name)))
                await self._read(name, place, data)
            turn = cascade.answer(
                self._question, session=session, legs=service.legs, settings=service.settings,
                max_tokens=self.wanted.most_tokens, observers=service.observers,
            )  # fmt: skip
            async with aclosing(turn) as events:
                async for event in events:
                    if isinstance(event, cascade.Answered):
                        # Our own words are in the caller's language; a model's are what they are.
                        event = cascade.Answered(replace(event.turn, answer=self.spoken(event.turn.answer)))
                    yield event
        finally:
            session.attachments.close()

    async def _read(self, name: str, place: str, data: str) -> None:
        attachments = self.session.attachments

        def add() -> None:
            try:
                read = base64.b64decode(data, validate=True)
            except ValueError:
                why = f"{place}.file_data: This is not base64."
                raise ApiError(400, why, param=f"{place}.file_data") from None
            attachments.add(read, name)

        try:
            await in_thread(add, attachments.stop)
        except DocumentError as error:
            raise ApiError(400, str(error), param=place) from None

    def url_of(self, citation: Citation) -> str:
        """Where the cited document is read."""
        attachments, passage = self.session.attachments, citation.passage
        source = passage.source
        if source not in attachments.sources or passage not in attachments.opening(source):
            return f"{self._base}{documents.address(passage, self._visitor)}"
        if source in self._inline:
            return f"attachment:{quote(source)}"
        return f"{self._base}{self._visitor.link(f'/v1/files/{self._kept[source]}/content')}"

    def told(self, turn: Turn) -> dict[str, Any]:
        dictionary = completions.told(turn, self.url_of, drafts=self.wanted.drafts, notes=self.notes)
        return translated(dictionary, self._visitor.language)  # type: ignore[no-any-return]

    def spoken(self, text: str) -> str:
        """In the language that the client asked for, as far as it has words in that."""
        return told(text, self._visitor.language)


class Reply(Response):
    """What a client gets of one turn. It is sent here, because a client may hang up before there is anything to send."""

    def __init__(self, asked: Asked, places: Places) -> None:
        super().__init__()
        self._asked = asked
        self._places = places

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        number = {"x-request-id": self.headers["x-request-id"]} if "x-request-id" in self.headers else {}

        async def whole(response: Response) -> None:
            response.headers.update(number)
            await response(scope, receive, send)

        async def fail(error: ApiError) -> None:
            if stream.begun:
                await stream.fail(error)
            else:
                await whole(error.response())

        async def answer() -> None:
            try:
                with self._places:
                    if self._asked.wanted.stream:
                        await stream.run()
                    else:
                        await whole(await self._whole())
            except Exception as caught:
                await fail(_told_of(caught))

        stream = _Stream(send, self._asked, number)
        work = asyncio.create_task(answer())
        gone = asyncio.create_task(hung_up(receive))
        ending = asyncio.create_task(self._asked.ending.wait())
        tasks = (work, gone, ending)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        if not work.cancelled():
            work.result()
        elif not ending.cancelled():
            await fail(ApiError(503, "The server is ending. Ask again when it is back."))

    async def _whole(self) -> Response:
        asked, answer = self._asked, None
        async with aclosing(asked.events()) as events:
            async for event in events:
                if isinstance(event, cascade.Failed):
                    raise event.error
                if isinstance(event, cascade.Answered):
                    turn = event.turn
                    cited = completions.annotations(turn.answer, turn, asked.url_of)
                    answer = completions.whole(asked.wanted, turn, cited, asked.told(turn))
        assert answer is not None, "a turn ends with an answer or fails"
        return Response(completions.as_json(answer), media_type="application/json")


def _told_of(error: Exception) -> ApiError:
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RagError):
        return ApiError.of(error, VISITOR.get().language)
    log.exception("A request to the API failed.", exc_info=error)
    return ApiError(500, "Something went wrong in the server. Its log says what.")


class _Stream:
    """Server-sent events of one turn. They begin with the first text, or when that is long in coming: until then an
    error can still be a status."""

    def __init__(self, send: Send, asked: Asked, headers: dict[str, str]) -> None:
        self.begun = False
        self._send = send
        self._asked = asked
        self._headers = {
            "content-type": "text/event-stream; charset=utf-8",
            "cache-control": "no-store",
            "x-accel-buffering": "no",  # nginx would keep it back
            **headers,
        }
        self._chunks = Chunks(asked.wanted)
        self._wording = Wording()
        self._stands: str | None = None if asked.mode == "auto" else asked.mode
        """The leg whose text is the answer as soon as it is written; None while that is not known."""
        self._opened = False
        """Has the first chunk been sent?"""
        self._phase: str = "Reading the request"
        self._sent_s = time.monotonic()
        self._one_at_a_time = asyncio.Lock()

    async def run(self) -> None:
        beating = asyncio.create_task(self._beat())
        try:
            async with aclosing(self._asked.events()) as events:
                async for event in events:
                    await self._tell(event)
        finally:
            async with self._one_at_a_time:  # not in the middle of what it sends
                beating.cancel()
        await self._write(b"data: [DONE]\n\n", more=False)

    async def fail(self, error: ApiError) -> None:
        """The last thing that a stream says that has begun."""
        await self._write(completions.event(error.body()), more=False)

    async def _tell(self, event: cascade.Event) -> None:
        drafts = self._asked.wanted.drafts
        match event:
            case Phase(detail=detail):
                self._phase = detail
            case cascade.Prompted(leg=leg, passages=passages) if leg == self._stands:
                self._wording.marks = Marks(passages)
            case cascade.Token(leg=leg, text=text) if leg == self._stands:
                await self._say(self._wording.add(text))
            case cascade.Token(leg=leg, text=text) if drafts:
                await self._aside({"draft": {"leg": leg, "text": text}})
            case cascade.Retracted(leg=leg) if leg == self._stands:
                if self._wording.sent:
                    self._stands = None  # the answer follows whole
                self._wording.marks.rest()  # what was held back was only thought, too
            case cascade.Retracted(leg=leg) if drafts:
                await self._aside({"retracted": {"leg": leg}})
            case cascade.Escalating(reason=reason, leg=leg):
                # Who takes over is not judged; but after half an answer no other one can begin.
                self._stands = None if self._wording.sent else leg
                if drafts:
                    await self._aside({"escalating": {"leg": leg, "reason": self._asked.spoken(reason)}})
            case cascade.Failed(error=error):
                raise error
            case cascade.Answered(turn=turn):
                await self._end(turn)

    async def _say(self, text: str) -> None:
        if text:
            await self._write(self._opening() + self._chunks.delta({"content": text}))

    async def _aside(self, told: dict[str, Any]) -> None:
        await self._write(self._opening() + self._chunks.delta({}, smallfirst=told))

    async def _end(self, turn: Turn) -> None:
        await self._say(self._wording.rest(turn))
        asked, wording = self._asked, self._wording
        cited = completions.annotations(wording.sent, turn, asked.url_of, wording.answer_from)
        last = self._opening()
        if cited:
            last += self._chunks.delta({"annotations": cited})
        last += self._chunks.delta({}, completions.finish_reason(turn), smallfirst=asked.told(turn))
        if asked.wanted.tells_usage:
            last += self._chunks.usage(turn)
        await self._write(last)

    def _opening(self) -> bytes:
        """The chunk before all others, once."""
        if self._opened:
            return b""
        self._opened = True
        return self._chunks.delta({"role": "assistant", "content": "", "refusal": None})

    async def _beat(self) -> None:
        while True:
            wait_s = self._sent_s + BEAT_S - time.monotonic()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            else:
                await self._write(f": {' '.join(self._phase.split())}\n\n".encode("utf-8", "replace"))

    async def _write(self, data: bytes, *, more: bool = True) -> None:
        async with self._one_at_a_time:
            if not self.begun:
                self.begun = True
                start = Response(headers=self._headers)
                raw = [(name, value) for name, value in start.raw_headers if name != b"content-length"]
                await self._send({"type": "http.response.start", "status": 200, "headers": raw})
            await self._send({"type": "http.response.body", "body": data, "more_body": more})
            self._sent_s = time.monotonic()
