"""Is this draft good enough? Pure functions: Grounds, Signals, Verdict.

Judges one draft, whole or as far as it is written, from what the model reported (logprobs), what retrieval reported
(scores), and whether the draft's words stand in the passages that the model read. Calls no model and waits for nothing.
How signals become a probability was fitted for a pair of models (`calibration`) or, for any other, is a formula whose
weights were reasoned: then the score ranks drafts but is no probability, and the verdict says so.
"""

import math
import re
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rag.corpus.analysis import runs, sentences, terms, words
from rag.corpus.index import K1, Hit, terms_of
from rag.corpus.languages import DEFAULT
from rag.models.backend import TOP_LOGPROBS, Draft, Token
from rag.turn.calibration import Calibration, Scorer
from rag.words import say

Idf = Callable[[str], float]

COLD_START = Scorer(
    # p(right) = sigmoid(bias + sum of weight * feature). The entropy of the first token that answers is measured but has
    # no weight: on 265 questions of SQuAD 2.0 it told nothing of SmolLM2's mistakes (AUROC .47), and leaving it out
    # raised the formula's own AUROC from .68 to .73.
    weights={
        "unsure": -1.5,
        "unsure_words": -1.0,
        "unsure_fact": -0.7,
        "uncovered": -1.2,
        "weak_hit": -0.8,
        "rival_hit": -0.2,
        "unsupported": -2.5,
    },
    bias=3.0,
)
COLD_START_WITHOUT_LOGPROBS = Scorer(
    weights={"uncovered": -2.4, "weak_hit": -0.8, "rival_hit": -0.2, "unsupported": -5.0}, bias=3.0
)
COLD_START_THRESHOLD = 0.65
IN_WORDS = {
    "unsure": "turn.why_unsure",
    "unsure_words": "turn.why_unsure_words",
    "unsure_least": "turn.why_unsure_least",
    "unsure_fact": "turn.why_unsure_fact",
    "rivalled": "turn.why_rivalled",
    "uncovered": "turn.why_uncovered",
    "weak_hit": "turn.why_weak_hit",
    "rival_hit": "turn.why_rival_hit",
    "unsupported": "turn.why_unsupported",
    "unaligned": "turn.why_unaligned",
    "apart": "turn.why_apart",
    "better_aligned": "turn.why_better_aligned",
    "elsewhere": "turn.why_elsewhere",
    "wordy": "turn.why_wordy",
    "unsure_first": "turn.why_unsure_first",
    "reworded": "turn.why_reworded",
    "echo": "turn.why_echo",
    "wrong_kind": "turn.why_wrong_kind",
    "broken": "turn.why_broken",
    "long": "turn.why_long",
    "missing": "turn.why_missing",
    "short": "turn.why_short",
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
UNSPACED = "\u2e80"
"""From here on, scripts mostly write no spaces."""
FAR = 10
"""Words between an answer and the question's words in one sentence, from which on more tells no more."""
_NUMBER_WORDS = (
    "one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|dozen|hundred|thousand|million|half|none|no"
    "|ein|eine|zwei|drei|vier|fünf|sechs|sieben|acht|neun|zehn|hundert|tausend|un|une|deux|trois|quatre|cinq|dix|cent|mille"
    "|uno|una|dos|tres|cuatro|cinco|diez|cien|mil|один|одна|два|две|три|четыре|пять|десять|сто|тысяч"
)
# What the question asks for, and what an answer to it must hold.
_KINDS = (
    (
        re.compile(
            r"\bhow (?:many|much|old|tall)\b|\b(?:what|which) (?:percentage|number|year)\b|\bwie ?viele?\b|\bcombien\b"
            r"|\bcu[áa]nt[oa]s\b|\bсколько\b|多少|幾個|几个|哪一?年",
            re.IGNORECASE,
        ),
        re.compile(rf"\d|\b(?:{_NUMBER_WORDS})\b|[一二三四五六七八九十百千萬万]", re.IGNORECASE),
    ),
    (
        re.compile(
            # "When cells divide, what do they become?" does not ask for a time.
            r"^\W*(?:when (?:did|do|does|was|were|is|are|has|have|had|will|would|can|could)|wann|quand|cu[áa]ndo|когда)\b"
            r"|什麼時候|什么时候",
            re.IGNORECASE,
        ),
        re.compile(
            rf"\d|\b(?:{_NUMBER_WORDS})\b|\b(?:january|february|march|april|may|june|july|august|september|october|november"
            r"|december|spring|summer|autumn|fall|winter|century|day|week|month|year|morning|night|after|before|during"
            r"|until|since|when|while|once)|[日月年時时]|\w+(?:tag|woche|jahr|uhr)\b|год|век|день",
            re.IGNORECASE,
        ),
    ),
    (re.compile(r"^\W*(?:who|whose|whom)\b", re.IGNORECASE), re.compile(r"\b[A-Z]\w|\b(?:the|a|an|his|her|their)\b")),
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
    least_logprob: float | None
    first_entropy: float | None
    """Entropy of the first token that answers, over its most probable rivals, as a share of the most it could be."""
    lead: float | None
    """By how much a token's logprob is ahead of the next likely one's, on average."""
    fact_logprob: float | None
    """Lowest logprob among tokens of numbers and names; 0 when there are none."""
    coverage: float
    """Idf-weighted share of the question's terms that the passages hold."""
    missing: float
    """The most telling term of the question that the passages lack, as a share of the most that a term can tell."""
    hit_strength: float
    """Score of the best hit over the most that BM25 could give the question."""
    hit_margin: float
    """How far the best hit is ahead of the second, as a share of its score."""
    support: float
    """Idf-weighted share of the answer's terms, numbers and names twice, that the passages hold."""
    alignment: float
    """Idf-weighted share of the question's terms in the sentence that supports the answer best; 0 for an answer that has no
    word of its own."""
    apart: float
    """In that sentence, words from a word of the answer's own to the nearest one of the question, on average, as a share
    of `FAR`; 1 where there are none."""
    best_alignment: float
    """The same of the sentence that holds most of the question, wherever the answer stands."""
    elsewhere: float
    """Idf-weighted share of the answer's own terms that also stand in hits that the model did not read."""
    own_terms: int
    """Terms of the answer that are not the question's."""
    own_logprob: float | None
    """Of the first token that answers: words of the question and words without a subject do not."""
    echo: float
    """Idf-weighted share of the answer's terms that are the question's."""
    copied: float
    """Longest run of the answer's words that stands in the passages, as a share of its words."""
    verbatim: bool
    """The whole answer stands word for word in a passage."""
    wrong_kind: bool
    """The question asks for a number, a time or a person, and nothing of the kind is in the answer."""
    refusal: bool
    looping: bool
    cut_off: bool
    absent_fact: str | None
    """A number or name of the answer that is neither in the passages nor in the question."""
    sentence: str | None
    """The sentence of the passages that supports the answer best."""


@dataclass(frozen=True)
class Verdict:
    """Does the draft stand? `score` and `threshold` lie in [0, 1]; higher is better."""

    score: float
    """Probability that the answer is right, if `calibrated`."""
    threshold: float
    accepted: bool
    reason: str
    """For the user, in words, without a full stop."""
    signals: Signals | None = None
    calibrated: bool = False

    def to_dict(self) -> dict[str, Any]:
        return {
            "score": round(self.score, 4),
            "threshold": round(self.threshold, 4),
            "accepted": self.accepted,
            "reason": self.reason,
            "signals": {**(_rounded(asdict(self.signals)) if self.signals else {}), "calibrated": self.calibrated},
        }


class Grounds:
    """What an answer to one question can rest on: the question's terms and the sentences of the passages that are read.

    Worked out once for a leg, because its draft is looked at several times while it grows.
    """

    def __init__(
        self,
        question: str,
        query: str,
        hits: Sequence[Hit],
        evidence: Sequence[Hit],
        idf: Idf,
        *,
        most_idf: float,
        searched: bool = True,
    ) -> None:
        """`query` is the question in its standalone form; `hits` were found, best first, `evidence` is read.

        Where nothing was `searched` for, because the question is about a document as a whole, how well the passages fit
        its words tells nothing and is left out. `most_idf` is what a term tells that no passage holds.
        """
        self.question = question
        self.hits = hits
        self.evidence = evidence
        self.idf = idf
        self.language = evidence[0].passage.language if evidence else DEFAULT
        self.asked = set(terms(query, self.language))
        self.mass = sum(map(idf, self.asked))
        self.held = {term for hit in evidence for term in terms_of(hit.passage)}
        first, second = ([hit.score for hit in hits] + [0.0, 0.0])[:2]
        if searched:
            self.coverage = coverage(query, evidence, idf)
            self.missing = max((idf(term) for term in self.asked - self.held), default=0.0) / most_idf
            most = (K1 + 1) * self.mass
            self.hit_strength = min(1.0, first / most) if most else 0.0
            self.hit_margin = (first - second) / first if first else 0.0
        else:
            self.coverage, self.missing, self.hit_strength, self.hit_margin = 1.0, 0.0, 1.0, 1.0
        self._sentences: list[tuple[str, set[str]]] | None = None
        self._plain: str | None = None
        self._best_alignment: float | None = None
        self._unread: set[str] | None = None

    @property
    def sentences(self) -> list[tuple[str, set[str]]]:
        """Each sentence that is read, and its terms."""
        if self._sentences is None:
            texts = [h.passage.text[a:b] for h in self.evidence for a, b in sentences(h.passage.text)]
            self._sentences = [(text, set(terms(text, self.language))) for text in texts]
        return self._sentences

    @property
    def plain(self) -> str:
        """All words that are read, for runs of them to be found in."""
        if self._plain is None:
            self._plain = " / ".join(_plain(hit.passage.text) for hit in self.evidence)
        return self._plain

    @property
    def best_alignment(self) -> float:
        """Of the sentence that holds most of the question."""
        if self._best_alignment is None:
            self._best_alignment = max((self.align(held) for _, held in self.sentences), default=0.0)
        return self._best_alignment

    @property
    def unread(self) -> set[str]:
        """Terms of the hits that are not read."""
        if self._unread is None:
            read = {hit.passage.id for hit in self.evidence}
            self._unread = {t for hit in self.hits if hit.passage.id not in read for t in terms_of(hit.passage)}
        return self._unread

    def align(self, held: set[str]) -> float:
        """Idf-weighted share of the question's terms among these."""
        return self.tell(self.asked & held) / self.mass if self.mass else 0.0

    def tell(self, found: set[str]) -> float:
        """What the terms tell, together."""
        return sum(map(self.idf, found))


def before(grounds: Grounds) -> dict[str, float]:
    """The features that are known before a model is asked."""
    return {
        "uncovered": 1 - grounds.coverage,
        "missing": grounds.missing,
        "weak_hit": 1 - grounds.hit_strength,
        "rival_hit": 1 - grounds.hit_margin,
    }


def features(signals: Signals) -> dict[str, float]:
    """Doubts in [0, 1]; those that need logprobs are missing where there are none."""
    found = {
        "uncovered": 1 - signals.coverage,
        "missing": signals.missing,
        "weak_hit": 1 - signals.hit_strength,
        "rival_hit": 1 - signals.hit_margin,
        "unsupported": 1 - signals.support,
        "unaligned": 1 - signals.alignment,
        "better_aligned": 1 - signals.alignment / signals.best_alignment if signals.best_alignment else 1.0,
        "apart": signals.apart,
        "elsewhere": signals.elsewhere,
        "wordy": min(1.0, signals.own_terms / 15),
        "echo": signals.echo,
        "reworded": 1 - signals.copied,
        "wrong_kind": float(signals.wrong_kind),
        "broken": float(signals.looping or signals.cut_off or signals.absent_fact is not None),
        "long": min(1.0, signals.words / 40),
        "short": max(0.0, 1 - signals.words / 6),
    }
    if signals.mean_logprob is not None:
        found |= {
            "unsure": _doubt(signals.mean_logprob, 1),
            "unsure_words": _doubt(signals.low_logprob, 3),
            "unsure_least": _doubt(signals.least_logprob, 5),
            "unsure_fact": _doubt(signals.fact_logprob, 3),
            "unsure_first": _doubt(signals.own_logprob, 3),
            "rivalled": 1 - min(1.0, (signals.lead or 0.0) / 6),
        }
    return found


def judge(
    draft: Draft,
    grounds: Grounds,
    *,
    calibration: Calibration | None = None,
    threshold: float | None = None,
    min_words: int,
) -> Verdict:
    """Judge a whole draft.

    Hard rules come first (empty, cut off, looping, too short, a refusal, a number or name from nowhere); what passes them
    is judged by the fitted score, or the cold start's. `threshold` is the user's own; None takes the fitted one.
    """
    signals = measure(draft.text, draft.tokens, grounds, cut_off=draft.finish_reason == "length")
    found = features(signals)
    scorer, line = _scorer(calibration, with_logprobs=signals.mean_logprob is not None)
    threshold = line if threshold is None else threshold
    score = scorer.probability(found)

    def verdict(accepted: bool, reason: str, at_most: float = 1.0) -> Verdict:
        return Verdict(min(score, at_most), threshold, accepted, reason, signals, calibration is not None)

    broken = rule(signals, min_words=min_words)
    if broken is not None:
        # Half the threshold is what a broken rule leaves of any score.
        return verdict(False, broken, threshold / 2 if signals.words else 0.0)
    if signals.refusal:
        return verdict(True, say("turn.reason_refusal_believed"))
    fitted = calibration is not None
    told = {"score": f"{score:.2f}", "threshold": f"{threshold:.2f}"}
    if score >= threshold:
        return verdict(True, say("turn.reason_confident" if fitted else "turn.reason_confident_uncalibrated", **told))
    why = say(IN_WORDS[scorer.worst(found)])
    return verdict(False, say("turn.reason_unsure" if fitted else "turn.reason_unsure_uncalibrated", why=why, **told))


def rule(signals: Signals, *, min_words: int) -> str | None:
    """The hard rule that a draft breaks, in words; None when it breaks none."""
    if signals.words == 0:
        return say("turn.reason_empty")
    if signals.looping:
        return say("turn.reason_loops")
    if signals.cut_off:
        return say("turn.reason_cut_off")
    if signals.refusal:
        covered = signals.coverage >= COVERED
        return say("turn.reason_refusal_doubted") if covered else None
    if signals.words < min_words and not signals.verbatim:
        return say("turn.reason_short", count=signals.words)
    if signals.absent_fact is not None:
        number = _NUMBER.fullmatch(signals.absent_fact)
        return say("turn.reason_absent_number" if number else "turn.reason_absent_name", fact=signals.absent_fact)
    return None


def hopeless(
    after: int, text: str, tokens: Sequence[Token], grounds: Grounds, calibration: Calibration, *, threshold: float
) -> Verdict | None:
    """The verdict on a draft that is not worth finishing, looked at `after` so many tokens (0: before the first); None to
    go on. `threshold` is what its verdict says that was asked for."""
    line = calibration.early[after]
    if tokens:
        signals = measure(text, tokens, grounds, cut_off=False)
        found = features(signals)
    else:
        signals, found = None, before(grounds)
    if not line.scorer.weights.keys() <= found.keys():
        return None  # no word yet, only marks
    score = line.scorer.probability(found)
    if score >= line.at:
        return None
    why = say(IN_WORDS[line.scorer.worst(found)])
    if not tokens:
        reason = say("turn.reason_hopeless_before", why=why)
    elif after == 1:
        reason = say("turn.reason_hopeless_first", why=why)
    else:
        reason = say("turn.reason_hopeless_after", count=after, why=why)
    return Verdict(min(score, threshold / 2), threshold, False, reason, signals, True)


def coverage(query: str, hits: Sequence[Hit], idf: Idf) -> float:
    """Idf-weighted share of the query's terms that the hits hold, in the language that holds most; 0 without terms.

    Where a script writes no spaces, terms are shingles of two characters, and one that lies across two words stands in no
    passage. There each character counts, with the least idf of its shingles, as held if one of these is. So questions in
    Chinese are covered as those in English are (XQuAD over half of its articles: of the questions on these, 0.8% are
    covered by less than 30%, in English 0.7%; of the others 30% and 31%).
    """
    held: dict[str, set[str]] = {}
    for hit in hits:
        held.setdefault(hit.passage.language, set()).update(terms_of(hit.passage))
    best = 0.0
    for language, found in held.items():
        total = share = 0.0
        for run in {tuple(run) for run in runs(terms(query, language))}:
            for holders, each in _weighed(run):
                weight = each * min(map(idf, holders))
                total += weight
                share += weight if found.intersection(holders) else 0.0
        best = max(best, share / total if total else 0.0)
    return best


def _weighed(run: Sequence[str]) -> Iterator[tuple[Sequence[str], float]]:
    """What of a run counts, as the terms that may hold it and its weight: a word, or each character with its shingles.

    Two characters weigh as one word elsewhere.
    """
    if len(run) == 1:
        yield run, 1.0
        return
    for end in range(1, len(run) + 2):
        yield run[max(0, end - 2) : end], 0.5


def is_refusal(text: str) -> bool:
    """Does the text say that it knows no answer? Short texts only: a long one that also says so has answered."""
    return len(text) < 400 and _REFUSAL.search(text) is not None


def measure(text: str, tokens: Sequence[Token], grounds: Grounds, *, cut_off: bool) -> Signals:
    """All signals of one draft, or of its beginning."""
    text = _MARKER.sub("", text).strip()
    own_words = _words(text)
    found = set(terms(text, grounds.language))
    # Words repeated from the question tell nothing, unless there are no others.
    own = (found - grounds.asked) or found
    content = _content_tokens(tokens)
    logprobs = [token.logprob for token in content]
    facts = [token.logprob for token in content if _is_fact(token.text)]
    leads = [token.top[0] - token.top[1] for token in content if len(token.top) > 1]
    sentence, alignment = _support_sentence(own, grounds)
    new = found - grounds.asked
    telling = _first_telling(content, grounds.asked, grounds.language)
    mass = grounds.tell(own)
    said = grounds.tell(found)
    plain = f" {' '.join(own_words)} "
    return Signals(
        words=count_words(text),
        mean_logprob=statistics.fmean(logprobs) if logprobs else None,
        low_logprob=sorted(logprobs)[len(logprobs) // 10] if logprobs else None,
        least_logprob=min(logprobs, default=None),
        first_entropy=_entropy(telling.top) if telling is not None and len(telling.top) > 1 else None,
        lead=statistics.fmean(leads) if leads else None,
        fact_logprob=(min(facts) if facts else 0.0) if logprobs else None,
        coverage=grounds.coverage,
        missing=grounds.missing,
        hit_strength=grounds.hit_strength,
        hit_margin=grounds.hit_margin,
        support=_support(own, grounds),
        alignment=alignment if new else 0.0,
        apart=_apart(sentence, new, grounds) if sentence else 1.0,
        best_alignment=grounds.best_alignment,
        elsewhere=grounds.tell(own & grounds.unread) / mass if mass else 0.0,
        own_terms=len(new),
        own_logprob=telling.logprob if telling is not None else None,
        echo=grounds.tell(found & grounds.asked) / said if said else 0.0,
        copied=_longest_run(own_words, grounds.plain) / len(own_words) if own_words else 0.0,
        verbatim=bool(own_words) and plain in grounds.plain,
        wrong_kind=_wrong_kind(grounds.question, text),
        refusal=is_refusal(text),
        looping=_loops(own_words),
        cut_off=cut_off,
        absent_fact=_absent_fact(text, grounds.question, grounds.evidence, grounds.language),
        sentence=sentence,
    )


def _scorer(calibration: Calibration | None, *, with_logprobs: bool) -> tuple[Scorer, float]:
    if calibration is None:
        return COLD_START if with_logprobs else COLD_START_WITHOUT_LOGPROBS, COLD_START_THRESHOLD
    line = calibration.right if with_logprobs else calibration.right_without_logprobs
    return line.scorer, line.at


def _doubt(logprob: float | None, scale: float) -> float:
    return 0.0 if logprob is None else min(1.0, -logprob / scale)


def _content_tokens(tokens: Sequence[Token]) -> list[Token]:
    """Tokens that carry a letter or a digit; end marks and punctuation say nothing about certainty."""
    return [
        token for token in tokens if any(character.isalnum() for character in token.text) and "<|" not in token.text
    ]


def _first_telling(content: Sequence[Token], asked: set[str], language: str) -> Token | None:
    """The first token that answers: words without a subject and words repeated from the question do not."""
    telling = (token for token in content if (own := set(terms(token.text, language))) and not own <= asked)
    return next(telling, content[0] if content else None)


def _is_fact(token: str) -> bool:
    return any(character.isdigit() for character in token) or token.strip()[:1].isupper()


def _entropy(logprobs: Sequence[float]) -> float:
    """Entropy of the renormalised distribution over its greatest possible value, ln(TOP_LOGPROBS)."""
    weights = [math.exp(logprob) for logprob in logprobs[:TOP_LOGPROBS]]
    total = sum(weights)
    shares = [weight / total for weight in weights if weight > 0]
    return -sum(share * math.log(share) for share in shares) / math.log(TOP_LOGPROBS)


def _support(own: set[str], grounds: Grounds) -> float:
    weighted = {term: grounds.idf(term) * (2 if any(c.isdigit() for c in term) else 1) for term in own}
    total = sum(weighted.values())
    return sum(weight for term, weight in weighted.items() if term in grounds.held) / total if total else 0.0


def _support_sentence(own: set[str], grounds: Grounds) -> tuple[str | None, float]:
    """The sentence with most of the answer's own terms, and how much of the question it holds."""
    best = (0.0, 0.0)
    sentence = None
    for text, held in grounds.sentences:
        if (support := grounds.tell(own & held)) > 0 and (found := (support, grounds.align(held))) > best:
            best, sentence = found, text
    return sentence, best[1]


def _apart(sentence: str, own: set[str], grounds: Grounds) -> float:
    held = [set(terms(word, grounds.language)) for word, _, _ in words(sentence)]
    asked = [place for place, found in enumerate(held) if found & grounds.asked]
    answers = [place for place, found in enumerate(held) if found & own]
    if not asked or not answers:
        return 1.0
    return min(1.0, statistics.fmean(min(abs(place - other) for other in asked) for place in answers) / FAR)


def _longest_run(own: Sequence[str], plain: str) -> int:
    longest = 0
    for start in range(len(own)):
        while start + longest < len(own) and f" {' '.join(own[start : start + longest + 1])} " in plain:
            longest += 1
    return longest


def _words(text: str) -> list[str]:
    """Words in lower case; of a script that writes no spaces, its characters."""
    found: list[str] = []
    for word, _, _ in words(text.casefold()):
        found.extend(word if word[0] >= UNSPACED else [word])
    return found


def _plain(text: str) -> str:
    return f" {' '.join(_words(text))} "


def count_words(text: str) -> int:
    # Two characters of a script without spaces count as one word.
    return sum(1 if word[0] < UNSPACED else (len(word) + 1) // 2 for word, _, _ in words(text))


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


def _wrong_kind(question: str, text: str) -> bool:
    for asks, answers in _KINDS:
        if asks.search(question):
            return answers.search(text) is None
    return False


def _loops(found: Sequence[str]) -> bool:
    """Does some run of one to eight words stand at least three times in a row (a single word: five times)?"""
    for length in range(1, 9):
        needed = 5 if length == 1 else 3
        repeats = 1
        for place in range(length, len(found) - length + 1, length):
            same = found[place : place + length] == found[place - length : place]
            repeats = repeats + 1 if same else 1
            if repeats >= needed:
                return True
    return False


def _rounded(signals: dict[str, Any]) -> dict[str, Any]:
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in signals.items()}
