"""A model that says what a test tells it to. It proves plumbing, never quality."""

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass, field

from rag.errors import ModelError
from rag.models.backend import Delta, Draft, Message, Piece, Reading, Thinking, Token, Usage, Waiting
from rag.models.state import State
from rag.trace import Trace

SURE = math.log(0.99)


@dataclass
class Reply:
    """What is written, how sure of it, and how it ends."""

    text: str
    logprob: float | None = SURE
    finish_reason: str = "stop"
    error: ModelError | None = None
    """Raised after the text."""
    waits: Sequence[int] = ()
    reads: Sequence[float] = ()
    """How far the prompt was read, each time that is told."""
    aloud: str = ""
    """Thought before the text, and only then said to have been thought."""
    busy_s: float | None = None
    """The server asks to be asked again after so long."""
    yes_over_no: float | None = None
    """By how much the first token is surer as Yes than as No; None where no rivals are told."""
    hold: asyncio.Event | None = None
    """After the first word, nothing comes until this is set."""


class ScriptedBackend:
    where = "on this machine"
    context_tokens: int | None = 4096
    runs_on = "a script"

    def __init__(self, leg: str, replies: Sequence[Reply | str]) -> None:
        self.leg = leg
        self.model = f"scripted-{leg}"
        self.replies = [Reply(reply) if isinstance(reply, str) else reply for reply in replies]
        self.asked: list[list[Message]] = []
        self.temperatures: list[float] = []
        self.stopped = 0
        """How often a stream was closed before its end."""

    async def stream(
        self,
        messages: list[Message],
        *,
        max_tokens: int,
        trace: Trace,
        temperature: float = 0,
        seed: int | None = None,
    ) -> AsyncGenerator[Piece, None]:
        self.asked.append(messages)
        self.temperatures.append(temperature)
        reply = self.replies.pop(0)
        tokens: list[Token] = []
        finished = False
        try:
            for ahead in reply.waits:
                yield Waiting(ahead)
            if reply.busy_s is not None:
                yield Waiting(0, reply.busy_s)
            with trace.span("request", self.leg):
                await asyncio.sleep(0)
            with trace.span("first_token", self.leg):
                for share in reply.reads:
                    yield Reading(share, 100)
                await asyncio.sleep(0)
            if reply.aloud:
                yield Delta(reply.aloud)
                yield Thinking(retract=True)
            with trace.span("completion", self.leg):
                for number, word in enumerate(reply.text.split(" ")):
                    if number and reply.hold is not None:
                        await reply.hold.wait()
                    piece = word if number == 0 else f" {word}"
                    new: tuple[Token, ...] = ()
                    if reply.logprob is not None:
                        if number == 0 and reply.yes_over_no is not None:
                            new = (Token(piece, -0.1, (-0.1, -0.1 - reply.yes_over_no), ("Yes", "No")),)
                        else:
                            new = (Token(piece, reply.logprob, (reply.logprob, -6.0, -7.0, -8.0, -9.0)),)
                        tokens.extend(new)
                    if piece:
                        yield Delta(piece, new)
            finished = True
        finally:
            self.stopped += not finished
        if reply.error is not None:
            raise reply.error
        yield Draft(self.leg, self.model, reply.text, tuple(tokens), Usage(100, len(tokens)), reply.finish_reason)


@dataclass
class ScriptedLeg:
    name: str
    backend_: ScriptedBackend
    state: State = field(default_factory=lambda: State("ready"))
    max_tokens: int = 160
    examples: bool = False
    remote: bool = False
    leaves: bool = False
    installed: bool = True
    pid: int | None = None
    failure: ModelError | None = None
    later: Sequence[State] = ()
    """States that follow once it is started."""

    @property
    def model(self) -> str:
        return self.backend_.model

    @property
    def where(self) -> str:
        return self.backend_.where

    @property
    def runs_on(self) -> str:
        return self.backend_.runs_on

    def start(self) -> None:
        pass

    async def changes(self) -> AsyncIterator[State]:
        yield self.state
        for state in self.later:
            self.state = state
            yield state

    async def backend(self) -> ScriptedBackend:
        if self.failure is not None:
            raise self.failure
        return self.backend_


class ScriptedLegs:
    """Both legs, each with its replies in order."""

    def __init__(self, slm: Sequence[Reply | str] = (), llm: Sequence[Reply | str] = ()) -> None:
        self.slm = ScriptedLeg("slm", ScriptedBackend("slm", slm))
        self.llm = ScriptedLeg("llm", ScriptedBackend("llm", llm))
