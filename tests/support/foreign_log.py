"""Transparency logs and witnesses by other people, in `.venv/tlog`."""

import importlib
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / ".venv" / "tlog"


def aics_tlog():
    """Return the package aics-tlog, or skip the test."""
    if not FOLDER.is_dir():
        pytest.skip("aics-tlog is not in .venv/tlog (make install)")
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
    return importlib.import_module("aics_tlog")
