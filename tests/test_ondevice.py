"""What the on-device page asks of this server: its files and headers, weights, the prompt, the verdict. No browser here."""

import asyncio
import hashlib
import json
import math
import re
import shutil
import tarfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from rag.models import weights
from rag.models.weights import CATALOGUE
from rag.serve.ondevice import page, shelf, turns
from rag.serve.server import application
from rag.serve.service import Service
from rag.settings import Settings
from rag.turn import cascade
from rag.turn.session import Session
from rag.words import LANGUAGES, say, told
from scripts import vendor_wllama

from .conftest import CORPUS, until
from .scripted import SURE, Reply, ScriptedLegs
from .test_words import keys_in

QUESTION = "What is the example price of output tokens?"
ANSWER = "The example price of output tokens is 1.60 dollars per million tokens."
REFERENCE = "The bakery at Varga opens at 6:30. On Sundays it opens at 8:00 and closes at noon."
SUNDAYS = "When does the bakery open on Sundays?"
SMALL = CATALOGUE[shelf.DEFAULT]
FILES = page.HERE / "page"


@dataclass
class Here:
    service: Service
    client: httpx2.AsyncClient

    async def post(self, path: str, **body: Any) -> dict[str, Any]:
        answer = await self.client.post(f"/ondevice/{path}", json=body)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """With the shipped documents, and models that a test scripts."""
    folder = tmp_path_factory.mktemp("ondevice")
    service = opened(Settings(_env_file=None, cache_dir=folder / "cache", data_dir=folder / "data"))  # type: ignore[call-arg]
    service.library.update()
    yield service
    service.library.close()


def opened(settings: Settings) -> Service:
    service = Service(settings.model_copy(update={"docs": CORPUS}))
    service.legs = ScriptedLegs()  # type: ignore[assignment]
    return service


@asynccontextmanager
async def served(service: Service) -> AsyncIterator[Here]:
    transport = httpx2.ASGITransport(application(service, "127.0.0.1"))
    async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        yield Here(service, client)


@pytest.fixture
async def here(service: Service) -> AsyncIterator[Here]:
    async with served(service) as here:
        yield here


def written(text: str, logprob: float = SURE) -> list[dict[str, Any]]:
    """The words as a browser's model reports them, as sure as a scripted one is."""
    pieces = re.findall(r"^\S+| \S+", text)
    rivals = [{"token": "x", "logprob": value} for value in (logprob, -6.0, -7.0, -8.0, -9.0)]
    return [{"token": piece, "logprob": logprob, "top_logprobs": rivals} for piece in pieces]


# The page and its files


async def test_the_page_is_isolated_and_may_reach_nobody_else(here: Here) -> None:
    answer = await here.client.get("/ondevice")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["cross-origin-opener-policy"] == "same-origin"
    assert answer.headers["cross-origin-embedder-policy"] == "require-corp"
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == "'self' 'wasm-unsafe-eval'"
    assert policy["connect-src"] == "'self' blob:"
    assert not re.search(r"'unsafe-|https?:|\*", answer.headers["content-security-policy"])


async def test_all_that_the_page_names_is_there(here: Here) -> None:
    texts = {path.name: path.read_text(encoding="utf-8") for path in FILES.iterdir()}
    named = set(re.findall(r'(?:src|href)="ondevice/([^"]+)"', texts["index.html"]))
    for name, text in texts.items():
        if name.endswith(".js"):
            named |= set(re.findall(r'from "\./([^"]+)"', text))
            assert "import(" not in text, "what is fetched later is missing when the server has gone"
    assert {name for name in texts if name != "index.html"} | {f"vendor/{page.WLLAMA}/index.min.js"} == named
    for name in named:
        answer = await here.client.get(f"/ondevice/{name}")
        assert answer.status_code == 200, name
        wanted = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml"}
        assert answer.headers["content-type"] == wanted[Path(name).suffix]
        assert answer.headers["cross-origin-embedder-policy"] == "require-corp", "a worker's file must say so too"


def test_no_file_of_the_page_names_another_site() -> None:
    for path in FILES.iterdir():
        found = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"']*", path.read_text(encoding="utf-8")))
        assert found <= {"http://www.w3.org/2000/svg"}, path.name


# Its words


BLOCK = re.compile(r'<script id="texts" type="application/json">(.*?)</script>', re.DOTALL)


def test_the_page_is_given_the_texts_that_it_names_and_no_other() -> None:
    sources = [path.read_text(encoding="utf-8") for path in FILES.iterdir() if path.suffix in (".js", ".html")]
    named = {key for source in sources for key in keys_in(source)}
    assert page.texts("en").keys() - {"ondevice.noscript"} == named


@pytest.mark.parametrize("language", LANGUAGES)
async def test_the_page_comes_with_all_its_texts_in_the_language_of_the_browser(here: Here, language: str) -> None:
    answer = await here.client.get("/ondevice", headers={"Accept-Language": f"de;q=0.9, {language}"})
    assert f'<html lang="{language}">' in answer.text
    title = told(say("ondevice.title"), language)
    assert f"<title>{title} · Small First</title>" in answer.text
    assert told(say("ondevice.noscript"), language) in answer.text
    (block,) = BLOCK.findall(answer.text)
    texts = json.loads(block)
    assert texts == page.texts(language)
    assert texts["ondevice.title"] == title
    assert answer.headers["content-language"] == language
    assert answer.headers["vary"] == "Accept-Language"


async def test_a_page_is_sent_again_only_in_another_language(here: Here) -> None:
    def asking(language: str, tag: str = "") -> dict[str, str]:
        return {"Accept-Language": language, "If-None-Match": tag}

    first = await here.client.get("/ondevice", headers=asking("uk"))
    assert first.headers["cache-control"] == "no-cache"
    again = await here.client.get("/ondevice", headers=asking("uk", f'"other", W/{first.headers["etag"]}'))
    assert (again.status_code, again.content) == (304, b"")
    for name in ("etag", "vary", "content-language", "content-security-policy", "cross-origin-embedder-policy"):
        assert again.headers[name] == first.headers[name]
    other = await here.client.get("/ondevice", headers=asking("sv", first.headers["etag"]))
    assert other.status_code == 200


async def test_no_text_ends_the_block_that_it_stands_in(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "</script><!-- <script> & \u2028"
    monkeypatch.setattr(page, "catalogue", lambda language: {"ondevice.title": text})
    page._written.cache_clear()
    try:
        answer = await here.client.get("/ondevice")
        assert json.loads(BLOCK.findall(answer.text)[0]) == {"ondevice.title": text}
    finally:
        page._written.cache_clear()


async def test_wllama_is_the_one_that_was_looked_at(here: Here) -> None:
    for name, (_, digest) in vendor_wllama.FILES.items():
        answer = await here.client.get(f"/ondevice/vendor/{vendor_wllama.VERSION}/{name}")
        assert hashlib.sha256(answer.content).hexdigest() == digest
        assert "immutable" in answer.headers["cache-control"]
        again = await here.client.get(answer.request.url, headers={"If-None-Match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
    assert answer.headers["content-type"] == "application/wasm"
    for licence in ("LICENCE", "LICENSE.llama.cpp"):
        answer = await here.client.get(f"/ondevice/vendor/{vendor_wllama.VERSION}/{licence}")
        assert "MIT License" in answer.text
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"


@pytest.mark.parametrize(
    "path",
    [
        "/ondevice/page.py", "/ondevice/index.html", "/ondevice/../page.py", "/ondevice/%2e%2e/page.py", "/ondevice/..%2fpage.py",
        "/ondevice//etc/passwd", "/ondevice/vendor/3.8.1/..%2f..%2fpage.py", "/ondevice/vendor/3.8.0/wllama.wasm",
        f"/ondevice/models/{'0' * 16}-{SMALL.name}.gguf", f"/ondevice/models/{SMALL.filename}",
        "/ondevice/models/..%2f..%2fetc%2fpasswd",
    ],
)  # fmt: skip
async def test_nothing_else_is_served(here: Here, path: str) -> None:
    answer = await here.client.get(path)
    assert answer.status_code == 404
    assert "root:" not in answer.text
    assert '"""' not in answer.text


# The weights


@pytest.fixture
async def stocked(settings: Settings, small_weights: Path) -> AsyncIterator[Here]:
    """A server with the real SmolLM2 in its cache folder."""
    settings.cache_dir.mkdir(parents=True)
    for path in (small_weights, small_weights.with_name(f"{small_weights.name}.verified")):
        (settings.cache_dir / path.name).symlink_to(path)
    async with served(opened(settings)) as here:
        yield here


async def test_weights_come_whole_or_in_parts_and_never_change(stocked: Here) -> None:
    here = stocked
    address = f"/ondevice/models/{shelf.file_of(SMALL)}"
    head = await here.client.head(address)
    assert head.headers["content-length"] == str(SMALL.size_bytes)
    assert head.headers["accept-ranges"] == "bytes"
    assert head.headers["etag"] == f'"{SMALL.sha256}"'
    assert "immutable" in head.headers["cache-control"]
    part = await here.client.get(address, headers={"Range": "bytes=0-3"})
    assert (part.status_code, part.content) == (206, b"GGUF")
    assert part.headers["content-range"] == f"bytes 0-3/{SMALL.size_bytes}"
    beyond = await here.client.get(address, headers={"Range": f"bytes={SMALL.size_bytes}-"})
    assert beyond.status_code == 416
    again = await here.client.get(address, headers={"If-None-Match": head.headers["etag"]})
    assert again.status_code == 304


async def test_the_default_is_always_offered_and_others_only_from_the_disk(stocked: Here) -> None:
    found = (await stocked.client.get("/ondevice/models")).json()
    (model,) = found["models"]
    assert found["default"] == model["name"] == SMALL.name
    assert (model["state"], model["bytes"], model["license"]) == ("here", SMALL.size_bytes, "Apache-2.0")
    assert model["file"].startswith(SMALL.sha256[:16])
    assert model["file"].endswith(".gguf")


async def test_weights_that_are_not_here_are_fetched_when_a_page_asks(small_weights: Path, settings: Settings) -> None:
    async with served(opened(settings.model_copy(update={"weights_dir": small_weights.parent}))) as here:
        (model,) = (await here.client.get("/ondevice/models")).json()["models"]
        assert model["state"] == "absent"
        assert (await here.client.get(f"/ondevice/models/{model['file']}")).status_code == 404
        answer = await here.client.post("/ondevice/models")
        assert answer.status_code == 202
        assert answer.json()["models"][0]["state"] in ("fetching", "verifying")
        await until(lambda: weights.installed(SMALL, settings.cache_dir) is not None)
        (model,) = (await here.client.get("/ondevice/models")).json()["models"]
        assert model["state"] == "here"


async def test_a_fetch_that_fails_says_why(settings: Settings) -> None:
    gone = {"weights_source": "hub", "hub_url": "http://127.0.0.1:9"}
    async with served(opened(settings.model_copy(update=gone))) as here, asyncio.timeout(20):
        (model,) = (await here.client.post("/ondevice/models")).json()["models"]
        while model["state"] == "fetching":
            await asyncio.sleep(0.01)
            (model,) = (await here.client.get("/ondevice/models")).json()["models"]
        assert model["state"] == "failed"
        assert "RAG_WEIGHTS_DIR" in model["detail"]


# The prompt


async def sent_to_small_leg(here: Here, question: str, reference: str = "", answer: str = "Nothing.") -> Any:
    """The messages that the small leg of this server is sent, and its turn."""
    legs = ScriptedLegs([Reply(answer)])
    legs.slm.examples = True
    session = Session(here.service.library, "slm")
    if reference:
        session.attachments.add(reference.encode(), turns.REFERENCE)
    async for event in cascade.answer(question, session=session, legs=legs, settings=here.service.settings):
        if isinstance(event, cascade.Answered):
            return legs.slm.backend_.asked[0], event.turn
    raise AssertionError("no answer")


@pytest.mark.parametrize(("question", "reference"), [(QUESTION, ""), (SUNDAYS, REFERENCE)])
async def test_a_browser_is_sent_what_the_small_leg_is_sent(here: Here, question: str, reference: str) -> None:
    messages, turn = await sent_to_small_leg(here, question, reference)
    found = await here.post("prompt", question=question, reference=reference, window=4096)
    assert found["messages"] == messages
    assert [hit["text"] for hit in found["hits"]] == [hit.passage.text for hit in turn.hits]
    assert [hit["text"] for hit in found["read"]] == [hit.passage.text for hit in turn.prompts["slm"].evidence]
    assert not found["silent"]


async def test_the_opening_makes_the_same_prompt_without_the_server(here: Here) -> None:
    opening = (await here.client.get("/ondevice/opening")).json()
    found = await here.post("prompt", question=SUNDAYS, reference=REFERENCE, retrieve=False)
    for window, template in ((2048, opening["templates"][SMALL.name]), (1024, opening["plain"])):
        found = await here.post("prompt", question=SUNDAYS, reference=REFERENCE, retrieve=False, window=window)
        filled = json.dumps(template, ensure_ascii=False)
        filled = filled.replace(opening["evidence_mark"], REFERENCE).replace(opening["question_mark"], SUNDAYS)
        assert found["messages"] == json.loads(filled)
        assert (window < opening["examples_from_tokens"]) == (template is opening["plain"])


async def test_only_the_reference_text_is_searched_if_so_wished(here: Here) -> None:
    both = await here.post("prompt", question=QUESTION, reference=REFERENCE)
    assert both["hits"][0]["source"] == "token-costs.pdf"
    assert both["hits"][0]["address"] == "v1/documents/token-costs.pdf#page=1"
    alone = await here.post("prompt", question="Does the bakery sell tokens?", reference=REFERENCE, retrieve=False)
    assert {hit["source"] for hit in alone["hits"]} == {turns.REFERENCE}
    assert alone["hits"][0]["address"] is None
    whole = await here.post("prompt", question="What are my documents about?", reference=REFERENCE, retrieve=False)
    assert {hit["source"] for hit in whole["hits"]} == {turns.REFERENCE}, "an overview is of that text alone, too"


async def test_a_follow_up_is_searched_with_the_words_of_the_turn_before(here: Here) -> None:
    history = [{"question": "When does the bakery at Varga open?", "answer": "At 6:30."}]
    found = await here.post("prompt", question="And on Sundays?", reference=REFERENCE, retrieve=False, history=history)
    assert "bakery" in found["query"]
    assert found["messages"][-3]["content"] == history[0]["question"]


async def test_where_the_documents_are_silent_no_model_is_to_be_asked(here: Here) -> None:
    found = await here.post("prompt", question="Which zebra won the Uruguayan regatta?")
    assert found["silent"]
    assert found["messages"] == []
    assert found["answer"]
    here.client.headers["Accept-Language"] = "uk"
    ours = await here.post("prompt", question="Which zebra won the Uruguayan regatta?")
    assert ours["answer"] == told(say("turn.not_found_no_word"), "uk")


# The verdict


async def test_the_verdict_is_the_turns_own(here: Here) -> None:
    _, turn = await sent_to_small_leg(here, QUESTION, answer=ANSWER)
    found = await here.post("verdict", question=QUESTION, answer=ANSWER, tokens=written(ANSWER), window=4096)
    assert found["verdict"] == turn.verdict.to_dict()
    assert found["with_logprobs"]
    assert found["answer"] == turn.answer
    assert [one["source"] for one in found["citations"]] == ["token-costs.pdf"]


async def test_the_verdict_is_told_in_the_language_of_the_browser(here: Here) -> None:
    question = "What is the example price of input tokens?"
    _, turn = await sent_to_small_leg(here, question, answer="It is 999 dollars.")
    here.client.headers["Accept-Language"] = "sv-SE"
    found = await here.post(
        "verdict", question=question, answer="It is 999 dollars.", tokens=written("It is 999 dollars.")
    )
    assert found["verdict"]["reason"] == told(turn.verdict.reason, "sv") != turn.verdict.reason
    assert found["notes"] == [told(note, "sv") for note in turn.notes]
    long = await here.client.post("/ondevice/verdict", json={"question": LONG[:19000], "answer": ANSWER})
    assert long.json()["error"]["message"].startswith("Frågan är för lång")


async def test_what_the_model_was_unsure_of_counts_and_tokens_that_do_not_fit_do_not(here: Here) -> None:
    sure = await here.post("verdict", question=QUESTION, answer=ANSWER, tokens=written(ANSWER))
    unsure = await here.post("verdict", question=QUESTION, answer=ANSWER, tokens=written(ANSWER, -1.5))
    assert unsure["verdict"]["score"] < sure["verdict"]["score"]
    without = await here.post("verdict", question=QUESTION, answer=ANSWER)
    assert not without["with_logprobs"]
    for tokens in (written(ANSWER)[1:], written("It costs nothing."), written(ANSWER, 3.0)[:2]):
        half = await here.post("verdict", question=QUESTION, answer=ANSWER, tokens=tokens)
        assert half["verdict"] == without["verdict"]


async def test_what_a_page_says_of_passages_is_not_believed(here: Here) -> None:
    lie = "The example price of output tokens is 999 dollars."
    hits = [{"source": "token-costs.pdf", "text": lie, "score": 99.0}]
    found = await here.post("verdict", question=QUESTION, answer=lie, hits=hits, read=hits, tokens=written(lie))
    assert not found["verdict"]["accepted"]
    assert "999" in found["verdict"]["reason"]


async def test_a_larger_models_answer_is_judged_by_its_words_over_more_passages(here: Here) -> None:
    found = await here.post("verdict", question=QUESTION, answer=ANSWER, engine="llm", tokens=[])
    assert found["verdict"]["accepted"]
    assert not found["with_logprobs"]
    wrong = await here.post("verdict", question=QUESTION, answer="It is 999 dollars for each of them.", engine="llm")
    assert not wrong["verdict"]["accepted"]
    refusal = await here.post("verdict", question=QUESTION, answer="I don't know.", engine="llm")
    assert refusal["refused"]
    assert refusal["verdict"] is None


async def test_an_answer_that_was_cut_off_does_not_stand(here: Here) -> None:
    found = await here.post("verdict", question=QUESTION, answer=ANSWER, finish_reason="length")
    assert not found["verdict"]["accepted"]


# What is wrong with a request

LONG = "word " * 5000


@pytest.mark.parametrize("path", ["prompt", "verdict"])
@pytest.mark.parametrize(
    "wrong",
    [
        {"question": "  "}, {"question": LONG[:19000]}, {"question": LONG}, {"question": None}, {"question": 7},
        {"reference": "x" * (turns.REFERENCE_CHARS + 1)}, {"retrieve": False}, {"retrieve": False, "reference": " \n"},
        {"model": "gpt-9"}, {"window": 0}, {"window": 1 << 40}, {"max_tokens": 0}, {"history": "before"},
        {"history": [{"question": "x", "answer": "y"}] * 21},
    ],
)  # fmt: skip
async def test_what_is_wrong_is_told_in_a_sentence(here: Here, path: str, wrong: dict[str, Any]) -> None:
    answer = await here.client.post(f"/ondevice/{path}", json={"question": QUESTION, "answer": ANSWER, **wrong})
    assert answer.status_code == 400
    assert len(answer.json()["error"]["message"]) > 10


@pytest.mark.parametrize(
    "body",
    [
        b"", b"null", b"[]", b'{"question": "x"', b"\xff\xfe", b'{"question": "What?", "tokens": [{"token": 1}]}',
        b'{"question": "What?", "answer": "x", "engine": "oracle"}', b'{"question": "What?", "answer": "x", "tokens": [[]]}',
    ],
)  # fmt: skip
async def test_a_body_that_is_none_is_refused(here: Here, body: bytes) -> None:
    answer = await here.client.post("/ondevice/verdict", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e308, 5.0])
async def test_a_logprob_that_is_none_crashes_nothing(here: Here, value: float) -> None:
    tokens = written(ANSWER)
    tokens[3]["logprob"] = tokens[4]["top_logprobs"][0]["logprob"] = value
    body = json.dumps({"question": QUESTION, "answer": ANSWER, "tokens": tokens})
    answer = await here.client.post("/ondevice/verdict", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (200, 400)
    assert "NaN" not in answer.text


@pytest.mark.parametrize("answer", ["", " ", "[1] [99]", "\ud83d", "<think>no", "🥐" * 500, "I don't know."])
async def test_any_answer_can_be_judged(here: Here, answer: str) -> None:
    body = json.dumps({"question": QUESTION, "answer": answer})
    found = await here.client.post("/ondevice/verdict", content=body, headers={"Content-Type": "application/json"})
    assert found.status_code in (200, 400), found.text


async def test_the_page_is_for_everybody_and_its_questions_need_the_key(settings: Settings) -> None:
    keyed = Settings(**{**settings.model_dump(), "api_keys": "open-sesame"})
    async with served(opened(keyed)) as here:
        for path in ("/ondevice", "/ondevice/models", "/ondevice/opening"):
            assert (await here.client.get(path)).status_code == 200
        for path in ("prompt", "verdict"):
            body = {"question": QUESTION, "answer": ANSWER}
            refused = await here.client.post(f"/ondevice/{path}", json=body)
            assert refused.status_code == 401
            key = {"Authorization": "Bearer open-sesame"}
            assert (await here.client.post(f"/ondevice/{path}", json=body, headers=key)).status_code == 200


def test_wllama_of_another_version_is_not_taken(tmp_path: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in vendor_wllama.FOLDER.iterdir()}
    folder = tmp_path / "package"
    for path, _ in vendor_wllama.FILES.values():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"something else")
    shutil.copy(vendor_wllama.FOLDER / "LICENCE", folder / "LICENCE")
    with tarfile.open(tmp_path / "other.tgz", "w:gz") as archive:
        archive.add(folder, "package")
    with pytest.raises(SystemExit, match="SHA-256"):
        vendor_wllama.vendor(tmp_path / "other.tgz")
    assert {path.name: path.stat().st_mtime_ns for path in vendor_wllama.FOLDER.iterdir()} == before
