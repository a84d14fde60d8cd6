"""Answers to a data set's questions, each by a whole turn: Outcome; and whether they are right.

Knows how questions are put to the product (its own library over the data set's text, its own cascade) and what "right" and
"refused" mean. What the models wrote is recorded, so that asking again costs nothing; what is made of the outcomes is
`evaluation`'s and `calibration`'s.
"""

import random
import re
import string
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rag import terminal
from rag.corpus.index import Hit
from rag.corpus.library import Library
from rag.errors import ModelError, RagError, UserError
from rag.lab.dataset import Case, Dataset
from rag.lab.recording import Call, RecordedLegs, Recordings
from rag.models.legs import Legs
from rag.settings import Mode, Settings
from rag.turn import cascade
from rag.turn.calibration import Calibration
from rag.turn.session import Exchange, Session

SEED = 4
UNSPACED = "\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff"
_MARKER = re.compile(r"\[\d+\]")


@dataclass(frozen=True)
class Outcome:
    """What became of one question."""

    case: Case
    turn: cascade.Turn | None
    """None where the turn failed; then it is neither right nor refused."""
    calls: tuple[Call, ...]
    error: str = ""

    @property
    def refused(self) -> bool:
        return self.turn is not None and self.turn.refused

    @property
    def right(self) -> bool:
        """A gold answer stands in the answer; where there is none, the answer is a refusal."""
        if self.turn is None:
            return False
        if not self.case.answerable:
            return self.refused
        # A source mark is no answer to "how many".
        return not self.refused and holds_gold(_MARKER.sub("", self.turn.answer), self.case.answers)

    @property
    def escalated(self) -> bool:
        return any(call.leg == "llm" for call in self.calls)

    @property
    def own_ms(self) -> float:
        """The product's share of the turn: all but the models, whose recorded times pass in no time."""
        if self.turn is None:
            return 0.0
        return self.turn.trace.total_ms - sum(call.waited_ms for call in self.calls)

    @property
    def ttft_ms(self) -> float:
        """Until the first token that the user sees, or a refusal."""
        return (self.calls[0].ttft_ms if self.calls else 0.0) + self.own_ms

    @property
    def total_ms(self) -> float:
        return sum(call.total_ms for call in self.calls) + self.own_ms

    @property
    def compute_s(self) -> float:
        """CPU seconds of the models where they are known, seconds of waiting where not."""
        return sum(call.total_ms / 1000 if call.cpu_s is None else call.cpu_s for call in self.calls)


def sample(dataset: Dataset, limit: int | None, *, answerable: float | None = None) -> tuple[Case, ...]:
    """At most `limit` cases, the same ones each time, and a larger sample holds the smaller; all in the set's order.

    `answerable` is the share of questions with an answer; None leaves the set's own.
    """
    told = [number for number, case in enumerate(dataset.cases) if case.answers or not case.answerable]
    if not any(dataset.cases[number].answers for number in told):
        raise UserError(
            f"{dataset.name} tells no answers, so nothing can be right or wrong."
            " Name a SQuAD JSON file or questions of your own; for retrieval alone: smallfirst evaluate retrieval."
        )
    if limit is not None and limit < 1:
        raise UserError(f"A limit of {limit} leaves no question. Give 1 or more.")
    random.Random(SEED).shuffle(told)
    if answerable is None or limit is None:
        chosen = told[:limit]
    else:
        yes = [number for number in told if dataset.cases[number].answerable]
        no = [number for number in told if not dataset.cases[number].answerable]
        chosen = [*yes[: round(limit * answerable)], *no[: limit - round(limit * answerable)]]
    return tuple(dataset.cases[number] for number in sorted(chosen))


@asynccontextmanager
async def opened(dataset: Dataset, settings: Settings) -> AsyncIterator[Library]:
    """The product's library over the data set's own folder, or else over its whole text, one file for each document."""
    with tempfile.TemporaryDirectory() as folder:
        docs = dataset.folder or _written_out(dataset, Path(folder) / "docs")
        library = Library(settings.model_copy(update={"docs": docs, "cache_dir": Path(folder)}))
        try:
            terminal.read(library)
            yield library
        finally:
            library.close()


def _written_out(dataset: Dataset, docs: Path) -> Path:
    docs.mkdir()
    for number, (source, found) in enumerate(dataset.documents()):
        name = re.sub(r"\W+", "_", source)[:80] or str(number)
        if (docs / f"{name}.txt").exists():
            name = f"{name}_{number}"
        (docs / f"{name}.txt").write_text("\n\n".join(p.text for p in found), encoding="utf-8")
    return docs


async def ask(
    cases: Sequence[Case],
    mode: Mode,
    *,
    library: Library,
    legs: Legs,
    settings: Settings,
    recordings: Recordings,
    fitted: Calibration | Literal["find"] | None = "find",
) -> AsyncGenerator[Outcome, None]:
    """One outcome for each case, in order; each is a conversation of its own. `fitted` as for `cascade.answer`.

    What a case is asked `after` is asked first, and neither counted nor judged; where that fails, the case has failed.
    """
    recorded = RecordedLegs(legs, recordings)
    for case in cases:
        session = Session(library, mode)
        answered: cascade.Turn | RagError | None = None
        left = [*case.after, case.question]
        while left and not isinstance(answered, RagError):
            recorded.calls.clear()
            answered = await _answered(left.pop(0), session, legs=recorded, settings=settings, fitted=fitted)
        session.attachments.close()
        if isinstance(answered, UserError):
            raise answered
        calls = tuple(recorded.calls) if not left else ()
        if isinstance(answered, RagError):
            yield Outcome(case, None, calls, str(answered))
        else:
            yield Outcome(case, answered, calls)


async def _answered(question: str, session: Session, **more: Any) -> cascade.Turn | RagError:
    async with aclosing(cascade.answer(question, session=session, **more)) as events:
        async for event in events:
            if isinstance(event, cascade.Answered):
                return event.turn
            if isinstance(event, cascade.Failed):
                return event.error
    raise AssertionError("a turn ends with an answer or a failure")


async def searched(cases: Sequence[Case], *, library: Library, settings: Settings) -> list[tuple[Hit, ...]]:
    """What a turn finds for each case, best first, by the cascade itself, which is left before it asks a model.

    Nobody has answered what a case is asked `after`, so only the words of those questions can be carried over. That a
    turn would keep silent for want of its question's words is not seen here.
    """
    legs = Legs(settings)
    found = []
    try:
        for case in cases:
            session = Session(library, settings.mode)
            for question in case.after:
                session.remember(Exchange("", question, question, ""))
            async with aclosing(cascade.answer(case.question, session=session, legs=legs, settings=settings)) as events:
                async for event in events:
                    if isinstance(event, cascade.Failed):
                        raise event.error
                    if isinstance(event, cascade.Retrieved):
                        found.append(event.hits)
                        break
            session.attachments.close()
    finally:
        await legs.close()
    return found


def failed_too_often(outcomes: Sequence[Outcome]) -> ModelError | None:
    """A server that is not there fails every question; the first few say so."""
    failures = [outcome for outcome in outcomes if outcome.error]
    if len(failures) >= 5 and len(failures) == len(outcomes):
        return ModelError(failures[-1].error)
    return None


def holds_gold(text: str, golds: Sequence[str]) -> bool:
    """Does a gold answer stand in the text, both normalised as SQuAD does?

    It begins where a word or an unspaced character does, and no number goes on behind it: "ten" is not in "often", nor 5
    in 52, but "Agassiz" is in "Agassiz's".
    """
    plain = normalised(text)
    return any(
        gold and re.search(rf"(?:(?<!\w)|(?<=[{UNSPACED}])|(?=[{UNSPACED}])){re.escape(gold)}(?!(?<=\d)\d)", plain)
        for gold in map(normalised, golds)
    )


def normalised(text: str) -> str:
    """Lower case, without punctuation and articles, single spaces (Rajpurkar et al. 2016)."""
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())
