"""Who may call the API, and how often: keys, sign-in, this machine; over real sockets, as programs come."""

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import openai
import pytest
from pydantic import SecretStr
from starlette.requests import HTTPConnection

from rag.errors import UserError
from rag.serve import callers
from rag.serve.server import application
from rag.settings import Settings

from .conftest import open_library
from .product import chat, free_port, signed_in
from .scripted import ScriptedLegs
from .serving import ScriptedService, listening

KEY, OTHER = "one-key-of-two", "another-key"
GOOD = "Zebras drink at the Mara river."
PAGE = "https://pages.our"


@asynccontextmanager
async def served(
    tmp_path: Path, *, answers: int = 1, listen: str = "127.0.0.1", document: str = "animals.md", **chosen: object
) -> AsyncIterator[str]:
    """`smallfirst serve` with scripted models."""
    path = tmp_path / "docs" / document
    path.parent.mkdir(parents=True)
    path.write_text("Zebras drink at the Mara river every morning.")
    settings = Settings(_env_file=None, data_dir=tmp_path / "data", cache_dir=tmp_path / "cache", **chosen)  # type: ignore[arg-type]
    library, legs = open_library(tmp_path / "docs", tmp_path / "cache"), ScriptedLegs([GOOD] * answers)
    async with listening(application(ScriptedService(settings, library, legs), listen)) as url:  # type: ignore[arg-type]
        yield url
    library.close()


def client(url: str, key: str = "none") -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)


def http(url: str, **headers: str) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(base_url=url, headers=headers, trust_env=False)


async def ask(one: openai.AsyncOpenAI) -> str | None:
    message = {"role": "user", "content": "Where do zebras drink?"}
    answer = await one.chat.completions.create(model="smallfirst-slm", messages=[message])  # type: ignore[list-item]
    return answer.choices[0].message.content


async def test_this_machine_needs_no_key(tmp_path: Path) -> None:
    async with served(tmp_path) as url, client(url) as one:
        assert await ask(one) == f"{GOOD} [1]"


async def test_where_there_are_keys_one_of_them_is_needed(tmp_path: Path) -> None:
    async with served(tmp_path, answers=2, api_keys=(KEY, OTHER)) as url:
        for key in (KEY, OTHER):
            async with client(url, key) as one:
                assert await ask(one) == f"{GOOD} [1]"
        for wrong in (KEY.upper(), KEY[:-1], f"{KEY}x", "none", "ключ"):
            async with http(url) as raw:
                headers = {b"Authorization": f"Bearer {wrong}".encode()}
                assert (await raw.get("/v1/models", headers=headers)).status_code == 401, wrong
        async with client(url, "wrong") as one:
            with pytest.raises(openai.AuthenticationError, match="not one of RAG_API_KEYS") as caught:
                await ask(one)
        assert caught.value.code == "invalid_api_key"
        async with http(url) as raw:
            refused = await raw.post("/v1/chat/completions", json={})
            assert refused.status_code == 401
            assert refused.headers["www-authenticate"] == "Bearer"
            assert "No API key was sent" in refused.json()["error"]["message"]
            for path in ("/metrics", "/v1/models", "/v1/files", "/v1/openapi.json", "/v1/no/such"):
                assert (await raw.get(path)).status_code == 401, path
            schema = (await raw.get("/v1/openapi.json", headers={"Authorization": f"Bearer {KEY}"})).json()
            assert schema["components"]["securitySchemes"] == {"key": {"type": "http", "scheme": "bearer"}}
            assert schema["paths"]["/v1/files"]["post"]["security"] == [{"key": []}]
            assert "security" not in schema["paths"]["/readyz"]["get"]
            for path in ("/healthz", "/ondevice"):
                assert (await raw.get(path, follow_redirects=True)).status_code == 200, path
            for scheme in ("Basic", "bearerx", "Token"):
                assert (await raw.get("/v1/models", headers={"Authorization": f"{scheme} {KEY}"})).status_code == 401
            assert (await raw.get("/v1/models", headers={"Authorization": f"bearer {KEY}"})).status_code == 200


async def cited(one: openai.AsyncOpenAI) -> str:
    """The address of the first citation of an answer."""
    message = {"role": "user", "content": "Where do zebras drink?"}
    answer = await one.chat.completions.create(model="smallfirst-slm", messages=[message])  # type: ignore[list-item]
    return answer.choices[0].message.annotations[0].url_citation.url  # type: ignore[index]


async def test_a_citation_of_who_has_a_key_opens_in_a_browser_that_has_none(tmp_path: Path) -> None:
    async with served(tmp_path, answers=2, api_keys=(KEY, OTHER)) as url, http(url) as raw:
        async with client(url, KEY) as one, client(url, OTHER) as another:
            link, links_of_another = await cited(one), await cited(another)
        assert link != links_of_another
        for signed in (link, links_of_another, f"{link}#page=1"):
            read = await raw.get(signed)
            assert (read.status_code, read.text) == (200, "Zebras drink at the Mara river every morning.")
            assert read.headers["referrer-policy"] == "no-referrer"  # nobody is told where it was read
        assert KEY not in link
        place, _, signature = link.partition("?signature=")
        for wrong in (place, f"{place}?signature=", link[:-1], f"{place}?signature={'0' * 32}", f"{place}?signature=ż"):
            assert (await raw.get(wrong)).status_code == 401, wrong
        for elsewhere in ("/v1/models", "/v1/files", "/metrics", "/v1/documents/other.md", "/v1/documents/animals.md/"):
            assert (await raw.get(f"{elsewhere}?signature={signature}")).status_code == 401, elsewhere
        refused = await raw.get(f"{link}0")
        assert "no longer one of RAG_API_KEYS" in refused.json()["error"]["message"]
        head = await raw.head(link)
        assert (head.status_code, head.text, head.headers["content-length"]) == (200, "", str(len(read.content)))
        for method in ("POST", "DELETE", "PUT"):
            assert (await raw.request(method, link)).status_code == 401, method
        # A wrong key is not mended by a link, and many wrong links keep out nobody.
        assert (await raw.get(link, headers={"Authorization": "Bearer wrong"})).status_code == 401
        for number in range(30):
            assert (await raw.get(f"{place}?signature={number}")).status_code == 401
        assert (await raw.get(link)).status_code == 200


async def test_a_link_does_not_tell_whether_a_key_was_guessed(tmp_path: Path) -> None:
    """It is signed with what only this server knows, too."""
    links = []
    for folder in ("one", "another", "one"):
        shutil.rmtree(tmp_path / folder / "docs", ignore_errors=True)
        async with served(tmp_path / folder, api_keys=(KEY,)) as url, client(url, KEY) as one:
            links.append((await cited(one)).removeprefix(url))
    assert links[0] == links[2], "a restart keeps it"
    assert links[0] != links[1]


async def test_whoever_opens_a_link_takes_nothing_of_its_owners_allowance(tmp_path: Path) -> None:
    async with served(tmp_path, api_keys=(KEY,), api_rate=3) as url, client(url, KEY) as one, http(url) as raw:
        link = await cited(one)
        assert [(await raw.get(link)).status_code for _ in range(4)] == [200] * 3 + [429]
        await one.models.list()


async def test_a_link_to_an_uploaded_file_is_its_owners_and_ends_with_the_key(tmp_path: Path) -> None:
    async with served(tmp_path, api_keys=(KEY, OTHER)) as url:
        async with client(url, KEY) as one:
            kept = await one.files.create(file=("zebras.txt", b"Zebras drink at the Nile."), purpose="user_data")
            parts = [
                {"type": "file", "file": {"file_id": kept.id}},
                {"type": "text", "text": "Where do zebras drink? At the Nile?"},
            ]
            answer = await one.chat.completions.create(
                model="smallfirst-slm", messages=[{"role": "user", "content": parts}]  # type: ignore[list-item]
            )  # fmt: skip
        links = [one.url_citation.url for one in answer.choices[0].message.annotations or ()]
        link = next(link for link in links if kept.id in link)
        path = link.removeprefix(url)
        async with http(url) as raw:
            assert (await raw.get(link)).text == "Zebras drink at the Nile."
            assert (await raw.get(link, headers={"Authorization": f"Bearer {OTHER}"})).status_code == 404
            assert (await raw.get(link.replace("/content?", "?"))).status_code == 401
            assert (await raw.delete(link.replace("/content?", "?"))).status_code == 401
    (tmp_path / "docs" / "animals.md").unlink()
    (tmp_path / "docs").rmdir()
    async with served(tmp_path, api_keys=(OTHER,)) as url, http(url) as raw:
        assert (await raw.get(path)).status_code == 401


@pytest.mark.parametrize(
    "name", ["a b/50% ?&signature=1.md", "źródło #1.md", "signature=+.md", "%2e%2e.md", "'\"<>;.md"]
)
async def test_a_link_is_signed_for_the_name_as_it_is_asked_for(tmp_path: Path, name: str) -> None:
    async with served(tmp_path, api_keys=(KEY,), document=name) as url, client(url, KEY) as one, http(url) as raw:
        assert (await raw.get(await cited(one))).status_code == 200


async def test_where_no_key_is_needed_no_link_is_signed(tmp_path: Path) -> None:
    async with served(tmp_path) as url, client(url) as one, http(url) as raw:
        assert "security" not in (await raw.get("/v1/openapi.json")).text
        assert await cited(one) == f"{url}/v1/documents/animals.md"


@pytest.mark.parametrize("end", ["%0A", "%0D%0A", "%00", "%7F", "/%0A", "%0A%0A"])
async def test_no_odd_end_of_an_address_leads_around_the_door(tmp_path: Path, end: str) -> None:
    """A route's `$` matches before a final newline, and a pattern's `.` does not match one."""
    async with served(tmp_path, api_keys=(KEY,)) as url, http(url) as raw:
        for path in ("/v1/models", "/metrics", "/v1/files", "/v1/documents/animals.md", "/v1/openapi.json"):
            assert (await raw.get(f"{path}{end}")).status_code == 400, path
        body = {"model": "smallfirst-slm", "messages": [{"role": "user", "content": "Where do zebras drink?"}]}
        refused = await raw.post(f"/v1/chat/completions{end}", json=body)
        assert refused.status_code == 400
        assert "control character" in refused.json()["error"]["message"]


def test_what_needs_a_key_is_known_without_the_gate_too() -> None:
    for path in ("/v1/models\n", "/metrics\n", "/v1/\n", "/v1/a\nb", "/ondevice/prompt\n"):
        assert callers.KEYED.fullmatch(path), path
    for path in ("/v1x", "/ondevice", "/ondevice/models", "/healthz", "/metricsx"):
        assert not callers.KEYED.fullmatch(path), path


async def test_whoever_tries_many_keys_waits_and_who_has_one_does_not(tmp_path: Path) -> None:
    async with served(tmp_path, api_keys=(KEY,)) as url, http(url) as raw:
        statuses = [
            (await raw.get("/v1/models", headers={"Authorization": f"Bearer {n}"})).status_code for n in range(22)
        ]
        assert statuses[:20] == [401] * 20
        assert statuses[-1] == 429
        waits = await raw.get("/v1/models", headers={"Authorization": "Bearer 22"})
        assert int(waits.headers["retry-after"]) >= 1
        assert waits.json()["error"]["type"] == "rate_limit_error"
        assert (await raw.get("/v1/models", headers={"Authorization": f"Bearer {KEY}"})).status_code == 200
        assert (await raw.get("/healthz", headers={"Authorization": "Bearer 23"})).status_code == 200


async def test_each_caller_has_so_many_requests_a_minute(tmp_path: Path) -> None:
    async with served(tmp_path, api_keys=(KEY, OTHER), api_rate=3) as url:
        async with client(url, KEY) as one:
            for _ in range(3):
                await one.models.list()
            with pytest.raises(openai.RateLimitError, match="More than 3 requests in a minute") as caught:
                await one.models.list()
            assert 1 <= int(caught.value.response.headers["retry-after"]) <= 60
            assert caught.value.code == "rate_limit_exceeded"
        async with client(url, OTHER) as one:
            await one.models.list()
        async with http(url, Authorization=f"Bearer {KEY}") as raw:
            assert (await raw.get("/metrics")).status_code == 200  # a scraper is not in anybody's way
            assert (await raw.get("/healthz")).status_code == 200


def test_a_minute_is_any_sixty_seconds_and_who_is_silent_is_forgotten() -> None:
    now = 100.0
    allowance = callers.Allowance(lambda *_: None, 2, clock=lambda: now)  # type: ignore[arg-type, return-value]
    assert allowance.wait_s("ada") == 0
    now += 40
    assert (allowance.wait_s("ada"), allowance.wait_s("ada")) == (0, 20)
    assert allowance.wait_s("bo") == 0
    now += 20
    assert (allowance.wait_s("ada"), allowance.wait_s("ada")) == (0, 40)
    now += 60
    assert allowance.wait_s("carl") == 0
    assert list(allowance._asked) == ["carl"]


async def test_no_limit_is_none(tmp_path: Path) -> None:
    async with served(tmp_path, api_rate=0) as url, client(url) as one:
        for _ in range(5):
            await one.models.list()


async def test_pages_of_other_origins_read_nothing_unless_they_are_named(tmp_path: Path) -> None:
    async with served(tmp_path) as url, http(url, Origin=PAGE) as raw:
        refused = await raw.get("/v1/models")
        assert refused.status_code == 403
        assert PAGE in refused.json()["error"]["message"]
        assert "access-control-allow-origin" not in refused.headers


async def test_a_named_origin_may_ask_and_no_other(tmp_path: Path) -> None:
    async with served(tmp_path, allowed_origins=(PAGE,), api_keys=(KEY,)) as url, http(url) as raw:
        asks = {
            "Origin": PAGE,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang,x-stainless-os",
        }
        preflight = await raw.options("/v1/chat/completions", headers=asks)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == PAGE
        assert "access-control-allow-credentials" not in preflight.headers
        answer = await raw.get("/v1/models", headers={"Origin": PAGE, "Authorization": f"Bearer {KEY}"})
        assert answer.headers["access-control-allow-origin"] == PAGE
        refused = await raw.get("/v1/models", headers={"Origin": "https://other.our", "Authorization": f"Bearer {KEY}"})
        assert refused.status_code == 403
        unkeyed = await raw.get("/v1/models", headers={"Origin": PAGE})
        assert unkeyed.status_code == 401
        assert unkeyed.headers["access-control-allow-origin"] == PAGE, "a page must be able to read why"


async def test_a_name_rebound_to_this_machine_is_refused_as_openai_would(tmp_path: Path) -> None:
    async with served(tmp_path) as url, http(url, Host="evil.our") as raw:
        refused = await raw.get("/v1/models")
        assert refused.status_code == 400
        assert refused.json()["error"]["type"] == "invalid_request_error"


async def test_a_body_that_is_too_long_is_told_in_openais_shape(tmp_path: Path) -> None:
    async with served(tmp_path, upload_mb=1) as url, http(url) as raw:
        for path, most in (("/v1/chat/completions", 1_000_000 * 4 // 3 + 2_000_000), ("/v1/files", 1_000_000)):
            answer = await raw.post(path, content=b"x" * (most + 70_000))
            assert answer.status_code == 413, path
            assert "too large" in answer.json()["error"]["message"]


async def test_what_is_not_there_is_told_in_openais_shape(tmp_path: Path) -> None:
    async with served(tmp_path) as url, client(url) as one, http(url) as raw:
        with pytest.raises(openai.NotFoundError, match="POST /v1/embeddings") as caught:
            await one.embeddings.create(model="x", input="y")
        assert caught.value.code == "unknown_url"
        for method, path, allowed in (("GET", "/v1/chat/completions", "POST"), ("PUT", "/v1/files", "GET, POST")):
            wrong = await raw.request(method, path)
            assert wrong.status_code == 405
            assert wrong.json()["error"]["code"] == "method_not_supported"
            assert wrong.headers["allow"] == allowed


def test_an_api_for_everybody_does_not_start(tmp_path: Path) -> None:
    for host in ("0.0.0.0", "::", "192.168.1.20"):
        with pytest.raises(UserError, match=r"would be let in unasked\. Set RAG_API_KEYS"):
            callers.check(Settings(_env_file=None), host)  # type: ignore[call-arg]
        callers.check(Settings(_env_file=None, api_keys=(SecretStr(KEY),)), host)  # type: ignore[call-arg]
    callers.check(Settings(_env_file=None), "localhost")  # type: ignore[call-arg]


async def test_beside_the_chat_a_key_opens_the_api_and_nothing_else(tmp_path: Path) -> None:
    models = {"RAG_SLM_BASE_URL": "http://127.0.0.1:9/v1", "RAG_LLM_BASE_URL": "http://127.0.0.1:9/v1"}
    users = {"anna": "a long password"}
    data = tmp_path / "data"
    folders = {"RAG_CACHE_DIR": str(tmp_path), "RAG_DATA_DIR": str(data)}
    with chat(free_port(), tmp_path / "log", ready=False, users=users, RAG_API_KEYS=KEY, **folders, **models) as url:
        async with http(url, Authorization=f"Bearer {KEY}") as program:
            assert (await program.get("/v1/models")).status_code == 200
            assert (await program.get("/metrics")).status_code == 200
            for path in ("/status", "/user", "/history/export", "/ondevice"):
                assert (await program.get(path)).status_code in (303, 401), path
            form = {"file": ("mine.txt", b"Zebras drink at the Nile.")}
            kept = (await program.post("/v1/files", files=form)).json()
        # As it stands in a citation: tests/browser/test_ondevice.py opens one of a real answer.
        keyed = {"type": "http", "headers": [(b"authorization", f"Bearer {KEY}".encode())]}
        holder = callers.Keys(Settings(_env_file=None, data_dir=data, api_keys=(KEY,))).of_key(HTTPConnection(keyed))  # type: ignore[arg-type, call-arg]
        assert holder is not None
        link = holder.link(f"/v1/files/{kept['id']}/content")
        for opener in ({}, signed_in(url, "anna", users["anna"])):
            async with http(url, **opener) as reader:
                assert (await reader.get(link)).text == "Zebras drink at the Nile."
                assert (await reader.get(link.partition("?")[0])).status_code == (404 if opener else 401)
        async with http(url, **signed_in(url, "anna", users["anna"])) as person:
            assert (await person.get("/v1/models")).status_code == 200
            assert (await person.get("/user")).status_code == 200
        async with http(url) as nobody:
            assert (await nobody.get("/v1/models")).status_code == 401
            assert (await nobody.get("/healthz")).status_code == 200
            assert (await nobody.get("/v1/no/such")).json()["error"]["type"] == "authentication_error"


async def test_beside_a_chat_that_lets_this_machine_in_keys_count_too(tmp_path: Path) -> None:
    models = {"RAG_SLM_BASE_URL": "http://127.0.0.1:9/v1", "RAG_LLM_BASE_URL": "http://127.0.0.1:9/v1"}
    with chat(
        free_port(),
        tmp_path / "log",
        ready=False,
        RAG_API_KEYS=KEY,
        RAG_CACHE_DIR=str(tmp_path),
        RAG_ALLOWED_ORIGINS=PAGE,
        **models,
    ) as url:
        async with http(url) as here:
            assert (await here.get("/v1/models")).status_code == 401
            assert (await here.get("/status")).status_code == 200
            for path in ("/v1/models%0A", "/metrics%0A", "/openapi.json%0A", "/project/thread%0A"):
                assert (await here.get(path)).status_code == 400, path
            asks = {
                "Origin": PAGE,
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": "authorization",
            }
            preflight = await here.options("/v1/chat/completions", headers=asks)
            assert preflight.status_code == 200
            unkeyed = await here.get("/v1/models", headers={"Origin": PAGE})
            assert (unkeyed.status_code, unkeyed.headers["access-control-allow-origin"]) == (401, PAGE)
            answer = await here.get("/v1/models", headers={"Authorization": f"Bearer {KEY}"})
            assert answer.status_code == 200
            assert (await here.get("/v1/no/such", headers={"Authorization": f"Bearer {KEY}"})).json()["error"][
                "code"
            ] == "unknown_url"
