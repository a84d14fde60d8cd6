"""Is this draft good enough? Pure functions: Signals, Verdict.

Judges one draft from what the model reported (logprobs), what retrieval reported (scores), and whether the draft's words
stand in the passages that the model read. Calls no model and waits for nothing. The formula is a cold start: its weights
were reasoned, not fitted, so the score ranks drafts but is not yet a calibrated probability.
"""

import math
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from rag.corpus.analysis import terms, words
from rag.corpus.index import K1, Hit, terms_of
from rag.corpus.languages import DEFAULT
from rag.models.backend import TOP_LOGPROBS, Draft, Token

Idf = Callable[[str], float]

# p(wrong) = sigmoid(BIAS + sum of weight * feature); every feature lies in [0, 1] and grows with doubt. The entropy of the
# first token that answers is measured but has no weight: on 265 questions of SQuAD 2.0 it told nothing of SmolLM2's
# mistakes (AUROC .47), and leaving it out raised the formula's own AUROC from .68 to .73.
BIAS = -3.0
WEIGHTS = {
    "unsure": 1.5,
    "unsure_words": 1.0,
    "unsure_fact": 0.7,
    "uncovered": 1.2,
    "weak_hit": 0.8,
    "rival_hit": 0.2,
    "unsupported": 2.5,
}
FROM_LOGPROBS = ("unsure", "unsure_words", "unsure_fact")
WITHOUT_LOGPROBS_DOUBLED = ("uncovered", "unsupported")
IN_WORDS = {
    "unsure": "the model was unsure of its words",
    "unsure_words": "the model was unsure of some words",
    "unsure_fact": "the model was unsure of a number or name",
    "uncovered": "the passages lack words of the question",
    "weak_hit": "the best passage fits only loosely",
    "rival_hit": "several passages fit about equally",
    "unsupported": "words of the answer are not in the passages",
}
# A refusal over passages that cover this share of the question is doubted; below, it is believed.
COVERED = 0.60

_REFUSAL = re.compile(
    r"\bI (?:do not|don['’]t|cannot|can['’]t) (?:know|say|tell|answer|find)\b"
    r"|\b(?:context|passages?|documents?|text)\b[^.]{0,30}\b(?:does|do) ?(?:not|n['’]t) (?:\w+ )?"
    r"(?:contain|mention|provide|say|state|include|specify|tell|give)"
    r"|\b(?:is|are) not (?:\w+ )?(?:mentioned|stated|provided|specified|given|contained) in the (?:context|passage|text)"
    r"|\bno (?:information|mention|answer)\b[^.]{0,40}\b(?:context|passages?|documents?|text)\b"
    r"|不知道|無法(?:回答|得知|確定)|(?:沒有|未)(?:提到|提及|說明)|ich weiß (?:es )?nicht|je ne sais pas|no lo sé|не знаю"
    r"|nie wiem|jag vet inte|tidak tahu",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_MARKER = re.compile(r"\[\d+(?:\s*,\s*\d+)*\]")


@dataclass(frozen=True)
class Signals:
    """What is known of a draft. Shares lie in [0, 1]; logprobs are natural logarithms; None where not reported."""

    words: int
    mean_logprob: float | None
    low_logprob: float | None
    """The 10% quantile of the tokens' logprobs."""
    first_entropy: float | None
    """Entropy of the first token that answers, over its most probable rivals, as a share of the most it could be."""
    fact_logprob: float | None
    """Lowest logprob among tokens of numbers and names; 0 when there are none."""
    coverage: float
    """Idf-weighted share of the question's terms that the passages hold."""
    hit_strength: float
    """Score of the best hit over the most that BM25 could give the question."""
    hit_margin: float
    """How far the best hit is ahead of the second, as a share of its score."""
    support: float
    """Idf-weighted share of the answer's terms, numbers and names twice, that the passages hold."""
    verbatim: bool
    """The whole answer stands word for word in a passage."""
    refusal: bool
    looping: bool
    cut_off: bool
    absent_fact: str | None
    """A number or name of the answer that is neither in the passages nor in the question."""


@dataclass(frozen=True)
class Verdict:
    """Does the draft stand? `score` and `threshold` lie in [0, 1]; higher is better."""

    score: float
    threshold: float
    accepted: bool
    reason: str
    """For the user, in words, without a full stop."""
    signals: Signals | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "score": round(self.score, 4),
            "threshold": self.threshold,
            "accepted": self.accepted,
            "reason": self.reason,
            "signals": _rounded(asdict(self.signals)) if self.signals else {},
        }


def judge(
    draft: Draft,
    question: str,
    query: str,
    hits: Sequence[Hit],
    evidence: Sequence[Hit],
    idf: Idf,
    *,
    threshold: float,
    min_words: int,
    searched: bool = True,
) -> Verdict:
    """Judge a draft against the passages that were found (`hits`, best first) and read (`evidence`).

    `query` is the question in its standalone form. Hard rules come first (empty, cut off, looping, too short, a refusal,
    a number or name from nowhere); what passes them is judged by the fused score. Where nothing was `searched` for, because
    the question is about a document as a whole, how well the passages fit its words tells nothing and is left out.
    """
    signals = measure(draft, question, query, hits, evidence, idf)
    if not searched:
        signals = replace(signals, coverage=1.0, hit_strength=1.0, hit_margin=1.0)
    features = _features(signals)
    score = 1 - _sigmoid(BIAS + sum(weight * features[name] for name, weight in _weights(signals).items()))

    def verdict(accepted: bool, reason: str, at_most: float = 1.0) -> Verdict:
        return Verdict(min(score, at_most), threshold, accepted, reason, signals)

    doubted = threshold / 2  # what a broken rule leaves of any score
    if signals.words == 0:
        return verdict(False, "the answer is empty", 0.0)
    if signals.looping:
        return verdict(False, "the answer repeats itself", doubted)
    if signals.cut_off:
        return verdict(False, "the answer was cut off at its longest allowed length", doubted)
    if signals.refusal:
        if signals.coverage >= COVERED:
            return verdict(False, "it found no answer, though the passages cover the question", doubted)
        return verdict(True, "it found no answer, and the passages hardly cover the question")
    if signals.words < min_words and not signals.verbatim:
        count = f"{signals.words} word" + ("" if signals.words == 1 else "s")
        return verdict(False, f"the answer is too short ({count}) and stands in no passage", doubted)
    if signals.absent_fact is not None:
        kind = "number" if _NUMBER.fullmatch(signals.absent_fact) else "name"
        return verdict(False, f"the {kind} {signals.absent_fact} is in no passage that was read", doubted)
    if score >= threshold:
        return verdict(True, f"confidence {score:.2f}, at least {threshold:.2f} is asked for")
    weights = _weights(signals)
    worst = max(weights, key=lambda name: weights[name] * features[name])
    return verdict(False, f"low confidence ({score:.2f}, below {threshold:.2f}): {IN_WORDS[worst]}")


def coverage(query: str, hits: Sequence[Hit], idf: Idf) -> float:
    """Idf-weighted share of the query's terms that the hits hold, in the language that holds most; 0 without terms."""
    held: dict[str, set[str]] = {}
    for hit in hits:
        held.setdefault(hit.passage.language, set()).update(terms_of(hit.passage))
    best = 0.0
    for language, found in held.items():
        asked = set(terms(query, language))
        total = sum(idf(term) for term in asked)
        best = max(best, sum(idf(term) for term in asked & found) / total if total else 0.0)
    return best


def is_refusal(text: str) -> bool:
    """Does the text say that it knows no answer? Short texts only: a long one that also says so has answered."""
    return len(text) < 400 and _REFUSAL.search(text) is not None


def measure(draft: Draft, question: str, query: str, hits: Sequence[Hit], evidence: Sequence[Hit], idf: Idf) -> Signals:
    """All signals of one draft; see `judge`."""
    text = _MARKER.sub("", draft.text).strip()
    language = evidence[0].passage.language if evidence else DEFAULT
    held = {term for hit in evidence for term in terms_of(hit.passage)}
    asked = terms(query, language)
    most = (K1 + 1) * sum(idf(term) for term in asked)
    first, second = ([hit.score for hit in hits] + [0.0, 0.0])[:2]
    content = _content_tokens(draft.tokens)
    logprobs = [token.logprob for token in content]
    facts = [token.logprob for token in content if _is_fact(token.text)]
    return Signals(
        words=_count_words(text),
        mean_logprob=statistics.fmean(logprobs) if logprobs else None,
        low_logprob=sorted(logprobs)[len(logprobs) // 10] if logprobs else None,
        first_entropy=_first_entropy(content, set(asked), language),
        fact_logprob=(min(facts) if facts else 0.0) if logprobs else None,
        coverage=coverage(query, evidence, idf),
        hit_strength=min(1.0, first / most) if most else 0.0,
        hit_margin=(first - second) / first if first else 0.0,
        support=_support(text, set(asked), held, idf, language),
        verbatim=_stands_in(text, evidence),
        refusal=is_refusal(text),
        looping=_loops(text),
        cut_off=draft.finish_reason == "length",
        absent_fact=_absent_fact(text, question, evidence, language),
    )


def _features(signals: Signals) -> dict[str, float]:
    def doubt(logprob: float | None, scale: float) -> float:
        return 0.0 if logprob is None else min(1.0, -logprob / scale)

    return {
        "unsure": doubt(signals.mean_logprob, 1),
        "unsure_words": doubt(signals.low_logprob, 3),
        "unsure_fact": doubt(signals.fact_logprob, 3),
        "uncovered": 1 - signals.coverage,
        "weak_hit": 1 - signals.hit_strength,
        "rival_hit": 1 - signals.hit_margin,
        "unsupported": 1 - signals.support,
    }


def _weights(signals: Signals) -> dict[str, float]:
    if signals.mean_logprob is not None:
        return WEIGHTS
    return {
        name: weight * (2 if name in WITHOUT_LOGPROBS_DOUBLED else 1)
        for name, weight in WEIGHTS.items()
        if name not in FROM_LOGPROBS
    }


def _content_tokens(tokens: Sequence[Token]) -> list[Token]:
    """Tokens that carry a letter or a digit; end marks and punctuation say nothing about certainty."""
    return [
        token for token in tokens if any(character.isalnum() for character in token.text) and "<|" not in token.text
    ]


def _first_entropy(content: Sequence[Token], asked: set[str], language: str) -> float | None:
    """Of the first token that answers: words without a subject and words repeated from the question do not."""
    if not any(len(token.top) > 1 for token in content):
        return None
    telling = (token for token in content if (own := set(terms(token.text, language))) and not own <= asked)
    first = next(telling, content[0])
    return _entropy(first.top)


def _is_fact(token: str) -> bool:
    return any(character.isdigit() for character in token) or token.strip()[:1].isupper()


def _entropy(logprobs: Sequence[float]) -> float:
    """Entropy of the renormalised distribution over its greatest possible value, ln(TOP_LOGPROBS)."""
    weights = [math.exp(logprob) for logprob in logprobs[:TOP_LOGPROBS]]
    total = sum(weights)
    shares = [weight / total for weight in weights if weight > 0]
    return -sum(share * math.log(share) for share in shares) / math.log(TOP_LOGPROBS)


def _support(text: str, asked: set[str], held: set[str], idf: Idf, language: str) -> float:
    found = set(terms(text, language))
    # Words repeated from the question tell nothing, unless there are no others.
    own = (found - asked) or found
    weighted = {term: idf(term) * (2 if any(c.isdigit() for c in term) else 1) for term in own}
    total = sum(weighted.values())
    return sum(weight for term, weight in weighted.items() if term in held) / total if total else 0.0


def _plain(text: str) -> str:
    return f" {' '.join(word for word, _, _ in words(text.casefold()))} "


def _stands_in(text: str, hits: Sequence[Hit]) -> bool:
    plain = _plain(text)
    return bool(plain.strip()) and any(plain in _plain(hit.passage.text) for hit in hits)


def _count_words(text: str) -> int:
    # Two characters of a script without spaces count as one word.
    return sum(1 if ord(word[0]) < 0x2E80 else (len(word) + 1) // 2 for word, _, _ in words(text))


def _absent_fact(text: str, question: str, hits: Sequence[Hit], language: str) -> str | None:
    known = " ".join([question, *(f"{' '.join(h.passage.heading)} {h.passage.source} {h.passage.text}" for h in hits)])
    known_terms = set(terms(known, language))
    known_numbers = {number.replace(",", "") for number in _NUMBER.findall(known)}
    for match in _NUMBER.finditer(text):
        number = match.group()
        if number.replace(",", "") not in known_numbers:
            return number
    for word, start, _ in words(text):
        before = text[:start].rstrip(" \"'“‘(*_")
        begins_sentence = not before or before[-1] in ".!?:\n。！？："
        if word[0].isupper() and not begins_sentence and len(word) > 1:
            folded = word.casefold().replace("’", "'").removesuffix("'s")
            # By its stem, so that a plural is no other name; or inside a longer word.
            if not known_terms.issuperset(terms(word, language)) and folded not in known.casefold():
                return word
    return None


def _loops(text: str) -> bool:
    """Does some run of one to eight words stand at least three times in a row (a single word: five times)?"""
    found = [word for word, _, _ in words(text.casefold())]
    for length in range(1, 9):
        needed = 5 if length == 1 else 3
        repeats = 1
        for place in range(length, len(found) - length + 1, length):
            same = found[place : place + length] == found[place - length : place]
            repeats = repeats + 1 if same else 1
            if repeats >= needed:
                return True
    return False


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def _rounded(signals: dict[str, Any]) -> dict[str, Any]:
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in signals.items()}
