"""What the rules of the rubric score, and what they say of each point that an answer loses."""

from pathlib import Path
from typing import Any

import pytest

from rag.corpus.documents import Passage
from rag.corpus.index import BM25Index, Hit, SmallEngine
from rag.lab import answers, dataset, rubric
from rag.lab.answers import Outcome
from rag.lab.recording import Recordings
from rag.lab.rubric import Scores
from rag.settings import Settings
from rag.turn.confidence import Grounds

from . import own_questions
from .scripted import Reply, ScriptedLegs

QUESTION = "Where do zebras drink?"
GOOD = "Zebras drink at the Mara river."


def passage(text: str, id: str = "1", language: str = "en") -> Passage:
    return Passage(id, "animals.md", None, None, (), 0, len(text), text, language)


ENGLISH = passage(
    "Zebras drink at the Mara river every morning. In 1998 Anna Berg counted 1,204 of them. Lions sleep under trees."
)
CHINESE = passage("斑馬每天早上在馬拉河喝水。獅子在樹下睡覺。", "2", "zh")
INDEX = BM25Index([SmallEngine([ENGLISH, CHINESE])])


def grounds_of(question: str = QUESTION, read: Passage = ENGLISH) -> Grounds:
    hits = [Hit(read, 2.0)]
    return Grounds(question, question, hits, hits, INDEX.idf, most_idf=INDEX.idf(""))


def scores_of(answer: str, question: str = QUESTION, read: Passage = ENGLISH, **named: Any) -> Scores:
    return rubric.score(answer, grounds_of(question, read), **named)


def why(scores: Scores, of: str) -> str:
    return " ".join(one.why for one in scores.deductions if one.of == of)


@pytest.mark.parametrize(
    "answer", [GOOD, f"{GOOD} [1]", "At the Mara river.", "the Mara river [1]", "Every morning, at the Mara river."]
)
def test_a_short_and_supported_answer_has_all_points(answer: str) -> None:
    assert scores_of(answer, golds=("the Mara river",)) == Scores(5, 5, 5)


@pytest.mark.parametrize(
    ("answer", "named", "score", "reason"),
    [
        ("", {}, 1, "empty"),
        ("[1]", {}, 1, "empty"),
        ("drink at the river, drink at the river, drink at the river", {}, 1, "again and again"),
        ("Zebras drink at the Mara", {"cut_off": True}, 3, "cut off"),
        (f"{GOOD} They come every morning because", {}, 4, "breaks off"),
        (f"{GOOD} They were:\n- 1,204 zebras\n- trees", {}, 5, ""),
        (f"{GOOD}\nQuestion: Where do lions sleep?", {}, 3, "goes on"),
        (f"{GOOD}<|im_end|>", {}, 3, "goes on"),
        (f"{GOOD} I cannot say when. Lions sleep under trees, and Anna Berg counted the zebras in 1998.", {}, 4, "it cannot"),
    ],
)  # fmt: skip
def test_what_does_not_read_as_an_answer_is_not_coherent(
    answer: str, named: dict[str, Any], score: float, reason: str
) -> None:
    scores = scores_of(answer, **named)
    assert scores.coherence == score
    assert reason in why(scores, "coherence")


@pytest.mark.parametrize(
    ("answer", "question", "tongue", "score"),
    [
        ("Zebras drink at the Mara river.", "斑馬在哪裡喝水？", "", 3),
        ("斑馬在馬拉河喝水。", "斑馬在哪裡喝水？", "", 5),
        ("斑馬用 RAG_SESSION_UPLOADS=20 RAG_DOCS RAG_MODE 喝水。", "斑馬在哪裡喝水？", "zh", 5),
        ("RAG_DOCS", "斑馬在哪裡喝水？", "zh", 5),
        ("Die Zebras trinken am Fluss, und das ist jeden Morgen so.", "Zebras?", "", 5),  # that is too short to tell
        ("Die Zebras trinken am Fluss, und das ist jeden Morgen so.", "What is it that the zebras do there every day?", "", 3),
        ("Die Zebras trinken am Fluss, und das ist jeden Morgen so.", QUESTION, "en", 3),
        ("Die Zebras trinken am Fluss, und das ist jeden Morgen so.", QUESTION, "de-AT", 5),
        ("Mara", "Wo trinken die Zebras?", "de", 5),
    ],
)  # fmt: skip
def test_another_language_is_told_where_it_is_sure(answer: str, question: str, tongue: str, score: float) -> None:
    scores = scores_of(answer, question, CHINESE if score == 5 else ENGLISH, tongue=tongue)
    assert scores.coherence == score
    assert ("another language" in why(scores, "coherence")) == (score < 5)


@pytest.mark.parametrize(
    ("answer", "least", "most", "reason"),
    [
        ("Zebras drink Lemonade with Giraffes.", 1, 1, "nowhere in what was read"),
        ("Zebras drink at the Mara river, all 1,350 of them.", 2, 3.5, "1,350 is nowhere"),
        ("Zebras drink where Peter lives.", 1, 2, "Peter is nowhere"),
        ("The zebras drink.", 3, 3, "no word that the question does not have"),
        ("Under trees.", 2, 3.5, "of the question's"),
        (f"{GOOD} They detest crocodiles, hippopotamuses and tourists.", 3, 4.5, "least in: They detest"),
    ],
)
def test_what_the_passages_do_not_say_is_not_factual(answer: str, least: float, most: float, reason: str) -> None:
    scores = scores_of(answer)
    assert scores.factuality is not None
    assert least <= scores.factuality <= most
    assert reason in why(scores, "factuality")


def test_rules_cannot_see_that_a_supported_answer_is_wrong() -> None:
    """Said plainly, so that nobody takes them for more than they are."""
    wrong = scores_of("Zebras drink every morning of 1998 at the Mara river, 1,204 trees under lions.")
    assert wrong.factuality == 5


@pytest.mark.parametrize("answer", ["Yes.", "No", "是的。", "It is."])
def test_an_answer_without_a_word_to_look_up_has_no_factuality(answer: str) -> None:
    assert scores_of(answer, "Do zebras drink?").factuality is None


def test_yes_is_no_word_that_passages_must_hold() -> None:
    assert scores_of(f"Yes, {GOOD[0].lower()}{GOOD[1:]}").factuality == 5


def test_words_need_not_stand_beside_those_of_a_question_about_the_whole() -> None:
    about, answer = "What is all of this about, in a few words?", "Lions and zebras."
    assert scores_of(answer, about, connects=False).factuality == 5
    assert (scores_of(answer, about).factuality or 5) < 5


@pytest.mark.parametrize(
    ("answer", "golds", "score", "reason"),
    [
        ("The Mara river.", ("the Mara river",), 5, ""),
        # Question and gold answer have 7 words, and 8 are a sentence: 12 are short enough, twice as many cost two points.
        (" ".join(["drink"] * 12), ("the Mara river",), 5, ""),
        (" ".join(["drink"] * 24), ("the Mara river",), 3, "24 words, where 8 would do"),
        (" ".join(["drink"] * 90), ("the Mara river",), 1, "90 words"),
        # Without a gold answer there is room for a dozen words.
        (" ".join(["drink"] * 24), (), 5, ""),
        ("According to the provided context, zebras drink at the Mara river.", (), 4, "nothing with: According to"),
        ("The passage states that zebras drink at the Mara river.", (), 4, "nothing with: The passage states"),
        (f"{GOOD} In the Mara river, zebras drink.", (), 4, "repeats itself: In the Mara"),
    ],
)
def test_what_could_be_said_shorter_is_not_concise(
    answer: str, golds: tuple[str, ...], score: float, reason: str
) -> None:
    scores = scores_of(answer, golds=golds)
    assert scores.concision == score
    assert reason in why(scores, "concision")


def test_chinese_is_scored_as_english_is() -> None:
    question = "斑馬在哪裡喝水？"
    right = scores_of("在馬拉河。", question, CHINESE, golds=("馬拉河",))
    wrong = scores_of("牠們在尼羅河的三角洲喝可樂。", question, CHINESE, golds=("馬拉河",))
    assert (right.coherence, right.concision) == (5, 5)
    assert right.factuality is not None
    assert wrong.factuality is not None
    assert right.factuality >= 4 > 2.5 > wrong.factuality


@pytest.mark.parametrize(
    ("answerable", "held", "score"), [(False, False, 5), (True, True, 1), (True, False, 3), (False, True, 5)]
)
def test_a_refusal_is_as_true_as_the_set_says(answerable: bool, held: bool, score: float) -> None:
    scores = rubric.refusal(answerable=answerable, held=held)
    assert (scores.coherence, scores.factuality, scores.concision) == (None, score, None)
    assert bool(scores.deductions) == (score < 5)


async def test_outcomes_of_whole_turns_are_scored(settings: Settings, tmp_path: Path) -> None:
    said: dict[str, Reply | str] = {
        "tide": "The spring tide at Sandvik rises 4.2 metres.",
        "keeper": "I don't know.",
        "both": Reply("The tide turns every six hours and", finish_reason="length"),
    }
    docs = own_questions.documents(tmp_path)
    asked = dataset.load(own_questions.written(tmp_path), settings, docs=docs)
    cases = [case for id in said for case in asked.cases if case.id == id]
    legs = ScriptedLegs([said[case.id] for case in cases])
    for leg in (legs.slm, legs.llm):
        leg.context_tokens = 4096  # type: ignore[attr-defined]
    recordings = Recordings(tmp_path / "answers.sqlite")
    async with answers.opened(asked, settings) as library:
        asking = answers.ask(
            cases, "slm", library=library, legs=legs, settings=settings, recordings=recordings  # type: ignore[arg-type]
        )  # fmt: skip
        found = {o.case.id: rubric.of(o, library.index.idf) async for o in asking}
    recordings.close()
    tide, keeper, both = (found[id] for id in said)
    assert tide is not None
    assert (tide.coherence, tide.concision) == (5, 5)
    assert tide.factuality is not None
    assert tide.factuality >= 4
    assert keeper is not None
    assert (keeper.coherence, keeper.factuality) == (None, 1), "what was read holds the keeper's name"
    assert both is not None
    assert both.coherence == 3


def test_source_marks_are_no_part_of_what_was_said() -> None:
    assert rubric.unmarked("Anna did [1], and Peter [2, 3].") == "Anna did, and Peter."


def test_a_turn_that_failed_is_not_scored() -> None:
    case = dataset.Case("1", QUESTION, frozenset())
    assert rubric.of(Outcome(case, None, (), "It died."), INDEX.idf) is None
