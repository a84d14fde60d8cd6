"""The OpenAI wire format as servers really speak it: the events of a stream, what one of them says, what an error means.

Knows shapes only: bytes in, plain values out. Knows no sockets, no waiting and no backend; whoever asks a server reads
its answers with these, and what does not fit is `NotACompletion`.
"""

import base64
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from html import escape
from typing import Any
from urllib.parse import quote

LARGEST_BYTES = 10_000_000
"""Of one event, of an answer in one piece, or of an error: more is no chat completion."""
SHOWN_CHARS = 300
"""Of what a server says, in a message for a person."""
LINE_CHARS = 20_000
# Keys are not found in texts by chance; what is shorter is none.
KEY_CHARS = 4
BASE64_BYTES = 12
LENGTHS = ("max_tokens", "max_completion_tokens")
FIELDS = (
    *LENGTHS,
    "temperature",
    "logprobs",
    "top_logprobs",
    "stream_options",
    "stream",
    "return_progress",
    "frequency_penalty",
    "presence_penalty",
    "seed",
    "stop",
)
"""Request fields that some server refuses."""

Event = dict[str, Any]


class NotACompletion(Exception):
    """What came is no part of a chat completion."""


class Events:
    """An answer's body taken apart: bytes in as they come, JSON objects out.

    Server-sent events, or one JSON object where the server does not stream. Comments (": ping"), other fields and empty
    lines are passed over. An event is taken when its line is there: no server writes one in several lines, and the empty
    line after it may come late.
    """

    def __init__(self) -> None:
        self.done = False
        """The server said that this is all: `[DONE]`, or an answer in one piece."""
        self.began = False
        """Something came that is an event."""
        self.broken: NotACompletion | None = None
        """What came after the events that were told is no event."""
        self._rest = b""
        self._sniffed = False
        self._whole = False
        self._failing = False

    def feed(self, data: bytes) -> list[Event]:
        """The events that are complete with these bytes; after them, `broken` tells whether there are more."""
        if not self._sniffed:
            data = self._sniff(data)
        if self._rest:
            data = self._rest + data
        if len(data) > LARGEST_BYTES:
            self.broken = NotACompletion(f"more than {LARGEST_BYTES // 1_000_000} MB in one piece")
        if self._whole or not self._sniffed or self.broken is not None:
            self._rest = data
            return []
        if b"\r" in data:
            # A CR at the end may be half of a line's end.
            held = data.endswith(b"\r")
            data = (data[:-1] if held else data).replace(b"\r\n", b"\n").replace(b"\r", b"\n") + b"\r" * held
        lines = data.split(b"\n")
        self._rest = lines.pop()
        return self._events(lines)

    def end(self) -> list[Event]:
        """There are no more bytes. Half an event is none: then `done` stays False."""
        data, self._rest = self._rest, b""
        if not self._whole:
            torn = self.began or data.startswith(b"data:")
            events = self._events([data.rstrip(b"\r")])
            self.broken = None if torn else self.broken
            return events
        try:
            event = _parse(data)
        except NotACompletion as broken:
            self.broken = broken
            return []
        self.done = self.began = True
        return [event]

    def _sniff(self, data: bytes) -> bytes:
        """Go by what comes: some servers send either kind under the other's content type."""
        data = (self._rest + data).removeprefix(b"\xef\xbb\xbf").lstrip()
        self._rest = b""
        if data:
            self._sniffed = True
            self._whole = data[:1] in (b"{", b"[", b'"')
            if data[:1] == b"<":
                self.broken = NotACompletion(line(data))
        return data

    def _events(self, lines: list[bytes]) -> list[Event]:
        events: list[Event] = []
        try:
            for one in lines:
                if one.startswith(b"data:"):
                    value = one[5:].strip()
                    if value.startswith(b"[DONE]"):
                        self.done = True
                        break
                    if value and value != b"null":
                        event = _parse(value)
                        events.append({"error": event} if self._failing and "error" not in event else event)
                elif one.startswith(b"error:"):
                    # llama.cpp, before 2025.
                    events.append({"error": _parse(one[6:].strip())})
                elif one.startswith(b"event:"):
                    self._failing = one[6:].strip() == b"error"
                elif not one:
                    self._failing = False
                elif not self.began and not events and not one.startswith((b":", b"id:", b"retry:")):
                    raise NotACompletion(line(one))
        except NotACompletion as broken:
            self.broken = broken
        self.began = self.began or bool(events)
        return events


def _parse(value: bytes) -> Event:
    try:
        event = json.loads(value.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        raise NotACompletion(line(value)) from None
    if not isinstance(event, dict):
        raise NotACompletion(line(value))
    return event


def line(data: bytes | str) -> str:
    """What a server sent, on one line. Much more than anybody is shown: a key in it is taken out before it is cut."""
    text = data.decode("utf-8", "replace") if isinstance(data, bytes) else data
    return " ".join(text.split())[:LINE_CHARS]


class Secret:
    """A key, and how to take it out of what others say. Its repr does not tell it."""

    def __init__(self, value: str | None) -> None:
        self._value = (value or "").strip()
        self._forms = _forms(self._value) if len(self._value) >= KEY_CHARS else ()

    def __repr__(self) -> str:
        return "Secret()" if self._value else "Secret(None)"

    def reveal(self) -> str:
        """For the server that it is for; empty where there is none."""
        return self._value

    def removed(self, text: str) -> str:
        for form in self._forms:
            text = text.replace(form, "[key]")
        return text

    def shown(self, text: str) -> str:
        """The beginning of what a server said, without the key."""
        text = self.removed(text)
        return text if len(text) <= SHOWN_CHARS else text[:SHOWN_CHARS] + "…"


def _forms(key: str) -> tuple[str, ...]:
    """As it is, and as careless programs write it; the longest first."""
    data = key.encode("utf-8", "replace")
    forms = {key, quote(key, safe=""), quote(key), escape(key), key.replace("/", "\\/"), data.hex()}
    forms |= {json.dumps(key)[1:-1], repr(key)[1:-1]}
    if len(data) >= BASE64_BYTES:
        for at in range(3):
            # How it looks inside of something encoded depends on where it begins; its ends hang on their neighbours.
            inside = base64.b64encode(b"." * at + data).decode()[2 * at : -4]
            forms |= {inside, inside.replace("+", "-").replace("/", "_")}
    return tuple(sorted(forms, key=len, reverse=True))


# What an event says


def choice(event: Event) -> Event | None:
    """The first answer of those that were asked for; there is one. None: this event is about something else."""
    choices = event.get("choices")
    if not isinstance(choices, list):
        return None
    for one in choices:
        if isinstance(one, dict) and not one.get("index"):
            return one
    return None


def said(one: Event) -> tuple[str, bool]:
    """Text that the model wrote for the user, and whether it thought meanwhile."""
    delta = one.get("delta") or one.get("message")
    if not isinstance(delta, dict):
        # Of a server that speaks of completions where a chat was asked for.
        text = one.get("text")
        return (text, False) if isinstance(text, str) else ("", False)
    content = delta.get("content")
    thought = bool(delta.get("reasoning_content") or delta.get("reasoning"))
    if isinstance(content, str):
        return content, thought
    if isinstance(content, list):
        parts = [part for part in content if isinstance(part, dict)]
        texts = [part["text"] for part in parts if part.get("type") != "thinking" and isinstance(part.get("text"), str)]
        return "".join(texts), thought or any(part.get("type") == "thinking" for part in parts)
    refusal = delta.get("refusal")
    return (refusal, thought) if isinstance(refusal, str) else ("", thought)


def finish(one: Event) -> str | None:
    """Why the model stopped: `stop`, `length`, `content_filter`, `tool_calls`, `error`; None: it did not yet."""
    reason = one.get("finish_reason")
    if not isinstance(reason, str) or not reason:
        return None
    match reason.lower():
        case "length" | "max_tokens" | "max_length" | "model_length":
            return "length"
        case "content_filter" | "safety":
            return "content_filter"
        case "tool_calls" | "function_call" | "tool_use":
            return "tool_calls"
        case "error":
            return "error"
    return "stop"


def usage(event: Event) -> tuple[int, int] | None:
    """Tokens read and written, where both are told."""
    told = event.get("usage")
    if not isinstance(told, dict):
        return None
    read, written = told.get("prompt_tokens"), told.get("completion_tokens")
    if isinstance(read, int) and isinstance(written, int) and read >= 0 and written >= 0:
        return read, written
    return None


def progress(event: Event) -> tuple[float, int] | None:
    """Of llama.cpp: how much of the prompt is read, 0 to 1, and how many tokens it has."""
    told = event.get("prompt_progress")
    try:
        share, total = float(told["processed"] / told["total"]), int(told["total"])  # type: ignore[index]
    except (TypeError, KeyError, ValueError, ZeroDivisionError, OverflowError):
        return None
    return (share, total) if 0 <= share <= 1 else None


def logprobs(one: Event) -> list[Event]:
    """What is told of each token; empty where nothing is."""
    told = one.get("logprobs")
    content = told.get("content") if isinstance(told, dict) else None
    return content if isinstance(content, list) else []


# What an error means


@dataclass(frozen=True)
class Fault:
    """What a server says went wrong, in whichever of the usual shapes."""

    text: str
    """Its own words, on one line, and perhaps with the key in them; empty where it said nothing."""
    code: str = ""
    """`code` and `type`, whichever there are."""
    fields: frozenset[str] = frozenset()
    """Request fields that it names."""
    needed_tokens: int | None = None
    window_tokens: int | None = None

    @property
    def too_long(self) -> bool:
        """Prompt and answer do not fit the window."""
        return bool(_TOO_LONG_CODES & set(self.code.split())) or _TOO_LONG.search(self.text) is not None

    @property
    def about_model(self) -> bool:
        """The server has no such model, or has not loaded it."""
        return "model_not_found" in self.code or _NO_MODEL.search(self.text) is not None

    @property
    def about_path(self) -> bool:
        """The server has no such address."""
        return _NO_PATH.search(self.text) is not None

    @property
    def loading(self) -> bool:
        """The model is on its way."""
        return _LOADING.search(self.text) is not None


# The words of llama.cpp, OpenAI, vLLM, Foundry Local, LM Studio, llama-cpp-python, Text Generation Inference.
_TOO_LONG_CODES = {"context_length_exceeded", "exceed_context_size_error"}
_TOO_LONG = re.compile(
    r"context[ _-](?:length|size|window)|maximum model length|requires \d+ total tokens|(?:prompt|input)(?: is)? too long"
    r"|max_new_tokens.{0,20}must be <=|reduce the length|input tokens exceed",
    re.IGNORECASE,
)
_WINDOW = (
    re.compile(r"(?:context (?:length|size|window)|model length|limit)\D{0,24}?(\d+)", re.IGNORECASE),
    re.compile(r"requires \d+ total tokens.*?(\d+)\D*$", re.IGNORECASE),
    re.compile(r"must be <= (\d+)"),
)
_NEEDED = re.compile(
    r"total of (?:at least )?(\d+)|requires (\d+) total|requested (\d+) tokens|requested tokens \((\d+)\)"
    r"|resulted in (\d+) tokens|request \((\d+) tokens\)|keep the first (\d+) tokens|\(length (\d+)\)"
    r"|has (\d+) input tokens|passed (\d+) input tokens",
    re.IGNORECASE,
)
_NO_MODEL = re.compile(
    r"\bmodels?\b.{0,160}?(?:not found|not exist|not (?:been )?loaded|must be loaded|not available)"
    r"|(?:no|unknown|invalid|failed to load) (?:such )?model|no models? (?:is )?loaded",
    re.IGNORECASE | re.DOTALL,
)
_NO_PATH = re.compile(
    r"^not found$|page not found|file not found|invalid url|unexpected endpoint|no mapping|cannot (?:get|post)",
    re.IGNORECASE,
)
_LOADING = re.compile(r"\bloading\b|is starting|warming up", re.IGNORECASE)


def fault(body: object, text: str = "") -> Fault:
    """`body` is the parsed JSON of an error, or one event of a stream; `text` stands in where it says nothing."""
    error = body.get("error", body) if isinstance(body, Mapping) else body
    if isinstance(error, list) and error and isinstance(error[0], Mapping):
        error = error[0]
    if not isinstance(error, Mapping):
        words = line(error if isinstance(error, str) else text)
        return _numbered(words, "", _named(words))
    detail = error.get("detail")
    if isinstance(detail, list):
        # FastAPI's: where in the request, and what about it.
        places = [one for one in detail if isinstance(one, Mapping)]
        words = line("; ".join(f"{_place(one)}: {one.get('msg')}" for one in places) or text)
        named = {part for one in places for part in _parts(one.get("loc"))} & set(FIELDS)
        return Fault(words, fields=frozenset(named))
    message = error.get("message") or detail or error.get("error_description")
    words = line(message if isinstance(message, str) else text)
    code = " ".join(str(error[key]) for key in ("code", "type") if isinstance(error.get(key), str | int))
    parameter = error.get("param")
    first = parameter.split(".")[0] if isinstance(parameter, str) else ""
    parameters = frozenset({first}) if first in FIELDS else _named(words)
    return _numbered(words, code, parameters, error.get("n_prompt_tokens"), error.get("n_ctx"))


def _numbered(words: str, code: str, named: frozenset[str], needed: object = None, window: object = None) -> Fault:
    found = Fault(words, code, named)
    if not found.too_long:
        return found
    if not isinstance(window, int):
        window = next((int(match[1]) for pattern in _WINDOW if (match := pattern.search(words))), None)
    if not isinstance(needed, int):
        match = _NEEDED.search(words)
        needed = int(next(filter(None, match.groups()))) if match else None
    return Fault(words, code, named, needed, window)


def _named(words: str) -> frozenset[str]:
    return frozenset(_SPELLED.get(word, word) for word in _FIELD.findall(words.lower()))


_SPELLED = {"include_usage": "stream_options", "logprob": "logprobs", "n_probs": "logprobs"}
_FIELD = re.compile(rf"(?<![\w-])(?:{'|'.join((*FIELDS, *_SPELLED))})(?![\w-])")


def _parts(location: object) -> list[str]:
    return [part for part in location if isinstance(part, str)] if isinstance(location, list | tuple) else []


def _place(one: Mapping[str, object]) -> str:
    return ".".join(part for part in _parts(one.get("loc")) if part != "body") or "the request"


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """How long the server wants to be left alone, in seconds; None: it does not say."""
    try:
        if told := headers.get("retry-after-ms"):
            wait_s = float(told) / 1000
        elif told := headers.get("retry-after"):
            try:
                wait_s = float(told)
            except ValueError:
                until = parsedate_to_datetime(told)
                if until.tzinfo is None:
                    until = until.replace(tzinfo=UTC)
                wait_s = (until - datetime.now(UTC)).total_seconds()
        else:
            return None
    except (ValueError, TypeError, OverflowError):
        return None
    return max(0.0, wait_s) if math.isfinite(wait_s) else None
