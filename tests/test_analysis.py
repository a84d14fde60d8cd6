"""Text to terms."""

import pytest

from rag.corpus.analysis import sentences, terms


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("Quantisation, explained!", "EXPLAINED quantisation"),
        ("the model's weights", "model weight"),
        ("naïve CAFÉ", "NAÏVE café"),
        ("ﬁle ｆｕｌｌ", "file full"),
        ("小模型優先。", "「小模型優先」"),
        ("1,204 tokens", "1204 token"),
    ],
)
def test_case_punctuation_and_form_do_not_matter(text: str, same: str) -> None:
    assert sorted(terms(text)) == sorted(t for t in terms(same))


def test_numbers_stay_whole_and_names_with_digits_too() -> None:
    assert terms("k1 = 1.2, 0.75 and gpt-oss-20b") == ["k1", "1.2", "0.75", "gpt", "oss", "20b"]


def test_scripts_without_spaces_become_shingles() -> None:
    assert terms("大模型 a") == ["大模", "模型"]
    assert terms("模") == ["模"]


def test_stop_words_alone_leave_nothing() -> None:
    assert terms("What is it about?") == []


def test_sentences_end_at_marks_blank_lines_and_list_items_but_not_at_wrapped_lines() -> None:
    text = "It costs 1.5 dollars\nin all. Really?\n\nNo mark here\n- first item\n- second。第二句。"
    assert [text[start:end] for start, end in sentences(text)] == [
        "It costs 1.5 dollars\nin all.", "Really?", "No mark here", "- first item", "- second。", "第二句。",
    ]  # fmt: skip
