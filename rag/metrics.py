"""Counts for a Prometheus server: turns, escalations, first token and total times, queue, index.

To be written. Knows numbers only, never a text.
"""

from collections.abc import Collection, Mapping
from typing import Any

from rag.corpus.library import Library
from rag.models.legs import Pair
from rag.trace import Trace


class Metrics:
    """An observer of turns (`cascade.Observer`) with a registry of its own."""

    def __init__(self, library: Library, legs: Pair) -> None:
        self.library = library
        self.legs = legs

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
        pass

    def text(self) -> bytes:
        """The exposition format."""
        return b""
