"""The spans of a turn, told to an OpenTelemetry collector.

Knows what may leave: times, counts, scores, and the names of models. Never a question, an answer, a passage, a verdict's
reason, a note, an error's text, or the name of a document, a user or a conversation: what is not listed in `_of_turn`
and `_of_draft` is not sent. Attributes are named by the semantic conventions for generative AI where those have a name
(`gen_ai.*`), else `smallfirst.*`.

Without an endpoint nothing is done and nothing of OpenTelemetry is imported. With one, spans go out from a thread of
their own, by OTLP over HTTP, as protobuf (there is no gRPC). The exporter reads its own variables (headers, timeout,
compression, certificates: OTEL_EXPORTER_OTLP_*), and so do the resource and the sampler (OTEL_SERVICE_NAME, ...). Our
tracer is nobody else's: libraries that trace through OpenTelemetry's global one are not heard here.
"""

import logging
import threading
import time
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, urlsplit

from rag.errors import UserError
from rag.hosts import is_loopback
from rag.trace import Span, Trace

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span as OtelSpan

log = logging.getLogger("smallfirst")

Value = str | bool | int | float | tuple[str, ...]

ASKING = ("draft", "escalate")
"""The spans in which one model is asked; others of that leg lie inside."""
CLOSE_S = 3.0
"""What the end of the program may wait for a collector, seconds."""
# The libraries' own words on a collector that does not answer: several lines for every batch.
_NOISY = ("opentelemetry.exporter.otlp.proto.http.trace_exporter", "opentelemetry.sdk._shared_internal")


class Telemetry:
    """Tells one collector. Whoever makes it closes it."""

    def __init__(self, endpoint: str | None, version: str) -> None:
        """`endpoint` is the collector's base address: spans go to its /v1/traces. A bad one is a UserError."""
        self._provider: TracerProvider | None = None
        if endpoint is None:
            return
        parts = _read(endpoint)

        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider as Provider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from requests import Session

        session = None
        if is_loopback(str(parts.hostname)):
            # A proxy named in the environment must never see a request to this machine.
            session = Session()
            session.trust_env = False
        self._exporter: SpanExporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces", session=session)
        resource = Resource.create()
        if str(resource.attributes["service.name"]).startswith("unknown_service"):  # OpenTelemetry's word for unset
            resource = resource.merge(Resource({"service.name": "smallfirst"}))
        resource = Resource({"service.version": version}).merge(resource)
        self._provider = Provider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer("smallfirst", version)
        self._complaints = _FirstComplaint(parts.netloc.rpartition("@")[2])
        for name in _NOISY:
            noisy = logging.getLogger(name)
            noisy.propagate = False
            noisy.addHandler(self._complaints)

    def begin(self, trace: Trace) -> None:
        """Nothing is told of a turn before its end."""

    def record(
        self,
        trace: Trace,
        turn: Mapping[str, Any],
        *,
        question_id: str = "",
        models: Mapping[str, str] | None = None,
        remote: Collection[str] = (),
        error: BaseException | None = None,
    ) -> None:
        """Tell of a turn that is over: one span for each of the trace's, under one that is called "turn".

        `turn` is its dictionary, of a stopped or failed one what there is of it; `question_id` is the door's name for
        the question, `models` are the legs' models and `remote` the legs that are not run here. Returns at once: sending
        is the thread's.
        """
        if self._provider is None:
            return
        from opentelemetry.context import Context
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

        now_ms = trace.now_ms()
        began_ns = time.time_ns() - int(now_ms * 1e6)

        def wall_ns(at_ms: float) -> int:
            return began_ns + int(at_ms * 1e6)

        # A context of our own: what happens to be traced around us is no parent.
        root = self._tracer.start_span(
            "turn", Context(), attributes=_of_turn(trace, turn, question_id, error), start_time=wall_ns(0)
        )
        if error is not None:
            root.set_status(Status(StatusCode.ERROR))
        drafts = _drafts_of(trace, turn)
        asking: dict[int, OtelSpan] = {}
        for span in trace.spans:
            asks = span.name in ASKING and span.leg is not None
            around = None if asks else _around(span, trace)
            parent = root if around is None else asking.get(id(around), root)
            attributes: dict[str, Value] = {"smallfirst.leg": span.leg} if span.leg else {}
            if asks:
                attributes |= _of_draft(span, trace, drafts.get(id(span)), models or {}, remote)
            told = self._tracer.start_span(
                span.name,
                set_span_in_context(parent, Context()),
                kind=SpanKind.CLIENT if asks else SpanKind.INTERNAL,
                attributes=attributes,
                start_time=wall_ns(span.start_ms),
            )
            if asks:
                asking[id(span)] = told
            told.end(wall_ns(now_ms if span.end_ms is None else span.end_ms))
        root.end(wall_ns(trace.total_ms))

    def close(self, limit_s: float = CLOSE_S) -> None:
        """Send what waits, for `limit_s` seconds at most; blocks. What is recorded later is not sent."""
        if self._provider is None:
            return
        # The provider's own limit is half a minute, and cannot be set.
        closing = threading.Thread(target=self._provider.shutdown, name="close telemetry", daemon=True)
        closing.start()
        closing.join(limit_s)
        if closing.is_alive():
            self._exporter.shutdown()  # so that it does not try again
            return
        for name in _NOISY:
            logging.getLogger(name).removeHandler(self._complaints)


class _FirstComplaint(logging.Handler):
    """Says once that the collector takes nothing; more would bury what else the terminal shows."""

    def __init__(self, address: str) -> None:
        super().__init__(logging.ERROR)
        self._address = address
        self._said = False

    def emit(self, record: logging.LogRecord) -> None:
        if not self._said:
            self._said = True
            log.warning(
                "The collector at %s takes no traces (%s). Start it, or unset OTEL_EXPORTER_OTLP_ENDPOINT."
                " This is said once.",
                self._address,
                record.getMessage().rstrip("."),
            )


def _of_turn(trace: Trace, turn: Mapping[str, Any], question_id: str, error: BaseException | None) -> dict[str, Value]:
    """What is told of the whole; what the turn does not say is left out."""
    verdict = turn.get("verdict") or {}
    stopped = "answer" not in turn or bool(turn.get("stopped"))
    outcome = "failed" if error is not None else "stopped" if stopped else "answered"
    told: dict[str, Value | None] = {
        "smallfirst.question.id": question_id or None,
        "smallfirst.outcome": outcome,
        "smallfirst.mode": turn.get("mode"),
        "smallfirst.model": turn.get("model"),
        "smallfirst.escalated": turn.get("escalated"),
        "smallfirst.refused": turn.get("refused"),
        "smallfirst.score": verdict.get("score"),
        "smallfirst.threshold": verdict.get("threshold"),
        "smallfirst.accepted": verdict.get("accepted"),
        "smallfirst.hits": len(turn["hits"]) if "hits" in turn else None,
        "smallfirst.citations": len(turn["citations"]) if "citations" in turn else None,
        "smallfirst.ttft_ms": trace.ttft_ms,
        # Of an error, its kind: its text may hold a question.
        "error.type": type(error).__name__ if error is not None else None,
    }
    return {name: value for name, value in told.items() if value is not None}


def _of_draft(
    span: Span, trace: Trace, draft: Mapping[str, Any] | None, models: Mapping[str, str], remote: Collection[str]
) -> dict[str, Value]:
    """What is told of one model's answer; of one that broke off, what was asked for."""
    assert span.leg is not None
    draft = draft or {}
    usage = draft.get("usage") or {}
    first = next((s for s in trace.spans if s.name == "first_token" and _around(s, trace) is span), None)
    waited_ms = first.duration_ms if first else None
    told: dict[str, Value | None] = {
        "gen_ai.operation.name": "chat",
        # Of a server that the user named, all that is known is whose protocol it speaks.
        "gen_ai.provider.name": "openai" if span.leg in remote else "llama_cpp",
        "gen_ai.output.type": "text",
        "gen_ai.request.stream": True,
        "gen_ai.request.model": draft.get("model") or models.get(span.leg),
        "gen_ai.response.finish_reasons": (draft["finish_reason"],) if draft.get("finish_reason") else None,
        "gen_ai.response.time_to_first_chunk": waited_ms / 1000 if waited_ms is not None else None,
        "gen_ai.usage.input_tokens": usage.get("input_tokens"),
        "gen_ai.usage.output_tokens": usage.get("output_tokens"),
    }
    return {name: value for name, value in told.items() if value is not None}


def _around(span: Span, trace: Trace) -> Span | None:
    """The span in which that leg was being asked when this one began."""
    outer = [
        s
        for s in trace.spans
        if s.name in ASKING
        and s is not span
        and s.leg == span.leg
        and s.start_ms <= span.start_ms <= (span.start_ms if s.end_ms is None else s.end_ms)
    ]
    return outer[-1] if outer else None


def _drafts_of(trace: Trace, turn: Mapping[str, Any]) -> dict[int, Mapping[str, Any]]:
    """Which draft came of which span: of a leg that was asked twice, the last draft is of the last time."""
    found: dict[int, Mapping[str, Any]] = {}
    drafts = list(turn.get("drafts") or ())
    for span in reversed([s for s in trace.spans if s.name in ASKING]):
        last = next((draft for draft in reversed(drafts) if draft.get("leg") == span.leg), None)
        if last is not None:
            drafts.remove(last)
            found[id(span)] = last
    return found


def _read(endpoint: str) -> SplitResult:
    """Its parts, if it is an address of a web server."""
    try:
        parts = urlsplit(endpoint)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        sound = False
    if sound:
        return parts
    raise UserError(
        f"OTEL_EXPORTER_OTLP_ENDPOINT has the value {endpoint!r}, which is no address of a collector."
        " Use one like http://localhost:4318, or remove it."
    )
