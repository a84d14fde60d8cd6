"""Is a draft good enough? One rule, one test; and that the score moves the right way."""

from typing import Any

import pytest

from rag.corpus.documents import Passage
from rag.corpus.index import BM25Index, Hit, SmallEngine
from rag.models.backend import Draft, Token
from rag.turn.confidence import Verdict, is_refusal, judge

TEXT = "Zebras drink at the Mara river every morning. In 1998 Anna Berg counted 1,204 of them."
PASSAGE = Passage("1", "animals.md", None, None, ("Zebras",), 0, len(TEXT), TEXT, "en")
INDEX = BM25Index([SmallEngine([PASSAGE, Passage("2", "b.md", None, None, (), 0, 5, "lions", "en")])])
QUESTION = "Where do zebras drink?"


def verdict_on(
    text: str, question: str = QUESTION, logprob: float | None = -0.05, finish: str = "stop", passage: Passage = PASSAGE
) -> Verdict:
    tokens = () if logprob is None else tuple(Token(word, logprob, (logprob, -5.0)) for word in text.split())
    draft = Draft("slm", "m", text, tokens, None, finish)
    hits = [Hit(passage, 2.0)]
    return judge(draft, question, question, hits, hits, INDEX.idf, threshold=0.65, min_words=3)


def test_a_sure_and_supported_answer_is_accepted() -> None:
    verdict = verdict_on("Zebras drink at the Mara river.")
    assert verdict.accepted
    assert verdict.score > 0.65


@pytest.mark.parametrize(
    ("text", "named", "reason"),
    [
        ("", {}, "empty"),
        ("It is the river, it is the river, it is the river", {}, "repeats itself"),
        ("Zebras drink at the Mara", {"finish": "length"}, "cut off"),
        ("Yes", {}, "too short (1 word)"),
        ("Zebras drink 1,350 litres at the Mara river.", {}, "the number 1,350 is in no passage"),
        ("Zebras drink where Peter Smith lives.", {}, "the name Peter is in no passage"),
        ("I don't know.", {}, "the passages cover the question"),
        ("Zebras drink at the Mara river.", {"logprob": -3.0}, "low confidence"),
    ],
)
def test_each_rule_rejects_with_its_reason(text: str, named: dict[str, Any], reason: str) -> None:
    verdict = verdict_on(text, **named)
    assert not verdict.accepted
    assert reason in verdict.reason
    assert verdict.score < verdict.threshold


@pytest.mark.parametrize("text", ["Mara river", "1,204", "Anna Berg."])
def test_a_short_answer_that_stands_word_for_word_is_not_too_short(text: str) -> None:
    verdict = verdict_on(text)
    assert "too short" not in verdict.reason


def test_a_refusal_over_silent_passages_is_believed() -> None:
    verdict = verdict_on("I don't know.", question="Which parliament elected the chancellor of Austria?")
    assert verdict.accepted
    assert "hardly cover" in verdict.reason


@pytest.mark.parametrize(
    "text",
    [
        "I don't know.", "I do not know", "I cannot answer that.", "The context does not mention zebras.",
        "The passages don't provide this.", "That is not specified in the text.", "我不知道。", "文中沒有提到。", "Ich weiß es nicht.",
    ],
)  # fmt: skip
def test_refusals_are_known_in_the_forms_that_small_models_write(text: str) -> None:
    assert is_refusal(text)


@pytest.mark.parametrize(
    "text", ["Zebras do not know fear.", "The river is not mentioned to flood.", "It contains no salt."]
)
def test_answers_are_not_taken_for_refusals(text: str) -> None:
    assert not is_refusal(text)


def test_doubt_lowers_the_score() -> None:
    scores = [verdict_on("Zebras drink at the Mara river.", logprob=lp).score for lp in (-0.01, -0.2, -0.6, -1.5)]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == 4
    supported, unsupported = "Zebras drink at the Mara river.", "zebras drink from muddy plastic buckets nearby"
    for logprob in (-0.05, None):
        assert verdict_on(supported, logprob=logprob).score > verdict_on(unsupported, logprob=logprob).score


def test_without_logprobs_the_rest_carries_it() -> None:
    assert verdict_on("Zebras drink at the Mara river.", logprob=None).accepted
    assert not verdict_on("perhaps from muddy plastic buckets nearby", logprob=None).accepted


def test_judging_takes_the_same_draft_to_the_same_verdict() -> None:
    assert verdict_on("Zebras drink at the Mara river.") == verdict_on("Zebras drink at the Mara river.")


def test_where_nothing_was_searched_for_the_words_of_the_question_do_not_count() -> None:
    words = "Zebras drink at the Mara river.".split()
    draft = Draft("slm", "m", " ".join(words), tuple(Token(word, -0.05, (-0.05, -5.0)) for word in words), None, "stop")
    hits = [Hit(PASSAGE, 0.0)]
    searched, read = (
        judge(
            draft, "Summarise it", "Summarise it", hits, hits, INDEX.idf, threshold=0.65, min_words=3, searched=searched
        )
        for searched in (True, False)
    )
    assert read.score > searched.score
    assert read.signals is not None
    assert read.signals.coverage == 1
