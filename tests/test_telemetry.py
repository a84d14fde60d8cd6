"""What a collector is told, by a real one that listens on this machine."""

import asyncio
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Told
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from rag.errors import ModelRefused, UserError
from rag.settings import Settings
from rag.telemetry import Telemetry
from rag.trace import Span, Trace
from rag.turn import cascade
from rag.turn.cascade import Turn
from rag.turn.session import Session

from .conftest import open_library, until
from .scripted import ScriptedLegs

ROOT = Path(__file__).resolve().parent.parent


class Collector:
    """Keeps what it is sent. `status` is its answer; while `held`, it does not answer."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.status = 200
        self.held = threading.Event()
        self.held.set()
        self.answered = 0
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                collector.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
                collector.requests.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
                collector.held.wait(20)
                collector.answered += 1
                self.send_response(collector.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def spans(self) -> list[Told]:
        """All that arrived, in the order in which they began."""
        spans = [
            span
            for body in self.bodies
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]
        return sorted(spans, key=lambda span: span.start_time_unix_nano)

    @property
    def resource(self) -> dict[str, Any]:
        return attributes_of(ExportTraceServiceRequest.FromString(self.bodies[0]).resource_spans[0].resource)

    def close(self) -> None:
        self.held.set()
        self._server.shutdown()
        self._server.server_close()


def attributes_of(told: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for pair in told.attributes:
        kind = pair.value.WhichOneof("value")
        value = getattr(pair.value, kind)
        found[pair.key] = [item.string_value for item in value.values] if kind == "array_value" else value
    return found


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("OTEL_") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "secretfile.md").write_text("# Secretheading\n\nZebras drink at the secretriver every morning.")
    library = open_library(docs, tmp_path / "cache")
    session = Session(library)
    yield session
    session.attachments.close()
    library.close()


async def turn_of(session: Session, settings: Settings) -> Turn:
    """An escalated one: the number is in no passage."""
    legs = ScriptedLegs(["Zebras drink at the secretriver since 1974."], ["Zebras drink at the secretriver."])
    question = "Where do zebras drink?"
    events = cascade.answer(question, session=session, legs=legs, settings=settings)
    return [event async for event in events][-1].turn  # type: ignore[union-attr]


def trace_of(*spans: Span) -> Trace:
    return Trace(spans=list(spans))


SIMPLE = trace_of(Span("retrieve", 1, None, 2))


async def test_every_span_of_a_turn_arrives_under_one_root(
    collector: Collector, session: Session, settings: Settings
) -> None:
    turn = await turn_of(session, settings)
    telemetry = Telemetry(collector.url, "1.2.3")
    telemetry.record(turn.trace, turn.to_dict(), question_id="q1", remote={"llm"})
    telemetry.close()
    path, headers = collector.requests[0]
    assert (path, headers["content-type"]) == ("/v1/traces", "application/x-protobuf")
    assert collector.resource["service.name"] == "smallfirst"
    assert collector.resource["service.version"] == "1.2.3"

    spans = {span.span_id: span for span in collector.spans}
    assert sorted(span.name for span in spans.values()) == sorted(["turn", *(s.name for s in turn.trace.spans)])
    assert len({span.trace_id for span in spans.values()}) == 1
    (root,) = [span for span in spans.values() if not span.parent_span_id]
    assert root.name == "turn"
    assert attributes_of(root) == {
        "smallfirst.question.id": "q1",
        "smallfirst.outcome": "answered",
        "smallfirst.mode": "auto",
        "smallfirst.model": "scripted-llm",
        "smallfirst.escalated": True,
        "smallfirst.refused": False,
        "smallfirst.score": pytest.approx(turn.verdict.score),  # type: ignore[union-attr]
        "smallfirst.threshold": pytest.approx(turn.verdict.threshold),  # type: ignore[union-attr]
        "smallfirst.accepted": False,
        "smallfirst.hits": 1,
        "smallfirst.citations": 1,
        "smallfirst.ttft_ms": pytest.approx(turn.trace.ttft_ms),
    }
    for leg, outer in (("slm", "draft"), ("llm", "escalate")):
        of_leg = [s for s in spans.values() if attributes_of(s).get("smallfirst.leg") == leg and s.name != "judge"]
        (asked,) = [span for span in of_leg if span.name == outer]
        assert asked.parent_span_id == root.span_id
        inside = [span for span in of_leg if span is not asked]
        assert {span.name for span in inside} == {"prompt", "request", "first_token", "completion"}
        assert {span.parent_span_id for span in inside} == {asked.span_id}
    alone = [span for span in spans.values() if span.name in ("rewrite", "retrieve", "judge", "cite")]
    assert len(alone) == 4
    assert {span.parent_span_id for span in alone} == {root.span_id}


async def test_a_model_is_told_by_the_names_of_the_conventions(
    collector: Collector, session: Session, settings: Settings
) -> None:
    turn = await turn_of(session, settings)
    telemetry = Telemetry(collector.url, "1")
    telemetry.record(turn.trace, turn.to_dict(), remote={"llm"})
    telemetry.close()
    told = {span.name: span for span in collector.spans}
    assert told["escalate"].kind == Told.SPAN_KIND_CLIENT
    escalate = attributes_of(told["escalate"])
    assert escalate.pop("gen_ai.response.time_to_first_chunk") >= 0
    assert escalate == {
        "smallfirst.leg": "llm",
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.output.type": "text",
        "gen_ai.request.stream": True,
        "gen_ai.request.model": "scripted-llm",
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.usage.input_tokens": 100,
        "gen_ai.usage.output_tokens": 5,
    }
    assert attributes_of(told["draft"])["gen_ai.provider.name"] == "llama_cpp"


async def test_times_are_those_of_the_trace_on_the_wall(
    collector: Collector, session: Session, settings: Settings
) -> None:
    before = time.time_ns()
    turn = await turn_of(session, settings)
    after = time.time_ns()
    telemetry = Telemetry(collector.url, "1")
    telemetry.record(turn.trace, turn.to_dict())
    telemetry.close()
    root = next(span for span in collector.spans if span.name == "turn")
    slack = 5_000_000  # the two clocks are not read at one moment
    for span in turn.trace.spans:
        told = next(t for t in collector.spans if t.name == span.name and matches(t, span, root))
        assert before - slack <= told.start_time_unix_nano <= told.end_time_unix_nano <= after + slack
    assert (root.end_time_unix_nano - root.start_time_unix_nano) / 1e6 == pytest.approx(turn.trace.total_ms, abs=0.001)


def matches(told: Told, span: Span, root: Told) -> bool:
    start_ms = (told.start_time_unix_nano - root.start_time_unix_nano) / 1e6
    duration_ms = (told.end_time_unix_nano - told.start_time_unix_nano) / 1e6
    return abs(start_ms - span.start_ms) < 0.001 and abs(duration_ms - (span.duration_ms or 0)) < 0.001


async def test_no_text_leaves(collector: Collector, session: Session, settings: Settings) -> None:
    turn = await turn_of(session, settings)
    whole = turn.to_dict()
    assert "secret" in str(whole)
    assert "1974" in whole["verdict"]["reason"], "a reason can hold words of the answer"
    telemetry = Telemetry(collector.url, "1")
    telemetry.record(turn.trace, whole | {"user": "secretuser", "error": "secret"})
    telemetry.record(turn.trace, {}, error=ModelRefused("It refused the prompt: secret"))
    telemetry.close()
    assert collector.spans
    sent = b"".join(collector.bodies)
    for word in (b"secret", b"ebras", b"1974", b"drink"):
        assert word not in sent


def test_a_failed_turn_says_what_kind_of_error_and_a_stopped_one_that_it_was_stopped(collector: Collector) -> None:
    trace = trace_of(Span("escalate", 0, "llm", 5), Span("request", 1, "llm", 4))
    telemetry = Telemetry(collector.url, "1")
    telemetry.record(trace, {"mode": "llm"}, models={"llm": "large"}, error=ModelRefused("No.", 401))
    telemetry.record(trace, {})
    telemetry.close()
    turns = {attributes_of(span)["smallfirst.outcome"]: span for span in collector.spans if span.name == "turn"}
    failed, stopped = turns["failed"], turns["stopped"]
    assert failed.status.code == Status.STATUS_CODE_ERROR
    assert attributes_of(failed) == {
        "smallfirst.outcome": "failed", "smallfirst.mode": "llm", "error.type": "ModelRefused",
    }  # fmt: skip
    assert attributes_of(stopped) == {"smallfirst.outcome": "stopped"}
    asked = next(span for span in collector.spans if (span.name, span.trace_id) == ("escalate", failed.trace_id))
    assert attributes_of(asked)["gen_ai.request.model"] == "large"


def test_of_a_leg_that_was_asked_twice_each_span_has_its_own_draft(collector: Collector) -> None:
    trace = trace_of(
        Span("draft", 0, "slm", 10), Span("first_token", 1, "slm", 3),
        Span("escalate", 10, "llm", 10), Span("draft", 20, "slm", 10), Span("first_token", 21, "slm", 7),
    )  # fmt: skip
    small = {"leg": "slm", "model": "small", "usage": None, "finish_reason": None}
    telemetry = Telemetry(collector.url, "1")
    telemetry.record(trace, {"drafts": [small | {"finish_reason": "stop"}]}, models={"slm": "small"})
    telemetry.close()
    first, second = [attributes_of(span) for span in collector.spans if span.name == "draft"]
    assert "gen_ai.response.finish_reasons" not in first
    assert second["gen_ai.response.finish_reasons"] == ["stop"]
    assert [told["gen_ai.response.time_to_first_chunk"] for told in (first, second)] == [0.003, 0.007]
    inside = [span.parent_span_id for span in collector.spans if span.name == "first_token"]
    assert inside == [span.span_id for span in collector.spans if span.name == "draft"]


@pytest.mark.parametrize("path", ["", "/", "/otlp", "/otlp/"])
def test_spans_go_below_the_base_address(collector: Collector, path: str) -> None:
    telemetry = Telemetry(f"{collector.url}{path}", "1")
    telemetry.record(SIMPLE, {})
    telemetry.close()
    assert [path for path, _ in collector.requests] == [f"{path.rstrip('/')}/v1/traces"]


def test_the_exporters_own_variables_work(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20abc")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "library-desk")
    telemetry = Telemetry(collector.url, "1")
    telemetry.record(SIMPLE, {})
    telemetry.close()
    assert collector.requests[0][1]["authorization"] == "Bearer abc"
    assert collector.resource["service.name"] == "library-desk"


def test_a_proxy_never_sees_what_goes_to_this_machine(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    telemetry = Telemetry(collector.url, "1")
    telemetry.record(SIMPLE, {})
    telemetry.close()
    assert len(collector.requests) == 1


@pytest.mark.parametrize("endpoint", ["localhost:4318", "grpc://x:4317", "http://", "http://x:port", "http://x:0"])
def test_what_is_no_address_is_refused(endpoint: str) -> None:
    with pytest.raises(UserError, match="OTEL_EXPORTER_OTLP_ENDPOINT"):
        Telemetry(endpoint, "1")


async def test_a_collector_that_refuses_is_complained_of_once_and_without_its_password(collector: Collector) -> None:
    """In a process of its own, so that its terminal is seen; it records a turn for each line that it reads."""
    collector.status = 401
    script = f"""
import sys
from rag.telemetry import Telemetry
from rag.trace import Trace

telemetry = Telemetry({collector.url.replace("//", "//me:pass@")!r}, "1")
for line in sys.stdin:
    telemetry.record(Trace(), {{}})
telemetry.close()
"""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, env={**os.environ, "PYTHONPATH": str(ROOT), "OTEL_BSP_SCHEDULE_DELAY": "20"},
        stdin=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    for number in range(1, 4):
        process.stdin.write(b"again\n")
        await process.stdin.drain()
        await until(lambda number=number: collector.answered == number)  # type: ignore[misc]
    process.stdin.close()
    _, terminal = await process.communicate()
    (said,) = terminal.decode().splitlines()
    assert said.startswith(f"The collector at {collector.url.removeprefix('http://')} takes no traces (")
    assert "401" in said
    assert "pass" not in said


def test_a_collector_that_does_not_answer_holds_nobody_up(
    collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    collector.held.clear()
    telemetry = Telemetry(collector.url, "1")
    for _ in range(1000):
        telemetry.record(SIMPLE, {})
    telemetry.close(limit_s=0.2)
    assert collector.answered == 0, "nobody waited for it"
    assert len(complaints(caplog)) <= 1


def test_nobody_listens_and_nothing_fills_the_terminal(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    telemetry = Telemetry("http://127.0.0.1:9", "1")
    for _ in range(5):
        telemetry.record(SIMPLE, {})
    telemetry.close(limit_s=0.2)
    assert len(complaints(caplog)) <= 1


def complaints(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "smallfirst"]


def test_what_others_trace_is_not_sent_and_is_no_parent(collector: Collector, tmp_path: Path) -> None:
    """In a process of its own, with what Chainlit brings: OpenTelemetry's global tracer can be set once only."""
    script = f"""
import chainlit
from traceloop.sdk import Traceloop
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter

class Kept(SpanExporter):
    names = []
    def export(self, spans):
        self.names += [span.name for span in spans]

from rag.telemetry import Telemetry
from rag.trace import Trace

before = trace.get_tracer_provider()
telemetry = Telemetry({collector.url!r}, "1")
assert trace.get_tracer_provider() is before
with trace.get_tracer("other").start_as_current_span("foreign before"):
    pass
theirs = TracerProvider()
theirs.add_span_processor(SimpleSpanProcessor(Kept()))
trace.set_tracer_provider(theirs)
with trace.get_tracer("other").start_as_current_span("foreign"):
    ours = Trace()
    with ours.span("retrieve"):
        pass
    telemetry.record(ours, {{}})
telemetry.close()
assert Kept.names == ["foreign"], Kept.names
"""
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "CHAINLIT_APP_ROOT": str(tmp_path), "TRACELOOP_TELEMETRY": "false",
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
    }  # fmt: skip
    done = subprocess.run([sys.executable, "-c", script], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [span.name for span in collector.spans] == ["turn", "retrieve"]
    assert collector.spans[0].parent_span_id == b""


def test_without_an_endpoint_nothing_is_loaded() -> None:
    script = """
import sys
from rag.telemetry import Telemetry
from rag.trace import Trace
telemetry = Telemetry(None, "1")
telemetry.record(Trace(), {})
telemetry.close()
assert not [name for name in sys.modules if name.startswith(("opentelemetry", "requests", "urllib3"))]
"""
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
