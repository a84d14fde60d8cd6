"""A follow-up becomes a question that can be searched for: which question leans on the one before it, and on what.

Knows how questions lean in English, German, French, Spanish, Russian, Chinese and Japanese; asks no model. A question
that names its own subject stays as it is. What is carried over are words as they were written, for people to read.
"""

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from rag.corpus import analysis
from rag.corpus.index import Query
from rag.corpus.languages import STOP_WORDS
from rag.turn.session import Exchange

Idf = Callable[[str], float]

MOST_WORDS = 6
"""Carried over from the question that began the subject, at most; the most telling ones."""
MOST_PASSING = 2
"""From the follow-ups since then."""
MOST_ANSWERED = 2
"""From the last answer."""


@dataclass(frozen=True)
class _Tongue:
    """How one language leans. All of it is matched in lower case."""

    pronouns: str
    possessives: str = r"(?!)"
    joins: str = r"(?!)"
    """A question that begins so continues the one before it, unless it names something itself."""
    turns: str = r"(?!)"
    """A question that begins so puts the earlier one to something else."""
    clauses: str = r"(?!)"
    """What comes after this may refer to what comes before it."""
    verbs: str = r"(?!)"
    """Verbs that have no subject matter of their own. "What is BM25?" holds one and is whole; "How many?" holds none."""


def _any(words: str) -> str:
    return rf"\b(?:{words.replace(' ', '|')})\b"


_ENGLISH = _Tongue(
    # "it takes" and "it is possible" stand for nothing; "that" mostly joins clauses.
    pronouns=r"\bit\b(?! (?:take|possible|true|necessary|allowed|safe|better|rain)\w*\b)"
    r"|\b(?:they|them|he|him|she|these|those|this(?! (?:year|month|week|season|morning)\b))\b"
    r"|(?<=\bis |\bdo |\bof |\bby |\bto |\bin )that\b|(?<=\b(?:was|did|for) )that\b"
    r"|(?<=\b(?:does|with|mean|than|like) )that\b|(?<=\b(?:about|after) )that\b|(?<=\bbefore )that\b"
    r"|\bthe (?:same|former|latter|others?)\b|\b(?:both|either|neither) of\b|\bthe \w+ ones?\b",
    possessives=_any("its their theirs his her hers"),
    joins=_any("and but so then also or"),
    turns=r"(?:what|how) about\b|why\W*$|why not\b|how so\b|which ones?\b|really\b|since when\W*$|else\b|what else\b",
    clauses=_any("and but or when if because while after before that which who whom whose where since as than"),
    verbs=_any("is are was were am be been do does did has have had can could will would shall should may might must"),
)
_TONGUES = {
    "en": _ENGLISH,
    "de": _Tongue(
        pronouns=r"(?<!gibt )(?<!geht )(?<!gab )(?<!ging )(?<!dauert )(?<!dauerte )(?<!braucht )\bes\b(?! (?:gibt|geht|um))"
        r"|\b(?:er|sie|ihn|ihm|ihnen|dieser|diese|dieses|diesem|diesen|jener|jene|jenes"
        r"|davon|dafür|dazu|daran|darauf|darüber|darin|dabei|dort)\b|\bdas\b(?=\W*$)",
        possessives=_any("ihr ihre ihrem ihren ihrer ihres seine seinem seinen seiner seines deren dessen"),
        joins=_any("und aber oder dann also auch"),
        turns=r"was ist mit\b|wie ist es (?:mit|bei)\b|wie sieht es (?:mit|bei)\b|warum\W*$|wieso\W*$|seit wann\W*$",
        clauses=_any("und aber oder wenn weil während nachdem bevor dass der die das welche welcher welches als"),
        verbs=_any("ist sind war waren hat haben hatte kann können wird werden wurde wurden gibt gab soll muss darf"),
    ),
    "fr": _Tongue(
        pronouns=r"\bils?\b(?! (?:y a|faut|existe))|\b(?:elles?|lui|leur|cette|cet|ces|cela|ça|celui-ci|celle-ci"
        r"|ceux-ci)\b",
        possessives=_any("son sa ses leur leurs"),
        joins=_any("et mais alors donc puis aussi ou"),
        turns=r"qu'en est-il\b|pourquoi\W*$|depuis quand\W*$",
        clauses=_any("et mais quand si parce pendant après avant que qui dont où lorsque"),
        verbs=_any("est sont était étaient a ont avait peut peuvent fait font doit"),
    ),
    "es": _Tongue(
        pronouns=_any("él ella ellos ellas este esta estos estas ese esa eso esto esos esas aquel aquella ello"),
        possessives=_any("su sus suyo suya"),
        joins=_any("y e pero entonces luego también o"),
        turns=r"qué (?:tal|hay de)\b|por qué\W*$|desde cuándo\W*$",
        clauses=_any("y pero cuando si porque mientras después antes que quien cuyo donde"),
        verbs=_any("es son era eran fue fueron ha han tiene tienen puede pueden hay está están hace"),
    ),
    "ru": _Tongue(
        pronouns=r"(?<!что )\bэто\b|"
        + _any(
            "он она оно они ему ей им ними ним нём нем ней них этот эта эти этого этой этом этих этому этим"
            " этими эту там"
        ),
        possessives=_any("его её ее их"),
        joins=_any("а и но или тогда ещё еще также"),
        turns=r"как насч[её]т\b|почему\W*$|зачем\W*$|с каких пор\W*$",
        clauses=_any("и а но или когда если потому пока после до что который которая которое которые где чем"),
        verbs=_any("есть был была было были может могут такое такой такая"),
    ),
    "zh": _Tongue(
        pronouns=r"[它他她牠]|[這这](?!樣的話)|那(?=[個个些種种裡里邊边時时麼么])|(?<![應应活])[該该]"
        r"|(?<![因如彼])此(?!外)|其(?![他它餘余實实中])",
        joins=r"那|而|所以|可是|但|還有|还有|另外|然後|然后",
        turns=r".{0,12}呢\W*$|為什麼\W*$|为什么\W*$|怎麼說\W*$",
    ),
    "ja": _Tongue(
        pronouns=r"それ|これ|あれ|その|この|あの|そこ|ここ|彼女|彼|そちら|こちら",
        joins=r"では|じゃあ?|で、|それで|また|そして|でも|しかし",
        turns=r".{0,12}(?:は|って)[?？]?$|なぜ[?？]?$|どうして[?？]?$",
    ),
}
_PATTERNS = {
    name: {part: re.compile(pattern) for part, pattern in vars(tongue).items()} for name, tongue in _TONGUES.items()
}

_CJK = re.compile("[\u2e80-\u9fff\uf900-\ufaff]+")
# A name: letters with a digit or an inner mark, capitals inside a word, or a capital where no sentence begins.
_NAME = re.compile(
    r"\b(?=\w*[^\W\d])(?=\w*\d)\w+|\b\w+[_./]\w+\b|\b[^\W\d_]+-\d|\b\w*[^\W\d_][A-Z]\w*|(?<=[\w,;:»\"'’)]"
    r" )[^\W\d_a-zß-öø-ÿа-яё]\w+"
)
_ASKING = re.compile(
    r"\b(?:what|which|who|whom|whose|when|where|how|was|welche[rsmn]?|wer|wann|wo|wie|wieviele?|combien"
    r"|quel(?:le)?s?|quand|où|qui"
    r"|comment|cuál(?:es)?|cuándo|cuántos?|cuántas?|cuánto|dónde|quién(?:es)?|qué|cómo|какой|какая|какие|какое"
    r"|кто|когда"
    r"|где|сколько|как)\b|多少|幾|几|誰|谁|哪|何時|何时|いくら|いつ|どこ|誰|何",
    re.IGNORECASE,
)
# Words of Chinese and Japanese questions that carry no subject; their analysis has shingles and no stop words.
_EMPTY = re.compile(
    "什麼|什么|甚麼|多少|如何|怎麼|怎么|怎樣|怎样|為何|为何|哪一|哪些|哪裡|哪里|哪|誰|谁|幾|几|是否"
    "|[是的了嗎吗呢有在和與与會会]"
    "|ですか|ますか|でした|です|ます|とは|なぜ|どの|どう|いつ|どこ|いくら|何|[はがをにでとのもか]"
)
_MARKER = re.compile(r"\[\d+\]")
_EDGES = "\"'“”‘’«»()[]{}<>.,;:!?¿¡…。，、；：！？「」『』（）"


def rewrite(question: str, history: Sequence[Exchange], idf: Idf, languages: Collection[str]) -> Query:
    """What to search for. Only a question that leans on the conversation carries words over from it.

    A chain of follow-ups is walked back to the last question that stood by itself; `idf` and `languages` are the index's.
    """
    if not history or not leans(question):
        return Query(question)
    taken = set(analysis.weighted(question, languages))
    unknown = idf("")

    def most_telling(text: str, most: int) -> list[str]:
        """Words of `text` whose terms the index knows and nobody has taken, in their order."""
        of_text = analysis.weighted(text, languages)
        found: dict[str, tuple[float, int, str]] = {}
        for number, word in enumerate(_words(text)):
            terms = [term for term in analysis.weighted(word, languages) if term in of_text and term not in taken]
            known = [term for term in terms if not term.startswith(analysis.PIECE) and idf(term) < unknown]
            if known:
                term = max(known, key=idf)
                found.setdefault(term, (idf(term), number, word))
        best = sorted(found.items(), key=lambda entry: -entry[1][0])[:most]
        words = [word for _, _, word in sorted((entry for _, entry in best), key=lambda entry: entry[1])]
        # With all that it gives: "Phi-4-mini" is not to come again for the sake of "mini".
        taken.update(*(analysis.weighted(word, languages) for word in words))
        return words

    since = next((n for n, exchange in enumerate(reversed(history)) if not leans(exchange.question)), len(history) - 1)
    subject, *passing = history[len(history) - 1 - since :]
    words = most_telling(subject.question, MOST_WORDS)
    words += most_telling(" ".join(exchange.question for exchange in passing), MOST_PASSING)
    # An answer without a mark of its source stands on no passage.
    if _MARKER.search(history[-1].answer):
        words += most_telling(_MARKER.sub(" ", history[-1].answer), MOST_ANSWERED)
    return Query(question, " ".join(words))


def leans(question: str) -> bool:
    """Can this question be understood only after an earlier one?"""
    text = question.strip()
    tongues = _tongues(text)
    if tongues == ["de"]:  # the polite "Sie" is nobody that was spoken of
        text = re.sub(r"(?<=\w )(?:Sie|Ihnen|Ihr\w*)\b", "", text)
    lower = text.casefold().replace("’", "'")
    # A name after the first word; in German every noun would be one.
    name = (
        _NAME.search(text)
        if tongues != ["de"]
        else re.search(r"\b\w*\d\w*[^\W\d]|\b\w+[_./]\w+\b|\b[^\W\d_]+-\d|\b\w*[a-z][A-Z]", text)
    )
    start = lower.lstrip(_EDGES + " ")
    for tongue in tongues:
        of = _PATTERNS[tongue]
        if of["turns"].match(start):
            return True
        if of["joins"].match(start) and (name is None or not of["verbs"].search(lower)):
            return True
        for match in of["pronouns"].finditer(lower):
            if not _bound(lower, match.start(), name, of["clauses"], tongue):
                return True
        for match in of["possessives"].finditer(lower):
            named_before = name is not None and name.start() < match.start()
            if not named_before and len(_content(lower[: match.start()], tongue)) < 2:
                return True
    return name is None and _fragment(lower, tongues)


def _bound(lower: str, at: int, name: "re.Match[str] | None", clauses: "re.Pattern[str]", tongue: str) -> bool:
    """Does a pronoun refer to something that the question itself has named before it?

    Inside one clause it does not: in "When did England declare war on it?" it is not England.
    """
    before = lower[:at]
    if name is not None and name.start() < at and "," in before[name.start() :]:
        return True
    if _CJK.search(before):
        # Without spaces, what stands before a pronoun is mostly a clause of its own, or nothing.
        return len("".join(_EMPTY.sub("", run) for run in _CJK.findall(before))) >= 4
    # "Under which licence is it sold?" has one clause.
    breaks = [match for match in clauses.finditer(before) if len(before[: match.start()].split()) > 1]
    return bool(breaks) and bool(_content(before[: breaks[-1].start()], tongue))


def _fragment(lower: str, tongues: Collection[str]) -> bool:
    """Too little of its own to be a question: "How many?", "Cuánto cuesta?", "In the evening?" """
    asking = _ASKING.search(lower) is not None
    for tongue in tongues:
        own = _content(_ASKING.sub(" ", lower), tongue)
        defined = _PATTERNS[tongue]["verbs"].search(lower) is not None and own
        if (not own or (asking and len(own) < 2 and not defined)) and not _CJK.search(lower):
            return True
    if _CJK.search(lower):
        return len(_EMPTY.sub("", "".join(_CJK.findall(lower)))) < 2
    return False


def _content(text: str, tongue: str) -> set[str]:
    stop = STOP_WORDS.get(tongue, frozenset())
    return {word for word, _, _ in analysis.words(text) if word not in stop and len(word) > 1}


def _tongues(text: str) -> list[str]:
    """Whose ways of leaning apply: the languages that have most of the question's words; one word can be of
    several."""
    if runs := _CJK.findall(text):
        return ["ja"] if any("\u3040" <= c <= "\u30ff" for run in runs for c in run) else ["zh"]
    if re.search("[\u0400-\u04ff]", text):
        return ["ru"]
    words = [word.casefold() for word, _, _ in analysis.words(text)]
    counts = {tongue: sum(word in STOP_WORDS[tongue] for word in words) for tongue in ("en", "de", "fr", "es")}
    most = max(counts.values())
    return [tongue for tongue, count in counts.items() if count == most] if most else ["en"]


def _words(text: str) -> list[str]:
    """The words as written, marks around them left out; unspaced scripts in the pieces that their empty words
    leave."""
    found: list[str] = []
    for chunk in text.split():
        plain = re.sub(r"['’]s$", "", chunk.strip(_EDGES))
        at = 0
        for run in _CJK.finditer(plain):
            found.append(plain[at : run.start()])
            found.extend(_EMPTY.split(run.group()))
            at = run.end()
        found.append(plain[at:])
    return [word.strip(_EDGES) for word in found if word.strip(_EDGES)]
