"""Text to terms."""

import pytest

from rag.corpus.analysis import PIECE, indexed, runs, sentences, terms, weighted
from rag.corpus.languages import language


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("Quantisation, explained!", "EXPLAINED quantisation"),
        ("the model's weights", "model weight"),
        ("naïve CAFÉ", "NAÏVE café"),
        ("cafe", "café"),
        ("ﬁle ｆｕｌｌ", "file full"),
        ("小模型優先。", "「小模型優先」"),
        ("1,204 tokens", "1204 token"),
        ("soft\u00adhyphen", "softhyphen"),
    ],
)
def test_case_punctuation_accents_and_form_do_not_matter(text: str, same: str) -> None:
    assert sorted(terms(text)) == sorted(terms(same)) != []


@pytest.mark.parametrize(
    ("text", "whole", "parts"),
    [
        ("max_tokens", "max_tokens", ["max", "token"]),
        ("gpt-oss-20b", "gpt-oss-20b", ["gpt", "oss", "20b"]),
        ("CVE-2026-45018", "cve-2026-45018", ["cve", "2026", "45018"]),
        ("(rag/corpus/index.py)", "rag/corpus/index.py", ["rag", "corpus", "index", "py"]),
        ("maxTokens", "maxtoken", ["max", "token"]),
        ("__init__", "__init__", ["init"]),
        ("3.11.7", "3.11.7", ["3.11"]),
        ("C++", "c++", ["c"]),
    ],
)
def test_identifiers_versions_and_file_names_are_kept_whole_and_in_parts(
    text: str, whole: str, parts: list[str]
) -> None:
    found = terms(f"see {text}, please.")
    assert whole in found
    assert set(parts) <= set(found)


def test_numbers_stay_whole_in_one_form() -> None:
    assert terms("1.2, 0.75 and 0,75 of 12,345") == ["1.2", "0.75", "0.75", "12345"]


def test_scripts_without_spaces_become_shingles() -> None:
    assert terms("大模型 a", "zh") == ["大模", "模型"]
    assert terms("模", "zh") == ["模"]
    assert terms("ภาษา", "th") == ["ภา", "าษ", "ษา"]
    assert terms("모델을", "ko") == ["모델", "델을"]


def test_stop_words_alone_leave_nothing_in_their_own_language() -> None:
    assert terms("What is it about?") == []
    assert terms("Was ist das für eine?", "de") == []
    assert terms("Was the die cast?", "en") == ["die", "cast"]


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("en", "The small model answers first, and the larger one is asked when it has to be."),
        ("de", "Das kleine Modell antwortet zuerst, und das größere wird gefragt, wenn es nötig ist."),
        ("fr", "Le petit modèle répond d'abord, et le grand est consulté quand il le faut dans ce cas."),
        ("es", "El modelo pequeño responde primero, y el grande se consulta cuando es necesario para ello."),
        ("it", "Il modello piccolo risponde per primo, e quello grande viene consultato quando è necessario."),
        ("pt", "O modelo pequeno responde primeiro, e o grande é consultado quando isso for necessário para nós."),
        ("nl", "Het kleine model antwoordt eerst, en het grotere wordt gevraagd wanneer dat nodig is."),
        ("sv", "Den lilla modellen svarar först, och den större tillfrågas när det är nödvändigt."),
        ("pl", "Mały model odpowiada pierwszy, a większy jest pytany, gdy to jest potrzebne."),
        ("fi", "Pieni malli vastaa ensin, ja suurempaa kysytään, kun se on tarpeen, mutta ei muuten."),
        ("ru", "Малая модель отвечает первой, а большую спрашивают, когда это нужно."),
        ("uk", "Мала модель відповідає першою, а більшу питають, коли це потрібно, і так далі."),
        ("el", "Το μικρό μοντέλο απαντά πρώτο και το μεγαλύτερο ρωτάται όταν χρειάζεται."),
        ("zh", "小模型先回答，需要時才詢問大模型。"),
        ("ja", "小さなモデルが最初に答えます。必要なときだけ大きなモデルに聞きます。"),
        ("ko", "작은 모델이 먼저 대답하고 필요할 때 큰 모델에 묻습니다."),
        ("ar", "النموذج الصغير يجيب أولا ثم يسأل النموذج الكبير عند الحاجة إلى ذلك"),
        ("en", "Zebra"),
        ("en", "part | oil\ngearbox | 75W-90\nengine | 5W-30\npump | 10W-40"),
        ("en", "grade | w\ngrade | w\ngrade | w"),
        ("", "1234 5678"),
    ],
)
def test_a_document_tells_its_language(code: str, text: str) -> None:
    assert language(text) == code


def test_a_question_finds_the_stems_of_every_language_of_the_documents() -> None:
    asked = weighted("Welche Regierungen?", {"de", "en"})
    assert set(terms("die Regierung", "de")) <= asked.keys()
    assert set(terms("Regierungen", "en")) <= asked.keys()


def test_stop_words_of_the_questions_language_count_in_none() -> None:
    asked = weighted("What is the capital of the country?", {"en", "es", "de"})
    assert not {"the", "of", "what", "is"} & asked.keys()
    assert "capit" in asked


def test_a_shared_part_of_a_compound_counts_less_than_a_shared_word() -> None:
    compound = set(indexed("Donaudampfschifffahrtsgesellschaft", "de").split())
    asked = weighted("Dampfschiff", {"de"})
    shared = compound & asked.keys()
    assert shared, "pieces join them"
    assert all(term.startswith(PIECE) and asked[term] < 1 for term in shared)


def test_a_repeated_word_weighs_more() -> None:
    assert weighted("tea and tea")["tea"] == 2 * weighted("tea")["tea"]


def test_strange_text_is_no_error() -> None:
    for text in ("", "\ud800 lone", "\x00\x01", "'" * 50, "_" * 50, "a" * 100_000, "-._/@" * 20, "\u202e\u200b"):
        assert isinstance(terms(text), list)


def test_sentences_end_at_marks_blank_lines_and_list_items_but_not_at_wrapped_lines() -> None:
    text = "It costs 1.5 dollars\nin all. Really?\n\nNo mark here\n- first item\n- second。第二句。"
    assert [text[start:end] for start, end in sentences(text)] == [
        "It costs 1.5 dollars\nin all.", "Really?", "No mark here", "- first item", "- second。", "第二句。",
    ]  # fmt: skip


def test_shingles_of_one_run_stay_together_and_words_stand_alone() -> None:
    found = runs(terms("小模型優先 RAG 三種, 怎麼辦 low band"))
    assert list(found) == [["小模", "模型", "型優", "優先"], ["rag"], ["三種"], ["怎麼", "麼辦"], ["low"], ["band"]]
