"""Questions whose answers are known: Case, Dataset; read from our own form, SQuAD JSON files and BEIR folders.

Knows the three forms; asks nothing and judges nothing. Of SQuAD, every paragraph is a passage and its own questions ask for
it; of BEIR, every document is one, and qrels tell which are asked for. Our own form asks of a folder of documents as it is,
read and cut as the product does it: quotes tell what a search should find. `questions.json` is such a set, over the
shipped documents.
"""

import csv
import difflib
import itertools
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rag.corpus.documents import Passage
from rag.corpus.languages import language
from rag.corpus.library import Library
from rag.errors import UserError
from rag.lab.quotes import Evidence, Place, Text
from rag.settings import Settings, app_home

QUESTIONS = Path(__file__).with_name("questions.json")
UNANSWERABLE = "unanswerable"
FOLLOW_UP = "follow-up"


@dataclass(frozen=True)
class Case:
    """One question."""

    id: str
    question: str
    relevant: frozenset[str]
    """Ids of the passages that a search should find; none where the documents hold no answer, or nobody told which."""
    answers: tuple[str, ...] = ()
    """Gold strings; empty where the passages hold no answer, or where the data set tells none."""
    answerable: bool = True
    kind: str = ""
    """What sort of question it is, in the set's own words; "" where the set tells none."""
    language: str = ""
    """Of the question, ISO 639-1."""
    after: tuple[str, ...] = ()
    """What is asked first in the same conversation."""
    evidence: tuple[Evidence, ...] = ()
    """What the answer rests on: a comparison needs more than one."""
    about: str = ""
    """The document that it is asked of, where the passages' ids don't tell."""

    @property
    def group(self) -> str:
        """The document that it is asked of: what was fitted on some of its questions must not be measured on others."""
        return self.about or min(self.relevant, default="").rpartition(":")[0]


@dataclass(frozen=True)
class Dataset:
    """Cases, and the passages that they are asked of."""

    name: str
    """With the version, where the set has one."""
    cases: tuple[Case, ...]
    documents: Callable[[], Iterator[tuple[str, list[Passage]]]]
    """Source and passages, one document after another, so that a million need not be in memory at once."""
    folder: Path | None = None
    """The documents themselves, for a set that asks of files."""


def load(path: Path | None = None, settings: Settings | None = None, *, docs: Path | None = None) -> Dataset:
    """Our own form or a SQuAD JSON file, or a BEIR folder; anything else is a UserError that says what is missing.

    Without a `path`, our own questions over the shipped documents. A set of our form is read over `docs`, the folder that
    it names, or that of the settings, in this order; the others bring their own passages. `settings` None loads them.
    """
    if path is None and docs is not None:
        raise UserError("Our own questions are about the shipped documents. Name some about yours with --dataset.")
    if path is None:
        path, docs = QUESTIONS, app_home() / "docs_corpus"
    try:
        if path.is_dir():
            return _beir(path)
        if path.is_file():
            read = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(read, dict) and "questions" in read:
                return _own(path, read, settings or Settings.load(), docs)
            return _squad(path, read)
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise UserError(
            f"{path} is no data set ({type(error).__name__}: {error}). Questions of your own are questions[] with"
            " id, question, answers and evidence; a SQuAD file has data[].paragraphs[].context and qas[]; a BEIR folder has"
            " corpus.jsonl, queries.jsonl and qrels/*.tsv."
        ) from None
    raise UserError(f"There is no data set at {path}. Name a file of questions, a SQuAD JSON file or a BEIR folder.")


class _Quote(BaseModel):
    """As our own form has it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    source: str
    quote: str


class _Evidence(_Quote):
    other: list[_Quote] = Field(default=[], alias="or")


class _Question(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    id: str = Field(min_length=1)
    question: str = Field(pattern=r"\S")
    kind: str = ""
    language: str = ""
    after: list[str] = []
    answers: list[str] = []
    evidence: list[_Evidence] = []
    about: str = ""
    note: str = ""


class _Set(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = ""
    version: int | None = None
    docs: str | None = None
    questions: list[_Question] = Field(min_length=1)


def _own(path: Path, read: dict[str, Any], settings: Settings, docs: Path | None) -> Dataset:
    try:
        asked = _Set.model_validate(read)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{_place(path, read, first['loc'])}: {first['msg']}.") from None
    twice = [id for id, count in Counter(question.id for question in asked.questions).items() if count > 1]
    if twice:
        raise UserError(f"{path}: two questions have the id {twice[0]!r}. Give each its own.")
    wheres = [f"{path}, question {question.id!r}" for question in asked.questions]
    for question, where in zip(asked.questions, wheres, strict=True):
        _check(question, where)
    folder = docs or (path.parent / asked.docs if asked.docs else settings.docs)
    read_folder = _Folder(folder, settings)
    cases = []
    for question, where in zip(asked.questions, wheres, strict=True):
        evidence = tuple(
            read_folder.evidence([told, *told.other], f"{where}, evidence {number}")
            for number, told in enumerate(question.evidence, 1)
        )
        about = question.about or (question.evidence[0].source if question.evidence else "")
        if about:
            read_folder.known(about, f"{where}, about")
        cases.append(
            Case(
                id=question.id,
                question=question.question,
                relevant=frozenset(itertools.chain.from_iterable(map(read_folder.touched, evidence))),
                answers=tuple(question.answers),
                answerable=question.kind != UNANSWERABLE,
                kind=question.kind,
                language=question.language or language(question.question),
                after=tuple(question.after),
                evidence=evidence,
                about=about,
            )
        )
    name = (asked.name or path.name) + (f", version {asked.version}" if asked.version is not None else "")
    return Dataset(name, tuple(cases), lambda: iter(read_folder.held.items()), folder)


class _Folder:
    """All documents of a folder, read and cut as the product does it; nothing of that is kept on disk."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        with tempfile.TemporaryDirectory() as kept:
            library = Library(settings.model_copy(update={"docs": folder, "cache_dir": Path(kept)}))
            try:
                library.update()
                self.held = {source: library.opening(source) for source in library.sources}
                self._unread = {report.source: report.line for report in library.reports if report.error is not None}
            finally:
                library.close()
        self._texts: dict[str, Text] = {}

    def known(self, source: str, where: str) -> None:
        """A document that is not there, or could not be read, is a UserError."""
        if source in self._unread:
            raise UserError(f"{where}: {self._unread[source]}")
        if source not in self.held:
            near = difflib.get_close_matches(source, self.held, 1) or sorted(self.held)[:1]
            hint = f"Is it {near[0]}?" if near else "The folder holds no document that can be read."
            raise UserError(f"{where}: there is no document {source!r}. {hint}")

    def evidence(self, quotes: Sequence[_Quote], where: str) -> Evidence:
        """Every place of every quote; a quote that does not stand in its document is a UserError."""
        places: list[Place] = []
        for told in quotes:
            self.known(told.source, where)
            found = self._text(told.source).locate(told.quote)
            if not found:
                elsewhere = next((source for source in self.held if self._text(source).locate(told.quote)), None)
                hint = f"It stands in {elsewhere}." if elsewhere else "Copy the words as they stand, without headings."
                raise UserError(f"{where}: {_short(told.quote)} does not stand in {told.source}. {hint}")
            places.extend(found)
        return Evidence(tuple(places))

    def touched(self, evidence: Evidence) -> Iterator[str]:
        """Ids of the passages that hold any of it."""
        for source in {place.source for place in evidence.places}:
            yield from (passage.id for passage in self.held[source] if evidence.touches(passage))

    def _text(self, source: str) -> Text:
        if source not in self._texts:
            self._texts[source] = Text(self.held[source])
        return self._texts[source]


def _place(path: Path, read: Mapping[str, Any], at: Sequence[str | int]) -> str:
    """Where in the file a field stands, for a person: its question by its id, and numbers from 1."""
    told = [str(path)]
    if at[:1] == ("questions",) and len(at) > 1:
        question = read["questions"][at[1]]
        id = question.get("id") if isinstance(question, dict) else None
        told.append(f"question {id!r}" if isinstance(id, str) and id else f"question {int(at[1]) + 1}")
        at = at[2:]
    field = [f"{part + 1}" if isinstance(part, int) else part for part in at]
    return ", ".join([*told, " ".join(field)] if field else told)


def _check(question: _Question, where: str) -> None:
    """What a question must have by its kind."""
    if question.kind == UNANSWERABLE:
        if question.answers or question.evidence:
            raise UserError(f"{where} is of the kind {UNANSWERABLE!r} and has answers or evidence. Take one away.")
    elif not question.answers:
        raise UserError(f'{where}, answers: there is none. Give one, or say "kind": "{UNANSWERABLE}".')
    for field, texts in (("answers", question.answers), ("after", question.after)):
        for text in texts:
            if not any(map(str.isalnum, text)):
                raise UserError(
                    f"{where}, {field}: {text!r} has no letter and no digit. Write it out, or take it away."
                )
    if question.kind == FOLLOW_UP and not question.after:
        raise UserError(f'{where} is of the kind {FOLLOW_UP!r}; say under "after" what is asked first.')


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:60]}…{text[-19:]}")


def parts(cases: Sequence[Case]) -> dict[str, dict[str, list[int]]]:
    """The numbers of the cases of each kind, and of each language, in the set's order: {"kind": {"lookup": [0, 2]}}.

    Empty where the set tells neither.
    """
    found: dict[str, dict[str, list[int]]] = {}
    for number, case in enumerate(cases):
        for what, name in (("kind", case.kind), ("language", case.language)):
            if name:
                found.setdefault(what, {}).setdefault(name, []).append(number)
    return found


def _squad(path: Path, read: Any) -> Dataset:
    articles = read["data"]
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
