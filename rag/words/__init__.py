"""What Small First says to a person, in six languages.

The texts lie beside this file as `<language>/<section>.json`: a key, and either a text with `{name}` placeholders or,
where the number `{count}` decides, one text for each CLDR plural form (`{"one": ..., "other": ...}`). A full key is
`<section>.<key>`. `say` makes the English sentence, which remembers its key and values; `told` says it again in another
language at the door where somebody reads it. An int among the values is written with the language's thousands and a
float with its decimal sign; a str stands as it is, so a number that must not be changed is passed as one.

Knows nothing of who reads, of pages or requests. A missing text is never an error for a person: English stands in, then
the key, and the log says so once. Tests set `strict`, and then what is missing in English is a KeyError.
"""

import json
import logging
import re
from collections.abc import Callable, Mapping
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from babel import Locale

log = logging.getLogger("smallfirst.words")

LANGUAGES: Final = ("en", "zh-TW", "uk", "ms", "sv", "pl")
FOLDER: Final = Path(__file__).parent
SECTIONS: Final = tuple(sorted(file.stem for file in (FOLDER / "en").glob("*.json")))

Text = str | dict[str, str]
"""A text, or one for each plural form."""

strict = False
"""Is what is missing in English a KeyError?"""

PLACEHOLDER: Final = re.compile(r"\{(\w+)\}")
TAG: Final = re.compile(r"[a-z]{1,8}([-_][a-z0-9]{1,8})*", re.IGNORECASE)


class Said(str):
    """A sentence in English that can be said in the other languages.

    Everything that makes another str of it (f-strings, `str()`, `+`, JSON) forgets that; copying and pickling do not.
    """

    key: str
    values: dict[str, object]

    def __new__(cls, text: str, key: str, values: Mapping[str, object]) -> "Said":
        said = super().__new__(cls, text)
        said.key, said.values = key, dict(values)
        return said

    def __reduce__(self) -> tuple[type["Said"], tuple[str, str, dict[str, object]]]:
        return Said, (str(self), self.key, self.values)


def say(key: str, **values: object) -> Said:
    """The sentence of that key in English. Values may be Said themselves."""
    return Said(_sentence(key, values, "en"), key, values)


def told(text: str, language: str) -> str:
    """The same in that language, with its values that are Said; a str that is not Said is itself."""
    if not isinstance(text, Said):
        return text
    return str(text) if language == "en" else _sentence(text.key, text.values, language)


def translated(value: Any, language: str) -> Any:
    """A copy of dicts, lists and tuples in which everything Said is told in that language."""
    return with_texts(value, lambda text: told(text, language))


def with_texts(value: Any, change: Callable[[str], str]) -> Any:
    """A copy of dicts, lists and tuples in which each text, Said or not, is what `change` makes of it."""
    match value:
        case str():
            return change(value)
        case dict():
            return {key: with_texts(item, change) for key, item in value.items()}
        case list():
            return [with_texts(item, change) for item in value]
        case tuple():
            return tuple(with_texts(item, change) for item in value)
    return value


def language_of(tags: str) -> str:
    """The language of LANGUAGES that suits a BCP 47 tag or an Accept-Language header best; "en" if none does.

    A neighbour is not a match (nb is not sv, id is not ms), nor are Traditional characters for who reads Simplified
    ones: zh-CN, and zh alone, which means the same (CLDR's likely subtags), go on to the next tag of the header.
    """
    asked = [_weighed(item) for item in tags.split(",")]
    for _, tag in sorted((item for item in asked if item[0] > 0), key=lambda item: -item[0]):
        if language := _served(tag):
            return language
    return "en"


def catalogue(language: str) -> dict[str, Text]:
    """All texts by their full keys, for the page; English where that language has none."""
    return {
        f"{section}.{key}": _texts(language, section).get(key, text)
        for section in SECTIONS
        for key, text in _texts("en", section).items()
    }


def _weighed(item: str) -> tuple[float, str]:
    """One item of an Accept-Language header as weight and tag; what is none weighs nothing."""
    tag, _, weight = (part.strip() for part in item.partition(";"))
    if not TAG.fullmatch(tag):
        return 0, ""
    try:
        return float(weight.removeprefix("q=") or 1), tag.replace("_", "-").lower()
    except ValueError:
        return 0, ""


def _served(tag: str) -> str | None:
    language, *rest = tag.split("-")
    if language != "zh":
        return language if language in LANGUAGES else None
    traditional = "hant" in rest or ("hans" not in rest and not {"tw", "hk", "mo"}.isdisjoint(rest))
    return "zh-TW" if traditional else None


def _sentence(key: str, values: Mapping[str, object], language: str) -> str:
    section, _, name = key.partition(".")
    text = _texts(language, section).get(name)
    if text is None and language != "en":
        _report(key, language)
        language, text = "en", _texts("en", section).get(name)
    if text is None:
        if strict:
            raise KeyError(f"There is no text {key!r} in rag/words/en/{section}.json.")
        _report(key, language)
        return key
    return PLACEHOLDER.sub(lambda found: _value(found[1], values, key, language), _form(text, values, key, language))


def _form(text: Text, values: Mapping[str, object], key: str, language: str) -> str:
    """The text for the number among the values."""
    if isinstance(text, str):
        return text
    count = values.get("count")
    form = _plural(count, language) if isinstance(count, int | float) else None
    if form in text:
        return text[form]
    if strict:
        raise KeyError(f"{key!r} has no text in {language} for count={count!r}.")
    _report(key, language)
    return list(text.values())[-1]


def _plural(count: float, language: str) -> str:
    """CLDR's name of the form; the English rule needs no Babel."""
    if language == "en" and isinstance(count, int):
        return "one" if count == 1 else "other"
    return _locale(language).plural_form(count)


def _value(name: str, values: Mapping[str, object], key: str, language: str) -> str:
    if name not in values:
        if strict:
            raise KeyError(f"{key!r} needs a value for {name!r}.")
        _report(key, language)
        return f"{{{name}}}"
    value = values[name]
    if isinstance(value, str):
        return str(told(value, language))
    if isinstance(value, int) and language == "en":
        return f"{value:,}"  # every turn says some numbers in English, and to ask Babel would be most of their cost
    if isinstance(value, int | float):
        from babel.numbers import format_decimal

        return format_decimal(value, locale=_locale(language))
    return str(value)


@cache
def _texts(language: str, section: str) -> dict[str, Text]:
    """One file; empty if there is none, or if it cannot be read."""
    if language not in LANGUAGES or section not in SECTIONS:
        return {}
    try:
        texts: dict[str, Text] = json.loads((FOLDER / language / f"{section}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        log.error("No texts of the section %r in %s: %s", section, language, error)
        return {}
    return texts


@cache
def _locale(language: str) -> "Locale":
    from babel import Locale

    return Locale.parse(language, sep="-")


@lru_cache(maxsize=1000)
def _report(key: str, language: str) -> None:
    """Once for each text, not each time it is said."""
    log.warning("The text %r is missing or incomplete in %s.", key, language)
