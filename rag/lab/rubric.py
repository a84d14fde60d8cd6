"""A rubric of three scores, each from 1 to 5, given by rules: coherence, factuality, concision.

Pure functions of an answer's text and of the passages that its model read: no model, no network, the same figures each
time. What a score stands for:

    score  coherence                      factuality                               concision
    5      whole sentences, or a bare     all its words stand in what was read,    at most half again the words of
           answer, in the question's      beside the question's own                question and answer together
           language
    3      cut off, or in another         half of them do, or all do and none of   three times those words
           language                       them beside the question
    1      empty, or the same words       none does                                six times those words, or more
           again and again

Scores are in halves. Each begins at 5 and loses points, never below 1; every loss has its reason in words. Factuality is
1 + 2 * support + 2 * connection, less one for each statement (two at most) with a number or a name that is nowhere in what
was read: `support` is the mean over the answer's statements of the idf-weighted share of their words that the passages
hold; `connection` asks how much of the question stands in the sentence that holds a statement's own words: half of it as a
share of `CONNECTED`, half as a share of the sentence that holds most of the question.

None where rules cannot tell: the product words a refusal itself, so it is neither coherent nor concise; whether it is true
that the documents are silent, the data set tells (5: they are; 1: the answer had been found; 3: it had not). An answer
without a word that can be looked up ("Yes.") has no factuality.

What rules cannot see: an answer that joins the passages' words to something that they don't say, or that answers another
question from the right sentence. Both look supported, and so do answers to questions that have none. So these scores stand
beside `right`, which knows the gold answer, and never in its place. How well factuality ranks right answers above wrong
ones is measured in each report (`rubric_factuality_auroc`).
"""

import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rag.corpus.analysis import sentences, terms, words
from rag.corpus.index import Hit
from rag.corpus.languages import STOP_WORDS, language, script_of, scripts
from rag.lab.answers import Outcome, holds_gold
from rag.lab.evaluation import recalled
from rag.turn import confidence
from rag.turn.confidence import Grounds, Signals

Dimension = Literal["coherence", "factuality", "concision"]
DIMENSIONS: tuple[Dimension, ...] = ("coherence", "factuality", "concision")
MOST, LEAST = 5.0, 1.0

CONNECTED = 0.7
"""A sentence that holds this share of the question is as good as one that holds all of it: people ask in other words than
are written. Chosen among shares from 0.4 to 1 on answers of three models to SQuAD 2.0 questions, where it ranked right ones
best for two of them."""
ROOM = 1.5
"""So many times the words of question and answer are no length yet."""
ANSWER_WORDS = 12
"""What an answer may take where no gold one tells."""
SENTENCE_WORDS = 8
"""No answer need be shorter."""
SAME = 0.8
"""A statement with this share of its terms in an earlier one repeats it."""
QUOTED_CHARS = 80

_MARKER = re.compile(r"\s*\[\d+(?:\s*,\s*\d+)*\]")
_LEAKED = re.compile(r"<\|\w+\|>|\[/?INST\]|</?s>|^(?:Question|Context|Passages)\s*:", re.MULTILINE)
_READ = r"(?:context|passages?|text|documents?|information)"
_BOILERPLATE = re.compile(
    rf"\b(?:according to|based on|as (?:stated|mentioned) in) (?:the|this) (?:\w+ )?{_READ}\b"
    rf"|\bthe {_READ} (?:states?|says?|mentions?|tells?)\b|\bit is (?:important|worth) (?:to note|noting)\b"
    r"|\b(?:as an ai|in (?:summary|conclusion)|I hope (?:this|that)|feel free|let me know|please note)\b"
    r"|^\W*(?:sure|certainly)\b|根[據据](?:上述|提供|以上)",
    re.IGNORECASE,
)
_ENDED = re.compile(r"[\d.!?。！？…:;)\]}\"'”’」』*|`]\s*$")
# Whether it is Yes or No, no passage's words tell.
_POLAR = re.compile(
    r"^\W*(?:yes|no|ja|nein|nej|oui|non|sí|tak|nie|да|нет|так|ні|ya|tidak|是的?|不是|沒有|没有)(?!\w)\W*", re.IGNORECASE
)
_ITEM = re.compile(r"\s*(?:[-*+#>|]|\d+[.)]\s)")


@dataclass(frozen=True)
class Deduction:
    """Why a score is not 5."""

    of: Dimension
    points: float
    why: str
    """For a person, as a sentence."""

    def to_dict(self) -> dict[str, Any]:
        return {"of": self.of, "points": self.points, "why": self.why}


@dataclass(frozen=True)
class Scores:
    """From 1 to 5, in halves; None where rules cannot tell."""

    coherence: float | None
    factuality: float | None
    concision: float | None
    deductions: tuple[Deduction, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {
            **{name: getattr(self, name) for name in DIMENSIONS},
            "deductions": [deduction.to_dict() for deduction in self.deductions],
        }


def of(outcome: Outcome, idf: confidence.Idf, *, tongue: str = "") -> Scores | None:
    """Scores of what the user was shown; None for a turn that failed. `tongue` is the language that answers were asked for
    in (`sv`, `zh-TW`), "" for the question's own."""
    turn, case = outcome.turn, outcome.case
    if turn is None:
        return None
    read = evidence_of(outcome)
    if turn.refused:
        passages = [hit.passage for hit in read]
        if case.evidence:
            held = recalled(case, passages) == 1
        else:
            held = holds_gold("\n".join(passage.text for passage in passages), case.answers)
        return refusal(answerable=case.answerable, held=held)
    # A question about a document as a whole is not searched for, so its words need stand nowhere.
    searched = any(span.name == "retrieve" for span in turn.trace.spans)
    grounds = Grounds(turn.question, turn.query, turn.hits, read, idf, most_idf=idf(""), searched=searched)
    return score(
        turn.answer,
        grounds,
        golds=case.answers,
        cut_off=bool(turn.drafts) and turn.drafts[-1].finish_reason == "length",
        connects=searched,
        tongue=tongue or case.language,
    )


def unmarked(answer: str) -> str:
    """Without source marks, some of which are the product's."""
    return _MARKER.sub("", answer).strip()


def evidence_of(outcome: Outcome) -> tuple[Hit, ...]:
    """The passages that the answer was written from; what was found where no model was asked, none for a failed turn."""
    turn = outcome.turn
    if turn is None:
        return ()
    return turn.prompts[turn.drafts[-1].leg].evidence if turn.drafts else turn.hits


def refusal(*, answerable: bool, held: bool) -> Scores:
    """Of an answer that says that the documents hold none; `held` says whether the passages that were found for it do."""
    if not answerable:
        return Scores(None, MOST, None)
    if held:
        why = "It says that the documents hold no answer, and a passage that was found holds it."
        return Scores(None, LEAST, None, (Deduction("factuality", MOST - LEAST, why),))
    why = "It says that the documents hold no answer; they do, though what was found does not."
    return Scores(None, 3.0, None, (Deduction("factuality", 2.0, why),))


def score(
    answer: str,
    grounds: Grounds,
    *,
    golds: Sequence[str] = (),
    cut_off: bool = False,
    connects: bool = True,
    tongue: str = "",
) -> Scores:
    """Of an answer that is no refusal, with or without its source marks.

    `golds` only tell how long an answer need be. `connects`: the question's words are expected beside the answer's.
    """
    text = unmarked(answer)
    statements = [text[start:end] for start, end in sentences(text)]
    lost = [
        *_incoherent(text, statements, grounds, cut_off=cut_off, tongue=tongue),
        *_wordy(text, statements, grounds, golds),
    ]
    told = [rest for one in statements if terms(rest := _POLAR.sub("", one), grounds.language)]
    signals = [confidence.measure(one, (), grounds, cut_off=False) for one in told]
    lost += _unsupported(told, signals, grounds, connects=connects and grounds.mass > 0) if told else []

    def left(of: Dimension) -> float:
        points = MOST - sum(deduction.points for deduction in lost if deduction.of == of)
        return max(LEAST, round(2 * points) / 2)

    return Scores(
        left("coherence"),
        left("factuality") if told else None,
        left("concision") if any(words(text)) else None,
        tuple(lost),
    )


def _incoherent(
    text: str, statements: Sequence[str], grounds: Grounds, *, cut_off: bool, tongue: str
) -> list[Deduction]:
    def lost(points: float, why: str) -> Deduction:
        return Deduction("coherence", points, why)

    if not any(words(text)):
        return [lost(4, "It is empty.")]
    found = []
    if confidence.measure(text, (), grounds, cut_off=False).looping:
        found.append(lost(4, "It says the same words again and again."))
    if cut_off:
        found.append(lost(2, "It was cut off at the longest length that is allowed."))
    elif len(statements) > 1 and _ENDED.search(statements[-2]) and not _ends(statements[-1]):
        found.append(lost(1, "Its last sentence breaks off."))
    if told := _in_another_language(text, grounds.question, tongue):
        found.append(lost(2, told))
    if leaked := _LEAKED.search(text):
        found.append(lost(2, f"It goes on where the answer ended: {leaked.group().strip()}"))
    if any(map(confidence.is_refusal, statements)):
        found.append(lost(1, "It answers, and says that it cannot."))
    return found


def _unsupported(
    statements: Sequence[str], signals: Sequence[Signals], grounds: Grounds, *, connects: bool
) -> list[Deduction]:
    def lost(points: float, why: str) -> Deduction:
        return Deduction("factuality", round(points, 2), why)

    found = []
    share = 2 if connects else 4
    support = statistics.fmean(one.support for one in signals)
    if support < 1:
        worst = min(range(len(signals)), key=lambda number: signals[number].support)
        why = f"Of its own words, {support:.0%} stand in what was read"
        found.append(lost(share * (1 - support), f"{why}; least in: {_clipped(statements[worst])}"))
    if connects:
        held, best = max(one.alignment for one in signals), grounds.best_alignment
        connection = (min(1.0, held / CONNECTED) + (held / best if best else 0.0)) / 2
        if connection < 1:
            why = f"The sentence that holds its words has {held:.0%} of the question's"
            why += f"; another has {best:.0%}." if held < best else "."
            if not any(one.own_terms for one in signals):
                why = "It has no word that the question does not have."
            found.append(lost(2 * (1 - connection), why))
    absent = dict.fromkeys(one.absent_fact for one in signals if one.absent_fact is not None)
    found += [lost(1, f"{fact} is nowhere in what was read.") for fact in list(absent)[:2]]
    return found


def _wordy(text: str, statements: Sequence[str], grounds: Grounds, golds: Sequence[str]) -> list[Deduction]:
    def lost(points: float, why: str) -> Deduction:
        return Deduction("concision", round(points, 2), why)

    length = confidence.count_words(text)
    asked, wanted = (
        confidence.count_words(grounds.question),
        max(map(confidence.count_words, golds), default=ANSWER_WORDS),
    )
    needed = max(SENTENCE_WORDS, asked + wanted)
    found = []
    if length > ROOM * needed:
        # Each doubling costs two points.
        points = min(MOST - LEAST, 2 * math.log2(length / (ROOM * needed)))
        found.append(lost(points, f"It has {length} words, where {needed} would do."))
    if boilerplate := _BOILERPLATE.search(text):
        found.append(lost(1, f"It says nothing with: {boilerplate.group().strip()}"))
    held: list[set[str]] = []
    repeated = []
    for statement in statements:
        own = set(terms(statement, grounds.language))
        if len(own) > 2 and any(len(own & other) >= SAME * len(own) for other in held):
            repeated.append(statement)
        held.append(own)
    found += [lost(1, f"It repeats itself: {_clipped(statement)}") for statement in repeated[:2]]
    return found


def _in_another_language(text: str, question: str, tongue: str) -> str:
    """What is told of an answer that is surely in another language than `tongue`, or than its question; else ""."""
    expected = tongue.partition("-")[0] or language(question)
    written = language(text)
    if not written or not expected or written == expected:
        return ""
    why = f"It is in another language ({written}) than was asked for ({expected})."
    if script_of(written) != script_of(expected):
        # Names and commands keep their letters, among the language's own or alone.
        own = script_of(expected) in scripts(text)
        return "" if own or confidence.count_words(text) < 4 else why
    if not tongue and _common(question, expected) <= _common(question, written):
        return ""  # the question is too short to tell
    return why if _common(text, written) >= _common(text, expected) + 3 else ""


def _common(text: str, tongue: str) -> int:
    """How many of its words are among the language's commonest."""
    return sum(word.casefold() in STOP_WORDS.get(tongue, ()) for word, _, _ in words(text))


def _ends(statement: str) -> bool:
    return _ENDED.search(statement) is not None or _ITEM.match(statement) is not None


def _clipped(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= QUOTED_CHARS else f"{line[: QUOTED_CHARS - 1]}…"
