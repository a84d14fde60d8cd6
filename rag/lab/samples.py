"""Questions with their answers in the form that ragas reads: Sample; written as one JSON document a line.

Knows ragas' names for the parts of a sample (its SingleTurnSample); neither ragas nor models. What is not known is left
out: a question without an answer has no reference, and one whose evidence nobody told has no reference contexts.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rag.corpus.documents import Passage
from rag.errors import UserError
from rag.lab.answers import Outcome
from rag.lab.dataset import Case, Dataset
from rag.lab.rubric import evidence_of, unmarked


@dataclass(frozen=True)
class Sample:
    """One question of a run."""

    id: str
    user_input: str
    """The question."""
    response: str
    """The answer without its source marks."""
    retrieved_contexts: tuple[str, ...]
    """The passages that the model which wrote the answer was shown; what was found where none was asked."""
    reference: str | None
    """A gold answer."""
    reference_contexts: tuple[str, ...]
    """The passages that a search should find."""
    refused: bool
    """The answer is the product's own word that the documents hold none; not part of ragas' form."""

    def to_dict(self) -> dict[str, Any]:
        """In ragas' names, and the question's id."""
        found: dict[str, Any] = {
            "id": self.id,
            "user_input": self.user_input,
            "response": self.response,
            "retrieved_contexts": list(self.retrieved_contexts),
        }
        if self.reference is not None:
            found["reference"] = self.reference
        if self.reference_contexts:
            found["reference_contexts"] = list(self.reference_contexts)
        return found


def of(outcomes: Sequence[Outcome], dataset: Dataset) -> list[Sample]:
    """A sample for each question that did not fail."""
    wanted = {id for outcome in outcomes for id in outcome.case.relevant}
    held = {}
    if wanted:
        held = {one.id: one for _, found in dataset.documents() for one in found if one.id in wanted}
    return [
        Sample(
            id=outcome.case.id,
            user_input=outcome.case.question,
            response=unmarked(outcome.turn.answer),
            retrieved_contexts=tuple(hit.passage.text for hit in evidence_of(outcome)),
            reference=outcome.case.answers[0] if outcome.case.answers else None,
            reference_contexts=_reference_contexts(outcome.case, held),
            refused=outcome.refused,
        )
        for outcome in outcomes
        if outcome.turn is not None
    ]


def write(samples: Sequence[Sample], path: Path) -> None:
    """One JSON document a line. UserError where it cannot be written."""
    try:
        with path.open("w", encoding="utf-8") as file:
            for sample in samples:
                file.write(f"{json.dumps(sample.to_dict(), ensure_ascii=False)}\n")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}. Name another file with --samples.") from None


def _reference_contexts(case: Case, held: Mapping[str, Passage]) -> tuple[str, ...]:
    if not case.answerable:
        return ()
    found = [held[id] for id in sorted(case.relevant) if id in held]
    if case.evidence:
        # What can be read in several places is wanted once.
        found = [one for one in found if any(evidence.places[0].touches(one) for evidence in case.evidence)]
    return tuple(passage.text for passage in found)
