"""What can be taken away from a conversation: read back by a Markdown parser, a CSV reader, and over the route."""

import csv
import io
import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email.message import Message as Headers
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from uuid import uuid4

import httpx2
import pytest
from fastapi import FastAPI
from markdown_it import MarkdownIt
from markdown_it.token import Token

from .sessions import Tab, data_layer, settled  # before anything that imports Chainlit

# isort: split
import chainlit as cl
from chainlit.auth import create_jwt
from chainlit.user import User

from rag.corpus.documents import Ingest
from rag.serve.exports import as_csv, as_json, as_markdown, asked, router
from rag.serve.history import History
from rag.settings import Settings
from rag.turn import cascade
from rag.turn.session import Session

from .conftest import open_library
from .scripted import ScriptedLegs

CITATION = {
    "marker": 1, "source": "animals.pdf", "page": 3, "heading": ["Zebras", "Water"], "start": 0, "end": 9,
    "quote": "Zebras drink at the Mara river.",
}  # fmt: skip
TURN: dict[str, Any] = {
    "question": "Where do zebras drink?", "query": "zebras drink", "mode": "auto", "answer": "At the *Mara* river [1].",
    "model": "small", "where": "on this machine", "escalated": False, "refused": False,
    "verdict": {"score": 0.9, "threshold": 0.65, "accepted": True, "reason": "confidence 0.9", "signals": {}},
    "drafts": [{"leg": "slm", "model": "small", "text": "At the river.", "usage": None, "finish_reason": "stop"}],
    "hits": [], "citations": [CITATION], "notes": [], "ledger": {}, "id": "q1",
    "trace": {
        "spans": [
            {"name": "retrieve", "start_ms": 0.0, "duration_ms": 4.5, "leg": None},
            {"name": "first_token", "start_ms": 5.0, "duration_ms": 300.25, "leg": "slm"},
        ],
        "total_ms": 1234.5, "ttft_ms": 310.0,
    },
    "bill": {
        "input_tokens": 400, "output_tokens": 21, "at_least": False, "tokens_per_s": 22.5, "cost": 0.0, "currency": "EUR",
        "cost_known": True, "energy_j": 24.0, "energy_measured": False, "energy_source": "estimated from CPU time",
        "watts": 20, "resources": {"slm": {"cpu_s": 2.4, "peak_memory_mb": 270.1}},
    },
}  # fmt: skip
REFUSED = TURN | {
    "answer": "This is not in your documents.", "model": None, "where": None, "refused": True, "drafts": [],
    "citations": [], "notes": ["Still reading documents."],
}  # fmt: skip
STOPPED = {"stopped": True, "answer": "Zebras", "trace": {"spans": [], "total_ms": 700.0, "ttft_ms": 300.0}, "id": "q1"}
FAILED = {"error": "No model at http://x.", "answer": "", "trace": {"spans": [], "total_ms": 9.0, "ttft_ms": None}}


def user_step(id: str, text: str, at: str = "2026-11-21T13:05:00Z") -> dict[str, Any]:
    return {"id": id, "type": "user_message", "output": text, "createdAt": at, "parentId": None, "metadata": {}}


def our_step(id: str, turn: dict[str, Any], parent: str | None = None) -> dict[str, Any]:
    step = {"id": id, "type": "assistant_message", "output": "shown", "createdAt": "2026-11-21T13:05:02Z"}
    return {**step, "parentId": parent, "metadata": turn}


def thread(*steps: dict[str, Any], **more: Any) -> dict[str, Any]:
    told = {"id": "t", "name": "Zebras", "createdAt": "2026-11-21T13:04:00Z", "userIdentifier": "ada", "elements": []}
    return {**told, "steps": list(steps), **more}


WHOLE = thread(user_step("q1", "Where do zebras drink?"), our_step("a1", TURN))


def text_of(exported: dict[str, Any]) -> str:
    return as_markdown(exported).decode()


def rows_of(exported: dict[str, Any]) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(as_csv(exported).decode("utf-8-sig"), newline="")))


# --- Markdown ---


def test_a_conversation_reads_as_a_document() -> None:
    assert (
        text_of(WHOLE)
        == r"""# Zebras

2026-11-21 13:04 UTC

## 1. Where do zebras drink?

At the *Mara* river [1].

Sources:

- \[1\] animals.pdf, page 3 › Zebras › Water: “Zebras drink at the Mara river.”

*Answered by the small model small (on this machine); first token after 0.31 s; 1.23 s in all; about 24.0 J, estimated from CPU time, 20 W assumed.*
"""
    )


def test_an_empty_conversation_is_a_title() -> None:
    assert text_of(thread(name=None)) == "# Conversation\n\n2026-11-21 13:04 UTC\n"
    assert text_of({"steps": None, "createdAt": "some day"}) == "# Conversation\n\nsome day\n"


def test_refused_stopped_and_failed_turns_say_so() -> None:
    told = text_of(
        thread(
            user_step("q1", "One?"), our_step("a1", REFUSED), user_step("q2", "Two?"),
            our_step("a2", STOPPED | {"id": "q2"}), user_step("q3", "Three?"), our_step("a3", FAILED | {"id": "q3"}),
        )
    )  # fmt: skip
    one, two, three = told.split("\n## ")[1:]
    assert "This is not in your documents.\n\n*Still reading documents.*\n\n*No model was asked;" in one
    assert "Sources" not in one
    assert "Zebras\n\n*Stopped.*\n\n*first token after 0.30 s; 0.70 s in all.*" in two
    assert "*Not answered: No model at http://x.*" in three


def test_what_was_attached_is_told_with_what_became_of_it() -> None:
    report = Ingest("report.pdf", chars=1200, passages=1, pages=3, unit="page").to_dict()
    files = [
        {"name": name, "forId": "q1", "type": kind}
        for name, kind in (("report.pdf", "pdf"), ("bad*.bin", "file"), ("Attachments", "custom"))
    ]
    told = text_of(thread(user_step("q1", ""), our_step("d1", {"documents": [report]}, "q1"), elements=files))
    assert "## 1. Documents\n\n*Attached by ada:*\n\n" in told
    assert "- report.pdf: 1,200 characters, 1 passage, 3 pages\n- bad\\*.bin: not read\n" in told


def test_an_answer_stands_with_its_question_however_late_it_came() -> None:
    larger = TURN | {"model": "large", "drafts": [{"leg": "llm", "model": "large"}], "answer": "At the Mara."}
    told = text_of(
        thread(
            user_step("q1", "First?"), our_step("a1", TURN), user_step("q2", "Second?"),
            our_step("a2", TURN | {"id": "q2"}), our_step("a3", larger),
        )
    )  # fmt: skip
    first, second = told.split("\n## ")[1:]
    assert "Answered by the small model small" in first
    assert "Answered by the larger model large" in first
    assert "At the Mara." not in second


def test_an_answer_without_a_name_stands_where_chainlit_put_it() -> None:
    run = {"id": "r1", "type": "run", "parentId": "q1", "metadata": None}
    nameless = {name: value for name, value in TURN.items() if name != "id"}
    told = asked(
        thread(user_step("q1", "First?"), run, user_step("q2", "Second?"), our_step("a1", nameless, "r1"),
               our_step("a2", STOPPED | {"id": None}))
    )  # fmt: skip
    assert [[answer.id for answer in one.answers] for one in told] == [["a1"], ["a2"]]
    (alone,) = asked(thread(our_step("a1", nameless)))
    assert alone.text == "Where do zebras drink?"


def test_notices_are_no_answers() -> None:
    notice = {"id": "n", "type": "assistant_message", "output": "Task manually stopped.", "metadata": {}}
    assert [one.answers for one in asked(thread(user_step("q1", "First?"), notice))] == [[]]


def test_an_answer_that_took_anothers_place_is_shown_as_it_stands() -> None:
    both = [{"leg": "slm", "model": "one"}, {"leg": "llm", "model": "one"}]
    kept = TURN | {"standing": "slm", "model": "one", "escalated": True, "drafts": both, "where": "far.example"}
    told = text_of(thread(user_step("q1", "First?"), our_step("a1", kept)))
    assert "Answered by the small model one; kept, though it was doubted: confidence 0.9;" in told
    assert "far.example" not in told
    assert rows_of(thread(our_step("a1", kept)))[0]["by"] == "slm"


def test_a_long_question_is_quoted_whole() -> None:
    question = "Tell me:\n\n- where zebras drink\n2. ---\n" + "and why " * 30
    told = text_of(thread(user_step("q1", question)))
    heading, quoted = told.split("\n\n", 3)[2:]
    assert heading.startswith("## 1. Tell me: - where zebras drink 2. ---")
    assert heading.endswith("…")
    assert quoted.startswith("> Tell me:  \n>  \n> \\- where zebras drink  \n> 2\\. ---  \n> and why and why")


HOSTILE = (
    "# Heading", "   # Heading", "- # Heading", "> 1. # Heading", "Text\n===", "Text\n---", "Text\n-", "- Text\n  ---", "***",
    "* * *", "```", "   ```js", "    ```", "\t```\ncode\n\t```", "```a\n\t```", "```\n    ```", "~~~", "~~~ a`b\n```", "~~~|\n---", "````\n```",
    "- ```\n  code", "> ```\n> code", "1. ~~~", "`` ` ``\n```", "<script>alert(1)</script>", "<!--", "<?php", "<![CDATA[", "</div>",
    "<details>", "\\<script>", "\\\\<script>", "`a\\`<script>", "`\\`<b>`", "<https://evil.example>", "![x](https://evil.example)",
    "\\![x](https://evil.example)", "[x](https://evil.example)", "\\\\[x](https://evil.example)", "[1]: https://evil.example",
    "[1\n]: https://evil.example", "> [1]: https://evil.example", "- [1]:\n  https://evil.example", "[1\\\\]: https://evil.example",
    "*open", "`open", "a\\", "a  ", "x\r# Heading", "x\x0b# Heading", "x\u2028# Heading", "&lt;b&gt;", "| a |\n|---|\n| # b |",
    "-", "1.", ">", "=", "\u00a0# Heading", "$$", "\ud800",
)  # fmt: skip


def tokens_of(text: str) -> list[Token]:
    found = []
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        found += [token, *(token.children or ())]
    return found


def headings_of(text: str) -> list[str]:
    tokens = tokens_of(text)
    return [tokens[n + 1].content for n, token in enumerate(tokens) if token.type == "heading_open"]


def check(exported: dict[str, Any], *headings: str) -> None:
    """Its structure is ours, and nothing in it reaches out."""
    text = text_of(exported)
    tokens = tokens_of(text)
    assert headings_of(text) == list(headings), text
    kinds = {token.type for token in tokens}
    assert not kinds & {"html_block", "html_inline", "image", "link_open", "hr"}, text
    (last,) = [token.content for token in tokens if token.type == "inline"][-1:]
    assert last.startswith("*Answered by"), text


@pytest.mark.parametrize("hostile", HOSTILE)
def test_no_answer_breaks_the_document(hostile: str) -> None:
    for answer in (hostile, f"Before.\n{hostile}", f"{hostile}\nAfter.\n\n# Heading", f"- a\n\n  {hostile}\n\nb"):
        exported = thread(user_step("q1", "Where?"), our_step("a1", TURN | {"answer": answer}))
        check(exported, "Zebras", "1. Where?")


def test_no_two_of_them_break_it_together() -> None:
    for first, second in itertools.product(HOSTILE, repeat=2):
        answer = f"{first}\n{second}"
        check(thread(user_step("q1", "Where?"), our_step("a1", TURN | {"answer": answer})), "Zebras", "1. Where?")


@pytest.mark.parametrize("hostile", HOSTILE)
def test_no_name_quote_question_or_note_is_markdown(hostile: str) -> None:
    citation = CITATION | {"source": hostile, "heading": [hostile], "quote": hostile}
    turn = TURN | {
        "citations": [citation], "notes": [hostile], "model": hostile, "where": hostile, "escalated": True,
        "verdict": {"reason": hostile}, "question": hostile,
    }  # fmt: skip
    report = Ingest(hostile, error=hostile).to_dict()
    exported = thread(
        user_step("q1", f"Why?\n{hostile}"), our_step("d1", {"documents": [report]}, "q1"), our_step("a1", turn),
        name=f"A {hostile}", userIdentifier=hostile,
    )  # fmt: skip
    shown = " ".join(hostile.split())
    text = text_of(exported)
    headings = [tokens_of(f"# {heading}")[2:-1] for heading in headings_of(text)]
    assert ["".join(t.content for t in inline) for inline in headings] == [
        f"A {shown}".replace("\ud800", "?"), f"1. Why? {shown}".replace("\ud800", "?"),
    ]  # fmt: skip
    check(exported, *headings_of(text))


def test_what_a_model_may_write_stays_as_it_is() -> None:
    answer = """Zebras **drink**:

1. at the *river* [1][2];
2. at a `pool`.

| where | when |
|---|---|
| river | dawn |

```python
# not a heading
if a < b: print("<b>")
```

Done: 3 < 4, a<5."""
    assert answer in text_of(thread(our_step("a1", TURN | {"answer": answer})))


def test_code_in_a_list_stays_code() -> None:
    told = text_of(thread(our_step("a1", TURN | {"answer": "1. So:\n   ```sh\n   ls # all\n   ```\n2. Done."})))
    assert [token.content for token in tokens_of(told) if token.type == "fence"] == ["ls # all\n"]


# --- CSV ---


def test_a_row_for_each_turn_and_a_column_for_each_figure() -> None:
    (row,) = rows_of(WHOLE)
    known = {name: value for name, value in row.items() if value}
    assert known == {
        "asked_at": "2026-11-21T13:05:00Z", "question": "Where do zebras drink?", "answer": "At the *Mara* river [1].",
        "mode": "auto", "model": "small", "by": "slm", "where": "on this machine", "escalated": "false",
        "refused": "false", "stopped": "false", "score": "0.9", "threshold": "0.65", "reason": "confidence 0.9",
        "total_ms": "1234.5", "ttft_ms": "310.0", "retrieve_ms": "4.5", "slm.first_token_ms": "300.25",
        "input_tokens": "400", "output_tokens": "21", "at_least": "false", "tokens_per_s": "22.5", "cost": "0.0",
        "currency": "EUR", "cost_known": "true", "energy_j": "24.0", "energy_measured": "false",
        "energy_source": "estimated from CPU time", "watts": "20", "slm.cpu_s": "2.4", "slm.peak_memory_mb": "270.1",
        "citations": "[1] animals.pdf, page 3 › Zebras › Water",
    }  # fmt: skip


def test_files_of_two_conversations_have_the_same_columns() -> None:
    assert as_csv(thread()) == as_csv(WHOLE).split(b"\r\n")[0] + b"\r\n"


def test_stopped_and_failed_turns_have_a_row_too() -> None:
    exported = thread(user_step("q1", "One?"), our_step("a1", STOPPED), our_step("a2", FAILED | {"id": "q1"}))
    stopped, failed = rows_of(exported)
    assert (stopped["question"], stopped["stopped"], stopped["ttft_ms"], stopped["cost"]) == (
        "One?",
        "true",
        "300.0",
        "",
    )
    assert (failed["error"], failed["model"]) == ("No model at http://x.", "")


def test_spans_that_occur_twice_are_summed_and_new_ones_have_a_column() -> None:
    spans = [
        {"name": "completion", "leg": "slm", "duration_ms": 10.0}, {"name": "completion", "leg": "slm", "duration_ms": 5.5},
        {"name": "ponder", "leg": "llm", "duration_ms": 2.0}, {"name": "queue", "leg": "slm", "duration_ms": None},
    ]  # fmt: skip
    (row,) = rows_of(thread(our_step("a1", TURN | {"trace": {"spans": spans}})))
    assert (row["slm.completion_ms"], row["llm.ponder_ms"], row["slm.queue_ms"]) == ("15.5", "2.0", "")


@pytest.mark.parametrize(
    "text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", " =1", "\n=1", "＝1", "−= is fine", "x=1"]
)
def test_no_text_is_a_formula(text: str) -> None:
    turn = TURN | {"model": text, "verdict": {"score": -0.5, "reason": text}, "answer": text}
    (row,) = rows_of(thread(user_step("q1", text), our_step("a1", turn)))
    for name in ("question", "answer", "model", "reason"):
        assert row[name] == (text if text[0] in "x−" else f"'{text}")
    assert row["score"] == "-0.5", "a number is one"


def test_quotes_commas_and_lines_come_back() -> None:
    text = 'He said "so",\nthen;\r\nwent — Звіт 小模型'
    (row,) = rows_of(thread(user_step("q1", text), our_step("a1", TURN | {"answer": text})))
    assert (row["question"], row["answer"]) == (text, text)


# --- JSON ---


def test_a_turn_is_its_dictionary() -> None:
    told = as_json(WHOLE, "a1")
    assert told is not None
    assert json.loads(told) == TURN
    assert "›" not in told.decode("ascii", "ignore")
    assert "\\u" not in told.decode()
    assert as_json(WHOLE, "q1") is None
    assert as_json(thread(), "a1") is None


async def test_a_real_turn_can_be_exported(tmp_path: Path, settings: Settings) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "animals.md").write_text("# Zebras\n\nZebras drink at the Mara river every morning.")
    library = open_library(tmp_path / "docs", tmp_path / "cache")
    legs = ScriptedLegs(["Zebras drink there since 1974."], ["Zebras drink at the Mara river."])
    events = cascade.answer("Where do zebras drink?", session=Session(library), legs=legs, settings=settings)
    turn = [event async for event in events][-1].turn.to_dict()  # type: ignore[union-attr]
    library.close()
    exported = thread(user_step("q1", "Where do zebras drink?"), our_step("a1", turn, "q1"))
    told = as_json(exported, "a1")
    assert told is not None
    assert json.loads(told) == json.loads(json.dumps(turn))
    text = text_of(exported)
    assert "Zebras drink at the Mara river. [1]" in text
    assert "animals.md › Zebras: “Zebras drink at the Mara river every morning.”" in text
    assert "Answered by the larger model scripted-llm (on this machine); the small model's own was doubted" in text
    (row,) = rows_of(exported)
    assert (row["by"], row["escalated"], row["refused"], row["cost"]) == ("llm", "true", "false", "0.0")
    spans = {name.removesuffix("_ms") for name, value in row.items() if "." in name and value}
    assert spans == {f"{span['leg']}.{span['name']}" for span in turn["trace"]["spans"] if span["leg"]}
    assert row.keys() == rows_of(WHOLE)[0].keys(), "every span has its column"


# --- The route ---


@pytest.fixture
async def history(tmp_path: Path) -> AsyncIterator[History]:
    opened = History(tmp_path / "data")
    with data_layer(opened):
        yield opened
        await settled()
    await opened.close()


async def conversation(history: History, name: str = "Zebras") -> tuple[str, str]:
    """Ada's, as Chainlit keeps it: ids of the thread and of its answer."""
    page = Tab(await history.create_user(User(identifier="ada")))
    question = await page.ask("Where do zebras drink?")
    answer: Any = cl.Message("At the *Mara* river [1].")
    answer.metadata = TURN | {"id": question.id}
    await answer.send()
    await settled()
    await history.update_thread(page.thread_id, name=name)
    return page.thread_id, str(answer.id)


@asynccontextmanager
async def client(
    history: History, monkeypatch: pytest.MonkeyPatch, signed_in: str | None
) -> AsyncIterator[httpx2.AsyncClient]:
    monkeypatch.setenv("CHAINLIT_AUTH_SECRET", "a secret of at least thirty-two bytes")
    monkeypatch.setenv("CHAINLIT_CUSTOM_AUTH", "true")
    app = FastAPI()
    app.include_router(router(history))
    cookies = {} if signed_in is None else {"access_token": create_jwt(User(identifier=signed_in))}
    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://localhost", cookies=cookies) as http:
        yield http


async def test_the_owner_has_all_three(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    id, answer_id = await conversation(history)
    async with client(history, monkeypatch, "ada") as http:
        markdown = await http.get(f"/export/{id}.md")
        receipts = await http.get(f"/export/{id}.csv")
        turn = await http.get(f"/export/{id}/{answer_id}.json")
    assert [answer.status_code for answer in (markdown, receipts, turn)] == [200, 200, 200]
    assert markdown.headers["content-type"] == "text/markdown; charset=utf-8"
    assert markdown.text.startswith("# Zebras\n")
    assert "## 1. Where do zebras drink?\n\nAt the *Mara* river [1].\n\nSources:" in markdown.text
    assert receipts.headers["content-type"].startswith("text/csv; charset=utf-8")
    assert receipts.content.startswith(b"\xef\xbb\xbfasked_at,question,")
    assert turn.headers["content-type"] == "application/json"
    assert turn.json()["answer"] == TURN["answer"]
    for answer, name in ((markdown, "Zebras.md"), (receipts, "Zebras.csv"), (turn, f"Zebras {answer_id[:8]}.json")):
        assert saved_as(answer) == (name, name)
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "no-store" in answer.headers["cache-control"]


async def test_nobody_else_finds_it(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    id, answer_id = await conversation(history)
    paths = (f"/export/{id}.md", f"/export/{id}.csv", f"/export/{id}/{answer_id}.json")
    await history.create_user(User(identifier="eve"))
    for stranger in ("eve", "", None):
        async with client(history, monkeypatch, stranger) as http:
            for path in paths:
                answer = await http.get(path)
                assert (answer.status_code, answer.json()) == (404, {"detail": "There is no such conversation."})
    async with client(history, monkeypatch, None) as http:
        http.cookies.set("access_token", "forged")
        assert [(await http.get(path)).status_code for path in paths] == [404, 404, 404]
    async with client(history, monkeypatch, "ada") as http:
        monkeypatch.delenv("CHAINLIT_CUSTOM_AUTH")
        assert [(await http.get(path)).status_code for path in paths] == [404, 404, 404], "nobody signs in"


async def test_what_is_not_there_is_not_found(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    id, answer_id = await conversation(history)
    _, other = await conversation(history)
    paths = (
        f"{uuid4()}.md", "x.md", "'.csv", "%00.md", f"{id}/{uuid4()}.json", f"{id}/{other}.json", f"{uuid4()}/{answer_id}.json",
        f"{id}.pdf", id,
    )  # fmt: skip
    async with client(history, monkeypatch, "ada") as http:
        for path in paths:
            assert (await http.get(f"/export/{path}")).status_code == 404, path


def saved_as(answer: httpx2.Response) -> tuple[str, str]:
    """The file's name for readers old and new."""
    head, _, encoded = answer.headers["content-disposition"].rpartition("; filename*=UTF-8''")
    message = Headers()
    message["Content-Disposition"] = head
    assert message.get_content_disposition() == "attachment"
    return str(message.get_filename()), unquote(encoded)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("Звіт за рік", "conversation", "Звіт за рік"),
        ("Café 2026", "Cafe 2026", "Café 2026"),
        ('a"; filename="evil.exe', "a filename= evil.exe", "a filename= evil.exe"),
        ("../../etc/passwd", "etc passwd", "etc passwd"),
        ("C:\\x\\y", "C x y", "C x y"),
        ("a\r\nSet-Cookie: x=1", "a Set-Cookie x=1", "a Set-Cookie x=1"),
        ("con", "_con", "_con"),
        ("NUL.txt", "_NUL.txt", "_NUL.txt"),
        ("invoice\u202efdp.exe", "invoice fdp.exe", "invoice fdp.exe"),
        ("...", "conversation", "conversation"),
        ("小" * 200, "conversation", "小" * 66),
    ],
)
async def test_a_hostile_name_is_only_a_name(
    history: History, monkeypatch: pytest.MonkeyPatch, name: str, old: str, new: str
) -> None:
    id, _ = await conversation(history, name)
    async with client(history, monkeypatch, "ada") as http:
        answer = await http.get(f"/export/{id}.md")
    assert answer.status_code == 200
    assert "set-cookie" not in answer.headers
    assert saved_as(answer) == (f"{old}.md", f"{new}.md")
