"""Questions in our own form: read, checked against the documents, and those that are shipped."""

import hashlib
import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from rag.errors import UserError
from rag.lab import dataset
from rag.lab.answers import holds_gold, normalised
from rag.lab.dataset import QUESTIONS, Case, Dataset, load, parts
from rag.settings import Settings

from .conftest import CORPUS
from .own_questions import QUESTIONS as MINE
from .own_questions import documents, written
from .product import ROOT

DIGESTS = {1: "aff5d1abee70cf10"}
"""By version, of the shipped questions as they are: whoever changes one changes the version, so that figures compare."""


def read() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(QUESTIONS.read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The shipped questions; RAG_DOCS names another folder, which does not matter."""
    folder = tmp_path_factory.mktemp("elsewhere")
    return load(settings=Settings(_env_file=None, docs=folder, cache_dir=folder / "cache"))  # type: ignore[call-arg]


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    documents(tmp_path)
    return written(tmp_path)


# Those that are shipped


def test_the_shipped_questions_ask_of_every_document_in_every_way(ours: Dataset) -> None:
    kinds = Counter(case.kind for case in ours.cases)
    assert set(kinds) == {"lookup", "number", "comparison", "follow-up", "unanswerable"}
    assert min(kinds.values()) >= 10
    chinese = Counter(case.kind for case in ours.cases if case.language == "zh")
    assert set(chinese) == set(kinds)
    assert chinese.total() >= 8
    asked = Counter(case.group for case in ours.cases if case.answerable)
    assert set(asked) == {path.name for path in CORPUS.iterdir()}
    assert min(asked.values()) >= 3


def test_every_shipped_answer_stands_in_its_evidence() -> None:
    for question in read()["questions"]:
        if question["kind"] == "unanswerable":
            continue
        told = [quote for one in question["evidence"] for quote in (one, *one.get("or", ()))]
        assert any(holds_gold(one["quote"], question["answers"]) for one in told), question["id"]
        for gold in question["answers"]:
            assert normalised(gold), f"{question['id']}: {gold!r} has nothing to compare"


def test_every_shipped_question_has_something_to_find_unless_there_is_nothing(ours: Dataset) -> None:
    for case in ours.cases:
        assert bool(case.relevant) == bool(case.answers) == case.answerable, case.id
        assert case.about, case.id
        assert len(case.evidence) >= (2 if case.kind == "comparison" else case.answerable), case.id


def test_the_shipped_questions_are_no_copies_of_what_they_ask_for(ours: Dataset) -> None:
    def runs(text: str, of: int) -> set[tuple[str, ...]]:
        words = normalised(text).split()
        return {tuple(words[at : at + of]) for at in range(len(words) - of + 1)}

    held = set[tuple[str, ...]]().union(*(runs(passage.text, 7) for passage in dataset.passages(ours)))
    for case in ours.cases:
        assert not runs(case.question, 7) & held, case.id


def test_a_question_does_not_tell_its_own_answer(ours: Dataset) -> None:
    for case in ours.cases:
        for asked in (*case.after, case.question):
            # Which of two is asked for names both.
            assert case.kind == "comparison" or not holds_gold(asked, case.answers), case.id


def test_a_changed_set_has_another_version() -> None:
    found = read()
    version = found.pop("version")
    text = json.dumps(found, ensure_ascii=False, sort_keys=True)
    assert DIGESTS.get(version) == hashlib.sha256(text.encode()).hexdigest()[:16], (
        "raise the version, then add its digest"
    )
    assert all(old < new for old, new in pairwise(DIGESTS))


# Those of a user


def test_questions_about_ones_own_folder_are_read_with_what_a_search_should_find(
    mine: Path, settings: Settings
) -> None:
    data = load(mine, settings)
    assert (data.name, data.folder) == ("mine, version 3", mine.parent / "docs")
    texts = {passage.id: passage.text for passage in dataset.passages(data)}
    cases = {case.id: case for case in data.cases}
    assert list(cases) == ["tide", "lamp", "both", "keeper", "none"]
    found = {id: sorted(texts[place][:12] for place in case.relevant) for id, case in cases.items()}
    assert found == {
        "tide": ["The tide at "],
        "lamp": ["The lighthou"],
        "both": ["Green tea is", "The tide at "],
        "keeper": ["Green tea is", "The lighthou"],
        "none": [],
    }
    assert [len(case.evidence) for case in cases.values()] == [1, 1, 2, 1, 0]
    assert cases["lamp"].after == ("Does the lighthouse keeper light a lamp?",)
    assert {case.language for case in cases.values()} == {"en"}, "recognised where it is not told"
    assert {case.group for case in cases.values()} == {"harbour.md"}
    assert [case.answerable for case in cases.values()] == [True, True, True, True, False]
    assert not settings.cache_dir.exists(), "nothing is kept of what was read"


def test_passages_are_cut_as_the_settings_say_and_a_quote_may_lie_over_an_edge(mine: Path, settings: Settings) -> None:
    (mine.parent / "docs" / "harbour.md").write_text(
        "\n".join(f"Boat {n} carries {n * 7} crates of fish." for n in range(40))
    )
    quote = " ".join(f"Boat {n} carries {n * 7} crates of fish." for n in range(2, 9))
    question = {**MINE[0], "evidence": [{"source": "harbour.md", "quote": quote}]}
    (whole,), (cut,) = (
        load(written(mine.parent, [question]), settings.model_copy(update={"passage_chars": chars})).cases
        for chars in (700, 100)
    )
    assert len(whole.relevant) == 1
    assert len(cut.relevant) > 2


def test_the_folder_is_the_one_of_the_call_or_the_sets_own_or_that_of_the_settings(
    mine: Path, settings: Settings, tmp_path: Path
) -> None:
    others = []
    for name in ("call", "settings"):
        (tmp_path / name).mkdir()
        others.append(documents(tmp_path / name))
    settings = settings.model_copy(update={"docs": others[1]})
    assert load(mine, settings, docs=others[0]).folder == others[0]
    assert load(mine, settings).folder == tmp_path / "docs"
    assert load(written(tmp_path, docs=None), settings).folder == others[1]


def changed(number: int, **fields: Any) -> list[dict[str, Any]]:
    """The questions with some fields of one changed; None takes one away."""
    questions = [dict(question) for question in MINE]
    questions[number] = {k: v for k, v in {**questions[number], **fields}.items() if v is not None}
    return questions


@pytest.mark.parametrize(
    ("questions", "message"),
    [
        ([], r"mine\.json, questions: .*at least 1"),
        ([3], r"question 1: "),
        (changed(1, id=None), r"question 2, id: Field required"),
        (changed(1, id="tide"), r"two questions have the id 'tide'"),
        (changed(0, question=" "), r"question 'tide', question: "),
        (changed(0, answer="4.2"), r"question 'tide', answer: Extra inputs"),
        (changed(0, answers="4.2"), r"question 'tide', answers: .*list"),
        (changed(0, answers=None), r"question 'tide', answers: there is none\. .*unanswerable"),
        (changed(0, answers=["4.2", "?"]), r"question 'tide', answers: '\?' has no letter"),
        (changed(1, after=None), r"question 'lamp' is of the kind 'follow-up'"),
        (changed(1, after=[""]), r"question 'lamp', after: '' has no letter"),
        (changed(4, answers=["9"]), r"question 'none' is of the kind 'unanswerable' and has answers"),
        (changed(0, evidence=[{"source": "tea.md"}]), r"question 'tide', evidence 1 quote: Field required"),
        (
            changed(0, evidence=[{"source": "harbor.md", "quote": "tide"}]),
            r"question 'tide', evidence 1: there is no document 'harbor\.md'\. Is it harbour\.md\?",
        ),
        (changed(4, about="x"), r"question 'none', about: there is no document 'x'"),
        (
            changed(2, evidence=[MINE[2]["evidence"][0], {"source": "tea.md", "quote": "every six hours"}]),
            r"question 'both', evidence 2: 'every six hours' does not stand in tea\.md\. It stands in harbour\.md\.",
        ),
        (
            changed(3, evidence=[{**MINE[3]["evidence"][0], "or": [{"source": "tea.md", "quote": "Anna"}]}]),
            r"question 'keeper', evidence 1: 'Anna' does not stand in tea\.md\. Copy the words",
        ),
        (
            changed(0, evidence=[{"source": "torn.pdf", "quote": "tide"}]),
            r"question 'tide', evidence 1: not read: torn\.pdf ",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_question_is_told_with_its_name(
    questions: Any, message: str, tmp_path: Path, settings: Settings
) -> None:
    (documents(tmp_path) / "torn.pdf").write_bytes(b"%PDF-1.7 and no more")
    with pytest.raises(UserError, match=message) as told:
        load(written(tmp_path, questions), settings)
    assert "\n" not in str(told.value)


def test_the_readmes_own_example_is_such_a_set(settings: Settings, tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    example = text[text.index("```json") + len("```json") : text.index("```", text.index("```json") + 3)]
    (tmp_path / "docs").mkdir()
    (tmp_path / "mine.json").write_text(example, encoding="utf-8")
    (tmp_path / "docs" / "contract.md").write_text(
        "# Contract\n\nIt may be ended with three months' notice by the tenant, with six months for the landlord.\n"
    )
    found = load(tmp_path / "mine.json", settings, docs=tmp_path / "docs")
    assert [case.answerable for case in found.cases] == [True, True, False]
    assert [len(case.after) for case in found.cases] == [0, 1, 0]
    assert [len(case.relevant) for case in found.cases] == [1, 1, 0]


def test_a_set_without_evidence_still_has_answers(mine: Path, settings: Settings) -> None:
    (case,) = load(written(mine.parent, changed(0, evidence=None, kind=None)[:1]), settings).cases
    assert (case.answers, case.relevant, case.kind, case.group) == (("4.2",), frozenset(), "", "")


def test_questions_are_parted_by_kind_and_language() -> None:
    cases = [
        Case(str(number), "?", frozenset(), kind=kind, language=language)
        for number, (kind, language) in enumerate([("number", "en"), ("lookup", "zh"), ("number", "zh"), ("", "")])
    ]
    assert parts(cases) == {"kind": {"number": [0, 2], "lookup": [1]}, "language": {"en": [0], "zh": [1, 2]}}
    assert parts(cases[3:]) == {}
