"""Where the time of one turn went: Span, Trace.

A `Trace` is made for one turn and passed along, never global, because turns of several sessions interleave on one
event loop. It knows nothing of what the spans mean; the names are the cascade's. Times are milliseconds since the
trace began, from one monotonic clock.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Span:
    """One piece of work. `duration_ms` is None while the work goes on."""

    name: str
    start_ms: float
    leg: str | None = None
    duration_ms: float | None = None

    @property
    def end_ms(self) -> float | None:
        return None if self.duration_ms is None else self.start_ms + self.duration_ms

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "start_ms": round(self.start_ms, 3),
            "duration_ms": None if self.duration_ms is None else round(self.duration_ms, 3),
            "leg": self.leg,
        }


@dataclass
class Trace:
    """The spans of one turn, in the order they began, and the moment the user saw the first token."""

    began: float = field(default_factory=time.perf_counter)
    spans: list[Span] = field(default_factory=list)
    ttft_ms: float | None = None
    """From the question to the first token of any leg, in milliseconds; None while there is none."""
    on_open: Callable[[Span], None] | None = field(default=None, repr=False, compare=False)
    """Called with each span that begins."""

    def now_ms(self) -> float:
        return (time.perf_counter() - self.began) * 1000

    def open(self, name: str, leg: str | None = None) -> Span:
        span = Span(name, self.now_ms(), leg)
        self.spans.append(span)
        if self.on_open is not None:
            self.on_open(span)
        return span

    def close(self, span: Span) -> None:
        """Closing twice keeps the first end."""
        if span.duration_ms is None:
            span.duration_ms = self.now_ms() - span.start_ms

    @contextmanager
    def span(self, name: str, leg: str | None = None) -> Iterator[Span]:
        """Time the body; the span is closed even when the body raises or is cancelled."""
        span = self.open(name, leg)
        try:
            yield span
        finally:
            self.close(span)

    def first_token(self) -> None:
        """Mark the first token the user could see; later calls change nothing."""
        if self.ttft_ms is None:
            self.ttft_ms = self.now_ms()

    def find(self, name: str, leg: str | None = None) -> Span | None:
        """The first span of that name (and leg, if given)."""
        return next((s for s in self.spans if s.name == name and (leg is None or s.leg == leg)), None)

    @property
    def total_ms(self) -> float:
        """The end of the last closed span; 0 when there is none."""
        return max((s.end_ms for s in self.spans if s.end_ms is not None), default=0.0)

    def to_dict(self) -> dict[str, Any]:
        return {
            "spans": [s.to_dict() for s in self.spans],
            "total_ms": round(self.total_ms, 3),
            "ttft_ms": None if self.ttft_ms is None else round(self.ttft_ms, 3),
        }
