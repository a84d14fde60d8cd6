"""BM25 over passages: its formula, its two engines, several engines searched as one."""

import math
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from rag.corpus.analysis import terms
from rag.corpus.documents import Passage
from rag.corpus.engines import SMALL, Pile, engine
from rag.corpus.index import K1, B, BM25Index, Query, SmallEngine, TantivyEngine
from rag.corpus.library import Library
from rag.lab import dataset

DATA = Path(__file__).parent.parent.parent / "shared" / "data"


def passage(text: str, number: int = 0, language: str = "en") -> Passage:
    return Passage(str(number), "a.md", None, None, (), 0, len(text), text, language)


def small(*texts: str) -> SmallEngine:
    return SmallEngine([passage(text, number) for number, text in enumerate(texts)])


def large(passages: Sequence[Passage]) -> TantivyEngine:
    made = TantivyEngine(Pile(passages), languages=Counter(p.language for p in passages))
    made.change((), ((number, 0, p) for number, p in enumerate(passages)))
    return made


async def test_the_passage_with_the_words_comes_first_and_none_scores_zero() -> None:
    index = BM25Index([small("red apples", "green pears", "red red cherries", "plums")])
    hits = await index.search("RED cherries?", 10)
    assert [hit.passage.text for hit in hits] == ["red red cherries", "red apples"]
    assert all(hit.score > 0 for hit in hits)


async def test_the_score_is_that_of_the_formula() -> None:
    index = BM25Index([small("tea cup tea", "tea pot", "big cup")])
    # Lucene's idf for a term in 2 of 3 passages; lengths 3, 2, 2.
    idf = math.log(1 + (3 - 2 + 0.5) / (2 + 0.5))
    expected = idf * 2 * (K1 + 1) / (2 + K1 * (1 - B + B * 3 / (7 / 3)))
    assert (await index.search("tea", 1))[0].score == pytest.approx(expected)


async def test_a_term_in_most_passages_still_counts_for_them() -> None:
    # With the classic idf a term in more than half of the passages would score below zero.
    index = BM25Index([small("tea cup", "tea pot", "tea", "coffee")])
    assert len(await index.search("tea", 10)) == 3
    assert index.idf("tea") > 0
    assert index.idf("tea") < index.idf("pot") < index.idf("unseen")


async def test_an_empty_index_and_an_unknown_query_find_nothing() -> None:
    assert await BM25Index().search("anything", 3) == []
    for index in (BM25Index([small("tea")]), BM25Index([large([passage("tea")])])):
        assert await index.search("what is it?", 3) == []
        assert await index.search("coffee", 3) == []


async def test_equal_scores_keep_the_order_of_the_passages() -> None:
    passages = [passage("same words", number) for number in range(5)]
    for made in (SmallEngine(passages), large(passages)):
        assert [hit.passage.id for hit in await BM25Index([made]).search("same", 3)] == ["0", "1", "2"]


async def test_both_engines_rank_alike(library: Library) -> None:
    # Real text: every sentence of the shipped documents is a question, in two languages.
    passages = [p for source in library.sources for p in library.opening(source)]
    one, other = BM25Index([SmallEngine(passages)]), BM25Index([large(passages)])
    for asked in passages:
        question = asked.text[:120]
        first, second = await one.search(question, 5), await other.search(question, 5)
        assert [hit.score for hit in first] == pytest.approx([hit.score for hit in second], rel=1e-5)
        assert first[0].passage == second[0].passage


@pytest.mark.skipif(not DATA.is_dir(), reason="the question-answering data is not beside the project")
@pytest.mark.parametrize("name", ["xquad.en.json", "xquad.zh.json", "xquad.de.json", "xquad.ru.json"])
async def test_both_engines_find_the_same_first_on_real_questions(name: str) -> None:
    data = dataset.load(DATA / name)
    passages = list(dataset.passages(data))
    one, other = BM25Index([SmallEngine(passages)]), BM25Index([large(passages)])
    for case in data.cases[::5]:
        first, second = await one.search(case.question, 1), await other.search(case.question, 1)
        assert [hit.passage for hit in first] == [hit.passage for hit in second], case.question


def test_the_engine_is_chosen_by_size() -> None:
    passages = [passage(f"word{number}", number) for number in range(SMALL + 1)]
    assert engine(passages[:SMALL]).name == "rank-bm25"
    assert engine(passages).name == "tantivy"


# tantivy weighs lengths by the average of its own passages, here 40 of 60.
@pytest.mark.parametrize(("make", "tolerance"), [(SmallEngine, 1e-6), (large, 0.02)])
async def test_engines_searched_together_score_as_one_would(make: type[SmallEngine], tolerance: float) -> None:
    pick = random.Random(7)
    texts = [" ".join(pick.choices("tea pot cup milk sugar spoon lid tray".split(), k=9)) for _ in range(60)]
    passages = [passage(text, number) for number, text in enumerate(texts)]
    whole = BM25Index([SmallEngine(passages)])
    parts = BM25Index([make(passages[:40]), SmallEngine(passages[40:])])
    for question in ("tea pot", "sugar", "lid and spoon on a tray"):
        expected = {hit.passage.id: hit.score for hit in await whole.search(question, 60)}
        found = {hit.passage.id: hit.score for hit in await parts.search(question, 60)}
        assert found == pytest.approx(expected, rel=tolerance)
        assert parts.idf("tea") == pytest.approx(whole.idf("tea"))


async def test_what_is_carried_over_weighs_less_than_what_is_asked() -> None:
    index = BM25Index([small("solar panel cost", "wind turbine cost", "solar panel weight")])
    hits = await index.search(Query("What does it cost?", "panel"), 3)
    assert hits[0].passage.text == "solar panel cost"
    assert hits[1].passage.text == "wind turbine cost", "the question's own word leads"
    assert str(Query("What does it cost?", "solar panel")) == "What does it cost? (+ solar panel)", "as people see it"


async def test_documents_of_several_languages_are_found_in_their_own() -> None:
    index = BM25Index(
        [
            SmallEngine(
                [
                    passage("The governments of Europe met in spring.", 0, "en"),
                    passage("Die Regierungen der Länder trafen sich im Frühling.", 1, "de"),
                    passage("Правительства стран встретились весной.", 2, "ru"),
                    passage("各國政府在春天會面。", 3, "zh"),
                ]
            )
        ]
    )
    for question, id in {
        "Which government?": "0",
        "Welche Regierung?": "1",
        "Какое правительство?": "2",
        "政府": "3",
    }.items():
        assert (await index.search(question, 1))[0].passage.id == id


def test_what_an_engine_removes_is_not_found_again() -> None:
    passages = [passage(f"tea number{number}", number) for number in range(10)]
    made = TantivyEngine(Pile(passages), languages={"en": 10})
    made.change((), ((number, number % 2, p) for number, p in enumerate(passages)))
    made.change([1], ())
    assert len(made) == 5
    found = made.rank({term: 1.0 for term in terms("tea")}, made.average_length, 10)
    assert {p.id for _, p in found} == {"0", "2", "4", "6", "8"}


async def test_real_questions_find_their_document(library: Library) -> None:
    for question, source in {
        "What does the k1 parameter of BM25 control?": "bm25.md",
        "what is GGUF": "quantisation.md",
        "什麼時候會升級到大模型？": "小模型優先.md",
        "How fast does the small model read its prompt?": "latency.pdf",
    }.items():
        hits = await library.index.search(question, 3)
        assert source in {hit.passage.source for hit in hits}, question
