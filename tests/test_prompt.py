"""What a leg is sent, and that it fits."""

from dataclasses import replace

import pytest

from rag.corpus.documents import Passage
from rag.corpus.index import Hit
from rag.turn.overview import Overview
from rag.turn.prompt import CHECK, Prompt, build, estimate_tokens, opening
from rag.turn.session import Exchange

HITS = [Hit(Passage(str(n), f"{n}.md", None, None, (f"H{n}",), 0, 600, f"w{n} " * 150, "en"), 1.0) for n in range(6)]
HISTORY = [Exchange(str(n), f"question {n}", f"question {n}", f"answer {n}") for n in range(5)]


def built(**changes: object) -> Prompt:
    options: dict[str, object] = {
        "asked": {}, "large": True, "passages": 3, "evidence_tokens": 1200, "history_turns": 3, "context_tokens": 4096, "max_tokens": 400,
    }  # fmt: skip
    return build("What now?", HITS, HISTORY, **{**options, **changes})  # type: ignore[arg-type]


def test_each_leg_gets_its_own_number_of_passages_and_newest_turns() -> None:
    prompt = built()
    assert [hit.passage.source for hit in prompt.evidence] == ["0.md", "1.md", "2.md"]
    assert [m["content"] for m in prompt.messages[-7:-1:2]] == ["question 2", "question 3", "question 4"]
    assert "[3] 2.md" in prompt.messages[-1]["content"]
    assert len(built(passages=1, large=False).evidence) == 1
    assert prompt.ledger["passages_left_out"] == 3
    assert prompt.ledger["left_out"] == {"no room": 3}
    assert prompt.ledger["turns_left_out"] == 2


def test_a_prompt_never_exceeds_its_window() -> None:
    for window in (700, 1000, 1500, 4096):
        prompt = built(context_tokens=window, passages=6, evidence_tokens=100_000)
        assert prompt.evidence, "the best passage is always there"
        total = sum(estimate_tokens(message["content"]) for message in prompt.messages)
        assert total + 400 <= window or window == 700
    cut = built(evidence_tokens=64)
    assert len(cut.evidence) == 1
    assert cut.ledger["evidence_tokens_estimated"] <= 70


def test_what_changes_least_stands_first() -> None:
    first, second = built(), build(
        "Else?", HITS[3:], HISTORY, asked={}, large=True, passages=3, evidence_tokens=1200, history_turns=3, context_tokens=4096,
        max_tokens=400,
    )  # fmt: skip
    assert first.messages[:-1] == second.messages[:-1]


def test_the_ledger_says_what_was_left_out_and_why() -> None:
    twice = Hit(replace(HITS[0].passage, source="copy.md"), 0.9)
    weak = Hit(HITS[2].passage, 0.1)
    prompt = build(
        "What now?", [HITS[0], twice, HITS[1], weak], (), asked={"w0": 2.0, "w1": 2.0}, large=True, passages=3,
        evidence_tokens=1200, history_turns=3, context_tokens=4096, max_tokens=400,
    )  # fmt: skip
    assert [hit.passage.source for hit in prompt.evidence] == ["0.md", "1.md"]
    assert prompt.ledger["left_out"] == {"duplicate": 1, "adds nothing": 1}
    assert (prompt.ledger["passages_sent"], prompt.ledger["passages_left_out"]) == (2, 2)


OVERVIEW = Overview(("book.md",), "\n".join(f"- heading number {n}" for n in range(200)), tuple(HITS))


def test_a_large_model_gets_the_outline_and_as_many_passages_as_its_budget_holds() -> None:
    prompt = built(overview=OVERVIEW, passages=2)
    content = prompt.messages[-1]["content"]
    assert content.startswith("Outline of book.md:\n- heading number 0\n")
    assert "- heading number 199" not in content
    assert len(prompt.evidence) > 1
    assert prompt.ledger["evidence_tokens_estimated"] <= 800


def test_a_small_model_gets_the_beginning_and_a_line_of_headings() -> None:
    prompt = built(overview=OVERVIEW, passages=1, large=False)
    assert [hit.passage.source for hit in prompt.evidence] == ["0.md"]
    assert "\nSections of book.md: heading number 0; heading number 1" in prompt.messages[-1]["content"]
    assert prompt.ledger["evidence_tokens_estimated"] <= 420


@pytest.mark.parametrize("window", [700, 1500])
def test_an_outline_does_not_break_the_window(window: int) -> None:
    prompt = built(overview=OVERVIEW, context_tokens=window, passages=6, evidence_tokens=100_000)
    total = sum(estimate_tokens(message["content"]) for message in prompt.messages)
    assert total + 400 <= window or window == 700


@pytest.mark.parametrize(
    ("question", "polar"),
    [
        ("Is the confidence calibrated?", True), ("Does it run on Windows?", True), ("Kann ich PDFs anhängen?", True),
        ("可以附加檔案嗎？", True), ("這是否免費？", True), ("Czy to działa?", True),
        ("What is the threshold?", False), ("Who can see it?", False), ("Island of the Mara?", False), ("信心是什麼？", False),
    ],
)  # fmt: skip
def test_a_question_whose_answer_is_yes_or_no_is_not_checked_with_these_words(question: str, polar: bool) -> None:
    built = build(
        question, HITS, (), asked={}, large=True, passages=3, evidence_tokens=1200, history_turns=3, context_tokens=4096,
        max_tokens=400,
    )  # fmt: skip
    assert built.checks is not polar
    assert (CHECK in built.messages[-1]["content"]) is not polar


@pytest.mark.parametrize("large", [False, True])
def test_every_prompt_of_a_leg_begins_with_its_opening(large: bool) -> None:
    """That is what a model reads before anybody asks; were it another text, it would be read in vain."""
    begins = opening(large=large, examples=not large, checks=large, language="")
    for question in ("Where do zebras drink?", "What do lions eat in the rainy season?"):
        whole = build(
            question, [], (), asked={}, large=large, passages=1, evidence_tokens=500, history_turns=1, context_tokens=4096,
            max_tokens=100, examples=not large,
        )  # fmt: skip
        assert whole.messages[: len(begins)] == begins
        assert len(whole.messages) == len(begins) + 1
