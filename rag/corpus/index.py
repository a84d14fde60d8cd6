"""Which passages answer a question: the Index protocol, embedded BM25, Hit.

Knows passages and their terms; knows nothing of files, sessions or models. `search` is awaited because an index may be
another engine across a network; the embedded one computes in place.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from rank_bm25 import BM25Okapi

from rag.corpus.analysis import terms
from rag.corpus.documents import Passage

K1 = 1.2
B = 0.75


@dataclass(frozen=True)
class Hit:
    """A passage found for a query. `score` is BM25's: at least 0, comparable inside one index only."""

    passage: Passage
    score: float

    def to_dict(self) -> dict[str, Any]:
        return {
            "source": self.passage.source,
            "page": self.passage.page,
            "heading": list(self.passage.heading),
            "start": self.passage.start,
            "end": self.passage.end,
            "score": round(self.score, 4),
            "text": self.passage.text,
        }


class Index(Protocol):
    """Something that ranks passages for a query."""

    async def search(self, query: str, top_k: int) -> list[Hit]:
        """At most `top_k` hits, best first; equal scores keep the passages' order. No hit scores 0."""
        ...

    def idf(self, term: str) -> float:
        """How much a term tells, above 0; a term that no passage holds tells most."""
        ...

    def __len__(self) -> int:
        """How many passages there are."""
        ...


class _OkapiWithLuceneIdf(BM25Okapi):  # type: ignore[misc]
    def _calc_idf(self, nd: dict[str, int]) -> None:
        # rank-bm25 floors negative idf at a share of the average, so its ranks depend on the rest of the vocabulary.
        # Lucene's form is never negative: ln(1 + (N - n + 0.5) / (n + 0.5)).
        self.idf = {term: _lucene_idf(self.corpus_size, n) for term, n in nd.items()}


class BM25Index:
    """BM25 (Robertson & Zaragoza 2009, eq. 3.15, with Lucene's idf) over passages in memory."""

    def __init__(self, passages: Sequence[Passage] = ()) -> None:
        self.passages = tuple(passages)
        # rank-bm25 divides by the number of passages.
        self._engine = _OkapiWithLuceneIdf([p.terms for p in self.passages], k1=K1, b=B) if self.passages else None

    def __len__(self) -> int:
        return len(self.passages)

    def idf(self, term: str) -> float:
        known = self._engine.idf.get(term) if self._engine else None
        return known if known is not None else _lucene_idf(len(self.passages), 0)

    async def search(self, query: str, top_k: int) -> list[Hit]:
        # A term that no passage holds adds nothing and costs rank-bm25 a pass over them all.
        query_terms = [term for term in terms(query) if self._engine and term in self._engine.idf]
        if self._engine is None or not query_terms:
            return []
        scores: np.ndarray[Any, np.dtype[np.float64]] = self._engine.get_scores(query_terms)
        best = np.argsort(-scores, kind="stable")[:top_k]
        return [Hit(self.passages[i], float(scores[i])) for i in best if scores[i] > 0]


def _lucene_idf(passages: int, holding: int) -> float:
    return math.log(1 + (passages - holding + 0.5) / (holding + 0.5))
