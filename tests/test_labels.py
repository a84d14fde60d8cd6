"""What is kept of a thumb, what takes its place, and what happens where nothing can be kept. Real files, no chat."""

import logging
import sqlite3
import sys
import threading
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from rag.errors import UserError
from rag.lab.labels import Labels
from rag.turn import cascade
from rag.turn.session import Session

from .scripted import ScriptedLegs


@pytest.fixture
def turn() -> dict[str, Any]:
    verdict = {"score": 0.31, "threshold": 0.65, "accepted": False, "reason": "too short", "signals": {"words": 2}}
    drafts = [
        {"leg": "slm", "model": "small", "text": "10", "usage": None, "finish_reason": "stop"},
        {"leg": "llm", "model": "large", "text": "10 MB.", "usage": None, "finish_reason": "stop"},
    ]
    return {
        "question": "How large?", "answer": "10 MB.", "mode": "auto", "escalated": True, "refused": False,
        "verdict": verdict, "drafts": drafts, "hits": [{"text": "a passage"}],
    }  # fmt: skip


def test_a_label_is_what_can_be_learnt_from(tmp_path: Path, turn: dict[str, Any]) -> None:
    with closing(Labels(tmp_path / "labels.sqlite")) as labels:
        assert labels.add("a", turn, "bad", "wrong unit")
        (row,) = labels
    time = datetime.fromisoformat(row.pop("time"))
    assert timedelta(0) <= datetime.now(UTC) - time < timedelta(minutes=1)
    assert row == {
        "kind": "bad", "question": "How large?", "answer": "10 MB.", "slm": "small", "llm": "large", "mode": "auto",
        "escalated": True, "refused": False, "verdict": turn["verdict"], "comment": "wrong unit",
    }  # fmt: skip


async def test_a_real_turn_is_kept(tmp_path: Path, library: Any, settings: Any) -> None:
    legs = ScriptedLegs(slm=["The largest file is 10 MB."])
    events = cascade.answer(
        "What is the largest file that I can drop into a chat?", session=Session(library), legs=legs, settings=settings
    )
    (turn,) = [event.turn async for event in events if isinstance(event, cascade.Answered)]
    with closing(Labels(tmp_path / "labels.sqlite")) as labels:
        labels.add("a", turn.to_dict(), "good")
        (row,) = labels
    assert (row["slm"], row["llm"]) == ("scripted-slm", None)
    assert row["verdict"]["signals"]["words"] == 6


def test_a_later_thumb_takes_the_place_of_the_earlier(tmp_path: Path, turn: dict[str, Any]) -> None:
    with closing(Labels(tmp_path / "labels.sqlite")) as labels:
        for turn_id, kind in (("a", "good"), ("a", "asked_larger"), ("b", "good"), ("a", "bad"), ("a", "asked_larger")):
            labels.add(turn_id, turn, kind)  # type: ignore[arg-type]
        assert [row["kind"] for row in labels] == ["good", "bad", "asked_larger"]
        labels.remove("a")
        labels.remove("unheard of")
        assert [row["kind"] for row in labels] == ["good", "asked_larger"], "that it was asked stays"


def test_labels_outlive_the_process_and_are_their_owners(tmp_path: Path, turn: dict[str, Any]) -> None:
    path = tmp_path / "new" / "folder" / "labels.sqlite"
    with closing(Labels(path)) as labels:
        labels.add("a", turn, "good")
    with closing(Labels(path)) as again:
        assert len(again) == 1
    if sys.platform != "win32":
        assert path.stat().st_mode & 0o077 == 0


def test_to_look_makes_no_file(tmp_path: Path) -> None:
    with closing(Labels(tmp_path / "labels.sqlite")) as labels:
        assert labels.rows() == []
        assert len(labels) == 0
        labels.clear()
    assert list(tmp_path.iterdir()) == []


def test_what_is_cleared_is_gone_from_the_disk(tmp_path: Path, turn: dict[str, Any]) -> None:
    path = tmp_path / "labels.sqlite"
    with closing(Labels(path)) as chat, closing(Labels(path)) as terminal:
        for number in range(30):
            chat.add(str(number), turn, "good")
        terminal.clear()
        assert len(chat) == 0
        assert b"How large?" not in path.read_bytes()
        assert chat.add("a", turn, "good"), "the chat goes on"


def test_any_thread_may_add(tmp_path: Path, turn: dict[str, Any]) -> None:
    with closing(Labels(tmp_path / "labels.sqlite")) as labels:
        threads = [threading.Thread(target=labels.add, args=(str(n), turn, "good")) for n in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(labels) == 20


def test_a_text_that_is_no_unicode_is_kept(tmp_path: Path, turn: dict[str, Any]) -> None:
    with closing(Labels(tmp_path / "labels.sqlite")) as labels:
        assert labels.add("a", turn | {"question": "half a \ud800 pair", "answer": "ganz \0 schön 🦓"}, "good")
        (row,) = labels
    assert (row["question"], row["answer"]) == ("half a ? pair", "ganz \0 schön 🦓")


@pytest.mark.parametrize("spoiled", ["folder is a file", "file is a folder", "file is something else"])
def test_where_nothing_can_be_kept_the_chat_goes_on(
    tmp_path: Path, turn: dict[str, Any], spoiled: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "place" / "labels.sqlite"
    if spoiled == "folder is a file":
        path.parent.write_text("a file")
    elif spoiled == "file is a folder":
        path.mkdir(parents=True)
    else:
        path.parent.mkdir()
        path.write_text("no database at all, and longer than the head of one " * 10)
    with caplog.at_level(logging.WARNING), closing(Labels(path)) as labels:
        assert not labels.add("a", turn, "good")
        assert not labels.add("b", turn, "bad")
        assert not labels.remove("a")
    (warning,) = caplog.records
    assert str(path) in warning.getMessage()


def test_a_person_who_asks_for_them_is_told_why_not(tmp_path: Path) -> None:
    path = tmp_path / "labels.sqlite"
    path.write_text("no database at all, and longer than the head of one " * 10)
    with closing(Labels(path)) as labels:
        for look in (labels.rows, labels.clear, labels.__len__):
            with pytest.raises(UserError, match=r"labels\.sqlite cannot be used"):
                look()
    assert path.read_text().startswith("no database"), "it is not ours to overwrite"


def test_a_lock_that_another_process_keeps_costs_one_label(
    tmp_path: Path, turn: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "labels.sqlite"
    monkeypatch.setattr("rag.lab.labels.LOCKED_S", 0.05)
    with closing(Labels(path)) as labels:
        labels.add("a", turn, "good")
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            assert not labels.add("b", turn, "good")
            other.execute("ROLLBACK")
        assert labels.add("c", turn, "good")
        assert len(labels) == 2
