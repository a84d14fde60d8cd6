"""The OpenAI wire format, spoken by OpenAI's own client, `llm` and curl to the real application, with scripted models."""

import asyncio
import base64
import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import openai
import pytest

from rag import __version__
from rag.corpus.library import Attachments, Library
from rag.errors import ModelUnreachable, PromptTooLong
from rag.models.state import State
from rag.serve import api
from rag.serve.completions import IGNORED, REFUSED, ChatRequest
from rag.serve.server import application
from rag.settings import Settings
from rag.words import LANGUAGES, say, told

from . import serving
from .conftest import open_library, until
from .scripted import Reply, ScriptedLegs
from .serving import ScriptedService

QUESTION = "Where do zebras drink?"
GOOD = "Zebras drink at the Mara river."
REJECTED = "Zebras drink there since 1974."
DOCS = Path(__file__).parent.parent / "docs" / "api.md"
EACH = ("smallfirst-auto", "smallfirst-slm", "smallfirst-llm")


@dataclass
class Served:
    url: str
    client: openai.AsyncOpenAI
    http: httpx2.AsyncClient
    service: Any
    turns: list[BaseException | None]
    """How each turn ended, as its observers are told."""

    async def post(self, **body: Any) -> httpx2.Response:
        body = {"model": "smallfirst-slm", "messages": [{"role": "user", "content": QUESTION}], **body}
        return await self.http.post("/chat/completions", json=body)

    async def events(self, **body: Any) -> list[Any]:
        """Of a stream, what each event holds; a comment as a str."""
        answer = await self.post(stream=True, **body)
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        told: list[Any] = []
        for event in answer.text.removesuffix("\n\n").split("\n\n"):
            if event.startswith(":"):
                told.append(event)
            else:
                data = event.removeprefix("data: ")
                told.append(data if data == "[DONE]" else json.loads(data))
        return told


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Library]:
    folder = tmp_path_factory.mktemp("api")
    (folder / "docs").mkdir()
    (folder / "docs" / "animals.md").write_text("# Plains\n\nZebras drink at the Mara river every morning.")
    library = open_library(folder / "docs", folder / "cache")
    yield library
    library.close()


@asynccontextmanager
async def served(
    library: Library, settings: Settings, legs: ScriptedLegs, *, listening: bool = False, **chosen: Any
) -> AsyncIterator[Served]:
    """Asked in this process, which is quick; with `listening`, through a socket, as by a program or who hangs up."""
    settings = settings.model_copy(update={"api_rate": 0, **chosen})
    turns: list[BaseException | None] = []
    observer = SimpleNamespace(begin=lambda _: None, record=lambda *_, error=None, **__: turns.append(error))
    service = ScriptedService(settings, library, legs, [observer])
    app = application(service, "127.0.0.1")  # type: ignore[arg-type]
    key = chosen["api_keys"][0].get_secret_value() if "api_keys" in chosen else "none"
    async with contextlib.AsyncExitStack() as stack:
        url, transport = "http://127.0.0.1/v1", None if listening else httpx2.ASGITransport(app)
        if listening:
            url = f"{await stack.enter_async_context(serving.listening(app))}/v1"
        http = httpx2.AsyncClient(
            base_url=url, transport=transport, trust_env=False, timeout=30, headers={"Authorization": f"Bearer {key}"}
        )
        client = openai.AsyncOpenAI(base_url=url, api_key=key, max_retries=0, http_client=http)
        yield Served(url, await stack.enter_async_context(client), http, service, turns)


async def ask(client: openai.AsyncOpenAI, model: str, stream: bool, *earlier: str, **more: Any) -> tuple[str, Any]:
    """The content, and the answer or the last chunk that has a choice."""
    roles = ("user", "assistant")
    messages: Any = [{"role": roles[i % 2], "content": text} for i, text in enumerate(earlier)]
    messages.append({"role": "user", "content": QUESTION})
    if not stream:
        whole = await client.chat.completions.create(model=model, messages=messages, **more)
        return whole.choices[0].message.content, whole
    text, last = "", None
    async for chunk in await client.chat.completions.create(model=model, messages=messages, stream=True, **more):
        if chunk.choices and chunk.choices[0].delta.content:
            text += chunk.choices[0].delta.content
        last = chunk if chunk.choices else last
    return text, last


def text_of(events: Sequence[Any]) -> str:
    return "".join(event["choices"][0]["delta"].get("content") or "" for event in chunks(events) if event["choices"])


def chunks(events: Sequence[Any]) -> list[Any]:
    return [event for event in events if isinstance(event, dict)]


def last_of(events: Sequence[Any]) -> Any:
    return next(event for event in reversed(chunks(events)) if event["choices"])


def cited(events: Sequence[Any]) -> list[Any]:
    return [
        annotation["url_citation"]
        for event in chunks(events)
        for choice in event["choices"]
        for annotation in choice["delta"].get("annotations", ())
    ]


# The answer


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_with_its_source_and_its_turn(library: Library, settings: Settings, stream: bool) -> None:
    async with served(library, settings, ScriptedLegs([GOOD], [])) as api:
        text, last = await ask(api.client, "smallfirst-slm", stream)
    assert text == f"{GOOD} [1]"
    assert last.smallfirst["citations"][0]["source"] == "animals.md"
    assert last.smallfirst["answer"] == text
    assert last.choices[0].finish_reason == "stop"
    assert last.system_fingerprint == f"smallfirst-{__version__}"


async def test_a_whole_answer_has_openais_shape(library: Library, settings: Settings) -> None:
    async with served(library, settings, ScriptedLegs([GOOD])) as api:
        answer = await api.post()
        resolved = await api.http.get(answer.json()["choices"][0]["message"]["annotations"][0]["url_citation"]["url"])
    body = answer.json()
    assert answer.headers["x-request-id"].startswith("req_")
    assert set(body) == {
        "id", "object", "created", "model", "choices", "usage", "system_fingerprint", "smallfirst"
    }  # fmt: skip
    assert body["id"].startswith("chatcmpl-")
    assert body["object"] == "chat.completion"
    (choice,) = body["choices"]
    assert choice.keys() == {"index", "message", "logprobs", "finish_reason"}
    message = choice["message"]
    assert (message["role"], message["content"], message["refusal"]) == ("assistant", f"{GOOD} [1]", None)
    (annotation,) = message["annotations"]
    assert annotation["type"] == "url_citation"
    citation = annotation["url_citation"]
    assert message["content"][citation["start_index"] : citation["end_index"]] == "[1]"
    assert citation["title"] == "animals.md › Plains"
    assert citation["url"] == f"{api.url}/documents/animals.md"
    assert resolved.status_code == 200
    assert "Mara river" in resolved.text
    assert body["usage"] == {"prompt_tokens": 100, "completion_tokens": 6, "total_tokens": 106}


async def test_a_stream_has_openais_shape(library: Library, settings: Settings) -> None:
    async with served(library, settings, ScriptedLegs([GOOD])) as api:
        events = await api.events(stream_options={"include_usage": True})
    *told, usage, done = events
    assert done == "[DONE]"
    assert usage["choices"] == []
    assert usage["usage"] == {"prompt_tokens": 100, "completion_tokens": 6, "total_tokens": 106}
    assert len({event["id"] for event in [*told, usage]}) == 1
    assert {event["object"] for event in told} == {"chat.completion.chunk"}
    assert all(event["usage"] is None for event in told)
    first, *others, annotated, last = told
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert all(set(event["choices"][0]["delta"]) == {"content"} for event in others)
    assert len(others) > 2, "it is sent as it is written"
    assert text_of(events) == f"{GOOD} [1]"
    (citation,) = cited([annotated])
    assert text_of(events)[citation["start_index"] : citation["end_index"]] == "[1]"
    assert last["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}
    assert last["smallfirst"]["answer"] == f"{GOOD} [1]"
    assert [event for event in told if "smallfirst" in event] == [last]


async def test_usage_is_only_in_a_stream_that_asks_for_it(library: Library, settings: Settings) -> None:
    async with served(library, settings, ScriptedLegs([GOOD])) as api:
        events = await api.events()
    assert all("usage" not in event for event in chunks(events))
    assert all(event["choices"] for event in chunks(events))


async def test_each_mark_is_annotated_where_it_stands(library: Library, settings: Settings) -> None:
    text = "Zebras [1] drink at the river [1], [7] they do [1, 7]."
    async with served(library, settings, ScriptedLegs([text, text])) as api:
        whole = (await api.post()).json()["choices"][0]["message"]
        events = await api.events()
    assert whole["content"] == "Zebras [1] drink at the river [1], they do [1]."
    spans = [a["url_citation"] for a in whole["annotations"]]
    assert [whole["content"][span["start_index"] : span["end_index"]] for span in spans] == ["[1]"] * 3
    assert text_of(events) == whole["content"]
    assert cited(events) == spans


async def test_a_mark_that_leads_nowhere_is_never_streamed(library: Library, settings: Settings) -> None:
    async with served(library, settings, ScriptedLegs([f"{GOOD} [7]"])) as api:
        events = await api.events()
    assert text_of(events) == f"{GOOD} [1]"
    assert [span["start_index"] for span in cited(events)] == [len(f"{GOOD} ")]


async def test_the_nth_address_is_that_of_mark_n(tmp_path: Path, settings: Settings) -> None:
    """As front ends read it, also where marks repeat, come in another order, or leave one out."""
    docs = tmp_path / "zoo"
    docs.mkdir()
    (docs / "a.md").write_text(
        "# Rivers\n\nZebras drink at the Mara river every morning.\n\n"
        "# Herds\n\nZebras drink in herds, since crocodiles wait beside muddy banks."
    )
    (docs / "b.md").write_text("# Rain\n\nZebras drink rain water from puddles while the wet season lasts.")
    zoo = open_library(docs, tmp_path / "zoo-cache", passage_chars=100)
    text = "Yes. They come in herds [3], in the morning [1], and in herds [3]."
    async with served(zoo, settings, ScriptedLegs([], [text])) as api:
        whole = (await api.post(model="smallfirst-llm")).json()
    content, turn = whole["choices"][0]["message"]["content"], whole["smallfirst"]
    spans = [annotation["url_citation"] for annotation in whole["choices"][0]["message"]["annotations"]]
    assert [content[span["start_index"] : span["end_index"]] for span in spans] == ["[1]", "", "[3]", "[3]"]
    distinct = list(dict.fromkeys(span["url"] for span in spans))
    assert len(distinct) == 3
    for citation in turn["citations"]:
        assert f"/v1/documents/{citation['source']}" in distinct[citation["marker"] - 1]
    assert {citation["marker"] for citation in turn["citations"]} == {1, 3}
    zoo.close()


@pytest.mark.parametrize("stream", [False, True])
async def test_usage_counts_both_legs(library: Library, settings: Settings, stream: bool) -> None:
    async with served(library, settings, ScriptedLegs([REJECTED], [f"{GOOD} [1]"])) as api:
        if stream:
            usage = (await api.events(model="smallfirst-auto", stream_options={"include_usage": True}))[-2]["usage"]
        else:
            usage = (await api.post(model="smallfirst-auto")).json()["usage"]
    assert usage == {"prompt_tokens": 200, "completion_tokens": 12, "total_tokens": 212}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
async def test_an_answer_that_was_cut_says_so(library: Library, settings: Settings, stream: bool, name: str) -> None:
    legs, most = ScriptedLegs([Reply("Zebras drink at", finish_reason="length")]), []
    write = legs.slm.backend_.stream

    def stream_(messages: Any, *, max_tokens: int, **more: Any) -> Any:
        most.append(max_tokens)
        return write(messages, max_tokens=max_tokens, **more)

    legs.slm.backend_.stream = stream_  # type: ignore[method-assign]
    async with served(library, settings, legs) as api:
        _, last = await ask(api.client, "smallfirst-slm", stream, **{name: 3})
    assert last.choices[0].finish_reason == "length"
    assert most == [3]


async def test_earlier_messages_are_the_history(library: Library, settings: Settings) -> None:
    legs = ScriptedLegs([], [GOOD, GOOD])
    refusal = say("turn.not_found", places="animals.md")
    async with served(library, settings, legs) as served_:
        await ask(served_.client, "smallfirst-llm", False, "What are zebras?", "Striped animals.")
        await ask(served_.client, "smallfirst-llm", False, "What are quaggas?", refusal)
    assert {"role": "assistant", "content": "Yes. Striped animals."} in legs.llm.backend_.asked[0]
    assert {"role": "assistant", "content": "No."} in legs.llm.backend_.asked[1], "our own refusal is known again"


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_became_a_refusal_is_known_again(
    library: Library, settings: Settings, stream: bool
) -> None:
    """A stream's text cannot be unsaid: there, the refusal follows it."""
    legs = ScriptedLegs([], [Reply("I don't know."), GOOD])
    async with served(library, settings, legs) as served_:
        refused, _ = await ask(served_.client, "smallfirst-llm", stream)
        assert (refused.count("\n\n") == 1) == stream
        await ask(served_.client, "smallfirst-llm", stream, "What are quaggas?", refused)
    assert {"role": "assistant", "content": "No."} in legs.llm.backend_.asked[-1]


async def test_a_mark_that_was_only_thought_is_not_written(library: Library, settings: Settings) -> None:
    async with served(library, settings, ScriptedLegs([Reply(GOOD, aloud=" [")])) as api:
        assert text_of(await api.events()) == f"{GOOD} [1]"


async def test_a_system_message_is_not_used_and_that_is_said(library: Library, settings: Settings) -> None:
    legs = ScriptedLegs([GOOD, GOOD])
    for_tools = [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "tool", "tool_call_id": "1", "content": "42"},
    ]
    async with served(library, settings, legs) as api:
        messages = [{"role": "system", "content": "Talk like a pirate."}, {"role": "user", "content": QUESTION}]
        notes = (await api.post(messages=messages)).json()["smallfirst"]["notes"]
        assert (await api.post(messages=[*for_tools, {"role": "user", "content": QUESTION}])).status_code == 200
    assert notes == [say("turn.note_system_unused")]
    assert "pirate" not in str(legs.slm.backend_.asked)
    assert "42" not in str(legs.slm.backend_.asked)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_question_that_the_documents_are_silent_about_is_answered_so(
    library: Library, settings: Settings, stream: bool
) -> None:
    messages = [{"role": "user", "content": "Who won the cup in 1998?"}]
    async with served(library, settings, ScriptedLegs()) as served_:
        if stream:
            text = text_of(await served_.events(messages=messages))
        else:
            answer = (await served_.post(messages=messages)).json()
            text = answer["choices"][0]["message"]["content"]
            assert answer["usage"]["total_tokens"] == 0
    assert text.startswith(api.SILENT)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("asked", "language"), [("sv-FI,sv;q=0.9,en;q=0.8", "sv"), ("zh-TW", "zh-TW"), ("fr", "en")])
async def test_our_own_words_are_in_the_language_that_is_asked_for(
    library: Library, settings: Settings, asked: str, language: str, stream: bool
) -> None:
    gone = "The server is gone."
    fails = Reply("", error=ModelUnreachable(gone))
    legs = ScriptedLegs([REJECTED, fails], [f"{GOOD} [1]", fails])
    async with served(library, settings, legs) as api:
        api.http.headers["Accept-Language"] = asked
        silent = [{"role": "user", "content": "Who won the cup in 1998?"}]
        answer = await api.post(messages=silent, stream=stream)
        text = text_of(events_of(answer)) if stream else answer.json()["choices"][0]["message"]["content"]
        assert text == told(say("turn.not_found_no_word"), language)
        answer = await api.post(model="smallfirst-auto", stream=stream, smallfirst={"drafts": True})
        turn = last_of(events_of(answer))["smallfirst"] if stream else answer.json()["smallfirst"]
        reason = told(say("turn.reason_absent_number", fact="1974"), language)
        assert turn["verdict"]["reason"] == reason
        assert turn["answer"] == f"{GOOD} [1]", "a model's words are what they are"
        if stream:
            asides = [event["smallfirst"] for event in events_of(answer) if event.get("smallfirst")]
            assert {"escalating": {"leg": "llm", "reason": reason}} in asides
        answer = await api.post(model="smallfirst-llm", stream=stream)
        assert answer.status_code == 503
        assert answer.json()["error"]["message"] == told(say("turn.neither", first=gone, second=gone), language)


def test_our_own_refusals_are_known_again_in_every_language() -> None:
    for language in LANGUAGES:
        for said in (
            say("turn.not_found_no_word"),
            say("turn.not_found", places="a.md"),
            say("turn.only_outline", name="a.md", outline="- A\n\n- B"),
            say("turn.only_begins", name="a.md", text="A."),
        ):
            assert api._is_refusal(told(said, language))
            assert api._is_refusal(f"I do not know.\n\n{told(said, language)}")
    assert all(api.SILENT)
    assert not api._is_refusal("Det här är zebrans väg till floden.")


# Drafts


@pytest.mark.parametrize("stream", [False, True])
async def test_a_rejected_draft_never_reaches_a_client(library: Library, settings: Settings, stream: bool) -> None:
    async with served(library, settings, ScriptedLegs([REJECTED], [f"{GOOD} [1]"])) as api:
        answer = await api.post(model="smallfirst-auto", stream=stream)
    assert REJECTED not in answer.text
    assert "1974" not in answer.text
    turn = last_of(events_of(answer))["smallfirst"] if stream else answer.json()["smallfirst"]
    assert turn["verdict"]["reason"] == say("turn.reason_absent_number", fact="…")
    assert turn["escalated"]
    assert [draft["text"] for draft in turn["drafts"]] == [None, f"{GOOD} [1]"]
    assert turn["set_aside"] is None
    assert turn["drafts"][0]["usage"], "all else of it is told"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("answer", [f"{GOOD} [1]", "It is 17 km away, at the Mara river. [1]"])
async def test_a_rejected_drafts_number_is_withheld_though_the_answer_has_its_digits(
    library: Library, settings: Settings, answer: str, stream: bool
) -> None:
    draft = "Zebras drink there for 7 hours." if "17" in answer else "Zebras drink there for 1 hour daily."
    async with served(library, settings, ScriptedLegs([draft], [answer])) as api:
        got = await api.post(model="smallfirst-auto", stream=stream)
    turn = last_of(events_of(got))["smallfirst"] if stream else got.json()["smallfirst"]
    assert turn["verdict"]["reason"] == say("turn.reason_absent_number", fact="…")
    assert turn["verdict"]["signals"]["absent_fact"] == "…"


async def test_the_number_of_a_draft_that_stands_is_told(library: Library, settings: Settings) -> None:
    async with served(library, settings, ScriptedLegs([REJECTED])) as api:
        turn = (await api.post(model="smallfirst-slm")).json()["smallfirst"]
    assert turn["verdict"]["signals"]["absent_fact"] == "1974"


def events_of(answer: httpx2.Response) -> list[Any]:
    return [json.loads(e[6:]) for e in answer.text.split("\n\n") if e.startswith("data: {")]


async def test_a_client_that_asks_for_drafts_is_told_them(library: Library, settings: Settings) -> None:
    async with served(library, settings, ScriptedLegs([REJECTED] * 2, [f"{GOOD} [1]"] * 2)) as api:
        events = await api.events(model="smallfirst-auto", smallfirst={"drafts": True})
        whole = (await api.post(model="smallfirst-auto", smallfirst={"drafts": True})).json()
    told = [
        event["smallfirst"] for event in chunks(events) if event.get("smallfirst") and not event["choices"][0]["delta"]
    ]
    drafts = [one["draft"] for one in told if "draft" in one]
    assert "".join(draft["text"] for draft in drafts) == REJECTED
    assert {draft["leg"] for draft in drafts} == {"slm"}
    (escalating,) = [one["escalating"] for one in told if "escalating" in one]
    assert escalating["leg"] == "llm"
    assert escalating["reason"] == say("turn.reason_absent_number", fact="1974")
    assert text_of(events) == f"{GOOD} [1]", "a draft is no content"
    for turn in (told[-1], whole["smallfirst"]):
        assert turn["drafts"][0]["text"] == REJECTED
        assert turn["set_aside"]["answer"].startswith(REJECTED)


async def test_an_accepted_draft_is_streamed_once(library: Library, settings: Settings) -> None:
    async with served(library, settings, ScriptedLegs([GOOD] * 2)) as api:
        for wishes in (None, {"drafts": True}):
            events = await api.events(model="smallfirst-auto", smallfirst=wishes)
            assert text_of(events) == f"{GOOD} [1]"
            assert last_of(events)["smallfirst"]["drafts"][0]["text"] == GOOD


async def test_after_the_escalation_text_is_sent_as_it_is_written(library: Library, settings: Settings) -> None:
    hold = asyncio.Event()
    legs = ScriptedLegs([REJECTED], [Reply(f"{GOOD} [1]", hold=hold)])
    async with asyncio.timeout(20), served(library, settings, legs, listening=True) as api:
        seen = ""
        stream = await api.client.chat.completions.create(
            model="smallfirst-auto", messages=[{"role": "user", "content": QUESTION}], stream=True
        )
        async for chunk in stream:
            seen += chunk.choices[0].delta.content or ""
            if seen:
                hold.set()  # the rest is written only now that the first word is here
    assert seen == f"{GOOD} [1]"


async def test_what_a_model_thought_aloud_is_followed_by_the_whole_answer(library: Library, settings: Settings) -> None:
    async with served(library, settings, ScriptedLegs([Reply(f"{GOOD} [1]", aloud="Let me see [1].")])) as api:
        events = await api.events()
    assert text_of(events) == f"Let me see [1].\n\n{GOOD} [1]"
    (span,) = cited(events)
    assert span["start_index"] == len(f"Let me see [1].\n\n{GOOD} "), "what is cited is the answer"


async def test_a_model_that_breaks_off_is_followed_by_the_other_ones_whole_answer(
    library: Library, settings: Settings
) -> None:
    legs = ScriptedLegs([GOOD], [Reply("Zebras usually", error=ModelUnreachable("It went."))])
    async with served(library, settings, legs) as api:
        events = await api.events(model="smallfirst-llm")
    assert text_of(events) == f"Zebras usually\n\n{GOOD} [1]"
    assert "It went." in str(last_of(events)["smallfirst"]["notes"])


# Errors


async def test_errors_are_those_of_openais_client(library: Library, settings: Settings) -> None:
    legs = ScriptedLegs()
    legs.slm.failure = legs.llm.failure = ModelUnreachable("Nobody there.")
    async with served(library, settings, legs) as api:
        for stream in (False, True):
            with pytest.raises(openai.NotFoundError, match="There is no model 'gpt-9'") as missing:
                await ask(api.client, "gpt-9", stream)
            assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
            with pytest.raises(openai.InternalServerError, match="Nobody there") as down:
                await ask(api.client, "smallfirst-auto", stream)
            assert (down.value.status_code, down.value.type) == (503, "server_error")
            with pytest.raises(openai.BadRequestError) as refused:
                await ask(api.client, "smallfirst-auto", stream, n=2)
            assert (refused.value.code, refused.value.param) == ("unsupported_value", "n")
            assert refused.value.type == "invalid_request_error"
            assert refused.value.request_id
        with pytest.raises(openai.PermissionDeniedError, match="may not use this server"):
            await ask(api.client, "smallfirst-auto", False, extra_headers={"Origin": "https://elsewhere.example"})
        with pytest.raises(openai.NotFoundError):
            await api.client.models.retrieve("gpt-9")


async def test_a_missing_key_and_too_many_requests_are_openais_errors(library: Library, settings: Settings) -> None:
    from pydantic import SecretStr

    legs = ScriptedLegs([GOOD])
    async with served(library, settings, legs, api_keys=(SecretStr("k1"),), api_rate=1) as api:
        with pytest.raises(openai.AuthenticationError, match="RAG_API_KEYS"):
            await ask(api.client.with_options(api_key="k2"), "smallfirst-slm", False)
        await ask(api.client, "smallfirst-slm", False)
        with pytest.raises(openai.RateLimitError, match="RAG_API_RATE"):
            await ask(api.client, "smallfirst-slm", False)


async def test_a_prompt_that_is_too_long_is_the_callers_mistake(library: Library, settings: Settings) -> None:
    legs = ScriptedLegs()
    legs.slm.failure = legs.llm.failure = PromptTooLong("Too long for its window.")
    async with served(library, settings, legs) as api:
        with pytest.raises(openai.BadRequestError) as long:
            await ask(api.client, "smallfirst-slm", False)
        assert (long.value.code, long.value.param) == ("context_length_exceeded", "messages")
        answer = await api.post(messages=[{"role": "user", "content": "zebra " * 5000}])
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_bug_is_told_without_its_words_and_logged(
    library: Library, settings: Settings, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    legs = ScriptedLegs([Reply(GOOD, error=ZeroDivisionError("secret"))])  # type: ignore[arg-type]
    async with served(library, settings, legs) as api:
        if stream:
            error = (await api.events())[-1]["error"]
        else:
            answer = await api.post()
            assert answer.status_code == 500
            error = answer.json()["error"]
    assert error == {
        "message": "Something went wrong in the server. Its log says what.", "type": "server_error", "param": None,
        "code": None,
    }  # fmt: skip
    assert "ZeroDivisionError" in caplog.text


async def test_an_error_in_a_stream_that_has_begun_is_its_last_event(library: Library, settings: Settings) -> None:
    legs = ScriptedLegs([], [Reply("Zebras usually", error=ModelUnreachable("It went."))])
    legs.slm.failure = ModelUnreachable("Nor is this one.")
    async with served(library, settings, legs) as api:
        events = await api.events(model="smallfirst-llm")
        legs.llm.backend_.replies.append(Reply("Zebras usually", error=ModelUnreachable("It went.")))
        with pytest.raises(openai.APIError, match="Nor is this one"):
            await ask(api.client, "smallfirst-llm", True)
    assert text_of(events[:-1]) == "Zebras usually"
    assert events[-1]["error"]["type"] == "server_error"


def body_of(**more: Any) -> bytes:
    return json.dumps({"model": "smallfirst-slm", "messages": [{"role": "user", "content": QUESTION}], **more}).encode()


def saying(content: Any, **more: Any) -> bytes:
    return body_of(messages=[{"role": "user", "content": content, **more}])


MALFORMED: list[tuple[bytes, str | None]] = [
    (b"", None),
    (b"{torn", None),
    (b"[]", None),
    (b"{}", "model"),
    (b"null", None),
    (b'"\xff\xfe"', None),
    (b"[" * 100_000, None),
    (b'{"a":' * 5000 + b"1" + b"}" * 5000, None),
    (body_of(seed=10)[:-3] + b"1" * 5000 + b"}", None),
    (body_of(messages=[]), "messages"),
    (body_of(messages="hello"), "messages"),
    (body_of(messages=[7]), "messages.0"),
    (body_of(messages=[{"role": "x", "content": "y"}]), "messages.0.role"),
    (body_of(messages=[{"role": "assistant", "content": "y"}]), "messages"),
    (body_of(messages=[{"role": "system", "content": "y"}]), "messages"),
    (body_of(model=7), "model"),
    (saying(None), "messages"),
    (saying(""), "messages"),
    (saying(7), "messages.0.content"),
    (saying([7]), "messages.0.content.0"),
    (saying([{"type": "text"}]), "messages.0.content.0.text"),
    (saying([{"type": "video"}]), "messages.0.content.0"),
    (saying([{"type": ["text"]}]), "messages.0.content.0"),
    (saying([{"type": "image_url", "image_url": {"url": "data:,"}}]), "messages.0.content.0"),
    (saying([{"type": "input_audio", "input_audio": {}}]), "messages.0.content.0"),
    (saying([{"type": "file", "file": {}}, {"type": "text", "text": QUESTION}]), "messages.0.content.0.file"),
    (saying("\ud800"), "messages.0.content"),
    (body_of(temperature="hot"), "temperature"),
    (body_of(temperature=3), "temperature"),
    (body_of(temperature=float("nan")), "temperature"),
    (body_of(top_p=-0.1), "top_p"),
    (body_of(max_tokens=0), "max_tokens"),
    (body_of(max_tokens=1.5), "max_tokens"),
    (body_of(stream="yes"), "stream"),
    (body_of(stream_options=[]), "stream_options"),
    (body_of(conversation=7), "conversation"),
    (body_of(smallfirst={"drafts": "please"}), "smallfirst.drafts"),
]


async def test_a_malformed_body_is_a_400_in_openais_shape(library: Library, settings: Settings) -> None:
    legs = ScriptedLegs()
    async with served(library, settings, legs) as api:
        for body, param in MALFORMED:
            answer = await api.http.post(
                "/chat/completions", content=body, headers={"Content-Type": "application/json"}
            )
            assert answer.status_code == 400, (body[:80], answer.text)
            error = answer.json()["error"]
            assert error.keys() == {"message", "type", "param", "code"}
            assert (error["type"], error["param"]) == ("invalid_request_error", param), (body[:80], error)
            assert answer.headers["x-request-id"]
        unsaid = await api.http.post("/chat/completions", content=body_of())
        assert unsaid.status_code == 400
        assert "Content-Type: application/json" in unsaid.json()["error"]["message"]
    assert legs.slm.backend_.asked == []


async def test_odd_texts_are_questions_like_any_other(library: Library, settings: Settings) -> None:
    odd = [f"{QUESTION}\0", f"{QUESTION} \u202e\ufffe", f'{QUESTION} " OR * NEAR(', f"{QUESTION} 🦓", "\0", "?!"]
    async with served(library, settings, ScriptedLegs([GOOD] * len(odd))) as api:
        for text in odd:
            assert (await api.post(messages=[{"role": "user", "content": text}])).status_code == 200, text


HARMLESS: dict[str, Any] = {
    "temperature": 2, "top_p": 0.5, "presence_penalty": -2, "frequency_penalty": 2, "seed": 10**30, "user": "me",
    "safety_identifier": "me", "metadata": {"a": "b"}, "store": True, "service_tier": "flex",
    "reasoning_effort": "high", "verbosity": "low", "prediction": {"type": "content", "content": "x"},
    "tools": [{"type": "function", "function": {"name": "f"}}], "functions": [{"name": "f"}],
    "parallel_tool_calls": False,
}  # fmt: skip
ASKS: dict[str, Any] = {
    "n": 2, "logprobs": True, "top_logprobs": 2, "stop": ["\n"], "logit_bias": {"50256": -100},
    "tool_choice": "required", "function_call": {"name": "f"}, "response_format": {"type": "json_object"},
    "modalities": ["text", "audio"], "web_search_options": {},
}  # fmt: skip
UNSAID: dict[str, Any] = {
    "n": 1, "logprobs": False, "top_logprobs": 0, "stop": [], "logit_bias": {}, "tool_choice": "auto",
    "function_call": "none", "response_format": {"type": "text"}, "modalities": ["text"],
}  # fmt: skip


async def test_what_does_no_harm_is_ignored(library: Library, settings: Settings) -> None:
    assert HARMLESS.keys() == set(IGNORED)
    legs = ScriptedLegs([GOOD] * 4)
    nothing = dict.fromkeys(ChatRequest.model_fields.keys() - {"model", "messages"})
    async with served(library, settings, legs) as api:
        for more in (HARMLESS, UNSAID, nothing, {"no_such_parameter": [1], "guided_json": "{}"}):
            answer = await api.post(**more)
            assert answer.status_code == 200, answer.text
    assert legs.slm.backend_.temperatures == [0.0] * 4


async def test_what_would_be_answered_otherwise_than_asked_is_refused(library: Library, settings: Settings) -> None:
    assert ASKS.keys() == {refused.name for refused in REFUSED}
    async with served(library, settings, ScriptedLegs()) as api:
        for name, value in ASKS.items():
            error = (await api.post(**{name: value})).json()["error"]
            assert error["param"] == name
            assert error["code"] in ("unsupported_parameter", "unsupported_value")
        media = [{"type": "text", "text": QUESTION}, {"type": "image_url", "image_url": {"url": "https://a.example/b"}}]
        error = (await api.post(messages=[{"role": "user", "content": media}])).json()["error"]
        assert (error["param"], error["code"]) == ("messages.0.content.1", "unsupported_value")


def test_the_documentation_names_each_parameter() -> None:
    rows = [line.split("|") for line in DOCS.read_text().splitlines() if line.startswith("| `")]
    documented = {name.strip(" `"): row for row in rows for name in row[1].split(",")}
    for refused in REFUSED:
        assert refused.when in documented[refused.name][2], refused.name
        assert refused.code in documented[refused.name][2], refused.name
    for name in ChatRequest.model_fields:
        assert documented[name][2].strip().startswith("ignored") == (name in IGNORED), name


# The models


async def test_models_are_the_three_modes(library: Library, settings: Settings) -> None:
    async with served(library, settings, ScriptedLegs()) as api:
        assert [m.id for m in (await api.client.models.list()).data] == list(EACH)
        one = await api.client.models.retrieve("smallfirst-auto")
    assert (one.id, one.object, one.owned_by) == ("smallfirst-auto", "model", "smallfirst")


# Files


MANUAL = b"The frobnicator must be oiled every 17 days."
OILED = [{"type": "text", "text": "How often must the frobnicator be oiled?"}]
SAID = "The frobnicator must be oiled every 17 days. [1]"


def part_of(name: str = "manual.md", data: bytes = MANUAL, head: str = "data:text/markdown;base64,") -> dict[str, Any]:
    return {"type": "file", "file": {"filename": name, "file_data": head + base64.b64encode(data).decode()}}


@pytest.mark.parametrize("head", ["data:text/markdown;base64,", ""])
async def test_a_file_in_a_request_is_answered_from_and_forgotten(
    library: Library, settings: Settings, head: str
) -> None:
    async with served(library, settings, ScriptedLegs([SAID, SAID])) as served_:
        answer = (await served_.post(messages=[{"role": "user", "content": [part_of(head=head), *OILED]}])).json()
        without = (await served_.post(messages=[{"role": "user", "content": OILED}])).json()
    message = answer["choices"][0]["message"]
    assert message["content"] == SAID
    assert message["annotations"][0]["url_citation"]["url"] == "attachment:manual.md"
    assert without["choices"][0]["message"]["content"].startswith(api.SILENT)


async def test_a_file_of_an_earlier_message_stays_attached(library: Library, settings: Settings) -> None:
    async with served(library, settings, ScriptedLegs([SAID])) as api:
        messages = [
            {"role": "user", "content": [part_of("C:\\docs\\manual.md"), {"type": "text", "text": "What is this?"}]},
            {"role": "assistant", "content": "A manual."},
            {"role": "user", "content": OILED},
        ]
        answer = (await api.post(messages=messages)).json()
    assert answer["smallfirst"]["citations"][0]["source"] == "manual.md"


async def test_uploaded_files_are_attached_by_id_and_by_conversation(library: Library, settings: Settings) -> None:
    async with served(library, settings, ScriptedLegs([SAID] * 3)) as api:
        file = await api.client.files.create(
            file=("manual.md", MANUAL), purpose="user_data", extra_body={"conversation": "oil"}
        )
        by_id = [{"type": "file", "file": {"file_id": file.id}}, *OILED]
        for more in (
            {"messages": [{"role": "user", "content": by_id}]},
            {"messages": [{"role": "user", "content": OILED}], "conversation": "oil"},
            {"messages": [{"role": "user", "content": OILED}], "conversation": {"id": "oil"}},
        ):
            message = (await api.post(**more)).json()["choices"][0]["message"]
            url = message["annotations"][0]["url_citation"]["url"]
            assert url == f"{api.url}/files/{file.id}/content"
            assert (await api.http.get(url)).content == MANUAL
        unknown = [{"type": "file", "file": {"file_id": "file-0"}}, *OILED]
        with pytest.raises(openai.NotFoundError) as missing:
            await api.client.chat.completions.create(
                model="smallfirst-slm",
                messages=[{"role": "user", "content": unknown}],  # type: ignore[list-item,misc]
            )
        assert missing.value.param == "file_id"


async def test_a_file_that_cannot_be_taken_is_named_by_its_place(library: Library, settings: Settings) -> None:
    place = "messages.0.content.0.file"
    cases: list[tuple[Any, int, str]] = [
        ({"filename": "a.md", "file_data": "data:text/plain;base64,@@@@"}, 400, f"{place}.file_data"),
        ({"filename": "a.md", "file_data": "YQ"}, 400, f"{place}.file_data"),
        ({"filename": "a.md", "file_data": "é==="}, 400, f"{place}.file_data"),
        ({"filename": "a.md", "file_data": "é"}, 400, f"{place}.file_data"),
        ({"filename": "a.md", "file_data": " \n"}, 400, place),
        ({"filename": "a.md", "file_data": "data:text/plain,hello"}, 400, f"{place}.file_data"),
        ({"filename": "a.md", "file_data": ""}, 400, place),
        ({"file_data": "YQ=="}, 400, f"{place}.filename"),
        ({"filename": "a.exe", "file_data": "YQ=="}, 400, place),
        ({"filename": "a.md", "file_data": "YQ==", "file_id": "file-1"}, 400, place),
        ({"filename": "a.pdf", "file_data": base64.b64encode(b"no pdf").decode()}, 400, place),
        ({"filename": "a.md", "file_data": base64.b64encode(b"a" * 1_000_001).decode()}, 413, place),
    ]
    async with served(library, settings, ScriptedLegs(), upload_mb=1) as api:
        for file, status, param in cases:
            content = [{"type": "file", "file": file}, *OILED]
            answer = await api.post(messages=[{"role": "user", "content": content}])
            assert (answer.status_code, answer.json()["error"]["param"]) == (status, param), (
                str(file)[:90],
                answer.text,
            )
        # As in mail, with its ends of lines, which are not the file's.
        lines = {"filename": "a.md", "file_data": base64.encodebytes(b"Oil and words. " * 66_000).decode()}
        answer = await api.post(messages=[{"role": "user", "content": [{"type": "file", "file": lines}, *OILED]}])
        assert answer.status_code == 200, answer.text
        many = [part_of(f"{number}.md") for number in range(21)]
        answer = await api.post(messages=[{"role": "user", "content": [*many, *OILED]}])
        assert answer.status_code == 400
        assert "At most 20 files" in answer.json()["error"]["message"]


# Hanging up


async def hang_up_when(api: Served, model: str, stream: bool, reached: Callable[[], bool], **more: Any) -> None:
    task = asyncio.create_task(ask(api.client, model, stream, **more))
    await until(reached)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", EACH)
async def test_a_client_that_hangs_up_while_a_model_writes_ends_the_work(
    library: Library, settings: Settings, model: str, stream: bool
) -> None:
    legs = ScriptedLegs([Reply(GOOD, hold=asyncio.Event())], [Reply(GOOD, hold=asyncio.Event())])
    leg = legs.llm if model == "smallfirst-llm" else legs.slm
    async with served(library, settings, legs, listening=True) as api:
        await hang_up_when(api, model, stream, lambda: bool(leg.backend_.asked))
        await until(lambda: leg.backend_.stopped == 1)
        await until(lambda: len(api.turns) == 1)
    assert api.turns == [None]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_hangs_up_while_the_larger_model_writes_ends_the_work(
    library: Library, settings: Settings, stream: bool
) -> None:
    legs = ScriptedLegs([REJECTED], [Reply(GOOD, hold=asyncio.Event())])
    async with served(library, settings, legs, listening=True) as api:
        await hang_up_when(api, "smallfirst-auto", stream, lambda: bool(legs.llm.backend_.asked))
        await until(lambda: legs.llm.backend_.stopped == 1)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", EACH)
async def test_a_client_that_hangs_up_while_a_model_is_loaded_ends_the_work(
    library: Library, settings: Settings, model: str, stream: bool
) -> None:
    legs = ScriptedLegs()
    waiting = [0]

    async def changes() -> AsyncIterator[State]:
        waiting[0] += 1
        try:
            yield State("loading")
            await asyncio.Event().wait()
        finally:
            waiting[0] -= 1

    for leg in (legs.slm, legs.llm):
        leg.state = State("loading")
        leg.changes = changes  # type: ignore[method-assign]
    async with served(library, settings, legs, listening=True) as api:
        await hang_up_when(api, model, stream, lambda: waiting[0] == 1)
        await until(lambda: waiting[0] == 0 and len(api.turns) == 1)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_hangs_up_while_its_file_is_read_ends_the_reading(
    library: Library, settings: Settings, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Attachments] = []
    read: list[str] = []
    closed: list[Attachments] = []
    add, close = Attachments.add, Attachments.close

    def noted(own: Attachments, data: bytes, source: str) -> Any:
        started.append(own)
        report = add(own, data, source)
        read.append(source)
        return report

    monkeypatch.setattr(Attachments, "add", noted)
    monkeypatch.setattr(Attachments, "close", lambda own: (close(own), closed.append(own))[0])
    endless = ("<p>" * 60 + "word " * 2000) * 40  # takes far longer to read than to hang up
    content = [part_of("endless.html", endless.encode()), *OILED]
    async with served(library, settings, ScriptedLegs(), listening=True) as api:
        body = {"model": "smallfirst-slm", "messages": [{"role": "user", "content": content}], "stream": stream}
        task = asyncio.create_task(api.http.post("/chat/completions", json=body))
        await until(lambda: bool(started) and started[0]._reader is not None and started[0]._reader.pid is not None)
        task.cancel()
        await asyncio.wait([task])
        await until(lambda: closed == started)
    assert started[0]._reader is not None
    assert started[0]._reader.pid is None
    assert read == [], "the reading was ended"
    assert api.turns == [], "no turn was begun"


@pytest.mark.parametrize("stream", [False, True])
async def test_more_turns_than_allowed_are_turned_away_until_one_ends(
    library: Library, settings: Settings, stream: bool
) -> None:
    legs = ScriptedLegs([Reply(GOOD, hold=asyncio.Event()), GOOD])
    async with served(library, settings, legs, api_turns=1, listening=True) as api:
        task = asyncio.create_task(ask(api.client, "smallfirst-slm", stream))
        await until(lambda: bool(legs.slm.backend_.asked))
        refused = await api.post(stream=stream)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert refused.json()["error"]["code"] == "overloaded"
        task.cancel()
        await until(lambda: len(api.turns) == 1)
        assert (await api.post(stream=stream)).status_code == 200
        assert (await api.post(n=2)).status_code == 400, "what is refused takes no place"


# Waiting


async def test_a_stream_says_what_is_being_done_while_nothing_comes(
    library: Library, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "BEAT_S", 0.02)
    hold = asyncio.Event()
    legs = ScriptedLegs([Reply(REJECTED, hold=hold)], [GOOD])
    async with served(library, settings, legs, listening=True) as served_:
        body = {"model": "smallfirst-auto", "messages": [{"role": "user", "content": QUESTION}], "stream": True}
        lines: list[str] = []
        async with served_.http.stream("POST", "/chat/completions", json=body) as answer:
            async for line in answer.aiter_lines():
                lines.append(line)
                if len([line for line in lines if line.startswith(":")]) == 2:
                    hold.set()
    said = [line for line in lines if line.startswith(":")]
    assert len(said) >= 2
    assert "The small model" in said[1]
    assert lines.index(said[1]) < next(number for number, line in enumerate(lines) if line.startswith("data:"))
    assert "".join(text_of([json.loads(line[6:])]) for line in lines if line.startswith("data: {")) == f"{GOOD} [1]"


async def test_an_error_after_such_a_wait_is_an_event(
    library: Library, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "BEAT_S", 0.02)
    hold = asyncio.Event()
    failing = Reply(REJECTED, hold=hold, error=ModelUnreachable("It went."))
    legs = ScriptedLegs([failing])
    legs.llm.failure = ModelUnreachable("Nobody there.")
    async with served(library, settings, legs, listening=True) as served_:
        asking = asyncio.create_task(ask(served_.client, "smallfirst-auto", True))
        await until(lambda: bool(legs.slm.backend_.asked))
        await asyncio.sleep(5 * api.BEAT_S)
        hold.set()
        with pytest.raises(openai.APIError, match="Nobody there") as caught:
            await asking
        assert not isinstance(caught.value, openai.APIStatusError), "the status was 200 by then"


async def test_a_waiting_client_that_hangs_up_ends_the_work_too(
    library: Library, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "BEAT_S", 0.02)
    legs = ScriptedLegs([Reply(REJECTED, hold=asyncio.Event())])
    async with served(library, settings, legs, listening=True) as served_:
        body = {"model": "smallfirst-auto", "messages": [{"role": "user", "content": QUESTION}], "stream": True}
        async with served_.http.stream("POST", "/chat/completions", json=body) as answer:
            async for line in answer.aiter_lines():
                if line.startswith(":"):
                    break
        await until(lambda: legs.slm.backend_.stopped == 1)


# Programs that others wrote


async def run(*command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "LLM_USER_PATH": str(folder), "NO_PROXY": "*", "no_proxy": "*"}
    child = await asyncio.create_subprocess_exec(
        *command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    said, complained = await asyncio.wait_for(child.communicate(), 30)
    return subprocess.CompletedProcess(command, child.returncode or 0, said.decode(), complained.decode())


async def test_llm_answers_and_tells_errors(library: Library, settings: Settings, tmp_path: Path) -> None:
    pytest.importorskip("llm", reason="the program llm is not installed")
    program = [sys.executable, "-m", "llm", "-m"]
    async with served(library, settings, ScriptedLegs([GOOD] * 2), listening=True) as api:
        models = [{"model_id": name, "model_name": name, "api_base": api.url} for name in (EACH[1], "gpt-9")]
        folders = [tmp_path / "streamed", tmp_path / "whole", tmp_path / "failed"]
        for folder in folders:
            folder.mkdir()
            (folder / "extra-openai-models.yaml").write_text(json.dumps(models))  # JSON is YAML
        streamed, whole, failed = await asyncio.gather(
            run(*program, EACH[1], QUESTION, folder=folders[0]),
            run(*program, EACH[1], "--no-stream", "--usage", QUESTION, folder=folders[1]),
            run(*program, "gpt-9", QUESTION, folder=folders[2]),
        )
    assert streamed.stdout.strip() == f"{GOOD} [1]", streamed.stderr
    assert whole.stdout.strip() == f"{GOOD} [1]", whole.stderr
    assert "100 input, 6 output" in whole.stderr
    assert failed.returncode == 1
    assert "There is no model 'gpt-9'" in failed.stderr


async def test_curl_answers_and_tells_errors(library: Library, settings: Settings, tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("the program curl is not installed")
    asked = json.dumps({"model": EACH[1], "messages": [{"role": "user", "content": QUESTION}]})
    head = ["-H", "Content-Type: application/json", "-d"]
    async with served(library, settings, ScriptedLegs([GOOD] * 2), listening=True) as api:
        program = ["curl", "-sS", "--noproxy", "*", f"{api.url}/chat/completions"]
        whole = await run(*program, *head, asked, folder=tmp_path)
        streamed = await run(*program, "-N", *head, asked[:-1] + ', "stream": true}', folder=tmp_path)
        failed = await run(*program, "-w", "%{http_code}", *head, asked.replace(EACH[1], "gpt-9"), folder=tmp_path)
    assert json.loads(whole.stdout)["choices"][0]["message"]["content"] == f"{GOOD} [1]"
    assert streamed.stdout.endswith("data: [DONE]\n\n")
    assert failed.stdout.endswith("404")
    assert '"code":"model_not_found"' in failed.stdout


@pytest.mark.parametrize("stream", [False, True])
async def test_a_server_that_ends_tells_those_who_wait(library: Library, settings: Settings, stream: bool) -> None:
    legs = ScriptedLegs([Reply(GOOD, hold=asyncio.Event())])
    async with served(library, settings, legs) as api:
        asking = asyncio.create_task(api.post(stream=stream))
        await until(lambda: bool(legs.slm.backend_.asked))
        await until(lambda: not stream or legs.slm.backend_.replies == [])
        await asyncio.sleep(0)
        api.service.ending.set()
        answer = await asking
    if stream and answer.status_code == 200:
        last = answer.text.removesuffix("\n\n").rpartition("\n\n")[2]
        error = json.loads(last.removeprefix("data: "))["error"]
        assert "[DONE]" not in answer.text
    else:
        assert answer.status_code == 503
        error = answer.json()["error"]
    assert error["message"].startswith("The server is ending.")
    assert legs.slm.backend_.stopped == 1
