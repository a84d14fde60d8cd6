"""Is a draft good enough? One rule, one test; what each signal says; and that the score moves the right way."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import pytest

from rag.corpus.documents import Passage
from rag.corpus.index import BM25Index, Hit, Query, SmallEngine
from rag.corpus.library import Library
from rag.models.backend import Draft, Token
from rag.settings import Settings
from rag.turn.calibration import Calibration, Line, Scorer
from rag.turn.confidence import (
    COLD_START_THRESHOLD,
    IN_WORDS,
    Grounds,
    Signals,
    Verdict,
    before,
    coverage,
    features,
    hopeless,
    is_refusal,
    judge,
    measure,
)
from rag.words import say


def passage(text: str, id: str = "1", source: str = "animals.md", language: str = "en") -> Passage:
    return Passage(id, source, None, None, ("Zebras",), 0, len(text), text, language)


TEXT = "Zebras drink at the Mara river every morning. In 1998 Anna Berg counted 1,204 of them."
PASSAGE = passage(TEXT)
OTHER = passage("Buffaloes drink at the Mara river. Lions sleep.", "2", "others.md")
CHINESE = passage("斑馬每天早上在馬拉河喝水。獅子在樹下睡覺。", "3", "zh.md", "zh")
INDEX = BM25Index([SmallEngine([PASSAGE, OTHER, CHINESE])])
QUESTION = "Where do zebras drink?"
GOOD = "Zebras drink at the Mara river."
FITTED = Calibration(
    key="k",
    slm="s",
    llm="l",
    right=Line(Scorer({"unaligned": -4.0, "unsure": -1.0}, 2.0), 0.7),
    right_without_logprobs=Line(Scorer({"unaligned": -4.0}, 1.0), 0.6),
    early={
        0: Line(Scorer({"uncovered": -8.0}, 2.0), 0.2),
        1: Line(Scorer({"unsure_first": -8.0}, 2.0), 0.2),
        8: Line(Scorer({"unsupported": -8.0, "unsure_first": 0.0}, 2.0), 0.2),
    },
)


def grounds_of(
    question: str = QUESTION, read: Sequence[Passage] = (PASSAGE,), unread: Sequence[Passage] = (), **named: Any
) -> Grounds:
    evidence = [Hit(one, 2.0) for one in read]
    hits = [*evidence, *(Hit(one, 1.0) for one in unread)]
    return Grounds(question, question, hits, evidence, INDEX.idf, most_idf=INDEX.idf(""), **named)


def tokens_of(text: str, logprob: float | None = -0.05) -> tuple[Token, ...]:
    return () if logprob is None else tuple(Token(word, logprob, (logprob, -5.0)) for word in text.split())


def verdict_on(
    text: str,
    question: str = QUESTION,
    logprob: float | None = -0.05,
    finish: str = "stop",
    passage: Passage = PASSAGE,
    **named: Any,
) -> Verdict:
    draft = Draft("slm", "m", text, tokens_of(text, logprob), None, finish)
    return judge(draft, grounds_of(question, [passage]), min_words=3, **named)


def signals_of(text: str, grounds: Grounds | None = None, logprob: float | None = -0.05) -> Signals:
    return measure(text, tokens_of(text, logprob), grounds or grounds_of(), cut_off=False)


def test_a_sure_and_supported_answer_is_accepted() -> None:
    verdict = verdict_on(GOOD)
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
        (GOOD, {"logprob": -3.0}, "low confidence"),
    ],
)
@pytest.mark.parametrize("calibration", [None, replace(FITTED, right=Line(Scorer({"unsure": -4.0}, 3.0), 0.6))])
def test_each_rule_rejects_with_its_reason(
    text: str, named: dict[str, Any], reason: str, calibration: Calibration | None
) -> None:
    verdict = verdict_on(text, calibration=calibration, **named)
    assert not verdict.accepted
    assert reason in verdict.reason
    assert verdict.score < verdict.threshold


@pytest.mark.parametrize(
    ("text", "passage"),
    [("Mara river", PASSAGE), ("1,204", PASSAGE), ("Anna Berg.", PASSAGE), ("river [1]", PASSAGE), ("馬拉河", CHINESE)],
)
def test_a_short_answer_that_stands_word_for_word_is_not_too_short(text: str, passage: Passage) -> None:
    assert "too short" not in verdict_on(text, passage=passage).reason


def test_a_part_of_a_word_does_not_stand_word_for_word() -> None:
    assert "too short" in verdict_on("rive").reason
    assert "too short" in verdict_on("204").reason


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
    scores = [verdict_on(GOOD, logprob=lp).score for lp in (-0.01, -0.2, -0.6, -1.5)]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == 4
    for logprob in (-0.05, None):
        unsupported = verdict_on("zebras drink from muddy plastic buckets nearby", logprob=logprob)
        assert verdict_on(GOOD, logprob=logprob).score > unsupported.score


def test_without_logprobs_the_rest_carries_it() -> None:
    assert verdict_on(GOOD, logprob=None).accepted
    assert not verdict_on("perhaps from muddy plastic buckets nearby", logprob=None).accepted


def test_judging_takes_the_same_draft_to_the_same_verdict() -> None:
    assert verdict_on(GOOD) == verdict_on(GOOD)


def test_where_nothing_was_searched_for_the_words_of_the_question_do_not_count() -> None:
    draft = Draft("slm", "m", GOOD, tokens_of(GOOD), None, "stop")
    searched, read = (
        judge(draft, grounds_of("Summarise it", searched=searched), min_words=3) for searched in (True, False)
    )
    assert read.score > searched.score
    assert read.signals is not None
    assert read.signals.coverage == 1


def test_an_answer_from_a_sentence_about_the_question_scores_above_one_from_another() -> None:
    about, beside = (
        verdict_on(text, calibration=FITTED) for text in ("At the Mara river.", "Anna Berg counted 1,204.")
    )
    assert about.signals is not None
    assert beside.signals is not None
    assert about.signals.alignment == 1
    assert beside.signals.alignment == 0
    assert about.accepted
    assert not beside.accepted
    assert say(IN_WORDS["unaligned"]) in beside.reason


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("The Mara river.", "Zebras drink at the Mara river every morning."),
        ("Zebras were counted by Anna Berg [1].", "In 1998 Anna Berg counted 1,204 of them."),
        ("Muddy plastic buckets.", None),
        ("", None),
    ],
)
def test_the_sentence_that_supports_the_answer_is_found(text: str, sentence: str | None) -> None:
    assert signals_of(text).sentence == sentence


def test_of_sentences_that_say_the_same_the_one_about_the_question_supports_the_answer() -> None:
    found = signals_of("The Mara river.", grounds_of(read=[OTHER, PASSAGE]))
    assert found.sentence == "Zebras drink at the Mara river every morning."


def test_another_sentence_that_is_closer_to_the_question_is_a_doubt() -> None:
    grounds = grounds_of(read=[passage("Zebras drink at the Mara river. Buffaloes drink at the lake.")])
    assert features(signals_of("At the river.", grounds))["better_aligned"] == 0
    assert 0 < features(signals_of("At the lake.", grounds))["better_aligned"] < 1
    assert signals_of("At the lake.", grounds).best_alignment == 1


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [("Zebras drink.", 1, 1), ("Zebras drink at the Mara river.", 0.3, 0.7), ("Mara river", 0, 0), ("", 0, 0)],
)
def test_an_echo_of_the_question_is_told_from_an_answer(text: str, least: float, most: float) -> None:
    assert least <= signals_of(text).echo <= most


@pytest.mark.parametrize(
    ("text", "copied", "verbatim"),
    [
        ("at the Mara river", 1, True),
        ("AT the *Mara* river! [1]", 1, True),
        ("It is at the Mara river", 4 / 6, False),
        ("morning. In 1998", 1, True),
        ("buckets", 0, False),
        ("", 0, False),
    ],
)
def test_how_much_of_the_answer_stands_word_for_word(text: str, copied: float, verbatim: bool) -> None:
    found = signals_of(text)
    assert found.copied == pytest.approx(copied)
    assert found.verbatim is verbatim


@pytest.mark.parametrize(
    ("text", "support"), [("Zebras drink plastic.", 0), ("Zebras drink at the river.", 1), ("Zebras drink.", 1)]
)
def test_words_of_the_question_support_nothing_unless_there_are_no_others(text: str, support: float) -> None:
    assert signals_of(text).support == support


def test_a_run_of_words_does_not_reach_from_one_passage_into_the_next() -> None:
    found = signals_of("of them Buffaloes drink", grounds_of(read=[PASSAGE, OTHER]))
    assert found.copied == 0.5
    assert not found.verbatim


def test_what_other_passages_say_as_well_is_told() -> None:
    assert signals_of("Mara river", grounds_of(unread=[OTHER])).elsewhere == 1
    assert 0 < signals_of("Mara river every morning", grounds_of(unread=[OTHER])).elsewhere < 1
    assert signals_of("Mara river", grounds_of(read=[PASSAGE, OTHER])).elsewhere == 0


@pytest.mark.parametrize(
    ("question", "text", "wrong"),
    [
        ("How many zebras were counted?", "Anna Berg.", True),
        ("How many zebras were counted?", "1,204", False),
        ("How many zebras were counted?", "None of them.", False),
        ("When were they counted?", "at the river", True),
        ("When were they counted?", "In 1998.", False),
        ("When do they drink?", "every morning", False),
        ("Who counted them?", "counted 1,204", True),
        ("Who counted them?", "Anna Berg", False),
        ("Wie viele Zebras?", "am Fluss", True),
        ("有多少斑馬?", "在馬拉河", True),
        ("有多少斑馬?", "一千二百隻", False),
        ("Where do zebras drink?", "1,204", False),
    ],
)
def test_an_answer_of_another_kind_than_was_asked_for_is_known(question: str, text: str, wrong: bool) -> None:
    found = signals_of(text, grounds_of(question))
    assert found.wrong_kind is wrong
    assert features(found)["wrong_kind"] == wrong


def test_without_logprobs_the_features_that_need_them_are_missing() -> None:
    with_them, without = (set(features(signals_of(GOOD, logprob=logprob))) for logprob in (-0.05, None))
    assert without < with_them
    assert with_them - without == {
        "unsure", "unsure_words", "unsure_least", "unsure_fact", "unsure_first", "rivalled",
    }  # fmt: skip
    assert with_them <= set(IN_WORDS), "each can be said to a person"


def test_the_first_token_that_answers_is_not_one_of_the_questions() -> None:
    tokens = [
        Token(text, logprob) for text, logprob in (("Zebras", -0.1), (" drink", -0.2), (" at", -0.3), (" Mara", -2.0))
    ]
    assert measure("Zebras drink at Mara", tokens, grounds_of(), cut_off=False).own_logprob == -2.0


def test_end_marks_and_punctuation_say_nothing_of_certainty() -> None:
    tokens = [Token("Mara", -0.1), Token(".", -9.0), Token("<|im_end|>", -9.0)]
    assert measure("Mara.", tokens, grounds_of(), cut_off=False).least_logprob == -0.1


def test_the_verdict_says_when_it_is_not_calibrated() -> None:
    for logprob in (-0.05, -3.0):
        cold = verdict_on(GOOD, logprob=logprob)
        assert "not calibrated" in cold.reason
        assert not cold.calibrated
        assert cold.to_dict()["signals"]["calibrated"] is False
        fitted = verdict_on(GOOD, logprob=logprob, calibration=FITTED)
        assert "not calibrated" not in fitted.reason
        assert fitted.calibrated


@pytest.mark.parametrize(
    ("calibration", "logprob", "own", "threshold"),
    [
        (None, -0.05, None, COLD_START_THRESHOLD),
        (None, -0.05, 0.3, 0.3),
        (FITTED, -0.05, None, 0.7),
        (FITTED, None, None, 0.6),
        (FITTED, -0.05, 0.99, 0.99),
        (FITTED, None, 0.0, 0.0),
    ],
)
def test_the_users_own_threshold_comes_before_the_fitted_one(
    calibration: Calibration | None, logprob: float | None, own: float | None, threshold: float
) -> None:
    verdict = verdict_on(GOOD, logprob=logprob, calibration=calibration, threshold=own)
    assert verdict.threshold == threshold
    assert verdict.accepted == (verdict.score >= threshold)


def test_the_fitted_score_depends_on_whether_there_are_logprobs() -> None:
    sure, unsure, none = (verdict_on(GOOD, logprob=lp, calibration=FITTED).score for lp in (0.0, -1.0, None))
    assert sure == pytest.approx(Scorer({}, 2.0).probability({}))
    assert unsure == none == pytest.approx(Scorer({}, 1.0).probability({}))


def test_before_a_word_is_written_only_the_passages_can_make_it_hopeless() -> None:
    assert hopeless(0, "", (), grounds_of(), FITTED, threshold=0.7) is None
    verdict = hopeless(0, "", (), grounds_of("Who elected the chancellor?"), FITTED, threshold=0.7)
    assert verdict is not None
    assert not verdict.accepted
    assert verdict.signals is None
    assert verdict.calibrated
    assert "given up before it began" in verdict.reason
    assert say(IN_WORDS["uncovered"]) in verdict.reason
    assert verdict.to_dict()["signals"] == {"calibrated": True}


@pytest.mark.parametrize(
    ("after", "text", "logprob", "when"),
    [
        (1, "Mara", -0.1, None),
        (1, "Mara", -2.9, "at its first word"),
        (8, "They drink at the Mara river every morning", -0.1, None),
        (8, "They eat plastic buckets full of muddy soup", -0.1, "after 8 tokens"),
    ],
)
def test_a_draft_is_given_up_below_its_line_and_not_above(
    after: int, text: str, logprob: float, when: str | None
) -> None:
    verdict = hopeless(after, text, tokens_of(text, logprob), grounds_of(), FITTED, threshold=0.7)
    assert (verdict is None) == (when is None)
    if verdict is not None:
        assert f"given up {when}" in verdict.reason
        assert verdict.score < verdict.threshold == 0.7


def test_the_line_itself_is_not_below_it() -> None:
    tokens = tokens_of("Mara", -0.1)
    scorer = FITTED.early[1].scorer
    score = scorer.probability(features(measure("Mara", tokens, grounds_of(), cut_off=False)))
    for at, goes_on in ((score, True), (score + 1e-9, False)):
        fitted = replace(FITTED, early={1: Line(scorer, at)})
        assert (hopeless(1, "Mara", tokens, grounds_of(), fitted, threshold=0.7) is None) is goes_on


def test_a_draft_without_a_word_yet_is_not_given_up() -> None:
    assert hopeless(1, "**", (Token("**", -9.0, (-9.0, -9.1)),), grounds_of(), FITTED, threshold=0.7) is None


def test_what_is_known_before_is_the_same_as_after() -> None:
    grounds = grounds_of("Where do zebras drink tea?", unread=[OTHER])
    found = before(grounds)
    assert found.items() <= features(signals_of(GOOD, grounds)).items()
    assert found["missing"] == 1, "no passage at all holds tea"
    assert 0 < found["uncovered"] < 1
    assert found["rival_hit"] == 0.5


@pytest.mark.parametrize("question", [QUESTION, "斑馬在哪裡喝水?", "🦓?", ""])
@pytest.mark.parametrize(
    "text", ["", "   ", GOOD, "馬拉河", "斑馬每天早上在馬拉河喝水。", "🦓🦓", "[1]", "**", "а" * 3000, "1,204 1,204"]
)
@pytest.mark.parametrize("read", [(), (PASSAGE,), (CHINESE,), (PASSAGE, OTHER, CHINESE)], ids=len)
@pytest.mark.parametrize("logprob", [-0.05, -30.0, None])
def test_whatever_is_asked_and_answered_every_share_lies_between_0_and_1(
    question: str, text: str, read: Sequence[Passage], logprob: float | None
) -> None:
    grounds = grounds_of(question, read, [OTHER])
    verdict = judge(Draft("slm", "m", text, tokens_of(text, logprob), None, "stop"), grounds, min_words=3)
    assert verdict.signals is not None
    shares = {
        name: value
        for name, value in asdict(verdict.signals).items()
        if isinstance(value, float) and not name.endswith("logprob") and name != "lead"
    }
    shares |= {"score": verdict.score, **before(grounds)}
    if logprob != -30.0:  # where the token that was taken is not the likeliest, it has no lead
        shares |= features(verdict.signals)
    assert {name: value for name, value in shares.items() if not -1e-9 <= value <= 1 + 1e-9} == {}
    if not text.strip(" *🦓[1]"):
        assert not verdict.accepted


@pytest.mark.parametrize(
    ("question", "answerable"),
    [
        ("小模型優先怎麼決定要不要升級?", True),
        ("什麼情況下會換大模型來回答?", True),
        ("昨天晚上的足球比賽誰贏了?", False),
        ("台北到高雄的火車票多少錢?", False),
        ("When does the larger model take over?", True),
        ("Which zebra won the regatta in Uruguay?", False),
    ],
)
async def test_a_question_is_covered_by_its_words_with_and_without_spaces(
    question: str, answerable: bool, library: Library, settings: Settings
) -> None:
    hits = (await library.index.search(Query(question), 6))[: settings.llm_passages]
    assert (coverage(question, hits, library.index.idf) >= settings.min_coverage) == answerable


async def test_of_words_without_spaces_those_that_lie_across_two_do_not_count(library: Library) -> None:
    hits = await library.index.search(Query("小模型"), 6)
    held = coverage("小模型", hits, library.index.idf)
    assert held == 1
    # Each of the three is there, though not in this order.
    assert coverage("升級模型草稿", await library.index.search(Query("升級模型草稿"), 6), library.index.idf) == 1
    assert coverage("", hits, library.index.idf) == coverage("小模型", [], library.index.idf) == 0
