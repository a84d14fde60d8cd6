"""How far a model is from answering, for doors to show.

Knows the phases and their words; nothing of what brings a model from one to the next.
"""

from dataclasses import dataclass
from typing import Literal

from rag.words import say

Phase = Literal["absent", "fetching", "verifying", "loading", "ready", "resting", "failed", "remote"]
PROGRESS: dict[str, str] = {"fetching": "turn.progress_fetching", "verifying": "turn.progress_verifying"}
STATES: dict[str, str] = {
    "absent": "turn.state_absent",
    "fetching": "turn.state_fetching",
    "verifying": "turn.state_verifying",
    "loading": "turn.state_loading",
    "ready": "turn.state_ready",
    "resting": "turn.state_resting",
    "remote": "turn.state_remote",
}


@dataclass(frozen=True)
class State:
    """How far a leg is. Bytes are of the weights; 0 where nothing is fetched."""

    phase: Phase
    done_bytes: int = 0
    total_bytes: int = 0
    detail: str = ""

    @property
    def usable(self) -> bool:
        return self.phase in ("ready", "remote")

    @property
    def at_hand(self) -> bool:
        """Usable, or again so in a moment: what rests was unloaded and is here."""
        return self.usable or self.phase == "resting"

    @property
    def words(self) -> str:
        """For a person, without a full stop."""
        if self.phase in PROGRESS and self.total_bytes:
            megabytes = {"done": round(self.done_bytes / 1e6), "total": round(self.total_bytes / 1e6)}
            return say(PROGRESS[self.phase], **megabytes)
        return self.detail.rstrip(".") if self.phase == "failed" else say(STATES[self.phase])
