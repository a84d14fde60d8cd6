"""Every knob has a unit, a range and a source."""

from pathlib import Path

import pytest

from rag.errors import UserError
from rag.settings import Settings


def test_the_environment_is_read_once_with_the_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAG_TOP_K", "9")
    settings = Settings.load()
    monkeypatch.setenv("RAG_TOP_K", "3")
    assert settings.top_k == 9


@pytest.mark.parametrize(
    ("name", "value"), [("RAG_TOP_K", "many"), ("RAG_MODE", "both"), ("RAG_CONFIDENCE", "1.5"), ("BENCH_ROUNDS", "0")]
)
def test_a_bad_value_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=rf"^{name} has the value") as caught:
        Settings.load()
    assert value in str(caught.value)


@pytest.mark.parametrize("written", ["chat.our, api.our", '["chat.our", "api.our"]', "chat.our,,api.our,"])
def test_a_list_is_written_with_commas_or_as_json(monkeypatch: pytest.MonkeyPatch, written: str) -> None:
    monkeypatch.setenv("RAG_ALLOWED_HOSTS", written)
    assert Settings.load().allowed_hosts == ("chat.our", "api.our")


def test_a_torn_list_is_told_and_a_secret_one_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAG_ALLOWED_HOSTS", '["chat.our"')
    with pytest.raises(UserError, match=r"RAG_ALLOWED_HOSTS has the value .*a list is written as"):
        Settings.load()
    monkeypatch.delenv("RAG_ALLOWED_HOSTS")
    monkeypatch.setenv("RAG_API_KEYS", '["a-secret"')
    with pytest.raises(UserError, match=r"^RAG_API_KEYS has a value") as caught:
        Settings.load()
    assert "a-secret" not in str(caught.value)


@pytest.mark.parametrize("written", [" , ", "[]", '[""]', '["a", " "]'])
def test_keys_that_are_none_are_no_open_door(monkeypatch: pytest.MonkeyPatch, written: str) -> None:
    monkeypatch.setenv("RAG_API_KEYS", written)
    with pytest.raises(UserError, match=r"RAG_API_KEYS has a value.*holds no key"):
        Settings.load()


def test_an_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = Settings.load()
    for name in ("RAG_CACHE_DIR", "RAG_TOP_K", "RAG_LLM_BASE_URL"):
        monkeypatch.setenv(name, "")
    assert Settings.load() == usual


def test_a_key_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAG_LLM_API_KEY", "sk-secret")
    assert "sk-secret" not in repr(Settings.load())


def test_every_setting_is_described() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_an_argument_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAG_DOCS", "/somewhere")
    assert Settings.load(docs=tmp_path).docs == tmp_path
    assert Settings.load(docs=None).docs == Path("/somewhere")
