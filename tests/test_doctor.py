"""Each check, on a machine where what it looks for is there and on one where it is not; and that none of them can harm."""

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import threading
import tomllib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import APIRouter, FastAPI
from pydantic import SecretStr

from rag import doctor
from rag.checks import software
from rag.checks.subject import Seen, Subject
from rag.doctor import CHECKS, Check, Finding, Trouble
from rag.errors import UserError
from rag.models import weights
from rag.models.legs import Legs
from rag.serve import status, words
from rag.settings import Settings

from .conftest import open_library
from .product import free_port

ROOT = Path(__file__).parent.parent
SECRET = "sk-planted-0123456789"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """What runs on this machine beside the tests is none of theirs."""
    return settings.model_copy(update={"discover": False})


async def look(name: str, settings: Settings, **more: Any) -> Finding:
    (finding,) = await doctor.examine(settings, checks=doctor.named(name), **more)
    return finding


def changed(settings: Settings, **fields: Any) -> Settings:
    """As if the user had said so."""
    return Settings(**{**settings.model_dump(exclude_unset=True), "_env_file": None, **fields})


# --- the report ------------------------------------------------------------------------------------------------------


def check(look: Any, limit_s: float = 10, vital: bool = False) -> Check:
    return Check("tried", "Tried", look, limit_s=limit_s, vital=vital)


async def test_a_check_that_hangs_is_a_finding(settings: Settings) -> None:
    held = threading.Event()

    def hangs(_: Subject) -> Seen:
        held.wait()
        return Seen("ok", "")

    for vital, told in ((False, "note"), (True, "bad")):
        (finding,) = await doctor.examine(settings, checks=[check(hangs, limit_s=0.05, vital=vital)])
        assert finding.status == told
        assert "not known after 0.05 s" in finding.detail
        assert finding.mend
    held.set()


def test_a_check_that_hangs_does_not_hold_up_the_end_of_the_program() -> None:
    code = """
import asyncio, threading
from rag import doctor
from rag.settings import Settings
look = lambda subject: threading.Event().wait()
asyncio.run(doctor.examine(Settings(), checks=[doctor.Check("x", "X", look, limit_s=0.05)]))
print("ended")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.stdout == "ended\n", done.stderr


async def test_one_check_does_not_wait_for_another(settings: Settings) -> None:
    here, there = asyncio.Event(), asyncio.Event()

    async def first(_: Subject) -> Seen:
        here.set()
        await there.wait()
        return Seen("ok", "first")

    async def second(_: Subject) -> Seen:
        await here.wait()
        there.set()
        return Seen("ok", "second")

    findings = await doctor.examine(settings, checks=[check(first), check(second)])
    assert [finding.detail for finding in findings] == ["first", "second"]


async def test_a_check_that_breaks_is_a_finding_which_does_not_quote_the_error(settings: Settings) -> None:
    def breaks(_: Subject) -> Seen:
        raise ValueError(f"Bearer {SECRET}")

    (finding,) = await doctor.examine(settings, checks=[check(breaks)])
    assert (finding.status, finding.detail) == ("note", "That cannot be looked at: ValueError")

    def lacks(_: Subject) -> Seen:
        import no_such_package

        return Seen("ok", str(no_such_package))

    (finding,) = await doctor.examine(settings, checks=[check(lacks)])
    assert "no_such_package is missing" in finding.detail


async def test_an_error_of_ours_says_what_and_then_what_to_do(settings: Settings) -> None:
    def fails(_: Subject) -> Seen:
        raise UserError("It is 7. It should be 8. Change it.")

    (finding,) = await doctor.examine(settings, checks=[check(fails)])
    assert (finding.detail, finding.mend) == ("It is 7. It should be 8", "Change it.")


async def test_a_secret_is_taken_out_of_whatever_a_check_says(settings: Settings) -> None:
    database = SecretStr(f"postgresql://u:{SECRET}@127.0.0.1/x")
    for kept in ({"llm_api_key": SecretStr(SECRET)}, {"database_url": database}):
        said = Seen("note", f"It answered {SECRET}", f"Try {SECRET}")
        (finding,) = await doctor.examine(settings.model_copy(update=kept), checks=[check(lambda _, said=said: said)])
        assert (finding.detail, finding.mend) == ("It answered [key]", "Try [key]")


FINDINGS = [
    Finding("a", "Alpha", "ok", "fine"),
    Finding("b", "Beta", "note", "slow [1]", "Wait."),
    Finding("c", "Gamma", "bad", "gone", "Bring it back."),
]


def test_as_json_it_says_whether_the_chat_could_work() -> None:
    told = doctor.to_dict(FINDINGS)
    assert set(told) == {"ok", "checks", "machine", "version"}
    assert told["ok"] is False
    assert doctor.to_dict(FINDINGS[:2])["ok"] is True
    assert told["checks"][2] == {
        "name": "c", "title": "Gamma", "status": "bad", "detail": "gone", "mend": "Bring it back.",
    }  # fmt: skip
    json.dumps(told)


def test_as_text_it_is_a_line_for_each_and_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    doctor.show(FINDINGS)
    assert capsys.readouterr().out.splitlines() == [
        "ok    Alpha  fine",
        "note  Beta   slow [1]",
        "             Wait.",
        "bad   Gamma  gone",
        "             Bring it back.",
        "The chat could not work: Gamma.",
    ]
    doctor.show(FINDINGS[:2])
    assert capsys.readouterr().out.splitlines()[-1] == "The chat can work."


async def test_every_check_has_an_answer_here(settings: Settings) -> None:
    findings = await doctor.examine(settings, port=free_port())
    assert [finding.name for finding in findings] == [one.name for one in CHECKS]
    for finding in findings:
        assert finding.detail
        assert "cannot be looked at" not in finding.detail, finding
        assert finding.mend or finding.status == "ok", finding
    assert [finding for finding in findings if finding.status == "bad"] == []


# --- the README's table ----------------------------------------------------------------------------------------------

TROUBLES = [trouble for one in CHECKS for trouble in one.troubles]


def test_checks_have_names_of_their_own() -> None:
    assert len({one.name for one in CHECKS}) == len({one.title for one in CHECKS}) == len(CHECKS)


def test_the_readmes_table_is_made_of_the_checks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- [[[cog from tests import readme; readme.troubleshooting() ]]] -->\n<!-- [[[end]]] -->\n")
    subprocess.run(
        [sys.executable, "-m", "cogapp", "-r", "-p", 'import sys; sys.path.insert(0, ".")', str(page)],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    rows = [line for line in page.read_text().splitlines() if line.startswith("|")][2:]
    assert len(rows) == len(TROUBLES)
    for row, trouble in zip(rows, TROUBLES, strict=True):
        seen, means, mend, _ = (cell.strip() for cell in row.strip("|").split(" | "))
        assert (seen, means, mend) == (trouble.seen, trouble.means, trouble.mend)


# What a shell and Python say.
THEIRS = ("smallfirst: command not found", "No module named 'rag'", "ModuleNotFoundError")
OURS = [
    words
    for trouble in TROUBLES
    for words in re.findall(r"`([^`]+)`", trouble.seen)
    if words not in THEIRS and not words.startswith("RAG_")
]


@pytest.mark.parametrize("quoted", OURS)
def test_a_message_that_the_table_quotes_is_said_somewhere(quoted: str) -> None:
    said = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "rag").rglob("*") if path.suffix in (".py", ".json")
                     and path.name != "doctor.py")  # fmt: skip
    # As far as no value stands in it.
    begins = max(re.split(r"\.\.\.|'|\d[\d.:]*|SIG\w+", quoted), key=len).strip()
    assert begins in said


@pytest.mark.parametrize("setting", sorted({name for one in TROUBLES for name in re.findall(r"RAG_[A-Z_]+", f"{one}")}))
def test_a_setting_that_the_table_names_is_one(setting: str) -> None:
    assert setting.removeprefix("RAG_").lower() in Settings.model_fields


@pytest.mark.parametrize(
    "about",
    [
        "not running", "not active", "just loaded", "CORS", "Another program has the port", "is full", "was damaged",
        "never guessed", "window", "wants a key",
    ],
)  # fmt: skip
def test_the_table_knows_the_troubles_that_people_have(about: str) -> None:
    assert any(about in f"{trouble.seen} {trouble.means}" for trouble in TROUBLES)


def test_a_row_is_whole() -> None:
    for trouble in TROUBLES:
        assert isinstance(trouble, Trouble)
        assert all((trouble.seen, trouble.means, trouble.mend))
        assert "|" not in f"{trouble.seen}{trouble.means}{trouble.mend}"


# --- Python and packages ---------------------------------------------------------------------------------------------


async def test_python_is_one_of_those_that_the_package_says(settings: Settings) -> None:
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    oldest, newest = ((f"{one[0]}.{one[1]}") for one in (software.OLDEST, software.NEWEST))
    assert wanted == f">={oldest},<{software.NEWEST[0]}.{software.NEWEST[1] + 1}"
    finding = await look("python", settings)
    assert finding.status == "ok"
    assert "64-bit" in finding.detail
    assert software.satisfies(newest, wanted)


def program(folder: Path, name: str) -> Path:
    """One that a PATH leads to."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


async def test_an_environment_that_is_not_active_is_told_how_to_be(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    finding = await look("environment", settings)
    assert finding.status == "note"
    assert "not on the PATH" in finding.detail
    assert "activate" in finding.mend.lower() or "PATH" in finding.mend
    other = program(tmp_path, "smallfirst")
    finding = await look("environment", settings)
    assert finding.status == "note"
    assert str(other) in finding.detail
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    assert str(other) not in (await look("environment", settings)).detail


@pytest.mark.parametrize(
    ("version", "versions", "holds"),
    [
        ("2.12.0", ">=2.12,<3", True), ("2.11.9", ">=2.12,<3", False), ("3.0.0", ">=2.12,<3", False),
        ("3", "<3.0", False), ("2.9", ">=2.12", False), ("2026.10.11549", ">=2026.10", True), ("1.0", "==1", True),
        ("1.1", "!=1.1", False), ("7.2.2", ">7", True), ("0.0.35", ">=0.0.35", True), ("5.0rc1", ">=5", True),
        ("1.0", "", True),
    ],
)  # fmt: skip
def test_versions_are_compared_by_their_numbers(version: str, versions: str, holds: bool) -> None:
    assert software.satisfies(version, versions) is holds


def test_what_is_missing_or_too_old_is_named() -> None:
    wanted = ["chainlit<3,>=2.12", "markitdown[docx,pptx]>=0.1.8", "pip>=23.2", "asyncpg>=0.30; extra == 'postgres'"]
    here = {"chainlit": "2.11", "pip": "26.1"}
    assert software.unmet(wanted, version_of=here.get) == [
        "chainlit is 2.11, and <3,>=2.12 is needed",
        "markitdown is missing",
    ]
    assert software.unmet(wanted, "postgres", here.get) == ["asyncpg is missing"]
    assert software.unmet(wanted, "postgres", {"asyncpg": "0.32"}.get) == []


async def test_what_is_here_is_what_the_package_needs(settings: Settings) -> None:
    finding = await look("packages", settings)
    assert finding.status == "ok", finding
    assert re.search(r"chainlit 2\.\d+", finding.detail)
    assert "dev" in finding.detail


async def test_the_web_servers_holes_are_closed_for_real(settings: Settings) -> None:
    finding = await look("web", settings)
    assert finding.status == "ok", finding
    assert "closed" in finding.detail


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the program is started, with no setting in the environment."""
    folder = tmp_path / "started"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("RAG_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(folder)
    return folder


async def test_variables_are_named_and_secrets_are_only_set(
    settings: Settings, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "no .env file" in (await look("variables", settings)).detail
    monkeypatch.setenv("RAG_TOP_K", "9")
    monkeypatch.setenv("RAG_SLM_MODEL", "")
    monkeypatch.setenv("FOUNDRY_LOCAL_ENDPOINT", "http://127.0.0.1:5273")
    (folder / ".env").write_text(f"# keys\nexport RAG_LLM_API_KEY='{SECRET}'\nRAG_LLM_MODEL=\nRAG_DOCS=''\nOTHER=1\n")
    (folder / ".env").chmod(0o600)
    finding = await look("variables", settings)
    assert finding.status == "ok", finding
    assert "FOUNDRY_LOCAL_ENDPOINT, RAG_LLM_API_KEY (secret) in .env, RAG_TOP_K; " in finding.detail
    assert SECRET not in str(finding)
    assert "9" not in finding.detail.replace(str(folder), "")


async def test_a_variable_that_nobody_knows_is_told_its_neighbour(
    settings: Settings, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAG_SLM_MODLE", "x")
    (folder / ".env").write_text("RAG_LLM_APIKEY=x\n")
    finding = await look("variables", settings)
    assert finding.status == "note"
    assert "RAG_LLM_APIKEY in .env or RAG_SLM_MODLE" in finding.detail
    assert finding.mend == "Did you mean RAG_LLM_API_KEY? Did you mean RAG_SLM_MODEL?"


@pytest.mark.skipif(os.name != "posix", reason="there are no such permissions here")
async def test_a_key_that_others_may_read_is_told(settings: Settings, folder: Path) -> None:
    (folder / ".env").write_text(f"RAG_LLM_API_KEY={SECRET}\n")
    (folder / ".env").chmod(0o644)
    finding = await look("variables", settings)
    assert finding.status == "note"
    assert "chmod 600" in finding.mend


# --- the machine -----------------------------------------------------------------------------------------------------


async def test_a_folder_that_cannot_be_written_is_told(settings: Settings, tmp_path: Path) -> None:
    assert (await look("folders", settings)).status == "ok"
    (tmp_path / "file").write_text("in the way")
    finding = await look("folders", changed(settings, data_dir=tmp_path / "file" / "data"))
    assert finding.status == "bad"
    assert "RAG_DATA_DIR" in finding.mend
    finding = await look("folders", changed(settings, cache_dir=tmp_path / "file" / "cache"))
    assert finding.status == "bad", "the models are missing"
    assert "RAG_CACHE_DIR" in finding.mend
    gguf = own_model(tmp_path)
    finding = await look(
        "folders", changed(settings, cache_dir=tmp_path / "file" / "cache", slm_model=gguf, llm_model=gguf)
    )
    assert finding.status == "note"
    assert not (tmp_path / "data").exists(), "to look makes nothing"


@pytest.mark.skipif(os.name != "posix", reason="there are no such permissions here")
async def test_conversations_that_others_may_read_are_told(settings: Settings) -> None:
    settings.data_dir.mkdir(mode=0o700)
    assert (await look("folders", settings)).status == "ok"
    settings.data_dir.chmod(0o755)
    finding = await look("folders", settings)
    assert finding.status == "note"
    assert "chmod 700" in finding.mend


def own_model(folder: Path, size_bytes: int = 100) -> str:
    path = folder / f"own-{size_bytes}.gguf"
    with path.open("wb") as file:
        file.write(b"GGUF")
        file.truncate(size_bytes)
    return str(path)


@pytest.mark.skipif(sys.platform != "linux", reason="a disk without room is at hand on Linux only")
async def test_a_full_disk_is_told(settings: Settings, tmp_path: Path) -> None:
    full = Path("/proc/smallfirst")
    finding = await look("disk", changed(settings, data_dir=full))
    assert finding.status == "bad"
    assert "RAG_DATA_DIR" in finding.mend
    finding = await look("disk", changed(settings, cache_dir=full))
    assert finding.status == "bad"
    assert "0 MB free" in finding.detail
    # Two models, and the larger one a second time while it is put together.
    sizes = [weights.find(name).size_bytes for name in (settings.slm_model, settings.llm_model)]
    assert f"{(sum(sizes) + max(sizes) + weights.SPARE_BYTES) / 1e9:.1f} GB are needed" in finding.detail
    assert "RAG_CACHE_DIR" in finding.mend
    gguf = own_model(tmp_path)
    assert (await look("disk", changed(settings, cache_dir=full, slm_model=gguf))).status == "note", (
        "the small one is here"
    )
    assert (await look("disk", changed(settings, cache_dir=full, slm_model=gguf, llm_model=gguf))).status == "ok"


async def test_memory_is_compared_with_what_the_models_need(settings: Settings, tmp_path: Path) -> None:
    small, huge = own_model(tmp_path), own_model(tmp_path, 10**13)
    assert (await look("memory", changed(settings, slm_model=huge, llm_model=small))).status == "bad"
    finding = await look("memory", changed(settings, slm_model=small, llm_model=huge))
    assert finding.status == "note"
    assert "17,000.1 GB of it the larger model" in finding.detail
    assert "GB" in (await look("memory", changed(settings, slm_model=small, llm_model=small))).detail


async def test_the_processors_instructions_are_those_that_llama_cpp_tells(settings: Settings, tmp_path: Path) -> None:
    import xllamacpp

    finding = await look("processor", settings)
    assert finding.status in ("ok", "note"), finding
    compiled = re.findall(r"(AVX2|NEON) = 1", xllamacpp.get_system_info())
    assert all(one in finding.detail for one in compiled)
    assert finding.status == "ok" or "smallfirst models build" in finding.mend
    own = changed(settings, llama_server=program(tmp_path / "bin", "llama-server"))
    assert (await look("processor", own)).detail.endswith(f"models are run by {own.llama_server}")


# --- models ----------------------------------------------------------------------------------------------------------

SMOL = weights.find("smollm2-135m")


def place(settings: Settings, size_bytes: int = SMOL.size_bytes, *, verified: bool = True) -> Path:
    """A file of the model's name and size, which is not the model."""
    path = settings.cache_dir / SMOL.filename
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(size_bytes)
    if verified:
        stamp = {"size_bytes": size_bytes, "mtime_ns": path.stat().st_mtime_ns, "sha256": SMOL.sha256}
        path.with_name(f"{path.name}.verified").write_text(json.dumps(stamp))
    return path


async def test_model_files_are_here_verified_changed_or_damaged(settings: Settings) -> None:
    smol = changed(settings, slm_model=SMOL.name, llm_model=SMOL.name)
    finding = await look("weights", smol)
    assert finding.status == "note"
    assert "is not here yet, 98 MB" in finding.detail
    assert f"smallfirst models pull {SMOL.name}" in finding.mend
    path = place(smol)
    assert (await look("weights", smol)).status == "ok"
    os.utime(path, ns=(0, 0))
    assert "has changed since it was verified" in (await look("weights", smol)).detail
    place(smol, 1000, verified=False)
    finding = await look("weights", smol)
    assert finding.status == "note"
    assert "is damaged: it has 1,000 bytes" in finding.detail


async def test_a_deep_look_hashes_what_a_start_believes(settings: Settings) -> None:
    smol = changed(settings, slm_model=SMOL.name, llm_model=SMOL.name)
    path = place(smol)
    said: list[str] = []
    finding = await look("weights", smol, deep=True, tell=said.append)
    assert finding.status == "bad"
    assert f"{path} is damaged" in finding.detail
    assert SMOL.sha256[:12] in finding.detail
    assert finding.mend.startswith("Delete it")
    assert said[0].startswith(f"Hashing {SMOL.filename}")


async def test_a_file_of_ones_own_is_looked_into(settings: Settings, tmp_path: Path) -> None:
    own = changed(settings, slm_model=own_model(tmp_path), llm_model=own_model(tmp_path))
    assert (await look("weights", own)).status == "ok"
    Path(own.slm_model).write_bytes(b"<html>Not found</html>")
    finding = await look("weights", own)
    assert finding.status == "bad"
    assert "is no GGUF file" in finding.detail
    Path(own.slm_model).unlink()
    assert (await look("slm", own)).status == "bad", "the chat would not start"


class Listing:
    """A model server of which only the lists can be asked."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, Any]] = {}
        listing = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                status, body = listing.answers.get(self.path, (404, {"error": "no such path"}))
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def lists(self, *ids: str, **more: Any) -> None:
        entries = [{"id": id, "object": "model", "created": 0, "owned_by": "them", **more} for id in ids]
        self.answers["/v1/models"] = 200, {"object": "list", "data": entries}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def listing() -> Iterator[Listing]:
    listing = Listing()
    listing.lists("Phi-4-mini-instruct-generic-cpu:5", "gpt-oss-20b-generic-cpu:1")
    yield listing
    listing.close()


def on(listing: Listing, settings: Settings, **more: Any) -> Settings:
    """Both legs on that server."""
    named = {
        "slm_base_url": listing.url,
        "slm_model": "phi-4-mini",
        "llm_base_url": listing.url,
        "llm_model": "gpt-oss-20b",
    }
    return changed(settings, **named, **more)


async def test_a_model_is_found_by_the_name_that_people_use(settings: Settings, listing: Listing) -> None:
    both = on(listing, settings)
    finding = await look("slm", both)
    assert finding.status == "ok"
    assert f"Phi-4-mini-instruct-generic-cpu:5 at {listing.url}" in finding.detail
    assert "gpt-oss-20b-generic-cpu:1" in (await look("llm", both)).detail
    servers = await look("servers", both)
    assert servers.status == "ok"
    assert "RAG_SLM_BASE_URL" in servers.detail
    assert "Phi-4-mini-instruct-generic-cpu:5; gpt-oss-20b-generic-cpu:1" in servers.detail
    assert "models are elsewhere" in (await look("weights", both)).detail


async def test_a_name_that_no_server_knows_is_answered_with_those_that_there_are(
    settings: Settings, listing: Listing
) -> None:
    unknown = changed(on(listing, settings), slm_model="phi-9", llm_model="phi-9")
    for leg, told in (("slm", "bad"), ("llm", "note")):
        finding = await look(leg, unknown)
        assert finding.status == told
        assert "phi-9" in f"{finding.detail} {finding.mend}"
        assert "gpt-oss-20b-generic-cpu:1" in f"{finding.detail} {finding.mend}"


@pytest.mark.parametrize(
    ("mode", "slm", "llm"), [("auto", "bad", "note"), ("slm", "bad", "note"), ("llm", "note", "bad")]
)
async def test_the_chat_cannot_do_without_the_model_that_it_begins_with(
    settings: Settings, mode: str, slm: str, llm: str
) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}/v1"
    down = changed(settings, slm_base_url=nowhere, llm_base_url=nowhere, mode=mode)
    for leg, told in (("slm", slm), ("llm", llm)):
        finding = await look(leg, down)
        assert finding.status == told
        assert nowhere in finding.detail
        assert finding.mend.startswith("Start that server")
    assert (await look("servers", down)).status == "note"


async def test_a_server_that_wants_a_key_says_which_setting_has_it(settings: Settings, listing: Listing) -> None:
    listing.answers["/v1/models"] = 401, {"error": {"message": "no"}}
    finding = await look("slm", on(listing, settings))
    assert finding.status == "bad"
    assert "key" in finding.detail
    assert "RAG_SLM_API_KEY" in finding.mend


async def test_a_server_that_does_not_tell_its_models_may_answer_all_the_same(
    settings: Settings, listing: Listing
) -> None:
    listing.answers.clear()
    finding = await look("slm", on(listing, settings))
    assert finding.status == "note"
    assert "has no list of models" in finding.detail


async def test_a_model_that_is_not_loaded_is_told(settings: Settings, listing: Listing) -> None:
    models = [{"id": "phi-4-mini", "object": "model", "type": "llm", "state": "not-loaded"}]
    listing.answers["/api/v0/models"] = 200, {"object": "list", "data": models}
    listing.lists("phi-4-mini")
    finding = await look("slm", on(listing, settings))
    assert finding.status == "note"
    assert "LM Studio" in finding.detail
    assert "not loaded" in finding.detail
    models[0]["state"] = "loaded"
    assert (await look("slm", on(listing, settings))).status == "ok"
    assert "phi-4-mini, loaded" in (await look("servers", on(listing, settings))).detail


@pytest.mark.parametrize(
    ("remote", "told", "says"), [("never", "bad", "RAG_REMOTE=never"), ("ask", "ok", "once somebody allowed it")]
)
async def test_another_machine_is_not_asked_before_somebody_allowed_it(
    settings: Settings, remote: str, told: str, says: str
) -> None:
    # The network is refused in this process: a request would fail loudly.
    there = changed(settings, slm_base_url="http://192.0.2.1:8080/v1", slm_model="phi-4-mini", remote=remote)
    finding = await look("slm", there)
    assert (finding.status, says in finding.detail) == (told, True), finding


async def test_a_window_without_room_is_told(settings: Settings, listing: Listing) -> None:
    assert (await look("window", settings)).status == "ok"
    finding = await look("window", changed(settings, context_tokens=512, llm_max_tokens=400))
    assert finding.status == "bad"
    assert "larger model 512 tokens, which leaves none for passages" in finding.detail
    assert "RAG_CONTEXT_TOKENS" in finding.mend
    listing.lists("phi-4-mini", "gpt-oss-20b", max_model_len=1400)
    finding = await look("window", on(listing, settings))
    assert finding.status == "note"
    assert "larger window on its server" in finding.mend


async def test_what_a_server_can_do_is_known_once_it_was_tried(settings: Settings, listing: Listing) -> None:
    assert (await look("capabilities", settings)).status == "ok"
    assert "not tried yet" in (await look("capabilities", on(listing, settings))).detail
    from rag.models.capabilities import Capabilities, Tried

    can = Capabilities(stream=True, logprobs=False, refuses=frozenset({"seed"}), tokens_per_s=17.0)
    Tried(settings.cache_dir).put(listing.url, "Phi-4-mini-instruct-generic-cpu:5", None, can)
    detail = (await look("capabilities", on(listing, settings))).detail
    assert "Phi-4-mini-instruct-generic-cpu:5: streams, no logprobs" in detail
    assert "17 tokens/s, refuses seed" in detail


# --- documents and conversations -------------------------------------------------------------------------------------


async def test_the_index_is_told_and_not_made(settings: Settings, tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    assert (await look("documents", changed(settings, docs=docs))).status == "bad"
    docs.mkdir()
    own = changed(settings, docs=docs)
    assert (await look("documents", own)).status == "note", "it is empty"
    (docs / "good.md").write_text("Fine words.")
    (docs / ".hidden.md").write_text("x")
    (docs / "unknown.bin").write_bytes(b"\0")
    finding = await look("documents", own)
    assert finding.status == "ok"
    assert f"1 files in {docs}, not read yet" in finding.detail
    assert not settings.cache_dir.exists(), "to look makes nothing"
    library = open_library(docs, settings.cache_dir)
    try:
        assert "of which 1 are read: 1 passages" in (await look("documents", own)).detail, "while the chat runs"
    finally:
        library.close()
    (docs / "bad.pdf").write_bytes(b"not a pdf")
    open_library(docs, settings.cache_dir).close()
    finding = await look("documents", own)
    assert finding.status == "note"
    assert "1 could not be read" in finding.detail
    next(settings.cache_dir.glob("library/*/passages.sqlite")).write_bytes(b"torn" * 1000)
    assert "not read yet" in (await look("documents", own)).detail


async def test_a_database_that_does_not_answer_is_told_without_its_password(settings: Settings) -> None:
    assert "SQLite" in (await look("history", settings)).detail
    port = free_port()
    away = changed(settings, database_url=SecretStr(f"postgresql://u:{SECRET}@127.0.0.1:{port}/x"))
    finding = await look("history", away)
    assert finding.status == "bad"
    assert f"127.0.0.1:{port}" in finding.detail
    assert SECRET not in str(finding)
    with socket.create_server(("127.0.0.1", port)):
        assert (await look("history", away)).status == "ok"


# --- who reaches the chat --------------------------------------------------------------------------------------------


@asynccontextmanager
async def served(*routers: Any) -> AsyncIterator[int]:
    app = FastAPI()
    for router in routers:
        app.include_router(router)
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    try:
        yield listening.getsockname()[1]
    finally:
        server.should_exit = True
        await serving


async def test_a_port_is_free_ours_or_somebody_elses(settings: Settings, tmp_path: Path) -> None:
    assert (await look("port", settings, port=free_port())).status == "ok"
    (tmp_path / "docs").mkdir()
    library = open_library(tmp_path / "docs", tmp_path / "cache")
    legs = Legs(settings)
    try:
        async with served(status.router(legs, library), words.router()) as port:
            finding = await look("port", settings, port=port)
            assert (finding.status, "small model absent" in finding.detail) == ("ok", True), finding
    finally:
        await legs.close()
        library.close()
    async with served(words.router()) as port:
        assert "sign in" in (await look("port", settings, port=port)).detail
    alone = APIRouter()
    alone.add_api_route("/healthz", lambda: {"status": "ok", "version": "0.1.0"})
    async with served(alone) as port:
        finding = await look("port", settings, port=port)
        assert finding.status == "bad"
        assert "`smallfirst serve` listens there" in finding.detail
    async with served() as port:
        finding = await look("port", settings, port=port)
        assert finding.status == "bad"
        assert f"--port {port + 1}" in finding.mend


async def test_a_port_whose_owner_says_nothing_is_told_in_time(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        finding = await look("port", settings, port=silent.getsockname()[1])
    assert finding.status == "bad"
    assert "cannot be listened on" in finding.detail, "and not that nobody knows"


async def test_a_chat_for_anybody_or_nobody_is_told(settings: Settings) -> None:
    assert (await look("sign-in", settings)).status == "ok"
    finding = await look("sign-in", settings, host="0.0.0.0")
    assert finding.status == "bad"
    assert "RAG_LOGIN=password" in finding.mend
    finding = await look("sign-in", changed(settings, login="password"))
    assert finding.status == "bad"
    assert "smallfirst users add" in finding.mend
    assert "X-Forwarded-User" in (await look("sign-in", changed(settings, login="header"), host="0.0.0.0")).detail
    assert "has the key, too" in (await look("sign-in", changed(settings, api_keys=(SecretStr("a key"),)))).detail


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, "ok"),
        ({"allowed_origins": ("https://our.example", "http://10.0.0.2:8080")}, "ok"),
        ({"allowed_origins": ("https://our.example/app",)}, "note"),
        ({"allowed_origins": ("*",)}, "note"),
        ({"allowed_origins": ("our.example",)}, "note"),
        ({"allowed_hosts": ("our.example",)}, "ok"),
        ({"allowed_hosts": ("https://our.example",)}, "note"),
        ({"allowed_hosts": ("our.example:8000",)}, "note"),
        ({"allowed_hosts": ("*",)}, "note"),
    ],
)
async def test_pages_and_names_that_no_browser_says_are_told(
    settings: Settings, fields: dict[str, Any], told: str
) -> None:
    finding = await look("origins", changed(settings, **fields))
    assert finding.status == told
    for values in fields.values():
        assert told == "note" or all(value in finding.detail for value in values)


async def test_a_proxy_that_would_see_requests_to_this_machine_is_told(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    assert (await look("proxies", settings)).detail == "None is named in the environment"
    monkeypatch.setenv("http_proxy", f"http://u:{SECRET}@proxy.example:3128")
    finding = await look("proxies", settings)
    assert finding.status == "note"
    assert "http://proxy.example:3128 for http" in finding.detail
    assert SECRET not in str(finding)
    assert "NO_PROXY" in finding.mend
    monkeypatch.setenv("no_proxy", "localhost,127.0.0.1,::1")
    assert (await look("proxies", settings)).status == "ok"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere they are looked for beside the PATH, too")
async def test_browsers_are_named(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    finding = await look("browsers", settings)
    assert finding.status == "note"
    program(tmp_path, "firefox")
    finding = await look("browsers", settings)
    assert finding.status == "ok"
    assert finding.detail.startswith("Firefox; ")
    assert "WebGPU" in finding.detail
    assert "https and localhost only" not in finding.detail
    assert "https and localhost only" in (await look("browsers", settings, host="0.0.0.0")).detail


async def test_the_foundry_command_is_told(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = program(tmp_path, "foundry")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert str(command) in (await look("foundry", settings)).detail


async def test_scans_are_read_where_tesseract_is(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "Without Tesseract" in (await look("scans", settings)).detail
