"""The shapes of OpenAI's chat completions: what is understood of a request, and what is answered, whole or in chunks.

Knows the wire and a finished Turn; knows no route, no session and no model. What a request may hold, and what becomes of
it, is said here once: `refuse` turns down what would silently give another answer than was asked for; what does no harm
is read and ignored.
"""

import json
import re
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from rag import __version__
from rag.serve.api_errors import ApiError
from rag.settings import MODES, Mode
from rag.turn.cascade import Turn
from rag.turn.citations import Citation, Marks
from rag.words import Said, say, with_texts

MODELS: Final[dict[str, Mode]] = {f"smallfirst-{mode}": mode for mode in MODES}
FINGERPRINT: Final = f"smallfirst-{__version__}"

_MARKER = re.compile(r"\[(\d+)\]")


# What is asked


class Wire(BaseModel):
    """Types are those of the JSON: "1" is no number. What is not known is ignored."""

    model_config = ConfigDict(strict=True, extra="ignore")


def _characters(text: str) -> str:
    """JSON can escape half of a pair, which is no character; no model and no file can be sent it."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise PydanticCustomError("characters", "Input should be text; half of a surrogate pair is none")
    return text


Text = Annotated[str, AfterValidator(_characters)]


class TextPart(Wire):
    type: Literal["text"]
    text: Text


class RefusalPart(Wire):
    """What an assistant wrote in place of an answer; it is read as text."""

    type: Literal["refusal"]
    refusal: Text


class FileData(Wire):
    """Either a file that was uploaded, or one in the request itself."""

    file_id: str | None = Field(None, description="of a file from POST /v1/files")
    filename: str | None = Field(None, description="needed with file_data; its ending says how it is read")
    file_data: str | None = Field(None, description="the file in base64, bare or as data:...;base64,...")


class FilePart(Wire):
    """A document, attached for this request."""

    type: Literal["file"]
    file: FileData


class MediaPart(Wire):
    """Understood, and refused: the models here read no pictures and hear nothing."""

    type: Literal["image_url", "input_audio"]


def _kind(value: Any) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    known = {"text": "text part", "refusal": "refusal part", "file": "file part"}
    known |= {"image_url": "media part", "input_audio": "media part"}
    return known.get(kind) if isinstance(kind, str) else None


def _form(value: Any) -> str | None:
    forms = {str: "a text", list: "a list", dict: "an object"}
    return next((form for kind, form in forms.items() if isinstance(value, kind)), None)


def _one_of(*forms: str) -> Discriminator:
    """Of what may be written in more than one way."""
    return Discriminator(_form, custom_error_type="form", custom_error_message=f"Input should be {' or '.join(forms)}")


# Tags with a space: an error names the place by words of the caller's own, and these are none.
Part = Annotated[
    Annotated[TextPart, Tag("text part")]
    | Annotated[RefusalPart, Tag("refusal part")]
    | Annotated[FilePart, Tag("file part")]
    | Annotated[MediaPart, Tag("media part")],
    Discriminator(
        _kind,
        custom_error_type="part",
        custom_error_message="A content part should be an object whose type is text or file",
    ),
]
Written = Annotated[Text, Tag("a text")]
Content = Annotated[Written | Annotated[list[Part], Tag("a list")], _one_of("a text", "a list of content parts")]
Choosing = Annotated[Written | Annotated[dict[str, Any], Tag("an object")], _one_of("a text", "an object")]


class ChatMessage(Wire):
    """Of system, developer, tool and function messages nothing is used."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Content | None = None

    @property
    def parts(self) -> Sequence[Part]:
        return self.content if isinstance(self.content, list) else ()

    @property
    def text(self) -> str:
        if isinstance(self.content, str):
            return self.content
        written = (getattr(part, "text", getattr(part, "refusal", None)) for part in self.parts)
        return "\n".join(text for text in written if text is not None)


class StreamOptions(Wire):
    include_usage: bool | None = Field(None, description="a last chunk tells the usage")


class Named(Wire):
    id: Text


Conversation = Annotated[Written | Annotated[Named, Tag("an object")], _one_of("a text", "an object with an id")]
Stop = Annotated[Written | Annotated[list[str], Tag("a list")], _one_of("a text", "a list of texts")]


class Wishes(Wire):
    """What OpenAI's format has no words for."""

    drafts: bool = Field(
        False, description="also tell drafts that were rejected, while they are written and at the end"
    )


class Format(Wire):
    type: Literal["text", "json_object", "json_schema"]


class ChatRequest(Wire):
    """A chat completion. What is not named here is ignored."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"model": "smallfirst-auto", "messages": [{"role": "user", "content": "What is an SLM?"}]},
                {"model": "smallfirst-llm", "messages": [{"role": "user", "content": "Why?"}], "stream": True},
            ]
        }
    )

    model: str = Field(description=f"one of {', '.join(MODELS)}")
    messages: list[ChatMessage] = Field(
        min_length=1, description="the conversation; the last one of user and assistant is the user's question"
    )
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_completion_tokens: int | None = Field(None, ge=1, description="longest answer of each model, tokens")
    max_tokens: int | None = Field(None, ge=1, description="the former name of max_completion_tokens")
    conversation: Conversation | None = Field(
        None, description="all files that were uploaded with this name of a conversation are attached"
    )
    smallfirst: Wishes | None = None

    temperature: float | None = Field(None, ge=0, le=2, description="ignored")
    top_p: float | None = Field(None, ge=0, le=1, description="ignored")
    presence_penalty: float | None = Field(None, ge=-2, le=2, description="ignored")
    frequency_penalty: float | None = Field(None, ge=-2, le=2, description="ignored")
    seed: int | None = Field(None, description="ignored")
    user: str | None = Field(None, description="ignored")
    safety_identifier: str | None = Field(None, description="ignored")
    metadata: dict[str, Any] | None = Field(None, description="ignored")
    store: bool | None = Field(None, description="ignored: nothing is stored")
    service_tier: str | None = Field(None, description="ignored")
    reasoning_effort: str | None = Field(None, description="ignored")
    verbosity: str | None = Field(None, description="ignored")
    prediction: dict[str, Any] | None = Field(None, description="ignored")
    tools: list[dict[str, Any]] | None = Field(None, description="ignored: no tool is called")
    functions: list[dict[str, Any]] | None = Field(None, description="ignored: no function is called")
    parallel_tool_calls: bool | None = Field(None, description="ignored")

    n: int | None = Field(None, ge=1, le=128, description="more than 1 is refused")
    logprobs: bool | None = Field(None, description="true is refused")
    top_logprobs: int | None = Field(None, ge=0, le=20, description="more than 0 is refused")
    stop: Stop | None = Field(None, description="refused, unless empty")
    logit_bias: dict[str, float] | None = Field(None, description="refused, unless empty")
    tool_choice: Choosing | None = Field(None, description="anything but none and auto is refused")
    function_call: Choosing | None = Field(None, description="anything but none and auto is refused")
    response_format: Format | None = Field(None, description="anything but text is refused")
    modalities: list[Literal["text", "audio"]] | None = Field(None, description="audio is refused")
    web_search_options: dict[str, Any] | None = Field(None, description="refused")

    @property
    def most_tokens(self) -> int | None:
        """Of an answer."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def drafts(self) -> bool:
        return self.smallfirst is not None and self.smallfirst.drafts

    @property
    def tells_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def conversation_name(self) -> str | None:
        return self.conversation.id if isinstance(self.conversation, Named) else self.conversation

    @property
    def talk(self) -> list[ChatMessage]:
        """What was said, without what is not used."""
        return [message for message in self.messages if message.role in ("user", "assistant")]


@dataclass(frozen=True)
class Refused:
    """A parameter that is turned down, and when."""

    name: str
    when: str
    asks: Callable[[ChatRequest], bool]
    why: str
    code: str = "unsupported_value"


REFUSED: Final = (
    Refused("n", "more than 1", lambda w: (w.n or 1) > 1, "There is one answer to a question."),
    Refused("logprobs", "true", lambda w: bool(w.logprobs), "Log probabilities are not told.", "unsupported_parameter"),
    Refused(
        "top_logprobs", "more than 0", lambda w: bool(w.top_logprobs), "Log probabilities are not told.",
        "unsupported_parameter",
    ),
    Refused("stop", "not empty", lambda w: bool(w.stop), "An answer is not cut.", "unsupported_parameter"),
    Refused(
        "logit_bias", "not empty", lambda w: bool(w.logit_bias), "Tokens cannot be weighted.", "unsupported_parameter"
    ),
    Refused(
        "tool_choice", "anything but `none` and `auto`", lambda w: w.tool_choice not in (None, "none", "auto"),
        "No tool is called.",
    ),
    Refused(
        "function_call", "anything but `none` and `auto`", lambda w: w.function_call not in (None, "none", "auto"),
        "No function is called.",
    ),
    Refused(
        "response_format", "anything but `text`",
        lambda w: w.response_format is not None and w.response_format.type != "text", "Answers are text.",
    ),
    Refused("modalities", "`audio`", lambda w: "audio" in (w.modalities or ()), "Answers are text."),
    Refused(
        "web_search_options", "always", lambda w: w.web_search_options is not None,
        "Nothing is searched but the documents.", "unsupported_parameter",
    ),
)  # fmt: skip

IGNORED: Final = tuple(
    name for name, field in ChatRequest.model_fields.items() if (field.description or "").startswith("ignored")
)


def refuse(wanted: ChatRequest) -> None:
    """Raises ApiError for a request that would be answered otherwise than it asks."""
    if wanted.model not in MODELS:
        raise no_model(wanted.model)
    for refused in REFUSED:
        if refused.asks(wanted):
            why = f"{refused.name}: {refused.why} Leave it out."
            raise ApiError(400, why, param=refused.name, code=refused.code)
    for place, part in _parts(wanted):
        if isinstance(part, MediaPart):
            why = f"{place}: Pictures and sound are not read here. Send text, or a document as a file part."
            raise ApiError(400, why, param=place, code="unsupported_value")
    if not wanted.talk or wanted.talk[-1].role != "user":
        raise ApiError(400, "messages: The last one must be the user's question.", param="messages")
    if not wanted.talk[-1].text.strip():
        raise ApiError(400, "messages: The user's question is empty.", param="messages")


def no_model(name: str) -> ApiError:
    why = f"There is no model {name!r}. Use one of: {', '.join(MODELS)}."
    return ApiError(404, why, param="model", code="model_not_found")


def file_parts(wanted: ChatRequest) -> Iterator[tuple[str, FileData]]:
    """Of the user's messages, each with its place in the request."""
    for place, part in _parts(wanted):
        if isinstance(part, FilePart):
            yield f"{place}.file", part.file


def _parts(wanted: ChatRequest) -> Iterator[tuple[str, Part]]:
    for number, message in enumerate(wanted.messages):
        if message.role == "user":
            yield from ((f"messages.{number}.content.{at}", part) for at, part in enumerate(message.parts))


# What is answered


class Model(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class Models(BaseModel):
    object: Literal["list"]
    data: list[Model]


class UrlCitation(BaseModel):
    start_index: int = Field(description="of the mark [n] in the content, characters")
    end_index: int
    url: str = Field(description="where the document is; of a file in the request itself, attachment:NAME")
    title: str = Field(description="document, page and headings")


class Annotation(BaseModel):
    type: Literal["url_citation"]
    url_citation: UrlCitation


class AnswerMessage(BaseModel):
    role: Literal["assistant"]
    content: str
    refusal: None
    annotations: list[Annotation]


class Choice(BaseModel):
    index: int
    message: AnswerMessage
    logprobs: None
    finish_reason: Literal["stop", "length"]


class Usage(BaseModel):
    """Of both models together."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    system_fingerprint: str
    smallfirst: dict[str, Any] = Field(description="the turn: who answered, why, from what, and how long it took")


MODEL_LIST: Final[dict[str, Any]] = {
    "object": "list",
    "data": [{"id": name, "object": "model", "created": 0, "owned_by": "smallfirst"} for name in MODELS],
}


EVENT_SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {
        "data": {"type": "string", "description": "a chat.completion.chunk as JSON; an error as JSON; or, last, [DONE]"}
    },
    "required": ["data"],
}


class Wording:
    """The content of a stream while it grows. What was sent cannot be unsaid, so a mark is sent when it is known to lead
    to a passage."""

    def __init__(self) -> None:
        self.sent = ""
        self.marks = Marks(0)
        """Of the model whose text is added."""
        self.answer_from = 0
        """Where in `sent` the text begins that the citations are about, characters."""

    def add(self, text: str) -> str:
        """What of a model's text is to be sent; an answer has no blanks before it."""
        text = self.marks.add(text)
        text = text if self.sent else text.lstrip()
        self.sent += text
        return text

    def rest(self, turn: Turn) -> str:
        """What is missing of the answer: nothing, some marks, or all of it, after an empty line."""
        sent, answer = self.sent, str(turn.answer)
        if answer.startswith(f"{sent}{self.marks.rest()}".rstrip()):
            rest = answer[len(sent) :] if answer.startswith(sent) else answer[len(sent.rstrip()) :]
        elif not sent:
            rest = answer
        else:
            # Another model's, or what was only thought aloud, or a refusal in the model's own words.
            self.answer_from = len(sent) + 2
            rest = f"\n\n{answer}"
        self.sent += rest
        return rest


def annotations(content: str, turn: Turn, url_of: Callable[[Citation], str], start: int = 0) -> list[dict[str, Any]]:
    """One for each mark in the content, from `start` on: first those of marks 1, 2, ... in this order, then repeated ones.

    Front ends number what they list by the distinct addresses, and take the number in a mark for a place in that list. So
    each mark's address is its own, and a passage that was read and has no mark, while a later one has, takes its place with
    an empty range at the content's end.
    """
    of_marker = {citation.marker: citation for citation in turn.citations}
    found = [(int(match[1]), match.span()) for match in _MARKER.finditer(content, start) if int(match[1]) in of_marker]
    first = {marker: (marker, span) for marker, span in reversed(found)}
    if found:
        read = turn.prompts[turn.drafts[-1].leg].evidence
        for marker in range(1, max(first)):
            if marker not in first:
                passage = read[marker - 1].passage
                of_marker[marker] = Citation(marker, passage, passage.start, passage.end, passage.text)
                first[marker] = marker, (len(content), len(content))
    places = sorted(first.values()) + [place for place in found if place != first[place[0]]]
    urls: dict[int, str] = {}
    for marker, _ in places:
        if marker not in urls:
            url = url_of(of_marker[marker])
            urls[marker] = url if url not in urls.values() else f"{url}{'&' if '#' in url else '#'}mark={marker}"
    return [
        {
            "type": "url_citation",
            "url_citation": {
                "start_index": begin,
                "end_index": end,
                "url": urls[marker],
                "title": " ".join(of_marker[marker].passage.place.split()),
            },
        }
        for marker, (begin, end) in places
    ]


def told(turn: Turn, url_of: Callable[[Citation], str], *, drafts: bool, notes: Sequence[str] = ()) -> dict[str, Any]:
    """The turn's dictionary for a client. Of drafts that did not become the answer it has the text only with `drafts`, nor
    does a reason without them name the number or name that only such a draft has."""
    dictionary = turn.to_dict()
    dictionary["notes"] += notes
    dictionary["citations"] = [{**citation.to_dict(), "url": url_of(citation)} for citation in turn.citations]
    if not drafts:
        stands = None if turn.refused or not turn.drafts else len(turn.drafts) - 1
        signals = turn.verdict.signals if turn.verdict is not None else None
        judged_stands = stands is not None and turn.drafts[stands].leg == "slm"
        if not judged_stands and signals is not None and (fact := signals.absent_fact) is not None:
            for key in ("verdict", "notes"):
                dictionary[key] = _without(fact, dictionary[key])
        for number, draft in enumerate(dictionary["drafts"]):
            if number != stands:
                draft["text"] = None
        dictionary["set_aside"] = None
    return dictionary


def _without(fact: str, value: Any) -> Any:
    def change(text: str) -> str:
        if isinstance(text, Said):
            return say(text.key, **with_texts(text.values, change))
        return "…" if text == fact else text

    return with_texts(value, change)


def usage(turn: Turn) -> dict[str, int]:
    """Tokens of both models together, a rejected draft's too: they were computed. What no server counted is 0 here, and
    null in the turn's bill."""
    read, written = turn.bill.input_tokens or 0, turn.bill.output_tokens or 0
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def finish_reason(turn: Turn) -> Literal["stop", "length"]:
    cut = not turn.refused and bool(turn.drafts) and turn.drafts[-1].finish_reason == "length"
    return "length" if cut else "stop"


def whole(wanted: ChatRequest, turn: Turn, cited: list[dict[str, Any]], dictionary: dict[str, Any]) -> dict[str, Any]:
    """The answer in one piece; `dictionary` is the turn's as `told`."""
    message = {"role": "assistant", "content": turn.answer, "refusal": None, "annotations": cited}
    return {
        **_head(wanted, "chat.completion"),
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason(turn)}],
        "usage": usage(turn),
        "smallfirst": dictionary,
    }


class Chunks:
    """The events of one stream."""

    def __init__(self, wanted: ChatRequest) -> None:
        self._head = _head(wanted, "chat.completion.chunk")
        self._usage: dict[str, Any] = {"usage": None} if wanted.tells_usage else {}

    def delta(self, delta: dict[str, Any], finish: str | None = None, **more: Any) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return event({**self._head, "choices": [choice], **self._usage, **more})

    def usage(self, turn: Turn) -> bytes:
        return event({**self._head, "choices": [], "usage": usage(turn)})


def event(body: dict[str, Any]) -> bytes:
    return b"data: " + as_json(body) + b"\n\n"


def as_json(body: dict[str, Any]) -> bytes:
    # A file's name may hold what is no character.
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def _head(wanted: ChatRequest, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": wanted.model,
        "system_fingerprint": FINGERPRINT,
    }
