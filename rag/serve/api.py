"""The OpenAI wire format: `POST /v1/chat/completions`, `GET /v1/models`.

Knows the shapes that OpenAI's clients read and write; the turn is `cascade.answer`, as at every other door. Its models are
the three modes. A draft that is rejected never reaches a client, so `smallfirst-auto` holds a draft back until it is
judged; the other two stream as they write.
"""

import json
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, Literal

import anyio
from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ValidationError

from rag.errors import ModelBroke, ModelError, RagError, UserError
from rag.serve.files import Files
from rag.serve.service import Service
from rag.settings import MODES, Mode
from rag.turn import cascade
from rag.turn.cascade import Turn
from rag.turn.session import Exchange, Session

MODELS: dict[str, Mode] = {f"smallfirst-{mode}": mode for mode in MODES}


class Part(BaseModel):
    type: str
    text: str = ""


class ChatMessage(BaseModel):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None

    @property
    def text(self) -> str:
        if isinstance(self.content, list):
            return "\n".join(part.text for part in self.content if part.type == "text")
        return self.content or ""


class StreamOptions(BaseModel):
    include_usage: bool = False


class ChatRequest(BaseModel):
    """What is understood of a request; sampling options do not apply to an answer from documents and are ignored."""

    model: str
    messages: list[ChatMessage]
    stream: bool = False
    stream_options: StreamOptions | None = None


def router(service: Service, files: Files) -> APIRouter:
    routes = APIRouter(prefix="/v1")

    @routes.get("/models")
    async def models() -> dict[str, Any]:
        return {
            "object": "list",
            "data": [{"id": name, "object": "model", "created": 0, "owned_by": "smallfirst"} for name in MODELS],
        }

    @routes.post("/chat/completions")
    async def chat_completions(request: Request) -> Response:
        try:
            wanted = ChatRequest.model_validate(await _json(request))
            turn = _begin(wanted, service)
        except (ValidationError, RequestValidationError) as error:
            first = error.errors()[0]
            return _error(UserError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}."))
        except UserError as error:
            return _error(error)
        if wanted.stream:
            return await _stream(wanted, turn)
        return await _whole(request, wanted, turn)

    return routes


async def _json(request: Request) -> Any:
    try:
        return json.loads(await request.body())
    except ValueError:
        raise UserError("The body is not JSON. Send a chat completion request.") from None


def _begin(wanted: ChatRequest, service: Service) -> AsyncGenerator[cascade.Event, None]:
    mode = MODELS.get(wanted.model)
    if mode is None:
        raise UserError(f"There is no model {wanted.model!r}. Use one of: {', '.join(MODELS)}.")
    if not wanted.messages or wanted.messages[-1].role != "user":
        raise UserError("The last message must be the user's question.")
    session = Session(service.library, mode)
    asked: str | None = None
    for message in wanted.messages[:-1]:
        if message.role == "user":
            asked = message.text
        elif message.role == "assistant" and asked is not None:
            session.remember(Exchange("", asked, asked, message.text))
            asked = None
    return cascade.answer(
        wanted.messages[-1].text,
        session=session,
        legs=service.legs,
        settings=service.settings,
        observers=service.observers,
    )


async def _texts(turn: AsyncGenerator[cascade.Event, None], mode: Mode) -> AsyncIterator[str | Turn]:
    """Text that stands, as soon as it does, then the Turn. Raises RagError."""
    sent = ""
    retracted = False
    async with aclosing(turn) as events:
        async for event in events:
            match event:
                case cascade.Token(leg=leg, text=text) if mode == leg:
                    sent += text
                    yield text
                case cascade.Retracted() if sent:
                    retracted = True
                case cascade.Escalating() if sent:
                    raise ModelBroke("The model stopped in the middle of its answer. Ask again.")
                case cascade.Failed(error=error):
                    raise error
                case cascade.Answered(turn=answered) if retracted:
                    # It cannot be unsaid; the answer follows whole.
                    yield f"\n\n{answered.answer}"
                    yield answered
                case cascade.Answered(turn=answered):
                    # What was streamed stands, but for source marks that were added or removed at the end.
                    rest = (
                        answered.answer.removeprefix(sent.strip()) if answered.answer.startswith(sent.strip()) else ""
                    )
                    if rest:
                        yield rest
                    yield answered


async def _stream(wanted: ChatRequest, turn: AsyncGenerator[cascade.Event, None]) -> Response:
    pieces = _texts(turn, MODELS[wanted.model])
    # The first piece decides whether there is an answer at all; until it is known an error can still be a status.
    try:
        first = await anext(pieces)
    except RagError as error:
        return _error(error)
    head = _head(wanted, "chat.completion.chunk")

    async def body() -> AsyncIterator[str]:
        def chunk(delta: dict[str, str], finish: str | None = None, **more: Any) -> str:
            choice = {"index": 0, "delta": delta, "finish_reason": finish}
            return _event({**head, "choices": [choice], **more})

        role = {"role": "assistant"}
        try:
            piece: str | Turn | None = first
            while piece is not None:
                if isinstance(piece, Turn):
                    yield chunk({}, "stop", smallfirst=piece.to_dict())
                    if wanted.stream_options and wanted.stream_options.include_usage:
                        yield _event({**head, "choices": [], "usage": _usage(piece)})
                else:
                    yield chunk({**role, "content": piece})
                    role = {}
                piece = await anext(pieces, None)
        except RagError as error:
            yield _event(_error_body(error))
            return
        yield "data: [DONE]\n\n"

    return StreamingResponse(body(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})


async def _whole(request: Request, wanted: ChatRequest, turn: AsyncGenerator[cascade.Event, None]) -> Response:
    answered: Turn | None = None
    failed: RagError | None = None

    async def work() -> None:
        nonlocal answered, failed
        try:
            async for piece in _texts(turn, MODELS[wanted.model]):
                if isinstance(piece, Turn):
                    answered = piece
        except RagError as error:
            failed = error

    async with anyio.create_task_group() as tasks:

        async def until_gone() -> None:
            # The body was read whole; the next thing that comes from the client is its hanging up.
            while (await request.receive())["type"] != "http.disconnect":
                pass
            tasks.cancel_scope.cancel()

        tasks.start_soon(until_gone)
        await work()
        tasks.cancel_scope.cancel()
    if failed is not None:
        return _error(failed)
    if answered is None:
        return Response(status_code=499)  # nobody is left to read it
    message = {"role": "assistant", "content": answered.answer}
    return JSONResponse(
        {
            **_head(wanted, "chat.completion"),
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": _usage(answered),
            "smallfirst": answered.to_dict(),
        }
    )


def _head(wanted: ChatRequest, kind: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": wanted.model}


def _usage(turn: Turn) -> dict[str, int]:
    """Tokens of both legs together, a rejected draft's too: they were computed."""
    read = sum(draft.usage.input_tokens for draft in turn.drafts if draft.usage)
    written = sum(draft.usage.output_tokens for draft in turn.drafts if draft.usage)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def _event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"


def _error_body(error: RagError) -> dict[str, Any]:
    kind = "invalid_request_error" if isinstance(error, UserError) else "server_error"
    return {"error": {"message": str(error), "type": kind, "param": None, "code": None}}


def _error(error: RagError) -> Response:
    status = 400 if isinstance(error, UserError) else 503 if isinstance(error, ModelError) else 500
    return JSONResponse(_error_body(error), status_code=status)
