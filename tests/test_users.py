"""The file of users: what is kept, who gets in, two processes at once, and the command that changes it."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from argon2 import PasswordHasher

from rag.errors import UserError
from rag.serve.users import LONGEST, Users, canonical

GOOD = "correct horse"


def smallfirst(folder: Path, *arguments: str, typed: str = "") -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "rag.cli", "users", *arguments],
        env={**os.environ, "RAG_DATA_DIR": str(folder)}, input=typed, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def test_a_password_is_kept_as_a_hash_that_only_its_owner_may_read(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    users = Users(folder)
    assert users.add("anna", GOOD) == "anna"
    assert GOOD not in users.path.read_text()
    assert "$argon2id$" in users.path.read_text()
    if sys.platform != "win32":
        assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
        assert folder.stat().st_mode & 0o777 == 0o700


def test_only_the_right_password_of_a_user_is_right(tmp_path: Path) -> None:
    users = Users(tmp_path)
    users.add("anna", GOOD)
    users.add("bo", "another good one")
    assert users.verify("anna", GOOD) == ("anna", users.generation("anna"))
    for name, password in (
        ("anna", "another good one"), ("anna", ""), ("anna", GOOD + "x"), ("carl", GOOD), ("", GOOD), ("\ud800", GOOD),
        ("anna", "\ud800"), ("anna", GOOD * LONGEST), ("a" * 5000, GOOD), ("an\x00na", GOOD),
    ):  # fmt: skip
        assert users.verify(name, password) is None, (name[:20], password[:20])


def test_a_name_is_one_however_it_is_spelt(tmp_path: Path) -> None:
    users = Users(tmp_path)
    assert users.add(" ＡNNA ", GOOD) == "anna"
    assert users.add("Straße", GOOD) == "strasse"
    for name in ("anna", "Anna", "ａｎｎａ", "ANNA "):
        assert users.verify(name, GOOD) is not None, name
        with pytest.raises(UserError, match="already"):
            users.add(name, GOOD)
    assert canonical(canonical("ﬃ İΣ")) == canonical("ﬃ İΣ")
    assert users.names() == ["anna", "strasse"]


def test_a_password_is_the_same_however_a_keyboard_puts_its_accents(tmp_path: Path) -> None:
    users = Users(tmp_path)
    users.add("anna", "fa\u0327ade cafe\u0301")
    assert users.verify("anna", "fa\u0327ade café") is not None
    assert users.verify("anna", "facade cafe") is None


@pytest.mark.parametrize("name", ["", "  ", "an\nna", "an\u202ena", "a" * 65, "\ud800"])
def test_an_impossible_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="name"):
        Users(tmp_path).add(name, GOOD)


@pytest.mark.parametrize("password", ["", "1234567", "x" * (LONGEST + 1), "\ud800" * 8])
def test_an_impossible_password_is_refused(tmp_path: Path, password: str) -> None:
    users = Users(tmp_path)
    with pytest.raises(UserError, match="password"):
        users.add("anna", password)
    assert users.names() == []


def test_a_name_that_nobody_has_takes_as_long_as_a_wrong_password(tmp_path: Path) -> None:
    users = Users(tmp_path)
    users.add("anna", GOOD)

    def fastest_s(name: str) -> float:
        times = []
        for _ in range(5):
            began = time.perf_counter()
            assert users.verify(name, "a wrong one") is None
            times.append(time.perf_counter() - began)
        return min(times)

    fastest_s("carl")
    assert fastest_s("carl") > fastest_s("anna") / 2


def test_another_password_or_another_user_of_that_name_is_another_generation(tmp_path: Path) -> None:
    users = Users(tmp_path)
    users.add("anna", GOOD)
    generations = [users.generation("anna")]
    users.change("anna", GOOD)
    generations.append(users.generation("anna"))
    users.remove("anna")
    assert users.generation("anna") is None
    users.add("anna", GOOD)
    generations.append(users.generation("anna"))
    assert None not in generations
    assert len(set(generations)) == 3


def test_a_change_is_seen_at_once_by_whoever_reads_the_same_file(tmp_path: Path) -> None:
    here, there = Users(tmp_path), Users(tmp_path)
    here.add("anna", GOOD)
    assert there.verify("anna", GOOD) is not None
    here.change("anna", "another good one")
    assert there.verify("anna", GOOD) is None
    assert there.generation("anna") == here.generation("anna")
    here.remove("anna")
    assert there.generation("anna") is None


def test_an_older_hash_is_made_anew_when_its_password_comes(tmp_path: Path) -> None:
    users = Users(tmp_path)
    older = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash(GOOD)
    users.path.write_text(json.dumps({"anna": {"hash": older, "generation": "g"}}))
    assert users.verify("anna", "a wrong one") is None
    assert older in users.path.read_text()
    assert users.verify("anna", GOOD) == ("anna", "g")
    kept = json.loads(users.path.read_text())["anna"]
    assert not PasswordHasher().check_needs_rehash(kept["hash"])
    assert kept["generation"] == "g", "whoever is signed in stays so"
    assert users.verify("anna", GOOD) == ("anna", "g")


def test_two_processes_at_once_do_not_lose_a_user(tmp_path: Path) -> None:
    names = [f"user{number}" for number in range(8)]
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "rag.cli", "users", "add", name, "--password-stdin"],
            env={**os.environ, "RAG_DATA_DIR": str(tmp_path)}, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        for name in names
    ]  # fmt: skip
    for process in running:
        process.communicate(GOOD.encode(), timeout=60)
    assert [process.returncode for process in running] == [0] * 8
    assert Users(tmp_path).names() == names
    assert not [path for path in tmp_path.iterdir() if path.name not in ("users.json", "users.json.lock")]


@pytest.mark.parametrize("text", ["", "[]", "{", '{"anna": 7}', '{"anna": {"hash": "x"}}', "\x00\xff"])
def test_a_damaged_file_lets_nobody_in_and_is_left_as_it_is(tmp_path: Path, text: str) -> None:
    users = Users(tmp_path)
    users.path.write_bytes(text.encode("latin-1"))
    for use in (users.names, lambda: users.generation("anna"), lambda: users.verify("anna", GOOD), lambda: users.add("anna", GOOD)):  # fmt: skip
        with pytest.raises(UserError, match=r"users\.json cannot be read"):
            use()
    assert users.path.read_bytes() == text.encode("latin-1")


def test_the_command_adds_lists_changes_and_removes(tmp_path: Path) -> None:
    assert "no user yet" in smallfirst(tmp_path, "list").stderr
    added = smallfirst(tmp_path, "add", "Anna", "--password-stdin", typed=f"{GOOD}\r\nmore\n")
    assert (added.returncode, added.stdout) == (0, "anna may sign in.\n")
    assert "RAG_LOGIN=password" in added.stderr
    assert smallfirst(tmp_path, "add", "bo", "--password-stdin", typed=GOOD).returncode == 0
    assert smallfirst(tmp_path, "list").stdout == "anna\nbo\n"
    assert json.loads(smallfirst(tmp_path, "list", "--json").stdout) == {"users": ["anna", "bo"]}
    assert Users(tmp_path).verify("anna", GOOD) is not None
    assert smallfirst(tmp_path, "passwd", "anna", "--password-stdin", typed="another good one").returncode == 0
    assert Users(tmp_path).verify("anna", "another good one") is not None
    removed = smallfirst(tmp_path, "remove", "ANNA")
    assert removed.returncode == 0
    assert str(tmp_path) in removed.stdout
    assert Users(tmp_path).names() == ["bo"]


@pytest.mark.parametrize(
    ("arguments", "typed", "said"),
    [
        (["add", "bo", "--password-stdin"], GOOD, "There is a user bo already"),
        (["add", "", "--password-stdin"], GOOD, "The name is empty"),
        (["add", "carl", "--password-stdin"], "short", "at least 8 characters"),
        (["add", "carl", "--password-stdin"], "", "at least 8 characters"),
        (["remove", "carl"], "", "There is no user carl"),
        (["passwd", "carl", "--password-stdin"], GOOD, "There is no user carl"),
    ],
)
def test_a_mistake_is_one_line_and_changes_nothing(tmp_path: Path, arguments: list[str], typed: str, said: str) -> None:
    users = Users(tmp_path)
    users.add("bo", GOOD)
    before = users.path.read_bytes()
    done = smallfirst(tmp_path, *arguments, typed=typed)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert users.path.read_bytes() == before


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
@pytest.mark.parametrize(("again", "said"), [(GOOD, "anna may sign in"), ("something else", "two passwords")])
def test_a_person_types_the_password_twice_and_sees_neither(tmp_path: Path, again: str, said: str) -> None:
    terminal = f"import pty; pty.spawn([{sys.executable!r}, '-m', 'rag.cli', 'users', 'add', 'anna'])"
    with subprocess.Popen(
        [sys.executable, "-c", terminal], env={**os.environ, "RAG_DATA_DIR": str(tmp_path)},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        shown = b""
        for prompt, typed in ((b"Password of anna: ", GOOD), (b"Once more: ", again)):
            while prompt not in shown:
                shown += (part := process.stdout.read(1000))
                assert part, shown
            process.stdin.write(f"{typed}\n".encode())
        while part := process.stdout.read(1000):
            shown += part
    assert said in shown.decode()
    assert GOOD not in shown.decode()
    assert Users(tmp_path).names() == (["anna"] if again == GOOD else [])
