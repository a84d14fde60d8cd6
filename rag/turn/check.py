"""The Yes or No with which a larger model begins: do the passages answer the question at all?

Reads the beginning of one answer as it comes and takes it off the text. Knows the word and how sure the model was of it;
where to draw the line was fitted (`calibration`), and what follows from it is the cascade's.
"""

import re
from dataclasses import replace

from rag.models.backend import Delta, Draft, Token

# The word, in marks or not, with what belongs to it: a mark, and on its line a dash.
_LEAD = re.compile(
    r"\s*(?P<mark>\*\*|__|[*_\"'“]?)(?P<word>yes|no)(?![^\W_])"
    r"[.,:;!?]*(?:(?P=mark)|[”\"])?[.,:;!?]*(?:[ \t]*[–—-](?=[ \t]))?\s*",
    re.IGNORECASE,
)
# What may still become the word, and the word as long as nothing follows.
_BEGUN = re.compile(r"\s*(?:\*\*?|__?|[\"'“])?(?:y|ye|yes|n|no)?", re.IGNORECASE)


class Check:
    """One answer's beginning. `said` is None until the word is there, and stays so for a model that does not say it."""

    def __init__(self) -> None:
        self.said: bool | None = None
        self.lead: float | None = None
        """Logprob of Yes minus that of No; None where the server reports no rivals."""
        self._held = ""
        self._before = 0
        self._decided = False

    def read(self, delta: Delta) -> str:
        """The text that can be shown now: all of it, once what stands before it is known."""
        if self._decided:
            return delta.text
        self._held += delta.text
        for token in delta.tokens:
            if self.lead is None:
                self.lead = _lead(token)
        if _BEGUN.fullmatch(self._held):
            self._before += len(delta.tokens)
            return ""
        found = _LEAD.match(self._held)
        if found is None:
            self._decided = True
            return self._held
        self.said = found["word"].lower() == "yes"
        if not self._held[found.end() :].strip("*_\"”'–—-"):
            self._before += len(delta.tokens)
            return ""  # whose marks they are is told by what follows
        self._decided = True
        return self._held[found.end() :]

    def end(self) -> None:
        """Nothing follows: a word that stands alone is said."""
        if not self._decided and self.said is None and (found := _LEAD.match(self._held)) is not None:
            self.said = found["word"].lower() == "yes"

    def denies(self, at_least: float | None) -> bool:
        """Does the model hold that the passages don't answer the question?"""
        if self.said is None:
            return False
        return not self.said or (at_least is not None and self.lead is not None and self.lead < at_least)

    def strip(self, draft: Draft) -> Draft:
        """The draft without its first word."""
        found = _LEAD.match(draft.text) if self.said is not None else None
        if found is None or not draft.text[found.end() :].strip():
            return draft
        return replace(draft, text=draft.text[found.end() :], tokens=draft.tokens[self._before :])


def _lead(token: Token) -> float | None:
    if _bare(token.text) not in ("yes", "no"):
        return None
    best: dict[str, float] = {}
    for text, logprob in zip(token.top_texts, token.top, strict=False):
        word = _bare(text)
        best[word] = max(best.get(word, logprob), logprob)
    if not token.top or not best.keys() & {"yes", "no"}:
        return None
    # A word that is not among the most probable ones is less probable than the last of them.
    least = min(token.top)
    return best.get("yes", least) - best.get("no", least)


def _bare(text: str) -> str:
    return text.strip(" .,:;!*_\"'").lower()
