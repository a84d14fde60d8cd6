"""What may be chosen in the chat settings, what a browser may not, and what a choice does to a turn."""

from typing import Any

import pytest

from rag.errors import UserError
from rag.serve.preferences import FITTED, Preferences, name_in
from rag.settings import Settings
from rag.words import LANGUAGES


@pytest.fixture
def chosen(settings: Settings) -> Preferences:
    return Preferences.of(settings)


def test_who_chose_nothing_gets_the_settings(settings: Settings, chosen: Preferences) -> None:
    assert chosen.mode == settings.mode
    applied = chosen.applied(settings)
    assert applied == settings


def test_what_the_form_says_makes_the_same_choices_again(settings: Settings, chosen: Preferences) -> None:
    values = {
        "mode": "llm", "strategy": "refine", "confidence": "0.3", "passages": 5, "answer_language": "sv",
        "local_only": True, "allow_remote": False, "show_receipts": False,
    }  # fmt: skip
    made = chosen.chosen(values, settings)
    assert made.to_dict() == values
    assert Preferences.of(settings).chosen(made.to_dict(), settings) == made
    applied = made.applied(settings)
    assert (applied.strategy, applied.confidence, applied.llm_passages, applied.answer_language) == (
        "refine", 0.3, 5, "sv",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mode", "both"), ("mode", None), ("mode", 7), ("mode", ["auto"]), ("mode", {"a": 1}),
        ("strategy", ""), ("confidence", "much"), ("confidence", 1.5), ("confidence", -0.1), ("confidence", True),
        ("confidence", "nan"), ("confidence", None), ("passages", 0), ("passages", 11), ("passages", "3"),
        ("passages", float("inf")), ("answer_language", "Klingon"), ("answer_language", ""), ("local_only", "yes"),
        ("allow_remote", 1), ("show_receipts", None),
    ],
)  # fmt: skip
def test_what_the_form_does_not_offer_is_refused_by_name(
    settings: Settings, chosen: Preferences, name: str, value: Any
) -> None:
    with pytest.raises(UserError) as refused:
        chosen.chosen({"mode": "slm", name: value}, settings)
    assert name in str(refused.value)


def test_a_value_without_end_is_not_repeated_whole(settings: Settings, chosen: Preferences) -> None:
    with pytest.raises(UserError) as refused:
        chosen.chosen({"mode": "x" * 10_000}, settings)
    assert len(str(refused.value)) < 200


def test_what_is_missing_stays(settings: Settings, chosen: Preferences) -> None:
    local = chosen.chosen({"local_only": True}, settings)
    assert local.chosen({"mode": "slm"}, settings).remote == "never"


@pytest.mark.parametrize(
    ("local", "allowed", "remote"), [(True, True, "never"), (False, True, "allow"), (False, False, "ask")]
)
def test_local_only_is_above_leave(
    settings: Settings, chosen: Preferences, local: bool, allowed: bool, remote: str
) -> None:
    assert chosen.chosen({"local_only": local, "allow_remote": allowed}, settings).remote == remote


def test_what_the_machine_forbids_nobody_allows(settings: Settings) -> None:
    locked = settings.model_copy(update={"remote": "never"})
    made = Preferences.of(locked).chosen({"local_only": False, "allow_remote": True}, locked)
    assert made.remote == "never"
    widgets = {widget.id: widget for widget in made.form(locked, "en", fitted=0.19, elsewhere="api.example")}
    assert widgets["local_only"].disabled
    assert "allow_remote" not in widgets


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_form_offers_just_what_is_taken(settings: Settings, chosen: Preferences, language: str) -> None:
    widgets = chosen.form(settings, language, fitted=0.19, elsewhere="api.example")
    assert [widget.id for widget in widgets] == [
        "mode", "confidence", "strategy", "passages", "answer_language", "local_only", "allow_remote", "show_receipts",
    ]  # fmt: skip
    assert {widget.id for widget in widgets} == set(chosen.to_dict())
    for widget in widgets:
        items = getattr(widget, "items", None)
        for value in items.values() if items else ():
            chosen.chosen({widget.id: value}, settings)
        if items:
            assert len(set(items.values())) == len(items), "two choices have the same words"
            assert chosen.to_dict()[widget.id] in items.values()


def test_a_threshold_has_words_beside_its_number(settings: Settings, chosen: Preferences) -> None:
    (form,) = (w for w in chosen.form(settings, "en", fitted=0.19, elsewhere=None) if w.id == "confidence")
    labels = {value: label for label, value in form.items.items()}  # type: ignore[attr-defined]
    assert labels[FITTED].startswith("0.19 · as calibrated")
    (form,) = (w for w in chosen.form(settings, "en", fitted=None, elsewhere=None) if w.id == "confidence")
    labels = {value: label for label, value in form.items.items()}  # type: ignore[attr-defined]
    assert labels[FITTED].startswith("0.65 · a formula")


def test_a_language_has_its_name_in_the_readers_own() -> None:
    assert name_in("sv", "pl") == "Szwedzki"
    assert name_in("uk", "en") == "Ukrainian"
