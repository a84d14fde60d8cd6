"""Retrieval metrics on a data set, with the product's own analysis, engines and store; Report.

Knows how rankings are scored (Manning, Raghavan & Schütze 2008, ch. 8): recall@k is the share of a question's relevant
passages among the first k, MRR@10 the mean of 1 / rank of the first relevant one, nDCG@10 has binary gain and log2
discount.

Where quotes tell what should be found, the field's context precision and recall take their place, in the forms that ask
no model. Context precision@k is the mean, over those of the first k passages that hold evidence, of the precision down
to each; 0 where none does. Context recall@k is the share of a question's evidence that the first k passages hold.

Means are over the questions that have something to find. Knows no models.
"""

import asyncio
import math
import re
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import Stemmer
import tantivy
from rank_bm25 import BM25Okapi
from rich.table import Table

from rag import __version__, terminal
from rag.corpus.documents import Ingest, Passage
from rag.corpus.engines import engine, stored_engine
from rag.corpus.index import K1, B, BM25Index
from rag.corpus.library import new_reader
from rag.corpus.store import Store
from rag.errors import UserError
from rag.lab import answers
from rag.lab.answers import Outcome
from rag.lab.dataset import Case, Dataset, parts, passages
from rag.lab.machine import machine
from rag.settings import Settings

RECALLS = (1, 3, 5, 10)
TOP_K = 10
# Above this, plain BM25 in Python takes hours.
MOST_PLAIN = 5000
UPLOAD_PASSAGES = 40


@dataclass(frozen=True)
class Report:
    """Figures, and what they were measured on."""

    dataset: str
    questions: int
    counted: int
    """Of the questions, those that have something to find."""
    passages: int
    languages: tuple[str, ...]
    """As they were recognised."""
    engine: str
    metrics: dict[str, float]
    plain: dict[str, float] | None
    """The same metrics of plain BM25: words of letters and digits, lower case, English stems; None for large sets."""
    parts: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    """By kind and by language, where the set tells them: {"kind": {"lookup": {"questions": 30, ...}}}."""

    def to_dict(self) -> dict[str, Any]:
        return {
            "metrics": {name: round(value, 4) for name, value in self.metrics.items()},
            "plain_bm25": {name: round(value, 4) for name, value in self.plain.items()} if self.plain else None,
            "parts": {
                what: {part: {name: round(value, 4) for name, value in found.items()} for part, found in of.items()}
                for what, of in self.parts.items()
            },
            "dataset": self.dataset,
            "questions": self.questions,
            "counted": self.counted,
            "passages": self.passages,
            "languages": list(self.languages),
            "engine": self.engine,
            "version": __version__,
            "versions": {name: metadata.version(name) for name in ("rank-bm25", "tantivy", "PyStemmer", "numpy")},
            "machine": machine(),
        }


def retrieval(dataset: Dataset, settings: Settings) -> Report:
    """Index the data set as the product would, ask every question, score the rankings and time all of it.

    A set that asks of files is scored by what a turn finds in them, follow-ups and second searches included; it is the
    bare search that is timed.
    """
    told = [case for case in dataset.cases if case.relevant]
    if not told:
        raise UserError(
            f"{dataset.name} tells no evidence, so nothing can be found or missed. Give its questions some; for answers"
            " alone: smallfirst evaluate answers."
        )
    process = psutil.Process()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        before_mb = process.memory_info().rss / 1e6
        store = Store(home / "passages.sqlite", made_with="evaluation")
        languages: Counter[str] = Counter()
        stored_s = 0.0
        for source, found in dataset.documents():
            began = time.perf_counter()
            report = Ingest(source, passages=len(found), language=found[0].language if found else "")
            store.replace(source, 0, 0, "", report, found)
            stored_s += time.perf_counter() - began
            languages.update(passage.language for passage in found)
            terminal.notices.print(f"{len(store):,} passages", end="\r")
        began = time.perf_counter()
        built = stored_engine(store, home, languages=languages)
        build_s = time.perf_counter() - began
        index = BM25Index([built])
        rankings, times = asyncio.run(_ask(index, told))
        timed = {
            "queries_per_s": 1000 / statistics.fmean(times),
            "query_ms_mean": statistics.fmean(times),
            "query_ms_p50": float(np.percentile(times, 50)),
            "query_ms_p95": float(np.percentile(times, 95)),
            "build_s": build_s,
            "build_passages_per_s": len(index) / build_s,
            "store_s": stored_s,
            "memory_mb": process.memory_info().rss / 1e6,
            "memory_before_mb": before_mb,
        }
        timed |= asyncio.run(_upload(index, built, store, settings))
        size, name = len(index), built.name
        if name == "tantivy":
            bare_s = _bare_build(store, home / "bare")
            timed |= {"bare_build_s": bare_s, "build_vs_bare": build_s / bare_s}
        store.close()
    if dataset.folder is not None:
        rankings = asyncio.run(_by_turns(dataset, told, settings))
    plain = None
    if size <= MOST_PLAIN:
        plain = _scored(told, _plain(list(passages(dataset)), told), settings)
    return Report(
        dataset=dataset.name,
        questions=len(dataset.cases),
        counted=len(told),
        passages=size,
        languages=tuple(sorted(languages)),
        engine=name,
        metrics=_scored(told, rankings, settings) | timed,
        plain=plain,
        parts={
            what: {
                part: {"questions": len(at), **_scored([told[n] for n in at], [rankings[n] for n in at], settings)}
                for part, at in of.items()
            }
            for what, of in parts(told).items()
        },
    )


async def _ask(index: BM25Index, cases: Sequence[Case]) -> tuple[list[list[Passage]], list[float]]:
    """Passages found for each question, best first, and milliseconds."""
    rankings, times = [], []
    for case in cases:
        began = time.perf_counter()
        hits = await index.search(case.question, TOP_K)
        times.append((time.perf_counter() - began) * 1000)
        rankings.append([hit.passage for hit in hits])
    return rankings, times


async def _by_turns(dataset: Dataset, cases: Sequence[Case], settings: Settings) -> list[list[Passage]]:
    async with answers.opened(dataset, settings) as library:
        found = await answers.searched(cases, library=library, settings=settings)
    return [[hit.passage for hit in hits] for hits in found]


def _scored(cases: Sequence[Case], rankings: Sequence[Sequence[Passage]], settings: Settings) -> dict[str, float]:
    """By what the cases tell: evidence, or ids."""
    if any(case.evidence for case in cases):
        return context(cases, rankings, depths(settings))
    return scores([[passage.id for passage in ranking] for ranking in rankings], [case.relevant for case in cases])


def depths(settings: Settings) -> list[int]:
    """What the small model reads of a ranking, what the larger one does, and what a search keeps."""
    return sorted({settings.slm_passages, settings.llm_passages, settings.top_k})


def context(cases: Sequence[Case], rankings: Sequence[Sequence[Passage]], depths: Sequence[int]) -> dict[str, float]:
    """context_precision@k and context_recall@k for each depth k, each in [0, 1]; {} where no case tells evidence.

    Defined as NonLLMContextPrecisionWithReference and NonLLMContextRecall of ragas are, but for one thing: those compare
    texts by their likeness, and here it is known where the evidence stands.
    """
    found: dict[str, list[float]] = {}
    for case, ranking in zip(cases, rankings, strict=True):
        if not case.evidence:
            continue
        holds = [any(evidence.touches(passage) for evidence in case.evidence) for passage in ranking]
        for k in depths:
            precisions = [sum(holds[:rank]) / rank for rank, held in enumerate(holds[:k], 1) if held]
            found.setdefault(f"context_precision@{k}", []).append(statistics.fmean(precisions) if precisions else 0.0)
            found.setdefault(f"context_recall@{k}", []).append(recalled(case, ranking[:k]))
    return {name: statistics.fmean(values) for name, values in found.items()}


def recalled(case: Case, read: Sequence[Passage]) -> float:
    """The share of the case's evidence that these passages hold."""
    return sum(evidence.held_by(read) for evidence in case.evidence) / len(case.evidence)


def context_of(outcomes: Sequence[Outcome], settings: Settings) -> dict[str, float]:
    """The same of answered turns, and context_recall_read: of what the model that wrote the answer was shown.

    Turns that failed are left out; {} where no case tells evidence.
    """
    turns = [(outcome.case, outcome.turn) for outcome in outcomes if outcome.turn is not None and outcome.case.evidence]
    if not turns:
        return {}
    rankings = [[hit.passage for hit in turn.hits] for _, turn in turns]
    read = [turn.prompts[turn.drafts[-1].leg].evidence if turn.drafts else () for _, turn in turns]
    shown = [recalled(case, [hit.passage for hit in hits]) for (case, _), hits in zip(turns, read, strict=True)]
    return {
        **context([case for case, _ in turns], rankings, depths(settings)),
        "context_recall_read": statistics.fmean(shown),
    }


def scores(rankings: Sequence[Sequence[str]], relevant: Sequence[Collection[str]]) -> dict[str, float]:
    """recall@1, @3, @5, @10, mrr@10 and ndcg@10, each in [0, 1]."""
    found: dict[str, list[float]] = {}
    for ranking, wanted in zip(rankings, relevant, strict=True):
        places = [place for place, id in enumerate(ranking[:TOP_K], start=1) if id in wanted]
        for k in RECALLS:
            found.setdefault(f"recall@{k}", []).append(sum(place <= k for place in places) / len(wanted))
        found.setdefault("mrr@10", []).append(1 / places[0] if places else 0.0)
        ideal = sum(1 / math.log2(place + 1) for place in range(1, min(len(wanted), TOP_K) + 1))
        found.setdefault("ndcg@10", []).append(sum(1 / math.log2(place + 1) for place in places) / ideal)
    return {name: statistics.fmean(values) for name, values in found.items()}


async def _upload(index: BM25Index, shared: Any, store: Store, settings: Settings) -> dict[str, float]:
    """Milliseconds from an upload's bytes to the first search that finds it, beside all the others."""
    word = "zyzzogeton"
    numbers = range(1, UPLOAD_PASSAGES + 1)
    held = [passage.text for passage in store.passages(numbers) if passage is not None]
    texts = [f"{text[: settings.passage_chars - 40]} {word}." for text in held]
    data = "\n\n".join(f"# {number}\n\n{text}" for number, text in enumerate(texts)).encode()
    figures = {}
    with new_reader(settings) as reader:
        for name in ("upload_ms_first", "upload_ms"):  # the first starts the process that reads
            began = time.perf_counter()
            _, read = reader.read(data, "upload.md")
            joined = BM25Index([shared, engine(read)])
            hits = await joined.search(word, 3)
            figures[name] = (time.perf_counter() - began) * 1000
            assert [hit.passage.source for hit in hits[:1]] == ["upload.md"], "what was uploaded is found"
        figures["upload_passages"] = len(read)
    return figures


class _PlainWords:
    """Words of letters and digits, lower case, English stems: what BM25 is commonly fed with."""

    def __init__(self) -> None:
        self._stem = Stemmer.Stemmer("english").stemWords

    def __call__(self, text: str) -> list[str]:
        return list(self._stem(re.findall(r"\w+", text.lower())))


def _plain(found: Sequence[Passage], cases: Sequence[Case]) -> list[list[Passage]]:
    words = _PlainWords()
    okapi = BM25Okapi([words(passage.text) for passage in found], k1=K1, b=B)
    rankings = []
    for case in cases:
        best = np.argsort(-okapi.get_scores(words(case.question)), kind="stable")[:TOP_K]
        rankings.append([found[place] for place in best])
    return rankings


def _bare_build(store: Store, folder: Path) -> float:
    """Seconds that the bare engine takes for the same passages and the plain words, in one thread as ours."""
    words = _PlainWords()
    schema = tantivy.SchemaBuilder()
    schema.add_text_field("text", tokenizer_name="whitespace", index_option="freq")
    schema.add_unsigned_field("number", fast=True)
    folder.mkdir()
    began = time.perf_counter()
    writer = tantivy.Index(schema.build(), path=str(folder)).writer(128_000_000, 1)
    for number, _, passage in store.numbered():
        document = tantivy.Document()
        document.add_text("text", " ".join(words(passage.text)))
        document.add_unsigned("number", number)
        writer.add_document(document)
    writer.commit()
    writer.wait_merging_threads()
    return time.perf_counter() - began


def show(report: Report) -> None:
    """The figures as a table."""
    counted = "" if report.counted == report.questions else f" ({report.counted:,} with something to find)"
    title = f"{report.dataset}: {report.questions:,} questions{counted}, {report.passages:,} passages, {report.engine}"
    table = Table("what", "Small First", *(["plain BM25"] if report.plain else []), title=title)
    for name, value in report.metrics.items():
        plain = [f"{report.plain[name]:.4f}" if name in report.plain else ""] if report.plain else []
        table.add_row(name, f"{value:,.4f}" if value < 10 else f"{value:,.1f}", *plain)
    terminal.out.print(table)
    for what, of in report.parts.items():
        table = Table(what, *of)
        for name in dict.fromkeys(name for found in of.values() for name in found):
            shown = "{:,.0f}" if name == "questions" else "{:.3f}"
            table.add_row(name, *(shown.format(found[name]) for found in of.values()))
        terminal.out.print(table)
