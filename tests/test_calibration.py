"""What was fitted for a pair of models is kept, found for just that pair, and anything else is told from it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rag.errors import UserError
from rag.models import weights
from rag.settings import Settings
from rag.turn import calibration, prompt
from rag.turn.calibration import Calibration, Line, Scorer, find, key, load, own_path

FITTED = Calibration(
    key="0123456789abcdef",
    slm="small",
    llm="large",
    right=Line(Scorer({"unaligned": -1.25, "unsure_first": -0.5}, 0.75), 0.62),
    right_without_logprobs=Line(Scorer({"unaligned": -2.0}, 1.0), 0.5),
    early={0: Line(Scorer({"uncovered": -3.0}, 1.0), 0.1), 16: Line(Scorer({"unaligned": -3.0}, 1.0), 0.2)},
    check=-0.3,
    facts={"goal": "80 % — genügt", "questions": 500},
)
SHIPPED = sorted(calibration.SHIPPED.glob("*.json"))


@pytest.mark.parametrize("fitted", [FITTED, replace(FITTED, early={}, check=None, facts={})])
def test_what_is_saved_is_loaded_again(fitted: Calibration, tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "pair.json"
    fitted.save(path)
    assert load(path) == fitted
    assert [file.name for file in path.parent.iterdir()] == ["pair.json"], "nothing half written is left"


def test_a_second_fit_takes_the_place_of_the_first(tmp_path: Path) -> None:
    FITTED.save(tmp_path / "pair.json")
    replace(FITTED, check=2.0).save(tmp_path / "pair.json")
    assert load(tmp_path / "pair.json").check == 2.0


def torn(tmp_path: Path) -> str:
    FITTED.save(tmp_path / "whole.json")
    return (tmp_path / "whole.json").read_text()[:-20]


def changed(tmp_path: Path, **named: Any) -> str:
    FITTED.save(tmp_path / "whole.json")
    return json.dumps(json.loads((tmp_path / "whole.json").read_text()) | named)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        "[]",
        "3",
        "null",
        '"text"',
        "{} more",
        "PK\x03\x04",
        torn,
        lambda folder: changed(folder, format=2),
        lambda folder: changed(folder, right=None),
        lambda folder: changed(folder, right={"scorer": {}, "at": 0.5}),
        lambda folder: changed(folder, early=None),
        lambda folder: changed(folder, early={"soon": {}}),
        lambda folder: changed(folder, more=1),
    ],
    ids=[
        "empty",
        "no keys",
        "list",
        "number",
        "null",
        "text",
        "two",
        "zip",
        "torn",
        "other format",
        "no line",
        "no scorer",
        "no early",
        "no moment",
        "unknown key",
    ],
)
def test_a_torn_or_foreign_file_is_one_clear_error_that_names_it(content: Any, tmp_path: Path) -> None:
    path = tmp_path / "pair.json"
    path.write_text(content if isinstance(content, str) else content(tmp_path))
    with pytest.raises(UserError, match="is no calibration") as raised:
        load(path)
    assert str(path) in str(raised.value)
    assert "smallfirst calibrate" in str(raised.value)


def test_bytes_that_are_no_text_and_a_missing_file_are_the_same_error(tmp_path: Path) -> None:
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00{")
    for name in ("bytes.json", "missing.json"):
        with pytest.raises(UserError, match=name):
            load(tmp_path / name)


@pytest.mark.parametrize(
    "changes",
    [
        {"slm_passages": 2},
        {"llm_passages": 5},
        {"passage_chars": 500},
        {"evidence_tokens": 600},
        {"top_k": 9},
        {"slm_examples": False},
    ],
    ids=str,
)
def test_what_a_model_reads_is_part_of_the_key(changes: dict[str, Any], settings: Settings) -> None:
    assert key("s", "l", settings.model_copy(update=changes)) != key("s", "l", settings)


@pytest.mark.parametrize(
    "changes",
    [
        {"flush_ms": 7},
        {"confidence": 0.9},
        {"mode": "llm"},
        {"cache_dir": Path("elsewhere")},
        {"docs": Path("mine")},
        {"min_words": 1},
    ],
    ids=str,
)
def test_what_changes_no_signal_is_not_part_of_the_key(changes: dict[str, Any], settings: Settings) -> None:
    assert key("s", "l", settings.model_copy(update=changes)) == key("s", "l", settings)


def test_each_pair_has_a_key_of_its_own(settings: Settings) -> None:
    pairs = [("a", "b"), ("b", "a"), ("a", "c"), ("c", "b"), ("ab", ""), ("", "ab")]
    assert len({key(*pair, settings) for pair in pairs}) == len(pairs)
    assert len({own_path(*pair, settings) for pair in pairs}) == len(pairs)


@pytest.mark.parametrize("worded", ["SYSTEM", "SYSTEM_LARGE", "EXAMPLES", "CHECK", "CHECKED_EXAMPLES"])
def test_another_wording_makes_another_key(worded: str, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    as_it_is = key("s", "l", settings)
    monkeypatch.setattr(prompt, worded, getattr(prompt, worded)[:1])
    assert key("s", "l", settings) != as_it_is


@pytest.mark.parametrize("model", ["../../etc/passwd", "org/model:7b", "a b", "模型"])
def test_no_models_name_leads_out_of_the_folder(model: str, settings: Settings) -> None:
    assert own_path(model, model, settings).resolve().parent == (settings.cache_dir / "calibrations").resolve()


def test_the_users_own_file_comes_before_a_shipped_one(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "SHIPPED", tmp_path / "shipped")
    fitted = {pair: replace(FITTED, key=key(*pair, settings)) for pair in (("a", "b"), ("a", "c"))}
    for pair, shipped in fitted.items():
        shipped.save(tmp_path / "shipped" / f"{'-'.join(pair)}.json")
    own = replace(fitted["a", "b"], check=9.0)
    own.save(own_path("a", "b", settings))
    assert find("a", "b", settings) == own
    assert find("a", "c", settings) == fitted["a", "c"]
    assert find("a", "d", settings) is None
    assert find("a", "c", settings.model_copy(update={"passage_chars": 500})) is None


def test_an_unknown_pair_has_none(settings: Settings) -> None:
    assert find("no such model", "nor this", settings) is None


def test_a_torn_file_of_the_users_own_is_told_and_not_passed_over(settings: Settings) -> None:
    path = own_path("torn", "pair", settings)
    path.parent.mkdir(parents=True)
    path.write_text("{")
    with pytest.raises(UserError, match="is no calibration"):
        find("torn", "pair", settings)


@pytest.mark.skipif(not SHIPPED, reason="no calibration is shipped yet")
def test_each_shipped_calibration_belongs_to_an_embedded_pair_as_it_is_by_default(settings: Settings) -> None:
    pairs = []
    for path in SHIPPED:
        fitted = load(path)
        assert fitted.key == key(fitted.slm, fitted.llm, settings), (
            f"{path.name} was fitted to other prompts or settings"
        )
        assert find(fitted.slm, fitted.llm, settings) == fitted
        assert {weights.find(fitted.slm).name, weights.find(fitted.llm).name} == {fitted.slm, fitted.llm}
        pairs.append((fitted.slm, fitted.llm))
    assert len(pairs) == len(set(pairs))


def test_a_scorers_weights_add_up_to_a_probability() -> None:
    scorer = Scorer({"a": -2.0, "b": -1.0}, 1.5)
    assert scorer.probability({"a": 0.5, "b": 0.5, "c": 9.0}) == 0.5
    assert scorer.worst({"a": 0.5, "b": 0.9}) == "a"
    assert scorer.worst({"a": 0.1, "b": 0.9}) == "b"
    assert 0 <= Scorer({"a": -1.0}, 0.0).probability({"a": 1e6}) < 1e-100
    assert Scorer({"a": 1.0}, 0.0).probability({"a": 1e6}) == 1


def test_the_worst_feature_is_the_one_that_lowers_the_score_most_beside_what_is_usual() -> None:
    features = {"rival_hit": 0.9, "unaligned": 0.6}
    assert Scorer({"rival_hit": -2.0, "unaligned": -2.0}, 0.0).worst(features) == "rival_hit"
    usual = {"rival_hit": 0.8, "unaligned": 0.2}
    assert Scorer({"rival_hit": -2.0, "unaligned": -2.0}, 0.0, usual).worst(features) == "unaligned"
