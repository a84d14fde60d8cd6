"""What a model wrote once is replayed ever after: the same words, tokens and times, and the model is left alone."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from rag.errors import ModelError, ModelSilent, UserError
from rag.lab.recording import RecordedLeg, RecordedLegs, Recordings
from rag.models.backend import Delta, Draft, Piece, Usage
from rag.models.legs import Legs
from rag.settings import Settings
from rag.trace import Trace

from .test_backend import HEADERS, WHOLE, Answer, Server, event, sends

MESSAGES = [{"role": "user", "content": "hi"}]
SILENT = [
    event(finish="stop"),
    event(choices=[], usage={"prompt_tokens": 7, "completion_tokens": 0, "total_tokens": 7}),
    b"data: [DONE]\n\n",
]


@asynccontextmanager
async def recorded(tmp_path: Path, answer: Answer) -> AsyncIterator[tuple[RecordedLegs, Server, Recordings]]:
    """Both legs on a server of the test's own, behind recordings."""
    server = Server(answer)
    listener = await asyncio.start_server(server.handle, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/v1"
    settings = Settings(
        _env_file=None, cache_dir=tmp_path, slm_model="small", llm_model="large", slm_base_url=url, llm_base_url=url
    )  # type: ignore[call-arg]
    legs = Legs(settings)
    recordings = Recordings(tmp_path / "answers.sqlite")
    try:
        yield RecordedLegs(legs, recordings), server, recordings
    finally:
        await legs.close()
        recordings.close()
        listener.close()


async def ask(leg: RecordedLeg, messages: Sequence[dict[str, str]] = MESSAGES, max_tokens: int = 5) -> list[Piece]:
    backend = await leg.backend()
    return [piece async for piece in backend.stream(list(messages), max_tokens=max_tokens, trace=Trace())]


async def hang_up_at_once(leg: RecordedLeg) -> None:
    backend = await leg.backend()
    async with aclosing(backend.stream(MESSAGES, max_tokens=5, trace=Trace())) as stream:
        async for piece in stream:
            assert isinstance(piece, Delta)
            break


async def test_the_second_time_nothing_reaches_the_model_and_all_is_equal(tmp_path: Path) -> None:
    async with recorded(tmp_path, sends(HEADERS, *WHOLE)) as (legs, server, recordings):
        first, second = await ask(legs.slm), await ask(legs.slm)
        assert first == second
        draft = second[-1]
        assert isinstance(draft, Draft)
        assert (draft.leg, draft.model, draft.text, draft.finish_reason) == ("slm", "small", "Hello", "stop")
        assert [(token.text, token.logprob, token.top, token.top_texts) for token in draft.tokens] == [
            ("Hel", -0.1, (-0.1,), ("Hel",)),
            ("lo", -0.2, (), ()),
        ]
        assert draft.usage == Usage(7, 2)
        deltas = [piece for piece in second if isinstance(piece, Delta)]
        assert "".join(delta.text for delta in deltas) == "Hello"
        assert tuple(token for delta in deltas for token in delta.tokens) == draft.tokens
        assert len(server.requests) == len(recordings) == 1
        once, again = legs.calls
        assert once == again
        assert (once.leg, once.input_tokens, once.output_tokens, once.stopped) == ("slm", 7, 2, False)
        assert 0 < once.ttft_ms <= once.total_ms
        assert once.cpu_s is None, "nothing is known of another machine's processor"


async def test_recordings_outlive_the_process(tmp_path: Path) -> None:
    async with recorded(tmp_path, sends(HEADERS, *WHOLE)) as (legs, _, _):
        first = await ask(legs.slm)
    async with recorded(tmp_path, sends()) as (legs, server, _):
        assert await ask(legs.slm) == first
        assert server.requests == []


async def test_another_model_message_or_length_is_another_request(tmp_path: Path) -> None:
    async with recorded(tmp_path, sends(HEADERS, *WHOLE)) as (legs, server, recordings):
        await ask(legs.slm)
        await ask(legs.llm)
        await ask(legs.slm, max_tokens=6)
        await ask(legs.slm, [{"role": "user", "content": "ho"}])
        assert len(server.requests) == len(recordings) == 4
        assert [call.leg for call in legs.calls] == ["slm", "llm", "slm", "slm"]


async def test_hanging_up_counts_only_until_then_but_all_is_recorded(tmp_path: Path) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def answer(writer: asyncio.StreamWriter, _: dict[str, Any]) -> None:
        writer.write(HEADERS + WHOLE[0])
        await writer.drain()
        begun.set()
        await go_on.wait()
        writer.write(b"".join(WHOLE[1:]))
        await writer.drain()

    async with recorded(tmp_path, answer) as (legs, server, recordings):
        hanging_up = asyncio.create_task(hang_up_at_once(legs.slm))
        await begun.wait()
        go_on.set()
        await hanging_up
        assert not server.hung_up.is_set(), "the next policy may want the rest"
        await ask(legs.slm)
        assert len(server.requests) == len(recordings) == 1
        early, whole = legs.calls
        assert (early.stopped, early.input_tokens, early.output_tokens) == (True, 7, 1)
        assert (whole.stopped, whole.input_tokens, whole.output_tokens) == (False, 7, 2)
        assert early.ttft_ms == early.total_ms == whole.ttft_ms < whole.total_ms


async def test_a_model_that_says_nothing_is_recorded_as_one_that_does(tmp_path: Path) -> None:
    async with recorded(tmp_path, sends(HEADERS, *SILENT)) as (legs, server, recordings):
        told = []
        for _ in range(2):
            with pytest.raises(ModelSilent) as raised:
                await ask(legs.slm)
            told.append(str(raised.value))
        assert told[0] == told[1]
        assert len(server.requests) == len(recordings) == 1
        assert len(legs.calls) == 2, "its silence took time too"
        assert legs.calls[0] == legs.calls[1]
        assert (legs.calls[0].output_tokens, legs.calls[0].stopped) == (0, False)


@pytest.mark.parametrize(
    "failing",
    [
        sends(b"HTTP/1.1 500 No\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"),
        sends(HEADERS, b'data: {"error": {"message": "out of memory", "code": 500}}\n\n'),
        sends(HEADERS, WHOLE[0]),
    ],
    ids=["refused", "refused in the stream", "broken off"],
)
async def test_an_answer_that_failed_is_not_recorded(failing: Answer, tmp_path: Path) -> None:
    async with recorded(tmp_path, failing) as (legs, server, recordings):
        with pytest.raises(ModelError):
            await ask(legs.slm)
        assert len(recordings) == 0
        assert legs.calls == []
        server.answer = sends(HEADERS, *WHOLE)
        assert isinstance((await ask(legs.slm))[-1], Draft)
        assert len(recordings) == 1


async def test_a_recorded_leg_is_like_its_leg_but_always_ready(tmp_path: Path) -> None:
    async with recorded(tmp_path, sends()) as (legs, _, _):
        leg = legs.llm
        assert (leg.name, leg.model, leg.max_tokens) == ("llm", "large", 400)
        assert (leg.remote, leg.examples, leg.state.usable) == (True, leg.real.examples, True)
        assert (await leg.backend()).where == leg.real.where


async def test_a_replay_has_the_spans_that_a_turn_looks_for(tmp_path: Path) -> None:
    async with recorded(tmp_path, sends(HEADERS, *WHOLE)) as (legs, _, _):
        for _ in range(2):
            trace = Trace()
            async for _ in (await legs.slm.backend()).stream(MESSAGES, max_tokens=5, trace=trace):
                pass
            assert [(span.name, span.leg) for span in trace.spans] == [
                ("request", "slm"), ("first_token", "slm"), ("completion", "slm"),
            ]  # fmt: skip
            assert all(span.duration_ms is not None for span in trace.spans)


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="RAG_CACHE_DIR"):
        Recordings(tmp_path / "file" / "answers.sqlite")
    (tmp_path / "no.sqlite").write_text("this is no database, and long enough to be seen as none" * 20)
    with pytest.raises(UserError, match=r"no\.sqlite"):
        Recordings(tmp_path / "no.sqlite")


async def test_smollm2_is_started_once_and_its_processor_time_is_shared_out(
    small_weights: Path, tmp_path: Path
) -> None:
    settings = Settings(_env_file=None, cache_dir=small_weights.parent, context_tokens=1024)  # type: ignore[call-arg]
    messages = [{"role": "user", "content": "Name three colours."}]
    recordings = Recordings(tmp_path / "answers.sqlite")
    try:
        legs = Legs(settings)
        try:
            real = RecordedLegs(legs, recordings)
            first = await ask(real.slm, messages, max_tokens=12)
        finally:
            await legs.close()
        replayed = RecordedLegs(Legs(settings), recordings)
        second = await ask(replayed.slm, messages, max_tokens=12)
        assert second == first
        assert replayed.slm.real.pid is None, "no server was started"
        backend = await replayed.slm.backend()
        async with aclosing(backend.stream(messages, max_tokens=12, trace=Trace())) as stream:
            await anext(stream)
        whole, early = replayed.calls
        assert whole == real.calls[0]
        assert whole.cpu_s is not None
        assert early.cpu_s == pytest.approx(whole.cpu_s * early.total_ms / whole.total_ms)
        assert 0 < early.total_ms < whole.total_ms
        assert isinstance(first[-1], Draft)
        assert len(first[-1].tokens[0].top_texts) == len(first[-1].tokens[0].top) > 1, (
            "rivals are kept with their texts"
        )
    finally:
        recordings.close()
