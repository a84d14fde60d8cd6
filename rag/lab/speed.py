"""How fast one model reads and writes: single requests, timed piece by piece, and prompts of a wanted length.

Knows one backend, and how to make a prompt that no server holds in its cache: each begins with a number of its own.
Knows nothing of documents, of what the words say, or of how many requests there will be.
"""

from contextlib import aclosing
from dataclasses import dataclass, replace
from itertools import pairwise

from rag.errors import ModelError, ModelSilent
from rag.models.backend import Backend, ChatBackend, Delta, Draft, Message
from rag.models.capabilities import Capabilities
from rag.trace import Trace

WRITTEN_TOKENS = 48
"""The longest answer of a request that is timed alone."""
SHORT_TOKENS = 16
"""Of one among many."""
THINKING_TOKENS = (192, 768)
"""For a model that thought all the time and wrote nothing: what it is given next."""
LEAST_TOKENS = 8
"""From fewer no speed of writing is told."""
SPARE_TOKENS = 32
"""Left free of a window: how many tokens a text makes is known to about one in a hundred."""
SCALE_WORDS = (20, 200)
TASK = "Now tell a very long story about the people in this harbour, in many chapters, and do not end it."
WORDS = (
    "The harbour was quiet in the morning and the boats lay side by side at the stone wall while the men carried nets and"
    " boxes up the steps to the market where women from the villages were already waiting with their baskets and talked"
    " about the weather and the price of salt because the winter had been long and nobody could say how much fish would"
    " come this year but the old teacher who walked there every day with his dog said that he had seen the birds return"
    " to the island and that was a better sign than anything that stood in the paper"
).split()


@dataclass(frozen=True)
class Timed:
    """One request. Times are in milliseconds, and begin when the request has been sent."""

    waited_ms: float
    """Before it was sent: in our queue, where one model computes at a time, or because the server asked to come back."""
    first_ms: float | None
    """To the first piece that carries text, or the first sign of a thought. None: the answer came whole."""
    total_ms: float
    gaps_ms: tuple[float, ...]
    """Between one piece of text and the next. A piece is an event of the stream; most servers send one for each token."""
    input_tokens: int | None
    """As the server counted; None where it does not."""
    output_tokens: int | None
    """The same, thoughts and the token that ends the answer among them."""
    writing_ms: float | None
    """From the first piece to the last token; None where that says nothing of the speed of writing."""

    @property
    def prefill_tokens_per_s(self) -> float | None:
        """Tokens of the prompt over the time to the first token: one step of writing and the way there and back count."""
        if self.input_tokens is None or not self.first_ms:
            return None
        return self.input_tokens / self.first_ms * 1000

    @property
    def decode_tokens_per_s(self) -> float | None:
        """Tokens after the first over the time after the first."""
        if self.output_tokens is None or self.output_tokens < LEAST_TOKENS or not self.writing_ms:
            return None
        return (self.output_tokens - 1) / self.writing_ms * 1000


async def ask(backend: ChatBackend, messages: list[Message], max_tokens: int, *, streamed: bool = True) -> Timed:
    """Send one request and time what comes; `streamed` False: its answer was asked for whole. Raises ModelError."""
    trace = Trace()
    came_ms: list[float] = []
    draft: Draft | None = None
    async with aclosing(backend.stream(messages, max_tokens=max_tokens, trace=trace)) as pieces:
        async for piece in pieces:
            if isinstance(piece, Delta):
                came_ms.append(trace.now_ms())
            elif isinstance(piece, Draft):
                draft = piece
    assert draft is not None, "a stream without an error ends with its draft"
    usage = draft.usage
    written = usage.output_tokens if usage else None
    first = next(span for span in reversed(trace.spans) if span.name == "first_token")
    sent_ms = first.start_ms
    ended_ms = trace.total_ms
    # A server that does not stream sends all of its tokens in one piece, after all of its work.
    if len(came_ms) < 2 and (written is None or written >= LEAST_TOKENS):
        streamed = False
    # Of an answer that was cut off the last token is text; of another it is the one that ends it, which is told at the end.
    last_ms = came_ms[-1] if came_ms and draft.finish_reason == "length" else ended_ms
    first_ms = first.duration_ms if streamed else None
    return Timed(
        waited_ms=sum(span.duration_ms or 0 for span in trace.spans if span.name == "queue"),
        first_ms=first_ms,
        total_ms=ended_ms - sent_ms,
        gaps_ms=tuple(later - earlier for earlier, later in pairwise(came_ms)) if streamed else (),
        input_tokens=usage.input_tokens if usage else None,
        output_tokens=written,
        writing_ms=last_ms - sent_ms - first_ms if first_ms is not None else None,
    )


def prompt(number: int, words: int) -> list[Message]:
    """So many words of text and a task. `number` gives it a beginning that no prompt of another number has."""
    text = " ".join(WORDS[place % len(WORDS)] for place in range(words))
    return given(number, f"{text}\n\n{TASK}")


def given(number: int, text: str) -> list[Message]:
    """That text, behind a system message that no prompt of another number has.

    At the very front, because servers keep what several prompts begin with, and many templates begin with words of their
    own where no system message is given.
    """
    # Multiplied by a large odd number that shares no factor with the modulus, so that already the first digits differ.
    mark = number * 38_196_601 % 100_000_000
    return [{"role": "system", "content": f"{mark:08d}"}, {"role": "user", "content": text}]


@dataclass(frozen=True)
class Scale:
    """How many tokens this model's tokenizer makes of `prompt`, template and all: linear in its words."""

    fixed_tokens: float
    tokens_a_word: float
    written_tokens: int
    """The longest answer that it needs to write anything: more than usual where it thinks first."""

    def words(self, tokens: int) -> int:
        """For a prompt of so many tokens, as near as words come; 0 where the task alone has more."""
        return max(0, round((tokens - self.fixed_tokens) / self.tokens_a_word))


async def scale(backend: ChatBackend, numbers: tuple[int, int], *, streamed: bool = True) -> tuple[Scale, Timed]:
    """Count a short and a longer prompt; also the first request, which finds everything cold. Raises ModelError."""
    few, many = SCALE_WORDS
    first, written = await warm_up(backend, prompt(numbers[0], few), streamed=streamed)
    second = await ask(backend, prompt(numbers[1], many), written, streamed=streamed)
    if first.input_tokens is None or second.input_tokens is None:
        raise ModelError(
            f"{backend.model} does not count its tokens, so no prompt of a known length can be made. Give it one of your"
            " own with --prompt."
        )
    slope = (second.input_tokens - first.input_tokens) / (many - few)
    if slope <= 0:
        raise ModelError(
            f"{backend.model} counts {first.input_tokens} tokens of {few} words and {second.input_tokens} of {many}, so no"
            " prompt of a known length can be made. Give it one of your own with --prompt."
        )
    return Scale(first.input_tokens - few * slope, slope, written), first


async def warm_up(backend: ChatBackend, messages: list[Message], *, streamed: bool = True) -> tuple[Timed, int]:
    """The first request, and the longest answer that is enough: a model that thinks first needs more. Raises ModelError."""
    for max_tokens in (WRITTEN_TOKENS, *THINKING_TOKENS[:-1]):
        try:
            return await ask(backend, messages, max_tokens, streamed=streamed), max_tokens
        except ModelSilent:
            continue
    return await ask(backend, messages, THINKING_TOKENS[-1], streamed=streamed), THINKING_TOKENS[-1]


def unstreamed(backend: Backend) -> None:
    """From now on its answers are asked for whole."""
    known = backend.capabilities or Capabilities()
    backend.capabilities = replace(known, refuses=known.refuses | {"stream"})
