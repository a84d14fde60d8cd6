"""Every text in every language: there, whole, used; and how a browser comes to its own."""

import ast
import copy
import importlib.util
import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx2
import pytest
from babel import Locale
from fastapi import FastAPI, Request

from rag import words
from rag.serve.words import Tongue, router
from rag.words import LANGUAGES, PLACEHOLDER, SECTIONS, Said, Text, catalogue, language_of, say, told, translated

ROOT = Path(__file__).parent.parent
OTHERS = [language for language in LANGUAGES if language != "en"]
INTERFACE = ROOT / ".chainlit" / "translations"
FILES = {"en": "en-US"}
"""Chainlit's files by our languages, where the names differ."""

ADDED = {"auth.login.errors.too many requests"}
"""Its login page looks a refusal up by the words of its status, and has none for this one."""

SAME = {
    "ms": {"Beta", "Idea", "S", "SLM", "LLM"},
    "pl": {"Beta", "Limit:", "S", "SLM", "LLM"},
    "sv": {"Beta", "S", "SLM", "LLM", "{count} tokens"},
    "uk": {"S", "SLM", "LLM"},
    "zh-TW": {"S", "SLM", "LLM"},
}
"""Texts that are the same in English. A text without letters of its own is none of them."""


@pytest.fixture(autouse=True)
def what_is_missing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "strict", True)


def texts(language: str, section: str) -> dict[str, Text]:
    """One file as it stands, without any stand-in."""
    file = words.FOLDER / language / f"{section}.json"
    return json.loads(file.read_text("utf-8")) if file.exists() else {}  # type: ignore[no-any-return]


def forms(text: Text) -> list[str]:
    return [text] if isinstance(text, str) else list(text.values())


def placeholders(text: Text) -> set[str]:
    return {name for form in forms(text) for name in PLACEHOLDER.findall(form)}


def interface(language: str) -> dict[str, str]:
    """Chainlit's texts in one language by their dotted keys."""
    return dict(leaves(json.loads((INTERFACE / f"{FILES.get(language, language)}.json").read_text("utf-8"))))


def shipped() -> dict[str, str]:
    chainlit = importlib.util.find_spec("chainlit")
    assert chainlit is not None
    assert chainlit.origin is not None
    return dict(leaves(json.loads((Path(chainlit.origin).parent / "translations" / "en-US.json").read_text("utf-8"))))


def leaves(node: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def pairs(language: str) -> Iterator[tuple[str, str, str]]:
    """Key, English and translation of everything that a person reads in that language, plural forms one by one."""
    for section in SECTIONS:
        english = texts("en", section)
        for key, text in texts(language, section).items():
            for form in forms(text):
                yield f"{section}.{key}", forms(english[key])[-1], form
    spoken, here = shipped(), interface("en")
    for key, text in interface(language).items():
        yield key, here.get(key) or spoken[key], text


# --- the files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("language", OTHERS)
@pytest.mark.parametrize("section", SECTIONS)
def test_every_language_has_every_text(language: str, section: str) -> None:
    english, theirs = texts("en", section), texts(language, section)
    assert sorted(english.keys() - theirs.keys()) == [], "not translated"
    assert sorted(theirs.keys() - english.keys()) == [], "no longer in English"


@pytest.mark.parametrize("language", OTHERS)
@pytest.mark.parametrize("section", SECTIONS)
def test_a_translation_takes_the_same_values(language: str, section: str) -> None:
    english, theirs = texts("en", section), texts(language, section)
    differing = {
        key: placeholders(theirs[key]) ^ placeholders(english[key])
        for key in english.keys() & theirs.keys()
        if placeholders(theirs[key]) ^ placeholders(english[key])
    }
    assert differing == {}
    assert [
        k for k in english.keys() & theirs.keys() if isinstance(english[k], dict) != isinstance(theirs[k], dict)
    ] == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_plural_has_the_forms_of_its_language(language: str) -> None:
    rule = Locale.parse(language, sep="-").plural_form
    needed = {rule(number) for number in range(1001)}
    for section in SECTIONS:
        for key, text in texts(language, section).items():
            if isinstance(text, dict):
                assert set(text) == needed, f"{language}/{section}.{key}"


@pytest.mark.parametrize("language", OTHERS)
def test_no_translation_is_empty_or_english(language: str) -> None:
    wrong = [
        (key, text)
        for key, english, text in pairs(language)
        if not text.strip()
        or (text == english and re.search(r"[^\W\d]{2}|^\w$", PLACEHOLDER.sub("", text)) and text not in SAME[language])
    ]
    assert wrong == []


@pytest.mark.parametrize("language", OTHERS)
def test_a_translation_ends_as_the_english_does(language: str) -> None:
    def end(text: str) -> str:
        """Its last sign, if it is one that ends a sentence or opens a list."""
        last = text.rstrip('"”»」’*)）').translate(str.maketrans("。？！：", ".?!:"))[-1:]
        return last if last in set(".?!:…") else ""

    ours = {f"{section}.{key}" for section in SECTIONS for key in texts("en", section)}
    wrong = [(key, text) for key, english, text in pairs(language) if key in ours and end(text) != end(english)]
    assert wrong == []
    padded = [
        (k, text) for k, english, text in pairs(language) if (text != text.strip()) != (english != english.strip())
    ]
    assert padded == []


def test_letters_of_a_neighbouring_language_do_not_slip_in() -> None:
    def simplified(text: str) -> bool:
        for letter in text:
            if "\u4e00" <= letter <= "\u9fff":
                try:
                    letter.encode("big5")
                except UnicodeEncodeError:
                    return True
        return False

    welcome = {language: (ROOT / f"chainlit_{language}.md").read_text("utf-8") for language in OTHERS}
    assert [text for _, _, text in pairs("zh-TW") if simplified(text)] == []
    assert not simplified(welcome["zh-TW"])
    russian = re.compile("[ыэёъ]", re.IGNORECASE)
    assert [text for _, _, text in pairs("uk") if russian.search(text)] == []
    assert not russian.search(welcome["uk"])
    indonesian = re.compile(r"\b(anda bisa|bisa|silakan|berkas|unggah|pengaturan|kata sandi|kesalahan|karena)\b")
    assert [text for _, _, text in pairs("ms") if indonesian.search(text.lower())] == []
    assert not indonesian.search(welcome["ms"].lower())


# --- keys and code ---------------------------------------------------------------------------------------------------
# A key stands in code as a literal of its own: in say("..."), in t("..."), or in a table. One that is built at run time
# is listed in a comment beside it: `words: page.span_load page.span_judge`.

KEY = rf"(?:{'|'.join(SECTIONS)})\.[a-z0-9_]+"
LITERAL = re.compile(rf"""(["'`])({KEY})\1""")
NO_KEYS = {"chat.completion"}
"""Literals that only look like one: OpenAI's name of an answer."""
LISTED = re.compile(rf"\bwords:((?:\s+{KEY})+)")
PYTHON = [ROOT / "app.py", *sorted((ROOT / "rag").rglob("*.py"))]
ONDEVICE = ROOT / "rag" / "serve" / "ondevice" / "page"
PAGE = sorted(
    file
    for folder in (ROOT / "public", ONDEVICE)
    for ending in ("*.js", "*.jsx", "*.html")
    for file in folder.rglob(ending)
)


def keys_in(source: str) -> set[str]:
    # The words of a prose comment are not code: `t("page.remove")` in one is an example.
    bare = re.sub(r"^\s*(//|#)(?!.*\bwords:).*$", "", source, flags=re.MULTILINE)
    listed = {key for found in LISTED.finditer(bare) for key in found[1].split()}
    return ({found[2] for found in LITERAL.finditer(bare)} | listed) - NO_KEYS


def test_every_key_in_code_is_a_text_and_every_text_has_its_place() -> None:
    known = {f"{section}.{key}" for section in SECTIONS for key in texts("en", section)}
    used = {key: file.name for file in PYTHON + PAGE for key in keys_in(file.read_text("utf-8"))}
    assert {key: file for key, file in used.items() if key not in known} == {}, "without a text"
    assert sorted(known - used.keys()) == [], "without a place"


def test_a_sentence_gets_the_values_that_it_names() -> None:
    wrong = []
    for file in PYTHON:
        for call in ast.walk(ast.parse(file.read_text("utf-8"))):
            if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "say"):
                continue
            given = {keyword.arg for keyword in call.keywords}
            for node in ast.walk(call.args[0]) if call.args and None not in given else ():
                if not (isinstance(node, ast.Constant) and isinstance(node.value, str)):
                    continue
                text = catalogue("en").get(node.value)
                if text is not None:
                    needed = placeholders(text) | ({"count"} if isinstance(text, dict) else set())
                    if needed != given:
                        wrong.append((file.name, node.value, sorted(needed), sorted(map(str, given))))
    assert wrong == []


# --- saying ----------------------------------------------------------------------------------------------------------

FOUND = {"one": "{count} document in {where}", "other": "{count} documents in {where}"}
FOUND_UK = {
    "one": "{count} документ у {where}",
    "few": "{count} документи в {where}",
    "many": "{count} документів у {where}",
}


@pytest.fixture
def catalogues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of texts in the place of the product's; English and Ukrainian, the latter not whole."""
    for language, content in {
        "en": {"found": FOUND, "the_folder": "the folder", "score": "score {score}", "only_here": "Only here"},
        "uk": {"found": FOUND_UK, "the_folder": "теці", "score": "оцінка {score}"},
    }.items():
        (tmp_path / language).mkdir()
        (tmp_path / language / "chat.json").write_text(json.dumps(content), "utf-8")
    monkeypatch.setattr(words, "FOLDER", tmp_path)
    monkeypatch.setattr(words, "SECTIONS", ("chat",))
    forget()
    yield tmp_path
    forget()


def forget() -> None:
    words._texts.cache_clear()
    words._report.cache_clear()


@pytest.mark.parametrize(
    ("count", "english", "ukrainian"),
    [
        (1, "1 document in the folder", "1 документ у теці"),
        (3, "3 documents in the folder", "3 документи в теці"),
        (11, "11 documents in the folder", "11 документів у теці"),
        (12345, "12,345 documents in the folder", "12\xa0345 документів у теці"),
    ],
)
def test_what_was_said_can_be_told_in_another_language(
    catalogues: Path, count: int, english: str, ukrainian: str
) -> None:
    said = say("chat.found", count=count, where=say("chat.the_folder"))
    assert said == english
    assert told(said, "en") == english
    assert told(said, "uk") == ukrainian


def test_a_number_is_written_as_the_language_does_and_a_string_as_it_is(catalogues: Path) -> None:
    assert told(say("chat.score", score=0.5), "uk") == "оцінка 0,5"
    assert told(say("chat.score", score="0.50"), "uk") == "оцінка 0.50"


def test_what_was_said_survives_copies_and_is_plain_english_elsewhere(catalogues: Path) -> None:
    said = say("chat.found", count=2, where=say("chat.the_folder"))
    for kept in (copy.copy(said), copy.deepcopy({"a": [said]})["a"][0], pickle.loads(pickle.dumps(said))):
        assert type(kept) is Said
        assert told(kept, "uk") == "2 документи в теці"
    assert json.dumps([said]) == '["2 documents in the folder"]'
    assert type(f"{said}") is str
    assert type(str(said)) is str


def test_a_whole_structure_is_translated_and_the_original_is_not_touched(catalogues: Path) -> None:
    folder = say("chat.the_folder")
    turn = {"notes": [folder, "plain"], "verdict": {"reason": folder, "score": 0.5}, "pair": (folder, None)}
    ours = translated(turn, "uk")
    assert ours == {"notes": ["теці", "plain"], "verdict": {"reason": "теці", "score": 0.5}, "pair": ("теці", None)}
    assert turn["notes"][0] is folder  # type: ignore[index]


def test_what_is_missing_is_an_error_in_tests(catalogues: Path) -> None:
    with pytest.raises(KeyError, match=r"chat\.nothing"):
        say("chat.nothing")
    with pytest.raises(KeyError, match="where"):
        say("chat.found", count=1)
    with pytest.raises(KeyError, match="count"):
        say("chat.found", where="here")


def test_what_is_missing_breaks_no_chat_and_is_logged_once(
    catalogues: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(words, "strict", False)
    for _ in range(2):
        assert say("chat.nothing") == "chat.nothing"
        assert say("nowhere.nothing") == "nowhere.nothing"
        assert told(say("chat.only_here"), "uk") == "Only here"
        assert say("chat.found", count=1) == "1 document in {where}"
        assert say("chat.found", where="here") == "{count} documents in here"
    assert catalogue("uk")["chat.only_here"] == "Only here"
    assert len(caplog.messages) == 4


def test_a_file_that_cannot_be_read_leaves_its_section_english(
    catalogues: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (catalogues / "uk" / "chat.json").write_text('{"found": ')
    assert told(say("chat.the_folder"), "uk") == "the folder"
    assert "'chat' in uk" in caplog.messages[0]


# --- whose language --------------------------------------------------------------------------------------------------

BROWSERS = {
    "uk-UA,uk;q=0.9,en;q=0.8": "uk",
    "uk,en-US;q=0.7,en;q=0.3": "uk",
    "sv-SE,sv;q=0.9,en-US;q=0.8,en;q=0.7": "sv",
    "sv-FI": "sv",
    "pl-PL,pl;q=0.9,en-US;q=0.8": "pl",
    "ms-MY": "ms",
    "en-GB,en;q=0.9,sv;q=0.8": "en",
    "zh-TW,zh;q=0.9,en-US;q=0.8,en;q=0.7": "zh-TW",
    "zh-Hant-HK": "zh-TW",
    "zh-Hant": "zh-TW",
    "zh-HK,zh;q=0.9": "zh-TW",
    "zh_TW": "zh-TW",
    "zh-CN,zh;q=0.9,en;q=0.8,zh-TW;q=0.7": "en",
    "zh-Hans-HK": "en",
    "zh-CN": "en",
    "zh": "en",
    "nb-NO,nb;q=0.9,en;q=0.8": "en",
    "nb,sv;q=0.5": "sv",
    "id-ID,id;q=0.9": "en",
    "ru-RU,ru;q=0.9": "en",
    "en;q=0.2, pl;q=0.9": "pl",
    "pl;q=0, sv;q=0.1": "sv",
    "de-DE": "en",
    "*": "en",
    "": "en",
    "pl;q=nothing": "en",
    "../../etc/passwd": "en",
}


@pytest.mark.parametrize("tags", BROWSERS)
def test_a_browser_gets_the_language_that_suits_it_best(tags: str) -> None:
    assert language_of(tags) == BROWSERS[tags]


def server() -> httpx2.AsyncClient:
    """Our route, and one in the place of Chainlit's that tells what it was asked."""
    app = FastAPI()
    app.include_router(router())

    @app.get("/project/settings")
    @app.get("/elsewhere")
    async def asked(request: Request) -> dict[str, str]:
        return dict(request.query_params)

    app.add_middleware(Tongue)
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://chat")


async def test_the_page_gets_all_texts_and_is_told_their_language() -> None:
    async with server() as client:
        answer = await client.get("/words?language=sv-FI", headers={"Accept-Language": "pl"})
        assert answer.headers["Content-Language"] == "sv"
        assert answer.json() == catalogue("sv")
        assert answer.json().keys() == catalogue("en").keys()
        without = await client.get("/words", headers={"Accept-Language": "pl"})
        assert without.headers["Content-Language"] == "pl"


async def test_texts_that_the_browser_has_are_not_sent_again() -> None:
    async with server() as client:
        first = await client.get("/words?language=uk")
        assert first.headers["Cache-Control"] == "no-cache"
        again = await client.get("/words?language=uk", headers={"If-None-Match": f'"other", W/{first.headers["ETag"]}'})
        assert (again.status_code, again.content) == (304, b"")
        english = await client.get("/words?language=en", headers={"If-None-Match": '"other"'})
        assert english.status_code == 200


async def test_chainlit_is_asked_for_a_language_by_the_name_of_our_files() -> None:
    async with server() as client:

        async def heard(path: str) -> Any:
            return (await client.get(path)).json()

        assert await heard("/project/settings?language=zh-Hant-HK&chat_profile=a%20b%26c") == {
            "language": "zh-TW",
            "chat_profile": "a b&c",
        }
        assert await heard("/project/settings?language=uk-UA") == {"language": "uk"}
        assert await heard("/project/settings?language=de-DE") == {"language": "de-DE"}
        assert await heard("/project/settings") == {}
        assert await heard("/elsewhere?language=uk-UA") == {"language": "uk-UA"}


# --- Chainlit's own texts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("language", LANGUAGES)
def test_chainlits_own_texts_are_whole(language: str) -> None:
    english, ours = shipped(), interface(language)
    assert ours.keys() == english.keys() | ADDED
    variables = re.compile(r"\{\{\w+\}\}")
    for key, text in english.items():
        assert variables.findall(ours[key]) == variables.findall(text), key


ASK_CHAINLIT = """
import asyncio, json, sys
import httpx2
from chainlit.config import config
from chainlit.server import app
from rag.serve.words import Tongue

app.add_middleware(Tongue)

async def main():
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://chat") as client:
        for tag in sys.argv[1:]:
            texts = (await client.get("/project/translations", params={"language": tag})).json()["translation"]
            page = (await client.get("/project/settings", params={"language": tag})).json()
            print(json.dumps([tag, texts["navigation"]["newChat"]["button"], page["markdown"]]))

asyncio.run(main())
"""


def test_chainlit_itself_greets_a_browser_in_its_language(tmp_path: Path) -> None:
    (tmp_path / ".chainlit" / "translations").mkdir(parents=True)
    for name in [".chainlit/config.toml", *(f"chainlit{end}.md" for end in ["", *(f"_{one}" for one in OTHERS)])]:
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    for language in LANGUAGES:
        name = f"{FILES.get(language, language)}.json"
        (tmp_path / ".chainlit" / "translations" / name).write_bytes((INTERFACE / name).read_bytes())
    spoken = {"uk-UA": "uk", "zh-HK": "zh-TW", "zh-Hant-TW": "zh-TW", "ms-MY": "ms", "sv-FI": "sv", "pl": "pl"}
    spoken |= {"en-GB": "en", "nb-NO": "en"}
    done = subprocess.run(
        [sys.executable, "-c", ASK_CHAINLIT, *spoken, "de-DE"],
        cwd=ROOT, env={**os.environ, "CHAINLIT_APP_ROOT": str(tmp_path)}, stdin=subprocess.DEVNULL, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    heard = {tag: (button, markdown) for tag, button, markdown in map(json.loads, done.stdout.splitlines())}
    for tag, language in spoken.items():
        ending = "" if language == "en" else f"_{language}"
        welcome = (ROOT / f"chainlit{ending}.md").read_text("utf-8")
        assert heard[tag] == (interface(language)["navigation.newChat.button"], welcome)
    assert heard["de-DE"][0] == "Neuer Chat", "what Chainlit brings is there as well"
