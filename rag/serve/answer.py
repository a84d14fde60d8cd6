"""One answer as it stands in a conversation: its turn, what was said of it, and what can be done about it.

Knows the dictionary of a turn and the props of the element under it (public/elements/Receipt.jsx). How it gets there is
`bubble`'s, what a button does is the door's. What a browser sends of a button only names the answer; all else stands
here, or in the history from which it is made again.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from rag.models.legs import Pair
from rag.settings import Remote
from rag.turn.cascade import Turn
from rag.words import translated

Thumb = Literal["good", "bad"]
# What a person has done about an answer; the rest of the props is the turn.
OWN = ("kept", "comment", "standing", "insisted", "asked")


@dataclass
class Answer:
    """`turn` is the message's metadata, in English; `shown` the same in the words of who reads it."""

    id: str
    question_id: str
    thread_id: str
    turn: dict[str, Any] = field(default_factory=dict)
    shown: dict[str, Any] = field(default_factory=dict)
    kept: Thumb | None = None
    """The thumb that is kept."""
    comment: str = ""
    standing: Literal["slm"] | None = None
    """The small model's answer stands by somebody's wish, not the larger one's."""
    insisted: bool = False
    """The larger model was asked by hand for this one."""
    element_id: str | None = None
    """Of its receipt."""
    asked: bool = False
    """The larger model was asked after this one."""

    @property
    def answered(self) -> bool:
        """Not stopped, and not failed."""
        return "hits" in self.turn

    def take(self, turn: Turn, language: str) -> None:
        told = turn.to_dict()
        self.turn = {**translated(told, "en"), "id": self.question_id}
        self.shown = translated(told, language)

    def offers(self, legs: Pair, remote: Remote) -> list[str]:
        """What makes sense now, in the order of the buttons."""
        offered = []
        if self.answered and not self.asked and self._may_ask_larger and not (legs.llm.leaves and remote == "never"):
            offered.append("ask_larger")
        if self.turn.get("set_aside") and self.standing is None:
            offered.append("keep_short")
        return [*offered, "retry"]

    @property
    def _may_ask_larger(self) -> bool:
        if self.turn["refused"]:
            # Where nothing was found, or the larger model has just refused, asking it brings nothing new.
            return bool(self.turn["hits"]) and not self.insisted
        by_larger = self.turn["escalated"] or (
            self.turn["mode"] == "llm" and all(draft["leg"] == "llm" for draft in self.turn["drafts"])
        )
        return not by_larger or self.standing is not None

    def props(
        self, legs: Pair, remote: Remote, *, shown: bool, labels: bool, attachments: list[str], language: str
    ) -> dict[str, Any]:
        return {
            **self.shown,
            "answer_id": self.id,
            "question_id": self.question_id,
            "thread_id": self.thread_id,
            "offers": self.offers(legs, remote),
            "larger": {"model": legs.llm.model, "where": legs.llm.where, "leaves": legs.llm.leaves},
            "kept": self.kept,
            "comment": self.comment,
            "standing": self.standing,
            "insisted": self.insisted,
            "asked": self.asked,
            "shown": shown,
            "labels": labels,
            "attachments": attachments,
            "language": language,
        }

    def keep_short(self) -> None:
        """The small model's answer takes the larger one's place, for good."""
        for turn in (self.turn, self.shown):
            turn |= turn["set_aside"]
            turn["refused"] = False
            turn["standing"] = "slm"
        self.standing = "slm"

    @classmethod
    def of_step(cls, step: Mapping[str, Any], props: Mapping[str, Any]) -> "Answer | None":
        """The answer that a message of the history is, with the props of its element; None for a message that is none."""
        metadata = step.get("metadata") or {}
        if step.get("type") != "assistant_message" or not isinstance(metadata.get("id"), str):
            return None
        kept, standing = props.get("kept"), props.get("standing")
        return cls(
            id=step["id"],
            question_id=metadata["id"],
            thread_id=step["threadId"],
            turn=dict(metadata),
            shown={name: value for name, value in props.items() if name not in OWN},
            kept=kept if kept in ("good", "bad") else None,
            comment=str(props.get("comment") or ""),
            standing="slm" if standing == "slm" else None,
            insisted=bool(props.get("insisted")),
            asked=bool(props.get("asked")),
        )


def text_of(turn: Mapping[str, Any]) -> str:
    """The message: the answer, its notes, and a definition for each source mark.

    A mark `[1]` with a definition is a link in Markdown, which the page opens; what is copied has the sources with it.
    """
    # A model could define a mark itself, and the first definition counts.
    answer = re.sub(r"^([ \t]{0,3})\[([^\]\n]+)\]:", r"\1\\[\2]:", turn["answer"], flags=re.MULTILINE)
    notes = "\n\n".join(f"*{note}*" for note in turn["notes"]) if turn.get("notes") else ""
    sources = "\n".join(f'[{c["marker"]}]: #source-{c["marker"]} "{_title(c)}"' for c in turn["citations"])
    return "\n\n".join(part for part in (answer, notes, sources) if part)


def _title(citation: Mapping[str, Any]) -> str:
    """Document, page and headings on one line that a Markdown title can hold."""
    page = f", {citation['page']}" if citation["page"] is not None else ""
    heading = f" › {' › '.join(citation['heading'])}" if citation["heading"] else ""
    return " ".join(f"{citation['source']}{page}{heading}".replace("\\", "/").replace('"', "'").split())
