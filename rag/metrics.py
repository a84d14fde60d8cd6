"""Counts for a Prometheus server: turns and how they ended, times, tokens, who waits, what can be asked.

Knows numbers, and labels out of short lists that are written here. Never a question, an answer, or the name of a document,
a user, a model or a server: whoever reads the numbers learns nothing of what was asked. The registry is our own, so that
what other libraries of this process count is not told here, and two of them can stand side by side.

    from a turn that is over     turns, escalations, times, tokens, by `record`
    at the moment of the scrape  turns under way, who waits, models, documents, this process
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Histogram, Info, PlatformCollector, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from rag import __version__
from rag.corpus.library import Library
from rag.models.legs import Pair
from rag.settings import MODES
from rag.trace import Trace

OUTCOMES: Final = ("answered", "refused", "stopped", "failed")
"""Refused: the answer says that it is not in the documents. Stopped: the asker went away. Failed: an error was told."""
LEGS: Final = ("slm", "llm")
# From a model that is warm to one that is loaded from a slow disk first; seconds.
TIMES_S: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600)
SEARCH_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)

OPENMETRICS: Final = "application/openmetrics-text"


class Metrics:
    """An observer of turns (`cascade.Observer`) with a registry of its own."""

    def __init__(self, library: Library, legs: Pair) -> None:
        self.registry = CollectorRegistry()
        self._under_way: dict[int, Trace] = {}
        self._turns = Counter(
            "smallfirst_turns_total",
            "Turns that are over, by how they ended.",
            ("mode", "outcome"),
            registry=self.registry,
        )
        self._escalations = Counter(
            "smallfirst_escalations_total",
            "Turns that another model answered than the one that was asked first: by its leg, and by whether the first"
            " one's draft was rejected or the first one gave no answer.",
            ("leg", "reason"),
            registry=self.registry,
        )
        self._escalations_failed = Counter(
            "smallfirst_escalations_failed_total",
            "Turns whose rejected draft stands, because the larger model gave no answer.",
            registry=self.registry,
        )
        self._first_token = Histogram(
            "smallfirst_first_token_seconds",
            "From the question to the first token of any model, of a draft that was rejected later too.",
            ("mode",),
            buckets=TIMES_S,
            registry=self.registry,
        )
        self._turn = Histogram(
            "smallfirst_turn_seconds",
            "From the question to the end of its answer, of turns that were answered or refused.",
            ("mode",),
            buckets=TIMES_S,
            registry=self.registry,
        )
        self._retrieval = Histogram(
            "smallfirst_retrieval_seconds", "The search for passages.", buckets=SEARCH_S, registry=self.registry
        )
        self._tokens = Counter(
            "smallfirst_tokens_total",
            "Tokens as the models' servers counted them, of rejected drafts too; of an answer that was broken off, none.",
            ("leg", "kind"),
            registry=self.registry,
        )
        # What has not happened yet is 0: of a series that appears with its first turn, no rate would show that one.
        for mode in MODES:
            self._first_token.labels(mode)
            self._turn.labels(mode)
            for outcome in OUTCOMES:
                self._turns.labels(mode, outcome)
        for leg in LEGS:
            self._tokens.labels(leg, "input")
            self._tokens.labels(leg, "output")
        for leg, reason in (("llm", "rejected"), ("llm", "no_answer"), ("slm", "no_answer")):
            self._escalations.labels(leg, reason)
        self.registry.register(_Now(library, legs, self._under_way))
        Info("smallfirst_build", "The version that runs.", registry=self.registry).info({"version": __version__})
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)

    def begin(self, trace: Trace) -> None:
        self._under_way[id(trace)] = trace

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
        """Count a turn that is over; takes microseconds."""
        self._under_way.pop(id(trace), None)
        mode, outcome = turn["mode"], _outcome(turn, error)
        self._turns.labels(mode, outcome).inc()
        if trace.ttft_ms is not None:
            self._first_token.labels(mode).observe(trace.ttft_ms / 1000)
        for span in trace.spans:
            if span.name == "retrieve" and span.duration_ms is not None:
                self._retrieval.observe(span.duration_ms / 1000)
        if outcome in ("answered", "refused"):
            self._turn.labels(mode).observe(trace.total_ms / 1000)
            self._count_drafts(mode, turn)

    def _count_drafts(self, mode: str, turn: Mapping[str, Any]) -> None:
        drafts = turn["drafts"]
        for draft in drafts:
            if (usage := draft["usage"]) is not None:
                self._tokens.labels(draft["leg"], "input").inc(usage["input_tokens"])
                self._tokens.labels(draft["leg"], "output").inc(usage["output_tokens"])
        if not drafts:
            return  # the documents were silent, and no model was asked
        first, last = "llm" if mode == "llm" else "slm", drafts[-1]["leg"]
        rejected = turn["verdict"] is not None and not turn["verdict"]["accepted"]
        if last != first:
            self._escalations.labels(last, "rejected" if rejected else "no_answer").inc()
        elif rejected and mode == "auto":
            self._escalations_failed.inc()

    def exposition(self, accept: str = "") -> tuple[bytes, str]:
        """Everything as text, and its content type: OpenMetrics where an Accept header names it, else Prometheus' own."""
        # Not the header itself: of a version that is no number, the library makes an error.
        named = (part.partition(";")[0].strip().lower() for part in accept.split(","))
        encode, content_type = choose_encoder(f"{OPENMETRICS}; version=1.0.0" if OPENMETRICS in named else "")
        return encode(self.registry), content_type


class _Now(Collector):
    """What is so at the moment of a scrape. Belongs to the event loop of the turns."""

    def __init__(self, library: Library, legs: Pair, under_way: Mapping[int, Trace]) -> None:
        self._library = library
        self._legs = legs
        self._under_way = under_way

    def collect(self) -> Iterable[Metric]:
        yield GaugeMetricFamily(
            "smallfirst_turns_under_way", "Turns that have begun and are not over.", value=len(self._under_way)
        )
        waiting = dict.fromkeys(LEGS, 0)
        for trace in self._under_way.values():
            for span in trace.spans:
                if span.name == "queue" and span.leg in waiting and span.duration_ms is None:
                    waiting[span.leg] += 1
        queue = GaugeMetricFamily(
            "smallfirst_queue_requests",
            "Of the turns under way, those that wait to be taken by a model: for the cores, or for a busy server.",
            labels=("leg",),
        )
        ready = GaugeMetricFamily(
            "smallfirst_model_ready",
            "1 if the model can be asked: at once, or after it was loaded again from where it rests.",
            labels=("leg",),
        )
        for leg in (self._legs.slm, self._legs.llm):
            queue.add_metric((leg.name,), waiting[leg.name])
            ready.add_metric((leg.name,), leg.state.at_hand)
        yield queue
        yield ready
        yield GaugeMetricFamily(
            "smallfirst_index_passages", "Passages of the shared folder.", value=len(self._library.index)
        )
        yield GaugeMetricFamily(
            "smallfirst_index_documents", "Documents of the shared folder that were read.", value=self._library.files
        )


def _outcome(turn: Mapping[str, Any], error: BaseException | None) -> str:
    """As `telemetry` tells it, and of what was answered, whether that was a refusal."""
    if error is not None:
        return "failed"
    if "answer" not in turn:
        return "stopped"
    return "refused" if turn["refused"] else "answered"
