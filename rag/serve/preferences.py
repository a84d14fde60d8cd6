"""What a person has chosen in the chat settings: each choice, its form, and what may be chosen at all.

The form's values come from a browser, so nothing is taken that the form does not offer. Knows the settings that the
choices stand in for, nothing of who chose them or where they are kept.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from babel import Locale
from chainlit.input_widget import InputWidget, RadioGroup, Select, Slider, Switch

from rag.errors import UserError
from rag.settings import MODES, STRATEGIES, Mode, Remote, Settings, Strategy
from rag.turn.confidence import COLD_START_THRESHOLD
from rag.words import LANGUAGES, say, told

MODE_LABELS: Final = {"auto": "chat.mode_auto", "slm": "chat.mode_slm", "llm": "chat.mode_llm"}
STRATEGY_LABELS: Final = {"answer": "chat.strategy_answer", "refine": "chat.strategy_refine"}
# The line that was fitted lies low where most questions have no answer in the documents, so the words are about what is
# done, not about how right an answer is.
THRESHOLDS: Final = {
    "0": "chat.confidence_0",
    "0.1": "chat.confidence_low",
    "0.3": "chat.confidence_middle",
    "0.6": "chat.confidence_high",
    "1": "chat.confidence_1",
}
FITTED: Final = "fitted"
OF_QUESTION: Final = "question"
MOST_PASSAGES: Final = 10


@dataclass(frozen=True)
class Preferences:
    """One person's choices. `confidence` None is as calibrated; `answer_language` "" the question's own."""

    mode: Mode
    strategy: Strategy
    confidence: float | None
    passages: int
    answer_language: str
    remote: Remote
    show_receipts: bool

    @classmethod
    def of(cls, settings: Settings) -> "Preferences":
        """What holds for who has chosen nothing."""
        return cls(
            settings.mode,
            settings.strategy,
            settings.confidence,
            settings.llm_passages,
            settings.answer_language,
            settings.remote,
            settings.show_receipts,
        )

    def chosen(self, values: Mapping[str, Any], settings: Settings) -> "Preferences":
        """With the form's values in place of its own; what is missing stays. After a bad one (UserError) none is taken."""
        made = self
        if "mode" in values:
            made = replace(made, mode=_one_of("mode", values["mode"], MODES))
        if "strategy" in values:
            made = replace(made, strategy=_one_of("strategy", values["strategy"], STRATEGIES))
        if "confidence" in values:
            made = replace(made, confidence=_threshold(values["confidence"]))
        if "passages" in values:
            made = replace(made, passages=int(_number("passages", values["passages"], 1, _most(settings))))
        if "answer_language" in values:
            offered = (OF_QUESTION, *_languages(settings))
            language = _one_of("answer_language", values["answer_language"], offered)
            made = replace(made, answer_language="" if language == OF_QUESTION else language)
        if "show_receipts" in values:
            made = replace(made, show_receipts=_switch("show_receipts", values["show_receipts"]))
        local = _switch("local_only", values.get("local_only", self.remote == "never"))
        allowed = _switch("allow_remote", values.get("allow_remote", self.remote == "allow"))
        remote: Remote = "never" if local or settings.remote == "never" else "allow" if allowed else "ask"
        return replace(made, remote=remote)

    def to_dict(self) -> dict[str, Any]:
        """The form's values, from which `chosen` makes the same choices again."""
        return {
            "mode": self.mode,
            "strategy": self.strategy,
            "confidence": FITTED if self.confidence is None else f"{self.confidence:g}",
            "passages": self.passages,
            "answer_language": self.answer_language or OF_QUESTION,
            "local_only": self.remote == "never",
            "allow_remote": self.remote == "allow",
            "show_receipts": self.show_receipts,
        }

    def applied(self, settings: Settings) -> Settings:
        """The settings of a turn of this person's."""
        return settings.model_copy(
            update={
                "strategy": self.strategy,
                "confidence": self.confidence,
                "llm_passages": self.passages,
                "answer_language": self.answer_language,
            }
        )

    def form(
        self, settings: Settings, language: str, *, fitted: float | None, elsewhere: str | None
    ) -> list[InputWidget]:
        """The form with these choices made. `fitted` is the calibrated line, if there is one; `elsewhere` names the host
        of a model on another machine, if one of the two is there."""

        def words(key: str, **values: object) -> str:
            return told(say(key, **values), language)

        values = self.to_dict()
        line = f"{COLD_START_THRESHOLD if fitted is None else fitted:.2f}"
        scored = "chat.confidence_fitted" if fitted is not None else "chat.confidence_formula"
        thresholds = {FITTED: words(scored, threshold=line)}
        thresholds |= {value: words(key, threshold=value) for value, key in THRESHOLDS.items()}
        thresholds.setdefault(values["confidence"], words("chat.confidence_own", threshold=values["confidence"]))
        languages = {OF_QUESTION: words("chat.answer_language_question")}
        languages |= {tag: name_in(tag, language) for tag in _languages(settings)}
        locked = settings.remote == "never"
        widgets: list[InputWidget] = [
            RadioGroup(
                id="mode",
                label=words("chat.mode"),
                items={words(label): value for value, label in MODE_LABELS.items()},
                initial_value=self.mode,
            ),
            Select(
                id="confidence",
                label=words("chat.confidence"),
                items={label: value for value, label in thresholds.items()},
                initial_value=values["confidence"],
            ),
            Select(
                id="strategy",
                label=words("chat.strategy"),
                items={words(label): value for value, label in STRATEGY_LABELS.items()},
                initial_value=self.strategy,
            ),
            Slider(
                id="passages",
                label=words("chat.passages"),
                description=words("chat.passages_more"),
                initial=self.passages,
                min=1,
                max=_most(settings),
                step=1,
            ),
            Select(
                id="answer_language",
                label=words("chat.answer_language"),
                items={label: value for value, label in languages.items()},
                initial_value=values["answer_language"],
            ),
            Switch(
                id="local_only",
                label=words("chat.local_only"),
                description=words("chat.local_only_locked" if locked else "chat.local_only_more"),
                initial=values["local_only"],
                disabled=locked,
            ),
            Switch(
                id="show_receipts",
                label=words("chat.show_receipts"),
                description=words("chat.show_receipts_more"),
                initial=self.show_receipts,
            ),
        ]
        if elsewhere is not None and not locked:
            allow = Switch(
                id="allow_remote",
                label=words("chat.allow_remote", where=elsewhere),
                description=words("chat.allow_remote_more"),
                initial=values["allow_remote"],
            )
            widgets.insert(-1, allow)
        return widgets


def name_in(tag: str, language: str) -> str:
    """A language's name in another, with a capital."""
    name = Locale.parse(tag, sep="-").get_display_name(Locale.parse(language, sep="-")) or tag
    return name[:1].upper() + name[1:]


def _languages(settings: Settings) -> tuple[str, ...]:
    own = settings.answer_language
    return LANGUAGES if own in ("", *LANGUAGES) else (*LANGUAGES, own)


def _most(settings: Settings) -> int:
    return max(MOST_PASSAGES, settings.llm_passages)


def _threshold(value: object) -> float | None:
    if value == FITTED:
        return None
    try:
        number = float(value) if isinstance(value, str) else value
    except ValueError:
        number = value
    return _number("confidence", number, 0, 1)


def _shown(value: object) -> str:
    """As a message has it: what a browser sends may be endless."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def _one_of(name: str, value: object, choices: tuple[Any, ...]) -> Any:
    if not isinstance(value, str) or value not in choices:
        raise UserError(say("chat.bad_choice", name=name, value=_shown(value), choices=", ".join(choices)))
    return value


def _number(name: str, value: object, least: int, most: int) -> float:
    fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not fits or not least <= float(str(value)) <= most:
        raise UserError(say("chat.bad_number", name=name, value=_shown(value), least=least, most=most))
    return float(str(value))


def _switch(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise UserError(say("chat.bad_switch", name=name, value=_shown(value)))
    return value
