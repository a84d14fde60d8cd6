"""Thoughts and answers of real models' formats, cut in every place."""

import pytest

from rag.models.thinking import Splitter


def split(pieces: list[str], *, opened: bool = False) -> tuple[str, Splitter]:
    """What a reader of the stream keeps at its end."""
    splitter = Splitter(opened=opened)
    answer: list[str] = []
    for piece in pieces:
        text = splitter.feed(piece)
        if splitter.retracted:
            answer.clear()
            splitter.retracted = False
        answer.append(text)
    text = splitter.end()
    if splitter.retracted:
        answer.clear()
    return "".join(answer) + text, splitter


THOUGHTS = [
    ("<think>\nLet me see. 2 + 2 < 5.\n</think>\n\nFour.", "Four."),
    ("\n<think>Hm.</think>Four, as <b>ever</b>.", "Four, as <b>ever</b>."),
    ("<think>\n\n</think>\n\nFour.", "Four."),
    ("<thinking>Hm.</thinking>\nFour.", "Four."),
    ("<thought>Hm.</thought>\nFour.", "Four."),
    ("[THINK]Hm.[/THINK]Four [1].", "Four [1]."),
    ("<|channel>thought\nHm.<channel|>Four.", "Four."),
    ("<think>One.</think>\n<think>Two.</think>\nFour.", "Four."),
    ("<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Four.<|return|>", "Four."),
    ("<|start|>assistant<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Four.", "Four."),
    ("<|channel|>analysis<|message|>Hm.<|channel|>final <|constrain|>text<|message|>Four.<|end|>", "Four."),
    ("<|channel|>commentary<|message|>I look.<|end|><|start|>assistant<|channel|>final<|message|>Four <5>.<|return|>", "Four <5>."),
    ("<|channel|>analysis<|message|>Hm.<|end|>Four.", "Four."),
    ("<|channel|>final<|message|>Four.<|return|>", "Four."),
    ("analysisUser asks a sum.assistantfinalFour.", "Four."),
    ("Let me see.\n2 + 2.\n</think>\n\nFour.", "Four."),
    ("</think>\n\nFour.", "Four."),
]  # fmt: skip

ANSWERS = [
    "Four.",
    "  \n Four.",
    "A model writes <think> before it thinks and </think> after it.",
    "It begins with\n<think>\nand ends with\n</think>\nas a rule.",
    "```\nthought\n</think>\nanswer\n```\nis how it looks.",
    "The mark </think>\nends it.",
    "<b>Four</b> < 5",
    "<",
    "<thin",
    "<|channel|> is a mark of gpt-oss, " + "which stands before the name of a channel, and " * 3 + "so on.",
    "analysis of the sum: four.",
    "analysis",
    "a",
    "[THINKING] is no mark.",
    "[1] says four.",
    "Four.\n<",
    "x <\n</y>",
    "",
]


@pytest.mark.parametrize(("text", "answer"), THOUGHTS)
def test_what_was_thought_is_no_part_of_the_answer_wherever_it_is_cut(text: str, answer: str) -> None:
    for size in range(1, len(text) + 1):
        pieces = [text[at : at + size] for at in range(0, len(text), size)]
        kept, splitter = split(pieces)
        assert kept == answer, pieces
        assert not splitter.thinking
    for at in range(len(text)):
        assert split([text[:at], text[at:]])[0] == answer, at


@pytest.mark.parametrize("text", ANSWERS)
def test_an_ordinary_answer_is_left_alone_wherever_it_is_cut(text: str) -> None:
    for size in range(1, len(text) + 1):
        kept, splitter = split([text[at : at + size] for at in range(0, len(text), size)])
        assert kept == text
        assert not splitter.thought
        assert not splitter.lone


@pytest.mark.parametrize("text", ANSWERS)
def test_nothing_is_held_back_but_what_may_be_a_mark(text: str) -> None:
    splitter = Splitter()
    said = ""
    for at, character in enumerate(text):
        said += splitter.feed(character)
        held = text[len(said) : at + 1]
        assert said + held == text[: at + 1]
        began = text[: at + 1].strip() in ("", held.strip())
        assert held == "" or "<" in held or began, held


@pytest.mark.parametrize(
    "text", ["<think>Hm. I wonder", "<think>Hm.</thin", "<|channel|>analysis<|message|>Hm", "<|channel|>ana"]
)
def test_a_thought_that_never_ends_leaves_no_answer(text: str) -> None:
    assert split(list(text))[0] == ""


def test_who_thinks_is_known_while_it_thinks() -> None:
    splitter = Splitter()
    seen = []
    for piece in ["<thi", "nk>", "Hm. ", "Well.", "</think>", "\n\n", "Four."]:
        splitter.feed(piece)
        seen.append(splitter.thinking)
    assert seen == [False, True, True, True, False, False, False]
    assert splitter.thought


def test_blank_thoughts_are_none() -> None:
    assert not split(["<think>\n\n</think>\n\nFour."])[1].thought


def test_a_thought_that_the_prompt_opened_is_taken_back_when_it_is_closed() -> None:
    splitter = Splitter()
    assert splitter.feed("I wonder.\n") == "I wonder.\n"
    assert splitter.feed("</think>") == ""
    assert not splitter.retracted, "it may yet be an answer that speaks of it"
    assert splitter.feed("\n\nFour.") == "Four."
    assert splitter.retracted
    assert splitter.lone


def test_once_known_such_a_thought_is_never_shown() -> None:
    splitter = Splitter(opened=True)
    assert splitter.thinking
    assert [splitter.feed(piece) for piece in ["I wonder.", "\n</thi", "nk>\n", "Four."]] == ["", "", "", "Four."]
    assert splitter.thought
    assert not splitter.retracted


@pytest.mark.parametrize("text", ["Four.", "Four, no more. <b>", "<"])
def test_an_answer_without_the_thought_that_was_presumed_is_an_answer(text: str) -> None:
    kept, splitter = split(list(text), opened=True)
    assert kept == text
    assert not splitter.thought


def test_a_presumed_thought_may_still_be_opened_by_its_mark() -> None:
    assert split(list("<think>Hm.</think>Four."), opened=True)[0] == "Four."
    assert split(list("<think>Hm."), opened=True)[0] == ""


def test_where_the_server_tells_thoughts_apart_nothing_is_presumed() -> None:
    splitter = Splitter(opened=True)
    splitter.told_apart()
    assert splitter.feed("\n\nFour.") == "Four."
    assert splitter.feed("\n</think>\n") == "\n</think>\n"
