"""BM25 over passages."""

from rag.corpus.analysis import terms
from rag.corpus.documents import Passage
from rag.corpus.index import BM25Index
from rag.corpus.library import Library


def passage(text: str, number: int) -> Passage:
    return Passage(str(number), "a.md", None, (), 0, len(text), text, tuple(terms(text)))


async def test_the_passage_with_the_words_comes_first_and_none_scores_zero() -> None:
    index = BM25Index([passage(t, i) for i, t in enumerate(["red apples", "green pears", "red red cherries", "plums"])])
    hits = await index.search("RED cherries?", 10)
    assert [hit.passage.text for hit in hits] == ["red red cherries", "red apples"]
    assert all(hit.score > 0 for hit in hits)


async def test_a_term_in_most_passages_still_counts_for_them() -> None:
    # With the classic idf a term in more than half of the passages would score below zero.
    index = BM25Index([passage(t, i) for i, t in enumerate(["tea cup", "tea pot", "tea", "coffee"])])
    hits = await index.search("tea", 10)
    assert len(hits) == 3
    assert index.idf("tea") > 0
    assert index.idf("tea") < index.idf("pot") < index.idf("unseen")


async def test_an_empty_index_and_an_unknown_query_find_nothing() -> None:
    assert await BM25Index().search("anything", 3) == []
    assert await BM25Index([passage("tea", 0)]).search("what is it?", 3) == []
    assert await BM25Index([passage("tea", 0)]).search("coffee", 3) == []


async def test_equal_scores_keep_the_order_of_the_passages() -> None:
    index = BM25Index([passage("same words", number) for number in range(5)])
    assert [hit.passage.id for hit in await index.search("same", 3)] == ["0", "1", "2"]


async def test_real_questions_find_their_document(library: Library) -> None:
    for question, source in {
        "What does the k1 parameter of BM25 control?": "bm25.md",
        "what is GGUF": "quantisation.md",
        "什麼時候會升級到大模型？": "小模型優先.md",
        "How fast does the small model read its prompt?": "latency.pdf",
    }.items():
        hits = await library.index.search(question, 3)
        assert source in {hit.passage.source for hit in hits}, question
