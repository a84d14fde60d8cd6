"""The larger model's Yes or No: read however the text is cut, taken off it, and never seen where it is not."""

import pytest

from rag.models.backend import Delta, Draft, Token
from rag.turn.check import Check


def read(*deltas: str) -> tuple[Check, str]:
    check = Check()
    return check, "".join(check.read(Delta(text)) for text in deltas)


def cuts(text: str) -> list[tuple[str, ...]]:
    """The text in one piece, in two at each place, and letter by letter."""
    return [(text,), *((text[:at], text[at:]) for at in range(1, len(text))), tuple(text)]


@pytest.mark.parametrize("deltas", cuts("Yes. The answer"), ids="|".join)
def test_yes_is_taken_off_wherever_the_text_is_cut(deltas: tuple[str, ...]) -> None:
    check, shown = read(*deltas)
    assert check.said is True
    assert shown == "The answer"
    assert not check.denies(None)


@pytest.mark.parametrize(
    "deltas", [*cuts("No."), *cuts("**No**"), *cuts(" no\n"), *cuts("No, they do not say.")], ids="|".join
)
def test_no_denies_wherever_the_text_is_cut(deltas: tuple[str, ...]) -> None:
    check, _ = read(*deltas)
    assert check.said is False
    assert check.denies(None)


@pytest.mark.parametrize(
    "deltas",
    [*cuts("Nobody knows"), *cuts("Yesterday it rained"), *cuts("Not at all"), *cuts("Y is a letter")],
    ids="|".join,
)
def test_a_word_that_only_begins_so_is_neither_and_is_shown_whole(deltas: tuple[str, ...]) -> None:
    check, shown = read(*deltas)
    assert check.said is None
    assert shown == "".join(deltas)
    assert not check.denies(0.0)


@pytest.mark.parametrize("text", ["Nobody knows", "Noah built it", "Nobel did"])
def test_a_word_that_begins_with_no_is_at_no_moment_a_no(text: str) -> None:
    for deltas in cuts(text):
        check = Check()
        for delta in deltas:
            check.read(Delta(delta))
            assert not check.denies(None), f"denied at {delta!r} of {deltas}: the model would be hung up on"


@pytest.mark.parametrize(
    "text",
    [
        "Yes. The answer",
        "**Yes**. The answer",
        "**Yes.** The answer",
        '"Yes," The answer',
        "“Yes” The answer",
        "YES\n\nThe answer",
        " yes: The answer",
        "Yes – The answer",
        "Yes The answer",
        "_Yes_! The answer",
    ],
)
def test_yes_may_be_bold_or_quoted(text: str) -> None:
    for deltas in cuts(text):
        check, shown = read(*deltas)
        assert check.said is True
        assert shown == "The answer"


@pytest.mark.parametrize(
    ("lead", "rest"),
    [
        ("Yes. ", "**Mara** river"),
        ("Yes. ", "“Mara river” it says"),
        ("Yes:\n\n", "- the Mara\n- the Nile"),
        ("Yes. ", "_Mara_"),
        ("Yes, ", '"Mara" river'),
    ],
)
def test_marks_that_belong_to_the_answer_stay(lead: str, rest: str) -> None:
    assert read(f"{lead}{rest}")[1] == rest


def test_a_model_that_says_neither_is_shown_as_it_writes() -> None:
    check = Check()
    shown = [check.read(Delta(text)) for text in ("The", " Mara", " river. No", " more.")]
    assert shown == ["The", " Mara", " river. No", " more."]
    assert check.said is None
    assert not check.denies(5.0)


RIVALS = ((-0.2, -1.7, -4.0), ("Yes", "No", "The"))


@pytest.mark.parametrize(
    ("token", "lead"),
    [
        (Token("Yes", -0.2, *RIVALS), 1.5),
        (Token(" yes", -0.2, *RIVALS), 1.5),
        (Token("No", -0.3, (-0.3, -2.3, -2.5), ("No", " YES", "yes")), -2.0),
        (Token("Yes", -0.1, (-0.1, -5.0), ("Yes", "The")), 4.9),
        (Token("No", -0.1, (-0.1, -5.0), ("No", "The")), -4.9),
        (Token("**Yes.", -0.2, (-0.2, -1.2), ("**Yes.", '"No"')), 1.0),
        (Token("Yes", -0.1), None),
        (Token("Yes", -9.0, (-0.1, -5.0), ("The", "A")), None),
        (Token("The", -0.1, *RIVALS), None),
    ],
    ids=[
        "both",
        "with a space",
        "the likelier form",
        "No is rarer than all",
        "Yes is rarer than all",
        "with marks",
        "none told",
        "neither",
        "no such word",
    ],
)
def test_the_lead_of_yes_over_no_is_read_from_the_rivals(token: Token, lead: float | None) -> None:
    check = Check()
    check.read(Delta(token.text, (token,)))
    assert check.lead == (None if lead is None else pytest.approx(lead))


def test_the_lead_is_that_of_the_first_yes_or_no() -> None:
    check = Check()
    marks = Token("**", -0.1, (-0.1,), ("**",))
    later = Token("No", -0.1, (-0.1, -9.0), ("No", "Yes"))
    for token in (marks, Token("Yes", -0.2, *RIVALS), Token(".", -0.1), later):
        check.read(Delta(token.text, (token,)))
    assert check.lead == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("word", "at_least", "denied"),
    [
        ("Yes", None, False),
        ("Yes", 1.4, False),
        ("Yes", 1.6, True),
        ("No", None, True),
        ("No", -5.0, True),
        ("The", 1.6, False),
    ],
)
def test_a_yes_that_is_less_sure_than_was_fitted_denies_too(word: str, at_least: float | None, denied: bool) -> None:
    check = Check()
    check.read(Delta(word, (Token(word, -0.2, *RIVALS),)))
    check.read(Delta(".", (Token(".", -0.1),)))
    assert check.denies(at_least) is denied


def test_where_no_rivals_are_told_a_yes_is_believed() -> None:
    check, _ = read("Yes.")
    assert not check.denies(100.0)


@pytest.mark.parametrize(
    "words", [("Yes", ".", " The", " answer"), ("**", "Yes", "**", "\n", "The", " answer"), ("The", " answer")]
)
def test_the_stripped_draft_has_the_text_and_its_tokens(words: tuple[str, ...]) -> None:
    check = Check()
    tokens = tuple(Token(word, -0.1) for word in words)
    for token in tokens:
        check.read(Delta(token.text, (token,)))
    draft = check.strip(Draft("llm", "m", "".join(words), tokens, None, "stop"))
    assert draft.text == "The answer"
    assert "".join(token.text for token in draft.tokens).strip() == "The answer"
    assert (draft.leg, draft.model, draft.finish_reason) == ("llm", "m", "stop")


def test_a_yes_without_an_answer_is_left_as_it_is() -> None:
    check, shown = read("Yes", ".")
    draft = Draft("llm", "m", "Yes.", (Token("Yes", -0.1), Token(".", -0.1)))
    assert check.strip(draft) == draft
    assert shown == ""
