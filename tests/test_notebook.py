"""The notebook: its kept outputs are small and real, and it runs from its first cell to its last."""

import os
import shutil
from pathlib import Path
from typing import Any

import nbformat
import pytest

from notebooks.execute import execute

from .conftest import CORPUS
from .product import ROOT

NOTEBOOK = ROOT / "notebooks" / "model_compare.ipynb"
LARGEST_BYTES = 40_000


def cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def said(notebook: Any) -> str:
    """All text that the cells put out."""
    outputs = [output for cell in cells(notebook) for output in cell.outputs]
    return "\n".join(
        str(output.get("text", "")) + str(output.get("data", {}).get("text/plain", "")) for output in outputs
    )


def check(notebook: Any) -> None:
    """Nothing failed, and each figure is there."""
    outputs = [output for cell in cells(notebook) for output in cell.outputs]
    assert [cell.execution_count for cell in cells(notebook)] == list(range(1, len(cells(notebook)) + 1))
    assert "error" not in {output.output_type for output in outputs}
    # Nothing is shown but by a cell; all but the first show something.
    assert all(cell.outputs for cell in cells(notebook)[1:])
    told = said(notebook)
    assert "The first token of " in told
    for name in ("slm_cold_ttft_ms", "llm_warm_ttft_ms", "ratio_cold_total_ms", "refine_blended_tokens_per_s"):
        assert name in told
    shown = {kind for output in outputs for kind in output.get("data", {})}
    assert {"image/svg+xml", "text/html"} <= shown


def test_the_kept_outputs_are_whole_small_and_of_no_particular_machine() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    check(notebook)
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text.encode()) < LARGEST_BYTES
    assert not [word for word in ("/root", "/home/", "/Users/", "/tmp", str(ROOT), "stderr") if word in text]
    assert set(notebook.metadata) == {"kernelspec"}


def test_it_runs_with_whatever_models_settings_name(
    small_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    for name in (small_weights.name, f"{small_weights.name}.verified"):
        os.link(small_weights.with_name(name), cache / name)
    docs = tmp_path / "docs"
    docs.mkdir()
    shutil.copy(CORPUS / "bm25.md", docs)
    for name, value in {
        "RAG_CACHE_DIR": str(cache), "RAG_DOCS": str(docs), "RAG_SLM_MODEL": "smollm2-135m", "RAG_LLM_MODEL": "smollm2-135m",
        "RAG_SLM_MAX_TOKENS": "10", "RAG_LLM_MAX_TOKENS": "10", "RAG_LLM_PASSAGES": "1", "RAG_SLM_EXAMPLES": "false",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    fresh = execute(NOTEBOOK)
    check(fresh)
    assert "'max_tokens': 10" in said(fresh)
    kept = nbformat.read(NOTEBOOK, as_version=4)
    assert [cell.source for cell in fresh.cells] == [cell.source for cell in kept.cells]
