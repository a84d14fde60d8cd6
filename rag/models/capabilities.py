"""What a model on a server was seen to do: Capabilities, the probe that tries it, and the memory of what was tried.

Knows a dozen tiny requests and how to read what comes back. Sends fixed English sentences and nothing of a user's; knows
no turns. "Can" means "was seen to": what was not tried, or cannot be told from outside, is None, and a server of another
version is tried again.
"""

import asyncio
import json
import os
import tempfile
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

import httpx2

from rag.errors import ModelBroke, ModelRefused, ModelTimeout
from rag.models import wire
from rag.models.addresses import is_loopback
from rag.models.answer import TOP_LOGPROBS
from rag.models.asking import SPEED_TOKENS, Asking, Heard

TooLong = Literal["status", "event", "cut"]
LengthField = Literal["max_tokens", "max_completion_tokens"]

TINY_TOKENS = 5
SAMPLE_TOKENS = 12
LONG_TOKENS = 1500
LONGEST_WINDOW = 32_768
# A prompt that was read before is read in no time and says nothing about the speed.
READ_TOKENS = 16
# A busy server is asked again after this, if it does not say when.
PAUSE_S = 0.5
# A request behind another one waits at least so long, and a free server answers within it.
PATIENCE_S = 0.5
PATIENCE_TIMES = 3
MOST_KEPT = 200
FILE = "capabilities.json"

SENTENCE = (
    "The lighthouse stands on a rock before the harbour, and every evening its keeper climbs the ninety stairs, lights the"
    " lamp and writes in his book which ships have passed. What does the keeper do?"
)
STORY = "Tell a very long story about the sea, with many chapters, and do not end it."
ANIMAL = "Invent a sentence about an animal and a kitchen."
YES = "Say yes."
VOWELS = ["a", "e", "i", "o"]


@dataclass(frozen=True)
class Capabilities:
    """What one model on one server was seen to do; None: not tried, or not to be told."""

    stream: bool | None = None
    usage: bool | None = None
    """It counts the tokens of a stream."""
    logprobs: bool | None = None
    """They really come; that they are accepted means nothing."""
    top_logprobs: int | None = None
    """How many come for each token, of the `TOP_LOGPROBS` that are asked for."""
    context_tokens: int | None = None
    too_long: TooLong | None = None
    """A prompt that does not fit: answered with an error status, with an error inside the stream, or cut without a word."""
    penalties: bool | None = None
    """It takes a frequency penalty."""
    stop: bool | None = None
    seed: bool | None = None
    """The same seed, the same words."""
    prompt_cache: bool | None = None
    prompt_progress: bool | None = None
    """It tells how far it has read, as llama.cpp does."""
    cancels: bool | None = None
    """It stops computing when the connection is closed."""
    refuses: frozenset[str] = frozenset()
    """Request fields that it answers with an error."""
    length_field: LengthField = "max_tokens"
    prompt_tokens_per_s: float | None = None
    tokens_per_s: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"refuses": sorted(self.refuses)}

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> "Capabilities":
        """Raises ValueError for what `to_dict` never made."""
        known = {field.name for field in fields(cls)}
        if not set(told) <= known or not all(_fits(name, value) for name, value in told.items()):
            raise ValueError("these are no capabilities")
        return cls(**{**told, "refuses": frozenset(told.get("refuses", ()))})


def _fits(name: str, value: object) -> bool:
    match name:
        case "refuses":
            return isinstance(value, list) and all(isinstance(one, str) for one in value)
        case "length_field":
            return value in get_args(LengthField)
        case "too_long":
            return value is None or value in get_args(TooLong)
        case "top_logprobs" | "context_tokens":
            return value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 0)
        case "prompt_tokens_per_s" | "tokens_per_s":
            return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and value >= 0)
    return value is None or isinstance(value, bool)


EMBEDDED = Capabilities(
    stream=True,
    usage=True,
    logprobs=True,
    top_logprobs=TOP_LOGPROBS,
    too_long="status",
    penalties=True,
    stop=True,
    seed=True,
    prompt_cache=True,
    prompt_progress=True,
    cancels=True,
)
"""Of our own runtime; a test probes the real one. Window and speed are the settings' and the machine's."""


# Memory


class Tried:
    """What was seen before, by server, model and version; in a file that is as good as none when it is damaged."""

    def __init__(self, cache_dir: Path) -> None:
        self.path = cache_dir / FILE

    def get(self, base_url: str, model: str, version: str | None) -> Capabilities | None:
        kept = self._read().get(_name(base_url, model))
        if not isinstance(kept, dict) or kept.get("version") != version or not isinstance(kept.get("seen"), dict):
            return None
        try:
            return Capabilities.from_dict(kept["seen"])
        except ValueError:
            return None

    def put(self, base_url: str, model: str, version: str | None, seen: Capabilities) -> None:
        """What cannot be written is tried again another time."""
        kept = self._read()
        kept.pop(name := _name(base_url, model), None)
        kept[name] = {"version": version, "seen": seen.to_dict()}
        # The last ones: some servers come back on another port each time.
        text = json.dumps(dict(list(kept.items())[-MOST_KEPT:]), indent=1)
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=self.path.parent, prefix=FILE, delete=False) as fresh:
                try:
                    fresh.write(text)
                    fresh.close()
                    os.replace(fresh.name, self.path)
                except BaseException:
                    fresh.close()
                    os.unlink(fresh.name)
                    raise

    def _read(self) -> dict[str, Any]:
        try:
            kept = json.loads(self.path.read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        return kept if isinstance(kept, dict) else {}


def _name(base_url: str, model: str) -> str:
    """What stands before the host, or after the path, may be a secret."""
    return f"{model} at {httpx2.URL(base_url).copy_with(userinfo=b'', query=None, fragment=None)}"


# The probe


async def probe(
    base_url: str,
    model: str,
    *,
    api_key: str | None = None,
    timeout_s: float = 30,
    context_tokens: int | None = None,
    tell: Callable[[str], None] | None = None,
) -> Capabilities:
    """Try what that model on that server can do, in a dozen tiny requests of `timeout_s` at most each.

    `context_tokens` is the window, where it is known already. `tell` hears what is tried. May be cancelled at any moment.
    Raises ModelError when the server cannot be reached, or does not answer the simplest request.
    """
    key = wire.Secret(api_key)
    headers = {"Authorization": f"Bearer {key.reveal()}"} if key.reveal() else {}
    try:
        local = is_loopback(base_url)
        async with httpx2.AsyncClient(
            headers=headers,
            timeout=timeout_s,
            follow_redirects=False,
            trust_env=not local,
            verify=not local or not base_url.startswith("http:"),
        ) as client:
            asking = Asking(client, base_url, model, key, timeout_s)
            return await _Probe(asking, context_tokens, tell or (lambda words: None)).run()
    except (httpx2.InvalidURL, UnicodeEncodeError, httpx2.LocalProtocolError):
        raise ModelRefused("The address or the key cannot be sent as it is. Check both.") from None


class _Probe:
    """One probe, from the first request to the last."""

    def __init__(self, asking: Asking, context_tokens: int | None, tell: Callable[[str], None]) -> None:
        self._asking = asking
        self._tell = tell
        self._without: set[str] = set()
        self._length: LengthField = "max_tokens"
        self._context_tokens = context_tokens

    async def run(self) -> Capabilities:
        # 1. Everything at once, then without what is refused.
        self._tell("streaming, token counts, logprobs")
        first = await self._first()
        # A model that only thought so far wrote nothing that has logprobs.
        logprobs = first.tokens > 0 if first.text or "logprobs" in self._without else None
        seen = Capabilities(
            stream=first.streamed,
            usage=first.usage is not None if first.streamed else None,
            logprobs=logprobs,
            top_logprobs=min(first.top, TOP_LOGPROBS) if logprobs else None,
            prompt_progress=first.progress,
            context_tokens=self._context_tokens,
            refuses=frozenset(self._without),
            length_field=self._length,
        )
        if first.read_per_s is not None and first.read_afresh >= READ_TOKENS:
            seen = replace(seen, prompt_tokens_per_s=round(first.read_per_s, 1))

        # 2. One field each. What one of them does to the server is no reason to give up the others.
        steps = {
            "prompt cache": self._prompt_cache,
            "seed": self._seed,
            "stop": self._stop,
            "penalties": self._penalties,
            "a prompt that is too long": self._too_long,
        }
        if first.streamed:
            steps["speed, closing a stream"] = self._cancel
        for words, step in steps.items():
            self._tell(words)
            with suppress(ModelTimeout, ModelBroke):
                seen = replace(seen, **await step())
        return replace(seen, refuses=seen.refuses | self._without)

    # The first request

    async def _first(self) -> Heard:
        suspected: list[str] = []
        while True:
            heard = await self._ask(SENTENCE, everything=True, without=suspected)
            if heard.fault is None:
                break
            if named := self._named(heard):
                self._leave_out(named)
            elif suspect := next((one for one in _SUSPECTS if self._may_mean(heard, one, suspected)), None):
                suspected.append(suspect)
            else:
                raise self._asking.refusal(heard)
        # Of those that were left out on suspicion, the last was refused; the others are tried without it.
        self._leave_out(set(suspected[-1:]))
        for suspect in suspected[:-1]:
            others = [one for one in suspected if one != suspect]
            again = await self._ask(SENTENCE, everything=True, without=others)
            if again.fault is None:
                heard = again
            else:
                self._leave_out({suspect})
        if heard.finish is None and not heard.pieces:
            raise ModelBroke(f"{self._asking.who} sent nothing that is a chat completion. Check the address.")
        return heard

    def _named(self, heard: Heard) -> set[str]:
        """Fields that were sent and that the server names in its refusal."""
        assert heard.fault is not None
        if heard.status not in (200, 400, 403, 422, 500, 501) or heard.fault.too_long:
            return set()
        return set(heard.fault.fields & set(self._wanted(TINY_TOKENS, everything=True)))

    def _may_mean(self, heard: Heard, field: str, suspected: list[str]) -> bool:
        """Could a refusal that names nothing be meant for that field?"""
        assert heard.fault is not None
        vague = heard.status in (400, 422) and not heard.fault.about_model and not heard.fault.too_long
        return vague and field not in suspected and field in self._wanted(TINY_TOKENS, everything=True)

    def _leave_out(self, refused: set[str]) -> None:
        self._without |= refused
        other: LengthField = "max_completion_tokens" if self._length == "max_tokens" else "max_tokens"
        if self._length in refused and other not in self._without:
            self._length = other

    def _wanted(self, max_tokens: int, *, everything: bool = False) -> dict[str, Any]:
        wanted: dict[str, Any] = {
            "stream": True,
            self._length: max_tokens,
            "temperature": 0,
            "stream_options": {"include_usage": True},
        }
        if everything:
            wanted |= {"logprobs": True, "top_logprobs": TOP_LOGPROBS, "return_progress": True}
        return _leaving(wanted, self._without)

    async def _ask(
        self,
        prompt: str,
        max_tokens: int = TINY_TOKENS,
        *,
        everything: bool = False,
        without: Sequence[str] = (),
        until: Callable[[Heard], bool] | None = None,
        **more: Any,
    ) -> Heard:
        """One request, made again where the server is busy or still loads."""
        wanted = _leaving(self._wanted(max_tokens, everything=everything), without)
        wanted |= {name: value for name, value in more.items() if name not in self._without}
        left_s = self._asking.timeout_s
        while True:
            heard = await self._asking.ask(prompt, wanted, until=until)
            pause_s = heard.retry_after_s or PAUSE_S
            left_s -= pause_s
            if heard.status not in (429, 503) or left_s < 0:
                return heard
            await asyncio.sleep(pause_s)

    # One field each

    async def _prompt_cache(self) -> dict[str, Any]:
        heard = await self._ask(SENTENCE)
        if not heard.cached:
            # Some keep only long prompts; llama.cpp, which tells its timings, keeps each.
            return {"prompt_cache": False if heard.cached == 0 and heard.read_per_s is not None else None}
        return {"prompt_cache": True}

    async def _seed(self) -> dict[str, Any]:
        def sample(seed: int) -> Coroutine[Any, Any, Heard]:
            return self._ask(ANIMAL, SAMPLE_TOKENS, temperature=1, seed=seed)

        first = await sample(7)
        if first.fault is not None:
            return self._refused(first, "seed")
        other, again = await sample(8), await sample(7)
        if first.text != again.text:
            # A prompt that was read a moment ago may lead to a hair's breadth of difference.
            first = await sample(7)
        if not first.text or (first.text == again.text == other.text):
            return {}  # it is so sure of its words that a seed changes nothing
        return {"seed": first.text == again.text}

    async def _stop(self) -> dict[str, Any]:
        heard = await self._ask(SENTENCE, SAMPLE_TOKENS, stop=VOWELS)
        if heard.fault is not None:
            return self._refused(heard, "stop")
        if any(vowel in heard.text for vowel in VOWELS):
            return {"stop": False}
        return {"stop": True} if heard.finish == "stop" else {}

    async def _penalties(self) -> dict[str, Any]:
        heard = await self._ask(SENTENCE, frequency_penalty=0.5)
        if heard.fault is not None:
            found = self._refused(heard, "frequency_penalty")
            return {"penalties": False} if found else {}
        return {"penalties": True}

    def _refused(self, heard: Heard, field: str) -> dict[str, Any]:
        """Was it that field which the server answered with an error?"""
        assert heard.fault is not None
        named = heard.fault.fields
        if field not in named and (named or heard.status not in (400, 403, 422, 501)):
            return {}
        self._without.add(field)
        return {field: False}

    async def _too_long(self) -> dict[str, Any]:
        window = self._context_tokens
        if window is None or window > LONGEST_WINDOW:
            return {}
        words = window + window // 10 + 64
        heard = await self._ask("word " * words, 1, until=lambda heard: heard.pieces > TINY_TOKENS)
        if heard.fault is None:
            whole = heard.usage is not None and heard.usage[0] >= words
            return {"too_long": "cut"} if heard.pieces and not whole else {}
        if heard.status in (429, 503) or (heard.status >= 500 and not heard.fault.too_long):
            return {}
        found: dict[str, Any] = {"too_long": "event" if heard.inside else "status"}
        if heard.fault.window_tokens:
            found["context_tokens"] = heard.fault.window_tokens
        return found

    async def _cancel(self) -> dict[str, Any]:
        """Close a long stream, and see when the server has time again."""
        clock = asyncio.get_running_loop().time
        began = clock()
        if (await self._ask(YES, 1)).fault is not None:
            return {}
        patience_s = max(PATIENCE_S, PATIENCE_TIMES * (clock() - began))
        most = min(LONG_TOKENS, self._context_tokens // 2) if self._context_tokens else LONG_TOKENS
        long: list[Heard] = []
        enough = asyncio.Event()

        def watch(heard: Heard) -> bool:
            if not long:
                long.append(heard)
            if heard.pieces > SPEED_TOKENS:
                enough.set()
            return False

        story = asyncio.create_task(self._ask(STORY, most, until=watch), name="a long story")
        begun = asyncio.create_task(enough.wait(), name="enough of it")
        tasks: list[asyncio.Task[Any]] = [story, begun]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if story.done():
                return _speed(story.result().per_s)
            per_s = long[0].per_s
            found = _speed(per_s)
            tasks.append(tiny := asyncio.create_task(self._ask(YES, 1), name="a tiny request"))
            done, _ = await asyncio.wait([story, tiny], timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
            left_s = (most - long[0].pieces) / per_s if per_s else 0.0
            if done or left_s < 2 * patience_s:
                # Answered beside the story, or the story is over: its end would tell nothing.
                return found
            story.cancel()
            await asyncio.wait([story])
            done, _ = await asyncio.wait([tiny], timeout=min(left_s / 2, self._asking.timeout_s))
            return found | {"cancels": tiny in done and tiny.exception() is None}
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


# Those that a server may mean when it refuses a request without saying why, the likeliest first.
_SUSPECTS = ("return_progress", "logprobs", "stream_options", "temperature")


def _leaving(wanted: Mapping[str, Any], out: Iterable[str]) -> dict[str, Any]:
    """Without those fields, and without what makes no sense then."""
    left = set(out)
    left |= {"top_logprobs"} if "logprobs" in left else set()
    left |= {"stream_options", "return_progress"} if "stream" in left else set()
    return {name: value for name, value in wanted.items() if name not in left}


def _speed(per_s: float | None) -> dict[str, Any]:
    return {"tokens_per_s": round(per_s, 1)} if per_s else {}


# For a person


def rows(seen: Capabilities) -> list[tuple[str, str, str]]:
    """A table: what it is, yes or no or not told, and what it means."""
    tops = f"yes, the best {seen.top_logprobs}" if seen.top_logprobs else "yes"
    too_long = {"status": "refused", "event": "refused inside the stream", "cut": "cut without a word"}
    return [
        ("streams", _told(seen.stream), "words are shown as they are written"),
        ("counts tokens", _told(seen.usage), "what an answer cost is known"),
        ("logprobs", tops if seen.logprobs else _told(seen.logprobs), "how sure it is of each word helps to judge it"),
        ("window", _number(seen.context_tokens, "tokens"), "prompt and answer together"),
        ("too long a prompt", too_long.get(seen.too_long or "", "not told"), "what becomes of what does not fit"),
        ("takes stop words", _told(seen.stop), "an answer can be ended at a word"),
        ("obeys a seed", _told(seen.seed), "the same question, the same words"),
        ("takes penalties", _told(seen.penalties), "never sent"),
        ("keeps prompts", _told(seen.prompt_cache), "what was read before is not read again"),
        ("tells progress", _told(seen.prompt_progress), "how far a long prompt is read is shown"),
        ("stops when nobody listens", _told(seen.cancels), "a stopped answer costs nothing more"),
        ("refuses", ", ".join(sorted(seen.refuses)) or "nothing", "is left out of every request"),
        ("reads", _number(seen.prompt_tokens_per_s, "tokens/s"), "decides how long the first word takes"),
        ("writes", _number(seen.tokens_per_s, "tokens/s"), "decides how long the rest takes"),
    ]


def show(model: str, seen: Capabilities) -> None:
    from rich.table import Table
    from rich.text import Text

    from rag import terminal  # which knows the legs, and they know this

    table = Table("it", "", "what it means", title=Text(model), title_justify="left")
    for row in rows(seen):
        table.add_row(*row)
    terminal.out.print(table)


def _told(seen: bool | None) -> str:
    return "not told" if seen is None else "yes" if seen else "no"


def _number(value: float | None, unit: str) -> str:
    return "not told" if value is None else f"{value:,.0f} {unit}"
