"""What the schema says of every door for programs is what they do, asked with made-up requests, right and wrong ones."""

from pathlib import Path
from typing import Any, Final

import schemathesis
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import from_schema
from schemathesis.engine.events import NonFatalError, ScenarioFinished

from rag.serve.server import application
from rag.settings import Settings

from .conftest import open_library
from .scripted import ScriptedLegs
from .serving import ScriptedService

CONFIG: Final = {
    "seed": 8,
    "continue-on-failure": True,
    "generation": {"max-examples": 15, "deterministic": True, "database": "none"},
    "phases": {"stateful": {"enabled": False}},
    "checks": {
        # What fits the schema may still be refused: an unknown model, a conversation that does not end with a question.
        "positive_data_acceptance": {"enabled": False},
    },
}


class _Always(list[str]):
    """A model that has the same to say to everything."""

    def pop(self, _: object = 0) -> str:
        return self[0]


def test_every_door_does_what_the_schema_says(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "zebras.md").write_text("Zebras drink at the Mara river every morning.")
    library = open_library(tmp_path / "docs", tmp_path / "cache")
    legs = ScriptedLegs()
    legs.slm.backend_.replies = legs.llm.backend_.replies = _Always(["Zebras drink at the Mara river."])  # type: ignore[assignment]
    settings = Settings(  # type: ignore[call-arg]
        _env_file=None, docs=tmp_path / "docs", cache_dir=tmp_path / "cache", data_dir=tmp_path / "data", api_rate=0,
        allowed_hosts=("testserver",),
    )  # fmt: skip
    service: Any = ScriptedService(settings, library, legs)
    schema = schemathesis.openapi.from_asgi(
        "/v1/openapi.json", application(service, "127.0.0.1"), config=SchemathesisConfig.from_dict(CONFIG)
    )
    asked: dict[str, int] = {}
    wrong: set[str] = set()
    for event in from_schema(schema).execute():
        if isinstance(event, NonFatalError):
            wrong.add(f"{event.label}: {event.info.format()}")
        if isinstance(event, ScenarioFinished):
            asked[event.recorder.label] = asked.get(event.recorder.label, 0) + len(event.recorder.cases)
            for checks in event.recorder.checks.values():
                for check in checks:
                    if check.failure_info is not None:
                        failure = check.failure_info
                        wrong.add(f"{event.recorder.label}: {failure.failure.message}\n{failure.code_sample}")
    library.close()
    assert sorted(wrong) == []
    assert asked["POST /v1/chat/completions"] >= 15
