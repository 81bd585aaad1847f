"""examples/quickstart.ipynb runs from top to bottom, and is committed without outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from paths import ROOT

nbformat = pytest.importorskip("nbformat", reason="nbclient is not installed")
NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_notebook_is_committed_without_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    for cell in code_cells(notebook):
        assert cell.outputs == []
        assert cell.execution_count is None


@pytest.mark.slow
def test_notebook_runs_and_shows_what_it_promises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    where = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=600, resources=where).execute()

    printed = "".join(
        output.get("text", "") for cell in code_cells(notebook) for output in cell.outputs
    )
    shown = [
        output["data"].get("text/html", "")
        for cell in code_cells(notebook)
        for output in cell.outputs
        if "data" in output
    ]
    assert "200 embedded, 0 failed" in printed
    assert "vision.onnx" in printed
    assert "verdict: passes" in printed
    assert shown[2].count("<img") == 5
    assert "test_000004.jpg" in shown[2]  # the image that the query describes
    assert shown[3].count("bundle: ") == 6
    assert (tmp_path / "quickstart" / "vectors" / "manifest.json").is_file()
