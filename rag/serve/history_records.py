"""What is kept of a message, an element or a document, as one text; and how the page gets it back.

Knows the dictionaries of Chainlit's steps and elements, and what its page expects of them when a conversation is opened
again. Knows no database: both keep these texts, and columns only for what they look up.
"""

import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, cast

from chainlit.config import config
from chainlit.element import Element, ElementDict
from chainlit.step import StepDict
from chainlit.types import ThreadDict

from rag.corpus import reader
from rag.corpus.documents import Ingest, Passage

TITLE_CHARS: Final = 120
SEARCH_CHARS: Final = 200
SEARCH_WORDS: Final = 10
LONGEST_PAGE: Final = 1000
"""Conversations in one page of the list, whatever is asked for."""

# What a database or a page cannot take: NUL, and halves of surrogate pairs.
_BAD = re.compile("[\0\ud800-\udfff]")
# In one line of a list also what ends the line, or turns the rest of it round.
_UNLISTED = re.compile("[\0-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


@dataclass(frozen=True)
class Attached:
    """A document that was added to a conversation, as it was read then."""

    number: int
    """Tells it from an earlier one of the same name in this conversation."""
    source: str
    element_id: str
    """Of the uploaded file in the chat."""
    report: Ingest
    passages: list[Passage]


def clean(text: str) -> str:
    """The same length, with a replacement character for what cannot be kept."""
    return _BAD.sub("\ufffd", text)


def as_json(value: object) -> str:
    """JSON that every database and every page takes; what JSON does not know becomes its `str`, and NaN null."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, default=str)
        if "\\u0000" not in text and not _BAD.search(text):
            return text
    except (TypeError, ValueError, RecursionError):
        pass  # keys that are no texts, numbers that are none; what is nested without end is refused below
    return json.dumps(_plain(value), ensure_ascii=False)


def _plain(value: object, depth: int = 0) -> object:
    if depth > 100:
        raise ValueError("nested too deeply to be kept")
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, float):
        return value if value - value == 0 else None  # neither infinite nor NaN
    if value is None or isinstance(value, int):
        return value
    if isinstance(value, Mapping):
        return {clean(str(key)): _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, depth + 1) for item in value]
    return clean(str(value))


def title(text: str | None) -> str:
    """A conversation's name: one line, not endless; "" if nothing is left."""
    line = " ".join(_UNLISTED.sub(" ", (text or "")[: 20 * TITLE_CHARS]).split())
    return line if len(line) <= TITLE_CHARS else f"{line[: TITLE_CHARS - 1].rstrip()}…"


def folded(text: str) -> str:
    """As it is searched: without case, and with one form of what Unicode writes in several."""
    return unicodedata.normalize("NFKC", clean(text)).casefold()


def terms(query: str | None) -> list[str]:
    """What all must occur, somewhere in a conversation. Parts of words do, so no language needs its own rules."""
    return list(dict.fromkeys(folded((query or "")[:SEARCH_CHARS]).split()))[:SEARCH_WORDS]


def instant(text: object = None) -> str:
    """A time as ISO 8601 in UTC, all of one length, so that texts sort as times do; now, if `text` is none."""
    time = datetime.now(UTC)
    if isinstance(text, str):
        try:
            given = datetime.fromisoformat(text)
            time = given.replace(tzinfo=UTC) if given.tzinfo is None else given.astimezone(UTC)
        except (ValueError, OverflowError):
            pass  # a time that cannot be read is as good as none
    return f"{time:%Y-%m-%dT%H:%M:%S.%f}Z"


class Clock:
    """Tells times of which no two are the same, so that they order what was used."""

    def __init__(self) -> None:
        self._last = datetime.min.replace(tzinfo=UTC)

    def now(self) -> str:
        self._last = max(datetime.now(UTC), self._last + timedelta(microseconds=1))
        return f"{self._last:%Y-%m-%dT%H:%M:%S.%f}Z"


# --- Steps ---


def step_row(step: Mapping[str, Any]) -> str:
    """Of a new step, or of what is new about it: Chainlit passes None for what it does not say."""
    return as_json({key: value for key, value in step.items() if value is not None and value != {}})


def merged(former: str | None, row: str) -> dict[str, Any]:
    """The step as it is now: what was not said again stays."""
    step: dict[str, Any] = {**(json.loads(former) if former else {}), **json.loads(row)}
    step["createdAt"] = instant(step.get("createdAt"))
    return step


def said(step: Mapping[str, Any]) -> str | None:
    """What a message can be found by; None for what is no message."""
    return folded(str(step.get("output") or "")) if "message" in str(step.get("type")) else None


def steps_back(rows: Iterable[tuple[str, str | None, float, str | None]]) -> list[StepDict]:
    """Steps as the page takes them, of what is kept of each, and the id, value and comment of its feedback.

    The page shows no step whose parent it has not met before, so such a one comes back without a parent.
    """
    back: list[StepDict] = []
    known: set[str] = set()
    for row, feedback_id, value, comment in rows:
        step: Any = {"name": "", "input": "", "output": "", "parentId": None, "metadata": {}, **json.loads(row)}
        if step["parentId"] not in known:
            step["parentId"] = None
        # Nothing streams any more, though the process may have been ended while it did.
        step["streaming"] = False
        step["feedback"] = None
        if feedback_id is not None:
            step["feedback"] = {"forId": step["id"], "id": feedback_id, "value": int(value), "comment": comment}
        known.add(step["id"])
        back.append(step)
    return back


# --- Threads ---


def thread_back(row: tuple[Any, ...], *, by_use: bool = False) -> ThreadDict:
    """`by_use`: the page sorts its list, and groups it, by the time of creation; it is given that of the last use."""
    id, name, user_id, identifier, metadata, tags, created, used = row
    return {
        "id": id,
        "createdAt": used if by_use else created,
        "name": name,
        "userId": user_id,
        "userIdentifier": identifier,
        "tags": json.loads(tags) if tags else None,
        "metadata": json.loads(metadata),
        "steps": [],
        "elements": [],
    }


# --- Elements ---


def element_content(element: Element) -> bytes | None:
    """The bytes that an element carries itself. A custom element has its props instead."""
    if element.type == "custom" or not element.content:
        return None
    return element.content if isinstance(element.content, bytes) else clean(element.content).encode()


def element_back(row: Mapping[str, Any], *, has_file: bool) -> ElementDict:
    """As the page shows it. The files of Chainlit's sessions are gone, and their keys with them."""
    back: dict[str, Any] = {**row, "chainlitKey": None, "objectKey": None, "path": None}
    if has_file:
        # From the server's root, since the page stands at /thread/<id>.
        back["url"] = f"{config.run.root_path.rstrip('/')}/history/{row['threadId']}/{row['id']}"
    return cast(ElementDict, back)


# --- Documents ---


def document_row(report: Ingest, passages: list[Passage]) -> str:
    return as_json(reader.packed(report, passages))


def document_back(number: int, source: str, element_id: str, row: str) -> Attached:
    read = json.loads(row)
    report, passages = reader.unpacked(read, source, read["duration_ms"])
    return Attached(number, source, element_id, report, passages)
