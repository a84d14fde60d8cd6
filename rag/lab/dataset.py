"""Questions whose answers are known: Case, Dataset; read from SQuAD JSON files and BEIR folders.

Knows the two formats; asks nothing and judges nothing. Of SQuAD, every paragraph is a passage and its own questions ask for
it; of BEIR, every document is one, and qrels tell which are asked for.
"""

import csv
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rag.corpus.documents import Passage
from rag.corpus.languages import language
from rag.errors import UserError


@dataclass(frozen=True)
class Case:
    """One question."""

    id: str
    question: str
    relevant: frozenset[str]
    """Ids of the passages that a search should find."""
    answers: tuple[str, ...] = ()
    """Gold strings; empty where the passages hold no answer, or where the data set tells none."""
    answerable: bool = True

    @property
    def group(self) -> str:
        """The document that it is asked of: what was fitted on some of its questions must not be measured on others."""
        return min(self.relevant, default="").rpartition(":")[0]


@dataclass(frozen=True)
class Dataset:
    """Cases, and the passages that they are asked of."""

    name: str
    cases: tuple[Case, ...]
    documents: Callable[[], Iterator[tuple[str, list[Passage]]]]
    """Source and passages, one document after another, so that a million need not be in memory at once."""


def load(path: Path) -> Dataset:
    """A SQuAD JSON file, or a BEIR folder; anything else is a UserError that says what is missing."""
    try:
        if path.is_dir():
            return _beir(path)
        if path.is_file():
            return _squad(path)
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise UserError(
            f"{path} is neither SQuAD JSON nor a BEIR folder ({type(error).__name__}: {error}). A SQuAD file has"
            " data[].paragraphs[].context and qas[]; a BEIR folder has corpus.jsonl, queries.jsonl and qrels/*.tsv."
        ) from None
    raise UserError(f"There is no data set at {path}. Name a SQuAD JSON file or a BEIR folder.")


def _squad(path: Path) -> Dataset:
    articles = json.loads(path.read_text(encoding="utf-8"))["data"]
    cases = []
    held: list[tuple[str, list[Passage]]] = []
    for number, article in enumerate(articles):
        source = str(article.get("title", number))
        contexts = [paragraph["context"] for paragraph in article["paragraphs"]]
        tongue = language("\n".join(contexts))
        passages = []
        for place, paragraph in enumerate(article["paragraphs"]):
            passages.append(_passage(f"{source}:{place}", source, paragraph["context"], tongue))
            for question in paragraph["qas"]:
                answers = tuple(dict.fromkeys(answer["text"] for answer in question["answers"]))
                answerable = not question.get("is_impossible", False)
                relevant = frozenset((passages[-1].id,))
                cases.append(Case(str(question["id"]), question["question"], relevant, answers, answerable))
        held.append((source, passages))
    if not cases:
        raise ValueError("no questions")
    return Dataset(path.name, tuple(cases), lambda: iter(held))


# So many of BEIR's documents make one file of the store; each is a passage of it.
_BLOCK = 10_000


def _beir(path: Path) -> Dataset:
    judged: dict[str, set[str]] = {}
    splits = sorted((path / "qrels").glob("*.tsv"), key=lambda split: (split.stem != "test", split.stem))
    if not splits:
        raise ValueError("no qrels/*.tsv")
    with open(splits[0], encoding="utf-8", newline="") as file:
        for row in csv.reader(file, delimiter="\t"):
            if len(row) == 3 and row[2].lstrip("-").isdigit() and int(row[2]) > 0:
                judged.setdefault(row[0], set()).add(row[1])
    questions = {str(line["_id"]): line["text"] for line in _lines(path / "queries.jsonl")}
    cases = tuple(Case(id, questions[id], frozenset(found)) for id, found in judged.items())
    if not cases:
        raise ValueError("no judged queries")
    with open(path / "corpus.jsonl", encoding="utf-8") as file:
        json.loads(file.readline())["_id"]

    def documents() -> Iterator[tuple[str, list[Passage]]]:
        lines = _lines(path / "corpus.jsonl")
        for number in itertools.count():
            block = list(itertools.islice(lines, _BLOCK))
            if not block:
                return
            source = f"corpus.jsonl, from {number * _BLOCK:,}"
            passages = []
            for line in block:
                text = f"{line.get('title', '')}\n{line['text']}".strip()
                passages.append(_passage(str(line["_id"]), source, text, language(text)))
            yield source, passages

    return Dataset(f"{path.name} ({splits[0].stem})", cases, documents)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with open(path, encoding="utf-8") as file:
        for line in file:
            if line.strip():
                yield json.loads(line)


def _passage(id: str, source: str, text: str, language: str) -> Passage:
    return Passage(id, source, None, None, (), 0, len(text), text, language)


def passages(dataset: Dataset) -> Iterable[Passage]:
    """All passages, in order."""
    return itertools.chain.from_iterable(found for _, found in dataset.documents())
