"""A conversation to take away: one turn as JSON, all of it as Markdown, its receipts as CSV.

Reads Chainlit's dictionary of a thread as it stands now, so an answer that took another's place stands in its place.
Knows the shape of a turn's dictionary, and that what people, documents and models wrote may not be trusted: it cannot
become a heading, a link, a picture or HTML of the Markdown, nor a formula of a spreadsheet. `router` serves all three,
to the owner of the conversation only. What is said here is English, as in the dictionaries.
"""

import csv
import io
import json
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Annotated, Any, Final
from urllib.parse import quote

from chainlit.auth import get_current_user, reuseable_oauth
from chainlit.config import config
from fastapi import APIRouter, Depends, HTTPException
from fastapi.responses import Response

from rag.energy import FROM_COMPUTING_TIME
from rag.models.legs import SPOKEN
from rag.serve.history import Kept
from rag.serve.ids import is_uuid
from rag.serve.media import FILE_POLICY
from rag.serve.totals import answered_by

Thread = Mapping[str, Any]
Turn = Mapping[str, Any]

NAMELESS: Final = "Conversation"
NAME_BYTES: Final = 200
"""Of a file's name before its ending; file systems take 255."""
HEADING_CHARS: Final = 120


@dataclass
class Reply:
    """One message of ours: a turn's dictionary, whole or of a turn that was stopped or failed."""

    id: str
    at: str
    turn: Turn


@dataclass
class Asked:
    """One message of the user: a question, documents, or both."""

    text: str
    at: str = ""
    files: dict[str, Mapping[str, Any] | None] = field(default_factory=dict)
    """Name of each document that came with it, and how it was read; None where it was not."""
    answers: list[Reply] = field(default_factory=list)


def asked(thread: Thread) -> list[Asked]:
    """The conversation in its order; each answer stands with its question, however late it was given."""
    said: dict[str, Asked] = {}
    parents: dict[str, str | None] = {}
    last: str | None = None
    for step in thread.get("steps") or ():
        id, metadata = str(step["id"]), step.get("metadata")
        at = str(step.get("createdAt") or "")
        parents[id] = step.get("parentId")
        if step.get("type") == "user_message":
            last = id
            one = said.setdefault(id, Asked(""))
            one.text, one.at = str(step.get("output") or ""), at
            one.files = {**dict.fromkeys(_files(thread, id)), **one.files}
        elif step.get("type") == "assistant_message" and isinstance(metadata, Mapping):
            documents = metadata.get("documents") or ()
            if not is_turn(metadata) and not documents:
                continue
            # What the message says itself, else where Chainlit put it, else what was said last.
            about = metadata.get("id") or _root(id, parents, said) or last or id
            one = said.setdefault(str(about), Asked(str(metadata.get("question") or ""), at))
            if is_turn(metadata):
                one.answers.append(Reply(id, at, metadata))
            one.files |= {str(report["source"]): report for report in documents}
    return list(said.values())


async def turns(history: Kept) -> list[dict[str, Any]]:
    """Every turn of every conversation, of all users, in the order in which they were asked; `asked_at` says when."""
    found = []
    for id in await history.thread_ids():
        for one in asked(await history.get_thread(id) or {}):
            found += [{**answer.turn, "asked_at": one.at} for answer in one.answers]
    return sorted(found, key=lambda turn: str(turn["asked_at"]))


def _files(thread: Thread, message_id: str) -> list[str]:
    return [
        str(element.get("name"))
        for element in thread.get("elements") or ()
        if element.get("forId") == message_id and element.get("type") != "custom"
    ]


def _root(id: str, parents: Mapping[str, str | None], said: Mapping[str, Asked]) -> str | None:
    """The user's message under which a step hangs."""
    above, left = parents.get(id), len(parents)
    while above is not None and above not in said and left:
        above, left = parents.get(above), left - 1
    return above if above in said else None


def is_turn(metadata: Mapping[str, Any]) -> bool:
    """Messages without one of these are notices."""
    return any(name in metadata for name in ("answer", "error", "stopped"))


def as_json(thread: Thread, answer_id: str) -> bytes | None:
    """The dictionary of one turn; None if the conversation has no such answer."""
    for one in asked(thread):
        for answer in one.answers:
            if answer.id == answer_id:
                return f"{json.dumps(answer.turn, ensure_ascii=False, indent=2)}\n".encode("utf-8", "replace")
    return None


# --- Markdown ---


def as_markdown(thread: Thread) -> bytes:
    """A heading for each question, then who attached what, the answers, and what each leans on and took."""
    blocks = [f"# {_plain(thread.get('name') or NAMELESS)}", _date(str(thread.get("createdAt") or ""))]
    owner = _plain(thread.get("userIdentifier") or "")
    for number, one in enumerate(asked(thread), 1):
        blocks += _question(number, one, owner)
        for answer in one.answers:
            blocks += _answer(answer.turn)
    return ("\n\n".join(block for block in blocks if block) + "\n").encode("utf-8", "replace")


def _date(text: str) -> str:
    try:
        return f"{datetime.fromisoformat(text).astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    except ValueError:
        return _plain(text)


def _question(number: int, one: Asked, owner: str) -> Iterator[str]:
    line, lines = " ".join(one.text.split()), _lines(one.text.strip())
    short = line if len(line) <= HEADING_CHARS else f"{line[: HEADING_CHARS - 1].rstrip()}…"
    yield f"## {number}. {_plain(short) or 'Documents'}"
    if short != line or len(lines) > 1:
        yield "  \n".join(f"> {_plain(part)}".rstrip() for part in lines)
    if one.files:
        yield f"*Attached{f' by {owner}' if owner else ''}:*"
        yield "\n".join(f"- {_plain(name)}: {_read(report)}" for name, report in one.files.items())


def _read(report: Mapping[str, Any] | None) -> str:
    """How a document was read."""
    if report is None or report.get("error"):
        return f"not read. {_plain(report['error'])}" if report else "not read"
    counts = {"character": report.get("chars"), "passage": report.get("passages")}
    if report.get("unit"):
        counts[_plain(report["unit"])] = report.get("pages")
    return ", ".join(f"{count or 0:,} {noun}{'' if count == 1 else 's'}" for noun, count in counts.items())


def _answer(turn: Turn) -> Iterator[str]:
    yield _safe(str(turn.get("answer") or ""))
    if turn.get("stopped"):
        yield "*Stopped.*"
    if turn.get("error"):
        yield f"*Not answered: {_plain(turn['error'])}*"
    if sources := [_source(citation) for citation in turn.get("citations") or ()]:
        yield "Sources:"
        yield "\n".join(sources)
    for note in turn.get("notes") or ():
        yield f"*{_plain(note)}*"
    if told := _receipt(turn):
        yield f"*{told}.*"


def _source(citation: Mapping[str, Any]) -> str:
    quoted = _plain(citation.get("quote") or "")
    return rf"- \[{citation.get('marker')}\] {_plain(_place(citation))}" + (f": “{quoted}”" if quoted else "")


def _place(citation: Mapping[str, Any]) -> str:
    """Document, page, headings."""
    source, page, heading = str(citation.get("source") or ""), citation.get("page"), citation.get("heading") or ()
    place = source if page is None else f"{source}, {_unit(source)} {page}"
    return " › ".join([place, heading] if isinstance(heading, str) else [place, *heading])


def _unit(source: str) -> str:
    """What a page is called: the dictionary has only its number."""
    suffix = PurePosixPath(source).suffix.lower()
    if suffix in (".pptx", ".pptm"):
        return "slide"
    return "sheet" if suffix in (".xlsx", ".xlsm") else "page"


def _receipt(turn: Turn) -> str:
    """Who answered, how long it took, and with how much energy."""
    trace = turn.get("trace") or {}
    parts = []
    if turn.get("model") is not None:
        who = SPOKEN.get(answered_by(turn) or "", "model")
        parts.append(f"Answered by the {who} {_plain(turn['model'])}")
        if turn.get("where") and not turn.get("standing"):  # beside the model's name it would be taken for that one's
            parts[-1] += f" ({_plain(turn['where'])})"
    elif "hits" in turn:
        parts.append("No model was asked")
    if turn.get("escalated") and (reason := (turn.get("verdict") or {}).get("reason")):
        doubted = "kept, though it was doubted" if turn.get("standing") else "the small model's own was doubted"
        parts.append(f"{doubted}: {_plain(reason)}")
    if trace.get("ttft_ms") is not None:
        parts.append(f"first token after {trace['ttft_ms'] / 1000:.2f} s")
    if trace.get("total_ms") is not None:
        parts.append(f"{trace['total_ms'] / 1000:.2f} s in all")
    if energy := _energy(turn.get("bill") or {}):
        parts.append(energy)
    return "; ".join(parts)


def _energy(bill: Mapping[str, Any]) -> str:
    """With how it is known; older receipts were all estimated alike, and do not say so."""
    joules, source = bill.get("energy_j"), bill.get("energy_source") or FROM_COMPUTING_TIME
    if not joules:
        return ""
    if bill.get("energy_measured"):
        return f"{joules:,.1f} J, measured ({_plain(source)})"
    return f"about {joules:,.1f} J, {_plain(source)}, {bill.get('watts') or 0:g} W assumed"


_SPECIAL = re.compile(r"[\\`*_{}\[\]<>#|~$!&]|^[-+=]")
_NUMBERED = re.compile(r"^(\d{1,9})(?=[.)])")


def _plain(text: object) -> str:
    """One line in which nothing is Markdown."""
    return _NUMBERED.sub(r"\1\\", _SPECIAL.sub(r"\\\g<0>", " ".join(str(text).split())))


_FENCE = re.compile(r"(?P<indent>[ \t]*)(?P<fence>`{3,}(?=[^`]*$)|~{3,})[ \t]*(?P<language>[\w+#.-]*).*")
_WITHIN = r"^(?P<before>(?:[\s>]|[-+*]\s|\d{1,9}[.)]\s)*)"
_HEADING = re.compile(rf"{_WITHIN}(?=#)")
_RULE = re.compile(rf"{_WITHIN}(?=[-=*_][-=*_\s]*$)")
# What begins HTML or an address in angle brackets, a picture, a link's address, or the definition of one. What is
# escaped already is stepped over.
_ACTIVE = re.compile(r"\\.|<(?=[A-Za-z/!?])|!(?=\[)|(?<=\])[(:]")


def _safe(text: str) -> str:
    """A model's Markdown without what could break the document around it or reach out of it.

    Lists, tables, emphasis and code stay. Headings, rules, HTML, pictures, links and definitions are shown as they were
    typed. A fence begins its line, where every reading of Markdown takes it for one, and is closed if it was left open.
    """
    lines: list[str] = []
    fence, indent = "", 0
    for line in _lines(text.strip()):
        if fence:
            line = line[min(indent, len(line) - len(line.lstrip(" \t"))) :]
            lines.append(line)
            if re.fullmatch(rf" {{0,3}}{fence}{fence[0]}*[ \t]*", line):
                fence = ""
        elif (opened := _FENCE.fullmatch(line)) is not None:
            fence, indent = opened["fence"], len(opened["indent"])
            lines.append(fence + opened["language"])  # what else stands there could make a table's head of it
        else:
            line = _RULE.sub(r"\g<before>\\", _HEADING.sub(r"\g<before>\\", line))
            lines.append(_ACTIVE.sub(lambda found: found[0] if len(found[0]) > 1 else rf"\{found[0]}", line))
    return "\n".join([*lines, fence] if fence else lines)


def _lines(text: str) -> list[str]:
    """As Markdown counts them: other characters that end a line elsewhere do not here."""
    return re.split(r"\r\n|\r|\n", text)


# --- CSV ---

_BEFORE: Final = (
    "asked_at", "question", "answer", "mode", "model", "by", "where", "escalated", "refused", "stopped", "error", "score",
    "threshold", "reason", "total_ms", "ttft_ms",
)  # fmt: skip
_AFTER: Final = (
    "input_tokens", "output_tokens", "at_least", "tokens_per_s", "cost", "currency", "cost_known", "energy_j",
    "energy_measured", "energy_source", "watts",
    *(f"{leg}.{name}" for leg in SPOKEN for name in ("cpu_s", "peak_memory_mb", "gpu_memory_mb", "gpu_share")),
    "citations", "notes",
)  # fmt: skip
_ASKED: Final = ("load", "prompt", "queue", "request", "first_token", "thinking", "completion")
_SPANS: Final = (
    "read_ms", "rewrite_ms", "retrieve_ms", "cite_ms",
    *(f"slm.{name}_ms" for name in ("draft", *_ASKED, "judge")), *(f"llm.{name}_ms" for name in ("escalate", *_ASKED)),
)  # fmt: skip
"""Always there, so that files of several conversations fit below one another; others follow as they occur."""


def as_csv(thread: Thread) -> bytes:
    """One row for each turn, in UTF-8 with a byte order mark, by which spreadsheets know it; lines end with CR LF.

    A text that a spreadsheet could take for a formula (it begins with = + - @, a tab or a line's end, be it after spaces
    or in full width) has an apostrophe before it, which makes it text there. Numbers are never touched. What is not known
    is empty; a span that occurred twice is summed.
    """
    rows = [_row(one, answer) for one in asked(thread) for answer in one.answers]
    more = [name for row in rows for name in row if name not in (*_BEFORE, *_SPANS, *_AFTER)]
    columns = [*_BEFORE, *_SPANS, *dict.fromkeys(more), *_AFTER]
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerow(_cell(name) for name in columns)
    writer.writerows([_cell(row.get(name)) for name in columns] for row in rows)
    return out.getvalue().encode("utf-8-sig", "replace")


def _row(one: Asked, answer: Reply) -> dict[str, Any]:
    turn = answer.turn
    verdict, bill, trace = turn.get("verdict") or {}, turn.get("bill") or {}, turn.get("trace") or {}
    row: dict[str, Any] = {name: turn.get(name) for name in _BEFORE}
    row |= {name: verdict.get(name) for name in ("score", "threshold", "reason")}
    row |= {name: trace.get(name) for name in ("total_ms", "ttft_ms")}
    row |= {name: bill.get(name) for name in _AFTER}
    row |= {f"{leg}.{name}": n for leg, used in (bill.get("resources") or {}).items() for name, n in used.items()}
    row["asked_at"], row["question"] = one.at, one.text or turn.get("question")
    row["by"], row["stopped"] = answered_by(turn), bool(turn.get("stopped"))
    row["where"] = turn.get("where")
    row["citations"] = "; ".join(f"[{c.get('marker')}] {_place(c)}" for c in turn.get("citations") or ())
    row["notes"] = " ".join(str(note) for note in turn.get("notes") or ())
    for span in trace.get("spans") or ():
        name = f"{span['leg']}.{span['name']}_ms" if span.get("leg") else f"{span['name']}_ms"
        if span.get("duration_ms") is not None:
            row[name] = round((row.get(name) or 0.0) + span["duration_ms"], 3)
    return row


_FORMULA = re.compile(r"\s*[=+\-@＝＋－＠]|[\t\r\n]")


def _cell(value: object) -> object:
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None or isinstance(value, int | float):
        return value
    text = str(value)
    return f"'{text}" if _FORMULA.match(text) else text


# --- The route ---


def router(history: Kept) -> APIRouter:
    """`GET /export/<thread id>.md`, `.csv`, and `/export/<thread id>/<answer id>.json`, for the conversation's owner only.

    To everybody else it is not there.
    """
    routes = APIRouter(prefix=f"{config.run.root_path.rstrip('/')}/export")

    async def theirs(thread_id: str, token: Annotated[str | None, Depends(reuseable_oauth)] = None) -> Thread:
        try:
            user = await get_current_user(token or "")
        except HTTPException:
            user = None
        thread = await history.get_thread(thread_id) if user is not None and is_uuid(thread_id) else None
        if thread is None or user is None or thread.get("userIdentifier") != user.identifier:
            raise HTTPException(404, "There is no such conversation.")
        return thread

    Theirs = Annotated[Any, Depends(theirs)]

    @routes.get("/{thread_id}.md")
    async def markdown(thread: Theirs) -> Response:
        return _file(as_markdown(thread), "text/markdown; charset=utf-8", f"{_file_name(thread)}.md")

    @routes.get("/{thread_id}.csv")
    async def receipts(thread: Theirs) -> Response:
        return _file(as_csv(thread), "text/csv; charset=utf-8; header=present", f"{_file_name(thread)}.csv")

    @routes.get("/{thread_id}/{answer_id}.json")
    async def turn(thread: Theirs, answer_id: str) -> Response:
        body = as_json(thread, answer_id)
        if body is None:
            raise HTTPException(404, "There is no such answer.")
        return _file(body, "application/json", f"{_file_name(thread)} {_named(answer_id)[:8]}.json")

    return routes


def _file(body: bytes, kind: str, name: str) -> Response:
    """To be saved under that name. An old reader, who does not know RFC 5987, gets what of it is ASCII."""
    stem, _, suffix = name.rpartition(".")
    plain = _named(unicodedata.normalize("NFKD", stem).encode("ascii", "ignore").decode()) or NAMELESS.lower()
    return Response(
        body,
        media_type=kind,
        headers={
            "Content-Disposition": f"attachment; filename=\"{plain}.{suffix}\"; filename*=UTF-8''{quote(name, safe='')}",
            "X-Content-Type-Options": "nosniff",
            "Content-Security-Policy": FILE_POLICY,
            "Cache-Control": "private, no-store",
        },
    )


# What no file's name may hold on one system or another.
_UNNAMED = re.compile(r'[<>:"/\\|?*%;\']')
_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(?=\.|$)", re.IGNORECASE)


def _file_name(thread: Thread) -> str:
    """Of the conversation's name, without an ending."""
    return _named(str(thread.get("name") or "")) or NAMELESS.lower()


def _named(text: str) -> str:
    """What of a text can be a file's name everywhere; "" if nothing can."""
    # Control characters, and what turns the rest of the name round, are of Unicode's class C.
    shown = "".join(" " if unicodedata.category(c)[0] in "CZ" else c for c in _UNNAMED.sub(" ", text))
    name = " ".join(shown.split()).encode()[:NAME_BYTES].decode("utf-8", "ignore").strip(" .")
    return f"_{name}" if _DEVICE.match(name) else name
