"""Which passages answer a question: the Index protocol, BM25 over one or more engines, Hit.

Knows passages and their terms; knows nothing of files, sessions or models. `search` is awaited because an index may be
another engine across a network; the embedded ones compute in place.

BM25 is Robertson & Zaragoza 2009, eq. 3.15, with Lucene's idf, ln(1 + (N - n + 0.5) / (n + 0.5)), which is never below
zero. Two engines compute it, rank-bm25 for few passages and tantivy for many, and both keep a passage's length to one
byte, as Lucene does, so that they rank alike. Several engines searched together (a folder's and a session's) share one
set of statistics: N and n are counted over all of them, so their scores compare.
"""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tantivy
from rank_bm25 import BM25Okapi

from rag.corpus import analysis
from rag.corpus.documents import Passage

FEW = 50
"""Passages; of fewer, how rare a word is tells little."""
K1 = 1.2
B = 0.75
CONTEXT_WEIGHT = 0.5
"""What a term carried over from the conversation counts beside one of the question's own."""


@dataclass(frozen=True)
class Query:
    """What is searched for: the question, and words carried over from the conversation, which weigh less."""

    text: str
    context: str = ""

    def __str__(self) -> str:
        return f"{self.text} (+ {self.context})" if self.context else self.text

    def weights(self, languages: Collection[str]) -> dict[str, float]:
        """Terms and what each counts, above 0."""
        own = analysis.weighted(self.text, languages)
        carried = analysis.weighted(self.context, languages) if self.context else {}
        return own | {term: CONTEXT_WEIGHT * weight for term, weight in carried.items() if term not in own}


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

    @property
    def languages(self) -> Collection[str]:
        """Of its passages, as ISO 639-1 codes, the commonest first."""
        ...

    async def search(self, query: Query | str, top_k: int) -> list[Hit]:
        """At most `top_k` hits, best first; equal scores keep the passages' order. No hit scores 0."""
        ...

    def idf(self, term: str) -> float:
        """How much a term tells, above 0; a term that no passage holds tells most."""
        ...

    def __len__(self) -> int:
        """How many passages there are."""
        ...


class Engine(Protocol):
    """Passages and their term statistics; ranks them by weights that the caller has made of joint statistics."""

    @property
    def languages(self) -> Mapping[str, int]:
        """How many passages are in each."""
        ...

    @property
    def name(self) -> str:
        """Whose engine it is, for a person."""
        ...

    @property
    def average_length(self) -> float:
        """Mean number of terms of its passages."""
        ...

    def holding(self, term: str) -> int:
        """How many passages hold the term."""
        ...

    def rank(self, weights: Mapping[str, float], average_length: float, top_k: int) -> list[tuple[float, Passage]]:
        """Best first; `weights` are idf times the query's own weight, of terms that it holds."""
        ...

    def __len__(self) -> int: ...


class BM25Index:
    """One ranking over the passages of several engines."""

    def __init__(self, engines: Sequence[Engine] = ()) -> None:
        self._engines = [engine for engine in engines if len(engine)]
        self._size = sum(len(engine) for engine in self._engines)
        counts: Counter[str] = Counter()
        for engine in self._engines:
            counts.update(engine.languages)
        self.languages = tuple(language for language, _ in counts.most_common())
        total = sum(engine.average_length * len(engine) for engine in self._engines)
        fixed = [engine for engine in self._engines if isinstance(engine, TantivyEngine)]
        # tantivy has its own average only; beside its many passages, a session's few hardly change it.
        self._average_length = fixed[0].average_length if fixed else total / self._size if self._size else 1.0

    def __len__(self) -> int:
        return self._size

    def idf(self, term: str) -> float:
        return idf(self._size, self._holding(term))

    def telling(self, term: str) -> float:
        """Its idf, as if there were `FEW` passages where there are fewer: of one passage, each word would tell a fifth of
        what a word tells that is not in it, and two of three words would cover less than a third of a question."""
        return idf(max(self._size, FEW), self._holding(term))

    def _holding(self, term: str) -> int:
        return sum(engine.holding(term) for engine in self._engines)

    async def search(self, query: Query | str, top_k: int) -> list[Hit]:
        if not self._engines:
            return []
        query = Query(query) if isinstance(query, str) else query
        asked = query.weights(self.languages)
        held = {term: [engine.holding(term) for engine in self._engines] for term in asked}
        weights = {term: asked[term] * idf(self._size, sum(counts)) for term, counts in held.items()}
        found: list[tuple[float, Passage]] = []
        for place, engine in enumerate(self._engines):
            own = {term: weight for term, weight in weights.items() if held[term][place]}
            if own:
                found.extend(engine.rank(own, self._average_length, top_k))
        if len(self._engines) > 1:
            found.sort(key=lambda pair: -pair[0])
        return [Hit(passage, score) for score, passage in found[:top_k]]


def idf(passages: int, holding: int) -> float:
    """Lucene's: ln(1 + (N - n + 0.5) / (n + 0.5)), above 0."""
    # An engine counts passages that were just removed until it has tidied up.
    return math.log(1 + (max(passages, holding) - holding + 0.5) / (holding + 0.5))


@lru_cache(512)  # a turn asks for those of its hits again and again
def terms_of(passage: Passage) -> frozenset[str]:
    """The terms of a passage's headings and text."""
    return frozenset(term for term in seen(passage).split() if not term.startswith(analysis.PIECE))


def seen(passage: Passage) -> str:
    """What an engine sees of a passage: the terms of its headings and its text, joined by spaces."""
    text = f"{' '.join(passage.heading)}\n{passage.text}" if passage.heading else passage.text
    return analysis.indexed(text, passage.language)


class _Okapi(BM25Okapi):  # type: ignore[misc]
    """rank-bm25's scores for one term at a time, without its idf."""

    def _calc_idf(self, nd: dict[str, int]) -> None:
        self.holding = nd
        self.idf = dict.fromkeys(nd, 1.0)


class SmallEngine:
    """rank-bm25, in memory. Its time grows with the number of passages: see `engines.SMALL`."""

    name = "rank-bm25"

    def __init__(self, passages: Sequence[Passage]) -> None:
        self.passages = tuple(passages)
        self.languages = Counter(passage.language for passage in self.passages)
        # rank-bm25 divides by the number of passages.
        self._okapi = _Okapi([seen(p).split() for p in self.passages], k1=K1, b=B) if self.passages else None
        self.average_length = float(self._okapi.avgdl) if self._okapi else 1.0
        if self._okapi:
            self._okapi.doc_len = _kept_lengths(self._okapi.doc_len)
        # A conversation keeps to its words.
        self._scores = lru_cache(1000)(self._scores_anew)

    def _scores_anew(self, term: str, average_length: float) -> "np.ndarray[Any, np.dtype[np.float64]]":
        assert self._okapi is not None
        self._okapi.avgdl = average_length
        found: np.ndarray[Any, np.dtype[np.float64]] = self._okapi.get_scores([term])
        return found

    def __len__(self) -> int:
        return len(self.passages)

    def holding(self, term: str) -> int:
        return self._okapi.holding.get(term, 0) if self._okapi else 0

    def rank(self, weights: Mapping[str, float], average_length: float, top_k: int) -> list[tuple[float, Passage]]:
        scores: np.ndarray[Any, np.dtype[np.float64]] = np.zeros(len(self.passages))
        for term, weight in weights.items():
            scores += weight * self._scores(term, average_length)
        best = np.argsort(-scores, kind="stable")[:top_k]
        return [(float(scores[i]), self.passages[i]) for i in best if scores[i] > 0]


class Shelf(Protocol):
    """Where an engine that keeps only numbers finds the passages."""

    def passages(self, numbers: Sequence[int]) -> list[Passage | None]:
        """In the order of `numbers`; None for one that is there no more."""
        ...


class TantivyEngine:
    """tantivy, on disk (or in memory without a folder). Keeps terms and numbers; the passages stand on a shelf."""

    name = "tantivy"

    def __init__(self, shelf: Shelf, folder: Path | None = None, *, languages: Mapping[str, int]) -> None:
        schema = tantivy.SchemaBuilder()
        schema.add_text_field("terms", tokenizer_name="whitespace", index_option="freq")
        schema.add_unsigned_field("number", fast=True, indexed=True)
        schema.add_unsigned_field("length", fast=True)
        schema.add_unsigned_field("file", indexed=True)
        self._schema = schema.build()
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        self._index = tantivy.Index(self._schema, path=str(folder) if folder else None)
        self.folder = folder
        self._shelf = shelf
        self.languages = languages
        self._look()

    def __len__(self) -> int:
        return int(self._searcher.num_docs)

    def holding(self, term: str) -> int:
        return int(self._searcher.doc_freq("terms", term))

    def rank(self, weights: Mapping[str, float], average_length: float, top_k: int) -> list[tuple[float, Passage]]:
        size = self._searcher.num_docs
        clauses = []
        for term, weight in weights.items():
            clause = tantivy.Query.term_query(self._schema, "terms", term, "freq")
            # tantivy multiplies by an idf of its own; what is asked for is the joint one.
            clauses.append(
                (tantivy.Occur.Should, tantivy.Query.boost_query(clause, weight / idf(size, self.holding(term))))
            )
        found = self._searcher.search(tantivy.Query.boolean_query(clauses), top_k, count=False).hits
        numbers = self._searcher.fast_field_values("number", [address for _, address in found])
        passages = self._shelf.passages([int(number or 0) for number in numbers])
        return [(score, passage) for (score, _), passage in zip(found, passages, strict=True) if passage is not None]

    def change(self, gone: Iterable[int], come: Iterable[tuple[int, int, Passage]], *, heap_mb: int = 64) -> None:
        """Forget files by their number, and add passages as (number, file's number, passage); all of it, or nothing."""
        writer = self._index.writer(heap_mb * 1_000_000, 1)
        try:
            for file in gone:
                # By query: a bare number would be taken for a signed one, which no unsigned field holds.
                writer.delete_documents_by_query(tantivy.Query.term_query(self._schema, "file", file, "basic"))
            for number, file, passage in come:
                text = seen(passage)
                document = tantivy.Document()
                document.add_text("terms", text)
                document.add_unsigned("number", number)
                document.add_unsigned("length", text.count(" ") + 1 if text else 0)
                document.add_unsigned("file", file)
                writer.add_document(document)
            writer.commit()
        except BaseException:
            writer.rollback()
            raise
        finally:
            # The lock on the folder goes with the writer.
            writer.wait_merging_threads()
        self._look()

    def look_again(self, languages: Mapping[str, int]) -> None:
        """See what another process has changed."""
        self.languages = languages
        self._look()

    def _look(self) -> None:
        self._index.reload()
        self._searcher = self._index.searcher()
        mean = {"mean": {"avg": {"field": "length"}}}
        found = self._searcher.aggregate(tantivy.Query.all_query(), mean)["mean"]["value"] if len(self) else None
        self.average_length = float(found or 1.0)


def _decoded_lengths() -> list[int]:
    """What Lucene's byte4ToInt (SmallFloat) gives for 0 to 255; the first 24 are exact."""

    def decode(code: int) -> int:
        bits, shift = code & 7, (code >> 3) - 1
        return bits if shift < 0 else (bits | 8) << shift

    return [*range(24), *(24 + decode(code) for code in range(232))]


_LENGTHS = np.array(_decoded_lengths())


def _kept_lengths(lengths: Sequence[int]) -> "np.ndarray[Any, np.dtype[np.int64]]":
    return _LENGTHS[np.searchsorted(_LENGTHS, lengths, side="right") - 1]
