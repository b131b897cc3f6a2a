"""Test of the notebook from a scikit-learn model to a drift verdict."""

import os
import re
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.support.guides import ROOT


def _printed(notebook):
    """Return the text that the code cells have printed."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output.get("text", "") for output in outputs)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_notebook_reaches_shown_verdicts(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    notebook = nbformat.read(ROOT / "projects" / "first_hour.ipynb", as_version=4)
    shown = _printed(notebook)

    NotebookClient(notebook, resources={"metadata": {"path": tmp_path}}).execute()

    verdict = re.compile(r"^(2026-03-0[23]): ([\w ]+): ([^(;]+)", re.MULTILINE)
    calm, shifted = verdict.findall(_printed(notebook))
    assert calm[:2] == ("2026-03-02", "no drift")
    assert shifted == ("2026-03-03", "drift", "bp: mean 95.19 → 12.55, lower")
    assert verdict.findall(shown) == [calm, shifted]
