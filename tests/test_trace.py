"""Time of one turn."""

import asyncio

import pytest

from rag.trace import Trace


async def test_spans_of_two_turns_do_not_mix() -> None:
    async def turn() -> Trace:
        trace = Trace()
        with trace.span("draft", "slm"):
            await asyncio.sleep(0)
            with trace.span("request", "slm"):
                await asyncio.sleep(0)
        return trace

    for trace in await asyncio.gather(turn(), turn()):
        assert [span.name for span in trace.spans] == ["draft", "request"]
        outer, inner = trace.spans
        assert outer.start_ms <= inner.start_ms
        assert inner.end_ms <= outer.end_ms  # type: ignore[operator]
        assert trace.total_ms == outer.end_ms


def test_a_span_is_closed_when_its_body_raises() -> None:
    trace = Trace()
    with pytest.raises(ValueError, match="x"), trace.span("retrieve"):
        raise ValueError("x")
    assert trace.spans[0].duration_ms is not None


def test_whoever_listens_is_told_of_each_span_that_begins() -> None:
    heard: list[str] = []
    trace = Trace(on_open=lambda span: heard.append(span.name))
    with trace.span("draft"):
        assert heard == ["draft"]
        trace.open("request")
    assert heard == ["draft", "request"]


def test_only_the_first_token_counts() -> None:
    trace = Trace()
    assert trace.to_dict()["ttft_ms"] is None
    trace.first_token()
    first = trace.ttft_ms
    trace.first_token()
    assert trace.ttft_ms == first
